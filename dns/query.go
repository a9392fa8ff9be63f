package dns

import (
	"encoding/binary"
	"errors"

	wire "github.com/miekg/dns"
)

const (
	headerLen = 12 // RFC 1035 section 4.1.1

	// What a UDP answer may weigh however much the guest says it can take:
	// the IPv6 minimum MTU of 1280 (RFC 8200 section 5) less 40 of IPv6 and
	// 8 of UDP, so that no answer is ever fragmented whatever MTU the
	// virtual network has, and a guest gets little more out than it put in.
	maxUDPAnswer = 1232
	// What a client without EDNS takes, and the least that a client with
	// EDNS can ask for (RFC 1035 section 4.2.1, RFC 6891 section 6.2.3).
	minUDPAnswer = wire.MinMsgSize
)

// query is one guest's question, checked. raw is what goes upstream.
type query struct {
	raw    []byte // the whole message, ours to change
	name   string // as the guest wrote it, in presentation form
	key    string // the same, fully qualified and in lower case
	qtype  uint16
	class  uint16
	qend   int // where the question section ends in raw
	optAt  int // where the OPT record starts in raw; 0: none
	signed bool
}

func (q *query) id() uint16   { return binary.BigEndian.Uint16(q.raw) }
func (q *query) hasOPT() bool { return q.optAt > 0 }

// An OPT record is a zero byte for the root name, 2 of type, then the size
// where others have a class, then extended code, version and flags where
// others have a TTL (RFC 6891 section 6.1.2).
func (q *query) udpSize() int {
	if !q.hasOPT() {
		return minUDPAnswer
	}
	return int(binary.BigEndian.Uint16(q.raw[q.optAt+3:]))
}
func (q *query) ednsVersion() byte { return q.raw[q.optAt+6] }
func (q *query) wantsDNSSEC() bool { return q.hasOPT() && q.raw[q.optAt+7]&0x80 != 0 }

// limit is the largest answer that may go back in one datagram.
func (q *query) limit() int {
	return min(max(q.udpSize(), minUDPAnswer), maxUDPAnswer)
}

// An errRefusal is a message that deserves an answer but no look at its name.
type errRefusal struct {
	rcode int
	why   string
}

func (e errRefusal) Error() string { return e.why }

var (
	errShort    = errors.New("shorter than a DNS header")
	errResponse = errors.New("a response, not a query")
)

func formErr(why string) error { return errRefusal{wire.RcodeFormatError, why} }

// parseQuery checks all of a guest's message, so that nothing odd reaches
// the host's resolvers, and copies it. It walks the records once and follows
// no compression pointer: a hostile message costs what its length costs.
func parseQuery(msg []byte) (*query, error) {
	if len(msg) < headerLen {
		return nil, errShort
	}
	if msg[2]&0x80 != 0 {
		return nil, errResponse
	}
	if opcode := int(msg[2]>>3) & 0xf; opcode != wire.OpcodeQuery {
		return nil, errRefusal{wire.RcodeNotImplemented, "not opcode QUERY"}
	}
	if binary.BigEndian.Uint16(msg[4:]) != 1 {
		return nil, formErr("not exactly one question")
	}
	end, err := questionEnd(msg)
	if err != nil {
		return nil, err
	}
	// The question's name holds no pointer, so this reads [12, end).
	name, _, err := wire.UnpackDomainName(msg, headerLen)
	if err != nil {
		return nil, formErr("bad name in the question")
	}
	q := &query{
		name:  name,
		key:   wire.CanonicalName(name),
		qtype: binary.BigEndian.Uint16(msg[end-4:]),
		class: binary.BigEndian.Uint16(msg[end-2:]),
		qend:  end,
	}
	q.raw = append([]byte(nil), msg...)
	answers, authority := binary.BigEndian.Uint16(msg[6:]), binary.BigEndian.Uint16(msg[8:])
	if answers != 0 || authority != 0 && q.qtype != wire.TypeIXFR {
		// IXFR alone has an authority section, with the SOA that it holds
		// (RFC 1995 section 3).
		return nil, formErr("answers in a query")
	}
	at := end
	for range int(authority) + int(binary.BigEndian.Uint16(msg[10:])) {
		start := at
		if at, err = skipName(msg, at); err != nil {
			return nil, err
		}
		if len(msg)-at < 10 {
			return nil, formErr("a record is cut short")
		}
		switch binary.BigEndian.Uint16(msg[at:]) {
		case wire.TypeOPT:
			// RFC 6891 section 6.1.1: one, and its name is the root.
			if q.hasOPT() || msg[start] != 0 {
				return nil, formErr("more than one OPT record, or one with a name")
			}
			q.optAt = start
		case wire.TypeTSIG, wire.TypeSIG:
			q.signed = true
		}
		at += 10 + int(binary.BigEndian.Uint16(msg[at+8:]))
		if at > len(msg) {
			return nil, formErr("a record is cut short")
		}
	}
	if at != len(msg) {
		return nil, formErr("bytes after the last record")
	}
	return q, nil
}

