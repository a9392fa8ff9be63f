//go:build linux

package e2e

import (
	"testing"
)

// bench is what a scenario of the matrix works on: a guest on a network in the lab. A second guest is there where one
// wire does not end the daemon's doors.
type bench struct {
	*lab
	*daemon
	gateway
	g, other *guest
}

// scenarios run one after another on each row's guest. Each leaves the guest as it found it. What is behind the wire is
// the same for all rows, so brief ones have only those that say something of the wire.
var scenarios = []struct {
	name string
	run  func(*testing.T, *bench)
	wire bool
}{
	{"Configuration", testConfiguration, true},
	{"Ping", testPing, true},
	{"LocalNames", testLocalNames, true},
	{"UpstreamNames", testUpstreamNames, false},
	{"TCPBytes", testTCPBytes, true},
	{"TCPEnds", testTCPEnds, false},
	{"TCPUnreachable", testTCPUnreachable, false},
	{"TCPParallel", testTCPParallel, true},
	{"UDP", testUDP, true},
	{"UDPUnreachable", testUDPUnreachable, false},
	{"UDPMapping", testUDPMapping, false},
	{"HostLoopback", testHostLoopback, false},
	{"ClosedAddresses", testClosedAddresses, false},
	{"Forwards", testForwards, true},
	{"ForwardSyntax", testForwardSyntax, false},
	{"ForwardEnds", testForwardEnds, false},
	{"ForwardSource", testForwardSource, false},
	{"OtherGuest", testOtherGuest, true},
}

func TestMatrix(t *testing.T) {
	for _, row := range transports {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.need(t)
			l := newLab(t)
			d, at := row.serve(t, l)
			b := &bench{lab: l, daemon: d, gateway: d.gateway(t)}
			if !row.single {
				b.other = row.launch(t, d, at, "bravo")
				if !row.boots { // who comes first has the first address
					b.other.configured(t)
				}
			}
			b.g = row.boot(t, d, at, "alpha")
			if b.other != nil {
				b.other.configured(t)
			}
			for _, s := range scenarios {
				if row.brief && !s.wire {
					continue
				}
				t.Run(s.name, func(t *testing.T) { s.run(t, b) })
			}
		})
	}
}
