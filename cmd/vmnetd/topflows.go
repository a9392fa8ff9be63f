package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/backend/control"
)

// topStale is after how long without news of its bytes a conversation is at rest: they come every second.
const topStale = 2500 * time.Millisecond

// topFlow is a conversation with its rates, in bytes a second.
type topFlow struct {
	control.FlowEntry
	up, down float64
	name     string
	told     time.Time // when its bytes were last told of
}

type flowKey struct {
	network string
	id      uint64
}

func (f *topFlow) key() string { return fmt.Sprintf("%s %d", f.Network, f.ID) }

// idle is how long it has been quiet, which it is told only when it changes.
func (f *topFlow) idle(now time.Time) time.Duration { return now.Sub(f.told) }

// flowStore has the conversations as they are followed: what is told of each is a change, so ten thousand that are quiet
// cost nothing.
type flowStore struct {
	mu      sync.Mutex
	rows    map[flowKey]*topFlow
	present map[flowKey]*topFlow // while they are listed anew
	bytesAt map[string]time.Time // by network
}

func newFlowStore() *flowStore {
	return &flowStore{rows: map[flowKey]*topFlow{}, bytesAt: map[string]time.Time{}}
}

// follow follows until ctx ends, also when the daemon goes and comes back.
func (s *flowStore) follow(ctx context.Context, c *control.Client) {
	for ctx.Err() == nil {
		c.FollowFlows(ctx, control.FlowFilter{}, func(e control.FlowEvent) error {
			s.take(e, time.Now())
			return nil
		})
		select {
		case <-time.After(topEvery):
		case <-ctx.Done():
		}
	}
}

func (s *flowStore) take(e control.FlowEvent, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	add := func(rows map[flowKey]*topFlow, x control.FlowEntry) {
		key := flowKey{x.Network, x.ID}
		told := now.Add(-time.Duration(x.IdleMS) * time.Millisecond)
		n := &topFlow{FlowEntry: x, name: flowName(x.Snapshot), told: told}
		if old := s.rows[key]; old != nil {
			n.up, n.down = old.up, old.down
		}
		rows[key] = n
	}
	switch e.Kind {
	case "anew":
		s.present = map[flowKey]*topFlow{}
	case "flows":
		if s.present == nil {
			s.present = map[flowKey]*topFlow{}
		}
		for _, x := range e.Flows {
			add(s.present, x)
		}
	case "listed":
		if s.present != nil {
			s.rows, s.present = s.present, nil
		}
	case "opened", "changed":
		if e.Flow != nil {
			add(s.rows, *e.Flow)
		}
	case "ended":
		if e.Flow != nil {
			delete(s.rows, flowKey{e.Flow.Network, e.Flow.ID})
		}
	case "bytes":
		since := now.Sub(s.bytesAt[e.Network])
		s.bytesAt[e.Network] = now
		// The first time, or after a rest: told once a second, so what has moved did so in the last one.
		seconds := since.Seconds()
		if since > 2*topEvery || since < topEvery/2 {
			seconds = topEvery.Seconds()
		}
		for _, b := range e.Moved {
			f := s.rows[flowKey{e.Network, b[0]}]
			if f == nil || b[1] < f.UpBytes || b[2] < f.DownBytes {
				continue
			}
			f.up, f.down = float64(b[1]-f.UpBytes)/seconds, float64(b[2]-f.DownBytes)/seconds
			f.UpBytes, f.DownBytes, f.UpPkts, f.DownPkts = b[1], b[2], b[3], b[4]
			f.told = now
		}
	}
}

// pick copies those of a guest, or all, in which all words are.
func (s *flowStore) pick(guest string, words []string, now time.Time) (list []*topFlow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	copies := make([]topFlow, 0, len(s.rows)) // one piece: it is done every second
	for _, f := range s.rows {
		if guest != "" && guest != f.Network+" "+f.Guest || !matchesWords(words, f.text) {
			continue
		}
		copies = append(copies, *f)
		if one := &copies[len(copies)-1]; now.Sub(f.told) > topStale {
			one.up, one.down = 0, 0
		}
	}
	list = make([]*topFlow, len(copies))
	for i := range copies {
		list[i] = &copies[i]
	}
	return list
}

func (f *topFlow) text() string {
	return strings.Join([]string{f.Guest, f.Proto.String(), f.Dir.String(), f.Src.String(), f.Dst.String(), f.Name, strings.Join(f.Names, " "), f.State, f.Rule}, " ")
}

func filterWords(s string) []string { return strings.Fields(strings.ToLower(s)) }

// matchesWords says whether each word is in a text.
func matchesWords(words []string, text func() string) bool {
	if len(words) == 0 {
		return true
	}
	t := strings.ToLower(text())
	for _, w := range words {
		if !strings.Contains(t, w) {
			return false
		}
	}
	return true
}
