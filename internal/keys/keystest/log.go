// Package keystest is the suite that every key backend passes, and the small
// real log that makes tickets for it.
//
// A backend's test is a few lines: Run with a Harness that opens the backend
// over one storage. What is counted and refused is seen through the Gate that
// the suite hands in, so a backend needs nothing for the tests' sake.
package keystest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/gowebpki/jcs"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/keys"
)

// Log is a transparency log in memory: real hashes, real checkpoints, real
// proofs. It is safe for concurrent use.
type Log struct {
	Origin      string
	VerifierKey string

	mu     sync.Mutex
	signer note.Signer
	hashes []tlog.Hash // owned by mu
	size   int64       // owned by mu
}

// NewLog makes a log with a key of its own and a few leaves.
func NewLog(tb testing.TB, origin string) *Log {
	tb.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		tb.Fatal(err)
	}
	l := &Log{Origin: origin, VerifierKey: vkey, signer: s}
	for i := range 5 {
		l.Append(tb, fmt.Appendf(nil, `{"type":"log.filler","v":1,"time":%d}`, i))
	}
	return l
}

// Gate makes a gate that believes this log.
func (l *Log) Gate(tb testing.TB, o keys.GateOptions) *keys.Gate {
	tb.Helper()
	g, err := keys.NewGate(l.VerifierKey, l.Origin, o)
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

type reader []tlog.Hash

func (r reader) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(at))
	for i, x := range at {
		out[i] = r[x]
	}
	return out, nil
}

// Append adds a leaf and returns its index.
func (l *Log) Append(tb testing.TB, leaf []byte) int64 {
	tb.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	h, err := tlog.StoredHashes(l.size, leaf, reader(l.hashes))
	if err != nil {
		tb.Fatal(err)
	}
	l.hashes = append(l.hashes, h...)
	l.size++
	return l.size - 1
}

// Proof is the .tlog-proof of the leaf at index, under the tree of now.
func (l *Log) Proof(tb testing.TB, index int64) []byte {
	tb.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	root, err := tlog.TreeHash(l.size, reader(l.hashes))
	if err != nil {
		tb.Fatal(err)
	}
	p, err := tlog.ProveRecord(l.size, index, reader(l.hashes))
	if err != nil {
		tb.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, proofHead+"index %d\n", index)
	for _, h := range p {
		fmt.Fprintf(&b, "%s\n", base64.StdEncoding.EncodeToString(h[:]))
	}
	b.WriteString("\n")
	b.Write(l.sign(tb, fmt.Sprintf("%s\n%d\n%s\n", l.Origin, l.size, base64.StdEncoding.EncodeToString(root[:]))))
	return []byte(b.String())
}

const proofHead = "c2sp.org/tlog-proof@v1\n"

// checkpoint signs a checkpoint that says size, and extension lines after it.
func (l *Log) checkpoint(tb testing.TB, size string, extension ...string) []byte {
	tb.Helper()
	text := l.Origin + "\n" + size + "\n" + base64.StdEncoding.EncodeToString(make([]byte, tlog.HashSize)) + "\n"
	for _, e := range extension {
		text += e + "\n"
	}
	return l.sign(tb, text)
}

// proofUnder is a proof of entry 0 that leads nowhere, under such a checkpoint.
func (l *Log) proofUnder(tb testing.TB, size string, extension ...string) []byte {
	tb.Helper()
	hash := base64.StdEncoding.EncodeToString(make([]byte, tlog.HashSize))
	return append([]byte(proofHead+"index 0\n"+hash+"\n\n"), l.checkpoint(tb, size, extension...)...)
}

// sign signs a text with the log's key, whatever it says.
func (l *Log) sign(tb testing.TB, text string) []byte {
	tb.Helper()
	signed, err := note.Sign(&note.Note{Text: text}, l.signer)
	if err != nil {
		tb.Fatal(err)
	}
	return signed
}

// Encode is a leaf's canonical form.
func Encode(tb testing.TB, leaf firmseal.Leaf) []byte {
	tb.Helper()
	return Canonical(tb, leaf)
}

