package db_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/db/dbtest"
	"github.com/firmseal/firmseal/internal/problem"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// table makes a table of the test's own.
func table(t testing.TB, d *db.DB) {
	t.Helper()
	err := d.Update(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(`CREATE TABLE thing (id BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL)`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func insert(tx *db.Tx, id int, name string) error {
	_, err := tx.Exec(`INSERT INTO thing(name, id) VALUES ($2, $1)`, id, name)
	return err
}

func count(t testing.TB, d *db.DB) (n int) {
	t.Helper()
	err := d.View(t.Context(), func(tx *db.Tx) error {
		return tx.QueryRow(`SELECT count(*) FROM thing`).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUpdateIsSeenByTheNextView(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		table(t, d)
		for n := range 20 {
			if err := d.Update(t.Context(), func(tx *db.Tx) error { return insert(tx, n, "x") }); err != nil {
				t.Fatal(err)
			}
			if got := count(t, d); got != n+1 {
				t.Fatalf("after %d updates a view sees %d", n+1, got)
			}
		}
	})
}

func TestPlaceholdersAreNumbers(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		var a, b, lit string
		err := d.View(t.Context(), func(tx *db.Tx) error {
			// $2 before $1, one twice, and what only looks like one.
			return tx.QueryRow(`SELECT $2 || $1, /* $3 */ $1 || $1, '$1 '' $2' -- $4`, "one", "two").Scan(&a, &b, &lit)
		})
		if err != nil {
			t.Fatal(err)
		}
		if a != "twoone" || b != "oneone" || lit != "$1 ' $2" {
			t.Errorf("got %q %q %q", a, b, lit)
		}
	})
}

func TestFailingFunctionHarmsNobody(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		table(t, d)
		refused := errors.New("refused")
		var wg sync.WaitGroup
		for n := range 200 {
			wg.Go(func() {
				err := d.Update(t.Context(), func(tx *db.Tx) error {
					if err := insert(tx, n, "x"); err != nil {
						return err
					}
					switch n % 4 {
					case 1:
						return refused
					case 2: // a statement that fails, too
						return insert(tx, n, "twice")
					}
					return nil
				})
				switch {
				case n%4 == 1 && !errors.Is(err, refused):
					t.Errorf("%d: the function's error came back as %v", n, err)
				case n%4 == 2 && err == nil:
					t.Errorf("%d: a doubled key was taken", n)
				case n%4 != 1 && n%4 != 2 && err != nil:
					t.Errorf("%d: %v", n, err)
				}
			})
		}
		wg.Wait()
		if got := count(t, d); got != 100 {
			t.Errorf("%d rows, want the 100 of those that succeeded", got)
		}
	})
}

func TestAfterCommit(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		table(t, d)
		var seen []string
		err := d.Update(t.Context(), func(tx *db.Tx) error {
			tx.AfterCommit(func() { seen = append(seen, "a") })
			tx.AfterCommit(func() { seen = append(seen, "b") })
			return insert(tx, 1, "x")
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(seen, ""); got != "ab" {
			t.Errorf("ran %q when Update returned", got)
		}
		err = d.Update(t.Context(), func(tx *db.Tx) error {
			tx.AfterCommit(func() { t.Error("ran after a rollback") })
			return insert(tx, 1, "doubled")
		})
		if err == nil {
			t.Error("a doubled key was taken")
		}
	})
}

func TestSignalWakesAfterTheCommit(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		table(t, d)
		ch, other := d.Changed("thing"), d.Changed("other")
		failed := errors.New("no")
		if err := d.Update(t.Context(), func(tx *db.Tx) error { tx.Signal("thing"); return failed }); !errors.Is(err, failed) {
			t.Fatal(err)
		}
		select {
		case <-ch:
			t.Fatal("woken by a rollback")
		default:
		}
		if err := d.Update(t.Context(), func(tx *db.Tx) error { tx.Signal("thing"); return insert(tx, 1, "x") }); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ch:
		default:
			t.Error("not woken when Update returned")
		}
		select {
		case <-other:
			t.Error("another topic was woken")
		default:
		}
	})
}

