package dns

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A panic in what works for a guest is told of with the guest and its stack, where it happened. Its question stays
// without answer, another guest's gets one, and the server ends.
func TestPanicked(t *testing.T) {
	type bug struct {
		guest, what, stack string
		value              any
	}
	var mu sync.Mutex
	var bugs []bug
	s, err := New(Config{
		Resolvers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")},
		Gateway:   []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Dial: func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
			panic("a bug in dial")
		},
		Panicked: func(guest, what string, value any, stack []byte) {
			mu.Lock()
			defer mu.Unlock()
			bugs = append(bugs, bug{guest, what, string(stack), value})
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	question := append(head(0x0100, 1), qExample...)
	if !s.HandleUDP(t.Context(), "victim", question, func([]byte) { t.Error("it has an answer") }) {
		t.Error("nobody was asked")
	}
	near, far := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.ServeConn(t.Context(), "victim", far)
	}()
	near.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := near.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(question))), question...)); err != nil {
		t.Fatal(err)
	}
	// Names that are known here are answered meanwhile.
	answered := make(chan bool, 1)
	if s.HandleUDP(t.Context(), "bystander", append(head(0x0100, 1), "\x07gateway\x08internal\x00\x00\x01\x00\x01"...), func([]byte) { answered <- true }) {
		t.Fatal("what is known here is asked elsewhere")
	}
	<-answered
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		mu.Lock()
		n := len(bugs)
		mu.Unlock()
		if n == 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("told of %d", n)
		}
	}
	near.Close()
	<-served
	if err := s.Close(); err != nil { // hangs if somebody is not counted out
		t.Error(err)
	}
	for _, b := range bugs {
		if b.guest != "victim" || b.value != "a bug in dial" || !strings.Contains(b.stack, "bug_test.go") {
			t.Errorf("told of %q, %q, %v at %s", b.guest, b.what, b.value, b.stack)
		}
	}
}

// readMessage's framing: what comes back is what was announced, and a length costs no memory.
func FuzzReadMessage(f *testing.F) {
	framed := func(b ...byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	f.Add([]byte{}, uint8(1))
	f.Add(framed(head(0x0100, 1)...), uint8(3))
	f.Add(slices.Concat(framed(1, 2, 3), framed(), framed(4)), uint8(2))
	f.Add([]byte{0xff, 0xff, 1, 2}, uint8(200))
	f.Add([]byte{0}, uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		c := &cutConn{b: b, cut: int(cut) + 1}
		for {
			before := len(b) - len(c.b)
			msg, err := readMessage(c)
			if cap(msg) > 4*(len(msg)+minUDPAnswer) {
				t.Fatalf("%d bytes held for %d", cap(msg), len(msg))
			}
			rest := b[before:]
			if len(rest) < 2 || len(rest) < 2+int(binary.BigEndian.Uint16(rest)) {
				if err == nil {
					t.Fatal("a message that has not come")
				}
				return
			}
			want := rest[2 : 2+int(binary.BigEndian.Uint16(rest))]
			if err != nil || !slices.Equal(msg, want) {
				t.Fatalf("%x, %v, want %x", msg, err, want)
			}
		}
	})
}

// cutConn gives its bytes in pieces.
type cutConn struct {
	net.Conn
	b   []byte
	cut int
}

func (c *cutConn) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.cut)], c.b)
	c.b = c.b[n:]
	return n, nil
}
