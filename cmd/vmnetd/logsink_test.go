package main

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// gated takes lines only while it is open.
type gated struct {
	gate chan struct{} // receives while closed to readers
	mu   sync.Mutex
	bytes.Buffer
	fail error
}

func (g *gated) Write(b []byte) (int, error) {
	<-g.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fail != nil {
		return 0, g.fail
	}
	return g.Buffer.Write(b)
}

func (g *gated) text() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.String()
}

func textLog(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) }

// Nobody reads the log: who logs goes on, memory is bounded, and how much is missing is said afterwards.
func TestLogSinkStuck(t *testing.T) {
	g := &gated{gate: make(chan struct{})}
	s := newLogSink(g, textLog)
	log := slog.New(textLog(s))
	const all = 5 * sinkLines
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range all {
			log.Info("line", "n", i)
		}
		for range 3 {
			log.Info("long", "x", strings.Repeat("x", sinkBytes))
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("who logs waits for the log")
	}
	if n := s.bytes.Load(); n > sinkBytes {
		t.Errorf("%d bytes wait, want at most %d", n, sinkBytes)
	}
	lost := s.lost.Load()
	close(g.gate)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	text := g.text()
	if got := strings.Count(text, "msg=line"); got+int(lost) != all+3 {
		t.Errorf("%d lines came and %d are lost, want %d", got, lost, all+3)
	}
	if !strings.Contains(text, "log lines are lost") {
		t.Error("nothing is said of the lost ones")
	}
	log.Info("the very last")
	if !strings.Contains(g.text(), "the very last") {
		t.Error("a line after Close is lost")
	}
}

// A full disk costs its lines and no more.
func TestLogSinkFails(t *testing.T) {
	g := &gated{gate: make(chan struct{}), fail: errors.New("no space left on device")}
	close(g.gate)
	s := newLogSink(g, textLog)
	log := slog.New(textLog(s))
	for range 10 {
		log.Info("line")
	}
	for s.lost.Load() < 10 {
		time.Sleep(time.Millisecond)
	}
	g.mu.Lock()
	g.fail = nil
	g.mu.Unlock()
	log.Info("again")
	s.Close()
	if text := g.text(); !strings.Contains(text, "msg=again") || !strings.Contains(text, "lines=10") {
		t.Errorf("log %q", text)
	}
}

// A log that is never read does not keep the daemon from ending.
func TestLogSinkEnds(t *testing.T) {
	g := &gated{gate: make(chan struct{})}
	defer close(g.gate)
	s := newLogSink(g, textLog)
	for range 2 * sinkLines {
		s.Write([]byte("line\n"))
	}
	start := time.Now()
	s.Close()
	if d := time.Since(start); d > 5*sinkPatience {
		t.Errorf("it took %v", d)
	}
}
