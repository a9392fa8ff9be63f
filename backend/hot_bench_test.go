package backend

// What each frame costs on its way, station by station, in time and allocations. Time is shown by the benchmarks and
// judged by nobody; allocations are kept by TestAllocs.

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

// deaf is a stack that hears nothing.
type deaf struct{ packets int }

func (d *deaf) DeliverNetworkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) { d.packets++ }
func (d *deaf) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer)    {}

// hotPort is a port without a wire.
func hotPort(t testing.TB) *port {
	t.Helper()
	return hotPorts(t, 1)[0]
}

func hotPorts(t testing.TB, count int) []*port {
	t.Helper()
	n, err := New(Config{Logger: slog.New(slog.DiscardHandler), Egress: &backendtest.Egress{}, MTU: 65520})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return plugHot(t, n, count)
}

// plugHot makes ports of a network without wires.
func plugHot(t testing.TB, n *Network, count int) []*port {
	t.Helper()
	var ps []*port
	for range count {
		_, far := link.Pipe(1)
		p, err := n.newPort(n.ctx, far, far, PortConfig{Name: "hot"})
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
			p.stack.Close()
			p.stack.Wait()
			p.batch.Release()
			p.wg.Wait()
		})
		ps = append(ps, p)
	}
	return ps
}

// family is what differs between IPv4 and IPv6.
type hotFamily struct {
	v6        bool
	gw, guest netip.Addr
	proto     tcpip.NetworkProtocolNumber
}

var hotFamilies = []hotFamily{
	{false, netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("10.0.2.15"), ipv4.ProtocolNumber},
	{true, netip.Addr{}, netip.Addr{}, ipv6.ProtocolNumber}, // of the network's prefix
}

func (f hotFamily) String() string {
	if f.v6 {
		return "ipv6"
	}
	return "ipv4"
}

func (f hotFamily) in(n *Network) hotFamily {
	if f.v6 {
		f.gw = n.cfg.Gateway6
		b := n.cfg.Prefix6.Addr().As16()
		b[15] = 0x15
		f.guest = netip.AddrFrom16(b)
	}
	return f
}

var hotMAC = []byte{2, 0, 0, 0, 0, 0x15}

// frame is one of the guest's, to the gateway's port 80.
func (f hotFamily) frame(n *Network, s backendtest.TCP, size int) []byte {
	var ip backendtest.Layer = backendtest.IPv4{Src: f.guest, Dst: f.gw}
	if f.v6 {
		ip = backendtest.IPv6{Src: f.guest, Dst: f.gw}
	}
	if s.DstPort == 0 {
		s.DstPort = 80
	}
	return backendtest.Build(backendtest.Ethernet{Src: hotMAC, Dst: n.gatewayMAC[:]}, ip, s, backendtest.Payload(make([]byte, size)))
}

// load puts frames in the batch, back to back with room for a length before each, as a link does.
func load(b *link.Batch, frames [][]byte) {
	b.Next()
	for _, f := range frames {
		b.Append(make([]byte, 4))
		b.Append(f)
		b.Take(4, len(f))
	}
}

var stamps = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}

// hotBatches are what one read brings.
func hotBatches(n *Network, f hotFamily) map[string][][]byte {
	f = f.in(n)
	seg := func(port uint16, seq, ack uint32, size int) []byte {
		return f.frame(n, backendtest.TCP{SrcPort: port, Seq: seq, Ack: ack, Flags: "A", Window: 1000, Options: stamps}, size)
	}
	m := map[string][][]byte{}
	for i := range uint32(170) {
		m["stream"] = append(m["stream"], seg(1000, i*1448, 1, 1448))
		m["8 streams"] = append(m["8 streams"], seg(1000+uint16(i/4%8), (i/32*4+i%4)*1448, 1, 1448))
	}
	for i := range uint32(4) {
		m["jumbo"] = append(m["jumbo"], seg(1000, i*65000, 1, 65000))
	}
	for i := range uint32(64) {
		m["acks"] = append(m["acks"], seg(1000, 1, 1+i*2896, 0))
		m["small"] = append(m["small"], seg(1000+uint16(i), 1, 1, 64))
	}
	return m
}

