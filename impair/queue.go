package impair

import (
	"math"
	"time"
)

// CoDel's parameters (RFC 8289 §4.2, §4.3).
const (
	codelTarget   = 5 * time.Millisecond
	codelInterval = 100 * time.Millisecond
)

// codel is RFC 8289 §5's state, by its names.
type codel struct {
	firstAbove time.Duration
	dropNext   time.Duration
	count      int
	lastCount  int
	dropping   bool
}

// take takes the next packet from the queue, and says whether it may be dropped for its long wait.
func (d *codel) take(c *class, now time.Duration) (p *packet, ok bool) {
	if p = c.pop(); p == nil {
		d.firstAbove = 0
		return nil, false
	}
	left := c.queued - int64(p.size(c.line.Skip))
	if now-p.arrived < codelTarget || left <= int64(c.way.mtu()) {
		d.firstAbove = 0
		return p, false
	}
	if d.firstAbove == 0 {
		d.firstAbove = now + codelInterval
		return p, false
	}
	return p, now >= d.firstAbove
}

func law(t time.Duration, count int) time.Duration {
	return t + time.Duration(float64(codelInterval)/math.Sqrt(float64(count)))
}

// next takes the packet that the line carries next, and drops those before it that have to go (RFC 8289 §5.5).
func (d *codel) next(c *class, now time.Duration) *packet {
	p, ok := d.take(c, now)
	drop := func() {
		c.stats.Queue++
		c.queued -= int64(p.size(c.line.Skip))
		c.line.drop(p)
		p, ok = d.take(c, now)
	}
	if p == nil {
		d.dropping = false
		return nil
	}
	if d.dropping {
		if !ok {
			d.dropping = false
		}
		for p != nil && d.dropping && now >= d.dropNext {
			drop()
			if !ok {
				d.dropping = false
			} else {
				d.count++
				d.dropNext = law(d.dropNext, d.count)
			}
		}
	} else if ok {
		drop()
		d.dropping = true
		delta := d.count - d.lastCount
		d.count = 1
		if delta > 1 && now-d.dropNext < 16*codelInterval {
			d.count = delta
		}
		d.dropNext = law(now, d.count)
		d.lastCount = d.count
	}
	return p
}

// red is random early detection's (Floyd and Jacobson 1993): its weight and its largest share are theirs.
type red struct {
	average float64 // bytes
	since   int     // packets since the last that was dropped
	idle    time.Duration
}

const (
	redWeight = 0.002
	redMost   = 0.1
)

// drops judges a packet that comes to the queue.
func (r *red) drops(c *class, p *packet, now time.Duration, limit int64) bool {
	least, most := float64(limit)/4, float64(limit)*3/4
	if c.queued == 0 { // as many small packets as could have gone meanwhile
		idle := float64(now - r.idle)
		r.average *= math.Pow(1-redWeight, idle/float64(max(1, c.typical())))
		r.idle = now
	}
	r.average += redWeight * (float64(c.queued) - r.average)
	switch {
	case r.average < least:
		r.since = -1
		return false
	case r.average >= most:
		r.since = 0
		return true
	}
	r.since++
	share := redMost * (r.average - least) / (most - least)
	share /= max(1-float64(r.since)*share, 1e-9)
	if unit(c.draw(c.index, ofRED, 0)) < share || share >= 1 {
		r.since = 0
		return true
	}
	return false
}

// typical is what the line takes for a packet of 1500 bytes.
func (c *class) typical() time.Duration {
	if c.way.Trace != nil {
		return time.Duration(traceBytes * 8e9 / c.way.Trace.Mean())
	}
	return c.timeOf(1514)
}
