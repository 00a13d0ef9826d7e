// Package alg is the registry of signature schemes: their names, what kind of
// input each takes, and which are too weak to use.
//
// Everything that stores or compares an algorithm stores one of these ids, so
// that "RSA with SHA-256" can never mean two things. An id fixes the family,
// the size, the padding, the hash and the salt.
//
// # Input kinds
//
// RSA and ECDSA sign a digest. Pure Ed25519 signs a message and cannot take a
// digest. MCUboot's "Ed25519 over the image hash" is pure Ed25519 whose
// message happens to be 32 bytes; it is not Ed25519ph. The kind is therefore
// part of every request and nothing guesses it.
package alg

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // SHA-384 and SHA-512 for crypto.Hash
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"

	"github.com/firmseal/firmseal/internal/problem"
)

// KeyType is a kind of key with its size.
type KeyType string

const (
	P256    KeyType = "p256"
	P384    KeyType = "p384"
	RSA2048 KeyType = "rsa2048"
	RSA3072 KeyType = "rsa3072"
	RSA4096 KeyType = "rsa4096"
	Ed25519 KeyType = "ed25519"
)

// KeyTypes lists all, strongest recommendation first.
func KeyTypes() []KeyType { return []KeyType{P256, P384, Ed25519, RSA3072, RSA4096, RSA2048} }

// ID is a signature scheme, complete: curve or modulus size, padding, salt, hash.
type ID string

const (
	ECDSAP256SHA256 ID = "ecdsa-p256-sha256"
	ECDSAP384SHA384 ID = "ecdsa-p384-sha384"

	RSA2048PKCS1SHA256 ID = "rsa2048-pkcs1-sha256"
	RSA3072PKCS1SHA256 ID = "rsa3072-pkcs1-sha256"
	RSA4096PKCS1SHA256 ID = "rsa4096-pkcs1-sha256"
	RSA2048PKCS1SHA384 ID = "rsa2048-pkcs1-sha384"
	RSA3072PKCS1SHA384 ID = "rsa3072-pkcs1-sha384"
	RSA4096PKCS1SHA384 ID = "rsa4096-pkcs1-sha384"
	RSA2048PKCS1SHA512 ID = "rsa2048-pkcs1-sha512"
	RSA3072PKCS1SHA512 ID = "rsa3072-pkcs1-sha512"
	RSA4096PKCS1SHA512 ID = "rsa4096-pkcs1-sha512"

	// The PSS ids have MGF1 with the same hash and a salt of the hash's length (32).
	RSA2048PSSSHA256 ID = "rsa2048-pss-sha256"
	RSA3072PSSSHA256 ID = "rsa3072-pss-sha256"
	RSA4096PSSSHA256 ID = "rsa4096-pss-sha256"

	Ed25519Pure ID = "ed25519" // RFC 8032, the message itself
)

// Kind says what a signer is given.
type Kind string

const (
	Digest  Kind = "digest"  // the hash of the message, of the scheme's hash length
	Message Kind = "message" // the message itself, at most MaxMessage bytes
)

// MaxMessage bounds a message that travels to a key, in bytes. Tokens take less
// (YubiHSM 2: 2,019); formats keep theirs small.
const MaxMessage = 1 << 20

// Spec is what an id stands for.
type Spec struct {
	ID   ID
	Key  KeyType
	Hash crypto.Hash // of the digest; 0 for pure Ed25519
	PSS  bool        // else PKCS #1 v1.5, for RSA
	Kind Kind
}

var specs = []Spec{
	{ECDSAP256SHA256, P256, crypto.SHA256, false, Digest},
	{ECDSAP384SHA384, P384, crypto.SHA384, false, Digest},
	{RSA2048PKCS1SHA256, RSA2048, crypto.SHA256, false, Digest},
	{RSA3072PKCS1SHA256, RSA3072, crypto.SHA256, false, Digest},
	{RSA4096PKCS1SHA256, RSA4096, crypto.SHA256, false, Digest},
	{RSA2048PKCS1SHA384, RSA2048, crypto.SHA384, false, Digest},
	{RSA3072PKCS1SHA384, RSA3072, crypto.SHA384, false, Digest},
	{RSA4096PKCS1SHA384, RSA4096, crypto.SHA384, false, Digest},
	{RSA2048PKCS1SHA512, RSA2048, crypto.SHA512, false, Digest},
	{RSA3072PKCS1SHA512, RSA3072, crypto.SHA512, false, Digest},
	{RSA4096PKCS1SHA512, RSA4096, crypto.SHA512, false, Digest},
	{RSA2048PSSSHA256, RSA2048, crypto.SHA256, true, Digest},
	{RSA3072PSSSHA256, RSA3072, crypto.SHA256, true, Digest},
	{RSA4096PSSSHA256, RSA4096, crypto.SHA256, true, Digest},
	{Ed25519Pure, Ed25519, 0, false, Message},
}

// Lookup gives an id's meaning.
func Lookup(id ID) (Spec, error) {
	for _, s := range specs {
		if s.ID == id {
			return s, nil
		}
	}
	return Spec{}, problem.New(problem.AlgUnsupported, "unknown signature algorithm %q", string(id))
}

