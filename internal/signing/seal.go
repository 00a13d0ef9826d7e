package signing

import (
	"context"
	"encoding/json"
	"time"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/jobs"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
	"github.com/firmseal/firmseal/internal/telemetry"
)

// seal signs the statement and releases. The attempt that outcome opened in
// this process is used; without one, after a crash, a new attempt is opened.
func (s *Service) seal(ctx context.Context, p *progress) error {
	v, r := p.v, p.r
	proof, leafBytes, err := s.proof(ctx, v.outcome)
	if err != nil {
		return unknownLeaf(err, "the outcome of request %s", v.id)
	}
	leaf, err := firmseal.ParseLeaf(leafBytes)
	if err != nil {
		return err
	}
	if leaf.Type != firmseal.LeafOutcome || leaf.Result != "sealed" || leaf.Request != v.id || leaf.Record != hexSum(v.document) ||
		leaf.Statement != hexSum(v.statement) || leaf.Output != v.output {
		return altered("the outcome of request %s", v.id).Seen("the log commits to output %s and statement %s, the row has %s and %s", leaf.Output, leaf.Statement, v.output, hexSum(v.statement))
	}
	if p.open {
		// In the process that signed, the log is compared with it once more:
		// whatever was written to the log's rows meanwhile ends here.
		was, err := s.history(ctx, v, r)
		if err != nil {
			return err
		}
		if l := was.last(); l == nil || l.State != attemptOpen {
			return altered("request %s", v.id).Seen("the seal key's attempt is not open")
		}
	}
	if err := s.asSealed(ctx, v, r); err != nil {
		return err
	}
	rec, err := s.sealedBy(ctx, r, leaf.SealKey)
	if err != nil {
		return err
	}
	k, err := s.open(ctx, rec)
	if err != nil {
		return err
	}
	env, err := s.useSeal(ctx, p, k, leafBytes, proof)
	if err != nil {
		return err
	}
	s.step("seal.verify")
	if err := s.checkSeal(p.v, r, rec, env, proof); err != nil {
		return err
	}
	return s.release(ctx, p, env, proof)
}

// sealedBy gives the seal key that an outcome leaf names, held against the log.
// One that was retired after its attempt was opened finishes what it began.
func (s *Service) sealedBy(ctx context.Context, r Request, id string) (KeyRecord, error) {
	var rec KeyRecord
	if err := s.db.View(ctx, func(tx *db.Tx) (err error) {
		rec, err = keyByID(tx, r.Project, id)
		return err
	}); err != nil {
		return KeyRecord{}, err
	}
	if err := s.holdKey(ctx, rec); err != nil && !problem.Has(err, problem.KeyRetired) {
		return KeyRecord{}, err
	}
	return rec, nil
}

