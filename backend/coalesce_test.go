package backend

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
)

// heard keeps what is delivered to a stack.
type heard struct{ packets [][]byte }

func (h *heard) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	v := pkt.ToView()
	h.packets = append(h.packets, bytes.Clone(v.AsSlice()))
	v.Release()
}

func (h *heard) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// event is what a TCP receiver learns from a segment, one at a time.
type event struct {
	kind string // "data": one byte; "ack": a pure ACK; else the flags of a segment that is never joined
	seq  uint32
	ack  uint32
	b    byte
}

// learns is what a receiver learns from packets, by flow: the bytes and their places, and the segments that are more
// than bytes, each in its place.
func learns(t *testing.T, packets [][]byte) map[string][]event {
	t.Helper()
	m := map[string][]event{}
	windows := map[string]uint16{}
	for _, ip := range packets {
		hl, total := 20, 0
		key := ""
		if ip[0]>>4 == 6 {
			hl = 40
			total = hl + int(binary.BigEndian.Uint16(ip[4:]))
			key = string(ip[8:40])
		} else {
			total = int(binary.BigEndian.Uint16(ip[2:]))
			if checksum.Checksum(ip[:20], 0) != 0xffff {
				t.Fatalf("the IPv4 header's checksum is wrong: % x", ip[:20])
			}
			key = string(ip[12:20])
		}
		if total != len(ip) {
			t.Fatalf("the packet says %d bytes and has %d", total, len(ip))
		}
		s := header.TCP(ip[hl:])
		key += string(s[:4])
		windows[key] = s.WindowSize()
		seq, ack, flags, data := s.SequenceNumber(), s.AckNumber(), uint8(s.Flags()), s.Payload()
		if flags&^uint8(header.TCPFlagPsh) != uint8(header.TCPFlagAck) {
			m[key] = append(m[key], event{kind: fmt.Sprintf("flags %x window %d of %d", flags, s.WindowSize(), len(data)), seq: seq, ack: ack})
			continue
		}
		if len(data) == 0 {
			m[key] = append(m[key], event{kind: fmt.Sprintf("ack %d %x", s.WindowSize(), s.Options()), seq: seq, ack: ack})
		}
		for i, b := range data {
			m[key] = append(m[key], event{kind: "data", seq: seq + uint32(i), ack: ack, b: b})
		}
	}
	for key, w := range windows {
		m[key] = append(m[key], event{kind: fmt.Sprint("last window ", w)})
	}
	return m
}

// fewer takes out the pure ACKs that a newer one directly behind makes superfluous, as coalescing may. All else has to
// come.
func fewer(es []event) []event {
	var out []event
	for i, e := range es {
		if i+1 < len(es) {
			n := es[i+1]
			// The same options in length and kind: none, or timestamps alone.
			if isAck(e) && isAck(n) && n.seq == e.seq && int32(n.ack-e.ack) > 0 && plain(e) && plain(n) {
				continue
			}
		}
		out = append(out, e)
	}
	return out
}

func isAck(e event) bool { return len(e.kind) > 4 && e.kind[:4] == "ack " }

// plain says whether a pure ACK has no options but timestamps.
func plain(e event) bool {
	var w int
	var opts []byte
	fmt.Sscanf(e.kind, "ack %d %x", &w, &opts)
	return len(opts) == 0 || len(opts) == 12 && binary.BigEndian.Uint32(opts) == onlyTimestamps
}

// through puts frames through a batch, as the reader does, with or without coalescing.
func through(frames [][]byte, start int, coalesce bool) *heard {
	h := &heard{}
	n := &nic{dispatcher: h}
	b := newBatch()
	defer b.Release()
	b.Append(make([]byte, start)) // so that frames straddle chunks
	b.Take(start, 0)
	for _, f := range frames {
		b.Append(f)
		b.Take(0, len(f))
	}
	var g gro
	var scratch [headLen]byte
	for _, s := range b.Frames {
		head := b.Head(s, headLen, scratch[:])
		kind, body := binary.BigEndian.Uint16(head[12:]), s.From(ethLen)
		if coalesce && g.add(n, b, kind, head[ethLen:], body) {
			continue
		}
		// The stack trims what follows a packet; here the test does.
		total := 0
		if ip := head[ethLen:]; kind == etherIPv4 {
			total = int(binary.BigEndian.Uint16(ip[2:]))
		} else {
			total = 40 + int(binary.BigEndian.Uint16(ip[4:]))
		}
		n.deliver(tcpip.NetworkProtocolNumber(kind), b, body.Upto(total))
	}
	g.flushAll(n, b)
	return h
}

