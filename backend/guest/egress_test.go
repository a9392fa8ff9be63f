package guest_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/guest"
	"github.com/vmnetd/vmnetd/backend/link"
)

// refuses is a world in which everybody is there and nobody listens.
type refuses struct{ egress.Egress }

func (refuses) DialContext(context.Context, string, netip.AddrPort) (net.Conn, error) {
	return nil, syscall.ECONNREFUSED
}

// A guest of one network comes out where another one is, as far as that one's routes go: TCP, UDP and ping.
func TestEgress(t *testing.T) {
	far, at := network(t, backend.Config{Egress: refuses{&egress.Host{}}, Prefix4: netip.MustParsePrefix("10.9.0.0/24"), Routes: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}})
	l, err := far.Listen("tcp", "203.0.113.7:80") // the far side's world
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
			io.WriteString(c, "from afar, seen as "+c.RemoteAddr().(*net.TCPAddr).IP.String())
			c.Close()
		}
	}()
	pc, err := far.ListenPacket("udp", "203.0.113.7:80")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			pc.WriteTo(b[:n], from)
		}
	}()
	entrance := plug(t, at, guest.Config{})
	near, err := backend.New(backend.Config{Egress: entrance.Egress(), Prefix6: prefix6, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	a, b := link.Pipe(256)
	go near.Serve(context.Background(), b, "pipe")
	vm, err := guest.New(within(t), a, guest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	c, err := vm.DialContext(within(t), "tcp", "203.0.113.7:80")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	c.Close()
	if string(got) != "from afar, seen as 10.9.0.15" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	u, err := vm.DialContext(within(t), "udp", "203.0.113.7:80")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.Write([]byte("datagram"))
	u.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 100)
	if n, err := u.Read(buf); string(buf[:n]) != "datagram" || err != nil {
		t.Errorf("%q, %v", buf[:n], err)
	}
	if _, err := vm.DialContext(within(t), "tcp", "198.51.100.7:80"); !errors.Is(err, guest.ErrProhibited) {
		t.Errorf("outside the far routes: %v", err)
	}
	if _, err := vm.DialContext(within(t), "tcp", "203.0.113.7:81"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("in the far routes, and nobody there: %v", err)
	}
	if _, err := vm.DialContext(within(t), "tcp", "10.0.2.2:80"); !errors.Is(err, guest.ErrProhibited) {
		t.Errorf("the near host's loopback: %v", err)
	}
	for _, x := range []struct {
		g *guest.Guest
		a string
	}{{entrance, "10.9.0.2"}, {entrance, "fd00:1234::2"}, {vm, "10.0.2.2"}, {vm, "fd00:1234::2"}} {
		if err := x.g.Ping(within(t), netip.MustParseAddr(x.a), 1, []byte("hi")); err != nil {
			t.Error(err)
		}
	}
	entrance.Close()
	if _, err := vm.DialContext(within(t), "tcp", "203.0.113.7:80"); err == nil {
		t.Error("dialled through an entrance that has gone")
	}
}
