//go:build unix && !linux

package main

import (
	"net"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

func unixSocketpair(kind int) ([2]int, error) {
	syscall.ForkLock.RLock() // nobody forks between the two steps
	defer syscall.ForkLock.RUnlock()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	return fds, err
}

// dieWithUs is Linux only: elsewhere a command outlives a kill -9 of ours.
func dieWithUs(*exec.Cmd) {}

func peerName(c net.Conn) string {
	if t, ok := c.(*net.TCPConn); ok {
		return " from " + t.RemoteAddr().String()
	}
	return ""
}
