package signing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/jobs"
	"github.com/firmseal/firmseal/internal/journal"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
	"github.com/firmseal/firmseal/internal/telemetry"
	"github.com/firmseal/firmseal/internal/tlog"
)

// runJob carries a request as far as it goes. It may be called any number of
// times for one request: what it does next depends on the request's row alone.
func (s *Service) runJob(ctx context.Context, j jobs.Job) error {
	var p runPayload
	if err := json.Unmarshal(j.Payload, &p); err != nil {
		return jobs.GiveUp(fmt.Errorf("decoding the payload: %w", err))
	}
	err := s.runSafely(ctx, p.Request)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil, errors.Is(err, jobs.ErrLost):
		return err // the process stops, or another one has the job
	}
	pr := problem.Of(err)
	if e, ok := problem.Lookup(pr.Code); ok && e.Exit == problem.ExitTemporary {
		// The request keeps its place, and whoever looks sees what it waits for.
		if err := s.note(ctx, p.Request, pr); err != nil {
			return err
		}
		return jobs.RetryAfter(err, retryUnavailable)
	}
	if pr.Code == problem.Internal && j.Attempt < maxInternal {
		s.logger.ErrorContext(ctx, "signing step failed, will be tried again", "request", p.Request, "attempt", j.Attempt, "error", err)
		return err
	}
	if _, rerr := s.row(ctx, p.Request); problem.Has(rerr, problem.NotFound) {
		return jobs.GiveUp(err) // there is nothing to move and nobody to tell
	}
	if ferr := s.fail(ctx, p.Request, err); ferr != nil {
		// A log that refuses takes no outcome. The request keeps its place, with
		// the reason, until the log is put right.
		return jobs.RetryAfter(errors.Join(ferr, s.note(ctx, p.Request, pr)), retryUnavailable)
	}
	return nil
}

// runSafely is run, whose panic ends the request and not only the job: what
// happens in a format's code to one image would happen again.
func (s *Service) runSafely(ctx context.Context, id string) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.logger.ErrorContext(ctx, "signing panicked", "request", id, "panic", v, "stack", string(debug.Stack()))
			err = s.panicked(ctx, id)
		}
	}()
	return s.run(ctx, id)
}

// panicked ends a request whose signing panicked: as unknown where an attempt is
// open, else as failed.
func (s *Service) panicked(ctx context.Context, id string) error {
	v, err := s.row(ctx, id)
	if err != nil || v.state.Rests() {
		return err
	}
	var p past
	if err := s.db.View(ctx, func(tx *db.Tx) (err error) {
		p.attempts, err = attempts(tx, id)
		return err
	}); err != nil {
		return err
	}
	if l := p.last(); l != nil && l.State == attemptOpen {
		if err := s.lost(ctx, v, p, "a fault of the server ended the signing"); !errors.Is(err, errRests) {
			return err
		}
		return nil
	}
	return s.fail(ctx, id, problem.New(problem.Internal, "a fault of the server ended the signing of request %s", id).
		Seen("the server's log has its place in the program"))
}

// inLog waits for a leaf until it is included, but not for ever: a request that
// holds no attempt goes back and says what it waits for, so that those who run
// are free. One that holds an attempt stays, since to go back would make it
// unknown although its key was not used; it says what it waits for, too.
func (s *Service) inLog(ctx context.Context, id string) error {
	for {
		err := s.inLogSoon(ctx, id)
		if err == nil || ctx.Err() != nil || !problem.Has(err, problem.LogPlace) && !problem.Has(err, problem.LogNotIncluded) {
			return err
		}
		request, holds := ctx.Value(holdingKey{}).(string)
		if !holds {
			return err
		}
		if err := s.note(ctx, request, problem.Of(err)); err != nil {
			return err
		}
	}
}

func (s *Service) inLogSoon(ctx context.Context, id string) error {
	wctx, stop := context.WithTimeout(ctx, logPatience)
	defer stop()
	_, err := s.log.Wait(wctx, tlog.Pending{ID: id})
	if errors.Is(err, context.DeadlineExceeded) && !problem.Has(err, problem.LogNotIncluded) {
		return problem.New(problem.LogNotIncluded, "leaf %s is not seen in the log", clip(id)).Because(err)
	}
	return err
}

type holdingKey struct{}

// holding marks the context of a request that holds an attempt.
func holding(ctx context.Context, request string) context.Context {
	return context.WithValue(ctx, holdingKey{}, request)
}

const (
	// logPatience is much longer than a checkpoint takes, and short enough that
	// whoever looks at a request soon sees what it waits for.
	logPatience      = 5 * time.Second
	retryUnavailable = 2 * time.Second
	// maxInternal bounds how often a fault of ours is tried again before the
	// request fails and says so.
	maxInternal = 3
)

