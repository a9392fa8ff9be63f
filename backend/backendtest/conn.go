package backendtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Errors of the guest's stack answer errors.Is for the errno that Linux would have.
var errnos = map[string]syscall.Errno{
	(&tcpip.ErrConnectionRefused{}).String():  syscall.ECONNREFUSED,
	(&tcpip.ErrConnectionReset{}).String():    syscall.ECONNRESET,
	(&tcpip.ErrConnectionAborted{}).String():  syscall.ECONNABORTED,
	(&tcpip.ErrHostUnreachable{}).String():    syscall.EHOSTUNREACH,
	(&tcpip.ErrNetworkUnreachable{}).String(): syscall.ENETUNREACH,
	(&tcpip.ErrTimeout{}).String():            syscall.ETIMEDOUT,
	(&tcpip.ErrClosedForSend{}).String():      syscall.EPIPE,
	(&tcpip.ErrMessageTooLong{}).String():     syscall.EMSGSIZE,
	(&tcpip.ErrNoPortAvailable{}).String():    syscall.EADDRNOTAVAIL,
	(&tcpip.ErrPortInUse{}).String():          syscall.EADDRINUSE,
}

// named makes an error of the stack's the system's.
func named(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		if n, ok := errnos[op.Err.Error()]; ok {
			op.Err = n
		}
	}
	return err
}

func stackErr(op, network string, a netip.AddrPort, err tcpip.Error) error {
	e := &net.OpError{Op: op, Net: network, Addr: net.TCPAddrFromAddrPort(a), Err: errors.New(err.String())}
	return named(e)
}

// TCPConn is a guest's end of a TCP conversation.
type TCPConn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// Read, with errors that answer errors.Is(err, syscall.ECONNRESET) and the like.
func (c *TCPConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	return n, named(err)
}

// Write, with errors as Read's.
func (c *TCPConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	return n, named(err)
}

// Abort ends the conversation with a reset.
func (c *TCPConn) Abort() {
	c.ep.Abort()
}

// Dial opens a TCP conversation; network is tcp.
func (g *Guest) Dial(ctx context.Context, network string, dst netip.AddrPort) (*TCPConn, error) {
	return g.DialFrom(ctx, network, netip.AddrPort{}, dst)
}

// DialFrom is Dial from an address and port of the guest's, either of which may be zero.
func (g *Guest) DialFrom(ctx context.Context, network string, src, dst netip.AddrPort) (*TCPConn, error) {
	if network != "tcp" {
		return nil, net.UnknownNetworkError(network)
	}
	wq := new(waiter.Queue)
	ep, terr := g.stack.NewEndpoint(tcp.ProtocolNumber, protoNumber(dst.Addr()), wq)
	if terr != nil {
		return nil, stackErr("dial", "tcp", dst, terr)
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if src.Port() != 0 || src.Addr().IsValid() {
		terr = ep.Bind(fullAddr(src))
	}
	if terr == nil {
		terr = ep.Connect(fullAddr(dst))
	}
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			ep.Abort()
			ep.Close()
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(dst), Err: ctx.Err()}
		case <-ready:
			terr = ep.LastError()
		}
	}
	if terr != nil {
		ep.Close()
		return nil, stackErr("dial", "tcp", dst, terr)
	}
	return &TCPConn{gonet.NewTCPConn(wq, ep), ep}, nil
}

// Listener accepts the conversations of others. It is a net.Listener.
type Listener struct {
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	done chan struct{}
	once sync.Once
}

var _ net.Listener = (*Listener)(nil)

