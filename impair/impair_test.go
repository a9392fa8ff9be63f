package impair

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// run is a line that frames are sent into and taken out of at once when they have come.
type run struct {
	t    testing.TB
	line *Line
	now  time.Duration
	got  []arrival
}

type arrival struct {
	at   time.Duration
	n    int // as sent
	data []byte
}

func start(t testing.TB, words string, seed uint64) *run {
	t.Helper()
	w, err := ParseWay(words, nil)
	if err != nil {
		t.Fatal(err)
	}
	return with(t, Settings{Down: w, Seed: seed})
}

func with(t testing.TB, s Settings) *run {
	t.Helper()
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	r := &run{t: t, line: NewLine(false)}
	r.line.Set(0, &s)
	return r
}

// until lets time go by, to each moment at which something is due.
func (r *run) until(end time.Duration) {
	for {
		next, ok := r.line.Next()
		if !ok || next > end {
			r.now = max(r.now, end)
			return
		}
		r.now = max(r.now, next)
		r.take()
	}
}

func (r *run) take() {
	for _, b := range r.line.Take(r.now, nil, math.MaxInt, math.MaxInt) {
		n := 0
		if len(b) >= 18 {
			n = int(b[14])<<24 | int(b[15])<<16 | int(b[16])<<8 | int(b[17])
		}
		r.got = append(r.got, arrival{r.now, n, slices.Clone(b)})
		r.line.Free(b)
	}
}

// send sends the n-th frame, of so many bytes.
func (r *run) send(n, size int) {
	b := r.line.Buffer(size)
	clear(b)
	b[12], b[13] = 0x88, 0xb5 // IEEE 802: local experiments
	b[14], b[15], b[16], b[17] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	r.line.Send(r.now, b)
	r.take()
}

func (r *run) stats() Stats { l := r.line.Stats(r.now); return l[len(l)-1].Stats }

func (r *run) balance() {
	r.t.Helper()
	s := r.stats()
	if s.Frames+s.Duplicated != s.Passed+s.Dropped() || s.Queued != 0 || s.UnderWay != 0 || r.line.Held() != 0 {
		r.t.Errorf("something is missing: %+v, held %d", s, r.line.Held())
	}
}

// A rate is exact: so many bytes have passed at this time, whatever the frames' sizes, and none before.
func TestRate(t *testing.T) {
	for _, rate := range []int64{56_000, 1_600_000, 10_000_000, 1_000_000_007, 100_000_000_000} {
		r := with(t, Settings{Down: Way{Rate: rate, Queue: 1 << 20}})
		bytes := 0
		for i := range 500 {
			n := 60 + i*7919%1455
			bytes += n
			r.send(i, n)
		}
		r.until(time.Hour)
		want := time.Duration(float64(bytes) * 8e9 / float64(rate))
		if got := r.got[len(r.got)-1].at; len(r.got) != 500 || (got-want).Abs() > time.Nanosecond {
			t.Errorf("%s: %d frames, the last at %v, want %v", printRate(rate), len(r.got), got, want)
		}
		r.balance()
	}
}

// A caller that comes late makes frames late, but the line no slower.
func TestLateCaller(t *testing.T) {
	r := start(t, "rate=10mbit,queue=1MB,latency=20ms", 0)
	for i := range 100 {
		r.send(i, 1250) // 1 ms
	}
	r.now = 70*time.Millisecond + 1
	r.take()
	if len(r.got) != 50 {
		t.Errorf("%d frames after 70 ms, want 50", len(r.got))
	}
	r.until(time.Second)
	if last := r.got[99].at; last != 120*time.Millisecond {
		t.Errorf("the last at %v, want 120ms", last)
	}
}

func TestBurst(t *testing.T) {
	r := start(t, "rate=8mbit,burst=10kB,queue=1MB", 0)
	for i := range 20 {
		r.send(i, 1000) // 1 ms each
	}
	if len(r.got) != 10 {
		t.Errorf("%d passed at once, want 10", len(r.got))
	}
	r.until(time.Second)
	if last := r.got[19].at; last != 10*time.Millisecond {
		t.Errorf("the last at %v, want 10ms", last)
	}
	r.send(20, 1000)
	if len(r.got) != 21 {
		t.Error("a pause does not fill the burst again")
	}
}

