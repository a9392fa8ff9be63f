package backend

// The program's own services. A program that has the network in it listens on the gateway's side, and guests reach it
// as they reach the world: through the same door (admit.go), counted in the same flows. Nothing of it leaves by the
// egress. What goes the other way, from the program to a guest, is in dialin.go.
//
// The tables of listeners are copied when they change, so that a guest's packets read them without a lock. Locks:
// inside.mu, then a listener's or packetConn's own.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/sockets"
	"github.com/vmnetd/vmnetd/flows"
)

const (
	// insideBacklog is how many of one guest's conversations may wait for Accept, half-open ones included: Linux's
	// somaxconn of long. A SYN beyond it is dropped, and the guest sends it again.
	insideBacklog = 128
	// insideBytes is how much of one guest's datagrams may wait for ReadFrom, itemCost for each counted in: what a
	// socket's default buffer (net.core.rmem_default) comes to.
	insideBytes = 256 << 10
	// firstFree to lastFree are the ports that a listener gets that names none (RFC 6335 §6).
	firstFree, lastFree = 49152, 65535
)

// inside is what the program listens on.
type inside struct {
	tcp atomic.Pointer[map[netip.AddrPort]*listener]
	udp atomic.Pointer[map[netip.AddrPort]*packetConn]

	mu     sync.Mutex
	closed bool
}

func (i *inside) listener(a netip.AddrPort) *listener {
	if m := i.tcp.Load(); m != nil {
		return (*m)[a]
	}
	return nil
}

func (i *inside) packet(a netip.AddrPort) *packetConn {
	if m := i.udp.Load(); m != nil {
		return (*m)[a]
	}
	return nil
}

// unjudged says whether the program listens there, and wants no policy to be asked.
func (i *inside) unjudged(p flows.Proto, a netip.AddrPort) bool {
	l := i.listener(a)
	return p == flows.TCP && l != nil && l.unjudged
}

// at says whether the program listens anywhere at an address.
func (i *inside) at(a netip.Addr) bool {
	if m := i.tcp.Load(); m != nil {
		for x := range *m {
			if x.Addr() == a {
				return true
			}
		}
	}
	if m := i.udp.Load(); m != nil {
		for x := range *m {
			if x.Addr() == a {
				return true
			}
		}
	}
	return false
}

// has says whether the program listens there.
func (i *inside) has(p flows.Proto, a netip.AddrPort) bool {
	return p == flows.TCP && i.listener(a) != nil || p == flows.UDP && i.packet(a) != nil
}

// Listen accepts guests' TCP conversations with an address of the gateway's side. network is tcp, tcp4 or tcp6; address
// is HOST:PORT. Without HOST, or where it is unspecified, it is the gateway, of both families or of the one that is
// asked for. HOST may also be an address outside the guests' prefixes, such as 169.254.169.254: then the program answers
// in place of whoever has it in the world. Port 0 picks one. The policy of the network is not asked (one that
// Config.Policy brings is).
//
// Each net.Conn that is accepted has a method Guest() string, the id of the guest.
func (n *Network) Listen(network, address string) (net.Listener, error) {
	return n.listen(network, address, false)
}

// ListenUnjudged is Listen for what guests are to reach whatever they may: no policy is asked, not even one that was
// chosen.
func (n *Network) ListenUnjudged(network, address string) (net.Listener, error) {
	return n.listen(network, address, true)
}

func (n *Network) listen(network, address string, unjudged bool) (net.Listener, error) {
	l := &listener{net: n, unjudged: unjudged, conns: newWaiting[net.Conn](), done: make(chan struct{})}
	at, err := n.listenOn(network, address, "tcp", func(at []netip.AddrPort) error {
		return add(&n.inside, &n.inside.tcp, at, l)
	})
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	l.at, l.addr = at, net.TCPAddrFromAddrPort(at[0])
	return l, nil
}

// ListenPacket opens a UDP socket for guests' datagrams, as Listen does for TCP. Its ReadFrom gives the guest's address,
// and WriteTo sends to a guest: from the address that the guest wrote to, where there are several.
func (n *Network) ListenPacket(network, address string) (net.PacketConn, error) {
	c := &packetConn{net: n, in: newWaiting[insideDatagram](), done: make(chan struct{}), peers: map[netip.AddrPort]*insidePeer{}}
	c.deadline.Init()
	at, err := n.listenOn(network, address, "udp", func(at []netip.AddrPort) error {
		c.at = at // before any datagram
		return add(&n.inside, &n.inside.udp, at, c)
	})
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	c.addr = net.UDPAddrFromAddrPort(at[0])
	return c, nil
}

