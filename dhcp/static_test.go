package dhcp

import (
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

func setsStatic(static map[MAC]Reservation, wrong string) step {
	return func(l *lab) {
		l.Helper()
		err := l.s.SetStatic(static)
		if (err == nil) != (wrong == "") || err != nil && !strings.Contains(err.Error(), wrong) {
			l.Errorf("static leases: %v, want %q", err, wrong)
		}
	}
}

// Static leases that are changed while leases run hold when those are renewed.
func TestSetStatic(t *testing.T) {
	play(t, nil, []step{
		leases(alice, "10.0.2.15"),
		leases(bob, "10.0.2.16"),
		setsStatic(map[MAC]Reservation{macA: {Addr: ip("10.0.2.50")}, macC: {Addr: ip("10.0.2.16"), Addr6: ip("fd00:2::50")}}, ""),
		known("10.0.2.15", Bound, alice), // nobody is cut off
		unknown("10.0.2.16"),
		func(l *lab) { renewsNAK(l, alice, "10.0.2.15") },
		leases(alice, "10.0.2.50"),
		func(l *lab) { renewsNAK(l, bob, "10.0.2.16") },
		leases(bob, "10.0.2.15"),
		leases(carol, "10.0.2.16"),
		// All or none.
		setsStatic(map[MAC]Reservation{macA: {Addr: ip("10.0.2.60")}, macB: {Addr: ip("10.9.0.1")}}, "10.9.0.1 is not in 10.0.2.0/24"),
		setsStatic(map[MAC]Reservation{macA: {Addr: ip("10.0.2.60")}, macB: {Addr6: ip("fd00:2::2")}}, "fd00:2::2 is"),
		setsStatic(map[MAC]Reservation{macA: {Addr: ip("10.0.2.60")}, macB: {Addr: ip("10.0.2.60")}}, "is set for"),
		setsStatic(map[MAC]Reservation{macA: {Hostname: "web"}}, "cannot be changed"),
		leases(alice, "10.0.2.50"),
		// Without any, who has one keeps what it has.
		setsStatic(nil, ""),
		leases(alice, "10.0.2.50"),
		leases(carol, "10.0.2.16"),
	})
}

func renewsNAK(l *lab, w who, addr string) {
	l.Helper()
	m := msg4(w, dhcpv4.MessageTypeRequest)
	m.ClientIPAddr = ip(addr).AsSlice()
	l.hear4(w, m.ToBytes())
	if l.m4 == nil || l.m4.MessageType() != dhcpv4.MessageTypeNak {
		l.Errorf("renewal of %s: %v, want a NAK", addr, l.m4)
	}
}
