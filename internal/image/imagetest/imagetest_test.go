package imagetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// tiny is a format for this test: payload, then a footer.
//
//	payload
//	"TN" | count (1) | count × (length (2, big-endian) | signature) | payload length (8) | "YFIN"
//
// The signed digest is over the payload, its length and the index of the
// signature. There is a round for each key. bug names the one thing that it
// does wrong; empty: nothing, and it passes the suite.
type tiny struct{ bug string }

const (
	tinyMagic = "TN"
	tinyEnd   = "YFIN"
	tinyMax   = 1024
)

func (tiny) Name() string { return "tiny" }

func (f tiny) Detect(r io.ReaderAt, size int64) image.Score {
	b := make([]byte, 4)
	if size < 16 {
		return image.No
	}
	n, _ := r.ReadAt(b, size-4)
	if f.bug == "detect" || n < 4 || string(b) != tinyEnd {
		return image.No
	}
	return image.Likely
}

type tinyFooter struct {
	off  int64
	sigs []image.Range
	data [][]byte
}

// footer reads the end of src. A fault is a finding with its bytes.
func (f tiny) footer(src image.Source) (*tinyFooter, *image.Finding, error) {
	size := src.Size()
	fault := func(off, n int64, code problem.Code, format string, a ...any) (*tinyFooter, *image.Finding, error) {
		g := &image.Finding{Stage: image.StageContainer, Severity: image.Fatal, Code: code, What: fmt.Sprintf(format, a...), Range: &image.Range{Off: off, Len: n}}
		switch f.bug {
		case "no range":
			g.Range = nil
		case "range outside":
			g.Range = &image.Range{Off: size, Len: 1}
		case "no code":
			g.Code = ""
		case "no stage":
			g.Stage = "somewhere"
		}
		return nil, g, nil
	}
	if size < 15 {
		return fault(0, size, problem.SigMissing, "too short")
	}
	n := min(size, tinyMax)
	b := make([]byte, n)
	if k, err := src.ReadAt(b, size-n); k < len(b) {
		return nil, nil, err
	}
	if f.bug == "panic" && string(b[n-4:n-1]) == tinyEnd[:3] && b[n-1] != tinyEnd[3] {
		panic("tiny")
	}
	if string(b[n-4:]) != tinyEnd {
		return fault(size-4, 4, problem.SigMissing, "no end mark")
	}
	v := binary.BigEndian.Uint64(b[n-12:])
	if f.bug == "alloc" {
		sink = make([]byte, min(v, 64<<20))
	}
	if v > uint64(size) || size-int64(v) > n {
		return fault(size-12, 8, problem.ImageMalformed, "the payload length is a lie")
	}
	foot := b[n-(size-int64(v)):]
	if len(foot) < 15 || string(foot[:2]) != tinyMagic {
		return fault(int64(v), int64(len(foot)), problem.ImageMalformed, "no footer")
	}
	t := &tinyFooter{off: int64(v)}
	at := 3
	for range foot[2] {
		if at+2 > len(foot)-12 {
			return fault(t.off, int64(len(foot)), problem.ImageMalformed, "too few signatures")
		}
		l := int(binary.BigEndian.Uint16(foot[at:]))
		at += 2
		if l > len(foot)-12-at {
			return fault(t.off+int64(at), 2, problem.ImageMalformed, "a signature is too long")
		}
		t.sigs = append(t.sigs, image.Range{Off: t.off + int64(at), Len: int64(l)})
		t.data = append(t.data, foot[at:at+l])
		at += l
	}
	if at != len(foot)-12 && f.bug != "gap" {
		return fault(t.off+int64(at), int64(len(foot)-12-at), problem.SigCoverage, "bytes between")
	}
	return t, nil, nil
}

var sink []byte

func (f tiny) digest(ctx context.Context, src image.Source, n int64, index int) ([]byte, error) {
	h := sha256.New()
	if err := ctx.Err(); err != nil && f.bug != "uncancelled" {
		return nil, err
	}
	if f.bug == "holds all" && n < 1<<30 {
		b := make([]byte, n)
		if k, err := src.ReadAt(b, 0); int64(k) < n {
			return nil, err
		}
		h.Write(b)
		runtime.KeepAlive(b)
	} else if k, err := io.Copy(h, io.NewSectionReader(src, 0, n)); err != nil {
		if f.bug != "swallows" {
			return nil, err
		}
	} else if k < n {
		return nil, io.ErrUnexpectedEOF
	}
	h.Write(binary.BigEndian.AppendUint64([]byte{byte(index)}, uint64(n)))
	return h.Sum(nil), nil
}

