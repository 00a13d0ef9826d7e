package signing_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/db/dbtest"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/servertest"
	"github.com/firmseal/firmseal/internal/signing"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

const patience = 30 * time.Second // what no step takes on the slowest machine

// bench is a workspace that signs raw files for one product, with a hook on the
// steps of the signing path.
type bench struct {
	*servertest.Server
	t    *testing.T
	hook atomic.Pointer[func(label string)]
	n    uint64 // of the last request
	root []byte // the trust root, from the beginning

	label string // where the database is edited
	sql   *sql.DB
}

// newBench makes a workspace with key "k", and policy profile "p" for product
// "gadget" in environment test.
func newBench(t *testing.T, o servertest.Options) *bench {
	t.Helper()
	b := &bench{t: t}
	o.Step = func(label string) {
		if h := b.hook.Load(); h != nil {
			(*h)(label)
		}
	}
	b.Server = servertest.New(t, o)
	b.Key("k", "ed25519", "test", "gadget", "raw")
	b.Policy(servertest.Profile("p", "gadget", "test", "raw", "k"))
	b.sql = b.SQL()
	var err error
	if b.root, err = b.Client.TrustRoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// at runs fn once, when the signing path next comes to label.
func (b *bench) at(label string, fn func()) (came func() bool) {
	var begun, done atomic.Bool
	h := func(l string) {
		if l == label && begun.CompareAndSwap(false, true) {
			defer done.Store(true) // also where fn panics
			fn()
		}
	}
	b.hook.Store(&h)
	return done.Load
}

// crash ends the goroutine that works on a request when it comes to label for the
// nth time, as the end of its process does: nothing is written behind it.
func (b *bench) crash(label string, nth int) (crashed <-chan struct{}) {
	gone := make(chan struct{})
	seen := 0
	h := func(l string) {
		if l != label {
			return
		}
		if seen++; seen == nth {
			close(gone)
			runtime.Goexit()
		}
	}
	b.hook.Store(&h)
	return gone
}

// wait waits for a channel, with patience.
func (b *bench) wait(what string, ch <-chan struct{}) {
	b.t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		b.t.Fatalf("waited in vain: %s", what)
	}
}

// next is a request for another version, of other bytes.
func (b *bench) next() client.NewRequest {
	b.n++
	return servertest.Request("p", fmt.Sprintf("1.0.%d", b.n), b.n, fmt.Appendf(nil, "firmware %d", b.n))
}

func (b *bench) submit(r client.NewRequest) client.Request {
	b.t.Helper()
	out, err := b.Client.Sign(b.t.Context(), r, "", 0)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// sign submits and waits until the request rests.
func (b *bench) sign(r client.NewRequest) client.Request {
	b.t.Helper()
	out, err := b.Client.Sign(b.t.Context(), r, "", patience)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *bench) rest(id string) client.Request {
	b.t.Helper()
	out, err := b.Client.Request(b.t.Context(), id, patience)
	if err != nil {
		b.t.Fatal(err)
	}
	if !signing.State(out.State).Rests() {
		b.t.Fatalf("request %s is %s after %s: %+v", id, out.State, patience, out.Problem)
	}
	return out
}

// newest is the id of the newest request, as the database has it.
func (b *bench) newest() string {
	b.t.Helper()
	var id string
	if err := b.sql.QueryRowContext(context.Background(), `SELECT id FROM signing_request ORDER BY id DESC LIMIT 1`).Scan(&id); err != nil {
		b.t.Error(err)
	}
	return id
}

// settled waits until no process works on the request, and gives its state and
// problem as the database has them; state is empty where its row is gone.
func (b *bench) settled(id string) (state string, code problem.Code) {
	b.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		var busy int
		var text string
		err := b.sql.QueryRow(`SELECT COUNT(*) FROM job WHERE key = $1 AND (state = 'leased' OR (state = 'ready' AND error = ''))`, id).Scan(&busy)
		if err != nil {
			b.t.Fatal(err)
		}
		if busy == 0 {
			switch err := b.sql.QueryRow(`SELECT state, problem FROM signing_request WHERE id = $1`, id).Scan(&state, &text); err {
			case sql.ErrNoRows:
				return "", ""
			case nil:
			default:
				b.t.Fatal(err)
			}
			var p struct{ Code problem.Code }
			if text != "" {
				if err := json.Unmarshal([]byte(text), &p); err != nil {
					b.t.Fatal(err)
				}
			}
			return state, p.Code
		}
		if time.Now().After(end) {
			b.t.Fatalf("request %s is still worked on after %s", id, patience)
		}
	}
}

// sequenced waits until a request's leaf has its place in the log. On PostgreSQL
// that is after its transaction.
func (b *bench) sequenced(kind, id string) {
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		var n int
		if err := b.sql.QueryRow(`SELECT COUNT(*) FROM log_leaf WHERE type = $1 AND request = $2`, kind, id).Scan(&n); err != nil || n > 0 || time.Now().After(end) {
			return // the edit tells of what is missing
		}
	}
}

// released tells whether the catalogue has a release of the request.
func (b *bench) released(id string) bool {
	b.t.Helper()
	var n int
	if err := b.sql.QueryRow(`SELECT COUNT(*) FROM release WHERE request = $1`, id).Scan(&n); err != nil {
		b.t.Fatal(err)
	}
	return n > 0
}

// uses counts the uses of keys of a purpose for a request.
func (b *bench) uses(purpose keys.Purpose, id string) int {
	n := 0
	for _, u := range b.Uses(purpose) {
		if u.Request == id {
			n++
		}
	}
	return n
}

// verify checks a release as a device would, with the trust root that was made
// before anything was edited, and gives what its seal says; or nil where the
// server refuses to prove it from an edited log.
func (b *bench) verify(id string, content []byte) *firmseal.Statement {
	t := b.t
	t.Helper()
	rel, err := b.Client.Release(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := firmseal.ParseTrustRoot(b.root)
	if err != nil {
		t.Fatal(err)
	}
	var seal, proof bytes.Buffer
	if err := b.Client.Download(t.Context(), rel.ID, client.PartSeal, &seal); err != nil {
		t.Fatal(err)
	}
	if err := b.Client.Download(t.Context(), rel.ID, client.PartProof, &proof); code(err) == problem.LogAltered {
		return nil
	} else if err != nil {
		t.Fatal(err)
	}
	res, err := firmseal.VerifySeal(firmseal.VerifyInput{
		TrustRoot: tr, Seal: seal.Bytes(), Proof: proof.Bytes(), Product: rel.Product, HardwareID: rel.HardwareIDs[0],
		UnsafeTest: rel.Environment == "test",
	})
	if err != nil {
		t.Fatalf("verifying the release of %s offline: %v", id, err)
	}
	h := sha256.Sum256(content)
	if content != nil && len(res.Statement.Subjects) == 2 && res.Statement.Subjects[0].SHA256 != hex.EncodeToString(h[:]) {
		t.Errorf("the seal is of image %s, %x was sent", res.Statement.Subjects[0].SHA256, h)
	}
	return res.Statement
}

// code is what an error of the client says; empty for none.
func code(err error) problem.Code {
	var e *client.Error
	if errors.As(err, &e) {
		return problem.Code(e.Code)
	}
	return ""
}

// postgresFor gives a test another empty database.
func postgresFor(t *testing.T) string { t.Helper(); return dbtest.PostgresURL(t) }
