package small

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"

	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/blob/blobtest"
	"github.com/firmseal/firmseal/internal/blob/disk"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/db/dbtest"
	"github.com/firmseal/firmseal/internal/problem"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// over opens the store of a place: a project of d's own, over a folder.
func over(t testing.TB, d *db.DB, place string) *Store {
	t.Helper()
	below, err := disk.OpenWith(place, disk.Options{MaxSize: blobtest.MaxSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { below.Close() })
	return Over(d, place, below)
}

func TestStore(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		blobtest.Run(t, func(t testing.TB, place string) blob.Store { return over(t, d, place) })
	})
}

// A file and the record that names it are there together or not at all.
func TestPutInIsPartOfTheTransaction(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := over(t, d, t.TempDir())
		b := blobtest.Bytes(1, 300)
		no := errors.New("no")
		err := d.Update(t.Context(), func(tx *db.Tx) error {
			if _, err := s.PutIn(tx, b); err != nil {
				return err
			}
			return no
		})
		if !errors.Is(err, no) {
			t.Fatal(err)
		}
		if _, err := s.Open(t.Context(), blobtest.Sum(b)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after the rollback: %v", err)
		}
		for range 2 {
			var info blob.Info
			if err := d.Update(t.Context(), func(tx *db.Tx) (err error) {
				info, err = s.PutIn(tx, b)
				return err
			}); err != nil || info != (blob.Info{Digest: blobtest.Sum(b), Size: 300}) {
				t.Fatalf("%+v, %v", info, err)
			}
		}
		if !bytes.Equal(blobtest.Get(t, s, blobtest.Sum(b)), b) {
			t.Error("came back changed")
		}
		for _, n := range []int{0, Max + 1} {
			if err := d.Update(t.Context(), func(tx *db.Tx) error {
				_, err := s.PutIn(tx, make([]byte, n))
				return err
			}); !problem.Has(err, problem.BlobSize) {
				t.Errorf("%d bytes: %v", n, err)
			}
			if s.Fits(int64(n)) {
				t.Errorf("%d bytes fit", n)
			}
		}
	})
}

// A row that was edited is never read as the file, and the right bytes put it
// right.
func TestEditedRowIsRefused(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := over(t, d, t.TempDir())
		b := blobtest.Bytes(1, 300)
		sum := blobtest.Put(t, s, b, len(b))
		for what, data := range map[string][]byte{"flipped": append([]byte{b[0] ^ 1}, b[1:]...), "cut": b[:299], "longer": append(bytes.Clone(b), 0)} {
			if err := d.Update(t.Context(), func(tx *db.Tx) error {
				_, err := tx.Exec(`UPDATE blob_small SET data = $1`, data)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Open(t.Context(), sum); !problem.Has(err, problem.BlobCorrupt) {
				t.Errorf("%s: Open gives %v", what, err)
			}
			if err := s.Verify(t.Context(), sum); !problem.Has(err, problem.BlobCorrupt) {
				t.Errorf("%s: Verify gives %v", what, err)
			}
			blobtest.Put(t, s, b, len(b))
			if !bytes.Equal(blobtest.Get(t, s, sum), b) {
				t.Errorf("%s: not put right", what)
			}
		}
	})
}

// Knowing a digest gives nobody another project's bytes.
func TestProjectsAreApart(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		one, two := over(t, d, t.TempDir()), over(t, d, t.TempDir())
		sum := blobtest.Put(t, one, []byte("x"), 1)
		if has, err := two.Has(t.Context(), sum); has || err != nil {
			t.Errorf("the other project has it: %v, %v", has, err)
		}
	})
}

// Where a file is kept is not seen: sizes around the limit, in one part and in
// several, with an upload in parts left behind.
func TestAroundTheLimit(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := over(t, d, t.TempDir())
		for i, n := range []int{1, Max - 1, Max, Max + 1} {
			for j, part := range []int{n, (n + 1) / 2} {
				b := blobtest.Bytes(uint64(10*i+j), n)
				sum := blobtest.Put(t, s, b, part)
				if !bytes.Equal(blobtest.Get(t, s, sum), b) {
					t.Errorf("%d bytes in parts of %d came back changed", n, part)
				}
				_, here, err := s.size(t.Context(), sum)
				if err != nil || here != (n <= Max && part == n) {
					t.Errorf("%d bytes in parts of %d: a row is %v, %v", n, part, here, err)
				}
			}
		}
		b := blobtest.Bytes(99, 1000)
		sum := blobtest.Sum(b)
		if _, err := s.Append(t.Context(), sum, 1000, 0, b[:400]); err != nil {
			t.Fatal(err)
		}
		if u, err := s.Append(t.Context(), sum, 1000, 0, b); err != nil || !u.Complete {
			t.Errorf("the whole after a part of it: %+v, %v", u, err)
		}
		if u, err := s.Append(t.Context(), sum, 1000, 400, b[400:]); err != nil || !u.Complete {
			t.Errorf("the rest after the whole: %+v, %v", u, err)
		}
	})
}
