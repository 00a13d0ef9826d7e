package signing

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/telemetry"
)

// Attempt states.
const (
	attemptOpen      = "open"      // durable; the key may be in use or may have been
	attemptSigned    = "signed"    // its signatures are held by the request
	attemptFailed    = "failed"    // the backend said that it did not sign
	attemptUnknown   = "unknown"   // nobody knows; a person decided what comes next
	attemptDiscarded = "discarded" // the request failed; whatever was signed was not released
)

// Attempt is one permitted use of one key by a request: all the signatures that
// one key makes in one round of a format's session, or one seal.
type Attempt struct {
	N       int                  `json:"n"`
	Purpose keys.Purpose         `json:"purpose"`
	Round   int                  `json:"round"`
	KeyID   string               `json:"key_id"`
	Inputs  []firmseal.LeafInput `json:"inputs"`
	State   string               `json:"state"`
	Resumed bool                 `json:"resumed,omitempty"`
	Opened  int64                `json:"opened"` // µs
	Closed  int64                `json:"closed,omitempty"`
	Code    problem.Code         `json:"code,omitempty"`
	leaf    string
}

const attemptColumns = `n, purpose, round, key_id, inputs, leaf, state, resumed, opened, closed, code`

func attempts(tx *db.Tx, request string) ([]Attempt, error) {
	rows, err := tx.Query(`SELECT `+attemptColumns+` FROM signing_attempt WHERE request = $1 ORDER BY n`, request)
	if err != nil {
		return nil, fmt.Errorf("reading the attempts of %s: %w", request, err)
	}
	defer rows.Close()
	var out []Attempt
	for rows.Next() {
		var a Attempt
		var inputs string
		var resumed int
		if err := rows.Scan(&a.N, &a.Purpose, &a.Round, &a.KeyID, &inputs, &a.leaf, &a.State, &resumed, &a.Opened, &a.Closed, &a.Code); err != nil {
			return nil, err
		}
		a.Resumed = resumed != 0
		if err := json.Unmarshal([]byte(inputs), &a.Inputs); err != nil {
			return nil, altered("attempt %d of request %s", a.N, request).Seen("its inputs cannot be decoded").Because(err)
		}
		out = append(out, a)
	}
	return out, rows.Err()
}

func insertAttempt(tx *db.Tx, request string, a Attempt) error {
	inputs, err := json.Marshal(a.Inputs)
	if err != nil {
		return err
	}
	resumed := 0
	if a.Resumed {
		resumed = 1
	}
	_, err = tx.Exec(`INSERT INTO signing_attempt(request, n, purpose, round, key_id, inputs, leaf, state, resumed, opened, closed, code)
		VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,0,'')`,
		request, a.N, string(a.Purpose), a.Round, a.KeyID, string(inputs), a.leaf, attemptOpen, resumed, a.Opened)
	if err != nil {
		return fmt.Errorf("opening attempt %d of request %s: %w", a.N, request, err)
	}
	return nil
}

