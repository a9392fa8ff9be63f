package backend

// Station 8, first bytes: where a verdict has a say in whom a guest's first bytes name (flows.Verdict.Inspect), nothing
// of the guest's leaves before they were judged. What the far side says goes to the guest meanwhile, since in some
// protocols it speaks first. After that a conversation is carried as any other. This is the plain path; TCP on the loop
// is in stream_linux.go, UDP in peer.go.

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/hello"
)

const (
	// helloTime is how long a guest may take from its first byte until it is known whom it names. A ClientHello and a
	// request's head are written at once, and a guest's retransmissions take 7 s for the third. A guest that has said
	// nothing may stay silent for as long as any other: clients connect ahead of need.
	helloTime = 10 * time.Second
	// helloBytes is how much of what a guest began to say is held for all its conversations: 2 KiB, as long as most
	// ClientHellos are with a post-quantum key share, for each that it may have (flows.Limits.Flows). What is beyond is
	// judged as it is.
	helloBytes = 32 << 20
)

// firstBytes is what a guest has said so far in a conversation whose verdict waits for that.
type firstBytes struct {
	stream hello.Stream
	b      []byte
	since  time.Time // when the first came
	size   int64     // counted in tcpSide.saying
	judged bool      // and allowed: b is on its way
}

// room is how many bytes may come next.
func (x *firstBytes) room() int { return hello.Most - len(x.b) }

// add takes what came. It reports false if the guest has too much held to hold it all, and takes it then, too: this is
// the last.
func (t *tcpSide) add(x *firstBytes, b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if len(x.b) == 0 {
		x.since = time.Now()
	}
	was := cap(x.b)
	x.b = append(x.b, b...)
	n := int64(cap(x.b) - was)
	x.size += n
	return t.saying.Add(n) <= helloBytes
}

// free lets go of x.
func (t *tcpSide) free(x *firstBytes) {
	if x != nil {
		t.saying.Add(-x.size)
		x.size = 0
	}
}

// says is whom the bytes name. over says that there will be no more of them in time. more: it is not known yet.
func (x *firstBytes) says(over bool) (h flows.Hello, more bool) {
	h, more = x.stream.Look(x.b)
	if more && over {
		if h.How = flows.HelloPart; len(x.b) == 0 {
			h.How = flows.HelloNone
		}
		return h, false
	}
	return h, more
}

// heard judges a TCP conversation by its first bytes. What is not allowed is ended, counted, and its owner told.
func (p *port) heard(f *flows.Flow, h flows.Hello) bool {
	f.SetSaid(h) // first: SetPolicy either sees it, or has set the verdict that is in force here
	v := f.Verdict()
	w := inspect(v, h)
	if !w.Allow {
		if f.State() != flows.Closed {
			p.drops[w.Reason].Add(1)
			f.SetVerdict(w) // which rule said so
			f.Cut(w.Reason)
		}
		return false
	}
	if w.Rule != "" && w.Rule != v.Rule {
		v.Rule = w.Rule
		f.SetVerdict(v)
	}
	return true
}

var errRefused = errors.New("refused for what its first bytes say")

// heldConn is a guest's side of which nothing is read before its first bytes were judged.
type heldConn struct {
	*flowConn
	port *port
	x    *firstBytes // nil once they have been read
}

// Read implements net.Conn.
func (c *heldConn) Read(b []byte) (int, error) {
	if c.x == nil {
		return c.flowConn.Read(b)
	}
	for !c.x.judged {
		n, err := c.flowConn.Read(b[:min(len(b), c.x.room())])
		first := len(c.x.b) == 0 && n > 0
		full := !c.port.tcp.add(c.x, b[:n])
		if first {
			c.SetReadDeadline(c.x.since.Add(helloTime))
		}
		over := full || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded)
		h, more := c.x.says(over)
		switch {
		case more && err == nil:
			continue
		case more:
			return 0, err
		case !c.port.heard(c.flow, h):
			return 0, errRefused
		}
		c.SetReadDeadline(time.Time{})
		c.x.judged = true
	}
	n := copy(b, c.x.b)
	if c.x.b = c.x.b[n:]; len(c.x.b) == 0 {
		c.port.tcp.free(c.x)
		c.x = nil
	}
	if n == 0 {
		return c.flowConn.Read(b)
	}
	return n, nil
}
