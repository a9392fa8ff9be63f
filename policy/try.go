package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmnetd/vmnetd/flows"
)

// Result is what would become of a conversation.
type Result struct {
	Guest   string         `json:"guest"`
	Proto   Proto          `json:"proto"`
	Name    string         `json:"name,omitempty"`
	Dst     netip.AddrPort `json:"dst,omitzero"` // the address that was judged, if one is known
	Verdict Action         `json:"verdict"`
	Rule    string         `json:"rule"` // with its place
	Reason  flows.Reason   `json:"reason,omitempty"`
	// Resolves says for a name whether the guest may resolve it, and ResolveRule why.
	Resolves    bool   `json:"resolves,omitempty"`
	ResolveRule string `json:"resolve_rule,omitempty"`
	// FirstBytes says what the first bytes must be, if they are looked at.
	FirstBytes string `json:"first_bytes,omitempty"`
	// Opened are the addresses that the name has opened for the guest so far. If there are none, the verdict is for a
	// public address that nothing else is known of.
	Opened []netip.Addr `json:"opened,omitempty"`
}

func (r Result) String() string {
	to := r.Name
	if to == "" {
		to = r.Dst.Addr().String()
	}
	if p := r.Dst.Port(); p != 0 {
		if strings.Contains(to, ":") {
			to = "[" + to + "]"
		}
		to = fmt.Sprintf("%s:%d", to, p)
	}
	s := fmt.Sprintf("%s %s: %s, by %s", r.Proto, to, r.Verdict, r.Rule)
	if r.Reason != flows.ReasonNone {
		s += " (" + r.Reason.String() + ")"
	}
	if r.FirstBytes != "" {
		s += "; first bytes " + r.FirstBytes
	}
	return s
}

// Test says what would become of a conversation of a guest, without beginning one: nothing is asked, learned or kept.
// proto is tcp, udp or icmp; dst an address or a name with a port: example.com:443, 192.0.2.1:22, [2001:db8::1]:443,
// or without one for icmp. The word host is the gateway's address.
func (p *Policy) Test(guest, proto, dst string) (Result, error) {
	i := slices.Index(protos, proto)
	if i < 1 {
		return Result{}, fmt.Errorf("protocol %s: want %s", quote(proto), oneOf(protos[1:]))
	}
	to, ports, bad := splitPorts(dst)
	if bad != nil {
		bad.Text, bad.Column = dst, column(dst, bad.off)
		return Result{}, bad
	}
	r := Result{Guest: guest, Proto: Proto(i)}
	var port uint16
	switch {
	case r.Proto == ICMP && len(ports) > 0:
		return Result{}, fmt.Errorf("%s: a port of icmp: want none", quote(dst))
	case r.Proto != ICMP && (len(ports) != 1 || ports[0].First != ports[0].Last):
		return Result{}, fmt.Errorf("%s: want one port, as example.com:443", quote(dst))
	case r.Proto != ICMP:
		port = ports[0].First
	}
	// Not kept: whoever tests for a guest that is not there yet makes none.
	g := p.known(guest)
	if g == nil {
		g = newGuest(guest)
	}
	c := p.doc.Load()
	key, part := c.fits(p.identify(guest))
	v := p.viewOf(c, key, part)

	judge := func(a netip.Addr) Result {
		x := r
		x.Dst = netip.AddrPortFrom(a, port)
		q := flows.Query{Guest: guest, Proto: flowsProto(r.Proto, a), Dst: x.Dst}
		d := p.decide(g, v, q, false)
		x.is(d, v)
		return x
	}
	if to == "host" && len(p.cfg.Network.Gateways) > 0 {
		to = p.cfg.Network.Gateways[0].String()
	}
	if a, err := netip.ParseAddr(to); err == nil {
		return judge(a), nil
	}
	name, bad := parseName(to)
	if bad == nil && strings.Contains(name, "*") {
		bad = at(0, quote(to), "one name")
	}
	if bad != nil {
		bad.Text, bad.Column = dst, column(dst, bad.off)
		return Result{}, bad
	}
	r.Name = name
	says := p.judgeName(v, name)
	r.Resolves, r.ResolveRule = says.Allow, says.Rule
	now := p.now()
	g.mu.Lock()
	for o := g.order.next; o != &g.order; o = o.next {
		if o.name == name && o.until.After(now) {
			r.Opened = append(r.Opened, o.addr)
		}
	}
	g.mu.Unlock()
	slices.SortFunc(r.Opened, netip.Addr.Compare)
	if !says.Allow {
		r.Verdict, r.Rule, r.Reason = Reject, says.Rule, says.Reason
		r.Dst = netip.AddrPortFrom(netip.Addr{}, port)
		return r, nil
	}
	if len(r.Opened) > 0 {
		return judge(r.Opened[0]), nil
	}
	// An address that nothing is known of: what rules say of names and of everything.
	r.Dst = netip.AddrPortFrom(netip.Addr{}, port)
	x := claim{p: p, g: g, v: v, asked: asked{proto: flowsProto(r.Proto, netip.Addr{}), port: port}, now: now, name: name}
	x.base = v.byWords(&v.out, 0, x.asked)
	for _, all := range everywhere {
		x.base = min(x.base, v.find(v.out.prefix[all], 0, x.asked))
	}
	x.best = x.base
	if i := v.byName(name, classOfName(name), x.asked); i < x.best {
		x.best, x.byName = i, true
	}
	rule := &v.rules[x.best]
	d := decision{rule: rule, verdict: rule.verdict, name: name}
	if rule.Verdict == Ask {
		x.byName = true
	}
	if x.wantsFirstBytes(rule) {
		d.inspect = x.inspect
	}
	r.is(d, v)
	return r, nil
}

func flowsProto(p Proto, a netip.Addr) flows.Proto {
	switch {
	case p == TCP:
		return flows.TCP
	case p == UDP:
		return flows.UDP
	case a.Is6():
		return flows.ICMPv6
	}
	return flows.ICMP
}

// is fills in a decision.
func (r *Result) is(d decision, v *view) {
	r.Verdict, r.Rule, r.Reason = actionOf(d.verdict), d.verdict.Rule, d.verdict.Reason
	if r.Name == "" {
		r.Name = d.name
	}
	if d.rule == nil {
		return
	}
	if d.rule.Verdict == Ask {
		r.Verdict, r.Reason = Ask, flows.ReasonNone
	}
	if d.inspect == nil && d.verdict.Inspect == nil {
		return
	}
	what := "must be TLS or HTTP and name " + r.Name
	switch {
	case d.rule.Check == TLS:
		what = "must be TLS or QUIC"
	case d.rule.Check == HTTP:
		what = "must be HTTP"
	case v.firstBytes == Strict || d.rule.Check == Checked:
	default:
		what = "must not name anybody but " + r.Name
	}
	if (d.rule.Check == TLS || d.rule.Check == HTTP) && r.Name != "" {
		what += " and name " + r.Name
	}
	r.FirstBytes = what
}
