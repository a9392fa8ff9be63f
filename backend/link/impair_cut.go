package link

// What an impaired line carries are packets of its MTU. A guest's kernel leaves it to its card to cut TCP segments of
// 64 KiB, and a guest with a large MTU makes packets as long: lost or delayed in one piece they would be 44 packets with
// one fate, which no line has. So they are cut as the card would, or a router that may, before they are sent; and new
// connections are told of the line's size, as routers before tunnels tell them (MSS clamping). Any other long packet goes whole: nobody may cut UDP but by fragments, and what is lost of one is lost of all.

import (
	"encoding/binary"
	"math/bits"
)

const (
	etherLen = 14
	// leastCut is the least payload of a piece: Linux's TCP_MIN_GSO_SIZE. A guest could else make 65,000 frames of one.
	leastCut = 8
)

// enter sends a frame into a line, in pieces where it has to be, under d.mu. o is what is left to do on it, as its
// headroom says, and offloads what its wire may leave so.
func (w *Impaired) enter(d *way, buf []byte, o Offload, offloads Offloads) {
	now := w.now()
	l := d.line
	mtu := 0
	if at := synOf(buf[Headroom:]); at > 0 {
		clamp(buf[Headroom:], at, l.Cut(buf), o)
	} else if o.Kind != 0 || len(buf)-Headroom-etherLen > 576 { // the least MTU that there is
		mtu = l.Cut(buf)
	}
	if mtu == 0 {
		l.Send(now, buf)
		return
	}
	f := buf[Headroom:]
	hl, th, total, ok := tcpOf(f)
	size := mtu - hl - th
	if ok && o.Kind != 0 {
		size = min(size, int(o.Size))
	}
	if !ok || total-hl-th <= size || size < leastCut {
		l.Send(now, buf)
		return
	}
	head := etherLen + hl + th
	payload := f[head : etherLen+total]
	v6 := f[etherLen]>>4 == 6
	partial := o.Flags&OffloadSum != 0 || offloads&(Checksums|Told) == Checksums
	left := Offload{}
	if o.Flags&OffloadSum != 0 {
		left = Offload{Flags: OffloadSum, SumStart: uint16(etherLen + hl), SumAt: 16}
	}
	for done := 0; done < len(payload); done += size {
		n := min(size, len(payload)-done)
		piece := l.Buffer(Headroom + head + n)
		left.put(piece[Headroom-OffloadLen : Headroom])
		p := piece[Headroom:]
		copy(p, f[:head])
		copy(p[head:], payload[done:done+n])
		ip := p[etherLen:]
		t := ip[hl:]
		if v6 {
			binary.BigEndian.PutUint16(ip[4:], uint16(th+n))
		} else {
			binary.BigEndian.PutUint16(ip[2:], uint16(hl+th+n))
			binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(done/size)) // as Linux does
			ip[10], ip[11] = 0, 0
			binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip[:hl]))
		}
		binary.BigEndian.PutUint32(t[4:], binary.BigEndian.Uint32(t[4:])+uint32(done))
		const fin, psh, cwr = 1, 8, 0x80
		if done+n < len(payload) {
			t[13] &^= fin | psh
		}
		if done > 0 {
			t[13] &^= cwr // RFC 3168 §6.1.2: of the first segment alone
		}
		binary.BigEndian.PutUint16(t[16:], pseudo(ip, v6, th+n))
		if !partial {
			binary.BigEndian.PutUint16(t[16:], ^sum(0, t[:th+n]))
		}
		l.Send(now, piece)
	}
	l.Free(buf)
}

// synOf is where the largest segment's size stands in a SYN, 0 if there is none.
func synOf(f []byte) int {
	if len(f) < etherLen+40 {
		return 0
	}
	ip, hl := f[etherLen:], 40
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0800:
		if hl = int(ip[0]&15) * 4; ip[9] != 6 || hl < 20 || binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
			return 0
		}
	case 0x86dd:
		if ip[6] != 6 {
			return 0
		}
	default:
		return 0
	}
	if len(ip) < hl+20 || ip[hl+13]&2 == 0 {
		return 0
	}
	end := hl + int(ip[hl+12]>>4)*4
	if end > len(ip) {
		return 0
	}
	const over, nop, mss = 0, 1, 2 // RFC 9293 §3.2
	for i := hl + 20; i+1 < end && ip[i] != over; {
		switch {
		case ip[i] == nop:
			i++
		case ip[i] == mss && ip[i+1] == 4 && i+4 <= end:
			return etherLen + i + 2
		case ip[i+1] < 2:
			return 0
		default:
			i += int(ip[i+1])
		}
	}
	return 0
}

