package main

import (
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// sinkLines and sinkBytes are what waits for a log that does not take lines: a start with all its complaints, and a
	// bug's stack, some 10 KiB, many times over.
	sinkLines = 1024
	sinkBytes = 1 << 20
	// sinkPatience is how long the end waits for the last lines.
	sinkPatience = time.Second
)

// logSink writes log lines and never waits: a terminal that was stopped, a full pipe or disk must not stop guests. Lines
// that find no room are counted, and the count is logged once there is room again.
type logSink struct {
	w       io.Writer
	format  func(io.Writer) slog.Handler
	lines   chan []byte
	bytes   atomic.Int64
	lost    atomic.Uint64
	done    chan struct{}
	closing atomic.Bool
	over    chan struct{} // closed when Close has waited long enough
}

// newLogSink starts writing to w. format makes of a writer what logs to it.
func newLogSink(w io.Writer, format func(io.Writer) slog.Handler) *logSink {
	// With a handler, writing where nobody reads any more is an error that is passed over, not the end of the daemon. Were
	// it ignored, run's command would ignore it too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	s := &logSink{w: w, format: format, lines: make(chan []byte, sinkLines), done: make(chan struct{}), over: make(chan struct{})}
	go s.run()
	return s
}

// Write implements io.Writer. It takes a line and does not fail.
func (s *logSink) Write(line []byte) (int, error) {
	if s.closing.Load() {
		return s.w.Write(line)
	}
	if s.bytes.Add(int64(len(line))) > sinkBytes {
		s.bytes.Add(-int64(len(line)))
		s.lost.Add(1)
		return len(line), nil
	}
	select {
	case s.lines <- append([]byte(nil), line...):
	default:
		s.bytes.Add(-int64(len(line)))
		s.lost.Add(1)
	}
	return len(line), nil
}

func (s *logSink) run() {
	defer close(s.done)
	for {
		var line []byte
		select {
		case line = <-s.lines:
		case <-s.over:
		}
		if line == nil {
			return
		}
		s.bytes.Add(-int64(len(line)))
		if _, err := s.w.Write(line); err != nil {
			s.lost.Add(1)
			continue
		}
		if n := s.lost.Swap(0); n > 0 {
			slog.New(s.format(s.w)).Warn("log lines are lost: they were not taken in time", "lines", n)
		}
	}
}

// Close writes what waits, if it is taken soon.
func (s *logSink) Close() error {
	if s.closing.Swap(true) {
		return nil
	}
	defer close(s.over)
	t := time.NewTimer(sinkPatience)
	defer t.Stop()
	select {
	case s.lines <- nil:
	case <-t.C:
		return nil
	}
	select {
	case <-s.done:
	case <-t.C:
	}
	return nil
}
