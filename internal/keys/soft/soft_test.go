package soft

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/keys/keystest"
	"github.com/firmseal/firmseal/internal/problem"
)

func identity(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func mustOpen(t testing.TB, dir string, o Options) *Backend {
	t.Helper()
	b, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func bound() keys.Binding {
	return keys.Binding{Purpose: keys.Firmware, Environment: keys.Production, Product: "sensor", Format: "raw"}
}

func create(t testing.TB, b *Backend, name string, typ alg.KeyType) keys.Key {
	t.Helper()
	k, err := b.Create(t.Context(), keys.Spec{Name: name, Type: typ, Binding: bound()})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestBackend(t *testing.T) {
	t.Parallel()
	snapshot := func(dir string) func(*testing.T, string) []byte {
		return func(t *testing.T, name string) []byte {
			b, err := os.ReadFile(filepath.Join(dir, name+".key"))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	t.Run("identity", func(t *testing.T) {
		t.Parallel()
		keystest.Run(t, func(t *testing.T) keystest.Harness {
			dir, id := t.TempDir(), identity(t)
			return keystest.Harness{
				Open: func(t *testing.T, g *keys.Gate) keys.Backend {
					return mustOpen(t, dir, Options{Gate: g, Identities: []age.Identity{id}})
				},
				Locked:   func(t *testing.T) keys.Backend { return mustOpen(t, dir, Options{}) },
				Snapshot: snapshot(dir),
			}
		})
	})
	t.Run("passphrase", func(t *testing.T) {
		t.Parallel()
		keystest.Run(t, func(t *testing.T) keystest.Harness {
			dir := t.TempDir()
			return keystest.Harness{
				Open: func(t *testing.T, g *keys.Gate) keys.Backend {
					return mustOpen(t, dir, Options{Gate: g, WorkFactor: 4, Passphrase: func() (string, error) { return "correct horse", nil }})
				},
				Locked: func(t *testing.T) keys.Backend {
					return mustOpen(t, dir, Options{Passphrase: func() (string, error) { return "", errors.New("no terminal") }})
				},
				Snapshot: snapshot(dir),
				Types:    []alg.KeyType{alg.P256, alg.Ed25519},
			}
		})
	})
}

func TestUnlocking(t *testing.T) {
	t.Parallel()
	dir, id := t.TempDir(), identity(t)
	var asked atomic.Int64
	ask := func(pass string) func() (string, error) {
		return func() (string, error) { asked.Add(1); return pass, nil }
	}
	create(t, mustOpen(t, dir, Options{Identities: []age.Identity{id}}), "by-identity", alg.P256)
	create(t, mustOpen(t, dir, Options{Passphrase: ask("right"), WorkFactor: 4}), "by-passphrase", alg.P256)
	create(t, mustOpen(t, dir, Options{Passphrase: ask("right"), WorkFactor: 4}), "by-passphrase-2", alg.P256)

	asked.Store(0)
	both := mustOpen(t, dir, Options{Identities: []age.Identity{id}, Passphrase: ask("right")})
	if _, err := both.Open(t.Context(), "soft:by-identity"); err != nil {
		t.Fatal(err)
	}
	if asked.Load() != 0 {
		t.Error("asked for a passphrase that was not needed")
	}
	for range 2 {
		for _, n := range []string{"by-passphrase", "by-passphrase-2"} {
			if _, err := both.Open(t.Context(), "soft:"+n); err != nil {
				t.Fatal(err)
			}
		}
	}
	if asked.Load() != 1 {
		t.Errorf("asked %d times, want once", asked.Load())
	}

	for name, o := range map[string]Options{
		"wrong passphrase": {Passphrase: ask("wrong")},
		"empty passphrase": {Passphrase: ask("")},
		"other identity":   {Identities: []age.Identity{identity(t)}},
		"both wrong":       {Identities: []age.Identity{identity(t)}, Passphrase: ask("wrong")},
		"nothing":          {},
	} {
		for _, n := range []string{"by-identity", "by-passphrase"} {
			_, err := mustOpen(t, dir, o).Open(t.Context(), "soft:"+n)
			if !problem.Has(err, problem.KeyLocked) {
				t.Errorf("%s, %s: %v, want KEY.LOCKED", name, n, err)
			}
			if err != nil && strings.Contains(fmt.Sprintf("%+v %v", err, errors.Unwrap(err)), "wrong horse") {
				t.Errorf("the error shows the passphrase: %v", err)
			}
		}
	}

	// scrypt may not be made to take more memory than we allow.
	r, err := age.NewScryptRecipient("right")
	if err != nil {
		t.Fatal(err)
	}
	r.SetWorkFactor(4)
	var file bytes.Buffer
	a := armor.NewWriter(&file)
	w, err := age.Encrypt(a, r)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	a.Close()
	raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Split(file.String(), "\n")[1:strings.Count(file.String(), "\n")-1], ""))
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.Replace(raw, []byte(" 4\n"), []byte(" 30\n"), 1)
	armored := "-----BEGIN AGE ENCRYPTED FILE-----\n" + wrap(base64.StdEncoding.EncodeToString(raw)) + "-----END AGE ENCRYPTED FILE-----\n"
	if err := os.WriteFile(filepath.Join(dir, "greedy.key"), []byte(armored), 0o600); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := mustOpen(t, dir, Options{Passphrase: ask("right")}).Open(t.Context(), "soft:greedy"); err == nil {
		t.Error("a work factor of 2^30 was accepted")
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("it took %v to refuse", d)
	}
}

func wrap(s string) string {
	var b strings.Builder
	for len(s) > 64 {
		b.WriteString(s[:64] + "\n")
		s = s[64:]
	}
	b.WriteString(s + "\n")
	return b.String()
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir, id := t.TempDir(), identity(t)
	o := Options{Identities: []age.Identity{id}}
	info := create(t, mustOpen(t, dir, o), "boot", alg.P256).Info()
	path := func(n string) string { return filepath.Join(dir, n) }
	whole, err := os.ReadFile(path("boot.key"))
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(path("boot.key")); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", st.Mode())
	}
	if left, _ := filepath.Glob(path(".tmp-*")); len(left) != 0 {
		t.Errorf("temporary files left: %v", left)
	}

	t.Run("damaged files are no keys", func(t *testing.T) {
		for name, content := range map[string][]byte{
			"empty":    {},
			"half":     whole[:len(whole)/2],
			"no-end":   whole[:len(whole)-40],
			"flipped":  flipAt(whole, len(whole)-150),
			"text":     []byte("not a key\n"),
			"huge":     bytes.Repeat([]byte("x"), maxFile+1),
			"appended": append(bytes.Clone(whole), "more"...),
			"plain":    seal(t, id, []byte("firmseal-key/v1\n{}\n")),
			"renamed":  whole,
		} {
			if err := os.WriteFile(path(name+".key"), content, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := mustOpen(t, dir, o).Open(t.Context(), "soft:"+name)
			if !problem.Has(err, problem.KeyMalformed) {
				t.Errorf("%s: %v, want KEY.MALFORMED", name, err)
			}
			os.Remove(path(name + ".key"))
		}
	})
	t.Run("the .pub file is not believed", func(t *testing.T) {
		text, err := os.ReadFile(path("boot.pub"))
		if err != nil {
			t.Fatal(err)
		}
		forged := bytes.Replace(text, []byte("production"), []byte("test"), 1)
		if bytes.Equal(forged, text) {
			t.Fatal("nothing to forge")
		}
		if err := os.WriteFile(path("boot.pub"), forged, 0o644); err != nil {
			t.Fatal(err)
		}
		b := mustOpen(t, dir, o)
		k, err := b.Open(t.Context(), "soft:boot")
		if err != nil || k.Info().Binding.Environment != keys.Production {
			t.Errorf("opened %+v, %v", k, err)
		}
		list, err := b.List(t.Context())
		if err != nil || list[0].Binding.Environment != keys.Production {
			t.Errorf("listed %+v, %v", list, err)
		}
	})
	t.Run("a missing .pub file comes back", func(t *testing.T) {
		if err := os.Remove(path("boot.pub")); err != nil {
			t.Fatal(err)
		}
		b := mustOpen(t, dir, o)
		list, err := b.List(t.Context())
		if err != nil || len(list) != 1 || list[0].Name != "boot" || list[0].SPKI != nil {
			t.Fatalf("listed %+v, %v", list, err)
		}
		if _, err := b.Open(t.Context(), "soft:boot"); err != nil {
			t.Fatal(err)
		}
		list, err = mustOpen(t, dir, Options{}).List(t.Context())
		if err != nil || list[0].ID() != info.ID() {
			t.Errorf("listed %+v, %v", list, err)
		}
	})
	t.Run("a link out of the directory is not followed", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "evil.key")
		if err := os.WriteFile(out, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(out, path("evil.key")); err != nil {
			t.Skip(err)
		}
		if _, err := mustOpen(t, dir, o).Open(t.Context(), "soft:evil"); err == nil {
			t.Error("followed a link out of the key directory")
		}
	})
	t.Run("old temporary files go", func(t *testing.T) {
		for n, age := range map[string]time.Duration{".tmp-old": 2 * staleTemp, ".tmp-new": 0} {
			if err := os.WriteFile(path(n), []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
			when := time.Now().Add(-age)
			if err := os.Chtimes(path(n), when, when); err != nil {
				t.Fatal(err)
			}
		}
		mustOpen(t, dir, o)
		left, _ := filepath.Glob(path(".tmp-*"))
		if len(left) != 1 || filepath.Base(left[0]) != ".tmp-new" {
			t.Errorf("left %v", left)
		}
	})
}

// flipAt changes a character of the armour's payload into another one.
func flipAt(b []byte, at int) []byte {
	b = bytes.Clone(b)
	for b[at] == '\n' {
		at++
	}
	if b[at] == 'A' {
		b[at] = 'B'
	} else {
		b[at] = 'A'
	}
	return b
}

func seal(t testing.TB, id *age.X25519Identity, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	a := armor.NewWriter(&b)
	w, err := age.Encrypt(a, id.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	w.Write(plain)
	if err := errors.Join(w.Close(), a.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestImport(t *testing.T) {
	t.Parallel()
	dir, id := t.TempDir(), identity(t)
	b := mustOpen(t, dir, Options{Identities: []age.Identity{id}})
	ec, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	sec1, _ := x509.MarshalECPrivateKey(ec)
	p8 := func(k any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	rsa2048, _ := rsa.GenerateKey(rand.Reader, 2048)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	// 1024 bits and an exponent of 3, made by hand: the library refuses to.
	weak := smallRSA(t, 1024, 65537)
	small := smallRSA(t, 2048, 3)
	mixed := *rsa2048
	mixed.PublicKey.N = new(big.Int).Add(rsa2048.N, big.NewInt(2))

	params := []byte("-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n")
	for n, c := range map[string]struct {
		pem  []byte
		typ  alg.KeyType
		code problem.Code
	}{
		"p8-ec":     {p8(ec), alg.P384, ""},
		"sec1":      {pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}), "", ""},
		"openssl":   {append(params, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})...), "", ""},
		"pkcs1":     {pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsa2048)}), "", ""},
		"ed":        {p8(ed), "", ""},
		"othertype": {p8(ec), alg.P256, problem.KeyMalformed},
		"weak":      {pkcs1(weak), "", problem.AlgWeak},
		"exp3":      {pkcs1(small), "", problem.AlgWeak},
		"p224":      {p8(p224), "", problem.AlgUnsupported},
		"twokeys":   {append(p8(ec), p8(ed)...), "", problem.KeyMalformed},
		"notpem":    {[]byte("hello"), "", problem.KeyMalformed},
		"empty":     {nil, "", problem.KeyMalformed},
		"encrypted": {pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: sec1}), "", problem.KeyMalformed},
		"cert":      {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: sec1}), "", problem.KeyMalformed},
		"garbage":   {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("garbage")}), "", problem.KeyMalformed},
		"badrsa":    {pkcs1(&mixed), "", problem.KeyMalformed},
	} {
		k, err := b.Import(t.Context(), keys.Spec{Name: n, Type: c.typ, Binding: bound()}, c.pem)
		if c.code != "" {
			if !problem.Has(err, c.code) {
				t.Errorf("%s: %v, want %s", n, err, c.code)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", n, err)
			continue
		}
		again, err := mustOpen(t, dir, Options{Identities: []age.Identity{id}}).Open(t.Context(), "soft:"+n)
		if err != nil || again.Info().ID() != k.Info().ID() {
			t.Errorf("%s: found again as %v, %v", n, again, err)
		}
	}
	if _, err := b.Import(t.Context(), keys.Spec{Name: "sec1", Binding: bound()}, p8(ed)); !problem.Has(err, problem.KeyExists) {
		t.Errorf("import over a key: %v", err)
	}
	list, err := b.List(t.Context())
	if err != nil || len(list) != 5 {
		t.Errorf("%d keys, %v; want the five good ones", len(list), err)
	}
}

