package keys

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/problem"
)

// Gate is the key's own check of a ticket. It trusts one thing, the log's
// public key that it was made with; the database, the server's configuration
// and the caller are all taken for liars.
//
// A Gate is safe for concurrent use. One Gate serves every key of a backend.
type Gate struct {
	origin   string
	verifier note.Verifier
	record   func(context.Context, Use) error

	mu     sync.Mutex
	seen   [seenCheckpoints]signedTree // checkpoints whose signature was verified
	next   int                         // where the next one goes in seen
	max    firmseal.Checkpoint         // the largest tree seen
	used   map[[sha256.Size]byte]bool  // attempts that were used up, this generation
	before map[[sha256.Size]byte]bool  // and the last
}

// Bounds of what a ticket may carry. Leaf and proof have those of their readers
// in the root package.
const maxRequest = 1 << 20

// seenCheckpoints is how many verified checkpoints a gate remembers. Callers
// that run at the same time hold proofs under a handful of different ones; an
// Ed25519 verification for each use would double the gate's price.
const seenCheckpoints = 16

// usedGeneration bounds the memory of used attempts: between one and two
// generations are remembered, about 10 MiB at most.
const usedGeneration = 1 << 16

type signedTree struct {
	note []byte
	tree firmseal.Checkpoint
}

// Use is one use of a private key, as GateOptions.Record sees it.
type Use struct {
	Key     string // the key's id
	Name    string
	Purpose Purpose
	Request string // request id of the leaf
	Leaf    string // hex RFC 6962 hash of the leaf that allows this use
	Attempt int    // of the leaf
	Slot    string
	Alg     alg.ID
	Input   string // hex SHA-256 of the ticket's input
}

// GateOptions are optional.
type GateOptions struct {
	// Record is called when a ticket was found right and before the private
	// key is used; an error prevents the use. It is the key's own account of
	// its uses, kept apart from the database. It may be called concurrently.
	Record func(context.Context, Use) error
}

// NewGate makes the gate of the keys that serve the log origin. verifierKey is
// the log's public key in the form of C2SP signed notes.
func NewGate(verifierKey, origin string, o GateOptions) (*Gate, error) {
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return nil, problem.New(problem.KeyMalformed, "the log's verifier key cannot be read").
			Seen("%d characters that are not NAME+HASH+KEY", len(verifierKey)).Because(err)
	}
	if origin == "" {
		return nil, problem.New(problem.KeyMalformed, "a gate needs the origin of its log")
	}
	return &Gate{
		origin: origin, verifier: v, record: o.Record,
		used: map[[sha256.Size]byte]bool{}, before: map[[sha256.Size]byte]bool{},
	}, nil
}

// Origin is the log that this gate believes.
func (g *Gate) Origin() string { return g.origin }

func refused(info Info, format string, a ...any) *problem.Error {
	return problem.New(problem.KeyTicket, "key %s refused the ticket", info.Name).Seen(format, a...).
		WithHint("nothing was signed; compare the database with the log: firmseal log verify")
}

// permit is what a right ticket allows: one call of SignRaw.
type permit struct {
	kind  alg.Kind
	input []byte
	use   Use
	once  [sha256.Size]byte // names the leaf and slot that this use uses up
}

