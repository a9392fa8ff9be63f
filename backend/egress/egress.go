// Package egress is where the virtual network touches a real one: how a
// guest's conversations leave.
//
// [Egress] is the seam: dial a TCP connection, open a UDP socket, send an
// echo request. [Host] leaves through the sockets of the machine it runs on,
// without any privilege; a remote exit or a proxy is another Egress.
//
//	var host egress.Host // the zero value works
//	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
//	defer cancel()
//	dst := netip.MustParseAddrPort("[2001:db8::1]:80")
//	conn, err := host.DialContext(ctx, egress.TCPNetwork(dst.Addr()), dst)
//	switch egress.Classify(err) {
//	case egress.None:
//		defer conn.Close()
//	case egress.Refused:
//		// answer the guest's SYN with a reset
//	}
//
// What it does not do: it decides nothing. Policy judges what a guest asked
// for, and only then is a conversation handed to an Egress. The few
// destinations refused here ([ErrBadDestination]) are those which no policy
// can mean: they have another spelling, no owner, or many owners. It knows
// no guest, no flow and no frame, and imports nothing of ours.
//
// What it could do later: a faster path takes descriptors instead of
// connections, see [Descriptors].
package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// Egress is how guests' conversations leave. All methods may be called by
// many goroutines at once.
//
// Errors: every error may be given to [Classify], which says what the guest
// is to be told. Errors of the destination or the way to it are not logged
// here: they are the guest's business, and a guest can cause any number.
//
// An Egress judges nothing but the form of an address: see [CheckDestination].
type Egress interface {
	// DialContext connects to dst and returns when the other side has
	// accepted, so that the guest's SYN is answered only then.
	//
	// network is "tcp4" or "tcp6" and must be the family of dst (see
	// [TCPNetwork]); no name is resolved, no other family is tried.
	// It ends with an error when ctx ends, or before by a time limit
	// of the implementation's own (Classify: Timeout).
	//
	// The connection has TCP_NODELAY set (the guest's stack has already
	// decided what a segment is). A half-close needs CloseWrite() error,
	// a reset needs SetLinger(0) before Close; an implementation that has
	// them returns a connection with these methods, as *net.TCPConn has.
	// A reset by the peer is a read error, never io.EOF.
	DialContext(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error)

	// ListenPacket opens one unconnected UDP socket: what a guest's source
	// port is mapped to, whatever number of peers it talks to (RFC 4787:
	// endpoint-independent mapping, REQ-1, and filtering, REQ-8).
	//
	// network is "udp4" or "udp6". from is the local address wanted, the
	// zero AddrPort for any; a zero port lets the system choose one.
	// ctx bounds the call, not the life of the socket.
	ListenPacket(ctx context.Context, network string, from netip.AddrPort) (PacketConn, error)

	// Ping sends one echo request with this sequence number and payload,
	// and waits. It returns nil when an echo reply with the same sequence
	// number and payload came back from dst. The identifier on the wire is
	// the implementation's own: whoever asks keeps the guest's.
	//
	// It ends when ctx ends, or before by a time limit of its own; both
	// are Classify: Timeout, unless ctx was cancelled. An ICMP error for
	// the request is an *UnreachableError. ErrNoPing (errors.Is) says that
	// no echo request can be sent at all here, whatever the destination.
	// payload is borrowed for the call.
	Ping(ctx context.Context, dst netip.Addr, seq uint16, payload []byte) error
}

// PacketConn is a UDP socket as Egress opens it. One goroutine reads; any
// number may write; Close may be called at any time, more than once, and
// makes a blocked read return. After Close every call's error is
// net.ErrClosed (errors.Is).
//
// A *UnreachableError (errors.As) from a read or from WriteTo is news of one
// destination: the socket goes on working, for that destination too, and the
// caller reads on; so it does after io.ErrShortBuffer. Any other error of a
// read means that the socket is done.
//
// Zero-length datagrams are datagrams. The largest is MaxPayload4 or
// MaxPayload6 octets: longer ones than the path takes are fragmented.
type PacketConn interface {
	// ReadFrom waits for a datagram and copies it to buf. A datagram
	// longer than buf is cut and comes with io.ErrShortBuffer.
	ReadFrom(buf []byte) (n int, from netip.AddrPort, err error)

	// ReadBorrowed waits for a datagram and returns it in a buffer taken
	// from bufs, which is the caller's until it calls bufs.Put. While the
	// call sleeps it holds no buffer where the system allows that (Linux
	// does), so that thousands of idle sockets cost no 64 KiB each. With
	// an error no buffer is handed over, and b is nil.
	ReadBorrowed(bufs Buffers) (b []byte, from netip.AddrPort, err error)

	// WriteTo sends b to one destination. It never waits: a datagram that
	// finds the socket's send buffer full is dropped (Classify:
	// Exhausted), as a full queue of a real network would do. b is
	// borrowed for the call.
	WriteTo(b []byte, to netip.AddrPort) (n int, err error)

	// LocalAddr is where the socket is bound.
	LocalAddr() netip.AddrPort

	Close() error
}