func smallRSA(t *testing.T, bits int, e int64) *rsa.PrivateKey {
	t.Helper()
	one := big.NewInt(1)
	for {
		p, err := rand.Prime(rand.Reader, bits/2)
		if err != nil {
			t.Fatal(err)
		}
		q, err := rand.Prime(rand.Reader, bits/2)
		if err != nil {
			t.Fatal(err)
		}
		n := new(big.Int).Mul(p, q)
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		d := new(big.Int).ModInverse(big.NewInt(e), phi)
		if n.BitLen() == bits && d != nil {
			return &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n, E: int(e)}, D: d, Primes: []*big.Int{p, q}}
		}
	}
}

func pkcs1(k *rsa.PrivateKey) []byte {
	der := x509.MarshalPKCS1PrivateKey(k)
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: der})
}

func TestSignRaw(t *testing.T) {
	t.Parallel()
	for _, typ := range []alg.KeyType{alg.P256, alg.Ed25519, alg.RSA2048} {
		priv, err := generate(typ)
		if err != nil {
			t.Fatal(err)
		}
		s := newSigner(priv, typ)
		for _, id := range alg.For(typ) {
			spec, _ := alg.Lookup(id)
			good := make([]byte, 32)
			other := alg.Message
			if spec.Kind == alg.Digest {
				good = make([]byte, spec.Hash.Size())
			} else {
				other = alg.Digest
			}
			if _, err := s.SignRaw(t.Context(), id, spec.Kind, good); err != nil {
				t.Errorf("%s: %v", id, err)
			}
			for name, call := range map[string]func() ([]byte, error){
				"other kind": func() ([]byte, error) { return s.SignRaw(t.Context(), id, other, good) },
				"no kind":    func() ([]byte, error) { return s.SignRaw(t.Context(), id, "", good) },
				"other type": func() ([]byte, error) {
					return s.SignRaw(t.Context(), alg.ECDSAP384SHA384, alg.Digest, make([]byte, 48))
				},
				"unknown":   func() ([]byte, error) { return s.SignRaw(t.Context(), "rsa", alg.Digest, good) },
				"too large": func() ([]byte, error) { return s.SignRaw(t.Context(), id, spec.Kind, make([]byte, alg.MaxMessage+1)) },
			} {
				if sig, err := call(); err == nil || sig != nil {
					t.Errorf("%s, %s: signed", id, name)
				}
			}
		}
	}
}

