package backend_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/impair"
	"github.com/vmnetd/vmnetd/portforward"
)

// asPort has Plug plug in at a port of a kind.
type asPort struct {
	*backend.Network
	c backend.PortConfig
}

func (a asPort) Serve(ctx context.Context, l link.Link, name string) error {
	a.c.Name = name
	return a.ServePort(ctx, l, a.c)
}

// without is a network without an uplink that ends with the test.
func without(t testing.TB, c backend.Config) *backend.Network {
	t.Helper()
	if !c.Wire {
		c.NoUplink = true
	}
	c.Logger = slog.New(slog.DiscardHandler)
	n, err := backend.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return n
}

// station is a guest with a fixed address of 10.1.1.0/24 and one of fd00:1:1::/64.
func station(i int) Config {
	return Config{Addrs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.1.1.%d/24", i)), netip.MustParsePrefix(fmt.Sprintf("fd00:1:1::%d/64", i))}, MTU: 9000}
}

// wires are the two ways that a guest is carried.
var wires = []struct {
	name string
	plug func(t testing.TB, n *backend.Network, c Config) *Guest
}{
	{"pipe", func(t testing.TB, n *backend.Network, c Config) *Guest { return Plug(t, n, c) }},
	{"loop", plugSocket},
}

// there waits until so many are plugged in: what is sent before goes nowhere.
func there(t testing.TB, n *backend.Network, count int) {
	t.Helper()
	eventually(t, "all are plugged in", func() bool { return len(n.Guests()) == count })
}

// hears waits for a frame that to gets after all that from has sent it: from's last word.
func hears(t testing.TB, from *Guest, to ...*Guest) {
	t.Helper()
	lastWord++
	mark := binary.BigEndian.AppendUint32([]byte("the last word"), lastWord)
	var ws []*Watch
	for _, g := range to {
		ws = append(ws, g.Watch(EtherType(0x88b6), func(p *Packet) error {
			if !bytes.HasPrefix(p.Frame[14:], mark) {
				return errors.New("another word")
			}
			return nil
		}))
	}
	from.Send(Build(Ethernet{Src: from.MAC(), Type: 0x88b6}, Payload(mark)))
	for _, w := range ws {
		w.Expect(t)
		w.Stop()
	}
}

var lastWord uint32

// guestOf is what the network has of a guest, by its MAC.
func guestOf(n *backend.Network, g *Guest) backend.GuestInfo {
	for _, i := range n.Guests() {
		if i.MAC == g.MAC().String() {
			return i
		}
	}
	return backend.GuestInfo{}
}

// A switch without an uplink carries whatever it is given, to where its MAC leads.
func TestPlainSwitch(t *testing.T) {
	for _, w := range wires {
		t.Run(w.name, func(t *testing.T) {
			n := without(t, backend.Config{MTU: 9000})
			a, b, c := w.plug(t, n, station(1)), w.plug(t, n, station(2)), w.plug(t, n, station(3))
			there(t, n, 3)
			for _, g := range []*Guest{a, b, c} {
				hears(t, g, slices.DeleteFunc([]*Guest{a, b, c}, func(o *Guest) bool { return o == g })...)
			}
			from, to := Ethernet{Src: a.MAC()}, Ethernet{Src: a.MAC(), Dst: b.MAC()}
			typed := func(e Ethernet, kind uint16) Ethernet { e.Type = kind; return e }
			group := func(m ...byte) Ethernet { return Ethernet{Src: a.MAC(), Dst: m} }
			foreign := netip.MustParseAddr("192.0.2.77")
			other6 := netip.MustParseAddr("fe80::99")
			for _, tt := range []struct {
				name   string
				frame  []byte
				bs, cs int
			}{
				{"to one", Build(typed(to, 0x88b5), Payload(make([]byte, 100))), 1, 0},
				{"to one, short", Build(typed(to, 0x88b5), Payload("x")), 1, 0},
				{"to one, jumbo", Build(typed(to, 0x88b5), Payload(make([]byte, 9000))), 1, 0},
				{"to one, 64 KiB", Build(typed(to, 0x88b5), Payload(make([]byte, 65000))), 1, 0},
				{"to nobody known", Build(Ethernet{Src: a.MAC(), Dst: net.HardwareAddr{2, 9, 9, 9, 9, 9}, Type: 0x88b5}, Payload(make([]byte, 50))), 1, 1},
				{"to all", Build(typed(from, 0x88b5), Payload(make([]byte, 50))), 1, 1},
				{"VLAN", Build(typed(to, EtherVLAN), VLAN{ID: 100}, IPv4{Src: a.Addr4(), Dst: b.Addr4()}, UDP{SrcPort: 1, DstPort: 2}), 1, 0},
				{"VLAN 0", Build(typed(to, EtherVLAN), VLAN{}, IPv4{Src: a.Addr4(), Dst: b.Addr4()}, UDP{SrcPort: 1, DstPort: 2}), 1, 0},
				{"QinQ", Build(typed(to, 0x88a8), VLAN{ID: 7, Type: EtherVLAN}, VLAN{ID: 8, Type: 0x88b5}, Payload(make([]byte, 60))), 1, 0},
				{"MPLS", Build(typed(to, 0x8847), Payload(make([]byte, 60))), 1, 0},
				{"LLDP", Build(typed(group(0x01, 0x80, 0xc2, 0, 0, 0x0e), 0x88cc), Payload(make([]byte, 60))), 1, 1},
				{"spanning tree", Build(typed(group(0x01, 0x80, 0xc2, 0, 0, 0), 38), Payload(append([]byte{0x42, 0x42, 3}, make([]byte, 43)...))), 1, 1},
				{"LACP", Build(typed(group(0x01, 0x80, 0xc2, 0, 0, 2), 0x8809), Payload(make([]byte, 110))), 1, 1},
				{"SNAP", Build(typed(to, 46), Payload(append([]byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, make([]byte, 38)...))), 1, 0},
				{"OSPF", Build(group(1, 0, 0x5e, 0, 0, 5), IPv4{Src: a.Addr4(), Dst: ip("224.0.0.5"), Proto: 89, TTL: 1}, Payload(make([]byte, 44))), 1, 1},
				{"OSPFv3", Build(group(0x33, 0x33, 0, 0, 0, 5), IPv6{Src: a.LinkLocal(), Dst: ip("ff02::5"), Next: 89, HopLimit: 1}, Payload(make([]byte, 36))), 1, 1},
				{"RIP", Build(group(1, 0, 0x5e, 0, 0, 9), IPv4{Src: a.Addr4(), Dst: ip("224.0.0.9"), TTL: 1}, UDP{SrcPort: 520, DstPort: 520}, Payload(make([]byte, 24))), 1, 1},
				{"PIM", Build(group(1, 0, 0x5e, 0, 0, 13), IPv4{Src: a.Addr4(), Dst: ip("224.0.0.13"), Proto: 103, TTL: 1}, Payload(make([]byte, 30))), 1, 1},
				{"DHCP to a server", Build(from, IPv4{Src: ip("0.0.0.0"), Dst: ip("255.255.255.255")}, UDP{SrcPort: 68, DstPort: 67}, Payload(make([]byte, 300))), 1, 1},
				{"DHCP from a server", Build(to, IPv4{Src: a.Addr4(), Dst: ip("255.255.255.255")}, UDP{SrcPort: 67, DstPort: 68}, Payload(make([]byte, 300))), 1, 0},
				{"DHCPv6 from a server", Build(to, IPv6{Src: a.LinkLocal(), Dst: b.LinkLocal()}, UDP{SrcPort: 547, DstPort: 546}, Payload(make([]byte, 60))), 1, 0},
				{"router advertisement", Build(append([]Layer{group(0x33, 0x33, 0, 0, 0, 1), IPv6{Src: a.LinkLocal(), Dst: ip("ff02::1")}}, RouterAdvert(a.MAC(), 1800, netip.MustParsePrefix("fd00:9::/64"))...)...), 1, 1},
				{"proxy ARP", Build(to, ARP{Op: ARPReply, SenderMAC: a.MAC(), Sender: foreign, TargetMAC: b.MAC(), Target: b.Addr4()}), 1, 0},
				{"ARP of another's MAC", Build(to, ARP{Op: ARPReply, SenderMAC: c.MAC(), Sender: c.Addr4(), TargetMAC: b.MAC(), Target: b.Addr4()}), 1, 0},
				{"neighbour advertisement for another", Build(append([]Layer{to, IPv6{Src: a.LinkLocal(), Dst: b.LinkLocal()}}, NeighborAdvert(other6, a.MAC())...)...), 1, 0},
				{"routed", Build(to, IPv4{Src: foreign, Dst: b.Addr4(), TTL: 63}, UDP{SrcPort: 1, DstPort: 2}), 1, 0},
				{"from this host's loopback", Build(to, IPv4{Src: ip("127.0.0.1"), Dst: b.Addr4()}, UDP{SrcPort: 1, DstPort: 2}), 1, 0},
				{"to QEMU's gateway", Build(Ethernet{Src: a.MAC(), Dst: gatewayMAC, Type: 0x88b5}, Payload(make([]byte, 50))), 1, 1},
				{"to itself", Build(Ethernet{Src: a.MAC(), Dst: a.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))), 0, 0},
				{"pause", Build(typed(group(0x01, 0x80, 0xc2, 0, 0, 1), 0x8808), Payload(make([]byte, 46))), 0, 0},
				{"from a group", Build(Ethernet{Src: Broadcast, Dst: b.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))), 0, 0},
			} {
				t.Run(tt.name, func(t *testing.T) {
					same := func(p *Packet) error {
						if !bytes.HasPrefix(p.Frame, tt.frame) || len(p.Frame) != max(len(tt.frame), 60) {
							return errors.New("another frame")
						}
						return nil
					}
					wa, wb, wc := a.Watch(same), b.Watch(same), c.Watch(same)
					defer wa.Stop()
					defer wb.Stop()
					defer wc.Stop()
					if err := a.Send(tt.frame); err != nil {
						t.Fatal(err)
					}
					hears(t, a, b, c)
					if len(wa.Got()) != 0 || len(wb.Got()) != tt.bs || len(wc.Got()) != tt.cs {
						t.Errorf("came %d, %d and %d times, want 0, %d and %d", len(wa.Got()), len(wb.Got()), len(wc.Got()), tt.bs, tt.cs)
					}
				})
			}
		})
	}
}

