package raw

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// slot is the one signature that there is.
const slot = "image"

// state is what a session knows besides the source's bytes. A message is read
// from the source again, so that a state stays small.
type state struct {
	Size      int64         `json:"size"`
	Mark      string        `json:"mark,omitempty"` // see sourceMark; empty if the bytes are unseen
	Unseen    bool          `json:"unseen,omitempty"`
	Digest    []byte        `json:"digest"` // of the file, with the scheme's hash; SHA-256 where it has none
	Encoding  string        `json:"encoding"`
	Role      string        `json:"role"`
	Key       string        `json:"key"`
	Alg       alg.ID        `json:"alg"`
	Show      []image.Field `json:"show"`
	Asked     bool          `json:"asked,omitempty"`
	Signature []byte        `json:"signature,omitempty"` // canonical
}

// session implements image.Session. It is not safe for concurrent use.
type session struct {
	src image.Source // nil if the bytes are unseen
	st  state
}

// decodeOptions reads options and fills in the default.
func decodeOptions(o image.Options) (Options, error) {
	var v Options
	if err := image.DecodeOptions(formatName, o, &v); err != nil {
		return v, err
	}
	switch v.Encoding {
	case "":
		v.Encoding = encDER
	case encDER, encRaw, encBase64, encBase64Raw:
	default:
		return v, problem.New(problem.ImageOptions, "the encoding %q of format raw does not exist", v.Encoding).
			Seen("encodings: %s, %s, %s, %s", encDER, encRaw, encBase64, encBase64Raw)
	}
	return v, nil
}

// begin makes the part of a state that does not depend on the file.
func begin(o image.Options, pub []image.PublicMaterial) (*state, alg.Spec, error) {
	opt, err := decodeOptions(o)
	if err != nil {
		return nil, alg.Spec{}, err
	}
	if len(pub) != 1 {
		return nil, alg.Spec{}, problem.New(problem.ImageOptions, "format raw takes one key, not %d", len(pub)).
			WithHint("sign once for each key, into a signature file each")
	}
	p := pub[0]
	_, kt, err := alg.ParseSPKI(p.SPKI)
	if err != nil {
		return nil, alg.Spec{}, err
	}
	id := p.Alg
	if id == "" {
		id = alg.For(kt)[0]
	}
	spec, err := alg.Lookup(id)
	if err != nil {
		return nil, alg.Spec{}, err
	}
	if spec.Key != kt {
		return nil, alg.Spec{}, problem.New(problem.AlgUnsupported, "the %s key %s cannot sign with %s", kt, p.Name, id).
			Seen("it can: %s", join(alg.For(kt)))
	}
	return &state{Encoding: opt.Encoding, Role: p.Role, Key: p.KeyID(), Alg: id}, spec, nil
}

func join(ids []alg.ID) string {
	s := make([]string, len(ids))
	for i, id := range ids {
		s[i] = string(id)
	}
	return strings.Join(s, ", ")
}

// Plan implements image.Format. It reads the file once.
func (Format) Plan(ctx context.Context, src image.Source, o image.Options, pub []image.PublicMaterial) (image.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	st, spec, err := begin(o, pub)
	if err != nil {
		return nil, err
	}
	st.Size = src.Size()
	if st.Size <= 0 {
		return nil, errEmpty()
	}
	if spec.Kind == alg.Message && st.Size > alg.MaxMessage {
		return nil, problem.New(problem.AlgUnsupported, "the file is too large for %s", st.Alg).
			Seen("it signs the file itself, not its hash: %d bytes would travel to the key, at most %d may", st.Size, alg.MaxMessage).
			WithHint("sign with a p256 or rsa3072 key, which take a digest of any file")
	}
	if st.Digest, err = digest(ctx, src, hashOf(spec)); err != nil {
		return nil, err
	}
	if st.Mark, err = sourceMark(ctx, src); err != nil {
		return nil, err
	}
	st.Show = show(st, spec)
	if k, ok, err := sniff(src); err != nil {
		return nil, err
	} else if ok {
		st.Show = append(st.Show, image.Field{Name: "not firmware", Value: k.what + ": " + k.next})
	}
	return &session{src: src, st: *st}, nil
}

func errEmpty() error {
	return problem.New(problem.ImageMalformed, "the file is empty").WithHint("look at the build: there is nothing to sign")
}

