package mcuboot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// state is everything that a session knows besides the source's bytes.
type state struct {
	SourceSize int64  `json:"source_size"`
	SourceMark string `json:"source_mark"` // see sourceMark

	Header           []byte `json:"header"`             // the 32 bytes of fields
	HdrSize          int64  `json:"hdr_size"`           // what they are padded to
	HeaderFromSource bool   `json:"header_from_source"` // the padding is the source's own, not erased bytes
	PayloadOff       int64  `json:"payload_off"`
	PayloadLen       int64  `json:"payload_len"`
	Protected        []byte `json:"protected"` // the whole protected TLV area

	HashTLV uint16    `json:"hash_tlv"`
	Digest  []byte    `json:"digest"`
	KeyTLV  uint16    `json:"key_tlv"`
	Keys    []planKey `json:"keys"`
	PadSig  bool      `json:"pad_sig"`

	Erased          byte  `json:"erased"`
	PadTo           int64 `json:"pad_to"` // 0: no trailer
	TrailerMaxAlign int64 `json:"trailer_max_align"`
	Confirmed       bool  `json:"confirmed"`

	Asked      bool          `json:"asked"`      // Next has given its requests
	Signatures [][]byte      `json:"signatures"` // in the order of Keys, in MCUboot's encoding
	Show       []image.Field `json:"show"`
	Notes      []image.Field `json:"notes"`
}

// signedLen is how many bytes the hash is over.
func (st *state) signedLen() int64 { return st.HdrSize + st.PayloadLen + int64(len(st.Protected)) }

// session implements image.Session. It is not safe for concurrent use.
type session struct {
	src     image.Source
	state   state
	resumed bool
}

// writeHashed writes header, payload and protected TLVs: the bytes that are
// hashed are the bytes that are written.
func (s *session) writeHashed(ctx context.Context, w io.Writer) error {
	st := &s.state
	if _, err := w.Write(st.Header); err != nil {
		return fmt.Errorf("writing the header: %w", err)
	}
	pad := st.HdrSize - int64(len(st.Header))
	if st.HeaderFromSource {
		if err := stream(ctx, s.src, int64(len(st.Header)), pad, w); err != nil {
			return err
		}
	} else if err := fill(ctx, w, st.Erased, pad); err != nil {
		return err
	}
	if err := stream(ctx, s.src, st.PayloadOff, st.PayloadLen, w); err != nil {
		return err
	}
	if _, err := w.Write(st.Protected); err != nil {
		return fmt.Errorf("writing the protected TLVs: %w", err)
	}
	return nil
}

// Next implements image.Session: there is one round.
func (s *session) Next(_ context.Context, prev []image.Signature) ([]image.SignRequest, bool, error) {
	st := &s.state
	if len(st.Signatures) > 0 {
		if len(prev) > 0 {
			return nil, false, problem.New(problem.Conflict, "the image has all its signatures").
				Seen("%d more were handed in", len(prev))
		}
		return nil, true, nil
	}
	if !st.Asked {
		if len(prev) > 0 {
			return nil, false, problem.New(problem.SigEncoding, "signatures were handed in before any was asked for")
		}
		st.Asked = true
		return s.requests(), false, nil
	}
	if len(prev) != len(st.Keys) {
		return nil, false, problem.New(problem.SigMissing, "the image waits for %d signatures, not %d", len(st.Keys), len(prev))
	}
	sigs := make([][]byte, len(st.Keys))
	for _, p := range prev {
		i := slices.IndexFunc(st.Keys, func(k planKey) bool { return k.Slot == p.Slot })
		if i < 0 || sigs[i] != nil {
			return nil, false, problem.New(problem.SigEncoding, "the signature for slot %q was not asked for", p.Slot)
		}
		b, err := st.encode(st.Keys[i], p.Value)
		if err != nil {
			return nil, false, err
		}
		sigs[i] = b
	}
	st.Signatures = sigs
	return nil, true, nil
}

func (s *session) requests() []image.SignRequest {
	st := &s.state
	reqs := make([]image.SignRequest, 0, len(st.Keys))
	for _, k := range st.Keys {
		sch, _ := k.scheme()
		// MCUboot's Ed25519 signs the image hash as a message. A signer in digest
		// mode would make Ed25519ph of it, which no bootloader takes.
		kind := alg.Digest
		if sch.Alg == alg.Ed25519Pure {
			kind = alg.Message
		}
		show := append(slices.Clone(st.Show),
			image.Field{Name: "image hash", Value: fmt.Sprintf("%s %x", tlvName(st.HashTLV), st.Digest)},
			image.Field{Name: "signature", Value: sch.Name})
		reqs = append(reqs, image.SignRequest{
			Slot: k.Slot, Role: k.Role, Key: k.ID, Alg: sch.Alg, Kind: kind,
			Input: slices.Clone(st.Digest), Show: show,
		})
	}
	return reqs
}

