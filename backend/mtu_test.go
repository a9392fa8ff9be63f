package backend_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

// narrow is the wire of a guest whose NIC drops what is longer than an Ethernet frame.
type narrow struct{ link.Link }

func (n narrow) ReadFrames(b *link.Batch) error {
	err := n.Link.ReadFrames(b)
	kept := b.Frames[:0]
	for _, f := range b.Frames {
		if f.Len() <= 1514 {
			kept = append(kept, f)
		}
	}
	b.Frames = kept
	return err
}

// plugNarrow plugs in a guest with such a NIC.
func plugNarrow(t *testing.T, n *backend.Network) *Guest {
	t.Helper()
	near, far := link.Pipe(PipeDepth)
	serve(t, n, far, "narrow")
	g, err := New(narrow{near}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func leasedMTU(t *testing.T, g *Guest) uint16 {
	t.Helper()
	ack, err := g.Lease(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options)
	return mtu
}

func advertisedMTU(t *testing.T, g *Guest) uint32 {
	t.Helper()
	a, err := g.Solicit(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	return a.MTU
}

func shownMTU(n *backend.Network, g *Guest) int {
	for _, i := range n.Guests() {
		if i.MAC == g.MAC().String() {
			return i.MTU
		}
	}
	return -1
}

// synMSS is the maximum segment size in a SYN.
func synMSS(t *testing.T, p *Packet) int {
	t.Helper()
	for o := p.TCP.Options; len(o) >= 4; {
		switch {
		case o[0] == 2:
			return int(binary.BigEndian.Uint16(o[2:]))
		case o[0] == 1:
			o = o[1:]
		case o[1] < 2 || int(o[1]) > len(o):
			t.Fatalf("options % x", p.TCP.Options)
		default:
			o = o[o[1]:]
		}
	}
	t.Fatalf("no segment size among options % x", p.TCP.Options)
	return 0
}

// Two guests of one network, each with the MTU that its NIC carries.
func TestLargeMTU(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		n := start(t, backend.Config{LargeMTU: backend.MaxMTU})
		wide, small := Plug(t, n, Config{MTU: backend.MaxMTU}), plugNarrow(t, n)
		for _, x := range []struct {
			what            string
			g               *Guest
			mtu, told       int
			frames, longest int
		}{
			{"large", wide, 65520, 65520, 2, 65534},
			{"small", small, 1500, 1500, 1, 1514},
		} {
			t.Run(x.what, func(t *testing.T) {
				if got := advertisedMTU(t, x.g); got != 0 {
					t.Errorf("advertised %d before anything is known", got)
				}
				acks := x.g.Watch(IsUDP(67, 68), Good(), func(p *Packet) error {
					m, err := dhcpv4.FromBytes(p.Payload)
					if err == nil && m.MessageType() != dhcpv4.MessageTypeAck {
						err = context.Canceled
					}
					return err
				})
				if got := leasedMTU(t, x.g); int(got) != x.told {
					t.Errorf("leased with MTU %d, want %d", got, x.told)
				}
				eventually(t, "all ACKs have come", func() bool { return len(acks.Got()) >= x.frames }) // the second has no place in the order of answers
				x.g.Sync(t)
				if got := acks.Got(); len(got) != x.frames || len(got[0].Frame) > x.longest {
					t.Errorf("ACKs %v", got)
				}
				if _, err := x.g.Autoconf(patience(t)); err != nil {
					t.Fatal(err)
				}
				if got := shownMTU(n, x.g); got != 0 {
					t.Errorf("shown to take %d before it has said so", got)
				}
				syns := x.g.Watch(IsTCP("SA"))
				c, err := x.g.Dial(patience(t), "tcp", f.listen(t, echo))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				hl := 20
				if !f.gateway.Is4() {
					hl = 40
				}
				if mss := synMSS(t, syns.Expect(t)); mss != x.mtu-hl-20 {
					t.Errorf("offered segments of %d, want %d", mss, x.mtu-hl-20)
				}
				if got := shownMTU(n, x.g); got != x.mtu {
					t.Errorf("shown to take %d, want %d", got, x.mtu)
				}
				if got := advertisedMTU(t, x.g); int(got) != x.mtu {
					t.Errorf("advertised %d, want %d", got, x.mtu)
				}
			})
		}
	})
}

// A guest that never asked for an MTU, or whose NIC is known, is told once.
func TestLargeMTUIsToldOnce(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    backend.Config
		mod  dhcpv4.Modifier
		want uint16
	}{
		{"known", backend.Config{LargeMTU: 9000, LargeNICs: true}, nil, 9000},
		{"all the same", backend.Config{MTU: 9000}, nil, 9000},
		{"does not ask", backend.Config{LargeMTU: 65520}, func(m *dhcpv4.DHCPv4) { m.Options.Del(dhcpv4.OptionParameterRequestList) }, 1500},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := start(t, tt.c)
			g := Plug(t, n, Config{MTU: 65520})
			var mods []dhcpv4.Modifier
			if tt.mod != nil {
				mods = append(mods, tt.mod)
			}
			answers := g.Watch(IsUDP(67, 68))
			ack, err := g.Lease(patience(t), mods...)
			if err != nil {
				t.Fatal(err)
			}
			if mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); mtu != tt.want {
				t.Errorf("leased with MTU %d, want %d", mtu, tt.want)
			}
			g.Sync(t)
			if got := answers.Got(); len(got) != 2 {
				t.Errorf("answers %v, want an offer and an ACK", got)
			}
		})
	}
}

