package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/server"
	"github.com/firmseal/firmseal/internal/telemetry"
)

type serveCmd struct {
	Listen  string `help:"Address to listen on." default:"127.0.0.1:8650" placeholder:"HOST:PORT"`
	TLSCert string `name:"tls-cert" help:"Certificate chain, PEM." placeholder:"FILE"`
	TLSKey  string `name:"tls-key" help:"Its private key, PEM." placeholder:"FILE"`
	LogText bool   `name:"log-text" help:"Log lines for people instead of JSON."`
}

const (
	readHeader = 10 * time.Second // a slow header is a broken or hostile client
	idle       = 2 * time.Minute
	drain      = 30 * time.Second // what a running request is given at shutdown
	// answer is when those that wait for a signature (?wait=) are told at shutdown
	// how it stands. A signature under way takes less; who waits for one that does
	// not come would else be cut off without an answer when drain is over.
	answer = 5 * time.Second
)

func (c *serveCmd) Run(a *app) error {
	dir, err := a.workspaceDir()
	if err != nil {
		return err
	}
	format := telemetry.JSON
	if c.LogText {
		format = telemetry.Text
	}
	logger := telemetry.NewLogger(a.stderr, format, slog.LevelInfo)
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return problem.New(problem.Usage, "--tls-cert and --tls-key go together")
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return problem.New(problem.Usage, "%q is not an address", c.Listen).WithHint("--listen 127.0.0.1:8650")
	}
	if c.TLSCert == "" && !loopback(host) {
		return problem.New(problem.Usage, "tokens would travel in the clear").
			Seen("--listen %s is not this machine alone, and there is no TLS certificate", c.Listen).WithHint("add --tls-cert FILE --tls-key FILE")
	}
	srv, err := server.Open(a.ctx, a.options(dir, logger))
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return errors.Join(problem.New(problem.Unavailable, "the server cannot listen on %s", c.Listen).Seen("%v", err).Because(err), srv.Close())
	}
	scheme := "http"
	hs := &http.Server{Handler: srv.Handler, ReadHeaderTimeout: readHeader, IdleTimeout: idle, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn)}
	if c.TLSCert != "" {
		scheme = "https"
		cert, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
		if err != nil {
			return errors.Join(problem.New(problem.Usage, "the TLS certificate cannot be used").Seen("%v", err), srv.Close())
		}
		hs.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		ln = tls.NewListener(ln, hs.TLSConfig)
	}
	address := scheme + "://" + ln.Addr().String()
	_ = a.show("Server", map[string]string{"url": address, "workspace": srv.Config.Workspace}, func(w io.Writer) {
		fmt.Fprintf(w, "serving workspace %s on %s\n", srv.Config.Workspace, address)
		fmt.Fprintf(w, "api %s/openapi.json   metrics %s/metrics   log %s/log/checkpoint\n", address, address, address)
	})
	return serve(a.ctx, srv, hs, ln, answer)
}

// serve answers on ln until ctx ends or a part of the server fails, and closes
// both. Whoever waits then gets an answer: the result, or after so long how the
// request stands.
func serve(ctx context.Context, srv *server.Server, hs *http.Server, ln net.Listener, after time.Duration) error {
	waiting, tell := context.WithCancel(context.Background())
	defer tell()
	hs.Handler = tellWaiters(waiting, hs.Handler)
	ended := make(chan error, 2)
	go func() { ended <- hs.Serve(ln) }()
	go func() { ended <- srv.Wait() }()
	var err error
	select {
	case <-ctx.Done():
	case err = <-ended:
	}
	defer time.AfterFunc(after, tell).Stop()
	stop, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	err = errors.Join(err, hs.Shutdown(stop), srv.Close())
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// tellWaiters ends the context of requests that wait when waiting ends. They
// have been recorded by then, and a wait whose context ends is answered with
// the request as it stands.
func tellWaiters(waiting context.Context, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("wait") {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(waiting, cancel)()
			r = r.WithContext(ctx)
		}
		h.ServeHTTP(w, r)
	})
}
