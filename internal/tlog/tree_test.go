package tlog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/gowebpki/jcs"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db/dbtest"
)

func TestMain(m *testing.M) {
	crashHere()
	dbtest.Main(m)
}

// stored is x/mod's way to keep a tree: every hash in one list.
type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x >= int64(len(s)) {
			return nil, errors.New("beyond the tree")
		}
		out[i] = s[x]
	}
	return out, nil
}

func (s *stored) add(t *testing.T, n int64, data []byte) {
	hashes, err := tlog.StoredHashes(n, data, *s)
	if err != nil {
		t.Fatal(err)
	}
	*s = append(*s, hashes...)
}

// Every size to 600 and some to 70,000: root, edge and full tiles are those of
// x/mod, and a tree rebuilt from tiles is the one that grew.
func TestTreeIsThatOfXMod(t *testing.T) {
	t.Parallel()
	var ref stored
	var tr tree
	kept := map[[2]int64]*expanded{}
	for n := int64(0); n < 70_000; n++ {
		data := binary.BigEndian.AppendUint64(nil, uint64(n)*0x9e3779b97f4a7c15)
		before := tr
		root := tlog.Hash{}
		if n%997 == 0 {
			root = before.root()
		}
		next := tr.clone()
		for _, f := range next.grow(tlog.RecordHash(data), nil) {
			want, err := tlog.ReadTileData(tlog.Tile{H: tileHeight, L: f.level, N: f.n, W: tileWidth}, prefixed{ref, n, data, t})
			if err != nil {
				t.Fatal(err)
			}
			if string(want) != string(f.bytes()) {
				t.Fatalf("size %d: tile %d/%d differs", n+1, f.level, f.n)
			}
			kept[[2]int64{int64(f.level), f.n}] = expand(f.bytes())
		}
		if n%997 == 0 && before.root() != root {
			t.Fatalf("size %d: growing a clone changed the tree that it was made of", n)
		}
		tr = next
		ref.add(t, n, data)
		size := n + 1
		if size > 600 && size%1021 != 0 && size&(size-1) != 0 && size < 69_990 {
			continue
		}
		want, err := tlog.TreeHash(size, ref)
		if err != nil {
			t.Fatal(err)
		}
		if got := tr.root(); got != want {
			t.Fatalf("size %d: root %s, want %s", size, got, want)
		}
		// Every node is in the edge or in a full tile, with x/mod's hash.
		for i := max(0, int64(len(ref))-700); i < int64(len(ref)); i++ {
			level, at := tlog.SplitStoredHashIndex(i)
			h, ok := tr.node(level, at)
			if !ok {
				in := level % tileHeight
				e := kept[[2]int64{int64(level / tileHeight), at >> (tileHeight - in)}]
				if e == nil {
					t.Fatalf("size %d: node %d/%d is nowhere", size, level, at)
				}
				h = e.rows[in][at-at>>(tileHeight-in)<<(tileHeight-in)]
			}
			if h != ref[i] {
				t.Fatalf("size %d: node %d/%d differs", size, level, at)
			}
		}
		again := tree{size: size}
		for level := 0; level == 0 || size>>(level*tileHeight) > 0; level++ {
			end := size >> (level * tileHeight)
			var hashes []tlog.Hash
			for j := end &^ (tileWidth - 1); j < end; j++ {
				hashes = append(hashes, ref[tlog.StoredHashIndex(level*tileHeight, j)])
			}
			again.setEdge(level, hashes)
		}
		if again.root() != want {
			t.Fatalf("size %d: the rebuilt edge has another root", size)
		}
	}
}

// prefixed is ref with one record more.
type prefixed struct {
	ref  stored
	n    int64
	data []byte
	t    *testing.T
}

func (p prefixed) ReadHashes(x []int64) ([]tlog.Hash, error) {
	s := append(stored(nil), p.ref[:len(p.ref):len(p.ref)]...)
	s.add(p.t, p.n, p.data)
	return s.ReadHashes(x)
}

