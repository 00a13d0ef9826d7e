package mcuboot

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"hash"
	"regexp"
	"slices"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// maxKeys bounds how many keys sign one image. A bootloader tries each pair of
// key and signature in turn.
const maxKeys = 4

// schemes has no two rows with one key type.
var schemes = [...]scheme{
	{"ecdsa-p256", alg.P256, alg.ECDSAP256SHA256, tlvECDSA, tlvSHA256, 72},
	{"ecdsa-p384", alg.P384, alg.ECDSAP384SHA384, tlvECDSA, tlvSHA384, 104},
	{"rsa-2048", alg.RSA2048, alg.RSA2048PSSSHA256, tlvRSA2048, tlvSHA256, 256},
	{"rsa-3072", alg.RSA3072, alg.RSA3072PSSSHA256, tlvRSA3072, tlvSHA256, 384},
	{"ed25519", alg.Ed25519, alg.Ed25519Pure, tlvEd25519, tlvSHA256, 64},
}

// planKey is a key that will sign, as the image and the device see it.
type planKey struct {
	Slot   string `json:"slot"`
	Role   string `json:"role"`
	SPKI   []byte `json:"spki"`
	ID     string `json:"id"`
	Scheme string `json:"scheme"`
	KeyTLV []byte `json:"key_tlv"` // the value of KEYHASH or PUBKEY
}

func (k planKey) scheme() (scheme, bool) {
	for _, s := range schemes {
		if s.Name == k.Scheme {
			return s, true
		}
	}
	return scheme{}, false
}

// devicePublic is the key in the bytes that MCUboot has compiled in, and whose
// hash it compares: PKCS #1 for RSA, SubjectPublicKeyInfo for the others.
func devicePublic(pub crypto.PublicKey) ([]byte, error) {
	if k, ok := pub.(*rsa.PublicKey); ok {
		return x509.MarshalPKCS1PublicKey(k), nil
	}
	b, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encoding the public key: %w", err)
	}
	return b, nil
}

// schemeFor finds the row of a key, or says which keys MCUboot knows.
func schemeFor(p image.PublicMaterial) (scheme, crypto.PublicKey, error) {
	pub, t, err := alg.ParseSPKI(p.SPKI)
	if err != nil {
		return scheme{}, nil, err
	}
	for _, s := range schemes {
		if s.Key != t {
			continue
		}
		if p.Alg != "" && p.Alg != s.Alg {
			return scheme{}, nil, problem.New(problem.AlgUnsupported, "MCUboot has no signatures by %s", p.Alg).
				Seen("a %s key signs MCUboot images with %s", t, s.Alg)
		}
		return s, pub, nil
	}
	return scheme{}, nil, problem.New(problem.AlgUnsupported, "MCUboot has no signatures by %s keys", t).
		Seen("it has p256, p384, rsa2048, rsa3072 and ed25519")
}

func newHash(tlvType uint16) hash.Hash {
	switch tlvType {
	case tlvSHA256:
		return sha256.New()
	case tlvSHA384:
		return sha512.New384()
	case tlvSHA512:
		return sha512.New()
	}
	return nil
}

// hashFor gives the hash TLV for a key under the option sha, with imgtool's rules.
func hashFor(s scheme, sha string) (uint16, error) {
	want := map[string]uint16{"": s.HashTLV, "auto": s.HashTLV, "256": tlvSHA256, "384": tlvSHA384, "512": tlvSHA512}[sha]
	if want == s.HashTLV || s.Key == alg.Ed25519 && want == tlvSHA512 {
		return want, nil
	}
	return 0, optionProblem("sha", "MCUboot has no %s signature over SHA-%s", s.Name, sha)
}

// intelHex recognises the first record of an Intel HEX file.
var intelHex = regexp.MustCompile(`^:[0-9A-Fa-f]{10,}\r?\n:`)

