package keystest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
)

// Harness is one storage of the backend under test.
type Harness struct {
	// Open opens the backend over the storage, with the gate that every key
	// gets. It is called several times: each is as after a restart.
	Open func(t *testing.T, gate *keys.Gate) keys.Backend

	// Locked opens the same storage without what unlocks the keys. Nil if
	// the backend cannot be locked.
	Locked func(t *testing.T) keys.Backend

	// Snapshot is the stored form of a key, to see that it did not change. Nil
	// if it cannot be seen.
	Snapshot func(t *testing.T, name string) []byte

	// Types that the backend has; nil for all.
	Types []alg.KeyType
}

// Run is the suite. open makes a Harness over a fresh, empty storage.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	t.Run("life of a key", func(t *testing.T) { t.Parallel(); life(t, open(t)) })
	t.Run("names", func(t *testing.T) { t.Parallel(); names(t, open(t)) })
	t.Run("bindings", func(t *testing.T) { t.Parallel(); bindings(t, open(t)) })
	t.Run("locked", func(t *testing.T) { t.Parallel(); locked(t, open(t)) })
	t.Run("firmware tickets", func(t *testing.T) { t.Parallel(); firmwareTickets(t, open(t)) })
	t.Run("seal tickets", func(t *testing.T) { t.Parallel(); sealTickets(t, open(t)) })
	t.Run("one use", func(t *testing.T) { t.Parallel(); oneUse(t, open(t)) })
	t.Run("log key", func(t *testing.T) { t.Parallel(); logKey(t, open(t)) })
	t.Run("without a gate", func(t *testing.T) { t.Parallel(); ungated(t, open(t)) })
	t.Run("concurrency", func(t *testing.T) { t.Parallel(); concurrency(t, open(t)) })
	t.Run("cancelled", func(t *testing.T) { t.Parallel(); cancelled(t, open(t)) })
}

func (h Harness) types() []alg.KeyType {
	if h.Types != nil {
		return h.Types
	}
	return alg.KeyTypes()
}

func firmware(env keys.Environment) keys.Binding {
	return keys.Binding{Purpose: keys.Firmware, Environment: env, Product: "sensor", Format: "raw"}
}

// counter counts the uses that a gate let through.
type counter struct{ n atomic.Int64 }

func (c *counter) options() keys.GateOptions {
	return keys.GateOptions{Record: func(context.Context, keys.Use) error { c.n.Add(1); return nil }}
}

func create(t *testing.T, b keys.Backend, s keys.Spec) keys.Key {
	t.Helper()
	k, err := b.Create(t.Context(), s)
	if err != nil {
		t.Fatalf("creating %s: %v", s.Name, err)
	}
	return k
}

func wantCode(t *testing.T, err error, code problem.Code) {
	t.Helper()
	if !problem.Has(err, code) {
		t.Fatalf("error %v, want one of code %s", err, code)
	}
}

// input makes what id signs: a digest or a message.
func input(id alg.ID, of string) []byte {
	s, err := alg.Lookup(id)
	if err != nil {
		panic(err)
	}
	if s.Kind == alg.Message {
		return []byte(of)
	}
	h := s.Hash.New()
	h.Write([]byte(of))
	return h.Sum(nil)
}

// life: every type is made, found again after a restart with the same public
// half and binding, and signs with each of its schemes.
func life(t *testing.T, h Harness) {
	log := NewLog(t, "test.example/log")
	var uses counter
	b := h.Open(t, log.Gate(t, uses.options()))
	made := map[string]keys.Info{}
	for _, typ := range h.types() {
		s := keys.Spec{Name: "k-" + string(typ), Type: typ, Binding: firmware(keys.Production)}
		i := create(t, b, s).Info()
		if i.Name != s.Name || i.Type != typ || i.Binding != s.Binding || i.Created == 0 {
			t.Fatalf("info %+v of a new key does not match %+v", i, s)
		}
		if !strings.HasPrefix(i.URI, b.Scheme()+":") {
			t.Fatalf("URI %q has not scheme %q", i.URI, b.Scheme())
		}
		made[s.Name] = i
	}
	again := h.Open(t, log.Gate(t, uses.options()))
	list, err := again.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != len(made) {
		t.Fatalf("%d keys listed, %d made", len(list), len(made))
	}
	signed := int64(0)
	for _, i := range list {
		want := made[i.Name]
		if i.ID() != want.ID() || i.Binding != want.Binding || i.Type != want.Type || i.Created != want.Created {
			t.Errorf("listed %+v, made %+v", i, want)
		}
		k, err := again.Open(t.Context(), i.URI)
		if err != nil {
			t.Fatal(err)
		}
		if got := k.Info(); got.ID() != want.ID() || got.Binding != want.Binding || got.Created != want.Created {
			t.Errorf("opened %+v, made %+v", got, want)
		}
		pub, typ, err := alg.ParseSPKI(k.Info().SPKI)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range alg.For(typ) {
			in := input(id, "firmware of "+i.Name)
			sig, err := k.Sign(t.Context(), log.FirmwareTicket(t, k.Info(), "image", id, in))
			if err != nil {
				t.Fatalf("%s with %s: %v", i.Name, id, err)
			}
			signed++
			if err := alg.Verify(id, pub, in, sig); err != nil {
				t.Errorf("%s with %s: the signature does not verify: %v", i.Name, id, err)
			}
			if err := alg.Verify(id, pub, input(id, "other"), sig); err == nil {
				t.Errorf("%s with %s: the signature verifies for another input", i.Name, id)
			}
		}
	}
	if uses.n.Load() != signed {
		t.Errorf("%d uses recorded, %d signatures made", uses.n.Load(), signed)
	}
}

