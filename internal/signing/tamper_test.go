package signing_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/servertest"
	"github.com/firmseal/firmseal/internal/signing"
)

// edit is one thing that a hand does to the database.
type edit struct {
	name string
	// do makes the edit behind the server's back and gives the number of rows
	// that it changed: none where there is nothing to change yet.
	do func(b *bench, id string) (int64, error)
	// until is the last step at which the edit must still keep the request from
	// being released; behind it, what it touches is no longer asked.
	until string
	// unused is the last step at which it must keep the firmware key unused.
	unused string
	// codes are what the refusal may say; quiet: a request whose row says that
	// it rests is left alone, and nothing is said.
	codes []string
	quiet bool
	// crash says that the edit matters also to a process that starts anew.
	crash bool
	// person: after a restart, a person's resume makes it good.
	person bool
}

// order gives the place of a step.
func order(label string) int { return slices.Index(signing.Steps(), label) }

// do makes an edit of one statement, in which $1 is the request, and counts a
// row as changed only where the statement changes it.
func do(query string) func(*bench, string) (int64, error) {
	return func(b *bench, id string) (int64, error) {
		var args []any
		if strings.Contains(query, "$1") {
			args = append(args, id)
		}
		r, err := b.sql.Exec(query, args...)
		if err != nil {
			return 0, err
		}
		return r.RowsAffected()
	}
}

const lastAttempt = ` request = $1 AND n = (SELECT MAX(n) FROM signing_attempt WHERE request = $1)`

