package backend

// Neighbour discovery (RFC 4861) on the gateway's side: it answers solicitations for its own addresses and router
// solicitations, and advertises the prefix, the MTU and the DNS from time to time. Its messages are built here, since
// a stack that belongs to one guest cannot speak to all.

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

const (
	ndpHopLimit = 255 // RFC 4861 §6.1: what did not come from the link has less

	// raInterval is between unsolicited advertisements: MaxRtrAdvInterval's default (RFC 4861 §6.2.1). Changes are
	// told at once.
	raInterval = 600 * time.Second
	// routerLifetime is AdvDefaultLifetime's default, three intervals.
	routerLifetime = 1800 * time.Second
	// Prefix lifetimes are the defaults of §6.2.1: guests keep their addresses while vmnetd is being restarted.
	validLifetime, preferredLifetime = 30 * 24 * time.Hour, 7 * 24 * time.Hour
	// routeCheck is how often the host is asked for its IPv6 route; one route look-up, no packet.
	routeCheck = 5 * time.Second
)

var (
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = mac{0x33, 0x33, 0, 0, 0, 1} // RFC 2464 §7
)

// ndp handles an ICMPv6 message to the gateway or to a multicast group, and reports whether it was for the gateway
// alone.
func (p *port) ndp(h header.IPv6, m header.ICMPv6, body link.Span, src mac) bool {
	t := m.Type()
	if t < header.ICMPv6RouterSolicit || t > header.ICMPv6RedirectMsg {
		return false
	}
	if h.HopLimit() != ndpHopLimit {
		p.drop(flows.ReasonMalformed)
		return true
	}
	from := netip.AddrFrom16(h.SourceAddress().As16())
	switch t {
	case header.ICMPv6RouterSolicit:
		p.sendFrame(p.net.advertisement(p.net.router6.Load(), p.advertisedMTU(), from, src))
		return false // a guest that routes may hear it too
	case header.ICMPv6RouterAdvert, header.ICMPv6RedirectMsg:
		if p.role == promiscuous {
			return false
		}
		p.drop(flows.ReasonSpoofed)
		return true
	case header.ICMPv6NeighborSolicit:
		if body.Len() < header.IPv6MinimumSize+24 || len(m) < 24 {
			p.drop(flows.ReasonMalformed)
			return true
		}
		target := netip.AddrFrom16([16]byte(m[8:24]))
		if !p.net.isOurs(target) {
			if from.IsUnspecified() && p.net.cfg.Prefix6.Contains(target) && p.net.mayBe(p, target, src) == flows.ReasonNone {
				// A guest that tests an address of its own for duplicates (RFC 4862 §5.4.2) may be silent as that
				// address for long, and is to be found by it and by name all the same.
				p.net.seg.learnAddr(p, target, src)
			}
			return false
		}
		to, toMAC, flags := from, src, byte(0xe0) // router, solicited, override
		if from.IsUnspecified() {                 // somebody probes for our address: tell all (§7.2.4)
			to, toMAC, flags = allNodes, allNodesMAC, 0xa0
		}
		f, b := p.net.icmp6(target, to, toMAC, header.ICMPv6NeighborAdvert, 24+8)
		b[4] = flags
		copy(b[8:], target.AsSlice())
		b[24], b[25] = 2, 1 // target link-layer address
		copy(b[26:], p.net.gatewayMAC[:])
		finish6(f)
		p.sendFrame(f)
		return true
	case header.ICMPv6NeighborAdvert:
		// Its target is learnt from its source: guests answer as themselves.
		return h.DestinationAddress() == toTCPIP(p.net.linkLocal)
	}
	return false
}

// icmp6 returns a frame with an ICMPv6 message of n bytes to fill, and the message.
func (n *Network) icmp6(src, dst netip.Addr, to mac, t header.ICMPv6Type, size int) (frame, msg []byte) {
	f := newFrame(to, n.gatewayMAC, etherIPv6, header.IPv6MinimumSize+size)
	header.IPv6(f[link.Headroom+ethLen:]).Encode(&header.IPv6Fields{
		PayloadLength: uint16(size), TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: ndpHopLimit,
		SrcAddr: toTCPIP(src), DstAddr: toTCPIP(dst),
	})
	m := f[link.Headroom+ethLen+header.IPv6MinimumSize:][:size]
	m[0] = byte(t)
	return f, m
}

// finish6 sets the checksum of a frame of icmp6's.
func finish6(f []byte) {
	ip := header.IPv6(f[link.Headroom+ethLen:])
	m := ip[header.IPv6MinimumSize:][:ip.PayloadLength()]
	sum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), ip.PayloadLength())
	binary.BigEndian.PutUint16(m[2:], 0)
	binary.BigEndian.PutUint16(m[2:], ^checksum.Checksum(m, sum))
}

