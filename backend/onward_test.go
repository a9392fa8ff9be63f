package backend_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/portforward"
)

// What several guests send to one arrives whole, and in each sender's order, whether it reads all the while or only
// afterwards; what does not fit is dropped whole and counted.
func TestFramesBetweenGuests(t *testing.T) {
	const (
		each   = 1500
		header = 14 + 8
	)
	for _, w := range []struct {
		name string
		wire func() (near, far link.Link)
	}{
		{"plain", func() (link.Link, link.Link) { return link.Pipe(64) }},
		{"loop", func() (link.Link, link.Link) { return sockets(t) }},
	} {
		for _, late := range []bool{false, true} {
			t.Run(w.name+map[bool]string{false: ", read at once", true: ", read late"}[late], func(t *testing.T) {
				n := start(t, backend.Config{Egress: &egress.Host{}})
				plug := func(m net.HardwareAddr) link.Link {
					near, far := w.wire()
					serve(t, n, far, m.String())
					t.Cleanup(func() { near.Close() })
					near.WriteFrames([]link.Frame{link.NewFrame(Build(Ethernet{Src: m, Dst: gatewayMAC, Type: 0x88b5}, Payload(make([]byte, 50))))})
					eventually(t, "the guest is known", func() bool {
						for _, g := range n.Guests() {
							if g.MAC == m.String() {
								return true
							}
						}
						return false
					})
					return near
				}
				reader := net.HardwareAddr{2, 0, 0, 0, 0, 1}
				to := plug(reader)

				// Every sender's frames are a function of its number and theirs.
				frame := func(sender, seq uint32) []byte {
					r := rand.New(rand.NewPCG(uint64(sender), uint64(seq)))
					size := []int{header, 60, 100, 1514, 9000, 65549}[r.IntN(6)]
					if r.IntN(2) == 0 {
						size = header + r.IntN(size-header+1)
					}
					b := make([]byte, size)
					copy(b, reader)
					copy(b[6:], net.HardwareAddr{2, 0, 0, 0, 1, byte(sender)})
					binary.BigEndian.PutUint16(b[12:], 0x88b5)
					binary.BigEndian.PutUint32(b[14:], sender)
					binary.BigEndian.PutUint32(b[18:], seq)
					for i := header; i < size; i++ {
						b[i] = byte(i * int(seq+1))
					}
					return b
				}
				var sending, reading sync.WaitGroup
				const senders = 3
				for s := range uint32(senders) {
					l := plug(net.HardwareAddr{2, 0, 0, 0, 1, byte(s)})
					sending.Go(func() {
						for i := uint32(0); i < each; {
							var fs []link.Frame
							for k := 0; k < 40 && i < each; k++ {
								fs = append(fs, link.NewFrame(frame(s, i)))
								i++
							}
							if _, err := l.WriteFrames(fs); err != nil {
								t.Errorf("sender %d: %v", s, err)
								return
							}
						}
					})
				}
				got := make(chan int, senders*each)
				next := [senders]uint32{}
				reading.Go(func() {
					defer close(got)
					if late {
						sending.Wait()
					}
					var b link.Batch
					defer b.Release()
					for b.Next(); to.ReadFrames(&b) == nil; b.Next() {
						for _, f := range b.Frames {
							p := b.AppendTo(nil, f)
							if len(p) < 60 {
								t.Errorf("a frame of %d bytes, not padded", len(p))
								return
							}
							if binary.BigEndian.Uint16(p[12:]) != 0x88b5 {
								continue // the gateway's own
							}
							s, seq := binary.BigEndian.Uint32(p[14:]), binary.BigEndian.Uint32(p[18:])
							if s >= senders || seq < next[s] {
								t.Errorf("frame %d of sender %d comes behind %d", seq, s, next[s])
								return
							}
							next[s] = seq + 1
							want := frame(s, seq)
							want = append(want, make([]byte, max(0, 60-len(want)))...)
							if !bytes.Equal(p, want) {
								t.Errorf("frame %d of sender %d is another: %d bytes, want %d", seq, s, len(p), len(want))
								return
							}
							got <- 1
						}
					}
				})
				sending.Wait()
				lost := func() int { return int(n.Guests()[0].Dropped[flows.ReasonQueueFull.String()]) }
				eventually(t, "all frames have come or are counted", func() bool { return len(got)+lost() == senders*each })
				if late && lost() == 0 {
					t.Error("a guest that does not read has room for everything")
				}
				if len(got) == 0 {
					t.Error("nothing came")
				}
				to.Close()
				reading.Wait()
			})
		}
	}
}

