package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

const (
	// mostQuestions is how many destinations of one guest somebody is asked about at a time: more than a person
	// answers in the time that they have.
	mostQuestions = 16
	// questionsTotal bounds those of all guests, and so what a list of them says.
	questionsTotal = 256
	// mostHeld is how many conversations wait for one answer. Browsers open six at a time to one place (RFC 9112 §9.4
	// leaves it to them).
	mostHeld = 64
	// mostAnswers is how many answers for a session are remembered of one guest. Beyond that it is asked again.
	mostAnswers = 1024
)

// What Answer may say.
var (
	// ErrNoQuestion is for an id that nothing is asked under, any more.
	ErrNoQuestion = errors.New("no such question: it was answered, or its time was over")
)

// Question is a destination that somebody is asked about.
type Question struct {
	ID    uint64         `json:"id"`
	Guest string         `json:"guest"`
	Proto flows.Proto    `json:"proto"`
	Name  string         `json:"name,omitempty"` // whose address it is, if an answer gave it to the guest
	Dst   netip.AddrPort `json:"dst"`            // of the first conversation that waits
	Rule  string         `json:"rule"`           // that asks
	Since time.Time      `json:"since"`
	Until time.Time      `json:"until"` // it is taken for a no then
	Held  int            `json:"held"`  // conversations that wait for the answer
	// Outcome is empty while it is asked, then allow, reject, unanswered or guest-gone.
	Outcome string `json:"outcome,omitempty"`
}

// String is the question in a line, with its outcome if it has one.
func (q Question) String() string {
	to := q.Dst.String()
	if q.Name != "" {
		to = fmt.Sprintf("%s:%d (%s)", q.Name, q.Dst.Port(), q.Dst.Addr())
	}
	if q.Outcome != "" {
		return fmt.Sprintf("%s %s: %s", q.Proto, to, q.Outcome)
	}
	return fmt.Sprintf("%s %s?", q.Proto, to)
}

// Scope is how long an answer holds.
type Scope uint8

const (
	Once    Scope = iota // for the conversations that wait
	Session              // until the guest goes
	Always               // as a rule of the document, before the one that asked
)

var scopes = []string{"once", "session", "always"}

func (s Scope) String() string { return scopes[min(int(s), len(scopes)-1)] }

// MarshalText makes a Scope its name in JSON.
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is MarshalText's inverse.
func (s *Scope) UnmarshalText(b []byte) error {
	i := slices.Index(scopes, string(b))
	if i < 0 {
		return fmt.Errorf("scope %s: want %s", quote(string(b)), oneOf(scopes))
	}
	*s = Scope(i)
	return nil
}

// Reply is somebody's answer to a Question.
type Reply struct {
	Allow bool  `json:"allow"`
	Scope Scope `json:"scope"`
	// Guest is the pattern of the rule that Always makes. Default the id of the guest that asked; * is all guests.
	Guest string `json:"guest,omitempty"`
}

// destination is what a question is about.
type destination struct {
	proto flows.Proto
	to    string // a name, or an address
	port  uint16
}

type asking struct {
	guest string
	destination
}

type question struct {
	Question
	about asking
	g     *guest
	rule  *rule
	named bool // about.to is a name
	held  []held
	timer *time.Timer
}

// held is a conversation that waits.
type held struct {
	verdict chan flows.Verdict
	inspect func(flows.Hello) flows.Verdict
}

// asks is what is being asked.
type asks struct {
	mu     sync.Mutex
	closed bool
	next   uint64
	byID   map[uint64]*question
	about  map[asking]*question
	guests map[string]int // how many
}

func (a *asks) init() {
	a.byID, a.about, a.guests = map[uint64]*question{}, map[asking]*question{}, map[string]int{}
}

// take ends a question, under a.mu.
func (a *asks) take(q *question) {
	delete(a.byID, q.ID)
	delete(a.about, q.about)
	if a.guests[q.Guest]--; a.guests[q.Guest] == 0 {
		delete(a.guests, q.Guest)
	}
	q.timer.Stop()
}

func (q *question) public() Question {
	x := q.Question
	x.Held = len(q.held)
	return x
}

func (c *claim) destination(name string) destination { return destination{c.proto, name, c.port} }