// What a guest says is never more than the network's, nor less than any NIC carries; the most that it said counts.
func TestShownMTU(t *testing.T) {
	n := start(t, backend.Config{LargeMTU: 9000})
	g := Plug(t, n, Config{}).Up(t)
	for i, tt := range []struct{ mss, want int }{{100, 1500}, {1460, 1500}, {8000, 8040}, {1460, 8040}, {65495, 9000}} {
		g.Send(g.IP(t, world4, TCP{SrcPort: uint16(1000 + i), DstPort: 9, Flags: "S", Options: []byte{2, 4, byte(tt.mss >> 8), byte(tt.mss)}}))
		eventually(t, "the SYN counts", func() bool { return shownMTU(n, g) == tt.want })
	}
}

// A guest that was told a large MTU and did not take it gets no datagram that it cannot receive.
func TestMTUIsIgnored(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		n := start(t, backend.Config{LargeMTU: 65520, LargeNICs: true})
		g := plugNarrow(t, n).Up(t)
		c, err := g.Dial(patience(t), "tcp", f.listen(t, echo))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		sock, to := f.udp(t)
		go func() {
			b := make([]byte, 65535)
			for {
				n, from, err := sock.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				sock.WriteToUDPAddrPort(b[:n], from)
			}
		}()
		u, err := g.DialUDP(to)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		u.SetReadDeadline(time.Now().Add(Patience))
		sent := bytes.Repeat([]byte("datagram"), 1000)
		if _, err := u.Write(sent); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 65535)
		if n, _, err := u.ReadFrom(got); err != nil || !bytes.Equal(got[:n], sent) {
			t.Errorf("%d bytes came back, %v", n, err)
		}
		if err := g.Ping(patience(t), f.gateway, 1, 1, sent); err != nil {
			t.Errorf("ping: %v", err)
		}
	})
}

