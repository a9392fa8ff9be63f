package backend

// Station 2, the port: one guest. Its reader goroutine takes frames off the wire and carries each as far as it goes
// without waiting: to the gateway's services, into the guest's stack, or to other ports' queues. Its writer goroutine
// alone writes to the wire and may wait there. Addresses and MACs that the port has shown are the segment's
// (segment.go), under its lock; the counters are atomics.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

type mac [6]byte

func (m mac) String() string    { return net.HardwareAddr(m[:]).String() }
func (m mac) isMulticast() bool { return m[0]&1 != 0 }
func macOf(b []byte) (m mac)    { copy(m[:], b); return m }

type port struct {
	net     *Network
	id      string
	name    string // how it is attached
	role    role
	course  course
	link    link.Link
	log     *slog.Logger
	since   time.Time
	queue   *queue
	carries int // the largest IP packet that the wire does
	nic     *nic
	stack   *stack.Stack
	loop    *loop                // nil on the plain path
	far     atomic.Pointer[port] // the other end of a wire
	bad     *link.Impaired       // link, by another name
	ctx     context.Context      // ends with the port
	stop    context.CancelFunc
	come    func() // lets the next guest in, once; may be nil

	limits    atomic.Pointer[flows.Limits] // in force: nothing in it is zero
	buffers   buffers
	fragments fragments
	up, down  throttle
	rates     rates

	tcp  tcpSide
	udp  udpSide
	dhcp chan dhcpRequest

	// dialed is when, in Unix nanoseconds, the host last opened a conversation. The next comes by way of Go's poller,
	// which does not look while the loop does.
	dialed atomic.Int64

	declared                             atomic.Int32 // the MTU that the guest has shown (mtu.go); 0: none yet
	rxFrames, rxBytes, txFrames, txBytes atomic.Uint64
	drops                                [flows.NumReasons]atomic.Uint64

	// Of the reader only: what it saw last, so that a stream asks the segment for nothing.
	batch      *link.Batch
	scratch    [headLen]byte
	gro        gro
	gives      link.Offloads // what frames of the guest's may lack
	offload    link.Offload  // of the frame at hand, if they are Told
	finisher   finisher
	lastMAC    mac
	known      bool          // it has shown one, and what is its own by that MAC is in force
	lastOwn    bool          // lastMAC is this port's
	lastMACGen uint64        // the segment's then, where MACs move (plain.go)
	warned     bool          // of its MAC
	warnedAddr bool          // of its address
	lastSrc    [2]netip.Addr // by family
	lastSrcMAC [2]mac
	lastSrcGen [2]uint64 // the segment's then
	flooded    bucket
	onward     onward
	read       int // bytes of the batch
	elsewhere  int // frames since the loop set it to 0 whose answer, if any, a goroutine or another guest's loop gets

	// Of the writer only.
	split   splitter
	copier  finisher
	lastDst netip.Addr
	lastTo  mac
	lastGen uint64

	bug     chan struct{} // closed when one was met (contain.go)
	bugOnce sync.Once
	clock   *clock

	wg sync.WaitGroup // everything that the port started
}

// headLen is how much of a frame is looked at in one piece: Ethernet, and the longest IPv4 and TCP headers.
const headLen = ethLen + 60 + 60

