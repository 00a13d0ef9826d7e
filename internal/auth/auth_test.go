package auth_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gowebpki/jcs"
	"pgregory.net/rapid"

	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/db/dbtest"
	"github.com/firmseal/firmseal/internal/problem"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

func create(t *testing.T, d *db.DB, s auth.Spec) (string, auth.Token, error) {
	t.Helper()
	var secret string
	var tok auth.Token
	err := d.Update(t.Context(), func(tx *db.Tx) (err error) {
		secret, tok, err = auth.Create(tx, s)
		return err
	})
	return secret, tok, err
}

func mustCreate(t *testing.T, d *db.DB, s auth.Spec) (string, auth.Token) {
	t.Helper()
	secret, tok, err := create(t, d, s)
	if err != nil {
		t.Fatal(err)
	}
	return secret, tok
}

func ci() auth.Spec {
	return auth.Spec{By: auth.Local("ada"), Name: "ci", Scopes: []auth.Scope{auth.RequestWrite, auth.UploadWrite, auth.RequestWrite}, TTL: time.Hour}
}

func edit(t *testing.T, d *db.DB, q string, args ...any) {
	t.Helper()
	if err := d.Update(t.Context(), func(tx *db.Tx) error { _, err := tx.Exec(q, args...); return err }); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, d *db.DB, id string) auth.Token {
	t.Helper()
	var tok auth.Token
	if err := d.View(t.Context(), func(tx *db.Tx) (err error) { tok, err = auth.Get(tx, auth.DefaultProject, id); return err }); err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestTokens(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		secret, tok := mustCreate(t, d, ci())
		who, err := auth.Authenticate(t.Context(), d, secret)
		if err != nil {
			t.Fatal(err)
		}
		if who.Actor != "token:"+tok.ID || who.Project != auth.DefaultProject || !slices.Equal(who.Scopes, []auth.Scope{auth.RequestWrite, auth.UploadWrite}) {
			t.Errorf("authenticated as %+v", who)
		}
		if err := who.Require(auth.UploadWrite); err != nil {
			t.Error(err)
		}
		if err := who.Require(auth.KeyWrite); !problem.Has(err, problem.Forbidden) {
			t.Errorf("a scope that it does not have: %v", err)
		}

		// Neither the secret nor anything from which it could be had is stored.
		raw, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(strings.ToUpper(secret[strings.LastIndex(secret, "_")+1:]))
		if err != nil || len(raw) != 32 {
			t.Fatalf("the secret has %d bytes: %v", len(raw), err)
		}
		sum := sha256.Sum256(raw)
		if got := read(t, d, tok.ID); !bytes.Equal(got.Digest, sum[:]) || !bytes.Equal(auth.Record(got), auth.Record(tok)) {
			t.Errorf("read back %+v, made %+v", got, tok)
		}

		// One change of the secret or id at a time.
		other, _ := mustCreate(t, d, ci())
		for name, bad := range map[string]string{
			"other's secret": secret[:41] + other[41:],
			"other's id":     other[:41] + secret[41:],
			"unknown id":     "fsl_" + db.NewID() + secret[40:],
			"flipped":        flip(secret),
		} {
			_, err := auth.Authenticate(t.Context(), d, bad)
			if !problem.Has(err, problem.Unauthorized) || problem.Of(err).Why != "it is not known here" {
				t.Errorf("%s: %v", name, err)
			}
		}
		for name, bad := range map[string]string{
			"empty": "", "short": "fsl_", "no prefix": secret[4:], "upper case": strings.ToUpper(secret), "cut": secret[:len(secret)-1],
			"longer": secret + "a", "Bearer": "Bearer " + secret, "NUL": secret[:10] + "\x00" + secret[11:], "SQL": "fsl_' OR 1=1 --",
		} {
			if _, err := auth.Authenticate(t.Context(), d, bad); !problem.Has(err, problem.Unauthorized) {
				t.Errorf("%s: %v", name, err)
			}
		}

		// Expired, and only its owner hears that.
		expired, old := mustCreate(t, d, ci())
		edit(t, d, `UPDATE auth_token SET expires = $1 WHERE id = $2`, db.Now()-1, old.ID)
		if _, err := auth.Authenticate(t.Context(), d, expired); !problem.Has(err, problem.Unauthorized) || !strings.Contains(problem.Of(err).Why, "expired") {
			t.Errorf("expired: %v", err)
		}
		if _, err := auth.Authenticate(t.Context(), d, flip(expired)); strings.Contains(fmt.Sprint(err), "expired") {
			t.Errorf("told a stranger that the token has expired: %v", err)
		}

		// Revoked: at once, for good, once.
		for i, want := range []bool{true, false} {
			var ended []auth.Token
			err := d.Update(t.Context(), func(tx *db.Tx) (err error) {
				tok, ended, err = auth.Revoke(tx, auth.Local("bob"), tok.ID)
				return err
			})
			if err != nil || (len(ended) == 1) != want || tok.RevokedBy != "local:bob" || tok.Revoked == 0 {
				t.Errorf("revoking, time %d: %v %v %+v", i+1, ended, err, tok)
			}
		}
		if _, err := auth.Authenticate(t.Context(), d, secret); !problem.Has(err, problem.Unauthorized) || !strings.Contains(problem.Of(err).Why, "revoked") {
			t.Errorf("revoked: %v", err)
		}
		stranger := auth.Identity{Actor: "token:x", Project: "other", Scopes: auth.Scopes()}
		err = d.Update(t.Context(), func(tx *db.Tx) error { _, _, err := auth.Revoke(tx, stranger, old.ID); return err })
		if !problem.Has(err, problem.NotFound) {
			t.Errorf("another project revoked a token: %v", err)
		}

		var list, none []auth.Token
		if err := d.View(t.Context(), func(tx *db.Tx) (err error) {
			if list, err = auth.List(tx, auth.DefaultProject); err == nil {
				none, err = auth.List(tx, "other")
			}
			return err
		}); err != nil || len(list) != 3 || len(none) != 0 {
			t.Errorf("listed %d and %d, %v", len(list), len(none), err)
		}
	})
}

