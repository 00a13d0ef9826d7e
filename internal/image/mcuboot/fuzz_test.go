package mcuboot_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"testing"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/mcuboot"
)

// fuzzKey is the same in every run, so that what the fuzzer keeps stays good.
func fuzzKey(tb testing.TB) (ed25519.PrivateKey, image.PublicMaterial) {
	tb.Helper()
	k := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	spki, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		tb.Fatal(err)
	}
	return k, image.PublicMaterial{Role: "image", Name: "fuzz", SPKI: spki}
}

// fuzzImages are small images that are signed by fuzzKey.
func fuzzImages(tb testing.TB) [][]byte {
	tb.Helper()
	k, pub := fuzzKey(tb)
	var out [][]byte
	for _, o := range []map[string]any{
		{"header-size": 32, "pad-header": true, "version": "1.0.0"},
		{"header-size": 40, "pad-header": true, "version": "1.2.3+4", "security-counter": "auto", "public-key-format": "full"},
		{
			"header-size": 32, "pad-header": true, "version": "2.0.0", "slot-size": 0x1000, "confirm": true, "max-sectors": 8,
			"dependencies": []any{map[string]any{"image": 1, "version": "1.0.0"}}, "custom-tlv": []any{map[string]any{"type": 0xa0, "value": "x"}},
		},
	} {
		b, err := signWith(tb.Context(), payload(48), options(tb, o), []crypto.Signer{k}, []image.PublicMaterial{pub})
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// hashed is the part of an image that its signature is over.
func hashed(b []byte) []byte {
	if len(b) < 32 {
		return nil
	}
	n := int64(binary.LittleEndian.Uint16(b[8:])) + int64(binary.LittleEndian.Uint32(b[12:])) + int64(binary.LittleEndian.Uint16(b[10:]))
	if n > int64(len(b)) {
		return nil
	}
	return b[:n]
}

// Nothing is valid but what the key has signed.
func FuzzVerify(f *testing.F) {
	_, pub := fuzzKey(f)
	images := fuzzImages(f)
	profiles := []image.Options{nil, image.Options(`{"keys":"hw-key","allow-list":false}`), image.Options(`{"keys":"bypass","allow-list":false,"rollback-protection":true}`)}
	for i, b := range images {
		f.Add(b, byte(i))
		f.Add(addPlain(b, true, 0x0110, make([]byte, 32)), byte(1))
		f.Add(addPlain(b, false, 0x50, []byte{1, 0, 0, 0}), byte(2))
		f.Add(b[:len(b)/2], byte(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, which byte) {
		trust := image.Trust{Keys: []image.TrustedKey{{SPKI: pub.SPKI}}}
		p := image.Profile{Options: profiles[int(which)%len(profiles)]}
		v, err := mcuboot.New().Verify(t.Context(), image.Bytes(b), trust, p)
		if err != nil {
			t.Fatal(err)
		}
		if v.Accepted == false && v.Refusal() == nil || v.Accepted && !v.Valid && fatal(v).Code == "" {
			t.Fatalf("a verdict without a reason: %+v", v)
		}
		if !v.Valid && !v.Accepted {
			return
		}
		for _, good := range images {
			if bytes.Equal(hashed(b), hashed(good)) {
				return
			}
		}
		t.Fatalf("valid %v, accepted %v, and never signed: %x", v.Valid, v.Accepted, b)
	})
}

// A report's tree stays within the file.
func FuzzInspect(f *testing.F) {
	for _, b := range fuzzImages(f) {
		f.Add(b)
		f.Add(addPlain(b, true, 0x1210, []byte{1}))
		f.Add(b[:40])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := mcuboot.New().Inspect(t.Context(), image.Bytes(b))
		if err != nil {
			return
		}
		var walk func(ns []image.Node)
		walk = func(ns []image.Node) {
			for _, n := range ns {
				if n.Name == "" || n.Off < 0 || n.Len < 0 || n.Off+n.Len > int64(len(b)) {
					t.Fatalf("node %+v in a file of %d bytes", n, len(b))
				}
				walk(n.Children)
			}
		}
		walk(r.Tree)
	})
}

// Whatever Plan takes comes out in a form that the bootloader takes.
func FuzzPlan(f *testing.F) {
	k, pub := fuzzKey(f)
	for _, b := range fuzzImages(f) {
		f.Add(b, `{"replace":true}`)
		f.Add(b, `{"replace":true,"version":"9.9.9","security-counter":1,"custom-tlv":[{"type":"0xa0","value":"0x00"}]}`)
	}
	f.Add(zephyr(32, 20), `{"header-size":"0x20","version":"1.0.0","sha":"512","erased-val":"0"}`)
	f.Add(payload(20), `{"header-size":64,"pad-header":true,"version":"1.0","load-addr":4096,"slot-size":2000,"overwrite-only":true,"pad":true}`)
	f.Add(headerOnly(32, payload(9)), `{"non-bootable":true,"vid":"12345678123456781234567812345678"}`)
	f.Fuzz(func(t *testing.T, src []byte, o string) {
		if len(src) > 1<<16 {
			return
		}
		if s, err := mcuboot.New().Plan(t.Context(), image.Bytes(src), image.Options(o), []image.PublicMaterial{pub}); err != nil || s == nil {
			return
		}
		var size struct {
			Slot json.RawMessage `json:"slot-size"`
			SHA  string          `json:"sha"`
		}
		_ = json.Unmarshal([]byte(o), &size) // Plan has taken it
		if len(size.Slot) > 8 {
			return // a padded slot of gigabytes proves nothing more
		}
		out, err := signWith(t.Context(), src, image.Options(o), []crypto.Signer{k}, []image.PublicMaterial{pub})
		if err != nil {
			t.Fatal(err)
		}
		p := image.Profile{Options: image.Options(`{}`)}
		if size.SHA == "512" {
			p.Options = image.Options(`{"sha":"512"}`)
		}
		for _, keys := range []string{"match", "hw-key"} {
			m := map[string]any{"keys": keys, "non-bootable": true}
			if size.SHA == "512" {
				m["sha"] = "512"
			}
			p.Options = options(t, m)
			v, err := mcuboot.New().Verify(t.Context(), image.Bytes(out), image.Trust{Keys: []image.TrustedKey{{SPKI: pub.SPKI}}}, p)
			if err != nil {
				t.Fatal(err)
			}
			if !v.Valid {
				t.Fatalf("not valid: %+v", v.Findings)
			}
			if v.Accepted {
				return
			}
		}
		t.Fatalf("accepted neither with the key's hash nor with the key in it")
	})
}

// A state that is not a session's is refused; one that passes its checksum
// does no harm, whatever it says.
func FuzzResume(f *testing.F) {
	_, pub := fuzzKey(f)
	src := payload(100)
	s, err := mcuboot.New().Plan(f.Context(), image.Bytes(src), options(f, base(map[string]any{"pad-header": true, "slot-size": 4096, "confirm": true, "max-sectors": 4})), []image.PublicMaterial{pub})
	if err != nil {
		f.Fatal(err)
	}
	for _, prev := range [][]image.Signature{nil, {{Slot: "image", Value: bytes.Repeat([]byte{1}, 64)}}, nil} {
		b, err := s.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(bytes.SplitN(b, []byte("\n"), 3)[2])
		if _, _, err := s.Next(f.Context(), prev); err != nil {
			f.Fatal(err)
		}
	}
	f.Add([]byte("{}"))
	use := func(ctx context.Context, state []byte) {
		s, err := mcuboot.New().Resume(ctx, image.Bytes(src), state)
		if err != nil {
			return
		}
		sig := []image.Signature{{Slot: "image", Value: make([]byte, 64)}}
		for _, prev := range [][]image.Signature{nil, sig, nil} {
			_, _, _ = s.Next(ctx, prev)
		}
		_, _ = s.Embed(ctx, &limited{left: 1 << 22})
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		use(t.Context(), b)
		sum := sha256.Sum256(b)
		use(t.Context(), append(fmt.Appendf(nil, "firmseal mcuboot session 1\n%x\n", sum), b...))
	})
}

// limited is a writer that fails before a made-up slot size fills anything.
type limited struct{ left int }

func (l *limited) Write(b []byte) (int, error) {
	if len(b) > l.left {
		return 0, io.ErrShortWrite
	}
	l.left -= len(b)
	return len(b), nil
}
