package impair

import (
	"hash/fnv"
	"math"
	"time"
)

// What befalls a frame is a function of the seed, the class, and the how-manyth of its class the frame is: not of time, nor
// of what befell others. Two runs with one seed so lose the same frames, however fast they were sent.

// mix is SplitMix64's finalizer (Steele, Lea and Flood 2014): each bit of its argument turns each bit of its result with
// probability one half.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// kinds of decisions.
const (
	ofLoss = iota
	ofTurn // Gilbert's
	ofJitter
	ofShare
	ofReorder
	ofDuplicate
	ofCorrupt
	ofBit
	ofRED
)

// draw is a random number for one decision on the n-th frame.
func (c *class) draw(n uint64, kind, part int) uint64 {
	return mix(mix(c.seed+n*0x9e3779b97f4a7c15) + uint64(kind)<<32 + uint64(part)<<40 + uint64(kind+1)*0xd6e8feb86659fd93)
}

// unit makes it a number from 0 to 1, without 1.
func unit(x uint64) float64 { return float64(x>>11) / (1 << 53) }

func (c *class) chance(n uint64, kind, part int, p float64) bool {
	return p > 0 && (p >= 1 || unit(c.draw(n, kind, part)) < p)
}

// seedOf is a class's own.
func seedOf(seed uint64, way, name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(way + "/" + name))
	return mix(seed ^ h.Sum64())
}

// fate is what befalls one frame, by its number alone.
type fate struct {
	lost, doubled, damaged, early bool
	bit                           uint64        // which, if damaged
	late                          time.Duration // jitter
}

// fate decides on a frame that stands for so many packets.
func (c *class) fate(w *Way, packets int) (f fate) {
	n := c.index
	c.index++
	for i := range max(packets, 1) {
		if g := w.Gilbert; g != nil {
			turn := g.P
			if c.badly {
				turn = g.R
			}
			if c.chance(n, ofTurn, i, turn) {
				c.badly = !c.badly
			}
			p := g.Good
			if c.badly {
				p = g.Bad
			}
			f.lost = c.chance(n, ofLoss, i, p) || f.lost
		} else {
			f.lost = c.chance(n, ofLoss, i, w.Loss) || f.lost
		}
	}
	if w.Jitter > 0 {
		f.late = c.jitter(w, n)
	}
	if w.Reorder > 0 {
		c.gap++
		if c.gap >= w.Gap && c.chance(n, ofReorder, 0, w.Reorder) {
			f.early, c.gap = true, 0
		}
	}
	f.doubled = c.chance(n, ofDuplicate, 0, w.Duplicate)
	if c.chance(n, ofCorrupt, 0, w.Corrupt) {
		f.damaged, f.bit = true, c.draw(n, ofBit, 0)
	}
	return f
}

// jitter is how much later, or sooner, the n-th frame comes. Correlated frames are so by way of a normal variable, so that
// the distribution stays what it was.
func (c *class) jitter(w *Way, n uint64) time.Duration {
	u := unit(c.draw(n, ofJitter, 0))
	if w.Correlation > 0 {
		z := normal(u)
		if c.hasZ {
			z = w.Correlation*c.z + math.Sqrt(1-w.Correlation*w.Correlation)*z
		}
		c.z, c.hasZ = z, true
		u = math.Erfc(-z/math.Sqrt2) / 2
	}
	if w.Share > 0 && w.Share < 1 && !c.chance(n, ofShare, 0, w.Share) {
		return 0
	}
	x := 0.0
	switch w.Dist {
	case Uniform:
		x = 2*u - 1
	case Normal:
		x = normal(u)
	case Pareto:
		// Of shape 3 and least 1 the mean is 3/2, the deviation the root of 3/4. The one in a million is 113 deviations
		// off: bounded like maxLatency, so that one frame does not hold up a connection for ever.
		x = (math.Pow(max(1-u, 1e-6), -1.0/3) - 1.5) / math.Sqrt(0.75)
	}
	return max(time.Duration(x*float64(w.Jitter)), -w.Latency)
}

// normal is the standard normal distribution's quantile, within 6 deviations.
func normal(u float64) float64 {
	return math.Sqrt2 * math.Erfinv(2*min(max(u, 1e-9), 1-1e-9)-1)
}
