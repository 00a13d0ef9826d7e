package main

import "golang.org/x/sys/unix"

// guardMemory keeps private keys out of core dumps, and out of the reach of
// other processes of the same user: soft keys are in this process's memory once
// they were used. Where the kernel refuses, the keys are no less safe than they
// were, so that is not an error.
func guardMemory() {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
