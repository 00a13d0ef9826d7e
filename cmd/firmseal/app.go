package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"golang.org/x/term"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/server"
	"github.com/firmseal/firmseal/internal/telemetry"
)

// app is what a command runs with.
type app struct {
	ctx    context.Context
	g      *globals
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	hooks  hooks

	// log is what the service in this process says about its faults. It is shown
	// with an INTERNAL error only: every other one tells a person the same.
	log bytes.Buffer

	// passphrase asks once for the soft keys' passphrase.
	passphrase func() (string, error)
}

// finish prints err, if any, and gives the exit code.
func (a *app) finish(err error) int {
	if err == nil {
		return problem.ExitOK
	}
	var silent *exitError
	if errors.As(err, &silent) {
		return silent.code
	}
	p := toProblem(err)
	if !a.g.Quiet {
		if a.g.Output == "json" {
			a.json("Error", p)
		} else {
			fmt.Fprintf(a.stderr, "firmseal: %s\t%s\n", p.Detail, p.Code)
			if p.Why != "" {
				fmt.Fprintf(a.stderr, "why   %s\n", strings.ReplaceAll(p.Why, "\n", "\n      "))
			}
			if p.Next != "" {
				fmt.Fprintf(a.stderr, "next  %s\n", p.Next)
			}
			// The cause of a fault is in the log: a server's own, or this process's.
			var ce *client.Error
			if p.Code == string(problem.Internal) && !errors.As(err, &ce) {
				fmt.Fprintf(a.stderr, "cause %v\n", errors.Unwrap(problem.Of(err)))
			}
			if p.Code == string(problem.Internal) {
				_, _ = a.stderr.Write(a.log.Bytes()) // there is nowhere else to say it
			}
		}
	}
	return exitOf(p.Code)
}

// exitError ends a command that has printed its result already.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit %d", e.code) }

func exitOf(code string) int {
	if e, ok := problem.Lookup(problem.Code(code)); ok {
		return e.Exit
	}
	return problem.ExitError
}

// toProblem gives any error the one form that is shown.
func toProblem(err error) client.Problem {
	var ce *client.Error
	if errors.As(err, &ce) {
		return ce.Problem
	}
	p := problem.Of(err)
	e, _ := problem.Lookup(p.Code)
	return client.Problem{
		Type: "urn:firmseal:problem:" + string(p.Code), Title: e.Title, Status: e.Status, Detail: p.What, Code: string(p.Code),
		Why: p.Why, Next: p.Next, Retryable: e.Exit == problem.ExitTemporary,
	}
}

// json prints a document of the CLI: apiVersion, kind and v's members.
func (a *app) json(kind string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types
	}
	head, _ := json.Marshal(map[string]string{"apiVersion": client.APIVersion, "kind": kind})
	if len(b) > 2 && b[0] == '{' {
		b = append(append(head[:len(head)-1], ','), b[1:]...)
	} else {
		b = head
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		panic(err)
	}
	fmt.Fprintln(a.stdout, out.String())
}

// show prints v as JSON, or lets text print it for people.
func (a *app) show(kind string, v any, text func(w io.Writer)) error {
	switch {
	case a.g.Quiet:
	case a.g.Output == "json":
		a.json(kind, v)
	default:
		text(a.stdout)
	}
	return nil
}

// note tells a person something beside the data.
func (a *app) note(format string, v ...any) {
	if !a.g.Quiet {
		fmt.Fprintf(a.stderr, format+"\n", v...)
	}
}

// settings is firmseal.yaml: what a repository's users share.
type settings struct {
	Server    string `yaml:"server"`
	TokenFile string `yaml:"tokenFile"`
	Workspace string `yaml:"workspace"`
	Profile   string `yaml:"profile"`
}

// upward looks for name in the working directory and above, to the root of the
// git checkout if there is one.
func upward(name string) (string, bool) {
	dir, err := os.Getwd()
	if err != nil {
		return "", false
	}
	for {
		p := filepath.Join(dir, name)
		if _, err := os.Stat(p); err == nil {
			return p, true
		}
		if _, err := os.Stat(filepath.Join(dir, ".git")); err == nil {
			return "", false
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", false
		}
		dir = up
	}
}

