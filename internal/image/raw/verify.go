package raw

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// This file is the Verify half. It shares constants with the rest of the
// package, and the name of the type.

// profileOptions are what the target's verifier reads.
type profileOptions struct {
	// Encoding of the signature file; der if empty.
	Encoding string `json:"encoding"`
	// Alg is the one scheme that the verifier checks with. Empty: the default
	// of the anchor's key type.
	Alg alg.ID `json:"alg"`
}

// maxDetached bounds a signature file: RSA-4096 twice in base64 is 912 bytes.
const maxDetached = 4096

// fewWords is how much of a device's or a file's content a finding quotes.
const fewWords = 24

// anchor is a key that the target trusts, ready to use.
type anchor struct {
	name string
	id   string
	pub  crypto.PublicKey
	typ  alg.KeyType
	spec alg.Spec
}

// seen is what the file is, as far as anchors need it: digests by hash, and
// the message where one of them needs it.
type seen struct {
	size    int64
	digests map[crypto.Hash][]byte
	message []byte
}

// Verify implements image.Format, as `openssl dgst -verify` and a device with
// the key and the encoding built in decide. The zero Profile reads DER and the
// default scheme of each anchor's type.
func (Format) Verify(ctx context.Context, src image.Source, t image.Trust, p image.Profile) (*image.Verdict, error) {
	return judge(ctx, src.Size(), t, p, func(as []anchor) (*seen, error) {
		return look(ctx, src, as)
	})
}

// VerifyDigest implements image.DigestFormat: the same, for schemes over
// SHA-256.
func (Format) VerifyDigest(ctx context.Context, sum []byte, size int64, t image.Trust, p image.Profile) (*image.Verdict, error) {
	if len(sum) != sha256.Size {
		return nil, problem.New(problem.ImageOptions, "a SHA-256 has %d bytes, not %d", sha256.Size, len(sum))
	}
	return judge(ctx, size, t, p, func([]anchor) (*seen, error) {
		return &seen{size: size, digests: map[crypto.Hash][]byte{crypto.SHA256: sum}}, nil
	})
}

