package signing

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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

// source opens the request's image.
func (s *Service) source(ctx context.Context, r Request) (image.Source, func(), error) {
	st, err := s.blobs(r.Project)
	if err != nil {
		return nil, nil, err
	}
	f, err := st.Open(ctx, blob.Digest(r.Input.SHA256))
	if err != nil {
		return nil, nil, err
	}
	return f, func() { f.Close() }, nil
}

// plan gives the session, and what is left of it after a crash.
func (s *Service) plan(ctx context.Context, v row, r Request, f image.Format, src image.Source, pub []image.PublicMaterial) (image.Session, *saved, error) {
	digest, err := hex.DecodeString(r.Input.SHA256)
	if err != nil {
		return nil, nil, err
	}
	unseen, _ := f.(image.DigestFormat)
	if len(v.session) > 0 {
		var k saved
		if err := json.Unmarshal(v.session, &k); err != nil {
			return nil, nil, altered("the session of request %s", v.id).Seen("it cannot be decoded").Because(err)
		}
		var sess image.Session
		if r.BytesUnseen {
			sess, err = unseen.ResumeDigest(ctx, digest, r.Input.Size, k.State)
		} else {
			sess, err = f.Resume(ctx, src, k.State)
		}
		return sess, &k, err
	}
	var sess image.Session
	if r.BytesUnseen {
		sess, err = unseen.PlanDigest(ctx, digest, r.Input.Size, r.Options, pub)
	} else {
		sess, err = f.Plan(ctx, src, r.Options, pub)
	}
	return sess, nil, err
}

// sign makes the signatures, writes the finished file, lets the format's own
// verifier judge it, records the outcome and seals.
func (s *Service) sign(ctx context.Context, v row, r Request, before past) error {
	f, err := s.formats.ByName(r.Format)
	if err != nil {
		return err
	}
	p := &progress{v: v, r: r, keys: map[string]keys.Key{}, past: before.attempts}
	var pub []image.PublicMaterial
	var anchors []image.TrustedKey
	for _, ref := range r.Keys {
		// A key that was retired after the ticket was redeemed goes on.
		rec, err := s.heldKey(ctx, r.Project, ref.Name)
		if err != nil && !problem.Has(err, problem.KeyRetired) {
			return err
		}
		k, err := s.open(ctx, rec)
		if err != nil {
			return err
		}
		if i := k.Info(); i.ID() != ref.ID {
			return altered("key %s", ref.Name).Seen("the request was recorded for %s, the key is %s", ref.ID, i.ID())
		}
		p.keys[ref.ID] = k
		pub = append(pub, image.PublicMaterial{Role: ref.Role, Name: ref.Name, SPKI: k.Info().SPKI})
		anchors = append(anchors, image.TrustedKey{Name: ref.Name, SPKI: k.Info().SPKI})
	}
	var src image.Source
	if !r.BytesUnseen {
		var closeSrc func()
		if src, closeSrc, err = s.source(ctx, r); err != nil {
			return err
		}
		defer closeSrc()
	}
	sess, err := s.rounds(ctx, p, f, src, pub)
	if err != nil {
		return err
	}

	s.step("embed.write")
	out, held, receipt, err := s.embed(ctx, r, sess)
	if err != nil {
		return err
	}
	p.held = held
	s.step("verify.output")
	if err := s.judge(ctx, f, r, src, out, held, receipt, anchors); err != nil {
		return err
	}
	if err := s.outcome(ctx, p, out, receipt); err != nil {
		return err
	}
	s.step("outcome.wait")
	return s.seal(ctx, p)
}

// rounds drives the session until it has all its signatures.
func (s *Service) rounds(ctx context.Context, p *progress, f image.Format, src image.Source, pub []image.PublicMaterial) (image.Session, error) {
	sess, kept, err := s.plan(ctx, p.v, p.r, f, src, pub)
	if err != nil {
		return nil, err
	}
	round := 1
	var reqs []image.SignRequest
	var sigs []image.Signature
	if kept != nil {
		round, reqs, sigs = kept.Round, kept.Reqs, kept.Sigs
	} else {
		var done bool
		if reqs, done, err = sess.Next(ctx, nil); err != nil {
			return nil, err
		}
		if done {
			return nil, problem.New(problem.Internal, "format %s asks for no signature", f.Name())
		}
	}
	for ; ; round++ {
		state, err := sess.MarshalBinary()
		if err != nil {
			return nil, err
		}
		have := map[string]bool{}
		for _, g := range sigs {
			have[g.Slot] = true
		}
		for _, ref := range p.r.Keys {
			var mine []image.SignRequest
			for _, q := range reqs {
				if q.Key == ref.ID && !have[q.Slot] {
					mine = append(mine, q)
				}
			}
			if len(mine) == 0 {
				continue
			}
			made, err := s.use(ctx, p, round, ref.ID, mine)
			if err != nil {
				return nil, err
			}
			sigs = append(sigs, made...)
			p.keep = &saved{Round: round, State: state, Reqs: reqs, Sigs: sigs}
		}
		if len(sigs) != len(reqs) {
			return nil, problem.New(problem.KeyBinding, "the image asks for signatures by keys that the request does not name").
				Seen("%d of %d signatures have a key", len(sigs), len(reqs))
		}
		next, done, err := sess.Next(ctx, sigs)
		if err != nil {
			return nil, err
		}
		if done {
			return sess, nil
		}
		reqs, sigs = next, nil
	}
}