// refuseContainer refuses payloads in a container that a bootloader would jump
// into as if it were code.
func refuseContainer(b []byte, o *Options) error {
	kind, hint := "", ""
	switch {
	case bytes.HasPrefix(b, []byte("\x7fELF")):
		kind, hint = "an ELF file", "objcopy -O binary FILE.elf FILE.bin"
	case intelHex.Match(b):
		kind, hint = "an Intel HEX file", "objcopy -I ihex -O binary FILE.hex FILE.bin"
	default:
		return nil
	}
	if o.NonBootable {
		return nil
	}
	return malformed("the payload is %s, not code", kind).
		Seen("MCUboot would start it at its first byte").WithHint("%s", hint)
}

// Plan lays out the signed image, hashes it and says what is to be signed.
//
// The payload is taken as the options say: with pad-header the whole source;
// without it what follows header-size zero bytes, or a header that the source
// has already. A source that is signed already is IMG.ALREADY_SIGNED unless
// options.replace is set.
func (Format) Plan(ctx context.Context, src image.Source, raw image.Options, pub []image.PublicMaterial) (image.Session, error) {
	o, err := decodeOptions(raw)
	if err != nil {
		return nil, err
	}
	s := &session{src: src}
	st := &s.state
	if err := planKeys(st, o, pub); err != nil {
		return nil, err
	}
	if err := planPayload(st, src, o); err != nil {
		return nil, err
	}
	if err := planRoom(st, o); err != nil {
		return nil, err
	}
	if st.SourceMark, err = sourceMark(src); err != nil {
		return nil, err
	}
	h := newHash(st.HashTLV)
	if err := s.writeHashed(ctx, h); err != nil {
		return nil, err
	}
	st.Digest = h.Sum(nil)
	return s, nil
}

func planKeys(st *state, o *Options, pub []image.PublicMaterial) error {
	if len(pub) == 0 || len(pub) > maxKeys {
		return problem.New(problem.ImageOptions, "an MCUboot image is signed by 1 to %d keys, not %d", maxKeys, len(pub))
	}
	st.KeyTLV = tlvKeyHash
	if o.PublicKeyFormat == "full" {
		st.KeyTLV = tlvPubKey
	}
	for i, p := range pub {
		sch, key, err := schemeFor(p)
		if err != nil {
			return err
		}
		hashTLV, err := hashFor(sch, o.SHA)
		if err != nil {
			return err
		}
		if i > 0 && hashTLV != st.HashTLV {
			return problem.New(problem.AlgUnsupported, "one MCUboot image cannot be signed by %s and %s", pub[0].Name, p.Name).
				Seen("the one wants %s, the other %s, and a bootloader computes one hash", tlvName(st.HashTLV), tlvName(hashTLV))
		}
		st.HashTLV = hashTLV
		b, err := devicePublic(key)
		if err != nil {
			return err
		}
		if o.PublicKeyFormat != "full" {
			h := newHash(hashTLV)
			h.Write(b)
			b = h.Sum(nil)
		}
		k := planKey{Slot: "image", Role: p.Role, SPKI: p.SPKI, ID: p.KeyID(), Scheme: sch.Name, KeyTLV: b}
		if i > 0 {
			k.Slot = fmt.Sprintf("image-%d", i+1)
		}
		if slices.ContainsFunc(st.Keys, func(other planKey) bool { return other.ID == k.ID }) {
			return problem.New(problem.ImageOptions, "key %s is to sign the image twice", p.Name)
		}
		st.Keys = append(st.Keys, k)
	}
	st.PadSig = o.PadSig
	return nil
}

