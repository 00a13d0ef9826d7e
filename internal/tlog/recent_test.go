package tlog

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/db/dbtest"
	"github.com/firmseal/firmseal/internal/problem"
)

// Find by type never misses a leaf that was committed before it was asked,
// however much it remembers: a reader that follows a type sees all of them.
func TestFindOfATypeMissesNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := open(t, d, options(t, placeIn(t)))
		follow := func(kind string, next *int64) (n int) {
			for {
				es, err := l.Find(t.Context(), Query{Type: kind, From: *next})
				if err != nil {
					t.Error(err)
					return n
				}
				if len(es) == 0 {
					return n
				}
				*next = es[len(es)-1].Index + 1
				n += len(es)
			}
		}
		// What nothing was written of is asked for first.
		var policies int64
		if n := follow(firmseal.LeafPolicyApply, &policies); n != 0 {
			t.Errorf("%d policies in an empty log", n)
		}
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				kind := fmt.Sprintf("test.%d", w%2)
				var next int64
				for i := range 40 {
					var p Pending
					if err := d.Update(t.Context(), func(tx *db.Tx) (err error) {
						p, err = l.Append(tx, firmseal.Leaf{Type: kind, Actor: fmt.Sprint(w, " ", i)})
						return err
					}); err != nil {
						t.Error(err)
						return
					}
					idx, err := l.Wait(t.Context(), p)
					if err != nil {
						t.Error(err)
						return
					}
					follow(kind, &next)
					if next <= idx {
						t.Errorf("leaf %d was committed, and Find came to %d only", idx, next)
					}
				}
			})
		}
		wg.Wait()
		for w := range 2 {
			var next int64
			if n := follow(fmt.Sprintf("test.%d", w), &next); n != 80 {
				t.Errorf("test.%d has %d leaves", w, n)
			}
		}
		add(t, l, 0, 1)
		if err := d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := l.Append(tx, firmseal.Leaf{Type: firmseal.LeafPolicyApply})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if d.Engine() == db.SQLite {
			if n := follow(firmseal.LeafPolicyApply, &policies); n != 1 {
				t.Errorf("the first policy is not found")
			}
		}
	})
}

// A leaf that was remembered is not taken from memory when its row says
// something else, and a leaf that is whole is included whether it is remembered
// or not.
func TestIncluded(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		o := options(t, placeIn(t))
		l := open(t, d, o)
		ps := add(t, l, 0, 300)
		for range 2 {
			for i, p := range ps {
				idx, err := l.Wait(t.Context(), p)
				if err != nil {
					t.Fatal(err)
				}
				e, err := l.Included(t.Context(), p.ID)
				if err != nil || e.Index != idx || e.ID != p.ID {
					t.Fatalf("leaf %d: %+v, %v", i, e, err)
				}
				if want, err := firmseal.ParseLeaf(e.Data); err != nil || fmt.Sprintf("%+v", want) != fmt.Sprintf("%+v", e.Leaf) {
					t.Fatalf("leaf %d is %+v, its bytes say %+v, %v", i, e.Leaf, want, err)
				}
				if err := l.Check(t.Context(), e); err != nil {
					t.Fatal(err)
				}
				e.Data = append(bytes.Clone(e.Data), ' ')
				if err := l.Check(t.Context(), e); !problem.Has(err, problem.LogAltered) {
					t.Fatalf("other bytes at leaf %d: %v", i, err)
				}
			}
			l = reopen(t, d, o) // which remembers nothing
		}
		more := add(t, l, 300, 5)
		for i, edit := range []string{
			`UPDATE log_leaf SET data = $2 WHERE id = $1`, `UPDATE log_leaf SET request = 'other' || length($2) WHERE id = $1`,
			`UPDATE log_leaf SET type = 'other' || length($2) WHERE id = $1`, `UPDATE log_leaf SET key = 'other' || length($2) WHERE id = $1`,
			`UPDATE log_leaf SET idx = 9999 + length($2) WHERE id = $1`,
		} {
			if _, err := l.Wait(t.Context(), more[i]); err != nil {
				t.Fatal(err)
			}
			if err := d.Update(t.Context(), func(tx *db.Tx) error {
				_, err := tx.Exec(edit, more[i].ID, []byte(`{"actor":"x","time":1,"type":"x","v":1}`))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if e, err := l.Included(t.Context(), more[i].ID); err == nil {
				t.Errorf("%s: gives %+v", edit, e)
			}
		}
	})
}