// HTTPClient speaks HTTP with guests: http://web.internal/ is the guest that leased as web. Close its idle connections
// when it is done with.
func (n *Network) HTTPClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy, t.DialContext = nil, n.DialContext
	return &http.Client{Transport: t}
}

// listenOn finds out where, and has bind do it; port 0 is tried until bind finds one free.
func (n *Network) listenOn(network, address, kind string, bind func([]netip.AddrPort) error) ([]netip.AddrPort, error) {
	if n.cfg.plain() {
		return nil, ErrNoUplink
	}
	addrs, port, err := n.listenAddrs(network, address, kind)
	if err != nil {
		return nil, err
	}
	at := make([]netip.AddrPort, len(addrs))
	try := func(port uint16) error {
		for i, a := range addrs {
			at[i] = netip.AddrPortFrom(a, port)
			if kind == "udp" && port == 67 && n.isOurs(a) || kind == "udp" && port == 547 || port == dnsPort && n.isDNS(a) {
				return fmt.Errorf("%s: the network's own service is there: %w", at[i], syscall.EADDRINUSE)
			}
		}
		return bind(at)
	}
	if port != 0 {
		return at, try(port)
	}
	for p := firstFree; p <= lastFree; p++ {
		if err = try(uint16(p)); !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return at, err
}

func (n *Network) listenAddrs(network, address, kind string) (addrs []netip.Addr, port uint16, err error) {
	if network != kind && network != kind+"4" && network != kind+"6" {
		return nil, 0, net.UnknownNetworkError(network)
	}
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return nil, 0, err
	}
	num, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return nil, 0, &net.AddrError{Err: "want a port from 0 to 65535", Addr: address}
	}
	c := &n.cfg
	all4, all6 := []netip.Addr{c.Gateway4}, []netip.Addr{c.Gateway6, n.linkLocal}
	a, err := netip.ParseAddr(host)
	switch {
	case host == "":
		addrs = append(all4, all6...)
	case err != nil:
		return nil, 0, &net.AddrError{Err: "want an address, or none for the gateway's own", Addr: address}
	case a.IsUnspecified() && a.Is4():
		addrs = all4
	case a.IsUnspecified() && network == kind: // as package net's, for all
		addrs = append(all4, all6...)
	case a.IsUnspecified():
		addrs = all6
	default:
		addrs = []netip.Addr{a}
	}
	switch network[len(kind):] {
	case "4":
		if addrs = keep(addrs, netip.Addr.Is4); len(addrs) == 0 {
			return nil, 0, &net.AddrError{Err: "not an IPv4 address", Addr: host}
		}
	case "6":
		if addrs = keep(addrs, netip.Addr.Is6); len(addrs) == 0 {
			return nil, 0, &net.AddrError{Err: "not an IPv6 address", Addr: host}
		}
	}
	for _, a := range addrs {
		switch {
		case n.isOurs(a):
		case a.Is4In6() || a.Zone() != "" || a.IsMulticast() || a.IsLoopback() || a.Is6() && a.IsLinkLocalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			return nil, 0, fmt.Errorf("%s: no guest's packets for it come to the gateway: %w", a, syscall.EADDRNOTAVAIL)
		case c.Prefix4.Contains(a) || c.Prefix6.Contains(a):
			return nil, 0, fmt.Errorf("%s is the guests': want the gateway's, %s and %s, or one outside their prefixes: %w", a, c.Gateway4, c.Gateway6, syscall.EADDRNOTAVAIL)
		}
	}
	return addrs, uint16(num), nil
}

func keep(list []netip.Addr, ok func(netip.Addr) bool) (kept []netip.Addr) {
	for _, a := range list {
		if ok(a) {
			kept = append(kept, a)
		}
	}
	return kept
}

// add makes v what listens at all of at, or at none.
func add[T any](i *inside, table *atomic.Pointer[map[netip.AddrPort]*T], at []netip.AddrPort, v *T) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return ErrClosed
	}
	next := map[netip.AddrPort]*T{}
	if old := table.Load(); old != nil {
		maps.Copy(next, *old)
	}
	for _, a := range at {
		if next[a] != nil {
			return fmt.Errorf("%s: the program listens there already: %w", a, syscall.EADDRINUSE)
		}
		next[a] = v
	}
	table.Store(&next)
	return nil
}

