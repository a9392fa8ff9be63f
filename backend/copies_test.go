package backend_test

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

// holding finds a frame by what is in it, wherever.
func holding(mark string) Check {
	return func(p *Packet) error {
		if !bytes.Contains(p.Frame, []byte(mark)) {
			return errors.New("another frame")
		}
		return nil
	}
}

// A port that gets every frame gets each once: between guests, refused ones as well, and both ways between a guest and the
// gateway.
func TestCopies(t *testing.T) {
	for _, role := range []string{"promiscuous", "mirror"} {
		for _, c := range carriers {
			t.Run(role+"/"+c.name, func(t *testing.T) {
				n, a := c.up(t, backend.Config{})
				b := Plug(t, n, Config{}).Up(t)
				m := Plug(t, asPort{n, backend.PortConfig{Promiscuous: role == "promiscuous", Mirror: role == "mirror"}},
					Config{Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.99/24")}, Gateway4: gateway4})
				there(t, n, 3)
				one := func(name string, f []byte) []byte { return append(f, "<"+name+">"...) }
				for _, tt := range []struct {
					name  string
					frame []byte
				}{
					{"to a guest", Build(Ethernet{Src: a.MAC(), Dst: b.MAC(), Type: 0x88b5}, Payload(make([]byte, 50)))},
					{"to all", Build(Ethernet{Src: a.MAC(), Type: 0x88b5}, Payload(make([]byte, 50)))},
					{"to nobody", Build(Ethernet{Src: a.MAC(), Dst: []byte{2, 9, 9, 9, 9, 9}, Type: 0x88b5}, Payload(make([]byte, 50)))},
					{"to itself", Build(Ethernet{Src: a.MAC(), Dst: a.MAC(), Type: 0x88b5}, Payload(make([]byte, 50)))},
					{"to the gateway", Build(Ethernet{Src: a.MAC(), Dst: gatewayMAC, Type: 0x88b5}, Payload(make([]byte, 50)))},
					{"as the gateway", Build(Ethernet{Src: gatewayMAC, Dst: b.MAC(), Type: 0x88b5}, Payload(make([]byte, 50)))},
					{"as another", Build(Ethernet{Src: a.MAC(), Dst: b.MAC()}, ARP{Op: ARPReply, SenderMAC: b.MAC(), Sender: a.Addr4(), Target: b.Addr4()})},
				} {
					w, end := m.Watch(holding("<"+tt.name+">")), m.Watch(holding("<end of "+tt.name+">"))
					a.Send(one(tt.name, tt.frame))
					a.Send(one("end of "+tt.name, Build(Ethernet{Src: a.MAC(), Type: 0x88b6}, Payload(make([]byte, 50)))))
					end.Expect(t)
					if got := len(w.Got()); got != 1 {
						t.Errorf("%s: %d copies", tt.name, got)
					}
					w.Stop()
					end.Stop()
				}
				for _, f := range families {
					// Both ways of a conversation with the host, its segments whole and in order.
					up, down := m.Watch(From(f.of(a)), IsTCP("PA")), m.Watch(To(f.of(a)), FromMAC(gatewayMAC))
					conn, err := a.Dial(patience(t), "tcp", f.listen(t, echo))
					if err != nil {
						t.Fatal(err)
					}
					roundTrip(t, conn, strings.Repeat("all of it ", 300))
					conn.Close()
					up.Expect(t)
					var text []byte
					for len(text) < 3000 {
						p := down.Expect(t)
						if err := Good()(p); err != nil {
							t.Fatalf("%s: %v", p, err)
						}
						if p.TCP != nil {
							text = append(text, p.Payload...)
						}
					}
					if !bytes.Equal(text, []byte(strings.Repeat("all of it ", 300))) {
						t.Errorf("copied was %.100q", text)
					}
					up.Stop()
					down.Stop()
					ping := m.Watch(IsEchoReply(7, 9), ToMAC(a.MAC()))
					if err := a.Ping(patience(t), f.gateway, 7, 9, nil); err != nil {
						t.Fatal(err)
					}
					ping.Expect(t)
					ping.Stop()
				}
				// What it sends itself.
				w := b.Watch(FromMAC(m.MAC()), EtherType(0x88b5))
				m.Send(Build(Ethernet{Src: m.MAC(), Dst: b.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))))
				if role == "promiscuous" {
					w.Expect(t)
					if err := m.Ping(patience(t), b.Addr4(), 1, 1, nil); err != nil {
						t.Error(err)
					}
					if err := m.Ping(patience(t), gateway4, 1, 1, nil); err != nil {
						t.Error(err)
					}
					return
				}
				eventually(t, "it is counted", func() bool {
					for _, i := range n.Guests() {
						if i.Port == "mirror" {
							return i.Dropped[flows.ReasonIsolated.String()] > 0
						}
					}
					return false
				})
				b.Sync(t)
				if len(w.Got()) > 0 {
					t.Error("a mirror's frame came")
				}
			})
		}
	}
}

// A promiscuous port sends as whom it likes, but not as the gateway, and takes nobody's frames by it.
func TestPromiscuousSends(t *testing.T) {
	n := start(t, backend.Config{Isolate: true})
	a, b := Plug(t, n, Config{}).Up(t), Plug(t, n, Config{}).Up(t)
	m := Plug(t, asPort{n, backend.PortConfig{Promiscuous: true}}, Config{}).Up(t)
	for _, tt := range []struct {
		name  string
		frame []byte
		comes bool
	}{
		{"from any MAC", Build(Ethernet{Src: []byte{2, 7, 7, 7, 7, 7}, Dst: a.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))), true},
		{"from another's", Build(Ethernet{Src: b.MAC(), Dst: a.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))), true},
		{"as another's address", Build(Ethernet{Src: m.MAC(), Dst: a.MAC()}, IPv4{Src: b.Addr4(), Dst: a.Addr4()}, UDP{SrcPort: 9, DstPort: 9}), true},
		{"proxy ARP", Build(Ethernet{Src: m.MAC(), Dst: a.MAC()}, ARP{Op: ARPReply, SenderMAC: m.MAC(), Sender: b.Addr4(), Target: a.Addr4()}), true},
		{"router advertisement", Build(append([]Layer{Ethernet{Src: m.MAC(), Dst: MulticastMAC(ip("ff02::1"))}, IPv6{Src: m.LinkLocal(), Dst: ip("ff02::1")}}, RouterAdvert(m.MAC(), 0, netip.MustParsePrefix("fd00:9::/64"))...)...), true},
		{"a DHCP server's answer", Build(Ethernet{Src: m.MAC(), Dst: a.MAC()}, IPv4{Src: m.Addr4(), Dst: a.Addr4()}, UDP{SrcPort: 67, DstPort: 68}, Payload(make([]byte, 99))), true},
		{"as the gateway", Build(Ethernet{Src: gatewayMAC, Dst: a.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))), false},
		{"as the gateway's address", Build(Ethernet{Src: m.MAC(), Dst: a.MAC()}, ARP{Op: ARPReply, SenderMAC: m.MAC(), Sender: gateway4, Target: a.Addr4()}), false},
		{"from a group", Build(Ethernet{Src: Broadcast, Dst: a.MAC(), Type: 0x88b5}, Payload(make([]byte, 50))), false},
	} {
		w := a.Watch(func(p *Packet) error {
			if !bytes.Equal(p.Frame[:min(len(p.Frame), len(tt.frame))], tt.frame) {
				return errors.New("another frame")
			}
			return nil
		})
		m.Send(tt.frame)
		hears(t, m, a)
		if got := len(w.Got()); (got == 1) != tt.comes {
			t.Errorf("%s: came %d times", tt.name, got)
		}
		w.Stop()
	}
	w := b.Watch(EtherType(0x88b5))
	if err := b.Ping(patience(t), m.Addr4(), 1, 1, nil); err != nil {
		t.Errorf("its MAC is not the other's any more: %v", err)
	}
	w.Stop()
	for _, f := range families {
		c, err := m.Dial(patience(t), "tcp", f.listen(t, echo))
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, c, "hello")
		c.Close()
	}
}

