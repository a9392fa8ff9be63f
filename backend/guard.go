package backend

// The guard. Who a guest may be, toward anybody; and between guests, what one may say to another. A guest that answers DHCP, advertises itself as router or
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
	// mostOptions is how many bytes of options a neighbour message may have: two are in use, of 8 bytes, and a nonce.
	mostOptions = 256
)

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// mayBe says whether a guest may send as address a from MAC m, and if not, why. Whether another guest has the address is
// the segment's to say.
func (n *Network) mayBe(p *port, a netip.Addr, m mac) flows.Reason {
	c := &n.cfg
	switch {
	case n.isOurs(a):
		return flows.ReasonSpoofed
	case a.IsLoopback(), a.IsMulticast(), a.Is4In6(), a == broadcast4, a == Broadcast4(c.Prefix4), a == c.Prefix4.Addr():
		return flows.ReasonMartian // RFC 1122 §3.2.1.3, RFC 4291 §2.7: never a source
	}
	if owner, ok := (*n.reserved.Load())[a]; ok {
		if owner != m {
			return flows.ReasonSpoofed
		}
		return flows.ReasonNone
	}
	if !c.StrictLeases || a.IsUnspecified() || a.Is6() && a.IsLinkLocalUnicast() {
		return flows.ReasonNone
	}
	if o, ok := n.seg.owner(a); ok && o.port == p && o.mac == m && o.leased {
		return flows.ReasonNone
	}
	return flows.ReasonSpoofed
}

// isOthers says whether a MAC is the gateway's or lives on another port.
func (p *port) isOthers(m mac) bool {
	if m == p.lastMAC {
		return false
	}
	s := &p.net.seg
	s.mu.RLock()
	defer s.mu.RUnlock()
	owner := s.macs[m]
	return m == p.net.gatewayMAC || owner != nil && owner != p
}

// mayPass says whether a frame may go to other guests, and counts it if not.
func (p *port) mayPass(s link.Span) bool {
	h := p.batch.Head(s, headLen, p.scratch[:])
	r := flows.ReasonNone
	switch kind := binary.BigEndian.Uint16(h[12:]); {
	case kind == etherARP:
		if b := h[ethLen:]; len(b) < header.ARPSize {
			r = flows.ReasonMalformed
		} else if p.isOthers(macOf(b[8:])) {
			r = flows.ReasonSpoofed
		}
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
			o, ok := p.net.seg.owner(target)
			if p.net.isOurs(target) || ok && o.port != p && !(o.mac == p.lastMAC && o.mac.isVirtual()) || !ok && p.net.cfg.StrictLeases && !target.IsLinkLocalUnicast() {
				return flows.ReasonSpoofed
			}
		}
		if t == header.ICMPv6NeighborSolicit || t == header.ICMPv6NeighborAdvert {
			// Whose MAC does it tell of? (RFC 4861 §4.6.1)
			end := header.IPv6MinimumSize
			if b = at(4, 2); b != nil {
				end += int(binary.BigEndian.Uint16(b)) // what follows is padding
			}
			for o := off + 24; o+8 <= end; {
				if b = at(o, 8); b == nil {
					break
				}
				if (b[0] == 1 || b[0] == 2) && p.isOthers(macOf(b[2:])) {
					return flows.ReasonSpoofed
				}
				if b[1] == 0 || o > off+mostOptions {
					return flows.ReasonMalformed
				}
				o += int(b[1]) * 8
			}
		}
	case 0, 43, 44, 51, 60, 135, 139, 140: // what is behind so many headers?
		return flows.ReasonMalformed
	}
	return flows.ReasonNone
}
