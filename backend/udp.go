package backend

// Station 6, UDP: each source port of the guest has one host socket for all peers (RFC 4787 REQ-1 and REQ-8:
// endpoint-independent mapping and filtering, so that STUN and games work). Datagrams are carried as they are; the
// stack only puts fragments together. Conversations that the host opens (port forwards) are looked for first.

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/backend/sockets"
	"github.com/vmnetd/vmnetd/flows"
)

const (
	dnsPort = 53

	// udpIdle is how long a mapping lives without traffic: RFC 4787 REQ-5 asks for two minutes at least, five are
	// recommended.
	udpIdle = 5 * time.Minute
	// udpIdleDNS is for mappings whose only peers are resolvers: one question, one answer (REQ-5c lets well-known
	// ports have less).
	udpIdleDNS = 30 * time.Second
	// udpSweep is how often idle mappings are looked for, so a mapping may live that much longer.
	udpSweep = 5 * time.Second

	// udpBacklog is how many datagrams wait for the reader of a conversation that the host opened.
	udpBacklog = 64
)

type udpSide struct {
	port    *port
	scratch []byte // the reader's, for a datagram that lies in pieces
	holds   holds

	mu       sync.Mutex
	closed   bool
	mappings map[netip.AddrPort]*mapping
	opened   map[udpPair]*udpConn // by the host
}

type udpPair struct{ local, remote netip.AddrPort } // remote is the guest's

// mapping is one source port of the guest and its host socket.
type mapping struct {
	port *port
	src  netip.AddrPort
	flow *flows.Flow
	conn egress.PacketConn
	poll polledUDP   // on the loop
	only atomic.Bool // only resolvers were talked to

	// Whom it talks to (peer.go):
	mu     sync.Mutex
	peers  map[netip.AddrPort]*peer
	over   bool
	plain  *peer                       // the last that is shared
	shut   map[netip.AddrPort]struct{} // which a new policy has ended conversations with
	shuts  atomic.Bool                 // there are such
	saying atomic.Bool                 // there may be peers that are not known to have said whom they name
}

func (u *udpSide) init(p *port) {
	u.port = p
	u.mappings = make(map[netip.AddrPort]*mapping)
	u.opened = make(map[udpPair]*udpConn)
	p.stack.SetTransportProtocolHandler(header.UDPProtocolNumber, u.fromGuest)
}

// fromGuest takes a datagram that the stack has put together. It always has an answer of its own: the stack is to send
// none.
func (u *udpSide) fromGuest(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	defer u.port.guard("udp")
	src, dst := ends(id)
	v := pkt.Data().AsRange().ToView()
	if v != nil { // nil where there is no payload
		defer v.Release()
	}
	u.take(src, dst, pkt.TransportHeader().Slice(), v.AsSlice())
	return true
}

// direct takes a datagram as it was read, if it is whole and in order: the stack has nothing to do for it.
func (u *udpSide) direct(kind uint16, ip []byte, body link.Span) bool {
	hl, total, ok := wholeOf(kind, ip, body, header.UDPProtocolNumber)
	const udp = header.UDPMinimumSize
	if !ok || total < hl+udp || len(ip) < hl+udp || !ofHosts(ip, kind == etherIPv6) {
		return false
	}
	var from, to netip.Addr
	if kind == etherIPv6 {
		from, to = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	} else {
		from, to = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	}
	h := header.UDP(ip[hl : hl+udp])
	s := body.From(hl + udp).Upto(total - hl - udp)
	payload := u.port.batch.Whole(s, &u.scratch)
	u.take(netip.AddrPortFrom(from, h.SourcePort()), netip.AddrPortFrom(to, h.DestinationPort()), h, payload)
	return true
}

// take carries a datagram. payload is the caller's again when it returns.
func (u *udpSide) take(src, dst netip.AddrPort, h header.UDP, payload []byte) {
	p, n := u.port, u.port.net
	if want := int(h.Length()) - header.UDPMinimumSize; want < 0 || want > len(payload) {
		p.drop(flows.ReasonMalformed)
		return
	} else {
		payload = payload[:want] // what follows is padding
	}
	if dst.Port() == 0 || src.Port() == 0 {
		p.drop(flows.ReasonMalformed)
		return
	}

	u.mu.Lock()
	c := u.opened[udpPair{dst, src}]
	m := u.mappings[src]
	u.mu.Unlock()
	if c != nil {
		p.elsewhere++
		c.deliver(payload)
		return
	}
	if s := n.inside.packet(dst); s != nil {
		p.elsewhere++
		s.fromGuest(p, src, dst, payload)
		return
	}
	if dst.Port() == dnsPort && n.isDNS(dst.Addr()) {
		if n.dns.HandleUDP(p.ctx, p.id, payload, func(answer []byte) { p.sendUDP(dst, src, answer) }) {
			p.elsewhere++
		}
		return
	}
	if m == nil || !m.take(dst, payload) {
		if verdict := u.open(src, dst, payload); !verdict.Allow && verdict.Pending == nil {
			u.reject(src, dst, len(payload), verdict)
		}
	}
}

