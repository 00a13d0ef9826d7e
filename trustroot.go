package firmseal

import (
	"crypto"
	"errors"
	"fmt"
)

// TrustRootFormat is the first thing a trust root says.
const TrustRootFormat = "firmseal-trustroot/v1"

// Bounds of a trust root.
const (
	MaxTrustRoot = 64 << 10 // bytes of JSON
	MaxSealKeys  = 64
	MaxProducts  = 256
)

// TrustRoot is all that a device believes without proof: which keys seal
// releases, how many of them it takes, and which log must have seen it. It is
// made where the keys are managed and reaches the device before any release:
// built into an image, or beside it.
//
// The document carries no signature of its own. A device takes the first one
// from its maker, and later ones only with a higher Version.
type TrustRoot struct {
	Version            uint64 // from 1; rises with every change
	Keys               []SealKey
	Threshold          int         // distinct keys of the release's environment that must have signed
	EmergencyThreshold int         // the same for releases marked emergency; not below Threshold
	Log                *TrustedLog // nil: this trust root knows no log
	Products           []string    // empty: any product
}

// SealKey is a key that may seal releases of one environment.
type SealKey struct {
	Name        string // for people
	Environment string
	SPKI        []byte // DER SubjectPublicKeyInfo
}

// ID is the key's id, as envelopes name it.
func (k SealKey) ID() string { return KeyID(k.SPKI) }

// TrustedLog is the log that releases must be in.
type TrustedLog struct {
	Origin   string `json:"origin"`
	Key      string `json:"key"`      // C2SP signed note verifier key, Ed25519
	Required bool   `json:"required"` // refuse releases without a proof
}

type (
	trustRootJSON struct {
		Format             string        `json:"format"`
		Version            uint64        `json:"version"`
		Keys               []sealKeyJSON `json:"keys"`
		Threshold          int           `json:"threshold"`
		EmergencyThreshold int           `json:"emergencyThreshold"`
		Log                *TrustedLog   `json:"log,omitempty"`
		Products           []string      `json:"products,omitempty"`
	}
	sealKeyJSON struct {
		Name        string `json:"name"`
		Environment string `json:"environment"`
		SPKI        []byte `json:"spki"`
	}
)

// Marshal validates t and gives the bytes of a trust root file.
func (t *TrustRoot) Marshal() ([]byte, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	doc := trustRootJSON{
		Format: TrustRootFormat, Version: t.Version, Threshold: t.Threshold, EmergencyThreshold: t.EmergencyThreshold,
		Log: t.Log, Products: t.Products,
	}
	for _, k := range t.Keys {
		doc.Keys = append(doc.Keys, sealKeyJSON(k))
	}
	data, err := encodeJSON(doc)
	if err != nil {
		return nil, fmt.Errorf("encoding the trust root: %w", err)
	}
	data = append(data, '\n')
	if len(data) > MaxTrustRoot {
		return nil, badTrustRoot(fmt.Errorf("it has %d bytes, more than %d", len(data), MaxTrustRoot))
	}
	return data, nil
}

// ParseTrustRoot reads a trust root file. Members that it does not know are
// refused, unlike anywhere else: a restriction that this device cannot read
// must not be dropped. Errors: TRUST.ROOT_MALFORMED, ALG.WEAK, ALG.UNSUPPORTED.
func ParseTrustRoot(data []byte) (*TrustRoot, error) {
	if len(data) > MaxTrustRoot {
		return nil, badTrustRoot(fmt.Errorf("it has %d bytes, more than %d", len(data), MaxTrustRoot))
	}
	m, err := parseJSON(data)
	if err != nil {
		return nil, badTrustRoot(err)
	}
	doc := members{m, "", &err}
	if format := doc.str("format"); err == nil && format != TrustRootFormat {
		return nil, badTrustRoot(fmt.Errorf("its format is %q, not %q", clip(format), TrustRootFormat))
	}
	doc.only("format", "version", "keys", "threshold", "emergencyThreshold", "log", "products")
	t := &TrustRoot{
		Version: doc.integer("version"), Threshold: doc.number("threshold"), EmergencyThreshold: doc.number("emergencyThreshold"),
	}
	for _, k := range doc.objects("keys", MaxSealKeys) {
		k.only("name", "environment", "spki")
		t.Keys = append(t.Keys, SealKey{k.str("name"), k.str("environment"), k.base64("spki")})
	}
	if doc.has("log") {
		l := doc.object("log")
		l.only("origin", "key", "required")
		t.Log = &TrustedLog{l.str("origin"), l.str("key"), l.boolean("required")}
	}
	if doc.has("products") {
		if t.Products = doc.strs("products", MaxProducts); err == nil && len(t.Products) == 0 {
			err = errors.New("products is empty; leave it out to allow any product")
		}
	}
	if err != nil {
		return nil, badTrustRoot(err)
	}
	if err := t.Validate(); err != nil {
		return nil, err
	}
	return t, nil
}

