package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/db/dbtest"
	"github.com/firmseal/firmseal/internal/problem"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

func queue(d *db.DB) *Queue { return New(d, Options{Logger: slog.New(slog.DiscardHandler)}) }

// run runs a queue until the test, or the returned function, ends it.
func run(t testing.TB, q *Queue) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func enqueue(t testing.TB, d *db.DB, q *Queue, j Job) {
	t.Helper()
	if err := d.Update(t.Context(), func(tx *db.Tx) error { return q.Enqueue(tx, j) }); err != nil {
		t.Error(err)
	}
}

func rows(t testing.TB, d *db.DB, state string) (out []Info) {
	t.Helper()
	err := d.View(t.Context(), func(tx *db.Tx) (err error) {
		out, err = List(tx, state, "", 1000)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return out
}

// until reads again after each change of the jobs, until ok.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestEveryJobIsDoneOnce(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		q := queue(d)
		var mu sync.Mutex
		done := map[string]int{}
		var now, most atomic.Int64
		q.Handle("k", HandlerOptions{Concurrency: 3}, func(_ context.Context, j Job) error {
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			mu.Lock()
			defer mu.Unlock()
			done[string(j.Payload)]++
			return nil
		})
		// Some wait already, some come while it runs, from many sides.
		for n := range 20 {
			enqueue(t, d, q, Job{Kind: "k", Payload: fmt.Append(nil, "before ", n)})
		}
		run(t, q)
		var wg sync.WaitGroup
		for n := range 60 {
			wg.Go(func() { enqueue(t, d, q, Job{Kind: "k", Payload: fmt.Append(nil, "while ", n)}) })
		}
		wg.Wait()
		until(t, "all rows gone", func() bool { return len(rows(t, d, "")) == 0 })
		mu.Lock()
		defer mu.Unlock()
		if len(done) != 80 {
			t.Errorf("%d jobs done, want 80", len(done))
		}
		for p, n := range done {
			if n != 1 {
				t.Errorf("%s was done %d times", p, n)
			}
		}
		if most.Load() > 3 {
			t.Errorf("%d at once, want at most 3", most.Load())
		}
	})
}

func TestRolledBackJobNeverRuns(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		q := queue(d)
		ran := make(chan string, 10)
		q.Handle("k", HandlerOptions{}, func(_ context.Context, j Job) error { ran <- string(j.Payload); return nil })
		run(t, q)
		undo := errors.New("undo")
		err := d.Update(t.Context(), func(tx *db.Tx) error {
			if err := q.Enqueue(tx, Job{Kind: "k", Payload: []byte("undone")}); err != nil {
				return err
			}
			return undo
		})
		if !errors.Is(err, undo) {
			t.Fatal(err)
		}
		enqueue(t, d, q, Job{Kind: "k", Payload: []byte("kept")})
		if got := <-ran; got != "kept" {
			t.Errorf("ran %q", got)
		}
	})
}

func TestKeyIsUniqueWhileUnfinished(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		q := queue(d)
		started, release := make(chan string), make(chan struct{})
		q.Handle("k", HandlerOptions{}, func(_ context.Context, j Job) error {
			started <- string(j.Payload)
			<-release
			return nil
		})
		for n := range 3 {
			enqueue(t, d, q, Job{Kind: "k", Key: "one", Payload: fmt.Append(nil, n)})
		}
		if got := rows(t, d, ""); len(got) != 1 {
			t.Fatalf("%d rows of one key", len(got))
		}
		run(t, q)
		if got := <-started; got != "2" {
			t.Errorf("ran with payload %q, want the newest", got)
		}
		// While it runs: once more afterwards, not at the same time.
		for range 3 {
			enqueue(t, d, q, Job{Kind: "k", Key: "one", Payload: []byte("again")})
		}
		if got := rows(t, d, ""); len(got) != 1 || got[0].State != "leased" {
			t.Fatalf("rows %+v", got)
		}
		release <- struct{}{}
		if got := <-started; got != "again" {
			t.Errorf("then ran with %q", got)
		}
		release <- struct{}{}
		until(t, "all rows gone", func() bool { return len(rows(t, d, "")) == 0 })
	})
}