// PolledPacket is what a PacketConn may offer beside, for a loop that waits for
// many sockets at once. Host's have it on Linux.
type PolledPacket interface {
	PacketConn

	// Poll calls f with the descriptor, which stays valid until f returns.
	Poll(f func(fd int) error) error

	// TryReadBorrowed is ReadBorrowed, but with ErrWait where that would
	// sleep. The descriptor is to be watched by level.
	TryReadBorrowed(bufs Buffers) (b []byte, from netip.AddrPort, err error)
}

// ErrWait is what a call gets that would have to wait.
var ErrWait = errors.New("egress: would wait")

// Router is what an Egress may offer beside: whether it has a way to the
// world now. A guest is not to be handed a default route to nowhere. Both are
// cheap enough to be asked every second; no packet leaves.
type Router interface {
	HasRoute4() bool
	HasRoute6() bool
}

// Pinger is what an Egress may offer beside: whether Ping can work at all, to
// be shown in a status. nil is yes; else the error says what to change, and
// is ErrNoPing.
type Pinger interface {
	PingAllowed() (v4, v6 error)
}

// Descriptors is what an Egress may offer beside, for a loop that owns its
// sockets: raw descriptors instead of connections. Host has it on Linux.
type Descriptors interface {
	// Connect makes a non-blocking, close-on-exec TCP socket and begins to
	// connect it; it is writable when that is over, and SO_ERROR says how.
	// An error known at once (no route, no descriptor left) is returned
	// here, with fd -1. The caller owns fd, closes it, and bounds the
	// time: no limit of the implementation's applies.
	// network and dst are as for DialContext.
	Connect(network string, dst netip.AddrPort) (fd int, err error)
}

// Buffers lends buffers for datagrams.
type Buffers interface {
	// Get returns a buffer; its length is how much may be read into it.
	Get() []byte
	// Put takes back a buffer, or any slice of one that begins where it began.
	Put([]byte)
}

// Largest UDP payloads: the 16-bit length less the headers. IPv4 counts its
// own header in its length (65535-20-8, RFC 791); IPv6 does not (65535-8,
// RFC 8200).
const (
	MaxPayload4 = 65507
	MaxPayload6 = 65527
)

// DatagramBuffers lends buffers that hold any datagram: 64 KiB. They are
// shared by the whole process and freed by the garbage collector when unused.
var DatagramBuffers Buffers = datagramBuffers{}

type datagramBuffers struct{}

type datagram [65536]byte

var datagramPool = sync.Pool{New: func() any { return new(datagram) }}

func (datagramBuffers) Get() []byte { return datagramPool.Get().(*datagram)[:] }

func (datagramBuffers) Put(b []byte) {
	if cap(b) >= len(datagram{}) { // another's buffer is not kept
		datagramPool.Put((*datagram)(b[:len(datagram{})]))
	}
}

// TCPNetwork is the network of a TCP conversation with addr: "tcp4" or "tcp6".
func TCPNetwork(addr netip.Addr) string {
	if addr.Is4() {
		return "tcp4"
	}
	return "tcp6"
}

// UDPNetwork is the network of a UDP conversation with addr: "udp4" or "udp6".
func UDPNetwork(addr netip.Addr) string {
	if addr.Is4() {
		return "udp4"
	}
	return "udp6"
}

// Kind is what became of an attempt, in the words in which a guest can be
// told. The list is closed.
type Kind uint8

