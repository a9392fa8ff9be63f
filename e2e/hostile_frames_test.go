//go:build linux

package e2e

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
)

// Frames as attackers build them. What can be computed is computed; an edit changes a header before its checksum is made,
// so that nothing but what it changes is wrong.

type hw [6]byte

var everybody = hw{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// station is who an attacker says it is, and the network's own addresses.
type station struct {
	MAC, Gateway         hw
	A4, A6               netip.Addr
	GW4, GW6, DNS4, DNS6 netip.Addr
}

type edit func(h []byte)

// put16 is an edit that sets two bytes.
func put16(at int, v uint16) edit { return func(h []byte) { binary.BigEndian.PutUint16(h[at:], v) } }

func put8(at int, v byte) edit { return func(h []byte) { h[at] = v } }

func ether(dst, src hw, kind uint16, body ...[]byte) []byte {
	f := append(append(make([]byte, 0, 64), dst[:]...), src[:]...)
	return append(binary.BigEndian.AppendUint16(f, kind), bytes.Join(body, nil)...)
}

// packet is an IP packet of the addresses' family.
func packet(src, dst netip.Addr, proto byte, body []byte, edits ...edit) []byte {
	if dst.Is4() {
		h := make([]byte, 20, 20+len(body))
		h[0], h[8], h[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		for _, e := range edits {
			e(h)
		}
		binary.BigEndian.PutUint16(h[10:], ^sum(h, 0))
		return append(h, body...)
	}
	h := make([]byte, 40, 40+len(body))
	h[0], h[6], h[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	for _, e := range edits {
		e(h)
	}
	return append(h, body...)
}

func kindOf(a netip.Addr) uint16 {
	if a.Is4() {
		return 0x0800
	}
	return 0x86dd
}

// own is the station's address of a family.
func (s station) own(v6 bool) netip.Addr {
	if v6 {
		return s.A6
	}
	return s.A4
}

func (s station) gw(v6 bool) netip.Addr {
	if v6 {
		return s.GW6
	}
	return s.GW4
}

// ip is a packet from the station by way of the gateway.
func (s station) ip(dst netip.Addr, proto byte, body []byte, edits ...edit) []byte {
	return s.as(s.own(dst.Is6()), dst, proto, body, edits...)
}

// as is ip from another address.
func (s station) as(src, dst netip.Addr, proto byte, body []byte, edits ...edit) []byte {
	return ether(s.Gateway, s.MAC, kindOf(dst), packet(src, dst, proto, body, edits...))
}

// sealed puts a checksum at its place in a transport header, over the pseudo header.
func sealed(src, dst netip.Addr, proto byte, b []byte, at int) []byte {
	binary.BigEndian.PutUint16(b[at:], 0)
	pseudo := append(append([]byte(nil), src.AsSlice()...), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = append(pseudo, 0, 0, 0, proto)
	s := ^sum(b, uint32(sum(pseudo, 0)))
	if s == 0 && proto == 17 {
		s = 0xffff
	}
	binary.BigEndian.PutUint16(b[at:], s)
	return b
}

func datagram(src, dst netip.AddrPort, body []byte, edits ...edit) []byte {
	u := make([]byte, 8, 8+len(body))
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(8+len(body)))
	u = append(u, body...)
	for _, e := range edits {
		e(u)
	}
	return sealed(src.Addr(), dst.Addr(), 17, u, 6)
}

// udp is a datagram from one of the station's ports.
func (s station) udp(from uint16, to netip.AddrPort, body []byte, edits ...edit) []byte {
	src := netip.AddrPortFrom(s.own(to.Addr().Is6()), from)
	return s.ip(to.Addr(), 17, datagram(src, to, body, edits...))
}

const (
	fin, syn, rst, psh, ack, urg = 1, 2, 4, 8, 16, 32
)

// seg is what a TCP segment says.
type seg struct {
	flags    byte
	seq, ack uint32
	window   uint16
	urgent   uint16
	options  []byte
	body     []byte
	words    int // 0: as many as there are
}

// tcp is a segment from one of the station's ports.
func (s station) tcp(from uint16, to netip.AddrPort, g seg) []byte {
	o := append([]byte(nil), g.options...)
	for len(o)%4 != 0 {
		o = append(o, 0)
	}
	h := make([]byte, 20, 20+len(o)+len(g.body))
	binary.BigEndian.PutUint16(h, from)
	binary.BigEndian.PutUint16(h[2:], to.Port())
	binary.BigEndian.PutUint32(h[4:], g.seq)
	binary.BigEndian.PutUint32(h[8:], g.ack)
	h[12], h[13] = byte(5+len(o)/4)<<4, g.flags
	if g.words != 0 {
		h[12] = byte(g.words) << 4
	}
	binary.BigEndian.PutUint16(h[14:], g.window)
	binary.BigEndian.PutUint16(h[18:], g.urgent)
	h = append(append(h, o...), g.body...)
	src := s.own(to.Addr().Is6())
	return s.ip(to.Addr(), 6, sealed(src, to.Addr(), 6, h, 16))
}

// icmp is a message's packet body.
func icmp(src, dst netip.Addr, kind, code byte, rest uint32, body []byte) []byte {
	b := make([]byte, 8, 8+len(body))
	b[0], b[1] = kind, code
	binary.BigEndian.PutUint32(b[4:], rest)
	b = append(b, body...)
	if dst.Is6() {
		return sealed(src, dst, 58, b, 2)
	}
	binary.BigEndian.PutUint16(b[2:], ^sum(b, 0))
	return b
}

func icmpProto(a netip.Addr) byte {
	if a.Is4() {
		return 1
	}
	return 58
}

func echoRequest(a netip.Addr) byte {
	if a.Is4() {
		return 8
	}
	return 128
}

// ping is an echo request.
func (s station) ping(dst netip.Addr, id, seq uint16) []byte {
	b := icmp(s.own(dst.Is6()), dst, echoRequest(dst), 0, uint32(id)<<16|uint32(seq), []byte("0123456789abcdef"))
	return s.ip(dst, icmpProto(dst), b)
}

func isEchoReply(f []byte, id, seq uint16) bool {
	proto, b := upper(f)
	if len(b) < 8 || !(proto == 1 && b[0] == 0 || proto == 58 && b[0] == 129) {
		return false
	}
	return binary.BigEndian.Uint16(b[4:]) == id && binary.BigEndian.Uint16(b[6:]) == seq
}

// upper is what an IP packet without extension headers carries.
func upper(f []byte) (proto byte, b []byte) {
	if len(f) < 14 {
		return 0, nil
	}
	ip := f[14:]
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0800:
		if len(ip) >= 20 {
			if n, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:])); n >= 20 && n <= total && total <= len(ip) {
				return ip[9], ip[n:total]
			}
		}
	case 0x86dd:
		if len(ip) >= 40 {
			if total := 40 + int(binary.BigEndian.Uint16(ip[4:])); total <= len(ip) {
				return ip[6], ip[40:total]
			}
		}
	}
	return 0, nil
}