// PlanDigest implements image.DigestFormat, for the schemes over SHA-256.
func (Format) PlanDigest(ctx context.Context, sum []byte, size int64, o image.Options, pub []image.PublicMaterial) (image.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	st, spec, err := begin(o, pub)
	if err != nil {
		return nil, err
	}
	if spec.Kind != alg.Digest || spec.Hash != crypto.SHA256 {
		return nil, problem.New(problem.AlgUnsupported, "%s cannot sign a file by its SHA-256 alone", st.Alg).
			WithHint("upload the file, or sign with a p256 or rsa3072 key")
	}
	if len(sum) != sha256.Size {
		return nil, problem.New(problem.ImageOptions, "a SHA-256 has %d bytes, not %d", sha256.Size, len(sum))
	}
	if size <= 0 {
		return nil, errEmpty()
	}
	st.Size, st.Unseen, st.Digest = size, true, bytes.Clone(sum)
	st.Show = append(show(st, spec), image.Field{Name: "bytes unseen", Value: "the digest was stated by the builder; nobody here has read the file"})
	return &session{st: *st}, nil
}

// hashOf is the scheme's hash, or SHA-256 for one that takes the message: it
// then only names the file.
func hashOf(s alg.Spec) crypto.Hash {
	if s.Kind == alg.Message {
		return crypto.SHA256
	}
	return s.Hash
}

func show(st *state, spec alg.Spec) []image.Field {
	name := map[crypto.Hash]string{crypto.SHA256: "sha256", crypto.SHA384: "sha384", crypto.SHA512: "sha512"}[hashOf(spec)]
	return []image.Field{
		{Name: "file size", Value: fmt.Sprintf("%d bytes", st.Size)},
		{Name: name, Value: hex.EncodeToString(st.Digest)},
		{Name: "algorithm", Value: string(st.Alg)},
		{Name: "signature encoding", Value: st.Encoding},
	}
}

// Next implements image.Session: one round, one request.
func (s *session) Next(ctx context.Context, prev []image.Signature) ([]image.SignRequest, bool, error) {
	st := &s.st
	switch {
	case st.Signature != nil && len(prev) > 0:
		return nil, false, problem.New(problem.Conflict, "the file has its signature").Seen("%d more were handed in", len(prev))
	case st.Signature != nil:
		return nil, true, nil
	case !st.Asked && len(prev) > 0:
		return nil, false, problem.New(problem.Conflict, "a signature was handed in before it was asked for")
	case !st.Asked:
		r, err := s.request(ctx)
		if err != nil {
			return nil, false, err
		}
		st.Asked = true
		return []image.SignRequest{r}, false, nil
	case len(prev) != 1 || prev[0].Slot != slot:
		return nil, false, problem.New(problem.SigMissing, "the file waits for one signature, for slot %s", slot).
			Seen("%d signatures", len(prev))
	}
	if err := checkForm(st.Alg, prev[0].Value); err != nil {
		return nil, false, err
	}
	st.Signature = bytes.Clone(prev[0].Value)
	return nil, true, nil
}

func (s *session) request(ctx context.Context) (image.SignRequest, error) {
	st := &s.st
	r := image.SignRequest{Slot: slot, Role: st.Role, Key: st.Key, Alg: st.Alg, Kind: alg.Digest, Input: bytes.Clone(st.Digest), Show: append([]image.Field(nil), st.Show...)}
	if st.Alg != alg.Ed25519Pure {
		return r, nil
	}
	// The message is at most alg.MaxMessage: Plan and check hold the size to it.
	m := make([]byte, st.Size)
	if err := readAt(ctx, s.src, m, 0); err != nil {
		return r, err
	}
	if sum := sha256.Sum256(m); !bytes.Equal(sum[:], st.Digest) {
		return r, errOtherSource().Seen("the bytes changed since the session was planned")
	}
	r.Kind, r.Input = alg.Message, m
	return r, nil
}

// checkForm refuses what cannot be a canonical signature of the scheme.
func checkForm(id alg.ID, sig []byte) error {
	spec, err := alg.Lookup(id)
	if err != nil {
		return err
	}
	if n := coordinate(spec.Key); n > 0 {
		raw, err := alg.RawECDSA(sig, n)
		if err != nil {
			return err
		}
		der, err := alg.DERFromRaw(raw)
		if err != nil {
			return err
		}
		if !bytes.Equal(der, sig) {
			return problem.New(problem.SigEncoding, "the ECDSA signature is not in the one DER form")
		}
		return nil
	}
	want := map[alg.KeyType]int{alg.RSA2048: 256, alg.RSA3072: 384, alg.RSA4096: 512, alg.Ed25519: 64}[spec.Key]
	if len(sig) != want {
		return problem.New(problem.SigEncoding, "a %s signature has %d bytes, not %d", id, want, len(sig))
	}
	return nil
}

