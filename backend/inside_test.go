package backend_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/flows"
)

func listenInside(t testing.TB, n *backend.Network, network, address string) net.Listener {
	t.Helper()
	l, err := n.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// A guest reaches what the program listens on: both families, any of the gateway's addresses, with half-closes, and as
// a flow that is counted. Nothing of it leaves.
func TestListen(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		e := &Egress{}
		n, g := c.up(t, backend.Config{Egress: e, NoHostLoopback: true})
		l := listenInside(t, n, "tcp", ":80")
		for _, a := range []netip.Addr{f.gateway, world4} {
			if a == world4 { // another's address, that the program answers for
				if f.gateway.Is6() {
					a = world6
				}
				l = listenInside(t, n, "tcp", netip.AddrPortFrom(a, 80).String())
			}
			got := make(chan string, 1)
			go func() {
				c, err := l.Accept()
				if err != nil {
					got <- err.Error()
					return
				}
				defer c.Close()
				b, err := io.ReadAll(c)
				io.WriteString(c, "after your end: "+string(b))
				got <- fmt.Sprint(c.LocalAddr(), " ", c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(), " ", err)
			}()
			c, err := g.Dial(patience(t), "tcp", at(a, 80))
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, "hello")
			eventually(t, "5 bytes are counted", func() bool {
				s, ok := flow(n, func(s flows.Snapshot) bool { return s.Dst == at(a, 80) })
				return ok && s.UpBytes == 5 && s.State == "open" && s.Dir == flows.Out
			})
			c.CloseWrite()
			if b, err := io.ReadAll(c); string(b) != "after your end: hello" || err != nil {
				t.Errorf("came %q, %v", b, err)
			}
			if want := fmt.Sprint(at(a, 80), " ", f.of(g), " <nil>"); <-got != want {
				t.Errorf("the program saw something else than %q", want)
			}
			c.Close()
		}
		eventually(t, "no flow is left", func() bool { return n.Flows().Len() == 0 })
		if d := e.Dials(); len(d) > 0 {
			t.Errorf("%v was dialled", d)
		}
		l.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v", err)
		}
	})
}

// What cannot be listened on is refused with the reason.
func TestListenRefuses(t *testing.T) {
	n := start(t, backend.Config{})
	listenInside(t, n, "tcp", "10.0.2.2:80")
	for _, tt := range []struct {
		network, address string
		want             error
		says             string
	}{
		{"tcp", ":80", syscall.EADDRINUSE, "10.0.2.2:80"},
		{"tcp", "10.0.2.3:53", syscall.EADDRINUSE, "own service"},
		{"udp", "10.0.2.3:53", syscall.EADDRINUSE, "own service"},
		{"udp", "10.0.2.2:67", syscall.EADDRINUSE, "own service"},
		{"tcp", "10.0.2.15:80", syscall.EADDRNOTAVAIL, "10.0.2.15 is the guests'"},
		{"tcp", "[fd00:1234::99]:80", syscall.EADDRNOTAVAIL, "is the guests'"},
		{"tcp", "127.0.0.1:80", syscall.EADDRNOTAVAIL, ""},
		{"udp", "224.0.0.251:5353", syscall.EADDRNOTAVAIL, ""},
		{"tcp6", "10.0.2.2:81", nil, "not an IPv6 address"},
		{"tcp", "web:80", nil, "want an address"},
		{"tcp", "10.0.2.2:http", nil, "want a port"},
		{"tcp", "10.0.2.2", nil, "missing port"},
		{"unix", "/x", net.UnknownNetworkError("unix"), ""},
	} {
		var c io.Closer
		var err error
		if strings.HasPrefix(tt.network, "udp") {
			c, err = n.ListenPacket(tt.network, tt.address)
		} else {
			c, err = n.Listen(tt.network, tt.address)
		}
		var op *net.OpError
		if err == nil || !errors.As(err, &op) || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s %s: %v", tt.network, tt.address, err)
		}
		if err == nil {
			c.Close()
		}
	}
	a, b := listenInside(t, n, "tcp4", ":0"), listenInside(t, n, "tcp4", "0.0.0.0:0")
	if a.Addr().String() == b.Addr().String() || a.Addr().(*net.TCPAddr).Port == 0 {
		t.Errorf("picked %s and %s", a.Addr(), b.Addr())
	}
	n.Close()
	if _, err := n.Listen("tcp", ":81"); !errors.Is(err, backend.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A policy that somebody chose judges what the program listens on, too.
func TestListenPolicy(t *testing.T) {
	n, g := up(t, backend.Config{Policy: denyAll{}})
	listenInside(t, n, "tcp", ":80")
	if _, err := g.Dial(patience(t), "tcp", at(gateway4, 80)); !errors.Is(err, syscall.EACCES) {
		t.Errorf("dial: %v", err)
	}
	if n.Flows().Counts()["policy"] == 0 {
		t.Error("not counted")
	}
}

type denyAll struct{}

func (denyAll) Judge(flows.Query) flows.Verdict {
	return flows.Verdict{Reject: true, Reason: flows.ReasonPolicy}
}

// A program that does not accept costs a bounded number of conversations, and a guest's own limit holds.
func TestListenBacklog(t *testing.T) {
	n, g := up(t, backend.Config{Limits: flows.Limits{Flows: 8}})
	l := listenInside(t, n, "tcp", ":80")
	var conns []net.Conn
	for range 8 {
		c, err := g.Dial(patience(t), "tcp", at(gateway4, 80))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if _, err := g.Dial(patience(t), "tcp", at(gateway4, 80)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the ninth: %v", err)
	}
	l.Close() // those that nobody accepted are reset
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(Patience))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
		c.Close()
	}
	eventually(t, "no flow is left", func() bool { return n.Flows().Len() == 0 })
}

