package backend

// What happened in a network, kept for a while and told to whoever follows. Nothing here waits for a reader: each
// follower has a place in the ring, and one that is slow finds that it has moved on, and by how much.

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmnetd/vmnetd/dhcp"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/portforward"
)

// EventKind is what an Event is about. The list is closed.
type EventKind string

const (
	EventGuestIn        EventKind = "guest-in" // plugged in
	EventGuestGone      EventKind = "guest-gone"
	EventLease          EventKind = "lease"           // an address was given; Subject is the address
	EventLeaseEnded     EventKind = "lease-ended"     // Text says how
	EventLimit          EventKind = "limit"           // a guest is at a limit; Reason says which, Count how often since it was last said
	EventRefused        EventKind = "refused"         // a guest tried what it may not; the same
	EventWarning        EventKind = "warning"         // this host lacks something, or something fails; Subject is what, as Status has it
	EventRecovered      EventKind = "recovered"       // and works again
	EventForwardAdded   EventKind = "forward-added"   // Subject is the rule's id
	EventForwardRemoved EventKind = "forward-removed" //
	EventPolicy         EventKind = "policy"          // there is another one
	EventReload         EventKind = "reload"          // the daemon's configuration was read again; Subject is the file
	EventQuestion       EventKind = "question"        // a policy asks; Subject is the question's id
	EventAnswer         EventKind = "answer"          // and was answered, or waited in vain
	EventCapture        EventKind = "capture"         // one was begun, or is over; Subject is its id
	EventPanic          EventKind = "panic"           // a bug was met, and what had met it was ended
)

// EventKinds are all of them.
var EventKinds = []EventKind{EventGuestIn, EventGuestGone, EventLease, EventLeaseEnded, EventLimit, EventRefused, EventWarning, EventRecovered,
	EventForwardAdded, EventForwardRemoved, EventPolicy, EventReload, EventQuestion, EventAnswer, EventCapture, EventPanic}

// Event is something that happened in a network.
type Event struct {
	Network string `json:"network"`
	// ID grows from event to event, over all networks of a process and over restarts: it is the microseconds since 1970,
	// or one more than the event before.
	ID      uint64    `json:"id"`
	Time    time.Time `json:"time"`
	Kind    EventKind `json:"kind"`
	Guest   string    `json:"guest,omitempty"`   // its id
	Subject string    `json:"subject,omitempty"` // what else it is about
	Reason  string    `json:"reason,omitempty"`  // of limit and refused: a flows.Reason
	Count   uint64    `json:"count,omitempty"`
	Text    string    `json:"text"` // for people
	// Missed is how many of this kind were not kept before this one, since guests caused too many.
	Missed uint64 `json:"missed,omitempty"`
}

const (
	// keptEvents: a day of a quiet network, minutes of one in which guests do their worst (eventPeriod times the kinds that
	// they cause); some 300 bytes each, so half a megabyte.
	keptEvents = 2048
	// Of what guests cause, each kind passes eventBurst times at once, a big lab that starts, and then one every eventPeriod.
	eventBurst  = 256
	eventPeriod = 100 * time.Millisecond
	// maxEventText bounds what a guest can put into an event: a lease's name has 63 bytes, a destination's 253.
	maxEventText = 400
	// eventAgain is how often it is said of one guest and reason that it goes on.
	eventAgain = time.Minute
)

// lastEvent is the newest ID of all networks of the process.
var lastEvent atomic.Uint64

func nextEvent(now time.Time) uint64 {
	for {
		last := lastEvent.Load()
		id := max(last+1, uint64(max(0, now.UnixMicro())))
		if lastEvent.CompareAndSwap(last, id) {
			return id
		}
	}
}

// Events are those of a network. Its methods may be called by anybody.
type Events struct {
	network string

	mu      sync.Mutex
	ring    []Event // event i is at i % keptEvents
	n       uint64  // how many there were
	more    chan struct{}
	closed  bool
	bounded map[EventKind]*eventBound
}

type eventBound struct {
	bucket
	missed uint64
}

func newEvents(network string) *Events {
	return &Events{network: network, more: make(chan struct{}), bounded: map[EventKind]*eventBound{}}
}

// ofGuests are the kinds that guests cause, as often as they like.
func (k EventKind) ofGuests() bool {
	switch k {
	case EventGuestIn, EventGuestGone, EventLease, EventLeaseEnded, EventLimit, EventRefused, EventQuestion, EventAnswer, EventPanic:
		return true
	}
	return false
}

// add keeps e and wakes who follows.
func (l *Events) add(e Event) {
	e.Network, e.Time = l.network, time.Now()
	e.Subject, e.Text = shortText(e.Subject), shortText(e.Text)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	if e.Kind.ofGuests() {
		b := l.bounded[e.Kind]
		if b == nil {
			b = &eventBound{bucket: newBucket(float64(time.Second/eventPeriod), eventBurst)}
			l.bounded[e.Kind] = b
		}
		if !b.allow() {
			b.missed++
			return
		}
		e.Missed, b.missed = b.missed, 0
	}
	e.ID = nextEvent(e.Time)
	if len(l.ring) < keptEvents {
		l.ring = append(l.ring, e)
	} else {
		l.ring[l.n%keptEvents] = e
	}
	l.n++
	close(l.more)
	l.more = make(chan struct{})
}

func shortText(s string) string {
	if len(s) > maxEventText {
		s = s[:maxEventText] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

func (l *Events) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		close(l.more)
	}
}

// List returns the events that are kept, oldest first, of those after the one with the ID since; 0 for all.
func (l *Events) List(since uint64) []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := []Event{}
	for i := l.after(since); i < l.n; i++ {
		list = append(list, l.ring[i%keptEvents])
	}
	return list
}