func TestPanicGoesToTheCaller(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		table(t, d)
		cause := errors.New("the bug")
		func() {
			defer func() {
				v := recover()
				err, ok := v.(error)
				if !ok || !errors.Is(err, cause) {
					t.Errorf("recovered %v", v)
				}
			}()
			d.Update(t.Context(), func(tx *db.Tx) error { //nolint:errcheck // it panics
				if err := insert(tx, 1, "x"); err != nil {
					t.Error(err)
				}
				panic(cause)
			})
			t.Error("Update returned")
		}()
		if err := d.Update(t.Context(), func(tx *db.Tx) error { return insert(tx, 2, "x") }); err != nil {
			t.Fatal(err)
		}
		if got := count(t, d); got != 1 {
			t.Errorf("%d rows, want only that of the function which did not panic", got)
		}
	})
}

// t.FailNow inside a function ends its goroutine. The writer outlives it.
func TestGoexitEndsTheCaller(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		table(t, d)
		returned := true
		done := make(chan struct{})
		go func() {
			defer close(done)
			returned = true
			d.Update(t.Context(), func(tx *db.Tx) error { //nolint:errcheck // it does not return
				returned = false
				runtime.Goexit()
				return nil
			})
			returned = true
		}()
		<-done
		if returned {
			t.Error("Update returned in the goroutine that its function had ended")
		}
		if err := d.Update(t.Context(), func(tx *db.Tx) error { return insert(tx, 2, "x") }); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		fn := func(*db.Tx) error { t.Error("ran"); return nil }
		if err := d.Update(ctx, fn); !errors.Is(err, context.Canceled) {
			t.Errorf("Update: %v", err)
		}
		if err := d.View(ctx, fn); !errors.Is(err, context.Canceled) {
			t.Errorf("View: %v", err)
		}
	})
}

// A caller who leaves the queue is let go at once, and its function never runs;
// one whose function has begun gets its true outcome.
func TestCancelledInTheQueue(t *testing.T) {
	t.Parallel()
	d := dbtest.SQLite(t)
	table(t, d)
	begun, release := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		first <- d.Update(ctx, func(tx *db.Tx) error {
			close(begun)
			<-release
			return insert(tx, 1, "begun before the cancel")
		})
	}()
	<-begun
	second := make(chan error, 1)
	go func() {
		second <- d.Update(ctx, func(*db.Tx) error { t.Error("ran"); return nil })
	}()
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("the queued one: %v", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Errorf("the one that had begun: %v", err)
	}
	if got := count(t, d); got != 1 {
		t.Errorf("%d rows", got)
	}
}

func TestViewIsASnapshot(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		table(t, d)
		err := d.View(t.Context(), func(tx *db.Tx) error {
			var before, after int
			if err := tx.QueryRow(`SELECT count(*) FROM thing`).Scan(&before); err != nil {
				return err
			}
			if err := d.Update(t.Context(), func(tx *db.Tx) error { return insert(tx, 1, "x") }); err != nil {
				return err
			}
			if err := tx.QueryRow(`SELECT count(*) FROM thing`).Scan(&after); err != nil {
				return err
			}
			if before != 0 || after != 0 {
				t.Errorf("saw %d, then %d", before, after)
			}
			if err := insert(tx, 2, "written in a view"); err == nil {
				t.Error("a view could write")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := count(t, d); got != 1 {
			t.Errorf("%d rows afterwards", got)
		}
	})
}

func TestMisuse(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		panics := func(name, want string, fn func()) {
			t.Helper()
			defer func() {
				if v := recover(); v == nil || !strings.Contains(fmt.Sprint(v), want) {
					t.Errorf("%s: %v", name, v)
				}
			}()
			fn()
		}
		panics("nested", "inside a transaction", func() {
			d.Update(t.Context(), func(tx *db.Tx) error { //nolint:errcheck // panics
				return d.Update(tx.Context(), func(*db.Tx) error { return nil })
			})
		})
		panics("open rows", "rows of another are open", func() {
			d.View(t.Context(), func(tx *db.Tx) error { //nolint:errcheck // panics
				rows, err := tx.Query(`SELECT 1 UNION ALL SELECT 2`)
				if err != nil {
					return err
				}
				rows.Next()
				return tx.QueryRow(`SELECT 1`).Err()
			})
		})
		var kept *db.Tx
		if err := d.View(t.Context(), func(tx *db.Tx) error { kept = tx; return nil }); err != nil {
			t.Fatal(err)
		}
		panics("kept", "after its function", func() { kept.QueryRow(`SELECT 1`) })
	})
}

