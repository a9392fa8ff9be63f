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
	is, err := polled(sc, unix.POLLERR)
	return err == nil && is
}

// polled asks poll for a condition that it reports unasked. The error is
// net.ErrClosed for a connection that this side has closed.
func polled(c syscall.Conn, what int16) (is bool, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return false, err
	}
	err = rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		is = err == nil && n > 0 && p[0].Revents&what != 0
	})
	return is, err
}