func TestQueue(t *testing.T) {
	r := start(t, "rate=8mbit,queue=10kB", 0)
	for i := range 20 {
		r.send(i, 1000)
	}
	if s := r.stats(); s.Queue != 10 || s.Queued != 10000 {
		t.Errorf("%+v, want 10 in and 10 out", s)
	}
	r.until(time.Second)
	r.balance()
	if len(r.got) != 10 || r.got[9].n != 9 || r.got[9].at != 10*time.Millisecond {
		t.Errorf("%d came, the last as %+v", len(r.got), r.got[len(r.got)-1])
	}
	// What is longer than the queue passes an empty one.
	r.send(0, 20000)
	r.until(2 * time.Second)
	if len(r.got) != 11 {
		t.Error("a long frame never passes")
	}
}

func TestPolicer(t *testing.T) {
	r := start(t, "rate=8mbit,burst=5kB,policy=police", 0)
	for i := range 2000 { // 2 MB in a second, of which 1 MB and the burst may pass
		r.until(time.Duration(i) * time.Second / 2000)
		r.send(i, 1000)
	}
	if s := r.stats(); s.Passed < 1000 || s.Passed > 1005 || s.Passed+s.Policed != 2000 {
		t.Errorf("%+v, want 1000 to 1005 passed", s)
	}
	for _, a := range r.got {
		if a.at != time.Duration(a.n)*time.Second/2000 {
			t.Fatalf("a policer held frame %d until %v", a.n, a.at)
		}
	}
}

// CoDel holds a steady excess near its target once it has found its pace, and RED its average between its bounds, where
// drop-tail has the queue full.
func TestActiveQueues(t *testing.T) {
	delay := map[string]time.Duration{}
	for _, policy := range []string{"droptail", "codel", "red"} {
		r := start(t, "rate=8mbit,queue=200kB,policy="+policy, 3)
		for i := range 33000 { // a tenth too much for 30 s
			r.until(time.Duration(i) * time.Second / 1100)
			r.send(i, 1000)
		}
		delay[policy] = time.Duration(r.stats().Delay) * time.Microsecond
		if s := r.stats(); s.Queue < 2500 || s.Queue > 3300 {
			t.Errorf("%s: %+v, want about a tenth dropped", policy, s)
		}
		r.until(time.Minute)
		r.balance()
	}
	t.Log(delay)
	if d := delay["droptail"]; d < 195*time.Millisecond || d > 201*time.Millisecond {
		t.Errorf("droptail: %v, want a full queue, 200ms", d)
	}
	if d := delay["codel"]; d > 30*time.Millisecond {
		t.Errorf("codel: %v, want it near its target", d)
	}
	if d := delay["red"]; d < 50*time.Millisecond || d > 160*time.Millisecond {
		t.Errorf("red: %v, want it between its bounds", d)
	}
}

func TestLatency(t *testing.T) {
	r := start(t, "latency=50ms", 0)
	for i := range 100 {
		r.until(time.Duration(i) * time.Millisecond)
		r.send(i, 100+i)
	}
	r.until(time.Second)
	for i, a := range r.got {
		if a.n != i || a.at != time.Duration(i+50)*time.Millisecond {
			t.Fatalf("frame %d at %v", a.n, a.at)
		}
	}
	r.balance()
}

// Losses are as many as they should be, the same for one seed whatever the pace, and others for another.
func TestLoss(t *testing.T) {
	const n = 20000
	for _, tt := range []struct {
		words    string
		p, sigma float64
	}{
		{"loss=2%", 0.02, math.Sqrt(n * 0.02 * 0.98)},
		{"loss=50%", 0.5, math.Sqrt(n * 0.25)},
		// Losses in a row go together: their number's variance is (1+ρ)/(1-ρ) as much, ρ = 1-p-r.
		{"gilbert=1%/25%", 1. / 26, math.Sqrt(n * 25. / 26 / 26 * 1.74 / 0.26)},
		{"gilbert=1%/25%/50%/1%", 1./26*0.5 + 25./26*0.01, math.Sqrt(n * 0.028 * 1.74 / 0.26)},
	} {
		lost := func(seed uint64, pace time.Duration) []int {
			r := start(t, tt.words+",latency=1ms", seed)
			for i := range n {
				r.until(time.Duration(i) * pace)
				r.send(i, 100)
			}
			r.until(time.Hour)
			r.balance()
			var list []int
			next := 0
			for _, a := range r.got {
				for ; next < a.n; next++ {
					list = append(list, next)
				}
				next++
			}
			return list
		}
		a, b, c := lost(7, time.Millisecond), lost(7, 13*time.Microsecond), lost(8, time.Millisecond)
		if !slices.Equal(a, b) {
			t.Errorf("%s: one seed, two outcomes", tt.words)
		}
		if slices.Equal(a, c) {
			t.Errorf("%s: two seeds, one outcome", tt.words)
		}
		if d := math.Abs(float64(len(a)) - n*tt.p); d > 3*tt.sigma {
			t.Errorf("%s: %d lost of %d, want %.0f ± %.0f", tt.words, len(a), n, n*tt.p, 3*tt.sigma)
		}
		if g := strings.HasPrefix(tt.words, "gilbert=1%/25%,"); g || tt.words == "gilbert=1%/25%" {
			runs := 1
			for i := 1; i < len(a); i++ {
				if a[i] != a[i-1]+1 {
					runs++
				}
			}
			if mean := float64(len(a)) / float64(runs); mean < 3.2 || mean > 5 {
				t.Errorf("%s: %.2f lost in a row, want about 4", tt.words, mean)
			}
		}
	}
}

