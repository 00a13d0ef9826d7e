package server

import (
	"io"
	"net/http"

	"github.com/firmseal/firmseal/internal/auth"
)

// Transport is an http.RoundTripper that calls the server's handler in this
// process, as who. It is the only way to be somebody without a token.
func (s *Server) Transport(who auth.Identity) http.RoundTripper {
	return local{s.Handler, who}
}

type local struct {
	h   http.Handler
	who auth.Identity
}

// RoundTrip runs the handler in its own goroutine and returns as soon as it has
// written its header, so that a body streams as it would over a connection.
func (l local) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(auth.With(r.Context(), l.who))
	r.RequestURI = r.URL.RequestURI()
	if r.Body == nil {
		r.Body = http.NoBody
	}
	pr, pw := io.Pipe()
	w := &pipeWriter{header: http.Header{}, body: pw, ready: make(chan struct{})}
	go func() {
		defer r.Body.Close()
		defer func() {
			// As over a connection: an answer that is cut off reads as one.
			if p := recover(); p == http.ErrAbortHandler {
				w.WriteHeader(http.StatusInternalServerError)
				pw.CloseWithError(io.ErrUnexpectedEOF)
			} else if p != nil {
				panic(p)
			}
		}()
		l.h.ServeHTTP(w, r)
		w.WriteHeader(http.StatusOK) // no effect if the handler has written one
		pw.Close()
	}()
	select {
	case <-w.ready:
	case <-r.Context().Done():
		pr.CloseWithError(r.Context().Err())
		return nil, r.Context().Err()
	}
	return &http.Response{
		Status: http.StatusText(w.status), StatusCode: w.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Body: pr, ContentLength: -1, Request: r,
	}, nil
}

// pipeWriter is owned by the handler's goroutine until ready is closed; status
// and sent are then fixed.
type pipeWriter struct {
	header http.Header
	body   *io.PipeWriter
	ready  chan struct{}
	wrote  bool
	status int
	sent   http.Header
}

func (w *pipeWriter) Header() http.Header { return w.header }

func (w *pipeWriter) WriteHeader(status int) {
	if w.wrote || status < 200 {
		return
	}
	w.wrote, w.status, w.sent = true, status, w.header.Clone()
	close(w.ready)
}

func (w *pipeWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}
