package dhcp

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

const day = DefaultLeaseTime

func TestStories4(t *testing.T) {
	small := func(c *Config) { // six addresses, of which .1 .4 .5 .6 are the pool
		c.Prefix, c.PerGuest = netip.MustParsePrefix("10.0.2.0/29"), 2
	}
	static := func(c *Config) {
		c.Static = map[MAC]Reservation{macA: {Addr: ip("10.0.2.50"), Hostname: "web"}}
	}
	for _, c := range []struct {
		name  string
		set   func(*Config)
		story []step
	}{
		{"the first guest has QEMU's address, the second the next", nil, []step{
			leases(alice, "10.0.2.15"),
			leases(bob, "10.0.2.16"),
			known("10.0.2.15", Bound, alice),
			told("bound 10.0.2.15", "bound 10.0.2.16"),
		}},
		{"a client that restarts has its address back", nil, []step{
			leases(alice, "10.0.2.15"), leases(bob, "10.0.2.16"),
			discovers(alice, offered("10.0.2.15")),
			reboots(alice, "10.0.2.15", acked("10.0.2.15")),
			releases(alice, "10.0.2.15", silence),
			leases(carol, "10.0.2.17"), // what alice had is remembered
			leases(alice, "10.0.2.15"),
		}},
		{"a lease runs out, is told of, and is still remembered", nil, []step{
			leases(alice, "10.0.2.15"), told("bound 10.0.2.15"),
			waits(day - time.Second), sweeps(), told(),
			waits(time.Second), sweeps(), told("expired 10.0.2.15"),
			known("10.0.2.15", Expired, alice),
			leases(bob, "10.0.2.16"),
			leases(alice, "10.0.2.15"),
		}},
		{"renewing and rebinding move the end", nil, []step{
			leases(alice, "10.0.2.15"),
			waits(day / 2),
			renews(alice, "10.0.2.15", acked("10.0.2.15"), goingTo("10.0.2.15:68", macA)),
			waits(day * 3 / 4), sweeps(), known("10.0.2.15", Bound, alice),
			told("bound 10.0.2.15", "renewed 10.0.2.15"),
		}},
		{"an unanswered offer is forgotten", nil, []step{
			discovers(alice, offered("10.0.2.15")), discovers(bob, offered("10.0.2.16")),
			waits(OfferTime), sweeps(), unknown("10.0.2.15"),
			discovers(bob, offered("10.0.2.15")),
			// and a late request is still honoured where it harms nobody
			selects(alice, "10.0.2.15", naked("another client")),
			selects(alice, "10.0.2.16", acked("10.0.2.16")),
			told("bound 10.0.2.16"),
		}},
		{"an offer of a lease that ended does not lose the memory of it", nil, []step{
			leases(alice, "10.0.2.15"), releases(alice, "10.0.2.15", silence),
			discovers(alice, offered("10.0.2.15")), waits(OfferTime), sweeps(),
			known("10.0.2.15", Expired, alice),
		}},
		{"another server was chosen", nil, []step{
			discovers(alice, offered("10.0.2.15")),
			says(alice, dhcpv4.MessageTypeRequest, asking("10.0.2.99"), server("10.0.2.77"))(silence),
			unknown("10.0.2.15"), told(),
		}},
		{"the address asked for is given if it is free", nil, []step{
			says(alice, dhcpv4.MessageTypeDiscover, asking("10.0.2.99"))(offered("10.0.2.99")),
			says(bob, dhcpv4.MessageTypeDiscover, asking("10.0.2.99"))(offered("10.0.2.15")),
			says(carol, dhcpv4.MessageTypeDiscover, asking("192.168.1.5"))(offered("10.0.2.16")),
		}},
		{"what is never leased", func(c *Config) { c.Reserved = []netip.Addr{ip("10.0.2.15"), ip("fe80::1")} }, []step{
			discovers(alice, offered("10.0.2.16")),
			says(bob, dhcpv4.MessageTypeDiscover, asking("10.0.2.2"))(offered("10.0.2.17")),
			reboots(carol, "10.0.2.0", naked("network")),
			reboots(carol, "10.0.2.2", naked("gateway")),
			reboots(carol, "10.0.2.3", naked("DNS")),
			reboots(carol, "10.0.2.15", naked("reserved")),
			reboots(carol, "10.0.2.255", naked("broadcast")),
		}},
		{"NAK for what is not ours", nil, []step{
			leases(alice, "10.0.2.15"),
			reboots(bob, "192.168.1.7", naked("not an address of this network"), goingTo("255.255.255.255:68", Broadcast), without(1, 3, 6, 51, 58, 59)),
			renews(bob, "192.168.1.7", naked("not an address of this network"), goingTo("255.255.255.255:68", Broadcast)),
			reboots(bob, "10.0.2.15", naked("another client")),
			renews(bob, "10.0.2.15", naked("another client")),
			selects(bob, "10.0.2.15", naked("another client")),
			reboots(alice, "10.0.2.99", naked("10.0.2.15")), // its notion is wrong
			known("10.0.2.15", Bound, alice), told("bound 10.0.2.15"),
		}},
		{"after a restart without a file guests keep what they have", nil, []step{
			renews(alice, "10.0.2.40", acked("10.0.2.40")),
			reboots(bob, "10.0.2.41", acked("10.0.2.41")),
			reboots(carol, "10.0.2.40", naked("another client")),
			told("bound 10.0.2.40", "bound 10.0.2.41"),
		}},
		{"but not an address that somebody else answers for", nil, []step{
			squats("x", macC, "10.0.2.40"),
			reboots(alice, "10.0.2.40", naked("in use")),
			known("10.0.2.40", Declined, who{guest: "x"}),
			discovers(alice, offered("10.0.2.15")),
		}},
		{"a guest with a fixed address and no lease is left alone", nil, []step{
			squats("x", macC, "10.0.2.15", "10.0.2.16"),
			leases(alice, "10.0.2.17"),
			leaves("10.0.2.15"), leases(bob, "10.0.2.18"),
			waits(QuarantineTime), sweeps(), unknown("10.0.2.15"),
			leases(carol.through("c"), "10.0.2.15"),
			waits(day), squats("x", macC, "10.0.2.16"), sweeps(),
			// its own address in use by itself is no clash
			leases(carol.through("c"), "10.0.2.15"),
		}},
		{"a guest that answers for everything is believed for its share only", func(c *Config) { c.PerGuest = 3 }, []step{
			squats("x", macC, "10.0.2.15", "10.0.2.16", "10.0.2.17", "10.0.2.18", "10.0.2.19"),
			leases(alice, "10.0.2.18"),
			leases(bob, "10.0.2.19"),
		}},
		{"declined addresses rest", nil, []step{
			leases(alice, "10.0.2.15"), told("bound 10.0.2.15"),
			declines(alice, "10.0.2.15", silence), told("declined 10.0.2.15"),
			leases(alice, "10.0.2.16"),
			leases(bob, "10.0.2.17"),
			reboots(carol, "10.0.2.15", naked("in use")),
			waits(QuarantineTime), leases(carol, "10.0.2.15"),
		}},
		{"declining everything declines a share", small, []step{
			leases(alice, "10.0.2.1"), declines(alice, "10.0.2.1", silence),
			leases(alice, "10.0.2.4"), declines(alice, "10.0.2.4", silence),
			leases(alice, "10.0.2.5"), declines(alice, "10.0.2.5", silence),
			leases(alice, "10.0.2.1"), declines(alice, "10.0.2.1", silence),
			leases(bob, "10.0.2.4"), leases(carol, "10.0.2.6"),
		}},
		{"only the holder may release or decline", nil, []step{
			leases(alice, "10.0.2.15"),
			releases(bob, "10.0.2.15", refused(NoBinding)),
			declines(bob, "10.0.2.15", refused(NoBinding)),
			releases(alice.through("b"), "10.0.2.15", refused(NoBinding)), // her MAC, his wire
			declines(alice.through("b"), "10.0.2.15", refused(NoBinding)),
			releases(alice, "10.0.2.99", refused(NoBinding)),
			known("10.0.2.15", Bound, alice),
		}},
		{"another guest with the same MAC has an address of its own", nil, []step{
			leases(alice, "10.0.2.15"),
			renews(alice.through("b"), "10.0.2.15", naked("another client")),
			leases(alice.through("b"), "10.0.2.16"),
			renews(alice, "10.0.2.15", acked("10.0.2.15")),
			renews(alice.through("b"), "10.0.2.16", acked("10.0.2.16")),
		}},
		{"clones with one client identifier have two addresses", nil, []step{
			leases(alice.as("\xffmachine-id"), "10.0.2.15"),
			leases(bob.as("\xffmachine-id"), "10.0.2.16"),
			detaches("a"),
			leases(carol.as("\xffmachine-id"), "10.0.2.17"), // alice is only rebooting
			leases(alice.as("\xffmachine-id").through("a2"), "10.0.2.15"),
		}},
		{"clones behind one guest too, as long as the first answers", nil, []step{
			leases(alice.as("\xffid"), "10.0.2.15"),
			squats("a", macA, "10.0.2.15"),
			leases(alice.as("\xffid").from(macB), "10.0.2.16"),
			renews(alice.as("\xffid"), "10.0.2.15", acked("10.0.2.15")),
			renews(alice.as("\xffid").from(macB), "10.0.2.16", acked("10.0.2.16")),
		}},
		{"a client identifier outlives its interface", nil, []step{
			leases(alice.as("\xffid"), "10.0.2.15"),
			leases(alice.as("\xffid").from(macB), "10.0.2.15"),
			known("10.0.2.15", Bound, alice.from(macB)),
			told("bound 10.0.2.15", "bound 10.0.2.15"),
		}},
		{"one MAC with two identifiers is two clients", nil, []step{
			leases(alice.as("\xffone"), "10.0.2.15"),
			leases(alice.as("\xfftwo"), "10.0.2.16"),
			renews(alice.as("\xffone"), "10.0.2.15", acked("10.0.2.15")),
		}},
		{"a boot ROM and the system that it boots share an address", nil, []step{
			leases(alice, "10.0.2.15"),
			leases(alice.as("\x01"+string(macA[:])), "10.0.2.15"), // udhcpc in the initramfs
			leases(alice.as("\xffduid"), "10.0.2.15"),             // systemd-networkd
			leases(alice, "10.0.2.15"),
		}},
		{"a guest that comes back through another link has its address", nil, []step{
			leases(alice, "10.0.2.15"), leases(bob, "10.0.2.16"),
			detaches("a"),
			renews(alice.through("a2"), "10.0.2.15", acked("10.0.2.15")),
			known("10.0.2.15", Bound, alice.through("a2")),
			leases(alice.through("a2"), "10.0.2.15"),
			detaches("b"), known("10.0.2.16", Bound, bob),
			leases(bob, "10.0.2.16"),
		}},
		{"a guest that is heard of has what it left behind", nil, []step{
			leases(alice.called("vm"), "10.0.2.15"), leases6(alice.called("vm"), "fd00:2::1000"), leases(bob, "10.0.2.16"),
			detaches("a"), detaches("b"), told("bound 10.0.2.15 vm", "bound fd00:2::1000 vm", "bound 10.0.2.16"),
			attaches(alice.through("a2")),
			known("10.0.2.15", Bound, alice.through("a2")), known("fd00:2::1000", Bound, alice.through("a2")), known("10.0.2.16", Bound, bob),
			attaches(alice.through("c")), // while it is there, nobody else's
			known("10.0.2.15", Bound, alice.through("a2")),
			func(l *lab) {
				l.mu.Lock()
				defer l.mu.Unlock()
				slices.Sort(l.events)
			},
			told("bound 10.0.2.15 vm", "bound fd00:2::1000 vm"),
		}},
		{"a machine that renews one family after the other through a new link keeps its name", nil, []step{
			leases(alice.called("vm"), "10.0.2.15"), leases6(alice.called("vm"), "fd00:2::1000"), detaches("a"),
			renews(alice.through("a2").called("vm"), "10.0.2.15", acked("10.0.2.15")),
			leases(alice.through("x").called("vm"), "10.0.2.16"), // a stranger with its MAC, before the second
			renews6(alice.through("a2").called("vm"), "fd00:2::1000", replied("fd00:2::1000")),
			told("bound 10.0.2.15 vm", "bound fd00:2::1000 vm", "bound 10.0.2.15 vm", "bound 10.0.2.16 vm-2", "bound fd00:2::1000 vm"),
		}},
		{"a stranger with an absent machine's MAC does not end up sharing its name", nil, []step{
			leases(alice.called("vm"), "10.0.2.15"), leases6(alice.called("vm"), "fd00:2::1000"), detaches("a"),
			leases(alice.through("x").called("vm"), "10.0.2.15"),
			discovers(alice, offered("10.0.2.16")), solicits(alice, advertised("fd00:2::1000")),
			told("bound 10.0.2.15 vm", "bound fd00:2::1000 vm", "bound 10.0.2.15 vm", "renewed fd00:2::1000 vm-2"),
		}},
		{"an address found in use behind the guest that now asks for it", nil, []step{
			squats("a", macA, "10.0.2.15"),
			leases(bob, "10.0.2.16"), known("10.0.2.15", Declined, who{guest: "a"}),
			reboots(carol, "10.0.2.15", naked("in use")),
			reboots(alice.from(macC), "10.0.2.15", naked("in use")), // not the one that answers
			reboots(alice, "10.0.2.15", acked("10.0.2.15")),
		}},
		{"offers of a guest that went are free at once", nil, []step{
			discovers(alice, offered("10.0.2.15")), detaches("a"), unknown("10.0.2.15"),
			discovers(bob, offered("10.0.2.15")),
		}},
		{"a guest over its share gives up its own oldest", small, []step{
			leases(alice, "10.0.2.1"),
			leases(alice.from(MAC{2, 0, 0, 0, 0, 1}), "10.0.2.4"),
			discovers(alice.from(MAC{2, 0, 0, 0, 0, 2}), offered("10.0.2.5")),
			told("bound 10.0.2.1", "bound 10.0.2.4", "revoked 10.0.2.1"),
			discovers(alice.from(MAC{2, 0, 0, 0, 0, 3}), offered("10.0.2.1")), // the offer goes before the lease
			known("10.0.2.4", Bound, alice.from(MAC{2, 0, 0, 0, 0, 1})),
			told(),
		}},
		{"a dry pool takes back what ended, then from who is away", small, []step{
			leases(alice, "10.0.2.1"), leases(bob, "10.0.2.4"),
			leases(carol, "10.0.2.5"), leases(carol.from(MAC{2, 0, 0, 0, 0, 1}), "10.0.2.6"),
			discovers(who{guest: "d", mac: MAC{2, 0, 0, 0, 0, 2}}, refused(PoolEmpty)),
			releases(bob, "10.0.2.4", silence),
			leases(who{guest: "d", mac: MAC{2, 0, 0, 0, 0, 2}}, "10.0.2.4"),
			detaches("a"), detaches("c"),
			leases(who{guest: "e", mac: MAC{2, 0, 0, 0, 0, 3}}, "10.0.2.5"), // carol has two, alice one
			known("10.0.2.1", Bound, alice),
			leases(alice, "10.0.2.1"),
		}},
		{"static leases", static, []step{
			leases(bob, "10.0.2.15"),
			reboots(bob.from(macC), "10.0.2.50", naked("reserved for another")),
			says(carol, dhcpv4.MessageTypeDiscover, asking("10.0.2.50"))(offered("10.0.2.16")),
			leases(alice, "10.0.2.50"),
			releases(alice, "10.0.2.50", silence), leases(alice, "10.0.2.50"),
			leases(alice.as("\xffother system"), "10.0.2.50"), // the reservation is the MAC's
		}},
		{"a client with a lease elsewhere moves to its static one", static, []step{
			renews(alice, "10.0.2.77", naked("static lease is 10.0.2.50")),
			leases(alice, "10.0.2.50"),
		}},
		{"a static address that somebody squats on does not leave the client without", static, []step{
			squats("x", macC, "10.0.2.50"),
			leases(alice, "10.0.2.15"), renews(alice, "10.0.2.15", acked("10.0.2.15")),
			leaves("10.0.2.50"), waits(QuarantineTime),
			renews(alice, "10.0.2.15", naked("static lease is 10.0.2.50")),
			discovers(alice, offered("10.0.2.50")), selects(alice, "10.0.2.50", acked("10.0.2.50")),
			unknown("10.0.2.15"),
			told("bound 10.0.2.15 web", "renewed 10.0.2.15 web", "released 10.0.2.15 web", "bound 10.0.2.50 web"),
		}},
		{"host names", nil, []step{
			leases(alice.called("Web_Server.example.org"), "10.0.2.15"),
			leases(bob.called("web-server"), "10.0.2.16"),
			leases(carol.called("WEB SERVER"), "10.0.2.17"),
			told("bound 10.0.2.15 web-server", "bound 10.0.2.16 web-server-2", "bound 10.0.2.17 web-server-3"),
			renews(alice, "10.0.2.15", acked("10.0.2.15")), // says no name, keeps its own
			releases(alice, "10.0.2.15", silence),
			renews(bob.called("web-server"), "10.0.2.16", acked("10.0.2.16")), // a name does not change while it is used
			told("renewed 10.0.2.15 web-server", "released 10.0.2.15 web-server", "renewed 10.0.2.16 web-server-2"),
			renews(bob.called("db"), "10.0.2.16", acked("10.0.2.16")), told("renewed 10.0.2.16 db"),
		}},
		{"names that are not a guest's to have", func(c *Config) {
			static(c)
			c.NoNames = []string{"Gateway", "host"}
		}, []step{
			leases(bob.called("web"), "10.0.2.15"),
			leases(carol.called("gateway"), "10.0.2.16"),
			leases(alice.called("something"), "10.0.2.50"),
			told("bound 10.0.2.15 web-2", "bound 10.0.2.16 gateway-2", "bound 10.0.2.50 web"),
		}},
		{"INFORM tells all but an address", nil, []step{
			says(alice, dhcpv4.MessageTypeInform, having("10.0.2.200"), wanting(6, 15))(
				acked("0.0.0.0"), goingTo("10.0.2.200:68", macA), with(6, 10, 0, 2, 3), text(15, "internal"), without(51, 58, 59)),
			unknown("10.0.2.200"),
			says(alice, dhcpv4.MessageTypeInform, having("8.8.8.8"))(refused(OffNetwork)),
			says(alice, dhcpv4.MessageTypeInform)(refused(OffNetwork)),
			says(alice, dhcpv4.MessageTypeInform, having("10.0.2.2"))(refused(OffNetwork)),
		}},
		{"rapid commit", nil, []step{
			says(alice, dhcpv4.MessageTypeDiscover, option(80))(acked("10.0.2.15"), with(80)),
			known("10.0.2.15", Bound, alice),
			discovers(bob, offered("10.0.2.16"), without(80)),
		}},
		{"BOOTP", nil, []step{
			says(alice, dhcpv4.MessageTypeNone)(func(l *lab) {
				l.Helper()
				if l.m4 == nil || l.m4.YourIPAddr.String() != "10.0.2.15" {
					l.Errorf("%v, %v", l.m4, l.err)
				}
			}, without(51, 53, 54, 58, 59), with(1, 255, 255, 255, 0), goingTo("10.0.2.15:68", macA)),
			known("10.0.2.15", Bound, alice),
		}},
		{"where replies go", nil, []step{
			discovers(alice, goingTo("10.0.2.15:68", macA)),
			says(alice, dhcpv4.MessageTypeDiscover, broadcasting())(goingTo("255.255.255.255:68", Broadcast)),
			selects(alice, "10.0.2.15", goingTo("10.0.2.15:68", macA)),
		}},
		{"messages that get no answer", nil, []step{
			sends(alice, nil, refused(Malformed)),
			sends(alice, make([]byte, 1501), refused(Malformed)),
			sends(alice, make([]byte, 300), refused(Malformed)),
			says(alice, dhcpv4.MessageTypeOffer)(refused(NotRequest)),
			says(alice, dhcpv4.MessageTypeDiscover, func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootReply })(refused(NotRequest)),
			says(alice, dhcpv4.MessageTypeDiscover, func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = []byte{10, 0, 2, 9} })(refused(Relayed)),
			says(alice, dhcpv4.MessageTypeDiscover, func(m *dhcpv4.DHCPv4) { m.HopCount = 1 })(refused(Relayed)),
			says(alice, dhcpv4.MessageTypeDiscover, func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = macB[:] })(refused(Forged)),
			says(alice, dhcpv4.MessageTypeDiscover, func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = m.ClientHWAddr[:5] })(refused(Malformed)),
			says(alice, dhcpv4.MessageTypeDiscover, func(m *dhcpv4.DHCPv4) { m.HWType = iana.HWTypeInfiniband })(refused(Malformed)),
			discovers(who{guest: "a", mac: Broadcast}, refused(Forged)),
			discovers(who{guest: "a"}, refused(Forged)),
			says(alice, dhcpv4.MessageTypeRequest)(refused(Malformed)),
			says(alice, dhcpv4.MessageTypeRequest, asking("0.0.0.0"))(refused(Malformed)),
			says(alice, dhcpv4.MessageTypeDiscover, option(50, 10, 0, 2))(refused(Malformed)),
			says(alice, dhcpv4.MessageTypeRequest, option(54, 1))(refused(Malformed)),
			says(alice, dhcpv4.MessageTypeNone, option(53, 1, 1))(refused(Malformed)),
			says(alice, 99)(refused(Unsupported)),
			says(alice, dhcpv4.MessageTypeDiscover, option(61, bytes.Repeat([]byte{7}, 256)...))(refused(Malformed)),
			releases(alice.as("x"), "10.0.2.15", refused(NoBinding)),
			told(),
		}},
		{"odd clients", nil, []step{
			// no end option
			sends(alice, bytes.TrimRight(msg4(alice, dhcpv4.MessageTypeDiscover).ToBytes(), "\x00\xff"), offered("10.0.2.15")),
			// no hardware address
			says(bob, dhcpv4.MessageTypeDiscover, func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = nil })(offered("10.0.2.16")),
			selects(bob, "10.0.2.16", acked("10.0.2.16")),
			// a server identifier in a renewal
			says(bob, dhcpv4.MessageTypeRequest, having("10.0.2.16"), server("10.0.2.2"))(acked("10.0.2.16")),
			// a client identifier of one byte
			discovers(bob.as("x"), offered("10.0.2.16"), with(61, 'x')),
		}},
		{"an administrator forgets a lease", nil, []step{
			leases(alice.called("x"), "10.0.2.15"), administratorReleases("10.0.2.15", true),
			administratorReleases("10.0.2.15", false), administratorReleases("fd00:2::1000", false), administratorReleases("8.8.8.8", false),
			unknown("10.0.2.15"), told("bound 10.0.2.15 x", "released 10.0.2.15 x"),
			leases(bob.called("x"), "10.0.2.15"), told("bound 10.0.2.15 x"),
		}},
	} {
		t.Run(c.name, func(t *testing.T) { play(t, c.set, c.story) })
	}
}

