package fit

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// Bounds of the verifier's own reader.
const (
	seenMaxTokens  = 1 << 17
	seenMaxStrings = 1 << 20
	seenMaxText    = 8 << 20 // of all names together
	seenMaxName    = 255
	seenMaxValue   = 64 << 10 // of a value that the verifier reads into memory
)

// seenToken is one token of the structure block, as a range of the file.
type seenToken struct {
	tag      uint32
	off, end int64 // with padding
	node     int   // the node that begins, ends, or has the property
	name     string
	nameEnd  int64 // of a property: where its name ends in the strings block, with the NUL
	val, len int64 // of a property: where its value is
}

// seenNode is one node; 0 is the root.
type seenNode struct {
	name, path string
	off, end   int64
	props      []int // tokens
	children   []int
}

// seenTree is the verifier's view of a FIT: a flat list of tokens over the file.
type seenTree struct {
	src                image.Source
	total              int64
	stringsOff, strLen int64
	structOff          int64
	structEnd          int64
	rsvOff, rsvEnd     int64
	tokens             []seenToken
	nodes              []seenNode

	page   []byte // a window on the file, owned by bytes
	pageAt int64
}

// refusal is a finding that ends the reading.
type refusal struct{ f image.Finding }

func (r refusal) Error() string { return r.f.What }

func broken(code problem.Code, off, n int64, format string, a ...any) refusal {
	return refusal{image.Finding{
		Stage: image.StageContainer, Severity: image.Fatal, Code: code,
		What: fmt.Sprintf(format, a...), Range: &image.Range{Off: off, Len: n},
		Device: []string{"Bad FIT kernel image format!", "ERROR: can't get kernel image!"},
		Cause:  "the file was damaged, cut off, or is not a FIT", Next: "build the FIT again, and compare the file's size with the builder's",
	}}
}

// bytes reads n ≤ 64 KiB at off; the slice is valid until the next call.
func (t *seenTree) bytes(off, n int64) ([]byte, error) {
	if off >= t.pageAt && off+n <= t.pageAt+int64(len(t.page)) {
		return t.page[off-t.pageAt:][:n], nil
	}
	size := min(max(n, 32<<10), t.src.Size()-off)
	if size < n {
		return nil, fmt.Errorf("fit: reading %d bytes at %d of %d", n, off, t.src.Size())
	}
	if int64(cap(t.page)) < size {
		t.page = make([]byte, size)
	}
	t.page = t.page[:size]
	if m, err := t.src.ReadAt(t.page, off); int64(m) < size {
		t.page = t.page[:0]
		return nil, fmt.Errorf("reading %d bytes at %d of the FIT: %w", size, off, err)
	}
	t.pageAt = off
	return t.page[:n], nil
}

// look reads the header and every token. A refusal is about the bytes, any
// other error about reading them.
func look(ctx context.Context, src image.Source) (*seenTree, error) {
	t := &seenTree{src: src}
	if src.Size() < 40 {
		return nil, broken(problem.ImageTruncated, 0, src.Size(), "the file is shorter than a device tree's header")
	}
	h, err := t.bytes(0, 40)
	if err != nil {
		return nil, err
	}
	var w [10]int64
	for i := range w {
		w[i] = int64(binary.BigEndian.Uint32(h[i*4:]))
	}
	if w[0] != fdtMagic {
		r := broken(problem.ImageUnknownFormat, 0, 4, "the file is not a device tree")
		r.f.Device = []string{"Wrong Image Format for bootm command", "ERROR: can't get kernel image!"}
		r.f.Expected, r.f.Actual = fmt.Sprintf("%08x", int64(fdtMagic)), fmt.Sprintf("%08x", w[0])
		return nil, r
	}
	t.total, t.stringsOff, t.rsvOff, t.strLen = w[1], w[3], w[4], w[8]
	structOff, structLen := w[2], w[9]
	t.structOff, t.structEnd = structOff, structOff+structLen
	if t.total > src.Size() {
		r := broken(problem.ImageTruncated, 4, 4, "the device tree is cut off")
		r.f.Expected, r.f.Actual = fmt.Sprintf("%d bytes", t.total), fmt.Sprintf("%d bytes", src.Size())
		return nil, r
	}
	if w[5] != 17 || w[6] > 17 {
		return nil, broken(problem.ImageMalformed, 20, 8, "the device tree has version %d, compatible with %d", w[5], w[6])
	}
	if structOff < 40 || structOff%4 != 0 || t.structEnd > t.total {
		return nil, broken(problem.ImageMalformed, 8, 4, "the structure block is outside the device tree")
	}
	if t.stringsOff < 40 || t.stringsOff+t.strLen > t.total || t.strLen > seenMaxStrings {
		return nil, broken(problem.ImageMalformed, 12, 4, "the strings block is outside the device tree")
	}
	if t.stringsOff < t.structEnd && structOff < t.stringsOff+t.strLen {
		return nil, broken(problem.ImageMalformed, 12, 4, "the strings block lies over the structure block")
	}
	if t.rsvOff < 40 || t.rsvOff%8 != 0 {
		return nil, broken(problem.ImageMalformed, 16, 4, "the memory reservations are outside the device tree")
	}
	for t.rsvEnd = t.rsvOff; ; {
		if t.rsvEnd+16 > t.total || t.rsvEnd-t.rsvOff > 1<<16 {
			return nil, broken(problem.ImageMalformed, t.rsvOff, 16, "the memory reservations do not end")
		}
		e, err := t.bytes(t.rsvEnd, 16)
		if err != nil {
			return nil, err
		}
		t.rsvEnd += 16
		if [16]byte(e) == [16]byte{} {
			break
		}
	}
	// U-Boot does not look at the reservations. They must not reach into what it
	// does look at, so that nothing is read in two ways.
	if t.rsvOff < t.structEnd && structOff < t.rsvEnd || t.rsvOff < t.stringsOff+t.strLen && t.stringsOff < t.rsvEnd {
		return nil, broken(problem.ImageMalformed, 16, 4, "the memory reservations lie over another block")
	}
	names := make([]byte, t.strLen)
	if m, err := src.ReadAt(names, t.stringsOff); int64(m) < t.strLen {
		return nil, fmt.Errorf("reading the strings of the FIT: %w", err)
	}
	return t, t.scan(ctx, structOff, names)
}

