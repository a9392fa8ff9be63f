package backend_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/portforward"
)

// onLoop is a network whose guests are carried by loops, and one of them.
func onLoop(t testing.TB, c backend.Config) (*backend.Network, *Guest) {
	t.Helper()
	return carriers[1].up(t, c)
}

func down(n *backend.Network) uint64 {
	s, _ := flow(n, func(flows.Snapshot) bool { return true })
	return s.DownBytes
}

// What a host peer says byte by byte to a guest that does not listen for a while arrives all the same.
func TestLoopTrickle(t *testing.T) {
	for _, mtu := range []int{1500, 65520} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			n := start(t, backend.Config{Egress: &egress.Host{}, MTU: mtu})
			g := plugSocket(t, n, Config{MTU: mtu}).Up(t)
			guest, host := meet(t, g, families[0])
			want := make([]byte, 3<<20) // more than the guest's window; the rest waits in the stack
			for i := range want {
				want[i] = byte(i ^ i>>8)
			}
			host.Write(want)
			eventually(t, "the stack has it", func() bool { return down(n) == uint64(len(want)) })
			for i := range 3000 {
				b := byte(i * 7)
				want = append(want, b)
				host.Write([]byte{b})
				eventually(t, "the stack has the byte", func() bool { return down(n) == uint64(len(want)) })
			}
			host.CloseWrite()
			got, err := io.ReadAll(guest)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes arrived of %d, or others: %v", len(got), len(want), err)
			}
		})
	}
}

// One side has ended its half and then breaks off: the other hears of it although neither sends anything.
func TestLoopResetAfterFIN(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		t.Run("by the guest", func(t *testing.T) {
			n, g := onLoop(t, backend.Config{})
			guest, host := meet(t, g, f)
			guest.CloseWrite()
			if _, err := host.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("host read: %v, want the end", err)
			}
			guest.Abort()
			noFlows(t, n)
			eventually(t, "the host's socket is reset", func() bool { _, err := host.Write([]byte("x")); return err != nil })
		})
		t.Run("by the host", func(t *testing.T) {
			n, g := onLoop(t, backend.Config{})
			guest, host := meet(t, g, f)
			host.CloseWrite()
			if _, err := guest.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("guest read: %v, want the end", err)
			}
			reset := g.Watch(IsTCP("RA"))
			host.SetLinger(0)
			host.Close()
			reset.Expect(t)
			noFlows(t, n)
		})
		t.Run("by the guest, whose bytes the host does not take", func(t *testing.T) {
			n, g := onLoop(t, backend.Config{})
			guest, host := meet(t, g, f)
			host.SetReadBuffer(4096)
			guest.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			guest.Write(make([]byte, 32<<20)) // until everything between is full
			guest.Abort()
			noFlows(t, n)
		})
	})
}

// Bytes that the host marks as urgent, and all behind them, come in order.
func TestLoopUrgentFromHost(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		_, g := onLoop(t, backend.Config{})
		guest, host := meet(t, g, f)
		rc, err := host.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		host.Write([]byte("before "))
		rc.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) })
		if err != nil {
			t.Fatal(err)
		}
		host.Write([]byte(" behind"))
		got := make([]byte, len("before ! behind"))
		if _, err := io.ReadFull(guest, got); err != nil || string(got) != "before ! behind" {
			t.Errorf("guest read %q, %v", got, err)
		}
		host.CloseWrite()
		if _, err := guest.Read(got); err != io.EOF {
			t.Errorf("guest read %v, want the end", err)
		}
	})
}

