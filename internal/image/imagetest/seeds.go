package imagetest

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"math/big"
	"testing"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
)

// checkSeeds makes each bug and demands that Verify sees it. The format may
// refuse a misshapen signature before; nothing else may.
func checkSeeds(tb testing.TB, h *harness) {
	h.finish(tb)
	for _, s := range append(h.ownSeeds(), h.c.Seeds...) {
		if s.Request == nil && s.Signature == nil && s.Output == nil && !s.foreign && s.pssSalt == nil {
			tb.Errorf("seed %q changes nothing", s.Name)
			continue
		}
		guard(tb, s.Name, func() {
			spoilt := &spoil{seed: &s}
			fin, err := h.sign(tb.Context(), spoilt.hook())
			if err != nil {
				if s.Signature == nil {
					tb.Errorf("%s: the session stopped before Verify could judge: %v", s.Name, err)
				} else if e := refusal(err); e != nil {
					tb.Errorf("%s: %v", s.Name, e)
				}
				return
			}
			out := fin.out
			if s.Output != nil {
				out = s.Output(tb, bytes.Clone(fin.out))
				spoilt.changed = spoilt.changed || !bytes.Equal(out, fin.out)
			}
			if !spoilt.changed {
				tb.Errorf("seed %q changed nothing", s.Name)
				return
			}
			v, err := h.verify(tb.Context(), h.subject(out, fin.receipt), h.keys)
			if err != nil {
				tb.Errorf("%s: a refusal is a verdict, not an error: %v", s.Name, err)
				return
			}
			if v.Accepted {
				tb.Errorf("%s: the target would accept it", s.Name)
			}
			if err := checkVerdict(v, int64(len(h.subject(out, fin.receipt).image))); err != nil {
				tb.Errorf("%s: %v", s.Name, err)
			}
			tb.Logf("%s: %s", s.Name, describe(v))
		})
	}
}

// spoil notes whether a seed's hooks changed anything: one that does not
// proves nothing.
type spoil struct {
	seed    *Seed
	changed bool
}

func (p *spoil) hook() *Seed {
	s := *p.seed
	p.changed = s.foreign || s.pssSalt != nil
	if f := s.Request; f != nil {
		s.Request = func(r image.SignRequest) image.SignRequest {
			was := bytes.Clone(r.Input)
			q := f(r)
			p.changed = p.changed || !bytes.Equal(was, q.Input) || q.Alg != r.Alg
			return q
		}
	}
	if f := s.Signature; f != nil {
		s.Signature = func(r image.SignRequest, sig []byte) []byte {
			out := f(r, bytes.Clone(sig))
			p.changed = p.changed || !bytes.Equal(out, sig)
			return out
		}
	}
	return &s
}

// ownSeeds are the bugs that any format could have, as far as the case's keys
// allow them.
func (h *harness) ownSeeds() []Seed {
	seeds := []Seed{
		{Name: "one bit of the input flipped", Request: func(r image.SignRequest) image.SignRequest {
			r.Input[len(r.Input)/2] ^= 1
			return r
		}},
		{Name: "the input hashed once more", Request: func(r image.SignRequest) image.SignRequest {
			d := sha256.Sum256(r.Input)
			copy(r.Input, d[:])
			return r
		}},
		{Name: "the input reversed", Request: func(r image.SignRequest) image.SignRequest {
			for i, j := 0, len(r.Input)-1; i < j; i, j = i+1, j-1 {
				r.Input[i], r.Input[j] = r.Input[j], r.Input[i]
			}
			return r
		}},
		{Name: "signed by another key", foreign: true},
	}
	switch h.keys[0].Type {
	case alg.P256, alg.P384:
		seeds = append(seeds,
			Seed{Name: "r and s exchanged", Signature: func(_ image.SignRequest, sig []byte) []byte {
				return remake(sig, func(r, s *big.Int) (*big.Int, *big.Int) { return s, r })
			}},
			Seed{Name: "r and s are one", Signature: func(_ image.SignRequest, sig []byte) []byte {
				return remake(sig, func(r, s *big.Int) (*big.Int, *big.Int) { return big.NewInt(1), big.NewInt(1) })
			}},
			Seed{Name: "bytes of r reversed", Signature: func(_ image.SignRequest, sig []byte) []byte {
				return remake(sig, func(r, s *big.Int) (*big.Int, *big.Int) { return reversed(r), s })
			}},
		)
	case alg.Ed25519:
		seeds = append(seeds, zeroSignature, Seed{Name: "halves exchanged", Signature: func(_ image.SignRequest, sig []byte) []byte {
			return append(sig[32:len(sig):len(sig)], sig[:32]...)
		}})
	default:
		seeds = append(seeds, zeroSignature,
			Seed{Name: "bytes reversed", Signature: func(_ image.SignRequest, sig []byte) []byte {
				for i, j := 0, len(sig)-1; i < j; i, j = i+1, j-1 {
					sig[i], sig[j] = sig[j], sig[i]
				}
				return sig
			}},
			Seed{Name: "PSS with an empty salt", pssSalt: new(int)},
			Seed{Name: "PSS with the longest salt", pssSalt: ptr(rsa.PSSSaltLengthAuto)},
			Seed{Name: "the other padding", Request: func(r image.SignRequest) image.SignRequest {
				was, err := alg.Lookup(r.Alg)
				for _, id := range alg.For(was.Key) {
					is, err2 := alg.Lookup(id)
					if err == nil && err2 == nil && is.PSS != was.PSS && is.Hash.Size() == len(r.Input) {
						r.Alg = id
						return r
					}
				}
				r.Input[0] ^= 1 // the registry has no other padding for this hash: still a wrong signature
				return r
			}},
		)
	}
	return seeds
}

var zeroSignature = Seed{Name: "a signature of zeros", Signature: func(_ image.SignRequest, sig []byte) []byte {
	return make([]byte, len(sig))
}}

func ptr[T any](v T) *T { return &v }

func remake(der []byte, f func(r, s *big.Int) (*big.Int, *big.Int)) []byte {
	var v struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &v); err != nil {
		return der
	}
	v.R, v.S = f(v.R, v.S)
	out, err := asn1.Marshal(v)
	if err != nil {
		return der
	}
	return out
}

func reversed(n *big.Int) *big.Int {
	b := n.Bytes()
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	return new(big.Int).SetBytes(b)
}
