//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/e2e/traffic"
)

// of is the daemon as one of its networks.
func (d *daemon) of(network string) *daemon {
	one := *d
	one.network = network
	return &one
}

// TestTwoNetworks: one daemon, two networks with the same prefix, and a third whose guests are kept from one another.
// Guests with the same address do not know of one another; each network has its own names and forwards.
//
//	default  alpha 10.0.2.15              bravo has alpha's address, charlie has one that nobody has there
//	lab      bravo 10.0.2.15, charlie 10.0.2.16
//	closed   delta 10.9.0.15, echo 10.9.0.16
func TestTwoNetworks(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	wire := map[string]string{"default": l.path("q.sock"), "lab": l.path("lab.sock"), "closed": l.path("closed.sock")}
	d := l.serve(t, "-p", "127.0.0.1:0:7", "--network", "lab,net=10.0.2.0/24,forward=127.0.0.1:0:7,no-host-loopback",
		"--network", "closed,net=10.9.0.0/24,isolate,route="+world4,
		"--qemu", "unix:"+wire["lab"]+",network=lab", "--qemu", "unix:"+wire["closed"]+",network=closed")
	plug := func(network, name string) *guest {
		t.Helper()
		return kernelUnix.boot(t, d.of(network), attach{unix: wire[network]}, name)
	}
	alpha, bravo, charlie := plug("default", "alpha"), plug("lab", "bravo"), plug("lab", "charlie")
	first, second := netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr("10.0.2.16")
	if alpha.addr4 != first || bravo.addr4 != first || charlie.addr4 != second {
		t.Fatalf("leased %s, %s and %s", alpha.addr4, bravo.addr4, charlie.addr4)
	}

	// Each reaches the world, from the same address.
	for _, g := range []*guest{alpha, bravo} {
		b := &bench{lab: l, daemon: g.d, gateway: g.d.gateway(t), g: g}
		b.bytes(t, world4, l.world, 1_000_000)
		b.bytes(t, world6, l.world, 1_000_000)
	}
	// Neighbours are those of the own network.
	reaches := func(g *guest, to string, want bool) {
		t.Helper()
		out, errs, code, err := g.try(t, "ping -c 1 -W 2 %s", to)
		if err != nil {
			t.Fatal(err)
		}
		if (code == 0) != want {
			t.Errorf("%s pings %s: %v, want %v: %s%s", g.name, to, code == 0, want, out, errs)
		}
	}
	reaches(bravo, second.String(), true)
	reaches(bravo, "charlie.internal", true)
	reaches(bravo, charlie.addr6.String(), true)
	reaches(alpha, second.String(), false)
	reaches(alpha, charlie.addr6.String(), false)
	for g, name := range map[*guest]string{alpha: "bravo.internal", bravo: "alpha.internal"} {
		if out, _, code, _ := g.try(t, "nslookup %s", name); code == 0 {
			t.Errorf("%s knows %s: %s", g.name, name, out)
		}
	}
	// Forwards end where they belong.
	for g, say := range map[*guest]string{alpha: "I am alpha", bravo: "I am bravo"} {
		g.listen(t, "guest listen echo :7")
		f := ask[[]control.Forward](t, g.d, "forward", "ls")
		if len(f) != 1 {
			t.Fatalf("%s: %d forwards, want 1", g.d.network, len(f))
		}
		before := g.info4(t)
		got, err := l.host.talk(t, "tcp", at(f[0]), []byte(say))
		if err != nil || !bytes.Equal(got, []byte(say)) {
			t.Errorf("forward to %s: %q, %v", g.name, got, err)
		}
		if after := g.info4(t); after.RxFrames == before.RxFrames {
			t.Errorf("%s sent nothing: who answered?", g.name)
		}
	}
	// One network's options are not the other's.
	port := l.host.serve(t, "tcp", "127.0.0.1:0", traffic.Echo).Port()
	for g, want := range map[*guest]bool{alpha: true, bravo: false} {
		out, _, _, err := g.try(t, "guest tcp -timeout 5s -send 10 10.0.2.2:%d", port)
		var r traffic.Report
		if err := errors.Join(err, json.Unmarshal([]byte(out), &r)); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if (r.End == "eof") != want {
			t.Errorf("%s reaches the host's loopback: %q, want %v", g.name, r.End, want)
		}
	}

	// Isolated guests have the gateway and the world, and not one another.
	delta, echo := plug("closed", "delta"), plug("closed", "echo")
	reaches(delta, "10.9.0.2", true)
	reaches(delta, delta.d.gateway(t).gw6.String(), true)
	reaches(delta, echo.addr4.String(), false)
	reaches(delta, echo.addr6.String(), false)
	b := &bench{lab: l, daemon: delta.d, gateway: delta.d.gateway(t), g: delta}
	b.bytes(t, world4, l.world, 1_000_000)
	elsewhere := l.world.serve(t, "tcp", second4+":0", traffic.Echo)
	var r traffic.Report
	delta.json(t, &r, "guest tcp -timeout 5s -send 10 %s", elsewhere.Addr())
	if i, _ := delta.info(t); r.End == "eof" || i.Dropped["outside-routes"] == 0 {
		t.Errorf("outside the network's routes: %q, dropped %v", r.End, i.Dropped)
	}
	if i, _ := delta.info(t); i.Dropped["isolated"] == 0 {
		t.Errorf("what went to the neighbour is not counted: %v", i.Dropped)
	}

	// The command line shows all, and guesses nothing.
	if out := d.must(t, "vm", "ls"); strings.Count(out, "\nnetwork ")+strings.Count(out[:8], "network ") != 3 {
		t.Errorf("vm ls does not name the networks: %s", out)
	}
	type named struct {
		Network string
		backend.GuestInfo
	}
	count := map[string]int{}
	for _, g := range ask[[]named](t, d, "vm", "ls") {
		count[g.Network]++
	}
	if count["default"] != 1 || count["lab"] != 2 || count["closed"] != 2 {
		t.Errorf("guests by network: %v", count)
	}
	if _, errs, code := d.cli("vm", "kick", "bravo"); code != 1 || !strings.Contains(errs, "which network?") || !strings.Contains(errs, "default, lab, closed") {
		t.Errorf("kick without a network: exit status %d, %s", code, errs)
	}
	d.of("lab").must(t, "vm", "kick", "bravo")
}

