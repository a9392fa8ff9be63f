package backend_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/qemu"
)

func TestConfig(t *testing.T) {
	pfx := netip.MustParsePrefix
	for _, tt := range []struct {
		name  string
		c     backend.Config
		wrong string // part of the error; empty: it is right
	}{
		{"zero", backend.Config{}, ""},
		{"other network", backend.Config{Prefix4: pfx("192.168.127.0/24")}, ""},
		{"smallest", backend.Config{Prefix4: pfx("192.168.127.16/28")}, ""},
		{"gateway and DNS in one", backend.Config{DNS4: ip("10.0.2.2"), DNS6: ip("fd00:1234::2"), Prefix6: prefix6}, ""},
		{"too small", backend.Config{Prefix4: pfx("10.0.0.0/29")}, "/28"},
		{"IPv6 for IPv4", backend.Config{Prefix4: prefix6}, "IPv4 prefix"},
		{"not a /64", backend.Config{Prefix6: pfx("fd00::/48")}, "/64"},
		{"gateway elsewhere", backend.Config{Gateway4: ip("10.0.3.2")}, "gateway 10.0.3.2 is not in 10.0.2.0/24"},
		{"gateway is the network", backend.Config{Gateway4: ip("10.0.2.0")}, "network's own"},
		{"DNS is the broadcast", backend.Config{DNS4: ip("10.0.2.255")}, "broadcast"},
		{"first guest is the gateway", backend.Config{First4: ip("10.0.2.2")}, "both 10.0.2.2"},
		{"mtu too small", backend.Config{MTU: 1279}, "1280"},
		{"mtu too large", backend.Config{MTU: 65521}, "65520"},
		{"group MAC", backend.Config{GatewayMAC: net.HardwareAddr{1, 2, 3, 4, 5, 6}}, "gateway MAC"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.c.Logger = slog.New(slog.DiscardHandler)
			n, err := backend.New(tt.c)
			if err == nil {
				n.Close()
			}
			if (err == nil) != (tt.wrong == "") || err != nil && !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("%v, want %q", err, tt.wrong)
			}
		})
	}
}

func TestServeAfterClose(t *testing.T) {
	n := start(t, backend.Config{})
	n.Close()
	near, far := link.Pipe(1)
	wantErr(t, "serve", n.Serve(context.Background(), far, ""), backend.ErrClosed)
	wantErr(t, "the wire", near.ReadFrames(&link.Batch{}), io.EOF)
	if err := n.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

// However a wire ends, Serve returns nil, for a wire that ends is no error; and the guest is gone.
func TestServeEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(n *backend.Network, near link.Link, cancel func())
	}{
		{"the guest closes", func(_ *backend.Network, near link.Link, _ func()) { near.Close() }},
		{"the context ends", func(_ *backend.Network, _ link.Link, cancel func()) { cancel() }},
		{"the guest is kicked", func(n *backend.Network, _ link.Link, _ func()) { n.Kick(n.Guests()[0].ID) }},
		{"the network closes", func(n *backend.Network, _ link.Link, _ func()) { n.Close() }},
		{"the guest dies with frames unread", func(n *backend.Network, near link.Link, _ func()) {
			for range 100 {
				near.WriteFrames([]link.Frame{link.NewFrame(Build(Ethernet{Src: net.HardwareAddr{2, 0, 0, 0, 0, 7}}, ARP{Sender: ip("10.0.2.50"), Target: gateway4}))})
			}
			near.Close()
		}},
	} {
		for _, wire := range []string{"pipe", "socket"} {
			t.Run(tt.name+"/"+wire, func(t *testing.T) {
				n := start(t, backend.Config{Egress: &egress.Host{}})
				near, far := link.Pipe(256)
				if wire == "socket" {
					near, far = sockets(t)
				}
				defer near.Close()
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				served := make(chan error)
				go func() { served <- n.Serve(ctx, far, wire) }()
				eventually(t, "plugged in", func() bool { return len(n.Guests()) == 1 })
				tt.end(n, near, cancel)
				select {
				case err := <-served:
					if err != nil {
						t.Errorf("served: %v", err)
					}
				case <-time.After(Patience):
					t.Fatal("Serve does not return")
				}
				if len(n.Guests()) != 0 {
					t.Error("the guest is still there")
				}
			})
		}
	}
	t.Run("framing that is none is an error", func(t *testing.T) {
		n := start(t, backend.Config{})
		a, b := net.Pipe()
		go func() { a.Write([]byte("GET / HTTP/1.1\r\n\r\n")); a.Close() }()
		var fe *qemu.FrameError
		if err := n.Serve(context.Background(), qemu.NewLink(b), ""); !errors.As(err, &fe) {
			t.Errorf("served: %v", err)
		}
	})
	t.Run("nobody to kick", func(t *testing.T) {
		if err := start(t, backend.Config{}).Kick("g9"); err == nil {
			t.Error("kicked nobody")
		}
	})
}