// closeAttempt ends an attempt that must still be as this process opened it.
func closeAttempt(tx *db.Tx, request string, a Attempt, state string, code problem.Code) error {
	if err := sameAttempt(tx, request, a); err != nil {
		return err
	}
	res, err := tx.Exec(`UPDATE signing_attempt SET state = $3, closed = $4, code = $5 WHERE request = $1 AND n = $2 AND state = $6`,
		request, a.N, state, db.Now(), string(code), attemptOpen)
	if err != nil {
		return fmt.Errorf("closing attempt %d of request %s: %w", a.N, request, err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return err
	} else if n != 1 {
		return altered("attempt %d of request %s", a.N, request).Seen("it is no longer open")
	}
	return nil
}

// sameAttempt holds an attempt's row against what this process wrote.
func sameAttempt(tx *db.Tx, request string, a Attempt) error {
	rows, err := attempts(tx, request)
	if err != nil {
		return err
	}
	if len(rows) != a.N {
		return altered("the attempts of request %s", request).Seen("there are %d rows, the last should be number %d", len(rows), a.N)
	}
	now := rows[len(rows)-1]
	if now.N != a.N || now.Purpose != a.Purpose || now.Round != a.Round || now.KeyID != a.KeyID || now.leaf != a.leaf ||
		now.State != attemptOpen || now.Resumed != a.Resumed || now.Opened != a.Opened || !sameInputs(now.Inputs, a.Inputs) {
		return altered("attempt %d of request %s", a.N, request).Seen("its row is not what was written")
	}
	return nil
}

func sameInputs(a, b []firmseal.LeafInput) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// lost makes a request unknown whose last attempt a crash left open: nobody can
// know whether the key was used, and a person decides. It reports false when
// the attempt was closed meanwhile.
func (s *Service) lost(ctx context.Context, v row) (bool, error) {
	lost := false
	err := s.db.Update(ctx, func(tx *db.Tx) error {
		lost = false
		a, open, err := openAttemptOf(tx, v.id)
		if err != nil || !open {
			return err
		}
		if err := s.expect(tx, v, v.state); err != nil {
			return err
		}
		lost = true
		return s.unknown(tx, v, problem.New(problem.RequestUnknown, "the outcome of attempt %d of request %s is unknown", a.N, v.id).
			Seen("the server stopped while key %s may have been in use; nothing was released", a.KeyID).
			WithHint("firmseal request resume %s", v.id))
	})
	if lost && err == nil {
		s.metrics.SignRequest(telemetry.Unknown)
		s.changed(v.id)
	}
	return lost, err
}

// openAttemptOf gives a request's last attempt, if it is open.
func openAttemptOf(tx *db.Tx, request string) (Attempt, bool, error) {
	all, err := attempts(tx, request)
	if err != nil || len(all) == 0 || all[len(all)-1].State != attemptOpen {
		return Attempt{}, false, err
	}
	return all[len(all)-1], true, nil
}

func (s *Service) unknown(tx *db.Tx, v row, p *problem.Error) error {
	text, err := encodeProblem(p)
	if err != nil {
		return err
	}
	return s.move(tx, v, Unknown, text)
}

// saved is what a request keeps of its session between two attempts, so that a
// round whose signatures were made by several keys, or a later round, does not
// begin again after a crash.
type saved struct {
	Round int                 `json:"round"`
	State []byte              `json:"state"` // the session, marshalled after it issued Reqs
	Reqs  []image.SignRequest `json:"reqs"`
	Sigs  []image.Signature   `json:"sigs"`
}

// progress is a signing in the hands of this process.
type progress struct {
	v    row
	r    Request
	keys map[string]keys.Key // by key id
	open *Attempt            // the attempt that the next transaction closes
	keep *saved              // and what it stores with that
}

// use lets one key make the signatures of one round. It opens an attempt,
// waits until its leaf is in the log, and only then touches the key.
func (s *Service) use(ctx context.Context, p *progress, round int, keyID string, reqs []image.SignRequest) ([]image.Signature, error) {
	k, ok := p.keys[keyID]
	if !ok {
		return nil, problem.New(problem.KeyBinding, "the image asks for a signature by key %s, which the request does not name", keyID)
	}
	inputs := make([]firmseal.LeafInput, len(reqs))
	for i, q := range reqs {
		inputs[i] = firmseal.LeafInput{Slot: q.Slot, Alg: string(q.Alg), Kind: string(q.Kind), SHA256: hexSum(q.Input)}
	}
	for {
		a, err := s.openAttempt(ctx, p, keys.Firmware, round, keyID, inputs)
		if err != nil {
			return nil, err
		}
		s.step("attempt.wait")
		proof, leaf, err := s.proof(ctx, a.leaf)
		if err != nil {
			return nil, err
		}
		if err := s.db.View(ctx, func(tx *db.Tx) error {
			if err := s.stillKey(tx, p.r, k); err != nil {
				return err
			}
			return sameAttempt(tx, p.v.id, a)
		}); err != nil {
			return nil, err
		}
		var sigs []image.Signature
		for _, q := range reqs {
			t := &keys.Ticket{Request: p.v.document, Leaf: leaf, Proof: proof, Slot: q.Slot, Alg: q.Alg, Kind: q.Kind, Input: q.Input}
			s.step("key.use")
			began := time.Now()
			var sig []byte
			sig, err = k.Sign(ctx, t)
			s.metrics.KeyWait(time.Since(began))
			if err != nil {
				break
			}
			sigs = append(sigs, image.Signature{Slot: q.Slot, Value: sig})
		}
		s.step("key.used")
		if err == nil {
			return sigs, nil
		}
		if !problem.Has(err, problem.KeyUnavailable) || ctx.Err() != nil {
			return nil, err
		}
		again, err := s.unavailable(ctx, p, err)
		if err != nil {
			return nil, err
		}
		if !again {
			return nil, errRests
		}
	}
}

// stillKey holds the key's row against the key just before it is used.
func (s *Service) stillKey(tx *db.Tx, r Request, k keys.Key) error {
	i := k.Info()
	rec, err := readKey(tx, i.Name)
	if err != nil {
		return err
	}
	if rec.ID() != i.ID() || rec.Binding != i.Binding || rec.URI != i.URI || rec.Project != r.Project {
		return altered("key %s", i.Name).Seen("the database says %+v of project %s, the key itself %+v", rec.Binding, rec.Project, i.Binding)
	}
	return nil
}

// openAttempt makes attempt n durable and puts its leaf into the log. The
// attempt before it, if this process holds one, is closed as signed in the same
// transaction.
func (s *Service) openAttempt(ctx context.Context, p *progress, purpose keys.Purpose, round int, keyID string, inputs []firmseal.LeafInput) (Attempt, error) {
	var a Attempt
	s.step("attempt.commit")
	_, err := s.append(ctx, func(tx *db.Tx) (firmseal.Leaf, func(string) error, error) {
		state := Signing
		if purpose == keys.Seal {
			state = Sealing
		}
		if err := s.expect(tx, p.v, state); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if p.open != nil {
			if err := closeAttempt(tx, p.v.id, *p.open, attemptSigned, ""); err != nil {
				return firmseal.Leaf{}, nil, err
			}
		}
		if p.keep != nil {
			if err := keepSession(tx, p.v.id, *p.keep); err != nil {
				return firmseal.Leaf{}, nil, err
			}
		}
		before, err := attempts(tx, p.v.id)
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		a = Attempt{N: len(before) + 1, Purpose: purpose, Round: round, KeyID: keyID, Inputs: inputs, State: attemptOpen, Opened: db.Now()}
		for _, b := range before {
			if b.Purpose != purpose || b.Round != round || b.KeyID != keyID {
				continue
			}
			// A person resumes the request, never its bytes: the same key over
			// the same inputs, or nothing.
			if !sameInputs(b.Inputs, inputs) {
				return firmseal.Leaf{}, nil, altered("request %s", p.v.id).Seen("attempt %d was for other bytes than attempt %d", a.N, b.N)
			}
			a.Resumed = b.State == attemptUnknown
		}
		leaf := firmseal.Leaf{
			Type: firmseal.LeafAttempt, Actor: p.r.Actor, Request: p.v.id, Record: hexSum(p.v.document), Key: keyID,
			Attempt: a.N, Resumed: a.Resumed, Inputs: inputs, Input: p.r.Input.SHA256, Unseen: p.r.BytesUnseen,
		}
		return leaf, func(id string) error {
			a.leaf = id
			return insertAttempt(tx, p.v.id, a)
		}, nil
	})
	if err != nil {
		return Attempt{}, err
	}
	p.open, p.keep = &a, nil
	return a, nil
}

// unavailable closes an attempt whose backend did not answer and reports
// whether another may be made without a person.
func (s *Service) unavailable(ctx context.Context, p *progress, cause error) (again bool, err error) {
	pr := problem.Of(cause)
	err = s.db.Update(ctx, func(tx *db.Tx) error {
		if err := closeAttempt(tx, p.v.id, *p.open, attemptFailed, pr.Code); err != nil {
			return err
		}
		all, err := attempts(tx, p.v.id)
		if err != nil {
			return err
		}
		n := 0
		for _, a := range all {
			switch {
			case a.Resumed:
				n = 1
			case a.Purpose == p.open.Purpose && a.Round == p.open.Round && a.KeyID == p.open.KeyID:
				n++
			}
		}
		again = n < MaxAutomaticAttempts
		if again {
			return nil
		}
		return s.unknown(tx, p.v, problem.New(problem.RequestUnknown, "key %s did not answer in %d attempts", p.open.KeyID, n).
			Seen("%s", pr.What).WithHint("when the key backend is back: firmseal request resume %s", p.v.id))
	})
	if err != nil {
		return false, err
	}
	p.open = nil
	if !again {
		s.metrics.SignRequest(telemetry.Unknown)
		s.changed(p.v.id)
	}
	return again, nil
}

func keepSession(tx *db.Tx, request string, k saved) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(`UPDATE signing_request SET session = $2 WHERE id = $1`, request, b); err != nil {
		return fmt.Errorf("keeping the session of request %s: %w", request, err)
	}
	return nil
}

func hexBytes(b []byte) string { return hex.EncodeToString(b) }
