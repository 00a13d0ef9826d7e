package imagetest

import (
	"encoding/binary"
	"fmt"
	"runtime/metrics"
	"slices"
	"sort"
	"testing"

	"github.com/firmseal/firmseal/internal/image"
)

// mutation is one changed subject.
type mutation struct {
	what    string
	b       []byte
	touched image.Range // of the finished bytes: what the change is about
	insert  bool        // bytes were put in at touched.Off, nothing was changed
}

// checkMutations changes the finished output field by field. Verify must not
// panic, nor allocate by a number that it read, nor accept a change in what is
// covered; and it says where the fault is.
func checkMutations(tb testing.TB, h *harness) {
	fin := h.finish(tb)
	if h.c.Fields == nil {
		tb.Fatal("the case does not describe its output's fields")
	}
	fields := h.c.Fields(tb, fin.out)
	if len(fields) == 0 {
		tb.Fatal("the case describes no field of its output")
	}
	fields, err := complete(fields, int64(len(fin.out)))
	if err != nil {
		tb.Fatal(err)
	}
	whole := h.subject(fin.out, fin.receipt)
	for _, m := range mutations(fin.out, fields) {
		s := subject{image: m.b}
		if fin.receipt.Detached {
			s = subject{image: whole.image, detached: m.b}
		}
		h.tryMutation(tb, m.what, s, mayAccept(m, fields))
	}
	if fin.receipt.Detached {
		all := []Field{{Name: "image", Len: int64(len(h.c.Source)), Kind: Payload}}
		for _, m := range mutations(h.c.Source, all) {
			h.tryMutation(tb, m.what, subject{image: m.b, detached: fin.out}, false)
		}
	}
}

func (h *harness) tryMutation(tb testing.TB, what string, s subject, may bool) {
	tb.Helper()
	bound := allocBound(s)
	guard(tb, "Verify of "+what, func() {
		before := allocated()
		v, err := h.verify(tb.Context(), s, h.keys)
		if n := allocated() - before; n > bound {
			tb.Errorf("%s: Verify allocated %d bytes; it believed a number", what, n)
		}
		if err != nil {
			tb.Errorf("%s: a refusal is a verdict, not an error: %v", what, err)
			return
		}
		if may && v.Valid && v.Accepted {
			return
		}
		if !may && v.Accepted {
			tb.Errorf("%s: the target would accept it", what)
		}
		if err := checkVerdict(v, int64(len(s.image))); err != nil {
			tb.Errorf("%s: %v", what, err)
		}
	})
	guard(tb, "Inspect of "+what, func() {
		before := allocated()
		r, err := h.f.Inspect(tb.Context(), image.Bytes(s.image))
		if n := allocated() - before; n > bound {
			tb.Errorf("%s: Inspect allocated %d bytes; it believed a number", what, n)
		}
		switch {
		case err != nil:
			if err := refusal(err); err != nil {
				tb.Errorf("Inspect of %s: %v", what, err)
			}
		case r == nil:
			tb.Errorf("Inspect of %s gives neither report nor error", what)
		default:
			if err := checkTree(r.Tree, int64(len(s.image))); err != nil {
				tb.Errorf("Inspect of %s: %v", what, err)
			}
		}
	})
	guard(tb, "Detect of "+what, func() { h.f.Detect(image.Bytes(s.image), int64(len(s.image))) })
}

// allocBound is what one call may allocate in all, garbage included.
func allocBound(s subject) uint64 {
	return 8<<20 + 8*uint64(len(s.image)+len(s.detached))
}

// allocated is how many bytes the process has allocated since it began.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// complete sorts the fields and fills the gaps between them with fields that
// are covered, so that nothing is left out by forgetting it.
func complete(fields []Field, size int64) ([]Field, error) {
	fields = slices.Clone(fields)
	sort.SliceStable(fields, func(i, j int) bool { return fields[i].Off < fields[j].Off })
	var out []Field
	at := int64(0)
	for _, f := range fields {
		if f.Off < at || f.Len < 0 || f.Off > size || f.Len > size-f.Off {
			return nil, fmt.Errorf("field %s (%d bytes from %d) overlaps another or the end at %d", f.Name, f.Len, f.Off, size)
		}
		if f.Off > at {
			out = append(out, Field{Name: fmt.Sprintf("undescribed bytes from %d", at), Off: at, Len: f.Off - at, Kind: Other})
		}
		out = append(out, f)
		at = f.Off + f.Len
	}
	if at < size {
		out = append(out, Field{Name: fmt.Sprintf("undescribed bytes from %d", at), Off: at, Len: size - at, Kind: Other})
	}
	return out, nil
}

