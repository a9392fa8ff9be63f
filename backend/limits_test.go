package backend_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
)

// limit is one of a guest's.
func limit(t testing.TB, n *backend.Network, guest, name string) backend.LimitInfo {
	t.Helper()
	list, err := n.Limits(guest)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if l.Name == name {
			return l
		}
	}
	t.Fatalf("no limit %s of %q in %+v", name, guest, list)
	return backend.LimitInfo{}
}

func idOf(t testing.TB, n *backend.Network, g *Guest) string {
	t.Helper()
	for _, i := range n.Guests() {
		if i.MAC == g.MAC().String() {
			return i.ID
		}
	}
	t.Fatal("the guest is not there")
	return ""
}

// A guest has its own limits by its MAC, the network's where it has none, and others while it runs; they outlast its wire.
func TestLimitsOfGuest(t *testing.T) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0x31, 0x31, 0x31}
	n := start(t, backend.Config{Limits: flows.Limits{Flows: 7, UDP: 9}, GuestLimits: map[string]flows.Limits{mac.String(): {Flows: 3}}})
	g := Plug(t, n, Config{MAC: mac}).Up(t)
	other := Plug(t, n, Config{}).Up(t)
	want := func(g *Guest, name string, value int, own bool) {
		t.Helper()
		if l := limit(t, n, idOf(t, n, g), name); l.Value != value || l.Own != own || l.Why == "" {
			t.Errorf("%+v, want %d, own %v", l, value, own)
		}
	}
	want(g, "flows", 3, true)
	want(g, "udp", 9, false)
	want(g, "dials", 1024, false)
	want(other, "flows", 7, false)
	if err := n.ChangeLimits(idOf(t, n, g), map[string]string{"flows": "2", "dns": "5", "leases": "2", "macs": "4"}); err != nil {
		t.Fatal(err)
	}
	if err := n.ChangeLimits("", map[string]string{"flows": "8", "udp": "10"}); err != nil {
		t.Fatal(err)
	}
	want(g, "flows", 2, true)
	want(g, "dns", 5, true)
	want(g, "leases", 2, true)
	want(g, "udp", 10, false)
	want(other, "flows", 8, false)
	if l := limit(t, n, idOf(t, n, g), "leases"); l.Now != 1 || l.Most != 1 {
		t.Errorf("%+v, want one lease", l)
	}
	if l := limit(t, n, idOf(t, n, g), "macs"); l.Now != 1 || l.Most != 1 || l.Hits != 0 {
		t.Errorf("%+v, want one MAC", l)
	}
	g.Close()
	eventually(t, "it is gone", func() bool { return len(n.Guests()) == 1 })
	again := Plug(t, n, Config{MAC: mac}).Up(t)
	want(again, "flows", 2, true)
	if err := n.ChangeLimits(idOf(t, n, again), map[string]string{"flows": "default"}); err != nil {
		t.Fatal(err)
	}
	want(again, "flows", 8, false)
	for set, bad := range map[string]string{"flow": "flows?", "flows": "want a number", "total": "network's"} {
		value := "1"
		if set == "flows" {
			value = "many"
		}
		err := n.ChangeLimits(idOf(t, n, again), map[string]string{set: value, "udp": "1"})
		if err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s=%s: %v, want %q", set, value, err, bad)
		}
	}
	want(again, "udp", 10, false) // all or none
	if _, err := n.Limits("g99"); err == nil {
		t.Error("a guest that is not there has limits")
	}
	if l := limit(t, n, "", "total-dials"); l.Value != 8192 {
		t.Errorf("%+v", l)
	}
	if _, err := backend.New(backend.Config{Limits: flows.Limits{Queue: 1}}); err == nil {
		t.Error("a queue of a byte was taken")
	}
}

// Every limit that is hit is counted where people look.
func TestLimitsAreCounted(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{Limits: flows.Limits{Flows: 4, UDP: 3, MACs: 2, FlowRate: 20}})
		id := idOf(t, n, g)
		to := f.listen(t, echo)
		for range 5 {
			if conn, err := g.Dial(patience(t), "tcp", to); err == nil {
				t.Cleanup(func() { conn.Close() })
			}
		}
		if l := limit(t, n, id, "flows"); l.Now != 4 || l.Most != 4 || l.Hits == 0 {
			t.Errorf("%+v", l)
		}
		_, udp := f.udp(t)
		for i := range 40 {
			g.Send(g.Via(gatewayMAC, udp.Addr(), UDP{SrcPort: uint16(5000 + i), DstPort: udp.Port()}, Payload("x")))
		}
		g.Sync(t)
		if l := limit(t, n, id, "udp"); l.Now != 3 || l.Most != 3 || l.Hits == 0 {
			t.Errorf("%+v", l)
		}
		if l := limit(t, n, id, "flow-rate"); l.Hits == 0 || dropped(n, g, flows.ReasonFlowRate) != l.Hits {
			t.Errorf("%+v, dropped %d", l, dropped(n, g, flows.ReasonFlowRate))
		}
		for i := range 5 {
			g.Send(Build(Ethernet{Src: net.HardwareAddr{2, 9, 9, 9, 9, byte(i)}, Dst: gatewayMAC, Type: 0x88b5}, Payload(make([]byte, 46))))
		}
		g.Sync(t)
		if l := limit(t, n, id, "macs"); l.Now != 2 || l.Most != 2 || l.Hits < 4 {
			t.Errorf("%+v", l)
		}
	})
}