// Guests of one talk, and nobody else is there.
func TestPlainGuests(t *testing.T) {
	n := without(t, backend.Config{Name: "lan", Prefix4: netip.MustParsePrefix("10.1.1.0/24")})
	a, b := Plug(t, n, station(1)), plugSocket(t, n, station(2))
	there(t, n, 2)
	for _, f := range families {
		listenGuest(t, b, f, 7, echoGuest)
		c, err := a.Dial(patience(t), "tcp", at(f.of(b), 7))
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, c, strings.Repeat("neighbour", 5000))
		c.Close()
		if err := a.Ping(patience(t), f.of(b), 1, 2, []byte("hi")); err != nil {
			t.Error(err)
		}
	}
	// What a guest asks a gateway for goes to its neighbours alone.
	w, v := b.Watch(IsUDP(68, 67)), a.Watch(FromMAC(gatewayMAC))
	a.Send(a.DHCP4(a.Discover()))
	w.Expect(t)
	hears(t, b, a)
	if got := v.Got(); len(got) > 0 {
		t.Errorf("somebody answered: %s", got[0])
	}
	if s := n.Status(); !s.NoUplink || s.Wire || s.Guests != 2 || s.GatewayMAC != "" || s.Gateway4.IsValid() || s.Prefix4 != netip.MustParsePrefix("10.1.1.0/24") || len(s.Warnings) > 0 {
		t.Errorf("status %+v", s)
	}
	for _, g := range []*Guest{a, b} {
		i := guestOf(n, g)
		if !slices.Contains(i.Addrs, g.Addr4()) || i.RxFrames == 0 || i.TxFrames == 0 {
			t.Errorf("guest %+v", i)
		}
	}
	if n.Flows().Opened() > 0 {
		t.Errorf("%d flows", n.Flows().Opened())
	}
	if l := n.DNSRecords(); len(l) > 0 {
		t.Errorf("names that nobody answers for: %+v", l)
	}
	for what, err := range map[string]error{
		"dial":    second(n.DialContext(patience(t), "tcp", "10.1.1.1:80")),
		"listen":  second(n.Listen("tcp", "10.1.1.9:80")),
		"packets": second(n.ListenPacket("udp", "10.1.1.9:80")),
		"record":  n.AddDNS(backend.DNSRecord{Name: "web", Type: "A", Value: "10.1.1.1"}),
		"forward": second(n.Forwards().AddAll(patience(t), []portforward.Rule{{HostPort: 0, Guest: "10.1.1.1", GuestPort: 80}})),
		"reload":  second(n.Reload(patience(t), backend.Config{Static: map[string][]netip.Addr{"52:54:00:00:00:01": {ip("10.1.1.7")}}})),
	} {
		if err == nil || !strings.Contains(err.Error(), backend.ErrNoUplink.Error()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := n.Reload(patience(t), backend.Config{Limits: flows.Limits{MACs: 4}}); err != nil {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

// What a network without an uplink cannot have is refused; it says what, all of it.
func TestPlainConfig(t *testing.T) {
	p4, p6 := netip.MustParsePrefix("10.1.1.7/30"), netip.MustParsePrefix("fd00:1::7/127")
	for _, tt := range []struct {
		name string
		c    backend.Config
		errs []string // nil: it can be
	}{
		{"nothing", backend.Config{NoUplink: true}, nil},
		{"small prefixes", backend.Config{NoUplink: true, Prefix4: p4, Prefix6: p6}, nil},
		{"a small MTU", backend.Config{NoUplink: true, MTU: 68}, nil},
		{"the largest", backend.Config{NoUplink: true, MTU: backend.MaxMTU}, nil},
		{"what harms nothing", backend.Config{NoUplink: true, Isolate: true, LargeMTU: 9000, LargeNICs: true, Domain: "x", Search: []string{"y"}, NoHostLoopback: true, StateDir: t.TempDir(), Egress: &Egress{}}, nil},
		{"a wire", backend.Config{Wire: true}, nil},
		{"much", backend.Config{Name: "lan", NoUplink: true, Forwards: []portforward.Rule{{GuestPort: 1}}, Records: []backend.DNSRecord{{}}, Policy: &flows.Default{}, StrictLeases: true,
			Static: map[string][]netip.Addr{"52:54:00:00:00:01": nil}, Gateway4: ip("10.1.1.1"), DNS6: ip("fd00::1"), Routes: []netip.Prefix{}},
			[]string{"network lan: a network without an uplink has no port forwards", "no DNS records", "no policy", "no strict leases", "no fixed leases", "no gateway", "no DNS server", "no routes"}},
		{"families mixed up", backend.Config{NoUplink: true, Prefix4: p6, Prefix6: p4}, []string{"prefix fd00:1::7/127", "prefix 10.1.1.7/30"}},
		{"no MTU at all", backend.Config{NoUplink: true, MTU: 67}, []string{"mtu 67: want 68"}},
		{"too much of it", backend.Config{Wire: true, MTU: 65521}, []string{"to 65520"}},
		{"an isolated wire", backend.Config{Wire: true, Isolate: true}, []string{"a wire has no isolated guests"}},
		{"limits", backend.Config{NoUplink: true, Limits: flows.Limits{MACs: 1}}, []string{"limit macs"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, err := backend.New(tt.c)
			if err == nil {
				if c := n.Config(); !c.NoUplink {
					t.Error("it does not say that it has no uplink")
				}
				n.Close()
			}
			if (err == nil) != (tt.errs == nil) {
				t.Fatalf("%v", err)
			}
			for _, s := range tt.errs {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%v\nsays nothing of %q", err, s)
				}
			}
		})
	}
}

// A MAC is where it was heard last: a virtual router's goes to who has become master, and back.
func TestPlainMACMoves(t *testing.T) {
	n := without(t, backend.Config{})
	a, b, c := Plug(t, n, station(1)), plugSocket(t, n, station(2)), Plug(t, n, station(3))
	there(t, n, 3)
	for _, g := range []*Guest{a, b} {
		hears(t, g, c)
	}
	hears(t, c, a)
	virtual := net.HardwareAddr{0, 0, 0x5e, 0, 1, 7}
	vip := ip("10.1.1.254")
	for _, tt := range []struct {
		master, slave *Guest
		mac           net.HardwareAddr
	}{{a, b, virtual}, {b, a, virtual}, {a, b, virtual}, {b, a, a.MAC()}, {a, b, a.MAC()}, {a, b, b.MAC()}, {b, a, b.MAC()}} {
		tt.master.Send(Build(Ethernet{Src: tt.mac}, ARP{SenderMAC: tt.mac, Sender: vip, Target: vip}))
		hears(t, tt.master, c)
		probe := Build(Ethernet{Src: c.MAC(), Dst: tt.mac, Type: 0x88b5}, Payload(make([]byte, 50)))
		w, v := tt.master.Watch(ToMAC(tt.mac), FromMAC(c.MAC())), tt.slave.Watch(ToMAC(tt.mac), FromMAC(c.MAC()))
		c.Send(probe)
		hears(t, c, tt.master, tt.slave)
		if len(w.Got()) != 1 || len(v.Got()) != 0 {
			t.Errorf("%s: the master got %d, the other %d", tt.mac, len(w.Got()), len(v.Got()))
		}
		w.Stop()
		v.Stop()
	}
	// Each is still called by its first.
	for _, g := range []*Guest{a, b, c} {
		if i := guestOf(n, g); i.ID == "" {
			t.Errorf("no guest is %s: %+v", g.MAC(), n.Guests())
		}
	}
	a.Close()
	eventually(t, "it is gone", func() bool { return len(n.Guests()) == 2 })
	if err := b.Ping(patience(t), c.Addr4(), 1, 1, nil); err != nil {
		t.Error(err)
	}
}

// In a network with an uplink, where a MAC stays with its guest, a virtual router's moves with the addresses at it; another's
// does not.
func TestVirtualRouterMoves(t *testing.T) {
	n := start(t, backend.Config{})
	a, b, c := Plug(t, n, Config{}).Up(t), Plug(t, n, Config{}).Up(t), Plug(t, n, Config{}).Up(t)
	p := Plug(t, asPort{n, backend.PortConfig{Promiscuous: true}}, Config{}).Up(t)
	virtual := net.HardwareAddr{0, 0, 0x5e, 0, 2, 9}
	vip4, vip6 := ip("10.0.2.200"), ip("fd00:1234::c8")
	for _, master := range []*Guest{a, b, a, p, a, p} {
		ms := []*Watch{c.Watch(IsARP(ARPReply, vip4)), c.Watch(IsNA(vip6))}
		master.Send(Build(Ethernet{Src: virtual}, ARP{Op: ARPReply, SenderMAC: virtual, Sender: vip4, TargetMAC: virtual, Target: vip4}))
		master.Send(Build(append([]Layer{Ethernet{Src: virtual, Dst: MulticastMAC(ip("ff02::1"))}, IPv6{Src: vip6, Dst: ip("ff02::1")}}, NeighborAdvert(vip6, virtual)...)...))
		for _, w := range ms {
			w.Expect(t)
			w.Stop()
		}
		w := master.Watch(ToMAC(virtual), FromMAC(c.MAC()))
		c.Send(Build(Ethernet{Src: c.MAC(), Dst: virtual}, IPv4{Src: c.Addr4(), Dst: vip4}, UDP{SrcPort: 1, DstPort: 2}))
		w.Expect(t)
		w.Stop()
		if addrs := guestOf(n, master).Addrs; !slices.Contains(addrs, vip4) || !slices.Contains(addrs, vip6) {
			t.Errorf("the master has %v", addrs)
		}
	}
	w := c.Watch(EtherType(0x88b5))
	b.Send(Build(Ethernet{Src: a.MAC(), Dst: c.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))))
	b.Sync(t)
	w.None(t)
}

// A guest that routes for another network is heard by its neighbours and by the gateway, as whoever it routes for; answers
// go back by it.
func TestGuestRoutes(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, router := c.up(t, backend.Config{})
		other := Plug(t, n, Config{}).Up(t)
		behind := ip("192.168.5.9")
		dst := f.gateway
		if f.name == "ipv6" {
			behind = ip("fd55::9")
		}
		via := func(to net.HardwareAddr, dst netip.Addr, l ...Layer) []byte {
			var h Layer = IPv4{Src: behind, Dst: dst, TTL: 63}
			if f.name == "ipv6" {
				h = IPv6{Src: behind, Dst: dst, HopLimit: 63}
			}
			return Build(append([]Layer{Ethernet{Src: router.MAC(), Dst: to}, h}, l...)...)
		}
		w := other.Watch(From(behind), IsUDP(1, 2))
		router.Send(via(other.MAC(), f.of(other), UDP{SrcPort: 1, DstPort: 2}))
		w.Expect(t)
		// A conversation with the host.
		l := f.listen(t, echo)
		v := router.Watch(To(behind), IsTCP("SA"))
		router.Send(via(gatewayMAC, dst, TCP{SrcPort: 4000, DstPort: l.Port(), Seq: 100, Flags: "S", Window: 1000}))
		sa := v.Expect(t)
		if !bytes.Equal(sa.Dst, router.MAC()) {
			t.Errorf("the answer went to %s", sa.Dst)
		}
		u := router.Watch(To(behind), Carries([]byte("hello")))
		router.Send(via(gatewayMAC, dst, TCP{SrcPort: 4000, DstPort: l.Port(), Seq: 101, Ack: sa.TCP.Seq + 1, Flags: "PA", Window: 1000}, Payload("hello")))
		u.Expect(t)
		if len(n.Flows().List()) != 1 || n.Flows().List()[0].Src.Addr() != behind {
			t.Errorf("flows %+v", n.Flows().List())
		}
	})
}

