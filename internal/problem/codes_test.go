package problem

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/firmseal/firmseal"
)

// constants reads the codes that a file declares: its typed string constants,
// and those that are another name for one of the root package's.
func constants(t *testing.T, file string) map[string]Code {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Code{}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			if typ, ok := v.Type.(*ast.Ident); !ok || typ.Name != "Code" {
				continue
			}
			for i, n := range v.Names {
				text, err := strconv.Unquote(v.Values[i].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				out[n.Name] = Code(text)
			}
		}
	}
	if len(out) < 20 {
		t.Fatalf("%s declares %d codes only: this test reads it wrongly", file, len(out))
	}
	return out
}

func TestEveryCodeHasItsRow(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^[A-Z][A-Z0-9]*\.[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$`)
	// The first ones of all are about no area.
	bare := map[Code]bool{Internal: true, Usage: true, NotFound: true, Unavailable: true, Conflict: true}
	declared := map[Code]string{}
	for _, file := range []string{"codes.go", "../../codes.go"} {
		for name, c := range constants(t, file) {
			if other, ok := declared[c]; ok {
				t.Errorf("%s and %s are both %s; another name for a code of the root package is = firmseal.Code…", other, name, c)
			}
			declared[c] = name
			if !form.MatchString(string(c)) && !bare[c] {
				t.Errorf("%s is %q, not AREA.CAUSE", name, c)
			}
			if _, ok := Lookup(c); !ok {
				t.Errorf("%s (%s) has no row in the table", c, name)
			}
		}
	}
	rows := map[Code]bool{}
	for _, e := range table {
		if rows[e.Code] {
			t.Errorf("%s has two rows", e.Code)
		}
		rows[e.Code] = true
		if declared[e.Code] == "" {
			t.Errorf("%s has a row and no constant", e.Code)
		}
		if e.Title == "" || strings.HasSuffix(e.Title, ".") || !strings.HasSuffix(e.Help, ".") || len(e.Help) < 30 {
			t.Errorf("%s: title %q, help %q", e.Code, e.Title, e.Help)
		}
		if http.StatusText(e.Status) == "" || e.Status < 400 {
			t.Errorf("%s: HTTP status %d", e.Code, e.Status)
		}
		switch e.Exit {
		case ExitError, ExitUsage, ExitRefused, ExitForbidden, ExitPolicy, ExitPending, ExitNotFound, ExitGate, ExitTemporary:
		default:
			t.Errorf("%s: exit code %d", e.Code, e.Exit)
		}
	}
}

// What a device refuses, a script on a build machine must see as a refusal.
func TestDeviceRefusalsExitAlike(t *testing.T) {
	t.Parallel()
	for name, c := range constants(t, "../../codes.go") {
		e, _ := Lookup(c)
		if c != firmseal.CodeUnsupportedAlg && e.Exit != ExitRefused {
			t.Errorf("%s (%s) exits with %d", c, name, e.Exit)
		}
		if got := Exit(&firmseal.Error{Code: c, What: "x"}); got != e.Exit {
			t.Errorf("%s through an error exits with %d, its row says %d", c, got, e.Exit)
		}
	}
}
