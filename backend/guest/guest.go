// Package guest is a guest without a machine: a program that plugs into a network by its wire, as a virtual machine does,
// with a TCP/IP stack of its own. It leases an address, makes or leases its IPv6 ones, asks the network's DNS, and then dials and
// listens as with package net:
//
//	conn, err := net.Dial("tcp", "192.0.2.7:7001") // any connection: TCP, TLS, an ssh channel, a libp2p stream
//	if err != nil {
//		return err
//	}
//	g, err := guest.New(ctx, qemu.NewLink(conn), guest.Config{Name: "laptop"})
//	if err != nil {
//		return err
//	}
//	defer g.Close()
//	resp, err := g.HTTPClient().Get("http://intranet.example/")
//
// What it dials leaves where the network at the far end is: this is the entrance, and a backend.Network with Config.Routes
// is the exit. What that one does not let through it says so about: errors.Is(err, guest.ErrProhibited).
//
// [Guest.Egress] makes it the way out of another network, so that virtual machines here come out there.
//
// It has one interface and no firewall, and it does not encrypt: the connection below it does, or does not.
package guest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
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
	"github.com/vmnetd/vmnetd/backend/sockets"
)

// ErrProhibited is what dialling gets where the network answers that a guest may not go there (ICMP "administratively
// prohibited"). It is syscall.EACCES too.
var ErrProhibited = fmt.Errorf("prohibited by the network: its routes or its policy let no guest go there: %w", syscall.EACCES)

// wait6 is how long New waits for a router advertisement. A router answers at once or, without IPv6, never.
const wait6 = time.Second

// tcpBuffer is what a conversation may hold each way: as much as the network's own side does.
const tcpBuffer = 4 << 20

// Config is a guest. The zero Config asks the network for everything.
type Config struct {
	MAC  net.HardwareAddr // default 52:54:00 and three random bytes
	Name string           // the host name that it leases under, and is found by
	MTU  int              // default 1500

	// Static is a guest that asks nobody: no DHCP, no IPv6 autoconfiguration. It has what follows.
	Static bool
	// Addrs are addresses from the start, beside the link-local one that every guest has.
	Addrs []netip.Prefix
	// Gateway4 and Gateway6 are routers from the start.
	Gateway4, Gateway6 netip.Addr
	// DNS and Search are resolvers and search domains from the start.
	DNS    []netip.Addr
	Search []string

	// Seen, if not nil, is shown every frame that comes, and says whether the stack is to have it.
	Seen func(frame []byte) bool
}

// Guest is a guest. Its methods may be called by several goroutines.
type Guest struct {
	cfg   Config
	link  link.Link
	stack *stack.Stack
	wire  *wire
	stop  context.CancelFunc
	wg    sync.WaitGroup
	done  chan struct{} // the reader has ended
	err   error         // why; after done
	once  sync.Once
	dhcp  chan []byte // answers
	dhcp6 chan []byte
	run   context.Context // ends with Close and with the wire
	told  chan struct{}   // the router has advertised; closed once
	kick  chan struct{}   // routes have changed; room for one

	writeMu sync.Mutex

	mu       sync.Mutex
	addrs    []netip.Prefix
	onLink   []netip.Prefix // advertised
	gateway4 netip.Addr
	gateway6 netip.Addr
	dns      []netip.Addr
	search   []string
	managed  bool // addresses are DHCPv6's to give, and are asked for
	dials    map[netip.AddrPort]map[*attempt]struct{}
}

// attempt is what hears that a destination is prohibited.
type attempt struct{ fail func(error) }

