package hello

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/vmnetd/vmnetd/flows"
)

const (
	// MostDatagrams is how many datagrams of a conversation are looked at: the ten that a client may send before it
	// hears from the server (RFC 9002 §7.2), and two probes at each of two timeouts (§6.2.4).
	MostDatagrams = 14

	// leastInitial is how long a datagram with an Initial packet is at the least; servers discard shorter ones
	// (RFC 9000 §14.1).
	leastInitial = 1200
	// mostPackets is how many packets of a datagram are looked at. Clients put an Initial, a 0-RTT and at most a
	// Handshake packet in one.
	mostPackets = 4
	// mostKnown is how many connections between two ports are remembered. Clients have one, and another when the first
	// is given up.
	mostKnown = 4
	// mostID is a connection ID's greatest length, leastID the least of one that a client chose (RFC 9000 §7.2, §17.2).
	mostID, leastID = 20, 8
	// mostSpans is in how many pieces, with gaps between them, a ClientHello may be held: Chrome cuts its own into some
	// ten and shuffles them.
	mostSpans = 64
	// sampleLen is what header protection samples (RFC 9001 §5.4.2).
	sampleLen = 16
)

// quicVersion is what differs between those that are read.
type quicVersion struct {
	salt              []byte
	keyOf, ivOf, hpOf string
	initial           byte // the packet type
}

var quicVersions = map[uint32]*quicVersion{
	// RFC 9001 §5.2
	1: {
		salt:  []byte{0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a},
		keyOf: "quic key", ivOf: "quic iv", hpOf: "quic hp", initial: 0,
	},
	// RFC 9369 §3
	0x6b3343cf: {
		salt:  []byte{0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9, 0xbd, 0x2e, 0xd9},
		keyOf: "quicv2 key", ivOf: "quicv2 iv", hpOf: "quicv2 hp", initial: 1,
	},
}

// Datagrams looks at the datagrams of a conversation over UDP. The zero Datagrams is ready. It is for one goroutine at
// a time. It holds up to 16 KiB until it knows, and up to as much of the hellos that it knows (Holds).
type Datagrams struct {
	said  bool
	h     flows.Hello
	seen  int
	hello *initialStream
	known []known // the latest last
}

// known is a connection whose hello was read whole.
type known struct {
	version *quicVersion
	id      []byte
	hello   []byte
}

// Look takes the next datagram. more says that it takes another one to know; it never is for the one that makes
// MostDatagrams. Once more is false it says the same at once, until Again was true. b is not kept or changed.
//
// A first datagram that is not QUIC's (RFC 9000 §17.2: a long header, its fixed bit set, a version and connection IDs
// that could be) is HelloNone. One of a version that is not read (a draft, Google's own, one made up to see whether the
// server minds) is HelloPart.
func (d *Datagrams) Look(b []byte) (h flows.Hello, more bool) {
	if d.said {
		return d.h, false
	}
	d.seen++
	h, more = d.look(b)
	if more && d.seen < MostDatagrams {
		return flows.Hello{}, true
	}
	if d.hello != nil && d.hello.whole {
		s := d.hello
		d.remember(known{s.version, s.id, slices.Clip(s.data[:messageLen(s.data)])})
	}
	d.said, d.h, d.hello = true, h, nil
	return h, false
}

// Again says, once Look knows, whether a datagram has to be looked at all the same, since it begins a QUIC connection
// as a server sees it: another one from the same port, or the same again with something else in its hello. Look then
// takes it as the first. For all but the few datagrams of a handshake it looks at one byte.
func (d *Datagrams) Again(b []byte) bool {
	if !d.said {
		return true
	}
	if !d.begins(b) {
		return false
	}
	d.said, d.h, d.seen = false, flows.Hello{}, 0
	return true
}

