package firmseal_test

import (
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// This file is the plan of the house: which room stands on which floor, and
// who may call whom. It reads the imports of every package of the module, all
// build tags included, and fails with the reason when one breaks the plan.
//
// The rules:
//
//   - A package imports lower floors only. A folder inside a room stands on the
//     room's floor; it may import the room, and the room does not import it.
//   - An import between two rooms of one floor, or from a room to a folder inside
//     it, is listed with its reason. The list has no cycle and nothing that the
//     code does not use.
//   - The never-list and the only-list hold whatever the floors say.
//   - A package whose name ends in "test", and peertest, supports tests: no
//     other code imports it.
//   - Tests may import their own floor, what is below, and what supports tests.
//     The lists are about what is built into the binary, so they don't bind tests.
//   - Concrete formats, key backends and device protocols are known to
//     cmd/firmseal alone, and its parts.go knows each of them.
//   - Each package has exactly one package comment.
const houseModule = "github.com/firmseal/firmseal"

// A house is the plan. It is a value, so that the tests of the guard can show
// that each rule fails on a bad example.
type house struct {
	floors   []houseFloor    // lowest first
	edges    []houseEdge     // imports between rooms of one floor
	never    []houseEdge     // forbidden though the floors allow it
	only     []houseOnly     // code that some rooms keep to themselves
	alone    []houseAlone    // packages with a short list of what they may import
	concrete []houseConcrete // rooms whose sub-folders are parts
	parts    string          // the file that knows all parts
	support  func(p string) bool
}

type houseFloor struct {
	name  string
	rooms []string
}

// A houseEdge goes from one folder to another, each with what is inside it. The
// target of a never-edge may be foreign code.
type houseEdge struct{ from, to, why string }

type houseOnly struct {
	code  string // import path and what is below it
	rooms []string
	why   string
}

type houseAlone struct {
	pkg   string
	own   []string // packages of this module, exactly
	other []string // foreign code and what is below it
	std   bool     // foreign code is bound by other, too
	why   string
}

type houseConcrete struct{ room, what string }

// theHouse is the plan that holds. Rooms without a folder are those of later
// work; they keep their place here.
func theHouse() house {
	return house{
		floors: []houseFloor{
			{"device", []string{"."}},
			{"ground", []string{"internal/problem", "internal/telemetry", "internal/alg", "internal/peertest"}},
			// client stands low: its types are what the API speaks, so that the
			// two cannot drift apart. The only-list keeps it to the doors and above.
			{"contract", []string{"client"}},
			{"tools", []string{"internal/db", "internal/blob", "internal/keys", "internal/image", "internal/cms", "internal/agent"}},
			{"memory", []string{"internal/journal", "internal/jobs", "internal/tlog"}},
			{"rules", []string{"internal/auth", "internal/policy", "internal/release", "internal/trust", "internal/doctor"}},
			{"works", []string{"internal/signing", "internal/rotation", "internal/publish", "internal/fleet"}},
			{"doors", []string{"internal/device", "internal/api", "internal/web"}},
			{"roof", []string{"internal/server", "internal/servertest"}},
			{"street", []string{"cmd", "bench"}},
		},
		edges: []houseEdge{
			{"internal/image/fit", "internal/image/fit/fdt", "the device tree of the Plan half, with which a test image is written, too"},
			{"internal/blob/small", "internal/db", "a small file is a row, written in the transaction of the record that names it"},
			{"internal/servertest", "internal/server", "a whole server in a test is a server"},
			{"internal/alg", "internal/problem", "an unknown or weak algorithm is refused with a code and the next thing to do"},
		},
		never: []houseEdge{
			{"internal/policy", "internal/keys", "a decision is made without touching a key"},
			{"internal/policy", "internal/db", "a decision is pure: same facts, same answer"},
			{"internal/image", "internal/keys", "a format never sees a key; it asks for signatures"},
			{"internal/agent", "internal/db", "a device verifies; it has no database"},
			{"internal/agent", "internal/keys", "a device verifies; it never signs"},
			{"internal/trust", "internal/db", "the planner is pure; beliefs are handed to it"},
			{"internal/doctor", "internal/db", "a diagnosis is pure: evidence in, cause out"},
		},
		only: []houseOnly{
			{"modernc.org/sqlite", []string{"internal/db"}, "one room knows which engine answers"},
			{"github.com/jackc/pgx", []string{"internal/db"}, "one room knows which engine answers"},
			{"github.com/pressly/goose", []string{"internal/db"}, "migrations are applied when the database is opened, nowhere else"},
			{"cel.dev", []string{"internal/policy"}, "rules are evaluated in one room, with one cost limit"},
			{"github.com/alecthomas/kong", []string{"cmd"}, "flags are the command's; a room takes options"},
			{houseModule + "/client", []string{"internal/api", "internal/server", "internal/servertest", "cmd", "bench"}, "what the works and rules do is not shaped by HTTP"},
		},
		alone: []houseAlone{
			{
				pkg: ".", std: true, other: []string{"golang.org/x/mod/sumdb"},
				why: "the root package is what a device must understand, and a device links all of it",
			},
			{
				pkg: "client", own: []string{".", "internal/problem"},
				why: "a user of the client takes no server with it; problem carries the server's refusals back with their codes",
			},
		},
		concrete: []houseConcrete{
			{"internal/image", "format"},
			{"internal/keys", "key backend"},
			{"internal/device", "protocol"},
		},
		parts: "cmd/firmseal/parts.go",
		support: func(p string) bool {
			return strings.HasSuffix(path.Base(p), "test")
		},
	}
}

// A housePackage is one folder with Go files.
type housePackage struct {
	path  string // slash-separated, "." for the root
	files []houseFile
}

type houseFile struct {
	name    string
	pkg     string // the package clause
	test    bool
	doc     string
	imports []houseImport
}

type houseImport struct {
	path string // a folder of this module as in housePackage.path, or foreign
	own  bool
	name string // "_" for an import for its effects, "" for the usual one
}

// readHouse reads every Go file of the module. Folders that the go command
// passes over, and folders that are modules of their own, are not part of it.
func readHouse(fsys fs.FS, h house) ([]housePackage, error) {
	byPath := map[string]*housePackage{}
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			// Other tests may make and remove files below testdata meanwhile.
			if errors.Is(err, fs.ErrNotExist) && p != "." {
				return nil
			}
			return err
		}
		base := path.Base(p)
		if d.IsDir() {
			if p == "." {
				return nil
			}
			if base == "testdata" || base == "vendor" || base[0] == '.' || base[0] == '_' {
				return fs.SkipDir
			}
			if _, err := fs.Stat(fsys, path.Join(p, "go.mod")); err == nil {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(base) != ".go" || base[0] == '.' || base[0] == '_' {
			return nil
		}
		src, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		f, err := readHouseFile(p, src)
		if err != nil {
			return err
		}
		dir := path.Dir(p)
		if byPath[dir] == nil {
			byPath[dir] = &housePackage{path: dir}
		}
		byPath[dir].files = append(byPath[dir].files, f)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var pkgs []housePackage
	for _, p := range byPath {
		pkgs = append(pkgs, *p)
	}
	slices.SortFunc(pkgs, func(a, b housePackage) int { return strings.Compare(a.path, b.path) })
	return pkgs, nil
}

func readHouseFile(p string, src []byte) (f houseFile, err error) {
	parsed, err := parser.ParseFile(token.NewFileSet(), p, src, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return f, err
	}
	f = houseFile{
		name: path.Base(p),
		pkg:  parsed.Name.Name,
		test: strings.HasSuffix(p, "_test.go"),
		doc:  strings.TrimSpace(parsed.Doc.Text()),
	}
	for _, spec := range parsed.Imports {
		foreign, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return f, fmt.Errorf("%s: %w", p, err)
		}
		im := houseImport{path: foreign}
		if spec.Name != nil {
			im.name = spec.Name.Name
		}
		if foreign == houseModule {
			im.path, im.own = ".", true
		} else if rest, ok := strings.CutPrefix(foreign, houseModule+"/"); ok {
			im.path, im.own = rest, true
		}
		f.imports = append(f.imports, im)
	}
	return f, nil
}

// within reports whether p is dir or inside it. Nothing but the root itself is
// within ".".
func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// room finds the floor and the room that a package stands on.
func (h house) room(p string) (floor int, room string, ok bool) {
	for i, f := range h.floors {
		for _, r := range f.rooms {
			if within(p, r) && len(r) > len(room) {
				floor, room, ok = i, r, true
			}
		}
	}
	return floor, room, ok
}

// edge finds the listed same-floor edge for an import.
func (h house) edge(from, to string) (int, bool) {
	i := slices.IndexFunc(h.edges, func(e houseEdge) bool { return within(from, e.from) && within(to, e.to) })
	return i, i >= 0
}

// check gives everything that is wrong with pkgs, one sentence each.
func (h house) check(pkgs []housePackage) []string {
	var bad []string
	for _, checks := range []func([]housePackage) []string{
		h.checkFloors, h.checkNever, h.checkOnly, h.checkAlone, h.checkSupport, h.checkConcrete, h.checkParts, h.checkComments,
	} {
		bad = append(bad, checks(pkgs)...)
	}
	return bad
}

// eachImport calls fn for every import of the files that are built (or of the
// tests), once for each target and package.
func eachImport(pkgs []housePackage, test bool, fn func(p housePackage, f houseFile, im houseImport)) {
	for _, p := range pkgs {
		seen := map[houseImport]bool{}
		for _, f := range p.files {
			if f.test != test {
				continue
			}
			for _, im := range f.imports {
				if !seen[im] {
					seen[im] = true
					fn(p, f, im)
				}
			}
		}
	}
}

func (h house) checkFloors(pkgs []housePackage) []string {
	var bad []string
	for _, p := range pkgs {
		if _, _, ok := h.room(p.path); !ok {
			bad = append(bad, fmt.Sprintf("%s stands on no floor; give its room a place in house_test.go", p.path))
		}
	}
	used := make([]bool, len(h.edges))
	eachImport(pkgs, false, func(p housePackage, f houseFile, im houseImport) {
		from, _, ok := h.room(p.path)
		to, _, ok2 := h.room(im.path)
		if !im.own || !ok || !ok2 || h.support(im.path) && h.support(p.path) && to <= from {
			return
		}
		i, listed := h.edge(p.path, im.path)
		if listed {
			used[i] = true
		}
		switch {
		case to < from:
		case to > from:
			bad = append(bad, fmt.Sprintf("%s (%s) imports %s, which is upstairs: %s is above %s",
				p.path, f.name, im.path, h.floors[to].name, h.floors[from].name))
		case im.path != p.path && within(p.path, im.path): // a folder and its room
		case within(im.path, p.path) && !listed:
			bad = append(bad, fmt.Sprintf("%s (%s) imports %s, which is inside it: a room does not know its folders, unless the edge is listed with its reason", p.path, f.name, im.path))
		case !listed:
			bad = append(bad, fmt.Sprintf("%s (%s) imports %s on the same floor (%s); move what they share down, or list the edge with its reason",
				p.path, f.name, im.path, h.floors[from].name))
		}
	})
	eachImport(pkgs, true, func(p housePackage, f houseFile, im houseImport) {
		from, _, ok := h.room(p.path)
		to, _, ok2 := h.room(im.path)
		if im.own && ok && ok2 && to > from && !h.support(im.path) {
			bad = append(bad, fmt.Sprintf("%s (%s) imports %s, which is upstairs: such a test belongs to %s", p.path, f.name, im.path, im.path))
		}
	})
	built := func(dir string) bool {
		return slices.ContainsFunc(pkgs, func(p housePackage) bool {
			return within(p.path, dir) && slices.ContainsFunc(p.files, func(f houseFile) bool { return !f.test })
		})
	}
	for i, e := range h.edges {
		if !used[i] && built(e.from) && built(e.to) {
			bad = append(bad, fmt.Sprintf("the edge %s → %s is listed and no code uses it", e.from, e.to))
		}
	}
	return bad
}

func (h house) checkNever(pkgs []housePackage) []string {
	var bad []string
	eachImport(pkgs, false, func(p housePackage, f houseFile, im houseImport) {
		for _, e := range h.never {
			if within(p.path, e.from) && within(im.path, e.to) {
				bad = append(bad, fmt.Sprintf("%s (%s) must never import %s: %s", p.path, f.name, im.path, e.why))
			}
		}
	})
	return bad
}

func (h house) checkOnly(pkgs []housePackage) []string {
	var bad []string
	eachImport(pkgs, false, func(p housePackage, f houseFile, im houseImport) {
		for _, o := range h.only {
			full := im.path
			if im.own {
				full = path.Join(houseModule, im.path)
			}
			if within(full, o.code) && !slices.ContainsFunc(o.rooms, func(r string) bool { return within(p.path, r) }) {
				bad = append(bad, fmt.Sprintf("%s (%s) imports %s, which is for %s only: %s",
					p.path, f.name, im.path, strings.Join(o.rooms, ", "), o.why))
			}
		}
	})
	return bad
}

func (h house) checkAlone(pkgs []housePackage) []string {
	var bad []string
	eachImport(pkgs, false, func(p housePackage, f houseFile, im houseImport) {
		for _, a := range h.alone {
			if p.path != a.pkg {
				continue
			}
			allowed := im.own && slices.Contains(a.own, im.path)
			if !im.own {
				first, _, _ := strings.Cut(im.path, "/")
				allowed = !a.std || !strings.Contains(first, ".") ||
					slices.ContainsFunc(a.other, func(o string) bool { return within(im.path, o) })
			}
			if !allowed {
				bad = append(bad, fmt.Sprintf("%s (%s) must not import %s: %s", p.path, f.name, im.path, a.why))
			}
		}
	})
	return bad
}

func (h house) checkSupport(pkgs []housePackage) []string {
	var bad []string
	eachImport(pkgs, false, func(p housePackage, f houseFile, im houseImport) {
		if im.own && h.support(im.path) && !h.support(p.path) {
			bad = append(bad, fmt.Sprintf("%s (%s) imports %s, which is for tests only", p.path, f.name, im.path))
		}
	})
	return bad
}

// part gives the folder below a concrete room that p belongs to: the format,
// backend or protocol.
func (h house) part(p string) (part, what string, ok bool) {
	for _, c := range h.concrete {
		if rest, inside := strings.CutPrefix(p, c.room+"/"); inside {
			first, _, _ := strings.Cut(rest, "/")
			part := c.room + "/" + first
			return part, c.what, !h.support(part)
		}
	}
	return "", "", false
}

func (h house) checkConcrete(pkgs []housePackage) []string {
	var bad []string
	main := path.Dir(h.parts)
	eachImport(pkgs, false, func(p housePackage, f houseFile, im houseImport) {
		part, what, ok := h.part(im.path)
		if !im.own || !ok || within(p.path, part) || within(p.path, main) || h.support(p.path) {
			return
		}
		bad = append(bad, fmt.Sprintf("%s (%s) imports the %s %s: only %s knows a concrete part", p.path, f.name, what, im.path, main))
	})
	return bad
}

func (h house) checkParts(pkgs []housePackage) []string {
	known := map[string]bool{}
	for _, p := range pkgs {
		for _, f := range p.files {
			for _, im := range f.imports {
				// The compiler sees to it that an import with a name is used.
				if path.Join(p.path, f.name) == h.parts && im.own && im.name != "_" {
					known[im.path] = true
				}
			}
		}
	}
	var bad []string
	for _, p := range pkgs {
		part, what, ok := h.part(p.path)
		built := slices.ContainsFunc(p.files, func(f houseFile) bool { return !f.test })
		if ok && built && part == p.path && !known[part] {
			bad = append(bad, fmt.Sprintf("%s does not mention the %s %s: one folder, one line", h.parts, what, part))
		}
	}
	return bad
}

func (h house) checkComments(pkgs []housePackage) []string {
	var bad []string
	for _, p := range pkgs {
		// A folder of tests alone tells its story in one of them.
		onlyTests := !slices.ContainsFunc(p.files, func(f houseFile) bool { return !f.test })
		var in []string
		for _, f := range p.files {
			if f.doc == "" || f.test != onlyTests {
				continue
			}
			in = append(in, f.name)
			name, want := strings.TrimSuffix(f.pkg, "_test"), "Package "
			if f.pkg == "main" {
				name, want = path.Base(p.path), "Command "
			}
			if !strings.HasPrefix(f.doc, want+name+" ") {
				bad = append(bad, fmt.Sprintf("%s: the package comment in %s does not begin with %q", p.path, f.name, want+name))
			}
		}
		switch {
		case len(in) == 0:
			bad = append(bad, fmt.Sprintf("%s has no package comment; if it is hard to write, the package is two", p.path))
		case len(in) > 1:
			bad = append(bad, fmt.Sprintf("%s has %d package comments (%s); keep one", p.path, len(in), strings.Join(in, ", ")))
		}
	}
	return bad
}

// checkPlan gives what is wrong with the plan itself.
func (h house) checkPlan() []string {
	var bad []string
	seen := map[string]bool{}
	for _, f := range h.floors {
		for _, r := range f.rooms {
			if seen[r] {
				bad = append(bad, fmt.Sprintf("room %s stands on two floors", r))
			}
			seen[r] = true
		}
	}
	next := map[string][]string{}
	for _, e := range slices.Concat(h.edges, h.never) {
		if e.why == "" {
			bad = append(bad, fmt.Sprintf("the entry %s → %s has no reason", e.from, e.to))
		}
	}
	for _, e := range h.edges {
		a, from, ok := h.room(e.from)
		b, to, ok2 := h.room(e.to)
		if !ok || !ok2 || a != b {
			bad = append(bad, fmt.Sprintf("the edge %s → %s does not stay on one floor", e.from, e.to))
			continue
		}
		if from != to {
			next[from] = append(next[from], to)
		}
	}
	for start := range next {
		// Depth first from every room; floors have a handful of rooms.
		reached := map[string]bool{}
		todo := slices.Clone(next[start])
		for len(todo) > 0 {
			r := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if r == start {
				bad = append(bad, fmt.Sprintf("the listed edges lead from %s back to it", start))
				break
			}
			if !reached[r] {
				reached[r] = true
				todo = append(todo, next[r]...)
			}
		}
	}
	slices.Sort(bad)
	return bad
}

func TestHouse(t *testing.T) {
	t.Parallel()
	h := theHouse()
	for _, s := range h.checkPlan() {
		t.Error(s)
	}
	pkgs, err := readHouse(os.DirFS("."), h)
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) < 5 {
		t.Fatalf("only %d packages found: the walk is broken", len(pkgs))
	}
	for _, s := range h.check(pkgs) {
		t.Error(s)
	}
}

