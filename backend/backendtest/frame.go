package backendtest

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// EtherTypes (IANA ieee-802-numbers).
const (
	EtherIPv4 = 0x0800
	EtherARP  = 0x0806
	EtherVLAN = 0x8100
	EtherIPv6 = 0x86dd
)

// IP protocol numbers (IANA protocol-numbers).
const (
	ProtoHopByHop = 0
	ProtoICMP     = 1
	ProtoTCP      = 6
	ProtoUDP      = 17
	ProtoRouting  = 43
	ProtoFragment = 44
	ProtoICMPv6   = 58
	ProtoNone     = 59
	ProtoDestOpts = 60
)

// Broadcast is the Ethernet broadcast address.
var Broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Layer is a header of a frame, or its payload. The zero value of a field that can be computed (a length, a checksum,
// the protocol of what follows) is computed; any other value goes to the wire as it is, right or wrong.
type Layer interface {
	// wrap returns the layer's bytes with inner, the bytes of what follows, behind them.
	wrap(inner []byte, outer, rest []Layer) []byte
}

// Build makes a frame of its layers, outermost first.
//
//	syn := Build(Ethernet{Src: g.MAC(), Dst: gw}, IPv4{Src: a, Dst: b}, TCP{SrcPort: 40000, DstPort: 80, Flags: "S"})
func Build(layers ...Layer) []byte {
	var b []byte
	for i := len(layers) - 1; i >= 0; i-- {
		b = layers[i].wrap(b, layers[:i], layers[i+1:])
	}
	return b
}

// Payload is what a frame carries.
type Payload []byte

func (p Payload) wrap(inner []byte, _, _ []Layer) []byte {
	return append(append([]byte(nil), p...), inner...)
}

// Ethernet is an Ethernet II header (IEEE 802.3 §3.2.6). A nil Dst is broadcast.
type Ethernet struct {
	Src, Dst net.HardwareAddr
	Type     uint16
}

func (e Ethernet) wrap(inner []byte, _, rest []Layer) []byte {
	b := make([]byte, 14, 14+len(inner))
	copy(b, Broadcast)
	if e.Dst != nil {
		copy(b, e.Dst)
	}
	copy(b[6:], e.Src)
	t := e.Type
	if t == 0 {
		t = etherOf(rest)
	}
	binary.BigEndian.PutUint16(b[12:], t)
	return append(b, inner...)
}

// VLAN is an 802.1Q tag, behind Ethernet.
type VLAN struct {
	ID   uint16
	Type uint16
}

func (v VLAN) wrap(inner []byte, _, rest []Layer) []byte {
	t := v.Type
	if t == 0 {
		t = etherOf(rest)
	}
	b := binary.BigEndian.AppendUint16(nil, v.ID)
	b = binary.BigEndian.AppendUint16(b, t)
	return append(b, inner...)
}

func etherOf(rest []Layer) uint16 {
	if len(rest) == 0 {
		return 0xffff // reserved (RFC 1701 list): nobody speaks it
	}
	switch rest[0].(type) {
	case ARP:
		return EtherARP
	case IPv4:
		return EtherIPv4
	case IPv6:
		return EtherIPv6
	case VLAN:
		return EtherVLAN
	}
	return 0xffff
}

// ARP is a packet of RFC 826 for IPv4 over Ethernet. Op 0 is a request.
type ARP struct {
	Op                   uint16
	SenderMAC, TargetMAC net.HardwareAddr
	Sender, Target       netip.Addr
}

// Operations of ARP.
const (
	ARPRequest = 1
	ARPReply   = 2
)

func (a ARP) wrap(inner []byte, _, _ []Layer) []byte {
	b := make([]byte, 28)
	copy(b, []byte{0, 1, 8, 0, 6, 4})
	op := a.Op
	if op == 0 {
		op = ARPRequest
	}
	binary.BigEndian.PutUint16(b[6:], op)
	copy(b[8:14], a.SenderMAC)
	put4(b[14:18], a.Sender)
	copy(b[18:24], a.TargetMAC)
	put4(b[24:28], a.Target)
	return append(b, inner...)
}

func put4(b []byte, a netip.Addr) {
	if a.Is4() {
		copy(b, a.AsSlice())
	}
}

// IPv4 is a header of RFC 791.
type IPv4 struct {
	Src, Dst     netip.Addr
	Proto        uint8
	TTL          uint8 // 0: 64
	ID           uint16
	DontFragment bool
	More         bool // more fragments
	Offset       int  // of the fragment, in bytes
	Options      []byte
	TotalLength  int // 0: as it is
	HeaderWords  int // 0: as it is
}

func (h IPv4) wrap(inner []byte, outer, rest []Layer) []byte {
	hl := 20 + (len(h.Options)+3)/4*4
	b := make([]byte, hl, hl+len(inner))
	b[0] = 0x40 | byte(hl/4)
	if h.HeaderWords != 0 {
		b[0] = 0x40 | byte(h.HeaderWords)
	}
	binary.BigEndian.PutUint16(b[2:], uint16(or(h.TotalLength, hl+len(inner))))
	binary.BigEndian.PutUint16(b[4:], h.ID)
	fo := uint16(h.Offset / 8)
	if h.DontFragment {
		fo |= 0x4000
	}
	if h.More {
		fo |= 0x2000
	}
	binary.BigEndian.PutUint16(b[6:], fo)
	b[8] = byte(or(int(h.TTL), 64))
	b[9] = h.Proto
	if h.Proto == 0 {
		b[9] = protoOf(rest, false)
	}
	put4(b[12:], h.Src)
	put4(b[16:], h.Dst)
	copy(b[20:], h.Options)
	binary.BigEndian.PutUint16(b[10:], ^sum(b, 0))
	return append(b, inner...)
}

// IPv6 is a header of RFC 8200.
type IPv6 struct {
	Src, Dst      netip.Addr
	Next          uint8 // 0 and Ext{Kind: ProtoHopByHop} behind it is hop-by-hop; else 0 means: computed
	HopLimit      uint8 // 0: 64, or 255 before a neighbour discovery message
	PayloadLength int   // 0: as it is
}

func (h IPv6) wrap(inner []byte, _, rest []Layer) []byte {
	b := make([]byte, 40, 40+len(inner))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(or(h.PayloadLength, len(inner))))
	b[6] = h.Next
	if h.Next == 0 {
		b[6] = protoOf(rest, true)
	}
	b[7] = h.HopLimit
	if b[7] == 0 {
		b[7] = 64
		for _, l := range rest {
			if m, ok := l.(ICMP); ok && m.Type >= 133 && m.Type <= 137 {
				b[7] = 255 // RFC 4861 §7.1
			}
		}
	}
	if h.Src.Is6() {
		copy(b[8:], h.Src.AsSlice())
	}
	if h.Dst.Is6() {
		copy(b[24:], h.Dst.AsSlice())
	}
	return append(b, inner...)
}