// New plugs a guest to its end of a wire, and waits until it has its addresses. The guest takes l over.
func New(ctx context.Context, l link.Link, c Config) (*Guest, error) {
	if c.MAC == nil {
		c.MAC = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0}
		rand.Read(c.MAC[3:])
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	g := &Guest{
		cfg: c, link: l, done: make(chan struct{}), dhcp: make(chan []byte, 4), dhcp6: make(chan []byte, 4), told: make(chan struct{}), kick: make(chan struct{}, 1),
		gateway4: c.Gateway4, gateway6: c.Gateway6, dns: slices.Clone(c.DNS), search: slices.Clone(c.Search),
		dials: map[netip.AddrPort]map[*attempt]struct{}{},
	}
	g.wire = &wire{guest: g, mtu: uint32(c.MTU) + header.EthernetMinimumSize}
	o := ipv6.Options{AutoGenLinkLocal: true, DADConfigs: stack.DADConfigurations{RetransmitTimer: time.Second}} // no DAD: the network's guard gives an address to who shows it first
	if !c.Static {
		o.NDPConfigs = ipv6.NDPConfigurations{
			MaxRtrSolicitations: 3, RtrSolicitationInterval: 4 * time.Second, // RFC 4861 §10
			HandleRAs: ipv6.HandlingRAsEnabledWhenForwardingDisabled, DiscoverDefaultRouters: true, DiscoverOnLinkPrefixes: true, AutoGenGlobalAddresses: true,
		}
		o.NDPDisp = (*advertised)(g)
	}
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol, ipv6.NewProtocolWithOptions(o)},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	// As the network's own side has them (backend's stack.go): buffers of one size, nothing tuned.
	sndbuf := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: tcpBuffer, Max: tcpBuffer}
	rcvbuf := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: tcpBuffer, Max: 2 * tcpBuffer}
	moderate := tcpip.TCPModerateReceiveBufferOption(false)
	sack := tcpip.TCPSACKEnabled(true)
	recovery := tcpip.TCPRecovery(0)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sndbuf, &rcvbuf, &moderate, &sack, &recovery} {
		if err := g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			g.stack.Destroy()
			return nil, fmt.Errorf("guest: set %T: %s", o, err)
		}
	}
	run, stop := context.WithCancel(context.Background())
	g.run, g.stop = run, stop
	g.wg.Go(g.read)
	if err := g.start(ctx); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

func (g *Guest) start(ctx context.Context) error {
	run := g.run
	if err := g.stack.CreateNIC(sockets.NIC, ethernet.New(g.wire)); err != nil {
		return fmt.Errorf("guest: create nic: %s", err)
	}
	for _, a := range g.cfg.Addrs {
		if err := g.AddAddr(a); err != nil {
			return err
		}
	}
	g.route()
	if g.cfg.Static {
		return nil
	}
	g.wg.Go(func() {
		for {
			select {
			case <-g.kick:
				g.route()
			case <-run.Done():
				return
			}
		}
	})
	l, err := g.lease(ctx)
	if err != nil {
		return err
	}
	g.wg.Go(func() { g.keep(run, l) })
	t := time.NewTimer(wait6)
	defer t.Stop()
	select {
	case <-g.told:
		g.route()
	case <-t.C:
	case <-g.done:
	case <-ctx.Done():
		return fmt.Errorf("guest: %w", context.Cause(ctx))
	}
	return nil
}

// Close pulls the plug. Conversations end.
func (g *Guest) Close() error {
	err := g.link.Close()
	g.once.Do(func() {
		g.stop()
		g.wg.Wait()
		g.stack.Close() // ends what is open, so that whoever waits there wakes
		g.stack.Destroy()
	})
	return err
}

// Gone is closed when the wire has ended.
func (g *Guest) Gone() <-chan struct{} { return g.done }

// MAC is the guest's own.
func (g *Guest) MAC() net.HardwareAddr { return slices.Clone(g.cfg.MAC) }

// Addrs are the guest's addresses with their prefixes, oldest first, without the link-local one.
func (g *Guest) Addrs() []netip.Prefix {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.addrs)
}

// Addr4 is the first IPv4 address, Addr6 the first IPv6 address but the link-local one.
func (g *Guest) Addr4() netip.Addr { return g.first(netip.Addr.Is4) }

// Addr6 is the first IPv6 address but the link-local one.
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

// Gateway4 is the IPv4 router, of the lease or as set.
func (g *Guest) Gateway4() netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gateway4
}

