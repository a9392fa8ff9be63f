package backend_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/portforward"
)

// asks is a policy that has a person decide.
type asks struct {
	mu      sync.Mutex
	answers []chan flows.Verdict
}

func (a *asks) Judge(q flows.Query) flows.Verdict {
	c := make(chan flows.Verdict, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers = append(a.answers, c)
	return flows.Verdict{Pending: c, Rule: "ask"}
}

func (a *asks) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.answers)
}

// answer decides the i-th question.
func (a *asks) answer(i int, v flows.Verdict) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers[i] <- v
}

// rejections are the ways in which a guest hears no.
func rejections(f family) []struct {
	name string
	v    flows.Verdict
	tcp  Check // nil: nothing
	udp  Check // likewise, and for ICMP
} {
	admin := All(Good(), IsICMP(f.unreachable, f.admin), From(f.gateway), Quotes(To(f.world)))
	return []struct {
		name string
		v    flows.Verdict
		tcp  Check
		udp  Check
	}{
		{"drop", flows.Verdict{Reason: flows.ReasonPolicy}, nil, nil},
		{"reject", flows.Verdict{Reject: true, Reason: flows.ReasonPolicy}, admin, admin},
		{"reset", flows.Verdict{Reject: true, Reset: true, Reason: flows.ReasonPolicy}, All(Good(), IsTCP("RA"), From(f.world)), admin},
		{"without a reason", flows.Verdict{Reject: true}, admin, admin},
	}
}

// What a policy refuses is answered as it says, at once or after somebody was asked, and counted.
func TestRejections(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		for _, tt := range rejections(f) {
			for _, asked := range []bool{false, true} {
				name := tt.name
				if asked {
					name += ", asked"
				}
				t.Run(name, func(t *testing.T) {
					a := &asks{}
					var p flows.Policy = policyFunc(func(flows.Query) flows.Verdict { return tt.v })
					if asked {
						p = a
					}
					n, g := c.up(t, backend.Config{Policy: p})
					hop := g.GatewayMAC(t)
					w := g.Watch(func(p *Packet) error { return expectIP(p) })
					for i, x := range []struct {
						packet []byte
						want   Check
					}{
						{g.Via(hop, f.world, TCP{SrcPort: 4000, DstPort: 80, Seq: 77, Flags: "S"}), tt.tcp},
						{g.Via(hop, f.world, UDP{SrcPort: 4000, DstPort: 80}, Payload("x")), tt.udp},
						{g.Via(hop, f.world, Echo(f.world, false, 1, 1), Payload("x")), tt.udp},
					} {
						g.Send(x.packet)
						if asked {
							eventually(t, "it is asked", func() bool { return a.count() == i+1 })
							if s := n.Flows().List(); len(s) != 1 || s[0].Waits != "answer" || s[0].Policy != "ask" {
								t.Errorf("shown as %+v, want one that waits", s)
							}
							a.answer(i, tt.v)
						}
						eventually(t, "it is counted", func() bool { return dropped(n, g, flows.ReasonPolicy) == uint64(i+1) })
						if x.want != nil {
							if p := w.Expect(t); x.want(p) != nil {
								t.Errorf("%d: answered with %s: %v", i, p, x.want(p))
							}
						}
						noFlows(t, n)
					}
					g.Sync(t)
					w.None(t)
					if got := n.Flows().Counts()["policy"]; got != 3 {
						t.Errorf("%d counted, want 3", got)
					}
				})
			}
		}
	})
}

// A conversation about which somebody is asked is held: what is retransmitted meanwhile is passed over, and then it goes on.
func TestPendingTCP(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		a := &asks{}
		n, g := c.up(t, backend.Config{Policy: a})
		dst := f.listen(t, echo)
		type dialed struct {
			c   *TCPConn
			err error
		}
		got := make(chan dialed, 1)
		go func() {
			c, err := g.Dial(patience(t), "tcp", dst)
			got <- dialed{c, err}
		}()
		eventually(t, "it is asked", func() bool { return a.count() == 1 })
		syn := g.IP(t, dst.Addr(), TCP{SrcPort: 4000, DstPort: dst.Port(), Seq: 77, Flags: "S"})
		g.Send(syn, syn, syn)
		g.Sync(t)
		eventually(t, "the other is asked", func() bool { return a.count() == 2 })
		g.Send(syn)
		g.Sync(t)
		if a.count() != 2 || n.Flows().Len() != 2 {
			t.Errorf("asked %d times for %d flows, want 2", a.count(), n.Flows().Len())
		}
		select {
		case d := <-got:
			t.Fatalf("dialled before the answer: %v", d.err)
		default:
		}
		a.answer(0, flows.Verdict{Allow: true, Rule: "yes", Inspect: func(h flows.Hello) flows.Verdict { return flows.Verdict{Allow: h.How == flows.HelloHTTP} }})
		d := <-got
		if d.err != nil {
			t.Fatal(d.err)
		}
		roundTrip(t, d.c, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
		if s, ok := flow(n, func(s flows.Snapshot) bool { return s.State == "open" }); !ok || s.Policy != "yes" || s.Name != "a.example" {
			t.Errorf("shown as %+v", s)
		}
		d.c.Close()
		accepted := g.Watch(IsTCP("SA"), ToPort(4000))
		a.answer(1, flows.Verdict{Allow: true})
		accepted.Expect(t)
	})
}

