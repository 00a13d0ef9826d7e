// Package soft keeps private keys in files, encrypted with age.
//
// It is for development, for CI without a token, and for test keys. The private
// key is in this process's memory once it was used; a token or a KMS never lets
// it out.
//
// # Files
//
// A key NAME is one file, NAME.key: an armoured age file whose plaintext is a
// JSON header (name, type, binding, creation time) on one line and the private
// key as PKCS #8 PEM. The header lies inside the encryption, beside the key:
// who can write to the directory but cannot decrypt can delete a key or put
// another in its place, which has another id, but cannot change what this key
// is for.
//
// NAME.pub repeats the public part for listing while the key is locked. It is
// never believed: Open reads the encrypted file.
//
// # Writing
//
// A key file is written whole to a temporary name, synced, and given its name
// by link(2), which fails if the name exists; then the directory is synced. A
// crash leaves either no key or the whole key, and a race has one winner. A
// leftover temporary file is removed an hour later. NAME.pub comes after; if it
// is missing it is written again when the key is next opened.
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
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
)

const (
	scheme    = "soft"
	magic     = "firmseal-key/v1\n"
	maxFile   = 64 << 10 // an RSA-4096 key is under 8 KiB in armour
	maxHeader = 4 << 10
	keySuffix = ".key"
	pubSuffix = ".pub"
	tmpPrefix = ".tmp-"

	// staleTemp is how old a temporary file must be to be a crash's, not a
	// running writer's.
	staleTemp = time.Hour

	// maxWorkFactor bounds what a key file can make scrypt use: 2^20 needs 1 GiB.
	maxWorkFactor     = 20
	defaultWorkFactor = 18
)

// Options say how keys are unlocked and who lets them sign.
type Options struct {
	// Gate checks every ticket. Nil, for a workspace without a log yet: keys
	// can be created, and a log key can sign checkpoints, but no ticket is good.
	Gate *keys.Gate

	// Identities decrypt key files. New keys are encrypted to Recipients, or,
	// if there are none, to those Identities that are native age keys.
	Identities []age.Identity
	Recipients []age.Recipient

	// Passphrase is asked for at most once in the life of a Backend, and only
	// if no identity opens a key, or a new key has no recipient.
	Passphrase func() (string, error)

	// WorkFactor is log2 of scrypt's cost for new keys under a passphrase; 0 is
	// 18, about a second.
	WorkFactor int
}

// Backend is a directory of keys. It is safe for concurrent use, also by
// several processes.
type Backend struct {
	root       *os.Root
	gate       *keys.Gate
	identities []age.Identity
	recipients []age.Recipient
	passphrase func() (string, error)
	workFactor int

	mu   sync.Mutex
	open map[string]keys.Key // decrypted keys by name
}

var _ keys.Backend = (*Backend)(nil)

