package link

// What arrives at once, a wire that takes long segments gets as such: the pieces that impair_cut.go made, or what is left of
// them, are put together where they follow one another, as a card does with what it receives (LRO). Each has had its own
// fate by then, and each costs its receiver else a way through its kernel of its own.

import (
	"bytes"
	"encoding/binary"
)

// joint is what the last frame that is to be written may be made longer by.
type joint struct {
	open       bool
	hl, th     int
	size, data int // payload of each piece, and of all so far
	next       uint32
}

const (
	tcpFIN, tcpPSH, tcpACK, tcpCWR = 1, 8, 0x10, 0x80
)

// join adds a frame that has arrived to the list of those to be written.
func (w *Impaired) join(buf []byte) {
	const needs = Told | Checksums
	var next joint
	if w.takes&needs == needs && !w.limited {
		next = w.jointOf(buf)
	}
	if j := &w.joint; j.open && next.size > 0 && w.follows(buf, &next) {
		f := &w.frames[len(w.frames)-1]
		start := len(w.bodies) - len(f.Body)
		at := Headroom + etherLen + j.hl + j.th
		w.bodies = append(w.bodies, buf[at:])
		f.Body = w.bodies[start:len(w.bodies):len(w.bodies)]
		j.data += next.size
		j.next += uint32(next.size)
		j.open = next.open && next.size == j.size
		head := f.Head[Headroom:]
		ip := head[etherLen:]
		t := ip[j.hl:]
		t[13] |= buf[Headroom+etherLen+j.hl+13]
		kind, v6 := uint8(OffloadTCP4), ip[0]>>4 == 6
		if v6 {
			kind = OffloadTCP6
			binary.BigEndian.PutUint16(ip[4:], uint16(j.th+j.data))
		} else {
			binary.BigEndian.PutUint16(ip[2:], uint16(j.hl+j.th+j.data))
			ip[10], ip[11] = 0, 0
			binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip[:j.hl]))
		}
		binary.BigEndian.PutUint16(t[16:], pseudo(ip, v6, j.th+j.data))
		f.SetOffload(Offload{Flags: OffloadSum, Kind: kind, Header: uint16(etherLen + j.hl + j.th), Size: uint16(j.size),
			SumStart: uint16(etherLen + j.hl), SumAt: 16})
		return
	}
	w.joint = next
	w.frames = append(w.frames, Frame{Head: buf})
}

// jointOf says what a frame may be made longer by; its size is 0 if it has no place in any.
func (w *Impaired) jointOf(buf []byte) joint {
	f := buf[Headroom:]
	hl, th, total, ok := tcpOf(f)
	data := total - hl - th
	if !ok || data <= 0 || len(f) != etherLen+total || // not with a trailer
		ParseOffload(buf[Headroom-OffloadLen:]) != (Offload{Flags: OffloadSum, SumStart: uint16(etherLen + hl), SumAt: 16}) {
		return joint{}
	}
	kind := Segments4
	if f[etherLen]>>4 == 6 {
		kind = Segments6
	}
	t := f[etherLen+hl:]
	if w.takes&kind == 0 || t[13]&tcpCWR != 0 || t[13]&tcpACK == 0 {
		return joint{}
	}
	return joint{open: t[13]&(tcpFIN|tcpPSH) == 0, hl: hl, th: th, size: data, data: data, next: binary.BigEndian.Uint32(t[4:]) + uint32(data)}
}

// follows says whether buf continues the last frame.
func (w *Impaired) follows(buf []byte, next *joint) bool {
	j := &w.joint
	if next.hl != j.hl || next.th != j.th || next.size > j.size || j.hl+j.th+j.data+next.size > 65535 {
		return false
	}
	a, b := w.frames[len(w.frames)-1].Head[Headroom:], buf[Headroom:]
	if !bytes.Equal(a[:etherLen], b[:etherLen]) {
		return false
	}
	a, b = a[etherLen:], b[etherLen:]
	if a[0]>>4 == 6 {
		if !bytes.Equal(a[:4], b[:4]) || !bytes.Equal(a[6:40], b[6:40]) {
			return false
		}
	} else if !bytes.Equal(a[:2], b[:2]) || !bytes.Equal(a[6:10], b[6:10]) || !bytes.Equal(a[12:j.hl], b[12:j.hl]) {
		return false
	}
	a, b = a[j.hl:], b[j.hl:]
	return binary.BigEndian.Uint32(b[4:]) == j.next && bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[8:13], b[8:13]) &&
		a[13] == b[13]&^(tcpFIN|tcpPSH) && bytes.Equal(a[14:16], b[14:16]) && bytes.Equal(a[18:j.th], b[18:j.th])
}
