package backend_test

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/dhcp"
	"github.com/vmnetd/vmnetd/flows"
)

func TestDHCP4OverTheWire(t *testing.T) {
	n := start(t, backend.Config{MTU: 9000, Search: []string{"example.org"}})
	g := Plug(t, n, Config{Name: "web", MTU: 9000})
	ack, err := g.Lease(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	addr := func(ip net.IP) string { return ip.String() }
	mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options)
	for _, tt := range []struct{ what, got, want string }{
		{"address", addr(ack.YourIPAddr), "10.0.2.15"},
		{"server", addr(ack.ServerIdentifier()), "10.0.2.2"},
		{"router", addr(ack.Router()[0]), "10.0.2.2"},
		{"DNS", addr(ack.DNS()[0]), "10.0.2.3"},
		{"domain", ack.DomainName(), "internal"},
		{"mask", net.IP(ack.SubnetMask()).String(), "255.255.255.0"},
		{"search", ack.DomainSearch().Labels[1], "example.org"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s is %s, want %s", tt.what, tt.got, tt.want)
		}
	}
	if mtu != 9000 {
		t.Errorf("mtu is %d, want 9000", mtu)
	}
	// Renewal by unicast, release, and the same address again.
	req, err := dhcpv4.NewRenewFromAck(ack)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := g.Exchange4(patience(t), req); err != nil || r.MessageType() != dhcpv4.MessageTypeAck {
		t.Fatalf("renewal: %v, %v", r, err)
	}
	rel, _ := dhcpv4.NewReleaseFromACK(ack)
	g.Send(g.DHCP4(rel))
	eventually(t, "the lease is released", func() bool { return n.Leases()[0].State == dhcp.Released })
	if again, err := g.Lease(patience(t)); err != nil || !again.YourIPAddr.Equal(ack.YourIPAddr) {
		t.Errorf("leased again: %v, %v", again, err)
	}
}

func TestDHCP6OverTheWire(t *testing.T) {
	n := start(t, backend.Config{})
	g := Plug(t, n, Config{Name: "six", Gateway6: gateway6})
	if _, err := g.Lease6(patience(t)); err != nil {
		t.Fatal(err)
	}
	if a := g.Addr6(); !prefix6.Contains(a) || a == gateway6 || a == dns6 {
		t.Errorf("leased %s", a)
	}
	if l := n.Leases(); len(l) != 1 || l[0].Addr != g.Addr6() || l[0].Name != "six" {
		t.Errorf("leases %v", l)
	}
}

