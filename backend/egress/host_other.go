//go:build !linux

package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// leaveBy: the source address needs nothing here, the interface is Linux only.
func (h *Host) leaveBy(_ int, dst netip.Addr) error {
	if dev := h.device(dst); dev != "" {
		return fmt.Errorf("leave by interface %q: %w on this system, give a source address", dev, errors.ErrUnsupported)
	}
	return nil
}

func (h *Host) listenPacket(ctx context.Context, network string, from netip.AddrPort) (PacketConn, error) {
	if h.Interface != "" {
		return nil, fmt.Errorf("egress: leave by interface %q: %w on this system, give a source address", h.Interface, errors.ErrUnsupported)
	}
	conn, err := openUDP(ctx, network, from, func(uintptr) error { return nil })
	if err != nil {
		return nil, err
	}
	if err := conn.SetReadBuffer(receiveBuffer); err != nil {
		conn.Close()
		return nil, err
	}
	return &packetConn{conn: conn, network: network, local: conn.LocalAddr().(*net.UDPAddr).AddrPort()}, nil
}

// packetConn is one UDP socket of package net: no news of single destinations,
// a buffer held while it sleeps, and writes that may wait for the send buffer.
// Source4 and Source6 apply to TCP and to echo requests only.
type packetConn struct {
	conn    *net.UDPConn
	network string
	local   netip.AddrPort
}

func (c *packetConn) LocalAddr() netip.AddrPort { return c.local }
func (c *packetConn) Close() error              { return closed(c.conn.Close()) }

func (c *packetConn) ReadFrom(buf []byte) (int, netip.AddrPort, error) {
	for {
		n, from, err := c.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return 0, netip.AddrPort{}, closed(err)
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if from.Addr().Is6() && from.Addr().IsLinkLocalUnicast() {
			continue // of a link of the host's: nobody could answer it
		}
		return n, from, nil
	}
}

func (c *packetConn) ReadBorrowed(bufs Buffers) ([]byte, netip.AddrPort, error) {
	b := bufs.Get()
	n, from, err := c.ReadFrom(b)
	if err != nil {
		bufs.Put(b)
		return nil, netip.AddrPort{}, err
	}
	return b[:n], from, nil
}

func (c *packetConn) WriteTo(b []byte, to netip.AddrPort) (int, error) {
	if err := checkDst(c.network, UDPNetwork(to.Addr()), to); err != nil {
		return 0, err
	}
	if err := tooLong(len(b), to); err != nil {
		return 0, err
	}
	n, err := c.conn.WriteToUDPAddrPort(b, to)
	switch k := Classify(err); k {
	case HostUnreachable, NetUnreachable, Prohibited, TooBig:
		return n, &UnreachableError{Dst: to, Kind: k, Err: err}
	}
	return n, closed(err)
}

func closed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return net.ErrClosed
	}
	return err
}