// Open opens dir, and makes it if it is not there. No key is decrypted yet.
func Open(dir string, o Options) (*Backend, error) {
	if o.WorkFactor == 0 {
		o.WorkFactor = defaultWorkFactor
	}
	if o.WorkFactor < 1 || o.WorkFactor > maxWorkFactor {
		return nil, problem.New(problem.Usage, "a scrypt work factor of %d is out of range", o.WorkFactor).Seen("1 to %d", maxWorkFactor)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, unavailable("the key directory cannot be made", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, unavailable("the key directory cannot be opened", err)
	}
	b := &Backend{root: root, gate: o.Gate, identities: o.Identities, recipients: o.Recipients, workFactor: o.WorkFactor, open: map[string]keys.Key{}}
	if len(b.recipients) == 0 {
		for _, i := range o.Identities {
			switch i := i.(type) {
			case *age.X25519Identity:
				b.recipients = append(b.recipients, i.Recipient())
			case *age.HybridIdentity:
				b.recipients = append(b.recipients, i.Recipient())
			}
		}
	}
	if o.Passphrase != nil {
		// A closure, so that no field of Backend holds the passphrase.
		b.passphrase = sync.OnceValues(o.Passphrase)
	}
	if err := b.sweep(); err != nil {
		root.Close()
		return nil, err
	}
	return b, nil
}

// Close lets go of the directory. Keys that were opened still sign.
func (b *Backend) Close() error { return b.root.Close() }

// Scheme is "soft".
func (b *Backend) Scheme() string { return scheme }

// Format prints a Backend as its kind: its fields lead to secrets.
func (b *Backend) Format(s fmt.State, _ rune) { io.WriteString(s, "soft keys") }

func unavailable(what string, err error) error {
	return problem.New(problem.KeyUnavailable, "%s", what).Seen("%v", errors.Unwrap(err)).Because(err)
}

// Create makes a new key.
func (b *Backend) Create(ctx context.Context, s keys.Spec) (keys.Key, error) {
	if err := b.free(ctx, s); err != nil {
		return nil, err
	}
	priv, err := generate(s.Type)
	if err != nil {
		return nil, fmt.Errorf("generating a %s key: %w", s.Type, err)
	}
	return b.store(ctx, s, priv)
}

// Import stores an existing private key: PKCS #8, SEC 1 or PKCS #1 in PEM, not
// encrypted. A weak key is refused. An empty s.Type is taken from the key.
func (b *Backend) Import(ctx context.Context, s keys.Spec, text []byte) (keys.Key, error) {
	priv, err := parsePEM(text)
	if err != nil {
		return nil, err
	}
	t, err := alg.TypeOf(priv.Public())
	if err != nil {
		return nil, err
	}
	if s.Type == "" {
		s.Type = t
	}
	if s.Type != t {
		return nil, problem.New(problem.KeyMalformed, "the file holds a %s key, not %s", t, s.Type)
	}
	if err := b.free(ctx, s); err != nil {
		return nil, err
	}
	return b.store(ctx, s, priv)
}

// free refuses early what store would refuse late, before a slow generation.
func (b *Backend) free(ctx context.Context, s keys.Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.Validate(); err != nil {
		return err
	}
	if _, err := b.root.Lstat(s.Name + keySuffix); err == nil {
		return exists(s.Name)
	}
	return nil
}

func exists(name string) error {
	return problem.New(problem.KeyExists, "key %s exists", name).WithHint("choose another name; keys are never replaced")
}

func (b *Backend) store(ctx context.Context, s keys.Spec, priv crypto.Signer) (keys.Key, error) {
	spki, err := x509.MarshalPKIXPublicKey(priv.Public())
	if err != nil {
		return nil, fmt.Errorf("encoding the public key of %s: %w", s.Name, err)
	}
	info := keys.Info{Name: s.Name, URI: scheme + ":" + s.Name, Type: s.Type, SPKI: spki, Binding: s.Binding, Created: time.Now().UnixMicro()}
	key, err := keys.Guard(info, newSigner(priv, s.Type), b.gate)
	if err != nil {
		return nil, err
	}
	plain, err := encode(info, priv)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	file, err := b.encrypt(s.Name, plain)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.write(s.Name+keySuffix, file, 0o600, false); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, exists(s.Name)
		}
		return nil, unavailable("key "+s.Name+" cannot be stored", err)
	}
	b.open[s.Name] = key
	// The key is durable, so Create has succeeded: without its .pub file it is
	// listed by name alone until it is next opened.
	_ = b.publish(info)
	return key, nil
}

