//go:build !linux

package main

import "golang.org/x/sys/unix"

// guardMemory keeps private keys out of core dumps.
func guardMemory() { _ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) }
