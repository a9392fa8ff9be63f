package backend_test

import (
	"net/netip"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
)

// No alias, broadcast or mapped address is a way round the policy: nothing is dialled, nothing is opened.
func TestNoWayRound(t *testing.T) {
	for _, tt := range []struct {
		dst    string
		reason string // counted, where the stack lets the packet get as far as the door
	}{
		{"127.0.0.1", ""}, {"127.255.0.1", ""}, {"0.0.0.0", ""}, {"0.1.2.3", "martian"}, {"255.255.255.255", ""},
		{"10.0.2.255", "on-link"}, {"10.0.2.0", "on-link"}, {"10.0.2.99", "on-link"}, {"224.0.0.1", ""}, {"239.1.2.3", ""}, {"240.0.0.1", "martian"},
		{"169.254.169.254", "link-local"}, {"169.254.0.1", "link-local"},
		{"::", ""}, {"::1", ""}, {"::ffff:127.0.0.1", ""}, {"::ffff:169.254.169.254", ""}, {"::127.0.0.1", "martian"}, {"::ffff:0:127.0.0.1", "martian"},
		{"ff02::1", ""}, {"ff0e::1", ""}, {"fe80::1", "link-local"}, {"fe80::dead:beef", "link-local"},
		{"64:ff9b::7f00:1", "martian"}, {"64:ff9b::a9fe:a9fe", "link-local"}, {"64:ff9b:1::7f00:1", "martian"}, {"64:ff9b::", "martian"},
		{"2002:7f00:1::", "martian"}, {"2002:a9fe:a9fe::1", "link-local"}, {"fd00:1234::99", "on-link"}, {"64:ff9b::a00:202", "on-link"}, {"2002:0a00:0202::", "on-link"},
	} {
		t.Run(tt.dst, func(t *testing.T) {
			e := &Egress{}
			n, g := up(t, backend.Config{Egress: e})
			dst := ip(tt.dst)
			g.Send(
				g.Via(gatewayMAC, dst, TCP{SrcPort: 4000, DstPort: 80, Flags: "S"}),
				g.Via(gatewayMAC, dst, UDP{SrcPort: 4000, DstPort: 80}, Payload("x")),
				g.Via(gatewayMAC, dst, Echo(dst, false, 1, 1), Payload("x")),
				g.Via(nil, dst, UDP{SrcPort: 4001, DstPort: 80}, Payload("to all")),
			)
			g.Sync(t)
			if n.Flows().Opened() > 0 || len(e.Dials()) > 0 || len(e.Pings()) > 0 {
				t.Errorf("%d flows opened, dialled %v, pinged %v", n.Flows().Opened(), e.Dials(), e.Pings())
			}
			if tt.reason != "" {
				if got := n.Flows().Counts()[tt.reason]; got == 0 {
					t.Errorf("not counted as %s: %v", tt.reason, n.Flows().Counts())
				}
			}
		})
	}
}

// --no-host-loopback closes every name of the host at once, for UDP answers as well.
func TestNoHostLoopback(t *testing.T) {
	e := &Egress{}
	n, g := up(t, backend.Config{Egress: e, NoHostLoopback: true})
	for _, a := range []netip.Addr{gateway4, gateway6, LinkLocal(gatewayMAC), ip("64:ff9b::a00:202"), ip("2002:a00:202::")} {
		t.Run(a.String(), func(t *testing.T) {
			before := n.Flows().Counts()
			w := g.Watch(func(p *Packet) error { return expectIP(p) }, From(a))
			defer w.Stop()
			g.Send(
				g.Via(gatewayMAC, a, TCP{SrcPort: 4000, DstPort: 22, Flags: "S"}),
				g.Via(gatewayMAC, a, UDP{SrcPort: 4000, DstPort: 22}, Payload("x")),
			)
			g.Sync(t)
			after := n.Flows().Counts()
			if n.Flows().Opened() > 0 || len(e.Dials()) > 0 {
				t.Errorf("%d flows opened, dialled %v", n.Flows().Opened(), e.Dials())
			}
			if n := after["host-loopback"] + after["on-link"] - before["host-loopback"] - before["on-link"]; n != 2 {
				t.Errorf("%d counted, want 2: %v", n, after)
			}
			for _, p := range w.Got() {
				if p.TCP != nil && p.TCP.Flags != "RA" {
					t.Errorf("answered with %s", p)
				}
			}
		})
	}
}

// The guest's word for the host is the gateway; both its addresses lead to the loopback of their family.
func TestGatewayIsTheHost(t *testing.T) {
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			_, g := c.up(t, backend.Config{})
			for _, f := range families {
				dst := f.listen(t, echo)
				names := []netip.Addr{f.gateway}
				if f.gateway.Is6() {
					names = append(names, LinkLocal(gatewayMAC))
				}
				for _, a := range names {
					conn, err := g.Dial(patience(t), "tcp", at(a, dst.Port()))
					if err != nil {
						t.Errorf("%s: %v", a, err)
						continue
					}
					roundTrip(t, conn, "home")
					conn.Close()
				}
			}
		})
	}
}

// Link-local is closed unless opened by name, and then that name only.
func TestOpenLinkLocal(t *testing.T) {
	e := &Egress{Dial: hang}
	n, g := up(t, backend.Config{Egress: e, OpenLinkLocal: []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32")}})
	g.Send(
		g.Via(gatewayMAC, ip("169.254.169.254"), TCP{SrcPort: 4000, DstPort: 80, Flags: "S"}),
		g.Via(gatewayMAC, ip("169.254.169.253"), TCP{SrcPort: 4001, DstPort: 80, Flags: "S"}),
	)
	g.Sync(t)
	eventually(t, "one is dialled", func() bool { return len(e.Dials()) == 1 })
	if e.Dials()[0].Addr() != ip("169.254.169.254") || n.Flows().Counts()["link-local"] != 1 {
		t.Errorf("dialled %v, counted %v", e.Dials(), n.Flows().Counts())
	}
}

// A peer that a mapping talks to later is judged as its first one was.
func TestEveryPeerIsJudged(t *testing.T) {
	n, g := up(t, backend.Config{})
	h, dst := families[0].udp(t)
	g.Send(
		g.Via(gatewayMAC, dst.Addr(), UDP{SrcPort: 4000, DstPort: dst.Port()}, Payload("open")),
		g.Via(gatewayMAC, ip("169.254.169.254"), UDP{SrcPort: 4000, DstPort: 80}, Payload("closed")),
		g.Via(gatewayMAC, dst.Addr(), UDP{SrcPort: 4000, DstPort: dst.Port()}, Payload("open")),
	)
	g.Sync(t)
	readHost(t, h)
	readHost(t, h)
	if got := dropped(n, g, flows.ReasonLinkLocal); got != 1 {
		t.Errorf("%d dropped as link-local, want 1", got)
	}
	if s, _ := flow(n, func(flows.Snapshot) bool { return true }); s.UpPkts != 2 {
		t.Errorf("%d datagrams left, want 2", s.UpPkts)
	}
}
