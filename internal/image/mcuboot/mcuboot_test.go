package mcuboot_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/imagetest"
	"github.com/firmseal/firmseal/internal/image/mcuboot"
	"github.com/firmseal/firmseal/internal/problem"
)

var keyTypes = []alg.KeyType{alg.P256, alg.P384, alg.RSA2048, alg.RSA3072, alg.Ed25519}

// payload is n bytes that are no container and not compressible.
func payload(n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(n)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	b[0] = 0x20
	return b
}

// zephyr leaves room for a header of hdr bytes.
func zephyr(hdr, n int) []byte { return append(make([]byte, hdr), payload(n)...) }

func options(t testing.TB, m map[string]any) image.Options {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signWith takes src through a whole session.
func signWith(ctx context.Context, src []byte, o image.Options, signers []crypto.Signer, pub []image.PublicMaterial) ([]byte, error) {
	s, err := mcuboot.New().Plan(ctx, image.Bytes(src), o, pub)
	if err != nil {
		return nil, err
	}
	reqs, _, err := s.Next(ctx, nil)
	if err != nil {
		return nil, err
	}
	var sigs []image.Signature
	for i, r := range reqs {
		v, err := imagetest.Sign(signers[i], r)
		if err != nil {
			return nil, err
		}
		sigs = append(sigs, image.Signature{Slot: r.Slot, Value: v})
	}
	if _, done, err := s.Next(ctx, sigs); err != nil || !done {
		return nil, fmt.Errorf("not done: %w", err)
	}
	var b bytes.Buffer
	_, err = s.Embed(ctx, &b)
	return b.Bytes(), err
}

func mustSign(t testing.TB, src []byte, o map[string]any, types ...alg.KeyType) ([]byte, image.Trust) {
	t.Helper()
	var signers []crypto.Signer
	var pub []image.PublicMaterial
	var trust image.Trust
	for i, kt := range types {
		s, p := imagetest.TestKey(t, kt, i+10)
		signers, pub = append(signers, s), append(pub, p)
		trust.Keys = append(trust.Keys, image.TrustedKey{Name: p.Name, SPKI: p.SPKI})
	}
	out, err := signWith(t.Context(), src, options(t, o), signers, pub)
	if err != nil {
		t.Fatalf("signing: %v", err)
	}
	return out, trust
}

func verify(t testing.TB, img []byte, trust image.Trust, o map[string]any) *image.Verdict {
	t.Helper()
	p := image.Profile{Verifier: "mcuboot"}
	if o != nil {
		p.Options = options(t, o)
	}
	v, err := mcuboot.New().Verify(t.Context(), image.Bytes(img), trust, p)
	if err != nil {
		t.Fatalf("Verify: %v", err)
	}
	return v
}

// fatal is the first refusal.
func fatal(v *image.Verdict) image.Finding {
	for _, f := range v.Findings {
		if f.Severity == image.Fatal {
			return f
		}
	}
	return image.Finding{}
}

func base(more map[string]any) map[string]any {
	m := map[string]any{"header-size": 0x200, "version": "1.2.3+4"}
	for k, v := range more {
		m[k] = v
	}
	return m
}

// area finds the offsets of the plain TLV area in a well-formed image.
func plainArea(img []byte) int {
	le := binary.LittleEndian
	return int(le.Uint16(img[8:])) + int(le.Uint32(img[12:])) + int(le.Uint16(img[10:]))
}

// addPlain adds an unprotected TLV, which no signature covers, before or
// after the others.
func addPlain(img []byte, front bool, typ uint16, val []byte) []byte {
	le := binary.LittleEndian
	off := plainArea(img)
	total := le.Uint16(img[off+2:])
	at := off + int(total)
	if front {
		at = off + 4
	}
	out := bytes.Clone(img[:at])
	le.PutUint16(out[off+2:], total+uint16(4+len(val)))
	out = le.AppendUint16(out, typ)
	out = le.AppendUint16(out, uint16(len(val)))
	return append(append(out, val...), img[at:]...)
}

func TestRefusesWhatItCannotPlan(t *testing.T) {
	t.Parallel()
	_, pub := imagetest.TestKey(t, alg.P256, 0)
	_, pub384 := imagetest.TestKey(t, alg.P384, 0)
	_, pub4096 := imagetest.TestKey(t, alg.RSA2048, 0)
	pub4096.Alg = alg.RSA2048PKCS1SHA256
	signed, _ := mustSign(t, zephyr(0x200, 1000), base(nil), alg.P256)
	twice := append(bytes.Clone(signed[:0x200]), signed...)
	binary.LittleEndian.PutUint32(twice[12:], uint32(len(signed)))
	encrypted := bytes.Clone(signed)
	encrypted[16] |= 4
	for _, c := range []struct {
		name string
		src  []byte
		o    map[string]any
		pub  []image.PublicMaterial
		code problem.Code
		text string
	}{
		{"no header size", payload(100), map[string]any{"version": "1.0.0"}, nil, problem.ImageOptions, "header-size"},
		{"no version", zephyr(0x200, 100), map[string]any{"header-size": 0x200}, nil, problem.ImageOptions, "version"},
		{"no room", payload(2000), base(nil), nil, problem.ImageMalformed, "not zero"},
		{"nothing behind the header", make([]byte, 0x200), base(nil), nil, problem.ImageMalformed, "empty"},
		{"shorter than its header", make([]byte, 0x100), base(nil), nil, problem.ImageTruncated, "header padding"},
		{"pad-header over a header", signed, base(map[string]any{"pad-header": true}), nil, problem.ImageAlreadySigned, "second one"},
		{"signed already", signed, nil, nil, problem.ImageAlreadySigned, "signed already"},
		{"signed twice", twice, map[string]any{"replace": true}, nil, problem.ImageAlreadySigned, "two MCUboot headers"},
		{"encrypted", encrypted, map[string]any{"replace": true}, nil, problem.ImageMalformed, "encrypted"},
		{"other header size", signed, map[string]any{"replace": true, "header-size": 0x400}, nil, problem.ImageOptions, "0x400"},
		{"unknown unprotected TLV", addPlain(signed, false, 0x1a0, []byte("x")), map[string]any{"replace": true}, nil, problem.ImageMalformed, "lose"},
		{"ELF", append([]byte("\x7fELF\x01\x01\x01"), make([]byte, 100)...), base(map[string]any{"pad-header": true}), nil, problem.ImageMalformed, "ELF"},
		{"HEX", []byte(":020000040000FA\r\n:1000000000400020218E01005D8E01005F8E010006\r\n"), base(map[string]any{"pad-header": true}), nil, problem.ImageMalformed, "Intel HEX"},
		{"slot", payload(4096), base(map[string]any{"pad-header": true, "slot-size": "0x1200"}), nil, problem.ImageNoRoom, "trailer"},
		{"two addresses", payload(10), base(map[string]any{"pad-header": true, "load-addr": 1, "rom-fixed": 2}), nil, problem.ImageOptions, "not both"},
		{"big endian", payload(10), base(map[string]any{"pad-header": true, "endian": "big"}), nil, problem.ImageOptions, "little"},
		{"pre-release", payload(10), base(map[string]any{"pad-header": true, "version": "1.2.3-rc1"}), nil, problem.ImageOptions, "pre-release"},
		{"version too large", payload(10), base(map[string]any{"pad-header": true, "version": "256.0.0"}), nil, problem.ImageOptions, "8 bits"},
		{"counter too large", payload(10), base(map[string]any{"pad-header": true, "security-counter": 1 << 32}), nil, problem.ImageOptions, "32 bits"},
		{"custom TLV of the format", payload(10), base(map[string]any{"pad-header": true, "custom-tlv": []any{map[string]any{"type": "0x50", "value": "x"}}}), nil, problem.ImageOptions, "vendor"},
		{"custom TLV that imgtool misreads", payload(10), base(map[string]any{"pad-header": true, "custom-tlv": []any{map[string]any{"type": "0x0110", "value": "x"}}}), nil, problem.ImageOptions, "vendor"},
		{"custom TLV too long", payload(10), base(map[string]any{"pad-header": true, "custom-tlv": []any{map[string]any{"type": "0xa0", "value": strings.Repeat("x", 65530)}}}), nil, problem.ImageNoRoom, "TLV"},
		{"misspelt", payload(10), base(map[string]any{"header_size": 1}), nil, problem.ImageOptions, "header_size"},
		{"mixed hashes", payload(10), base(map[string]any{"pad-header": true}), []image.PublicMaterial{pub, pub384}, problem.AlgUnsupported, "SHA384"},
		{"other scheme", payload(10), base(map[string]any{"pad-header": true}), []image.PublicMaterial{pub4096}, problem.AlgUnsupported, "pkcs1"},
		{"a key twice", payload(10), base(map[string]any{"pad-header": true}), []image.PublicMaterial{pub, pub}, problem.ImageOptions, "twice"},
		{"sha for the key", payload(10), base(map[string]any{"pad-header": true, "sha": "384"}), nil, problem.ImageOptions, "SHA-384"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.pub == nil {
				c.pub = []image.PublicMaterial{pub}
			}
			_, err := mcuboot.New().Plan(t.Context(), image.Bytes(c.src), options(t, c.o), c.pub)
			if !problem.Has(err, c.code) || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("got %v, want %s with %q", err, c.code, c.text)
			}
		})
	}
}

