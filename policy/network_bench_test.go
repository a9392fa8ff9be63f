package policy_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/policy"
)

// world is a guest behind a network, and a server on the host's loopback that has a public address for the guest.
type world struct {
	g   *backendtest.Guest
	dst netip.AddrPort
}

var server = netip.MustParseAddr("198.51.100.1")

// newWorld has rules rules in force and as many names open; with none, the policy of a network that nobody configured.
func newWorld(b *testing.B, rules int, serve func(net.Conn)) *world {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	e := &backendtest.Egress{}
	e.Dial = func(ctx context.Context, dst netip.AddrPort) (net.Conn, error, bool) {
		c, err := e.Host.DialContext(ctx, "tcp4", at)
		return c, err, true
	}
	many := flows.Limits{Flows: 1 << 16, Total: 1 << 16, Dials: 1 << 12, FlowRate: 1 << 20}
	n, err := backend.New(backend.Config{Logger: slog.New(slog.DiscardHandler), Egress: e, Limits: many})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { n.Close() })
	w := &world{g: backendtest.Plug(b, n, backendtest.Config{}), dst: netip.AddrPortFrom(server, 22)}
	w.g.Up(b)
	if rules == 0 {
		return w
	}
	var s strings.Builder
	s.WriteString("preset sandbox\n")
	for i := range rules / 2 {
		fmt.Fprintf(&s, "allow tcp 44.%d.%d.0/24:%d\n", i/256, i%256, 1+i)
		fmt.Fprintf(&s, "allow tcp *.n%d.example.net:443\n", i)
	}
	s.WriteString("allow tcp *.example.com:22\n")
	d, err := policy.Parse(s.String())
	if err != nil {
		b.Fatal(err)
	}
	p, err := policy.New(policy.Config{Document: d, Network: n.DefaultPolicy(), Identify: n.Identify})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	n.SetPolicy(p, false)
	id := n.Guests()[0].ID
	for i := range rules {
		p.Answered(id, fmt.Sprintf("www.n%d.example.net", i/2), []netip.Addr{netip.AddrFrom4([4]byte{44, 1, byte(i >> 8), byte(i)})}, time.Hour, false)
	}
	p.Answered(id, "git.example.com", []netip.Addr{server}, time.Hour, false)
	return w
}

func (w *world) dial(b *testing.B) net.Conn {
	ctx, cancel := context.WithTimeout(context.Background(), backendtest.Patience)
	defer cancel()
	c, err := w.g.Dial(ctx, "tcp", w.dst)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// ratio runs one turn with rules, one without, and so on, since a machine is not as fast all the time, and tells the
// median of what turns with rules achieve of those beside them.
func ratio(b *testing.B, without, with *world, turn func(*world) time.Duration) {
	turn(without)
	turn(with)
	var rs []float64
	for b.Loop() {
		var x, y time.Duration
		for i := range 4 {
			if (i+len(rs))%2 == 0 {
				x += turn(without)
				y += turn(with)
			} else {
				y += turn(with)
				x += turn(without)
			}
		}
		rs = append(rs, float64(x)/float64(y))
	}
	slices.Sort(rs)
	b.ReportMetric(rs[len(rs)/2], "ratio")
}

const mostRules = 1000

// New connections in a time with 1,000 rules and 1,000 names, of those without a policy.
func BenchmarkConnections(b *testing.B) {
	serve := func(c net.Conn) { io.Copy(c, c) }
	without, with := newWorld(b, 0, serve), newWorld(b, mostRules, serve)
	ratio(b, without, with, func(w *world) time.Duration {
		start := time.Now()
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for range 25 {
					c := w.dial(b)
					var one [1]byte
					c.Write(one[:])
					if _, err := io.ReadFull(c, one[:]); err != nil {
						b.Error(err)
					}
					c.Close()
				}
			})
		}
		all.Wait()
		return time.Since(start)
	})
}

// Bytes in a time, likewise.
func BenchmarkThroughput(b *testing.B) {
	serve := func(c net.Conn) {
		n, _ := io.Copy(io.Discard, c)
		fmt.Fprint(c, n)
	}
	without, with := newWorld(b, 0, serve), newWorld(b, mostRules, serve)
	chunk := make([]byte, 1<<20)
	const size = 16 << 20
	ratio(b, without, with, func(w *world) time.Duration {
		start := time.Now()
		c := w.dial(b)
		defer c.Close()
		for range size / len(chunk) {
			if _, err := c.Write(chunk); err != nil {
				b.Fatal(err)
			}
		}
		c.(interface{ CloseWrite() error }).CloseWrite()
		if got, err := io.ReadAll(c); err != nil || string(got) != fmt.Sprint(size) {
			b.Fatalf("the server got %s, %v", got, err)
		}
		return time.Since(start)
	})
}
