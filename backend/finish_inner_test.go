package backend

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
)

// finished does what a kernel would do with a frame that is left unfinished.
func finished(t testing.TB, f link.Frame) (out []link.Frame) {
	t.Helper()
	var b link.Batch
	raw := f.AppendTo(nil)
	b.Append(raw)
	b.Take(0, len(raw))
	s := b.Frames[0]
	if !f.Offload().Fits(len(raw)) {
		t.Fatalf("%+v for a frame of %d bytes", f.Offload(), len(raw))
	}
	if f.Offload().Kind == 0 {
		p := &port{net: &Network{}, batch: &b, offload: f.Offload()}
		if !p.sum(packetOf(binary.BigEndian.Uint16(raw[12:]), raw[ethLen:min(len(raw), headLen)]), s) {
			t.Fatal("no sum")
		}
		return []link.Frame{link.NewFrame(b.AppendTo(nil, s))}
	}
	kind := binary.BigEndian.Uint16(raw[12:])
	hl, th, total, ok := segmentOf(kind, raw[ethLen:min(len(raw), headLen)], s.From(ethLen))
	if !ok || int(f.Offload().Header) != ethLen+hl+th || f.Offload().Kind != kindOf(kind == etherIPv6) {
		t.Fatalf("%v: %+v", ok, f.Offload())
	}
	var fin finisher
	fin.segments(&b, s, ethLen, hl, th, total, int(f.Offload().Size), kind == etherIPv6, func() {
		for _, x := range fin.frames {
			out = append(out, link.NewFrame(x.AppendTo(nil)))
		}
	})
	return out
}

// What a wire takes unfinished is the same packet once it is finished.
func TestSplitUnfinished(t *testing.T) {
	ts := []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	const all = header.TCPFlagAck | header.TCPFlagPsh | header.TCPFlagFin
	for _, x := range []tcpPacket{
		{size: 0, flags: header.TCPFlagAck},
		{size: 1, flags: all},
		{size: 6, flags: all},
		{size: 512, flags: all}, {size: 513, flags: all},
		{size: 1448, mss: 1448, flags: all, options: ts},
		{size: 1449, mss: 1448, flags: all, options: ts},
		{size: 64000, mss: 1448, flags: all, options: ts, views: []int{1, 1447, 3, 20000, 1, 1, 1}},
		{size: 64000, mss: 1449, flags: all, views: []int{4096, 4096, 4095, 1}},
		{size: 3000, mss: 8, flags: all},
		{size: 30000, mss: 1000, flags: all, seq: 0xffffff00},
		{size: 60000, mss: 1460, flags: all, views: bytesToInts(bytes.Repeat([]byte{200, 7}, 290))},
	} {
		for _, v6 := range []bool{false, true} {
			for _, takes := range []link.Offloads{link.Checksums, link.Checksums | link.Segments} {
				x.v6 = v6
				t.Run(fmt.Sprintf("%d bytes by %d, ipv6 %v, takes %d", x.size, x.mss, v6, takes), func(t *testing.T) {
					s := splitter{takes: takes, overlap: 6}
					for range 2 {
						s.reset()
						pkt := x.build()
						s.add(pkt, splitDst, splitSrc)
						if takes&link.Segments != 0 && len(s.frames) != 1 {
							t.Fatalf("%d frames", len(s.frames))
						}
						var out []link.Frame
						for _, f := range s.frames {
							out = append(out, finished(t, f)...)
						}
						x.check(t, out)
						pkt.DecRef()
					}
				})
			}
		}
	}
}

