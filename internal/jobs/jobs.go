// Package jobs runs work that must happen although the process may stop: it is
// written down in the transaction that makes it necessary, and is done when its
// row is gone.
//
// # A job's row
//
//	ready   waits for its time; whoever is free leases it
//	leased  somebody works on it; when the lease runs out, it is free again
//	dead    was tried too often, or gave up; stays until a person revives it
//
// A job runs at least once. It may run twice, even at the same time where a
// process is cut off from the database for longer than its lease. So a handler
// looks at its own records first and goes on from there; what may happen only
// once is guarded there, not here.
//
// # No waiting for a poll
//
// A job that is enqueued in a process which runs its kind is born leased and
// handed over when the transaction is durable: no second transaction, no delay.
// Other jobs wake their dispatcher at the commit or at their time. A slow poll
// finds what another replica enqueued.
//
// # Keys
//
// A kind has at most one unfinished job of a key. Enqueuing it again while it
// runs makes it run once more afterwards, because the running one may have
// looked already.
//
// # What a crash leaves behind
//
// A leased row. On SQLite, where one process uses the file, it is freed at the
// next start; on PostgreSQL, when its lease has run out. The attempt was counted
// before it began, so that a job which kills its process dies after as many
// attempts as one that fails.
package jobs

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
)

const (
	// leaseTime is how long a job is held without a sign of its process. Clocks
	// of replicas must agree much better than that.
	leaseTime = 30 * time.Second
	// renewEvery leaves two more tries before a lease runs out.
	renewEvery = leaseTime / 3
	// idlePoll finds what another replica enqueued or left behind.
	idlePoll = 2 * time.Second
	// pollPause is how long a dispatcher rests when the database fails.
	pollPause = 500 * time.Millisecond
	// grace is what running handlers are given to finish when Run is told to end.
	// A use of a key that is cut off leaves a request in doubt, which only a
	// person can settle; a slow HSM or cloud answers within 30 s or not at all.
	grace = 30 * time.Second
	// maxError bounds the text of an error in a row.
	maxError = 4 << 10
)

// Job is a piece of work. Kind is required; of the rest Enqueue reads Key,
// Payload and RunAt.
type Job struct {
	ID      string
	Kind    string
	Key     string // unique among the kind's unfinished jobs; empty for none
	Payload []byte
	RunAt   time.Time // not before; zero for at once
	Attempt int       // 1 for the first
}

// Handler does a job. Returning nil finishes it. GiveUp and RetryAfter say what
// to do about an error; after another one the job is tried again later, up to
// MaxAttempts. ctx ends when the lease is lost, or when Run has been told to end
// and the grace period is over: the handler then stops where it is safe, and
// the attempt does not count.
type Handler func(ctx context.Context, j Job) error

// HandlerOptions have useful zero values.
type HandlerOptions struct {
	Concurrency int // jobs of the kind at once in this process; default 4
	MaxAttempts int // default 20: a bit over two hours with the pauses between
}

// Options have useful zero values.
type Options struct {
	Logger *slog.Logger // default slog.Default()
}

// Queue enqueues and runs jobs. It is safe for concurrent use.
type Queue struct {
	db     *db.DB
	log    *slog.Logger
	worker string // names this process's leases
	grace  time.Duration

	// mu guards what follows.
	mu      sync.Mutex
	kinds   map[string]*kind
	running bool
	active  map[string]context.CancelFunc // by job id: leased by us and running
	renewed time.Time                     // when our leases were last seen to hold
}

type kind struct {
	name string
	o    HandlerOptions
	fn   Handler
	kick chan struct{} // one token: something below has changed

	// mu guards what follows.
	mu    sync.Mutex
	local []Job // leased by us, not yet started
	busy  int
}

// New makes a queue.
func New(d *db.DB, o Options) *Queue {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Queue{db: d, log: o.Logger, worker: db.NewID(), grace: grace, kinds: make(map[string]*kind), active: make(map[string]context.CancelFunc)}
}