func (d *Datagrams) begins(b []byte) bool {
	for n := 0; ; n++ {
		p, ok := parseLong(b)
		switch {
		case !ok:
			return false
		case p.version == nil || n == mostPackets:
			return true // what is not read could begin one
		case p.isFirst():
			// Of a connection that goes on, the packets go to an ID that the server chose and that opens none of them.
			s := newInitialStream(p.version, p.to)
			_, _, payload, ok := s.unseal(p)
			i := slices.IndexFunc(d.known, func(k known) bool { return k.version == p.version && bytes.Equal(k.id, p.to) })
			if ok && (i < 0 || !s.frames(payload, d.known[i].repeats)) {
				return true
			}
		}
		b = p.rest
	}
}

// repeats says whether a part of a hello is what was read of it before. A second hello, which a server may ask for (RFC
// 8446 §4.1.4), comes behind the first and is not looked at.
func (k known) repeats(at int, part []byte) bool {
	end := min(at+len(part), len(k.hello))
	return at >= len(k.hello) || bytes.Equal(k.hello[at:end], part[:end-at])
}

func (d *Datagrams) remember(k known) {
	// Again finds no other than this under the same ID: the latest is what a server knows it by.
	d.known = slices.DeleteFunc(d.known, func(o known) bool { return o.version == k.version && bytes.Equal(o.id, k.id) })
	d.known = append(d.known, k)
	for len(d.known) > mostKnown || len(d.known) > 1 && d.Holds() > messageHead+mostHello {
		d.known = slices.Delete(d.known, 0, 1)
	}
}

// Holds is how many bytes of hellos are remembered, for Again. A new Datagrams remembers none, and takes each for another.
func (d *Datagrams) Holds() (n int) {
	for _, k := range d.known {
		n += len(k.hello)
	}
	return n
}

func (d *Datagrams) look(b []byte) (h flows.Hello, more bool) {
	p, ok := parseLong(b)
	if d.hello == nil {
		switch {
		case !ok:
			return flows.Hello{}, false
		case p.version == nil || !p.isFirst():
			return unclear, false
		}
		d.hello = newInitialStream(p.version, p.to)
	}
	// A server takes each as the start of a connection of its own: then it could not be said whom this one is for.
	if !ok || p.version != d.hello.version || !bytes.Equal(p.to, d.hello.id) {
		return unclear, false
	}
	for range mostPackets {
		switch {
		case p.kind == p.version.initial:
			if len(b) < leastInitial || !d.hello.open(p) {
				return unclear, false
			}
			if h, d.hello.whole = d.hello.says(); h == unclear {
				d.hello.whole = false
				return h, false
			}
		case p.kind == 3-3*p.version.initial: // Retry (3, or 0 in version 2), which only servers send
			return unclear, false
		}
		if p, ok = parseLong(p.rest); !ok {
			// Padding after the packets, or a short header.
			if d.hello.whole {
				return h, false
			}
			return unclear, true
		}
		if p.version != d.hello.version || !bytes.Equal(p.to, d.hello.id) {
			break // a server should leave it aside (RFC 9000 §12.2)
		}
	}
	d.hello.whole = false
	return unclear, false
}

// longPacket is a packet with a long header (RFC 9000 §17.2), its protection in place.
type longPacket struct {
	version *quicVersion // nil: one that is not read
	kind    byte
	to      []byte
	token   bool   // there is one
	whole   []byte // header and payload
	number  int    // where in whole the packet number is
	rest    []byte // of the datagram
}

// isFirst says whether a packet may begin a connection: the client chose the ID, or a server did in a Retry.
func (p *longPacket) isFirst() bool {
	return p.kind == p.version.initial && (len(p.to) >= leastID || p.token)
}

// parseLong reads a packet's header. Of versions that are not read it has no more than that they could be QUIC's.
func parseLong(b []byte) (p longPacket, ok bool) {
	if len(b) < 7 || b[0]&0xc0 != 0xc0 {
		return p, false
	}
	v := binary.BigEndian.Uint32(b[1:])
	f := &fields{b: b[5:]}
	to, from := f.vector(1).b, f.vector(1).b
	if f.bad || len(to) > mostID || len(from) > mostID {
		return p, false
	}
	p = longPacket{version: quicVersions[v], kind: b[0] >> 4 & 3, to: to}
	if p.version == nil {
		return p, plausible(v)
	}
	if p.kind == p.version.initial {
		token := varint(f)
		p.token = token > 0
		f.take(clamp(token, len(f.b)))
	}
	n := varint(f)
	if f.bad || n > uint64(len(f.b)) {
		return p, false
	}
	p.number = len(b) - len(f.b)
	p.whole, p.rest = b[:p.number+int(n)], f.b[n:]
	return p, true
}

