package signing

import (
	"context"
	"strings"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/tlog"
)

// past is what has happened to a request, as its rows and the log agree on it.
type past struct {
	attempts []Attempt
	intent   int64 // index of its leaf; -1 before
	outcome  int64 // index of the sealed outcome's leaf; -1 before
	resumed  bool  // a person let it go on after the last attempt
}

// last is the newest attempt, or nil.
func (p past) last() *Attempt {
	if len(p.attempts) == 0 {
		return nil
	}
	return &p.attempts[len(p.attempts)-1]
}

// history holds a request's state, attempts and session against everything
// that the log has of it: a state moved by hand has no leaf that moved it, an
// attempt that was added, changed or removed has none or is missed, and a
// person's leave to go on cannot be written into a row.
func (s *Service) history(ctx context.Context, v row, r Request) (past, error) {
	p := past{intent: -1, outcome: -1}
	if err := s.db.View(ctx, func(tx *db.Tx) (err error) {
		p.attempts, err = attempts(tx, v.id)
		return err
	}); err != nil {
		return p, err
	}
	// On PostgreSQL a leaf may be committed and not yet in the order of the log.
	for _, a := range p.attempts {
		if err := s.inLog(ctx, a.leaf); err != nil {
			return p, unknownLeaf(err, "attempt %d of request %s", a.N, v.id)
		}
		if a.resume == "" {
			continue
		}
		if err := s.inLog(ctx, a.resume); err != nil {
			return p, unknownLeaf(err, "a person's resume of request %s", v.id)
		}
	}
	no := func(format string, a ...any) error {
		return altered("request %s", v.id).Seen(format, a...)
	}
	var es []tlog.Entry
	for q := (tlog.Query{Request: v.id, Limit: leavesAtOnce}); ; q.From = es[len(es)-1].Index + 1 {
		page, err := s.log.Find(ctx, q)
		if err != nil {
			return p, err
		}
		es = append(es, page...)
		if len(page) < q.Limit {
			break
		}
	}
	n, requests := 0, 0
	session := ""
	for _, e := range es {
		// The row's bytes make its id; that they are in the tree is proven here.
		if err := s.proveEntry(ctx, e); err != nil {
			return p, err
		}
		leaf := e.Leaf
		sealed := leaf.Type == firmseal.LeafOutcome && leaf.Result == "sealed"
		switch {
		case leaf.Type == firmseal.LeafRequest:
			requests++
		case leaf.Type == firmseal.LeafIntent:
			if p.intent >= 0 {
				return p, no("the log has two intents")
			}
			if leaf.Record != hexSum(v.document) || leaf.Decision != "allow" {
				return p, no("the log's intent is for record %s", leaf.Record)
			}
			p.intent = e.Index
			if err := s.entitled(ctx, v, r, leaf, e.Index); err != nil {
				return p, err
			}
		case leaf.Type == firmseal.LeafAttempt || sealed:
			if sealed {
				if p.outcome >= 0 || e.ID != v.outcome {
					return p, no("its row does not name the outcome that the log has")
				}
				p.outcome = e.Index
			}
			if n == len(p.attempts) {
				return p, no("the log has attempt %d, the database has not", leaf.Attempt)
			}
			a := p.attempts[n]
			n++
			if !a.is(e.ID, leaf, p.outcome >= 0) {
				return p, no("attempt %d is not the one that the log has", a.N)
			}
			if s.book.retiredBefore(a.KeyID, e.Index) {
				return p, no("attempt %d was begun after the log has the retirement of its key", a.N)
			}
			p.resumed, session = false, leaf.Session
		case leaf.Type == firmseal.LeafResume:
			if n == 0 || leaf.Record != hexSum(v.document) || leaf.Attempt != n || p.attempts[n-1].resume != e.ID {
				return p, no("a person's resume is not the one that the log has")
			}
			if err := s.entitled(ctx, v, r, leaf, e.Index); err != nil {
				return p, err
			}
			p.resumed = true
		case leaf.Type == firmseal.LeafOutcome:
			return p, no("the log says that it has failed: %s", leaf.Code)
		}
	}
	switch {
	case v.state != Queued && v.state != Signing && v.state != Sealing:
		return p, no("its state is %q", string(v.state))
	case requests != 1:
		return p, no("the log has %d entries of its beginning", requests)
	case n != len(p.attempts):
		return p, no("attempt %d has no entry in the log", n+1)
	case (v.state == Queued) != (p.intent < 0):
		return p, no("it is %s, and the log has no intent, or one too early", v.state)
	case (v.state == Sealing) != (p.outcome >= 0):
		return p, no("it is %s, and the log has no outcome, or one too early", v.state)
	case v.state == Queued && len(p.attempts) > 0:
		return p, no("it is queued and has attempts")
	case v.state == Sealing && len(v.session) > 0, v.state != Sealing && sessionSum(v.session) != session:
		return p, no("its session is not the one that attempt %d was logged with", n)
	}
	for i, a := range p.attempts[:max(0, len(p.attempts)-1)] {
		if a.State == attemptOpen {
			return p, no("attempt %d is open, and there is another after it", i+1)
		}
	}
	if l := p.last(); l != nil {
		switch l.State {
		case attemptOpen, attemptFailed:
		case attemptUnknown:
			if !p.resumed {
				return p, no("nobody has let it go on after attempt %d", l.N)
			}
		default:
			return p, no("attempt %d is %s, and the request is not further", l.N, l.State)
		}
	}
	return p, nil
}

