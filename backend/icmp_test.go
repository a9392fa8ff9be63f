package backend_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"syscall"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/flows"
)

// Identifier, sequence number and payload come back as the guest sent them.
func TestPing(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		type asked struct {
			dst     netip.Addr
			seq     uint16
			payload string
		}
		got := make(chan asked, 10)
		e := &Egress{Echo: func(_ context.Context, dst netip.Addr, seq uint16, p []byte) error {
			got <- asked{dst, seq, string(p)}
			return nil
		}}
		n, g := up(t, backend.Config{Egress: e})
		for _, tt := range []struct {
			id, seq uint16
			size    int
		}{{1, 1, 0}, {0xffff, 0, 56}, {0x1234, 0xffff, 1472}, {7, 8, 8000}} {
			t.Run(fmt.Sprint(tt.size, " bytes"), func(t *testing.T) {
				p := bytes.Repeat([]byte("p"), tt.size)
				if err := g.Ping(patience(t), f.world, tt.id, tt.seq, p); err != nil {
					t.Fatal(err)
				}
				if a := <-got; a.dst != f.world || a.seq != tt.seq || a.payload != string(p) {
					t.Errorf("asked the egress for %s, seq %d, %d bytes", a.dst, a.seq, len(a.payload))
				}
			})
		}
		eventually(t, "no flow is left", func() bool { return n.Flows().Len() == 0 })
		if c := n.Flows().Counts()["closed"]; c != 4 {
			t.Errorf("ended as %v", n.Flows().Counts())
		}
	})
}

// A ping of the gateway is answered by the gateway and goes nowhere else.
func TestPingTheGateway(t *testing.T) {
	e := &Egress{Echo: func(context.Context, netip.Addr, uint16, []byte) error { return nil }}
	n, g := up(t, backend.Config{Egress: e, NoHostLoopback: true})
	for _, a := range []netip.Addr{gateway4, dns4, gateway6, dns6, LinkLocal(gatewayMAC)} {
		if err := g.Ping(patience(t), a, 3, 4, []byte("near")); err != nil {
			t.Errorf("ping %s: %v", a, err)
		}
	}
	if p := e.Pings(); len(p) > 0 || n.Flows().Opened() > 0 {
		t.Errorf("the egress was asked for %v, %d flows", p, n.Flows().Opened())
	}
}

// Who does not answer stays silent, and what is told is passed on.
func TestPingErrors(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		for _, tt := range []struct {
			name   string
			err    error
			want   Check
			reason string
		}{
			{"timeout", context.DeadlineExceeded, nil, "timeout"},
			{"host unreachable", &egress.UnreachableError{Kind: egress.HostUnreachable}, IsICMP(f.unreachable, f.host), "unreachable"},
			{"no route", syscall.ENETUNREACH, IsICMP(f.unreachable, f.network), "unreachable"},
			{"exhausted", syscall.EMFILE, nil, "exhausted"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				n, g := up(t, backend.Config{Egress: &Egress{Echo: func(context.Context, netip.Addr, uint16, []byte) error { return tt.err }}})
				w := g.Watch(expectIP)
				g.Send(g.IP(t, f.world, Echo(f.world, false, 5, 6), Payload("who")))
				eventually(t, "counted", func() bool { return n.Flows().Counts()[tt.reason] == 1 })
				if tt.want == nil {
					w.None(t)
					return
				}
				p := w.Expect(t)
				if err := All(Good(), tt.want, From(f.gateway), Quotes(From(f.of(g)), To(f.world)))(p); err != nil {
					t.Fatalf("%s: %v", p, err)
				}
				if q := p.Quoted.ICMP; q == nil || q.ID() != 5 || q.Seq() != 6 {
					t.Errorf("%s: the guest cannot tell which echo it is about", p)
				}
			})
		}
	})
}

// Where the host lets nobody ping, it is said once and shown in the status.
func TestPingNotAllowedIsSaidOnce(t *testing.T) {
	log := &logged{}
	no := fmt.Errorf("%w: a knob is wrong", egress.ErrNoPing)
	n, g := up(t, backend.Config{
		Egress: noPing{&Egress{Echo: func(context.Context, netip.Addr, uint16, []byte) error { return no }}, no},
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	for i := range uint16(20) {
		g.Send(g.IP(t, world4, Echo(world4, false, 1, i)))
	}
	eventually(t, "all are counted", func() bool { return n.Flows().Counts()["unsupported"] == 20 })
	if got := log.count("a knob is wrong"); got != 1 {
		t.Errorf("said %d times, want once", got)
	}
	if s := n.Status(); s.Ping4 != no.Error() || s.Ping6 != "ok" {
		t.Errorf("status: %q and %q", s.Ping4, s.Ping6)
	}
}

type noPing struct {
	*Egress
	err error
}

func (n noPing) PingAllowed() (v4, v6 error) { return n.err, nil }

// Pings under way are bounded; the ones beyond are dropped and counted.
func TestPingLimit(t *testing.T) {
	e := &Egress{} // nobody answers
	n, g := up(t, backend.Config{Egress: e, Limits: flows.Limits{Pings: 4}})
	for i := range uint16(20) {
		g.Send(g.IP(t, world4, Echo(world4, false, 1, i)))
	}
	g.Sync(t)
	eventually(t, "four are under way", func() bool { return len(e.Pings()) == 4 })
	if got := dropped(n, g, flows.ReasonRateLimit); got != 16 {
		t.Errorf("%d dropped, want 16", got)
	}
}

// An address of the guests' network that nobody has stays silent.
func TestPingNobody(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		e := &Egress{}
		_, g := up(t, backend.Config{Egress: e})
		nobody := ip("10.0.2.200")
		if f.gateway.Is6() {
			nobody = ip("fd00:1234::200")
		}
		w := g.Watch(expectIP)
		g.Send(g.Via(gatewayMAC, nobody, Echo(nobody, false, 1, 1)))
		w.None(t)
		if len(e.Pings()) > 0 {
			t.Errorf("asked the egress for %v", e.Pings())
		}
	})
}