// coordinate is the length of r and s, or 0 for what is not ECDSA.
func coordinate(t alg.KeyType) int { return map[alg.KeyType]int{alg.P256: 32, alg.P384: 48}[t] }

// Embed implements image.Session. The output is the signature file; the image
// itself is not read again. Should it have been changed since Plan, Verify
// refuses the pair.
func (s *session) Embed(ctx context.Context, w io.Writer) (*image.Receipt, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	st := &s.st
	if st.Signature == nil {
		return nil, problem.New(problem.SigMissing, "the file is not signed yet")
	}
	spec, err := alg.Lookup(st.Alg)
	if err != nil {
		return nil, err
	}
	out := st.Signature
	if n := coordinate(spec.Key); n > 0 && (st.Encoding == encRaw || st.Encoding == encBase64Raw) {
		if out, err = alg.RawECDSA(out, n); err != nil {
			return nil, err
		}
	}
	if st.Encoding == encBase64 || st.Encoding == encBase64Raw {
		out = base64.StdEncoding.AppendEncode(nil, out)
	}
	if _, err := w.Write(out); err != nil {
		return nil, fmt.Errorf("writing the signature: %w", err)
	}
	return &image.Receipt{Format: formatName, Size: int64(len(out)), Detached: true, Notes: st.Show}, nil
}

// A saved session is this line, the hex SHA-256 of the rest, a line feed and
// the state as JSON. The sum is against damage, not against an enemy: whoever
// can write a session could ask for another signature anyway, and Verify looks
// at the result.
const stateMagic = "firmseal raw session 1\n"

// maxState bounds a saved session: a signature, a digest and some names.
const maxState = 64 << 10

// MarshalBinary implements image.Session.
func (s *session) MarshalBinary() ([]byte, error) {
	b, err := json.Marshal(&s.st)
	if err != nil {
		return nil, fmt.Errorf("saving the session: %w", err)
	}
	sum := sha256.Sum256(b)
	return append([]byte(stateMagic+hex.EncodeToString(sum[:])+"\n"), b...), nil
}

// Resume implements image.Format. A small source is compared whole, a large
// one by samples.
func (Format) Resume(ctx context.Context, src image.Source, saved []byte) (image.Session, error) {
	st, err := open(saved)
	if err != nil {
		return nil, err
	}
	if st.Unseen {
		return nil, errOtherSource().Seen("it was planned from a digest, without the file")
	}
	if st.Size != src.Size() {
		return nil, errOtherSource().Seen("it was planned over %d bytes, the file has %d", st.Size, src.Size())
	}
	mark, err := sourceMark(ctx, src)
	if err != nil {
		return nil, err
	}
	if mark != st.Mark {
		return nil, errOtherSource().Seen("the sizes agree, the bytes do not")
	}
	return &session{src: src, st: *st}, nil
}

// ResumeDigest implements image.DigestFormat.
func (Format) ResumeDigest(_ context.Context, sum []byte, size int64, saved []byte) (image.Session, error) {
	st, err := open(saved)
	if err != nil {
		return nil, err
	}
	if !st.Unseen {
		return nil, errOtherSource().Seen("it was planned over the file, not from a digest")
	}
	if st.Size != size || !bytes.Equal(st.Digest, sum) {
		return nil, errOtherSource().Seen("it was planned for %x of %d bytes", st.Digest, st.Size)
	}
	return &session{st: *st}, nil
}

func errOtherSource() *problem.Error {
	return problem.New(problem.Conflict, "the signing session belongs to another file").
		WithHint("start again from the file that you want to sign")
}