// The fate of a class's frames does not hang on the other classes' frames.
func TestClassesApart(t *testing.T) {
	udp := func(port byte, n int) []byte {
		b := make([]byte, 60)
		b[12], b[13], b[14], b[23] = 8, 0, 0x45, 17
		b[34], b[35] = 0, port
		b[42], b[43] = byte(n>>8), byte(n)
		return b
	}
	m, _ := ParseMatch("*:udp:53")
	lost := func(between int) (list []int) {
		r := with(t, Settings{Seed: 5, Down: Way{Loss: 0.1}, Flows: []Flow{{Name: "dns", Match: m, Down: Way{Loss: 0.3}}}})
		for i := range 1000 {
			for range between {
				r.line.Send(0, udp(99, 0))
			}
			r.line.Send(0, udp(53, i))
		}
		next := 0
		for _, b := range r.line.Take(0, nil, math.MaxInt, math.MaxInt) {
			if b[35] == 53 {
				for n := int(b[42])<<8 | int(b[43]); next <= n; next++ {
					if next < n {
						list = append(list, next)
					}
				}
			}
		}
		return list
	}
	a, b := lost(0), lost(3)
	if !slices.Equal(a, b) || len(a) < 200 || len(a) > 400 {
		t.Errorf("%d and %d lost of 1000 at 30%%", len(a), len(b))
	}
}

func TestJitter(t *testing.T) {
	const n = 20000
	for _, tt := range []struct {
		words      string
		mean, dev  float64 // ms
		least, top float64
	}{
		{"latency=50ms,jitter=10ms,shuffle", 50, 10 / math.Sqrt(3), 40, 60},
		{"latency=50ms,jitter=10ms,dist=normal,shuffle", 50, 10, 0, 115},
		{"latency=50ms,jitter=10ms,dist=pareto,shuffle", 50, 10, 44, 1200},
		{"latency=50ms,jitter=10ms,dist=normal,correlation=50%,shuffle", 50, 10, 0, 115},
		{"latency=50ms,jitter=10ms,share=25%,shuffle", 50, 10 / math.Sqrt(12), 40, 60},
	} {
		r := start(t, tt.words, 11)
		sent := make([]time.Duration, n)
		for i := range n {
			r.until(time.Duration(i) * time.Millisecond)
			sent[i] = r.now
			r.send(i, 100)
		}
		r.until(time.Hour)
		late := make([]float64, n)
		sum, same := 0.0, 0
		for _, a := range r.got {
			late[a.n] = float64(a.at-sent[a.n]) / 1e6
			sum += late[a.n]
			if a.at-sent[a.n] == 50*time.Millisecond {
				same++
			}
		}
		mean := sum / n
		dev, along := 0.0, 0.0
		for i, x := range late {
			dev += (x - mean) * (x - mean)
			if i > 0 {
				along += (x - mean) * (late[i-1] - mean)
			}
		}
		rho := along / dev
		dev = math.Sqrt(dev / n)
		t.Logf("%s: mean %.2f, deviation %.2f, from %.2f to %.2f, correlation %.2f", tt.words, mean, dev, slices.Min(late), slices.Max(late), rho)
		wide := 0.05
		if strings.Contains(tt.words, "pareto") {
			wide = 0.3 // a heavy tail's deviation is slow to come
		}
		if math.Abs(mean-tt.mean) > 0.5 || math.Abs(dev-tt.dev) > wide*tt.dev || slices.Min(late) < tt.least || slices.Max(late) > tt.top {
			t.Errorf("%s: mean %.2f, deviation %.2f, %.2f to %.2f", tt.words, mean, dev, slices.Min(late), slices.Max(late))
		}
		want := 0.0
		if strings.Contains(tt.words, "correlation") {
			want = 0.5
		}
		if math.Abs(rho-want) > 0.03 {
			t.Errorf("%s: correlation %.3f, want %.1f", tt.words, rho, want)
		}
		if strings.Contains(tt.words, "share") && (same < n*72/100 || same > n*78/100) {
			t.Errorf("%s: %d without jitter", tt.words, same)
		}
	}
	// Without shuffle, order stays.
	r := start(t, "latency=50ms,jitter=50ms", 11)
	for i := range n {
		r.until(time.Duration(i) * time.Millisecond)
		r.send(i, 100)
	}
	r.until(time.Hour)
	for i, a := range r.got {
		if a.n != i {
			t.Fatalf("frame %d came as the %d-th", a.n, i)
		}
	}
}

