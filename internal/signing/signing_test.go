package signing_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit/fitdemo"
	"github.com/firmseal/firmseal/internal/image/raw"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/servertest"
	"github.com/firmseal/firmseal/internal/signing"
)

func wantState(t *testing.T, r client.Request, state signing.State, c problem.Code) {
	t.Helper()
	var got problem.Code
	if r.Problem != nil {
		got = problem.Code(r.Problem.Code)
	}
	if r.State != string(state) || got != c {
		t.Fatalf("request %s is %s with code %q, want %s with %q: %+v", r.ID, r.State, got, state, c, r.Problem)
	}
}

func wantCode(t *testing.T, err error, c problem.Code) {
	t.Helper()
	if code(err) != c {
		t.Fatalf("error %v, want code %s", err, c)
	}
}

// What each format makes is sealed, proven and verified offline, over HTTP.
func TestSignFormats(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		b := newBench(t, o)
		b.Key("board-key", "p256", "test", "board", "fit")
		b.Key("mcu-key", "p256", "test", "mcu", "mcuboot")
		b.Key("ec", "p256", "production", "gadget", "raw")
		profiles := []string{
			servertest.Profile("fit", "board", "test", "fit", "board-key"),
			servertest.Profile("mcu", "mcu", "test", "mcuboot", "mcu-key", "options: {header-size: 32, pad-header: true, slot-size: 65536}"),
		}
		encodings := []string{"der", "raw", "base64", "base64-raw"}
		for _, e := range encodings {
			profiles = append(profiles, servertest.Profile("raw-"+e, "gadget", "production", "raw", "ec", "allow_older_versions: true",
				"options: {encoding: "+e+"}", "target: {options: {encoding: "+e+"}}"))
		}
		b.Policy(profiles...)
		c := b.HTTP()
		sign := func(profile, version string, content []byte) client.Release {
			t.Helper()
			r, err := c.Sign(t.Context(), servertest.Request(profile, version, 1, content), "", patience)
			if err != nil {
				t.Fatal(err)
			}
			wantState(t, r, signing.Released, "")
			st := b.verify(r.ID, content)
			if st.Release.Version != version || st.Release.BytesUnseen || st.Release.Request.ID != r.ID || st.Release.Request.SHA256 != r.Digest {
				t.Errorf("the seal says %+v", st.Release)
			}
			rel, err := c.Release(t.Context(), r.ID)
			if err != nil {
				t.Fatal(err)
			}
			if rel.Image.SHA256 != st.Subjects[0].SHA256 {
				t.Errorf("the catalogue has image %s, the seal %s", rel.Image.SHA256, st.Subjects[0].SHA256)
			}
			return rel
		}
		if rel := sign("fit", "1.0.0", fitdemo.FIT("1.0.0")); rel.Signature != nil {
			t.Error("a FIT has a detached signature")
		}
		if rel := sign("mcu", "1.0.0", make([]byte, 1024)); rel.Signature != nil || rel.Image.Size <= 1024+32 {
			t.Errorf("the MCUboot image has %d bytes", rel.Image.Size)
		}
		for i, e := range encodings {
			rel := sign("raw-"+e, fmt.Sprintf("1.0.%d", i), []byte("the same image"))
			if rel.Signature == nil {
				t.Fatal("a raw release has no detached signature")
			}
			var sig strings.Builder
			if err := c.Download(t.Context(), rel.ID, client.PartSignature, &sig); err != nil {
				t.Fatal(err)
			}
			bin := []byte(strings.TrimSpace(sig.String()))
			if strings.HasPrefix(e, "base64") {
				var err error
				if bin, err = base64.StdEncoding.DecodeString(string(bin)); err != nil {
					t.Errorf("%s: %v", e, err)
				}
			} else {
				bin = []byte(sig.String())
			}
			if isRaw := len(bin) == 64; isRaw != strings.HasSuffix(e, "raw") {
				t.Errorf("%s: a signature of %d bytes", e, len(bin))
			}
		}
	})
}

