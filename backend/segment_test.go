package backend_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/miekg/dns"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
)

// lookup asks the network's resolver, as a guest.
func lookup(t testing.TB, g *Guest, server netip.Addr, name string, typ uint16) []string {
	t.Helper()
	u, err := g.DialUDP(at(server, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.Write(query(t, name, typ))
	b, _ := readGuest(t, u)
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range m.Answer {
		switch r := r.(type) {
		case *dns.A:
			got = append(got, r.A.String())
		case *dns.AAAA:
			got = append(got, r.AAAA.String())
		}
	}
	slices.Sort(got)
	return got
}

// Two guests know one another by name and talk through the switch; nothing of it leaves.
func TestGuestsReachOneAnother(t *testing.T) {
	e := &Egress{}
	n := start(t, backend.Config{Egress: e})
	a := Plug(t, n, Config{Name: "alpha"}).Up(t)
	b := plugSocket(t, n, Config{Name: "beta"}).Up(t)
	for _, g := range []*Guest{a, b} { // shows its IPv6 address, which makes it a name
		if err := g.Ping(patience(t), gateway6, 1, 1, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		from, to *Guest
		name     string
	}{{a, b, "beta.internal."}, {b, a, "alpha.internal."}} {
		for i, f := range families {
			got := lookup(t, tt.from, f.dns, tt.name, []uint16{dns.TypeA, dns.TypeAAAA}[i])
			if len(got) != 1 || got[0] != f.of(tt.to).String() {
				t.Errorf("%s is %v, want %s", tt.name, got, f.of(tt.to))
			}
			listenGuest(t, tt.to, f, 7, echoGuest)
			c, err := tt.from.Dial(patience(t), "tcp", at(f.of(tt.to), 7))
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, c, "neighbour")
			c.Close()
			if err := tt.from.Ping(patience(t), f.of(tt.to), 1, 2, []byte("hi")); err != nil {
				t.Error(err)
			}
		}
		if err := tt.from.Ping(patience(t), tt.to.LinkLocal(), 1, 2, nil); err != nil {
			t.Error(err)
		}
	}
	if n.Flows().Opened() > 0 || len(e.Dials()) > 0 {
		t.Errorf("%d flows, dialled %v", n.Flows().Opened(), e.Dials())
	}
}

// A frame for one goes to that one; one for nobody known, or for a group, to all.
func TestSwitching(t *testing.T) {
	n := start(t, backend.Config{})
	a, b, c := Plug(t, n, Config{}).Up(t), Plug(t, n, Config{}).Up(t), Plug(t, n, Config{}).Up(t)
	unknown := net.HardwareAddr{2, 9, 9, 9, 9, 9}
	for _, tt := range []struct {
		name   string
		dst    net.HardwareAddr
		size   int
		bs, cs int
		length int
	}{
		{"to one", b.MAC(), 100, 1, 0, 114},
		{"to one, short", b.MAC(), 10, 1, 0, 60},
		{"to nobody known", unknown, 100, 1, 1, 114},
		{"to all", Broadcast, 100, 1, 1, 114},
		{"to a group", net.HardwareAddr{1, 0, 0x5e, 1, 2, 3}, 2000, 1, 1, 2014},
		{"to itself", a.MAC(), 100, 0, 0, 0},
		{"to the gateway", gatewayMAC, 100, 0, 0, 0},
		{"64 KiB", b.MAC(), 65536, 1, 0, 65550},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mine := func(p *Packet) error { return All(FromMAC(a.MAC()), EtherType(0x88b5))(p) }
			wa, wb, wc := a.Watch(mine), b.Watch(mine), c.Watch(mine)
			defer wa.Stop()
			defer wb.Stop()
			defer wc.Stop()
			a.Send(Build(Ethernet{Src: a.MAC(), Dst: tt.dst, Type: 0x88b5}, Payload(make([]byte, tt.size))))
			// The gateway's answer to a may be under way before a's frames to others are: each is waited for.
			eventually(t, "all copies came", func() bool { return len(wb.Got()) >= tt.bs && len(wc.Got()) >= tt.cs })
			a.Sync(t)
			b.Sync(t)
			c.Sync(t)
			if len(wa.Got()) > 0 || len(wb.Got()) != tt.bs || len(wc.Got()) != tt.cs {
				t.Errorf("came %d, %d and %d times, want 0, %d and %d", len(wa.Got()), len(wb.Got()), len(wc.Got()), tt.bs, tt.cs)
			}
			for _, p := range wb.Got() {
				if len(p.Frame) != tt.length {
					t.Errorf("a frame of %d bytes came, want %d", len(p.Frame), tt.length)
				}
			}
		})
	}
}

