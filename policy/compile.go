package policy

import (
	"cmp"
	"container/heap"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/vmnetd/vmnetd/flows"
)

// The rules of a guest, compiled: a decision costs some map lookups and a binary search, however many rules there are.
// Every rule has its place in the order as a number, and is put under what it says of the destination (a prefix, a
// name, everything). Whoever looks for the first rule that matches looks under each thing that the destination is, and
// takes the lowest number.

// none is no rule.
const none = int32(math.MaxInt32)

// rule is one of a view's.
type rule struct {
	Rule
	target
	verdict flows.Verdict // without Inspect and Pending
	part    int           // where it was written: -1 the network's rules, else a guest's; inTail the preset
	index   int           // in that part
}

const (
	inTail = -2
	ofNet  = -1
)

// tails are what presets end in. The words in a tail are also why a closed preset's guards never leave a hole: what
// they keep a wide rule from is rejected here.
var tails = map[Preset]struct {
	rules string
	last  Action
	Set   // defaults
	// guard keeps wide rules from what is special: see the package comment.
	guard bool
	// mute resolves not even local names.
	mute bool
}{
	Open: {rules: "allow any host\nreject any link-local", last: Allow, Set: Set{FirstBytes: Loose}},
	Sandbox: {rules: "reject any host\nreject any metadata\nreject any link-local\nreject any private\nreject any doh\nreject any any:53,853",
		last: Reject, Set: Set{FirstBytes: Strict}, guard: true},
	Offline: {last: Reject, Set: Set{FirstBytes: Strict}, guard: true},
	// As libslirp's restrict=on: a new TCP connection gets a RST, every datagram is lost, and so are DNS questions.
	Restrict: {rules: "reject tcp", last: Drop, Set: Set{FirstBytes: Strict}, guard: true, mute: true},
}

// bucket is the rules that say the same of the destination.
type bucket struct {
	inside class   // what all that they match is
	rules  []int32 // in order

	// The rest is of all rules, and of those that are left where the destination is more than inside and guards hold:
	// they let nothing in then.
	all, closed side
}

type side struct {
	ports *portIndex // nil if there is no rule, or one
	one   int32      // if there is no index: the rule, or none
	says  int32      // the first rule that says of all conversations whether there may be any
}

// portIndex finds the first rule for a protocol and port.
type portIndex struct {
	icmp     int32
	tcp, udp []step
}

// step begins at a port and reaches to the next one's.
type step struct {
	from uint16
	rule int32
}

func (x *portIndex) find(p flows.Proto, port uint16) int32 {
	s := x.tcp
	switch p {
	case flows.UDP:
		s = x.udp
	case flows.ICMP, flows.ICMPv6:
		return x.icmp
	case flows.TCP:
	default:
		return none
	}
	i, ok := slices.BinarySearchFunc(s, port, func(s step, port uint16) int { return cmp.Compare(s.from, port) })
	if !ok {
		i--
	}
	return s[i].rule // the first step is from 0
}

// matches says whether a rule is of a protocol and port; the destination is the caller's to know.
func (r *rule) matches(p flows.Proto, port uint16) bool {
	switch p {
	case flows.ICMP, flows.ICMPv6:
		return r.Proto == ICMP || r.Proto == Any && len(r.Ports) == 0
	case flows.TCP:
		if r.Proto != TCP && r.Proto != Any {
			return false
		}
	case flows.UDP:
		if r.Proto != UDP && r.Proto != Any {
			return false
		}
	default:
		return r.Proto == Any && len(r.Ports) == 0
	}
	if len(r.Ports) == 0 {
		return true
	}
	for _, x := range r.Ports {
		if x.First <= port && port <= x.Last {
			return true
		}
	}
	return false
}

func (r *rule) lets() bool { return r.Verdict == Allow || r.Verdict == Ask }

// whole says whether nothing to its destination is left for later rules.
func (r *rule) whole() bool { return r.Proto == Any && len(r.Ports) == 0 }

// table is what is found by address.
type table struct {
	lens4, lens6 []int // lengths that there are prefixes of
	prefix       map[netip.Prefix]*bucket
	any, public  *bucket
}

// view is what holds for some guests.
type view struct {
	rules      []rule
	out, in    table
	exact      map[string]*bucket
	below      map[string]*bucket // of *.example.com, under example.com
	depths     [2]uint64          // labels of the names in below, a bit each (RFC 1035: 127 at most)
	every      *bucket            // of *
	named      bool               // there are rules with names
	preset     Preset
	firstBytes FirstBytes
	refused    bool // what a name that may not be resolved gets
	guard      bool
	mute       bool
	classes    *classes
}