// info4 is info for a guest that must be there.
func (g *guest) info4(t *testing.T) backend.GuestInfo {
	t.Helper()
	i, ok := g.info(t)
	if !ok {
		t.Fatalf("%s is not on network %s", g.name, g.d.network)
	}
	return i
}

// TestStrictLeases: a kernel that takes what address it likes, and one that asks.
//
//	alpha  has its lease
//	bravo  root in its machine, an attacker on the network
func TestStrictLeases(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	d := l.serve(t, "--strict-leases")
	gw := d.gateway(t)
	leased := func(name string) *guest {
		t.Helper()
		g := kernelUnix.launch(t, d, attach{unix: d.unix}, name)
		wait(t, name+" has a lease", func() (err error) {
			g.addr4, err = netip.ParseAddr(g.lease(t)["ip"])
			return err
		})
		return g
	}
	alpha, bravo := leased("alpha"), leased("bravo")
	pings := func(g *guest, args string, want bool) {
		t.Helper()
		if out, errs, code, err := g.try(t, "ping -c 1 -W 2 %s", args); err != nil || (code == 0) != want {
			t.Errorf("%s: ping %s: exit status %d, %v, want success %v: %s%s", g.name, args, code, err, want, out, errs)
		}
	}
	spoofed := func(g *guest) uint64 { return g.info4(t).Dropped["spoofed"] }
	pings(alpha, gw.gw4.String(), true)
	pings(alpha, bravo.addr4.String(), true)

	// IPv6 addresses come from DHCPv6; no kernel has made any.
	for _, g := range []*guest{alpha, bravo} {
		if a := g.slaac(t, d.status(t).Networks[0].Prefix6); a.IsValid() {
			t.Errorf("%s has made itself %s", g.name, a)
		}
	}
	p := d.status(t).Networks[0].Prefix6.Addr().String() // "fd00:…::"
	before := spoofed(bravo)
	bravo.run(t, "ip addr add %s7777/64 dev eth0", p)
	pings(bravo, "-I "+p+"7777 "+gw.gw6.String(), false)
	if spoofed(bravo) == before {
		t.Error("an IPv6 address of its own making is not counted")
	}
	bravo.run(t, "ip addr del %s7777/64 dev eth0", p)

	// An address that nobody has, and the neighbour's.
	for _, a := range []string{"10.0.2.77", alpha.addr4.String()} {
		before := spoofed(bravo)
		bravo.run(t, "ip addr add %s/32 dev eth0", a)
		pings(bravo, "-I "+a+" "+gw.gw4.String(), false)
		if spoofed(bravo) == before {
			t.Errorf("%s as %s is not counted", bravo.name, a)
		}
		bravo.run(t, "ip addr del %s/32 dev eth0", a)
	}
	// Its MAC, too: the attacker is cut off, not the one whose it is.
	bravo.run(t, "ip link set eth0 down; ip link set eth0 address %s; ip link set eth0 up", alpha.mac)
	bravo.run(t, "ip addr show dev eth0 | grep -q 'inet %s/' || ip addr add %s/24 dev eth0", bravo.addr4, bravo.addr4)
	pings(bravo, gw.gw4.String(), false)
	pings(alpha, gw.gw4.String(), true)
	b := &bench{lab: l, daemon: d, gateway: gw, g: alpha}
	b.bytes(t, world4, l.world, 1_000_000)
	// And back: what it was leased is still its own.
	bravo.run(t, "ip link set eth0 down; ip link set eth0 address %s; ip link set eth0 up", bravo.mac)
	bravo.run(t, "ip addr show dev eth0 | grep -q 'inet %s/' || ip addr add %s/24 dev eth0", bravo.addr4, bravo.addr4)
	pings(bravo, gw.gw4.String(), true)
}