// Handle registers the handler of a kind, before Run.
func (q *Queue) Handle(name string, o HandlerOptions, fn Handler) {
	if o.Concurrency <= 0 {
		o.Concurrency = 4
	}
	if o.MaxAttempts <= 0 {
		o.MaxAttempts = 20
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running || q.kinds[name] != nil {
		panic("jobs: kind " + name + " registered twice, or while running")
	}
	q.kinds[name] = &kind{name: name, o: o, fn: fn, kick: make(chan struct{}, 1)}
}

func topic(kind string) string { return "jobs." + kind }

// Enqueue writes a job in the caller's transaction.
func (q *Queue) Enqueue(tx *db.Tx, j Job) error {
	if j.Kind == "" {
		panic("jobs: a job without a kind")
	}
	now := db.Now()
	j.ID = db.NewID()
	key := j.Key
	if key == "" {
		key = j.ID
	}
	if j.Payload == nil {
		j.Payload = []byte{}
	}
	state, lease, runAt := "ready", "", max(now, j.RunAt.UnixMicro())
	k := q.taker(j.Kind)
	if k != nil && runAt == now && k.room() {
		j.Attempt = 1
		state, lease, runAt = "leased", q.worker, now+leaseTime.Microseconds()
	}
	var id string
	err := tx.QueryRow(`INSERT INTO job(id, kind, key, payload, state, attempt, run_at, lease, again, error, created, updated)
		VALUES ($1,$2,$3,$4,$5,$6,$7,$8,0,'',$9,$9)
		ON CONFLICT (kind, key) WHERE state <> 'dead' DO UPDATE SET payload = excluded.payload, updated = excluded.updated,
			again = CASE WHEN job.state = 'leased' THEN 1 ELSE 0 END,
			run_at = CASE WHEN job.state = 'leased' THEN job.run_at WHEN $10 < job.run_at THEN $10 ELSE job.run_at END
		RETURNING id`,
		j.ID, j.Kind, key, j.Payload, state, j.Attempt, runAt, lease, now, max(now, j.RunAt.UnixMicro())).Scan(&id)
	if err != nil {
		return fmt.Errorf("enqueuing %s %s: %w", j.Kind, j.Key, err)
	}
	if id == j.ID && state == "leased" {
		tx.AfterCommit(func() { k.give(j) })
		return nil
	}
	tx.Signal(topic(j.Kind))
	return nil
}

// taker gives the kind if this process runs it now.
func (q *Queue) taker(name string) *kind {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.running {
		return nil
	}
	return q.kinds[name]
}

// room says whether one more job may wait here instead of in the database.
func (k *kind) room() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.busy+len(k.local) < 2*k.o.Concurrency
}

func (k *kind) give(j Job) {
	k.mu.Lock()
	k.local = append(k.local, j)
	k.mu.Unlock()
	k.kicked()
}

func (k *kind) kicked() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// Run works until ctx ends, and returns when the last handler has. From then on
// it starts no job; those that run may finish for a grace period of 30 s before
// their context ends. Jobs that were taken and not finished are free again then.
func (q *Queue) Run(ctx context.Context) error {
	if err := q.begin(ctx); err != nil {
		return err
	}
	var dispatchers, handlers sync.WaitGroup
	working, cut := context.WithCancel(context.WithoutCancel(ctx)) // of the handlers
	defer cut()
	q.mu.Lock()
	for _, k := range q.kinds {
		dispatchers.Go(func() { q.dispatch(ctx, working, k, &handlers) })
	}
	q.mu.Unlock()
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	var renewer sync.WaitGroup
	renewer.Go(func() { q.renew(renewing) })

	<-ctx.Done()
	q.mu.Lock()
	q.running = false
	q.mu.Unlock()
	dispatchers.Wait()
	patience := time.AfterFunc(q.grace, cut)
	handlers.Wait()
	patience.Stop()
	stop()
	renewer.Wait()
	return q.release(context.WithoutCancel(ctx))
}

