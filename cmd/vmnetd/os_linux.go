package main

import (
	"net"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

func unixSocketpair(kind int) ([2]int, error) {
	return unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
}

// dieWithUs has the command end when we do, however that comes about: kill -9 leaves us no time to pass anything on.
func dieWithUs(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }

// peerName tells whose connection it is, as far as the system does: one VMM from another in "vm ls".
func peerName(c net.Conn) string {
	switch c := c.(type) {
	case *net.TCPConn:
		return " from " + c.RemoteAddr().String()
	case *net.UnixConn:
		rc, err := c.SyscallConn()
		if err != nil {
			return ""
		}
		var cred *unix.Ucred
		rc.Control(func(fd uintptr) { cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
		if cred != nil && cred.Pid > 0 {
			return " pid " + strconv.Itoa(int(cred.Pid))
		}
	}
	return ""
}