func TestErrors(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		q := queue(d)
		var retried atomic.Int64
		q.Handle("retry", HandlerOptions{MaxAttempts: 1}, func(_ context.Context, j Job) error {
			if j.Attempt != 1 {
				t.Errorf("waiting counted as attempt %d", j.Attempt)
			}
			if retried.Add(1) < 5 {
				return RetryAfter(errors.New("not yet"), time.Millisecond)
			}
			return nil
		})
		q.Handle("give up", HandlerOptions{}, func(context.Context, Job) error {
			return fmt.Errorf("wrapped: %w", GiveUp(errors.New("hopeless")))
		})
		q.Handle("panic", HandlerOptions{}, func(context.Context, Job) error { panic("a bug") })
		q.Handle("fail", HandlerOptions{MaxAttempts: 1}, func(context.Context, Job) error { return errors.New("once is enough") })
		run(t, q)
		for _, kind := range []string{"retry", "give up", "panic", "fail"} {
			enqueue(t, d, q, Job{Kind: kind, Key: "x"})
		}
		until(t, "three dead jobs and no other", func() bool { return len(rows(t, d, "dead")) == 3 && len(rows(t, d, "")) == 3 })
		if retried.Load() != 5 {
			t.Errorf("tried %d times", retried.Load())
		}
		dead := map[string]Info{}
		for _, i := range rows(t, d, "dead") {
			dead[i.Kind] = i
		}
		if e := dead["give up"].Error; e != "wrapped: hopeless" {
			t.Errorf("error %q", e)
		}
		// The dead one does not block its key, and comes back when a person asks.
		err := d.Update(t.Context(), func(tx *db.Tx) error { return Revive(tx, dead["fail"].ID) })
		if err != nil {
			t.Fatal(err)
		}
		until(t, "dead again", func() bool {
			for _, i := range rows(t, d, "dead") {
				if i.Kind == "fail" {
					return i.Updated > dead["fail"].Updated
				}
			}
			return false
		})
		err = d.Update(t.Context(), func(tx *db.Tx) error { return Revive(tx, "none") })
		if !problem.Has(err, problem.NotFound) {
			t.Errorf("reviving nothing: %v", err)
		}
	})
}

func TestRunAt(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		q := queue(d)
		ran := make(chan time.Time, 1)
		q.Handle("k", HandlerOptions{}, func(context.Context, Job) error { ran <- time.Now(); return nil })
		run(t, q)
		at := time.Now().Add(150 * time.Millisecond).Truncate(time.Microsecond)
		enqueue(t, d, q, Job{Kind: "k", RunAt: at})
		if got := <-ran; got.Before(at) {
			t.Errorf("ran %v early", at.Sub(got))
		}
	})
}

// A handler that is at work when the queue is stopped ends as if nothing had
// happened: a use of a key is not cut off. Nothing is begun after the stop.
func TestStopLetsHandlersFinish(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		q := queue(d)
		begun := make(chan string, 10)
		cut := make(chan error, 10)
		q.Handle("k", HandlerOptions{Concurrency: 1}, func(ctx context.Context, j Job) error {
			begun <- j.Key
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond): // the key's answer
			}
			cut <- ctx.Err()
			return ctx.Err()
		})
		stop := run(t, q)
		enqueue(t, d, q, Job{Kind: "k", Key: "under way"})
		<-begun
		enqueue(t, d, q, Job{Kind: "k", Key: "next"})
		stop()
		if err := <-cut; err != nil {
			t.Errorf("the handler was cut off: %v", err)
		}
		if len(begun) > 0 {
			t.Errorf("%s was begun after the stop", <-begun)
		}
		if left := rows(t, d, ""); len(left) != 1 || left[0].Key != "next" || left[0].State != "ready" || left[0].Attempt != 0 {
			t.Errorf("left: %+v", left)
		}
	})
}

