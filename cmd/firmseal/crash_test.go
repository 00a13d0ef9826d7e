package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/image/fit/fitdemo"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/signing"
	placed "github.com/firmseal/firmseal/internal/tlog"
)

// The environment of a process that is to be killed.
const (
	crashUses = "FIRMSEAL_TEST_USES" // file to which each use of a key is appended
	crashArm  = "FIRMSEAL_TEST_ARM"  // file that says where to die; it may come later
)

// crashMain is the real command, with two hooks: it dies at the step that the
// arm file names, and appends each use of a private key to a file of its own,
// synced, before the key is used.
func crashMain() int {
	var h hooks
	if path := os.Getenv(crashUses); path != "" {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 99
		}
		var mu sync.Mutex
		h.record = func(_ context.Context, u keys.Use) error {
			line, err := json.Marshal(u)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			// A line of its own, also behind one that a kill tore.
			if _, err := fmt.Fprintf(f, "\n%s\n", line); err != nil {
				return err
			}
			return f.Sync()
		}
	}
	if path := os.Getenv(crashArm); path != "" {
		var seen atomic.Int64
		h.step = func(label string) {
			at, err := os.ReadFile(path)
			if err != nil {
				return // not armed
			}
			where, nth, _ := strings.Cut(string(at), " ")
			if where != label {
				return
			}
			if n, err := strconv.ParseInt(nth, 10, 64); err != nil || seen.Add(1) != n {
				return
			}
			syscall.Kill(os.Getpid(), syscall.SIGKILL) //nolint:errcheck // nobody is left to see it
			select {}
		}
	}
	return Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, h)
}

// crash is a workspace whose server is killed again and again.
type crash struct {
	t     *testing.T
	dir   string
	ws    string // the workspace
	uses  string
	token string
	root  *firmseal.TrustRoot
	gun   *ecosystem
	db    *sql.DB

	version int
	asked   []*asked // every submission that was ever tried
	shots   map[string]int
	resumed int
	used    int // uses of keys that were reconciled
}

// ecosystem is what a submission is made of.
type ecosystem struct{ public ed25519.PublicKey }

// asked is one submission. It is sent again after each crash until its answer
// was seen, with the same idempotency key.
type asked struct {
	key      string // idempotency key; empty: sent by the CLI, which makes its own
	request  client.NewRequest
	id       string // once an answer was seen, or the row was found
	verified bool
	cancel   bool // a person ends it, should it become unknown
}