// A conversation that both sides have ended counts until the guest has taken what is left of it; it then goes, or goes
// with the guest, or is reset with it.
func TestLoopLeaving(t *testing.T) {
	const size = 3 << 20
	for _, tt := range []struct {
		name string
		end  func(*testing.T, *backend.Network, *Guest, *TCPConn)
	}{
		{"the guest takes it", func(t *testing.T, n *backend.Network, g *Guest, c *TCPConn) {
			if b, err := io.ReadAll(c); err != nil || len(b) != size {
				t.Errorf("guest read %d bytes of %d, %v", len(b), size, err)
			}
		}},
		{"the guest resets it", func(t *testing.T, n *backend.Network, g *Guest, c *TCPConn) { c.Abort() }},
		{"the guest goes", func(t *testing.T, n *backend.Network, g *Guest, c *TCPConn) { g.Close() }},
		{"the network is closed", func(t *testing.T, n *backend.Network, g *Guest, c *TCPConn) { n.Close() }},
	} {
		for _, first := range []string{"guest", "host"} {
			t.Run(tt.name+", "+first+" first", func(t *testing.T) {
				n, g := onLoop(t, backend.Config{})
				guest, host := meet(t, g, families[1])
				if first == "guest" {
					guest.CloseWrite()
				}
				host.Write(make([]byte, size))
				host.Close()
				eventually(t, "the stack has it", func() bool { return down(n) == size })
				if first == "host" {
					guest.CloseWrite()
				}
				g.Sync(t)
				if s, ok := flow(n, func(flows.Snapshot) bool { return true }); !ok || s.State != "closing" {
					t.Errorf("the flow is %q, want closing: the guest has not taken all", s.State)
				}
				tt.end(t, n, g, guest)
				noFlows(t, n)
			})
		}
	}
}

// A guest that opens, drops and opens again from the same ports, with conversations being evicted all the while, always
// gets through in the end; and closing in the midst of it takes no time.
func TestLoopHandshakesAgainAndAgain(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		n, g := onLoop(t, backend.Config{Limits: flows.Limits{Dials: 8}})
		dst := f.listen(t, echo)
		hop := g.GatewayMAC(t)
		src := ip("10.0.2.77")
		if f.gateway.Is6() {
			src = ip("fd00:1234::77")
		}
		seg := func(s TCP) []byte {
			s.DstPort = dst.Port()
			var h Layer = IPv4{Src: src, Dst: dst.Addr()}
			if f.gateway.Is6() {
				h = IPv6{Src: src, Dst: dst.Addr()}
			}
			return Build(Ethernet{Src: g.MAC(), Dst: hop}, h, s)
		}
		r := rand.New(rand.NewPCG(1, 2))
		answers := g.Watch(IsTCP("SA"), To(src))
		for range 4000 {
			port := 1000 + uint16(r.IntN(24))
			switch r.IntN(6) {
			case 0:
				g.Send(seg(TCP{SrcPort: port, Seq: 101, Flags: "R"}))
			case 1:
				for _, p := range answers.Got() { // now and then one is completed, and reset
					answers.Next(patience(t))
					g.Send(seg(TCP{SrcPort: p.TCP.DstPort, Seq: 101, Ack: p.TCP.Seq + 1, Flags: "A", Window: 1000}))
					g.Send(seg(TCP{SrcPort: p.TCP.DstPort, Seq: 101, Ack: p.TCP.Seq + 1, Flags: "RA"}))
					break
				}
			default:
				g.Send(seg(TCP{SrcPort: port, Seq: 100, Flags: "S"}))
			}
		}
		g.Sync(t)
		for port := uint16(1000); port < 1024; port++ {
			eventually(t, fmt.Sprintf("port %d gets through", port), func() bool {
				g.Send(seg(TCP{SrcPort: port, Seq: 101, Flags: "R"}), seg(TCP{SrcPort: port, Seq: 100, Flags: "S"}))
				g.Sync(t)
				for _, p := range answers.Got() {
					answers.Next(patience(t))
					if p.TCP.DstPort == port {
						return true
					}
				}
				return false
			})
		}
		answers.Stop()
		for i := range uint16(200) {
			g.Send(seg(TCP{SrcPort: 3000 + i, Seq: 100, Flags: "S"}))
		}
		began := time.Now()
		n.Close()
		if d := time.Since(began); d > Patience/2 {
			t.Errorf("closing took %v", d)
		}
	})
}

