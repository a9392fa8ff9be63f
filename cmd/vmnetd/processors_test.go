package main

import (
	"runtime"
	"testing"
)

// Threads come with guests at once, and go when fewer guests have been there for a while.
func TestProcessors(t *testing.T) {
	t.Setenv("GOMAXPROCS", "")
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	p := processors{most: 3}
	step := func(what string, want int) {
		t.Helper()
		if got := runtime.GOMAXPROCS(0); got != want {
			t.Errorf("%s: %d threads, want %d", what, got, want)
		}
	}
	p.add(1)
	step("one guest", 1)
	p.add(1)
	step("two", 2)
	for range 100 {
		p.add(-1)
		step("one of them goes", 2)
		p.add(1)
		step("and comes", 2)
	}
	p.lowered()
	step("both have been there", 2)
	p.add(-2)
	p.lowered()
	step("none has", 1)
	p.add(7)
	step("more than processors", 3)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lower != nil {
		p.lower.Stop()
	}
}