// checkPage holds the table of floors in docs/DESIGN.md against the rooms that
// are there: a row "| floor | `room` `room` | … |" for each floor that has any.
func (h house) checkPage(page string, pkgs []housePackage) []string {
	var bad []string
	rows := map[string][]string{}
	for line := range strings.Lines(page) {
		if cells := strings.Split(line, "|"); len(cells) > 3 && cells[0] == "" {
			rows[strings.TrimSpace(cells[1])] = strings.Fields(cells[2])
		}
	}
	for _, f := range h.floors {
		var rooms []string
		for _, r := range f.rooms {
			if slices.ContainsFunc(pkgs, func(p housePackage) bool { _, room, _ := h.room(p.path); return room == r }) {
				name := strings.TrimPrefix(r, "internal/")
				if r == "." {
					name = path.Base(houseModule)
				}
				rooms = append(rooms, "`"+name+"`")
			}
		}
		row := rows[f.name]
		slices.Sort(rooms)
		slices.Sort(row)
		if !slices.Equal(rooms, row) {
			bad = append(bad, fmt.Sprintf("the page has %v on the floor %s, the code has %v", row, f.name, rooms))
		}
	}
	return bad
}

func TestHousePage(t *testing.T) {
	t.Parallel()
	h := theHouse()
	pkgs, err := readHouse(os.DirFS("."), h)
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("docs/DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range h.checkPage(string(page), pkgs) {
		t.Error(s)
	}

	good := houseOf(t, goodHouse())
	rows := []string{
		"| device | `firmseal` | x |", "| ground | `problem` `alg` `peertest` | x |", "| contract | `client` | x |",
		"| tools | `db` `image` | x |", "| rules | `policy` | x |", "| roof | `servertest` | x |", "| street | `cmd` `bench` | x |",
	}
	if bad := h.checkPage(strings.Join(rows, "\n"), good); len(bad) > 0 {
		t.Fatalf("the good page is refused: %v", bad)
	}
	for i, row := range rows {
		for _, worse := range []string{"", strings.Replace(row, "` |", "` `tlog` |", 1), strings.Replace(row, "`", "", 1)} {
			changed := slices.Clone(rows)
			changed[i] = worse
			if len(h.checkPage(strings.Join(changed, "\n"), good)) != 1 {
				t.Errorf("with %q for %q the page is not refused once", worse, row)
			}
		}
	}
}