// What goes to all of a switch without an uplink is bounded for three, and not for two, of whom it is no copying.
func TestPlainStorm(t *testing.T) {
	n := without(t, backend.Config{})
	a, b := Plug(t, n, station(1)), Plug(t, n, station(2))
	there(t, n, 2)
	hears(t, a, b)
	frame := Build(Ethernet{Src: a.MAC(), Type: 0x88b5}, Payload(make([]byte, 50)))
	flood := func() {
		for range 40000 {
			a.Send(frame)
		}
		eventually(t, "all were read", func() bool { return guestOf(n, a).RxFrames >= 40000 })
	}
	flood()
	if got := dropped(n, a, flows.ReasonStorm); got > 0 {
		t.Errorf("%d frames to one were dropped as a storm", got)
	}
	c := Plug(t, n, station(3))
	there(t, n, 3)
	hears(t, c, b)
	eventually(t, "a storm is noticed", func() bool {
		for range 1000 {
			a.Send(frame)
		}
		return dropped(n, a, flows.ReasonStorm) > 0
	})
	if err := b.Ping(patience(t), c.Addr4(), 1, 1, nil); err != nil {
		t.Errorf("the others: %v", err)
	}
}

// Guests that are kept apart hear nobody but a promiscuous one, which hears all.
func TestPlainIsolated(t *testing.T) {
	n := without(t, backend.Config{Isolate: true})
	a, b := Plug(t, n, station(1)), plugSocket(t, n, station(2))
	router := Plug(t, asPort{n, backend.PortConfig{Promiscuous: true}}, station(3))
	there(t, n, 3)
	hears(t, router, a, b)
	w := b.Watch(FromMAC(a.MAC()))
	a.Send(Build(Ethernet{Src: a.MAC(), Dst: b.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))))
	a.Send(Build(Ethernet{Src: a.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))))
	for _, g := range []*Guest{a, b} {
		if err := g.Ping(patience(t), router.Addr4(), 1, 1, nil); err != nil {
			t.Errorf("the promiscuous one is out of reach: %v", err)
		}
		if err := router.Ping(patience(t), g.Addr6(), 1, 1, nil); err != nil {
			t.Errorf("%v", err)
		}
	}
	if got := w.Got(); len(got) > 0 {
		t.Errorf("%s came", got[0])
	}
	if dropped(n, a, flows.ReasonIsolated) == 0 {
		t.Error("nothing was counted")
	}
}

