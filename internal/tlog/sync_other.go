//go:build !linux

package tlog

import "os"

func syncData(f *os.File) error { return f.Sync() }
