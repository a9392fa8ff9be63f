//go:build unix

package main

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const hasModes = true

// maxUnixPath is what sockaddr_un holds besides the NUL that ends it, which Go does without and QEMU does not.
const maxUnixPath = len(unix.RawSockaddrUnix{}.Path) - 1

func owned(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Getuid()
}

// lockDir keeps two daemons from replacing the same stale socket at once. It leaves no file behind, as a lock file
// would. It is a courtesy among daemons: a folder that cannot be locked, or that a stranger keeps locked, is used all
// the same.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return func() {}, nil
	}
	// Daemons hold it for a moment, or a second where they find a socket whose program hangs.
	for end := time.Now().Add(2 * time.Second); unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	return func() { f.Close() }, nil
}

// privateSocket has bind(2) make the socket file with mode 0600: Linux takes the mode of the socket's own inode.
// Others ignore it, so the file's mode is set again before anybody can connect.
func privateSocket(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { unix.Fchmod(int(fd), 0o600) })
}

// inherited makes a net.Listener or a net.Conn of a descriptor that this process was started with.
func inherited(fd int) (l net.Listener, c net.Conn, err error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	switch {
	case err == unix.EBADF:
		return nil, nil, errNoDescriptor
	case err != nil:
		return nil, nil, errNoSocket
	case kind != unix.SOCK_STREAM:
		return nil, nil, errNoStream
	}
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, nil, os.NewSyscallError("getsockopt", err)
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close() // net makes a copy, which no child inherits
	if listening != 0 {
		l, err = net.FileListener(f)
	} else {
		c, err = net.FileConn(f)
	}
	return l, c, err
}

// fileLimit is how many descriptors this process may have: Go has raised the soft limit to the hard one already.
func fileLimit() (n uint64, ok bool) {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 0, false
	}
	return uint64(r.Cur), true
}

// foreground says whether what is typed at the terminal, ^C and ^\, reaches our whole process group by itself.
func foreground() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

var (
	endSignals = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP}
	// hangup has a daemon with a configuration file read that again, in place of ending.
	hangup      = []os.Signal{unix.SIGHUP}
	passSignals = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH}
	// typed are those that a terminal sends to everybody in the foreground.
	typed = map[os.Signal]bool{unix.SIGINT: true, unix.SIGQUIT: true, unix.SIGWINCH: true}
)

// inheritable says whether descriptor n was handed to us and goes on to children.
func inheritable(n int) bool {
	flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
	return err == nil && flags&unix.FD_CLOEXEC == 0
}

// socketPair returns two ends of a stream: ours, and one for a child.
func socketPair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unixSocketpair(unix.SOCK_STREAM)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return pairOf(fds)
}

// pairOf makes of a socket pair a connection of ours and an end for a child.
func pairOf(fds [2]int) (ours net.Conn, theirs *os.File, err error) {
	f := os.NewFile(uintptr(fds[0]), "vmnetd")
	defer f.Close()
	theirs = os.NewFile(uintptr(fds[1]), "vmnetd wire")
	if ours, err = net.FileConn(f); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

func signalNumber(s os.Signal) int { return int(s.(syscall.Signal)) }
