package flows

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// told is what a follower hears next, as words.
func told(t *testing.T, f *Follower) (words []string, missed uint64) {
	t.Helper()
	list, missed := f.Take()
	if d := &f.table.feed; len(list) == 0 && missed == 0 && d.closed {
		return []string{"closed"}, 0
	}
	for _, c := range list {
		s := c.Flow.Snapshot()
		w := fmt.Sprintf("%s %d %s %s", c.Kind, s.Src.Port(), s.State, s.Verdict)
		if s.Reason != "" {
			w += " " + s.Reason
		}
		words = append(words, w)
	}
	return words, missed
}

func TestFollow(t *testing.T) {
	tab := NewTable(Limits{}, nil)
	defer tab.Close()
	before, _ := tab.Open(ask("a", TCP, 1), nil) // nobody follows
	before.SetState(Open)
	if tab.feed.n != 0 {
		t.Errorf("%d changes are kept for nobody", tab.feed.n)
	}
	f, g := tab.Follow(), tab.Follow()
	defer g.Close()
	hear := func(f *Follower, want ...string) {
		t.Helper()
		got, missed := told(t, f)
		if strings.Join(got, "; ") != strings.Join(want, "; ") || missed != 0 {
			t.Errorf("heard %q, %d missed; want %q", got, missed, want)
		}
	}
	hear(f)
	before.End(ReasonReset)
	hear(f, "ended 1 closed allowed reset")

	x, _ := tab.Open(ask("a", TCP, 2), nil)
	hear(f, "opened 2 dialing allowed")
	x.SetState(Open)
	x.SetState(Open) // not again
	x.Up.Add(100)
	hear(f, "changed 2 open allowed")
	x.SetSaid(Hello{HelloTLS, "example.com"})
	x.SetVerdict(Verdict{Allow: true, Rule: "another"})
	hear(f, "changed 2 open allowed", "changed 2 open allowed")
	x.SetState(Closing)
	x.End(ReasonClosed)
	x.End(ReasonReset)
	hear(f, "changed 2 closed allowed closed", "ended 2 closed allowed closed") // as it is now
	if s := x.Snapshot(); s.Name != "example.com" || s.Policy != "another" || s.Ended.Before(s.Opened) || s.UpBytes != 100 {
		t.Errorf("%+v", s)
	}

	tab.SetPolicy(closedTo(80))
	if _, v := tab.Open(ask("a", TCP, 3), nil); v.Allow {
		t.Error("let in")
	}
	hear(f, "refused 3 closed refused policy")
	tab.Refused(ask("a", UDP, 4), Verdict{Reason: ReasonRateLimit, Rule: "so"})
	hear(f, "refused 4 closed refused rate-limit")

	// The other one heard nothing yet, and hears all. The first comes back where it was.
	at := f.At()
	f.Close()
	f.Close()
	tab.Refused(ask("a", UDP, 5), Verdict{Reason: ReasonPolicy})
	words, missed := told(t, g)
	if len(words) != 10 || missed != 0 {
		t.Errorf("%q, %d missed", words, missed)
	}
	f = tab.FollowFrom(at)
	hear(f, "refused 5 closed refused policy")
	if n := tab.Followers(); n != 2 {
		t.Errorf("%d follow", n)
	}
	if tab.FollowFrom(f.At()+1) != nil || tab.FollowFrom(0) != nil {
		t.Error("a place that is none")
	}

	tab.Refused(ask("a", UDP, 6), Verdict{Reason: ReasonPolicy})
	tab.Close()
	hear(f, "refused 6 closed refused policy")
	hear(f, "closed")
	if _, _, err := f.Next(context.Background()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	f.Close()
}

type closedTo uint16

func (c closedTo) Judge(q Query) Verdict {
	return Verdict{Allow: q.Dst.Port() != uint16(c), Rule: fmt.Sprint("not ", uint16(c))}
}

// One that is too slow learns how much it missed; nobody waits for it.
func TestFollowTooSlow(t *testing.T) {
	tab := NewTable(Limits{FlowRate: 1e6, UDP: 1e6, Total: 1e6}, nil)
	defer tab.Close()
	f := tab.Follow()
	defer f.Close()
	for i := range keptChanges + 5 {
		tab.Open(ask("a", UDP, uint16(i)), nil)
	}
	list, missed, err := f.Next(t.Context())
	if missed != 5 || len(list) != atOnce || list[0].Flow.Src.Port() != 5 || err != nil {
		t.Errorf("%d missed, then %d from %v: %v", missed, len(list), list[0].Flow.Src, err)
	}
	n := len(list)
	for n < keptChanges {
		list, missed, err = f.Next(t.Context())
		if missed != 0 || err != nil {
			t.Fatalf("%d missed: %v", missed, err)
		}
		n += len(list)
	}
	if last := list[len(list)-1].Flow.Src.Port(); int(last) != keptChanges+4 {
		t.Errorf("the last one is %d", last)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := f.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	tab.EndAll(ReasonShutdown)
}

// Changes are kept for a follower that comes back soon, and for nobody after that.
func TestFollowLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Limits{}, nil)
		f := tab.Follow()
		x, _ := tab.Open(ask("a", TCP, 1), nil)
		f.Next(t.Context())
		at := f.At()
		f.Close()
		time.Sleep(lingerTime - 1)
		x.SetState(Open)
		f = tab.FollowFrom(at)
		if f == nil {
			t.Fatal("its place was forgotten")
		}
		time.Sleep(2 * lingerTime)
		if words, _ := told(t, f); len(words) != 1 || words[0] != "changed 1 open allowed" {
			t.Errorf("%q", words)
		}
		at = f.At()
		f.Close()
		time.Sleep(2 * lingerTime)
		if tab.feed.on.Load() || tab.feed.ring != nil {
			t.Error("changes are still kept")
		}
		x.End(ReasonClosed)
		if f = tab.FollowFrom(at); f != nil {
			t.Error("it goes on where it was, and never hears of the end")
		}
		f = tab.Follow()
		defer f.Close()
		if tab.FollowFrom(at) != nil {
			t.Error("the place is there again")
		}
		tab.Open(ask("a", TCP, 2), nil)
		if words, missed := told(t, f); len(words) != 1 || missed != 0 {
			t.Errorf("%q, %d missed", words, missed)
		}
		tab.EndAll(ReasonShutdown)
		tab.Close()
	})
}