// segments makes frames of some TCP flows as bytes say.
func segments(data []byte) [][]byte {
	type flow struct {
		seq, ack uint32
		ts       byte
	}
	flows := map[byte]*flow{}
	var frames [][]byte
	next := func() byte {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return b
	}
	for len(data) > 0 && len(frames) < 300 {
		who := next() % 20
		f := flows[who]
		if f == nil {
			f = &flow{seq: 0xffffff00 - uint32(who), ack: 0xfffffff0}
			flows[who] = f
		}
		what := next()
		s := backendtest.TCP{SrcPort: 1000 + uint16(who)*8, DstPort: 80, Seq: f.seq, Flags: "A", Window: 1000}
		size := 0
		switch what % 16 {
		default:
			size = int(next()) * 6
		case 1:
			size = int(next()) * 250
		case 2:
			size = 1
		case 3:
			f.ack += uint32(next())
		case 4:
			s.Flags, size = "PA", int(next())
		case 5:
			s.Flags, size = "FA", int(next())%2
		case 6:
			s.Flags = "S"
		case 7:
			s.Flags = "RA"
		case 8:
			s.Flags, size = "AU", 5
		case 9:
			s.Seq += 1 + uint32(next()) // a gap
			size = 10
		case 10:
			s.Seq -= 100 // again
			size = 100
		case 11:
			s.Window += uint16(next())
		case 12:
			s.Options = []byte{1, 1, 5, 10, 0, 0, 1, next(), 0, 0, 2, 0}
		case 13:
			f.ts ^= 1 + next()
		}
		if f.ts != 0 && s.Options == nil {
			s.Options = []byte{1, 1, 8, 10, 0, 0, 0, f.ts, 0, 0, 0, 1}
		}
		s.Ack = f.ack
		p := make([]byte, size)
		for i := range p {
			p[i] = byte(int(s.Seq) + i + i>>8 + int(who))
		}
		if s.Seq == f.seq {
			f.seq += uint32(size)
		}
		var ip backendtest.Layer = backendtest.IPv4{Src: netip.MustParseAddr("10.0.2.15"), Dst: netip.MustParseAddr("198.51.100.1")}
		if who%2 == 1 {
			ip = backendtest.IPv6{Src: netip.MustParseAddr("fd00::15"), Dst: netip.MustParseAddr("2001:db8::1")}
		}
		frame := backendtest.Build(backendtest.Ethernet{Src: []byte{2, 0, 0, 0, 0, 1}, Dst: []byte{2, 0, 0, 0, 0, 2}}, ip, s, backendtest.Payload(p))
		if what&0x80 != 0 {
			frame = append(frame, 0xaa, 0xbb) // a trailer
		}
		frames = append(frames, frame)
	}
	return frames
}

// A receiver learns the same from coalesced segments: every byte in its place and in order, each duplicate ACK, each
// flag, the last window.
func FuzzCoalesce(f *testing.F) {
	f.Fuzz(func(t *testing.T, start uint16, data []byte) {
		frames := segments(data)
		plainly := learns(t, through(frames, int(start), false).packets)
		together := through(frames, int(start), true).packets
		if len(together) > len(frames) {
			t.Fatalf("%d packets of %d frames", len(together), len(frames))
		}
		got := learns(t, together)
		if len(got) != len(plainly) {
			t.Fatalf("%d flows, want %d", len(got), len(plainly))
		}
		for key, want := range plainly {
			g := got[key]
			if n := within(g, want); n < len(g) {
				t.Fatalf("flow %x: event %d was not sent, or not there: %+v", key, n, g[n])
			}
			if few := fewer(want); within(few, g) < len(few) {
				n := within(few, g)
				t.Fatalf("flow %x: event %d is lost: %+v", key, n, few[n])
			}
		}
	})
}

// within returns how many of some events are among all, in order.
func within(some, all []event) (n int) {
	for _, e := range all {
		if n < len(some) && some[n] == e {
			n++
		}
	}
	return n
}

// A stream at MTU 1500 comes in few packets.
func TestCoalesceStream(t *testing.T) {
	var data []byte
	for range 45 {
		data = append(data, 2, 0, 240)
	}
	if got := len(through(segments(data), 0, true).packets); got != 1 {
		t.Errorf("45 segments of 1440 bytes came in %d packets, want 1", got)
	}
}

