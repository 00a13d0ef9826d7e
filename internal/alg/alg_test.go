package alg_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/problem"
)

// No key below the floor is named, whatever else is right about it (A25).
func TestWeakKeysHaveNoType(t *testing.T) {
	t.Parallel()
	n := func(bits int) *big.Int {
		v := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		return v.Add(v, big.NewInt(1))
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dh, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		pub  crypto.PublicKey
		want alg.KeyType
		code problem.Code
	}{
		{"rsa 1024", &rsa.PublicKey{N: n(1024), E: 65537}, "", problem.AlgWeak},
		{"rsa 2047", &rsa.PublicKey{N: n(2047), E: 65537}, "", problem.AlgWeak},
		{"rsa 2048", &rsa.PublicKey{N: n(2048), E: 65537}, alg.RSA2048, ""},
		{"rsa 2048, exponent 3", &rsa.PublicKey{N: n(2048), E: 3}, "", problem.AlgWeak},
		{"rsa 2048, even exponent", &rsa.PublicKey{N: n(2048), E: 65538}, "", problem.AlgWeak},
		{"rsa 2056", &rsa.PublicKey{N: n(2056), E: 65537}, "", problem.AlgUnsupported},
		{"rsa 3072", &rsa.PublicKey{N: n(3072), E: 65537}, alg.RSA3072, ""},
		{"rsa 4096", &rsa.PublicKey{N: n(4096), E: 65537}, alg.RSA4096, ""},
		{"rsa 8192", &rsa.PublicKey{N: n(8192), E: 65537}, "", problem.AlgUnsupported},
		{"p224", &p224.PublicKey, "", problem.AlgUnsupported},
		{"p521", &p521.PublicKey, "", problem.AlgUnsupported},
		{"short ed25519", ed25519.PublicKey(make([]byte, 31)), "", problem.KeyMalformed},
		{"ecdh", dh.PublicKey(), "", problem.AlgUnsupported},
		{"nothing", nil, "", problem.AlgUnsupported},
	} {
		got, err := alg.TypeOf(c.pub)
		if got != c.want || (c.code == "") != (err == nil) || c.code != "" && !problem.Has(err, c.code) {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

type signer struct {
	key crypto.Signer
	typ alg.KeyType
}

func signers(t *testing.T) []signer {
	t.Helper()
	var out []signer
	add := func(typ alg.KeyType, k crypto.Signer, err error) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, signer{k, typ})
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	add(alg.P256, p256, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	add(alg.P384, p384, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	add(alg.Ed25519, ed, err)
	r2048, err := rsa.GenerateKey(rand.Reader, 2048)
	add(alg.RSA2048, r2048, err)
	r3072, err := rsa.GenerateKey(rand.Reader, 3072)
	add(alg.RSA3072, r3072, err)
	return out
}

// A signature verifies under its own scheme, its own key and its own input, and
// under no other scheme of the registry.
func TestVerifyIsForOneScheme(t *testing.T) {
	t.Parallel()
	all := signers(t)
	for _, s := range all {
		for _, id := range alg.For(s.typ) {
			spec, err := alg.Lookup(id)
			if err != nil {
				t.Fatal(err)
			}
			msg := []byte("firmware")
			input := msg
			opts := crypto.SignerOpts(spec.Hash)
			if spec.Kind == alg.Digest {
				h := spec.Hash.New()
				h.Write(msg)
				input = h.Sum(nil)
			}
			if spec.PSS {
				opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: spec.Hash}
			}
			sig, err := s.key.Sign(rand.Reader, input, opts)
			if err != nil {
				t.Fatalf("%s: %v", id, err)
			}
			if err := alg.Verify(id, s.key.Public(), input, sig); err != nil {
				t.Errorf("%s: %v", id, err)
			}
			changed := bytes.Clone(input)
			changed[0] ^= 1
			if alg.Verify(id, s.key.Public(), changed, sig) == nil {
				t.Errorf("%s accepts another input", id)
			}
			if alg.Verify(id, s.key.Public(), input, append(bytes.Clone(sig), 0)) == nil {
				t.Errorf("%s accepts a byte behind the signature", id)
			}
			if spec.Kind == alg.Digest && alg.Verify(id, s.key.Public(), input[:len(input)-1], sig) == nil {
				t.Errorf("%s accepts a short digest", id)
			}
			for _, other := range all {
				for _, oid := range alg.For(other.typ) {
					if (oid != id || other.typ != s.typ) && alg.Verify(oid, s.key.Public(), input, sig) == nil {
						t.Errorf("a signature of %s verifies as %s", id, oid)
					}
				}
				if other.typ != s.typ && alg.Verify(id, other.key.Public(), input, sig) == nil {
					t.Errorf("%s verifies with a %s key", id, other.typ)
				}
			}
			if spec.PSS { // the salt is part of the scheme
				long, err := rsa.SignPSS(rand.Reader, s.key.(*rsa.PrivateKey), spec.Hash, input, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto})
				if err != nil {
					t.Fatal(err)
				}
				if alg.Verify(id, s.key.Public(), input, long) == nil {
					t.Errorf("%s accepts a salt of another length", id)
				}
			}
		}
	}
	if alg.Verify("rot13", all[0].key.Public(), nil, nil) == nil {
		t.Error("an unknown scheme verifies")
	}
}

// Every key type has a scheme, and every scheme's key type is one of them.
func TestRegistryIsWhole(t *testing.T) {
	t.Parallel()
	for _, k := range alg.KeyTypes() {
		ids := alg.For(k)
		if len(ids) == 0 {
			t.Errorf("%s has no scheme", k)
		}
		for _, id := range ids {
			s, err := alg.Lookup(id)
			if err != nil || s.Key != k || (s.Kind == alg.Digest) != (s.Hash != 0) {
				t.Errorf("%s: %+v, %v", id, s, err)
			}
		}
	}
}

func TestParseSPKI(t *testing.T) {
	t.Parallel()
	for _, s := range signers(t) {
		der, err := x509.MarshalPKIXPublicKey(s.key.Public())
		if err != nil {
			t.Fatal(err)
		}
		if _, typ, err := alg.ParseSPKI(der); err != nil || typ != s.typ {
			t.Errorf("%s: %s, %v", s.typ, typ, err)
		}
		for _, bad := range [][]byte{nil, der[:len(der)-1], append(bytes.Clone(der), 0)} {
			if _, _, err := alg.ParseSPKI(bad); !problem.Has(err, problem.KeyMalformed) {
				t.Errorf("%s with %d of %d bytes: %v", s.typ, len(bad), len(der), err)
			}
		}
	}
}

// The two forms of an ECDSA signature are one signature.
func TestECDSAForms(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{32, 48}).Draw(t, "size")
		raw := rapid.SliceOfN(rapid.Byte(), 2*size, 2*size).Draw(t, "raw")
		// Short coordinates are the ones that go wrong.
		for i := range rapid.IntRange(0, size-1).Draw(t, "leading zeros") {
			raw[i] = 0
		}
		zero := new(big.Int).SetBytes(raw[:size]).Sign() == 0 || new(big.Int).SetBytes(raw[size:]).Sign() == 0
		der, err := alg.DERFromRaw(raw)
		if zero {
			if err == nil {
				t.Fatal("a zero coordinate has a DER form")
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		back, err := alg.RawECDSA(der, size)
		if err != nil || !bytes.Equal(back, raw) {
			t.Fatalf("%x became %x: %v", raw, back, err)
		}
		if _, err := alg.RawECDSA(der, size-1); err == nil && (raw[0] != 0 || raw[size] != 0) {
			t.Fatal("a coordinate was cut")
		}
	})
	negative, err := asn1.Marshal(struct{ R, S *big.Int }{big.NewInt(-1), big.NewInt(1)})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, {0x30}, {0x30, 0x00}, negative} {
		if _, err := alg.RawECDSA(bad, 32); !problem.Has(err, problem.SigEncoding) {
			t.Errorf("%x: %v", bad, err)
		}
	}
	for _, bad := range [][]byte{nil, {1}, make([]byte, 64)} {
		if _, err := alg.DERFromRaw(bad); !problem.Has(err, problem.SigEncoding) {
			t.Errorf("%x: %v", bad, err)
		}
	}
}

func FuzzRawECDSA(f *testing.F) {
	f.Add([]byte{0x30, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x02})
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, der []byte) {
		raw, err := alg.RawECDSA(der, 32)
		if err != nil {
			return
		}
		again, err := alg.DERFromRaw(raw)
		if err != nil || !bytes.Equal(again, der) {
			t.Fatalf("%x has a second DER form %x: %v", der, again, err)
		}
	})
}
