package firmseal

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/gowebpki/jcs"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// The keys below are made from their names, so that anybody can make them
// again. They seal nothing but the vectors in testdata.

type testKey struct {
	name string
	env  string
	spki []byte
	priv crypto.Signer
}

func (k testKey) id() string       { return KeyID(k.spki) }
func (k testKey) trusted() SealKey { return SealKey{k.name, k.env, k.spki} }
func (k testKey) sign(pae []byte) ([]byte, error) {
	opts := crypto.SHA256
	switch p := k.priv.Public().(type) {
	case ed25519.PublicKey:
		return k.priv.Sign(nil, pae, crypto.Hash(0))
	case *ecdsa.PublicKey:
		if p.Curve == elliptic.P384() {
			opts = crypto.SHA384
		}
	}
	h := opts.New()
	h.Write(pae)
	return k.priv.Sign(nil, h.Sum(nil), opts) // without a source of randomness: RFC 6979
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newTestKey(kind, name, env string) testKey {
	seed := sha256.Sum256([]byte("firmseal seal vectors: " + name))
	var priv crypto.Signer
	switch kind {
	case "ed25519":
		priv = ed25519.NewKeyFromSeed(seed[:])
	case "p256":
		priv = must(ecdsa.ParseRawPrivateKey(elliptic.P256(), seed[:]))
	case "p384":
		priv = must(ecdsa.ParseRawPrivateKey(elliptic.P384(), append(make([]byte, 16), seed[:]...)))
	default:
		panic(kind)
	}
	return testKey{name, env, must(x509.MarshalPKIXPublicKey(priv.Public())), priv}
}

var (
	keyA    = newTestKey("ed25519", "release-a", EnvironmentProduction)
	keyB    = newTestKey("p256", "release-b", EnvironmentProduction)
	keyC    = newTestKey("p384", "release-c", EnvironmentProduction)
	keyTest = newTestKey("ed25519", "bench", EnvironmentTest)
	keyEve  = newTestKey("ed25519", "eve", EnvironmentProduction)
)

const testOrigin = "log.example/firmseal"

// testLog is a log of four entries, and what it says about a fifth.
type testLog struct {
	signer note.Signer
	vkey   string
}

func newTestLog(name, origin string) testLog {
	seed := sha256.Sum256([]byte("firmseal seal vectors: log " + name))
	priv := ed25519.NewKeyFromSeed(seed[:])
	vkey := must(note.NewEd25519VerifierKey(origin, priv.Public().(ed25519.PublicKey)))
	hash := vkey[len(origin)+1 : len(origin)+9]
	skey := fmt.Sprintf("PRIVATE+KEY+%s+%s+%s", origin, hash, base64.StdEncoding.EncodeToString(append([]byte{1}, seed[:]...)))
	return testLog{must(note.NewSigner(skey)), vkey}
}

var logA = newTestLog("a", testOrigin)

// prove puts entry at index of a log with size entries, and gives the proof.
func (l testLog) prove(entry []byte, index, size int64, origin string) *Proof {
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(at))
		for i, x := range at {
			out[i] = hashes[x]
		}
		return out, nil
	})
	for i := range size {
		data := fmt.Appendf(nil, `{"actor":"system","time":%d,"type":"log.genesis","v":1}`, i)
		if i == index {
			data = entry
		}
		hashes = append(hashes, must(tlog.StoredHashes(i, data, reader))...)
	}
	root := must(tlog.TreeHash(size, reader))
	p := &Proof{Extra: entry, Index: index, Hashes: must(tlog.ProveRecord(size, index, reader))}
	p.Checkpoint = l.sign(fmt.Sprintf("%s\n%d\n%s\n", origin, size, root))
	return p
}

func (l testLog) sign(text string) []byte { return must(note.Sign(&note.Note{Text: text}, l.signer)) }

func canonicalLeaf(l Leaf) []byte { return must(jcs.Transform(must(json.Marshal(l)))) }

var testImage = []byte("not a real image, but bytes of one: \x00\x01\x02\x03\xfe\xff")

