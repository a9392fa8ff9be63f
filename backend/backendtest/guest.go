// Package backendtest is a guest for tests: one of package guest, which has a TCP/IP stack of its own, with builders of
// frames, right and wrong ones, and checks of what comes back. Our tests use it, and yours may.
//
//	n, _ := backend.New(backend.Config{Egress: &backendtest.Egress{}})
//	defer n.Close()
//	g := backendtest.Plug(t, n, backendtest.Config{Name: "web"})
//	g.Up(t) // a lease and an address of the advertised prefix
//	c, err := g.Dial(ctx, "tcp", netip.MustParseAddrPort("10.0.2.2:8080"))
//	if err != nil {
//		t.Fatal(err)
//	}
//	w := g.Watch(backendtest.IsTCP("R"))
//	g.Send(g.IP(gateway, backendtest.TCP{SrcPort: 1, DstPort: 2, Flags: "A", Ack: 7})...)
//	w.Expect(t)
//
// [Plug] takes whatever serves a [link.Link]; [New] takes a link, so that a guest can stand behind a socket as well:
//
//	g, err := backendtest.New(qemu.NewLink(conn), backendtest.Config{})
//
// A test waits for states, never for seconds. That something did not come is proved by what came after it: [Guest.Sync]
// asks the gateway and waits for its answer, which stands behind all answers to what was sent before.
//
// It is not a model of any real guest's driver, and it takes no care of speed.
package backendtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/guest"
	"github.com/vmnetd/vmnetd/backend/link"
)

// Patience is how long a test waits for what must come. Only a test that fails waits that long.
var Patience = 20 * time.Second

// PipeDepth is how many frames stand on the wire that Plug makes, about what a socket buffer of 256 KiB holds.
const PipeDepth = 256

// Config is a guest. The zero Config is a guest with a MAC that no other guest of the process has.
type Config struct {
	MAC  net.HardwareAddr // default 52:54:00 and a number
	Name string           // the host name that it leases under
	MTU  int              // default 1500
	// Addrs are addresses from the start, beside the link-local one that every guest has.
	Addrs []netip.Prefix
	// Gateway4 and Gateway6 are routers from the start; a lease and an advertisement bring their own.
	Gateway4, Gateway6 netip.Addr
}

// Server serves guests; backend.Network does.
type Server interface {
	Serve(ctx context.Context, l link.Link, name string) error
}

// Guest is a guest. Its methods may be called by several goroutines. What it can do as a station it has of package
// guest; here is what a test wants of it besides.
type Guest struct {
	*guest.Guest
	cfg   Config
	ended chan struct{} // the watches have heard that the wire has

	mu       sync.Mutex
	watches  []*Watch
	gateway4 netip.Addr // an answer's, before there is a lease
	received uint64
	longest  int

	syncs atomic.Uint32
}

var guests atomic.Uint32

// New plugs a guest to its end of a wire.
func New(l link.Link, c Config) (*Guest, error) {
	if c.MAC == nil {
		c.MAC = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0}
		n := guests.Add(1)
		c.MAC[3], c.MAC[4], c.MAC[5] = byte(n>>16), byte(n>>8), byte(n)
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	g := &Guest{cfg: c, ended: make(chan struct{})}
	var err error
	g.Guest, err = guest.New(context.Background(), l, guest.Config{
		MAC: c.MAC, Name: c.Name, MTU: c.MTU, Static: true, Addrs: c.Addrs, Gateway4: c.Gateway4, Gateway6: c.Gateway6, Seen: g.seen,
	})
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(g.ended)
		<-g.Gone()
		g.mu.Lock()
		ws := slices.Clone(g.watches)
		g.mu.Unlock()
		for _, w := range ws {
			w.end()
		}
	}()
	return g, nil
}

// Plug makes a wire, has s serve one end and puts a guest to the other. Both end with the test.
func Plug(t testing.TB, s Server, c Config) *Guest {
	t.Helper()
	near, far := link.Pipe(PipeDepth)
	g, err := New(near, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := s.Serve(ctx, far, "pipe "+c.Name); err != nil {
			t.Errorf("guest %s was not served: %v", g.MAC(), err)
		}
	}()
	t.Cleanup(func() {
		g.Close()
		cancel()
		<-served
	})
	return g
}

