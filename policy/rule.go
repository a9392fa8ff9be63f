package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/vmnetd/vmnetd/flows"
)

// Action is what a rule does with what it matches.
type Action uint8

const (
	Unset  Action = iota
	Allow         //
	Reject        // at once: RST, or ICMP "prohibited"
	Drop          // without a word
	Ask           // somebody, and hold the conversation until the answer comes (Policy.Answer)
)

var actions = []string{"", "allow", "reject", "drop", "ask"}

func (a Action) String() string { return actions[min(int(a), len(actions)-1)] }

// MarshalText makes an Action its name in JSON and YAML.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText is MarshalText's inverse.
func (a *Action) UnmarshalText(b []byte) error { return unmarshal(a, "verdict", actions, b) }

// Proto is what a rule matches of protocols.
type Proto uint8

const (
	Any  Proto = iota // with ports: TCP and UDP
	TCP               //
	UDP               //
	ICMP              // of both families
)

var protos = []string{"any", "tcp", "udp", "icmp"}

func (p Proto) String() string { return protos[min(int(p), len(protos)-1)] }

// MarshalText makes a Proto its name in JSON and YAML.
func (p Proto) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is MarshalText's inverse.
func (p *Proto) UnmarshalText(b []byte) error { return unmarshal(p, "protocol", protos, b) }

// Check is what a rule wants of a conversation's first bytes.
type Check uint8

const (
	Usual     Check = iota // of a rule that names somebody, on the ports where first bytes usually name somebody too
	Checked                // on every port: TLS, HTTP or QUIC, for the name that the rule let in
	TLS                    // TLS or QUIC and nothing else, for that name; of a rule without a name, for anybody
	HTTP                   // HTTP and nothing else, likewise
	Unchecked              // on no port
)

var checks = []string{"", "checked", "tls", "http", "unchecked"}

func (c Check) String() string { return checks[min(int(c), len(checks)-1)] }

// MarshalText makes a Check its name in JSON and YAML.
func (c Check) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is MarshalText's inverse.
func (c *Check) UnmarshalText(b []byte) error { return unmarshal(c, "check", checks, b) }

func unmarshal[T ~uint8](v *T, what string, names []string, b []byte) error {
	i := slices.Index(names, string(b))
	if i < 0 {
		return fmt.Errorf("%s %s: want %s", what, quote(string(b)), oneOf(names))
	}
	*v = T(i)
	return nil
}

// oneOf lists words for an error.
func oneOf(names []string) string {
	if len(names) > 0 && names[0] == "" {
		names = names[1:]
	}
	n := len(names) - 1
	return strings.Join(names[:n], ", ") + " or " + names[n]
}

// PortRange is a range of ports with both ends in it.
type PortRange struct{ First, Last uint16 }

func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Ports are those that a rule matches; none is all.
type Ports []PortRange

func (p Ports) String() string {
	var s []string
	for _, r := range p {
		s = append(s, r.String())
	}
	return strings.Join(s, ",")
}

// MarshalText makes Ports 80,443,5000-5010 in JSON and YAML.
func (p Ports) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is MarshalText's inverse.
func (p *Ports) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*p = nil
		return nil
	}
	ports, err := parsePorts(string(b))
	if err != nil {
		return err
	}
	*p = ports
	return nil
}

// mostRanges is how many ranges one rule may list: more than multiport takes (15), and few enough for a line.
const mostRanges = 64

// parsePorts makes a list canonical: sorted, without overlaps, neighbours joined.
func parsePorts(s string) (Ports, *Error) {
	var ports Ports
	off := 0
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, ok := parsePort(first)
		b, ok2 := parsePort(last)
		switch {
		case !ok || !ok2:
			return nil, at(off, "port "+quote(part), "1 to 65535, as 443, 80,443 or 5000-5010")
		case a > b:
			return nil, at(off, "ports "+part, fmt.Sprintf("the lower one first: %d-%d", b, a))
		case len(ports) == mostRanges:
			return nil, at(off, "more than 64 ranges of ports", "another rule for them")
		}
		ports = append(ports, PortRange{a, b})
		off += len(part) + 1
	}
	return ports.canonical(), nil
}