// goodHouse is a small module that keeps every rule.
func goodHouse() map[string]string {
	own := func(p string) string { return strconv.Quote(path.Join(houseModule, p)) }
	return map[string]string{
		"firmseal.go":                         "// Package firmseal is small.\npackage firmseal\nimport _ \"golang.org/x/mod/sumdb/note\"\n",
		"firmseal_test.go":                    "package firmseal_test\nimport _ " + own("internal/peertest") + "\n",
		"internal/problem/problem.go":         "// Package problem is one.\npackage problem\nimport _ " + own("") + "\n",
		"internal/alg/alg.go":                 "// Package alg is one.\npackage alg\nimport _ " + own("internal/problem") + "\n",
		"internal/peertest/peertest.go":       "// Package peertest is one.\npackage peertest\n",
		"internal/db/db.go":                   "// Package db is one.\npackage db\nimport _ \"modernc.org/sqlite\"\n",
		"internal/db/dbtest/dbtest.go":        "// Package dbtest is one.\npackage dbtest\nimport _ " + own("internal/db") + "\nimport _ " + own("internal/peertest") + "\n",
		"internal/image/image.go":             "// Package image is one.\npackage image\nimport _ " + own("internal/alg") + "\n",
		"internal/image/imagetest/i.go":       "// Package imagetest is one.\npackage imagetest\nimport _ " + own("internal/image") + "\n",
		"internal/image/uki/uki.go":           "// Package uki is one.\npackage uki\nimport _ " + own("internal/image") + "\n",
		"internal/image/uki/uki_test.go":      "package uki\nimport _ " + own("internal/image/imagetest") + "\nimport _ " + own("internal/db") + "\n",
		"internal/image/uki/demo/demo.go":     "// Package demo is one.\npackage demo\nimport _ " + own("internal/image/uki") + "\n",
		"internal/policy/policy.go":           "// Package policy is one.\npackage policy\nimport _ \"cel.dev/cel-go/cel\"\n",
		"internal/servertest/servertest.go":   "// Package servertest is one.\npackage servertest\nimport _ " + own("internal/image/uki") + "\n",
		"cmd/firmseal/main.go":                "// Command firmseal is one.\npackage main\nimport _ \"github.com/alecthomas/kong\"\n",
		"cmd/firmseal/parts.go":               "package main\nimport " + own("internal/image/uki") + "\nvar _ = uki.New\n",
		"client/client.go":                    "// Package client is one.\npackage client\nimport _ " + own("internal/problem") + "\nimport _ \"net/http\"\n",
		"bench/bench_test.go":                 "// Package bench is one.\npackage bench\n",
		"tools/go.mod":                        "module other\n",
		"tools/x.go":                          "package nodoc\n",
		"internal/db/testdata/x.go":           "package nodoc\n",
		"internal/db/.hidden/x.go":            "package nodoc\n",
		"docs/notes.md":                       "no Go here\n",
		"internal/image/imagetest/i_test.go":  "package imagetest_test\nimport _ " + own("internal/image/uki") + "\n",
		"internal/image/uki/uboottest/uki.go": "// Package uboottest is one.\npackage uboottest\nimport _ " + own("internal/peertest") + "\n",
	}
}