// compile makes a view of rules in order.
func compile(rules []rule, s Set, c *classes, n *flows.Default) *view {
	preset := s.Preset
	tail := tails[preset]
	v := &view{
		exact: map[string]*bucket{}, below: map[string]*bucket{}, preset: preset, classes: c,
		firstBytes: cmp.Or(s.FirstBytes, tail.FirstBytes), refused: cmp.Or(s.Names, Refused) == Refused,
		guard: tail.guard, mute: tail.mute,
	}
	var more []Rule
	if preset == Open {
		for _, p := range n.OpenLinkLocal {
			more = append(more, Rule{Verdict: Allow, To: p.Masked().String()})
		}
	}
	if tail.rules != "" {
		for line := range strings.SplitSeq(tail.rules, "\n") {
			r, err := ParseRule(line)
			if err != nil {
				panic(err) // the text is above
			}
			more = append(more, r)
		}
	}
	for i, r := range more {
		x, err := ruleOf(r, inTail, i, preset.String()+": ")
		if err != nil {
			panic(err)
		}
		if x.word == "link-local" {
			x.verdict.Reason = flows.ReasonLinkLocal
			x.verdict.Reset = preset != Open // which is flows.Default, to the letter
		}
		rules = append(rules, x)
	}
	last, _ := ruleOf(Rule{Verdict: cmp.Or(s.Default, tail.last)}, inTail, len(more), "")
	last.verdict.Rule = preset.String() + ": default " + last.Verdict.String()
	if s.Default != Unset {
		last.verdict.Rule = "default " + s.Default.String()
	}
	v.rules = append(rules, last)

	for i := range v.rules {
		v.put(int32(i))
	}
	for _, t := range []*table{&v.out, &v.in} {
		for p, b := range t.prefix {
			b.inside = c.inside(p)
			l := &t.lens6
			if p.Addr().Is4() {
				l = &t.lens4
			}
			if !slices.Contains(*l, p.Bits()) {
				*l = append(*l, p.Bits())
			}
			v.finish(b)
		}
		for _, b := range []*bucket{t.any, t.public} {
			if b != nil {
				v.finish(b)
			}
		}
	}
	for name, b := range v.exact {
		b.inside = classOfName(name)
		v.finish(b)
	}
	for name, b := range v.below {
		b.inside = classOfName(name)
		n := strings.Count(name, ".") + 1
		v.depths[n/64] |= 1 << (n % 64)
		v.finish(b)
	}
	if v.every != nil {
		v.finish(v.every)
	}
	return v
}

func classOfName(name string) class {
	if isDoH(name) {
		return classDoH
	}
	return 0
}

func ruleOf(r Rule, part, index int, where string) (rule, *Error) {
	if err := r.normalize(); err != nil {
		return rule{}, err
	}
	t, err := parseTarget(r.To)
	if err != nil {
		return rule{}, err
	}
	x := rule{Rule: r, target: t, part: part, index: index, verdict: flows.Verdict{
		// Not all systems take ICMP's word for a TCP connection before they have tried for a while.
		Allow: r.Verdict == Allow, Reject: r.Verdict == Reject, Reset: r.Verdict == Reject, Rule: where + r.String(),
	}}
	if !x.verdict.Allow {
		x.verdict.Reason = flows.ReasonPolicy
	}
	return x, nil
}

// put files a rule under what it says of the destination.
func (v *view) put(i int32) {
	r := &v.rules[i]
	last := int(i) == len(v.rules)-1
	t := &v.out
	if r.Direction == flows.In {
		t = &v.in
	}
	at := func(b **bucket) {
		if *b == nil {
			*b = &bucket{}
		}
		(*b).rules = append((*b).rules, i)
	}
	under := func(m map[string]*bucket, name string) {
		b := m[name]
		at(&b)
		m[name] = b
	}
	to := func(p netip.Prefix) {
		if t.prefix == nil {
			t.prefix = map[netip.Prefix]*bucket{}
		}
		b := t.prefix[p]
		at(&b)
		t.prefix[p] = b
	}
	switch {
	case r.kind == toPrefix:
		to(r.prefix)
	case r.kind == toName:
		v.named = true
		if rest, ok := strings.CutPrefix(r.name, "*."); ok {
			under(v.below, rest)
		} else if r.name == "*" {
			at(&v.every)
		} else {
			under(v.exact, r.name)
		}
	case r.word == "public":
		at(&t.public)
	case r.word == "any" || last:
		at(&t.any)
	default:
		for _, p := range v.classes.expand(r.word) {
			to(p)
		}
		if r.word == "doh" && t == &v.out {
			v.named = true
			for _, n := range dohNames {
				under(v.exact, n)
				under(v.below, n)
			}
		}
	}
}