// Rows that a function leaves open hurt neither the commit nor the next user of
// the same statement.
func TestForgottenRows(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		table(t, d)
		for n := range 5 {
			err := d.Update(t.Context(), func(tx *db.Tx) error {
				if err := insert(tx, n, "x"); err != nil {
					return err
				}
				rows, err := tx.Query(`SELECT id FROM thing UNION ALL SELECT id FROM thing`)
				if err != nil {
					return err
				}
				rows.Next()
				return rows.Err()
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if got := count(t, d); got != 5 {
			t.Errorf("%d rows", got)
		}
	})
}

func TestBeforeCommit(t *testing.T) {
	t.Parallel()
	d := dbtest.SQLite(t)
	table(t, d)
	var groups, after atomic.Int64
	broken := errors.New("the hook failed")
	var fail atomic.Bool
	d.BeforeCommit(func(tx *db.Tx) error {
		n := groups.Add(1)
		tx.AfterCommit(func() { after.Add(1) })
		if fail.Load() {
			return broken
		}
		return insert(tx, int(-n), "hook")
	})
	var wg sync.WaitGroup
	for n := range 300 {
		wg.Go(func() {
			if err := d.Update(t.Context(), func(tx *db.Tx) error { return insert(tx, n, "x") }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	g := groups.Load()
	if g == 0 || g > 300 || after.Load() != g {
		t.Errorf("%d groups, %d of them heard of their commit", g, after.Load())
	}
	if got := count(t, d); got != 300+int(g) {
		t.Errorf("%d rows with %d groups", got, g)
	}
	// Nothing to commit: no hook.
	if err := d.Update(t.Context(), func(*db.Tx) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	if groups.Load() != g {
		t.Error("the hook ran for a group in which nobody succeeded")
	}
	fail.Store(true)
	if err := d.Update(t.Context(), func(tx *db.Tx) error { return insert(tx, 1000, "x") }); !errors.Is(err, broken) {
		t.Errorf("the group's function was told %v", err)
	}
	if got := count(t, d); got != 300+int(g) {
		t.Errorf("%d rows after a group that failed", got)
	}
}

// A function that sends SQL for the whole transaction takes the group with it,
// and everybody in the group is told so.
func TestLostTransactionFailsTheGroup(t *testing.T) {
	t.Parallel()
	d := dbtest.SQLite(t)
	table(t, d)
	begun, release := make(chan struct{}), make(chan struct{})
	errs := make(chan error, 2)
	go func() {
		errs <- d.Update(t.Context(), func(tx *db.Tx) error {
			close(begun)
			<-release
			return insert(tx, 1, "neighbour")
		})
	}()
	<-begun
	queued := make(chan struct{})
	go func() {
		close(queued)
		errs <- d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(`ROLLBACK`)
			return err
		})
	}()
	<-queued
	close(release)
	a, b := <-errs, <-errs
	// They were in one group, or in two when the second came late. The one who
	// lost it fails in any case; the row is there exactly if its writer was told.
	if a == nil && b == nil {
		t.Error("nobody was told")
	}
	want := 0
	if a == nil || b == nil {
		want = 1
	}
	if got := count(t, d); got != want {
		t.Errorf("%d rows, with %v and %v", got, a, b)
	}
	if err := d.Update(t.Context(), func(tx *db.Tx) error { return insert(tx, 2, "next") }); err != nil {
		t.Errorf("the next group: %v", err)
	}
}

func TestRetriesLostRaces(t *testing.T) {
	t.Parallel()
	d := dbtest.Postgres(t)
	table(t, d)
	for id := range 2 {
		if err := d.Update(t.Context(), func(tx *db.Tx) error { return insert(tx, id, "x") }); err != nil {
			t.Fatal(err)
		}
	}
	// Two transactions take two rows crosswise, and wait until both hold one.
	var runs atomic.Int64
	var once [2]sync.Once
	var both, wg sync.WaitGroup
	both.Add(2)
	for me := range 2 {
		wg.Go(func() {
			err := d.Update(t.Context(), func(tx *db.Tx) error {
				runs.Add(1)
				if _, err := tx.Exec(`UPDATE thing SET name = name || 'a' WHERE id = $1`, me); err != nil {
					return err
				}
				once[me].Do(func() { both.Done(); both.Wait() })
				_, err := tx.Exec(`UPDATE thing SET name = name || 'b' WHERE id = $1`, 1-me)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if runs.Load() < 3 {
		t.Errorf("%d runs: the deadlock did not happen", runs.Load())
	}
	err := d.View(t.Context(), func(tx *db.Tx) error {
		for id := range 2 {
			var name string
			if err := tx.QueryRow(`SELECT name FROM thing WHERE id = $1`, id).Scan(&name); err != nil {
				return err
			}
			if len(name) != 3 {
				t.Errorf("row %d has %q: each transaction adds one letter, once", id, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestOpenTwiceAtOnce(t *testing.T) {
	t.Parallel()
	urls := map[string]func(t *testing.T) string{
		"sqlite":   func(t *testing.T) string { return "sqlite:" + filepath.Join(t.TempDir(), "a b?%41#.db") },
		"postgres": func(t *testing.T) string { return dbtest.PostgresURL(t) },
	}
	for name, url := range urls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := url(t)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					d, err := db.Open(t.Context(), u, db.Options{Logger: slog.New(slog.DiscardHandler), Conns: 3})
					if err != nil {
						t.Error(err)
						return
					}
					if err := d.Close(); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := filepath.Join(dir, "text.db")
	if err := os.WriteFile(text, []byte(strings.Repeat("this is not a database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]problem.Code{
		"":                                       problem.DBURL,
		"mysql://root:secret@host/x":             problem.DBURL,
		"sqlite:":                                problem.DBURL,
		"sqlite::memory:":                        problem.DBURL,
		"sqlite:" + dir + "/none/x.db":           problem.DBOpen,
		"sqlite:" + text:                         problem.DBOpen,
		"postgres://u:secret@127.0.0.1:1/x":      problem.DBOpen,
		"postgres://u:secret@host:port/x":        problem.DBURL,
		"postgres://u:secret@127.0.0.1/x?port=z": problem.DBURL,
	} {
		d, err := db.Open(t.Context(), url, db.Options{})
		if err == nil {
			d.Close()
			t.Errorf("%q was opened", url)
			continue
		}
		if !problem.Has(err, want) {
			t.Errorf("%q: %v, want %s", url, err, want)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error shows the password: %v", url, err)
		}
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	urls := map[string]string{"sqlite": "sqlite:" + filepath.Join(dir, "x.db")}
	t.Run("sqlite", func(t *testing.T) { newer(t, urls["sqlite"]) })
	t.Run("postgres", func(t *testing.T) { newer(t, dbtest.PostgresURL(t)) })
}

func newer(t *testing.T, url string) {
	d, err := db.Open(t.Context(), url, db.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	err = d.Update(t.Context(), func(tx *db.Tx) error {
		applied := "TRUE"
		if tx.Engine() == db.SQLite {
			applied = "1"
		}
		_, err := tx.Exec(`INSERT INTO goose_db_version(version_id, is_applied) VALUES (99999, ` + applied + `)`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err = db.Open(t.Context(), url, db.Options{}); !problem.Has(err, problem.DBNewer) {
		t.Errorf("opened with %v", err)
	}
}

func TestFileModeIsPrivate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	d := dbtest.Open(t, "sqlite:"+path)
	table(t, d)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		fi, err := os.Stat(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", fi.Name(), fi.Mode())
		}
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		table(t, d)
		var wg sync.WaitGroup
		var done atomic.Int64
		for n := range 50 {
			wg.Go(func() {
				err := d.Update(t.Context(), func(tx *db.Tx) error { return insert(tx, n, "x") })
				if err == nil {
					done.Add(1)
				}
			})
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := d.Update(t.Context(), func(*db.Tx) error { return nil }); !errors.Is(err, db.ErrClosed) {
			t.Errorf("Update after Close: %v", err)
		}
		if err := d.View(t.Context(), func(*db.Tx) error { return nil }); !errors.Is(err, db.ErrClosed) {
			t.Errorf("View after Close: %v", err)
		}
		if err := d.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

func TestErrNotFound(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		table(t, d)
		err := d.View(t.Context(), func(tx *db.Tx) error {
			var n int
			return tx.QueryRow(`SELECT id FROM thing WHERE id = $1`, 7).Scan(&n)
		})
		if !errors.Is(err, db.ErrNotFound) || !errors.Is(err, sql.ErrNoRows) {
			t.Error(err)
		}
	})
}

func TestIDsSortByTime(t *testing.T) {
	t.Parallel()
	last := ""
	for range 1000 {
		id := db.NewID()
		if len(id) != 36 || id <= last {
			t.Fatalf("%s after %s", id, last)
		}
		last = id
	}
	if d := time.Since(time.UnixMicro(db.Now())); d < 0 || d > time.Minute {
		t.Errorf("Now is %v away", d)
	}
}
