package backend

import (
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// errno is the system's name of a gVisor error that callers tell apart.
func errno(err tcpip.Error) (syscall.Errno, bool) {
	switch err.(type) {
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED, true
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET, true
	case *tcpip.ErrHostUnreachable:
		return syscall.EHOSTUNREACH, true
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH, true
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT, true
	case *tcpip.ErrPortInUse:
		return syscall.EADDRINUSE, true
	case *tcpip.ErrNoPortAvailable:
		return syscall.EADDRNOTAVAIL, true
	}
	return 0, false
}
