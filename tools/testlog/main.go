// Command testlog reads `go test -json` and writes what a person wants of it:
// a line for each package, everything that a failed test said, and at the end
// the names of the tests that were skipped because a foreign judge is absent.
//
//	go test -json ./... | go run ./tools/testlog
//
// With -peers a test that says "peer absent", or a skipped test named TestPeer…,
// makes it fail. With -need PATTERN it fails unless at least one test whose name
// matches has passed, because a pattern for go test -run that matches nothing
// looks like success. With -v all that the tests say is printed as it comes.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	peers := flag.Bool("peers", false, "fail when a test says that a peer is absent")
	need := flag.String("need", "", "fail unless a test whose name matches this pattern has passed")
	verbose := flag.Bool("v", false, "print everything that the tests say")
	flag.Parse()
	var pattern *regexp.Regexp
	if *need != "" {
		var err error
		if pattern, err = regexp.Compile(*need); err != nil {
			fmt.Fprintln(os.Stderr, "testlog:", err)
			os.Exit(2)
		}
	}
	ok, err := run(os.Stdin, os.Stdout, *peers, pattern, *verbose)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testlog:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action     string
	Package    string
	ImportPath string // build-output
	Test       string
	Output     string
}

const absent = "peer absent: "

// run reads events until the end of r and reports whether all is well.
func run(r io.Reader, w io.Writer, peers bool, need *regexp.Regexp, verbose bool) (bool, error) {
	var (
		ok      = true
		passed  int                      // tests that match need
		said    = map[[2]string]string{} // by package and test, until it ends
		skipped []string
	)
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			break
		}
		if err != nil && err != io.EOF {
			return false, err
		}
		var e event
		if json.Unmarshal(line, &e) != nil || e.Action == "" {
			// go itself complains in plain text, for instance about go.mod.
			fmt.Fprint(w, string(line))
			continue
		}
		key := [2]string{e.Package, e.Test}
		switch e.Action {
		case "build-output":
			fmt.Fprint(w, e.Output)
		case "output":
			said[key] += e.Output
			if verbose || e.Test == "" && packageLine(e.Output) {
				fmt.Fprint(w, e.Output)
			}
		case "pass", "skip", "fail":
			text := said[key]
			delete(said, key)
			if e.Action == "fail" {
				ok = false
				if !verbose {
					fmt.Fprint(w, failure(e, text))
				}
			}
			if e.Action == "pass" && e.Test != "" && need != nil && need.MatchString(e.Test) {
				passed++
			}
			if _, name, found := strings.Cut(text, absent); found && e.Test != "" {
				name, _, _ = strings.Cut(name, "\n")
				skipped = append(skipped, fmt.Sprintf("%s%s: %s in %s", absent, name, e.Test, e.Package))
			} else if e.Action == "skip" && strings.HasPrefix(e.Test, "TestPeer") {
				skipped = append(skipped, fmt.Sprintf("skipped: %s in %s", e.Test, e.Package))
			}
		}
	}
	// What never ended was cut off: a killed test binary, a time-out.
	for key, text := range said {
		if key[1] != "" {
			ok = false
			fmt.Fprint(w, failure(event{Package: key[0], Test: key[1]}, text))
		}
	}
	if len(skipped) > 0 {
		slices.Sort(skipped)
		fmt.Fprintf(w, "\n%d checks by a foreign judge did not run; `make peers` brings the judges:\n", len(skipped))
		for _, s := range skipped {
			fmt.Fprintln(w, "  "+s)
		}
		if peers {
			ok = false
		}
	}
	if need != nil {
		fmt.Fprintf(w, "%d tests that match %s have passed\n", passed, need)
		ok = ok && passed > 0
	}
	return ok, nil
}

// packageLine reports whether a package-level line is its result, and not the
// bare PASS or FAIL before it.
func packageLine(s string) bool {
	return strings.HasPrefix(s, "ok  \t") || strings.HasPrefix(s, "FAIL\t") || strings.HasPrefix(s, "?   \t")
}

// failure is what a failed test, or a package outside its tests, said.
func failure(e event, text string) string {
	if e.Test == "" {
		// The package's own line was printed already.
		var b strings.Builder
		for line := range strings.Lines(text) {
			if !packageLine(line) && line != "FAIL\n" && line != "PASS\n" {
				b.WriteString(line)
			}
		}
		return b.String()
	}
	return fmt.Sprintf("--- %s in %s\n%s", e.Test, e.Package, text)
}
