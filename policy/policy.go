package policy

import (
	"cmp"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

// Config is a policy and the network that it is for.
type Config struct {
	Document

	// Network is what of the network's own addresses holds whatever the rules say, as it does without rules. Of
	// OpenLinkLocal only the preset open takes notice.
	Network flows.Default
	// Local, if not nil, says of a name in lower case without a final dot that the network itself answers for it. Such
	// names are resolved unless a rule closes them, but not under Restrict.
	Local func(name string) bool
	// Identify, if not nil, tells a guest's MAC, as 52:54:00:12:34:56, and the name that it leased under, either of
	// them empty if it is not known. It is asked often and must not wait. Both are the guest's own claims unless leases
	// are strict, so rules that give more than others should go by id.
	Identify func(guest string) (mac, name string)

	// OnQuestion, if not nil, is told of each question as it is asked, and again as it is over (Question.Outcome is set
	// then). As Audit, it must not wait and must not call the policy.
	OnQuestion func(Question)
	// OnChange, if not nil, is told the new document when an answer that holds always has changed it.
	OnChange func(Document)
	// Audit, if not nil, is told of each decision (SetAudit).
	Audit func(Decision)

	// AskFor is how long a question waits for its answer. Default 30 s, as long as an impatient person looks at a
	// command that hangs; a TCP client waits two minutes.
	AskFor time.Duration
	// Now tells the time. Default time.Now.
	Now func() time.Time
}

const (
	defaultAskFor = 30 * time.Second
	// mostGuests is how many guests something is kept of. Who calls Forget never meets it: a network has fewer.
	mostGuests = 4096
	// mostViews is how many compiled forms of one document are kept, one for each set of guests that patterns tell
	// apart.
	mostViews = 256
)

// Policy judges by a document. Its methods may be called from any goroutine.
type Policy struct {
	cfg     Config
	now     func() time.Time
	classes *classes
	doc     atomic.Pointer[compiled]
	learn   atomic.Int32
	auditor atomic.Pointer[func(Decision)]
	open    *view // what LearnAllow judges by
	learned record
	asks    asks

	change sync.Mutex // held while the document is replaced

	mu     sync.RWMutex
	guests map[string]*guest
}

var (
	_ flows.Policy        = (*Policy)(nil)
	_ flows.NamePolicy    = (*Policy)(nil)
	_ flows.RunningPolicy = (*Policy)(nil)
)

// New makes a policy, or says what is wrong with the document.
func New(c Config) (*Policy, error) {
	d, err := c.Document.normalize()
	if err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.AskFor <= 0 {
		c.AskFor = defaultAskFor
	}
	p := &Policy{cfg: c, now: c.Now, classes: newClasses(&c.Network), guests: map[string]*guest{}}
	p.learned.init()
	p.asks.init()
	p.SetAudit(c.Audit)
	p.open = compile(nil, Set{Preset: Open}, p.classes, &p.cfg.Network)
	p.set(d)
	return p, nil
}

// Document returns the document in force.
func (p *Policy) Document() Document {
	d, _ := p.doc.Load().doc.normalize() // a copy
	return d
}

// Replace puts another document in force, for conversations that begin from now on. What answers opened stays known, so
// that guests need not ask again.
func (p *Policy) Replace(d Document) error {
	d, err := d.normalize()
	if err != nil {
		return err
	}
	p.change.Lock()
	defer p.change.Unlock()
	p.set(d)
	return nil
}

// Change replaces the document by what f makes of it, and nobody else changes it meanwhile. If f returns an error, all
// is as before. f must not call the policy.
func (p *Policy) Change(f func(*Document) error) error {
	p.change.Lock()
	defer p.change.Unlock()
	d := p.Document()
	if err := f(&d); err != nil {
		return err
	}
	d, err := d.normalize()
	if err == nil {
		p.set(d)
	}
	return err
}

// set puts a document in force, once it is compiled for all guests that are there.
func (p *Policy) set(d Document) {
	c := newCompiled(d)
	p.viewOf(c, string(make([]byte, (len(c.patterns)+7)/8)), -1) // what holds for most
	p.mu.RLock()
	var ids []string
	for id := range p.guests {
		ids = append(ids, id)
	}
	p.mu.RUnlock()
	if len(c.patterns) > 0 {
		for _, id := range ids {
			key, part := c.fits(p.identify(id))
			p.viewOf(c, key, part)
		}
	}
	p.doc.Store(c)
}

func (p *Policy) identify(id string) identity {
	who := identity{id: id}
	if p.cfg.Identify != nil {
		who.mac, who.name = p.cfg.Identify(id)
	}
	return who
}

func (p *Policy) viewOf(c *compiled, key string, part int) *view {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.views[key]
	if v == nil {
		if len(c.views) >= mostViews {
			clear(c.views)
		}
		v = c.view(key, part, p.classes, &p.cfg.Network)
		c.views[key] = v
	}
	return v
}

// known returns what is kept of a guest, or nil.
func (p *Policy) known(id string) *guest {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.guests[id]
}

// guest returns what is kept of a guest, and what holds for it.
func (p *Policy) guest(id string) (*guest, *view) {
	g := p.known(id)
	if g == nil {
		p.mu.Lock()
		if g = p.guests[id]; g == nil {
			if len(p.guests) >= mostGuests {
				p.dropOne()
			}
			g = newGuest(id)
			p.guests[id] = g
		}
		p.mu.Unlock()
	}
	c := p.doc.Load()
	who := identity{id: id}
	if len(c.patterns) > 0 {
		who = p.identify(id)
	}
	g.mu.Lock()
	g.used = p.now()
	if g.of == c && g.who == who {
		v := g.view
		g.mu.Unlock()
		return g, v
	}
	g.mu.Unlock()
	key, part := c.fits(who)
	v := p.viewOf(c, key, part)
	g.mu.Lock()
	g.of, g.who, g.view, g.part = c, who, v, part
	g.mu.Unlock()
	return g, v
}

// dropOne lets go of a guest that was not heard of for long, under p.mu. It looks at some only, as they come.
func (p *Policy) dropOne() {
	var oldest *guest
	n := 0
	for _, g := range p.guests {
		g.mu.Lock()
		used := g.used
		g.mu.Unlock()
		if oldest == nil || used.Before(oldest.used) {
			oldest = g
		}
		if n++; n == 16 {
			break
		}
	}
	delete(p.guests, oldest.id)
}

// mostOpen is how many addresses each guest may have open by name.
func (p *Policy) mostOpen() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return min(mostOpen, max(leastOpen, openTotal/max(1, len(p.guests))))
}

