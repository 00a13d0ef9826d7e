// Package journal is what happened and who did it: one entry for each change,
// written in the change's own transaction, so that there is no change without
// its entry and no entry without its change.
//
// The journal is for reading: the event stream, web hooks, a SIEM. What must be
// provable is a leaf of the log instead.
//
// # Order
//
// Entries have rising numbers, with gaps where a transaction rolled back. A
// number is given before the commit, so that on PostgreSQL an entry may appear
// behind one that has a higher number. A reader who remembers the last number
// that it saw would miss it. Append therefore holds a shared lock until its
// transaction ends, and Read takes the same lock alone for a moment: when it
// has it, every number below the highest is decided.
//
// List is without that care, for people who look at a page.
package journal

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
)

// Event is what a caller says about a change.
type Event struct {
	Kind    string // what happened: "key.create"
	Actor   string // who did it
	Project string
	Subject string // the id or name of what it happened to
	Request string // correlation id: the build, request or rollout that led here
	Data    any    // details as JSON, never a secret; nil for none
}

// Entry is a written Event.
type Entry struct {
	Seq     int64
	Time    int64 // µs
	Kind    string
	Actor   string
	Project string
	Subject string
	Request string
	Data    string // JSON, "" for none
}

const (
	// topic wakes watchers.
	topic = "journal"
	// lock is the PostgreSQL advisory lock between Append and Read: "journal".
	lock = 0x6a6f75726e616c
	// maxData bounds an entry's details: the journal is no place for files.
	maxData = 64 << 10
	// maxPage bounds what is read at once.
	maxPage = 1000
	// poll finds entries that another replica wrote.
	poll = time.Second
)

// Append writes an entry in the caller's transaction and returns its number.
func Append(tx *db.Tx, e Event) (int64, error) {
	if e.Kind == "" || e.Actor == "" {
		panic("journal: an entry without kind or actor")
	}
	var data []byte
	if e.Data != nil {
		var err error
		if data, err = json.Marshal(e.Data); err != nil {
			return 0, fmt.Errorf("encoding the details of %s: %w", e.Kind, err)
		}
		if len(data) > maxData {
			return 0, problem.New(problem.TooLarge, "the details of %s are too large for the journal", e.Kind).
				Seen("%d bytes, the limit is %d", len(data), maxData)
		}
	}
	if tx.Engine() == db.Postgres {
		if _, err := tx.Exec(`SELECT pg_advisory_xact_lock_shared($1)`, int64(lock)); err != nil {
			return 0, fmt.Errorf("locking the journal: %w", err)
		}
	}
	var seq int64
	err := tx.QueryRow(`INSERT INTO journal(time, kind, actor, project, subject, request, data) VALUES ($1,$2,$3,$4,$5,$6,$7) RETURNING seq`,
		db.Now(), e.Kind, e.Actor, e.Project, e.Subject, e.Request, string(data)).Scan(&seq)
	if err != nil {
		return 0, fmt.Errorf("writing journal entry %s of %s: %w", e.Kind, e.Subject, err)
	}
	tx.Signal(topic)
	return seq, nil
}

// Filter selects entries; what is empty selects all.
type Filter struct {
	Project string
	Subject string
	Request string
	Kind    string
	After   int64 // only entries behind this number, oldest first
	Before  int64 // only entries ahead of this number, newest first
	Newest  bool  // newest first, from the end; Before implies it
	Limit   int   // default 50, at most 1000
}

// List reads a page of entries.
func List(tx *db.Tx, f Filter) ([]Entry, error) {
	q := `SELECT seq, time, kind, actor, project, subject, request, data FROM journal WHERE seq > $1`
	args := []any{f.After}
	equal := func(column, value string) {
		if value != "" {
			args = append(args, value)
			q += fmt.Sprintf(` AND %s = $%d`, column, len(args))
		}
	}
	equal("project", f.Project)
	equal("subject", f.Subject)
	equal("request", f.Request)
	equal("kind", f.Kind)
	order := "seq"
	if f.Before > 0 {
		args = append(args, f.Before)
		q += fmt.Sprintf(` AND seq < $%d`, len(args))
	}
	if f.Newest || f.Before > 0 {
		order = "seq DESC"
	}
	limit := f.Limit
	if limit <= 0 {
		limit = 50
	}
	args = append(args, min(limit, maxPage))
	q += fmt.Sprintf(` ORDER BY %s LIMIT $%d`, order, len(args))
	rows, err := tx.Query(q, args...)
	if err != nil {
		return nil, fmt.Errorf("listing the journal: %w", err)
	}
	defer rows.Close()
	var out []Entry
	for rows.Next() {
		var e Entry
		if err := rows.Scan(&e.Seq, &e.Time, &e.Kind, &e.Actor, &e.Project, &e.Subject, &e.Request, &e.Data); err != nil {
			return nil, fmt.Errorf("listing the journal: %w", err)
		}
		out = append(out, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("listing the journal: %w", err)
	}
	return out, nil
}

// Read gives entries behind f.After, oldest first, such that no entry with a
// lower number can appear later. next is where to go on: the last entry's
// number, or further where the filter passed over entries.
func Read(ctx context.Context, d *db.DB, f Filter) (es []Entry, next int64, err error) {
	f.Before, f.Newest = 0, false
	if f.Limit <= 0 || f.Limit > maxPage {
		f.Limit = maxPage
	}
	end, err := decided(ctx, d)
	if err != nil || end <= f.After {
		return nil, f.After, err
	}
	err = d.View(ctx, func(tx *db.Tx) error {
		es, err = List(tx, f)
		return err
	})
	if err != nil {
		return nil, f.After, err
	}
	full := len(es) == f.Limit
	// Those behind end are read next time.
	for len(es) > 0 && es[len(es)-1].Seq > end {
		es, full = es[:len(es)-1], false
	}
	if full {
		return es, es[len(es)-1].Seq, nil
	}
	return es, end, nil
}

// decided is the number up to which every entry has been committed or never
// will be.
func decided(ctx context.Context, d *db.DB) (end int64, err error) {
	const q = `SELECT coalesce(max(seq), 0) FROM journal`
	if d.Engine() == db.SQLite {
		err = d.View(ctx, func(tx *db.Tx) error { return tx.QueryRow(q).Scan(&end) })
		return end, err
	}
	// Not a View: its snapshot would be older than the lock.
	err = d.Update(ctx, func(tx *db.Tx) error {
		if _, err := tx.Exec(`SELECT pg_advisory_xact_lock($1)`, int64(lock)); err != nil {
			return fmt.Errorf("locking the journal: %w", err)
		}
		return tx.QueryRow(q).Scan(&end)
	})
	return end, err
}

// Watch calls fn with the entries behind f.After as they are committed, in
// order and without a gap, until ctx ends or fn fails. Entries of this process
// come at once, those of another replica within a second. f.Limit bounds the
// entries of one call.
func Watch(ctx context.Context, d *db.DB, f Filter, fn func([]Entry) error) error {
	timer := time.NewTimer(poll)
	defer timer.Stop()
	for {
		changed := d.Changed(topic)
		es, next, err := Read(ctx, d, f)
		if err != nil {
			return err
		}
		if len(es) > 0 {
			if err := fn(es); err != nil {
				return err
			}
		}
		if next > f.After {
			f.After = next
			continue
		}
		timer.Reset(poll)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