// TestRedacted prints everything that holds a key, in every way, and looks for
// the private key in all its usual encodings.
func TestRedacted(t *testing.T) {
	t.Parallel()
	const pass = "correct horse battery staple"
	dir := t.TempDir()
	b := mustOpen(t, dir, Options{WorkFactor: 4, Passphrase: func() (string, error) { return pass, nil }})
	log := keystest.NewLog(t, "test.example/log")
	var secrets []string
	var things []any
	for _, typ := range []alg.KeyType{alg.P256, alg.Ed25519, alg.RSA2048} {
		priv, err := generate(typ)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(priv)
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, encodings(der)...)
		switch k := priv.(type) {
		case *ecdsa.PrivateKey:
			d, err := k.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			secrets = append(secrets, encodings(d)...)
			secrets = append(secrets, new(big.Int).SetBytes(d).String())
		case ed25519.PrivateKey:
			secrets = append(secrets, encodings(k.Seed())...)
		case *rsa.PrivateKey:
			secrets = append(secrets, k.D.String(), k.Primes[0].String(), hex.EncodeToString(k.Primes[0].Bytes()))
		}
		k, err := b.store(t.Context(), keys.Spec{Name: "k-" + string(typ), Type: typ, Binding: bound()}, priv)
		if err != nil {
			t.Fatal(err)
		}
		_, ticketErr := k.Sign(t.Context(), log.FirmwareTicket(t, k.Info(), "image", alg.For(typ)[0], []byte("x")))
		_, importErr := b.Import(t.Context(), keys.Spec{Name: "again", Type: alg.P384, Binding: bound()}, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
		_, _, decodeErr := decode("x", append([]byte(magic+"{}\n"), der...))
		raw := newSigner(priv, typ)
		things = append(things, k, raw, []any{raw, k}, map[string]any{"k": raw, "g": k}, struct{ K, S any }{k, raw},
			struct{ s *signer }{raw}, ticketErr, importErr, decodeErr, errors.Unwrap(importErr), errors.Unwrap(decodeErr), k.Info())
	}
	secrets = append(secrets, encodings([]byte(pass))...)
	things = append(things, b, &things, b.open)

	var out strings.Builder
	for _, x := range things {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", x)
		}
		if text, err := json.Marshal(x); err == nil {
			out.Write(text)
		}
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(h).Info("message", "thing", x)
		}
	}
	for name, err := range map[string]error{"dir": filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			text, err := os.ReadFile(p)
			out.Write(text)
			return err
		}
		return err
	})} {
		if err != nil {
			t.Fatal(name, err)
		}
	}
	for _, s := range secrets {
		if len(s) < 8 {
			t.Fatalf("secret %q is too short to look for", s)
		}
		if strings.Contains(out.String(), s) {
			t.Errorf("a secret was printed: %.16s…", s)
		}
	}
	// The search itself finds what is there.
	if !strings.Contains(fmt.Sprintf("%d", []byte(pass)), encodings([]byte(pass))[3]) {
		t.Error("the search is blind")
	}
}