// An image that stays at home is marked in the request, the leaves and the seal.
func TestBytesUnseen(t *testing.T) {
	t.Parallel()
	b := newBench(t, servertest.Options{})
	b.Key("ec", "p256", "test", "gadget", "raw")
	b.Policy(servertest.Profile("p", "gadget", "test", "raw", "ec"), servertest.Profile("home", "gadget", "test", "raw", "ec", "bytes_unseen: true"))
	h := sha256.Sum256([]byte("it stays at home"))
	r := servertest.Request("p", "1.0.0", 1, nil)
	r.BytesUnseen, r.Input = true, client.Input{Name: "image.bin", SHA256: hex.EncodeToString(h[:]), Size: 16}
	denied := b.sign(r)
	wantState(t, denied, signing.Denied, problem.PolicyUnseen)
	r.Profile = "home"
	got := b.sign(r)
	wantState(t, got, signing.Released, "")
	if !got.BytesUnseen || !b.verify(got.ID, nil).Release.BytesUnseen {
		t.Error("the request or the seal does not say that the bytes were unseen")
	}
	leaves, err := b.Client.Leaves(t.Context(), client.LeafQuery{Request: got.ID})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range leaves.Items {
		l, err := firmseal.ParseLeaf(e.Leaf)
		if err != nil {
			t.Fatal(err)
		}
		if !l.Unseen {
			t.Errorf("the %s leaf does not say that the bytes were unseen", l.Type)
		}
	}
}

func TestDenialIsRecorded(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		b := newBench(t, o)
		b.Policy(servertest.Profile("p", "gadget", "test", "raw", "k", "require: [ticket_number]"))
		r := b.sign(b.next())
		wantState(t, r, signing.Denied, problem.PolicyMetadata)
		leaves, err := b.Client.Leaves(t.Context(), client.LeafQuery{Request: r.ID})
		if err != nil || len(leaves.Items) != 1 {
			t.Fatalf("%d leaves: %v", len(leaves.Items), err)
		}
		l, err := firmseal.ParseLeaf(leaves.Items[0].Leaf)
		if err != nil || l.Decision != "deny" || l.Record != r.Digest || l.Rule != "metadata" {
			t.Errorf("the leaf of the denial: %+v, %v", l, err)
		}
		if b.uses(keys.Firmware, r.ID) != 0 {
			t.Error("a denied request used a key")
		}
	})
}

// 32 builders that send one request under one key get one request.
func TestIdempotency(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		b := newBench(t, o)
		r := b.next()
		var wg sync.WaitGroup
		ids := make([]string, 32)
		for i := range ids {
			wg.Go(func() {
				got, err := b.Client.Sign(t.Context(), r, "build-7", patience)
				if err != nil {
					t.Error(err)
				}
				ids[i] = got.ID
			})
		}
		wg.Wait()
		if slices.Sort(ids); ids[0] != ids[31] {
			t.Fatalf("one request became two: %s, %s", ids[0], ids[31])
		}
		if n := b.uses(keys.Firmware, ids[0]); n != 1 {
			t.Errorf("the key was used %d times", n)
		}
		_, err := b.Client.Sign(t.Context(), b.next(), "build-7", 0)
		wantCode(t, err, problem.IdempotencyUsed)
		other, err := b.As(auth.Local("somebody-else")).Sign(t.Context(), b.next(), "build-7", patience)
		if err != nil || other.ID == ids[0] {
			t.Errorf("another person's key is not his own: %s, %v", other.ID, err)
		}
		if _, err := b.Client.RetireKey(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		_, err = b.Client.Sign(t.Context(), r, "build-7", 0)
		wantCode(t, err, problem.KeyRetired)
	})
}

