package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Hashing 300 MiB at 10 MiB/s takes half a minute: three lines in a log that
// nobody watches, with the share that is done; a short step says nothing.
func TestProgressSaysALineEveryTenSeconds(t *testing.T) {
	t.Parallel()
	const total, step = 300 << 20, 10 << 20
	run := func(t *testing.T, size int64, change func(*progress)) string {
		var out bytes.Buffer
		synctest.Test(t, func(*testing.T) {
			a := &app{g: &globals{}, stderr: &out}
			p := a.progress("hashing", size)
			change(p)
			for done := int64(step); done <= size; done += step {
				time.Sleep(time.Second)
				p.at(done)
			}
			p.done()
		})
		return out.String()
	}
	as := func(*progress) {}
	want := "hashing  33 % of 300 MiB, 10 MiB/s\nhashing  66 % of 300 MiB, 10 MiB/s\nhashing 100 % of 300 MiB, 10 MiB/s\n"
	if got := run(t, total, as); got != want {
		t.Errorf("in a log:\n%s\nwant:\n%s", got, want)
	}
	if got := run(t, 9*step, as); got != "" {
		t.Errorf("nine seconds of work were worth %q", got)
	}
	if got := run(t, total, func(p *progress) { p.off = true }); got != "" {
		t.Errorf("--no-progress printed %q", got)
	}
	tty := run(t, total, func(p *progress) { p.tty = true })
	if n := strings.Count(tty, "\r"); n != 30+2 || strings.Contains(tty, "\n") {
		t.Errorf("on a terminal one line moves: got %d returns in %q", n, tty)
	}
	if !strings.HasSuffix(tty, "\r"+strings.Repeat(" ", 70)+"\r") {
		t.Error("the terminal's line is not wiped at the end")
	}
}

// A verifier may read parts of an image twice; the share never passes 100 %.
func TestProgressNeverPassesTheEnd(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	synctest.Test(t, func(*testing.T) {
		p := (&app{g: &globals{}, stderr: &out}).progress("verifying", 1<<20)
		time.Sleep(11 * time.Second)
		p.at(3 << 20)
	})
	if got := out.String(); !strings.HasPrefix(got, "verifying 100 % of 1 MiB") {
		t.Errorf("got %q", got)
	}
}
