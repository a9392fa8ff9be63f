package flows

import (
	"container/list"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// Limits bound what one guest, and all together, may have open. Zero means the default.
type Limits struct {
	// Flows is how many TCP conversations one guest may have, dialing ones included. Default 16384: more than any
	// client opens to one server at once (its ports end at 28,232 by default, ip_local_port_range), and at 60 KB
	// each still under 1 GB.
	Flows int
	// Dials is how many of a guest's TCP conversations may wait for the far side's answer. Default 1024. Beyond it
	// the oldest is ended: it has waited longest, so it is the likeliest to wait in vain, and the guest's own
	// retransmission opens it again. A good server's answer thus never queues behind black holes.
	Dials int
	// TotalDials is the same for all guests together. Default 8192, eight busy guests.
	TotalDials int
	// UDP is how many UDP mappings one guest may have. Default 4096, beyond it the least recently used is ended;
	// RFC 4787 REQ-5 asks for minutes of life, so a busy resolver or a torrent client needs thousands.
	UDP int
	// Pings is how many of a guest's echo requests may be under way. Default 128; beyond it they are dropped, as a
	// router's own limit would.
	Pings int
	// Total is how many conversations there may be in all, since each costs a descriptor. Default no bound; the
	// daemon sets it from RLIMIT_NOFILE.
	Total int
}

func (l Limits) withDefaults() Limits {
	def := func(p *int, d int) {
		if *p <= 0 {
			*p = d
		}
	}
	def(&l.Flows, 16384)
	def(&l.Dials, 1024)
	def(&l.TotalDials, 8192)
	def(&l.UDP, 4096)
	def(&l.Pings, 128)
	if l.Total <= 0 {
		l.Total = int(^uint(0) >> 1)
	}
	return l
}

// Table holds the conversations of a network.
type Table struct {
	limits Limits
	policy atomic.Pointer[Policy]
	epoch  time.Time
	nextID atomic.Uint64
	counts [numReasons]atomic.Uint64
	opened atomic.Uint64

	mu     sync.Mutex
	flows  map[uint64]*Flow
	guests map[string]*usage
	dials  *list.List // all dialing TCP flows, oldest first
}

// usage is what one guest has open.
type usage struct {
	tcp, ping int
	dials     *list.List // dialing TCP flows, oldest first
	udp       *list.List // UDP flows, least recently used first
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
}

type allowAll struct{}

func (allowAll) Judge(Query) Verdict { return Verdict{Allow: true} }

// Limits returns the limits in force.
func (t *Table) Limits() Limits { return t.limits }

// Judge asks the policy about a further peer of a flow that is open.
func (t *Table) Judge(q Query) Verdict { return (*t.policy.Load()).Judge(q) }

// Open lets a conversation in, or says why not. If the table itself ends the flow, to make room or because its guest
// went, it calls onEnd (if not nil) from another goroutine's stack, without locks; the owner then closes what it
// holds. The flow is Dialing.
func (t *Table) Open(q Query, onEnd func(Reason)) (*Flow, Verdict) {
	v := t.Judge(q)
	if !v.Allow {
		t.Count(v.Reason)
		return nil, v
	}
	f := &Flow{ID: t.nextID.Add(1), Query: q, Opened: time.Now(), table: t, onEnd: onEnd}
	f.last.Store(int64(t.since()))
	f.moved = f.last.Load()

	var out []*Flow // who makes room
	t.mu.Lock()
	u := t.guests[q.Guest]
	if u == nil {
		u = &usage{dials: list.New(), udp: list.New()}
		t.guests[q.Guest] = u
	}
	refuse := func() (*Flow, Verdict) {
		t.tidy(q.Guest, u)
		t.mu.Unlock()
		t.Count(ReasonFlowLimit)
		return nil, Verdict{Reject: true, Reason: ReasonFlowLimit}
	}
	if len(t.flows) >= t.limits.Total {
		// The guest that asks pays with its own oldest UDP mapping, never with another guest's.
		e := u.udp.Front()
		if e == nil {
			return refuse()
		}
		out = append(out, t.unlink(e.Value.(*Flow), ReasonEvicted))
	}
	switch q.Proto {
	case TCP:
		if u.tcp >= t.limits.Flows {
			return refuse()
		}
		if u.dials.Len() >= t.limits.Dials {
			out = append(out, t.unlink(u.dials.Front().Value.(*Flow), ReasonEvicted))
		} else if t.dials.Len() >= t.limits.TotalDials {
			// Whoever has most dials waiting makes room: a flood ends its own.
			out = append(out, t.unlink(t.mostDials().Front().Value.(*Flow), ReasonEvicted))
		}
		u.tcp++
		f.elem.own, f.elem.all = u.dials.PushBack(f), t.dials.PushBack(f)
	case UDP:
		if u.udp.Len() >= t.limits.UDP {
			out = append(out, t.unlink(u.udp.Front().Value.(*Flow), ReasonEvicted))
		}
		f.elem.own = u.udp.PushBack(f)
	default:
		if u.ping >= t.limits.Pings {
			t.tidy(q.Guest, u)
			t.mu.Unlock()
			t.Count(ReasonRateLimit)
			return nil, Verdict{Reason: ReasonRateLimit}
		}
		u.ping++
	}
	t.guests[q.Guest] = u // tidy may have taken it out together with the last flow it held
	t.flows[f.ID] = f
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
	if tell {
		t.tell(gone)
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
	f.state.Store(int32(Closed))
	f.reason = r
	t.tidy(f.Guest, u)
	t.Count(r)
	return f
}

func (t *Table) tidy(guest string, u *usage) {
	if u.tcp == 0 && u.ping == 0 && u.udp.Len() == 0 {
		delete(t.guests, guest)
	}
}

func (t *Table) tell(f *Flow) {
	if f != nil && f.onEnd != nil {
		f.onEnd(f.reason)
	}
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

// Counts returns how often each reason was given, without those that never were.
func (t *Table) Counts() map[string]uint64 {
	m := make(map[string]uint64)
	for r := range t.counts {
		if n := t.counts[r].Load(); n > 0 {
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

// List returns the conversations there are, oldest first.
func (t *Table) List() []Snapshot {
	t.mu.Lock()
	fs := make([]*Flow, 0, len(t.flows))
	for _, f := range t.flows {
		fs = append(fs, f)
	}
	t.mu.Unlock()
	sort.Slice(fs, func(i, j int) bool { return fs[i].ID < fs[j].ID })
	list := make([]Snapshot, len(fs))
	for i, f := range fs {
		list[i] = f.Snapshot()
	}
	return list
}
