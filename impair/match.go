package impair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Match is which conversations a flow has, by their far end. The zero Match has all IP packets.
type Match struct {
	Prefix  netip.Prefix // invalid: any address
	Proto   int          // 0: any
	MinPort uint16       // with MaxPort, of TCP and UDP; both 0: any
	MaxPort uint16
}

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

var protoNames = []struct {
	name string
	n    int
}{{"icmp", protoICMP}, {"tcp", protoTCP}, {"udp", protoUDP}, {"icmp6", protoICMPv6}, {"icmpv6", protoICMPv6}}

// ParseMatch reads ADDRESS[:PROTOCOL[:PORT[-PORT]]]. An address may be a prefix, and with a protocol behind it an IPv6 one
// stands in brackets; * is any: *:udp:53, 10.0.0.0/8, [2001:db8::/32]:tcp:443, *:icmp.
func ParseMatch(s string) (m Match, err error) {
	const form = "want ADDRESS[:PROTOCOL[:PORT[-PORT]]] as *:udp:53, 192.0.2.0/24 or [2001:db8::/32]:tcp:8000-8999"
	addr, rest := s, ""
	if strings.HasPrefix(s, "[") {
		i := strings.IndexByte(s, ']')
		if i < 0 || len(s) > i+1 && s[i+1] != ':' {
			return m, fmt.Errorf("%.60q: %s", s, form)
		}
		addr, rest = s[1:i], strings.TrimPrefix(s[i+1:], ":")
	} else if !strings.Contains(s, "::") && strings.Count(s, ":") <= 2 { // else it is IPv6, and all of it
		addr, rest, _ = strings.Cut(s, ":")
	}
	if addr != "*" {
		if m.Prefix, err = netip.ParsePrefix(addr); err != nil {
			a, aerr := netip.ParseAddr(addr)
			if aerr != nil {
				return Match{}, fmt.Errorf("address %.60q: %s", addr, form)
			}
			if a.Zone() != "" {
				return Match{}, fmt.Errorf("address %.60q: want it without its zone", addr)
			}
			m.Prefix = netip.PrefixFrom(a, a.BitLen())
		}
		if m.Prefix.Addr().Is4In6() {
			return Match{}, fmt.Errorf("address %.60q: want IPv4 as such", addr)
		}
		m.Prefix = m.Prefix.Masked()
	}
	proto, ports, _ := strings.Cut(rest, ":")
	if proto != "" && proto != "*" {
		for _, p := range protoNames {
			if p.name == strings.ToLower(proto) {
				m.Proto = p.n
			}
		}
		if n, err := strconv.ParseUint(proto, 10, 8); err == nil && n > 0 {
			m.Proto = int(n)
		}
		if m.Proto == 0 {
			return Match{}, fmt.Errorf("protocol %.20q: want tcp, udp, icmp, icmp6, * or a number to 255", proto)
		}
	}
	if ports != "" && ports != "*" {
		from, to, is := strings.Cut(ports, "-")
		a, aerr := strconv.ParseUint(from, 10, 16)
		b := a
		var berr error
		if is {
			b, berr = strconv.ParseUint(to, 10, 16)
		}
		if aerr != nil || berr != nil || b == 0 || b < a {
			return Match{}, fmt.Errorf("ports %.20q: want 1 to 65535, or a range as 8000-8999", ports)
		}
		m.MinPort, m.MaxPort = uint16(a), uint16(b)
	}
	return m, m.check()
}

func (m Match) check() error {
	if m.MinPort > m.MaxPort {
		return fmt.Errorf("ports %d-%d: want the lower one first", m.MinPort, m.MaxPort)
	}
	if m.MaxPort > 0 && m.Proto != 0 && m.Proto != protoTCP && m.Proto != protoUDP {
		return errors.New("ports are TCP's and UDP's: want one of these beside them, or *")
	}
	if m.Proto < 0 || m.Proto > 255 {
		return fmt.Errorf("protocol %d: want 1 to 255", m.Proto)
	}
	return nil
}

// String is what ParseMatch reads.
func (m Match) String() string {
	addr := "*"
	if m.Prefix.IsValid() {
		addr = m.Prefix.String()
		if m.Prefix.IsSingleIP() {
			addr = m.Prefix.Addr().String()
		}
	}
	proto := ""
	if m.Proto != 0 {
		proto = strconv.Itoa(m.Proto)
		for _, p := range protoNames {
			if p.n == m.Proto {
				proto = p.name
				break
			}
		}
	}
	ports := ""
	switch {
	case m.MaxPort == 0:
	case m.MinPort == m.MaxPort:
		ports = strconv.Itoa(int(m.MinPort))
	default:
		ports = fmt.Sprintf("%d-%d", m.MinPort, m.MaxPort)
	}
	if proto == "" && ports != "" {
		proto = "*"
	}
	if proto != "" && strings.Contains(addr, ":") {
		addr = "[" + addr + "]"
	}
	return strings.TrimRight(addr+":"+proto+":"+ports, ":")
}

// MarshalText and UnmarshalText make a Match its text in JSON.
func (m Match) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

func (m *Match) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMatch(string(b))
	return err
}

// ends is what a Match looks at.
type ends struct {
	far   netip.Addr
	proto int
	port  uint16 // the far one; 0 if there is none, or it is in another fragment
}

func (m *Match) has(e *ends) bool {
	return (!m.Prefix.IsValid() || m.Prefix.Contains(e.far)) && (m.Proto == 0 || m.Proto == e.proto) &&
		(m.MaxPort == 0 || (e.proto == protoTCP || e.proto == protoUDP) && e.port >= m.MinPort && e.port <= m.MaxPort)
}

// endsOf looks at a frame that the guest sends (up) or gets. It is false for what is no IP.
func endsOf(f []byte, up bool) (e ends, ok bool) {
	const eth = 14
	if len(f) < eth+20 {
		return e, false
	}
	ip := f[eth:]
	at := 0
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0800:
		if ip[0]>>4 != 4 {
			return e, false
		}
		e.proto, at = int(ip[9]), int(ip[0]&15)*4
		far := ip[12:16]
		if up {
			far = ip[16:20]
		}
		e.far = netip.AddrFrom4([4]byte(far))
		if binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
			return e, true
		}
	case 0x86dd:
		if len(ip) < 40 || ip[0]>>4 != 6 {
			return e, false
		}
		far := ip[8:24]
		if up {
			far = ip[24:40]
		}
		e.far = netip.AddrFrom16([16]byte(far))
		e.proto, at = int(ip[6]), 40
		for range 8 { // extension headers: more than eight is nobody's honest packet
			switch e.proto {
			case 0, 43, 60: // hop by hop, routing, destination options
				if len(ip) < at+8 {
					return e, true
				}
				e.proto, at = int(ip[at]), at+8+8*int(ip[at+1])
				continue
			case 44: // fragment
				if len(ip) < at+8 {
					return e, true
				}
				later := binary.BigEndian.Uint16(ip[at+2:])&0xfff8 != 0
				e.proto, at = int(ip[at]), at+8
				if later {
					return e, true
				}
				continue
			}
			break
		}
	default:
		return e, false
	}
	if (e.proto == protoTCP || e.proto == protoUDP) && at >= 20 && len(ip) >= at+4 {
		e.port = binary.BigEndian.Uint16(ip[at:])
		if up {
			e.port = binary.BigEndian.Uint16(ip[at+2:])
		}
	}
	return e, true
}