// encode checks the form of a canonical signature and gives MCUboot's, which
// differs only in pad-sig's zeros.
func (st *state) encode(k planKey, sig []byte) ([]byte, error) {
	sch, _ := k.scheme()
	if sch.SigTLV != tlvECDSA {
		if len(sig) != sch.MaxSig {
			return nil, problem.New(problem.SigEncoding, "an MCUboot %s signature has %d bytes, not %d", sch.Name, sch.MaxSig, len(sig))
		}
		return slices.Clone(sig), nil
	}
	coordinate := map[alg.KeyType]int{alg.P256: 32, alg.P384: 48}[sch.Key]
	raw, err := alg.RawECDSA(sig, coordinate)
	if err != nil {
		return nil, err
	}
	der, err := alg.DERFromRaw(raw)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(der, sig) || len(sig) > sch.MaxSig {
		return nil, problem.New(problem.SigEncoding, "the %s signature is not in the one DER form", sch.Name)
	}
	if st.PadSig {
		// imgtool pads P-384 to 103, one short of its longest.
		for n := map[alg.KeyType]int{alg.P256: 72, alg.P384: 103}[sch.Key]; len(der) < n; {
			der = append(der, 0)
		}
	}
	return der, nil
}

// Embed implements image.Session. The bytes depend on the state and the source
// alone. A session that came back from MarshalBinary hashes again what it
// writes, and refuses a source that is not the one that was planned.
func (s *session) Embed(ctx context.Context, w io.Writer) (*image.Receipt, error) {
	st := &s.state
	if len(st.Signatures) == 0 {
		return nil, problem.New(problem.SigMissing, "the image is not signed yet")
	}
	tlvs := appendTLV(nil, st.HashTLV, st.Digest)
	for i, k := range st.Keys {
		sch, _ := k.scheme()
		tlvs = appendTLV(tlvs, st.KeyTLV, k.KeyTLV)
		tlvs = appendTLV(tlvs, sch.SigTLV, st.Signatures[i])
	}
	plain, err := closeArea(infoMagic, tlvs)
	if err != nil {
		return nil, err
	}

	if s.resumed {
		h := newHash(st.HashTLV)
		if err := s.writeHashed(ctx, io.MultiWriter(w, h)); err != nil {
			return nil, err
		}
		if !bytes.Equal(h.Sum(nil), st.Digest) {
			return nil, errOtherSource()
		}
	} else if err := s.writeHashed(ctx, w); err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, fmt.Errorf("writing the TLVs: %w", err)
	}
	size := st.signedLen() + int64(len(plain))
	if st.PadTo > 0 {
		if err := s.writeTrailer(ctx, w, st.PadTo-size); err != nil {
			return nil, err
		}
		size = st.PadTo
	}
	notes := append(slices.Clone(st.Show), image.Field{Name: "image hash", Value: fmt.Sprintf("%s %x", tlvName(st.HashTLV), st.Digest)})
	return &image.Receipt{Format: formatName, Size: size, Notes: append(notes, st.Notes...)}, nil
}

// The last bytes of a slot, for flash that writes at most 8 bytes at once; and
// the last 14 for flash that writes more, which are led by the write size.
var (
	bootMagic     = [16]byte{0x77, 0xc2, 0x95, 0xf3, 0x60, 0xd2, 0xef, 0x7f, 0x35, 0x52, 0x50, 0x0f, 0x2c, 0xb6, 0x79, 0x80}
	bootMagicTail = [14]byte{0x2d, 0xe1, 0x5d, 0x29, 0x41, 0x0b, 0x8d, 0x77, 0x67, 0x9c, 0x11, 0x0f, 0x1f, 0x8a}
)

// writeTrailer fills n bytes up to the slot's end: erased flash, image_ok where
// the image is confirmed, and the boot magic.
func (s *session) writeTrailer(ctx context.Context, w io.Writer, n int64) error {
	st := &s.state
	a := st.TrailerMaxAlign
	magicLen := (int64(len(bootMagic)) + a - 1) / a * a
	tail := bytes.Repeat([]byte{st.Erased}, int(magicLen+a)) // image_ok's unit, then the magic's
	if st.Confirmed {
		tail[0] = 1
	}
	m := bootMagic[:]
	if a != defaultMaxAlign {
		m = append(le.AppendUint16(nil, uint16(a)), bootMagicTail[:]...)
	}
	copy(tail[int64(len(tail))-int64(len(m)):], m)
	if err := fill(ctx, w, st.Erased, n-int64(len(tail))); err != nil {
		return err
	}
	if _, err := w.Write(tail); err != nil {
		return fmt.Errorf("writing the trailer: %w", err)
	}
	return nil
}

func fill(ctx context.Context, w io.Writer, c byte, n int64) error {
	if n <= 0 {
		return nil
	}
	buf := bytes.Repeat([]byte{c}, int(min(n, streamBuffer)))
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(n, int64(len(buf)))]
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("writing the padding: %w", err)
		}
		n -= int64(len(b))
	}
	return nil
}

// A saved session is this line, the hex SHA-256 of the rest, and the state as
// JSON. The sum is against damage and confusion, not against an enemy: whoever
// can write a session could sign another image anyway, which is why Verify
// looks at the result.
const stateMagic = "firmseal mcuboot session 1\n"