// A stop lets the handlers end; what they did not finish is done by the next
// process, with the attempt not counted.
func TestStopAndStart(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		first := queue(d)
		first.grace = 50 * time.Millisecond
		begun := make(chan struct{}, 10)
		first.Handle("k", HandlerOptions{Concurrency: 1}, func(ctx context.Context, j Job) error {
			begun <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		})
		stop := run(t, first)
		enqueue(t, d, first, Job{Kind: "k", Key: "begun"})
		<-begun
		enqueue(t, d, first, Job{Kind: "k", Key: "waiting"})
		stop()
		got := rows(t, d, "ready")
		if len(got) != 2 || got[0].Attempt != 0 || got[1].Attempt != 0 {
			t.Fatalf("after the stop: %+v", rows(t, d, ""))
		}
		second := queue(d)
		ran := make(chan Job, 10)
		second.Handle("k", HandlerOptions{}, func(_ context.Context, j Job) error { ran <- j; return nil })
		run(t, second)
		for range 2 {
			if j := <-ran; j.Attempt != 1 {
				t.Errorf("%s is at attempt %d", j.Key, j.Attempt)
			}
		}
	})
}

// crash leaves a job behind as a killed process does: leased, with nobody there.
func crash(t *testing.T, d *db.DB, q *Queue, key string, attempts int, leaseEnd time.Time) {
	t.Helper()
	enqueue(t, d, q, Job{Kind: "k", Key: key})
	err := d.Update(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(`UPDATE job SET state = 'leased', lease = 'the dead one', attempt = $1, run_at = $2 WHERE key = $3`, attempts, leaseEnd.UnixMicro(), key)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTakesOverFromTheDead(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		q := queue(d)
		ran := make(chan Job, 10)
		q.Handle("k", HandlerOptions{MaxAttempts: 3}, func(_ context.Context, j Job) error { ran <- j; return nil })
		end := time.Now().Add(-time.Second)
		if d.Engine() == db.SQLite {
			end = time.Now().Add(time.Hour) // nobody else can hold it: not waited for
		}
		crash(t, d, q, "survivor", 2, end)
		crash(t, d, q, "killer", 3, end)
		run(t, q)
		if j := <-ran; j.Key != "survivor" || j.Attempt != 3 {
			t.Errorf("took over %+v", j)
		}
		until(t, "the job that kills its process is dead", func() bool {
			dead := rows(t, d, "dead")
			return len(dead) == 1 && dead[0].Key == "killer"
		})
	})
}

func TestRespectsALivingLease(t *testing.T) {
	t.Parallel()
	d := dbtest.Postgres(t)
	q := queue(d)
	ran := make(chan Job, 10)
	q.Handle("k", HandlerOptions{}, func(_ context.Context, j Job) error { ran <- j; return nil })
	crash(t, d, q, "held", 1, time.Now().Add(time.Hour))
	enqueue(t, d, q, Job{Kind: "k", Key: "free"})
	run(t, q)
	if j := <-ran; j.Key != "free" {
		t.Errorf("ran %s", j.Key)
	}
	until(t, "only the held one is left", func() bool { return len(rows(t, d, "")) == 1 })
	if got := rows(t, d, "leased"); len(got) != 1 || got[0].Attempt != 1 {
		t.Errorf("left: %+v", rows(t, d, ""))
	}
}

