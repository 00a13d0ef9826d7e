package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/firmseal/firmseal/internal/problem"
)

const (
	// groupMax bounds the functions in one commit, and so how long the first of
	// them waits for the last. A commit's cost is paid off long before.
	groupMax = 256
	// queueMax is how many callers can have handed over their function; more
	// wait at the door, where their context can still end them.
	queueMax = 1024
	// stmtMax bounds a connection's prepared statements. The program's SQL is
	// some hundred texts; the bound is for a text that is built by loop.
	stmtMax = 512
)

// lite is an open SQLite file.
type lite struct {
	rw, ro  *sql.DB
	writer  *writer
	readers chan *session // a nil is a connection not yet opened
}

// dsn makes the driver's name for a file. busy_timeout is for a foreign process
// that looks into the file; our own writer is alone.
func dsn(path string, readOnly bool) string {
	v := url.Values{
		"_busy_timeout": {"10000"},
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"},
		"_foreign_keys": {"1"},
		"_dqs":          {"0"},
		"_defensive":    {"1"},
		// 4096 pages between checkpoints: each stalls the writer for two fsyncs
		// and copies every page once, however often it was written.
		"_pragma": {"cache_size(-16384)", "wal_autocheckpoint(4096)", "trusted_schema(0)", "temp_store(2)"},
	}
	if readOnly {
		v.Set("_query_only", "1")
	}
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + v.Encode()
}

func openLite(ctx context.Context, path string, h *hub, o Options) (_ *lite, err error) {
	if path == "" || strings.HasPrefix(path, ":memory:") {
		return nil, problem.New(problem.DBURL, "the database URL names no file").WithHint("write sqlite:PATH")
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("resolving the database's path: %w", err)
	}
	if err := touch(path); err != nil {
		return nil, problem.New(problem.DBOpen, "the database file %s cannot be opened", path).Seen("%v", err).
			WithHint("check that the folder exists and belongs to this user").Because(err)
	}
	if err := migrateLite(ctx, path, o.Logger); err != nil {
		return nil, err
	}
	l := &lite{readers: make(chan *session, o.Readers)}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if l.rw, err = sql.Open("sqlite", dsn(path, false)); err != nil {
		return nil, fmt.Errorf("opening the writer: %w", err)
	}
	l.rw.SetMaxOpenConns(1)
	if l.ro, err = sql.Open("sqlite", dsn(path, true)); err != nil {
		return nil, fmt.Errorf("opening the readers: %w", err)
	}
	for range o.Readers {
		l.readers <- nil
	}
	s, err := newSession(ctx, l.rw)
	if err != nil {
		return nil, fmt.Errorf("opening the writer: %w", err)
	}
	if err := mustBeDurable(ctx, s.conn, path); err != nil {
		return nil, errors.Join(err, s.close())
	}
	l.writer = &writer{sess: s, hub: h, queue: make(chan *request, queueMax), done: make(chan struct{})}
	go l.writer.run()
	return l, nil
}

// touch makes the file with no rights for others, because SQLite's own would be
// readable by all. The WAL inherits the mode.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// mustBeDurable asks what came of the settings: a file system without shared
// memory answers another journal mode and no error.
func mustBeDurable(ctx context.Context, c *sql.Conn, path string) error {
	var journal string
	var sync int
	if err := c.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&journal); err != nil {
		return fmt.Errorf("reading the journal mode: %w", err)
	}
	if err := c.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&sync); err != nil {
		return fmt.Errorf("reading the synchronous setting: %w", err)
	}
	if journal != "wal" || sync != 2 {
		return problem.New(problem.DBNotDurable, "the file system of %s cannot keep the database safe", path).
			Seen("journal_mode=%s synchronous=%d where wal and 2 (FULL) are needed", journal, sync).
			WithHint("put the database on a local file system")
	}
	return nil
}

func (l *lite) close() error {
	var errs []error
	if l.writer != nil {
		close(l.writer.queue)
		<-l.writer.done
		errs = append(errs, l.writer.sess.close())
	}
	if l.ro != nil {
		// Each View gives its reader back, so that all come by.
		for range cap(l.readers) {
			if s := <-l.readers; s != nil {
				errs = append(errs, s.close())
			}
		}
		errs = append(errs, l.ro.Close())
	}
	if l.rw != nil {
		errs = append(errs, l.rw.Close())
	}
	return errors.Join(errs...)
}

func (l *lite) view(ctx context.Context, fn func(*Tx) error) (err error) {
	var s *session
	select {
	case s = <-l.readers:
	case <-ctx.Done():
		return ctx.Err()
	}
	healthy := false
	defer func() {
		if !healthy && s != nil {
			s.close() //nolint:errcheck // a connection in an unknown state is thrown away
			s = nil
		}
		l.readers <- s
	}()
	if s == nil {
		if s, err = newSession(ctx, l.ro); err != nil {
			return fmt.Errorf("opening a reader: %w", err)
		}
	}
	s.trim()
	bg := context.WithoutCancel(ctx)
	if _, err := s.exec(bg, "BEGIN", nil); err != nil {
		return fmt.Errorf("beginning a snapshot: %w", err)
	}
	tx := &Tx{ctx: ctx, engine: SQLite, q: cancellable{s}}
	defer func() {
		tx.end()
		if _, e := s.exec(bg, "ROLLBACK", nil); e == nil {
			healthy = true
		}
	}()
	return fn(tx)
}

