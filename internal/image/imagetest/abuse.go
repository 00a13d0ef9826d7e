package imagetest

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/firmseal/firmseal/internal/image"
)

// checkSession hands sessions what a broken or hostile signer would.
func checkSession(tb testing.TB, h *harness) {
	fin := h.finish(tb)
	for round, right := range fin.rounds {
		for name, prev := range abuses(right) {
			what := fmt.Sprintf("round %d with %s", round+1, name)
			guard(tb, what, func() {
				sess, err := h.f.Resume(tb.Context(), h.src(), fin.states[round])
				if err != nil {
					tb.Fatalf("Resume of state %d: %v", round, err)
				}
				_, _, err = sess.Next(tb.Context(), prev)
				if err := refusal(err); err != nil {
					tb.Errorf("%s: %v", what, err)
				}
				if _, err := sess.Embed(tb.Context(), io.Discard); refusal(err) != nil {
					tb.Errorf("Embed after %s: %v", what, refusal(err))
				}
			})
		}
		what := fmt.Sprintf("Embed before round %d", round+1)
		guard(tb, what, func() {
			sess, err := h.f.Resume(tb.Context(), h.src(), fin.states[round])
			if err != nil {
				tb.Fatalf("Resume of state %d: %v", round, err)
			}
			var b bytes.Buffer
			_, err = sess.Embed(tb.Context(), &b)
			if err := refusal(err); err != nil || b.Len() > 0 {
				tb.Errorf("%s: %d bytes written, %v", what, b.Len(), err)
			}
		})
	}
	// A finished session takes nothing more.
	last := fin.rounds[len(fin.rounds)-1]
	guard(tb, "a round after the last", func() {
		sess, err := h.f.Resume(tb.Context(), h.src(), fin.states[len(fin.states)-1])
		if err != nil {
			tb.Fatal(err)
		}
		if _, _, err := sess.Next(tb.Context(), last); refusal(err) != nil {
			tb.Errorf("the last signatures, again, after the end: %v", refusal(err))
		}
	})
}

// abuses are wrong answers, derived from the right one.
func abuses(right []image.Signature) map[string][]image.Signature {
	if right == nil { // the first round takes nothing
		return map[string][]image.Signature{
			"a signature that nobody asked for": {{Slot: "image", Value: make([]byte, 64)}},
			"a signature without a slot":        {{Value: make([]byte, 64)}},
		}
	}
	alter := func(f func(s []image.Signature) []image.Signature) []image.Signature {
		c := slices.Clone(right)
		for i := range c {
			c[i].Value = slices.Clone(c[i].Value)
		}
		return f(c)
	}
	last := len(right) - 1
	value := func(f func(v []byte) []byte) []image.Signature {
		return alter(func(s []image.Signature) []image.Signature { s[last].Value = f(s[last].Value); return s })
	}
	return map[string][]image.Signature{
		"no signature":       nil,
		"one signature less": alter(func(s []image.Signature) []image.Signature { return s[:last] }),
		"a doubled signature": alter(func(s []image.Signature) []image.Signature {
			return append(s, s[last])
		}),
		"one in place of another": alter(func(s []image.Signature) []image.Signature {
			if len(s) == 1 {
				return append(s, s...)
			}
			s[0] = s[1]
			return s
		}),
		"an extra signature": alter(func(s []image.Signature) []image.Signature {
			return append(s, image.Signature{Slot: "no-such-slot", Value: s[0].Value})
		}),
		"a wrong slot":       alter(func(s []image.Signature) []image.Signature { s[last].Slot = "no-such-slot"; return s }),
		"an empty slot":      alter(func(s []image.Signature) []image.Signature { s[last].Slot = ""; return s }),
		"an empty signature": value(func(v []byte) []byte { return nil }),
		"a cut signature":    value(func(v []byte) []byte { return v[:len(v)-1] }),
		"one byte":           value(func(v []byte) []byte { return v[:1] }),
		"a longer signature": value(func(v []byte) []byte { return append(v, 0) }),
		"a huge signature":   value(func(v []byte) []byte { return append(v, make([]byte, 1<<20)...) }),
	}
}