// flip changes the last character but one of a secret.
func flip(s string) string {
	b := []byte(s)
	if i := len(b) - 2; b[i] == 'a' {
		b[i] = 'b'
	} else {
		b[i] = 'a'
	}
	return string(b)
}

func TestSpec(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		weak := auth.Identity{Actor: "local:eve", Project: "p", Scopes: []auth.Scope{auth.TokenWrite, auth.LogRead}}
		for name, c := range map[string]struct {
			change func(*auth.Spec)
			code   problem.Code
		}{
			"no name":          {func(s *auth.Spec) { s.Name = "" }, problem.BadRequest},
			"long name":        {func(s *auth.Spec) { s.Name = strings.Repeat("é", 101) }, problem.BadRequest},
			"control name":     {func(s *auth.Spec) { s.Name = "a\x1b[2J" }, problem.BadRequest},
			"no expiry":        {func(s *auth.Spec) { s.TTL = 0 }, problem.BadRequest},
			"negative expiry":  {func(s *auth.Spec) { s.TTL = -time.Hour }, problem.BadRequest},
			"for ever":         {func(s *auth.Spec) { s.TTL = auth.MaxLifetime + 1 }, problem.BadRequest},
			"no scope":         {func(s *auth.Spec) { s.Scopes = nil }, problem.BadRequest},
			"unknown scope":    {func(s *auth.Spec) { s.Scopes = []auth.Scope{"root"} }, problem.BadRequest},
			"more than he has": {func(s *auth.Spec) { s.By = weak }, problem.Forbidden},
			"nobody":           {func(s *auth.Spec) { s.By = auth.Identity{} }, problem.Forbidden},
		} {
			s := ci()
			c.change(&s)
			if secret, _, err := create(t, d, s); !problem.Has(err, c.code) || secret != "" {
				t.Errorf("%s: %v, want %s", name, err, c.code)
			}
		}
		s := ci()
		s.By, s.Scopes = weak, weak.Scopes
		if _, tok := mustCreate(t, d, s); tok.Project != "p" || tok.CreatedBy != "local:eve" {
			t.Errorf("%+v", tok)
		}
	})
}

