// Package sockets makes package net's connections of a gVisor stack's endpoints: with its deadlines, its half-closes and
// its errors, which answer errors.Is for syscall.ECONNREFUSED, net.ErrClosed and os.ErrDeadlineExceeded.
//
//	c, err := sockets.DialTCP(ctx, stack, netip.AddrPort{}, netip.MustParseAddrPort("10.0.2.2:80"))
//	if errors.Is(err, syscall.ECONNREFUSED) {
//		return err
//	}
//	defer c.Close()
//	fmt.Fprintf(c, "GET / HTTP/1.0\r\n\r\n")
//	c.CloseWrite()
//
// It makes no stack and knows no network: see backend and backend/guest. Names are not resolved here.
package sockets

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// NIC is the stack's one interface, which link-local addresses are of.
const NIC tcpip.NICID = 1

var (
	_ net.Conn       = (*TCPConn)(nil)
	_ net.Listener   = (*Listener)(nil)
	_ net.Conn       = (*UDPConn)(nil)
	_ net.PacketConn = (*UDPConn)(nil)
)

// errnos are the system's names of a stack's errors, by the words that gonet leaves of them.
var errnos = map[string]error{
	(&tcpip.ErrConnectionRefused{}).String():            syscall.ECONNREFUSED,
	(&tcpip.ErrConnectionReset{}).String():              syscall.ECONNRESET,
	(&tcpip.ErrConnectionAborted{}).String():            syscall.ECONNABORTED,
	(&tcpip.ErrHostUnreachable{}).String():              syscall.EHOSTUNREACH,
	(&tcpip.ErrNetworkUnreachable{}).String():           syscall.ENETUNREACH,
	(&tcpip.ErrTimeout{}).String():                      syscall.ETIMEDOUT,
	(&tcpip.ErrClosedForSend{}).String():                syscall.EPIPE,
	(&tcpip.ErrMessageTooLong{}).String():               syscall.EMSGSIZE,
	(&tcpip.ErrNoPortAvailable{}).String():              syscall.EADDRNOTAVAIL,
	(&tcpip.ErrBadLocalAddress{}).String():              syscall.EADDRNOTAVAIL,
	(&tcpip.ErrPortInUse{}).String():                    syscall.EADDRINUSE,
	(&tcpip.ErrInvalidEndpointState{}).String():         net.ErrClosed,
	(&tcpip.ErrNotConnected{}).String():                 syscall.ENOTCONN,
	(&tcpip.ErrDestinationRequired{}).String():          syscall.EDESTADDRREQ,
	(&tcpip.ErrMulticastInputCannotBeOutput{}).String(): syscall.EHOSTUNREACH,
}

// Name makes an error of gonet's one of package net's. closed says that the connection was closed on this side.
func Name(err error, closed bool) error {
	var op *net.OpError
	if err == nil || err == io.EOF && !closed || !errors.As(err, &op) && !closed {
		return err
	}
	if op == nil {
		op = &net.OpError{Op: "read", Net: "tcp", Err: err}
	}
	switch {
	case closed:
		op.Err = net.ErrClosed
	case op.Timeout():
		op.Err = os.ErrDeadlineExceeded
	default:
		if n := errnos[op.Err.Error()]; n != nil {
			op.Err = n
		}
	}
	return op
}

// named is a stack's error as the system names it.
func named(terr tcpip.Error) error {
	if n := errnos[terr.String()]; n != nil {
		return n
	}
	return errors.New(terr.String())
}

func fail(op, network string, src, dst netip.AddrPort, terr tcpip.Error) error {
	e := &net.OpError{Op: op, Net: network, Err: named(terr)}
	if src.IsValid() {
		e.Source = addr(network, src)
	}
	if dst.IsValid() {
		e.Addr = addr(network, dst)
	}
	return e
}

func addr(network string, a netip.AddrPort) net.Addr {
	if network == "udp" {
		return net.UDPAddrFromAddrPort(a)
	}
	return net.TCPAddrFromAddrPort(a)
}

// Split takes the family from a network's name.
func Split(network string) (kind, family string, err error) {
	kind = strings.TrimRight(network, "46")
	family = network[len(kind):]
	if kind != "tcp" && kind != "udp" || len(family) > 1 {
		return "", "", net.UnknownNetworkError(network)
	}
	return kind, family, nil
}

// TCPConn is one end of a TCP conversation.
type TCPConn struct {
	*gonet.TCPConn
	ep     tcpip.Endpoint
	closed atomic.Bool
}

