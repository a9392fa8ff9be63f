package backend

// Station 7, admission: the one door. Every conversation, whoever began it, is opened here and nowhere else; only
// then is an address that stands for the host translated.

import (
	"net/netip"

	"github.com/vmnetd/vmnetd/flows"
)

// admit lets a conversation in, or says why not. end is called if the table ends it (flows.Table.Open).
func (n *Network) admit(p *port, q flows.Query, end func(flows.Reason)) (*flows.Flow, flows.Verdict) {
	f, v := n.flows.Open(q, end)
	if f == nil {
		p.drops[v.Reason].Add(1)
	}
	return f, v
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
