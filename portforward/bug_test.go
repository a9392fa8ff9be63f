package portforward

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

// heard is a log to look into.
type heard struct {
	mu sync.Mutex
	b  strings.Builder
}

func (h *heard) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.Write(b)
}

func (h *heard) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.String()
}

// panicking is a guest whose way has a bug.
type panicking struct {
	fakeGuest
	where string
}

func (g *panicking) DialGuest(ctx context.Context, proto, guest string, port uint16, from netip.AddrPort, rule string) (net.Conn, error) {
	if g.where == "dial" && guest == "victim" {
		panic("a bug in dial")
	}
	c, err := g.fakeGuest.DialGuest(ctx, proto, guest, port, from, rule)
	if err == nil && guest == "victim" {
		c = panickingConn{c, g.where}
	}
	return c, err
}

type panickingConn struct {
	net.Conn
	where string
}

func (c panickingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.where == "read" {
		panic("a bug in read")
	}
	return n, err
}

func (c panickingConn) Write(b []byte) (int, error) {
	if c.where == "write" {
		panic("a bug in write")
	}
	return c.Conn.Write(b)
}

func (c panickingConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// A panic on the way to a guest ends that conversation, with its stack in the log. Another's goes on, and so does the
// rule.
func TestPanic(t *testing.T) {
	for _, where := range []string{"dial", "read", "write"} {
		for _, proto := range []string{"tcp", "udp"} {
			t.Run(where+"/"+proto, func(t *testing.T) {
				g := &panicking{where: where}
				g.set("tcp", 80, server(t, echo))
				u, err := net.ListenPacket("udp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					buf := make([]byte, 100)
					for {
						n, from, err := u.ReadFrom(buf)
						if err != nil {
							return
						}
						u.WriteTo(buf[:n], from)
					}
				}()
				t.Cleanup(func() { u.Close(); <-done })
				g.set("udp", 80, u.LocalAddr().String())
				var said heard
				table := newTable(t, Config{Guest: g, Logger: slog.New(slog.NewTextHandler(&said, nil))})
				good := dialHost(t, add(t, table, "127.0.0.1:0:bystander:80"))
				say(t, good, "before")
				hear(t, good, "before")
				r := add(t, table, "127.0.0.1:0:victim:80/"+proto)
				for range 2 {
					c, err := net.Dial(proto, netip.AddrPortFrom(r.Host, r.HostPort).String())
					if err != nil {
						continue // reset already
					}
					c.Write([]byte("x"))
					if proto == "tcp" {
						wantReset(t, c)
					}
					c.Close()
				}
				eventually(t, "the log has both", func() bool { return strings.Count(said.String(), "a bug was met") >= 2 })
				for _, part := range []string{"goroutine ", "bug_test.go", r.String()} {
					if !strings.Contains(said.String(), part) {
						t.Errorf("the log has no %q: %s", part, said.String())
					}
				}
				eventually(t, "nothing of them is left", func() bool {
					s := status(t, table, r)
					return s.Active == 0 && s.Pending == 0
				})
				say(t, good, "after")
				hear(t, good, "after")
			})
		}
	}
}
