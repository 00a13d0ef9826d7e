// Package fdt reads, changes and writes flattened device trees (the Devicetree
// Specification, chapter 5) for those parts of the FIT format that make
// something: Inspect, Plan and the control device tree. Verify does not use it
// and has a reader of its own.
//
// # Big values stay where they are
//
// A FIT may carry a root file system of hundreds of MiB as one property. Read
// keeps a value of up to 64 KiB in memory and remembers a larger one as a range
// of the source; writing and hashing stream it from there. What is held of a
// tree is bounded by [MaxHeld], whatever its header says.
//
// # Names keep their places
//
// A configuration signature of a FIT covers the strings block from its start
// and every property's offset into it. A tree that was read therefore keeps its
// strings block byte for byte; new names are added at the end only.
package fdt

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/firmseal/firmseal/internal/problem"
)

// Bounds of what Read accepts. They are far above any real tree (a FIT has
// tens of nodes, a board's device tree some thousand) and far below what would
// hurt a server.
const (
	MaxHeld    = 16 << 20 // bytes of names and small values kept in memory
	MaxNodes   = 1 << 14
	MaxProps   = 1 << 17
	MaxDepth   = 32 // as U-Boot's own walk
	MaxName    = 255
	MaxStrings = 1 << 20
	MaxReserve = 1 << 16 // bytes of the memory reservation block
	keepValue  = 64 << 10
)

// The tags of the structure block.
const (
	tagBegin = 1
	tagEnd   = 2
	tagProp  = 3
	tagNop   = 4
	tagDone  = 9
)

const (
	magic      = 0xd00dfeed
	headerSize = 40
)

// Tree is a device tree in memory. It is not safe for concurrent changes.
type Tree struct {
	Root *Node
	// Total is the totalsize that the header stated, 0 for a new tree.
	Total int64
	// StructOff and StringsOff are where Read found the blocks, StringsLen how
	// long the strings block was; 0 for a new tree.
	StructOff, StructLen   int64
	StringsOff, StringsLen int64
	// Nops counts the no-operation tags that Read dropped.
	Nops int

	boot    uint32
	reserve []byte
	strings []byte
	src     io.ReaderAt
}

// Node is a node with its properties and children in file order.
type Node struct {
	Name  string
	Props []*Prop
	Nodes []*Node
	// Off and End are the node's bytes in the file that was read, from its
	// begin tag to behind its end tag; 0 for a new node.
	Off, End int64
}

// Prop is a property.
type Prop struct {
	Name string
	// Off is where the value is in the file that was read; 0 for a new one.
	Off int64

	nameOff int // in the strings block; -1 until interned
	val     []byte
	big     bool // the value is the range [Off, Off+size) of the source
	size    int64
	pad     [3]byte // up to three bytes that align the next tag; see readProp
}

// Len is the value's length in bytes.
func (p *Prop) Len() int64 { return p.size }

// Held gives the value and true, or false for a value that stayed in the source.
func (p *Prop) Held() ([]byte, bool) { return p.val, !p.big }

// New makes an empty tree.
func New() *Tree {
	return &Tree{Root: &Node{}, reserve: make([]byte, 16)}
}

