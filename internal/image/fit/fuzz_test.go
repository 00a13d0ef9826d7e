package fit_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"testing"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit"
	"github.com/firmseal/firmseal/internal/image/fit/fitdemo"
)

// fixed is the same key in every process: a fuzzer's workers must find the
// coordinator's seeds right.
func fixed(t testing.TB) key {
	t.Helper()
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return wrap(t, "dev", k)
}

func seedFITs(f *testing.F) (k key, signed []byte) {
	k = fixed(f)
	plain := fitdemo.FIT("1.0.0", "conf-1", "conf-2")
	f.Add(plain)
	s, err := fit.New().Plan(f.Context(), image.Bytes(plain), nil, []image.PublicMaterial{k.material("")})
	if err != nil {
		f.Fatal(err)
	}
	reqs, _, err := s.Next(f.Context(), nil)
	if err != nil {
		f.Fatal(err)
	}
	var sigs []image.Signature
	for _, r := range reqs {
		sigs = append(sigs, answer(f, r, k))
	}
	if _, _, err := s.Next(f.Context(), sigs); err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := s.Embed(f.Context(), &b); err != nil {
		f.Fatal(err)
	}
	for _, n := range []int{0, 3, 40, 200, b.Len() - 8} {
		f.Add(b.Bytes()[:n])
	}
	f.Add(b.Bytes())
	return k, b.Bytes()
}

// FuzzVerify: whatever the bytes are, there is a verdict; and nothing is valid
// whose signed parts are not those that were signed.
func FuzzVerify(f *testing.F) {
	k, signed := seedFITs(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := fit.New().Verify(context.Background(), image.Bytes(b), trust(k), image.Profile{})
		if err != nil {
			t.Fatalf("a refusal is a verdict: %v", err)
		}
		if !v.Valid {
			if v.Refusal() == nil {
				t.Fatal("not valid, and no reason")
			}
			return
		}
		for _, must := range []string{fitdemo.Line + "1.0.0", "prints one line", "Firmseal demo firmware 1.0.0"} {
			if !bytes.Contains(b, []byte(must)) {
				t.Fatalf("valid without %q, which was signed", must)
			}
		}
		if len(b) < len(signed)/2 {
			t.Fatal("valid at half the length")
		}
	})
}

// FuzzPlan: what can be planned can be signed and inspected, and verifies.
func FuzzPlan(f *testing.F) {
	k, _ := seedFITs(f)
	o := options(f, fit.PlanOptions{Replace: true, Hashes: "recompute"})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := fit.New().Inspect(context.Background(), image.Bytes(b)); err != nil && fit.New().Detect(bytes.NewReader(b), int64(len(b))) > image.No {
			t.Fatalf("detected, and not inspected: %v", err)
		}
		s, err := fit.New().Plan(context.Background(), image.Bytes(b), o, []image.PublicMaterial{k.material("")})
		if err != nil {
			return
		}
		reqs, _, err := s.Next(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var sigs []image.Signature
		for _, r := range reqs {
			sigs = append(sigs, answer(t, r, k))
		}
		if _, _, err := s.Next(context.Background(), sigs); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if _, err := s.Embed(context.Background(), &out); err != nil {
			t.Fatal(err)
		}
		v, err := fit.New().Verify(context.Background(), image.Bytes(out.Bytes()), trust(k), image.Profile{})
		if err != nil {
			t.Fatal(err)
		}
		if !v.Valid || !v.Accepted {
			t.Fatalf("signed by Plan, refused by Verify: %v\n%s", v.Refusal(), show(v))
		}
	})
}

// FuzzResume: no state but the one that was written is taken.
func FuzzResume(f *testing.F) {
	k := fixed(f)
	plain := fitdemo.FIT("1.0.0")
	s, err := fit.New().Plan(f.Context(), image.Bytes(plain), nil, []image.PublicMaterial{k.material("")})
	if err != nil {
		f.Fatal(err)
	}
	st, err := s.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(st)
	f.Add(st[:len(st)/2])
	f.Add([]byte(`{"v":1,"format":"fit"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := fit.New().Resume(context.Background(), image.Bytes(plain), b)
		if err != nil {
			return
		}
		again, err := s.MarshalBinary()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("a state was taken that MarshalBinary would not write: %v", err)
		}
	})
}