// check decides about t. It has no effect beyond remembering checkpoints.
func (g *Gate) check(info Info, t *Ticket) (*permit, error) {
	if t == nil {
		return nil, refused(info, "there is no ticket")
	}
	if info.Binding.Purpose != Firmware && info.Binding.Purpose != Seal {
		return nil, refused(info, "a key of purpose %q is not used by tickets", info.Binding.Purpose)
	}
	if max(len(t.Leaf), len(t.Attempt)) > firmseal.MaxLeaf || len(t.Request) > maxRequest || len(t.Input) > alg.MaxMessage {
		return nil, refused(info, "the ticket is too large: leaf %d, attempt %d, request %d, input %d bytes",
			len(t.Leaf), len(t.Attempt), len(t.Request), len(t.Input))
	}
	scheme, err := alg.Lookup(t.Alg)
	if err != nil {
		return nil, refused(info, "unknown algorithm %q", string(t.Alg)).Because(err)
	}
	if scheme.Key != info.Type {
		return nil, refused(info, "%s is no algorithm of a %s key", t.Alg, info.Type)
	}
	leaf, err := parseLeaf(t.Leaf)
	if err != nil {
		return nil, refused(info, "the leaf cannot be read: %v", err)
	}
	hash := tlog.RecordHash(t.Leaf)
	p := &permit{kind: t.Kind, input: t.Input, use: Use{
		Key: info.ID(), Name: info.Name, Purpose: info.Binding.Purpose, Request: leaf.Request, Leaf: hex.EncodeToString(hash[:]),
		Slot: t.Slot, Alg: t.Alg, Input: hexSum(t.Input), Attempt: leaf.Attempt,
	}}
	if info.Binding.Purpose == Firmware {
		err = firmwareTicket(info, t, scheme, leaf, p)
	} else {
		err = sealTicket(info, t, scheme, leaf, p)
	}
	if err != nil {
		return nil, err
	}
	if err := g.included(info, t.Leaf, t.Proof); err != nil {
		return nil, err
	}
	if t.Attempt != nil {
		if err := g.included(info, t.Attempt, t.AttemptProof); err != nil {
			return nil, err
		}
		hash = tlog.RecordHash(t.Attempt)
		p.use.Leaf = hex.EncodeToString(hash[:])
	}
	p.once = sha256.Sum256(append(hash[:], t.Slot...))
	return p, nil
}

func firmwareTicket(info Info, t *Ticket, scheme alg.Spec, leaf *firmseal.Leaf, p *permit) error {
	if leaf.Type != firmseal.LeafAttempt {
		return refused(info, "the leaf is %q, not %q", leaf.Type, firmseal.LeafAttempt)
	}
	if t.Attempt != nil || t.AttemptProof != nil {
		return refused(info, "the ticket has a second leaf, which seals have")
	}
	if leaf.Key != p.use.Key {
		return refused(info, "the leaf announces a use of key %.16s…, this is %.16s…", leaf.Key, p.use.Key)
	}
	if got := hexSum(t.Request); leaf.Record != got {
		return refused(info, "the leaf commits to request %.16s…, the ticket carries %.16s…", leaf.Record, got)
	}
	if t.Kind != scheme.Kind {
		return refused(info, "%s signs a %s, the ticket says %q", t.Alg, scheme.Kind, string(t.Kind))
	}
	if scheme.Kind == alg.Digest && len(t.Input) != scheme.Hash.Size() {
		return refused(info, "%s signs a digest of %d bytes, the ticket has %d", t.Alg, scheme.Hash.Size(), len(t.Input))
	}
	var in *firmseal.LeafInput
	for i := range leaf.Inputs {
		if leaf.Inputs[i].Slot == t.Slot {
			in = &leaf.Inputs[i]
		}
	}
	switch {
	case in == nil:
		return refused(info, "the leaf announces no signature for slot %q", t.Slot)
	case in.Alg != string(t.Alg):
		return refused(info, "slot %q was announced for %s, the ticket says %s", t.Slot, in.Alg, t.Alg)
	case in.Kind != string(t.Kind):
		return refused(info, "slot %q was announced for a %s, the ticket says %q", t.Slot, in.Kind, string(t.Kind))
	case in.SHA256 != p.use.Input:
		return refused(info, "slot %q was announced for input %.16s…, the ticket carries %.16s…", t.Slot, in.SHA256, p.use.Input)
	}
	request, err := members(t.Request)
	if err != nil {
		return refused(info, "the request cannot be read: %v", err)
	}
	b := info.Binding
	for _, m := range []struct{ name, bound string }{
		{"environment", string(b.Environment)}, {"product", b.Product}, {"format", b.Format},
	} {
		if got, ok := request.str(m.name); !ok || got != m.bound {
			return refused(info, "the key is bound to %s %q, the request says %q", m.name, m.bound, got)
		}
	}
	return nil
}

// payloadType of a release statement in its DSSE envelope.
const payloadType = "application/vnd.in-toto+json"

