package backend

// The host's way in: a port forward, or the program that embeds the network, opens a conversation with a guest. It
// passes the same door as any other.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/sockets"
	"github.com/vmnetd/vmnetd/dhcp"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/portforward"
)

const (
	// findTime is how long a guest that has not been heard of is asked for, once every findAgain.
	findTime  = 2 * time.Second
	findAgain = 300 * time.Millisecond
)

// DialGuest opens a conversation with a guest's port; it implements portforward.Guest.
func (n *Network) DialGuest(ctx context.Context, proto, guest string, dst uint16, from netip.AddrPort, rule string) (net.Conn, error) {
	a, err := n.guestAddr(guest, from.Addr().Unmap())
	if err != nil {
		return nil, err
	}
	return n.dial(ctx, proto, netip.AddrPortFrom(a, dst), from, rule)
}

// DialContext opens a conversation with a guest, who sees it come from the gateway: network is tcp or udp, or with the
// family, tcp4. address is HOST:PORT, where HOST is a guest's address, a name that the network's DNS has for one (web,
// web.internal), or its MAC in brackets. The program stands where the host stands, so it reaches guests here and the
// world by package net; what is to go where a guest goes, through policy and egress, is dialled by a guest in process
// (package guest).
func (n *Network) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		var op *net.OpError
		if !errors.As(err, &op) {
			err = &net.OpError{Op: "dial", Net: network, Addr: namedAddr{network, address}, Err: err}
		}
		return nil, err
	}
	proto, family, err := sockets.Split(network)
	if err != nil {
		return fail(err)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fail(err)
	}
	num, err := net.DefaultResolver.LookupPort(ctx, network, port)
	if err != nil {
		return fail(err)
	}
	var want netip.Addr // any of the family wanted
	switch family {
	case "4":
		want = n.cfg.Gateway4
	case "6":
		want = n.cfg.Gateway6
	}
	a, err := n.guestAddr(host, want)
	if err != nil {
		return fail(err)
	}
	if want.IsValid() && a.Is4() != want.Is4() {
		return fail(&net.AddrError{Err: "guest has no IPv" + family + " address", Addr: host})
	}
	c, err := n.dial(ctx, proto, netip.AddrPortFrom(a, uint16(num)), netip.AddrPort{}, "")
	if err != nil {
		return fail(err)
	}
	return c, nil
}

// namedAddr is an address that was not resolved.
type namedAddr struct{ network, address string }

func (a namedAddr) Network() string { return a.network }
func (a namedAddr) String() string  { return a.address }

func (n *Network) dial(ctx context.Context, proto string, dst, from netip.AddrPort, rule string) (c net.Conn, err error) {
	if n.cfg.plain() {
		return nil, ErrNoUplink
	}
	p, err := n.find(ctx, dst.Addr())
	if err != nil {
		return nil, err
	}
	defer func() { // who dials is not the guest
		if r := recover(); r != nil {
			p.met("dial to it", r, debug.Stack())
			c, err = nil, fmt.Errorf("dial %s: a bug was met: %v", dst, r)
		}
	}()
	return p.dialIn(ctx, proto, dst, from, rule)
}

