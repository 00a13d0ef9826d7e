package fit_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"sync"
	"testing"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit"
)

// key is a test's signing key.
type key struct {
	crypto.Signer
	name string
	spki []byte
}

func newKey(t testing.TB, name string, kind alg.KeyType) key {
	t.Helper()
	var s crypto.Signer
	var err error
	switch kind {
	case alg.P256:
		s, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case alg.P384:
		s, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case alg.Ed25519:
		_, s, err = ed25519.GenerateKey(rand.Reader)
	case alg.RSA2048:
		s, err = rsa.GenerateKey(rand.Reader, 2048)
	case alg.RSA3072:
		s, err = rsa.GenerateKey(rand.Reader, 3072)
	case alg.RSA4096:
		s, err = rsa.GenerateKey(rand.Reader, 4096)
	}
	if err != nil {
		t.Fatal(err)
	}
	return wrap(t, name, s)
}

func wrap(t testing.TB, name string, s crypto.Signer) key {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key{Signer: s, name: name, spki: der}
}

var keyOnce = struct {
	sync.Mutex
	m map[string]key
}{m: map[string]key{}}

// shared gives one key of a name and type to all tests: making RSA keys is slow.
func shared(t testing.TB, name string, kind alg.KeyType) key {
	keyOnce.Lock()
	defer keyOnce.Unlock()
	id := name + string(kind)
	if _, ok := keyOnce.m[id]; !ok {
		keyOnce.m[id] = newKey(t, name, kind)
	}
	return keyOnce.m[id]
}

func (k key) material(id alg.ID) image.PublicMaterial {
	return image.PublicMaterial{Role: "image", Name: k.name, SPKI: k.spki, Alg: id}
}

func (k key) anchor() image.TrustedKey { return image.TrustedKey{Name: k.name, SPKI: k.spki} }

func trust(keys ...key) image.Trust {
	var t image.Trust
	for _, k := range keys {
		t.Keys = append(t.Keys, k.anchor())
	}
	return t
}

// answer signs a request with the key that it names.
func answer(t testing.TB, r image.SignRequest, keys ...key) image.Signature {
	t.Helper()
	spec, err := alg.Lookup(r.Alg)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if alg.KeyID(k.spki) != r.Key {
			continue
		}
		var o crypto.SignerOpts = spec.Hash
		if spec.PSS {
			o = &rsa.PSSOptions{Hash: spec.Hash, SaltLength: rsa.PSSSaltLengthEqualsHash}
		}
		v, err := k.Sign(rand.Reader, r.Input, o)
		if err != nil {
			t.Fatal(err)
		}
		return image.Signature{Slot: r.Slot, Value: v}
	}
	t.Fatalf("no key %s for slot %s", r.Key, r.Slot)
	return image.Signature{}
}

func options(t testing.TB, o any) image.Options {
	t.Helper()
	if o == nil {
		return nil
	}
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sign signs src with all keys in their default or the given scheme.
func sign(t testing.TB, src []byte, o fit.PlanOptions, id alg.ID, keys ...key) []byte {
	t.Helper()
	out, err := trySign(t, src, o, id, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func trySign(t testing.TB, src []byte, o fit.PlanOptions, id alg.ID, keys ...key) ([]byte, error) {
	t.Helper()
	var pub []image.PublicMaterial
	for _, k := range keys {
		pub = append(pub, k.material(id))
	}
	s, err := fit.New().Plan(t.Context(), image.Bytes(src), options(t, o), pub)
	if err != nil {
		return nil, err
	}
	reqs, _, err := s.Next(t.Context(), nil)
	if err != nil {
		return nil, err
	}
	var sigs []image.Signature
	for _, r := range reqs {
		sigs = append(sigs, answer(t, r, keys...))
	}
	if _, done, err := s.Next(t.Context(), sigs); err != nil || !done {
		t.Fatalf("the second round: done %v, %v", done, err)
	}
	var b bytes.Buffer
	r, err := s.Embed(t.Context(), &b)
	if err != nil {
		return nil, err
	}
	if r.Size != int64(b.Len()) {
		t.Fatalf("the receipt says %d bytes, written were %d", r.Size, b.Len())
	}
	return b.Bytes(), nil
}

func verify(t testing.TB, src []byte, tr image.Trust, p image.Profile) *image.Verdict {
	t.Helper()
	v, err := fit.New().Verify(t.Context(), image.Bytes(src), tr, p)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
