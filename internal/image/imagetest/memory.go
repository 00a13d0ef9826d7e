package imagetest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/firmseal/firmseal/internal/image"
)

// bigSize is just above what a signed 32-bit number can count.
const bigSize = 2<<30 + 4097

// checkMemory takes an image of 2 GiB through signing and verification and
// watches the heap.
func checkMemory(tb testing.TB, h *harness) {
	if h.c.Big == nil {
		return
	}
	if testing.Short() {
		tb.Skip("2 GiB are not for -short")
	}
	h.memory(tb, bigSize)
}

func (h *harness) memory(tb testing.TB, size int64) {
	src := h.c.Big(size)
	if src.Size() < size/2 {
		tb.Fatalf("the case's big image has %d bytes, not about %d", src.Size(), size)
	}
	out := &sparseWriter{f: tempFile(tb)}
	var fin *finished
	step := func(what string, f func() error) {
		peak, err := watchHeap(f)
		if err != nil {
			tb.Fatalf("%s of %d bytes: %v", what, src.Size(), err)
		}
		tb.Logf("%s of %d MiB: the heap grew by %d KiB", what, src.Size()>>20, peak>>10)
		if peak > MemoryBound {
			tb.Errorf("%s of %d bytes: the heap grew by %d bytes, more than %d", what, src.Size(), peak, int64(MemoryBound))
		}
	}
	step("signing", func() (err error) {
		fin, err = h.signTo(tb.Context(), src, out, nil)
		return err
	})
	file, err := out.source()
	if err != nil {
		tb.Fatal(err)
	}
	seen, t := file, h.trust(h.keys)
	if fin.receipt.Detached {
		if file.Size() > 1<<20 {
			tb.Fatalf("the signature file has %d bytes", file.Size())
		}
		t.Detached = make([]byte, file.Size())
		if _, err := file.ReadAt(t.Detached, 0); err != nil && err != io.EOF {
			tb.Fatal(err)
		}
		seen = src
	}
	step("verification", func() error {
		v, err := h.f.Verify(tb.Context(), seen, t, h.c.Profile)
		if err != nil {
			return err
		}
		return v.Refusal()
	})
	step("inspection", func() error {
		_, err := h.f.Inspect(tb.Context(), seen)
		return err
	})
	v, err := h.f.Verify(tb.Context(), flipped{seen, seen.Size() / 2}, t, h.c.Profile)
	if err != nil || v.Accepted {
		tb.Errorf("with a bit flipped in the middle: %+v, %v", v, err)
	}
}

// watchHeap runs f and gives by how much the heap grew at most meanwhile.
func watchHeap(f func() error) (int64, error) {
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	runtime.GC()
	base := heap()
	stop, peak := make(chan struct{}), make(chan int64)
	go func() {
		t := time.NewTicker(time.Millisecond)
		defer t.Stop()
		most := int64(0)
		for {
			most = max(most, heap()-base)
			select {
			case <-stop:
				peak <- max(most, heap()-base)
				return
			case <-t.C:
			}
		}
	}()
	err := f()
	close(stop)
	return <-peak, err
}

func heap() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64())
}

// Sparse is an image of size bytes that takes no memory: head, then zeros with
// the offset, big-endian, at each MiB, so that no two places are alike. It is
// for Case.Big.
func Sparse(size int64, head []byte) image.Source {
	return sparse{size: size, head: head}
}

type sparse struct {
	size int64
	head []byte
}

const stampEvery = 1 << 20

func (s sparse) Size() int64 { return s.size }

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("imagetest: offset %d", off)
	}
	if off >= s.size {
		return 0, io.EOF
	}
	var err error
	if int64(len(p)) > s.size-off {
		p, err = p[:s.size-off], io.EOF
	}
	clear(p)
	var stamp [8]byte
	for m := off / stampEvery * stampEvery; m < off+int64(len(p)); m += stampEvery {
		binary.BigEndian.PutUint64(stamp[:], uint64(m))
		overlay(p, off, stamp[:], m)
	}
	overlay(p, off, s.head, 0)
	return len(p), err
}

// overlay copies what of b, which begins at at, falls into p, which begins at
// off.
func overlay(p []byte, off int64, b []byte, at int64) {
	from, to := max(off, at), min(off+int64(len(p)), at+int64(len(b)))
	if from < to {
		copy(p[from-off:to-off], b[from-at:to-at])
	}
}

// flipped is a source with one bit changed.
type flipped struct {
	image.Source
	at int64
}

func (f flipped) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.Source.ReadAt(p, off)
	if off <= f.at && f.at < off+int64(n) {
		p[f.at-off] ^= 1
	}
	return n, err
}

// sparseWriter writes a file and leaves holes for zeros.
type sparseWriter struct {
	f    *os.File
	size int64
}

var zeros [4096]byte

func (w *sparseWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(len(p)-done, len(zeros))
		chunk := p[done : done+n]
		if !bytes.Equal(chunk, zeros[:n]) {
			if _, err := w.f.WriteAt(chunk, w.size); err != nil {
				return done, err
			}
		}
		w.size += int64(n)
		done += n
	}
	return done, nil
}

func (w *sparseWriter) source() (image.Source, error) {
	if err := w.f.Truncate(w.size); err != nil {
		return nil, err
	}
	return io.NewSectionReader(w.f, 0, w.size), nil
}
