package policy

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

const (
	// minOpen is how long an answer opens its addresses at least. Zones that balance load say 0 to 60 s, and clients
	// hold on to an address longer: browsers for a minute, Java's for 30 s, and who got several tries the next one when
	// the first did not answer, which Linux waits two minutes for (tcp_syn_retries).
	minOpen = 5 * time.Minute
	// maxOpen is the longest. Unbound and others keep nothing longer, and a TTL may say 68 years (RFC 2181 §8).
	maxOpen = 24 * time.Hour

	// mostOpen is how many pairs of name and address are kept for one guest, the least recently used go first: some
	// 400 bytes each, and more than a browser's day has. A guest can ask for a million names below one that is allowed.
	mostOpen = 4096
	// openTotal is how many all guests may have before each has to do with less, but never less than leastOpen.
	openTotal = 1 << 16
	leastOpen = 256
	// mostNames is how many names one address has at a time. Each is looked at when a conversation with it begins.
	mostNames = 64
)

// open is an address that an answer opened for a guest.
type open struct {
	name  string
	addr  netip.Addr
	until time.Time
	local bool
	// foreign addresses belong to the network or the host's surroundings, and a public name points there. Rules with
	// names do not open them.
	foreign bool
	kind    class // of the name

	prev, next *open // in the order of use
}

// guest is what is kept of one.
type guest struct {
	id string

	mu    sync.Mutex
	who   identity
	of    *compiled // that view is of
	view  *view
	part  int // of the document; -1: none of its own
	used  time.Time
	addrs map[netip.Addr][]*open
	count int
	order open // ring: order.next was used last

	answers map[destination]bool // that hold for the session
}

func newGuest(id string) *guest {
	g := &guest{id: id, addrs: map[netip.Addr][]*open{}}
	g.order.prev, g.order.next = &g.order, &g.order
	return g
}

func (o *open) unlink() { o.prev.next, o.next.prev = o.next, o.prev }

// touch makes o the one used last, under g.mu.
func (g *guest) touch(o *open) {
	if g.order.next == o {
		return
	}
	if o.prev != nil {
		o.unlink()
	}
	o.prev, o.next = &g.order, g.order.next
	o.prev.next, o.next.prev = o, o
}

// forget lets go of o, under g.mu.
func (g *guest) forget(o *open) {
	o.unlink()
	g.count--
	list := g.addrs[o.addr]
	if i := slices.Index(list, o); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	if len(list) == 0 {
		delete(g.addrs, o.addr)
	} else {
		g.addrs[o.addr] = list
	}
}

// opened notes that name was answered with addr, under g.mu.
func (g *guest) opened(o open, most int) {
	list := g.addrs[o.addr]
	for _, x := range list {
		if x.name == o.name {
			if o.until.After(x.until) {
				x.until = o.until
			}
			x.local, x.foreign = o.local, o.foreign
			g.touch(x)
			return
		}
	}
	if len(list) >= mostNames {
		oldest := list[0]
		for _, x := range list[1:] {
			if x.until.Before(oldest.until) {
				oldest = x
			}
		}
		g.forget(oldest)
	}
	for g.count >= most {
		g.forget(g.order.prev)
	}
	x := &o
	x.name = strings.Clone(o.name) // it may be a piece of something large
	g.touch(x)
	g.count++
	g.addrs[x.addr] = append(g.addrs[x.addr], x)
}

// JudgeName implements flows.NamePolicy. All types are alike.
func (p *Policy) JudgeName(guest, name string, _ uint16) flows.Verdict {
	g, v := p.guest(guest)
	verdict := p.judgeName(v, name)
	if learn := p.learning(); learn != LearnOff {
		p.learned.name(g.id, name, verdict.Allow, p.now())
		if learn == LearnAllow && !verdict.Allow {
			verdict = flows.Verdict{Allow: true, Rule: "learn"}
		}
	}
	p.audit(Decision{Kind: "name", Guest: guest, Name: name}, verdict)
	return verdict
}

func (p *Policy) judgeName(v *view, name string) flows.Verdict {
	i := v.says(name)
	r := &v.rules[i]
	if !r.lets() {
		if r.part == inTail && !v.mute && p.isLocal(name) {
			return flows.Verdict{Allow: true, Rule: "local name"}
		}
		w := r.verdict
		w.Reject, w.Reason = v.refused, flows.ReasonName
		return w
	}
	return flows.Verdict{Allow: true, Rule: r.verdict.Rule}
}