func (f tiny) Inspect(ctx context.Context, src image.Source) (*image.Report, error) {
	r := &image.Report{Format: "tiny", Size: src.Size(), Tree: []image.Node{{Name: "all", Len: src.Size()}}}
	t, bad, err := f.footer(src)
	if f.bug == "inspect fails" && bad != nil {
		return nil, fmt.Errorf("tiny")
	}
	if err != nil {
		return nil, problem.New(problem.ImageTruncated, "tiny").Because(err)
	}
	if bad != nil {
		r.Findings = append(r.Findings, *bad)
		if f.bug == "tree outside" {
			r.Tree[0].Len++
		}
		return r, nil
	}
	r.Facts.Signed = f.bug != "inspect blind"
	for i := range t.sigs {
		r.Signatures = append(r.Signatures, image.SignatureInfo{Slot: fmt.Sprint(i), Range: &t.sigs[i]})
	}
	return r, nil
}

type tinyOptions struct{}

func (f tiny) options(o image.Options) error {
	if f.bug == "options" {
		return nil
	}
	return image.DecodeOptions("tiny", o, &tinyOptions{})
}

type tinyState struct {
	Size    int64
	Mark    []byte
	Keys    []image.PublicMaterial
	Digests [][]byte
	Asked   bool
	Sigs    [][]byte
}

type tinySession struct {
	f   tiny
	src image.Source
	tinyState
}

func (f tiny) Plan(ctx context.Context, src image.Source, o image.Options, pub []image.PublicMaterial) (image.Session, error) {
	if err := f.options(o); err != nil {
		return nil, err
	}
	if len(pub) == 0 {
		return nil, problem.New(problem.ImageOptions, "tiny takes a key")
	}
	s := &tinySession{f: f, src: src, tinyState: tinyState{Size: src.Size(), Keys: pub}}
	for i, p := range pub {
		_, kt, err := alg.ParseSPKI(p.SPKI)
		if err != nil {
			return nil, err
		}
		if p.Alg == "" {
			s.Keys[i].Alg = alg.For(kt)[0]
		} else if spec, err := alg.Lookup(p.Alg); err != nil || spec.Key != kt {
			return nil, problem.New(problem.AlgUnsupported, "tiny")
		}
		d, err := f.digest(ctx, src, s.Size, i)
		if err != nil {
			return nil, err
		}
		s.Digests = append(s.Digests, d)
	}
	var err error
	s.Mark, err = f.digest(ctx, src, s.Size, 255)
	return s, err
}

func (f tiny) Resume(ctx context.Context, src image.Source, state []byte) (image.Session, error) {
	bad := problem.New(problem.ImageMalformed, "no session of tiny")
	if len(state) < 32 {
		return nil, bad
	}
	if sum := sha256.Sum256(state[32:]); !bytes.Equal(sum[:], state[:32]) && f.bug != "no checksum" {
		return nil, bad
	}
	s := &tinySession{f: f, src: src}
	if err := json.Unmarshal(state[32:], &s.tinyState); err != nil {
		return nil, bad
	}
	if len(s.Keys) == 0 || len(s.Digests) != len(s.Keys) {
		return nil, bad
	}
	mark, err := f.digest(ctx, src, src.Size(), 255)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(mark, s.Mark) && f.bug != "other source" {
		return nil, bad
	}
	return s, nil
}

func (s *tinySession) MarshalBinary() ([]byte, error) {
	st := s.tinyState
	if s.f.bug == "forgets" {
		st.Asked = false
	}
	b, err := json.Marshal(st)
	sum := sha256.Sum256(b)
	return append(sum[:], b...), err
}