// plausible says whether a version is one that was in use, or is kept for trying (RFC 9000 §15): drafts of the
// standard, and Google's before it, which are letters and digits.
func plausible(v uint32) bool {
	return v&0xffffff00 == 0xff000000 || v&0x0f0f0f0f == 0x0a0a0a0a || v>>24 == 'Q' || v>>24 == 'T'
}

// varint reads a variable-length integer (RFC 9000 §16).
func varint(f *fields) uint64 {
	first := f.take(1)
	if f.bad {
		return 0
	}
	v := uint64(first[0] & 0x3f)
	for _, c := range f.take(1<<(first[0]>>6) - 1) {
		v = v<<8 | uint64(c)
	}
	return v
}

// clamp makes a length an int that is beyond what is there if v is.
func clamp(v uint64, there int) int { return int(min(v, uint64(there)+1)) }

// initialStream is what a client's Initial packets carry of its ClientHello.
type initialStream struct {
	version *quicVersion
	id      []byte
	hp      cipher.Block
	aead    cipher.AEAD
	iv      []byte
	numbers []uint64 // packets that were opened; RFC 9000 §12.3: no number twice
	largest uint64
	data    []byte // from the stream's start; bytes that have not come are zero
	have    []span // sorted, neither overlapping nor touching; mostSpans at most
	whole   bool   // the hello is there, and could be for nobody else
}

// span is [from, to).
type span struct{ from, to int }

// newInitialStream derives the client's keys from its first destination connection ID (RFC 9001 §5.2).
func newInitialStream(v *quicVersion, id []byte) *initialStream {
	// None of these fails: the lengths are those of the ciphers.
	initial, _ := hkdf.Extract(sha256.New, id, v.salt)
	client := expandLabel(initial, "client in", sha256.Size)
	block, _ := aes.NewCipher(expandLabel(client, v.keyOf, 16))
	aead, _ := cipher.NewGCM(block)
	hp, _ := aes.NewCipher(expandLabel(client, v.hpOf, 16))
	return &initialStream{version: v, id: bytes.Clone(id), hp: hp, aead: aead, iv: expandLabel(client, v.ivOf, 12)}
}

// expandLabel is HKDF-Expand-Label of RFC 8446 §7.1, without a context.
func expandLabel(secret []byte, label string, n int) []byte {
	info := "\x00" + string(rune(n)) + string(rune(len("tls13 ")+len(label))) + "tls13 " + label + "\x00"
	out, _ := hkdf.Expand(sha256.New, secret, info, n)
	return out
}

// unseal takes the protection off a packet (RFC 9001 §5.4.1); false if it was not made with these keys.
func (s *initialStream) unseal(p longPacket) (first byte, number uint64, payload []byte, ok bool) {
	if len(p.whole) < p.number+4+sampleLen {
		return 0, 0, nil, false
	}
	var mask [aes.BlockSize]byte
	s.hp.Encrypt(mask[:], p.whole[p.number+4:][:sampleLen])
	first = p.whole[0] ^ mask[0]&0x0f
	n := int(first&3) + 1
	head := bytes.Clone(p.whole[:p.number+n])
	head[0] = first
	var short uint64
	for i := range n {
		head[p.number+i] ^= mask[1+i]
		short = short<<8 | uint64(head[p.number+i])
	}
	number = s.wholeNumber(short, n)
	nonce := bytes.Clone(s.iv)
	for i := range 8 {
		nonce[len(nonce)-1-i] ^= byte(number >> (8 * i))
	}
	payload, err := s.aead.Open(nil, nonce, p.whole[p.number+n:], head)
	return first, number, payload, err == nil
}