var hotNames = []string{"stream", "8 streams", "jumbo", "acks", "small"}

func perFrame(b *testing.B, frames int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(frames), "ns/frame")
}

// everyBatch runs f for each kind of batch, which is in p.batch.
func everyBatch(b *testing.B, f func(b *testing.B, p *port, frames int)) {
	for _, fam := range hotFamilies {
		for _, name := range hotNames {
			b.Run(fmt.Sprintf("%s/%s", name, fam), func(b *testing.B) {
				p := hotPort(b)
				frames := hotBatches(p.net, fam)[name]
				load(p.batch, frames)
				f(b, p, len(frames))
			})
		}
	}
}

func (p *port) hotCoalesce() {
	for _, s := range p.batch.Frames {
		h := p.batch.Head(s, headLen, p.scratch[:])
		p.gro.add(p.nic, p.batch, binary.BigEndian.Uint16(h[12:]), h[ethLen:], s.From(ethLen))
	}
	p.gro.flushAll(p.nic, p.batch)
}

func BenchmarkCoalesce(b *testing.B) {
	everyBatch(b, func(b *testing.B, p *port, frames int) {
		p.nic.Attach(&deaf{})
		b.ReportAllocs()
		for b.Loop() {
			p.hotCoalesce()
		}
		perFrame(b, frames)
	})
}

// BenchmarkCarry is all that a batch goes through but the stack.
func BenchmarkCarry(b *testing.B) {
	everyBatch(b, func(b *testing.B, p *port, frames int) {
		p.nic.Attach(&deaf{})
		b.ReportAllocs()
		for b.Loop() {
			p.carry()
		}
		perFrame(b, frames)
	})
}

// BenchmarkRead is BenchmarkCarry with the copy into the batch and the memory that this takes.
func BenchmarkRead(b *testing.B) {
	for _, name := range []string{"stream", "jumbo"} {
		b.Run(name, func(b *testing.B) {
			p := hotPort(b)
			frames := hotBatches(p.net, hotFamilies[0])[name]
			p.nic.Attach(&deaf{})
			n := 0
			for _, f := range frames {
				n += len(f)
			}
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				p.batch.Next()
				for _, f := range frames {
					p.batch.Append(f)
					p.batch.Take(0, len(f))
				}
				p.carry()
			}
			perFrame(b, len(frames))
		})
	}
}

// hotConn is a conversation between the gateway's stack and a guest that answers as the benchmark says.
type hotConn struct {
	p     *port
	fam   hotFamily
	ep    tcpip.Endpoint
	wq    waiter.Queue
	port  uint16 // the gateway's
	seq   uint32 // the guest's next
	ack   uint32
	items []item
}

func newHotConn(t testing.TB, p *port, fam hotFamily) *hotConn {
	t.Helper()
	fam = fam.in(p.net)
	c := &hotConn{p: p, fam: fam, port: 8080, seq: 1}
	ep, terr := p.stack.NewEndpoint(tcp.ProtocolNumber, fam.proto, &c.wq)
	if terr != nil {
		t.Fatal(terr)
	}
	c.ep = ep
	t.Cleanup(ep.Abort)
	if terr := ep.Bind(fullAddr(netip.AddrPortFrom(fam.gw, c.port))); terr != nil {
		t.Fatal(terr)
	}
	we, up := waiter.NewChannelEntry(waiter.WritableEvents)
	c.wq.EventRegister(&we)
	ep.Connect(fullAddr(netip.AddrPortFrom(fam.guest, 1000)))
	for c.items == nil {
		c.items = p.queue.grab(nil)
		runtime.Gosched()
	}
	c.ack = header.TCP(c.items[0].pkt.TransportHeader().Slice()).SequenceNumber() + 1
	p.queue.done(c.items)
	load(p.batch, [][]byte{fam.frame(p.net, backendtest.TCP{SrcPort: 1000, DstPort: c.port, Seq: 0, Ack: c.ack, Flags: "SA", Window: 65535,
		Options: []byte{2, 4, 255, 180, 1, 3, 3, 7}}, 0)}) // MSS, window scale
	p.carry()
	<-up
	c.wq.EventUnregister(&we)
	return c
}

