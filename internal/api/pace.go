package api

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/firmseal/firmseal/internal/problem"
)

const (
	// bodyStall is how long a body may bring nothing. It bridges a mobile link
	// that changes its cell.
	bodyStall = 30 * time.Second
	// bodyRate is the least that a body brings on average, in bytes a second,
	// after bodyStall. A connection, and the memory of its body, are lent to
	// nobody for a byte every half minute; 16 KiB/s is a bad mobile link.
	bodyRate = 16 << 10
	// maxParts is how many parts of uploads are in memory at once: with
	// MaxChunk, 128 MiB. Others wait before their first byte is read.
	maxParts = 16
)

// pace is what a body must keep up with.
type pace struct {
	stall time.Duration
	rate  int64 // bytes a second
}

// limit gives r a body that must keep up with the pace. A limit for the whole
// body would either cut honest uploads over slow links or let others keep a
// connection for as long.
func (p pace) limit(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength == 0 || r.Body == nil {
		return
	}
	b := &pacedBody{ReadCloser: r.Body, pace: p, deadline: http.NewResponseController(w).SetReadDeadline}
	r.Body = b
	// For a body that nobody reads: the server reads some of it to its end, to
	// keep the connection.
	_ = b.deadline(time.Now().Add(p.stall)) // in the process, there is nobody to wait for
}

// pacedBody moves the connection's read deadline with the body's progress.
type pacedBody struct {
	io.ReadCloser
	pace
	deadline func(time.Time) error
	begun    time.Time // of the first Read: waiting for a place is not the sender's fault
	n        int64
}

func (b *pacedBody) Read(p []byte) (int, error) {
	now := time.Now()
	if b.begun.IsZero() {
		b.begun = now
	}
	end := now.Add(b.stall)
	if due := b.begun.Add(b.stall + time.Duration(b.n)*time.Second/time.Duration(b.rate)); due.Before(end) {
		end = due
	}
	if err := b.deadline(end); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	if errors.Is(err, io.EOF) {
		// A caller that waits for its answer is not slow; and a deadline that
		// passed now would end the request's context.
		_ = b.deadline(time.Time{})
	}
	return n, err
}

// part lets an operation with a large body begin when there is room for it.
func (s *server) part(hc huma.Context, next func(huma.Context)) {
	select {
	case s.parts <- struct{}{}:
	case <-hc.Context().Done():
		s.write(hc, problem.New(problem.Unavailable, "too many uploads at once").Seen("the caller went away while it waited for its turn").Because(hc.Context().Err()))
		return
	}
	defer func() { <-s.parts }()
	next(hc)
}
