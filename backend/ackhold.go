package backend

// Pure ACKs wait for company. gVisor acknowledges at once, and the answer that could have carried the acknowledgement
// follows some microseconds later; each frame costs the VMM and the guest as much as a full one. So the loop keeps a
// flow's newest pure ACK while it has other work or looks for an answer, and sends it when it is about to sleep, when
// much is unacknowledged, or when something of the flow goes out that does not carry it. What acknowledges less than two
// full segments may wait a moment longer, while the far side makes its answer (RFC 9293 §3.8.6.3, delayed ACKs).

import (
	"encoding/binary"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// ackSlots is how many flows can have one waiting. Another flow's takes its place, and it is sent.
	ackSlots = 16
	// ackMost is how many bytes a waiting ACK may come to cover: a small part of the window, so that no sender waits
	// for it.
	ackMost = 64 << 10
	// ackTurns is how many turns of a busy loop an ACK waits at most: each is a batch, well under a millisecond.
	ackTurns = 4
	// ackDelay is how long one waits that acknowledges less. RFC 5681 allows 500 ms; a server on the same machine
	// answers well within it, and a guest that waits for the ACK before it goes on does not notice it.
	ackDelay = 500 * time.Microsecond
)

// onlyTimestamps is how the options of a header of 32 bytes begin that has them alone: NOP, NOP, 8, 10 (RFC 7323
// appendix A).
const onlyTimestamps = 0x0101080a

// ackHold is the loop's.
type ackHold struct {
	slots [ackSlots]heldACK
	n     int // how many are waiting
	turns int // since none was
	read  int // bytes that came from the guest since then
	few   int // two full segments of the guest's: RFC 5681 §4.2 has every second one acknowledged
}

// turn counts one, and says whether those that wait are to wait no longer.
func (h *ackHold) turn() bool {
	if h.n == 0 {
		h.turns, h.read = 0, 0
		return false
	}
	h.turns++
	return h.turns > ackTurns && h.many()
}

// many says whether more was read than may go unacknowledged for long.
func (h *ackHold) many() bool { return h.read > h.few }

type heldACK struct {
	pkt   *stack.PacketBuffer
	first uint32 // what the oldest of those that it stands for acknowledged
}

// pass sends i, or keeps it, and then sends nothing or what must go before it.
func (h *ackHold) pass(pkt *stack.PacketBuffer, send func(*stack.PacketBuffer)) {
	t := pkt.TransportHeader().Slice()
	if pkt.TransportProtocolNumber != header.TCPProtocolNumber || len(t) < header.TCPMinimumSize {
		send(pkt)
		return
	}
	s := &h.slots[(uint32(t[0])^uint32(t[1])^uint32(t[2])^uint32(t[3]))%ackSlots]
	ack := binary.BigEndian.Uint32(t[8:])
	// With options other than timestamps, SACK blocks that is, it is never kept.
	pure := pkt.Data().Size() == 0 && t[13] == uint8(header.TCPFlagAck) &&
		(len(t) == header.TCPMinimumSize || len(t) == 32 && binary.BigEndian.Uint32(t[20:]) == onlyTimestamps)
	switch {
	case s.pkt == nil:
		if pure {
			h.keep(s, pkt, ack)
			return
		}
	case !sameFlow(s.pkt, pkt):
		h.release(s, send)
		if pure {
			h.keep(s, pkt, ack)
			return
		}
	case !pure: // it carries what the waiting one says
		s.pkt.DecRef()
		s.pkt = nil
		h.n--
	default:
		old := binary.BigEndian.Uint32(s.pkt.TransportHeader().Slice()[8:])
		if int32(ack-old) <= 0 { // a duplicate or a window's update: both count
			h.release(s, send)
			break
		}
		s.pkt.DecRef()
		s.pkt = nil
		h.n--
		if ack-s.first < uint32(max(ackMost, h.few)) {
			h.keep(s, pkt, s.first)
			return
		}
	}
	send(pkt)
}

func (h *ackHold) keep(s *heldACK, pkt *stack.PacketBuffer, first uint32) {
	s.pkt, s.first = pkt.IncRef(), first
	h.n++
}

func (h *ackHold) release(s *heldACK, send func(*stack.PacketBuffer)) {
	send(s.pkt)
	s.pkt.DecRef()
	s.pkt = nil
	h.n--
}

// releaseAll sends what waits.
func (h *ackHold) releaseAll(send func(*stack.PacketBuffer)) {
	for i := range h.slots {
		if h.slots[i].pkt != nil {
			h.release(&h.slots[i], send)
		}
	}
}

func sameFlow(a, b *stack.PacketBuffer) bool {
	x, y := a.TransportHeader().Slice(), b.TransportHeader().Slice()
	if binary.BigEndian.Uint32(x) != binary.BigEndian.Uint32(y) || a.NetworkProtocolNumber != b.NetworkProtocolNumber {
		return false
	}
	n, m := a.NetworkHeader().Slice(), b.NetworkHeader().Slice()
	if a.NetworkProtocolNumber == header.IPv6ProtocolNumber {
		return [32]byte(n[8:40]) == [32]byte(m[8:40])
	}
	return [8]byte(n[12:20]) == [8]byte(m[12:20])
}
