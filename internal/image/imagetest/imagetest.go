// Package imagetest is the suite that every image format passes.
//
// A format hands over its cases, each an image to sign with its keys, and says
// of the finished output which bytes are what. Run then does to it what a
// server, a crash, a careless signer, a bad cable and an attacker would do:
//
//   - life: sign the image, once straight and once with the session marshalled,
//     dropped and resumed between every two rounds, and verify the result;
//   - trust: another key, no key, an unsigned image are refused;
//   - session: signatures that are missing, doubled, foreign or misshapen, and
//     states that are cut, flipped or of another image, give an error;
//   - seeds: whatever goes wrong while signing, Verify refuses the result;
//   - mutations: flip, cut, extend and lie in each field of the output;
//   - sources: readers that fail, end early or are cancelled;
//   - memory: 2 GiB go through without being held (not under -short).
//
// # A format's own bugs
//
// That Verify is a second implementation and not the first one again is shown
// in two ways. Seeds make a wrong output on purpose, and Verify must refuse it.
// Apart reads the source code: the Verify half uses nothing of the rest but
// constants.
//
// # Who signs
//
// The suite has its own signer, which checks each request before it signs:
// the format must not leave that to a key. Signatures are canonical, as a
// backend of package keys makes them.
//
// # How to call it
//
// Call Run from a test that is not parallel: it measures what is allocated,
// and its subtests run one after the other for that reason.
package imagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"testing"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// Case is one image to sign in one way.
type Case struct {
	Name    string
	Source  []byte // the image, unsigned unless Signed
	Options image.Options
	Keys    []Key
	Profile image.Profile // the verifier that judges the output

	// Trust makes what the target holds from the anchors of Keys, in their
	// order; nil: all of them, and nothing else. The suite adds Detached.
	Trust func(anchors []image.TrustedKey) image.Trust

	// Signed says that Source carries a signature already, so that it need not
	// be refused as unsigned.
	Signed bool

	// Fields describes the finished output (for a detached format: the
	// signature file; the image is then mutated, too, as one payload). Bytes in
	// no field count as covered: the suite changes them and they must be
	// refused. See Fields.
	Fields func(tb testing.TB, out []byte) []Field

	// Seeds are bugs to make while this case is signed. Each must be refused by
	// Verify. The suite has its own beside them.
	Seeds []Seed

	// Big makes an image of about size bytes that this case signs like Source;
	// see Sparse. Nil: this case is not part of the memory check.
	Big func(size int64) image.Source
}

// Key is a key that signs in a case. The suite makes it.
type Key struct {
	Role string // "image" if empty
	Name string // "imagetest-N" if empty
	Type alg.KeyType
	Alg  alg.ID // empty: the format's default
}

// Kind is what a field is for; it decides which lies are told about it.
type Kind string

const (
	Magic     Kind = "magic"
	Length    Kind = "length" // a number that says how much of something there is, or where it is
	Flag      Kind = "flag"
	Payload   Kind = "payload"
	Signature Kind = "signature"
	Padding   Kind = "padding"
	Other     Kind = "other"
)

// Field is a run of bytes of the finished output.
type Field struct {
	Name         string
	Off, Len     int64
	Kind         Kind
	LittleEndian bool // of a Length
	// Outside says why a change of these bytes may be accepted: they are
	// legitimately outside the signature. Empty: every change must be refused.
	Outside string
}

// Seed is a bug that signing might have. At least one hook is set.
type Seed struct {
	Name string
	// Request changes what the key is asked to sign, after the suite's own
	// checks: the key signs the digest of other bytes, or with another scheme.
	Request func(r image.SignRequest) image.SignRequest
	// Signature changes the signature made for r.
	Signature func(r image.SignRequest, sig []byte) []byte
	// Output changes the finished output, as a wrong Embed would.
	Output func(tb testing.TB, out []byte) []byte

	foreign bool // sign with another key
	pssSalt *int // sign with PSS and a salt of this length
}

// MemoryBound is what a session and a verification may add to the heap,
// however large the image.
const MemoryBound = 24 << 20

