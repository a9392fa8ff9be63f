package backendtest

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/vmnetd/vmnetd/backend/egress"
)

// Egress is a world of the test's making: the host's own sockets, but for what a field says. The zero Egress has
// routes of both families and answers no ping. Set fields before the first use.
type Egress struct {
	// Host is used where a field does not say otherwise.
	Host egress.Host
	// Dial, if not nil, is asked first; with handled false the host dials. It may wait for ctx, as a black hole does.
	Dial func(ctx context.Context, dst netip.AddrPort) (c net.Conn, err error, handled bool)
	// Echo, if not nil, answers echo requests.
	Echo func(ctx context.Context, dst netip.Addr, seq uint16, payload []byte) error
	// Open, if not nil, makes UDP sockets.
	Open func(ctx context.Context, network string) (egress.PacketConn, error)
	// NoRoute6 says that there is no IPv6 route. It may be changed at any time.
	NoRoute6 atomic.Bool

	mu    sync.Mutex
	dials []netip.AddrPort
	pings []netip.Addr
}

var (
	_ egress.Egress = (*Egress)(nil)
	_ egress.Router = (*Egress)(nil)
)

// DialContext implements egress.Egress.
func (e *Egress) DialContext(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	e.mu.Lock()
	e.dials = append(e.dials, dst)
	e.mu.Unlock()
	if e.Dial != nil {
		if c, err, handled := e.Dial(ctx, dst); handled {
			return c, err
		}
	}
	return e.Host.DialContext(ctx, network, dst)
}

// ListenPacket implements egress.Egress.
func (e *Egress) ListenPacket(ctx context.Context, network string, from netip.AddrPort) (egress.PacketConn, error) {
	if e.Open != nil {
		return e.Open(ctx, network)
	}
	return e.Host.ListenPacket(ctx, network, from)
}

// Ping implements egress.Egress.
func (e *Egress) Ping(ctx context.Context, dst netip.Addr, seq uint16, payload []byte) error {
	e.mu.Lock()
	e.pings = append(e.pings, dst)
	e.mu.Unlock()
	if e.Echo == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return e.Echo(ctx, dst, seq, payload)
}

// HasRoute4 implements egress.Router.
func (e *Egress) HasRoute4() bool { return true }

// HasRoute6 implements egress.Router.
func (e *Egress) HasRoute6() bool { return !e.NoRoute6.Load() }

// Dials and Pings are the destinations asked for so far.
func (e *Egress) Dials() []netip.AddrPort {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]netip.AddrPort(nil), e.dials...)
}

// Pings are the destinations of echo requests so far.
func (e *Egress) Pings() []netip.Addr {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]netip.Addr(nil), e.pings...)
}
