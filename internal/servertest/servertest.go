// Package servertest is a whole server in a test: a workspace with its database,
// log, keys and blobs, and clients of it, in this process or over HTTP.
//
// Nothing in it is a stand-in. The formats and the key backend are those of the
// product, the log has its second place, and the database is SQLite in a file
// or a real PostgreSQL. A test can watch each use of a private key, stop the
// signing path at each of its labelled steps, put something between the
// service and its key backend, write to the database behind the server's back,
// and end and begin the server's life as often as it likes.
package servertest

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/db/dbtest"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit"
	"github.com/firmseal/firmseal/internal/image/mcuboot"
	"github.com/firmseal/firmseal/internal/image/raw"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/keys/soft"
	"github.com/firmseal/firmseal/internal/server"
)

// Options have useful zero values.
type Options struct {
	Database string         // a postgres:// URL; default SQLite in the workspace
	Formats  image.Registry // default those of the product
	// Backend wraps the soft key backend; default none.
	Backend func(keys.Backend) keys.Backend
	// Step is called at each labelled step of the signing path.
	Step func(label string)
	// Record is called before each use of a private key, after the use was
	// counted.
	Record func(context.Context, keys.Use) error
	Logger *slog.Logger // default: none
}

// Each runs fn as two subtests, on SQLite and on PostgreSQL. A package that
// uses it has dbtest.Main as its TestMain.
func Each(t *testing.T, fn func(t *testing.T, o Options)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		fn(t, Options{})
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		fn(t, Options{Database: dbtest.PostgresURL(t)})
	})
}

// Server is an open workspace with its clients.
type Server struct {
	*server.Server
	// Client calls as the person who runs the workspace.
	Client *client.Client

	Dir         string // the workspace
	SecondPlace string // the file of the log's second place

	t       testing.TB
	options Options

	mu   sync.Mutex
	uses []keys.Use // guarded by mu
}

// New makes a workspace in the test's folder and opens it. It is closed at the
// end of the test.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	dir := t.TempDir()
	s := &Server{
		Dir: filepath.Join(dir, "workspace"), SecondPlace: filepath.Join(dir, "second-place", "checkpoint"),
		t: t, options: o,
	}
	init := server.InitOptions{
		Dir: s.Dir, Database: o.Database, SecondPlace: s.SecondPlace, Identity: filepath.Join(dir, "identity.txt"),
	}
	if _, err := server.Init(t.Context(), init, server.Options{Parts: s.parts()}); err != nil {
		t.Fatalf("making the workspace: %+v", err)
	}
	t.Cleanup(s.Stop)
	s.Start()
	return s
}

func (s *Server) parts() server.Parts {
	formats := s.options.Formats
	if formats == nil {
		formats = image.Registry{fit.New(), mcuboot.New(), raw.New()}
	}
	return server.Parts{Formats: formats, Backends: []server.BackendPart{{Scheme: "soft", Open: s.soft}}}
}

func (s *Server) soft(_ context.Context, k server.KeyStore) (keys.Backend, error) {
	ids, err := server.Identities(k.Identity, k.Create)
	if err != nil {
		return nil, err
	}
	b, err := soft.Open(k.Dir, soft.Options{Gate: k.Gate, Identities: ids})
	if err != nil || s.options.Backend == nil {
		return b, err
	}
	return s.options.Backend(b), nil
}

// Start opens the workspace again after Stop. The test ends when that fails.
func (s *Server) Start() {
	s.t.Helper()
	if err := s.TryStart(); err != nil {
		s.t.Fatalf("opening the workspace: %+v", err)
	}
}

// TryStart is Start for a workspace that may refuse to open.
func (s *Server) TryStart() error {
	srv, err := server.Open(context.Background(), server.Options{
		Dir: s.Dir, Parts: s.parts(), Version: "test", Logger: s.options.Logger, Step: s.options.Step, Record: s.record,
	})
	if err != nil {
		return err
	}
	s.Server, s.Client = srv, s.as(srv, auth.Local("tester"))
	return nil
}