// Two replicas on one database share the work and double none of it.
func TestReplicas(t *testing.T) {
	t.Parallel()
	d := dbtest.Postgres(t)
	var mu sync.Mutex
	done := map[string]int{}
	for range 2 {
		q := queue(d)
		q.Handle("k", HandlerOptions{Concurrency: 4}, func(_ context.Context, j Job) error {
			mu.Lock()
			defer mu.Unlock()
			done[j.Key]++
			return nil
		})
		run(t, q)
	}
	outside := queue(d) // enqueues and runs nothing
	var wg sync.WaitGroup
	for n := range 100 {
		wg.Go(func() { enqueue(t, d, outside, Job{Kind: "k", Key: fmt.Sprint(n)}) })
	}
	wg.Wait()
	until(t, "all rows gone", func() bool { return len(rows(t, d, "")) == 0 })
	mu.Lock()
	defer mu.Unlock()
	for n := range 100 {
		if c := done[fmt.Sprint(n)]; c != 1 {
			t.Errorf("job %d was done %d times", n, c)
		}
	}
}

// A handler whose lease was taken away is told to stop, and what it then says
// changes nothing.
func TestLostLease(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		q := queue(d)
		begun, ended := make(chan struct{}), make(chan struct{})
		q.Handle("k", HandlerOptions{}, func(ctx context.Context, _ Job) error {
			close(begun)
			<-ctx.Done()
			defer close(ended)
			return nil // claims that it is done
		})
		run(t, q)
		enqueue(t, d, q, Job{Kind: "k", Key: "x"})
		<-begun
		err := d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(`UPDATE job SET lease = 'another', run_at = $1`, db.Now()+3600e6)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		q.renewOnce(t.Context())
		<-ended
		until(t, "the handler has been written off", func() bool {
			q.mu.Lock()
			defer q.mu.Unlock()
			return len(q.active) == 0
		})
		if got := rows(t, d, "leased"); len(got) != 1 {
			t.Errorf("the other one's row is gone: %+v", rows(t, d, ""))
		}
	})
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(-3, 1<<40).Draw(t, "attempt")
		low, high := backoff(n, 0), backoff(n, 0.9999999)
		if low < firstPause*3/4 || high > lastPause*5/4 || high < low || high > low*5/3+time.Nanosecond*2 {
			t.Fatalf("attempt %d pauses %v to %v", n, low, high)
		}
		r := rapid.Float64Range(0, 0.9999999).Draw(t, "random")
		if p := backoff(n, r); p < low || p > high {
			t.Fatalf("%v is not in %v to %v", p, low, high)
		}
		if backoff(n+1, r) < backoff(n, r) {
			t.Fatalf("attempt %d pauses shorter than the one before", n+1)
		}
	})
}

// Whatever happens, a job ends after at most its attempts, unless it was only
// waiting or stopped, and an error never makes it vanish.
func TestDecide(t *testing.T) {
	t.Parallel()
	plain := errors.New("x")
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 50).Draw(t, "limit")
		attempt := rapid.IntRange(1, 60).Draw(t, "attempt")
		stopping := rapid.Bool().Draw(t, "stopping")
		err := rapid.SampledFrom([]error{nil, plain, GiveUp(plain), RetryAfter(plain, time.Second), fmt.Errorf("w: %w", GiveUp(plain)), RetryAfter(plain, -1)}).Draw(t, "err")
		o := decide(err, attempt, limit, stopping, rapid.Float64Range(0, 0.99).Draw(t, "random"))
		if (o.state == "done") != (err == nil) {
			t.Fatalf("%v gives %s", err, o.state)
		}
		if o.pause < 0 {
			t.Fatalf("pause %v", o.pause)
		}
		if o.state == "ready" && o.count && attempt >= limit {
			t.Fatalf("attempt %d of %d is followed by another", attempt, limit)
		}
		if errors.Is(err, plain) && o.text == "" {
			t.Fatal("the error's text is lost")
		}
	})
}