// Forget lets go of what is kept of a guest: what answers opened for it, and what was answered for its session. What it
// waits for is refused.
func (p *Policy) Forget(guest string) {
	p.mu.Lock()
	delete(p.guests, guest)
	p.mu.Unlock()
	p.dismiss(guest)
}

// Close answers all questions with no. The policy goes on judging, and asks nobody.
func (p *Policy) Close() error {
	p.dismissAll()
	return nil
}

// usualPorts are where first bytes usually name somebody: HTTP's and HTTPS's with their common alternatives.
func usualPort(proto flows.Proto, port uint16) bool {
	if proto != flows.TCP && proto != flows.UDP {
		return false
	}
	return port == 80 || port == 443 || port == 8080 || port == 8443
}

// decision is a verdict, before anybody was asked.
type decision struct {
	rule    *rule // nil: none, verdict says it all
	verdict flows.Verdict
	name    string                          // by which the rule matched; else one that the address was opened by
	foreign string                          // a name that points here, where rules with names open nothing
	inspect func(flows.Hello) flows.Verdict // if the rule asks, for after the answer
}

// display is whose address it is, for people.
func (d *decision) display() string { return cmp.Or(d.name, d.foreign) }

// Judge implements flows.Policy.
func (p *Policy) Judge(q flows.Query) flows.Verdict {
	g, v := p.guest(q.Guest)
	d := p.decide(g, v, q, false)
	if learn := p.learning(); learn != LearnOff && q.Dir == flows.Out && d.rule != nil {
		said := p.learned.conversation(q, d, p.now())
		if learn == LearnAllow {
			d = p.decide(g, p.open, q, false)
			d.verdict.Rule = "learn"
		}
		if d.verdict.Allow && usualPort(q.Proto, q.Dst.Port()) {
			d.verdict.Inspect = said.listen(d.verdict)
		}
	}
	verdict := d.verdict
	if d.rule != nil && d.rule.Verdict == Ask {
		verdict = p.ask(g, d, q)
	}
	p.audit(Decision{Kind: "conversation", Guest: q.Guest, Proto: q.Proto, Dir: q.Dir, Src: q.Src, Dst: q.Dst, Name: d.display()}, verdict)
	return verdict
}

