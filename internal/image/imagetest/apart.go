package imagetest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
)

// houseModule is the prefix of this module's own packages.
const houseModule = "github.com/firmseal/firmseal/"

// both are the packages of the module that each half may use: the contract and
// the schemes, which hold no knowledge of any format's bytes.
var both = map[string]bool{
	houseModule + "internal/image":   true,
	houseModule + "internal/alg":     true,
	houseModule + "internal/problem": true,
}

// Apart fails if the Verify half of a format uses anything of the rest but
// constants, or the rest anything of the Verify half, or both the same package
// of the module besides the contract's. verify are the file names of the
// Verify half, as filepath.Match patterns; dir is the format's folder, "." in
// its own test. shared lists declarations that are neither and yet belong to
// both, each with its reason: the Format type that both hang on, a table of
// tag numbers.
func Apart(tb testing.TB, dir string, verify []string, shared map[string]string) {
	tb.Helper()
	faults, err := apart(dir, verify, shared)
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range faults {
		tb.Error(f)
	}
}

func apart(dir string, verify []string, shared map[string]string) ([]string, error) {
	fset := token.NewFileSet()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []*ast.File
	half := map[string]bool{} // file → is of the Verify half
	uses := map[string]map[bool]string{}
	for _, e := range entries {
		name := e.Name()
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, p := range verify {
			ok, err := filepath.Match(p, name)
			if err != nil {
				return nil, err
			}
			half[filepath.Join(dir, name)] = half[filepath.Join(dir, name)] || ok
		}
		for _, i := range f.Imports {
			path, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return nil, err
			}
			if !strings.HasPrefix(path, houseModule) || both[path] {
				continue
			}
			if uses[path] == nil {
				uses[path] = map[bool]string{}
			}
			uses[path][half[filepath.Join(dir, name)]] = name
		}
		files = append(files, f)
	}
	var faults []string
	mine := 0
	for _, v := range half {
		if v {
			mine++
		}
	}
	if mine == 0 || mine == len(half) {
		return nil, fmt.Errorf("%d of the %d files in %s are the Verify half (%v)", mine, len(half), dir, verify)
	}
	for path, u := range uses {
		if u[true] != "" && u[false] != "" {
			faults = append(faults, fmt.Sprintf("%s of the Verify half and %s of the rest both use %s: what it misreads is misread twice", u[true], u[false], path))
		}
	}

	// Imports are not resolved: only what this package declares counts, and the
	// checker goes on after an error.
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}, Selections: map[*ast.SelectorExpr]*types.Selection{}}
	conf := types.Config{Importer: blindImporter{}, Error: func(error) {}, FakeImportC: true}
	pkg, _ := conf.Check(dir, fset, files, info)

	used := map[string]bool{}
	seen := map[string]bool{}
	note := func(id *ast.Ident, obj types.Object) {
		if obj == nil || obj.Pkg() != pkg || !obj.Pos().IsValid() {
			return
		}
		if _, ok := obj.(*types.Const); ok {
			return
		}
		if _, ok := obj.(*types.PkgName); ok {
			return
		}
		here, there := fset.Position(id.Pos()).Filename, fset.Position(obj.Pos()).Filename
		if half[here] == half[there] {
			return
		}
		if _, ok := shared[obj.Name()]; ok {
			used[obj.Name()] = true
			return
		}
		msg := fmt.Sprintf("%s uses %s of %s: the halves share constants only", filepath.Base(here), obj.Name(), filepath.Base(there))
		if !seen[msg] {
			seen[msg] = true
			faults = append(faults, msg)
		}
	}
	for id, obj := range info.Uses {
		note(id, obj)
	}
	for sel, s := range info.Selections {
		note(sel.Sel, s.Obj())
	}
	for name, why := range shared {
		if why == "" {
			faults = append(faults, fmt.Sprintf("shared %s has no reason", name))
		}
		if !used[name] {
			faults = append(faults, fmt.Sprintf("shared %s is not shared", name))
		}
	}
	sort.Strings(faults)
	return faults, nil
}

// blindImporter gives empty packages: what other packages declare does not
// matter here.
type blindImporter struct{}

func (blindImporter) Import(path string) (*types.Package, error) {
	name := path[strings.LastIndex(path, "/")+1:]
	p := types.NewPackage(path, name)
	p.MarkComplete()
	return p, nil
}
