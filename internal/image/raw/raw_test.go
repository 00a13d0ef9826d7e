package raw

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/imagetest"
	"github.com/firmseal/firmseal/internal/problem"
)

var firmware = bytes.Repeat([]byte("\x00\x01firmware that nobody understands\xff"), 200)

// TestFormat is not parallel: imagetest measures what is allocated.
func TestFormat(t *testing.T) {
	var cases []imagetest.Case
	add := func(kt alg.KeyType, id alg.ID, enc string, big bool) {
		o := image.Options(fmt.Sprintf(`{"encoding":%q}`, enc))
		target := image.Options(fmt.Sprintf(`{"encoding":%q,"alg":%q}`, enc, id))
		if id == "" {
			target = o
		}
		c := imagetest.Case{
			Name: fmt.Sprintf("%s-%s-%s", kt, id, enc), Source: firmware, Options: o,
			Keys: []imagetest.Key{{Type: kt, Alg: id}}, Profile: image.Profile{Options: target},
			Fields: func(_ testing.TB, out []byte) []imagetest.Field {
				return []imagetest.Field{{Name: "signature", Len: int64(len(out)), Kind: imagetest.Signature}}
			},
		}
		if big {
			c.Big = func(n int64) image.Source { return imagetest.Sparse(n, []byte("\x7fbig")) }
		}
		cases = append(cases, c)
	}
	for _, e := range []string{encDER, encRaw, encBase64, encBase64Raw} {
		add(alg.P256, "", e, e == encDER)
		add(alg.P384, "", e, false)
		add(alg.Ed25519, "", e, false)
	}
	for _, id := range alg.For(alg.RSA2048) {
		add(alg.RSA2048, id, encDER, false)
	}
	add(alg.RSA3072, "", encBase64, false)
	add(alg.RSA3072, alg.RSA3072PSSSHA256, encDER, false)
	// Signs the digest of other bytes, as a Plan that skips the file's end would.
	for i := range cases {
		if cases[i].Keys[0].Type == alg.Ed25519 {
			continue
		}
		cases[i].Seeds = []imagetest.Seed{
			{Name: "the last byte left out", Request: func(r image.SignRequest) image.SignRequest {
				return redigest(r, firmware[:len(firmware)-1])
			}},
			{Name: "a line feed put behind", Request: func(r image.SignRequest) image.SignRequest {
				return redigest(r, append(slices.Clone(firmware), '\n'))
			}},
			{Name: "the hash of the hash in hex", Request: func(r image.SignRequest) image.SignRequest {
				return redigest(r, []byte(hex.EncodeToString(r.Input)))
			}},
		}
	}
	imagetest.Run(t, New(), cases)
}

func redigest(r image.SignRequest, b []byte) image.SignRequest {
	spec, err := alg.Lookup(r.Alg)
	if err != nil {
		panic(err)
	}
	h := spec.Hash.New()
	h.Write(b)
	r.Input = h.Sum(nil)
	return r
}

func TestApart(t *testing.T) {
	t.Parallel()
	imagetest.Apart(t, ".", []string{"verify*.go"}, map[string]string{"Format": "the type that both halves hang on; it has no fields"})
}

// sign makes a signature file.
func sign(tb testing.TB, s crypto.Signer, pub image.PublicMaterial, src image.Source, o image.Options) []byte {
	tb.Helper()
	sess, err := New().Plan(tb.Context(), src, o, []image.PublicMaterial{pub})
	if err != nil {
		tb.Fatal(err)
	}
	return finish(tb, s, sess)
}

