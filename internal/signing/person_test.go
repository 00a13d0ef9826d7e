package signing_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/servertest"
	"github.com/firmseal/firmseal/internal/signing"
)

// retire retires a key from within a step.
func (b *bench) retire(name string) {
	if _, err := b.Client.RetireKey(context.Background(), name); err != nil {
		b.t.Error(err)
	}
}

// leaf gives the newest leaf of a type of a request.
func (b *bench) leaf(kind, id string) *firmseal.Leaf {
	b.t.Helper()
	b.sequenced(kind, id)
	es, err := b.Client.Leaves(b.t.Context(), client.LeafQuery{Request: id})
	if err != nil {
		b.t.Fatal(err)
	}
	var last *firmseal.Leaf
	for _, e := range es.Items {
		l, err := firmseal.ParseLeaf(e.Leaf)
		if err != nil {
			b.t.Fatal(err)
		}
		if l.Type == kind {
			last = &l
		}
	}
	if last == nil {
		b.t.Fatalf("the log has no %s of request %s", kind, id)
	}
	return last
}

// A person's word does not bring back what was ended meanwhile: a resumed request
// is judged again, and where it is refused it can still be cancelled.
func TestResumeIsJudgedAgain(t *testing.T) {
	t.Parallel()
	later := func(b *bench) {
		b.n += 50
		r := b.sign(b.next())
		wantState(b.t, r, signing.Released, "")
	}
	for _, tt := range []struct {
		name   string
		at     string // where the key no longer answers
		change func(b *bench)
		want   problem.Code
	}{
		{"nothing changed", "key.use", func(*bench) {}, ""},
		{"the key is retired", "key.use", func(b *bench) { b.retire("k") }, problem.KeyRetired},
		{"a later release has a higher counter", "key.use", later, problem.PolicyCounter},
		{"the policy signs with another key", "key.use", func(b *bench) {
			b.Key("k2", "ed25519", "test", "gadget", "raw")
			b.Policy(servertest.Profile("p", "gadget", "test", "raw", "k2"))
		}, problem.PolicyChanged},
		{"nothing changed while it was sealed", "seal.use", func(*bench) {}, ""},
		{"a later release, while it was sealed", "seal.use", later, problem.PolicyCounter},
		{"the seal key is retired", "seal.use", func(b *bench) {
			if _, err := b.Client.CreateKey(b.t.Context(), client.NewKey{Name: "seal-2", Purpose: "seal", Environment: "test", Type: "ed25519"}); err != nil {
				b.t.Fatal(err)
			}
			b.retire("seal-test")
		}, problem.KeyRetired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			servertest.Each(t, func(t *testing.T, o servertest.Options) {
				b, f := newFaulty(t, o)
				b.at(tt.at, func() { f.fail.Store(100) })
				n := b.next()
				r := b.sign(n)
				wantState(t, r, signing.Unknown, problem.RequestUnknown)
				b.hook.Store(nil)
				f.fail.Store(0)
				tt.change(b)
				used := len(b.Uses(keys.Firmware)) + len(b.Uses(keys.Seal))
				_, err := b.Client.Resume(t.Context(), r.ID)
				wantCode(t, err, tt.want)
				if tt.want == "" {
					wantState(t, b.rest(r.ID), signing.Released, "")
					if l := b.leaf(firmseal.LeafResume, r.ID); l.Policy != r.Policy || l.Decision != "allow" {
						t.Errorf("the leaf of the resume: %+v", l)
					}
					return
				}
				wantState(t, b.rest(r.ID), signing.Unknown, problem.RequestUnknown)
				if n := len(b.Uses(keys.Firmware)) + len(b.Uses(keys.Seal)); n != used {
					t.Errorf("keys were used %d times after a refused resume", n-used)
				}
				if _, err := b.Client.Cancel(t.Context(), r.ID); err != nil {
					t.Fatal(err)
				}
				wantState(t, b.rest(r.ID), signing.Failed, problem.RequestCancelled)
			})
		})
	}
}

// lockPlace keeps the log from its second place.
func (b *bench) lockPlace() (unlock func()) {
	b.t.Helper()
	unlock, err := lockedfile.MutexAt(b.SecondPlace + ".lock").Lock()
	if err != nil {
		b.t.Error(err)
		return func() {}
	}
	return unlock
}

// What a caller asked for happens although he did not wait for the answer.
func TestCallerLeaves(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		b, f := newFaulty(t, o)
		f.fail.Store(100)
		r := b.sign(b.next())
		wantState(t, r, signing.Unknown, problem.RequestUnknown)
		f.fail.Store(0)
		unlock := b.lockPlace()
		ctx, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer stop()
		if _, err := b.Signing.Resume(ctx, auth.Local("x"), r.ID); err != nil {
			t.Errorf("resuming: %v", err)
		}
		counter := uint64(7)
		v, err := b.Signing.Submit(ctx, auth.Local("x"), signing.Submission{
			Profile: "p", Version: "7.0.0", SecurityCounter: &counter, HardwareIDs: []string{"board-z"}, Content: []byte("seven"),
		}, "")
		if err != nil || v.State != signing.Queued {
			t.Errorf("a request that was recorded is %q: %v", v.State, err)
		}
		if ctx.Err() == nil {
			t.Error("the answer came before the log's second place did")
		}
		unlock()
		wantState(t, b.rest(r.ID), signing.Released, "")
		if v.ID != "" {
			wantState(t, b.rest(v.ID), signing.Released, "")
		}
	})
}

