package backend_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/portforward"
)

// listenGuest serves TCP on a guest's port.
func listenGuest(t testing.TB, g *Guest, f family, port uint16, serve func(c *TCPConn)) {
	t.Helper()
	l, err := g.Listen(at(f.any, port))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c.(*TCPConn))
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

func echoGuest(c *TCPConn) { io.Copy(c, c); c.CloseWrite(); c.Close() }

// The guest is found by what it is called, and sees the conversation come from the gateway, or from the client itself.
func TestDialGuest(t *testing.T) {
	n := start(t, backend.Config{})
	other := Plug(t, n, Config{Name: "other"})
	g := Plug(t, n, Config{Name: "web"}).Up(t) // the first lease: the default guest
	other.Up(t)
	if err := g.Ping(patience(t), gateway6, 1, 1, nil); err != nil { // shows its IPv6 address
		t.Fatal(err)
	}
	client4, client6 := netip.MustParseAddrPort("203.0.113.9:5555"), netip.MustParseAddrPort("[2001:db8::9]:5555")
	gw := func(f family) func(netip.AddrPort) bool {
		return func(a netip.AddrPort) bool { return a.Addr() == f.gateway && a.Port() >= 1024 }
	}
	is := func(want netip.AddrPort) func(netip.AddrPort) bool {
		return func(a netip.AddrPort) bool { return a == want }
	}
	for _, tt := range []struct {
		name, guest string
		from        netip.AddrPort
		seen        func(netip.AddrPort) bool
	}{
		{"by IPv4 address", g.Addr4().String(), netip.AddrPort{}, gw(families[0])},
		{"by IPv6 address", g.Addr6().String(), netip.AddrPort{}, gw(families[1])},
		{"by name", "web", netip.AddrPort{}, gw(families[0])},
		{"by name, in any case", "WEB", netip.AddrPort{}, gw(families[0])},
		{"by MAC", g.MAC().String(), netip.AddrPort{}, gw(families[0])},
		{"the default", "", netip.AddrPort{}, gw(families[0])},
		{"an IPv4 client as itself", "web", client4, is(client4)},
		{"an IPv6 client as itself", "web", client6, is(client6)},
		{"an IPv4 client of an IPv6 address as the gateway", g.Addr6().String(), client4, gw(families[1])},
		{"a client on the host's loopback as the gateway", "web", netip.MustParseAddrPort("127.0.0.1:5556"), gw(families[0])},
		{"a client that says it is a guest as the gateway", "web", netip.MustParseAddrPort("10.0.2.16:5556"), gw(families[0])},
		{"a client in IPv4's IPv6 form", "web", netip.AddrPortFrom(netip.AddrFrom16(client4.Addr().As16()), 5557), is(at(client4.Addr(), 5557))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen := make(chan netip.AddrPort, 2)
			for _, f := range families {
				listenGuest(t, g, f, 80, func(c *TCPConn) {
					a := c.RemoteAddr().(*net.TCPAddr).AddrPort()
					seen <- at(a.Addr().Unmap(), a.Port())
					echoGuest(c)
				})
			}
			c, err := n.DialGuest(patience(t), "tcp", tt.guest, 80, tt.from, "rule-1")
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, c, "knock")
			if a := <-seen; !tt.seen(a) {
				t.Errorf("the guest sees %s", a)
			}
			s, ok := flow(n, func(flows.Snapshot) bool { return true })
			if !ok || s.Dir != flows.In || s.Rule != "rule-1" || s.UpBytes != 5 || s.DownBytes != 5 {
				t.Errorf("flow %+v", s)
			}
			c.(interface{ CloseWrite() error }).CloseWrite()
			if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
				t.Errorf("the guest's end: %q, %v", b, err)
			}
			c.Close()
			eventually(t, "no flow is left", func() bool { return n.Flows().Len() == 0 })
		})
	}
	t.Run("by DialContext", func(t *testing.T) {
		listenGuest(t, g, families[0], 8080, echoGuest)
		for _, a := range []string{"web:8080", "10.0.2.15:8080", "[" + g.MAC().String() + "]:8080"} {
			c, err := n.DialContext(patience(t), "tcp", a)
			if err != nil {
				t.Errorf("%s: %v", a, err)
				continue
			}
			roundTrip(t, c, a)
			c.Close()
		}
		for _, a := range [][2]string{{"tcp", "web"}, {"tcp", "web:nothing"}, {"sctp", "web:80"}} {
			if c, err := n.DialContext(patience(t), a[0], a[1]); err == nil {
				c.Close()
				t.Errorf("%s %s was dialled", a[0], a[1])
			}
		}
	})
}