func TestOptions4(t *testing.T) {
	all := wanting(1, 3, 6, 12, 15, 26, 28, 51, 54, 58, 59, 119)
	l := newLab(t, func(c *Config) {
		c.MTU = 65520
		c.Static = map[MAC]Reservation{macA: {Hostname: "db"}}
	})
	says(alice, dhcpv4.MessageTypeDiscover, all)(
		offered("10.0.2.15"),
		with(1, 255, 255, 255, 0), with(3, 10, 0, 2, 2), with(6, 10, 0, 2, 3), text(12, "db"), text(15, "internal"),
		with(26, 0xff, 0xf0), with(28, 10, 0, 2, 255), with(51, 0, 1, 0x51, 0x80), with(54, 10, 0, 2, 2),
		with(58, 0, 0, 0xa8, 0xc0), with(59, 0, 1, 0x27, 0x50),
		text(119, "\x02vm\x08internal\x00\xc0\x03"),
	)(l)
	says(alice, dhcpv4.MessageTypeDiscover, wanting(1))(with(1, 255, 255, 255, 0), with(3, 10, 0, 2, 2), with(6, 10, 0, 2, 3),
		with(51, 0, 1, 0x51, 0x80), with(54, 10, 0, 2, 2), without(12, 15, 26, 28, 61, 119))(l)
	discovers(bob.as("\xffid").called("Kate's VM"), offered("10.0.2.16"), text(61, "\xffid"), without(12))(l)
	selects(bob.as("\xffid").called("Kate's VM"), "10.0.2.16", text(12, "kate-s-vm"), with(26, 0xff, 0xf0))(l)
	renews(bob.as("\xffid"), "192.168.0.1", naked("network"), text(61, "\xffid"))(l)
	// A shorter lease is granted, down to a minute; a longer one, or one for ever, is not.
	says(bob, dhcpv4.MessageTypeDiscover, option(51, 0, 0, 0, 120))(with(51, 0, 0, 0, 120), with(58, 0, 0, 0, 60), with(59, 0, 0, 0, 105))(l)
	says(bob, dhcpv4.MessageTypeDiscover, option(51, 0, 0, 0, 1))(with(51, 0, 0, 0, 60))(l)
	says(bob, dhcpv4.MessageTypeDiscover, option(51, 0xff, 0xff, 0xff, 0xff))(with(51, 0, 1, 0x51, 0x80))(l)

	l = newLab(t, func(c *Config) { c.Search, c.Domain, c.MTU, c.DNS = nil, "", 0, nil })
	says(alice, dhcpv4.MessageTypeDiscover, all)(offered("10.0.2.15"), without(6, 12, 15, 26, 119))(l)
	l = newLab(t, func(c *Config) { c.Search = nil })
	says(alice, dhcpv4.MessageTypeDiscover, all)(text(119, "\x08internal\x00"))(l)
}

