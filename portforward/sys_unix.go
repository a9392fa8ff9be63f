//go:build unix

package portforward

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

func isRefused(err error) bool   { return errors.Is(err, syscall.ECONNREFUSED) }
func isInUse(err error) bool     { return errors.Is(err, syscall.EADDRINUSE) }
func isDenied(err error) bool    { return errors.Is(err, syscall.EACCES) }
func isNoAddress(err error) bool { return errors.Is(err, syscall.EADDRNOTAVAIL) }
func isNoFamily(err error) bool  { return errors.Is(err, syscall.EAFNOSUPPORT) }
func isNoDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// hasReset says whether a reset has come that nobody has read yet. poll leaves
// the error for the one who will.
func hasReset(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	reset := false
	rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		reset = err == nil && n > 0 && p[0].Revents&unix.POLLERR != 0
	})
	return reset
}