func badTrustRoot(err error) *Error {
	return refuse(CodeTrustRootMalformed, "the trust root cannot be used").seen("%v", err).
		next("export it again: firmseal trust export")
}

// Validate checks that t can be used as it is: keys that may seal, none twice,
// and thresholds that each of its environments can reach.
func (t *TrustRoot) Validate() error {
	_, err := t.sealKeys()
	return err
}

type trustedKey struct {
	SealKey
	id  string
	pub crypto.PublicKey
}

// sealKeys validates t and gives its keys by id.
func (t *TrustRoot) sealKeys() (map[string]trustedKey, error) {
	if t.Version < 1 || t.Version > maxInteger {
		return nil, badTrustRoot(fmt.Errorf("its version is %d; versions begin at 1", t.Version))
	}
	if len(t.Keys) == 0 || len(t.Keys) > MaxSealKeys {
		return nil, badTrustRoot(fmt.Errorf("it has %d seal keys, not 1 to %d", len(t.Keys), MaxSealKeys))
	}
	keys := make(map[string]trustedKey, len(t.Keys))
	count := map[string]int{}
	for _, k := range t.Keys {
		if !isName(k.Name) {
			return nil, badTrustRoot(fmt.Errorf("key name %q is not a name", clip(k.Name)))
		}
		if !isEnvironment(k.Environment) {
			return nil, badTrustRoot(fmt.Errorf("key %s is of environment %q", k.Name, clip(k.Environment)))
		}
		pub, err := parseSealKey(k.SPKI)
		if err != nil {
			return nil, err
		}
		id := k.ID()
		if other, ok := keys[id]; ok {
			return nil, badTrustRoot(fmt.Errorf("keys %s and %s are the same key", other.Name, k.Name))
		}
		keys[id] = trustedKey{k, id, pub}
		count[k.Environment]++
	}
	if t.Threshold < 1 || t.EmergencyThreshold < t.Threshold {
		// With a lower one for emergencies, every forger would cry emergency.
		return nil, badTrustRoot(fmt.Errorf("its threshold is %d and its emergency threshold %d; the first is at least 1, the second at least the first", t.Threshold, t.EmergencyThreshold))
	}
	for _, env := range []string{EnvironmentProduction, EnvironmentTest} {
		if n := count[env]; n > 0 && t.EmergencyThreshold > n {
			return nil, badTrustRoot(fmt.Errorf("its thresholds of %d and %d cannot be reached with %d keys of environment %s", t.Threshold, t.EmergencyThreshold, n, env))
		}
	}
	if t.Log != nil {
		if !isText(t.Log.Origin) {
			return nil, badTrustRoot(errors.New("the log's origin is empty, too long or has control characters"))
		}
		if _, err := parseLogKey(t.Log.Key); err != nil {
			return nil, err
		}
	}
	if len(t.Products) > MaxProducts {
		return nil, badTrustRoot(fmt.Errorf("it has %d products, more than %d", len(t.Products), MaxProducts))
	}
	for _, p := range t.Products {
		if !isName(p) {
			return nil, badTrustRoot(fmt.Errorf("product %q is not a name", clip(p)))
		}
	}
	return keys, nil
}
