//go:build linux

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/e2e/traffic"
)

// loopback is the address behind the gateway's, of the same family.
func loopback(a string) string {
	if netip.MustParseAddr(a).Is4() {
		return "127.0.0.1"
	}
	return "::1"
}

// behind is where a server for address a listens in n: the host is reached by the gateway's address.
func (b *bench) behind(n *netns, a string) string {
	if n == b.lab.host {
		a = loopback(a)
	}
	return net.JoinHostPort(a, "0")
}

// target is how the guest writes a server's address.
func target(a string, at net.Addr) string {
	_, port, _ := net.SplitHostPort(at.String())
	return net.JoinHostPort(a, port)
}

// report waits for a server's next conversation to end.
func report(t *testing.T, s *traffic.Server) traffic.Report {
	t.Helper()
	select {
	case r := <-s.Done:
		return r
	case <-time.After(patience):
		t.Fatal("the server's conversation does not end")
		return traffic.Report{}
	}
}

// bytes sends n bytes up and n down between the guest and address a in ns, and checks every one by hash.
func (b *bench) bytes(t *testing.T, a string, ns *netns, n int64) {
	t.Helper()
	began := time.Now()
	sink := ns.serve(t, "tcp", b.behind(ns, a), traffic.Sink)
	var r traffic.Report
	b.g.json(t, &r, "guest tcp -timeout 60s -send %d -seed 7 %s", n, target(a, sink.Addr()))
	if got := report(t, sink); r.End != "eof" || got.Received != n || got.ReceivedHash != traffic.Hash(7, n) {
		t.Errorf("up to %s: %d of %d bytes arrived, hash right: %v, end %q for the guest (%s)", a, got.Received, n, got.ReceivedHash == traffic.Hash(7, n), r.End, r.Error)
	}
	up := time.Since(began)
	source := ns.serve(t, "tcp", b.behind(ns, a), traffic.Source(8, n))
	r = traffic.Report{}
	b.g.json(t, &r, "guest tcp -timeout 60s %s", target(a, source.Addr()))
	if r.End != "eof" || r.Received != n || r.ReceivedHash != traffic.Hash(8, n) {
		t.Errorf("down from %s: %d of %d bytes arrived, hash right: %v, end %q (%s)", a, r.Received, n, r.ReceivedHash == traffic.Hash(8, n), r.End, r.Error)
	}
	t.Logf("%d bytes to %s in %v, back in %v", n, a, up.Round(time.Millisecond), (time.Since(began) - up).Round(time.Millisecond))
}

func testTCPBytes(t *testing.T, b *bench) {
	b.bytes(t, world4, b.world, b.g.row.bytes)
	n := b.g.row.bytes / 10
	b.bytes(t, world6, b.world, n)
	b.bytes(t, b.gw4.String(), b.lab.host, n)
	b.bytes(t, b.gw6.String(), b.lab.host, n)
	// Both ways at once.
	echo := b.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Echo)
	var r traffic.Report
	b.g.json(t, &r, "guest tcp -timeout 60s -send %d -seed 9 %s", n, echo.Addr())
	if r.End != "eof" || r.Sent != n || r.ReceivedHash != traffic.Hash(9, n) {
		t.Errorf("echo: %+v", r)
	}
}

// testTCPEnds: every way to end a conversation arrives as what it was.
func testTCPEnds(t *testing.T, b *bench) {
	for _, a := range []string{world4, world6, b.gw4.String(), b.gw6.String()} {
		ns := b.world
		if a == b.gw4.String() || a == b.gw6.String() {
			ns = b.lab.host
		}
		for _, tt := range []struct {
			name    string
			server  traffic.Handler
			flags   string
			theirs  string // how it ends for the server
			guests  string // and for the guest
			arrives int64  // bytes at the guest, -1 for any
		}{
			// The guest ends its half, and what comes after that still arrives.
			{"half-close by the guest", traffic.Sink, "-send 5000", "eof", "eof", -1},
			// The server ends its half, and the guest still sends.
			{"half-close by the server", traffic.Source(1, 5000), "-send 70000", "eof", "eof", 5000},
			{"reset by the server", traffic.Reset(1000), "-send 1000 -close none", "eof", "reset", 0},
			{"reset by the guest", traffic.Hold, "-send 1000 -close reset", "reset", "eof", -1},
			{"close by the guest", traffic.Hold, "-send 1000 -close full", "eof", "eof", -1},
		} {
			s := ns.serve(t, "tcp", b.behind(ns, a), tt.server)
			var r traffic.Report
			b.g.json(t, &r, "guest tcp %s %s", tt.flags, target(a, s.Addr()))
			got := report(t, s)
			if got.End != tt.theirs || r.End != tt.guests || tt.arrives >= 0 && r.Received != tt.arrives {
				t.Errorf("%s, %s: ends %q for the server (want %q), %q for the guest (want %q), %d bytes at the guest (want %d)",
					a, tt.name, got.End, tt.theirs, r.End, tt.guests, r.Received, tt.arrives)
			}
			s.Close()
		}
	}
}

