package hello

import (
	"encoding/binary"

	"github.com/vmnetd/vmnetd/flows"
)

const (
	recordHandshake = 22      // RFC 8446 §5.1
	recordFirst     = 20      // change_cipher_spec, the first of the types that are
	recordLast      = 24      // heartbeat (RFC 6520), the last
	recordHead      = 5       // type, version, length
	mostRecord      = 1 << 14 // of plaintext
	clientHelloType = 1       // RFC 8446 §4
	messageHead     = 4       // type, length
)

// tlsStream gathers the first handshake message from the records that it comes in.
type tlsStream struct {
	at      int    // where in the stream the next record starts
	message []byte // what whole records brought of it
}

// look says more as long as it is not known, and then h is what is known so far.
func (t *tlsStream) look(b []byte) (h flows.Hello, more bool) {
	for {
		r := b[t.at:]
		if len(r) > 1 && r[1] != 3 {
			return t.other(), false
		}
		if len(r) > 1 && r[0] != recordHandshake {
			return unclear, false // nothing may come before or between (RFC 8446 §5.1), and some servers pass it over
		}
		if len(r) < recordHead {
			if len(r) > 1 {
				return unclear, true
			}
			return t.other(), true
		}
		n := int(binary.BigEndian.Uint16(r[3:]))
		if n == 0 || n > mostRecord {
			return unclear, false // RFC 8446 §5.1 forbids both
		}
		body := r[recordHead:min(len(r), recordHead+n)]
		whole := len(body) == n
		if whole && t.at == 0 && n >= messageHead && messageLen(body) <= n {
			return clientHelloIn(body), false // as nearly all come: in one record
		}
		if h, ok := t.refuse(body); ok {
			return h, false
		}
		if !whole {
			return unclear, true
		}
		t.message = append(t.message, body...)
		t.at += recordHead + n
		if len(t.message) >= messageHead && len(t.message) >= messageLen(t.message) {
			return clientHelloIn(t.message), false
		}
	}
}

// other is what bytes are that cannot go on as they began.
func (t *tlsStream) other() flows.Hello {
	if t.at == 0 {
		return flows.Hello{}
	}
	return unclear
}

// refuse says at the first byte that shows it that the message is none of ours; body is what follows t.message.
func (t *tlsStream) refuse(body []byte) (h flows.Hello, refused bool) {
	var head [messageHead]byte
	k := copy(head[:], t.message)
	k += copy(head[k:], body)
	switch {
	case k > 0 && head[0] != clientHelloType:
		return t.other(), true
	case k == messageHead && messageLen(head[:]) > messageHead+mostHello:
		return unclear, true
	}
	return h, false
}

// messageLen is a handshake message's length with its head.
func messageLen(b []byte) int {
	return messageHead + (int(b[1])<<16 | int(b[2])<<8 | int(b[3]))
}

func clientHelloIn(message []byte) flows.Hello {
	if message[0] != clientHelloType {
		return flows.Hello{}
	}
	return helloOf(flows.HelloTLS, message[messageHead:messageLen(message)])
}

// helloOf is whom a ClientHello names that came by how.
func helloOf(how flows.HelloKind, hello []byte) flows.Hello {
	name, ok := serverName(hello)
	if !ok {
		return unclear
	}
	return flows.Hello{How: how, Name: name}
}

// lookSSL2 knows the ClientHello of SSL 2.0, in which old clients offer TLS as well (RFC 5246 §E.2): a length with the
// first bit set, the type, and a version. It has no extensions, so no name.
func lookSSL2(b []byte) (flows.Hello, bool) {
	if len(b) > 2 && b[2] != clientHelloType || len(b) > 3 && b[3] != 3 && b[3] != 0 {
		return flows.Hello{}, false
	}
	if len(b) < 5 {
		return flows.Hello{}, true
	}
	if b[3] == 0 && b[4] != 2 {
		return flows.Hello{}, false
	}
	return flows.Hello{How: flows.HelloTLS}, false
}

// fields reads a TLS structure. What is missing makes it bad, and all that it says after is empty.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if n > len(f.b) {
		f.b, f.bad = nil, true
		return nil
	}
	var v []byte
	v, f.b = f.b[:n], f.b[n:]
	return v
}

func (f *fields) number(size int) (n int) {
	for _, c := range f.take(size) {
		n = n<<8 | int(c)
	}
	return n
}

// vector reads what has its length before it, in size bytes.
func (f *fields) vector(size int) (v fields) {
	v.b = f.take(f.number(size))
	v.bad = f.bad
	return v
}

// serverName is the one name of a ClientHello (RFC 8446 §4.1.2), or "" if it has none; false if it could have others.
func serverName(hello []byte) (name string, ok bool) {
	f := fields{b: hello}
	version := f.number(2)
	f.take(32) // random
	session := f.vector(1)
	suites := f.vector(2)
	compressions := f.vector(1)
	if f.bad || version>>8 != 3 || len(session.b) > 32 || len(suites.b) == 0 || len(suites.b)%2 != 0 || len(compressions.b) == 0 {
		return "", false
	}
	if len(f.b) == 0 {
		return "", true // as before there were extensions
	}
	extensions := f.vector(2)
	if f.bad || len(f.b) > 0 {
		return "", false
	}
	for len(extensions.b) > 0 {
		kind := extensions.number(2)
		e := extensions.vector(2)
		if extensions.bad {
			return "", false
		}
		if kind != 0 { // server_name
			continue
		}
		list := e.vector(2)
		nameType := list.number(1) // 0: host_name, the only one there is
		host := list.vector(2)
		if name != "" || e.bad || len(e.b) > 0 || list.bad || len(list.b) > 0 || host.bad || nameType != 0 {
			return "", false
		}
		if name = nameOf(string(host.b)); name == "" {
			return "", false
		}
	}
	return name, true
}
