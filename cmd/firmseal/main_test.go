package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets this test binary be the commands of programs() when it is
// called by one of their names: the scripts and the tests that kill processes
// run the real Main in a process of its own.
func TestMain(m *testing.M) { testscript.Main(m, programs()) }

func programs() map[string]func() {
	return map[string]func(){
		"firmseal":       func() { os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, hooks{})) },
		"firmseal-crash": func() { os.Exit(crashMain()) },
	}
}
