package signing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
)

// sealer gives the newest active seal key of the request's environment, held
// against the log and its backend.
func (s *Service) sealer(ctx context.Context, r Request) (KeyRecord, error) {
	var rec KeyRecord
	if err := s.db.View(ctx, func(tx *db.Tx) (err error) {
		rec, err = sealKey(tx, r.Project, keys.Environment(r.Environment))
		return err
	}); err != nil {
		return KeyRecord{}, err
	}
	if err := s.holdKey(ctx, rec); err != nil {
		return KeyRecord{}, err
	}
	_, err := s.open(ctx, rec)
	return rec, err
}

// errSealerMoved asks for another seal key: the one that was looked at is no
// longer the newest active one.
var errSealerMoved = errors.New("another seal key is the newest")

// outcome records that the finished file is right, and commits to the statement
// that will be sealed. The outcome leaf is what permits the seal key's first
// use, so the attempt on the seal key opens here.
func (s *Service) outcome(ctx context.Context, p *progress, out release.File, receipt *image.Receipt) error {
	s.step("outcome.commit")
	for range maxMoves {
		sk, err := s.sealer(ctx, p.r)
		if err != nil {
			return err
		}
		if err := s.commitOutcome(ctx, p, sk, out, receipt); !errors.Is(err, errSealerMoved) {
			return err
		}
	}
	return problem.New(problem.Conflict, "the seal keys change faster than request %s can be sealed", p.v.id)
}

func (s *Service) commitOutcome(ctx context.Context, p *progress, sk KeyRecord, out release.File, receipt *image.Receipt) error {
	rj, err := json.Marshal(receipt)
	if err != nil {
		return err
	}
	var a Attempt
	next := p.v
	id, err := s.append(ctx, func(tx *db.Tx) (firmseal.Leaf, func(string) error, error) {
		if err := s.expect(tx, p.v, Signing); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if err := sameAttempts(tx, p.v.id, p.past); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if err := ticketSpent(tx, p.v); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if err := closeAttempt(tx, p.v.id, p.past[len(p.past)-1], attemptSigned, ""); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		now, err := sealKey(tx, p.r.Project, keys.Environment(p.r.Environment))
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		if now.ID() != sk.ID() {
			return firmseal.Leaf{}, nil, errSealerMoved
		}
		if _, err := shareKey(tx, now.Name); problem.Has(err, problem.KeyRetired) {
			return firmseal.Leaf{}, nil, errSealerMoved
		} else if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		statement, err := s.statement(p.r, hexSum(p.v.document), p.v.policy, out, receipt)
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		a = Attempt{N: len(p.past) + 1, Purpose: keys.Seal, KeyID: sk.ID(), State: attemptOpen, Opened: db.Now(), Inputs: sealInputs(statement)}
		leaf := firmseal.Leaf{
			Type: firmseal.LeafOutcome, Actor: p.r.Actor, Request: p.v.id, Record: hexSum(p.v.document), Policy: p.v.policy,
			Input: p.r.Input.SHA256, Output: out.SHA256, Statement: hexSum(statement), SealKey: sk.ID(), Result: "sealed",
			Attempt: a.N, Unseen: p.r.BytesUnseen,
		}
		next.receipt, next.output, next.outputSize, next.statement, next.session = string(rj), out.SHA256, out.Size, statement, nil
		return leaf, func(id string) error {
			a.leaf = id
			if err := insertAttempt(tx, p.v.id, a); err != nil {
				return err
			}
			if _, err := tx.Exec(`UPDATE signing_request SET receipt = $2, output = $3, output_size = $4, statement = $5, outcome = $6, session = NULL WHERE id = $1`,
				p.v.id, next.receipt, next.output, next.outputSize, statement, id); err != nil {
				return fmt.Errorf("recording the outcome of %s: %w", p.v.id, err)
			}
			if err := s.putOutput(tx, p.r, out, p.held); err != nil {
				return err
			}
			return s.move(tx, p.v, Sealing, "")
		}, nil
	})
	if err != nil {
		return err
	}
	p.closed(attemptSigned)
	next.outcome, next.state = id, Sealing
	p.v, p.past, p.open = next, append(slices.Clip(p.past), a), true
	return nil
}

// sealInputs describes a seal for the attempt's row. The digest is of the
// statement, which the seal key's gate derives from what it signs.
func sealInputs(statement []byte) []firmseal.LeafInput {
	return []firmseal.LeafInput{{Slot: keys.SealSlot, Kind: "message", SHA256: hexSum(statement)}}
}

// statement is the release statement: everything that the seal says.
func (s *Service) statement(r Request, digest, policy string, out release.File, receipt *image.Receipt) ([]byte, error) {
	subjects := []firmseal.Subject{firmseal.NewSubject(out.Name, out.SHA256)}
	if receipt.Detached {
		subjects = []firmseal.Subject{firmseal.NewSubject(r.Input.Name, r.Input.SHA256), firmseal.NewSubject(out.Name, out.SHA256)}
	}
	var signed []string
	for _, k := range r.Keys {
		signed = append(signed, k.ID)
	}
	return firmseal.NewStatement(subjects, firmseal.Release{
		Product: r.Product, HardwareIDs: r.HardwareIDs, Variant: r.Variant, Version: r.Version, SecurityCounter: r.SecurityCounter,
		MinimumVersion: r.MinimumVersion, Dependencies: r.Dependencies, Format: r.Format, Environment: r.Environment,
		Emergency: r.Emergency, BytesUnseen: r.BytesUnseen, Created: time.UnixMicro(db.Now()).UTC().Truncate(time.Second),
		Request: firmseal.RequestRef{ID: r.ID, SHA256: digest}, Requester: r.Actor, SignedWith: signed,
		Policy: policy, BuildID: r.BuildID, Metadata: r.Metadata,
	}).Marshal()
}