// cancellable looks at the context before each statement. A statement itself is
// not interrupted: the driver would need a goroutine for each.
type cancellable struct{ *session }

func (c cancellable) exec(ctx context.Context, q string, args []any) (sql.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return c.session.exec(ctx, q, args)
}

func (c cancellable) query(ctx context.Context, q string, args []any) (*sql.Rows, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return c.session.query(ctx, q, args)
}

// session is a connection with its prepared statements.
type session struct {
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
}

func newSession(ctx context.Context, pool *sql.DB) (*session, error) {
	c, err := pool.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &session{conn: c, stmts: make(map[string]*sql.Stmt)}, nil
}

func (s *session) close() error {
	s.drop()
	return s.conn.Close()
}

func (s *session) drop() {
	for _, st := range s.stmts {
		st.Close() //nolint:errcheck // finalizing repeats the error of the last run
	}
	clear(s.stmts)
}

// trim is called between transactions, when no statement is running.
func (s *session) trim() {
	if len(s.stmts) > stmtMax {
		s.drop()
	}
}

func (s *session) stmt(q string) (*sql.Stmt, error) {
	if st, ok := s.stmts[q]; ok {
		return st, nil
	}
	st, err := s.conn.PrepareContext(context.Background(), numbered(q))
	if err != nil {
		return nil, err
	}
	s.stmts[q] = st
	return st, nil
}

func (s *session) exec(_ context.Context, q string, args []any) (sql.Result, error) {
	st, err := s.stmt(q)
	if err != nil {
		return nil, err
	}
	return st.ExecContext(context.Background(), args...)
}

func (s *session) query(_ context.Context, q string, args []any) (*sql.Rows, error) {
	st, err := s.stmt(q)
	if err != nil {
		return nil, err
	}
	return st.QueryContext(context.Background(), args...)
}

func (s *session) queryRow(_ context.Context, q string, args []any) *sql.Row {
	st, err := s.stmt(q)
	if err != nil {
		// Only database/sql can make a Row: it meets the same error and keeps it.
		return s.conn.QueryRowContext(context.Background(), numbered(q), args...)
	}
	return st.QueryRowContext(context.Background(), args...)
}

// numbered turns $1 into ?1. SQLite takes $1 for a name and numbers names by
// their first appearance, so that "SET a = $2 WHERE id = $1" would swap them.
// Quoted text and comments are left alone.
func numbered(q string) string {
	if !strings.Contains(q, "$") {
		return q
	}
	b := make([]byte, 0, len(q))
	for i := 0; i < len(q); {
		end := i + 1
		switch c := q[i]; {
		case c == '\'' || c == '"':
			// A doubled quote ends one text and begins the next.
			end = after(q, i+1, string(c))
		case strings.HasPrefix(q[i:], "--"):
			end = after(q, i+2, "\n")
		case strings.HasPrefix(q[i:], "/*"):
			end = after(q, i+2, "*/")
		case c == '$' && i+1 < len(q) && '0' <= q[i+1] && q[i+1] <= '9':
			b = append(b, '?')
			i = end
			continue
		}
		b = append(b, q[i:end]...)
		i = end
	}
	return string(b)
}

// after is the index behind the next mark, or the end.
func after(q string, from int, mark string) int {
	if n := strings.Index(q[from:], mark); n >= 0 {
		return from + n + len(mark)
	}
	return len(q)
}

// A request's state: whoever moves it from waiting decides whether fn runs.
const (
	waiting int32 = iota
	started
	abandoned
)

type request struct {
	ctx   context.Context
	fn    func(*Tx) error
	state atomic.Int32
	done  chan struct{} // closed when the fields below are final

	tx       *Tx
	err      error
	panicked *fnPanic
	exited   bool // fn called runtime.Goexit
}

func (d *DB) updateLite(ctx context.Context, fn func(*Tx) error) error {
	r := &request{ctx: ctx, fn: fn, done: make(chan struct{})}
	d.mu.RLock()
	if d.closed {
		d.mu.RUnlock()
		return ErrClosed
	}
	select {
	case d.lite.writer.queue <- r:
		d.mu.RUnlock()
	case <-ctx.Done():
		d.mu.RUnlock()
		return ctx.Err()
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		if r.state.CompareAndSwap(waiting, abandoned) {
			return ctx.Err()
		}
		<-r.done
	}
	switch {
	case r.panicked != nil:
		panic(r.panicked)
	case r.exited:
		runtime.Goexit()
	}
	return r.err
}

// writer is the goroutine that owns SQLite's writing connection.
type writer struct {
	sess  *session
	hub   *hub
	queue chan *request
	done  chan struct{}

	// mu guards hooks; the slice is copied on write.
	mu    sync.Mutex
	hooks []func(*Tx) error

	// The rest is owned by run.
	group  []*request // have run, wait for the commit
	begun  bool
	broken error // this group cannot commit any more
	failed error // nothing can commit any more
	exited bool  // the last function ended this goroutine
}

