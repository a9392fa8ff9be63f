package backend_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

// buggy panics in one place at a moment, wherever a program's own part of the network can be.
type buggy struct {
	place string
	armed atomic.Bool // from now on
	met   atomic.Int32
}

func (b *buggy) at(place string) {
	if b.place == place && b.armed.Load() {
		b.met.Add(1)
		panic("a bug in " + place)
	}
}

// A panic in what is done for one guest ends that guest's wire, with its stack in the log. Another guest's transfer goes
// on, and so does the network: a guest that is plugged in afterwards is served, and nothing of the one before is left.
func TestPanic(t *testing.T) {
	ask := func(t *testing.T, v *Guest, name string) {
		u, err := v.DialUDP(at(dns4, 53))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() })
		u.Write(question(name))
	}
	dial := func(ctx context.Context, v *Guest, dst netip.AddrPort) net.Conn {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			select {
			case <-v.Gone(): // its stack would wait for an answer
			case <-ctx.Done():
			}
			cancel()
		}()
		c, err := v.Dial(ctx, "tcp", dst)
		if err != nil {
			return nil // so it is with the guest at an end
		}
		return c
	}
	for _, tt := range []struct {
		place string
		do    func(t *testing.T, ctx context.Context, w *panicking)
	}{
		{"the wire's reader", func(t *testing.T, ctx context.Context, w *panicking) {
			w.victim.Send(w.victim.Via(gatewayMAC, gateway4, Echo(gateway4, false, 1, 1)))
		}},
		{"the wire's writer", func(t *testing.T, ctx context.Context, w *panicking) {
			w.victim.Send(w.victim.Via(gatewayMAC, gateway4, Echo(gateway4, false, 1, 1)))
		}},
		{"the wire's writer, for another guest", func(t *testing.T, ctx context.Context, w *panicking) {
			w.g.Send(w.g.Via(w.victim.MAC(), w.victim.Addr4(), Echo(w.victim.Addr4(), false, 1, 1)))
		}},
		{"the wire's end", func(t *testing.T, ctx context.Context, w *panicking) {
			for _, g := range w.n.Guests() {
				if g.MAC == w.victim.MAC().String() {
					w.n.Kick(g.ID)
				}
			}
		}},
		{"dial", func(t *testing.T, ctx context.Context, w *panicking) { dial(ctx, w.victim, at(world4, 80)) }},
		{"the far side's read", func(t *testing.T, ctx context.Context, w *panicking) { dial(ctx, w.victim, at(world4, 80)) }},
		{"the far side's write", func(t *testing.T, ctx context.Context, w *panicking) {
			if c := dial(ctx, w.victim, at(world4, 80)); c != nil {
				c.Write([]byte("x"))
			}
		}},
		{"the far side's end", func(t *testing.T, ctx context.Context, w *panicking) {
			if c := dial(ctx, w.victim, at(world4, 80)); c != nil {
				c.(*TCPConn).CloseWrite()
			}
		}},
		{"socket", func(t *testing.T, ctx context.Context, w *panicking) { datagram(t, w.victim) }},
		{"the socket's read", func(t *testing.T, ctx context.Context, w *panicking) { datagram(t, w.victim) }},
		{"the socket's write", func(t *testing.T, ctx context.Context, w *panicking) { datagram(t, w.victim) }},
		{"ping", func(t *testing.T, ctx context.Context, w *panicking) {
			w.victim.Send(w.victim.Via(gatewayMAC, world4, Echo(world4, false, 1, 1)))
		}},
		{"policy, TCP", func(t *testing.T, ctx context.Context, w *panicking) { dial(ctx, w.victim, at(world4, 80)) }},
		{"policy, UDP", func(t *testing.T, ctx context.Context, w *panicking) { datagram(t, w.victim) }},
		{"policy, the host's dial", func(t *testing.T, ctx context.Context, w *panicking) {
			c, err := w.n.DialContext(ctx, "tcp", at(w.victim.Addr4(), 22).String())
			if err == nil {
				c.Close()
				t.Error("the host's dial came to something")
			}
		}},
		{"policy, a name", func(t *testing.T, ctx context.Context, w *panicking) { ask(t, w.victim, "www.example.") }},
		{"policy, an answer", func(t *testing.T, ctx context.Context, w *panicking) { ask(t, w.victim, "gateway.internal.") }},
		{"log", func(t *testing.T, ctx context.Context, w *panicking) {
			w.victim.Send(Build(Ethernet{Src: w.victim.MAC()}, ARP{SenderMAC: w.victim.MAC(), Sender: gateway4, Target: gateway4})) // is told of
			for _, g := range w.n.Guests() {
				if g.MAC == w.victim.MAC().String() {
					w.n.Kick(g.ID)
				}
			}
		}},
	} {
		for _, loop := range []bool{false, true} {
			name := tt.place + ", plain"
			if loop {
				name = tt.place + ", loop"
				if strings.HasPrefix(tt.place, "the far side") {
					continue // the loop has its own sockets
				}
			}
			t.Run(name, func(t *testing.T) {
				b := &buggy{place: tt.place}
				w := newPanicking(t, b, loop)
				ctx := patience(t)
				idle := w.census(t)
				w.plugVictim(t)
				b.armed.Store(true)
				tt.do(t, ctx, w)
				select {
				case <-w.victim.Gone():
				case <-ctx.Done():
					t.Fatalf("the guest goes on; the bug was met %d times", b.met.Load())
				}
				w.victim.Close()
				select {
				case <-w.served:
				case <-ctx.Done():
					t.Fatal("its port does not end")
				}
				if b.met.Load() == 0 {
					t.Fatal("the bug was not met")
				}
				b.armed.Store(false)
				if n := w.said.count("left behind"); n > 0 {
					t.Error("its port's end was given up")
				}
				if tt.place != "log" {
					eventually(t, "the log has the stack", func() bool { // said by whoever met the bug, who may be another guest's reader
						w.said.mu.Lock()
						defer w.said.mu.Unlock()
						said := w.said.b.String()
						return strings.Contains(said, "a bug was met") && strings.Contains(said, "contain_test.go") && strings.Contains(said, "(*buggy).at")
					})
				}
				w.goesOn(t)
				w.plugVictim(t)
				if err := w.victim.Ping(ctx, gateway4, 1, 1, nil); err != nil {
					t.Errorf("the guest that came again: %v", err)
				}
				w.victim.Close()
				<-w.served
				var now census
				eventually(t, "nothing of it is left", func() bool {
					now = w.census(t)
					return now.goroutines <= idle.goroutines && now.descriptors <= idle.descriptors
				})
			})
		}
	}
}