// clamp lowers the size at at to what a packet of the line has room for, as routers before slow lines do: a sender that
// counts its window in segments of 64 KiB has no measure for a line whose queue holds two of them.
func clamp(f []byte, at, mtu int, o Offload) {
	room := uint16(mtu - 40)
	if f[12] == 0x86 {
		room -= 20
	}
	was := binary.BigEndian.Uint16(f[at:])
	if mtu == 0 || was <= room {
		return
	}
	binary.BigEndian.PutUint16(f[at:], room)
	if o.Flags&OffloadSum != 0 {
		return // it is summed up later
	}
	hl := 40
	if f[12] == 0x08 {
		hl = int(f[etherLen]&15) * 4
	}
	check := f[etherLen+hl+16:]
	old, now := was, room
	if (at-etherLen-hl)&1 != 0 { // options need not lie even
		old, now = old<<8|old>>8, now<<8|now>>8
	}
	n := uint32(^binary.BigEndian.Uint16(check)) + uint32(^old) + uint32(now) // RFC 1624
	n = n>>16 + n&0xffff
	binary.BigEndian.PutUint16(check, ^uint16(n>>16+n))
}

// tcpOf says how long the headers and all of a TCP packet are that may be cut.
func tcpOf(f []byte) (hl, th, total int, ok bool) {
	if len(f) < etherLen+40 {
		return
	}
	ip := f[etherLen:]
	switch kind := binary.BigEndian.Uint16(f[12:]); {
	case kind == 0x0800 && ip[0]>>4 == 4 && ip[9] == 6 && binary.BigEndian.Uint16(ip[6:])&0x3fff == 0:
		hl, total = int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	case kind == 0x86dd && ip[0]>>4 == 6 && ip[6] == 6:
		hl = 40
		total = hl + int(binary.BigEndian.Uint16(ip[4:]))
	default:
		return
	}
	if hl < 20 || total < hl+20 || total > len(ip) || len(ip) < hl+20 {
		return
	}
	th = int(ip[hl+12]>>4) * 4
	const syn, rst, urg = 2, 4, 0x20
	return hl, th, total, th >= 20 && total >= hl+th && ip[hl+13]&(syn|rst|urg) == 0
}

// whole finishes a frame's checksum before the frame is damaged: a card would make it afterwards, and nobody see the
// damage. Where nothing tells whether it is finished, its receiver does not look either, and the frame is dropped for it.
func (w *Impaired) whole(up bool) func([]byte) bool {
	return func(buf []byte) bool {
		offloads := w.takes
		if up {
			offloads = w.gives
		}
		if offloads&(Checksums|Told) == Checksums && up {
			return false
		}
		if offloads == 0 {
			return true
		}
		o := ParseOffload(buf[Headroom-OffloadLen:])
		if o.Flags&OffloadSum != 0 {
			at, f := int(o.SumStart)+int(o.SumAt), buf[Headroom:]
			if at+2 > len(f) || int(o.SumStart) < etherLen {
				return false
			}
			binary.BigEndian.PutUint16(f[at:], ^sum(0, f[o.SumStart:]))
		}
		Offload{}.put(buf[Headroom-OffloadLen : Headroom])
		return true
	}
}

// pseudo sums TCP's pseudo-header for n bytes of segment.
func pseudo(ip []byte, v6 bool, n int) uint16 {
	ends := ip[12:20]
	if v6 {
		ends = ip[8:40]
	}
	return sum(uint64(n)+6, ends)
}

// sum is the ones' complement sum of RFC 1071 of b and what was summed before.
func sum(s uint64, b []byte) uint16 {
	carry := uint64(0)
	for len(b) >= 8 {
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(last[:]), carry)
	}
	s, carry = bits.Add64(s, 0, carry)
	s += carry
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}