// open makes the mapping of src, with its first datagram, unless the verdict says no.
func (u *udpSide) open(src, dst netip.AddrPort, payload []byte) flows.Verdict {
	p, n := u.port, u.port.net
	m := &mapping{port: p, src: src, peers: map[netip.AddrPort]*peer{}, shut: map[netip.AddrPort]struct{}{}}
	m.only.Store(true)
	gen := n.flows.PolicyGen()
	f, v := n.admit(p, flows.Query{Guest: p.id, Proto: flows.UDP, Src: src, Dst: dst}, func(flows.Reason) { u.end(m) })
	if f == nil {
		return v
	}
	m.flow = f
	conn, err := n.cfg.Egress.ListenPacket(p.ctx, egress.UDPNetwork(dst.Addr()), netip.AddrPort{})
	if err != nil {
		f.End(reasonOf(egress.Classify(err)))
		n.complain("udp socket", err)
		return flows.Verdict{Reason: flows.ReasonExhausted}
	}
	polled := p.loop.openUDP(m, conn)
	u.mu.Lock()
	if u.closed || f.State() == flows.Closed {
		u.mu.Unlock()
		conn.Close()
		m.poll.forget()
		f.End(flows.ReasonGuestGone)
		return flows.Verdict{Reason: flows.ReasonGuestGone}
	}
	m.conn = conn // only now may end close it
	u.mappings[src] = m
	u.mu.Unlock()
	if v.Pending == nil {
		f.SetState(flows.Open)
	}
	if !polled {
		p.goes("udp", m.receive)
	}
	m.begin(dst, nil, gen, v, payload)
	return v
}

// end takes a mapping out and closes its socket.
func (u *udpSide) end(m *mapping) {
	u.mu.Lock()
	if u.mappings[m.src] == m {
		delete(u.mappings, m.src)
	}
	conn := m.conn
	u.mu.Unlock()
	m.mu.Lock()
	m.over = true
	m.forgetPeers()
	m.mu.Unlock()
	if conn != nil {
		conn.Close()
		m.poll.forget()
	}
}

// sweep ends what was idle for too long.
func (u *udpSide) sweep() {
	u.mu.Lock()
	var idle, all []*mapping
	for _, m := range u.mappings {
		limit := udpIdle
		if m.only.Load() {
			limit = udpIdleDNS
		}
		if m.flow.Idle() > limit {
			idle = append(idle, m)
		}
		all = append(all, m)
	}
	u.mu.Unlock()
	for _, m := range all {
		m.expire()
	}
	for _, m := range idle {
		m.flow.End(flows.ReasonIdle)
		u.end(m)
	}
}

func (u *udpSide) close() {
	u.mu.Lock()
	u.closed = true
	var ms []*mapping
	for _, m := range u.mappings {
		ms = append(ms, m)
	}
	var cs []*udpConn
	for _, c := range u.opened {
		cs = append(cs, c)
	}
	u.mu.Unlock()
	for _, m := range ms {
		u.end(m)
	}
	for _, c := range cs {
		c.Close()
	}
}

func (u *udpSide) reject(src, dst netip.AddrPort, n int, v flows.Verdict) {
	if !v.Reject {
		return
	}
	u.port.unreachable(quoteUDP(src, dst, n), u.port.net.rejection(dst.Addr(), v), 0)
}

func (m *mapping) send(dst netip.AddrPort, payload []byte) {
	if dst.Port() != dnsPort {
		m.only.Store(false)
	}
	m.flow.Touch()
	_, err := m.conn.WriteTo(payload, m.port.net.translate(dst))
	if err == nil {
		m.flow.Up.Add(len(payload))
		return
	}
	m.failed(dst, len(payload), err)
}