func question(name string) []byte {
	b := []byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0, 0, 1, 0, 1)
}

func datagram(t *testing.T, g *Guest) {
	u, err := g.DialUDP(at(world4, 9))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	u.Write([]byte("x"))
}

// panicking is a network with a bug, a bystander's transfer, and a guest that is to meet the bug.
type panicking struct {
	n      *backend.Network
	b      *buggy
	loop   bool
	said   *logged
	g      *Guest // the bystander
	moved  atomic.Int64
	victim *Guest
	served chan struct{}
}

func (w *panicking) census(t testing.TB) census {
	return census{runtime.NumGoroutine(), descriptors(t)}
}

func newPanicking(t *testing.T, b *buggy, loop bool) *panicking {
	w := &panicking{b: b, loop: loop, said: &logged{}}
	echoes := families[0].listen(t, unspliced)
	c := backend.Config{
		Policy: buggyPolicy{b},
		Egress: &Egress{
			Dial: func(_ context.Context, dst netip.AddrPort) (net.Conn, error, bool) {
				if dst.Port() != 80 {
					return nil, nil, false
				}
				b.at("dial")
				near, far := net.Pipe()
				go func() {
					far.Write([]byte("x"))
					io.Copy(io.Discard, far)
					far.Close()
				}()
				return buggyConn{near, b}, nil, true
			},
			Open: func(ctx context.Context, network string) (egress.PacketConn, error) {
				b.at("socket")
				c, err := new(egress.Host).ListenPacket(ctx, network, netip.AddrPort{})
				if err != nil {
					return nil, err
				}
				return buggySocket{c, b}, nil
			},
			Echo: func(context.Context, netip.Addr, uint16, []byte) error {
				b.at("ping")
				return nil
			},
		},
		Logger: slog.New(buggyLog{slog.NewTextHandler(w.said, nil), b}),
	}
	if loop {
		c.Egress = buggyLoop{c.Egress.(*Egress), b}
	}
	w.n = start(t, c)
	w.g = Plug(t, w.n, Config{}).Up(t)
	conn, err := w.g.Dial(patience(t), "tcp", echoes)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1000)
		for {
			if _, err := conn.Write(buf); err != nil {
				return
			}
			n, err := io.ReadFull(conn, buf)
			if err != nil {
				return
			}
			w.moved.Add(int64(n))
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	w.goesOn(t)
	return w
}

// goesOn waits until the bystander's transfer has moved on.
func (w *panicking) goesOn(t *testing.T) {
	t.Helper()
	was := w.moved.Load()
	eventually(t, "the bystander's transfer goes on", func() bool { return w.moved.Load() > was+100_000 })
}