// An image that was signed can be signed anew by another key; what it said of
// itself stays, and what the options say replaces it.
func TestReplace(t *testing.T) {
	t.Parallel()
	first, old := mustSign(t, zephyr(0x200, 3000), base(map[string]any{
		"security-counter": 7, "dependencies": []any{map[string]any{"image": 1, "version": "2.0.0"}},
		"custom-tlv": []any{map[string]any{"type": "0xa1", "value": "board"}}, "slot-size": 0x8000, "pad": true,
	}), alg.P256)
	again, trust := mustSign(t, first, map[string]any{"replace": true, "security-counter": 9}, alg.Ed25519)
	r, err := mcuboot.New().Inspect(t.Context(), image.Bytes(again))
	if err != nil {
		t.Fatal(err)
	}
	if r.Facts.Version != "1.2.3+4" || r.Facts.SecurityCounter == nil || *r.Facts.SecurityCounter != 9 {
		t.Errorf("facts %+v", r.Facts)
	}
	tree, _ := json.Marshal(r.Tree)
	for _, want := range []string{"image 1 at 2.0.0", "vendor 0x00a1", fmt.Sprintf("%x", "board")} {
		if !bytes.Contains(tree, []byte(want)) {
			t.Errorf("the tree lacks %q: %s", want, tree)
		}
	}
	if v := verify(t, again, trust, nil); v.Refusal() != nil {
		t.Error(v.Refusal())
	}
	if v := verify(t, again, old, nil); v.Valid || v.Accepted {
		t.Error("the old key still verifies")
	}
	if !bytes.Equal(again[0x200:0x200+3000], first[0x200:0x200+3000]) {
		t.Error("the payload changed")
	}
}