// Run holds f to the contract of image.Format with each case.
func Run(t *testing.T, f image.Format, cases []Case) {
	t.Helper()
	if len(cases) == 0 {
		t.Fatal("imagetest: no cases")
	}
	t.Run("format", func(t *testing.T) { checkFormat(t, f, cases) })
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			h := newHarness(t, f, c)
			for _, k := range checks {
				t.Run(k.name, func(t *testing.T) { k.run(t, h) })
			}
		})
	}
}

// check is one part of the suite. It reports through tb, so that the suite's
// own test can run it against broken formats.
type check struct {
	name string
	run  func(tb testing.TB, h *harness)
}

var checks = []check{
	{"life", checkLife},
	{"inspect", checkInspect},
	{"trust", checkTrust},
	{"options", checkOptions},
	{"session", checkSession},
	{"state", checkState},
	{"seeds", checkSeeds},
	{"mutations", checkMutations},
	{"sources", checkSources},
	{"memory", checkMemory},
}

func checkFormat(tb testing.TB, f image.Format, cases []Case) {
	if f.Name() == "" {
		tb.Error("the format has no name")
	}
	seen := map[string]bool{}
	for _, c := range cases {
		if c.Name == "" || seen[c.Name] {
			tb.Errorf("case %q has no name of its own", c.Name)
		}
		seen[c.Name] = true
	}
	for name, b := range map[string][]byte{"nothing": nil, "a byte": {0}, "zeros": make([]byte, 4096), "ones": bytes.Repeat([]byte{0xff}, 4096)} {
		guard(tb, "Detect of "+name, func() {
			if s := f.Detect(bytes.NewReader(b), int64(len(b))); s >= image.Likely {
				tb.Errorf("Detect is sure (%d) of %s", s, name)
			}
		})
		guard(tb, "Inspect of "+name, func() {
			if r, err := f.Inspect(tb.Context(), image.Bytes(b)); err == nil && r == nil {
				tb.Errorf("Inspect of %s gives neither report nor error", name)
			}
		})
	}
}

// harness is one case with its keys.
type harness struct {
	f       image.Format
	c       Case
	keys    []*key
	foreign []*key // the same types, names and roles, other keys

	once sync.Once
	done *finished
	err  error
}

// finished is a signed image.
type finished struct {
	out     []byte
	receipt *image.Receipt
	states  [][]byte            // before each round, and before Embed
	rounds  [][]image.Signature // the answers of each round, the first is nil
}

func newHarness(tb testing.TB, f image.Format, c Case) *harness {
	if len(c.Keys) == 0 || len(c.Source) == 0 {
		tb.Fatalf("case %s has no keys or no source", c.Name)
	}
	h := &harness{f: f, c: c}
	for i, k := range c.Keys {
		if k.Role == "" {
			k.Role = "image"
		}
		if k.Name == "" {
			k.Name = fmt.Sprintf("imagetest-%d", i+1)
		}
		h.keys = append(h.keys, newKey(tb, k, i))
		h.foreign = append(h.foreign, newKey(tb, k, i+foreignKeys))
	}
	return h
}

func (h *harness) src() image.Source { return image.Bytes(h.c.Source) }

func material(keys []*key) []image.PublicMaterial {
	var out []image.PublicMaterial
	for _, k := range keys {
		out = append(out, image.PublicMaterial{Role: k.Role, Name: k.Name, SPKI: k.spki, Alg: k.Alg})
	}
	return out
}

func (h *harness) trust(keys []*key) image.Trust {
	var a []image.TrustedKey
	for _, k := range keys {
		a = append(a, image.TrustedKey{Name: k.Name, SPKI: k.spki})
	}
	if h.c.Trust != nil {
		return h.c.Trust(a)
	}
	return image.Trust{Keys: a}
}

// subject is what a verifier is shown: the image, and the signature file of a
// detached format.
type subject struct{ image, detached []byte }

func (h *harness) subject(out []byte, r *image.Receipt) subject {
	if r.Detached {
		return subject{image: h.c.Source, detached: out}
	}
	return subject{image: out}
}