// Guests' datagrams come with their addresses, answers go back from where the guest sent to, and the program may begin.
func TestListenPacket(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{NoHostLoopback: true})
		pc, err := n.ListenPacket("udp", ":5353")
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		big := make([]byte, 9000)
		rand.Read(big)
		for _, payload := range [][]byte{[]byte("hi"), {}, big} {
			for _, dst := range []netip.Addr{f.gateway} {
				u, err := g.DialUDP(at(dst, 5353))
				if err != nil {
					t.Fatal(err)
				}
				u.Write(payload)
				pc.SetReadDeadline(time.Now().Add(Patience))
				b := make([]byte, 65536)
				k, from, err := pc.ReadFrom(b)
				if err != nil || !bytes.Equal(b[:k], payload) || from.(*net.UDPAddr).AddrPort().Addr() != f.of(g) {
					t.Fatalf("came %d bytes from %v, %v", k, from, err)
				}
				if _, err := pc.WriteTo(payload, from); err != nil {
					t.Fatal(err)
				}
				if got, _ := readGuest(t, u); !bytes.Equal(got, payload) {
					t.Errorf("%d bytes came back, want %d", len(got), len(payload))
				}
				u.Close()
			}
		}
		u, err := g.ListenUDP(at(f.of(g), 999))
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		if _, err := pc.WriteTo([]byte("first"), net.UDPAddrFromAddrPort(at(f.of(g), 999))); err != nil {
			t.Fatal(err)
		}
		if got, from := readGuest(t, u); string(got) != "first" || from != at(f.gateway, 5353) {
			t.Errorf("%q from %s", got, from)
		}
		if s, ok := flow(n, func(s flows.Snapshot) bool { return s.Dst == at(f.of(g), 999) }); !ok || s.Dir != flows.In || s.DownBytes != 5 {
			t.Errorf("flow %+v", s)
		}
		if _, err := pc.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(at(f.world, 999))); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("to nobody: %v", err)
		}
		pc.SetReadDeadline(time.Now())
		if _, _, err := pc.ReadFrom(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after the deadline: %v", err)
		}
		pc.Close()
		if _, _, err := pc.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
		if n.Flows().Len() != 0 {
			t.Errorf("%d flows are left", n.Flows().Len())
		}
	})
}