// A burst of datagrams through a port forward arrives whole and in order, and so do the answers.
func TestForwardUDPBurst(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		const burst = 300 // 600 KB of the host socket's buffer, as the kernel counts
		n, g := c.up(t, backend.Config{})
		g.Ping(patience(t), f.gateway, 1, 1, nil)
		s, err := g.ListenUDP(at(f.any, 90))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		guest := f.of(g).String()
		if f.gateway.Is6() {
			guest = "[" + guest + "]"
		}
		r, err := portforward.ParseRule("udp:127.0.0.1:0-" + guest + ":90")
		if err != nil {
			t.Fatal(err)
		}
		b, err := n.Forwards().Add(patience(t), r[0])
		if err != nil {
			t.Fatal(err)
		}
		host, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at(b.Host, b.HostPort)))
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		host.SetReadDeadline(time.Now().Add(Patience))
		host.Write([]byte("hello"))
		first, from := readGuest(t, s)
		if string(first) != "hello" {
			t.Fatalf("the first datagram is %q", first)
		}
		w := g.Watch(IsUDP(from.Port(), 90))
		msg := func(i int) []byte { return binary.BigEndian.AppendUint32(make([]byte, 4, 100), uint32(i)) }
		for i := range burst {
			if i%100 == 0 || i < 32 && i%8 == 0 { // within net.core.rmem_default; and at first what the forward queues while the conversation opens
				eventually(t, "the forward has read", func() bool { return len(w.Got()) == i })
			}
			host.Write(msg(i))
		}
		for i := range burst {
			if p := w.Expect(t); !bytes.Equal(p.Payload, msg(i)) {
				t.Fatalf("datagram %d is %x", i, p.Payload)
			}
		}
		buf := make([]byte, 100)
		for i := range burst {
			if _, err := s.WriteTo(msg(i), from); err != nil {
				t.Fatal(err)
			}
			if k, err := host.Read(buf); err != nil || !bytes.Equal(buf[:k], msg(i)) {
				t.Fatalf("answer %d is %x: %v", i, buf[:k], err)
			}
		}
		eventually(t, "the rule has counted the last one", func() bool { return n.Forwards().List()[0].ToClient == burst*8 })
		if st := n.Forwards().List()[0]; st.ToGuest != 5+burst*8 || st.Active != 1 {
			t.Errorf("the rule counts %+v", st)
		}
		fl, ok := flow(n, func(s flows.Snapshot) bool { return s.Dir == flows.In })
		if !ok || fl.UpBytes != burst*8 || fl.DownBytes != 5+burst*8 {
			t.Errorf("the flow is %+v", fl)
		}
		// The guest's port is closed: the conversation goes on.
		s.Close()
		host.Write([]byte("nobody"))
		eventually(t, "the refusal is counted", func() bool {
			return n.Forwards().List()[0].Reasons[portforward.ReasonUnreachable] > 0
		})
		// A flow that the table ends takes the conversation along, and the next datagram opens another.
		n.Flows().EndAll(flows.ReasonReset)
		eventually(t, "the conversation is over", func() bool { return n.Forwards().List()[0].Active == 0 })
		w = g.Watch(IsUDP(0, 90))
		host.Write([]byte("again"))
		w.Expect(t)
	})
}
