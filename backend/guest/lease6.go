package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// IPv6 addresses by DHCPv6 (RFC 8415), where the router says that they are to be had there and not made (M, RFC 4861
// §4.2): a network with strict leases. An address is renewed by asking as at first; the server gives the same.

// relays is All_DHCP_Relay_Agents_and_Servers (RFC 8415 §7.1).
var relays = netip.MustParseAddr("ff02::1:2")

// lessor6 takes what the DHCPv6 server sends.
func (g *Guest) lessor6(f []byte) bool {
	const ip, udp = header.EthernetMinimumSize, header.EthernetMinimumSize + header.IPv6MinimumSize
	if binary.BigEndian.Uint16(f[12:]) != uint16(header.IPv6ProtocolNumber) || len(f) < udp+8 ||
		f[ip+6] != byte(header.UDPProtocolNumber) || binary.BigEndian.Uint16(f[udp:]) != 547 || binary.BigEndian.Uint16(f[udp+2:]) != 546 {
		return false
	}
	if n := int(binary.BigEndian.Uint16(f[udp+4:])); n > 8 && n <= len(f)-udp {
		select {
		case g.dhcp6 <- f[udp+8 : udp+n]:
		default: // nobody asked
		}
	}
	return true
}

// keep6 holds a lease until ctx is done.
func (g *Guest) keep6(ctx context.Context) {
	var held netip.Addr
	for {
		a, again, err := g.lease6(ctx)
		if err != nil {
			return
		}
		if a != held {
			if held.IsValid() {
				g.RemoveAddr(held)
			}
			if g.AddAddr(netip.PrefixFrom(a, 128)) != nil {
				return
			}
			held = a
		}
		g.tell()
		t := time.NewTimer(max(again, leastRenew))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// lease6 gets an address, and says when to ask again.
func (g *Guest) lease6(ctx context.Context) (a netip.Addr, again time.Duration, err error) {
	var mods []dhcpv6.Modifier
	if g.cfg.Name != "" {
		mods = append(mods, dhcpv6.WithFQDN(0, g.cfg.Name))
	}
	m, err := dhcpv6.NewSolicit(g.cfg.MAC, mods...)
	if err != nil {
		return a, 0, err
	}
	r, err := g.ask6(ctx, m, dhcpv6.MessageTypeAdvertise)
	if err != nil {
		return a, 0, err
	}
	if m, err = dhcpv6.NewRequestFromAdvertise(r, mods...); err != nil {
		return a, 0, err
	}
	if r, err = g.ask6(ctx, m, dhcpv6.MessageTypeReply); err != nil {
		return a, 0, err
	}
	na := r.Options.OneIANA()
	if na == nil || na.Options.OneAddress() == nil {
		return a, 0, errors.New("guest: a DHCPv6 reply without an address")
	}
	for _, d := range r.Options.DNS() {
		if d, ok := netip.AddrFromSlice(d); ok {
			g.AddDNS(d.Unmap())
		}
	}
	o := na.Options.OneAddress()
	a, ok := netip.AddrFromSlice(o.IPv6Addr)
	if !ok {
		return a, 0, errors.New("guest: a DHCPv6 reply with half an address")
	}
	if again = na.T1; again == 0 {
		again = o.PreferredLifetime / 2 // RFC 8415 §21.4
	}
	return a, again, nil
}

// ask6 sends m until there is an answer of this kind.
func (g *Guest) ask6(ctx context.Context, m *dhcpv6.Message, kind dhcpv6.MessageType) (*dhcpv6.Message, error) {
	t := time.NewTimer(0)
	defer t.Stop()
	for wait := firstWait; ; {
		select {
		case <-t.C:
			if err := g.Send(g.frame6(m.ToBytes())); err != nil {
				return nil, err
			}
			t.Reset(wait)
			wait = min(2*wait, mostWait)
		case b := <-g.dhcp6:
			if r, err := dhcpv6.MessageFromBytes(b); err == nil && r.TransactionID == m.TransactionID && r.MessageType == kind {
				return r, nil
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (g *Guest) frame6(payload []byte) []byte {
	const ip, udp = header.EthernetMinimumSize, header.EthernetMinimumSize + header.IPv6MinimumSize
	f := make([]byte, udp+header.UDPMinimumSize+len(payload))
	b := relays.As16()
	copy(f, []byte{0x33, 0x33, b[12], b[13], b[14], b[15]}) // RFC 2464 §7
	copy(f[6:], g.cfg.MAC)
	binary.BigEndian.PutUint16(f[12:], uint16(header.IPv6ProtocolNumber))
	m := g.cfg.MAC
	src := netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]}) // RFC 4291 appendix A
	n := header.UDPMinimumSize + len(payload)
	h := header.IPv6(f[ip:])
	h.Encode(&header.IPv6Fields{PayloadLength: uint16(n), TransportProtocol: header.UDPProtocolNumber, HopLimit: 64, SrcAddr: toTCPIP(src), DstAddr: toTCPIP(relays)})
	u := header.UDP(f[udp:])
	u.Encode(&header.UDPFields{SrcPort: 546, DstPort: 547, Length: uint16(n)})
	copy(u.Payload(), payload)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, h.SourceAddress(), h.DestinationAddress(), uint16(n))
	u.SetChecksum(^checksum.Checksum(u, sum))
	return f
}