// leavesAtOnce is how many leaves are read at a time; a request has a handful.
const leavesAtOnce = 500

// is compares an attempt's row with its leaf.
func (a Attempt) is(id string, leaf firmseal.Leaf, sealing bool) bool {
	key, inputs, purpose := leaf.Key, leaf.Inputs, keys.Firmware
	if sealing {
		purpose = keys.Seal
	}
	if leaf.Type == firmseal.LeafOutcome {
		key, inputs = leaf.SealKey, []firmseal.LeafInput{{Slot: keys.SealSlot, Kind: "message", SHA256: leaf.Statement}}
	}
	return a.leaf == id && a.N == leaf.Attempt && a.KeyID == key && a.Resumed == leaf.Resumed && sameInputs(a.Inputs, inputs) &&
		a.Purpose == purpose
}

// entitled asks the log whether the transaction that redeemed the ticket, or let
// the request go on, saw what was true: the newest policy, and keys that were not
// retired. It held both until its end, so that what came before it has a lower
// index than its leaf, and what came after it a higher one.
func (s *Service) entitled(ctx context.Context, v row, r Request, intent firmseal.Leaf, index int64) error {
	if err := s.follow(ctx); err != nil {
		return err
	}
	if p, ok := s.book.policyBefore(v.project, index); !ok || p.digest != intent.Policy {
		return altered("the policy of project %s", v.project).
			Seen("request %s was let through by policy %s, the log's newest before it was %s", v.id, intent.Policy, p.digest)
	}
	for _, ref := range r.Keys {
		if s.book.retiredBefore(ref.ID, index) {
			return altered("key %s", ref.Name).Seen("request %s was let through after the log has the key's retirement", v.id)
		}
	}
	return nil
}

// sessionSum names a saved session in the log; none is the empty text.
func sessionSum(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	return hexSum(b)
}

// unchanged reads, inside tx, all that a use of a key rests on, and refuses
// where it is not what this process holds: the request's row, its ticket and
// its attempts.
func (s *Service) unchanged(tx *db.Tx, v row, state State, known []Attempt) error {
	now, err := readRow(tx, v.id)
	if err != nil {
		return err
	}
	if now.state != state && now.state.Rests() {
		return errRests
	}
	if now.state != state {
		return altered("request %s", v.id).Seen("it is %q, it was %s", string(now.state), state)
	}
	if err := v.same(now); err != nil {
		return err
	}
	if err := ticketSpent(tx, v); err != nil {
		return err
	}
	return sameAttempts(tx, v.id, known)
}

// same compares all columns but those that any step may change.
func (v row) same(now row) error {
	var what []string
	for _, c := range []struct {
		name string
		same bool
	}{
		{"document", string(now.document) == string(v.document)},
		{"digest", string(now.digest) == string(v.digest)},
		{"leaf", now.leaf == v.leaf},
		{"product", now.product == v.product},
		{"environment", now.environment == v.environment},
		{"version", now.version == v.version},
		{"policy", now.policy == v.policy},
		{"project", now.project == v.project},
		{"actor", now.actor == v.actor},
		{"build_id", now.buildID == v.buildID},
		{"session", string(now.session) == string(v.session)},
		{"receipt", now.receipt == v.receipt},
		{"output", now.output == v.output},
		{"output_size", now.outputSize == v.outputSize},
		{"statement", string(now.statement) == string(v.statement)},
		{"outcome", now.outcome == v.outcome},
		{"release", now.release == v.release},
	} {
		if !c.same {
			what = append(what, c.name)
		}
	}
	if what != nil {
		return altered("request %s", v.id).Seen("its row changed between two steps: %s", strings.Join(what, ", "))
	}
	return nil
}

// sameAttempts holds the attempts' rows against what this process knows of them.
func sameAttempts(tx *db.Tx, request string, known []Attempt) error {
	rows, err := attempts(tx, request)
	if err != nil {
		return err
	}
	if len(rows) != len(known) {
		return altered("the attempts of request %s", request).Seen("there are %d rows, there should be %d", len(rows), len(known))
	}
	for i, a := range known {
		b := rows[i]
		if b.N != a.N || b.Purpose != a.Purpose || b.Round != a.Round || b.KeyID != a.KeyID || b.leaf != a.leaf || b.State != a.State ||
			b.Resumed != a.Resumed || b.resume != a.resume || b.Opened != a.Opened || !sameInputs(b.Inputs, a.Inputs) {
			return altered("attempt %d of request %s", a.N, request).Seen("its row is not what was written")
		}
	}
	return nil
}
