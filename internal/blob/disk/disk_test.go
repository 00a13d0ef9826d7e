package disk

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/blob/blobtest"
	"github.com/firmseal/firmseal/internal/problem"
)

const (
	killAt = "FIRMSEAL_BLOB_KILL_AT"
	killIn = "FIRMSEAL_BLOB_KILL_IN"
)

func TestMain(m *testing.M) {
	if at := os.Getenv(killAt); at != "" {
		victim(at, os.Getenv(killIn))
	}
	os.Exit(m.Run())
}

func open(t testing.TB, place string) blob.Store { return openWith(t, place, Options{}) }

func openWith(t testing.TB, place string, o Options) *Store {
	t.Helper()
	o.MaxSize = blobtest.MaxSize
	s, err := OpenWith(place, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStore(t *testing.T) {
	t.Parallel()
	blobtest.Run(t, open)
}

func TestStoreThatVerifies(t *testing.T) {
	t.Parallel()
	blobtest.Run(t, func(t testing.TB, place string) blob.Store { return openWith(t, place, Options{VerifyOnOpen: true}) })
}

var uploaded, created = blobtest.Bytes(1, 30_000), blobtest.Bytes(2, 20_000)

// victim uploads one file in three parts and creates another, and kills its own
// process, with no chance to tidy up, when a label comes for the n-th time: the
// label is followed by one apostrophe for each time that it passes unharmed.
func victim(at, dir string) {
	label, n := strings.TrimRight(at, "'"), strings.Count(at, "'")
	s, err := OpenWith(dir, Options{Step: func(l string) {
		if l != label {
			return
		}
		if n == 0 {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		n--
	}})
	if err != nil {
		panic(err)
	}
	d := blobtest.Sum(uploaded)
	for at := 0; at < len(uploaded); at += 10_000 {
		if _, err := s.Append(context.Background(), d, int64(len(uploaded)), int64(at), uploaded[at:at+10_000]); err != nil {
			panic(err)
		}
		os.Stdout.WriteString("appended\n")
	}
	w, err := s.Create(context.Background())
	if err != nil {
		panic(err)
	}
	if _, err := w.Write(created); err != nil {
		panic(err)
	}
	if _, err := w.Commit(context.Background()); err != nil {
		panic(err)
	}
	os.Stdout.WriteString("committed\n")
	os.Exit(0)
}

// A process that is killed between any two steps leaves nothing wrong: what it
// was told is there is there, what is stored is whole, and the work can be
// done again from where it stood.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, label := range Steps() {
		for n := range 3 {
			at := label + strings.Repeat("'", n)
			t.Run(at, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				cmd := exec.Command(exe)
				cmd.Env = append(os.Environ(), killAt+"="+at, killIn+"="+dir)
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				out, err := cmd.Output()
				var exit *exec.ExitError
				killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
				if err != nil && !killed {
					t.Fatalf("%v\n%s", err, &stderr)
				}
				if !killed && n == 0 {
					t.Fatalf("%s never came", label)
				}
				appended, committed := strings.Count(string(out), "appended"), strings.Count(string(out), "committed")

				s := openWith(t, dir, Options{})
				d := blobtest.Sum(uploaded)
				u, err := s.Begin(t.Context(), d, int64(len(uploaded)))
				if err != nil {
					t.Fatal(err)
				}
				if u.Offset < int64(appended)*10_000 {
					t.Errorf("%d parts were acknowledged, %d bytes are here", appended, u.Offset)
				}
				if ok, err := s.Has(t.Context(), blobtest.Sum(created)); err != nil || committed == 1 && !ok {
					t.Errorf("a committed file: %v, %v", ok, err)
				}
				// Every name stands for its bytes.
				err = filepath.WalkDir(filepath.Join(dir, stored), func(p string, e fs.DirEntry, err error) error {
					if err == nil && !e.IsDir() {
						err = s.Verify(t.Context(), blob.Digest(e.Name()))
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
				blobtest.Put(t, s, uploaded, 10_000)
				blobtest.Put(t, s, created, 10_000)
				if !bytes.Equal(blobtest.Get(t, s, d), uploaded) {
					t.Error("the upload came back changed")
				}
			})
		}
	}
}

// What a power cut may do to bytes that were never synced is found by the hash
// at the end.
func TestTornUpload(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openWith(t, dir, Options{})
	d, size := blobtest.Sum(uploaded), int64(len(uploaded))
	for name, tear := range map[string]func(path string) error{
		"zeros":    func(p string) error { return errors.Join(os.Truncate(p, 500), os.Truncate(p, 10_000)) },
		"too long": func(p string) error { return os.Truncate(p, size+1) },
		"whole":    func(p string) error { return os.Truncate(p, size) },
	} {
		if _, err := s.Append(t.Context(), d, size, 0, uploaded[:10_000]); err != nil {
			t.Fatal(err)
		}
		if err := tear(filepath.Join(dir, partial, string(d))); err != nil {
			t.Fatal(err)
		}
		u, err := s.Begin(t.Context(), d, size)
		if err == nil && u.Offset > 0 {
			_, err = s.Append(t.Context(), d, size, u.Offset, uploaded[u.Offset:])
		}
		if name != "too long" && !problem.Has(err, problem.BlobDigest) || name == "too long" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if ok, err := s.Has(t.Context(), d); ok || err != nil {
			t.Errorf("%s: stored: %v, %v", name, ok, err)
		}
	}
	blobtest.Put(t, s, uploaded, 10_000)
}

func TestDamageIsFound(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openWith(t, dir, Options{VerifyOnOpen: true})
	d := blobtest.Put(t, s, uploaded, 10_000)
	path := filepath.Join(dir, filepath.FromSlash(name(d)))
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o400 {
		t.Errorf("a stored file has mode %v, %v", fi.Mode(), err)
	}
	b := bytes.Clone(uploaded)
	b[12_345] ^= 0x10
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), d); !problem.Has(err, problem.BlobCorrupt) {
		t.Errorf("Verify: %v", err)
	}
	if f, err := s.Open(t.Context(), d); !problem.Has(err, problem.BlobCorrupt) {
		t.Errorf("Open: %v, %v", f, err)
	}
}

// A link in the store leads nowhere outside it.
func TestLinksStayInside(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), t.TempDir()
	s := openWith(t, dir, Options{})
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := blobtest.Sum([]byte("some digest"))
	if err := os.MkdirAll(filepath.Join(dir, stored, string(d[:2])), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(dir, filepath.FromSlash(name(d)))); err != nil {
		t.Fatal(err)
	}
	if f, err := s.Open(t.Context(), d); err == nil {
		f.Close()
		t.Error("a link to the outside was opened")
	}
	d = blobtest.Sum(uploaded)
	if err := os.Symlink(secret, filepath.Join(dir, partial, string(d))); err != nil {
		t.Fatal(err)
	}
	s.Append(t.Context(), d, int64(len(uploaded)), 0, uploaded[:10]) //nolint:errcheck // whatever it says
	if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
		t.Errorf("the outside was written: %q, %v", b, err)
	}
}

func TestAbandonedUploadsAreSweptAtOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openWith(t, dir, Options{})
	kept := blobtest.Put(t, s, uploaded, 10_000)
	old, young := blobtest.Sum([]byte("old")), blobtest.Sum([]byte("young"))
	for _, d := range []blob.Digest{old, young} {
		if _, err := s.Append(t.Context(), d, 1000, 0, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-abandonedAfter - time.Hour)
	for _, p := range []string{filepath.Join(dir, partial, string(old)), filepath.Join(dir, filepath.FromSlash(name(kept)))} {
		if err := os.Chtimes(p, long, long); err != nil {
			t.Fatal(err)
		}
	}
	s = openWith(t, dir, Options{})
	for d, want := range map[blob.Digest]int64{old: 0, young: 10} {
		if u, err := s.Begin(t.Context(), d, 1000); err != nil || u.Offset != want {
			t.Errorf("%+v, %v, want offset %d", u, err, want)
		}
	}
	if ok, err := s.Has(t.Context(), kept); !ok || err != nil {
		t.Errorf("a stored file was swept: %v, %v", ok, err)
	}
}
