package dns

import (
	"testing"
	"time"
)

// A guest has its questions of a second at once, and then as they come due; one that nobody named has no rate.
func TestQuestionRate(t *testing.T) {
	g := newGate(1000, 1000, 16)
	g.perSecond = 100
	g.set("g1", 0)
	ask := func(guest string, n int) (let int) {
		for range n {
			if g.enter(guest, DropGuestFull, DropFull) == "" {
				let++
				g.leave(guest)
			}
		}
		return let
	}
	if n := ask("g1", 500); n < 100 || n > 150 { // some come due meanwhile on a slow machine
		t.Errorf("%d of 500 were let in, want 100", n)
	}
	if n := ask("g2", 500); n != 500 {
		t.Errorf("%d of 500 of a guest without a rate", n)
	}
	if u := g.use("g1"); u.Hits < 350 || u.Now != 0 {
		t.Errorf("%+v", u)
	}
	o := &ownGate{}
	now := time.Unix(1000, 0)
	for i := range 100 {
		if !o.allow(100, now) {
			t.Fatalf("question %d is refused", i)
		}
	}
	if o.allow(100, now.Add(5*time.Millisecond)) || !o.allow(100, now.Add(16*time.Millisecond)) {
		t.Error("the next one is due after 10 ms")
	}
}