// Up leases an address and makes one of the advertised prefix.
func (g *Guest) Up(t testing.TB) *Guest {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if _, err := g.Lease(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Autoconf(ctx); err != nil {
		t.Fatal(err)
	}
	return g
}

// Close pulls the plug.
func (g *Guest) Close() error {
	err := g.Guest.Close()
	<-g.ended
	return err
}

// LinkLocal is the address that every guest has.
func (g *Guest) LinkLocal() netip.Addr { return LinkLocal(g.cfg.MAC) }

// Gateway4 is the router, or who has answered for it before there was a lease.
func (g *Guest) Gateway4() netip.Addr {
	if a := g.Guest.Gateway4(); a.IsValid() {
		return a
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gateway4
}

// Resolve asks who has a neighbour's address, as any station would.
func (g *Guest) Resolve(ctx context.Context, a netip.Addr) (net.HardwareAddr, error) {
	var w *Watch
	var ask []byte
	if a.Is4() {
		w = g.Watch(IsARP(ARPReply, a))
		ask = Build(Ethernet{Src: g.MAC()}, ARP{SenderMAC: g.MAC(), Sender: g.Addr4(), Target: a})
	} else {
		w = g.Watch(IsNA(a), Good())
		group := SolicitedNode(a)
		ask = Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: MulticastMAC(group)}, IPv6{Src: g.LinkLocal(), Dst: group}}, NeighborSolicit(a, g.MAC())...)...)
	}
	defer w.Stop()
	if err := g.Send(ask); err != nil {
		return nil, err
	}
	p, err := w.Next(ctx)
	if err != nil {
		return nil, fmt.Errorf("backendtest: who has %s: %w", a, err)
	}
	if p.ARP != nil {
		return p.ARP.SenderMAC, nil
	}
	return net.HardwareAddr(p.Payload[18:24]), nil
}

// GatewayMAC is where frames for the world go.
func (g *Guest) GatewayMAC(t testing.TB) net.HardwareAddr {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	a := g.Gateway4()
	if !a.IsValid() {
		a = g.Gateway6()
	}
	m, err := g.Resolve(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// IP makes a frame to the gateway with the guest's address of dst's family as its source.
func (g *Guest) IP(t testing.TB, dst netip.Addr, layers ...Layer) []byte {
	t.Helper()
	return g.Via(g.GatewayMAC(t), dst, layers...)
}

// Via is IP with the next hop's MAC given.
func (g *Guest) Via(hop net.HardwareAddr, dst netip.Addr, layers ...Layer) []byte {
	var h Layer
	switch {
	case dst.Is4():
		h = IPv4{Src: g.Addr4(), Dst: dst}
	case dst.IsLinkLocalUnicast() || dst.IsLinkLocalMulticast() || !g.Addr6().IsValid():
		h = IPv6{Src: g.LinkLocal(), Dst: dst}
	default:
		h = IPv6{Src: g.Addr6(), Dst: dst}
	}
	return Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: hop}, h}, layers...)...)
}

// Received is how many frames came, and how long the longest was.
func (g *Guest) Received() (frames uint64, longest int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.received, g.longest
}

// seen is shown each frame that comes, and says whether the stack is to have it.
func (g *Guest) seen(f []byte) bool {
	g.mu.Lock()
	g.received++
	g.longest = max(g.longest, len(f))
	ws := slices.Clone(g.watches)
	g.mu.Unlock()
	if len(ws) > 0 {
		p := Parse(f)
		for _, w := range ws {
			w.see(p)
		}
	}
	// Exchange4 and Exchange6 are the clients; the stack would answer that nobody listens there
	return len(f) < 14 || !isDHCPAnswer(f)
}

