package impair

import "time"

// Stats is what became of the frames of a class, one direction.
type Stats struct {
	Frames uint64 `json:"frames"` // that were sent
	Bytes  uint64 `json:"bytes"`  // of these
	Passed uint64 `json:"passed"` // that arrived, doubles among them

	Lost    uint64 `json:"lost"`    // by loss or gilbert
	Queue   uint64 `json:"queue"`   // dropped: the queue was full, or RED or CoDel had enough
	Policed uint64 `json:"policed"` // dropped: beyond the policer's rate
	Flap    uint64 `json:"flap"`    // dropped: the line was down
	Full    uint64 `json:"full"`    // dropped: too much memory is waiting and under way

	Duplicated uint64 `json:"duplicated"`
	Corrupted  uint64 `json:"corrupted"`
	Reordered  uint64 `json:"reordered"`

	Queued   int64 `json:"queued"`    // bytes that wait for the line now
	UnderWay int64 `json:"under_way"` // bytes that are on their way now
	// Delay is how long frames take lately, in microseconds: the last counts for a sixteenth.
	Delay int64 `json:"delay_us"`
	// MostDelay is the longest that one took.
	MostDelay int64 `json:"most_delay_us"`

	smooth time.Duration
	any    bool
}

// Dropped is how many did not arrive.
func (s *Stats) Dropped() uint64 { return s.Lost + s.Queue + s.Policed + s.Flap + s.Full }

func (s *Stats) delay(d time.Duration) {
	if !s.any {
		s.smooth, s.any = d, true
	}
	s.smooth += (d - s.smooth) / 16
	s.MostDelay = max(s.MostDelay, int64(d/time.Microsecond))
}

// ClassStats are a class's.
type ClassStats struct {
	Flow string `json:"flow"` // its name; "default" for what no flow has
	Stats
}

// Stats returns those of each flow, and of what no flow has last.
func (l *Line) Stats(now time.Duration) []ClassStats {
	l.advance(now)
	var list []ClassStats
	for _, c := range l.classes {
		s := c.stats
		s.Queued, s.UnderWay, s.Delay = c.queued, c.flying, int64(s.smooth/time.Microsecond)
		list = append(list, ClassStats{c.name, s})
	}
	return list
}

// Held is how many bytes are waiting and under way, with what their bookkeeping takes.
func (l *Line) Held() int64 { return l.held }

// Dropped is how many frames were dropped since it was asked last.
func (l *Line) Dropped() uint64 {
	n := l.dropped
	l.dropped = 0
	return n
}