// Open finds and decrypts the key "soft:NAME".
func (b *Backend) Open(ctx context.Context, uri string) (keys.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name, ok := strings.CutPrefix(uri, scheme+":")
	if !ok || !keys.ValidName(name) {
		return nil, problem.New(problem.KeyNotFound, "%.100q names no key file", uri).Seen("the form is soft:NAME")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.unlock(name)
}

// unlock is called with mu held.
func (b *Backend) unlock(name string) (keys.Key, error) {
	if k, ok := b.open[name]; ok {
		return k, nil
	}
	file, err := b.read(name + keySuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, problem.New(problem.KeyNotFound, "there is no key %s", name).WithHint("firmseal key list").Because(err)
	}
	if err != nil {
		return nil, err
	}
	plain, err := b.decrypt(name, file)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	info, priv, err := decode(name, plain)
	if err != nil {
		return nil, err
	}
	key, err := keys.Guard(info, newSigner(priv, info.Type), b.gate)
	if err != nil {
		return nil, err
	}
	b.open[name] = key
	if _, err := b.root.Lstat(name + pubSuffix); errors.Is(err, fs.ErrNotExist) {
		// A crash came between the two files. The key is whole; a directory
		// that cannot be written to must not keep it from signing.
		_ = b.publish(info)
	}
	return key, nil
}

// List gives every key file, by name. A key that was opened is listed as its
// encrypted file says; a locked one as its .pub file says, and with its name
// and URI alone if that cannot be read.
func (b *Backend) List(ctx context.Context) ([]keys.Info, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	names, err := b.names()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]keys.Info, 0, len(names))
	for _, n := range names {
		if k, ok := b.open[n]; ok {
			out = append(out, k.Info())
			continue
		}
		out = append(out, b.public(n))
	}
	return out, nil
}

func (b *Backend) public(name string) keys.Info {
	bare := keys.Info{Name: name, URI: scheme + ":" + name}
	text, err := b.read(name + pubSuffix)
	if err != nil {
		return bare
	}
	var i keys.Info
	if strictJSON(text, &i) != nil || i.Name != name || i.URI != bare.URI {
		return bare
	}
	if _, t, err := alg.ParseSPKI(i.SPKI); err != nil || t != i.Type {
		return bare
	}
	return i
}

func (b *Backend) names() ([]string, error) {
	d, err := b.root.Open(".")
	if err != nil {
		return nil, unavailable("the key directory cannot be read", err)
	}
	defer d.Close()
	all, err := d.ReadDir(-1)
	if err != nil {
		return nil, unavailable("the key directory cannot be read", err)
	}
	var names []string
	for _, e := range all {
		n, ok := strings.CutSuffix(e.Name(), keySuffix)
		if ok && keys.ValidName(n) && e.Type().IsRegular() {
			names = append(names, n)
		}
	}
	sort.Strings(names)
	return names, nil
}