// Nobody answers, the guest goes, the network is closed, or the dial makes room: what waited is gone.
func TestPendingGivenUp(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		for _, tt := range []struct {
			name   string
			end    func(*backend.Network, *Guest, *asks)
			reason string
		}{
			{"never", func(_ *backend.Network, _ *Guest, a *asks) {
				for _, c := range a.answers {
					close(c)
				}
			}, "unanswered"},
			{"asked again", func(_ *backend.Network, _ *Guest, a *asks) {
				for i := range a.answers {
					a.answer(i, flows.Verdict{Pending: make(chan flows.Verdict)})
				}
			}, "unanswered"},
			{"guest gone", func(_ *backend.Network, g *Guest, _ *asks) { g.Close() }, "guest-gone"},
			{"kicked", func(n *backend.Network, _ *Guest, _ *asks) { n.Kick(n.Guests()[0].ID) }, "guest-gone"},
			{"closed", func(n *backend.Network, _ *Guest, _ *asks) { n.Close() }, "shutdown"},
			{"another policy", func(n *backend.Network, _ *Guest, _ *asks) { n.SetPolicy(nil, true) }, "policy"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				a := &asks{}
				n, g := c.up(t, backend.Config{Policy: a})
				hop := g.GatewayMAC(t)
				g.Send(
					g.Via(hop, f.world, TCP{SrcPort: 4000, DstPort: 80, Seq: 77, Flags: "S"}),
					g.Via(hop, f.world, UDP{SrcPort: 4000, DstPort: 80}, Payload("x")),
					g.Via(hop, f.world, Echo(f.world, false, 1, 1), Payload("x")),
				)
				eventually(t, "it is asked", func() bool { return a.count() == 3 })
				tt.end(n, g, a)
				noFlows(t, n)
				if got := n.Flows().Counts()[tt.reason]; got != 3 {
					t.Errorf("%d counted as %s, want 3: %v", got, tt.reason, n.Flows().Counts())
				}
			})
		}
		t.Run("evicted", func(t *testing.T) {
			a := &asks{}
			n, g := c.up(t, backend.Config{Policy: a, Limits: flows.Limits{Dials: 8}})
			before := runtime.NumGoroutine()
			hop := g.GatewayMAC(t)
			for i := range 100 {
				g.Send(g.Via(hop, f.world, TCP{SrcPort: uint16(4000 + i), DstPort: 80, Flags: "S"}))
			}
			g.Sync(t)
			eventually(t, "all are asked", func() bool { return a.count() == 100 })
			eventually(t, "eight wait", func() bool { return n.Flows().Len() == 8 && runtime.NumGoroutine() < before+20 })
			for i := range 100 { // late answers to those that are gone change nothing
				a.answer(i, flows.Verdict{Reject: true, Reset: true})
			}
			noFlows(t, n)
		})
	})
}

// A few datagrams are held while somebody is asked, and go on in order; more are dropped. Only so many peers are asked about.
func TestPendingUDP(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		a := &asks{}
		n, g := c.up(t, backend.Config{Policy: a})
		host, dst := f.udp(t)
		hop := g.GatewayMAC(t)
		for i := range 10 {
			g.Send(g.Via(hop, dst.Addr(), UDP{SrcPort: 4000, DstPort: dst.Port()}, Payload{byte('0' + i)}))
		}
		g.Sync(t)
		if got := dropped(n, g, flows.ReasonQueueFull); got != 6 || a.count() != 1 {
			t.Errorf("%d dropped, asked %d times; want 6 of 10, once", got, a.count())
		}
		a.answer(0, flows.Verdict{Allow: true, Rule: "yes"})
		for i := range 4 {
			if b, _ := readHost(t, host); string(b) != string(rune('0'+i)) {
				t.Errorf("host read %q, want %d", b, i)
			}
		}
		g.Send(g.Via(hop, dst.Addr(), UDP{SrcPort: 4000, DstPort: dst.Port()}, Payload("after")))
		if b, _ := readHost(t, host); string(b) != "after" {
			t.Errorf("host read %q", b)
		}
		if s, _ := flow(n, func(flows.Snapshot) bool { return true }); s.Policy != "yes" || s.State != "open" || s.Waits != "" {
			t.Errorf("shown as %+v", s)
		}
		for i := range 200 {
			g.Send(g.Via(hop, f.world, UDP{SrcPort: 4000, DstPort: uint16(1000 + i)}, Payload("x")))
		}
		g.Sync(t)
		if got := dropped(n, g, flows.ReasonRateLimit); got != 200-64 {
			t.Errorf("%d dropped, want %d", got, 200-64)
		}
	})
}