func houseOf(t *testing.T, files map[string]string) []housePackage {
	t.Helper()
	fsys := fstest.MapFS{}
	for name, src := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(src)}
	}
	pkgs, err := readHouse(fsys, theHouse())
	if err != nil {
		t.Fatal(err)
	}
	return pkgs
}

// The guard is guarded: each rule must find its bad example, in that sentence
// and no other.
func TestHouseFindsBadExamples(t *testing.T) {
	t.Parallel()
	if bad := theHouse().check(houseOf(t, goodHouse())); len(bad) > 0 {
		t.Fatalf("the good house is refused:\n%s", strings.Join(bad, "\n"))
	}
	doc := func(name string) string { return "// Package " + name + " is one.\npackage " + name + "\n" }
	imp := func(p string) string { return "import _ " + strconv.Quote(path.Join(houseModule, p)) + "\n" }
	for _, tt := range []struct{ name, file, src, want string }{
		{"no floor", "internal/util/util.go", doc("util"), "internal/util stands on no floor"},
		{"no floor beside a room of like name", "internal/dbx/dbx.go", doc("dbx"), "internal/dbx stands on no floor"},
		{"no floor at the top", "pkg/pkg.go", doc("pkg"), "pkg stands on no floor"},
		{"upstairs", "internal/problem/a.go", "package problem\n" + imp("internal/db"), "internal/problem (a.go) imports internal/db, which is upstairs"},
		{"upstairs under a build tag", "internal/problem/a.go", "//go:build never\n\npackage problem\n" + imp("internal/db"), "which is upstairs"},
		{"a folder of a room imports upstairs", "internal/image/uki/a.go", "package uki\n" + imp("internal/policy"), "which is upstairs"},
		{"root imports its house", "a.go", "package firmseal\n" + imp("internal/problem"), "which is upstairs"},
		{"same floor", "internal/db/a.go", "package db\n" + imp("internal/image"), "internal/db (a.go) imports internal/image on the same floor (tools)"},
		{"against a listed edge", "internal/problem/a.go", "package problem\n" + imp("internal/alg"), "on the same floor (ground)"},
		{"a format imports another", "internal/image/uki/a.go", "package uki\n" + imp("internal/image/raw"), "on the same floor"},
		{"parent imports child", "internal/db/a.go", "package db\n" + imp("internal/db/disk"), "which is inside it"},
		{"a test imports upstairs", "internal/problem/a_test.go", "package problem\n" + imp("internal/db"), "such a test belongs to internal/db"},
		{"stale edge", "internal/alg/alg.go", doc("alg"), "internal/alg → internal/problem is listed and no code uses it"},
		{"never", "internal/policy/a.go", "package policy\n" + imp("internal/db"), "must never import internal/db: a decision is pure"},
		{"never, to a folder", "internal/policy/a.go", "package policy\n" + imp("internal/keys/keystest"), "must never import internal/keys/keystest: a decision is made without touching a key"},
		{"never, from a folder", "internal/image/uki/a.go", "package uki\n" + imp("internal/keys"), "a format never sees a key"},
		{"driver elsewhere", "internal/policy/a.go", "package policy\nimport _ \"modernc.org/sqlite\"\n", "modernc.org/sqlite, which is for internal/db only"},
		{"driver of another major version", "internal/policy/a.go", "package policy\nimport _ \"github.com/jackc/pgx/v5/stdlib\"\n", "which is for internal/db only"},
		{"CEL elsewhere", "internal/db/a.go", "package db\nimport _ \"cel.dev/cel-go/cel\"\n", "which is for internal/policy only"},
		{"kong elsewhere", "client/a.go", "package client\nimport _ \"github.com/alecthomas/kong\"\n", "which is for cmd only"},
		{"root with a dependency", "a.go", "package firmseal\nimport _ \"golang.org/x/mod/semver\"\n", ". (a.go) must not import golang.org/x/mod/semver"},
		{"client in the works", "internal/signing/a.go", doc("signing") + imp("client"), "imports client, which is for internal/api, "},
		{"client with a server", "client/a.go", "package client\n" + imp("internal/db"), "client (a.go) must not import internal/db"},
		{"test support in the product", "internal/policy/a.go", "package policy\n" + imp("internal/peertest"), "internal/peertest, which is for tests only"},
		{"a concrete format in a room", "internal/policy/a.go", "package policy\n" + imp("internal/image/uki"), "imports the format internal/image/uki: only cmd/firmseal knows"},
		{"a concrete format's folder in another command", "cmd/other/main.go", "// Command other is one.\npackage main\n" + imp("internal/image/uki/demo"), "only cmd/firmseal knows"},
		{"a format that main does not know", "internal/image/zip/zip.go", doc("zip"), "cmd/firmseal/parts.go does not mention the format internal/image/zip"},
		{"a backend that main does not know", "internal/keys/soft/soft.go", doc("soft"), "does not mention the key backend internal/keys/soft"},
		{"a format imported for its effects", "cmd/firmseal/parts.go", "package main\n" + imp("internal/image/uki"), "does not mention the format internal/image/uki"},
		{"no comment", "internal/blob/blob.go", "package blob\n", "internal/blob has no package comment"},
		{"a comment apart from its clause", "internal/blob/blob.go", "// Package blob is one.\n\npackage blob\n", "internal/blob has no package comment"},
		{"a comment in a test only", "internal/blob/blob_test.go", "// Package blob is one.\npackage blob\n", ""},
		{"two comments", "internal/db/a.go", doc("db"), "internal/db has 2 package comments (a.go, db.go)"},
		{"another package's comment", "internal/blob/blob.go", "// Package blobs is one.\npackage blob\n", `does not begin with "Package blob"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files := goodHouse()
			files[tt.file] = tt.src
			bad := theHouse().check(houseOf(t, files))
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
}

func TestHousePlanFindsBadPlans(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*house)
		want   string
	}{
		{"two floors", func(h *house) { h.floors[2].rooms = append(h.floors[2].rooms, "internal/jobs") }, "room internal/jobs stands on two floors"},
		{"no reason", func(h *house) { h.edges = append(h.edges, houseEdge{"internal/jobs", "internal/tlog", ""}) }, "internal/jobs → internal/tlog has no reason"},
		{"never without a reason", func(h *house) { h.never[0].why = "" }, "has no reason"},
		{"between floors", func(h *house) { h.edges = append(h.edges, houseEdge{"internal/jobs", "internal/db", "x"}) }, "does not stay on one floor"},
		{"no such room", func(h *house) { h.edges = append(h.edges, houseEdge{"internal/jobs", "internal/util", "x"}) }, "does not stay on one floor"},
		{"cycle", func(h *house) {
			h.edges = append(
				h.edges,
				houseEdge{"internal/jobs/a", "internal/tlog", "x"},
				houseEdge{"internal/tlog", "internal/journal", "x"},
				houseEdge{"internal/journal", "internal/jobs/b", "x"},
			)
		}, "lead from internal/jobs back to it"},
	} {
		h := theHouse()
		tt.change(&h)
		if bad := h.checkPlan(); !slices.ContainsFunc(bad, func(s string) bool { return strings.Contains(s, tt.want) }) {
			t.Errorf("%s: not found: %s\nfound: %s", tt.name, tt.want, strings.Join(bad, "\n"))
		}
	}
}
