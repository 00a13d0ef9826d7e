package tlog

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
)

func altered(format string, a ...any) *problem.Error {
	return problem.New(problem.LogAltered, format, a...).
		WithHint("find out who wrote to the database: firmseal log verify")
}

// begin reads the tree from the database, compares it with the second place,
// and takes what others left pending. An empty database gets a genesis leaf.
func (l *Log) begin(ctx context.Context) error {
	// The second place is read before the database, which may grow meanwhile by
	// another process: so it is never behind by that alone.
	text, err := l.second.Load(ctx)
	damaged := errors.Is(err, ErrDamaged)
	if err != nil && !damaged {
		return placeTrouble(err)
	}
	var t tree
	var fresh bool
	if err := l.db.View(ctx, func(tx *db.Tx) (err error) {
		t, fresh, err = load(tx)
		return err
	}); err != nil {
		return err
	}
	l.committed.Store(&t) // for those who read a log that refuses
	if damaged {
		return placeTrouble(err)
	}
	if fresh && text == nil {
		text = headText(l.origin, 0, emptyRoot)
		if err := l.second.Swap(ctx, nil, text); err != nil {
			return placeTrouble(err)
		}
		l.step("claimed") // a crash here leaves a second place of the empty tree
	}
	if err := l.compare(ctx, t, text); err != nil {
		return err
	}
	l.place = text
	if fresh {
		if err := l.genesis(ctx); err != nil {
			return err
		}
	}
	if l.db.Engine() == db.Postgres {
		if err := l.pass(ctx); err != nil {
			return err
		}
	}
	return l.checkGenesis(ctx)
}

// load reads size and edge of the tree. fresh is true where no log was begun.
func load(tx *db.Tx) (t tree, fresh bool, err error) {
	var rootBytes []byte
	err = tx.QueryRow(`SELECT size, root FROM log_head WHERE one = 1`).Scan(&t.size, &rootBytes)
	fresh = errors.Is(err, db.ErrNotFound)
	if err != nil && !fresh {
		return t, false, err
	}
	var last int64
	if err := tx.QueryRow(`SELECT COALESCE(MAX(idx), -1) FROM log_leaf`).Scan(&last); err != nil {
		return t, false, err
	}
	if last != t.size-1 {
		return t, false, altered("the log's head and leaves do not agree").
			Seen("the head says %d leaves, the last leaf has index %d", t.size, last)
	}
	if fresh {
		return t, true, nil
	}
	if err := loadEdge(tx, &t); err != nil {
		return t, false, err
	}
	if root := t.root(); string(root[:]) != string(rootBytes) {
		return t, false, altered("the log's leaves and tiles do not make its root").
			Seen("at size %d they make %s, the head says %x", t.size, root, rootBytes)
	}
	return t, false, nil
}