func TestLargeReplyFitsTheClient(t *testing.T) {
	l := newLab(t, func(c *Config) {
		c.Search = nil
		for _, a := range "abcdefghij" {
			c.Search = append(c.Search, strings.Repeat(string(a), 60)+".example")
		}
	})
	all := wanting(1, 3, 6, 15, 26, 28, 119)
	says(alice, dhcpv4.MessageTypeDiscover, all)(offered("10.0.2.15"), without(119), with(28, 10, 0, 2, 255), func(l *lab) {
		if n := len(l.reply.Payload); n > 548 {
			l.Errorf("%d bytes for a client that takes 548", n)
		}
	})(l)
	says(alice, dhcpv4.MessageTypeDiscover, all, option(57, 5, 0xdc))(offered("10.0.2.15"), func(l *lab) {
		// longer than 255 bytes: RFC 3396 has it cut in pieces and the reader put them together
		got, err := rfc1035label.FromBytes(l.m4.Options[119])
		if err != nil || !slices.Equal(got.Labels, l.s.labels) {
			l.Errorf("search list %v, %v", got, err)
		}
	})(l)
}

func TestCompressedSearchList(t *testing.T) {
	for _, c := range [][]string{
		nil, {"a"}, {"a.b", "b", "c.a.b", "A.B"}, {"x.example.com", "example.com", "y.x.example.com", "org"},
	} {
		b := compressNames(c)
		if c == nil {
			if len(b) != 0 {
				t.Errorf("% x of nothing", b)
			}
			continue
		}
		got, err := unpack(b)
		if err != nil || !slices.EqualFunc(got, c, strings.EqualFold) {
			t.Errorf("%q becomes %q, %v", c, got, err)
		}
	}
	if b := compressNames([]string{"a.b", "c.a.b"}); string(b) != "\x01a\x01b\x00\x01c\xc0\x00" {
		t.Errorf("% x", b)
	}
}

