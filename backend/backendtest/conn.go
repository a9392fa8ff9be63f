package backendtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/vmnetd/vmnetd/backend/sockets"
)

// TCPConn is a guest's end of a TCP conversation.
type TCPConn = sockets.TCPConn

// Dial opens a TCP conversation; network is tcp.
func (g *Guest) Dial(ctx context.Context, network string, dst netip.AddrPort) (*TCPConn, error) {
	return g.DialFrom(ctx, network, netip.AddrPort{}, dst)
}

// DialFrom is Dial from an address and port of the guest's, either of which may be zero.
func (g *Guest) DialFrom(ctx context.Context, network string, src, dst netip.AddrPort) (*TCPConn, error) {
	if network != "tcp" {
		return nil, net.UnknownNetworkError(network)
	}
	return g.DialTCP(ctx, src, dst)
}

// Listener accepts the conversations of others, as *TCPConn.
type Listener struct{ *sockets.Listener }

// Listen listens on a TCP port; an unspecified address is any of its family.
func (g *Guest) Listen(a netip.AddrPort) (*Listener, error) {
	l, err := g.ListenTCP(a)
	if err != nil {
		return nil, err
	}
	return &Listener{l}, nil
}

// UDPConn is a guest's UDP socket, with addresses as netip has them.
type UDPConn struct{ *sockets.UDPConn }

// ListenUDP opens a UDP socket on src: an unspecified address is any, port 0 picks one.
func (g *Guest) ListenUDP(src netip.AddrPort) (*UDPConn, error) { return g.udp(src, netip.AddrPort{}) }

// DialUDP opens a UDP socket with one peer, which hears of ICMP errors.
func (g *Guest) DialUDP(dst netip.AddrPort) (*UDPConn, error) { return g.udp(netip.AddrPort{}, dst) }

func (g *Guest) udp(src, dst netip.AddrPort) (*UDPConn, error) {
	c, err := g.Guest.DialUDP(src, dst)
	if err != nil {
		return nil, err
	}
	return &UDPConn{c}, nil
}

// LocalAddr is where the socket is bound.
func (c *UDPConn) LocalAddr() netip.AddrPort { return c.UDPConn.LocalAddr().(*net.UDPAddr).AddrPort() }

// WriteTo sends a datagram to one peer.
func (c *UDPConn) WriteTo(b []byte, to netip.AddrPort) (int, error) {
	return c.WriteToUDPAddrPort(b, to)
}

// ReadFrom waits for a datagram, or for news of the socket's peer.
func (c *UDPConn) ReadFrom(b []byte) (int, netip.AddrPort, error) { return c.ReadFromUDPAddrPort(b) }

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
	if !g.OnLink(dst) {
		if next = g.Gateway6(); dst.Is4() {
			next = g.Gateway4()
		}
	}
	if !next.IsValid() {
		return nil, fmt.Errorf("backendtest: no route to %s: %w", dst, syscall.ENETUNREACH)
	}
	return g.Resolve(ctx, next)
}
