package firmseal

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Every parser gets the files of the vectors as seeds, whole and cut.
func seeds(f *testing.F, part func(vector) []byte) {
	seen := map[string]bool{}
	for _, v := range vectors() {
		data := part(v)
		for _, d := range [][]byte{data, data[:len(data)/2]} {
			if !seen[string(d)] {
				seen[string(d)] = true
				f.Add(d)
			}
		}
	}
}

func payload(v vector) []byte {
	e, err := ParseEnvelope(v.Seal)
	if err != nil {
		return nil
	}
	return e.Payload
}

func entry(v vector) []byte {
	p, err := ParseProof(v.Proof)
	if err != nil {
		return nil
	}
	return p.Extra
}

// What was read can be written, and reads the same.
func FuzzEnvelope(f *testing.F) {
	seeds(f, func(v vector) []byte { return v.Seal })
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEnvelope(data)
		if err != nil {
			codeOf(t, err)
			return
		}
		again, err := ParseEnvelope(must(e.Marshal()))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(e, again); d != "" {
			t.Fatal(d)
		}
	})
}

func FuzzStatement(f *testing.F) {
	seeds(f, payload)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseStatement(data)
		if err != nil {
			codeOf(t, err)
			return
		}
		text, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseStatement(text)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(must(again.Marshal()), text) {
			t.Fatalf("%s became %s", text, must(again.Marshal()))
		}
	})
}

func FuzzTrustRoot(f *testing.F) {
	seeds(f, func(v vector) []byte { return v.TrustRoot })
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseTrustRoot(data)
		if err != nil {
			codeOf(t, err)
			return
		}
		text, err := r.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseTrustRoot(text)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(r, again); d != "" {
			t.Fatal(d)
		}
	})
}

// A proof has one text only.
func FuzzProof(f *testing.F) {
	seeds(f, func(v vector) []byte { return v.Proof })
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseProof(data)
		if err != nil {
			codeOf(t, err)
			return
		}
		if !bytes.Equal(p.Marshal(), data) {
			t.Fatalf("%q became %q", data, p.Marshal())
		}
		if _, err := p.Verify(p.Extra, testOrigin, logA.vkey); err != nil {
			codeOf(t, err)
		}
	})
}

// FuzzCheckpoint lets the log sign anything: not even a log can hang a device.
func FuzzCheckpoint(f *testing.F) {
	for _, v := range vectors() {
		if p, err := ParseProof(v.Proof); err == nil {
			text, _, _ := bytes.Cut(p.Checkpoint, []byte("\n\n"))
			f.Add(string(text), p.Index, len(p.Hashes), p.Extra)
		}
	}
	f.Add(testOrigin+"\n9223372036854775807\n"+tlog.Hash{}.String(), int64(1)<<62, 63, []byte("x"))
	f.Fuzz(func(t *testing.T, text string, index int64, hashes int, leaf []byte) {
		if hashes < 0 || hashes > MaxProofHashes {
			return
		}
		signed, err := note.Sign(&note.Note{Text: text + "\n"}, logA.signer)
		if err != nil {
			return
		}
		p := &Proof{Index: index, Hashes: make([]tlog.Hash, hashes), Checkpoint: signed}
		c, err := p.Verify(leaf, testOrigin, logA.vkey)
		if err != nil {
			codeOf(t, err)
		} else if p.Index >= c.Size {
			t.Fatalf("entry %d of %d is proven", p.Index, c.Size)
		}
	})
}

func FuzzLeaf(f *testing.F) {
	seeds(f, entry)
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := ParseLeaf(data)
		if err != nil {
			codeOf(t, err)
			return
		}
		again, err := ParseLeaf(must(json.Marshal(l)))
		if err != nil {
			if len(must(json.Marshal(l))) > MaxLeaf {
				return // its escapes are longer than the original's
			}
			t.Fatal(err)
		}
		if d := cmp.Diff(l, again); d != "" {
			t.Fatal(d)
		}
	})
}

// FuzzVerify: the trusted keys have sealed one release, so whatever is accepted
// is that one.
func FuzzVerify(f *testing.F) {
	good := newKit().done()
	root := must(ParseTrustRoot(good.rootFile))
	for _, v := range vectors() {
		f.Add(v.Seal, v.Proof, v.Image)
	}
	sealed := map[string]bool{}
	for _, v := range vectors() {
		sealed[hexSum(payload(v))] = true
	}
	f.Fuzz(func(t *testing.T, seal, proof, image []byte) {
		v, err := Verify(t.Context(), VerifyInput{TrustRoot: root, Seal: seal, Proof: proof, Image: bytes.NewReader(image)})
		if err != nil {
			codeOf(t, err)
			return
		}
		if !sealed[v.ID] {
			t.Fatalf("%s was never sealed", v.ID)
		}
		if hexSum(image) != v.Statement.Subjects[0].SHA256 || v.Leaf == nil || v.Statement.Release.Environment != EnvironmentProduction {
			t.Fatalf("accepted %+v", v)
		}
	})
}
