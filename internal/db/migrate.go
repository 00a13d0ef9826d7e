package db

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/firmseal/firmseal/internal/problem"
)

// Every package has its files here, NNNN_name.sql, one for each engine under
// the same number.
//
//go:embed migrations
var migrations embed.FS

// migrationLock is the advisory lock that replicas take one after another when
// they start: "firmseal" in ASCII.
const migrationLock = 0x6669726d7365616c

func migrateLite(ctx context.Context, path string, log *slog.Logger) error {
	pool, err := sql.Open("sqlite", dsn(path, false))
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, err)
	}
	defer pool.Close() //nolint:errcheck // nothing is pending on it
	// Two processes may meet in a new file: SQLite has no lock that outlives a
	// transaction, so the one that comes second fails in a migration, which is a
	// transaction, and finds on its next look that it is done.
	for n := 0; ; n++ {
		err := migrate(ctx, goose.DialectSQLite3, "migrations/sqlite", pool, log)
		var p *problem.Error
		if foreign(err) {
			return problem.New(problem.DBOpen, "the file %s is no database, or is damaged", path).Seen("%v", err).
				WithHint("check the path, or restore the file from a backup").Because(err)
		}
		if err == nil || n == 20 || errors.As(err, &p) || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// foreign says that SQLite does not take the file for a database.
func foreign(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	code := e.Code() & 0xff
	return code == sqlite3.SQLITE_NOTADB || code == sqlite3.SQLITE_CORRUPT
}

func migratePostgres(ctx context.Context, pool *sql.DB, log *slog.Logger) (err error) {
	c, err := pool.Conn(ctx)
	if err != nil {
		return fmt.Errorf("connecting for the migrations: %w", err)
	}
	defer c.Close() //nolint:errcheck // gives the connection back to the pool
	if _, err := c.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(migrationLock)); err != nil {
		return fmt.Errorf("waiting for the migration lock: %w", err)
	}
	defer func() {
		_, e := c.ExecContext(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", int64(migrationLock))
		err = errors.Join(err, e)
	}()
	return migrate(ctx, goose.DialectPostgres, "migrations/postgres", pool, log)
}

func migrate(ctx context.Context, dialect goose.Dialect, dir string, pool *sql.DB, log *slog.Logger) error {
	files, err := fs.Sub(migrations, dir)
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(dialect, pool, files, goose.WithDisableGlobalRegistry(true), goose.WithSlog(slog.New(slog.DiscardHandler)))
	if err != nil {
		return fmt.Errorf("reading the migrations: %w", err)
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("reading the schema's version: %w", err)
	}
	if have > want {
		return problem.New(problem.DBNewer, "the database was written by a newer Firmseal").
			Seen("its schema is %d, this program knows %d", have, want).
			WithHint("run the newer program; a schema does not go back")
	}
	done, err := p.Up(ctx)
	if err != nil {
		return fmt.Errorf("migrating the database from %d to %d: %w", have, want, err)
	}
	if len(done) > 0 {
		log.DebugContext(ctx, "database migrated", "from", have, "to", want)
	}
	return nil
}