func newCrash(t *testing.T) *crash {
	t.Helper()
	dir := t.TempDir()
	c := &crash{
		t: t, dir: dir, ws: filepath.Join(dir, "w", ".firmseal"), uses: filepath.Join(dir, "uses"), gun: new(ecosystem),
		shots: map[string]int{},
	}
	c.must("init", filepath.Join(dir, "w"), "--identity", filepath.Join(dir, "identity.txt"), "--second-place", filepath.Join(dir, "place", "checkpoint"))
	ws := []string{"--workspace", c.ws}
	c.must(args(ws, "key", "create", "raw-key", "--type", "ed25519", "--environment", "test", "--product", "gadget", "--format", "raw")...)
	c.must(args(ws, "key", "create", "fit-key", "--type", "p256", "--environment", "test", "--product", "board", "--format", "fit")...)
	policy := filepath.Join(dir, "policy.yaml")
	text := "apiVersion: firmseal.policy/v1\nprofiles:\n"
	for _, p := range [][3]string{{"raw", "gadget", "raw-key"}, {"fit", "board", "fit-key"}} {
		text += fmt.Sprintf("  %s:\n    product: %s\n    environment: test\n    format: %s\n    keys: {image: %s}\n    allow_older_versions: true\n", p[0], p[1], p[0], p[2])
	}
	if err := os.WriteFile(policy, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.must(args(ws, "policy", "apply", policy)...)
	var tok client.CreatedToken
	c.read(&tok, args(ws, "token", "create", "crash", "--scope", "request:write", "--scope", "request:decide", "--scope", "request:read", "--scope", "release:read",
		"--scope", "audit:read", "--scope", "upload:write")...)
	c.token = tok.Secret
	var k client.Key
	c.read(&k, args(ws, "key", "show", "raw-key")...)
	pub, err := x509.ParsePKIXPublicKey(k.SPKI)
	if err != nil {
		t.Fatal(err)
	}
	c.gun.public = pub.(ed25519.PublicKey)
	trust := filepath.Join(dir, "trustroot.json")
	c.must(args(ws, "trust", "export", "--out", trust)...)
	b, err := os.ReadFile(trust)
	if err != nil {
		t.Fatal(err)
	}
	if c.root, err = firmseal.ParseTrustRoot(b); err != nil {
		t.Fatal(err)
	}
	return c
}

// must runs a command in this process.
func (c *crash) must(args ...string) []byte {
	c.t.Helper()
	var out, errs bytes.Buffer
	if code := Main(append([]string{"-o", "json"}, args...), nil, &out, &errs, hooks{}); code != 0 {
		c.t.Fatalf("firmseal %s: exit %d\n%s%s", strings.Join(args, " "), code, out.Bytes(), errs.Bytes())
	}
	return out.Bytes()
}

func (c *crash) read(into any, args ...string) {
	c.t.Helper()
	if err := json.Unmarshal(c.must(args...), into); err != nil {
		c.t.Fatal(err)
	}
}

// life is one process of the command.
type life struct {
	cmd    *exec.Cmd
	client *client.Client // of a server
	errs   bytes.Buffer
	done   chan struct{} // closed when the process is gone
	state  *os.ProcessState
}

func (c *crash) armFile() string { return filepath.Join(c.dir, "arm") }

// arm says where the running process, or the next one, is to die.
func (c *crash) arm(label string, nth int) {
	c.t.Helper()
	tmp := c.armFile() + ".new"
	if err := os.WriteFile(tmp, fmt.Appendf(nil, "%s %d", label, nth), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(tmp, c.armFile()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *crash) disarm() {
	if err := os.Remove(c.armFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.t.Fatal(err)
	}
}

// start runs the command in a process of its own.
func (c *crash) start(args ...string) (*life, io.Reader) {
	c.t.Helper()
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	l := &life{cmd: exec.Command(self), done: make(chan struct{})}
	l.cmd.Args = append([]string{"firmseal-crash", "-o", "json", "--workspace", c.ws}, args...)
	l.cmd.Env = append(os.Environ(), crashUses+"="+c.uses, crashArm+"="+c.armFile(), "FIRMSEAL_SERVER=", "FIRMSEAL_TOKEN=")
	l.cmd.Stderr = &l.errs
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := l.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	return l, out
}

// wait collects the process. The pipe was read to its end.
func (l *life) wait() {
	l.cmd.Wait() //nolint:errcheck // the state tells
	l.state = l.cmd.ProcessState
	close(l.done)
}

// serve starts a server and waits for its address; nil when it died before.
func (c *crash) serve() *life {
	c.t.Helper()
	l, out := c.start("serve", "--listen", "127.0.0.1:0")
	var hello struct {
		URL string `json:"url"`
	}
	r := bufio.NewReader(out)
	err := json.NewDecoder(r).Decode(&hello)
	go func() {
		io.Copy(io.Discard, out) //nolint:errcheck // ends with the process
		l.wait()
	}()
	if err != nil {
		<-l.done
		return l
	}
	l.client = &client.Client{BaseURL: hello.URL, Token: c.token}
	return l
}

func (l *life) killed() bool {
	ws, ok := l.state.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL
}

// end waits for the process to be dead of SIGKILL.
func (c *crash) end(l *life, what string) {
	c.t.Helper()
	select {
	case <-l.done:
	case <-time.After(30 * time.Second):
		l.cmd.Process.Kill() //nolint:errcheck // the test fails
		<-l.done
		c.t.Fatalf("%s: the process did not come there\n%s", what, l.errs.Bytes())
	}
	if !l.killed() {
		c.t.Fatalf("%s: the process ended by itself: %s\n%s", what, l.state, l.errs.Bytes())
	}
	c.disarm()
}

// next makes a submission that was never made before.
func (c *crash) next(profile string) *asked {
	c.version++
	counter := uint64(1)
	v := fmt.Sprintf("1.0.%d", c.version)
	content := fmt.Appendf(nil, "firmware %d", c.version)
	if profile == "fit" {
		content = fitdemo.FIT(v)
	}
	a := &asked{key: fmt.Sprintf("crash-%d", c.version), cancel: c.version%10 == 0, request: client.NewRequest{
		Profile: profile, Version: v, SecurityCounter: &counter, HardwareIDs: []string{"board-a"},
		BuildID: fmt.Sprintf("build-%d", c.version), Input: client.Input{Name: "image.bin", Content: content},
	}}
	c.asked = append(c.asked, a)
	return a
}

// send submits concurrently and waits for all answers; what the server's death
// cut off stays without one.
func (c *crash) send(l *life, wait time.Duration, list ...*asked) {
	var wg sync.WaitGroup
	for _, a := range list {
		wg.Go(func() {
			r, err := l.client.Sign(context.Background(), a.request, a.key, wait)
			if err == nil {
				a.id = r.ID
			}
		})
	}
	wg.Wait()
}

// recover lets a living server finish all that was ever asked of it: what has no
// answer is sent again, what is unknown is resumed or cancelled by a person.
// Afterwards every request rests, and what was released is verified offline.
func (c *crash) recover(l *life, what string) {
	c.t.Helper()
	ctx := c.t.Context()
	for _, a := range c.asked {
		if a.verified {
			continue
		}
		if a.id == "" {
			before := c.count(`SELECT COUNT(*) FROM signing_idempotency WHERE key = $1`, a.key)
			r, err := l.client.Sign(ctx, a.request, a.key, 0)
			if err != nil {
				c.t.Fatalf("%s: sending %s again: %v", what, a.key, err)
			}
			a.id = r.ID
			if n := c.count(`SELECT COUNT(*) FROM signing_idempotency WHERE key = $1`, a.key); n != 1 {
				c.t.Fatalf("%s: submission %s has %d requests, it had %d", what, a.key, n, before)
			}
		}
	}
	for _, a := range c.asked {
		if a.verified {
			continue
		}
		for tries := 0; ; tries++ {
			r, err := l.client.Request(ctx, a.id, 30*time.Second)
			if err != nil {
				c.t.Fatalf("%s: request %s was lost: %v", what, a.id, err)
			}
			switch {
			case r.State == string(signing.Unknown) && tries < 2:
				c.resumed++
				call := l.client.Resume
				if a.cancel {
					call = l.client.Cancel
				}
				if _, err := call(ctx, a.id); err != nil {
					c.t.Fatalf("%s: a person's decision on %s: %v", what, a.id, err)
				}
				continue
			case r.State == string(signing.Failed) && a.cancel && r.Problem.Code == "REQUEST.CANCELLED":
				a.verified = true
			case r.State == string(signing.Released):
				c.verify(l, a, what)
				a.verified = true
			default:
				c.t.Fatalf("%s: request %s is %s: %+v", what, a.id, r.State, r.Problem)
			}
			break
		}
	}
	check, err := l.client.CheckLog(ctx)
	if err != nil || !check.OK {
		c.t.Fatalf("%s: the log does not verify from index 0: %v", what, err)
	}
}

// verify checks a release as a device would, with the trust root that was
// exported at the beginning and nothing else.
func (c *crash) verify(l *life, a *asked, what string) {
	c.t.Helper()
	rel, err := l.client.Release(c.t.Context(), a.id)
	if err != nil {
		c.t.Fatalf("%s: request %s is released and has no release: %v", what, a.id, err)
	}
	get := func(p client.Part) []byte {
		var b bytes.Buffer
		if err := l.client.Download(c.t.Context(), rel.ID, p, &b); err != nil {
			c.t.Fatalf("%s: %s of %s: %v", what, p, a.id, err)
		}
		return b.Bytes()
	}
	in := firmseal.VerifyInput{
		TrustRoot: c.root, Seal: get(client.PartSeal), Proof: get(client.PartProof), Image: bytes.NewReader(a.request.Input.Content),
		Product: rel.Product, HardwareID: "board-a", UnsafeTest: true,
	}
	if a.request.Profile == "raw" {
		in.Signature = get(client.PartSignature)
		if !ed25519.Verify(c.gun.public, a.request.Input.Content, in.Signature) {
			c.t.Fatalf("%s: the signature of %s does not verify", what, a.id)
		}
	} else {
		in.Image = bytes.NewReader(get(client.PartImage))
	}
	v, err := firmseal.Verify(c.t.Context(), in)
	if err != nil {
		c.t.Fatalf("%s: the release of %s does not verify offline: %v", what, a.id, err)
	}
	if v.Statement.Release.Version != a.request.Version || v.Statement.Release.Request.ID != a.id {
		c.t.Fatalf("%s: the release of %s is of %s", what, a.id, v.Statement.Release.Version)
	}
}

func (c *crash) count(q string, args ...any) int {
	c.t.Helper()
	var n int
	if err := c.db.QueryRow(q, args...).Scan(&n); err != nil {
		c.t.Fatal(err)
	}
	return n
}

// open is the test's own look into the database, while no server lives or
// beside one.
func (c *crash) open() {
	c.t.Helper()
	d, err := sql.Open("sqlite", "file:"+filepath.Join(c.ws, "firmseal.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		c.t.Fatal(err)
	}
	d.SetMaxOpenConns(1)
	c.db = d
	c.t.Cleanup(func() { d.Close() }) //nolint:errcheck // a test's own connection
}

// reconcile holds the keys' own account of their uses, the leaves and the
// releases against each other, as a crash left them.
func (c *crash) reconcile(what string) {
	c.t.Helper()
	bad := func(format string, args ...any) {
		c.t.Helper()
		c.t.Fatalf("%s: "+format, append([]any{what}, args...)...)
	}

	// The log, from index 0.
	type logged struct {
		index int64
		firmseal.Leaf
	}
	leaves := map[string]logged{} // by RFC 6962 hash
	sealed := map[string]int{}
	attempts := map[string]int{} // by request and key
	decided := map[string]bool{} // a person let the request go on after its last attempt
	var hashes []tlog.Hash
	rows, err := c.db.Query(`SELECT idx, data FROM log_leaf ORDER BY idx`)
	if err != nil {
		bad("%v", err)
	}
	defer rows.Close()
	read := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(at))
		for i, n := range at {
			out[i] = hashes[n]
		}
		return out, nil
	})
	for n := int64(0); rows.Next(); n++ {
		var idx int64
		var data []byte
		if err := rows.Scan(&idx, &data); err != nil {
			bad("%v", err)
		}
		if idx != n {
			bad("leaf %d is missing", n)
		}
		more, err := tlog.StoredHashes(n, data, read)
		if err != nil {
			bad("%v", err)
		}
		hashes = append(hashes, more...)
		leaf, err := firmseal.ParseLeaf(data)
		if err != nil {
			bad("leaf %d: %v", n, err)
		}
		h := tlog.RecordHash(data)
		leaves[hex.EncodeToString(h[:])] = logged{n, leaf}
		switch {
		case leaf.Type == firmseal.LeafOutcome && leaf.Result == "sealed":
			sealed[leaf.Request]++
			attempts[leaf.Request+leaf.SealKey]++
		case leaf.Type == firmseal.LeafAttempt:
			// These keys always answer, so that only a crash makes another
			// attempt, and only a person may.
			if attempts[leaf.Request+leaf.Key] > 0 && (!leaf.Resumed || !decided[leaf.Request]) {
				bad("attempt %d of request %s was made without a person", leaf.Attempt, leaf.Request)
			}
			attempts[leaf.Request+leaf.Key]++
			decided[leaf.Request] = false
		case leaf.Type == firmseal.LeafResume:
			decided[leaf.Request] = true
		}
	}
	if err := rows.Err(); err != nil {
		bad("%v", err)
	}
	for id, n := range sealed {
		if n != 1 {
			bad("request %s has %d sealed outcomes", id, n)
		}
	}

	// The second place has a prefix of it.
	text, err := placed.FilePlace(filepath.Join(c.dir, "place", "checkpoint")).Load(c.t.Context())
	if err != nil {
		bad("the second place: %v", err)
	}
	lines := strings.Split(string(text), "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size > int64(len(leaves)) {
		bad("the second place says %d leaves, the database has %d: %v", size, len(leaves), err)
	}
	root, err := tlog.TreeHash(size, read)
	if err != nil || root.String() != lines[2] {
		bad("at %d leaves the database makes root %s, the second place says %s: %v", size, root, lines[2], err)
	}

	// Each use of a key was logged before.
	f, err := os.ReadFile(c.uses)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		bad("%v", err)
	}
	uses := bytes.Split(f, []byte("\n"))
	once := map[string]bool{}
	bySeal := map[string]int{}
	firmware := map[string]int{}
	c.used = 0
	for i, line := range uses {
		if len(line) == 0 {
			continue
		}
		var u keys.Use
		if err := json.Unmarshal(line, &u); err != nil {
			// A kill in the middle of the write: record had not returned, so the
			// key was not used. A whole line is never unreadable.
			if bytes.HasSuffix(line, []byte("}")) {
				bad("use %q: %v", line, err)
			}
			continue
		}
		if i == len(uses)-1 {
			continue // without its end of line nothing was done
		}
		c.used++
		l, ok := leaves[u.Leaf]
		switch {
		case !ok:
			bad("key %s was used for request %s and the log does not have it", u.Name, u.Request)
		case l.index >= size:
			bad("key %s was used by leaf %d, which the second place has not seen: it has %d", u.Name, l.index, size)
		case l.Request != u.Request:
			bad("key %s was used for request %s by a leaf of %s", u.Name, u.Request, l.Request)
		case u.Purpose == keys.Seal:
			first, later := l.Type == firmseal.LeafOutcome && l.SealKey == u.Key, l.Type == firmseal.LeafAttempt && l.Key == u.Key
			if !first && !later || l.Attempt != u.Attempt {
				bad("the seal key was used by a %s, attempt %d", l.Type, l.Attempt)
			}
			if once[u.Leaf+u.Slot] {
				bad("the seal key was used twice by attempt %d of request %s", u.Attempt, u.Request)
			}
			once[u.Leaf+u.Slot] = true
			if bySeal[u.Request]++; bySeal[u.Request] > attempts[u.Request+u.Key] {
				bad("the seal key was used %d times for request %s, which has %d attempts on it", bySeal[u.Request], u.Request, attempts[u.Request+u.Key])
			}
		default:
			if l.Type != firmseal.LeafAttempt || l.Key != u.Key || l.Attempt != u.Attempt {
				bad("key %s was used by a %s of key %s, attempt %d", u.Name, l.Type, l.Key, l.Attempt)
			}
			if id := u.Leaf + u.Slot; once[id] {
				bad("key %s was used twice by attempt %d of request %s", u.Name, u.Attempt, u.Request)
			} else {
				once[id] = true
			}
			firmware[u.Request]++
		}
	}

	// No release twice, none without its request, none without the uses.
	rel, err := c.db.Query(`SELECT r.request, COUNT(*), MAX(CASE WHEN q.state = 'released' AND q.release = r.id THEN 1 ELSE 0 END)
		FROM release r LEFT JOIN signing_request q ON q.id = r.request GROUP BY r.request`)
	if err != nil {
		bad("%v", err)
	}
	defer rel.Close()
	for rel.Next() {
		var id string
		var n, whole int
		if err := rel.Scan(&id, &n, &whole); err != nil {
			bad("%v", err)
		}
		if n != 1 || whole != 1 || sealed[id] != 1 || bySeal[id] == 0 || firmware[id] == 0 {
			bad("request %s has %d releases, its row agrees: %d, %d outcomes, %d uses of the seal key and %d of its own", id, n, whole, sealed[id], bySeal[id], firmware[id])
		}
	}
	if err := rel.Err(); err != nil {
		bad("%v", err)
	}
	rel.Close() //nolint:errcheck // read to its end
	if n := c.count(`SELECT COUNT(*) FROM signing_request WHERE state = 'released' AND release NOT IN (SELECT id FROM release)`); n > 0 {
		bad("%d requests say that they are released and have no release", n)
	}
	// Rows and leaves are of one transaction.
	if n := c.count(`SELECT COUNT(*) FROM signing_attempt a WHERE NOT EXISTS (SELECT 1 FROM log_leaf l WHERE l.id = a.leaf AND l.request = a.request)`); n > 0 {
		bad("%d attempts have no leaf", n)
	}
	if a, l := c.count(`SELECT COUNT(*) FROM signing_attempt`), sum(attempts); a != l {
		bad("there are %d attempts and %d leaves of attempts", a, l)
	}
	if q, l := c.count(`SELECT COUNT(*) FROM signing_request`), c.count(`SELECT COUNT(*) FROM log_leaf WHERE type = 'sign.request'`); q != l {
		bad("there are %d requests and %d leaves of requests", q, l)
	}
}