// What is no echo request is not answered, and wrong headers do no harm (hostile group 4).
func TestOddPackets(t *testing.T) {
	n, g := up(t, backend.Config{})
	eth := Ethernet{Src: g.MAC(), Dst: gatewayMAC}
	v4 := IPv4{Src: g.Addr4(), Dst: world4}
	v6 := IPv6{Src: g.Addr6(), Dst: world6}
	change4 := func(f func(*IPv4)) IPv4 { h := v4; f(&h); return h }
	change6 := func(f func(*IPv6)) IPv6 { h := v6; f(&h); return h }
	w := g.Watch(expectIP, func(p *Packet) error {
		if p.ICMP == nil || p.Quoted == nil { // errors are right answers
			return nil
		}
		return fmt.Errorf("an error")
	})
	g.Send(
		Build(eth, change4(func(h *IPv4) { h.HeaderWords = 4 }), UDP{SrcPort: 1, DstPort: 2}),
		Build(eth, change4(func(h *IPv4) { h.HeaderWords = 15 }), UDP{SrcPort: 1, DstPort: 2}),
		Build(eth, change4(func(h *IPv4) { h.TotalLength = 65535 }), UDP{SrcPort: 1, DstPort: 2}),
		Build(eth, change4(func(h *IPv4) { h.TotalLength = 19 }), UDP{SrcPort: 1, DstPort: 2}),
		Build(eth, change4(func(h *IPv4) { h.Options = []byte{7, 3, 255, 0} }), UDP{SrcPort: 1, DstPort: 2}),
		Build(eth, change4(func(h *IPv4) { h.Proto = 132 }), Payload("sctp")),
		Build(eth, change4(func(h *IPv4) { h.TTL = 1 }), ICMP{Type: 13}, Payload(make([]byte, 12))),
		Build(eth, change4(func(h *IPv4) { h.Src = ip("127.0.0.1") }), UDP{SrcPort: 1, DstPort: 2}),
		Build(eth, change4(func(h *IPv4) { h.Src = ip("255.255.255.255") }), UDP{SrcPort: 1, DstPort: 2}),
		Build(eth, change4(func(h *IPv4) { h.Src = ip("224.0.0.1") }), TCP{SrcPort: 1, DstPort: 2, Flags: "S"}),
		Build(eth, change6(func(h *IPv6) { h.PayloadLength = 60000 }), Echo(world6, false, 1, 1)), // CVE-2020-10756 of libslirp
		Build(eth, change6(func(h *IPv6) { h.PayloadLength = 1 }), Echo(world6, false, 1, 1)),
		Build(eth, v6, Ext{Kind: ProtoHopByHop, Data: []byte{0xc2, 4, 0, 1, 0, 0}}, Payload(make([]byte, 100))), // jumbo
		Build(eth, change6(func(h *IPv6) { h.Src = ip("::1") }), UDP{SrcPort: 1, DstPort: 2}),
		Build(eth, change6(func(h *IPv6) { h.Src = ip("ff02::1") }), UDP{SrcPort: 1, DstPort: 2}),
		Build(eth, change6(func(h *IPv6) { h.Next = ProtoNone })),
		Build(eth, v4, ICMP{Type: 5}, Payload(make([]byte, 28))),                     // redirect
		Build(eth, v4, ICMP{Type: 3, Code: 3}, Payload(make([]byte, 28))),            // an error about nothing
		Build(eth, IPv6{Src: g.Addr6(), Dst: gateway6}, ICMP{Type: 2}, Payload("x")), // too big, cut short
		make([]byte, 14), make([]byte, 15),
	)
	var many []Layer
	for range 40 {
		many = append(many, Ext{Kind: ProtoDestOpts})
	}
	g.Send(Build(append(append([]Layer{eth, v6}, many...), UDP{SrcPort: 1, DstPort: 2})...))
	w.None(t)
	if len(n.Guests()) != 1 {
		t.Error("the guest was ended")
	}
}
