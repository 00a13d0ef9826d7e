package journal_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/db/dbtest"
	"github.com/firmseal/firmseal/internal/journal"
	"github.com/firmseal/firmseal/internal/problem"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

func add(t testing.TB, d *db.DB, e journal.Event) (seq int64) {
	t.Helper()
	err := d.Update(t.Context(), func(tx *db.Tx) (err error) {
		seq, err = journal.Append(tx, e)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return seq
}

func list(t testing.TB, d *db.DB, f journal.Filter) (subjects string) {
	t.Helper()
	err := d.View(t.Context(), func(tx *db.Tx) error {
		es, err := journal.List(tx, f)
		for _, e := range es {
			subjects += e.Subject
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return subjects
}

func TestListFiltersAndPages(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		var seqs []int64
		for i, s := range []string{"a", "b", "c", "d", "e", "f"} {
			seqs = append(seqs, add(t, d, journal.Event{
				Kind: fmt.Sprintf("kind.%d", i%2), Actor: "ann", Project: fmt.Sprintf("p%d", i%3), Subject: s,
				Request: "build-" + s, Data: map[string]any{"n": i},
			}))
		}
		for _, c := range []struct {
			f    journal.Filter
			want string
		}{
			{journal.Filter{}, "abcdef"},
			{journal.Filter{Newest: true}, "fedcba"},
			{journal.Filter{Kind: "kind.1"}, "bdf"},
			{journal.Filter{Project: "p0"}, "ad"},
			{journal.Filter{Project: "p0", Kind: "kind.1"}, "d"},
			{journal.Filter{Request: "build-c"}, "c"},
			{journal.Filter{Subject: "e"}, "e"},
			{journal.Filter{After: seqs[3]}, "ef"},
			{journal.Filter{After: seqs[0], Limit: 2}, "bc"},
			{journal.Filter{Before: seqs[3], Limit: 2}, "cb"},
			{journal.Filter{Kind: "kind.1' OR '1'='1"}, ""},
		} {
			if got := list(t, d, c.f); got != c.want {
				t.Errorf("%+v: %q, want %q", c.f, got, c.want)
			}
		}
		err := d.View(t.Context(), func(tx *db.Tx) error {
			es, err := journal.List(tx, journal.Filter{Subject: "c"})
			if err != nil {
				return err
			}
			if e := es[0]; e.Data != `{"n":2}` || e.Actor != "ann" || e.Seq != seqs[2] || db.Now()-e.Time > 60e6 {
				t.Errorf("read back %+v", e)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestEntryGoesWithItsChange(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		failed := errors.New("the change failed")
		err := d.Update(t.Context(), func(tx *db.Tx) error {
			if _, err := journal.Append(tx, journal.Event{Kind: "k", Actor: "a", Subject: "x"}); err != nil {
				return err
			}
			return failed
		})
		if !errors.Is(err, failed) {
			t.Fatal(err)
		}
		if got := list(t, d, journal.Filter{}); got != "" {
			t.Errorf("an entry %q without its change", got)
		}
		err = d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := journal.Append(tx, journal.Event{Kind: "k", Actor: "a", Data: strings.Repeat("x", 70<<10)})
			return err
		})
		if !problem.Has(err, problem.TooLarge) {
			t.Errorf("70 KiB of details: %v", err)
		}
	})
}

// Many writers at once, some of which roll back; a watcher sees every committed
// entry once, in rising order, and nothing else.
func TestWatchMissesNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		const writers, each = 8, 25
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var got []journal.Entry
		enough := errors.New("enough")
		done := make(chan error, 1)
		go func() {
			done <- journal.Watch(ctx, d, journal.Filter{Project: "p", Limit: 7}, func(es []journal.Entry) error {
				got = append(got, es...)
				if len(got) >= writers*each {
					return enough
				}
				return nil
			})
		}()
		want := make([]map[int64]bool, writers)
		undo := errors.New("undo")
		var wg sync.WaitGroup
		for w := range writers {
			want[w] = make(map[int64]bool)
			wg.Go(func() {
				for i := range each {
					seq := add(t, d, journal.Event{Kind: "k", Actor: "a", Project: "p", Subject: fmt.Sprint(w)})
					want[w][seq] = true
					if i%3 == 0 {
						add(t, d, journal.Event{Kind: "k", Actor: "a", Project: "other"})
						err := d.Update(ctx, func(tx *db.Tx) error {
							if _, err := journal.Append(tx, journal.Event{Kind: "k", Actor: "a", Project: "p", Subject: "undone"}); err != nil {
								return err
							}
							return undo
						})
						if !errors.Is(err, undo) {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		if err := <-done; !errors.Is(err, enough) {
			t.Fatal(err)
		}
		last := int64(0)
		for _, e := range got {
			if e.Seq <= last {
				t.Fatalf("entry %d after %d", e.Seq, last)
			}
			last = e.Seq
			found := false
			for _, m := range want {
				found = found || m[e.Seq]
			}
			if !found || e.Project != "p" {
				t.Fatalf("entry %+v was never committed here", e)
			}
		}
		if len(got) != writers*each {
			t.Errorf("%d entries, want %d", len(got), writers*each)
		}
	})
}

// An entry with a lower number that is committed after one with a higher is
// not passed over. Only PostgreSQL can do this.
func TestReadWaitsForLowerNumbers(t *testing.T) {
	t.Parallel()
	d := dbtest.Postgres(t)
	numbered, release := make(chan int64), make(chan struct{})
	slow := make(chan error, 1)
	go func() {
		slow <- d.Update(t.Context(), func(tx *db.Tx) error {
			seq, err := journal.Append(tx, journal.Event{Kind: "k", Actor: "a", Subject: "slow"})
			if err != nil {
				return err
			}
			numbered <- seq
			<-release
			return nil
		})
	}()
	low := <-numbered
	if high := add(t, d, journal.Event{Kind: "k", Actor: "a", Subject: "fast"}); high <= low {
		t.Fatalf("numbers %d, %d: the test needs them rising", low, high)
	}
	if got := list(t, d, journal.Filter{}); got != "fast" {
		t.Fatalf("List sees %q: the slow one was to be open", got)
	}
	read := make(chan string, 1)
	go func() {
		es, _, err := journal.Read(t.Context(), d, journal.Filter{})
		if err != nil {
			t.Error(err)
		}
		s := ""
		for _, e := range es {
			s += e.Subject + " "
		}
		read <- s
	}()
	select {
	case s := <-read:
		t.Errorf("read %q while a lower number was open", s)
	default:
	}
	close(release)
	if err := <-slow; err != nil {
		t.Fatal(err)
	}
	if s := <-read; s != "slow fast " {
		t.Errorf("read %q", s)
	}
}