func sum(m map[string]int) int {
	n := 0
	for _, v := range m {
		n += v
	}
	return n
}

// plan says how often the process is killed at each step, at random instants
// while it signs, and while it recovers.
type plan struct{ label, random, recovering int }

func crashPlan(t *testing.T) plan {
	switch size := os.Getenv("FIRMSEAL_CRASH"); size {
	case "full":
		return plan{9, 50, 20} // at 18 steps: 212, and 20 more while it recovers
	case "ci":
		return plan{3, 10, 4}
	case "":
		if testing.Short() {
			t.Skip("kills processes for seconds; make crash runs all of it")
		}
		return plan{1, 2, 1}
	default:
		t.Fatalf("FIRMSEAL_CRASH=%s: it is ci or full", size)
		return plan{}
	}
}

// A crash at any instant loses no accepted request, doubles no signature and
// leaves no use of a key without its entry in the log.
//
// A killed process loses what it held in memory and nothing that it wrote; that
// writes are synced before anybody relies on them is for the tests of packages
// db, tlog and disk.
func TestCrash(t *testing.T) {
	t.Parallel()
	p := crashPlan(t)
	c := newCrash(t)
	c.open()
	r := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	var shots []string
	for _, label := range signing.Steps() {
		for range p.label {
			shots = append(shots, label)
		}
	}
	for range p.random {
		shots = append(shots, "random")
	}
	for range p.recovering {
		shots = append(shots, "recovering")
	}
	r.Shuffle(len(shots), func(i, j int) { shots[i], shots[j] = shots[j], shots[i] })
	began := time.Now()
	for i, shot := range shots {
		what := fmt.Sprintf("kill %d, at %s", i+1, shot)
		switch {
		case shot == "recovering":
			c.whileRecovering(r, what)
		case i%5 == 4 && shot != "random":
			c.commandLine(shot, what)
		default:
			c.whileSigning(r, shot, what)
		}
		c.shots[shot]++
		c.reconcile(what)
	}
	l := c.serve()
	if l.client == nil {
		t.Fatalf("the last server did not start:\n%s", l.errs.Bytes())
	}
	c.recover(l, "after the last kill")
	l.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // its end tells
	<-l.done
	if code := l.state.ExitCode(); code != 0 && code != 130 {
		t.Fatalf("the last server ended with %d:\n%s", code, l.errs.Bytes())
	}
	c.reconcile("after the last life")
	c.counted(len(shots))
	released := c.count(`SELECT COUNT(*) FROM release`)
	t.Logf("%d kills (%d at %d steps, %d at random instants, %d while recovering) in %s: %d requests, %d released, %d times a person decided, "+
		"%d uses of keys, each in the log before it; no request lost, none doubled; %d leaves verified from index 0",
		len(shots), len(shots)-p.random-p.recovering, len(signing.Steps()), p.random, p.recovering, time.Since(began).Round(time.Second),
		len(c.asked), released, c.resumed, c.used, c.count(`SELECT COUNT(*) FROM log_leaf`))
}

