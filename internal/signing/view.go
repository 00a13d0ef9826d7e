package signing

import (
	"context"
	"fmt"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
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
		return row{}, problem.New(problem.NotFound, "there is no request %s", clip(id)).WithHint("firmseal request list")
	}
	return v, err
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
func (s *Service) Resume(ctx context.Context, who auth.Identity, id string) (View, error) {
	err := s.logged2(ctx, func(tx *db.Tx) (firmseal.Leaf, func(string) error, error) {
		v, err := s.decided(tx, who, id)
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		all, err := attempts(tx, id)
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if len(all) == 0 {
			return firmseal.Leaf{}, nil, altered("request %s", id).Seen("it is unknown and has no attempt")
		}
		n := all[len(all)-1].N
		if _, err := tx.Exec(`UPDATE signing_attempt SET state = $3, closed = $4 WHERE request = $1 AND n = $2`, id, n, attemptUnknown, db.Now()); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		to := Signing
		if v.outcome != "" {
			to = Sealing
		}
		leaf := firmseal.Leaf{Type: firmseal.LeafResume, Actor: who.Actor, Request: id, Record: hexSum(v.document), Attempt: n}
		return leaf, func(string) error { return s.moveAs(tx, v, to, "", who.Actor) }, nil
	})
	if err != nil {
		return View{}, err
	}
	// The leaf is in the log now, where the job looks for it. A crash before
	// this line leaves a request without a job, which Unfinished finds.
	if err := s.db.Update(ctx, func(tx *db.Tx) error { return s.enqueue(tx, id) }); err != nil {
		return View{}, err
	}
	s.changed(id)
	return s.Get(ctx, who.Project, id)
}

// Cancel ends an unknown request as failed and frees the version it claimed.
func (s *Service) Cancel(ctx context.Context, who auth.Identity, id string) (View, error) {
	p := problem.New(problem.RequestCancelled, "request %s was cancelled", id).Seen("by %s, after an unknown outcome", who.Actor)
	text, err := encodeProblem(p)
	if err != nil {
		return View{}, err
	}
	err = s.logged2(ctx, func(tx *db.Tx) (firmseal.Leaf, func(string) error, error) {
		v, err := s.decided(tx, who, id)
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if _, err := tx.Exec(`UPDATE signing_attempt SET state = $2, closed = $3, code = $4 WHERE request = $1 AND state = $5`,
			id, attemptDiscarded, db.Now(), string(p.Code), attemptOpen); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if err := release.Free(tx, id); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		leaf := firmseal.Leaf{Type: firmseal.LeafOutcome, Actor: who.Actor, Request: id, Record: hexSum(v.document), Result: "failed", Code: p.Code}
		return leaf, func(string) error { return s.move(tx, v, Failed, text) }, nil
	})
	if err != nil {
		return View{}, err
	}
	s.metrics.SignRequest(telemetry.Failed)
	s.changed(id)
	return s.Get(ctx, who.Project, id)
}

// decided gives an unknown request's row, locked on PostgreSQL.
func (s *Service) decided(tx *db.Tx, who auth.Identity, id string) (row, error) {
	v, err := ownRow(tx, who.Project, id)
	if err != nil {
		return row{}, err
	}
	if v.state != Unknown {
		return row{}, problem.New(problem.RequestState, "request %s is %s", id, v.state).
			Seen("only an unknown request waits for a person").WithHint("firmseal request show %s", id)
	}
	return v, s.expect(tx, v, Unknown)
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