const (
	// None: no error.
	None Kind = iota
	// Refused: the other side said no to a connection. A reset.
	Refused
	// PortUnreachable: ICMP said that nobody listens there (also: that the
	// host does not speak the protocol). The same to the guest.
	PortUnreachable
	// HostUnreachable: no way to this host, or it is down, or the packet's
	// hops ran out on the way. ICMP host unreachable, ICMPv6 address
	// unreachable.
	HostUnreachable
	// NetUnreachable: no route. ICMP net unreachable, ICMPv6 no route.
	NetUnreachable
	// Prohibited: a firewall, a route or this package forbids it. ICMP
	// administratively prohibited.
	Prohibited
	// TooBig: longer than the path takes; UnreachableError.MTU has the
	// path's. ICMP fragmentation needed, ICMPv6 packet too big.
	TooBig
	// Timeout: nothing came back in time. Silence is the honest answer: a
	// guest's own retransmitted SYN begins the next attempt.
	Timeout
	// Exhausted: this machine ran out of descriptors, ports or buffers. It
	// is not the destination's fault and will pass: drop, and count.
	Exhausted
	// Other: none of these, a cancelled context and a closed socket among them.
	Other
)

var kindNames = [...]string{"none", "refused", "port unreachable", "host unreachable", "net unreachable",
	"prohibited", "too big", "timeout", "exhausted", "other"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// UnreachableError is news of one destination of a socket: by ICMP, or by
// this host's own routes and filters.
type UnreachableError struct {
	Dst  netip.AddrPort // where the packet was going; for an echo request the port is 0
	Kind Kind
	MTU  int        // with TooBig: the largest packet that the path takes, IP header included; 0: not told
	From netip.Addr // who said so; not valid: this host itself
	Err  error      // the system's error
}

func (e *UnreachableError) Error() string {
	to := e.Dst.String()
	if e.Dst.Port() == 0 {
		to = e.Dst.Addr().String()
	}
	s := "egress: " + to + ": " + e.Kind.String()
	if e.Kind == TooBig && e.MTU > 0 {
		s += fmt.Sprintf(", the path takes %d", e.MTU)
	}
	if e.From.IsValid() {
		return s + ", says " + e.From.String()
	}
	if e.Err != nil {
		return s + ": " + e.Err.Error()
	}
	return s
}

func (e *UnreachableError) Unwrap() error { return e.Err }

var (
	// ErrNoPing: this host lets us send no echo request.
	ErrNoPing = errors.New("no echo requests from here")

	// ErrBadDestination: no conversation can be with such an address.
	ErrBadDestination = errors.New("not a destination")
)

// CheckDestination refuses, with ErrBadDestination, what no Egress takes as a
// destination whatever the policy said:
//
//   - the zero Addr, and an unspecified address, which the host's kernel would
//     take for its own loopback; with it all of 0.0.0.0/8 (RFC 1122 3.2.1.3);
//   - an IPv4-mapped IPv6 address, a second spelling that a rule written for
//     the first would not match;
//   - an address with a zone, and IPv6 link-local ones, which need one: a
//     guest's links are not the host's;
//   - multicast and 255.255.255.255, which have no one owner.
func CheckDestination(addr netip.Addr) error {
	why := ""
	switch {
	case !addr.IsValid():
		return fmt.Errorf("egress: an address that is not set: %w", ErrBadDestination)
	case addr.Zone() != "":
		why = "an address with a zone"
	case addr.Is4In6():
		why = "an IPv4-mapped address: write it as IPv4"
	case addr.IsUnspecified(), addr.Is4() && addr.As4()[0] == 0:
		why = "an unspecified address"
	case addr.IsMulticast():
		why = "a multicast address"
	case addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		why = "the broadcast address"
	case addr.Is6() && addr.IsLinkLocalUnicast():
		why = "a link-local address without a link"
	default:
		return nil
	}
	return fmt.Errorf("egress: %s is %s: %w", addr, why, ErrBadDestination)
}

// checkDst is CheckDestination for an address with a port; want is the one
// network of such an address.
func checkDst(network, want string, dst netip.AddrPort) error {
	if err := CheckDestination(dst.Addr()); err != nil {
		return err
	}
	if dst.Port() == 0 { // reserved (RFC 6335); kernels read it as "choose one"
		return fmt.Errorf("egress: %s has port 0: %w", dst, ErrBadDestination)
	}
	if network != want {
		return fmt.Errorf("egress: network %q for %s: it takes %q", network, dst, want)
	}
	return nil
}