// JudgeRunning implements flows.RunningPolicy: it judges a conversation again that was let in before, as was. An
// address stays open though its answer has run out since, and nobody is asked about what they have said yes to.
func (p *Policy) JudgeRunning(q flows.Query, was flows.Verdict) flows.Verdict {
	g, v := p.guest(q.Guest)
	if p.learning() == LearnAllow {
		v = p.open
	}
	d := p.decide(g, v, q, true)
	verdict := d.verdict
	if d.rule != nil && d.rule.Verdict == Ask {
		// The rule may have another place by now.
		_, text, _ := strings.Cut(was.Rule, ": ")
		if strings.HasSuffix(d.rule.verdict.Rule+answeredYes, ": "+text) || d.rule.verdict.Rule+answeredYes == was.Rule {
			verdict = flows.Verdict{Allow: true, Rule: was.Rule, Inspect: d.inspect}
		} else {
			verdict = p.ask(g, d, q)
		}
	}
	p.audit(Decision{Kind: "running", Guest: q.Guest, Proto: q.Proto, Dir: q.Dir, Src: q.Src, Dst: q.Dst, Name: d.display()}, verdict)
	return verdict
}

// always is the Rule of what no rule can open.
const always = "always closed"

func (p *Policy) decide(g *guest, v *view, q flows.Query, running bool) decision {
	var d decision
	dst := q.Dst.Addr()
	a := asked{proto: q.Proto, port: q.Dst.Port()}
	if q.Dir == flows.In {
		if i := v.byAddress(&v.in, dst, 0, a); i != none {
			d.rule = &v.rules[i]
			d.verdict = d.rule.verdict
		} else {
			d.verdict = flows.Verdict{Allow: true}
		}
		return d
	}
	// Link-local is where rules may say otherwise.
	if w := p.cfg.Network.Judge(q); !w.Allow && w.Reason != flows.ReasonLinkLocal {
		w.Rule = always
		d.verdict = w
		return d
	}
	var k class
	if v.guard || v.out.public != nil {
		k = p.classes.of(dst)
	}
	c := claim{p: p, g: g, v: v, dst: dst, k: k, asked: a, now: p.now(), running: running}
	c.base = v.byAddress(&v.out, dst, k, a)
	by4 := none
	if v4, ok := flows.Embedded(dst); ok {
		by4 = v.byAddress(&v.out, v4, k, a)
		// Who wrote a rule for the outer address did not mean to open the inner one, if a rule closes that.
		if c.base < by4 && by4 != v.last() && v.rules[c.base].lets() && !v.rules[by4].lets() {
			c.base = by4
		}
		c.base = min(c.base, by4)
	}
	c.names()
	i := c.best
	r := &v.rules[i]
	d.rule, d.verdict, d.name, d.foreign = r, r.verdict, c.name, c.foreign
	if r.Verdict == Ask && c.name != "" {
		c.byName = true // so the question names it, and so the answer is for that name
	}
	if c.wantsFirstBytes(r) {
		held := new(claim) // most conversations need none of this kept
		*held = c
		w := held.inspect
		if r.Verdict == Ask {
			d.inspect = w
		} else {
			d.verdict = flows.Verdict{Allow: true, Rule: r.verdict.Rule, Inspect: w}
		}
	}
	return d
}

func (v *view) last() int32 { return int32(len(v.rules) - 1) }

// claim is one conversation and what was found out about it.
type claim struct {
	p   *Policy
	g   *guest
	v   *view
	dst netip.Addr
	k   class
	asked
	now     time.Time
	running bool

	base     int32  // the first rule that matches without names
	best     int32  // the first that matches
	name     string // that best matched by; else the last that opened the address
	foreign  string // the last that points here and opens nothing
	byName   bool
	disputed bool // some of the address's names would be let in, and others not
}

// live says whether an answer still counts.
func (c *claim) live(o *open) bool { return c.running || o.until.After(c.now) }

// counts says whether rules with names apply to an answer.
func (c *claim) counts(o *open) bool {
	if o.foreign || !c.live(o) {
		return false
	}
	// A public name of one's own can point at a public resolver.
	return !c.v.guard || o.local || c.k&classDoH == 0 || o.kind&classDoH != 0
}

