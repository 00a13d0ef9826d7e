// Package db is the one way to the database: SQLite inside the process, or a
// PostgreSQL server. Packages own their tables and their SQL; this package owns
// connections, transactions, durability and migrations.
//
// # One SQL text
//
// The same text runs on both engines: $1 placeholders, upsert, RETURNING,
// keyset paging. Only DDL differs, in a folder of migrations an engine. Columns
// are INTEGER (BIGINT on PostgreSQL), TEXT and BLOB (BYTEA): times are
// microseconds since 1970, ids UUIDv7 text, booleans 0 and 1, digests bytes.
//
// # Transactions
//
// Update is durable when it returns nil, and did nothing when it returns an
// error (ErrOutcomeUnknown excepted). View is a consistent snapshot. What must
// be atomic across packages takes a *Tx from whoever began it.
//
// # SQLite: one writer, many in one commit
//
// One goroutine owns the only writing connection (WAL, synchronous=FULL). It
// takes a caller's function, runs it in a savepoint, then takes what has queued
// up meanwhile, without waiting for more, and commits all of it with one fsync.
// A function that fails is rolled back to its savepoint and harms none of its
// neighbours; a commit that fails, fails for everyone in it. Callers are
// answered after the commit only, so nobody acts on what a crash would take
// back. While one group syncs, the next one gathers: load makes the groups
// larger instead of the queue longer.
//
// # PostgreSQL: each its own
//
// Every function is its own transaction at READ COMMITTED. Who needs more takes
// a row lock (see Tx.ForUpdate) or an advisory lock. Serialization failures and
// deadlocks are tried again, so a function has no effects outside its Tx; those
// go into AfterCommit.
package db

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/firmseal/firmseal/internal/problem"
)

// Engine is the kind of database.
type Engine string

// The engines.
const (
	SQLite   Engine = "sqlite"
	Postgres Engine = "postgres"
)

// ErrNotFound is what a row's Scan returns when there is none.
var ErrNotFound = sql.ErrNoRows

// ErrClosed is returned by Update and View after Close.
var ErrClosed = errors.New("database is closed")

// ErrOutcomeUnknown is in the chain of an Update's error when the commit was
// sent and its answer was lost or the disk failed under it: the work is there
// or it is not, and only a later read can tell.
var ErrOutcomeUnknown = errors.New("the outcome of the commit is unknown")

// Options have useful zero values.
type Options struct {
	// Logger gets migrations and warnings about the server's settings. Default:
	// slog.Default().
	Logger *slog.Logger
	// Readers is the number of reading connections to SQLite. Default: 8.
	Readers int
	// Conns is the number of connections to PostgreSQL. Default: 32.
	Conns int
}

// DB is an open database. It is safe for concurrent use.
type DB struct {
	engine Engine
	hub    hub

	// lite or pg is set.
	lite *lite
	pg   *pg

	// mu guards closed. Update holds it for reading while it hands over to
	// SQLite's writer.
	mu     sync.RWMutex
	closed bool
}

// Open opens "sqlite:PATH" (the file is made when it is not there) or
// "postgres://…", and applies the migrations that are missing. Several
// processes may open one new database at once.
func Open(ctx context.Context, url string, o Options) (*DB, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Readers <= 0 {
		o.Readers = 8
	}
	if o.Conns <= 0 {
		o.Conns = 32
	}
	d := &DB{hub: hub{topics: make(map[string]chan struct{})}}
	scheme, rest, _ := strings.Cut(url, ":")
	switch scheme {
	case "sqlite":
		d.engine = SQLite
		l, err := openLite(ctx, rest, &d.hub, o)
		if err != nil {
			return nil, err
		}
		d.lite = l
	case "postgres", "postgresql":
		d.engine = Postgres
		p, err := openPostgres(ctx, url, &d.hub, o)
		if err != nil {
			return nil, err
		}
		d.pg = p
	default:
		// The URL may hold a password: it is not repeated.
		return nil, problem.New(problem.DBURL, "the database URL is neither sqlite: nor postgres:").
			WithHint("write sqlite:PATH or postgres://USER@HOST/NAME")
	}
	return d, nil
}

// Engine says which database this is. SQL that must differ asks here.
func (d *DB) Engine() Engine { return d.engine }

// Update runs fn in a write transaction and returns when it is durable.
//
// fn does not run when ctx has ended before it starts. On SQLite, once started
// it runs to its end and its true outcome is returned; on PostgreSQL statements
// end with ctx, but not the commit. fn may run more than once on PostgreSQL.
// An error of fn is returned as it is. A panic in fn rolls it back and goes on
// in the caller. fn must not call Update: it would wait for itself. When it is
// given the Tx's own context, that panics.
func (d *DB) Update(ctx context.Context, fn func(*Tx) error) error {
	mustNotNest(ctx)
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.lite != nil {
		return d.updateLite(ctx, fn)
	}
	if d.isClosed() {
		return ErrClosed
	}
	return d.pg.update(ctx, fn)
}

// View runs fn on a snapshot: what it reads is the state at one moment, which
// includes every Update that returned before. It can write nothing.
func (d *DB) View(ctx context.Context, fn func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.isClosed() {
		return ErrClosed
	}
	if d.lite != nil {
		return d.lite.view(ctx, fn)
	}
	return d.pg.view(ctx, fn)
}

// BeforeCommit registers fn to run at the end of every SQLite commit group that
// has something to commit, once, inside its transaction, after the callers'
// functions. If it fails, the whole group fails. It is never called on
// PostgreSQL. Functions run in the order in which they were registered;
// register them before the first Update that needs them.
func (d *DB) BeforeCommit(fn func(*Tx) error) {
	if d.lite == nil {
		return
	}
	w := d.lite.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hooks = append(w.hooks[:len(w.hooks):len(w.hooks)], fn)
}

// Close waits for the transactions that have begun, commits what is queued and
// closes the connections.
func (d *DB) Close() error {
	d.mu.Lock()
	was := d.closed
	d.closed = true
	d.mu.Unlock()
	if was {
		return nil
	}
	if d.lite != nil {
		return d.lite.close()
	}
	return d.pg.close()
}

func (d *DB) isClosed() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.closed
}

// NewID makes an id: a UUIDv7 as text, so that ids sort by the time when they
// were made and index pages fill in order.
func NewID() string { return uuid.Must(uuid.NewV7()).String() }

// Now is the time as it is stored: microseconds since 1970, UTC.
func Now() int64 { return time.Now().UnixMicro() }