// remove takes v out wherever it listens.
func remove[T any](i *inside, table *atomic.Pointer[map[netip.AddrPort]*T], v *T) {
	i.mu.Lock()
	defer i.mu.Unlock()
	old := table.Load()
	if old == nil {
		return
	}
	next := maps.Clone(*old)
	maps.DeleteFunc(next, func(_ netip.AddrPort, x *T) bool { return x == v })
	if len(next) == 0 {
		table.Store(nil)
		return
	}
	table.Store(&next)
}

// close ends all listeners: the network is closing.
func (i *inside) close() {
	i.mu.Lock()
	i.closed = true
	tcp, udp := i.tcp.Load(), i.udp.Load()
	i.mu.Unlock()
	if tcp != nil {
		for _, l := range *tcp {
			l.Close()
		}
	}
	if udp != nil {
		for _, c := range *udp {
			c.Close()
		}
	}
}

// sweep ends guests' UDP conversations with the program that are idle for as long as with anybody else.
func (i *inside) sweep() {
	m := i.udp.Load()
	if m == nil {
		return
	}
	for _, c := range *m {
		c.sweep()
	}
}

// waiting is what guests have sent and the program has not taken: a share for each guest, so that none can fill
// another's.
type waiting[T any] struct {
	wake chan struct{} // has room for one; sent to while there is something

	mu    sync.Mutex
	items []waitingItem[T]
	held  map[*port]int // of each guest's share
}

type waitingItem[T any] struct {
	v    T
	port *port
	size int
}

func newWaiting[T any]() *waiting[T] {
	return &waiting[T]{wake: make(chan struct{}, 1), held: map[*port]int{}}
}

// hold takes size of a guest's share, and reports whether it fits into most.
func (w *waiting[T]) hold(p *port, size, most int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held[p]+size > most {
		return false
	}
	w.held[p] += size
	return true
}

// free gives back what hold took, where nothing was put.
func (w *waiting[T]) free(p *port, size int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.freeLocked(p, size)
}

func (w *waiting[T]) freeLocked(p *port, size int) {
	if w.held[p] -= size; w.held[p] == 0 {
		delete(w.held, p)
	}
}

// put adds what has its place held.
func (w *waiting[T]) put(v T, p *port, size int) {
	w.mu.Lock()
	w.items = append(w.items, waitingItem[T]{v, p, size})
	w.mu.Unlock()
	w.signal()
}

func (w *waiting[T]) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns the oldest.
func (w *waiting[T]) take() (v T, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.items) == 0 {
		return v, false
	}
	i := w.items[0]
	w.items[0] = waitingItem[T]{}
	if w.items = w.items[1:]; len(w.items) > 0 {
		w.signal() // for another taker
	} else {
		w.items = nil
	}
	w.freeLocked(i.port, i.size)
	return i.v, true
}

// listener is a net.Listener.
type listener struct {
	unjudged bool // no policy is asked
	net      *Network
	at       []netip.AddrPort
	addr     *net.TCPAddr
	conns    *waiting[net.Conn]
	done     chan struct{}

	mu     sync.Mutex
	closed bool
}

// put gives Accept a conversation whose place is held.
func (l *listener) put(p *port, c net.Conn) {
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.conns.put(c, p, 1)
	}
	l.mu.Unlock()
	if closed {
		abort(c)
	}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		select {
		case <-l.done: // what waits now is Close's to end
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
		default:
		}
		if c, ok := l.conns.take(); ok {
			return c, nil
		}
		select {
		case <-l.conns.wake:
		case <-l.done:
		}
	}
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.addr }

// Close implements net.Listener. Conversations that were accepted go on.
func (l *listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return &net.OpError{Op: "close", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
	}
	l.closed = true
	remove(&l.net.inside, &l.net.inside.tcp, l)
	close(l.done)
	for {
		c, ok := l.conns.take()
		if !ok {
			return nil
		}
		abort(c)
	}
}