// after is the number of the first event behind since.
func (l *Events) after(since uint64) uint64 {
	i := l.n - uint64(len(l.ring))
	for i < l.n && l.ring[i%keptEvents].ID <= since {
		i++
	}
	return i
}

// Follow returns a follower of the events after the one with the ID since, kept ones first. It needs no end.
func (l *Events) Follow(since uint64) *Follower {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &Follower{events: l, at: l.after(since)}
}

// Follower is a place in a network's events. One goroutine at a time may use it.
type Follower struct {
	events *Events
	at     uint64
	lost   uint64
}

// Next waits for the next event. After the last one of a network that was closed it is ErrClosed.
func (f *Follower) Next(ctx context.Context) (Event, error) {
	l := f.events
	for {
		l.mu.Lock()
		if oldest := l.n - uint64(len(l.ring)); f.at < oldest {
			f.lost += oldest - f.at
			f.at = oldest
		}
		if f.at < l.n {
			e := l.ring[f.at%keptEvents]
			f.at++
			l.mu.Unlock()
			return e, nil
		}
		more, closed := l.more, l.closed
		l.mu.Unlock()
		if closed {
			return Event{}, ErrClosed
		}
		select {
		case <-more:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Lost is how many events were forgotten before Next came to them, since Lost was last called.
func (f *Follower) Lost() (n uint64) {
	n, f.lost = f.lost, 0
	return n
}

// Events are what happened in the network.
func (n *Network) Events() *Events { return n.events }

// Note adds an event of a program's own, such as a policy's question. ID, Time and Network are set here.
func (n *Network) Note(e Event) { n.events.add(e) }

func (n *Network) note(k EventKind, guest, subject, format string, args ...any) {
	n.events.add(Event{Kind: k, Guest: guest, Subject: subject, Text: fmt.Sprintf(format, args...)})
}

// leaseEvent tells of leases, but for renewals: nothing has changed then.
func (n *Network) leaseEvent(l dhcp.Lease, e dhcp.Event) {
	who := l.MAC.String()
	if l.Name != "" {
		who = l.Name + ", " + who
	}
	switch e {
	case dhcp.EventBound:
		n.note(EventLease, l.Guest, l.Addr.String(), "%s has %s", who, l.Addr)
	case dhcp.EventRenewed:
	default:
		n.note(EventLeaseEnded, l.Guest, l.Addr.String(), "%s had %s: %s", who, l.Addr, e)
	}
}

func (n *Network) forwardEvent(r portforward.Rule, added bool) {
	if added {
		n.note(EventForwardAdded, "", r.ID(), "%s", r)
	} else {
		n.note(EventForwardRemoved, "", r.ID(), "%s", r)
	}
}

// Reasons that are told of as events. Others are a guest's mistakes, or the ordinary ends of conversations.
var (
	limitReasons = []flows.Reason{flows.ReasonFlowLimit, flows.ReasonFlowRate, flows.ReasonQueueFull, flows.ReasonMACLimit, flows.ReasonRateLimit,
		flows.ReasonStorm, flows.ReasonByteRate}
	refusedReasons = []flows.Reason{flows.ReasonPolicy, flows.ReasonHostLoopback, flows.ReasonDoor, flows.ReasonRoute, flows.ReasonLinkLocal,
		flows.ReasonName, flows.ReasonRebinding, flows.ReasonHello, flows.ReasonUnanswered, flows.ReasonSpoofed}
	// networkReasons are counted for the network alone: whose conversation gave way does not say whose fault it is.
	networkReasons = []flows.Reason{flows.ReasonEvicted, flows.ReasonExhausted, flows.ReasonMemory}
)

// watch looks from time to time at the counters of what guests do, so that counting costs nothing more.
type watch struct {
	guests  map[*port]*[flows.NumReasons]told
	network [flows.NumReasons]told
}

// told is what was said of one reason.
type told struct {
	count uint64
	at    time.Time
}

// grown is how much has come, if it is time to say so.
func (t *told) grown(now uint64, last bool) (n uint64) {
	if now <= t.count || !last && time.Since(t.at) < eventAgain {
		return 0
	}
	n = now - t.count
	t.count, t.at = now, time.Now()
	return n
}

// watchEvery bounds how late it is said that a guest is at a limit.
const watchEvery = time.Second

// look is called by tend alone.
func (w *watch) look(n *Network) {
	if w.guests == nil {
		w.guests = map[*port]*[flows.NumReasons]told{}
	}
	here := n.seg.all()
	for _, p := range here {
		if w.guests[p] == nil {
			w.guests[p] = new([flows.NumReasons]told)
		}
	}
	for p, t := range w.guests {
		last := !slices.Contains(here, p)
		for _, r := range limitReasons {
			n.reasonEvent(EventLimit, p.id, r, t[r].grown(p.drops[r].Load(), last))
		}
		for _, r := range refusedReasons {
			n.reasonEvent(EventRefused, p.id, r, t[r].grown(p.drops[r].Load(), last))
		}
		if last {
			delete(w.guests, p)
		}
	}
	counts := n.flows.Counts()
	for _, r := range networkReasons {
		n.reasonEvent(EventLimit, "", r, w.network[r].grown(counts[r.String()], false))
	}
}

func (n *Network) reasonEvent(k EventKind, guest string, r flows.Reason, count uint64) {
	if count > 0 {
		n.events.add(Event{Kind: k, Guest: guest, Reason: r.String(), Count: count, Text: fmt.Sprintf("%s: %d times", r, count)})
	}
}
