package tlog

import (
	"bytes"
	"context"
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
	// answer is an error, never nil.
	Load(ctx context.Context) ([]byte, error)
	// Swap replaces old, which is nil where there must be none, by text. When it
	// returns nil, text is durable. When another text than old is there, it
	// changes nothing and returns [ErrMoved]. After any other error old or text
	// is there, never anything else.
	Swap(ctx context.Context, old, text []byte) error
}

// ErrMoved says that a second place does not hold what the caller believed.
var ErrMoved = errors.New("the second place holds another checkpoint")

// maxText bounds a checkpoint's text: an origin of a few hundred bytes, a
// number and a hash.
const maxText = 4 << 10

// FilePlace is a second place in a file. Put it on another disk than the
// database, at least outside of the folder that is backed up with it. Processes
// of one machine may share it.
func FilePlace(path string) SecondPlace { return filePlace(path) }

type filePlace string

func (f filePlace) Load(context.Context) ([]byte, error) {
	file, err := os.Open(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(file, maxText+1))
	if err != nil {
		return nil, err
	}
	if len(b) == 0 || len(b) > maxText {
		// An empty file is not an absent one: rename leaves no such trace, so
		// somebody else did.
		return nil, fmt.Errorf("%s has %d bytes and is no checkpoint", string(f), len(b))
	}
	return b, nil
}

// Swap writes beside the file, syncs, and renames over it. A crash before the
// rename leaves the old text and a .new file that the next Swap overwrites; a
// crash after it leaves one of the two texts, whichever the folder's journal
// has. The lock file stays: removing it would let two processes hold locks of
// one name.
func (f filePlace) Swap(ctx context.Context, old, text []byte) error {
	dir := filepath.Dir(string(f))
	if old == nil {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	unlock, err := lockedfile.MutexAt(string(f) + ".lock").Lock()
	if err != nil {
		return err
	}
	defer unlock()
	is, err := f.Load(ctx)
	if err != nil {
		return err
	}
	if (is == nil) != (old == nil) || !bytes.Equal(is, old) {
		return ErrMoved
	}
	fresh := string(f) + ".new"
	if err := writeSynced(fresh, text); err != nil {
		return err
	}
	if err := os.Rename(fresh, string(f)); err != nil {
		return err
	}
	return syncDir(dir)
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