// FuzzFinish: whatever a guest's kernel says of a frame, what comes out is whole, no longer than it may be, and from the
// frame; or it is refused.
func FuzzFinish(f *testing.F) {
	frame := func(v6 bool, n int) []byte {
		x := tcpPacket{size: n, flags: header.TCPFlagAck, v6: v6}
		pkt := x.build()
		defer pkt.DecRef()
		var s splitter
		s.add(pkt, splitDst, splitSrc)
		return s.frames[0].AppendTo(nil)
	}
	f.Add(frame(false, 3000), uint8(1), uint8(1), uint16(54), uint16(1460), uint16(34), uint16(16), uint16(1500))
	f.Add(frame(true, 3000), uint8(1), uint8(4), uint16(74), uint16(1440), uint16(54), uint16(16), uint16(1500))
	f.Add(frame(false, 100), uint8(1), uint8(0), uint16(0), uint16(0), uint16(34), uint16(16), uint16(1500))
	f.Add(frame(false, 100), uint8(1), uint8(1), uint16(0), uint16(0), uint16(65535), uint16(65535), uint16(1500))
	f.Add(frame(true, 500), uint8(1), uint8(4), uint16(74), uint16(8), uint16(54), uint16(16), uint16(1280))
	ps := hotPorts(f, 2)
	p, to := ps[0], ps[1]
	p.net.seg.learnMAC(to, mac{2, 0, 0, 0, 0, 2})
	f.Fuzz(func(t *testing.T, raw []byte, flags, kind uint8, hdr, size, start, at, mtu uint16) {
		if len(raw) < ethLen || len(raw) > link.MaxFrame {
			return
		}
		o := link.Offload{Flags: flags, Kind: kind, Header: hdr, Size: size, SumStart: start, SumAt: at}
		if !o.Fits(len(raw)) {
			return
		}
		to.carries = max(int(mtu), 1280)
		raw = append([]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}, raw[12:]...)
		p.batch.Next()
		p.batch.Append(raw)
		p.batch.TakeUnfinished(0, len(raw), o)
		p.gives, p.offload = link.Told|link.Checksums|link.Segments, o
		s := p.batch.Frames[0]
		h := p.batch.Head(s, headLen, p.scratch[:])
		on := !p.leaves() || p.finish(packetOf(binary.BigEndian.Uint16(h[12:]), h[ethLen:]), s, mac{2, 0, 0, 0, 0, 2})
		items := to.queue.grab(nil)
		if on && len(items) > 0 {
			t.Fatal("sent on and to be carried on")
		}
		for _, i := range items {
			pk := backendtest.Parse(i.raw.AppendTo(nil))
			if err := backendtest.Good()(pk); err != nil {
				t.Fatalf("%s: %v", pk, err)
			}
			if n := i.raw.Len(); n > max(ethLen+to.mtu(), minEthernet) {
				t.Fatalf("%d bytes for an MTU of %d", n, to.mtu())
			}
		}
		to.queue.done(items)
	})
}

// A partial checksum is no way to write over what a frame was judged by.
func TestSumStaysInItsPlace(t *testing.T) {
	v4 := func(proto byte, first byte, fragment uint16) []byte {
		ip := make([]byte, 60)
		ip[0], ip[9] = first, proto
		binary.BigEndian.PutUint16(ip[6:], fragment)
		return ip
	}
	v6 := func(proto byte) []byte {
		ip := make([]byte, 60)
		ip[0], ip[6] = 0x60, proto
		return ip
	}
	for _, tt := range []struct {
		name      string
		kind      uint16
		ip        []byte
		start, at int
		may       bool
	}{
		{"TCP", etherIPv4, v4(6, 0x45, 0), 20, 36, true},
		{"TCP behind options", etherIPv4, v4(6, 0x47, 0), 28, 44, true},
		{"TCP in IPv6", etherIPv6, v6(6), 40, 56, true},
		{"UDP", etherIPv4, v4(17, 0x45, 0), 20, 26, true},
		{"UDP in IPv6", etherIPv6, v6(17), 40, 46, true},
		{"a tunnel's", etherIPv4, v4(17, 0x45, 0), 70, 86, true},
		{"the source address", etherIPv4, v4(6, 0x45, 0), 0, 12, false},
		{"the source address, from TCP's start", etherIPv4, v4(6, 0x45, 0), 20, 12, false},
		{"the source address of IPv6", etherIPv6, v6(6), 0, 22, false},
		{"a port", etherIPv4, v4(17, 0x45, 0), 20, 20, false},
		{"behind no options", etherIPv4, v4(6, 0x47, 0), 20, 36, false},
		{"a header too short", etherIPv4, v4(6, 0x41, 0), 20, 36, false},
		{"a later fragment", etherIPv4, v4(17, 0x45, 100), 20, 26, false},
		{"a neighbour's address", etherIPv6, v6(58), 40, 56, false},
		{"ICMP", etherIPv4, v4(1, 0x45, 0), 20, 22, false},
		{"ARP", 0x0806, make([]byte, 46), 0, 14, false},
		{"a short packet", etherIPv4, make([]byte, 10), 20, 36, false},
	} {
		if got := mayPutSum(tt.kind, tt.ip, tt.start, tt.at); got != tt.may {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
