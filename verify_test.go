package firmseal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func (k *kit) verify(ctx context.Context) (*Verified, error) {
	root, err := ParseTrustRoot(k.rootFile)
	if err != nil {
		return nil, err
	}
	in := k.input
	in.TrustRoot, in.Seal, in.Proof, in.Image = root, k.seal, k.proof, bytes.NewReader(k.image)
	return Verify(ctx, in)
}

func TestVerifySaysWhatWasProven(t *testing.T) {
	t.Parallel()
	k := newKit().state().sealBy(keyEve, keyB, keyA).prove().trust()
	v, err := k.verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if v.ID != hexSum(k.statement) || v.Statement.Release.Requester != "token:ci" || v.Test() {
		t.Errorf("proven: %+v", v)
	}
	if d := cmp.Diff([]SealKey{keyB.trusted(), keyA.trusted()}, v.Signers); d != "" {
		t.Errorf("signers: %s", d)
	}
	if v.Leaf.Statement != v.ID || v.LeafIndex != 4 || v.Checkpoint.Size != 7 || v.Checkpoint.Origin != testOrigin {
		t.Errorf("log: %+v at %d under %+v", v.Leaf, v.LeafIndex, v.Checkpoint)
	}
	if !v.ImageChecked || v.ImageSize != int64(len(k.image)) || v.SignatureChecked {
		t.Errorf("files: %+v", v)
	}
	k = newKit()
	k.release.Environment, k.input.UnsafeTest = EnvironmentTest, true
	if v, err := k.state().sealBy(keyTest).prove().trust().verify(t.Context()); err != nil || !v.Test() {
		t.Errorf("a test release is not marked: %v", err)
	}
}

// One changed bit anywhere is refused, and the refusal names the half that was
// changed.
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	good := newKit().done()
	seals := []Code{CodeEnvelopeMalformed, CodeSealType, CodeSealInvalid, CodeSealUntrusted}
	proofs := []Code{CodeProofMalformed, CodeProofInvalid, CodeCheckpointUntrusted}
	for _, part := range []struct {
		name  string
		bytes *[]byte
		want  []Code
	}{
		{"seal", &good.seal, seals},
		{"proof", &good.proof, proofs},
		{"image", &good.image, []Code{CodeImageMismatch}},
	} {
		whole := *part.bytes
		for i := range whole {
			*part.bytes = bytes.Clone(whole)
			(*part.bytes)[i] ^= 1 << (i % 8)
			if _, err := good.verify(t.Context()); !slices.Contains(part.want, codeOf(t, err)) {
				t.Errorf("%s, bit %d of byte %d: %v", part.name, i%8, i, err)
			}
			*part.bytes = whole[:i]
			_, err := good.verify(t.Context())
			if want := part.want; i > 0 && !slices.Contains(want, codeOf(t, err)) || err == nil {
				t.Errorf("%s cut after %d bytes: %v", part.name, i, err)
			}
		}
		*part.bytes = whole
	}
	if _, err := good.verify(t.Context()); err != nil {
		t.Fatalf("the unchanged release: %v", err)
	}
}

func TestRefusalTellsMetadataFromSignature(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"metadata-changed": "the metadata was changed",
		"signature-bit":    "the signature was changed",
	} {
		for _, v := range vectors() {
			if v.Name != name {
				continue
			}
			if err := v.verdict(t); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v does not say that %s", name, err, want)
			}
		}
	}
}