// open reads a packet's frames; false if a server would not, or could read something else in it.
func (s *initialStream) open(p longPacket) bool {
	first, number, payload, ok := s.unseal(p)
	// The reserved bits must be 0 (RFC 9000 §17.2), and a server takes the first of two packets of a number only.
	if !ok || first&0x0c != 0 || len(payload) == 0 || slices.Contains(s.numbers, number) {
		return false
	}
	s.numbers = append(s.numbers, number)
	s.largest = max(s.largest, number)
	return s.frames(payload, s.put)
}

// wholeNumber fills in what a packet number's sender left out (RFC 9000 §A.3).
func (s *initialStream) wholeNumber(short uint64, n int) uint64 {
	if len(s.numbers) == 0 {
		return short
	}
	want, window := s.largest+1, uint64(1)<<(8*n)
	v := want&^(window-1) | short
	switch {
	case v+window/2 <= want:
		return v + window
	case v > want+window/2 && v >= window:
		return v - window
	}
	return v
}

// The frames that an Initial packet may hold (RFC 9000 §12.4, §17.2.2).
const (
	framePadding  = 0x00
	framePing     = 0x01
	frameACK      = 0x02
	frameACKECN   = 0x03
	frameCrypto   = 0x06
	frameClose    = 0x1c
	mostACKRanges = 32 // in what a client sends before it has seen much
)

// frames gives a packet's CRYPTO frames to take; false if it does not want one, or there is what comes with no hello.
func (s *initialStream) frames(payload []byte, take func(at int, part []byte) bool) bool {
	f := &fields{b: payload}
	for len(f.b) > 0 {
		switch kind := varint(f); kind {
		case framePadding:
			f.b = bytes.TrimLeft(f.b, "\x00")
		case framePing:
		case frameACK, frameACKECN:
			varint(f) // largest
			varint(f) // delay
			ranges := varint(f)
			if ranges > mostACKRanges {
				return false
			}
			varint(f)
			for range 2 * ranges {
				varint(f)
			}
			if kind == frameACKECN {
				varint(f)
				varint(f)
				varint(f)
			}
		case frameCrypto:
			offset := varint(f)
			n := varint(f)
			part := f.take(clamp(n, len(f.b)))
			if f.bad || offset > messageHead+mostHello || !take(int(offset), part) {
				return false
			}
		default: // CONNECTION_CLOSE among them: nobody is said hello to
			return false
		}
		if f.bad {
			return false
		}
	}
	return true
}

// put keeps a part of the stream; false if it says otherwise than what came before, or is too much.
func (s *initialStream) put(at int, part []byte) bool {
	end := at + len(part)
	if end > messageHead+mostHello {
		return false
	}
	if len(part) == 0 {
		return true
	}
	if end > len(s.data) {
		s.data = append(s.data, make([]byte, end-len(s.data))...)
	}
	// The part becomes one span with those that it overlaps or touches, and must say the same where they overlap.
	i, _ := slices.BinarySearchFunc(s.have, at, func(h span, at int) int { return h.to - at })
	j := i
	joined := span{at, end}
	for ; j < len(s.have) && s.have[j].from <= end; j++ {
		h := s.have[j]
		if from, to := max(h.from, at), min(h.to, end); from < to && !bytes.Equal(s.data[from:to], part[from-at:to-at]) {
			return false
		}
		joined.from, joined.to = min(joined.from, h.from), max(joined.to, h.to)
	}
	copy(s.data[at:], part)
	s.have = slices.Replace(s.have, i, j, joined)
	return len(s.have) <= mostSpans
}

// says is whom the ClientHello names, once it is there.
func (s *initialStream) says() (h flows.Hello, whole bool) {
	if len(s.have) == 0 || s.have[0].from > 0 {
		return h, false
	}
	b := s.data[:s.have[0].to]
	switch {
	case b[0] != clientHelloType:
		return unclear, true
	case len(b) < messageHead:
		return h, false
	}
	n := messageLen(b)
	switch {
	case n > messageHead+mostHello:
		return unclear, true
	case len(b) < n:
		return h, false
	}
	return helloOf(flows.HelloQUIC, b[messageHead:n]), true
}
