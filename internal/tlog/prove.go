package tlog

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
)

// Entry is a leaf in the log.
type Entry struct {
	Index int64
	ID    string
	Data  []byte // canonical; what is hashed; shared, so not to be changed
	Leaf  firmseal.Leaf
}

// Leaf gives a leaf whose row is whole: its bytes are those that its id was
// made of. Whether it is in the tree, a proof says. It works on a log that
// refuses, too.
func (l *Log) Leaf(ctx context.Context, index int64) (Entry, error) {
	e, err := l.entry(ctx, `idx = $1`, index)
	if errors.Is(err, db.ErrNotFound) {
		return e, noLeaf("index %d", index)
	}
	return e, err
}

func (l *Log) entry(ctx context.Context, where string, arg any) (Entry, error) {
	var r row
	if err := l.db.View(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(`SELECT idx, id, type, request, key, data FROM log_leaf WHERE `+where, arg).
			Scan(&r.idx, &r.id, &r.typ, &r.request, &r.key, &r.data)
	}); err != nil {
		return Entry{}, err
	}
	return l.recent.entry(&r)
}

// Query filters leaves; empty members match all.
type Query struct {
	Request, Type, Key string
	// From is the first index to look at. The next page begins behind the last
	// entry of this one.
	From int64
	// Limit is at most 1000, which is the default.
	Limit int
}

const queryMax = 1000

// Find gives leaves in the order of the log. Like Leaf, it works on a log that
// refuses.
func (l *Log) Find(ctx context.Context, q Query) ([]Entry, error) {
	if q.Limit <= 0 || q.Limit > queryMax {
		q.Limit = queryMax
	}
	text := `SELECT idx, id, type, request, key, data FROM log_leaf WHERE idx >= $1`
	args := []any{q.From, q.Limit}
	for _, f := range []struct{ column, value string }{{"request", q.Request}, {"type", q.Type}, {"key", q.Key}} {
		if f.value != "" {
			args = append(args, f.value)
			text += ` AND ` + f.column + ` = $` + strconv.Itoa(len(args)) + ` AND ` + f.column + ` <> ''`
		}
	}
	if q.Type != "" && l.none(q.Type, q.From) {
		return nil, nil
	}
	var out []Entry
	err := l.db.View(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(text+` ORDER BY idx LIMIT $2`, args...)
		if err != nil {
			return err
		}
		for rows.Next() {
			var r row
			if err := rows.Scan(&r.idx, &r.id, &r.typ, &r.request, &r.key, &r.data); err != nil {
				return err
			}
			e, err := l.recent.entry(&r)
			if err != nil {
				return err
			}
			out = append(out, e)
		}
		return rows.Err()
	})
	if err == nil && q.Type != "" && q.Request == "" && q.Key == "" && len(out) < q.Limit {
		last := q.From - 1
		if len(out) > 0 {
			last = out[len(out)-1].Index
		}
		l.found(q.Type, last)
	}
	return out, err
}

// Included gives a leaf that is in the tree of the published checkpoint: its row
// was read, and its bytes were led up to the root. It is what Proof proves, for
// those who need not carry the proof to anybody. Errors are those of Proof.
func (l *Log) Included(ctx context.Context, id string) (Entry, error) {
	p, e, err := l.publishedEntry(ctx, id)
	if err != nil {
		return Entry{}, err
	}
	_, err = l.path(ctx, p, e)
	return e, err
}

// Check is Included for an entry that Leaf or Find gave: nil where its bytes
// lead to the published root.
func (l *Log) Check(ctx context.Context, e Entry) error {
	p, err := l.published()
	if err != nil {
		return err
	}
	_, err = l.path(ctx, p, e)
	return err
}

// Proof gives the C2SP .tlog-proof of a leaf under the published checkpoint,
// with the leaf's bytes as its extra data. It was verified before it is given.
//
// A leaf beyond the checkpoint is LOG.NOT_INCLUDED; one whose stored bytes, or
// whose tiles, are not those of the published tree is LOG.ALTERED.
func (l *Log) Proof(ctx context.Context, index int64) ([]byte, error) {
	p, err := l.published()
	if err != nil {
		return nil, err
	}
	e, err := l.Leaf(ctx, index)
	if err != nil {
		return nil, err
	}
	return l.prove(ctx, p, e)
}

// ProofOf is Proof by the id of [Pending]. Where equal leaves were logged, it
// proves the first.
func (l *Log) ProofOf(ctx context.Context, id string) ([]byte, error) {
	p, e, err := l.publishedEntry(ctx, id)
	if err != nil {
		return nil, err
	}
	return l.prove(ctx, p, e)
}