func TestImageReaders(t *testing.T) {
	t.Parallel()
	k := newKit().done()
	root := must(ParseTrustRoot(k.rootFile))
	verified := func() *Verified {
		return must(VerifySeal(VerifyInput{TrustRoot: root, Seal: k.seal, Proof: k.proof}))
	}
	broken := errors.New("the disk is gone")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		r    io.Reader
		size int64
		code Code
		is   error
	}{
		{"a byte at a time", t.Context(), iotest.OneByteReader(bytes.NewReader(k.image)), 0, "", nil},
		{"data with EOF", t.Context(), iotest.DataErrReader(bytes.NewReader(k.image)), int64(len(k.image)), "", nil},
		{"endless", t.Context(), endless{}, 1 << 20, CodeImageMismatch, nil},
		{"cut off", t.Context(), io.MultiReader(bytes.NewReader(k.image[:5]), iotest.ErrReader(io.ErrUnexpectedEOF)), 0, CodeImageTruncated, nil},
		{"broken after all bytes", t.Context(), io.MultiReader(bytes.NewReader(k.image), iotest.ErrReader(broken)), 0, "", broken},
		{"gives nothing", t.Context(), nothing{}, 0, "", io.ErrNoProgress},
		{"canceled", canceled, endless{}, 0, "", context.Canceled},
	} {
		v := verified()
		err := v.CheckImage(c.ctx, c.r, c.size)
		if c.is != nil {
			if !errors.Is(err, c.is) {
				t.Errorf("%s: %v", c.name, err)
			}
		} else if codeOf(t, err) != c.code {
			t.Errorf("%s: %v, want %q", c.name, err, c.code)
		}
		if v.ImageChecked != (err == nil) {
			t.Errorf("%s: checked is %t after %v", c.name, v.ImageChecked, err)
		}
	}
	if _, err := Verify(t.Context(), VerifyInput{TrustRoot: root, Seal: k.seal, Proof: k.proof}); err == nil {
		t.Error("Verify without an image says yes")
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, nil }

// Memory stays flat whatever the size of the image.
func TestImageIsStreamed(t *testing.T) {
	v := must(VerifySeal(VerifyInput{TrustRoot: must(ParseTrustRoot(newKit().done().rootFile)), Seal: newKit().done().seal, Proof: newKit().done().proof}))
	const size = 32 << 20
	allocated := testing.AllocsPerRun(1, func() {
		if err := v.CheckImage(t.Context(), io.LimitReader(endless{}, size), size); codeOf(t, err) != CodeImageMismatch {
			t.Error(err)
		}
	})
	if allocated > 100 {
		t.Errorf("%v allocations for an image of %d bytes", allocated, size)
	}
}

// No order of releases takes a device down in its counter, and its version goes
// down only with a rising counter.
func TestDeviceNeverGoesBack(t *testing.T) {
	t.Parallel()
	version := rapid.SampledFrom([]string{"1.0.0", "1.0.1-rc.1", "1.0.1", "1.2.0", "2.0.0"})
	rapid.Check(t, func(t *rapid.T) {
		device := DeviceState{0, "1.0.0"}
		for range rapid.IntRange(1, 20).Draw(t, "releases") {
			r := testRelease()
			r.Version, r.MinimumVersion = version.Draw(t, "version"), ""
			r.SecurityCounter = rapid.Uint64Range(0, 4).Draw(t, "counter")
			r.Emergency = rapid.Bool().Draw(t, "emergency")
			if err := checkTarget(r, VerifyInput{Device: &device}); err != nil {
				continue
			}
			before := device
			device = DeviceState{r.SecurityCounter, r.Version}
			older := must(ParseVersion(device.Version)).Compare(must(ParseVersion(before.Version))) < 0
			if device.SecurityCounter < before.SecurityCounter || older && (!r.Emergency || device.SecurityCounter == before.SecurityCounter) {
				t.Fatalf("from %+v to %+v, emergency %t", before, device, r.Emergency)
			}
		}
	})
}

