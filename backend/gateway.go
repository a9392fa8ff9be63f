package backend

// Where a guest's frame goes: to another guest, or to the gateway, whose ARP, neighbour discovery and DHCP are
// answered here and whose IP goes into the guest's stack. Runs in the port's reader; what may wait (DHCP's probe) has
// a goroutine and a short queue of its own.

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/dhcp"
	"github.com/vmnetd/vmnetd/flows"
)

const (
	etherIPv4 = uint16(header.IPv4ProtocolNumber)
	etherIPv6 = uint16(header.IPv6ProtocolNumber)
	etherARP  = uint16(header.ARPProtocolNumber)
)

var broadcastMAC = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// fromGuest carries one frame.
func (p *port) fromGuest(s link.Span) {
	h := p.batch.Head(s, headLen, p.scratch[:])
	if len(h) < ethLen {
		p.drop(flows.ReasonMalformed)
		return
	}
	dst, src := macOf(h), macOf(h[6:])
	// One that was another's may be ours by now, and a virtual router's another's.
	if (src != p.lastMAC || !p.lastOwn || src[2] == virtualByte && src.isVirtual()) && !p.mayUse(src) {
		return
	}
	kind := binary.BigEndian.Uint16(h[12:])
	body, ip := s.From(ethLen), h[ethLen:]
	n := p.net
	switch {
	case dst == n.gatewayMAC:
		if !p.mayShow(kind, ip, src) {
			return
		}
		if !p.toServices(kind, ip, body, src) {
			p.toStack(kind, ip, body)
		}
	case dst.isMulticast():
		if !p.mayShow(kind, ip, src) {
			return
		}
		if !p.toServices(kind, ip, body, src) {
			p.toOthers(kind, ip, s)
		}
	default:
		if p.mayShow(kind, ip, src) {
			p.learnMTU(kind, ip)
			p.toOther(kind, ip, s, dst)
		}
	}
}

// fromAnybody carries one frame of a port that may be anybody but the gateway (PortConfig.Promiscuous): what a guest may not
// say to another it may.
func (p *port) fromAnybody(s link.Span) {
	h := p.batch.Head(s, headLen, p.scratch[:])
	if len(h) < ethLen {
		p.drop(flows.ReasonMalformed)
		return
	}
	n := p.net
	dst, src := macOf(h), macOf(h[6:])
	if src != p.lastMAC || !p.lastOwn || src.isVirtual() { // as fromGuest has it
		switch {
		case src.isMulticast():
			p.drop(flows.ReasonMalformed)
			return
		case src == n.gatewayMAC:
			p.drop(flows.ReasonSpoofed)
			return
		}
		if p.lastMAC, p.lastOwn = src, n.seg.learnMAC(p, src); p.lastOwn {
			p.isKnown()
			n.dhcp.Attach(p.id, dhcp.MAC(src))
		}
	}
	kind := binary.BigEndian.Uint16(h[12:])
	body, ip := s.From(ethLen), h[ethLen:]
	a := sourceOf(kind, ip)
	if n.isOurs(a) {
		p.drop(flows.ReasonSpoofed)
		return
	}
	if p.lastOwn && n.onLink(a) && n.mayBe(p, a, src) == flows.ReasonNone {
		n.seg.learnAddr(p, a, src) // it is another's, or now known to be here
	}
	if dst == n.gatewayMAC || dst.isMulticast() {
		if p.toServices(kind, ip, body, src) {
			return
		}
	}
	switch {
	case dst == n.gatewayMAC:
		p.toStack(kind, ip, body)
	case dst.isMulticast():
		if !p.leaves() || p.finishAlone(packetOf(kind, ip), s) {
			n.seg.flood(p, p.batch, s)
		}
	default:
		if !p.leaves() || p.finish(packetOf(kind, ip), s, dst) {
			if !p.tooLong(kind, ip, body, dst) {
				n.seg.forward(p, p.batch, s, dst)
			}
		}
	}
}