// isTCP says whether a frame is a segment to the port with just these flags (of FSRA).
func isTCP(f []byte, port uint16, flags byte) bool {
	proto, b := upper(f)
	return proto == 6 && len(b) >= 20 && binary.BigEndian.Uint16(b[2:]) == port && b[13]&(fin|syn|rst|ack) == flags
}

// toPort says whether a frame is TCP or UDP to a port.
func toPort(f []byte, port uint16) bool {
	proto, b := upper(f)
	return (proto == 6 || proto == 17) && len(b) >= 8 && binary.BigEndian.Uint16(b[2:]) == port
}

// arpOf is an ARP packet (RFC 826).
func arpOf(op uint16, sha hw, spa netip.Addr, tha hw, tpa netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, byte(op >> 8), byte(op)}
	b = append(append(b, sha[:]...), spa.AsSlice()...)
	return append(append(b, tha[:]...), tpa.AsSlice()...)
}

var allNodes = netip.MustParseAddr("ff02::1")

// ndp is a neighbour discovery message (RFC 4861) to everybody.
func (s station) ndp(src, dst netip.Addr, kind byte, rest uint32, body []byte) []byte {
	to := s.Gateway
	if dst.IsMulticast() {
		b := dst.As16()
		to = hw{0x33, 0x33, b[12], b[13], b[14], b[15]}
	}
	return ether(to, s.MAC, 0x86dd, packet(src, dst, 58, icmp(src, dst, kind, 0, rest, body), put8(7, 255)))
}

