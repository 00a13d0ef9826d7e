package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/term"

	"github.com/firmseal/firmseal/internal/image"
)

// How often a step that takes long says how far it is.
const (
	everyTTY = 200 * time.Millisecond
	everyLog = 10 * time.Second // in CI's log, where each line stays
)

// progress shows how far a long step is: a line that moves on a terminal, a
// line every ten seconds elsewhere, nothing for short steps. It is safe for
// concurrent use.
type progress struct {
	w     io.Writer
	what  string
	total int64
	tty   bool
	off   bool
	began time.Time

	// mu guards what follows.
	mu    sync.Mutex
	last  time.Time
	drawn bool
}

func (a *app) progress(what string, total int64) *progress {
	p := &progress{w: a.stderr, what: what, total: total, off: a.g.NoProg || a.g.Quiet, began: time.Now()}
	p.last = p.began
	if f, ok := a.stderr.(*os.File); ok {
		p.tty = term.IsTerminal(int(f.Fd()))
	}
	return p
}

// at is told how many bytes are done; what is read twice counts once.
func (p *progress) at(done int64) {
	if p.off || p.total <= 0 {
		return
	}
	every := everyLog
	if p.tty {
		every = everyTTY
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.last) < every {
		return
	}
	p.last = time.Now()
	done = min(done, p.total)
	rate := float64(done) / (1 << 20) / time.Since(p.began).Seconds()
	line := fmt.Sprintf("%s %3d %% of %.0f MiB, %.0f MiB/s", p.what, done*100/p.total, float64(p.total)/(1<<20), rate)
	if p.tty {
		fmt.Fprintf(p.w, "\r%-70s", line)
		p.drawn = true
		return
	}
	fmt.Fprintln(p.w, line)
}

func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn {
		fmt.Fprintf(p.w, "\r%70s\r", "")
	}
}

// counting reports what was read through it.
type counting struct {
	r    io.Reader
	n    int64
	step func(int64)
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	c.step(c.n)
	return n, err
}

// countingWriter reports what was written through it.
type countingWriter struct {
	w    io.Writer
	n    int64
	step func(int64)
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	c.step(c.n)
	return n, err
}

// watched is an image whose verifier's reads are counted.
type watched struct {
	image.Source
	n    atomic.Int64
	step func(int64)
}

func (s *watched) ReadAt(b []byte, off int64) (int, error) {
	n, err := s.Source.ReadAt(b, off)
	s.step(s.n.Add(int64(n)))
	return n, err
}
