package backend

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
)

var (
	splitDst = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	splitSrc = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

// segment is a TCP packet as the stack sends it.
type tcpPacket struct {
	v6      bool
	size    int    // of the payload
	views   []int  // how it is cut; the rest is the last
	mss     int    // 0: no segmentation offload
	options []byte // of TCP
	flags   header.TCPFlags
	seq     uint32
	urgent  uint16
}

func (x tcpPacket) payload() []byte {
	b := make([]byte, x.size)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func (x tcpPacket) build() *stack.PacketBuffer {
	var data buffer.Buffer
	rest := x.payload()
	for _, n := range x.views {
		n = min(n, len(rest))
		if n > 0 {
			data.Append(buffer.NewViewWithData(rest[:n]))
		}
		rest = rest[n:]
	}
	if len(rest) > 0 {
		data.Append(buffer.NewViewWithData(rest))
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: 120, Payload: data})
	th := header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize + len(x.options)))
	th.Encode(&header.TCPFields{SrcPort: 80, DstPort: 40000, SeqNum: x.seq, AckNum: 99, DataOffset: uint8(len(th)), Flags: x.flags, WindowSize: 1000, UrgentPointer: x.urgent})
	copy(th[header.TCPMinimumSize:], x.options)
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	if x.v6 {
		h := header.IPv6(pkt.NetworkHeader().Push(header.IPv6MinimumSize))
		h.Encode(&header.IPv6Fields{PayloadLength: uint16(len(th) + x.size), TransportProtocol: header.TCPProtocolNumber, HopLimit: 64,
			SrcAddr: toTCPIP(netip.MustParseAddr("2001:db8::1")), DstAddr: toTCPIP(netip.MustParseAddr("fd00::15"))})
		pkt.NetworkProtocolNumber = header.IPv6ProtocolNumber
	} else {
		h := header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize))
		h.Encode(&header.IPv4Fields{TotalLength: uint16(len(h) + len(th) + x.size), ID: 0xfffe, TTL: 64, Protocol: uint8(header.TCPProtocolNumber), Flags: header.IPv4FlagDontFragment,
			SrcAddr: toTCPIP(netip.MustParseAddr("198.51.100.1")), DstAddr: toTCPIP(netip.MustParseAddr("10.0.2.15"))})
		h.SetChecksum(^h.CalculateChecksum())
		pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	}
	if x.mss > 0 {
		pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: uint16(x.mss), MaxSize: 65535}
	}
	return pkt
}

// check verifies the frames of x as a guest would see them.
func (x tcpPacket) check(t testing.TB, frames []link.Frame) {
	t.Helper()
	var got []byte
	ids := map[uint16]bool{}
	want := x.payload()
	most := x.size
	if x.mss > 0 {
		most = x.mss
	}
	for i, f := range frames {
		b := f.AppendTo(nil)
		if len(b) != f.Len() || len(b) < minEthernet {
			t.Fatalf("frame %d has %d bytes, says %d", i, len(b), f.Len())
		}
		p := backendtest.Parse(b)
		if err := backendtest.All(backendtest.Good(), backendtest.FromMAC(splitSrc), backendtest.ToMAC(splitDst))(p); err != nil {
			t.Fatalf("frame %d: %s: %v", i, p, err)
		}
		last := i == len(frames)-1
		if p.TCP == nil || p.TCP.Seq != x.seq+uint32(len(got)) || p.TCP.Ack != 99 || p.TCP.Window != 1000 || p.TCP.Urgent != x.urgent || !bytes.Equal(p.TCP.Options, x.options) {
			t.Fatalf("frame %d: %s: not the header of the packet", i, p)
		}
		flags := x.flags
		if !last {
			flags &^= header.TCPFlagFin | header.TCPFlagPsh
			if len(p.Payload) != most {
				t.Fatalf("frame %d carries %d bytes, want %d", i, len(p.Payload), most)
			}
		}
		if header.TCPFlags(b[ethLen+ipLen(p)+13]) != flags {
			t.Fatalf("frame %d: flags %s, want %v", i, p.TCP.Flags, flags)
		}
		if p.Type == backendtest.EtherIPv4 {
			id := binary.BigEndian.Uint16(b[ethLen+4:])
			if ids[id] || b[ethLen+6] != 0x40 {
				t.Fatalf("frame %d: identification %d again, flags %#x", i, id, b[ethLen+6])
			}
			ids[id] = true
		}
		used := ethLen + ipLen(p) + int(p.TCP.DataOffset)*4 + len(p.Payload)
		for _, c := range b[used:] {
			if c != 0 {
				t.Fatalf("frame %d is padded with something", i)
			}
		}
		got = append(got, p.Payload...)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes came out, want %d, or others", len(got), len(want))
	}
	if n := max(1, (x.size+max(most, 1)-1)/max(most, 1)); len(frames) != n {
		t.Fatalf("%d frames, want %d", len(frames), n)
	}
}

