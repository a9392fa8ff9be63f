package backend_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/impair"
)

func line(t testing.TB, words string) impair.Way {
	t.Helper()
	w, err := impair.ParseWay(words, nil)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// echoed says how long a few bytes take to the host and back over c.
func echoed(t testing.TB, c net.Conn) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// A guest that is here already is impaired from one moment to the next, each way, and not any more from another: its
// connection lives through it all, and no other guest notices.
func TestImpairLive(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{})
		id := idOf(t, n, g)
		to := f.listen(t, echo)
		conn, err := g.Dial(patience(t), "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(Patience))
		quick := func(what string) {
			t.Helper()
			eventually(t, what, func() bool { return echoed(t, conn) < 80*time.Millisecond }) // or this machine is busy
		}
		quick("at first")
		for _, s := range []impair.Settings{
			{Up: line(t, "latency=50ms"), Down: line(t, "latency=50ms")},
			{Up: line(t, "latency=100ms")},
			{Down: line(t, "latency=100ms")},
			{Down: line(t, "latency=100ms"), Flows: []impair.Flow{{Name: "udp", Match: match(t, "*:udp")}}},
		} {
			if err := n.Impair(id, &s); err != nil {
				t.Fatal(err)
			}
			if d := echoed(t, conn); d < 100*time.Millisecond {
				t.Errorf("%+v: there and back in %v", s, d)
			}
		}
		info, err := n.Impairment(id)
		if err != nil || !info.Own || info.Settings.Seed == 0 || info.MAC != g.MAC().String() || len(info.Down) != 2 || info.Down[1].Passed == 0 {
			t.Errorf("%+v, %v", info, err)
		}
		if err := n.Impair(id, &impair.Settings{}); err != nil {
			t.Fatal(err)
		}
		quick("after it was taken off")
		// Much of it, under changes, comes whole.
		const size = 1 << 20
		data := bytes.Repeat([]byte("0123456789abcdef"), size/16)
		sent := make(chan error, 1)
		go func() { _, err := conn.Write(data); sent <- err }()
		got := make([]byte, size)
		for at := 0; at < size; {
			m, err := conn.Read(got[at:min(at+100<<10, size)])
			if err != nil {
				t.Fatalf("after %d bytes: %v", at, err)
			}
			before := at
			if at += m; before*8/size != at*8/size {
				for i := range 8 {
					if before*8/size <= i && i < at*8/size {
						s := []impair.Settings{{Up: line(t, "latency=5ms")}, {Down: line(t, "rate=400mbit,latency=2ms,queue=4MB")}, {}, {Up: line(t, "duplicate=1%,latency=1ms,reorder=2%")}}[i%4]
						if err := n.Impair(id, &s); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
		}
		if err := <-sent; err != nil || !bytes.Equal(got, data) {
			t.Errorf("it came otherwise than it was sent: %v", err)
		}
	})
}

func match(t testing.TB, s string) impair.Match {
	t.Helper()
	m, err := impair.ParseMatch(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Datagrams to the host are lost as many as should be, the same with the same seed, and counted.
func TestImpairLoss(t *testing.T) {
	const datagrams = 3000
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			f := families[0]
			n, g := c.up(t, backend.Config{})
			conn, to := f.udp(t)
			arrived := func(seed uint64) []byte {
				id := idOf(t, n, g)
				s := impair.Settings{Seed: seed, Flows: []impair.Flow{{Name: "lossy", Match: match(t, fmt.Sprintf("*:udp:%d", to.Port())), Up: line(t, "loss=20%,latency=1ms")}}}
				if err := n.Impair(id, &s); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, datagrams)
				via := g.GatewayMAC(t)
				for i := range datagrams {
					g.Send(g.Via(via, to.Addr(), UDP{SrcPort: 5000, DstPort: to.Port()}, Payload(fmt.Appendf(nil, "%d", i))))
					if i%100 == 99 {
						g.Sync(t) // no more at once than the host's socket holds
					}
				}
				passed := func() uint64 {
					info, err := n.Impairment(id)
					if err != nil {
						t.Fatal(err)
					}
					if info.Up[0].Frames != info.Up[0].Lost+info.Up[0].Passed {
						return 0
					}
					return info.Up[0].Passed
				}
				eventually(t, "all have arrived", func() bool { return passed() > 0 })
				b := make([]byte, 100)
				for range passed() - before {
					m, err := conn.Read(b)
					if err != nil {
						t.Fatal(err)
					}
					i := 0
					fmt.Sscan(string(b[:m]), &i)
					got[i]++
				}
				before = passed()
				return got
			}
			before = 0
			one, again, other := arrived(7), arrived(7), arrived(8)
			if !bytes.Equal(one, again) {
				t.Error("one seed, two outcomes")
			}
			if bytes.Equal(one, other) {
				t.Error("two seeds, one outcome")
			}
			lost := bytes.Count(one, []byte{0})
			if lost < 600-3*22 || lost > 600+3*22 {
				t.Errorf("%d of %d lost, want 600 ± 66", lost, datagrams)
			}
			if d := dropped(n, g, flows.ReasonImpaired); d < uint64(3*lost-200) {
				t.Errorf("%d are counted", d)
			}
		})
	}
}

var before uint64 // of TestImpairLoss: what had passed in the runs before