// Two images want one name: one gets it, whatever the order of things.
func TestOneVersionOneImage(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		b := newBench(t, o)
		for range 5 {
			b.n++
			states := make([]string, 4)
			var wg sync.WaitGroup
			for i := range states {
				wg.Go(func() {
					got, err := b.Client.Sign(t.Context(), servertest.Request("p", fmt.Sprintf("1.0.%d", b.n), b.n, fmt.Appendf(nil, "image %d", i)), "", patience)
					if err != nil {
						t.Error(err)
						return
					}
					if states[i] = got.State; got.State == string(signing.Failed) && got.Problem.Code != string(problem.VersionTaken) {
						t.Errorf("refused with %+v", got.Problem)
					}
				})
			}
			wg.Wait()
			if slices.Sort(states); !slices.Equal(states, []string{"failed", "failed", "failed", "released"}) {
				t.Fatalf("four images of one version are %q", states)
			}
		}
	})
}

// What was true when a request was made must be true when its ticket is redeemed.
func TestBetweenSubmitAndRedeem(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(b *bench)
		want   problem.Code
	}{
		{"the policy requires more", func(b *bench) {
			b.Policy(servertest.Profile("p", "gadget", "test", "raw", "k", "require: [ticket_number]"))
		}, problem.PolicyMetadata},
		{"the policy signs with another key", func(b *bench) {
			b.Key("k2", "ed25519", "test", "gadget", "raw")
			b.Policy(servertest.Profile("p", "gadget", "test", "raw", "k2"))
		}, problem.PolicyChanged},
		{"the profile is gone", func(b *bench) { b.Policy(servertest.Profile("q", "gadget", "test", "raw", "k")) }, problem.PolicyProfile},
		{"the key is retired", func(b *bench) {
			if _, err := b.Client.RetireKey(context.Background(), "k"); err != nil {
				b.t.Error(err)
			}
		}, problem.KeyRetired},
		{"a claim in flight has a higher counter", func(b *bench) {
			b.hook.Store(nil)
			if r, err := b.Client.Sign(context.Background(), servertest.Request("p", "1.0.0", 99, []byte("urgent")), "", patience); err != nil || r.State != "released" {
				b.t.Errorf("%s %v", r.State, err)
			}
		}, problem.PolicyCounter},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			servertest.Each(t, func(t *testing.T, o servertest.Options) {
				b := newBench(t, o)
				b.at("redeem.commit", func() { tt.change(b) })
				r := b.sign(b.next())
				wantState(t, r, signing.Failed, tt.want)
				if b.uses(keys.Firmware, r.ID) != 0 {
					t.Error("a key was used")
				}
			})
		})
	}
	t.Run("a policy that changes nothing for the request", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, servertest.Options{})
		b.at("redeem.commit", func() {
			b.Policy(servertest.Profile("p", "gadget", "test", "raw", "k"), servertest.Profile("q", "gadget", "test", "raw", "k"))
		})
		wantState(t, b.sign(b.next()), signing.Released, "")
	})
}

// faulty stands between the service and its keys.
type faulty struct {
	keys.Backend
	fail *atomic.Int64 // uses that fail from now on
	flip *atomic.Bool
}

func (f faulty) Open(ctx context.Context, uri string) (keys.Key, error) {
	k, err := f.Backend.Open(ctx, uri)
	if err != nil || k.Info().Binding.Purpose == keys.Log {
		return k, err
	}
	return faultyKey{k, f}, nil
}

type faultyKey struct {
	keys.Key
	f faulty
}

func (k faultyKey) Sign(ctx context.Context, t *keys.Ticket) ([]byte, error) {
	if k.f.fail.Add(-1) >= 0 {
		return nil, problem.New(problem.KeyUnavailable, "the token of key %s was pulled out", k.Info().Name)
	}
	sig, err := k.Key.Sign(ctx, t)
	if err == nil && k.f.flip.Load() {
		sig[len(sig)-1] ^= 1
	}
	return sig, err
}