func (s station) linkLocal() netip.Addr {
	m := s.MAC
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// cut makes fragments of a packet from the station: each of size bytes, a multiple of 8.
func (s station) cut(dst netip.Addr, proto byte, body []byte, id uint32, size int) [][]byte {
	var out [][]byte
	for at := 0; at < len(body); at += size {
		end := min(at+size, len(body))
		out = append(out, s.fragment(dst, proto, body[at:end], id, at, end < len(body)))
	}
	return out
}

// fragment is one, of any place.
func (s station) fragment(dst netip.Addr, proto byte, body []byte, id uint32, at int, more bool) []byte {
	off := uint16(at / 8)
	if dst.Is4() {
		if more {
			off |= 0x2000
		}
		return s.ip(dst, proto, body, put16(4, uint16(id)), put16(6, off))
	}
	h := []byte{proto, 0}
	off <<= 3
	if more {
		off |= 1
	}
	h = binary.BigEndian.AppendUint16(h, off)
	h = binary.BigEndian.AppendUint32(h, id)
	return s.ip(dst, 44, append(h, body...))
}

// dhcp4 is a DHCP message (RFC 2131) behind its cookie.
func (s station) dhcp4(chaddr hw, xid uint32, options []byte, edits ...edit) []byte {
	b := make([]byte, 236, 300)
	b[0], b[1], b[2] = 1, 1, 6
	binary.BigEndian.PutUint32(b[4:], xid)
	b[10] = 0x80 // answer to all
	copy(b[28:], chaddr[:])
	for _, e := range edits {
		e(b)
	}
	b = append(b, 0x63, 0x82, 0x53, 0x63)
	b = append(b, options...)
	zero, all := netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255})
	u := datagram(netip.AddrPortFrom(zero, 68), netip.AddrPortFrom(all, 67), b)
	return ether(everybody, s.MAC, 0x0800, packet(zero, all, 17, u))
}

// dhcp6 is a DHCPv6 message (RFC 8415).
func (s station) dhcp6(kind byte, xid uint32, options []byte) []byte {
	src, dst := s.linkLocal(), netip.MustParseAddr("ff02::1:2")
	b := append([]byte{kind, byte(xid >> 16), byte(xid >> 8), byte(xid)}, options...)
	u := datagram(netip.AddrPortFrom(src, 546), netip.AddrPortFrom(dst, 547), b)
	return ether(hw{0x33, 0x33, 0, 1, 0, 2}, s.MAC, 0x86dd, packet(src, dst, 17, u))
}

// option is a DHCP option.
func option(kind byte, body ...byte) []byte { return append([]byte{kind, byte(len(body))}, body...) }

// question is a DNS query for one A record, with as many questions as it says.
func question(id uint16, name string, count uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	b = append(b, 1, 0)
	b = binary.BigEndian.AppendUint16(b, count)
	b = append(b, 0, 0, 0, 0, 0, 0)
	for label := range bytes.SplitSeq([]byte(name), []byte(".")) {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0, 0, 1, 0, 1)
}