// answered says whether somebody said yes for the session.
func (g *guest) answered(d destination) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.answers[d]
}

// ask holds a conversation until somebody has answered.
func (p *Policy) ask(g *guest, d decision, q flows.Query) flows.Verdict {
	about := asking{g.id, destination{q.Proto, d.name, q.Dst.Port()}}
	if d.name == "" {
		about.to = q.Dst.Addr().String()
	}
	rule := d.rule.verdict.Rule
	g.mu.Lock()
	yes, known := g.answers[about.destination]
	g.mu.Unlock()
	if known {
		return answer(yes, rule, d.inspect)
	}
	refuse := flows.Verdict{Reject: true, Reset: true, Reason: flows.ReasonUnanswered, Rule: rule}

	a := &p.asks
	a.mu.Lock()
	x := a.about[about]
	if x != nil {
		defer a.mu.Unlock()
		if len(x.held) >= mostHeld {
			return refuse
		}
		h := held{make(chan flows.Verdict, 1), d.inspect}
		x.held = append(x.held, h)
		return flows.Verdict{Pending: h.verdict, Rule: rule}
	}
	if a.closed || a.guests[g.id] >= mostQuestions || len(a.byID) >= questionsTotal {
		a.mu.Unlock()
		return refuse
	}
	a.next++
	now := p.now()
	h := held{make(chan flows.Verdict, 1), d.inspect}
	x = &question{
		Question: Question{ID: a.next, Guest: g.id, Proto: q.Proto, Name: d.display(), Dst: q.Dst, Rule: rule, Since: now, Until: now.Add(p.cfg.AskFor)},
		about:    about, g: g, rule: d.rule, named: d.name != "", held: []held{h},
	}
	a.byID[x.ID], a.about[about] = x, x
	a.guests[g.id]++
	x.timer = time.AfterFunc(p.cfg.AskFor, func() { p.runOut(x) })
	said := x.public()
	a.mu.Unlock()
	if f := p.cfg.OnQuestion; f != nil {
		f(said)
	}
	return flows.Verdict{Pending: h.verdict, Rule: rule}
}

// answeredYes ends the Rule of a verdict that somebody gave.
const answeredYes = " (answered: allow)"

// answer is the verdict that an answer makes.
func answer(yes bool, rule string, inspect func(flows.Hello) flows.Verdict) flows.Verdict {
	if yes {
		return flows.Verdict{Allow: true, Rule: rule + answeredYes, Inspect: inspect}
	}
	return flows.Verdict{Reject: true, Reset: true, Reason: flows.ReasonPolicy, Rule: rule + " (answered: reject)"}
}

func (p *Policy) runOut(x *question) {
	p.asks.mu.Lock()
	if p.asks.byID[x.ID] != x {
		p.asks.mu.Unlock()
		return
	}
	p.asks.take(x)
	p.asks.mu.Unlock()
	p.refuse(x, flows.ReasonUnanswered)
}

func (p *Policy) refuse(x *question, why flows.Reason) {
	v := flows.Verdict{Reject: true, Reset: true, Reason: why, Rule: x.Rule}
	p.tell(x, why.String(), func(held) flows.Verdict { return v })
}

// tell ends what waits for a question that was taken.
func (p *Policy) tell(x *question, outcome string, verdict func(held) flows.Verdict) {
	v := flows.Verdict{}
	for _, h := range x.held {
		v = verdict(h)
		h.verdict <- v // has room for one, and gets one
	}
	x.Outcome = outcome
	p.audit(Decision{Kind: "question", Guest: x.Guest, Proto: x.Proto, Dst: x.Dst, Name: x.Name}, v)
	if f := p.cfg.OnQuestion; f != nil {
		f(x.public())
	}
}

// dismiss refuses what a guest waits for that is gone.
func (p *Policy) dismiss(guest string) {
	p.end(flows.ReasonGuestGone, func(x *question) bool { return x.Guest == guest })
}

func (p *Policy) dismissAll() {
	p.asks.mu.Lock()
	p.asks.closed = true
	p.asks.mu.Unlock()
	p.end(flows.ReasonUnanswered, func(*question) bool { return true })
}

