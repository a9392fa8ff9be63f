//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend/control"
)

// router is what "guest ra" prints.
type router struct {
	From     string
	Router   int `json:"router_lifetime"`
	MTU      int
	Prefixes []struct {
		Prefix             netip.Prefix
		OnLink, Autonomous bool
	}
	RDNSS []netip.Addr
	DNSSL []string
	Error string
}

func (g *guest) router(t *testing.T) (r router) {
	t.Helper()
	g.json(t, &r, "guest ra eth0")
	if r.Error != "" {
		t.Fatalf("router advertisement: %s", r.Error)
	}
	return r
}

// testConfiguration: what the network tells a guest about itself, in all the ways that it does.
func testConfiguration(t *testing.T, b *bench) {
	n := b.status(t).Networks[0]
	lease := b.g.lease(t)
	mtu := b.g.row.mtu
	if mtu == "" {
		mtu = "65520"
	}
	for k, want := range map[string]string{
		"mask": "24", "router": "10.0.2.2", "dns": "10.0.2.3", "mtu": mtu, "domain": "internal", "search": "internal",
		"broadcast": "10.0.2.255",
	} {
		if lease[k] != want && !(k == "search" && strings.TrimSuffix(lease[k], ".") == want) {
			t.Errorf("lease: %s is %q, want %q", k, lease[k], want)
		}
	}
	if b.g.addr4 != netip.MustParseAddr("10.0.2.15") && b.g.addr4 != netip.MustParseAddr("10.0.2.16") {
		t.Errorf("leased %s, want one of the first two", b.g.addr4)
	}
	r := b.g.router(t)
	if r.Router == 0 || r.MTU != 0 && fmt.Sprint(r.MTU) != mtu || // 0: the guest has not yet shown by a SYN what it takes
		!slices.Contains(r.RDNSS, n.DNS6) || !slices.Contains(r.DNSSL, "internal.") {
		t.Errorf("router advertisement: %+v", r)
	}
	if len(r.Prefixes) != 1 || r.Prefixes[0].Prefix != n.Prefix6 || !r.Prefixes[0].Autonomous {
		t.Errorf("prefixes %v, want %s", r.Prefixes, n.Prefix6)
	}
	wait(t, "IPv6 default route", func() error {
		if out := b.g.run(t, "ip -6 route show default"); !strings.Contains(out, "via fe80:") {
			return errors.New(out)
		}
		return nil
	})
	var d6 struct {
		Type, Error string
		DNS         []netip.Addr
		Search      []string
		Addresses   []struct{ Address netip.Addr }
	}
	b.g.json(t, &d6, "guest dhcp6 -info eth0")
	if d6.Error != "" || !slices.Contains(d6.DNS, n.DNS6) || len(d6.Search) == 0 || len(d6.Addresses) != 0 {
		t.Errorf("DHCPv6 information: %+v", d6)
	}
	b.g.json(t, &d6, "guest dhcp6 eth0")
	if d6.Error != "" || len(d6.Addresses) != 1 || !n.Prefix6.Contains(d6.Addresses[0].Address) {
		t.Errorf("DHCPv6 address: %+v", d6)
	}

	leases := ask[[]control.Lease](t, b.daemon, "leases", "ls")
	i := slices.IndexFunc(leases, func(l control.Lease) bool { return l.Addr == b.g.addr4 })
	if i < 0 || leases[i].MAC != b.g.mac.String() || leases[i].Name != "alpha" {
		t.Errorf("leases ls: %+v, want %s for %s by the name alpha", leases, b.g.addr4, b.g.mac)
	}
	info, ok := b.g.info(t)
	if !ok || info.Name != "alpha" || !slices.Contains(info.Addrs, b.g.addr4) || !slices.Contains(info.Addrs, b.g.addr6) {
		t.Errorf("vm ls: %+v, %v, want alpha with %s and %s", info, ok, b.g.addr4, b.g.addr6)
	}
}

