// Package blobtest is the suite that each blob.Store must pass.
package blobtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/problem"
)

// MaxSize is the limit with which the stores under test are opened.
const MaxSize = 1 << 20

// Open opens the store at a place; opening a place again is what a restart
// does. A place is a folder, or names a bucket.
type Open func(t testing.TB, place string) blob.Store

// Bytes are reproducible contents.
func Bytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(key).Read(b) //nolint:errcheck // never fails
	return b
}

// Sum is the digest of b.
func Sum(b []byte) blob.Digest {
	s := sha256.Sum256(b)
	return blob.Digest(hex.EncodeToString(s[:]))
}

// Put uploads b in parts.
func Put(t testing.TB, s blob.Store, b []byte, part int) blob.Digest {
	t.Helper()
	d := Sum(b)
	u, err := s.Begin(t.Context(), d, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for !u.Complete {
		end := min(int64(len(b)), u.Offset+int64(part))
		if u, err = s.Append(t.Context(), d, int64(len(b)), u.Offset, b[u.Offset:end]); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// Get reads a stored file whole.
func Get(t testing.TB, s blob.Store, d blob.Digest) []byte {
	t.Helper()
	f, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func want(t testing.TB, err error, code problem.Code) {
	t.Helper()
	if !problem.Has(err, code) {
		t.Errorf("got %v, want %s", err, code)
	}
}

// Run runs the suite.
func Run(t *testing.T, open Open) {
	tests := map[string]func(t *testing.T, open Open){
		"upload": upload, "resume": resume, "immutable": immutable, "wrong bytes": wrongBytes, "refusals": refusals,
		"create": create, "abort": abort, "concurrent": concurrent, "any order of events": anyOrder,
	}
	for name, fn := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fn(t, open)
		})
	}
}

func upload(t *testing.T, open Open) {
	s := open(t, t.TempDir())
	for i, n := range []int{1, 2, 4095, 4096, 100_000, MaxSize} {
		b := Bytes(uint64(i), n)
		d := Put(t, s, b, 33_333)
		if !bytes.Equal(Get(t, s, d), b) {
			t.Errorf("%d bytes came back changed", n)
		}
		if info, err := s.Stat(t.Context(), d); err != nil || info != (blob.Info{Digest: d, Size: int64(n)}) {
			t.Errorf("Stat: %+v, %v", info, err)
		}
		if err := s.Verify(t.Context(), d); err != nil {
			t.Error(err)
		}
	}
}

func resume(t *testing.T, open Open) {
	place := t.TempDir()
	b := Bytes(7, 50_000)
	d, size := Sum(b), int64(50_000)
	for at := int64(0); at < size; at += 10_000 {
		s := open(t, place) // a new process for each part
		u, err := s.Begin(t.Context(), d, size)
		if err != nil {
			t.Fatal(err)
		}
		if u.Offset != at || u.Complete {
			t.Fatalf("resumes at %+v, want offset %d", u, at)
		}
		if ok, err := s.Has(t.Context(), d); ok || err != nil {
			t.Fatalf("has an unfinished upload: %v, %v", ok, err)
		}
		if u, err = s.Append(t.Context(), d, size, at, b[at:at+10_000]); err != nil {
			t.Fatal(err)
		}
		if u.Complete != (at+10_000 == size) {
			t.Fatalf("at %d: %+v", at, u)
		}
	}
	s := open(t, place)
	if !bytes.Equal(Get(t, s, d), b) {
		t.Error("came back changed")
	}
}

// H03: a stored digest is not overwritten.
func immutable(t *testing.T, open Open) {
	s := open(t, t.TempDir())
	b := Bytes(1, 5000)
	d := Put(t, s, b, 5000)
	other := Bytes(2, 5000)
	u, err := s.Append(t.Context(), d, 5000, 0, other)
	if err != nil || !u.Complete {
		t.Errorf("a part for a stored file: %+v, %v", u, err)
	}
	if _, err := s.Begin(t.Context(), d, 4999); !problem.Has(err, problem.BlobSize) {
		t.Errorf("another size for a stored file: %v", err)
	}
	if err := s.Drop(t.Context(), d); err != nil {
		t.Error(err)
	}
	w, err := s.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if info, err := w.Commit(t.Context()); err != nil || info.Digest != d {
		t.Errorf("storing the same again: %+v, %v", info, err)
	}
	if !bytes.Equal(Get(t, s, d), b) {
		t.Error("the stored bytes changed")
	}
}

func wrongBytes(t *testing.T, open Open) {
	s := open(t, t.TempDir())
	b := Bytes(1, 5000)
	d := Sum(b)
	_, err := s.Append(t.Context(), d, 5000, 0, Bytes(2, 5000))
	want(t, err, problem.BlobDigest)
	if ok, err := s.Has(t.Context(), d); ok || err != nil {
		t.Errorf("stored all the same: %v, %v", ok, err)
	}
	if u, err := s.Begin(t.Context(), d, 5000); err != nil || u.Offset != 0 {
		t.Errorf("the wrong bytes are kept: %+v, %v", u, err)
	}
	Put(t, s, b, 1234)
}

func refusals(t *testing.T, open Open) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	good := Sum([]byte("x"))
	for _, d := range []blob.Digest{
		"", "x", good[:63], good + "0", blob.Digest(strings.ToUpper(string(good))), "../../../../../../../../../../../../../../../../../etc/passwd00000",
		blob.Digest(strings.Repeat("/", 64)), blob.Digest(strings.Repeat("\x00", 64)), blob.Digest(strings.Repeat("x", 1<<16)),
	} {
		_, err := s.Begin(ctx, d, 1)
		want(t, err, problem.BadRequest)
		_, err = s.Append(ctx, d, 1, 0, []byte("x"))
		want(t, err, problem.BadRequest)
		_, err = s.Open(ctx, d)
		want(t, err, problem.BadRequest)
		_, err = s.Stat(ctx, d)
		want(t, err, problem.BadRequest)
		want(t, s.Drop(ctx, d), problem.BadRequest)
		want(t, s.Verify(ctx, d), problem.BadRequest)
		if len(err.Error()) > 500 {
			t.Errorf("the error repeats %d bytes of input", len(err.Error()))
		}
	}
	for _, size := range []int64{-1 << 63, -1, 0, MaxSize + 1, 1<<63 - 1} {
		_, err := s.Begin(ctx, good, size)
		want(t, err, problem.BlobSize)
		_, err = s.Append(ctx, good, size, 0, []byte("x"))
		want(t, err, problem.BlobSize)
	}
	b := Bytes(3, 100)
	d := Sum(b)
	if _, err := s.Append(ctx, d, 100, 0, b[:40]); err != nil {
		t.Fatal(err)
	}
	for _, offset := range []int64{-1 << 63, -1, 0, 39, 41, 100, 1<<63 - 1} {
		u, err := s.Append(ctx, d, 100, offset, b[40:50])
		want(t, err, problem.BlobOffset)
		if u.Offset != 40 {
			t.Errorf("the caller is sent to %d", u.Offset)
		}
	}
	_, err := s.Append(ctx, d, 100, 40, Bytes(4, 61))
	want(t, err, problem.BlobSize)
	if u, err := s.Begin(ctx, d, 100); err != nil || u.Offset != 40 {
		t.Errorf("after the refusals: %+v, %v", u, err)
	}
	_, err = s.Open(ctx, d)
	want(t, err, problem.NotFound)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v is not fs.ErrNotExist", err)
	}
	if err := s.Drop(ctx, d); err != nil {
		t.Error(err)
	}
	if u, err := s.Begin(ctx, d, 100); err != nil || u.Offset != 0 {
		t.Errorf("after the drop: %+v, %v", u, err)
	}
	w, err := s.Create(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.Write(make([]byte, MaxSize)); err != nil {
		t.Error(err)
	}
	_, err = w.Write([]byte{0})
	want(t, err, problem.BlobSize)
}

