// Package disk is a blob.Store in a folder.
//
//	sha256/ab/ab12…   stored, read-only, named by digest
//	partial/ab12…     an upload; its length is how far it has come
//	new/RANDOM        being written
//
// A file is written under another name, synced, renamed, and the folder synced,
// so that a name under sha256/ always stands for the whole file, also after a
// power cut. All paths go through an os.Root: no name leads outside.
package disk

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"syscall"
	"time"

	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/problem"
)

const (
	stored  = "sha256"
	partial = "partial"
	fresh   = "new"

	// DefaultMaxSize bounds one file: twice the largest image that the formats
	// promise to handle.
	DefaultMaxSize = 4 << 30
	// abandonedAfter is how long an upload or an uncommitted file may rest
	// before Open removes it. A builder that is stopped over a weekend still
	// finds its upload.
	abandonedAfter = 7 * 24 * time.Hour
	// copyBuffer is what is read at once while hashing.
	copyBuffer = 256 << 10
)

// Options have useful zero values.
type Options struct {
	// MaxSize bounds one file in bytes. Default: DefaultMaxSize.
	MaxSize int64
	// VerifyOnOpen hashes a file each time it is opened, so that damage on the
	// disk is found before a byte of it is used.
	VerifyOnOpen bool
	// Step is called with a label just before each thing that a crash could
	// separate from the one before (see Steps). A test kills the process there.
	Step func(label string)
}

// Steps are the labels that Options.Step is called with.
func Steps() []string {
	return []string{"append.write", "append.sync", "commit.sync", "commit.rename", "commit.folder", "commit.done"}
}

// Store is a folder of files by digest.
type Store struct {
	root *os.Root
	o    Options

	// mu guards busy.
	mu sync.Mutex
	// busy holds a lock for each digest that somebody is uploading.
	busy map[blob.Digest]*lock
}

// lock is counted, so that the map holds those in use only.
type lock struct {
	sync.Mutex
	users int
}

var _ blob.Store = (*Store)(nil)

// Open opens a store with default options, and makes its folders where they are
// missing. One process at a time uses a folder.
func Open(dir string) (*Store, error) { return OpenWith(dir, Options{}) }

// OpenWith is Open with options.
func OpenWith(dir string, o Options) (_ *Store, err error) {
	if o.MaxSize <= 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the blob store: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the blob store: %w", err)
	}
	s := &Store{root: root, o: o, busy: make(map[blob.Digest]*lock)}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.Close())
		}
	}()
	for _, name := range []string{stored, partial, fresh} {
		if err := root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("making the blob store: %w", err)
		}
	}
	if err := s.syncDir("."); err != nil {
		return nil, err
	}
	for _, name := range []string{partial, fresh} {
		if err := s.sweep(name, time.Now().Add(-abandonedAfter)); err != nil {
			return nil, fmt.Errorf("removing abandoned uploads: %w", err)
		}
	}
	return s, nil
}

// Close releases the folder. Open files stay open.
func (s *Store) Close() error { return s.root.Close() }