func ipLen(p *backendtest.Packet) int {
	if p.Type == backendtest.EtherIPv6 {
		return header.IPv6MinimumSize
	}
	return header.IPv4MinimumSize
}

func TestSplit(t *testing.T) {
	ts := []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	const all = header.TCPFlagAck | header.TCPFlagPsh | header.TCPFlagFin
	for _, x := range []tcpPacket{
		{size: 0, flags: header.TCPFlagAck},
		{size: 0, flags: header.TCPFlagSyn | header.TCPFlagAck, options: []byte{2, 4, 5, 180, 4, 2, 1, 1}},
		{size: 0, flags: header.TCPFlagRst},
		{size: 1, flags: all},
		{size: 5, flags: all, options: ts}, // 59 bytes of frame
		{size: 6, flags: all},
		{size: 511, flags: all}, {size: 512, flags: all}, {size: 513, flags: all}, // where copying ends
		{size: 1448, mss: 1448, flags: all, options: ts},
		{size: 1449, mss: 1448, flags: all, options: ts},
		{size: 2897, mss: 1448, flags: all, options: ts},
		{size: 64000, mss: 1448, flags: all, options: ts, views: []int{1, 1447, 3, 20000, 1, 1, 1}},
		{size: 64000, mss: 1449, flags: all, views: []int{4096, 4096, 4095, 1}}, // odd segments: checksums run over borders
		{size: 64000, mss: 65535, flags: all},
		{size: 3000, mss: 1, flags: all},
		{size: 3000, mss: 7, flags: header.TCPFlagAck | header.TCPFlagUrg, urgent: 9},
		{size: 30000, mss: 1000, flags: all, seq: 0xffffff00}, // wraps
		{size: 60000, mss: 1460, flags: all, views: bytesToInts(bytes.Repeat([]byte{200, 7}, 290))},
	} {
		for _, v6 := range []bool{false, true} {
			x.v6 = v6
			t.Run(fmt.Sprintf("%d bytes by %d, options %d, ipv6 %v", x.size, x.mss, len(x.options), v6), func(t *testing.T) {
				var s splitter
				for i := range 4 { // a second time from the same memory
					s.overlap = i / 2 * 12
					s.reset()
					pkt := x.build()
					s.add(pkt, splitDst, splitSrc)
					for _, f := range s.frames { // as the link does
						clear(f.Head[s.overlap:link.Headroom])
					}
					x.check(t, s.frames)
					pkt.DecRef()
				}
			})
		}
	}
}

func bytesToInts(b []byte) []int {
	var l []int
	for _, c := range b {
		l = append(l, int(c))
	}
	return l
}

