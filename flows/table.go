package flows

import (
	"container/list"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// Table holds the conversations of a network.
type Table struct {
	policy atomic.Pointer[Policy]
	gen    atomic.Uint64 // how often policy was set
	epoch  time.Time
	nextID atomic.Uint64
	counts [numReasons]atomic.Uint64 // of what made no flow
	ends   [numReasons]atomic.Uint64 // of flows
	states [numProtos][Closed + 1]atomic.Int64
	waited [2]waits // by Direction
	opened atomic.Uint64
	feed   feed

	mu     sync.Mutex
	limits Limits // the network's
	flows  map[uint64]*Flow
	guests map[string]*usage
	dials  *list.List // all dialing TCP flows, oldest first
	total  Use        // all flows
	waits  Use        // all dials
}

// usage is what one guest has open.
type usage struct {
	tcp, ping int
	dials     *list.List // dialing TCP flows, oldest first
	udp       *list.List // UDP flows, least recently used first

	own    *Limits       // nil: the network's
	kept   bool          // until Forget, with what was counted
	shut   Reason        // if not ReasonNone: nothing new is let in, and why
	tokens float64       // conversations that it may begin now
	filled time.Duration // when they were counted
	begun  uint64        // by the guest, let in or not for their rate alone
	use    [numUses]Use
	learnt *learnt // nil: nothing
}

// What is counted for each guest.
const (
	useFlows = iota
	useDials
	useUDP
	usePings
	useRate
	numUses
)

func (u *usage) more(what, now int) {
	if now > u.use[what].Most {
		u.use[what].Most = now
	}
}

// begin takes one of the guest's tokens, if there is one.
func (u *usage) begin(rate int, now time.Duration) bool {
	u.begun++
	if u.tokens < 1 {
		u.tokens = min(float64(rate), u.tokens+float64(rate)*(now-u.filled).Seconds())
		u.filled = now
		if u.tokens < 1 {
			u.use[useRate].Hits++
			return false
		}
	}
	u.tokens--
	return true
}

// lruElem is a flow's places in the lists above.
type lruElem struct {
	own *list.Element // in its guest's list
	all *list.Element // in Table.dials
}

// NewTable returns a table with limits and a policy; nil allows everything.
func NewTable(l Limits, p Policy) *Table {
	t := &Table{
		limits: l.withDefaults(), epoch: time.Now(),
		flows: make(map[uint64]*Flow), guests: make(map[string]*usage), dials: list.New(),
	}
	t.SetPolicy(p)
	return t
}

// SetPolicy changes the policy for conversations to come. A network that closes doors or has routes does so in the policy
// that it gave its table: whoever sets another brings these along.
func (t *Table) SetPolicy(p Policy) {
	if p == nil {
		p = allowAll{}
	}
	t.policy.Store(&p)
	t.gen.Add(1)
}

// Policy returns the policy in force.
func (t *Table) Policy() Policy { return *t.policy.Load() }

// PolicyGen tells policies apart: it is another number after each SetPolicy. Who asks for it before Judge knows whether the
// verdict is still the policy's.
func (t *Table) PolicyGen() uint64 { return t.gen.Load() }

type allowAll struct{}

func (allowAll) Judge(Query) Verdict { return Verdict{Allow: true} }

// Limits returns the limits in force for guests that have none of their own.
func (t *Table) Limits() Limits {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.limits
}

// SetLimits changes the network's limits, for what is opened from now on.
func (t *Table) SetLimits(l Limits) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limits = l.withDefaults()
	for _, u := range t.guests {
		u.tokens = min(u.tokens, float64(t.of(u).FlowRate))
	}
}

// SetGuest gives a guest limits of its own, complete (Limits.Or), or with nil the network's, and keeps what is counted of
// it until Forget. Of other guests nothing is kept once they have nothing open, their rate neither.
func (t *Table) SetGuest(guest string, l *Limits) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.guest(guest)
	u.kept, u.own = true, l
	u.tokens = min(u.tokens, float64(t.of(u).FlowRate))
}

// Shut keeps a guest from beginning anything new for a reason; ReasonNone lets it again.
func (t *Table) Shut(guest string, r Reason) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u := t.guests[guest]; u != nil {
		u.shut = r
	}
}

// Forget lets go of what SetGuest keeps.
func (t *Table) Forget(guest string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u := t.guests[guest]; u != nil {
		u.kept = false
		t.tidy(guest, u)
	}
	t.feed.forget(guest)
}

// GuestUse is what one guest has of each limit that the table keeps.
type GuestUse struct {
	Flows, Dials, UDP, Pings Use
	FlowRate                 Use    // without Now and Most: whoever looks from time to time knows them by Begun
	Begun                    uint64 // conversations that it asked for so far
}

// Use returns what a guest has open, and had.
func (t *Table) Use(guest string) GuestUse {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.guests[guest]
	if u == nil {
		return GuestUse{}
	}
	g := GuestUse{u.use[useFlows], u.use[useDials], u.use[useUDP], u.use[usePings], u.use[useRate], u.begun}
	g.Flows.Now, g.Dials.Now, g.UDP.Now, g.Pings.Now = u.tcp, u.dials.Len(), u.udp.Len(), u.ping
	return g
}