func newFaulty(t *testing.T, o servertest.Options) (*bench, faulty) {
	f := faulty{fail: new(atomic.Int64), flip: new(atomic.Bool)}
	o.Backend = func(b keys.Backend) keys.Backend { f.Backend = b; return f }
	return newBench(t, o), f
}

// A key that does not answer is asked twice; a third time is a person's choice.
func TestKeyUnavailable(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		b, f := newFaulty(t, o)
		f.fail.Store(1)
		r := b.sign(b.next())
		wantState(t, r, signing.Released, "")
		if len(r.Attempts) != 3 || r.Attempts[0].State != "failed" || r.Attempts[1].State != "signed" {
			t.Errorf("attempts %+v", r.Attempts)
		}

		f.fail.Store(100)
		r = b.sign(b.next())
		wantState(t, r, signing.Unknown, problem.RequestUnknown)
		if len(r.Attempts) != signing.MaxAutomaticAttempts {
			t.Errorf("%d attempts were made without a person", len(r.Attempts))
		}
		b.Restart()
		wantState(t, b.rest(r.ID), signing.Unknown, problem.RequestUnknown)
		f.fail.Store(0)
		if _, err := b.Client.Resume(t.Context(), r.ID); err != nil {
			t.Fatal(err)
		}
		r = b.rest(r.ID)
		wantState(t, r, signing.Released, "")
		if a := r.Attempts[2]; !a.Resumed || a.State != "signed" {
			t.Errorf("the attempt after a person's resume: %+v", a)
		}
		_, err := b.Client.Resume(t.Context(), r.ID)
		wantCode(t, err, problem.RequestState)

		// So is the seal key, and each use it makes has a leaf of its own.
		b.at("seal.use", func() { f.fail.Store(1) })
		r = b.sign(b.next())
		wantState(t, r, signing.Released, "")
		if a := r.Attempts; len(a) != 3 || a[1].Purpose != "seal" || a[1].State != "failed" || a[2].Purpose != "seal" || a[2].State != "signed" || b.uses(keys.Seal, r.ID) != 1 {
			t.Errorf("attempts %+v", a)
		}

		// The seal key fails in the same way, and a cancelled request frees its
		// version.
		b.at("seal.use", func() { f.fail.Store(100) })
		n := b.next()
		r = b.sign(n)
		wantState(t, r, signing.Unknown, problem.RequestUnknown)
		f.fail.Store(0)
		again := b.sign(n)
		wantState(t, again, signing.Failed, problem.VersionTaken)
		if _, err := b.Client.Cancel(t.Context(), r.ID); err != nil {
			t.Fatal(err)
		}
		wantState(t, b.rest(r.ID), signing.Failed, problem.RequestCancelled)
		wantState(t, b.sign(n), signing.Released, "")
	})
}

// What the key makes wrongly is found before it leaves.
func TestWrongSignature(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		b, f := newFaulty(t, o)
		f.flip.Store(true)
		n := b.next()
		r := b.sign(n)
		wantState(t, r, signing.Failed, problem.VerifyFailed)
		if b.released(r.ID) || b.uses(keys.Seal, r.ID) != 0 {
			t.Error("a wrong signature was sealed or released")
		}
		f.flip.Store(false)
		b.at("seal.use", func() { f.flip.Store(true) })
		r = b.sign(n)
		wantState(t, r, signing.Failed, problem.VerifyFailed)
		if b.released(r.ID) {
			t.Error("a wrong seal was released")
		}
		f.flip.Store(false)
		wantState(t, b.sign(n), signing.Released, "")
	})
}

// broken is the raw format with a bug in its Embed.
type broken struct{ image.Format }

func (f broken) Plan(ctx context.Context, src image.Source, o image.Options, pub []image.PublicMaterial) (image.Session, error) {
	s, err := f.Format.Plan(ctx, src, o, pub)
	return brokenSession{s}, err
}

type brokenSession struct{ image.Session }

func (s brokenSession) Embed(ctx context.Context, w io.Writer) (*image.Receipt, error) {
	return s.Session.Embed(ctx, cut{w})
}

