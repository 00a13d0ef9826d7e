package peertest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// recorder is a testing.TB that remembers how it ended instead of ending the
// test that asks.
type recorder struct {
	testing.TB
	skipped, fatal string
}

func (r *recorder) Helper() {}

func (r *recorder) Skip(a ...any) {
	r.skipped = fmt.Sprint(a...)
	runtime.Goexit()
}

func (r *recorder) Fatalf(format string, a ...any) {
	r.fatal = fmt.Sprintf(format, a...)
	runtime.Goexit()
}

func (r *recorder) Fatal(a ...any) {
	r.fatal = fmt.Sprint(a...)
	runtime.Goexit()
}

// ask runs fn as its own goroutine, because an absent peer ends it.
func ask(t *testing.T, fn func(testing.TB) string) (got string, r *recorder) {
	t.Helper()
	r = &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		got = fn(r)
	}()
	<-done
	return got, r
}

func write(t *testing.T, mode os.FileMode, elem ...string) string {
	t.Helper()
	p := filepath.Join(elem...)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"), mode); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestToolPrefersThePeersFolder(t *testing.T) {
	peers, system := t.TempDir(), t.TempDir()
	t.Setenv("FIRMSEAL_PEERS_DIR", peers)
	t.Setenv("PATH", system)
	inSystem := write(t, 0o755, system, "judge")
	if got := Tool(t, "judge"); got != inSystem {
		t.Errorf("with one in PATH only: %s", got)
	}
	inPeers := write(t, 0o755, peers, "bin", "judge")
	if got := Tool(t, "judge"); got != inPeers {
		t.Errorf("with one in both: %s, want the peers folder's", got)
	}
	if err := os.Chmod(inPeers, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := Tool(t, "judge"); got != inSystem {
		t.Errorf("the peers folder's cannot be executed: %s", got)
	}
}

func TestAbsence(t *testing.T) {
	peers := t.TempDir()
	t.Setenv("FIRMSEAL_PEERS_DIR", peers)
	t.Setenv("PATH", "")
	write(t, 0o644, peers, "venv", "bin", "python") // there, and not executable
	asks := map[string]func(testing.TB) string{
		"no-such-judge": func(tb testing.TB) string { return Tool(tb, "no-such-judge") },
		"python":        Python,
		"/no/such/rom":  func(tb testing.TB) string { return File(tb, "/no/such/rom", "/nor/this") },
		"no-firmware":   func(tb testing.TB) string { return DebPackage(tb, "no-firmware", "usr/lib/a.bin") },
	}
	for name, fn := range asks {
		t.Setenv("FIRMSEAL_PEERS", "")
		if _, r := ask(t, fn); r.skipped != "peer absent: "+name || r.fatal != "" {
			t.Errorf("%s: skipped with %q, failed with %q", name, r.skipped, r.fatal)
		}
		t.Setenv("FIRMSEAL_PEERS", "1")
		want := "peer absent: " + name + " (FIRMSEAL_PEERS=1 demands it; run make peers)"
		if _, r := ask(t, fn); r.skipped != "" || r.fatal != want {
			t.Errorf("%s, demanded: skipped with %q, failed with %q", name, r.skipped, r.fatal)
		}
	}
}

func TestUnpackedPackages(t *testing.T) {
	peers := t.TempDir()
	t.Setenv("FIRMSEAL_PEERS_DIR", peers)
	want := write(t, 0o644, peers, "deb", "board-firmware", "usr/lib/board/fw.bin")
	if got := DebPackage(t, "board-firmware", "usr/lib/board/fw.bin"); got != want {
		t.Errorf("DebPackage: %s", got)
	}
	if got := File(t, "/usr/lib/board/fw.bin"); got != want {
		t.Errorf("File inside an unpacked package: %s", got)
	}
	own := write(t, 0o644, t.TempDir(), "rom.bin")
	if got := File(t, "/no/such/rom", own); got != own {
		t.Errorf("File on the system: %s", got)
	}
}

// The folder beside go.mod is found from any package's directory.
func TestPeersDirOfThisModule(t *testing.T) {
	t.Setenv("FIRMSEAL_PEERS_DIR", "")
	dir := peersDir(t)
	if filepath.Base(dir) != ".peers" {
		t.Fatalf("peers folder %s", dir)
	}
	if !regular(filepath.Join(filepath.Dir(dir), "internal", "peertest", "peertest.go")) {
		t.Fatalf("%s is not in this module's root", dir)
	}
}
