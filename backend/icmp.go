package backend

// Station 6, ICMP: a guest's echo requests leave through the egress and come back under the guest's own identifier;
// what cannot be reached is told by ICMP unreachable, from the gateway. Echo to the gateway itself is the stack's to
// answer.

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

const (
	echoHeader = 8
	// pingTimeout is how long an echo reply is waited for. ping(8) itself forgets a request after 10 s; a slot is
	// worth more than an answer that late.
	pingTimeout = 5 * time.Second
)

// icmpFromGuest takes an ICMP message that the stack did not need. It reports whether it was an echo request that
// goes further, so that the stack does not answer for somebody else.
func (p *port) icmpFromGuest(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	defer p.guard("icmp")
	src, dst := toNetip(id.RemoteAddress), toNetip(id.LocalAddress)
	if p.net.isOurs(dst) {
		return false
	}
	v := pkt.Data().AsRange().ToView()
	if v != nil { // nil where there is no payload
		defer v.Release()
	}
	m := append(append([]byte(nil), pkt.TransportHeader().Slice()...), v.AsSlice()...)
	v6 := dst.Is6()
	if len(m) < echoHeader || !v6 && m[0] != byte(header.ICMPv4Echo) || v6 && m[0] != byte(header.ICMPv6EchoRequest) {
		return true
	}
	q := flows.Query{Guest: p.id, Proto: flows.ICMP, Src: netip.AddrPortFrom(src, 0), Dst: netip.AddrPortFrom(dst, 0)}
	if v6 {
		q.Proto = flows.ICMPv6
	}
	original := quote(pkt)
	ctx, cancel := context.WithCancel(p.ctx)
	f, verdict := p.net.admit(p, q, func(flows.Reason) { cancel() })
	if f == nil {
		cancel()
		p.rejectPing(original, verdict)
		return true
	}
	p.goes("ping", func() {
		defer cancel()
		if verdict.Pending != nil {
			wait, cancel := context.WithTimeout(ctx, pingTimeout) // its sender has forgotten it by then
			verdict = p.settle(wait, f, verdict)
			cancel()
			if !verdict.Allow {
				p.rejectPing(original, verdict)
				return
			}
		}
		f.SetState(flows.Open)
		ctx, cancel := context.WithTimeout(ctx, pingTimeout)
		defer cancel()
		f.Up.Add(len(m) - echoHeader)
		err := p.net.cfg.Egress.Ping(ctx, dst, binary.BigEndian.Uint16(m[6:]), m[echoHeader:])
		var un *egress.UnreachableError
		switch {
		case err == nil:
			f.Down.Add(len(m) - echoHeader)
			f.End(flows.ReasonClosed)
			if v6 {
				m[0] = byte(header.ICMPv6EchoReply)
			} else {
				m[0] = byte(header.ICMPv4EchoReply)
			}
			p.sendICMP(dst, src, m)
		case errors.Is(err, egress.ErrNoPing):
			f.End(flows.ReasonUnsupported)
			p.net.noPing(v6, err)
		case errors.As(err, &un):
			f.End(flows.ReasonUnreachable)
			p.unreachable(original, un.Kind, un.MTU)
		default:
			f.End(reasonOf(egress.Classify(err)))
			if k := egress.Classify(err); k == egress.NetUnreachable || k == egress.HostUnreachable || k == egress.Prohibited {
				p.unreachable(original, k, 0)
			}
		}
	})
	return true
}

// rejectPing answers an echo request that was not let in.
func (p *port) rejectPing(original []byte, v flows.Verdict) {
	if v.Reject && v.Reason != flows.ReasonOnLink { // nobody answers for an address that nobody has
		p.unreachable(original, egress.Prohibited, 0)
	}
}

// reasonOf is why a conversation ended that met an error of this kind.
func reasonOf(k egress.Kind) flows.Reason {
	switch k {
	case egress.None:
		return flows.ReasonClosed
	case egress.Refused, egress.PortUnreachable:
		return flows.ReasonRefused
	case egress.HostUnreachable, egress.NetUnreachable, egress.Prohibited, egress.TooBig:
		return flows.ReasonUnreachable
	case egress.Timeout:
		return flows.ReasonTimeout
	case egress.Exhausted:
		return flows.ReasonExhausted
	}
	return flows.ReasonReset
}

