package main

// The path: frames from one end to the other, each way with a rate, a delay and a loss of its own. It stands in for
// tc-netem, which not every kernel has.

import (
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// end is where frames come out of a path and go into it.
type end interface {
	// ReadFrame waits for a frame and returns its length.
	ReadFrame(b []byte) (int, error)
	// WriteFrames writes whole frames, in order.
	WriteFrames(frames [][]byte) error
	Close() error
}

// impairment is what happens to frames on their way in one direction.
type impairment struct {
	delay time.Duration
	rate  float64 // bytes a second; 0: as fast as it goes
	loss  float64 // share of the frames
	queue int     // bytes that may wait for the rate; what comes then is dropped
	seed  uint64
}

const (
	// maxFrame is an Ethernet header and the largest MTU there is.
	maxFrame = 14 + 65535
	// dueAtOnce is how many frames are written in one call: 45 make 64 KiB at MTU 1500.
	dueAtOnce = 64
)

// path is two lines, one each way.
type path struct {
	ends  [2]end
	lines [2]*line // from ends[i] to the other
	wg    sync.WaitGroup
	err   atomic.Pointer[error] // the first that is not of the path's own end
}

func newPath(a, b end, ab, ba impairment) *path {
	p := &path{ends: [2]end{a, b}, lines: [2]*line{newLine(ab), newLine(ba)}}
	for i, l := range p.lines {
		p.wg.Add(2)
		go p.run(func() error { return l.fill(p.ends[i]) })
		go p.run(func() error { return l.empty(p.ends[1-i]) })
	}
	return p
}

func (p *path) run(f func() error) {
	defer p.wg.Done()
	if err := f(); err != nil && !errors.Is(err, os.ErrClosed) {
		p.err.CompareAndSwap(nil, &err)
	}
}

// Close ends the path and both its ends.
func (p *path) Close() error {
	for i := range p.ends {
		p.lines[i].close()
		p.ends[i].Close()
	}
	p.wg.Wait()
	if err := p.err.Load(); err != nil {
		return *err
	}
	return nil
}

// line is one direction.
type line struct {
	impairment
	draw *rand.Rand

	carried, lost, overflowed atomic.Int64 // frames

	mu     sync.Mutex
	more   sync.Cond
	frames []frame // in flight, the delay being the same for all: first in, first out
	waits  int     // bytes of them that the rate has not let through
	passed int     // frames of them that it has
	free   time.Time
	closed bool
	spare  [][]byte
}

type frame struct {
	b    []byte
	sent time.Time // when the rate has let it through; it arrives delay later
}

func newLine(i impairment) *line {
	l := &line{impairment: i, draw: rand.New(rand.NewPCG(i.seed, 0))}
	l.more.L = &l.mu
	return l
}

func (l *line) close() {
	l.mu.Lock()
	l.closed = true
	l.more.Broadcast()
	l.mu.Unlock()
}

// fill takes frames from an end. The n-th frame's fate is the seed's, so that runs can be repeated.
func (l *line) fill(from end) error {
	b := make([]byte, maxFrame)
	for {
		n, err := from.ReadFrame(b)
		if err != nil {
			return err
		}
		if l.loss > 0 && l.draw.Float64() < l.loss {
			l.lost.Add(1)
			continue
		}
		l.push(b[:n], time.Now())
	}
}

func (l *line) push(b []byte, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.passed < len(l.frames) && !l.frames[l.passed].sent.After(now) {
		l.waits -= len(l.frames[l.passed].b)
		l.passed++
	}
	if l.waits+len(b) > l.queue && l.rate > 0 {
		l.overflowed.Add(1)
		return
	}
	if l.free.Before(now) {
		l.free = now
	}
	if l.rate > 0 {
		l.free = l.free.Add(time.Duration(float64(len(b)) / l.rate * float64(time.Second)))
	}
	var c []byte
	if n := len(l.spare); n > 0 && cap(l.spare[n-1]) >= len(b) {
		c = l.spare[n-1][:0]
		l.spare = l.spare[:n-1]
	}
	l.frames = append(l.frames, frame{append(c, b...), l.free})
	l.waits += len(b)
	if len(l.frames) == 1 {
		l.more.Signal()
	}
}

// empty gives frames to an end when they are due.
func (l *line) empty(to end) error {
	out := make([][]byte, 0, dueAtOnce)
	for {
		wait := l.due(&out)
		if wait < 0 {
			return nil
		}
		if len(out) == 0 {
			// Not time.Sleep, whose millisecond at the least would make trains of 25 frames at 300 Mbit/s.
			ts := unix.NsecToTimespec(int64(wait))
			unix.Nanosleep(&ts, nil)
			continue
		}
		if err := to.WriteFrames(out); err != nil {
			return err
		}
		l.carried.Add(int64(len(out)))
		l.mu.Lock()
		l.spare = append(l.spare, out...)
		l.mu.Unlock()
		out = out[:0]
	}
}

// due appends the frames that are due to out; if none is, it returns how long until one is, and less than nothing at
// the line's end.
func (l *line) due(out *[][]byte) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.frames) == 0 && !l.closed {
		l.more.Wait()
	}
	if l.closed {
		return -1
	}
	now := time.Now()
	n := 0
	for n < len(l.frames) && n < dueAtOnce && !l.frames[n].sent.Add(l.delay).After(now) {
		*out = append(*out, l.frames[n].b)
		n++
	}
	if n == 0 {
		return l.frames[0].sent.Add(l.delay).Sub(now)
	}
	for i := l.passed; i < n; i++ {
		l.waits -= len(l.frames[i].b)
	}
	l.passed = max(l.passed-n, 0)
	clear(l.frames[:n])
	if l.frames = l.frames[n:]; len(l.frames) == 0 {
		l.frames = nil // start again at the array's beginning
	}
	return 0
}