func (b *Backend) read(name string) ([]byte, error) {
	f, err := b.root.Open(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return nil, unavailable("key file "+name+" cannot be read", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, unavailable("key file "+name+" cannot be read", err)
	}
	if len(text) > maxFile {
		return nil, malformed(strings.TrimSuffix(name, keySuffix), "it is larger than %d bytes", maxFile)
	}
	return text, nil
}

// write makes the file name durable, by link if it must not exist before.
func (b *Backend) write(name string, text []byte, mode fs.FileMode, replace bool) error {
	var r [12]byte
	rand.Read(r[:])
	tmp := tmpPrefix + hex.EncodeToString(r[:])
	f, err := b.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer b.root.Remove(tmp) // after a rename there is nothing to remove
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if replace {
		err = b.root.Rename(tmp, name)
	} else {
		err = b.root.Link(tmp, name)
	}
	if err != nil {
		return err
	}
	d, err := b.root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (b *Backend) publish(i keys.Info) error {
	text, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	return b.write(i.Name+pubSuffix, append(text, '\n'), 0o644, true)
}

// sweep removes what a crash left.
func (b *Backend) sweep() error {
	d, err := b.root.Open(".")
	if err != nil {
		return unavailable("the key directory cannot be read", err)
	}
	defer d.Close()
	all, err := d.ReadDir(-1)
	if err != nil {
		return unavailable("the key directory cannot be read", err)
	}
	for _, e := range all {
		if !strings.HasPrefix(e.Name(), tmpPrefix) {
			continue
		}
		if i, err := e.Info(); err == nil && time.Since(i.ModTime()) > staleTemp {
			// It may be gone by now, or the directory read-only: neither
			// hinders reading keys.
			_ = b.root.Remove(e.Name())
		}
	}
	return nil
}

func (b *Backend) encrypt(name string, plain []byte) ([]byte, error) {
	recipients := b.recipients
	if len(recipients) == 0 {
		if b.passphrase == nil {
			return nil, problem.New(problem.KeyLocked, "key %s cannot be encrypted", name).
				Seen("there is neither an age identity nor a passphrase").
				WithHint("give --identity FILE or a passphrase")
		}
		pass, err := b.passphrase()
		if err != nil {
			return nil, noPassphrase(name, err)
		}
		if pass == "" {
			return nil, problem.New(problem.KeyLocked, "key %s cannot be encrypted", name).Seen("the passphrase is empty")
		}
		r, err := age.NewScryptRecipient(pass)
		if err != nil {
			return nil, noPassphrase(name, err)
		}
		r.SetWorkFactor(b.workFactor)
		recipients = []age.Recipient{r}
	}
	var out bytes.Buffer
	a := armor.NewWriter(&out)
	w, err := age.Encrypt(a, recipients...)
	if err != nil {
		return nil, fmt.Errorf("encrypting key %s: %w", name, err)
	}
	if _, err := w.Write(plain); err != nil {
		return nil, fmt.Errorf("encrypting key %s: %w", name, err)
	}
	if err := errors.Join(w.Close(), a.Close()); err != nil {
		return nil, fmt.Errorf("encrypting key %s: %w", name, err)
	}
	return out.Bytes(), nil
}

func noPassphrase(name string, err error) error {
	return problem.New(problem.KeyLocked, "key %s is locked", name).Seen("no passphrase was given").
		WithHint("give the passphrase, or --identity FILE").Because(err)
}

func (b *Backend) decrypt(name string, file []byte) ([]byte, error) {
	if len(b.identities) > 0 {
		plain, err := open(file, b.identities...)
		var locked *age.NoIdentityMatchError
		if err == nil || !errors.As(err, &locked) {
			return plain, wrapDecrypt(name, err)
		}
		if b.passphrase == nil || !isScrypt(locked) {
			return nil, wrapDecrypt(name, err)
		}
	}
	if b.passphrase == nil {
		return nil, problem.New(problem.KeyLocked, "key %s is locked", name).
			Seen("there is neither an age identity nor a passphrase").
			WithHint("give --identity FILE or a passphrase")
	}
	pass, err := b.passphrase()
	if err != nil {
		return nil, noPassphrase(name, err)
	}
	id, err := age.NewScryptIdentity(pass)
	if err != nil { // an empty passphrase
		return nil, noPassphrase(name, err)
	}
	id.SetMaxWorkFactor(maxWorkFactor)
	plain, err := open(file, id)
	return plain, wrapDecrypt(name, err)
}

func isScrypt(e *age.NoIdentityMatchError) bool {
	return len(e.StanzaTypes) == 1 && e.StanzaTypes[0] == "scrypt"
}

func wrapDecrypt(name string, err error) error {
	if err == nil {
		return nil
	}
	var locked *age.NoIdentityMatchError
	if errors.As(err, &locked) {
		why := "no identity given opens it"
		if isScrypt(locked) {
			why = "the passphrase is wrong, or it is encrypted with one and none was given"
		}
		return problem.New(problem.KeyLocked, "key %s is locked", name).Seen("%s", why).
			WithHint("give --identity FILE or the passphrase it was created with").Because(err)
	}
	return malformed(name, "it is not a whole age file").Because(err)
}

func open(file []byte, ids ...age.Identity) ([]byte, error) {
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(file)), ids...)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, maxFile+1))
}

func malformed(name, format string, a ...any) *problem.Error {
	return problem.New(problem.KeyMalformed, "the file of key %s cannot be used", name).Seen(format, a...).
		WithHint("restore it from a backup")
}

// header is the first part of a key file's plaintext.
type header struct {
	Name    string       `json:"name"`
	Type    alg.KeyType  `json:"type"`
	Binding keys.Binding `json:"binding"`
	Created int64        `json:"created"`
}