// ofRequest are the edits of what belongs to one request.
func ofRequest() []edit {
	var out []edit
	add := func(e edit) {
		if e.until == "" {
			e.until = "release.commit"
		}
		if e.unused == "" {
			e.unused = "key.use"
		}
		if e.codes == nil {
			e.codes = []string{"STATE.ALTERED"}
		}
		out = append(out, e)
	}
	set := func(column, value, where string) {
		add(edit{name: "request " + column, crash: true, do: do(`UPDATE signing_request SET ` + column + ` = ` + value + ` WHERE id = $1 AND ` + where)})
	}
	rewrite := func(b *bench, id string, also string) (int64, error) {
		var doc []byte
		if err := b.sql.QueryRow(`SELECT document FROM signing_request WHERE id = $1`, id).Scan(&doc); err != nil {
			return 0, err
		}
		other := bytes.Replace(doc, []byte(`"version":"1.0.`), []byte(`"version":"7.0.`), 1)
		if bytes.Equal(doc, other) {
			return 0, fmt.Errorf("the document has no version to change: %s", doc)
		}
		digest := sha256.Sum256(other)
		q := `UPDATE signing_request SET document = $2 WHERE id = $1`
		args := []any{id, other}
		if also != "" {
			q = `UPDATE signing_request SET document = $2, digest = $3` + also + ` WHERE id = $1`
			args = append(args, digest[:])
		}
		r, err := b.sql.Exec(q, args...)
		if err != nil {
			return 0, err
		}
		if also != "" {
			if _, err := b.sql.Exec(`UPDATE signing_ticket SET digest = $2 WHERE request = $1`, id, digest[:]); err != nil {
				return 0, err
			}
		}
		return r.RowsAffected()
	}
	add(edit{name: "request document", crash: true, do: func(b *bench, id string) (int64, error) { return rewrite(b, id, "") }})
	// More than one edit, to see that what fits together is no better.
	add(edit{name: "request document, its columns and ticket", crash: true, do: func(b *bench, id string) (int64, error) {
		return rewrite(b, id, `, version = replace(version, '1.0.', '7.0.')`)
	}})
	set("digest", "document", "digest <> document")
	for _, c := range []string{"project", "actor", "product", "environment", "version", "policy", "build_id"} {
		set(c, "'x'", "true")
	}
	set("leaf", "'nonsense'", "true")
	out[len(out)-1].name = "request leaf to none"
	set("leaf", "(SELECT leaf FROM signing_policy ORDER BY seq LIMIT 1)", "true")
	set("session", "document", "session IS NULL")
	set("receipt", `'{"format":"raw","size":1}'`, "receipt <> ''")
	set("output", "'00'", "output <> ''")
	set("output_size", "output_size + 1", "output <> ''")
	set("statement", "document", "statement IS NOT NULL")
	set("outcome", "leaf", "outcome <> ''")
	set("release", "'x'", "true")
	out[len(out)-1].crash = false // it is written by the release and read by people only
	for _, st := range []string{"queued", "signing", "sealing", "unknown", "failed", "denied", "released", "paused"} {
		add(edit{
			name: "request state to " + st, crash: true, do: do(`UPDATE signing_request SET state = '` + st + `' WHERE id = $1 AND state <> '` + st + `'`),
			quiet: signing.State(st).Rests(), person: st == "unknown",
		})
	}
	add(edit{name: "request removed", crash: true, quiet: true, do: do(`DELETE FROM signing_request WHERE id = $1`)})

	for _, c := range []struct{ name, query string }{
		{"digest", `UPDATE signing_ticket SET digest = (SELECT document FROM signing_request WHERE id = $1) WHERE request = $1`},
		{"policy", `UPDATE signing_ticket SET policy = 'x' WHERE request = $1`},
		{"redeemed back to 0", `UPDATE signing_ticket SET redeemed = 0 WHERE request = $1 AND redeemed <> 0`},
		{"redeemed before its time", `UPDATE signing_ticket SET redeemed = 1 WHERE request = $1 AND redeemed = 0`},
		{"removed", `DELETE FROM signing_ticket WHERE request = $1`},
	} {
		add(edit{name: "ticket " + c.name, crash: c.name != "redeemed before its time", until: "seal.use", do: do(c.query)})
	}

	add(edit{name: "stored image", until: "redeem.commit", unused: "redeem.commit", codes: []string{"BLOB.CORRUPT", "BLOB.ALTERED", "STATE.ALTERED"}, do: func(b *bench, id string) (int64, error) {
		var doc []byte
		if err := b.sql.QueryRow(`SELECT document FROM signing_request WHERE id = $1`, id).Scan(&doc); err != nil {
			return 0, err
		}
		var r struct{ Input struct{ SHA256 string } }
		if err := json.Unmarshal(doc, &r); err != nil {
			return 0, err
		}
		digest, err := hex.DecodeString(r.Input.SHA256)
		if err != nil {
			return 0, err
		}
		res, err := b.sql.Exec(`UPDATE blob_small SET data = $1 WHERE digest = $2`, []byte("another image"), digest)
		if err != nil {
			return 0, err
		}
		return res.RowsAffected()
	}})
	for _, st := range []string{"signed", "failed", "unknown", "discarded"} {
		add(edit{
			name: "attempt state to " + st, crash: true, person: st == "failed" || st == "unknown",
			do: do(`UPDATE signing_attempt SET state = '` + st + `' WHERE state <> '` + st + `' AND` + lastAttempt),
		})
	}
	for _, c := range []struct {
		column, value string
		crash         bool
	}{
		{"inputs", `'[{"slot":"image","alg":"ed25519","kind":"message","sha256":"00"}]'`, true},
		{"key_id", "'x'", true},
		{"leaf", "'x'", true},
		{"purpose", "'log'", true},
		{"resumed", "1 - resumed", true},
		{"round", "round + 1", false},
		{"opened", "opened + 1", false},
	} {
		add(edit{name: "attempt " + c.column, crash: c.crash, do: do(`UPDATE signing_attempt SET ` + c.column + ` = ` + c.value + ` WHERE` + lastAttempt)})
	}
	add(edit{name: "attempt removed", crash: true, do: do(`DELETE FROM signing_attempt WHERE` + lastAttempt)})
	for _, st := range []string{"open", "signed", "unknown"} {
		add(edit{name: "attempt inserted as " + st, crash: true, do: do(`INSERT INTO signing_attempt(request, n, purpose, round, key_id, inputs, leaf, state, resumed, opened, closed, code)
			SELECT id, (SELECT COALESCE(MAX(n), 0) + 1 FROM signing_attempt WHERE request = $1), 'firmware', 1, 'x', '[]', leaf, '` + st + `', 0, 1, 0, ''
			FROM signing_request WHERE id = $1`)})
	}
	return out
}

