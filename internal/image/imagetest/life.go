package imagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// checkLife signs the image as a server does that dies between every two
// steps, and verifies it as the device does.
func checkLife(tb testing.TB, h *harness) {
	fin := h.finish(tb)
	if fin.receipt == nil || fin.receipt.Format != h.f.Name() || fin.receipt.Size != int64(len(fin.out)) {
		tb.Errorf("the receipt %+v does not fit %d bytes of %s", fin.receipt, len(fin.out), h.f.Name())
	}
	if !fin.receipt.Detached {
		if s := h.f.Detect(bytes.NewReader(fin.out), int64(len(fin.out))); s < image.Likely {
			tb.Errorf("Detect of the output is %d", s)
		}
	}

	// The same signatures through fresh sessions give the same bytes.
	for i, st := range fin.states {
		sess, err := h.f.Resume(tb.Context(), h.src(), st)
		if err != nil {
			tb.Fatalf("Resume of state %d: %v", i, err)
		}
		again, err := sess.MarshalBinary()
		if err != nil || !bytes.Equal(again, st) {
			tb.Errorf("state %d changes by being resumed (%v):\n%q\n%q", i, err, st, again)
		}
		if i < len(fin.rounds) {
			prev := slices.Clone(fin.rounds[i])
			slices.Reverse(prev) // any order is as good
			_, done, err := sess.Next(tb.Context(), prev)
			if err != nil {
				tb.Fatalf("round %d after Resume: %v", i+1, err)
			}
			if last := i == len(fin.rounds)-1; done != last {
				tb.Fatalf("round %d after Resume: done is %v", i+1, done)
			}
			got, err := sess.MarshalBinary()
			if err != nil || !bytes.Equal(got, fin.states[i+1]) {
				tb.Errorf("round %d after Resume leads to another state (%v)", i+1, err)
			}
			continue
		}
		if _, err := sess.Embed(tb.Context(), brokenWriter{}); !errors.Is(err, errBroken) {
			tb.Errorf("Embed to a writer that fails: %v", err)
		}
		for n := range 2 {
			var b bytes.Buffer
			r, err := sess.Embed(tb.Context(), &b)
			if err != nil {
				tb.Fatalf("Embed %d after Resume: %v", n+1, err)
			}
			if !bytes.Equal(b.Bytes(), fin.out) {
				tb.Errorf("Embed %d after Resume writes other bytes", n+1)
			}
			if fmt.Sprint(*r) != fmt.Sprint(*fin.receipt) {
				tb.Errorf("Embed %d after Resume has another receipt: %+v, not %+v", n+1, *r, *fin.receipt)
			}
		}
	}

	v, err := h.verify(tb.Context(), h.subject(fin.out, fin.receipt), h.keys)
	if err != nil {
		tb.Fatalf("Verify of the output: %v", err)
	}
	if !v.Valid || !v.Accepted || v.Format != h.f.Name() {
		tb.Errorf("Verify of the output: %+v", v)
	}
	if err := v.Refusal(); err != nil {
		tb.Errorf("Verify of the output refuses: %v", err)
	}
	for _, f := range v.Findings {
		if f.Severity == image.Fatal {
			tb.Errorf("the accepted output has a fatal finding: %+v", f)
		}
	}
	if len(v.Signatures) == 0 {
		tb.Error("the verdict names no signature")
	}
	for _, s := range v.Signatures {
		if s.Valid == nil || !*s.Valid {
			tb.Errorf("signature %q was not found valid in an accepted image", s.Slot)
		}
	}

	arts, err := h.f.ExportTrust(material(h.keys), h.c.Options)
	if err != nil || len(arts) == 0 {
		tb.Errorf("ExportTrust: %d artifacts, %v", len(arts), err)
	}
	names := map[string]bool{}
	for _, a := range arts {
		if a.Name == "" || len(a.Data) == 0 || a.MediaType == "" || a.Note == "" || names[a.Name] {
			tb.Errorf("ExportTrust: artifact %q (%s, %d bytes, note %q) is empty or doubled", a.Name, a.MediaType, len(a.Data), a.Note)
		}
		names[a.Name] = true
	}
}

