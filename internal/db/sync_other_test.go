//go:build !linux

package db_test

import "os"

func fdatasync(f *os.File) error { return f.Sync() }