// A guest that comes again by its MAC, or by its name with another MAC, has what it had; another has the network's.
func TestImpairStays(t *testing.T) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0x41, 0x41, 0x41}
	n := start(t, backend.Config{Impair: &impair.Settings{Down: line(t, "latency=1ms")}, GuestImpair: map[string]impair.Settings{"Web": {Down: line(t, "latency=3ms")}}})
	words := func(g *Guest) string {
		info, err := n.Impairment(idOf(t, n, g))
		if err != nil {
			t.Fatal(err)
		}
		return info.Settings.Down.String()
	}
	g := Plug(t, n, Config{MAC: mac, Name: "db"}).Up(t)
	if w := words(g); w != "latency=1ms" {
		t.Errorf("the network's is not in force: %s", w)
	}
	if err := n.Impair(idOf(t, n, g), &impair.Settings{Down: line(t, "latency=2ms"), Seed: 99}); err != nil {
		t.Fatal(err)
	}
	gone := func(g *Guest) {
		g.Close()
		eventually(t, "it is gone", func() bool {
			return !slices.ContainsFunc(n.Guests(), func(i backend.GuestInfo) bool { return i.MAC == g.MAC().String() })
		})
	}
	gone(g)
	g = Plug(t, n, Config{MAC: mac}).Up(t)
	if info, _ := n.Impairment(idOf(t, n, g)); words(g) != "latency=2ms" || info.Settings.Seed != 99 {
		t.Errorf("by its MAC: %+v", info)
	}
	gone(g)
	for _, l := range n.Leases() { // or the name is still its
		if err := n.ReleaseLease(l.Addr); err != nil {
			t.Fatal(err)
		}
	}
	other := Plug(t, n, Config{Name: "DB"}).Up(t)
	eventually(t, "by its name", func() bool { return words(other) == "latency=2ms" })
	web := Plug(t, n, Config{Name: "web"}).Up(t)
	eventually(t, "by the name of the configuration", func() bool { return words(web) == "latency=3ms" })
	if err := n.Impair(idOf(t, n, other), nil); err != nil {
		t.Fatal(err)
	}
	if w := words(other); w != "latency=1ms" {
		t.Errorf("given back to the network's: %s", w)
	}
	if err := n.Impair("", &impair.Settings{Down: line(t, "latency=4ms")}); err != nil {
		t.Fatal(err)
	}
	if w := words(other); w != "latency=4ms" {
		t.Errorf("the network's was changed: %s", w)
	}
	if w := words(web); w != "latency=3ms" {
		t.Errorf("a guest's own was changed: %s", w)
	}
	if err := n.Impair("", nil); err != nil {
		t.Fatal(err)
	}
	if w := words(other); w != "none" {
		t.Errorf("the network's was taken off: %s", w)
	}
	for _, bad := range []error{n.Impair("g99", nil), n.Impair(idOf(t, n, web), &impair.Settings{Up: impair.Way{Loss: 3}})} {
		if bad == nil {
			t.Error("nonsense was taken")
		}
	}
	if _, err := n.Impairment("g99"); err == nil {
		t.Error("a guest that is not there has settings")
	}
	if _, err := backend.New(backend.Config{Impair: &impair.Settings{Down: impair.Way{Latency: -1}}}); err == nil || !strings.Contains(err.Error(), "0s to 1m") {
		t.Errorf("a negative latency was taken: %v", err)
	}
}

// However much a guest sends into a line of ten seconds, or has sent to it, a bounded amount is held; the guest goes, and
// with it all of that.
func TestImpairBounded(t *testing.T) {
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			n, g := c.up(t, backend.Config{})
			id := idOf(t, n, g)
			if err := n.Impair(id, &impair.Settings{Up: line(t, "latency=10s,memory=1MiB"), Down: line(t, "latency=10s,memory=1MiB")}); err != nil {
				t.Fatal(err)
			}
			frame := Build(Ethernet{Src: g.MAC(), Dst: gatewayMAC, Type: 0x88b5}, Payload(make([]byte, 1400)))
			full := func() bool {
				info, err := n.Impairment(id)
				if err != nil {
					t.Fatal(err)
				}
				if w := info.Up[0].UnderWay; w > 1<<20 {
					t.Fatalf("%d bytes are held", w)
				}
				return info.Up[0].Full > 1000
			}
			eventually(t, "the line is full", func() bool {
				for range 200 {
					g.Send(frame)
				}
				return full()
			})
			g.Close()
			eventually(t, "it is gone", func() bool { return len(n.Guests()) == 0 })
			again := Plug(t, n, Config{MAC: g.MAC()})
			again.Send(frame)
			eventually(t, "it is back, and its line is empty", func() bool {
				for _, i := range n.Guests() {
					if info, err := n.Impairment(i.ID); err == nil && i.MAC != "" {
						return info.Own && info.Up[0].UnderWay < 100000
					}
				}
				return false
			})
		})
	}
}

// What is not set costs next to nothing, and a line of 10 ms carries a gigabit a second. Run by hand, alone on a machine:
// VMNETD_MEASURE=1 go test -run TestImpairCosts -v ./backend
func TestImpairCosts(t *testing.T) {
	if os.Getenv("VMNETD_MEASURE") == "" {
		t.Skip("measures; wants a machine of its own")
	}
	for _, words := range []string{"none", "latency=10ms", "rate=2gbit,latency=10ms,queue=4MB"} {
		n := start(t, backend.Config{Egress: &egress.Host{}})
		g := plugSocket(t, n, Config{}).Up(t)
		f := families[0]
		to := f.listen(t, func(c *net.TCPConn) { io.Copy(io.Discard, c); c.CloseWrite() })
		if err := n.Impair(idOf(t, n, g), &impair.Settings{Up: line(t, words), Down: line(t, words)}); err != nil {
			t.Fatal(err)
		}
		conn, err := g.Dial(patience(t), "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 256<<10)
		began, sent := time.Now(), 0
		for time.Since(began) < 5*time.Second {
			m, err := conn.Write(b)
			if err != nil {
				t.Fatal(err)
			}
			sent += m
		}
		t.Logf("%s: %.2f Gbit/s", words, float64(sent)*8/time.Since(began).Seconds()/1e9)
		conn.Close()
		if errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	}
}