// The network is closed, or the guest goes, with conversations in each state: everything is given back.
func TestLoopEndsInEachState(t *testing.T) {
	t.Run("first", func(t *testing.T) { // what the process keeps once it is opened
		_, g := onLoop(t, backend.Config{})
		meet(t, g, families[0])
	})
	before := descriptors(t)
	for _, how := range []string{"network closed", "guest gone", "guest kicked"} {
		t.Run(how, func(t *testing.T) {
			n := start(t, backend.Config{Egress: &egress.Host{}})
			g := plugSocket(t, n, Config{}).Up(t)
			var hosts []net.Conn
			for _, f := range families {
				hole := f.blackHole(t)
				hop := g.GatewayMAC(t)
				g.Send(g.Via(hop, hole.Addr(), TCP{SrcPort: 100, DstPort: hole.Port(), Flags: "S"})) // dialing
				src := ip("10.0.2.77")
				var head Layer = IPv4{Src: src, Dst: f.gateway}
				if f.gateway.Is6() {
					head = IPv6{Src: ip("fd00:1234::77"), Dst: f.gateway}
				}
				dst := f.listen(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
				g.Send(Build(Ethernet{Src: g.MAC(), Dst: hop}, head, TCP{SrcPort: 101, DstPort: dst.Port(), Flags: "S"})) // shaking
				_, h := meet(t, g, f)                                                                                     // open
				hosts = append(hosts, h)
				c, h := meet(t, g, f) // half closed by the guest
				c.CloseWrite()
				hosts = append(hosts, h)
				_, h = meet(t, g, f) // by the host
				h.CloseWrite()
				_, h = meet(t, g, f) // the guest does not read
				h.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
				h.Write(make([]byte, 32<<20))
				hosts = append(hosts, h)
				c, h = meet(t, g, f) // the host does not read
				c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
				c.Write(make([]byte, 32<<20))
				hosts = append(hosts, h)
				u, at := f.udp(t)
				uc, err := g.DialUDP(at)
				if err != nil {
					t.Fatal(err)
				}
				uc.Write([]byte("x"))
				u.ReadFromUDP(make([]byte, 1))
				uc.Close()
			}
			g.Sync(t)
			states := map[string]int{}
			for _, s := range n.Flows().List() {
				states[s.State]++
			}
			if states["dialing"] != 4 || states["closing"] != 4 || states["open"] != 8 {
				t.Errorf("states are %v, want 4 dialing (2 of them shaking hands), 4 closing, 8 open", states)
			}
			switch how {
			case "network closed":
				n.Close()
			case "guest gone":
				g.Close()
			case "guest kicked":
				n.Kick(n.Guests()[0].ID)
			}
			noFlows(t, n)
			for i, h := range hosts { // none of them sees a clean end
				h.SetReadDeadline(time.Now().Add(Patience))
				if _, err := io.Copy(io.Discard, h); !errors.Is(err, syscall.ECONNRESET) && i%4 != 1 {
					t.Errorf("host's conversation %d: %v, want a reset", i, err)
				}
				h.Close()
			}
			n.Close()
			g.Close()
		})
	}
	eventually(t, "all descriptors are given back", func() bool { return descriptors(t) <= before })
}

// Short conversations by the thousand, of which each side does something else with its own: what arrives is what was
// sent, up to a reset; nothing is left of any.
func TestLoopStress(t *testing.T) {
	conns := 2000
	if testing.Short() {
		conns = 300
	}
	n, g := onLoop(t, backend.Config{})
	var open, served atomic.Int64
	serve := func(c *net.TCPConn) {
		open.Add(1)
		defer open.Add(-1)
		defer served.Add(1)
		c.SetDeadline(time.Now().Add(3 * Patience))
		var plan [4]byte
		if _, err := io.ReadFull(c, plan[:]); err != nil {
			return
		}
		size, slow := int(plan[1])<<8, plan[2]%4 == 0
		switch plan[0] % 5 {
		case 0: // echo
			io.Copy(c, c)
		case 1: // send, end, read to the end
			send(c, size, slow)
			c.CloseWrite()
			io.Copy(io.Discard, c)
		case 2: // read all, then send
			io.Copy(io.Discard, c)
			send(c, size, slow)
		case 3: // send and reset
			send(c, size, false)
			c.SetLinger(0)
		case 4: // close with bytes unread
			send(c, size, false)
		}
	}
	dsts := []netip.AddrPort{families[0].listen(t, serve), families[1].listen(t, serve)}
	var whole, cut atomic.Int64
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), 5*Patience)
	defer cancel()
	next := atomic.Int64{}
	for w := range 48 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(7, uint64(w)))
			for next.Add(1) <= int64(conns) {
				dst := dsts[r.IntN(2)]
				c, err := g.Dial(ctx, "tcp", dst)
				for tries := 0; errors.Is(err, syscall.ECONNREFUSED) && tries < 3; tries++ {
					// The guest's stack took the port of a conversation that it had just reset: a SYN that gVisor
					// meets behind such a reset, before it has taken that, it answers with one of its own.
					c, err = g.Dial(ctx, "tcp", dst)
				}
				if err != nil {
					t.Errorf("dial: %v", err)
					return
				}
				plan := []byte{byte(r.IntN(5)), byte(r.IntN(256)), byte(r.IntN(256)), 0}
				c.SetDeadline(time.Now().Add(3 * Patience))
				c.Write(plan)
				size := int(plan[1]) << 8
				up, slow := r.IntN(100_000), r.IntN(8) == 0
				if r.IntN(10) == 0 {
					c.Abort()
					c.Close()
					cut.Add(1)
					continue
				}
				sent := make(chan error, 1)
				go func() {
					sent <- send(c, up, slow)
					c.CloseWrite()
				}()
				want := size
				if plan[0] == 0 {
					want = up
				}
				got, err := receive(c, r.IntN(8) == 0)
				werr := <-sent
				c.Close()
				switch {
				case err == nil && got == want:
					whole.Add(1)
				case plan[0] >= 3 && (errors.Is(err, syscall.ECONNRESET) || errors.Is(werr, syscall.ECONNRESET)): // one of the two is told
					cut.Add(1)
				default:
					t.Errorf("plan %v: %d bytes came of %d, then %v", plan, got, want, err)
				}
			}
		}()
	}
	wg.Wait()
	if whole.Load() < int64(conns)/3 || whole.Load()+cut.Load() != int64(conns) {
		t.Errorf("%d conversations were whole and %d cut, of %d", whole.Load(), cut.Load(), conns)
	}
	noFlows(t, n)
	eventually(t, "the host's side is over", func() bool { return open.Load() == 0 })
	eventually(t, "nothing waits for the guest", func() bool { i := n.Guests(); return len(i) == 1 && i[0].Queued == 0 })
	if i := n.Guests()[0]; len(i.Dropped) > 0 {
		t.Errorf("dropped: %v", i.Dropped)
	}
}