// Child finds a direct child by its exact name, or nil.
func (n *Node) Child(name string) *Node {
	for _, c := range n.Nodes {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// Prop finds a property by name, or nil.
func (n *Node) Prop(name string) *Prop {
	for _, p := range n.Props {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// Add appends a new child.
func (n *Node) Add(name string) *Node {
	c := &Node{Name: name}
	n.Nodes = append(n.Nodes, c)
	return c
}

// Remove takes a child out.
func (n *Node) Remove(c *Node) {
	for i, x := range n.Nodes {
		if x == c {
			n.Nodes = append(n.Nodes[:i:i], n.Nodes[i+1:]...)
			return
		}
	}
}

// Set sets a property's value, in its place if it exists, else at the end.
func (n *Node) Set(name string, val []byte) *Prop {
	p := n.Prop(name)
	if p == nil {
		p = &Prop{Name: name, nameOff: -1}
		n.Props = append(n.Props, p)
	}
	p.val, p.big, p.size, p.Off, p.pad = val, false, int64(len(val)), 0, [3]byte{}
	return p
}

// SetString sets one or more NUL-terminated strings.
func (n *Node) SetString(name string, s ...string) *Prop {
	return n.Set(name, []byte(strings.Join(s, "\x00")+"\x00"))
}

// SetU32 sets big-endian cells.
func (n *Node) SetU32(name string, v ...uint32) *Prop {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.BigEndian.AppendUint32(b, x)
	}
	return n.Set(name, b)
}

// Str gives a property that is exactly one non-empty string.
func (n *Node) Str(name string) (string, bool) {
	s, ok := n.Strs(name)
	if !ok || len(s) != 1 || s[0] == "" {
		return "", false
	}
	return s[0], true
}

// Strs gives a property that is a list of NUL-terminated strings.
func (n *Node) Strs(name string) ([]string, bool) {
	p := n.Prop(name)
	if p == nil || p.big || len(p.val) == 0 || p.val[len(p.val)-1] != 0 {
		return nil, false
	}
	return strings.Split(string(p.val[:len(p.val)-1]), "\x00"), true
}

// U32 gives a property of exactly one cell.
func (n *Node) U32(name string) (uint32, bool) {
	p := n.Prop(name)
	if p == nil || p.big || len(p.val) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(p.val), true
}

// cursor reads forward through a bounded part of a source, and skips without
// reading.
type cursor struct {
	r        io.ReaderAt
	off, end int64
	buf      []byte // a window on the source
	at       int64  // where buf begins
}

// next gives n ≤ 64 KiB bytes; the slice is valid until the next call.
func (c *cursor) next(n int) ([]byte, error) {
	if int64(n) > c.end-c.off {
		return nil, malformed("the structure block ends inside a tag").Seen("at byte %d", c.off)
	}
	if c.off < c.at || c.off+int64(n) > c.at+int64(len(c.buf)) {
		size := min(int64(keepValue), c.end-c.off)
		if int64(cap(c.buf)) < size {
			c.buf = make([]byte, size)
		}
		c.buf = c.buf[:size]
		if _, err := c.r.ReadAt(c.buf, c.off); err != nil && err != io.EOF {
			return nil, fmt.Errorf("reading %d bytes at %d: %w", size, c.off, err)
		}
		c.at = c.off
	}
	b := c.buf[c.off-c.at:][:n]
	c.off += int64(n)
	return b, nil
}

func (c *cursor) u32() (uint32, error) {
	b, err := c.next(4)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(b), nil
}

// name reads a NUL-terminated node name and its padding.
func (c *cursor) name() (string, error) {
	var b strings.Builder
	for {
		w, err := c.next(4)
		if err != nil {
			return "", err
		}
		for i, x := range w {
			if x != 0 {
				b.WriteByte(x)
				continue
			}
			for _, y := range w[i:] {
				if y != 0 {
					return "", malformed("the padding of a node name is not zero").Seen("at byte %d", c.off-4)
				}
			}
			return b.String(), nil
		}
		if b.Len() > MaxName {
			return "", malformed("a node name is longer than %d bytes", MaxName).Seen("at byte %d", c.off)
		}
	}
}

func malformed(format string, a ...any) *problem.Error {
	return problem.New(problem.ImageMalformed, format, a...)
}

// plain says whether a node or property name has only characters that a path
// can show: no slash, no blank, no control character.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || s[i] == '/' {
			return false
		}
	}
	return true
}

