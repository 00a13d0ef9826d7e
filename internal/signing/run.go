package signing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/jobs"
	"github.com/firmseal/firmseal/internal/journal"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
	"github.com/firmseal/firmseal/internal/telemetry"
)

// runJob carries a request as far as it goes. It may be called any number of
// times for one request: what it does next depends on the request's row alone.
func (s *Service) runJob(ctx context.Context, j jobs.Job) error {
	var p runPayload
	if err := json.Unmarshal(j.Payload, &p); err != nil {
		return jobs.GiveUp(fmt.Errorf("decoding the payload: %w", err))
	}
	err := s.run(ctx, p.Request)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return err // the process stops; the job runs again at the next start
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

const (
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
			return s.lost(ctx, v, p)
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

// expect reads the row again inside tx, locked on PostgreSQL, and refuses to go
// on unless it is still v in the given state.
func (s *Service) expect(tx *db.Tx, v row, state State) error {
	res, err := tx.Exec(`UPDATE signing_request SET updated = $2 WHERE id = $1`, v.id, db.Now())
	if err != nil {
		return fmt.Errorf("locking request %s: %w", v.id, err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return err
	} else if n != 1 {
		return altered("request %s", v.id).Seen("its row is gone")
	}
	now, err := readRow(tx, v.id)
	if err != nil {
		return err
	}
	if now.state != state {
		return altered("request %s", v.id).Seen("it is %q, it was %s", string(now.state), state)
	}
	return v.same(now)
}

// move changes a request's state and writes the journal.
func (s *Service) move(tx *db.Tx, v row, to State, reason string) error {
	return s.moveAs(tx, v, to, reason, "system")
}

func (s *Service) moveAs(tx *db.Tx, v row, to State, reason, actor string) error {
	if _, err := tx.Exec(`UPDATE signing_request SET state = $2, problem = $3, updated = $4 WHERE id = $1`, v.id, string(to), reason, db.Now()); err != nil {
		return fmt.Errorf("moving request %s to %s: %w", v.id, to, err)
	}
	_, err := journal.Append(tx, journal.Event{Kind: "request." + string(to), Actor: actor, Project: v.project, Subject: v.id, Request: v.buildID})
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
		_, err = tx.Exec(`UPDATE signing_request SET problem = $2, updated = $3 WHERE id = $1`, id, text, db.Now())
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
	err = s.logged2(ctx, func(tx *db.Tx) (firmseal.Leaf, func(string) error, error) {
		now, err := readRow(tx, id)
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if now.state.Rests() {
			return firmseal.Leaf{}, nil, errRests
		}
		if _, err := tx.Exec(`UPDATE signing_attempt SET state = $2, closed = $3, code = $4 WHERE request = $1 AND state = $5`,
			id, attemptDiscarded, db.Now(), string(p.Code), attemptOpen); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if err := release.Free(tx, id); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		leaf := firmseal.Leaf{Type: firmseal.LeafOutcome, Actor: "system", Request: id, Record: hexSum(v.document), Result: "failed", Code: p.Code}
		return leaf, func(string) error { moved = true; return s.move(tx, v, Failed, text) }, nil
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

// ending tells the builder's faults from ours.
func ending(c problem.Code) telemetry.Result {
	if strings.HasPrefix(string(c), "IMG.") || strings.HasPrefix(string(c), "REQUEST.") || strings.HasPrefix(string(c), "POLICY.") {
		return telemetry.Rejected
	}
	return telemetry.Failed
}

var errRests = fmt.Errorf("the request rests already")