// checkInspect reads input and output without keys.
func checkInspect(tb testing.TB, h *harness) {
	fin := h.finish(tb)
	in, err := h.f.Inspect(tb.Context(), h.src())
	if err != nil && h.f.Detect(h.src(), int64(len(h.c.Source))) > image.No {
		tb.Errorf("Inspect refuses an input that Detect knows: %v", err)
	}
	if err == nil {
		checkReport(tb, h, "input", in, int64(len(h.c.Source)))
		if in.Facts.Signed && !h.c.Signed {
			tb.Error("Inspect says that the unsigned input is signed")
		}
	}
	if fin.receipt.Detached {
		return
	}
	out, err := h.f.Inspect(tb.Context(), image.Bytes(fin.out))
	if err != nil {
		tb.Fatalf("Inspect of the output: %v", err)
	}
	checkReport(tb, h, "output", out, int64(len(fin.out)))
	if !out.Facts.Signed || len(out.Signatures) == 0 {
		tb.Error("Inspect does not see the output's signature")
	}
}

func checkReport(tb testing.TB, h *harness, what string, r *image.Report, size int64) {
	tb.Helper()
	if r.Format != h.f.Name() || r.Size != size || len(r.Tree) == 0 {
		tb.Errorf("report of the %s: format %q, size %d of %d, %d nodes", what, r.Format, r.Size, size, len(r.Tree))
	}
	if err := checkTree(r.Tree, size); err != nil {
		tb.Errorf("report of the %s: %v", what, err)
	}
}

func checkTree(nodes []image.Node, size int64) error {
	for _, n := range nodes {
		if n.Name == "" || n.Off < 0 || n.Len < 0 || n.Off > size || n.Len > size-n.Off {
			return fmt.Errorf("node %q has %d bytes from %d of %d", n.Name, n.Len, n.Off, size)
		}
		if err := checkTree(n.Children, size); err != nil {
			return err
		}
	}
	return nil
}

// checkTrust asks targets that must say no.
func checkTrust(tb testing.TB, h *harness) {
	fin := h.finish(tb)
	s := h.subject(fin.out, fin.receipt)
	refuse := func(what string, s subject, keys []*key) *image.Verdict {
		v, err := h.verify(tb.Context(), s, keys)
		if err != nil {
			tb.Errorf("%s: a refusal is a verdict, not an error: %v", what, err)
			return nil
		}
		if err := checkVerdict(v, int64(len(s.image))); err != nil {
			tb.Errorf("%s: %v", what, err)
			return nil
		}
		return v
	}
	if v := refuse("a target with another key of the same type and name", s, h.foreign); v != nil {
		if v.Valid || v.Accepted {
			tb.Errorf("a target with another key: valid %v, accepted %v", v.Valid, v.Accepted)
		}
		switch c := problem.Of(v.Refusal()).Code; c {
		case problem.TrustAnchorMissing, problem.SigInvalid, problem.SigMissing, problem.SigEncoding:
		default:
			tb.Errorf("a target with another key is refused for %s", c)
		}
	}
	refuse("a target with no key", s, nil)
	if h.c.Signed {
		return
	}
	if v := refuse("the unsigned input", subject{image: h.c.Source}, h.keys); v != nil && (v.Valid || v.Accepted) {
		tb.Errorf("the unsigned input: valid %v, accepted %v", v.Valid, v.Accepted)
	}
}

// checkOptions: an option that does not exist is never ignored.
func checkOptions(tb testing.TB, h *harness) {
	unknown := image.Options(`{"no-such-option":1}`)
	pub := material(h.keys)
	for _, o := range []image.Options{unknown, image.Options(`[]`), image.Options(`{`), image.Options(`"x"`), image.Options(`{} {}`)} {
		if _, err := h.f.Plan(tb.Context(), h.src(), o, pub); !problem.Has(err, problem.ImageOptions) {
			tb.Errorf("Plan with options %s: %v", o, err)
		}
		if _, err := h.f.ExportTrust(pub, o); !problem.Has(err, problem.ImageOptions) {
			tb.Errorf("ExportTrust with options %s: %v", o, err)
		}
		fin := h.finish(tb)
		s := h.subject(fin.out, fin.receipt)
		t := h.trust(h.keys)
		t.Detached = s.detached
		p := h.c.Profile
		p.Options = o
		if _, err := h.f.Verify(tb.Context(), image.Bytes(s.image), t, p); !problem.Has(err, problem.ImageOptions) {
			tb.Errorf("Verify with profile options %s: %v", o, err)
		}
	}
	if _, err := h.f.Plan(tb.Context(), h.src(), h.c.Options, nil); refusal(err) != nil {
		tb.Errorf("Plan without a key: %v", refusal(err))
	}
	junk := material(h.keys)
	junk[0].SPKI = []byte("not a key")
	if _, err := h.f.Plan(tb.Context(), h.src(), h.c.Options, junk); refusal(err) != nil {
		tb.Errorf("Plan with a key that is none: %v", refusal(err))
	}
	if _, err := h.f.ExportTrust(junk, h.c.Options); refusal(err) != nil {
		tb.Errorf("ExportTrust of a key that is none: %v", refusal(err))
	}
	misfit := material(h.keys)
	misfit[0].Alg = "no-such-alg"
	if _, err := h.f.Plan(tb.Context(), h.src(), h.c.Options, misfit); refusal(err) != nil {
		tb.Errorf("Plan with an algorithm that is none: %v", refusal(err))
	}
}