// The program dials a guest by name, address and MAC; HTTP goes the same way.
func TestDialContextNames(t *testing.T) {
	n := start(t, backend.Config{})
	g := Plug(t, n, Config{Name: "web"}).Up(t)
	if err := n.AddDNS(backend.DNSRecord{Name: "alias.test", Type: "A", Value: g.Addr4().String()}); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		l, err := g.Listen(at(a, 80))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s to %s", r.RemoteAddr[:strings.LastIndex(r.RemoteAddr, ":")], r.Host)
		})}
		go srv.Serve(l)
		defer srv.Close()
	}
	if err := g.Ping(patience(t), gateway6, 1, 1, nil); err != nil { // shows its address
		t.Fatal(err)
	}
	for _, tt := range []struct {
		network, host string
		local         netip.Addr
	}{
		{"tcp", "web", gateway4}, {"tcp4", "web.internal", gateway4}, {"tcp6", "web", gateway6}, {"tcp6", "WEB.internal.", gateway6},
		{"tcp", g.Addr6().String(), gateway6}, {"tcp", g.MAC().String(), gateway4}, {"tcp", "alias.test", gateway4}, {"udp", "web", gateway4},
	} {
		c, err := n.DialContext(patience(t), tt.network, net.JoinHostPort(tt.host, "80"))
		if err != nil {
			t.Errorf("%s %s: %v", tt.network, tt.host, err)
			continue
		}
		if a := c.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort().Addr(); a != tt.local {
			t.Errorf("%s %s: from %s", tt.network, tt.host, a)
		}
		c.Close()
	}
	for _, tt := range []struct{ network, address, says string }{
		{"tcp", "nobody:80", "nobody"}, {"tcp", "198.51.100.1:80", "not an address of"}, {"tcp6", "alias.test:80", "no IPv6"},
		{"tcp", "web", "missing port"}, {"sctp", "web:80", "unknown network"}, {"tcp", "web:nonsense", "nonsense"},
	} {
		_, err := n.DialContext(patience(t), tt.network, tt.address)
		var op *net.OpError
		if !errors.As(err, &op) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s %s: %v", tt.network, tt.address, err)
		}
	}
	h := n.HTTPClient()
	defer h.CloseIdleConnections()
	r, err := h.Get("http://web.internal/")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(r.Body)
	r.Body.Close()
	if string(b) != "10.0.2.2 to web.internal" {
		t.Errorf("%q", b)
	}
}

// Nobody whom a guest may not reach reaches it, even by a socket that it has open with somebody else.
func TestRoutesInward(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		stranger := f.world.Next()
		p := &strangers{from: []netip.AddrPort{at(stranger, 9), at(f.world, 10), at(stranger, 9), at(f.world, 9)}, closed: make(chan struct{})}
		e := &Egress{Open: func(context.Context, string) (egress.PacketConn, error) { return p, nil }}
		_, g := up(t, backend.Config{Egress: e, Routes: []netip.Prefix{netip.PrefixFrom(f.world, f.world.BitLen())}})
		w := g.Watch(IsUDP(9, 99))
		u, err := g.ListenUDP(at(f.of(g), 99))
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		g.SetGateway(f.gateway)
		if _, err := u.WriteTo([]byte("who answers?"), at(f.world, 9)); err != nil {
			t.Fatal(err)
		}
		for _, want := range []netip.AddrPort{at(f.world, 10), at(f.world, 9)} { // endpoint-independent, within the routes
			if _, from := readGuest(t, u); from != want {
				t.Errorf("a datagram from %s, want %s", from, want)
			}
		}
		if got := w.Got(); len(got) != 1 {
			t.Errorf("%d frames from port 9", len(got))
		}
	})
}

// strangers is a socket that has datagrams from anybody.
type strangers struct {
	egress.PacketConn
	from   []netip.AddrPort
	closed chan struct{}
	once   sync.Once
}

func (p *strangers) WriteTo(b []byte, _ netip.AddrPort) (int, error) { return len(b), nil }

func (p *strangers) ReadBorrowed(bufs egress.Buffers) ([]byte, netip.AddrPort, error) {
	if len(p.from) == 0 {
		<-p.closed
		return nil, netip.AddrPort{}, net.ErrClosed
	}
	from := p.from[0]
	p.from = p.from[1:]
	return bufs.Get()[:1], from, nil
}