// Two keys sign; whoever has either boots, and the last one known decides.
func TestTwoKeys(t *testing.T) {
	t.Parallel()
	img, trust := mustSign(t, zephyr(0x200, 500), base(nil), alg.P256, alg.P256)
	for i := range trust.Keys {
		v := verify(t, img, image.Trust{Keys: trust.Keys[i : i+1]}, nil)
		if v.Refusal() != nil {
			t.Errorf("key %d alone: %v", i, v.Refusal())
		}
	}
	if v := verify(t, img, trust, nil); v.Refusal() != nil || len(v.Signatures) != 2 {
		t.Errorf("both: %v, %+v", v.Refusal(), v.Signatures)
	}
	// With the second signature spoilt a device that has both refuses, one that
	// has the first accepts.
	spoilt := bytes.Clone(img)
	spoilt[len(spoilt)-8] ^= 1
	if v := verify(t, spoilt, trust, nil); v.Accepted || !v.Valid {
		t.Errorf("last one spoilt: accepted %v, valid %v", v.Accepted, v.Valid)
	}
	if v := verify(t, spoilt, image.Trust{Keys: trust.Keys[:1]}, nil); v.Refusal() != nil {
		t.Errorf("last one spoilt, but unknown: %v", v.Refusal())
	}
	// A bypass build tries each signature with its one key; the last decides.
	if v := verify(t, img, image.Trust{Keys: trust.Keys[:1]}, map[string]any{"keys": "bypass"}); v.Accepted {
		t.Error("bypass with the first key accepts, although the last signature is by another")
	}
	if v := verify(t, img, image.Trust{Keys: trust.Keys[1:]}, map[string]any{"keys": "bypass"}); v.Refusal() != nil {
		t.Errorf("bypass with the last key: %v", v.Refusal())
	}
}