// toProgram answers a SYN for an address that the program listens on, and reports whether it is taken: else the stack
// sends a reset.
func (t *tcpSide) toProgram(id stack.TransportEndpointID, pkt *stack.PacketBuffer, l *listener) bool {
	p := t.port
	if !l.conns.hold(p, 1, insideBacklog) {
		p.drop(flows.ReasonRateLimit)
		return true
	}
	src, dst := ends(id)
	c := &flowConn{}
	d := &dial{}
	ctx, cancel := context.WithCancel(p.ctx)
	f, v := p.net.admit(p, flows.Query{Guest: p.id, Proto: flows.TCP, Src: src, Dst: dst}, func(flows.Reason) {
		cancel()
		c.end()
		t.giveUp(id, d)
	})
	if f == nil {
		cancel()
		l.conns.free(p, 1)
		return !t.reject(pkt, dst, v)
	}
	d.accept = func(guest *tcpConn) {
		f.SetState(flows.Open)
		c.start(guest, f)
		l.put(p, c)
	}
	d.fail = func() {
		l.conns.free(p, 1)
		f.End(flows.ReasonTimeout)
	}
	t.hold(id, d)
	shake := func() {
		if !t.shake(id, d, pkt) {
			t.releaseIf(id, d)
			d.fail()
		}
	}
	if v.Pending == nil {
		cancel()
		shake()
		return true
	}
	pkt = pkt.IncRef()
	p.goes("ask", func() {
		defer pkt.DecRef()
		defer cancel()
		if v := p.settle(ctx, f, v); !v.Allow {
			t.releaseIf(id, d)
			l.conns.free(p, 1)
			t.refuse(pkt, id, v)
			return
		}
		shake()
	})
	return true
}

// packetConn is a net.PacketConn.
type packetConn struct {
	net      *Network
	at       []netip.AddrPort
	addr     *net.UDPAddr
	in       *waiting[insideDatagram]
	done     chan struct{}
	once     sync.Once
	deadline sockets.Deadline

	mu    sync.Mutex
	peers map[netip.AddrPort]*insidePeer // by the guest's address
}

// insidePeer is a guest's conversation with the program: a flow like any other, so flows.Limits bound how many there are.
type insidePeer struct {
	port  *port
	flow  *flows.Flow
	local netip.AddrPort
}

type insideDatagram struct {
	b    []byte
	from netip.AddrPort
}

// fromGuest takes a datagram, whose payload is the caller's again when it returns.
func (c *packetConn) fromGuest(p *port, src, dst netip.AddrPort, payload []byte) {
	q := c.peer(p, src, dst, flows.Query{Guest: p.id, Proto: flows.UDP, Src: src, Dst: dst}, len(payload))
	if q == nil {
		return
	}
	if q.flow.State() == flows.Dialing { // somebody is asked; its sender sends it again
		p.drop(flows.ReasonUnanswered)
		return
	}
	q.flow.Touch()
	q.flow.Up.Add(len(payload))
	size := itemCost + len(payload)
	if !c.in.hold(p, size, insideBytes) {
		p.drop(flows.ReasonQueueFull)
		return
	}
	c.in.put(insideDatagram{append([]byte(nil), payload...), src}, p, size)
}

// peer is the conversation with a guest's address, opened if there is none.
func (c *packetConn) peer(p *port, guest, local netip.AddrPort, ask flows.Query, size int) *insidePeer {
	c.mu.Lock()
	q := c.peers[guest]
	if q != nil && q.port == p {
		q.local = local
	}
	c.mu.Unlock()
	switch {
	case q == nil:
	case q.port == p:
		return q
	default: // an address off the link, which two guests may both route for
		p.drop(flows.ReasonSpoofed)
		return nil
	}
	q = &insidePeer{port: p, local: local}
	ctx, cancel := context.WithCancel(p.ctx)
	f, v := p.net.admit(p, ask, func(flows.Reason) { cancel(); c.forget(guest, q) })
	if f == nil {
		cancel()
		if ask.Dir == flows.Out {
			p.udp.reject(ask.Src, ask.Dst, size, v)
		}
		return nil
	}
	switch {
	case v.Pending == nil:
		f.SetState(flows.Open)
		defer cancel()
	case ask.Dir == flows.In: // writers do not wait
		p.drops[flows.ReasonUnanswered].Add(1)
		f.End(flows.ReasonUnanswered)
		cancel()
		return nil
	}
	q.flow = f
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
		f.End(flows.ReasonClosed)
		cancel()
		return nil
	default:
	}
	if f.State() == flows.Closed {
		return nil // it made room already
	}
	if other := c.peers[guest]; other != nil { // a reader and a writer may have opened it both
		f.End(flows.ReasonEvicted)
		cancel()
		return other
	}
	c.peers[guest] = q
	if v.Pending != nil {
		p.goes("ask", func() {
			defer cancel()
			if v := p.settle(ctx, f, v); v.Allow {
				f.SetState(flows.Open)
			} else {
				c.forget(guest, q)
				p.udp.reject(ask.Src, ask.Dst, size, v)
			}
		})
	}
	return q
}