// Ext is an IPv6 extension header: hop-by-hop, destination options or routing (RFC 8200 §4). Data is padded with
// Pad1 options.
type Ext struct {
	Kind uint8
	Next uint8 // 0: computed
	Data []byte
}

func (e Ext) wrap(inner []byte, _, rest []Layer) []byte {
	n := (2 + len(e.Data) + 7) / 8 * 8
	b := make([]byte, n, n+len(inner))
	b[0] = e.Next
	if e.Next == 0 {
		b[0] = protoOf(rest, true)
	}
	b[1] = byte(n/8 - 1)
	copy(b[2:], e.Data)
	return append(b, inner...)
}

// Fragment6 is IPv6's fragment header (RFC 8200 §4.5).
type Fragment6 struct {
	Next   uint8 // 0: computed
	Offset int   // in bytes
	More   bool
	ID     uint32
}

func (f Fragment6) wrap(inner []byte, _, rest []Layer) []byte {
	b := make([]byte, 8, 8+len(inner))
	b[0] = f.Next
	if f.Next == 0 {
		b[0] = protoOf(rest, true)
	}
	fo := uint16(f.Offset) &^ 7
	if f.More {
		fo |= 1
	}
	binary.BigEndian.PutUint16(b[2:], fo)
	binary.BigEndian.PutUint32(b[4:], f.ID)
	return append(b, inner...)
}

func protoOf(rest []Layer, v6 bool) uint8 {
	if len(rest) == 0 {
		return ProtoNone
	}
	switch l := rest[0].(type) {
	case TCP:
		return ProtoTCP
	case UDP:
		return ProtoUDP
	case ICMP:
		if v6 {
			return ProtoICMPv6
		}
		return ProtoICMP
	case Ext:
		return l.Kind
	case Fragment6:
		return ProtoFragment
	}
	return ProtoNone
}

// TCP is a header of RFC 9293. Flags are letters: F S R P A U.
type TCP struct {
	SrcPort, DstPort uint16
	Seq, Ack         uint32
	Flags            string
	Window           uint16 // 0: 65535, unless ZeroWindow
	ZeroWindow       bool
	Urgent           uint16
	Options          []byte
	DataOffset       int // in words; 0: as it is
}

const tcpFlags = "FSRPAU"