func TestVerifyAsBuilt(t *testing.T) {
	t.Parallel()
	plain, trust := mustSign(t, zephyr(0x200, 900), base(nil), alg.P256)
	counted, _ := mustSign(t, zephyr(0x200, 900), base(map[string]any{"security-counter": 5}), alg.P256)
	full, _ := mustSign(t, zephyr(0x200, 900), base(map[string]any{"public-key-format": "full"}), alg.P256)
	padded, _ := mustSign(t, zephyr(0x200, 900), base(map[string]any{"pad-sig": true}), alg.P256)
	rsa, rsaTrust := mustSign(t, zephyr(0x200, 900), base(nil), alg.RSA2048)
	rom, _ := mustSign(t, zephyr(0x200, 900), base(map[string]any{"rom-fixed": 0x10000}), alg.P256)
	library, _ := mustSign(t, zephyr(0x200, 900), base(map[string]any{"non-bootable": true}), alg.P256)
	counter := func(n uint64) image.Trust { c := trust; c.Counter = &n; return c }
	forged := addPlain(plain, false, 0x50, []byte{9, 0, 0, 0})
	hidden := addPlain(plain, true, 0x1010, make([]byte, 32))
	for _, c := range []struct {
		name            string
		img             []byte
		trust           image.Trust
		o               map[string]any
		valid, accepted bool
		code            problem.Code
		says            string
	}{
		{"plain", plain, trust, nil, true, true, "", ""},
		{"counter equal", counted, counter(5), nil, true, true, "", ""},
		{"counter below", counted, counter(6), nil, true, false, "ROLLBACK.DENIED", "Image security counter value 5 lower than monotonic value 6"},
		{"counter below, unprotected build", counted, counter(6), map[string]any{"rollback-protection": false}, true, true, "", ""},
		{"no counter", plain, counter(0), nil, true, false, problem.RollbackCounterMissing, "Image in the primary slot is not valid!"},
		{"counter outside, allow-list", forged, counter(1), nil, true, false, problem.SigCoverage, "TLV 80 not permitted"},
		{"counter outside, no allow-list", forged, counter(1), map[string]any{"allow-list": false}, false, true, problem.SigCoverage, ""},
		{"hw-key build, hash in the image", plain, trust, map[string]any{"keys": "hw-key"}, true, false, problem.SigMissing, "Unable to find bootable image"},
		{"hw-key build, key in the image", full, trust, map[string]any{"keys": "hw-key"}, true, true, "", ""},
		{"hash build, key in the image", full, trust, nil, true, false, problem.SigMissing, ""},
		{"bypass build", full, trust, map[string]any{"keys": "bypass", "signature": "ecdsa-p256"}, true, false, problem.SigMissing, ""},
		{"other type built", rsa, rsaTrust, map[string]any{"signature": "rsa-3072"}, true, false, problem.TrustAnchorMissing, ""},
		{"other type signed", rsa, trust, nil, false, false, problem.TargetCapability, ""},
		{"no signature type", plain, image.Trust{}, map[string]any{"signature": "none"}, false, true, problem.TrustNotEnforced, ""},
		{"slot too small", plain, trust, map[string]any{"slot-size": 1000}, true, false, problem.ImageNoRoom, "Image size bigger than designated area: 1412 > 1000"},
		{"no room for the trailer", plain, trust, map[string]any{"max-image-size": 1500}, true, false, problem.ImageNoRoom, "TLV beyond image size"},
		{"other address", rom, trust, map[string]any{"slot-address": "0x20000"}, true, false, problem.TargetCapability, "has been built for offset 0x10000"},
		{"right address", rom, trust, map[string]any{"slot-address": "0x10000"}, true, true, "", ""},
		{"not bootable", library, trust, nil, true, false, problem.TargetCapability, "Image not bootable"},
		{"not bootable, as the target wants", library, trust, map[string]any{"non-bootable": true}, true, true, "", ""},
		{"padded signature", padded, trust, nil, true, true, "", ""},
		{"16-bit type, allow-list", hidden, trust, nil, true, false, problem.SigCoverage, "imgtool: Image has an invalid hash"},
		{"16-bit type, no allow-list", hidden, trust, map[string]any{"allow-list": false}, true, true, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := verify(t, c.img, c.trust, c.o)
			f := fatal(v)
			if v.Valid != c.valid || v.Accepted != c.accepted || f.Code != c.code {
				t.Fatalf("valid %v, accepted %v, %s; want %v, %v, %s\n%+v", v.Valid, v.Accepted, f.Code, c.valid, c.accepted, c.code, v.Findings)
			}
			if !strings.Contains(strings.Join(f.Device, "\n"), c.says) {
				t.Errorf("the device says %q, not %q", f.Device, c.says)
			}
		})
	}
}

