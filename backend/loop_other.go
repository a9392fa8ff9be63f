//go:build !linux

package backend

import (
	"net"
	"sync/atomic"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

// loop is Linux's: it needs epoll. Elsewhere the plain path carries everything.
type loop struct{}

func newLoop(*port) (*loop, error) { return nil, nil }

func (*loop) run() error { return nil }
func (*loop) wake()      {}
func (*loop) readDue()   {}
func (*loop) writeDue()  {}

func (*loop) watchTimer(syscall.RawConn, func(), func()) {}

func (*loop) post(func()) bool { return false }

func (*loop) sendNow([]link.Frame) int { return 0 }

func (*loop) carry(int, *tcpConn, *flows.Flow, *atomic.Int64, *atomic.Int64, func(error)) func(flows.Reason) {
	return nil
}

func takeDescriptor(net.Conn) (int, bool) { return -1, false }

type polledUDP struct{}

func (polledUDP) forget()                              {}
func (*loop) openUDP(*mapping, egress.PacketConn) bool { return false }

func (*loop) openStream(stack.TransportEndpointID, *stack.PacketBuffer, flows.Query) (*flows.Flow, flows.Verdict) {
	return nil, flows.Verdict{}
}
