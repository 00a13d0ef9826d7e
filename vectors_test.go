package firmseal

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/seal-vectors again")

const vectorDir = "testdata/seal-vectors"

// vector is the form of a file in testdata/seal-vectors, described in
// docs/SPEC-SEAL.md.
type vector struct {
	Name      string       `json:"name"`
	About     string       `json:"about"`
	Code      Code         `json:"code"` // empty: accepted
	TrustRoot []byte       `json:"trustRoot"`
	Seal      []byte       `json:"seal"`
	Proof     []byte       `json:"proof,omitempty"`
	Image     []byte       `json:"image"`
	Announced int64        `json:"announced,omitempty"`
	Signature []byte       `json:"signature,omitempty"`
	Product   string       `json:"product,omitempty"`
	Hardware  string       `json:"hardwareId,omitempty"`
	Test      bool         `json:"unsafeTest,omitempty"`
	Device    *deviceState `json:"device,omitempty"`
}

type deviceState struct {
	SecurityCounter uint64 `json:"securityCounter"`
	Version         string `json:"version,omitempty"`
}

func (v *vector) verdict(t testing.TB) error {
	t.Helper()
	root, err := ParseTrustRoot(v.TrustRoot)
	if err != nil {
		return err
	}
	in := VerifyInput{
		TrustRoot: root, Seal: v.Seal, Proof: v.Proof, Image: bytes.NewReader(v.Image), ImageSize: v.Announced, Signature: v.Signature,
		Product: v.Product, HardwareID: v.Hardware, UnsafeTest: v.Test,
	}
	if v.Device != nil {
		in.Device = &DeviceState{v.Device.SecurityCounter, v.Device.Version}
	}
	_, err = Verify(t.Context(), in)
	return err
}

