package mcuboot

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"fmt"
	"strconv"
	"strings"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// profileOptions say how the bootloader was built. The zero value is the
// strictest current build for the trusted keys.
type profileOptions struct {
	// Signature is the one type compiled in: "ecdsa-p256", "ecdsa-p384",
	// "rsa-2048", "rsa-3072", "ed25519", or "none" for a build that checks the
	// hash alone. Empty takes the type of the trusted keys.
	Signature string `json:"signature"`
	SHA       string `json:"sha"`  // "512" for an Ed25519 build over SHA-512
	Keys      string `json:"keys"` // "match" (the default), "bypass" (MCUBOOT_BYPASS_KEY_MATCH), "hw-key" (MCUBOOT_HW_KEY)

	RollbackProtection *bool `json:"rollback-protection"` // MCUBOOT_HW_ROLLBACK_PROT; the default is on where the target's counter is known
	AllowList          *bool `json:"allow-list"`          // MCUBOOT_USE_TLV_ALLOW_LIST; on by default

	NonBootable bool `json:"non-bootable"` // the image is one that the device checks and does not start

	SlotSize     bytesOption `json:"slot-size"`
	MaxImageSize bytesOption `json:"max-image-size"` // the slot without its trailer
	SlotAddress  bytesOption `json:"slot-address"`   // for images with a rom-fixed address
}

// bytesOption is a number or a string like "0x200".
type bytesOption uint64

func (n *bytesOption) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseUint(strings.Trim(string(b), `"`), 0, 64)
	if err != nil {
		return fmt.Errorf("%s is not a number like 512 or \"0x200\"", b)
	}
	*n = bytesOption(v)
	return nil
}

// builds are the signature types that MCUboot can be compiled for, written
// down a second time: a wrong row in the table that plans would be believed
// by nobody.
func builds() []scheme {
	return []scheme{
		{Name: "ecdsa-p256", Key: alg.P256, Alg: alg.ECDSAP256SHA256, SigTLV: 0x22, HashTLV: 0x10, MaxSig: 72},
		{Name: "ecdsa-p384", Key: alg.P384, Alg: alg.ECDSAP384SHA384, SigTLV: 0x22, HashTLV: 0x11, MaxSig: 104},
		{Name: "rsa-2048", Key: alg.RSA2048, Alg: alg.RSA2048PSSSHA256, SigTLV: 0x20, HashTLV: 0x10, MaxSig: 256},
		{Name: "rsa-3072", Key: alg.RSA3072, Alg: alg.RSA3072PSSSHA256, SigTLV: 0x23, HashTLV: 0x10, MaxSig: 384},
		{Name: "ed25519", Key: alg.Ed25519, Alg: alg.Ed25519Pure, SigTLV: 0x24, HashTLV: 0x10, MaxSig: 64},
	}
}

// anchor is a trusted key as the device has it compiled in.
type anchor struct {
	name   string
	id     string // SPKI SHA-256
	pub    crypto.PublicKey
	scheme scheme
	known  bool   // MCUboot has such keys
	bytes  []byte // what the device hashes
}

// target is the verifier that decides: a profile joined with what it trusts.
type target struct {
	none        bool // no signature type compiled in
	scheme      scheme
	hash        uint16
	keys        string
	rollback    bool
	stored      uint64
	allowList   bool
	nonBootable bool
	slotSize    uint64
	maxSize     uint64
	slotAddr    uint64
	oldECDSA    bool     // before 1.5: ECDSA signatures of 72 bytes and more only
	anchors     []anchor // of the compiled-in type, in the order of the trust
	all         []anchor
}

func newTarget(t image.Trust, p image.Profile) (*target, error) {
	if p.Verifier != "" && p.Verifier != formatName {
		return nil, problem.New(problem.ImageOptions, "the verifier %q does not read MCUboot images", p.Verifier).
			WithHint("set verifier to mcuboot")
	}
	var o profileOptions
	if err := image.DecodeOptions(formatName, p.Options, &o); err != nil {
		return nil, err
	}
	tg := &target{keys: o.Keys, allowList: true, nonBootable: o.NonBootable, slotSize: uint64(o.SlotSize), maxSize: uint64(o.MaxImageSize), slotAddr: uint64(o.SlotAddress)}
	if o.AllowList != nil {
		tg.allowList = *o.AllowList
	}
	tg.rollback = t.Counter != nil
	if o.RollbackProtection != nil {
		tg.rollback = *o.RollbackProtection
	}
	if t.Counter != nil {
		tg.stored = *t.Counter
	}
	switch tg.keys {
	case "":
		tg.keys = "match"
	case "match", "bypass", "hw-key":
	default:
		return nil, profileProblem("keys", `%q is none of "match", "bypass", "hw-key"`, o.Keys)
	}
	if p.Version != "" {
		major, minor, err := bootVersion(p.Version)
		if err != nil {
			return nil, err
		}
		tg.oldECDSA = major < 1 || major == 1 && minor < 5
	}
	for _, k := range t.Keys {
		a, err := newAnchor(k)
		if err != nil {
			return nil, err
		}
		tg.all = append(tg.all, a)
	}
	if err := tg.compiledIn(o); err != nil {
		return nil, err
	}
	for _, a := range tg.all {
		if !tg.none && a.known && a.scheme.Name == tg.scheme.Name {
			tg.anchors = append(tg.anchors, a)
		}
	}
	return tg, nil
}