func (s *tinySession) Next(_ context.Context, prev []image.Signature) ([]image.SignRequest, bool, error) {
	i := len(s.Sigs)
	if s.Asked {
		if len(prev) == 0 || len(prev) > 1 && s.f.bug != "takes extra" || prev[0].Slot != fmt.Sprint("s", i) && s.f.bug != "any slot" {
			return nil, false, problem.New(problem.SigMissing, "tiny waits for slot %d", i)
		}
		_, kt, err := alg.ParseSPKI(s.Keys[i].SPKI)
		if err != nil {
			return nil, false, err
		}
		if kt == alg.P256 {
			_, err = alg.RawECDSA(prev[0].Value, 32)
		} else if n := map[alg.KeyType]int{alg.Ed25519: 64, alg.RSA2048: 256}[kt]; len(prev[0].Value) != n {
			err = problem.New(problem.SigEncoding, "tiny wants %d bytes", n)
		}
		if err != nil && s.f.bug != "any length" {
			return nil, false, err
		}
		s.Sigs = append(s.Sigs, prev[0].Value)
		s.Asked = false
		i++
	} else if len(prev) > 0 && s.f.bug != "takes early" {
		return nil, false, problem.New(problem.Conflict, "tiny asked for nothing")
	}
	if i == len(s.Keys) {
		return nil, true, nil
	}
	k := s.Keys[i]
	r := image.SignRequest{
		Slot: fmt.Sprint("s", i), Role: k.Role, Key: k.KeyID(), Alg: k.Alg, Kind: alg.Digest,
		Input: bytes.Clone(s.Digests[i]), Show: []image.Field{{Name: "digest", Value: "x"}},
	}
	if k.Alg == alg.Ed25519Pure {
		r.Kind = alg.Message
	}
	switch s.f.bug {
	case "kind":
		r.Kind = alg.Message
	case "key id":
		r.Key = "0"
	case "input":
		r.Input = r.Input[:20]
	case "show":
		r.Show = nil
	case "slot":
		r.Slot = ""
	case "role":
		r.Role = "other"
	case "plan digest":
		// The half that plans signs other bytes than the half that verifies reads.
		r.Input[0] ^= 1
	}
	s.Asked = true
	return []image.SignRequest{r}, false, nil
}

var tinyCalls sync.Map

func (s *tinySession) Embed(_ context.Context, w io.Writer) (*image.Receipt, error) {
	if len(s.Sigs) != len(s.Keys) {
		if s.f.bug != "embeds early" {
			return nil, problem.New(problem.SigMissing, "tiny is not done")
		}
	}
	if _, err := io.Copy(w, io.NewSectionReader(s.src, 0, s.Size)); err != nil && s.f.bug != "ignores writer" {
		return nil, err
	}
	b := append([]byte(tinyMagic), byte(len(s.Sigs)))
	for _, sig := range s.Sigs {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(sig))), sig...)
	}
	b = append(binary.BigEndian.AppendUint64(b, uint64(s.Size)), tinyEnd...)
	if s.f.bug == "embeds differently" {
		if _, again := tinyCalls.LoadOrStore(string(s.Sigs[0]), true); again {
			b[0] ^= 1
		}
	}
	_, err := w.Write(b)
	r := &image.Receipt{Format: "tiny", Size: s.Size + int64(len(b))}
	if s.f.bug == "receipt" {
		r.Size--
	}
	if s.f.bug == "ignores writer" {
		err = nil
	}
	return r, err
}

func (f tiny) Verify(ctx context.Context, src image.Source, t image.Trust, p image.Profile) (*image.Verdict, error) {
	if err := f.options(p.Options); err != nil {
		return nil, err
	}
	v := &image.Verdict{Format: "tiny", Profile: p}
	say := func(g image.Finding) (*image.Verdict, error) {
		if f.bug == "silent" {
			return v, nil
		}
		v.Findings = append(v.Findings, g)
		return v, nil
	}
	foot, bad, err := f.footer(src)
	if err != nil {
		return nil, err
	}
	if bad != nil {
		if f.bug == "verdict as error" {
			return nil, problem.New(problem.SigInvalid, "tiny")
		}
		return say(*bad)
	}
	if len(foot.sigs) < len(t.Keys) || len(t.Keys) == 0 || len(foot.sigs) == 0 {
		if f.bug == "no anchors" && len(t.Keys) == 0 {
			v.Valid, v.Accepted = true, true
			return v, nil
		}
		return say(image.Finding{Stage: image.StageKeyID, Severity: image.Fatal, Code: problem.TrustAnchorMissing, What: "signatures do not match the anchors"})
	}
	for i := range foot.sigs {
		n := foot.off
		if f.bug == "last byte" {
			n-- // hashes the payload but its last byte, and gets the rest from nowhere
		}
		d, err := f.digest(ctx, src, n, i)
		if err != nil {
			return nil, err
		}
		if f.bug == "plan digest" {
			d[0] ^= 1 // both halves wrong: nobody finds it, which is why they are apart
		}
		ok := false
		for j, k := range t.Keys {
			pub, kt, err := alg.ParseSPKI(k.SPKI)
			if err != nil || (j != i && f.bug != "any key") {
				continue
			}
			err = alg.Verify(alg.For(kt)[0], pub, d, foot.data[i])
			ok = ok || err == nil
			if f.bug == "believes" {
				ok = true
			}
			if f.bug == "last byte" {
				ok = true
			}
		}
		v.Signatures = append(v.Signatures, image.SignatureInfo{Slot: fmt.Sprint(i), Valid: &ok, Range: &foot.sigs[i]})
		if !ok && f.bug != "first only" || !ok && i == 0 {
			return say(image.Finding{Stage: image.StageSignature, Severity: image.Fatal, Code: problem.SigInvalid, What: "no", Range: &image.Range{Len: foot.off}})
		}
	}
	v.Valid, v.Accepted = true, true
	return v, nil
}