// floods are what an attacker's process makes frame by frame: the i-th of the kind.
var floods = map[string]func(a *assault, i int) []byte{
	// A new source MAC each, in a frame for the gateway that means nothing.
	"macs": func(a *assault, i int) []byte {
		m := hw{0x02, 0x66}
		binary.BigEndian.PutUint32(m[2:], uint32(i))
		return ether(a.From.Gateway, m, 0x88b5, make([]byte, 46))
	},
	// A SYN from a new port each, to each host in turn.
	"syns": func(a *assault, i int) []byte {
		to := netip.MustParseAddrPort(a.Hosts[i%len(a.Hosts)])
		round := i / len(a.Hosts)
		if to.Port() == 0 {
			to = netip.AddrPortFrom(to.Addr(), uint16(1+i%60_000))
		}
		return a.From.tcp(uint16(2000+round%60_000), to, seg{flags: syn, seq: uint32(i), window: 65535, options: []byte{2, 4, 5, 0xb4}})
	},
	// A datagram from a new port each.
	"ports": func(a *assault, i int) []byte {
		return a.From.udp(uint16(2000+i%60_000), netip.MustParseAddrPort(a.Hosts[i%len(a.Hosts)]), []byte("flow"))
	},
	// Fragments of datagrams that never come to their end: first ones, middles, with ids of their own.
	"fragments": func(a *assault, i int) []byte {
		to := netip.MustParseAddrPort(a.Hosts[i%len(a.Hosts)])
		at := 0
		if i%4 == 3 {
			at = 1000 + 8*rand.IntN(7000)
		}
		return a.From.fragment(to.Addr(), 17, make([]byte, 1200), rand.Uint32(), at, true)
	},
	// Neighbour solicitations and ARP requests for targets that nobody is.
	"neighbours": func(a *assault, i int) []byte {
		s := a.From
		if i%2 == 0 {
			t := netip.AddrFrom4([4]byte{10, 0, 2, byte(20 + i%200)})
			return ether(everybody, s.MAC, 0x0806, arpOf(1, s.MAC, s.A4, hw{}, t))
		}
		t := s.A6.As16()
		binary.BigEndian.PutUint64(t[8:], rand.Uint64())
		g := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, t[13], t[14], t[15]})
		return s.ndp(s.linkLocal(), g, 135, 0, append(t[:], append([]byte{1, 1}, s.MAC[:]...)...))
	},
	// As many addresses as an attacker can think of.
	"addresses": func(a *assault, i int) []byte {
		b := a.From.A6.As16()
		binary.BigEndian.PutUint64(b[8:], rand.Uint64())
		src := netip.AddrFrom16(b)
		return a.From.as(src, a.From.GW6, 17, datagram(netip.AddrPortFrom(src, 9), netip.AddrPortFrom(a.From.GW6, 9), nil))
	},
	// DHCP from a new MAC each, asking for the whole pool.
	"discovers": func(a *assault, i int) []byte {
		m := hw{0x02, 0x67}
		binary.BigEndian.PutUint32(m[2:], uint32(i))
		s := a.From
		s.MAC = m
		if i%2 == 0 {
			return s.dhcp4(m, uint32(i), append(option(53, 1), 255))
		}
		return s.dhcp4(m, uint32(i), append(append(option(53, 3), option(50, 10, 0, 2, byte(15+i%200))...), 255))
	},
	// Questions that no cache answers.
	"questions": func(a *assault, i int) []byte {
		name := "a" + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676%26)) + string(rune('a'+i/17576%26)) + ".mute.example"
		if i%2 == 0 {
			name = "mute.example"
		}
		to := netip.AddrPortFrom(a.From.DNS4, 53)
		if i%4 > 1 {
			to = netip.AddrPortFrom(a.From.DNS6, 53)
		}
		return a.From.udp(uint16(3000+i%50_000), to, question(uint16(i), name, 1))
	},
}