// Unfinished frames are copied finished, or as they are to who takes them so; their receiver gets them as ever.
func TestCopiesFinish(t *testing.T) {
	const all = link.Told | link.Checksums | link.Segments
	n := start(t, backend.Config{})
	tap, marks := plugUnfinished(t, n, all, all, Config{})
	b := plugSocket(t, n, Config{}).Up(t)
	m := plugSocketAs(t, n, backend.PortConfig{Mirror: true}, Config{Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.99/24")}})
	there(t, n, 3)
	payload := make([]byte, 10001)
	for i := range payload {
		payload[i] = byte(i * 31)
	}
	both(t, func(t *testing.T, f family) {
		long := tap.Via(b.MAC(), f.of(b), TCP{SrcPort: 7, DstPort: 8, Seq: 1000, Ack: 5, Flags: "A"}, Payload(payload))
		o := partial(long)
		o.Kind, o.Size, o.Header = link.OffloadTCP4, 1400, uint16(len(long)-len(payload))
		if f.name == "ipv6" {
			o.Kind = link.OffloadTCP6
		}
		marks.mark(long, o)
		short := tap.Via(b.MAC(), f.of(b), UDP{SrcPort: 7, DstPort: 8}, Payload(payload[:999]))
		marks.mark(short, partial(short))
		ws := []*Watch{m.Watch(ToPort(8), FromMAC(tap.MAC())), b.Watch(ToPort(8), FromMAC(tap.MAC()))}
		tap.Send(long)
		tap.Send(short)
		for _, w := range ws {
			for have := 0; have < len(payload); {
				p := w.Expect(t)
				if err := Good()(p); err != nil || !bytes.Equal(p.Payload, payload[have:have+len(p.Payload)]) {
					t.Fatalf("%s: %v", p, err)
				}
				have += len(p.Payload)
			}
			if p := w.Expect(t); Good()(p) != nil || !bytes.Equal(p.Payload, payload[:999]) {
				t.Errorf("%s: %v", p, Good()(p))
			}
			w.Stop()
		}
	})
}

// A mirror that does not read fills its own queue, and nobody waits for it.
func TestCopiesStall(t *testing.T) {
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			n, a := c.up(t, backend.Config{})
			b := Plug(t, n, Config{}).Up(t)
			near, far := sockets(t)
			defer near.Close()
			served := make(chan error, 1)
			go func() { served <- n.ServePort(patience(t), far, backend.PortConfig{Name: "deaf", Mirror: true}) }()
			there(t, n, 3)
			frame := Build(Ethernet{Src: a.MAC(), Dst: b.MAC(), Type: 0x88b5}, Payload(make([]byte, 1400)))
			full := func() bool {
				for _, g := range n.Guests() {
					if g.Port == "mirror" {
						if g.Queued > g.QueueSize {
							t.Fatalf("%d bytes wait", g.Queued)
						}
						return g.Dropped[flows.ReasonQueueFull.String()] > 0
					}
				}
				return false
			}
			eventually(t, "its queue is full", func() bool {
				for range 200 {
					a.Send(frame)
				}
				return full()
			})
			conn, err := a.Dial(patience(t), "tcp", families[0].listen(t, echo))
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, conn, strings.Repeat("x", 1<<20))
			conn.Close()
			if err := a.Ping(patience(t), b.Addr4(), 1, 1, nil); err != nil {
				t.Error(err)
			}
			near.Close()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

// What contradicts itself is refused, and the wire closed.
func TestPortConfig(t *testing.T) {
	for _, tt := range []struct {
		name string
		wire bool
		c    backend.PortConfig
		err  string
	}{
		{"both", false, backend.PortConfig{Promiscuous: true, Mirror: true}, "a mirror sends nothing"},
		{"a wire's", true, backend.PortConfig{Promiscuous: true}, "this is a wire"},
		{"a wire's mirror", true, backend.PortConfig{Mirror: true}, "this is a wire"},
	} {
		n := without(t, backend.Config{Wire: tt.wire})
		near, far := link.Pipe(1)
		err := n.ServePort(patience(t), far, tt.c)
		if err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if _, err := near.WriteFrames([]link.Frame{link.NewFrame(make([]byte, 60))}); err == nil {
			t.Errorf("%s: its wire was left open", tt.name)
		}
		near.Close()
	}
}

// Names that guests are given stand for what they lease, show and have fixed, whatever they call themselves.
func TestGuestNames(t *testing.T) {
	fixed := map[string][]netip.Addr{"52:54:00:99:00:02": {ip("10.0.2.50"), ip("fd00:1234::50")}}
	n := start(t, backend.Config{GuestNames: map[string]string{"52:54:00:99:00:01": "web", "52:54:00:99:00:02": "db"}, Static: fixed})
	mac := func(i byte) []byte { return []byte{0x52, 0x54, 0, 0x99, 0, i} }
	asker := Plug(t, n, Config{Name: "web"}).Up(t) // a name that another is given
	names := func(name, want string) {
		t.Helper()
		eventually(t, name+" is "+want, func() bool {
			return strings.Join(append(lookup(t, asker, dns4, name, 1), lookup(t, asker, dns4, name, 28)...), " ") == want
		})
	}
	names("db.internal.", "10.0.2.50 fd00:1234::50") // before it is here
	web := Plug(t, n, Config{MAC: mac(1), Name: "localhost"}).Up(t)
	web.Ping(patience(t), gateway6, 1, 1, nil)
	names("web.internal.", web.Addr4().String()+" "+web.Addr6().String())
	if i := guestOf(n, web); i.Name != "web" {
		t.Errorf("it is called %q", i.Name)
	}
	static := Plug(t, n, Config{MAC: mac(1 + 1), Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.50/24")}, Gateway4: gateway4})
	static.Sync(t)
	if got := n.GuestName(guestOf(n, static).ID); got != "db" {
		t.Errorf("it is called %q", got)
	}
	if _, err := n.DialContext(patience(t), "tcp", "web:1"); err == nil || strings.Contains(err.Error(), "no guest") {
		t.Errorf("dial: %v", err)
	}
	if _, err := n.Reload(patience(t), backend.Config{Static: fixed, GuestNames: map[string]string{"52:54:00:99:00:01": "shop"}}); err != nil {
		t.Fatal(err)
	}
	names("shop.internal.", web.Addr4().String()+" "+web.Addr6().String())
	names("db.internal.", "")
	if _, err := backend.New(backend.Config{GuestNames: map[string]string{"x": "y"}}); err == nil {
		t.Error("a name for x was taken")
	}
}

// plugSocketAs is plugSocket at a port of a kind.
func plugSocketAs(t testing.TB, n *backend.Network, c backend.PortConfig, g Config) *Guest {
	t.Helper()
	near, far := sockets(t)
	guest, err := New(near, g)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, asPort{n, c}, far, "socket")
	t.Cleanup(func() { guest.Close() })
	return guest
}