// begin frees what a dead predecessor held, where nobody else can hold
// anything, and lets Enqueue hand over.
func (q *Queue) begin(ctx context.Context) error {
	q.mu.Lock()
	if q.running {
		q.mu.Unlock()
		panic("jobs: Run called twice")
	}
	q.mu.Unlock()
	if q.db.Engine() == db.SQLite {
		err := q.db.Update(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(`UPDATE job SET state = 'ready', lease = '', run_at = $1, updated = $1 WHERE state = 'leased'`, db.Now())
			return err
		})
		if err != nil {
			return fmt.Errorf("freeing the jobs of the process before: %w", err)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running, q.renewed = true, time.Now()
	return nil
}

// release frees the jobs that were taken and never started.
func (q *Queue) release(ctx context.Context) error {
	q.mu.Lock()
	kinds := make([]*kind, 0, len(q.kinds))
	for _, k := range q.kinds {
		kinds = append(kinds, k)
	}
	q.mu.Unlock()
	for _, k := range kinds {
		k.mu.Lock()
		k.local = nil
		k.mu.Unlock()
	}
	err := q.db.Update(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(`UPDATE job SET state = 'ready', lease = '', run_at = $1, updated = $1, attempt = attempt - 1 WHERE lease = $2 AND state = 'leased'`, db.Now(), q.worker)
		return err
	})
	if err != nil {
		return fmt.Errorf("freeing the jobs of this process: %w", err)
	}
	return nil
}

// dispatch starts the jobs of one kind until ctx ends. They run under working,
// which outlasts it.
func (q *Queue) dispatch(ctx, working context.Context, k *kind, handlers *sync.WaitGroup) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	look := true       // there may be free jobs in the database
	var next time.Time // when to look without being woken
	for ctx.Err() == nil {
		changed := q.db.Changed(topic(k.name))
		for ctx.Err() == nil {
			j, ok := k.take()
			if !ok {
				break
			}
			q.start(working, k, j, handlers)
		}
		switch free := k.free(); {
		case free == 0:
			// Whoever ends a job kicks, and then there may be more.
			look, next = true, time.Now().Add(idlePoll)
		case look:
			js, due, err := q.lease(ctx, k, free)
			switch {
			case err != nil:
				if ctx.Err() != nil {
					return
				}
				q.log.ErrorContext(ctx, "jobs cannot be leased, trying again", "kind", k.name, "error", err)
				next = time.Now().Add(pollPause)
			default:
				for _, j := range js {
					k.begin()
					q.start(working, k, j, handlers)
				}
				look = len(js) == free
				next = time.Now().Add(min(due, idlePoll))
			}
		}
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
		case <-k.kick:
		case <-changed:
			look = true
		case <-timer.C:
			look = true
		}
	}
}

// take gives a job that was born here, if there is a free hand for it.
func (k *kind) take() (Job, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.local) == 0 || k.busy >= k.o.Concurrency {
		return Job{}, false
	}
	j := k.local[0]
	k.local = k.local[1:]
	k.busy++
	return j, true
}

func (k *kind) begin() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.busy++
}

func (k *kind) end() {
	k.mu.Lock()
	k.busy--
	k.mu.Unlock()
	k.kicked()
}

func (k *kind) free() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(0, k.o.Concurrency-k.busy-len(k.local))
}