// toOther carries a frame to another guest.
func (p *port) toOther(kind uint16, ip []byte, s link.Span, dst mac) {
	if p.net.seg.copies.Load() != nil {
		if to := p.net.seg.at(dst); to != nil && to.role != ordinary {
			return // it has its copy, whatever keeps others apart
		}
	}
	if !p.mayGo(s) || p.leaves() && !p.finish(packetOf(kind, ip), s, dst) {
		return
	}
	if !p.tooLong(kind, ip, s.From(ethLen), dst) {
		p.net.seg.forward(p, p.batch, s, dst)
	}
}

// toOthers carries a frame to all other guests.
func (p *port) toOthers(kind uint16, ip []byte, s link.Span) {
	if p.mayGo(s) && (!p.leaves() || p.finishAlone(packetOf(kind, ip), s)) {
		p.net.seg.flood(p, p.batch, s)
	}
}

// mayGo says whether a frame may go to any other guest.
func (p *port) mayGo(s link.Span) bool {
	switch {
	case p.net.cfg.Isolate:
		p.drop(flows.ReasonIsolated)
		return false
	case !p.lastOwn:
		p.drop(flows.ReasonSpoofed)
		return false
	}
	return p.mayPass(s)
}

// mayUse says whether the port may send from this MAC. One that lives on another port reaches the gateway, since two
// guests that were both given QEMU's default MAC should not be cut off for it, but no other guest.
func (p *port) mayUse(src mac) bool {
	if src.isMulticast() {
		p.drop(flows.ReasonMalformed)
		return false
	}
	if src == p.net.gatewayMAC {
		p.drop(flows.ReasonSpoofed)
		return false
	}
	p.lastMAC, p.lastOwn = src, p.net.seg.learnMAC(p, src)
	if p.lastOwn {
		p.isKnown()
	}
	if !p.lastOwn && p.net.cfg.StrictLeases {
		p.drop(flows.ReasonSpoofed)
		return false
	}
	if p.lastOwn {
		p.net.dhcp.Attach(p.id, dhcp.MAC(src)) // its lease of before is here again
	}
	if !p.lastOwn && !p.warned {
		p.warned = true
		p.log.Warn("another guest has this MAC: other guests cannot be reached; give each its own (mac= in QEMU's -device)", "mac", src)
	}
	return true
}

// sourceOf is the address that a packet says it comes from; the zero Addr if it says none.
func sourceOf(kind uint16, ip []byte) netip.Addr {
	switch {
	case kind == etherIPv4 && len(ip) >= header.IPv4MinimumSize:
		return netip.AddrFrom4([4]byte(ip[12:16]))
	case kind == etherARP && len(ip) >= header.ARPSize:
		return netip.AddrFrom4([4]byte(ip[14:18]))
	case kind == etherIPv6 && len(ip) >= header.IPv6MinimumSize:
		return netip.AddrFrom16([16]byte(ip[8:24]))
	}
	return netip.Addr{}
}

// onLink says whether an address is of the guests' own network, and one station's.
func (n *Network) onLink(a netip.Addr) bool {
	c := &n.cfg
	return c.Prefix4.Contains(a) && a != c.Prefix4.Addr() && a != Broadcast4(c.Prefix4) ||
		c.Prefix6.Contains(a) || a.Is6() && a.IsLinkLocalUnicast()
}

