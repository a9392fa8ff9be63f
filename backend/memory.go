package backend

// The memory of the process, which all guests share. Each has bounds of its own, and many together may still come to more
// than there is: then whoever holds most gives first. A guest that holds little is never touched.

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

const (
	// Squeezing begins when what a collection would leave is three quarters of the target, since Go's collector takes
	// more and more of the processor as the rest goes; and ends at five eighths.
	squeezeAbove, squeezeUntil = 0.75, 0.625
	// memoryGuest is which part of the target one guest's buffers may have, and memoryQueue its queue: filled faster than
	// anybody could look, they alone do not come near it.
	memoryGuest, memoryQueue = 4, 16
	// memoryLeast is the part of the target below which a guest is not blamed.
	memoryLeast = 32
	// memoryIdle is how long a conversation has not moved that is ended before those that do.
	memoryIdle = 10 * time.Second
	// flowCost is about what a conversation takes besides what it holds: gVisor's endpoint, its timers, and ours.
	flowCost = 12 << 10
	// Looking takes some microseconds. It is done each second while less than half of the target is taken, and else as
	// often as a guest can open some hundred conversations.
	memoryCalm, memoryTense = time.Second, 50 * time.Millisecond
	// leastTarget is what a daemon with a guest or two works in.
	leastTarget = 32 << 20
)

// Memory is a target for the memory of the process, for all networks that have it in their Config. At the target the guest
// that holds most is squeezed: its conversations get smaller windows, its bad line drops what is too much, it may begin
// no conversation, and then they are ended, those that are idle first (flows.ReasonMemory).
type Memory struct {
	target int64
	read   func() memoryState // tests have their own

	mu       sync.Mutex
	nets     []*Network
	stop     context.CancelFunc
	done     chan struct{}
	was      int64 // Go's limit before
	squeezed map[*port]int
	acted    uint64 // collections when something was done last
	at       time.Time
	now      int64
	most     int64
	hits     uint64
}

// NewMemory returns a target in bytes, 32 MiB or more.
func NewMemory(target int64) (*Memory, error) {
	if target < leastTarget {
		return nil, fmt.Errorf("a memory target of %d bytes: want %d or more", target, leastTarget)
	}
	return &Memory{target: target, read: readMemory, squeezed: map[*port]int{}}, nil
}

// Target is how many bytes it is.
func (m *Memory) Target() int64 { return m.target }

// join has the network's guests count; the first begins the looking.
func (m *Memory) join(n *Network) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nets = append(m.nets, n)
	if len(m.nets) > 1 {
		return
	}
	m.was = debug.SetMemoryLimit(m.target)
	var ctx context.Context
	ctx, m.stop = context.WithCancel(context.Background())
	m.done = make(chan struct{})
	go func() { defer close(m.done); m.watch(ctx) }()
}

func (m *Memory) leave(n *Network) {
	m.mu.Lock()
	m.nets = slices.DeleteFunc(m.nets, func(o *Network) bool { return o == n })
	last := len(m.nets) == 0
	if last {
		m.stop()
		debug.SetMemoryLimit(m.was)
	}
	m.mu.Unlock()
	if last {
		<-m.done
	}
}

func (m *Memory) watch(ctx context.Context) {
	t := time.NewTimer(memoryCalm)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if m.look(time.Now()) {
			t.Reset(memoryTense)
		} else {
			t.Reset(memoryCalm)
		}
	}
}

// memoryState is what the runtime says.
type memoryState struct {
	mapped int64  // what Go's own limit counts
	live   int64  // of it, what the last collection left
	cycles uint64 // collections so far
}

func readMemory() memoryState {
	s := []metrics.Sample{
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"},
		{Name: "/gc/cycles/total:gc-cycles"},
	}
	metrics.Read(s)
	v := func(i int) int64 {
		if s[i].Value.Kind() != metrics.KindUint64 {
			return 0
		}
		return int64(s[i].Value.Uint64())
	}
	return memoryState{mapped: v(0) - v(1), live: v(0) - v(1) - v(2) - v(3) - v(4) + v(5), cycles: uint64(v(6))}
}

// look does what is due, and says whether to look again soon.
func (m *Memory) look(now time.Time) (tense bool) {
	s := m.read()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now, m.most = s.live, max(m.most, s.live)
	above, until := int64(float64(m.target)*squeezeAbove), int64(float64(m.target)*squeezeUntil)
	for p := range m.squeezed {
		if p.ctx.Err() != nil {
			delete(m.squeezed, p)
		}
	}
	switch {
	case s.live > above:
		if s.cycles == m.acted { // what was done last is not seen yet
			if now.Sub(m.at) > time.Second {
				m.at = now
				go runtime.GC() // it takes milliseconds, and waits for nobody
			}
			return true
		}
		m.acted, m.at = s.cycles, now
		m.squeeze(s.live - until)
		return true
	case s.mapped > above && s.cycles == m.acted && now.Sub(m.at) > time.Second:
		// Perhaps it is garbage only.
		m.at = now
		go runtime.GC()
		return true
	case s.live < until && len(m.squeezed) > 0 && now.Sub(m.at) > time.Second:
		m.at = now
		m.relieve()
		return true
	}
	return s.mapped > m.target/2 || len(m.squeezed) > 0
}

