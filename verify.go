package firmseal

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// VerifyInput is what a device has: what it believes, what came with the image,
// and what it knows about itself.
type VerifyInput struct {
	TrustRoot *TrustRoot
	Seal      []byte // the .seal file
	Proof     []byte // the .tlog-proof file; may be nil where the trust root does not require it

	// Image is read to its end, once, by Verify. ImageSize is the number of
	// bytes that were announced, or 0 when nobody said.
	Image     io.Reader
	ImageSize int64

	// Signature is the detached signature file of the formats that have one. It
	// is compared with the seal when it is not nil.
	Signature []byte

	// Product and HardwareID are what this device is. An empty one demands
	// nothing: right for looking at a release, wrong on a device.
	Product    string
	HardwareID string

	// Device is the state that a release must not fall behind; nil demands
	// nothing.
	Device *DeviceState

	// UnsafeTest demands a release of environment test where otherwise one of
	// environment production is demanded. A device in a customer's hands must
	// never set it: test keys are handed around.
	UnsafeTest bool
}

// DeviceState is what a device has confirmed that it runs.
type DeviceState struct {
	SecurityCounter uint64
	Version         string // empty when not known
}

// Verified is what was proven about a release.
type Verified struct {
	ID        string // of the seal: hex SHA-256 of the statement's bytes
	Statement *Statement
	Signers   []SealKey // whose signatures counted, in the envelope's order
	Threshold int       // how many were needed

	// Of the log, when the trust root names one and there was a proof.
	Leaf       *Leaf
	LeafIndex  int64
	Checkpoint *Checkpoint // a device keeps the largest that it has seen

	// Of the files.
	ImageChecked     bool
	ImageSize        int64
	SignatureChecked bool
}

// Test reports whether this is a test release: to be shown wherever the release
// is shown.
func (v *Verified) Test() bool { return v.Statement.Release.Environment == EnvironmentTest }

// Verify decides whether a device may install an image. It needs no network and
// no clock, and the same input always has the same verdict. Every refusal is a
// *Error with the code of its cause; any other error means that the image could
// not be read to its end, and that there is no verdict.
//
// The checks run in this order, and the first that fails is reported: trust
// root; seal; statement; environment; threshold; product of the trust root; log
// proof; product, hardware id, counter, versions; detached signature; image.
func Verify(ctx context.Context, in VerifyInput) (*Verified, error) {
	if in.Image == nil {
		return nil, errors.New("firmseal.Verify was called without an image")
	}
	v, err := VerifySeal(in)
	if err != nil {
		return nil, err
	}
	if err := v.CheckImage(ctx, in.Image, in.ImageSize); err != nil {
		return nil, err
	}
	return v, nil
}

