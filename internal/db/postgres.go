package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/firmseal/firmseal/internal/problem"
)

const (
	// retries bounds how often a transaction that lost against another is run.
	// With the pause doubling from retryPause, the last one comes after about a
	// second, by which time a deadlock is somebody's bug.
	retries    = 10
	retryPause = 2 * time.Millisecond
)

type pg struct {
	pool *sql.DB
	hub  *hub
}

func openPostgres(ctx context.Context, url string, h *hub, o Options) (*pg, error) {
	conf, err := pgx.ParseConfig(url)
	if err != nil {
		// pgx's error masks the password.
		return nil, problem.New(problem.DBURL, "the PostgreSQL URL cannot be read").Seen("%v", err).
			WithHint("write postgres://USER@HOST/NAME").Because(err)
	}
	if conf.RuntimeParams["application_name"] == "" {
		conf.RuntimeParams["application_name"] = "firmseal"
	}
	p := &pg{pool: stdlib.OpenDB(*conf), hub: h}
	p.pool.SetMaxOpenConns(o.Conns)
	p.pool.SetMaxIdleConns(o.Conns)
	p.pool.SetConnMaxIdleTime(5 * time.Minute)
	if err := p.prepare(ctx, o); err != nil {
		return nil, errors.Join(err, p.pool.Close())
	}
	return p, nil
}

func (p *pg) prepare(ctx context.Context, o Options) error {
	if err := p.pool.PingContext(ctx); err != nil {
		return problem.New(problem.DBOpen, "PostgreSQL does not answer").Seen("%v", err).
			WithHint("check the server and the URL: psql URL").Because(err)
	}
	var commit, fsync, pages string
	if err := p.pool.QueryRowContext(ctx, `SELECT current_setting('synchronous_commit'), current_setting('fsync'), current_setting('full_page_writes')`).
		Scan(&commit, &fsync, &pages); err != nil {
		return fmt.Errorf("reading PostgreSQL's settings: %w", err)
	}
	if commit == "off" {
		return problem.New(problem.DBNotDurable, "this PostgreSQL answers before a commit is safe").
			Seen("synchronous_commit=off").WithHint("ALTER ROLE … SET synchronous_commit = on")
	}
	if fsync != "on" || pages != "on" {
		o.Logger.WarnContext(ctx, "PostgreSQL can lose commits in a power cut", "fsync", fsync, "full_page_writes", pages)
	}
	return migratePostgres(ctx, p.pool, o.Logger)
}

func (p *pg) close() error { return p.pool.Close() }

func (p *pg) update(ctx context.Context, fn func(*Tx) error) error {
	for n := 0; ; n++ {
		err := p.once(ctx, nil, fn)
		if err == nil || n == retries || !lostRace(err) {
			return err
		}
		pause := retryPause << n
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

func (p *pg) view(ctx context.Context, fn func(*Tx) error) error {
	return p.once(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}, fn)
}

// once runs fn in a transaction. The transaction itself does not hang on ctx,
// so that a commit on its way is not cut and left unknown; the statements do.
func (p *pg) once(ctx context.Context, o *sql.TxOptions, fn func(*Tx) error) error {
	c, err := p.pool.Conn(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return problem.New(problem.Unavailable, "the database does not answer").WithHint("retry later").Because(err)
	}
	defer c.Close() //nolint:errcheck // gives the connection back to the pool
	stx, err := c.BeginTx(context.WithoutCancel(ctx), o)
	if err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	tx := &Tx{ctx: ctx, engine: Postgres, q: pgTx{stx}}
	done := false
	defer func() {
		if !done { // fn panicked or ended its goroutine
			tx.end()
			stx.Rollback() //nolint:errcheck // a connection that cannot roll back is closed by the driver
		}
	}()
	err = fn(tx)
	done = true
	tx.end()
	if err != nil || o != nil { // a view has nothing to commit
		stx.Rollback() //nolint:errcheck // as above
		return err
	}
	if err := stx.Commit(); err != nil {
		var e *pgconn.PgError
		if errors.As(err, &e) || errors.Is(err, pgx.ErrTxCommitRollback) {
			return fmt.Errorf("committing: %w", err) // the server said no
		}
		return problem.New(problem.Unavailable, "the database went away during a commit").
			Seen("it may hold the change or not").WithHint("look before doing it again").
			Because(errors.Join(ErrOutcomeUnknown, err))
	}
	tx.committed(p.hub)
	return nil
}

// lostRace says whether the transaction failed only because of another one.
func lostRace(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && (e.Code == "40001" || e.Code == "40P01")
}

type pgTx struct{ tx *sql.Tx }

func (p pgTx) exec(ctx context.Context, q string, args []any) (sql.Result, error) {
	return p.tx.ExecContext(ctx, q, args...)
}

func (p pgTx) query(ctx context.Context, q string, args []any) (*sql.Rows, error) {
	return p.tx.QueryContext(ctx, q, args...)
}

func (p pgTx) queryRow(ctx context.Context, q string, args []any) *sql.Row {
	return p.tx.QueryRowContext(ctx, q, args...)
}