// finish makes a bucket ready for lookups.
func (v *view) finish(b *bucket) {
	b.all = v.side(b.rules)
	b.closed = b.all
	if v.guard && slices.ContainsFunc(b.rules, v.wide) {
		b.closed = v.side(slices.DeleteFunc(slices.Clone(b.rules), v.wide))
	}
}

// wide says whether a rule lets in, so that guards hold it back. The last word is no rule that somebody wrote too wide.
func (v *view) wide(i int32) bool {
	r := &v.rules[i]
	return r.lets() && r.Direction == flows.Out && int(i) != len(v.rules)-1
}

func (v *view) side(rules []int32) side {
	s := side{one: none, says: none}
	for _, i := range rules {
		if r := &v.rules[i]; r.lets() || r.whole() {
			s.says = i
			break
		}
	}
	switch {
	case len(rules) == 0:
	case len(rules) == 1 && (!v.guard || !v.wide(rules[0]) || slices.Equal(v.ranges(rules[0]), v.rules[rules[0]].Ports)):
		s.one = rules[0]
	default:
		s.ports = &portIndex{icmp: none, tcp: v.steps(rules, flows.TCP), udp: v.steps(rules, flows.UDP)}
		for _, i := range rules {
			if v.rules[i].matches(flows.ICMP, 0) {
				s.ports.icmp = i
				break
			}
		}
	}
	return s
}

// resolverPorts are DNS's and DNS over TLS's and QUIC's (RFC 7858, RFC 9250). Where guards hold, a rule opens them only
// if it lists them by themselves.
var resolverPorts = []uint16{53, 853}

// ranges are the ports of a rule.
func (v *view) ranges(i int32) Ports {
	r := &v.rules[i]
	p := r.Ports
	if len(p) == 0 {
		p = Ports{{0, math.MaxUint16}}
	}
	if !v.guard || !v.wide(i) {
		return p
	}
	for _, x := range resolverPorts {
		if slices.Contains(r.Ports, PortRange{x, x}) {
			continue
		}
		var q Ports
		for _, y := range p {
			if y.First > x || y.Last < x {
				q = append(q, y)
				continue
			}
			if y.First < x {
				q = append(q, PortRange{y.First, x - 1})
			}
			if y.Last > x {
				q = append(q, PortRange{x + 1, y.Last})
			}
		}
		p = q
	}
	return p
}

// steps sweeps over the ports with the rules that are open at each in a heap.
func (v *view) steps(rules []int32, p flows.Proto) []step {
	type event struct {
		port int // 65536 is behind the last
		rule int32
		end  bool
	}
	var events []event
	for _, i := range rules {
		r := &v.rules[i]
		if r.Proto == ICMP || r.Proto == TCP && p != flows.TCP || r.Proto == UDP && p != flows.UDP {
			continue
		}
		for _, x := range v.ranges(i) {
			events = append(events, event{int(x.First), i, false}, event{int(x.Last) + 1, i, true})
		}
	}
	slices.SortFunc(events, func(a, b event) int { return a.port - b.port })
	out := []step{{0, none}}
	var open ruleHeap
	over := map[int32]int{} // ends that were met, of a rule whose range is deep in the heap
	for i := 0; i < len(events); {
		port := events[i].port
		for ; i < len(events) && events[i].port == port; i++ {
			if events[i].end {
				over[events[i].rule]++
			} else {
				heap.Push(&open, events[i].rule)
			}
		}
		for len(open) > 0 && over[open[0]] > 0 {
			over[open[0]]--
			heap.Pop(&open)
		}
		if port > math.MaxUint16 {
			break
		}
		first := none
		if len(open) > 0 {
			first = open[0]
		}
		switch last := &out[len(out)-1]; {
		case last.rule == first:
		case int(last.from) == port:
			last.rule = first
		default:
			out = append(out, step{uint16(port), first})
		}
	}
	return slices.Clip(out)
}

type ruleHeap []int32