// cut loses the last byte of each write and says nothing.
type cut struct{ w io.Writer }

func (c cut) Write(p []byte) (int, error) {
	if _, err := c.w.Write(p[:len(p)-1]); err != nil {
		return 0, err
	}
	return len(p), nil
}

func TestBrokenEmbed(t *testing.T) {
	t.Parallel()
	b := newBench(t, servertest.Options{Formats: image.Registry{broken{raw.New()}}})
	r := b.sign(b.next())
	wantState(t, r, signing.Failed, problem.VerifyFailed)
	if b.released(r.ID) || b.uses(keys.Seal, r.ID) != 0 {
		t.Error("a broken file was sealed or released")
	}
}

// Another project sees nothing of this one's.
func TestProjectsApart(t *testing.T) {
	t.Parallel()
	b := newBench(t, servertest.Options{})
	n := b.next()
	r := b.sign(n)
	wantState(t, r, signing.Released, "")
	c := b.As(auth.Identity{Actor: "local:stranger", Project: "elsewhere", Scopes: auth.Scopes()})
	_, err := c.Request(t.Context(), r.ID, 0)
	wantCode(t, err, problem.NotFound)
	_, err = c.Release(t.Context(), r.Release)
	wantCode(t, err, problem.NotFound)
	_, err = c.Key(t.Context(), "k")
	wantCode(t, err, problem.KeyNotFound)
	_, err = c.RetireKey(t.Context(), "k")
	wantCode(t, err, problem.KeyNotFound)
	_, err = c.Sign(t.Context(), n, "", 0)
	wantCode(t, err, problem.PolicyMissing)
	if l, err := c.Requests(t.Context(), client.RequestQuery{}); err != nil || len(l.Items) != 0 {
		t.Errorf("a stranger sees %d requests: %v", len(l.Items), err)
	}
	// A policy of his cannot name a key of ours, nor his request an image of ours.
	if _, err := c.ApplyPolicy(t.Context(), []byte("apiVersion: firmseal.policy/v1\nprofiles:\n"+servertest.Profile("p", "gadget", "test", "raw", "k"))); err != nil {
		t.Fatal(err)
	}
	_, err = c.Sign(t.Context(), n, "", 0)
	wantCode(t, err, problem.KeyNotFound)
	h := sha256.Sum256(n.Input.Content)
	stolen := n
	stolen.Input = client.Input{Name: "image.bin", SHA256: hex.EncodeToString(h[:]), Size: int64(len(n.Input.Content))}
	stolen.Version = "9.9.9"
	_, err = c.Sign(t.Context(), stolen, "", 0)
	if err == nil {
		t.Error("a stranger signs bytes that he does not have")
	}
}

// Nothing that the statement could not say is found out after a key was used.
func TestUnsealableIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, servertest.Options{})
	for _, tt := range []struct {
		name   string
		change func(*client.NewRequest)
	}{
		{"a file name with a control character of terminals", func(r *client.NewRequest) { r.Input.Name = "a\u009b31m.bin" }},
		{"a file name that leaves no room for its signature's", func(r *client.NewRequest) { r.Input.Name = strings.Repeat("n", 253) }},
		{"metadata with an escape", func(r *client.NewRequest) { r.Metadata = map[string]string{"note": "\x1b[31m"} }},
		{"a build id of two lines", func(r *client.NewRequest) { r.BuildID = "1\n2" }},
		{"a dependency without a version", func(r *client.NewRequest) {
			r.Dependencies = []client.Dependency{{Product: "radio", MinimumVersion: "new"}}
		}},
		{"a dependency without a name", func(r *client.NewRequest) {
			r.Dependencies = []client.Dependency{{Product: "ra dio", MinimumVersion: "1.0.0"}}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := servertest.Request("p", "1.0.0", 1, []byte("image"))
			tt.change(&r)
			_, err := b.Client.Sign(t.Context(), r, "", patience)
			wantCode(t, err, problem.RequestFields)
		})
	}
	if n := len(b.Uses(keys.Firmware)); n != 0 {
		t.Errorf("a key was used %d times", n)
	}
	for _, v := range []string{"1.0", "v1.0.0", "1.0.0\n", "01.0.0"} {
		r := servertest.Request("p", v, 1, []byte("image"))
		got, err := b.Client.Sign(t.Context(), r, "", patience)
		if err == nil && got.State != "denied" || err != nil && code(err) != problem.RequestFields {
			t.Errorf("version %q: %s, %v", v, got.State, err)
		}
	}
}

