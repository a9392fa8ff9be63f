package backend

// Station 8, the relay: bytes both ways between a guest and the far side. A side that has finished sending is told on
// as a half-close, a side that breaks off as a reset; a reset never arrives as a clean end. This is the plain path, for
// any net.Conn; on Linux host sockets go on the loop (stream_linux.go).

import (
	"errors"
	"net"

	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/portforward"
)

// relay runs until both directions are over, closes both sides and says how it ended.
func (p *port) relay(guest *tcpConn, far net.Conn, f *flows.Flow) flows.Reason {
	c := &flowConn{}
	c.start(guest, f)
	var from net.Conn = c
	if f.Verdict().Inspect != nil {
		x := &firstBytes{}
		defer p.tcp.free(x)
		from = &heldConn{c, p, x}
	}
	if _, _, err := portforward.Relay(from, far); err != nil {
		if b := (*portforward.Bug)(nil); errors.As(err, &b) {
			p.met("relay", b.Value, b.Stack)
		}
		return flows.ReasonReset
	}
	return flows.ReasonClosed
}
