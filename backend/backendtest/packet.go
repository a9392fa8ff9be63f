package backendtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Packet is a frame, taken apart. What the frame does not have is nil.
type Packet struct {
	Frame    []byte // all of it, with padding
	Src, Dst net.HardwareAddr
	Type     uint16

	ARP          *ARP
	IPSrc, IPDst netip.Addr
	Proto        uint8 // behind extension headers
	TTL          uint8 // or hop limit
	Fragment     bool
	Offset       int  // of the fragment
	More         bool // fragments follow
	TCP          *TCP
	UDP          *UDP
	ICMP         *ICMP
	Payload      []byte  // of the innermost header above
	Quoted       *Packet // what an ICMP error is about, as far as it is quoted

	// Wrong says what is wrong with the frame: lengths and checksums.
	Wrong error
}

// Parse takes a frame apart.
func Parse(frame []byte) *Packet {
	p := &Packet{Frame: frame}
	if len(frame) < 14 {
		p.Wrong = fmt.Errorf("frame of %d bytes", len(frame))
		return p
	}
	p.Dst, p.Src = net.HardwareAddr(frame[:6]), net.HardwareAddr(frame[6:12])
	p.Type = binary.BigEndian.Uint16(frame[12:])
	b := frame[14:]
	switch p.Type {
	case EtherARP:
		if len(b) < 28 {
			p.wrong("arp of %d bytes", len(b))
			return p
		}
		p.ARP = &ARP{
			Op:        binary.BigEndian.Uint16(b[6:]),
			SenderMAC: net.HardwareAddr(b[8:14]), Sender: netip.AddrFrom4([4]byte(b[14:18])),
			TargetMAC: net.HardwareAddr(b[18:24]), Target: netip.AddrFrom4([4]byte(b[24:28])),
		}
	case EtherIPv4, EtherIPv6:
		p.ip(b, false)
	}
	return p
}

func (p *Packet) wrong(format string, a ...any) {
	p.Wrong = errors.Join(p.Wrong, fmt.Errorf(format, a...))
}

// ip parses an IP packet. quoted ones are cut short and not verified.
func (p *Packet) ip(b []byte, quoted bool) {
	if len(b) < 20 {
		p.wrong("ip packet of %d bytes", len(b))
		return
	}
	if b[0]>>4 == 6 {
		p.ip6(b, quoted)
		return
	}
	hl, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if hl < 20 || len(b) < hl || !quoted && (total < hl || len(b) < total) {
		p.wrong("ipv4 header of %d, total length %d, in %d bytes", hl, total, len(b))
		return
	}
	if !quoted && sum(b[:hl], 0) != 0xffff {
		p.wrong("ipv4 checksum")
	}
	p.IPSrc, p.IPDst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.TTL, p.Proto = b[8], b[9]
	fo := binary.BigEndian.Uint16(b[6:])
	p.More, p.Offset = fo&0x2000 != 0, int(fo&0x1fff)*8
	p.Fragment = p.More || p.Offset > 0
	p.upper(b[hl:min(len(b), max(total, hl))], quoted)
}