// holding is what a port's guest takes.
func (p *port) holding() int {
	u := p.net.flows.Use(p.id)
	return p.buffers.use().Now + int(p.queue.bytes.Load()+p.bad.Held()) + p.fragments.use().Now + (u.Flows.Now+u.UDP.Now)*flowCost
}

// squeeze makes whoever holds most give back what is too much. Called with mu.
func (m *Memory) squeeze(much int64) {
	var worst *port
	most := int(m.target / memoryLeast)
	for _, n := range m.nets {
		for _, p := range n.seg.all() {
			if h := p.holding(); h > most {
				worst, most = p, h
			}
		}
	}
	if worst == nil {
		for _, n := range m.nets {
			n.complain(noMemory, fmt.Errorf("%s in use of %s, and no guest holds much of it", bytesText(m.now), bytesText(m.target)))
		}
		return
	}
	m.hits++
	n := worst.net
	level := m.squeezed[worst]
	m.squeezed[worst] = level + 1
	n.complain(noMemory, fmt.Errorf("%s in use of %s: guest %s holds most, %s, and is squeezed", bytesText(m.now), bytesText(m.target), worst.id, bytesText(int64(most))))
	n.flows.Shut(worst.id, flows.ReasonMemory)
	worst.buffers.squeeze(max(worst.buffers.use().Now/2, 1<<20))
	worst.bad.Bound(max(worst.bad.Held()/4, 1<<20)) // half of it, for each way a half
	if level == 0 && much < int64(most)/4 {
		return // who is served now may read on, and that may be enough
	}
	ended := worst.giveUp(int(much))
	worst.log.Warn("conversations ended: the process is at its memory target", "count", ended, "held", bytesText(int64(most)))
}

// giveUp ends conversations until they held so much: those that are idle, longest first, and then those that hold most.
func (p *port) giveUp(much int) (ended int) {
	type one struct {
		f    *flows.Flow
		held int
		idle time.Duration
	}
	held := p.buffers.byFlow()
	var all []one
	for _, f := range p.net.flows.All() {
		if f.Guest != p.id {
			continue
		}
		o := one{f, held[f] + flowCost, f.Idle()}
		if o.idle < memoryIdle {
			o.idle = 0
		}
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b one) int {
		return cmp.Or(cmp.Compare(b.idle, a.idle), cmp.Compare(b.held, a.held))
	})
	for _, o := range all {
		if much <= 0 {
			break
		}
		much -= o.held
		ended++
		o.f.Cut(flows.ReasonMemory)
	}
	return ended
}

// relieve gives back what was taken, half at a time. Called with mu.
func (m *Memory) relieve() {
	for p := range m.squeezed {
		p.net.flows.Shut(p.id, flows.ReasonNone)
		if p.buffers.ease() {
			p.bad.Bound(0)
			delete(m.squeezed, p)
		}
	}
	if len(m.squeezed) == 0 {
		for _, n := range m.nets {
			n.recovered(noMemory)
		}
	}
}

// noMemory is what the status and the events call it.
const noMemory = "memory"

func bytesText(n int64) string { return (&flows.Limit{Unit: flows.Bytes}).Format(int(n)) }

// within makes a guest's limits fit the target.
func (m *Memory) within(l *flows.Limits) {
	if m != nil {
		l.Buffers = min(l.Buffers, int(m.target/memoryGuest))
		l.Queue = min(l.Queue, int(m.target/memoryQueue))
	}
}

func (n *Network) memoryLimit() []LimitInfo {
	m := n.cfg.Memory
	if m == nil {
		s := readMemory()
		return []LimitInfo{{Name: noMemory, Text: "none", Unit: flows.Bytes, Now: int(s.live), Most: int(s.live), Why: memoryWhy}}
	}
	s := m.read()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now, m.most = s.live, max(m.most, s.live)
	return []LimitInfo{{Name: noMemory, Value: int(m.target), Text: bytesText(m.target), Unit: flows.Bytes,
		Now: int(m.now), Most: int(m.most), Hits: m.hits, Why: memoryWhy}}
}

const memoryWhy = "of the process, all networks together; at it whoever holds most is squeezed"
