package signing_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/mcuboot"
	"github.com/firmseal/firmseal/internal/image/raw"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/servertest"
	"github.com/firmseal/firmseal/internal/signing"
)

// mislabelling is MCUboot with a bug in its Plan: it writes something else into
// the image than the request says. The signature over it is right.
type mislabelling struct {
	mcuboot.Format
	option string
	value  any
}

func (f mislabelling) Plan(ctx context.Context, src image.Source, o image.Options, pub []image.PublicMaterial) (image.Session, error) {
	if f.option != "" {
		m := map[string]any{}
		if err := json.Unmarshal(o, &m); err != nil {
			return nil, err
		}
		m[f.option] = f.value
		var err error
		if o, err = json.Marshal(m); err != nil {
			return nil, err
		}
	}
	return f.Format.Plan(ctx, src, o, pub)
}

// A finished image that states another version or counter than the request is
// not sealed, although its target would accept the signature.
func TestFinishedImageStatesTheRequest(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, option string
		value        any
		field        string // empty: released
	}{
		{name: "no bug"},
		{"another version", "version", "9.9.9", "version"},
		{"another counter", "security-counter", 77, "security counter"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, servertest.Options{Formats: image.Registry{mislabelling{option: c.option, value: c.value}, raw.New()}})
			b.Key("mcu-key", "p256", "test", "mcu", "mcuboot")
			b.Policy(servertest.Profile("mcu", "mcu", "test", "mcuboot", "mcu-key", "options: {header-size: 32, pad-header: true, slot-size: 65536}"))
			r := b.sign(servertest.Request("mcu", "1.0.0", 1, make([]byte, 1024)))
			if c.field == "" {
				wantState(t, r, signing.Released, "")
				return
			}
			wantState(t, r, signing.Failed, problem.VerifyFailed)
			if !strings.HasSuffix(r.Problem.Detail, "states another "+c.field+" than the request") {
				t.Errorf("it failed for something else: %+v", r.Problem)
			}
			if b.released(r.ID) || b.uses(keys.Seal, r.ID) != 0 {
				t.Error("a mislabelled image was sealed or released")
			}
		})
	}
}
