package egress

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

var _ Descriptors = (*Host)(nil)

// leaveBy makes a socket leave by Interface, and a source address not cost a
// port of its own (which Linux would else choose at bind, for all
// destinations, instead of at connect).
func (h *Host) leaveBy(fd int, dst netip.Addr) error {
	if dev := h.device(dst); dev != "" {
		if err := unix.BindToDevice(fd, dev); err != nil {
			return fmt.Errorf("leave by interface %q: %w", dev, os.NewSyscallError("setsockopt", err))
		}
	}
	if h.source(dst).IsValid() {
		// Linux 4.2; an older kernel costs ports only.
		_ = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}
	return nil
}

// Connect implements Descriptors.
func (h *Host) Connect(network string, dst netip.AddrPort) (fd int, err error) {
	if err := checkDst(network, TCPNetwork(dst.Addr()), dst); err != nil {
		return -1, err
	}
	family := unix.AF_INET6
	if dst.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, fmt.Errorf("egress: connect %s: %w", dst, os.NewSyscallError("socket", err))
	}
	if err := h.connect(fd, dst); err != nil {
		unix.Close(fd)
		return -1, h.noAddress(dst, fmt.Errorf("egress: connect %s: %w", dst, err))
	}
	return fd, nil
}

func (h *Host) connect(fd int, dst netip.AddrPort) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if h.KeepAlive > 0 {
		secs := max(1, int(h.KeepAlive.Seconds()))
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, secs); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if err := h.leaveBy(fd, dst.Addr()); err != nil {
		return err
	}
	if src := h.source(dst.Addr()); src.IsValid() {
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0))); err != nil {
			return os.NewSyscallError("bind", err)
		}
	}
	switch err := unix.Connect(fd, sockaddr(dst)); err {
	case nil, unix.EINPROGRESS, unix.EINTR: // interrupted, it goes on by itself
		return nil
	default:
		return os.NewSyscallError("connect", err)
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func (h *Host) listenPacket(ctx context.Context, network string, from netip.AddrPort) (PacketConn, error) {
	var got int
	conn, err := openUDP(ctx, network, from, func(fd uintptr) error {
		if network == "udp6" && h.Interface != "" && h.Source6.IsValid() && !from.Addr().IsValid() {
			// With a source address given, IPv6 takes the interface of
			// a control message for a hint: a datagram would leave by
			// another where routes say so. Only a bound socket does not.
			if err := h.leaveBy(int(fd), h.Source6); err != nil {
				return err
			}
		}
		return prepareUDP(int(fd), network == "udp6", &got)
	})
	if err != nil {
		return nil, err
	}
	h.smallBuffer(got)
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, err
	}
	c := &packetConn{conn: conn, v6: network == "udp6", local: conn.LocalAddr().(*net.UDPAddr).AddrPort()}
	c.rd.init(raw)
	c.wr.init(raw)
	if !from.Addr().IsValid() {
		if err := c.wr.leaveBy(h, c.v6); err != nil {
			conn.Close()
			return nil, err
		}
	}
	return c, nil
}

// prepareUDP sets what every UDP socket of a guest has.
func prepareUDP(fd int, v6 bool, rcvbuf *int) error {
	level, recverr, discover := unix.SOL_IP, unix.IP_RECVERR, unix.IP_MTU_DISCOVER
	if v6 {
		level, recverr, discover = unix.SOL_IPV6, unix.IPV6_RECVERR, unix.IPV6_MTU_DISCOVER
	}
	set := func(level, opt, v int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, opt, v))
	}
	// ICMP errors are queued with the destination that each was for.
	if err := set(level, recverr, 1); err != nil {
		return err
	}
	// WANT, whatever ip_no_pmtu_disc says: the kernel sends a datagram of any
	// size, in fragments as long as it knows the path to take, and tells us
	// of a smaller path (TooBig), so that a guest that looks for its path's
	// MTU finds it. (DO and PROBE refuse datagrams longer than the path;
	// DONT never tells, and an IPv6 router fragments nothing for us.)
	// It is IP_PMTUDISC_WANT and IPV6_PMTUDISC_WANT, both 1.
	if err := set(level, discover, unix.IP_PMTUDISC_WANT); err != nil {
		return err
	}
	// Package net allows broadcast; a guest's broadcasts end at its own network.
	if err := set(unix.SOL_SOCKET, unix.SO_BROADCAST, 0); err != nil {
		return err
	}
	if err := set(unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
		return err
	}
	got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	*rcvbuf = got / 2 // the kernel doubles what is asked, for its own overhead
	return os.NewSyscallError("getsockopt", err)
}
