package mcuboot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// countingSource says whether somebody reads it.
type countingSource struct {
	*bytes.Reader
	reading atomic.Int64
	ended   atomic.Bool
}

func (c *countingSource) ReadAt(p []byte, off int64) (int, error) {
	c.reading.Add(1)
	defer c.reading.Add(-1)
	if c.ended.Load() {
		panic("read after stream has returned")
	}
	return c.Reader.ReadAt(p, off)
}

type failAfter struct {
	n   int
	buf bytes.Buffer
}

var errFull = errors.New("full")

func (f *failAfter) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, errFull
	}
	return f.buf.Write(p)
}

// A copy is whole and in order whatever its length, and where it ends early the
// reader has ended, too: synctest fails when its goroutine is left.
func TestStream(t *testing.T) {
	t.Parallel()
	data := make([]byte, 5*streamBuffer+17)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	for _, off := range []int64{0, 1, streamBuffer} {
		for _, n := range []int64{0, 1, streamBuffer - 1, streamBuffer, streamBuffer + 1, 2 * streamBuffer, 3*streamBuffer + 5, int64(len(data)) - off} {
			synctest.Test(t, func(t *testing.T) {
				src := &countingSource{Reader: bytes.NewReader(data)}
				var out bytes.Buffer
				if err := stream(t.Context(), src, off, n, &out); err != nil {
					t.Fatal(err)
				}
				src.ended.Store(true)
				if !bytes.Equal(out.Bytes(), data[off:off+n]) {
					t.Errorf("%d bytes from %d came out changed", n, off)
				}
			})
		}
	}
	synctest.Test(t, func(t *testing.T) {
		src := &countingSource{Reader: bytes.NewReader(data)}
		if err := stream(t.Context(), src, 0, int64(len(data)), &failAfter{n: streamBuffer + 1}); !errors.Is(err, errFull) {
			t.Errorf("a full disk gives %v", err)
		}
		src.ended.Store(true)
		synctest.Wait()
	})
	synctest.Test(t, func(t *testing.T) {
		src := &countingSource{Reader: bytes.NewReader(data)}
		if err := stream(t.Context(), src, 0, int64(len(data))+1, io.Discard); err == nil {
			t.Error("a source that ends early is taken")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := stream(ctx, src, 0, int64(len(data)), io.Discard); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled copy gives %v", err)
		}
	})
}