func (p *Packet) ip6(b []byte, quoted bool) {
	if len(b) < 40 {
		p.wrong("ipv6 header of %d bytes", len(b))
		return
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if !quoted && len(b)-40 < n {
		p.wrong("ipv6 payload length %d in %d bytes", n, len(b)-40)
		return
	}
	p.IPSrc, p.IPDst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	p.Proto, p.TTL = b[6], b[7]
	b = b[40:min(len(b), 40+n)]
	for {
		switch p.Proto {
		case ProtoHopByHop, ProtoRouting, ProtoDestOpts:
			if len(b) < 8 || len(b) < 8+int(b[1])*8 {
				p.wrong("ipv6 extension header")
				return
			}
			p.Proto, b = b[0], b[8+int(b[1])*8:]
			continue
		case ProtoFragment:
			if len(b) < 8 {
				p.wrong("ipv6 fragment header")
				return
			}
			fo := binary.BigEndian.Uint16(b[2:])
			p.Fragment, p.More, p.Offset = true, fo&1 != 0, int(fo&^7)
			p.Proto, b = b[0], b[8:]
			if p.Offset > 0 {
				p.Payload = b
				return
			}
			continue
		}
		break
	}
	p.upper(b, quoted)
}

func (p *Packet) upper(b []byte, quoted bool) {
	p.Payload = b
	if p.Offset > 0 {
		return
	}
	check := func(what string) {
		if quoted || p.Fragment {
			return
		}
		s := uint16(0)
		if p.Proto != ProtoICMP {
			s = pseudoSum(p.IPSrc, p.IPDst, p.Proto, len(b))
		}
		if sum(b, s) != 0xffff {
			p.wrong("%s checksum", what)
		}
	}
	switch p.Proto {
	case ProtoTCP:
		if len(b) < 20 {
			if quoted && len(b) >= 8 { // RFC 792 promises no more
				p.TCP = &TCP{SrcPort: binary.BigEndian.Uint16(b), DstPort: binary.BigEndian.Uint16(b[2:]), Seq: binary.BigEndian.Uint32(b[4:])}
				return
			}
			p.wrong("tcp header of %d bytes", len(b))
			return
		}
		hl := int(b[12]>>4) * 4
		if hl < 20 || hl > len(b) {
			p.wrong("tcp data offset %d in %d bytes", hl, len(b))
			return
		}
		check("tcp")
		p.TCP = &TCP{
			SrcPort: binary.BigEndian.Uint16(b), DstPort: binary.BigEndian.Uint16(b[2:]),
			Seq: binary.BigEndian.Uint32(b[4:]), Ack: binary.BigEndian.Uint32(b[8:]), Flags: flagLetters(b[13]),
			Window: binary.BigEndian.Uint16(b[14:]), Urgent: binary.BigEndian.Uint16(b[18:]), Options: b[20:hl], DataOffset: hl / 4,
		}
		p.Payload = b[hl:]
	case ProtoUDP:
		if len(b) < 8 {
			p.wrong("udp header of %d bytes", len(b))
			return
		}
		n := int(binary.BigEndian.Uint16(b[4:]))
		if !quoted && !p.Fragment && n != len(b) {
			p.wrong("udp length %d in %d bytes", n, len(b))
		}
		if binary.BigEndian.Uint16(b[6:]) != 0 {
			check("udp")
		} else if !quoted && !p.IPSrc.Is4() {
			p.wrong("udp without checksum over ipv6") // RFC 8200 §8.1
		}
		p.UDP = &UDP{SrcPort: binary.BigEndian.Uint16(b), DstPort: binary.BigEndian.Uint16(b[2:]), Length: n}
		p.Payload = b[8:]
	case ProtoICMP, ProtoICMPv6:
		if len(b) < 8 {
			p.wrong("icmp message of %d bytes", len(b))
			return
		}
		check("icmp")
		p.ICMP = &ICMP{Type: b[0], Code: b[1], Rest: binary.BigEndian.Uint32(b[4:])}
		p.Payload = b[8:]
		err4 := p.Proto == ProtoICMP && (b[0] == 3 || b[0] == 4 || b[0] == 5 || b[0] == 11 || b[0] == 12)
		err6 := p.Proto == ProtoICMPv6 && b[0] < 128
		if !quoted && (err4 || err6) && len(p.Payload) > 0 {
			p.Quoted = &Packet{}
			p.Quoted.ip(p.Payload, true)
		}
	}
}

func (p *Packet) String() string {
	var s strings.Builder
	switch {
	case p.ARP != nil && p.ARP.Op == ARPReply:
		fmt.Fprintf(&s, "arp %s is at %s", p.ARP.Sender, p.ARP.SenderMAC)
	case p.ARP != nil:
		fmt.Fprintf(&s, "arp %s asks for %s", p.ARP.Sender, p.ARP.Target)
	case p.IPSrc.IsValid():
		fmt.Fprintf(&s, "%s > %s ", p.IPSrc, p.IPDst)
		switch {
		case p.TCP != nil:
			s.WriteString(p.TCP.String())
		case p.UDP != nil:
			fmt.Fprintf(&s, "udp %d > %d", p.UDP.SrcPort, p.UDP.DstPort)
		case p.ICMP != nil:
			fmt.Fprintf(&s, "icmp type %d code %d rest %#x", p.ICMP.Type, p.ICMP.Code, p.ICMP.Rest)
		default:
			fmt.Fprintf(&s, "proto %d", p.Proto)
		}
		if p.Fragment {
			fmt.Fprintf(&s, " fragment at %d", p.Offset)
		}
		fmt.Fprintf(&s, " %d bytes", len(p.Payload))
		if p.Quoted != nil {
			fmt.Fprintf(&s, " about (%s)", p.Quoted)
		}
	default:
		fmt.Fprintf(&s, "ethertype %#04x, %d bytes", p.Type, len(p.Frame))
	}
	if p.Wrong != nil {
		fmt.Fprintf(&s, " WRONG: %v", p.Wrong)
	}
	return s.String()
}

// Check says what is wrong with a packet, or nothing.
type Check func(*Packet) error

// All is a check for all of its parts.
func All(checks ...Check) Check {
	return func(p *Packet) error {
		for _, c := range checks {
			if err := c(p); err != nil {
				return err
			}
		}
		return nil
	}
}

// Good checks lengths and checksums.
func Good() Check { return func(p *Packet) error { return p.Wrong } }

func expected(ok bool, format string, a ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf("not "+format, a...)
}

// IsARP checks for an ARP packet; a zero sender is any.
func IsARP(op uint16, sender netip.Addr) Check {
	return func(p *Packet) error {
		return expected(p.ARP != nil && p.ARP.Op == op && (!sender.IsValid() || p.ARP.Sender == sender), "arp %d from %s", op, sender)
	}
}

// FromMAC and ToMAC check the Ethernet addresses.
func FromMAC(m net.HardwareAddr) Check {
	return func(p *Packet) error { return expected(bytes.Equal(p.Src, m), "from %s", m) }
}

// ToMAC checks the Ethernet destination.
func ToMAC(m net.HardwareAddr) Check {
	return func(p *Packet) error { return expected(bytes.Equal(p.Dst, m), "to %s", m) }
}

// From checks the IP source.
func From(a netip.Addr) Check {
	return func(p *Packet) error { return expected(p.IPSrc == a, "from %s", a) }
}

// To checks the IP destination.
func To(a netip.Addr) Check {
	return func(p *Packet) error { return expected(p.IPDst == a, "to %s", a) }
}

// IsTCP checks for a segment with these flags and no others.
func IsTCP(flags string) Check {
	return func(p *Packet) error { return expected(p.TCP != nil && p.TCP.Flags == flags, "tcp [%s]", flags) }
}

// IsUDP checks for a datagram between these ports; 0 is any.
func IsUDP(src, dst uint16) Check {
	return func(p *Packet) error {
		return expected(p.UDP != nil && (src == 0 || p.UDP.SrcPort == src) && (dst == 0 || p.UDP.DstPort == dst), "udp %d > %d", src, dst)
	}
}

// ToPort checks the destination port of a segment or datagram.
func ToPort(port uint16) Check {
	return func(p *Packet) error {
		return expected(p.TCP != nil && p.TCP.DstPort == port || p.UDP != nil && p.UDP.DstPort == port, "to port %d", port)
	}
}

// IsICMP checks for a message of either family.
func IsICMP(typ, code uint8) Check {
	return func(p *Packet) error {
		return expected(p.ICMP != nil && p.ICMP.Type == typ && p.ICMP.Code == code, "icmp type %d code %d", typ, code)
	}
}

// IsEchoReply checks for an echo reply with identifier and sequence number.
func IsEchoReply(id, seq uint16) Check {
	return func(p *Packet) error {
		return expected(p.ICMP != nil && (p.Proto == ProtoICMP && p.ICMP.Type == 0 || p.Proto == ProtoICMPv6 && p.ICMP.Type == 129) &&
			p.ICMP.ID() == id && p.ICMP.Seq() == seq, "echo reply id %d seq %d", id, seq)
	}
}

// IsRA checks for a router advertisement.
func IsRA() Check {
	return func(p *Packet) error {
		return expected(p.Proto == ProtoICMPv6 && p.ICMP != nil && p.ICMP.Type == 134, "router advertisement")
	}
}

// IsNA checks for a neighbour advertisement of target.
func IsNA(target netip.Addr) Check {
	return func(p *Packet) error {
		return expected(p.Proto == ProtoICMPv6 && p.ICMP != nil && p.ICMP.Type == 136 && len(p.Payload) >= 16 &&
			netip.AddrFrom16([16]byte(p.Payload)) == target, "neighbour advertisement of %s", target)
	}
}

// Quotes checks what an ICMP error is about.
func Quotes(checks ...Check) Check {
	return func(p *Packet) error {
		if p.Quoted == nil {
			return errors.New("not an icmp error")
		}
		return All(checks...)(p.Quoted)
	}
}

// Carries checks the payload.
func Carries(b []byte) Check {
	return func(p *Packet) error {
		return expected(bytes.Equal(p.Payload, b), "carrying %d bytes as given", len(b))
	}
}

// EtherType checks the frame's type.
func EtherType(t uint16) Check {
	return func(p *Packet) error { return expected(p.Type == t, "ethertype %#04x", t) }
}
