package egress

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// packetConn is one UDP socket. conn is for opening and closing; datagrams go
// by recvmsg and sendmsg, which alone reach the error queue.
type packetConn struct {
	conn  *net.UDPConn
	v6    bool
	local netip.AddrPort

	rmu sync.Mutex // held while a read sleeps: there is one reader
	rd  receiver

	wmu sync.Mutex // never held while anything waits
	wr  sender
}

func (c *packetConn) LocalAddr() netip.AddrPort { return c.local }
func (c *packetConn) Close() error              { return closed(c.conn.Close()) }

func (c *packetConn) ReadFrom(buf []byte) (int, netip.AddrPort, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	return c.rd.receive(buf, nil)
}

func (c *packetConn) ReadBorrowed(bufs Buffers) ([]byte, netip.AddrPort, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	n, from, err := c.rd.receive(nil, bufs)
	b := c.rd.buf
	c.rd.buf = nil
	if err != nil {
		if b != nil {
			bufs.Put(b)
		}
		return nil, netip.AddrPort{}, err
	}
	return b[:n], from, nil
}

func (c *packetConn) WriteTo(b []byte, to netip.AddrPort) (int, error) {
	network := "udp4"
	if c.v6 {
		network = "udp6"
	}
	if err := checkDst(network, UDPNetwork(to.Addr()), to); err != nil {
		return 0, err
	}
	if err := tooLong(len(b), to); err != nil {
		return 0, err
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.wr.send(b, to); err != nil {
		return 0, err
	}
	return len(b), nil
}

// closed gives package net's long closing error its short name.
func closed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

// receiver reads datagrams, and the errors that ICMP brought back, from a UDP
// or ICMP datagram socket with IP_RECVERR. Its fields are reused by each call,
// so that a call allocates nothing.
type receiver struct {
	raw  syscall.RawConn
	step func(fd uintptr) bool // try, bound once

	hdr  unix.Msghdr
	iov  unix.Iovec
	name unix.RawSockaddrInet6 // the longer of the two families
	oob  [oobSize]byte

	// Of the running call:
	bufs Buffers // nil: read into buf
	buf  []byte
	n    int
	from netip.AddrPort
	err  error
}

// One control message: the error and, behind it, who sent it.
const (
	extErrSize = int(unsafe.Sizeof(unix.SockExtendedErr{}))
	oobSize    = unix.SizeofCmsghdr + extErrSize + unix.SizeofSockaddrInet6 + 16 // 16: alignment
)

func (r *receiver) init(raw syscall.RawConn) {
	r.raw = raw
	r.step = r.try
	r.hdr.Iov = &r.iov
	r.hdr.SetIovlen(1)
	r.hdr.Name = (*byte)(unsafe.Pointer(&r.name))
}

// receive waits for a datagram or an error, with buf, or with a buffer of
// bufs that it leaves in r.buf.
func (r *receiver) receive(buf []byte, bufs Buffers) (int, netip.AddrPort, error) {
	r.buf, r.bufs = buf, bufs
	r.n, r.from, r.err = 0, netip.AddrPort{}, nil
	defer func() { r.bufs = nil }()
	for {
		err := r.raw.Read(r.step)
		if err == nil {
			return r.n, r.from, r.err
		}
		err = closed(err)
		if err == net.ErrClosed || errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, netip.AddrPort{}, err
		}
		// Go's poller gives up on a descriptor for which epoll reports an
		// error and nothing else: a queued ICMP error while the send
		// buffer is full. It is neither broken nor for ever: look past
		// the poller until the next event. 1 ms: the wait is for the
		// send buffer to drain, not for a peer.
		done := false
		if err := r.raw.Control(func(fd uintptr) { done = r.try(fd) }); err != nil {
			return 0, netip.AddrPort{}, closed(err)
		}
		if done {
			return r.n, r.from, r.err
		}
		time.Sleep(time.Millisecond)
	}
}

// try reads without waiting. false: there is nothing, sleep.
func (r *receiver) try(fd uintptr) bool {
	for {
		if r.bufs != nil && r.buf == nil {
			r.buf = r.bufs.Get()
		}
		n, errno := r.recvmsg(fd, r.buf, nil, 0)
		switch errno {
		case 0:
			from, ok := sockaddrOf(&r.name)
			if !ok || from.Addr().Is6() && from.Addr().IsLinkLocalUnicast() {
				continue // of a link of the host's: nobody could answer it
			}
			r.n, r.from = n, from
			if r.hdr.Flags&unix.MSG_TRUNC != 0 {
				r.n, r.err = len(r.buf), io.ErrShortBuffer
			}
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			// Look for errors each time before sleeping: a failed
			// sendmsg may have taken the mark that one is queued.
			if r.takeError(fd) {
				return true
			}
			if r.bufs != nil { // sleep without a buffer
				r.bufs.Put(r.buf)
				r.buf = nil
			}
			return false
		}
		// The socket's pending error: its story is in the queue.
		if r.takeError(fd) {
			return true
		}
		if !ofOneDestination(errno) {
			r.err = os.NewSyscallError("recvmsg", errno)
			return true
		}
		// The story was told or lost; the mark is gone now.
	}
}