func (h *harness) verify(ctx context.Context, s subject, keys []*key) (*image.Verdict, error) {
	t := h.trust(keys)
	t.Detached = s.detached
	return h.f.Verify(ctx, image.Bytes(s.image), t, h.c.Profile)
}

// finish signs the case once, straight, and keeps the result for all checks.
func (h *harness) finish(tb testing.TB) *finished {
	tb.Helper()
	h.once.Do(func() { h.done, h.err = h.sign(tb.Context(), nil) })
	if h.err != nil {
		tb.Fatalf("signing the case: %v", h.err)
	}
	return h.done
}

// maxRounds ends a session that never says done.
const maxRounds = 16

// sign takes a session over the case's source from Plan to Embed. A seed spoils
// it.
func (h *harness) sign(ctx context.Context, s *Seed) (*finished, error) {
	var b bytes.Buffer
	fin, err := h.signTo(ctx, h.src(), &b, s)
	if err != nil {
		return nil, err
	}
	fin.out = b.Bytes()
	return fin, nil
}

// signTo is sign over any source; the output goes to w alone.
func (h *harness) signTo(ctx context.Context, src image.Source, w io.Writer, s *Seed) (*finished, error) {
	sess, err := h.f.Plan(ctx, src, h.c.Options, material(h.keys))
	if err != nil {
		return nil, fmt.Errorf("the call of Plan: %w", err)
	}
	fin := &finished{}
	slots := map[string]bool{}
	var prev []image.Signature
	for {
		st, err := sess.MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("MarshalBinary before round %d: %w", len(fin.rounds)+1, err)
		}
		fin.states = append(fin.states, st)
		reqs, done, err := sess.Next(ctx, prev)
		if err != nil {
			return nil, fmt.Errorf("round %d: %w", len(fin.rounds)+1, err)
		}
		fin.rounds = append(fin.rounds, prev)
		if done {
			if len(reqs) != 0 {
				return nil, fmt.Errorf("round %d is done and has %d requests", len(fin.rounds), len(reqs))
			}
			break
		}
		if len(reqs) == 0 || len(fin.rounds) > maxRounds {
			return nil, fmt.Errorf("round %d has %d requests and is not done", len(fin.rounds), len(reqs))
		}
		prev = []image.Signature{} // not nil: every later round has answers
		for _, r := range reqs {
			if slots[r.Slot] {
				return nil, fmt.Errorf("slot %q is asked for twice", r.Slot)
			}
			slots[r.Slot] = true
			k, err := h.checkRequest(r)
			if err != nil {
				return nil, fmt.Errorf("request for slot %q: %w", r.Slot, err)
			}
			sig, err := k.answer(r, s)
			if err != nil {
				return nil, err
			}
			prev = append(prev, image.Signature{Slot: r.Slot, Value: sig})
		}
	}
	if len(fin.rounds) < 2 {
		return nil, errors.New("the session was done before it asked for a signature")
	}
	st, err := sess.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("MarshalBinary before Embed: %w", err)
	}
	fin.states = append(fin.states, st)
	fin.receipt, err = sess.Embed(ctx, w)
	if err != nil {
		return nil, fmt.Errorf("the call of Embed: %w", err)
	}
	return fin, nil
}