func TestDialGuestAbsent(t *testing.T) {
	t.Parallel() // beside the tests that wait
	n := start(t, backend.Config{})
	for _, guest := range []string{"", "nobody", "10.0.2.15", "52:54:00:99:99:99", "fd00:1234::15", "192.0.2.1"} {
		_, err := n.DialGuest(patience(t), "tcp", guest, 80, netip.AddrPort{}, "")
		wantErr(t, "no guest at all: "+guest, err, portforward.ErrNoGuest)
	}
	g := Plug(t, n, Config{Name: "here"}).Up(t)
	for _, guest := range []string{"nobody", "10.0.2.99", "52:54:00:99:99:99", "192.0.2.1"} {
		_, err := n.DialGuest(patience(t), "tcp", guest, 80, netip.AddrPort{}, "")
		wantErr(t, "another guest: "+guest, err, portforward.ErrNoGuest)
	}
	g.Close()
	eventually(t, "the guest is gone", func() bool { return len(n.Guests()) == 0 })
	_, err := n.DialGuest(patience(t), "tcp", "here", 80, netip.AddrPort{}, "")
	wantErr(t, "gone", err, portforward.ErrNoGuest)
	if n.Flows().Len() != 0 {
		t.Errorf("%d flows are left", n.Flows().Len())
	}
}

// A guest with a fixed address that has said nothing yet is asked for.
func TestDialGuestThatIsSilent(t *testing.T) {
	for _, a := range []string{"10.0.2.50/24", "fd00:1234::50/64"} {
		t.Run(a, func(t *testing.T) {
			p := netip.MustParsePrefix(a)
			n := start(t, backend.Config{})
			g := Plug(t, n, Config{Addrs: []netip.Prefix{p}})
			f := families[boolIndex(p.Addr().Is6())]
			listenGuest(t, g, f, 80, echoGuest)
			eventually(t, "plugged in", func() bool { return len(n.Guests()) == 1 })
			c, err := n.DialGuest(patience(t), "tcp", p.Addr().String(), 80, netip.AddrPort{}, "")
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, c, "found")
			c.Close()
		})
	}
}

func boolIndex(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestDialGuestRefused(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{})
		g.Ping(patience(t), f.gateway, 1, 1, nil)
		_, err := n.DialGuest(patience(t), "tcp", f.of(g).String(), 81, netip.AddrPort{}, "")
		wantErr(t, "tcp", err, syscall.ECONNREFUSED)
		u, err := n.DialGuest(patience(t), "udp", f.of(g).String(), 81, netip.AddrPort{}, "")
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		u.Write([]byte("anybody?"))
		u.SetReadDeadline(time.Now().Add(Patience))
		_, err = u.Read(make([]byte, 10))
		wantErr(t, "udp", err, syscall.ECONNREFUSED)
		if got := n.Flows().Counts()["refused"]; got == 0 {
			t.Errorf("counted: %v", n.Flows().Counts())
		}
	})
}

// A guest that does not answer at all: the caller's own time ends it, and nothing is left.
func TestDialGuestGivesUp(t *testing.T) {
	n, g := up(t, backend.Config{})
	silent := netip.MustParsePrefix("10.0.2.60/24")
	g.Send(Build(Ethernet{Src: g.MAC()}, ARP{SenderMAC: g.MAC(), Sender: silent.Addr(), Target: silent.Addr()})) // there, and deaf
	g.Sync(t)
	ctx, cancel := context.WithCancel(context.Background())
	w := g.Watch(IsTCP("S"), To(silent.Addr()))
	go func() { w.Next(context.Background()); cancel() }()
	_, err := n.DialGuest(ctx, "tcp", silent.Addr().String(), 80, netip.AddrPort{}, "")
	wantErr(t, "dial", err, context.Canceled)
	if n.Flows().Len() != 0 {
		t.Errorf("%d flows are left", n.Flows().Len())
	}
}

