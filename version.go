package firmseal

import (
	"cmp"
	"fmt"
	"strings"
)

// MaxVersion is the longest version text, in bytes.
const MaxVersion = 128

// Version is a version as Semantic Versioning 2.0.0 has it. Versions are for
// people and for the order of updates; what protects a device against an old
// image is the security counter, never the version.
type Version struct {
	text       string
	core       [3]string // decimal digits without leading zeros, of any length
	prerelease []string
}

// ParseVersion is strict: three numbers, no leading zeros, no "v".
func ParseVersion(s string) (Version, error) {
	bad := func(why string) (Version, error) {
		return Version{}, fmt.Errorf("%q is not a version: %s", clip(s), why)
	}
	if s == "" || len(s) > MaxVersion {
		return bad(fmt.Sprintf("%d bytes, between 1 and %d are possible", len(s), MaxVersion))
	}
	v := Version{text: s}
	rest, build, hasBuild := strings.Cut(s, "+")
	if hasBuild {
		for _, id := range strings.Split(build, ".") {
			if !identifier(id) {
				return bad("the build part has an empty or foreign identifier")
			}
		}
	}
	core, pre, hasPre := strings.Cut(rest, "-")
	if hasPre {
		v.prerelease = strings.Split(pre, ".")
		for _, id := range v.prerelease {
			if !identifier(id) || digits(id) && len(id) > 1 && id[0] == '0' {
				return bad("the pre-release part has an empty or foreign identifier, or a leading zero")
			}
		}
	}
	numbers := strings.Split(core, ".")
	if len(numbers) != 3 {
		return bad("MAJOR.MINOR.PATCH is wanted")
	}
	for i, n := range numbers {
		if !digits(n) || len(n) > 1 && n[0] == '0' {
			return bad("MAJOR, MINOR and PATCH are numbers without leading zeros")
		}
		v.core[i] = n
	}
	return v, nil
}

func (v Version) String() string { return v.text }

// Compare gives -1, 0 or 1 by the precedence of Semantic Versioning 2.0.0,
// section 11: a pre-release is below its release, build metadata counts for
// nothing.
func (v Version) Compare(w Version) int {
	for i := range v.core {
		if c := compareNumbers(v.core[i], w.core[i]); c != 0 {
			return c
		}
	}
	switch {
	case len(v.prerelease) == 0 && len(w.prerelease) == 0:
		return 0
	case len(v.prerelease) == 0:
		return 1
	case len(w.prerelease) == 0:
		return -1
	}
	for i, a := range v.prerelease {
		if i == len(w.prerelease) {
			return 1
		}
		b := w.prerelease[i]
		var c int
		switch na, nb := digits(a), digits(b); {
		case na && nb:
			c = compareNumbers(a, b)
		case na:
			c = -1
		case nb:
			c = 1
		default:
			c = strings.Compare(a, b)
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(v.prerelease), len(w.prerelease))
}

// compareNumbers compares numbers of any size, since a date with a counter does
// not fit into 64 bits for ever.
func compareNumbers(a, b string) int {
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

func identifier(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' {
			return false
		}
	}
	return s != ""
}
