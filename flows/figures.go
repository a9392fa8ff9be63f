package flows

import (
	"slices"
	"sync/atomic"
	"time"
)

// Figures are what a table has counted, for metrics. Reading them takes no lock, however many conversations there are.
type Figures struct {
	Now     []Level            // each protocol in each state, also where there is none
	Opened  uint64             // conversations let in
	Ended   [NumReasons]uint64 // of them, by why they ended
	Dropped [NumReasons]uint64 // what made none: refused conversations, dropped packets and frames
	Waited  [2]Waits           // by Direction
}

// Level is how many conversations of a protocol are in a state.
type Level struct {
	Proto Proto
	State State
	Count int
}

// Waits are how long TCP conversations took from the first SYN until both sides were there, those left out that somebody's
// answer was asked for.
type Waits struct {
	Within []uint64 // how many took no longer than WaitBounds at the same place, but longer than at the one before
	More   uint64   // how many took longer than all
	Sum    time.Duration
}

// WaitBounds are the upper bounds of Waits.Within: from a neighbour on the machine, through a continent (20 ms), an ocean
// (200 ms) and each of Linux's repeated SYNs (1 and 3 s), to where it is given up (30 s).
func WaitBounds() []time.Duration { return slices.Clone(waitBounds[:]) }

var waitBounds = [...]time.Duration{500 * time.Microsecond, time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond,
	10 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second}

type waits struct {
	within [len(waitBounds) + 1]atomic.Uint64
	sum    atomic.Int64
}

func (w *waits) note(d time.Duration) {
	i, _ := slices.BinarySearch(waitBounds[:], d)
	w.within[i].Add(1)
	w.sum.Add(int64(d))
}

var protos = [...]Proto{ICMP, TCP, UDP, ICMPv6}

const numProtos = len(protos) + 1 // and any other

func protoIndex(p Proto) int {
	if i := slices.Index(protos[:], p); i >= 0 {
		return i
	}
	return len(protos)
}

// moved counts a flow in another state.
func (t *Table) moved(p Proto, from, to State) {
	s := &t.states[protoIndex(p)]
	s[to].Add(1)
	s[from].Add(-1)
}

// Figures returns what was counted so far.
func (t *Table) Figures() Figures {
	var f Figures
	for i, p := range protos {
		for s := Dialing; s < Closed; s++ {
			// A flow that ends while it moves on is counted twice for a moment, or not at all.
			f.Now = append(f.Now, Level{p, s, int(max(0, t.states[i][s].Load()))})
		}
	}
	for r := range f.Ended {
		f.Ended[r], f.Dropped[r] = t.ends[r].Load(), t.counts[r].Load()
	}
	f.Opened = t.opened.Load()
	for d := range t.waited {
		w, out := &t.waited[d], &f.Waited[d]
		out.Sum = time.Duration(w.sum.Load())
		for i := range waitBounds {
			out.Within = append(out.Within, w.within[i].Load())
		}
		out.More = w.within[len(waitBounds)].Load()
	}
	return f
}
