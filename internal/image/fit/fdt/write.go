package fdt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// Kind of a token of the structure block.
type Kind int

const (
	Begin Kind = iota // a node begins
	Value             // a property
	End               // a node ends
	Done              // the structure block ends
)

// Token is one item of the structure block as it will be written.
type Token struct {
	Kind Kind
	Path string // of the node that begins, ends or has the property; "/" for the root
	Name string // of the property

	head []byte // tag, name or property header
	prop *Prop
	src  io.ReaderAt
}

// WriteTo writes the token's bytes; a big value is streamed from the source.
func (k Token) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for _, p := range k.pieces() {
		n, err := p.copyTo(w, k.src)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (k Token) pieces() []Piece {
	if k.prop == nil {
		return []Piece{{Lit: k.head}}
	}
	pad := k.prop.pad[:(4-k.prop.size%4)%4]
	if k.prop.big {
		return []Piece{{Lit: k.head}, {Off: k.prop.Off, Len: k.prop.size}, {Lit: pad}}
	}
	return []Piece{{Lit: k.head}, {Lit: k.prop.val}, {Lit: pad}}
}

// Intern fixes the places of all names in the strings block. Names that the
// block has not are added at its end, in tree order; nothing else moves.
func (t *Tree) Intern() {
	var walk func(*Node)
	walk = func(n *Node) {
		for _, p := range n.Props {
			if p.nameOff >= 0 {
				continue
			}
			p.nameOff = t.find(p.Name)
		}
		for _, c := range n.Nodes {
			walk(c)
		}
	}
	walk(t.Root)
}

// find gives the offset of a name, which may be the tail of a longer one.
func (t *Tree) find(name string) int {
	if i := bytes.Index(t.strings, []byte(name+"\x00")); i >= 0 {
		return i
	}
	i := len(t.strings)
	t.strings = append(append(t.strings, name...), 0)
	return i
}

// Strings is the strings block, complete after Intern.
func (t *Tree) Strings() []byte { return t.strings }

// Walk calls f for each token of the structure block in order. The tree must
// have been interned.
func (t *Tree) Walk(f func(Token) error) error {
	if err := t.walk(t.Root, "", f); err != nil {
		return err
	}
	return f(Token{Kind: Done, Path: "/", head: cell(tagDone)})
}

func (t *Tree) walk(n *Node, path string, f func(Token) error) error {
	if n != t.Root {
		path += "/" + n.Name
	}
	shown := path
	if shown == "" {
		shown = "/"
	}
	head := append(cell(tagBegin), n.Name...)
	head = append(head, make([]byte, 4-len(n.Name)%4)...)
	if err := f(Token{Kind: Begin, Path: shown, head: head}); err != nil {
		return err
	}
	for _, p := range n.Props {
		if p.nameOff < 0 {
			panic("fdt: walk before intern")
		}
		h := binary.BigEndian.AppendUint32(cell(tagProp), uint32(p.size))
		h = binary.BigEndian.AppendUint32(h, uint32(p.nameOff))
		if err := f(Token{Kind: Value, Path: shown, Name: p.Name, head: h, prop: p, src: t.src}); err != nil {
			return err
		}
	}
	for _, c := range n.Nodes {
		if err := t.walk(c, path, f); err != nil {
			return err
		}
	}
	return f(Token{Kind: End, Path: shown, head: cell(tagEnd)})
}

func cell(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// Piece is a run of output bytes: literal, or a range of the source.
type Piece struct {
	Lit []byte
	Off int64
	Len int64
}

func (p Piece) copyTo(w io.Writer, src io.ReaderAt) (int64, error) {
	if p.Len == 0 {
		n, err := w.Write(p.Lit)
		return int64(n), err
	}
	n, err := io.Copy(w, io.NewSectionReader(src, p.Off, p.Len))
	if err == nil && n != p.Len {
		err = fmt.Errorf("copying %d bytes at %d: %w", p.Len, p.Off, io.ErrUnexpectedEOF)
	}
	return n, err
}

// Layout is a tree as it will be written.
type Layout struct {
	Pieces []Piece
	Size   int64 // the sum of the pieces: totalsize in the header

	lit []byte // the literal that is being gathered
}

// Layout lays the tree out: header, reservations, structure, strings, and zeros
// up to a multiple of align and at least to total. It interns names.
func (t *Tree) Layout(align, total int64) (*Layout, error) {
	t.Intern()
	l := &Layout{}
	structOff := int64(headerSize + len(t.reserve))
	var structLen int64
	if err := t.Walk(func(k Token) error {
		for _, p := range k.pieces() {
			structLen += int64(len(p.Lit)) + p.Len
			l.add(p)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	stringsOff := structOff + structLen
	end := stringsOff + int64(len(t.strings))
	size := max((end+align-1)/align*align, total)
	if size > math.MaxInt32 {
		return nil, malformed("the device tree would be larger than 2 GiB").Seen("%d bytes", size)
	}
	l.add(Piece{Lit: t.strings})
	l.add(Piece{Lit: make([]byte, size-end)})
	l.flush()

	head := make([]byte, 0, structOff)
	for _, v := range []uint32{
		magic, uint32(size), uint32(structOff), uint32(stringsOff), headerSize,
		17, 16, t.boot, uint32(len(t.strings)), uint32(structLen),
	} {
		head = binary.BigEndian.AppendUint32(head, v)
	}
	head = append(head, t.reserve...)
	l.Pieces = append([]Piece{{Lit: head}}, l.Pieces...)
	l.Size = size
	return l, nil
}

func (l *Layout) add(p Piece) {
	if p.Len == 0 {
		l.lit = append(l.lit, p.Lit...)
		return
	}
	l.flush()
	l.Pieces = append(l.Pieces, p)
}

func (l *Layout) flush() {
	if len(l.lit) > 0 {
		l.Pieces = append(l.Pieces, Piece{Lit: l.lit})
		l.lit = nil
	}
}

// WriteTo writes the tree; src is the source that it was read from, nil for a
// new one.
func (l *Layout) WriteTo(w io.Writer, src io.ReaderAt) (int64, error) {
	var total int64
	for _, p := range l.Pieces {
		n, err := p.copyTo(w, src)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// Bytes writes a tree whose values are all small into memory.
func (t *Tree) Bytes() ([]byte, error) {
	l, err := t.Layout(8, 0)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if _, err := l.WriteTo(&b, t.src); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