// A pause that is shorter than the poll is kept although the end of the job
// wakes the dispatcher meanwhile.
func TestShortPauseIsNotRoundedUpToThePoll(t *testing.T) {
	t.Parallel()
	d := dbtest.SQLite(t)
	q := queue(d)
	done := make(chan struct{})
	var tries int
	q.Handle("k", HandlerOptions{}, func(context.Context, Job) error {
		if tries++; tries <= 10 {
			return RetryAfter(errors.New("not yet"), time.Millisecond)
		}
		close(done)
		return nil
	})
	run(t, q)
	begun := time.Now()
	enqueue(t, d, q, Job{Kind: "k"})
	<-done
	// Ten polls are twenty seconds.
	if took := time.Since(begun); took > 5*idlePoll {
		t.Errorf("ten pauses of a millisecond took %v", took)
	}
}

// A handler that finishes its job in a transaction of its own leaves no row, and
// none when that transaction fails; what was enqueued meanwhile still runs.
func TestFinishInTheHandlersTransaction(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		q := queue(d)
		failed := errors.New("no")
		var runs atomic.Int64
		done := make(chan struct{}, 8)
		rows := func(tx *db.Tx) (n int) {
			if err := tx.QueryRow(`SELECT count(*) FROM job WHERE kind = 'finish'`).Scan(&n); err != nil {
				t.Error(err)
			}
			return n
		}
		q.Handle("finish", HandlerOptions{}, func(ctx context.Context, j Job) error {
			defer func() { done <- struct{}{} }()
			if runs.Add(1) == 1 {
				// Rolled back, so the job is still there, and then finished.
				err := d.Update(ctx, func(tx *db.Tx) error {
					if err := Finish(ctx, tx); err != nil {
						return err
					}
					return failed
				})
				if !errors.Is(err, failed) {
					t.Errorf("got %v", err)
				}
				if err := d.View(ctx, func(tx *db.Tx) error {
					if n := rows(tx); n != 1 {
						t.Errorf("%d rows after the rollback", n)
					}
					return nil
				}); err != nil {
					t.Error(err)
				}
				// Asked for once more while it runs.
				if err := d.Update(ctx, func(tx *db.Tx) error { return q.Enqueue(tx, Job{Kind: "finish", Key: "k"}) }); err != nil {
					t.Error(err)
				}
			}
			return d.Update(ctx, func(tx *db.Tx) error { return Finish(ctx, tx) })
		})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- q.Run(ctx) }()
		if err := d.Update(t.Context(), func(tx *db.Tx) error { return q.Enqueue(tx, Job{Kind: "finish", Key: "k"}) }); err != nil {
			t.Fatal(err)
		}
		<-done
		<-done
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if err := d.View(t.Context(), func(tx *db.Tx) error {
			if n := rows(tx); n != 0 || runs.Load() != 2 {
				t.Errorf("%d rows after %d runs", n, runs.Load())
			}
			return Finish(t.Context(), tx) // of nobody: nothing to do
		}); err != nil {
			t.Error(err)
		}
	})
}

// A process that was cut off for longer than its lease commits nothing of what
// it did in the job's name, and leaves the job to the other one.
func TestFinishNeedsTheLease(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		q := queue(d)
		got := make(chan error, 1)
		q.Handle("k", HandlerOptions{}, func(ctx context.Context, j Job) error {
			if err := d.Update(ctx, func(tx *db.Tx) error {
				_, err := tx.Exec(`UPDATE job SET lease = 'another' WHERE id = $1`, j.ID)
				return err
			}); err != nil {
				return err
			}
			err := d.Update(ctx, func(tx *db.Tx) error {
				if _, err := tx.Exec(`UPDATE job SET error = 'done' WHERE id = $1`, j.ID); err != nil {
					return err
				}
				return Finish(ctx, tx)
			})
			got <- err
			return err
		})
		stop := run(t, q)
		enqueue(t, d, q, Job{Kind: "k", Key: "x"})
		if err := <-got; !errors.Is(err, ErrLost) {
			t.Errorf("finishing a lost job: %v", err)
		}
		stop()
		if all := rows(t, d, "leased"); len(all) != 1 || all[0].Error != "" {
			t.Errorf("the other one's job is %+v", all)
		}
	})
}