func TestReorder(t *testing.T) {
	r := start(t, "latency=10ms,reorder=10%,gap=5", 2)
	for i := range 10000 {
		r.until(time.Duration(i) * time.Millisecond)
		r.send(i, 100)
	}
	r.until(time.Hour)
	early, last := 0, -10
	for i, a := range r.got {
		if a.at == time.Duration(a.n)*time.Millisecond {
			if early++; a.n-last < 5 {
				t.Errorf("%d and %d were both early, gap 5", last, a.n)
			}
			last = a.n
		}
		_ = i
	}
	// After each, four that are none, then one in ten: one in 14.
	if s := r.stats(); early < 600 || early > 830 || int(s.Reordered) < early-1 || int(s.Reordered) > early {
		t.Errorf("%d early, %+v", early, s)
	}
}

func TestDuplicateAndCorrupt(t *testing.T) {
	r := start(t, "duplicate=5%,corrupt=5%,latency=1ms", 2)
	for i := range 10000 {
		r.until(time.Duration(i) * 10 * time.Microsecond)
		r.send(i, 200)
	}
	r.until(time.Hour)
	flipped := 0
	for _, a := range r.got {
		bits := 0
		for i, x := range a.data {
			if i >= 18 || i < 12 {
				bits += popcount(x)
			}
		}
		if bits > 1 {
			t.Fatalf("%d bits were flipped", bits)
		}
		flipped += bits
	}
	s := r.stats()
	if d, c := s.Duplicated, s.Corrupted; d < 435 || d > 565 || c < 435 || c > 565 || len(r.got) != 10000+int(d) {
		t.Errorf("%+v, %d came", s, len(r.got))
	}
	if flipped < 400 {
		t.Errorf("%d have a bit flipped, %d should", flipped, s.Corrupted)
	}
	r.balance()
}

func popcount(b byte) (n int) {
	for ; b != 0; b &= b - 1 {
		n++
	}
	return n
}

func TestFlap(t *testing.T) {
	r := start(t, "latency=1ms,flap=10s/2s", 0)
	for i := range 300 {
		r.until(time.Duration(i) * 100 * time.Millisecond)
		r.send(i, 100)
	}
	r.until(time.Hour)
	for _, a := range r.got {
		if a.n%100 >= 80 {
			t.Errorf("frame %d came while the line was down", a.n)
		}
	}
	if s := r.stats(); len(r.got) != 240 || s.Flap != 60 {
		t.Errorf("%d came, %+v", len(r.got), s)
	}
}

func TestSteps(t *testing.T) {
	r := start(t, "latency=10ms;at=1s,latency=20ms;at=2s,loss=100%;repeat=3s", 0)
	for i := range 90 {
		r.until(time.Duration(i) * 100 * time.Millisecond)
		r.send(i, 100)
	}
	r.until(time.Hour)
	for _, a := range r.got {
		want := []time.Duration{10, 20, 0}[a.n%30/10] * time.Millisecond
		if got := a.at - time.Duration(a.n)*100*time.Millisecond; want == 0 || got != want {
			t.Errorf("frame %d took %v", a.n, got)
		}
	}
	if len(r.got) != 60 {
		t.Errorf("%d came", len(r.got))
	}
	// A rate that changes under a queue.
	r = start(t, "rate=8mbit,queue=1MB;at=10ms,rate=80mbit;at=15ms,rate=8mbit", 0)
	for i := range 100 {
		r.send(i, 1000)
	}
	r.until(time.Second)
	// 10 in 10 ms, 50 in 5 ms, 40 in 40 ms.
	if at := r.got[9].at; at != 10*time.Millisecond {
		t.Errorf("10th at %v", at)
	}
	if at := r.got[59].at; at != 15*time.Millisecond {
		t.Errorf("60th at %v", at)
	}
	if at := r.got[99].at; at != 55*time.Millisecond {
		t.Errorf("the last at %v", at)
	}
}