// unpack reads compressed names as RFC 1035 section 4.1.4 says, pointers to pointers included.
func unpack(b []byte) ([]string, error) {
	var names []string
	for i := 0; i < len(b); {
		var labels []string
		jumped := false
		for j := i; ; {
			n := int(b[j])
			switch {
			case n == 0:
				if !jumped {
					i = j + 1
				}
				names = append(names, strings.Join(labels, "."))
			case n >= 0xc0:
				if !jumped {
					i = j + 2
				}
				jumped = true
				j = n&0x3f<<8 | int(b[j+1])
				continue
			default:
				labels = append(labels, string(b[j+1:j+1+n]))
				j += 1 + n
				continue
			}
			break
		}
	}
	return names, nil
}

func TestFQDNOption(t *testing.T) {
	for _, c := range []struct {
		name string
		opt  []byte
		want string
	}{
		{"wire form", []byte("\x05\x00\x00\x03Web\x07example\x00"), "web"},
		{"wire form cut short", []byte("\x04\x00\x00\x03web"), "web"},
		{"ASCII, as Windows has it", []byte("\x00\x00\x00Web.example"), "web"},
		{"empty: option 12 counts", []byte("\x04\x00\x00\x00"), "twelve"},
		{"a label longer than the option", []byte("\x04\x00\x00\x3fx"), "twelve"},
		{"no name at all", []byte("\x00\x00"), "twelve"},
	} {
		l := newLab(t)
		m := []mod{asking("10.0.2.15"), option(81, c.opt...)}
		says(alice.called("twelve"), dhcpv4.MessageTypeRequest, m...)(acked("10.0.2.15"))(l)
		if le, _ := l.s.Lookup(ip("10.0.2.15")); le.Name != c.want {
			t.Errorf("%s: %q, want %q", c.name, le.Name, c.want)
		}
	}
}

