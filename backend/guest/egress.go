package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/sockets"
)

// Egress makes the guest the way out of another network: what that one's guests dial comes out where the network at the
// far end of this guest's wire is, under its routes and policy. Names are still the near network's to resolve: give it
// the guest's DNS as Config.Resolvers only if they are reached from here.
//
// The near network's gateway stands for a host's loopback, and there is none on this way: conversations with it are
// refused. What is listened on with Network.Listen is reached all the same.
func (g *Guest) Egress() egress.Egress { return out{g} }

type out struct{ g *Guest }

var (
	_ egress.Egress = out{}
	_ egress.Router = out{}
	_ egress.Pinger = out{}
)

func (o out) check(dst netip.AddrPort) error {
	if err := egress.CheckDestination(dst.Addr()); err != nil {
		return err
	}
	if dst.Addr().IsLoopback() {
		return &egress.UnreachableError{Dst: dst, Kind: egress.Prohibited, Err: errors.New("no loopback is on this way out")}
	}
	return nil
}

// DialContext implements egress.Egress.
func (o out) DialContext(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	if err := o.check(dst); err != nil {
		return nil, err
	}
	if network != egress.TCPNetwork(dst.Addr()) {
		return nil, fmt.Errorf("guest: network %q for %s", network, dst)
	}
	ctx, cancel := context.WithTimeout(ctx, egress.DefaultDialTimeout)
	defer cancel()
	c, err := o.g.DialTCP(ctx, netip.AddrPort{}, dst)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// ListenPacket implements egress.Egress.
func (o out) ListenPacket(_ context.Context, network string, from netip.AddrPort) (egress.PacketConn, error) {
	a := from.Addr()
	switch {
	case a.IsValid():
	case network == "udp4":
		a = netip.IPv4Unspecified()
	case network == "udp6":
		a = netip.IPv6Unspecified()
	default:
		return nil, fmt.Errorf("guest: listen %q: it takes udp4 or udp6", network)
	}
	c, err := o.g.DialUDP(netip.AddrPortFrom(a, from.Port()), netip.AddrPort{})
	if err != nil {
		return nil, err
	}
	return packets{o, c}, nil
}

// Ping implements egress.Egress.
func (o out) Ping(ctx context.Context, dst netip.Addr, seq uint16, payload []byte) error {
	if err := o.check(netip.AddrPortFrom(dst, 0)); err != nil {
		return err
	}
	return o.g.Ping(ctx, dst, seq, payload)
}

// Ping sends one echo request and waits for its reply, for ten seconds at most, as long as ping(8) does.
func (g *Guest) Ping(ctx context.Context, dst netip.Addr, seq uint16, payload []byte) error {
	ctx, cancel := context.WithTimeout(ctx, egress.DefaultPingTimeout)
	defer cancel()
	return sockets.Ping(ctx, g.stack, dst, seq, payload)
}

// HasRoute4 implements egress.Router.
func (o out) HasRoute4() bool { return o.g.Gateway4().IsValid() }

// HasRoute6 implements egress.Router.
func (o out) HasRoute6() bool { return o.g.Gateway6().IsValid() }

// PingAllowed implements egress.Pinger.
func (o out) PingAllowed() (v4, v6 error) { return nil, nil }

// packets is an egress.PacketConn.
type packets struct {
	out out
	c   *sockets.UDPConn
}

func (p packets) ReadBorrowed(bufs egress.Buffers) ([]byte, netip.AddrPort, error) {
	b := bufs.Get()
	n, from, err := p.c.ReadFromUDPAddrPort(b)
	if err != nil {
		bufs.Put(b)
		return nil, from, err
	}
	return b[:n], from, nil
}

func (p packets) ReadFrom(buf []byte) (int, netip.AddrPort, error) {
	b, from, err := p.ReadBorrowed(egress.DatagramBuffers)
	if err != nil {
		return 0, from, err
	}
	defer egress.DatagramBuffers.Put(b)
	n := copy(buf, b)
	if n < len(b) {
		return n, from, io.ErrShortBuffer
	}
	return n, from, nil
}

func (p packets) WriteTo(b []byte, to netip.AddrPort) (int, error) {
	if err := p.out.check(to); err != nil {
		return 0, err
	}
	n, err := p.c.WriteToUDPAddrPort(b, to)
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.EMSGSIZE) {
		return n, &egress.UnreachableError{Dst: to, Kind: egress.Classify(err), Err: err}
	}
	return n, err
}

func (p packets) LocalAddr() netip.AddrPort { return p.c.LocalAddr().(*net.UDPAddr).AddrPort() }
func (p packets) Close() error {
	p.c.Close()
	return nil
}
