package egress

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pingSocket opens an ICMP datagram socket: the kernel writes its identifier,
// and hands it the echo replies with that identifier and nothing else.
func pingSocket(v6 bool) (fd int, err error) {
	family, proto, name := unix.AF_INET, unix.IPPROTO_ICMP, "IPv4"
	if v6 {
		family, proto, name = unix.AF_INET6, unix.IPPROTO_ICMPV6, "IPv6"
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	switch {
	case err == nil:
		return fd, nil
	case err == unix.EACCES, err == unix.EPERM:
		const knob = "/proc/sys/net/ipv4/ping_group_range" // of both families
		now, _ := os.ReadFile(knob)
		return -1, fmt.Errorf("egress: ping over %s: %w: net.ipv4.ping_group_range is %q and leaves out group %d; allow it with: sysctl -w net.ipv4.ping_group_range='0 2147483647' (%w)",
			name, ErrNoPing, strings.Join(strings.Fields(string(now)), " "), os.Getegid(), err)
	case err == unix.EAFNOSUPPORT, err == unix.EPROTONOSUPPORT:
		return -1, fmt.Errorf("egress: ping over %s: %w: the kernel has no such sockets (%w)", name, ErrNoPing, err)
	}
	return -1, fmt.Errorf("egress: ping over %s: %w", name, os.NewSyscallError("socket", err))
}

func pingAllowed(v6 bool) error {
	fd, err := pingSocket(v6)
	if err == nil {
		return unix.Close(fd)
	}
	return err
}

// ping has one socket for each request: the kernel then tells replies apart,
// of guests that use the same sequence numbers too.
func (h *Host) ping(ctx context.Context, dst netip.Addr, seq uint16, payload []byte) error {
	v6 := dst.Is6()
	fd, err := pingSocket(v6)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close()
	if err := h.preparePing(fd, dst); err != nil {
		return fmt.Errorf("egress: ping %s: %w", dst, err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var s sender
	s.init(raw)
	var r receiver
	r.init(raw)

	b := DatagramBuffers.Get()
	err = s.send(appendEcho(b[:0], v6, seq, payload), netip.AddrPortFrom(dst, 0))
	DatagramBuffers.Put(b)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		n, from, err := r.receive(nil, DatagramBuffers)
		msg := r.buf
		r.buf = nil
		ok := err == nil && from.Addr() == dst && answers(msg[:n], v6, seq, payload)
		if msg != nil {
			DatagramBuffers.Put(msg)
		}
		switch {
		case ok:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("egress: ping %s: %w", dst, context.Cause(ctx))
		case err != nil:
			return err
		}
	}
}

func (h *Host) preparePing(fd int, dst netip.Addr) error {
	level, recverr, discover := unix.SOL_IP, unix.IP_RECVERR, unix.IP_MTU_DISCOVER
	if dst.Is6() {
		level, recverr, discover = unix.SOL_IPV6, unix.IPV6_RECVERR, unix.IPV6_MTU_DISCOVER
	}
	if err := unix.SetsockoptInt(fd, level, recverr, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	// As for UDP: sent whatever its size, told of smaller paths.
	if err := unix.SetsockoptInt(fd, level, discover, unix.IP_PMTUDISC_WANT); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := h.leaveBy(fd, dst); err != nil {
		return err
	}
	if src := h.source(dst); src.IsValid() {
		return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0))))
	}
	return nil
}