// A token makes tokens that are no more than it is and do not outlive it, and
// that end when it is revoked.
func TestOffspring(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		as := func(secret string) auth.Identity {
			t.Helper()
			who, err := auth.Authenticate(t.Context(), d, secret)
			if err != nil {
				t.Fatal(err)
			}
			return who
		}
		make := func(by auth.Identity, ttl time.Duration) (string, auth.Token) {
			t.Helper()
			return mustCreate(t, d, auth.Spec{By: by, Name: "x", Scopes: []auth.Scope{auth.TokenWrite, auth.LogRead}, TTL: ttl})
		}
		secret, root := make(auth.Local("ada"), time.Hour)
		who := as(secret)
		if who.Expires != root.Expires || auth.Local("ada").Expires != 0 {
			t.Errorf("the identity ends at %d, its token at %d", who.Expires, root.Expires)
		}
		for name, ttl := range map[string]time.Duration{"longer": 2 * time.Hour, "by a moment": time.Hour} {
			_, _, err := create(t, d, auth.Spec{By: who, Name: "x", Scopes: who.Scopes, TTL: ttl})
			if !problem.Has(err, problem.Forbidden) || !strings.Contains(problem.Of(err).Next, "--ttl 59m0s") {
				t.Errorf("%s: %v, hint %q", name, err, problem.Of(err).Next)
			}
		}
		childSecret, child := make(who, 50*time.Minute)
		grandSecret, grand := make(as(childSecret), 40*time.Minute)
		_, second := make(who, 30*time.Minute)
		otherSecret, _ := make(auth.Local("ada"), time.Hour)
		parent := as(grandSecret) // authenticated before the revocation

		revoke := func(id string) (tok auth.Token, ended []auth.Token) {
			t.Helper()
			if err := d.Update(t.Context(), func(tx *db.Tx) (err error) {
				tok, ended, err = auth.Revoke(tx, auth.Local("bob"), id)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return tok, ended
		}
		tok, ended := revoke(root.ID)
		var ids []string
		for _, e := range ended {
			ids = append(ids, e.ID)
			if !bytes.Equal(auth.Record(e), auth.Record(read(t, d, e.ID))) || e.Revoked != tok.Revoked || e.RevokedBy != "local:bob" {
				t.Errorf("%+v was ended, the row is %+v", e, read(t, d, e.ID))
			}
		}
		if want := []string{root.ID, child.ID, second.ID, grand.ID}; tok.ID != root.ID || !slices.Equal(ids, want) {
			t.Errorf("revoking %s ended %v, want %v", root.ID, ids, want)
		}
		for _, s := range []string{secret, childSecret, grandSecret} {
			if _, err := auth.Authenticate(t.Context(), d, s); !problem.Has(err, problem.Unauthorized) {
				t.Errorf("a token of a revoked one lives: %v", err)
			}
		}
		as(otherSecret)
		if _, _, err := create(t, d, auth.Spec{By: parent, Name: "x", Scopes: parent.Scopes, TTL: time.Minute}); !problem.Has(err, problem.Forbidden) {
			t.Errorf("a token that was revoked meanwhile made another: %v", err)
		}
		if _, ended := revoke(root.ID); len(ended) != 0 {
			t.Errorf("revoking twice ended %v", ended)
		}

		// Rows that were written before offspring ended with its maker end now,
		// and rows that go in a circle do end.
		edit(t, d, `UPDATE auth_token SET revoked = 0, created_by = $1 WHERE id = $2`, "token:"+grand.ID, child.ID)
		if _, ended := revoke(grand.ID); len(ended) != 1 || ended[0].ID != child.ID {
			t.Errorf("ended %v", ended)
		}
	})
}

// Nobody who is being revoked leaves a token behind.
func TestOffspringRace(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		for range 10 {
			secret, tok := mustCreate(t, d, auth.Spec{By: auth.Local("ada"), Name: "x", Scopes: []auth.Scope{auth.TokenWrite}, TTL: time.Hour})
			who, err := auth.Authenticate(t.Context(), d, secret)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					err := d.Update(context.Background(), func(tx *db.Tx) error {
						_, _, err := auth.Create(tx, auth.Spec{By: who, Name: "y", Scopes: who.Scopes, TTL: time.Minute})
						return err
					})
					if err != nil && !problem.Has(err, problem.Forbidden) {
						t.Error(err)
					}
				})
			}
			wg.Go(func() {
				if err := d.Update(context.Background(), func(tx *db.Tx) error { _, _, err := auth.Revoke(tx, auth.Local("bob"), tok.ID); return err }); err != nil {
					t.Error(err)
				}
			})
			wg.Wait()
			var all []auth.Token
			if err := d.View(t.Context(), func(tx *db.Tx) (err error) { all, err = auth.List(tx, auth.DefaultProject); return err }); err != nil {
				t.Fatal(err)
			}
			for _, x := range all {
				if x.Revoked == 0 {
					t.Fatalf("token %s lives, made by %s", x.ID, x.CreatedBy)
				}
			}
		}
	})
}