// Gateway6 is the IPv6 router, of the advertisement or as set.
func (g *Guest) Gateway6() netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gateway6
}

// DNS are the resolvers that the network named.
func (g *Guest) DNS() []netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.dns)
}

// AddAddr makes an address the guest's.
func (g *Guest) AddAddr(a netip.Prefix) error {
	pa := tcpip.ProtocolAddress{Protocol: protoNumber(a.Addr()), AddressWithPrefix: tcpip.AddressWithPrefix{Address: toTCPIP(a.Addr()), PrefixLen: a.Bits()}}
	if err := g.stack.AddProtocolAddress(sockets.NIC, pa, stack.AddressProperties{}); err != nil {
		if _, dup := err.(*tcpip.ErrDuplicateAddress); dup {
			return nil
		}
		return fmt.Errorf("guest: add address %s: %s", a, err)
	}
	g.mu.Lock()
	g.addrs = append(g.addrs, a)
	g.mu.Unlock()
	g.route()
	return nil
}

// RemoveAddr takes an address from the guest.
func (g *Guest) RemoveAddr(a netip.Addr) {
	g.stack.RemoveAddress(sockets.NIC, toTCPIP(a))
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

// AddDNS names a resolver.
func (g *Guest) AddDNS(a netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Contains(g.dns, a) {
		g.dns = append(g.dns, a)
	}
}

func (g *Guest) route() {
	g.mu.Lock()
	defer g.mu.Unlock()
	subnet := func(p netip.Prefix) tcpip.Subnet {
		return (&tcpip.AddressWithPrefix{Address: toTCPIP(p.Addr()), PrefixLen: p.Bits()}).Subnet()
	}
	table := []tcpip.Route{{Destination: subnet(netip.MustParsePrefix("fe80::/64")), NIC: sockets.NIC}}
	for _, a := range slices.Concat(g.addrs, g.onLink) {
		table = append(table, tcpip.Route{Destination: subnet(a), NIC: sockets.NIC})
	}
	if g.gateway4.IsValid() {
		table = append(table, tcpip.Route{Destination: header.IPv4EmptySubnet, Gateway: toTCPIP(g.gateway4), NIC: sockets.NIC})
	}
	if g.gateway6.IsValid() {
		table = append(table, tcpip.Route{Destination: header.IPv6EmptySubnet, Gateway: toTCPIP(g.gateway6), NIC: sockets.NIC})
	}
	g.stack.SetRouteTable(table)
}

// OnLink says whether an address is reached without a router.
func (g *Guest) OnLink(a netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	in := func(p netip.Prefix) bool { return p.Contains(a) }
	return a.Is6() && a.IsLinkLocalUnicast() || slices.ContainsFunc(g.addrs, in) || slices.ContainsFunc(g.onLink, in)
}

// Send puts frames on the wire as they are.
func (g *Guest) Send(frames ...[]byte) error {
	fs := make([]link.Frame, len(frames))
	for i, f := range frames {
		fs[i] = link.NewFrame(f)
	}
	return g.write(fs)
}

func (g *Guest) write(fs []link.Frame) error {
	g.writeMu.Lock()
	defer g.writeMu.Unlock()
	_, err := g.link.WriteFrames(fs)
	return err
}

func (g *Guest) read() {
	defer close(g.done)
	var b link.Batch
	defer b.Release()
	for {
		b.Next()
		if g.err = g.link.ReadFrames(&b); g.err != nil {
			g.stop()
			return
		}
		for _, s := range b.Frames {
			g.frame(b.AppendTo(nil, s))
		}
	}
}

func (g *Guest) frame(f []byte) {
	if g.cfg.Seen != nil && !g.cfg.Seen(f) || len(f) < header.EthernetMinimumSize {
		return
	}
	if f[0]&1 == 0 && !slices.Equal(f[:6], g.cfg.MAC) {
		return // as a card that is not promiscuous
	}
	if !g.cfg.Static && (g.lessor(f) || g.lessor6(f)) || g.prohibited(f) {
		return
	}
	g.wire.deliver(f)
}

// prohibited tells whoever dials there that it is of no use, and reports whether that is what f says. The stack would
// try again for minutes where the news is IPv6's.
func (g *Guest) prohibited(f []byte) bool {
	body := f[header.EthernetMinimumSize:]
	var quoted []byte
	var proto byte
	var dst netip.Addr
	switch binary.BigEndian.Uint16(f[12:]) {
	case uint16(header.IPv4ProtocolNumber):
		if len(body) < 20+8+20+8 || body[0] != 0x45 || body[9] != byte(header.ICMPv4ProtocolNumber) || body[20] != 3 ||
			body[21] != 9 && body[21] != 10 && body[21] != 13 { // RFC 792, RFC 1812 §5.2.7.1
			return false
		}
		quoted = body[28:]
		hl := int(quoted[0]&15) * 4
		if hl < 20 || len(quoted) < hl+8 {
			return false
		}
		proto, dst, quoted = quoted[9], netip.AddrFrom4([4]byte(quoted[16:20])), quoted[hl:]
	case uint16(header.IPv6ProtocolNumber):
		if len(body) < 40+8+40+8 || body[6] != byte(header.ICMPv6ProtocolNumber) || body[40] != 1 ||
			body[41] != 1 && body[41] != 5 && body[41] != 6 { // RFC 4443 §3.1
			return false
		}
		quoted = body[48:]
		proto, dst, quoted = quoted[6], netip.AddrFrom16([16]byte(quoted[24:40])), quoted[40:]
	default:
		return false
	}
	if proto != byte(header.TCPProtocolNumber) && proto != byte(header.UDPProtocolNumber) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.dials[netip.AddrPortFrom(dst, binary.BigEndian.Uint16(quoted[2:]))]
	for a := range d {
		a.fail(ErrProhibited)
	}
	return len(d) > 0
}

// hear has fail called when dst turns out to be prohibited, until the function that it returns is called.
func (g *Guest) hear(dst netip.AddrPort, fail func(error)) (stop func()) {
	a := &attempt{fail}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dials[dst] == nil {
		g.dials[dst] = map[*attempt]struct{}{}
	}
	g.dials[dst][a] = struct{}{}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if delete(g.dials[dst], a); len(g.dials[dst]) == 0 {
			delete(g.dials, dst)
		}
	}
}