// Listen listens on a TCP port; an unspecified address is any of its family.
func (g *Guest) Listen(a netip.AddrPort) (*Listener, error) {
	fa := tcpip.FullAddress{Port: a.Port()}
	if !a.Addr().IsUnspecified() {
		fa = fullAddr(a)
	}
	wq := new(waiter.Queue)
	ep, err := g.stack.NewEndpoint(tcp.ProtocolNumber, protoNumber(a.Addr()), wq)
	if err != nil {
		return nil, stackErr("listen", "tcp", a, err)
	}
	ep.SocketOptions().SetV6Only(true)
	ep.SocketOptions().SetReuseAddress(true) // conversations of before in TIME-WAIT are no reason to fail
	if err = ep.Bind(fa); err == nil {
		err = ep.Listen(1024) // Linux's somaxconn is 4096; a test opens some hundred
	}
	if err != nil {
		ep.Close()
		return nil, stackErr("listen", "tcp", a, err)
	}
	return &Listener{ep: ep, wq: wq, done: make(chan struct{})}, nil
}

// Accept waits for the next conversation, a *TCPConn.
func (l *Listener) Accept() (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	l.wq.EventRegister(&entry)
	defer l.wq.EventUnregister(&entry)
	for {
		ep, wq, err := l.ep.Accept(nil)
		switch err.(type) {
		case nil:
			return &TCPConn{gonet.NewTCPConn(wq, ep), ep}, nil
		case *tcpip.ErrWouldBlock:
		default:
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: errors.New(err.String())}
		}
		select {
		case <-ready:
		case <-l.done:
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
		}
	}
}

// Addr is where it listens.
func (l *Listener) Addr() net.Addr {
	a, err := l.ep.GetLocalAddress()
	if err != nil {
		return &net.TCPAddr{}
	}
	return &net.TCPAddr{IP: a.Addr.AsSlice(), Port: int(a.Port)}
}

// Close stops listening, and wakes who waits in Accept.
func (l *Listener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.ep.Close()
	})
	return nil
}

// UDPConn is a guest's UDP socket.
type UDPConn struct {
	c  *gonet.UDPConn
	ep tcpip.Endpoint
	wq *waiter.Queue

	deadline atomic.Pointer[time.Time]
}

// ListenUDP opens a UDP socket on src: an unspecified address is any, port 0 picks one.
func (g *Guest) ListenUDP(src netip.AddrPort) (*UDPConn, error) { return g.udp(src, netip.AddrPort{}) }

// DialUDP opens a UDP socket with one peer, which hears of ICMP errors.
func (g *Guest) DialUDP(dst netip.AddrPort) (*UDPConn, error) { return g.udp(netip.AddrPort{}, dst) }

func (g *Guest) udp(src, dst netip.AddrPort) (*UDPConn, error) {
	wq := new(waiter.Queue)
	fam := src.Addr()
	if dst.IsValid() {
		fam = dst.Addr()
	}
	ep, err := g.stack.NewEndpoint(udp.ProtocolNumber, protoNumber(fam), wq)
	if err != nil {
		return nil, stackErr("listen", "udp", src, err)
	}
	ep.SocketOptions().SetV6Only(true)
	const room = 1 << 20 // some of the largest datagrams
	ep.SocketOptions().SetSendBufferSize(room, true)
	ep.SocketOptions().SetReceiveBufferSize(room, true)
	if src.IsValid() {
		fa := tcpip.FullAddress{Port: src.Port()}
		if !src.Addr().IsUnspecified() {
			fa = fullAddr(src)
		}
		if err := ep.Bind(fa); err != nil {
			ep.Close()
			return nil, stackErr("listen", "udp", src, err)
		}
	}
	if dst.IsValid() {
		if err := ep.Connect(fullAddr(dst)); err != nil {
			ep.Close()
			return nil, stackErr("dial", "udp", dst, err)
		}
	}
	return &UDPConn{c: gonet.NewUDPConn(wq, ep), ep: ep, wq: wq}, nil
}

// LocalAddr is where the socket is bound.
func (c *UDPConn) LocalAddr() netip.AddrPort {
	a, err := c.ep.GetLocalAddress()
	if err != nil {
		return netip.AddrPort{}
	}
	if a.Addr.Len() == 0 {
		return netip.AddrPortFrom(netip.Addr{}, a.Port)
	}
	return toAddrPort(a)
}

// WriteTo sends a datagram to one peer.
func (c *UDPConn) WriteTo(b []byte, to netip.AddrPort) (int, error) {
	n, err := c.c.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return n, named(err)
}