// quote is what an ICMP error quotes of a packet: its IP header and the first 8 bytes behind it (RFC 792), or as much
// as keeps the error under the least MTU (RFC 4443 §2.4c), of which the first 8 are what matters.
func quote(pkt *stack.PacketBuffer) []byte {
	q := append([]byte(nil), pkt.NetworkHeader().Slice()...)
	return append(q, pkt.TransportHeader().Slice()...)
}

// quoteUDP makes what quote would have been for a datagram that is gone.
func quoteUDP(src, dst netip.AddrPort, n int) []byte {
	b := make([]byte, ipHeaderLen(dst.Addr())+header.UDPMinimumSize)
	putIP(b, src.Addr(), dst.Addr(), header.UDPProtocolNumber, header.UDPMinimumSize+n, 0)
	header.UDP(b[len(b)-header.UDPMinimumSize:]).Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(header.UDPMinimumSize + n)})
	return b
}

// unreachable tells the guest that its packet, quoted, went nowhere.
func (p *port) unreachable(original []byte, k egress.Kind, mtu int) {
	if len(original) == 0 {
		return
	}
	v6 := original[0]>>4 == 6
	m := make([]byte, echoHeader, echoHeader+len(original))
	if v6 {
		m[0] = byte(header.ICMPv6DstUnreachable)
		switch k { // RFC 4443 §3.1
		case egress.NetUnreachable:
			m[1] = 0 // no route
		case egress.Prohibited:
			m[1] = 1
		case egress.PortUnreachable, egress.Refused:
			m[1] = 4
		case egress.TooBig:
			m[0] = byte(header.ICMPv6PacketTooBig)
			binary.BigEndian.PutUint32(m[4:], uint32(mtu))
		default:
			m[1] = 3 // address
		}
	} else {
		m[0] = byte(header.ICMPv4DstUnreachable)
		switch k { // RFC 792, RFC 1812 §5.2.7.1
		case egress.NetUnreachable:
			m[1] = 0
		case egress.Prohibited:
			m[1] = 13
		case egress.PortUnreachable, egress.Refused:
			m[1] = 3
		case egress.TooBig:
			m[1] = 4
			binary.BigEndian.PutUint16(m[6:], uint16(mtu))
		default:
			m[1] = 1
		}
	}
	m = append(m, original...)
	if v6 {
		p.sendICMP(p.net.cfg.Gateway6, netip.AddrFrom16([16]byte(original[8:24])), m)
	} else {
		p.sendICMP(p.net.cfg.Gateway4, netip.AddrFrom4([4]byte(original[12:16])), m)
	}
}

// sendICMP sends the guest a message, with its checksum made here.
func (p *port) sendICMP(src, dst netip.Addr, m []byte) {
	m[2], m[3] = 0, 0
	if src.Is6() {
		sum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, toTCPIP(src), toTCPIP(dst), uint16(len(m)))
		binary.BigEndian.PutUint16(m[2:], ^checksum.Checksum(m, sum))
		p.sendIP(src, dst, header.ICMPv6ProtocolNumber, m)
		return
	}
	binary.BigEndian.PutUint16(m[2:], ^checksum.Checksum(m, 0))
	p.sendIP(src, dst, header.ICMPv4ProtocolNumber, m)
}

// unreachableFromGuest looks for a guest's port unreachable about a datagram of a port forward. The stack has no
// endpoint for those and would pass over it.
func (p *port) unreachableFromGuest(ip []byte, v6 bool) bool {
	var inner []byte
	if v6 {
		if len(ip) < header.IPv6MinimumSize+echoHeader || ip[6] != byte(header.ICMPv6ProtocolNumber) {
			return false
		}
		m := ip[header.IPv6MinimumSize:]
		if m[0] != byte(header.ICMPv6DstUnreachable) || m[1] != 4 {
			return false
		}
		inner = m[echoHeader:]
	} else {
		if len(ip) < header.IPv4MinimumSize || ip[9] != byte(header.ICMPv4ProtocolNumber) {
			return false
		}
		hl := int(header.IPv4(ip).HeaderLength())
		if hl < header.IPv4MinimumSize || len(ip) < hl+echoHeader {
			return false
		}
		m := ip[hl:]
		if m[0] != byte(header.ICMPv4DstUnreachable) || m[1] != 3 {
			return false
		}
		inner = m[echoHeader:]
	}
	local, remote, ok := udpEnds(inner, v6)
	return ok && p.udp.refused(local, remote)
}