// mayShow says whether the port may be the address that the packet says it comes from, and notes that it is there.
func (p *port) mayShow(kind uint16, ip []byte, src mac) bool {
	var a netip.Addr
	fam := 0
	switch { // sourceOf, which would be a call for each frame
	case kind == etherIPv4 && len(ip) >= header.IPv4MinimumSize:
		a = netip.AddrFrom4([4]byte(ip[12:16]))
	case kind == etherARP && len(ip) >= header.ARPSize:
		a = netip.AddrFrom4([4]byte(ip[14:18]))
	case kind == etherIPv6 && len(ip) >= header.IPv6MinimumSize:
		a = netip.AddrFrom16([16]byte(ip[8:24]))
		fam = 1
	default:
		return true // shown nothing
	}
	gen := p.net.seg.gen.Load() // a lease that ended takes the address from whom showed it
	if a == p.lastSrc[fam] && src == p.lastSrcMAC[fam] && gen == p.lastSrcGen[fam] {
		return true
	}
	c := &p.net.cfg
	if r := p.net.mayBe(p, a, src); r != flows.ReasonNone {
		p.drop(r)
		if c.StrictLeases && r == flows.ReasonSpoofed && !p.warnedAddr {
			p.warnedAddr = true
			p.log.Warn("guest sends as an address that it was not given: leases are strict; have it ask DHCP, or fix one for its MAC", "address", a, "mac", src)
		}
		return false
	}
	if !p.net.onLink(a) { // a guest that routes for others behind it; or 0.0.0.0 and :: before it has an address
		if kind == etherARP && a.IsLinkLocalUnicast() && p.net.inside.at(a) {
			p.drop(flows.ReasonSpoofed)
			return false
		}
		return true
	}
	if !p.net.seg.learnAddr(p, a, src) {
		p.drop(flows.ReasonSpoofed)
		return false
	}
	p.lastSrc[fam], p.lastSrcMAC[fam], p.lastSrcGen[fam] = a, src, gen
	return true
}

// isOurs says whether a is an address of the gateway's.
func (n *Network) isOurs(a netip.Addr) bool {
	c := &n.cfg
	return a == c.Gateway4 || a == c.DNS4 || a == c.Gateway6 || a == c.DNS6 || a == n.linkLocal
}

// toServices gives the packet to the service that it is for and reports whether there was one. What is here must not
// reach other guests either: a guest that answers DHCP or advertises itself as router would take theirs over.
func (p *port) toServices(kind uint16, ip []byte, body link.Span, src mac) bool {
	switch kind {
	case etherARP:
		return p.arp(ip, src)
	case etherIPv4:
		h := header.IPv4(ip)
		if len(ip) < header.IPv4MinimumSize || int(h.HeaderLength()) > len(ip)-8 || h.TransportProtocol() != header.UDPProtocolNumber || h.FragmentOffset() != 0 {
			return false
		}
		u := header.UDP(ip[h.HeaderLength():])
		switch {
		case u.DestinationPort() == 67: // to a DHCP server (RFC 2131 §4.1)
			p.queueDHCP(body, src, netip.AddrFrom4(h.SourceAddress().As4()), int(h.HeaderLength())+header.UDPMinimumSize, u)
			return true
		case u.SourcePort() == 67 && u.DestinationPort() == 68 && p.role == ordinary:
			p.drop(flows.ReasonSpoofed)
			return true
		}
	case etherIPv6:
		h := header.IPv6(ip)
		if len(ip) < header.IPv6MinimumSize+8 {
			return false
		}
		up := ip[header.IPv6MinimumSize:]
		switch tcpip.TransportProtocolNumber(h.NextHeader()) {
		case header.ICMPv6ProtocolNumber:
			return p.ndp(h, header.ICMPv6(up), body, src)
		case header.UDPProtocolNumber:
			u := header.UDP(up)
			switch {
			case u.DestinationPort() == 547: // to a DHCPv6 server (RFC 8415 §7.2)
				p.queueDHCP(body, src, netip.AddrFrom16(h.SourceAddress().As16()), header.IPv6MinimumSize+header.UDPMinimumSize, u)
				return true
			case u.SourcePort() == 547 && u.DestinationPort() == 546 && p.role == ordinary:
				p.drop(flows.ReasonSpoofed)
				return true
			}
		}
	}
	return false
}

