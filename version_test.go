package firmseal

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestVersionOrder(t *testing.T) {
	t.Parallel()
	// Each is above the one before it; the middle is semver.org's own example.
	order := []string{
		"0.0.1-0", "0.0.1", "0.9.0", "0.10.0", "1.0.0-0", "1.0.0-1", "1.0.0-9", "1.0.0-10", "1.0.0--", "1.0.0-1a",
		"1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1",
		"1.0.0", "1.0.1", "1.2.0", "2.0.0", "18446744073709551616.0.0", "18446744073709551617.0.0",
	}
	for i, a := range order {
		for j, b := range order {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := must(ParseVersion(a)).Compare(must(ParseVersion(b))); got != want {
				t.Errorf("%s and %s: %d, want %d", a, b, got, want)
			}
		}
	}
	for _, pair := range [][2]string{{"1.0.0+a", "1.0.0+b"}, {"1.0.0+001", "1.0.0"}, {"1.0.0-rc.1+x", "1.0.0-rc.1"}} {
		if must(ParseVersion(pair[0])).Compare(must(ParseVersion(pair[1]))) != 0 {
			t.Errorf("build metadata decides between %s and %s", pair[0], pair[1])
		}
	}
}

func TestVersionForm(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"", "1", "1.2", "1.2.3.4", "v1.2.3", "1.2.3-", "1.2.3+", "1.2.3-a..b", "1.2.3-01", "01.2.3", "1.02.3", "1.2.03", "1.2.-3", "+1.2.3",
		" 1.2.3", "1.2.3 ", "1.2.3\n", "1.2.3-ä", "1.2.3+a+b", "1.2.3-a_b", "1.2.x", "１.2.3", "1.2.3+" + strings.Repeat("a", 128),
	} {
		if v, err := ParseVersion(bad); err == nil {
			t.Errorf("%q is taken for %v", bad, v)
		}
	}
	for _, good := range []string{"0.0.0", "1.2.3-0a", "1.2.3-a-b.-", "1.2.3--", "1.2.3+01", "1.2.3-rc.1+build.5"} {
		if v, err := ParseVersion(good); err != nil || v.String() != good {
			t.Errorf("%q: %v", good, err)
		}
	}
}

func TestVersionsAreInOneOrder(t *testing.T) {
	t.Parallel()
	version := rapid.Custom(func(t *rapid.T) Version {
		n := rapid.IntRange(0, 3)
		s := fmt.Sprintf("%d.%d.%d", n.Draw(t, "major"), n.Draw(t, "minor"), n.Draw(t, "patch"))
		if pre := rapid.SliceOfN(rapid.StringMatching(`(0|[1-9][0-9]?|[0-9]?[a-c-][0-9a-c-]?)`), 0, 3).Draw(t, "pre"); len(pre) > 0 {
			s += "-" + strings.Join(pre, ".")
		}
		return must(ParseVersion(s))
	})
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.SliceOfN(version, 3, 3).Draw(t, "versions")
		if v[0].Compare(v[1]) != -v[1].Compare(v[0]) {
			t.Fatalf("%v and %v are in two orders", v[0], v[1])
		}
		if (v[0].Compare(v[1]) == 0) != (v[0].String() == v[1].String()) {
			t.Fatalf("%v and %v are taken for one", v[0], v[1])
		}
		slices.SortFunc(v, Version.Compare)
		if v[0].Compare(v[2]) > 0 {
			t.Fatalf("%v is not in order", v)
		}
	})
}
