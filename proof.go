package firmseal

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

const proofHeader = "c2sp.org/tlog-proof@v1"

// Bounds of a log proof.
const (
	MaxProof       = 256 << 10 // bytes; a leaf of MaxLeaf in base64 and a well witnessed checkpoint
	MaxProofHashes = 63
	maxCheckpoint  = 64 << 10 // bytes; one line for each cosignature
)

// Proof is a C2SP .tlog-proof: an entry of a log, and the way from it to a
// checkpoint that the log has signed. It can be checked with nothing but the
// log's public key.
type Proof struct {
	// Extra is the entry's bytes: what the log's leaf hash is made of. Nothing
	// vouches for it until Verify has hashed it.
	Extra      []byte
	Index      int64       // of the entry, from 0
	Hashes     []tlog.Hash // RFC 6962 inclusion proof, the leaf's sibling first
	Checkpoint []byte      // C2SP tlog-checkpoint, a signed note, verbatim
}

// Checkpoint is what a log has signed: its size and root.
type Checkpoint struct {
	Origin string
	Size   int64
	Root   tlog.Hash
}

// ParseProof reads a .tlog-proof file. The error is LOG.PROOF_MALFORMED.
func ParseProof(data []byte) (*Proof, error) {
	p, err := parseProof(data)
	if err != nil {
		return nil, refuse(CodeProofMalformed, "the log proof cannot be read").seen("%v", err).
			next("fetch the .tlog-proof file again from where the release was published")
	}
	return p, nil
}

func parseProof(data []byte) (*Proof, error) {
	if len(data) > MaxProof {
		return nil, fmt.Errorf("it has more than %d bytes", MaxProof)
	}
	line := func() (string, error) {
		l, rest, ok := bytes.Cut(data, []byte("\n"))
		if !ok {
			return "", errors.New("it ends within a line")
		}
		data = rest
		return string(l), nil
	}
	l, err := line()
	if err != nil || l != proofHeader {
		return nil, fmt.Errorf("its first line is not %s", proofHeader)
	}
	p := new(Proof)
	if l, err = line(); err != nil {
		return nil, err
	}
	if extra, ok := strings.CutPrefix(l, "extra "); ok {
		if p.Extra, err = decodeBase64(extra); err != nil || len(p.Extra) > MaxLeaf {
			return nil, fmt.Errorf("the extra line is not base64 of at most %d bytes", MaxLeaf)
		}
		if l, err = line(); err != nil {
			return nil, err
		}
	}
	index, ok := strings.CutPrefix(l, "index ")
	if !ok {
		return nil, errors.New("it has no index line")
	}
	if p.Index, err = parseDecimal(index); err != nil {
		return nil, fmt.Errorf("index %w", err)
	}
	for {
		if l, err = line(); err != nil {
			return nil, err
		}
		if l == "" {
			break
		}
		if len(p.Hashes) == MaxProofHashes {
			return nil, fmt.Errorf("it has more than %d hashes", MaxProofHashes)
		}
		h, err := parseHash(l)
		if err != nil {
			return nil, fmt.Errorf("hash %d %w", len(p.Hashes), err)
		}
		p.Hashes = append(p.Hashes, h)
	}
	if len(data) == 0 || len(data) > maxCheckpoint {
		return nil, fmt.Errorf("the checkpoint has %d bytes, not 1 to %d", len(data), maxCheckpoint)
	}
	p.Checkpoint = bytes.Clone(data)
	return p, nil
}

// Marshal gives the bytes of a .tlog-proof file.
func (p *Proof) Marshal() []byte {
	var b bytes.Buffer
	b.WriteString(proofHeader + "\n")
	if p.Extra != nil {
		fmt.Fprintf(&b, "extra %s\n", base64.StdEncoding.EncodeToString(p.Extra))
	}
	fmt.Fprintf(&b, "index %d\n", p.Index)
	for _, h := range p.Hashes {
		fmt.Fprintf(&b, "%s\n", base64.StdEncoding.EncodeToString(h[:]))
	}
	b.WriteByte('\n')
	b.Write(p.Checkpoint)
	return b.Bytes()
}