// udpEnds reads source and destination of a quoted datagram.
func udpEnds(b []byte, v6 bool) (src, dst netip.AddrPort, ok bool) {
	if v6 {
		if len(b) < header.IPv6MinimumSize+4 || b[6] != byte(header.UDPProtocolNumber) {
			return src, dst, false
		}
		t := b[header.IPv6MinimumSize:]
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint16(t)),
			netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:40])), binary.BigEndian.Uint16(t[2:])), true
	}
	if len(b) < header.IPv4MinimumSize || b[9] != byte(header.UDPProtocolNumber) {
		return src, dst, false
	}
	hl := int(header.IPv4(b).HeaderLength())
	if hl < header.IPv4MinimumSize || len(b) < hl+4 {
		return src, dst, false
	}
	t := b[hl:]
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), binary.BigEndian.Uint16(t)),
		netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), binary.BigEndian.Uint16(t[2:])), true
}

func ipHeaderLen(a netip.Addr) int {
	if a.Is4() {
		return header.IPv4MinimumSize
	}
	return header.IPv6MinimumSize
}

// hopLimit is what packets to the guest carry: the gateway is one hop away (RFC 1700's default).
const hopLimit = 64

// putIP writes an IP header for n bytes of payload. id is IPv4's.
func putIP(b []byte, src, dst netip.Addr, proto tcpip.TransportProtocolNumber, n int, id uint16) {
	if src.Is4() {
		h := header.IPv4(b)
		h.Encode(&header.IPv4Fields{
			TotalLength: uint16(header.IPv4MinimumSize + n), ID: id, TTL: hopLimit, Protocol: uint8(proto),
			SrcAddr: toTCPIP(src), DstAddr: toTCPIP(dst),
		})
		h.SetChecksum(^h.CalculateChecksum())
		return
	}
	header.IPv6(b).Encode(&header.IPv6Fields{
		PayloadLength: uint16(n), TransportProtocol: proto, HopLimit: hopLimit, SrcAddr: toTCPIP(src), DstAddr: toTCPIP(dst),
	})
}

// newPacket returns a frame for the guest with an IP header, and the n bytes behind that to fill.
func (p *port) newPacket(src, dst netip.Addr, proto tcpip.TransportProtocolNumber, n int) (frame, payload []byte) {
	hl, kind := ipHeaderLen(src), etherIPv4
	if src.Is6() {
		kind = etherIPv6
	}
	f := newFrame(p.net.seg.macFor(p, dst), p.net.gatewayMAC, kind, hl+n)
	ip := f[link.Headroom+ethLen:]
	putIP(ip, src, dst, proto, n, 0)
	return f, ip[hl : hl+n]
}

// sendIP sends the guest a packet of one transport's bytes, in fragments where it is longer than the MTU.
func (p *port) sendIP(src, dst netip.Addr, proto tcpip.TransportProtocolNumber, payload []byte) {
	hl, v6 := ipHeaderLen(src), src.Is6()
	room := p.mtu() - hl
	if len(payload) <= room {
		f, b := p.newPacket(src, dst, proto, len(payload))
		copy(b, payload)
		p.sendFrame(f)
		return
	}
	to, kind := p.net.seg.macFor(p, dst), etherIPv4
	if v6 {
		kind = etherIPv6
	}
	id := p.net.nextIPID.Add(1)
	extra := 0
	if v6 {
		extra = header.IPv6FragmentHeaderSize
	}
	room = (room - extra) &^ 7 // offsets count eights (RFC 791, RFC 8200 §4.5)
	for off := 0; off < len(payload); off += room {
		part := payload[off:min(off+room, len(payload))]
		more := off+len(part) < len(payload)
		f := newFrame(to, p.net.gatewayMAC, kind, hl+extra+len(part))
		ip := f[link.Headroom+ethLen:]
		if v6 {
			putIP(ip, src, dst, header.IPv6FragmentHeader, extra+len(part), 0)
			x := ip[hl:]
			x[0] = byte(proto)
			fo := uint16(off)
			if more {
				fo |= 1
			}
			binary.BigEndian.PutUint16(x[2:], fo)
			binary.BigEndian.PutUint32(x[4:], id)
		} else {
			putIP(ip, src, dst, proto, len(part), uint16(id))
			fl := uint8(0)
			if more {
				fl = header.IPv4FlagMoreFragments
			}
			h := header.IPv4(ip)
			h.SetFlagsFragmentOffset(fl, uint16(off))
			h.SetChecksum(0)
			h.SetChecksum(^h.CalculateChecksum())
		}
		copy(ip[hl+extra:], part)
		p.sendFrame(f)
	}
}
