package backend

import (
	"log/slog"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/impair"
)

// memoryLab is a target whose measure the test says, and guests that hold what it says.
func memoryLab(t *testing.T, guests int) (*Memory, *memoryState, []*port) {
	t.Helper()
	m, err := NewMemory(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	s := &memoryState{live: 10 << 20, mapped: 12 << 20, cycles: 1}
	m.read = func() memoryState { return *s }
	n, err := New(Config{Logger: slog.New(slog.DiscardHandler), Egress: &backendtest.Egress{}, Memory: m})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return m, s, plugHot(t, n, guests)
}

func at4(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), port)
}

func open(t *testing.T, p *port, count int, first uint16) (list []*flows.Flow, ended *int) {
	t.Helper()
	ended = new(int)
	for i := range count {
		q := flows.Query{Guest: p.id, Proto: flows.TCP, Src: at4(first + uint16(i)), Dst: at4(80)}
		f, v := p.net.admit(p, q, func(r flows.Reason) {
			if r == flows.ReasonMemory {
				*ended++
			}
		})
		if f == nil {
			t.Fatal(v)
		}
		f.SetState(flows.Open)
		list = append(list, f)
	}
	return list, ended
}

// At the target whoever holds most is squeezed, step by step and no more than is needed, and the others are left alone;
// when there is room again all is as it was.
func TestMemorySqueezesTheLargest(t *testing.T) {
	m, s, ps := memoryLab(t, 3)
	big, small := ps[0], ps[1]
	n := big.net
	_, lost := open(t, big, 1000, 1000) // some 12 MiB
	_, none := open(t, small, 100, 1000)
	now := time.Now()
	if m.look(now) || *lost > 0 {
		t.Error("squeezed below the target")
	}
	if got := big.limits.Load().Buffers; got != 16<<20 {
		t.Errorf("one guest's buffers may have %d of a target of 64 MiB", got)
	}
	s.live, s.mapped, s.cycles = 49<<20, 55<<20, 2
	if !m.look(now) {
		t.Error("looked away at the target")
	}
	if *lost == 0 || *lost > 900 || *none > 0 {
		t.Errorf("%d of the largest ended, %d of another; want some 800, and none", *lost, *none)
	}
	first := *lost
	if m.look(now.Add(time.Second)); *lost != first {
		t.Error("squeezed again before it was seen what came of it")
	}
	if _, v := n.admit(big, flows.Query{Guest: big.id, Proto: flows.TCP, Src: at4(9), Dst: at4(80)}, nil); v.Reason != flows.ReasonMemory {
		t.Errorf("a new conversation of the largest: %v", v)
	}
	open(t, small, 1, 5000)
	if w := n.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], big.id) {
		t.Errorf("status: %q", w)
	}
	s.cycles = 3
	m.look(now.Add(2 * time.Second))
	if *lost <= first && n.flows.Use(big.id).Flows.Now > 0 {
		t.Errorf("%d ended, %d before: it is still at the target", *lost, first)
	}
	s.live, s.mapped, s.cycles = 20<<20, 30<<20, 4
	for i := range 10 {
		m.look(now.Add(time.Duration(4+2*i) * time.Second))
	}
	open(t, big, 1, 9000)
	if big.buffers.bound != big.buffers.limit || len(m.squeezed) > 0 || *none > 0 {
		t.Errorf("bound %d of %d, %d squeezed, %d of another ended", big.buffers.bound, big.buffers.limit, len(m.squeezed), *none)
	}
	if w := n.Status().Warnings; len(w) != 0 {
		t.Errorf("status: %q", w)
	}
	if l := n.memoryLimit(); len(l) != 1 || l[0].Value != 64<<20 || l[0].Hits != 2 || l[0].Most != 49<<20 || l[0].Now != 20<<20 {
		t.Errorf("%+v", l)
	}
}

// Idle conversations go first.
func TestMemoryEndsIdleFirst(t *testing.T) {
	_, _, ps := memoryLab(t, 1)
	_, lost := open(t, ps[0], 10, 1000)
	if n := ps[0].giveUp(3 * flowCost); n != 3 || *lost != 3 {
		t.Errorf("%d ended, and %d were told; want 3", n, *lost)
	}
}

// What a bad line holds is its guest's. At the target the line takes no more, until there is room again.
func TestMemorySqueezesLines(t *testing.T) {
	m, s, ps := memoryLab(t, 2)
	p := ps[1]
	defer p.bad.Close() // nobody runs the port
	if err := p.bad.Set(&impair.Settings{Down: impair.Way{Latency: time.Minute}}); err != nil {
		t.Fatal(err)
	}
	send := func(frames int) {
		for range frames {
			if _, err := p.bad.WriteFrames([]link.Frame{link.NewFrame(make([]byte, 1400))}); err != nil {
				t.Fatal(err)
			}
		}
	}
	send(2500)
	held := p.bad.Held()
	if held < 2500*1400 || p.holding() < int(held) || ps[0].holding() >= int(held) {
		t.Errorf("%d of 2500 frames are held; guests hold %d and %d", held, p.holding(), ps[0].holding())
	}
	now := time.Now()
	s.live, s.mapped, s.cycles = 49<<20, 55<<20, 2
	m.look(now)
	if send(100); p.bad.Held() != held {
		t.Errorf("%d bytes are held, %d before the line was to take no more", p.bad.Held(), held)
	}
	s.live, s.mapped, s.cycles = 20<<20, 30<<20, 4
	for i := range 10 {
		m.look(now.Add(time.Duration(4+2*i) * time.Second))
	}
	if send(100); p.bad.Held() < held+100*1400 {
		t.Errorf("%d bytes are held, %d before there was room again", p.bad.Held(), held)
	}
}

// Memory that no guest holds is nobody's fault.
func TestMemoryBlamesNobody(t *testing.T) {
	m, s, ps := memoryLab(t, 2)
	_, lost := open(t, ps[0], 50, 1000)
	s.live, s.cycles = 60<<20, 2
	m.look(time.Now())
	if *lost > 0 || m.hits > 0 || ps[0].buffers.bound != ps[0].buffers.limit {
		t.Error("a guest with little was squeezed")
	}
	if w := ps[0].net.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], "no guest") {
		t.Errorf("status: %q", w)
	}
}

// Go's own limit is the target while there is a network with it, and what it was before when there is none.
func TestMemoryLimitOfGo(t *testing.T) {
	was := debug.SetMemoryLimit(-1)
	m, err := NewMemory(1 << 30)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewMemory(1 << 20); err == nil {
		t.Error("a target of 1 MiB was taken")
	}
	for range 2 {
		n, err := New(Config{Logger: slog.New(slog.DiscardHandler), Egress: &backendtest.Egress{}, Memory: m})
		if err != nil {
			t.Fatal(err)
		}
		if got := debug.SetMemoryLimit(-1); got != 1<<30 {
			t.Errorf("the limit is %d", got)
		}
		n.Close()
		if got := debug.SetMemoryLimit(-1); got != was {
			t.Errorf("the limit is %d, was %d", got, was)
		}
	}
	runtime.GC()
	if s := readMemory(); s.live < 1<<20 || s.live > s.mapped || s.cycles == 0 {
		t.Errorf("%+v", s)
	}
}