// publishedEntry reads what is published, and then a leaf.
func (l *Log) publishedEntry(ctx context.Context, id string) (*published, Entry, error) {
	p, err := l.published()
	if err != nil {
		return nil, Entry{}, err
	}
	e, err := l.entry(ctx, `id = $1 ORDER BY idx LIMIT 1`, id)
	if errors.Is(err, db.ErrNotFound) {
		// Committed and pending on PostgreSQL is another answer than unknown.
		if _, _, err := l.lookup(ctx, id); err != nil {
			return nil, Entry{}, err
		}
		return nil, Entry{}, problem.New(problem.LogNotIncluded, "leaf %s is not included yet", id)
	}
	return p, e, err
}

func (l *Log) prove(ctx context.Context, p *published, e Entry) ([]byte, error) {
	path, err := l.path(ctx, p, e)
	if err != nil {
		return nil, err
	}
	return marshalProof(e.Data, e.Index, path, p.checkpoint), nil
}

// path gives the verified way from a leaf's bytes to the published root.
func (l *Log) path(ctx context.Context, p *published, e Entry) (tlog.RecordProof, error) {
	if e.Index >= p.tree.size {
		return nil, problem.New(problem.LogNotIncluded, "leaf %d is not included yet", e.Index).
			Seen("the checkpoint is of size %d", p.tree.size)
	}
	path, err := tlog.ProveRecord(p.tree.size, e.Index, l.reader(ctx, p.tree))
	if err != nil {
		return nil, err
	}
	if err := tlog.CheckRecord(path, p.tree.size, p.root, e.Index, tlog.RecordHash(e.Data)); err != nil {
		return nil, altered("leaf %d is not the one that was logged", e.Index).
			Seen("its bytes do not lead to the published root").Because(err)
	}
	return path, nil
}

// marshalProof writes c2sp.org/tlog-proof@v1.
func marshalProof(extra []byte, index int64, path []tlog.Hash, checkpoint []byte) []byte {
	enc := base64.StdEncoding
	b := make([]byte, 0, 64+enc.EncodedLen(len(extra))+len(path)*45+len(checkpoint))
	b = append(b, "c2sp.org/tlog-proof@v1\nextra "...)
	b = enc.AppendEncode(b, extra)
	b = append(b, "\nindex "...)
	b = strconv.AppendInt(b, index, 10)
	b = append(b, '\n')
	for i := range path {
		b = enc.AppendEncode(b, path[i][:])
		b = append(b, '\n')
	}
	b = append(b, '\n')
	return append(b, checkpoint...)
}

// Consistency proves that the tree of size older is a prefix of the tree of
// size newer: 0 < older ≤ newer ≤ Size. It was verified before it is given.
func (l *Log) Consistency(ctx context.Context, older, newer int64) ([]tlog.Hash, error) {
	p, err := l.published()
	if err != nil {
		return nil, err
	}
	if older < 1 || newer < older {
		return nil, problem.New(problem.BadRequest, "no tree of size %d is a prefix of one of size %d", older, newer)
	}
	if newer > p.tree.size {
		return nil, problem.New(problem.LogNotIncluded, "no tree of size %d is published yet", newer).
			Seen("the checkpoint is of size %d", p.tree.size)
	}
	r := l.reader(ctx, p.tree)
	path, err := tlog.ProveTree(newer, older, r)
	if err != nil {
		return nil, err
	}
	a, err := tlog.TreeHash(older, r)
	if err != nil {
		return nil, err
	}
	b, err := tlog.TreeHash(newer, r)
	if err != nil {
		return nil, err
	}
	if err := tlog.CheckTree(path, newer, b, older, a); err != nil {
		return nil, fmt.Errorf("our own consistency proof from %d to %d: %w", older, newer, err)
	}
	return path, nil
}

// reader reads hashes of a tree: its edge from memory, the rest from tiles that
// were compared with it.
func (l *Log) reader(ctx context.Context, t tree) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			level, n := tlog.SplitStoredHashIndex(index)
			h, err := l.node(ctx, t, level, n)
			if err != nil {
				return nil, err
			}
			out[i] = h
		}
		return out, nil
	})
}