// send writes n bytes that each say where they are.
func send(c net.Conn, n int, slow bool) error {
	b := make([]byte, 8192)
	for at := 0; at < n; {
		m := min(len(b), n-at)
		if slow {
			m = min(m, 1+at%977)
			runtime.Gosched()
		}
		for i := range m {
			b[i] = byte((at + i) * 31 >> 3)
		}
		if _, err := c.Write(b[:m]); err != nil {
			return err
		}
		at += m
	}
	return nil
}

// receive reads what send wrote.
func receive(c net.Conn, slow bool) (n int, err error) {
	b := make([]byte, 16384)
	for {
		p := b
		if slow {
			p = b[:1+n%311]
			runtime.Gosched()
		}
		m, err := c.Read(p)
		for i := range m {
			if p[i] != byte((n+i)*31>>3) {
				return n + i, fmt.Errorf("byte %d is another", n+i)
			}
		}
		n += m
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// slowly is a guest's wire from which frames are taken at a measured pace, about 80 MB a second: slower than another
// guest can send.
type slowly struct{ link.Link }

func (s slowly) ReadFrames(b *link.Batch) error {
	time.Sleep(3 * time.Millisecond)
	return s.Link.ReadFrames(b)
}

// A guest that sends to another without end does not keep it from its conversations with the host.
func TestLoopGuestFloodsAnother(t *testing.T) {
	n := start(t, backend.Config{Egress: &egress.Host{}})
	near, far := sockets(t)
	g, err := New(slowly{near}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, n, far, "slow")
	t.Cleanup(func() { g.Close() })
	g.Up(t)
	bad := plugSocket(t, n, Config{}).Up(t)
	frame := Build(Ethernet{Src: bad.MAC(), Dst: g.MAC()}, IPv4{Src: bad.Addr4(), Dst: g.Addr4()}, UDP{SrcPort: 9, DstPort: 9}, Payload(make([]byte, 1400)))
	frames := make([][]byte, 64)
	for i := range frames {
		frames[i] = frame
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				if bad.Send(frames...) != nil {
					return
				}
			}
		}
	}()
	defer func() { close(stop); <-done }()
	eventually(t, "more is sent than is taken", func() bool { return dropped(n, g, flows.ReasonQueueFull) > 1000 })
	const size = 2 << 20
	dst := families[0].listen(t, func(h *net.TCPConn) { send(h, size, false) })
	conn, err := g.Dial(patience(t), "tcp", dst)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * Patience))
	if got, err := receive(conn, false); got != size || err != nil {
		t.Errorf("%d bytes came of %d: %v", got, size, err)
	}
}