// VerifySeal is Verify without the image: it decides whether an image is worth
// fetching. The image must then pass CheckImage before it is used.
func VerifySeal(in VerifyInput) (*Verified, error) {
	if in.TrustRoot == nil {
		return nil, badTrustRoot(errors.New("there is none"))
	}
	keys, err := in.TrustRoot.sealKeys()
	if err != nil {
		return nil, err
	}
	if len(in.Seal) == 0 {
		return nil, refuse(CodeSealMissing, "the image has no seal").
			seen("a digest alone proves that nothing was changed since it was made, not who made it").
			next("fetch the .seal file from where the release was published")
	}
	env, err := ParseEnvelope(in.Seal)
	if err != nil {
		return nil, err
	}
	if env.PayloadType != PayloadType {
		_, err := env.Statement()
		return nil, err
	}
	v := &Verified{ID: env.ID()}
	valid, err := validSignatures(env, keys, in)
	if err != nil {
		return nil, err
	}
	// From here on the payload was written by somebody who holds a trusted key.
	if v.Statement, err = env.Statement(); err != nil {
		return nil, err
	}
	if err := v.checkThreshold(valid, in); err != nil {
		return nil, err
	}
	r := v.Statement.Release
	if p := in.TrustRoot.Products; len(p) > 0 && !slices.Contains(p, r.Product) {
		return nil, refuse(CodeProductUntrusted, "the trust root does not speak for product %s", r.Product).
			seen("it speaks for %s", clip(strings.Join(p, ", "))).next("use the trust root of product %s", r.Product)
	}
	if err := v.checkProof(in); err != nil {
		return nil, err
	}
	if err := checkTarget(r, in); err != nil {
		return nil, err
	}
	if in.Signature != nil {
		if err := v.checkSignatureFile(in.Signature); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// validSignatures gives the trusted keys whose signatures verify, at least one.
func validSignatures(env *Envelope, keys map[string]trustedKey, in VerifyInput) ([]trustedKey, error) {
	pae := env.PAE()
	var valid []trustedKey
	var broken *trustedKey
	for _, s := range env.Signatures {
		k, ok := keys[s.KeyID]
		if !ok {
			continue
		}
		if verifySignature(k.pub, pae, s.Sig) {
			valid = append(valid, k)
		} else if broken == nil {
			broken = &k
		}
	}
	switch {
	case len(valid) > 0:
		return valid, nil
	case broken != nil:
		e := refuse(CodeSealInvalid, "the release statement or its signature was changed after it was sealed").
			seen("the signature of key %s (%.16s…) is not over this statement", broken.Name, broken.id)
		// The log has the statement's digest too, and so knows which.
		if in.Proof != nil && in.TrustRoot.Log != nil {
			if _, leaf, _, err := openProof(in); err == nil && leaf.Statement != "" {
				if leaf.Statement == env.ID() {
					e.Why += "; the statement is the logged one, so the signature was changed"
				} else {
					e.Why += "; it is not the logged statement, so the metadata was changed"
				}
			}
		}
		return nil, e.next("fetch the .seal file again from where the release was published")
	}
	ids := make([]string, len(env.Signatures))
	for i, s := range env.Signatures {
		ids[i] = s.KeyID[:16] + "…"
	}
	return nil, refuse(CodeSealUntrusted, "no key of the trust root has sealed this release").
		seen("it is sealed by %s; trust root version %d has %d other keys", clip(strings.Join(ids, ", ")), in.TrustRoot.Version, len(keys)).
		next("install the newest trust root of this product, or use a release that was sealed for this device")
}

// checkThreshold decides about the environment first: a test key's seal on a
// device that demands production is to be called that, whatever its number.
func (v *Verified) checkThreshold(valid []trustedKey, in VerifyInput) error {
	r := v.Statement.Release
	demanded := EnvironmentProduction
	if in.UnsafeTest {
		demanded = EnvironmentTest
	}
	if r.Environment != demanded {
		return refuse(CodeEnvironment, "a %s release cannot be used where %s is demanded", r.Environment, demanded).
			seen("%s %s says environment %s", r.Product, r.Version, r.Environment).
			next("use a release that was signed for environment %s", demanded)
	}
	v.Threshold = in.TrustRoot.Threshold
	if r.Emergency {
		v.Threshold = in.TrustRoot.EmergencyThreshold
	}
	var foreign []string
	for _, k := range valid {
		if k.Environment == r.Environment {
			v.Signers = append(v.Signers, k.SealKey)
		} else {
			foreign = append(foreign, k.Name)
		}
	}
	if len(v.Signers) >= v.Threshold {
		return nil
	}
	if len(v.Signers) == 0 {
		return refuse(CodeEnvironment, "a key of another environment has sealed this %s release", r.Environment).
			seen("key %s is not of environment %s", strings.Join(foreign, ", "), r.Environment).
			next("have the release sealed by a %s key", r.Environment)
	}
	kind := "threshold"
	if r.Emergency {
		kind = "emergency threshold"
	}
	return refuse(CodeSealThreshold, "too few keys have sealed this release").
		seen("%d of the %d that the %s asks for", len(v.Signers), v.Threshold, kind).
		next("have it sealed by more of the trusted keys")
}

// openProof parses and verifies the proof of the entry that it carries.
func openProof(in VerifyInput) (*Proof, *Leaf, *Checkpoint, error) {
	p, err := ParseProof(in.Proof)
	if err != nil {
		return nil, nil, nil, err
	}
	if p.Extra == nil {
		return nil, nil, nil, refuse(CodeProofMalformed, "the log proof carries no entry").
			seen("it has no extra line").next("fetch the .tlog-proof file again from where the release was published")
	}
	c, err := p.Verify(p.Extra, in.TrustRoot.Log.Origin, in.TrustRoot.Log.Key)
	if err != nil {
		return nil, nil, nil, err
	}
	leaf, err := ParseLeaf(p.Extra)
	if err != nil {
		return nil, nil, nil, err
	}
	return p, &leaf, c, nil
}

func (v *Verified) checkProof(in VerifyInput) error {
	log := in.TrustRoot.Log
	if log == nil {
		return nil
	}
	if in.Proof == nil {
		if !log.Required {
			return nil
		}
		return refuse(CodeProofMissing, "the release has no proof that it is in the log").
			seen("the trust root requires one of log %s", log.Origin).
			next("fetch the .tlog-proof file from where the release was published")
	}
	p, leaf, c, err := openProof(in)
	if err != nil {
		return err
	}
	if err := v.checkLeaf(leaf); err != nil {
		return refuse(CodeProofOtherSeal, "the log proof is about something else than this release").seen("%v", err).
			next("use the .tlog-proof file that was published with this .seal file")
	}
	v.Leaf, v.LeafIndex, v.Checkpoint = leaf, p.Index, c
	return nil
}

// checkLeaf compares the logged outcome with the statement, word for word where
// both say the same thing.
func (v *Verified) checkLeaf(leaf *Leaf) error {
	s := v.Statement
	if leaf.V != 1 || leaf.Type != LeafOutcome || leaf.Result != "sealed" {
		return fmt.Errorf("entry of version %d, type %q and result %q, not %q with %q", leaf.V, clip(leaf.Type), clip(leaf.Result), LeafOutcome, "sealed")
	}
	type pair struct{ member, logged, said string }
	pairs := []pair{
		{"statement", leaf.Statement, v.ID},
		{"request", leaf.Request, s.Release.Request.ID},
		{"record", leaf.Record, s.Release.Request.SHA256},
		{"policy", leaf.Policy, s.Release.Policy},
	}
	if len(s.Subjects) == 2 {
		pairs = append(pairs, pair{"input", leaf.Input, s.Subjects[0].SHA256}, pair{"output", leaf.Output, s.Subjects[1].SHA256})
	} else {
		pairs = append(pairs, pair{"output", leaf.Output, s.Subjects[0].SHA256})
	}
	for _, p := range pairs {
		if p.logged != p.said {
			return fmt.Errorf("its %s is %q, the release's is %q", p.member, clip(p.logged), clip(p.said))
		}
	}
	if leaf.Unseen != s.Release.BytesUnseen {
		return fmt.Errorf("its bytes_unseen is %t, the release's is %t", leaf.Unseen, s.Release.BytesUnseen)
	}
	return nil
}

// checkTarget compares the release with the device.
func checkTarget(r Release, in VerifyInput) error {
	if in.Product != "" && in.Product != r.Product {
		return refuse(CodeProduct, "the release is for another product").seen("it is for %s, this is %s", r.Product, clip(in.Product)).
			next("use a release of product %s", clip(in.Product))
	}
	if in.HardwareID != "" && !slices.Contains(r.HardwareIDs, in.HardwareID) {
		return refuse(CodeHardware, "the release is not for hardware %s", clip(in.HardwareID)).
			seen("it is for %s", clip(strings.Join(r.HardwareIDs, ", "))).next("use the release that names hardware %s", clip(in.HardwareID))
	}
	if in.Device == nil {
		return nil
	}
	counter := in.Device.SecurityCounter
	switch {
	case r.SecurityCounter < counter:
		return refuse(CodeRollback, "%s %s would take the device back behind a security fix", r.Product, r.Version).
			seen("its security counter is %d, the device's is %d", r.SecurityCounter, counter).
			next("use a release with security counter %d or more", counter)
	case r.Emergency && r.SecurityCounter == counter:
		return refuse(CodeEmergencyCounter, "emergency release %s %s does not raise the security counter", r.Product, r.Version).
			seen("it has %d and so has the device", counter).next("use an emergency release with security counter above %d", counter)
	}
	if in.Device.Version == "" {
		if r.MinimumVersion != "" {
			return refuse(CodeDeviceVersion, "the device's version is not known").
				seen("the release asks for %s or later", r.MinimumVersion).next("state the version that the device runs")
		}
		return nil
	}
	// Both of these are valid: the statement was validated.
	release := mustVersion(r.Version)
	device, err := ParseVersion(in.Device.Version)
	if err != nil {
		return refuse(CodeDeviceVersion, "the device's version cannot be compared").seen("%v", err).
			next("state it as MAJOR.MINOR.PATCH, or leave it out")
	}
	if !r.Emergency && release.Compare(device) < 0 {
		return refuse(CodeVersionOrder, "%s %s is older than what the device runs", r.Product, r.Version).
			seen("the device runs %s", device).next("use release %s or later; an emergency release may go back", device)
	}
	if r.MinimumVersion != "" && device.Compare(mustVersion(r.MinimumVersion)) < 0 {
		return refuse(CodeVersionFloor, "the device must be updated in steps").
			seen("it runs %s, %s %s asks for %s or later", device, r.Product, r.Version, r.MinimumVersion).
			next("install a release between %s and %s first", r.MinimumVersion, r.Version)
	}
	return nil
}

func mustVersion(s string) Version {
	v, err := ParseVersion(s)
	if err != nil {
		panic("firmseal: a validated release has version " + s)
	}
	return v
}

// imageBuffer is how much of an image is in memory at a time.
const imageBuffer = 64 << 10

// maxEmptyReads is when a reader that gives nothing is taken for broken, as
// package bufio does.
const maxEmptyReads = 100

// CheckImage reads r to its end and compares it with the first file of the
// statement. size is the number of bytes that were announced, or 0 when nobody
// said; with it a long image is refused without being read whole. The image
// must not have been used before CheckImage returns nil.
func (v *Verified) CheckImage(ctx context.Context, r io.Reader, size int64) error {
	h := sha256.New()
	buf := make([]byte, imageBuffer)
	var n int64
	empty := 0
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("reading the image: %w", err)
		}
		k, err := r.Read(buf)
		if empty++; k > 0 {
			empty = 0
		} else if err == nil && empty == maxEmptyReads {
			err = io.ErrNoProgress
		}
		h.Write(buf[:k])
		n += int64(k)
		if size > 0 && n > size {
			return v.changedImage("it goes on after the %d bytes that were announced", size)
		}
		if err == io.EOF {
			break
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return truncatedImage(n, size)
		}
		if err != nil {
			return fmt.Errorf("reading the image: %w", err)
		}
	}
	if n < size {
		return truncatedImage(n, size)
	}
	want := v.Statement.Subjects[0]
	if got := hex.EncodeToString(h.Sum(nil)); got != want.SHA256 {
		if len(v.Statement.Subjects) == 2 && got == v.Statement.Subjects[1].SHA256 {
			return v.changedImage("these bytes are the signature file %s", v.Statement.Subjects[1].Name)
		}
		return v.changedImage("its %d bytes have SHA-256 %s, the seal says %s", n, got, want.SHA256)
	}
	v.ImageChecked, v.ImageSize = true, n
	return nil
}

func (v *Verified) changedImage(why string, a ...any) error {
	return refuse(CodeImageMismatch, "the image is not the one that was sealed: the image was changed, its metadata was not").seen(why, a...).
		next("fetch %s again from where the release was published", v.Statement.Subjects[0].Name)
}

func truncatedImage(n, size int64) error {
	e := refuse(CodeImageTruncated, "the image ends early").seen("after %d bytes", n)
	if size > 0 {
		e.Why += fmt.Sprintf(" of %d", size)
	}
	return e.next("fetch the rest, or the whole image again")
}

func (v *Verified) checkSignatureFile(sig []byte) error {
	if len(v.Statement.Subjects) < 2 {
		return refuse(CodeImageSignature, "the release has no detached signature").
			seen("its signature is inside the image").next("leave the signature file out")
	}
	want := v.Statement.Subjects[1]
	if got := hexSum(sig); got != want.SHA256 {
		return refuse(CodeImageSignature, "the signature file is not the one that was sealed").
			seen("its %d bytes have SHA-256 %s, the seal says %s", len(sig), got, want.SHA256).
			next("fetch %s again from where the release was published", want.Name)
	}
	v.SignatureChecked = true
	return nil
}
