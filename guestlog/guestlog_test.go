package guestlog

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
)

type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func logger(level slog.Level) (*slog.Logger, *bytes.Buffer, *clock) {
	b, c := &bytes.Buffer{}, &clock{time.Unix(1e9, 0)}
	return slog.New(newHandler(slog.NewTextHandler(b, &slog.HandlerOptions{Level: level}), c.now)), b, c
}

func lines(b *bytes.Buffer) int { return strings.Count(b.String(), "\n") }

// A guest that comes and goes for an hour leaves less than a line a second, and what is left out is counted.
func TestBounded(t *testing.T) {
	log, b, c := logger(slog.LevelInfo)
	const each = 36000
	for i := range each {
		l := log.With("guest", fmt.Sprint("g", i))
		l.Info("guest plugged in")
		l.Info("guest gone")
		for k := range 7 {
			l.Warn(fmt.Sprint("complaint ", k))
		}
		c.Time = c.Add(100 * time.Millisecond)
	}
	if n := lines(b); n > 3600*2/3 || n < 1000 {
		t.Errorf("%d lines in an hour", n)
	}
	c.Time = c.Add(time.Hour)
	log.Info("guest gone")
	sum := 0
	for line := range strings.Lines(b.String()) {
		if strings.Contains(line, `msg="guest gone"`) {
			sum++
			if _, n, ok := strings.Cut(line, "not_logged_before="); ok {
				var k int
				fmt.Sscan(n, &k)
				sum += k
			}
		}
	}
	if sum != each+1 {
		t.Errorf("lines and counts make %d, want %d", sum, each+1)
	}
}

// What one guest repeats does not hide what is said for the first time.
func TestOthersPass(t *testing.T) {
	log, b, _ := logger(slog.LevelInfo)
	for range 1000 {
		log.Info("guest plugged in")
	}
	log.WithGroup("x").Error("guest ended: a bug was met", "stack", "…")
	if n := lines(b); n != burst+1 || !strings.Contains(b.String(), "a bug was met") {
		t.Errorf("%d lines:\n%s", n, b)
	}
}

func TestManyMessages(t *testing.T) {
	log, b, c := logger(slog.LevelInfo)
	for i := range 100_000 {
		log.Info(fmt.Sprint("message ", i))
	}
	if n := lines(b); n != totalBurst {
		t.Errorf("%d lines, want %d", n, totalBurst)
	}
	a := log.Handler().(*Handler).account
	if len(a.messages) > maxMessages+1 {
		t.Errorf("%d messages are remembered", len(a.messages))
	}
	c.Time = c.Add(time.Hour)
	log.Info("message 0")
	if lines(b) != totalBurst+1 {
		t.Error("an hour later nothing passes")
	}
}

func TestDebugPasses(t *testing.T) {
	log, b, _ := logger(slog.LevelDebug)
	for range 1000 {
		log.Debug("lease")
	}
	if n := lines(b); n != 1000 {
		t.Errorf("%d lines", n)
	}
}

func Example() {
	h := slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	log := slog.New(New(h))
	log.Info("guest plugged in", "guest", "g1")
	// Output: level=INFO msg="guest plugged in" guest=g1
}
