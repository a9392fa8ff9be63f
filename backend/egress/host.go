package egress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Host is the Egress through the sockets of this machine. The zero value
// works; a Host must not be copied after its first use. It keeps nothing
// open: what it opened ends with its own Close.
type Host struct {
	// Logger is told of settings of the host that hold us back, each once.
	// nil: nobody is.
	Logger *slog.Logger

	// DialTimeout bounds one DialContext. 0: DefaultDialTimeout.
	DialTimeout time.Duration

	// KeepAlive is after how much silence the host's end of a connection
	// asks whether the other side is still there. 0: never, the default
	// that RFC 1122 4.2.3.6 demands (and no less than two hours where it
	// is wanted). The guest's own keep-alives end at the gateway's stack.
	KeepAlive time.Duration

	// PingTimeout bounds one Ping. 0: DefaultPingTimeout.
	PingTimeout time.Duration

	// MaxPings bounds the echo requests that wait at once: each holds a
	// descriptor. One more fails at once (Classify: Exhausted). 0: DefaultMaxPings.
	MaxPings int

	// Interface is the name of the interface that conversations leave by,
	// Source4 and Source6 the addresses they come from. Zero: the system
	// decides. They do not apply to loopback destinations, which could
	// then not be reached, nor to a socket whose local address the caller
	// of ListenPacket chose. With Interface, the host's other addresses
	// cannot be reached by TCP; with Source6 as well, a UDP socket reaches
	// [::1] only if the caller chose that for its local address. Interface
	// is for Linux only (5.7 or newer unless privileged).
	Interface        string
	Source4, Source6 netip.Addr

	pings     atomic.Int64
	smallOnce sync.Once

	noRoute4, noRoute6 atomic.Bool // the last answers
}

const (
	// DefaultDialTimeout: in 30 s Linux sends five SYNs (at 0, 1, 3, 7 and
	// 15 s, RFC 6298), so four may be lost on any path that answers
	// within 15 s. Less than the 3 minutes of RFC 1122 4.2.3.5 does no
	// harm: a timeout is answered with silence, the guest's stack keeps its
	// own patience, and its next SYN (31, 63 s) begins the next dial. Linux'
	// own 127 s (tcp_syn_retries 6) would hold a place among the guest's
	// pending dials four times as long.
	DefaultDialTimeout = 30 * time.Second

	// DefaultPingTimeout: as long as ping(8) waits for its last reply.
	DefaultPingTimeout = 10 * time.Second

	// DefaultMaxPings: a sweep of a silent IPv4 /24 (254 hosts) at once.
	DefaultMaxPings = 256

	// receiveBuffer is asked for each UDP socket: at 1 Gbit/s of 1500-octet
	// datagrams, 10 ms are 830 of them, and the kernel counts 2304 octets
	// for each: 1.9 MB, which is what Linux makes of 1 MiB (it doubles).
	// It is a ceiling, not an allocation, and rmem_max may lower it.
	receiveBuffer = 1 << 20
)

var (
	_ Egress = (*Host)(nil)
	_ Router = (*Host)(nil)
	_ Pinger = (*Host)(nil)
)

// DialContext implements Egress. The connection is a *net.TCPConn.
func (h *Host) DialContext(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	if err := checkDst(network, TCPNetwork(dst.Addr()), dst); err != nil {
		return nil, err
	}
	// Not Dialer.DialTCP: its zero local address is bound all the same, and
	// a bound port is taken for all destinations, not for one.
	d := h.dialer(network, dst.Addr())
	d.Timeout = cmp.Or(h.DialTimeout, DefaultDialTimeout)
	c, err := d.DialContext(ctx, network, dst.String())
	if err != nil {
		return nil, h.noAddress(dst, err)
	}
	return c, nil
}

// noAddress tells the two meanings of EADDRNOTAVAIL apart: no port is left, or
// no address of this family can be the source. UDP's ports are others, so that
// it fails in the second case only.
func (h *Host) noAddress(dst netip.AddrPort, err error) error {
	if errors.Is(err, syscall.EADDRNOTAVAIL) && h.routeTo(dst) != nil {
		return &UnreachableError{Dst: dst, Kind: NetUnreachable, Err: err}
	}
	return err
}

// dialer leaves as this Host's fields say.
func (h *Host) dialer(network string, dst netip.Addr) net.Dialer {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: h.KeepAlive > 0, Idle: h.KeepAlive,
		Interval: -1, Count: -1, // the system's
	}}
	if h.KeepAlive <= 0 {
		d.KeepAlive = -1 // else Go's own default, 15 s
	}
	src := h.source(dst)
	if src.IsValid() {
		if network == "udp4" || network == "udp6" {
			d.LocalAddr = &net.UDPAddr{IP: src.AsSlice()}
		} else {
			d.LocalAddr = &net.TCPAddr{IP: src.AsSlice()}
		}
	}
	if src.IsValid() || h.device(dst) != "" {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			if e := c.Control(func(fd uintptr) { err = h.leaveBy(int(fd), dst) }); e != nil {
				return e
			}
			return err
		}
	}
	return d
}

// source is the address that conversations with dst come from, if it is given.
func (h *Host) source(dst netip.Addr) netip.Addr {
	switch {
	case dst.IsLoopback():
		return netip.Addr{}
	case dst.Is4():
		return h.Source4
	}
	return h.Source6
}