func (w *writer) run() {
	defer func() {
		if w.exited {
			// A function ended its goroutine, as t.FailNow does. The group goes
			// on in another, and the caller ends itself.
			w.exited = false
			go w.run()
			return
		}
		close(w.done)
	}()
	for {
		r, open := w.next()
		switch {
		case r != nil:
			w.call(r)
		case w.begun:
			w.commit()
		case !open:
			return
		}
	}
}

// next gives the next function: it waits for one when there is no group, and
// not at all when there is.
func (w *writer) next() (r *request, open bool) {
	if !w.begun {
		r, open = <-w.queue
		return r, open
	}
	if len(w.group) >= groupMax || w.broken != nil {
		return nil, true
	}
	select {
	case r, open = <-w.queue:
		return r, open
	default:
		return nil, true
	}
}

// call runs one function in its savepoint and adds it to the group.
func (w *writer) call(r *request) {
	if !r.state.CompareAndSwap(waiting, started) {
		return
	}
	if r.err = r.ctx.Err(); r.err == nil {
		r.err = w.failed
	}
	if r.err == nil && !w.begun {
		w.sess.trim()
		if r.err = w.do("BEGIN IMMEDIATE"); r.err == nil {
			w.begun = true
		} else {
			r.err = fmt.Errorf("beginning a transaction: %w", r.err)
		}
	}
	if r.err != nil {
		close(r.done)
		return
	}
	w.group = append(w.group, r)
	if err := w.do("SAVEPOINT f"); err != nil {
		w.broken = fmt.Errorf("beginning a savepoint: %w", err)
		return
	}
	r.tx = &Tx{ctx: r.ctx, engine: SQLite, q: w.sess}
	returned := false
	defer func() {
		if !returned {
			if v := recover(); v != nil {
				r.panicked = &fnPanic{value: v, stack: debug.Stack()}
				r.err = r.panicked
			} else {
				r.exited, w.exited = true, true
				r.err = errors.New("the function ended its goroutine")
			}
		}
		w.leave(r)
	}()
	r.err = r.fn(r.tx)
	returned = true
}

// leave ends a function's savepoint. Where that fails, SQLite has rolled back
// the whole transaction by itself (a full disk, an I/O error) and there is no
// savepoint any more: the group is lost, however it may look to the functions.
func (w *writer) leave(r *request) {
	r.tx.end()
	if r.err != nil {
		if err := w.do("ROLLBACK TO f"); err != nil {
			w.broken = fmt.Errorf("rolling back a savepoint after %q: %w", r.err, err)
			return
		}
	}
	if err := w.do("RELEASE f"); err != nil {
		w.broken = fmt.Errorf("releasing a savepoint: %w", err)
	}
}

// commit ends the group and answers its callers.
func (w *writer) commit() {
	hooks, err := w.finish()
	if err != nil {
		// The transaction may have ended by itself, which is an error here.
		if e := w.do("ROLLBACK"); e != nil && isIOError(e) {
			w.failed = err
		}
	}
	group := w.group
	w.group, w.begun, w.broken = w.group[len(w.group):], false, nil
	if cap(w.group) < groupMax {
		w.group = make([]*request, 0, 4*groupMax)
	}
	if err == nil {
		for _, r := range group {
			if r.err == nil {
				r.tx.committed(w.hub)
			}
		}
		for _, tx := range hooks {
			tx.committed(w.hub)
		}
	}
	for _, r := range group {
		if err != nil && r.panicked == nil && !r.exited {
			r.err = err
		}
		close(r.done)
	}
}

// finish makes the group durable, or says why it is not.
func (w *writer) finish() (hooks []*Tx, err error) {
	if w.broken != nil {
		return nil, w.broken
	}
	some := false
	for _, r := range w.group {
		some = some || r.err == nil
	}
	if !some {
		return nil, w.do("ROLLBACK")
	}
	w.mu.Lock()
	fns := w.hooks
	w.mu.Unlock()
	for _, fn := range fns {
		tx := &Tx{ctx: context.Background(), engine: SQLite, q: w.sess}
		err := fn(tx)
		tx.end()
		if err != nil {
			return nil, fmt.Errorf("before the commit: %w", err)
		}
		hooks = append(hooks, tx)
	}
	if err := w.do("COMMIT"); err != nil {
		if isIOError(err) {
			// The pages may have reached the disk or not, and a second fsync
			// that succeeds proves nothing. Only a restart reads what is there.
			w.failed = problem.New(problem.DBFailed, "the disk failed under a commit; nothing more is written").
				Seen("%v", err).WithHint("look at the disk, then restart the server").
				Because(errors.Join(ErrOutcomeUnknown, err))
			return nil, w.failed
		}
		return nil, fmt.Errorf("committing: %w", err)
	}
	return hooks, nil
}

func (w *writer) do(q string) error {
	_, err := w.sess.exec(context.Background(), q, nil)
	return err
}

func isIOError(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_IOERR
}
