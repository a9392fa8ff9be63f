package guest

import (
	"context"
	"net/netip"
	"testing"

	"github.com/vmnetd/vmnetd/backend/link"
)

// FuzzFrame has any bytes come from the network's side, which may be another machine's. The seeds in testdata are an
// answer of each kind that is looked into here: DHCP, DHCPv6, and "prohibited" of both families.
func FuzzFrame(f *testing.F) {
	near, far := link.Pipe(1024)
	go func() {
		var b link.Batch
		for far.ReadFrames(&b) == nil {
			b.Next()
		}
	}()
	g, err := New(context.Background(), near, Config{Static: true, MAC: []byte{0x52, 0x54, 0, 0, 0, 1},
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24"), netip.MustParsePrefix("fd00::15/64")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { g.Close(); far.Close() })
	g.cfg.Static = false
	told := 0
	for _, a := range []string{"198.51.100.7:80", "[2001:db8::7]:80"} {
		defer g.hear(netip.MustParseAddrPort(a), func(error) { told++ })()
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		g.frame(append([]byte(nil), b...))
		for range len(g.dhcp) {
			<-g.dhcp
		}
		for range len(g.dhcp6) {
			<-g.dhcp6
		}
	})
}

// The frames that say "prohibited" are taken for what they are, and those about somebody else are not.
func TestProhibited(t *testing.T) {
	near, far := link.Pipe(16)
	defer far.Close()
	g, err := New(context.Background(), near, Config{Static: true})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	ip4 := func(proto byte, src, dst string, body ...byte) []byte {
		h := []byte{0x45, 0, 0, byte(20 + len(body)), 0, 0, 0, 0, 64, proto, 0, 0}
		s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
		return append(append(append(h, s[:]...), d[:]...), body...)
	}
	ip6 := func(proto byte, src, dst string, body ...byte) []byte {
		h := []byte{0x60, 0, 0, 0, 0, byte(len(body)), proto, 64}
		s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
		return append(append(append(h, s[:]...), d[:]...), body...)
	}
	eth := func(kind uint16, body []byte) []byte {
		return append([]byte{0x52, 0x54, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, byte(kind >> 8), byte(kind)}, body...)
	}
	ports := func(dst byte) []byte { return []byte{0x80, 0, 0, dst, 0, 0, 0, 0} }
	tests := []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"ipv4", eth(0x800, ip4(1, "10.0.2.2", "10.0.2.15", append([]byte{3, 13, 0, 0, 0, 0, 0, 0}, ip4(6, "10.0.2.15", "198.51.100.7", ports(80)...)...)...)), true},
		{"ipv4, udp, host prohibited", eth(0x800, ip4(1, "10.0.2.2", "10.0.2.15", append([]byte{3, 10, 0, 0, 0, 0, 0, 0}, ip4(17, "10.0.2.15", "198.51.100.7", ports(80)...)...)...)), true},
		{"ipv4, port unreachable", eth(0x800, ip4(1, "10.0.2.2", "10.0.2.15", append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, ip4(6, "10.0.2.15", "198.51.100.7", ports(80)...)...)...)), false},
		{"ipv4, another port", eth(0x800, ip4(1, "10.0.2.2", "10.0.2.15", append([]byte{3, 13, 0, 0, 0, 0, 0, 0}, ip4(6, "10.0.2.15", "198.51.100.7", ports(81)...)...)...)), false},
		{"ipv4, an echo request", eth(0x800, ip4(1, "10.0.2.2", "10.0.2.15", append([]byte{3, 13, 0, 0, 0, 0, 0, 0}, ip4(1, "10.0.2.15", "198.51.100.7", ports(80)...)...)...)), false},
		{"ipv4, cut short", eth(0x800, ip4(1, "10.0.2.2", "10.0.2.15", append([]byte{3, 13, 0, 0, 0, 0, 0, 0}, ip4(6, "10.0.2.15", "198.51.100.7", 0x80, 0, 0)...)...)), false},
		{"ipv6", eth(0x86dd, ip6(58, "fe80::2", "fd00::15", append([]byte{1, 1, 0, 0, 0, 0, 0, 0}, ip6(6, "fd00::15", "2001:db8::7", ports(80)...)...)...)), true},
		{"ipv6, reject route", eth(0x86dd, ip6(58, "fe80::2", "fd00::15", append([]byte{1, 6, 0, 0, 0, 0, 0, 0}, ip6(17, "fd00::15", "2001:db8::7", ports(80)...)...)...)), true},
		{"ipv6, no route", eth(0x86dd, ip6(58, "fe80::2", "fd00::15", append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, ip6(6, "fd00::15", "2001:db8::7", ports(80)...)...)...)), false},
		{"arp", eth(0x806, make([]byte, 100)), false},
	}
	told := 0
	for _, a := range []string{"198.51.100.7:80", "[2001:db8::7]:80"} {
		defer g.hear(netip.MustParseAddrPort(a), func(error) { told++ })()
	}
	for _, tt := range tests {
		told = 0
		if got := g.prohibited(tt.frame); got != tt.want || (told == 1) != tt.want {
			t.Errorf("%s: %v, told %d times", tt.name, got, told)
		}
		for i := range tt.frame {
			if i >= 14 {
				g.prohibited(tt.frame[:i]) // must not panic
			}
		}
	}
}
