package main

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/servertest"
)

// A server that is told to end answers all who wait: with the release where it
// comes in time, else with the request as it stands; and it does not cut off
// the key that is in use.
func TestServeAnswersWhoWaits(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var inUse atomic.Int32
	s := servertest.New(t, servertest.Options{Step: func(label string) {
		if label == "key.use" && inUse.Add(1) == 1 {
			<-release
		}
	}})
	s.Key("k", "p256", "test", "p", "raw")
	s.Policy(servertest.Profile("prof", "p", "test", "raw", "k"))
	token := s.HTTP().Token
	rq, err := s.Client.Sign(t.Context(), servertest.Request("prof", "1.0.0", 1, []byte("firmware")), "", 0)
	if err != nil {
		t.Fatal(err)
	}

	const waiters = 12
	var arrived sync.WaitGroup
	arrived.Add(waiters)
	hs := &http.Server{ReadHeaderTimeout: readHeader, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived.Done()
		s.Handler.ServeHTTP(w, r)
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, sigterm := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, s.Server, hs, ln, 50*time.Millisecond) }()
	answers := make(chan error, waiters)
	for range waiters {
		go func() {
			c := &client.Client{BaseURL: "http://" + ln.Addr().String(), Token: token}
			now, err := c.Request(t.Context(), rq.ID, time.Minute)
			if err == nil && now.State != "signing" && now.State != "queued" {
				t.Errorf("answered with state %s", now.State)
			}
			answers <- err
		}()
	}
	arrived.Wait()
	sigterm()
	for range waiters {
		if err := <-answers; err != nil {
			t.Errorf("a waiter got no answer: %v", err)
		}
	}
	close(release)
	if err := <-served; err != nil {
		t.Errorf("serving ended with %v", err)
	}
	s.Restart()
	if now, err := s.Client.Request(t.Context(), rq.ID, time.Minute); err != nil || now.State != "released" || len(s.Uses("firmware")) != 1 {
		t.Errorf("afterwards: %s, %d uses of the key, %v", now.State, len(s.Uses("firmware")), err)
	}
}
