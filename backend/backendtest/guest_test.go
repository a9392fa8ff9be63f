package backendtest_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/qemu"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// wired is two guests on one wire, with nothing between them.
func wired(t *testing.T, a, b link.Link) (x, y *backendtest.Guest) {
	t.Helper()
	x, err := backendtest.New(a, backendtest.Config{Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}, Gateway4: ip("192.0.2.2")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	y, err = backendtest.New(b, backendtest.Config{Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { y.Close() })
	return x, y
}

func sockets(t *testing.T) (link.Link, link.Link) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "wire"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return qemu.NewLink(a), qemu.NewLink(b)
}

func TestGuests(t *testing.T) {
	for _, w := range []struct {
		name string
		make func(*testing.T) (link.Link, link.Link)
	}{
		{"over a pipe", func(*testing.T) (link.Link, link.Link) { return link.Pipe(64) }},
		{"over a socket in QEMU's framing", sockets},
	} {
		t.Run(w.name, func(t *testing.T) {
			a, b := w.make(t)
			x, y := wired(t, a, b)
			ctx, cancel := context.WithTimeout(context.Background(), backendtest.Patience)
			defer cancel()
			for _, dst := range []netip.Addr{ip("192.0.2.2"), ip("2001:db8::2"), y.LinkLocal()} {
				if err := x.Ping(ctx, dst, 7, 9, []byte("hello")); err != nil {
					t.Errorf("ping %s: %v", dst, err)
				}
			}
			for _, dst := range []netip.Addr{ip("192.0.2.2"), ip("2001:db8::2")} {
				l, err := y.Listen(netip.AddrPortFrom(dst, 80))
				if err != nil {
					t.Fatal(err)
				}
				echoed := make(chan struct{})
				go func() { defer close(echoed); l.Echo() }()
				c, err := x.Dial(ctx, "tcp", netip.AddrPortFrom(dst, 80))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := c.Write([]byte("over")); err != nil {
					t.Error(err)
				}
				c.CloseWrite()
				buf := make([]byte, 8)
				if n, err := c.Read(buf); err != nil || string(buf[:n]) != "over" {
					t.Errorf("echo of %q, %v", buf[:n], err)
				}
				c.Close()
				l.Close()
				<-echoed
				if _, err := x.Dial(ctx, "tcp", netip.AddrPortFrom(dst, 81)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("closed port: %v, want ECONNREFUSED", err)
				}
				u, err := y.ListenUDP(netip.AddrPortFrom(dst, 53))
				if err != nil {
					t.Fatal(err)
				}
				go u.EchoUDP()
				v, err := x.DialUDP(netip.AddrPortFrom(dst, 53))
				if err != nil {
					t.Fatal(err)
				}
				big := bytes.Repeat([]byte("b"), 65507)
				for _, p := range [][]byte{{}, []byte("x"), big} {
					if _, err := v.Write(p); err != nil {
						t.Error(err)
					}
					got := make([]byte, 65536)
					n, from, err := v.ReadFrom(got)
					if err != nil || !bytes.Equal(got[:n], p) || from != netip.AddrPortFrom(dst, 53) {
						t.Errorf("datagram of %d: %d from %s, %v", len(p), n, from, err)
					}
				}
				u.Close()
				v.Close()
			}
		})
	}
}

func TestSyncAndWatch(t *testing.T) {
	a, b := link.Pipe(64)
	x, y := wired(t, a, b)
	arps := y.Watch(backendtest.IsARP(backendtest.ARPRequest, ip("192.0.2.1")))
	w := x.Watch(backendtest.IsICMP(0, 0))
	x.Sync(t)
	if p := arps.Expect(t); !slices.Equal(p.Src, x.MAC()) {
		t.Errorf("asked from %s, want %s", p.Src, x.MAC())
	}
	w.None(t)
	x.Close()
	<-y.Gone()
	if _, err := w.Next(context.Background()); err == nil {
		t.Error("a watch on a wire that ended waits for nothing")
	}
}

// What Build makes, Parse takes apart and finds right.
func TestBuildParse(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	eth := backendtest.Ethernet{Src: mac, Dst: mac}
	v4 := backendtest.IPv4{Src: ip("192.0.2.1"), Dst: ip("192.0.2.2")}
	v6 := backendtest.IPv6{Src: ip("2001:db8::1"), Dst: ip("2001:db8::2")}
	for _, tt := range []struct {
		name  string
		frame []byte
		check backendtest.Check
	}{
		{"arp", backendtest.Build(eth, backendtest.ARP{Sender: ip("192.0.2.1"), Target: ip("192.0.2.2")}), backendtest.IsARP(1, ip("192.0.2.1"))},
		{"tcp", backendtest.Build(eth, v4, backendtest.TCP{SrcPort: 1, DstPort: 2, Flags: "SA", Options: []byte{2, 4, 5, 180}}), backendtest.All(backendtest.IsTCP("SA"), backendtest.ToPort(2))},
		{"tcp6, odd payload", backendtest.Build(eth, v6, backendtest.TCP{Flags: "PA"}, backendtest.Payload("abc")), backendtest.All(backendtest.IsTCP("PA"), backendtest.Carries([]byte("abc")))},
		{"udp", backendtest.Build(eth, v4, backendtest.UDP{SrcPort: 5, DstPort: 6}, backendtest.Payload("x")), backendtest.IsUDP(5, 6)},
		{"udp6 behind options", backendtest.Build(eth, v6, backendtest.Ext{Kind: backendtest.ProtoDestOpts}, backendtest.UDP{SrcPort: 5, DstPort: 6}), backendtest.IsUDP(5, 6)},
		{"echo6", backendtest.Build(eth, v6, backendtest.Echo(v6.Dst, true, 3, 4)), backendtest.IsEchoReply(3, 4)},
		{"advertisement", backendtest.Build(append([]backendtest.Layer{eth, backendtest.IPv6{Src: ip("fe80::1"), Dst: ip("ff02::1")}}, backendtest.RouterAdvert(mac, 1800, netip.MustParsePrefix("2001:db8::/64"))...)...), func(p *backendtest.Packet) error {
			ra, err := backendtest.ParseRA(p)
			if err == nil && (ra.Prefix != netip.MustParsePrefix("2001:db8::/64") || ra.Lifetime.Seconds() != 1800) {
				err = errors.New("read differently")
			}
			return err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := backendtest.Parse(tt.frame)
			if err := backendtest.All(backendtest.Good(), tt.check)(p); err != nil {
				t.Errorf("%s: %v", p, err)
			}
			if p.TCP != nil || p.UDP != nil || p.ICMP != nil { // a bit more is a wrong checksum
				bad := backendtest.Parse(backendtest.Patch(tt.frame, len(tt.frame)-1, tt.frame[len(tt.frame)-1]^1))
				if bad.Wrong == nil {
					t.Error("a flipped bit is not seen")
				}
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	f.Add([]byte{})
	f.Add(backendtest.Build(backendtest.Ethernet{Src: mac}, backendtest.IPv6{}, backendtest.Ext{Kind: 0}, backendtest.Fragment6{More: true}))
	f.Add(backendtest.Build(backendtest.Ethernet{Src: mac}, backendtest.IPv4{Src: ip("1.2.3.4"), Dst: ip("1.2.3.4")}, backendtest.ICMP{Type: 3}, backendtest.Payload(make([]byte, 28))))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := backendtest.Parse(b)
		_ = p.String()
		_, _ = backendtest.ParseRA(p)
	})
}