func TestMetricsCount(t *testing.T) {
	t.Parallel()
	b, f := newFaulty(t, servertest.Options{})
	n := b.next()
	n.BuildFinished = time.Now().Add(-time.Minute).UnixMicro()
	wantState(t, b.sign(n), signing.Released, "")
	wantState(t, b.sign(n), signing.Failed, problem.VersionTaken) // the builder's fault
	// What a builder's clock cannot have meant is not counted as a latency.
	for _, finished := range []time.Duration{2 * time.Hour, -31 * 24 * time.Hour} {
		n := b.next()
		n.BuildFinished = time.Now().Add(finished).UnixMicro()
		wantState(t, b.sign(n), signing.Released, "")
	}
	f.flip.Store(true)
	wantState(t, b.sign(b.next()), signing.Failed, problem.VerifyFailed)
	f.flip.Store(false)
	f.fail.Store(2)
	wantState(t, b.sign(b.next()), signing.Unknown, problem.RequestUnknown)
	b.Policy(servertest.Profile("p", "gadget", "test", "raw", "k", "require: [nothing]"))
	wantState(t, b.sign(b.next()), signing.Denied, problem.PolicyMetadata)
	c := b.HTTP()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.BaseURL+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`firmseal_sign_requests_total{result="released"} 3`, `{result="rejected"} 1`, `{result="failed"} 1`, `{result="unknown"} 1`,
		`{result="denied"} 1`, `firmseal_sign_latency_seconds_count 1`,
	} {
		if !strings.Contains(string(text), want+"\n") {
			t.Errorf("the metrics do not say %s", want)
		}
	}
}

// pair is a format of two rounds and two keys, that leaves the image as it is:
// in the first round key a and key b sign the image's digest, in the second key
// a signs both signatures. Its signature file is the three of them, as JSON.
type pair struct{}

type pairState struct {
	Digest []byte            `json:"digest"`
	Keys   map[string]string `json:"keys"` // by role
	Alg    alg.ID            `json:"alg"`
	Round  int               `json:"round"`
	Sigs   map[string][]byte `json:"sigs"` // by slot
}

func (pair) Name() string                          { return "pair" }
func (pair) Detect(io.ReaderAt, int64) image.Score { return image.No }
func (pair) Inspect(_ context.Context, src image.Source) (*image.Report, error) {
	return &image.Report{Format: "pair", Size: src.Size()}, nil
}

func (pair) ExportTrust([]image.PublicMaterial, image.Options) ([]image.Artifact, error) {
	return nil, problem.New(problem.ImageOptions, "format pair exports no trust")
}

func (pair) Plan(_ context.Context, src image.Source, _ image.Options, pub []image.PublicMaterial) (image.Session, error) {
	d, err := digestOf(src)
	if err != nil {
		return nil, err
	}
	s := pairState{Digest: d, Keys: map[string]string{}, Alg: alg.Ed25519Pure, Sigs: map[string][]byte{}}
	for _, p := range pub {
		s.Keys[p.Role] = p.KeyID()
	}
	return &pairSession{s}, nil
}

func (pair) Resume(_ context.Context, src image.Source, state []byte) (image.Session, error) {
	s := new(pairSession)
	if err := json.Unmarshal(state, &s.st); err != nil {
		return nil, err
	}
	if d, err := digestOf(src); err != nil || string(d) != string(s.st.Digest) {
		return nil, fmt.Errorf("another image: %w", err)
	}
	return s, nil
}

