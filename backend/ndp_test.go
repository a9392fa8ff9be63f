package backend_test

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
)

func TestRouterAdvertisement(t *testing.T) {
	for _, tt := range []struct {
		name     string
		noRoute  bool
		config   backend.Config
		lifetime time.Duration
		mtu      uint32
		search   []string
	}{
		{name: "default", lifetime: 1800 * time.Second, mtu: 1500, search: []string{"internal"}},
		{name: "the host has no IPv6 route", noRoute: true, lifetime: 0, mtu: 1500, search: []string{"internal"}},
		{name: "large MTU, more domains", config: backend.Config{MTU: 65520, Domain: "lab.test", Search: []string{"example.org"}}, lifetime: 1800 * time.Second, mtu: 65520, search: []string{"lab.test", "example.org"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &Egress{}
			e.NoRoute6.Store(tt.noRoute)
			tt.config.Egress = e
			n := start(t, tt.config)
			g := Plug(t, n, Config{})
			a, err := g.Solicit(patience(t))
			if err != nil {
				t.Fatal(err)
			}
			want := &Advertisement{
				Router: LinkLocal(gatewayMAC), RouterMAC: gatewayMAC, HopLimit: 64, Other: true, Lifetime: tt.lifetime, MTU: tt.mtu,
				Prefix: prefix6, OnLink: true, Autonomous: true, ValidLifetime: 30 * 24 * time.Hour, Preferred: 7 * 24 * time.Hour,
				DNS: []netip.Addr{dns6}, DNSLifetime: 1800 * time.Second, Search: tt.search, SearchLifetime: 1800 * time.Second,
			}
			if !reflect.DeepEqual(a, want) {
				t.Errorf("advertised\n%+v, want\n%+v", a, want)
			}
			if n.Status().Router6 == tt.noRoute {
				t.Errorf("status says router %v", n.Status().Router6)
			}
		})
	}
}

// When the host's IPv6 route comes, all guests are told without having asked; and when it goes.
func TestRouterAdvertisementFollowsTheRoute(t *testing.T) {
	t.Parallel() // it waits for the route to be looked at, twice
	e := &Egress{}
	e.NoRoute6.Store(true)
	n := start(t, backend.Config{Egress: e})
	g := Plug(t, n, Config{Gateway4: gateway4})
	g.Sync(t)
	w := g.Watch(IsRA(), To(ip("ff02::1")))
	for _, routed := range []bool{true, false} {
		e.NoRoute6.Store(!routed)
		a, err := ParseRA(w.Expect(t))
		if err != nil {
			t.Fatal(err)
		}
		if (a.Lifetime > 0) != routed {
			t.Errorf("host has a route: %v; advertised lifetime %v", routed, a.Lifetime)
		}
	}
}

// A guest that comes back over a new wire has no reason to ask, and is told.
func TestAdvertisedAsItIsPluggedIn(t *testing.T) {
	n := start(t, backend.Config{})
	near, far := link.Pipe(PipeDepth)
	t.Cleanup(func() { near.Close() })
	serve(t, n, far, "quiet")
	var b link.Batch
	if err := near.ReadFrames(&b); err != nil {
		t.Fatal(err)
	}
	f := b.AppendTo(nil, b.Frames[0])
	if len(f) < 55 || f[54] != 134 { // behind Ethernet and IPv6: ICMPv6's type (RFC 4861 §4.2)
		t.Errorf("the first frame is % x", f)
	}
}

// A solicitation from the unspecified address is answered to all nodes (RFC 4861 §6.2.6).
func TestSolicitationWithoutAnAddress(t *testing.T) {
	n := start(t, backend.Config{})
	g := Plug(t, n, Config{Gateway4: gateway4})
	g.Sync(t) // the advertisement that each guest gets as it is plugged in has come
	w := g.Watch(IsRA(), To(ip("ff02::1")), Good())
	all := ip("ff02::2")
	g.Send(Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: MulticastMAC(all)}, IPv6{Src: netip.IPv6Unspecified(), Dst: all}}, RouterSolicit(nil)...)...))
	w.Expect(t)
	// What did not come from the link is not answered.
	r := g.Watch(IsRA())
	g.Send(Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: MulticastMAC(all)}, IPv6{Src: g.LinkLocal(), Dst: all, HopLimit: 254}}, RouterSolicit(g.MAC())...)...))
	r.None(t)
}
