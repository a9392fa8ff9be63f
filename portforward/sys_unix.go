//go:build unix

package portforward

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
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

// sendsNow says that sendNow does what it says.
const sendsNow = true

type sockaddr = unix.Sockaddr

func sockaddrOf(a netip.AddrPort) sockaddr {
	if addr := a.Addr().Unmap(); addr.Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: addr.As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: zoneID(a.Addr().Zone())}
}

func zoneID(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index)
	}
	n, _ := strconv.ParseUint(zone, 10, 32) // net's name for an interface without one
	return uint32(n)
}

// sendNow sends a datagram, or does not where it would have to wait.
func (s *datagramSocket) sendNow(p, oob []byte, to sockaddr) error {
	var err error
	if cerr := s.raw.Control(func(fd uintptr) {
		_, err = unix.SendmsgN(int(fd), p, oob, to, unix.MSG_DONTWAIT)
	}); cerr != nil {
		return net.ErrClosed // Control's only error
	}
	return os.NewSyscallError("sendmsg", err)
}
