package firmseal_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A format is written twice: one half makes the signed file (Plan, Resume,
// Embed, Inspect, ExportTrust), the other decides about it (Verify). They share
// constants and nothing else, or one misreading of the bytes would be made
// twice and found by nobody. This test reads each format with the type checker
// and holds it to these rules:
//
//  1. Files named verify*.go are the Verify half, constants.go is shared, all
//     other files are the other half. A method Verify or VerifyDigest of the
//     format stands in the Verify half.
//  2. No file of one half uses what is declared in a file of the other: no
//     function, method, variable, type or field. Uses are resolved by the type
//     checker, so a method called through a value counts like one called by name.
//  3. A constant may be used from anywhere if its type is not one of this
//     package's with methods: a value has its methods along, and fmt calls them
//     without being asked.
//  4. constants.go declares constants and plain types: no functions, variables
//     or methods, nothing of either half inside, and no function or interface
//     type in which one half could hand the other its code. A struct declared
//     there never goes through encoding/binary: that would be a shared layout.
//  5. The one exception is the receiver of the methods that tie the halves
//     together, those of image.Format and its optional interfaces listed here. Its
//     type is an empty struct, and where a method stands in another half than
//     the type, the receiver has no name: there is no way through it.
//  6. A package that both halves import, themselves or through others of this
//     module, is the standard library, or one of the rooms that own no layout:
//     image, alg, problem.
//  7. Neither half imports unsafe, reflect or C, with which rule 2 could be
//     walked around.
//
// What is reachable from Verify is then in verify*.go, or a constant or plain
// type, or in the standard library.

// The interfaces of package image whose methods one type has for both halves.
var tyingInterfaces = [...]string{"Format", "DigestFormat", "Stamper", "Describer"}

// sharedByHalves are the packages outside the standard library that both
// halves may import.
var sharedByHalves = [...]string{
	houseModule + "/internal/image",
	houseModule + "/internal/alg",
	houseModule + "/internal/problem",
}

type half int

const (
	planHalf half = iota
	verifyHalf
	noHalf // constants.go
)

func (h half) String() string {
	return [...]string{"the Plan half", "the Verify half", "constants.go"}[h]
}

func halfOf(file string) half {
	switch base := path.Base(filepath.ToSlash(file)); {
	case base == "constants.go":
		return noHalf
	case strings.HasPrefix(base, "verify"):
		return verifyHalf
	}
	return planHalf
}

// checkHalves gives what is wrong with one format, sentence by sentence. The
// files of tests are not among files. needs gives the packages outside the
// standard library that a package of this module imports.
func checkHalves(fset *token.FileSet, files []*ast.File, imp types.Importer, needs func(string) []string) []string {
	var bad []string
	where := func(p token.Pos) string {
		pos := fset.Position(p)
		return fmt.Sprintf("%s:%d", path.Base(filepath.ToSlash(pos.Filename)), pos.Line)
	}
	complain := func(p token.Pos, format string, a ...any) {
		bad = append(bad, where(p)+": "+fmt.Sprintf(format, a...))
	}

	// Without full type information a use may be missed: any error ends here.
	conf := types.Config{Importer: imp, Error: func(err error) { bad = append(bad, err.Error()) }}
	info := &types.Info{
		Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}, Types: map[ast.Expr]types.TypeAndValue{},
	}
	pkg, _ := conf.Check(files[0].Name.Name, fset, files, info)
	if len(bad) > 0 {
		return bad
	}
	halfAt := func(p token.Pos) half { return halfOf(fset.Position(p).Filename) }

	// Rule 5: which method names tie the halves together.
	tie := map[string]bool{}
	for _, im := range pkg.Imports() {
		if im.Path() != houseModule+"/internal/image" {
			continue
		}
		for _, name := range tyingInterfaces {
			obj := im.Scope().Lookup(name)
			if obj == nil {
				return []string{fmt.Sprintf("package image has no interface %s; house_halves_test.go must follow", name)}
			}
			iface := obj.Type().Underlying().(*types.Interface)
			for i := range iface.NumMethods() {
				tie[iface.Method(i).Name()] = true
			}
		}
	}

	// local is the package-level object, method or field of this package that
	// an identifier stands for.
	local := func(obj types.Object) bool {
		if obj == nil || obj.Pkg() != pkg {
			return false
		}
		switch o := obj.(type) {
		case *types.Var:
			return o.IsField() || o.Parent() == pkg.Scope()
		case *types.Func:
			return true
		}
		return obj.Parent() == pkg.Scope()
	}
	hasMethods := func(t types.Type) bool {
		n, ok := types.Unalias(t).(*types.Named)
		return ok && n.Obj().Pkg() == pkg && n.NumMethods() > 0
	}

	verifies := false
	receivers := map[*ast.Ident]bool{} // receiver types excused by rule 5
	imports := map[string]map[half]token.Pos{}
	for _, f := range files {
		here := halfAt(f.Pos())
		for _, spec := range f.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return []string{err.Error()}
			}
			if imports[p] == nil {
				imports[p] = map[half]token.Pos{}
			}
			imports[p][here] = spec.Pos()
		}
		for _, d := range f.Decls {
			if here == noHalf {
				checkShared(d, info, pkg, hasMethods, complain)
			}
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv == nil {
				continue
			}
			if want := strings.HasPrefix(fn.Name.Name, "Verify") && tie[fn.Name.Name]; want != (here == verifyHalf) && tie[fn.Name.Name] {
				complain(fn.Pos(), "method %s stands in %s", fn.Name.Name, here)
			} else if want {
				verifies = true
			}
			recv := fn.Recv.List[0]
			x := ast.Unparen(recv.Type)
			if s, ok := x.(*ast.StarExpr); ok {
				x = ast.Unparen(s.X)
			}
			id, ok := x.(*ast.Ident)
			if !ok || halfAt(info.Uses[id].Pos()) == here {
				continue
			}
			st, isStruct := info.Uses[id].Type().Underlying().(*types.Struct)
			switch {
			case !tie[fn.Name.Name]:
				continue // an ordinary use; rule 2 finds it
			case !isStruct || st.NumFields() > 0:
				complain(fn.Pos(), "%s has methods in both halves and holds state; make it an empty struct", id.Name)
			case len(recv.Names) > 0 && recv.Names[0].Name != "_":
				complain(fn.Pos(), "the receiver of %s.%s leads to the other half; leave it without a name", id.Name, fn.Name.Name)
			}
			receivers[id] = true
		}

		ast.Inspect(f, func(n ast.Node) bool {
			id, ok := n.(*ast.Ident)
			if !ok || receivers[id] {
				return true
			}
			obj := info.Uses[id]
			if !local(obj) {
				return true
			}
			if fn, ok := obj.(*types.Func); ok {
				obj = fn.Origin()
			}
			there := halfAt(obj.Pos())
			if c, ok := obj.(*types.Const); ok {
				if there != here && hasMethods(c.Type()) {
					complain(id.Pos(), "%s uses the constant %s of %s, whose type has methods", here, obj.Name(), there)
				}
				return true
			}
			if there != here && there != noHalf {
				complain(id.Pos(), "%s uses %s, which %s declares", here, obj.Name(), there)
			}
			return true
		})
		checkBinary(f, info, pkg, func(p token.Pos) bool { return halfAt(p) == noHalf }, complain)
	}
	if !verifies {
		bad = append(bad, "no file verify*.go has the method Verify")
	}

	reached := map[string]map[half]token.Pos{}
	for p, at := range imports {
		for h, pos := range at {
			if p == "unsafe" || p == "reflect" || p == "C" {
				complain(pos, "a format must not import %s: it hides what is used", p)
			}
			for todo := []string{p}; len(todo) > 0; {
				q := todo[0]
				todo = todo[1:]
				first, _, _ := strings.Cut(q, "/")
				if _, seen := reached[q][h]; seen || !strings.Contains(first, ".") || slices.Contains(sharedByHalves[:], q) {
					continue
				}
				if reached[q] == nil {
					reached[q] = map[half]token.Pos{}
				}
				reached[q][h] = pos
				todo = append(todo, needs(q)...)
			}
		}
	}
	for p, at := range reached {
		_, inPlan := at[planHalf]
		if pos, inVerify := at[verifyHalf]; inPlan && inVerify {
			complain(pos, "both halves import %s", p)
		}
	}
	slices.Sort(bad)
	return bad
}