// A wire carries everything to its other end, has two, and takes another guest when one has gone.
func TestWire(t *testing.T) {
	for _, w := range wires {
		t.Run(w.name, func(t *testing.T) {
			n := without(t, backend.Config{Name: "line", Wire: true})
			a := w.plug(t, n, station(1))
			a.Send(Build(Ethernet{Src: a.MAC(), Type: 0x88b5}, Payload("to nobody")))
			b := w.plug(t, n, station(2))
			there(t, n, 2)
			for _, tt := range []struct {
				name  string
				frame []byte
				n     int
			}{
				{"to another's MAC", Build(Ethernet{Src: a.MAC(), Dst: net.HardwareAddr{2, 9, 9, 9, 9, 9}, Type: 0x88b5}, Payload(make([]byte, 50))), 1},
				{"to its own MAC", Build(Ethernet{Src: a.MAC(), Dst: a.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))), 1},
				{"from the other's MAC", Build(Ethernet{Src: b.MAC(), Dst: a.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))), 1},
				{"from a group", Build(Ethernet{Src: Broadcast, Dst: Broadcast, Type: 0x88b5}, Payload(make([]byte, 50))), 1},
				{"from nobody", Build(Ethernet{Src: make([]byte, 6), Dst: make([]byte, 6), Type: 0x88b5}, Payload(make([]byte, 50))), 1},
				{"LLDP", Build(Ethernet{Src: a.MAC(), Dst: net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 0x0e}, Type: 0x88cc}, Payload(make([]byte, 60))), 1},
				{"MACsec", Build(Ethernet{Src: a.MAC(), Dst: net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 3}, Type: 0x888e}, Payload(make([]byte, 60))), 1},
				{"pause", Build(Ethernet{Src: a.MAC(), Dst: net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 1}, Type: 0x8808}, Payload(make([]byte, 60))), 0},
				{"jumbo", Build(Ethernet{Src: a.MAC(), Dst: b.MAC(), Type: 0x88b5}, Payload(make([]byte, 9000))), 1},
			} {
				t.Run(tt.name, func(t *testing.T) {
					w := b.Watch(func(p *Packet) error {
						if !bytes.Equal(p.Frame, tt.frame) {
							return errors.New("another frame")
						}
						return nil
					})
					defer w.Stop()
					a.Send(tt.frame)
					hears(t, a, b)
					if len(w.Got()) != tt.n {
						t.Errorf("came %d times, want %d", len(w.Got()), tt.n)
					}
				})
			}
			for _, f := range families {
				if err := b.Ping(patience(t), f.of(a), 1, 1, make([]byte, 3000)); err != nil {
					t.Error(err)
				}
			}
			near, far := link.Pipe(1)
			defer near.Close()
			err := n.Serve(patience(t), far, "third")
			if !errors.Is(err, backend.ErrWireFull) || !strings.Contains(err.Error(), "network line") || strings.Contains(err.Error(), "third") {
				t.Errorf("a third guest: %v", err)
			}
			if _, err := near.WriteFrames([]link.Frame{link.NewFrame(make([]byte, 60))}); err == nil {
				t.Error("its wire was left open")
			}
			b.Close()
			eventually(t, "one has gone", func() bool { return len(n.Guests()) == 1 })
			var c *Guest
			eventually(t, "there is room again", func() bool { // the end of its port may be a little later
				near, far := link.Pipe(PipeDepth)
				served := make(chan error, 1)
				go func() { served <- n.Serve(patience(t), far, "next") }()
				for {
					select {
					case <-served:
						near.Close()
						return false
					default:
					}
					if len(n.Guests()) == 2 {
						break
					}
				}
				var err error
				if c, err = New(near, station(2)); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close(); <-served })
				return true
			})
			if err := c.Ping(patience(t), a.Addr4(), 1, 1, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// What two kernels leave unfinished to one another comes finished where it has to, behind VLAN tags and in tunnels as well.
func TestPlainFinish(t *testing.T) {
	const all = link.Told | link.Checksums | link.Segments
	for _, wire := range []bool{false, true} {
		t.Run(fmt.Sprintf("wire %v", wire), func(t *testing.T) {
			payload := make([]byte, 10001)
			for i := range payload {
				payload[i] = byte(i * 31)
			}
			for _, tags := range []int{0, 1, 2} {
				for _, f := range families {
					for _, takes := range []bool{false, true} {
						t.Run(fmt.Sprintf("%d tags, %s, taken %v", tags, f.name, takes), func(t *testing.T) {
							n := without(t, backend.Config{Wire: wire})
							tap, marks := plugRaw(t, n, all, all, station(1))
							var to *Guest
							var got *unfinished
							if takes {
								to, got = plugRaw(t, n, all, all, station(2))
							} else {
								to = plugSocket(t, n, station(2))
							}
							there(t, n, 2)
							hears(t, to, tap)
							tagged := func(b []byte) []byte {
								for i := range tags {
									b = slices.Insert(b, 12, 0x81, 0, 0, byte(10+i))
								}
								return b
							}
							send := func(b []byte, o link.Offload) {
								o.SumStart += uint16(4 * tags)
								if o.Header > 0 {
									o.Header += uint16(4 * tags)
								}
								b = tagged(b)
								marks.mark(b, o)
								tap.Send(b)
							}
							untag := func(p *Packet) *Packet { return Parse(slices.Delete(bytes.Clone(p.Frame), 12, 12+4*tags)) }
							long := tap.Via(to.MAC(), f.of(to), TCP{SrcPort: 7, DstPort: 8, Seq: 1000, Ack: 5, Flags: "A"}, Payload(payload))
							o := partial(long)
							o.Kind, o.Size, o.Header = link.OffloadTCP4, 1400, uint16(len(long)-len(payload))
							if f.name == "ipv6" {
								o.Kind = link.OffloadTCP6
							}
							mine := func(p *Packet) error { // not what the guest's own stack says beside it
								if p.ICMP != nil || p.ARP != nil {
									return errors.New("a neighbour is looked for")
								}
								return FromMAC(tap.MAC())(p)
							}
							w := to.Watch(mine)
							send(long, o)
							if takes {
								p := w.Expect(t)
								if !bytes.Equal(p.Frame, tagged(long)) {
									t.Errorf("%d bytes came of %d", len(p.Frame), len(long)+4*tags)
								}
								o.SumStart += uint16(4 * tags)
								o.Header += uint16(4 * tags)
								got.mu.Lock()
								if x := got.wrote[len(got.wrote)-1].Offload(); x != o {
									t.Errorf("%+v, want %+v", x, o)
								}
								got.mu.Unlock()
							} else {
								for have := 0; have < len(payload); {
									p := untag(w.Expect(t))
									if err := Good()(p); err != nil || len(p.Payload) > 1400 || !bytes.Equal(p.Payload, payload[have:have+len(p.Payload)]) {
										t.Fatalf("%s: %v", p, err)
									}
									have += len(p.Payload)
								}
							}
							short := tap.Via(to.MAC(), f.of(to), UDP{SrcPort: 7, DstPort: 8}, Payload(payload[:999]))
							send(short, partial(short))
							if p := untag(w.Expect(t)); !takes && Good()(p) != nil || !bytes.Equal(p.Payload, payload[:999]) {
								t.Errorf("%s: %v", p, Good()(p))
							}
							// TCP in GRE in IP: only its own kernel knows where its checksum is.
							inner := Build(Ethernet{}, IPv4{Src: tap.Addr4(), Dst: to.Addr4()}, TCP{SrcPort: 9, DstPort: 10, Flags: "A"}, Payload(payload[:500]))
							want := bytes.Clone(inner[14:])
							io := partial(inner)
							gre := tap.Via(to.MAC(), f.of(to), Payload(append([]byte{0, 0, 8, 0}, inner[14:]...)))
							proto := 14 + 9
							hl := 20
							if f.name == "ipv6" {
								proto, hl = 14+6, 40
							}
							gre[proto] = 47
							io.SumStart += uint16(hl + 4)
							send(gre, io)
							p := w.Expect(t)
							if b := p.Frame[14+4*tags+hl+4:]; !bytes.Equal(b, want) && !takes {
								t.Errorf("in a tunnel:\n% x, want\n% x", b[:40], want[:40])
							}
						})
					}
				}
			}
		})
	}
}

// plugRaw is plugUnfinished without an uplink's services.
func plugRaw(t *testing.T, n *backend.Network, gives, takes link.Offloads, c Config) (*Guest, *unfinished) {
	t.Helper()
	near, far := link.Pipe(PipeDepth)
	u := &unfinished{Link: far, gives: gives, takes: takes, marks: map[string]link.Offload{}}
	g, err := New(near, c)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		n.Serve(context.Background(), u, "unfinished")
	}()
	t.Cleanup(func() { g.Close(); <-served })
	return g, u
}