// An address in use without a lease is found by asking before it is offered, and never leased to another.
func TestDHCPProbesBeforeItOffers(t *testing.T) {
	n := start(t, backend.Config{})
	squatter := Plug(t, n, Config{Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24")}, Gateway4: gateway4})
	asked := squatter.Watch(IsARP(ARPRequest, gateway4))
	g := Plug(t, n, Config{Gateway4: gateway4})
	eventually(t, "both are plugged in", func() bool { return len(n.Guests()) == 2 })
	ack, err := g.Lease(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := ack.YourIPAddr.String(); got != "10.0.2.16" {
		t.Errorf("leased %s, want 10.0.2.16: 10.0.2.15 is another's", got)
	}
	if p := asked.Expect(t); p.ARP.Target != ip("10.0.2.15") {
		t.Errorf("asked for %s", p.ARP.Target)
	}
}

// An address that a lease released is noticed again when it is used all the same.
func TestDHCPReleasedAddressInUse(t *testing.T) {
	n := start(t, backend.Config{})
	g := Plug(t, n, Config{})
	ack, err := g.Lease(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	known := func() bool { return slices.Contains(n.Guests()[0].Addrs, ip("10.0.2.15")) }
	g.Sync(t)
	if !known() {
		t.Error("the address is not known while it is leased and in use")
	}
	rel, _ := dhcpv4.NewReleaseFromACK(ack)
	g.Send(g.DHCP4(rel))
	eventually(t, "the lease is released", func() bool { return n.Leases()[0].State == dhcp.Released && !known() })
	g.Sync(t) // speaks as that address still
	if !known() {
		t.Error("the address is not known to be in use")
	}
}

// A lease is its guest's from the acknowledgement on, before a word was said as that address.
func TestDHCPLeasedAddressCannotBeTaken(t *testing.T) {
	n := start(t, backend.Config{})
	g := Plug(t, n, Config{Gateway4: gateway4})
	thief := Plug(t, n, Config{}).Up(t)
	if _, err := g.Lease(patience(t)); err != nil {
		t.Fatal(err)
	}
	thief.Send(Build(Ethernet{Src: thief.MAC()}, ARP{Op: ARPReply, SenderMAC: thief.MAC(), Sender: g.Addr4(), Target: g.Addr4()}))
	thief.Sync(t)
	g.Sync(t)
	for _, i := range n.Guests() {
		if has := slices.Contains(i.Addrs, g.Addr4()); has != (i.MAC == g.MAC().String()) {
			t.Errorf("guest %s has %v; %s is leased to %s", i.MAC, i.Addrs, g.Addr4(), g.MAC())
		}
	}
	if err := g.Ping(patience(t), gateway4, 1, 1, nil); err != nil {
		t.Errorf("its own guest cannot use it: %v", err)
	}
}

func TestStaticLeases(t *testing.T) {
	n := start(t, backend.Config{Static: map[string][]netip.Addr{"52:54:00:ab:cd:ef": {ip("10.0.2.99"), ip("fd00:1234::99")}}})
	m, _ := net.ParseMAC("52:54:00:ab:cd:ef")
	g := Plug(t, n, Config{MAC: m, Gateway6: gateway6})
	if ack, err := g.Lease(patience(t)); err != nil || ack.YourIPAddr.String() != "10.0.2.99" {
		t.Errorf("leased %v, %v", ack, err)
	}
	if _, err := g.Lease6(patience(t)); err != nil || g.Addr6() != ip("fd00:1234::99") {
		t.Errorf("leased %s, %v", g.Addr6(), err)
	}
	if _, err := backend.New(backend.Config{Static: map[string][]netip.Addr{"nonsense": nil}}); err == nil {
		t.Error("a static lease for a MAC that is none was taken")
	}
}

// Leases survive a restart where there is a state folder.
func TestRestartKeepsLeases(t *testing.T) {
	dir := t.TempDir()
	m := net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}
	first := start(t, backend.Config{StateDir: dir})
	other := Plug(t, first, Config{}).Up(t) // has the first address
	g := Plug(t, first, Config{MAC: m, Name: "keeper"}).Up(t)
	had := g.Addr4()
	_ = other
	g.Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := start(t, backend.Config{StateDir: dir})
	if _, ok := second.DNS(), slices.ContainsFunc(second.DNSRecords(), func(r backend.DNSRecord) bool { return r.Value == had.String() }); !ok {
		t.Errorf("the name of a lease of before is not known: %v", second.DNSRecords())
	}
	h := Plug(t, second, Config{MAC: m, Name: "keeper"}).Up(t)
	if h.Addr4() != had {
		t.Errorf("leased %s, had %s", h.Addr4(), had)
	}
}

func query(t testing.TB, name string, typ uint16) []byte {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(name, typ)
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The resolver is at the DNS addresses, over both transports; nothing else is there.
func TestDNSAddress(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		e := &Egress{}
		n, g := c.up(t, backend.Config{Egress: e})
		name, typ, want := "gateway.internal.", dns.TypeA, gateway4.String()
		if f.gateway.Is6() {
			typ, want = dns.TypeAAAA, gateway6.String()
		}
		answer := func(how string, m *dns.Msg, err error) {
			if err != nil || len(m.Answer) != 1 || m.Answer[0].String()[len(m.Answer[0].String())-len(want):] != want {
				t.Errorf("%s: %v, %v, want %s", how, m, err, want)
			}
		}
		u, err := g.DialUDP(at(f.dns, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		u.Write(query(t, name, typ))
		b := make([]byte, 4096)
		k, _, err := u.ReadFrom(b)
		m := new(dns.Msg)
		if err == nil {
			err = m.Unpack(b[:k])
		}
		answer("udp", m, err)

		conn, err := g.Dial(patience(t), "tcp", at(f.dns, 53))
		if err != nil {
			t.Fatal(err)
		}
		dc := &dns.Conn{Conn: conn}
		q := new(dns.Msg)
		q.SetQuestion(name, typ)
		if err := dc.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		m, err = dc.ReadMsg()
		answer("tcp", m, err)
		conn.Close()

		_, err = g.Dial(patience(t), "tcp", at(f.dns, 80))
		if err == nil {
			t.Error("port 80 of the DNS address answers")
		}
		w := g.Watch(IsICMP(f.unreachable, f.port), Quotes(To(f.dns), ToPort(123)))
		g.Send(g.IP(t, f.dns, UDP{SrcPort: 4000, DstPort: 123}, Payload("x")))
		w.Expect(t)
		if err := g.Ping(patience(t), f.dns, 1, 1, nil); err != nil {
			t.Errorf("ping: %v", err)
		}
		if len(e.Dials()) > 0 || n.Flows().Len() > 0 {
			t.Errorf("dialled %v; %d flows", e.Dials(), n.Flows().Len())
		}
	})
}

// What a guest cannot overwhelm: half-open conversations with the resolver are bounded, and the bound lifts.
func TestDNSHandshakesNeverCompleted(t *testing.T) {
	n, g := up(t, backend.Config{})
	hop := g.GatewayMAC(t)
	for i := range uint16(3000) {
		g.Send(Build(Ethernet{Src: g.MAC(), Dst: hop}, IPv4{Src: ip("10.0.2.77"), Dst: dns4}, TCP{SrcPort: 1024 + i, DstPort: 53, Flags: "S"}))
	}
	g.Sync(t)
	if got := dropped(n, g, flows.ReasonRateLimit); got < 3000-1024 {
		t.Errorf("%d of 3000 dropped, want all but 1024", got)
	}
	c, err := g.Dial(patience(t), "tcp", families[0].listen(t, echo))
	if err != nil {
		t.Fatalf("other conversations are held up: %v", err)
	}
	roundTrip(t, c, "free")
	c.Close()
}

// A flood of DHCP messages is dropped beyond a few, counted, and another guest is served meanwhile.
func TestDHCPFlood(t *testing.T) {
	n := start(t, backend.Config{})
	g := Plug(t, n, Config{Gateway4: gateway4})
	other := Plug(t, n, Config{Gateway4: gateway4})
	for range 200 {
		m := net.HardwareAddr{2, 0, 0, 0, 0, 0}
		copy(m[2:], time.Now().Format("0405"))
		d, _ := dhcpv4.NewDiscovery(m)
		frame := g.DHCP4(d)
		g.Send(frame)
	}
	g.Sync(t)
	if dropped(n, g, flows.ReasonRateLimit) == 0 {
		t.Error("no message was dropped")
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if _, err := other.Lease(ctx); err != nil {
		t.Error(err)
	}
}