// checkShared holds one declaration of constants.go to rule 4.
func checkShared(d ast.Decl, info *types.Info, pkg *types.Package, hasMethods func(types.Type) bool, complain func(token.Pos, string, ...any)) {
	gen, ok := d.(*ast.GenDecl)
	if !ok {
		complain(d.Pos(), "constants.go declares a function")
		return
	}
	if gen.Tok == token.VAR {
		complain(gen.Pos(), "constants.go declares a variable")
	}
	for _, s := range gen.Specs {
		ts, ok := s.(*ast.TypeSpec)
		if !ok {
			continue
		}
		t := info.Defs[ts.Name].Type()
		if hasMethods(t) {
			complain(ts.Pos(), "type %s of constants.go has methods", ts.Name.Name)
		}
		// Code can also be handed over inside a plain-looking type.
		ast.Inspect(ts.Type, func(n ast.Node) bool {
			x, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			tv, ok := info.Types[x]
			if !ok || !tv.IsType() {
				return true
			}
			named, isNamed := types.Unalias(tv.Type).(*types.Named)
			if isNamed && named.Obj().Pkg() != pkg {
				if _, iface := named.Underlying().(*types.Interface); !iface {
					return true
				}
			}
			switch tv.Type.Underlying().(type) {
			case *types.Signature, *types.Interface, *types.Chan, *types.TypeParam:
				complain(x.Pos(), "type %s of constants.go can carry code from one half to the other", ts.Name.Name)
			}
			return true
		})
	}
}

