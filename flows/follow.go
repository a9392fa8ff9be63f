package flows

// What becomes of conversations, told to whoever follows, and the last ones that are over. Nothing here waits for a reader:
// all followers read one ring, each from a place of its own, and one that is slow finds that the ring has moved on, and by
// how much. The table itself stays the truth: who has missed something looks there (Table.All).

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ChangeKind is what became of a conversation.
type ChangeKind uint8

const (
	Opened  ChangeKind = iota // it was let in, or somebody is asked about it
	Changed                   // its state, its verdict, or whom its first bytes name
	Ended                     // it is over, and its figures are the last ones
	Refused                   // it never was: Flow is no member of the table
)

func (k ChangeKind) String() string {
	return [...]string{"opened", "changed", "ended", "refused"}[min(k, Refused)]
}

// Change is something that became of a conversation.
type Change struct {
	Kind ChangeKind
	// Flow shows itself as it is now, not as it was at the change: one that was opened may have ended meanwhile, and Ended
	// comes then, too. The last change of a flow that is told finds it as that left it, or newer.
	Flow *Flow
	// Missed is how many attempts of this guest were refused before this one that are not told: they were too many.
	Missed uint64
}

const (
	// keptChanges is how far a follower may lag behind: at a thousand new conversations a second, with three changes each,
	// more than two seconds; a follower that writes to a socket ten times a second has lost nothing then. Some 350 bytes
	// each when the flows have ended, and none while nobody follows.
	keptChanges = 8192
	// atOnce is how many changes a follower is handed at a time: what it copies under the lock, a microsecond.
	atOnce = 256
	// lingerTime is how long changes are kept for a follower that comes back: browsers do after three seconds.
	lingerTime = 15 * time.Second
	// keptEnded and keptRefused are how many conversations are remembered that are over, and were never. Somebody who asks
	// why something did not work asks within minutes. 400 bytes each, once there were so many.
	keptEnded   = 1024
	keptRefused = 512
	// Of the attempts of one guest that are refused, refusedBurst are told at once, a program that tries each address of
	// a big service in both families, and then one every refusedPeriod: a guest that tries without end shows that it does
	// and leaves room for what others try.
	refusedBurst  = 64
	refusedPeriod = 100 * time.Millisecond
	// refusedGuests is how many guests have such a bound of their own. The rest share one: only a program that names guests
	// without end (Table.SetGuest was never called for them) comes to it.
	refusedGuests = 1024
)

// ErrClosed is what followers get after the last change of a table that was closed.
var ErrClosed = errors.New("flow table is closed")

// feed is what the followers read. Its lock is taken with Table.mu held, never the other way round.
type feed struct {
	on atomic.Bool // changes are kept

	mu        sync.Mutex
	ring      []Change // change i is at (i-base) % keptChanges
	base, n   uint64   // the first change that was kept since on was last set, and the next
	followers int
	off       *time.Timer   // ends the keeping
	more      chan struct{} // closed at the next change; nil if nobody waits
	closed    bool

	bounds  map[string]*refusals
	ended   lately
	refused lately
}

// refusals bounds what is told of one guest.
type refusals struct {
	tokens float64
	filled time.Duration
	missed uint64
}

func (r *refusals) allow(now time.Duration) bool {
	if r.tokens < 1 {
		r.tokens = min(refusedBurst, r.tokens+float64(now-r.filled)/float64(refusedPeriod))
		r.filled = now
		if r.tokens < 1 {
			r.missed++
			return false
		}
	}
	r.tokens--
	return true
}

// forget lets go of a guest that has gone. Its attempts that were not told are no longer its own to tell of.
func (d *feed) forget(guest string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.bounds, guest)
}

// lately is a ring of the last few.
type lately struct {
	ring []Snapshot
	n    int
}

func (l *lately) add(s Snapshot, most int) {
	if len(l.ring) < most {
		l.ring = append(l.ring, s)
	} else {
		l.ring[l.n%most] = s
	}
	l.n++
}

// changed tells of a flow. Nobody follows: it costs one load.
func (t *Table) changed(k ChangeKind, f *Flow) {
	if t.feed.on.Load() {
		t.feed.add(Change{Kind: k, Flow: f})
	}
}

func (d *feed) add(c Change) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.put(c)
}

// put is add under d.mu.
func (d *feed) put(c Change) {
	// What changed just as the flow ended is told with its end.
	if !d.on.Load() || c.Kind == Changed && c.Flow.State() == Closed {
		return
	}
	if len(d.ring) < keptChanges {
		d.ring = append(d.ring, c)
	} else {
		d.ring[(d.n-d.base)%keptChanges] = c
	}
	d.n++
	if d.more != nil {
		close(d.more)
		d.more = nil
	}
}

// over keeps and tells of a flow that has ended. Called with t.mu held, as where it was opened, so that nobody hears of
// the end first.
func (t *Table) over(f *Flow) {
	s := f.Snapshot()
	t.feed.mu.Lock()
	defer t.feed.mu.Unlock()
	t.feed.ended.add(s, keptEnded)
	t.feed.put(Change{Kind: Ended, Flow: f})
}

