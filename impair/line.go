package impair

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
	"sort"
	"time"
)

// Line is one direction of one guest's wire: frames are sent into it, and taken out when they have arrived. It has no
// clock and no goroutine: whoever calls it says what time it is, counted from any beginning, and asks it when something
// is due next. What should have happened meanwhile happens as of when it should have, so a caller that is late makes
// frames late, but no line slower. It is not safe for several goroutines.
type Line struct {
	// Skip is how many bytes stand before each frame. They go with it.
	Skip int
	// Whole, if not nil, finishes a frame that is about to be damaged: its checksum must not be made afterwards. It is
	// false for one that nobody would see the damage of, which is dropped, as its receiver would.
	Whole func(frame []byte) bool
	// Most, if not 0, is how many bytes may be waiting and under way, where the settings allow more. It may be changed
	// at any time.
	Most int64

	up      bool
	seed    uint64
	set     *Settings
	classes []*class // of set.Flows, and the default's last
	former  []*class // that settings have done without since, with frames under way
	sky     sky
	order   uint64
	held    int64
	now     time.Duration
	free    [][]byte // of pooledBuffer
	short   [][]byte // of shortBuffer
	dropped uint64
}

// frameCost is counted for each frame besides its bytes: what the bookkeeping takes.
const frameCost = 160

// A buffer of up to pooledBuffer bytes is kept for the next frame, until keptBuffers bytes of them are: a millisecond of
// 10 Gbit/s. Short frames have shortBuffer: a line full of them would else hold eight times what it carries.
const (
	shortBuffer  = 256
	pooledBuffer = 2 << 10
	keptBuffers  = 1 << 20
)

type packet struct {
	buf     []byte
	class   *class
	order   uint64
	arrived time.Duration
	left    time.Duration // the line
	due     time.Duration
	fate    fate
	charged int64 // counted in held
}

func (p *packet) size(skip int) int { return len(p.buf) - skip }

// sky is what is under way, soonest first.
type sky []*packet

func (s sky) Len() int { return len(s) }
func (s sky) Less(i, j int) bool {
	return s[i].due < s[j].due || s[i].due == s[j].due && s[i].order < s[j].order
}
func (s sky) Swap(i, j int) { s[i], s[j] = s[j], s[i] }
func (s *sky) Push(x any)   { *s = append(*s, x.(*packet)) }
func (s *sky) Pop() any {
	old := *s
	p := old[len(old)-1]
	old[len(old)-1] = nil
	*s = old[:len(old)-1]
	return p
}

// NewLine makes a line without faults. up says that it is what a guest sends.
func NewLine(up bool) *Line {
	l := &Line{up: up}
	l.Set(0, &Settings{})
	return l
}

// Set changes what frames suffer from now on. What waits stays in its order and goes at the new rate, a part of a frame
// that has gone is gone; what is under way arrives by the new latency if that is sooner. Chances go on where they were,
// unless the settings have a seed: then all frames are counted from 0.
func (l *Line) Set(now time.Duration, s *Settings) {
	l.advance(now)
	anew := s.Seed != 0 || l.set == nil
	if anew {
		l.seed = s.Seed
	}
	old := map[string]*class{}
	for _, c := range l.classes {
		old[c.name] = c
	}
	l.set, l.classes = s, nil
	add := func(name string, w *Way) {
		c := old[name]
		delete(old, name)
		if c == nil {
			c = &class{name: name, line: l, plan: &Way{}, way: &Way{}}
			c.begin(now)
		}
		if anew {
			c.restart(l.seed)
		} else if c.seed == 0 {
			c.restart(l.seed)
		}
		c.begun, c.step, c.plan = now, 0, w
		c.change(now, w)
		c.run(now)
		l.classes = append(l.classes, c)
	}
	for i := range s.Flows {
		f := &s.Flows[i]
		w := &f.Down
		if l.up {
			w = &f.Up
		}
		add(f.Name, w)
	}
	w := &s.Down
	if l.up {
		w = &s.Up
	}
	add(defaultName, w)
	for _, c := range old { // a flow that is no more: its frames go as the others do
		if c.flying == 0 && c.waiting() == 0 {
			continue
		}
		c.begun, c.step, c.plan = now, 0, w
		c.change(now, w)
		c.run(now)
		l.former = append(l.former, c)
	}
	slices.SortFunc(l.former, func(a, b *class) int { return cmp.Compare(a.name, b.name) })
	l.advance(now)
}