func TestIsolate(t *testing.T) {
	n := start(t, backend.Config{Isolate: true})
	a, b := Plug(t, n, Config{Name: "a"}).Up(t), Plug(t, n, Config{Name: "b"}).Up(t)
	w := b.Watch(FromMAC(a.MAC()))
	for _, dst := range []net.HardwareAddr{b.MAC(), Broadcast, {2, 9, 9, 9, 9, 9}, MulticastMAC(ip("ff02::1"))} {
		a.Send(Build(Ethernet{Src: a.MAC(), Dst: dst, Type: 0x88b5}, Payload(make([]byte, 50))))
	}
	a.Send(Build(Ethernet{Src: a.MAC()}, ARP{SenderMAC: a.MAC(), Sender: a.Addr4(), Target: b.Addr4()}))
	a.Sync(t)
	w.None(t)
	// By way of the gateway neither: what is on the link is not behind the router.
	v := a.Watch(IsICMP(3, 1))
	a.Send(a.Via(gatewayMAC, b.Addr4(), TCP{SrcPort: 4000, DstPort: 22, Flags: "S"}))
	v.Expect(t)
	w.None(t)
	c, err := a.Dial(patience(t), "tcp", families[0].listen(t, echo))
	if err != nil {
		t.Fatalf("the host is out of reach: %v", err)
	}
	c.Close()
}

// A guest with the MAC of another reaches the gateway, but no guest; when the other goes the MAC is its own.
func TestSameMACTwice(t *testing.T) {
	n := start(t, backend.Config{})
	first := Plug(t, n, Config{}).Up(t)
	third := Plug(t, n, Config{}).Up(t)
	second := Plug(t, n, Config{MAC: first.MAC(), Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24")}, Gateway4: gateway4})
	second.Sync(t)
	c, err := second.Dial(patience(t), "tcp", families[0].listen(t, echo))
	if err != nil {
		t.Fatalf("the gateway is out of reach: %v", err)
	}
	roundTrip(t, c, "hello")
	c.Close()
	w := third.Watch(EtherType(0x88b5))
	probe := Build(Ethernet{Src: first.MAC(), Dst: third.MAC(), Type: 0x88b5}, Payload(make([]byte, 50)))
	second.Send(probe)
	second.Sync(t)
	w.None(t)
	if err := third.Ping(patience(t), first.Addr4(), 1, 1, nil); err != nil {
		t.Errorf("the first is out of reach: %v", err)
	}
	first.Close()
	eventually(t, "the first is gone", func() bool { return len(n.Guests()) == 2 })
	second.Send(probe)
	w.Expect(t)
	if n.Guests()[1].MAC != first.MAC().String() {
		t.Errorf("guests %+v", n.Guests())
	}
}

// A guest that floods has its surplus dropped and counted; others are served.
func TestStorm(t *testing.T) {
	n := start(t, backend.Config{})
	a, b := Plug(t, n, Config{}).Up(t), Plug(t, n, Config{}).Up(t)
	frame := Build(Ethernet{Src: a.MAC(), Type: 0x88b5}, Payload(make([]byte, 50)))
	for range 8000 {
		a.Send(frame)
	}
	a.Sync(t)
	b.Sync(t)
	if dropped(n, a, flows.ReasonStorm) == 0 {
		t.Error("no frame was dropped")
	}
	if got, _ := b.Received(); got > 7000 {
		t.Errorf("the other guest got %d frames", got)
	}
}

// Spoofed MACs and addresses fill their own port's share and take nobody else's (hostile groups 2 and 3).
func TestSpoofedMACsAndAddresses(t *testing.T) {
	n := start(t, backend.Config{})
	victim := Plug(t, n, Config{Name: "victim"}).Up(t)
	g := Plug(t, n, Config{}).Up(t)
	if err := victim.Ping(patience(t), gateway6, 1, 1, nil); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(3000) {
		m := net.HardwareAddr{2, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint32(m[2:], i)
		b := gateway6.As16()
		binary.BigEndian.PutUint32(b[12:], 1000+i)
		g.Send(Build(append([]Layer{Ethernet{Src: m, Dst: gatewayMAC}, IPv6{Src: netip.AddrFrom16(b), Dst: gateway6}}, NeighborSolicit(gateway6, m)...)...))
	}
	g.Send(Build(Ethernet{Src: Broadcast, Dst: gatewayMAC}, IPv4{Src: g.Addr4(), Dst: gateway4}, UDP{SrcPort: 1, DstPort: 2}))
	g.Sync(t)
	for _, i := range n.Guests() {
		if len(i.Addrs) > 256+20 {
			t.Errorf("guest %s has %d addresses", i.ID, len(i.Addrs))
		}
	}
	if dropped(n, g, flows.ReasonMACLimit) < 2000 {
		t.Errorf("%v: MACs beyond the limit are not counted", n.Guests()[1].Dropped)
	}
	if dropped(n, g, flows.ReasonMalformed) != 1 {
		t.Errorf("a frame from a group's MAC is not counted")
	}
	if err := g.Ping(patience(t), victim.Addr4(), 1, 1, nil); err != nil {
		t.Errorf("the victim is out of reach: %v", err)
	}
	if got := lookup(t, g, dns4, "victim.internal.", dns.TypeAAAA); fmt.Sprint(got) != fmt.Sprintf("[%s]", victim.Addr6()) {
		t.Errorf("victim.internal is %v", got)
	}
	if c, err := g.Dial(patience(t), "tcp", families[0].listen(t, echo)); err != nil {
		t.Errorf("the spoofer itself is not served: %v", err)
	} else {
		c.Close()
	}
}
