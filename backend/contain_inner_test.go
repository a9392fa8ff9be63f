package backend

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// bare is a port without anything, for what is around a bug.
func bare(log *bytes.Buffer) (*port, *int) {
	stopped := new(int)
	p := &port{net: &Network{bugLog: slog.New(slog.NewTextHandler(log, nil))}, id: "g1", bug: make(chan struct{})}
	p.stop = func() { *stopped++ }
	return p, stopped
}

// The stack's timers: a panic in one is the guest's end, and with the port they end, those that are set later too.
func TestStackTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p, stopped := bare(&log)
		c := newClock(p)
		ran := map[string]int{}
		var mu sync.Mutex
		count := func(what string) func() {
			return func() { mu.Lock(); ran[what]++; mu.Unlock() }
		}
		c.AfterFunc(time.Second, count("once"))
		again := c.AfterFunc(time.Second, count("again"))
		off := c.AfterFunc(time.Second, count("stopped"))
		if !off.Stop() {
			t.Error("a timer that waits is not stopped")
		}
		time.Sleep(2 * time.Second)
		again.Reset(time.Second)
		time.Sleep(2 * time.Second)
		c.AfterFunc(0, func() { panic("a bug in a timer") })
		synctest.Wait()
		if !p.isBroken() || *stopped != 1 || !strings.Contains(log.String(), "contain_inner_test.go") {
			t.Errorf("after a panic: broken %v, stopped %d times, log %q", p.isBroken(), *stopped, log.String())
		}
		late := c.AfterFunc(time.Minute, count("late"))
		if len(c.armed) != 1 {
			t.Errorf("%d timers are known as set, want 1", len(c.armed))
		}
		c.stop()
		again.Reset(time.Second)
		late.Reset(time.Second)
		c.AfterFunc(time.Second, count("after the end"))
		time.Sleep(time.Hour)
		if ran["once"] != 1 || ran["again"] != 2 || len(ran) != 2 {
			t.Errorf("ran %v, want once 1, again 2", ran)
		}
	})
}

// A port that met a bug may find one of its stack's locks locked for ever. Its end is given up then, and said.
func TestEndLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p, _ := bare(&log)
		var mu sync.Mutex
		locked, done := make(chan struct{}), 0
		began := time.Now()
		p.ended(
			func() { mu.Lock(); defer mu.Unlock(); panic("a bug in the end") },
			func() { mu.Lock(); done++; mu.Unlock() },
			func() { <-locked },
			func() { mu.Lock(); done++; mu.Unlock() },
		)
		mu.Lock()
		if took := time.Since(began); took != brokenTime || done != 1 || !strings.Contains(log.String(), "left behind") {
			t.Errorf("ended after %v with %d steps done, and says %q", took, done, log.String())
		}
		mu.Unlock()
		close(locked)
		synctest.Wait()
		if done != 2 {
			t.Errorf("%d steps done in the end, want 2", done)
		}
	})
}