// names looks at the names that were answered with the address.
func (c *claim) names() {
	c.best = c.base
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	list := c.g.addrs[c.dst]
	if len(list) == 0 {
		return
	}
	lets, not := false, false
	var latest, by, foreign *open
	for _, o := range list {
		switch {
		case !c.live(o):
			continue
		case !c.counts(o):
			if foreign == nil || o.until.After(foreign.until) {
				foreign = o
			}
			continue
		}
		if latest == nil || o.until.After(latest.until) {
			latest = o
		}
		if !c.v.named {
			continue
		}
		i := c.v.byName(o.name, o.kind, c.asked)
		if c.v.rules[min(i, c.base)].lets() {
			lets = true
		} else {
			not = true
		}
		// Of several names that the same rule lets in, the one that was answered last is what people mean.
		if i < c.best || i == c.best && c.byName && o.until.After(by.until) {
			c.best, c.byName, by = i, true, o
		}
	}
	c.disputed = lets && not
	if by == nil {
		by = latest
	}
	if by != nil {
		c.name = by.name
		c.g.touch(by)
	}
	if foreign != nil {
		c.foreign = foreign.name
	}
}

// wantsFirstBytes says whether the last word is the first bytes'.
func (c *claim) wantsFirstBytes(r *rule) bool {
	if c.proto != flows.TCP && c.proto != flows.UDP {
		return false
	}
	usual := usualPort(c.proto, c.port) && c.v.firstBytes != Off
	switch r.Check {
	case TLS, HTTP, Checked:
		return true
	case Unchecked:
		return false
	}
	return usual && (c.byName && r.lets() || c.disputed)
}

// inspect judges the first bytes. Several names may have led to one address: the one that is said counts.
func (c *claim) inspect(h flows.Hello) flows.Verdict {
	v := c.inspected(h)
	c.p.audit(Decision{Kind: "first-bytes", Guest: c.g.id, Proto: c.proto, Dst: netip.AddrPortFrom(c.dst, c.port), Name: h.Name}, v)
	return v
}

func (c *claim) inspected(h flows.Hello) flows.Verdict {
	r := &c.v.rules[c.best]
	refuse := func(r *rule, why string) flows.Verdict {
		return flows.Verdict{Reject: true, Reset: true, Reason: flows.ReasonHello, Rule: r.verdict.Rule + " (" + why + ")"}
	}
	allow := func(r *rule) flows.Verdict {
		v := flows.Verdict{Allow: true, Rule: r.verdict.Rule}
		if r.Verdict == Ask {
			v.Rule += answeredYes
		}
		return v
	}
	if !c.byName && !c.disputed {
		if !r.Check.takes(h.How) {
			return refuse(r, "first bytes are "+h.How.String())
		}
		return allow(r)
	}
	if h.How == flows.HelloPart { // it could name anybody
		return refuse(r, "first bytes are unclear")
	}
	if h.Name == "" || c.isDst(h.Name) {
		switch {
		case !r.Check.takes(h.How):
			return refuse(r, "first bytes are "+h.How.String())
		case c.v.firstBytes == Strict || r.Check != Usual:
			return refuse(r, "first bytes name nobody")
		case r.lets():
			return allow(r)
		}
		return r.verdict
	}
	i, found := c.base, false
	c.g.mu.Lock()
	for _, o := range c.g.addrs[c.dst] {
		if o.name == h.Name && c.counts(o) {
			i, found = min(i, c.v.byName(o.name, o.kind, c.asked)), true
			break
		}
	}
	c.g.mu.Unlock()
	if !found {
		return refuse(r, "first bytes name "+h.Name)
	}
	x := &c.v.rules[i]
	switch {
	case !x.lets(), x.Verdict == Ask && !(i == c.best && h.Name == c.name) && !c.g.answered(c.destination(h.Name)):
		return refuse(x, "first bytes name "+h.Name)
	case !x.Check.takes(h.How):
		return refuse(x, "first bytes are "+h.How.String())
	}
	return allow(x)
}

// isDst says whether a name is the address itself: that is nobody's name, and nobody else's.
func (c *claim) isDst(name string) bool {
	a, err := netip.ParseAddr(name)
	if err != nil {
		return false
	}
	v4, ok := flows.Embedded(c.dst)
	return a == c.dst || ok && a == v4
}

// takes says whether first bytes are of the protocol that a rule wants.
func (k Check) takes(h flows.HelloKind) bool {
	switch k {
	case TLS:
		return h == flows.HelloTLS || h == flows.HelloQUIC
	case HTTP:
		return h == flows.HelloHTTP
	case Checked:
		return h != flows.HelloNone && h != flows.HelloPart
	}
	return true
}

// Effective lists the rules that hold for a guest, preset and all, each with its place as verdicts tell it.
func (p *Policy) Effective(guest string) []string {
	_, v := p.guest(guest)
	var list []string
	for i := range v.rules {
		list = append(list, v.rules[i].verdict.Rule)
	}
	return list
}
