package backend_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

// unfinished is a wire whose guest's kernel leaves work on frames to the other side, as a TAP's does.
type unfinished struct {
	link.Link
	gives, takes link.Offloads

	mu    sync.Mutex
	marks map[string]link.Offload // of frames that the guest is going to send
	wrote []link.Frame            // that were not whole
	b     link.Batch
}

func (u *unfinished) Offloads() (gives, takes link.Offloads) { return u.gives, u.takes }

func (u *unfinished) ReadFrames(b *link.Batch) error {
	u.b.Next()
	if err := u.Link.ReadFrames(&u.b); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range u.b.Frames {
		f := u.b.AppendTo(nil, s)
		b.Append(f)
		if u.gives&link.Told != 0 {
			b.TakeUnfinished(0, len(f), u.marks[string(f)])
		} else {
			b.Take(0, len(f))
		}
	}
	return nil
}

func (u *unfinished) WriteFrames(frames []link.Frame) (int, error) {
	u.mu.Lock()
	for _, f := range frames {
		if u.takes != 0 && !f.Offload().Whole() {
			w := link.NewFrame(f.AppendTo(nil))
			w.SetOffload(f.Offload())
			u.wrote = append(u.wrote, w)
		}
	}
	u.mu.Unlock()
	return u.Link.WriteFrames(frames)
}

// mark says what is left to do on a frame that the guest is going to send.
func (u *unfinished) mark(f []byte, o link.Offload) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.marks[string(f)] = o
}

// plugUnfinished is Plug with such a wire.
func plugUnfinished(t *testing.T, n *backend.Network, gives, takes link.Offloads, c Config) (*Guest, *unfinished) {
	t.Helper()
	near, far := link.Pipe(PipeDepth)
	u := &unfinished{Link: far, gives: gives, takes: takes, marks: map[string]link.Offload{}}
	g, err := New(near, c)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		n.Serve(context.Background(), u, "unfinished")
	}()
	t.Cleanup(func() { g.Close(); <-served })
	return g.Up(t), u
}

// partial replaces a TCP or UDP checksum by the pseudo-header's sum, as Linux does, and returns what is to be done then.
func partial(f []byte) link.Offload {
	ip, v6 := f[14:], f[12] == 0x86
	hl, ends, proto := 20, ip[12:20], ip[9]
	if v6 {
		hl, ends, proto = 40, ip[8:40], ip[6]
	}
	at := 16
	if proto == ProtoUDP {
		at = 6
	}
	sum := uint32(proto) + uint32(len(ip)-hl)
	for i := 0; i < len(ends); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ends[i:]))
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	binary.BigEndian.PutUint16(ip[hl+at:], uint16(sum))
	return link.Offload{Flags: link.OffloadSum, SumStart: uint16(14 + hl), SumAt: uint16(at)}
}

