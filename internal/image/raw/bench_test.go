package raw

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/imagetest"
)

// BenchmarkFile signs and verifies a file and gives the time as a multiple of
// bare SHA-256 over the same file, measured in the same round.
func BenchmarkFile(b *testing.B) {
	s, pub := imagetest.TestKey(b, alg.P256, 0)
	for _, size := range []int64{16 << 20, 512 << 20} {
		src := benchFile(b, size)
		sig := sign(b, s, pub, src, nil)
		for name, run := range map[string]func(ctx context.Context) error{
			"sign": func(ctx context.Context) error {
				sess, err := New().Plan(ctx, src, nil, []image.PublicMaterial{pub})
				if err != nil {
					return err
				}
				reqs, _, err := sess.Next(ctx, nil)
				if err != nil {
					return err
				}
				v, err := imagetest.Sign(s, reqs[0])
				if err != nil {
					return err
				}
				if _, _, err := sess.Next(ctx, []image.Signature{{Slot: slot, Value: v}}); err != nil {
					return err
				}
				_, err = sess.Embed(ctx, io.Discard)
				return err
			},
			"verify": func(ctx context.Context) error {
				v, err := New().Verify(ctx, src, trust(sig, pub), image.Profile{})
				if err != nil {
					return err
				}
				return v.Refusal()
			},
		} {
			b.Run(fmt.Sprintf("%s/%dMiB", name, size>>20), func(b *testing.B) {
				b.SetBytes(size)
				b.ReportAllocs()
				var ours, bare time.Duration
				for b.Loop() {
					begin := time.Now()
					if err := run(b.Context()); err != nil {
						b.Fatal(err)
					}
					middle := time.Now()
					b.StopTimer()
					if _, err := io.CopyBuffer(sha256.New(), onlyReader{io.NewSectionReader(src, 0, size)}, make([]byte, bufferSize)); err != nil {
						b.Fatal(err)
					}
					ours, bare = ours+middle.Sub(begin), bare+time.Since(middle)
					b.StartTimer()
				}
				b.ReportMetric(float64(ours)/float64(bare), "×sha256")
			})
		}
	}
}

// onlyReader hides WriterTo, so that the buffer given is the buffer used.
type onlyReader struct{ io.Reader }

func benchFile(b *testing.B, size int64) image.Source {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "image"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	block := bytes.Repeat([]byte("firmware"), 1<<17)
	for n := int64(0); n < size; n += int64(len(block)) {
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	return io.NewSectionReader(f, 0, size)
}
