package policy

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

// presetRules are presets with no rules before them.
var presetRules = func() map[Preset]*view {
	m := map[Preset]*view{}
	for p := range tails {
		m[p] = compile(nil, Set{Preset: p}, newClasses(&network), &network)
	}
	return m
}()

// plain judges as the package comment says, rule after rule, and knows nothing of how rules are compiled. Names are
// those that opened the destination.
func plain(d Document, c *classes, q flows.Query, names []string) (verdict Action, rule string) {
	v := presetRules[cmp.Or(d.Preset, Open)]
	guard := v.guard
	rules := slices.Clone(d.Rules)
	for _, r := range v.rules[:len(v.rules)-1] {
		rules = append(rules, r.Rule)
	}
	dst, port := q.Dst.Addr(), q.Dst.Port()
	v4, embeds := flows.Embedded(dst)
	k := c.of(dst)

	protoOf := func(r Rule) bool {
		switch r.Proto {
		case TCP:
			return q.Proto == flows.TCP
		case UDP:
			return q.Proto == flows.UDP
		case ICMP:
			return q.Proto == flows.ICMP || q.Proto == flows.ICMPv6
		}
		return len(r.Ports) == 0 || q.Proto == flows.TCP || q.Proto == flows.UDP
	}
	ports := func(r Rule, lets bool) bool {
		in, listed := len(r.Ports) == 0, false
		for _, p := range r.Ports {
			if p.First <= port && port <= p.Last {
				in = true
				listed = p.First == p.Last
			}
		}
		if guard && lets && (port == 53 || port == 853) && (q.Proto == flows.TCP || q.Proto == flows.UDP) {
			return in && listed
		}
		return in
	}
	// names only, or addresses: the outer, the inner or both.
	type how struct{ outer, inner, names bool }
	match := func(r Rule, h how) bool {
		lets := r.Verdict == Allow || r.Verdict == Ask
		if r.Direction != flows.Out || !protoOf(r) || !ports(r, lets) {
			return false
		}
		t, err := parseTarget(r.To)
		if err != nil {
			panic(err)
		}
		byPrefix := func(p netip.Prefix) bool {
			if !(h.outer && p.Contains(dst) || h.inner && embeds && p.Contains(v4)) {
				return false
			}
			return !guard || !lets || k&^c.inside(p) == 0
		}
		byPattern := func(pattern string) bool {
			if !h.names {
				return false
			}
			for _, n := range names {
				rest, wild := strings.CutPrefix(pattern, "*.")
				if pattern == "*" || n == pattern || wild && strings.HasSuffix(n, "."+rest) {
					if guard && k&classDoH != 0 && !isDoH(n) {
						continue
					}
					if guard && lets && isDoH(n) && (pattern == "*" || !isDoH(rest)) {
						continue
					}
					return true
				}
			}
			return false
		}
		switch {
		case t.kind == toPrefix:
			return byPrefix(t.prefix)
		case t.kind == toName:
			return byPattern(t.name)
		case t.word == "any":
			return (h.outer || h.inner && embeds) && (!guard || !lets || k == 0)
		case t.word == "public":
			return (h.outer || h.inner && embeds) && k&special == 0 && (!guard || !lets || k == 0)
		}
		if slices.ContainsFunc(c.expand(t.word), byPrefix) {
			return true
		}
		return t.word == "doh" && slices.ContainsFunc(dohNames, func(n string) bool { return byPattern(n) || byPattern("*."+n) })
	}
	first := func(h how) int {
		i := slices.IndexFunc(rules, func(r Rule) bool { return match(r, h) })
		if i < 0 {
			return len(rules)
		}
		return i
	}
	closed := func(i int) bool {
		return i < len(rules) && rules[i].Verdict != Allow && rules[i].Verdict != Ask
	}
	base := first(how{outer: true, inner: true})
	if embeds {
		// The inner address is closed where a rule closes it, unless one that is for it comes first.
		inner := first(how{inner: true})
		if base < inner && closed(inner) && !closed(base) {
			base = inner
		}
	}
	i := min(base, first(how{names: true}))
	if i < len(rules) {
		return rules[i].Verdict, rules[i].String()
	}
	return cmp.Or(d.Default, v.rules[v.last()].Verdict), "default"
}

