package vfkit

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/link"
)

// socket is a socket of a Listener's, and its reader.
type socket struct {
	l     *Listener
	c     Conn
	rc    syscall.RawConn
	since time.Time
	now   int64 // when what is being delivered came

	in    call
	vecs  [atOnce][2]unix.Iovec
	names [atOnce]unix.RawSockaddrAny
	slots *[atOnce][slot]byte
}

func newSocket(l *Listener, c Conn) *socket {
	s := &socket{l: l, c: c, since: time.Now(), slots: new([atOnce][slot]byte)}
	s.in.init(unix.SYS_RECVMMSG)
	s.in.msgs = make([]mmsg, atOnce)
	for i := range s.in.msgs {
		h := &s.in.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&s.names[i]))
		h.Iov = &s.vecs[i][0]
		h.SetIovlen(2)
		s.vecs[i][0] = iovec(s.slots[i][:])
	}
	if rc, err := c.(syscall.Conn).SyscallConn(); err == nil {
		s.rc = rc
		if l.udp { // so that the system tells whose port is closed
			rc.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1)
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
			})
		}
	}
	return s
}

// read delivers until the socket is closed.
func (s *socket) read() error {
	if s.rc == nil {
		return errors.New("vfkit: a socket without a descriptor")
	}
	var ends *tails
	try := func(fd uintptr) bool {
		ends = spareTails.Get().(*tails)
		for i := range s.in.msgs {
			s.in.msgs[i].hdr.Namelen = uint32(unsafe.Sizeof(s.names[i]))
			s.vecs[i][1] = iovec(ends[i][:])
		}
		s.in.do(fd)
		for i := range s.vecs { // what is lent is not kept
			s.vecs[i][1] = unix.Iovec{}
		}
		if s.in.errno != unix.EAGAIN {
			return true
		}
		spareTails.Put(ends)
		return false
	}
	for {
		if err := s.rc.Read(try); err != nil {
			return net.ErrClosed
		}
		s.now = time.Now().UnixNano()
		switch s.in.errno {
		case 0:
			for i := range s.in.msgs[:s.in.n] {
				m := &s.in.msgs[i]
				size := int(m.n)
				name := unsafe.Slice((*byte)(unsafe.Pointer(&s.names[i])), m.hdr.Namelen)
				if len(name) <= 2 { // a family alone
					name = nil
				}
				s.deliver(name, s.slots[i][:min(size, slot)], ends[i][:max(size-slot, 0)])
			}
		default:
			if !s.l.udp {
				spareTails.Put(ends)
				return fmt.Errorf("vfkit: read: %w", s.in.errno)
			}
			s.closedPorts()
		}
		spareTails.Put(ends)
	}
}

// closedPorts ends the guests whose ports, as ICMP says, are closed.
func (s *socket) closedPorts() {
	var none [1]byte
	var control [512]byte
	for range peersMost { // others may come meanwhile: the next read tells of them
		var name unix.RawSockaddrAny
		vec := iovec(none[:])
		m := []mmsg{{hdr: unix.Msghdr{
			Name: (*byte)(unsafe.Pointer(&name)), Namelen: uint32(unsafe.Sizeof(name)), Iov: &vec, Iovlen: 1, Control: &control[0],
		}}}
		m[0].hdr.SetControllen(len(control))
		var c call
		c.init(unix.SYS_RECVMMSG)
		c.flags |= unix.MSG_ERRQUEUE
		c.msgs = m
		if s.rc.Control(c.bound) != nil || c.errno != 0 || c.n < 1 {
			return
		}
		refused := false
		msgs, err := unix.ParseSocketControlMessage(control[:m[0].hdr.Controllen])
		if err != nil {
			continue
		}
		for _, x := range msgs { // struct sock_extended_err begins with the error (ip(7))
			if len(x.Data) >= 4 && (x.Header.Type == unix.IP_RECVERR || x.Header.Type == unix.IPV6_RECVERR) {
				refused = refused || *(*uint32)(unsafe.Pointer(&x.Data[0])) == uint32(unix.ECONNREFUSED)
			}
		}
		if !refused {
			continue
		}
		key := unsafe.Slice((*byte)(unsafe.Pointer(&name)), m[0].hdr.Namelen)
		s.l.mu.Lock()
		p := s.l.peers[string(key)]
		s.l.mu.Unlock()
		if p != nil {
			p.finish(net.ErrClosed)
		}
	}
}

