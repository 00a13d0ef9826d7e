package keys_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/transparency-dev/formats/proof"
	"pgregory.net/rapid"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/keys/keystest"
	"github.com/firmseal/firmseal/internal/problem"
)

// counting is a Signer that counts; it signs for real.
type counting struct {
	priv ed25519.PrivateKey
	n    int
}

func (c *counting) Public() crypto.PublicKey { return c.priv.Public() }

func (c *counting) SignRaw(_ context.Context, _ alg.ID, _ alg.Kind, input []byte) ([]byte, error) {
	c.n++
	return ed25519.Sign(c.priv, input), nil
}

func newKey(tb testing.TB, g *keys.Gate) (keys.Key, *counting) {
	tb.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(priv.Public())
	if err != nil {
		tb.Fatal(err)
	}
	c := &counting{priv: priv}
	k, err := keys.Guard(keys.Info{Name: "boot", Type: alg.Ed25519, SPKI: spki, Binding: keys.Binding{
		Purpose: keys.Firmware, Environment: keys.Production, Product: "sensor", Format: "raw",
	}}, c, g)
	if err != nil {
		tb.Fatal(err)
	}
	return k, c
}

// No change of one byte of what is signed, announced or asked lets the key sign.
func TestAnyByteOfATicket(t *testing.T) {
	t.Parallel()
	log := keystest.NewLog(t, "test.example/log")
	k, c := newKey(t, log.Gate(t, keys.GateOptions{}))
	good := log.FirmwareTicket(t, k.Info(), "image", alg.Ed25519Pure, []byte("the message of this test"))
	rapid.Check(t, func(t *rapid.T) {
		tk := *good
		tk.Leaf, tk.Request, tk.Input = bytes.Clone(tk.Leaf), bytes.Clone(tk.Request), bytes.Clone(tk.Input)
		field := rapid.SampledFrom([]*[]byte{&tk.Leaf, &tk.Request, &tk.Input}).Draw(t, "field")
		at := rapid.IntRange(0, len(*field)-1).Draw(t, "at")
		switch rapid.IntRange(0, 2).Draw(t, "how") {
		case 0:
			(*field)[at] ^= rapid.ByteRange(1, 255).Draw(t, "mask")
		case 1:
			*field = append((*field)[:at], (*field)[at+1:]...)
		case 2:
			*field = (*field)[:at]
		}
		if _, err := k.Sign(context.Background(), &tk); !problem.Has(err, problem.KeyTicket) {
			t.Fatalf("signed or failed otherwise: %v", err)
		}
	})
	if c.n != 0 {
		t.Errorf("the key was used %d times", c.n)
	}
	if _, err := k.Sign(t.Context(), good); err != nil || c.n != 1 {
		t.Errorf("the right ticket: %v", err)
	}
}

// The proofs are those of C2SP: the reader of transparency-dev agrees.
func TestProofIsC2SP(t *testing.T) {
	t.Parallel()
	log := keystest.NewLog(t, "test.example/log")
	var p proof.TLogProof
	if err := p.Unmarshal(log.Proof(t, 3)); err != nil {
		t.Fatal(err)
	}
	if p.Index != 3 {
		t.Errorf("index %d", p.Index)
	}
}