// embed writes the finished file to the blob store. The file is durable before
// any row names it; a crash before that leaves a file that nothing refers to. A
// small file is held instead: these bytes are judged, and the transaction that
// records the outcome stores them.
func (s *Service) embed(ctx context.Context, r Request, sess image.Session) (_ release.File, held []byte, _ *image.Receipt, _ error) {
	st, err := s.blobs(r.Project)
	if err != nil {
		return release.File{}, nil, nil, err
	}
	w := &output{ctx: ctx, st: st}
	defer w.abort()
	receipt, err := sess.Embed(ctx, w)
	if err != nil {
		return release.File{}, nil, nil, err
	}
	info, held, err := w.finish()
	if err != nil {
		return release.File{}, nil, nil, err
	}
	s.step("embed.written")
	name := r.Input.Name
	if receipt.Detached {
		name += detachedSuffix
	}
	return release.File{Name: name, SHA256: string(info.Digest), Size: info.Size}, held, receipt, nil
}

// output takes a finished file, in memory for as long as the store would take
// it in a transaction.
type output struct {
	ctx  context.Context
	st   blob.Store
	held []byte
	w    blob.Writer // once it is too large to be held
}

func (o *output) Write(p []byte) (int, error) {
	if o.w == nil && smallStore(o.st, int64(len(o.held)+len(p))) != nil {
		o.held = append(o.held, p...)
		return len(p), nil
	}
	if err := o.spill(); err != nil {
		return 0, err
	}
	return o.w.Write(p)
}

func (o *output) spill() (err error) {
	if o.w != nil {
		return nil
	}
	if o.w, err = o.st.Create(o.ctx); err != nil {
		return err
	}
	_, err = o.w.Write(o.held)
	o.held = nil
	return err
}

// finish stores the file, or gives the bytes that are to be stored.
func (o *output) finish() (blob.Info, []byte, error) {
	if o.w == nil && len(o.held) > 0 {
		return blob.Info{Digest: blob.Digest(hexSum(o.held)), Size: int64(len(o.held))}, o.held, nil
	}
	if err := o.spill(); err != nil {
		return blob.Info{}, nil, err
	}
	info, err := o.w.Commit(o.ctx)
	return info, nil, err
}

func (o *output) abort() {
	if o.w != nil {
		o.w.Abort()
	}
}

// putOutput stores a held file with the outcome that names it.
func (s *Service) putOutput(tx *db.Tx, r Request, out release.File, held []byte) error {
	if held == nil {
		return nil
	}
	st, err := s.blobs(r.Project)
	if err != nil {
		return err
	}
	info, err := smallStore(st, int64(len(held))).PutIn(tx, held)
	if err == nil && (string(info.Digest) != out.SHA256 || info.Size != out.Size) {
		panic("signing: the bytes that were judged are not those that are stored")
	}
	return err
}

// judge lets the format's independent verifier decide on the output, which is
// stored or will be as it is held, with the keys of the request as the only anchors. What it refuses is not
// released, whatever made it.
func (s *Service) judge(ctx context.Context, f image.Format, r Request, src image.Source, out release.File, held []byte, receipt *image.Receipt, anchors []image.TrustedKey) error {
	file := image.Source(bytes.NewReader(held))
	if held == nil {
		st, err := s.blobs(r.Project)
		if err != nil {
			return err
		}
		stored, err := st.Open(ctx, blob.Digest(out.SHA256))
		if err != nil {
			return err
		}
		defer stored.Close()
		file = stored
	}
	trust := image.Trust{Keys: anchors}
	subject := file
	if receipt.Detached {
		if out.Size > maxDetached {
			return problem.New(problem.Internal, "a detached signature of %d bytes is too large", out.Size)
		}
		trust.Detached = make([]byte, out.Size)
		if _, err := file.ReadAt(trust.Detached, 0); err != nil {
			return fmt.Errorf("reading the signature file: %w", err)
		}
		subject = src
	}
	var v *image.Verdict
	var err error
	if r.BytesUnseen {
		digest, err := hex.DecodeString(r.Input.SHA256)
		if err != nil {
			return err
		}
		v, err = f.(image.DigestFormat).VerifyDigest(ctx, digest, r.Input.Size, trust, r.Target)
		if err != nil {
			return err
		}
	} else if v, err = f.Verify(ctx, subject, trust, r.Target); err != nil {
		return err
	}
	if refusal := v.Refusal(); refusal != nil {
		pr := problem.Of(refusal)
		return problem.New(problem.VerifyFailed, "the finished %s image would be refused by its target", f.Name()).
			Seen("%s: %s", pr.Code, pr.What).WithHint("firmseal request show %s", r.ID).Because(refusal)
	}
	return nil
}

const (
	maxDetached = 64 << 10
	// detachedSuffix is added to the image's name for its signature file.
	detachedSuffix = ".sig"
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
	return []firmseal.LeafInput{{Slot: "seal", Kind: "message", SHA256: hexSum(statement)}}
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
// One that was retired after the outcome finishes what it began.
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
	scheme := alg.For(k.Info().Type)[0]
	for {
		if !p.open {
			a, err := s.openAttempt(ctx, p, keys.Seal, 0, k.Info().ID(), sealInputs(p.v.statement))
			if err != nil {
				return nil, err
			}
			// The key checks the outcome leaf; the attempt's own leaf is there so
			// that each use of the key has one.
			if _, err := s.provenLeaf(ctx, a.leaf); err != nil {
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
			sig, err := k.Sign(ctx, &keys.Ticket{Leaf: leaf, Proof: proof, Slot: "seal", Alg: scheme, Kind: alg.Message, Input: pae})
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
	if v.buildTime > 0 {
		s.metrics.SignLatency(time.Duration(rel.Created-v.buildTime) * time.Microsecond)
	}
	s.changed(v.id)
	return errRests
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