// Datagrams that are never whole cost a bounded amount, which is shown, and one that is whole passes all the same.
func TestFragmentsAreBounded(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		const bound = 256 << 10
		n, g := c.up(t, backend.Config{Limits: flows.Limits{Fragments: bound}})
		id := idOf(t, n, g)
		conn, to := f.udp(t)
		fragment := func(i uint32, offset int, more bool, data []byte) []byte {
			if f.gateway.Is4() {
				return Build(Ethernet{Src: g.MAC(), Dst: gatewayMAC},
					IPv4{Src: g.Addr4(), Dst: to.Addr(), ID: uint16(i), Offset: offset, More: more, Proto: 17}, Payload(data))
			}
			return Build(Ethernet{Src: g.MAC(), Dst: gatewayMAC}, IPv6{Src: g.Addr6(), Dst: to.Addr(), Next: 44},
				Fragment6{Next: 17, ID: i, Offset: offset, More: more}, Payload(data))
		}
		for i := range uint32(5000) {
			g.Send(fragment(1000+i, 8, true, make([]byte, 1400)))
		}
		g.Sync(t)
		l := limit(t, n, id, "fragments")
		if l.Value != bound || l.Now == 0 || l.Now > bound || l.Most < l.Now || l.Most > bound || l.Hits == 0 {
			t.Errorf("%+v", l)
		}
		t.Logf("%d bytes now, %d at most, %d times forgotten", l.Now, l.Most, l.Hits)
		src := g.Addr4()
		if !f.gateway.Is4() {
			src = g.Addr6()
		}
		whole := datagramOf(src, to, make([]byte, 2000))
		g.Send(fragment(7, 0, true, whole[:1400]), fragment(7, 1400, false, whole[1400:]))
		b := make([]byte, 4000)
		if m, _, err := conn.ReadFrom(b); err != nil || m != 2000 {
			t.Errorf("%d bytes, %v", m, err)
		}
		if err := n.ChangeLimits(id, map[string]string{"fragments": "1MiB"}); err != nil {
			t.Fatal(err)
		}
		for i := range uint32(3000) {
			g.Send(fragment(9000+i, 8, true, make([]byte, 1400)))
		}
		g.Sync(t)
		if l := limit(t, n, id, "fragments"); l.Now <= bound || l.Now > 1<<20 {
			t.Errorf("%+v after it was raised", l)
		}
	})
}

// datagramOf is a UDP header with its checksum, and payload.
func datagramOf(src netip.Addr, dst netip.AddrPort, payload []byte) []byte {
	var ip Layer = IPv4{Src: src, Dst: dst.Addr()}
	skip := 14 + 20
	if src.Is6() {
		ip, skip = IPv6{Src: src, Dst: dst.Addr()}, 14+40
	}
	return Build(Ethernet{}, ip, UDP{SrcPort: 4444, DstPort: dst.Port()}, Payload(payload))[skip:]
}

// A guest with a rate gets about that each way, and another none of it: what it sends is not lost, only late.
func TestByteRate(t *testing.T) {
	const rate, size = 1 << 20, 1 << 20 // which any machine exceeds
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{})
		id := idOf(t, n, g)
		other := Plug(t, n, Config{}).Up(t)
		to := f.listen(t, func(c *net.TCPConn) { io.CopyN(io.Discard, c, size); c.Write(make([]byte, size)); c.CloseWrite() })
		timed := func(g *Guest) (up, down time.Duration) {
			conn, err := g.Dial(patience(t), "tcp", to)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(Patience))
			began := time.Now()
			if _, err := conn.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			up = time.Since(began)
			if n, err := io.Copy(io.Discard, conn); err != nil || n != size-1 {
				t.Fatal(n, err)
			}
			return up, time.Since(began) - up
		}
		if err := n.ChangeLimits(id, map[string]string{"up": fmt.Sprint(rate), "down": fmt.Sprint(rate)}); err != nil {
			t.Fatal(err)
		}
		up, down := timed(g)
		fast, _ := timed(other)
		t.Logf("%d bytes up in %v, down in %v; another guest's in %v", size, up, down, fast)
		// Less what may move at once, and the last that was read, for which nobody waits.
		if least := time.Duration(size/2) * time.Second / rate; up < least || down < least {
			t.Errorf("up in %v, down in %v, want at least %v", up, down, least)
		}
		for _, name := range []string{"up", "down"} {
			if l := limit(t, n, id, name); l.Value != rate || l.Hits == 0 {
				t.Errorf("%+v", l)
			}
		}
		if d := dropped(n, g, flows.ReasonMalformed); d > 0 {
			t.Errorf("%d frames were dropped", d)
		}
		// Taken off again while it is held: at this rate it would be for two minutes.
		before := limit(t, n, id, "up").Hits
		if err := n.ChangeLimits(id, map[string]string{"up": "8000"}); err != nil {
			t.Fatal(err)
		}
		conn, err := g.Dial(patience(t), "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(Patience))
		done := make(chan error, 1)
		go func() {
			conn.Write(make([]byte, size))
			_, err := conn.Read(make([]byte, 1))
			done <- err
		}()
		eventually(t, "it is held", func() bool { return limit(t, n, id, "up").Hits > before })
		if err := n.ChangeLimits(id, map[string]string{"up": "none", "down": "default"}); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("after it was let go: %v", err)
		}
	})
}
