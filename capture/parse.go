package capture

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vmnetd/vmnetd/backend/link"
)

const (
	// maxFilter bounds a filter's text, and with it what each frame costs: three hundred hosts are some 8000 bytes.
	maxFilter = 8 << 10
	// maxNesting bounds parentheses and nots, which are stack.
	maxNesting = 100
	// shallow is as far as a filter without comparisons looks: Ethernet, four VLAN tags and the longest IPv4 header, or
	// IPv6 and a fragment header, and ports.
	shallow = 14 + 4*maxVLANs + 60 + 8
	// maxVLANs is how often "vlan" may stand: QinQ has two, and carriers' oddities four.
	maxVLANs = 4
)

// token is a word or a sign of a filter.
type token struct {
	at   int
	text string // of words, in small letters
	word bool
}

// ParseFilter compiles a filter. The empty one is nil, which has everything pass. Its errors are *FilterError.
func ParseFilter(text string) (f *Filter, err error) {
	p := &parser{text: text, depth: shallow, layer: layer{12, 14}}
	defer func() {
		if r := recover(); r != nil {
			e, ok := r.(*FilterError)
			if !ok {
				panic(r)
			}
			f, err = nil, e
		}
	}()
	if len(text) > maxFilter {
		p.fail(maxFilter, "a filter has %d bytes at most", maxFilter)
	}
	p.scan()
	if len(p.tokens) == 0 {
		return nil, nil
	}
	match := p.expression()
	if t, ok := p.peek(); ok {
		p.fail(t.at, "want and, or, or the end")
	}
	return &Filter{text, match, p.depth}, nil
}

type parser struct {
	text   string
	tokens []token
	at     int // the next of them
	layer  layer
	vlans  int
	depth  int // of the frame
	deep   int // of the recursion

	last qualifiers // what an address alone means: the same as the one before
}

type qualifiers struct {
	proto, kind string
	dir         dir
	set         bool
}

func (p *parser) fail(at int, format string, args ...any) {
	panic(&FilterError{p.text, at, fmt.Sprintf(format, args...)})
}

// here is where the parser is.
func (p *parser) here() int {
	if t, ok := p.peek(); ok {
		return t.at
	}
	return len(p.text)
}