func create(t *testing.T, open Open) {
	place := t.TempDir()
	s := open(t, place)
	w, err := s.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	b := Bytes(9, 70_000)
	for rest := b; len(rest) > 0; rest = rest[7000:] {
		if _, err := w.Write(rest[:7000]); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := s.Has(t.Context(), Sum(b)); ok || err != nil {
		t.Errorf("there before the commit: %v, %v", ok, err)
	}
	info, err := w.Commit(t.Context())
	if err != nil || info != (blob.Info{Digest: Sum(b), Size: 70_000}) {
		t.Fatalf("%+v, %v", info, err)
	}
	w.Abort()
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("a committed writer takes more")
	}
	if _, err := w.Commit(t.Context()); err == nil {
		t.Error("committed twice")
	}
	if !bytes.Equal(Get(t, open(t, place), info.Digest), b) {
		t.Error("came back changed after a restart")
	}
}

func abort(t *testing.T, open Open) {
	s := open(t, t.TempDir())
	b := Bytes(1, 100)
	for _, how := range []string{"abort", "cancel"} {
		w, err := s.Create(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if how == "cancel" {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := w.Commit(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		}
		w.Abort()
		if _, err := w.Write(b); err == nil {
			t.Error("an aborted writer takes more")
		}
		if ok, err := s.Has(t.Context(), Sum(b)); ok || err != nil {
			t.Errorf("%s: stored: %v, %v", how, ok, err)
		}
	}
}

// Many upload and create the same bytes at once: one file, and everybody is
// told that it is there.
func concurrent(t *testing.T, open Open) {
	s := open(t, t.TempDir())
	b := Bytes(5, 60_000)
	d, size := Sum(b), int64(len(b))
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			if n%4 == 3 {
				w, err := s.Create(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				defer w.Abort()
				_, err = w.Write(b)
				if err == nil {
					_, err = w.Commit(t.Context())
				}
				if err != nil {
					t.Error(err)
				}
				return
			}
			u, err := s.Begin(t.Context(), d, size)
			for err == nil && !u.Complete {
				u, err = s.Append(t.Context(), d, size, u.Offset, b[u.Offset:min(size, u.Offset+int64(1000*(n+1)))])
				if problem.Has(err, problem.BlobOffset) {
					u, err = s.Begin(t.Context(), d, size)
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if !bytes.Equal(Get(t, s, d), b) {
		t.Error("came back changed")
	}
}

// anyOrder holds the store against a model: a map of what is stored, and of how
// far each upload has come.
func anyOrder(t *testing.T, open Open) {
	contents := [][]byte{Bytes(1, 1), Bytes(2, 100), Bytes(3, 1000)}
	n := 0
	base := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		n++
		place := fmt.Sprintf("%s/%d", base, n)
		s := open(t, place)
		stored := map[int]bool{}
		offset := map[int]int64{}
		pick := rapid.IntRange(0, len(contents)-1)
		ctx := t.Context()
		check := func(i int, u blob.Upload, err error) {
			size := int64(len(contents[i]))
			if err != nil {
				rt.Fatal(err)
			}
			if stored[i] != u.Complete || !u.Complete && u.Offset != offset[i] || u.Complete && u.Offset != size {
				rt.Fatalf("content %d is at %+v, the model has stored=%v offset=%d", i, u, stored[i], offset[i])
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"append": func(rt *rapid.T) {
				i := pick.Draw(rt, "content")
				b, d := contents[i], Sum(contents[i])
				from := offset[i]
				if stored[i] {
					from = 0
				}
				end := rapid.Int64Range(from, int64(len(b))).Draw(rt, "end")
				u, err := s.Append(ctx, d, int64(len(b)), from, b[from:end])
				if !stored[i] {
					offset[i] = end
					if end == int64(len(b)) {
						stored[i], offset[i] = true, 0
					}
				}
				check(i, u, err)
			},
			"last part is wrong": func(rt *rapid.T) {
				i := pick.Draw(rt, "content")
				b := append([]byte(nil), contents[i]...)
				b[len(b)-1] ^= 1
				_, err := s.Append(ctx, Sum(contents[i]), int64(len(b)), offset[i], b[offset[i]:])
				if stored[i] {
					if err != nil {
						rt.Fatal(err)
					}
					return
				}
				if !problem.Has(err, problem.BlobDigest) {
					rt.Fatalf("got %v", err)
				}
				offset[i] = 0
			},
			"create": func(rt *rapid.T) {
				i := pick.Draw(rt, "content")
				w, err := s.Create(ctx)
				if err != nil {
					rt.Fatal(err)
				}
				defer w.Abort()
				if _, err := w.Write(contents[i]); err != nil {
					rt.Fatal(err)
				}
				if _, err := w.Commit(ctx); err != nil {
					rt.Fatal(err)
				}
				stored[i], offset[i] = true, 0
			},
			"drop": func(rt *rapid.T) {
				i := pick.Draw(rt, "content")
				if err := s.Drop(ctx, Sum(contents[i])); err != nil {
					rt.Fatal(err)
				}
				offset[i] = 0
			},
			"restart": func(*rapid.T) { s = open(t, place) },
			"": func(rt *rapid.T) {
				for i, b := range contents {
					u, err := s.Begin(ctx, Sum(b), int64(len(b)))
					check(i, u, err)
					if stored[i] && !bytes.Equal(Get(t, s, Sum(b)), b) {
						rt.Fatalf("content %d changed", i)
					}
				}
			},
		})
	})
}