// testTCPUnreachable: what cannot be reached says so at once and rightly, or stays silent without harm to others.
func testTCPUnreachable(t *testing.T, b *bench) {
	for _, tt := range []struct {
		to   string
		ends []string
	}{
		{net.JoinHostPort(world4, "9"), []string{"refused"}},
		{net.JoinHostPort(world6, "9"), []string{"refused"}},
		{net.JoinHostPort(b.gw4.String(), "9"), []string{"refused"}},
		{net.JoinHostPort(b.gw6.String(), "9"), []string{"refused"}},
		{net.JoinHostPort(noRoute4, "9"), []string{"host-unreachable", "net-unreachable"}},
		{net.JoinHostPort(noRoute6, "9"), []string{"host-unreachable", "net-unreachable"}},
	} {
		var r traffic.Report
		b.g.json(t, &r, "guest tcp -timeout 10s %s", tt.to)
		if !strings.Contains(strings.Join(tt.ends, " "), r.End) || r.Seconds > 3 {
			t.Errorf("%s: %q after %.1f s (%s), want %v at once", tt.to, r.End, r.Seconds, r.Error, tt.ends)
		}
	}
	// Conversations that wait for a black hole delay nobody.
	echo := b.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Echo)
	var waiting []*job
	for _, a := range []string{silent4, silent6} {
		for i := range 5 {
			waiting = append(waiting, b.g.begin(t, "guest tcp -timeout 60s %s", net.JoinHostPort(a, strconv.Itoa(1000+i))))
		}
	}
	wait(t, "ten dials wait", func() error {
		if list := b.flows(t, "--guest", b.g.mac.String(), "--proto", "tcp", "--state", "dialing"); len(list) < 10 {
			return fmt.Errorf("%d of them", len(list))
		}
		return nil
	})
	var r traffic.Report
	b.g.json(t, &r, "guest tcp -send 1000 %s", echo.Addr())
	if r.End != "eof" || r.Received != 1000 || r.Seconds > 2 {
		t.Errorf("beside a black hole: %+v", r)
	}
	for _, j := range waiting {
		j.Kill()
	}
}

// testTCPParallel: many conversations at once, each with its own bytes.
func testTCPParallel(t *testing.T, b *bench) {
	n := b.g.row.parallel
	s := b.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Sink)
	began := time.Now()
	b.g.run(t, "for i in $(seq %d); do guest tcp -timeout 60s -send 20000 -seed $i %s >/tmp/p$i & done; wait", n, s.Addr())
	seen := map[string]bool{}
	for range n {
		r := report(t, s)
		if r.Received != 20000 {
			t.Errorf("%d bytes of 20,000 arrived: %+v", r.Received, r)
		}
		seen[r.ReceivedHash] = true
	}
	for i := range n {
		if !seen[traffic.Hash(uint64(i+1), 20000)] {
			t.Errorf("conversation %d did not arrive as it was sent", i+1)
		}
	}
	if out := b.g.run(t, `grep -l '"end":"eof"' /tmp/p* | wc -l; rm -f /tmp/p*`); strings.TrimSpace(out) != strconv.Itoa(n) {
		t.Errorf("%s of %d ended well in the guest", strings.TrimSpace(out), n)
	}
	t.Logf("%d at once in %v", n, time.Since(began).Round(time.Millisecond))
	wait(t, "the table forgets them", func() error {
		if list := b.flows(t, "--guest", b.g.mac.String(), "--proto", "tcp"); len(list) > 20 {
			return fmt.Errorf("%d are left", len(list))
		}
		return nil
	})
}