// TestNetworkFlags: each thing that guests are told can be set.
func TestNetworkFlags(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	row := kernelUnix
	d := l.serve(t, "--net", "172.20.5.0/24", "--gateway", "172.20.5.1", "--dns-addr", "172.20.5.1", "--first", "172.20.5.100",
		"--net6", "fd12:3456:789a::/64", "--gateway6", "fd12:3456:789a::1", "--dns-addr6", "fd12:3456:789a::1",
		"--mtu", "65520", "--domain", "lab.test", "--search", "corp.test", "--static", "52:54:00:00:00:77=172.20.5.77")
	g := row.boot(t, d, attach{unix: d.unix}, "alpha")
	if g.addr4 != netip.MustParseAddr("172.20.5.100") || !netip.MustParsePrefix("fd12:3456:789a::/64").Contains(g.addr6) {
		t.Errorf("addresses %s and %s", g.addr4, g.addr6)
	}
	lease := g.lease(t)
	if lease["router"] != "172.20.5.1" || lease["dns"] != "172.20.5.1" || lease["mtu"] != "65520" || lease["domain"] != "lab.test" ||
		!strings.Contains(lease["search"], "corp.test") {
		t.Errorf("lease %v", lease)
	}
	if out := g.run(t, "cat /sys/class/net/eth0/mtu"); strings.TrimSpace(out) != "65520" {
		t.Errorf("the card's MTU is %s", out)
	}
	if r := g.router(t); r.MTU != 65520 || !slices.Contains(r.RDNSS, netip.MustParseAddr("fd12:3456:789a::1")) || !slices.Contains(r.DNSSL, "corp.test.") {
		t.Errorf("router advertisement %+v", r)
	}
	// Large packets work, both ways and in both families.
	b := &bench{lab: l, daemon: d, gateway: d.gateway(t), g: g}
	for _, a := range []string{world4, world6} {
		b.bytes(t, a, l.world, 10_000_000)
	}
	if got := g.query(t, "alpha.lab.test"); len(got.Answer) != 1 || !strings.HasSuffix(got.Answer[0], g.addr4.String()) {
		t.Errorf("alpha.lab.test: %+v", got)
	}
	// The card that has an address of its own.
	k := &guest{name: "fixed", mac: []byte{0x52, 0x54, 0, 0, 0, 0x77}, row: row, d: d}
	kg := startKernelGuest(t, k.name, k.mac)
	k.Guest = kg
	kg.plug(t, l, attach{unix: d.unix})
	k.run(t, "%s", dhcpUp(k.name))
	k.configured(t)
	if k.addr4 != netip.MustParseAddr("172.20.5.77") {
		t.Errorf("static lease: %s, want 172.20.5.77", k.addr4)
	}
}

// TestIPv6Route: guests have an IPv6 default route exactly while the host has one.
func TestIPv6Route(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	l.host.ip(t, "route del default via 2001:db8::1")
	d := l.serve(t)
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	state := func(want bool) func() error {
		return func() error {
			if got := d.status(t).Networks[0].Router6; got != want {
				return fmt.Errorf("status says router %v", got)
			}
			if r := g.router(t); (r.Router > 0) != want {
				return fmt.Errorf("router lifetime %d", r.Router)
			}
			if out := g.run(t, "ip -6 route show default"); strings.Contains(out, "via") != want {
				return fmt.Errorf("the guest's default route: %q", out)
			}
			return nil
		}
	}
	wait(t, "no default route", state(false))
	if !g.addr6.IsValid() {
		t.Error("no address")
	}
	b := &bench{lab: l, daemon: d, gateway: d.gateway(t), g: g}
	b.bytes(t, b.gw6.String(), l.host, 100_000) // the host itself is there all the same
	l.host.ip(t, "route add default via 2001:db8::1")
	wait(t, "a default route", state(true))
	b.bytes(t, world6, l.world, 100_000)
	l.host.ip(t, "route del default via 2001:db8::1")
	wait(t, "no default route again", state(false))
}