// A port forward is taken away while its conversations move bytes on the loop: both ends of each are reset, and what
// the host read until then is the guest's own bytes.
func TestLoopForwardCut(t *testing.T) {
	n, g := onLoop(t, backend.Config{})
	l, err := g.Listen(at(netip.IPv4Unspecified(), 80))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var guests sync.WaitGroup
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			guests.Add(1)
			go func() {
				defer guests.Done()
				defer c.Close()
				send(c, 1<<30, false)
			}()
		}
	}()
	for range 10 {
		rules, err := portforward.ParseRule("tcp:127.0.0.1:0-:80")
		if err != nil {
			t.Fatal(err)
		}
		r, err := n.Forwards().Add(patience(t), rules[0])
		if err != nil {
			t.Fatal(err)
		}
		var hosts sync.WaitGroup
		var moved atomic.Int64
		for range 8 {
			hosts.Add(1)
			go func() {
				defer hosts.Done()
				c, err := net.Dial("tcp", at(r.Host, r.HostPort).String())
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(Patience))
				n, err := receive(&tallied{c, &moved}, false)
				if !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("host read %d bytes, then %v, want a reset", n, err)
				}
			}()
		}
		eventually(t, "bytes move", func() bool { return moved.Load() > 4<<20 })
		if _, err := n.Forwards().Remove(r.String(), true); err != nil {
			t.Error(err)
		}
		hosts.Wait()
		guests.Wait()
		noFlows(t, n)
	}
}

// tallied counts what is read.
type tallied struct {
	net.Conn
	n *atomic.Int64
}

func (c *tallied) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// lossy is a guest's wire for the loop that loses every hundredth frame or so, each way, once it is on.
type lossy struct {
	link.Polled
	r  *rand.Rand // the loop's
	on atomic.Bool
}

func (l *lossy) lose() bool { return l.on.Load() && l.r.IntN(100) == 0 }

func (l *lossy) TryReadFrames(b *link.Batch) error {
	err := l.Polled.TryReadFrames(b)
	b.Frames = slices.DeleteFunc(b.Frames, func(link.Span) bool { return l.lose() })
	return err
}

