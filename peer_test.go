package firmseal

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/firmseal/firmseal/internal/peertest"
)

// TestPeerSealPython holds Verify against a second implementation that was
// written from the specification, on every vector; and every accepted seal
// against securesystemslib.
func TestPeerSealPython(t *testing.T) {
	t.Parallel()
	python := peertest.Python(t)
	files, err := filepath.Glob(filepath.Join(vectorDir, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), python, append([]string{filepath.Join("testdata", "verify_seal.py")}, files...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	want := map[string]Code{}
	for _, v := range vectors() {
		want[v.Name] = v.Code
	}
	n, accepted := 0, 0
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); n++ {
		var got struct {
			Name, Why, DSSE string
			Code            Code
		}
		if err := d.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if got.Code != want[got.Name] {
			t.Errorf("%s: Python says %q (%s), Go %q", got.Name, got.Code, got.Why, want[got.Name])
		}
		if got.Code != "" {
			continue
		}
		accepted++
		switch keys := map[string]string{"good-threshold": "2 keys"}[got.Name]; {
		case keys == "" && got.DSSE != "1 keys", keys != "" && got.DSSE != keys:
			t.Errorf("%s: securesystemslib says %q", got.Name, got.DSSE)
		}
	}
	if n != len(want) || accepted == 0 {
		t.Errorf("Python judged %d vectors and accepted %d, there are %d", n, accepted, len(want))
	}
	t.Logf("%d vectors, the same verdict on each; %d accepted, by securesystemslib too", n, accepted)
}