func sealTicket(info Info, t *Ticket, scheme alg.Spec, leaf *firmseal.Leaf, p *permit) error {
	if leaf.Type != firmseal.LeafOutcome || leaf.Result != "sealed" {
		return refused(info, "the leaf is %q with result %q, not %q with %q", leaf.Type, leaf.Result, firmseal.LeafOutcome, "sealed")
	}
	if leaf.SealKey != p.use.Key {
		return refused(info, "the leaf names seal key %.16s…, this is %.16s…", leaf.SealKey, p.use.Key)
	}
	if t.Slot != SealSlot {
		return refused(info, "a seal fills slot %q, the ticket says %q", SealSlot, t.Slot)
	}
	if t.Kind != alg.Message {
		return refused(info, "a seal key is given the whole pre-authentication encoding as a message, not a %q", string(t.Kind))
	}
	payload, err := cutPAE(t.Input)
	if err != nil {
		return refused(info, "the input is not the DSSE encoding of a statement: %v", err)
	}
	if got := hexSum(payload); leaf.Statement != got {
		return refused(info, "the leaf commits to statement %.16s…, the ticket carries %.16s…", leaf.Statement, got)
	}
	if err := sealAttempt(info, t, leaf, p); err != nil {
		return err
	}
	statement, err := members(payload)
	if err != nil {
		return refused(info, "the statement cannot be read: %v", err)
	}
	predicate, err := split(statement.get("predicate"))
	if err != nil {
		return refused(info, "the statement's predicate cannot be read: %v", err)
	}
	if got, ok := predicate.str("environment"); !ok || got != string(info.Binding.Environment) {
		return refused(info, "the key is bound to environment %q, the statement says %q", info.Binding.Environment, got)
	}
	// ECDSA signs the digest. It is made here, so that the gate has seen what
	// it is a digest of.
	if scheme.Kind == alg.Digest {
		h := scheme.Hash.New()
		h.Write(t.Input)
		p.kind, p.input = alg.Digest, h.Sum(nil)
	}
	return nil
}

// sealAttempt checks the leaf of a use of the seal key that is not the first one
// of its outcome. Each use has a leaf of its own, so that a log that shows one
// use has seen one use.
func sealAttempt(info Info, t *Ticket, outcome *firmseal.Leaf, p *permit) error {
	if t.Attempt == nil {
		if t.AttemptProof != nil {
			return refused(info, "the ticket has a proof of an attempt and no attempt")
		}
		return nil
	}
	a, err := parseLeaf(t.Attempt)
	if err != nil {
		return refused(info, "the attempt's leaf cannot be read: %v", err)
	}
	switch {
	case a.Type != firmseal.LeafAttempt:
		return refused(info, "the attempt's leaf is %q, not %q", a.Type, firmseal.LeafAttempt)
	case a.Key != p.use.Key:
		return refused(info, "the attempt's leaf announces a use of key %.16s…, this is %.16s…", a.Key, p.use.Key)
	case a.Request != outcome.Request || a.Record != outcome.Record:
		return refused(info, "the attempt's leaf is of request %q, the outcome of %q", a.Request, outcome.Request)
	case a.Attempt <= outcome.Attempt:
		return refused(info, "attempt %d is not after the outcome's attempt %d", a.Attempt, outcome.Attempt)
	case len(a.Inputs) != 1 || a.Inputs[0].Slot != SealSlot || a.Inputs[0].Kind != string(alg.Message) || a.Inputs[0].SHA256 != outcome.Statement:
		return refused(info, "the attempt's leaf does not announce the seal of statement %.16s…", outcome.Statement)
	}
	p.use.Attempt = a.Attempt
	return nil
}

// cutPAE undoes DSSE's pre-authentication encoding of a statement.
func cutPAE(b []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(b, fmt.Appendf(nil, "DSSEv1 %d %s ", len(payloadType), payloadType))
	if !ok {
		return nil, fmt.Errorf("it does not begin as DSSEv1 of type %s", payloadType)
	}
	size, payload, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return nil, fmt.Errorf("it has no length")
	}
	if string(size) != strconv.Itoa(len(payload)) {
		return nil, fmt.Errorf("it says %.20q bytes and has %d", size, len(payload))
	}
	return payload, nil
}