// settings reads firmseal.yaml; flags and the environment win over it.
func (a *app) settings() (settings, error) {
	var s settings
	path, ok := upward("firmseal.yaml")
	if !ok {
		return s, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return s, problem.New(problem.Usage, "%s cannot be read", path).Because(err)
	}
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&s); err != nil && !errors.Is(err, io.EOF) {
		return s, problem.New(problem.Usage, "%s cannot be used", path).Seen("%s", strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	base := filepath.Dir(path)
	for _, p := range []*string{&s.TokenFile, &s.Workspace} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(base, *p)
		}
	}
	return s, nil
}

// workspaceDir is the workspace that the command works on.
func (a *app) workspaceDir() (string, error) {
	if a.g.Workspace != "" {
		return a.g.Workspace, nil
	}
	s, err := a.settings()
	if err != nil || s.Workspace != "" {
		return s.Workspace, err
	}
	if p, ok := upward(server.Dir); ok {
		return p, nil
	}
	return "", problem.New(problem.WorkspaceMissing, "there is no workspace here or above, and no server was named").
		WithHint("firmseal init")
}

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
		return nil, nil, problem.New(problem.Usage, "%q is not a server's address", base).WithHint("--server https://seal.example.com")
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
	return fn(c)
}

// readInput reads a small file, or standard input for "-".
func (a *app) readInput(path string, most int64) ([]byte, error) {
	var r io.Reader = a.stdin
	if path != "-" {
		f, err := openFile(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, problem.New(problem.Usage, "%s cannot be read", path).Because(err)
	}
	if int64(len(b)) > most {
		return nil, problem.New(problem.TooLarge, "%s is too large", path).Seen("more than %d bytes", most)
	}
	return b, nil
}

func openFile(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, problem.New(problem.NotFound, "there is no file %s", path)
	}
	if err != nil {
		return nil, problem.New(problem.Usage, "%s cannot be read", path).Seen("%v", err).Because(err)
	}
	if st, err := f.Stat(); err != nil || st.IsDir() {
		f.Close()
		return nil, problem.New(problem.Usage, "%s is not a file", path)
	}
	return f, nil
}

// output is a file that a command writes.
type output struct {
	path  string
	write func(w io.Writer) error
}

// writeOutput writes a file whole or not at all.
func writeOutput(path string, write func(w io.Writer) error) error {
	return writeOutputs(output{path, write})
}

// writeOutputs writes files that belong together: none gets its name before all
// are whole and on the disk. A crash among the renames leaves whole files, of
// which some may be missing; running the command again writes all.
func writeOutputs(list ...output) (err error) {
	temps := make([]string, 0, len(list))
	defer func() {
		for _, t := range temps {
			os.Remove(t) // gone already where all went well
		}
	}()
	for _, o := range list {
		f, err := os.CreateTemp(filepath.Dir(o.path), "."+filepath.Base(o.path)+".tmp-*")
		if err != nil {
			return unwritable(o.path, err)
		}
		temps = append(temps, f.Name())
		err = o.write(f)
		if err == nil {
			err = f.Chmod(0o644)
		}
		if err == nil {
			err = f.Sync()
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return unwritable(o.path, err)
		}
	}
	for i, o := range list {
		if err := os.Rename(temps[i], o.path); err != nil {
			return unwritable(o.path, err)
		}
	}
	return nil
}

// unwritable explains what the disk said; what is not the disk's stays as it is.
func unwritable(path string, err error) error {
	var pe *fs.PathError
	var le *os.LinkError
	switch {
	case errors.As(err, &pe):
		return problem.New(problem.Usage, "%s cannot be written", path).Seen("%v", pe.Err).Because(err)
	case errors.As(err, &le):
		return problem.New(problem.Usage, "%s cannot be written", path).Seen("%v", le.Err).Because(err)
	}
	return err
}

// short is the beginning of a digest or id, for people.
func short(s string) string {
	if len(s) > 12 {
		return s[:12]
	}
	return s
}