// Frames that a guest's kernel left unfinished reach others whole, and one that takes them so as they are.
func TestFinish(t *testing.T) {
	const all = link.Told | link.Checksums | link.Segments
	n := start(t, backend.Config{Egress: &egress.Host{}})
	tap, wire := plugUnfinished(t, n, all, all, Config{})
	krun, _ := plugUnfinished(t, n, link.Checksums|link.Segments, 0, Config{})
	tap2, wire2 := plugUnfinished(t, n, all, all, Config{})
	// QEMU's framing over a socket: on Linux, a guest with a loop.
	plain := plugSocket(t, n, Config{}).Up(t)

	payload := make([]byte, 10001)
	for i := range payload {
		payload[i] = byte(i * 31)
	}
	both(t, func(t *testing.T, f family) {
		kind := uint8(link.OffloadTCP4)
		if f.name == "ipv6" {
			kind = link.OffloadTCP6
		}
		long := func(g, to *Guest, flags string) ([]byte, link.Offload) {
			b := g.Via(to.MAC(), f.of(to), TCP{SrcPort: 7, DstPort: 8, Seq: 1000, Ack: 5, Flags: flags, Options: []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}}, Payload(payload))
			o := partial(b)
			o.Kind, o.Size, o.Header = kind, 1400, uint16(len(b)-len(payload))
			return b, o
		}
		// inPieces sees that the long segment came whole, in frames of at most so much payload.
		inPieces := func(t *testing.T, w *Watch, most int) {
			t.Helper()
			var got []byte
			for len(got) < len(payload) {
				p := w.Expect(t)
				if err := Good()(p); err != nil {
					t.Fatalf("%s: %v", p, err)
				}
				if len(p.Payload) > most || p.TCP.Seq != 1000+uint32(len(got)) {
					t.Fatalf("%s after %d bytes", p, len(got))
				}
				got = append(got, p.Payload...)
				if last := len(got) == len(payload); (p.TCP.Flags == "FPA") != last {
					t.Errorf("%s: wrong flags", p)
				}
			}
			if !bytes.Equal(got, payload) {
				t.Error("other bytes came")
			}
		}
		from := func(g *Guest) Check { return FromMAC(g.MAC()) }
		for _, to := range []*Guest{plain, krun} {
			t.Run("segment", func(t *testing.T) {
				w := to.Watch(from(tap), ToPort(8))
				b, o := long(tap, to, "FPA")
				wire.mark(b, o)
				tap.Send(b)
				inPieces(t, w, 1400)
			})
			t.Run("datagram", func(t *testing.T) {
				w := to.Watch(from(tap), ToPort(8))
				b := tap.Via(to.MAC(), f.of(to), UDP{SrcPort: 7, DstPort: 8}, Payload(payload[:999]))
				o := partial(b)
				wire.mark(b, o)
				tap.Send(b)
				if p := w.Expect(t); Good()(p) != nil || !bytes.Equal(p.Payload, payload[:999]) {
					t.Errorf("%s: %v", p, Good()(p))
				}
			})
		}
		t.Run("untold", func(t *testing.T) {
			w := plain.Watch(from(krun), ToPort(8))
			b, _ := long(krun, plain, "FPA")
			krun.Send(b)
			inPieces(t, w, 1500)
			w.Stop()
			w = plain.Watch(from(krun), ToPort(8))
			b = krun.Via(plain.MAC(), f.of(plain), UDP{SrcPort: 7, DstPort: 8}, Payload(payload[:999]))
			partial(b)
			krun.Send(b)
			if p := w.Expect(t); Good()(p) != nil {
				t.Errorf("%s: %v", p, Good()(p))
			}
		})
		t.Run("as it is", func(t *testing.T) {
			w := tap2.Watch(from(tap), ToPort(8))
			b, o := long(tap, tap2, "FPA")
			wire.mark(b, o)
			tap.Send(b)
			if p := w.Expect(t); len(p.Payload) != len(payload) || !bytes.Equal(p.Payload, payload) {
				t.Errorf("%s", p)
			}
			wire2.mu.Lock()
			defer wire2.mu.Unlock()
			last := wire2.wrote[len(wire2.wrote)-1]
			if last.Offload() != o || !bytes.Equal(last.AppendTo(nil), b) {
				t.Errorf("%+v, want %+v", last.Offload(), o)
			}
		})
		t.Run("whole", func(t *testing.T) {
			w := tap.Watch(from(plain), ToPort(8))
			plain.Send(plain.Via(tap.MAC(), f.of(tap), TCP{SrcPort: 7, DstPort: 8, Flags: "A"}, Payload(payload[:1000])))
			if p := w.Expect(t); Good()(p) != nil {
				t.Errorf("%s", p)
			}
		})
		t.Run("lies", func(t *testing.T) {
			w := plain.Watch(from(tap), ToPort(8))
			before := dropped(n, tap, flows.ReasonMalformed)
			b, o := long(tap, plain, "A")
			tiny, other, nosum, far, head := o, o, o, o, o
			tiny.Size = 1
			other.Kind ^= link.OffloadTCP4 ^ link.OffloadTCP6
			nosum.Flags = 0
			far.Kind, far.SumStart = 0, 65000
			head.Kind, head.SumStart = 0, 3
			lies := []link.Offload{tiny, other, nosum, far, head}
			for i, lie := range lies {
				x := bytes.Clone(b)
				binary.BigEndian.PutUint16(x[len(b)-2:], uint16(i))
				wire.mark(x, lie)
				tap.Send(x)
			}
			tap.Sync(t)
			plain.Sync(t)
			if got := dropped(n, tap, flows.ReasonMalformed) - before; got != uint64(len(lies)) {
				t.Errorf("%d were counted, want %d", got, len(lies))
			}
			if got := w.Got(); len(got) > 0 {
				t.Errorf("%s came", got[0])
			}
		})
	})
}

// Who captures a guest's frames need not know that they are unfinished.
func TestFinishCaptured(t *testing.T) {
	seen := make(chan int, 1000)
	n := start(t, backend.Config{Capture: func(l link.Link) link.Link { return tapped{l, seen} }})
	tap, wire := plugUnfinished(t, n, link.Told|link.Checksums, 0, Config{})
	plain := Plug(t, n, Config{}).Up(t)
	both(t, func(t *testing.T, f family) {
		w := plain.Watch(FromMAC(tap.MAC()), ToPort(8))
		b := tap.Via(plain.MAC(), f.of(plain), UDP{SrcPort: 7, DstPort: 8}, Payload(make([]byte, 99)))
		wire.mark(b, partial(b))
		tap.Send(b)
		if p := w.Expect(t); Good()(p) != nil {
			t.Errorf("%s: %v", p, Good()(p))
		}
	})
}