// newPort makes the port of a guest that l carries. wire says what frames it gives and takes; l is around it, or it.
func (n *Network) newPort(ctx context.Context, l, wire link.Link, c PortConfig) (*port, error) {
	role, err := c.check(&n.cfg)
	if err != nil {
		return nil, err
	}
	p := &port{net: n, name: c.Name, role: role, course: role.course(&n.cfg), link: l, since: time.Now(), batch: newBatch(), dhcp: make(chan dhcpRequest, dhcpQueue), bug: make(chan struct{})}
	p.id = fmt.Sprintf("g%d", n.nextGuest.Add(1))
	p.bad, _ = link.Impair(l, nil) // nothing that could be refused
	p.bad.Counts(&n.impairs.tally)
	p.bad.OnPanic(func(r any, stack []byte) { p.met("bad line", r, stack) })
	p.link = p.bad
	p.log = n.guestLog.With("guest", p.id)
	p.queue = newQueue(func() { p.drop(flows.ReasonQueueFull) })
	p.setLimits(n.flows.Limits())
	p.nic = &nic{port: p}
	p.flooded = newBucket(floodRate, floodBurst)
	if n.cfg.plain() {
		p.flooded = newBucket(plainFloodRate, plainFloodBurst)
	}
	p.split.overlap = overlapOf(l)
	p.gives, p.split.takes = link.OffloadsOf(wire)
	p.carries = carriesOf(wire)
	p.ctx, p.stop = context.WithCancel(ctx)
	p.clock = newClock(p)
	if !n.cfg.plain() { // nobody would talk to it
		if p.stack, err = newStack(p.nic, p.clock, &n.cfg); err != nil {
			p.stop()
			return nil, err
		}
		p.fragments.find(p.stack)
	}
	if p.loop, err = newLoop(p); err != nil {
		p.stop()
		if p.stack != nil {
			p.stack.Destroy()
		}
		return nil, err
	}
	if p.loop != nil {
		p.queue.notify = p.loop.wake
		p.buffers.post = p.loop.post
		p.bad.OnDue(p.loop.readDue, p.loop.writeDue, p.impairedDrop)
		p.bad.OnTimer(p.loop.watchTimer)
		p.after(p.ctx, "wake", p.loop.wake)
	} else {
		p.bad.OnDue(nil, nil, p.impairedDrop)
	}
	p.impairs(c.Impair)
	p.impair() // before its first frame
	if p.stack != nil {
		p.tcp.init(p)
		p.udp.init(p)
	}
	p.limit()
	if p.stack != nil {
		p.stack.SetTransportProtocolHandler(header.ICMPv4ProtocolNumber, p.icmpFromGuest)
		p.stack.SetTransportProtocolHandler(header.ICMPv6ProtocolNumber, p.icmpFromGuest)
	}
	return p, nil
}

// run carries frames until the wire ends, then ends all that the guest had.
func (p *port) run() error {
	if p.stack != nil {
		p.goes("dhcp", p.serveDHCP)
	}
	stop := p.after(p.ctx, "close", func() { p.link.Close() })
	err := p.move()
	stop()
	p.stop()
	p.ended(
		func() { p.link.Close() },
		p.queue.close,
		func() { p.net.dhcp.Detach(p.id) }, // before it is seen to have gone: it may be here again at once, and ask for nothing
		func() { p.net.seg.remove(p) },
		func() { p.net.flows.EndGuest(p.id, flows.ReasonGuestGone) },
		p.udp.close,
		p.closeStack,
		func() {
			for !p.tcp.close() {
				time.Sleep(time.Millisecond) // about what a goroutine takes to get from its start into the stack
			}
		},
		p.wg.Wait,
		p.unlimit,
		p.unimpair,
		p.waitStack,
		p.clock.stop,
		p.batch.Release,
	)
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) { // a VMM that was killed with frames unread
		return nil
	}
	return err
}

func (p *port) closeStack() {
	if p.stack != nil {
		p.stack.Close()
	}
}

func (p *port) waitStack() {
	if p.stack != nil {
		p.stack.Wait()
	}
}

