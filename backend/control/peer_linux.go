package control

import (
	"net"

	"golang.org/x/sys/unix"
)

func peerOf(c net.Conn) (p peer) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return p
	}
	p.known, p.uid = true, -1 // a socket that does not tell is nobody's
	if rc, err := u.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				p.uid, p.pid = int(cred.Uid), int(cred.Pid)
			}
		})
	}
	return p
}