// planPayload finds the payload in the source and fixes the header and the
// protected TLVs.
func planPayload(st *state, src image.Source, o *Options) error {
	st.SourceSize = src.Size()
	st.Erased = o.erased()
	head := make([]byte, min(src.Size(), 4096))
	if err := readFull(src, head, 0, "the image"); err != nil {
		return err
	}
	isShaped := len(head) >= headerLen && le.Uint32(head) == magic

	h := header{Magic: magic, HdrSize: uint16(o.HeaderSize)}
	var kept []tlv
	switch {
	case isShaped && o.PadHeader:
		return problem.New(problem.ImageAlreadySigned, "the image has an MCUboot header already").
			Seen("pad-header would put a second one before it, and the bootloader would jump into the first").
			WithHint("leave pad-header out, or sign the build's raw binary")
	case isShaped:
		img, err := readShaped(src)
		if err != nil {
			return err
		}
		if h, kept, err = keepShaped(st, src, img, o); err != nil {
			return err
		}
	case o.PadHeader:
		st.PayloadOff, st.PayloadLen = 0, src.Size()
		if err := refuseContainer(head, o); err != nil {
			return err
		}
	default:
		if err := refuseContainer(head, o); err != nil {
			return err
		}
		if o.HeaderSize == 0 {
			return optionProblem("header-size", "it is not set, and the image has no MCUboot header that says it").
				WithHint("set header-size to CONFIG_ROM_START_OFFSET of the build (Zephyr: 0x200)")
		}
		if err := wantZeros(src, int64(o.HeaderSize)); err != nil {
			return err
		}
		st.HeaderFromSource = true
		st.PayloadOff, st.PayloadLen = int64(o.HeaderSize), src.Size()-int64(o.HeaderSize)
	}
	if st.PayloadLen <= 0 {
		return malformed("the payload is empty")
	}

	if !isShaped || o.Version != "" {
		if o.Version == "" {
			return optionProblem("version", "it is not set").WithHint("give the release a version, or set version in the profile")
		}
		v, err := parseVersion(o.Version)
		if err != nil {
			return err
		}
		h.Version = v
	}
	switch {
	case o.LoadAddr != 0:
		h.LoadAddr = uint32(o.LoadAddr)
		h.Flags = h.Flags&^flagROMFixed | flagRAMLoad
	case o.ROMFixed != 0:
		h.LoadAddr = uint32(o.ROMFixed)
		h.Flags = h.Flags&^flagRAMLoad | flagROMFixed
	}
	if o.NonBootable {
		h.Flags |= flagNonBootable
	}

	prot, shown, err := protectedTLVs(kept, h.Version, o)
	if err != nil {
		return err
	}
	if st.Protected, err = closeArea(infoMagicProtected, prot); err != nil {
		return err
	}
	h.ProtSize = uint16(len(st.Protected)) // closeArea bounds it
	if st.PayloadLen > maxSize {
		return problem.New(problem.ImageNoRoom, "the payload of %d bytes does not fit an MCUboot image", st.PayloadLen).
			Seen("ih_img_size has 32 bits")
	}
	h.ImgSize = uint32(st.PayloadLen)
	if h.tlvOff()+int64(h.ProtSize)+maxArea > maxSize {
		return problem.New(problem.ImageNoRoom, "the image of %d bytes does not fit an MCUboot image", h.tlvOff()).
			Seen("the bootloader adds sizes in 32 bits")
	}
	st.HdrSize = int64(h.HdrSize)
	st.Header = h.encode()

	st.Show = []image.Field{
		{Name: "version", Value: h.Version.String()},
		{Name: "payload", Value: fmt.Sprintf("%d bytes", st.PayloadLen)},
		{Name: "header size", Value: fmt.Sprintf("%#x", h.HdrSize)},
	}
	if h.Flags != 0 {
		st.Show = append(st.Show, image.Field{Name: "flags", Value: h.flagText()})
	}
	if h.LoadAddr != 0 {
		st.Show = append(st.Show, image.Field{Name: "address", Value: fmt.Sprintf("%#x", h.LoadAddr)})
	}
	st.Show = append(st.Show, shown...)
	return nil
}

