package backend

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
)

// plugHotAs makes a port of a kind, without a wire.
func plugHotAs(t testing.TB, n *Network, c PortConfig) *port {
	t.Helper()
	_, far := link.Pipe(1)
	p, err := n.newPort(n.ctx, far, far, c)
	if err != nil {
		t.Fatal(err)
	}
	n.seg.add(p)
	t.Cleanup(func() {
		far.Close()
		p.stop()
		p.queue.close()
		p.udp.close()
		n.seg.remove(p)
		p.closeStack()
		p.waitStack()
		p.batch.Release()
		p.wg.Wait()
	})
	return p
}

// What the gateway leaves to a guest's wire to finish is copied finished, or as it is to a wire that takes it.
func TestCopyDown(t *testing.T) {
	all := link.Checksums | link.Segments
	for _, v6 := range []bool{false, true} {
		for _, takes := range []link.Offloads{0, link.Checksums, all} {
			for _, copies := range []link.Offloads{0, link.Checksums, all} {
				t.Run(fmt.Sprintf("ipv6 %v, guest %d, copy %d", v6, takes, copies), func(t *testing.T) {
					p := hotPort(t)
					q := plugHotAs(t, p.net, PortConfig{Mirror: true})
					p.split.takes, q.split.takes = takes, copies
					x := tcpPacket{size: 30000, mss: 1400, flags: header.TCPFlagAck, v6: v6}
					pkt := x.build()
					p.nic.WritePackets(listOf(pkt))
					items := p.queue.grab(nil)
					p.compose(items, p.cut)
					defer func() { p.queue.done(items) }()
					var payload []byte
					mine := q.queue.grab(nil)
					for _, i := range mine {
						if (takes&copies&link.Segments) != 0 != (i.raw.Len() > 2000) || i.raw.Len() > 2000 && !i.left {
							t.Fatalf("a copy of %d bytes, left %v", i.raw.Len(), i.left)
						}
						b := i.raw.AppendTo(nil)
						if i.left {
							o := i.raw.Offload()
							if !o.Fits(len(b)) || o.Whole() {
								t.Fatalf("%+v", o)
							}
						} else if pk := backendtest.Parse(b); backendtest.Good()(pk) != nil {
							t.Fatalf("%s: %v", pk, pk.Wrong)
						}
						pk := backendtest.Parse(b)
						payload = append(payload, pk.Payload...)
					}
					q.queue.done(mine)
					var want []byte
					for _, f := range p.split.frames {
						want = append(want, backendtest.Parse(f.AppendTo(nil)).Payload...)
					}
					if len(want) != 30000 || !bytes.Equal(payload, want) {
						t.Fatalf("%d bytes were copied of %d", len(payload), len(want))
					}
				})
			}
		}
	}
}

func listOf(pkt *stack.PacketBuffer) stack.PacketBufferList {
	var l stack.PacketBufferList
	l.PushBack(pkt)
	return l
}

// plainPorts are ports of a network without an uplink.
func plainPorts(t testing.TB, wire bool, count int) []*port {
	t.Helper()
	n, err := New(Config{NoUplink: true, Wire: wire, Logger: slog.New(slog.DiscardHandler), MTU: 65520})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	var ps []*port
	for range count {
		ps = append(ps, plugHotAs(t, n, PortConfig{Name: "hot"}))
	}
	return ps
}

// FuzzWire: whatever one end of a wire sends, and whatever its kernel says of it, comes to the other once and as it was, or
// finished, or in pieces that fit; or it is counted.
func FuzzWire(f *testing.F) { fuzzPlain(f, true) }

// FuzzSwitch is FuzzWire with a switch between two.
func FuzzSwitch(f *testing.F) { fuzzPlain(f, false) }