// scan reads the tokens of the structure block.
func (t *seenTree) scan(ctx context.Context, off int64, names []byte) error {
	cur := -1 // the open node
	var up []int
	text, closed := 0, false
	kids := map[string]bool{} // node/child and node:property, for duplicates
	for {
		if len(t.tokens)%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if len(t.tokens) >= seenMaxTokens || text > seenMaxText {
			return broken(problem.ImageMalformed, off, 4, "the device tree has more nodes and properties than any FIT")
		}
		if off+4 > t.structEnd {
			return broken(problem.ImageMalformed, off, 0, "the structure block ends without an end tag")
		}
		b, err := t.bytes(off, 4)
		if err != nil {
			return err
		}
		k := seenToken{tag: binary.BigEndian.Uint32(b), off: off, end: off + 4, node: cur}
		if closed && k.tag != 4 && k.tag != 9 {
			return broken(problem.ImageMalformed, off, 4, "something follows the root node")
		}
		switch k.tag {
		case 1:
			room := min(seenMaxName+1, t.structEnd-k.end)
			b, err := t.bytes(k.end, room)
			if err != nil {
				return err
			}
			n := indexNUL(b)
			if n < 0 {
				return broken(problem.ImageMalformed, off, 4, "a node's name does not end")
			}
			name := string(b[:n])
			k.end += int64(n)/4*4 + 4
			if k.end > t.structEnd {
				return broken(problem.ImageMalformed, off, 4, "a node's name does not end")
			}
			if !visible(name) || (cur < 0) != (name == "") {
				return broken(problem.ImageMalformed, off, k.end-off, "the node name %q is not one", name)
			}
			nn := seenNode{name: name, path: "/", off: off}
			if cur >= 0 {
				p := &t.nodes[cur]
				nn.path = p.path + "/" + name
				if cur == 0 {
					nn.path = "/" + name
				}
				key := fmt.Sprint(cur, "/", name)
				if kids[key] {
					return broken(problem.ImageMalformed, off, k.end-off, "the node %s is there twice", nn.path)
				}
				kids[key] = true
				p.children = append(p.children, len(t.nodes))
			}
			text += len(nn.path)
			if len(up) >= deviceMaxDepth {
				return broken(problem.ImageMalformed, off, k.end-off, "the device tree is deeper than U-Boot walks")
			}
			up = append(up, cur)
			cur = len(t.nodes)
			k.node = cur
			t.nodes = append(t.nodes, nn)
		case 2:
			if cur < 0 {
				return broken(problem.ImageMalformed, off, 4, "a node ends that never began")
			}
			t.nodes[cur].end = k.end
			cur, up = up[len(up)-1], up[:len(up)-1]
			closed = cur < 0
		case 3:
			if cur < 0 {
				return broken(problem.ImageMalformed, off, 4, "a property is outside of any node")
			}
			if off+12 > t.structEnd {
				return broken(problem.ImageMalformed, off, 4, "a property is cut off")
			}
			b, err := t.bytes(off+4, 8)
			if err != nil {
				return err
			}
			k.len, k.val = int64(binary.BigEndian.Uint32(b)), off+12
			no := int64(binary.BigEndian.Uint32(b[4:]))
			k.end = k.val + (k.len+3)/4*4
			if k.end > t.structEnd {
				return broken(problem.ImageMalformed, off+4, 4, "a property says it has %d bytes, more than the device tree", k.len)
			}
			n := -1
			if no < t.strLen {
				n = indexNUL(names[no:min(t.strLen, no+seenMaxName+1)])
			}
			if n <= 0 || !visible(string(names[no:no+int64(n)])) {
				return broken(problem.ImageMalformed, off+8, 4, "a property's name is not in the strings block")
			}
			k.name, k.nameEnd = string(names[no:no+int64(n)]), no+int64(n)+1
			text += n
			key := fmt.Sprint(cur, ":", k.name)
			if kids[key] {
				return broken(problem.ImageMalformed, off, k.end-off, "the property %s of %s is there twice", k.name, t.nodes[cur].path)
			}
			kids[key] = true
			if len(t.nodes[cur].children) > 0 {
				return broken(problem.ImageMalformed, off, k.end-off, "the property %s of %s follows a child node, where U-Boot does not see it", k.name, t.nodes[cur].path)
			}
			t.nodes[cur].props = append(t.nodes[cur].props, len(t.tokens))
		case 4:
		case 9:
			if !closed {
				return broken(problem.ImageMalformed, off, 4, "the device tree ends inside a node")
			}
			if k.end != t.structEnd {
				return broken(problem.ImageMalformed, k.end, t.structEnd-k.end, "bytes follow the end of the structure block")
			}
			t.tokens = append(t.tokens, k)
			return nil
		default:
			return broken(problem.ImageMalformed, off, 4, "unknown tag %d in the structure block", k.tag)
		}
		t.tokens = append(t.tokens, k)
		off = k.end
	}
}

