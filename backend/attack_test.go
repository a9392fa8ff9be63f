package backend_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

func drops(n *backend.Network, id int) map[string]uint64 { return n.Guests()[id].Dropped }

// Nobody is another guest: not by MAC, ARP, neighbour discovery or address, and not toward the gateway either. Each
// attempt is counted and nothing of it arrives.
func TestSpoofedNeighbour(t *testing.T) {
	n := start(t, backend.Config{Static: map[string][]netip.Addr{"52:54:00:ab:cd:ef": {ip("10.0.2.99"), ip("fd00:1234::99")}}})
	g := Plug(t, n, Config{}).Up(t)
	victim := Plug(t, n, Config{Name: "victim"}).Up(t)
	third := Plug(t, n, Config{}).Up(t)
	for _, x := range []*Guest{victim, third, g} { // shows its IPv6 addresses
		if err := x.Ping(patience(t), gateway6, 1, 1, nil); err != nil {
			t.Fatal(err)
		}
		if err := x.Ping(patience(t), LinkLocal(gatewayMAC), 1, 1, nil); err != nil {
			t.Fatal(err)
		}
	}
	all := ip("ff02::1")
	to := func(layers ...Layer) []byte {
		return Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: third.MAC()}}, layers...)...)
	}
	gw := func(layers ...Layer) []byte {
		return Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: gatewayMAC}}, layers...)...)
	}
	udp := UDP{SrcPort: 9, DstPort: 9}
	six := func(src, dst netip.Addr, l []Layer) []Layer {
		return append([]Layer{IPv6{Src: src, Dst: dst, HopLimit: 255}}, l...)
	}
	spoofed, martian := flows.ReasonSpoofed, flows.ReasonMartian
	for _, tt := range []struct {
		name  string
		frame []byte
		want  flows.Reason
	}{
		{"its MAC", Build(Ethernet{Src: victim.MAC(), Dst: third.MAC()}, IPv4{Src: g.Addr4(), Dst: third.Addr4()}, udp), spoofed},
		{"its MAC, to all", Build(Ethernet{Src: victim.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))), spoofed},
		{"its address in ARP, to all", Build(Ethernet{Src: g.MAC()}, ARP{Op: ARPReply, SenderMAC: g.MAC(), Sender: victim.Addr4(), Target: victim.Addr4()}), spoofed},
		{"its address in ARP, to one", to(ARP{Op: ARPReply, SenderMAC: g.MAC(), Sender: victim.Addr4(), TargetMAC: third.MAC(), Target: third.Addr4()}), spoofed},
		{"its address in ARP, to the gateway", gw(ARP{Op: ARPReply, SenderMAC: g.MAC(), Sender: victim.Addr4(), Target: gateway4}), spoofed},
		{"its MAC inside ARP", to(ARP{Op: ARPReply, SenderMAC: victim.MAC(), Sender: g.Addr4(), TargetMAC: third.MAC(), Target: third.Addr4()}), spoofed},
		{"the gateway's MAC inside ARP", to(ARP{Op: ARPReply, SenderMAC: gatewayMAC, Sender: g.Addr4(), TargetMAC: third.MAC(), Target: third.Addr4()}), spoofed},
		{"its IPv4 address", to(IPv4{Src: victim.Addr4(), Dst: third.Addr4()}, udp), spoofed},
		{"its IPv4 address, to the world", gw(IPv4{Src: victim.Addr4(), Dst: world4}, TCP{SrcPort: 9, DstPort: 80, Flags: "S"}), spoofed},
		{"its IPv6 address", to(IPv6{Src: victim.Addr6(), Dst: third.Addr6()}, udp), spoofed},
		{"its IPv6 address, to the world", gw(IPv6{Src: victim.Addr6(), Dst: world6}, TCP{SrcPort: 9, DstPort: 80, Flags: "S"}), spoofed},
		{"its link-local address", to(IPv6{Src: victim.LinkLocal(), Dst: third.LinkLocal()}, udp), spoofed},
		{"an advertisement of its address", to(six(g.LinkLocal(), all, NeighborAdvert(victim.Addr6(), g.MAC()))...), spoofed},
		{"an advertisement as it", to(six(victim.LinkLocal(), all, NeighborAdvert(victim.LinkLocal(), g.MAC()))...), spoofed},
		{"an advertisement with its MAC", to(six(g.LinkLocal(), all, NeighborAdvert(g.LinkLocal(), victim.MAC()))...), spoofed},
		{"a solicitation with its MAC", to(six(g.LinkLocal(), third.LinkLocal(), NeighborSolicit(third.LinkLocal(), victim.MAC()))...), spoofed},
		{"a solicitation with the gateway's MAC", to(six(g.LinkLocal(), third.LinkLocal(), NeighborSolicit(third.LinkLocal(), gatewayMAC))...), spoofed},
		{"an address kept for a MAC", to(IPv4{Src: ip("10.0.2.99"), Dst: third.Addr4()}, udp), spoofed},
		{"an IPv6 address kept for a MAC", to(IPv6{Src: ip("fd00:1234::99"), Dst: third.Addr6()}, udp), spoofed},
		{"loopback", to(IPv4{Src: ip("127.0.0.1"), Dst: third.Addr4()}, udp), martian},
		{"IPv6 loopback", to(IPv6{Src: ip("::1"), Dst: third.Addr6()}, udp), martian},
		{"a group's", to(IPv4{Src: ip("224.0.0.1"), Dst: third.Addr4()}, udp), martian},
		{"an IPv6 group's", to(IPv6{Src: all, Dst: third.Addr6()}, udp), martian},
		{"all of the network's", to(IPv4{Src: ip("10.0.2.255"), Dst: third.Addr4()}, udp), martian},
		{"everybody's", to(IPv4{Src: ip("255.255.255.255"), Dst: third.Addr4()}, udp), martian},
		{"an IPv4 address in an IPv6 one", to(IPv6{Src: ip("::ffff:10.0.2.2"), Dst: third.Addr6()}, udp), martian},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, opened := drops(n, 0)[tt.want.String()], n.Flows().Opened()
			isMine := func(p *Packet) error {
				return All(EtherType(binary.BigEndian.Uint16(tt.frame[12:])), FromMAC(net.HardwareAddr(tt.frame[6:12])))(p)
			}
			w := third.Watch(isMine)
			defer w.Stop()
			g.Send(tt.frame)
			g.Sync(t)
			third.Sync(t)
			for _, p := range w.Got() {
				if string(p.Frame) == string(tt.frame) {
					t.Errorf("it came: %s", p)
				}
			}
			if got := drops(n, 0)[tt.want.String()] - before; got != 1 {
				t.Errorf("counted %d times as %s, want once: %v", got, tt.want, drops(n, 0))
			}
			if n.Flows().Opened() != opened {
				t.Error("it became a conversation")
			}
		})
	}
	// All are who they were.
	if m, err := third.Resolve(patience(t), victim.Addr4()); err != nil || m.String() != victim.MAC().String() {
		t.Errorf("%s is at %s, %v", victim.Addr4(), m, err)
	}
	if err := third.Ping(patience(t), victim.Addr6(), 1, 1, nil); err != nil {
		t.Error(err)
	}
}