// Before 1.5 a bootloader wants 72 bytes of signature.
func TestOldBootloaderWantsPadding(t *testing.T) {
	t.Parallel()
	old := image.Profile{Verifier: "mcuboot", Version: "1.4.0"}
	for range 8 { // most P-256 signatures are shorter, not all
		img, trust := mustSign(t, zephyr(0x200, 50), base(nil), alg.P256)
		v, err := mcuboot.New().Verify(t.Context(), image.Bytes(img), trust, old)
		if err != nil {
			t.Fatal(err)
		}
		if n := v.Signatures; len(n) == 1 && n[0].Range.Len == 72 {
			if !v.Accepted {
				t.Error("72 bytes refused")
			}
		} else if fatal(v).Code != problem.SigEncoding {
			t.Errorf("a short signature: %+v", fatal(v))
		}
		img, trust = mustSign(t, zephyr(0x200, 50), base(map[string]any{"pad-sig": true}), alg.P256)
		if v, err = mcuboot.New().Verify(t.Context(), image.Bytes(img), trust, old); err != nil || v.Refusal() != nil {
			t.Errorf("padded: %v, %v", err, v.Refusal())
		}
	}
}

func TestStamp(t *testing.T) {
	t.Parallel()
	f := mcuboot.New().(image.Stamper)
	for _, c := range []struct {
		o       string
		version string
		counter uint64
		want    string // or a word of the error, behind !
	}{
		{``, "1.2.3", 4, `{"security-counter":4,"version":"1.2.3"}`},
		{`{"header-size":512}`, "1.2.3+9", 0, `{"header-size":512,"security-counter":0,"version":"1.2.3+9"}`},
		{`{"security-counter":"auto"}`, "1.2.3", 0x01020003, `{"security-counter":16908291,"version":"1.2.3"}`},
		{`{"security-counter":"auto"}`, "1.2.3", 4, `!the release 4`},
		{`{"version":"1.2"}`, "1.2.0", 4, `{"security-counter":4,"version":"1.2.0"}`},
		{`{"version":"1.2.4"}`, "1.2.3", 4, `!the release 1.2.3`},
		{``, "1.2.3-rc.1", 4, `!pre-release`},
		{``, "1.2.3+0", 4, `!release's own version`},
		{``, "1.2", 4, `!release's own version`},
		{``, "300.2.3", 4, `!8 bits`},
		{``, "1.2.3", 1 << 32, `!32 bits`},
		{`{"nonsense":1}`, "1.2.3", 1, `!nonsense`},
	} {
		got, err := f.Stamp(image.Options(c.o), c.version, c.counter)
		if word, bad := strings.CutPrefix(c.want, "!"); bad {
			if !problem.Has(err, problem.ImageOptions) || !strings.Contains(err.Error(), word) {
				t.Errorf("%s %s %d: %v, want %q", c.o, c.version, c.counter, err, word)
			}
		} else if err != nil || string(got) != c.want {
			t.Errorf("%s %s %d: %s, %v, want %s", c.o, c.version, c.counter, got, err, c.want)
		}
	}
}

