// Package small is a blob.Store that keeps small files as rows of the database
// and gives larger ones to the store below it.
//
// A signature file has some hundred bytes, a bootloader's image some thousand.
// As files of their own they cost a new name, two syncs and a rename each, which
// is most of what a signature waits for. As rows they share the commit of the
// record that names them: a store of this kind can write in a caller's
// transaction (PutIn), so that file and record are there together or not at all.
//
// A row can be edited by hand as a file can. So a small file is hashed each time
// it is opened, and one whose bytes are not those of its name is BLOB.CORRUPT.
//
// An upload that comes in several parts is below until it is whole, and stays
// there: a file is in one place or the other, and is looked for in both.
package small

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
)

// Max is the size up to which a file is small. A row of 32 KiB is eight pages
// of the database; beyond that a file of its own is as cheap.
const Max = 32 << 10

// Store is one project's files.
type Store struct {
	db      *db.DB
	project string
	below   blob.Store
}

var _ blob.Store = (*Store)(nil)

// Over puts a project's small files into d and its other files into below.
func Over(d *db.DB, project string, below blob.Store) *Store {
	return &Store{db: d, project: project, below: below}
}

// Fits says whether PutIn takes a file of this size.
func (s *Store) Fits(size int64) bool { return 0 < size && size <= Max }

// PutIn stores a small file in the caller's transaction, durable with it. A file
// that is stored already is no error.
func (s *Store) PutIn(tx *db.Tx, content []byte) (blob.Info, error) {
	if !s.Fits(int64(len(content))) {
		return blob.Info{}, problem.New(problem.BlobSize, "a file of %d bytes is not small", len(content)).Seen("the limit is %d bytes", Max)
	}
	sum := sha256.Sum256(content)
	// The bytes are there or the same bytes are: that is what a digest is for.
	// A row that was damaged is put right.
	_, err := tx.Exec(`INSERT INTO blob_small(project, digest, data, created) VALUES ($1,$2,$3,$4)
		ON CONFLICT (project, digest) DO UPDATE SET data = excluded.data WHERE blob_small.data <> excluded.data`,
		s.project, sum[:], content, db.Now())
	if err != nil {
		return blob.Info{}, fmt.Errorf("storing a small file: %w", err)
	}
	return blob.Info{Digest: blob.Digest(hex.EncodeToString(sum[:])), Size: int64(len(content))}, nil
}

func (s *Store) put(ctx context.Context, content []byte) (info blob.Info, err error) {
	err = s.db.Update(ctx, func(tx *db.Tx) (err error) {
		info, err = s.PutIn(tx, content)
		return err
	})
	return info, err
}

// key is the digest as the table has it; ok is false for what is none.
func key(d blob.Digest) ([]byte, bool) {
	if !d.Valid() {
		return nil, false
	}
	b, err := hex.DecodeString(string(d))
	return b, err == nil
}

// read gives a small file's bytes, or nil where it is not here.
func (s *Store) read(ctx context.Context, d blob.Digest) (data []byte, err error) {
	sum, ok := key(d)
	if !ok {
		return nil, nil // below says what is wrong with it
	}
	err = s.db.View(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(`SELECT data FROM blob_small WHERE project = $1 AND digest = $2`, s.project, sum).Scan(&data)
	})
	if errors.Is(err, db.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading a small file: %w", err)
	}
	if got := sha256.Sum256(data); !bytes.Equal(got[:], sum) {
		return nil, problem.New(problem.BlobCorrupt, "the stored file %s is damaged", d).Seen("its %d bytes have %x", len(data), got).
			WithHint("restore it from a backup, or upload it again")
	}
	return data, nil
}

// size gives a small file's size; ok is false where it is not here.
func (s *Store) size(ctx context.Context, d blob.Digest) (size int64, ok bool, err error) {
	sum, valid := key(d)
	if !valid {
		return 0, false, nil
	}
	err = s.db.View(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(`SELECT length(data) FROM blob_small WHERE project = $1 AND digest = $2`, s.project, sum).Scan(&size)
	})
	if errors.Is(err, db.ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("looking for a small file: %w", err)
	}
	return size, true, nil
}

// state says what is known of an upload here; ok is false where below knows it.
func (s *Store) state(ctx context.Context, d blob.Digest, size int64) (u blob.Upload, ok bool, err error) {
	u = blob.Upload{Digest: d, Size: size}
	if size < 1 {
		return u, false, nil
	}
	data, err := s.read(ctx, d)
	if problem.Has(err, problem.BlobCorrupt) {
		return u, false, nil // it is uploaded again, and so put right
	}
	if err != nil || data == nil {
		return u, false, err
	}
	if int64(len(data)) != size {
		return u, true, problem.New(problem.BlobSize, "file %s has another size", d).Seen("%d bytes are stored, %d were announced", len(data), size)
	}
	u.Offset, u.Complete = size, true
	return u, true, nil
}