// None says that there is nothing to do, and nothing left.
func (l *Line) None() bool { return l.set.None() && l.Empty() }

// Empty says that nothing is waiting or under way.
func (l *Line) Empty() bool { return l.held == 0 }

// Cut says to what length of its IP packet a TCP segment is to be cut before it is sent, as which a frame like f would
// leave a guest without offloads. 0: it need not be.
func (l *Line) Cut(f []byte) int {
	c := l.classOf(f[l.Skip:])
	if c.plan.whole() {
		return 0
	}
	return c.way.mtu()
}

// Buffer returns n bytes for a frame, Skip included.
func (l *Line) Buffer(n int) []byte {
	list, size := &l.free, pooledBuffer
	switch {
	case n > pooledBuffer:
		return make([]byte, n)
	case n <= shortBuffer:
		list, size = &l.short, shortBuffer
	}
	k := len(*list)
	if k == 0 {
		return make([]byte, n, size)
	}
	b := (*list)[k-1]
	(*list)[k-1] = nil
	*list = (*list)[:k-1]
	return b[:n]
}

// Free takes back what Buffer gave and Take returned.
func (l *Line) Free(b []byte) {
	switch {
	case cap(b) == pooledBuffer && len(l.free) < keptBuffers/pooledBuffer:
		l.free = append(l.free, b[:0])
	case cap(b) == shortBuffer && len(l.short) < keptBuffers/shortBuffer:
		l.short = append(l.short, b[:0])
	}
}

func (l *Line) classOf(f []byte) *class {
	last := len(l.classes) - 1
	if last > 0 {
		if e, ok := endsOf(f, l.up); ok {
			for i := range l.set.Flows {
				if l.set.Flows[i].Match.has(&e) {
					return l.classes[i]
				}
			}
		}
	}
	return l.classes[last]
}

// Send sends a frame, Skip bytes before it. Its memory is the line's from now on; it should be of Buffer.
func (l *Line) Send(now time.Duration, buf []byte) {
	l.advance(now)
	c := l.classOf(buf[l.Skip:])
	packets := 1
	if n := len(buf) - l.Skip - ethLen; n > c.way.mtu() {
		packets = (n + c.way.mtu() - 1) / c.way.mtu()
	}
	p := &packet{buf: buf, class: c, arrived: l.now, fate: c.fate(c.way, packets), charged: int64(cap(buf) + frameCost)}
	p.order = l.order
	l.order++
	c.stats.Frames++
	c.stats.Bytes += uint64(p.size(l.Skip))
	if l.held+p.charged > l.room(c.way) {
		c.stats.Full++
		l.dropped++
		l.Free(buf)
		return
	}
	l.held += p.charged
	c.arrive(l.now, p)
}

// room is how many bytes may be waiting and under way.
func (l *Line) room(w *Way) int64 {
	if l.Most > 0 {
		return min(l.Most, w.memory())
	}
	return w.memory()
}

const ethLen = 14

// Next is when Take has something to do, false if never.
func (l *Line) Next() (time.Duration, bool) {
	next := time.Duration(math.MaxInt64)
	if len(l.sky) > 0 {
		next = l.sky[0].due
	}
	for _, c := range l.classes {
		next = min(next, c.next())
	}
	for _, c := range l.former {
		next = min(next, c.next())
	}
	return next, next != math.MaxInt64
}

// Take appends frames that have arrived to out, in order, until they are so many or have so many bytes.
func (l *Line) Take(now time.Duration, out [][]byte, frames, bytes int) [][]byte {
	l.advance(now)
	for len(l.sky) > 0 && l.sky[0].due <= l.now && frames > 0 && bytes > 0 {
		p := heap.Pop(&l.sky).(*packet)
		c := p.class
		c.flying -= int64(p.size(l.Skip))
		c.stats.Passed++
		c.stats.delay(p.due - p.arrived)
		l.held -= p.charged
		frames--
		bytes -= len(p.buf)
		out = append(out, p.buf)
	}
	if len(l.former) > 0 {
		l.former = slices.DeleteFunc(l.former, func(c *class) bool { return c.flying == 0 && c.waiting() == 0 })
	}
	return out
}

