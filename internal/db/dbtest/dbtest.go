// Package dbtest gives each test an empty database of its own, on every engine
// that Firmseal runs on.
//
// PostgreSQL is a real server that the first test starts in a temporary folder
// and Main stops. A server of your own serves too: FIRMSEAL_TEST_POSTGRES is
// its URL, with the right to create databases. Its databases are named
// firmseal_test_… and dropped at the end of each test.
//
// The server runs without fsync, because what the tests ask of it is its
// answers and its locks. Its durability is its own authors' work.
package dbtest

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/peertest"
)

// Each runs fn as two subtests, named sqlite and postgres, with an empty
// database each.
func Each(t *testing.T, fn func(t *testing.T, d *db.DB)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		fn(t, SQLite(t))
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		fn(t, Postgres(t))
	})
}

// SQLite opens an empty database in the test's folder.
func SQLite(t testing.TB) *db.DB {
	t.Helper()
	return Open(t, "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
}

// Postgres opens an empty database on the test server.
func Postgres(t testing.TB) *db.DB {
	t.Helper()
	return Open(t, PostgresURL(t))
}

// Open opens a database that is closed at the end of the test.
func Open(t testing.TB, url string) *db.DB {
	t.Helper()
	d, err := db.Open(t.Context(), url, db.Options{Logger: slog.New(slog.DiscardHandler), Conns: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// PostgresURL makes an empty database on the test server, and drops it at the
// end of the test.
func PostgresURL(t testing.TB) string {
	t.Helper()
	s := shared.get(t)
	name := "firmseal_test_" + strings.ReplaceAll(db.NewID(), "-", "")
	if err := s.do(t.Context(), "CREATE DATABASE "+name+" TEMPLATE template0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.do(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("dropping %s: %v", name, err)
		}
	})
	u := *s.url
	u.Path = "/" + name
	return u.String()
}

// Main runs the tests of a package and stops the server that they started. A
// package that uses Each has it as its TestMain:
//
//	func TestMain(m *testing.M) { dbtest.Main(m) }
func Main(m *testing.M) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-stop
		shared.stop()
		os.Exit(1)
	}()
	code := m.Run()
	if err := shared.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "dbtest: stopping PostgreSQL:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// shared is the one server of a test binary.
var shared server

type server struct {
	mu      sync.Mutex
	url     *url.URL
	admin   *sql.DB
	err     error // starting failed; it would fail again
	process *exec.Cmd
	dir     string
}

// get starts the server when it is the first to ask.
func (s *server) get(t testing.TB) *server {
	t.Helper()
	// The tools are asked for before the lock: an absent one ends the test.
	own := os.Getenv("FIRMSEAL_TEST_POSTGRES")
	var initdb, postgres string
	if own == "" {
		// The server finds its libraries beside its real path.
		postgres, initdb = realPath(t, "postgres"), realPath(t, "initdb")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.admin != nil {
		return s
	}
	if s.err == nil {
		s.err = s.start(own, initdb, postgres)
	}
	if s.err != nil {
		t.Fatalf("starting PostgreSQL: %v", s.err)
	}
	return s
}

func realPath(t testing.TB, name string) string {
	t.Helper()
	p, err := filepath.EvalSymlinks(peertest.Tool(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// do runs a statement outside any of the tests' databases.
func (s *server) do(ctx context.Context, q string) error {
	_, err := s.admin.ExecContext(ctx, q)
	return err
}

func (s *server) start(own, initdb, postgres string) (err error) {
	if own != "" {
		if s.url, err = url.Parse(own); err != nil {
			return errors.New("FIRMSEAL_TEST_POSTGRES is no URL") // it may hold a password
		}
	} else if err := s.launch(initdb, postgres); err != nil {
		return errors.Join(err, s.kill())
	}
	if s.admin, err = sql.Open("pgx", s.url.String()); err != nil {
		return errors.Join(err, s.kill())
	}
	s.admin.SetMaxOpenConns(4)
	return nil
}

// launch makes a cluster in a temporary folder and starts a server on it.
// PostgreSQL does not run as root: then it runs as its own user, or nobody.
func (s *server) launch(initdb, postgres string) error {
	dir, err := os.MkdirTemp("", "firmseal-pg-")
	if err != nil {
		return err
	}
	s.dir = dir
	var attr syscall.SysProcAttr
	if os.Geteuid() == 0 {
		uid, gid, err := unprivileged()
		if err != nil {
			return err
		}
		attr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			return err
		}
	}
	dying(&attr)
	data := filepath.Join(dir, "data")
	init := exec.Command(initdb, "-D", data, "-U", "firmseal", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
	init.Dir, init.SysProcAttr = dir, &attr
	if out, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	s.process = exec.Command(postgres, "-D", data, "-k", dir, "-p", strconv.Itoa(port),
		"-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=on",
		"-c", "max_connections=200", "-c", "shared_buffers=32MB", "-c", "autovacuum=off", "-c", "deadlock_timeout=100ms")
	var log bytes.Buffer
	s.process.Dir, s.process.SysProcAttr = dir, &attr
	s.process.Stdout, s.process.Stderr = &log, &log
	if err := s.process.Start(); err != nil {
		s.process = nil
		return err
	}
	s.url = &url.URL{Scheme: "postgres", User: url.User("firmseal"), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Path: "/postgres", RawQuery: "sslmode=disable"}
	c, err := sql.Open("pgx", s.url.String())
	if err != nil {
		return err
	}
	defer c.Close()
	for deadline := time.Now().Add(30 * time.Second); ; {
		if err = c.Ping(); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server does not answer: %w\n%s", err, log.String())
		}
		time.Sleep(20 * time.Millisecond) // a foreign process gives no other sign
	}
}

func unprivileged() (uid, gid uint32, err error) {
	for _, name := range []string{"postgres", "nobody"} {
		var u *user.User
		if u, err = user.Lookup(name); err != nil {
			continue
		}
		var a, b uint64
		if a, err = strconv.ParseUint(u.Uid, 10, 32); err != nil {
			continue
		}
		if b, err = strconv.ParseUint(u.Gid, 10, 32); err != nil {
			continue
		}
		return uint32(a), uint32(b), nil
	}
	return 0, 0, fmt.Errorf("no user to run PostgreSQL as: %w", err)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (s *server) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.admin != nil {
		err = s.admin.Close()
		s.admin = nil
	}
	s.err = errors.New("stopped")
	return errors.Join(err, s.kill())
}

// kill stops the server at once: nobody reads its data again.
func (s *server) kill() error {
	if s.process != nil {
		s.process.Process.Signal(syscall.SIGQUIT) //nolint:errcheck // it may have ended by itself
		s.process.Wait()                          //nolint:errcheck // as above
		s.process = nil
	}
	if s.dir == "" {
		return nil
	}
	dir := s.dir
	s.dir = ""
	return os.RemoveAll(dir)
}
