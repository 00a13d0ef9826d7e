package client_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/servertest"
)

// hostile is a server that answers what a test says: a broken proxy, or an
// attacker between here and there.
func hostile(t *testing.T, h http.HandlerFunc) *client.Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return &client.Client{BaseURL: s.URL, Token: "t", HTTP: s.Client()}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the test sees what the client makes of it
}

// Whatever a server says about an upload, the client neither loops for ever nor
// reads outside the file.
func TestUploadDoesNotBelieveTheServer(t *testing.T) {
	t.Parallel()
	file := []byte("ten bytes!")
	for name, offsets := range map[string][]int64{
		"it never moves":                 {0, 0},
		"it goes back":                   {5, 3},
		"it is past the end":             {11},
		"it is before the beginning":     {-1},
		"it is at the end and not whole": {10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := 0
			c := hostile(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				answer(w, client.Upload{Size: 10, Offset: offsets[min(calls, len(offsets)-1)]})
				calls++
			})
			ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
			defer stop()
			err := c.Upload(ctx, bytes.NewReader(file), strings.Repeat("a", 64), 10, nil)
			if err == nil || ctx.Err() != nil {
				t.Fatalf("after %d calls: %v", calls, err)
			}
			if calls > 3 {
				t.Errorf("it asked %d times", calls)
			}
		})
	}
}

// Somebody who uploads the same file at the same time is no failure: the
// client goes on from where the server's bytes end, and gives up in the end.
func TestUploadMakesWayForAnother(t *testing.T) {
	t.Parallel()
	calls := 0
	c := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		calls++
		if r.Method == http.MethodPatch {
			w.WriteHeader(http.StatusConflict)
			answer(w, client.Problem{Code: "BLOB.OFFSET", Detail: "elsewhere", Status: 409})
			return
		}
		answer(w, client.Upload{Size: 10, Offset: int64(calls % 9)})
	})
	err := c.Upload(t.Context(), bytes.NewReader([]byte("ten bytes!")), strings.Repeat("a", 64), 10, nil)
	var e *client.Error
	if !errors.As(err, &e) || e.Code != "BLOB.OFFSET" {
		t.Errorf("after %d calls: %v", calls, err)
	}
	calls = 0
	var moved bool
	c = hostile(t, func(w http.ResponseWriter, r *http.Request) {
		calls++
		switch {
		case r.Method == http.MethodPatch && !moved:
			moved = true
			w.WriteHeader(http.StatusConflict)
			answer(w, client.Problem{Code: "BLOB.OFFSET", Detail: "elsewhere", Status: 409})
		case r.Method == http.MethodPatch:
			if r.URL.Query().Get("offset") != "7" {
				t.Errorf("it went on from %s", r.URL.Query().Get("offset"))
			}
			answer(w, client.Upload{Size: 10, Offset: 10, Complete: true})
		case moved:
			answer(w, client.Upload{Size: 10, Offset: 7})
		default:
			answer(w, client.Upload{Size: 10})
		}
	})
	if err := c.Upload(t.Context(), bytes.NewReader([]byte("ten bytes!")), strings.Repeat("a", 64), 10, nil); err != nil {
		t.Error(err)
	}
}

// A download that was cut off is an error, over a connection and in the process.
func TestDownloadIsWholeOrAnError(t *testing.T) {
	t.Parallel()
	c := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("not a hundred bytes"))
	})
	var out bytes.Buffer
	if err := c.Download(t.Context(), "x", client.PartImage, &out); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("over a connection: %v", err)
	}
	local := &client.Client{BaseURL: "http://workspace", HTTP: &http.Client{Transport: cutShort{}}}
	if err := local.Download(t.Context(), "x", client.PartImage, &out); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("in the process: %v", err)
	}
}

// cutShort answers as the in-process transport does: the length is in the
// header only.
type cutShort struct{}

func (cutShort) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: 200, Header: http.Header{"Content-Length": {"100"}}, ContentLength: -1,
		Body: io.NopCloser(strings.NewReader("short")), Request: r,
	}, nil
}

