package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Dial opens a conversation from inside. network is tcp, tcp4, tcp6, udp, udp4 or udp6; address an IP address with a port.
// Only the socket is made inside, by an errand; it is connected, read and written as any other.
func (s *Space) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: dialAddr(address), Err: err}
	}
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fail(fmt.Errorf("want an IP address with a port: %w", err))
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	kind, proto := unix.SOCK_STREAM, strings.TrimRight(network, "46")
	switch proto {
	case "tcp":
	case "udp":
		kind = unix.SOCK_DGRAM
	default:
		return fail(net.UnknownNetworkError(network))
	}
	if to.Addr().Zone() != "" || network == proto+"4" && to.Addr().Is6() || network == proto+"6" && to.Addr().Is4() {
		return fail(&net.AddrError{Err: "no address of this network, or one with a zone", Addr: address})
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	var sa unix.Sockaddr
	if to.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	} else {
		sa = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	fd, err := s.socket(int(family(to.Addr())), kind)
	if err != nil {
		return fail(err)
	}
	f := os.NewFile(uintptr(fd), "dial")
	defer f.Close() // FileConn has its own
	if err := connect(ctx, f, sa); err != nil {
		return fail(err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return fail(err)
	}
	if t, ok := c.(*net.TCPConn); ok { // as net.Dial
		t.SetNoDelay(true)
		t.SetKeepAlive(true)
	}
	return c, nil
}

// dialAddr is an address in an error.
type dialAddr string

func (dialAddr) Network() string  { return "" }
func (a dialAddr) String() string { return string(a) }

func (s *Space) socket(domain, kind int) (int, error) {
	e := &errand{}
	done, err := s.enter(e, unix.CLONE_NEWNET)
	defer done()
	if err != nil {
		return -1, err
	}
	e.back = []int{e.add("socket", unix.SYS_SOCKET, uintptr(domain), uintptr(kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK), 0)}
	fds, err := e.run()
	if err != nil {
		return -1, explain(err)
	}
	return fds[0], nil
}

// connect connects a socket that does not block.
func connect(ctx context.Context, f *os.File, sa unix.Sockaddr) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { f.SetDeadline(time.Unix(1, 0)) })()
	begun := false
	var cerr error
	err = rc.Write(func(fd uintptr) bool {
		if !begun {
			begun = true
			cerr = unix.Connect(int(fd), sa)
			return cerr != unix.EINPROGRESS && cerr != unix.EINTR // then it goes on by itself
		}
		n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			cerr = os.NewSyscallError("getsockopt", err)
		case n != 0:
			cerr = unix.Errno(n)
		default:
			if _, err := unix.Getpeername(int(fd)); err != nil { // woken too early
				return false
			}
			cerr = nil
		}
		return true
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return os.NewSyscallError("connect", cerr)
}
