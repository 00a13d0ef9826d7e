package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/servertest"
)

// A connection that is lost after the server has taken the request costs
// nothing: the same call is made again, and there is one request.
func TestSignOverABadLine(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Options{})
	s.Key("k", "p256", "test", "p", "raw")
	s.Policy(servertest.Profile("prof", "p", "test", "raw", "k"))
	var mu sync.Mutex                                      // guards cut: a lost call's connection may linger
	cut := map[string]int{"POST": 2, "GET": 1, "PATCH": 1} // how many answers are lost
	lose := func(method string) bool {
		mu.Lock()
		defer mu.Unlock()
		if cut[method] == 0 {
			return false
		}
		cut[method]--
		return true
	}
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if lose(r.Method) {
			s.Handler.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		s.Handler.ServeHTTP(w, r)
	}))
	t.Cleanup(hs.Close)
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(s.HTTP().Token), 0o600); err != nil {
		t.Fatal(err)
	}
	img := filepath.Join(dir, "app.bin")
	if err := os.WriteFile(img, bytes.Repeat([]byte("firmware "), inline/4), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"--server", hs.URL, "--token-file", token, "sign", img,
		"-p", "prof", "--version", "1.0.0", "--security-counter", "1", "--hardware-id", "b",
	}
	var out, errOut bytes.Buffer
	if code := Main(args, strings.NewReader(""), &out, &errOut, hooks{}); code != 0 {
		t.Fatalf("exit %d\n%s%s", code, &out, &errOut)
	}
	p, err := s.Client.Requests(t.Context(), client.RequestQuery{})
	if err != nil || len(p.Items) != 1 || p.Items[0].State != "released" {
		t.Errorf("requests: %+v, %v", p.Items, err)
	}
	for m, n := range cut {
		if n != 0 && m != "GET" {
			t.Errorf("%d answers to %s were not lost", n, m)
		}
	}

	// A server that stays away is said so after --wait, with what to do.
	hs.Close()
	errOut.Reset()
	if code := Main(append(args, "--wait", "300ms"), strings.NewReader(""), &out, &errOut, hooks{}); code != 75 {
		t.Fatalf("exit %d\n%s", code, &errOut)
	}
	if !strings.Contains(errOut.String(), "next  run the same command again") {
		t.Errorf("it says %s", &errOut)
	}
}