// move carries frames both ways: in the loop where there is one, else with a writer of its own.
func (p *port) move() (err error) {
	defer func() {
		if r := recover(); r != nil {
			p.met("reader", r, debug.Stack())
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	if p.loop != nil {
		return p.loop.run()
	}
	p.goes("writer", p.write)
	p.hasCome()
	for {
		p.batch.Next()
		err := p.link.ReadFrames(p.batch)
		if err != nil {
			return err
		}
		p.carry()
		p.wait(&p.up, p.read)
	}
}

// hasCome says that the guest has nothing to do for the first time.
func (p *port) hasCome() {
	if p.come != nil {
		p.come()
	}
}

// carry takes the frames of a batch where they go.
func (p *port) carry() {
	for ; p.batch.Malformed > 0; p.batch.Malformed-- {
		p.drop(flows.ReasonMalformed)
	}
	for ; p.batch.Overrun > 0; p.batch.Overrun-- {
		p.drop(flows.ReasonQueueFull)
	}
	if to := p.net.seg.copies.Load(); to != nil {
		p.copyUp(*to)
	}
	size := 0
	for i, s := range p.batch.Frames {
		if i < len(p.batch.Offloads) {
			p.offload = p.batch.Offloads[i]
		}
		p.rxFrames.Add(1)
		p.rxBytes.Add(uint64(s.Len()))
		size += s.Len()
		switch p.course {
		case byGateway:
			p.fromGuest(s)
		case bySwitch:
			p.onSwitch(s)
		case byWire:
			p.alongWire(s)
		case asAnybody:
			p.fromAnybody(s)
		case nowhere:
			p.drop(flows.ReasonIsolated)
		}
	}
	p.read = size
	p.buffers.grew(size + len(p.batch.Frames)*segmentCost)
	p.gro.flushAll(p.nic, p.batch)
	p.onward.send(p.batch)
}

// mostAtOnce is how many bytes the writer cuts to frames before it writes: a socket buffer's worth, so that what
// comes meanwhile is not stuck behind a longer list.
const mostAtOnce = 1 << 20

func (p *port) write() {
	var items []item
	for {
		items = p.queue.take(items)
		if items == nil {
			return
		}
		for rest := items; len(rest) > 0; {
			n, _ := p.compose(rest, p.cut)
			size := 0
			for i := range p.split.frames {
				size += p.split.frames[i].Len()
			}
			p.txBytes.Add(uint64(size))
			p.txFrames.Add(uint64(len(p.split.frames)))
			_, err := p.link.WriteFrames(p.split.frames)
			p.queue.done(rest[:n])
			rest = rest[n:]
			if err != nil {
				p.queue.done(rest)
				p.stop() // the reader's end says why
				return
			}
			p.wait(&p.down, size)
		}
	}
}

// compose cuts as many items to frames as are written at once; the stack's packets go through pass, which is cut or
// comes to it. It returns how many items and bytes that were.
func (p *port) compose(items []item, pass func(*stack.PacketBuffer)) (n, size int) {
	p.split.reset()
	most := mostAtOnce
	if p.down.rate.Load() > 0 {
		most = paceLeast
	}
	for ; n < len(items) && size < most; n++ {
		i := &items[n]
		size += i.size
		switch {
		case i.pkt != nil:
			pass(i.pkt)
		case i.left:
			p.split.frames = append(p.split.frames, i.raw)
		default:
			p.split.addWhole(i.raw)
		}
	}
	if to := p.net.seg.copies.Load(); to != nil {
		p.copyDown(*to, p.split.frames)
	}
	return n, size
}

// cut makes frames of a packet from the stack.
func (p *port) cut(pkt *stack.PacketBuffer) {
	to := p.macFor(dstOf(pkt))
	p.split.add(pkt, to[:], p.net.cfg.GatewayMAC)
}

func dstOf(pkt *stack.PacketBuffer) netip.Addr {
	h, _ := headersOf(pkt)
	if pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber {
		return netip.AddrFrom16([16]byte(h[24:40]))
	}
	return netip.AddrFrom4([4]byte(h[16:20]))
}

// macFor is where on this wire a packet for dst goes.
func (p *port) macFor(dst netip.Addr) mac {
	if gen := p.net.seg.gen.Load(); gen != p.lastGen || dst != p.lastDst {
		p.lastTo, p.lastDst, p.lastGen = p.net.seg.macFor(p, dst), dst, gen
	}
	return p.lastTo
}

// sendFrame queues an Ethernet frame, headroom included, that the port takes over.
func (p *port) sendFrame(head []byte) {
	if p.role == mirror { // nobody talks to it
		return
	}
	p.queue.push(item{raw: link.Frame{Head: head}, size: len(head)})
}

// drop counts what was dropped, here and in the network.
func (p *port) drop(r flows.Reason) {
	p.drops[r].Add(1)
	p.net.flows.Count(r)
}

func (p *port) dropped() map[string]uint64 {
	m := map[string]uint64{}
	for r := range p.drops {
		if n := p.drops[r].Load(); n > 0 {
			m[flows.Reason(r).String()] = n
		}
	}
	return m
}

// bucket is a token bucket for one goroutine.
type bucket struct {
	rate, burst, tokens float64
	last                time.Time
}

func newBucket(rate, burst float64) bucket {
	return bucket{rate: rate, burst: burst, tokens: burst, last: time.Now()}
}

func (b *bucket) allow() bool {
	if b.tokens < 1 {
		now := time.Now()
		b.tokens = min(b.burst, b.tokens+b.rate*now.Sub(b.last).Seconds())
		b.last = now
		if b.tokens < 1 {
			return false
		}
	}
	b.tokens--
	return true
}