func (p *strangers) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// Closing the network ends what the program holds of it, and whoever waits there.
func TestCloseEndsThePrograms(t *testing.T) {
	n, g := up(t, backend.Config{})
	l := listenInside(t, n, "tcp", ":80")
	pc, err := n.ListenPacket("udp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	c, err := g.Dial(patience(t), "tcp", at(gateway4, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 3)
	go func() { _, err := l.Accept(); errs <- err }()
	go func() { _, _, err := pc.ReadFrom(make([]byte, 1)); errs <- err }()
	go func() { _, err := s.Read(make([]byte, 1)); errs <- err }()
	n.Close()
	for range 3 {
		select {
		case err := <-errs:
			var op *net.OpError
			if !errors.As(err, &op) {
				t.Errorf("%v", err)
			}
		case <-time.After(Patience):
			t.Fatal("somebody waits")
		}
	}
	if _, err := n.DialContext(patience(t), "tcp", g.Addr4().String()+":80"); err == nil {
		t.Error("dialled a guest of a closed network")
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("close of a listener that is closed: %v", err)
	}
}

// Package net's own test of a connection, over the two ways in which the program gets one.
func TestConnIsNets(t *testing.T) {
	for i, c := range carriers {
		f := families[i]
		n, g := c.up(t, backend.Config{})
		l := listenInside(t, n, "tcp", ":80")
		gl, err := g.Listen(at(f.of(g), 81))
		if err != nil {
			t.Fatal(err)
		}
		defer gl.Close()
		g.Ping(patience(t), f.gateway, 1, 1, nil)
		t.Run(c.name+"/accepted", func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				var wg sync.WaitGroup
				wg.Go(func() { c2, _ = l.Accept() })
				c1, err = g.Dial(context.Background(), "tcp", at(f.gateway, 80))
				wg.Wait()
				return c2, c1, func() { c1.Close(); c2.Close() }, err
			})
		})
		t.Run(c.name+"/dialled", func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				var wg sync.WaitGroup
				wg.Go(func() { c2, _ = gl.Accept() })
				c1, err = n.DialContext(context.Background(), "tcp", at(f.of(g), 81).String())
				wg.Wait()
				return c1, c2, func() { c1.Close(); c2.Close() }, err
			})
		})
	}
}

// The errors of a conversation are package net's.
func TestConnErrors(t *testing.T) {
	n, g := up(t, backend.Config{})
	l := listenInside(t, n, "tcp", ":80")
	pair := func() (net.Conn, *TCPConn) {
		t.Helper()
		c, err := g.Dial(patience(t), "tcp", at(gateway4, 80))
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return s, c
	}
	s, c := pair()
	s.SetDeadline(time.Now().Add(-time.Second))
	_, err := s.Read(make([]byte, 1))
	wantErr(t, "read", err, os.ErrDeadlineExceeded)
	s.SetDeadline(time.Time{})
	c.Abort()
	_, err = s.Read(make([]byte, 1))
	wantErr(t, "read after a reset", err, syscall.ECONNRESET)
	s.Close()
	_, err = s.Read(make([]byte, 1))
	wantErr(t, "read after close", err, net.ErrClosed)
	s, c = pair()
	defer c.Close()
	s.Close()
	_, err = s.Write([]byte("x"))
	wantErr(t, "write after close", err, net.ErrClosed)
	s, c = pair()
	defer c.Close()
	go n.Kick(n.Guests()[0].ID)
	if _, err = s.Read(make([]byte, 1)); err == nil {
		t.Error("read after the guest has gone")
	}
	s.Close()
}

// Outside its routes a network leads nowhere: not by TCP, UDP or ping, not to the host's loopback, not in.
func TestRoutes(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		n, g := up(t, backend.Config{Routes: []netip.Prefix{netip.PrefixFrom(f.gateway, f.gateway.BitLen())}})
		c, err := g.Dial(patience(t), "tcp", f.listen(t, echo))
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, c, "inside")
		c.Close()
		if _, err := g.Dial(patience(t), "tcp", at(f.world, 80)); !errors.Is(err, syscall.EACCES) {
			t.Errorf("dial: %v", err)
		}
		w := g.Watch(IsICMP(f.unreachable, f.admin))
		g.Send(g.IP(t, f.world, TCP{SrcPort: 4001, DstPort: 80, Flags: "S"}), g.IP(t, f.world, UDP{SrcPort: 4001, DstPort: 80}, Payload("x")))
		w.Expect(t)
		w.Expect(t)
		p := g.Watch(IsICMP(f.unreachable, f.admin))
		g.Send(g.IP(t, f.world, Echo(f.world, false, 1, 1), Payload("ping")))
		p.Expect(t)
		if n.Flows().Counts()["outside-routes"] < 3 {
			t.Errorf("counts %v", n.Flows().Counts())
		}
	})
	none, g := up(t, backend.Config{Routes: []netip.Prefix{}})
	if _, err := g.Dial(patience(t), "tcp", families[0].listen(t, echo)); !errors.Is(err, syscall.EACCES) {
		t.Errorf("the host's loopback, without a route: %v, %v", err, none.Flows().Counts())
	}
	if _, err := backend.New(backend.Config{Routes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}); err == nil || !strings.Contains(err.Error(), "192.0.2.0/24") {
		t.Errorf("a route with host bits: %v", err)
	}
}