// lease takes up to n jobs that are due, and says when the next one will be.
func (q *Queue) lease(ctx context.Context, k *kind, n int) (js []Job, due time.Duration, err error) {
	err = q.db.Update(ctx, func(tx *db.Tx) error {
		js, due = nil, idlePoll
		now := db.Now()
		rows, err := tx.Query(`UPDATE job SET state = 'leased', lease = $1, attempt = attempt + 1, run_at = $2, updated = $3
			WHERE id IN (SELECT id FROM job WHERE kind = $4 AND state <> 'dead' AND run_at <= $3 ORDER BY run_at, id LIMIT $5`+tx.ForUpdateSkipLocked()+`)
			RETURNING id, key, payload, attempt`, q.worker, now+leaseTime.Microseconds(), now, k.name, n)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			j := Job{Kind: k.name}
			if err := rows.Scan(&j.ID, &j.Key, &j.Payload, &j.Attempt); err != nil {
				return err
			}
			if j.Key == j.ID {
				j.Key = ""
			}
			js = append(js, j)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		var next int64
		err = tx.QueryRow(`SELECT run_at FROM job WHERE kind = $1 AND state <> 'dead' ORDER BY run_at LIMIT 1`, k.name).Scan(&next)
		if errors.Is(err, db.ErrNotFound) {
			return nil
		}
		due = max(0, time.Duration(next-now)*time.Microsecond)
		return err
	})
	return js, due, err
}

// start runs one job in its own goroutine. The caller has counted it.
func (q *Queue) start(ctx context.Context, k *kind, j Job, handlers *sync.WaitGroup) {
	jctx, cancel := context.WithCancel(ctx)
	q.mu.Lock()
	q.active[j.ID] = cancel
	q.mu.Unlock()
	handlers.Go(func() {
		defer k.end()
		defer func() {
			cancel()
			q.mu.Lock()
			delete(q.active, j.ID)
			q.mu.Unlock()
		}()
		r := &runningJob{q: q, j: j}
		var err error
		if j.Attempt > k.o.MaxAttempts {
			err = GiveUp(fmt.Errorf("its process ended %d times in the middle of it", k.o.MaxAttempts))
		} else {
			err = q.call(context.WithValue(jctx, runningKey{}, r), k, j)
		}
		if err == nil && r.finished.Load() {
			return // its row was settled with the handler's own records
		}
		o := decide(err, j.Attempt, k.o.MaxAttempts, ctx.Err() != nil, rand.Float64())
		if o.state == "dead" {
			q.log.ErrorContext(ctx, "job is dead", "kind", j.Kind, "key", j.Key, "job", j.ID, "attempt", j.Attempt, "error", err)
		}
		q.settle(jctx, ctx, j, o)
	})
}

// runningJob is in the context of a handler.
type runningJob struct {
	q        *Queue
	j        Job
	finished atomic.Bool
}

type runningKey struct{}

// ErrLost says that the job is no longer leased by this process.
var ErrLost = errors.New("the job is another process's now")

// Finish ends the job whose handler was given ctx, in the transaction that makes
// it unnecessary: no second transaction is needed for its row, and no crash
// leaves a job for work that is done. The handler then has nothing left to do
// but return nil. Where the lease is lost it is ErrLost, and the transaction must
// not be committed: another process does the job. Outside of a handler it does
// nothing.
func Finish(ctx context.Context, tx *db.Tx) error {
	r, ok := ctx.Value(runningKey{}).(*runningJob)
	if !ok {
		return nil
	}
	ours, err := r.q.write(tx, r.j, outcome{state: "done"})
	if err == nil && !ours {
		err = ErrLost
	}
	if err != nil {
		return fmt.Errorf("finishing %s %s: %w", r.j.Kind, r.j.Key, err)
	}
	tx.AfterCommit(func() { r.finished.Store(true) })
	return nil
}

// call runs the handler. One that panics has a fault that another attempt would
// meet again.
func (q *Queue) call(ctx context.Context, k *kind, j Job) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = GiveUp(fmt.Errorf("panic: %v\n%s", v, debug.Stack()))
		}
	}()
	return k.fn(ctx, j)
}

// outcome is what becomes of a job's row.
type outcome struct {
	state string // "done", "ready" or "dead"
	pause time.Duration
	count bool // the attempt counts
	text  string
}