// A guest that goes takes its conversations along, as resets, and leaves the others'.
func TestKickEndsItsConversationsOnly(t *testing.T) {
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			n, g := c.up(t, backend.Config{})
			other := Plug(t, n, Config{}).Up(t)
			ended := make(chan error, 2)
			dst := families[0].listen(t, func(h *net.TCPConn) {
				_, err := io.Copy(h, h)
				ended <- err
			})
			mine, err := g.Dial(patience(t), "tcp", dst)
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := other.Dial(patience(t), "tcp", dst)
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, mine, "one")
			roundTrip(t, theirs, "two")
			u, err := g.DialUDP(at(gateway4, 9))
			if err != nil {
				t.Fatal(err)
			}
			u.Write([]byte("x"))
			g.Sync(t)
			n.Kick(n.Guests()[0].ID)
			wantErr(t, "the host's end", <-ended, syscall.ECONNRESET)
			<-g.Gone()
			eventually(t, "one flow is left", func() bool { return n.Flows().Len() == 1 && len(n.Guests()) == 1 })
			roundTrip(t, theirs, "still here")
			theirs.Close()
			mine.Close()
			u.Close()
		})
	}
}

// A guest that never reads fills its own queue, which is bounded; the others do not notice.
func TestGuestThatNeverReads(t *testing.T) {
	for _, wire := range []string{"pipe", "socket"} {
		t.Run(wire, func(t *testing.T) {
			n := start(t, backend.Config{Egress: &egress.Host{}})
			near, far := link.Pipe(16)
			if wire == "socket" {
				near, far = sockets(t)
			}
			serve(t, n, far, "deaf")
			defer near.Close()
			other := Plug(t, n, Config{}).Up(t)
			h, dst := families[0].udp(t)
			deaf := net.HardwareAddr{2, 0, 0, 0, 0, 1}
			head := []Layer{Ethernet{Src: deaf, Dst: gatewayMAC}, IPv4{Src: ip("10.0.2.50"), Dst: gateway4}}
			near.WriteFrames([]link.Frame{link.NewFrame(Build(append(head, UDP{SrcPort: 1, DstPort: dst.Port()}, Payload("send me all"))...))})
			_, from := readHost(t, h)
			deafInfo := func() backend.GuestInfo {
				for _, i := range n.Guests() {
					if i.MAC == deaf.String() {
						return i
					}
				}
				return backend.GuestInfo{}
			}
			big := make([]byte, 60_000)
			eventually(t, "its queue is full", func() bool {
				for range 20 {
					h.WriteToUDPAddrPort(big, from)
				}
				return deafInfo().Dropped["queue-full"] > 0
			})
			if i := deafInfo(); i.Queued > i.QueueSize {
				t.Errorf("%d bytes wait, more than %d", i.Queued, i.QueueSize)
			}
			conn, err := other.Dial(patience(t), "tcp", families[0].listen(t, echo))
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, conn, "unharmed")
			conn.Close()
			// It is still heard, and can be ended.
			near.WriteFrames([]link.Frame{link.NewFrame(Build(append(head, UDP{SrcPort: 1, DstPort: dst.Port()}, Payload("more"))...))})
			for {
				if m, _ := readHost(t, h); string(m) == "more" {
					break
				}
			}
			n.Kick(deafInfo().ID)
			eventually(t, "it is gone", func() bool { return len(n.Guests()) == 1 })
		})
	}
}

// A guest that never reads its TCP bytes holds its peer back; the queue does not drop for it.
func TestGuestThatNeverReadsItsStream(t *testing.T) {
	t.Parallel() // beside the tests that wait
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			n, g := c.up(t, backend.Config{})
			sent := make(chan struct{})
			dst := families[0].listen(t, func(h *net.TCPConn) {
				defer close(sent)
				b := make([]byte, 1<<20)
				for { // until it would wait: more than all buffers on the way is never taken
					h.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
					if _, err := h.Write(b); err != nil {
						return
					}
				}
			})
			conn, err := g.Dial(patience(t), "tcp", dst)
			if err != nil {
				t.Fatal(err)
			}
			<-sent
			s, _ := flow(n, func(flows.Snapshot) bool { return true })
			const most = 32 << 20 // both stacks' buffers and the queue, with room
			if s.DownBytes > most {
				t.Errorf("%d bytes were taken for a guest that reads none", s.DownBytes)
			}
			conn.Abort()
		})
	}
}

