package hello

import (
	"bytes"
	"strings"

	"github.com/vmnetd/vmnetd/flows"
)

// mostMethod bounds the first word of a request. The longest that IANA knows is UPDATEREDIRECTREF, 17.
const mostMethod = 32

// httpStream reads a request's head, line by line (RFC 9112 §2.2).
type httpStream struct {
	at      int // where the current line starts
	scanned int // up to where it was searched for its end, or checked
	phase   httpPhase

	authority string // of the target, if it has one
	hosts     int
	host      string
}

type httpPhase uint8

const (
	httpMethod httpPhase = iota // in the request line's first word, or the empty lines before
	httpLine                    // in the rest of it
	httpFields
)

func (p *httpStream) look(b []byte) (flows.Hello, bool) {
	for {
		if p.phase < httpFields {
			if h, more := p.requestLine(b); more || p.phase < httpFields {
				return h, more
			}
			continue
		}
		end := bytes.IndexByte(b[p.scanned:], '\n')
		if end < 0 {
			p.scanned = len(b)
			return unclear, true
		}
		line := b[p.at : p.scanned+end]
		p.at = p.scanned + end + 1
		p.scanned = p.at
		line = bytes.TrimSuffix(line, []byte{'\r'}) // a server may take a bare LF (RFC 9112 §2.2)
		if len(line) == 0 {
			return p.decide(), false
		}
		if !p.field(line) {
			return unclear, false
		}
	}
}

// requestLine reads on in the request line. When phase is httpFields after it, the line is done; else the answer
// stands.
func (p *httpStream) requestLine(b []byte) (flows.Hello, bool) {
	for ; p.scanned < len(b); p.scanned++ {
		c := b[p.scanned]
		if p.phase == httpMethod {
			switch {
			case (c == '\r' || c == '\n') && p.scanned == p.at:
				p.at++ // empty lines before a request are passed over (RFC 9112 §2.2)
			case (c == ' ' || c == '\t') && p.scanned > p.at:
				p.phase = httpLine
			case !isToken(c) || p.scanned-p.at >= mostMethod:
				return flows.Hello{}, false
			}
			continue
		}
		switch {
		case c == '\n':
			line := b[p.at:p.scanned]
			p.scanned++
			p.at = p.scanned
			return p.line(string(bytes.TrimSuffix(line, []byte{'\r'}))), false
		case c < ' ' && !(c >= '\t' && c <= '\r') || c == 0x7f:
			return flows.Hello{}, false
		}
	}
	if p.phase == httpLine {
		return unclear, true
	}
	return flows.Hello{}, true
}

// line takes the request line, and goes on to the fields if there is one way only to read it.
func (p *httpStream) line(line string) flows.Hello {
	method, rest, _ := strings.Cut(line, " ")
	target, version, _ := strings.Cut(rest, " ")
	ok := len(version) == len("HTTP/1.1") && version[:7] == "HTTP/1." && version[7] >= '0' && version[7] <= '9' &&
		!strings.ContainsFunc(target, func(r rune) bool { return r < ' ' })
	if !ok {
		// Servers may take any space for one, and other versions (RFC 9112 §3). HTTP/2's preface is among these.
		if words := strings.Fields(line); strings.HasPrefix(strings.ToUpper(words[len(words)-1]), "HTTP/") {
			return unclear
		}
		return flows.Hello{} // HTTP/0.9 among them, which knows no hosts
	}
	if p.authority, ok = authorityOf(method, target); !ok {
		return unclear
	}
	p.phase = httpFields
	return flows.Hello{}
}

// authorityOf takes the authority, if any, from a request's target (RFC 9112 §3.2). ok says that the target is of one
// of its four forms.
func authorityOf(method, target string) (authority string, ok bool) {
	switch {
	case method == "CONNECT": // authority-form, for no other method
		return target, target != ""
	case strings.HasPrefix(target, "/"):
		return "", true
	case target == "*":
		return "", method == "OPTIONS"
	}
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok || scheme == "" || strings.ContainsAny(scheme, "/?#") {
		return "", false
	}
	if i := strings.IndexAny(rest, "/?#\\"); i >= 0 {
		rest = rest[:i]
	}
	return rest, rest != ""
}

// field reads a field line; false if servers could disagree about what it says.
func (p *httpStream) field(line []byte) bool {
	name, value, ok := bytes.Cut(line, []byte{':'})
	if !ok || len(name) == 0 {
		return false
	}
	for _, c := range name {
		if !isToken(c) { // a folded line and a space before the colon among them (RFC 9112 §5.1, §5.2)
			return false
		}
	}
	for _, c := range value {
		if c == 0 || c == '\r' { // RFC 9110 §5.5
			return false
		}
	}
	if strings.EqualFold(string(name), "host") {
		p.hosts++
		p.host = string(bytes.Trim(value, " \t"))
		return p.hosts == 1
	}
	return true
}

// decide says whom the request names. A client that writes the authority twice writes it alike (RFC 9112 §3.2); a
// server should go by the target's, and some go by Host.
func (p *httpStream) decide() flows.Hello {
	byTarget, byHost := hostOf(p.authority), hostOf(p.host)
	switch {
	case p.authority == "" && p.host == "":
		return flows.Hello{How: flows.HelloHTTP}
	case p.authority == "" && byHost != "":
		return flows.Hello{How: flows.HelloHTTP, Name: byHost}
	case byTarget != "" && (p.hosts == 0 || byHost == byTarget):
		return flows.Hello{How: flows.HelloHTTP, Name: byTarget}
	}
	return unclear
}

// hostOf is the name in an authority (RFC 3986 §3.2), which may have a port but no user.
func hostOf(authority string) string {
	host, port := authority, ""
	if rest, ok := strings.CutPrefix(authority, "["); ok {
		if host, port, ok = strings.Cut(rest, "]"); !ok || !strings.Contains(host, ":") {
			return ""
		}
		if port != "" && port[0] != ':' {
			return ""
		}
		port = strings.TrimPrefix(port, ":")
	} else if host, port, _ = strings.Cut(authority, ":"); strings.Contains(port, ":") {
		return ""
	}
	for _, c := range []byte(port) {
		if c < '0' || c > '9' {
			return ""
		}
	}
	return nameOf(host)
}

// isToken says whether c may be in a token (RFC 9110 §5.6.2).
func isToken(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