// checkRequest holds a request to the contract of image.SignRequest.
func (h *harness) checkRequest(r image.SignRequest) (*key, error) {
	if r.Slot == "" {
		return nil, errors.New("it has no slot")
	}
	var k *key
	for _, c := range h.keys {
		if alg.KeyID(c.spki) == r.Key && c.Role == r.Role {
			k = c
		}
	}
	if k == nil {
		return nil, fmt.Errorf("no key of the session has id %q and role %q", r.Key, r.Role)
	}
	s, err := alg.Lookup(r.Alg)
	switch {
	case err != nil:
		return nil, err
	case s.Key != k.Type:
		return nil, fmt.Errorf("%s does not fit a %s key", r.Alg, k.Type)
	case k.Alg != "" && k.Alg != r.Alg:
		return nil, fmt.Errorf("it asks for %s where %s was demanded", r.Alg, k.Alg)
	case s.Kind != r.Kind:
		return nil, fmt.Errorf("%s takes a %s, not a %q", r.Alg, s.Kind, r.Kind)
	case s.Kind == alg.Digest && len(r.Input) != s.Hash.Size():
		return nil, fmt.Errorf("%s takes %d bytes, not %d", r.Alg, s.Hash.Size(), len(r.Input))
	case s.Kind == alg.Message && (len(r.Input) == 0 || len(r.Input) > alg.MaxMessage):
		return nil, fmt.Errorf("a message of %d bytes", len(r.Input))
	case len(r.Show) == 0:
		return nil, errors.New("it shows a reviewer nothing")
	}
	for _, f := range r.Show {
		if f.Name == "" || f.Value == "" {
			return nil, fmt.Errorf("it shows a reviewer an empty field: %+v", f)
		}
	}
	return k, nil
}

// guard turns a panic into a failure that names what was done.
func guard(tb testing.TB, what string, f func()) {
	tb.Helper()
	ok := false
	defer func() {
		if ok {
			return
		}
		if r := recover(); r != nil {
			tb.Errorf("%s: panic: %v\n%s", what, r, debug.Stack())
		}
	}()
	f()
	ok = true
}

// refusal is an error with a code that a person can look up.
func refusal(err error) error {
	if err == nil {
		return errors.New("it was taken")
	}
	p := problem.Of(err)
	if _, ok := problem.Lookup(p.Code); !ok || p.Code == problem.Internal {
		return fmt.Errorf("the error has no code: %w", err)
	}
	return nil
}

// checkVerdict holds a refusing verdict to its contract: it says no in a way
// that a person can act on.
func checkVerdict(v *image.Verdict, size int64) error {
	if v == nil {
		return errors.New("there is no verdict")
	}
	if v.Valid && v.Accepted {
		return errors.New("it was accepted")
	}
	fatal := false
	for _, f := range v.Findings {
		if f.Severity != image.OK && f.Severity != image.Warn && f.Severity != image.Fatal {
			return fmt.Errorf("finding %q has severity %q", f.What, f.Severity)
		}
		if !stages[f.Stage] {
			return fmt.Errorf("finding %q has stage %q", f.What, f.Stage)
		}
		if f.What == "" {
			return fmt.Errorf("a finding of stage %s says nothing", f.Stage)
		}
		if r := f.Range; r != nil && (r.Off < 0 || r.Len < 0 || r.Off > size || r.Len > size-r.Off) {
			return fmt.Errorf("finding %q points at %d bytes from %d, outside the %d that there are", f.What, r.Len, r.Off, size)
		}
		if f.Severity == image.OK {
			continue
		}
		if e, ok := problem.Lookup(f.Code); !ok || e.Code == problem.Internal {
			return fmt.Errorf("finding %q has no code of the list: %q", f.What, f.Code)
		}
		if f.Severity != image.Fatal {
			continue
		}
		fatal = true
		if f.Range == nil && aboutBytes[f.Stage] {
			return fmt.Errorf("finding %q of stage %s names no byte range", f.What, f.Stage)
		}
	}
	if !fatal {
		return errors.New("it was refused without a fatal finding")
	}
	return nil
}

var stages = map[image.Stage]bool{
	image.StageContainer: true, image.StageIntegrity: true, image.StageCoverage: true, image.StageKeyID: true,
	image.StageSignature: true, image.StageCertificate: true, image.StagePolicy: true, image.StageTarget: true,
}

// aboutBytes are the stages whose findings are always about bytes of the image.
var aboutBytes = map[image.Stage]bool{image.StageContainer: true, image.StageIntegrity: true, image.StageCoverage: true}

// describe is a refusal's first reason, for a test's output.
func describe(v *image.Verdict) string {
	if err := v.Refusal(); err != nil {
		return err.Error()
	}
	return "accepted"
}

// tempFile is a file that the test removes.
func tempFile(tb testing.TB) *os.File {
	tb.Helper()
	f, err := os.CreateTemp(tb.TempDir(), "imagetest-*")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	return f
}
