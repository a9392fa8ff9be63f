package link

import "testing"

func TestOffload(t *testing.T) {
	f := NewFrame(make([]byte, 60))
	if !f.Offload().Whole() {
		t.Error("a new frame is not whole")
	}
	o := Offload{Flags: OffloadSum, Kind: OffloadTCP6, Header: 74, Size: 1440, SumStart: 54, SumAt: 16}
	f.SetOffload(o)
	if f.Offload() != o || ParseOffload(f.Head[Headroom-OffloadLen:]) != o || f.Len() != 60 {
		t.Errorf("%+v", f.Offload())
	}
	for _, tt := range []struct {
		o    Offload
		n    int
		fits bool
	}{
		{Offload{}, 14, true},
		{Offload{Flags: OffloadValid}, 14, true},
		{o, 74, true}, {o, 73, false}, {o, 71, false},
		{Offload{Flags: OffloadSum, SumStart: 65535, SumAt: 65535}, MaxFrame, false},
		{Offload{Flags: OffloadSum, SumStart: 34, SumAt: 16}, 52, true},
		{Offload{Flags: OffloadSum, SumStart: 34, SumAt: 16}, 51, false},
		{Offload{Kind: OffloadTCP4}, 1000, false}, // no size
		{Offload{Kind: OffloadTCP4 | OffloadECN, Size: 1}, 1000, true},
		{Offload{Kind: OffloadECN}, 1000, false},
		{Offload{Kind: 3, Size: 1000}, 1000, false}, // UFO, which Linux has given up
		{Offload{Kind: 5, Size: 1000}, 1000, false}, // datagrams: never asked for
	} {
		if got := tt.o.Fits(tt.n); got != tt.fits {
			t.Errorf("%+v in %d bytes: %v", tt.o, tt.n, got)
		}
	}
}

// A link that reads whole frames, several to a Space, has more offered when there was not room for another, and keeps
// what it cannot do without.
func TestBatchLeast(t *testing.T) {
	const least = MaxFrame + OffloadLen
	m, b := newMemory(t)
	room := func() (n int) {
		for _, p := range b.Space(least) {
			n += len(p)
		}
		return n
	}
	for range 3 {
		b.Next()
		n := room()
		b.Wrote(n - least + 1)
		b.Take(0, n-least+1)
	}
	if n := room(); n < readAhead*ChunkSize {
		t.Errorf("%d bytes are offered to who had no room", n)
	}
	made := 0
	for i := range 3 * calmReads {
		b.Next()
		room()
		b.Wrote(100)
		b.Take(0, 100)
		if i == 2*calmReads {
			made = m.made
		}
	}
	if len(m.live) > 2 || m.made != made {
		t.Errorf("%d chunks are held, %d were made for frames of 100 bytes", len(m.live), m.made-made)
	}
	b.Release()
}
