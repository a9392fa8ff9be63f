// Package backendtest is a guest without a machine: a TCP/IP stack of its own at the far end of a link, builders of
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

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

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

// Guest is a guest. Its methods may be called by several goroutines.
type Guest struct {
	cfg   Config
	link  link.Link
	stack *stack.Stack
	wire  *wire
	done  chan struct{} // the reader has ended
	err   error         // why; after done

	writeMu sync.Mutex

	mu       sync.Mutex
	watches  []*Watch
	addrs    []netip.Prefix
	gateway4 netip.Addr
	gateway6 netip.Addr
	dns      []netip.Addr
	received uint64
	longest  int

	syncs atomic.Uint32
}

var guests atomic.Uint32

const nicID = 1

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
	g := &Guest{cfg: c, link: l, done: make(chan struct{}), gateway4: c.Gateway4, gateway6: c.Gateway6}
	g.wire = &wire{guest: g, mtu: uint32(c.MTU) + header.EthernetMinimumSize}
	noDAD := stack.DADConfigurations{RetransmitTimer: time.Second} // a test's addresses are its own, and waiting a second for each is not
	g.stack = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			ipv4.NewProtocol, arp.NewProtocol,
			ipv6.NewProtocolWithOptions(ipv6.Options{AutoGenLinkLocal: true, DADConfigs: noDAD}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := g.stack.CreateNIC(nicID, ethernet.New(g.wire)); err != nil {
		g.stack.Destroy()
		return nil, fmt.Errorf("backendtest: create nic: %s", err)
	}
	for _, a := range c.Addrs {
		if err := g.AddAddr(a); err != nil {
			g.stack.Destroy()
			return nil, err
		}
	}
	g.route()
	go g.read()
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
	err := g.link.Close()
	<-g.done
	g.stack.Destroy()
	return err
}

// Gone is closed when the wire has ended.
func (g *Guest) Gone() <-chan struct{} { return g.done }

// MAC is the guest's own.
func (g *Guest) MAC() net.HardwareAddr { return slices.Clone(g.cfg.MAC) }

// LinkLocal is the address that every guest has.
func (g *Guest) LinkLocal() netip.Addr { return LinkLocal(g.cfg.MAC) }

// Addr4 is the first IPv4 address, Addr6 the first IPv6 address but the link-local one.
func (g *Guest) Addr4() netip.Addr { return g.first(netip.Addr.Is4) }
func (g *Guest) Addr6() netip.Addr { return g.first(netip.Addr.Is6) }

func (g *Guest) first(is func(netip.Addr) bool) netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range g.addrs {
		if is(a.Addr()) {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

// Gateway4 and Gateway6 are the routers of the lease and of the advertisement.
func (g *Guest) Gateway4() netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gateway4
}

// Gateway6 is the router of the advertisement.
func (g *Guest) Gateway6() netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gateway6
}

// DNS are the resolvers that the lease and the advertisement named.
func (g *Guest) DNS() []netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.dns)
}

// AddAddr makes an address the guest's.
func (g *Guest) AddAddr(a netip.Prefix) error {
	pa := tcpip.ProtocolAddress{Protocol: protoNumber(a.Addr()), AddressWithPrefix: tcpip.AddressWithPrefix{Address: toTCPIP(a.Addr()), PrefixLen: a.Bits()}}
	if err := g.stack.AddProtocolAddress(nicID, pa, stack.AddressProperties{}); err != nil {
		if _, dup := err.(*tcpip.ErrDuplicateAddress); dup {
			return nil
		}
		return fmt.Errorf("backendtest: add address %s: %s", a, err)
	}
	g.mu.Lock()
	g.addrs = append(g.addrs, a)
	g.mu.Unlock()
	g.route()
	return nil
}

// RemoveAddr takes an address from the guest.
func (g *Guest) RemoveAddr(a netip.Addr) {
	g.stack.RemoveAddress(nicID, toTCPIP(a))
	g.mu.Lock()
	g.addrs = slices.DeleteFunc(g.addrs, func(p netip.Prefix) bool { return p.Addr() == a })
	g.mu.Unlock()
	g.route()
}

// SetGateway makes the default route of a's family.
func (g *Guest) SetGateway(a netip.Addr) {
	g.mu.Lock()
	if a.Is4() {
		g.gateway4 = a
	} else {
		g.gateway6 = a
	}
	g.mu.Unlock()
	g.route()
}

