package policy

import (
	"net/netip"
	"slices"
	"strings"
)

type targetKind uint8

const (
	toWord targetKind = iota
	toPrefix
	toName
)

// target is a rule's To, parsed.
type target struct {
	kind   targetKind
	word   string
	prefix netip.Prefix
	name   string // example.com, *.example.com or *
}

func (t target) String() string {
	switch t.kind {
	case toPrefix:
		if t.prefix.IsSingleIP() {
			return t.prefix.Addr().String()
		}
		return t.prefix.String()
	case toName:
		return t.name
	}
	return t.word
}

// words stand for addresses. Those of host are the network's own.
var words = []string{"", "any", "public", "host", "private", "loopback", "link-local", "metadata", "doh"}

const wantTarget = "an address, a prefix, a name with a dot, *.example.com, or any, public, host, private, loopback, link-local, metadata or doh"

// splitPorts cuts TO:PORTS in two.
func splitPorts(s string) (to string, p Ports, err *Error) {
	tail, off := "", 0
	if rest, ok := strings.CutPrefix(s, "["); ok {
		a, after, ok := strings.Cut(rest, "]")
		if !ok {
			return "", nil, at(0, quote(s)+" without its ]", "[2001:db8::1]:443 or [2001:db8::]/32:443")
		}
		if ip, err := netip.ParseAddr(a); err != nil || !ip.Is6() {
			return "", nil, at(1, quote(a)+" in brackets", "an IPv6 address, as [2001:db8::1]:443 or [2001:db8::]/32:443")
		}
		bits, ports, more := strings.Cut(after, ":")
		if bits != "" && bits[0] != '/' {
			return "", nil, at(len(a)+2, quote(after)+" behind an address", "/BITS or :PORTS, as [2001:db8::]/32:443")
		}
		to, tail, off = a+bits, ports, len(a)+2+len(bits)+1
		if !more {
			return to, nil, nil
		}
	} else {
		switch strings.Count(s, ":") {
		case 0:
			return s, nil, nil
		case 1:
			to, tail, _ = strings.Cut(s, ":")
			off = len(to) + 1
		default:
			if _, err := netip.ParseAddr(s); err == nil {
				return s, nil, nil
			}
			if _, err := netip.ParsePrefix(s); err == nil {
				return s, nil, nil
			}
			return "", nil, at(0, quote(s), "an IPv6 address in brackets if ports follow, as [2001:db8::]/32:443")
		}
	}
	p, err = parsePorts(tail)
	if err != nil {
		err.off += off
	}
	return to, p, err
}

func parseTarget(s string) (target, *Error) {
	if s != "" && slices.Contains(words, s) {
		return target{kind: toWord, word: s}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return prefixTarget(s, netip.PrefixFrom(a.WithZone(""), a.BitLen()), a.Zone())
	}
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return target{}, at(0, "prefix "+quote(s), "ADDRESS/BITS, as 10.0.0.0/8 or 2001:db8::/32")
		}
		return prefixTarget(s, p, "")
	}
	n, err := parseName(s)
	if err != nil {
		return target{}, err
	}
	return target{kind: toName, name: n}, nil
}

func prefixTarget(s string, p netip.Prefix, zone string) (target, *Error) {
	switch {
	case zone != "":
		return target{}, at(0, "address "+quote(s), "it without a zone: guests have one link")
	case p.Addr().Is4In6():
		return target{}, at(0, "address "+quote(s), "the IPv4 address itself")
	case p.Masked() != p:
		return target{}, at(0, "prefix "+quote(s)+" with bits behind its length", p.Masked().String())
	}
	return target{kind: toPrefix, prefix: p}, nil
}

// parseName makes a pattern canonical: lower case, no final dot.
func parseName(s string) (string, *Error) {
	if s == "*" {
		return s, nil
	}
	name := strings.ToLower(s)
	if len(name) > 1 {
		name = strings.TrimSuffix(name, ".")
	}
	rest, wild := strings.CutPrefix(name, "*.")
	bad := func(want string) (string, *Error) { return "", at(0, quote(s), want) }
	if len(name) > 253 { // RFC 1035 §2.3.4
		return bad("a name of at most 253 characters")
	}
	if strings.Contains(rest, "*") {
		return bad("* as a whole first label, as *.example.com")
	}
	label, digits := 0, true
	for i := 0; i <= len(rest); i++ {
		if i == len(rest) || rest[i] == '.' {
			if label == 0 || label > 63 { // RFC 1035 §2.3.4
				return bad(wantTarget)
			}
			if i == len(rest) {
				break
			}
			label, digits = 0, true
			continue
		}
		c := rest[i]
		switch {
		case c >= 'a' && c <= 'z', c == '-', c == '_':
			digits = false
		case c >= '0' && c <= '9':
		case c >= 0x80:
			return bad("the name as resolvers are asked for it, xn--… (RFC 5890)")
		default:
			return bad(wantTarget)
		}
		label++
	}
	switch {
	case digits: // RFC 3696 §2: no top-level domain is all digits, and half an address is
		return bad(wantTarget)
	case !wild && !strings.Contains(rest, "."):
		return bad(wantTarget) // a word, misspelt
	}
	return name, nil
}
