package backend

// Station 6, TCP: where a guest's conversations end. A SYN is judged, then the far side is dialled, and only when that
// has answered is the guest's handshake completed: refused stays refused, unreachable stays unreachable. The SYN is
// kept meanwhile; the guest's retransmissions of it are passed over.

import (
	"context"
	"io"
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/flows"
)

type tcpSide struct {
	port    *port
	forward *tcp.Forwarder
	shakes  chan *tcp.ForwarderRequest // to a goroutine that waits for one
	idle    atomic.Int32               // how many such there are
	saying  atomic.Int64               // bytes that are held until they are judged (inspect.go)

	mu      sync.Mutex
	pending map[stack.TransportEndpointID]*dial // SYNs that have no answer yet, and handshakes that go on
	dns     int                                 // those of them that go to the resolver
}

// dial is a SYN on its way to an answer.
type dial struct {
	accept func(*tcpConn) // takes the conversation over once the guest's handshake is done
	fail   func()         // the handshake was not
	dns    bool           // with the resolver here

	// Under tcpSide.mu:
	shaking bool // the forwarder has the SYN. The dial stays pending until its goroutine has ended
	over    bool // it was given up meanwhile
}

func (t *tcpSide) init(p *port) {
	t.port = p
	t.pending = make(map[stack.TransportEndpointID]*dial)
	t.shakes = make(chan *tcp.ForwarderRequest)
	// No bound of the forwarder's: it would forget a SYN silently. Each of its handshakes is pending here, and so
	// bounded by flows.Limits and the resolver's.
	t.forward = tcp.NewForwarder(p.stack, tcpBuffer, math.MaxInt, t.handshake)
	p.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, t.fromGuest)
}

// fromGuest takes a segment that no conversation knows. Not a SYN: the stack answers with a reset, so that a guest
// whose conversations ended with an earlier daemon knows at once.
func (t *tcpSide) fromGuest(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	defer t.port.guard("tcp")
	flags := header.TCP(pkt.TransportHeader().Slice()).Flags()
	if flags&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false
	}
	src, dst := ends(id)
	t.mu.Lock()
	_, dup := t.pending[id]
	t.mu.Unlock()
	if dup {
		return true
	}
	p, n := t.port, t.port.net
	if dst.Port() == dnsPort && n.isDNS(dst.Addr()) {
		return t.toDNS(id, pkt)
	}
	if l := n.inside.listener(dst); l != nil {
		return t.toProgram(id, pkt, l)
	}
	q := flows.Query{Guest: p.id, Proto: flows.TCP, Src: src, Dst: dst}
	if p.loop != nil {
		f, v := p.loop.openStream(id, pkt, q)
		return f != nil || !t.reject(pkt, dst, v)
	}
	ctx, cancel := context.WithCancel(p.ctx)
	f, v := n.admit(p, q, func(flows.Reason) { cancel() })
	if f == nil {
		cancel()
		return !t.reject(pkt, dst, v)
	}
	d := &dial{}
	t.hold(id, d)
	pkt = pkt.IncRef()
	p.goes("dial", func() {
		defer pkt.DecRef()
		if v.Pending != nil {
			if v = p.settle(ctx, f, v); !v.Allow {
				t.release(id)
				cancel()
				t.refuse(pkt, id, v)
				return
			}
		}
		host, err := n.cfg.Egress.DialContext(ctx, egress.TCPNetwork(dst.Addr()), n.translate(dst))
		if err != nil {
			t.release(id)
			cancel()
			k := egress.Classify(err)
			f.End(reasonOf(k))
			t.answer(pkt, id, k)
			return
		}
		evicted := p.after(ctx, "evicted", func() { abort(host); t.giveUp(id, d) })
		d.accept = func(guest *tcpConn) {
			defer cancel()
			evicted()
			stop := p.after(ctx, "cut", func() { abort(guest); abort(host) })
			defer stop()
			defer host.Close() // relay does, unless a policy panics in it
			f.SetState(flows.Open)
			f.End(p.relay(guest, host, f))
		}
		d.fail = func() {
			cancel()
			abort(host)
			f.End(flows.ReasonTimeout)
		}
		if ctx.Err() != nil || !t.shake(id, d, pkt) {
			t.release(id)
			d.fail()
		}
	})
	return true
}