// Write sends a datagram to the socket's peer.
func (c *UDPConn) Write(b []byte) (int, error) {
	n, err := c.c.Write(b)
	return n, named(err)
}

// ReadFrom waits for a datagram, or for news of the socket's peer.
func (c *UDPConn) ReadFrom(b []byte) (int, netip.AddrPort, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp) // gonet's own waits for no errors
	c.wq.EventRegister(&entry)
	defer c.wq.EventUnregister(&entry)
	var late <-chan time.Time
	if d := c.deadline.Load(); d != nil && !d.IsZero() {
		t := time.NewTimer(time.Until(*d))
		defer t.Stop()
		late = t.C
	}
	for {
		w := tcpip.SliceWriter(b)
		res, err := c.ep.Read(&w, tcpip.ReadOptions{NeedRemoteAddr: true})
		switch err.(type) {
		case nil:
			return res.Count, toAddrPort(res.RemoteAddr), nil
		case *tcpip.ErrWouldBlock:
		case *tcpip.ErrClosedForReceive:
			return 0, netip.AddrPort{}, net.ErrClosed
		default:
			return 0, netip.AddrPort{}, stackErr("read", "udp", c.LocalAddr(), err)
		}
		select {
		case <-ready:
		case <-late:
			return 0, netip.AddrPort{}, os.ErrDeadlineExceeded
		}
	}
}

// SetReadDeadline bounds the calls of ReadFrom that come after it.
func (c *UDPConn) SetReadDeadline(t time.Time) error {
	c.deadline.Store(&t)
	return nil
}

// Close frees the port.
func (c *UDPConn) Close() error { return c.c.Close() }

// EchoUDP sends back whatever comes, until the socket is closed.
func (c *UDPConn) EchoUDP() {
	b := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		c.WriteTo(b[:n], from)
	}
}

// Echo sends back whatever comes on any conversation, until the listener is closed. It ends each half when the other
// side has ended its own.
func (l *Listener) Echo() {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer c.Close()
			io.Copy(c, c)
			if h, ok := c.(interface{ CloseWrite() error }); ok {
				h.CloseWrite()
			}
		}()
	}
}

// Ping sends an echo request with identifier and sequence number to dst, by way of hop, and waits for the reply.
func (g *Guest) Ping(ctx context.Context, dst netip.Addr, id, seq uint16, payload []byte) error {
	hop, err := g.hop(ctx, dst)
	if err != nil {
		return err
	}
	w := g.Watch(From(dst), IsEchoReply(id, seq), Good())
	defer w.Stop()
	for _, f := range fragments(g.Via(hop, dst, Echo(dst, false, id, seq), Payload(payload)), g.cfg.MTU) {
		if err := g.Send(f); err != nil {
			return err
		}
	}
	p, err := w.Next(ctx)
	if err != nil {
		return err
	}
	if !p.Fragment && string(p.Payload) != string(payload) {
		return fmt.Errorf("backendtest: ping %s: reply carries %d bytes of another payload", dst, len(p.Payload))
	}
	return nil
}

func fragments(f []byte, mtu int) [][]byte {
	if len(f)-header.EthernetMinimumSize <= mtu {
		return [][]byte{f}
	}
	return Fragment(f, mtu-48, 1) // IPv6's header and the fragment header; IPv4 needs less
}

// hop is the MAC that a packet for dst goes to.
func (g *Guest) hop(ctx context.Context, dst netip.Addr) (net.HardwareAddr, error) {
	next := dst
	g.mu.Lock()
	onLink := dst.IsLinkLocalUnicast() && dst.Is6()
	for _, a := range g.addrs {
		onLink = onLink || a.Contains(dst)
	}
	if !onLink {
		if next = g.gateway6; dst.Is4() {
			next = g.gateway4
		}
	}
	g.mu.Unlock()
	if !next.IsValid() {
		return nil, fmt.Errorf("backendtest: no route to %s: %w", dst, syscall.ENETUNREACH)
	}
	return g.Resolve(ctx, next)
}
