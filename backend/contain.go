package backend

// Containment: a bug that one guest's bytes reach ends that guest's wire, with the stack in the log, and nobody else.
//
// What runs for a guest, and who catches a panic there:
//
//	reader, loop            move
//	writer, DHCP, dials,    goes, with the guest's name for it
//	pings, UDP sockets
//	handshakes, and what    complete (tcp.go)
//	TCP becomes on the
//	plain path
//	contexts that end       after
//	the stack's timers      clock
//	the stack, calling us   guard in nic.WritePackets and in what it hands packets of no conversation to: no panic of
//	                        ours unwinds a function of gVisor's, which would leave its locks locked
//	another guest's reader, guard in loop.sendNow: the wire is this guest's, and so is the bug
//	that writes to our wire
//	the network's own       Network.each: one guest at a time
//	goroutines
//	names, port forwards    their packages', by way of Network.failed
//
// What nothing catches: a panic of gVisor's own in the goroutines in which it takes the segments of a conversation apart
// (tcp.processor: it starts them, and offers nobody a place beneath them); one in the reader of a datagram socket that
// many guests share (package vfkit), which does nothing but put frames into their queues; and what the runtime does not
// let anybody recover from: two goroutines in one map, a stack without end, no memory. Such a bug ends the daemon.
// FuzzGuest looks for them; guests that reconnect have their leases and forwards again when it is started anew.
//
// A panic of gVisor's elsewhere may leave one of its locks locked, and whoever waits for it waits for ever. Each guest has
// a stack of its own, so that is this guest's conversations and the end of its port, which is not waited for longer than
// brokenTime.

import (
	"context"
	"runtime/debug"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// brokenTime is how long the end of a port that met a bug is waited for: what it waits for ends in milliseconds, unless
// a lock stays locked.
const brokenTime = 5 * time.Second

// goes starts a goroutine of the port's.
func (p *port) goes(what string, f func()) {
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		defer p.guard(what)
		f()
	}()
}

// after is context.AfterFunc for the port.
func (p *port) after(ctx context.Context, what string, f func()) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		defer p.guard(what)
		f()
	})
}

// safely calls f, and goes on if it meets a bug.
func (p *port) safely(what string, f func()) {
	defer p.guard(what)
	f()
}

// guard, deferred, ends the guest instead of the daemon.
func (p *port) guard(what string) {
	if r := recover(); r != nil {
		p.met(what, r, debug.Stack())
	}
}

// met ends the guest for a bug.
func (p *port) met(what string, r any, stack []byte) {
	p.bugOnce.Do(func() { close(p.bug) })
	p.stop()
	defer func() { recover() }() // the log's may be the bug
	p.net.bugLog.Error("guest ended: a bug was met", "guest", p.id, "in", what, "panic", r, "stack", string(stack))
	p.net.note(EventPanic, p.id, what, "ended: a bug was met in %s; the log has its stack", what)
}

// isBroken says whether a bug was met.
func (p *port) isBroken() bool {
	select {
	case <-p.bug:
		return true
	default:
		return false
	}
}

// failed ends the guest for a bug that another room met for it.
func (n *Network) failed(guest, what string, r any, stack []byte) {
	for _, p := range n.seg.all() {
		if p.id == guest {
			p.met(what, r, stack)
			return
		}
	}
	defer func() { recover() }()
	n.bugLog.Error("a bug was met for a guest that has gone", "guest", guest, "in", what, "panic", r, "stack", string(stack))
	n.note(EventPanic, guest, what, "a bug was met in %s for a guest that has gone; the log has its stack", what)
}

// each calls f for every guest, one guest's bug its own.
func (n *Network) each(what string, f func(*port)) {
	for _, p := range n.seg.all() {
		p.safely(what, func() { f(p) })
	}
}

// ended calls steps one after the other, whatever becomes of each, and waits for them: not for ever once a bug was met.
func (p *port) ended(steps ...func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, step := range steps {
			p.safely("end", step)
		}
	}()
	select {
	case <-done:
		return
	case <-p.bug:
	}
	late := time.NewTimer(brokenTime)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
		p.net.bugLog.Error("what a guest had is left behind: its stack does not end after the bug", "guest", p.id)
	}
}

// clock is the stack's. Its timers' functions are guarded, and stopped with the port: a stack that waits for the rest of a
// fragmented packet would else stay for up to a minute after its guest, with all that it holds, and a guest that comes
// and goes could have any number of these.
type clock struct {
	tcpip.Clock
	port *port

	mu    sync.Mutex
	armed map[*stackTimer]struct{}
	over  bool
}

func newClock(p *port) *clock {
	return &clock{Clock: tcpip.NewStdClock(), port: p, armed: make(map[*stackTimer]struct{})}
}

// stop ends all timers, and makes no other.
func (c *clock) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	for t := range c.armed {
		t.timer.Stop()
	}
	c.armed = nil
}

type stackTimer struct {
	c     *clock
	f     func()
	timer *time.Timer
}

// AfterFunc implements tcpip.Clock.
func (c *clock) AfterFunc(d time.Duration, f func()) tcpip.Timer {
	t := &stackTimer{c: c, f: f}
	c.mu.Lock()
	defer c.mu.Unlock()
	t.timer = time.AfterFunc(d, t.fire)
	if c.over {
		t.timer.Stop()
	} else {
		c.armed[t] = struct{}{}
	}
	return t
}

func (t *stackTimer) fire() {
	c := t.c
	c.mu.Lock()
	over := c.over
	delete(c.armed, t) // where it is being set again just now, stop does not find it, and it fires in vain
	c.mu.Unlock()
	if over {
		return
	}
	defer c.port.guard("timer")
	t.f()
}

// Stop implements tcpip.Timer.
func (t *stackTimer) Stop() bool {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	delete(t.c.armed, t)
	return t.timer.Stop()
}

// Reset implements tcpip.Timer.
func (t *stackTimer) Reset(d time.Duration) {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	if t.c.over {
		return
	}
	t.c.armed[t] = struct{}{}
	t.timer.Reset(d)
}