// ofPieces is a packet of the stack's as the splitter gets it.
func ofPieces(v6 bool, s header.TCPFields, opts []byte, mss uint16, pieces [][]byte) *stack.PacketBuffer {
	var data buffer.Buffer
	size := 0
	for _, p := range pieces {
		if len(p) > 0 {
			data.Append(buffer.NewViewWithData(p))
		}
		size += len(p)
	}
	hl := header.IPv4MinimumSize
	if v6 {
		hl = header.IPv6MinimumSize
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: hl + 60, Payload: data})
	th := header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize + len(opts)))
	s.DataOffset = uint8(len(th))
	th.Encode(&s)
	copy(th[header.TCPMinimumSize:], opts)
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	if v6 {
		header.IPv6(pkt.NetworkHeader().Push(hl)).Encode(&header.IPv6Fields{
			PayloadLength: uint16(len(th) + size), TransportProtocol: header.TCPProtocolNumber, HopLimit: 64,
			SrcAddr: tcpip.AddrFrom16([16]byte{0x20, 1, 15: 9}), DstAddr: tcpip.AddrFrom16([16]byte{0xfd, 15: 7}),
		})
		pkt.NetworkProtocolNumber = header.IPv6ProtocolNumber
		pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv6, MSS: mss}
		return pkt
	}
	h := header.IPv4(pkt.NetworkHeader().Push(hl))
	h.Encode(&header.IPv4Fields{
		TotalLength: uint16(hl + len(th) + size), ID: 0xfffe, TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
		SrcAddr: tcpip.AddrFrom4([4]byte{198, 51, 100, 1}), DstAddr: tcpip.AddrFrom4([4]byte{10, 0, 2, 15}),
	})
	h.SetChecksum(^h.CalculateChecksum())
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, MSS: mss}
	return pkt
}

// Frames of a large segment are right in every field and carry every byte once, however its memory is cut.
func FuzzSplit(f *testing.F) {
	f.Fuzz(func(t *testing.T, v6 bool, seq uint32, mss uint16, flags, opts uint8, cuts []byte) {
		mss = max(mss, 1)
		var pieces [][]byte
		var want []byte
		for i, c := range cuts {
			n := int(c)
			if c >= 128 {
				n = int(c-128) * 64
			}
			n = min(n, 65000-len(want))
			p := make([]byte, n)
			for j := range p {
				p[j] = byte(i + j*3)
			}
			pieces, want = append(pieces, p), append(want, p...)
		}
		if len(want)/int(mss) > 4096 {
			mss = uint16(len(want)/4096 + 1)
		}
		flags &= uint8(header.TCPFlagFin | header.TCPFlagPsh | header.TCPFlagAck)
		options := make([]byte, opts%11*4)
		for i := range options {
			options[i] = 1 // NOP
		}
		pkt := ofPieces(v6, header.TCPFields{SrcPort: 80, DstPort: 1000, SeqNum: seq, AckNum: 77, Flags: header.TCPFlags(flags), WindowSize: 4242}, options, mss, pieces)
		defer pkt.DecRef()
		var s splitter
		for range 2 { // the second time in memory that was used
			s.reset()
			s.add(pkt, []byte{2, 0, 0, 0, 0, 1}, []byte{2, 0, 0, 0, 0, 2})
			var got []byte
			ids := map[uint16]bool{}
			for i, fr := range s.frames {
				b := fr.AppendTo(nil)
				p := backendtest.Parse(b)
				if p.Wrong != nil || p.TCP == nil {
					t.Fatalf("frame %d of %d: %v: %s", i, len(s.frames), p.Wrong, p)
				}
				last := i == len(s.frames)-1
				wantFlags := flags
				if !last {
					wantFlags &^= uint8(header.TCPFlagFin | header.TCPFlagPsh)
				}
				hl := header.IPv4MinimumSize
				if v6 {
					hl = header.IPv6MinimumSize
				} else {
					ids[header.IPv4(b[ethLen:]).ID()] = true
				}
				th := header.TCP(b[ethLen+hl:])
				if uint8(th.Flags()) != wantFlags || th.SequenceNumber() != seq+uint32(len(got)) || th.AckNumber() != 77 || th.WindowSize() != 4242 || int(th.DataOffset()) != header.TCPMinimumSize+len(options) {
					t.Fatalf("frame %d of %d: %s: flags %x, want %x; sequence number %d, want %d", i, len(s.frames), p, th.Flags(), wantFlags, th.SequenceNumber(), seq+uint32(len(got)))
				}
				if n := len(p.Payload); n > int(mss) || !last && n != int(mss) || len(b) < minEthernet {
					t.Fatalf("frame %d of %d: %d bytes at an MSS of %d, %d in all", i, len(s.frames), n, mss, len(b))
				}
				if len(fr.Body) > 128 {
					t.Fatalf("frame %d is in %d pieces", i, len(fr.Body))
				}
				got = append(got, p.Payload...)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%d bytes in %d frames, want %d", len(got), len(s.frames), len(want))
			}
			if !v6 && len(ids) != len(s.frames) {
				t.Fatalf("%d frames have %d IDs", len(s.frames), len(ids))
			}
		}
	})
}