func (h TCP) wrap(inner []byte, outer, _ []Layer) []byte {
	hl := 20 + (len(h.Options)+3)/4*4
	b := make([]byte, hl, hl+len(inner))
	binary.BigEndian.PutUint16(b, h.SrcPort)
	binary.BigEndian.PutUint16(b[2:], h.DstPort)
	binary.BigEndian.PutUint32(b[4:], h.Seq)
	binary.BigEndian.PutUint32(b[8:], h.Ack)
	b[12] = byte(or(h.DataOffset, hl/4)) << 4
	for i := range tcpFlags {
		if strings.IndexByte(h.Flags, tcpFlags[i]) >= 0 {
			b[13] |= 1 << i
		}
	}
	w := h.Window
	if w == 0 && !h.ZeroWindow {
		w = 65535
	}
	binary.BigEndian.PutUint16(b[14:], w)
	binary.BigEndian.PutUint16(b[18:], h.Urgent)
	copy(b[20:], h.Options)
	b = append(b, inner...)
	binary.BigEndian.PutUint16(b[16:], ^sum(b, pseudo(outer, ProtoTCP, len(b))))
	return b
}

// UDP is a header of RFC 768.
type UDP struct {
	SrcPort, DstPort uint16
	Length           int  // 0: as it is
	NoChecksum       bool // zero, which says that there is none
}

func (h UDP) wrap(inner []byte, outer, _ []Layer) []byte {
	b := make([]byte, 8, 8+len(inner))
	binary.BigEndian.PutUint16(b, h.SrcPort)
	binary.BigEndian.PutUint16(b[2:], h.DstPort)
	binary.BigEndian.PutUint16(b[4:], uint16(or(h.Length, 8+len(inner))))
	b = append(b, inner...)
	if !h.NoChecksum {
		s := ^sum(b, pseudo(outer, ProtoUDP, len(b)))
		if s == 0 {
			s = 0xffff
		}
		binary.BigEndian.PutUint16(b[6:], s)
	}
	return b
}

// ICMP is a message of RFC 792 behind IPv4 and of RFC 4443 behind IPv6. Rest is what the second word holds: for an
// echo, identifier and sequence number (see Echo).
type ICMP struct {
	Type, Code uint8
	Rest       uint32
}

// Echo is an echo request of the family of dst, or the reply to one.
func Echo(dst netip.Addr, reply bool, id, seq uint16) ICMP {
	m := ICMP{Type: 8, Rest: uint32(id)<<16 | uint32(seq)}
	switch {
	case dst.Is6() && reply:
		m.Type = 129
	case dst.Is6():
		m.Type = 128
	case reply:
		m.Type = 0
	}
	return m
}

// ID and Seq are an echo's.
func (m ICMP) ID() uint16  { return uint16(m.Rest >> 16) }
func (m ICMP) Seq() uint16 { return uint16(m.Rest) }

func (m ICMP) wrap(inner []byte, outer, _ []Layer) []byte {
	b := make([]byte, 8, 8+len(inner))
	b[0], b[1] = m.Type, m.Code
	binary.BigEndian.PutUint32(b[4:], m.Rest)
	b = append(b, inner...)
	s := uint16(0)
	if _, v6 := ipOf(outer); v6 {
		s = pseudo(outer, ProtoICMPv6, len(b))
	}
	binary.BigEndian.PutUint16(b[2:], ^sum(b, s))
	return b
}

// NeighborSolicit asks who has target (RFC 4861 §4.3); from, if not nil, goes as the source link-layer address.
func NeighborSolicit(target netip.Addr, from net.HardwareAddr) []Layer {
	return []Layer{ICMP{Type: 135}, Payload(append(target.AsSlice(), option(1, from)...))}
}

// NeighborAdvert says that target is at mac (§4.4), solicited and overriding.
func NeighborAdvert(target netip.Addr, mac net.HardwareAddr) []Layer {
	return []Layer{ICMP{Type: 136, Rest: 0x60000000}, Payload(append(target.AsSlice(), option(2, mac)...))}
}

// RouterSolicit asks for an advertisement (§4.1).
func RouterSolicit(from net.HardwareAddr) []Layer {
	return []Layer{ICMP{Type: 133}, Payload(option(1, from))}
}

// RouterAdvert is a router's (§4.2), with a lifetime in seconds and a prefix for addresses.
func RouterAdvert(from net.HardwareAddr, lifetime uint16, prefix netip.Prefix) []Layer {
	b := make([]byte, 8) // reachable time and retransmission timer: unspecified
	b = append(b, option(1, from)...)
	o := make([]byte, 32)
	o[0], o[1], o[2], o[3] = 3, 4, byte(prefix.Bits()), 0xc0
	binary.BigEndian.PutUint32(o[4:], 86400)
	binary.BigEndian.PutUint32(o[8:], 86400)
	copy(o[16:], prefix.Addr().AsSlice())
	return []Layer{ICMP{Type: 134, Rest: 64<<24 | uint32(lifetime)}, Payload(append(b, o...))}
}

