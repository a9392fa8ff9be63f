package impair

import (
	"encoding/binary"
	"sync/atomic"
)

// Tally counts frames by the far end of their conversation, in the form of daily-co's synthetic-network, for its programs:
// a table of fixed size each way, in which two conversations may share a slot. That has the later one's name then, and
// the figures of both. It may be used by anybody at any time.
type Tally struct{ ways [2][tallySlots]tallySlot }

type tallySlot struct{ packets, bits, id atomic.Uint64 }

const (
	tallySlots = 2048
	// ProfileSize is how many bytes Profile has.
	ProfileSize = tallySlots * 24
)

// Counted is what a frame counts for, once a Tally adds it.
type Counted struct{ id, packets, bits uint64 }

// Count looks at a frame that the guest sends (up) or gets, of which head are the first bytes. It is so many packets with
// so many bytes, Ethernet headers included.
func Count(head []byte, up bool, packets, bytes int) Counted {
	c := Counted{packets: uint64(packets)}
	if e, ok := endsOf(head, up); ok {
		c.id = uint64(e.port)<<48 | uint64(e.proto)<<32
		if e.far.Is4() { // for IPv6 there is no room: it is counted as 0.0.0.0, which stands for any
			a := e.far.As4()
			c.id |= uint64(binary.LittleEndian.Uint32(a[:]))
		}
	}
	// On Ethernet each takes a gap of 12, a preamble of 8 and an FCS of 4, and is 60 long at least.
	c.bits = uint64(max(bytes, 60*packets)+24*packets) * 8
	return c
}

// Add counts it.
func (t *Tally) Add(up bool, c Counted) {
	s := &t.way(up)[tallySlotOf(c.id)]
	s.packets.Add(c.packets)
	s.bits.Add(c.bits)
	if s.id.Load() != c.id {
		s.id.Store(c.id)
	}
}

func (t *Tally) way(up bool) *[tallySlots]tallySlot {
	if up {
		return &t.ways[1]
	}
	return &t.ways[0]
}

// tallySlotOf is MurmurHash3's 64-bit finalizer, as there.
func tallySlotOf(id uint64) uint64 {
	id ^= id >> 33
	id *= 0xff51afd7ed558ccd
	id ^= id >> 33
	id *= 0xc4ceb9fe1a85ec53
	id ^= id >> 33
	return id % tallySlots
}

// Profile is the table of what guests sent (up) or got. Of each slot three numbers, the least byte first: packets, bits with
// what Ethernet adds, and the far end: its IPv4 address, first byte lowest, then 8 bits of protocol, 8 of nothing and 16
// of port.
func (t *Tally) Profile(up bool) []byte {
	b := make([]byte, 0, ProfileSize)
	for i := range t.way(up) {
		s := &t.way(up)[i]
		b = binary.LittleEndian.AppendUint64(b, s.packets.Load())
		b = binary.LittleEndian.AppendUint64(b, s.bits.Load())
		b = binary.LittleEndian.AppendUint64(b, s.id.Load())
	}
	return b
}