func fuzzPlain(f *testing.F, wire bool) {
	frame := func(v6 bool, n int, tags ...byte) []byte {
		x := tcpPacket{size: n, flags: header.TCPFlagAck, v6: v6}
		pkt := x.build()
		defer pkt.DecRef()
		var s splitter
		s.add(pkt, splitDst, splitSrc)
		b := s.frames[0].AppendTo(nil)
		for _, id := range tags {
			b = append(b[:12:12], append([]byte{0x81, 0, 0, id}, b[12:]...)...)
		}
		return b
	}
	f.Add(frame(false, 300), uint8(1), uint8(1), uint16(54), uint16(100), uint16(34), uint16(16), uint16(150), uint8(0))
	f.Add(frame(true, 300), uint8(1), uint8(4), uint16(74), uint16(100), uint16(54), uint16(16), uint16(1500), uint8(0))
	f.Add(frame(false, 300, 7), uint8(1), uint8(1), uint16(58), uint16(100), uint16(38), uint16(16), uint16(150), uint8(1))
	f.Add(frame(true, 300, 7, 8), uint8(1), uint8(4), uint16(82), uint16(100), uint16(62), uint16(16), uint16(1500), uint8(1))
	f.Add(frame(false, 100), uint8(1), uint8(0), uint16(0), uint16(0), uint16(34), uint16(16), uint16(1500), uint8(0))
	f.Add(frame(false, 100), uint8(0), uint8(0), uint16(0), uint16(0), uint16(0), uint16(0), uint16(1500), uint8(2))
	f.Add(frame(false, 300), uint8(0), uint8(0), uint16(0), uint16(0), uint16(0), uint16(0), uint16(150), uint8(2))
	f.Add([]byte{1, 0x80, 0xc2, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x88, 8, 0, 1, 0xff, 0xff}, uint8(0), uint8(0), uint16(0), uint16(0), uint16(0), uint16(0), uint16(1500), uint8(0))
	f.Add([]byte{1, 2, 3}, uint8(0), uint8(0), uint16(0), uint16(0), uint16(0), uint16(0), uint16(1500), uint8(0))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x81, 0}, uint8(1), uint8(0), uint16(0), uint16(0), uint16(14), uint16(0), uint16(1500), uint8(0))
	ps := plainPorts(f, wire, 2)
	p, to := ps[0], ps[1]
	f.Fuzz(func(t *testing.T, raw []byte, flags, kind uint8, hdr, size, start, at, mtu uint16, says uint8) {
		if len(raw) == 0 || len(raw) > link.MaxFrame {
			return
		}
		o := link.Offload{Flags: flags, Kind: kind, Header: hdr, Size: size, SumStart: start, SumAt: at}
		if !o.Fits(len(raw)) {
			return
		}
		to.carries = max(int(mtu), 100) // short, so that inputs are
		to.split.takes = [3]link.Offloads{0, link.Told | link.Checksums | link.Segments, 0}[says%3]
		dropped := func() (n uint64) {
			for _, x := range ps {
				for i := range x.drops {
					n += x.drops[i].Load()
				}
			}
			return n
		}
		before := dropped()
		p.batch.Next()
		p.batch.Offloads = p.batch.Offloads[:0]
		p.batch.Append(raw)
		switch p.gives = 0; says % 3 {
		case 2: // nothing tells
			p.gives = link.Checksums | link.Segments
			p.batch.Take(0, len(raw))
			o = link.Offload{}
		default:
			p.gives = link.Told | link.Checksums | link.Segments
			p.batch.TakeUnfinished(0, len(raw), o)
		}
		p.carry()
		items := to.queue.grab(nil)
		defer func() { to.queue.done(items) }()
		if len(items) == 0 && dropped() == before {
			if to.net.cfg.Wire || !to.net.seg.hasMAC(macOf(append(raw, make([]byte, 6)...)), p) {
				t.Fatalf("a frame of %d bytes is gone", len(raw))
			}
		}
		for _, i := range items {
			if n := i.raw.Len(); n > max(ethLen+to.carries, minEthernet) {
				t.Fatalf("%d bytes where %d are carried", n, to.carries)
			}
			if i.left && (to.split.takes == 0 || !i.raw.Offload().Fits(i.raw.Len())) {
				t.Fatalf("%+v was left to do", i.raw.Offload())
			}
		}
		if o.Whole() && says%3 != 2 && len(items) == 1 && !bytes.HasPrefix(items[0].raw.AppendTo(nil), raw) {
			t.Fatal("another frame came")
		}
	})
}

// hasMAC says that a MAC lives on p.
func (s *segment) hasMAC(m mac, p *port) bool { return s.at(m) == p }

// BenchmarkForwardPlain is BenchmarkForward without an uplink.
func BenchmarkForwardPlain(b *testing.B) {
	for _, wire := range []bool{false, true} {
		for _, size := range []int{64, 1448, 65000} {
			b.Run(fmt.Sprintf("wire %v/%d", wire, size), func(b *testing.B) {
				ps := plainPorts(b, wire, 2)
				from, to := ps[0], ps[1]
				toMAC := mac{2, 0, 0, 0, 0, 0x16}
				from.net.seg.learnMAC(to, toMAC)
				one := make([]byte, 14+40+size)
				copy(one, toMAC[:])
				copy(one[6:], hotMAC)
				binary.BigEndian.PutUint16(one[12:], 0x88b5)
				load(from.batch, [][]byte{one, one, one, one, one, one, one, one})
				var items []item
				b.ReportAllocs()
				for b.Loop() {
					from.carry()
					items = to.queue.grab(items)
					to.queue.done(items)
				}
				perFrame(b, 8)
			})
		}
	}
}