// A million MACs cost bounded memory, and what another guest has shown stays where it is: frames for it still go to it
// alone.
func TestMillionMACs(t *testing.T) {
	n := start(t, backend.Config{})
	victim := Plug(t, n, Config{}).Up(t)
	witness := Plug(t, n, Config{}).Up(t)
	near, far := link.Pipe(PipeDepth)
	t.Cleanup(func() { near.Close() })
	serve(t, n, far, "spoofer")
	go func() {
		var b link.Batch
		for near.ReadFrames(&b) == nil {
			b.Next()
		}
	}()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	const count, lot = 1_000_000, 64
	frames := make([]link.Frame, lot)
	for i := 0; i < count; i += lot {
		for j := range frames {
			f := Build(Ethernet{Src: net.HardwareAddr{2, 0, 0, 0, 0, 0}, Dst: gatewayMAC, Type: 0x88b5}, Payload(make([]byte, 46)))
			binary.BigEndian.PutUint32(f[8:], uint32(i+j))
			frames[j] = link.NewFrame(f)
		}
		if _, err := near.WriteFrames(frames); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are counted", func() bool { return drops(n, 2)["mac-limit"] >= count-256 })
	if grown := int64(heap()) - int64(before); grown > 4<<20 {
		t.Errorf("%d bytes more than before", grown)
	}
	w := witness.Watch(EtherType(0x88b6))
	v := victim.Watch(EtherType(0x88b6))
	if _, err := near.WriteFrames([]link.Frame{link.NewFrame(Build(Ethernet{Src: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Dst: victim.MAC(), Type: 0x88b6}, Payload(make([]byte, 50))))}); err != nil {
		t.Fatal(err)
	}
	v.Expect(t)
	w.None(t) // it was not carried to all
	if m, err := witness.Resolve(patience(t), victim.Addr4()); err != nil || m.String() != victim.MAC().String() {
		t.Errorf("the victim is at %s, %v", m, err)
	}
}

// A guest that shows more addresses than are kept forgets its own, and never what it was leased: that would be free for
// another guest to take.
func TestLeaseIsNotEvicted(t *testing.T) {
	n := start(t, backend.Config{})
	g := Plug(t, n, Config{}).Up(t)
	thief := Plug(t, n, Config{}).Up(t)
	for i := range 1000 {
		b := prefix6.Addr().As16()
		binary.BigEndian.PutUint16(b[12:], uint16(1000+i))
		g.Send(Build(Ethernet{Src: g.MAC(), Dst: gatewayMAC}, IPv6{Src: netip.AddrFrom16(b), Dst: gateway6}, UDP{SrcPort: 9, DstPort: 9}))
	}
	g.Sync(t)
	thief.Send(Build(Ethernet{Src: thief.MAC()}, ARP{Op: ARPReply, SenderMAC: thief.MAC(), Sender: g.Addr4(), Target: g.Addr4()}))
	thief.Sync(t)
	if dropped(n, thief, flows.ReasonSpoofed) != 1 {
		t.Errorf("another guest could take %s", g.Addr4())
	}
	c, err := g.Dial(patience(t), "tcp", families[0].listen(t, echo))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// With strict leases a guest is who DHCP says, or nobody.
func TestStrictLeases(t *testing.T) {
	n := start(t, backend.Config{StrictLeases: true, Static: map[string][]netip.Addr{"52:54:00:ab:cd:ef": {ip("10.0.2.99"), ip("fd00:1234::99")}}})
	g, other := Plug(t, n, Config{}), Plug(t, n, Config{})
	a, err := g.Solicit(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	if !a.Managed || !a.Other || a.Autonomous || !a.OnLink {
		t.Errorf("advertised %+v, want addresses by DHCPv6 only", a)
	}
	for _, x := range []*Guest{g, other} {
		if _, err := x.Lease(patience(t)); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Lease6(patience(t)); err != nil {
			t.Fatal(err)
		}
		x.SetGateway(LinkLocal(gatewayMAC))
	}
	reach := func(who string, g *Guest, f family) {
		t.Helper()
		c, err := g.Dial(patience(t), "tcp", f.listen(t, echo))
		if err != nil {
			t.Errorf("%s is out of %s: %v", who, f.name, err)
			return
		}
		roundTrip(t, c, "hello")
		c.Close()
	}
	for _, f := range families {
		reach("a guest with leases", g, f)
	}
	if err := g.Ping(patience(t), other.Addr4(), 1, 1, nil); err != nil {
		t.Errorf("a neighbour by its leased address: %v", err)
	}
	if _, err := g.Resolve(patience(t), other.Addr6()); err != nil {
		t.Error(err)
	}

	refused := func(what string, from *Guest, frame []byte) {
		t.Helper()
		before, opened := dropped(n, from, flows.ReasonSpoofed), n.Flows().Opened()
		from.Send(frame)
		from.Sync(t)
		if got := dropped(n, from, flows.ReasonSpoofed) - before; got != 1 || n.Flows().Opened() != opened {
			t.Errorf("%s: counted %d times, %d conversations, want 1 and none", what, got, n.Flows().Opened()-opened)
		}
	}
	syn := TCP{SrcPort: 7, DstPort: 80, Flags: "S"}
	gw := func(l ...Layer) []byte {
		return Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: gatewayMAC}}, l...)...)
	}
	refused("an address that nobody has", g, gw(IPv4{Src: ip("10.0.2.200"), Dst: world4}, syn))
	refused("one that nobody has, in ARP", g, gw(ARP{SenderMAC: g.MAC(), Sender: ip("10.0.2.200"), Target: ip("10.0.2.201")}))
	refused("one of its own making", g, gw(IPv6{Src: EUI64(prefix6, g.MAC()), Dst: world6}, syn))
	refused("another's lease", g, gw(IPv4{Src: other.Addr4(), Dst: world4}, syn))
	refused("another's DHCPv6 lease", g, gw(IPv6{Src: other.Addr6(), Dst: world6}, syn))
	refused("one that is kept for a MAC", g, gw(IPv4{Src: ip("10.0.2.99"), Dst: world4}, syn))
	refused("one from elsewhere", g, gw(IPv4{Src: ip("192.0.2.7"), Dst: world4}, syn))
	refused("an IPv6 one from elsewhere", g, gw(IPv6{Src: ip("2001:db8:7::7"), Dst: world6}, syn))
	refused("its own, from another MAC", g, Build(Ethernet{Src: net.HardwareAddr{2, 7, 7, 7, 7, 7}, Dst: gatewayMAC}, IPv4{Src: g.Addr4(), Dst: world4}, syn))
	refused("a neighbour's MAC", g, Build(Ethernet{Src: other.MAC(), Dst: gatewayMAC}, IPv4{Src: g.Addr4(), Dst: world4}, syn))
	refused("an advertisement of an address that nobody has", g, Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: other.MAC()},
		IPv6{Src: g.LinkLocal(), Dst: other.LinkLocal(), HopLimit: 255}}, NeighborAdvert(ip("fd00:1234::abcd"), g.MAC())...)...))

	// What is fixed for a MAC needs no DHCP.
	mac, _ := net.ParseMAC("52:54:00:ab:cd:ef")
	fixed := Plug(t, n, Config{MAC: mac, Gateway4: gateway4, Gateway6: LinkLocal(gatewayMAC),
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.99/24"), netip.MustParsePrefix("fd00:1234::99/64")}})
	for _, f := range families {
		reach("a guest with fixed addresses", fixed, f)
	}

	// A lease that was taken back is worth nothing.
	mine := g.Addr4()
	if err := n.ReleaseLease(mine); err != nil {
		t.Fatal(err)
	}
	g.RemoveAddr(mine) // so that Sync asks as nobody
	refused("a lease that was released", g, gw(IPv4{Src: mine, Dst: world4}, syn))
	if _, err := g.Lease(patience(t), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(mine.AsSlice()))); err != nil {
		t.Fatal(err)
	}
	reach("a guest with a new lease", g, families[0])
}

