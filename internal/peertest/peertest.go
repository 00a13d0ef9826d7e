// Package peertest finds the foreign tools that judge Firmseal's work in tests:
// bootloaders, imgtool, openssl, mkimage, PostgreSQL, and firmware from Debian
// packages.
//
// `make peers` brings them. A test that needs one asks here and goes on with
// the path it gets. When it is not there, the test is skipped with the text
//
//	peer absent: NAME
//
// which `make test` lists at its end, so that nobody takes a skipped judge for
// a satisfied one. With FIRMSEAL_PEERS=1, as `make test-peers` and .ci/run set
// it, absence fails the test instead.
//
// # Where it looks
//
// The peers folder is $FIRMSEAL_PEERS_DIR, or .peers beside go.mod. It holds
// bin/ (links to tools), venv/ (a Python environment) and deb/NAME/ (unpacked
// Debian packages). Tools that the system has are taken from PATH.
//
// Only tests import this package.
package peertest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// systemDirs are where Debian puts tools that a user's PATH does not have.
var systemDirs = [...]string{"/usr/sbin", "/usr/lib/postgresql/15/bin"}

// Tool gives the path of an executable: from the peers folder's bin, then PATH,
// then /usr/sbin and PostgreSQL's own folder. The test ends here when there
// is none.
func Tool(t testing.TB, name string) string {
	t.Helper()
	dirs := []string{filepath.Join(peersDir(t), "bin")}
	dirs = append(dirs, filepath.SplitList(os.Getenv("PATH"))...)
	dirs = append(dirs, systemDirs[:]...)
	for _, dir := range dirs {
		p := filepath.Join(dir, name)
		if filepath.IsAbs(p) && executable(p) {
			return p
		}
	}
	Absent(t, name)
	return ""
}

// Python gives the interpreter of the peers' virtual environment, which has
// the pinned imgtool, securesystemslib and cryptography. The system's python3
// is no substitute: its modules are not the pinned ones.
func Python(t testing.TB) string {
	t.Helper()
	p := filepath.Join(peersDir(t), "venv", "bin", "python")
	if !executable(p) {
		Absent(t, "python")
	}
	return p
}

// File gives the first of paths that exists, on the system or inside one of
// the unpacked Debian packages. The paths are absolute, as a package would
// install them: /usr/lib/u-boot/qemu_arm64/u-boot.bin. The first one is the
// peer's name when there is none.
func File(t testing.TB, paths ...string) string {
	t.Helper()
	if len(paths) == 0 {
		t.Fatal("peertest.File without a path")
	}
	for _, p := range paths {
		if !filepath.IsAbs(p) {
			t.Fatalf("peertest.File: %s is not absolute", p)
		}
		if regular(p) {
			return p
		}
		// Glob fails on a malformed pattern only; the peers folder may hold
		// such a name, so packages are listed and joined instead.
		deb := filepath.Join(peersDir(t), "deb")
		pkgs, err := os.ReadDir(deb)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, pkg := range pkgs {
			if q := filepath.Join(deb, pkg.Name(), p); regular(q) {
				return q
			}
		}
	}
	Absent(t, paths[0])
	return ""
}

// DebPackage gives a file of a Debian package that `make peers` has downloaded
// and unpacked without installing it. Nothing is downloaded here.
func DebPackage(t testing.TB, name, pathInPackage string) string {
	t.Helper()
	p := filepath.Join(peersDir(t), "deb", name, pathInPackage)
	if !regular(p) {
		Absent(t, name)
	}
	return p
}

// Absent ends the test for want of a peer: skipped, or failed when
// FIRMSEAL_PEERS=1. It is for peers that only their user can look for, such as
// a server that does not start.
func Absent(t testing.TB, name string) {
	t.Helper()
	if os.Getenv("FIRMSEAL_PEERS") == "1" {
		t.Fatalf("peer absent: %s (FIRMSEAL_PEERS=1 demands it; run make peers)", name)
	}
	t.Skip("peer absent: " + name)
}

// peersDir is $FIRMSEAL_PEERS_DIR, or .peers beside the go.mod above the test's
// working directory.
func peersDir(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("FIRMSEAL_PEERS_DIR"); dir != "" {
		return dir
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if regular(filepath.Join(dir, "go.mod")) {
			return filepath.Join(dir, ".peers")
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("peertest: no go.mod above the working directory")
		}
		dir = up
	}
}

func regular(p string) bool {
	fi, err := os.Stat(p)
	return err == nil && fi.Mode().IsRegular()
}

func executable(p string) bool {
	fi, err := os.Stat(p)
	return err == nil && fi.Mode().IsRegular() && fi.Mode().Perm()&0o111 != 0
}
