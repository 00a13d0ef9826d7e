package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every command that the README shows works, in its order, in an empty folder
// with one file build/app.bin: what a newcomer pastes does what the page says.
func TestReadme(t *testing.T) {
	t.Parallel()
	const root = "../.."
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := l.Addr().String() // in place of the page's address, which another test may have
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// The server that the page starts ends with the script.
	script := []string{"set -eux", `trap 'test -z "${!:-}" || kill $!' EXIT`}
	for _, m := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		for l := range strings.Lines(m[1]) {
			l = strings.TrimSpace(l)
			if target, ok := strings.CutPrefix(l, "make "); ok {
				// The tests do not run themselves; the target must be there.
				if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(target) + `:`).Match(makefile) {
					t.Errorf("the Makefile has no %s", target)
				}
				continue
			}
			if neg, ok := strings.CutPrefix(l, "! "); ok {
				// set -e does not look at a command behind "!".
				l = "if " + neg + "; then exit 1; else test $? -eq 3; fi"
			}
			l = strings.Replace(l, "go run ./cmd/firmseal ", "firmseal ", 1)
			script = append(script, strings.ReplaceAll(l, "127.0.0.1:8650", free))
		}
	}
	if len(script) < 15 {
		t.Fatalf("only %d commands were found", len(script)-1)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "build"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "build/app.bin"), []byte("a gateway's firmware"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.Join(script, "\n"))
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, m := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(string(text), -1) {
		if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
			t.Errorf("the README links to %s, which is not there", m[1])
		}
	}
}