// For lists the schemes that a key type can sign with, the default first.
func For(t KeyType) []ID {
	var out []ID
	for _, s := range specs {
		if s.Key == t {
			out = append(out, s.ID)
		}
	}
	return out
}

// TypeOf names pub's type, or refuses it: RSA below 2048 bits or of an odd
// size, a public exponent below 65537, a curve that is not listed. It is the
// floor of requirement A25 and holds for creating, importing and trusting keys.
func TypeOf(pub crypto.PublicKey) (KeyType, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return P256, nil
		case elliptic.P384():
			return P384, nil
		}
		return "", problem.New(problem.AlgUnsupported, "curve %s is not supported", k.Curve.Params().Name).
			Seen("supported curves: P-256, P-384")
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return "", problem.New(problem.KeyMalformed, "an Ed25519 public key has %d bytes, not %d", ed25519.PublicKeySize, len(k))
		}
		return Ed25519, nil
	case *rsa.PublicKey:
		bits := k.N.BitLen()
		if bits < 2048 {
			return "", problem.New(problem.AlgWeak, "an RSA key of %d bits is too weak", bits).
				Seen("the floor is 2048 bits").WithHint("use p256 or rsa3072")
		}
		if k.E < 65537 || k.E%2 == 0 {
			return "", problem.New(problem.AlgWeak, "the RSA public exponent %d is too weak", k.E).
				Seen("the floor is 65537").WithHint("use p256 or rsa3072")
		}
		switch bits {
		case 2048:
			return RSA2048, nil
		case 3072:
			return RSA3072, nil
		case 4096:
			return RSA4096, nil
		}
		return "", problem.New(problem.AlgUnsupported, "RSA keys of %d bits are not supported", bits).
			Seen("supported sizes: 2048, 3072, 4096")
	}
	return "", problem.New(problem.AlgUnsupported, "public keys of type %T are not supported", pub)
}

// KeyID is the hex SHA-256 of a DER SubjectPublicKeyInfo (RFC 5280, 4.1.2.7).
// It is how Firmseal names a key wherever a name could lie.
func KeyID(spki []byte) string {
	h := sha256.Sum256(spki)
	return hex.EncodeToString(h[:])
}

// ParseSPKI parses a DER SubjectPublicKeyInfo and applies TypeOf's floor.
func ParseSPKI(der []byte) (crypto.PublicKey, KeyType, error) {
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, "", problem.New(problem.KeyMalformed, "the public key cannot be read").
			Seen("%d bytes that are not a DER SubjectPublicKeyInfo", len(der)).Because(err)
	}
	t, err := TypeOf(pub)
	return pub, t, err
}

// Verify checks a canonical signature (ECDSA as DER, RSA big-endian, Ed25519
// 64 bytes) over input, which is a digest or a message as the scheme's Kind
// says. It returns nil exactly if the signature is valid for id, and never
// accepts a key of another type than id's.
func Verify(id ID, pub crypto.PublicKey, input, sig []byte) error {
	s, err := Lookup(id)
	if err != nil {
		return err
	}
	t, err := TypeOf(pub)
	if err != nil {
		return err
	}
	if t != s.Key {
		return problem.New(problem.AlgUnsupported, "a %s key cannot verify %s", t, id)
	}
	if s.Kind == Digest && len(input) != s.Hash.Size() {
		return problem.New(problem.SigEncoding, "%s takes a digest of %d bytes, not %d", id, s.Hash.Size(), len(input))
	}
	bad := func() error {
		return problem.New(problem.SigInvalid, "the %s signature does not match", id)
	}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(k, input, sig) {
			return bad()
		}
	case ed25519.PublicKey:
		if !ed25519.Verify(k, input, sig) {
			return bad()
		}
	case *rsa.PublicKey:
		if s.PSS {
			err = rsa.VerifyPSS(k, s.Hash, input, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			err = rsa.VerifyPKCS1v15(k, s.Hash, input, sig)
		}
		if err != nil {
			return bad()
		}
	}
	return nil
}

// RawECDSA turns a DER ECDSA signature into r‖s, each big-endian in size bytes.
func RawECDSA(der []byte, size int) ([]byte, error) {
	r, s, err := parseECDSA(der)
	if err != nil {
		return nil, err
	}
	if r.BitLen() > size*8 || s.BitLen() > size*8 {
		return nil, problem.New(problem.SigEncoding, "the ECDSA signature is larger than %d bytes a coordinate", size)
	}
	out := make([]byte, 2*size)
	r.FillBytes(out[:size])
	s.FillBytes(out[size:])
	return out, nil
}

// DERFromRaw turns r‖s into DER.
func DERFromRaw(raw []byte) ([]byte, error) {
	if len(raw) == 0 || len(raw)%2 != 0 {
		return nil, problem.New(problem.SigEncoding, "a raw ECDSA signature has an even number of bytes, not %d", len(raw))
	}
	n := len(raw) / 2
	return encodeECDSA(new(big.Int).SetBytes(raw[:n]), new(big.Int).SetBytes(raw[n:]))
}

func (k Kind) String() string { return string(k) }

var _ fmt.Stringer = Kind("")