// Refused tells of an attempt that was not let in, and made no flow. It is for those who ask the policy themselves about a
// further peer (Judge); Open does so itself. It does not count.
func (t *Table) Refused(q Query, v Verdict) {
	d := &t.feed
	now := t.since()
	var names []string
	t.mu.Lock()
	if u := t.guests[q.Guest]; u != nil {
		names = u.called(&q)
	}
	t.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.bounds[q.Guest]
	if b == nil {
		guest := q.Guest
		if len(d.bounds) >= refusedGuests {
			guest = ""
		}
		if b = d.bounds[guest]; b == nil {
			if d.bounds == nil {
				d.bounds = make(map[string]*refusals)
			}
			b = &refusals{tokens: refusedBurst, filled: now}
			d.bounds[guest] = b
		}
	}
	if !b.allow(now) {
		return
	}
	v.Allow, v.Inspect, v.Pending = false, nil, nil
	f := &Flow{ID: t.nextID.Add(1), Query: q, Opened: time.Now(), table: t, names: names, first: v}
	f.verdict.Store(&f.first)
	f.last.Store(int64(now))
	f.stop(v.Reason)
	f.state.Store(int32(Closed))
	missed := b.missed
	b.missed = 0
	s := f.Snapshot()
	s.Missed = missed
	d.refused.add(s, keptRefused)
	d.put(Change{Kind: Refused, Flow: f, Missed: missed})
}

// Lately returns the last conversations that have ended and the last attempts that were refused, oldest first.
func (t *Table) Lately() []Snapshot {
	t.feed.mu.Lock()
	list := slices.Concat(t.feed.ended.ring, t.feed.refused.ring)
	t.feed.mu.Unlock()
	slices.SortFunc(list, func(a, b Snapshot) int { return a.Ended.Compare(b.Ended) })
	return list
}

// Follow returns a follower of what becomes of conversations from now on. Who wants those that there are as well asks for
// them (Table.All) after that: each one's end will be told.
func (t *Table) Follow() *Follower {
	d := &t.feed
	d.mu.Lock()
	defer d.mu.Unlock()
	d.join()
	return &Follower{table: t, at: d.n}
}

// FollowFrom returns a follower that goes on where another one of this table was (Follower.At), or nil if that is too
// long ago.
func (t *Table) FollowFrom(at uint64) *Follower {
	d := &t.feed
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.on.Load() || at > d.n || at < d.n-uint64(len(d.ring)) {
		return nil
	}
	d.join()
	return &Follower{table: t, at: at}
}

func (d *feed) join() {
	d.followers++
	if d.off != nil {
		d.off.Stop()
		d.off = nil
	}
	if !d.on.Load() {
		d.n++ // what came before was not kept: no place before this one is whole
		d.base = d.n
		d.on.Store(true)
	}
}

func (d *feed) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.followers--; d.followers > 0 || d.closed {
		return
	}
	var off *time.Timer
	off = time.AfterFunc(lingerTime, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.off == off { // else somebody came just now
			d.off, d.ring = nil, nil
			d.on.Store(false)
		}
	})
	d.off = off
}

// Follower is a place in what becomes of a table's conversations. One goroutine at a time may use it. It takes nothing
// but memory until Close.
type Follower struct {
	table *Table
	at    uint64 // under feed.mu, but to who takes
	buf   [atOnce]Change
	over  bool
}

// Next waits until something has changed and returns it, oldest first; the slice is the caller's until the next call.
// missed is how many changes before these were forgotten, since the follower was too slow: what it knows may be wrong then,
// and it looks at Table.All anew. Who can do with less than all at once waits a little between calls and gets more.
// After the last change of a table that was closed the error is [ErrClosed].
func (f *Follower) Next(ctx context.Context) (list []Change, missed uint64, err error) {
	if err := f.Wait(ctx); err != nil {
		return nil, 0, err
	}
	list, missed = f.Take()
	return list, missed, nil
}

// Wait waits until Take has something. Another goroutine than that which takes may wait.
func (f *Follower) Wait(ctx context.Context) error {
	d := &f.table.feed
	for {
		d.mu.Lock()
		if f.at < d.n {
			d.mu.Unlock()
			return nil
		}
		if d.closed {
			d.mu.Unlock()
			return ErrClosed
		}
		if d.more == nil {
			d.more = make(chan struct{})
		}
		more := d.more
		d.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Take is Next without waiting: nothing, if nothing has changed.
func (f *Follower) Take() (list []Change, missed uint64) {
	d := &f.table.feed
	d.mu.Lock()
	defer d.mu.Unlock()
	if oldest := d.n - uint64(len(d.ring)); f.at < oldest {
		missed = oldest - f.at
		f.at = oldest
	}
	n := 0
	for ; n < len(f.buf) && f.at < d.n; n++ {
		f.buf[n] = d.ring[(f.at-d.base)%keptChanges]
		f.at++
	}
	clear(f.buf[n:]) // what has ended is not kept for it
	return f.buf[:n], missed
}

// At is the place behind the last change that Next returned, for FollowFrom.
func (f *Follower) At() uint64 { return f.at }

// Close ends the follower.
func (f *Follower) Close() {
	if !f.over {
		f.over = true
		f.table.feed.leave()
	}
}

// Followers is how many there are.
func (t *Table) Followers() int {
	t.feed.mu.Lock()
	defer t.feed.mu.Unlock()
	return t.feed.followers
}

// Epoch tells tables apart, those of other runs too: places (Follower.At) are of one only.
func (t *Table) Epoch() string { return fmt.Sprintf("%x", t.epoch.UnixNano()) }

// Close ends the followers once they have heard of all. Conversations are ended before (EndAll).
func (t *Table) Close() {
	d := &t.feed
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.off != nil {
		d.off.Stop()
		d.off = nil
	}
	if d.more != nil {
		close(d.more)
		d.more = nil
	}
}