// advertised is the guest as the stack's neighbour discovery tells it of what a router advertised. It must not call the
// stack from there, so routes are set by a goroutine.
type advertised Guest

func (a *advertised) changed() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// toldLocked lets New return. Called with mu held.
func (a *advertised) toldLocked() {
	select {
	case <-a.told:
	default:
		close(a.told)
	}
}

// tell is toldLocked without mu.
func (g *Guest) tell() {
	g.mu.Lock()
	defer g.mu.Unlock()
	(*advertised)(g).toldLocked()
}

// OnDuplicateAddressDetectionResult implements ipv6.NDPDispatcher.
func (a *advertised) OnDuplicateAddressDetectionResult(tcpip.NICID, tcpip.Address, stack.DADResult) {}

// OnOffLinkRouteUpdated implements ipv6.NDPDispatcher.
func (a *advertised) OnOffLinkRouteUpdated(_ tcpip.NICID, dst tcpip.Subnet, router tcpip.Address, _ header.NDPRoutePreference) {
	if dst.Prefix() == 0 {
		a.mu.Lock()
		a.gateway6 = sockets.AddrOf(router)
		a.mu.Unlock()
		a.changed()
	}
}

// OnOffLinkRouteInvalidated implements ipv6.NDPDispatcher.
func (a *advertised) OnOffLinkRouteInvalidated(_ tcpip.NICID, dst tcpip.Subnet, router tcpip.Address) {
	a.mu.Lock()
	if dst.Prefix() == 0 && a.gateway6 == sockets.AddrOf(router) {
		a.gateway6 = netip.Addr{}
	}
	a.mu.Unlock()
	a.changed()
}