// counted makes sure that the test did what it says.
func (c *crash) counted(kills int) {
	c.t.Helper()
	if n := sum(c.shots); n != kills {
		c.t.Errorf("%d kills were made, not %d", n, kills)
	}
	for _, label := range signing.Steps() {
		if c.shots[label] == 0 {
			c.t.Errorf("nothing was killed at %s", label)
		}
	}
	requests, released, cancelled := len(c.asked), 0, 0
	for _, a := range c.asked {
		if !a.verified {
			c.t.Errorf("request %s was never verified", a.id)
		}
	}
	released = c.count(`SELECT COUNT(*) FROM release`)
	cancelled = c.count(`SELECT COUNT(*) FROM signing_request WHERE state = 'failed'`)
	if released+cancelled != requests || c.count(`SELECT COUNT(*) FROM signing_request`) != requests {
		c.t.Errorf("%d requests were made, the database has %d: %d released, %d cancelled", requests,
			c.count(`SELECT COUNT(*) FROM signing_request`), released, cancelled)
	}
	if c.used < 2*released {
		c.t.Errorf("%d uses of keys are too few for %d releases: the keys' own account is not whole", c.used, released)
	}
}

// whileSigning lets a server recover, and kills it among three requests.
func (c *crash) whileSigning(r *rand.Rand, shot, what string) {
	c.t.Helper()
	l := c.serve()
	if l.client == nil {
		c.t.Fatalf("%s: the server did not start again:\n%s", what, l.errs.Bytes())
	}
	c.recover(l, what)
	list := []*asked{c.next("raw"), c.next("fit"), c.next("raw")}
	if shot == "random" {
		// Three requests take some tens of milliseconds.
		after := time.Duration(r.Int64N(int64(60 * time.Millisecond)))
		go func() {
			time.Sleep(after)    // the random instant
			l.cmd.Process.Kill() //nolint:errcheck // end sees it
		}()
	} else {
		c.arm(shot, 1+r.IntN(3))
	}
	c.send(l, 20*time.Second, list...)
	c.end(l, what)
}