// ofWorkspace are the edits of what all requests share. Each has a workspace of
// its own.
func ofWorkspace() []edit {
	var out []edit
	for _, c := range []struct{ column, value string }{
		{"environment", "'production'"},
		{"product", "'other'"},
		{"format", "'fit'"},
		{"purpose", "'seal'"},
		{"spki", "(SELECT spki FROM signing_key WHERE name = 'other')"},
		{"uri", "(SELECT uri FROM signing_key WHERE name = 'other')"},
		{"type", "'p256'"},
		{"project", "'x'"},
		{"created", "created + 1"},
	} {
		out = append(out, edit{
			name: "key " + c.column, until: "key.use", unused: "key.use", codes: []string{"STATE.ALTERED", "KEY.BINDING", "KEY.NOT_FOUND", "POLICY.KEYS", "POLICY.KEY"},
			do: do(`UPDATE signing_key SET ` + c.column + ` = ` + c.value + ` WHERE name = 'k'`),
		})
	}
	for _, c := range []struct{ column, value string }{
		{"environment", "'production'"},
		{"spki", "(SELECT spki FROM signing_key WHERE name = 'other')"},
		{"uri", "(SELECT uri FROM signing_key WHERE name = 'other')"},
		{"created", "created + 1"},
	} {
		out = append(out, edit{
			name: "seal key " + c.column, until: "seal.use", codes: []string{"STATE.ALTERED", "KEY.NO_SEAL_KEY"},
			do: do(`UPDATE signing_key SET ` + c.column + ` = ` + c.value + ` WHERE name = 'seal-test'`),
		})
	}
	retired := func(name string) func(*bench, string) (int64, error) {
		return func(b *bench, _ string) (int64, error) {
			if _, err := b.Signing.RetireKey(context.Background(), auth.Local("tester"), name); err != nil {
				return 0, err
			}
			return do(`UPDATE signing_key SET retired = 0, retired_by = '' WHERE name = '`+name+`'`)(b, "")
		}
	}
	out = append(out,
		edit{name: "key's retirement taken back", until: "redeem.commit", unused: "redeem.commit", do: retired("k")},
		edit{name: "seal key's retirement taken back", until: "outcome.commit", do: retired("seal-test")},
	)
	apply := func(b *bench) error {
		_, err := b.Signing.ApplyPolicy(context.Background(), auth.Local("tester"), []byte("apiVersion: firmseal.policy/v1\nprofiles:\n"+
			servertest.Profile("p", "gadget", "test", "raw", "k", `require: [nothing_has_this]`)))
		return err
	}
	out = append(out,
		edit{name: "policy document", until: "redeem.commit", unused: "redeem.commit", do: func(b *bench, _ string) (int64, error) {
			r, err := b.sql.Exec(`UPDATE signing_policy SET document = $1`, []byte("apiVersion: firmseal.policy/v1\nprofiles:\n"+
				servertest.Profile("p", "gadget", "test", "raw", "k", "bytes_unseen: true")))
			if err != nil {
				return 0, err
			}
			return r.RowsAffected()
		}},
		edit{name: "policy digest", until: "redeem.commit", unused: "redeem.commit", do: do(`UPDATE signing_policy SET digest = document`)},
		edit{name: "policy leaf", until: "redeem.commit", unused: "redeem.commit", do: do(`UPDATE signing_policy SET leaf = 'x'`)},
		edit{name: "policy removed", until: "redeem.commit", unused: "redeem.commit", do: do(`DELETE FROM signing_policy`)},
		edit{name: "policy inserted", until: "redeem.commit", unused: "redeem.commit", do: do(`INSERT INTO signing_policy(seq, project, digest, document, applied, applied_by, leaf)
			SELECT seq + 1, project, digest, document, applied + 1, applied_by, leaf || 'x' FROM signing_policy`)},
		edit{name: "newer policy removed", until: "redeem.commit", unused: "redeem.commit", do: func(b *bench, _ string) (int64, error) {
			if err := apply(b); err != nil {
				return 0, err
			}
			return do(`DELETE FROM signing_policy WHERE seq = (SELECT MAX(seq) FROM signing_policy)`)(b, "")
		}},
		edit{name: "older policy put above a newer one", until: "redeem.commit", unused: "redeem.commit", do: func(b *bench, _ string) (int64, error) {
			if err := apply(b); err != nil {
				return 0, err
			}
			return do(`UPDATE signing_policy SET seq = seq + 10 WHERE seq = (SELECT MIN(seq) FROM signing_policy)`)(b, "")
		}},
	)
	logCodes := []string{"LOG.ALTERED", "LOG.BEHIND", "LOG.FORKED", "STATE.ALTERED"}
	out = append(out,
		edit{name: "leaf of the request changed", until: "outcome.wait", unused: "intent.wait", codes: logCodes, do: func(b *bench, id string) (int64, error) {
			var data []byte
			var idx int64
			if err := b.sql.QueryRow(`SELECT idx, data FROM log_leaf WHERE request = $1 ORDER BY idx LIMIT 1`, id).Scan(&idx, &data); err != nil {
				return 0, err
			}
			r, err := b.sql.Exec(`UPDATE log_leaf SET data = $1 WHERE idx = $2`, bytes.Replace(data, []byte(`"allow"`), []byte(`"a11ow"`), 1), idx)
			if err != nil {
				return 0, err
			}
			return r.RowsAffected()
		}},
		edit{name: "leaf of the request removed", until: "outcome.wait", unused: "intent.wait", codes: logCodes, do: do(
			`DELETE FROM log_leaf WHERE idx = (SELECT MIN(idx) FROM log_leaf WHERE request = $1)`)},
		edit{name: "leaf of the attempt changed", until: "outcome.wait", unused: "attempt.wait", codes: logCodes, do: func(b *bench, id string) (int64, error) {
			if order(b.label) >= order("attempt.wait") {
				b.sequenced("sign.attempt", id)
			}
			return do(`UPDATE log_leaf SET key = 'x' WHERE type = 'sign.attempt' AND request = $1`)(b, id)
		}},
		edit{name: "leaf of the outcome changed", until: "outcome.wait", codes: logCodes, do: func(b *bench, id string) (int64, error) {
			if order(b.label) >= order("outcome.wait") {
				b.sequenced("sign.outcome", id)
			}
			return do(`UPDATE log_leaf SET request = 'x' WHERE type = 'sign.outcome' AND request = $1`)(b, id)
		}},
		edit{name: "log head size", until: "outcome.commit", unused: "attempt.commit", codes: logCodes, do: do(`UPDATE log_head SET size = size - 1`)},
		edit{name: "log head root", until: "outcome.commit", unused: "attempt.commit", codes: logCodes, do: do(`UPDATE log_head SET root = (SELECT data FROM log_leaf WHERE idx = 0)`)},
	)
	for i := range out {
		if out[i].codes == nil {
			out[i].codes = []string{"STATE.ALTERED"}
		}
	}
	return out
}

