package signing

import (
	"context"
	"fmt"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/policy"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
)

// redeem is the transaction in which a request becomes entitled to its keys:
// everything that Submit looked at is looked at again, as it is now, and the
// ticket is spent. After it, a changed policy no longer stops the request; before
// it, it does. A retired key stops it until an attempt on that key is open.
func (s *Service) redeem(ctx context.Context, v row, r Request) error {
	again, err := s.looker(ctx, r)
	if err != nil {
		return err
	}
	s.step("redeem.commit")
	if err := s.holdKeys(ctx, r); err != nil {
		return err
	}
	var id string
	redeem := func(tx *db.Tx) (firmseal.Leaf, func(string) error, error) {
		if err := s.expect(tx, v, Queued); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if err := redeemTicket(tx, v); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		leaf, err := again(tx)
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		leaf.Type, leaf.Actor, leaf.Record, leaf.Input, leaf.Unseen = firmseal.LeafIntent, r.Actor, hexSum(v.document), r.Input.SHA256, r.BytesUnseen
		return leaf, func(string) error { return s.move(tx, v, Signing, "") }, nil
	}
	if err := s.withPolicy(ctx, r.Project, func() (err error) {
		id, err = s.append(ctx, redeem)
		return err
	}); err != nil {
		return err
	}
	s.step("intent.wait")
	return s.inLog(ctx, id)
}

// holdKeys holds a request's keys against the log, outside of a transaction.
// Whether they are retired is decided inside.
func (s *Service) holdKeys(ctx context.Context, r Request) error {
	for _, ref := range r.Keys {
		if _, err := s.heldKey(ctx, r.Project, ref.Name); err != nil && !problem.Has(err, problem.KeyRetired) {
			return err
		}
	}
	return nil
}

// looker reads what the image says, and gives a function that looks at all else
// inside a transaction: the policy in force and what the profile means, the keys'
// state, the counter, and the claim on the version, which it takes. What it
// looked at stays as it is until the transaction's end. The leaf that it returns
// has the decision; a refusal is an error.
func (s *Service) looker(ctx context.Context, r Request) (func(tx *db.Tx) (firmseal.Leaf, error), error) {
	f, err := s.formats.ByName(r.Format)
	if err != nil {
		return nil, err
	}
	var facts image.Facts
	if !r.BytesUnseen {
		src, closeSrc, err := s.source(ctx, r)
		if err != nil {
			return nil, err
		}
		rep, err := f.Inspect(ctx, src)
		closeSrc()
		if err != nil {
			return nil, err
		}
		facts = rep.Facts
	}
	return func(tx *db.Tx) (firmseal.Leaf, error) {
		if err := sharePolicy(tx, r.Project); err != nil {
			return firmseal.Leaf{}, err
		}
		doc, err := s.inForce(tx, r.Project)
		if err != nil {
			return firmseal.Leaf{}, err
		}
		if err := s.same(tx, doc, r, f); err != nil {
			return firmseal.Leaf{}, err
		}
		for _, ref := range r.Keys {
			if _, err := shareKey(tx, ref.Name); err != nil {
				return firmseal.Leaf{}, err
			}
		}
		if err := release.Lock(tx, r.Project, r.Product, r.Environment); err != nil {
			return firmseal.Leaf{}, err
		}
		d, err := s.decide(tx, doc, r, facts)
		if err != nil {
			return firmseal.Leaf{}, err
		}
		if !d.Allow {
			return firmseal.Leaf{}, d.Problem()
		}
		if err := release.Take(tx, release.Claim{
			Request: r.ID, Project: r.Project, Product: r.Product, Environment: r.Environment, HardwareIDs: r.HardwareIDs,
			Variant: r.Variant, Version: r.Version, SecurityCounter: r.SecurityCounter,
		}); err != nil {
			return firmseal.Leaf{}, err
		}
		return firmseal.Leaf{Request: r.ID, Policy: doc.Digest(), Decision: "allow", Rule: d.Rule}, nil
	}, nil
}

// ticketSpent holds a redeemed ticket against its request.
func ticketSpent(tx *db.Tx, v row) error {
	var digest []byte
	var policy string
	var redeemed int64
	if err := tx.QueryRow(`SELECT digest, policy, redeemed FROM signing_ticket WHERE request = $1`, v.id).Scan(&digest, &policy, &redeemed); err != nil {
		return altered("the ticket of request %s", v.id).Seen("it cannot be read").Because(err)
	}
	if string(digest) != string(v.digest) || policy != v.policy || redeemed == 0 {
		return altered("the ticket of request %s", v.id).Seen("it is for request digest %x under policy %s, redeemed at %d", digest, clip(policy), redeemed)
	}
	return nil
}

// redeemTicket spends the ticket, once.
func redeemTicket(tx *db.Tx, v row) error {
	var digest []byte
	var policy string
	var redeemed int64
	if err := tx.QueryRow(`SELECT digest, policy, redeemed FROM signing_ticket WHERE request = $1`, v.id).Scan(&digest, &policy, &redeemed); err != nil {
		return altered("the ticket of request %s", v.id).Seen("it cannot be read").Because(err)
	}
	if hexBytes(digest) != hexBytes(v.digest) || policy != v.policy {
		return altered("the ticket of request %s", v.id).Seen("it is for request digest %x under policy %s, the request is %x under %s", digest, clip(policy), v.digest, v.policy)
	}
	if redeemed != 0 {
		return altered("the ticket of request %s", v.id).Seen("the request is queued, but its ticket was redeemed at %s", day(redeemed))
	}
	res, err := tx.Exec(`UPDATE signing_ticket SET redeemed = $2 WHERE request = $1 AND redeemed = 0`, v.id, db.Now())
	if err != nil {
		return fmt.Errorf("redeeming the ticket of %s: %w", v.id, err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return err
	} else if n != 1 {
		return problem.New(problem.Conflict, "the ticket of request %s was redeemed meanwhile", v.id)
	}
	return nil
}

// same checks that the policy in force still means for r what it meant when r
// was recorded: what people looked at is what is signed.
func (s *Service) same(tx *db.Tx, doc *policy.Document, r Request, f image.Format) error {
	p, ok := doc.Profile(r.Profile)
	if !ok {
		return problem.New(problem.PolicyProfile, "profile %s is gone from the policy", r.Profile).WithHint("send the request again with another profile")
	}
	now := r
	now.Product, now.Environment, now.Format, now.Target = p.Product, p.Environment, p.Format, p.Target
	if now.Format == r.Format {
		if err := s.bind(tx, &now, p, f); err != nil {
			return err
		}
	}
	was, err := r.Canonical()
	if err != nil {
		return err
	}
	is, err := now.Canonical()
	if err != nil {
		return err
	}
	if string(was) != string(is) {
		return problem.New(problem.PolicyChanged, "profile %s was changed after the request was made", r.Profile).
			Seen("the request was recorded for other keys, options or targets").WithHint("send the request again")
	}
	return nil
}
