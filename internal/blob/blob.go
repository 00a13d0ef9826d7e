// Package blob keeps bytes under their SHA-256: images as they arrived, and as
// they were signed.
//
// What is stored never changes. There is no way to write to a digest again:
// the same bytes are already there, other bytes have another digest. A name
// for "the newest" belongs to whoever keeps names, and is journalled there.
//
// # Two ways in
//
// An upload announces digest and size (Begin), is sent in parts (Append) and is
// stored when the last byte has arrived and the whole has the announced digest.
// After a broken connection or a crash of either side, Begin says where to go
// on. Callers who upload one digest at the same time share one upload.
//
// What is made here is written without knowing its digest (Create) and stored
// by Commit, which tells it.
//
// # What a crash leaves behind
//
// A digest is stored whole or not at all. A part that was acknowledged is
// there; one that was not may be there, and its bytes are not trusted before
// the whole was hashed. A Writer that was not committed leaves nothing that
// anybody can open.
//
// One folder a kind of store; blobtest is the suite that each must pass.
package blob

import (
	"context"
	"io"
)

// Digest is the SHA-256 of a whole file in lower-case hex.
type Digest string

// Valid says whether d has the form of a digest. A store refuses others before
// they become part of a path.
func (d Digest) Valid() bool {
	if len(d) != 64 {
		return false
	}
	for i := range len(d) {
		if c := d[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Info is what a store knows about a stored file.
type Info struct {
	Digest Digest
	Size   int64
}

// Upload is how far an upload has come.
type Upload struct {
	Digest   Digest
	Size     int64
	Offset   int64 // bytes that are safe; where to go on
	Complete bool  // stored
}

// File is an open stored file. It may be read from several goroutines.
type File interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Writer takes a new file. It belongs to one goroutine.
type Writer interface {
	io.Writer
	// Commit stores what was written and says under which digest. Storing what
	// is stored already is no error.
	Commit(ctx context.Context) (Info, error)
	// Abort throws away what was written. After Commit it does nothing, so that
	// it can be deferred.
	Abort()
}

// Store keeps files. It is safe for concurrent use. Errors are *problem.Error:
// NOT_FOUND (with fs.ErrNotExist in its chain), BLOB.DIGEST, BLOB.OFFSET,
// BLOB.SIZE, BLOB.CORRUPT, BLOB.NO_SPACE.
type Store interface {
	// Begin begins an upload or says how far it has come. One that is stored
	// already is Complete.
	Begin(ctx context.Context, d Digest, size int64) (Upload, error)
	// Append adds a part at offset, which must be the upload's own (BLOB.OFFSET
	// otherwise). The part that reaches size stores the file; if the whole does
	// not have the digest, the upload is thrown away (BLOB.DIGEST). Once stored,
	// any part is a no-op.
	Append(ctx context.Context, d Digest, size, offset int64, part []byte) (Upload, error)
	// Drop throws an unfinished upload away. It never touches a stored file.
	Drop(ctx context.Context, d Digest) error

	// Create begins a file whose digest is not known yet.
	Create(ctx context.Context) (Writer, error)

	Open(ctx context.Context, d Digest) (File, error)
	Stat(ctx context.Context, d Digest) (Info, error)
	Has(ctx context.Context, d Digest) (bool, error)
	// Verify reads a stored file whole and compares it with its name
	// (BLOB.CORRUPT).
	Verify(ctx context.Context, d Digest) error
}
