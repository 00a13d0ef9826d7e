package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/term"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/server"
	"github.com/firmseal/firmseal/internal/telemetry"
)

// connect gives a client: of the server that was named, or of the workspace
// opened in this process. done must be called.
func (a *app) connect() (c *client.Client, done func() error, err error) {
	s, err := a.settings()
	if err != nil {
		return nil, nil, err
	}
	base := a.g.Server
	if base == "" && a.g.Workspace == "" {
		base = s.Server
	}
	if base == "" {
		srv, err := a.open()
		if err != nil {
			return nil, nil, err
		}
		return a.local(srv), srv.Close, nil
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, nil, problem.New(problem.Usage, "%q is not a server's address", base).Seen("it begins with https://, or with http:// on this machine, and a host follows").WithHint("--server https://seal.example.com")
	}
	token := os.Getenv("FIRMSEAL_TOKEN")
	file := a.g.TokenFile
	if file == "" && token == "" {
		file = s.TokenFile
	}
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, problem.New(problem.Usage, "the token file cannot be read").Seen("%s", file).Because(err)
		}
		token = strings.TrimSpace(string(b))
	}
	if u.Scheme == "http" && token != "" && !loopback(u.Hostname()) {
		return nil, nil, problem.New(problem.Usage, "the token would travel in the clear").
			Seen("%s is another machine and has no TLS", u.Host).WithHint("--server https://%s", u.Host)
	}
	return &client.Client{BaseURL: base, Token: token}, func() error { return nil }, nil
}

// loopback reports whether a host is this machine alone.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// local is a client of a server in this process, as the person who runs it.
func (a *app) local(srv *server.Server) *client.Client {
	return &client.Client{BaseURL: "http://workspace", HTTP: &http.Client{Transport: srv.Transport(a.localIdentity())}}
}

// localIdentity is the person whom the operating system knows.
func (a *app) localIdentity() auth.Identity {
	u, err := user.Current()
	if err != nil {
		return auth.Local("uid-" + strconv.Itoa(os.Getuid()))
	}
	return auth.Local(u.Username)
}

// open opens the workspace in this process.
func (a *app) open() (*server.Server, error) {
	dir, err := a.workspaceDir()
	if err != nil {
		return nil, err
	}
	guardMemory()
	return server.Open(a.ctx, a.options(dir, telemetry.NewLogger(&a.log, telemetry.Text, slog.LevelError)))
}

func (a *app) options(dir string, logger *slog.Logger) server.Options {
	return server.Options{
		Dir: dir, Parts: parts(), Version: version(), Logger: logger, Identity: a.g.Identity,
		Passphrase: a.passphrase, Step: a.hooks.step, Record: a.hooks.record,
	}
}

// maxPassphrase bounds what is read as a passphrase, in bytes.
const maxPassphrase = 4096

// readPassphrase reads the soft keys' passphrase: from the descriptor that was
// named, or from the terminal. It never comes from an argument or the
// environment, where others can read it.
func (a *app) readPassphrase() (string, error) {
	if a.g.PassFD >= 0 {
		f := os.NewFile(uintptr(a.g.PassFD), "passphrase")
		b, err := io.ReadAll(io.LimitReader(f, maxPassphrase+1))
		if err != nil {
			return "", problem.New(problem.Usage, "the passphrase cannot be read from descriptor %d", a.g.PassFD).
				Seen("%v", err).WithHint("--passphrase-fd 3 3<FILE").Because(err)
		}
		pass := strings.TrimRight(string(b), "\r\n")
		if pass == "" || len(b) > maxPassphrase {
			return "", problem.New(problem.Usage, "descriptor %d holds no passphrase", a.g.PassFD).Seen("%d bytes", len(b))
		}
		return pass, nil
	}
	f, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return "", problem.New(problem.KeyLocked, "the keys need a passphrase and there is no terminal to ask").WithHint("--passphrase-fd 3 3<FILE")
	}
	fmt.Fprint(a.stderr, "passphrase of the soft keys: ")
	b, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(a.stderr)
	if err != nil {
		return "", problem.New(problem.KeyLocked, "no passphrase was given").Because(err)
	}
	return string(b), nil
}

// withClient runs fn with a connected client.
func (a *app) withClient(fn func(c *client.Client) error) (err error) {
	c, done, err := a.connect()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	err = fn(c)
	var ce *client.Error
	if errors.As(err, &ce) && ce.Code == string(problem.Unauthorized) {
		// A server is there, so the workspace makes no token beside it.
		p := ce.Problem
		p.Next = "set FIRMSEAL_TOKEN or --token-file; a token is made with the server stopped, or with another that has token:write: firmseal token create"
		err = &client.Error{Problem: p}
	}
	return err
}