func prefixOf(s tcpip.Subnet) netip.Prefix {
	return netip.PrefixFrom(sockets.AddrOf(s.ID()), s.Prefix())
}

// OnOnLinkPrefixDiscovered implements ipv6.NDPDispatcher.
func (a *advertised) OnOnLinkPrefixDiscovered(_ tcpip.NICID, s tcpip.Subnet) {
	a.mu.Lock()
	a.onLink = append(a.onLink, prefixOf(s))
	a.mu.Unlock()
	a.changed()
}

// OnOnLinkPrefixInvalidated implements ipv6.NDPDispatcher.
func (a *advertised) OnOnLinkPrefixInvalidated(_ tcpip.NICID, s tcpip.Subnet) {
	a.mu.Lock()
	a.onLink = slices.DeleteFunc(a.onLink, func(p netip.Prefix) bool { return p == prefixOf(s) })
	a.mu.Unlock()
	a.changed()
}

// OnAutoGenAddress implements ipv6.NDPDispatcher.
func (a *advertised) OnAutoGenAddress(_ tcpip.NICID, p tcpip.AddressWithPrefix) stack.AddressDispatcher {
	own := netip.PrefixFrom(sockets.AddrOf(p.Address), p.PrefixLen)
	if own.Addr().IsLinkLocalUnicast() {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.addrs = append(a.addrs, own)
	a.changed()
	a.toldLocked()
	return nil
}

// OnAutoGenAddressDeprecated implements ipv6.NDPDispatcher.
func (a *advertised) OnAutoGenAddressDeprecated(tcpip.NICID, tcpip.AddressWithPrefix) {}

// OnAutoGenAddressInvalidated implements ipv6.NDPDispatcher.
func (a *advertised) OnAutoGenAddressInvalidated(_ tcpip.NICID, p tcpip.AddressWithPrefix) {
	a.mu.Lock()
	a.addrs = slices.DeleteFunc(a.addrs, func(q netip.Prefix) bool { return q.Addr() == sockets.AddrOf(p.Address) })
	a.mu.Unlock()
	a.changed()
}

// OnRecursiveDNSServerOption implements ipv6.NDPDispatcher.
func (a *advertised) OnRecursiveDNSServerOption(_ tcpip.NICID, servers []tcpip.Address, life time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range servers {
		d := sockets.AddrOf(s)
		a.dns = slices.DeleteFunc(a.dns, func(x netip.Addr) bool { return x == d })
		if life > 0 {
			a.dns = append(a.dns, d)
		}
	}
}

// OnDNSSearchListOption implements ipv6.NDPDispatcher.
func (a *advertised) OnDNSSearchListOption(_ tcpip.NICID, names []string, _ time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range names {
		if !slices.Contains(a.search, s) {
			a.search = append(a.search, s)
		}
	}
}

// OnDHCPv6Configuration implements ipv6.NDPDispatcher.
func (a *advertised) OnDHCPv6Configuration(_ tcpip.NICID, c ipv6.DHCPv6ConfigurationFromNDPRA) {
	if c != ipv6.DHCPv6ManagedAddress {
		return
	}
	a.mu.Lock()
	first := !a.managed && a.run.Err() == nil
	a.managed = true
	a.mu.Unlock()
	if first {
		g := (*Guest)(a)
		g.wg.Go(func() { g.keep6(g.run) })
	}
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
	fs := make([]link.Frame, 0, pkts.Len())
	for _, p := range pkts.AsSlice() {
		head := make([]byte, link.Headroom, link.Headroom+p.Size())
		for _, s := range p.AsSlices() {
			head = append(head, s...)
		}
		fs = append(fs, link.Frame{Head: head})
	}
	if err := w.guest.write(fs); err != nil {
		return 0, &tcpip.ErrClosedForSend{}
	}
	return len(fs), nil
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

func toTCPIP(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

// errGone is what a guest without a wire says.
var errGone = errors.New("the guest's wire has ended")