func (h ruleHeap) Len() int           { return len(h) }
func (h ruleHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h ruleHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *ruleHeap) Push(x any)        { *h = append(*h, x.(int32)) }
func (h *ruleHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// asked is what is looked for.
type asked struct {
	proto flows.Proto
	port  uint16
	// says, if set, looks for the first rule that says whether there may be any conversation at all.
	says bool
}

// find is the first of the bucket's rules that matches, where the destination is k.
func (v *view) find(b *bucket, k class, a asked) int32 {
	if b == nil {
		return none
	}
	s := &b.all
	if k&^b.inside != 0 {
		s = &b.closed
	}
	switch {
	case a.says:
		return s.says
	case s.ports != nil:
		return s.ports.find(a.proto, a.port)
	case s.one != none && v.rules[s.one].matches(a.proto, a.port):
		return s.one
	}
	return none
}

// byAddress is the first rule that matches an address, which is k.
func (v *view) byAddress(t *table, dst netip.Addr, k class, a asked) int32 {
	i := v.byWords(t, k, a)
	lens := t.lens6
	if dst.Is4() {
		lens = t.lens4
	}
	for _, n := range lens {
		p, err := dst.Prefix(n)
		if err != nil {
			continue
		}
		if b := t.prefix[p]; b != nil {
			i = min(i, v.find(b, k, a))
		}
	}
	return i
}

// byWords is the first rule that matches an address, of which no more is known than that it is k.
func (v *view) byWords(t *table, k class, a asked) int32 {
	i := v.find(t.any, k, a)
	if k&special == 0 {
		i = min(i, v.find(t.public, k, a))
	}
	return i
}

// byName is the first rule that matches a name. k is whether it is a resolver's.
func (v *view) byName(name string, k class, a asked) int32 {
	i := v.find(v.every, k, a)
	if b := v.exact[name]; b != nil {
		i = min(i, v.find(b, k, a))
	}
	if len(v.below) == 0 {
		return i
	}
	depth := 0
	for at := len(name); at > 0; {
		at = strings.LastIndexByte(name[:at], '.')
		if at < 0 {
			break // all of it is not below itself
		}
		depth++
		if depth >= 128 || v.depths[0]>>depth == 0 && v.depths[1] == 0 {
			break
		}
		if v.depths[depth/64]&(1<<(depth%64)) == 0 {
			continue
		}
		if b := v.below[name[at+1:]]; b != nil {
			i = min(i, v.find(b, k, a))
		}
	}
	return i
}

// compiled is a document, ready to judge by.
type compiled struct {
	doc      Document
	patterns []string // of guests, each once
	parts    []int    // of doc.Guests, the pattern's index
	byRule   map[string]int

	mu    sync.Mutex
	views map[string]*view // by what fits returns
}

func newCompiled(d Document) *compiled {
	c := &compiled{doc: d, byRule: map[string]int{}, views: map[string]*view{}}
	pattern := func(s string) int {
		i, ok := c.byRule[s]
		if !ok {
			i = len(c.patterns)
			c.byRule[s] = i
			c.patterns = append(c.patterns, s)
		}
		return i
	}
	rules := func(s Set) {
		for _, r := range s.Rules {
			if r.Guest != "" {
				pattern(r.Guest)
			}
		}
	}
	rules(d.Set)
	for _, g := range d.Guests {
		c.parts = append(c.parts, pattern(g.Guest))
		rules(g.Set)
	}
	return c
}

// identity is what a guest is known by.
type identity struct{ id, mac, name string }

// fits says which patterns match a guest, a bit each, and which part is its own (-1: none).
func (c *compiled) fits(g identity) (key string, part int) {
	b := make([]byte, (len(c.patterns)+7)/8)
	for i, p := range c.patterns {
		if glob(p, g.id) || g.name != "" && glob(strings.ToLower(p), strings.ToLower(g.name)) || g.mac != "" && glob(strings.ToLower(p), strings.ToLower(g.mac)) {
			b[i/8] |= 1 << (i % 8)
		}
	}
	part = -1
	for i, p := range c.parts {
		if b[p/8]&(1<<(p%8)) != 0 {
			part = i
			break
		}
	}
	return string(b), part
}

// view compiles what holds for guests that key fits.
func (c *compiled) view(key string, part int, k *classes, n *flows.Default) *view {
	var rules []rule
	add := func(s Set, part int, where string) {
		for i, r := range s.Rules {
			if r.Guest != "" {
				if p := c.byRule[r.Guest]; key[p/8]&(1<<(p%8)) == 0 {
					continue
				}
			}
			x, err := ruleOf(r, part, i, fmt.Sprintf("%srule %d: ", where, i+1))
			if err != nil {
				continue // not in a document that was normalized
			}
			rules = append(rules, x)
		}
	}
	s := c.doc.Set
	if part >= 0 {
		g := c.doc.Guests[part]
		add(g.Set, part, "guest "+g.Guest+" ")
		if g.Preset != NoPreset {
			s = Set{}
		}
		s.Preset, s.FirstBytes = cmp.Or(g.Preset, s.Preset), cmp.Or(g.FirstBytes, s.FirstBytes)
		s.Names, s.Default = cmp.Or(g.Names, s.Names), cmp.Or(g.Default, s.Default)
	}
	if part < 0 || c.doc.Guests[part].Preset == NoPreset {
		add(c.doc.Set, ofNet, "")
	}
	s.Preset = cmp.Or(s.Preset, Open)
	return compile(rules, s, k, n)
}

// glob matches a pattern in which * stands for anything.
func glob(pattern, s string) bool {
	// The usual backtracking to the last star: linear in practice, and quadratic in at most 128 characters.
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && pattern[p] == s[i]:
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
