package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/problem"
)

// paced is a server of two operations behind the API's own layers, with limits
// that a test can wait for.
type paced struct {
	*httptest.Server
	api *server
	got atomic.Int64 // bytes of the last whole body
	// inside is called by the handler of /body with the caller's context.
	inside func(ctx context.Context)
}

func newPaced(t *testing.T, p pace, parts int) *paced {
	t.Helper()
	mux := http.NewServeMux()
	s := &server{Options: Options{Logger: slog.New(slog.DiscardHandler)}, mux: mux, pace: p, parts: make(chan struct{}, parts)}
	s.api = humago.New(mux, config("test"))
	out := &paced{api: s, inside: func(context.Context) {}}
	o := op("body-post", http.MethodPost, "/body", public, "Take a body", 200)
	o.MaxBodyBytes = MaxChunk + 1
	o.Middlewares = huma.Middlewares{s.part}
	register(s, o, func(ctx context.Context, in *struct {
		RawBody []byte `contentType:"application/octet-stream"`
	},
	) (*body[client.Health], error) {
		out.got.Store(int64(len(in.RawBody)))
		out.inside(ctx)
		return ok(client.Health{Status: "ok"}), nil
	})
	register(s, op("json-post", http.MethodPost, "/json", public, "Take JSON", 200), func(context.Context, *body[client.Health]) (*body[client.Health], error) {
		return ok(client.Health{Status: "ok"}), nil
	})
	mux.HandleFunc("/", s.notFound) // which does not read the body
	out.Server = httptest.NewServer(s.outer(mux))
	t.Cleanup(out.Close)
	return out
}

// send announces a body and sends what write writes of it, over a connection of
// its own. It gives the answer, and how the connection ended.
func (p *paced) send(t *testing.T, path, media string, announced int, write func(w io.Writer) error) (*http.Response, []byte, error) {
	t.Helper()
	conn, err := net.Dial("tcp", p.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", path, media, announced)
	go func() { _ = write(conn) }() // it fails when the connection is cut: seen below
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !res.Close {
		return res, b, nil
	}
	_, err = r.ReadByte()
	return res, b, err
}

// A body that stops, and one that dribbles without ever stopping, are cut with
// the connection; wherever the body goes.
func TestSlowBodiesAreCut(t *testing.T) {
	t.Parallel()
	const stall = 150 * time.Millisecond
	begun := func(w io.Writer) error { _, err := io.WriteString(w, `{"st`); return err }
	dribble := func(w io.Writer) error {
		tick := time.NewTicker(stall / 10)
		defer tick.Stop()
		for {
			if _, err := io.WriteString(w, " "); err != nil {
				return err
			}
			<-tick.C
		}
	}
	for _, c := range []struct {
		name, path, media string
		write             func(io.Writer) error
		status            int
		code              problem.Code
	}{
		{"an upload stops", "/body", "application/octet-stream", begun, 408, problem.TooSlow},
		{"an upload dribbles", "/body", "application/octet-stream", dribble, 408, problem.TooSlow},
		{"JSON stops", "/json", "application/json", begun, 408, problem.TooSlow},
		{"JSON dribbles", "/json", "application/json", dribble, 408, problem.TooSlow},
		{"nobody reads what stopped", "/nothing", "application/json", begun, 404, problem.NotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPaced(t, pace{stall, 1 << 20}, 1)
			res, b, end := p.send(t, c.path, c.media, 1000, c.write)
			var doc client.Problem
			if err := json.Unmarshal(b, &doc); err != nil || res.StatusCode != c.status || doc.Code != string(c.code) {
				t.Errorf("%d %s", res.StatusCode, b)
			}
			if end == nil {
				t.Error("the connection goes on")
			}
			if c.status == 408 && (!doc.Retryable || res.Header.Get("Retry-After") == "") {
				t.Errorf("nothing says that it may be sent again: %s", b)
			}
			if len(p.api.parts) != 0 {
				t.Error("the place of the part is not free again")
			}
		})
	}
}

// A slow body that keeps the pace is taken, however long it takes; and its
// sender may wait for the answer longer than a body may stall.
func TestSteadyBodiesAreTaken(t *testing.T) {
	t.Parallel()
	const stall = time.Second
	p := newPaced(t, pace{stall, 100}, 1)
	p.inside = func(ctx context.Context) {
		select {
		case <-ctx.Done():
			t.Error("the request ended while its caller waited")
		case <-time.After(2 * stall):
		}
	}
	const pieces = 12
	begun := time.Now()
	res, b, _ := p.send(t, "/body", "application/octet-stream", pieces*100, func(w io.Writer) error {
		tick := time.NewTicker(stall / 6)
		defer tick.Stop()
		for range pieces {
			<-tick.C
			if _, err := w.Write(make([]byte, 100)); err != nil {
				return err
			}
		}
		return nil
	})
	if res.StatusCode != 200 || p.got.Load() != pieces*100 {
		t.Errorf("%d %s, %d bytes", res.StatusCode, b, p.got.Load())
	}
	if d := time.Since(begun); d < 3*stall {
		t.Errorf("it took %s, which proves nothing", d)
	}
}

// No more bodies are in memory than there are places; all get theirs.
func TestPartsWaitForTheirTurn(t *testing.T) {
	t.Parallel()
	const places, calls = 3, 24
	p := newPaced(t, pace{time.Minute, 1}, places)
	var now, most, done atomic.Int64
	full := make(chan struct{})
	var once sync.Once
	p.inside = func(ctx context.Context) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if n == places {
			once.Do(func() { close(full) })
		}
		select {
		case <-full: // so many are in at once
		case <-ctx.Done():
		}
		for range 2000 {
			runtime.Gosched()
		}
		done.Add(1)
	}
	var wg sync.WaitGroup
	for range calls {
		wg.Go(func() {
			res, err := http.Post(p.URL+"/body", "application/octet-stream", bytes.NewReader([]byte(strings.Repeat("x", 1000))))
			if err != nil {
				t.Error(err)
				return
			}
			res.Body.Close()
			if res.StatusCode != 200 {
				t.Errorf("a part was answered %s", res.Status)
			}
		})
	}
	wg.Wait()
	if most.Load() != places || done.Load() != calls {
		t.Errorf("%d at once and %d done, want %d and %d", most.Load(), done.Load(), places, calls)
	}
}