// loadEdge rebuilds the partial tile of each level: from leaves at the bottom,
// above from the roots of full tiles.
func loadEdge(tx *db.Tx, t *tree) error {
	for level := 0; level == 0 || t.size>>(level*tileHeight) > 0; level++ {
		end := t.size >> (level * tileHeight)
		first := end &^ (tileWidth - 1)
		q := `SELECT idx, data FROM log_leaf WHERE idx >= $1 AND idx < $2 ORDER BY idx`
		args := []any{first, end}
		if level > 0 {
			q = `SELECT n, data FROM log_tile WHERE n >= $1 AND n < $2 AND level = $3 ORDER BY n`
			args = append(args, level-1)
		}
		rows, err := tx.Query(q, args...)
		if err != nil {
			return err
		}
		hashes := make([]tlog.Hash, 0, end-first)
		for rows.Next() {
			var n int64
			var data []byte
			if err := rows.Scan(&n, &data); err != nil {
				return err
			}
			switch {
			case n != first+int64(len(hashes)):
				return missing(level, first+int64(len(hashes)))
			case level == 0:
				hashes = append(hashes, tlog.RecordHash(data))
			case len(data) != tileWidth*hashSize:
				return altered("tile %d/%d was changed", level-1, n).Seen("it has %d bytes", len(data))
			default:
				hashes = append(hashes, expand(data).root())
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		if len(hashes) != int(end-first) {
			return missing(level, first+int64(len(hashes)))
		}
		t.setEdge(level, hashes)
	}
	return nil
}

func missing(level int, n int64) error {
	if level == 0 {
		return altered("leaf %d is missing", n)
	}
	return altered("tile %d/%d is missing", level-1, n)
}

// genesis begins the log. Of several processes that try, one inserts the head
// and with it the leaf.
func (l *Log) genesis(ctx context.Context) error {
	return l.db.Update(ctx, func(tx *db.Tx) error {
		r, err := tx.Exec(`INSERT INTO log_head (one, size, root) VALUES (1, 0, $1) ON CONFLICT DO NOTHING`, emptyRoot[:])
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			return err
		}
		g, err := newRow(&firmseal.Leaf{
			V: 1, Type: firmseal.LeafGenesis, Time: db.Now(), Actor: "system", Key: l.keyID, Subject: l.origin,
		})
		if err != nil {
			return err
		}
		if tx.Engine() == db.Postgres {
			return l.appendPostgres(tx, g)
		}
		// The one leaf that is given its index: SQLite's own would begin at 1.
		if _, err := tx.Exec(`INSERT INTO log_leaf (idx, id, type, request, key, data) VALUES (0, $1, $2, $3, $4, $5)`,
			g.id, g.typ, g.request, g.key, g.data); err != nil {
			return err
		}
		l.fresh = append(l.fresh[:0], g)
		return nil
	})
}

// checkGenesis compares leaf 0 with what this log was opened as. A workspace
// that is opened with another log key would publish checkpoints that no
// device takes.
func (l *Log) checkGenesis(ctx context.Context) error {
	e, err := l.Leaf(ctx, 0)
	if err != nil {
		return err
	}
	if e.Leaf.Type != firmseal.LeafGenesis || e.Leaf.Subject != l.origin || e.Leaf.Key != l.keyID {
		return problem.New(problem.LogForked, "the database holds another log than %s", l.origin).
			Seen("leaf 0 is %q of %q with key %.16s…, the key here is %.16s…", e.Leaf.Type, e.Leaf.Subject, e.Leaf.Key, l.keyID).
			WithHint("open it with the configuration that it was made with")
	}
	return nil
}

// appendSQLite inserts the leaf with the next index and remembers its hash. A
// transaction before it in the group that was rolled back to its savepoint has
// freed its indices: they are given again, and what was remembered from there
// on is dropped.
func (l *Log) appendSQLite(tx *db.Tx, r *row) error {
	res, err := tx.Exec(`INSERT INTO log_leaf (id, type, request, key, data) VALUES ($1, $2, $3, $4, $5)`,
		r.id, r.typ, r.request, r.key, r.data)
	if err != nil {
		return err
	}
	idx, err := res.LastInsertId()
	if err != nil {
		return err
	}
	i := idx - l.committed.Load().size
	if i < 0 || i > int64(len(l.fresh)) {
		return altered("the log's leaves were changed while it was open").
			Seen("the next leaf got index %d where %d was expected", idx, l.committed.Load().size+int64(len(l.fresh)))
	}
	l.fresh = append(l.fresh[:i], r)
	return nil
}

// sequence runs at the end of each commit group on SQLite, in its transaction.
// The tree in memory follows after the commit; if that fails, nothing was
// changed but l.fresh, which is then cleared by its next use.
func (l *Log) sequence(tx *db.Tx) error {
	if len(l.fresh) == 0 {
		return nil
	}
	fresh := l.fresh
	l.fresh = l.fresh[:0]
	old := l.committed.Load()
	var last int64
	if err := tx.QueryRow(`SELECT COALESCE(MAX(idx), -1) FROM log_leaf`).Scan(&last); err != nil {
		return err
	}
	n := last + 1 - old.size
	if n == 0 {
		return nil // all that appended were rolled back
	}
	if n < 0 || n > int64(len(fresh)) {
		return altered("the log's leaves were changed while it was open").
			Seen("the last leaf has index %d, from %d to %d was expected", last, old.size, old.size+int64(len(fresh))-1)
	}
	next := old.clone()
	var tiles []fullTile
	for _, f := range fresh[:n] {
		tiles = next.grow(f.hash, tiles)
	}
	if err := store(tx, old, &next, tiles); err != nil {
		return err
	}
	tx.AfterCommit(func() {
		l.recent.mu.Lock()
		for i, r := range fresh[:n] {
			r.idx = old.size + int64(i)
			l.recent.add(r)
		}
		l.recent.mu.Unlock()
		l.committed.Store(&next)
		l.wakeRun()
	})
	return nil
}

// store writes full tiles and the head. The head is replaced only where it is
// the one that next was grown from.
func store(tx *db.Tx, old, next *tree, tiles []fullTile) error {
	for _, f := range tiles {
		if _, err := tx.Exec(`INSERT INTO log_tile (level, n, data) VALUES ($1, $2, $3)`, f.level, f.n, f.bytes()); err != nil {
			return err
		}
	}
	is, was := next.root(), old.root()
	r, err := tx.Exec(`UPDATE log_head SET size = $1, root = $2 WHERE one = 1 AND size = $3 AND root = $4`,
		next.size, is[:], old.size, was[:])
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err != nil {
		return err
	} else if n != 1 {
		return altered("the log's head was changed while it was open").Seen("it is not the tree of size %d", old.size)
	}
	return nil
}

func (l *Log) appendPostgres(tx *db.Tx, r *row) error {
	_, err := tx.Exec(`INSERT INTO log_pending (id, type, request, key, data) VALUES ($1, $2, $3, $4, $5)`,
		r.id, r.typ, r.request, r.key, r.data)
	tx.AfterCommit(l.wakeRun)
	return err
}

const (
	// passMax bounds the leaves of one pass, and so its memory: 4 MiB.
	passMax = 1024
	// lockKey is "firmseal" in ASCII. Advisory locks belong to one database.
	lockKey int64 = 0x6669726d7365616c
)

// pass takes all that is pending on PostgreSQL into the tree. It is called by
// run, and by Open and Adopt before run.
func (l *Log) pass(ctx context.Context) error {
	for {
		n, err := l.passOnce(ctx)
		if err != nil || n < passMax {
			return err
		}
	}
}

func (l *Log) passOnce(ctx context.Context) (int, error) {
	old := l.committed.Load()
	var next tree
	var rows []row // others' and ours, from index old.size on
	var taken int
	err := l.db.Update(ctx, func(tx *db.Tx) error {
		// The function may run again; it begins anew then.
		next, rows, taken = old.clone(), rows[:0], 0
		if _, err := tx.Exec(`SELECT pg_advisory_xact_lock($1)`, lockKey); err != nil {
			return err
		}
		var err error
		if rows, err = follow(tx, &next, rows); err != nil {
			return err
		}
		rows, taken, err = take(tx, &next, rows)
		return err
	})
	if err != nil {
		// If the commit happened although it failed, the next pass follows it.
		return 0, err
	}
	if next.size > old.size {
		l.recent.mu.Lock()
		for i := range rows {
			l.recent.add(&rows[i])
		}
		l.recent.mu.Unlock()
		l.committed.Store(&next)
	}
	return taken, nil
}

// follow grows the tree by what other processes have sequenced.
func follow(tx *db.Tx, t *tree, list []row) ([]row, error) {
	var size int64
	var rootBytes []byte
	if err := tx.QueryRow(`SELECT size, root FROM log_head WHERE one = 1 FOR UPDATE`).Scan(&size, &rootBytes); err != nil {
		if errors.Is(err, db.ErrNotFound) {
			return nil, altered("the log's head is missing")
		}
		return nil, err
	}
	if size < t.size {
		return nil, problem.New(problem.LogBehind, "the database went back to an older log").
			Seen("it had %d leaves and has %d", t.size, size).WithHint("bring back the newest database")
	}
	for t.size < size {
		from := t.size
		rows, err := tx.Query(`SELECT idx, id, data FROM log_leaf WHERE idx >= $1 AND idx < $2 ORDER BY idx LIMIT $3`, from, size, passMax)
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			var r row
			if err := rows.Scan(&r.idx, &r.id, &r.data); err != nil {
				return nil, err
			}
			if r.idx != t.size {
				break
			}
			t.grow(tlog.RecordHash(r.data), nil)
			r.data = nil
			list = append(list, r)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, err
		}
		if t.size == from {
			return nil, missing(0, from)
		}
	}
	if root := t.root(); string(root[:]) != string(rootBytes) {
		return nil, problem.New(problem.LogForked, "the log's head is not the tree of its leaves").
			Seen("at size %d the leaves make root %s, the head says %x", size, root, rootBytes).
			WithHint("find out who wrote to the database: firmseal log verify")
	}
	return list, nil
}

