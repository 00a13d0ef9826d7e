package firmseal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"
)

// rootCodes reads the codes from codes.go, so that none can be forgotten.
func rootCodes(t testing.TB) []Code {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []Code
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.ValueSpec); ok {
			for _, v := range s.Values {
				out = append(out, Code(must(strconv.Unquote(v.(*ast.BasicLit).Value))))
			}
		}
		return true
	})
	if len(out) < 20 {
		t.Fatalf("codes.go has %d codes only", len(out))
	}
	return out
}