// A guest that fills its share of what waits for the program, by handshakes that it never completes, by conversations
// and datagrams that nobody takes, takes none of another's.
func TestListenShares(t *testing.T) {
	n := start(t, backend.Config{})
	bad, good := Plug(t, n, Config{}).Up(t), Plug(t, n, Config{}).Up(t)
	l := listenInside(t, n, "tcp", ":80")
	pc, err := n.ListenPacket("udp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	var frames [][]byte
	for i := range uint16(1000) {
		frames = append(frames, bad.Via(gatewayMAC, gateway4, TCP{SrcPort: 2000 + i, DstPort: 80, Flags: "S"}),
			bad.Via(gatewayMAC, gateway4, UDP{SrcPort: 2000 + i, DstPort: 80}, Payload(make([]byte, 1000))))
	}
	bad.Send(frames...)
	bad.Sync(t)
	if got := dropped(n, bad, flows.ReasonRateLimit); got < 800 {
		t.Errorf("%d SYNs were dropped", got)
	}
	if got := dropped(n, bad, flows.ReasonQueueFull); got < 800 {
		t.Errorf("%d datagrams were dropped", got)
	}
	c, err := good.Dial(patience(t), "tcp", at(gateway4, 80))
	if err != nil {
		t.Fatalf("another guest is kept out: %v", err)
	}
	defer c.Close()
	s, err := l.Accept() // the other's handshakes are not complete
	if err != nil || s.RemoteAddr().(*net.TCPAddr).AddrPort().Addr() != good.Addr4() {
		t.Errorf("accepted %v, %v", s, err)
	}
	s.Close()
	u, err := good.DialUDP(at(gateway4, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.Write([]byte("good"))
	pc.SetReadDeadline(time.Now().Add(Patience))
	b := make([]byte, 2000)
	for i := 0; ; i++ {
		k, from, err := pc.ReadFrom(b)
		if err != nil {
			t.Fatalf("after %d datagrams: %v", i, err)
		}
		if string(b[:k]) == "good" && from.(*net.UDPAddr).AddrPort().Addr() == good.Addr4() {
			break
		}
	}
}

// A listener at a link-local address is found by guests that have those on their link, and no guest passes for it.
func TestListenOnLink(t *testing.T) {
	n := start(t, backend.Config{})
	a, b := Plug(t, n, Config{}).Up(t), Plug(t, n, Config{}).Up(t)
	cloud, other := ip("169.254.169.254"), ip("169.254.7.7")
	ask := func(at netip.Addr) []byte {
		return Build(Ethernet{Src: a.MAC()}, ARP{Op: ARPRequest, SenderMAC: a.MAC(), Sender: a.Addr4(), Target: at})
	}
	claim := func(at netip.Addr) []byte {
		return Build(Ethernet{Src: b.MAC(), Dst: a.MAC()}, ARP{Op: ARPReply, SenderMAC: b.MAC(), Sender: at, TargetMAC: a.MAC(), Target: a.Addr4()})
	}
	answers := func(at netip.Addr, who net.HardwareAddr, want int) {
		t.Helper()
		w := a.Watch(IsARP(ARPReply, at), FromMAC(who))
		a.Send(ask(at))
		a.Sync(t)
		b.Send(claim(at))
		hears(t, b, a)
		if got := len(w.Got()); got != want {
			t.Errorf("%s: %s has said %d times that it is there, want %d", at, who, got, want)
		}
		w.Stop()
	}
	answers(cloud, gatewayMAC, 0)
	answers(cloud, b.MAC(), 1)
	l := listenInside(t, n, "tcp", cloud.String()+":80")
	answers(cloud, gatewayMAC, 1)
	answers(cloud, b.MAC(), 0)
	answers(other, gatewayMAC, 0)
	answers(other, b.MAC(), 1)
	l.Close()
	answers(cloud, gatewayMAC, 0)
}