// labels are the steps at which the database is edited: not before there is a
// request, and not at submit.done, where its job runs already: what is edited
// there is what is edited at redeem.commit.
func labels() []string {
	return slices.DeleteFunc(signing.Steps(), func(l string) bool {
		return slices.Contains([]string{"submit.commit", "submit.done", "release.done"}, l)
	})
}

// labelsOn are all steps on SQLite. What PostgreSQL does differently shows at a
// step of each kind.
func labelsOn(o servertest.Options) []string {
	switch {
	case testing.Short():
		return []string{"redeem.commit", "key.use", "seal.use"}
	case o.Database != "":
		return []string{"redeem.commit", "attempt.wait", "key.use", "outcome.commit", "outcome.wait", "release.commit"}
	}
	return labels()
}

// applied counts where each edit was made, so that one which never found
// anything to change cannot pass.
type applied struct {
	mu sync.Mutex
	n  map[string]int
}

func (a *applied) add(name string, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n == nil {
		a.n = make(map[string]int)
	}
	a.n[name] += n
}

func (a *applied) check(t *testing.T, edits []edit) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	total := 0
	if len(a.n) == 0 || testing.Short() {
		return // not all were asked for
	}
	for _, e := range edits {
		if a.n[e.name] == 0 {
			t.Errorf("the edit %q found nothing to change at any step", e.name)
		}
		total += a.n[e.name]
	}
	t.Logf("%d edits, made %d times: %d of each at least", len(edits), total, slices.Min(slices.Collect(maps.Values(a.n))))
}

// once edits the database while the signing path stands at label and looks at
// what becomes of the request.
func (e edit) once(b *bench, label string) (made bool) {
	b.t.Helper()
	var rows int64
	var err error
	var used int
	found := make(chan string, 1)
	b.label = label
	came := b.at(label, func() {
		id := b.newest()
		found <- id
		used = b.uses(keys.Firmware, id)
		rows, err = e.do(b, id)
	})
	r := b.next()
	// The answer cannot be had where the request's row is gone or another
	// project's.
	sent, serr := b.Client.Sign(b.t.Context(), r, "", 0)
	id := sent.ID
	if serr != nil {
		select {
		case id = <-found:
		case <-time.After(patience):
			b.t.Fatalf("%s at %s: %v", e.name, label, serr)
		}
	}
	state, code := b.settled(id)
	b.hook.Store(nil)
	what := fmt.Sprintf("%s, at %s", e.name, label)
	if err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
	if !came() {
		b.t.Fatalf("%s: the signing path did not come there; the request is %s %s", what, state, code)
	}
	released := b.released(id)
	if rows == 0 {
		if !released {
			b.t.Errorf("%s: nothing was changed, and the request is %s %s", what, state, code)
		}
		return false
	}
	must := order(label) <= order(e.until)
	switch {
	case !must:
		if released {
			st := b.verify(id, r.Input.Content)
			if st != nil && (st.Release.Version != r.Version || st.Release.SecurityCounter != *r.SecurityCounter || st.Release.Product != "gadget") {
				b.t.Errorf("%s: %s %s was released, %s was asked for", what, st.Release.Product, st.Release.Version, r.Version)
			}
		}
		return true
	case released:
		b.t.Errorf("%s: the request was released", what)
	case e.quiet:
	case !slices.Contains(e.codes, string(code)):
		b.t.Errorf("%s: the request is %s with code %q, want one of %q", what, state, code, e.codes)
	}
	if order(label) <= order(e.unused) && b.uses(keys.Firmware, id) != used {
		b.t.Errorf("%s: the firmware key was used after it", what)
	}
	if order(label) <= order("seal.use") && b.uses(keys.Seal, id) != 0 {
		b.t.Errorf("%s: the seal key was used after it", what)
	}
	return true
}

