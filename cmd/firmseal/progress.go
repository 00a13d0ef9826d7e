package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// progress shows how far a long step is: a line that moves on a terminal, a
// line every ten seconds elsewhere, nothing for short steps.
type progress struct {
	w     io.Writer
	what  string
	total int64
	tty   bool
	off   bool
	began time.Time
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

func (p *progress) at(done int64) {
	every := 10 * time.Second
	if p.tty {
		every = 200 * time.Millisecond
	}
	if p.off || time.Since(p.last) < every || p.total <= 0 {
		return
	}
	p.last = time.Now()
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
