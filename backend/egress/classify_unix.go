//go:build unix

package egress

import "syscall"

func errnoKind(e syscall.Errno) Kind {
	switch e {
	case syscall.ECONNREFUSED, syscall.ECONNRESET: // a reset while connecting is a no as well
		return Refused
	case syscall.EHOSTUNREACH, syscall.EHOSTDOWN:
		return HostUnreachable
	case syscall.ENETUNREACH, syscall.ENETDOWN,
		syscall.EAFNOSUPPORT: // the host was built or booted without this family
		return NetUnreachable
	case syscall.EPERM, syscall.EACCES: // a filter; a "prohibit" route
		return Prohibited
	case syscall.EMSGSIZE:
		return TooBig
	case syscall.ETIMEDOUT:
		return Timeout
	case syscall.EMFILE, syscall.ENFILE, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE,
		syscall.ENOBUFS, syscall.ENOMEM, syscall.EAGAIN:
		return Exhausted
	}
	return Other
}
