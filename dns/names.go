package dns

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	wire "github.com/miekg/dns"
)

// Names has a say in which names a guest resolves and which addresses it
// gets for them. It is asked by several goroutines and must not wait.
type Names interface {
	// Judge is asked before a guest's question is answered, be the name local
	// or the world's. name is in lower case, without the final dot.
	Judge(guest, name string, qtype uint16) Ruling
	// Answered is told, before the guest is, the addresses of the name that it
	// asked for, those that aliases lead to included, and returns the ones
	// that the guest may have. ttl is the least on the way to them; local says
	// that nobody upstream was asked.
	Answered(guest, name string, addrs []netip.Addr, ttl time.Duration, local bool) []netip.Addr
}

// Ruling is what Names say of a question.
type Ruling int

const (
	Allow   Ruling = iota
	Missing        // NXDOMAIN, as if the name did not exist
	Refuse         // REFUSED
)

// names returns who has a say now, nil for nobody.
func (s *Server) names() Names {
	if s.who == nil {
		return nil
	}
	return s.who()
}

// judge returns the answer to a question that its guest may not ask, or nil.
func (s *Server) judge(guest string, q *query) *wire.Msg {
	names := s.names()
	if names == nil {
		return nil
	}
	rule := Missing
	// A label with a dot in it, or with what is no letter of a host's name,
	// could pass for a name that it is not: "a\.example.com" lies in com.
	if !strings.Contains(q.key, `\`) {
		rule = names.Judge(guest, strings.TrimSuffix(q.key, "."), q.qtype)
	}
	if rule == Allow {
		return nil
	}
	s.refused.Add(1)
	rcode := wire.RcodeNameError
	if rule == Refuse {
		rcode = wire.RcodeRefused
	}
	// Without an SOA, no resolver in the guest keeps it (RFC 2308 section 5):
	// the policy may change.
	m := q.answer(rcode)
	explain(m, wire.ExtendedErrorCodeBlocked, "not allowed by policy")
	return m
}

// siftRaw does the same as sift to a message from upstream. Bytes that need
// no change have none.
func (s *Server) siftRaw(guest string, q *query, raw []byte) []byte {
	names := s.names()
	if names == nil && s.told == nil {
		return raw
	}
	var m wire.Msg
	err := m.Unpack(raw)
	if names == nil || err == nil && !s.sift(names, guest, q, &m, false) {
		if err == nil {
			s.tell(guest, q, &m)
		}
		return raw
	}
	if err == nil {
		s.tell(guest, q, &m)
		m.Compress = true
		raw, err = m.Pack()
	}
	if err != nil { // what cannot be read cannot be judged
		s.servfail.Add(1)
		return s.fail(q, wire.ExtendedErrorCodeInvalidData, "the answer cannot be read")
	}
	return raw
}

// sift takes out of an answer what its guest may not have, and what would
// lead it past those who judge names:
//
//   - addresses that names does not leave it, and those of names that it did
//     not ask for, in the additional section too;
//   - of HTTPS and SVCB records (RFC 9460) the address hints, the keys of
//     Encrypted Client Hello, so that the name in it stays to be seen, and
//     whole records that lead to another name. A client does without.
//
// It says whether anything was.
func (s *Server) sift(names Names, guest string, q *query, m *wire.Msg, local bool) (changed bool) {
	ways := aliases(q.key, m.Answer)
	addrs, least := addresses(ways, m)
	var may []netip.Addr
	if len(addrs) > 0 {
		may = names.Answered(guest, strings.TrimSuffix(q.key, "."), addrs, time.Duration(least)*time.Second, local)
	}

	touched := map[uint16]bool{} // types of which something was taken
	m.Answer = slices.DeleteFunc(m.Answer, func(rr wire.RR) bool {
		kind := rr.Header().Rrtype
		out := false
		switch rr := rr.(type) {
		case *wire.A, *wire.AAAA:
			a, ok := rrAddr(rr)
			_, asked := ways[wire.CanonicalName(rr.Header().Name)]
			out = !ok || !asked || !slices.Contains(may, a.Unmap())
			if out {
				s.removed.Add(1)
			}
		case *wire.SVCB:
			out = elsewhere(rr)
			touched[kind] = plain(rr) || touched[kind]
		case *wire.HTTPS:
			out = elsewhere(&rr.SVCB)
			touched[kind] = plain(&rr.SVCB) || touched[kind]
		}
		touched[kind] = out || touched[kind]
		return out
	})
	aside := func(rr wire.RR) bool { // nothing that was asked for
		switch rr.(type) {
		case *wire.A, *wire.AAAA, *wire.SVCB, *wire.HTTPS:
			changed = true
			return true
		}
		return false
	}
	m.Ns = slices.DeleteFunc(m.Ns, aside)
	m.Extra = slices.DeleteFunc(m.Extra, aside)
	for _, t := range touched {
		changed = changed || t
	}
	if changed {
		// No signature holds any more, and nobody has validated this.
		m.Answer = slices.DeleteFunc(m.Answer, func(rr wire.RR) bool {
			sig, ok := rr.(*wire.RRSIG)
			return ok && touched[sig.TypeCovered]
		})
		m.AuthenticatedData = false
	}
	return changed
}

// addresses are those that an answer has for any of ways, and the least TTL
// on the way to them.
func addresses(ways map[string]uint32, m *wire.Msg) (addrs []netip.Addr, least uint32) {
	least = 1<<32 - 1
	for _, rr := range m.Answer {
		if a, ok := rrAddr(rr); ok {
			if ttl, ok := ways[wire.CanonicalName(rr.Header().Name)]; ok {
				least = min(least, ttl, rr.Header().Ttl)
				if a = a.Unmap(); !slices.Contains(addrs, a) {
					addrs = append(addrs, a)
				}
			}
		}
	}
	return addrs, least
}

// tell says what a guest is about to be told, if anybody wants to hear it.
func (s *Server) tell(guest string, q *query, m *wire.Msg) {
	if s.told == nil {
		return
	}
	if addrs, _ := addresses(aliases(q.key, m.Answer), m); len(addrs) > 0 {
		s.told(guest, strings.TrimSuffix(q.key, "."), addrs)
	}
}

// aliases returns the names that key stands for by way of an answer's CNAME
// records, itself included, each with the least TTL on the way to it.
func aliases(key string, answer []wire.RR) map[string]uint32 {
	next := map[string]*wire.CNAME{}
	for _, rr := range answer {
		if c, ok := rr.(*wire.CNAME); ok {
			next[wire.CanonicalName(c.Hdr.Name)] = c
		}
	}
	ways := map[string]uint32{}
	for ttl := uint32(1<<32 - 1); ; {
		if _, ring := ways[key]; ring {
			return ways
		}
		ways[key] = ttl
		c := next[key]
		if c == nil {
			return ways
		}
		ttl = min(ttl, c.Hdr.Ttl)
		key = wire.CanonicalName(c.Target)
	}
}

// elsewhere says whether a record leads to another name than its own: an
// alias, or another target (RFC 9460 sections 2.4.2 and 2.5).
func elsewhere(rr *wire.SVCB) bool {
	return rr.Priority == 0 || rr.Target != "." && wire.CanonicalName(rr.Target) != wire.CanonicalName(rr.Hdr.Name)
}

// plain takes a record's hints and keys out, and says whether there were any.
func plain(rr *wire.SVCB) bool {
	goes := func(k wire.SVCBKey) bool {
		return k == wire.SVCB_IPV4HINT || k == wire.SVCB_IPV6HINT || k == wire.SVCB_ECHCONFIG
	}
	n := len(rr.Value)
	rr.Value = slices.DeleteFunc(rr.Value, func(v wire.SVCBKeyValue) bool { return goes(v.Key()) })
	if len(rr.Value) == n {
		return false
	}
	rr.Value = slices.DeleteFunc(rr.Value, func(v wire.SVCBKeyValue) bool {
		must, ok := v.(*wire.SVCBMandatory) // may not name what is not there (RFC 9460 section 8)
		if ok {
			must.Code = slices.DeleteFunc(must.Code, goes)
		}
		return ok && len(must.Code) == 0
	})
	return true
}
