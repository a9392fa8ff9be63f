package main

import (
	"runtime/debug"
	"sync"
	"time"
)

const (
	// A guest's coming touches as much code again as the daemon's start: it is over in a moment for the first, which finds
	// little else going on, and for others, with their DHCP, in a second or two.
	forgetFirst = 100 * time.Millisecond
	forgetAfter = 2 * time.Second
	// forgetRest is how often at most, whoever comes and goes: what is in use is mapped again at each time.
	forgetRest = time.Minute
)

// forgetting takes what guests' coming took out of our resident memory again.
type forgetting struct {
	mu      sync.Mutex
	pending bool
	last    time.Time // zero before the first guest
}

// guestCame sees to it a moment later.
func (f *forgetting) guestCame() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending {
		return
	}
	f.pending = true
	wait := max(forgetAfter, time.Until(f.last.Add(forgetRest)))
	if f.last.IsZero() {
		time.AfterFunc(forgetFirst, forgetCode)
		wait = forgetAfter
	}
	time.AfterFunc(wait, func() {
		forgetCode()
		f.mu.Lock()
		f.pending, f.last = false, time.Now()
		f.mu.Unlock()
	})
}

// forgetStart takes what only starting up needed out of our resident memory: garbage, code and constants.
func forgetStart() {
	debug.FreeOSMemory()
	forgetCode()
}
