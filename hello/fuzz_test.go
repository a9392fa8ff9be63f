package hello

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/vmnetd/vmnetd/flows"
)

// FuzzStream holds Stream to what it promises, and to what a server of Go's reads in the same bytes: whoever is let in
// by a name must not be another to the server.
func FuzzStream(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Stream
		h, more := s.Look(b)
		if more && (len(b) >= Most || h != flows.Hello{}) {
			t.Fatalf("%d bytes are not enough: %v", len(b), h)
		}
		if h2, more2, _ := byByte(b); (h2 != h || more2 != more) && len(b) > 0 {
			t.Fatalf("whole: %v, %v; by byte: %v, %v", h, more, h2, more2)
		}
		if h2, more2 := s.Look(append(bytes.Clone(b), b...)); !more && (h2 != h || more2) {
			t.Fatalf("%v became %v, %v", h, h2, more2)
		}
		if h.Name == "" {
			return
		}
		if h.Name != nameOf(h.Name) {
			t.Fatalf("%q is no name", h.Name)
		}
		switch h.How {
		case flows.HelloTLS:
			if name, ok := tlsServerReads(b); ok && nameOf(name) != h.Name && name != "" {
				t.Fatalf("%q, and to a server %q", h.Name, name)
			}
		case flows.HelloHTTP:
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
			if err == nil && hostOf(r.Host) != h.Name && r.Host != "" {
				t.Fatalf("%q, and to a server %q", h.Name, r.Host)
			}
		default:
			t.Fatalf("a name by %v", h.How)
		}
	})
}

// tlsServerReads is the name that crypto/tls gives its user; ok says that it took the message at all.
func tlsServerReads(b []byte) (name string, ok bool) {
	err := tls.Server(&given{r: bytes.NewReader(b)}, &tls.Config{
		MinVersion: tls.VersionTLS10,
		GetConfigForClient: func(c *tls.ClientHelloInfo) (*tls.Config, error) {
			name, ok = c.ServerName, true
			return nil, errors.New("that is all")
		},
	}).Handshake()
	return name, ok && err != nil
}

// given is a conn that holds some bytes and takes all.
type given struct {
	deaf
	r io.Reader
}

func (g *given) Read(b []byte) (int, error) { return g.r.Read(b) }

var _ net.Conn = (*given)(nil)

// FuzzDatagram has datagrams as they come, cut where the first byte of each piece says how long it is.
func FuzzDatagram(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		var d Datagrams
		for looked := 0; len(b) >= 2; {
			n := min(int(b[0])<<8|int(b[1]), len(b)-2)
			datagram := b[2 : 2+n]
			b = b[2+n:]
			if !d.Again(datagram) {
				continue
			}
			h, more := d.Look(datagram)
			check(t, &d, h, more)
			if looked++; !more {
				looked = 0
				if h != (flows.Hello{}) && h.Name != "" && d.Again(datagram) {
					t.Fatal("what was looked at has to be looked at again")
				}
			} else if looked == MostDatagrams {
				t.Fatal("undecided for ever")
			}
		}
	})
}

func check(t *testing.T, d *Datagrams, h flows.Hello, more bool) {
	t.Helper()
	switch {
	case more && h != flows.Hello{}:
		t.Fatalf("%v before it is known", h)
	case h.How != flows.HelloNone && h.How != flows.HelloQUIC && h != unclear || h.How == flows.HelloNone && h.Name != "":
		t.Fatalf("%v", h)
	case h.Name != nameOf(h.Name):
		t.Fatalf("%q is no name", h.Name)
	case len(d.known) > mostKnown:
		t.Fatalf("knows %d", len(d.known))
	case d.hello != nil && (!more || len(d.hello.data) > messageHead+mostHello || len(d.hello.have) > mostSpans):
		t.Fatalf("holds %d bytes in %d spans", len(d.hello.data), len(d.hello.have))
	}
}

// FuzzInitial has the frames of Initial packets, which FuzzDatagram cannot make: it does not know the keys. Each packet's
// length stands before its frames. What is named must be named however a server puts frames that overlap together.
func FuzzInitial(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		var d Datagrams
		var parts []part
		comparable := true
		for number := range uint64(MostDatagrams) {
			if len(b) < 2 {
				return
			}
			n := min(int(b[0])<<8|int(b[1]), len(b)-2, 16000)
			frames := b[2 : 2+n]
			b = b[2+n:]
			got, ok := cryptoIn(frames)
			parts = append(parts, got...)
			comparable = comparable && ok
			h, more := d.Look(initial{version: v1, number: number, frames: frames, pad: 1200}.seal(t))
			check(t, &d, h, more)
			if h.Name != "" && comparable {
				for _, last := range []bool{false, true} {
					whole := together(parts, last)
					if len(whole) < messageHead || len(whole) < messageLen(whole) || helloOf(flows.HelloQUIC, whole[messageHead:messageLen(whole)]) != h {
						t.Fatalf("%q; by another order (%v) %x", h.Name, last, whole)
					}
				}
			}
			if !more {
				return
			}
		}
	})
}

type part struct {
	at int
	b  []byte
}

// cryptoIn reads a packet's CRYPTO frames; ok says that it has none but those and what is passed over.
func cryptoIn(b []byte) (parts []part, ok bool) {
	f := &fields{b: b}
	for len(f.b) > 0 {
		switch varint(f) {
		case framePadding, framePing:
		case frameCrypto:
			at := varint(f)
			n := varint(f)
			b := f.take(clamp(n, len(f.b)))
			if f.bad || at > mostHello+messageHead {
				return parts, false
			}
			parts = append(parts, part{int(at), b})
		default:
			return parts, false
		}
	}
	return parts, true
}

// together puts parts together with the first or the last to say a byte winning.
func together(parts []part, last bool) []byte {
	var data [1 << 16]byte
	var have [1<<16 + 1]bool
	for _, p := range parts {
		for i, c := range p.b {
			if k := p.at + i; k < len(data) && (last || !have[k]) {
				data[k], have[k] = c, true
			}
		}
	}
	n := 0
	for have[n] {
		n++
	}
	return data[:n]
}