func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A thousand guests that come and go leave nothing.
func TestThousandPlugs(t *testing.T) {
	for _, wire := range []string{"pipe", "socket"} {
		t.Run(wire, func(t *testing.T) {
			n := start(t, backend.Config{Egress: &egress.Host{}})
			h, dst := families[0].udp(t)
			cycle := func(i int) {
				near, far := link.Pipe(16)
				if wire == "socket" {
					near, far = sockets(t)
				}
				served := make(chan error)
				go func() { served <- n.Serve(context.Background(), far, wire) }()
				m := net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)}
				src := netip.AddrFrom4([4]byte{10, 0, 2, byte(20 + i%200)})
				near.WriteFrames([]link.Frame{
					link.NewFrame(Build(Ethernet{Src: m, Dst: gatewayMAC}, IPv4{Src: src, Dst: gateway4}, UDP{SrcPort: 1, DstPort: dst.Port()}, Payload("x"))),
					link.NewFrame(Build(Ethernet{Src: m, Dst: gatewayMAC}, IPv4{Src: src, Dst: gateway4}, TCP{SrcPort: 1, DstPort: 1, Flags: "S"})),
				})
				readHost(t, h)
				near.Close()
				if err := <-served; err != nil {
					t.Fatalf("plug %d: %v", i, err)
				}
			}
			for i := range 100 { // pools and maps have their sizes
				cycle(i)
			}
			memoryBefore, fdsBefore, before := memory(), descriptors(t), runtime.NumGoroutine()
			for i := range 1000 {
				cycle(i)
			}
			eventually(t, "goroutines and descriptors are as before", func() bool {
				return runtime.NumGoroutine() <= before && descriptors(t) <= fdsBefore
			})
			const slack = 4 << 20 // a stack is 44 KB: a thousand leaked would be ten times that
			if after := memory(); after > memoryBefore+slack {
				t.Errorf("%d KiB in use, were %d", after>>10, memoryBefore>>10)
			}
			if n.Flows().Len() != 0 || len(n.Guests()) != 0 {
				t.Errorf("%d flows and %d guests are left", n.Flows().Len(), len(n.Guests()))
			}
		})
	}
}

func TestShutdown(t *testing.T) {
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			open := func(t *testing.T) (*backend.Network, *TCPConn, chan error) {
				n, g := c.up(t, backend.Config{})
				ended := make(chan error, 1)
				conn, err := g.Dial(patience(t), "tcp", families[0].listen(t, func(h *net.TCPConn) {
					_, err := io.Copy(h, h)
					ended <- err
				}))
				if err != nil {
					t.Fatal(err)
				}
				roundTrip(t, conn, "begun")
				return n, conn, ended
			}
			t.Run("a conversation may end", func(t *testing.T) {
				n, conn, ended := open(t)
				down := make(chan error)
				go func() { down <- n.Shutdown(patience(t)) }()
				roundTrip(t, conn, "goes on")
				select {
				case err := <-down:
					t.Errorf("shut down under a conversation: %v", err)
				default:
				}
				conn.Close()
				if err := errors.Join(<-ended, <-down); err != nil {
					t.Error(err)
				}
			})
			t.Run("one that does not is cut", func(t *testing.T) {
				n, conn, ended := open(t)
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				if err := n.Shutdown(ctx); err != nil {
					t.Error(err)
				}
				wantErr(t, "the host's end", <-ended, syscall.ECONNRESET)
				conn.Close()
				if got := n.Flows().Counts()["shutdown"]; got != 1 {
					t.Errorf("counted %v", n.Flows().Counts())
				}
			})
		})
	}
}

func TestStatusAndGuests(t *testing.T) {
	n := start(t, backend.Config{Name: "lab"})
	g := Plug(t, n, Config{Name: "web"}).Up(t)
	g.Sync(t)
	if err := g.Ping(patience(t), gateway6, 1, 1, nil); err != nil {
		t.Fatal(err)
	}
	i := n.Guests()[0]
	if i.ID != "g1" || i.Name != "web" || i.MAC != g.MAC().String() || i.Link != "pipe web" || i.RxFrames == 0 || i.TxFrames == 0 ||
		len(i.Addrs) < 3 || i.Addrs[0] != g.Addr4() || i.Addrs[1] != g.Addr6() || i.Addrs[len(i.Addrs)-1] != g.LinkLocal() {
		t.Errorf("guest %+v", i)
	}
	s := n.Status()
	if s.Name != "lab" || s.Gateway4 != gateway4 || s.Gateway6 != gateway6 || s.DNS4 != dns4 || s.MTU != 1500 || s.Guests != 1 || s.GatewayMAC != gatewayMAC.String() {
		t.Errorf("status %+v", s)
	}
}

// Captured frames are those that crossed the wire, both ways.
func TestCapture(t *testing.T) {
	seen := make(chan int, 1000)
	n := start(t, backend.Config{Capture: func(l link.Link) link.Link { return tapped{l, seen} }})
	g := Plug(t, n, Config{Gateway4: gateway4})
	g.Sync(t)
	sizes := []int{<-seen, <-seen, <-seen}
	slices.Sort(sizes)
	if sizes[0] != 60-18 || sizes[1] != 60 || sizes[2] < 100 { // the question, the answer, the router's advertisement
		t.Errorf("captured frames of %d bytes", sizes)
	}
}

type tapped struct {
	link.Link
	seen chan int
}

func (c tapped) ReadFrames(b *link.Batch) error {
	err := c.Link.ReadFrames(b)
	for _, f := range b.Frames {
		c.seen <- f.Len()
	}
	return err
}

func (c tapped) WriteFrames(fs []link.Frame) (int, error) {
	for _, f := range fs {
		c.seen <- f.Len()
	}
	return c.Link.WriteFrames(fs)
}