// A port's own impairment holds from its first frame, is changed by its id, and goes with the port.
func TestPortImpair(t *testing.T) {
	n := without(t, backend.Config{Wire: true})
	var id string
	got := make(chan string, 1)
	a := Plug(t, asPort{n, backend.PortConfig{Impair: &impair.Settings{Up: impair.Way{Loss: 1}}, Plugged: func(id string) { got <- id }}}, station(1))
	b := Plug(t, n, station(2))
	id = <-got
	there(t, n, 2)
	w := b.Watch(FromMAC(a.MAC()))
	for range 20 {
		a.Send(Build(Ethernet{Src: a.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))))
	}
	eventually(t, "all are lost", func() bool {
		all := n.Guests()
		return all[slices.IndexFunc(all, func(g backend.GuestInfo) bool { return g.ID == id })].Dropped[flows.ReasonImpaired.String()] >= 20
	})
	if got := w.Got(); len(got) > 0 {
		t.Errorf("%s came", got[0])
	}
	if i, err := n.Impairment(id); err != nil || i.Settings.Up.Loss != 1 || !i.Own {
		t.Errorf("%+v: %v", i, err)
	}
	if err := n.Impair(id, &impair.Settings{}); err != nil {
		t.Fatal(err)
	}
	if err := b.Ping(patience(t), a.Addr4(), 1, 1, nil); err != nil {
		t.Error(err)
	}
	near, far := link.Pipe(1)
	defer near.Close()
	if err := n.ServePort(patience(t), far, backend.PortConfig{Impair: &impair.Settings{Up: impair.Way{Loss: 2}}}); err == nil {
		t.Error("a loss of 200 % was taken")
	}
}
