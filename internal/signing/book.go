package signing

import (
	"context"
	"sync"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/tlog"
)

// book is what the log says of policies and keys. It follows the log's
// administrative leaves, each proven once, and so knows what a row of the
// database cannot be made to say: that a retired key is active, that an older
// policy is the newest, that a key is for another environment.
type book struct {
	// reading is held by the one who reads the log. It is never waited for
	// inside a transaction: the reader needs a connection, too.
	reading sync.Mutex
	next    map[string]int64 // by leaf type: the first index that was not looked at; guarded by reading

	// mu guards what follows, and nobody waits for anything else while it is held.
	mu       sync.Mutex
	policies map[string][]policyLeaf
	created  map[string]keyLeaf // by key id
	retired  map[string]int64   // key id → index of its first retirement
}

type policyLeaf struct {
	index      int64
	id, digest string
}

type keyLeaf struct {
	name, record string
}

// follow reads what the log has new. Two replicas may each see a leaf at another
// time; what was committed before the call began is seen by it, on PostgreSQL
// once it is sequenced, which callers that need a certain leaf wait for.
func (s *Service) follow(ctx context.Context) error {
	b := &s.book
	b.reading.Lock()
	defer b.reading.Unlock()
	if b.next == nil {
		b.next = make(map[string]int64)
	}
	for _, kind := range []string{firmseal.LeafPolicyApply, firmseal.LeafKeyCreate, firmseal.LeafKeyRetire} {
		for {
			es, err := s.log.Find(ctx, tlog.Query{Type: kind, From: b.next[kind]})
			if err != nil {
				return err
			}
			if len(es) == 0 {
				break
			}
			for _, e := range es {
				if err := s.proveEntry(ctx, e); err != nil {
					return err
				}
				b.take(e.Index, e.ID, e.Leaf)
				b.next[kind] = e.Index + 1
			}
		}
	}
	return nil
}

func (b *book) take(index int64, id string, leaf firmseal.Leaf) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.policies == nil {
		b.policies, b.created, b.retired = make(map[string][]policyLeaf), make(map[string]keyLeaf), make(map[string]int64)
	}
	switch leaf.Type {
	case firmseal.LeafPolicyApply:
		b.policies[leaf.Subject] = append(b.policies[leaf.Subject], policyLeaf{index, id, leaf.Record})
	case firmseal.LeafKeyCreate:
		if _, ok := b.created[leaf.Key]; !ok {
			b.created[leaf.Key] = keyLeaf{leaf.Subject, leaf.Record}
		}
	case firmseal.LeafKeyRetire:
		if _, ok := b.retired[leaf.Key]; !ok {
			b.retired[leaf.Key] = index
		}
	}
}

// policyBefore gives a project's newest policy below a leaf index; below 0, the
// newest of all. ok is false if there is none.
func (b *book) policyBefore(project string, index int64) (p policyLeaf, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.policies[project] {
		if index < 0 || l.index < index {
			p, ok = l, true
		}
	}
	return p, ok
}

// retiredBefore reports whether a key was retired below a leaf index; below 0,
// at all.
func (b *book) retiredBefore(key string, index int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	at, ok := b.retired[key]
	return ok && (index < 0 || at < index)
}

// holds compares a key's row with the leaf that the key was created with: name,
// project, URI, type, public key, binding and maker. The caller has followed
// the log.
func (b *book) holds(rec KeyRecord) error {
	doc, err := rec.record()
	if err != nil {
		return err
	}
	b.mu.Lock()
	leaf, ok := b.created[rec.ID()]
	b.mu.Unlock()
	switch {
	case !ok:
		return altered("key %s", rec.Name).Seen("the log knows no key %s", rec.ID())
	case leaf.name != rec.Name || leaf.record != hexSum(doc):
		return altered("key %s", rec.Name).Seen("its row is not the record that the log has of key %s, created as %s", rec.ID(), leaf.name)
	}
	return nil
}

// heldKey gives a project's key, held against the log. Its retirement is the
// log's, too.
func (s *Service) heldKey(ctx context.Context, project, name string) (KeyRecord, error) {
	rec, err := s.Key(ctx, project, name)
	if err != nil {
		return KeyRecord{}, err
	}
	return rec, s.holdKey(ctx, rec)
}

func (s *Service) holdKey(ctx context.Context, rec KeyRecord) error {
	if err := s.follow(ctx); err != nil {
		return err
	}
	if err := s.book.holds(rec); err != nil {
		return err
	}
	if rec.Retired == 0 && s.book.retiredBefore(rec.ID(), -1) {
		// Whoever retired it between our two looks did so rightly.
		now, err := s.Key(ctx, rec.Project, rec.Name)
		if err != nil {
			return err
		}
		if now.Retired == 0 {
			return altered("key %s", rec.Name).Seen("the log has its retirement, its row says that it is active")
		}
		return retiredProblem(now)
	}
	return nil
}

// unknownLeaf turns the absence of a leaf that a row names into what it means.
func unknownLeaf(err error, format string, a ...any) error {
	if problem.Has(err, problem.NotFound) {
		return altered(format, a...).Seen("the log has no entry that its row names").Because(err)
	}
	return err
}