func TestStatementSurvivesItsText(t *testing.T) {
	t.Parallel()
	name := rapid.StringMatching(`[!-~]{1,20}`)
	text := rapid.StringMatching(`[ -~ä€𝄞\x{2028}]{1,30}`)
	digest := rapid.Map(rapid.SliceOf(rapid.Byte()), hexSum)
	rapid.Check(t, func(t *rapid.T) {
		s := NewStatement([]Subject{NewSubject("image-"+rapid.StringMatching(`[a-zäöü .<>&"]{0,9}`).Draw(t, "file"), digest.Draw(t, "image"))}, Release{
			Product: name.Draw(t, "product"), HardwareIDs: rapid.SliceOfNDistinct(name, 1, 5, rapid.ID).Draw(t, "hw"),
			Variant: rapid.OneOf(rapid.Just(""), name).Draw(t, "variant"), Version: "1.2.3-rc.1+b", SecurityCounter: rapid.Uint64Range(0, MaxSecurityCounter).Draw(t, "counter"),
			MinimumVersion: rapid.SampledFrom([]string{"", "0.1.0"}).Draw(t, "minimum"), Format: name.Draw(t, "format"),
			Environment: rapid.SampledFrom([]string{EnvironmentTest, EnvironmentProduction}).Draw(t, "env"),
			Emergency:   rapid.Bool().Draw(t, "emergency"), BytesUnseen: rapid.Bool().Draw(t, "unseen"),
			Created: time.Unix(rapid.Int64Range(0, 1<<36).Draw(t, "created"), 0).UTC(),
			Request: RequestRef{text.Draw(t, "request"), digest.Draw(t, "record")}, Requester: text.Draw(t, "requester"),
			SignedWith: rapid.SliceOfN(digest, 1, 3).Draw(t, "with"), Policy: digest.Draw(t, "policy"),
			Dependencies: []Dependency{{name.Draw(t, "dep"), "1.0.0"}}, BuildID: rapid.OneOf(rapid.Just(""), text).Draw(t, "build"),
			Metadata: rapid.MapOfN(name, text, 1, 4).Draw(t, "metadata"),
		})
		data, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseStatement(data)
		if err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
		if d := cmp.Diff(s, again); d != "" {
			t.Fatal(d)
		}
	})
}