// keepShaped takes over what an image with a header has: header, payload and
// protected TLVs. Its signatures are left behind.
func keepShaped(st *state, src image.Source, img *shaped, o *Options) (header, []tlv, error) {
	h := img.header
	fail := func(p *problem.Error) (header, []tlv, error) { return header{}, nil, p }
	if o.HeaderSize != 0 && uint16(o.HeaderSize) != h.HdrSize {
		return fail(optionProblem("header-size", "the option says %#x, the image's header %#x", uint64(o.HeaderSize), h.HdrSize).
			WithHint("leave header-size out, or build with CONFIG_ROM_START_OFFSET=%#x", uint64(o.HeaderSize)))
	}
	if h.Flags&flagsEncrypted != 0 {
		return fail(malformed("the image is encrypted already").
			Seen("the signature is over the plain image, which is not here").WithHint("sign the build's unencrypted image"))
	}
	if h.Flags&flagsCompressed != 0 {
		return fail(malformed("the image is compressed already").
			Seen("it carries a signature over the uncompressed image, which is not here").WithHint("sign the build's uncompressed image"))
	}
	inner := make([]byte, 4)
	if h.ImgSize >= 4 {
		if err := readFull(src, inner, int64(h.HdrSize), "the payload"); err != nil {
			return header{}, nil, err
		}
		if le.Uint32(inner) == magic {
			return fail(problem.New(problem.ImageAlreadySigned, "the image has two MCUboot headers").
				Seen("the magic is at offset 0 and again at %#x: it was signed twice", h.HdrSize).
				WithHint("sign the build's raw binary once"))
		}
	}
	if img.Plain != nil {
		for _, t := range img.Plain.TLVs {
			switch t.Type {
			case tlvSHA256, tlvSHA384, tlvSHA512:
				continue // an image that imgtool made without a key has its hash
			case tlvKeyHash, tlvPubKey, tlvRSA2048, tlvECDSA224, tlvECDSA, tlvRSA3072, tlvEd25519, tlvSigPure:
				if !o.Replace {
					return fail(problem.New(problem.ImageAlreadySigned, "the image is signed already").
						Seen("it has a %s at offset %d", tlvName(t.Type), t.Off).
						WithHint("sign the unsigned build, or set the option replace"))
				}
				st.Notes = append(st.Notes, image.Field{Name: "replaced", Value: fmt.Sprintf("%s of %d bytes", tlvName(t.Type), len(t.Value))})
			default:
				// It is in nobody's signature, and a bootloader with an allow-list refuses it.
				return fail(malformed("the image has an unprotected TLV %s that signing again would lose", tlvName(t.Type)).
					Seen("%d bytes at offset %d", len(t.Value), t.Off).WithHint("sign the build's raw binary"))
			}
		}
	}
	var kept []tlv
	if img.Prot != nil {
		for _, t := range img.Prot.TLVs {
			switch {
			case t.Type <= tlvEncX512:
				// The device takes a hash or a signature from wherever it stands, and a
				// hash cannot be right within the bytes that it is over.
				return fail(malformed("the image has a TLV %s in its protected area", tlvName(t.Type)).
					Seen("at offset %d, where no bootloader can accept it", t.Off).WithHint("sign the build's raw binary"))
			case t.Type == tlvBootRecord:
				return fail(malformed("the image has a BOOT_RECORD that names the key it was made for").
					Seen("at offset %d", t.Off).WithHint("sign the build's raw binary"))
			}
		}
		kept = img.Prot.TLVs
	}
	st.HeaderFromSource = true
	st.PayloadOff, st.PayloadLen = int64(h.HdrSize), int64(h.ImgSize)
	return h, kept, nil
}

func wantZeros(src image.Source, n int64) error {
	b := make([]byte, n) // header-size, at most 64 KiB
	if err := readFull(src, b, 0, "the header padding"); err != nil {
		return err
	}
	if i := slices.IndexFunc(b, func(c byte) bool { return c != 0 }); i >= 0 {
		return malformed("the image does not leave room for a header").
			Seen("header-size is %d, and byte %d is %#02x, not zero", n, i, b[i]).
			WithHint("set pad-header if the payload is linked for an offset of %#x, or build with CONFIG_ROM_START_OFFSET=%#x", n, n)
	}
	return nil
}