// dnsConns is room for handshakes with the resolver, which are no flows: far more than it keeps open for one guest.
const dnsConns = 1024

// makeWay ends the conversation that a new SYN would replace. gVisor passes over a SYN for one in TIME-WAIT where
// nothing listens, and the guest would wait for as long as that lasts; RFC 9293 §3.10.7.4 lets a new SYN reopen it.
func (t *tcpSide) makeWay(kind uint16, ip []byte) {
	var id stack.TransportEndpointID
	proto := tcpip.NetworkProtocolNumber(kind)
	var seg header.TCP
	switch {
	case kind == etherIPv4 && len(ip) >= header.IPv4MinimumSize+header.TCPMinimumSize && ip[0] == 0x45 && ip[9] == byte(tcp.ProtocolNumber):
		h := header.IPv4(ip)
		id.RemoteAddress, id.LocalAddress, seg = h.SourceAddress(), h.DestinationAddress(), header.TCP(ip[header.IPv4MinimumSize:])
	case kind == etherIPv6 && len(ip) >= header.IPv6MinimumSize+header.TCPMinimumSize && ip[6] == byte(tcp.ProtocolNumber):
		h := header.IPv6(ip)
		id.RemoteAddress, id.LocalAddress, seg = h.SourceAddress(), h.DestinationAddress(), header.TCP(ip[header.IPv6MinimumSize:])
	default:
		return
	}
	if seg.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return
	}
	id.RemotePort, id.LocalPort = seg.SourcePort(), seg.DestinationPort()
	ep, ok := t.port.stack.FindTransportEndpoint(proto, tcp.ProtocolNumber, id, nicID).(*tcp.Endpoint)
	if !ok || tcp.EndpointState(ep.State()) != tcp.StateTimeWait {
		return
	}
	if n, _ := ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption); n == 0 { // else the far side has not taken it all yet
		ep.Abort() // its RST acknowledges nothing of the new SYN's, so the guest passes over it (§3.10.7.3)
	}
}

func (t *tcpSide) hold(id stack.TransportEndpointID, d *dial) {
	t.mu.Lock()
	t.pending[id] = d
	if d.dns {
		t.dns++
	}
	t.mu.Unlock()
}

func (t *tcpSide) release(id stack.TransportEndpointID) *dial {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.pending[id]
	delete(t.pending, id)
	if d != nil && d.dns {
		t.dns--
	}
	return d
}

// releaseIf is release where the dial may have been given up, and the guest may have begun another.
func (t *tcpSide) releaseIf(id stack.TransportEndpointID, d *dial) {
	t.mu.Lock()
	is := t.pending[id] == d
	t.mu.Unlock()
	if is {
		t.release(id)
	}
}

// shake has the stack complete the handshake for d, and ends in accept or fail. False: it will not.
func (t *tcpSide) shake(id stack.TransportEndpointID, d *dial, pkt *stack.PacketBuffer) bool {
	t.mu.Lock()
	d.shaking = t.pending[id] == d
	ok := d.shaking
	t.mu.Unlock()
	if !ok {
		return false
	}
	t.port.wg.Add(1) // not by the goroutine: it may begin when the port has ended
	if !t.forward.HandlePacket(id, pkt) {
		t.port.wg.Done()
		return false
	}
	return true
}

// giveUp ends the handshake with the guest for a conversation that is over before it began. Else the stack would go
// on for two minutes, and a guest that never completes one would soon have no room for another.
func (t *tcpSide) giveUp(id stack.TransportEndpointID, d *dial) {
	t.mu.Lock()
	if t.pending[id] != d { // it was done before
		t.mu.Unlock()
		return
	}
	d.over = true
	shaking := d.shaking
	t.mu.Unlock()
	if !shaking {
		t.release(id)
		return
	}
	t.cut(id)
}

// cut breaks off a handshake, if the stack has begun it.
func (t *tcpSide) cut(id stack.TransportEndpointID) {
	ep, ok := t.port.stack.FindTransportEndpoint(protoOf(toNetip(id.LocalAddress)), tcp.ProtocolNumber, id, nicID).(*tcp.Endpoint)
	if ok {
		ep.Abort()
	}
}

