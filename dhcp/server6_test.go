package dhcp

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

func TestStories6(t *testing.T) {
	const (
		solicit = dhcpv6.MessageTypeSolicit
		inform  = dhcpv6.MessageTypeInformationRequest
		oro     = dhcpv6.OptionORO
	)
	dns := raw6Bytes("fd00:2::3")
	static := func(c *Config) {
		c.Static = map[MAC]Reservation{macA: {Addr: ip("10.0.2.50"), Addr6: ip("fd00:2::50"), Hostname: "web"}}
	}
	for _, c := range []struct {
		name  string
		set   func(*Config)
		story []step
	}{
		{"addresses, one after another", nil, []step{
			leases6(alice, "fd00:2::1000"), leases6(bob, "fd00:2::1001"),
			known("fd00:2::1000", Bound, alice),
			told("bound fd00:2::1000", "bound fd00:2::1001"),
		}},
		{"advertise: preference, lifetimes, servers", nil, []step{
			says6(alice, solicit, association(7), raw6(oro, 0, 23, 0, 24))(advertised("fd00:2::1000"),
				carrying(dhcpv6.OptionPreference, 255), carrying(dhcpv6.OptionDNSRecursiveNameServer, dns...),
				carrying(dhcpv6.OptionDomainSearchList, []byte("\x02vm\x08internal\x00\x08internal\x00")...),
				lacking(dhcpv6.OptionRapidCommit),
				func(l *lab) {
					l.Helper()
					ia := l.m6.Options.OneIANA()
					a := ia.Options.OneAddress()
					if ia.IaId != [4]byte{0, 0, 0, 7} || ia.T1 != day/2 || ia.T2 != day/10*8 || a.ValidLifetime != day || a.PreferredLifetime != day {
						l.Error(ia)
					}
				}),
			says6(alice, solicit, association(7), raw6(oro, 0, 23))(lacking(dhcpv6.OptionDomainSearchList)),
			known("fd00:2::1000", Offered, alice), told(),
		}},
		{"rapid commit", nil, []step{
			says6(alice, solicit, association(0), raw6(dhcpv6.OptionRapidCommit))(replied("fd00:2::1000"), carrying(dhcpv6.OptionRapidCommit), lacking(dhcpv6.OptionPreference)),
			known("fd00:2::1000", Bound, alice),
		}},
		{"stateless", nil, []step{
			says6(alice, inform, raw6(oro, 0, 23, 0, 32))(carrying(dhcpv6.OptionDNSRecursiveNameServer, dns...),
				carrying(dhcpv6.OptionInformationRefreshTime, 0, 1, 0x51, 0x80), lacking(dhcpv6.OptionDomainSearchList, dhcpv6.OptionIANA)),
			func(l *lab) { // a client without an identifier
				l.Helper()
				l.hear6(alice, []byte{byte(inform), 1, 2, 3}, carrying(dhcpv6.OptionDNSRecursiveNameServer, dns...), lacking(dhcpv6.OptionClientID))
			},
			told(), unknown("fd00:2::1000"),
		}},
		{"a client that restarts has its address back", nil, []step{
			leases6(alice, "fd00:2::1000"), leases6(bob, "fd00:2::1001"),
			leases6(alice, "fd00:2::1000"),
			releases6(alice, "fd00:2::1000", overall(iana.StatusSuccess)), known("fd00:2::1000", Released, alice),
			leases6(carol, "fd00:2::1002"), leases6(alice, "fd00:2::1000"),
			detaches("a"), leases6(alice.through("a2"), "fd00:2::1000"),
		}},
		{"renew, rebind, expiry", nil, []step{
			leases6(alice, "fd00:2::1000"), waits(day / 2), renews6(alice, "fd00:2::1000", replied("fd00:2::1000")),
			waits(day * 3 / 4), rebinds6(alice, "fd00:2::1000", replied("fd00:2::1000")),
			told("bound fd00:2::1000", "renewed fd00:2::1000", "renewed fd00:2::1000"),
			waits(day), sweeps(), told("expired fd00:2::1000"),
			renews6(alice, "fd00:2::1000", replied("fd00:2::1000")), told("bound fd00:2::1000"),
		}},
		{"after a restart without a file guests keep what they have", nil, []step{
			renews6(alice, "fd00:2::1234", replied("fd00:2::1234")),
			rebinds6(bob, "fd00:2::1235", replied("fd00:2::1235")),
			requests6(carol, "fd00:2::1236", replied("fd00:2::1236")),
		}},
		{"but not what is not theirs to have", nil, []step{
			leases6(alice, "fd00:2::1000"),
			renews6(bob, "fd00:2::1000", status(iana.StatusNoBinding)),
			rebinds6(bob, "fd00:2::1000", status(iana.StatusNoBinding)),
			rebinds6(bob, "fd00:2::2", status(iana.StatusNoBinding)),     // the gateway's
			rebinds6(bob, "fd00:2::99:99", status(iana.StatusNoBinding)), // not of the pool
			renews6(bob, "2001:db8::1", status(iana.StatusNoBinding)),    // of another network
			requests6(bob, "2001:db8::1", status(iana.StatusNotOnLink)),  // section 18.3.2
			requests6(bob, "fd00:2::1000", replied("fd00:2::1001")),      // another instead
			renews6(bob.iface(9), "::", status(iana.StatusNoBinding)),    // an association that has none
			renews6(bob, "fd00:2::1000", replied("fd00:2::1001"), func(l *lab) {
				l.Helper()
				had := l.m6.Options.OneIANA().Options.Addresses()
				if len(had) != 2 || had[1].IPv6Addr.String() != "fd00:2::1000" || had[1].ValidLifetime != 0 {
					l.Errorf("%v, want the wrong address back with a lifetime of zero", had)
				}
			}),
			known("fd00:2::1000", Bound, alice),
		}},
		{"confirm", nil, []step{
			says6(alice, dhcpv6.MessageTypeConfirm, association(0, "fd00:2::1000"))(overall(iana.StatusSuccess)),
			says6(alice, dhcpv6.MessageTypeConfirm, association(0, "fd00:2::1000", "2001:db8::1"))(overall(iana.StatusNotOnLink)),
			says6(alice, dhcpv6.MessageTypeConfirm, association(0))(refused(Malformed)),
			told(),
		}},
		{"declined addresses rest", nil, []step{
			leases6(alice, "fd00:2::1000"), declines6(alice, "fd00:2::1000", overall(iana.StatusSuccess)),
			leases6(alice, "fd00:2::1001"), leases6(bob, "fd00:2::1002"),
			rebinds6(carol, "fd00:2::1000", status(iana.StatusNoBinding)),
			waits(QuarantineTime), leases6(carol, "fd00:2::1000"),
			told("bound fd00:2::1000", "declined fd00:2::1000", "bound fd00:2::1001", "bound fd00:2::1002", "bound fd00:2::1000"),
		}},
		{"only the holder may release or decline", nil, []step{
			leases6(alice, "fd00:2::1000"),
			releases6(bob, "fd00:2::1000", status(iana.StatusNoBinding), overall(iana.StatusSuccess)),
			declines6(alice.through("b"), "fd00:2::1000", status(iana.StatusNoBinding)),
			known("fd00:2::1000", Bound, alice),
		}},
		{"clones with one DUID have two addresses", nil, []step{
			leases6(alice.as("clone"), "fd00:2::1000"), leases6(bob.as("clone"), "fd00:2::1001"),
			renews6(alice.as("clone"), "fd00:2::1000", replied("fd00:2::1000")),
		}},
		{"two interfaces of one client", nil, []step{
			says6(alice, solicit, association(1), association(2), raw6(dhcpv6.OptionRapidCommit))(func(l *lab) {
				l.Helper()
				var got []string
				for _, ia := range l.m6.Options.IANA() {
					got = append(got, ia.Options.OneAddress().IPv6Addr.String())
				}
				if !slices.Equal(got, []string{"fd00:2::1000", "fd00:2::1001"}) {
					l.Error(got)
				}
			}),
		}},
		{"more associations than a client has interfaces", nil, []step{
			says6(alice, solicit, many(maxIA+1)...)(func(l *lab) {
				l.Helper()
				ias := l.m6.Options.IANA()
				last := ias[len(ias)-1]
				if len(ias) != maxIA+1 || ias[maxIA-1].Options.OneAddress() == nil || last.Options.Status() == nil || last.Options.Status().StatusCode != iana.StatusNoAddrsAvail {
					l.Error(l.m6.Summary())
				}
			}),
			says6(alice, solicit, many(maxAsked+1)...)(refused(Malformed)),
		}},
		{"an address in use is not leased", nil, []step{
			squats("x", macC, "fd00:2::1000", "fd00:2::1001"), leases6(alice, "fd00:2::1002"),
			squats("x", macC, "fd00:2::1100"), rebinds6(bob, "fd00:2::1100", status(iana.StatusNoBinding)),
		}},
		{"no address is left", func(c *Config) { c.Pool6, c.PerGuest = netip.MustParsePrefix("fd00:2::1000/127"), 1 }, []step{
			leases6(alice, "fd00:2::1000"), leases6(bob, "fd00:2::1001"),
			solicits(carol, status(iana.StatusNoAddrsAvail), carrying(dhcpv6.OptionDNSRecursiveNameServer, dns...)),
			requests6(carol, "fd00:2::1000", status(iana.StatusNoAddrsAvail)),
			detaches("a"), leases6(carol, "fd00:2::1000"),
		}},
		{"static leases and names of both families", static, []step{
			leases6(bob.called("web"), "fd00:2::1000"),
			leases(alice, "10.0.2.50"), leases6(alice, "fd00:2::50"),
			requests6(carol, "fd00:2::50", replied("fd00:2::1001")),
			told("bound fd00:2::1000 web-2", "bound 10.0.2.50 web", "bound fd00:2::50 web", "bound fd00:2::1001"),
			leases6(alice.as("another system"), "fd00:2::50"),            // the reservation is the MAC's
			leases6(alice.as("another system").iface(1), "fd00:2::1002"), // not that of its second interface
			renews6(alice.as("another system"), "fd00:2::50", replied("fd00:2::50")),
		}},
		{"one name for both families of one machine", nil, []step{
			leases(alice.called("vm"), "10.0.2.15"), leases6(bob.called("vm"), "fd00:2::1000"),
			leases6(alice.called("VM"), "fd00:2::1001"), leases(bob.called("vm"), "10.0.2.16"),
			told("bound 10.0.2.15 vm", "bound fd00:2::1000 vm-2", "bound fd00:2::1001 vm", "bound 10.0.2.16 vm-2"),
			func(l *lab) {
				l.Helper()
				if got := l.s.ByName("VM"); len(got) != 2 || got[0].Addr != ip("10.0.2.15") || got[1].Addr != ip("fd00:2::1001") {
					l.Error(got)
				}
				if len(l.s.ByMAC(macB)) != 2 || len(l.s.ByGuest("a")) != 2 || len(l.s.ByName("")) != 0 || len(l.s.Leases()) != 4 {
					l.Error(l.s.Leases())
				}
			},
		}},
		{"prefixes and temporary addresses are said not to be had", nil, []step{
			says6(alice, solicit, raw6(dhcpv6.OptionIAPD, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0), raw6(dhcpv6.OptionIATA, 0, 0, 0, 2))(func(l *lab) {
				l.Helper()
				pd, ta := l.m6.Options.OneIAPD(), l.m6.Options.OneIATA()
				if pd == nil || pd.Options.Status().StatusCode != iana.StatusNoPrefixAvail || ta == nil || ta.Options.Status().StatusCode != iana.StatusNoAddrsAvail {
					l.Error(l.m6.Summary())
				}
			}),
		}},
		{"messages that get no answer", nil, []step{
			raw(nil, Malformed), raw([]byte{1, 2, 3}, Malformed), raw(make([]byte, 1501), Malformed),
			raw([]byte{12, 0, 0, 0}, Relayed), raw([]byte{13, 0, 0, 0}, Relayed),
			raw([]byte{2, 0, 0, 0}, NotRequest), raw([]byte{7, 0, 0, 0}, NotRequest), raw([]byte{10, 0, 0, 0}, NotRequest),
			raw([]byte{0, 0, 0, 0}, Unsupported), raw([]byte{99, 0, 0, 0}, Unsupported),
			raw([]byte{1, 0, 0, 0}, Malformed),                // no client identifier
			raw([]byte{1, 0, 0, 0, 0, 1, 0, 9, 1}, Malformed), // an option cut short
			says6(alice, solicit, raw6(dhcpv6.OptionServerID, 0, 4, 1))(refused(Malformed)),
			func(l *lab) {
				l.Helper()
				l.hear6(alice, msg6(alice, dhcpv6.MessageTypeRequest, association(0)).ToBytes(), refused(Malformed))
				l.hear6(alice, msg6(alice, dhcpv6.MessageTypeRenew, raw6(dhcpv6.OptionServerID, 0, 3, 0, 1, 1, 2, 3, 4, 5, 6)).ToBytes(), refused(NotRequest))
			},
			says6(alice, inform, association(0))(refused(Malformed)),
			solicits(alice.as(strings.Repeat("x", maxDUID)), refused(Malformed)),
			solicits(alice.from(Broadcast), refused(Forged)),
			told(),
		}},
	} {
		t.Run(c.name, func(t *testing.T) { play(t, c.set, c.story) })
	}
}

