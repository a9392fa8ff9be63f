package backend_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

// listens is a policy that lets a conversation go on if its first bytes name good.example, and remembers what it heard.
type listens struct {
	none bool // lets those on, too, that are of no protocol

	mu    sync.Mutex
	heard []flows.Hello
}

func (l *listens) Judge(flows.Query) flows.Verdict {
	return flows.Verdict{Allow: true, Rule: "by name", Inspect: func(h flows.Hello) flows.Verdict {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.heard = append(l.heard, h)
		return flows.Verdict{Allow: h.Name == "good.example" || l.none && h.How == flows.HelloNone, Rule: "named", Reason: flows.ReasonHello, Reject: true}
	}}
}

func (l *listens) all() []flows.Hello {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]flows.Hello(nil), l.heard...)
}

// clientHello is what a TLS client writes first: short, and in several records if the message is cut.
func clientHello(t testing.TB, name string, cut int) []byte {
	t.Helper()
	mine, its := net.Pipe()
	go func() {
		tls.Client(its, &tls.Config{ServerName: name, MaxVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{tls.X25519}}).Handshake()
		its.Close()
	}()
	b := make([]byte, 4096)
	n, err := mine.Read(b)
	mine.Close()
	if err != nil {
		t.Fatal(err)
	}
	message := b[5:n]
	var out []byte
	for len(message) > 0 {
		part := message
		if cut > 0 {
			part = message[:min(cut, len(message))]
		}
		out = append(append(out, 22, 3, 1, byte(len(part)>>8), byte(len(part))), part...)
		message = message[len(part):]
	}
	return out
}

func only(t testing.TB, got []flows.Hello, want flows.Hello) {
	t.Helper()
	if len(got) != 1 || got[0] != want {
		t.Errorf("the policy heard %v, want %v once", got, want)
	}
}

// arrives checks that the host gets just this.
func arrives(t testing.TB, host net.Conn, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(host, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("host read %d bytes %.40q, %v; want %d %.40q", len(got), got, err, len(want), want)
	}
}

// nothing checks that the conversation was reset, and that the host got nothing of it.
func nothing(t testing.TB, guest, host net.Conn) {
	t.Helper()
	if n, err := host.Read(make([]byte, 100)); n > 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("host read %d bytes, %v; want a reset", n, err)
	}
	if _, err := io.Copy(io.Discard, guest); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("guest read %v, want a reset", err)
	}
}

func TestInspect(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		long := bytes.Repeat([]byte("and more "), 100_000)
		for _, tt := range []struct {
			name string
			say  func(t *testing.T, guest *TCPConn) []byte // what is written
			want flows.Hello
		}{
			{"whole", func(t *testing.T, g *TCPConn) []byte {
				b := append(clientHello(t, "good.example", 0), long...)
				g.Write(b)
				return b
			}, flows.Hello{How: flows.HelloTLS, Name: "good.example"}},
			{"by byte, in many records", func(t *testing.T, g *TCPConn) []byte {
				b := clientHello(t, "good.example", 40)
				for i := range b {
					g.Write(b[i : i+1])
				}
				g.Write(long)
				return append(b, long...)
			}, flows.Hello{How: flows.HelloTLS, Name: "good.example"}},
			{"http", func(t *testing.T, g *TCPConn) []byte {
				b := []byte("GET / HTTP/1.1\r\nHost: good.example\r\n\r\n")
				g.Write(b)
				return b
			}, flows.Hello{How: flows.HelloHTTP, Name: "good.example"}},
			{"another name", func(t *testing.T, g *TCPConn) []byte {
				g.Write(append(clientHello(t, "evil.example", 0), long...))
				return nil
			}, flows.Hello{How: flows.HelloTLS, Name: "evil.example"}},
			{"nobody", func(t *testing.T, g *TCPConn) []byte {
				g.Write([]byte("SSH-2.0-OpenSSH_9.9\r\n"))
				return nil
			}, flows.Hello{}},
			{"too much", func(t *testing.T, g *TCPConn) []byte {
				g.Write(append([]byte("GET / HTTP/1.1\r\nX: "), bytes.Repeat([]byte("x"), 64<<10)...))
				return nil
			}, flows.Hello{How: flows.HelloPart}},
			{"the end", func(t *testing.T, g *TCPConn) []byte {
				g.CloseWrite()
				return nil
			}, flows.Hello{}},
			{"a part and the end", func(t *testing.T, g *TCPConn) []byte {
				g.Write(clientHello(t, "good.example", 0)[:50])
				g.CloseWrite()
				return nil
			}, flows.Hello{How: flows.HelloPart}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				p := &listens{}
				n, g := c.up(t, backend.Config{Policy: p})
				guest, host := meet(t, g, f)
				want := tt.say(t, guest)
				if want == nil {
					nothing(t, guest, host)
					noFlows(t, n)
					if got := dropped(n, g, flows.ReasonHello); got != 1 || n.Flows().Counts()["other-name"] != 1 {
						t.Errorf("%d counted, want 1: %v", got, n.Flows().Counts())
					}
				} else {
					arrives(t, host, want)
					host.Write([]byte("answer"))
					if _, err := io.ReadFull(guest, make([]byte, 6)); err != nil {
						t.Errorf("guest read: %v", err)
					}
					eventually(t, "all is counted", func() bool {
						s, _ := flow(n, func(flows.Snapshot) bool { return true })
						return s.UpBytes == uint64(len(want))
					})
					if s, _ := flow(n, func(flows.Snapshot) bool { return true }); s.Name != tt.want.Name || s.Hello != tt.want.How.String() || s.Policy != "named" || s.Waits != "" {
						t.Errorf("shown as %+v", s)
					}
					guest.CloseWrite()
					host.CloseWrite()
					noFlows(t, n)
				}
				only(t, p.all(), tt.want)
			})
		}
	})
}

