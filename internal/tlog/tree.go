package tlog

import (
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	hashSize   = tlog.HashSize
)

// tree is a Merkle tree's size and right edge: for each level of the tree, the
// hashes of the complete nodes that lie in the level's partial tile. That is
// all that growing needs and all that the root needs.
//
// A tree is grown by its owner only. A clone shares the arrays: it may be read
// while the other grows, since growing writes behind the clone's lengths, but
// of a tree and its clones only one may grow.
type tree struct {
	size int64
	edge [][]tlog.Hash // by tree level
}

// fullTile is a tile that growing has completed.
type fullTile struct {
	level  int // of the tile: tree level / 8
	n      int64
	hashes []tlog.Hash // 256
}

func (f fullTile) bytes() []byte {
	b := make([]byte, 0, tileWidth*hashSize)
	for i := range f.hashes {
		b = append(b, f.hashes[i][:]...)
	}
	return b
}

func (t tree) clone() tree { return tree{t.size, slices.Clone(t.edge)} }

// grow adds a leaf's hash. It returns tiles with those that it completed.
func (t *tree) grow(h tlog.Hash, tiles []fullTile) []fullTile {
	n := t.size
	for level := 0; ; level++ {
		if level == len(t.edge) {
			t.edge = append(t.edge, nil)
		}
		if t.edge[level] == nil {
			t.edge[level] = make([]tlog.Hash, 0, tileWidth>>(level%tileHeight))
		}
		t.edge[level] = append(t.edge[level], h)
		if n&1 == 0 {
			break
		}
		row := t.edge[level]
		h = tlog.NodeHash(row[len(row)-2], h)
		n >>= 1
		if level%tileHeight == tileHeight-1 {
			// Both nodes of the top level are there: the tile is full.
			bottom := level - tileHeight + 1
			tiles = append(tiles, fullTile{level / tileHeight, n, t.edge[bottom]})
			for l := bottom; l <= level; l++ {
				t.edge[l] = nil // clones keep theirs
			}
		}
	}
	t.size++
	return tiles
}

// edgeBase is the index of the first node of a level in the partial tile.
func edgeBase(size int64, level int) int64 {
	in := level % tileHeight
	return size >> (level - in + tileHeight) << (tileHeight - in)
}

// node gives a node of the edge.
func (t tree) node(level int, n int64) (tlog.Hash, bool) {
	if level >= len(t.edge) {
		return tlog.Hash{}, false
	}
	i := n - edgeBase(t.size, level)
	if i < 0 || i >= int64(len(t.edge[level])) {
		return tlog.Hash{}, false
	}
	return t.edge[level][i], true
}

// root is the RFC 6962 tree hash, which needs the edge only.
func (t tree) root() tlog.Hash {
	if t.size == 0 {
		return emptyRoot
	}
	var h tlog.Hash
	first := true
	for level := 0; t.size>>level != 0; level++ {
		if t.size>>level&1 == 0 {
			continue
		}
		row := t.edge[level]
		if last := row[len(row)-1]; first {
			h, first = last, false
		} else {
			h = tlog.NodeHash(last, h)
		}
	}
	return h
}

// setEdge puts the hashes of a partial tile in, and makes its upper levels.
func (t *tree) setEdge(tileLevel int, hashes []tlog.Hash) {
	for len(t.edge) < (tileLevel+1)*tileHeight {
		t.edge = append(t.edge, nil)
	}
	for l := range tileHeight {
		row := make([]tlog.Hash, 0, tileWidth>>l)
		t.edge[tileLevel*tileHeight+l] = append(row, hashes...)
		up := make([]tlog.Hash, 0, len(hashes)/2)
		for i := 0; i+1 < len(hashes); i += 2 {
			up = append(up, tlog.NodeHash(hashes[i], hashes[i+1]))
		}
		hashes = up
	}
}

// expanded is a full tile with all its nodes.
type expanded struct {
	rows [tileHeight + 1][]tlog.Hash // rows[8] is the tile's root
}

// expand reads a stored tile; data has the right length.
func expand(data []byte) *expanded {
	e := new(expanded)
	all := make([]tlog.Hash, 2*tileWidth-1)
	e.rows[0], all = all[:tileWidth:tileWidth], all[tileWidth:]
	for i := range e.rows[0] {
		copy(e.rows[0][i][:], data[i*hashSize:])
	}
	for l := 1; l <= tileHeight; l++ {
		w := tileWidth >> l
		e.rows[l], all = all[:w:w], all[w:]
		for i := range e.rows[l] {
			e.rows[l][i] = tlog.NodeHash(e.rows[l-1][2*i], e.rows[l-1][2*i+1])
		}
	}
	return e
}

func (e *expanded) root() tlog.Hash { return e.rows[tileHeight][0] }

// emptyRoot is SHA-256 of nothing.
var emptyRoot = func() tlog.Hash {
	h, err := tlog.TreeHash(0, nil)
	if err != nil {
		panic(err)
	}
	return h
}()
