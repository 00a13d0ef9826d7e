package signing

import (
	"context"
	"fmt"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/telemetry"
)

// View is a request as it stands now.
type View struct {
	Request
	State    State
	Digest   string         // hex SHA-256 of the canonical request
	Policy   string         // hex SHA-256 of the policy that decided at submission
	Problem  *problem.Error // why it was refused, or what it waits for; nil if nothing
	Attempts []Attempt
	Output   string // hex SHA-256 of the finished file, from sealing on
	Release  string // its release's id, once released
	Updated  int64  // µs
}

func view(tx *db.Tx, v row) (View, error) {
	r, err := decodeRequest(v.document)
	if err != nil {
		return View{}, altered("request %s", v.id).Seen("its document cannot be decoded").Because(err)
	}
	out := View{
		Request: r, State: v.state, Digest: hexSum(v.document), Policy: v.policy, Problem: decodeProblem(v.problem),
		Output: v.output, Release: v.release, Updated: v.updated,
	}
	out.Attempts, err = attempts(tx, v.id)
	return out, err
}

// Get gives one of a project's requests.
func (s *Service) Get(ctx context.Context, project, id string) (View, error) {
	var out View
	err := s.db.View(ctx, func(tx *db.Tx) error {
		v, err := ownRow(tx, project, id)
		if err != nil {
			return err
		}
		out, err = view(tx, v)
		return err
	})
	return out, err
}

func ownRow(tx *db.Tx, project, id string) (row, error) {
	v, err := readRow(tx, id)
	if err == nil && v.project != project {
		return row{}, noRequest(id)
	}
	return v, err
}

func noRequest(id string) error {
	return problem.New(problem.NotFound, "there is no request %s", clip(id)).WithHint("firmseal request list")
}

// Filter narrows List; a zero field does not.
type Filter struct {
	State   State
	BuildID string
	Before  string // id of the last request of the previous page
	Limit   int    // 1 to 500; 0 is 50
}

// List gives a project's requests, newest first.
func (s *Service) List(ctx context.Context, project string, f Filter) ([]View, error) {
	if f.Limit <= 0 {
		f.Limit = 50
	}
	f.Limit = min(f.Limit, 500)
	var out []View
	err := s.db.View(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(`SELECT `+rowColumns+` FROM signing_request
			WHERE project = $1 AND ($2 = '' OR state = $2) AND ($3 = '' OR id < $3) AND ($5 = '' OR build_id = $5) ORDER BY id DESC LIMIT $4`,
			project, string(f.State), f.Before, f.Limit, f.BuildID)
		if err != nil {
			return fmt.Errorf("listing requests: %w", err)
		}
		var found []row
		for rows.Next() {
			v, err := scanRow(rows)
			if err != nil {
				rows.Close()
				return err
			}
			found = append(found, v)
		}
		rows.Close()
		if err := rows.Err(); err != nil {
			return err
		}
		for _, v := range found {
			w, err := view(tx, v)
			if err != nil {
				return err
			}
			out = append(out, w)
		}
		return nil
	})
	return out, err
}

// Resume lets an unknown request go on: a person has decided that another use
// of the key is right. That is a leaf, without which no request goes on, and the
// new attempt is logged as resumed.
//
// The request is judged again as when its ticket was redeemed: policy in force,
// keys, counter and claim; one whose outcome is logged needs its seal key, too. A
// refusal is returned and changes nothing: the request stays unknown, and can be
// cancelled. State, leaf and job are one transaction; the leaf may be included
// after the return, and the request goes on when it is.
func (s *Service) Resume(ctx context.Context, who auth.Identity, id string) (View, error) {
	v, err := s.row(ctx, id)
	if err == nil {
		err = mayResume(v, who.Project, id)
	}
	if err != nil {
		return View{}, err
	}
	r, err := s.request(ctx, v)
	if err != nil {
		return View{}, err
	}
	again, err := s.looker(ctx, r)
	if err != nil {
		return View{}, err
	}
	if err := s.holdKeys(ctx, r); err != nil {
		return View{}, err
	}
	if err := s.withPolicy(ctx, r.Project, func() error {
		_, err := s.append(ctx, func(tx *db.Tx) (firmseal.Leaf, func(string) error, error) { return s.resume(tx, who, v, r, again) })
		return err
	}); err != nil {
		return View{}, err
	}
	s.changed(id)
	return s.Get(context.WithoutCancel(ctx), who.Project, id)
}