var errBroken = errors.New("imagetest: this reader or writer is broken")

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

// brokenSource fails from off on.
type brokenSource struct {
	image.Source
	off int64
}

func (b brokenSource) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > b.off {
		return 0, errBroken
	}
	return b.Source.ReadAt(p, off)
}

// eagerSource says EOF together with the last bytes, as io.ReaderAt may.
type eagerSource struct{ image.Source }

func (e eagerSource) ReadAt(p []byte, off int64) (int, error) {
	n, err := e.Source.ReadAt(p, off)
	if err == nil && off+int64(n) == e.Size() {
		err = io.EOF
	}
	return n, err
}

// longSource says that it is larger than it is.
type longSource struct {
	image.Source
	by int64
}

func (l longSource) Size() int64 { return l.Source.Size() + l.by }

// checkSources reads from sources that misbehave.
func checkSources(tb testing.TB, h *harness) {
	fin := h.finish(tb)
	s := h.subject(fin.out, fin.receipt)
	t := h.trust(h.keys)
	t.Detached = s.detached
	pub := material(h.keys)

	v, err := h.f.Verify(tb.Context(), eagerSource{image.Bytes(s.image)}, t, h.c.Profile)
	if err != nil || !v.Valid || !v.Accepted {
		tb.Errorf("Verify of a source that says EOF with its last bytes: %+v, %v", v, err)
	}
	if _, err := h.f.Plan(tb.Context(), eagerSource{h.src()}, h.c.Options, pub); err != nil {
		tb.Errorf("Plan over a source that says EOF with its last bytes: %v", err)
	}

	for _, off := range []int64{0, int64(len(s.image)) / 2, int64(len(s.image)) - 1} {
		guard(tb, "Verify of a source that fails", func() {
			if v, err := h.f.Verify(tb.Context(), brokenSource{image.Bytes(s.image), off}, t, h.c.Profile); !errors.Is(err, errBroken) {
				tb.Errorf("Verify of a source that fails from %d on: %+v, %v", off, v, err)
			}
		})
	}
	for _, off := range []int64{0, int64(len(h.c.Source)) / 2, int64(len(h.c.Source)) - 1} {
		guard(tb, "Plan over a source that fails", func() {
			if _, err := h.f.Plan(tb.Context(), brokenSource{h.src(), off}, h.c.Options, pub); !errors.Is(err, errBroken) {
				tb.Errorf("Plan over a source that fails from %d on: %v", off, err)
			}
		})
	}
	for _, by := range []int64{1, 1 << 40} {
		guard(tb, "a source that ends early", func() {
			if v, err := h.f.Verify(tb.Context(), longSource{image.Bytes(s.image), by}, t, h.c.Profile); err == nil && v.Valid && v.Accepted {
				tb.Errorf("Verify accepts a source that ends %d bytes early", by)
			}
			if _, err := h.f.Plan(tb.Context(), longSource{h.src(), by}, h.c.Options, pub); err == nil {
				tb.Errorf("Plan takes a source that ends %d bytes early", by)
			}
			h.f.Detect(longSource{image.Bytes(s.image), by}, int64(len(s.image))+by)
			if r, err := h.f.Inspect(tb.Context(), longSource{image.Bytes(s.image), by}); err == nil && r == nil {
				tb.Error("Inspect gives neither report nor error")
			}
		})
	}

	gone, cancel := context.WithCancel(tb.Context())
	cancel()
	if _, err := h.f.Verify(gone, image.Bytes(s.image), t, h.c.Profile); !errors.Is(err, context.Canceled) {
		tb.Errorf("Verify after cancellation: %v", err)
	}
	if _, err := h.f.Plan(gone, h.src(), h.c.Options, pub); !errors.Is(err, context.Canceled) {
		tb.Errorf("Plan after cancellation: %v", err)
	}
}
