package main

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// ownPeer says whether it is our own user at the other end, or root.
func ownPeer(c *net.UnixConn) bool {
	rc, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	rc.Control(func(fd uintptr) { cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred != nil && (int(cred.Uid) == os.Geteuid() || cred.Uid == 0)
}