func (g *Guest) route() {
	g.mu.Lock()
	defer g.mu.Unlock()
	subnet := func(p netip.Prefix) tcpip.Subnet {
		return (&tcpip.AddressWithPrefix{Address: toTCPIP(p.Addr()), PrefixLen: p.Bits()}).Subnet()
	}
	table := []tcpip.Route{{Destination: subnet(netip.MustParsePrefix("fe80::/64")), NIC: nicID}}
	for _, a := range g.addrs {
		table = append(table, tcpip.Route{Destination: subnet(a), NIC: nicID})
	}
	if g.gateway4.IsValid() {
		table = append(table, tcpip.Route{Destination: header.IPv4EmptySubnet, Gateway: toTCPIP(g.gateway4), NIC: nicID})
	}
	if g.gateway6.IsValid() {
		table = append(table, tcpip.Route{Destination: header.IPv6EmptySubnet, Gateway: toTCPIP(g.gateway6), NIC: nicID})
	}
	g.stack.SetRouteTable(table)
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

// Send puts frames on the wire as they are.
func (g *Guest) Send(frames ...[]byte) error {
	fs := make([]link.Frame, len(frames))
	for i, f := range frames {
		fs[i] = link.NewFrame(f)
	}
	g.writeMu.Lock()
	defer g.writeMu.Unlock()
	_, err := g.link.WriteFrames(fs)
	return err
}

// Received is how many frames came, and how long the longest was.
func (g *Guest) Received() (frames uint64, longest int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.received, g.longest
}

func (g *Guest) read() {
	defer close(g.done)
	var b link.Batch
	defer b.Release()
	for {
		b.Next()
		if err := g.link.ReadFrames(&b); err != nil {
			g.err = err
			g.mu.Lock()
			ws := slices.Clone(g.watches)
			g.mu.Unlock()
			for _, w := range ws {
				w.end()
			}
			return
		}
		for _, s := range b.Frames {
			g.frame(b.AppendTo(nil, s))
		}
	}
}

func (g *Guest) frame(f []byte) {
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
	if len(f) < 14 {
		return
	}
	if dst := net.HardwareAddr(f[:6]); dst[0]&1 == 0 && !slices.Equal(dst, g.cfg.MAC) {
		return // as a card that is not promiscuous
	}
	if isDHCPAnswer(f) {
		return // Exchange4 and Exchange6 are the clients; the stack would answer that nobody listens there
	}
	g.wire.deliver(f)
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
	case <-g.done:
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

// wire is the link as the guest's stack sees it.
type wire struct {
	guest *Guest
	mtu   uint32

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher
}

var _ stack.LinkEndpoint = (*wire)(nil)

func (w *wire) MTU() uint32                                  { return w.mtu }
func (w *wire) SetMTU(uint32)                                {}
func (w *wire) MaxHeaderLength() uint16                      { return 0 }
func (w *wire) LinkAddress() tcpip.LinkAddress               { return tcpip.LinkAddress(w.guest.cfg.MAC) }
func (w *wire) SetLinkAddress(tcpip.LinkAddress)             {}
func (w *wire) Capabilities() stack.LinkEndpointCapabilities { return 0 }
func (w *wire) Wait()                                        {}
func (w *wire) ARPHardwareType() header.ARPHardwareType      { return header.ARPHardwareEther }
func (w *wire) AddHeader(*stack.PacketBuffer)                {}
func (w *wire) ParseHeader(*stack.PacketBuffer) bool         { return true }
func (w *wire) Close()                                       {}
func (w *wire) SetOnCloseAction(func())                      {}

func (w *wire) Attach(d stack.NetworkDispatcher) {
	w.mu.Lock()
	w.dispatcher = d
	w.mu.Unlock()
}

func (w *wire) IsAttached() bool {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.dispatcher != nil
}

func (w *wire) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for i, p := range pkts.AsSlice() {
		v := p.ToView()
		err := w.guest.Send(v.AsSlice())
		v.Release()
		if err != nil {
			return i, &tcpip.ErrClosedForSend{}
		}
	}
	return pkts.Len(), nil
}

func (w *wire) deliver(f []byte) {
	w.mu.RLock()
	d := w.dispatcher
	w.mu.RUnlock()
	if d == nil {
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(f)})
	d.DeliverNetworkPacket(tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(f[12:])), pkt)
	pkt.DecRef()
}

func protoNumber(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func toTCPIP(a netip.Addr) tcpip.Address {
	if !a.IsValid() {
		return tcpip.Address{}
	}
	return tcpip.AddrFromSlice(a.AsSlice())
}

func fullAddr(a netip.AddrPort) tcpip.FullAddress {
	f := tcpip.FullAddress{Addr: toTCPIP(a.Addr()), Port: a.Port()}
	if a.Addr().IsLinkLocalUnicast() {
		f.NIC = nicID
	}
	return f
}

func toAddrPort(a tcpip.FullAddress) netip.AddrPort {
	if a.Addr.Len() == 4 {
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr.As4()), a.Port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr.As16()), a.Port)
}