func raw(b []byte, r Reason) step {
	return func(l *lab) { l.Helper(); l.hear6(alice, b, refused(r)) }
}

func many(n int) []mod6 {
	var ms []mod6
	for i := range n {
		ms = append(ms, association(byte(i)))
	}
	return ms
}

func raw6Bytes(s string) []byte { return ip(s).AsSlice() }

func TestSource6(t *testing.T) {
	l := newLab(t)
	b := msg6(alice, dhcpv6.MessageTypeSolicit, association(0)).ToBytes()
	for src, ok := range map[string]bool{
		"fe80::1": true, "fe80::1%eth0": true, "fd00:2::77": true,
		"::": false, "2001:db8::1": false, "ff02::1": false, "10.0.2.15": false, "::ffff:10.0.2.15": false, "fd00:2::2": false,
	} {
		r, err := l.s.Handle6(context.Background(), "a", macA, ip(src), b)
		var e *Error
		if ok != (r != nil) || !ok && (!errors.As(err, &e) || e.Reason != Forged) {
			t.Errorf("from %s: %v, %v", src, r, err)
		}
		if r != nil && r.Dst.Addr() != ip(src).WithZone("") {
			t.Errorf("from %s to %v", src, r.Dst)
		}
	}
}

// A server identifier that changed with a restart would have clients' renewals refused.
func TestServerIdentifierIsStable(t *testing.T) {
	one, two := newLab(t), newLab(t)
	other := newLab(t, func(c *Config) { c.Gateway6 = ip("fd00:2::1") })
	if string(one.s.duid) != string(two.s.duid) || string(one.s.duid) == string(other.s.duid) || len(one.s.duid) != 18 {
		t.Errorf("% x, % x, % x", one.s.duid, two.s.duid, other.s.duid)
	}
}