func TestTrace(t *testing.T) {
	tr, err := ReadTrace("t", strings.NewReader("1\n1\n5\n10\n"))
	if err != nil {
		t.Fatal(err)
	}
	r := with(t, Settings{Down: Way{Trace: tr}})
	for i := range 6 {
		r.send(i, 1514)
	}
	r.until(time.Second)
	var at []time.Duration
	for _, a := range r.got {
		at = append(at, a.at/time.Millisecond)
	}
	if want := []time.Duration{1, 1, 5, 10, 11, 11}; !slices.Equal(at, want) {
		t.Errorf("at %v, want %v", at, want)
	}
	// Small ones share an opportunity, one of two and a half takes three, and an opportunity that is not used is gone.
	r.got = nil
	r.now = 100*time.Millisecond + 2
	for i := range 5 {
		r.send(i, 314)
	}
	r.send(5, 3014+750)
	r.send(6, 764)
	r.until(time.Hour)
	at = nil
	for _, a := range r.got {
		at = append(at, a.at/time.Millisecond)
	}
	if want := []time.Duration{101, 101, 101, 101, 101, 110, 110}; !slices.Equal(at, want) {
		t.Errorf("at %v, want %v", at, want)
	}
	b, err := json.Marshal(Way{Trace: tr})
	if err != nil {
		t.Fatal(err)
	}
	var back Way
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back.Trace, tr) {
		t.Errorf("%s: %+v, %v", b, back.Trace, err)
	}
	if got := tr.Mean(); got != 4*1500*8*100 {
		t.Errorf("mean %v", got)
	}
}

// A change loses nothing of what waits or is under way, and nobody waits for what was.
func TestLiveChange(t *testing.T) {
	r := start(t, "rate=8mbit,queue=1MB,latency=10s", 0)
	for i := range 100 {
		r.send(i, 1000)
	}
	r.until(50 * time.Millisecond) // half are under way, half wait
	w, _ := ParseWay("rate=80mbit,latency=20ms", nil)
	r.line.Set(r.now, &Settings{Down: w})
	r.send(100, 1000)
	r.until(time.Hour)
	if len(r.got) != 101 {
		t.Fatalf("%d came", len(r.got))
	}
	for i, a := range r.got {
		if a.n != i {
			t.Fatalf("frame %d came as the %d-th", a.n, i)
		}
	}
	if first, last := r.got[0].at, r.got[100].at; first != 50*time.Millisecond || (last-(50+5+20)*time.Millisecond-100*time.Microsecond).Abs() > time.Microsecond {
		t.Errorf("first at %v, last at %v", first, last)
	}
	// A longer latency holds for the next.
	r.send(0, 100)
	r.until(r.now + time.Millisecond) // it has left the line
	w.Latency = time.Second
	r.line.Set(r.now, &Settings{Down: w})
	at := r.now
	r.send(1, 100)
	r.until(2 * time.Hour)
	if a, b := r.got[101].at-at, r.got[102].at-at; a > 20*time.Millisecond || b < time.Second {
		t.Errorf("after %v and %v", a, b)
	}
	// Off: all of it comes at once.
	for i := range 10 {
		r.send(i, 1000)
	}
	r.line.Set(r.now, &Settings{})
	r.take()
	if len(r.got) != 113 || !r.line.None() {
		t.Errorf("%d came, none %v", len(r.got), r.line.None())
	}
	r.balance()
	// A flow that is no more.
	m, _ := ParseMatch("*:udp")
	r = with(t, Settings{Flows: []Flow{{Name: "a", Match: m, Down: Way{Latency: time.Second}}}})
	b := r.line.Buffer(60)
	clear(b)
	b[12], b[13], b[14], b[23] = 8, 0, 0x45, 17
	r.line.Send(0, b)
	r.line.Set(0, &Settings{Down: Way{Latency: 5 * time.Millisecond}})
	r.until(time.Hour)
	if len(r.got) != 1 || r.got[0].at != 5*time.Millisecond || len(r.line.former) != 0 {
		t.Errorf("%+v", r.got)
	}
	for i := range 100 { // nothing is sent
		r.line.Set(r.now, &Settings{Flows: []Flow{{Name: fmt.Sprint("f", i), Match: m}}})
	}
	if n := len(r.line.former); n != 0 {
		t.Errorf("%d flows that are no more are kept", n)
	}
}