// While the second place does not answer, a request says what it waits for, and
// goes on when it is back: also one whose attempt is open.
func TestSecondPlaceIsDown(t *testing.T) {
	t.Parallel()
	for _, label := range []string{"intent.wait", "attempt.wait"} {
		t.Run(label, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, servertest.Options{})
			locked := make(chan func(), 1)
			b.at(label, func() { locked <- b.lockPlace() })
			id := b.submit(b.next()).ID
			unlock := <-locked
			var r client.Request
			for end := time.Now().Add(patience); r.Problem == nil && !signing.State(r.State).Rests() && time.Now().Before(end); {
				var err error
				if r, err = b.Client.Request(t.Context(), id, 20*time.Millisecond); err != nil {
					t.Fatal(err)
				}
			}
			// The leaf that the step waits for may have been included just before
			// the place was locked; then the request waits one step later.
			if r.State != string(signing.Signing) && r.State != string(signing.Sealing) || r.Problem == nil {
				t.Errorf("the request is %s and waits for %+v", r.State, r.Problem)
			}
			unlock()
			wantState(t, b.rest(id), signing.Released, "")
		})
	}
}

// What panics on one image ends that image's request.
func TestPanicEndsTheRequest(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		label string
		state signing.State
		code  problem.Code
	}{
		{"redeem.commit", signing.Failed, problem.Internal},
		{"attempt.commit", signing.Failed, problem.Internal},
		{"embed.write", signing.Unknown, problem.RequestUnknown},
		{"seal.verify", signing.Unknown, problem.RequestUnknown},
	} {
		t.Run(tt.label, func(t *testing.T) {
			t.Parallel()
			servertest.Each(t, func(t *testing.T, o servertest.Options) {
				b := newBench(t, o)
				b.at(tt.label, func() { panic("hostile bytes") })
				n := b.next()
				r := b.sign(n)
				wantState(t, r, tt.state, tt.code)
				b.hook.Store(nil)
				if tt.state == signing.Unknown {
					if _, err := b.Client.Cancel(t.Context(), r.ID); err != nil {
						t.Fatal(err)
					}
				}
				wantState(t, b.sign(n), signing.Released, "")
			})
		})
	}
}

// A request can be cancelled wherever it is. It is not released then, it is not
// called altered, and its version is free.
func TestCancelAtEachStep(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		b := newBench(t, o)
		for _, label := range labels() {
			came := b.at(label, func() {
				if _, err := b.Client.Cancel(context.Background(), b.newest()); err != nil {
					b.t.Errorf("at %s: %v", label, err)
				}
			})
			n := b.next()
			id := b.submit(n).ID
			state, c := b.settled(id)
			b.hook.Store(nil)
			if !came() || state != string(signing.Failed) || c != problem.RequestCancelled || b.released(id) {
				t.Fatalf("cancelled at %s, it is %s with %q, released: %v", label, state, c, b.released(id))
			}
			r := b.rest(id)
			for _, a := range r.Attempts {
				if a.State == "open" {
					t.Errorf("cancelled at %s, attempt %d is open", label, a.N)
				}
			}
			if l := b.leaf(firmseal.LeafOutcome, id); l.Result != "failed" || l.Code != problem.RequestCancelled {
				t.Errorf("cancelled at %s, the log has %+v", label, l)
			}
			wantState(t, b.sign(n), signing.Released, "")
			_, err := b.Client.Cancel(t.Context(), id)
			wantCode(t, err, problem.RequestState)
		}
	})
}

// No use of a key is begun after its retirement; one that is open is finished.
func TestRetiredMeanwhile(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		label, key string
		want       problem.Code
	}{
		{"intent.wait", "k", problem.KeyRetired},
		{"attempt.commit", "k", problem.KeyRetired},
		{"attempt.wait", "k", ""},
		{"outcome.commit", "k", ""},
		{"outcome.wait", "seal-test", ""},
	} {
		t.Run(tt.label, func(t *testing.T) {
			t.Parallel()
			servertest.Each(t, func(t *testing.T, o servertest.Options) {
				b := newBench(t, o)
				b.at(tt.label, func() { b.retire(tt.key) })
				r := b.sign(b.next())
				if tt.want == "" {
					wantState(t, r, signing.Released, "")
					return
				}
				wantState(t, r, signing.Failed, tt.want)
				if n := b.uses(keys.Firmware, r.ID); n != 0 {
					t.Errorf("a retired key was used %d times", n)
				}
			})
		})
	}
}

