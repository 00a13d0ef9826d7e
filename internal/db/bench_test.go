package db_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/db/dbtest"
)

// syncs measures what the disk allows: appends of 4 KiB, each with fdatasync.
func syncs(b *testing.B) (perSync time.Duration) {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	const n = 200
	page := make([]byte, 4096)
	start := time.Now()
	for range n {
		if _, err := f.Write(page); err != nil {
			b.Fatal(err)
		}
		if err := fdatasync(f); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(start) / n
}

// BenchmarkUpdate is one durable row a call, from several callers at once, as a
// multiple of one bare fdatasync in the same run.
func BenchmarkUpdate(b *testing.B) {
	for _, engine := range []string{"sqlite", "postgres"} {
		for _, callers := range []int{1, 16, 64, 256} {
			b.Run(fmt.Sprintf("%s/%d", engine, callers), func(b *testing.B) {
				var d *db.DB
				if engine == "sqlite" {
					d = dbtest.SQLite(b)
				} else {
					d = dbtest.Postgres(b)
				}
				table(b, d)
				raw := syncs(b)
				var groups, next atomic.Int64
				d.BeforeCommit(func(*db.Tx) error { groups.Add(1); return nil })
				cpu := cpuTime(b)
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for {
							n := int(next.Add(1))
							if n > b.N {
								return
							}
							err := d.Update(b.Context(), func(tx *db.Tx) error { return insert(tx, n, "a row of some length, as a request has") })
							if err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				perOp := b.Elapsed() / time.Duration(b.N)
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
				b.ReportMetric(float64(perOp)/float64(raw), "fdatasyncs/row")
				b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/float64(b.N), "cpu-µs/row")
				if g := groups.Load(); g > 0 {
					b.ReportMetric(float64(b.N)/float64(g), "rows/commit")
				}
			})
		}
	}
}

// BenchmarkView is a point read by key.
func BenchmarkView(b *testing.B) {
	d := dbtest.SQLite(b)
	table(b, d)
	if err := d.Update(b.Context(), func(tx *db.Tx) error { return insert(tx, 1, "x") }); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		var name string
		if err := d.View(b.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(`SELECT name FROM thing WHERE id = $1`, 1).Scan(&name)
		}); err != nil {
			b.Fatal(err)
		}
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
