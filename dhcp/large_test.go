package dhcp

import (
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// large checks the copy of an answer that is for clients whose NIC takes large frames: the same but for its MTU.
func large(mtu ...byte) check {
	return func(l *lab) {
		l.Helper()
		if l.reply == nil || l.reply.Large == nil {
			l.Fatalf("%+v, %v: no large copy", l.reply, l.err)
		}
		m, err := dhcpv4.FromBytes(l.reply.Large)
		if err != nil {
			l.Fatal(err)
		}
		if string(m.Options[26]) != string(mtu) {
			l.Errorf("large copy: option 26 is % x, want % x", m.Options[26], mtu)
		}
		m.Options[26] = l.m4.Options[26]
		if string(m.ToBytes()) != string(l.m4.ToBytes()) {
			l.Errorf("large copy\n%s\nof\n%s", m.Summary(), l.m4.Summary())
		}
	}
}

func plain(l *lab) {
	l.Helper()
	if l.reply == nil || l.reply.Large != nil {
		l.Errorf("%+v, %v: want an answer without a large copy", l.reply, l.err)
	}
}

func TestLargeMTU(t *testing.T) {
	set := func(c *Config) { c.MTU, c.LargeMTU = 1500, 65520 }
	is1500, is65520 := []byte{0x05, 0xdc}, []byte{0xff, 0xf0}
	mtu := wanting(1, 3, 26)
	const a = "10.0.2.15"
	for _, c := range []struct {
		name  string
		set   func(*Config)
		story []step
	}{
		{"the ACK alone has it", set, []step{
			says(alice, dhcpv4.MessageTypeDiscover, mtu)(offered(a), with(26, is1500...), plain),
			says(alice, dhcpv4.MessageTypeRequest, mtu, asking(a), server("10.0.2.2"))(acked(a), with(26, is1500...), large(is65520...)),
		}},
		{"renewed", set, []step{
			leases(alice, a),
			says(alice, dhcpv4.MessageTypeRequest, mtu, having(a))(acked(a), large(is65520...)),
		}},
		{"started again with an address", set, []step{
			says(alice, dhcpv4.MessageTypeRequest, mtu, asking(a))(acked(a), large(is65520...)),
		}},
		{"in one exchange", set, []step{
			says(alice, dhcpv4.MessageTypeDiscover, mtu, option(80))(acked(a), large(is65520...)),
		}},
		{"informed", set, []step{
			says(alice, dhcpv4.MessageTypeInform, mtu, having("10.0.2.99"))(large(is65520...)),
		}},
		{"refused", set, []step{
			leases(bob, a),
			says(alice, dhcpv4.MessageTypeRequest, mtu, asking(a))(naked(""), plain),
		}},
		{"not wanted", set, []step{
			says(alice, dhcpv4.MessageTypeRequest, wanting(1, 3), asking(a))(acked(a), without(26), plain),
		}},
		{"without a list", set, []step{
			says(alice, dhcpv4.MessageTypeRequest, asking(a))(acked(a), with(26, is1500...), plain),
		}},
		{"none is set", func(c *Config) { c.MTU = 1500 }, []step{
			says(alice, dhcpv4.MessageTypeRequest, mtu, asking(a))(acked(a), with(26, is1500...), plain),
		}},
	} {
		t.Run(c.name, func(t *testing.T) { play(t, c.set, c.story) })
	}
	for _, bad := range [][2]int{{0, 65520}, {9000, 1500}, {1500, 65536}} {
		cfg := qemu()
		cfg.MTU, cfg.LargeMTU = bad[0], bad[1]
		if _, err := New(cfg); err == nil {
			t.Errorf("MTU %d and %d are accepted", bad[0], bad[1])
		}
	}
}