// sender is how frames get to p.
func (s *socket) sender(p *peer) (sender, error) {
	if s.l.udp {
		return newShared(p), nil
	}
	fd, err := connectUnix(p.name)
	switch {
	case err == nil:
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
		f := os.NewFile(uintptr(fd), "vfkit")
		rc, err := f.SyscallConn()
		if err != nil {
			f.Close()
			return nil, err
		}
		return newOwn(p, f, rc), nil
	case err == unix.EPERM: // it is connected, to our socket as far as we know
		return newShared(p), nil
	case err == unix.ENOENT:
		return nil, fmt.Errorf("%w: a VMM's socket needs a whole path, from the root, that is the same here", err)
	case err == unix.EACCES:
		return nil, fmt.Errorf("%w: a VMM must run as the user of this program", err)
	}
	return nil, err
}

// connectUnix returns a socket that is connected to a name.
func connectUnix(name []byte) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if _, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(name))), uintptr(len(name))); e != 0 {
		unix.Close(fd)
		return -1, e
	}
	return fd, nil
}

// there says whether anybody is at a name, as far as that can be seen.
func (s *socket) there(name []byte) bool {
	if s.l.udp {
		return true
	}
	fd, err := connectUnix(name)
	if err == nil {
		unix.Close(fd)
	}
	return err != unix.ENOENT && err != unix.ECONNREFUSED
}

// outbox sends frames to one guest.
type outbox struct {
	p *peer
	call
	iov   []unix.Iovec
	parts [atOnce]int

	// Of the send that is going on:
	frames []link.Frame
	n      int
	err    error
}

func (x *outbox) init(p *peer) {
	x.p = p
	x.call.init(unix.SYS_SENDMMSG)
	x.msgs = make([]mmsg, atOnce)
}

// some sends what a socket takes of the frames, to an address or to none; err is link.ErrWait if that is not all.
func (x *outbox) some(fd uintptr, to []byte) {
	for x.err = nil; x.n < len(x.frames); {
		x.compose(x.frames[x.n:], &x.iov, &x.parts, to)
		x.do(fd)
		switch {
		case x.errno == 0:
			x.n += x.call.n
		case x.errno == unix.EAGAIN, x.errno == unix.ENOBUFS:
			x.err = link.ErrWait
			return
		case x.errno == unix.EMSGSIZE, x.p.l.udp: // and what ICMP has said, perhaps of another guest
			x.p.overrun()
			x.n++
		default:
			x.err = x.errno
			return
		}
	}
}

// own sends from a socket of the guest's own.
type own struct {
	f  *os.File
	rc syscall.RawConn
	outbox
	waits func(fd uintptr) bool
	tries func(fd uintptr)
}

func newOwn(p *peer, f *os.File, rc syscall.RawConn) *own {
	o := &own{f: f, rc: rc}
	o.init(p)
	o.tries = func(fd uintptr) { o.some(fd, nil) }
	o.waits = func(fd uintptr) bool { o.some(fd, nil); return o.err != link.ErrWait }
	return o
}

func (o *own) shares() bool { return false }
func (o *own) close()       { o.f.Close() }

func (o *own) send(frames []link.Frame, _ <-chan struct{}) (int, error) {
	o.frames, o.n = frames, 0
	if o.rc.Write(o.waits) != nil {
		return o.n, net.ErrClosed
	}
	return o.n, o.err
}

func (o *own) try(frames []link.Frame) (int, error) {
	o.frames, o.n = frames, 0
	if o.rc.Control(o.tries) != nil {
		return o.n, net.ErrClosed
	}
	return o.n, o.err
}

// shared sends from a Listener's socket.
type shared struct {
	outbox
	tries func(fd uintptr)
}

func newShared(p *peer) *shared {
	x := &shared{}
	x.init(p)
	x.tries = func(fd uintptr) { x.some(fd, p.name) }
	return x
}

func (x *shared) shares() bool { return !x.p.l.udp }
func (x *shared) close()       {}

func (x *shared) send(frames []link.Frame, done <-chan struct{}) (n int, err error) {
	for p := pause(0); ; {
		sent, err := x.try(frames[n:])
		if n += sent; err != link.ErrWait {
			return n, err
		}
		if sent > 0 {
			p = 0
		}
		if !p.wait(done) {
			return n, net.ErrClosed
		}
	}
}

func (x *shared) try(frames []link.Frame) (int, error) {
	x.frames, x.n = frames, 0
	// Not rc.Write: one guest's writer waits there for another's.
	if x.p.s.rc.Control(x.tries) != nil {
		return x.n, net.ErrClosed
	}
	return x.n, x.err
}

// describe is a name for people.
func describe(name []byte) string {
	var a unix.RawSockaddrAny
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&a)), unsafe.Sizeof(a)), name)
	switch a.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&a))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), port(in.Port)).String()
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(&a))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), port(in.Port)).String()
	}
	path := name[2:]
	if path[0] == 0 {
		return "@" + string(path[1:])
	}
	for i, b := range path {
		if b == 0 {
			path = path[:i]
			break
		}
	}
	return string(path)
}

// port is a port that stands in network byte order.
func port(n uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&n))
	return uint16(b[0])<<8 | uint16(b[1])
}