// Read parses the tree at the start of r, which has size bytes. The tree reads
// big values from r later, so r must stay readable and unchanged.
func Read(r io.ReaderAt, size int64) (*Tree, error) {
	if size < headerSize {
		return nil, problem.New(problem.ImageTruncated, "the device tree is shorter than its header").
			Seen("%d of %d bytes", max(size, 0), headerSize)
	}
	var h [headerSize]byte
	if _, err := r.ReadAt(h[:], 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("reading the device tree header: %w", err)
	}
	f := func(i int) int64 { return int64(binary.BigEndian.Uint32(h[4*i:])) }
	if f(0) != magic {
		return nil, problem.New(problem.ImageUnknownFormat, "not a flattened device tree").
			Seen("it begins with %08x, not %08x", f(0), int64(magic))
	}
	t := &Tree{
		Total: f(1), StructOff: f(2), StringsOff: f(3), StringsLen: f(8), StructLen: f(9),
		boot: uint32(f(7)), src: r,
	}
	rsv := f(4)
	if t.Total > size {
		return nil, problem.New(problem.ImageTruncated, "the device tree is cut off").
			Seen("its header says %d bytes, there are %d", t.Total, size)
	}
	if f(5) != 17 || f(6) > 17 {
		return nil, malformed("device tree version %d is not supported", f(5)).Seen("version 17 is")
	}
	inside := func(off, n int64) bool { return off >= headerSize && n <= t.Total && off <= t.Total-n }
	switch {
	case !inside(t.StructOff, t.StructLen) || t.StructOff%4 != 0:
		return nil, malformed("the structure block is outside the device tree").
			Seen("offset %d, length %d, total %d", t.StructOff, t.StructLen, t.Total)
	case !inside(t.StringsOff, t.StringsLen):
		return nil, malformed("the strings block is outside the device tree").
			Seen("offset %d, length %d, total %d", t.StringsOff, t.StringsLen, t.Total)
	case t.StringsLen > MaxStrings:
		return nil, malformed("the strings block is larger than %d bytes", MaxStrings).Seen("%d", t.StringsLen)
	case !inside(rsv, 16) || rsv%8 != 0:
		return nil, malformed("the memory reservation block is outside the device tree").Seen("offset %d", rsv)
	}
	t.strings = make([]byte, t.StringsLen)
	if _, err := r.ReadAt(t.strings, t.StringsOff); err != nil && err != io.EOF {
		return nil, fmt.Errorf("reading the strings block: %w", err)
	}
	if err := t.readReserve(rsv); err != nil {
		return nil, err
	}
	if err := t.readStruct(); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *Tree) readReserve(off int64) error {
	c := cursor{r: t.src, off: off, end: t.Total}
	for {
		if c.end-c.off < 16 {
			return malformed("the memory reservation block does not end")
		}
		e, err := c.next(16)
		if err != nil {
			return err
		}
		t.reserve = append(t.reserve, e...)
		if binary.BigEndian.Uint64(e) == 0 && binary.BigEndian.Uint64(e[8:]) == 0 {
			return nil
		}
		if len(t.reserve) >= MaxReserve {
			return malformed("the memory reservation block is longer than %d bytes", MaxReserve)
		}
	}
}

