package keys

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Bounds of what a ticket may carry. A leaf is bounded by what an entry bundle
// of C2SP tlog-tiles can hold.
const (
	maxLeaf       = 1<<16 - 1
	maxRequest    = 1 << 20
	maxProof      = 256 << 10
	maxCheckpoint = 64 << 10 // a checkpoint carries one line for each cosignature
	maxHashes     = 63
)

const proofHeader = "c2sp.org/tlog-proof@v1\n"

// proof is a parsed .tlog-proof. It is read here and not with the root
// package's reader: what a key believes must not change because a device's
// parser did.
type proof struct {
	extra      []byte // nil when there is none
	index      int64
	hashes     tlog.RecordProof
	checkpoint []byte // the signed note, as it came
}

var strict64 = base64.StdEncoding.Strict()

func parseProof(b []byte) (*proof, error) {
	if len(b) > maxProof {
		return nil, fmt.Errorf("%d bytes, more than %d", len(b), maxProof)
	}
	rest, ok := bytes.CutPrefix(b, []byte(proofHeader))
	if !ok {
		return nil, errors.New("not a c2sp.org/tlog-proof@v1 file")
	}
	line := func() (string, error) {
		l, r, ok := bytes.Cut(rest, []byte("\n"))
		if !ok {
			return "", errors.New("it ends within a line")
		}
		rest = r
		return string(l), nil
	}
	p := new(proof)
	l, err := line()
	if err != nil {
		return nil, err
	}
	if e, ok := strings.CutPrefix(l, "extra "); ok {
		if p.extra, err = strict64.DecodeString(e); err != nil {
			return nil, errors.New("the extra line is not base64")
		}
		if l, err = line(); err != nil {
			return nil, err
		}
	}
	n, ok := strings.CutPrefix(l, "index ")
	if !ok {
		return nil, errors.New("there is no index line")
	}
	if p.index, err = decimal(n); err != nil {
		return nil, errors.New("the index is not a number")
	}
	for {
		if l, err = line(); err != nil {
			return nil, err
		}
		if l == "" {
			break
		}
		if len(p.hashes) == maxHashes {
			return nil, fmt.Errorf("more than %d hashes", maxHashes)
		}
		h, err := hash64(l)
		if err != nil {
			return nil, errors.New("a hash is not 32 bytes of base64")
		}
		p.hashes = append(p.hashes, h)
	}
	if len(rest) == 0 || len(rest) > maxCheckpoint {
		return nil, errors.New("the checkpoint is missing or too long")
	}
	p.checkpoint = rest
	return p, nil
}

func decimal(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("%q is not a decimal number", s)
	}
	return n, nil
}

func hash64(s string) (tlog.Hash, error) {
	var h tlog.Hash
	if len(s) != 44 {
		return h, errors.New("wrong length")
	}
	b, err := strict64.DecodeString(s)
	if err != nil || len(b) != len(h) {
		return h, errors.New("wrong encoding")
	}
	copy(h[:], b)
	return h, nil
}

// tree is what a checkpoint says.
type tree struct {
	size int64
	root tlog.Hash
}

// parseCheckpoint reads the text that a checkpoint's signature covers: exactly
// origin, size and root, each on its line. Extension lines are refused: this
// log writes none.
func parseCheckpoint(text, origin string) (tree, error) {
	var t tree
	rest, ok := strings.CutPrefix(text, origin+"\n")
	if !ok {
		return t, fmt.Errorf("the origin is not %q", origin)
	}
	size, rest, ok := strings.Cut(rest, "\n")
	if !ok {
		return t, errors.New("it has no size line")
	}
	var err error
	if t.size, err = decimal(size); err != nil {
		return t, errors.New("the size is not a number")
	}
	root, rest, ok := strings.Cut(rest, "\n")
	if !ok || rest != "" {
		return t, errors.New("it is not three lines")
	}
	if t.root, err = hash64(root); err != nil {
		return t, errors.New("the root is not 32 bytes of base64")
	}
	return t, nil
}

// openCheckpoint verifies a signed checkpoint.
func openCheckpoint(signed []byte, v note.Verifier, origin string) (tree, error) {
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return tree{}, err
	}
	return parseCheckpoint(n.Text, origin)
}