// close cuts the handshakes that go on when the port has ended, and reports whether nothing is pending any more. A
// handshake may have begun just as the stack was closed, and can be cut once the stack knows it.
func (t *tcpSide) close() bool {
	t.mu.Lock()
	var ids []stack.TransportEndpointID
	for id, d := range t.pending {
		d.over = true
		if !d.shaking && t.port.isBroken() {
			delete(t.pending, id) // whoever would do so may have met the bug
			continue
		}
		ids = append(ids, id)
	}
	t.mu.Unlock()
	for _, id := range ids {
		t.cut(id)
	}
	return len(ids) == 0
}

// idleShakers is how many goroutines wait for a handshake to do. One that has done one has the stack it takes, which a
// new one grows step by step. Two are busy alternately where conversations come one after the other.
const idleShakers = 2

// handshake completes what the guest's SYN began. The forwarder gives it a goroutine, which does it if no other waits.
func (t *tcpSide) handshake(r *tcp.ForwarderRequest) {
	select {
	case t.shakes <- r:
		return
	default:
	}
	p := t.port
	defer p.wg.Done()
	t.complete(r)
	defer t.idle.Add(-1)
	for t.idle.Add(1) <= idleShakers {
		select {
		case r := <-t.shakes:
			t.idle.Add(-1)
			t.complete(r)
			p.wg.Done()
		case <-p.ctx.Done():
			return
		}
	}
}

func (t *tcpSide) complete(r *tcp.ForwarderRequest) {
	p := t.port
	defer p.guard("conversation")
	id := r.ID()
	t.mu.Lock()
	d := t.pending[id]
	over := d.over
	t.mu.Unlock()
	if over {
		r.Complete(true)
		t.release(id)
		d.fail()
		return
	}
	var wq waiter.Queue
	ep, err := r.CreateEndpoint(&wq)
	r.Complete(false) // before the dial is released: the forwarder passes over a SYN that it has already
	t.release(id)
	if err != nil {
		d.fail()
		return
	}
	d.accept(newTCPConn(&wq, ep, &p.buffers))
}

// toDNS accepts a conversation with the resolver here.
func (t *tcpSide) toDNS(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	p := t.port
	t.mu.Lock()
	full := t.dns >= dnsConns
	t.mu.Unlock()
	if full {
		p.drop(flows.ReasonRateLimit)
		return true
	}
	d := &dial{
		dns: true,
		accept: func(c *tcpConn) {
			stop := p.after(p.ctx, "cut", func() { c.Abort() })
			defer stop()
			c.mem = p.buffers.join(c.ep, serviceBuffer, nil)
			defer c.mem.leave()
			p.net.dns.ServeConn(p.ctx, p.id, c)
			c.Close()
		},
		fail: func() {},
	}
	t.hold(id, d)
	if !t.shake(id, d, pkt) {
		t.release(id)
	}
	return true
}

// reject answers a SYN that was not let in, and reports whether the stack is to send a reset.
func (t *tcpSide) reject(pkt *stack.PacketBuffer, dst netip.AddrPort, v flows.Verdict) bool {
	if !v.Reject {
		return false
	}
	k := t.port.net.rejection(dst.Addr(), v)
	if v.Reset || v.Reason == flows.ReasonFlowLimit || k == egress.PortUnreachable {
		return true
	}
	t.port.unreachable(quote(pkt), k, 0)
	return false
}

// refuse answers a SYN that was held and is not let in.
func (t *tcpSide) refuse(pkt *stack.PacketBuffer, id stack.TransportEndpointID, v flows.Verdict) {
	if _, dst := ends(id); t.reject(pkt, dst, v) {
		t.reset(pkt, id)
	}
}

// answer tells the guest how the dial ended. Where nothing came back in time, nothing is said: its own timer runs.
func (t *tcpSide) answer(pkt *stack.PacketBuffer, id stack.TransportEndpointID, k egress.Kind) {
	switch k {
	case egress.HostUnreachable, egress.NetUnreachable, egress.Prohibited:
		t.port.unreachable(quote(pkt), k, 0)
	case egress.Refused, egress.PortUnreachable:
		t.reset(pkt, id)
	}
}