func parsePort(s string) (uint16, bool) {
	if s == "" || s[0] == '0' || s[0] == '+' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil
}

func (p Ports) canonical() Ports {
	if len(p) == 0 {
		return nil
	}
	p = slices.Clone(p)
	slices.SortFunc(p, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	out := p[:1]
	for _, r := range p[1:] {
		if last := &out[len(out)-1]; int(r.First) <= int(last.Last)+1 {
			last.Last = max(last.Last, r.Last)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// A Rule says what becomes of the conversations that it matches. The zero value of each field but Verdict matches
// everything.
type Rule struct {
	Verdict   Action          `json:"verdict" yaml:"verdict"`
	Direction flows.Direction `json:"direction,omitempty" yaml:"direction,omitempty"` // In: through a port forward
	Proto     Proto           `json:"proto,omitempty" yaml:"proto,omitempty"`
	// To is an address, a CIDR prefix, a name, *.example.com for all names below that one, * for all names, or one of
	// the words host, private, loopback, link-local, metadata, doh, public and any.
	To    string `json:"to,omitempty" yaml:"to,omitempty"`
	Ports Ports  `json:"ports,omitempty" yaml:"ports,omitempty"`
	Check Check  `json:"check,omitempty" yaml:"check,omitempty"`
	// Guest is a guest's id, name or MAC, with * for any part of it.
	Guest   string `json:"guest,omitempty" yaml:"guest,omitempty"`
	Comment string `json:"comment,omitempty" yaml:"comment,omitempty"`
}

// String is the rule as ParseRule reads it, in its one canonical form.
func (r Rule) String() string {
	var b strings.Builder
	b.WriteString(r.Verdict.String())
	if r.Direction == flows.In {
		b.WriteString(" in")
	}
	b.WriteString(" " + r.Proto.String())
	if r.To != "" && r.To != "any" || len(r.Ports) > 0 {
		to := r.To
		if to == "" {
			to = "any"
		}
		b.WriteString(" ")
		if len(r.Ports) == 0 {
			b.WriteString(to)
		} else {
			if strings.Contains(to, ":") {
				a, bits, isPrefix := strings.Cut(to, "/")
				to = "[" + a + "]"
				if isPrefix {
					to += "/" + bits
				}
			}
			b.WriteString(to + ":" + r.Ports.String())
		}
	}
	if r.Check != Usual {
		b.WriteString(" " + r.Check.String())
	}
	if r.Guest != "" {
		b.WriteString(" guest=" + r.Guest)
	}
	if r.Comment != "" {
		b.WriteString(" # " + r.Comment)
	}
	return b.String()
}

// Error is what is wrong with a policy's text.
type Error struct {
	Text   string // the rule, if it is not a line of a document
	Line   int    // of a document, from 1; else 0
	Column int    // in characters, from 1; 0 if it is in no text
	What   string // is wrong
	Want   string // what would be right

	off int // in bytes, until the column is known
}

func (e *Error) Error() string {
	s := e.What + ": want " + e.Want
	switch {
	case e.Line > 0:
		return fmt.Sprintf("policy line %d, column %d: %s", e.Line, e.Column, s)
	case e.Column > 0:
		return fmt.Sprintf("policy rule %s, column %d: %s", quote(e.Text), e.Column, s)
	case e.Text != "":
		return fmt.Sprintf("policy rule %s: %s", quote(e.Text), s)
	}
	return "policy: " + s
}

func at(off int, what, want string) *Error { return &Error{off: off, What: what, Want: want} }

// mostQuoted keeps one bad rule from filling a log: a name has 253 characters at most, and all rules that are right
// have less than this with it.
const mostQuoted = 320

func quote(s string) string {
	if len(s) > mostQuoted {
		return strconv.Quote(s[:mostQuoted]) + "…"
	}
	return strconv.Quote(s)
}

// word is one of a line, and where it stands.
type word struct {
	s   string
	off int
}

func notText(s string) int {
	return strings.IndexFunc(s, func(r rune) bool {
		return r == utf8.RuneError || r != '\t' && !unicode.IsPrint(r)
	})
}

// split cuts a line into words and its comment.
func split(line string) (words []word, comment string, err *Error) {
	if i := notText(line); i >= 0 {
		return nil, "", at(i, "a character that is not text", "one line of UTF-8 (spaces are plain ones)")
	}
	for i := 0; i < len(line); {
		if line[i] == ' ' || line[i] == '\t' {
			i++
			continue
		}
		if line[i] == '#' {
			return words, strings.Trim(line[i+1:], " \t"), nil
		}
		end := strings.IndexAny(line[i:], " \t")
		if end < 0 {
			end = len(line) - i
		}
		words = append(words, word{line[i : i+end], i})
		i += end
	}
	return words, "", nil
}

// ParseRule reads a rule:
//
//	VERDICT [in] PROTO [TO[:PORTS]] [CHECK] [guest=PATTERN] [# COMMENT]
//
//	allow tcp api.example.com:443
//	allow tcp *.debian.org:80,443
//	allow tcp [2001:db8::]/32:22
//	reject any private
//	drop icmp
//
// The verdict is allow, reject, drop or ask; the protocol tcp, udp, icmp or any; the check checked, tls, http or
// unchecked.
func ParseRule(text string) (Rule, error) {
	r, err := parseRule(text)
	if err != nil {
		err.Text = text
		err.Column = column(text, err.off)
		return Rule{}, err
	}
	return r, nil
}

func column(text string, off int) int { return utf8.RuneCountInString(text[:min(off, len(text))]) + 1 }

func parseRule(text string) (Rule, *Error) {
	words, comment, err := split(text)
	if err != nil {
		return Rule{}, err
	}
	r := Rule{Comment: comment, To: "any"}
	take := func() (word, bool) {
		if len(words) == 0 {
			return word{off: len(text)}, false
		}
		w := words[0]
		words = words[1:]
		return w, true
	}
	w, ok := take()
	if !ok {
		return r, at(0, "no rule", "a verdict (allow, reject, drop or ask), a protocol and to where, as allow tcp example.com:443")
	}
	if i := slices.Index(actions, w.s); i > 0 {
		r.Verdict = Action(i)
	} else {
		return r, at(w.off, "verdict "+quote(w.s), oneOf(actions))
	}
	if w, ok = take(); ok && (w.s == "in" || w.s == "out") {
		if w.s == "in" {
			r.Direction = flows.In
		}
		w, ok = take()
	}
	if !ok {
		return r, at(w.off, "no protocol", oneOf(protos))
	}
	if i := slices.Index(protos, w.s); i >= 0 {
		r.Proto = Proto(i)
	} else {
		return r, at(w.off, "protocol "+quote(w.s), oneOf(protos)+" before to where")
	}
	to, seen := word{off: w.off}, false
	for {
		w, ok = take()
		if !ok {
			break
		}
		guest, isGuest := strings.CutPrefix(w.s, "guest=")
		check := slices.Index(checks, w.s)
		switch {
		case isGuest && r.Guest != "":
			return r, at(w.off, "a second guest", "one, where * stands for any part of it")
		case isGuest:
			if err := validGuest(guest); err != nil {
				err.off += w.off + len("guest=")
				return r, err
			}
			r.Guest = guest
		case check > 0 && r.Check != Usual:
			return r, at(w.off, "a second check", "one of "+oneOf(checks))
		case check > 0:
			r.Check = Check(check)
		case !seen && r.Check == Usual && r.Guest == "":
			seen, to = true, w
			host, ports, err := splitPorts(w.s)
			if err == nil {
				r.To, r.Ports = host, ports
				_, err = parseTarget(host)
			}
			if err != nil {
				err.off += w.off
				return r, err
			}
		default:
			return r, at(w.off, quote(w.s), "nothing more, or "+oneOf(checks[1:])+", guest=PATTERN, or # and a comment")
		}
	}
	if err := r.normalize(); err != nil {
		err.off = to.off
		return r, err
	}
	return r, nil
}

// Validate says what is wrong with a rule that was not parsed.
func (r Rule) Validate() error {
	if err := r.normalize(); err != nil {
		err.Text = r.String()
		return err
	}
	return nil
}

// normalize makes a rule what its text would be read as.
func (r *Rule) normalize() *Error {
	if r.Verdict == Unset || int(r.Verdict) >= len(actions) {
		return at(0, "no verdict", oneOf(actions))
	}
	if int(r.Proto) >= len(protos) || int(r.Check) >= len(checks) || r.Direction > flows.In {
		return at(0, "a protocol, check or direction that is none", "one of this package's constants")
	}
	if r.To == "" {
		r.To = "any"
	}
	t, err := parseTarget(r.To)
	if err != nil {
		return err
	}
	r.To = t.String()
	for _, p := range r.Ports {
		if p.First == 0 || p.First > p.Last {
			return at(0, "ports "+p.String(), "1 to 65535, the lower one first")
		}
	}
	r.Ports = r.Ports.canonical()
	if len(r.Ports) > mostRanges {
		return at(0, "more than 64 ranges of ports", "another rule for them")
	}
	if r.Guest != "" {
		if err := validGuest(r.Guest); err != nil {
			return err
		}
	}
	if r.Proto == ICMP && len(r.Ports) > 0 {
		return at(0, "a port of icmp", "no port, or tcp or udp")
	}
	if r.Direction == flows.In {
		switch {
		case t.kind == toName:
			return at(0, "a name in a rule for forwards", "the guest's address, or any and guest=PATTERN")
		case r.Verdict == Ask:
			return at(0, "ask in a rule for forwards", "allow, reject or drop: whoever made the forward was asked")
		case r.Check != Usual:
			return at(0, "a check in a rule for forwards", "none: first bytes are looked at on the way out")
		}
	}
	if r.Check != Usual {
		switch {
		case r.Verdict != Allow && r.Verdict != Ask:
			return at(0, r.Check.String()+" in a rule that lets nothing in", "it in a rule that allows or asks")
		case r.Proto == ICMP:
			return at(0, r.Check.String()+" of icmp", "it of tcp or udp")
		case r.Check == HTTP && r.Proto == UDP:
			return at(0, "http of udp", "it of tcp")
		case t.kind != toName && (r.Check == Checked || r.Check == Unchecked):
			return at(0, r.Check.String()+" without a name", "tls or http, or a name")
		}
	}
	if r.Verdict == Allow || r.Verdict == Ask {
		if t.kind == toWord && t.word == "loopback" || t.kind == toPrefix && t.prefix.Addr().IsLoopback() {
			return at(0, "a way to "+r.To, "host: a guest's loopback is its own, and the host's is behind the gateway's address")
		}
	}
	if notText(r.Comment) >= 0 {
		return at(0, "comment "+quote(r.Comment), "one line of text")
	}
	r.Comment = strings.Trim(r.Comment, " \t")
	return nil
}

// mostGuest bounds a pattern: ids have up to 64 characters, names in DHCP up to 63, a MAC 17.
const mostGuest = 128

func validGuest(s string) *Error {
	if s == "" || len(s) > mostGuest {
		return at(0, "guest "+quote(s), "an id, a name or a MAC, with * for any part of it")
	}
	for i, r := range s {
		if r <= ' ' || r == '#' || r == 0x7f || r == utf8.RuneError || !unicode.IsPrint(r) {
			return at(i, "guest "+quote(s), "it without spaces and #")
		}
	}
	return nil
}