func (l *lossy) TryWriteFrames(frames []link.Frame) (n int, err error) {
	if len(frames) == 0 {
		return l.Polled.TryWriteFrames(nil)
	}
	for n < len(frames) {
		if l.lose() {
			n++
			continue
		}
		m, err := l.Polled.TryWriteFrames(frames[n : n+1])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Whatever is lost on the wire, the streams are whole.
func TestLoopLossyWire(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		n := start(t, backend.Config{Egress: &egress.Host{}})
		near, far := sockets(t)
		g, err := New(near, Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { g.Close() })
		wire := &lossy{Polled: far.(link.Polled), r: rand.New(rand.NewPCG(3, 4))}
		serve(t, n, wire, "lossy")
		g.Up(t)
		const size = 256 << 10
		var wg sync.WaitGroup
		for range 4 {
			guest, host := meet(t, g, f)
			guest.SetDeadline(time.Now().Add(3 * Patience))
			host.SetDeadline(time.Now().Add(3 * Patience))
			wire.on.Store(true)
			for _, ends := range [][2]net.Conn{{guest, host}, {host, guest}} {
				wg.Add(2)
				go func() {
					defer wg.Done()
					send(ends[0], size, false)
					ends[0].(interface{ CloseWrite() error }).CloseWrite()
				}()
				go func() {
					defer wg.Done()
					if got, err := receive(ends[1], false); got != size || err != nil {
						t.Errorf("%d bytes came of %d: %v", got, size, err)
					}
				}()
			}
		}
		wg.Wait()
		noFlows(t, n)
	})
}

// A guest that is far away has a larger window. How far is seen by its handshake.
func TestLoopLongPath(t *testing.T) {
	const (
		scale = 7       // the window's, as 4 MiB have it
		near  = 2 << 20 // the window: half of 4 MiB
		long  = 10 * time.Millisecond
	)
	both(t, func(t *testing.T, f family) {
		_, g := onLoop(t, backend.Config{})
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at(f.loopback, 0)))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		to := at(f.gateway, uint16(l.Addr().(*net.TCPAddr).Port))
		hop := g.GatewayMAC(t)
		addr := ip("10.0.2.77") // not one that the guest's own stack answers for
		if f.gateway.Is6() {
			addr = ip("fd00:1234::77")
		}
		port := uint16(20000)
		send := func(s TCP) {
			t.Helper()
			s.SrcPort, s.DstPort = port, to.Port()
			var h Layer = IPv4{Src: addr, Dst: to.Addr()}
			if f.gateway.Is6() {
				h = IPv6{Src: addr, Dst: to.Addr()}
			}
			if err := g.Send(Build(Ethernet{Src: g.MAC(), Dst: hop}, h, s)); err != nil {
				t.Fatal(err)
			}
		}
		// window is the one that comes with the host's first byte, after a handshake that took this long at least. It
		// took less than the byte did.
		window := func(handshake time.Duration) (size int, took time.Duration) {
			t.Helper()
			port++
			answer, first := g.Watch(IsTCP("SA"), To(addr), ToPort(port)), g.Watch(IsTCP("PA"), To(addr), ToPort(port))
			defer answer.Stop()
			defer first.Stop()
			began := time.Now()
			send(TCP{Seq: 1000, Flags: "S", Options: []byte{3, 3, scale, 0}})
			seq := answer.Expect(t).TCP.Seq
			time.Sleep(handshake) // this is the long path
			send(TCP{Seq: 1001, Ack: seq + 1, Flags: "A"})
			c, err := l.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			size = int(first.Expect(t).TCP.Window) << scale
			return size, time.Since(began)
		}
		if size, _ := window(long); size != 2*near {
			t.Errorf("far away: window of %d, want %d", size, 2*near)
		}
		size, took := window(0)
		for took >= long { // on a busy machine
			size, took = window(0)
		}
		if size != near {
			t.Errorf("close by: window of %d, want %d", size, near)
		}
	})
}
