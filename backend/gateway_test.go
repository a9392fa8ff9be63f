package backend_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
)

var gatewayMAC = net.HardwareAddr{0x52, 0x55, 10, 0, 2, 2}

func TestARPOnlyForGatewayAndDNS(t *testing.T) {
	_, g := up(t, backend.Config{})
	for _, tt := range []struct {
		target string
		want   bool
	}{
		{"10.0.2.2", true}, {"10.0.2.3", true},
		{"10.0.2.1", false}, {"10.0.2.4", false}, {"10.0.2.15", false}, {"10.0.2.255", false}, {"198.51.100.1", false}, {"0.0.0.0", false},
	} {
		t.Run(tt.target, func(t *testing.T) {
			w := g.Watch(IsARP(ARPReply, ip(tt.target)))
			defer w.Stop()
			g.Send(Build(Ethernet{Src: g.MAC()}, ARP{SenderMAC: g.MAC(), Sender: g.Addr4(), Target: ip(tt.target)}))
			if !tt.want {
				w.None(t)
				return
			}
			p := w.Expect(t)
			if err := All(FromMAC(gatewayMAC), ToMAC(g.MAC()))(p); err != nil || p.ARP.SenderMAC.String() != gatewayMAC.String() {
				t.Errorf("%s: %v", p, err)
			}
			if len(p.Frame) != 60 {
				t.Errorf("reply of %d bytes, want 60: emulated cards drop shorter ones", len(p.Frame))
			}
		})
	}
}

func TestSolicitationOnlyForTheGatewaysAddresses(t *testing.T) {
	_, g := up(t, backend.Config{})
	ll := LinkLocal(gatewayMAC)
	for _, tt := range []struct {
		target netip.Addr
		want   bool
	}{
		{gateway6, true}, {dns6, true}, {ll, true},
		{ip("fd00:1234::4"), false}, {world6, false}, {ip("fe80::1"), false},
	} {
		t.Run(tt.target.String(), func(t *testing.T) {
			w := g.Watch(IsNA(tt.target), Good())
			defer w.Stop()
			group := SolicitedNode(tt.target)
			g.Send(Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: MulticastMAC(group)}, IPv6{Src: g.Addr6(), Dst: group}}, NeighborSolicit(tt.target, g.MAC())...)...))
			if !tt.want {
				w.None(t)
				return
			}
			p := w.Expect(t)
			if err := All(FromMAC(gatewayMAC), To(g.Addr6()), From(tt.target))(p); err != nil {
				t.Errorf("%s: %v", p, err)
			}
			if p.TTL != 255 || p.ICMP.Rest>>29 != 7 {
				t.Errorf("hop limit %d, flags %03b, want 255 and router, solicited, override", p.TTL, p.ICMP.Rest>>29)
			}
		})
	}
	t.Run("a guest that probes for the gateway's address is told before all", func(t *testing.T) {
		w := g.Watch(IsNA(gateway6), To(ip("ff02::1")), Good())
		defer w.Stop()
		group := SolicitedNode(gateway6)
		g.Send(Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: MulticastMAC(group)}, IPv6{Src: netip.IPv6Unspecified(), Dst: group}}, NeighborSolicit(gateway6, nil)...)...))
		w.Expect(t)
	})
}

// A frame that says it comes from the gateway goes nowhere and is counted.
func TestSpoofedGateway(t *testing.T) {
	n, g := up(t, backend.Config{})
	other := Plug(t, n, Config{}).Up(t)
	all6 := ip("ff02::1")
	for _, tt := range []struct {
		name  string
		frame []byte
	}{
		{"its MAC", Build(Ethernet{Src: gatewayMAC, Dst: other.MAC()}, IPv4{Src: g.Addr4(), Dst: other.Addr4()}, UDP{SrcPort: 9, DstPort: 9})},
		{"its address in ARP, to all", Build(Ethernet{Src: g.MAC()}, ARP{Op: ARPReply, SenderMAC: g.MAC(), Sender: gateway4, Target: gateway4})},
		{"its address in ARP, to one", Build(Ethernet{Src: g.MAC(), Dst: other.MAC()}, ARP{Op: ARPReply, SenderMAC: g.MAC(), Sender: gateway4, TargetMAC: other.MAC(), Target: other.Addr4()})},
		{"the DNS's address in ARP", Build(Ethernet{Src: g.MAC()}, ARP{Op: ARPReply, SenderMAC: g.MAC(), Sender: dns4, Target: dns4})},
		{"its IPv4 address", Build(Ethernet{Src: g.MAC(), Dst: other.MAC()}, IPv4{Src: gateway4, Dst: other.Addr4()}, UDP{SrcPort: 53, DstPort: 9})},
		{"its IPv6 address", Build(Ethernet{Src: g.MAC(), Dst: other.MAC()}, IPv6{Src: gateway6, Dst: other.Addr6()}, UDP{SrcPort: 53, DstPort: 9})},
		{"its link-local address", Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: other.MAC()}, IPv6{Src: LinkLocal(gatewayMAC), Dst: all6}}, NeighborAdvert(LinkLocal(gatewayMAC), g.MAC())...)...)},
		{"its IPv4 address, to itself", Build(Ethernet{Src: g.MAC(), Dst: gatewayMAC}, IPv4{Src: gateway4, Dst: dns4}, UDP{SrcPort: 53, DstPort: 53})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := dropped(n, g, flows.ReasonSpoofed)
			w := other.Watch(FromMAC(g.MAC()))
			defer w.Stop()
			v := other.Watch(From(gateway4), IsUDP(53, 9))
			defer v.Stop()
			g.Send(tt.frame)
			g.Sync(t)
			w.None(t)
			v.None(t)
			if got := dropped(n, g, flows.ReasonSpoofed) - before; got != 1 {
				t.Errorf("%d frames counted as spoofed, want 1", got)
			}
			if m, err := other.Resolve(patience(t), gateway4); err != nil || m.String() != gatewayMAC.String() {
				t.Errorf("the other guest's gateway is at %s, %v", m, err)
			}
		})
	}
}