// batch are segments for the conversation, in p.batch.
func (c *hotConn) batch(count, size int) {
	var frames [][]byte
	for range count {
		frames = append(frames, c.fam.frame(c.p.net, backendtest.TCP{SrcPort: 1000, DstPort: c.port, Ack: c.ack, Flags: "A", Window: 65535}, size))
	}
	load(c.p.batch, frames)
}

// send carries the batch once more, with the numbers that follow, and has it read.
func (c *hotConn) send(size int) {
	p := c.p
	at := ethLen + header.IPv4MinimumSize + 4
	if c.fam.v6 {
		at = ethLen + header.IPv6MinimumSize + 4
	}
	total := 0
	for _, s := range p.batch.Frames {
		var n [4]byte
		binary.BigEndian.PutUint32(p.batch.Head(s.From(at), 4, n[:]), c.seq) // heads do not straddle chunks here, or it shows
		c.seq += uint32(size)
		total += size
	}
	p.carry()
	for got := 0; got < total; {
		r, err := c.ep.Read(io.Discard, tcpip.ReadOptions{})
		if err != nil {
			runtime.Gosched()
			continue
		}
		got += r.Count
	}
	if items := p.queue.grab(c.items); items != nil { // what it acknowledges
		p.queue.done(items)
		c.items = items
	}
}

// BenchmarkCarryStack takes a batch through the stack to who reads the conversation.
func BenchmarkCarryStack(b *testing.B) {
	for _, fam := range hotFamilies {
		for _, tt := range []struct{ count, size int }{{45, 1448}, {7, 9000}, {1, 65000}, {1, 64}} {
			b.Run(fmt.Sprintf("%d of %d/%s", tt.count, tt.size, fam), func(b *testing.B) {
				c := newHotConn(b, hotPort(b), fam)
				c.batch(tt.count, tt.size)
				b.SetBytes(int64(tt.count * tt.size))
				b.ReportAllocs()
				for b.Loop() {
					c.send(tt.size)
				}
				perFrame(b, tt.count)
			})
		}
	}
}

var hotSplits = []struct {
	name string
	x    tcpPacket
}{
	{"64K by 1448", tcpPacket{size: 65160, mss: 1448, options: stamps, flags: header.TCPFlagAck}},
	{"64K by 1448 in 16 pieces", tcpPacket{size: 65160, mss: 1448, options: stamps, flags: header.TCPFlagAck, views: bytesToInts([]byte("................"))}},
	{"jumbo", tcpPacket{size: 65000, mss: 65468, options: stamps, flags: header.TCPFlagAck}},
	{"512", tcpPacket{size: 512, options: stamps, flags: header.TCPFlagAck | header.TCPFlagPsh}},
	{"64", tcpPacket{size: 64, options: stamps, flags: header.TCPFlagAck | header.TCPFlagPsh}},
	{"ack", tcpPacket{options: stamps, flags: header.TCPFlagAck}},
}

func init() {
	for i := range hotSplits[1].x.views {
		hotSplits[1].x.views[i] = 4096
	}
}

func BenchmarkSplit(b *testing.B) {
	for _, tt := range hotSplits {
		for _, v6 := range []bool{false, true} {
			tt.x.v6 = v6
			b.Run(fmt.Sprintf("%s/%s", tt.name, hotFamily{v6: v6}), func(b *testing.B) {
				pkt := tt.x.build()
				defer pkt.DecRef()
				var s splitter
				b.SetBytes(int64(tt.x.size))
				b.ReportAllocs()
				frames := 0
				for b.Loop() {
					s.reset()
					for range 16 { // a batch
						s.add(pkt, splitDst, splitSrc)
					}
					frames = len(s.frames)
				}
				perFrame(b, frames)
			})
		}
	}
}

