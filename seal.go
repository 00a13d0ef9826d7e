package firmseal

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"fmt"
	"strconv"
)

// PayloadType is the DSSE payload type of a statement.
const PayloadType = "application/vnd.in-toto+json"

// Bounds of an envelope.
const (
	MaxEnvelope   = 512 << 10 // bytes of JSON
	MaxSignatures = 32
	maxSignature  = 512  // bytes of one signature; the longest of ours has 104
	maxSPKI       = 2048 // bytes of DER; the longest of ours has 120, and an RSA key is to be named in the refusal
)

// Envelope is a DSSE envelope: a payload and signatures over it. It is the
// content of a .seal file.
type Envelope struct {
	PayloadType string
	Payload     []byte
	Signatures  []Signature
}

// Signature is one key's signature over the envelope's pre-authentication
// encoding.
type Signature struct {
	KeyID string // hex SHA-256 of the key's SubjectPublicKeyInfo: a hint until it verifies
	Sig   []byte // Ed25519: 64 bytes; ECDSA: ASN.1 DER
}

// Seal makes a .seal file with one signature over a statement that
// Statement.Marshal gave. sign gets the pre-authentication encoding, whole; for
// Ed25519 it signs that message, for ECDSA P-256 its SHA-256, for P-384 its
// SHA-384, with a signature in DER. Seal returns a file only after the signature
// has verified.
func Seal(statement, spki []byte, sign func(pae []byte) ([]byte, error)) ([]byte, error) {
	if _, err := ParseStatement(statement); err != nil {
		return nil, err
	}
	e := &Envelope{PayloadType: PayloadType, Payload: statement}
	if err := e.Sign(spki, sign); err != nil {
		return nil, err
	}
	return e.Marshal()
}

// Sign adds the signature of another key; see Seal for sign. It changes nothing
// when it fails.
func (e *Envelope) Sign(spki []byte, sign func(pae []byte) ([]byte, error)) error {
	pub, err := parseSealKey(spki)
	if err != nil {
		return err
	}
	id := KeyID(spki)
	for _, s := range e.Signatures {
		if s.KeyID == id {
			return malformedEnvelope(fmt.Errorf("key %s has signed already", id))
		}
	}
	if len(e.Signatures) == MaxSignatures {
		return malformedEnvelope(fmt.Errorf("there are %d signatures already", MaxSignatures))
	}
	pae := e.PAE()
	sig, err := sign(bytes.Clone(pae))
	if err != nil {
		return fmt.Errorf("sealing with key %s: %w", id, err)
	}
	if !verifySignature(pub, pae, sig) {
		return refuse(CodeSealInvalid, "the new signature does not verify").seen("key %s signed something else", id).
			next("check that the key's public half is the one that the signer uses")
	}
	e.Signatures = append(e.Signatures, Signature{id, sig})
	return nil
}

// ID names the seal: the hex SHA-256 of the payload. Adding a signature keeps
// it; any change to what is said makes another.
func (e *Envelope) ID() string { return hexSum(e.Payload) }

// PAE is DSSE's pre-authentication encoding, the bytes that are signed.
func (e *Envelope) PAE() []byte {
	b := make([]byte, 0, len(e.PayloadType)+len(e.Payload)+64)
	b = append(b, "DSSEv1 "...)
	b = strconv.AppendInt(b, int64(len(e.PayloadType)), 10)
	b = append(b, ' ')
	b = append(b, e.PayloadType...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(e.Payload)), 10)
	b = append(b, ' ')
	return append(b, e.Payload...)
}

// Statement reads the payload. It says nothing about the signatures.
func (e *Envelope) Statement() (*Statement, error) {
	if e.PayloadType != PayloadType {
		return nil, refuse(CodeSealType, "the envelope holds no statement").
			seen("its payload type is %q, not %q", clip(e.PayloadType), PayloadType).
			next("use the .seal file that came with the image")
	}
	return ParseStatement(e.Payload)
}

type (
	envelopeJSON struct {
		PayloadType string          `json:"payloadType"`
		Payload     []byte          `json:"payload"`
		Signatures  []signatureJSON `json:"signatures"`
	}
	signatureJSON struct {
		KeyID string `json:"keyid"`
		Sig   []byte `json:"sig"`
	}
)

// Marshal gives the bytes of a .seal file.
func (e *Envelope) Marshal() ([]byte, error) {
	doc := envelopeJSON{PayloadType: e.PayloadType, Payload: e.Payload, Signatures: []signatureJSON{}}
	for _, s := range e.Signatures {
		doc.Signatures = append(doc.Signatures, signatureJSON(s))
	}
	data, err := encodeJSON(doc)
	if err != nil {
		return nil, fmt.Errorf("encoding the seal: %w", err)
	}
	if len(data) > MaxEnvelope {
		return nil, tooLarge("the seal", len(data), MaxEnvelope)
	}
	return data, nil
}