// compiledIn decides the one signature type and hash of the build.
func (tg *target) compiledIn(o profileOptions) error {
	name := o.Signature
	if name == "" {
		for _, a := range tg.all {
			if !a.known {
				continue
			}
			if name != "" && name != a.scheme.Name {
				return profileProblem("signature", "the target trusts %s and %s keys, and a bootloader is built for one type", name, a.scheme.Name)
			}
			name = a.scheme.Name
		}
	}
	if name == "" {
		// Nothing is trusted: whatever the build, no key is found.
		name = map[string]string{"384": "ecdsa-p384", "512": "ed25519"}[o.SHA]
		if name == "" {
			name = builds()[0].Name
		}
	}
	if name == "none" {
		tg.none, tg.hash = true, tlvSHA256
	}
	for _, s := range builds() {
		if s.Name == name {
			tg.scheme, tg.hash = s, s.HashTLV
		}
	}
	if tg.hash == 0 {
		return profileProblem("signature", "%q is none that MCUboot can be built for", o.Signature)
	}
	switch {
	case o.SHA == "" || o.SHA == "256" && tg.hash == tlvSHA256 || o.SHA == "384" && tg.hash == tlvSHA384:
	case o.SHA == "512" && (tg.none || tg.scheme.Key == alg.Ed25519):
		tg.hash = tlvSHA512
	default:
		return profileProblem("sha", "%q does not go with %s", o.SHA, name)
	}
	return nil
}

func profileProblem(name, format string, a ...any) *problem.Error {
	return problem.New(problem.ImageOptions, "the verifier option %s of format mcuboot cannot be used", name).Seen(format, a...).
		WithHint("say how the bootloader was built, for example signature: ecdsa-p256")
}

func bootVersion(s string) (major, minor int, err error) {
	part := strings.Split(strings.TrimPrefix(s, "v"), ".")
	if len(part) >= 2 {
		major, err = strconv.Atoi(part[0])
		if err == nil {
			minor, err = strconv.Atoi(part[1])
		}
	}
	if len(part) < 2 || err != nil || major < 0 || minor < 0 {
		return 0, 0, problem.New(problem.ImageOptions, "the MCUboot version %q cannot be read", s).WithHint("write it as 2.4.0")
	}
	return major, minor, nil
}

func newAnchor(k image.TrustedKey) (anchor, error) {
	pub, err := x509.ParsePKIXPublicKey(k.SPKI)
	if err != nil {
		return anchor{}, problem.New(problem.KeyMalformed, "the trusted key %q cannot be read", k.Name).
			Seen("it is not a DER SubjectPublicKeyInfo").Because(err)
	}
	typ, err := alg.TypeOf(pub)
	if err != nil {
		return anchor{}, err
	}
	a := anchor{name: k.Name, id: alg.KeyID(k.SPKI), pub: pub}
	for _, s := range builds() {
		if s.Key == typ {
			a.scheme, a.known = s, true
		}
	}
	switch key := pub.(type) {
	case *rsa.PublicKey:
		a.bytes = x509.MarshalPKCS1PublicKey(key)
	case *ecdsa.PublicKey, ed25519.PublicKey:
		if a.bytes, err = x509.MarshalPKIXPublicKey(key); err != nil {
			return anchor{}, fmt.Errorf("encoding a trusted key: %w", err)
		}
	}
	return a, nil
}

// keyHash is the anchor's hash under the build's hash function.
func (a anchor) keyHash(hash uint16) []byte {
	switch hash {
	case tlvSHA384:
		h := sha512.Sum384(a.bytes)
		return h[:]
	case tlvSHA512:
		h := sha512.Sum512(a.bytes)
		return h[:]
	}
	h := sha256.Sum256(a.bytes)
	return h[:]
}

// findKey is bootutil_find_key: which of the compiled-in keys a key TLV names,
// or -1. A KEYHASH is compared in its own length, so that a shorter one matches
// too; the signature is checked all the same.
func (tg *target) findKey(val []byte) int {
	if tg.keys == "bypass" {
		return 0
	}
	for i, a := range tg.anchors {
		switch tg.keys {
		case "hw-key":
			if bytes.Equal(a.bytes, val) {
				return i
			}
		default:
			if bytes.HasPrefix(a.keyHash(tg.hash), val) {
				return i
			}
		}
	}
	return -1
}

// keyTLV is the TLV type that the build looks for.
func (tg *target) keyTLV() uint16 {
	if tg.keys == "hw-key" {
		return tlvPubKey
	}
	return tlvKeyHash
}

// keyBuffer is KEY_BUF_SIZE: a longer key TLV ends the validation.
func (tg *target) keyBuffer() int {
	if tg.keys == "hw-key" {
		return tg.sigBuffer() + 24
	}
	return hashLen(tg.hash)
}

// sigBuffer is SIG_BUF_SIZE.
func (tg *target) sigBuffer() int {
	if tg.scheme.SigTLV == tlvECDSA {
		return 128
	}
	return tg.scheme.MaxSig
}

func hashLen(t uint16) int {
	return map[uint16]int{tlvSHA256: 32, tlvSHA384: 48, tlvSHA512: 64}[t]
}