// Whatever the payload and options, what is signed is accepted, says what was
// asked, and fits the slot to the byte when it is padded.
func TestSignedIsAccepted(t *testing.T) {
	t.Parallel()
	signer, pub := imagetest.TestKey(t, alg.Ed25519, 3)
	rapid.Check(t, func(rt *rapid.T) {
		hdr := rapid.IntRange(32, 1024).Draw(rt, "hdr")
		body := rapid.SliceOfN(rapid.Byte(), 4, 3000).Draw(rt, "body")
		body[0] = 1 // no container, no header
		o := map[string]any{
			"header-size": hdr, "pad-header": rapid.Bool().Draw(rt, "pad-header"),
			"version": fmt.Sprintf("%d.%d.%d+%d", rapid.Uint8().Draw(rt, "maj"), rapid.Uint8().Draw(rt, "min"), rapid.Uint16().Draw(rt, "rev"), rapid.Uint32Min(1).Draw(rt, "build")),
			"align":   rapid.SampledFrom([]int{1, 2, 4, 8, 16, 32}).Draw(rt, "align"),
		}
		src := body
		if o["pad-header"] == false {
			src = append(make([]byte, hdr), body...)
		}
		cnt := rapid.Uint32().Draw(rt, "counter")
		o["security-counter"] = cnt
		pad := rapid.Bool().Draw(rt, "pad")
		if pad {
			o["slot-size"], o["confirm"] = 32768, true
			o["overwrite-only"] = rapid.Bool().Draw(rt, "overwrite-only")
		}
		if rapid.Bool().Draw(rt, "custom") {
			o["custom-tlv"] = []any{map[string]any{"type": 0xa5, "value": rapid.StringN(0, 40, 200).Draw(rt, "value")}}
		}
		raw, err := json.Marshal(o)
		if err != nil {
			rt.Fatal(err)
		}
		img, err := signWith(context.Background(), src, raw, []crypto.Signer{signer}, []image.PublicMaterial{pub})
		if problem.Has(err, problem.ImageOptions) && strings.Contains(err.Error(), "custom-tlv") {
			return // text that begins with 0x is hex or refused
		}
		if err != nil {
			rt.Fatal(err)
		}
		stored := uint64(cnt)
		v, err := mcuboot.New().Verify(context.Background(), image.Bytes(img), image.Trust{Keys: []image.TrustedKey{{SPKI: pub.SPKI}}, Counter: &stored}, image.Profile{})
		if err != nil || v.Refusal() != nil {
			rt.Fatal(err, v.Refusal())
		}
		r, err := mcuboot.New().Inspect(context.Background(), image.Bytes(img))
		if err != nil || r.Facts.Version != o["version"] || *r.Facts.SecurityCounter != uint64(cnt) {
			rt.Fatal(err, r.Facts)
		}
		if pad && len(img) != 32768 {
			rt.Fatalf("padded to %d", len(img))
		}
		if !bytes.Equal(img[hdr:hdr+len(body)], body) {
			rt.Fatal("the payload changed")
		}
	})
}

// No single flipped byte of the image's signed part, and no cut, is accepted.
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	img, trust := mustSign(t, zephyr(32, 40), map[string]any{"header-size": 32, "version": "1.0.0", "security-counter": 1}, alg.Ed25519)
	one := uint64(1)
	trust.Counter = &one
	if v := verify(t, img, trust, nil); v.Refusal() != nil {
		t.Fatal(v.Refusal())
	}
	for i := range img {
		for _, m := range []byte{1, 0x80, 0xff} {
			b := bytes.Clone(img)
			b[i] ^= m
			if v := verify(t, b, trust, nil); v.Accepted || v.Valid && i < plainArea(img) {
				t.Errorf("byte %d xor %#x: accepted %v, valid %v", i, m, v.Accepted, v.Valid)
			}
		}
		if v := verify(t, img[:i], trust, nil); v.Accepted || v.Valid {
			t.Errorf("cut to %d: accepted %v, valid %v", i, v.Accepted, v.Valid)
		}
	}
}
