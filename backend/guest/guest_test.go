package guest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/guest"
	"github.com/vmnetd/vmnetd/portforward"
	"github.com/vmnetd/vmnetd/qemu"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second // only a test that fails waits that long

var prefix6 = netip.MustParsePrefix("fd00:1234::/64")

// network is one that guests plug into over TCP, in QEMU's framing, and its address.
func network(t testing.TB, c backend.Config) (*backend.Network, string) {
	t.Helper()
	c.Prefix6, c.Logger = prefix6, slog.New(slog.DiscardHandler)
	n, err := backend.New(c)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
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
			go n.Serve(context.Background(), qemu.NewLink(c), "tcp")
		}
	}()
	t.Cleanup(func() { l.Close(); n.Close(); <-done })
	return n, l.Addr().String()
}

func plug(t testing.TB, at string, c guest.Config) *guest.Guest {
	t.Helper()
	conn, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	g, err := guest.New(ctx, qemu.NewLink(conn), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

var gateways = []string{"10.0.2.2", "fd00:1234::2"}

// A guest over TCP has addresses of both families by itself, resolves by the network's DNS, moves 100 MB both ways
// unharmed, and is reached by a forward of the host's.
func TestOverTCP(t *testing.T) {
	n, at := network(t, backend.Config{})
	g := plug(t, at, guest.Config{Name: "box"})
	if !g.Addr4().IsValid() || !prefix6.Contains(g.Addr6()) || len(g.DNS()) < 2 {
		t.Fatalf("addresses %v, DNS %v", g.Addrs(), g.DNS())
	}
	if got, err := g.LookupNetIP(within(t), "box"); err != nil || len(got) == 0 || got[0] != g.Addr4() {
		t.Errorf("box is %v, %v", got, err)
	}
	if got, err := g.LookupNetIP(within(t), "gateway.internal"); err != nil || len(got) != 2 {
		t.Errorf("gateway.internal is %v, %v", got, err)
	}
	var dnsErr *net.DNSError
	if _, err := g.LookupNetIP(within(t), "nobody.internal."); !errors.As(err, &dnsErr) || !dnsErr.IsNotFound {
		t.Errorf("nobody.internal.: %v", err)
	}
	for _, a := range gateways {
		if err := g.Ping(within(t), netip.MustParseAddr(a), 1, []byte("hello")); err != nil {
			t.Error(err)
		}
	}
	const size = 100 << 20
	mirror := func(l net.Listener, sum chan<- [32]byte) {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		h := sha256.New()
		io.Copy(io.MultiWriter(h, c), c)
		c.(interface{ CloseWrite() error }).CloseWrite()
		sum <- [32]byte(h.Sum(nil))
	}
	exercise := func(what string, l net.Listener, dial func() (net.Conn, error)) {
		t.Helper()
		theirs := make(chan [32]byte, 1)
		go mirror(l, theirs)
		c, err := dial()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer c.Close()
		sent, back := sha256.New(), sha256.New()
		go func() {
			block := make([]byte, 1<<20)
			rand.Read(block)
			for i := range size >> 20 {
				block[0] = byte(i)
				sent.Write(block)
				if _, err := c.Write(block); err != nil {
					break
				}
			}
			c.(interface{ CloseWrite() error }).CloseWrite()
		}()
		k, err := io.Copy(back, c)
		if err != nil || k != size || <-theirs != [32]byte(sent.Sum(nil)) || !bytes.Equal(sent.Sum(nil), back.Sum(nil)) {
			t.Errorf("%s: %d of %d bytes came back: %v", what, k, size, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	exercise("out", l, func() (net.Conn, error) {
		return g.DialContext(within(t), "tcp", fmt.Sprintf("gateway.internal:%d", port))
	})
	gl, err := g.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer gl.Close()
	rules, err := portforward.ParseRule("127.0.0.1:0:box:80")
	if err != nil {
		t.Fatal(err)
	}
	bound, err := n.Forwards().AddAll(within(t), rules)
	if err != nil {
		t.Fatal(err)
	}
	exercise("in by a forward", gl, func() (net.Conn, error) { return net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", bound[0].HostPort)) })
}

// Guests hear one another, and the program, on both families, by TCP and UDP.
func TestListen(t *testing.T) {
	n, at := network(t, backend.Config{})
	a, b := plug(t, at, guest.Config{Name: "a"}), plug(t, at, guest.Config{Name: "b"})
	l, err := b.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RemoteAddr) })}
	go srv.Serve(l)
	defer srv.Close()
	pc, err := b.ListenPacket("udp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			k, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:k], from)
		}
	}()
	h := a.HTTPClient()
	defer h.CloseIdleConnections()
	for _, host := range []string{"b", "b.internal", b.Addr4().String(), "[" + b.Addr6().String() + "]"} {
		r, err := h.Get("http://" + host + "/")
		if err != nil {
			t.Error(err)
			continue
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if ap, err := netip.ParseAddrPort(string(body)); err != nil || ap.Addr() != a.Addr4() && ap.Addr() != a.Addr6() {
			t.Errorf("%s sees %s", host, body)
		}
	}
	for _, d := range []interface {
		DialContext(context.Context, string, string) (net.Conn, error)
	}{a, n} {
		for _, network := range []string{"udp4", "udp6"} {
			host := b.Addr4().String()
			if network == "udp6" {
				host = b.Addr6().String()
			}
			c, err := d.DialContext(within(t), network, net.JoinHostPort(host, "80"))
			if err != nil {
				t.Fatal(err)
			}
			c.Write([]byte("hello"))
			c.SetReadDeadline(time.Now().Add(patience))
			buf := make([]byte, 100)
			if k, err := c.Read(buf); string(buf[:k]) != "hello" || err != nil {
				t.Errorf("%s: %q, %v", network, buf[:k], err)
			}
			c.Close()
		}
	}
}

// An exit lets through what is in its routes, by either family, and says no to the rest: the entrance's own word does
// not count.
func TestExit(t *testing.T) {
	for i, gateway := range gateways {
		t.Run(gateway, func(t *testing.T) {
			own := netip.MustParseAddr(gateway)
			n, at := network(t, backend.Config{Routes: []netip.Prefix{netip.PrefixFrom(own, own.BitLen())}})
			g := plug(t, at, guest.Config{})
			l, err := net.Listen("tcp", []string{"127.0.0.1:0", "[::1]:0"}[i])
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					io.WriteString(c, "far side")
					c.Close()
				}
			}()
			port := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
			c, err := g.DialContext(within(t), "tcp", net.JoinHostPort(gateway, port))
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(c)
			c.Close()
			if string(b) != "far side" {
				t.Errorf("%q", b)
			}
			g.SetGateway(netip.MustParseAddr(gateways[1])) // where this host has no IPv6 route it advertises none
			for _, dst := range []string{"198.51.100.7", "2001:db8::7", gateways[1-i]} {
				_, err := g.DialContext(within(t), "tcp", net.JoinHostPort(dst, port))
				var op *net.OpError
				if !errors.Is(err, guest.ErrProhibited) || !errors.Is(err, syscall.EACCES) || !errors.As(err, &op) {
					t.Errorf("dial %s: %v", dst, err)
				}
				u, err := g.DialContext(within(t), "udp", net.JoinHostPort(dst, port))
				if err != nil {
					t.Fatal(err)
				}
				u.Write([]byte("x"))
				u.SetReadDeadline(time.Now().Add(patience))
				if _, err := u.Read(make([]byte, 1)); !errors.Is(err, guest.ErrProhibited) {
					t.Errorf("udp to %s: %v", dst, err)
				}
				u.Close()
			}
			if got := n.Flows().Counts()["outside-routes"]; got < 6 {
				t.Errorf("%d were counted", got)
			}
		})
	}
}

// Where addresses are leased and nothing else goes, a guest leases its IPv6 address, too, and is found by it.
func TestStrictLeases(t *testing.T) {
	n, at := network(t, backend.Config{StrictLeases: true})
	g := plug(t, at, guest.Config{Name: "box"})
	if !g.Addr4().IsValid() || !prefix6.Contains(g.Addr6()) {
		t.Fatalf("addresses %v", g.Addrs())
	}
	l, err := g.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	for _, network := range []string{"tcp4", "tcp6"} {
		c, err := n.DialContext(within(t), network, "box:80")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(c)
		c.Close()
		if string(b) != "hello" || err != nil {
			t.Errorf("%s: %q, %v", network, b, err)
		}
	}
	for _, a := range gateways {
		if err := g.Ping(within(t), netip.MustParseAddr(a), 1, nil); err != nil {
			t.Error(err)
		}
	}
	if d := n.Guests()[0].Dropped; d["spoofed"] > 0 {
		t.Errorf("dropped %v", d)
	}
}

// Package net's own test, between two guests.
func TestConnIsNets(t *testing.T) {
	_, at := network(t, backend.Config{})
	a, b := plug(t, at, guest.Config{Name: "a"}), plug(t, at, guest.Config{Name: "b"})
	l, err := b.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c1, err = a.DialContext(context.Background(), "tcp", "b:80")
		if err != nil {
			return
		}
		c2, err = l.Accept()
		return c1, c2, func() { c1.Close(); c2.Close() }, err
	})
}

// A wire that ends, or a network that says nothing, ends New and whatever goes on.
func TestEnds(t *testing.T) {
	n, at := network(t, backend.Config{})
	g := plug(t, at, guest.Config{})
	l, err := n.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := g.DialContext(within(t), "tcp", "10.0.2.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	done := make(chan error, 1)
	go func() { _, err := c.Read(make([]byte, 1)); done <- err }()
	g.Close()
	select {
	case err := <-done:
		if err == nil {
			t.Error("read something")
		}
	case <-time.After(patience):
		t.Fatal("a reader hangs")
	}
	far, near := net.Pipe()
	defer far.Close()
	go io.Copy(io.Discard, far)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := guest.New(ctx, qemu.NewLink(near), guest.Config{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent network: %v", err)
	}
	far, near = net.Pipe()
	far.Close()
	if _, err := guest.New(within(t), qemu.NewLink(near), guest.Config{}); err == nil {
		t.Error("a wire that has ended")
	}
}