// blocked waits until so many statements of the test's database wait for a lock.
func (b *bench) blocked(n int) {
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		var waiting int
		err := b.sql.QueryRow(`SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waiting)
		if err == nil && waiting >= n {
			return
		}
		if err == nil && time.Now().After(end) {
			err = fmt.Errorf("%d statements wait for a lock", waiting)
		}
		if err != nil {
			b.t.Error(err)
			return
		}
	}
}

// On PostgreSQL, who changes what a request rests on while it is let through
// waits for it, and the log has both in that order.
func TestChangedWhileRedeemed(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(b *bench) error{
		"policy": func(b *bench) error {
			_, err := b.Signing.ApplyPolicy(context.Background(), auth.Local("x"), []byte("apiVersion: firmseal.policy/v1\nprofiles:\n"+
				servertest.Profile("p", "gadget", "test", "raw", "k", "require: [nothing_has_this]")))
			return err
		},
		"key": func(b *bench) error {
			_, err := b.Signing.RetireKey(context.Background(), auth.Local("x"), "k")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, servertest.Options{Database: postgresFor(t)})
			// Somebody holds the claim that the request will ask for last.
			n := b.next()
			tx, err := b.sql.Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback() //nolint:errcheck // rolled back below where all is well
			if _, err := tx.Exec(`INSERT INTO release_claim(project, product, environment, hardware_id, variant, version, security_counter, request)
				VALUES ('default', 'gadget', 'test', $1, $2, $3, 1, 'x')`, n.HardwareIDs[0], n.Variant, n.Version); err != nil {
				t.Fatal(err)
			}
			id := b.submit(n).ID
			b.blocked(1)
			changed := make(chan error, 1)
			go func() { changed <- change(b) }()
			b.blocked(2)
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			if err := <-changed; err != nil {
				t.Errorf("changing the %s: %v", name, err)
			}
			r := b.rest(id)
			if name == "key" && r.State == string(signing.Failed) {
				wantState(t, r, signing.Failed, problem.KeyRetired)
				return
			}
			wantState(t, r, signing.Released, "")
		})
	}
}

// Administrators who do the same at once are served one after the other.
func TestAdministratorsAtOnce(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		b := newBench(t, o)
		p, err := b.Signing.Policy(t.Context(), "default")
		if err != nil {
			t.Fatal(err)
		}
		applied, retired := make(chan error, 12), make(chan error, 3)
		for i := range cap(applied) {
			who := auth.Local("x")
			if i%3 == 0 {
				who.Project = "elsewhere"
			}
			go func() {
				_, err := b.Signing.ApplyPolicy(context.Background(), who, p.Document)
				applied <- err
			}()
		}
		for range cap(applied) {
			if err := <-applied; err != nil {
				t.Errorf("applying a policy: %v", err)
			}
		}
		wantState(t, b.sign(b.next()), signing.Released, "")
		for range cap(retired) {
			go func() {
				_, err := b.Signing.RetireKey(context.Background(), auth.Local("x"), "k")
				retired <- err
			}()
		}
		done := 0
		for range cap(retired) {
			switch err := <-retired; {
			case err == nil:
				done++
			case !problem.Has(err, problem.KeyRetired):
				t.Errorf("retiring a key: %v", err)
			}
		}
		if done != 1 {
			t.Errorf("a key was retired %d times", done)
		}
	})
}

// A request that another replica released while this one failed stays released.
func TestReleasedNeverFails(t *testing.T) {
	t.Parallel()
	b, f := newFaulty(t, servertest.Options{Database: postgresFor(t)})
	b.at("seal.use", func() { f.flip.Store(true) })
	committed := make(chan error, 1)
	h := b.hook.Load()
	both := func(l string) {
		(*h)(l)
		if l != "seal.used" {
			return
		}
		id := b.newest()
		tx, err := b.sql.Begin()
		if err == nil {
			_, err = tx.Exec(`UPDATE signing_attempt SET state = 'signed' WHERE request = $1 AND state = 'open'`, id)
		}
		if err == nil {
			_, err = tx.Exec(`UPDATE signing_request SET state = 'released' WHERE id = $1`, id)
		}
		if err != nil {
			committed <- err
			return
		}
		go func() {
			b.blocked(1)
			committed <- tx.Commit()
		}()
	}
	b.hook.Store(&both)
	id := b.submit(b.next()).ID
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	if state, c := b.settled(id); state != string(signing.Released) || c != "" {
		t.Errorf("it is %s with %q", state, c)
	}
	var claims int
	if err := b.sql.QueryRow(`SELECT COUNT(*) FROM release_claim WHERE request = $1`, id).Scan(&claims); err != nil || claims == 0 {
		t.Errorf("%d claims are left: %v", claims, err)
	}
}