// scan cuts the text to tokens.
func (p *parser) scan() {
	s, brackets := p.text, 0
	alnum := func(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
		case alnum(c) || c == '\\' || c == ':' && brackets == 0:
			end := i + 1
			for end < len(s) && (alnum(s[end]) || strings.IndexByte("-_.", s[end]) >= 0 || s[end] == ':' && brackets == 0) {
				end++
			}
			for end > i+1 && (s[end-1] == '-' || s[end-1] == '_') {
				end--
			}
			p.tokens = append(p.tokens, token{i, strings.ToLower(strings.TrimPrefix(s[i:end], `\`)), true})
			i = end
		default:
			n := 1
			if i+1 < len(s) && slices.Contains([]string{"&&", "||", "==", "!=", "<=", ">=", "<<", ">>"}, s[i:i+2]) {
				n = 2
			} else if strings.IndexByte("()[]!&|+-*/%^<>=:", c) < 0 {
				p.fail(i, "%q means nothing here", []rune(s[i:])[0])
			}
			switch c {
			case '[':
				brackets++
			case ']':
				brackets--
			}
			p.tokens = append(p.tokens, token{i, s[i : i+n], false})
			i += n
		}
	}
}

func (p *parser) peek() (token, bool) {
	if p.at < len(p.tokens) {
		return p.tokens[p.at], true
	}
	return token{at: len(p.text)}, false
}

// take takes the next token if it is one of these.
func (p *parser) take(texts ...string) (string, bool) {
	if t, ok := p.peek(); ok && slices.Contains(texts, t.text) {
		p.at++
		return t.text, true
	}
	return "", false
}

func (p *parser) want(text, why string) {
	if _, ok := p.take(text); !ok {
		p.fail(p.here(), "want %q%s", text, why)
	}
}

func (p *parser) enter() {
	if p.deep++; p.deep > maxNesting {
		p.fail(p.here(), "more than %d in one another", maxNesting)
	}
}

func (p *parser) expression() node {
	p.enter()
	defer func() { p.deep-- }()
	n := p.term()
	for {
		if _, ok := p.take("and", "&&"); ok {
			n = and(n, p.term())
		} else if _, ok := p.take("or", "||"); ok {
			n = or(n, p.term())
		} else {
			return n
		}
	}
}

func (p *parser) term() node {
	p.enter()
	defer func() { p.deep-- }()
	if _, ok := p.take("not", "!"); ok {
		return not(p.term())
	}
	t, ok := p.peek()
	if !ok {
		p.fail(t.at, "something is missing: as in host 10.0.2.15 and tcp port 443")
	}
	if p.comparing() {
		return p.comparison()
	}
	if _, ok := p.take("("); ok {
		n := p.expression()
		p.want(")", " for the one that was opened")
		return n
	}
	if !t.word {
		p.fail(t.at, "want a word: host, net, port, tcp, …")
	}
	return p.primitive()
}

// comparing says whether a comparison of numbers begins here.
func (p *parser) comparing() bool {
	i := p.at
	for depth := 0; i < len(p.tokens); i++ {
		switch t := p.tokens[i]; {
		case t.text == "(":
			depth++
			continue
		case t.text == ")":
			if depth--; depth > 0 {
				continue
			}
		case depth > 0:
			if t.word && slices.Contains(logical, t.text) || t.text == "!" {
				return false
			}
			continue
		case i > p.at: // behind the parentheses
			return isOperator(t.text)
		case t.text == "-", t.text == "len":
			return true
		case !t.word:
			return false
		}
		if i+1 == len(p.tokens) {
			return false
		}
		next := p.tokens[i+1].text
		if p.tokens[i].text == ")" {
			return isOperator(next)
		}
		if _, isNumber := number(p.tokens[i].text); isNumber {
			return isOperator(next) && next != "/" // net 10/8
		}
		return next == "[" || constants[p.tokens[i].text] != nil
	}
	return false
}

var logical = []string{"and", "or", "not", "&&", "||"}

func isOperator(s string) bool {
	return slices.Contains([]string{"+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>", "<", ">", "=", "==", "!=", "<=", ">="}, s)
}

// constants are the words for numbers.
var constants = func() map[string]*uint32 {
	m := map[string]*uint32{}
	for name, v := range map[string]uint32{
		"tcpflags": 13, "tcp-fin": 1, "tcp-syn": 2, "tcp-rst": 4, "tcp-push": 8, "tcp-ack": 16, "tcp-urg": 32, "tcp-ece": 64, "tcp-cwr": 128,
		"icmptype": 0, "icmpcode": 1, "icmp-echoreply": 0, "icmp-unreach": 3, "icmp-sourcequench": 4, "icmp-redirect": 5, "icmp-echo": 8,
		"icmp-routeradvert": 9, "icmp-routersolicit": 10, "icmp-timxceed": 11, "icmp-paramprob": 12, "icmp-tstamp": 13, "icmp-tstampreply": 14,
		"icmp6type": 0, "icmp6code": 1, "icmp6-destinationrunreach": 1, "icmp6-packettoobig": 2, "icmp6-timeexceeded": 3, "icmp6-parameterproblem": 4,
		"icmp6-echo": 128, "icmp6-echoreply": 129, "icmp6-routersolicit": 133, "icmp6-routeradvert": 134, "icmp6-neighborsolicit": 135,
		"icmp6-neighboradvert": 136, "icmp6-redirect": 137,
	} {
		m[name] = &v
	}
	return m
}()

// comparison is one number beside another.
func (p *parser) comparison() node {
	p.depth = link.MaxFrame // where it looks may depend on the frame
	a, ifA := p.sum(0)
	op, ok := p.take("<", ">", "=", "==", "!=", "<=", ">=")
	if !ok {
		p.fail(p.here(), "want a comparison: =, !=, <, >, <= or >=")
	}
	b, ifB := p.sum(0)
	compare := map[string]func(x, y uint32) bool{
		"<": func(x, y uint32) bool { return x < y }, ">": func(x, y uint32) bool { return x > y },
		"<=": func(x, y uint32) bool { return x <= y }, ">=": func(x, y uint32) bool { return x >= y },
		"=": func(x, y uint32) bool { return x == y }, "==": func(x, y uint32) bool { return x == y },
		"!=": func(x, y uint32) bool { return x != y },
	}[op]
	n := node(func(pk *packet) bool {
		x := a(pk)
		y := b(pk)
		return !pk.fault && compare(x, y)
	})
	for _, cond := range append(ifB, ifA...) {
		n = and(cond, n)
	}
	return n
}

// levels are the operators, the loosest first, as in C.
var levels = [][]string{{"|"}, {"^"}, {"&"}, {"<<", ">>"}, {"+", "-"}, {"*", "/", "%"}}

// sum is a number, and what a frame must be for it.
func (p *parser) sum(level int) (value, []node) {
	if level == len(levels) {
		return p.number()
	}
	a, conds := p.sum(level + 1)
	for {
		op, ok := p.take(levels[level]...)
		if !ok {
			return a, conds
		}
		b, _ := p.sum(level + 1) // only the first number's protocol is asked for: so does libpcap
		a = operate(op, a, b)
	}
}

func operate(op string, a, b value) value {
	return func(p *packet) uint32 {
		x, y := a(p), b(p)
		switch op {
		case "|":
			return x | y
		case "^":
			return x ^ y
		case "&":
			return x & y
		case "<<":
			return x << y
		case ">>":
			return x >> y
		case "+":
			return x + y
		case "-":
			return x - y
		case "*":
			return x * y
		}
		if y == 0 {
			p.fault = true
			return 0
		}
		if op == "/" {
			return x / y
		}
		return x % y
	}
}

func (p *parser) number() (value, []node) {
	p.enter()
	defer func() { p.deep-- }()
	if _, ok := p.take("-"); ok {
		a, conds := p.number()
		return func(pk *packet) uint32 { return -a(pk) }, conds
	}
	if _, ok := p.take("("); ok {
		a, conds := p.sum(0)
		p.want(")", " for the one that was opened")
		return a, conds
	}
	t, ok := p.peek()
	if !ok || !t.word {
		p.fail(t.at, "want a number, or as in tcp[13]")
	}
	p.at++
	if n, ok := number(t.text); ok {
		return func(*packet) uint32 { return n }, nil
	}
	if c := constants[t.text]; c != nil {
		n := *c
		return func(*packet) uint32 { return n }, nil
	}
	if t.text == "len" {
		return func(pk *packet) uint32 { return uint32(pk.n) }, nil
	}
	base, cond := p.base(t)
	p.want("[", fmt.Sprintf(" behind %s", t.text))
	at, conds := p.sum(0)
	size := 1
	if _, ok := p.take(":"); ok {
		t, _ := p.peek()
		n, ok := number(t.text)
		if !ok || n != 1 && n != 2 && n != 4 {
			p.fail(t.at, "want 1, 2 or 4 bytes")
		}
		p.at++
		size = int(n)
	}
	p.want("]", "")
	if cond != nil {
		conds = append(conds, cond)
	}
	return load(at, base, size), conds
}

// base is where a protocol's header begins, and which frames have one.
func (p *parser) base(t token) (func(*packet) int, node) {
	l := p.layer
	fixed := func(at int) func(*packet) int { return func(*packet) int { return at } }
	whole := func(proto uint32) node {
		return and(l.proto(proto, true, false), func(pk *packet) bool { return pk.u16(l.net+6)&0x1fff == 0 })
	}
	switch t.text {
	case "ether", "link":
		return fixed(0), nil
	case "ip":
		return fixed(l.net), l.ether(etherIP)
	case "ip6":
		return fixed(l.net), l.ether(etherIP6)
	case "arp":
		return fixed(l.net), l.ether(etherARP)
	case "rarp":
		return fixed(l.net), l.ether(etherRARP)
	case "icmp6":
		return fixed(l.net + 40), and(l.ether(etherIP6), func(pk *packet) bool { return pk.u8(l.net+6) == protoICMP6 })
	}
	if w, ok := overIP[t.text]; ok && w.v4 {
		return l.behindIP, whole(w.number)
	}
	p.fail(t.at, "not a number: one is 13, 0x2, len, or bytes of ether, arp, ip, ip6, tcp, udp, icmp or icmp6 as in ip[9]")
	return nil, nil
}

func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil || strings.ContainsRune(s, '_') {
		return 0, false
	}
	return uint32(n), true
}

// overIP are the words for protocols over IP.
var overIP = map[string]struct {
	number uint32
	v4, v6 bool
}{
	"tcp": {protoTCP, true, true}, "udp": {protoUDP, true, true}, "sctp": {protoSCTP, true, true}, "icmp": {protoICMP, true, false},
	"icmp6": {protoICMP6, false, true}, "igmp": {2, true, false}, "pim": {103, true, true}, "ah": {51, true, true}, "esp": {50, true, true},
	"vrrp": {112, true, false},
}

var etherTypes = map[string]uint32{"ip": etherIP, "ip6": etherIP6, "arp": etherARP, "rarp": etherRARP}

// known are the words that may begin a primitive, for the errors.
const known = "host, net, port, portrange, src, dst, ether, ip, ip6, arp, tcp, udp, sctp, icmp, icmp6, vlan, proto, broadcast, multicast, less, greater, inbound or outbound"

func (p *parser) primitive() node {
	start, _ := p.peek()
	switch start.text {
	case "vlan":
		p.at++
		return p.vlan()
	case "less", "greater":
		p.at++
		n := p.plainNumber("a length")
		if start.text == "less" {
			return func(pk *packet) bool { return pk.n <= int(n) }
		}
		return func(pk *packet) bool { return pk.n >= int(n) }
	case "inbound":
		p.at++
		return func(pk *packet) bool { return !pk.out }
	case "outbound":
		p.at++
		return func(pk *packet) bool { return pk.out }
	}
	var q qualifiers
	_, isOver := overIP[start.text]
	_, isEther := etherTypes[start.text]
	if isOver || isEther || start.text == "ether" {
		p.at++
		q.proto = start.text
		if n := p.cast(q.proto); n != nil {
			return n
		}
	} else if start.text == "broadcast" || start.text == "multicast" {
		return p.cast("ether")
	}
	t, more := p.peek()
	q.dir, q.set = p.direction()
	if k, ok := p.take("host", "net", "port", "portrange", "proto"); ok {
		q.kind, q.set = k, true
	} else if q.set {
		q.kind = "host"
	}
	switch {
	case q.set:
	case q.proto != "" && q.proto != "ether" && (!more || !p.operand(t)):
		return p.all(q.proto)
	case q.proto == "ether":
		p.fail(p.here(), "want host, src, dst, proto, broadcast or multicast behind ether")
	case q.proto != "":
		p.fail(t.at, "want host, net, port or portrange behind %s, or and", q.proto)
	case p.last.set && p.operand(start):
		q = p.last // "port 80 or 443"
	case isWord(start.text):
		p.fail(start.at, "want %s", known)
	default:
		q = qualifiers{kind: "host", set: true} // an address alone
	}
	p.last = q
	return p.qualified(q)
}

// operand says whether a word is what a qualifier stands before.
func (p *parser) operand(t token) bool {
	return t.word && !slices.Contains(logical, t.text)
}

// isWord says whether it is surely no address.
func isWord(s string) bool {
	_, err := netip.ParseAddr(s)
	_, err2 := net.ParseMAC(s)
	_, ok := number(s)
	return err != nil && err2 != nil && !ok && !partial(s)
}

// partial says whether s is the first bytes of an IPv4 address.
func partial(s string) bool {
	for _, part := range strings.Split(s, ".") {
		if n, err := strconv.ParseUint(part, 10, 8); err != nil || n > 255 {
			return false
		}
	}
	return true
}

func (p *parser) direction() (dir, bool) {
	word, ok := p.take("src", "dst")
	if !ok {
		return either, false
	}
	other := map[string]string{"src": "dst", "dst": "src"}[word]
	if p.at+1 < len(p.tokens) && p.tokens[p.at+1].text == other {
		switch p.tokens[p.at].text {
		case "or", "||":
			p.at += 2
			return either, true
		case "and", "&&":
			p.at += 2
			return both, true
		}
	}
	if word == "src" {
		return source, true
	}
	return target, true
}

// all is a protocol alone.
func (p *parser) all(word string) node {
	if typ, ok := etherTypes[word]; ok {
		return p.layer.ether(typ)
	}
	w := overIP[word]
	return p.layer.proto(w.number, w.v4, w.v6)
}

// cast is broadcast or multicast, if that is next.
func (p *parser) cast(proto string) node {
	at := p.here()
	word, ok := p.take("broadcast", "multicast")
	if !ok {
		return nil
	}
	l := p.layer
	switch {
	case proto == "ether" && word == "broadcast":
		all := []byte{255, 255, 255, 255, 255, 255}
		return func(pk *packet) bool { return pk.is(0, all, all) }
	case proto == "ether":
		return func(pk *packet) bool { return pk.u8(0)&1 != 0 }
	case proto == "ip" && word == "multicast":
		return and(l.ether(etherIP), func(pk *packet) bool { return pk.u8(l.net+16) >= 224 })
	case proto == "ip6" && word == "multicast":
		return and(l.ether(etherIP6), func(pk *packet) bool { return pk.u8(l.net+24) == 255 })
	}
	p.fail(at, "there is ether broadcast, ether multicast, ip multicast and ip6 multicast")
	return nil
}

func (p *parser) vlan() node {
	l := p.layer
	if p.vlans++; p.vlans > maxVLANs {
		p.fail(p.here(), "vlan may be there %d times", maxVLANs)
	}
	n := node(func(pk *packet) bool {
		switch pk.u16(l.typ) {
		case 0x8100, 0x88a8, 0x9100: // IEEE 802.1Q, 802.1ad, and what came before it
			return true
		}
		return false
	})
	if t, ok := p.peek(); ok && t.word {
		if id, isNumber := number(t.text); isNumber {
			if id > 4095 {
				p.fail(t.at, "a VLAN's number is up to 4095")
			}
			p.at++
			n = and(n, func(pk *packet) bool { return pk.u16(l.net)&0xfff == id })
		}
	}
	p.layer = layer{l.typ + 4, l.net + 4}
	return n
}

func (p *parser) plainNumber(what string) uint32 {
	t, _ := p.peek()
	n, ok := number(t.text)
	if !ok {
		p.fail(t.at, "want %s, as a number", what)
	}
	p.at++
	return n
}

// qualified is an address, a net, a port or a protocol, behind what says whose.
func (p *parser) qualified(q qualifiers) node {
	if _, ok := p.take("("); ok { // host (a or b)
		p.last = q
		n := p.expression()
		p.want(")", " for the one that was opened")
		return n
	}
	t, ok := p.peek()
	if !ok || !t.word {
		what := map[string]string{"host": "an address", "net": "a network, as 10.0.2.0/24", "port": "a port", "portrange": "two ports, as 8000-8010", "proto": "a protocol"}
		p.fail(t.at, "want %s", what[q.kind])
	}
	p.at++
	switch q.kind {
	case "port", "portrange":
		return p.ports(q, t)
	case "proto":
		return p.proto(q, t)
	}
	return p.addresses(q, t)
}

func (p *parser) ports(q qualifiers, t token) node {
	protos := []uint32{protoSCTP, protoTCP, protoUDP}
	network := ""
	switch q.proto {
	case "":
	case "tcp", "udp", "sctp":
		protos = []uint32{overIP[q.proto].number}
		network = q.proto
	default:
		p.fail(t.at, "%s has no ports: want tcp port, udp port, sctp port or port", q.proto)
	}
	first, second, isRange := t.text, t.text, false
	if q.kind == "portrange" {
		first, second, isRange = strings.Cut(t.text, "-")
		if !isRange {
			p.fail(t.at, "want two ports, as 8000-8010")
		}
	}
	low, high := p.port(t, network, first), p.port(t, network, second)
	return p.layer.ports(q.dir, protos, min(low, high), max(low, high))
}

func (p *parser) port(t token, network, s string) uint32 {
	if n, ok := number(s); ok {
		if n > 65535 {
			p.fail(t.at, "a port is up to 65535")
		}
		return n
	}
	if network != "udp" {
		network = "tcp"
	}
	if isWord(s) && !strings.ContainsAny(s, ":.") {
		for _, network := range []string{network, "udp"} {
			if n, err := net.DefaultResolver.LookupPort(context.Background(), network, s); err == nil { // a table of this host's
				return uint32(n)
			}
		}
	}
	p.fail(t.at, "no port %q", s)
	return 0
}

func (p *parser) proto(q qualifiers, t token) node {
	if q.dir != either {
		p.fail(t.at, "a protocol has no src and dst")
	}
	if q.proto == "ether" {
		typ, ok := etherTypes[t.text]
		if !ok {
			if typ, ok = number(t.text); !ok || typ > 0xffff {
				p.fail(t.at, "want ip, ip6, arp, rarp or an ethertype as 0x88cc")
			}
		}
		if typ <= 1500 {
			p.fail(t.at, "want an ethertype from 1501 on: what is less is a length")
		}
		return p.layer.ether(typ)
	}
	n, ok := number(t.text)
	if w, named := overIP[t.text]; named {
		n, ok = w.number, true
	}
	if !ok || n > 255 {
		p.fail(t.at, "want a protocol: tcp, udp, icmp, …, or a number up to 255")
	}
	switch q.proto {
	case "":
		return p.layer.proto(n, true, true)
	case "ip":
		return p.layer.proto(n, true, false)
	case "ip6":
		return p.layer.proto(n, false, true)
	}
	p.fail(t.at, "want ether proto, ip proto, ip6 proto or proto")
	return nil
}

func (p *parser) addresses(q qualifiers, t token) node {
	if mac, err := net.ParseMAC(t.text); err == nil && len(mac) == 6 && !strings.Contains(t.text, "::") {
		if q.proto != "ether" || q.kind != "host" {
			p.fail(t.at, "want ether host, ether src or ether dst before a MAC")
		}
		return q.dir.addrs(6, 0, mac, []byte{255, 255, 255, 255, 255, 255})
	}
	if q.proto == "ether" {
		p.fail(t.at, "want a MAC, as 52:54:00:12:34:56")
	}
	l := p.layer
	a, bits := p.prefix(q, t)
	mask := net.CIDRMask(bits, a.BitLen())
	want := a.AsSlice()
	for i := range want {
		if want[i]&^mask[i] != 0 {
			right, _ := a.Prefix(bits)
			p.fail(t.at, "%s/%d has bits behind its prefix: want %s", a, bits, right)
		}
	}
	if words := (bits + 31) / 32 * 4; words < len(want) { // what is behind need not be there
		want, mask = want[:words], mask[:words]
	}
	arp := func(typ uint32) node { return and(l.ether(typ), q.dir.addrs(l.net+14, l.net+24, want, mask)) }
	ip := and(l.ether(etherIP), q.dir.addrs(l.net+12, l.net+16, want, mask))
	if a.Is6() {
		if q.proto != "" && q.proto != "ip6" {
			p.fail(t.at, "%s has no IPv6 address: want ip6 host, or host", q.proto)
		}
		return and(l.ether(etherIP6), q.dir.addrs(l.net+8, l.net+24, want, mask))
	}
	switch q.proto {
	case "":
		return anyOf(ip, arp(etherARP), arp(etherRARP))
	case "ip":
		return ip
	case "arp":
		return arp(etherARP)
	case "rarp":
		return arp(etherRARP)
	}
	p.fail(t.at, "%s has no IPv4 address: want host, or %[1]s and host", q.proto)
	return nil
}

// prefix is an address, with the length of its prefix where it is a net.
func (p *parser) prefix(q qualifiers, t token) (netip.Addr, int) {
	a, err := netip.ParseAddr(t.text)
	bits := a.BitLen()
	if err != nil && q.kind == "net" && partial(t.text) { // 10 is 10.0.0.0/8
		parts := strings.Split(t.text, ".")
		bits = 8 * len(parts)
		if len(parts) <= 4 {
			a, err = netip.ParseAddr(t.text + strings.Repeat(".0", 4-len(parts)))
		}
	}
	if err != nil || a.Zone() != "" {
		if isWord(t.text) && !strings.Contains(t.text, ":") {
			p.fail(t.at, "want an address: names are not looked up")
		}
		p.fail(t.at, "%q is no address", t.text)
	}
	if q.kind != "net" {
		if _, ok := p.take("/"); ok {
			p.fail(t.at, "want net before an address with a prefix")
		}
		return a, bits
	}
	if _, ok := p.take("/"); ok {
		at := p.here()
		n := p.plainNumber("the length of a prefix")
		if int(n) > a.BitLen() {
			p.fail(at, "a prefix of %s is up to %d", a, a.BitLen())
		}
		bits = int(n)
	} else if _, ok := p.take("mask"); ok {
		m, _ := p.peek()
		mask, err := netip.ParseAddr(m.text)
		if err != nil || !mask.Is4() || !a.Is4() {
			p.fail(m.at, "want a mask as 255.255.255.0")
		}
		ones := ^binary.BigEndian.Uint32(mask.AsSlice())
		if ones&(ones+1) != 0 {
			p.fail(m.at, "the mask has holes")
		}
		p.at++
		for bits = 32; ones != 0; ones >>= 1 {
			bits--
		}
	}
	return a, bits
}
