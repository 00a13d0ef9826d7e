// Package signing turns a request into a released signature, or into a
// recorded refusal, and never into anything else.
//
// # The life of a request
//
//	Submit   one transaction: request row, policy decision, leaf sign.request,
//	         ticket and job                            state queued | denied
//	redeem   one transaction: the ticket is redeemed once; policy, key state,
//	         counter and version claim are looked at again; leaf sign.intent
//	                                                   state signing
//	attempt  the intent is in the log; one transaction: attempt row and leaf
//	         sign.attempt, which names the bytes and the key; it is in the log;
//	         only then the key is used
//	embed    the finished file is written to the blob store and judged by the
//	         format's own Verify, which shares no code with what made it
//	outcome  one transaction: leaf sign.outcome with the digests of the output
//	         and of the release statement; the seal key's attempt
//	                                                   state sealing
//	seal     the outcome is in the log; the statement is sealed, the seal and
//	         its log proof are verified as a device would; one transaction:
//	         release                                   state released
//
// # What a crash leaves behind
//
// Before an attempt is open, a crash costs nothing: the job runs again and
// starts where the row says. Between the moment when an attempt is durable and
// the moment when its result is, nobody can know whether the key was used. The
// request is then `unknown` and stays so until a person resumes it (a new
// attempt, logged as resumed) or cancels it. A resumed attempt must ask for
// exactly the bytes and the key of the one before, and a resumed request is held
// against policy, keys and claims once more. So does a panic in a format's code;
// before an attempt, it fails the request.
//
// # What a person may do
//
// Resume is for `unknown` only. Cancel ends every request that is not final: its
// open attempt is discarded, its version is free, and a worker that is in the
// middle of it finds the row ended at its next step.
//
// # What two replicas do at once
//
// Whoever moves a request locks its row first and reads it then. Whoever rests
// on a policy or a key holds its row until its own leaf is committed, so that
// what the log has before the leaf is what was true for it.
//
// # What an edited database does
//
// Rows are beliefs; the log, the blob store and the key files are facts. Each
// step compares the rows that it reads with them (check.go), what has happened
// to the request with what the log has of it (history.go), and policies and
// keys with their own leaves (book.go). It refuses to go on when one differs:
// STATE.ALTERED, or LOG.ALTERED where the log itself was edited. The last look
// is between the step "key.use" and the use.
//
// Claims on versions and counters are held against what was released (package
// release). A claim of a request in flight is not: who deletes that can make its
// version free, once.
package signing

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/jobs"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/telemetry"
	"github.com/firmseal/firmseal/internal/tlog"
)

// MaxAutomaticAttempts is how often a key is asked without a person: once, and
// once more when the backend says that it is unavailable.
const MaxAutomaticAttempts = 2

// Options are what a Service is made of. All but Step are required.
type Options struct {
	DB       *db.DB
	Blobs    func(project string) (blob.Store, error) // each project its own
	Log      *tlog.Log
	LogKey   string // the log's verifier key
	Jobs     *jobs.Queue
	Formats  image.Registry
	Backends []keys.Backend
	Metrics  *telemetry.Metrics
	Logger   *slog.Logger

	// Step is called at each labelled point of the signing path (see Steps). A
	// test kills the process there; nil in production.
	Step func(label string)
}

// Service is the signing half of a server. It is safe for concurrent use.
type Service struct {
	db       *db.DB
	blobs    func(string) (blob.Store, error)
	log      *tlog.Log
	logKey   string
	jobs     *jobs.Queue
	formats  image.Registry
	backends map[string]keys.Backend
	metrics  *telemetry.Metrics
	logger   *slog.Logger
	step     func(string)

	policies policyCache
	book     book

	// mu guards waiters.
	mu sync.Mutex
	// waiters are told and removed when their request changes in this process.
	// Another replica's change is found by the poll in Wait.
	waiters map[string]*waiters
}

// waiters are those who wait for one request.
type waiters struct {
	changed chan struct{}
	n       int // how many; the last one who leaves removes the entry
}

// New makes a Service and registers its job.
func New(o Options) *Service {
	s := &Service{
		db: o.DB, blobs: o.Blobs, log: o.Log, logKey: o.LogKey, jobs: o.Jobs, formats: o.Formats,
		backends: make(map[string]keys.Backend, len(o.Backends)),
		metrics:  o.Metrics, logger: o.Logger, step: o.Step,
		waiters: make(map[string]*waiters),
	}
	for _, b := range o.Backends {
		s.backends[b.Scheme()] = b
	}
	if s.step == nil {
		s.step = func(string) {}
	}
	o.Jobs.Handle(jobRun, jobs.HandlerOptions{Concurrency: runners}, s.runJob)
	return s
}

const (
	jobRun = "signing.run"
	// runners bounds the requests that are worked on at once. Hashing and
	// verifying are CPU work, waiting for a commit is not: some more than
	// cores, so that group commits are full.
	runners = 64
)

// Steps are the labels that Options.Step is called with, in order. Each names
// the moment just before the thing happens.
func Steps() []string {
	return []string{
		"submit.commit", "submit.done",
		"redeem.commit", "intent.wait",
		"attempt.commit", "attempt.wait",
		"key.use", "key.used",
		"embed.write", "embed.written", "verify.output",
		"outcome.commit", "outcome.wait",
		"seal.use", "seal.used", "seal.verify",
		"release.commit", "release.done",
	}
}

// changed wakes those who wait for a request.
func (s *Service) changed(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w, ok := s.waiters[id]; ok {
		close(w.changed)
		delete(s.waiters, id)
	}
}

// waiter gives a channel that is closed at the request's next change in this
// process. leave is called by the one who waits no longer.
func (s *Service) waiter(id string) (changed <-chan struct{}, leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.waiters[id]
	if !ok {
		w = &waiters{changed: make(chan struct{})}
		s.waiters[id] = w
	}
	w.n++
	return w.changed, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if w.n--; w.n == 0 && s.waiters[id] == w {
			delete(s.waiters, id)
		}
	}
}

// stateOf is Get for the state alone.
func (s *Service) stateOf(ctx context.Context, project, id string) (State, error) {
	var state State
	err := s.db.View(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(`SELECT state FROM signing_request WHERE id = $1 AND project = $2`, id, project).Scan(&state)
	})
	if errors.Is(err, db.ErrNotFound) {
		return "", problem.New(problem.NotFound, "there is no request %s", clip(id)).WithHint("firmseal request list")
	}
	return state, err
}

// Wait returns the request when it rests (released, denied, failed, unknown),
// or as it is when ctx ends; that is not an error.
func (s *Service) Wait(ctx context.Context, project, id string) (View, error) {
	for ctx.Err() == nil {
		rests, err := s.waitOnce(ctx, project, id)
		if err != nil {
			return View{}, err
		}
		if rests {
			break
		}
	}
	return s.Get(context.WithoutCancel(ctx), project, id)
}

// waitOnce waits for one change, or for waitPoll.
func (s *Service) waitOnce(ctx context.Context, project, id string) (rests bool, err error) {
	changed, leave := s.waiter(id)
	defer leave()
	state, err := s.stateOf(context.WithoutCancel(ctx), project, id)
	if err != nil || state.Rests() {
		return true, err
	}
	poll, stop := context.WithTimeout(ctx, waitPoll)
	defer stop()
	select {
	case <-changed:
	case <-poll.Done():
	}
	return false, nil
}
