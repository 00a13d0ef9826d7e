package server

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"
	"github.com/goccy/go-yaml"
	"golang.org/x/sys/unix"

	"github.com/firmseal/firmseal/internal/problem"
)

// Dir is the name of a workspace's directory.
const Dir = ".firmseal"

// Config is the file config.yaml of a workspace. The log's origin and key are
// here, beside the keys and outside the database, because the keys' gate
// believes this file and not the database.
type Config struct {
	APIVersion  string `yaml:"apiVersion"`         // firmseal.workspace/v1
	Workspace   string `yaml:"workspace"`          // random id; part of the origin, so that a copied workspace cannot fork the log unseen
	Origin      string `yaml:"origin"`             // C2SP log origin
	LogKey      string `yaml:"logKey"`             // verifier key of the log, name+hash+key
	LogKeyURI   string `yaml:"logKeyURI"`          // where the private half is
	Database    string `yaml:"database"`           // sqlite:FILE relative to the workspace, or postgres://…
	SecondPlace string `yaml:"secondPlace"`        // file of the last checkpoint, outside the workspace
	Identity    string `yaml:"identity,omitempty"` // age identity file that opens soft keys; empty: a passphrase
}

const configVersion = "firmseal.workspace/v1"

// InitOptions say how a new workspace is made.
type InitOptions struct {
	Dir         string // the workspace directory itself, usually …/.firmseal
	Origin      string // default: firmseal.local/ and the workspace id
	Database    string // default: sqlite:firmseal.db
	SecondPlace string // default: a file under the user's state directory
	Identity    string // age identity file: made if absent; default: under the user's configuration directory
	// Passphrase, when set, encrypts the soft keys in place of Identity. It is
	// asked once.
	Passphrase func() (string, error)
}

// layout gives the default of every path that is not stated.
func (o *InitOptions) layout(id string) error {
	if o.Origin == "" {
		o.Origin = "firmseal.local/" + id
	}
	if o.Database == "" {
		o.Database = "sqlite:firmseal.db"
	}
	if o.SecondPlace == "" {
		state := os.Getenv("XDG_STATE_HOME")
		if state == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return problem.New(problem.Usage, "there is no home directory for the log's second place").WithHint("add --second-place FILE, on another disk if you can")
			}
			state = filepath.Join(home, ".local", "state")
		}
		o.SecondPlace = filepath.Join(state, "firmseal", id, "checkpoint")
	}
	if o.Identity == "" && o.Passphrase == nil {
		conf, err := os.UserConfigDir()
		if err != nil {
			return problem.New(problem.Usage, "there is no configuration directory for the key identity").WithHint("add --identity FILE or --passphrase-fd N")
		}
		o.Identity = filepath.Join(conf, "firmseal", "identities", id+".txt")
	}
	for _, p := range []*string{&o.SecondPlace, &o.Identity} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("resolving %s: %w", *p, err)
		}
		*p = abs
	}
	return nil
}

func newWorkspaceID() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // crypto/rand never fails
	return hex.EncodeToString(b)
}

// readConfig reads and checks config.yaml.
func readConfig(dir string) (Config, error) {
	var c Config
	b, err := os.ReadFile(filepath.Join(dir, "config.yaml"))
	if errors.Is(err, fs.ErrNotExist) {
		return c, problem.New(problem.WorkspaceMissing, "there is no workspace in %s", dir).
			Seen("config.yaml is not there").WithHint("firmseal init")
	}
	if err != nil {
		return c, problem.New(problem.Unavailable, "the workspace in %s cannot be read", dir).Because(err)
	}
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&c); err != nil {
		return c, problem.New(problem.WorkspaceMalformed, "config.yaml of the workspace cannot be read").Seen("%s", yaml.FormatError(err, false, true)).Because(err)
	}
	if c.APIVersion != configVersion || c.Workspace == "" || c.Origin == "" || c.LogKey == "" || c.LogKeyURI == "" || c.Database == "" || c.SecondPlace == "" {
		return c, problem.New(problem.WorkspaceMalformed, "config.yaml of the workspace is not whole").
			Seen("apiVersion %q; it needs workspace, origin, logKey, logKeyURI, database and secondPlace", c.APIVersion)
	}
	return c, nil
}

// writeFile writes a file whole and durably, or not at all, and never over an
// existing one.
func writeFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Identities reads an age identity file, and makes it first if create is set
// and it is not there.
func Identities(path string, create bool) ([]age.Identity, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && create {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			return nil, err
		}
		text := "# age identity of a Firmseal workspace: it opens the workspace's soft keys. Keep it apart from them.\n# public key: " +
			id.Recipient().String() + "\n" + id.String() + "\n"
		if err := writeFile(path, []byte(text)); err != nil {
			return nil, fmt.Errorf("writing the identity file: %w", err)
		}
		return []age.Identity{id}, nil
	}
	if err != nil {
		return nil, problem.New(problem.KeyLocked, "the identity file that opens the soft keys cannot be read").
			Seen("%s", path).WithHint("bring the file back, or name another: FIRMSEAL_IDENTITY=FILE").Because(err)
	}
	ids, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, problem.New(problem.KeyMalformed, "%s is not an age identity file", path).Because(err)
	}
	return ids, nil
}

const (
	lockPatience = time.Second
	lockPause    = 20 * time.Millisecond
)

// lock takes the workspace for this process. Two processes on one SQLite
// workspace would be two log writers.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, problem.New(problem.Unavailable, "the workspace cannot be locked").Because(err)
	}
	// A process that is just ending holds the lock for a moment more, and so does
	// the copy of its descriptor in a child between fork and exec.
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for until := time.Now().Add(lockPatience); err != nil && time.Now().Before(until); {
		time.Sleep(lockPause)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		defer f.Close()
		who := make([]byte, 200)
		n, _ := f.ReadAt(who, 0) // only for the message
		return nil, problem.New(problem.WorkspaceLocked, "the workspace is in use by another process").
			Seen("%s", bytes.TrimSpace(who[:n])).WithHint("stop it, or talk to its server with a token: --server URL --token-file FILE")
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := fmt.Fprintf(f, "process %d\n", os.Getpid()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
