package dhcp

import (
	"fmt"
	"strconv"
	"strings"
)

// maxNumber ends the search for a free NAME-2, NAME-3 and so on. A hundred guests of one name are a fleet
// that nobody addresses by these names.
const maxNumber = 100

// Label makes a DNS label (RFC 1123 section 2.1) of what a client calls itself: the part before the first
// dot, in lower case, with a hyphen for every run of other characters, at most 63 long. It is "" where
// nothing is left.
func Label(name string) string {
	name, _, _ = strings.Cut(name, ".")
	b := make([]byte, 0, 63)
	for i := 0; i < len(name) && len(b) < 63; i++ {
		c := name[i]
		switch {
		case c >= 'A' && c <= 'Z':
			b = append(b, c+'a'-'A')
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			b = append(b, c)
		case c == 0: // RFC 2132 section 2 wants no NUL at the end and has receivers expect it
			i = len(name)
		case len(b) > 0 && b[len(b)-1] != '-':
			b = append(b, '-')
		}
	}
	return strings.TrimRight(string(b), "-")
}

func lower(s string) string { return strings.ToLower(s) }

// name gives a lease that was just bound the name it is known by. The first holder keeps a name until its
// lease ends; the next is numbered. One machine's two families share one name. s.mu is held.
func (s *Server) name(r *record) {
	want := r.host
	if res, ok := s.cfg.Static[r.mac]; ok && res.Hostname != "" {
		want = res.Hostname
	}
	if r.name != "" && (want == "" || want == r.named) && s.nameFree(r.name, r) {
		add(s.names, r.name, r) // sticks, so that no name changes under its users
		return
	}
	s.unname(r)
	r.name, r.named = "", want
	if want == "" {
		return
	}
	for n := 1; n <= maxNumber; n++ {
		c := want
		if n > 1 {
			tail := "-" + strconv.Itoa(n)
			c = strings.TrimRight(want[:min(len(want), 63-len(tail))], "-") + tail
		}
		if s.nameFree(c, r) {
			r.name = c
			add(s.names, c, r)
			return
		}
	}
}

func (s *Server) nameFree(name string, r *record) bool {
	if s.noName[name] {
		return false
	}
	if mac, ok := s.named[name]; ok && mac != r.mac {
		return false
	}
	for o := range s.names[name] {
		if o != r && !o.oneMachine(r) {
			return false
		}
	}
	return true
}

// oneMachine reports whether two leases are one machine's: the same MAC behind the same guest, or behind one
// that is away, for a machine that comes back through another link renews its two families one by one.
func (r *record) oneMachine(o *record) bool {
	return r.mac == o.mac && (r.guest == o.guest || r.away || o.away)
}

// attach notes that a guest is here. Should another with its MAC have taken a name while it was away, that one
// keeps it. s.mu is held.
func (s *Server) attach(t *table, name string) {
	if !t.attach(name) {
		return
	}
	for r := range t.guests[name].records {
		if r.state == Bound && r.name != "" && !s.nameFree(r.name, r) {
			s.name(r)
			s.notify(r, EventRenewed)
		}
	}
}

// unname takes the name of a lease that ends. The record still shows it to the event that follows.
func (s *Server) unname(r *record) {
	if r.name != "" {
		del(s.names, r.name, r)
	}
}

// checkDomain wants a domain name as RFC 1035 section 2.3.4 bounds it, and returns it without the last dot.
func checkDomain(d string) (string, error) {
	d = strings.TrimSuffix(d, ".")
	if d == "" || len(d) > 253 {
		return "", fmt.Errorf("dhcp: domain %q: want 1 to 253 characters", clip(d))
	}
	for l := range strings.SplitSeq(d, ".") {
		if l == "" || len(l) > 63 {
			return "", fmt.Errorf("dhcp: domain %q: want labels of 1 to 63 characters", clip(d))
		}
		for _, c := range []byte(l) {
			if c <= ' ' || c >= 0x7f {
				return "", fmt.Errorf("dhcp: domain %q: want printable ASCII; write an international name in its xn-- form", clip(d))
			}
		}
	}
	return d, nil
}

// compressNames is option 119 (RFC 3397): names in DNS form, a pointer for every tail said before.
func compressNames(names []string) []byte {
	var b []byte
	at := map[string]int{}
	for _, n := range names {
		for {
			if p, ok := at[lower(n)]; ok {
				b = append(b, 0xc0|byte(p>>8), byte(p))
				break
			}
			if len(b) < 1<<14 { // a pointer has 14 bits
				at[lower(n)] = len(b)
			}
			l, rest, more := strings.Cut(n, ".")
			b = append(append(b, byte(len(l))), l...)
			if !more {
				b = append(b, 0)
				break
			}
			n = rest
		}
	}
	return b
}