func TestPoolWrapsAndEnds(t *testing.T) {
	l := newLab(t, func(c *Config) { c.First, c.PerGuest = ip("10.0.2.250"), 1 })
	var got []string
	for i := range 300 {
		w := who{guest: "g" + string(rune(i)), mac: MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}}
		l.hear4(w, msg4(w, dhcpv4.MessageTypeDiscover).ToBytes())
		if l.m4 == nil {
			refused(PoolEmpty)(l)
			continue
		}
		got = append(got, l.m4.YourIPAddr.String())
		selects(w, l.m4.YourIPAddr.String(), acked(l.m4.YourIPAddr.String()))(l)
	}
	l.consistent()
	if len(got) != 252 || got[0] != "10.0.2.250" || got[4] != "10.0.2.254" || got[5] != "10.0.2.1" || got[6] != "10.0.2.4" || got[251] != "10.0.2.249" {
		t.Errorf("%d addresses: %v", len(got), got)
	}
}

func TestManyAddressesInUse(t *testing.T) {
	l := newLab(t)
	var taken []string
	for i := range 2 * maxProbes {
		taken = append(taken, netip.AddrFrom4([4]byte{10, 0, 2, byte(15 + i)}).String())
	}
	squats("x", macC, taken...)(l)
	discovers(alice, refused(PoolEmpty))(l)
	if l.probes != maxProbes {
		t.Errorf("%d probes for one message, want %d", l.probes, maxProbes)
	}
	discovers(alice, refused(PoolEmpty))(l) // each message goes on from where the last stopped
	discovers(alice, offered("10.0.2.31"))(l)
	l.consistent()
}