// decide is pure: what an attempt's error means for the job.
func decide(err error, attempt, limit int, stopping bool, random float64) outcome {
	if err == nil {
		return outcome{state: "done"}
	}
	text := err.Error()
	if len(text) > maxError {
		text = text[:maxError]
	}
	var give *giveUp
	var retry *retryAfter
	switch {
	case errors.As(err, &give):
		return outcome{state: "dead", count: true, text: text}
	case stopping:
		return outcome{state: "ready", text: text}
	case errors.As(err, &retry):
		return outcome{state: "ready", pause: retry.pause, text: text}
	case attempt >= limit:
		return outcome{state: "dead", count: true, text: text}
	}
	return outcome{state: "ready", pause: backoff(attempt, random), count: true, text: text}
}

const (
	firstPause = time.Second
	lastPause  = 10 * time.Minute
)

// backoff doubles from firstPause to lastPause, and is spread by a quarter to
// both sides so that what failed together does not come again together.
// random is in [0, 1).
func backoff(attempt int, random float64) time.Duration {
	pause := lastPause
	if shift := max(attempt, 1) - 1; shift < 20 {
		pause = min(pause, firstPause<<shift)
	}
	return pause*3/4 + time.Duration(random*float64(pause/2))
}

// settle writes what became of a job, and tries until it is written or the
// lease is lost: the row would else be held for as long as this process lives.
func (q *Queue) settle(leased, stopping context.Context, j Job, o outcome) {
	ctx := context.WithoutCancel(stopping)
	for {
		err := q.db.Update(ctx, func(tx *db.Tx) error {
			_, err := q.write(tx, j, o) // whoever has it now settles it
			return err
		})
		if err == nil {
			return
		}
		q.log.ErrorContext(ctx, "a job's end cannot be written, trying again", "kind", j.Kind, "job", j.ID, "error", err)
		select {
		case <-leased.Done(): // lost, or stopping: whoever takes it next decides
			return
		case <-time.After(pollPause):
		}
	}
}

// write touches the row only while it is ours, and says whether it was.
func (q *Queue) write(tx *db.Tx, j Job, o outcome) (ours bool, err error) {
	now := db.Now()
	if o.state == "done" {
		res, err := tx.Exec(`DELETE FROM job WHERE id = $1 AND lease = $2 AND again = 0`, j.ID, q.worker)
		if err != nil {
			return false, err
		}
		if n, err := res.RowsAffected(); err != nil || n > 0 {
			return n > 0, err
		}
		// Enqueued again while it ran, or not ours any more.
		tx.Signal(topic(j.Kind))
		res, err = tx.Exec(`UPDATE job SET state = 'ready', lease = '', again = 0, attempt = 0, error = '', run_at = $1, updated = $1 WHERE id = $2 AND lease = $3`, now, j.ID, q.worker)
		return changed(res, err)
	}
	uncount := 0
	if !o.count {
		uncount = 1
	}
	tx.Signal(topic(j.Kind))
	// Enqueued again while it ran means: now, and from the start. Dead stays dead
	// only if nobody asked again.
	res, err := tx.Exec(`UPDATE job SET lease = '', again = 0, error = $1, updated = $2,
			state = CASE WHEN again = 1 THEN 'ready' ELSE $3 END,
			run_at = CASE WHEN again = 1 THEN CAST($2 AS BIGINT) ELSE CAST($4 AS BIGINT) END,
			attempt = CASE WHEN again = 1 THEN 0 ELSE attempt - $5 END
		WHERE id = $6 AND lease = $7`, o.text, now, o.state, now+o.pause.Microseconds(), uncount, j.ID, q.worker)
	return changed(res, err)
}

// changed says whether a statement met its row.
func changed(res sql.Result, err error) (bool, error) {
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

// renew keeps our leases, and ends the handlers of those that are lost.
func (q *Queue) renew(ctx context.Context) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			q.renewOnce(ctx)
		}
	}
}