// Guests that are kept from one another: both families, whatever the frame, and the gateway serves them all the same.
func TestIsolateIPv6(t *testing.T) {
	n := start(t, backend.Config{Isolate: true})
	a, b := Plug(t, n, Config{Name: "a"}).Up(t), Plug(t, n, Config{Name: "b"}).Up(t)
	before := dropped(n, a, flows.ReasonIsolated)
	w := b.Watch(FromMAC(a.MAC()))
	defer w.Stop()
	group := SolicitedNode(b.Addr6())
	sent := [][]byte{
		Build(append([]Layer{Ethernet{Src: a.MAC(), Dst: MulticastMAC(group)}, IPv6{Src: a.LinkLocal(), Dst: group}}, NeighborSolicit(b.Addr6(), a.MAC())...)...),
		Build(append([]Layer{Ethernet{Src: a.MAC(), Dst: b.MAC()}, IPv6{Src: a.LinkLocal(), Dst: b.LinkLocal()}}, NeighborAdvert(a.LinkLocal(), a.MAC())...)...),
		Build(Ethernet{Src: a.MAC(), Dst: b.MAC()}, IPv6{Src: a.Addr6(), Dst: b.Addr6()}, UDP{SrcPort: 9, DstPort: 9}),
		Build(Ethernet{Src: a.MAC(), Dst: b.MAC()}, IPv4{Src: a.Addr4(), Dst: b.Addr4()}, UDP{SrcPort: 9, DstPort: 9}),
		Build(Ethernet{Src: a.MAC()}, IPv4{Src: a.Addr4(), Dst: ip("255.255.255.255")}, UDP{SrcPort: 9, DstPort: 9}),
		Build(Ethernet{Src: a.MAC(), Dst: MulticastMAC(ip("ff02::fb"))}, IPv6{Src: a.LinkLocal(), Dst: ip("ff02::fb")}, UDP{SrcPort: 5353, DstPort: 5353}),
	}
	a.Send(sent...)
	a.Sync(t)
	w.None(t)
	if got := dropped(n, a, flows.ReasonIsolated) - before; got != uint64(len(sent)) {
		t.Errorf("%d frames counted, want %d", got, len(sent))
	}
	// By way of the gateway neither: it says that nobody is there.
	v := a.Watch(IsICMP(1, 3))
	defer v.Stop()
	a.Send(a.Via(gatewayMAC, b.Addr6(), TCP{SrcPort: 4000, DstPort: 22, Flags: "S"}))
	v.Expect(t)
	w.None(t)
	for _, f := range families {
		c, err := a.Dial(patience(t), "tcp", f.listen(t, echo))
		if err != nil {
			t.Fatalf("%s: the host is out of reach: %v", f.name, err)
		}
		c.Close()
	}
	if got := lookup(t, a, dns6, "b.internal.", 1); len(got) != 1 {
		t.Errorf("names are answered all the same: %v", got)
	}
}