// vectors makes all of them, from nothing but this file.
func vectors() []vector {
	var out []vector
	add := func(name string, code Code, about string, k *kit, change ...func(*vector)) {
		v := vector{
			Name: name, About: about, Code: code, TrustRoot: k.rootFile, Seal: k.seal, Proof: k.proof, Image: k.image,
			Product: k.input.Product, Hardware: k.input.HardwareID, Test: k.input.UnsafeTest,
		}
		if d := k.input.Device; d != nil {
			v.Device = &deviceState{d.SecurityCounter, d.Version}
		}
		for _, c := range change {
			c(&v)
		}
		out = append(out, v)
	}
	// edit changes the statement's text between Marshal and the seal.
	edit := func(k *kit, old, new string) *kit {
		k.state()
		if !bytes.Contains(k.statement, []byte(old)) {
			panic("no " + old)
		}
		k.statement = bytes.Replace(k.statement, []byte(old), []byte(new), 1)
		return k.logged().sealBy(keyA).prove().trust()
	}
	editRoot := func(k *kit, old, new string) *kit {
		k.done()
		if !bytes.Contains(k.rootFile, []byte(old)) {
			panic("no " + old)
		}
		k.rootFile = bytes.Replace(k.rootFile, []byte(old), []byte(new), 1)
		return k
	}
	editSeal := func(k *kit, old, new string) *kit {
		k.done()
		if !bytes.Contains(k.seal, []byte(old)) {
			panic("no " + old)
		}
		k.seal = bytes.Replace(k.seal, []byte(old), []byte(new), 1)
		return k
	}

	// Accepted.
	add("good-ed25519", "", "one Ed25519 seal key, a proof, a device that may be updated", newKit().done())
	add("good-p256", "", "the seal key is ECDSA P-256", newKit().state().sealBy(keyB).prove().trust())
	add("good-p384", "", "the seal key is ECDSA P-384", newKit().state().sealBy(keyC).prove().trust())
	k := newKit()
	k.root.Threshold, k.root.EmergencyThreshold = 2, 3
	k.root.Keys = k.root.Keys[:3] // production only
	add("good-threshold", "", "two keys where two are asked for; a third signature is by a stranger and counts for nothing", k.state().sealBy(keyEve, keyB, keyA).prove().trust())
	k = newKit()
	signature := []byte("a detached signature file")
	k.subjects = append(k.subjects, Subject{"gateway-1.4.0.bin.sig", hexSum(signature)})
	k.release.Format = "raw"
	add("good-detached", "", "a detached signature file is the second subject", k.done(), func(v *vector) { v.Signature = signature })
	add("good-detached-image-only", "", "the signature file need not be at hand", k)
	k = newKit()
	k.release.Environment, k.input.UnsafeTest = EnvironmentTest, true
	add("good-test", "", "a test release where a test release is demanded", k.state().sealBy(keyTest).prove().trust())
	k = newKit()
	k.release.Emergency, k.release.Version, k.release.SecurityCounter, k.release.MinimumVersion = true, "1.2.9", 8, ""
	add("good-emergency", "", "an emergency release goes back in version with a higher counter", k.done())
	k = newKit()
	k.root.Log = nil
	k.done()
	k.proof = nil
	add("good-no-log", "", "the trust root knows no log", k)
	k = newKit()
	k.root.Log.Required = false
	k.done()
	k.proof = nil
	add("good-proof-optional", "", "the trust root knows a log and does not require a proof", k)
	add("good-unknown-members", "", "members that a later version may add are ignored in the statement and the predicate",
		edit(newKit(), `"predicate":{`, `"later":{"a":[1,2.5,null]},"predicate":{"later":true,`))
	add("good-unknown-envelope-member", "", "DSSE: members that are not known are ignored", editSeal(newKit(), `{"payloadType"`, `{"later":1,"payloadType"`))
	add("good-deep", "", "a member that is not known, nested as deep as is allowed", editSeal(newKit(), `{"payloadType"`, `{"x":`+strings.Repeat("[", 15)+strings.Repeat("]", 15)+`,"payloadType"`))
	k = newKit()
	k.index, k.size = 0, 1
	add("good-log-of-one", "", "a log of one entry has an empty inclusion proof", k.done())
	k = newKit()
	k.index, k.size = 255, 256
	add("good-log-of-256", "", "the last entry of a full tile", k.done())
	k = newKit()
	k.root.Products = []string{"gateway", "sensor"}
	k.input.Product, k.input.HardwareID, k.input.Device = "", "", nil
	add("good-looking-only", "", "nothing is demanded of the release", k.done())
	add("good-same-version", "", "the same version and counter may be installed again", newKit().done(), func(v *vector) { v.Device = &deviceState{7, "1.4.0+rebuilt"} })
	add("good-from-minimum", "", "a device at exactly the minimum version", newKit().done(), func(v *vector) { v.Device = &deviceState{0, "1.0.0"} })

	// The image.
	add("image-changed", CodeImageMismatch, "one bit of the image is flipped", newKit().done(), func(v *vector) {
		v.Image = bytes.Clone(v.Image)
		v.Image[9] ^= 1
	})
	add("image-truncated", CodeImageTruncated, "the last byte of the announced ones is missing", newKit().done(), func(v *vector) {
		v.Announced, v.Image = int64(len(v.Image)), v.Image[:len(v.Image)-1]
	})
	add("image-truncated-unannounced", CodeImageMismatch, "the last byte is missing and nobody said how many there are", newKit().done(), func(v *vector) { v.Image = v.Image[:len(v.Image)-1] })
	add("image-extended", CodeImageMismatch, "a byte more than announced", newKit().done(), func(v *vector) {
		v.Announced, v.Image = int64(len(v.Image)), append(bytes.Clone(v.Image), 0)
	})
	k = newKit()
	k.subjects = append(k.subjects, Subject{"gateway-1.4.0.bin.sig", hexSum(signature)})
	k.done()
	add("signature-changed", CodeImageSignature, "the detached signature file is another", k, func(v *vector) { v.Signature = []byte("another signature file") })
	add("signature-unasked", CodeImageSignature, "a signature file for a release that has none", newKit().done(), func(v *vector) { v.Signature = signature })
	add("signature-as-image", CodeImageMismatch, "the signature file in the place of the image", k, func(v *vector) { v.Image = signature })

	// The seal.
	add("seal-missing", CodeSealMissing, "no seal at all", newKit().done(), func(v *vector) { v.Seal = nil })
	k = newKit().done()
	e := must(ParseEnvelope(k.seal))
	e.Payload = bytes.Replace(e.Payload, []byte(`"version":"1.4.0"`), []byte(`"version":"1.4.1"`), 1)
	k.seal = must(e.Marshal())
	add("metadata-changed", CodeSealInvalid, "the version in the statement was changed after it was sealed", k)
	k = newKit().done()
	e = must(ParseEnvelope(k.seal))
	e.Signatures[0].Sig[5] ^= 0x40
	k.seal = must(e.Marshal())
	add("signature-bit", CodeSealInvalid, "one bit of the seal's signature is flipped", k)
	k = newKit().done()
	e = must(ParseEnvelope(k.seal))
	e.Signatures[0].KeyID = keyB.id()
	k.seal = must(e.Marshal())
	add("keyid-lies", CodeSealInvalid, "the signature is said to be by another trusted key", k)
	k = newKit().state()
	h := must(keyA.priv.Sign(nil, k.statement, crypto.Hash(0)))
	k.seal = must((&Envelope{PayloadType, k.statement, []Signature{{keyA.id(), h}}}).Marshal())
	add("signature-without-pae", CodeSealInvalid, "the payload was signed bare, without DSSE's encoding", k.prove().trust())
	add("stranger", CodeSealUntrusted, "sealed by a key that the trust root does not have", newKit().state().sealBy(keyEve).prove().trust())
	k = newKit()
	k.root.Threshold, k.root.EmergencyThreshold = 2, 2
	k.root.Keys = k.root.Keys[:3] // production only
	add("threshold", CodeSealThreshold, "one key where two are asked for", k.done())
	add("threshold-one-key-twice", CodeEnvelopeMalformed, "one key's signature twice", k, func(v *vector) {
		e := must(ParseEnvelope(v.Seal))
		e.Signatures = append(e.Signatures, e.Signatures[0])
		v.Seal = must(e.Marshal())
	})
	add("threshold-broken-second", CodeSealThreshold, "two are asked for, the second signature does not verify", k, func(v *vector) {
		e := must(ParseEnvelope(v.Seal))
		e.Signatures = append(e.Signatures, Signature{keyB.id(), []byte("not a signature")})
		v.Seal = must(e.Marshal())
	})
	k = newKit()
	k.root.Threshold, k.root.EmergencyThreshold = 1, 2
	k.root.Keys = k.root.Keys[:3] // production only
	k.release.Emergency, k.release.SecurityCounter = true, 8
	add("emergency-threshold", CodeSealThreshold, "an emergency release has its own threshold", k.done())
	k = newKit().done()
	k.seal = k.seal[:len(k.seal)-20]
	add("seal-truncated", CodeEnvelopeMalformed, "the seal was cut off", k)
	add("seal-trailing", CodeEnvelopeMalformed, "a second JSON value after the seal", editSeal(newKit(), `]}`, `]}{}`))
	add("seal-duplicate", CodeEnvelopeMalformed, "payloadType is there twice", editSeal(newKit(), `{"payloadType"`, `{"payloadType":"x","payloadType"`))
	add("seal-duplicate-escaped", CodeEnvelopeMalformed, "the same name, once with an escape", editSeal(newKit(), `{"payloadType"`, `{"p\u0061yloadType":"x","payloadType"`))
	add("seal-case", CodeEnvelopeMalformed, "Payload is not payload", editSeal(newKit(), `"payload":`, `"Payload":`))
	add("seal-urlsafe-base64", CodeEnvelopeMalformed, "the other alphabet of base64", newKit().done(), func(v *vector) {
		e := must(ParseEnvelope(v.Seal))
		std := base64.StdEncoding.EncodeToString(e.Signatures[0].Sig)
		v.Seal = bytes.Replace(v.Seal, []byte(std), []byte(strings.NewReplacer("+", "-", "/", "_").Replace(std)), 1)
		if !strings.ContainsAny(std, "+/") {
			panic("this signature needs neither + nor /")
		}
	})
	add("seal-no-signature", CodeEnvelopeMalformed, "an envelope without signatures", newKit().done(), func(v *vector) {
		e := must(ParseEnvelope(v.Seal))
		e.Signatures = nil
		v.Seal = must(e.Marshal())
	})
	add("seal-invalid-utf8", CodeEnvelopeMalformed, "a byte that is not UTF-8", editSeal(newKit(), `{"payloadType"`, "{\"\xff\":1,\"payloadType\""))
	add("seal-surrogate", CodeEnvelopeMalformed, "half of a surrogate pair", editSeal(newKit(), `{"payloadType"`, `{"\ud800":1,"payloadType"`))
	add("seal-deep", CodeEnvelopeMalformed, "nested 17 levels deep", editSeal(newKit(), `{"payloadType"`, `{"x":`+strings.Repeat("[", 16)+strings.Repeat("]", 16)+`,"payloadType"`))
	k = newKit()
	k.state()
	pae := (&Envelope{PayloadType: "text/plain", Payload: k.statement}).PAE()
	k.seal = must((&Envelope{"text/plain", k.statement, []Signature{{keyA.id(), must(keyA.sign(pae))}}}).Marshal())
	add("payload-type", CodeSealType, "another payload type, rightly signed", k.prove().trust())

	// The statement, rightly sealed.
	add("predicate-type", CodeSealType, "a later predicate type", edit(newKit(), "firmware-release/v1", "firmware-release/v2"))
	add("statement-duplicate", CodeEnvelopeMalformed, "securityCounter is there twice", edit(newKit(), `"securityCounter":7`, `"securityCounter":9,"securityCounter":7`))
	add("statement-duplicate-unknown", CodeEnvelopeMalformed, "a duplicate inside a member that is not known", edit(newKit(), `"predicate":{`, `"x":{"a":1,"a":2},"predicate":{`))
	add("statement-counter-float", CodeEnvelopeMalformed, "securityCounter is 7.0", edit(newKit(), `"securityCounter":7`, `"securityCounter":7.0`))
	add("statement-counter-large", CodeEnvelopeMalformed, "securityCounter is 2^53", edit(newKit(), `"securityCounter":7`, `"securityCounter":9007199254740992`))
	add("statement-counter-missing", CodeEnvelopeMalformed, "no securityCounter", edit(newKit(), `"securityCounter":7,`, ``))
	add("statement-emergency-null", CodeEnvelopeMalformed, "emergency is null", edit(newKit(), `"emergency":false`, `"emergency":null`))
	add("statement-version", CodeEnvelopeMalformed, "a version with a leading zero", edit(newKit(), `"version":"1.4.0"`, `"version":"1.04.0"`))
	add("statement-created", CodeEnvelopeMalformed, "created with an offset", edit(newKit(), `12:00:00Z`, `12:00:00+00:00`))
	add("statement-no-subject", CodeEnvelopeMalformed, "no file is named", edit(newKit(), `"subject":[{"name":"gateway-1.4.0.bin","digest":{"sha256":"`+hexSum(testImage)+`"}}]`, `"subject":[]`))
	add("statement-path", CodeEnvelopeMalformed, "a file name with a path", edit(newKit(), `"name":"gateway-1.4.0.bin"`, `"name":"../gateway-1.4.0.bin"`))
	add("statement-digest-upper", CodeEnvelopeMalformed, "a digest in upper case", edit(newKit(), hexSum(testImage), strings.ToUpper(hexSum(testImage))))
	add("statement-environment", CodeEnvelopeMalformed, "an environment that does not exist", edit(newKit(), `"environment":"production"`, `"environment":"staging"`))
	add("statement-hardware-twice", CodeEnvelopeMalformed, "a hardware id twice", edit(newKit(), `"gw-rev-b"`, `"gw-rev-a"`))

	// Environments.
	k = newKit()
	k.release.Environment = EnvironmentTest
	k.state().sealBy(keyTest).prove().trust()
	add("test-on-production", CodeEnvironment, "a test release where production is demanded", k)
	k = newKit().done()
	k.input.UnsafeTest = true
	add("production-on-test", CodeEnvironment, "a production release where a test release is demanded", k)
	add("test-key-for-production", CodeEnvironment, "a test key has sealed a release that calls itself production", newKit().state().sealBy(keyTest).prove().trust())
	k = newKit()
	k.root.Keys = []SealKey{keyA.trusted(), keyB.trusted(), keyTest.trusted(), newTestKey("p256", "bench-b", EnvironmentTest).trusted()}
	k.root.Threshold, k.root.EmergencyThreshold = 2, 2
	add("test-key-fills-up", CodeSealThreshold, "a test key does not help a production key over the threshold", k.state().sealBy(keyA, keyTest).prove().trust())

	// The log.
	k = newKit().done()
	k.proof = nil
	add("proof-missing", CodeProofMissing, "the trust root requires a proof", k)
	other := newKit()
	other.release.Version = "1.4.1"
	other.done()
	k = newKit().done()
	k.proof = other.proof
	add("proof-of-another", CodeProofOtherSeal, "the proof of another release", k)
	leafEdit := func(name, about string, change func(*Leaf)) {
		k := newKit().state()
		change(&k.leaf)
		add(name, CodeProofOtherSeal, about, k.sealBy(keyA).prove().trust())
	}
	leafEdit("leaf-failed", "the logged outcome is a failure", func(l *Leaf) { l.Result, l.Code = "failed", "SIGN.VERIFY_FAILED" })
	leafEdit("leaf-intent", "the entry is no outcome", func(l *Leaf) { l.Type = LeafIntent })
	leafEdit("leaf-output", "the logged output is another file", func(l *Leaf) { l.Output = hexSum(nil) })
	leafEdit("leaf-request", "the logged request is another", func(l *Leaf) { l.Request = "0195f0a2-0000-7000-8000-000000000000" })
	leafEdit("leaf-record", "the logged request has another digest", func(l *Leaf) { l.Record = hexSum(nil) })
	leafEdit("leaf-policy", "the logged policy is another", func(l *Leaf) { l.Policy = hexSum(nil) })
	leafEdit("leaf-unseen", "the log says that the bytes were not seen, the seal does not", func(l *Leaf) { l.Unseen = true })
	k = newKit().state()
	k.proof = k.log.prove(append([]byte(`{"statement":"`+hexSum(nil)+`",`), canonicalLeaf(k.leaf)[1:]...), 4, 7, testOrigin).Marshal()
	add("leaf-duplicate", CodeLeafMalformed, "the entry has its statement twice", k.sealBy(keyA).trust())
	proofEdit := func(name string, code Code, about string, change func(*Proof)) {
		k := newKit().done()
		p := must(ParseProof(k.proof))
		change(p)
		k.proof = p.Marshal()
		add(name, code, about, k)
	}
	proofEdit("proof-hash", CodeProofInvalid, "one bit of a hash is flipped", func(p *Proof) { p.Hashes[1][0] ^= 1 })
	proofEdit("proof-index", CodeProofInvalid, "another index", func(p *Proof) { p.Index-- })
	proofEdit("proof-index-outside", CodeProofInvalid, "an index that is not in the tree", func(p *Proof) { p.Index = 7 })
	proofEdit("proof-short", CodeProofInvalid, "a hash is missing", func(p *Proof) { p.Hashes = p.Hashes[:len(p.Hashes)-1] })
	proofEdit("proof-long", CodeProofInvalid, "a hash too many", func(p *Proof) { p.Hashes = append(p.Hashes, p.Hashes[0]) })
	proofEdit("proof-entry", CodeProofInvalid, "the entry was changed", func(p *Proof) {
		p.Extra = bytes.Replace(p.Extra, []byte(`"attempt":1`), []byte(`"attempt":2`), 1)
	})
	proofEdit("proof-no-entry", CodeProofMalformed, "the proof carries no entry", func(p *Proof) { p.Extra = nil })
	proofEdit("proof-64-hashes", CodeProofMalformed, "more hashes than any tree needs", func(p *Proof) {
		p.Hashes = slices.Repeat(p.Hashes[:1], 64)
	})
	proofEdit("checkpoint-changed", CodeCheckpointUntrusted, "the size in the checkpoint was changed", func(p *Proof) {
		p.Checkpoint = bytes.Replace(p.Checkpoint, []byte("\n7\n"), []byte("\n8\n"), 1)
	})
	k = newKit()
	k.log = newTestLog("mallory", testOrigin)
	add("checkpoint-other-key", CodeCheckpointUntrusted, "the same name, another log key", k.done())
	k = newKit()
	k.origin = "log.example/other"
	add("checkpoint-other-origin", CodeCheckpointUntrusted, "the log's key has signed a checkpoint of another origin", k.done())
	k = newKit().done()
	k.proof = bytes.Replace(k.proof, []byte("index 4"), []byte("index 04"), 1)
	add("proof-leading-zero", CodeProofMalformed, "index 04", k)
	k = newKit().done()
	k.proof = bytes.Replace(k.proof, []byte("\n"), []byte("\r\n"), 3)
	add("proof-crlf", CodeProofMalformed, "lines that end in CR LF", k)

	// The device.
	add("product", CodeProduct, "a release of another product", newKit().done(), func(v *vector) { v.Product = "sensor" })
	add("hardware", CodeHardware, "a hardware id that the release does not name", newKit().done(), func(v *vector) { v.Hardware = "gw-rev-c" })
	add("rollback", CodeRollback, "the counter is below the device's", newKit().done(), func(v *vector) { v.Device = &deviceState{8, "1.3.2"} })
	k = newKit()
	k.release.Emergency = true
	add("emergency-rollback", CodeRollback, "not even an emergency lowers the counter", k.done(), func(v *vector) { v.Device = &deviceState{8, "1.3.2"} })
	add("emergency-equal", CodeEmergencyCounter, "an emergency must raise the counter", k)
	add("version-order", CodeVersionOrder, "the version is below the device's", newKit().done(), func(v *vector) { v.Device = &deviceState{7, "1.4.1-rc.1"} })
	add("minimum-version", CodeVersionFloor, "the device is below the minimum version", newKit().done(), func(v *vector) { v.Device = &deviceState{7, "1.0.0-rc.1"} })
	add("version-unknown", CodeDeviceVersion, "there is a minimum version, and the device does not know its own", newKit().done(), func(v *vector) { v.Device = &deviceState{7, ""} })
	add("version-odd", CodeDeviceVersion, "the device's version cannot be compared", newKit().done(), func(v *vector) { v.Device = &deviceState{7, "v1.3"} })

	// The trust root.
	k = newKit()
	k.root.Products = []string{"sensor"}
	add("root-product", CodeProductUntrusted, "the trust root does not speak for the release's product", k.done())
	add("root-unknown-member", CodeTrustRootMalformed, "the trust root says something that this version cannot read", editRoot(newKit(), `"version":3`, `"revoked":[],"version":3`))
	add("root-duplicate", CodeTrustRootMalformed, "threshold is there twice", editRoot(newKit(), `"threshold":1`, `"threshold":2,"threshold":1`))
	add("root-threshold", CodeTrustRootMalformed, "more keys are asked for than there are test keys", editRoot(newKit(), `"emergencyThreshold":1`, `"emergencyThreshold":2`))
	add("root-emergency-lower", CodeTrustRootMalformed, "an emergency would need fewer keys", editRoot(newKit(), `"threshold":1`, `"threshold":2`))
	add("root-threshold-zero", CodeTrustRootMalformed, "no key is asked for", editRoot(newKit(), `"threshold":1`, `"threshold":0`))
	add("root-format", CodeTrustRootMalformed, "another format", editRoot(newKit(), TrustRootFormat, "firmseal-trustroot/v2"))
	add("root-version", CodeTrustRootMalformed, "version 0", editRoot(newKit(), `"version":3`, `"version":0`))
	b64 := base64.StdEncoding.EncodeToString
	add("root-key-twice", CodeTrustRootMalformed, "one key under two names", editRoot(newKit(), b64(keyB.spki), b64(keyA.spki)))
	add("root-rsa-weak", CodeWeakAlgorithm, "a seal key of RSA with 1024 bits", editRoot(newKit(), b64(keyB.spki), b64(rsaSPKI(1024))))
	p224 := must(ecdsa.ParseRawPrivateKey(elliptic.P224(), append(make([]byte, 27), 1)))
	add("root-p224", CodeWeakAlgorithm, "a seal key on a curve of 224 bits", editRoot(newKit(), b64(keyB.spki), b64(must(x509.MarshalPKIXPublicKey(p224.Public())))))
	add("root-rsa", CodeUnsupportedAlg, "a seal key of RSA with 3072 bits", editRoot(newKit(), b64(keyB.spki), b64(rsaSPKI(3072))))
	add("root-log-key", CodeTrustRootMalformed, "a log key whose hash is not its own", editRoot(newKit(), logA.vkey, strings.Replace(logA.vkey, logA.vkey[len(testOrigin)+1:len(testOrigin)+9], "00000000", 1)))
	return out
}