// take moves what is pending behind the tree's last leaf.
func take(tx *db.Tx, t *tree, list []row) ([]row, int, error) {
	rows, err := tx.Query(`
		WITH batch AS (
			DELETE FROM log_pending WHERE seq IN (SELECT seq FROM log_pending ORDER BY seq LIMIT $2)
			RETURNING seq, id, type, request, key, data)
		INSERT INTO log_leaf (idx, id, type, request, key, data)
		SELECT $1 + row_number() OVER (ORDER BY seq) - 1, id, type, request, key, data FROM batch
		RETURNING idx, id, data`, t.size, passMax)
	if err != nil {
		return nil, 0, err
	}
	var batch []row
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.idx, &r.id, &r.data); err != nil {
			return nil, 0, err
		}
		batch = append(batch, r)
	}
	if err := rows.Err(); err != nil {
		return nil, 0, err
	}
	if len(batch) == 0 {
		return list, 0, nil
	}
	slices.SortFunc(batch, func(a, b row) int { return int(a.idx - b.idx) })
	old := t.clone()
	var tiles []fullTile
	for i := range batch {
		if batch[i].idx != t.size {
			return nil, 0, altered("leaf %d is missing", t.size)
		}
		tiles = t.grow(tlog.RecordHash(batch[i].data), tiles)
		batch[i].data = nil
	}
	if err := store(tx, &old, t, tiles); err != nil {
		return nil, 0, err
	}
	return append(list, batch...), len(batch), nil
}