// Between guests of different MTUs: who sends more than the other takes hears of it, or has it cut.
func TestTooLongForAnotherGuest(t *testing.T) {
	n := start(t, backend.Config{LargeMTU: backend.MaxMTU})
	wide, small := Plug(t, n, Config{MTU: backend.MaxMTU}).Up(t), plugNarrow(t, n).Up(t)
	to := small.MAC()
	payload := bytes.Repeat([]byte("12345678"), 500)
	send := func(layers ...Layer) {
		wide.Send(Build(append([]Layer{Ethernet{Src: wide.MAC(), Dst: to}}, layers...)...))
	}
	v4, v6 := IPv4{Src: wide.Addr4(), Dst: small.Addr4(), DontFragment: true}, IPv6{Src: wide.Addr6(), Dst: small.Addr6()}
	datagram := UDP{SrcPort: 7, DstPort: 8}

	// While nothing is known of the other, it is passed on: the other may take it.
	unknown := Plug(t, n, Config{MTU: 9000}).Up(t)
	came := unknown.Watch(IsUDP(7, 8))
	v := v4
	v.Dst = unknown.Addr4()
	wide.Send(Build(Ethernet{Src: wide.MAC(), Dst: unknown.MAC()}, v, datagram, Payload(payload)))
	came.Expect(t)

	// A SYN to the other guest shows as much as one to the gateway.
	small.Send(Build(Ethernet{Src: small.MAC(), Dst: wide.MAC()}, IPv4{Src: small.Addr4(), Dst: wide.Addr4()}, TCP{SrcPort: 1, DstPort: 2, Flags: "S", Options: []byte{2, 4, 5, 180}}))
	eventually(t, "the small guest's MTU is known", func() bool { return shownMTU(n, small) == 1500 })

	too := wide.Watch(IsICMP(3, 4), Good(), Quotes(IsUDP(7, 8), To(small.Addr4())))
	send(v4, datagram, Payload(payload))
	if p := too.Expect(t); p.ICMP.Rest != 1500 || p.IPSrc != gateway4 {
		t.Errorf("IPv4: %v, want an MTU of 1500 from the gateway", p)
	}
	too = wide.Watch(IsICMP(2, 0), Good(), Quotes(IsUDP(7, 8), To(small.Addr6())))
	send(v6, datagram, Payload(payload))
	if p := too.Expect(t); p.ICMP.Rest != 1500 || p.IPSrc != gateway6 {
		t.Errorf("IPv6: %v, want an MTU of 1500 from the gateway", p)
	}
	wide.Sync(t) // a frame is counted behind its answer
	if got := dropped(n, wide, flows.ReasonUnreachable); got != 2 {
		t.Errorf("%d frames dropped, want 2", got)
	}

	// What may be cut arrives whole, be it in pieces already.
	sock, err := small.ListenUDP(netip.AddrPortFrom(small.Addr4(), 8))
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	sock.SetReadDeadline(time.Now().Add(Patience))
	v4.DontFragment = false
	v4.ID = 77
	whole := Build(Ethernet{Src: wide.MAC(), Dst: to}, v4, datagram, Payload(bytes.Repeat(payload, 3)))
	for _, frames := range [][][]byte{{whole}, Fragment(whole, 8000, 77), {Build(Ethernet{Src: wide.MAC(), Dst: to}, func() IPv4 { o := v4; o.Options = []byte{1, 1, 1, 0}; return o }(), datagram, Payload(bytes.Repeat(payload, 3)))}} {
		wide.Send(frames...)
		got := make([]byte, 65535)
		if k, _, err := sock.ReadFrom(got); err != nil || !bytes.Equal(got[:k], bytes.Repeat(payload, 3)) {
			t.Errorf("in %d frames: %d bytes came, %v", len(frames), k, err)
		}
	}

	// Lies about lengths are dropped, and nothing breaks.
	bad := v4
	bad.HeaderWords = 3
	send(bad, datagram, Payload(payload))
	bad.HeaderWords, bad.TotalLength = 0, 65000
	send(bad, datagram, Payload(payload))
	bad.TotalLength, bad.Offset = 0, 65000
	send(bad, datagram, Payload(payload))
	wide.Sync(t)
	if got := dropped(n, wide, flows.ReasonMalformed); got != 3 {
		t.Errorf("%d malformed, want 3", got)
	}
	small.Sync(t)
}