// A storm of any kind is bounded for those who must hear it, counted for the guest that makes it, and its unicast frames
// pass meanwhile.
func TestStormOfEachKind(t *testing.T) {
	for _, tt := range []struct {
		name string
		dst  net.HardwareAddr
	}{
		{"broadcast", Broadcast},
		{"multicast", MulticastMAC(ip("ff02::fb"))},
		{"to nobody known", net.HardwareAddr{2, 9, 9, 9, 9, 9}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			n := start(t, backend.Config{})
			a, b, c := Plug(t, n, Config{}).Up(t), Plug(t, n, Config{}).Up(t), Plug(t, n, Config{}).Up(t)
			frame := Build(Ethernet{Src: a.MAC(), Dst: tt.dst, Type: 0x88b5}, Payload(make([]byte, 50)))
			sent := 0 // faster than the rate, or on a slow machine for as long as that takes
			for ; sent < 8000 || dropped(n, a, flows.ReasonStorm) == 0 && sent < 1_000_000; sent++ {
				a.Send(frame)
			}
			a.Sync(t)
			b.Sync(t) // the burst that is let through may fill its queue
			u := b.Watch(FromMAC(a.MAC()), EtherType(0x88b6))
			a.Send(Build(Ethernet{Src: a.MAC(), Dst: b.MAC(), Type: 0x88b6}, Payload(make([]byte, 50))))
			u.Expect(t)
			w := b.Watch(FromMAC(c.MAC()), EtherType(0x88b6))
			c.Send(Build(Ethernet{Src: c.MAC(), Type: 0x88b6}, Payload(make([]byte, 50))))
			w.Expect(t) // another guest's share is its own
			if dropped(n, a, flows.ReasonStorm) == 0 || dropped(n, b, flows.ReasonStorm) > 0 {
				t.Errorf("counted %d and %d", dropped(n, a, flows.ReasonStorm), dropped(n, b, flows.ReasonStorm))
			}
			// The burst of 2000, 1000 a second since it came, and what else there is to hear.
			got, _ := c.Received()
			if most := uint64(2000 + 1000*time.Since(began).Seconds() + 100); got > most {
				t.Errorf("another guest got %d of %d frames, want %d at most", got, sent, most)
			}
		})
	}
}