// solicit asks who has a.
func (n *Network) solicit(a netip.Addr) []byte {
	b := a.As16()
	group := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, b[13], b[14], b[15]}) // RFC 4291 §2.7.1
	f, m := n.icmp6(n.linkLocal, group, mac{0x33, 0x33, 0xff, b[13], b[14], b[15]}, header.ICMPv6NeighborSolicit, 24+8)
	copy(m[8:], b[:])
	m[24], m[25] = 1, 1 // source link-layer address
	copy(m[26:], n.gatewayMAC[:])
	finish6(f)
	return f
}

// advertisement is a router advertisement (RFC 4861 §4.2) with prefix, MTU if it is not 0, RDNSS and DNSSL (RFC 8106).
func (n *Network) advertisement(router bool, mtu int, to netip.Addr, toMAC mac) []byte {
	if !to.IsLinkLocalUnicast() && !n.cfg.Prefix6.Contains(to) {
		to, toMAC = allNodes, allNodesMAC
	}
	search := searchList(append([]string{n.cfg.Domain}, n.cfg.Search...))
	size := 16 + 8 + 32 + 24 + len(search)
	if mtu != 0 {
		size += 8
	}
	f, m := n.icmp6(n.linkLocal, to, toMAC, header.ICMPv6RouterAdvert, size)
	m[4] = 64   // hop limit (RFC 1700)
	m[5] = 0x40 // O: DHCPv6 has more to tell; addresses are the guest's to make
	if n.cfg.StrictLeases {
		m[5] = 0xc0 // M: DHCPv6 gives the addresses, too
	}
	if router { // a guest must not be handed a default route to nowhere
		binary.BigEndian.PutUint16(m[6:], uint16(routerLifetime.Seconds()))
	}
	o := m[16:]
	o[0], o[1] = 1, 1 // source link-layer address
	copy(o[2:], n.gatewayMAC[:])
	o = o[8:]
	if mtu != 0 {
		o[0], o[1] = 5, 1
		binary.BigEndian.PutUint32(o[4:], uint32(mtu))
		o = o[8:]
	}
	o[0], o[1], o[2], o[3] = 3, 4, 64, 0xc0 // prefix, on link, autonomous
	if n.cfg.StrictLeases {
		o[3] = 0x80
	}
	binary.BigEndian.PutUint32(o[4:], uint32(validLifetime.Seconds()))
	binary.BigEndian.PutUint32(o[8:], uint32(preferredLifetime.Seconds()))
	copy(o[16:], n.cfg.Prefix6.Addr().AsSlice())
	o = o[32:]
	o[0], o[1] = 25, 3 // RDNSS
	binary.BigEndian.PutUint32(o[4:], uint32(routerLifetime.Seconds()))
	copy(o[8:], n.cfg.DNS6.AsSlice())
	copy(o[24:], search)
	finish6(f)
	return f
}

// searchList is a DNSSL option (RFC 8106 §5.2): names as in DNS, uncompressed, padded to eight bytes.
func searchList(domains []string) []byte {
	b := []byte{31, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(b[4:], uint32(routerLifetime.Seconds()))
	for _, d := range domains {
		for _, l := range strings.Split(strings.Trim(d, "."), ".") {
			b = append(b, byte(len(l)))
			b = append(b, l...)
		}
		b = append(b, 0)
	}
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	b[1] = byte(len(b) / 8)
	return b
}

// advertise sends advertisements to all guests, periodically and when the host's IPv6 route comes or goes.
func (n *Network) advertise() {
	check := time.NewTicker(routeCheck)
	defer check.Stop()
	last := time.Now()
	for {
		select {
		case <-n.ctx.Done():
			return // no last one with lifetime 0 (§6.2.5): the wires end with it, and a guest may come back to the next daemon
		case <-check.C:
		}
		now := n.hasRoute6()
		if n.router6.Swap(now) == now && time.Since(last) < raInterval {
			continue
		}
		last = time.Now()
		n.advertiseAll(now)
	}
}

func (n *Network) advertiseAll(router bool) {
	n.each("advertisement", func(p *port) { p.advertise(router) })
}

// advertise tells all stations of the port.
func (p *port) advertise(router bool) {
	p.sendFrame(p.net.advertisement(router, p.advertisedMTU(), allNodes, allNodesMAC))
}

func (n *Network) hasRoute6() bool {
	r, ok := n.cfg.Egress.(egress.Router)
	return !ok || r.HasRoute6()
}