// anyLeaf fills every field of a leaf, those too that are added after this was
// written.
func anyLeaf(t *rapid.T) firmseal.Leaf {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "<&>", "\u2028\u2029", "\b\f\n\r\t\x00\x1f\x7f", `"\/`, "é😀\ufeff"}))
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			v.SetString(text.Draw(t, "s"))
		case reflect.Int, reflect.Int64:
			v.SetInt(rapid.Int64Range(-1<<53+1, 1<<53-1).Draw(t, "n"))
		case reflect.Bool:
			v.SetBool(rapid.Bool().Draw(t, "b"))
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(0, 3).Draw(t, "len"), 3))
			for i := range v.Len() {
				fill(v.Index(i))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i))
			}
		default:
			t.Fatalf("a leaf has a field of kind %s, which the encoder does not know", v.Kind())
		}
	}
	var l firmseal.Leaf
	fill(reflect.ValueOf(&l).Elem())
	return l
}

func TestCanonicalIsRFC8785(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l := anyLeaf(t)
		got, err := canonical(&l)
		if l.Type == "" || len(got) > maxLeaf {
			if err == nil {
				t.Fatal("took a leaf without a type, or too long")
			}
			return
		}
		if err != nil {
			if strings.Contains(err.Error(), "more than") {
				return
			}
			t.Fatal(err)
		}
		plain, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		want, err := jcs.Transform(plain)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
	})
}

func TestCanonicalRefuses(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]firmseal.Leaf{
		"no type":       {V: 1},
		"not UTF-8":     {V: 1, Type: "x", Actor: "a\xff"},
		"large number":  {V: 1, Type: "x", Time: 1 << 53},
		"above 48 KiB":  {V: 1, Type: "x", Subject: strings.Repeat("s", maxLeaf)},
		"input invalid": {V: 1, Type: "x", Inputs: []firmseal.LeafInput{{Slot: "\xc0"}}},
	} {
		if b, err := canonical(&l); err == nil {
			t.Errorf("%s: encoded as %.80q", name, b)
		}
	}
}

func FuzzTilePath(f *testing.F) {
	for _, s := range []string{
		"tile/0/000", "tile/1/x001/x234/067", "tile/entries/x001/000.p/255", "tile/7/999.p/1", "tile/63/000",
		"tile/0/x000/001", "tile/0/001.p/256", "tile/0/001.p/0", "tile/00/001", "tile/0/x1/001", "tile/0/001/", "tile//.p/1",
		"tile/0/x999/x999/x999/x999/x999/x999/x999/999", "checkpoint", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := parseTilePath(s)
		if !ok {
			return
		}
		if p.n < 0 || p.width < 1 || p.width > tileWidth || p.level < 0 || p.level > 7 || p.n*tileWidth+tileWidth < 0 {
			t.Fatalf("%q is %+v", s, p)
		}
		if p.String() != s {
			t.Fatalf("%q is %+v, which is written %q", s, p, p)
		}
		if !p.entries {
			// x/mod writes the same but for the height.
			if want := (tlog.Tile{H: tileHeight, L: p.level, N: p.n, W: p.width}).Path(); "tile/8/"+s[len("tile/"):] != want {
				t.Fatalf("%q, x/mod says %q", s, want)
			}
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add([]byte("o\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"))
	f.Add([]byte("o\n00\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"))
	f.Add([]byte("\n\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		origin, size, root, err := parseText(b)
		if err == nil && string(headText(origin, size, root)) != string(b) {
			t.Fatalf("%q is read as %q %d %s", b, origin, size, root)
		}
	})
}

func FuzzSlot(f *testing.F) {
	b, err := slot{7, []byte("o\n0\nx\n")}.bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(slotMagic + "\n1 99999999999 0\n"))
	f.Add([]byte(slotMagic + "\n1 -1 0\nabc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := parseSlot(b)
		if !ok {
			return
		}
		again, err := s.bytes()
		if err != nil {
			return // longer than a slot: the file's reader never hands that over
		}
		if r, ok := parseSlot(again); !ok || r.n != s.n || string(r.text) != string(s.text) {
			t.Fatalf("%q is read as %+v, and again as %+v", b, s, r)
		}
	})
}