func newTCPConn(wq *waiter.Queue, ep tcpip.Endpoint) *TCPConn {
	ep.SocketOptions().SetKeepAlive(true) // a peer that is gone without a word; two hours (RFC 9293 §3.8.4), gVisor's default
	ep.SocketOptions().SetDelayOption(false)
	return &TCPConn{TCPConn: gonet.NewTCPConn(wq, ep), ep: ep}
}

// Read implements net.Conn.
func (c *TCPConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	if err == nil {
		return n, nil
	}
	return n, Name(err, c.closed.Load())
}

// Write implements net.Conn.
func (c *TCPConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	if err == nil {
		return n, nil
	}
	return n, Name(err, c.closed.Load())
}

// Close implements net.Conn.
func (c *TCPConn) Close() error {
	c.closed.Store(true)
	return c.TCPConn.Close()
}

// CloseWrite tells the other side that no more comes.
func (c *TCPConn) CloseWrite() error { return Name(c.TCPConn.CloseWrite(), c.closed.Load()) }

// CloseRead ends this side's interest in what comes.
func (c *TCPConn) CloseRead() error { return Name(c.TCPConn.CloseRead(), c.closed.Load()) }

// Abort ends the conversation with a reset.
func (c *TCPConn) Abort() error {
	c.closed.Store(true)
	c.ep.Abort()
	return nil
}

// SetLinger is *net.TCPConn's, for 0: Close then resets the conversation.
func (c *TCPConn) SetLinger(sec int) error {
	c.ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: sec >= 0, Timeout: time.Duration(max(sec, 0)) * time.Second})
	return nil
}

// DialTCP opens a conversation, from src where that is given, either half of it.
func DialTCP(ctx context.Context, s *stack.Stack, src, dst netip.AddrPort) (*TCPConn, error) {
	wq := new(waiter.Queue)
	ep, terr := s.NewEndpoint(tcp.ProtocolNumber, protocol(dst.Addr()), wq)
	if terr != nil {
		return nil, fail("dial", "tcp", src, dst, terr)
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if src.Port() != 0 || src.Addr().IsValid() {
		terr = ep.Bind(full(src))
	}
	if terr == nil {
		terr = ep.Connect(full(dst))
	}
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			ep.Abort()
			ep.Close()
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(dst), Err: context.Cause(ctx)}
		case <-ready:
			terr = ep.LastError()
		}
	}
	if terr != nil {
		ep.Close()
		return nil, fail("dial", "tcp", src, dst, terr)
	}
	return newTCPConn(wq, ep), nil
}

// backlog is how many conversations may wait to be accepted: Linux's somaxconn.
const backlog = 4096

// Listener accepts others' conversations.
type Listener struct {
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	addr *net.TCPAddr
	done chan struct{}
	once sync.Once
}

// ListenTCP listens on a port; an unspecified address is any of its family, the zero one any of both; port 0 picks one.
func ListenTCP(s *stack.Stack, a netip.AddrPort) (*Listener, error) {
	wq := new(waiter.Queue)
	ep, terr := s.NewEndpoint(tcp.ProtocolNumber, protocol(a.Addr()), wq)
	if terr != nil {
		return nil, fail("listen", "tcp", netip.AddrPort{}, a, terr)
	}
	ep.SocketOptions().SetV6Only(a.Addr().IsValid())
	ep.SocketOptions().SetReuseAddress(true) // conversations of before in TIME-WAIT are no reason to fail
	var local tcpip.FullAddress
	if terr = ep.Bind(full(a)); terr == nil {
		if terr = ep.Listen(backlog); terr == nil {
			local, terr = ep.GetLocalAddress()
		}
	}
	if terr != nil {
		ep.Close()
		return nil, fail("listen", "tcp", netip.AddrPort{}, a, terr)
	}
	at := netip.AddrPortFrom(a.Addr(), local.Port)
	if !a.Addr().IsValid() {
		at = netip.AddrPortFrom(netip.IPv6Unspecified(), local.Port)
	}
	return &Listener{ep: ep, wq: wq, addr: net.TCPAddrFromAddrPort(at), done: make(chan struct{})}, nil
}

// Accept waits for the next conversation, a *TCPConn.
func (l *Listener) Accept() (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	l.wq.EventRegister(&entry)
	defer l.wq.EventUnregister(&entry)
	for {
		select {
		case <-l.done:
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
		default:
		}
		ep, wq, terr := l.ep.Accept(nil)
		switch terr.(type) {
		case nil:
			return newTCPConn(wq, ep), nil
		case *tcpip.ErrWouldBlock:
		default:
			return nil, fail("accept", "tcp", netip.AddrPort{}, l.addr.AddrPort(), terr)
		}
		select {
		case <-ready:
		case <-l.done:
		}
	}
}