// maxState bounds a saved session: two TLV areas and the keys, in base64.
const maxState = 1 << 20

// MarshalBinary implements image.Session.
func (s *session) MarshalBinary() ([]byte, error) {
	b, err := json.Marshal(&s.state)
	if err != nil {
		return nil, fmt.Errorf("saving the session: %w", err)
	}
	sum := sha256.Sum256(b)
	out := append([]byte(stateMagic), hex.EncodeToString(sum[:])...)
	return append(append(out, '\n'), b...), nil
}

func errOtherSource() *problem.Error {
	return problem.New(problem.Conflict, "the signing session belongs to another image").
		WithHint("start again from the image that you want to sign")
}

// Resume implements image.Format. Small sources are compared whole; of large
// ones a sample, and the rest when Embed reads them.
func (Format) Resume(_ context.Context, src image.Source, saved []byte) (image.Session, error) {
	bad := func(why string, cause error) error {
		return problem.New(problem.ImageMalformed, "this is not a saved MCUboot signing session").Seen("%s", why).Because(cause)
	}
	rest, ok := bytes.CutPrefix(saved, []byte(stateMagic))
	if !ok || len(saved) > maxState || len(rest) < 65 || rest[64] != '\n' {
		return nil, bad("it does not begin as one", nil)
	}
	sum := sha256.Sum256(rest[65:])
	if hex.EncodeToString(sum[:]) != string(rest[:64]) {
		return nil, bad("its checksum is wrong", nil)
	}
	s := &session{src: src, resumed: true}
	d := json.NewDecoder(bytes.NewReader(rest[65:]))
	d.DisallowUnknownFields()
	if err := d.Decode(&s.state); err != nil {
		return nil, bad("its JSON cannot be read", err)
	}
	if why := s.state.check(); why != "" {
		return nil, bad(why, nil)
	}
	if src.Size() != s.state.SourceSize {
		return nil, errOtherSource().Seen("it was planned over %d bytes, the image has %d", s.state.SourceSize, src.Size())
	}
	mark, err := sourceMark(src)
	if err != nil {
		return nil, err
	}
	if mark != s.state.SourceMark {
		return nil, errOtherSource().Seen("the sizes agree, the bytes do not")
	}
	return s, nil
}

// check holds the state to what Plan makes, so that no later step can index
// or allocate by a number that is not so.
func (st *state) check() string {
	h := newHash(st.HashTLV)
	switch {
	case len(st.Header) != headerLen, st.HdrSize < headerLen, st.HdrSize > maxHeaderSize:
		return "its header has a wrong size"
	case st.PayloadOff < 0, st.PayloadLen <= 0, st.PayloadLen > st.SourceSize, st.PayloadOff > st.SourceSize-st.PayloadLen:
		return "its payload is outside the image"
	case st.HeaderFromSource && st.HdrSize > st.SourceSize:
		return "its header is outside the image"
	case h == nil || len(st.Digest) != h.Size():
		return "its digest has a wrong size"
	case len(st.Protected) > maxArea:
		return "its TLVs are too long"
	case len(st.Keys) == 0, len(st.Keys) > maxKeys:
		return "it has a wrong number of keys"
	case len(st.Signatures) != 0 && len(st.Signatures) != len(st.Keys):
		return "it has a wrong number of signatures"
	case st.KeyTLV != tlvKeyHash && st.KeyTLV != tlvPubKey:
		return "it has a wrong kind of key"
	case st.PadTo != 0 && !slices.Contains([]int64{8, 16, 32}, st.TrailerMaxAlign):
		return "its trailer has a wrong alignment"
	case st.PadTo != 0 && (st.PadTo > maxSize || st.PadTo < st.signedLen()):
		return "its slot has a wrong size"
	}
	for _, k := range st.Keys {
		if _, ok := k.scheme(); !ok || len(k.KeyTLV) > maxArea {
			return "it has an unknown kind of key"
		}
	}
	for _, sig := range st.Signatures {
		if len(sig) == 0 || len(sig) > maxArea {
			return "it has a signature of a wrong size"
		}
	}
	return ""
}

const (
	markWhole   = 1 << 20 // sources up to here are marked whole
	markSamples = 64
	markSample  = 4096
)

// sourceMark recognises a source: the SHA-256 of all of a small one, and of
// evenly spaced samples of a large one, so that a session over 2 GiB is
// resumed at once. Embed compares the whole.
func sourceMark(src image.Source) (string, error) {
	h := sha256.New()
	size := src.Size()
	if size <= markWhole {
		if err := stream(context.Background(), src, 0, size, h); err != nil {
			return "", err
		}
		return hex.EncodeToString(h.Sum(nil)), nil
	}
	buf := make([]byte, markSample)
	step := (size - markSample) / (markSamples - 1)
	for i := range int64(markSamples) {
		off := i * step
		if i == markSamples-1 {
			off = size - markSample
		}
		if err := readFull(src, buf, off, "the image"); err != nil {
			return "", err
		}
		h.Write(buf)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