func judge(ctx context.Context, size int64, t image.Trust, p image.Profile, read func([]anchor) (*seen, error)) (*image.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var o profileOptions
	if err := image.DecodeOptions(formatName, p.Options, &o); err != nil {
		return nil, err
	}
	if o.Encoding == "" {
		o.Encoding = encDER
	}
	if !slices.Contains([]string{encDER, encRaw, encBase64, encBase64Raw}, o.Encoding) {
		return nil, problem.New(problem.ImageOptions, "the profile's encoding %q does not exist", o.Encoding).
			Seen("encodings: %s, %s, %s, %s", encDER, encRaw, encBase64, encBase64Raw)
	}
	if o.Alg != "" {
		if _, err := alg.Lookup(o.Alg); err != nil {
			return nil, problem.New(problem.ImageOptions, "the profile's algorithm %q does not exist", string(o.Alg)).Because(err)
		}
	}
	v := &image.Verdict{Format: formatName, Profile: p}
	whole := &image.Range{Len: size}
	say := func(f image.Finding) { v.Findings = append(v.Findings, f) }
	refuse := func(f image.Finding) *image.Verdict {
		f.Severity = image.Fatal
		say(f)
		return v
	}

	if len(t.Detached) == 0 {
		return refuse(image.Finding{
			Stage: image.StageContainer, Code: problem.SigMissing, What: "there is no signature file", Range: whole,
			Cause: "the signature lies beside the image, and was not handed over with it",
			Next:  "hand over the signature file that signing wrote",
		}), nil
	}
	if len(t.Detached) > maxDetached {
		return refuse(image.Finding{
			Stage: image.StageContainer, Code: problem.SigEncoding, What: "the signature file is too large to be a signature", Range: whole,
			Expected: fmt.Sprintf("at most %d bytes", maxDetached), Actual: fmt.Sprintf("%d bytes", len(t.Detached)),
			Cause: "another file was taken for the signature", Next: "hand over the signature file that signing wrote",
		}), nil
	}

	as, odd := anchors(t.Keys, o.Alg)
	for _, f := range odd {
		f.Severity = image.Warn
		if len(as) == 0 {
			f.Severity = image.Fatal
		}
		say(f)
	}
	if len(as) == 0 {
		return refuse(image.Finding{
			Stage: image.StageKeyID, Code: problem.TrustAnchorMissing, What: "the verifier has no key that it can use",
			Expected: "a public key", Actual: fmt.Sprintf("%d keys, none usable", len(t.Keys)),
			Next: "build the public key that ExportTrust gives into the verifier",
		}), nil
	}

	for _, a := range as {
		if a.spec.Kind == alg.Message && size > alg.MaxMessage {
			return refuse(image.Finding{
				Stage: image.StageTarget, Code: problem.TargetCapability, Range: whole,
				What:     "the file is too large for " + string(a.spec.ID),
				Expected: fmt.Sprintf("at most %d bytes", alg.MaxMessage), Actual: fmt.Sprintf("%d bytes", size),
				Cause: "pure Ed25519 reads the whole file into memory, twice", Next: "sign with a p256 or rsa3072 key",
			}), nil
		}
	}
	s, err := read(as)
	if err != nil {
		return nil, err
	}

	// What this verifier does.
	formed := false
	for _, a := range as {
		sig, ok := decode(t.Detached, o.Encoding, a.typ)
		if !ok {
			continue
		}
		formed = true
		if !s.check(a, a.spec, sig, o.Encoding) {
			continue
		}
		yes := true
		v.Valid, v.Accepted = true, true
		v.Signatures = append(v.Signatures, image.SignatureInfo{Slot: "image", Alg: a.spec.ID, KeyHint: a.name, KeyID: a.id, Valid: &yes, Range: whole})
		say(image.Finding{Stage: image.StageSignature, Severity: image.OK, What: fmt.Sprintf("%s signature by %s, encoding %s, over all %d bytes", a.spec.ID, orID(a), o.Encoding, size), Range: whole})
		return v, nil
	}

	// It refuses. The rest is about why.
	for _, a := range as {
		for _, e := range everyEncoding {
			for _, id := range alg.For(a.typ) {
				spec, err := alg.Lookup(id)
				if err != nil {
					return nil, err
				}
				sig, ok := decode(t.Detached, e, a.typ)
				if !ok || !s.check(a, spec, sig, e) {
					continue
				}
				yes := true
				v.Valid = true
				v.Signatures = append(v.Signatures, image.SignatureInfo{Slot: "image", Alg: id, KeyHint: a.name, KeyID: a.id, Valid: &yes, Range: whole})
				if id != a.spec.ID {
					return refuse(image.Finding{
						Stage: image.StageTarget, Code: problem.TargetCapability, Range: whole,
						What:     "the signature is right, but made with another algorithm than this verifier uses",
						Expected: string(a.spec.ID), Actual: string(id),
						Device: openssl, Cause: "padding or hash differ between signer and verifier",
						Next: fmt.Sprintf("sign with %s, or set the target's option alg to %s", a.spec.ID, id),
					}), nil
				}
				return refuse(image.Finding{
					Stage: image.StageSignature, Code: problem.SigEncoding, Range: whole,
					What:     "the signature is right, but not in the encoding that this verifier reads",
					Expected: o.Encoding, Actual: e,
					Device: deviceWords(o.Encoding), Cause: encodingCause(o.Encoding, e), Next: encodingNext(o.Encoding, e),
				}), nil
			}
		}
	}
	if !formed {
		return refuse(image.Finding{
			Stage: image.StageSignature, Code: problem.SigEncoding, Range: whole,
			What:     "the signature file is not a signature in the encoding that this verifier reads",
			Expected: expectation(o.Encoding, as), Actual: appearance(t.Detached, as),
			Device: deviceWords(o.Encoding), Cause: "the file is cut, of another key type, or in another encoding", Next: "sign again, with the option encoding set to " + o.Encoding,
		}), nil
	}
	no := false
	v.Signatures = append(v.Signatures, image.SignatureInfo{Slot: "image", Valid: &no, Range: whole})
	return refuse(image.Finding{
		Stage: image.StageSignature, Code: problem.SigInvalid, Range: whole,
		What:   "the signature does not match the file and any trusted key",
		Cause:  "the file was changed after signing, or signed by a key that is not among: " + names(as),
		Device: openssl,
		Next:   "compare the file's SHA-256 with the one in its seal; if they agree, the verifier has the wrong key",
	}), nil
}