// Addr is where it listens.
func (l *Listener) Addr() net.Addr { return l.addr }

// Close stops listening, and wakes who waits in Accept.
func (l *Listener) Close() error {
	err := error(&net.OpError{Op: "close", Net: "tcp", Addr: l.addr, Err: net.ErrClosed})
	l.once.Do(func() {
		close(l.done)
		l.ep.Close()
		err = nil
	})
	return err
}

// UDPConn is a UDP socket.
type UDPConn struct {
	ep       tcpip.Endpoint
	wq       *waiter.Queue
	peer     netip.AddrPort // the one that it was opened with
	local    netip.AddrPort
	dual     bool // of both families
	done     chan struct{}
	news     chan error // Fail's, one
	once     sync.Once
	deadline Deadline
}

// udpRoom is asked for datagrams that wait, each way: some of the largest.
const udpRoom = 1 << 20

// OpenUDP opens a socket on src, either half of which may be zero (no address is any, of both families), and with one peer if dst is given: then it hears of
// ICMP errors.
func OpenUDP(s *stack.Stack, src, dst netip.AddrPort) (*UDPConn, error) {
	op, family := "listen", src.Addr()
	if dst.IsValid() {
		op, family = "dial", dst.Addr()
	}
	c := &UDPConn{wq: new(waiter.Queue), peer: dst, done: make(chan struct{}), news: make(chan error, 1), dual: !family.IsValid()}
	c.deadline.Init()
	var terr tcpip.Error
	if c.ep, terr = s.NewEndpoint(udp.ProtocolNumber, protocol(family), c.wq); terr != nil {
		return nil, fail(op, "udp", src, dst, terr)
	}
	c.ep.SocketOptions().SetV6Only(!c.dual)
	c.ep.SocketOptions().SetBroadcast(true)
	c.ep.SocketOptions().SetSendBufferSize(udpRoom, true)
	c.ep.SocketOptions().SetReceiveBufferSize(udpRoom, true)
	if src.Port() != 0 || src.Addr().IsValid() {
		terr = c.ep.Bind(full(src))
	}
	if terr == nil && dst.IsValid() {
		terr = c.ep.Connect(full(dst))
	}
	var local tcpip.FullAddress
	if terr == nil {
		local, terr = c.ep.GetLocalAddress()
	}
	if terr != nil {
		c.ep.Close()
		return nil, fail(op, "udp", src, dst, terr)
	}
	a := src.Addr()
	if local.Addr.Len() > 0 {
		a = AddrOf(local.Addr)
	}
	if !a.IsValid() {
		a = netip.IPv6Unspecified()
	}
	c.local = netip.AddrPortFrom(a, local.Port)
	return c, nil
}

func (c *UDPConn) isClosed() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// ReadFromUDPAddrPort waits for a datagram, or for news of the socket's peer. One that is longer than b is cut.
func (c *UDPConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp) // gonet's own waits for no errors
	c.wq.EventRegister(&entry)
	defer c.wq.EventUnregister(&entry)
	for {
		late := c.deadline.Passed()
		select {
		case <-late:
			return 0, netip.AddrPort{}, &net.OpError{Op: "read", Net: "udp", Source: c.LocalAddr(), Err: os.ErrDeadlineExceeded}
		default:
		}
		w := tcpip.SliceWriter(b)
		res, terr := c.ep.Read(&w, tcpip.ReadOptions{NeedRemoteAddr: true})
		switch terr.(type) {
		case nil:
			return res.Count, netip.AddrPortFrom(AddrOf(res.RemoteAddr.Addr), res.RemoteAddr.Port), nil
		case *tcpip.ErrWouldBlock:
		default:
			err := fail("read", "udp", c.local, c.peer, terr)
			return 0, netip.AddrPort{}, Name(err, c.isClosed())
		}
		select {
		case <-ready:
		case <-late:
		case err := <-c.news:
			return 0, netip.AddrPort{}, &net.OpError{Op: "read", Net: "udp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
		case <-c.done:
			return 0, netip.AddrPort{}, &net.OpError{Op: "read", Net: "udp", Source: c.LocalAddr(), Err: net.ErrClosed}
		}
	}
}