func (s *Store) sweep(dir string, before time.Time) error {
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if fi.ModTime().Before(before) {
			if err := s.root.Remove(path.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

func name(d blob.Digest) string     { return path.Join(stored, string(d[:2]), string(d)) }
func partName(d blob.Digest) string { return path.Join(partial, string(d)) }

// hold takes the lock of a digest.
func (s *Store) hold(d blob.Digest) (release func()) {
	s.mu.Lock()
	l := s.busy[d]
	if l == nil {
		l = new(lock)
		s.busy[d] = l
	}
	l.users++
	s.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(s.busy, d)
		}
	}
}

func malformed(d blob.Digest) error {
	return problem.New(problem.BadRequest, "%q is not a SHA-256 digest", abbreviated(string(d))).Seen("64 lower-case hex digits are needed").
		WithHint("take it from sha256sum")
}

func abbreviated(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// announced checks what an upload says about itself.
func (s *Store) announced(d blob.Digest, size int64) error {
	if !d.Valid() {
		return malformed(d)
	}
	if size < 1 || size > s.o.MaxSize {
		return problem.New(problem.BlobSize, "an upload of %d bytes is not accepted", size).
			Seen("the limit is %d bytes", s.o.MaxSize)
	}
	return nil
}

// Begin implements blob.Store.
func (s *Store) Begin(ctx context.Context, d blob.Digest, size int64) (blob.Upload, error) {
	u := blob.Upload{Digest: d, Size: size}
	if err := s.announced(d, size); err != nil {
		return u, err
	}
	defer s.hold(d)()
	return s.state(ctx, d, size)
}

// state says how far an upload has come. The caller holds the digest.
func (s *Store) state(ctx context.Context, d blob.Digest, size int64) (blob.Upload, error) {
	u := blob.Upload{Digest: d, Size: size}
	switch info, err := s.Stat(ctx, d); {
	case err == nil:
		if info.Size != size {
			return u, problem.New(problem.BlobSize, "file %s has another size", d).Seen("%d bytes are stored, %d were announced", info.Size, size)
		}
		u.Offset, u.Complete = size, true
		return u, nil
	case !errors.Is(err, fs.ErrNotExist):
		return u, err
	}
	fi, err := s.root.Lstat(partName(d))
	if errors.Is(err, fs.ErrNotExist) {
		return u, nil
	}
	if err != nil {
		return u, failed("looking for an upload", err)
	}
	if fi.Size() >= size {
		// Somebody announced another size, or a crash came between the last part
		// and its check. Either way these bytes prove nothing.
		if fi.Size() > size {
			return u, s.drop(d)
		}
		return s.finish(ctx, d, size)
	}
	u.Offset = fi.Size()
	return u, nil
}

// Append implements blob.Store.
func (s *Store) Append(ctx context.Context, d blob.Digest, size, offset int64, part []byte) (blob.Upload, error) {
	u := blob.Upload{Digest: d, Size: size}
	if err := s.announced(d, size); err != nil {
		return u, err
	}
	defer s.hold(d)()
	u, err := s.state(ctx, d, size)
	if err != nil || u.Complete {
		return u, err
	}
	if offset != u.Offset {
		return u, problem.New(problem.BlobOffset, "the part of %s does not continue the upload", d).
			Seen("it begins at %d, and %d bytes are here", offset, u.Offset).WithHint("go on at %d", u.Offset)
	}
	if int64(len(part)) > size-offset {
		return u, problem.New(problem.BlobSize, "the part of %s goes beyond the announced size", d).
			Seen("%d bytes at %d where the file ends at %d", len(part), offset, size)
	}
	if len(part) == 0 {
		return u, nil
	}
	if err := s.write(d, offset, part); err != nil {
		return u, err
	}
	u.Offset += int64(len(part))
	if u.Offset < size {
		return u, nil
	}
	return s.finish(ctx, d, size)
}

// write adds bytes to an upload's file. They are synced before the caller hears
// of them; the length of the file is the only record of how far it has come.
func (s *Store) write(d blob.Digest, offset int64, part []byte) (err error) {
	f, err := s.root.OpenFile(partName(d), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return failed("opening an upload", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	s.o.Step("append.write")
	if _, err := f.WriteAt(part, offset); err != nil {
		// What was written of it is cut off: an offset is a promise.
		return errors.Join(failed("writing an upload", err), f.Truncate(offset))
	}
	s.o.Step("append.sync")
	if err := f.Sync(); err != nil {
		return errors.Join(failed("writing an upload", err), f.Truncate(offset))
	}
	return nil
}

// finish stores an upload that has its whole length. The hash is made from the
// file and not from the parts as they came, because a crash may have lost some.
func (s *Store) finish(ctx context.Context, d blob.Digest, size int64) (blob.Upload, error) {
	u := blob.Upload{Digest: d, Size: size}
	f, err := s.root.Open(partName(d))
	if err != nil {
		return u, failed("reading an upload", err)
	}
	got, n, err := sum(ctx, f)
	err = errors.Join(err, f.Close())
	if err != nil {
		return u, failed("reading an upload", err)
	}
	if got != d || n != size {
		return u, errors.Join(problem.New(problem.BlobDigest, "the upload of %s has another digest", d).
			Seen("its %d bytes have %s", n, got).WithHint("upload it again from the start"), s.drop(d))
	}
	if err := s.publish(partName(d), d); err != nil {
		return u, err
	}
	u.Offset, u.Complete = size, true
	return u, nil
}

// publish gives a synced file its final name. The caller has seen that the name
// is free or does not mind: the bytes are the same.
func (s *Store) publish(from string, d blob.Digest) error {
	if err := s.root.Chmod(from, 0o400); err != nil {
		return failed("storing a file", err)
	}
	shard := path.Dir(name(d))
	s.o.Step("commit.rename")
	err := s.root.Rename(from, name(d))
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.root.Mkdir(shard, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return failed("storing a file", err)
		}
		if err := s.syncDir(stored); err != nil {
			return err
		}
		err = s.root.Rename(from, name(d))
	}
	if err != nil {
		return failed("storing a file", err)
	}
	s.o.Step("commit.folder")
	if err := s.syncDir(shard); err != nil {
		return err
	}
	s.o.Step("commit.done")
	return nil
}

// Drop implements blob.Store.
func (s *Store) Drop(_ context.Context, d blob.Digest) error {
	if !d.Valid() {
		return malformed(d)
	}
	defer s.hold(d)()
	return s.drop(d)
}

func (s *Store) drop(d blob.Digest) error {
	if err := s.root.Remove(partName(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failed("dropping an upload", err)
	}
	return nil
}

// Create implements blob.Store.
func (s *Store) Create(context.Context) (blob.Writer, error) {
	temp := path.Join(fresh, rand.Text())
	f, err := s.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, failed("creating a file", err)
	}
	return &writer{s: s, f: f, temp: temp, hash: sha256.New()}, nil
}

type writer struct {
	s    *Store
	f    *os.File // nil when committed or aborted
	temp string
	hash hash.Hash
	size int64
}

func (w *writer) Write(p []byte) (int, error) {
	if w.f == nil {
		return 0, fs.ErrClosed
	}
	if int64(len(p)) > w.s.o.MaxSize-w.size {
		return 0, problem.New(problem.BlobSize, "the file is too large to be stored").Seen("the limit is %d bytes", w.s.o.MaxSize)
	}
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.size += int64(n)
	if err != nil {
		return n, failed("writing a file", err)
	}
	return n, nil
}

func (w *writer) Commit(ctx context.Context) (blob.Info, error) {
	if w.f == nil {
		return blob.Info{}, fs.ErrClosed
	}
	defer w.Abort()
	if err := ctx.Err(); err != nil {
		return blob.Info{}, err
	}
	info := blob.Info{Digest: blob.Digest(hex.EncodeToString(w.hash.Sum(nil))), Size: w.size}
	defer w.s.hold(info.Digest)()
	if had, err := w.s.Has(ctx, info.Digest); err != nil || had {
		return info, err
	}
	w.s.o.Step("commit.sync")
	if err := w.f.Sync(); err != nil {
		return blob.Info{}, failed("writing a file", err)
	}
	if err := w.s.publish(w.temp, info.Digest); err != nil {
		return blob.Info{}, err
	}
	// An upload of the same bytes has come too late to be needed.
	if err := w.s.drop(info.Digest); err != nil {
		return blob.Info{}, err
	}
	err := w.f.Close()
	w.f = nil
	if err != nil {
		return blob.Info{}, failed("closing a file", err)
	}
	return info, nil
}

func (w *writer) Abort() {
	if w.f == nil {
		return
	}
	w.f.Close()             //nolint:errcheck // nobody reads it again
	w.s.root.Remove(w.temp) //nolint:errcheck // what stays is removed by a later Open
	w.f = nil
}

// Open implements blob.Store.
func (s *Store) Open(ctx context.Context, d blob.Digest) (blob.File, error) {
	if s.o.VerifyOnOpen {
		if err := s.Verify(ctx, d); err != nil {
			return nil, err
		}
	}
	f, info, err := s.open(d)
	if err != nil {
		return nil, err
	}
	return &file{File: f, size: info.Size}, nil
}

func (s *Store) open(d blob.Digest) (*os.File, blob.Info, error) {
	if !d.Valid() {
		return nil, blob.Info{}, malformed(d)
	}
	f, err := s.root.Open(name(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, blob.Info{}, absent(d, err)
	}
	if err != nil {
		return nil, blob.Info{}, failed("opening a file", err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, blob.Info{}, errors.Join(failed("opening a file", err), f.Close())
	}
	return f, blob.Info{Digest: d, Size: fi.Size()}, nil
}

func absent(d blob.Digest, err error) error {
	return problem.New(problem.NotFound, "no file %s is stored", d).WithHint("upload it first").Because(err)
}

type file struct {
	*os.File
	size int64
}

// Size is the length when it was opened; a stored file has no other.
func (f *file) Size() int64 { return f.size }

// Stat implements blob.Store.
func (s *Store) Stat(_ context.Context, d blob.Digest) (blob.Info, error) {
	if !d.Valid() {
		return blob.Info{}, malformed(d)
	}
	fi, err := s.root.Lstat(name(d))
	if errors.Is(err, fs.ErrNotExist) {
		return blob.Info{}, absent(d, err)
	}
	if err != nil {
		return blob.Info{}, failed("looking for a file", err)
	}
	return blob.Info{Digest: d, Size: fi.Size()}, nil
}

// Has implements blob.Store.
func (s *Store) Has(ctx context.Context, d blob.Digest) (bool, error) {
	_, err := s.Stat(ctx, d)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Verify implements blob.Store.
func (s *Store) Verify(ctx context.Context, d blob.Digest) error {
	f, _, err := s.open(d)
	if err != nil {
		return err
	}
	defer f.Close()
	got, n, err := sum(ctx, f)
	if err != nil {
		return failed("reading a file", err)
	}
	if got != d {
		return problem.New(problem.BlobCorrupt, "the stored file %s is damaged", d).Seen("its %d bytes have %s", n, got).
			WithHint("restore it from a backup, or remove it and upload it again")
	}
	return nil
}

// sum hashes a file, and stops when ctx ends.
func sum(ctx context.Context, f *os.File) (blob.Digest, int64, error) {
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, reader{ctx, f}, make([]byte, copyBuffer))
	return blob.Digest(hex.EncodeToString(h.Sum(nil))), n, err
}

type reader struct {
	ctx context.Context
	f   *os.File
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.f.Read(p)
}

func (s *Store) syncDir(dir string) error {
	f, err := s.root.Open(dir)
	if err != nil {
		return failed("syncing a folder", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return failed("syncing a folder", err)
	}
	return nil
}

// failed turns what the system says into what a person can act on.
func failed(doing string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return problem.New(problem.BlobFull, "the image store has no space left").WithHint("make room on its disk, then go on").Because(err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