// protectedTLVs gives the protected TLVs in imgtool's order: SEC_CNT, what the
// image had, DEPENDENCY, UUIDs, custom. Options replace what they name.
func protectedTLVs(kept []tlv, v version, o *Options) ([]byte, []image.Field, error) {
	var b []byte
	var shown []image.Field
	add := func(typ uint16, value []byte, name, text string) {
		b = appendTLV(b, typ, value)
		shown = append(shown, image.Field{Name: name, Value: text})
	}
	if o.SecurityCounter.Set {
		c := o.SecurityCounter.of(v)
		add(tlvSecCnt, le.AppendUint32(nil, c), "security counter", fmt.Sprint(c))
	}
	replaced := func(t uint16) bool {
		switch t {
		case tlvSecCnt:
			return o.SecurityCounter.Set
		case tlvDependency:
			return len(o.Dependencies) > 0
		case tlvVendorUUID:
			return o.VID != ""
		case tlvClassUUID:
			return o.CID != ""
		}
		return slices.ContainsFunc(o.CustomTLV, func(c customTLV) bool { return uint16(c.Type) == t })
	}
	for _, t := range kept {
		if replaced(t.Type) {
			continue
		}
		if t.Type == tlvSecCnt && len(t.Value) == 4 {
			add(t.Type, t.Value, "security counter", fmt.Sprint(le.Uint32(t.Value)))
			continue
		}
		add(t.Type, t.Value, "protected TLV "+tlvName(t.Type), hexShort(t.Value))
	}
	for _, d := range o.Dependencies {
		dv, err := parseVersion(d.Version)
		if err != nil {
			return nil, nil, err
		}
		value := []byte{d.Image, 0, 0, 0, dv.Major, dv.Minor}
		value = le.AppendUint16(value, dv.Revision)
		value = le.AppendUint32(value, dv.Build)
		add(tlvDependency, value, "needs", fmt.Sprintf("image %d at %s or later", d.Image, dv))
	}
	for _, u := range []struct {
		typ         uint16
		name, value string
	}{{tlvVendorUUID, "vid", o.VID}, {tlvClassUUID, "cid", o.CID}} {
		if u.value == "" {
			continue
		}
		id, err := parseUUID(u.name, u.value)
		if err != nil {
			return nil, nil, err
		}
		add(u.typ, id, u.name, hex.EncodeToString(id))
	}
	for _, c := range o.CustomTLV {
		value, err := c.bytes()
		if err != nil {
			return nil, nil, err
		}
		if len(value) > maxArea {
			return nil, nil, problem.New(problem.ImageNoRoom, "the custom TLV %#04x does not fit", uint64(c.Type)).
				Seen("%d bytes, a TLV area has at most %d", len(value), maxArea)
		}
		add(uint16(c.Type), value, "custom TLV "+tlvName(uint16(c.Type)), hexShort(value))
	}
	return b, shown, nil
}

func hexShort(b []byte) string {
	if len(b) > 64 {
		return fmt.Sprintf("%x… (%d bytes)", b[:64], len(b))
	}
	return hex.EncodeToString(b)
}

// planRoom checks the slot for the largest signature there can be, so that
// the length of an ECDSA signature does not decide whether an image fits.
func planRoom(st *state, o *Options) error {
	size := st.signedLen() + infoLen + tlvHeadLen + int64(newHash(st.HashTLV).Size())
	for _, k := range st.Keys {
		s, _ := k.scheme()
		size += tlvHeadLen + int64(len(k.KeyTLV)) + tlvHeadLen + int64(s.MaxSig)
	}
	if o.SlotSize == 0 {
		return nil
	}
	trailer := o.trailerSize()
	if size+trailer > int64(o.SlotSize) {
		return problem.New(problem.ImageNoRoom, "the signed image does not fit the slot").
			Seen("image size (%#x) + trailer (%#x) exceeds the slot size %#x", size, trailer, uint64(o.SlotSize)).
			WithHint("make the image %d bytes smaller, or the slot larger", size+trailer-int64(o.SlotSize))
	}
	if o.Pad {
		st.PadTo = int64(o.SlotSize)
		st.TrailerMaxAlign = int64(o.MaxAlign)
		st.Confirmed = o.Confirm && !o.OverwriteOnly
	}
	return nil
}
