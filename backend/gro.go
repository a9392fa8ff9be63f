package backend

// Coalescing on the way in: TCP segments that follow one another in a batch become one packet for the stack, up to 64
// KiB, and pure ACKs of a flow become the newest. At MTU 1500 that is most of what a stream from the guest costs.
// Runs in the port's reader; nothing is held beyond a batch, so nothing waits.

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/vmnetd/vmnetd/backend/checksum"
	"github.com/vmnetd/vmnetd/backend/link"
)

// groSlots is how many flows are coalesced side by side. Frames of more flows than that seldom interleave within one
// read of 256 KiB.
const groSlots = 8

// groMost is the largest packet made: IPv4's total length.
const groMost = 65535

// gro holds the packets being put together.
type gro struct {
	slots  [groSlots]groSlot
	single groSlot // of a segment that joins none
}

type groSlot struct {
	busy   bool
	v6     bool
	head   [headLen]byte // IP and TCP headers of the first segment, then kept up to date
	hlen   int           // of both
	ip     int           // of IP's
	next   uint32        // sequence number that follows
	parts  []link.Span   // payloads
	size   int           // of all payloads
	pieces int
}

// wholeOf says how long the IP header and all of a packet are, if it is whole, in order and of this protocol, without
// what IP may put between the headers. ip is its beginning, body where it lies.
func wholeOf(kind uint16, ip []byte, body link.Span, proto tcpip.TransportProtocolNumber) (hl, total int, ok bool) {
	switch {
	case kind == etherIPv4 && len(ip) >= header.IPv4MinimumSize && ip[0] == 0x45 && ip[9] == byte(proto):
		if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 { // a fragment
			return 0, 0, false
		}
		hl, total = header.IPv4MinimumSize, int(binary.BigEndian.Uint16(ip[2:]))
	case kind == etherIPv6 && len(ip) >= header.IPv6MinimumSize && ip[0]>>4 == 6 && ip[6] == byte(proto):
		hl = header.IPv6MinimumSize
		total = hl + int(binary.BigEndian.Uint16(ip[4:]))
	default:
		return 0, 0, false
	}
	return hl, total, total >= hl && total <= body.Len()
}

// segmentOf is wholeOf for a TCP segment, with how long its header is. What is not in order is the stack's IP layer to
// judge.
func segmentOf(kind uint16, ip []byte, body link.Span) (hl, th, total int, ok bool) {
	hl, total, ok = wholeOf(kind, ip, body, header.TCPProtocolNumber)
	if !ok || total < hl+header.TCPMinimumSize || len(ip) < hl+header.TCPMinimumSize {
		return 0, 0, 0, false
	}
	th = int(ip[hl+12]>>4) * 4
	return hl, th, total, th >= header.TCPMinimumSize && len(ip) >= hl+th && total >= hl+th
}

// add takes an IP packet to the gateway. It reports whether it took it.
func (g *gro) add(n *nic, b *link.Batch, kind uint16, ip []byte, body link.Span) bool {
	hl, th, total, ok := segmentOf(kind, ip, body)
	if !ok {
		return false
	}
	t := ip[hl:]
	v6 := hl == header.IPv6MinimumSize
	slot := &g.slots[hash(ip, t, v6)%groSlots]
	same := slot.busy && slot.v6 == v6 && slot.sameFlow(ip, t, hl)
	size := total - hl - th
	flags := t[13]
	const ack, psh = uint8(header.TCPFlagAck), uint8(header.TCPFlagPsh)
	if flags&^psh != ack || size == 0 && flags != ack {
		if same {
			slot.flush(n, b)
		}
		return false // not one to join, but what came before it goes first
	}
	seq := binary.BigEndian.Uint32(t[4:])
	if same && slot.join(t, hl, th, seq, size) {
		if size > 0 {
			slot.parts = append(slot.parts, body.From(hl+th).Upto(size))
		}
		return true
	}
	if slot.busy {
		slot.flush(n, b)
	}
	slot.begin(ip, body, hl, th, size)
	return true
}

// alone hands on a TCP segment that is not one to join others, after those that came before it. It reports whether it
// was in order.
func (g *gro) alone(n *nic, b *link.Batch, kind uint16, ip []byte, body link.Span) bool {
	hl, th, total, ok := segmentOf(kind, ip, body)
	if !ok {
		return false
	}
	g.single.begin(ip, body, hl, th, total-hl-th)
	g.single.flush(n, b)
	return true
}

// begin fills the slot with a first segment.
func (s *groSlot) begin(ip []byte, body link.Span, hl, th, size int) {
	s.busy, s.v6, s.ip, s.hlen = true, hl == header.IPv6MinimumSize, hl, hl+th
	copy(s.head[:], ip[:hl+th])
	s.next, s.size, s.pieces = binary.BigEndian.Uint32(ip[hl+4:])+uint32(size), size, 1
	s.parts = s.parts[:0]
	if size > 0 {
		s.parts = append(s.parts, body.From(hl+th).Upto(size))
	}
}