// questionEnd finds the end of the only question of msg. Its name may hold
// no pointer: there is nothing before it to point at.
func questionEnd(msg []byte) (int, error) {
	at := headerLen
	for {
		if at >= len(msg) {
			return 0, formErr("the question is cut short")
		}
		n := int(msg[at])
		at++
		if n == 0 {
			break
		}
		if n > 63 {
			return 0, formErr("a label of the question is too long or a pointer")
		}
		at += n
		if at-headerLen > 254 { // RFC 1035 section 2.3.4: 255 with the root's zero
			return 0, formErr("the question's name is too long")
		}
	}
	if len(msg)-at < 4 {
		return 0, formErr("the question is cut short")
	}
	return at + 4, nil
}

func skipName(msg []byte, at int) (int, error) {
	for at < len(msg) {
		n := int(msg[at])
		switch {
		case n == 0:
			return at + 1, nil
		case n >= 0xc0:
			return at + 2, nil // past the end is the caller's to see
		case n > 63:
			return 0, formErr("a label of a reserved kind")
		}
		at += 1 + n
	}
	return 0, formErr("a name is cut short")
}

// sameQuestion says whether an upstream's message asks what q asks, letter
// case aside: some resolvers fold it.
func (q *query) sameQuestion(msg []byte) bool {
	if len(msg) < q.qend || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return false
	}
	for i := headerLen; i < q.qend; i++ {
		a, b := q.raw[i], msg[i]
		if a == b {
			continue
		}
		// Only letters of the name may differ, and only in case. A length
		// octet is at most 63 and so never a letter.
		if i >= q.qend-4 || a|0x20 != b|0x20 || a|0x20 < 'a' || a|0x20 > 'z' {
			return false
		}
	}
	return true
}

// answer begins a reply of our own.
func (q *query) answer(rcode int) *wire.Msg {
	m := &wire.Msg{
		MsgHdr: wire.MsgHdr{
			Id:                 q.id(),
			Response:           true,
			RecursionDesired:   q.raw[2]&0x01 != 0,
			RecursionAvailable: true,
			CheckingDisabled:   q.raw[3]&0x10 != 0,
			Rcode:              rcode,
		},
		Compress: true,
		Question: []wire.Question{{Name: q.name, Qtype: q.qtype, Qclass: q.class}},
	}
	if q.hasOPT() {
		m.SetEdns0(maxUDPAnswer, q.wantsDNSSEC())
	}
	return m
}

// explain adds a reason that dig and resolvectl show (RFC 8914).
func explain(m *wire.Msg, code uint16, why string) {
	if opt := m.IsEdns0(); opt != nil {
		opt.Option = append(opt.Option, &wire.EDNS0_EDE{InfoCode: code, ExtraText: why})
	}
}

// pack turns a reply of our own into bytes.
func (q *query) pack(m *wire.Msg) []byte {
	raw, err := m.Pack()
	if err != nil {
		// Only a record that cannot be written gets here, which Add refuses.
		return headerAnswer(q.raw, wire.RcodeServerFailure)
	}
	return raw
}

// headerAnswer refuses a message whose question was not read.
func headerAnswer(msg []byte, rcode int) []byte {
	h := make([]byte, headerLen)
	copy(h, msg[:4])
	h[2] = h[2]&0x79 | 0x80        // opcode and RD kept, QR set
	h[3] = 0x80 | byte(rcode)&0x0f // RA
	return h
}

// finish makes raw the guest's: its ID, its question to the letter (0x20
// spelling included), and no more bytes than the guest's way back takes.
func (q *query) finish(raw []byte, limit int) []byte {
	copy(raw, q.raw[:2])
	if q.sameQuestion(raw) {
		copy(raw[headerLen:], q.raw[headerLen:q.qend])
	}
	if len(raw) <= limit {
		return raw
	}
	var m wire.Msg
	if m.Unpack(raw) == nil {
		m.Compress = true
		m.Truncate(limit)
		if out, err := m.Pack(); err == nil && len(out) <= limit {
			copy(out[headerLen:], q.raw[headerLen:q.qend])
			return out
		}
	}
	// A message that we cannot cut at a record's edge: its head says to come
	// back over TCP.
	out := append([]byte(nil), raw[:q.qend]...)
	out[2] |= 0x02 // TC
	copy(out[4:], []byte{0, 1, 0, 0, 0, 0, 0, 0})
	return out
}