// Fail makes one Read return err, once there is nothing to read: news of the peer that the stack does not tell.
func (c *UDPConn) Fail(err error) {
	select {
	case c.news <- err:
	default:
	}
}

// ReadFrom implements net.PacketConn.
func (c *UDPConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// Read implements net.Conn.
func (c *UDPConn) Read(b []byte) (int, error) {
	n, _, err := c.ReadFromUDPAddrPort(b)
	return n, err
}

// Write sends a datagram to the socket's peer.
func (c *UDPConn) Write(b []byte) (int, error) { return c.send(b, netip.AddrPort{}) }

// WriteToUDPAddrPort sends a datagram to one peer.
func (c *UDPConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) { return c.send(b, to) }

// WriteTo implements net.PacketConn.
func (c *UDPConn) WriteTo(b []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, &net.OpError{Op: "write", Net: "udp", Source: c.LocalAddr(), Addr: to, Err: syscall.EINVAL}
	}
	a := u.AddrPort()
	return c.send(b, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
}

func (c *UDPConn) send(b []byte, to netip.AddrPort) (int, error) {
	if c.isClosed() {
		return 0, &net.OpError{Op: "write", Net: "udp", Source: c.LocalAddr(), Err: net.ErrClosed}
	}
	var o tcpip.WriteOptions
	if to.IsValid() {
		fa := full(to)
		if c.dual && to.Addr().Is4() {
			fa.Addr = tcpip.AddrFrom16(to.Addr().As16())
		}
		o.To = &fa
	} else {
		to = c.peer
	}
	r := payload(b)
	n, terr := c.ep.Write(&r, o)
	if terr != nil {
		return int(n), Name(fail("write", "udp", c.local, to, terr), c.isClosed())
	}
	return int(n), nil
}

// payload is a tcpip.Payloader.
type payload []byte

func (p *payload) Read(b []byte) (int, error) {
	n := copy(b, *p)
	*p = (*p)[n:]
	return n, nil
}

func (p *payload) Len() int { return len(*p) }

// LocalAddr is where the socket is bound.
func (c *UDPConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

// RemoteAddr is the peer's that it was opened with, or nil.
func (c *UDPConn) RemoteAddr() net.Addr {
	if !c.peer.IsValid() {
		return nil
	}
	return net.UDPAddrFromAddrPort(c.peer)
}

// Close frees the port.
func (c *UDPConn) Close() error {
	err := error(&net.OpError{Op: "close", Net: "udp", Source: c.LocalAddr(), Err: net.ErrClosed})
	c.once.Do(func() {
		close(c.done)
		c.ep.Close()
		err = nil
	})
	return err
}

// SetDeadline implements net.Conn. Writes do not wait.
func (c *UDPConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *UDPConn) SetReadDeadline(t time.Time) error {
	if c.isClosed() {
		return &net.OpError{Op: "set", Net: "udp", Source: c.LocalAddr(), Err: net.ErrClosed}
	}
	c.deadline.Set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *UDPConn) SetWriteDeadline(time.Time) error { return nil }

// Deadline is a channel that is closed at a time that may change.
type Deadline struct {
	mu    sync.Mutex
	ch    chan struct{}
	timer *time.Timer
}

// Init readies a Deadline that never comes.
func (d *Deadline) Init() { d.ch = make(chan struct{}) }

// Passed returns the channel. It is another after a Set that followed its close.
func (d *Deadline) Passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ch
}

// Set changes the time; the zero Time is never.
func (d *Deadline) Set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.ch // it is closing
	}
	d.timer = nil
	select {
	case <-d.ch:
		d.ch = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	ch := d.ch
	if in := time.Until(t); in > 0 {
		d.timer = time.AfterFunc(in, func() { close(ch) })
	} else {
		close(ch)
	}
}

func protocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// full is an address as the stack has it. An unspecified one is none.
func full(a netip.AddrPort) tcpip.FullAddress {
	f := tcpip.FullAddress{Port: a.Port()}
	if a.Addr().IsValid() && !a.Addr().IsUnspecified() {
		f.Addr = tcpip.AddrFromSlice(a.Addr().AsSlice())
	}
	if a.Addr().Is6() && (a.Addr().IsLinkLocalUnicast() || a.Addr().IsMulticast()) {
		f.NIC = NIC
	}
	return f
}

// AddrOf is a stack's address as netip has it.
func AddrOf(a tcpip.Address) netip.Addr {
	if a.Len() == 4 {
		return netip.AddrFrom4(a.As4())
	}
	if a.Len() == 0 {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a.As16()).Unmap()
}
