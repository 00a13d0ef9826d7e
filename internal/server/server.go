// Package server builds a whole Firmseal out of its rooms and runs it.
//
// A workspace is a directory: config.yaml, the database (or its URL), blobs and
// keys. Init makes one, Open opens it: with a database, a log that agrees with
// its second place, keys behind their gate, the signing service and the API's
// handler. Run works until its context ends.
//
// The network server and the CLI's in-process client use the same Open and the
// same handler; they differ only in who calls.
package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/goccy/go-yaml"
	"golang.org/x/sync/errgroup"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/api"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/blob/disk"
	"github.com/firmseal/firmseal/internal/blob/small"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/jobs"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/signing"
	"github.com/firmseal/firmseal/internal/telemetry"
	"github.com/firmseal/firmseal/internal/tlog"
)

// KeyStore is what a backend needs to be opened.
type KeyStore struct {
	Dir        string     // the workspace's directory for this backend
	Gate       *keys.Gate // nil while the workspace is made
	Identity   string     // age identity file; empty: Passphrase
	Create     bool       // make the identity file if it is not there
	Passphrase func() (string, error)
}

// Parts are what main alone knows: the concrete formats and key backends.
type Parts struct {
	Formats  image.Registry
	Backends []BackendPart
}

// BackendPart makes one kind of key backend.
type BackendPart struct {
	Scheme string
	Open   func(ctx context.Context, s KeyStore) (keys.Backend, error)
}

// Options open a workspace.
type Options struct {
	Dir        string
	Parts      Parts
	Version    string
	Logger     *slog.Logger
	Identity   string                 // instead of the configured identity file
	Passphrase func() (string, error) // for soft keys under a passphrase

	// Step and Record are for tests that kill the process; see
	// signing.Options.Step and keys.GateOptions.Record.
	Step   func(label string)
	Record func(context.Context, keys.Use) error
}

// Server is an open workspace.
type Server struct {
	Config  Config
	Handler http.Handler
	Signing *signing.Service
	Log     *tlog.Log
	Metrics *telemetry.Metrics

	db     *db.DB
	jobs   *jobs.Queue
	lock   *os.File
	logger *slog.Logger
	cancel context.CancelFunc
	runs   *errgroup.Group
	once   sync.Once
}

// Init makes a workspace: its id, its log with the genesis leaf, its log key
// and a seal key for each environment. config.yaml is written last of the
// files, so that a crash before it leaves a directory that Init may use again.
func Init(ctx context.Context, o InitOptions, open Options) (Config, error) {
	if _, err := os.Stat(filepath.Join(o.Dir, "config.yaml")); err == nil {
		return Config{}, problem.New(problem.WorkspaceExists, "there is a workspace in %s already", o.Dir).WithHint("firmseal status")
	}
	id := newWorkspaceID()
	if err := o.layout(id); err != nil {
		return Config{}, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return Config{}, unwritable(o.Dir, err)
	}
	scheme := "soft"
	part, ok := open.Parts.backend(scheme)
	if !ok {
		return Config{}, fmt.Errorf("no %s backend among the parts", scheme)
	}
	b, err := part.Open(ctx, KeyStore{Dir: filepath.Join(o.Dir, "keys", scheme), Identity: o.Identity, Create: true, Passphrase: o.Passphrase})
	if err != nil {
		return Config{}, err
	}
	logKey, err := b.Create(ctx, keys.Spec{Name: "log-" + id, Type: alg.Ed25519, Binding: keys.Binding{Purpose: keys.Log, Environment: keys.Production}})
	if err != nil {
		return Config{}, err
	}
	vkey, err := keys.VerifierKey(logKey.Info(), o.Origin)
	if err != nil {
		return Config{}, err
	}
	c := Config{
		APIVersion: configVersion, Workspace: id, Origin: o.Origin, LogKey: vkey, LogKeyURI: logKey.Info().URI,
		Database: o.Database, SecondPlace: o.SecondPlace, Identity: o.Identity,
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return Config{}, err
	}
	if err := writeFile(filepath.Join(o.Dir, ".gitignore"), []byte("*\n")); err != nil && !errors.Is(err, os.ErrExist) {
		return Config{}, unwritable(o.Dir, err)
	}
	if err := writeFile(filepath.Join(o.Dir, "config.yaml"), text); err != nil {
		return Config{}, unwritable(o.Dir, err)
	}
	open.Dir, open.Passphrase = o.Dir, o.Passphrase
	s, err := Open(ctx, open)
	if err != nil {
		return Config{}, err
	}
	defer s.Close()
	who := auth.Local("init")
	if _, err := s.Signing.RegisterKey(ctx, who, logKey.Info()); err != nil {
		return Config{}, err
	}
	for _, env := range []keys.Environment{keys.Test, keys.Production} {
		spec := keys.Spec{Name: "seal-" + string(env), Type: alg.Ed25519, Binding: keys.Binding{Purpose: keys.Seal, Environment: env}}
		if _, err := s.Signing.CreateKey(ctx, who, scheme, spec); err != nil {
			return Config{}, err
		}
	}
	return c, nil
}

// unwritable says that a workspace cannot be made in dir; trying again does not
// help.
func unwritable(dir string, err error) error {
	why := err
	var pe *fs.PathError
	if errors.As(err, &pe) {
		why = pe.Err
	}
	return problem.New(problem.WorkspaceReadOnly, "the workspace %s cannot be made", dir).Seen("%v", why).
		WithHint("make it where you may write: firmseal init DIR").Because(err)
}

