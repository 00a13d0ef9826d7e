package soft

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"io"
	"log/slog"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
)

// signer is a private key in memory. The key is held by a closure and not by a
// field: package fmt looks into unexported fields without asking Format (for a
// verb that does not fit even through a pointer), but never into a function.
type signer struct {
	priv func() crypto.Signer
	typ  alg.KeyType
}

func newSigner(priv crypto.Signer, typ alg.KeyType) *signer {
	return &signer{priv: func() crypto.Signer { return priv }, typ: typ}
}

var _ keys.Signer = (*signer)(nil)

func (s *signer) Public() crypto.PublicKey { return s.priv().Public() }

func (s *signer) Format(w fmt.State, _ rune) { io.WriteString(w, "private key") }

func (s *signer) LogValue() slog.Value { return slog.StringValue("private key") }

func (s *signer) MarshalText() ([]byte, error) { return []byte("private key"), nil }

func (s *signer) SignRaw(ctx context.Context, id alg.ID, kind alg.Kind, input []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	sch, err := alg.Lookup(id)
	if err != nil {
		return nil, err
	}
	if sch.Key != s.typ {
		return nil, problem.New(problem.AlgUnsupported, "a %s key cannot sign %s", s.typ, id)
	}
	if kind != sch.Kind {
		return nil, problem.New(problem.AlgUnsupported, "%s signs a %s, not a %q", id, sch.Kind, string(kind))
	}
	if kind == alg.Digest && len(input) != sch.Hash.Size() {
		return nil, problem.New(problem.SigEncoding, "%s signs a digest of %d bytes, not %d", id, sch.Hash.Size(), len(input))
	}
	if len(input) > alg.MaxMessage {
		return nil, problem.New(problem.TooLarge, "a message of %d bytes is too large to sign", len(input)).Seen("the limit is %d", alg.MaxMessage)
	}
	var opts crypto.SignerOpts = sch.Hash // 0, "the message itself", for Ed25519
	if sch.PSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: sch.Hash}
	}
	sig, err := s.priv().Sign(rand.Reader, input, opts)
	if err != nil {
		return nil, problem.New(problem.Internal, "signing with %s failed", id).Because(err)
	}
	return sig, nil
}
