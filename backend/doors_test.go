package backend_test

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/flows"
)

func TestDoorsAreClosedToGuests(t *testing.T) {
	allow := policyFunc(func(flows.Query) flows.Verdict { return flows.Verdict{Allow: true} })
	n, err := backend.New(backend.Config{
		Logger: slog.New(slog.DiscardHandler),
		Policy: allow, // not even a policy that allows everything opens them
		Doors:  []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:7001"), netip.MustParseAddrPort("[::]:7002")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	c := n.Config()
	for _, x := range []struct {
		dst    netip.AddrPort
		closed bool
	}{
		{netip.AddrPortFrom(c.Gateway4, 7001), true},
		{netip.AddrPortFrom(c.Gateway6, 7001), false}, // the door is IPv4's
		{netip.AddrPortFrom(c.Gateway4, 7002), true},  // a wildcard's are all of this host's
		{netip.AddrPortFrom(c.Gateway6, 7002), true},
		{netip.AddrPortFrom(c.Gateway4, 7003), false},
		{netip.MustParseAddrPort("203.0.113.1:7002"), false}, // another host's
	} {
		v := n.Flows().Judge(flows.Query{Guest: "g1", Proto: flows.TCP, Src: netip.MustParseAddrPort("10.0.2.15:40000"), Dst: x.dst})
		if v.Allow == x.closed || x.closed && (v.Reason != flows.ReasonDoor || !v.Reject) {
			t.Errorf("guest to %v: %+v, want closed %v", x.dst, v, x.closed)
		}
	}
}

type policyFunc func(flows.Query) flows.Verdict

func (f policyFunc) Judge(q flows.Query) flows.Verdict { return f(q) }
