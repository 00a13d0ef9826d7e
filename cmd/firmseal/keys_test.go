package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"testing"

	"github.com/firmseal/firmseal/internal/alg"
)

// publicKey makes a public key of a type, for exports. An RSA modulus is a
// random odd number of the size: nobody signs with it, and making a real one of
// 4096 bits takes seconds.
func publicKey(t *testing.T, kt alg.KeyType) []byte {
	t.Helper()
	var pub crypto.PublicKey
	modulus := func(bits int) *rsa.PublicKey {
		b := make([]byte, bits/8)
		_, _ = rand.Read(b) // crypto/rand never fails
		b[0] |= 0x80
		b[len(b)-1] |= 1
		return &rsa.PublicKey{N: new(big.Int).SetBytes(b), E: 65537}
	}
	curve := func(c elliptic.Curve) *ecdsa.PublicKey {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return &k.PublicKey
	}
	switch kt {
	case alg.P256:
		pub = curve(elliptic.P256())
	case alg.P384:
		pub = curve(elliptic.P384())
	case alg.RSA2048:
		pub = modulus(2048)
	case alg.RSA3072:
		pub = modulus(3072)
	case alg.RSA4096:
		pub = modulus(4096)
	case alg.Ed25519:
		k, _, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		pub = k
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