// Compiled rules say what a plain reading of the list says, for lists and conversations of all kinds.
func TestCompiledIsPlain(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 1))
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	targets := []string{
		"any", "any", "public", "host", "private", "link-local", "metadata", "doh", "0.0.0.0/0", "::/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "8.8.8.8", "8.0.0.0/8",
		"192.0.2.0/24", "192.0.2.1", "169.254.169.254", "169.254.0.0/16", "2001:db8::/32", "2001:db8::1", "64:ff9b::/96", "2002::/16", "10.0.2.2", "fd00:2::2", "fe80::/10",
		"*", "*.example.com", "a.example.com", "b.example.com", "*.b.example.com", "*.com", "dns.google", "*.google", "*.dns.google", "*.example.net",
	}
	addrs := []string{
		"192.0.2.1", "192.0.2.2", "10.1.2.3", "10.1.9.9", "10.9.9.9", "8.8.8.8", "8.1.1.1", "169.254.169.254", "169.254.1.1", "10.0.2.2", "fd00:2::2", "fe80::5055:aff:fe00:202", "fe80::1",
		"2001:db8::1", "2001:db8::2", "2400::1", "64:ff9b::192.0.2.1", "64:ff9b::10.1.2.3", "64:ff9b::8.8.8.8", "64:ff9b::169.254.169.254", "2002:a01:203::1", "2002:c000:201::1", "100.64.0.1", "fd00:ec2::254",
	}
	known := []string{"a.example.com", "b.example.com", "x.b.example.com", "example.com", "dns.google", "x.dns.google", "www.google", "a.example.net"}
	ports := []string{"", "", "443", "80-500", "53", "1-65535", "53,443", "22,853,1000-2000"}
	c := newClasses(&network)
	lets := 0
	const rounds = 1500
	for round := range rounds {
		d := Document{Set: Set{Preset: Preset(r.IntN(len(presets))), Default: Action(r.IntN(2*len(actions)) % len(actions)), FirstBytes: Off}}
		if r.IntN(2) == 0 {
			d.Default = Unset
		}
		for range r.IntN(8) {
			rule := Rule{Verdict: Action(1 + r.IntN(4)), Proto: Proto(r.IntN(4)), To: pick(targets...)}
			if rule.Proto != ICMP {
				rule.Ports.UnmarshalText([]byte(pick(ports...)))
			}
			if r.IntN(10) == 0 && !strings.Contains(rule.To, "example") && !strings.Contains(rule.To, "*") && !strings.Contains(rule.To, "google") && rule.Verdict != Ask {
				rule.Direction = flows.In
			}
			d.Rules = append(d.Rules, rule)
		}
		p, err := New(Config{Document: d, Network: network})
		if err != nil {
			t.Fatalf("%s\n%v", d, err)
		}
		opened := map[string][]string{}
		for range r.IntN(4) {
			n, a := pick(known...), pick(addrs...)
			if c.of(netip.MustParseAddr(a))&special == 0 {
				opened[a] = append(opened[a], n)
			}
			p.Answered("g1", n, []netip.Addr{netip.MustParseAddr(a)}, time.Hour, false)
		}
		g, v := p.guest("g1")
		for range 20 {
			a := pick(addrs...)
			q := flows.Query{Guest: "g1", Proto: []flows.Proto{flows.TCP, flows.UDP, flows.ICMP}[r.IntN(3)], Dst: netip.AddrPortFrom(netip.MustParseAddr(a), []uint16{53, 443, 22, 853, 1500, 60000}[r.IntN(6)])}
			if q.Proto == flows.ICMP {
				q.Dst = netip.AddrPortFrom(q.Dst.Addr(), 0)
			}
			if w := network.Judge(q); !w.Allow && w.Reason != flows.ReasonLinkLocal {
				continue
			}
			got := p.decide(g, v, q, false)
			want, why := plain(d, c, q, opened[a])
			if want == Allow || want == Ask {
				lets++
			}
			if got.rule.Verdict != want {
				t.Fatalf("seed %d, round %d: %s %s, names %v: %s (%s), want %s (%s) of\n%s", seed, round, q.Proto, q.Dst, opened[a], got.rule.Verdict, got.verdict.Rule, want, why, d)
			}
		}
		p.Close()
	}
	if lets < rounds {
		t.Errorf("only %d conversations of %d were let in: this compares too little", lets, rounds*20)
	}
}

// The index over ports says what going through the rules says, on every port.
func TestPortsIndex(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for range 10 {
		d := Document{Set: Set{Preset: Preset(1 + r.IntN(2)), Default: Drop}}
		for range 1 + r.IntN(40) {
			rule := Rule{Verdict: Action(1 + r.IntN(3)), Proto: Proto(r.IntN(4)), To: "192.0.2.1"}
			for range r.IntN(4) {
				first := uint16(1 + r.IntN(300))
				if r.IntN(8) == 0 {
					first = 65535 - first
				}
				rule.Ports = append(rule.Ports, PortRange{first, uint16(min(65535, int(first)+r.IntN(100)))})
			}
			if rule.Proto == ICMP {
				rule.Ports = nil
			}
			d.Rules = append(d.Rules, rule)
		}
		p, err := New(Config{Document: d, Network: network})
		if err != nil {
			t.Fatal(err)
		}
		g, v := p.guest("g1")
		for port := range 65536 {
			for _, proto := range []flows.Proto{flows.TCP, flows.UDP} {
				q := flows.Query{Guest: "g1", Proto: proto, Dst: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(port))}
				if port > 500 && port < 65100 && port%97 != 0 {
					continue // few rules are there
				}
				got := p.decide(g, v, q, false)
				if want, why := plain(d, p.classes, q, nil); got.rule.Verdict != want {
					t.Fatalf("%s port %d: %s (%s), want %s (%s) of\n%s", proto, port, got.rule.Verdict, got.verdict.Rule, want, why, d)
				}
			}
		}
	}
}