// dialIn opens a conversation with the guest.
func (p *port) dialIn(ctx context.Context, proto string, dst, from netip.AddrPort, rule string) (net.Conn, error) {
	n := p.net
	p.dialed.Store(time.Now().UnixNano())
	src := n.seenAs(from, dst.Addr())
	q := flows.Query{Guest: p.id, Proto: flows.TCP, Dir: flows.In, Dst: dst, Rule: rule}
	var err error
	var d dialIn
	if proto == "udp" {
		q.Proto = flows.UDP
		d, err = p.bindUDP(src, dst)
	} else {
		d, err = p.bindTCP(src, dst)
	}
	if err != nil {
		return nil, err
	}
	q.Src = d.source()
	if from.IsValid() && from != q.Src {
		q.Host = from
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &flowConn{loop: p.loop, cancel: cancel}
	f, v := n.admit(p, q, func(flows.Reason) { c.end() })
	if f == nil {
		d.Close()
		return nil, fmt.Errorf("conversation with %s: not admitted: %s", dst, v.Reason)
	}
	defer context.AfterFunc(p.ctx, cancel)()
	if v.Pending != nil {
		if v = p.settle(ctx, f, v); !v.Allow {
			d.Close()
			return nil, fmt.Errorf("conversation with %s: not admitted: %s", dst, v.Reason)
		}
	}
	conn, err := d.connect(ctx)
	if err != nil {
		f.End(reasonOf(egress.Classify(err)))
		return nil, err
	}
	f.SetState(flows.Open)
	c.start(conn, f)
	return c, nil
}

// dialIn is a conversation with a guest that has a source port, for its flow to show, and is not begun.
type dialIn interface {
	source() netip.AddrPort
	connect(context.Context) (net.Conn, error)
	Close() error // in place of connect
}

// guestAddr is the address of the guest that is named, of from's family where it has both.
func (n *Network) guestAddr(guest string, from netip.Addr) (netip.Addr, error) {
	if n.cfg.plain() {
		return netip.Addr{}, ErrNoUplink
	}
	if a, err := netip.ParseAddr(guest); err == nil {
		if !n.cfg.Prefix4.Contains(a) && !n.cfg.Prefix6.Contains(a) {
			if _, ok := n.seg.owner(a); !ok {
				return a, fmt.Errorf("guest %s: %w: not an address of %s or %s", a, portforward.ErrNoGuest, n.cfg.Prefix4, n.cfg.Prefix6)
			}
		}
		return a, nil
	}
	var addrs []netip.Addr
	if guest == "" {
		if _, ok := n.seg.owner(n.cfg.First4); ok && !from.Is6() {
			return n.cfg.First4, nil
		}
		ports := n.seg.all()
		for _, p := range ports {
			a := p.info().Addrs
			if len(ports) == 1 || slices.Contains(a, n.cfg.First4) {
				addrs = a
			}
		}
		if len(addrs) == 0 && len(ports) == 1 {
			return n.cfg.First4, nil // it has shown nothing yet: ask
		}
	} else if m, err := net.ParseMAC(guest); err == nil && len(m) == 6 {
		for _, l := range n.dhcp.ByMAC(dhcp.MAC(m)) {
			addrs = append(addrs, l.Addr)
		}
		addrs = append(addrs, n.seg.addrsOf(macOf(m))...)
	} else {
		for _, l := range n.dhcp.ByName(guest) {
			addrs = append(addrs, l.Addr)
			addrs = append(addrs, n.seg.addrsOf(mac(l.MAC))...)
		}
		if len(addrs) == 0 {
			addrs = n.recorded(guest)
		}
	}
	var best netip.Addr
	for _, a := range addrs {
		if a.IsLinkLocalUnicast() {
			continue
		}
		if !best.IsValid() || a.Is6() == from.Is6() && from.IsValid() || !from.IsValid() && a.Is4() && !best.Is4() {
			best = a
		}
	}
	if !best.IsValid() {
		if guest == "" {
			guest = n.cfg.First4.String()
		}
		return best, fmt.Errorf("guest %s: %w", guest, portforward.ErrNoGuest)
	}
	return best, nil
}

// recorded is what the network's DNS has for a name, with its domain or without, of the guests' addresses.
func (n *Network) recorded(name string) (addrs []netip.Addr) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	for _, r := range n.dns.List() {
		if own := strings.TrimSuffix(r.Name, "."); own != name && own != name+"."+n.cfg.Domain {
			continue
		}
		if a, err := netip.ParseAddr(r.Data); err == nil && !n.isOurs(a) && (n.cfg.Prefix4.Contains(a) || n.cfg.Prefix6.Contains(a)) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// present says whether a rule's guest is here.
func (n *Network) present(guest string) bool {
	a, err := n.guestAddr(guest, netip.Addr{})
	if err != nil {
		return false
	}
	_, ok := n.seg.owner(a)
	return ok
}

// find is the port that has an address; if none has shown it, all are asked.
func (n *Network) find(ctx context.Context, a netip.Addr) (*port, error) {
	if o, ok := n.seg.owner(a); ok {
		return o.port, nil
	}
	if l, ok := n.dhcp.Lookup(a); len(n.seg.all()) == 0 || ok && l.Away {
		return nil, fmt.Errorf("guest %s: %w", a, portforward.ErrNoGuest) // nobody to ask, or known to have gone
	}
	seen, cancel := n.seg.await(a)
	defer cancel()
	end := time.NewTimer(findTime)
	defer end.Stop()
	again := time.NewTicker(findAgain)
	defer again.Stop()
	for {
		n.askFor(a, nil)
		select {
		case <-seen:
			if o, ok := n.seg.owner(a); ok {
				return o.port, nil
			}
			return nil, fmt.Errorf("guest %s: %w", a, portforward.ErrNoGuest)
		case <-again.C:
		case <-end.C:
			return nil, fmt.Errorf("guest %s: %w", a, portforward.ErrNoGuest)
		case <-n.ctx.Done():
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// seenAs is the source that the guest sees: the client's own where it is asked for and of the guest's family, else the
// gateway's with a port of its own.
func (n *Network) seenAs(from netip.AddrPort, dst netip.Addr) netip.AddrPort {
	from = netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
	a := from.Addr()
	if from.IsValid() && a.Is4() == dst.Is4() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsUnspecified() &&
		!n.cfg.Prefix4.Contains(a) && !n.cfg.Prefix6.Contains(a) {
		return from
	}
	if dst.Is4() {
		return netip.AddrPortFrom(n.cfg.Gateway4, 0)
	}
	return netip.AddrPortFrom(n.cfg.Gateway6, 0)
}

// flowConn is a conversation with a guest that is counted in its flow.
type flowConn struct {
	net.Conn
	flow *flows.Flow
	loop *loop // of the guest, or nil

	closed        atomic.Bool // on this side
	local, remote net.Addr    // gVisor's own are gone once it is closed

	mu     sync.Mutex
	cancel context.CancelFunc // of the dial, while it goes on
	ended  bool               // by the table
	stop   func(flows.Reason) // ends it where the loop carries it: Conn is then the loop's alone
}

func (c *flowConn) start(conn net.Conn, f *flows.Flow) {
	c.mu.Lock()
	c.Conn, c.flow, c.cancel = conn, f, nil
	c.local, c.remote = conn.LocalAddr(), conn.RemoteAddr()
	ended := c.ended
	c.mu.Unlock()
	if t, ok := conn.(*tcpConn); ok {
		t.mem = t.of.join(t.ep, tcpBuffer, f)
	}
	if ended {
		abort(conn)
	}
}

// end is called by the flow table.
func (c *flowConn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.cancel != nil {
		c.cancel()
	}
	if c.stop != nil {
		c.stop(flows.ReasonReset)
	} else if c.Conn != nil {
		abort(c.Conn)
	}
}

func (c *flowConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 || err == nil {
		c.flow.Up.Add(n)
		c.flow.Touch()
	}
	if err == io.EOF {
		c.flow.SetState(flows.Closing)
	}
	return n, c.named("read", err)
}

// Guest is the id of the guest that it is with.
func (c *flowConn) Guest() string { return c.flow.Guest }

// LocalAddr implements net.Conn.
func (c *flowConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *flowConn) RemoteAddr() net.Addr { return c.remote }

// named makes an error one of package net's.
func (c *flowConn) named(op string, err error) error {
	if err == nil || err == io.EOF && !c.closed.Load() {
		return err
	}
	var o *net.OpError
	if !errors.As(err, &o) {
		err = &net.OpError{Op: op, Net: c.remote.Network(), Source: c.local, Addr: c.remote, Err: err}
	}
	return sockets.Name(err, c.closed.Load())
}

func (c *flowConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err == nil {
		c.flow.Down.Add(n)
		c.flow.Touch()
	}
	return n, c.named("write", err)
}

var (
	_ portforward.Carrier = (*flowConn)(nil)
	_ portforward.Prompt  = (*flowConn)(nil)
)

// Carry implements portforward.Carrier: where the guest has a loop, host's descriptor goes on it.
func (c *flowConn) Carry(host net.Conn, toGuest, toHost *atomic.Int64, over func(error)) bool {
	c.mu.Lock()
	t, ok := c.Conn.(*tcpConn)
	if !ok || c.loop == nil || c.ended {
		c.mu.Unlock()
		return false
	}
	fd, ok := takeDescriptor(host)
	if !ok {
		c.mu.Unlock()
		return false
	}
	c.stop = c.loop.carry(fd, t, c.flow, toGuest, toHost, over)
	gone := c.stop == nil
	c.mu.Unlock()
	host.Close() // the loop has its own
	if gone {
		c.Conn.Close()
		over(net.ErrClosed)
	}
	return true
}

// Receive implements portforward.Prompt.
func (c *flowConn) Receive(f func(p []byte, err error)) bool {
	u, ok := c.Conn.(*udpConn)
	if !ok {
		return false
	}
	u.receive(func(p []byte, err error) {
		if err == nil {
			c.flow.Up.Add(len(p))
			c.flow.Touch()
		}
		f(p, err)
	})
	return true
}

// CloseWrite ends this half, where the conversation has halves.
func (c *flowConn) CloseWrite() error {
	c.flow.SetState(flows.Closing)
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return c.named("close", h.CloseWrite())
	}
	return nil
}

// Abort ends the conversation with a reset.
func (c *flowConn) Abort() error {
	c.closed.Store(true)
	c.flow.End(flows.ReasonReset)
	c.end()
	return nil
}

func (c *flowConn) Close() error {
	c.closed.Store(true)
	c.flow.End(flows.ReasonClosed)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stop != nil {
		c.stop(flows.ReasonReset)
		return nil
	}
	return c.Conn.Close()
}