func TestProbeCutShort(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	l := newLab(t, func(c *Config) {
		c.InUse = func(ctx context.Context, _ netip.Addr, _ string, _ MAC) (string, bool) { cancel(); return "", true }
	})
	r, err := l.s.Handle4(ctx, "a", macA, msg4(alice, dhcpv4.MessageTypeDiscover).ToBytes())
	if r != nil || err == nil || ctx.Err() == nil {
		t.Fatalf("%v, %v", r, err)
	}
	if le, _ := l.s.Lookup(ip("10.0.2.15")); le.State != Offered { // not taken for in use
		t.Errorf("%+v", le)
	}
	l.consistent()
}

func TestConfig(t *testing.T) {
	set := func(f func(*Config)) Config { c := qemu(); f(&c); return c }
	for _, c := range []struct {
		want string
		cfg  Config
	}{
		{"neither", Config{}},
		{"gateway 10.0.3.2 is not in", set(func(c *Config) { c.Gateway = ip("10.0.3.2") })},
		{"gateway invalid IP is not in", set(func(c *Config) { c.Gateway = netip.Addr{} })},
		{"from /8 to /30", set(func(c *Config) { c.Prefix = netip.MustParsePrefix("10.0.2.0/31") })},
		{"from /8 to /30", set(func(c *Config) { c.Prefix = netip.MustParsePrefix("fd00::/64") })},
		{"first leased address", set(func(c *Config) { c.First = ip("10.0.2.255") })},
		{"first leased address", set(func(c *Config) { c.First = ip("fd00::1") })},
		{"from /16 to /120", set(func(c *Config) { c.Prefix6 = netip.MustParsePrefix("10.0.0.0/24") })},
		{"set the pool", set(func(c *Config) { c.Prefix6 = netip.MustParsePrefix("fd00:2::/120") })},
		{"pool fd01::/112 is not in", set(func(c *Config) { c.Pool6 = netip.MustParsePrefix("fd01::/112") })},
		{"gateway fd01::1", set(func(c *Config) { c.Gateway6 = ip("fd01::1") })},
		{"MTU", set(func(c *Config) { c.MTU = 67 })},
		{"lease time", set(func(c *Config) { c.LeaseTime = time.Second })},
		{"a guest", set(func(c *Config) { c.PerGuest = -1 })},
		{"domain", set(func(c *Config) { c.Domain = "a..b" })},
		{"domain", set(func(c *Config) { c.Search = []string{"bücher.example"} })},
		{"domain", set(func(c *Config) { c.Search = []string{strings.Repeat("a", 64)} })},
		{"DNS server", set(func(c *Config) { c.DNS = []netip.Addr{ip("fd00::1")} })},
		{"DNS server", set(func(c *Config) { c.DNS6 = []netip.Addr{ip("10.0.2.3")} })},
		{"is the gateway's", set(func(c *Config) { c.Static = map[MAC]Reservation{macA: {Addr: ip("10.0.2.2")}} })},
		{"is not in", set(func(c *Config) { c.Static = map[MAC]Reservation{macA: {Addr: ip("10.0.3.9")}} })},
		{"is set for", set(func(c *Config) {
			c.Static = map[MAC]Reservation{macA: {Addr6: ip("fd00:2::9")}, macB: {Addr6: ip("fd00:2::9")}}
		})},
		{"one interface's MAC", set(func(c *Config) { c.Static = map[MAC]Reservation{Broadcast: {Addr: ip("10.0.2.9")}} })},
		{"host name", set(func(c *Config) { c.Static = map[MAC]Reservation{macA: {Hostname: "A_B"}} })},
		{"set for both", set(func(c *Config) { c.Static = map[MAC]Reservation{macA: {Hostname: "a"}, macB: {Hostname: "a"}} })},
		{"no address of", set(func(c *Config) {
			c.Prefix, c.Gateway, c.DNS = netip.MustParsePrefix("10.0.2.0/30"), ip("10.0.2.1"), []netip.Addr{ip("10.0.2.2")}
		})},
	} {
		if _, err := New(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	// One family alone, and the other refused.
	s, err := New(Config{Prefix: netip.MustParsePrefix("192.168.127.0/24"), Gateway: ip("192.168.127.1")})
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{T: t, s: s}
	discovers(alice, offered("192.168.127.15"))(l)
	l.hear6(alice, nil, refused(Disabled))
	if s, err = New(Config{Prefix6: netip.MustParsePrefix("fd00::/64")}); err != nil {
		t.Fatal(err)
	}
	l = &lab{T: t, s: s}
	discovers(alice, refused(Disabled))(l)
	solicits(alice, advertised("fd00::1000"))(l)
	// A share of a small pool is a quarter.
	if s, err = New(Config{Prefix: netip.MustParsePrefix("10.0.2.0/27"), Gateway: ip("10.0.2.2")}); err != nil || s.v4.perGuest != 7 {
		t.Errorf("%v, %v", s, err)
	}
}

func TestMAC(t *testing.T) {
	var m MAC
	for _, s := range []string{"52:54:00:00:00:0a", "52-54-00-00-00-0A", "5254.0000.000a"} {
		if err := m.UnmarshalText([]byte(s)); err != nil || m != macA {
			t.Errorf("%s: %v, %v", s, m, err)
		}
	}
	for _, s := range []string{"", "x", "52:54:00:00:00", "52:54:00:00:00:0a:0b:0c", strings.Repeat("0", 1000)} {
		if err := m.UnmarshalText([]byte(s)); err == nil || len(err.Error()) > 100 {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestLabel(t *testing.T) {
	for in, want := range map[string]string{
		"debian": "debian", "Debian_12": "debian-12", "web.example.org": "web", "--a--": "a", "": "", "...": "", "日本": "",
		"a\x00b": "a", "$(reboot)": "reboot", "a b\tc": "a-b-c", "ü-x": "x", strings.Repeat("x", 70): strings.Repeat("x", 63),
		strings.Repeat("x", 62) + "-y": strings.Repeat("x", 62), "UPPER": "upper", "1": "1",
	} {
		if got := Label(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
		if Label(want) != want {
			t.Errorf("%q is not its own label", want)
		}
	}
}
