package capture

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Filter says which frames a capture is about, in tcpdump's language (pcap-filter(7)).
//
// It knows host, net, port, portrange, src and dst, ether host|src|dst|proto, broadcast and multicast, ip, ip6, arp, rarp,
// tcp, udp, sctp, icmp, icmp6, igmp, pim, ah, esp, vrrp, proto, vlan, less and greater, inbound (from the guest) and
// outbound, and comparisons such as tcp[tcpflags] & tcp-syn != 0 or len > 1000, joined by and, or, not and parentheses.
// and and or bind alike, from left to right. What it says of a frame is what libpcap says; names of hosts are not looked up.
type Filter struct {
	text  string
	match node
	depth int // bytes of a frame that it may look at
}

// node is a part of a compiled filter.
type node func(*packet) bool

// value is a part that computes a number, in 32 bits as BPF does.
type value func(*packet) uint32

// packet is a frame that is being looked at.
type packet struct {
	b     []byte // its first bytes
	n     int    // its length
	out   bool   // to the guest
	fault bool   // something was looked for behind its end, or divided by zero: BPF lets no such frame through
}

// String is the filter's text.
func (f *Filter) String() string { return f.text }

// Match says whether a frame passes: to the guest, if out.
func (f *Filter) Match(frame []byte, out bool) bool {
	return f.run(&packet{b: frame, n: len(frame), out: out})
}

func (f *Filter) run(p *packet) bool {
	p.fault = false
	return f.match(p) && !p.fault
}

func (p *packet) u8(at int) uint32 {
	if at < 0 || at >= len(p.b) {
		p.fault = true
		return 0
	}
	return uint32(p.b[at])
}

func (p *packet) u16(at int) uint32 {
	if at < 0 || at+2 > len(p.b) {
		p.fault = true
		return 0
	}
	return uint32(binary.BigEndian.Uint16(p.b[at:]))
}

func (p *packet) u32(at int) uint32 {
	if at < 0 || at+4 > len(p.b) {
		p.fault = true
		return 0
	}
	return binary.BigEndian.Uint32(p.b[at:])
}

// is compares bytes under a mask.
func (p *packet) is(at int, want, mask []byte) bool {
	if len(want) == 0 {
		return true
	}
	if at < 0 || at+len(want) > len(p.b) {
		p.fault = true
		return false
	}
	for i, b := range p.b[at : at+len(want)] {
		if b&mask[i] != want[i]&mask[i] {
			return false
		}
	}
	return true
}

func and(a, b node) node { return func(p *packet) bool { return a(p) && !p.fault && b(p) } }
func or(a, b node) node  { return func(p *packet) bool { return a(p) || !p.fault && b(p) } }
func not(a node) node    { return func(p *packet) bool { return !a(p) && !p.fault } }

func anyOf(list ...node) node {
	all := list[0]
	for _, n := range list[1:] {
		all = or(all, n)
	}
	return all
}

// Numbers of the protocols that the language has words for (IANA ethertypes and protocol-numbers).
const (
	etherIP   = 0x0800
	etherARP  = 0x0806
	etherRARP = 0x8035
	etherIP6  = 0x86dd

	protoICMP  = 1
	protoTCP   = 6
	protoUDP   = 17
	protoFrag  = 44
	protoICMP6 = 58
	protoSCTP  = 132
)

// layer is where in a frame the words behind it look: "vlan" moves them on.
type layer struct{ typ, net int }

func (l layer) ether(typ uint32) node {
	return func(p *packet) bool { return p.u16(l.typ) == typ }
}

// proto is a protocol over IP, which IPv6 may have behind a fragment header.
func (l layer) proto(n uint32, v4, v6 bool) node {
	ip := and(l.ether(etherIP), func(p *packet) bool { return p.u8(l.net+9) == n })
	ip6 := and(l.ether(etherIP6), func(p *packet) bool {
		next := p.u8(l.net + 6)
		return next == n || next == protoFrag && p.u8(l.net+40) == n
	})
	switch {
	case v4 && v6:
		return or(ip6, ip)
	case v6:
		return ip6
	}
	return ip
}

// dir is which end a word means.
type dir int

const (
	either dir = iota
	both
	source
	target
)

// ends applies a test to one end or the other, or both.
func (d dir) ends(src, dst node) node {
	switch d {
	case source:
		return src
	case target:
		return dst
	case both:
		return and(src, dst)
	}
	return or(src, dst)
}

// addrs tests two addresses in a frame.
func (d dir) addrs(src, dst int, want, mask []byte) node {
	return d.ends(func(p *packet) bool { return p.is(src, want, mask) }, func(p *packet) bool { return p.is(dst, want, mask) })
}

// ports tests the ports of TCP, UDP or SCTP: of whole packets and first fragments.
func (l layer) ports(d dir, protos []uint32, low, high uint32) node {
	of := func(n uint32) bool {
		for _, q := range protos {
			if n == q {
				return true
			}
		}
		return false
	}
	in := func(at func(p *packet) int) node {
		port := func(off int) node {
			return func(p *packet) bool { v := p.u16(at(p) + off); return v >= low && v <= high && !p.fault }
		}
		return d.ends(port(0), port(2))
	}
	ip6 := in(func(*packet) int { return l.net + 40 })
	ip := in(l.behindIP)
	return or(
		and(l.ether(etherIP6), func(p *packet) bool { return of(p.u8(l.net+6)) && !p.fault && ip6(p) }),
		and(l.ether(etherIP), func(p *packet) bool {
			return of(p.u8(l.net+9)) && p.u16(l.net+6)&0x1fff == 0 && !p.fault && ip(p)
		}))
}

// behindIP is where an IPv4 packet's payload begins.
func (l layer) behindIP(p *packet) int { return l.net + int(p.u8(l.net)&0xf)*4 }

// load is a number in a frame, or behind its end a fault.
func load(at value, base func(*packet) int, size int) value {
	return func(p *packet) uint32 {
		i := int64(at(p)) + int64(base(p))
		if i > math.MaxInt32 {
			p.fault = true
			return 0
		}
		switch size {
		case 1:
			return p.u8(int(i))
		case 2:
			return p.u16(int(i))
		}
		return p.u32(int(i))
	}
}

// FilterError is what is wrong with a filter, and where.
type FilterError struct {
	Filter string
	At     int // the byte
	Detail string
}

func (e *FilterError) Error() string {
	near := e.Filter[min(e.At, len(e.Filter)):]
	switch {
	case near == "":
		return fmt.Sprintf("filter: at its end: %s", e.Detail)
	case len(near) > 24:
		near = near[:24] + "…"
	}
	return fmt.Sprintf("filter: at %d, %q: %s", e.At+1, near, e.Detail)
}