// useSeal lets the seal key sign, in attempts as any other key.
func (s *Service) useSeal(ctx context.Context, p *progress, k keys.Key, leaf, proof []byte) ([]byte, error) {
	ctx = holding(ctx, p.v.id)
	scheme := alg.For(k.Info().Type)[0]
	var attempt, attemptProof []byte // of a use that is not the first: the outcome permits that
	for {
		if !p.open {
			a, err := s.openAttempt(ctx, p, keys.Seal, 0, k.Info().ID(), sealInputs(p.v.statement))
			if err != nil {
				return nil, err
			}
			if attemptProof, attempt, err = s.proof(ctx, a.leaf); err != nil {
				return nil, err
			}
		}
		s.step("seal.use")
		if err := s.ready(ctx, p, k, Sealing); err != nil {
			return nil, err
		}
		made := false // the key has given a signature, right or wrong
		env, err := firmseal.Seal(p.v.statement, k.Info().SPKI, func(pae []byte) ([]byte, error) {
			began := time.Now()
			defer func() { s.metrics.KeyWait(time.Since(began)) }()
			sig, err := k.Sign(ctx, &keys.Ticket{
				Leaf: leaf, Proof: proof, Attempt: attempt, AttemptProof: attemptProof,
				Slot: keys.SealSlot, Alg: scheme, Kind: alg.Message, Input: pae,
			})
			made = err == nil
			return sig, err
		})
		s.step("seal.used")
		if err == nil {
			return env, nil
		}
		if made {
			return nil, problem.New(problem.VerifyFailed, "the seal of request %s would be refused by a device", p.v.id).
				Seen("%s", problem.Of(err).What).Because(err)
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

// release is the last transaction: the request has its one release, and its job
// is done. Where it succeeds, it returns errRests.
func (s *Service) release(ctx context.Context, p *progress, env, proof []byte) error {
	v, r := p.v, p.r
	var receipt image.Receipt
	if err := json.Unmarshal([]byte(v.receipt), &receipt); err != nil {
		return altered("request %s", v.id).Seen("its receipt cannot be decoded").Because(err)
	}
	pr, err := firmseal.ParseProof(proof)
	if err != nil {
		return err
	}
	rel := release.Release{
		ID: db.NewID(), Project: r.Project, Request: r.ID, Product: r.Product, Environment: r.Environment, HardwareIDs: r.HardwareIDs,
		Variant: r.Variant, Version: r.Version, SecurityCounter: r.SecurityCounter, Format: r.Format, Emergency: r.Emergency,
		BytesUnseen: r.BytesUnseen, BuildID: r.BuildID, Seal: env, LeafIndex: pr.Index, Created: db.Now(),
		Image: release.File{Name: r.Input.Name, SHA256: v.output, Size: v.outputSize},
	}
	if receipt.Detached {
		rel.Image = release.File{Name: r.Input.Name, SHA256: r.Input.SHA256, Size: r.Input.Size}
		rel.Signature = &release.File{Name: r.Input.Name + detachedSuffix, SHA256: v.output, Size: v.outputSize}
	}
	s.step("release.commit")
	err = s.db.Update(ctx, func(tx *db.Tx) error {
		if err := s.expect(tx, v, Sealing); err != nil {
			return err
		}
		if err := sameAttempts(tx, v.id, p.past); err != nil {
			return err
		}
		if err := closeAttempt(tx, v.id, p.past[len(p.past)-1], attemptSigned, ""); err != nil {
			return err
		}
		if err := release.Create(tx, rel); err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE signing_request SET release = $2 WHERE id = $1`, v.id, rel.ID); err != nil {
			return err
		}
		if err := s.move(tx, v, Released, ""); err != nil {
			return err
		}
		return jobs.Finish(ctx, tx)
	})
	if err != nil {
		return err
	}
	s.step("release.done")
	s.metrics.SignRequest(telemetry.Released)
	if d, ok := sinceBuild(v.buildTime, rel.Created); ok {
		s.metrics.SignLatency(d)
	}
	s.changed(v.id)
	return errRests
}

const (
	// clockSkew is how much later than ours a builder's clock may be.
	clockSkew = time.Hour
	// oldestBuild is the age from which a build was not waiting for its signature.
	oldestBuild = 30 * 24 * time.Hour
)

// sinceBuild is the time from the end of a build, as its builder says, to its
// release; both in µs. What a builder says may be anything: ok is false where it
// is nothing, or not plausible.
func sinceBuild(finished, released int64) (d time.Duration, ok bool) {
	if finished <= 0 || finished > released+clockSkew.Microseconds() || finished < released-oldestBuild.Microseconds() {
		return 0, false
	}
	return max(0, time.Duration(released-finished)*time.Microsecond), true
}

// asSealed holds what the catalogue will say of the files against the sealed
// statement and the stored output: receipt and size are in no leaf.
func (s *Service) asSealed(ctx context.Context, v row, r Request) error {
	var receipt image.Receipt
	if err := json.Unmarshal([]byte(v.receipt), &receipt); err != nil {
		return altered("request %s", v.id).Seen("its receipt cannot be decoded").Because(err)
	}
	st, err := firmseal.ParseStatement(v.statement)
	if err != nil {
		return err
	}
	if receipt.Detached != (len(st.Subjects) == 2) || st.Subjects[len(st.Subjects)-1].SHA256 != v.output {
		return altered("request %s", v.id).Seen("its receipt is of other files than its statement")
	}
	blobs, err := s.blobs(r.Project)
	if err != nil {
		return err
	}
	info, err := blobs.Stat(ctx, blob.Digest(v.output))
	if err != nil {
		return err
	}
	if info.Size != v.outputSize {
		return altered("request %s", v.id).Seen("its output has %d bytes, its row says %d", info.Size, v.outputSize)
	}
	return nil
}