// checkBinary finds structs of constants.go that go through encoding/binary.
func checkBinary(f *ast.File, info *types.Info, pkg *types.Package, shared func(token.Pos) bool, complain func(token.Pos, string, ...any)) {
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := ast.Unparen(call.Fun).(*ast.SelectorExpr)
		if !ok {
			return true
		}
		fn, ok := info.Uses[sel.Sel].(*types.Func)
		if !ok || fn.Pkg() == nil || fn.Pkg().Path() != "encoding/binary" {
			return true
		}
		for _, arg := range call.Args {
			t := info.Types[arg].Type
			for t != nil {
				if n, ok := types.Unalias(t).(*types.Named); ok && n.Obj().Pkg() == pkg && shared(n.Obj().Pos()) {
					if _, ok := n.Underlying().(*types.Struct); ok {
						complain(arg.Pos(), "the shared struct %s goes through encoding/binary: a layout is not a constant", n.Obj().Name())
					}
				}
				switch u := t.Underlying().(type) {
				case *types.Pointer:
					t = u.Elem()
				case *types.Slice:
					t = u.Elem()
				case *types.Array:
					t = u.Elem()
				default:
					t = nil
				}
			}
		}
		return true
	})
}

// compiled makes an importer from what the go command has in its build cache
// for the given packages and all that they need.
func compiled(t *testing.T, fset *token.FileSet, imports []string) types.Importer {
	t.Helper()
	args := append([]string{"list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}", "--"}, imports...)
	cmd := exec.CommandContext(t.Context(), "go", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	export := map[string]string{}
	for line := range strings.Lines(string(out)) {
		p, file, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		export[p] = file
	}
	return importer.ForCompiler(fset, "gc", func(p string) (io.ReadCloser, error) {
		file := export[p]
		if file == "" {
			return nil, fmt.Errorf("no compiled form of %s", p)
		}
		return os.Open(file)
	})
}

func importsOf(files []*ast.File) []string {
	var all []string
	for _, f := range files {
		for _, spec := range f.Imports {
			if p, err := strconv.Unquote(spec.Path.Value); err == nil && p != "unsafe" && p != "C" {
				all = append(all, p)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func TestHouseHalvesOfFormats(t *testing.T) {
	t.Parallel()
	const room = "internal/image"
	dirs, err := os.ReadDir(room)
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	formats := map[string][]*ast.File{}
	var all []*ast.File
	for _, d := range dirs {
		if !d.IsDir() || theHouse().support(d.Name()) || d.Name() == "testdata" {
			continue
		}
		entries, err := os.ReadDir(filepath.Join(room, d.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
				continue
			}
			// All build tags at once: a file for another system must not
			// escape. If two of them collide, the type checker says so.
			f, err := parser.ParseFile(fset, filepath.Join(room, d.Name(), e.Name()), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			formats[d.Name()] = append(formats[d.Name()], f)
			all = append(all, f)
		}
	}
	if len(formats) == 0 {
		t.Fatal("no format found: the walk is broken")
	}
	imp := compiled(t, fset, importsOf(all))
	pkgs, err := readHouse(os.DirFS("."), theHouse())
	if err != nil {
		t.Fatal(err)
	}
	graph := map[string][]string{}
	eachImport(pkgs, false, func(p housePackage, _ houseFile, im houseImport) {
		to := im.path
		if im.own {
			to = path.Join(houseModule, to)
		}
		from := path.Join(houseModule, p.path)
		graph[from] = append(graph[from], to)
	})
	needs := func(p string) []string { return graph[p] }
	for name, files := range formats {
		for _, s := range checkHalves(fset, files, imp, needs) {
			t.Errorf("%s: %s", name, s)
		}
	}
}

// goodFormat is a small format that keeps every rule.
func goodFormat() map[string]string {
	return map[string]string{
		"constants.go": `package zip
type tag uint16
type options struct { Align int; Tags []tag }
const (
	magic = 0x1234
	tagHash tag = 1
)
`,
		"zip.go": `package zip
import (
	"context"
	"github.com/firmseal/firmseal/internal/image"
)
type Format struct{}
func New() Format { return Format{} }
func (f Format) Plan(context.Context, image.Source, image.Options, []image.PublicMaterial) (image.Session, error) {
	f.help()
	_ = options{}
	return nil, parse(magic)
}
func (f Format) help() {}
func parse(n int) error { var w walker; w.step(); return nil }
type walker struct{ n int }
func (w *walker) step() { w.n++ }
const planOnly = 7
type flags uint8
func (flags) String() string { return "plan" }
const flagOld flags = 1
var table = []int{1}
`,
		"verify.go": `package zip
import (
	"context"
	"github.com/firmseal/firmseal/internal/image"
)
func (Format) Verify(context.Context, image.Source, image.Trust, image.Profile) (*image.Verdict, error) {
	r := reader{tag: tagHash}
	return nil, r.read(magic + planOnly)
}
type reader struct { tag tag }
func (r *reader) read(n int) error { _ = options{Align: n}; return nil }
`,
	}
}

func TestHouseHalvesFindsBadExamples(t *testing.T) {
	t.Parallel()
	fset := token.NewFileSet()
	imp := compiled(t, fset, []string{
		"context", "encoding/binary", "io", "reflect", "golang.org/x/mod/sumdb/tlog", houseModule + "/internal/image", houseModule + "/internal/alg",
		houseModule + "/internal/telemetry",
	})
	check := func(t *testing.T, srcs map[string]string) []string {
		t.Helper()
		var files []*ast.File
		for name, src := range srcs {
			f, err := parser.ParseFile(fset, path.Join(t.Name(), name), src, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		return checkHalves(fset, files, imp, func(p string) []string {
			if p == houseModule+"/internal/telemetry" {
				return []string{houseModule + "/internal/problem", "golang.org/x/mod/sumdb/tlog"}
			}
			return nil
		})
	}
	if bad := check(t, goodFormat()); len(bad) > 0 {
		t.Fatalf("the good format is refused:\n%s", strings.Join(bad, "\n"))
	}
	// Not parallel: the importer keeps what it has read without a lock.
	for _, tt := range []struct{ name, file, src, want string }{
		{"function of the Plan half", "verify2.go", "package zip\nfunc v() { parse(1) }\n", "verify2.go:2: the Verify half uses parse, which the Plan half declares"},
		{"function of the Verify half", "verify2.go", "package zip\nfunc parse2() {}\n", ""},
		{"function of the Verify half, used", "plan.go", "package zip\nfunc p() { var r reader; r.read(1) }\n", "plan.go:2: the Plan half uses reader, which the Verify half declares"},
		{"method through a value", "verify2.go", "package zip\nfunc v() { w.step() }\n", "the Verify half uses step, which the Plan half declares"},
		{"field", "verify2.go", "package zip\nfunc v() { _ = w.n }\n", "the Verify half uses n, which the Plan half declares"},
		{"variable", "verify2.go", "package zip\nvar v = table\n", "the Verify half uses table"},
		{"type", "verify2.go", "package zip\ntype v []walker\n", "the Verify half uses walker"},
		{"instance of a generic", "verify2.go", "package zip\nfunc v() { g.get() }\n", "the Verify half uses get"},
		{"constant with methods", "verify2.go", "package zip\nvar v any = flagOld\n", "uses the constant flagOld of the Plan half, whose type has methods"},
		{"constructor", "verify2.go", "package zip\nvar v = New()\n", "the Verify half uses New"},
		{"the format itself", "verify2.go", "package zip\nvar v = Format{}\n", "the Verify half uses Format"},
		{"Verify called by Plan", "plan.go", "package zip\nimport \"github.com/firmseal/firmseal/internal/image\"\nfunc p() { Format{}.Verify(nil, nil, image.Trust{}, image.Profile{}) }\n", "the Plan half uses Verify"},
		{"named receiver", "verify.go", strings.Replace(goodFormat()["verify.go"], "(Format) Verify", "(f Format) Verify", 1), "the receiver of Format.Verify leads to the other half"},
		{"a receiver that ties nothing", "verify2.go", "package zip\nfunc (Format) v() {}\n", "the Verify half uses Format"},
		{"state in the receiver", "zip.go", strings.Replace(goodFormat()["zip.go"], "type Format struct{}", "type Format struct{ n int }", 1), "Format has methods in both halves and holds state"},
		{"Verify in the wrong file", "plan.go", "package zip\nfunc (Format) VerifyDigest() {}\n", "method VerifyDigest stands in the Plan half"},
		{"Plan in the wrong file", "verify2.go", "package zip\nfunc (Format) Inspect() {}\n", "method Inspect stands in the Verify half"},
		{"shared function", "constants.go", goodFormat()["constants.go"] + "func f() {}\n", "constants.go declares a function"},
		{"shared variable", "constants.go", goodFormat()["constants.go"] + "var v = 1\n", "constants.go declares a variable"},
		{"shared type with methods elsewhere", "plan.go", "package zip\nfunc (o options) x() {}\n", "type options of constants.go has methods"},
		{"shared function type", "constants.go", goodFormat()["constants.go"] + "type f func()\n", "type f of constants.go can carry code"},
		{"shared struct with a function", "constants.go", goodFormat()["constants.go"] + "type f struct{ a []func() }\n", "type f of constants.go can carry code"},
		{"shared foreign interface", "constants.go", "package zip\nimport \"io\"\ntype f struct{ io.Reader }\n" + strings.TrimPrefix(goodFormat()["constants.go"], "package zip\n"), "type f of constants.go can carry code"},
		{"shared type of one half", "constants.go", goodFormat()["constants.go"] + "type f struct{ w walker }\n", "constants.go uses walker, which the Plan half declares"},
		{"shared layout", "verify2.go", "package zip\nimport \"encoding/binary\"\nfunc v(b []byte) { binary.Decode(b, binary.LittleEndian, &[]options{}) }\n", "the shared struct options goes through encoding/binary"},
		{"own layout", "verify2.go", "package zip\nimport \"encoding/binary\"\ntype h struct{ A uint8 }\nfunc v(b []byte) { binary.Decode(b, binary.LittleEndian, &h{}) }\n", ""},
		{"shared foreign parser", "verify2.go", "package zip\nimport _ \"golang.org/x/mod/sumdb/tlog\"\n", "both halves import golang.org/x/mod/sumdb/tlog"},
		{"shared parser behind another package", "verify2.go", "package zip\nimport _ \"github.com/firmseal/firmseal/internal/telemetry\"\n", "both halves import golang.org/x/mod/sumdb/tlog"},
		{"reflection", "verify2.go", "package zip\nimport _ \"reflect\"\n", "a format must not import reflect"},
		{"unsafe", "plan.go", "package zip\nimport _ \"unsafe\"\n", "a format must not import unsafe"},
		{"does not type-check", "verify2.go", "package zip\nvar v = nowhere\n", "undefined: nowhere"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := goodFormat()
			files["plan2.go"] = "package zip\nimport _ \"golang.org/x/mod/sumdb/tlog\"\nvar w walker\ntype gen[T any] struct{ t T }\nfunc (g gen[T]) get() T { return g.t }\nvar g gen[int]\n"
			files[tt.file] = tt.src
			bad := check(t, files)
			if tt.want == "" {
				if len(bad) > 0 {
					t.Fatalf("refused: %s", strings.Join(bad, "\n"))
				}
				return
			}
			if !slices.ContainsFunc(bad, func(s string) bool { return strings.Contains(s, tt.want) }) {
				t.Fatalf("not found: %s\nfound:\n%s", tt.want, strings.Join(bad, "\n"))
			}
		})
	}
	t.Run("no Verify", func(t *testing.T) {
		files := goodFormat()
		files["verify.go"] = "package zip\n"
		if bad := check(t, files); !slices.Contains(bad, "no file verify*.go has the method Verify") {
			t.Fatalf("found: %s", strings.Join(bad, "\n"))
		}
	})
}
