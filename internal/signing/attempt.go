package signing

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
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
	resume  string // the leaf by which a person let the request go on after it
}

const attemptColumns = `n, purpose, round, key_id, inputs, leaf, state, resumed, opened, closed, code, resume`

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
		if err := rows.Scan(&a.N, &a.Purpose, &a.Round, &a.KeyID, &inputs, &a.leaf, &a.State, &resumed, &a.Opened, &a.Closed, &a.Code, &a.resume); err != nil {
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
	_, err = tx.Exec(`INSERT INTO signing_attempt(request, n, purpose, round, key_id, inputs, leaf, state, resumed, opened, closed, code, resume)
		VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,0,'','')`,
		request, a.N, string(a.Purpose), a.Round, a.KeyID, string(inputs), a.leaf, attemptOpen, resumed, a.Opened)
	if err != nil {
		return fmt.Errorf("opening attempt %d of request %s: %w", a.N, request, err)
	}
	return nil
}

// closeAttempt ends an attempt that must still be as this process opened it.
func closeAttempt(tx *db.Tx, request string, a Attempt, state string, code problem.Code) error {
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

// lost makes a request unknown whose last attempt nobody holds: nobody can know
// whether the key was used, and a person decides. why says what happened.
func (s *Service) lost(ctx context.Context, v row, p past, why string) error {
	a := p.last()
	err := s.db.Update(ctx, func(tx *db.Tx) error {
		if err := s.expect(tx, v, v.state); err != nil {
			return err
		}
		if err := sameAttempts(tx, v.id, p.attempts); err != nil {
			return err
		}
		return s.unknown(tx, v, problem.New(problem.RequestUnknown, "the outcome of attempt %d of request %s is unknown", a.N, v.id).
			Seen("%s while key %s may have been in use; nothing was released", why, a.KeyID).
			WithHint("firmseal request resume %s", v.id))
	})
	if err != nil {
		return err
	}
	s.metrics.SignRequest(telemetry.Unknown)
	s.changed(v.id)
	return nil
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
	v    row // as it must be in the database
	r    Request
	keys map[string]keys.Key // by key id
	past []Attempt           // as they must be in the database
	open bool                // the last of past is open: the next transaction closes it
	keep *saved              // and what it stores with that
	held []byte              // the finished file, where the outcome's transaction stores it
}

// closed marks the last attempt in memory, after its transaction.
func (p *progress) closed(state string) {
	p.past = slices.Clone(p.past)
	p.past[len(p.past)-1].State = state
	p.open = false
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
		var sigs []image.Signature
		for _, q := range reqs {
			t := &keys.Ticket{Request: p.v.document, Leaf: leaf, Proof: proof, Slot: q.Slot, Alg: q.Alg, Kind: q.Kind, Input: q.Input}
			s.step("key.use")
			if err := s.ready(ctx, p, k, Signing); err != nil {
				return nil, err
			}
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

// ready is the last look before a key is used: the rows that permit the use are
// as this process holds them, and the key's own row is as the key is.
func (s *Service) ready(ctx context.Context, p *progress, k keys.Key, state State) error {
	return s.db.View(ctx, func(tx *db.Tx) error {
		if err := s.stillKey(tx, p.r, k); err != nil {
			return err
		}
		return s.unchanged(tx, p.v, state, p.past)
	})
}

// stillKey holds the key's row against the key and the log just before it is
// used.
func (s *Service) stillKey(tx *db.Tx, r Request, k keys.Key) error {
	i := k.Info()
	rec, err := readKey(tx, i.Name)
	if err != nil {
		return err
	}
	if rec.ID() != i.ID() || rec.Binding != i.Binding || rec.URI != i.URI || rec.Project != r.Project {
		return altered("key %s", i.Name).Seen("the database says %+v of project %s, the key itself %+v", rec.Binding, rec.Project, i.Binding)
	}
	return s.book.holds(rec)
}

// openAttempt makes the next attempt durable, with its leaf. The attempt before
// it, if this process holds one, is closed as signed in the same transaction.
func (s *Service) openAttempt(ctx context.Context, p *progress, purpose keys.Purpose, round int, keyID string, inputs []firmseal.LeafInput) (Attempt, error) {
	a := Attempt{N: len(p.past) + 1, Purpose: purpose, Round: round, KeyID: keyID, Inputs: inputs, State: attemptOpen}
	automatic := 0
	for i, b := range p.past {
		if b.Resumed {
			automatic = 0
		}
		if b.Purpose != purpose || b.Round != round || b.KeyID != keyID {
			continue
		}
		// A person resumes the request, never its bytes: the same key over
		// the same inputs, or nothing.
		if !sameInputs(b.Inputs, inputs) {
			return Attempt{}, altered("request %s", p.v.id).Seen("attempt %d would be for other bytes than attempt %d", a.N, b.N)
		}
		automatic++
		a.Resumed = i == len(p.past)-1 && b.State == attemptUnknown
	}
	if automatic >= MaxAutomaticAttempts && !a.Resumed {
		return Attempt{}, altered("request %s", p.v.id).Seen("attempt %d would be one more than is made without a person", a.N)
	}
	session := p.v.session
	if p.keep != nil {
		var err error
		if session, err = json.Marshal(*p.keep); err != nil {
			return Attempt{}, err
		}
	}
	state := Signing
	if purpose == keys.Seal {
		state, session = Sealing, p.v.session
	}
	s.step("attempt.commit")
	_, err := s.append(ctx, func(tx *db.Tx) (firmseal.Leaf, func(string) error, error) {
		if err := s.expect(tx, p.v, state); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if err := sameAttempts(tx, p.v.id, p.past); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if err := ticketSpent(tx, p.v); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if err := activeKey(tx, p.r, purpose, keyID); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if p.open {
			if err := closeAttempt(tx, p.v.id, p.past[len(p.past)-1], attemptSigned, ""); err != nil {
				return firmseal.Leaf{}, nil, err
			}
		}
		if p.keep != nil {
			if err := keepSession(tx, p.v.id, session); err != nil {
				return firmseal.Leaf{}, nil, err
			}
		}
		a.Opened = db.Now()
		leaf := firmseal.Leaf{
			Type: firmseal.LeafAttempt, Actor: p.r.Actor, Request: p.v.id, Record: hexSum(p.v.document), Key: keyID,
			Attempt: a.N, Resumed: a.Resumed, Inputs: inputs, Input: p.r.Input.SHA256, Unseen: p.r.BytesUnseen,
			Session: sessionSum(session),
		}
		return leaf, func(id string) error {
			a.leaf = id
			return insertAttempt(tx, p.v.id, a)
		}, nil
	})
	if err != nil {
		return Attempt{}, err
	}
	if p.open {
		p.closed(attemptSigned)
	}
	p.v.session = session
	p.past, p.open, p.keep = append(slices.Clip(p.past), a), true, nil
	return a, nil
}

// activeKey refuses a retired key, and keeps it from being retired before the
// end of tx: no attempt is opened behind a retirement.
func activeKey(tx *db.Tx, r Request, purpose keys.Purpose, id string) error {
	if purpose == keys.Seal {
		k, err := keyByID(tx, r.Project, id)
		if err != nil {
			return err
		}
		_, err = shareKey(tx, k.Name)
		return err
	}
	for _, ref := range r.Keys {
		if ref.ID == id {
			_, err := shareKey(tx, ref.Name)
			return err
		}
	}
	return problem.New(problem.KeyBinding, "key %s is not one of request %s", id, r.ID)
}

// unavailable closes an attempt whose backend did not answer and reports
// whether another may be made without a person.
func (s *Service) unavailable(ctx context.Context, p *progress, cause error) (again bool, err error) {
	pr := problem.Of(cause)
	a := p.past[len(p.past)-1]
	n := 0
	for _, b := range p.past {
		switch {
		case b.Resumed:
			n = 1
		case b.Purpose == a.Purpose && b.Round == a.Round && b.KeyID == a.KeyID:
			n++
		}
	}
	again = n < MaxAutomaticAttempts
	err = s.db.Update(ctx, func(tx *db.Tx) error {
		if err := s.expect(tx, p.v, p.v.state); err != nil {
			return err
		}
		if err := sameAttempts(tx, p.v.id, p.past); err != nil {
			return err
		}
		if err := closeAttempt(tx, p.v.id, a, attemptFailed, pr.Code); err != nil {
			return err
		}
		if again {
			return nil
		}
		return s.unknown(tx, p.v, problem.New(problem.RequestUnknown, "key %s did not answer in %d attempts", a.KeyID, n).
			Seen("%s", pr.What).WithHint("when the key backend is back: firmseal request resume %s", p.v.id))
	})
	if err != nil {
		return false, err
	}
	p.closed(attemptFailed)
	if !again {
		s.metrics.SignRequest(telemetry.Unknown)
		s.changed(p.v.id)
	}
	return again, nil
}

func keepSession(tx *db.Tx, request string, session []byte) error {
	if _, err := tx.Exec(`UPDATE signing_request SET session = $2 WHERE id = $1`, request, session); err != nil {
		return fmt.Errorf("keeping the session of request %s: %w", request, err)
	}
	return nil
}

func hexBytes(b []byte) string { return hex.EncodeToString(b) }