// reset answers a SYN with RST+ACK (RFC 9293 §3.10.7.1).
func (t *tcpSide) reset(pkt *stack.PacketBuffer, id stack.TransportEndpointID) {
	syn := header.TCP(pkt.TransportHeader().Slice())
	src, dst := ends(id)
	b := make(header.TCP, header.TCPMinimumSize)
	b.Encode(&header.TCPFields{
		SrcPort: dst.Port(), DstPort: src.Port(), AckNum: syn.SequenceNumber() + 1 + uint32(pkt.Data().Size()),
		DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagRst | header.TCPFlagAck,
	})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, id.LocalAddress, id.RemoteAddress, uint16(len(b)))
	b.SetChecksum(^b.CalculateChecksum(sum))
	t.port.sendIP(dst.Addr(), src.Addr(), header.TCPProtocolNumber, b)
}

// tcpConn is a conversation with the guest.
type tcpConn struct {
	*gonet.TCPConn
	ep  tcpip.Endpoint
	wq  *waiter.Queue
	of  *buffers
	mem *held // nil before it counts
}

func newTCPConn(wq *waiter.Queue, ep tcpip.Endpoint, b *buffers) *tcpConn {
	// A guest that was reset without ending its wire leaves conversations behind. Two hours (RFC 9293 §3.8.4) is
	// gVisor's default, as Linux's.
	ep.SocketOptions().SetKeepAlive(true)
	return &tcpConn{gonet.NewTCPConn(wq, ep), ep, wq, b, nil}
}

// Write implements net.Conn.
func (c *tcpConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.of.grewHere(n)
	if c.mem.crumb(n) {
		time.Sleep(crumbPause) // and meanwhile the far side's bytes are put together
	}
	return n, err
}

// crumbPause is how long a writer of small pieces waits for each, once too many wait for the guest.
const crumbPause = 10 * time.Millisecond

// Abort ends the conversation with a reset.
func (c *tcpConn) Abort() error {
	c.ep.Abort()
	return nil
}

// abort ends a conversation with a reset where its kind has one.
func abort(c net.Conn) {
	switch c := c.(type) {
	case interface{ Abort() error }:
		c.Abort()
	case interface{ SetLinger(int) error }:
		c.SetLinger(0)
	}
	c.Close()
}

// tcpDial is a conversation with the guest that has a source port and is not begun.
type tcpDial struct {
	ep       tcpip.Endpoint
	wq       *waiter.Queue
	of       *buffers
	src, dst netip.AddrPort
}

// bindTCP readies a conversation with the guest's dst, from src; a zero port in src picks one.
func (p *port) bindTCP(src, dst netip.AddrPort) (*tcpDial, error) {
	d := &tcpDial{wq: new(waiter.Queue), of: &p.buffers, src: src, dst: dst}
	var terr tcpip.Error
	if d.ep, terr = p.stack.NewEndpoint(tcp.ProtocolNumber, protoOf(dst.Addr()), d.wq); terr != nil {
		return nil, dialError(dst, terr)
	}
	terr = d.ep.Bind(fullAddr(src))
	if terr == nil {
		var local tcpip.FullAddress
		local, terr = d.ep.GetLocalAddress()
		d.src = netip.AddrPortFrom(src.Addr(), local.Port)
	}
	if terr != nil {
		d.ep.Close()
		return nil, dialError(dst, terr)
	}
	return d, nil
}

func (d *tcpDial) source() netip.AddrPort { return d.src }

func (d *tcpDial) Close() error {
	d.ep.Close()
	return nil
}

func (d *tcpDial) connect(ctx context.Context) (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents)
	d.wq.EventRegister(&entry)
	defer d.wq.EventUnregister(&entry)
	terr := d.ep.Connect(fullAddr(d.dst))
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			d.ep.Abort()
			d.ep.Close()
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(d.dst), Err: context.Cause(ctx)}
		case <-ready:
			terr = d.ep.LastError()
		}
	}
	if terr != nil {
		d.ep.Close()
		return nil, dialError(d.dst, terr)
	}
	return newTCPConn(d.wq, d.ep, d.of), nil
}

func dialError(dst netip.AddrPort, err tcpip.Error) error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(dst), Err: stackError{err}}
}

// stackError is a gVisor error as Go has them.
type stackError struct{ err tcpip.Error }

func (e stackError) Error() string { return e.err.String() }

// Unwrap is the error that package syscall names, if it names this one.
func (e stackError) Unwrap() error {
	if n, ok := errno(e.err); ok {
		return n
	}
	return nil
}

var _ io.ReadWriteCloser = (*tcpConn)(nil)