// A database edited by hand between any two steps yields no signature.
func TestTamperedRequest(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		edits := ofRequest()
		var made applied
		t.Run("steps", func(t *testing.T) {
			for _, label := range labelsOn(o) {
				o := o
				if o.Database != "" {
					o.Database = postgresFor(t)
				}
				t.Run(label, func(t *testing.T) {
					t.Parallel()
					b := newBench(t, o)
					for _, e := range edits {
						if e.once(b, label) {
							made.add(e.name, 1)
						}
					}
				})
			}
		})
		made.check(t, edits)
	})
}

func TestTamperedWorkspace(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		edits := ofWorkspace()
		var made applied
		t.Run("steps", func(t *testing.T) {
			for _, label := range labelsOn(o) {
				t.Run(label, func(t *testing.T) {
					t.Parallel()
					for _, e := range edits {
						if order(label) > order(e.until) && (o.Database != "" || testing.Short()) {
							continue // what is no longer asked
						}
						t.Run(e.name, func(t *testing.T) {
							o := o
							if o.Database != "" {
								o.Database = postgresFor(t)
							}
							b := newBench(t, o)
							b.Key("other", "ed25519", "test", "gadget", "raw")
							if e.once(b, label) {
								made.add(e.name, 1)
							}
						})
					}
				})
			}
		})
		made.check(t, edits)
	})
}

// What was edited between two lives of the server yields no signature either,
// and nothing goes on that only a person may let go on.
func TestTamperedBetweenLives(t *testing.T) {
	t.Parallel()
	edits := slices.DeleteFunc(ofRequest(), func(e edit) bool { return !e.crash })
	var made applied
	t.Run("steps", func(t *testing.T) {
		at := []string{"redeem.commit", "intent.wait", "key.use", "key.used", "outcome.wait", "seal.used"}
		if testing.Short() {
			at = []string{"key.used"}
		}
		for _, label := range at {
			t.Run(label, func(t *testing.T) {
				t.Parallel()
				b := newBench(t, servertest.Options{})
				for _, e := range edits {
					if e.betweenLives(b, label) {
						made.add(e.name, 1)
					}
				}
			})
		}
	})
	made.check(t, edits)
}

func (e edit) betweenLives(b *bench, label string) bool {
	b.t.Helper()
	what := fmt.Sprintf("%s, between two lives at %s", e.name, label)
	crashed := b.crash(label, 1)
	id := b.submit(b.next()).ID
	b.wait(what, crashed)
	b.hook.Store(nil)
	b.Stop()
	defer func() {
		// The next edit finds a workspace without this request.
		if _, err := b.sql.Exec(`UPDATE signing_request SET state = 'failed' WHERE id = $1`, id); err != nil {
			b.t.Fatal(err)
		}
	}()
	rows, err := e.do(b, id)
	if err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
	firmware, seal := b.uses(keys.Firmware, id), b.uses(keys.Seal, id)
	b.Start()
	if rows == 0 {
		b.settled(id)
		return false
	}
	state, code := b.settled(id)
	if b.released(id) {
		b.t.Errorf("%s: the request was released", what)
	}
	if state == string(signing.Unknown) && !e.person {
		// A person is told that a key may have been used, and lets it go on.
		if _, err := b.Client.Resume(b.t.Context(), id); err == nil {
			state, code = b.settled(id)
		}
	}
	if b.released(id) {
		b.t.Errorf("%s: the request was released after a person's resume", what)
	}
	if !e.quiet && !slices.Contains(e.codes, string(code)) && !(e.person && state == string(signing.Unknown)) {
		b.t.Errorf("%s: the request is %s with code %q, want one of %q", what, state, code, e.codes)
	}
	if b.uses(keys.Firmware, id) != firmware || b.uses(keys.Seal, id) != seal {
		b.t.Errorf("%s: a key was used after it", what)
	}
	return true
}
