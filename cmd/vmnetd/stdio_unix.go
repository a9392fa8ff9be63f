//go:build unix

package main

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// openStdio makes a connection of standard input and output, and puts /dev/null in their place: what is printed by
// mistake must not be taken for frames. frameByFrame asks for a small pipe, see there.
func openStdio(frameByFrame bool) (net.Conn, error) {
	var st [3]unix.Stat_t
	for fd := range 3 {
		if unix.Fstat(fd, &st[fd]) != nil && fd < 2 {
			return nil, errNoDescriptor
		}
	}
	same := func(a, b int) bool { return st[a].Dev == st[b].Dev && st[a].Ino == st[b].Ino }
	for fd := range 2 {
		if _, err := unix.IoctlGetTermios(fd, getTermios); err == nil {
			return nil, errTerminal
		}
	}
	if kind := st[1].Mode & unix.S_IFMT; same(1, 2) && kind != unix.S_IFCHR {
		return nil, usagef("standard error goes where the frames go: send it elsewhere, as with 2>vmnetd.log")
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	var ends [2]*os.File
	var flags [2]int
	for fd := range ends {
		if flags[fd], err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil {
			return nil, os.NewSyscallError("fcntl", err)
		}
		// Not their own numbers: Go ends a program that writes to a broken pipe there.
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, os.NewSyscallError("fcntl", err)
		}
		unix.SetNonblock(n, true) // so that Go's poller has them, and Close ends a read
		ends[fd] = os.NewFile(uintptr(n), [2]string{"standard input", "standard output"}[fd])
		if err := dup2(int(null.Fd()), fd); err != nil {
			return nil, os.NewSyscallError("dup2", err)
		}
	}
	// Others may have the same pipe and expect to wait for it.
	restore := func() {
		for i, f := range ends {
			if rc, err := f.SyscallConn(); err == nil {
				rc.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETFL, flags[i]) })
			}
		}
	}
	if same(0, 1) && st[0].Mode&unix.S_IFMT == unix.S_IFSOCK {
		if c, err := net.FileConn(ends[0]); err == nil {
			ends[0].Close()
			ends[1].Close()
			return c, nil
		}
	}
	if frameByFrame {
		shortPipe(ends[1])
	}
	return &stdio{in: ends[0], out: ends[1], restore: restore}, nil
}
