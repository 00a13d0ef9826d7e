package fit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// Plan works out what has to be signed. See PlanOptions.
func (Format) Plan(ctx context.Context, src image.Source, o image.Options, pub []image.PublicMaterial) (image.Session, error) {
	return begin(ctx, src, o, pub)
}

func begin(ctx context.Context, src image.Source, o image.Options, pub []image.PublicMaterial) (*session, error) {
	var opt PlanOptions
	if err := image.DecodeOptions(name, o, &opt); err != nil {
		return nil, err
	}
	p, err := makePlan(ctx, src, opt, pub)
	if err != nil {
		return nil, err
	}
	sum, err := digest(ctx, src)
	if err != nil {
		return nil, err
	}
	s := &session{plan: p, state: state{
		V: 1, Format: name, Source: sum, Size: src.Size(), Options: o, Plan: p.digest(),
	}}
	s.state.Pub = append(s.state.Pub, pub...)
	return s, nil
}

// digest is the hex SHA-256 of the whole source.
func digest(ctx context.Context, src image.Source) (string, error) {
	h := sha256.New()
	if err := stream(ctx, h, src, 0, src.Size()); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// digest commits to everything that is asked for.
func (p *plan) digest() string {
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(p.requests); err != nil {
		panic(fmt.Sprintf("fit: encoding requests: %v", err)) // plain data always encodes
	}
	return hex.EncodeToString(h.Sum(nil))
}

// maxState bounds a saved session; one has some KiB.
const maxState = 8 << 20

// state is what MarshalBinary saves. The plan itself is made again from the
// source, which must be the same, and compared by its digest: so a state can
// be altered into an error only, never into another output.
type state struct {
	V          int                    `json:"v"`
	Format     string                 `json:"format"`
	Source     string                 `json:"source"` // hex SHA-256
	Size       int64                  `json:"size"`
	Options    json.RawMessage        `json:"options,omitempty"`
	Pub        []image.PublicMaterial `json:"pub"`
	Plan       string                 `json:"plan"` // hex SHA-256 of the requests
	Round      int                    `json:"round"`
	Signatures []image.Signature      `json:"signatures,omitempty"`
	Sum        string                 `json:"sum"` // hex SHA-256 of the state with an empty sum: finds damage, stops nobody
}

// seal encodes the state with its sum.
func (s state) seal() ([]byte, error) {
	s.Sum = ""
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	s.Sum = hex.EncodeToString(sum[:])
	return json.Marshal(s)
}

// Rounds.
const (
	roundAsk  = 0 // nothing was asked yet
	roundWait = 1 // requests are out
	roundDone = 2
)

type session struct {
	plan  *plan
	state state
}

// Resume continues a saved session.
func (Format) Resume(ctx context.Context, src image.Source, saved []byte) (image.Session, error) {
	bad := func(why string, err error) error {
		return problem.New(problem.BadRequest, "the saved FIT session cannot be resumed").Seen("%s", why).Because(err).
			WithHint("start the signing of this image again")
	}
	if len(saved) > maxState {
		return nil, bad("it is larger than any session", nil)
	}
	var st state
	d := json.NewDecoder(bytes.NewReader(saved))
	d.DisallowUnknownFields()
	if err := d.Decode(&st); err != nil {
		return nil, bad("it is not a session's state", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, bad("something follows the state", nil)
	}
	// Nothing that decodes to the same, such as another spelling of a name, is
	// taken for what MarshalBinary wrote.
	if again, err := st.seal(); err != nil || !bytes.Equal(again, saved) {
		return nil, bad("it is not as it was written", err)
	}
	if st.V != 1 || st.Format != name || st.Round < roundAsk || st.Round > roundDone {
		return nil, bad("it is of another format or version", nil)
	}
	if st.Size != src.Size() {
		return nil, bad("it belongs to an image of another size", nil)
	}
	s, err := begin(ctx, src, st.Options, st.Pub)
	if err != nil {
		return nil, err
	}
	if s.state.Source != st.Source {
		return nil, bad("it belongs to another image", nil)
	}
	if s.state.Plan != st.Plan {
		return nil, bad("the same image gives another plan now", nil)
	}
	if st.Round == roundDone {
		if err := s.accept(st.Signatures); err != nil {
			return nil, bad("its signatures do not fit", err)
		}
	} else if len(st.Signatures) > 0 {
		return nil, bad("it has signatures before they were asked for", nil)
	}
	s.state.Round = st.Round
	return s, nil
}

// MarshalBinary saves the session.
func (s *session) MarshalBinary() ([]byte, error) { return s.state.seal() }

// Next asks for all signatures in one round.
func (s *session) Next(ctx context.Context, prev []image.Signature) ([]image.SignRequest, bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	switch s.state.Round {
	case roundAsk:
		if len(prev) != 0 {
			return nil, false, problem.New(problem.BadRequest, "signatures came before they were asked for")
		}
		s.state.Round = roundWait
		return s.plan.requests, false, nil
	case roundWait:
		if err := s.accept(prev); err != nil {
			return nil, false, err
		}
		s.state.Round = roundDone
		return nil, true, nil
	}
	if len(prev) != 0 {
		return nil, true, problem.New(problem.BadRequest, "signatures came after the session was complete")
	}
	return nil, true, nil
}

// accept takes exactly one signature of the right form for each request.
func (s *session) accept(sigs []image.Signature) error {
	got := map[string][]byte{}
	for _, g := range sigs {
		if _, twice := got[g.Slot]; twice {
			return problem.New(problem.BadRequest, "two signatures came for the slot %q", g.Slot)
		}
		got[g.Slot] = g.Value
	}
	var kept []image.Signature
	for _, t := range s.plan.targets {
		v, ok := got[t.slot]
		if !ok {
			return problem.New(problem.BadRequest, "no signature came for the slot %q", t.slot)
		}
		if _, err := t.by.rawValue(v); err != nil {
			return err
		}
		kept = append(kept, image.Signature{Slot: t.slot, Value: v})
		delete(got, t.slot)
	}
	for slot := range got {
		return problem.New(problem.BadRequest, "a signature came for the slot %q, which was not asked for", slot)
	}
	s.state.Signatures = kept
	return nil
}

// Embed writes the signed FIT.
func (s *session) Embed(ctx context.Context, w io.Writer) (*image.Receipt, error) {
	if s.state.Round != roundDone {
		return nil, problem.New(problem.BadRequest, "the FIT cannot be written before its signatures are there")
	}
	p := s.plan
	for i, t := range p.targets {
		v, err := t.by.rawValue(s.state.Signatures[i].Value)
		if err != nil {
			return nil, err
		}
		t.node.Set(propValue, v)
	}
	l, err := p.layout()
	if err != nil {
		return nil, err
	}
	cw := &checkedWriter{ctx: ctx, w: w}
	n, err := l.WriteTo(cw, p.src)
	if err != nil {
		return nil, fmt.Errorf("writing the FIT: %w", err)
	}
	if p.external {
		from := p.oldTail
		if p.position {
			from = n
		} else if pad := align(n, 4) - n; pad > 0 {
			if _, err := cw.Write(make([]byte, pad)); err != nil {
				return nil, fmt.Errorf("writing the FIT: %w", err)
			}
			n += pad
		}
		if from < p.src.Size() {
			if err := stream(ctx, cw, p.src, from, p.src.Size()-from); err != nil {
				return nil, err
			}
			n += p.src.Size() - from
		}
	}
	r := &image.Receipt{Format: name, Size: n}
	for i, t := range p.targets {
		r.Notes = append(r.Notes, image.Field{
			Name:  t.slot,
			Value: fmt.Sprintf("%s by %s, key-name-hint %s", t.by.algo, p.requests[i].Key[:16], t.by.hint),
		})
	}
	if l.Size > deviceMaxTotal {
		r.Notes = append(r.Notes, image.Field{Name: "totalsize", Value: fmt.Sprintf(
			"%d bytes: U-Boot refuses more than %d unless FIT_SIGNATURE_MAX_SIZE is raised; external data (mkimage -E) do not count", l.Size, deviceMaxTotal)})
	}
	return r, nil
}

// checkedWriter stops a long copy when ctx ends.
type checkedWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c *checkedWriter) Write(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(b)
}
