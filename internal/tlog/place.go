package tlog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/lockedfile"
	"golang.org/x/mod/sumdb/tlog"
)

// SecondPlace keeps the text of the last checkpoint where a backup of the
// database does not reach it. It is what tells a crash from a restored backup.
type SecondPlace interface {
	// Load gives the text, or nil when there is none. A place that does not
	// answer is an error, never nil; [ErrDamaged] where trying again is no use.
	Load(ctx context.Context) ([]byte, error)
	// Swap replaces old, which is nil where there must be none, by text. When it
	// returns nil, text is durable, also where text equals old. When another text than old is there, it
	// changes nothing and returns [ErrMoved]. After any other error old or text
	// is there, never anything else.
	Swap(ctx context.Context, old, text []byte) error
}

// ErrMoved says that a second place does not hold what the caller believed.
var ErrMoved = errors.New("the second place holds another checkpoint")

// ErrDamaged says that a second place holds something that is no text that
// was ever swapped in.
var ErrDamaged = errors.New("the second place is damaged")

// maxText bounds a checkpoint's text: an origin of a few hundred bytes, a
// number and a hash.
const maxText = 3 << 10

// FilePlace is a second place in a file. Put it on another disk than the
// database, at least outside of the folder that is backed up with it. Processes
// of one machine may share it.
//
// The file has two slots of a page each, and a text is written over the older
// one, so that a Swap costs one write and one sync and changes no folder. Each
// slot says its number and its SHA-256: a slot that a crash has torn is not
// taken, and the other one still is.
func FilePlace(path string) SecondPlace { return filePlace(path) }

type filePlace string

const (
	slotSize  = 4096
	slotMagic = "firmseal second place v1"
)

// slot is a text with its number, which rises by one with each Swap.
type slot struct {
	n    uint64
	text []byte
}

func (s slot) bytes() ([]byte, error) {
	b := fmt.Appendf(make([]byte, 0, slotSize), "%s\n%d %d %x\n", slotMagic, s.n, len(s.text), sha256.Sum256(s.text))
	if len(b)+len(s.text) > slotSize {
		return nil, fmt.Errorf("a text of %d bytes does not fit", len(s.text))
	}
	b = append(b, s.text...)
	return append(b, bytes.Repeat([]byte("\n"), slotSize-len(b))...), nil
}

func parseSlot(b []byte) (s slot, ok bool) {
	rest, ok := bytes.CutPrefix(b, []byte(slotMagic+"\n"))
	if !ok {
		return s, false
	}
	line, rest, _ := bytes.Cut(rest, []byte("\n"))
	f := strings.Fields(string(line))
	if len(f) != 3 {
		return s, false
	}
	size, err := strconv.Atoi(f[1])
	if err != nil || size < 1 || size > len(rest) {
		return s, false
	}
	if s.n, err = strconv.ParseUint(f[0], 10, 64); err != nil || f[2] != fmt.Sprintf("%x", sha256.Sum256(rest[:size])) {
		return s, false
	}
	s.text = rest[:size]
	return s, true
}

// newest reads the slot that counts.
func newest(file *os.File) (slot, error) {
	var both [2 * slotSize]byte
	n, err := file.ReadAt(both[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return slot{}, err
	}
	a, okA := parseSlot(both[:min(n, slotSize)])
	b, okB := parseSlot(both[min(n, slotSize):n])
	switch {
	case okA && (!okB || a.n > b.n):
		return a, nil
	case okB:
		return b, nil
	}
	// It was made whole and by rename, so no crash leaves this.
	return slot{}, fmt.Errorf("%w: none of the two slots of %s is whole", ErrDamaged, file.Name())
}

func (f filePlace) Load(context.Context) ([]byte, error) {
	file, err := os.Open(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // read only
	s, err := newest(file)
	return s.text, err
}

// Swap holds the lock file's lock from its look to its sync. The lock file
// stays: removing it would let two processes hold locks of one name.
func (f filePlace) Swap(_ context.Context, old, text []byte) error {
	if old == nil {
		if err := os.MkdirAll(filepath.Dir(string(f)), 0o700); err != nil {
			return err
		}
	}
	unlock, err := lockedfile.MutexAt(string(f) + ".lock").Lock()
	if err != nil {
		return err
	}
	defer unlock()
	file, err := os.OpenFile(string(f), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if old != nil {
			return ErrMoved
		}
		return f.claim(text)
	}
	if err != nil {
		return err
	}
	return errors.Join(swapSlot(file, old, text), file.Close())
}

func swapSlot(file *os.File, old, text []byte) error {
	is, err := newest(file)
	if err != nil {
		return err
	}
	if old == nil || !bytes.Equal(is.text, old) {
		return ErrMoved
	}
	next := slot{is.n + 1, text}
	b, err := next.bytes()
	if err != nil {
		return err
	}
	// A crash within the write leaves this slot torn and the other whole.
	if _, err := file.WriteAt(b, int64(next.n%2)*slotSize); err != nil {
		return err
	}
	return syncData(file)
}

// claim makes the file. A crash before the rename leaves no file, and a .new
// one that the next claim overwrites.
func (f filePlace) claim(text []byte) error {
	b, err := slot{2, text}.bytes()
	if err != nil {
		return err
	}
	fresh := string(f) + ".new"
	if err := writeSynced(fresh, append(b, bytes.Repeat([]byte("\n"), slotSize)...)); err != nil {
		return err
	}
	if err := os.Rename(fresh, string(f)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(string(f)))
}

func writeSynced(path string, b []byte) error {
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return errors.Join(err, w.Close())
	}
	if err := w.Sync(); err != nil {
		return errors.Join(err, w.Close())
	}
	return w.Close()
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// headText is the text of a checkpoint: the note body that is signed and the
// content of the second place.
func headText(origin string, size int64, root tlog.Hash) []byte {
	b := make([]byte, 0, len(origin)+70)
	b = append(b, origin...)
	b = append(b, '\n')
	b = strconv.AppendInt(b, size, 10)
	b = append(b, '\n')
	b = base64.StdEncoding.AppendEncode(b, root[:])
	return append(b, '\n')
}

// parseText is the inverse of headText and takes nothing else.
func parseText(b []byte) (origin string, size int64, root tlog.Hash, err error) {
	no := func(what string) (string, int64, tlog.Hash, error) {
		return "", 0, tlog.Hash{}, errors.New("the checkpoint text " + what)
	}
	if len(b) > maxText {
		return no("is too long")
	}
	l := strings.Split(string(b), "\n")
	if len(l) != 4 || l[3] != "" || l[0] == "" {
		return no("is not three lines")
	}
	if size, err = strconv.ParseInt(l[1], 10, 64); err != nil || size < 0 || strconv.FormatInt(size, 10) != l[1] {
		return no("has no size")
	}
	h, err := base64.StdEncoding.Strict().DecodeString(l[2])
	if err != nil || len(h) != hashSize || len(l[2]) != base64.StdEncoding.EncodedLen(hashSize) {
		return no("has no root")
	}
	return l[0], size, tlog.Hash(h), nil
}
