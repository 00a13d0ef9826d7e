package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/firmseal/firmseal/internal/signing"
)

// LIFE-OF-A-REQUEST names just the steps of the signing path, in their order,
// and only tables, leaves and commands that exist.
func TestLifeOfARequestIsTrue(t *testing.T) {
	t.Parallel()
	const root = "../.."
	read := func(path string) string {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	text := read("docs/LIFE-OF-A-REQUEST.md")
	var labels []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z]+\\.[a-z]+)` \\|").FindAllStringSubmatch(text, -1) {
		labels = append(labels, m[1])
	}
	if !slices.Equal(labels, signing.Steps()) {
		t.Errorf("the page has the steps %v, the code %v", labels, signing.Steps())
	}
	files, err := filepath.Glob(filepath.Join(root, "internal/db/migrations/sqlite/*.sql"))
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	tables := map[string]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`CREATE TABLE (\w+)`).FindAllStringSubmatch(string(b), -1) {
			tables[m[1]] = true
		}
	}
	for _, m := range regexp.MustCompile("`((?:signing|release)_[a-z]+|job|journal|release)`").FindAllStringSubmatch(text, -1) {
		if !tables[m[1]] {
			t.Errorf("there is no table %s", m[1])
		}
	}
	leaves := read("leaf.go")
	for _, m := range regexp.MustCompile("leaf `([a-z.]+)`").FindAllStringSubmatch(text, -1) {
		if !strings.Contains(leaves, `"`+m[1]+`"`) {
			t.Errorf("there is no leaf %s", m[1])
		}
	}
	for _, doc := range []string{"docs/LIFE-OF-A-REQUEST.md", "README.md"} {
		for _, m := range regexp.MustCompile("`(firmseal [a-z][^`]*)`").FindAllStringSubmatch(read(doc), -1) {
			if err := pasteable("words: " + m[1]); err != nil {
				t.Errorf("%s shows %q: %v", doc, m[1], err)
			}
		}
	}
}
