package capture

import (
	"encoding/binary"
	"net/netip"
)

// HeadLen is as much of a frame as Packet tells of: Ethernet, the longest IPv4 header, or IPv6's and a fragment's, and ports.
// Of frames that are cut off before it [Options].Judge may hear that they are no conversation's.
const HeadLen = 14 + 60 + 8

// Packet is whose frame it is: the guest's end and the far one. The zero Packet is of a frame that is no conversation's.
type Packet struct {
	Proto      uint8          // 6, 17, 1 or 58
	Guest, Far netip.AddrPort // ports are 0 for ICMP
	Out        bool           // to the guest
	Fragment   bool           // not the first: without ports
}

// parsePacket reads the first bytes of a frame.
func parsePacket(b []byte, out bool) (p Packet) {
	p.Out = out
	if len(b) < 14 {
		return p
	}
	var src, dst netip.Addr
	var rest []byte
	proto := uint8(0)
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherIP:
		ip := b[14:]
		if len(ip) < 20 || ip[0]>>4 != 4 {
			return p
		}
		hl := int(ip[0]&0xf) * 4
		if hl < 20 || len(ip) < hl {
			return p
		}
		src, dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
		proto, rest = ip[9], ip[hl:]
		p.Fragment = binary.BigEndian.Uint16(ip[6:])&0x1fff != 0
	case etherIP6:
		ip := b[14:]
		if len(ip) < 40 || ip[0]>>4 != 6 {
			return p
		}
		src, dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
		proto, rest = ip[6], ip[40:]
		if proto == protoFrag {
			if len(rest) < 8 {
				return p
			}
			proto = rest[0]
			p.Fragment = binary.BigEndian.Uint16(rest[2:])&^7 != 0
			rest = rest[8:]
		}
	default:
		return p
	}
	var from, to uint16
	switch proto {
	case protoTCP, protoUDP:
		if !p.Fragment {
			if len(rest) < 4 {
				return p
			}
			from, to = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
		}
	case protoICMP, protoICMP6:
	default:
		return p
	}
	p.Proto = proto
	p.Guest, p.Far = netip.AddrPortFrom(src, from), netip.AddrPortFrom(dst, to)
	if out {
		p.Guest, p.Far = p.Far, p.Guest
	}
	return p
}
