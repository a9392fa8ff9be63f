package backend

// How fast a guest may send and get: a bucket of bytes for each way, which may be overdrawn, since what was read or cut is
// carried whole. Then nothing more moves that way until it is level. Up, the guest's wire is left unread: the VMM's queue
// fills, and the guest's own TCP waits for its card as on a slow line, where a dropped segment would cost it its window.
// Down, the queue is left as it is: past a quarter of a second's worth host sockets wait, past a whole one it drops.

import (
	"sync/atomic"
	"time"
)

const (
	// paceBurst is which part of a second may move at once: what a timer may be late is a tenth of that.
	paceBurst = 20
	// paceLeast is the least that may: the stack's largest packet.
	paceLeast = 64 << 10
	// paceWait is how long is waited at most before the rate is looked at again, which may have been changed.
	paceWait = 100 * time.Millisecond
	// pacedQueue is the least that may wait for a paced guest: some packets of the stack's.
	pacedQueue = 256 << 10
)

type throttle struct {
	rate atomic.Int64 // bytes a second; 0: no bound
	hits atomic.Uint64

	// Of whoever moves the bytes:
	tokens float64
	last   time.Time
}

// set changes the rate.
func (c *throttle) set(rate int) {
	if rate >= 1<<50 { // none
		rate = 0
	}
	c.rate.Store(int64(rate))
}

// take counts n bytes that were moved, and says how long to wait before the next.
func (c *throttle) take(n int) time.Duration {
	rate := float64(c.rate.Load())
	if rate == 0 {
		c.last = time.Time{}
		return 0
	}
	burst := max(rate/paceBurst, paceLeast)
	now := time.Now()
	if c.last.IsZero() {
		c.tokens = burst
	} else {
		c.tokens = min(burst, c.tokens+rate*now.Sub(c.last).Seconds())
	}
	c.last = now
	was := c.tokens
	if c.tokens -= float64(n); c.tokens >= 0 {
		return 0
	}
	if was >= 0 {
		c.hits.Add(1)
	}
	return min(time.Duration(-c.tokens/rate*float64(time.Second))+time.Microsecond, paceWait)
}

// wait has a goroutine wait until the port may move on, or has ended.
func (p *port) wait(c *throttle, n int) {
	for d := c.take(n); d > 0; d = c.take(0) {
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-p.ctx.Done():
			t.Stop()
			return
		}
	}
}
