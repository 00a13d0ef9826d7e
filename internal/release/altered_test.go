package release_test

import (
	"testing"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/db/dbtest"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
)

// Claims that were edited by hand do not let a counter fall, nor a version name
// a second image: what was released is remembered apart from them.
func TestEditedClaims(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, edit string }{
		{"deleted", `DELETE FROM release_claim`},
		{"lowered", `UPDATE release_claim SET security_counter = 0`},
		{"moved", `UPDATE release_claim SET hardware_id = 'x' || hardware_id`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, d *db.DB) {
				cl := release.Claim{
					Request: "r1", Project: "default", Product: "sensor", Environment: "production",
					HardwareIDs: []string{"a", "b"}, Version: "1.0.0", SecurityCounter: 5,
				}
				if err := d.Update(t.Context(), func(tx *db.Tx) error {
					if err := release.Take(tx, cl); err != nil {
						return err
					}
					return release.Create(tx, release.Release{
						ID: db.NewID(), Project: cl.Project, Request: cl.Request, Product: cl.Product, Environment: cl.Environment,
						HardwareIDs: cl.HardwareIDs, Version: cl.Version, SecurityCounter: cl.SecurityCounter, Format: "raw", Seal: []byte("{}"),
					})
				}); err != nil {
					t.Fatal(err)
				}
				if err := d.Update(t.Context(), func(tx *db.Tx) error { _, err := tx.Exec(c.edit); return err }); err != nil {
					t.Fatal(err)
				}
				err := d.View(t.Context(), func(tx *db.Tx) error {
					_, err := release.LastClaim(tx, "default", "sensor", "production", []string{"b"}, "r2")
					return err
				})
				if !problem.Has(err, problem.StateAltered) {
					t.Errorf("the counter may fall: %v", err)
				}
				again := cl
				again.Request = "r2"
				if err := d.Update(t.Context(), func(tx *db.Tx) error { return release.Take(tx, again) }); !problem.Has(err, problem.VersionTaken) {
					t.Errorf("the version may be taken again: %v", err)
				}
			})
		})
	}
}
