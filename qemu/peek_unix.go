//go:build unix

package qemu

import (
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// peek waits for n bytes and returns them and a connection that still has them: c itself, where the system can look
// without taking, so that its descriptor carries all of the guest's frames.
func peek(c net.Conn, n int) ([]byte, net.Conn, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return take(c, n)
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return take(c, n)
	}
	b := make([]byte, n)
	got := 0
	rerr := rc.Read(func(fd uintptr) bool {
		for {
			got, _, err = unix.Recvfrom(int(fd), b, unix.MSG_PEEK)
			if err != unix.EINTR {
				break
			}
		}
		return err != unix.EAGAIN && (err != nil || got == 0 || got == n)
	})
	switch {
	case rerr != nil:
		return nil, c, rerr
	case err == unix.ENOTSOCK, err == unix.EOPNOTSUPP: // no socket, or one of Hyper-V's vsock
		return take(c, n)
	case err != nil:
		return nil, c, err
	case got == 0:
		return nil, c, io.EOF
	}
	return b, c, nil
}