// run moves a request from state to state until it rests.
func (s *Service) run(ctx context.Context, id string) error {
	for {
		v, err := s.row(ctx, id)
		if err != nil {
			return err
		}
		if v.state.Rests() {
			return nil
		}
		r, err := s.request(ctx, v)
		if err != nil {
			return err
		}
		p, err := s.history(ctx, v, r)
		if err != nil {
			return err
		}
		// This process holds no attempt here: whoever opened the last one is
		// gone, and nobody knows whether the key was used, also where its
		// backend said that it did not answer.
		if l := p.last(); l != nil && l.State != attemptUnknown {
			if err := s.lost(ctx, v, p, "the server stopped"); !errors.Is(err, errRests) {
				return err
			}
			return nil
		}
		switch v.state {
		case Queued:
			err = s.redeem(ctx, v, r)
		case Signing:
			err = s.sign(ctx, v, r, p)
		case Sealing:
			err = s.seal(ctx, &progress{v: v, r: r, past: p.attempts})
		default:
			return altered("request %s", id).Seen("its state is %q", v.state)
		}
		if errors.Is(err, errRests) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *Service) row(ctx context.Context, id string) (row, error) {
	var v row
	err := s.db.View(ctx, func(tx *db.Tx) (err error) {
		v, err = readRow(tx, id)
		return err
	})
	return v, err
}

// locked reads a row inside tx. On PostgreSQL nobody else writes to it until the
// end of tx, so that what is decided by its state is true when it is written.
func locked(tx *db.Tx, id string) (row, error) {
	if _, err := tx.Exec(`UPDATE signing_request SET updated = $2 WHERE id = $1`, id, db.Now()); err != nil {
		return row{}, fmt.Errorf("locking request %s: %w", id, err)
	}
	return readRow(tx, id)
}

// expect locks the row and refuses to go on unless it is still v in the given
// state. One that rests was ended by somebody who may, and is errRests.
func (s *Service) expect(tx *db.Tx, v row, state State) error {
	now, err := locked(tx, v.id)
	if problem.Has(err, problem.NotFound) {
		return altered("request %s", v.id).Seen("its row is gone")
	}
	if err != nil {
		return err
	}
	if now.state != state && now.state.Rests() {
		return errRests
	}
	if now.state != state {
		return altered("request %s", v.id).Seen("it is %q, it was %s", string(now.state), state)
	}
	return v.same(now)
}

// move changes the state of a request that the caller has locked, and writes the
// journal. v is the row as it was read then.
func (s *Service) move(tx *db.Tx, v row, to State, reason string) error {
	return s.moveAs(tx, v, to, reason, "system")
}

func (s *Service) moveAs(tx *db.Tx, v row, to State, reason, actor string) error {
	res, err := tx.Exec(`UPDATE signing_request SET state = $2, problem = $3, updated = $4 WHERE id = $1 AND state = $5`,
		v.id, string(to), reason, db.Now(), string(v.state))
	if err != nil {
		return fmt.Errorf("moving request %s to %s: %w", v.id, to, err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return err
	} else if n != 1 {
		return altered("request %s", v.id).Seen("it is no longer %s", v.state)
	}
	_, err = journal.Append(tx, journal.Event{Kind: "request." + string(to), Actor: actor, Project: v.project, Subject: v.id, Request: v.buildID})
	return err
}

// note shows what a request waits for, without moving it.
func (s *Service) note(ctx context.Context, id string, p *problem.Error) error {
	text, err := encodeProblem(p)
	if err != nil {
		return err
	}
	defer s.changed(id)
	return s.db.Update(ctx, func(tx *db.Tx) error {
		v, err := readRow(tx, id)
		if err != nil || v.state.Rests() {
			return err
		}
		_, err = tx.Exec(`UPDATE signing_request SET problem = $2, updated = $3 WHERE id = $1 AND state = $4`, id, text, db.Now(), string(v.state))
		return err
	})
}

// fail ends a request for good, with the leaf that says so, and frees what it
// claimed. A request whose key may have been used is not failed but unknown.
func (s *Service) fail(ctx context.Context, id string, cause error) error {
	p := problem.Of(cause)
	s.logger.WarnContext(ctx, "request failed", "request", id, "code", p.Code, "error", cause)
	v, err := s.row(ctx, id)
	if err != nil {
		return err
	}
	text, err := encodeProblem(p)
	if err != nil {
		return err
	}
	moved := false
	_, err = s.append(ctx, func(tx *db.Tx) (firmseal.Leaf, func(string) error, error) {
		now, err := locked(tx, id)
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if now.state.Rests() {
			return firmseal.Leaf{}, nil, errRests
		}
		if err := discard(tx, id, p.Code); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		leaf := firmseal.Leaf{Type: firmseal.LeafOutcome, Actor: "system", Request: id, Record: hexSum(v.document), Result: "failed", Code: p.Code}
		return leaf, func(string) error { moved = true; return s.move(tx, now, Failed, text) }, nil
	})
	if errors.Is(err, errRests) {
		return nil
	}
	if err == nil && moved {
		s.metrics.SignRequest(ending(p.Code))
		s.changed(id)
	}
	return err
}

// discard closes what a request that ends has open, and frees what it claimed.
func discard(tx *db.Tx, id string, why problem.Code) error {
	if _, err := tx.Exec(`UPDATE signing_attempt SET state = $2, closed = $3, code = $4 WHERE request = $1 AND state = $5`,
		id, attemptDiscarded, db.Now(), string(why), attemptOpen); err != nil {
		return fmt.Errorf("discarding the attempt of request %s: %w", id, err)
	}
	return release.Free(tx, id)
}

// ending tells the builder's faults from ours.
func ending(c problem.Code) telemetry.Result {
	if strings.HasPrefix(string(c), "IMG.") || strings.HasPrefix(string(c), "REQUEST.") || strings.HasPrefix(string(c), "POLICY.") {
		return telemetry.Rejected
	}
	return telemetry.Failed
}

var errRests = fmt.Errorf("the request rests already")