func TestDialGuestUDP(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{})
		g.Ping(patience(t), f.gateway, 1, 1, nil)
		s, err := g.ListenUDP(at(f.any, 90))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		go s.EchoUDP()
		u, err := n.DialGuest(patience(t), "udp", f.of(g).String(), 90, netip.AddrPort{}, "r")
		if err != nil {
			t.Fatal(err)
		}
		u.SetReadDeadline(time.Now().Add(Patience))
		for _, size := range []int{0, 1, 1472, 1473, 65507} {
			msg := bytes.Repeat([]byte("u"), size)
			if _, err := u.Write(msg); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 65536)
			if k, err := u.Read(b); err != nil || !bytes.Equal(b[:k], msg) {
				t.Errorf("echo of %d: %d, %v", size, k, err)
			}
		}
		if _, err := u.Write(make([]byte, 65528)); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("too long: %v", err)
		}
		u.SetReadDeadline(time.Now())
		_, err = u.Read(make([]byte, 1))
		wantErr(t, "read with a deadline that passed", err, os.ErrDeadlineExceeded)
		u.SetReadDeadline(time.Time{})
		u.Close()
		_, err = u.Read(make([]byte, 1))
		wantErr(t, "read after close", err, net.ErrClosed)
		eventually(t, "no flow is left", func() bool { return n.Flows().Len() == 0 })
	})
}

// A reset by the guest is the caller's, and the caller's is the guest's.
func TestDialGuestReset(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{})
		g.Ping(patience(t), f.gateway, 1, 1, nil)
		got := make(chan error, 1)
		listenGuest(t, g, f, 80, func(c *TCPConn) {
			b := make([]byte, 1)
			c.Read(b)
			if b[0] == 'r' {
				c.Abort()
				got <- nil
				return
			}
			_, err := io.Copy(io.Discard, c)
			got <- err
			c.Close()
		})
		conn, err := n.DialGuest(patience(t), "tcp", f.of(g).String(), 80, netip.AddrPort{}, "")
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("r"))
		if _, err := io.Copy(io.Discard, conn); err == nil {
			t.Error("a reset by the guest reads as a clean end")
		}
		conn.Close()
		<-got
		conn, err = n.DialGuest(patience(t), "tcp", f.of(g).String(), 80, netip.AddrPort{}, "")
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("x"))
		conn.(interface{ Abort() error }).Abort()
		wantErr(t, "guest read", <-got, syscall.ECONNRESET)
		eventually(t, "no flow is left", func() bool { return n.Flows().Len() == 0 })
	})
}

// A port forward all the way: host socket, table, guest; a guest that refuses makes a reset.
func TestForwardToGuest(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{})
		g.Ping(patience(t), f.gateway, 1, 1, nil)
		listenGuest(t, g, f, 80, echoGuest)
		guest := f.of(g).String()
		if f.gateway.Is6() {
			guest = "[" + guest + "]"
		}
		add := func(port string) string {
			r, err := portforward.ParseRule("tcp:127.0.0.1:0-" + guest + ":" + port)
			if err != nil {
				t.Fatal(err)
			}
			b, err := n.Forwards().Add(patience(t), r[0])
			if err != nil {
				t.Fatal(err)
			}
			return at(b.Host, b.HostPort).String()
		}
		conn, err := net.Dial("tcp", add("80"))
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, conn, "through the table")
		conn.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(conn); len(b) > 0 || err != nil {
			t.Errorf("end: %q, %v", b, err)
		}
		conn.Close()
		conn, err = net.Dial("tcp", add("81"))
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		wantErr(t, "refused by the guest", err, syscall.ECONNRESET)
		eventually(t, "no flow is left", func() bool { return n.Flows().Len() == 0 })
	})
}