// A guest that keeps its address over another wire, or over a restart of the daemon, asks nobody and has its lease.
func TestStrictLeaseComesBack(t *testing.T) {
	dir := t.TempDir()
	c := backend.Config{StrictLeases: true, StateDir: dir}
	n := start(t, c)
	g := Plug(t, n, Config{}).Up(t)
	mac, had := g.MAC(), g.Addr4()
	again := func(n *backend.Network) *Guest {
		t.Helper()
		g := Plug(t, n, Config{MAC: mac, Gateway4: gateway4, Addrs: []netip.Prefix{netip.PrefixFrom(had, 24)}})
		conn, err := g.Dial(patience(t), "tcp", families[0].listen(t, echo))
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, conn, "hello")
		conn.Close()
		return g
	}
	g.Close()
	eventually(t, "it is gone", func() bool { return len(n.Guests()) == 0 })
	again(n).Close()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	again(start(t, c))
}

// Who knows a neighbour's MAC and is there first cannot keep its IPv6 addresses from it.
func TestSquattedAddress(t *testing.T) {
	n := start(t, backend.Config{})
	squatter := Plug(t, n, Config{}).Up(t)
	mac := net.HardwareAddr{0x52, 0x54, 0, 0x77, 0x77, 0x77}
	theirs := []netip.Addr{LinkLocal(mac), EUI64(prefix6, mac)}
	claim := func() {
		for _, a := range theirs {
			squatter.Send(Build(Ethernet{Src: squatter.MAC(), Dst: gatewayMAC}, IPv6{Src: a, Dst: gateway6}, UDP{SrcPort: 9, DstPort: 9}))
		}
		squatter.Sync(t)
	}
	claim()
	if got := dropped(n, squatter, flows.ReasonSpoofed); got != 0 {
		t.Fatalf("nobody has them, and %d frames were dropped", got)
	}
	g := Plug(t, n, Config{MAC: mac}).Up(t)
	for _, a := range []netip.Addr{gateway6, LinkLocal(gatewayMAC), squatter.Addr6(), squatter.LinkLocal()} {
		if err := g.Ping(patience(t), a, 1, 1, nil); err != nil {
			t.Errorf("ping %s: %v", a, err)
		}
	}
	claim()
	if got := dropped(n, squatter, flows.ReasonSpoofed); got != 2 {
		t.Errorf("the squatter goes on: %d frames were dropped, want 2", got)
	}
	if err := squatter.Ping(patience(t), g.Addr6(), 1, 1, nil); err != nil {
		t.Error(err)
	}
}