// failed tells the guest what became of a datagram to dst.
func (m *mapping) failed(dst netip.AddrPort, n int, err error) {
	var un *egress.UnreachableError
	switch {
	case errors.As(err, &un):
		if un.Kind != egress.Timeout && un.Kind != egress.Exhausted && un.Kind != egress.Other {
			mtu := un.MTU
			m.port.unreachable(quoteUDP(m.src, dst, n), un.Kind, mtu)
		}
	case errors.Is(err, net.ErrClosed):
	case errors.Is(err, egress.ErrBadDestination):
		m.port.drop(flows.ReasonMartian)
	default:
		m.port.drop(reasonOf(egress.Classify(err)))
	}
}

// receive carries what comes to the mapping's socket, from whomever, to the guest.
func (m *mapping) receive() {
	p := m.port
	defer func() {
		m.flow.End(flows.ReasonClosed)
		p.udp.end(m)
	}()
	for {
		b, from, err := m.conn.ReadBorrowed(egress.DatagramBuffers)
		if !m.received(b, from, err) {
			return
		}
		if err == nil {
			egress.DatagramBuffers.Put(b)
		}
	}
}

// received carries one datagram, or news of one, to the guest. It reports whether there may be more.
func (m *mapping) received(b []byte, from netip.AddrPort, err error) bool {
	p, n := m.port, m.port.net
	var un *egress.UnreachableError
	if errors.As(err, &un) {
		m.failed(n.untranslate(un.Dst), 0, un)
		return true
	}
	if err != nil {
		return false
	}
	known := n.untranslate(from)
	if (!from.Addr().IsLoopback() || !n.cfg.NoHostLoopback) && n.inRoutes(known.Addr()) && m.mayHear(known) {
		m.flow.Touch()
		m.flow.Down.Add(len(b))
		p.sendUDP(known, m.src, b)
	}
	return true
}

// sendUDP sends the guest a datagram. payload is borrowed.
func (p *port) sendUDP(src, dst netip.AddrPort, payload []byte) {
	if src.Addr().Is4() != dst.Addr().Is4() {
		return
	}
	if f := p.datagram(src, dst, payload); f != nil {
		p.sendFrame(f)
		return
	}
	b := make([]byte, header.UDPMinimumSize+len(payload))
	putUDP(b, src, dst, payload)
	p.sendIP(src.Addr(), dst.Addr(), header.UDPProtocolNumber, b)
}

// datagram is one as a frame, or nil where it takes fragments.
func (p *port) datagram(src, dst netip.AddrPort, payload []byte) []byte {
	size := header.UDPMinimumSize + len(payload)
	if ipHeaderLen(src.Addr())+size > p.mtu() {
		return nil
	}
	f, b := p.newPacket(src.Addr(), dst.Addr(), header.UDPProtocolNumber, size)
	putUDP(b, src, dst, payload)
	return f
}

// putUDP writes a datagram with its checksum.
func putUDP(b []byte, src, dst netip.AddrPort, payload []byte) {
	h := header.UDP(b[:header.UDPMinimumSize+len(payload)])
	h.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(len(h))})
	copy(h[header.UDPMinimumSize:], payload)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, toTCPIP(src.Addr()), toTCPIP(dst.Addr()), uint16(len(h)))
	sum = ^checksum.Checksum(h, sum)
	if sum == 0 {
		sum = 0xffff // RFC 768: zero would say that there is none
	}
	h.SetChecksum(sum)
}

// udpConn is a conversation that the host opened with the guest.
type udpConn struct {
	side *udpSide
	pair udpPair
	in   chan []byte
	done chan struct{}
	once sync.Once

	mu sync.Mutex                          // held to put into in, and to set to
	to atomic.Pointer[func([]byte, error)] // if set, gets what would go into in

	refused  atomic.Bool
	deadline sockets.Deadline
}

// bindUDP opens a conversation with the guest's dst, from src; a zero port in src picks one.
func (p *port) bindUDP(src, dst netip.AddrPort) (*udpConn, error) {
	u := &p.udp
	c := &udpConn{side: u, in: make(chan []byte, udpBacklog), done: make(chan struct{})}
	c.deadline.Init()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, net.ErrClosed
	}
	if src.Port() != 0 {
		c.pair = udpPair{src, dst}
		if u.opened[c.pair] != nil {
			return nil, &net.OpError{Op: "dial", Net: "udp", Source: net.UDPAddrFromAddrPort(src), Addr: net.UDPAddrFromAddrPort(dst), Err: syscall.EADDRINUSE}
		}
		u.opened[c.pair] = c
		return c, nil
	}
	const low, count = 32768, 28232 // ip_local_port_range's default
	start := p.net.nextIPID.Add(1)
	for i := uint32(0); i < count; i++ {
		c.pair = udpPair{netip.AddrPortFrom(src.Addr(), uint16(low+(start+i)%count)), dst}
		if u.opened[c.pair] == nil {
			u.opened[c.pair] = c
			return c, nil
		}
	}
	return nil, &net.OpError{Op: "dial", Net: "udp", Addr: net.UDPAddrFromAddrPort(dst), Err: syscall.EADDRNOTAVAIL}
}