func option(kind byte, mac net.HardwareAddr) []byte {
	if mac == nil {
		return nil
	}
	return append([]byte{kind, 1}, mac...)
}

// MulticastMAC is where IP multicast goes on Ethernet (RFC 1112 §6.4, RFC 2464 §7).
func MulticastMAC(a netip.Addr) net.HardwareAddr {
	if a.Is4() {
		b := a.As4()
		return net.HardwareAddr{1, 0, 0x5e, b[1] & 0x7f, b[2], b[3]}
	}
	b := a.As16()
	return net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// SolicitedNode is the group that is asked for an address (RFC 4291 §2.7.1).
func SolicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, b[13], b[14], b[15]})
}

// LinkLocal is the address that a station makes of its MAC (RFC 4291 appendix A).
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	return EUI64(netip.MustParsePrefix("fe80::/64"), mac)
}

// EUI64 is the address that a station makes of a prefix and its MAC (RFC 4862 §5.5.3).
func EUI64(p netip.Prefix, mac net.HardwareAddr) netip.Addr {
	b := p.Masked().Addr().As16()
	copy(b[8:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	return netip.AddrFrom16(b)
}

// Fragment cuts the IP packet of a frame that Build made into frames whose fragments carry at most size bytes.
func Fragment(frame []byte, size int, id uint32) [][]byte {
	size &^= 7
	if size == 0 {
		panic("backendtest: Fragment: a fragment carries at least 8 bytes")
	}
	eth, ip := frame[:14], frame[14:]
	var out [][]byte
	v6 := ip[0]>>4 == 6
	hl := 40
	if !v6 {
		hl = int(ip[0]&15) * 4
	}
	rest := ip[hl:]
	for off := 0; off < len(rest); off += size {
		part := rest[off:min(off+size, len(rest))]
		more := off+len(part) < len(rest)
		f := append(append([]byte(nil), eth...), ip[:hl]...)
		h := f[14:]
		if v6 {
			binary.BigEndian.PutUint16(h[4:], uint16(8+len(part)))
			next := h[6]
			h[6] = ProtoFragment
			f = append(f, Fragment6{Next: next, Offset: off, More: more, ID: id}.wrap(part, nil, nil)...)
		} else {
			binary.BigEndian.PutUint16(h[2:], uint16(hl+len(part)))
			binary.BigEndian.PutUint16(h[4:], uint16(id))
			fo := uint16(off / 8)
			if more {
				fo |= 0x2000
			}
			binary.BigEndian.PutUint16(h[6:], fo)
			h[10], h[11] = 0, 0
			binary.BigEndian.PutUint16(h[10:], ^sum(h[:hl], 0))
			f = append(f, part...)
		}
		out = append(out, f)
	}
	return out
}

// Patch returns a copy of a frame with bytes overwritten at off.
func Patch(frame []byte, off int, with ...byte) []byte {
	f := append([]byte(nil), frame...)
	copy(f[off:], with)
	return f
}

func or(n, def int) int {
	if n != 0 {
		return n
	}
	return def
}

func ipOf(outer []Layer) (l Layer, v6 bool) {
	for i := len(outer) - 1; i >= 0; i-- {
		switch h := outer[i].(type) {
		case IPv4:
			return h, false
		case IPv6:
			return h, true
		}
	}
	return nil, false
}

// pseudo sums the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1).
func pseudo(outer []Layer, proto uint8, n int) uint16 {
	l, v6 := ipOf(outer)
	switch h := l.(type) {
	case IPv4:
		return pseudoSum(h.Src, h.Dst, proto, n)
	case IPv6:
		if v6 {
			return pseudoSum(h.Src, h.Dst, proto, n)
		}
	}
	return 0
}

func pseudoSum(src, dst netip.Addr, proto uint8, n int) uint16 {
	if !src.IsValid() || !dst.IsValid() {
		return 0
	}
	b := append(src.AsSlice(), dst.AsSlice()...)
	b = append(b, 0, proto)
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	return sum(b, 0)
}

// sum is the internet checksum (RFC 1071), not inverted.
func sum(b []byte, initial uint16) uint16 {
	s := uint64(initial)
	for len(b) >= 2 {
		s += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func flagLetters(b byte) string {
	var s strings.Builder
	for i := range tcpFlags {
		if b&(1<<i) != 0 {
			s.WriteByte(tcpFlags[i])
		}
	}
	return s.String()
}

func (h TCP) String() string {
	return fmt.Sprintf("tcp %d > %d [%s] seq %d ack %d win %d", h.SrcPort, h.DstPort, h.Flags, h.Seq, h.Ack, h.Window)
}
