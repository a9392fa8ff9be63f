//go:build unix

package lab

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// pipeToChild is a pipe whose reading end is for another process: blocking, as programs expect of their standard files,
// where os.Pipe's are not.
func pipeToChild() (theirs, ours *os.File, err error) { return pipe(1) }

// pipeFromChild is one whose writing end is.
func pipeFromChild() (ours, theirs *os.File, err error) { return pipe(0) }

// pipe has end i be ours, not blocking, and the other somebody else's.
func pipe(i int) (r, w *os.File, err error) {
	var p [2]int
	syscall.ForkLock.RLock() // until both are close-on-exec: not all systems can do it at once
	err = unix.Pipe(p[:])
	if err == nil {
		unix.CloseOnExec(p[0])
		unix.CloseOnExec(p[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("pipe", err)
	}
	if err := unix.SetNonblock(p[i], true); err != nil {
		unix.Close(p[0])
		unix.Close(p[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(p[0]), "|0"), os.NewFile(uintptr(p[1]), "|1"), nil
}