func (f tiny) ExportTrust(pub []image.PublicMaterial, o image.Options) ([]image.Artifact, error) {
	if err := f.options(o); err != nil {
		return nil, err
	}
	if f.bug == "no artifacts" {
		return nil, nil
	}
	var out []image.Artifact
	for i, p := range pub {
		if _, _, err := alg.ParseSPKI(p.SPKI); err != nil {
			return nil, err
		}
		out = append(out, image.Artifact{Name: fmt.Sprintf("%d.spki", i), MediaType: "application/octet-stream", Data: p.SPKI, Note: "into the device"})
	}
	return out, nil
}

func tinyFields(f tiny) func(tb testing.TB, out []byte) []Field {
	return func(tb testing.TB, out []byte) []Field {
		foot, bad, err := f.footer(image.Bytes(out))
		if bad != nil || err != nil {
			tb.Fatalf("the output has no footer: %v %v", bad, err)
		}
		size := int64(len(out))
		fs := []Field{
			{Name: "payload", Len: foot.off, Kind: Payload},
			{Name: "magic", Off: foot.off, Len: 2, Kind: Magic},
			{Name: "count", Off: foot.off + 2, Len: 1, Kind: Length},
			{Name: "payload length", Off: size - 12, Len: 8, Kind: Length},
			{Name: "end", Off: size - 4, Len: 4, Kind: Magic},
		}
		for i, s := range foot.sigs {
			fs = append(fs, Field{Name: fmt.Sprint("length ", i), Off: s.Off - 2, Len: 2, Kind: Length}, Field{Name: fmt.Sprint("signature ", i), Off: s.Off, Len: s.Len, Kind: Signature})
		}
		return fs
	}
}

func tinyCase(f tiny, keys ...alg.KeyType) Case {
	c := Case{
		Name: fmt.Sprint(keys), Source: bytes.Repeat([]byte("firmware "), 40), Fields: tinyFields(f),
		Big: func(size int64) image.Source { return Sparse(size, []byte("big")) },
	}
	for _, k := range keys {
		c.Keys = append(c.Keys, Key{Type: k})
	}
	return c
}

// TestSuite: a format that is right passes.
func TestSuite(t *testing.T) {
	f := tiny{}
	Run(t, f, []Case{
		tinyCase(f, alg.P256),
		func() Case { c := tinyCase(f, alg.Ed25519, alg.P256); c.Big = nil; return c }(),
		func() Case { c := tinyCase(f, alg.RSA2048); c.Big = nil; return c }(),
	})
}

// recorder is a testing.TB that fails without failing.
type recorder struct {
	testing.TB
	mu   sync.Mutex
	said []string
}

func (r *recorder) add(s string) { r.mu.Lock(); r.said = append(r.said, s); r.mu.Unlock() }

func (r *recorder) Helper()                        {}
func (r *recorder) Log(...any)                     {}
func (r *recorder) Logf(string, ...any)            {}
func (r *recorder) Error(a ...any)                 { r.add(fmt.Sprint(a...)) }
func (r *recorder) Errorf(format string, a ...any) { r.add(fmt.Sprintf(format, a...)) }
func (r *recorder) Fatal(a ...any)                 { r.add(fmt.Sprint(a...)); runtime.Goexit() }
func (r *recorder) Fatalf(format string, a ...any) {
	r.add(fmt.Sprintf(format, a...))
	runtime.Goexit()
}