// TotalUse returns what all guests have of the limits for all of them.
func (t *Table) TotalUse() (total, dials Use) {
	t.mu.Lock()
	defer t.mu.Unlock()
	total, dials = t.total, t.waits
	total.Now, dials.Now = len(t.flows), t.dials.Len()
	return total, dials
}

// guest is the usage of a guest, made if need be, under t.mu.
func (t *Table) guest(guest string) *usage {
	u := t.guests[guest]
	if u == nil {
		u = &usage{dials: list.New(), udp: list.New(), tokens: float64(t.limits.FlowRate), filled: t.since()}
		t.guests[guest] = u
	}
	return u
}

// of is what bounds u.
func (t *Table) of(u *usage) *Limits {
	if u.own != nil {
		return u.own
	}
	return &t.limits
}

// Judge asks the policy about a further peer of a flow that is open.
func (t *Table) Judge(q Query) Verdict {
	v := (*t.policy.Load()).Judge(q)
	if v.Pending == nil && !v.Allow {
		return v.Refused()
	}
	return v
}

// Open lets a conversation in, or says why not. One whose verdict is pending is in the table as others are: its owner
// waits, and sets the verdict or ends it. If the table itself ends the flow, to make room or because its guest
// went, it calls onEnd (if not nil) from another goroutine's stack, without locks; the owner then closes what it
// holds. The flow is Dialing.
func (t *Table) Open(q Query, onEnd func(Reason)) (*Flow, Verdict) {
	gen := t.PolicyGen()
	v := t.Judge(q)
	if !v.Allow && v.Pending == nil {
		t.Count(v.Reason)
		t.Refused(q, v)
		return nil, v
	}
	f := &Flow{ID: t.nextID.Add(1), Query: q, Opened: time.Now(), table: t, onEnd: onEnd, first: v}
	f.verdict.Store(&f.first)
	f.last.Store(int64(t.since()))
	f.moved = f.last.Load()

	var out []*Flow // who makes room
	t.mu.Lock()
	if t.PolicyGen() != gen { // whoever judges all again may have been here, and did not see this one
		t.mu.Unlock()
		return t.Open(q, onEnd)
	}
	u := t.guest(q.Guest)
	l := t.of(u)
	refuse := func(what *Use, v Verdict) (*Flow, Verdict) {
		if what != nil {
			what.Hits++
		}
		t.tidy(q.Guest, u)
		t.mu.Unlock()
		t.Count(v.Reason)
		t.Refused(q, v)
		return nil, v
	}
	full := Verdict{Reject: true, Reason: ReasonFlowLimit}
	if u.shut != ReasonNone {
		return refuse(nil, Verdict{Reason: u.shut}) // not rejected: the guest asks again, and by then it may be over
	}
	if q.Dir == Out && !u.begin(l.FlowRate, time.Duration(f.moved)) {
		return refuse(nil, Verdict{Reason: ReasonFlowRate})
	}
	if len(t.flows) >= t.limits.Total {
		// The guest that asks pays with its own oldest UDP mapping, never with another guest's.
		e := u.udp.Front()
		if e == nil {
			return refuse(&t.total, full)
		}
		t.total.Hits++
		out = append(out, t.unlink(e.Value.(*Flow), ReasonEvicted))
	}
	switch q.Proto {
	case TCP:
		if u.tcp >= l.Flows {
			return refuse(&u.use[useFlows], full)
		}
		if u.dials.Len() >= l.Dials {
			u.use[useDials].Hits++
			out = append(out, t.unlink(u.dials.Front().Value.(*Flow), ReasonEvicted))
		} else if t.dials.Len() >= t.limits.TotalDials {
			// Whoever has most dials waiting makes room: a flood ends its own.
			t.waits.Hits++
			out = append(out, t.unlink(t.mostDials().Front().Value.(*Flow), ReasonEvicted))
		}
		u.tcp++
		f.elem.own, f.elem.all = u.dials.PushBack(f), t.dials.PushBack(f)
		u.more(useFlows, u.tcp)
		u.more(useDials, u.dials.Len())
		t.waits.Most = max(t.waits.Most, t.dials.Len())
	case UDP:
		if u.udp.Len() >= l.UDP {
			u.use[useUDP].Hits++
			out = append(out, t.unlink(u.udp.Front().Value.(*Flow), ReasonEvicted))
		}
		f.elem.own = u.udp.PushBack(f)
		u.more(useUDP, u.udp.Len())
	default:
		if u.ping >= l.Pings {
			return refuse(&u.use[usePings], Verdict{Reason: ReasonRateLimit})
		}
		u.ping++
		u.more(usePings, u.ping)
	}
	f.names = u.called(&q)
	t.guests[q.Guest] = u // tidy may have taken it out together with the last flow it held
	t.flows[f.ID] = f
	t.states[protoIndex(f.Proto)][Dialing].Add(1)
	t.total.Most = max(t.total.Most, len(t.flows))
	t.changed(Opened, f)
	t.mu.Unlock()
	t.opened.Add(1)
	for _, o := range out {
		t.tell(o)
	}
	return f, v
}

