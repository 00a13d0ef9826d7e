package fdt_test

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/firmseal/firmseal/internal/image/fit/fdt"
)

func grow(t *rapid.T, n *fdt.Node, depth int) {
	names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z][a-z0-9,-]{0,12}`), 0, 4, rapid.ID[string])
	for _, p := range names.Draw(t, "props") {
		n.Set(p, rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "value"))
	}
	if depth == 0 {
		return
	}
	for _, c := range names.Draw(t, "children") {
		grow(t, n.Add(c), depth-1)
	}
}

// TestRoundTrip: what is written reads back the same, and writes the same.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		tree := fdt.New()
		grow(t, tree.Root, 3)
		a, err := tree.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		back, err := fdt.Read(bytes.NewReader(a), int64(len(a)))
		if err != nil {
			t.Fatal(err)
		}
		b, err := back.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Fatalf("%x\n%x", a, b)
		}
	})
}

// TestStringsGrowAtTheEnd: a signature covers the strings block and the places
// in it; new names leave both as they are.
func TestStringsGrowAtTheEnd(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		tree := fdt.New()
		grow(t, tree.Root, 2)
		a, err := tree.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		back, err := fdt.Read(bytes.NewReader(a), int64(len(a)))
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(back.Strings())
		grow(t, back.Root.Add("zz-new"), 1)
		if _, err := back.Bytes(); err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(back.Strings(), before) {
			t.Fatalf("%q became %q", before, back.Strings())
		}
	})
}

// FuzzRead: no bytes make Read panic, and what it takes can be written and read
// again.
func FuzzRead(f *testing.F) {
	tree := fdt.New()
	tree.Root.SetString("model", "m")
	tree.Root.Add("a").Add("b").SetU32("reg", 1, 2)
	seed, err := tree.Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:41])
	f.Fuzz(func(t *testing.T, b []byte) {
		tree, err := fdt.Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		out, err := tree.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fdt.Read(bytes.NewReader(out), int64(len(out))); err != nil {
			t.Fatalf("written, and not read: %v", err)
		}
	})
}