// record runs f with a recorder and gives what it complained about.
func record(t *testing.T, f func(tb testing.TB)) []string {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() { defer close(done); f(r) }()
	<-done
	return r.said
}

// TestSuiteCatches breaks a format in one way at a time: the check whose
// business that is must say so.
func TestSuiteCatches(t *testing.T) {
	for bug, want := range map[string]string{
		"detect":             "life",
		"panic":              "mutations",
		"alloc":              "mutations",
		"no range":           "mutations",
		"range outside":      "mutations",
		"no code":            "mutations",
		"no stage":           "mutations",
		"gap":                "mutations",
		"tree outside":       "mutations",
		"inspect fails":      "mutations",
		"inspect blind":      "inspect",
		"verdict as error":   "mutations",
		"silent":             "trust",
		"believes":           "trust",
		"no anchors":         "trust",
		"last byte":          "mutations",
		"any key":            "", // right signatures by any anchor are a rule that a format may have
		"first only":         "mutations2",
		"options":            "options",
		"no checksum":        "state",
		"other source":       "state",
		"forgets":            "life",
		"takes extra":        "session",
		"takes early":        "session",
		"any slot":           "session",
		"any length":         "session",
		"embeds early":       "session",
		"embeds differently": "life",
		"ignores writer":     "life",
		"receipt":            "life",
		"no artifacts":       "life",
		"swallows":           "sources",
		"uncancelled":        "sources",
		"holds all":          "memory",
		"kind":               "life",
		"key id":             "life",
		"input":              "life",
		"show":               "life",
		"slot":               "life",
		"role":               "life",
		"plan digest":        "", // made wrong in both halves: this is what Apart is for
	} {
		t.Run(strings.ReplaceAll(bug, " ", "-"), func(t *testing.T) {
			f := tiny{bug: bug}
			keys := []alg.KeyType{alg.P256}
			if want == "mutations2" {
				keys, want = append(keys, alg.P256), "mutations"
			}
			h := newHarness(t, f, tinyCase(f, keys...))
			caught := map[string][]string{}
			for _, c := range checks {
				if c.name == "memory" {
					c.run = func(tb testing.TB, h *harness) { h.memory(tb, 64<<20) }
				}
				if said := record(t, func(tb testing.TB) { c.run(tb, h) }); len(said) > 0 {
					caught[c.name] = said
				}
			}
			if want == "" {
				if len(caught) > 0 {
					t.Errorf("nothing was to be caught: %v", caught)
				}
				return
			}
			if len(caught[want]) == 0 {
				t.Errorf("%s did not see it; others: %v", want, caught)
				return
			}
			t.Logf("%s: %s", want, caught[want][0])
		})
	}
}

// TestSeedsThatDoNothing: a seed must be a bug.
func TestSeedsThatDoNothing(t *testing.T) {
	f := tiny{}
	c := tinyCase(f, alg.P256)
	same := func(r image.SignRequest) image.SignRequest { return r }
	c.Seeds = []Seed{{Name: "empty"}, {Name: "same", Request: same}}
	h := newHarness(t, f, c)
	if said := record(t, func(tb testing.TB) { checkSeeds(tb, h) }); len(said) != 2 {
		t.Errorf("two seeds that do nothing: %q", said)
	}
	c.Seeds = []Seed{{Name: "a real one", Output: func(_ testing.TB, out []byte) []byte { out[0]++; return out }}}
	h = newHarness(t, f, c)
	if said := record(t, func(tb testing.TB) { checkSeeds(tb, h) }); len(said) != 0 {
		t.Errorf("a seed that Verify sees: %q", said)
	}
}

