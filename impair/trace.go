package impair

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Trace is a line's opportunities to carry something, as Mahimahi records them of cellular networks: at each of these
// milliseconds it takes 1500 bytes of IP packets, parts of one or several small ones, and after the last it begins anew.
// An opportunity that finds nothing to carry is over.
type Trace struct {
	Name string // for people: the file's
	At   []uint32
}

const (
	traceBytes  = 1500    // Mahimahi's own 1504 count a TUN header of 4
	maxTrace    = 2000000 // three minutes of 130 Mbit/s, in 8 MB
	maxTraceEnd = 24 * 60 * 60 * 1000
)

// ReadTrace reads Mahimahi's format: a line a millisecond, in order.
func ReadTrace(name string, r io.Reader) (*Trace, error) {
	t := &Trace{Name: name}
	s := bufio.NewScanner(r)
	for n := 1; s.Scan(); n++ {
		text := strings.TrimSpace(s.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		at, err := strconv.ParseUint(text, 10, 32)
		if err != nil || at > maxTraceEnd {
			return nil, fmt.Errorf("trace %s: line %d: %.20q: want milliseconds from 0 to %d", name, n, text, maxTraceEnd)
		}
		if len(t.At) > 0 && uint32(at) < t.At[len(t.At)-1] {
			return nil, fmt.Errorf("trace %s: line %d: %d after %d: want them in order", name, n, at, t.At[len(t.At)-1])
		}
		if len(t.At) == maxTrace {
			return nil, fmt.Errorf("trace %s: want at most %d lines", name, maxTrace)
		}
		t.At = append(t.At, uint32(at))
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("trace %s: %w", name, err)
	}
	return t, t.check()
}

func (t *Trace) check() error {
	if len(t.At) == 0 {
		return fmt.Errorf("trace %s: it is empty: want a millisecond a line", t.Name)
	}
	if len(t.At) > maxTrace {
		return fmt.Errorf("trace %s: want at most %d lines", t.Name, maxTrace)
	}
	last := uint32(0)
	for _, at := range t.At {
		if at < last {
			return fmt.Errorf("trace %s: %d after %d: want them in order", t.Name, at, last)
		}
		last = at
	}
	if last == 0 || last > maxTraceEnd {
		return fmt.Errorf("trace %s: ends at %d: want an end from 1 ms to %d, after which it begins anew", t.Name, last, maxTraceEnd)
	}
	return nil
}

// Mean is how many bits a second it carries.
func (t *Trace) Mean() float64 {
	return float64(len(t.At)) * traceBytes * 8 * 1000 / float64(t.At[len(t.At)-1])
}

// text is the trace in one word, for JSON: each number is the milliseconds since the one before, *N behind it how many
// there are at once.
func (t *Trace) text() string {
	var b strings.Builder
	last := uint32(0)
	for i := 0; i < len(t.At); {
		n := 1
		for i+n < len(t.At) && t.At[i+n] == t.At[i] {
			n++
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%d", t.At[i]-last)
		if n > 1 {
			fmt.Fprintf(&b, "*%d", n)
		}
		last = t.At[i]
		i += n
	}
	return b.String()
}

// parseTrace is text's inverse.
func parseTrace(s string) (*Trace, error) {
	t := &Trace{}
	last := uint64(0)
	for _, f := range strings.Fields(s) {
		gap, times, many := strings.Cut(f, "*")
		d, err := strconv.ParseUint(gap, 10, 32)
		n := uint64(1)
		if many && err == nil {
			n, err = strconv.ParseUint(times, 10, 32)
		}
		if last += d; err != nil || n == 0 || last > maxTraceEnd {
			return nil, fmt.Errorf("trace: %.20q: want MILLISECONDS or MILLISECONDS*TIMES, at most a day", f)
		}
		if n > uint64(maxTrace-len(t.At)) {
			return nil, fmt.Errorf("trace: want at most %d opportunities", maxTrace)
		}
		for ; n > 0; n-- {
			t.At = append(t.At, uint32(last))
		}
	}
	if len(t.At) == 0 {
		return nil, errors.New("trace: it is empty")
	}
	return t, t.check()
}