// device is the interface that conversations with dst leave by, if it is given.
func (h *Host) device(dst netip.Addr) string {
	if dst.IsLoopback() {
		return ""
	}
	return h.Interface
}

// Two addresses of the world at large, for the question whether there is a way
// to it: a.root-servers.net, of all addresses the least likely to be routed
// specially. Documentation prefixes are: many routers refuse them. Nothing is sent.
var (
	world4 = netip.MustParseAddrPort("198.41.0.4:53")
	world6 = netip.MustParseAddrPort("[2001:503:ba3e::2:30]:53")
)

// HasRoute4 says whether this host has an IPv4 route to the world now.
func (h *Host) HasRoute4() bool { return h.hasRoute(world4, &h.noRoute4) }

// HasRoute6 says whether this host has an IPv6 route to the world now. A
// unique local source address counts: it may be translated on the way.
func (h *Host) HasRoute6() bool { return h.hasRoute(world6, &h.noRoute6) }

// hasRoute asks the system. While that has no descriptor left for the
// question, the answer is the last one.
func (h *Host) hasRoute(dst netip.AddrPort, last *atomic.Bool) bool {
	err := h.routeTo(dst)
	if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
		last.Store(err != nil)
	}
	return !last.Load()
}

// routeTo connects a UDP socket, which chooses a route and a source address
// and sends nothing.
func (h *Host) routeTo(dst netip.AddrPort) error {
	network := UDPNetwork(dst.Addr())
	d := h.dialer(network, dst.Addr())
	c, err := d.Dial(network, dst.String())
	if err != nil {
		return err
	}
	defer c.Close()
	// A link-local source answers on its own link only; a loopback source is
	// what a host without any address of its own uses.
	src := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
	if !dst.Addr().IsLoopback() && (src.IsLinkLocalUnicast() && src.Is6() || src.IsLoopback()) {
		return fmt.Errorf("egress: no address to speak to %s from", dst.Addr())
	}
	return nil
}

// PingAllowed says for each family whether Ping can work at all.
func (h *Host) PingAllowed() (v4, v6 error) {
	return pingAllowed(false), pingAllowed(true)
}

// Ping implements Egress with the system's unprivileged ICMP sockets, also
// when it would be allowed more.
func (h *Host) Ping(ctx context.Context, dst netip.Addr, seq uint16, payload []byte) error {
	if err := CheckDestination(dst); err != nil {
		return err
	}
	limit := MaxPayload4 // ICMP's header is as long as UDP's
	if dst.Is6() {
		limit = MaxPayload6
	}
	if len(payload) > limit {
		return fmt.Errorf("egress: ping %s: %d octets do not fit into an echo request, at most %d: %w",
			dst, len(payload), limit, syscall.EMSGSIZE)
	}
	most := int64(cmp.Or(h.MaxPings, DefaultMaxPings))
	defer h.pings.Add(-1)
	if h.pings.Add(1) > most {
		return fmt.Errorf("egress: ping %s: %d echo requests wait already: %w", dst, most, errBusy)
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(h.PingTimeout, DefaultPingTimeout))
	defer cancel()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("egress: ping %s: %w", dst, err)
	}
	return h.ping(ctx, dst, seq, payload)
}

// ListenPacket implements Egress.
func (h *Host) ListenPacket(ctx context.Context, network string, from netip.AddrPort) (PacketConn, error) {
	if network != "udp4" && network != "udp6" {
		return nil, fmt.Errorf("egress: listen %q: it takes udp4 or udp6", network)
	}
	if a := from.Addr(); a.IsValid() {
		switch {
		case a.Is4In6() || a.Zone() != "" || a.IsMulticast():
			return nil, fmt.Errorf("egress: listen on %s: %w", a, ErrBadDestination)
		case UDPNetwork(a) != network:
			return nil, fmt.Errorf("egress: listen on %s: it takes %s, not %s", a, UDPNetwork(a), network)
		}
	}
	return h.listenPacket(ctx, network, from)
}

// openUDP opens the socket of ListenPacket. It is the system's own socket and
// the caller's to prepare.
func openUDP(ctx context.Context, network string, from netip.AddrPort, prepare func(fd uintptr) error) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = prepare(fd) }); e != nil {
			return e
		}
		return err
	}}
	addr := from.Addr()
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified()
		if network == "udp6" {
			addr = netip.IPv6Unspecified()
		}
	}
	pc, err := lc.ListenPacket(ctx, network, netip.AddrPortFrom(addr, from.Port()).String())
	if err != nil {
		return nil, err
	}
	return pc.(*net.UDPConn), nil
}

// tooLong refuses what no datagram to that address can carry.
func tooLong(n int, to netip.AddrPort) error {
	limit := MaxPayload4
	if to.Addr().Is6() {
		limit = MaxPayload6
	}
	if n <= limit {
		return nil
	}
	return fmt.Errorf("egress: %d octets to %s do not fit into a datagram, at most %d: %w", n, to, limit, syscall.EMSGSIZE)
}

// smallBuffer is told, once, of a receive buffer that the host cut down.
func (h *Host) smallBuffer(got int) {
	if h.Logger == nil || got >= receiveBuffer {
		return
	}
	h.smallOnce.Do(func() {
		h.Logger.Info("the host keeps UDP receive buffers small: bursts to guests may lose datagrams",
			"bytes", got, "wanted", receiveBuffer, "fix", fmt.Sprintf("sysctl -w net.core.rmem_max=%d", receiveBuffer))
	})
}