// advance lets happen what has to until now.
func (l *Line) advance(now time.Duration) {
	l.now = max(l.now, now)
	for _, c := range l.classes {
		c.run(l.now)
	}
	for _, c := range l.former {
		c.run(l.now)
	}
}

// drop forgets a packet that has been charged.
func (l *Line) drop(p *packet) {
	l.held -= p.charged
	l.dropped++
	l.Free(p.buf)
	p.buf = nil
}

// Clear drops what is waiting and under way.
func (l *Line) Clear() {
	for _, c := range append(l.former, l.classes...) {
		c.fifo, c.head, c.cur, c.queued, c.flying = nil, 0, nil, 0, 0
	}
	l.sky, l.held, l.former, l.free, l.short = nil, 0, nil, nil, nil
}

// class is the frames of one flow.
type class struct {
	name string
	line *Line

	plan  *Way          // with its steps
	begun time.Duration // when they began
	step  int           // the next
	way   *Way          // in force

	seed   uint64
	index  uint64 // of the next frame
	badly  bool   // Gilbert's line is bad
	gap    int
	z      float64
	hasZ   bool
	stats  Stats
	queued int64 // bytes that wait, with the frame on the line
	flying int64 // bytes under way

	fifo []*packet // those behind head wait
	head int
	cur  *packet // on the line, until depart
	from time.Duration
	// depart is when cur has left. free is when the line would have sent all that it took, had there been no burst: a
	// bucket of tokens, written as a time. part is what free lacks, in bits times a second's nanoseconds, of rate.
	depart, free time.Duration
	part         int64

	opportunity int // of the trace, the next, counted through all its turns
	room        int // what is left of the one before
	roomAt      time.Duration
	traceFrom   time.Duration

	codel codel
	red   red
	last  time.Duration // the latest due
}

func (c *class) begin(now time.Duration) { c.free, c.depart, c.traceFrom = rested, now, now }

// rested is a line that has done nothing for so long that any burst may pass.
const rested = -math.MaxInt64 / 4

// restart counts frames anew.
func (c *class) restart(seed uint64) {
	way := "down"
	if c.line.up {
		way = "up"
	}
	c.seed = seedOf(seed, way, c.name)
	c.index, c.badly, c.gap, c.hasZ = 0, false, 0, false
}

func (c *class) waiting() int {
	n := len(c.fifo) - c.head
	if c.cur != nil {
		n++
	}
	return n
}

// next is when something happens in the class by itself.
func (c *class) next() time.Duration {
	t := time.Duration(math.MaxInt64)
	if c.cur != nil {
		t = c.depart + c.way.least()
	}
	if c.cur != nil || c.flying > 0 {
		t = min(t, c.nextStep())
	}
	return t
}

func (c *class) nextStep() time.Duration {
	if len(c.plan.Steps) == 0 {
		return math.MaxInt64
	}
	if c.step < len(c.plan.Steps) {
		return c.begun + c.plan.Steps[c.step].At
	}
	if c.plan.Repeat > 0 {
		return c.begun + c.plan.Repeat
	}
	return math.MaxInt64
}

// run lets departures and steps happen until now, in their order.
func (c *class) run(now time.Duration) {
	if r := c.plan.Repeat; r > 0 && c.cur == nil && c.flying == 0 && now-c.begun > 2*r { // nobody was there to see those
		c.begun += (now - c.begun) / r * r
		c.step = 0
		c.change(now, c.plan)
	}
	for {
		step := c.nextStep()
		if c.cur != nil && c.depart <= now && c.depart <= step {
			c.sent(c.depart)
			continue
		}
		if step > now {
			return
		}
		w := c.plan
		if c.step < len(c.plan.Steps) {
			w = &c.plan.Steps[c.step].Way
			c.step++
		} else {
			c.begun, c.step = c.begun+c.plan.Repeat, 0
		}
		c.change(step, w)
	}
}