func encode(i keys.Info, priv crypto.Signer) ([]byte, error) {
	h, err := json.Marshal(header{i.Name, i.Type, i.Binding, i.Created})
	if err != nil {
		return nil, fmt.Errorf("encoding the header of key %s: %w", i.Name, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, fmt.Errorf("encoding key %s: %w", i.Name, err)
	}
	defer clear(der)
	out := append([]byte(magic), h...)
	out = append(out, '\n')
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...), nil
}

// decode reads the plaintext of the key file of name. Its errors say nothing
// of the private key.
func decode(name string, plain []byte) (keys.Info, crypto.Signer, error) {
	none := keys.Info{}
	if len(plain) > maxFile {
		return none, nil, malformed(name, "its content is larger than %d bytes", maxFile)
	}
	rest, ok := bytes.CutPrefix(plain, []byte(magic))
	if !ok {
		return none, nil, malformed(name, "it does not begin with %q", strings.TrimSpace(magic))
	}
	line, rest, ok := bytes.Cut(rest, []byte("\n"))
	if !ok || len(line) > maxHeader {
		return none, nil, malformed(name, "its header is not one line of at most %d bytes", maxHeader)
	}
	var h header
	if err := strictJSON(line, &h); err != nil {
		return none, nil, malformed(name, "its header is not as this version writes it").Because(err)
	}
	if h.Name != name {
		return none, nil, malformed(name, "it holds key %.64q: was the file renamed?", h.Name)
	}
	priv, err := parsePEM(rest)
	if err != nil {
		return none, nil, malformed(name, "its private key cannot be read").Because(err)
	}
	t, err := alg.TypeOf(priv.Public())
	if err != nil {
		return none, nil, err
	}
	if t != h.Type {
		return none, nil, malformed(name, "its header says %.20q and it holds a %s key", h.Type, t)
	}
	spec := keys.Spec{Name: h.Name, Type: h.Type, Binding: h.Binding}
	if err := spec.Validate(); err != nil {
		return none, nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(priv.Public())
	if err != nil {
		return none, nil, malformed(name, "its public key cannot be encoded").Because(err)
	}
	return keys.Info{Name: name, URI: scheme + ":" + name, Type: h.Type, SPKI: spki, Binding: h.Binding, Created: h.Created}, priv, nil
}

func strictJSON(text []byte, dst any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(dst); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one JSON value")
	}
	return nil
}

// parsePEM reads exactly one private key. Errors of the parsers are not kept:
// some quote their input.
func parsePEM(text []byte) (crypto.Signer, error) {
	bad := func(why string) error {
		return problem.New(problem.KeyMalformed, "the private key cannot be read").Seen("%s", why).
			WithHint("convert it: openssl pkcs8 -topk8 -nocrypt -in KEY -out KEY.pem")
	}
	if len(text) > maxFile {
		return nil, bad("it is too large for a key")
	}
	var block *pem.Block
	for {
		block, text = pem.Decode(text)
		if block == nil {
			return nil, bad("it is not PEM")
		}
		// openssl ecparam writes the curve before the key.
		if block.Type != "EC PARAMETERS" {
			break
		}
	}
	defer clear(block.Bytes)
	if len(bytes.TrimSpace(text)) != 0 {
		return nil, bad("there is more than one key in it")
	}
	if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
		return nil, bad("it is encrypted")
	}
	var k any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		k, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		k, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		k, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, bad("the PEM block is no private key")
	}
	if err != nil {
		return nil, bad("the PEM block does not hold what its label says, or a key that Firmseal does not use")
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, bad("it is not a signing key")
	}
	if _, err := alg.TypeOf(s.Public()); err != nil {
		return nil, err
	}
	if r, ok := k.(*rsa.PrivateKey); ok && (len(r.Primes) != 2 || r.Validate() != nil) {
		return nil, bad("the RSA key is not consistent")
	}
	return s, nil
}

func generate(t alg.KeyType) (crypto.Signer, error) {
	switch t {
	case alg.P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case alg.P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case alg.RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case alg.RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case alg.RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	case alg.Ed25519:
		_, k, err := ed25519.GenerateKey(rand.Reader)
		return k, err
	}
	return nil, problem.New(problem.AlgUnsupported, "unknown key type %q", string(t))
}