// takeError takes one error from the socket's error queue to r.err.
func (r *receiver) takeError(fd uintptr) bool {
	for {
		_, errno := r.recvmsg(fd, nil, r.oob[:], unix.MSG_ERRQUEUE)
		switch errno {
		case 0:
			dst, ok := sockaddrOf(&r.name)
			if !ok {
				continue
			}
			if e := parseError(r.oob[:min(int(r.hdr.Controllen), len(r.oob))], dst); e != nil {
				r.err = e
				return true
			}
		case unix.EINTR:
		default:
			return false
		}
	}
}

func (r *receiver) recvmsg(fd uintptr, b, oob []byte, flags int) (int, syscall.Errno) {
	r.iov.Base = unsafe.SliceData(b)
	r.iov.SetLen(len(b))
	r.hdr.Namelen = uint32(unsafe.Sizeof(r.name))
	r.hdr.Control = unsafe.SliceData(oob)
	r.hdr.SetControllen(len(oob))
	r.hdr.Flags = 0
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&r.hdr)), uintptr(flags|unix.MSG_DONTWAIT))
	r.iov.Base = nil // the caller's again
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// sockaddrOf reads an address as the kernel wrote it, of either family.
func sockaddrOf(name *unix.RawSockaddrInet6) (netip.AddrPort, bool) {
	switch name.Family {
	case unix.AF_INET:
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), ntohs(sa.Port)), true
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(name.Addr), ntohs(name.Port)), true
	}
	return netip.AddrPort{}, false
}

// ntohs and its inverse: a port in memory is big-endian on every machine.
func ntohs(p uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&p))
	return uint16(b[0])<<8 | uint16(b[1])
}

func htons(p uint16) uint16 {
	b := [2]byte{byte(p >> 8), byte(p)}
	return *(*uint16)(unsafe.Pointer(&b))
}

// parseError reads the control messages of one entry of the error queue. nil:
// it tells of no destination.
func parseError(oob []byte, dst netip.AddrPort) *UnreachableError {
	for len(oob) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return nil
		}
		oob = rest
		v4 := h.Level == unix.SOL_IP && h.Type == unix.IP_RECVERR
		v6 := h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_RECVERR
		if !v4 && !v6 || len(data) < extErrSize {
			continue
		}
		var ee unix.SockExtendedErr
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&ee)), extErrSize), data)
		e := &UnreachableError{Dst: dst, Err: syscall.Errno(ee.Errno)}
		switch ee.Origin {
		case unix.SO_EE_ORIGIN_ICMP:
			e.Kind = icmp4Kind(ee.Type, ee.Code)
		case unix.SO_EE_ORIGIN_ICMP6:
			e.Kind = icmp6Kind(ee.Type, ee.Code)
		case unix.SO_EE_ORIGIN_LOCAL:
			e.Kind = errnoKind(syscall.Errno(ee.Errno))
		default:
			continue // time stamps and the like: not asked for
		}
		if e.Kind == TooBig {
			e.MTU = int(ee.Info & 0x7fffffff)
		}
		if ee.Origin != unix.SO_EE_ORIGIN_LOCAL {
			var name unix.RawSockaddrInet6
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&name)), int(unsafe.Sizeof(name))), data[extErrSize:])
			if from, ok := sockaddrOf(&name); ok {
				e.From = from.Addr()
			}
		}
		return e
	}
	return nil
}

// icmp4Kind: RFC 792, RFC 1122 3.2.2.1, RFC 1812 5.2.7.1.
func icmp4Kind(typ, code uint8) Kind {
	switch typ {
	case 3: // destination unreachable
		switch code {
		case 0, 6, 11: // net; net unknown; net for this type of service
			return NetUnreachable
		case 1, 5, 7, 8, 12: // host; source route; host unknown; isolated; type of service
			return HostUnreachable
		case 2, 3: // protocol; port
			return PortUnreachable
		case 4:
			return TooBig
		case 9, 10, 13, 14, 15: // prohibited: net, host, by filter; precedence
			return Prohibited
		}
	case 11: // time exceeded
		return HostUnreachable
	}
	return Other
}

// icmp6Kind: RFC 4443 3.
func icmp6Kind(typ, code uint8) Kind {
	switch typ {
	case 1: // destination unreachable
		switch code {
		case 0, 2: // no route; beyond the source address' scope
			return NetUnreachable
		case 1, 5, 6: // by filter; ingress or egress policy; reject route
			return Prohibited
		case 3:
			return HostUnreachable
		case 4:
			return PortUnreachable
		}
	case 2:
		return TooBig
	case 3: // time exceeded
		return HostUnreachable
	}
	return Other
}