// Wherever a ClientHello is cut, it is the same.
func TestInspectSplits(t *testing.T) {
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			p := &listens{}
			n, g := c.up(t, backend.Config{Policy: p})
			dst := families[0].listen(t, echo)
			hello := clientHello(t, "good.example", 100)
			for i := 1; i < len(hello); i++ {
				guest, err := g.Dial(patience(t), "tcp", dst)
				if err != nil {
					t.Fatal(err)
				}
				guest.Write(hello[:i])
				g.Sync(t) // the first part has been there
				guest.Write(hello[i:])
				arrives(t, guest, hello)
				guest.Close()
			}
			noFlows(t, n)
			if got := p.all(); len(got) != len(hello)-1 {
				t.Errorf("the policy was asked %d times, want %d", len(got), len(hello)-1)
			}
		})
	}
}

// The far side may speak, and end, before the guest has said anything.
func TestInspectFarSide(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		up := func(t *testing.T) (*listens, *backend.Network, *TCPConn, *net.TCPConn) {
			p := &listens{none: true}
			n, g := c.up(t, backend.Config{Policy: p})
			guest, host := meet(t, g, f)
			host.Write([]byte("220 banner\r\n"))
			arrives(t, guest, []byte("220 banner\r\n"))
			if s, _ := flow(n, func(flows.Snapshot) bool { return true }); s.Waits != "hello" {
				t.Errorf("shown as %+v, want it to wait for a hello", s)
			}
			return p, n, guest, host
		}
		t.Run("speaks first", func(t *testing.T) {
			p, _, guest, host := up(t)
			guest.Write([]byte("EHLO there\r\n"))
			arrives(t, host, []byte("EHLO there\r\n"))
			only(t, p.all(), flows.Hello{})
		})
		t.Run("ends first", func(t *testing.T) {
			p, n, guest, host := up(t)
			host.CloseWrite()
			if _, err := guest.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("guest read %v, want the end", err)
			}
			b := clientHello(t, "good.example", 0)
			guest.Write(b[:100])
			guest.Write(b[100:])
			guest.CloseWrite()
			arrives(t, host, b)
			if _, err := host.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("host read %v, want the end", err)
			}
			noFlows(t, n)
			only(t, p.all(), flows.Hello{How: flows.HelloTLS, Name: "good.example"})
		})
		t.Run("resets", func(t *testing.T) {
			p, n, guest, host := up(t)
			guest.Write([]byte("GET / HTTP/1.1\r\n"))
			host.SetLinger(0)
			host.Close()
			if _, err := guest.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("guest read %v, want a reset", err)
			}
			noFlows(t, n)
			if h := p.all(); len(h) != 0 {
				t.Errorf("the policy heard %v", h)
			}
		})
		t.Run("is reset by the guest", func(t *testing.T) {
			p, n, guest, host := up(t)
			guest.Write([]byte("GET / HTTP/1.1\r\n"))
			guest.Abort()
			if k, err := host.Read(make([]byte, 1)); k > 0 || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("host read %d bytes, %v, want a reset", k, err)
			}
			noFlows(t, n)
			if h := p.all(); len(h) != 0 {
				t.Errorf("the policy heard %v", h)
			}
		})
	})
}

// A guest that begins and does not go on is cut off in time; one that has not begun is not.
func TestInspectTakesTooLong(t *testing.T) {
	t.Parallel() // beside the tests that wait
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := &listens{}
			n, g := c.up(t, backend.Config{Policy: p})
			silent, _ := meet(t, g, families[0])
			guest, host := meet(t, g, families[1])
			begun := time.Now()
			guest.Write([]byte("GET / HTTP/1.1\r\nHost: good.example\r\n"))
			nothing(t, guest, host)
			if took := time.Since(begun); took < 9*time.Second {
				t.Errorf("cut off after %v", took)
			}
			only(t, p.all(), flows.Hello{How: flows.HelloPart})
			if l := n.Flows().List(); len(l) != 1 || l[0].Src != silent.LocalAddr().(*net.TCPAddr).AddrPort() {
				t.Errorf("left: %v, want the silent one", l)
			}
		})
	}
}

