package dbtest

import "syscall"

// dying makes the server end with the test binary, should that be killed.
//
// The kernel watches the thread that started the process, and Go keeps an idle
// thread for ever unless a goroutine ended locked to it, which none here does.
func dying(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGQUIT }
