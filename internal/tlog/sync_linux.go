package tlog

import (
	"os"
	"syscall"
)

// syncData makes bytes durable that were written over others: the file has its
// length since it was made, so that nothing but the time of its last change is
// left out.
func syncData(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); err != syscall.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