// A thousand conversations that begin to say something and never go on cost a thousand small buffers and, on the loop,
// not one goroutine; the next one is heard at once, and nothing of them is left.
func TestInspectManyHeld(t *testing.T) {
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			const count = 1000
			p := &listens{}
			n, g := c.up(t, backend.Config{Policy: p})
			l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at(families[0].loopback, 0)))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			dst := at(families[0].gateway, uint16(l.Addr().(*net.TCPAddr).Port))
			heap := func() uint64 {
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				return m.HeapAlloc
			}
			before, heapBefore := runtime.NumGoroutine(), heap()
			var guests, hosts []net.Conn
			for range count {
				guest, err := g.Dial(patience(t), "tcp", dst)
				if err != nil {
					t.Fatal(err)
				}
				host, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				if len(guests)%2 == 0 {
					guest.Write([]byte("G"))
				}
				guests, hosts = append(guests, guest), append(hosts, host)
			}
			g.Sync(t)
			if more := runtime.NumGoroutine() - before; c.name == "loop" && more > 20 {
				t.Errorf("%d goroutines for %d held conversations", more, count)
			}
			per := (int(heap()) - int(heapBefore)) / count
			t.Logf("%d bytes a conversation, with both ends' stacks", per)
			if per > 64<<10 {
				t.Errorf("%d bytes are held for each", per)
			}
			guest, host := meet(t, g, families[1])
			b := clientHello(t, "good.example", 0)
			guest.Write(b)
			arrives(t, host, b)
			if h := p.all(); len(h) != 1 {
				t.Errorf("%d were judged, want 1", len(h))
			}
			for _, c := range append(append(guests, hosts...), guest, host) {
				abort(c)
			}
			noFlows(t, n)
		})
	}
}

// What a guest may begin to say and not end is bounded for all its conversations together: beyond that it is judged as it is.
func TestInspectHoldsNoMore(t *testing.T) {
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			p := &listens{}
			n, g := c.up(t, backend.Config{Policy: p})
			l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at(families[0].loopback, 0)))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			dst := at(families[0].gateway, uint16(l.Addr().(*net.TCPAddr).Port))
			part := append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xf0}, make([]byte, 16000)...)
			var conns []net.Conn
			for len(p.all()) == 0 && len(conns) < 2*2200 {
				guest, err := g.Dial(patience(t), "tcp", dst)
				if err != nil {
					t.Fatal(err)
				}
				host, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				guest.Write(part)
				conns = append(conns, guest, host)
			}
			if got := len(conns) / 2; got < 500 || got >= 2200 {
				t.Errorf("%d were held", got)
			}
			if h := p.all(); len(h) == 0 || h[0].How != flows.HelloPart {
				t.Errorf("the policy heard %v", h)
			}
			for _, c := range conns {
				abort(c)
			}
			noFlows(t, n)
			guest, host := meet(t, g, families[1])
			b := clientHello(t, "good.example", 0)
			guest.Write(b)
			arrives(t, host, b)
		})
	}
}

func abort(c net.Conn) {
	switch c := c.(type) {
	case *TCPConn:
		c.Abort()
	case *net.TCPConn:
		c.SetLinger(0)
	}
	c.Close()
}

// A policy whose Inspect panics ends the guest, and no other.
func TestInspectPanics(t *testing.T) {
	for _, loop := range []bool{false, true} {
		t.Run(fmt.Sprint("loop ", loop), func(t *testing.T) {
			var e egress.Egress = &Egress{}
			near, far := link.Pipe(256)
			var wire, end link.Link = near, far
			if loop {
				e = &egress.Host{}
				wire, end = sockets(t)
			}
			n := start(t, backend.Config{Egress: e, Policy: policyFunc(func(q flows.Query) flows.Verdict {
				return flows.Verdict{Allow: true, Inspect: func(flows.Hello) flows.Verdict { panic("policy") }}
			})})
			served := make(chan error, 1)
			go func() { served <- n.Serve(context.Background(), end, "test") }()
			g, err := New(wire, Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			other := Plug(t, n, Config{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}).Up(t)
			guest, host := meet(t, g.Up(t), families[0])
			guest.Write([]byte("\x00"))
			if k, err := host.Read(make([]byte, 1)); k > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("host read %d bytes, %v", k, err)
			}
			<-served
			noFlows(t, n)
			other.Sync(t)
		})
	}
}