// arrive takes a packet that comes to the line.
func (c *class) arrive(now time.Duration, p *packet) {
	w, size := c.way, p.size(c.line.Skip)
	if w.Rate == 0 && w.Trace == nil {
		c.flying += int64(size)
		c.leave(p, now)
		return
	}
	if w.Policy == Police {
		burst := c.timeOf(w.burst())
		c.free = max(c.free, now-burst)
		if t := c.timeOf(int64(size)); c.free+t <= now {
			c.free += t
			c.flying += int64(size)
			c.leave(p, now)
			return
		}
		c.stats.Policed++
		c.line.drop(p)
		return
	}
	limit := w.queueBytes()
	if c.queued > 0 && c.queued+int64(size) > limit || w.Policy == RED && c.red.drops(c, p, now, limit) {
		c.stats.Queue++
		c.line.drop(p)
		return
	}
	c.queued += int64(size)
	if c.cur == nil {
		c.from = now
		c.load(p, now)
		c.run(now)
		return
	}
	if c.head > 0 && c.head == len(c.fifo) {
		c.fifo, c.head = c.fifo[:0], 0
	} else if c.head > 1024 && c.head*2 > len(c.fifo) {
		n := copy(c.fifo, c.fifo[c.head:])
		clear(c.fifo[n:])
		c.fifo, c.head = c.fifo[:n], 0
	}
	c.fifo = append(c.fifo, p)
}

// timeOf is how long the line takes for so many bytes.
func (c *class) timeOf(n int64) time.Duration {
	return time.Duration(float64(n) * 8e9 / float64(c.way.Rate))
}

// load puts p on the line at now.
func (c *class) load(p *packet, now time.Duration) {
	c.cur, c.from = p, now
	size := p.size(c.line.Skip)
	switch w := c.way; {
	case w.Trace != nil:
		c.depart = c.carry(w.Trace, size, now)
	case w.Rate == 0:
		c.depart = now
	default:
		if least := now - c.timeOf(w.burst()); c.free < least {
			c.free, c.part = least, 0
		}
		// In whole nanoseconds with the rest carried on: a rate is exact over any time.
		bits := int64(size)*8*1e9 + c.part
		c.free += time.Duration(bits / w.Rate)
		c.part = bits % w.Rate
		c.depart = max(now, c.free)
	}
}

// carry is when the trace's line has carried n bytes of a frame that came at now.
func (c *class) carry(t *Trace, n int, now time.Duration) time.Duration {
	n = max(n-ethLen, 1)
	if c.room >= n && c.roomAt == now {
		c.room -= n
		return now
	}
	if c.roomAt == now {
		n -= c.room
	}
	period := time.Duration(t.At[len(t.At)-1]) * ms
	at := func(i int) time.Duration {
		return c.traceFrom + time.Duration(i/len(t.At))*period + time.Duration(t.At[i%len(t.At)])*ms
	}
	if at(c.opportunity) < now { // those are over
		turn := int((now - c.traceFrom) / period)
		past := (now - c.traceFrom) % period
		i := sort.Search(len(t.At), func(i int) bool { return time.Duration(t.At[i])*ms >= past })
		c.opportunity = max(c.opportunity, turn*len(t.At)+i)
	}
	for {
		c.roomAt, c.room = at(c.opportunity), traceBytes
		c.opportunity++
		if n <= c.room {
			c.room -= n
			return max(c.roomAt, now)
		}
		n -= c.room
	}
}

// sent takes cur off the line, and puts the next on it.
func (c *class) sent(now time.Duration) {
	p := c.cur
	c.cur = nil
	size := int64(p.size(c.line.Skip))
	c.queued -= size
	c.flying += size
	c.leave(p, now)
	if c.way.Policy == CoDel {
		p = c.codel.next(c, now)
	} else {
		p = c.pop()
	}
	if p != nil {
		c.load(p, now)
	} else {
		c.red.idle = now
	}
}

func (c *class) pop() *packet {
	if c.head == len(c.fifo) {
		return nil
	}
	p := c.fifo[c.head]
	c.fifo[c.head] = nil
	c.head++
	return p
}