func (c *packetConn) forget(guest netip.AddrPort, q *insidePeer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peers[guest] == q {
		delete(c.peers, guest)
	}
}

func (c *packetConn) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for a, q := range c.peers {
		if q.flow.Idle() > udpIdle {
			q.flow.End(flows.ReasonIdle)
			delete(c.peers, a)
		}
	}
}

func (c *packetConn) fail(op string, to net.Addr, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: c.addr, Addr: to, Err: err}
}

// ReadFrom implements net.PacketConn. A datagram longer than b is cut.
func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		late := c.deadline.Passed()
		select { // what is past is told before what waits
		case <-c.done:
			return 0, nil, c.fail("read", nil, net.ErrClosed)
		default:
		}
		select {
		case <-late:
			return 0, nil, c.fail("read", nil, os.ErrDeadlineExceeded)
		default:
		}
		if d, ok := c.in.take(); ok {
			return copy(b, d.b), net.UDPAddrFromAddrPort(d.from), nil
		}
		select {
		case <-c.in.wake:
		case <-c.done:
		case <-late:
		}
	}
}

// WriteTo implements net.PacketConn. It never waits: a guest that does not read loses datagrams.
func (c *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, c.fail("write", to, fmt.Errorf("a %T is no *net.UDPAddr", to))
	}
	select {
	case <-c.done:
		return 0, c.fail("write", to, net.ErrClosed)
	default:
	}
	guest := netip.AddrPortFrom(u.AddrPort().Addr().Unmap().WithZone(""), u.AddrPort().Port())
	if a := guest.Addr(); a.Is4() && len(b) > egress.MaxPayload4 || len(b) > egress.MaxPayload6 {
		return 0, c.fail("write", to, syscall.EMSGSIZE)
	}
	c.mu.Lock()
	q := c.peers[guest]
	c.mu.Unlock()
	if q == nil {
		local, ok := c.localFor(guest.Addr())
		if !ok {
			return 0, c.fail("write", to, syscall.EADDRNOTAVAIL)
		}
		o, ok := c.net.seg.owner(guest.Addr())
		if !ok {
			return 0, c.fail("write", to, fmt.Errorf("no guest has shown that address: %w", syscall.EHOSTUNREACH))
		}
		if q = c.peer(o.port, guest, local, flows.Query{Guest: o.port.id, Proto: flows.UDP, Dir: flows.In, Src: local, Dst: guest}, len(b)); q == nil {
			return 0, c.fail("write", to, syscall.EPERM)
		}
	}
	q.flow.Touch()
	q.flow.Down.Add(len(b))
	c.mu.Lock()
	local := q.local
	c.mu.Unlock()
	q.port.sendUDP(local, guest, b)
	return len(b), nil
}

func (c *packetConn) localFor(guest netip.Addr) (netip.AddrPort, bool) {
	for _, a := range c.at {
		if a.Addr().Is4() == guest.Is4() {
			return a, true
		}
	}
	return netip.AddrPort{}, false
}

// LocalAddr implements net.PacketConn.
func (c *packetConn) LocalAddr() net.Addr { return c.addr }

// SetDeadline implements net.PacketConn; writes do not wait.
func (c *packetConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline implements net.PacketConn.
func (c *packetConn) SetReadDeadline(t time.Time) error {
	c.deadline.Set(t)
	return nil
}

// SetWriteDeadline implements net.PacketConn.
func (c *packetConn) SetWriteDeadline(time.Time) error { return nil }

// Close implements net.PacketConn.
func (c *packetConn) Close() error {
	err := c.fail("close", nil, net.ErrClosed)
	c.once.Do(func() {
		err = nil
		remove(&c.net.inside, &c.net.inside.udp, c)
		c.mu.Lock()
		close(c.done)
		peers := c.peers
		c.peers = map[netip.AddrPort]*insidePeer{}
		c.mu.Unlock()
		for _, q := range peers {
			q.flow.End(flows.ReasonClosed)
		}
	})
	return err
}

var (
	_ net.Listener   = (*listener)(nil)
	_ net.PacketConn = (*packetConn)(nil)
	_ io.ReadWriter  = (*flowConn)(nil)
)
