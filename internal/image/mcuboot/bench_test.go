package mcuboot_test

import (
	"bytes"
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
	"github.com/firmseal/firmseal/internal/image/mcuboot"
)

var benchSizes = []int64{16 << 20, 512 << 20}

type file struct {
	*os.File
	size int64
}

func (f file) Size() int64 { return f.size }

func open(b *testing.B, path string) file {
	b.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	fi, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	return file{f, fi.Size()}
}

func benchFile(b *testing.B, size int64) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "in.bin")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	block := payload(1 << 20)
	for n := int64(0); n < size; n += int64(len(block)) {
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	return path
}

// against runs f and a bare SHA-256 of the same file in turn, and reports the
// ratio: what the machine does meanwhile hits both.
func against(b *testing.B, path string, f func()) {
	b.Helper()
	var bare, ours time.Duration
	in := open(b, path)
	b.SetBytes(in.size)
	for b.Loop() {
		start := time.Now()
		if _, err := io.Copy(sha256.New(), io.NewSectionReader(in, 0, in.size)); err != nil {
			b.Fatal(err)
		}
		mid := time.Now()
		f()
		bare += mid.Sub(start)
		ours += time.Since(mid)
	}
	b.ReportMetric(ours.Seconds()/bare.Seconds(), "x-sha256")
	b.ReportMetric(0, "ns/op") // the sum of both says nothing
	b.ReportMetric(float64(ours.Milliseconds())/float64(b.N), "ms/op")
	if st, err := os.ReadFile("/proc/self/status"); err == nil {
		if _, rest, ok := bytes.Cut(st, []byte("VmHWM:")); ok {
			var kib float64
			if _, err := fmt.Sscan(string(rest), &kib); err == nil {
				b.ReportMetric(kib/1024, "peak-MiB")
			}
		}
	}
}

// BenchmarkSign is Plan to Embed into a file.
func BenchmarkSign(b *testing.B) {
	signer, pub := imagetest.TestKey(b, alg.P256, 0)
	o := options(b, map[string]any{"header-size": 0x200, "pad-header": true, "version": "1.2.3", "security-counter": 1})
	for _, size := range benchSizes {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			path := benchFile(b, size)
			src := open(b, path)
			against(b, path, func() {
				s, err := mcuboot.New().Plan(b.Context(), src, o, []image.PublicMaterial{pub})
				if err != nil {
					b.Fatal(err)
				}
				reqs, _, err := s.Next(b.Context(), nil)
				if err != nil {
					b.Fatal(err)
				}
				sig, err := imagetest.Sign(signer, reqs[0])
				if err != nil {
					b.Fatal(err)
				}
				if _, _, err := s.Next(b.Context(), []image.Signature{{Slot: reqs[0].Slot, Value: sig}}); err != nil {
					b.Fatal(err)
				}
				out, err := os.Create(path + ".signed")
				if err != nil {
					b.Fatal(err)
				}
				if _, err := s.Embed(b.Context(), out); err != nil {
					b.Fatal(err)
				}
				if err := out.Close(); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}

// BenchmarkVerify is what the server does with the finished file.
func BenchmarkVerify(b *testing.B) {
	signer, pub := imagetest.TestKey(b, alg.P256, 0)
	o := options(b, map[string]any{"header-size": 0x200, "pad-header": true, "version": "1.2.3", "security-counter": 1})
	trust := image.Trust{Keys: []image.TrustedKey{{SPKI: pub.SPKI}}}
	for _, size := range benchSizes {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			path := benchFile(b, size)
			s, err := mcuboot.New().Plan(b.Context(), open(b, path), o, []image.PublicMaterial{pub})
			if err != nil {
				b.Fatal(err)
			}
			reqs, _, err := s.Next(b.Context(), nil)
			if err != nil {
				b.Fatal(err)
			}
			sig, err := imagetest.Sign(signer, reqs[0])
			if err != nil {
				b.Fatal(err)
			}
			if _, _, err := s.Next(b.Context(), []image.Signature{{Slot: reqs[0].Slot, Value: sig}}); err != nil {
				b.Fatal(err)
			}
			out, err := os.Create(path + ".signed")
			if err != nil {
				b.Fatal(err)
			}
			if _, err := s.Embed(b.Context(), out); err != nil {
				b.Fatal(err)
			}
			if err := out.Close(); err != nil {
				b.Fatal(err)
			}
			img := open(b, path+".signed")
			against(b, path+".signed", func() {
				v, err := mcuboot.New().Verify(b.Context(), img, trust, image.Profile{})
				if err != nil || v.Refusal() != nil {
					b.Fatal(err, v.Refusal())
				}
			})
		})
	}
}