func testRelease() Release {
	return Release{
		Product: "gateway", HardwareIDs: []string{"gw-rev-a", "gw-rev-b"}, Version: "1.4.0", SecurityCounter: 7, MinimumVersion: "1.0.0",
		Dependencies: []Dependency{{"modem", "3.1.0"}}, Format: "mcuboot", Environment: EnvironmentProduction,
		Created: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Request: RequestRef{"0195f0a2-7d5e-7c3a-9a51-2f6f0b1d4c11", hexSum([]byte("request"))},
		Requester: "token:ci", SignedWith: []string{hexSum([]byte("firmware key"))}, Policy: hexSum([]byte("policy")),
		BuildID: "build-1187", Metadata: map[string]string{"source_commit": "4f1d2c9a"},
	}
}

// kit is everything that a device has for one release. Its parts can be changed
// between the making of one and of the next.
type kit struct {
	root      TrustRoot
	release   Release
	subjects  []Subject
	statement []byte
	leaf      Leaf
	index     int64
	size      int64
	log       testLog
	origin    string // of the checkpoint
	seal      []byte
	proof     []byte
	input     VerifyInput // without trust root, seal, proof and image
	rootFile  []byte
	image     []byte
}

func newKit() *kit {
	return &kit{
		root: TrustRoot{
			Version: 3, Keys: []SealKey{keyA.trusted(), keyB.trusted(), keyC.trusted(), keyTest.trusted()}, Threshold: 1, EmergencyThreshold: 1,
			Log: &TrustedLog{testOrigin, logA.vkey, true},
		},
		release: testRelease(), image: testImage, subjects: []Subject{{"gateway-1.4.0.bin", hexSum(testImage)}},
		index: 4, size: 7, log: logA, origin: testOrigin,
		input: VerifyInput{Product: "gateway", HardwareID: "gw-rev-b", Device: &DeviceState{SecurityCounter: 7, Version: "1.3.2"}},
	}
}

// state makes the statement and the leaf of the release.
func (k *kit) state() *kit {
	k.statement = must((&Statement{k.subjects, k.release}).Marshal())
	return k.logged()
}

func (k *kit) logged() *kit {
	k.leaf = Leaf{
		V: 1, Type: LeafOutcome, Time: 1772366400000000, Actor: "system", Request: k.release.Request.ID, Record: k.release.Request.SHA256,
		Policy: k.release.Policy, Attempt: 1, Input: hexSum([]byte("unsigned image")), Output: k.subjects[0].SHA256,
		Statement: hexSum(k.statement), SealKey: keyA.id(), Result: "sealed", Unseen: k.release.BytesUnseen,
	}
	if len(k.subjects) == 2 {
		k.leaf.Input, k.leaf.Output = k.subjects[0].SHA256, k.subjects[1].SHA256
	}
	return k
}

func (k *kit) sealBy(keys ...testKey) *kit {
	e := &Envelope{PayloadType: PayloadType, Payload: k.statement}
	for _, key := range keys {
		if err := e.Sign(key.spki, key.sign); err != nil {
			panic(err)
		}
	}
	k.seal = must(e.Marshal())
	return k
}

func (k *kit) prove() *kit {
	k.proof = k.log.prove(canonicalLeaf(k.leaf), k.index, k.size, k.origin).Marshal()
	return k
}

func (k *kit) trust() *kit {
	k.rootFile = must(k.root.Marshal())
	return k
}

// done is the whole way for a release that nobody has tampered with.
func (k *kit) done() *kit { return k.state().sealBy(keyA).prove().trust() }

// codeOf is "" for no error, and fails for an error that is no refusal.
func codeOf(t testing.TB, err error) Code {
	t.Helper()
	if err == nil {
		return ""
	}
	e, ok := err.(*Error)
	if !ok {
		t.Fatalf("%v (%T) is no *Error", err, err)
	}
	if e.What == "" || e.Next == "" && e.Code != CodeUnsupportedAlg {
		t.Errorf("%s says what %q and next %q", e.Code, e.What, e.Next)
	}
	return e.Code
}

// rsaSPKI is the encoding of a modulus that nobody can use, and nobody needs to.
func rsaSPKI(bits int) []byte {
	n := new(big.Int).SetBit(big.NewInt(1), bits-1, 1)
	return must(x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n, E: 65537}))
}