// Verify checks that the log origin, whose key is vkey (a C2SP signed note
// verifier key), has leaf at p.Index. leaf is the whole entry; p.Extra holds it
// in the proofs that Firmseal writes. Errors: LOG.CHECKPOINT_UNTRUSTED,
// LOG.PROOF_INVALID, TRUST.ROOT_MALFORMED for a vkey that is none.
func (p *Proof) Verify(leaf []byte, origin, vkey string) (*Checkpoint, error) {
	v, err := parseLogKey(vkey)
	if err != nil {
		return nil, err
	}
	c, err := openCheckpoint(p.Checkpoint, origin, v)
	if err != nil {
		return nil, refuse(CodeCheckpointUntrusted, "the checkpoint is not signed by log %s", clip(origin)).seen("%v", err).
			next("use the proof of the log that the trust root names, or the newest trust root")
	}
	if err := tlog.CheckRecord(p.Hashes, c.Size, c.Root, p.Index, tlog.RecordHash(leaf)); err != nil {
		return nil, refuse(CodeProofInvalid, "the proof does not lead from the entry to the log's checkpoint").
			seen("entry %d of %d with %d hashes", p.Index, c.Size, len(p.Hashes)).
			next("fetch the .tlog-proof file again; if it stays so, the entry or the proof was changed")
	}
	return c, nil
}

func parseLogKey(vkey string) (note.Verifier, error) {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, refuse(CodeTrustRootMalformed, "the log's verifier key cannot be read").
			seen("%q is not NAME+HASH+KEY with an Ed25519 key", clip(vkey)).next("export the trust root again: firmseal trust export")
	}
	return v, nil
}

// openCheckpoint verifies a signed checkpoint.
func openCheckpoint(signed []byte, origin string, v note.Verifier) (*Checkpoint, error) {
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		var none *note.UnverifiedNoteError
		if errors.As(err, &none) {
			return nil, fmt.Errorf("it has no signature by %s", clip(v.Name()))
		}
		return nil, fmt.Errorf("it is not a note with a valid signature by %s", clip(v.Name()))
	}
	return parseCheckpoint(n.Text, origin)
}

// ParseCheckpoint reads the text that a checkpoint's signature covers: origin,
// size and root, each on its line. Extension lines are allowed by C2SP and mean
// nothing here; who wants none compares with Text. It verifies no signature:
// Proof.Verify does. The size is below 2^53, beyond which the arithmetic of
// trees does not end. The error is LOG.CHECKPOINT_UNTRUSTED.
func ParseCheckpoint(text, origin string) (*Checkpoint, error) {
	if len(text) > maxCheckpoint {
		return nil, refuse(CodeCheckpointUntrusted, "the checkpoint cannot be read").seen("%d bytes, more than %d", len(text), maxCheckpoint)
	}
	c, err := parseCheckpoint(text, origin)
	if err != nil {
		return nil, refuse(CodeCheckpointUntrusted, "the checkpoint cannot be read").seen("%v", err)
	}
	return c, nil
}

// Text is the checkpoint as a log signs it, without extension lines.
func (c *Checkpoint) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

func parseCheckpoint(text, origin string) (*Checkpoint, error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) < 3 {
		return nil, errors.New("it is shorter than origin, size and root")
	}
	if lines[0] != origin {
		return nil, fmt.Errorf("it is of log %q", clip(lines[0]))
	}
	for _, l := range lines[3:] {
		if l == "" {
			return nil, errors.New("it has an empty extension line")
		}
	}
	c := &Checkpoint{Origin: origin}
	var err error
	if c.Size, err = parseDecimal(lines[1]); err != nil {
		return nil, fmt.Errorf("its size %w", err)
	}
	if c.Root, err = parseHash(lines[2]); err != nil {
		return nil, fmt.Errorf("its root %w", err)
	}
	return c, nil
}

// parseDecimal bounds by 2^53: sumdb/tlog's arithmetic does not end for sizes
// near 2^63.
func parseDecimal(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > maxInteger || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("%q is not a decimal number below 2^53", clip(s))
	}
	return n, nil
}

func parseHash(s string) (tlog.Hash, error) {
	b, err := decodeBase64(s)
	if err != nil || len(b) != tlog.HashSize {
		return tlog.Hash{}, errors.New("is not base64 of 32 bytes")
	}
	return tlog.Hash(b), nil
}