// A use is noted once in ten minutes, not for each request.
func TestLastUsed(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		secret, tok := mustCreate(t, d, ci())
		use := func() int64 {
			t.Helper()
			if _, err := auth.Authenticate(t.Context(), d, secret); err != nil {
				t.Fatal(err)
			}
			return read(t, d, tok.ID).LastUsed
		}
		first := use()
		if first < tok.Created {
			t.Fatalf("last used %d, made %d", first, tok.Created)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := auth.Authenticate(context.Background(), d, secret); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if again := use(); again != first {
			t.Error("a second use within the resolution wrote")
		}
		edit(t, d, `UPDATE auth_token SET last_used = $1 WHERE id = $2`, db.Now()-(11*time.Minute).Microseconds(), tok.ID)
		if again := use(); again < first {
			t.Error("a later use was not noted")
		}
	})
}

func TestScopes(t *testing.T) {
	t.Parallel()
	seen := map[auth.Scope]bool{}
	for _, s := range auth.Scopes() {
		if seen[s] || s.Allows() == "do nothing" || s.Allows() == "" || strings.Count(string(s), ":") != 1 {
			t.Errorf("scope %q allows to %q", s, s.Allows())
		}
		seen[s] = true
		if err := auth.Local("ada").Require(s); err != nil {
			t.Error(err)
		}
		if err := (auth.Identity{}).Require(s); !problem.Has(err, problem.Forbidden) {
			t.Error(err)
		}
	}
}

func TestContext(t *testing.T) {
	t.Parallel()
	if _, ok := auth.From(t.Context()); ok {
		t.Error("an identity out of nothing")
	}
	if who, ok := auth.From(auth.With(t.Context(), auth.Local("ada"))); !ok || who.Actor != "local:ada" {
		t.Errorf("%+v, %v", who, ok)
	}
}

// The record is canonical, and every field of a token that matters is in it.
func TestRecord(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[a-z<>&é"]{1,8}`)
		tok := auth.Token{
			ID: text.Draw(t, "id"), Name: text.Draw(t, "name"), Project: text.Draw(t, "project"), Scopes: []auth.Scope{auth.LogRead},
			Created: rapid.Int64Range(0, 1<<52).Draw(t, "created"), CreatedBy: text.Draw(t, "by"), Expires: rapid.Int64Range(0, 1<<52).Draw(t, "expires"),
			Digest: rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "digest"),
		}
		rec := auth.Record(tok)
		canon, err := jcs.Transform(rec)
		if err != nil || !bytes.Equal(canon, rec) || !json.Valid(rec) {
			t.Fatalf("not canonical: %s", rec)
		}
		for i, change := range []func(*auth.Token){
			func(t *auth.Token) { t.ID += "x" }, func(t *auth.Token) { t.Name += "x" }, func(t *auth.Token) { t.Project += "x" },
			func(t *auth.Token) { t.Scopes = []auth.Scope{auth.KeyWrite} }, func(t *auth.Token) { t.Created++ }, func(t *auth.Token) { t.CreatedBy += "x" },
			func(t *auth.Token) { t.Expires++ }, func(t *auth.Token) { t.Revoked++ }, func(t *auth.Token) { t.RevokedBy += "x" },
			func(t *auth.Token) { t.Digest = slices.Clone(t.Digest); t.Digest[0] ^= 1 },
		} {
			other := tok
			change(&other)
			if bytes.Equal(auth.Record(other), rec) {
				t.Fatalf("change %d does not change the record", i)
			}
		}
		used := tok
		used.LastUsed = 7
		if !bytes.Equal(auth.Record(used), rec) {
			t.Fatal("a use changes the record")
		}
	})
}

func FuzzAuthenticateParse(f *testing.F) {
	d, err := db.Open(f.Context(), "sqlite:"+f.TempDir()+"/a.db", db.Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { d.Close() })
	f.Add("fsl_0197b0a0-0000-7000-8000-000000000000_" + strings.Repeat("a", 52))
	f.Add("fsl__")
	f.Fuzz(func(t *testing.T, bearer string) {
		if _, err := auth.Authenticate(context.Background(), d, bearer); !problem.Has(err, problem.Unauthorized) {
			t.Fatalf("%q: %v", bearer, err)
		}
	})
}