func mayResume(v row, project, id string) error {
	switch {
	case v.project != project:
		return noRequest(id)
	case v.state != Unknown:
		return problem.New(problem.RequestState, "request %s is %s", id, v.state).
			Seen("only an unknown request waits for a person").WithHint("firmseal request show %s", id)
	}
	return nil
}

func (s *Service) resume(tx *db.Tx, who auth.Identity, was row, r Request, again func(*db.Tx) (firmseal.Leaf, error)) (firmseal.Leaf, func(string) error, error) {
	v, err := locked(tx, was.id)
	if err != nil {
		return firmseal.Leaf{}, nil, err
	}
	if err := mayResume(v, who.Project, v.id); err != nil {
		return firmseal.Leaf{}, nil, err
	}
	if err := was.same(v); err != nil {
		return firmseal.Leaf{}, nil, err
	}
	all, err := attempts(tx, v.id)
	if err != nil {
		return firmseal.Leaf{}, nil, err
	}
	if len(all) == 0 {
		return firmseal.Leaf{}, nil, altered("request %s", v.id).Seen("it is unknown and has no attempt")
	}
	last := all[len(all)-1]
	leaf, err := again(tx)
	if err != nil {
		return firmseal.Leaf{}, nil, err
	}
	to := Signing
	if v.outcome != "" {
		to = Sealing
		if err := activeKey(tx, r, keys.Seal, last.KeyID); err != nil {
			return firmseal.Leaf{}, nil, err
		}
	}
	leaf.Type, leaf.Actor, leaf.Record, leaf.Attempt = firmseal.LeafResume, who.Actor, hexSum(v.document), last.N
	return leaf, func(id string) error {
		if _, err := tx.Exec(`UPDATE signing_attempt SET state = $3, closed = $4, resume = $5 WHERE request = $1 AND n = $2`,
			v.id, last.N, attemptUnknown, db.Now(), id); err != nil {
			return fmt.Errorf("resuming request %s: %w", v.id, err)
		}
		if err := s.moveAs(tx, v, to, "", who.Actor); err != nil {
			return err
		}
		return s.enqueue(tx, v.id)
	}, nil
}

// Cancel ends a request that is not final as failed, and frees the version that
// it claimed. Whoever works on it finds that at its next step, releases nothing,
// and the open attempt is discarded: its key may have been used.
func (s *Service) Cancel(ctx context.Context, who auth.Identity, id string) (View, error) {
	leaf, err := s.append(ctx, func(tx *db.Tx) (firmseal.Leaf, func(string) error, error) {
		if _, err := ownRow(tx, who.Project, id); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		v, err := locked(tx, id)
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if v.state.Final() {
			return firmseal.Leaf{}, nil, problem.New(problem.RequestState, "request %s is %s", id, v.state).
				Seen("only a request that is not final can be cancelled").WithHint("firmseal request show %s", id)
		}
		p := problem.New(problem.RequestCancelled, "request %s was cancelled", id).Seen("by %s, while it was %s", who.Actor, v.state)
		text, err := encodeProblem(p)
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if err := discard(tx, id, p.Code); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		leaf := firmseal.Leaf{Type: firmseal.LeafOutcome, Actor: who.Actor, Request: id, Record: hexSum(v.document), Result: "failed", Code: p.Code}
		return leaf, func(string) error { return s.moveAs(tx, v, Failed, text, who.Actor) }, nil
	})
	if err != nil {
		return View{}, err
	}
	s.metrics.SignRequest(telemetry.Failed)
	s.changed(id)
	return s.Get(s.included(ctx, id, leaf), who.Project, id)
}

// Unfinished puts every request that neither rests nor has a job back to work.
// The server calls it at start; it repairs what a job's own record lost.
func (s *Service) Unfinished(ctx context.Context) error {
	return s.db.Update(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(`SELECT id FROM signing_request WHERE state NOT IN ($1, $2, $3, $4) ORDER BY id`,
			string(Released), string(Denied), string(Failed), string(Unknown))
		if err != nil {
			return err
		}
		var ids []string
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				rows.Close()
				return err
			}
			ids = append(ids, id)
		}
		rows.Close()
		if err := rows.Err(); err != nil {
			return err
		}
		for _, id := range ids {
			if err := s.enqueue(tx, id); err != nil {
				return err
			}
		}
		return nil
	})
}