// says is the rule that says whether a guest may have to do with a name.
func (v *view) says(name string) int32 {
	k := classOfName(name)
	a := asked{says: true}
	i := v.byName(name, k, a)
	if v.guard {
		k |= special // a rule for any address opens no names: questions tell whoever answers them things. * does.
	}
	i = min(i, v.byWords(&v.out, k, a))
	for _, all := range everywhere {
		if b := v.out.prefix[all]; b != nil {
			i = min(i, v.find(b, k, a))
		}
	}
	return i
}

// everywhere is any, written as prefixes.
var everywhere = prefixes("0.0.0.0/0", "::/0")

// isLocal says whether the network itself answers for a name: one of its own, or the address of one of its own read
// backwards.
func (p *Policy) isLocal(name string) bool {
	if p.cfg.Local != nil && p.cfg.Local(name) {
		return true
	}
	a, ok := reversed(name)
	return ok && (slices.Contains(p.cfg.Network.Gateways, a) || within(a, p.cfg.Network.Local))
}

// reversed is the address that a name under in-addr.arpa (RFC 1035 §3.5) or ip6.arpa (RFC 3596 §2.5) is of.
func reversed(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(s, ".")
		slices.Reverse(parts)
		a, err := netip.ParseAddr(strings.Join(parts, "."))
		return a, err == nil && a.Is4()
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(s) != 63 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 62; i >= 0; i -= 2 {
		if i < 62 && s[i+1] != '.' {
			return netip.Addr{}, false
		}
		b.WriteByte(s[i])
		if i%8 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil && a.Is6()
}

// Answered implements flows.NamePolicy.
func (p *Policy) Answered(guest, name string, addrs []netip.Addr, ttl time.Duration, local bool) []netip.Addr {
	g, v := p.guest(guest)
	now := p.now()
	until := now.Add(min(max(ttl, minOpen), maxOpen))
	most := p.mostOpen()
	kept := make([]netip.Addr, 0, len(addrs))
	closed := false
	for _, a := range addrs {
		u := a.Unmap()
		k := p.classes.of(u)
		foreign := !local && k&special != 0
		if foreign && v.guard && p.learning() != LearnAllow && !v.reaches(u, k) {
			closed = true
			p.audit(Decision{Kind: "answer", Guest: guest, Name: name, Dst: netip.AddrPortFrom(u, 0)},
				flows.Verdict{Reject: true, Reason: flows.ReasonRebinding, Rule: "a public name's answer that is " + k.String()})
			continue
		}
		kept = append(kept, a)
		g.mu.Lock()
		g.opened(open{name: name, addr: u, until: until, local: local, foreign: foreign, kind: classOfName(name)}, most)
		g.mu.Unlock()
	}
	if !closed {
		return addrs
	}
	return kept
}

// reaches says whether rules without names let a guest have any conversation with a.
func (v *view) reaches(a netip.Addr, k class) bool {
	says := asked{says: true}
	i := v.byAddress(&v.out, a, k, says)
	if v4, ok := flows.Embedded(a); ok {
		i = min(i, v.byAddress(&v.out, v4, k, says))
	}
	return i != none && v.rules[i].lets()
}

// OpenName is a name that was answered, and an address that it opened.
type OpenName struct {
	Guest string     `json:"guest"`
	Name  string     `json:"name"`
	Addr  netip.Addr `json:"address"`
	Until time.Time  `json:"until"`
	// Local names are the network's own.
	Local bool `json:"local,omitempty"`
	// Closed says that a public name points where rules with names open nothing: a private address.
	Closed bool `json:"closed,omitempty"`
}

// Names lists what answers opened for a guest, the last used first.
func (p *Policy) Names(guest string) []OpenName {
	list := []OpenName{}
	g := p.known(guest)
	if g == nil {
		return list
	}
	now := p.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for o := g.order.next; o != &g.order; o = o.next {
		if o.until.After(now) {
			list = append(list, OpenName{guest, o.name, o.addr, o.until, o.local, o.foreign})
		}
	}
	return list
}

func (k class) String() string {
	var s []string
	for i, n := range []string{"the host's", "private", "loopback", "link-local", "metadata", "a resolver's"} {
		if k&(1<<i) != 0 {
			s = append(s, n)
		}
	}
	return strings.Join(s, " and ")
}
