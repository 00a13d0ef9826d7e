package keys

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/mod/sumdb/note"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/problem"
)

// Guard makes a Key of a backend's Signer. The Signer is reached in two ways
// only: by a ticket that gate finds right, and, for a log key, by [NoteSigner].
//
// A nil gate is allowed, for a workspace whose log does not exist yet: the key
// then refuses every ticket. It is an error if s has another public key than
// info says, or one below the floor.
func Guard(info Info, s Signer, gate *Gate) (Key, error) {
	spki, err := x509.MarshalPKIXPublicKey(s.Public())
	if err != nil || !bytes.Equal(spki, info.SPKI) {
		return nil, problem.New(problem.KeyMalformed, "key %s has another public key than its record says", info.Name).Because(err)
	}
	t, err := alg.TypeOf(s.Public())
	if err != nil {
		return nil, err
	}
	if t != info.Type {
		return nil, problem.New(problem.KeyMalformed, "key %s is a %s key, its record says %s", info.Name, t, info.Type)
	}
	spec := Spec{Name: info.Name, Type: info.Type, Binding: info.Binding}
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	info.SPKI = spki
	return &guarded{info: info, raw: s, gate: gate}, nil
}

// guarded is a Key.
type guarded struct {
	info Info
	raw  Signer // reached by Sign and checkpointSigner.Sign only
	gate *Gate

	mu   sync.Mutex
	head firmseal.Checkpoint // the largest tree that this log key has signed
}

func (k *guarded) Info() Info {
	i := k.info
	i.SPKI = bytes.Clone(i.SPKI)
	return i
}

func (k *guarded) Sign(ctx context.Context, t *Ticket) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if k.gate == nil {
		return nil, refused(k.info, "the key was opened without the public key of a log")
	}
	p, err := k.gate.check(k.info, t)
	if err != nil {
		return nil, err
	}
	if err := k.gate.spend(k.info, p.once); err != nil {
		return nil, err
	}
	// From here on the attempt counts as used, whatever happens: a crash after
	// Record leaves an account of a use that may not have been made, never a
	// use without its account.
	if k.gate.record != nil {
		if err := k.gate.record(ctx, p.use); err != nil {
			return nil, problem.New(problem.KeyUnavailable, "the use of key %s cannot be recorded, so it was not made", k.info.Name).Because(err)
		}
	}
	return k.raw.SignRaw(ctx, t.Alg, p.kind, p.input)
}

// Format, LogValue: a key prints as its name.

func (k *guarded) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "key %s", k.info.Name) }

func (k *guarded) LogValue() slog.Value { return slog.StringValue("key " + k.info.Name) }

// NoteSigner gives the signer of checkpoints for a log key. It signs a text
// that is a checkpoint of origin (three lines: origin, size, root) and nothing
// else, never a smaller tree than before, and never two roots of one size, in
// the life of this Key.
//
// k is an Ed25519 key of purpose Log, made by Guard or by something that
// forwards NoteSigner(origin string) to one.
func NoteSigner(k Key, origin string) (note.Signer, error) {
	n, ok := k.(interface {
		NoteSigner(origin string) (note.Signer, error)
	})
	if !ok {
		return nil, problem.New(problem.KeyBinding, "key %s cannot sign checkpoints", k.Info().Name)
	}
	return n.NoteSigner(origin)
}

// NoteSigner is what the function of that name calls.
func (k *guarded) NoteSigner(origin string) (note.Signer, error) {
	if k.info.Binding.Purpose != Log {
		return nil, problem.New(problem.KeyBinding, "key %s signs no checkpoints", k.info.Name).
			Seen("its purpose is %q", k.info.Binding.Purpose).WithHint("use the workspace's log key")
	}
	pub, ok := k.raw.Public().(ed25519.PublicKey)
	if !ok {
		return nil, problem.New(problem.KeyBinding, "key %s is a %s key; checkpoints are signed with Ed25519", k.info.Name, k.info.Type)
	}
	vkey, err := note.NewEd25519VerifierKey(origin, pub)
	if err != nil {
		return nil, problem.New(problem.KeyMalformed, "origin %q cannot name a log key", origin).Because(err)
	}
	// The id of a note key: SHA-256(name ‖ "\n" ‖ 0x01 ‖ key), first four bytes.
	h := sha256.Sum256(append([]byte(origin+"\n\x01"), pub...))
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, problem.New(problem.KeyMalformed, "origin %q cannot name a log key", origin).Because(err)
	}
	if id := binary.BigEndian.Uint32(h[:4]); v.KeyHash() != id {
		panic("keys: note key id differs from x/mod's")
	}
	return &checkpointSigner{key: k, origin: origin, id: v.KeyHash()}, nil
}

// VerifierKey is the public half of a log key in the form of C2SP signed
// notes, as devices and monitors hold it.
func VerifierKey(i Info, origin string) (string, error) {
	pub, _, err := alg.ParseSPKI(i.SPKI)
	if err != nil {
		return "", err
	}
	ed, ok := pub.(ed25519.PublicKey)
	if !ok || i.Binding.Purpose != Log {
		return "", problem.New(problem.KeyBinding, "key %s is no log key", i.Name).
			Seen("it is a %s key of purpose %q", i.Type, i.Binding.Purpose)
	}
	vkey, err := note.NewEd25519VerifierKey(origin, ed)
	if err != nil {
		return "", problem.New(problem.KeyMalformed, "origin %q cannot name a log key", origin).Because(err)
	}
	return vkey, nil
}

type checkpointSigner struct {
	key    *guarded
	origin string
	id     uint32
}

func (s *checkpointSigner) Name() string    { return s.origin }
func (s *checkpointSigner) KeyHash() uint32 { return s.id }

func (s *checkpointSigner) Sign(msg []byte) ([]byte, error) {
	no := func(format string, a ...any) *problem.Error {
		return problem.New(problem.KeyTicket, "log key %s refused to sign", s.key.info.Name).Seen(format, a...)
	}
	t, err := parseCheckpoint(string(msg), s.origin)
	if err != nil {
		return nil, no("the text is not a checkpoint of %s: %v", s.origin, err)
	}
	k := s.key
	k.mu.Lock()
	defer k.mu.Unlock()
	if t.Size < k.head.Size {
		return nil, no("the tree shrank from %d to %d", k.head.Size, t.Size)
	}
	if t.Size == k.head.Size && t.Size > 0 && t.Root != k.head.Root {
		return nil, no("a second root for size %d", t.Size)
	}
	// The head moves before the key is used: if signing fails, the same
	// checkpoint may be tried again, another of its size may not.
	k.head = t
	return k.raw.SignRaw(context.Background(), alg.Ed25519Pure, alg.Message, msg)
}
