//go:build !linux

package dbtest

import "syscall"

// dying does nothing where the kernel cannot tie one process to another.
func dying(*syscall.SysProcAttr) {}
