package backend

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// What is read where gVisor has it is there, and is what it says: bytes that the guest has not acknowledged, and memory of
// what nobody has read.
func TestHeldIsFound(t *testing.T) {
	if places.received == 0 || places.sending == 0 {
		t.Fatalf("this gVisor keeps them otherwise: %+v", places)
	}
	for _, fam := range hotFamilies {
		t.Run(fam.String(), func(t *testing.T) {
			p := hotPort(t)
			c := newHotConn(t, p, fam)
			h := p.buffers.join(c.ep, tcpBuffer, nil)
			// The handshake's last ACK may still lie in its queue.
			for end := time.Now().Add(10 * time.Second); h.holds() != 0; runtime.Gosched() {
				if time.Now().After(end) {
					t.Fatalf("%d before anything", h.holds())
				}
			}
			c.batch(4, 1000)
			for i, s := range p.batch.Frames { // in a row
				at := ethLen + 20 + 4
				if fam.v6 {
					at += 20
				}
				var n [4]byte
				binary.BigEndian.PutUint32(p.batch.Head(s.From(at), 4, n[:]), c.seq+uint32(i)*1000)
			}
			p.carry()
			for end := time.Now().Add(10 * time.Second); received(c.ep) < 4000 && time.Now().Before(end); {
				runtime.Gosched()
			}
			if n := received(c.ep.(*tcp.Endpoint)); n < 4000 || n > 4*(1000+2*segmentCost)+4096 {
				t.Errorf("%d for four segments of 1000", n)
			}
			n, err := c.ep.Write(bytes.NewReader(make([]byte, 5000)), tcpip.WriteOptions{})
			if n != 5000 || err != nil {
				t.Fatal(n, err)
			}
			if n := sending(c.ep); n != 5000 {
				t.Errorf("%d bytes wait, want 5000", n)
			}
			if u := p.buffers.use(); u.Now < 9000 || u.Most < u.Now {
				t.Errorf("%+v", u)
			}
			h.leave()
			h.leave()
			if u := p.buffers.use(); u.Now != 0 {
				t.Errorf("%+v", u)
			}
		})
	}
}

// Who asks what is held, however often, does not keep what has come from being shared anew.
func TestHeldIsAsked(t *testing.T) {
	var b buffers
	b.init(128 << 20)
	b.slack.Store(1000)
	for range 3 {
		b.grew(400)
		b.use()
	}
	if n := b.slack.Load(); n == 1000 {
		t.Error("1200 bytes came, 1000 may, and nobody looked")
	}
}

// However many are stuck, together they come to the budget, and one alone is not bounded by it.
func TestBufferShares(t *testing.T) {
	var b buffers
	b.init(128 << 20)
	// The worst: each fills what it has before the next comes.
	sum, first := 0, 0
	for i := range 16384 {
		left := max(b.bound-sum, 0)
		n := b.shareOf(left)
		if i == 0 {
			first = n
		}
		sum += min(n, tcpBuffer)
	}
	if first < longBuffer {
		t.Errorf("the first gets %d", first)
	}
	if most := 128<<20 + 16384*bufferLeast; sum > most {
		t.Errorf("%d are held, want at most %d", sum, most)
	}
}
