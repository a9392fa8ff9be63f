package hello

import "github.com/vmnetd/vmnetd/flows"

// mostHello is the longest ClientHello that is read: one record's worth of plaintext (RFC 8446 §5.1), and what
// BoringSSL's servers take. With post-quantum key shares and a ticket they are 2 KiB long.
const mostHello = 1 << 14

// Most is how many bytes of a stream are looked at: the longest ClientHello, with 1 KiB for the headers of the records
// that it comes in. Requests are cut off before (nginx takes 8 KiB a line, Apache and net/http's clients stay below).
const Most = mostHello + 1<<10

// unclear is what a conversation says that names nobody for sure, and could name anybody to a server.
var unclear = flows.Hello{How: flows.HelloPart}

// A Stream looks at the first bytes of a stream. The zero Stream is ready. It is for one goroutine at a time.
type Stream struct {
	tls  tlsStream
	http httpStream
	said bool
	h    flows.Hello
}

// Look takes all that has come so far: what it was given before, and what came since. more says that this is not
// enough to know; it never is for len(b) >= Most. Looking again costs no more than the bytes that came since, and once
// more is false, nothing. b is not kept.
func (s *Stream) Look(b []byte) (h flows.Hello, more bool) {
	if s.said {
		return s.h, false
	}
	if len(b) == 0 {
		return flows.Hello{}, true
	}
	full := len(b) >= Most
	b = b[:min(len(b), Most)]
	switch {
	case b[0] >= recordFirst && b[0] <= recordLast:
		h, more = s.tls.look(b)
	case b[0]&0x80 != 0:
		h, more = lookSSL2(b)
	default:
		h, more = s.http.look(b)
	}
	if more && !full {
		return flows.Hello{}, true
	}
	s.said, s.h = true, h
	s.tls, s.http = tlsStream{}, httpStream{} // a long conversation need not hold what was gathered
	return h, false
}