// whileRecovering kills a server that has the leavings of the last one to do.
func (c *crash) whileRecovering(r *rand.Rand, what string) {
	c.t.Helper()
	l := c.serve()
	if l.client == nil {
		c.t.Fatalf("%s: the server did not start again:\n%s", what, l.errs.Bytes())
	}
	c.recover(l, what)
	list := []*asked{c.next("raw"), c.next("fit"), c.next("raw")}
	labels := []string{"submit.done", "intent.wait", "redeem.commit", "outcome.wait"}
	c.arm(labels[r.IntN(len(labels))], 1+r.IntN(3))
	c.send(l, 20*time.Second, list...)
	c.end(l, what)
	c.reconcile(what + ", before")
	l, out := c.start("serve", "--listen", "127.0.0.1:0")
	go func() {
		io.Copy(io.Discard, out) //nolint:errcheck // ends with the process
		l.wait()
	}()
	time.Sleep(time.Duration(r.Int64N(int64(150 * time.Millisecond)))) // the random instant
	l.cmd.Process.Kill()                                               //nolint:errcheck // end sees it
	c.end(l, what)
}

// commandLine kills `firmseal sign` over the workspace, which is client and
// server in one process.
func (c *crash) commandLine(shot, what string) {
	c.t.Helper()
	l := c.serve()
	if l.client == nil {
		c.t.Fatalf("%s: the server did not start again:\n%s", what, l.errs.Bytes())
	}
	c.recover(l, what)
	l.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // its end tells
	<-l.done
	a := c.next("raw")
	file := filepath.Join(c.dir, "image.bin")
	if err := os.WriteFile(file, a.request.Input.Content, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.arm(shot, 1)
	l, out := c.start("sign", file, "--profile", "raw", "--version", a.request.Version, "--security-counter", "1",
		"--hardware-id", "board-a", "--build-id", a.request.BuildID, "--idempotency-key", a.key)
	io.Copy(io.Discard, out) //nolint:errcheck // ends with the process
	l.wait()
	c.end(l, what)
	// The person who typed it comes back as another: the answer is in the list,
	// or the request was never recorded.
	err := c.db.QueryRow(`SELECT id FROM signing_request WHERE build_id = $1`, a.request.BuildID).Scan(&a.id)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
		c.asked = slices.DeleteFunc(c.asked, func(b *asked) bool { return b == a })
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// signHere signs in this process and gives the code of a refusal and how often
// a key was used.
func (c *crash) signHere(version string) (code string, uses int) {
	c.t.Helper()
	file := filepath.Join(c.dir, "here.bin")
	if err := os.WriteFile(file, []byte(version), 0o600); err != nil {
		c.t.Fatal(err)
	}
	var n atomic.Int64
	h := hooks{record: func(context.Context, keys.Use) error { n.Add(1); return nil }}
	var out, errs bytes.Buffer
	exit := Main([]string{
		"-o", "json", "--workspace", c.ws, "sign", file, "--profile", "raw", "--version", version, "--security-counter", "1", "--hardware-id", "board-a",
	}, nil, &out, &errs, h)
	if exit == 0 {
		return "", int(n.Load())
	}
	var p client.Problem
	if err := json.Unmarshal(out.Bytes(), &p); err != nil {
		c.t.Fatalf("%v\n%s%s", err, out.Bytes(), errs.Bytes())
	}
	return p.Code, int(n.Load())
}

func (c *crash) wantSign(version, code string) {
	c.t.Helper()
	got, uses := c.signHere(version)
	if got != code || (uses == 0) != (code != "") {
		c.t.Fatalf("signing %s ended with %q and %d uses of keys, want %q", version, got, uses, code)
	}
}

// Without the second place nobody knows whether the database is the newest:
// nothing is signed before a person says that it is.
func TestLostSecondPlace(t *testing.T) {
	t.Parallel()
	c := newCrash(t)
	c.wantSign("1.0.0", "")
	if err := os.Remove(filepath.Join(c.dir, "place", "checkpoint")); err != nil {
		t.Fatal(err)
	}
	c.wantSign("1.0.1", "LOG.SECOND_PLACE_MISSING")
	c.wantSign("1.0.1", "LOG.SECOND_PLACE_MISSING")
	c.must("--workspace", c.ws, "log", "recover", "--yes")
	c.wantSign("1.0.1", "")
	c.must("--workspace", c.ws, "log", "verify")
	c.open()
	if n := c.count(`SELECT COUNT(*) FROM log_leaf WHERE type = 'log.recover'`); n != 1 {
		t.Errorf("the log tells %d times of the recovery", n)
	}
}

// A database that came back from a backup signs nothing, and cannot be talked
// into it.
func TestRestoredDatabase(t *testing.T) {
	t.Parallel()
	c := newCrash(t)
	c.wantSign("1.0.0", "")
	file := filepath.Join(c.ws, "firmseal.db")
	backup, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if st, err := os.Stat(file + suffix); err == nil && st.Size() > 0 {
			t.Fatalf("%s%s was left by the process before; the backup is not whole", file, suffix)
		}
	}
	c.wantSign("1.0.1", "")
	newest, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	c.wantSign("1.0.2", "LOG.BEHIND")
	var out bytes.Buffer
	if code := Main([]string{"--workspace", c.ws, "log", "recover", "--yes"}, nil, &out, &out, hooks{}); code == 0 {
		t.Errorf("log recover took an older database for the newest:\n%s", out.Bytes())
	}
	c.wantSign("1.0.2", "LOG.BEHIND")
	// The newest database makes all good.
	if err := os.WriteFile(file, newest, 0o600); err != nil {
		t.Fatal(err)
	}
	c.wantSign("1.0.2", "")
	c.must("--workspace", c.ws, "log", "verify")
}