// Begin implements blob.Store.
func (s *Store) Begin(ctx context.Context, d blob.Digest, size int64) (blob.Upload, error) {
	if u, ok, err := s.state(ctx, d, size); ok || err != nil {
		return u, err
	}
	return s.below.Begin(ctx, d, size)
}

// Append implements blob.Store. A part that is the whole of a small file is
// stored at once, however far another upload of it has come.
func (s *Store) Append(ctx context.Context, d blob.Digest, size, offset int64, part []byte) (blob.Upload, error) {
	if u, ok, err := s.state(ctx, d, size); ok || err != nil {
		return u, err
	}
	if offset != 0 || int64(len(part)) != size || !s.Fits(size) {
		return s.below.Append(ctx, d, size, offset, part)
	}
	sum, ok := key(d)
	if got := sha256.Sum256(part); !ok || !bytes.Equal(got[:], sum) {
		return s.below.Append(ctx, d, size, offset, part) // which refuses it
	}
	// It may be stored below already, from an upload in parts.
	if has, err := s.below.Has(ctx, d); err != nil || has {
		return blob.Upload{Digest: d, Size: size, Offset: size, Complete: has}, err
	}
	if _, err := s.put(ctx, part); err != nil {
		return blob.Upload{Digest: d, Size: size}, err
	}
	return blob.Upload{Digest: d, Size: size, Offset: size, Complete: true}, nil
}

// Drop implements blob.Store.
func (s *Store) Drop(ctx context.Context, d blob.Digest) error { return s.below.Drop(ctx, d) }

// Create implements blob.Store.
func (s *Store) Create(context.Context) (blob.Writer, error) { return &writer{s: s}, nil }

// writer holds a file until it is too large to be small.
type writer struct {
	s     *Store
	buf   bytes.Buffer
	below blob.Writer // from then on
	done  bool
}

func (w *writer) Write(p []byte) (int, error) {
	if w.done {
		return 0, fs.ErrClosed
	}
	if w.below == nil && w.buf.Len()+len(p) <= Max {
		return w.buf.Write(p)
	}
	if w.below == nil {
		// Create needs no context below: what is abandoned is swept there.
		b, err := w.s.below.Create(context.Background())
		if err != nil {
			return 0, err
		}
		w.below = b
		if _, err := b.Write(w.buf.Bytes()); err != nil {
			return 0, err
		}
		w.buf = bytes.Buffer{}
	}
	return w.below.Write(p)
}

func (w *writer) Commit(ctx context.Context) (blob.Info, error) {
	if w.done {
		return blob.Info{}, fs.ErrClosed
	}
	defer w.Abort()
	if w.below == nil && w.buf.Len() == 0 {
		b, err := w.s.below.Create(ctx) // nothing is not small
		if err != nil {
			return blob.Info{}, err
		}
		w.below = b
	}
	if w.below != nil {
		return w.below.Commit(ctx)
	}
	return w.s.put(ctx, w.buf.Bytes())
}

func (w *writer) Abort() {
	w.done = true
	w.buf = bytes.Buffer{}
	if w.below != nil {
		w.below.Abort()
	}
}

// file is a small file in memory.
type file struct {
	*bytes.Reader
}

func (file) Close() error { return nil }

// Open implements blob.Store.
func (s *Store) Open(ctx context.Context, d blob.Digest) (blob.File, error) {
	data, err := s.read(ctx, d)
	if err != nil {
		return nil, err
	}
	if data == nil {
		return s.below.Open(ctx, d)
	}
	return file{bytes.NewReader(data)}, nil
}

// Stat implements blob.Store.
func (s *Store) Stat(ctx context.Context, d blob.Digest) (blob.Info, error) {
	if size, ok, err := s.size(ctx, d); ok || err != nil {
		return blob.Info{Digest: d, Size: size}, err
	}
	return s.below.Stat(ctx, d)
}

// Has implements blob.Store.
func (s *Store) Has(ctx context.Context, d blob.Digest) (bool, error) {
	if _, ok, err := s.size(ctx, d); ok || err != nil {
		return ok, err
	}
	return s.below.Has(ctx, d)
}

// Verify implements blob.Store.
func (s *Store) Verify(ctx context.Context, d blob.Digest) error {
	data, err := s.read(ctx, d)
	if err != nil || data != nil {
		return err
	}
	return s.below.Verify(ctx, d)
}