func (t *Table) mostDials() *list.List {
	var most *list.List
	for _, u := range t.guests {
		if most == nil || u.dials.Len() > most.Len() {
			most = u.dials
		}
	}
	return most
}

// dialed takes a flow out of the dialing lists.
func (t *Table) dialed(f *Flow) {
	if f.Proto != TCP {
		return
	}
	if f.first.Pending == nil { // else somebody's answer was waited for
		t.waited[f.Dir].note(time.Since(f.Opened))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if u := t.guests[f.Guest]; u != nil && f.elem.own != nil {
		u.dials.Remove(f.elem.own)
		t.dials.Remove(f.elem.all)
		f.elem = lruElem{}
	}
}

// lruGrain is how far the least-recently-used order may lag behind: within it a touch costs no lock.
const lruGrain = int64(time.Second)

func (t *Table) touch(f *Flow) {
	now := int64(t.since())
	old := f.last.Swap(now)
	if f.Proto != UDP || now/lruGrain == old/lruGrain {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if u := t.guests[f.Guest]; u != nil && f.elem.own != nil && now > f.moved {
		f.moved = now
		u.udp.MoveToBack(f.elem.own)
	}
}

func (t *Table) since() time.Duration { return time.Since(t.epoch) }

func (t *Table) end(f *Flow, r Reason, tell bool) {
	t.mu.Lock()
	gone := t.unlink(f, r)
	t.mu.Unlock()
	switch {
	case tell:
		t.tell(gone)
	case gone != nil:
		gone.onEnd = nil
	}
}

// unlink takes f out of the table under t.mu and returns it, or nil if it was out already.
func (t *Table) unlink(f *Flow, r Reason) *Flow {
	if t.flows[f.ID] != f {
		return nil
	}
	delete(t.flows, f.ID)
	u := t.guests[f.Guest]
	switch f.Proto {
	case TCP:
		u.tcp--
		if f.elem.own != nil {
			u.dials.Remove(f.elem.own)
			t.dials.Remove(f.elem.all)
		}
	case UDP:
		u.udp.Remove(f.elem.own)
	default:
		u.ping--
	}
	f.elem = lruElem{}
	f.stop(r)
	t.states[protoIndex(f.Proto)][f.state.Swap(int32(Closed))].Add(-1)
	t.tidy(f.Guest, u)
	t.ends[r].Add(1)
	t.over(f)
	return f
}

func (t *Table) tidy(guest string, u *usage) {
	if u.tcp == 0 && u.ping == 0 && u.udp.Len() == 0 && !u.kept {
		delete(t.guests, guest)
	}
}

// tell tells the owner of a flow that unlink returned, and lets go of it: followers may keep the flow for longer.
func (t *Table) tell(f *Flow) {
	if f == nil || f.onEnd == nil {
		return
	}
	end := f.onEnd
	f.onEnd = nil
	end(f.Reason())
}

// EndGuest ends all conversations of a guest and tells their owners.
func (t *Table) EndGuest(guest string, r Reason) {
	t.endIf(r, func(f *Flow) bool { return f.Guest == guest })
}

// EndAll ends all conversations and tells their owners.
func (t *Table) EndAll(r Reason) { t.endIf(r, func(*Flow) bool { return true }) }

func (t *Table) endIf(r Reason, match func(*Flow) bool) {
	t.mu.Lock()
	var out []*Flow
	for _, f := range t.flows {
		if match(f) {
			out = append(out, t.unlink(f, r))
		}
	}
	t.mu.Unlock()
	for _, f := range out {
		t.tell(f)
	}
}

// Count counts a drop or refusal that made no flow.
func (t *Table) Count(r Reason) { t.counts[r].Add(1) }

// Counts returns how often each reason was given, for what made no flow and for flows that ended, without those that
// never were.
func (t *Table) Counts() map[string]uint64 {
	m := make(map[string]uint64)
	for r := range t.counts {
		if n := t.counts[r].Load() + t.ends[r].Load(); n > 0 {
			m[Reason(r).String()] = n
		}
	}
	return m
}

// Opened is how many conversations were ever let in.
func (t *Table) Opened() uint64 { return t.opened.Load() }

// Len is how many conversations there are.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.flows)
}

// All returns the conversations there are, oldest first.
func (t *Table) All() []*Flow {
	t.mu.Lock()
	fs := make([]*Flow, 0, len(t.flows))
	for _, f := range t.flows {
		fs = append(fs, f)
	}
	t.mu.Unlock()
	sort.Slice(fs, func(i, j int) bool { return fs[i].ID < fs[j].ID })
	return fs
}

// List is what All shows.
func (t *Table) List() []Snapshot {
	fs := t.All()
	list := make([]Snapshot, len(fs))
	for i, f := range fs {
		list[i] = f.Snapshot()
	}
	return list
}
