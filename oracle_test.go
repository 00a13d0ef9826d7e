package firmseal

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// dsseKey lets go-securesystemslib use one of our keys, in both directions. The
// signature schemes are the standard library's; what is compared is the
// envelope, its encoding and the counting of keys.
type dsseKey struct{ testKey }

func (k dsseKey) KeyID() (string, error)                             { return k.id(), nil }
func (k dsseKey) Public() crypto.PublicKey                           { return k.priv.Public() }
func (k dsseKey) Sign(_ context.Context, pae []byte) ([]byte, error) { return k.sign(pae) }
func (k dsseKey) Verify(_ context.Context, pae, sig []byte) error {
	if !verifySignature(k.priv.Public(), pae, sig) {
		return errors.New("no")
	}
	return nil
}

func TestEnvelopeAgreesWithSecureSystemsLib(t *testing.T) {
	t.Parallel()
	payload := newKit().state().statement

	// Theirs, read by us.
	signer := must(dsse.NewEnvelopeSigner(dsseKey{keyA}, dsseKey{keyB}, dsseKey{keyC}))
	theirs := must(signer.SignPayload(t.Context(), PayloadType, payload))
	e, err := ParseEnvelope(must(json.Marshal(theirs)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(e.PAE(), dsse.PAE(PayloadType, payload)) {
		t.Error("the pre-authentication encodings differ")
	}
	k := newKit()
	k.root.Keys = k.root.Keys[:3]
	k.root.Threshold, k.root.EmergencyThreshold, k.root.Log = 3, 3, nil
	v, err := VerifySeal(VerifyInput{TrustRoot: &k.root, Seal: must(json.Marshal(theirs))})
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Signers) != 3 || v.ID != hexSum(payload) {
		t.Errorf("%d signers of %s", len(v.Signers), v.ID)
	}

	// Ours, read by them, at each threshold.
	var ours dsse.Envelope
	if err := json.Unmarshal(newKit().state().sealBy(keyB, keyEve, keyC).seal, &ours); err != nil {
		t.Fatal(err)
	}
	for threshold, ok := range map[int]bool{1: true, 2: true, 3: false} {
		verifier := must(dsse.NewMultiEnvelopeVerifier(threshold, dsseKey{keyA}, dsseKey{keyB}, dsseKey{keyC}))
		_, err := verifier.Verify(t.Context(), &ours)
		k.root.Threshold, k.root.EmergencyThreshold = threshold, threshold
		_, mine := VerifySeal(VerifyInput{TrustRoot: &k.root, Seal: must(json.Marshal(ours))})
		if (err == nil) != ok || (mine == nil) != ok {
			t.Errorf("threshold %d: they say %v, we say %v", threshold, err, mine)
		}
	}
}

func TestPAEIsTheSpecificationsExample(t *testing.T) {
	t.Parallel()
	// https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
	got := (&Envelope{PayloadType: "http://example.com/HelloWorld", Payload: []byte("hello world")}).PAE()
	if want := "DSSEv1 29 http://example.com/HelloWorld 11 hello world"; string(got) != want {
		t.Errorf("%q", got)
	}
}

func TestProofAgreesWithTransparencyDev(t *testing.T) {
	t.Parallel()
	verifier := must(note.NewVerifier(logA.vkey))
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.Int64Range(1, 300).Draw(rt, "size")
		index := rapid.Int64Range(0, size-1).Draw(rt, "index")
		entry := rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(rt, "entry")
		p := logA.prove(entry, index, size, testOrigin)

		var theirs proof.TLogProof
		if err := theirs.Unmarshal(p.Marshal()); err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(theirs.Marshal(), p.Marshal()) {
			rt.Fatalf("they write\n%s\nand we write\n%s", theirs.Marshal(), p.Marshal())
		}
		again, err := ParseProof(theirs.Marshal())
		if err != nil {
			rt.Fatal(err)
		}
		if d := cmp.Diff(p, again); d != "" && !(len(p.Hashes) == 0 && len(again.Hashes) == 0) {
			rt.Fatal(d)
		}
		c, err := again.Verify(entry, testOrigin, logA.vkey)
		if err != nil {
			rt.Fatal(err)
		}
		want, _, _, err := log.ParseCheckpoint(p.Checkpoint, testOrigin, verifier)
		if err != nil {
			rt.Fatal(err)
		}
		if uint64(c.Size) != want.Size || !bytes.Equal(c.Root[:], want.Hash) || c.Origin != want.Origin {
			rt.Fatalf("they read %v, we %v", want, c)
		}

		// Nothing else is proven by it: not another entry, index or tree.
		flipped := bytes.Clone(entry)
		flipped[rapid.IntRange(0, len(entry)-1).Draw(rt, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
		if _, err := again.Verify(flipped, testOrigin, logA.vkey); codeOf(t, err) != CodeProofInvalid {
			rt.Fatalf("another entry: %v", err)
		}
		for range 3 {
			moved := *again
			moved.Index = rapid.Int64Range(0, 2*size).Draw(rt, "moved")
			if _, err := moved.Verify(entry, testOrigin, logA.vkey); moved.Index != index && codeOf(t, err) != CodeProofInvalid {
				rt.Fatalf("index %d instead of %d: %v", moved.Index, index, err)
			}
		}
	})
}

func TestCheckpointSizesThatOverflowAreRefused(t *testing.T) {
	t.Parallel()
	// sumdb/tlog loops for ever on a tree near 2^63 entries.
	for _, size := range []string{"9007199254740992", "9223372036854775807", "18446744073709551615", "-1", "007", "1e3", ""} {
		p := &Proof{Index: 0, Checkpoint: logA.sign(testOrigin + "\n" + size + "\n" + tlog.Hash{}.String() + "\n")}
		if _, err := p.Verify([]byte("x"), testOrigin, logA.vkey); codeOf(t, err) != CodeCheckpointUntrusted {
			t.Errorf("size %q: %v", size, err)
		}
	}
}

func TestCheckpointWithCosignaturesAndExtensions(t *testing.T) {
	t.Parallel()
	entry := canonicalLeaf(newKit().state().leaf)
	p := logA.prove(entry, 4, 7, testOrigin)
	root := must(p.Verify(entry, testOrigin, logA.vkey)).Root
	text := testOrigin + "\n7\n" + root.String() + "\nan extension line\n"
	witness := newTestLog("witness", "witness.example")
	p.Checkpoint = must(note.Sign(&note.Note{Text: text}, witness.signer, logA.signer))
	if _, err := p.Verify(entry, testOrigin, logA.vkey); err != nil {
		t.Error(err)
	}
	p.Checkpoint = must(note.Sign(&note.Note{Text: text}, witness.signer))
	if _, err := p.Verify(entry, testOrigin, logA.vkey); codeOf(t, err) != CodeCheckpointUntrusted || !strings.Contains(err.Error(), "no signature by "+testOrigin) {
		t.Errorf("a witness alone: %v", err)
	}
}