// What answers instead of the server is told from the server: each failure has
// a code, and one that may pass says so.
func TestFailuresHaveCodes(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		name      string
		h         http.HandlerFunc
		code      string
		retryable bool
	}{
		{"a proxy's page", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			_, _ = w.Write([]byte("<html>bad gateway</html>"))
		}, "UNAVAILABLE", true},
		{"a login page", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
		}, "UNAVAILABLE", false},
		{"JSON without a code", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"error":"x"}`))
		}, "UNAVAILABLE", false},
		{"a hung-up connection", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "UNAVAILABLE", true},
		{"a refusal of ours", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusConflict)
			answer(w, client.Problem{Code: "KEY.RETIRED", Detail: "key k is retired", Why: "since yesterday"})
		}, "KEY.RETIRED", false},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			_, err := hostile(t, v.h).Status(t.Context())
			var e *client.Error
			if !errors.As(err, &e) || e.Code != v.code || e.Retryable != v.retryable {
				t.Fatalf("got %+v", err)
			}
			if e.Detail == "" || !strings.HasPrefix(e.Error(), v.code+": ") {
				t.Errorf("it says %q", e.Error())
			}
		})
	}
}

// An answer without an end is cut at the limit and refused, not kept.
func TestAnswersAreBounded(t *testing.T) {
	t.Parallel()
	c := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		block := bytes.Repeat([]byte(" "), 1<<20)
		for range 80 {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	if b, err := c.TrustRoot(t.Context()); err == nil {
		t.Errorf("%d bytes were taken", len(b))
	}
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("80 MiB of blanks were a status")
	}
}

// The client ends when its caller does, and says that and nothing else.
func TestCancelledCallSaysSo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	c := hostile(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A whole signing through the exported client, over a real connection: what a
// program of somebody else's does.
func TestSignOverAConnection(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Options{})
	s.Key("k", "ed25519", "test", "p", "raw")
	s.Policy(servertest.Profile("p", "p", "test", "raw", "k"))
	c := s.HTTP()
	image := bytes.Repeat([]byte("firmware"), 1<<18) // 2 MiB: uploaded, not inline
	digest := fmt.Sprintf("%x", sha256.Sum256(image))
	if err := c.Upload(t.Context(), bytes.NewReader(image), digest, int64(len(image)), nil); err != nil {
		t.Fatal(err)
	}
	one := uint64(1)
	r, err := c.Sign(t.Context(), client.NewRequest{
		Profile: "p", Version: "1.0.0", SecurityCounter: &one, HardwareIDs: []string{"b"},
		Dependencies: []client.Dependency{{Product: "radio", MinimumVersion: "2.0.0"}},
		Input:        client.Input{Name: "app.bin", SHA256: digest, Size: int64(len(image))},
	}, "", time.Minute)
	// 1 MiB is the most that a key is sent as a message.
	if err != nil || r.State != "failed" || r.Problem == nil || r.Problem.Code != "ALG.UNSUPPORTED" {
		t.Fatalf("Ed25519 over 2 MiB: %s %+v %v", r.State, r.Problem, err)
	}
	s.Key("k2", "p256", "test", "p", "raw")
	s.Policy(servertest.Profile("p", "p", "test", "raw", "k2"))
	if r, err = c.Sign(t.Context(), client.NewRequest{
		Profile: "p", Version: "1.0.0", SecurityCounter: &one, HardwareIDs: []string{"b"},
		Input: client.Input{Name: "app.bin", SHA256: digest, Size: int64(len(image))},
	}, "", time.Minute); err != nil || r.State != "released" {
		t.Fatalf("%s %+v %v", r.State, r.Problem, err)
	}
	rel, err := c.Release(t.Context(), r.ID)
	if err != nil {
		t.Fatal(err)
	}
	for part, want := range map[client.Part]string{
		client.PartImage: "firmwarefirmware", client.PartSignature: "\x30", client.PartSeal: "{", client.PartProof: "c2sp.org/tlog-proof@v1\n",
	} {
		var out bytes.Buffer
		if err := c.Download(t.Context(), rel.ID, part, &out); err != nil || !strings.HasPrefix(out.String(), want) {
			t.Errorf("%s: %v, %.40q", part, err, out.String())
		}
	}
}
