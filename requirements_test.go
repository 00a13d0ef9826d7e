package firmseal_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	requirementRow = regexp.MustCompile(`^\| ([A-P]\d\d) \|`)
	namedTest      = regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Za-z0-9_]+)`")
	testFunction   = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)[A-Za-z0-9_]+)\(`)
)

// docs/REQUIREMENTS.md names no test that nobody has, and no requirement
// without one.
func TestRequirements(t *testing.T) {
	t.Parallel()
	have := map[string]bool{}
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && p != "." {
			return fs.SkipDir
		}
		if !strings.HasSuffix(p, "_test.go") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		for _, m := range testFunction.FindAllSubmatch(src, -1) {
			have[string(m[1])] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("docs/REQUIREMENTS.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for line := range strings.Lines(string(page)) {
		m := requirementRow.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if slices.Contains(rows, m[1]) {
			t.Errorf("%s has two rows", m[1])
		}
		rows = append(rows, m[1])
		tests := namedTest.FindAllStringSubmatch(line, -1)
		if len(tests) == 0 {
			t.Errorf("%s names no test", m[1])
		}
		for _, n := range tests {
			if !have[n[1]] {
				t.Errorf("%s names %s, which does not exist", m[1], n[1])
			}
		}
	}
	if len(rows) == 0 || !slices.IsSorted(rows) {
		t.Errorf("the rows are %v", rows)
	}
}