func finish(tb testing.TB, s crypto.Signer, sess image.Session) []byte {
	tb.Helper()
	reqs, _, err := sess.Next(tb.Context(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	sig, err := imagetest.Sign(s, reqs[0])
	if err != nil {
		tb.Fatal(err)
	}
	if _, done, err := sess.Next(tb.Context(), []image.Signature{{Slot: reqs[0].Slot, Value: sig}}); !done || err != nil {
		tb.Fatal(done, err)
	}
	var b bytes.Buffer
	if _, err := sess.Embed(tb.Context(), &b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func trust(sig []byte, pub ...image.PublicMaterial) image.Trust {
	t := image.Trust{Detached: sig}
	for _, p := range pub {
		t.Keys = append(t.Keys, image.TrustedKey{Name: p.Name, SPKI: p.SPKI})
	}
	return t
}

// TestWrongEncoding: a right signature in another encoding is refused, and the
// finding names the one that was seen.
func TestWrongEncoding(t *testing.T) {
	t.Parallel()
	s, pub := imagetest.TestKey(t, alg.P256, 0)
	der := sign(t, s, pub, image.Bytes(firmware), nil)
	raw, err := alg.RawECDSA(der, 32)
	if err != nil {
		t.Fatal(err)
	}
	b64 := []byte(base64.StdEncoding.EncodeToString(der))
	for _, c := range []struct {
		want   string
		sig    []byte
		actual string
		next   string
	}{
		{encDER, raw, encRaw, "set to der"},
		{encDER, b64, encBase64, "set to der"},
		{encDER, []byte(hex.EncodeToString(der) + "\n"), seenHex, "set to der"},
		{encRaw, der, encDER, "set to raw"},
		{encBase64, der, encDER, "base64 -w0"},
		{encBase64, []byte(base64.StdEncoding.EncodeToString(b64)), seenTwice, "base64 -d"},
		{encBase64, []byte(base64.StdEncoding.EncodeToString(raw)), encBase64Raw, "set to base64"},
	} {
		p := image.Profile{Options: image.Options(fmt.Sprintf(`{"encoding":%q}`, c.want))}
		v, err := New().Verify(t.Context(), image.Bytes(firmware), trust(c.sig, pub), p)
		if err != nil {
			t.Fatal(err)
		}
		f := v.Findings[len(v.Findings)-1]
		if !v.Valid || v.Accepted || f.Code != problem.SigEncoding || f.Actual != c.actual || f.Expected != c.want || !strings.Contains(f.Next, c.next) {
			t.Errorf("%s for %s: valid %v, accepted %v, %+v", c.actual, c.want, v.Valid, v.Accepted, f)
		}
	}
	// base64 as `openssl base64` breaks it is one encoding with base64 in one line.
	broken := []byte(string(b64[:64]) + "\n" + string(b64[64:]) + "\n")
	v, err := New().Verify(t.Context(), image.Bytes(firmware), trust(broken, pub), image.Profile{Options: image.Options(`{"encoding":"base64"}`)})
	if err != nil || !v.Accepted {
		t.Errorf("base64 in lines: %v, %v", v.Refusal(), err)
	}
}

func TestWrongAlgorithm(t *testing.T) {
	t.Parallel()
	s, pub := imagetest.TestKey(t, alg.RSA2048, 0)
	pub.Alg = alg.RSA2048PSSSHA256
	sig := sign(t, s, pub, image.Bytes(firmware), nil)
	v, err := New().Verify(t.Context(), image.Bytes(firmware), trust(sig, pub), image.Profile{})
	if err != nil {
		t.Fatal(err)
	}
	f := v.Findings[len(v.Findings)-1]
	if !v.Valid || v.Accepted || f.Code != problem.TargetCapability || f.Actual != string(pub.Alg) || f.Expected != string(alg.RSA2048PKCS1SHA256) {
		t.Errorf("PSS where PKCS #1 v1.5 was expected: %+v", v)
	}
	slices.Reverse(sig)
	v, err = New().Verify(t.Context(), image.Bytes(firmware), trust(sig, pub), image.Profile{Options: image.Options(`{"alg":"rsa2048-pss-sha256"}`)})
	if err != nil || v.Accepted || v.Findings[len(v.Findings)-1].Actual != seenReversedRSA {
		t.Errorf("a little-endian signature: %+v, %v", v, err)
	}
}

func TestWeakKeys(t *testing.T) {
	t.Parallel()
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(weak.Public())
	if err != nil {
		t.Fatal(err)
	}
	p := image.PublicMaterial{Role: "image", Name: "weak", SPKI: spki}
	if _, err := New().Plan(t.Context(), image.Bytes(firmware), nil, []image.PublicMaterial{p}); !problem.Has(err, problem.AlgWeak) {
		t.Errorf("Plan: %v", err)
	}
	if _, err := New().ExportTrust([]image.PublicMaterial{p}, nil); !problem.Has(err, problem.AlgWeak) {
		t.Errorf("ExportTrust: %v", err)
	}
	sum := sha256.Sum256(firmware)
	sig, err := rsa.SignPKCS1v15(nil, weak, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	v, err := New().Verify(t.Context(), image.Bytes(firmware), trust(sig, p), image.Profile{})
	if err != nil || v.Valid || v.Accepted || !problem.Has(v.Refusal(), problem.AlgWeak) {
		t.Errorf("Verify: %+v, %v", v, err)
	}
}

func TestEd25519TakesSmallFilesOnly(t *testing.T) {
	t.Parallel()
	s, pub := imagetest.TestKey(t, alg.Ed25519, 0)
	most := make([]byte, alg.MaxMessage)
	sig := sign(t, s, pub, image.Bytes(most), nil)
	v, err := New().Verify(t.Context(), image.Bytes(most), trust(sig, pub), image.Profile{})
	if err != nil || !v.Accepted {
		t.Fatalf("%v, %v", v.Refusal(), err)
	}
	more := image.Bytes(make([]byte, alg.MaxMessage+1))
	_, err = New().Plan(t.Context(), more, nil, []image.PublicMaterial{pub})
	if e := problem.Of(err); e == nil || e.Code != problem.AlgUnsupported || !strings.Contains(e.Why, "not its hash") || !strings.Contains(e.Next, "p256") {
		t.Errorf("Plan: %v", err)
	}
	if v, err = New().Verify(t.Context(), more, trust(sig, pub), image.Profile{}); err != nil || v.Accepted || !problem.Has(v.Refusal(), problem.TargetCapability) {
		t.Errorf("Verify: %+v, %v", v, err)
	}
}

// TestBytesUnseen: what is signed from the digest verifies over the file, and
// the sessions are not mixed up.
func TestBytesUnseen(t *testing.T) {
	t.Parallel()
	f := Format{}
	sum := sha256.Sum256(firmware)
	size := int64(len(firmware))
	for _, kt := range []alg.KeyType{alg.P256, alg.RSA2048, alg.P384, alg.Ed25519} {
		s, pub := imagetest.TestKey(t, kt, 0)
		sess, err := f.PlanDigest(t.Context(), sum[:], size, nil, []image.PublicMaterial{pub})
		if kt == alg.P384 || kt == alg.Ed25519 {
			if !problem.Has(err, problem.AlgUnsupported) {
				t.Errorf("%s: %v", kt, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		st, err := sess.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Resume(t.Context(), image.Bytes(firmware), st); !problem.Has(err, problem.Conflict) {
			t.Errorf("Resume of an unseen session over the file: %v", err)
		}
		other := sha256.Sum256(nil)
		if _, err := f.ResumeDigest(t.Context(), other[:], size, st); !problem.Has(err, problem.Conflict) {
			t.Errorf("ResumeDigest with another digest: %v", err)
		}
		if sess, err = f.ResumeDigest(t.Context(), sum[:], size, st); err != nil {
			t.Fatal(err)
		}
		sig := finish(t, s, sess)
		for name, verify := range map[string]func() (*image.Verdict, error){
			"file": func() (*image.Verdict, error) {
				return f.Verify(t.Context(), image.Bytes(firmware), trust(sig, pub), image.Profile{})
			},
			"digest": func() (*image.Verdict, error) {
				return f.VerifyDigest(t.Context(), sum[:], size, trust(sig, pub), image.Profile{})
			},
		} {
			if v, err := verify(); err != nil || !v.Valid || !v.Accepted {
				t.Errorf("%s by %s: %+v, %v", kt, name, v, err)
			}
		}
		if v, err := f.VerifyDigest(t.Context(), other[:], size, trust(sig, pub), image.Profile{}); err != nil || v.Accepted || v.Valid {
			t.Errorf("%s with another digest: %+v, %v", kt, v, err)
		}
	}
}

// TestNotFirmware: what another tool signs is named, with the tool.
func TestNotFirmware(t *testing.T) {
	t.Parallel()
	tarOf := func(names ...string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, n := range names {
			if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o644, Size: 3}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte("abc")); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	zip := func(b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	for _, c := range []struct {
		name string
		b    []byte
		next string // empty: nothing to say
	}{
		{"deb", []byte("!<arch>\ndebian-binary   1410122664"), "gpg"},
		{"rpm", []byte("\xed\xab\xee\xdb\x03\x00"), "rpmsign"},
		{"apk", zip(tarOf(".SIGN.RSA.key.pub")), "abuild-sign"},
		{"apk3", []byte("ADBdxxxx"), "abuild-sign"},
		{"android", []byte("PK\x03\x04............AndroidManifest.xml"), "apksigner"},
		{"jar", []byte("PK\x03\x04............META-INF/"), "jarsigner"},
		{"zip", []byte("PK\x03\x04............zephyr.bin"), "inside"},
		{"oci", tarOf("blobs/sha256/abc", "oci-layout"), "cosign"},
		{"docker", tarOf("abc.json", "manifest.json"), "cosign"},
		{"tar", tarOf("firmware.bin"), ""},
		{"gzip", zip([]byte("firmware")), ""},
		{"static library", []byte("!<arch>\nfoo.o/          "), ""},
		{"firmware", firmware, ""},
	} {
		r, err := New().Inspect(t.Context(), image.Bytes(c.b))
		if err != nil {
			t.Fatal(err)
		}
		if c.next == "" {
			if len(r.Findings) > 0 {
				t.Errorf("%s: %+v", c.name, r.Findings)
			}
			continue
		}
		if len(r.Findings) != 1 || r.Findings[0].Code != problem.ImageNotFirmware || !strings.Contains(r.Findings[0].Next, c.next) {
			t.Errorf("%s: %+v", c.name, r.Findings)
		}
		// A reviewer of the signing is told, too.
		_, pub := imagetest.TestKey(t, alg.P256, 0)
		sess, err := New().Plan(t.Context(), image.Bytes(c.b), nil, []image.PublicMaterial{pub})
		if err != nil {
			t.Fatal(err)
		}
		reqs, _, err := sess.Next(t.Context(), nil)
		if err != nil || !slices.ContainsFunc(reqs[0].Show, func(f image.Field) bool {
			return f.Name == "not firmware" && strings.Contains(f.Value, c.next)
		}) {
			t.Errorf("%s: the request does not say it: %+v, %v", c.name, reqs, err)
		}
	}
}

func TestManyKeys(t *testing.T) {
	t.Parallel()
	s, a := imagetest.TestKey(t, alg.P256, 0)
	_, b := imagetest.TestKey(t, alg.P384, 0)
	sig := sign(t, s, a, image.Bytes(firmware), nil)
	v, err := New().Verify(t.Context(), image.Bytes(firmware), trust(sig, b, a), image.Profile{})
	if err != nil || !v.Accepted || v.Signatures[0].KeyID != a.KeyID() {
		t.Errorf("the second of two anchors: %+v, %v", v, err)
	}
	if _, err := New().Plan(t.Context(), image.Bytes(firmware), nil, []image.PublicMaterial{a, b}); !problem.Has(err, problem.ImageOptions) {
		t.Errorf("two keys for one signature file: %v", err)
	}
	arts, err := New().ExportTrust([]image.PublicMaterial{a, a, {Name: "../../etc/x y", SPKI: b.SPKI}}, nil)
	if err != nil || len(arts) != 6 {
		t.Fatalf("%d artifacts, %v", len(arts), err)
	}
	names := map[string]bool{}
	for _, x := range arts {
		if names[x.Name] || strings.ContainsAny(x.Name, "/ ") || strings.HasPrefix(x.Name, ".") {
			t.Errorf("artifact name %q", x.Name)
		}
		names[x.Name] = true
	}
}

// TestAnyFile: whatever the file and encoding, it verifies; with any one bit
// changed it does not.
func TestAnyFile(t *testing.T) {
	t.Parallel()
	s, pub := imagetest.TestKey(t, alg.P256, 0)
	rapid.Check(t, func(r *rapid.T) {
		file := rapid.SliceOfN(rapid.Byte(), 1, 2000).Draw(r, "file")
		enc := rapid.SampledFrom([]string{encDER, encRaw, encBase64, encBase64Raw}).Draw(r, "encoding")
		o := image.Options(fmt.Sprintf(`{"encoding":%q}`, enc))
		sig := sign(t, s, pub, image.Bytes(file), o)
		p := image.Profile{Options: o}
		v, err := New().Verify(t.Context(), image.Bytes(file), trust(sig, pub), p)
		if err != nil || !v.Valid || !v.Accepted {
			r.Fatalf("%+v, %v", v, err)
		}
		bit := rapid.IntRange(0, 8*len(file)-1).Draw(r, "bit")
		file[bit/8] ^= 1 << (bit % 8)
		if v, err = New().Verify(t.Context(), image.Bytes(file), trust(sig, pub), p); err != nil || v.Valid || v.Accepted {
			r.Fatalf("bit %d changed: %+v, %v", bit, v, err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	s, pub := imagetest.TestKey(f, alg.P256, 0)
	_, ed := imagetest.TestKey(f, alg.Ed25519, 0)
	_, rk := imagetest.TestKey(f, alg.RSA2048, 0)
	good := sign(f, s, pub, image.Bytes(firmware), nil)
	for _, e := range []string{encDER, encRaw, encBase64, encBase64Raw} {
		f.Add(sign(f, s, pub, image.Bytes(firmware), image.Options(fmt.Sprintf(`{"encoding":%q}`, e))), e)
	}
	f.Add([]byte{0x30, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01}, encDER)
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x02, 0x01}, encDER)
	f.Add(make([]byte, 256), encRaw)
	f.Add(bytes.Repeat([]byte("AAAA"), 200), encBase64)
	changed := slices.Clone(firmware)
	changed[7] ^= 4
	f.Fuzz(func(t *testing.T, sig []byte, enc string) {
		o, err := jsonEncoding(enc)
		if err != nil {
			return
		}
		v, err := New().Verify(t.Context(), image.Bytes(changed), trust(sig, pub, ed, rk), image.Profile{Options: o})
		if err != nil {
			if !problem.Has(err, problem.ImageOptions) {
				t.Fatal(err)
			}
			return
		}
		if v.Valid || v.Accepted || v.Refusal() == nil || problem.Of(v.Refusal()).Code == problem.Internal {
			t.Fatalf("a file that nobody signed: %+v", v)
		}
		// The very same bytes, where they are right.
		v, err = New().Verify(t.Context(), image.Bytes(firmware), trust(sig, pub), image.Profile{Options: o})
		if err == nil && bytes.Equal(sig, good) && enc == encDER && !v.Accepted {
			t.Fatalf("the right signature was refused: %+v", v)
		}
	})
}

func jsonEncoding(enc string) (image.Options, error) {
	if strings.ContainsAny(enc, "\"\\") {
		return nil, io.ErrUnexpectedEOF
	}
	return image.Options(`{"encoding":"` + enc + `"}`), nil
}

func FuzzResume(f *testing.F) {
	_, pub := imagetest.TestKey(f, alg.P256, 0)
	for _, e := range []string{encDER, encBase64Raw} {
		sess, err := New().Plan(f.Context(), image.Bytes(firmware), image.Options(fmt.Sprintf(`{"encoding":%q}`, e)), []image.PublicMaterial{pub})
		if err != nil {
			f.Fatal(err)
		}
		for _, asked := range []bool{false, true} {
			if asked {
				if _, _, err := sess.Next(f.Context(), nil); err != nil {
					f.Fatal(err)
				}
			}
			st, err := sess.MarshalBinary()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(st[len(stateMagic)+2*sha256.Size+1:])
		}
	}
	f.Add([]byte(`{"size":1,"digest":"","encoding":"der","alg":"ed25519"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		// With the right checksum, so that what is behind it is reached.
		sum := sha256.Sum256(body)
		st := append([]byte(stateMagic+hex.EncodeToString(sum[:])+"\n"), body...)
		sess, err := New().Resume(t.Context(), image.Bytes(firmware), st)
		if err != nil {
			if e := problem.Of(err); e.Code == problem.Internal {
				t.Fatal(err)
			}
			return
		}
		use(t.Context(), sess)
	})
}

// use goes on with a session whatever it is; it may refuse, not panic.
func use(ctx context.Context, s image.Session) {
	if _, err := s.Embed(ctx, io.Discard); err == nil {
		return
	}
	if reqs, _, err := s.Next(ctx, nil); err == nil {
		for _, r := range reqs {
			_, _, _ = s.Next(ctx, []image.Signature{{Slot: r.Slot, Value: make([]byte, 64)}})
		}
	}
	_, _ = s.MarshalBinary()
}