// Many packets between two resets: more headers than the arena holds.
func TestSplitFullArena(t *testing.T) {
	var s splitter
	s.reset()
	x := tcpPacket{size: 60000, mss: 100, flags: header.TCPFlagAck}
	var ends []int
	for range 10 {
		pkt := x.build()
		defer pkt.DecRef()
		s.add(pkt, splitDst, splitSrc)
		ends = append(ends, len(s.frames))
	}
	from := 0
	for _, to := range ends {
		x.check(t, s.frames[from:to])
		from = to
	}
}

func FuzzSplitPacket(f *testing.F) {
	f.Add(uint16(1), uint16(0), uint32(0), uint8(0), []byte{}, false)
	f.Add(uint16(1449), uint16(1448), uint32(1), uint8(0x19), []byte{3, 200}, true)
	f.Add(uint16(65000), uint16(1460), uint32(0xffffffff), uint8(0x19), bytes.Repeat([]byte{255, 1}, 100), false)
	f.Add(uint16(512), uint16(256), uint32(7), uint8(0x3f), []byte{255, 255, 1}, true)
	f.Fuzz(func(t *testing.T, size, mss uint16, seq uint32, flags uint8, cuts []byte, v6 bool) {
		if mss > 0 && int(size)/int(mss) > 2000 || size > 65000 {
			return
		}
		x := tcpPacket{v6: v6, size: int(size), mss: int(mss), seq: seq, flags: header.TCPFlags(flags & 0x3f), views: bytesToInts(cuts)}
		pkt := x.build()
		defer pkt.DecRef()
		var s splitter
		s.reset()
		s.add(pkt, splitDst, splitSrc)
		x.check(t, s.frames)
	})
}

func TestSplitAllocs(t *testing.T) {
	var s splitter
	pkt := tcpPacket{size: 60000, mss: 1448, flags: header.TCPFlagAck}.build()
	defer pkt.DecRef()
	if n := testing.AllocsPerRun(200, func() { s.reset(); s.add(pkt, splitDst, splitSrc) }); n > 1 {
		t.Errorf("%v allocations for 42 frames", n)
	}
}

func TestQueue(t *testing.T) {
	raw := func(n int) item { return item{raw: link.Frame{Head: make([]byte, 16)}, size: n} }
	t.Run("is bounded, and what does not fit is counted", func(t *testing.T) {
		lost := 0
		q := newQueue(func() { lost++ })
		n := 0
		for ; lost == 0; n++ {
			q.push(raw(65536))
		}
		if got := q.bytes.Load(); got > queueLimit || got < queueLimit-70000 {
			t.Errorf("%d bytes wait, the limit is %d", got, queueLimit)
		}
		items := q.take(nil)
		if len(items) != n-1 {
			t.Errorf("%d items, want %d", len(items), n-1)
		}
		q.push(raw(65536)) // taken is not yet written: it still counts
		if lost != 2 {
			t.Errorf("%d lost, want 2", lost)
		}
		q.done(items)
		if q.bytes.Load() != 0 {
			t.Errorf("%d bytes are left", q.bytes.Load())
		}
		q.push(raw(1))
		q.close()
		q.push(raw(1))
		if lost != 2 || q.take(nil) != nil || q.bytes.Load() != 0 {
			t.Errorf("after close: %d lost, %d bytes", lost, q.bytes.Load())
		}
	})
	t.Run("of tiny frames is bounded as well", func(t *testing.T) {
		lost, n := 0, 0
		q := newQueue(func() { lost++ })
		for ; lost == 0; n++ {
			q.push(raw(60))
		}
		if n > queueLimit/itemCost {
			t.Errorf("%d frames wait", n)
		}
		q.close()
	})
	t.Run("wakes who waits", func(t *testing.T) {
		q := newQueue(func() {})
		got := make(chan int)
		go func() {
			got <- len(q.take(nil))
			got <- len(q.take(nil))
		}()
		q.push(raw(1))
		if n := <-got; n != 1 {
			t.Errorf("%d items, want 1", n)
		}
		q.close()
		if n := <-got; n != 0 {
			t.Errorf("%d items after close", n)
		}
	})
}