// Chances go on over a change without a seed, and begin anew with one.
func TestSeedOverChange(t *testing.T) {
	lost := func(seeds ...uint64) (list []int) {
		r := start(t, "loss=20%", 9)
		for i := range 1000 {
			if i%100 == 0 && i > 0 {
				s := &Settings{Down: Way{Loss: 0.2, Latency: time.Duration(i)}}
				if k := i/100 - 1; k < len(seeds) {
					s.Seed = seeds[k]
				}
				r.line.Set(r.now, s)
			}
			r.send(i, 100)
			r.until(r.now + time.Millisecond)
		}
		next := 0
		for _, a := range r.got {
			for ; next <= a.n; next++ {
				if next < a.n {
					list = append(list, next)
				}
			}
		}
		return list
	}
	if a, b := lost(), lost(0, 0); !slices.Equal(a, b) {
		t.Error("a change of latency changed the losses")
	}
	again := lost(9)
	var first, second []int
	for _, n := range again {
		if n < 100 {
			first = append(first, n)
		} else if n < 200 {
			second = append(second, n-100)
		}
	}
	if !slices.Equal(first, second) || len(first) == 0 {
		t.Errorf("the seed again, and %v became %v", first, second)
	}
}

// Whatever is sent, a line holds no more than its memory.
func TestMemory(t *testing.T) {
	r := start(t, "latency=10s,memory=1MiB", 0)
	most := int64(0)
	for i := range 200000 {
		r.send(i, 60+i%1400)
		most = max(most, r.line.Held())
	}
	s := r.stats()
	if most > 1<<20 || most < 1<<20-4000 || s.Full == 0 {
		t.Errorf("held %d, %+v", most, s)
	}
	r.until(time.Hour)
	r.balance()
}

// Nor do the buffers of what it holds, however short its frames are.
func TestMemoryOfShortFrames(t *testing.T) {
	const memory = 1 << 20
	w, err := ParseWay("latency=10s,memory=1MiB", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{60, 300, 1514, 5000} {
		l := NewLine(false)
		l.Set(0, &Settings{Down: w})
		for range 3 * memory / size {
			l.Send(0, l.Buffer(size))
		}
		held := 0
		frames := l.Take(time.Minute, nil, memory, memory)
		for _, b := range frames {
			held += cap(b)
		}
		if held > memory || held+len(frames)*frameCost < memory*9/10 {
			t.Errorf("%d frames of %d bytes hold %d, want %d at most, and nearly", len(frames), size, held, memory)
		}
	}
}

// What is longer than the line's packets stands for several.
func TestLongFrames(t *testing.T) {
	r := start(t, "loss=10%", 4)
	for i := range 5000 {
		r.send(i, 14+15000)
	}
	want := 1 - math.Pow(0.9, 10)
	if got := float64(r.stats().Lost) / 5000; math.Abs(got-want) > 3*math.Sqrt(want*(1-want)/5000) {
		t.Errorf("%.3f lost, want %.3f", got, want)
	}
}

func BenchmarkLine(b *testing.B) {
	for _, words := range []string{"latency=10ms", "rate=10gbit,latency=10ms,jitter=1ms,loss=0.1%"} {
		b.Run(words, func(b *testing.B) {
			w, _ := ParseWay(words, nil)
			l := NewLine(false)
			l.Set(0, &Settings{Down: w})
			b.SetBytes(1514)
			b.ReportAllocs()
			now := time.Duration(0)
			var out [][]byte
			for b.Loop() {
				now += 1211
				buf := l.Buffer(1514)
				buf[12] = 0
				l.Send(now, buf)
				out = l.Take(now, out[:0], 64, 1<<20)
				for _, x := range out {
					l.Free(x)
				}
			}
		})
	}
}

func ExampleParseWay() {
	w, err := ParseWay("rate=10000kbit,delay=0.05s,loss=0.01", nil)
	fmt.Println(w.String(), err)
	_, err = ParseWay("loss=120%", nil)
	fmt.Println(err)
	_, err = ParseWay("latency=5ms,jitter=10ms", nil)
	fmt.Println(err)
	// Output:
	// rate=10mbit,loss=1%,latency=50ms <nil>
	// loss "120%": want 0% to 100%
	// jitter 10ms: want at most the latency, 5ms: nothing arrives before it was sent
}