// Names that point to one another, where a client may put them: 1400 bytes must not become 90 MB.
func TestNameBomb(t *testing.T) {
	var v []byte
	for len(v) < 700 {
		v = append(v, 1, 'a')
	}
	v = append(v, 0)
	for len(v) < 1400 {
		v = append(v, 0xc0, 0)
	}
	nested := append([]byte{0, 24, byte(len(v) >> 8), byte(len(v))}, v...)
	for name, o := range map[string]mod6{
		"search list": raw6(dhcpv6.OptionDomainSearchList, v...),
		"FQDN":        raw6(dhcpv6.OptionFQDN, append([]byte{0}, v...)...),
		"in IA_NA":    raw6(dhcpv6.OptionIANA, append(make([]byte, 12), nested...)...),
		"in address":  raw6(dhcpv6.OptionIANA, append(append(make([]byte, 12), 0, 5, byte((24+len(nested))>>8), byte(24+len(nested))), append(make([]byte, 24), nested...)...)...),
		"in IA_TA":    raw6(dhcpv6.OptionIATA, append(make([]byte, 4), nested...)...),
		"in IA_PD":    raw6(dhcpv6.OptionIAPD, append(make([]byte, 12), nested...)...),
		"in a relay":  raw6(dhcpv6.OptionRelayMsg, append([]byte{1, 0, 0, 0}, nested...)...),
	} {
		l := newLab(t)
		b := msg6(alice, dhcpv6.MessageTypeSolicit, o).ToBytes()
		n := testing.AllocsPerRun(5, func() { l.hear6(alice, b) })
		if l.m6 == nil {
			t.Errorf("%s: %v", name, l.err)
		}
		if n > 500 { // about 100; the names alone would be 245,000
			t.Errorf("%s: %v allocations for one message", name, n)
		}
	}
}

func BenchmarkHandle(b *testing.B) {
	s, err := New(qemu())
	if err != nil {
		b.Fatal(err)
	}
	m4, m6 := msg4(alice, 1, option(80)).ToBytes(), msg6(alice, dhcpv6.MessageTypeSolicit, association(0), raw6(dhcpv6.OptionRapidCommit)).ToBytes()
	b.Run("4", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = s.Handle4(context.Background(), "a", macA, m4)
		}
	})
	b.Run("6", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = s.Handle6(context.Background(), "a", macA, linkLocal(macA), m6)
		}
	})
}