func (q *Queue) renewOnce(ctx context.Context) {
	q.mu.Lock()
	before := make([]string, 0, len(q.active))
	for id := range q.active {
		before = append(before, id)
	}
	q.mu.Unlock()
	var held map[string]bool
	at := time.Now()
	err := q.db.Update(ctx, func(tx *db.Tx) error {
		held = make(map[string]bool)
		rows, err := tx.Query(`UPDATE job SET run_at = $1 WHERE lease = $2 AND state = 'leased' RETURNING id`, at.Add(leaseTime).UnixMicro(), q.worker)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				return err
			}
			held[id] = true
		}
		return rows.Err()
	})
	q.mu.Lock()
	defer q.mu.Unlock()
	if err == nil {
		q.renewed = at
	} else if ctx.Err() == nil {
		q.log.ErrorContext(ctx, "leases cannot be renewed", "error", err)
	}
	outdated := at.Sub(q.renewed) > leaseTime
	for _, id := range before {
		if cancel := q.active[id]; cancel != nil && (outdated || err == nil && !held[id]) {
			cancel()
		}
	}
}

type giveUp struct{ err error }

func (e *giveUp) Error() string { return e.err.Error() }
func (e *giveUp) Unwrap() error { return e.err }

// GiveUp makes an error after which a job is dead at once: another attempt
// would fail in the same way.
func GiveUp(err error) error { return &giveUp{err} }

type retryAfter struct {
	err   error
	pause time.Duration
}

func (e *retryAfter) Error() string { return e.err.Error() }
func (e *retryAfter) Unwrap() error { return e.err }

// RetryAfter makes an error after which a job is tried again after pause. It is
// for waiting on something outside, and does not count as an attempt.
func RetryAfter(err error, pause time.Duration) error { return &retryAfter{err, max(0, pause)} }

// Info is a job as a person sees it.
type Info struct {
	ID, Kind, Key    string
	State            string // ready, leased, dead
	Attempt          int
	RunAt            int64 // µs; the lease's end when leased
	Error            string
	Created, Updated int64
}

// List gives unfinished and dead jobs in the order of their ids, behind after.
// An empty state gives all.
func List(tx *db.Tx, state, after string, limit int) ([]Info, error) {
	rows, err := tx.Query(`SELECT id, kind, key, state, attempt, run_at, error, created, updated FROM job
		WHERE id > $1 AND ($2 = '' OR state = $2) ORDER BY id LIMIT $3`, after, state, max(1, min(limit, 1000)))
	if err != nil {
		return nil, fmt.Errorf("listing jobs: %w", err)
	}
	defer rows.Close()
	var out []Info
	for rows.Next() {
		var i Info
		if err := rows.Scan(&i.ID, &i.Kind, &i.Key, &i.State, &i.Attempt, &i.RunAt, &i.Error, &i.Created, &i.Updated); err != nil {
			return nil, fmt.Errorf("listing jobs: %w", err)
		}
		out = append(out, i)
	}
	return out, rows.Err()
}

// Revive makes a dead job ready, with all its attempts before it.
func Revive(tx *db.Tx, id string) error {
	var kind string
	err := tx.QueryRow(`UPDATE job SET state = 'ready', attempt = 0, again = 0, run_at = $1, updated = $1 WHERE id = $2 AND state = 'dead'
		AND NOT EXISTS (SELECT 1 FROM job o WHERE o.kind = job.kind AND o.key = job.key AND o.state <> 'dead') RETURNING kind`, db.Now(), id).Scan(&kind)
	if errors.Is(err, db.ErrNotFound) {
		return problem.New(problem.NotFound, "no dead job %s waits to be revived", id).Because(err)
	}
	if err != nil {
		return fmt.Errorf("reviving job %s: %w", id, err)
	}
	tx.Signal(topic(kind))
	return nil
}
