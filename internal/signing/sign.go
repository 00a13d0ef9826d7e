package signing

import (
	"context"
	"encoding/hex"
	"encoding/json"

	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
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
		rec, err := s.heldKey(ctx, r.Project, ref.Name)
		if err != nil {
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
	ctx = holding(ctx, v.id)
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