// TestFieldsOutside: what is declared to be outside may change, and only that.
func TestFieldsOutside(t *testing.T) {
	f := tiny{bug: "gap"} // takes bytes between the signatures and the length
	gap := []byte("left over by the linker")
	base := tinyCase(f, alg.P256)
	h := newHarness(t, f, base)
	fin := h.finish(t)
	n := len(fin.out) - 12
	fin.out = append(append(bytes.Clone(fin.out[:n]), gap...), fin.out[n:]...)
	fields := func(why string) func(tb testing.TB, out []byte) []Field {
		return func(tb testing.TB, out []byte) []Field {
			return append(tinyFields(f)(tb, out), Field{Name: "gap", Off: int64(n), Len: int64(len(gap)), Kind: Padding, Outside: why})
		}
	}
	h.c.Fields = fields("")
	if said := record(t, func(tb testing.TB) { checkMutations(tb, h) }); len(said) == 0 {
		t.Error("bytes outside the signature went unnoticed")
	}
	h.c.Fields = fields("tiny ignores them")
	said := record(t, func(tb testing.TB) { checkMutations(tb, h) })
	for _, s := range said {
		if !strings.Contains(s, "put in at") && !strings.Contains(s, "without") {
			t.Errorf("declared as outside, and yet: %s", s)
		}
	}
	if len(said) == 0 {
		t.Error("a longer or missing gap moves what is behind it, and went unnoticed")
	}
	h.c.Fields = func(testing.TB, []byte) []Field { return []Field{{Name: "a", Len: 5}, {Name: "b", Off: 4, Len: 2}} }
	if said := record(t, func(tb testing.TB) { checkMutations(tb, h) }); len(said) != 1 {
		t.Errorf("fields that overlap: %q", said)
	}
}

func TestSparse(t *testing.T) {
	t.Parallel()
	size := int64(3<<20 + 17)
	s := Sparse(size, []byte("head"))
	whole := make([]byte, size)
	if n, err := s.ReadAt(whole, 0); int64(n) != size || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if string(whole[:5]) != "head\x00" || binary.BigEndian.Uint64(whole[2<<20:]) != 2<<20 {
		t.Errorf("head %q, stamp %x", whole[:8], whole[2<<20:2<<20+8])
	}
	b, err := io.ReadAll(io.NewSectionReader(s, 0, size))
	if err != nil || !bytes.Equal(b, whole) {
		t.Errorf("read in pieces it is something else (%v)", err)
	}
	for _, off := range []int64{1, 1<<20 - 3, 1<<20 + 3, size - 5} {
		p := make([]byte, 9)
		n, _ := s.ReadAt(p, off)
		if !bytes.Equal(p[:n], whole[off:min(off+9, size)]) {
			t.Errorf("at %d: %x", off, p[:n])
		}
	}
}

func TestApart(t *testing.T) {
	t.Parallel()
	const head = "package f\n"
	for name, c := range map[string]struct {
		plan, verify string
		shared       map[string]string
		want         string // part of the fault; empty: none
	}{
		"constants": {"const magic = 1\nfunc plan() int { return magic }", "func check() int { return magic }", nil, ""},
		"a function": {
			"func size() int { return 1 }", "func check() int { return size() }", nil, "verify.go uses size of plan.go",
		},
		"the other way": {
			"func plan() int { return hash() }", "func hash() int { return 1 }", nil, "plan.go uses hash of verify.go",
		},
		"a type":         {"type header struct{ N int }", "func check(h header) {}", nil, "uses header"},
		"a variable":     {"var table = []int{1}", "func check() int { return len(table) }", nil, "uses table"},
		"a field":        {"type header struct{ N int }", "func check(h *header) int { return h.N }", nil, "uses N"},
		"a declared one": {"type Format struct{}", "func (Format) Verify() {}", map[string]string{"Format": "both hang on it"}, ""},
		"without reason": {"type Format struct{}", "func (Format) Verify() {}", map[string]string{"Format": ""}, "no reason"},
		"not shared":     {"func plan() {}", "func check() {}", map[string]string{"plan": "x"}, "not shared"},
		"own local":      {"func size() int { return 1 }", "func check() int { size := 2; return size }", nil, ""},
		"a package": {
			"import \"github.com/firmseal/firmseal/internal/image/f/tree\"\nvar x = tree.Parse", "import \"github.com/firmseal/firmseal/internal/image/f/tree\"\nvar y = tree.Parse", nil, "misread twice",
		},
		"the contract": {
			"import \"github.com/firmseal/firmseal/internal/image\"\nvar x image.Range", "import \"github.com/firmseal/firmseal/internal/image\"\nvar y image.Range", nil, "",
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for file, text := range map[string]string{"plan.go": c.plan, "verify.go": c.verify} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(head+text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			faults, err := apart(dir, []string{"verify.go"}, c.shared)
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(faults, "\n")
			if c.want == "" && all != "" || !strings.Contains(all, c.want) {
				t.Errorf("faults:\n%s\nwanted: %q", all, c.want)
			}
		})
	}
	if _, err := apart(t.TempDir(), []string{"verify.go"}, nil); err == nil {
		t.Error("a folder without a Verify half was passed")
	}
}
