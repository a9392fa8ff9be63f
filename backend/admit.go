package backend

// Station 7, admission: the one door. Every conversation, whoever began it, is opened here and nowhere else; only
// then is an address that stands for the host translated.

import (
	"net"
	"net/netip"
	"slices"

	"github.com/vmnetd/vmnetd/flows"
)

// admit lets a conversation in, or says why not. end is called if the table ends it (flows.Table.Open).
func (n *Network) admit(p *port, q flows.Query, end func(flows.Reason)) (*flows.Flow, flows.Verdict) {
	if q.Dir == flows.Out {
		if to := n.translate(q.Dst); to != q.Dst {
			q.Host = to
		}
	}
	f, v := n.flows.Open(q, end)
	if f == nil {
		p.drops[v.Reason].Add(1)
	}
	return f, v
}

// closedDoors keeps guests from what is not theirs to reach whatever the policy says: where others plug in, since a
// guest that dialled there would be a second guest, past its own limits; and what is outside the network's routes. What
// the program itself listens on is no socket of the host's: a policy that nobody chose has no say there.
type closedDoors struct {
	flows.Policy
	n         *Network
	isDefault bool
}

// Judge implements flows.Policy.
func (c closedDoors) Judge(q flows.Query) flows.Verdict {
	if v, said := c.first(q); said {
		return v
	}
	return c.Policy.Judge(q)
}

// JudgeRunning implements flows.RunningPolicy.
func (c closedDoors) JudgeRunning(q flows.Query, was flows.Verdict) flows.Verdict {
	if v, said := c.first(q); said {
		return v
	}
	if p, ok := c.Policy.(flows.RunningPolicy); ok {
		return p.JudgeRunning(q, was)
	}
	return c.Policy.Judge(q)
}

// first is what is said before the policy is asked.
func (c closedDoors) first(q flows.Query) (v flows.Verdict, said bool) {
	if q.Dir != flows.Out {
		return v, false
	}
	switch {
	case c.n.inside.unjudged(q.Proto, q.Dst):
		return flows.Verdict{Allow: true}, true
	case c.n.inside.has(q.Proto, q.Dst):
		return flows.Verdict{Allow: true}, c.isDefault
	case c.n.isDoor(c.n.translate(q.Dst)):
		return flows.Verdict{Reject: true, Reason: flows.ReasonDoor}, true
	case !c.n.inRoutes(q.Dst.Addr()):
		return flows.Verdict{Reject: true, Reason: flows.ReasonRoute}, true
	}
	return v, false
}

// inRoutes says whether a guest may have to do with an address, as it knows it, at all.
func (n *Network) inRoutes(a netip.Addr) bool {
	r := n.cfg.Routes
	return r == nil || slices.ContainsFunc(r, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (n *Network) isDoor(dst netip.AddrPort) bool {
	for _, d := range *n.doors.Load() {
		if d.Port() == dst.Port() && (d.Addr() == dst.Addr() || d.Addr().IsUnspecified() && isOfThisHost(dst.Addr())) {
			return true
		}
	}
	return false
}

// isOfThisHost says whether a is one of this host's addresses now. It is asked for a door's port only.
func isOfThisHost(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return true // rather closed than open
	}
	for _, x := range addrs {
		if p, ok := x.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(p.IP); ok && ip.Unmap() == a {
				return true
			}
		}
	}
	return false
}

var loopback4, loopback6 = netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")

// translate is where an admitted conversation really goes: the gateway stands for the host's loopback.
func (n *Network) translate(dst netip.AddrPort) netip.AddrPort {
	switch dst.Addr() {
	case n.cfg.Gateway4:
		return netip.AddrPortFrom(loopback4, dst.Port())
	case n.cfg.Gateway6, n.linkLocal:
		return netip.AddrPortFrom(loopback6, dst.Port())
	}
	return dst
}

// untranslate is translate's inverse: how the guest knows an address that an answer came from.
func (n *Network) untranslate(src netip.AddrPort) netip.AddrPort {
	switch {
	case src.Addr().Is4() && src.Addr().IsLoopback():
		return netip.AddrPortFrom(n.cfg.Gateway4, src.Port())
	case src.Addr() == loopback6:
		return netip.AddrPortFrom(n.cfg.Gateway6, src.Port())
	}
	return src
}