// What would make a guest another guest's router, DHCP server or neighbour does not reach it, by whatever way.
func TestRogueServices(t *testing.T) {
	n, g := up(t, backend.Config{})
	victim := Plug(t, n, Config{}).Up(t)
	third := Plug(t, n, Config{}).Up(t)
	if _, err := third.Lease6(patience(t)); err != nil {
		t.Fatal(err)
	}
	if err := third.Ping(patience(t), gateway6, 1, 1, nil); err != nil { // shows its address
		t.Fatal(err)
	}
	third.Sync(t)
	victim.Sync(t) // what the others said while they came up
	all := ip("ff02::1")
	ra := RouterAdvert(g.MAC(), 1800, netip.MustParsePrefix("2001:db8:bad::/64"))
	six := func(dst netip.Addr) IPv6 { return IPv6{Src: g.LinkLocal(), Dst: dst, HopLimit: 255} }
	join := func(head []Layer, tail ...Layer) []byte { return Build(append(head, tail...)...) }
	offer := []Layer{UDP{SrcPort: 67, DstPort: 68}, Payload(make([]byte, 300))}
	advert := []Layer{UDP{SrcPort: 547, DstPort: 546}, Payload(make([]byte, 40))}
	redirect := []Layer{ICMP{Type: 137}, Payload(append(all.AsSlice(), world6.AsSlice()...))}

	one := func(l ...Layer) []byte {
		return join([]Layer{Ethernet{Src: g.MAC(), Dst: victim.MAC()}}, l...)
	}
	many := func(l ...Layer) []byte {
		return join([]Layer{Ethernet{Src: g.MAC(), Dst: MulticastMAC(all)}}, l...)
	}
	with := func(h Layer, l []Layer) []Layer { return append([]Layer{h}, l...) }
	ext := func(h Layer, e []Layer, l []Layer) []Layer { return append(append([]Layer{h}, e...), l...) }
	long := make([]byte, 200)

	for _, tt := range []struct {
		name   string
		frames [][]byte
	}{
		{"router advertisement to all", [][]byte{many(with(six(all), ra)...)}},
		{"router advertisement to one", [][]byte{one(with(six(victim.LinkLocal()), ra)...)}},
		{"router advertisement to one's MAC and all nodes", [][]byte{one(with(six(all), ra)...)}},
		{"router advertisement behind hop-by-hop options", [][]byte{many(ext(six(all), []Layer{Ext{Kind: ProtoHopByHop}}, ra)...)}},
		{"router advertisement behind destination options", [][]byte{many(ext(six(all), []Layer{Ext{Kind: ProtoDestOpts}}, ra)...)}},
		{"router advertisement behind long options", [][]byte{many(ext(six(all), []Layer{Ext{Kind: ProtoDestOpts, Data: long}}, ra)...)}},
		{"router advertisement behind an atomic fragment's header", [][]byte{many(ext(six(all), []Layer{Fragment6{}}, ra)...)}},
		{"router advertisement in fragments, the first all options", Fragment(many(ext(six(all), []Layer{Ext{Kind: ProtoDestOpts}}, ra)...), 8, 7)},
		{"router advertisement with a priority tag", [][]byte{Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: MulticastMAC(all)}, VLAN{ID: 0}, six(all)}, ra...)...)}},
		{"router advertisement in two tags", [][]byte{Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: MulticastMAC(all)}, VLAN{ID: 0}, VLAN{ID: 0}, six(all)}, ra...)...)}},
		{"router advertisement in 802.2 SNAP", [][]byte{Build(Ethernet{Src: g.MAC(), Dst: MulticastMAC(all), Type: 200}, Payload(append([]byte{0xaa, 0xaa, 3, 0, 0, 0, 0x86, 0xdd}, Build(with(six(all), ra)...)...)))}},
		{"redirect to one", [][]byte{one(with(six(victim.LinkLocal()), redirect)...)}},
		{"neighbour advertisement of the gateway to one", [][]byte{one(with(six(victim.LinkLocal()), NeighborAdvert(LinkLocal(gatewayMAC), g.MAC()))...)}},
		{"neighbour advertisement of the gateway to all", [][]byte{many(with(six(all), NeighborAdvert(gateway6, g.MAC()))...)}},
		{"neighbour advertisement of another guest", [][]byte{one(with(six(victim.LinkLocal()), NeighborAdvert(third.Addr6(), g.MAC()))...)}},
		{"neighbour advertisement of another guest behind options", [][]byte{one(ext(six(victim.LinkLocal()), []Layer{Ext{Kind: ProtoDestOpts}}, NeighborAdvert(third.Addr6(), g.MAC()))...)}},
		{"DHCP offer to all", [][]byte{Build(append([]Layer{Ethernet{Src: g.MAC()}, IPv4{Src: g.Addr4(), Dst: ip("255.255.255.255")}}, offer...)...)}},
		{"DHCP offer to one", [][]byte{one(with(IPv4{Src: g.Addr4(), Dst: victim.Addr4()}, offer)...)}},
		{"DHCP offer with a priority tag", [][]byte{Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: victim.MAC()}, VLAN{ID: 7 << 13}, IPv4{Src: g.Addr4(), Dst: victim.Addr4()}}, offer...)...)}},
		{"DHCPv6 advertise to one", [][]byte{one(with(six(victim.LinkLocal()), advert)...)}},
		{"DHCPv6 advertise behind options", [][]byte{one(ext(six(victim.LinkLocal()), []Layer{Ext{Kind: ProtoDestOpts}}, advert)...)}},
		{"another guest's address in ARP", [][]byte{Build(Ethernet{Src: g.MAC(), Dst: victim.MAC()}, ARP{Op: ARPReply, SenderMAC: g.MAC(), Sender: third.Addr4(), TargetMAC: victim.MAC(), Target: victim.Addr4()})}},
		{"another guest's address in IP", [][]byte{one(IPv4{Src: third.Addr4(), Dst: victim.Addr4()}, UDP{SrcPort: 5, DstPort: 6})}},
		{"another guest's MAC", [][]byte{Build(Ethernet{Src: third.MAC(), Dst: victim.MAC()}, IPv4{Src: g.Addr4(), Dst: victim.Addr4()}, UDP{SrcPort: 5, DstPort: 6})}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if len(tt.frames[0]) < 60 {
				tt.frames[0] = append(tt.frames[0], make([]byte, 60-len(tt.frames[0]))...)
			}
			var w []*Watch
			for _, m := range []net.HardwareAddr{g.MAC(), third.MAC()} {
				w = append(w, victim.Watch(FromMAC(m)))
			}
			for i, f := range tt.frames {
				g.Send(f)
				// Of a packet in fragments a later one alone is harmless: the victim cannot put it together.
				_ = i
			}
			g.Sync(t)
			victim.Sync(t)
			for _, w := range w {
				w.Stop()
				for _, p := range w.Got() {
					if len(tt.frames) > 1 && p.Offset > 0 {
						continue
					}
					t.Errorf("the other guest got %s", p)
				}
			}
			var lost uint64
			for _, r := range []flows.Reason{flows.ReasonSpoofed, flows.ReasonUnsupported, flows.ReasonMalformed} {
				lost += dropped(n, g, r)
			}
			if lost == 0 {
				t.Error("not counted")
			}
		})
	}
	t.Run("what is honest passes", func(t *testing.T) {
		honest := victim.Watch(FromMAC(g.MAC()))
		defer honest.Stop()
		frames := [][]byte{
			one(with(six(victim.LinkLocal()), NeighborAdvert(g.Addr6(), g.MAC()))...),
			many(six(all), Echo(all, false, 1, 1)),
			many(ext(six(ip("ff02::16")), []Layer{Ext{Kind: ProtoHopByHop, Data: []byte{5, 2, 0, 0}}}, []Layer{ICMP{Type: 143}})...), // MLDv2 has a router alert
			Build(Ethernet{Src: g.MAC(), Dst: victim.MAC()}, VLAN{ID: 5}, IPv4{Src: g.Addr4(), Dst: victim.Addr4()}, UDP{SrcPort: 5, DstPort: 6}, Payload("their own VLAN")),
			Build(Ethernet{Src: g.MAC(), Dst: victim.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))), // local experimental
		}
		for _, f := range frames {
			g.Send(f)
			honest.Expect(t)
		}
	})
}

func TestUnknownEtherTypesToTheGatewayAreCounted(t *testing.T) {
	n, g := up(t, backend.Config{})
	for _, typ := range []uint16{0x8035, 0x88f8, 0x88cc, 0x0806 + 1} { // RARP, NC-SI, LLDP
		g.Send(Build(Ethernet{Src: g.MAC(), Dst: gatewayMAC, Type: typ}, Payload(make([]byte, 46))))
	}
	g.Sync(t)
	if got := dropped(n, g, flows.ReasonUnsupported); got != 4 {
		t.Errorf("%d counted as unsupported, want 4", got)
	}
}