// A guest that tries without end is told of now and then, with how many were left out, and takes nobody else's place.
func TestRefusedIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Limits{}, closedTo(80))
		f := tab.Follow()
		defer f.Close()
		count := func() (n int, missed uint64) {
			for {
				list, _ := f.Take()
				if len(list) == 0 {
					return n, missed
				}
				for _, c := range list {
					n++
					missed += c.Missed
				}
			}
		}
		for i := range 1000 {
			tab.Open(ask("a", TCP, uint16(i)), nil)
		}
		if n, missed := count(); n != refusedBurst || missed != 0 {
			t.Errorf("%d are told, %d missed", n, missed)
		}
		tab.Open(ask("b", TCP, 1), nil)
		if n, _ := count(); n != 1 {
			t.Errorf("%d of another guest's", n)
		}
		time.Sleep(3 * refusedPeriod)
		for i := range 10 {
			tab.Open(ask("a", TCP, uint16(i)), nil)
		}
		if n, missed := count(); n != 3 || missed != 1000-refusedBurst {
			t.Errorf("%d are told, %d missed", n, missed)
		}
		if n := tab.Counts()["policy"]; n != 1011 {
			t.Errorf("%d are counted", n)
		}
		list := tab.Lately()
		if len(list) != refusedBurst+4 || list[len(list)-3].Missed != 1000-refusedBurst {
			t.Errorf("%d are kept: %+v", len(list), list[len(list)-3])
		}
		tab.Forget("a")
		tab.Forget("b")
		if len(tab.feed.bounds) != 0 {
			t.Errorf("%d bounds are kept", len(tab.feed.bounds))
		}
		for i := range 3 * refusedGuests {
			tab.Open(ask(fmt.Sprint(i), TCP, 1), nil)
		}
		if n := len(tab.feed.bounds); n > refusedGuests+1 {
			t.Errorf("%d bounds", n)
		}
	})
}

