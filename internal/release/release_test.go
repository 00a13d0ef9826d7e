package release_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/db/dbtest"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// A claim on hardware ids, given as "a b".
type claim struct {
	version  string
	counter  uint64
	hardware string
}

// last takes each claim for a request of its own and asks, for request n, what
// the last one on hardware is.
func last(t *testing.T, d *db.DB, project string, claims []claim, hardware string, n int) (out release.Last, err error) {
	request := func(i int) string { return fmt.Sprintf("%s/%d", project, i) }
	err = d.Update(t.Context(), func(tx *db.Tx) (err error) {
		for i, c := range claims {
			if err := release.Take(tx, release.Claim{
				Request: request(i), Project: project, Product: "sensor", Environment: "production",
				HardwareIDs: strings.Fields(c.hardware), Version: c.version, SecurityCounter: c.counter,
			}); err != nil {
				return err
			}
		}
		out, err = release.LastClaim(tx, project, "sensor", "production", strings.Fields(hardware), request(n))
		return err
	})
	return out, err
}

func TestLastClaim(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		for i, c := range []struct {
			claims   []claim
			hardware string
			asks     int // the request that asks; its own claim does not count
			want     release.Last
		}{
			{nil, "a", -1, release.Last{}},
			{[]claim{{"1.9.0", 3, "a"}, {"1.10.0", 3, "a"}}, "a", -1, release.Last{Exists: true, Version: "1.10.0", SecurityCounter: 3}},
			{[]claim{{"1.10.0", 3, "a"}, {"1.9.0", 3, "a"}}, "a", -1, release.Last{Exists: true, Version: "1.10.0", SecurityCounter: 3}},
			{[]claim{{"1.10.0", 3, "a"}, {"1.9.0", 3, "a"}}, "a", 0, release.Last{Exists: true, Version: "1.9.0", SecurityCounter: 3}},
			{[]claim{{"1.10.0", 3, "a"}, {"1.9.0", 4, "a"}}, "a", -1, release.Last{Exists: true, Version: "1.9.0", SecurityCounter: 4}},
			// The counter ties, the hardware differs.
			{[]claim{{"1.9.0", 3, "a"}, {"1.10.0", 3, "b"}}, "a b", -1, release.Last{Exists: true, Version: "1.10.0", SecurityCounter: 3}},
			{[]claim{{"1.9.0", 3, "a"}, {"1.10.0", 3, "b"}}, "b a", -1, release.Last{Exists: true, Version: "1.10.0", SecurityCounter: 3}},
			{[]claim{{"1.10.0", 3, "a"}, {"1.9.0", 3, "b"}}, "a b", -1, release.Last{Exists: true, Version: "1.10.0", SecurityCounter: 3}},
			{[]claim{{"1.9.0", 3, "a"}, {"1.10.0", 3, "b"}}, "a", -1, release.Last{Exists: true, Version: "1.9.0", SecurityCounter: 3}},
			{[]claim{{"9.0.0", 3, "a"}, {"1.0.0", 4, "b"}, {"1.1.0", 4, "a"}}, "a b", -1, release.Last{Exists: true, Version: "1.1.0", SecurityCounter: 4}},
			{[]claim{{"2.0.0-rc.9", 1, "a"}, {"2.0.0-rc.10", 1, "a"}}, "a", -1, release.Last{Exists: true, Version: "2.0.0-rc.10", SecurityCounter: 1}},
			{[]claim{{"2.0.0", 1, "a"}, {"2.0.0-rc.10", 1, "a"}}, "a", -1, release.Last{Exists: true, Version: "2.0.0", SecurityCounter: 1}},
			{[]claim{{"2.0.0+b", 1, "a"}, {"2.0.0+a", 1, "b"}}, "b a", -1, release.Last{Exists: true, Version: "2.0.0+b", SecurityCounter: 1}},
		} {
			got, err := last(t, d, fmt.Sprint("p", i), c.claims, c.hardware, c.asks)
			if err != nil || got != c.want {
				t.Errorf("%v asked for %s: %+v, %v; want %+v", c.claims, c.hardware, got, err, c.want)
			}
		}
		if _, err := last(t, d, "altered", []claim{{"1.2", 1, "a"}}, "a", -1); !problem.Has(err, problem.StateAltered) {
			t.Errorf("a version that is none: %v", err)
		}
	})
}

// Whatever the order in which claims came and hardware is named, no claim on it
// is above the last one.
func TestLastClaimIsTheHighest(t *testing.T) {
	t.Parallel()
	d := dbtest.SQLite(t)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		var claims []claim
		taken := map[string]bool{}
		for range rapid.IntRange(1, 12).Draw(rt, "claims") {
			minor := rapid.IntRange(0, 120).Draw(rt, "minor")
			c := claim{fmt.Sprintf("1.%d.0", minor), rapid.Uint64Range(0, 3).Draw(rt, "counter"), rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "hardware")}
			if name := c.version + c.hardware; !taken[name] {
				taken[name] = true
				claims = append(claims, c)
			}
		}
		hardware := rapid.Permutation([]string{"a", "b"}).Draw(rt, "asked")
		got, err := last(t, d, fmt.Sprint("p", n), claims, strings.Join(hardware, " "), -1)
		if err != nil {
			rt.Fatal(err)
		}
		var want release.Last
		best := [2]int{-1, -1}
		for _, c := range claims {
			var minor int
			if _, err := fmt.Sscanf(c.version, "1.%d.0", &minor); err != nil {
				rt.Fatal(err)
			}
			rank := [2]int{int(c.counter), minor}
			if slices.Contains(hardware, c.hardware) && cmp.Or(cmp.Compare(rank[0], best[0]), cmp.Compare(rank[1], best[1])) > 0 {
				best, want = rank, release.Last{Exists: true, Version: c.version, SecurityCounter: c.counter}
			}
		}
		if got != want {
			rt.Fatalf("%v: %+v, want %+v", claims, got, want)
		}
	})
}