// included checks that the leaf is in the log.
func (g *Gate) included(info Info, leaf, proof []byte) error {
	p, err := firmseal.ParseProof(proof)
	if err != nil {
		return refused(info, "the log proof cannot be read: %v", err)
	}
	if p.Extra != nil && !bytes.Equal(p.Extra, leaf) {
		return refused(info, "the log proof is about another leaf")
	}
	head, err := g.checkpoint(p.Checkpoint)
	if err != nil {
		return refused(info, "the checkpoint is not one of log %s: %v", g.origin, err)
	}
	if err := tlog.CheckRecord(p.Hashes, head.Size, head.Root, p.Index, tlog.RecordHash(leaf)); err != nil {
		return refused(info, "the leaf is not proven to be in the log at index %d of %d", p.Index, head.Size).Because(err)
	}
	return nil
}

func (g *Gate) checkpoint(signed []byte) (firmseal.Checkpoint, error) {
	g.mu.Lock()
	for i := range g.seen {
		if len(g.seen[i].note) != 0 && bytes.Equal(g.seen[i].note, signed) {
			t := g.seen[i].tree
			g.mu.Unlock()
			return t, nil
		}
	}
	g.mu.Unlock()
	n, err := note.Open(signed, note.VerifierList(g.verifier))
	if err != nil {
		return firmseal.Checkpoint{}, err
	}
	t, err := parseCheckpoint(n.Text, g.origin)
	if err != nil {
		return firmseal.Checkpoint{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	// Two trees of one size are a fork, whoever signed them.
	if t.Size == g.max.Size && g.max.Size > 0 && t.Root != g.max.Root {
		return t, fmt.Errorf("two checkpoints of size %d have different roots: the log has forked", t.Size)
	}
	if t.Size > g.max.Size {
		g.max = t
	}
	g.seen[g.next] = signedTree{bytes.Clone(signed), t}
	g.next = (g.next + 1) % len(g.seen)
	return t, nil
}

// spend marks a leaf's slot as used. A second use, in this process and within
// the last usedGeneration uses, is refused: the ticket is good for one.
//
// The memory is per process and is not meant to be more. That an attempt is
// opened once, and never again by a process that did not open it, is a row of the
// database; whoever can change that row still cannot have a use without a leaf,
// and one leaf is for one input: a second signature over the bytes that the log
// announces already.
func (g *Gate) spend(info Info, once [sha256.Size]byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.used[once] || g.before[once] {
		return refused(info, "this attempt has used the key for this slot already; a new attempt needs a new leaf")
	}
	if len(g.used) >= usedGeneration {
		g.before, g.used = g.used, make(map[[sha256.Size]byte]bool)
	}
	g.used[once] = true
	return nil
}

// parseCheckpoint reads the text of a checkpoint: exactly origin, size and root.
// Extension lines are refused: this log writes none.
func parseCheckpoint(text, origin string) (firmseal.Checkpoint, error) {
	c, err := firmseal.ParseCheckpoint(text, origin)
	if err != nil {
		return firmseal.Checkpoint{}, err
	}
	if c.Text() != text {
		return firmseal.Checkpoint{}, errors.New("it is not three lines")
	}
	return *c, nil
}

// parseLeaf reads a leaf that a ticket shows. A slot that is announced twice
// would leave open which announcement counts.
func parseLeaf(b []byte) (*firmseal.Leaf, error) {
	l, err := firmseal.ParseLeaf(b)
	if err != nil {
		return nil, err
	}
	if l.V != 1 {
		return nil, fmt.Errorf("its version is not 1")
	}
	slots := make(map[string]bool, len(l.Inputs))
	for _, in := range l.Inputs {
		if slots[in.Slot] {
			return nil, fmt.Errorf("slot %q is announced twice", in.Slot)
		}
		slots[in.Slot] = true
	}
	return &l, nil
}

func hexSum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