// mayAccept says whether all that m touches is declared to be outside the
// signature.
func mayAccept(m mutation, fields []Field) bool {
	end := m.touched.Off + m.touched.Len
	if m.insert {
		for _, f := range fields {
			if f.Outside != "" && f.Off <= m.touched.Off && m.touched.Off <= f.Off+f.Len && end <= f.Off+f.Len {
				return true
			}
		}
		return false
	}
	for _, f := range fields {
		if f.Outside == "" && f.Off < end && m.touched.Off < f.Off+f.Len {
			return false
		}
	}
	return true
}

// mutations are the changes to b, in all its fields.
func mutations(b []byte, fields []Field) []mutation {
	var out []mutation
	size := int64(len(b))
	add := func(m mutation) {
		if !slices.Equal(m.b, b) {
			out = append(out, m)
		}
	}
	cut := func(n int64, where string) {
		add(mutation{what: fmt.Sprintf("the output cut at %d (%s)", n, where), b: b[:n:n], touched: image.Range{Off: n, Len: size - n}})
	}
	put := func(n int64, ins []byte, where string) {
		c := slices.Concat(b[:n], ins, b[n:])
		add(mutation{
			what:    fmt.Sprintf("%d bytes %#02x put in at %d (%s)", len(ins), ins[0], n, where),
			b:       c,
			touched: image.Range{Off: n, Len: size - n}, insert: true,
		})
	}
	for _, f := range fields {
		for _, n := range positions(f.Len, 16) {
			for _, mask := range []byte{0x01, 0x10, 0x80, 0xff} {
				c := slices.Clone(b)
				c[f.Off+n] ^= mask
				add(mutation{what: fmt.Sprintf("%s with byte %d xor %#02x", f.Name, n, mask), b: c, touched: image.Range{Off: f.Off + n, Len: 1}})
			}
		}
		if f.Len == 0 {
			continue
		}
		for _, n := range []int64{0, 1, f.Len / 2, f.Len - 1} {
			cut(f.Off+n, f.Name)
		}
		put(f.Off, []byte{0}, "before "+f.Name)
		put(f.Off+f.Len, []byte{0xff}, "after "+f.Name)
		put(f.Off+f.Len/2, make([]byte, 16), "in "+f.Name)
		add(mutation{
			what: "the output without " + f.Name,
			b:    slices.Concat(b[:f.Off], b[f.Off+f.Len:]), touched: image.Range{Off: f.Off, Len: size - f.Off},
		})
		for fill, name := range map[byte]string{0: "zeros", 0xff: "ones"} {
			c := slices.Clone(b)
			for i := f.Off; i < f.Off+f.Len; i++ {
				c[i] = fill
			}
			add(mutation{what: f.Name + " of " + name, b: c, touched: image.Range{Off: f.Off, Len: f.Len}})
		}
		if f.Kind == Length {
			for _, lie := range lies(b[f.Off:f.Off+f.Len], f.LittleEndian, size) {
				c := slices.Clone(b)
				copy(c[f.Off:], lie)
				add(mutation{what: fmt.Sprintf("%s that says %x", f.Name, lie), b: c, touched: image.Range{Off: f.Off, Len: f.Len}})
			}
		}
	}
	for _, n := range positions(size, 32) {
		cut(n, "anywhere")
	}
	for _, n := range []int{1, 16, 4096} {
		for _, fill := range []byte{0, 0xff, 'x'} {
			ins := make([]byte, n)
			for i := range ins {
				ins[i] = fill
			}
			put(size, ins, "at the end")
		}
	}
	return out
}

// lies are wrong values of a length of 1, 2, 4 or 8 bytes, for an output of
// size bytes.
func lies(b []byte, little bool, size int64) [][]byte {
	var order binary.ByteOrder = binary.BigEndian
	if little {
		order = binary.LittleEndian
	}
	var v uint64
	buf := make([]byte, 8)
	switch len(b) {
	case 1:
		v = uint64(b[0])
	case 2:
		v = uint64(order.Uint16(b))
	case 4:
		v = uint64(order.Uint32(b))
	case 8:
		v = order.Uint64(b)
	default:
		return nil
	}
	bits := uint(8 * len(b))
	top := ^uint64(0) >> (64 - bits)
	var out [][]byte
	for _, w := range []uint64{
		0, 1, v - 1, v + 1, v / 2, v * 2, v ^ 1<<(bits-1),
		uint64(size), uint64(size) + 1, uint64(size) - 1,
		top, top - 1, top - 3, top - 15, top >> 1, top>>1 + 1, top - v, top - v + 1,
	} {
		w &= top
		if w == v {
			continue
		}
		switch len(b) {
		case 1:
			buf[0] = byte(w)
		case 2:
			order.PutUint16(buf, uint16(w))
		case 4:
			order.PutUint32(buf, uint32(w))
		case 8:
			order.PutUint64(buf, w)
		}
		out = append(out, slices.Clone(buf[:len(b)]))
	}
	return out
}
