package imagetest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"sync"
	"testing"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
)

// key is a key of a case, with the power to sign as no backend would: without
// a ticket.
type key struct {
	Key
	signer  crypto.Signer
	spki    []byte
	foreign *key // of the same type
}

// foreignKeys is where the indices of foreign keys begin.
const foreignKeys = 1000

// pool keeps the keys that were made, by type and index: an RSA-4096 key takes
// seconds. It is filled on demand and never changed otherwise.
type pool struct {
	mu   sync.Mutex
	keys map[string]crypto.Signer
}

var made pool

func (p *pool) get(t alg.KeyType, i int) (crypto.Signer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := fmt.Sprintf("%s/%d", t, i)
	if s := p.keys[id]; s != nil {
		return s, nil
	}
	s, err := generate(t)
	if err != nil {
		return nil, err
	}
	if p.keys == nil {
		p.keys = map[string]crypto.Signer{}
	}
	p.keys[id] = s
	return s, nil
}

func generate(t alg.KeyType) (crypto.Signer, error) {
	switch t {
	case alg.P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case alg.P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case alg.RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case alg.RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case alg.RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	case alg.Ed25519:
		_, k, err := ed25519.GenerateKey(rand.Reader)
		return k, err
	}
	return nil, fmt.Errorf("imagetest cannot make a %q key", t)
}

func newKey(tb testing.TB, k Key, i int) *key {
	tb.Helper()
	make := func(i int) *key {
		s, err := made.get(k.Type, i)
		if err != nil {
			tb.Fatal(err)
		}
		spki, err := x509.MarshalPKIXPublicKey(s.Public())
		if err != nil {
			tb.Fatal(err)
		}
		return &key{Key: k, signer: s, spki: spki}
	}
	out := make(i)
	out.foreign = make(i%foreignKeys + 2*foreignKeys)
	return out
}

// TestKey is a key that the suite made, for a format's own tests: the index
// tells keys of one type apart.
func TestKey(tb testing.TB, t alg.KeyType, index int) (crypto.Signer, image.PublicMaterial) {
	tb.Helper()
	k := newKey(tb, Key{Role: "image", Name: fmt.Sprintf("imagetest-%d", index), Type: t}, index)
	return k.signer, image.PublicMaterial{Role: k.Role, Name: k.Name, SPKI: k.spki}
}

// Sign makes the canonical signature that r asks for.
func Sign(s crypto.Signer, r image.SignRequest) ([]byte, error) {
	spec, err := alg.Lookup(r.Alg)
	if err != nil {
		return nil, err
	}
	if spec.PSS {
		return s.Sign(rand.Reader, r.Input, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: spec.Hash})
	}
	return s.Sign(rand.Reader, r.Input, spec.Hash)
}

// answer signs r, spoilt by seed where there is one.
func (k *key) answer(r image.SignRequest, seed *Seed) ([]byte, error) {
	asked := r
	if seed != nil && seed.Request != nil {
		r.Input = append([]byte(nil), r.Input...)
		r = seed.Request(r)
	}
	var sig []byte
	var err error
	if seed != nil && seed.foreign {
		sig, err = Sign(k.foreign.signer, r)
	} else {
		sig, err = Sign(k.signer, r)
	}
	if err != nil {
		return nil, fmt.Errorf("signing slot %q: %w", asked.Slot, err)
	}
	if seed != nil && seed.pssSalt != nil {
		rk, ok := k.signer.(*rsa.PrivateKey)
		spec, err := alg.Lookup(r.Alg)
		if !ok || err != nil {
			return nil, fmt.Errorf("a salt for a %s key", k.Type)
		}
		if sig, err = rsa.SignPSS(rand.Reader, rk, spec.Hash, r.Input, &rsa.PSSOptions{SaltLength: *seed.pssSalt, Hash: spec.Hash}); err != nil {
			return nil, err
		}
	}
	if seed != nil && seed.Signature != nil {
		sig = seed.Signature(asked, sig)
	}
	return sig, nil
}
