package image_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// scored is a format that only detects.
type scored struct {
	image.Format
	name  string
	score image.Score
}

func (s scored) Name() string                          { return s.name }
func (s scored) Detect(io.ReaderAt, int64) image.Score { return s.score }
func (s scored) Inspect(context.Context, image.Source) (*image.Report, error) {
	return nil, errors.ErrUnsupported
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	a, b, c := scored{name: "a", score: image.Maybe}, scored{name: "b", score: image.Sure}, scored{name: "c", score: image.Sure}
	for _, x := range []struct {
		g     image.Registry
		want  string
		score image.Score
	}{
		{nil, "", image.No},
		{image.Registry{scored{name: "never"}}, "", image.No},
		{image.Registry{a, b, c}, "b", image.Sure}, // the first of a tie
		{image.Registry{c, b, a}, "c", image.Sure},
		{image.Registry{a, scored{name: "never"}}, "a", image.Maybe},
	} {
		f, s := x.g.Detect(image.Bytes([]byte("image")))
		if name := nameOf(f); name != x.want || s != x.score {
			t.Errorf("Detect among %v: %q, %d", x.g, name, s)
		}
	}
	g := image.Registry{a, b}
	if f, err := g.ByName("b"); err != nil || f.Name() != "b" {
		t.Errorf("ByName: %v, %v", f, err)
	}
	_, err := g.ByName("x")
	if p := problem.Of(err); p == nil || p.Code != problem.ImageUnknownFormat || !strings.Contains(p.Why, "a, b") {
		t.Errorf("an unknown format: %v", err)
	}
}

func nameOf(f image.Format) string {
	if f == nil {
		return ""
	}
	return f.Name()
}

func TestDecodeOptions(t *testing.T) {
	t.Parallel()
	type options struct {
		N int `json:"n"`
	}
	for in, want := range map[string]int{"": 0, "{}": 0, `{"n":3}`: 3, " {\"n\":4}\n": 4} {
		var o options
		if err := image.DecodeOptions("f", image.Options(in), &o); err != nil || o.N != want {
			t.Errorf("%q: %+v, %v", in, o, err)
		}
	}
	for _, in := range []string{`{"m":1}`, `{"n":"x"}`, `{`, `[]`, `{} {}`, `{}}`, `{}]`} {
		var o options
		if err := image.DecodeOptions("f", image.Options(in), &o); !problem.Has(err, problem.ImageOptions) {
			t.Errorf("%q: %+v, %v", in, o, err)
		}
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	fatal := image.Finding{Severity: image.Fatal, Code: problem.SigInvalid, What: "no", Expected: "a", Actual: "", Next: "do x"}
	warn := image.Finding{Severity: image.Warn, Code: problem.SigCoverage, What: "hm"}
	if err := (&image.Verdict{Valid: true, Accepted: true, Findings: []image.Finding{warn}}).Refusal(); err != nil {
		t.Errorf("an accepted image: %v", err)
	}
	for _, v := range []image.Verdict{{}, {Valid: true}, {Accepted: true}} {
		if err := v.Refusal(); !problem.Has(err, problem.Internal) {
			t.Errorf("a refusal without a reason is a fault: %v", err)
		}
		v.Findings = []image.Finding{warn, fatal}
		p := problem.Of(v.Refusal())
		if p == nil || p.Code != problem.SigInvalid || p.What != "no" || p.Why != "expected a, saw nothing" || p.Next != "do x" {
			t.Errorf("the first fatal finding: %+v", p)
		}
	}
}