// anchors makes the target's keys usable, and says which are not.
func anchors(keys []image.TrustedKey, want alg.ID) (as []anchor, odd []image.Finding) {
	for _, k := range keys {
		pub, typ, err := alg.ParseSPKI(k.SPKI)
		if err != nil {
			e := problem.Of(err)
			odd = append(odd, image.Finding{Stage: image.StagePolicy, Code: e.Code, What: fmt.Sprintf("the trusted key %q cannot be used: %s", k.Name, e.What), Cause: e.Why, Next: e.Next})
			continue
		}
		id := want
		if id == "" {
			id = alg.For(typ)[0]
		}
		spec, err := alg.Lookup(id)
		if err != nil || spec.Key != typ {
			odd = append(odd, image.Finding{Stage: image.StageTarget, Code: problem.AlgUnsupported, What: fmt.Sprintf("the trusted %s key %q cannot check %s", typ, k.Name, id), Next: "name an algorithm of that key type in the target's option alg"})
			continue
		}
		sum := sha256.Sum256(k.SPKI)
		as = append(as, anchor{name: k.Name, id: hex.EncodeToString(sum[:]), pub: pub, typ: typ, spec: spec})
	}
	return as, odd
}

// look reads the file once, for all anchors.
func look(ctx context.Context, src image.Source, as []anchor) (*seen, error) {
	s := &seen{size: src.Size(), digests: map[crypto.Hash][]byte{}}
	type running struct {
		of crypto.Hash
		h  io.Writer
		to func() []byte
	}
	var hs []running
	keep := false
	for _, a := range as {
		if a.spec.Kind == alg.Message {
			keep = true
			continue
		}
		if !slices.ContainsFunc(hs, func(r running) bool { return r.of == a.spec.Hash }) {
			h := a.spec.Hash.New()
			hs = append(hs, running{a.spec.Hash, h, func() []byte { return h.Sum(nil) }})
		}
	}
	var all bytes.Buffer
	chunk := make([]byte, 256<<10)
	for at := int64(0); at < s.size; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := src.ReadAt(chunk[:min(int64(len(chunk)), s.size-at)], at)
		for _, r := range hs {
			r.h.Write(chunk[:n])
		}
		if keep {
			all.Write(chunk[:n]) // judge has bounded the size
		}
		at += int64(n)
		if at == s.size {
			break
		}
		if err == nil && n == 0 {
			err = io.ErrNoProgress
		}
		if errors.Is(err, io.EOF) {
			return nil, problem.New(problem.ImageTruncated, "the file ends at %d of %d bytes", at, s.size).Because(err)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the file from byte %d: %w", at, err)
		}
	}
	for _, r := range hs {
		s.digests[r.of] = r.to()
	}
	if keep {
		s.message = all.Bytes()
	}
	return s, nil
}

// The encodings that can be told apart, beyond those of a profile.
const (
	seenHex         = "hex"
	seenTwice       = "base64 of base64"
	seenTwiceRaw    = "base64 of base64-raw"
	seenReversedRSA = "raw, bytes reversed"
)

var everyEncoding = []string{encDER, encRaw, encBase64, encBase64Raw, seenTwice, seenTwiceRaw, seenHex, seenReversedRSA}

// decode takes an encoding off. What is left is DER or r‖s for ECDSA (which,
// pointsRaw tells by the encoding), else the signature's own bytes. It tells
// form only.
func decode(b []byte, encoding string, t alg.KeyType) ([]byte, bool) {
	text := func(b []byte) ([]byte, bool) {
		out, err := base64.StdEncoding.Strict().DecodeString(string(b)) // line feeds are skipped
		return out, err == nil && len(out) > 0
	}
	ok := true
	switch encoding {
	case encBase64, encBase64Raw:
		b, ok = text(b)
	case seenTwice, seenTwiceRaw:
		if b, ok = text(b); ok {
			b, ok = text(b)
		}
	case seenHex:
		out, err := hex.DecodeString(strings.TrimSpace(string(b)))
		b, ok = out, err == nil
	case seenReversedRSA:
		if !strings.HasPrefix(string(t), "rsa") {
			return nil, false
		}
		b = slices.Clone(b)
		slices.Reverse(b)
	}
	if !ok {
		return nil, false
	}
	switch t {
	case alg.P256, alg.P384:
		if pointsRaw(encoding) {
			return b, len(b) == 2*field(t)
		}
		return b, looksDER(b)
	case alg.Ed25519:
		return b, len(b) == ed25519.SignatureSize
	}
	return b, len(b) == map[alg.KeyType]int{alg.RSA2048: 2048 / 8, alg.RSA3072: 3072 / 8, alg.RSA4096: 4096 / 8}[t]
}

