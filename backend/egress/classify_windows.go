package egress

import (
	"syscall"

	"golang.org/x/sys/windows"
)

func errnoKind(e syscall.Errno) Kind {
	switch e {
	case windows.WSAECONNREFUSED, windows.WSAECONNRESET: // a reset while connecting is a no as well
		return Refused
	case windows.WSAEHOSTUNREACH, windows.WSAEHOSTDOWN:
		return HostUnreachable
	case windows.WSAENETUNREACH, windows.WSAENETDOWN, windows.WSAEAFNOSUPPORT:
		return NetUnreachable
	case windows.WSAEACCES:
		return Prohibited
	case windows.WSAEMSGSIZE:
		return TooBig
	case windows.WSAETIMEDOUT:
		return Timeout
	case windows.WSAEMFILE, windows.WSAEADDRNOTAVAIL, windows.WSAEADDRINUSE,
		windows.WSAENOBUFS, windows.WSAEWOULDBLOCK:
		return Exhausted
	}
	return Other
}