// The largest statement that the fields allow fits into MaxStatement and, in
// base64 with as many signatures as there can be, into MaxEnvelope.
func TestLargestReleaseFits(t *testing.T) {
	t.Parallel()
	k := newKit()
	name := func(i int) string { return fmt.Sprintf("%03d", i) + strings.Repeat(`"`, MaxName-3) }
	r := &k.release
	r.Product, r.Format, r.Variant = name(0), name(0), name(0)
	r.HardwareIDs, r.Dependencies, r.SignedWith, r.Metadata = nil, nil, nil, map[string]string{}
	for i := range MaxHardwareIDs {
		r.HardwareIDs = append(r.HardwareIDs, name(i))
	}
	for i := range MaxDependencies {
		r.Dependencies = append(r.Dependencies, Dependency{name(i), "1.0.0+" + strings.Repeat("x", MaxVersion-6)})
	}
	for range MaxSignedWith {
		r.SignedWith = append(r.SignedWith, hexSum(nil))
	}
	for i := range MaxMetadata {
		r.Metadata[name(i)] = strings.Repeat("\u2028", MaxMetadataValue/3)
	}
	r.Requester, r.BuildID, r.Request.ID = strings.Repeat(`"`, MaxText), strings.Repeat(`"`, MaxText), strings.Repeat(`"`, MaxText)
	for i := range k.subjects {
		k.subjects[i].Name = strings.Repeat(`"`, MaxFileName)
	}
	k.state()
	e := &Envelope{PayloadType: PayloadType, Payload: k.statement}
	for i := range MaxSignatures {
		e.Signatures = append(e.Signatures, Signature{hexSum([]byte{byte(i)}), make([]byte, maxSignature)})
	}
	if _, err := ParseEnvelope(must(e.Marshal())); err != nil {
		t.Error(err)
	}
	t.Logf("statement %d bytes, envelope %d", len(k.statement), len(must(e.Marshal())))
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	for what, parse := range map[string]func([]byte) error{
		"envelope":  func(b []byte) error { _, err := ParseEnvelope(b); return err },
		"statement": func(b []byte) error { _, err := ParseStatement(b); return err },
	} {
		if err := parse(bytes.Repeat([]byte("{"), 1<<20)); codeOf(t, err) != CodeEnvelopeTooLarge {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := ParseProof(bytes.Repeat([]byte("{"), 1<<20)); codeOf(t, err) != CodeProofMalformed || !strings.Contains(err.Error(), "more than") {
		t.Errorf("proof: %v", err)
	}
	if _, err := ParseTrustRoot(make([]byte, 1<<20)); codeOf(t, err) != CodeTrustRootMalformed {
		t.Errorf("trust root: %v", err)
	}
	if _, err := ParseLeaf(make([]byte, 1<<20)); codeOf(t, err) != CodeLeafMalformed {
		t.Errorf("leaf: %v", err)
	}
}

func TestSealRefusesBeforeItIsSeen(t *testing.T) {
	t.Parallel()
	statement := newKit().state().statement
	never := func([]byte) ([]byte, error) { t.Error("the key was used"); return nil, nil }
	if _, err := Seal([]byte(`{"_type":"x"}`), keyA.spki, never); codeOf(t, err) != CodeEnvelopeMalformed {
		t.Errorf("no statement: %v", err)
	}
	if _, err := Seal(statement, rsaSPKI(2048), never); codeOf(t, err) != CodeUnsupportedAlg {
		t.Errorf("RSA: %v", err)
	}
	if _, err := Seal(statement, append(bytes.Clone(keyA.spki), 0), never); codeOf(t, err) != CodeTrustRootMalformed {
		t.Errorf("trailing byte: %v", err)
	}
	// A signer with another key, or one that forgets the encoding.
	if _, err := Seal(statement, keyA.spki, keyTest.sign); codeOf(t, err) != CodeSealInvalid {
		t.Errorf("another key: %v", err)
	}
	if _, err := Seal(statement, keyB.spki, func([]byte) ([]byte, error) { return keyB.sign(statement) }); codeOf(t, err) != CodeSealInvalid {
		t.Errorf("no encoding: %v", err)
	}
	outage := errors.New("token removed")
	if _, err := Seal(statement, keyA.spki, func([]byte) ([]byte, error) { return nil, outage }); !errors.Is(err, outage) {
		t.Errorf("outage: %v", err)
	}
	env, err := Seal(statement, keyC.spki, keyC.sign)
	if err != nil {
		t.Fatal(err)
	}
	e := must(ParseEnvelope(env))
	if err := e.Sign(keyC.spki, keyC.sign); codeOf(t, err) != CodeEnvelopeMalformed {
		t.Errorf("one key twice: %v", err)
	}
	id := e.ID()
	if err := e.Sign(keyA.spki, keyA.sign); err != nil || e.ID() != id || len(e.Signatures) != 2 {
		t.Errorf("a second key: %v, id %s after %s", err, e.ID(), id)
	}
}

func TestReleaseValidate(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Release){
		"product with space":   func(r *Release) { r.Product = "gate way" },
		"no product":           func(r *Release) { r.Product = "" },
		"no hardware":          func(r *Release) { r.HardwareIDs = nil },
		"hardware twice":       func(r *Release) { r.HardwareIDs = []string{"a", "a"} },
		"too many hardware":    func(r *Release) { r.HardwareIDs = make([]string, MaxHardwareIDs+1) },
		"version with v":       func(r *Release) { r.Version = "v1.0.0" },
		"minimum version":      func(r *Release) { r.MinimumVersion = "1" },
		"counter":              func(r *Release) { r.SecurityCounter = 1 << 53 },
		"dependency version":   func(r *Release) { r.Dependencies[0].MinimumVersion = "" },
		"environment":          func(r *Release) { r.Environment = "" },
		"created local":        func(r *Release) { r.Created = r.Created.In(time.FixedZone("x", 3600)) },
		"created with parts":   func(r *Release) { r.Created = r.Created.Add(1) },
		"created zero":         func(r *Release) { r.Created = time.Time{} },
		"no request":           func(r *Release) { r.Request = RequestRef{} },
		"requester escapes":    func(r *Release) { r.Requester = "\u009b31mroot" },
		"requester not UTF-8":  func(r *Release) { r.Requester = "\xff" },
		"signed with a name":   func(r *Release) { r.SignedWith = []string{"release-2026"} },
		"no policy":            func(r *Release) { r.Policy = "" },
		"metadata escapes":     func(r *Release) { r.Metadata = map[string]string{"a": "\x1b[2J"} },
		"metadata key":         func(r *Release) { r.Metadata = map[string]string{"": "a"} },
		"metadata value large": func(r *Release) { r.Metadata = map[string]string{"a": strings.Repeat("x", MaxMetadataValue+1)} },
	} {
		r := testRelease()
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&r)
		if err := r.Validate(); codeOf(t, err) != CodeEnvelopeMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLeafSurvivesItsText(t *testing.T) {
	t.Parallel()
	text := rapid.StringN(0, 10, 40)
	rapid.Check(t, func(t *rapid.T) {
		var inputs []LeafInput
		for range rapid.IntRange(0, 3).Draw(t, "inputs") {
			inputs = append(inputs, LeafInput{text.Draw(t, "slot"), text.Draw(t, "alg"), text.Draw(t, "kind"), text.Draw(t, "sha256")})
		}
		l := Leaf{
			V: rapid.IntRange(1, 9).Draw(t, "v"), Type: "x" + text.Draw(t, "type"), Time: rapid.Int64Range(0, maxInteger).Draw(t, "time"),
			Actor: text.Draw(t, "a"), Record: text.Draw(t, "b"), Request: text.Draw(t, "c"), Key: text.Draw(t, "d"), Policy: text.Draw(t, "e"),
			Decision: text.Draw(t, "f"), Rule: text.Draw(t, "g"), Attempt: rapid.IntRange(0, 9).Draw(t, "h"), Resumed: rapid.Bool().Draw(t, "i"),
			Inputs: inputs, Input: text.Draw(t, "j"), Output: text.Draw(t, "k"), Statement: text.Draw(t, "l"), SealKey: text.Draw(t, "m"),
			Result: text.Draw(t, "n"), Code: Code(text.Draw(t, "o")), Unseen: rapid.Bool().Draw(t, "p"), Subject: text.Draw(t, "q"),
		}
		// A leaf of a later version: a member more.
		data := append(must(json.Marshal(l)), ""...)
		data = append(data[:len(data)-1], `,"later":{"a":[]}}`...)
		got, err := ParseLeaf(data)
		if err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
		if d := cmp.Diff(l, got); d != "" {
			t.Fatal(d)
		}
	})
}

func TestTrustRootSurvivesItsText(t *testing.T) {
	t.Parallel()
	k := newKit()
	k.root.Products = []string{"gateway"}
	k.trust()
	root, err := ParseTrustRoot(k.rootFile)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&k.root, root); d != "" {
		t.Error(d)
	}
	if again := must(root.Marshal()); !bytes.Equal(again, k.rootFile) {
		t.Errorf("%s became %s", k.rootFile, again)
	}
}

// BenchmarkVerifySeal is all that a device does for a release but the hash of
// its image: two Ed25519 signatures and the parsing.
func BenchmarkVerifySeal(b *testing.B) {
	k := newKit().done()
	root := must(ParseTrustRoot(k.rootFile))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := VerifySeal(VerifyInput{TrustRoot: root, Seal: k.seal, Proof: k.proof}); err != nil {
			b.Fatal(err)
		}
	}
}