// Stop closes the server, if it is open, as a deliberate end does: work in hand
// is cut off where its context is looked at.
func (s *Server) Stop() {
	s.t.Helper()
	if s.Server == nil {
		return
	}
	if err := s.Close(); err != nil {
		s.t.Errorf("closing the server: %v", err)
	}
	s.Server = nil
}

// Restart is Stop and Start.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.Start()
}

func (s *Server) record(ctx context.Context, u keys.Use) error {
	s.mu.Lock()
	s.uses = append(s.uses, u)
	s.mu.Unlock()
	if s.options.Record != nil {
		return s.options.Record(ctx, u)
	}
	return nil
}

// Uses gives the uses of private keys of a purpose so far, in their order,
// through all lives of the server.
func (s *Server) Uses(purpose keys.Purpose) []keys.Use {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []keys.Use
	for _, u := range s.uses {
		if u.Purpose == purpose {
			out = append(out, u)
		}
	}
	return out
}

// As gives a client that calls in this process as somebody.
func (s *Server) As(who auth.Identity) *client.Client { return s.as(s.Server, who) }

func (s *Server) as(srv *server.Server, who auth.Identity) *client.Client {
	return &client.Client{BaseURL: "http://workspace", HTTP: &http.Client{Transport: srv.Transport(who)}}
}

// HTTP serves the workspace on a loopback port until the test ends, and gives a
// client with a token that has all scopes.
func (s *Server) HTTP() *client.Client {
	s.t.Helper()
	var scopes []string
	for _, sc := range auth.Scopes() {
		scopes = append(scopes, string(sc))
	}
	secret, _, err := s.Signing.CreateToken(s.t.Context(), auth.Local("tester"), "servertest", scopes, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	hs := &http.Server{Handler: s.Handler, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		hs.Serve(l) //nolint:errcheck // ends with Close
	}()
	tr := &http.Transport{}
	s.t.Cleanup(func() {
		tr.CloseIdleConnections()
		hs.Close() //nolint:errcheck // the listener's error tells a test nothing
		<-done
	})
	return &client.Client{BaseURL: "http://" + l.Addr().String(), Token: secret, HTTP: &http.Client{Transport: tr}}
}

// Key makes a firmware key and gives it.
func (s *Server) Key(name, keyType, environment, product, format string) client.Key {
	s.t.Helper()
	k, err := s.Client.CreateKey(s.t.Context(), client.NewKey{
		Name: name, Type: keyType, Purpose: string(keys.Firmware), Environment: environment, Product: product, Format: format,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return k
}

// Policy puts a document in force that has the profiles given, each the text
// below its name, indented as it stands.
func (s *Server) Policy(profiles ...string) client.Policy {
	s.t.Helper()
	p, err := s.Client.ApplyPolicy(s.t.Context(), []byte("apiVersion: firmseal.policy/v1\nprofiles:\n"+strings.Join(profiles, "")))
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// Profile is a profile for [Server.Policy] with one key; more is YAML that is
// indented by four.
func Profile(name, product, environment, format, key string, more ...string) string {
	p := fmt.Sprintf("  %s:\n    product: %s\n    environment: %s\n    format: %s\n    keys: {image: %s}\n", name, product, environment, format, key)
	for _, m := range more {
		p += "    " + m + "\n"
	}
	return p
}

// Request is a request for a small image by inline content.
func Request(profile, version string, counter uint64, content []byte) client.NewRequest {
	return client.NewRequest{
		Profile: profile, Version: version, SecurityCounter: &counter, HardwareIDs: []string{"board-a"},
		Input: client.Input{Name: "image.bin", Content: content},
	}
}

// SQL opens a second connection to the server's database, behind its back.
func (s *Server) SQL() *sql.DB {
	s.t.Helper()
	driver, name := "pgx", s.options.Database
	if name == "" {
		driver, name = "sqlite", "file:"+filepath.Join(s.Dir, "firmseal.db")+"?_pragma=busy_timeout(10000)"
	}
	d, err := sql.Open(driver, name)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { d.Close() }) //nolint:errcheck // a test's own connection
	return d
}

// Postgres tells which database the server has.
func (s *Server) Postgres() bool { return s.options.Database != "" }