// ofOneDestination says whether an error that a socket with IP_RECVERR
// reports is news of one destination and leaves the socket whole.
func ofOneDestination(e syscall.Errno) bool {
	switch e {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENONET,
		unix.ENETDOWN, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EMSGSIZE, unix.EACCES, unix.EPERM,
		unix.EPROTO, unix.EADDRNOTAVAIL:
		return true
	}
	return false
}

// sender writes datagrams. Like receiver it allocates nothing for a call that
// succeeds.
type sender struct {
	raw  syscall.RawConn
	step func(fd uintptr) bool

	hdr  unix.Msghdr
	iov  unix.Iovec
	name unix.RawSockaddrInet6
	via  []byte // control message for destinations that are not loopback, see leaveBy

	errno syscall.Errno
}

func (s *sender) init(raw syscall.RawConn) {
	s.raw = raw
	s.step = func(fd uintptr) bool { s.try(fd); return true }
	s.hdr.Iov = &s.iov
	s.hdr.SetIovlen(1)
	s.hdr.Name = (*byte)(unsafe.Pointer(&s.name))
}

// leaveBy sends by the Host's interface and source address, by a control
// message with each datagram: a bound socket could not also reach loopback.
func (s *sender) leaveBy(h *Host, v6 bool) error {
	src := h.Source4
	if v6 {
		src = h.Source6
	}
	if h.Interface == "" && !src.IsValid() {
		return nil
	}
	index := 0
	if h.Interface != "" {
		ifi, err := net.InterfaceByName(h.Interface)
		if err != nil {
			return fmt.Errorf("egress: leave by interface %q: %w", h.Interface, err)
		}
		index = ifi.Index
	}
	if v6 {
		info := unix.Inet6Pktinfo{Ifindex: uint32(index)}
		if src.IsValid() {
			info.Addr = src.As16()
		}
		s.via = unix.PktInfo6(&info)
		return nil
	}
	info := unix.Inet4Pktinfo{Ifindex: int32(index)}
	if src.IsValid() {
		info.Spec_dst = src.As4()
	}
	s.via = unix.PktInfo4(&info)
	return nil
}

func (s *sender) send(b []byte, to netip.AddrPort) error {
	s.iov.Base = unsafe.SliceData(b)
	s.iov.SetLen(len(b))
	s.hdr.Namelen = putSockaddr(&s.name, to)
	s.hdr.Control = nil
	s.hdr.SetControllen(0)
	if s.via != nil && !to.Addr().IsLoopback() {
		s.hdr.Control = unsafe.SliceData(s.via)
		s.hdr.SetControllen(len(s.via))
	}
	err := s.raw.Write(s.step)
	s.iov.Base = nil // the caller's again
	if err != nil {
		return closed(err)
	}
	switch e := s.errno; {
	case e == 0:
		return nil
	case e == unix.EADDRNOTAVAIL: // no address of this host's can be the source
		return &UnreachableError{Dst: to, Kind: NetUnreachable, Err: os.NewSyscallError("sendmsg", e)}
	case ofOneDestination(e):
		return &UnreachableError{Dst: to, Kind: errnoKind(e), Err: os.NewSyscallError("sendmsg", e)}
	default:
		return fmt.Errorf("egress: send to %s: %w", to, os.NewSyscallError("sendmsg", e))
	}
}

// try sends without waiting, and leaves in s.errno what became of it.
//
// An ICMP error for an earlier datagram, to whomever, makes the next sendmsg
// fail and clears itself: such a failure is not this datagram's, which is sent
// again. This datagram's own failure comes again; and no unconnected socket
// is refused at once. (With several errors queued each read marks the socket
// anew, hence more than one try; 8 in a row, and the datagram is dropped.)
func (s *sender) try(fd uintptr) {
	var last syscall.Errno
	for range 8 {
		_, _, errno := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&s.hdr)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		s.errno = errno
		switch {
		case errno == 0:
			return
		case errno == unix.EINTR:
		case errno == unix.ECONNREFUSED:
			s.errno = unix.ENOBUFS // what it is called if the last try ends so
		case !ofOneDestination(errno), errno == last:
			return
		}
		last = errno
	}
}

func putSockaddr(name *unix.RawSockaddrInet6, to netip.AddrPort) (size uint32) {
	if to.Addr().Is4() {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		*sa = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: htons(to.Port()), Addr: to.Addr().As4()}
		return unix.SizeofSockaddrInet4
	}
	*name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: htons(to.Port()), Addr: to.Addr().As16()}
	return unix.SizeofSockaddrInet6
}
