package hello

import (
	"bytes"
	"strings"

	"github.com/vmnetd/vmnetd/flows"
)

// mostMethod bounds the first word of a request. The longest that IANA knows is UPDATEREDIRECTREF, 17.
const mostMethod = 32

var httpUnnamed = flows.Hello{How: flows.HelloHTTP}

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
	httpMethod  httpPhase = iota // in the request line's first word, or the empty lines before
	httpTarget                   // in its second
	httpVersion                  // in its third
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
			return httpUnnamed, true
		}
		line := b[p.at : p.scanned+end]
		p.at = p.scanned + end + 1
		p.scanned = p.at
		line = bytes.TrimSuffix(line, []byte{'\r'}) // a server may take a bare LF (RFC 9112 §2.2)
		if len(line) == 0 {
			return p.decide(), false
		}
		if !p.field(line) {
			return httpUnnamed, false
		}
	}
}

// requestLine reads on in the request line. When phase is httpFields after it, the line is done; else the answer
// stands.
func (p *httpStream) requestLine(b []byte) (flows.Hello, bool) {
	for ; p.scanned < len(b); p.scanned++ {
		c := b[p.scanned]
		switch p.phase {
		case httpMethod:
			switch {
			case (c == '\r' || c == '\n') && p.scanned == p.at:
				p.at++ // empty lines before a request are passed over (RFC 9112 §2.2)
			case c == ' ' && p.scanned > p.at:
				p.phase = httpTarget
			case !isToken(c) || p.scanned-p.at >= mostMethod:
				return flows.Hello{}, false
			}
		case httpTarget:
			if c == ' ' {
				p.phase = httpVersion
			} else if c < ' ' || c == 0x7f {
				return flows.Hello{}, false // HTTP/0.9 among them, which knows no hosts
			}
		case httpVersion:
			if c != '\n' {
				word := b[bytes.LastIndexByte(b[p.at:p.scanned], ' ')+p.at+1 : p.scanned+1]
				if !versionSoFar(word) {
					return flows.Hello{}, false
				}
				continue
			}
			line := string(bytes.TrimSuffix(b[p.at:p.scanned], []byte{'\r'}))
			method, rest, _ := strings.Cut(line, " ")
			target, version, _ := strings.Cut(rest, " ")
			if len(version) != len("HTTP/1.1") {
				return flows.Hello{}, false
			}
			p.scanned++
			p.at = p.scanned
			ok := false
			if p.authority, ok = authorityOf(method, target); !ok || version[:7] != "HTTP/1." {
				p.phase = httpMethod // not on to the fields: HTTP/2's preface, and what has no target
				return httpUnnamed, false
			}
			p.phase = httpFields
			return flows.Hello{}, false
		}
	}
	return flows.Hello{}, true
}

// versionSoFar says whether b begins an HTTP-version and its line's end.
func versionSoFar(b []byte) bool {
	const form = "HTTP/0.0\r"
	for i, c := range b {
		switch {
		case i >= len(form):
			return false
		case form[i] == '0':
			if c < '0' || c > '9' {
				return false
			}
		case c != form[i]:
			return false
		}
	}
	return true
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
	h := httpUnnamed
	byTarget, byHost := hostOf(p.authority), hostOf(p.host)
	switch {
	case p.authority == "":
		h.Name = byHost
	case p.hosts == 0 || byHost == byTarget:
		h.Name = byTarget
	}
	return h
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
