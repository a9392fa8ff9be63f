//go:build !linux

package backend

import (
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/flows"
)

// loop is Linux's: it needs epoll. Elsewhere the plain path carries everything.
type loop struct{}

func newLoop(*port) (*loop, error) { return nil, nil }

func (*loop) run() error { return nil }
func (*loop) wake()      {}

type polledUDP struct{}

func (polledUDP) forget()                              {}
func (*loop) openUDP(*mapping, egress.PacketConn) bool { return false }

func (*loop) openStream(stack.TransportEndpointID, *stack.PacketBuffer, flows.Query) (*flows.Flow, flows.Verdict) {
	return nil, flows.Verdict{}
}