func pointsRaw(encoding string) bool {
	return encoding == encRaw || encoding == encBase64Raw || encoding == seenTwiceRaw
}

// field is the length of a curve's field element.
func field(t alg.KeyType) int {
	if t == alg.P384 {
		return 48
	}
	return 32
}

// looksDER: a SEQUENCE whose short length is what follows, and begins with an
// INTEGER. crypto/ecdsa is strict about the rest.
func looksDER(b []byte) bool {
	return len(b) > 6 && b[0] == 0x30 && b[1] < 0x80 && int(b[1]) == len(b)-2 && b[2] == 0x02
}

// check decides whether sig is a's signature with spec's scheme.
func (s *seen) check(a anchor, spec alg.Spec, sig []byte, encoding string) bool {
	if k, ok := a.pub.(ed25519.PublicKey); ok {
		return spec.Kind == alg.Message && s.message != nil && ed25519.Verify(k, s.message, sig)
	}
	d := s.digests[spec.Hash]
	if d == nil {
		return false // another hash than any that this verifier makes
	}
	switch k := a.pub.(type) {
	case *ecdsa.PublicKey:
		if !pointsRaw(encoding) {
			return ecdsa.VerifyASN1(k, d, sig)
		}
		n := field(a.typ)
		return ecdsa.Verify(k, d, new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:]))
	case *rsa.PublicKey:
		if spec.PSS {
			return rsa.VerifyPSS(k, spec.Hash, d, sig, &rsa.PSSOptions{SaltLength: spec.Hash.Size(), Hash: spec.Hash}) == nil
		}
		return rsa.VerifyPKCS1v15(k, spec.Hash, d, sig) == nil
	}
	return false
}

func orID(a anchor) string {
	if a.name != "" {
		return a.name
	}
	return a.id[:16]
}

func names(as []anchor) string {
	var s []string
	for _, a := range as {
		s = append(s, orID(a))
	}
	return strings.Join(s, ", ")
}

// openssl is what its command prints when a signature is refused.
var openssl = []string{"Verification failure"}

// deviceWords are the words of those who read the encoding.
func deviceWords(encoding string) []string {
	if encoding == encBase64 {
		// The coreOTA port's base64 decoder, and its agent after it.
		return []string{"Base64InvalidSymbol", "E OTA: Signature verification failed"}
	}
	return openssl
}

func encodingCause(want, got string) string {
	switch {
	case want == encBase64 && got == encDER:
		return "AWS CLI version 2 decodes a blob once: a job made with it carries the decoded signature"
	case want == encBase64 && got == seenTwice, want == encBase64Raw && got == seenTwiceRaw:
		return "the signature was encoded once more, for the AWS CLI, which did not decode it"
	case got == seenReversedRSA:
		return "the signer wrote the number little-endian"
	case pointsRaw(want) != pointsRaw(got):
		return "ECDSA signatures have two common forms, DER and r‖s, and signer and verifier take different ones"
	}
	return "signer and verifier were set up for different encodings"
}

func encodingNext(want, got string) string {
	switch {
	case want == encBase64 && got == encDER:
		return "hand the AWS CLI base64 of the base64 file: base64 -w0 FILE.sig > FILE.sig.b64"
	case want == encBase64 && got == seenTwice, want == encBase64Raw && got == seenTwiceRaw:
		return "decode the file once: base64 -d FILE.sig"
	case slices.Contains([]string{encDER, encRaw, encBase64, encBase64Raw}, got):
		return fmt.Sprintf("sign with the option encoding set to %s, or set the target's to %s", want, got)
	}
	return "sign with the option encoding set to " + want
}

// expectation is the form that would have been right.
func expectation(encoding string, as []anchor) string {
	var s []string
	for _, a := range as {
		w := encoding + " of a " + string(a.typ) + " signature"
		if !slices.Contains(s, w) {
			s = append(s, w)
		}
	}
	return strings.Join(s, ", or ")
}

// appearance says what b looks like.
func appearance(b []byte, as []anchor) string {
	for _, e := range everyEncoding {
		for _, a := range as {
			if _, ok := decode(b, e, a.typ); ok {
				return fmt.Sprintf("%d bytes, by their form %s of a %s signature", len(b), e, a.typ)
			}
		}
	}
	return fmt.Sprintf("%d bytes that begin %x", len(b), b[:min(len(b), fewWords)])
}
