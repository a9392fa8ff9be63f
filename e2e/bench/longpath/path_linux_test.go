package main

import (
	"encoding/binary"
	"os"
	"slices"
	"testing"
	"time"
)

// pipeEnd is an end in memory: what the path reads is sent to in, what it writes comes out of out.
type pipeEnd struct {
	in, out chan []byte
	closed  chan struct{}
}

func newPipeEnd() *pipeEnd {
	return &pipeEnd{make(chan []byte), make(chan []byte, 1024), make(chan struct{})}
}

func (e *pipeEnd) ReadFrame(b []byte) (int, error) {
	select {
	case f := <-e.in:
		return copy(b, f), nil
	case <-e.closed:
		return 0, os.ErrClosed
	}
}

func (e *pipeEnd) WriteFrames(frames [][]byte) error {
	for _, f := range frames {
		e.out <- slices.Clone(f)
	}
	return nil
}

func (e *pipeEnd) Close() error {
	close(e.closed)
	return nil
}

// cross sends n frames of size bytes, numbered, and returns the numbers that arrived and when they all had.
func cross(t *testing.T, i impairment, n, size int) (got []uint32, took time.Duration, l *line) {
	t.Helper()
	a, b := newPipeEnd(), newPipeEnd()
	p := newPath(a, b, i, impairment{})
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	l = p.lines[0]
	at := time.Now()
	for k := range n {
		f := make([]byte, size)
		binary.BigEndian.PutUint32(f, uint32(k))
		a.in <- f
	}
	a.in <- make([]byte, size) // once this is being read, the others' fates are known
	for {
		last := l.lost.Load() + l.overflowed.Load()
		if int64(len(got))+last >= int64(n+1) {
			break
		}
		select {
		case f := <-b.out:
			got = append(got, binary.BigEndian.Uint32(f))
			if len(f) != size {
				t.Fatalf("frame of %d bytes became one of %d", size, len(f))
			}
		case <-time.After(10 * time.Millisecond): // the last one may have been lost
		}
	}
	return got, time.Since(at), l
}

func TestDelay(t *testing.T) {
	const delay = 20 * time.Millisecond
	got, took, _ := cross(t, impairment{delay: delay}, 100, 60)
	if took < delay {
		t.Errorf("crossed in %v, delay is %v", took, delay)
	}
	if len(got) != 101 || !slices.IsSorted(got[:100]) {
		t.Errorf("%d frames of 101, or not in order: %v", len(got), got)
	}
}

func TestRate(t *testing.T) {
	// 101 frames of 1000 bytes at 1 MB/s.
	got, took, _ := cross(t, impairment{rate: 1e6, queue: 1 << 20}, 100, 1000)
	if len(got) != 101 || took < 101*time.Millisecond {
		t.Errorf("%d frames of 101 in %v", len(got), took)
	}
}

func TestQueue(t *testing.T) {
	// A frame takes 1 s, and meanwhile 10 wait.
	a, b := newPipeEnd(), newPipeEnd()
	p := newPath(a, b, impairment{rate: 1e3, queue: 10e3}, impairment{})
	defer p.Close()
	for range 21 {
		a.in <- make([]byte, 1000)
	}
	a.in <- make([]byte, 1000)
	if n := p.lines[0].overflowed.Load(); n < 10 || n > 12 {
		t.Errorf("%d of 21 frames found the queue full, which holds 10", n)
	}
}

// The n-th frame's fate is the seed's.
func TestLoss(t *testing.T) {
	i := impairment{loss: 0.1, seed: 7}
	got, _, l := cross(t, i, 1000, 60)
	if n := l.lost.Load(); n < 60 || n > 150 {
		t.Errorf("%d of 1001 lost at 10 %%", n)
	}
	again, _, _ := cross(t, i, 1000, 60)
	if !slices.Equal(got, again) {
		t.Error("the same seed lost other frames")
	}
	i.seed++
	other, _, _ := cross(t, i, 1000, 60)
	if slices.Equal(got, other) {
		t.Error("another seed lost the same frames")
	}
}
