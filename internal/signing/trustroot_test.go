package signing_test

import (
	"testing"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/servertest"
)

// A device keeps the highest trust root that it has seen. Each creation and each
// retirement of a seal key raises the version, nothing lowers it, and a table
// that was edited gives none at all.
func TestTrustRootFollowsTheLog(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		b := newBench(t, o)
		root := func() *firmseal.TrustRoot {
			t.Helper()
			text, err := b.Client.TrustRoot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r, err := firmseal.ParseTrustRoot(text)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		want := func(version uint64, names ...string) {
			t.Helper()
			r := root()
			var got []string
			for _, k := range r.Keys {
				got = append(got, k.Name)
			}
			if uint64(r.Version) != version || len(got) != len(names) {
				t.Fatalf("version %d with %q, want %d with %q", r.Version, got, version, names)
			}
			for i := range names {
				if got[i] != names[i] {
					t.Fatalf("version %d with %q, want %q", r.Version, got, names)
				}
			}
		}
		want(2, "seal-test", "seal-production")
		who := auth.Local("tester")
		spec := keys.Spec{Name: "seal-next", Type: "ed25519", Binding: keys.Binding{Purpose: keys.Seal, Environment: keys.Production}}
		if _, err := b.Signing.CreateKey(t.Context(), who, "soft", spec); err != nil {
			t.Fatal(err)
		}
		want(3, "seal-test", "seal-production", "seal-next")
		if _, err := b.Signing.RetireKey(t.Context(), who, "seal-production"); err != nil {
			t.Fatal(err)
		}
		want(4, "seal-test", "seal-next")
		// A firmware key is none of the devices' business.
		b.Key("k2", "ed25519", "test", "gadget", "raw")
		want(4, "seal-test", "seal-next")

		// A row that says of an active key that it is retired says nothing.
		if _, err := b.sql.Exec(`UPDATE signing_key SET retired = 1 WHERE name = 'seal-test'`); err != nil {
			t.Fatal(err)
		}
		want(4, "seal-test", "seal-next")
		for _, c := range []struct{ name, edit, back string }{
			{"a retirement taken back", `UPDATE signing_key SET retired = 0 WHERE name = 'seal-production'`, `UPDATE signing_key SET retired = 1 WHERE name = 'seal-production'`},
			{"a retired key for another purpose", `UPDATE signing_key SET purpose = 'firmware' WHERE name = 'seal-production'`, `UPDATE signing_key SET purpose = 'seal' WHERE name = 'seal-production'`},
			{"a retired key of another project", `UPDATE signing_key SET project = 'x' WHERE name = 'seal-production'`, `UPDATE signing_key SET project = (SELECT project FROM signing_key WHERE name = 'k') WHERE name = 'seal-production'`},
			{"a firmware key that would seal", `UPDATE signing_key SET purpose = 'seal', product = '', format = '' WHERE name = 'k2'`, `UPDATE signing_key SET purpose = 'firmware', product = 'gadget', format = 'raw' WHERE name = 'k2'`},
			{"a retired key's row removed", `DELETE FROM signing_key WHERE name = 'seal-production'`, ``},
		} {
			if _, err := b.sql.Exec(c.edit); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if text, err := b.Client.TrustRoot(t.Context()); code(err) != "STATE.ALTERED" {
				t.Errorf("%s: %v, %s", c.name, err, text)
			}
			if c.back == "" {
				continue
			}
			if _, err := b.sql.Exec(c.back); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			want(4, "seal-test", "seal-next")
		}
	})
}