func isDHCPAnswer(f []byte) bool {
	off, proto, server, client := 14+20, 14+9, uint16(67), uint16(68)
	if binary.BigEndian.Uint16(f[12:]) == EtherIPv6 {
		off, proto, server, client = 14+40, 14+6, 547, 546
	}
	return len(f) >= off+8 && f[proto] == ProtoUDP && binary.BigEndian.Uint16(f[off:]) == server && binary.BigEndian.Uint16(f[off+2:]) == client
}

// Watch collects the frames that pass its checks, from the moment it was made.
type Watch struct {
	guest  *Guest
	checks []Check

	mu    sync.Mutex
	got   []*Packet
	not   []string // the last that did not pass, and why
	ended bool
	wake  chan struct{} // has room for one
}

// Watch begins to collect frames.
func (g *Guest) Watch(checks ...Check) *Watch {
	w := &Watch{guest: g, checks: checks, wake: make(chan struct{}, 1)}
	g.mu.Lock()
	g.watches = append(g.watches, w)
	g.mu.Unlock()
	select {
	case <-g.Gone():
		w.end()
	default:
	}
	return w
}

// Stop ends the collection.
func (w *Watch) Stop() {
	g := w.guest
	g.mu.Lock()
	defer g.mu.Unlock()
	g.watches = slices.DeleteFunc(g.watches, func(x *Watch) bool { return x == w })
}

func (w *Watch) end() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.signal()
}

func (w *Watch) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *Watch) see(p *Packet) {
	err := All(w.checks...)(p)
	w.mu.Lock()
	if err == nil {
		w.got = append(w.got, p)
	} else {
		const kept = 8 // enough to see what came instead
		if len(w.not) >= kept {
			w.not = w.not[1:]
		}
		w.not = append(w.not, fmt.Sprintf("%s: %v", p, err))
	}
	w.mu.Unlock()
	if err == nil {
		w.signal()
	}
}

// Next waits for the next frame of the collection.
func (w *Watch) Next(ctx context.Context) (*Packet, error) {
	for {
		w.mu.Lock()
		if len(w.got) > 0 {
			p := w.got[0]
			w.got = w.got[1:]
			w.mu.Unlock()
			return p, nil
		}
		ended, not := w.ended, slices.Clone(w.not)
		w.mu.Unlock()
		if ended {
			return nil, fmt.Errorf("backendtest: the wire ended: %w", io.EOF)
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return nil, fmt.Errorf("backendtest: no such frame came (%w); the last others: %q", ctx.Err(), not)
		}
	}
}

// Expect is Next for a test: it fails the test if none comes.
func (w *Watch) Expect(t testing.TB) *Packet {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	p, err := w.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Got is what was collected and not taken by Next.
func (w *Watch) Got() []*Packet {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.got)
}

// None fails the test if anything was collected once all that was sent has been answered (see Guest.Sync).
func (w *Watch) None(t testing.TB) {
	t.Helper()
	w.guest.Sync(t)
	if got := w.Got(); len(got) > 0 {
		t.Errorf("%d frames came that should not have; the first: %s", len(got), got[0])
	}
}

// Sync returns when the gateway has dealt with all frames that were sent before, as far as it does so in order: it
// asks for the gateway's address, and the answer comes behind the others'. With no IPv4 gateway known it asks the IPv6 one.
func (g *Guest) Sync(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := g.sync(ctx); err != nil {
		t.Fatal(err)
	}
}

func (g *Guest) sync(ctx context.Context) error {
	a := g.Gateway4()
	if !a.IsValid() {
		if a = g.Gateway6(); !a.IsValid() {
			return errors.New("backendtest: sync: no gateway is known; set Config.Gateway4")
		}
		_, err := g.Resolve(ctx, a)
		return err
	}
	// The question has a mark that its answer brings back: where the answer is to go. Nothing is learnt from it.
	n := g.syncs.Add(1)
	mark := net.HardwareAddr{2, 'S', byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	w := g.Watch(IsARP(ARPReply, a), ToMAC(mark))
	defer w.Stop()
	if err := g.Send(Build(Ethernet{Src: g.MAC()}, ARP{SenderMAC: mark, Sender: g.Addr4(), Target: a})); err != nil {
		return err
	}
	_, err := w.Next(ctx)
	return err
}
