package backend

// The guard between guests: what one may say to another. A guest that answers DHCP, advertises itself as router or
// answers for another's address would take the others' traffic over, so none of that crosses the segment, in whatever
// it is wrapped (RFC 6105, RFC 7113; CVE-2021-27853, -27854, -27861 and -27862 are switches that looked at the plain
// form only). Runs in the port's reader, for frames to other guests only.

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

const (
	etherVLAN, etherQinQ = 0x8100, 0x88a8 // IEEE 802.1Q
	leastEtherType       = 0x0600         // below it is a length (IEEE 802.3 §3.2.6)

	// mostExtensions is how many IPv6 extension headers are walked through. RFC 8200 §4.1 has a use for seven.
	mostExtensions = 16
)

// mayPass says whether a frame may go to other guests, and counts it if not.
func (p *port) mayPass(s link.Span) bool {
	h := p.batch.Head(s, headLen, p.scratch[:])
	r := flows.ReasonNone
	switch kind := binary.BigEndian.Uint16(h[12:]); {
	case kind == etherIPv4:
		r = guard4(h[ethLen:])
	case kind == etherIPv6:
		r = p.guard6(s.From(ethLen))
	case kind == etherVLAN || kind == etherQinQ:
		// A priority tag (VLAN 0) is taken off by the receiver, and what is under it is as good as untagged.
		if len(h) < ethLen+4 || binary.BigEndian.Uint16(h[ethLen:])&0xfff == 0 {
			r = flows.ReasonUnsupported
		}
	case kind < leastEtherType:
		// Ethernet types wrapped in SNAP (RFC 1042): some systems take IP in it.
		if len(h) >= ethLen+8 && h[ethLen] == 0xaa && h[ethLen+1] == 0xaa && h[ethLen+3] == 0 && h[ethLen+4] == 0 {
			r = flows.ReasonUnsupported
		}
	}
	if r != flows.ReasonNone {
		p.drop(r)
	}
	return r == flows.ReasonNone
}

func guard4(ip []byte) flows.Reason {
	h := header.IPv4(ip)
	if len(ip) < header.IPv4MinimumSize || h.TransportProtocol() != header.UDPProtocolNumber || h.FragmentOffset() != 0 {
		return flows.ReasonNone
	}
	hl := int(h.HeaderLength())
	if hl < header.IPv4MinimumSize || len(ip) < hl+4 {
		return flows.ReasonMalformed
	}
	if u := header.UDP(ip[hl : hl+4]); u.SourcePort() == 67 && u.DestinationPort() == 68 {
		return flows.ReasonSpoofed
	}
	return flows.ReasonNone
}

func (p *port) guard6(ip link.Span) flows.Reason {
	var scratch [24]byte
	at := func(off, n int) []byte {
		if ip.Len() < off+n {
			return nil
		}
		return p.batch.Head(ip.From(off), n, scratch[:n])
	}
	b := at(6, 1)
	if b == nil {
		return flows.ReasonMalformed
	}
	next, off, fragment := b[0], header.IPv6MinimumSize, false
walk:
	for range mostExtensions {
		switch next {
		case 0, 43, 60, 135, 139, 140: // hop-by-hop, routing, destination, mobility, HIP, shim6: all of one form (RFC 6564)
			if b = at(off, 8); b == nil {
				return flows.ReasonMalformed
			}
			next, off = b[0], off+8+int(b[1])*8
		case 51: // authentication (RFC 4302 §2.2)
			if b = at(off, 8); b == nil {
				return flows.ReasonMalformed
			}
			next, off = b[0], off+8+int(b[1])*4
		case header.IPv6FragmentHeader:
			if b = at(off, 8); b == nil {
				return flows.ReasonMalformed
			}
			if binary.BigEndian.Uint16(b[2:])&^7 != 0 {
				return flows.ReasonNone // without its first fragment it comes to nothing
			}
			next, off, fragment = b[0], off+8, true
		default:
			break walk
		}
	}
	switch next {
	case uint8(header.UDPProtocolNumber):
		if b = at(off, 4); b == nil {
			return flows.ReasonMalformed // RFC 7112: the first fragment has all headers
		}
		if u := header.UDP(b); u.SourcePort() == 547 && u.DestinationPort() == 546 {
			return flows.ReasonSpoofed
		}
	case uint8(header.ICMPv6ProtocolNumber):
		if b = at(off, 1); b == nil {
			return flows.ReasonMalformed
		}
		t := header.ICMPv6Type(b[0])
		if t < header.ICMPv6RouterSolicit || t > header.ICMPv6RedirectMsg {
			return flows.ReasonNone
		}
		if fragment { // RFC 6980 §5
			return flows.ReasonMalformed
		}
		switch t {
		case header.ICMPv6RouterAdvert, header.ICMPv6RedirectMsg:
			return flows.ReasonSpoofed
		case header.ICMPv6NeighborAdvert:
			if b = at(off, 24); b == nil {
				return flows.ReasonMalformed
			}
			target := netip.AddrFrom16([16]byte(b[8:24]))
			if o, ok := p.net.seg.owner(target); p.net.isOurs(target) || ok && o.port != p {
				return flows.ReasonSpoofed
			}
		}
	case 0, 43, 44, 51, 60, 135, 139, 140: // what is behind so many headers?
		return flows.ReasonMalformed
	}
	return flows.ReasonNone
}
