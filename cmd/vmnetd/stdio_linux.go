package main

import (
	"os"

	"golang.org/x/sys/unix"
)

const getTermios = unix.TCGETS

func dup2(from, to int) error { return unix.Dup3(from, to, 0) }

// shortPipe makes a pipe hold a page at most. vde_plug loses a length of which one read gets the first byte only; it
// reads 9234 bytes at a time, so that it always empties such a pipe, and frames are put into it whole: a write of up to
// a page (PIPE_BUF) is one.
func shortPipe(f *os.File) {
	if rc, err := f.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETPIPE_SZ, os.Getpagesize()) }) // no pipe: nothing to do
	}
}