func (p *Policy) end(why flows.Reason, which func(*question) bool) {
	var out []*question
	p.asks.mu.Lock()
	for _, x := range p.asks.byID {
		if which(x) {
			out = append(out, x)
			p.asks.take(x)
		}
	}
	p.asks.mu.Unlock()
	for _, x := range out {
		p.refuse(x, why)
	}
}

// Questions lists what is being asked, the oldest first.
func (p *Policy) Questions() []Question {
	list := []Question{}
	p.asks.mu.Lock()
	for _, x := range p.asks.byID {
		list = append(list, x.public())
	}
	p.asks.mu.Unlock()
	slices.SortFunc(list, func(a, b Question) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Answer answers a question for all conversations that wait for it.
func (p *Policy) Answer(id uint64, r Reply) error {
	if r.Scope == Always && r.Guest != "" {
		if err := validGuest(r.Guest); err != nil {
			return err
		}
	}
	if int(r.Scope) >= len(scopes) {
		return fmt.Errorf("scope %d: want %s", r.Scope, oneOf(scopes))
	}
	a := &p.asks
	a.mu.Lock()
	x := a.byID[id]
	if x == nil {
		a.mu.Unlock()
		return fmt.Errorf("question %d: %w", id, ErrNoQuestion)
	}
	a.take(x)
	a.mu.Unlock()

	var err error
	if r.Scope == Always {
		err = p.always(x, r)
	}
	if r.Scope == Session || err != nil {
		g := x.g
		g.mu.Lock()
		if g.answers == nil {
			g.answers = map[destination]bool{}
		}
		if len(g.answers) >= mostAnswers {
			for d := range g.answers {
				delete(g.answers, d)
				break
			}
		}
		g.answers[x.about.destination] = r.Allow
		g.mu.Unlock()
	}
	outcome := Reject
	if r.Allow {
		outcome = Allow
	}
	p.tell(x, outcome.String(), func(h held) flows.Verdict { return answer(r.Allow, x.Rule, h.inspect) })
	return err
}

// always makes a rule of an answer, in front of the one that asked: those before it have not matched, and still come
// first.
func (p *Policy) always(x *question, reply Reply) error {
	r := Rule{Verdict: Reject, To: x.about.to, Guest: cmp.Or(reply.Guest, x.Guest), Comment: "asked " + x.Since.UTC().Format(time.DateOnly)}
	if reply.Allow {
		r.Verdict = Allow
		r.Check = x.rule.Check
	}
	if r.Guest == "*" {
		r.Guest = ""
	}
	switch x.Proto {
	case flows.TCP:
		r.Proto = TCP
	case flows.UDP:
		r.Proto = UDP
	default:
		r.Proto = ICMP
	}
	if r.Proto != ICMP {
		if x.about.port == 0 {
			return errors.New("a rule for port 0: want an answer for this session")
		}
		r.Ports = Ports{{x.about.port, x.about.port}}
	}
	if x.named {
		if _, err := parseName(x.about.to); err != nil { // a name that no rule can hold: an underscore is as odd as they come
			r.To = x.Dst.Addr().String()
		}
	}
	p.change.Lock()
	d := p.doc.Load().doc
	d.Guests = slices.Clone(d.Guests)
	set := &d.Set
	part := x.rule.part
	if part == inTail { // of the guest's own preset, or the network's
		x.g.mu.Lock()
		part = x.g.part
		x.g.mu.Unlock()
		if part >= 0 && part < len(d.Guests) && d.Guests[part].Preset == NoPreset {
			part = ofNet
		}
	}
	if part >= 0 && part < len(d.Guests) {
		set = &d.Guests[part].Set
	}
	// The document may be another one by now: the rule that asked may have moved, or gone.
	i := len(set.Rules)
	if x.rule.part != inTail {
		asked := x.rule.Rule.String()
		if at := slices.IndexFunc(set.Rules, func(y Rule) bool { return y.String() == asked }); at >= 0 {
			i = at
		}
	}
	set.Rules = slices.Insert(slices.Clone(set.Rules), i, r)
	d, err := d.normalize()
	if err == nil {
		p.set(d)
	}
	p.change.Unlock()
	if err == nil && p.cfg.OnChange != nil {
		p.cfg.OnChange(p.Document())
	}
	return err
}
