package tlog

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/db/dbtest"
)

// bare is the yardstick: a log in memory that batches as ours does, with the
// same leaf, tree and checkpoint, and nothing durable.
type bare struct {
	mu     sync.Mutex
	tree   tree
	leaves [][]byte
	wake   chan struct{}
	done   chan struct{} // closed when the leaves before it are signed
	signer note.Signer
}

func newBare(b *testing.B) *bare {
	x := &bare{wake: make(chan struct{}, 1), done: make(chan struct{}), signer: options(b, "").Signer}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-x.wake:
			case <-stop:
				return
			}
			x.mu.Lock()
			text := headText(testOrigin, x.tree.size, x.tree.root())
			done := x.done
			x.done = make(chan struct{})
			x.mu.Unlock()
			if _, err := note.Sign(&note.Note{Text: string(text)}, x.signer); err != nil {
				b.Error(err)
			}
			close(done)
		}
	})
	b.Cleanup(func() { close(stop); wg.Wait() })
	return x
}

func (x *bare) append(i int) error {
	l := leafOf(i)
	data, err := canonical(&l)
	if err != nil {
		return err
	}
	h := tlog.RecordHash(data)
	x.mu.Lock()
	x.tree.grow(h, nil)
	x.leaves = append(x.leaves, data)
	done := x.done
	x.mu.Unlock()
	select {
	case x.wake <- struct{}{}:
	default:
	}
	<-done
	return nil
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// callers runs fn n times from so many goroutines, and gives CPU and wall time
// of one.
func callers(b *testing.B, many, n int, fn func(i int) error) (cpuEach, wallEach time.Duration) {
	work := make(chan int, n)
	for i := range n {
		work <- i
	}
	close(work)
	c, w := cpu(), time.Now()
	var wg sync.WaitGroup
	for range many {
		wg.Go(func() {
			for i := range work {
				if err := fn(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return (cpu() - c) / time.Duration(n), time.Since(w) / time.Duration(n)
}

// BenchmarkAppend measures a durable and included append on SQLite against the
// bare log in the same run. "ratio" is the bare log's CPU time over ours.
func BenchmarkAppend(b *testing.B) {
	for _, many := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("callers=%d", many), func(b *testing.B) {
			d := dbtest.SQLite(b)
			l := open(b, d, options(b, placeIn(b)))
			x := newBare(b)
			base := 0
			ours := func(i int) error {
				var p Pending
				if err := d.Update(context.Background(), func(tx *db.Tx) (err error) {
					p, err = l.Append(tx, leafOf(base+i))
					return err
				}); err != nil {
					return err
				}
				_, err := l.Wait(context.Background(), p)
				return err
			}
			// In turns, so that both meet the same neighbours.
			var oc, ow, bc time.Duration
			left, turns := b.N, 0
			for left > 0 {
				n := min(left, 4096)
				c, w := callers(b, many, n, ours)
				base += n
				y, _ := callers(b, many, n, func(i int) error { return x.append(base + i) })
				oc, ow, bc = oc+c*time.Duration(n), ow+w*time.Duration(n), bc+y*time.Duration(n)
				left -= n
				turns++
			}
			n := float64(b.N)
			b.ReportMetric(float64(oc.Microseconds())/n, "cpu-µs/leaf")
			b.ReportMetric(float64(bc.Microseconds())/n, "bare-cpu-µs/leaf")
			b.ReportMetric(bc.Seconds()/oc.Seconds(), "ratio")
			b.ReportMetric(n/ow.Seconds(), "leaves/s")
		})
	}
}

// BenchmarkProof makes, verifies and writes inclusion proofs of leaves all over
// a log; "cold" reads each tile from the database.
func BenchmarkProof(b *testing.B) {
	const size = 20_000
	d := dbtest.SQLite(b)
	l := open(b, d, options(b, placeIn(b)))
	for n := 0; n < size; n += 1000 {
		add(b, l, n, 1000)
	}
	for _, cold := range []bool{false, true} {
		b.Run(map[bool]string{false: "warm", true: "cold"}[cold], func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if cold {
					l.tiles = tileCache{}
				}
				if _, err := l.Proof(b.Context(), int64(i)*7919%size); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
