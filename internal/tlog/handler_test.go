package tlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/db/dbtest"
)

// monitor is somebody who has the log's public key and its address.
type monitor struct {
	t   *testing.T
	url string
}

func (m monitor) Height() int { return 8 }

func (m monitor) SaveTiles([]tlog.Tile, [][]byte) {}

func (m monitor) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, t := range tiles {
		b, err := m.get(strings.Replace(t.Path(), "tile/8/", "tile/", 1))
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

func (m monitor) get(path string) ([]byte, error) {
	r, err := http.Get(m.url + "/" + path)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != 200 {
		err = fmt.Errorf("%s: %s %s", path, r.Status, b)
	}
	if want := map[bool]string{true: "no-store", false: "public, max-age=31536000, immutable"}[path == "checkpoint"]; err == nil && r.Header.Get("Cache-Control") != want {
		m.t.Errorf("%s: Cache-Control %q", path, r.Header.Get("Cache-Control"))
	}
	return b, err
}

// watch reads everything and checks it with x/mod alone.
func (m monitor) watch(v note.Verifier) tlog.Tree {
	m.t.Helper()
	c, err := m.get("checkpoint")
	if err != nil {
		m.t.Fatal(err)
	}
	n, err := note.Open(c, note.VerifierList(v))
	if err != nil {
		m.t.Fatal(err)
	}
	var tree tlog.Tree
	var root string
	if _, err := fmt.Sscanf(n.Text, testOrigin+"\n%d\n%s\n", &tree.N, &root); err != nil {
		m.t.Fatal(err)
	}
	if tree.Hash, err = tlog.ParseHash(root); err != nil {
		m.t.Fatal(err)
	}
	// The reader verifies each tile against the tree.
	r := tlog.TileHashReader(tree, m)
	var want []int64
	for i := range tree.N {
		want = append(want, tlog.StoredHashIndex(0, i))
	}
	hashes, err := r.ReadHashes(want)
	if err != nil {
		m.t.Fatal(err)
	}
	for i := int64(0); i < tree.N; {
		path := tilePath{entries: true, n: i / 256, width: int(min(256, tree.N-i))}.String()
		b, err := m.get(path)
		if err != nil {
			m.t.Fatal(err)
		}
		for len(b) > 0 {
			size := int(binary.BigEndian.Uint16(b))
			if tlog.RecordHash(b[2:2+size]) != hashes[i] {
				m.t.Fatalf("entry %d is not in the tree", i)
			}
			b, i = b[2+size:], i+1
		}
	}
	return tree
}

func TestTilesOverHTTP(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := open(t, d, options(t, placeIn(t)))
		srv := httptest.NewServer(http.StripPrefix("/log", l.Handler()))
		t.Cleanup(srv.Close)
		m := monitor{t, srv.URL + "/log"}
		var old tlog.Tree
		for i, n := range []int{0, 2, 252, 1, 1, 300, 1500} {
			add(t, l, i*10_000, n)
			now := m.watch(l.Verifier())
			if old.N > 0 {
				r := tlog.TileHashReader(now, m)
				path, err := tlog.ProveTree(now.N, old.N, r)
				if err != nil {
					t.Fatal(err)
				}
				if err := tlog.CheckTree(path, now.N, now.Hash, old.N, old.Hash); err != nil {
					t.Fatal(err)
				}
			}
			old = now
		}
		if old.N != 2057 {
			t.Fatalf("size %d", old.N)
		}
		full, err := m.get("tile/0/000")
		if err != nil || len(full) != 8192 {
			t.Fatalf("%d bytes, %v", len(full), err)
		}
		part, err := m.get("tile/0/000.p/7")
		if err != nil || !bytes.Equal(part, full[:7*32]) {
			t.Errorf("a partial tile of a full one: %d bytes, %v", len(part), err)
		}
		for path, want := range map[string]int{
			"tile/0/008.p/9": 200, "tile/0/008.p/10": 404, "tile/0/008": 404, "tile/1/000.p/8": 200, "tile/1/000.p/9": 404,
			"tile/2/000.p/1": 404, "tile/7/000": 404, "tile/8/000": 404, "tile/0/x000/000": 404, "tile/entries/008.p/10": 404,
			"tile/0/x999/x999/x999/x999/999": 404, "": 404, "tile/": 404, "tile/0/0": 404, "tile/-1/000": 404,
		} {
			r, err := http.Get(m.url + "/" + path)
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			if r.StatusCode != want {
				t.Errorf("%s: %d, want %d", path, r.StatusCode, want)
			}
			if r.StatusCode != 200 && r.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: a refusal may be cached", path)
			}
		}
		r, err := http.Post(m.url+"/checkpoint", "text/plain", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("POST: %s", r.Status)
		}
		if err := d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(`UPDATE log_leaf SET data = $1 WHERE idx = 40`, []byte(`{}`))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if b, err := m.get("tile/entries/000"); err == nil || !strings.Contains(err.Error(), "LOG.ALTERED") {
			t.Errorf("it serves an entry that was edited: %d bytes, %v", len(b), err)
		}
	})
}
