package backend

// What waits for a guest to read. One queue a guest, bounded in bytes: a guest that does not read fills its own and
// nobody else's, and what does not fit is dropped whole and counted.

import (
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/backend/link"
)

// queueLimit is how many bytes may wait for one guest, unless flows.Limits.Queue says otherwise. One conversation's send
// buffer (tcpBuffer) fits twice, so that a single stream never loses a segment here; with many streams their loss tells
// them to share.
const queueLimit = 2 * tcpBuffer

// holdPart of it may wait for the guest before host sockets are left unread, so that their peers are held back by TCP
// instead of the queue by drops.
const holdPart = 4

// othersPart of it other guests' frames may take: less than from which on conversations with the host are held back, so
// that no guest can hold another's. 1 MiB is what QEMU's socket holds, once more.
const othersPart = 8

// itemCost is counted for each item besides its bytes, so that a queue of tiny frames is bounded as well: about what
// a packet buffer and its views take.
const itemCost = 512

type item struct {
	pkt  *stack.PacketBuffer // from the stack, to be split; or
	raw  link.Frame          // ready
	size int

	other bool // from another guest
	left  bool // raw has an Offload, for a wire that takes unfinished frames
}

func (i item) release() {
	if i.pkt != nil {
		i.pkt.DecRef()
	}
}

type queue struct {
	dropped func() // counts one
	notify  func() // if not nil: tells the taker instead of wake

	bytes  atomic.Int64 // waiting or being written
	others atomic.Int64 // of them, from other guests
	limit  atomic.Int64 // how many may
	most   atomic.Int64 // how many ever were; set under mu

	mu     sync.Mutex
	wake   sync.Cond // on mu
	items  []item
	closed bool
}

func newQueue(dropped func()) *queue {
	q := &queue{dropped: dropped}
	q.wake.L = &q.mu
	q.limit.Store(queueLimit)
	return q
}

// long says that so much waits for the guest that host sockets are to be left unread.
func (q *queue) long() bool { return q.bytes.Load() > q.limit.Load()/holdPart }

// push takes i over. It never waits.
func (q *queue) push(i item) {
	i.size += itemCost
	q.mu.Lock()
	if q.closed || q.full(i) {
		closed := q.closed
		q.mu.Unlock()
		i.release()
		if !closed {
			q.dropped()
		}
		return
	}
	q.add(i)
	first := len(q.items) == 1
	if first && q.notify == nil {
		q.wake.Signal()
	}
	q.mu.Unlock()
	if first && q.notify != nil {
		q.notify()
	}
}

// pushAll takes items over as push does, under one lock.
func (q *queue) pushAll(items []item) {
	dropped := 0
	q.mu.Lock()
	first := len(q.items) == 0
	for _, i := range items {
		i.size += itemCost
		if q.closed || q.full(i) {
			i.release()
			dropped++
			continue
		}
		q.add(i)
	}
	first = first && len(q.items) > 0
	if first && q.notify == nil {
		q.wake.Signal()
	}
	closed := q.closed
	q.mu.Unlock()
	if first && q.notify != nil {
		q.notify()
	}
	for ; dropped > 0 && !closed; dropped-- {
		q.dropped()
	}
}

// full says whether i does not fit. Called with mu held, as add is.
func (q *queue) full(i item) bool {
	limit := q.limit.Load()
	return q.bytes.Load()+int64(i.size) > limit || i.other && q.others.Load()+int64(i.size) > limit/othersPart
}

func (q *queue) add(i item) {
	if n := q.bytes.Add(int64(i.size)); n > q.most.Load() {
		q.most.Store(n)
	}
	if i.other {
		q.others.Add(int64(i.size))
	}
	q.items = append(q.items, i)
}

// take waits for items and swaps them for spare, an empty slice to fill next. It returns nil once closed.
func (q *queue) take(spare []item) []item {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) == 0 && !q.closed {
		q.wake.Wait()
	}
	if q.closed {
		return nil
	}
	out := q.items
	q.items = spare[:0]
	return out
}

// grab is take without waiting: it returns nil if there is nothing.
func (q *queue) grab(spare []item) []item {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		return nil
	}
	out := q.items
	q.items = spare[:0]
	return out
}

// waiting says whether there is something to take.
func (q *queue) waiting() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items) > 0
}

// done says that items have left.
func (q *queue) done(items []item) {
	n, others := 0, 0
	for i := range items {
		n += items[i].size
		if items[i].other {
			others += items[i].size
		}
		items[i].release()
		items[i] = item{}
	}
	q.bytes.Add(int64(-n))
	q.others.Add(int64(-others))
}

// close drops what waits and whatever comes.
func (q *queue) close() {
	q.mu.Lock()
	items := q.items
	q.items, q.closed = nil, true
	q.wake.Broadcast()
	q.mu.Unlock()
	q.done(items)
}
