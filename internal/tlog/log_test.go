package tlog

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/db/dbtest"
	"github.com/firmseal/firmseal/internal/problem"
)

const testOrigin = "firmseal.test/log/1"

func options(t testing.TB, place string) Options {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return Options{Origin: testOrigin, Signer: s, VKey: vkey, Second: FilePlace(place), Logger: slog.New(slog.DiscardHandler)}
}

func placeIn(t testing.TB) string { return filepath.Join(t.TempDir(), "second", "checkpoint") }

// open gives a log that does not refuse.
func open(t testing.TB, d *db.DB, o Options) *Log {
	t.Helper()
	l := reopen(t, d, o)
	if err := l.Refusal(); err != nil {
		t.Fatal(err)
	}
	return l
}

func reopen(t testing.TB, d *db.DB, o Options) *Log {
	t.Helper()
	l, err := Open(t.Context(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func leafOf(i int) firmseal.Leaf {
	return firmseal.Leaf{
		Type: firmseal.LeafRequest, Actor: "token:t", Time: int64(1_700_000_000_000_000 + i),
		Request: fmt.Sprintf("r%d", i/3), Key: []string{"", "k1", "k2"}[i%3], Record: strings.Repeat("ab", 32),
	}
}

// add appends leaves in one transaction and waits for the last.
func add(t testing.TB, l *Log, from, n int) []Pending {
	t.Helper()
	var ps []Pending
	if err := l.db.Update(t.Context(), func(tx *db.Tx) error {
		ps = ps[:0]
		for i := range n {
			p, err := l.Append(tx, leafOf(from+i))
			if err != nil {
				return err
			}
			ps = append(ps, p)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n > 0 {
		if _, err := l.Wait(t.Context(), ps[n-1]); err != nil {
			t.Fatal(err)
		}
	}
	return ps
}

// head verifies the published checkpoint as anybody would.
func head(t testing.TB, l *Log) (int64, tlog.Hash) {
	t.Helper()
	c, err := l.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(c, note.VerifierList(l.Verifier()))
	if err != nil {
		t.Fatal(err)
	}
	origin, size, root, err := parseText([]byte(n.Text))
	if err != nil || origin != testOrigin {
		t.Fatalf("checkpoint %q: %v", n.Text, err)
	}
	return size, root
}

// checkProof reads a proof with the foreign implementation and verifies it
// with nothing of ours.
func checkProof(t testing.TB, l *Log, b []byte, index int64) {
	t.Helper()
	var p proof.TLogProof
	if err := p.Unmarshal(b); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.Marshal(), b) {
		t.Fatalf("the foreign implementation writes another proof:\n%s\n%s", p.Marshal(), b)
	}
	n, err := note.Open(p.Checkpoint, note.VerifierList(l.Verifier()))
	if err != nil {
		t.Fatal(err)
	}
	_, size, root, err := parseText([]byte(n.Text))
	if err != nil {
		t.Fatal(err)
	}
	path := make(tlog.RecordProof, len(p.Hashes))
	for i := range p.Hashes {
		path[i] = p.Hashes[i]
	}
	if int64(p.Index) != index {
		t.Fatalf("proof of leaf %d, asked for %d", p.Index, index)
	}
	if err := tlog.CheckRecord(path, size, root, index, tlog.RecordHash(p.ExtraData)); err != nil {
		t.Fatalf("leaf %d of %d: %v", index, size, err)
	}
}

func TestAppendProveReopen(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		o := options(t, placeIn(t))
		l := open(t, d, o)
		e, err := l.Leaf(t.Context(), 0)
		if err != nil || e.Leaf.Type != firmseal.LeafGenesis || e.Leaf.Subject != testOrigin || len(e.Leaf.Key) != 64 {
			t.Fatalf("leaf 0 is %+v, %v", e.Leaf, err)
		}
		var ref stored
		ref.add(t, 0, e.Data)
		size := int64(1)
		rng := mrand.New(mrand.NewPCG(1, 2))
		oldSize, oldRoot := head(t, l)
		for round := range 14 {
			n := rng.IntN(120)
			ps := add(t, l, int(size), n)
			for i := range n {
				want := leafOf(int(size) + i)
				want.V = 1
				b, err := canonical(&want)
				if err != nil {
					t.Fatal(err)
				}
				ref.add(t, size+int64(i), b)
			}
			for i, p := range ps {
				idx, err := l.Wait(t.Context(), p)
				if err != nil || idx != size+int64(i) {
					t.Fatalf("leaf %d of the round has index %d, %v; want %d", i, idx, err, size+int64(i))
				}
			}
			size += int64(n)
			s, root := head(t, l)
			want, err := tlog.TreeHash(size, ref)
			if err != nil {
				t.Fatal(err)
			}
			if s != size || root != want {
				t.Fatalf("checkpoint %d %s, want %d %s", s, root, size, want)
			}
			for range 20 {
				i := rng.Int64N(size)
				b, err := l.Proof(t.Context(), i)
				if err != nil {
					t.Fatal(err)
				}
				checkProof(t, l, b, i)
				a := 1 + rng.Int64N(size)
				z := a + rng.Int64N(size-a+1)
				path, err := l.Consistency(t.Context(), a, z)
				if err != nil {
					t.Fatal(err)
				}
				ra, _ := tlog.TreeHash(a, ref)
				rz, _ := tlog.TreeHash(z, ref)
				if err := tlog.CheckTree(path, z, rz, a, ra); err != nil {
					t.Fatalf("consistency %d to %d: %v", a, z, err)
				}
			}
			if len(ps) > 0 {
				b, err := l.ProofOf(t.Context(), ps[0].ID)
				if err != nil {
					t.Fatal(err)
				}
				checkProof(t, l, b, size-int64(n))
			}
			path, err := l.Consistency(t.Context(), oldSize, size)
			if err != nil {
				t.Fatal(err)
			}
			if err := tlog.CheckTree(path, size, root, oldSize, oldRoot); err != nil {
				t.Fatal(err)
			}
			oldSize, oldRoot = size, root
			rep, err := l.Fsck(t.Context())
			if err != nil || rep.Size != size || rep.Root != root {
				t.Fatalf("fsck: %+v %v", rep, err)
			}
			if round%3 == 2 {
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				l = open(t, d, o)
			}
		}
		for _, bad := range []int64{-1, size, size + 1} {
			if _, err := l.Proof(t.Context(), bad); err == nil {
				t.Errorf("proved leaf %d of %d", bad, size)
			}
		}
		if _, err := l.Wait(t.Context(), Pending{"nonsense"}); !problem.Has(err, problem.NotFound) {
			t.Errorf("waiting for a leaf that was never written: %v", err)
		}
		got, err := l.Find(t.Context(), Query{Request: "r5", Key: "k2"})
		if err != nil || len(got) != 1 || got[0].Leaf.Request != "r5" || got[0].Leaf.Key != "k2" {
			t.Errorf("find: %+v %v", got, err)
		}
		var all int64
		for from := int64(0); ; {
			page, err := l.Find(t.Context(), Query{From: from, Limit: 100})
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			for _, e := range page {
				if e.Index != all {
					t.Fatalf("index %d where %d comes next", e.Index, all)
				}
				all++
			}
			from = page[len(page)-1].Index + 1
		}
		if all != size {
			t.Errorf("paged through %d of %d leaves", all, size)
		}
	})
}

// Many callers at once, some of whom change their mind after they appended.
func TestConcurrentAndRolledBack(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := open(t, d, options(t, placeIn(t)))
		enough := errors.New("changed my mind")
		var mu sync.Mutex
		index := map[int64]int{}
		var wg sync.WaitGroup
		for g := range 16 {
			wg.Go(func() {
				for i := range 25 {
					n := g*25 + i
					var p Pending
					err := d.Update(t.Context(), func(tx *db.Tx) error {
						var err error
						if p, err = l.Append(tx, leafOf(n)); err != nil {
							return err
						}
						if n%3 == 0 {
							return enough
						}
						return nil
					})
					if n%3 == 0 {
						if !errors.Is(err, enough) {
							t.Errorf("update: %v", err)
						}
						if _, err := l.Wait(t.Context(), p); !problem.Has(err, problem.NotFound) {
							t.Errorf("waiting for a leaf that was rolled back: %v", err)
						}
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					idx, err := l.Wait(t.Context(), p)
					if err != nil {
						t.Error(err)
						return
					}
					b, err := l.Proof(t.Context(), idx)
					if err != nil {
						t.Error(err)
						return
					}
					var pr proof.TLogProof
					if err := pr.Unmarshal(b); err != nil || !strings.Contains(string(pr.ExtraData), fmt.Sprintf(`"time":%d,`, leafOf(n).Time)) {
						t.Errorf("leaf %d: the proof is of %s, %v", n, pr.ExtraData, err)
					}
					mu.Lock()
					if other, ok := index[idx]; ok {
						t.Errorf("leaves %d and %d have index %d", n, other, idx)
					}
					index[idx] = n
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		want := int64(1 + 400 - 134)
		if rep, err := l.Fsck(t.Context()); err != nil || rep.Size != want {
			t.Fatalf("fsck: size %d, %v; want %d", rep.Size, err, want)
		}
	})
}

// Two processes on one PostgreSQL, and a leaf whose process died before its pass.
func TestTwoProcessesOnPostgres(t *testing.T) {
	t.Parallel()
	d := dbtest.Postgres(t)
	o := options(t, placeIn(t))
	a, b := open(t, d, o), open(t, d, o)
	var wg sync.WaitGroup
	for i, l := range []*Log{a, b, a, b} {
		wg.Go(func() {
			for n := range 30 {
				add(t, l, 1000*i+10*n, 3)
			}
		})
	}
	wg.Wait()
	p := add(t, a, 9000, 1)[0]
	if _, err := b.Wait(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*Log{a, b} {
		if rep, err := l.Fsck(t.Context()); err != nil || rep.Size != 362 {
			t.Fatalf("fsck: %d %v", rep.Size, err)
		}
	}
	r, err := newRow(&firmseal.Leaf{V: 1, Type: "x", Time: 7})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Update(t.Context(), func(tx *db.Tx) error { return (&Log{}).appendPostgres(tx, r) }); err != nil {
		t.Fatal(err)
	}
	if idx, err := b.Wait(t.Context(), Pending{r.id}); err != nil || idx != 362 {
		t.Fatalf("the orphan has index %d, %v", idx, err)
	}
}

// An older copy of the database refuses to go on, and says why.
func TestOlderCopyRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := options(t, placeIn(t))
	file := filepath.Join(dir, "a.db")
	copyAt := func(name string) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	with := func(name string, fn func(l *Log)) {
		t.Helper()
		d, err := db.Open(t.Context(), "sqlite:"+filepath.Join(dir, name), db.Options{Logger: o.Logger})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		l := reopen(t, d, o)
		fn(l)
		l.Close()
	}
	with("a.db", func(l *Log) { add(t, l, 0, 300) })
	copyAt("old.db")
	with("a.db", func(l *Log) { add(t, l, 300, 300) })
	refused := func(name string, code problem.Code) {
		t.Helper()
		with(name, func(l *Log) {
			if err := l.Refusal(); !problem.Has(err, code) {
				t.Fatalf("%s: refusal %v, want %s", name, err, code)
			}
			err := l.db.Update(t.Context(), func(tx *db.Tx) error {
				_, err := l.Append(tx, leafOf(1))
				return err
			})
			if !problem.Has(err, code) {
				t.Errorf("%s: append: %v", name, err)
			}
			if _, err := l.Checkpoint(t.Context()); !problem.Has(err, code) {
				t.Errorf("%s: it gives a checkpoint: %v", name, err)
			}
			if e, err := l.Leaf(t.Context(), 5); err != nil || e.Index != 5 {
				t.Errorf("%s: it cannot be read: %v", name, err)
			}
			if _, err := l.Fsck(t.Context()); !problem.Has(err, code) {
				t.Errorf("%s: fsck says %v", name, err)
			}
			if err := l.Adopt(t.Context(), "local:me"); !problem.Has(err, problem.Conflict) && code != problem.LogPlaceMissing {
				t.Errorf("%s: adopted: %v", name, err)
			}
		})
	}
	refused("old.db", problem.LogBehind)
	// The copy goes on with a place of its own: another log of the same size.
	own, main := placeIn(t), o.Second
	text, err := main.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o.Second = FilePlace(own)
	refused2 := func() {
		with("old.db", func(l *Log) {
			if err := l.Refusal(); !problem.Has(err, problem.LogPlaceMissing) {
				t.Fatalf("refusal %v", err)
			}
			if err := l.Adopt(t.Context(), "local:me"); err != nil {
				t.Fatal(err)
			}
			add(t, l, 5000, 400)
			got, err := l.Find(t.Context(), Query{Type: firmseal.LeafRecover})
			if err != nil || len(got) != 1 || got[0].Leaf.Actor != "local:me" || got[0].Index != 301 {
				t.Fatalf("the recovery's leaf: %+v %v", got, err)
			}
			if _, err := l.Fsck(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
	refused2()
	o.Second = main
	refused("old.db", problem.LogForked)
	// A second place of another log, and a damaged one.
	for _, bad := range [][]byte{
		bytes.Replace(text, []byte("log/1"), []byte("log/2"), 1),
		[]byte("nonsense\n"),
	} {
		p := placeIn(t)
		o.Second = FilePlace(p)
		if err := o.Second.Swap(t.Context(), nil, bad); err != nil {
			t.Fatal(err)
		}
		refused("a.db", problem.LogForked)
	}
	p := placeIn(t)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, make([]byte, 2*slotSize), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Second = FilePlace(p)
	refused("a.db", problem.LogForked)
	o.Second = main
	with("a.db", func(l *Log) {
		if err := l.Refusal(); err != nil {
			t.Fatal(err)
		}
	})
	// Another log key, on the same database.
	k := options(t, placeIn(t))
	k.Second = o.Second
	o = k
	with("a.db", func(l *Log) {
		if err := l.Refusal(); !problem.Has(err, problem.LogForked) {
			t.Fatalf("with another key: %v", err)
		}
	})
}

// Rows edited by hand, each alone: found when used, and named by Fsck.
func TestEditedByHand(t *testing.T) {
	t.Parallel()
	const size = 700
	for _, c := range []struct {
		name, sql string
		args      []any
		fsck      string // in the error of Fsck of the running log
		proof     int64  // a leaf that cannot be proven any more, or -1
		opens     bool   // a new Open sees nothing
	}{
		{"leaf data in a full tile", `UPDATE log_leaf SET data = $1 WHERE idx = 17`, []any{[]byte(`{"time":1,"type":"x","v":1}`)}, "leaf 17 was changed", 17, true},
		{"leaf data at the edge", `UPDATE log_leaf SET data = $1 WHERE idx = 650`, []any{[]byte(`{"time":1,"type":"x","v":1}`)}, "leaf 650 was changed", 650, false},
		{"leaf data that is no JSON", `UPDATE log_leaf SET data = $1 WHERE idx = 3`, []any{[]byte(`x`)}, "leaf 3 cannot", 3, true},
		{"leaf and its id", `UPDATE log_leaf SET data = $1, id = $2, type = 'x', request = '', key = '' WHERE idx = 300`, nil, "leaf 300 or its tile 0/1", 300, true},
		{"leaf and its id at the edge", `UPDATE log_leaf SET data = $1, id = $2, type = 'x', request = '', key = '' WHERE idx = 600`, nil, "leaf 600 was changed", 600, false},
		{"leaf removed", `DELETE FROM log_leaf WHERE idx = 200`, nil, "leaf 200 is missing", 200, true},
		{"last leaf removed", `DELETE FROM log_leaf WHERE idx = 700`, nil, "leaf 700 is missing", 700, false},
		{"leaf added", `INSERT INTO log_leaf (idx, id, type, request, key, data) SELECT 701, id, type, request, key, data FROM log_leaf WHERE idx = 1`, nil, "leaf 701 was added", 701, false},
		{"leaf moved", `UPDATE log_leaf SET idx = 5000 WHERE idx = 10`, nil, "leaf 10 is missing", 10, false},
		{"column request", `UPDATE log_leaf SET request = 'other' WHERE idx = 30`, nil, "leaf 30 was changed", 30, true},
		{"column id", `UPDATE log_leaf SET id = 'other' WHERE idx = 30`, nil, "leaf 30 was changed", 30, true},
		{"tile changed", `UPDATE log_tile SET data = $1 WHERE level = 0 AND n = 1`, []any{make([]byte, 8192)}, "leaf 256 or its tile 0/1", 256, false},
		{"tile cut", `UPDATE log_tile SET data = $1 WHERE level = 0 AND n = 0`, []any{make([]byte, 31)}, "leaf 0 or its tile 0/0", 0, false},
		{"tile removed", `DELETE FROM log_tile WHERE level = 0 AND n = 0`, nil, "tile 0/0 is missing", 100, false},
		{"head's size", `UPDATE log_head SET size = 699`, nil, "head is not the tree", -1, false},
		{"head's root", `UPDATE log_head SET root = $1`, []any{make([]byte, 32)}, "head is not the tree", -1, false},
		{"head removed", `DELETE FROM log_head`, nil, "head is missing", -1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, d *db.DB) {
				o := options(t, placeIn(t))
				l := open(t, d, o)
				add(t, l, 0, size)
				args := c.args
				if strings.Contains(c.sql, "$2") {
					r, err := newRow(&firmseal.Leaf{V: 1, Type: "x", Time: 9})
					if err != nil {
						t.Fatal(err)
					}
					args = []any{r.data, r.id}
				}
				if err := d.Update(t.Context(), func(tx *db.Tx) error {
					_, err := tx.Exec(c.sql, args...)
					return err
				}); err != nil {
					t.Fatal(err)
				}
				if _, err := l.Fsck(t.Context()); err == nil || !strings.Contains(err.Error(), c.fsck) || !problem.Has(err, problem.LogAltered) {
					t.Errorf("fsck: %v, want %q", err, c.fsck)
				}
				if c.proof >= 0 {
					if b, err := l.Proof(t.Context(), c.proof); err == nil {
						t.Errorf("it still proves leaf %d:\n%s", c.proof, b)
					}
				}
				l.Close()
				again := reopen(t, d, o)
				if err := again.Refusal(); (err == nil) != c.opens {
					t.Errorf("a new open says %v", err)
				}
				if _, err := again.Fsck(t.Context()); err == nil {
					t.Error("fsck of a new open finds nothing")
				}
			})
		})
	}
}

// flaky is a second place that fails in both ways: before it did anything, and
// after it did all.
type flaky struct {
	SecondPlace
	mu     sync.Mutex
	before int
	after  int
}

func (f *flaky) Swap(ctx context.Context, old, text []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.before > 0 {
		f.before--
		return errors.New("no space left")
	}
	err := f.SecondPlace.Swap(ctx, old, text)
	if f.after > 0 && err == nil {
		f.after--
		return errors.New("did the sync happen?")
	}
	return err
}

func TestSecondPlaceFailsForATime(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		o := options(t, placeIn(t))
		f := &flaky{SecondPlace: o.Second}
		o.Second = f
		l := open(t, d, o)
		f.mu.Lock()
		f.before, f.after = 2, 2
		f.mu.Unlock()
		add(t, l, 0, 5)
		add(t, l, 5, 5)
		if _, err := l.Fsck(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.before = 1 << 30
		f.mu.Unlock()
		var p Pending
		if err := d.Update(t.Context(), func(tx *db.Tx) (err error) {
			p, err = l.Append(tx, leafOf(10))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.Wait(ctx, p); err == nil {
			t.Error("a leaf is included while the second place is down")
		}
		if size, _ := head(t, l); size != 11 {
			t.Errorf("a checkpoint of size %d was published", size)
		}
		l.Close()
		o.Second = f.SecondPlace
		l = open(t, d, o)
		if idx, err := l.Wait(t.Context(), p); err != nil || idx != 11 {
			t.Fatalf("after the restart: %d %v", idx, err)
		}
	})
}

func TestFilePlace(t *testing.T) {
	t.Parallel()
	p := FilePlace(placeIn(t))
	ctx := t.Context()
	if b, err := p.Load(ctx); b != nil || err != nil {
		t.Fatalf("%q %v", b, err)
	}
	for _, c := range []struct {
		old, text string
		moved     bool
	}{{"x", "a", true}, {"", "a", false}, {"", "b", true}, {"b", "c", true}, {"a", "b", false}} {
		var old []byte
		if c.old != "" {
			old = []byte(c.old)
		}
		before, _ := p.Load(ctx)
		err := p.Swap(ctx, old, []byte(c.text))
		if (c.moved && !errors.Is(err, ErrMoved)) || (!c.moved && err != nil) {
			if before == nil && c.old == "x" && err != nil {
				continue // its folder is made by the first claim only
			}
			t.Fatalf("%+v: %v", c, err)
		}
		after, _ := p.Load(ctx)
		if want := map[bool]string{true: string(before), false: c.text}[c.moved]; string(after) != want {
			t.Fatalf("%+v: it holds %q", c, after)
		}
	}
	// A slot that a crash has torn, at any byte, leaves the other one.
	if err := p.Swap(ctx, []byte("b"), []byte("b")); err != nil {
		t.Fatal(err)
	}
	path := string(p.(filePlace))
	whole, err := os.ReadFile(path)
	if err != nil || len(whole) != 2*slotSize {
		t.Fatalf("%d bytes, %v", len(whole), err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	now, err := newest(f)
	if err != nil {
		t.Fatal(err)
	}
	next, err := slot{now.n + 1, []byte("the next text")}.bytes()
	if err != nil {
		t.Fatal(err)
	}
	at := int64((now.n+1)%2) * slotSize
	for cut := range 140 {
		torn := append(bytes.Clone(next[:cut]), whole[int(at)+cut:int(at)+slotSize]...)
		if _, err := f.WriteAt(torn, at); err != nil {
			t.Fatal(err)
		}
		got, err := p.Load(ctx)
		if err != nil || string(got) != "b" && string(got) != "the next text" {
			t.Fatalf("torn at %d: %q %v", cut, got, err)
		}
		if string(got) != "b" && !bytes.Equal(torn, next) {
			t.Fatalf("torn at %d: the torn slot was taken", cut)
		}
	}
	for _, damaged := range [][]byte{nil, {}, []byte("x"), bytes.Repeat([]byte("\n"), 2*slotSize)} {
		if err := os.WriteFile(path+".damaged", damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := FilePlace(path + ".damaged").Load(ctx); err == nil {
			t.Errorf("a damaged file is %q", b)
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	// One of many wins each step.
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 8 {
		wg.Go(func() {
			err := p.Swap(ctx, []byte("b"), []byte(fmt.Sprint("winner ", i)))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, ErrMoved) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d of 8 swaps of one text won", won)
	}
}