func indexNUL(b []byte) int {
	for i, x := range b {
		if x == 0 {
			return i
		}
	}
	return -1
}

func visible(s string) bool {
	for _, x := range []byte(s) {
		if x < 0x21 || x > 0x7e || x == '/' {
			return false
		}
	}
	return true
}

// child gives a node's child by name, or -1.
func (t *seenTree) child(node int, name string) int {
	if node >= 0 {
		for _, c := range t.nodes[node].children {
			if t.nodes[c].name == name {
				return c
			}
		}
	}
	return -1
}

// prop gives the token of a property, or nil.
func (t *seenTree) prop(node int, name string) *seenToken {
	for _, i := range t.nodes[node].props {
		if t.tokens[i].name == name {
			return &t.tokens[i]
		}
	}
	return nil
}

// value reads a property of at most 64 KiB; nil when absent or larger.
func (t *seenTree) value(node int, name string) ([]byte, error) {
	k := t.prop(node, name)
	if k == nil || k.len > seenMaxValue {
		return nil, nil
	}
	b, err := t.bytes(k.val, k.len)
	if err != nil {
		return nil, err
	}
	return append([]byte{}, b...), nil
}

// texts reads a list of strings; nil when it is not one.
func (t *seenTree) texts(node int, name string) ([]string, error) {
	b, err := t.value(node, name)
	if err != nil || len(b) == 0 || b[len(b)-1] != 0 {
		return nil, err
	}
	var out []string
	for len(b) > 0 {
		n := indexNUL(b)
		out = append(out, string(b[:n]))
		b = b[n+1:]
	}
	return out, nil
}

// text reads a C string as U-Boot does: up to the first NUL.
func (t *seenTree) text(node int, name string) (string, bool, error) {
	l, err := t.texts(node, name)
	if err != nil || len(l) == 0 {
		return "", false, err
	}
	return l[0], true, nil
}

// number reads one cell.
func (t *seenTree) number(node int, name string) (int64, bool, error) {
	b, err := t.value(node, name)
	if err != nil || len(b) != 4 {
		return 0, false, err
	}
	return int64(binary.BigEndian.Uint32(b)), true, nil
}

// signedRuns gives the runs of bytes that a configuration signature covers when
// its node list is inc, without the strings; and whether every name of a
// property among them lies below strings byte limit.
func (t *seenTree) signedRuns(inc map[string]bool, limit int64) (runs []image.Range, namesCovered bool) {
	level := make([]int, 0, deviceMaxDepth) // 2: all; 1: tags of children; 0: nothing
	state := 0
	namesCovered = true
	for i := range t.tokens {
		k := &t.tokens[i]
		take := false
		switch k.tag {
		case 1:
			level = append(level, state)
			if inc[t.nodes[k.node].path] {
				state = 2
			} else {
				state = max(state-1, 0)
			}
			take = state > 0
		case 2:
			take = state > 0
			state, level = level[len(level)-1], level[:len(level)-1]
		case 3:
			take = state == 2 && k.name != propData && k.name != propOffset && k.name != propPosition && k.name != propSize
			if take && k.nameEnd > limit {
				namesCovered = false
			}
		case 4:
			take = state == 2
		case 9:
			take = true
		}
		if !take {
			continue
		}
		if n := len(runs); n > 0 && runs[n-1].Off+runs[n-1].Len == k.off {
			runs[n-1].Len += k.end - k.off
		} else {
			runs = append(runs, image.Range{Off: k.off, Len: k.end - k.off})
		}
	}
	return runs, namesCovered
}

// pour copies ranges of the file into w.
func (t *seenTree) pour(ctx context.Context, w io.Writer, runs []image.Range) error {
	buf := make([]byte, 128<<10)
	for _, r := range runs {
		for off := r.Off; off < r.Off+r.Len; {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := buf[:min(int64(len(buf)), r.Off+r.Len-off)]
			if m, err := t.src.ReadAt(b, off); m < len(b) {
				return fmt.Errorf("reading %d bytes at %d of the FIT: %w", len(b), off, err)
			}
			w.Write(b) // a hash never fails
			off += int64(len(b))
		}
	}
	return nil
}