// Who pings is answered once somebody has said yes.
func TestPendingPing(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		a := &asks{}
		_, g := up(t, backend.Config{Policy: a, Egress: &Egress{Echo: func(context.Context, netip.Addr, uint16, []byte) error { return nil }}})
		w := g.Watch(IsEchoReply(7, 1))
		g.Send(g.IP(t, f.world, Echo(f.world, false, 7, 1), Payload("x")))
		eventually(t, "it is asked", func() bool { return a.count() == 1 })
		g.Sync(t)
		w.None(t)
		a.answer(0, flows.Verdict{Allow: true})
		w.Expect(t)
	})
}

// What the program listens on waits as well, if its own policy says so.
func TestPendingInside(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		a := &asks{}
		n, g := c.up(t, backend.Config{Policy: a})
		l, err := n.Listen("tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		pc, err := n.ListenPacket("udp", ":81")
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		refused := g.Watch(IsTCP("RA"))
		g.Send(g.IP(t, f.gateway, TCP{SrcPort: 4000, DstPort: 80, Flags: "S"}))
		eventually(t, "it is asked", func() bool { return a.count() == 1 })
		a.answer(0, flows.Verdict{Reject: true, Reset: true})
		refused.Expect(t)
		noFlows(t, n)
		got := make(chan error, 1)
		go func() {
			c, err := g.Dial(patience(t), "tcp", at(f.gateway, 80))
			if err == nil {
				c.Close()
			}
			got <- err
		}()
		eventually(t, "it is asked again", func() bool { return a.count() == 2 })
		a.answer(1, flows.Verdict{Allow: true})
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if err := <-got; err != nil {
			t.Error(err)
		}
		g.Send(g.IP(t, f.gateway, UDP{SrcPort: 4000, DstPort: 81}, Payload("dropped")))
		eventually(t, "it is asked", func() bool { return a.count() == 3 })
		eventually(t, "what came meanwhile is dropped", func() bool { return drops(n, 0)["unanswered"] == 1 })
		a.answer(2, flows.Verdict{Allow: true})
		eventually(t, "it is open", func() bool {
			s, ok := flow(n, func(s flows.Snapshot) bool { return s.Proto == flows.UDP })
			return ok && s.State == "open"
		})
		g.Send(g.IP(t, f.gateway, UDP{SrcPort: 4000, DstPort: 81}, Payload("kept")))
		b := make([]byte, 100)
		if k, _, err := pc.ReadFrom(b); err != nil || string(b[:k]) != "kept" {
			t.Errorf("read %q, %v", b[:k], err)
		}
	})
}

// closedTo is a policy that is closed to guests, and open to the host.
type closedTo struct{}

func (closedTo) Judge(q flows.Query) flows.Verdict {
	return flows.Verdict{Allow: q.Dir == flows.In, Reject: true, Reset: true, Reason: flows.ReasonPolicy}
}

// A policy that is changed holds for what comes; with now, for what is there as well. Forwards are judged apart.
func TestSetPolicy(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{Doors: []netip.AddrPort{netip.MustParseAddrPort("[::]:7002"), netip.MustParseAddrPort("0.0.0.0:7002")}})
		guest, host := meet(t, g, f)
		peer, dst := f.udp(t)
		hop := g.GatewayMAC(t)
		say := func(what string) {
			g.Send(g.Via(hop, dst.Addr(), UDP{SrcPort: 4000, DstPort: dst.Port()}, Payload(what)))
		}
		say("before")
		if b, _ := readHost(t, peer); string(b) != "before" {
			t.Fatalf("host read %q", b)
		}
		forwarded := forwardTo(t, n, g, f)

		if ended := n.SetPolicy(closedTo{}, false); ended != 0 {
			t.Errorf("%d ended, want none", ended)
		}
		guest.Write([]byte("still"))
		arrives(t, host, []byte("still"))
		if _, err := g.Dial(patience(t), "tcp", f.listen(t, echo)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial under the new policy: %v, want refused", err)
		}
		if ended := n.SetPolicy(closedTo{}, true); ended != 2 {
			t.Errorf("%d ended, want the conversation and the datagrams'", ended)
		}
		nothing(t, guest, host)
		roundTrip(t, forwarded, "a closed guest is reached")
		if got := n.Flows().Counts()["policy"]; got != 3 {
			t.Errorf("%d counted, want 3: %v", got, n.Flows().Counts())
		}
		say("shut")
		g.Sync(t)
		if got := dropped(n, g, flows.ReasonPolicy); got != 2 {
			t.Errorf("%d refused, want 2", got)
		}

		n.SetPolicy(policyFunc(func(flows.Query) flows.Verdict { return flows.Verdict{Allow: true} }), true)
		if _, err := g.Dial(patience(t), "tcp", at(f.gateway, 7002)); err == nil || n.Flows().Counts()["door"] != 1 {
			t.Errorf("a door is open: %v, %v", err, n.Flows().Counts())
		}
		n.SetPolicy(nil, true)
		say("again")
		if b, _ := readHost(t, peer); string(b) != "again" {
			t.Errorf("host read %q", b)
		}
		n.SetPolicy(policyFunc(func(flows.Query) flows.Verdict { return flows.Verdict{} }), true)
		if _, err := io.Copy(io.Discard, forwarded); err == nil {
			t.Error("a forward goes on that is not allowed")
		}
		noFlows(t, n)
	})
}