// node gives the hash of a complete node of t.
func (l *Log) node(ctx context.Context, t tree, level int, n int64) (tlog.Hash, error) {
	if h, ok := t.node(level, n); ok {
		return h, nil
	}
	in := level % tileHeight
	at := n >> (tileHeight - in)
	e, err := l.tile(ctx, t, level/tileHeight, at)
	if err != nil {
		return tlog.Hash{}, err
	}
	return e.rows[in][n-at<<(tileHeight-in)], nil
}

// tile gives a full tile of t. Its root was compared with the node above it,
// and that one's tile with its own, up to the edge, which Open compared with
// the head and the second place: a tile edited in the database is never used.
func (l *Log) tile(ctx context.Context, t tree, level int, n int64) (*expanded, error) {
	if n < 0 || level < 0 || level > 63/tileHeight || n >= t.size>>(level*tileHeight)>>tileHeight {
		return nil, fmt.Errorf("tile %d/%d is not a full tile of a tree of %d leaves", level, n, t.size)
	}
	key := tileKey{level, n}
	if e := l.tiles.get(key); e != nil {
		return e, nil
	}
	var data []byte
	err := l.db.View(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(`SELECT data FROM log_tile WHERE level = $1 AND n = $2`, level, n).Scan(&data)
	})
	if errors.Is(err, db.ErrNotFound) {
		return nil, missing(level+1, n)
	}
	if err != nil {
		return nil, err
	}
	if len(data) != tileWidth*hashSize {
		return nil, altered("tile %d/%d was changed", level, n).Seen("it has %d bytes", len(data))
	}
	e := expand(data)
	want, err := l.node(ctx, t, (level+1)*tileHeight, n)
	if err != nil {
		return nil, err
	}
	if got := e.root(); got != want {
		return nil, altered("tile %d/%d was changed", level, n).Seen("it makes %s where the tree has %s", got, want)
	}
	l.tiles.put(key, e)
	return e, nil
}

type tileKey struct {
	level int
	n     int64
}

// tileCache keeps verified tiles, the last cacheMax that were read: 2 MiB.
type tileCache struct {
	mu   sync.Mutex
	m    map[tileKey]*expanded
	ring [cacheMax]tileKey
	next int
}

const cacheMax = 128

func (c *tileCache) get(k tileKey) *expanded {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m[k]
}

func (c *tileCache) put(k tileKey, e *expanded) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m[k] != nil {
		return
	}
	if c.m == nil {
		c.m = make(map[tileKey]*expanded, cacheMax)
	}
	if len(c.m) == cacheMax {
		delete(c.m, c.ring[c.next])
	}
	c.ring[c.next] = k
	c.next = (c.next + 1) % cacheMax
	c.m[k] = e
}

// Report is what Fsck has found to be whole.
type Report struct {
	Size       int64     // leaves that were verified, published or not
	Root       tlog.Hash // of them
	Checkpoint []byte    // the published checkpoint, whose tree was found too; nil on a log that refuses
}

// Fsck verifies everything from index 0: every leaf is rehashed, the tree is
// rebuilt from the leaves alone, tiles, head, published checkpoint, memory and
// second place are compared with it. The error names the first leaf or tile
// that was changed or removed, where there is something left to compare it
// with. It works on a log that refuses, whose refusal it gives when the
// database by itself is whole.
func (l *Log) Fsck(ctx context.Context) (Report, error) {
	return l.fsck(ctx, true)
}