func TestLargeMTUConfig(t *testing.T) {
	for _, tt := range []struct {
		c     backend.Config
		right bool
	}{
		{backend.Config{LargeMTU: 65520}, true},
		{backend.Config{LargeMTU: 1500, LargeNICs: true}, true},
		{backend.Config{MTU: 9000, LargeMTU: 65520}, true},
		{backend.Config{LargeMTU: 1499}, false},
		{backend.Config{LargeMTU: 65521}, false},
		{backend.Config{LargeMTU: -1}, false},
		{backend.Config{LargeNICs: true}, false},
	} {
		n, err := backend.New(tt.c)
		if err == nil {
			n.Close()
		}
		if (err == nil) != tt.right {
			t.Errorf("%+v: %v", tt.c, err)
		}
	}
}

// limited is the wire of a guest whose framing has a limit.
type limited struct {
	link.Link
	most int
}

func (l limited) MaxFrame() int { return l.most }

// A wire that carries less than any frame is offered no more and sent no more, whatever its guest says it takes.
func TestLimitedWire(t *testing.T) {
	for _, x := range []struct {
		name string
		cfg  backend.Config
		told uint16
	}{
		{"auto", backend.Config{LargeMTU: backend.MaxMTU}, 1500},
		{"large for all", backend.Config{LargeMTU: backend.MaxMTU, LargeNICs: true}, 4000},
		{"small for all", backend.Config{}, 1500},
	} {
		t.Run(x.name, func(t *testing.T) {
			n := start(t, x.cfg)
			near, far := link.Pipe(PipeDepth)
			serve(t, n, limited{far, 4014}, "limited")
			g, err := New(near, Config{MTU: backend.MaxMTU})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { g.Close() })
			tooLong := g.Watch(func(p *Packet) error {
				if len(p.Frame) > 4014 {
					return nil
				}
				return context.Canceled
			})
			if got := leasedMTU(t, g); got != x.told {
				t.Errorf("leased with MTU %d, want %d", got, x.told)
			}
			if got := advertisedMTU(t, g); got > 4000 {
				t.Errorf("advertised %d", got)
			}
			g.Up(t)
			wide := Plug(t, n, Config{MTU: backend.MaxMTU}).Up(t)
			payload := Payload(bytes.Repeat([]byte("x"), 5000))
			hears := wide.Watch(IsICMP(3, 4), Good(), Quotes(IsUDP(7, 8), To(g.Addr4())))
			wide.Send(Build(Ethernet{Src: wide.MAC(), Dst: g.MAC()}, IPv4{Src: wide.Addr4(), Dst: g.Addr4(), DontFragment: true}, UDP{SrcPort: 7, DstPort: 8}, payload))
			hears.Expect(t)
			// Neither what is no IP, nor what goes to all.
			wide.Send(Build(Ethernet{Src: wide.MAC(), Dst: g.MAC(), Type: 0x88b5}, payload))
			wide.Send(Build(Ethernet{Src: wide.MAC(), Dst: Broadcast, Type: 0x88b5}, payload))
			eventually(t, "the long ones are counted", func() bool {
				return dropped(n, wide, flows.ReasonUnreachable)+dropped(n, g, flows.ReasonUnreachable) == 3
			})
			// It says in a SYN that it takes more.
			g.Send(Build(Ethernet{Src: g.MAC(), Dst: wide.MAC()}, IPv4{Src: g.Addr4(), Dst: wide.Addr4()}, TCP{SrcPort: 1, DstPort: 2, Flags: "S", Options: []byte{2, 4, 0xff, 0}}))
			g.Sync(t)
			if got := shownMTU(n, g); got > 4000 {
				t.Errorf("shown to take %d", got)
			}
			if got := tooLong.Got(); len(got) > 0 {
				t.Errorf("frames of more than 4014 bytes came: %v", got)
			}
		})
	}
}
