//go:build linux

package e2e

import (
	"net"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/e2e/traffic"
)

// ends tries a TCP conversation and returns its end.
func (g *guest) ends(t *testing.T, to string) traffic.Report {
	t.Helper()
	var r traffic.Report
	g.json(t, &r, "guest tcp -timeout 3s -send 100 %s", to)
	return r
}

// testHostLoopback: what listens on the host's loopback is reached by the gateway's address, in its own family, and
// by no other.
func testHostLoopback(t *testing.T, b *bench) {
	for _, a := range []string{b.gw4.String(), b.gw6.String()} {
		s := b.lab.host.serve(t, "tcp", net.JoinHostPort(loopback(a), "0"), traffic.Sink)
		if r := b.g.ends(t, target(a, s.Addr())); r.End != "eof" {
			t.Errorf("the host's loopback by %s: %q (%s)", a, r.End, r.Error)
		}
		if got := report(t, s); got.Received != 100 || !strings.HasPrefix(got.Remote, strings.TrimSuffix(net.JoinHostPort(loopback(a), ""), ":")) {
			t.Errorf("the server on the loopback saw %+v", got)
		}
		if dns := map[bool]string{true: b.dns4.String(), false: b.dns6.String()}[a == b.gw4.String()]; b.g.ends(t, target(dns, s.Addr())).End == "eof" {
			t.Errorf("the host's loopback is reached by the DNS server's address %s", dns)
		}
		// The host's own address in its network leads to what listens there, not to the loopback.
		own := map[bool]string{true: host4, false: host6}[a == b.gw4.String()]
		if r := b.g.ends(t, target(own, s.Addr())); r.End != "refused" {
			t.Errorf("the loopback's server by the host's address %s: %q, want refused", own, r.End)
		}
		out := b.lab.host.serve(t, "tcp", net.JoinHostPort(own, "0"), traffic.Sink)
		if r := b.g.ends(t, out.Addr().String()); r.End != "eof" {
			t.Errorf("the host at %s: %q (%s)", own, r.End, r.Error)
		}
	}
}

// testClosedAddresses: there is no way round to the loopback, to link-local addresses, or to the control socket.
func testClosedAddresses(t *testing.T, b *bench) {
	s4 := b.lab.host.serve(t, "tcp", "127.0.0.1:0", traffic.Sink)
	s6 := b.lab.host.serve(t, "tcp", "[::1]:0", traffic.Sink)
	b.lab.host.ip(t, "addr add 169.254.169.254/32 dev lo")
	defer b.lab.host.ip(t, "addr del 169.254.169.254/32 dev lo")
	metadata := b.lab.host.serve(t, "tcp", "169.254.169.254:80", traffic.Sink)
	for _, to := range []string{
		"169.254.169.254:80",
		target("64:ff9b::a9fe:a9fe", metadata.Addr()), // NAT64's form of it
		target("2002:a9fe:a9fe::1", metadata.Addr()),  // 6to4's
		target("0.0.0.1", s4.Addr()),
		target("255.255.255.255", s4.Addr()),
		target("10.0.2.255", s4.Addr()),
	} {
		if r := b.g.ends(t, to); r.End == "eof" {
			t.Errorf("%s can be reached", to)
		}
	}
	for _, s := range []*traffic.Server{s4, s6, metadata} {
		select {
		case r := <-s.Done:
			t.Errorf("a conversation came through: %+v", r)
		default:
		}
	}
}

// TestLoopbackFlags: --no-host-loopback closes the one way, --open-link-local opens the other.
func TestLoopbackFlags(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	l.host.ip(t, "addr add 169.254.169.254/32 dev lo")
	metadata := l.host.serve(t, "tcp", "169.254.169.254:80", traffic.Sink)
	neighbour := l.world
	neighbour.ip(t, "addr add 169.254.7.7/16 dev peer0")
	l.host.ip(t, "addr add 169.254.7.8/16 dev uplink")
	other := neighbour.serve(t, "tcp", "169.254.7.7:80", traffic.Sink)
	d := l.serve(t, "--no-host-loopback", "--open-link-local", "169.254.169.254/32")
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	gw := d.gateway(t)
	for _, a := range []string{gw.gw4.String(), gw.gw6.String()} {
		s := l.host.serve(t, "tcp", net.JoinHostPort(loopback(a), "0"), traffic.Sink)
		if r := g.ends(t, target(a, s.Addr())); r.End != "refused" && r.End != "prohibited" {
			t.Errorf("with --no-host-loopback, %s: %q, want refused", a, r.End)
		}
		echo := l.host.echoUDP(t, net.JoinHostPort(loopback(a), "0"))
		var u datagrams
		g.json(t, &u, "guest udp -wait 500ms %s", target(a, echo))
		if u.Answered != 0 {
			t.Errorf("with --no-host-loopback, UDP by %s: %+v", a, u)
		}
		g.run(t, "ping -c 1 -W 5 %s", a) // the gateway itself is still there
	}
	b := &bench{lab: l, daemon: d, gateway: gw, g: g}
	b.bytes(t, world4, l.world, 100_000)
	if a := g.query(t, "www.example"); !a.has(world4) {
		t.Errorf("DNS with --no-host-loopback: %+v", a)
	}
	if r := g.ends(t, metadata.Addr().String()); r.End != "eof" {
		t.Errorf("with --open-link-local, %s: %q (%s)", metadata.Addr(), r.End, r.Error)
	}
	if r := g.ends(t, other.Addr().String()); r.End == "eof" {
		t.Errorf("%s is open, and only 169.254.169.254 was opened", other.Addr())
	}
	if n := d.status(t).Networks[0].Refused["host-loopback"]; n == 0 {
		t.Error("status counts no host-loopback")
	}
}