// A log that shows two trees of one size is not believed.
func TestFork(t *testing.T) {
	t.Parallel()
	a := keystest.NewLog(t, "test.example/log")
	b := a.Fork(t)
	g := a.Gate(t, keys.GateOptions{})
	k, c := newKey(t, g)
	one := a.FirmwareTicket(t, k.Info(), "image", alg.Ed25519Pure, []byte("one"))
	two := b.FirmwareTicket(t, k.Info(), "image", alg.Ed25519Pure, []byte("two"))
	if _, err := k.Sign(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Sign(t.Context(), two); !problem.Has(err, problem.KeyTicket) || c.n != 1 {
		t.Errorf("a fork was believed: %v", err)
	}
}

func TestGuardChecksTheBackend(t *testing.T) {
	t.Parallel()
	k, c := newKey(t, nil)
	for name, change := range map[string]func(*keys.Info){
		"another public key": func(i *keys.Info) { o, _ := newKey(t, nil); i.SPKI = o.Info().SPKI },
		"another type":       func(i *keys.Info) { i.Type = alg.P256 },
		"no binding":         func(i *keys.Info) { i.Binding = keys.Binding{} },
	} {
		i := k.Info()
		change(&i)
		if _, err := keys.Guard(i, c, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestNewGate(t *testing.T) {
	t.Parallel()
	log := keystest.NewLog(t, "test.example/log")
	for _, c := range [][2]string{{"", "x"}, {"garbage", "x"}, {log.VerifierKey + "A", "x"}, {log.VerifierKey, ""}} {
		if _, err := keys.NewGate(c[0], c[1], keys.GateOptions{}); !problem.Has(err, problem.KeyMalformed) {
			t.Errorf("NewGate(%q, %q): %v", c[0], c[1], err)
		}
	}
}

// The gate's own splitter agrees with encoding/json wherever it accepts.
func FuzzTicketRequest(f *testing.F) {
	for _, s := range []string{
		`{"environment":"production","product":"sensor","format":"raw"}`,
		`{"environment":"production","product":"sensor","format":"raw","a":[1,{"b":"}"},"\"]"],"c":-1.5e9,"d":null}`,
		`{"environment":"test","environment":"production","product":"sensor","format":"raw"}`,
		`{"environment":"production" , "product":"sensor" , "format":"raw"}`, `{}`, `[]`, `1`, ``, `{"":{}}`, `{"a":`,
		"{\"environment\":\"production\",\"product\":\"sen\xffsor\",\"format\":\"raw\"}",
	} {
		f.Add([]byte(s))
	}
	log := keystest.NewLog(f, "test.example/log")
	k, c := newKey(f, log.Gate(f, keys.GateOptions{}))
	f.Fuzz(func(t *testing.T, request []byte) {
		// Every request is announced as it should be: what it says decides.
		in := []byte("message")
		tk := log.Ticket(t, keys.Ticket{Request: request, Slot: "image", Alg: alg.Ed25519Pure, Kind: alg.Message, Input: in},
			keystest.AttemptLeaf(request, k.Info(), keystest.Announce("image", alg.Ed25519Pure, alg.Message, in)))
		before := c.n
		_, err := k.Sign(t.Context(), tk)
		var says map[string]any
		bound := json.Unmarshal(request, &says) == nil && says["environment"] == "production" && says["product"] == "sensor" && says["format"] == "raw"
		if err == nil && !bound {
			t.Fatalf("signed for %q", request)
		}
		if err != nil && (!problem.Has(err, problem.KeyTicket) || c.n != before) {
			t.Fatalf("%v after %d uses", err, c.n-before)
		}
	})
}

func FuzzTicketProof(f *testing.F) {
	log := keystest.NewLog(f, "test.example/log")
	k, c := newKey(f, log.Gate(f, keys.GateOptions{}))
	tk := log.FirmwareTicket(f, k.Info(), "image", alg.Ed25519Pure, []byte("x"))
	// One announces the same for a key that is not this one's gate's.
	tk.Input = []byte("y")
	f.Add(tk.Proof, tk.Leaf)
	f.Add(bytes.Replace(tk.Proof, []byte("index"), []byte("extra AAAA\nindex"), 1), tk.Leaf)
	f.Add([]byte("c2sp.org/tlog-proof@v1\nindex 0\n\n"), []byte(`{"v":1,"type":"sign.attempt","inputs":[{"slot":"a"}]}`))
	f.Fuzz(func(t *testing.T, proof, leaf []byte) {
		bad := *tk
		bad.Proof, bad.Leaf = proof, leaf
		if _, err := k.Sign(t.Context(), &bad); !problem.Has(err, problem.KeyTicket) || c.n != 0 {
			t.Fatalf("%v", err)
		}
	})
}

func BenchmarkGate(b *testing.B) {
	log := keystest.NewLog(b, "test.example/log")
	for i := range 5000 {
		log.Append(b, fmt.Appendf(nil, `{"n":%d}`, i))
	}
	for _, c := range []struct {
		name  string
		fresh bool
	}{{"cached checkpoint", false}, {"new checkpoint", true}} {
		b.Run(c.name, func(b *testing.B) {
			g := log.Gate(b, keys.GateOptions{})
			k, _ := newKey(b, g)
			tk := log.FirmwareTicket(b, k.Info(), "image", alg.Ed25519Pure, []byte("message"))
			info := k.Info()
			for b.Loop() {
				if c.fresh {
					g.Forget()
				}
				if err := g.Check(info, tk); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