func digestOf(src image.Source) ([]byte, error) {
	h := sha256.New()
	_, err := io.Copy(h, io.NewSectionReader(src, 0, src.Size()))
	return h.Sum(nil), err
}

type pairSession struct{ st pairState }

func (s *pairSession) MarshalBinary() ([]byte, error) { return json.Marshal(s.st) }

func (s *pairSession) Next(_ context.Context, prev []image.Signature) ([]image.SignRequest, bool, error) {
	for _, p := range prev {
		s.st.Sigs[p.Slot] = p.Value
	}
	ask := func(slot, role string, input []byte) image.SignRequest {
		return image.SignRequest{Slot: slot, Role: role, Key: s.st.Keys[role], Alg: s.st.Alg, Kind: alg.Message, Input: input}
	}
	s.st.Round++
	switch s.st.Round {
	case 1:
		return []image.SignRequest{ask("first-a", "a", s.st.Digest), ask("first-b", "b", s.st.Digest)}, false, nil
	case 2:
		return []image.SignRequest{ask("second-a", "a", slices.Concat(s.st.Sigs["first-a"], s.st.Sigs["first-b"]))}, false, nil
	}
	return nil, true, nil
}

func (s *pairSession) Embed(_ context.Context, w io.Writer) (*image.Receipt, error) {
	b, err := json.Marshal(s.st.Sigs)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(b)
	return &image.Receipt{Format: "pair", Size: int64(len(b)), Detached: true}, err
}

func (pair) Verify(_ context.Context, src image.Source, t image.Trust, _ image.Profile) (*image.Verdict, error) {
	var sigs map[string][]byte
	err := json.Unmarshal(t.Detached, &sigs)
	d, derr := digestOf(src)
	if derr != nil {
		return nil, derr
	}
	v := &image.Verdict{Format: "pair", Valid: err == nil}
	for slot, want := range map[string]struct {
		key   int
		input []byte
	}{"first-a": {0, d}, "first-b": {1, d}, "second-a": {0, slices.Concat(sigs["first-a"], sigs["first-b"])}} {
		pub, err := x509.ParsePKIXPublicKey(t.Keys[want.key].SPKI)
		if err != nil {
			return nil, err
		}
		if !ed25519.Verify(pub.(ed25519.PublicKey), want.input, sigs[slot]) {
			v.Valid = false
			v.Findings = append(v.Findings, image.Finding{Stage: image.StageSignature, Severity: image.Fatal, Code: problem.VerifyFailed, What: "slot " + slot})
		}
	}
	v.Accepted = v.Valid
	return v, nil
}

