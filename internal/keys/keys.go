// Package keys holds private keys, and lets nobody use one without a ticket.
//
// A backend is one folder below this one (soft: age-encrypted files) and one
// line in cmd/firmseal/parts.go; keystest is the suite that all of them pass.
//
// # A key signs for one purpose
//
// A key is bound at creation to a purpose, and a firmware key also to an
// environment, a product and a format. The binding is part of the key's own
// stored form (for soft keys inside the encrypted and authenticated file), so
// that editing a database row cannot move a test key to production.
//
// # The ticket
//
// Sign takes a Ticket, never a bare digest. The ticket carries the canonical
// request, the log leaf that announces this use, and the proof that the leaf is
// in the log. The key checks them with its own copy of the log's public key:
// a server that was broken into cannot use a key without leaving the leaf.
//
// Gate is that check, Guard puts it before a backend's Signer. A log key takes
// no tickets, since it is what makes the proofs: NoteSigner is its only door,
// and signs nothing but checkpoints of one log that grows.
//
// # What the gate does not do
//
// A gate cannot know that a leaf is the newest: that a ticket is redeemed once
// is the database's promise (package signing), and the gate's memory of used
// attempts is the second lock, for one process: it is empty after a restart, and
// two processes have two. Nor does it judge policy: the request it sees was
// accepted by the policy that the log names.
package keys

import (
	"context"
	"crypto"

	"github.com/firmseal/firmseal/internal/alg"
)

// Purpose is what a key is for.
type Purpose string

const (
	Firmware Purpose = "firmware" // signs images
	Seal     Purpose = "seal"     // signs release statements
	Log      Purpose = "log"      // signs checkpoints
)

// Environment separates what may reach real devices from what may not.
type Environment string

const (
	Test       Environment = "test"
	Production Environment = "production"
)

// Binding is what a key was created for; it never changes.
type Binding struct {
	Purpose     Purpose     `json:"purpose"`
	Environment Environment `json:"environment"`       // every key has one
	Product     string      `json:"product,omitempty"` // firmware keys only
	Format      string      `json:"format,omitempty"`  // firmware keys only
}

// Info is the public side of a key.
type Info struct {
	Name    string      `json:"name"`
	URI     string      `json:"uri"` // "soft:NAME"; which backend and what it calls the key
	Type    alg.KeyType `json:"type"`
	SPKI    []byte      `json:"spki"` // DER SubjectPublicKeyInfo
	Binding Binding     `json:"binding"`
	Created int64       `json:"created"` // µs since 1970, UTC
}

// ID is the hex SHA-256 of the SubjectPublicKeyInfo.
func (i Info) ID() string { return alg.KeyID(i.SPKI) }

// Spec asks for a new key.
type Spec struct {
	Name    string
	Type    alg.KeyType
	Binding Binding
}

// Backend makes and opens keys of one kind of storage.
type Backend interface {
	// Scheme is the URI scheme, without the colon: "soft".
	Scheme() string
	// Create makes a key whose private half never leaves the backend. When it
	// returns, the key is durable. A name that exists is KEY.EXISTS, and
	// the existing key is untouched.
	Create(ctx context.Context, s Spec) (Key, error)
	// Open finds a key by its URI. The Info it has is the backend's own, not
	// the caller's belief. An absent key is KEY.NOT_FOUND, one that cannot be
	// decrypted KEY.LOCKED, an outage KEY.UNAVAILABLE.
	Open(ctx context.Context, uri string) (Key, error)
	// List gives what is there, locked or not where the backend can tell.
	List(ctx context.Context) ([]Info, error)
}

// Key can sign. It is safe for concurrent use.
type Key interface {
	Info() Info
	// Sign checks t with the key's own Gate and signs t.Input. The signature is
	// canonical (see image.Signature) and was not yet verified by anybody.
	// Errors: KEY.TICKET_REFUSED (never retry), KEY.UNAVAILABLE (the caller may
	// retry: nothing was signed, or nobody knows), anything else is final.
	Sign(ctx context.Context, t *Ticket) ([]byte, error)
}

// Ticket permits one use of one key. Which fields count depends on the key's
// purpose; see Gate.
type Ticket struct {
	Request []byte // canonical request (RFC 8785), for firmware keys
	Leaf    []byte // the sign.attempt leaf for firmware keys, the sign.outcome leaf for the seal key
	Proof   []byte // .tlog-proof of Leaf
	Slot    string // the slot of the attempt that this use fills; for the seal key always SealSlot
	Alg     alg.ID
	Kind    alg.Kind // of Input; for the seal key always alg.Message
	Input   []byte   // what is signed: digest or message; for the seal key the whole DSSE pre-authentication encoding, which the Guard hashes where the scheme wants a digest

	// The seal key's first use is permitted by the outcome leaf itself. A later
	// one, after an outage or a crash, has a sign.attempt leaf of its own, which
	// is here with its proof. Firmware keys take neither.
	Attempt      []byte
	AttemptProof []byte
}

// SealSlot is the one slot of a seal's attempt.
const SealSlot = "seal"

// Signer is the raw power of a key, as a backend has it below its Gate. It is
// what crypto.Signer is, and exists so that a backend can hand it to Guard.
type Signer interface {
	Public() crypto.PublicKey
	SignRaw(ctx context.Context, id alg.ID, kind alg.Kind, input []byte) ([]byte, error)
}