// encodings are the ways in which bytes are printed.
func encodings(b []byte) []string {
	d := fmt.Sprint(b)
	return []string{hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)), base64.StdEncoding.EncodeToString(b)[:len(b)/3*4], d[1 : len(d)-1], string(b)}
}

var _ crypto.Signer = ed25519.PrivateKey(nil)

func FuzzDecode(f *testing.F) {
	priv, err := generate(alg.P256)
	if err != nil {
		f.Fatal(err)
	}
	spki, _ := x509.MarshalPKIXPublicKey(priv.Public())
	good, err := encode(keys.Info{Name: "boot", Type: alg.P256, SPKI: spki, Binding: bound(), Created: 1}, priv)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:40])
	f.Add([]byte(magic + "{}\n"))
	f.Add([]byte(magic + `{"name":"boot","type":"ed25519","binding":{"purpose":"log","environment":"test"},"created":1}` + "\n"))
	f.Fuzz(func(t *testing.T, plain []byte) {
		info, priv, err := decode("boot", plain)
		if err != nil {
			if problem.Of(err).Code == problem.Internal {
				t.Fatalf("an error without a code: %v", err)
			}
			return
		}
		// What is accepted is a key under the rules, and survives its own form.
		if _, err := keys.Guard(info, newSigner(priv, info.Type), nil); err != nil {
			t.Fatalf("accepted what Guard refuses: %v", err)
		}
		again, err := encode(info, priv)
		if err != nil {
			t.Fatal(err)
		}
		i2, _, err := decode("boot", again)
		if err != nil || i2.ID() != info.ID() || i2.Binding != info.Binding {
			t.Fatalf("%+v became %+v, %v", info, i2, err)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	id := identity(b)
	log := keystest.NewLog(b, "test.example/log")
	back := mustOpen(b, b.TempDir(), Options{Gate: log.Gate(b, keys.GateOptions{}), Identities: []age.Identity{id}})
	k := create(b, back, "boot", alg.P256)
	var tickets []*keys.Ticket
	for i := range 512 {
		tickets = append(tickets, log.FirmwareTicket(b, k.Info(), "image", alg.ECDSAP256SHA256, append(make([]byte, 24), fmt.Sprintf("%08d", i)...)))
	}
	next := 0
	for b.Loop() {
		if next == len(tickets) {
			b.StopTimer()
			// The gate remembers what it has signed for: a new one.
			k, _ = mustOpen(b, back.root.Name(), Options{Gate: log.Gate(b, keys.GateOptions{}), Identities: []age.Identity{id}}).Open(context.Background(), "soft:boot")
			next = 0
			b.StartTimer()
		}
		if _, err := k.Sign(context.Background(), tickets[next]); err != nil {
			b.Fatal(err)
		}
		next++
	}
}
