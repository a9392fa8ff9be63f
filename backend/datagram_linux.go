package backend

// UDP on the loop: a mapping's host socket is one more descriptor that the loop waits for, instead of a goroutine.

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/flows"
)

// burstMost is how many datagrams of one mapping are read before the others have their turn.
const burstMost = 32

// polledUDP is a mapping's place on the loop.
type polledUDP struct {
	l     *loop
	index int32
	gone  atomic.Bool
	burst int // how many datagrams are read at a time: more as long as all of them are there
}

// openUDP has the loop read conn for m, and reports whether it can. It runs on the loop.
func (l *loop) openUDP(m *mapping, conn egress.PacketConn) bool {
	if l == nil {
		return false
	}
	c, ok := conn.(egress.PolledPacket)
	if !ok {
		return false
	}
	m.poll.burst = 1
	err := c.Poll(func(fd int) error {
		i, err := l.watch(fd, unix.EPOLLIN, func(events uint32) { l.readUDP(m, c, events) })
		m.poll.index = i
		return err
	})
	if err != nil {
		return false
	}
	m.poll.l = l
	return true
}

func (l *loop) readUDP(m *mapping, c egress.PolledPacket, events uint32) {
	if events == watchedEnds {
		return // the port closes its mappings itself
	}
	n := 0
	for ; n < m.poll.burst; n++ {
		b, from, err := c.TryReadBorrowed(&l.datagrams)
		if errors.Is(err, egress.ErrWait) {
			break
		}
		if !m.received(b, from, err) {
			m.flow.End(flows.ReasonClosed)
			m.port.udp.end(m)
			return
		}
	}
	if n == m.poll.burst {
		m.poll.burst = min(2*m.poll.burst, burstMost)
	} else {
		m.poll.burst = 1
	}
}

// forget takes the mapping, whose socket was closed, off the loop.
func (u *polledUDP) forget() {
	if u.l != nil && !u.gone.Swap(true) {
		u.l.post(func() { u.l.forget(u.index) })
	}
}

// oneBuffer lends the loop's one buffer for datagrams.
type oneBuffer struct{ b []byte }

func (o *oneBuffer) Get() []byte {
	if o.b == nil {
		o.b = make([]byte, 1<<16) // as long as IP's lengths can say
	}
	return o.b
}

func (o *oneBuffer) Put([]byte) {}