// forwardTo is a conversation through a port forward, with an echo on the guest.
func forwardTo(t *testing.T, n *backend.Network, g *Guest, f family) net.Conn {
	t.Helper()
	l, err := g.Listen(at(f.of(g), 7))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go l.Echo()
	r, err := n.Forwards().Add(context.Background(), portforward.Rule{Host: f.loopback, Guest: f.of(g).String(), GuestPort: 7})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", at(f.loopback, r.HostPort).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(Patience))
	roundTrip(t, c, "through the forward")
	return c
}

// Running conversations that were looked at are judged by what they said; those that nobody looked at name nobody; those
// that are held are held for the new policy.
func TestSetPolicyByName(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		before := &listens{none: true}
		n, g := c.up(t, backend.Config{Policy: before})
		good, goodHost := meet(t, g, f)
		hello := clientHello(t, "good.example", 0)
		good.Write(hello)
		arrives(t, goodHost, hello)
		none, noneHost := meet(t, g, f)
		none.Write([]byte("\x00\x00"))
		arrives(t, noneHost, []byte("\x00\x00"))
		held, heldHost := meet(t, g, f)
		held.Write(hello[:20])
		g.Sync(t)

		after := &listens{}
		if ended := n.SetPolicy(after, true); ended != 1 {
			t.Errorf("%d ended, want the one that named nobody", ended)
		}
		nothing(t, none, noneHost)
		good.Write([]byte("on"))
		arrives(t, goodHost, []byte("on"))
		was := len(before.all())
		held.Write(hello[20:])
		arrives(t, heldHost, hello)
		if len(before.all()) != was || len(after.all()) != 3 {
			t.Errorf("the old policy was asked for the held one, or the new one not: %v", after.all())
		}

		n.SetPolicy(policyFunc(func(flows.Query) flows.Verdict { return flows.Verdict{Allow: true} }), true)
		plain, plainHost := meet(t, g, f)
		plain.Write([]byte("x"))
		arrives(t, plainHost, []byte("x"))
		if ended := n.SetPolicy(&listens{}, true); ended != 1 {
			t.Errorf("%d ended, want the one that nobody had looked at", ended)
		}
		nothing(t, plain, plainHost)
	})
}

// Whom the host dials waits as well, and so does who dials.
func TestPendingDialIn(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		a := &asks{}
		n, g := c.up(t, backend.Config{Policy: a})
		l, err := g.Listen(at(f.of(g), 7))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go l.Echo()
		type dialed struct {
			c   net.Conn
			err error
		}
		got := make(chan dialed, 1)
		dial := func(ctx context.Context) {
			c, err := n.DialContext(ctx, "tcp", at(f.of(g), 7).String())
			got <- dialed{c, err}
		}
		go dial(patience(t))
		eventually(t, "it is asked", func() bool { return a.count() == 1 })
		a.answer(0, flows.Verdict{Allow: true})
		d := <-got
		if d.err != nil {
			t.Fatal(d.err)
		}
		roundTrip(t, d.c, "in")
		d.c.Close()
		go dial(patience(t))
		eventually(t, "it is asked again", func() bool { return a.count() == 2 })
		a.answer(1, flows.Verdict{Reason: flows.ReasonPolicy})
		if d := <-got; d.err == nil {
			t.Error("dialled against the answer")
		}
		ctx, cancel := context.WithCancel(patience(t))
		go dial(ctx)
		eventually(t, "it is asked once more", func() bool { return a.count() == 3 })
		cancel()
		if d := <-got; d.err == nil {
			t.Error("dialled without an answer")
		}
		noFlows(t, n)
	})
}