func (l *Log) fsck(ctx context.Context, place bool) (Report, error) {
	// Read before the database: all of them are at most as large as it.
	pub, mem := l.pub.Load(), l.committed.Load()
	var text []byte
	if place {
		var err error
		if text, err = l.second.Load(ctx); err != nil {
			return Report{}, placeTrouble(err)
		}
	}
	var size, last int64
	var rootBytes []byte
	if err := l.db.View(ctx, func(tx *db.Tx) error {
		err := tx.QueryRow(`SELECT size, root FROM log_head WHERE one = 1`).Scan(&size, &rootBytes)
		if errors.Is(err, db.ErrNotFound) {
			return altered("the log's head is missing")
		}
		if err != nil {
			return err
		}
		return tx.QueryRow(`SELECT COALESCE(MAX(idx), -1) FROM log_leaf`).Scan(&last)
	}); err != nil {
		return Report{}, err
	}

	var t tree
	// The roots at the sizes that others remember, as they come by.
	roots := map[int64]tlog.Hash{pub.tree.size: {}, mem.size: {}}
	var placeSize int64 = -1
	if _, n, _, err := parseText(text); err == nil {
		placeSize = n
		roots[n] = tlog.Hash{}
	}
	roots[0] = emptyRoot
	for t.size < size {
		if err := ctx.Err(); err != nil {
			return Report{}, err
		}
		if err := l.fsckBlock(ctx, &t, mem, size, roots); err != nil {
			return Report{}, err
		}
	}
	root := t.root()
	roots[size] = root
	switch {
	case string(root[:]) != string(rootBytes):
		return Report{}, altered("the log's head is not the tree of its leaves").
			Seen("at size %d the leaves make root %s, the head says %x", size, root, rootBytes)
	case last != size-1:
		return Report{}, altered("leaf %d was added behind the log's head", size).
			Seen("the head says %d leaves, the last leaf has index %d", size, last)
	case mem.size > size || roots[mem.size] != mem.root():
		return Report{}, altered("the database is not the log that this process wrote").
			Seen("at size %d it wrote root %s", mem.size, mem.root())
	}
	if pub.checkpoint != nil && (pub.tree.size > size || roots[pub.tree.size] != pub.root) {
		return Report{}, altered("the database is not the log that was published").
			Seen("at size %d root %s was published", pub.tree.size, pub.root)
	}
	if err := l.checkGenesis(ctx); err != nil {
		return Report{}, err
	}
	rep := Report{size, root, bytes.Clone(pub.checkpoint)}
	if !place {
		return rep, nil
	}
	if placeSize < 0 || placeSize > size {
		return Report{}, l.compare(ctx, t, text)
	}
	if origin, _, r, _ := parseText(text); origin != l.origin || r != roots[placeSize] {
		return Report{}, problem.New(problem.LogForked, "the database and the second place have different logs").
			Seen("at %d leaves of %s the database makes root %s, the second place says %s of %s", placeSize, l.origin, roots[placeSize], r, origin)
	}
	if pub.checkpoint != nil {
		if err := l.checkSigner(); err != nil {
			return Report{}, err
		}
	}
	return rep, l.Refusal()
}

// fsckBlock verifies the leaves of one tile, from t.size on, and the tiles that
// they complete.
func (l *Log) fsckBlock(ctx context.Context, t, mem *tree, size int64, roots map[int64]tlog.Hash) error {
	end := min(size, t.size+tileWidth)
	var list []row
	var stored [][]byte
	var tiles []fullTile
	if err := l.db.View(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(`SELECT idx, id, type, request, key, data FROM log_leaf WHERE idx >= $1 AND idx < $2 ORDER BY idx`, t.size, end)
		if err != nil {
			return err
		}
		for rows.Next() {
			var r row
			if err := rows.Scan(&r.idx, &r.id, &r.typ, &r.request, &r.key, &r.data); err != nil {
				return err
			}
			list = append(list, r)
		}
		return rows.Err()
	}); err != nil {
		return err
	}
	for i := 0; t.size < end; i++ {
		n := t.size
		if i == len(list) || list[i].idx != n {
			return altered("leaf %d is missing", n).Seen("the head says that there are %d leaves", size)
		}
		if _, err := list[i].check(); err != nil {
			return err
		}
		// A leaf that was changed together with its id: memory knows better.
		if h, ok := mem.node(0, n); ok && h != list[i].hash {
			return altered("leaf %d was changed", n).Seen("its hash was %s and is %s", h, list[i].hash)
		}
		tiles = t.grow(list[i].hash, tiles)
		if _, ok := roots[t.size]; ok {
			roots[t.size] = t.root()
		}
	}
	if err := l.db.View(ctx, func(tx *db.Tx) error {
		for _, f := range tiles {
			var b []byte
			err := tx.QueryRow(`SELECT data FROM log_tile WHERE level = $1 AND n = $2`, f.level, f.n).Scan(&b)
			if errors.Is(err, db.ErrNotFound) {
				return missing(f.level+1, f.n)
			}
			if err != nil {
				return err
			}
			stored = append(stored, b)
		}
		return nil
	}); err != nil {
		return err
	}
	for i, f := range tiles {
		want := f.bytes()
		if bytes.Equal(stored[i], want) {
			continue
		}
		at := 0
		for at < tileWidth-1 && len(stored[i]) >= (at+1)*hashSize && bytes.Equal(stored[i][at*hashSize:(at+1)*hashSize], want[at*hashSize:(at+1)*hashSize]) {
			at++
		}
		first := (f.n*tileWidth + int64(at)) << (f.level * tileHeight)
		return altered("leaf %d or its tile %d/%d was changed", first, f.level, f.n).
			Seen("the tile and the leaf's bytes do not agree")
	}
	return nil
}
