package backend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/portforward"
)

func kinds(list []Event) string {
	var s []string
	for _, e := range list {
		s = append(s, string(e.Kind))
	}
	return strings.Join(s, " ")
}

func TestEvents(t *testing.T) {
	n, err := New(Config{Name: "lab", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	f := n.Events().Follow(0)
	r, err := n.Forwards().AddAll(t.Context(), mustRules(t, "127.0.0.1:0:22"))
	if err != nil {
		t.Fatal(err)
	}
	n.complain("a thing", errors.New("is missing"))
	n.complain("a thing", errors.New("is missing still")) // within a minute: said once
	n.recovered("a thing")
	n.recovered("a thing")
	if _, err := n.Forwards().Remove(r[0].ID(), false); err != nil {
		t.Fatal(err)
	}
	list := n.Events().List(0)
	if got := kinds(list); got != "forward-added warning recovered forward-removed" {
		t.Fatalf("events: %s", got)
	}
	for i, e := range list {
		if e.Network != "lab" || e.Time.IsZero() || i > 0 && e.ID <= list[i-1].ID {
			t.Errorf("event %d: %+v", i, e)
		}
		got, err := f.Next(t.Context())
		if err != nil || got != e {
			t.Errorf("followed %+v, %v, want %+v", got, err, e)
		}
	}
	if e := list[0]; e.Subject != r[0].ID() || e.Text != r[0].String() {
		t.Errorf("forward: %+v", e)
	}
	if got := n.Events().List(list[1].ID); kinds(got) != "recovered forward-removed" {
		t.Errorf("since the warning: %s", kinds(got))
	}
	if got := n.Events().List(list[3].ID); got == nil || len(got) != 0 {
		t.Errorf("since the last: %v, want an empty list", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after a cancel: %v", err)
	}
	ended := make(chan error)
	go func() {
		_, err := f.Next(context.Background())
		ended <- err
	}()
	n.Close()
	if err := <-ended; err != ErrClosed {
		t.Errorf("after Close: %v", err)
	}
	n.note(EventPolicy, "", "", "late") // and does no harm
}

func mustRules(t *testing.T, s string) []portforward.Rule {
	t.Helper()
	r, err := portforward.ParseRule(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A follower that sleeps loses the oldest, is told how many, and is waited for by nobody.
func TestEventsSlowFollower(t *testing.T) {
	l := newEvents("lab")
	f := l.Follow(0)
	const all = 3 * keptEvents
	for i := range all {
		l.add(Event{Kind: EventPolicy, Text: fmt.Sprint(i)})
	}
	if n := len(l.List(0)); n != keptEvents {
		t.Fatalf("%d kept, want %d", n, keptEvents)
	}
	e, err := f.Next(t.Context())
	if err != nil || e.Text != fmt.Sprint(all-keptEvents) || f.Lost() != all-keptEvents || f.Lost() != 0 {
		t.Errorf("the first after sleep: %+v, %v", e, err)
	}
}

// What guests cause is bounded, and what was left out is counted in the next that is kept.
func TestEventsBounded(t *testing.T) {
	l := newEvents("lab")
	for range 10 * eventBurst {
		l.add(Event{Kind: EventGuestIn, Guest: "g1"})
	}
	l.add(Event{Kind: EventForwardAdded})
	kept := uint64(len(l.List(0)) - 1)
	if kept < eventBurst || kept > eventBurst+20 {
		t.Fatalf("%d kept of %d, want about %d", kept, 10*eventBurst, eventBurst)
	}
	b := l.bounded[EventGuestIn]
	if b.missed != 10*eventBurst-kept {
		t.Errorf("%d missed, %d kept", b.missed, kept)
	}
	want := b.missed
	b.last = b.last.Add(-eventPeriod) // as if it had passed
	l.add(Event{Kind: EventGuestIn, Guest: "g1"})
	list := l.List(0)
	if e := list[len(list)-1]; e.Missed != want {
		t.Errorf("missed %d, want %d", e.Missed, want)
	}
	l.add(Event{Kind: EventPolicy, Text: strings.Repeat("ü", maxEventText)})
	list = l.List(0)
	if e := list[len(list)-1]; len(e.Text) > maxEventText+len("…") || !strings.HasPrefix(e.Text, "ü") {
		t.Errorf("text of %d bytes", len(e.Text))
	}
}

// Many writers and readers at once: each reader sees all, in order.
func TestEventsConcurrently(t *testing.T) {
	l := newEvents("lab")
	const writers, each = 8, keptEvents / 8
	var wg sync.WaitGroup
	for range 4 {
		f := l.Follow(0)
		wg.Go(func() {
			var last uint64
			for range writers * each {
				e, err := f.Next(context.Background())
				if err != nil || e.ID <= last {
					t.Errorf("event %d after %d: %v", e.ID, last, err)
					return
				}
				last = e.ID
			}
		})
	}
	for range writers {
		wg.Go(func() {
			for range each {
				l.add(Event{Kind: EventPolicy})
			}
		})
	}
	wg.Wait()
}

// A guest at a limit is told of once a minute, and how often it was there; the rest when it goes.
func TestEventsOfLimits(t *testing.T) {
	n, err := New(Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	var w watch
	p := &port{net: n, id: "g7"}
	n.seg.add(p)
	limits := func() (list []Event) {
		for _, e := range n.Events().List(0) {
			if e.Guest == "g7" {
				list = append(list, e)
			}
		}
		return list
	}
	w.look(n)
	for range 3 {
		p.drop(flows.ReasonStorm)
	}
	p.drop(flows.ReasonPolicy)
	p.drop(flows.ReasonMalformed) // says nothing to people
	w.look(n)
	p.drop(flows.ReasonStorm)
	w.look(n) // not again so soon
	list := limits()
	if kinds(list) != "limit refused" || list[0].Reason != "storm" || list[0].Count != 3 || list[1].Reason != "policy" || list[1].Count != 1 {
		t.Fatalf("events: %+v", list)
	}
	w.guests[p][flows.ReasonStorm].at = time.Now().Add(-eventAgain)
	w.look(n)
	p.drop(flows.ReasonStorm)
	n.seg.remove(p)
	w.look(n)
	if list = limits(); kinds(list) != "limit refused limit limit" || list[2].Count != 1 || list[3].Count != 1 || len(w.guests) != 0 {
		t.Errorf("events: %+v", list)
	}
}
