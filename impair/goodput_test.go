package impair

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata anew")

// A TCP sender as far as a line matters to it: slow start and congestion avoidance (RFC 5681), selective acknowledgments
// with the usual loss detection (RFC 6675), a retransmission timer (RFC 6298). It always has something to send. All times
// are the lines' own, so what it gets through is a function of the lines, and the same on every machine.
type sender struct {
	down, up *Line
	now      time.Duration

	next, una, high uint32 // segments: to be sent, not yet acknowledged, beyond the highest that arrived
	state           map[uint32]*segment
	hole            uint32 // none before it is to be sent again
	pipe            int
	cwnd, ssthresh  float64
	recover         uint32
	recovering      bool
	srtt, rto       time.Duration
	timeout         time.Duration

	got    map[uint32]bool // of the receiver
	expect uint32
}

type segment struct {
	sent               time.Duration
	lost, again, taken bool
}

const (
	simSegment = 1448 // of a frame of 1514, with timestamps
	simInitial = 10   // RFC 6928
	simLeast   = 200 * time.Millisecond
)

func newSender(down, up *Line) *sender {
	return &sender{down: down, up: up, state: map[uint32]*segment{}, cwnd: simInitial, ssthresh: math.MaxFloat64, rto: time.Second, got: map[uint32]bool{}}
}

func (s *sender) put(l *Line, size int, a, b uint32, at time.Duration) {
	f := l.Buffer(size)
	clear(f)
	f[12], f[13] = 0x88, 0xb5
	binary.BigEndian.PutUint32(f[14:], a)
	binary.BigEndian.PutUint32(f[18:], b)
	binary.BigEndian.PutUint64(f[22:], uint64(at))
	l.Send(s.now, f)
}

func (s *sender) fill() {
	for float64(s.pipe) < s.cwnd {
		n := s.next
		for i := s.hole; i < s.high; i++ {
			if x := s.state[i]; x != nil && x.lost && !x.again && !x.taken {
				n = i
				break
			}
		}
		x := s.state[n]
		if x == nil {
			x = &segment{}
			s.state[n] = x
			s.next, s.hole = n+1, s.high
		} else {
			s.hole = n + 1
			x.again = true
		}
		x.sent = s.now
		if s.pipe++; s.timeout == 0 {
			s.timeout = s.now + s.rto
		}
		s.put(s.down, 1514, n, 0, s.now)
	}
}

// arrived is the receiver: it acknowledges each segment at once.
func (s *sender) arrived(f []byte) {
	n := binary.BigEndian.Uint32(f[14:])
	s.got[n] = true
	for s.got[s.expect] {
		delete(s.got, s.expect)
		s.expect++
	}
	s.put(s.up, 66, s.expect, n, time.Duration(binary.BigEndian.Uint64(f[22:])))
}

func (s *sender) acked(f []byte) {
	upto, n := binary.BigEndian.Uint32(f[14:]), binary.BigEndian.Uint32(f[18:])
	rtt := s.now - time.Duration(binary.BigEndian.Uint64(f[22:]))
	if s.srtt == 0 {
		s.srtt = rtt
	}
	s.srtt += (rtt - s.srtt) / 8
	s.rto = max(simLeast, 2*s.srtt)
	take := func(i uint32) {
		if x := s.state[i]; x != nil && !x.taken {
			if x.taken = true; !x.lost || x.again {
				s.pipe--
			}
		}
	}
	take(n)
	s.high = max(s.high, n+1)
	if upto > s.una {
		for ; s.una < upto; s.una++ {
			take(s.una)
			delete(s.state, s.una)
			if !s.recovering {
				if s.cwnd < s.ssthresh {
					s.cwnd++
				} else {
					s.cwnd += 1 / s.cwnd
				}
			}
		}
		s.timeout = s.now + s.rto
	}
	if s.recovering && s.una >= s.recover {
		s.recovering = false
	}
	for i := s.una; i+3 < s.high; i++ {
		if x := s.state[i]; x != nil && !x.taken && !x.lost {
			x.lost = true
			s.hole = min(s.hole, i)
			s.pipe--
			if !s.recovering {
				s.recovering, s.recover = true, s.next
				s.ssthresh = max(s.cwnd/2, 2)
				s.cwnd = s.ssthresh
			}
		}
	}
}