// What is over is remembered for a while: the last ones, in their order, refused ones however many have ended since.
func TestLately(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Limits{}, closedTo(81))
		q := ask("a", TCP, 7)
		q.Dst = netip.AddrPortFrom(q.Dst.Addr(), 81)
		tab.Open(q, nil)
		const n = keptEnded + 100
		for i := range n {
			time.Sleep(time.Millisecond)
			f, _ := tab.Open(ask("a", TCP, uint16(i)), nil)
			f.Down.Add(i)
			time.Sleep(time.Second)
			f.End(ReasonReset)
			if a := f.Age(); a != time.Second {
				t.Fatal(a)
			}
		}
		list := tab.Lately()
		if len(list) != keptEnded+1 {
			t.Fatalf("%d are kept", len(list))
		}
		if s := list[0]; s.Verdict != "refused" || s.Reason != "policy" || s.Policy != "not 81" || s.Dst.Port() != 81 {
			t.Errorf("%+v", s)
		}
		for i, s := range list[1:] {
			if s.DownBytes != uint64(n-keptEnded+i) || s.Reason != "reset" || s.Verdict != "allowed" || s.Ended.Sub(s.Opened) != time.Second || s.IdleMS != 1000 {
				t.Fatalf("%d: %+v", i, s)
			}
		}
	})
}

// Whoever opens, changes and ends at the same time: each follower can tell from the present flows and what it hears which
// ones there are.
func TestFollowRace(t *testing.T) {
	tab := NewTable(Limits{FlowRate: 1e6}, nil)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for g := range 4 {
		guest := fmt.Sprint("g", g)
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				f, _ := tab.Open(ask(guest, TCP, uint16(i)), nil)
				if f == nil {
					continue
				}
				var one sync.WaitGroup
				one.Go(func() { f.SetState(Open); f.SetState(Closing) })
				if i%3 == 0 {
					tab.EndGuest(guest, ReasonGuestGone)
				} else if i%7 != 0 {
					f.End(ReasonClosed)
				}
				one.Wait()
			}
		})
	}
	for range 20 {
		f := tab.Follow()
		here := map[uint64]bool{}
		ended := map[uint64]bool{}
		for _, x := range tab.All() {
			here[x.ID] = true
		}
		anew := false
		for n := 0; n < 3000 && !anew; {
			list, missed, err := f.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			anew = missed > 0
			n += len(list)
			for _, c := range list {
				id := c.Flow.ID
				switch c.Kind {
				case Opened:
					if ended[id] {
						t.Fatalf("flow %d is opened after its end", id)
					}
					here[id] = true
				case Changed:
					if ended[id] {
						t.Fatalf("flow %d is changed after its end", id)
					}
					here[id] = true // it may have ended before All, and that is told next
				case Ended:
					if c.Flow.State() != Closed || c.Flow.Reason() == ReasonNone {
						t.Fatalf("flow %d has ended and is %v for %v", id, c.Flow.State(), c.Flow.Reason())
					}
					ended[id] = true
					delete(here, id)
				}
			}
		}
		if !anew {
			// What is here by what was heard, and is not in the table, ends in what comes.
			now := map[uint64]bool{}
			for _, x := range tab.All() {
				now[x.ID] = true
			}
			for id := range here {
				if now[id] {
					delete(here, id)
				}
			}
			for len(here) > 0 {
				list, missed, err := f.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if missed > 0 {
					break
				}
				for _, c := range list {
					if c.Kind == Ended {
						delete(here, c.Flow.ID)
					}
				}
			}
		}
		f.Close()
	}
	close(stop)
	wg.Wait()
	tab.EndAll(ReasonShutdown)
	tab.Close()
}

func BenchmarkOpenEnd(b *testing.B) {
	for _, followed := range []bool{false, true} {
		b.Run(fmt.Sprintf("followed=%v", followed), func(b *testing.B) {
			tab := NewTable(Limits{FlowRate: 1e9}, nil)
			defer tab.Close()
			if followed {
				f := tab.Follow()
				defer f.Close()
			}
			b.ReportAllocs()
			for b.Loop() {
				f, _ := tab.Open(ask("a", TCP, 1), nil)
				f.SetState(Open)
				f.End(ReasonClosed)
			}
		})
	}
}
