package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// scripts gives the lines of all scripts.
func scripts(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	var lines []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, strings.Split(string(b), "\n")...)
	}
	return lines
}

func grammar(t *testing.T) *kong.Kong {
	t.Helper()
	var c cli
	p, err := kong.New(&c, kong.Name("firmseal"), kong.Writers(io.Discard, io.Discard), kong.Exit(func(int) { panic(exitNow{}) }))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A command that nobody ran with -o json has no contract with scripts yet.
func TestEveryCommandAnswersInJSON(t *testing.T) {
	t.Parallel()
	p := grammar(t)
	ran := map[string]bool{"firmseal serve": true} // by the command server, which reads its JSON
	for _, l := range scripts(t) {
		if _, line, ok := strings.Cut(l, "firmseal "); ok && strings.HasPrefix(l, "exits ") && strings.Contains(l, "-o json") {
			ran[commandOf(p.Model.Node, strings.Fields(line))] = true
		}
	}
	for _, n := range p.Model.Leaves(true) {
		if !ran[n.FullPath()] {
			t.Errorf("no script runs %s with -o json", n.FullPath())
		}
	}
}

// Exit codes are a contract: each that something gives today is reached by a
// real command in the scripts, and nothing gives another.
func TestEveryExitCodeIsReached(t *testing.T) {
	t.Parallel()
	given := map[int]bool{problem.ExitOK: true}
	for _, e := range problem.All() {
		given[e.Exit] = true
		if !slices.ContainsFunc(exitCodes, func(x exitCode) bool { return x.Code == e.Exit }) {
			t.Errorf("%s gives exit code %d, which help exit-codes does not list", e.Code, e.Exit)
		}
	}
	exits := regexp.MustCompile(`^exits (\d+) `)
	reached := map[int]bool{}
	for _, l := range scripts(t) {
		if m := exits.FindStringSubmatch(l); m != nil {
			n, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			reached[n] = true
		}
	}
	for n := range given {
		if !reached[n] {
			t.Errorf("no script reaches exit code %d", n)
		}
	}
}

// A next step that is a command of this program must be one: in the hints that
// the sources hold, each placeholder is given some value.
func TestHintsAreCommands(t *testing.T) {
	t.Parallel()
	hint := regexp.MustCompile("(?:WithHint\\(|Next: +)\"((?:[^\"\\\\]|\\\\.)*)\"")
	n := 0
	err := filepath.WalkDir("../..", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range hint.FindAllSubmatch(b, -1) {
			text := strings.NewReplacer("%s", "test", "%d", "1", "%q", "test", `\"`, `"`).Replace(string(m[1]))
			if strings.HasSuffix(text, " ") || strings.HasSuffix(text, "-") || !strings.HasPrefix(text, "firmseal ") {
				continue // the command is put together from parts, or is none
			}
			n++
			if err := pasteable(text); err != nil {
				t.Errorf("%s: the hint %q is no command: %v", path, text, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 20 {
		t.Errorf("only %d hints were found; does the expression still fit?", n)
	}
}

// Ctrl-C ends a command that waits, with the exit code of an interruption.
func TestInterruptedCommandSaysSo(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	bin, err := exec.LookPath("firmseal")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, "--server", "http://"+ln.Addr().String(), "status")
	cmd.Dir = t.TempDir()
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.Accept() // it has begun to talk, and gets no answer
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	var ee *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &ee) || ee.ExitCode() != problem.ExitInterrupt {
		t.Errorf("it ended with %v, not exit code %d: %s", err, problem.ExitInterrupt, errOut.String())
	}
	if got := errOut.String(); got != "interrupted\n" {
		t.Errorf("it said %q", got)
	}
}

// What a format says of its keys and options is what it does: it exports trust
// for just the key types that it lists, and explains each option.
func TestFormatsSayWhatTheyTake(t *testing.T) {
	t.Parallel()
	for _, f := range formats() {
		t.Run(f.Name(), func(t *testing.T) {
			t.Parallel()
			d, ok := f.(image.Describer)
			if !ok {
				t.Fatal("the format explains nothing")
			}
			h := image.Describe(d)
			if h.Name != f.Name() || h.Summary == "" || len(h.KeyTypes) == 0 || len(h.Options) == 0 {
				t.Errorf("the help is not whole: %+v", h)
			}
			for _, kt := range alg.KeyTypes() {
				_, err := f.ExportTrust([]image.PublicMaterial{{Role: "image", Name: "k", SPKI: publicKey(t, kt)}}, nil)
				if takes := slices.Contains(h.KeyTypes, kt); takes != (err == nil) {
					t.Errorf("help says that %s is taken: %v; ExportTrust says %v", kt, takes, err)
				}
			}
			for _, o := range h.Trust {
				// null is every type's zero: only an unknown name is refused.
				_, err := f.ExportTrust([]image.PublicMaterial{{Role: "image", Name: "k", SPKI: publicKey(t, h.KeyTypes[0])}}, image.Options(fmt.Sprintf("{%q:null}", o.Name)))
				if problem.Has(err, problem.ImageOptions) && strings.Contains(err.Error(), "unknown field") {
					t.Errorf("option %s does not exist: %v", o.Name, err)
				}
			}
		})
	}
}
