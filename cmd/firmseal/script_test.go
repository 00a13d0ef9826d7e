package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/firmseal/firmseal/internal/image/fit/fitdemo"
)

// TestScript runs testdata/*.txtar: each begins with the sentence that a user
// would say. They are this program in processes of its own, on real
// workspaces, files and connections.
func TestScript(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               scriptHome,
		Cmds:                scriptCommands(),
	})
}

// scriptHome gives a script a home of its own: identities and second places of
// other workspaces are out of its reach.
func scriptHome(e *testscript.Env) error {
	home := filepath.Join(e.WorkDir, "home")
	for _, v := range e.Vars {
		if strings.HasPrefix(v, "FIRMSEAL_") {
			return fmt.Errorf("the environment of a script has %s", v)
		}
	}
	e.Setenv("HOME", home)
	e.Setenv("XDG_CONFIG_HOME", filepath.Join(home, "config"))
	e.Setenv("XDG_STATE_HOME", filepath.Join(home, "state"))
	return os.MkdirAll(home, 0o700)
}

func scriptCommands() map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	return map[string]func(ts *testscript.TestScript, neg bool, args []string){
		"exits":     exits,
		"field":     field,
		"explained": explained,
		"demofit":   demofit,
		"bytes":     bytesFile,
		"flip":      flipByte,
		"cut":       cut,
		"server":    serverUp,
		"begin":     begin,
		"only":      only,
	}
}

// exits CODE COMMAND…: runs a command and demands its exit code. Its outputs
// are left in the files out and err.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARG…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	execErr := ts.Exec(args[1], args[2:]...)
	out, errOut := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	ts.Check(os.WriteFile(ts.MkAbs("out"), []byte(out), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs("err"), []byte(errOut), 0o644))
	got := 0
	if execErr != nil {
		var ee *exec.ExitError
		if !asExit(execErr, &ee) {
			ts.Fatalf("%v", execErr)
		}
		got = ee.ExitCode()
	}
	if got != want {
		ts.Fatalf("%s ended with exit code %d, not %d\nstdout: %s\nstderr: %s", strings.Join(args[1:], " "), got, want, out, errOut)
	}
	if strings.Contains(errOut, "panic:") || strings.Contains(errOut, "goroutine ") {
		ts.Fatalf("the program crashed: %s", errOut)
	}
}

func asExit(err error, into **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	*into = e
	return ok
}

// field FILE PATH [WANT]: the JSON file has a member at the dotted path, and it
// is WANT where that is given. With !, there is none. A WANT that begins with ~
// is a regular expression.
func field(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: field FILE PATH [WANT]")
	}
	var doc any
	text := ts.ReadFile(args[0])
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		ts.Fatalf("%s is not one JSON document: %v\n%s", args[0], err, text)
	}
	v, ok := at(doc, args[1])
	if ok == neg {
		ts.Fatalf("%s in %s: there is %v\n%s", args[1], args[0], ok, text)
	}
	if len(args) == 2 || neg {
		return
	}
	got := fmt.Sprint(v)
	if f, isNumber := v.(float64); isNumber {
		got = strconv.FormatFloat(f, 'f', -1, 64)
	}
	if re, isRE := strings.CutPrefix(args[2], "~"); isRE && regexp.MustCompile(re).MatchString(got) || got == args[2] {
		return
	}
	ts.Fatalf("%s in %s is %q, not %q", args[1], args[0], got, args[2])
}

func at(v any, path string) (any, bool) {
	for p := range strings.SplitSeq(path, ".") {
		switch c := v.(type) {
		case map[string]any:
			w, ok := c[p]
			if !ok {
				return nil, false
			}
			v = w
		case []any:
			if p == "len" {
				v = float64(len(c))
				continue
			}
			i, err := strconv.Atoi(p)
			if err != nil || i < 0 || i >= len(c) {
				return nil, false
			}
			v = c[i]
		default:
			return nil, false
		}
	}
	return v, true
}

// explained CODE: the last exits printed the three-line form on standard error,
// with this code on the first line, at most one why and one next, nothing on
// standard output; and a next that is a firmseal command is one that parses.
func explained(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: explained CODE")
	}
	if out := ts.ReadFile("out"); out != "" {
		ts.Fatalf("a refusal printed on standard output: %s", out)
	}
	lines := strings.Split(strings.TrimRight(ts.ReadFile("err"), "\n"), "\n")
	if !strings.HasPrefix(lines[0], "firmseal: ") || !strings.HasSuffix(lines[0], "\t"+args[0]) {
		ts.Fatalf("the first line is %q, not what happened with the code %s", lines[0], args[0])
	}
	if what, _, _ := strings.Cut(lines[0], "\t"); strings.HasSuffix(what, ".") && !strings.HasSuffix(what, "...") {
		ts.Fatalf("the sentence ends with a full stop: %q", what)
	}
	order := []string{"why   ", "next  "}
	for _, l := range lines[1:] {
		for len(order) > 0 && !strings.HasPrefix(l, order[0]) {
			order = order[1:]
		}
		if len(order) == 0 {
			// A why that points into a line of YAML has more lines.
			if strings.HasPrefix(l, "      ") {
				order = []string{"next  "}
				continue
			}
			ts.Fatalf("the line %q is neither why nor next, or comes twice", l)
		}
		if next, ok := strings.CutPrefix(l, "next  "); ok {
			if err := pasteable(next); err != nil {
				ts.Fatalf("the next step %q cannot be pasted: %v", next, err)
			}
			order = order[1:]
		}
	}
	if strings.Contains(strings.Join(lines, "\n"), "INTERNAL") {
		ts.Fatalf("an input was called a fault of the program: %s", lines)
	}
}

