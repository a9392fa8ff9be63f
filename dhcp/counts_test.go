package dhcp

import (
	"context"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

func TestMessages(t *testing.T) {
	s, err := New(Config{Prefix: netip.MustParsePrefix("10.0.2.0/24"), Gateway: netip.MustParseAddr("10.0.2.2"),
		Prefix6: netip.MustParsePrefix("fd00::/64"), Gateway6: netip.MustParseAddr("fd00::2")})
	if err != nil {
		t.Fatal(err)
	}
	mac := MAC{0x52, 0x54, 0, 0, 0, 1}
	m, err := dhcpv4.NewDiscovery(mac[:])
	if err != nil {
		t.Fatal(err)
	}
	if r, err := s.Handle4(context.Background(), "g", mac, m.ToBytes()); r == nil || err != nil {
		t.Fatal(r, err)
	}
	for _, kind := range []byte{0, 2, 99, 255} { // no type at all, a server's, and none there is
		m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageType(kind)))
		s.Handle4(context.Background(), "g", mac, m.ToBytes())
	}
	s.Handle4(context.Background(), "g", mac, []byte("x"))
	ll := netip.MustParseAddr("fe80::1")
	for _, b := range []string{"", "\xff123", "\x02123", "\x01123"} {
		s.Handle6(context.Background(), "g", mac, ll, []byte(b))
	}
	s.Handle6(context.Background(), "g", mac, ll, []byte("\x0b123")) // an information request needs nothing more
	want := map[MessageCount]bool{
		{false, false, "discover", 1}: true, {false, false, "invalid", 5}: true, {false, true, "offer", 1}: true,
		{true, false, "invalid", 4}: true, {true, false, "information-request", 1}: true, {true, true, "reply", 1}: true,
	}
	seen := map[MessageCount]bool{}
	for _, c := range s.Messages() {
		id := c
		id.Count = 0
		if seen[id] {
			t.Errorf("%+v is there twice", c)
		}
		if seen[id] = true; (c.Count != 0) != want[c] {
			t.Errorf("%+v", c)
		}
	}
	if len(seen) != 7+4+9+2 {
		t.Errorf("%d kinds", len(seen))
	}
}
