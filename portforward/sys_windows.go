package portforward

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/windows"
)

// maxUnixPath is UNIX_PATH_MAX (afunix.h) without its NUL.
const maxUnixPath = 107

func isRefused(err error) bool {
	return errors.Is(err, windows.WSAECONNREFUSED) || errors.Is(err, syscall.ECONNREFUSED)
}
func isInUse(err error) bool         { return errors.Is(err, windows.WSAEADDRINUSE) }
func isDenied(err error) bool        { return errors.Is(err, windows.WSAEACCES) }
func isNoAddress(err error) bool     { return errors.Is(err, windows.WSAEADDRNOTAVAIL) }
func isNoFamily(err error) bool      { return errors.Is(err, windows.WSAEAFNOSUPPORT) }
func isNoDescriptors(err error) bool { return errors.Is(err, windows.WSAEMFILE) }

// hasReset: no poll here. Such a conversation lasts until its guest moves.
func hasReset(net.Conn) bool { return false }

// sendsNow: a datagram socket of net's can only be written to by waiting.
const sendsNow = false

type sockaddr = struct{}

func sockaddrOf(netip.AddrPort) sockaddr { return sockaddr{} }

func (*datagramSocket) sendNow(_, _ []byte, _ sockaddr) error { return errors.ErrUnsupported }