// pasteable parses a next step that is a command of this program. Where the
// command stands at the end of words, its name must exist.
func pasteable(next string) error {
	i := strings.Index(next, "firmseal ")
	if i < 0 || i > 0 && !strings.HasSuffix(next[:i], ": ") {
		return nil // words
	}
	words := strings.Fields(next[i:])[1:]
	var c cli
	p, err := kong.New(&c, kong.Name("firmseal"), kong.Writers(io.Discard, io.Discard), kong.Exit(func(int) { panic(exitNow{}) }))
	if err != nil {
		return err
	}
	if i > 0 {
		if commandOf(p.Model.Node, words) == "firmseal" {
			return fmt.Errorf("there is no command %s", words[0])
		}
		return nil
	}
	_, err = parse(p, words)
	return err
}

// demofit FILE VERSION: an unsigned FIT with a program that U-Boot can run.
func demofit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: demofit FILE VERSION")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), fitdemo.FIT(args[1]), 0o644))
}

// bytes FILE SIZE [TEXT]: a file of a repeating text.
func bytesFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: bytes FILE SIZE [TEXT]")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	text := "firmware "
	if len(args) > 2 {
		text = args[2]
	}
	b := bytes.Repeat([]byte(text), n/len(text)+1)[:n]
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

// flip FILE OFFSET: turns one bit. A negative offset counts from the end.
func flipByte(ts *testscript.TestScript, neg bool, args []string) {
	b := []byte(ts.ReadFile(args[0]))
	i, err := strconv.Atoi(args[1])
	ts.Check(err)
	if i < 0 {
		i += len(b)
	}
	b[i] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

// cut FILE SIZE: makes a file shorter, or longer by zero bytes.
func cut(ts *testscript.TestScript, neg bool, args []string) {
	n, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), n))
}

// server URLVAR [ARG…]: a real firmseal serve, until the script ends. Its
// address is in the variable; its log in the file server.log.
func serverUp(ts *testscript.TestScript, neg bool, args []string) {
	bin, err := exec.LookPath("firmseal")
	ts.Check(err)
	cmd := exec.Command(bin, append([]string{"-o", "json", "serve", "--listen", "127.0.0.1:0"}, args[1:]...)...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + ts.Getenv("HOME"), "XDG_CONFIG_HOME=" + ts.Getenv("XDG_CONFIG_HOME"), "XDG_STATE_HOME=" + ts.Getenv("XDG_STATE_HOME")}
	log, err := os.Create(ts.MkAbs("server.log"))
	ts.Check(err)
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ended := make(chan error, 1)
	ts.Defer(func() {
		defer log.Close()
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case err := <-ended:
			if err != nil {
				ts.Logf("the server ended with %v", err)
			}
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			ts.Logf("the server did not stop within a minute")
		}
	})
	var doc struct {
		URL string `json:"url"`
	}
	first := json.NewDecoder(bufio.NewReader(out))
	err = first.Decode(&doc)
	go func() { ended <- cmd.Wait() }()
	if err != nil || doc.URL == "" {
		b, _ := os.ReadFile(log.Name())
		ts.Fatalf("the server did not start: %v\n%s", err, b)
	}
	ts.Setenv(args[0], doc.URL)
}

// begin FILE URL TOKEN SIZE: uploads only the first SIZE bytes of a file, as a
// builder that is cut off does. Prints nothing.
func begin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: begin FILE URL TOKEN SIZE")
	}
	n, err := strconv.ParseInt(args[3], 10, 64)
	ts.Check(err)
	ts.Check(uploadPart([]byte(ts.ReadFile(args[0])), args[1], strings.TrimSpace(ts.ReadFile(args[2])), n))
}

// only DIR NAME…: the directory holds these names and nothing else: nothing
// half-written was left.
func only(ts *testscript.TestScript, neg bool, args []string) {
	ents, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	want := map[string]bool{}
	for _, n := range args[1:] {
		want[n] = true
	}
	for _, e := range ents {
		if !want[e.Name()] {
			ts.Fatalf("%s is in %s", e.Name(), args[0])
		}
		delete(want, e.Name())
	}
	for n := range want {
		ts.Fatalf("%s is not in %s", n, args[0])
	}
}