// BenchmarkSend is the way of the stack's packets: the queue, the splitter, and what was sent is let go of.
func BenchmarkSend(b *testing.B) {
	for _, tt := range hotSplits {
		b.Run(tt.name, func(b *testing.B) {
			p := hotPort(b)
			pkt := tt.x.build()
			defer pkt.DecRef()
			var list stack.PacketBufferList
			for range 16 {
				list.PushBack(pkt.IncRef())
			}
			defer list.Reset()
			cut := p.cut
			var items []item
			frames := 0
			b.ReportAllocs()
			for b.Loop() {
				p.nic.WritePackets(list)
				items = p.queue.grab(items)
				frames = 0
				for rest := items; len(rest) > 0; {
					n, _ := p.compose(rest, cut)
					frames += len(p.split.frames)
					p.queue.done(rest[:n])
					rest = rest[n:]
				}
			}
			perFrame(b, frames)
		})
	}
}

// BenchmarkForward is a frame to another guest.
func BenchmarkForward(b *testing.B) {
	for _, tt := range []struct {
		name string
		size int
	}{{"64", 64}, {"1448", 1448}, {"jumbo", 65000}} {
		b.Run(tt.name, func(b *testing.B) {
			ps := hotPorts(b, 2)
			from, to := ps[0], ps[1]
			toMAC := mac{2, 0, 0, 0, 0, 0x16}
			from.net.seg.learnMAC(to, toMAC)
			one := backendtest.Build(backendtest.Ethernet{Src: hotMAC, Dst: toMAC[:]},
				backendtest.IPv4{Src: netip.MustParseAddr("10.0.2.15"), Dst: netip.MustParseAddr("10.0.2.16")},
				backendtest.TCP{SrcPort: 1, DstPort: 2, Flags: "A", Options: stamps}, backendtest.Payload(make([]byte, tt.size)))
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

// BenchmarkAdmit is the door: a conversation is opened and ended.
func BenchmarkAdmit(b *testing.B) {
	p := hotPort(b)
	if err := p.net.ChangeLimits("", map[string]string{"flow-rate": "1000000000"}); err != nil { // it is tried how many go
		b.Fatal(err)
	}
	q := flows.Query{Guest: p.id, Proto: flows.TCP, Src: netip.MustParseAddrPort("10.0.2.15:1000"), Dst: netip.MustParseAddrPort("198.51.100.1:80")}
	b.ReportAllocs()
	for b.Loop() {
		f, _ := p.net.admit(p, q, func(flows.Reason) {})
		f.End(flows.ReasonNone)
	}
}

// Headers are found in packets in one piece, as the stack makes them, and in such as are not.
func TestHeadersOf(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		x := tcpPacket{v6: v6, size: 100, options: stamps, flags: header.TCPFlagAck}
		made := x.build()
		wantN, wantT := made.NetworkHeader().Slice(), made.TransportHeader().Slice()
		whole := made.ToView().AsSlice()
		for cut := range len(wantN) + len(wantT) + 1 {
			var data buffer.Buffer
			if cut > 0 {
				data.Append(buffer.NewViewWithData(whole[:cut]))
			}
			data.Append(buffer.NewViewWithData(whole[cut:]))
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: data})
			pkt.NetworkProtocolNumber = made.NetworkProtocolNumber
			pkt.TransportProtocolNumber = made.TransportProtocolNumber
			pkt.NetworkHeader().Consume(len(wantN))
			pkt.TransportHeader().Consume(len(wantT))
			nh, th := headersOf(pkt)
			if !bytes.Equal(nh, wantN) || !bytes.Equal(th, wantT) {
				t.Fatalf("ipv6 %v, cut at %d: % x, % x; want % x, % x", v6, cut, nh, th, wantN, wantT)
			}
			var s splitter
			s.add(pkt, splitDst, splitSrc)
			x.check(t, s.frames)
			pkt.DecRef()
		}
		made.DecRef()
	}
}