// toStack gives the guest's stack an IP packet that was sent to the gateway.
func (p *port) toStack(kind uint16, ip []byte, body link.Span) {
	if p.gro.add(p.nic, p.batch, kind, ip, body) {
		return
	}
	p.learnMTU(kind, ip)
	if p.udp.direct(kind, ip, body) {
		return
	}
	p.tcp.makeWay(kind, ip)
	if p.gro.alone(p.nic, p.batch, kind, ip, body) {
		return
	}
	if isFragment(kind, ip) {
		p.fragments.count(kind == etherIPv6, body.Len(), func() { p.nic.deliver(tcpip.NetworkProtocolNumber(kind), p.batch, body) })
		return
	}
	switch kind {
	case etherIPv4:
		if p.unreachableFromGuest(ip, false) {
			return
		}
		p.nic.deliver(header.IPv4ProtocolNumber, p.batch, body)
	case etherIPv6:
		if p.unreachableFromGuest(ip, true) {
			return
		}
		p.nic.deliver(header.IPv6ProtocolNumber, p.batch, body)
	case etherARP:
	default:
		p.drop(flows.ReasonUnsupported)
	}
}

// arp answers requests for the gateway's addresses (RFC 826).
func (p *port) arp(b []byte, src mac) bool {
	if len(b) < header.ARPSize {
		return false
	}
	h := header.ARP(b[:header.ARPSize])
	if !h.IsValid() {
		p.drop(flows.ReasonMalformed)
		return true
	}
	target := netip.AddrFrom4([4]byte(h.ProtocolAddressTarget()))
	// Who has 169.254.0.0/16 on the link (RFC 3927 §2.6.2) asks for a listener there, and must not believe another guest.
	if c := &p.net.cfg; target != c.Gateway4 && target != c.DNS4 && !(target.IsLinkLocalUnicast() && p.net.inside.at(target)) {
		return false
	}
	if h.Op() != header.ARPRequest {
		return true
	}
	f := newFrame(macOf(h.HardwareAddressSender()), p.net.gatewayMAC, etherARP, header.ARPSize)
	r := header.ARP(f[link.Headroom+ethLen:])
	r.SetIPv4OverEthernet()
	r.SetOp(header.ARPReply)
	copy(r.HardwareAddressSender(), p.net.gatewayMAC[:])
	copy(r.ProtocolAddressSender(), h.ProtocolAddressTarget())
	copy(r.HardwareAddressTarget(), h.HardwareAddressSender())
	copy(r.ProtocolAddressTarget(), h.ProtocolAddressSender())
	p.sendFrame(f)
	return true
}

// newFrame returns an Ethernet frame with room for n bytes of payload, headroom before it, padded as short ones must be.
func newFrame(dst, src mac, kind uint16, n int) []byte {
	f := make([]byte, link.Headroom+max(ethLen+n, minEthernet))
	copy(f[link.Headroom:], dst[:])
	copy(f[link.Headroom+6:], src[:])
	binary.BigEndian.PutUint16(f[link.Headroom+12:], kind)
	return f
}

// askFor sends every port but one a question who has a: ARP (RFC 826) or a neighbour solicitation (RFC 4861 §4.3).
func (n *Network) askFor(a netip.Addr, except *port) {
	for _, p := range n.seg.all() {
		if p == except {
			continue
		}
		if a.Is4() {
			f := newFrame(broadcastMAC, n.gatewayMAC, etherARP, header.ARPSize)
			r := header.ARP(f[link.Headroom+ethLen:])
			r.SetIPv4OverEthernet()
			r.SetOp(header.ARPRequest)
			copy(r.HardwareAddressSender(), n.gatewayMAC[:])
			copy(r.ProtocolAddressSender(), n.cfg.Gateway4.AsSlice())
			copy(r.ProtocolAddressTarget(), a.AsSlice())
			p.sendFrame(f)
		} else {
			p.sendFrame(n.solicit(a))
		}
	}
}