func TestVectors(t *testing.T) {
	t.Parallel()
	all := vectors()
	if *update {
		if err := os.RemoveAll(vectorDir); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(vectorDir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	for _, v := range all {
		file := filepath.Join(vectorDir, v.Name+".json")
		names = append(names, v.Name+".json")
		want := append(must(json.MarshalIndent(v, "", " ")), '\n')
		if *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			have, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(have, want) {
				t.Errorf("%s is not what this test makes; run it with -update, and see whether the difference was meant", file)
			}
			// The file decides, not the value it was made from.
			var v vector
			if err := json.Unmarshal(have, &v); err != nil {
				t.Fatal(err)
			}
			err = v.verdict(t)
			if got := codeOf(t, err); got != v.Code {
				t.Errorf("%s: %v, want %q", v.About, err, v.Code)
			}
			if again := v.verdict(t); fmt.Sprint(again) != fmt.Sprint(err) {
				t.Errorf("the same input, and now %v after %v", again, err)
			}
		})
	}
	entries, err := os.ReadDir(vectorDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(names, e.Name()) {
			t.Errorf("%s is made by nobody", e.Name())
		}
	}
	// Each code that Verify can give has a vector. The others cannot be one.
	covered := map[Code]bool{CodeEnvelopeTooLarge: true}
	for _, v := range all {
		covered[v.Code] = true
	}
	for _, c := range rootCodes(t) {
		if !covered[c] {
			t.Errorf("no vector has code %s", c)
		}
	}
}