// ParseEnvelope reads a .seal file strictly; no signature is checked. Errors:
// SEAL.TOO_LARGE, SEAL.MALFORMED.
func ParseEnvelope(data []byte) (*Envelope, error) {
	if len(data) > MaxEnvelope {
		return nil, tooLarge("the seal", len(data), MaxEnvelope)
	}
	m, err := parseJSON(data)
	if err != nil {
		return nil, malformedEnvelope(err)
	}
	doc := members{m, "", &err}
	e := &Envelope{PayloadType: doc.str("payloadType"), Payload: doc.base64("payload")}
	for _, s := range doc.objects("signatures", MaxSignatures) {
		e.Signatures = append(e.Signatures, Signature{KeyID: s.str("keyid"), Sig: s.base64("sig")})
	}
	if err != nil {
		return nil, malformedEnvelope(err)
	}
	seen := map[string]bool{}
	for _, s := range e.Signatures {
		switch {
		case !isDigest(s.KeyID):
			return nil, malformedEnvelope(fmt.Errorf("keyid %q is not 64 lower-case hex digits", clip(s.KeyID)))
		case seen[s.KeyID]:
			return nil, malformedEnvelope(fmt.Errorf("key %s has two signatures", s.KeyID))
		case len(s.Sig) == 0 || len(s.Sig) > maxSignature:
			return nil, malformedEnvelope(fmt.Errorf("a signature has %d bytes", len(s.Sig)))
		}
		seen[s.KeyID] = true
	}
	if len(e.Signatures) == 0 {
		return nil, malformedEnvelope(fmt.Errorf("it has no signature"))
	}
	return e, nil
}

func malformedEnvelope(err error) *Error {
	return refuse(CodeEnvelopeMalformed, "the seal cannot be read").seen("%v", err).
		next("fetch the .seal file again from where the release was published")
}

// KeyID is the name of a key that cannot lie: the hex SHA-256 of its DER
// SubjectPublicKeyInfo.
func KeyID(spki []byte) string { return hexSum(spki) }

// parseSealKey reads a public key that may seal: Ed25519, P-256 or P-384.
func parseSealKey(spki []byte) (crypto.PublicKey, error) {
	if len(spki) > maxSPKI {
		return nil, refuse(CodeUnsupportedAlg, "a public key of %d bytes cannot seal", len(spki)).
			seen("seal keys are Ed25519, ECDSA P-256 or ECDSA P-384")
	}
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, refuse(CodeTrustRootMalformed, "a seal key cannot be read").
			seen("%d bytes that are not a DER SubjectPublicKeyInfo of a known kind", len(spki)).
			next("export the key again: firmseal key show NAME")
	}
	if again, err := x509.MarshalPKIXPublicKey(pub); err != nil || !bytes.Equal(again, spki) {
		// A key with two encodings would have two ids and could count twice.
		return nil, refuse(CodeTrustRootMalformed, "a seal key is not in its one DER encoding").
			seen("%d bytes that encode otherwise", len(spki)).next("export the key again: firmseal key show NAME")
	}
	kind := fmt.Sprintf("%T", pub)
	code := CodeUnsupportedAlg
	switch k := pub.(type) {
	case ed25519.PublicKey:
		return pub, nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return pub, nil
		}
		kind = "ECDSA " + k.Curve.Params().Name
		if k.Curve.Params().BitSize < 256 {
			code = CodeWeakAlgorithm
		}
	case *rsa.PublicKey:
		kind = fmt.Sprintf("RSA of %d bits", k.N.BitLen())
		if k.N.BitLen() < 2048 || k.E < 65537 {
			code = CodeWeakAlgorithm
		}
	}
	return nil, refuse(code, "a key of kind %s cannot seal", kind).
		seen("seal keys are Ed25519, ECDSA P-256 or ECDSA P-384").
		next("make one: firmseal key create NAME --purpose seal --environment ENV")
}

// verifySignature checks a signature over a pre-authentication encoding. The
// scheme follows from the key, never from the envelope.
func verifySignature(pub crypto.PublicKey, pae, sig []byte) bool {
	switch k := pub.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(k, pae, sig)
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P384() {
			h := sha512.Sum384(pae)
			return ecdsa.VerifyASN1(k, h[:], sig)
		}
		h := sha256.Sum256(pae)
		return ecdsa.VerifyASN1(k, h[:], sig)
	}
	return false
}