func names(t *testing.T, h Harness) {
	b := h.Open(t, nil)
	s := keys.Spec{Name: "release-2026", Type: alg.P256, Binding: firmware(keys.Test)}
	first := create(t, b, s).Info()
	var before []byte
	if h.Snapshot != nil {
		before = h.Snapshot(t, s.Name)
	}
	for name, b := range map[string]keys.Backend{"same backend": b, "after a restart": h.Open(t, nil)} {
		other := s
		other.Type, other.Binding.Environment = alg.Ed25519, keys.Production
		_, err := b.Create(t.Context(), other)
		if !problem.Has(err, problem.KeyExists) {
			t.Errorf("%s: creating a key that exists: %v", name, err)
		}
		k, err := b.Open(t.Context(), first.URI)
		if err != nil {
			t.Fatal(err)
		}
		if k.Info().ID() != first.ID() || k.Info().Binding != first.Binding {
			t.Errorf("%s: the existing key changed", name)
		}
	}
	if h.Snapshot != nil && !bytes.Equal(before, h.Snapshot(t, s.Name)) {
		t.Error("the stored key changed")
	}
	for _, uri := range []string{b.Scheme() + ":absent", b.Scheme() + ":", b.Scheme() + ":../release-2026", "other:release-2026", "", b.Scheme() + ":release-2026/"} {
		_, err := b.Open(t.Context(), uri)
		if !problem.Has(err, problem.KeyNotFound) {
			t.Errorf("opening %q: %v, want KEY.NOT_FOUND", uri, err)
		}
	}
	for _, bad := range []string{"", ".", "..", ".key", "-a", "A", "a/b", "a b", "a\x00", "ä", strings.Repeat("a", 64)} {
		s.Name = bad
		if _, err := b.Create(t.Context(), s); !problem.Has(err, problem.KeyMalformed) {
			t.Errorf("name %q: %v, want KEY.MALFORMED", bad, err)
		}
	}
	s.Name = strings.Repeat("a", 63)
	create(t, b, s)

	// Many at once: one wins, and all see that one.
	s.Name = "race"
	var wg sync.WaitGroup
	var won, lost atomic.Int64
	var id atomic.Value
	for range 8 {
		b := h.Open(t, nil)
		wg.Go(func() {
			k, err := b.Create(context.Background(), s)
			switch {
			case err == nil:
				won.Add(1)
				id.Store(k.Info().ID())
			case problem.Has(err, problem.KeyExists):
				lost.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || lost.Load() != 7 {
		t.Fatalf("%d creators won, %d lost", won.Load(), lost.Load())
	}
	k, err := h.Open(t, nil).Open(t.Context(), b.Scheme()+":race")
	if err != nil || k.Info().ID() != id.Load() {
		t.Fatalf("the key of the race is not the winner's: %v", err)
	}
}

func bindings(t *testing.T, h Harness) {
	b := h.Open(t, nil)
	good := firmware(keys.Production)
	for name, s := range map[string]struct {
		change func(*keys.Spec)
		code   problem.Code
	}{
		"no purpose":        {func(s *keys.Spec) { s.Binding.Purpose = "" }, problem.KeyBinding},
		"unknown purpose":   {func(s *keys.Spec) { s.Binding.Purpose = "root" }, problem.KeyBinding},
		"no environment":    {func(s *keys.Spec) { s.Binding.Environment = "" }, problem.KeyBinding},
		"staging":           {func(s *keys.Spec) { s.Binding.Environment = "staging" }, problem.KeyBinding},
		"no product":        {func(s *keys.Spec) { s.Binding.Product = "" }, problem.KeyBinding},
		"no format":         {func(s *keys.Spec) { s.Binding.Format = "" }, problem.KeyBinding},
		"seal with product": {func(s *keys.Spec) { s.Binding.Purpose = keys.Seal }, problem.KeyBinding},
		"log with product":  {func(s *keys.Spec) { s.Binding.Purpose = keys.Log }, problem.KeyBinding},
		"unknown type":      {func(s *keys.Spec) { s.Type = "rsa1024" }, problem.AlgUnsupported},
		"no type":           {func(s *keys.Spec) { s.Type = "" }, problem.AlgUnsupported},
		"an RSA seal key": {func(s *keys.Spec) {
			s.Type, s.Binding = alg.RSA3072, keys.Binding{Purpose: keys.Seal, Environment: keys.Test}
		}, problem.AlgUnsupported},
		"an ECDSA log key": {func(s *keys.Spec) {
			s.Type, s.Binding = alg.P256, keys.Binding{Purpose: keys.Log, Environment: keys.Test}
		}, problem.AlgUnsupported},
		"a huge product":     {func(s *keys.Spec) { s.Binding.Product = strings.Repeat("x", 10_000) }, problem.KeyBinding},
		"control characters": {func(s *keys.Spec) { s.Binding.Product = "a\nb" }, problem.KeyBinding},
	} {
		spec := keys.Spec{Name: "bad", Type: alg.P256, Binding: good}
		s.change(&spec)
		if _, err := b.Create(t.Context(), spec); !problem.Has(err, s.code) {
			t.Errorf("%s: %v, want %s", name, err, s.code)
		}
	}
	list, err := b.List(t.Context())
	if err != nil || len(list) != 0 {
		t.Errorf("refused specs left keys: %v, %v", list, err)
	}
}

func locked(t *testing.T, h Harness) {
	if h.Locked == nil {
		t.Skip("this backend has no locked state")
	}
	b := h.Open(t, nil)
	i := create(t, b, keys.Spec{Name: "secret", Type: alg.P256, Binding: firmware(keys.Production)}).Info()
	closed := h.Locked(t)
	_, err := closed.Open(t.Context(), i.URI)
	wantCode(t, err, problem.KeyLocked)
	_, err = closed.Create(t.Context(), keys.Spec{Name: "secret", Type: alg.P256, Binding: firmware(keys.Production)})
	wantCode(t, err, problem.KeyExists)
	_, err = closed.Create(t.Context(), keys.Spec{Name: "fresh", Type: alg.P256, Binding: firmware(keys.Production)})
	wantCode(t, err, problem.KeyLocked)
	list, err := closed.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Name != "secret" {
		t.Errorf("listed %+v, %v while locked", list, err)
	}
	if _, err := h.Open(t, nil).Open(t.Context(), i.URI); err != nil {
		t.Errorf("unlocked again: %v", err)
	}
}

// signer is a key with what a ticket needs, and the count of its uses.
type signer struct {
	key  keys.Key
	log  *Log
	uses *counter
}

func newSigner(t *testing.T, h Harness, s keys.Spec) signer {
	t.Helper()
	x := signer{log: NewLog(t, "test.example/log"), uses: new(counter)}
	x.key = create(t, h.Open(t, x.log.Gate(t, x.uses.options())), s)
	return x
}

// refuses asserts that a ticket signs nothing, and that the refusal says why.
func (x signer) refuses(t *testing.T, name string, tk *keys.Ticket, why string) {
	t.Helper()
	before := x.uses.n.Load()
	sig, err := x.key.Sign(t.Context(), tk)
	if !problem.Has(err, problem.KeyTicket) || sig != nil {
		t.Errorf("%s: signature of %d bytes and %v, want KEY.TICKET_REFUSED", name, len(sig), err)
		return
	}
	if p := problem.Of(err); !strings.Contains(p.Why, why) {
		t.Errorf("%s: refused because %q, which does not say %q", name, p.Why, why)
	}
	if n := x.uses.n.Load(); n != before {
		t.Errorf("%s: the key was used %d times", name, n-before)
	}
}

func firmwareTickets(t *testing.T, h Harness) {
	x := newSigner(t, h, keys.Spec{Name: "boot", Type: alg.P256, Binding: firmware(keys.Production)})
	info, id := x.key.Info(), alg.ECDSAP256SHA256
	in := input(id, "app")
	good := func() *keys.Ticket { return x.log.FirmwareTicket(t, info, "image", id, in) }

	x.refuses(t, "no ticket", nil, "no ticket")
	x.refuses(t, "empty ticket", &keys.Ticket{}, "")

	// One field of a right ticket at a time.
	elsewhere := NewLog(t, "test.example/log")
	other := NewLog(t, "other.example/log")
	for _, c := range []struct {
		name, why string
		change    func(*keys.Ticket)
	}{
		{"another request", "commits to request", func(k *keys.Ticket) { k.Request = append(bytes.Clone(k.Request), ' ') }},
		{"no request", "commits to request", func(k *keys.Ticket) { k.Request = nil }},
		{"another leaf", "", func(k *keys.Ticket) { k.Leaf = append(bytes.Clone(k.Leaf), ' ') }},
		{"no leaf", "leaf", func(k *keys.Ticket) { k.Leaf = nil }},
		{"huge leaf", "too large", func(k *keys.Ticket) { k.Leaf = make([]byte, 1<<17) }},
		{"no proof", "proof", func(k *keys.Ticket) { k.Proof = nil }},
		{"truncated proof", "", func(k *keys.Ticket) { k.Proof = k.Proof[:len(k.Proof)-20] }},
		{"proof of another leaf", "not proven", func(k *keys.Ticket) { k.Proof = x.log.Proof(t, 0) }},
		{"proof about another extra", "another leaf", func(k *keys.Ticket) {
			k.Proof = bytes.Replace(k.Proof, []byte("@v1\n"), []byte("@v1\nextra AAAA\n"), 1)
		}},
		{"log with another key", "not one of log", func(k *keys.Ticket) { k.Proof = elsewhere.Proof(t, elsewhere.Append(t, k.Leaf)) }},
		{"another log", "not one of log", func(k *keys.Ticket) { k.Proof = other.Proof(t, other.Append(t, k.Leaf)) }},
		{"a tree of 2^63-1", "not one of log", func(k *keys.Ticket) { k.Proof = x.log.proofUnder(t, "9223372036854775807") }},
		{"a tree of 2^53", "not one of log", func(k *keys.Ticket) { k.Proof = x.log.proofUnder(t, "9007199254740992") }},
		{"the largest tree", "not proven", func(k *keys.Ticket) { k.Proof = x.log.proofUnder(t, "9007199254740991") }},
		{"a checkpoint with an extension", "three lines", func(k *keys.Ticket) { k.Proof = x.log.proofUnder(t, "8", "extension") }},
		{"index of 2^63-1", "log proof cannot be read", func(k *keys.Ticket) {
			k.Proof = []byte(proofHead + "index 9223372036854775807\n\n" + string(x.log.checkpoint(t, "8")))
		}},
		{"another slot", `no signature for slot "conf-9"`, func(k *keys.Ticket) { k.Slot = "conf-9" }},
		{"announced slot of other input", "announced for input", func(k *keys.Ticket) { k.Slot = "other" }},
		{"no slot", "no signature for slot", func(k *keys.Ticket) { k.Slot = "" }},
		{"an algorithm of another type", "no algorithm of a p256 key", func(k *keys.Ticket) { k.Alg = alg.Ed25519Pure }},
		{"an unknown algorithm", "unknown algorithm", func(k *keys.Ticket) { k.Alg = "ecdsa" }},
		{"another kind", "signs a digest", func(k *keys.Ticket) { k.Kind = alg.Message }},
		{"no kind", "signs a digest", func(k *keys.Ticket) { k.Kind = "" }},
		{"another input", "announced for input", func(k *keys.Ticket) { k.Input = input(id, "evil") }},
		{"a short digest", "digest of 32 bytes", func(k *keys.Ticket) { k.Input = k.Input[:31] }},
		{"no input", "digest of 32 bytes", func(k *keys.Ticket) { k.Input = nil }},
	} {
		tk := good()
		c.change(tk)
		x.refuses(t, c.name, tk, c.why)
	}

	// One field of the leaf at a time, properly logged: a broken-in server that
	// writes leaves of its own liking.
	req := Request(t, info.Binding)
	for _, c := range []struct {
		name, why string
		change    func(*firmseal.Leaf)
	}{
		{"an intent leaf", firmseal.LeafIntent, func(l *firmseal.Leaf) { l.Type = firmseal.LeafIntent }},
		{"an outcome leaf", firmseal.LeafOutcome, func(l *firmseal.Leaf) { l.Type, l.Result, l.SealKey = firmseal.LeafOutcome, "sealed", info.ID() }},
		{"a leaf of version 2", "version", func(l *firmseal.Leaf) { l.V = 2 }},
		{"a leaf of another record", "commits to request", func(l *firmseal.Leaf) { l.Record = Sum([]byte("x")) }},
		{"a leaf without record", "commits to request", func(l *firmseal.Leaf) { l.Record = "" }},
		{"a leaf of another key", "use of key", func(l *firmseal.Leaf) { l.Key = Sum([]byte("x")) }},
		{"a leaf without inputs", "no signature for slot", func(l *firmseal.Leaf) { l.Inputs = nil }},
		{"a leaf of another slot", "no signature for slot", func(l *firmseal.Leaf) { l.Inputs[0].Slot = "x" }},
		{"a leaf of another algorithm", "announced for", func(l *firmseal.Leaf) { l.Inputs[0].Alg = "ed25519" }},
		{"a leaf of another kind", "announced for", func(l *firmseal.Leaf) { l.Inputs[0].Kind = "message" }},
		{"a leaf of another input", "announced for input", func(l *firmseal.Leaf) { l.Inputs[0].SHA256 = Sum([]byte("x")) }},
		{"a slot announced twice", "announced twice", func(l *firmseal.Leaf) {
			l.Inputs = append(l.Inputs, Announce("image", id, alg.Digest, []byte("x")))
		}},
	} {
		l := AttemptLeaf(req, info, Announce("image", id, alg.Digest, in))
		c.change(&l)
		x.refuses(t, c.name, x.log.Ticket(t, keys.Ticket{Request: req, Slot: "image", Alg: id, Kind: alg.Digest, Input: in}, l), c.why)
	}

	// A request for something else, logged as it should be.
	for _, c := range []struct {
		name, why string
		change    func(*keys.Binding)
	}{
		{"another environment", `environment "production", the request says "test"`, func(b *keys.Binding) { b.Environment = keys.Test }},
		{"another product", `product "sensor", the request says "door"`, func(b *keys.Binding) { b.Product = "door" }},
		{"another format", `format "raw", the request says "fit"`, func(b *keys.Binding) { b.Format = "fit" }},
	} {
		wrong := info
		c.change(&wrong.Binding)
		x.refuses(t, c.name, x.log.FirmwareTicket(t, wrong, "image", id, in), c.why)
	}

	// Requests and leaves that two readers would read differently.
	for name, raw := range map[string]string{
		"environment twice":  `{"environment":"test","environment":"production","product":"sensor","format":"raw"}`,
		"another case":       `{"Environment":"production","product":"sensor","format":"raw"}`,
		"not a string":       `{"environment":["production"],"product":"sensor","format":"raw"}`,
		"an array":           `["environment","production"]`,
		"two values":         `{"environment":"production","product":"sensor","format":"raw"} {}`,
		"invalid UTF-8":      "{\"environment\":\"production\",\"product\":\"sensor\",\"format\":\"raw\",\"x\":\"\xff\"}",
		"nested environment": `{"x":{"environment":"production"},"product":"sensor","format":"raw"}`,
	} {
		l := AttemptLeaf([]byte(raw), info, Announce("image", id, alg.Digest, in))
		x.refuses(t, name, x.log.Ticket(t, keys.Ticket{Request: []byte(raw), Slot: "image", Alg: id, Kind: alg.Digest, Input: in}, l), "")
	}
	for name, change := range map[string][2]string{
		"leaf with a doubled member":       {`"v":1`, `"v":1,"key":"` + info.ID() + `"`},
		"leaf with a member of other case": {`"record":`, `"Record":`},
		"leaf without a type":              {`"type":"sign.attempt",`, ``},
	} {
		tk := good()
		tk.Leaf = bytes.Replace(tk.Leaf, []byte(change[0]), []byte(change[1]), 1)
		tk.Proof = x.log.Proof(t, x.log.Append(t, tk.Leaf))
		x.refuses(t, name, tk, "")
	}

	twice := x.log.Again(t, good(), SealAttemptLeaf(info, 2, []byte("x")))
	x.refuses(t, "a firmware ticket with an attempt", twice, "second leaf")

	// A seal's ticket does not move a firmware key.
	x.refuses(t, "a seal ticket", x.log.SealTicket(t, info, id, Statement(t, keys.Production, "1")), "")

	// And after all that the key still signs.
	if _, err := x.key.Sign(t.Context(), good()); err != nil {
		t.Errorf("a right ticket: %v", err)
	}
	if n := x.uses.n.Load(); n != 1 {
		t.Errorf("%d uses, want 1", n)
	}
}

func sealTickets(t *testing.T, h Harness) {
	for _, typ := range keys.Seal.Types() {
		if h.Types != nil && !contains(h.Types, typ) {
			continue
		}
		x := newSigner(t, h, keys.Spec{Name: "seal-" + string(typ), Type: typ, Binding: keys.Binding{Purpose: keys.Seal, Environment: keys.Production}})
		info, id := x.key.Info(), alg.For(typ)[0]
		statement := Statement(t, keys.Production, "1.2.3")
		good := func() *keys.Ticket { return x.log.SealTicket(t, info, id, statement) }

		for _, c := range []struct {
			name, why string
			change    func(*keys.Ticket)
		}{
			{"another statement", "commits to statement", func(k *keys.Ticket) { k.Input = PAE(Statement(t, keys.Production, "1.2.4")) }},
			{"no PAE", "DSSE", func(k *keys.Ticket) { k.Input = statement }},
			{"another payload type", "DSSE", func(k *keys.Ticket) { k.Input = fmt.Appendf(nil, "DSSEv1 4 json %d %s", len(statement), statement) }},
			{"a wrong length", "DSSE", func(k *keys.Ticket) {
				k.Input = fmt.Appendf(nil, "DSSEv1 28 application/vnd.in-toto+json %d %s", len(statement)+1, statement)
			}},
			{"a digest", "message", func(k *keys.Ticket) { h := sha256.Sum256(k.Input); k.Input, k.Kind = h[:], alg.Digest }},
			{"another algorithm", "algorithm", func(k *keys.Ticket) { k.Alg = alg.RSA2048PSSSHA256 }},
			{"no proof", "proof", func(k *keys.Ticket) { k.Proof = nil }},
			{"another leaf's proof", "not proven", func(k *keys.Ticket) { k.Proof = x.log.Proof(t, 1) }},
		} {
			tk := good()
			c.change(tk)
			x.refuses(t, c.name, tk, c.why)
		}
		for _, c := range []struct {
			name   string
			change func(*firmseal.Leaf)
		}{
			{"an attempt leaf", func(l *firmseal.Leaf) { l.Type = firmseal.LeafAttempt }},
			{"a failed outcome", func(l *firmseal.Leaf) { l.Result = "failed" }},
			{"another seal key", func(l *firmseal.Leaf) { l.SealKey = Sum([]byte("x")) }},
			{"the key in another member", func(l *firmseal.Leaf) { l.SealKey, l.Key = "", info.ID() }},
			{"another statement", func(l *firmseal.Leaf) { l.Statement = Sum([]byte("x")) }},
		} {
			l := OutcomeLeaf(info, statement)
			c.change(&l)
			x.refuses(t, "leaf: "+c.name, x.log.Ticket(t, keys.Ticket{Slot: keys.SealSlot, Alg: id, Kind: alg.Message, Input: PAE(statement)}, l), "leaf")
		}
		for _, c := range []struct {
			name, why string
			change    func(*firmseal.Leaf)
		}{
			{"an outcome", "not \"sign.attempt\"", func(l *firmseal.Leaf) { l.Type = firmseal.LeafOutcome }},
			{"another key", "use of key", func(l *firmseal.Leaf) { l.Key = Sum([]byte("x")) }},
			{"another request", "of request", func(l *firmseal.Leaf) { l.Request = "0198-request" }},
			{"another record", "of request", func(l *firmseal.Leaf) { l.Record = Sum([]byte("x")) }},
			{"the outcome's attempt", "not after", func(l *firmseal.Leaf) { l.Attempt = 2 }},
			{"no attempt", "not after", func(l *firmseal.Leaf) { l.Attempt = 0 }},
			{"no input", "announce the seal", func(l *firmseal.Leaf) { l.Inputs = nil }},
			{"another slot", "announce the seal", func(l *firmseal.Leaf) { l.Inputs[0].Slot = "image" }},
			{"another kind", "announce the seal", func(l *firmseal.Leaf) { l.Inputs[0].Kind = "digest" }},
			{"another statement", "announce the seal", func(l *firmseal.Leaf) { l.Inputs[0].SHA256 = Sum([]byte("x")) }},
			{"two inputs", "announce the seal", func(l *firmseal.Leaf) {
				l.Inputs = append(l.Inputs, Announce("image", id, alg.Message, statement))
			}},
		} {
			l := SealAttemptLeaf(info, 3, statement)
			c.change(&l)
			x.refuses(t, "attempt: "+c.name, x.log.Again(t, good(), l), c.why)
		}
		for _, c := range []struct {
			name, why string
			change    func(*keys.Ticket)
		}{
			{"unproven", "proof cannot be read", func(k *keys.Ticket) { k.AttemptProof = nil }},
			{"under another's proof", "not proven", func(k *keys.Ticket) { k.AttemptProof = x.log.Proof(t, 1) }},
			{"under the outcome's proof", "not proven", func(k *keys.Ticket) { k.AttemptProof = k.Proof }},
			{"of an unproven outcome", "not proven", func(k *keys.Ticket) { k.Proof = k.AttemptProof }},
			{"only a proof", "no attempt", func(k *keys.Ticket) { k.Attempt = nil }},
			{"huge", "too large", func(k *keys.Ticket) { k.Attempt = make([]byte, 1<<17) }},
			{"another slot", "fills slot", func(k *keys.Ticket) { k.Slot = "seal2" }},
		} {
			tk := x.log.Again(t, good(), SealAttemptLeaf(info, 3, statement))
			c.change(tk)
			x.refuses(t, "attempt: "+c.name, tk, c.why)
		}
		x.refuses(t, "a test statement", x.log.SealTicket(t, info, id, Statement(t, keys.Test, "1")), `environment "production", the statement says "test"`)
		for name, s := range map[string]string{
			"not JSON":         `{`,
			"no predicate":     `{}`,
			"predicate twice":  `{"predicate":{"environment":"test"},"predicate":{"environment":"production"}}`,
			"environ. twice":   `{"predicate":{"environment":"test","environment":"production"}}`,
			"predicate a list": `{"predicate":["environment","production"]}`,
		} {
			x.refuses(t, name, x.log.SealTicket(t, info, id, []byte(s)), "")
		}
		x.refuses(t, "a firmware ticket", x.log.FirmwareTicket(t, info, "image", id, input(id, "app")), "")

		tk := good()
		sig, err := x.key.Sign(t.Context(), tk)
		if err != nil {
			t.Fatal(err)
		}
		pub, _, err := alg.ParseSPKI(info.SPKI)
		if err != nil {
			t.Fatal(err)
		}
		if err := alg.Verify(id, pub, input(id, string(tk.Input)), sig); err != nil {
			t.Errorf("%s: the seal does not verify: %v", id, err)
		}

		// One outcome, one seal; each further one has an attempt of its own.
		x.refuses(t, "the same seal", tk, "already")
		slot := *tk
		slot.Slot = ""
		x.refuses(t, "the same seal for no slot", &slot, "fills slot")
		for n := 3; n < 5; n++ {
			again := x.log.Again(t, tk, SealAttemptLeaf(info, n, statement))
			if _, err := x.key.Sign(t.Context(), again); err != nil {
				t.Errorf("%s: attempt %d: %v", id, n, err)
			}
			x.refuses(t, "the same attempt", again, "already")
		}
		if n := x.uses.n.Load(); n != 3 {
			t.Errorf("%s: %d uses of 3 leaves", id, n)
		}
	}
}

// oneUse: an attempt announces each slot for one use.
func oneUse(t *testing.T, h Harness) {
	x := newSigner(t, h, keys.Spec{Name: "boot", Type: alg.Ed25519, Binding: firmware(keys.Test)})
	info := x.key.Info()
	tk := x.log.FirmwareTicket(t, info, "image", alg.Ed25519Pure, []byte("app"))
	if _, err := x.key.Sign(t.Context(), tk); err != nil {
		t.Fatal(err)
	}
	x.refuses(t, "the same ticket", tk, "already")
	later := *tk
	later.Proof = x.log.Proof(t, 6-1) // the leaf's index: after the five fillers
	x.refuses(t, "the same attempt under another proof", &later, "already")

	// Many at once get one signature.
	tk = x.log.FirmwareTicket(t, info, "image", alg.Ed25519Pure, []byte("again"))
	var wg sync.WaitGroup
	var signed atomic.Int64
	for range 16 {
		wg.Go(func() {
			if _, err := x.key.Sign(context.Background(), tk); err == nil {
				signed.Add(1)
			}
		})
	}
	wg.Wait()
	if signed.Load() != 1 || x.uses.n.Load() != 2 {
		t.Errorf("%d signatures and %d uses of one ticket", signed.Load(), x.uses.n.Load()-1)
	}

	// A use that cannot be recorded is not made.
	gate := x.log.Gate(t, keys.GateOptions{Record: func(context.Context, keys.Use) error { return errors.New("disk full") }})
	k, err := h.Open(t, gate).Open(t.Context(), info.URI)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := k.Sign(t.Context(), x.log.FirmwareTicket(t, info, "image", alg.Ed25519Pure, []byte("third")))
	if sig != nil {
		t.Error("a use without its record was made")
	}
	wantCode(t, err, problem.KeyUnavailable)
}

func logKey(t *testing.T, h Harness) {
	b := h.Open(t, nil)
	k := create(t, b, keys.Spec{Name: "log", Type: alg.Ed25519, Binding: keys.Binding{Purpose: keys.Log, Environment: keys.Production}})
	const origin = "log.example/ws-1"
	s, err := keys.NoteSigner(k, origin)
	if err != nil {
		t.Fatal(err)
	}
	vkey, err := keys.VerifierKey(k.Info(), origin)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	root := func(s string) string { h := sha256.Sum256([]byte(s)); return base64.StdEncoding.EncodeToString(h[:]) }
	for _, c := range []struct {
		text string
		good bool
	}{
		{origin + "\n1\n" + root("a") + "\n", true},
		{origin + "\n1\n" + root("a") + "\n", true}, // again
		{origin + "\n1\n" + root("b") + "\n", false},
		{origin + "\n7\n" + root("c") + "\n", true},
		{origin + "\n6\n" + root("d") + "\n", false},
		{origin + "\n0\n" + root("") + "\n", false},
		{origin + "\n7\n" + root("d") + "\n", false},
		{origin + "x\n8\n" + root("e") + "\n", false},
		{"other\n8\n" + root("e") + "\n", false},
		{origin + "\n08\n" + root("e") + "\n", false},
		{origin + "\n+8\n" + root("e") + "\n", false},
		{origin + "\n-8\n" + root("e") + "\n", false},
		{origin + "\n8\n" + root("e"), false},
		{origin + "\n8\n" + root("e") + "\nextension\n", false},
		{origin + "\n8\n" + root("e") + "\n\n", false},
		{origin + "\n8\nAAAA\n", false},
		{"", false},
		{"hello\n", false},
		{string(PAE(Statement(t, keys.Production, "1"))), false},
		{origin + "\n99999999999999999999\n" + root("e") + "\n", false},
		{origin + "\n9223372036854775807\n" + root("e") + "\n", false},
		{origin + "\n9007199254740992\n" + root("e") + "\n", false},
		{origin + "\n8\n" + root("e") + "\n", true},
	} {
		signed, err := note.Sign(&note.Note{Text: c.text}, s)
		if !c.good {
			if err == nil {
				t.Errorf("signed %q", c.text)
			}
			continue
		}
		if err != nil {
			t.Errorf("refused %q: %v", c.text, err)
			continue
		}
		if _, err := note.Open(signed, note.VerifierList(v)); err != nil {
			t.Errorf("%q: %v", c.text, err)
		}
	}
	// A second signer of the same key remembers the first one's tree.
	s2, err := keys.NoteSigner(k, origin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s2.Sign([]byte(origin + "\n7\n" + root("c") + "\n")); !problem.Has(err, problem.KeyTicket) {
		t.Errorf("a second signer went back: %v", err)
	}

	// No ticket reaches a log key, and no other key signs checkpoints.
	l := NewLog(t, "test.example/log")
	var uses counter
	gated, err := h.Open(t, l.Gate(t, uses.options())).Open(t.Context(), k.Info().URI)
	if err != nil {
		t.Fatal(err)
	}
	x := signer{gated, l, &uses}
	x.refuses(t, "firmware ticket", l.FirmwareTicket(t, k.Info(), "image", alg.Ed25519Pure, []byte("x")), "not used by tickets")
	x.refuses(t, "seal ticket", l.SealTicket(t, k.Info(), alg.Ed25519Pure, Statement(t, keys.Production, "1")), "not used by tickets")
	for _, p := range []keys.Binding{firmware(keys.Production), {Purpose: keys.Seal, Environment: keys.Production}} {
		k := create(t, b, keys.Spec{Name: "not-" + string(p.Purpose), Type: alg.Ed25519, Binding: p})
		_, err := keys.NoteSigner(k, origin)
		wantCode(t, err, problem.KeyBinding)
		_, err = keys.VerifierKey(k.Info(), origin)
		wantCode(t, err, problem.KeyBinding)
	}
}

func ungated(t *testing.T, h Harness) {
	b := h.Open(t, nil)
	k := create(t, b, keys.Spec{Name: "boot", Type: alg.P256, Binding: firmware(keys.Test)})
	l := NewLog(t, "test.example/log")
	_, err := k.Sign(t.Context(), l.FirmwareTicket(t, k.Info(), "image", alg.ECDSAP256SHA256, input(alg.ECDSAP256SHA256, "x")))
	wantCode(t, err, problem.KeyTicket)
}

func concurrency(t *testing.T, h Harness) {
	l := NewLog(t, "test.example/log")
	var uses counter
	b := h.Open(t, l.Gate(t, uses.options()))
	i := create(t, b, keys.Spec{Name: "boot", Type: alg.P256, Binding: firmware(keys.Test)}).Info()
	b = h.Open(t, l.Gate(t, uses.options()))
	pub, _, err := alg.ParseSPKI(i.SPKI)
	if err != nil {
		t.Fatal(err)
	}
	const callers, each = 8, 12
	var tickets [callers][each]*keys.Ticket
	for c := range callers {
		for n := range each {
			tickets[c][n] = l.FirmwareTicket(t, i, "image", alg.ECDSAP256SHA256, input(alg.ECDSAP256SHA256, fmt.Sprint(c, n)))
		}
	}
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			k, err := b.Open(context.Background(), i.URI)
			if err != nil {
				t.Error(err)
				return
			}
			for _, tk := range tickets[c] {
				sig, err := k.Sign(context.Background(), tk)
				if err != nil {
					t.Error(err)
					return
				}
				if err := alg.Verify(tk.Alg, pub, tk.Input, sig); err != nil {
					t.Error(err)
				}
			}
			if _, err := b.List(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := uses.n.Load(); n != callers*each {
		t.Errorf("%d uses, want %d", n, callers*each)
	}
}

func cancelled(t *testing.T, h Harness) {
	x := newSigner(t, h, keys.Spec{Name: "boot", Type: alg.P256, Binding: firmware(keys.Test)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := h.Open(t, nil)
	if _, err := b.Create(ctx, keys.Spec{Name: "late", Type: alg.P256, Binding: firmware(keys.Test)}); !errors.Is(err, context.Canceled) {
		t.Errorf("Create: %v", err)
	}
	if _, err := b.Open(t.Context(), b.Scheme()+":late"); !problem.Has(err, problem.KeyNotFound) {
		t.Errorf("a cancelled Create left a key: %v", err)
	}
	if _, err := b.Open(ctx, x.key.Info().URI); !errors.Is(err, context.Canceled) {
		t.Errorf("Open: %v", err)
	}
	if _, err := b.List(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("List: %v", err)
	}
	tk := x.log.FirmwareTicket(t, x.key.Info(), "image", alg.ECDSAP256SHA256, input(alg.ECDSAP256SHA256, "x"))
	if _, err := x.key.Sign(ctx, tk); !errors.Is(err, context.Canceled) {
		t.Errorf("Sign: %v", err)
	}
	// The cancelled call did not use up the attempt.
	if _, err := x.key.Sign(t.Context(), tk); err != nil {
		t.Errorf("Sign after a cancelled call: %v", err)
	}
}

func contains(list []alg.KeyType, t alg.KeyType) bool {
	for _, x := range list {
		if x == t {
			return true
		}
	}
	return false
}
