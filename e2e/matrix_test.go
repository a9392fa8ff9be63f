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

// scenarios run one after another on each row's guest. Each leaves the guest as it found it.
var scenarios = []struct {
	name string
	run  func(*testing.T, *bench)
}{
	{"Configuration", testConfiguration},
	{"Ping", testPing},
	{"LocalNames", testLocalNames},
	{"UpstreamNames", testUpstreamNames},
	{"TCPBytes", testTCPBytes},
	{"TCPEnds", testTCPEnds},
	{"TCPUnreachable", testTCPUnreachable},
	{"TCPParallel", testTCPParallel},
	{"UDP", testUDP},
	{"UDPUnreachable", testUDPUnreachable},
	{"UDPMapping", testUDPMapping},
	{"HostLoopback", testHostLoopback},
	{"ClosedAddresses", testClosedAddresses},
	{"Forwards", testForwards},
	{"ForwardSyntax", testForwardSyntax},
	{"ForwardEnds", testForwardEnds},
	{"ForwardSource", testForwardSource},
	{"OtherGuest", testOtherGuest},
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
				t.Run(s.name, func(t *testing.T) { s.run(t, b) })
			}
		})
	}
}
