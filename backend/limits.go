package backend

// The limits of a guest, wherever on its way they hold: flows.Limits is the one list of them, and here they get to who
// keeps them. A guest has its own by its MAC, so that they outlast its wire, or the network's.

import "github.com/vmnetd/vmnetd/flows"

// setLimits has the port keep limits, in which nothing is zero.
func (p *port) setLimits(l flows.Limits) {
	p.limits.Store(&l)
	p.queue.limit.Store(int64(l.Queue))
	if p.buffers.limit == 0 {
		p.buffers.init(l.Buffers)
	} else {
		p.buffers.set(l.Buffers)
	}
}
