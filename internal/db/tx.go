package db

import (
	"context"
	"database/sql"
	"fmt"
)

// Tx is a transaction inside Update or View. It belongs to the goroutine that
// runs the function and ends with it.
//
// Rows must be read to their end or closed, and a Row scanned, before the next
// statement: PostgreSQL has one conversation a connection. A statement while
// rows are open is a bug and panics, on both engines.
//
// A function returns the error of a statement that failed: PostgreSQL has given
// up the transaction by then. What may meet a doubled key says ON CONFLICT.
type Tx struct {
	ctx    context.Context
	engine Engine
	q      querier // nil when the function has returned
	rows   *sql.Rows
	after  []func()

	signals []string
}

// querier runs statements: SQLite's session, or a transaction on PostgreSQL.
type querier interface {
	exec(ctx context.Context, q string, args []any) (sql.Result, error)
	query(ctx context.Context, q string, args []any) (*sql.Rows, error)
	queryRow(ctx context.Context, q string, args []any) *sql.Row
}

// Context is the caller's context, for what the function needs besides SQL.
func (t *Tx) Context() context.Context { return context.WithValue(t.ctx, insideKey{}, true) }

// Engine says which database this is.
func (t *Tx) Engine() Engine { return t.engine }

// Exec runs a statement. Use RETURNING for ids: PostgreSQL's result has no last
// insert id.
func (t *Tx) Exec(q string, args ...any) (sql.Result, error) {
	return t.ready().exec(t.ctx, q, args)
}

// Query runs a statement that returns rows. They are closed when the function
// ends, if it did not do so.
func (t *Tx) Query(q string, args ...any) (*sql.Rows, error) {
	rows, err := t.ready().query(t.ctx, q, args)
	t.rows = rows
	return rows, err
}

// QueryRow runs a statement that returns at most one row; no row is ErrNotFound
// from its Scan.
func (t *Tx) QueryRow(q string, args ...any) *sql.Row {
	return t.ready().queryRow(t.ctx, q, args)
}

// AfterCommit registers fn to run when the transaction is durable, and never if
// it rolled back, in the order of registration and before Update returns. On
// SQLite that is in the order of the transactions too. fn must be quick, as
// the writer waits for it; it must not call Update.
func (t *Tx) AfterCommit(fn func()) { t.after = append(t.after, fn) }

// ForUpdate is the clause that locks the rows of a SELECT until the end of the
// transaction. On SQLite, whose writer is alone, it is empty.
func (t *Tx) ForUpdate() string {
	if t.engine == Postgres {
		return " FOR UPDATE"
	}
	return ""
}

// ForShare is the clause that keeps the rows of a SELECT as they are until the
// end of the transaction, and lets others read them in the same way. On SQLite,
// whose writer is alone, it is empty.
func (t *Tx) ForShare() string {
	if t.engine == Postgres {
		return " FOR SHARE"
	}
	return ""
}

// ForUpdateSkipLocked is ForUpdate that passes over rows which another
// transaction has locked.
func (t *Tx) ForUpdateSkipLocked() string {
	if t.engine == Postgres {
		return " FOR UPDATE SKIP LOCKED"
	}
	return ""
}

// ready gives the connection, or panics where the program has a fault.
func (t *Tx) ready() querier {
	if t.q == nil {
		panic("db: Tx used after its function has returned")
	}
	if t.rows != nil {
		if _, err := t.rows.Columns(); err == nil {
			panic("db: a statement while the rows of another are open")
		}
		t.rows = nil
	}
	return t.q
}

// end takes the connection away.
func (t *Tx) end() {
	t.q = nil
	if t.rows != nil {
		t.rows.Close() //nolint:errcheck // the rows' error was the function's to read
		t.rows = nil
	}
}

type insideKey struct{}

func mustNotNest(ctx context.Context) {
	if ctx.Value(insideKey{}) != nil {
		panic("db: Update called inside a transaction")
	}
}

// fnPanic carries a panic from SQLite's writer to the caller whose function it
// was.
type fnPanic struct {
	value any
	stack []byte
}

func (p *fnPanic) Error() string {
	return fmt.Sprintf("%v\n\n[the function given to Update panicked]\n%s", p.value, p.stack)
}

func (p *fnPanic) Unwrap() error {
	err, _ := p.value.(error)
	return err
}