func (p Parts) backend(scheme string) (BackendPart, bool) {
	for _, b := range p.Backends {
		if b.Scheme == scheme {
			return b, true
		}
	}
	return BackendPart{}, false
}

// Open opens a workspace and starts its work. It refuses when the log is behind
// its second place, or differs from it: see package tlog.
func Open(ctx context.Context, o Options) (_ *Server, err error) {
	c, err := readConfig(o.Dir)
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{Config: c, logger: o.Logger, Metrics: telemetry.New()}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	url := c.Database
	if path, ok := strings.CutPrefix(url, "sqlite:"); ok {
		if !filepath.IsAbs(path) {
			path = filepath.Join(o.Dir, path)
		}
		url = "sqlite:" + path
		if s.lock, err = lock(o.Dir); err != nil {
			return nil, err
		}
	}
	gate, err := keys.NewGate(c.LogKey, c.Origin, keys.GateOptions{Record: o.Record})
	if err != nil {
		return nil, err
	}
	identity := c.Identity
	if o.Identity != "" {
		identity = o.Identity
	}
	var backends []keys.Backend
	for _, part := range o.Parts.Backends {
		b, err := part.Open(ctx, KeyStore{Dir: filepath.Join(o.Dir, "keys", part.Scheme), Gate: gate, Identity: identity, Passphrase: o.Passphrase})
		if err != nil {
			return nil, err
		}
		backends = append(backends, b)
	}
	logKey, err := openLogKey(ctx, backends, c.LogKeyURI)
	if err != nil {
		return nil, err
	}
	signer, err := keys.NoteSigner(logKey, c.Origin)
	if err != nil {
		return nil, err
	}
	if s.db, err = db.Open(ctx, url, db.Options{Logger: o.Logger}); err != nil {
		return nil, err
	}
	if s.Log, err = tlog.Open(ctx, s.db, tlog.Options{Origin: c.Origin, Signer: signer, VKey: c.LogKey, Second: tlog.FilePlace(c.SecondPlace), Logger: o.Logger}); err != nil {
		return nil, err
	}
	stores := blobStores(s.db, filepath.Join(o.Dir, "blobs"))
	s.jobs = jobs.New(s.db, jobs.Options{Logger: o.Logger})
	s.Signing = signing.New(signing.Options{
		DB: s.db, Blobs: stores, Log: s.Log, LogKey: c.LogKey, Jobs: s.jobs, Formats: o.Parts.Formats, Backends: backends,
		Metrics: s.Metrics, Logger: o.Logger, Step: o.Step,
	})
	if err := s.Signing.Unfinished(ctx); err != nil {
		return nil, err
	}
	s.Handler = api.New(api.Options{
		DB: s.db, Signing: s.Signing, Blobs: stores, Log: s.Log, Metrics: s.Metrics, Logger: o.Logger,
		Workspace: c.Workspace, Version: o.Version,
	})
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	s.runs, run = errgroup.WithContext(run)
	s.runs.Go(func() error { return s.jobs.Run(run) })
	return s, nil
}

func openLogKey(ctx context.Context, bs []keys.Backend, uri string) (keys.Key, error) {
	scheme, _, _ := strings.Cut(uri, ":")
	for _, b := range bs {
		if b.Scheme() == scheme {
			return b.Open(ctx, uri)
		}
	}
	return nil, problem.New(problem.KeyNotFound, "the log key's backend %q is not here", scheme).Seen("logKeyURI of config.yaml")
}

// blobStores gives each project its own store, so that knowing a digest gives
// nobody another project's bytes: small files in the database, others in a
// folder.
func blobStores(d *db.DB, root string) func(project string) (blob.Store, error) {
	var mu sync.Mutex
	open := map[string]blob.Store{}
	return func(project string) (blob.Store, error) {
		mu.Lock()
		defer mu.Unlock()
		if st, ok := open[project]; ok {
			return st, nil
		}
		folder, err := disk.Open(filepath.Join(root, project))
		if err != nil {
			return nil, err
		}
		st := small.Over(d, project, folder)
		open[project] = st
		return st, nil
	}
}

// Wait blocks until a part of the server fails or Close is called.
func (s *Server) Wait() error {
	err := s.runs.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Close stops the work, waits for it and closes the database. What was
// interrupted goes on at the next Open.
func (s *Server) Close() error {
	var err error
	s.once.Do(func() {
		if s.cancel != nil {
			s.cancel()
			err = s.Wait()
		}
		if s.Log != nil {
			err = errors.Join(err, s.Log.Close())
		}
		if s.db != nil {
			err = errors.Join(err, s.db.Close())
		}
		if s.lock != nil {
			err = errors.Join(err, s.lock.Close())
		}
	})
	return err
}

// RecoverLog opens a workspace whose log refuses because its second place was
// lost, and takes the log as it is: see tlog.Log.Adopt.
func RecoverLog(ctx context.Context, o Options, actor string) (tlog.Report, error) {
	s, err := Open(ctx, o)
	if err != nil {
		return tlog.Report{}, err
	}
	defer s.Close()
	if err := s.Log.Adopt(ctx, actor); err != nil {
		return tlog.Report{}, err
	}
	return s.Log.Fsck(ctx)
}