// Acknowledgements that say more than one number are never kept back.
func TestAckHoldKeepsPureAcksOnly(t *testing.T) {
	ackOf := func(ack uint32, opts ...byte) *stack.PacketBuffer {
		return ofPieces(false, header.TCPFields{SrcPort: 80, DstPort: 1000, SeqNum: 1, AckNum: ack, Flags: header.TCPFlagAck, WindowSize: 10}, opts, 0, nil)
	}
	stamps := []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1}
	sack := []byte{1, 1, 5, 10, 0, 0, 1, 0, 0, 0, 2, 0}
	for _, tt := range []struct {
		name string
		acks []*stack.PacketBuffer
		want []uint32 // sent at once
		left uint32   // waits; 0: none
	}{
		{"newer", []*stack.PacketBuffer{ackOf(100), ackOf(200), ackOf(300)}, nil, 300},
		{"with timestamps", []*stack.PacketBuffer{ackOf(100, stamps...), ackOf(200, stamps...)}, nil, 200},
		{"duplicates", []*stack.PacketBuffer{ackOf(100), ackOf(100)}, []uint32{100, 100}, 0},
		{"a SACK block alone", []*stack.PacketBuffer{ackOf(100, sack...), ackOf(100, sack...)}, []uint32{100, 100}, 0},
		{"far ahead", []*stack.PacketBuffer{ackOf(100), ackOf(100 + ackMost)}, []uint32{100 + ackMost}, 0},
		{"round the end of numbers", []*stack.PacketBuffer{ackOf(0xffffff00), ackOf(50)}, nil, 50},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var h ackHold
			var sent []uint32
			send := func(p *stack.PacketBuffer) {
				sent = append(sent, header.TCP(p.TransportHeader().Slice()).AckNumber())
			}
			for _, p := range tt.acks {
				h.pass(p, send)
				p.DecRef()
			}
			if !slices.Equal(sent, tt.want) {
				t.Errorf("%d were sent at once, want %d", sent, tt.want)
			}
			sent = nil
			h.releaseAll(send)
			if tt.left == 0 && len(sent) > 0 || tt.left != 0 && !slices.Equal(sent, []uint32{tt.left}) || h.n != 0 {
				t.Errorf("%d waited (%d counted), want %d", sent, h.n, tt.left)
			}
		})
	}
}

// Other guests' frames fill a part of the queue only, which is given back with them.
func TestQueueOfOthers(t *testing.T) {
	drops := 0
	q := newQueue(func() { drops++ })
	frame := item{raw: link.NewFrame(make([]byte, 1500)), size: 1500}
	other := frame
	other.other = true
	for range queueLimit / 1500 {
		q.push(other)
	}
	if n := q.bytes.Load(); n > queueLimit/othersPart || n < queueLimit/othersPart-2*(1500+itemCost) || n != q.others.Load() || q.long() {
		t.Errorf("%d bytes of others' wait, want up to %d", n, queueLimit/othersPart)
	}
	was := drops
	q.push(frame)
	if drops != was {
		t.Error("a frame of the gateway's was dropped for others'")
	}
	q.done(q.grab(nil))
	if q.bytes.Load() != 0 || q.others.Load() != 0 {
		t.Errorf("%d bytes, %d of others' are left", q.bytes.Load(), q.others.Load())
	}
	q.push(other)
	q.close()
	if q.bytes.Load() != 0 || q.others.Load() != 0 {
		t.Errorf("%d bytes, %d of others' are left after close", q.bytes.Load(), q.others.Load())
	}
}

// What the stack keeps of small frames does not keep the memory that they were read into.
func TestSmallFramesKeepNoChunk(t *testing.T) {
	for _, tt := range []struct {
		size int
		kept bool
	}{{100, false}, {1500, false}, {9000, false}, {copyBelow, false}, {copyBelow + 1, true}, {65000, true}} {
		for _, coalesce := range []bool{false, true} {
			b := newBatch()
			n := &nic{dispatcher: &heard{}}
			ip := backendtest.Build(backendtest.IPv4{Src: netip.MustParseAddr("10.0.2.15"), Dst: netip.MustParseAddr("198.51.100.1")},
				backendtest.TCP{SrcPort: 1, DstPort: 2, Flags: "A"}, backendtest.Payload(make([]byte, tt.size-40)))
			b.Append(ip)
			b.Take(0, len(ip))
			var g gro
			if !coalesce || !g.add(n, b, etherIPv4, ip[:60], b.Frames[0]) {
				n.deliver(header.IPv4ProtocolNumber, b, b.Frames[0])
			}
			g.flushAll(n, b)
			kept := false
			b.Pieces(b.Frames[0], func(c *link.Chunk, _ int, _ []byte) { kept = kept || c.Kept })
			if kept != tt.kept {
				t.Errorf("%d bytes, coalescing %v: memory kept is %v, want %v", tt.size, coalesce, kept, tt.kept)
			}
			b.Release()
		}
	}
}
