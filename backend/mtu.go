package backend

// What a guest takes. The network's MTU is what every NIC carries; Config.LargeMTU is what a better one does, and each
// guest of a network may have another. Nothing on a wire says what NIC is behind it, so a guest finds out by itself and
// shows it by itself:
//
//   - DHCP's answer goes out twice where the client asks for an MTU (services.go): first with LargeMTU, in a frame that
//     is padded to that MTU, then as usual. A NIC that takes such frames hears the large one first, and clients are
//     done with the first ACK. Any other NIC never hears of it: e1000, rtl8139 and their like drop a frame that is
//     longer than their MTU.
//   - A TCP SYN says what its sender takes (RFC 9293 §3.7.1). From then on the guest has that MTU here: its stack
//     offers a segment as large, datagrams to it are cut to it, router advertisements tell it, and other guests' larger
//     packets are answered with "too big" in its place.
//
// Frames of the guest's that are longer than the MTU show nothing: libkrun's guests send 64 KiB segments at MTU 1500.
// Nor do option 57, which is what a client's memory holds, or option 60, which names the client and not the NIC.
// Runs in the port's reader.

import (
	"encoding/binary"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

// etherMTU is what every Ethernet NIC carries (IEEE 802.3 §3.2.7), whatever its guest says of itself.
const etherMTU = 1500

// largestMTU is the most that a guest may have or show.
func (c *Config) largestMTU() int { return max(c.MTU, c.LargeMTU) }

// mtu is the largest IP packet that is sent to the guest.
func (p *port) mtu() int {
	if n := int(p.declared.Load()); n != 0 {
		return n
	}
	return min(p.net.cfg.MTU, p.carries)
}

// stackMTU is what the guest's stack takes for its MTU. Where the NIC is known to be a large one, the first segments
// that come in from outside need not wait for the guest's word.
func (p *port) stackMTU() int {
	if c := &p.net.cfg; c.LargeNICs && p.declared.Load() == 0 {
		return min(c.LargeMTU, p.carries)
	}
	return p.mtu()
}

// advertisedMTU is what router advertisements tell the guest, 0 for nothing: while nothing is known of its NIC, that of
// the NIC stands, which may have been told by its VMM.
func (p *port) advertisedMTU() int {
	c := &p.net.cfg
	if c.LargeMTU == 0 {
		return min(c.MTU, p.carries)
	}
	if n := int(p.declared.Load()); n != 0 {
		return n
	}
	if c.LargeNICs {
		return min(c.LargeMTU, p.carries)
	}
	return 0
}

// carriesOf is the largest IP packet that a wire carries.
func carriesOf(l link.Link) int {
	most := link.MaxFrame
	if x, ok := l.(link.Limited); ok && x.MaxFrame() > 0 {
		most = min(most, x.MaxFrame())
	}
	return most - ethLen
}

// capMTU lowers the MTU in a DHCP message (RFC 2132 §5.1) to what the guest's wire carries.
func capMTU(msg []byte, most int) {
	const options, pad, end, mtu = 240, 0, 255, 26 // RFC 2131 §2: they follow 236 bytes and a cookie
	for i := options; i+1 < len(msg) && msg[i] != end; {
		if msg[i] == pad {
			i++
			continue
		}
		if v := msg[min(i+2, len(msg)):]; msg[i] == mtu && msg[i+1] == 2 && len(v) >= 2 {
			binary.BigEndian.PutUint16(v, uint16(min(int(binary.BigEndian.Uint16(v)), most)))
		}
		i += 2 + int(msg[i+1])
	}
}

// learnMTU looks for what the guest says in a SYN that it takes. The most that it ever said counts: containers behind
// it, with an MTU of their own, open connections from the same address. An MTU is lowered so while the guest is
// plugged in only if it has opened no connection before.
func (p *port) learnMTU(kind uint16, ip []byte) {
	said := declaredMTU(kind, ip)
	if said == 0 {
		return
	}
	c := &p.net.cfg
	n := min(max(said, etherMTU), c.largestMTU(), p.carries)
	if n <= int(p.declared.Load()) {
		return
	}
	p.declared.Store(int32(n))
	if c.LargeMTU > 0 && n > etherMTU { // its advertisements have said less, or nothing
		p.advertise(p.net.router6.Load())
	}
}

// declaredMTU is the MTU that a TCP SYN speaks of: the maximum segment size in it and the fixed headers, which it
// leaves out (RFC 9293 §3.7.1, RFC 6691). It is 0 for any other packet.
func declaredMTU(kind uint16, ip []byte) int {
	hl := 0
	switch {
	case kind == etherIPv4 && len(ip) >= header.IPv4MinimumSize+header.TCPMinimumSize && ip[0] == 0x45 && ip[9] == byte(header.TCPProtocolNumber):
		if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 { // a fragment
			return 0
		}
		hl = header.IPv4MinimumSize
	case kind == etherIPv6 && len(ip) >= header.IPv6MinimumSize+header.TCPMinimumSize && ip[6] == byte(header.TCPProtocolNumber):
		hl = header.IPv6MinimumSize
	default:
		return 0
	}
	t := header.TCP(ip[hl:])
	if t.Flags()&(header.TCPFlagSyn|header.TCPFlagRst) != header.TCPFlagSyn {
		return 0
	}
	if o := int(t.DataOffset()); o < header.TCPMinimumSize || o > len(t) {
		return 0
	}
	// Without the option it is 536 or 1220 (§3.7.1): less than any NIC carries.
	mss := header.ParseSynOptions(t.Options(), t.Flags().Contains(header.TCPFlagAck)).MSS
	return int(mss) + hl + header.TCPMinimumSize
}

// tooLong takes care of a frame that is longer than the guest with dst is known to take, or its wire carries, and reports whether it was.
// A switch would drop it and nobody would know why. The sender hears what a router would tell it (RFC 1191, RFC 8201)
// or, where it lets others cut its packets, that is done.
func (p *port) tooLong(kind uint16, ip []byte, body link.Span, dst mac) bool {
	if body.Len() <= etherMTU {
		return false
	}
	to := p.net.seg.at(dst)
	if to == nil || to == p || to.declared.Load() == 0 && body.Len() <= to.carries {
		return false
	}
	mtu := to.mtu()
	switch {
	case kind == etherIPv4 && len(ip) >= header.IPv4MinimumSize && int(header.IPv4(ip).TotalLength()) > mtu:
		h := header.IPv4(ip)
		hl := int(h.HeaderLength())
		if n := int(h.TotalLength()); hl < header.IPv4MinimumSize || len(ip) < hl+8 || n > body.Len() || int(h.FragmentOffset())+n-hl > 65535 {
			p.drop(flows.ReasonMalformed)
			return true
		}
		if h.Flags()&header.IPv4FlagDontFragment != 0 {
			p.unreachable(slices.Clone(ip[:hl+8]), egress.TooBig, mtu)
			break
		}
		for _, f := range fragment4(p.batch.AppendTo(nil, body.Upto(int(h.TotalLength()))), mtu) {
			out := newFrame(dst, p.lastMAC, etherIPv4, len(f))
			copy(out[link.Headroom+ethLen:], f)
			to.queue.push(item{raw: link.Frame{Head: out}, size: len(out), other: true})
		}
		return true
	case kind == etherIPv6 && len(ip) >= header.IPv6MinimumSize+8 && header.IPv6MinimumSize+int(header.IPv6(ip).PayloadLength()) > mtu:
		p.unreachable(slices.Clone(ip), egress.TooBig, mtu)
	case body.Len() <= to.carries:
		return false // no IP, or padding
	}
	p.drop(flows.ReasonUnreachable)
	return true
}

// fragment4 cuts an IPv4 packet, which may be a fragment itself, to fragments of at most mtu bytes (RFC 791 §3.2).
// Options go with each; some should be in the first alone, and do no harm in the others.
func fragment4(packet []byte, mtu int) [][]byte {
	h := header.IPv4(packet)
	hl := int(h.HeaderLength())
	payload := packet[hl:]
	room := (mtu - hl) &^ 7 // offsets count eights
	start, more := int(h.FragmentOffset()), h.Flags()&header.IPv4FlagMoreFragments != 0
	var list [][]byte
	for off := 0; off < len(payload); off += room {
		part := payload[off:min(off+room, len(payload))]
		f := header.IPv4(append(slices.Clone(packet[:hl]), part...))
		flags := uint8(0)
		if more || off+len(part) < len(payload) {
			flags = header.IPv4FlagMoreFragments
		}
		f.SetTotalLength(uint16(len(f)))
		f.SetFlagsFragmentOffset(flags, uint16(start+off))
		f.SetChecksum(0)
		f.SetChecksum(^f.CalculateChecksum())
		list = append(list, f)
	}
	return list
}

// at is the port that a MAC lives on.
func (s *segment) at(m mac) *port {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.macs[m]
}