func (c *udpConn) source() netip.AddrPort { return c.pair.local }

func (c *udpConn) connect(context.Context) (net.Conn, error) { return c, nil }

// refused notes the guest's port unreachable and reports whether it was about a conversation of ours.
func (u *udpSide) refused(local, remote netip.AddrPort) bool {
	u.mu.Lock()
	c := u.opened[udpPair{local, remote}]
	u.mu.Unlock()
	if c == nil {
		return false
	}
	if to := c.to.Load(); to != nil {
		(*to)(nil, c.refusedError())
		return true
	}
	c.refused.Store(true)
	select {
	case c.in <- nil: // wakes a reader
	default:
	}
	return true
}

func (c *udpConn) refusedError() error {
	return &net.OpError{Op: "read", Net: "udp", Addr: c.RemoteAddr(), Err: syscall.ECONNREFUSED}
}

// receive has datagrams, borrowed, and errors given to f in place of Read.
func (c *udpConn) receive(f func(p []byte, err error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		select {
		case p := <-c.in:
			if p != nil {
				f(p, nil)
			} else if c.refused.Swap(false) {
				f(nil, c.refusedError())
			}
			continue
		default:
		}
		break
	}
	c.to.Store(&f)
	select {
	case <-c.done: // Close may not have seen f
		f(nil, net.ErrClosed)
	default:
	}
}

func (c *udpConn) deliver(payload []byte) {
	to := c.to.Load()
	if to == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		to = c.to.Load()
	}
	if to != nil {
		(*to)(payload, nil)
		return
	}
	b := make([]byte, len(payload)) // never nil: nil is a wake-up
	copy(b, payload)
	select {
	case c.in <- b:
	default:
		c.side.port.drop(flows.ReasonQueueFull)
	}
}

func (c *udpConn) Read(b []byte) (int, error) {
	for {
		select {
		case <-c.done:
			return 0, net.ErrClosed
		case <-c.deadline.Passed():
			return 0, os.ErrDeadlineExceeded
		case p := <-c.in:
			if p == nil {
				if c.refused.Swap(false) {
					return 0, c.refusedError()
				}
				continue
			}
			n := copy(b, p)
			if n < len(p) {
				return n, io.ErrShortBuffer
			}
			return n, nil
		}
	}
}

func (c *udpConn) Write(b []byte) (int, error) {
	select {
	case <-c.done:
		return 0, net.ErrClosed
	default:
	}
	if max := egress.MaxPayload4; c.pair.remote.Addr().Is4() && len(b) > max || len(b) > egress.MaxPayload6 {
		return 0, &net.OpError{Op: "write", Net: "udp", Addr: c.RemoteAddr(), Err: syscall.EMSGSIZE}
	}
	p := c.side.port
	if f := p.datagram(c.pair.local, c.pair.remote, b); f == nil {
		p.sendUDP(c.pair.local, c.pair.remote, b)
	} else if p.loop == nil || p.net.seg.copies.Load() != nil || p.loop.sendNow([]link.Frame{{Head: f}}) == 0 {
		p.sendFrame(f)
	}
	return len(b), nil
}

func (c *udpConn) Close() error {
	c.once.Do(func() {
		close(c.done)
		c.side.mu.Lock()
		delete(c.side.opened, c.pair)
		c.side.mu.Unlock()
		if to := c.to.Load(); to != nil {
			(*to)(nil, net.ErrClosed)
		}
	})
	return nil
}

func (c *udpConn) LocalAddr() net.Addr                { return net.UDPAddrFromAddrPort(c.pair.local) }
func (c *udpConn) RemoteAddr() net.Addr               { return net.UDPAddrFromAddrPort(c.pair.remote) }
func (c *udpConn) SetDeadline(t time.Time) error      { c.deadline.Set(t); return nil }
func (c *udpConn) SetReadDeadline(t time.Time) error  { c.deadline.Set(t); return nil }
func (c *udpConn) SetWriteDeadline(t time.Time) error { return nil } // writes do not wait

var _ net.Conn = (*udpConn)(nil)
