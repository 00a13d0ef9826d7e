package bench

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gowebpki/jcs"
	"golang.org/x/mod/sumdb/note"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/raw"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/keys/soft"
	"github.com/firmseal/firmseal/internal/server"
	"github.com/firmseal/firmseal/internal/tlog"
)

const benchPolicy = `apiVersion: firmseal.policy/v1
profiles:
  bench:
    product: bench
    environment: production
    format: raw
    keys: {image: bench}
    rules:
      - name: semver
        check: request.version.startsWith("1.")
        say: only major version 1 is released from here
        next: raise the policy
`

// signingServer is a whole embedded server behind TLS, and a client with a
// token.
func signingServer(b *testing.B, kt alg.KeyType) *client.Client {
	b.Helper()
	ctx := context.Background()
	dir := b.TempDir()
	parts := server.Parts{Formats: image.Registry{raw.New()}, Backends: []server.BackendPart{{Scheme: "soft", Open: func(_ context.Context, s server.KeyStore) (keys.Backend, error) {
		ids, err := server.Identities(s.Identity, s.Create)
		if err != nil {
			return nil, err
		}
		return soft.Open(s.Dir, soft.Options{Gate: s.Gate, Identities: ids})
	}}}}
	open := server.Options{Dir: filepath.Join(dir, "ws"), Parts: parts, Version: "bench", Logger: slog.New(slog.DiscardHandler)}
	if _, err := server.Init(ctx, server.InitOptions{Dir: open.Dir, SecondPlace: filepath.Join(dir, "second", "checkpoint"), Identity: filepath.Join(dir, "id.txt")}, open); err != nil {
		b.Fatal(err)
	}
	s, err := server.Open(ctx, open)
	if err != nil {
		b.Fatal(err)
	}
	hs := httptest.NewUnstartedServer(s.Handler)
	hs.TLS = &tls.Config{}
	hs.StartTLS()
	b.Cleanup(func() {
		hs.Close()
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	local := &client.Client{BaseURL: "http://workspace", HTTP: &http.Client{Transport: s.Transport(auth.Local("bench"))}}
	if _, err := local.CreateKey(ctx, client.NewKey{Name: "bench", Type: string(kt), Purpose: "firmware", Environment: "production", Product: "bench", Format: "raw"}); err != nil {
		b.Fatal(err)
	}
	if _, err := local.ApplyPolicy(ctx, []byte(benchPolicy)); err != nil {
		b.Fatal(err)
	}
	t, err := local.CreateToken(ctx, client.NewToken{Name: "bench", Scopes: []string{string(auth.RequestWrite), string(auth.RequestRead)}, TTL: int64(time.Hour / time.Second)})
	if err != nil {
		b.Fatal(err)
	}
	hc := hs.Client()
	hc.Transport.(*http.Transport).MaxIdleConnsPerHost = 256
	return &client.Client{BaseURL: hs.URL, Token: t.Secret, HTTP: hc}
}

func (c *bareClient) post(tb testing.TB, img []byte) {
	res, err := c.c.Post(c.url, "application/json", strings.NewReader(string(img)))
	if err != nil {
		tb.Error(err)
		return
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
}

// bare is a key without anything around it.
type bare struct {
	ec *ecdsa.PrivateKey
	rs *rsa.PrivateKey
	h  crypto.Hash
}

var bareKeys sync.Map

func bareKey(kt alg.KeyType) *bare {
	if k, ok := bareKeys.Load(kt); ok {
		return k.(*bare)
	}
	k := &bare{h: crypto.SHA256}
	var err error
	switch kt {
	case alg.P256:
		k.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case alg.P384:
		k.h = crypto.SHA384
		k.ec, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case alg.RSA3072:
		k.rs, err = rsa.GenerateKey(rand.Reader, 3072)
	}
	if err != nil {
		panic(err)
	}
	bareKeys.Store(kt, k)
	return k
}

func (k *bare) digest(d []byte) []byte {
	if k.h == crypto.SHA384 {
		h := sha512.Sum384(d)
		return h[:]
	}
	h := sha256.Sum256(d)
	return h[:]
}

func (k *bare) sign(tb testing.TB, d []byte) (sig []byte) {
	var err error
	if k.ec != nil {
		sig, err = ecdsa.SignASN1(rand.Reader, k.ec, k.digest(d))
	} else {
		sig, err = rsa.SignPKCS1v15(rand.Reader, k.rs, k.h, k.digest(d))
	}
	if err != nil {
		tb.Error(err)
	}
	return sig
}

func (k *bare) verify(tb testing.TB, d, sig []byte) {
	if k.ec != nil {
		if !ecdsa.VerifyASN1(&k.ec.PublicKey, k.digest(d), sig) {
			tb.Error("the yardstick's signature does not verify")
		}
	} else if err := rsa.VerifyPKCS1v15(&k.rs.PublicKey, k.h, k.digest(d), sig); err != nil {
		tb.Error(err)
	}
}

func marshalSPKI(pub crypto.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(pub)
	check(err)
	return der
}

func encodeLeaf(tb testing.TB, l firmseal.Leaf) []byte {
	b, err := json.Marshal(l)
	if err == nil {
		b, err = jcs.Transform(b)
	}
	if err != nil {
		tb.Error(err)
	}
	return b
}

func openLog(b *testing.B) (*tlog.Log, *db.DB) {
	dir := b.TempDir()
	d, err := db.Open(context.Background(), "sqlite:"+filepath.Join(dir, "log.db"), db.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	sk, vk, err := note.GenerateKey(rand.Reader, "bench.example/log")
	if err != nil {
		b.Fatal(err)
	}
	signer, err := note.NewSigner(sk)
	if err != nil {
		b.Fatal(err)
	}
	l, err := tlog.Open(context.Background(), d, tlog.Options{Origin: "bench.example/log", Signer: signer, VKey: vk, Second: tlog.FilePlace(filepath.Join(dir, "second"))})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		l.Close()
		d.Close()
	})
	return l, d
}
