package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firmseal/firmseal/internal/image/fit/fitdemo"
	"github.com/firmseal/firmseal/internal/image/fit/uboottest"
)

// What quickstart signs is booted by a real U-Boot that holds the key that
// firmseal key trust put into its control device tree, and what quickstart flipped is refused by it.
func TestPeerUBootBootsTheQuickstart(t *testing.T) {
	board := uboottest.Find(t)
	dir := t.TempDir()
	demo := filepath.Join(dir, "demo")
	var out bytes.Buffer
	if code := Main([]string{"quickstart", "--non-interactive", "-o", "json", "--dir", demo}, nil, &out, &out, hooks{}); code != 0 {
		t.Fatalf("quickstart ended with %d:\n%s", code, out.String())
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(demo, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	tree := filepath.Join(dir, "control.dtb")
	if err := os.WriteFile(tree, board.Tree, 0o600); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if code := Main([]string{"key", "trust", "demo-fit-test", "--into", tree, "--workspace", filepath.Join(demo, ".firmseal")}, nil, &out, &out, hooks{}); code != 0 {
		t.Fatalf("key trust ended with %d:\n%s", code, out.String())
	}
	control, err := os.ReadFile(tree)
	if err != nil {
		t.Fatal(err)
	}
	const boot = "bootm " + uboottest.LoadAddress + "#conf-1"
	for _, c := range []struct {
		name, file    string
		says, refuses []string
	}{
		{"the signed release boots", "demo.signed.fit", []string{"sha256,rsa2048:demo-fit-test+ OK", fitdemo.Line + "1.0.1"}, nil},
		{"the unsigned input is refused", "demo.fit", []string{"No 'signature' subnode found", "Failed to verify required signature"}, []string{fitdemo.Line}},
		{"the flipped release is refused", "flipped.fit", nil, []string{fitdemo.Line}},
	} {
		t.Run(c.name, func(t *testing.T) {
			said := board.Run(t, control, read(c.file), boot)
			t.Logf("U-Boot:\n%s", said)
			for _, w := range c.says {
				if !strings.Contains(said, w) {
					t.Errorf("U-Boot did not say %q", w)
				}
			}
			for _, w := range c.refuses {
				if strings.Contains(said, w) {
					t.Errorf("U-Boot ran it: %q", w)
				}
			}
		})
	}
}