// A format of several rounds and keys goes on after a crash with the signatures
// that it has, and no key signs anything else than before.
func TestRoundsSurviveACrash(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		o.Formats = image.Registry{raw.New(), pair{}}
		b := newBench(t, o)
		b.Key("ka", "ed25519", "test", "duo", "pair")
		b.Key("kb", "ed25519", "test", "duo", "pair")
		b.Policy("  p:\n    product: duo\n    environment: test\n    format: pair\n    keys: {a: ka, b: kb}\n")

		r := b.sign(b.next())
		wantState(t, r, signing.Released, "")
		if n := b.uses(keys.Firmware, r.ID); n != 3 || len(r.Attempts) != 4 {
			t.Fatalf("%d uses in %d attempts, want 3 in 4", n, len(r.Attempts))
		}

		for _, tt := range []struct {
			label string
			nth   int // of the label
			uses  int // of firmware keys before the crash
		}{
			{"attempt.commit", 1, 0},
			{"key.use", 1, 0},
			{"key.used", 1, 1},
			{"attempt.commit", 2, 1},
			{"key.use", 2, 1},
			{"key.used", 2, 2},
			{"attempt.commit", 3, 2},
			{"key.use", 3, 2},
			{"key.used", 3, 3},
			{"outcome.commit", 1, 3},
			{"outcome.wait", 1, 3},
			{"release.commit", 1, 3},
		} {
			what := fmt.Sprintf("%s %d", tt.label, tt.nth)
			crashed := b.crash(tt.label, tt.nth)
			id := b.submit(b.next()).ID
			b.wait(what, crashed)
			b.hook.Store(nil)
			if n := b.uses(keys.Firmware, id); n != tt.uses {
				t.Fatalf("%s: %d uses before the crash, want %d", what, n, tt.uses)
			}
			b.Restart()
			r := b.rest(id)
			if tt.label == "attempt.commit" && tt.nth == 1 {
				wantState(t, r, signing.Released, "")
				continue
			}
			wantState(t, r, signing.Unknown, problem.RequestUnknown)
			if _, err := b.Client.Resume(t.Context(), id); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			r = b.rest(id)
			wantState(t, r, signing.Released, "")
			b.verify(id, nil)
			inputs, again := map[string]string{}, 0
			for _, u := range b.Uses(keys.Firmware) {
				if u.Request != id {
					continue
				}
				if in, ok := inputs[u.Slot]; ok {
					if again++; in != u.Input {
						t.Errorf("%s: slot %s was signed over other bytes after the crash", what, u.Slot)
					}
				}
				inputs[u.Slot] = u.Input
			}
			if len(inputs) != 3 || again > 1 {
				t.Errorf("%s: %d slots were signed, %d of them again", what, len(inputs), again)
			}
		}
	})
}

// A saved session that was edited brings no other bytes to a key.
func TestEditedSession(t *testing.T) {
	t.Parallel()
	b := newBench(t, servertest.Options{Formats: image.Registry{raw.New(), pair{}}})
	b.Key("ka", "ed25519", "test", "duo", "pair")
	b.Key("kb", "ed25519", "test", "duo", "pair")
	b.Policy("  p:\n    product: duo\n    environment: test\n    format: pair\n    keys: {a: ka, b: kb}\n")
	crashed := b.crash("key.use", 2)
	id := b.submit(b.next()).ID
	b.wait("the second use of a key", crashed)
	b.hook.Store(nil)
	b.Stop()
	var session []byte
	if err := b.sql.QueryRow(`SELECT session FROM signing_request WHERE id = $1`, id).Scan(&session); err != nil {
		t.Fatal(err)
	}
	var kept struct {
		Reqs, Sigs []json.RawMessage
	}
	if err := json.Unmarshal(session, &kept); err != nil || len(kept.Reqs) != 2 || len(kept.Sigs) != 1 {
		t.Fatalf("the session has %d requests and %d signatures: %v", len(kept.Reqs), len(kept.Sigs), err)
	}
	// The second key is asked for something else.
	h2 := sha256.Sum256([]byte("the attacker's image"))
	var req map[string]any
	if err := json.Unmarshal(kept.Reqs[1], &req); err != nil {
		t.Fatal(err)
	}
	var was []byte
	if was, _ = base64.StdEncoding.DecodeString(req["input"].(string)); len(was) != len(h2) {
		t.Fatalf("the request's input is %v", req["input"])
	}
	edited := strings.ReplaceAll(string(session), req["input"].(string), base64.StdEncoding.EncodeToString(h2[:]))
	if edited == string(session) {
		t.Fatal("nothing was edited")
	}
	if _, err := b.sql.Exec(`UPDATE signing_request SET session = $2 WHERE id = $1`, id, []byte(edited)); err != nil {
		t.Fatal(err)
	}
	used := b.uses(keys.Firmware, id)
	b.Start()
	wantState(t, b.rest(id), signing.Failed, problem.StateAltered)
	if n := b.uses(keys.Firmware, id); n != used {
		t.Errorf("a key was used %d times behind the edit", n-used)
	}
}