// open reads a saved session and holds it to what Plan makes.
func open(saved []byte) (*state, error) {
	bad := func(why string, cause error) error {
		return problem.New(problem.ImageMalformed, "this is not a saved signing session of format raw").Seen("%s", why).Because(cause)
	}
	rest, ok := bytes.CutPrefix(saved, []byte(stateMagic))
	if !ok || len(saved) > maxState || len(rest) < 2*sha256.Size+1 || rest[2*sha256.Size] != '\n' {
		return nil, bad("it does not begin as one", nil)
	}
	body := rest[2*sha256.Size+1:]
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != string(rest[:2*sha256.Size]) {
		return nil, bad("its checksum is wrong", nil)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	var st state
	if err := d.Decode(&st); err != nil {
		return nil, bad("its JSON cannot be read", err)
	}
	spec, err := alg.Lookup(st.Alg)
	if err != nil {
		return nil, bad("its algorithm is unknown", err)
	}
	switch {
	case st.Size <= 0 || spec.Kind == alg.Message && st.Size > alg.MaxMessage:
		return nil, bad("its file has an impossible size", nil)
	case len(st.Digest) != hashOf(spec).Size():
		return nil, bad("its digest has a wrong length", nil)
	case st.Unseen && (spec.Kind != alg.Digest || spec.Hash != crypto.SHA256):
		return nil, bad("its algorithm cannot sign unseen bytes", nil)
	case len(st.Show) == 0:
		return nil, bad("it shows nothing", nil)
	}
	switch st.Encoding {
	case encDER, encRaw, encBase64, encBase64Raw:
	default:
		return nil, bad("its encoding is unknown", nil)
	}
	if st.Signature != nil {
		if !st.Asked {
			return nil, bad("it has a signature that nobody asked for", nil)
		}
		if err := checkForm(st.Alg, st.Signature); err != nil {
			return nil, bad("its signature is misshapen", err)
		}
	}
	return &st, nil
}

// bufferSize is how much of a file is in memory at a time.
const bufferSize = 256 << 10

// digest hashes the whole of src.
func digest(ctx context.Context, src image.Source, with crypto.Hash) ([]byte, error) {
	h := with.New()
	if err := stream(ctx, src, h); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

func stream(ctx context.Context, src image.Source, h hash.Hash) error {
	size := src.Size()
	buf := make([]byte, min(size, bufferSize))
	for off := int64(0); off < size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-off)]
		if err := readAt(ctx, src, buf, off); err != nil {
			return err
		}
		h.Write(buf)
	}
	return nil
}

// readAt fills p. A reader may say EOF together with the last bytes.
func readAt(ctx context.Context, src image.Source, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := src.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return problem.New(problem.ImageTruncated, "the file ends early").
			Seen("%d bytes were announced, there are %d", src.Size(), off+int64(n)).Because(io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("reading the file at %d: %w", off, err)
}

const (
	markWhole   = 1 << 20 // files up to here are marked whole
	markSamples = 64
	markSample  = 4096
)

// sourceMark recognises a file: the SHA-256 of all of a small one, of evenly
// spaced samples with both ends of a large one, so that a session over 2 GiB is
// resumed at once.
func sourceMark(ctx context.Context, src image.Source) (string, error) {
	h := sha256.New()
	size := src.Size()
	if size <= markWhole {
		if err := stream(ctx, src, h); err != nil {
			return "", err
		}
		return hex.EncodeToString(h.Sum(nil)), nil
	}
	buf := make([]byte, markSample)
	for i := range int64(markSamples) {
		off := (size - markSample) / (markSamples - 1) * i
		if i == markSamples-1 {
			off = size - markSample
		}
		if err := readAt(ctx, src, buf, off); err != nil {
			return "", err
		}
		h.Write(buf)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// ExportTrust implements image.Format: the public key as PEM, which openssl and
// AWS tools read, and as DER, for a byte array in the device's code.
func (Format) ExportTrust(pub []image.PublicMaterial, o image.Options) ([]image.Artifact, error) {
	if _, err := decodeOptions(o); err != nil {
		return nil, err
	}
	if len(pub) == 0 {
		return nil, problem.New(problem.ImageOptions, "there is no key to export")
	}
	var out []image.Artifact
	taken := map[string]bool{}
	for _, p := range pub {
		_, kt, err := alg.ParseSPKI(p.SPKI)
		if err != nil {
			return nil, err
		}
		name := fileName(p.Name)
		if name == "" || taken[name] {
			name += "key-" + p.KeyID()[:16]
		}
		taken[name] = true
		out = append(out,
			image.Artifact{
				Name: name + ".pem", MediaType: "application/x-pem-file",
				Data: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: p.SPKI}),
				Note: fmt.Sprintf("the %s public key for openssl dgst -verify, or beside the updater on the device", kt),
			},
			image.Artifact{
				Name: name + ".der", MediaType: "application/octet-stream", Data: bytes.Clone(p.SPKI),
				Note: "the same as DER SubjectPublicKeyInfo, for a byte array in the verifier's code",
			})
	}
	return out, nil
}

// fileName keeps of a key's name what is safe in a file name.
func fileName(name string) string {
	return strings.TrimLeft(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '-'
	}, name), ".")
}
