package hello

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/vmnetd/vmnetd/flows"
)

// After a connection's hello was read, its client's other packets pass, and what begins another one is looked at.
func TestAgain(t *testing.T) {
	hello, other := message(sni("a.example"), ext(21, make([]byte, 300))), message(sni("b.example"), ext(21, make([]byte, 300)))
	a, b := named(flows.HelloQUIC, "a.example"), named(flows.HelloQUIC, "b.example")
	const id, server = "8394c8f03e515708", "5151515151515151"
	packet := func(edit func(*initial)) []byte {
		p := initial{version: v1, to: id, number: 5, pad: 1200, frames: crypto(0, hello)}
		edit(&p)
		return p.seal(t)
	}
	to := func(b []byte, id string) []byte { // keys stay those of the first ID
		b = bytes.Clone(b)
		copy(b[6:], unhex(t, id))
		return b
	}
	zeroRTT := append([]byte{0xd0, 0, 0, 0, 1, 8, 0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08, 0, 0x41, 0}, bytes.Repeat([]byte{0}, 256)...)
	for _, tt := range []struct {
		name  string
		b     []byte
		again bool
		want  flows.Hello
	}{
		{"the hello again", packet(func(p *initial) {}), false, a},
		{"a part of it", packet(func(p *initial) { p.frames = crypto(40, hello[40:90]) }), false, a},
		{"a ping", packet(func(p *initial) { p.frames = []byte{framePing} }), false, a},
		{"an acknowledgement", to(packet(func(p *initial) { p.frames = []byte{frameACK, 0, 0, 0, 0} }), server), false, a},
		{"a second hello behind the first", packet(func(p *initial) { p.frames = crypto(len(hello), hello) }), false, a},
		{"spoilt", packet(func(p *initial) { p.spoil = true }), false, a},
		{"handshake", append([]byte{0xe0}, packet(func(p *initial) {})[1:]...), false, a},
		{"0-RTT", zeroRTT, false, a},
		{"short header", []byte{0x41, 1, 2, 3}, false, a},
		{"nothing", nil, false, a},
		{"no QUIC", []byte("hello"), false, a},

		{"another connection", packet(func(p *initial) { p.to, p.frames = "0102030405060708", crypto(0, other) }), true, b},
		{"another, alike", packet(func(p *initial) { p.to = "0102030405060708" }), true, a},
		{"another, of the other version", packet(func(p *initial) { p.version, p.frames = v2, crypto(0, other) }), true, b},
		{"another behind 0-RTT", append(bytes.Clone(zeroRTT), packet(func(p *initial) { p.to = "0102030405060708" })...), true, unclear},
		{"the same ID with another hello", packet(func(p *initial) { p.frames = crypto(0, other) }), true, b},
		{"after a retry, to a short ID", packet(func(p *initial) { p.to, p.token = "01020304", []byte{1, 2, 3} }), true, a},
		{"a version that is not read", append([]byte{0xc0, 0xff, 0, 0, 29, 8}, bytes.Repeat([]byte{0}, 1200)...), true, unclear},
		{"too many packets", bytes.Repeat(zeroRTT, mostPackets+1), true, unclear},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var d Datagrams
			if !d.Again(tt.b) {
				t.Error("before anything was looked at")
			}
			if h, more := d.Look(packet(func(p *initial) { p.number = 0 })); h != a || more {
				t.Fatalf("%v, %v", h, more)
			}
			if got := d.Again(tt.b); got != tt.again {
				t.Errorf("%v, want %v", got, tt.again)
			}
			if h, more := d.Look(tt.b); h != tt.want || more {
				t.Errorf("%v, %v; want %v", h, more, tt.want)
			}
		})
	}
	t.Run("after another protocol", func(t *testing.T) {
		var d Datagrams
		d.Look([]byte("hello"))
		first := packet(func(p *initial) {})
		if d.Again([]byte("hello again")) || !d.Again(first) {
			t.Error("not so")
		}
		if h, more := d.Look(first); h != a || more {
			t.Errorf("%v, %v", h, more)
		}
	})
	t.Run("the same ID with the first hello again", func(t *testing.T) {
		var d Datagrams
		first, second := packet(func(p *initial) {}), packet(func(p *initial) { p.frames = crypto(0, other) })
		d.Look(first)
		for range 2 {
			if !d.Again(second) {
				t.Error("not the second")
			}
			d.Look(second)
			if d.Again(second) || !d.Again(first) {
				t.Error("not the first")
			}
			d.Look(first)
		}
	})
	t.Run("what is remembered is bounded", func(t *testing.T) {
		big := message(sni("a.example"), ext(21, bytes.Repeat([]byte{0}, 1000)))
		var d Datagrams
		for i := range 50 {
			first := packet(func(p *initial) { p.to, p.frames = fmt.Sprintf("%016x", i), crypto(0, big) })
			if i > 0 && !d.Again(first) {
				t.Fatalf("connection %d is none", i)
			}
			d.Look(first)
			if d.Again(first) {
				t.Fatalf("connection %d is another", i)
			}
		}
		if len(d.known) != mostKnown || d.Holds() != mostKnown*len(big) {
			t.Errorf("%d are known, with %d bytes", len(d.known), d.Holds())
		}
	})
}

func TestAgainOfClients(t *testing.T) {
	for name, datagrams := range clients(t) {
		var d Datagrams
		more := true
		for i, b := range datagrams {
			if more {
				_, more = d.Look(b)
			} else if d.Again(b) {
				t.Errorf("%s: datagram %d, which repeats, is taken for another connection", name, i)
			}
		}
	}
}