// Canonical is the RFC 8785 encoding of v.
func Canonical(tb testing.TB, v any) []byte {
	tb.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	text, err = jcs.Transform(text)
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

// Request makes the canonical request that a firmware key of binding b serves.
func Request(tb testing.TB, b keys.Binding) []byte {
	tb.Helper()
	return Canonical(tb, map[string]any{
		"v": 1, "id": "0197-request", "environment": b.Environment, "product": b.Product, "format": b.Format,
		"version": "1.2.3", "security_counter": 7, "hardware_ids": []string{"board-a", "board-b"},
		"input":  map[string]any{"sha256": Sum([]byte("image")), "size": 4096},
		"policy": Sum([]byte("policy")),
	})
}

// AttemptLeaf announces signatures by a key over a request.
func AttemptLeaf(request []byte, info keys.Info, inputs ...firmseal.LeafInput) firmseal.Leaf {
	return firmseal.Leaf{
		V: 1, Type: firmseal.LeafAttempt, Time: 1, Actor: "token:ci", Record: Sum(request), Request: "0197-request",
		Key: info.ID(), Attempt: 1, Inputs: inputs,
	}
}

// Announce is the leaf's line for one signature.
func Announce(slot string, id alg.ID, kind alg.Kind, input []byte) firmseal.LeafInput {
	return firmseal.LeafInput{Slot: slot, Alg: string(id), Kind: string(kind), SHA256: Sum(input)}
}

// FirmwareTicket makes a right ticket for one signature: the leaf is in the
// log and proven.
func (l *Log) FirmwareTicket(tb testing.TB, info keys.Info, slot string, id alg.ID, input []byte) *keys.Ticket {
	tb.Helper()
	s, err := alg.Lookup(id)
	if err != nil {
		tb.Fatal(err)
	}
	req := Request(tb, info.Binding)
	return l.Ticket(tb, keys.Ticket{Request: req, Slot: slot, Alg: id, Kind: s.Kind, Input: input},
		AttemptLeaf(req, info, Announce("other", id, s.Kind, []byte("other")), Announce(slot, id, s.Kind, input)))
}

// Statement is a release statement of an environment, as far as a gate reads it.
func Statement(tb testing.TB, env keys.Environment, version string) []byte {
	tb.Helper()
	return Canonical(tb, map[string]any{
		"_type":         "https://in-toto.io/Statement/v1",
		"predicateType": "https://github.com/firmseal/firmseal/firmware-release/v1",
		"subject":       []any{map[string]any{"name": "app.bin", "digest": map[string]any{"sha256": Sum([]byte("app"))}}},
		"predicate":     map[string]any{"environment": env, "product": "sensor", "version": version},
	})
}

// PAE is DSSE's pre-authentication encoding of a statement.
func PAE(payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 28 application/vnd.in-toto+json %d %s", len(payload), payload)
}

// SealTicket makes a right ticket for the seal of a statement.
func (l *Log) SealTicket(tb testing.TB, info keys.Info, id alg.ID, statement []byte) *keys.Ticket {
	tb.Helper()
	return l.Ticket(tb, keys.Ticket{Slot: keys.SealSlot, Alg: id, Kind: alg.Message, Input: PAE(statement)}, OutcomeLeaf(info, statement))
}

// OutcomeLeaf permits the first seal of a statement.
func OutcomeLeaf(info keys.Info, statement []byte) firmseal.Leaf {
	return firmseal.Leaf{
		V: 1, Type: firmseal.LeafOutcome, Time: 1, Actor: "system", Request: "0197-request", Record: Sum([]byte("request")),
		Result: "sealed", SealKey: info.ID(), Statement: Sum(statement), Output: Sum([]byte("app")), Attempt: 2,
	}
}

// SealAttemptLeaf permits the seal that is attempt n of OutcomeLeaf's request.
func SealAttemptLeaf(info keys.Info, n int, statement []byte) firmseal.Leaf {
	return firmseal.Leaf{
		V: 1, Type: firmseal.LeafAttempt, Time: 2, Actor: "system", Request: "0197-request", Record: Sum([]byte("request")),
		Key: info.ID(), Attempt: n, Inputs: []firmseal.LeafInput{{Slot: keys.SealSlot, Kind: string(alg.Message), SHA256: Sum(statement)}},
	}
}

// Again gives t the leaf of a later attempt, in the log and proven.
func (l *Log) Again(tb testing.TB, t *keys.Ticket, leaf firmseal.Leaf) *keys.Ticket {
	tb.Helper()
	again := *t
	again.Attempt = Encode(tb, leaf)
	again.AttemptProof = l.Proof(tb, l.Append(tb, again.Attempt))
	return &again
}

// Ticket appends the leaf and fills the ticket with it and its proof.
func (l *Log) Ticket(tb testing.TB, t keys.Ticket, leaf firmseal.Leaf) *keys.Ticket {
	tb.Helper()
	t.Leaf = Encode(tb, leaf)
	t.Proof = l.Proof(tb, l.Append(tb, t.Leaf))
	return &t
}

// Sum is the hex SHA-256 of b.
func Sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// Fork is a log with the same key and leaves that goes its own way from here.
func (l *Log) Fork(tb testing.TB) *Log {
	tb.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	return &Log{Origin: l.Origin, VerifierKey: l.VerifierKey, signer: l.signer, hashes: append([]tlog.Hash(nil), l.hashes...), size: l.size}
}