// leave lets a packet go that the line has carried, counted in flying.
func (c *class) leave(p *packet, now time.Duration) {
	l, w := c.line, c.way
	lose := func(n *uint64) {
		*n++
		c.flying -= int64(p.size(l.Skip))
		l.drop(p)
	}
	if w.FlapDown > 0 && (now-c.begun)%w.FlapEvery >= w.FlapEvery-w.FlapDown {
		lose(&c.stats.Flap)
		return
	}
	if p.fate.lost {
		lose(&c.stats.Lost)
		return
	}
	if p.fate.damaged {
		c.stats.Corrupted++
		if l.Whole != nil && !l.Whole(p.buf) {
			lose(&c.stats.Lost)
			return
		}
		if bits := uint64(p.size(l.Skip)-ethLen) * 8; bits > 0 && p.size(l.Skip) > ethLen {
			at := p.fate.bit % bits
			p.buf[l.Skip+ethLen+int(at/8)] ^= 1 << (at % 8)
		}
	}
	p.left = now
	c.aim(p, now)
	if c.flying > int64(p.size(l.Skip)) && p.fate.early {
		c.stats.Reordered++
	}
	heap.Push(&l.sky, p)
	if p.fate.doubled && l.held+p.charged <= l.room(w) {
		c.stats.Duplicated++
		q := &packet{}
		*q = *p
		q.buf = append(l.Buffer(len(p.buf))[:0], p.buf...)
		q.order = l.order
		l.order++
		l.held += q.charged
		c.flying += int64(q.size(l.Skip))
		heap.Push(&l.sky, q)
	}
}

// aim says when a packet that has left arrives.
func (c *class) aim(p *packet, now time.Duration) {
	w := c.way
	if p.fate.early {
		p.due = now
		return
	}
	late := max(p.fate.late, -w.Latency)
	if w.Dist == Uniform {
		late = max(late, -w.Jitter) // it was told when another jitter was in force
	}
	p.due = max(now, p.left+w.Latency+late)
	if !w.Shuffle {
		p.due = max(p.due, c.last)
	}
	c.last = max(c.last, p.due)
}

// change puts a Way in force.
func (c *class) change(now time.Duration, w *Way) {
	old := c.way
	c.way = w
	if w.Trace != old.Trace {
		c.traceFrom, c.opportunity, c.room, c.roomAt = now, 0, 0, now-1
	}
	switch {
	case old.Rate != 0 && w.Rate != 0: // what is on the line goes on at the new rate, and so does what was saved for a burst
		c.free = max(c.free, now-time.Duration(float64(old.burst())*8e9/float64(old.Rate)))
		c.free = now + time.Duration(float64(c.free-now)*float64(old.Rate)/float64(w.Rate))
		c.part = 0
		if c.cur != nil {
			c.depart = max(now, c.free)
		}
	case old.Rate != w.Rate || old.Trace != w.Trace:
		c.free, c.part = rested, 0
		if c.cur != nil {
			c.load(c.cur, now)
		}
	}
	if old.Policy != w.Policy {
		c.codel, c.red = codel{}, red{idle: now}
	}
	if w.Latency >= old.Latency && w.Jitter >= old.Jitter && w.Shuffle == old.Shuffle {
		return
	}
	// Those under way come by the new latency where that is sooner: they could else be a minute behind those that are
	// sent now, or hold them up.
	var mine []*packet
	for _, p := range c.line.sky {
		if p.class == c && p.due > now && !p.fate.early {
			mine = append(mine, p)
		}
	}
	slices.SortFunc(mine, func(a, b *packet) int { return cmp.Compare(a.order, b.order) })
	c.last = now
	for _, p := range mine {
		was := p.due
		if p.fate.late > w.Jitter && w.Dist == Uniform || w.Jitter == 0 {
			p.fate.late = min(p.fate.late, w.Jitter)
		}
		c.aim(p, now)
		p.due = min(p.due, was)
		c.last = max(c.last, p.due)
	}
	if len(mine) > 0 {
		heap.Init(&c.line.sky)
	}
}

// Idle says that nothing is set, whatever is still under way.
func (l *Line) Idle() bool { return l.set.None() }