// hash picks a slot from the ends' last bytes and ports: a guest that makes them collide spoils its own coalescing.
func hash(ip, t []byte, v6 bool) uint32 {
	a := binary.BigEndian.Uint32(t)
	if v6 {
		a ^= binary.BigEndian.Uint32(ip[36:])
	} else {
		a ^= binary.BigEndian.Uint32(ip[16:])
	}
	a *= 0x9e3779b1 // 2^32 over the golden ratio
	return a >> 16
}

func (s *groSlot) sameFlow(ip, t []byte, hl int) bool {
	if !bytes.Equal(s.head[hl:hl+4], t[:4]) {
		return false
	}
	if s.v6 {
		return bytes.Equal(s.head[8:40], ip[8:40])
	}
	return bytes.Equal(s.head[12:20], ip[12:20])
}

// join says whether the segment goes into the slot, and brings the header up to date if so.
func (s *groSlot) join(t []byte, hl, th int, seq uint32, size int) bool {
	mine := s.head[hl:s.hlen]
	if th != len(mine) || seq != s.next || s.hlen+s.size+size > groMost {
		return false
	}
	if size == 0 {
		// A newer ACK replaces an older one. Equal ones stay apart: duplicates are counted (RFC 5681). So do those
		// with SACK blocks.
		newer := int32(binary.BigEndian.Uint32(t[8:]) - binary.BigEndian.Uint32(mine[8:]))
		if s.size > 0 || newer <= 0 || th > header.TCPMinimumSize && (th != 32 || binary.BigEndian.Uint32(t[20:]) != onlyTimestamps) {
			return false
		}
		copy(mine, t[:th])
		s.pieces = 2 // not as it was read any more
		return true
	}
	if s.size == 0 || !bytes.Equal(mine[8:12], t[8:12]) || !bytes.Equal(mine[20:], t[20:th]) {
		return false
	}
	mine[13] |= t[13]           // PSH
	copy(mine[14:16], t[14:16]) // window
	s.next += uint32(size)
	s.size += size
	s.pieces++
	return true
}

// flushAll hands on what the batch has left.
func (g *gro) flushAll(n *nic, b *link.Batch) {
	for i := range g.slots {
		if g.slots[i].busy {
			g.slots[i].flush(n, b)
		}
	}
}

func (s *groSlot) flush(n *nic, b *link.Batch) {
	s.busy = false
	proto := tcpip.NetworkProtocolNumber(header.IPv4ProtocolNumber)
	if s.v6 {
		proto = header.IPv6ProtocolNumber
	}
	h := s.head[:s.hlen]
	if s.pieces > 1 {
		if s.v6 {
			binary.BigEndian.PutUint16(h[4:], uint16(s.hlen-s.ip+s.size))
		} else {
			binary.BigEndian.PutUint16(h[2:], uint16(s.hlen+s.size))
			h[10], h[11] = 0, 0
			binary.BigEndian.PutUint16(h[10:], ^checksum.Sum(h[:s.ip], 0))
		}
	}
	var payload buffer.Buffer
	switch {
	case s.size <= joinBelow:
		payload = buffer.MakeWithView(s.gather(b, s.hlen+s.size, h))
	case s.hlen+s.size <= copyBelow*s.pieces: // small segments: one copy now makes one piece for all that follows
		payload = buffer.MakeWithData(h)
		payload.Append(s.gather(b, s.size, nil))
	default:
		payload = buffer.MakeWithData(h)
		for _, p := range s.parts {
			share(&payload, b, p)
		}
	}
	if !ofHosts(h, s.v6) {
		n.hand(proto, payload)
		return
	}
	n.handTCP(proto, payload, s.ip, s.hlen-s.ip)
}

// joinBelow is up to which size a payload lies behind its headers. The stack may copy what lies with them.
const joinBelow = 512

// gather copies the payloads into one view of size bytes, behind head.
func (s *groSlot) gather(b *link.Batch, size int, head []byte) *buffer.View {
	v := newView(b, size)
	to := append(v.AsSlice()[:0], head...)
	for _, p := range s.parts {
		to = b.AppendTo(to, p)
	}
	return v
}

// ofHosts says whether both addresses are of one host each, so that the stack's IP layer has nothing to say of them.
func ofHosts(ip []byte, v6 bool) bool {
	if v6 {
		return unicast6(ip[8:16]) && unicast6(ip[24:32])
	}
	return unicast4(ip[12]) && unicast4(ip[16])
}

// unicast6 says whether IPv6 addresses that begin so are of one host each: no multicast, and not the unspecified, the
// loopback or an IPv4 address in IPv6's clothes (RFC 6890).
func unicast6(half []byte) bool { return half[0] != 0xff && binary.BigEndian.Uint64(half) != 0 }

// unicast4 says whether IPv4 addresses that begin so are of one host each (RFC 6890).
func unicast4(first byte) bool { return first != 0 && first != 127 && first < 224 }