func (t *Tree) readStruct() error {
	c := cursor{r: t.src, off: t.StructOff, end: t.StructOff + t.StructLen}
	var open []*Node
	var names []map[string]bool // of the open nodes: children and properties, for duplicates
	var nodes, props int
	var held int64 = t.StringsLen + int64(len(t.reserve))
	for {
		at := c.off
		tag, err := c.u32()
		if err != nil {
			return err
		}
		if t.Root != nil && len(open) == 0 && tag != tagDone && tag != tagNop {
			return malformed("there is something behind the root node").Seen("tag %d at byte %d", tag, at)
		}
		switch tag {
		case tagNop:
			t.Nops++
		case tagBegin:
			name, err := c.name()
			if err != nil {
				return err
			}
			nodes++
			held += int64(len(name)) + 128
			n := &Node{Name: name, Off: at}
			switch {
			case nodes > MaxNodes:
				return malformed("the device tree has more than %d nodes", MaxNodes)
			case len(open) >= MaxDepth:
				return malformed("the device tree is deeper than %d nodes", MaxDepth).Seen("at byte %d", at)
			case !plain(name):
				return malformed("the node name %q has characters that none may have", name).Seen("at byte %d", at)
			case len(open) == 0 && name != "":
				return malformed("the root node has the name %q", name)
			case len(open) == 0:
				t.Root = n
			case name == "":
				return malformed("a node has no name").Seen("at byte %d", at)
			default:
				p := open[len(open)-1]
				if !once(names[len(names)-1], "n"+name) {
					return malformed("the node %q is there twice", name).Seen("at byte %d", at)
				}
				p.Nodes = append(p.Nodes, n)
			}
			open, names = append(open, n), append(names, map[string]bool{})
		case tagEnd:
			if len(open) == 0 {
				return malformed("a node ends that never began").Seen("at byte %d", at)
			}
			open[len(open)-1].End = c.off
			open, names = open[:len(open)-1], names[:len(names)-1]
		case tagProp:
			if len(open) == 0 {
				return malformed("a property is outside of any node").Seen("at byte %d", at)
			}
			n := open[len(open)-1]
			p, err := t.readProp(&c)
			if err != nil {
				return err
			}
			props++
			held += int64(len(p.val)) + 128
			switch {
			case props > MaxProps:
				return malformed("the device tree has more than %d properties", MaxProps)
			case len(n.Nodes) > 0:
				// libfdt stops looking for properties at the first child: such a
				// property would be signed but never seen.
				return malformed("the property %q comes after a child node", p.Name).Seen("at byte %d", at)
			case !once(names[len(names)-1], "p"+p.Name):
				return malformed("the property %q is there twice", p.Name).Seen("at byte %d", at)
			}
			n.Props = append(n.Props, p)
		case tagDone:
			if t.Root == nil || len(open) > 0 {
				return malformed("the device tree ends inside a node").Seen("at byte %d", at)
			}
			if c.off != c.end {
				return malformed("there are bytes behind the end tag of the structure block").Seen("%d bytes", c.end-c.off)
			}
			return nil
		default:
			return malformed("unknown tag %#x in the structure block", tag).Seen("at byte %d", at)
		}
		if held > MaxHeld {
			return malformed("the device tree's structure is larger than %d bytes without its images", MaxHeld)
		}
	}
}

func once(m map[string]bool, k string) bool {
	if m[k] {
		return false
	}
	m[k] = true
	return true
}

func (t *Tree) readProp(c *cursor) (*Prop, error) {
	h, err := c.next(8)
	if err != nil {
		return nil, err
	}
	size, nameOff := int64(binary.BigEndian.Uint32(h)), int64(binary.BigEndian.Uint32(h[4:]))
	if size > c.end-c.off {
		return nil, malformed("a property is longer than the structure block").Seen("%d bytes at byte %d", size, c.off)
	}
	if nameOff >= t.StringsLen {
		return nil, malformed("a property's name is outside the strings block").Seen("offset %d of %d", nameOff, t.StringsLen)
	}
	name, _, ok := strings.Cut(string(t.strings[nameOff:min(nameOff+MaxName+1, t.StringsLen)]), "\x00")
	if !ok || name == "" || !plain(name) {
		return nil, malformed("a property's name is empty, too long or not plain").Seen("offset %d of the strings block", nameOff)
	}
	p := &Prop{Name: name, nameOff: int(nameOff), Off: c.off, size: size}
	pad := (4 - size%4) % 4
	if size <= keepValue-4 {
		b, err := c.next(int(size))
		if err != nil {
			return nil, err
		}
		p.val = append([]byte{}, b...)
	} else {
		p.big = true
		c.off += size
	}
	// libfdt leaves what was there before in the padding, and signatures cover
	// it: it is kept as it is.
	b, err := c.next(int(pad))
	if err != nil {
		return nil, err
	}
	copy(p.pad[:], b)
	return p, nil
}