func (s *sender) expired() {
	s.ssthresh = max(s.cwnd/2, 2)
	s.cwnd, s.pipe, s.recovering = 1, 0, false
	s.high, s.hole = s.next, s.una
	for i := s.una; i < s.next; i++ {
		if x := s.state[i]; !x.taken {
			x.lost, x.again = true, false
		}
	}
	s.rto = min(2*s.rto, time.Minute)
	s.timeout = s.now + s.rto
}

// run is for how long the conversation goes on. It returns the bytes that the receiver has in order.
func (s *sender) run(end time.Duration) int64 {
	for s.fill(); ; s.fill() {
		at := s.timeout
		for _, l := range []*Line{s.down, s.up} {
			if next, ok := l.Next(); ok {
				at = min(at, next)
			}
		}
		if at > end {
			return int64(s.expect) * simSegment
		}
		s.now = at
		if at == s.timeout {
			s.expired()
		}
		for _, b := range s.down.Take(s.now, nil, math.MaxInt, math.MaxInt) {
			s.arrived(b)
			s.down.Free(b)
		}
		for _, b := range s.up.Take(s.now, nil, math.MaxInt, math.MaxInt) {
			s.acked(b)
			s.up.Free(b)
		}
	}
}

// TestGoodputTable: what TCP gets through lines of 10 Mbit/s, by loss and delay, and by what their queues do. The table is
// kept: a change of it is a change of how lines behave, to be looked at, and then written by go test -run Goodput -update.
func TestGoodputTable(t *testing.T) {
	if raced {
		t.Skip("one goroutine, and half a minute of it")
	}
	const lasts = 30 * time.Second
	delays := []string{"1ms", "10ms", "50ms", "150ms", "300ms"}
	var b strings.Builder
	fmt.Fprintf(&b, "TCP's goodput in Mbit/s in the first half minute, over rate=10mbit,queue=100ms and what is beside it, by latency each way\n\n%-34s", "")
	for _, d := range delays {
		fmt.Fprintf(&b, "%8s", d)
	}
	goodput := map[string]float64{}
	for _, words := range []string{"loss=0%", "loss=0.1%", "loss=0.5%", "loss=1%", "loss=2%", "loss=5%", "loss=10%", "gilbert=0.1%/10%", "policy=codel", "policy=red", "duplicate=1%", "corrupt=1%", "flap=10s/1s"} {
		fmt.Fprintf(&b, "\n%-34s", words)
		for _, d := range delays {
			way := "rate=10mbit,queue=100ms,latency=" + d + "," + words
			down := start(t, way, 1).line
			up := NewLine(true)
			w, err := ParseWay("rate=10mbit,latency="+d, nil)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(words, "corrupt") { // which the receiver's checksum sees
				down.Whole = func([]byte) bool { return false }
			}
			up.Set(0, &Settings{Up: w, Seed: 1})
			g := float64(newSender(down, up).run(lasts)) * 8 / lasts.Seconds() / 1e6
			goodput[words+" "+d] = g
			fmt.Fprintf(&b, "%8.2f", g)
		}
	}
	b.WriteString("\n")
	const file = "testdata/goodput.txt"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != b.String() {
		t.Errorf("it was\n%s\nand is\n%s", want, b.String())
	}
	// Whatever the table says: of a line's 10 Mbit/s 9.56 are the user's, and loss costs what it costs everywhere (Mathis,
	// Semke, Mahdavi and Ott 1997: the segment over the round trip times the root of 3/2 over the loss).
	if g := goodput["loss=0% 10ms"]; g < 9.4 || g > 9.57 {
		t.Errorf("without loss %.2f Mbit/s", g)
	}
	for _, x := range []struct {
		loss  float64
		delay time.Duration
	}{{0.01, 50 * time.Millisecond}, {0.01, 150 * time.Millisecond}, {0.02, 50 * time.Millisecond}} {
		model := simSegment * 8 / (2 * x.delay).Seconds() * math.Sqrt(1.5/x.loss) / 1e6
		if g := goodput[fmt.Sprintf("loss=%g%% %s", x.loss*100, printTime(x.delay))]; g < model*0.7 || g > model*1.3 {
			t.Errorf("loss %v, delay %v: %.2f Mbit/s, the model says %.2f", x.loss, x.delay, g, model)
		}
	}
}