func (w *panicking) plugVictim(t *testing.T) {
	t.Helper()
	near, far := link.Pipe(PipeDepth)
	if w.loop {
		near, far = sockets(t)
	}
	var err error
	if w.victim, err = New(near, Config{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0x77}, Gateway4: gateway4, Gateway6: gateway6,
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.77/24"), netip.MustParsePrefix("fd00:1234::77/64")}}); err != nil {
		t.Fatal(err)
	}
	w.served = make(chan struct{})
	served := w.served
	go func() {
		defer close(served)
		w.n.Serve(context.Background(), w.wire(far), "victim")
	}()
	t.Cleanup(func() { w.victim.Close(); <-w.served })
	w.victim.Sync(t)
	// Found by others, and its way to them.
	if _, err := w.g.Resolve(patience(t), ip("10.0.2.77")); err != nil {
		t.Fatal(err)
	}
}

func (w *panicking) wire(l link.Link) link.Link {
	if p, ok := l.(link.Polled); ok && w.loop {
		return buggyPolled{p, w.b}
	}
	return buggyWire{l, w.b}
}

type buggyWire struct {
	link.Link
	b *buggy
}

func (l buggyWire) ReadFrames(b *link.Batch) error {
	l.b.at("the wire's reader")
	err := l.Link.ReadFrames(b)
	l.b.at("the wire's reader")
	return err
}

func (l buggyWire) WriteFrames(f []link.Frame) (int, error) {
	l.b.at("the wire's writer")
	l.b.at("the wire's writer, for another guest")
	return l.Link.WriteFrames(f)
}

func (l buggyWire) Close() error {
	err := l.Link.Close()
	l.b.at("the wire's end")
	return err
}

type buggyPolled struct {
	link.Polled
	b *buggy
}

func (l buggyPolled) TryReadFrames(b *link.Batch) error {
	l.b.at("the wire's reader")
	return l.Polled.TryReadFrames(b)
}

func (l buggyPolled) TryWriteFrames(f []link.Frame) (int, error) {
	l.b.at("the wire's writer")
	l.b.at("the wire's writer, for another guest")
	return l.Polled.TryWriteFrames(f)
}

func (l buggyPolled) Close() error {
	err := l.Polled.Close()
	l.b.at("the wire's end")
	return err
}

// buggyLoop is an Egress with descriptors for a loop.
type buggyLoop struct {
	*Egress
	b *buggy
}

func (e buggyLoop) Connect(_ string, dst netip.AddrPort) (int, error) {
	e.b.at("dial")
	return -1, &egress.UnreachableError{Kind: egress.HostUnreachable, Dst: dst}
}

type buggyConn struct {
	net.Conn
	b *buggy
}

func (c buggyConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.b.at("the far side's read")
	return n, err
}

func (c buggyConn) Write(p []byte) (int, error) {
	c.b.at("the far side's write")
	return c.Conn.Write(p)
}

func (c buggyConn) CloseWrite() error {
	c.b.at("the far side's end")
	return nil
}

type buggySocket struct {
	egress.PacketConn
	b *buggy
}

func (c buggySocket) ReadBorrowed(bufs egress.Buffers) ([]byte, netip.AddrPort, error) {
	c.b.at("the socket's read")
	return c.PacketConn.ReadBorrowed(bufs)
}

func (c buggySocket) WriteTo(p []byte, to netip.AddrPort) (int, error) {
	c.b.at("the socket's write")
	return len(p), nil
}

type buggyPolicy struct{ b *buggy }

func (p buggyPolicy) Judge(q flows.Query) flows.Verdict {
	switch {
	case q.Dir == flows.In:
		p.b.at("policy, the host's dial")
	case q.Proto == flows.UDP:
		p.b.at("policy, UDP")
	case q.Dst.Port() == 80:
		p.b.at("policy, TCP")
	}
	return flows.Verdict{Allow: true}
}

func (p buggyPolicy) JudgeName(guest, name string, _ uint16) flows.Verdict {
	p.b.at("policy, a name")
	return flows.Verdict{Allow: true}
}

func (p buggyPolicy) Answered(_, _ string, addrs []netip.Addr, _ time.Duration, _ bool) []netip.Addr {
	p.b.at("policy, an answer")
	return addrs
}

type buggyLog struct {
	slog.Handler
	b *buggy
}

func (l buggyLog) Handle(ctx context.Context, r slog.Record) error {
	l.b.at("log")
	return l.Handler.Handle(ctx, r)
}

func (l buggyLog) WithAttrs(a []slog.Attr) slog.Handler { return buggyLog{l.Handler.WithAttrs(a), l.b} }
func (l buggyLog) WithGroup(g string) slog.Handler      { return buggyLog{l.Handler.WithGroup(g), l.b} }