// checkState hands Resume what a damaged database would.
func checkState(tb testing.TB, h *harness) {
	fin := h.finish(tb)
	for i, st := range fin.states {
		bad := map[string][]byte{
			"nothing":             nil,
			"an empty object":     []byte("{}"),
			"zeros":               make([]byte, len(st)),
			"an extended state":   append(slices.Clone(st), 0),
			"a doubled state":     append(slices.Clone(st), st...),
			"a state with spaces": append(slices.Clone(st), ' '),
		}
		for _, n := range positions(int64(len(st)), 24) {
			bad[fmt.Sprintf("a state cut at %d", n)] = st[:n]
			for _, m := range []byte{0x01, 0x20, 0x80} {
				b := slices.Clone(st)
				b[n] ^= m
				bad[fmt.Sprintf("a state with byte %d xor %#02x", n, m)] = b
			}
		}
		for name, b := range bad {
			what := fmt.Sprintf("Resume from %s (state %d)", name, i)
			guard(tb, what, func() {
				_, err := h.f.Resume(tb.Context(), h.src(), b)
				if err := refusal(err); err != nil {
					tb.Errorf("%s: %v", what, err)
				}
			})
		}
	}

	// Another image. A session may sample a large one, but what comes out must
	// then be refused by Verify.
	for name, src := range others(h.c.Source) {
		for i, st := range fin.states {
			what := fmt.Sprintf("Resume over %s (state %d)", name, i)
			guard(tb, what, func() {
				sess, err := h.f.Resume(tb.Context(), image.Bytes(src), st)
				if err != nil {
					if err := refusal(err); err != nil {
						tb.Errorf("%s: %v", what, err)
					}
					return
				}
				if len(src) <= wholeMark {
					tb.Errorf("%s: an image of %d bytes is small enough to be recognised", what, len(src))
					return
				}
				for _, prev := range fin.rounds[min(i, len(fin.rounds)):] {
					if _, _, err := sess.Next(tb.Context(), prev); err != nil {
						if err := refusal(err); err != nil {
							tb.Errorf("%s: %v", what, err)
						}
						return
					}
				}
				var b bytes.Buffer
				r, err := sess.Embed(tb.Context(), &b)
				if err != nil {
					if err := refusal(err); err != nil {
						tb.Errorf("%s: %v", what, err)
					}
					return
				}
				s := subject{image: b.Bytes()}
				if r.Detached {
					s = subject{image: src, detached: b.Bytes()}
				}
				v, err := h.verify(tb.Context(), s, h.keys)
				if err == nil && v.Accepted {
					tb.Errorf("%s: the result is accepted", what)
				}
			})
		}
	}
}

// wholeMark is up to which size an image must be recognised whole by Resume.
const wholeMark = 64 << 10

// others are images that are not src.
func others(src []byte) map[string][]byte {
	flip := func(i int) []byte {
		b := slices.Clone(src)
		b[i] ^= 0x10
		return b
	}
	return map[string][]byte{
		"an image with another first byte":  flip(0),
		"an image with another middle byte": flip(len(src) / 2),
		"an image with another last byte":   flip(len(src) - 1),
		"a shorter image":                   src[:len(src)-1],
		"a longer image":                    append(slices.Clone(src), 0),
		"no image":                          {},
	}
}

// positions are up to n places below size: both ends, and evenly between.
func positions(size int64, n int) []int64 {
	if size <= int64(n) {
		out := make([]int64, size)
		for i := range out {
			out[i] = int64(i)
		}
		return out
	}
	var out []int64
	for i := range n {
		out = append(out, int64(i)*(size-1)/int64(n-1))
	}
	return out
}
