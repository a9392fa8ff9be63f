package portforward

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// udpServer answers each datagram until the test ends.
func udpServer(t *testing.T, answer func(from netip.AddrPort, p []byte) []byte) string {
	t.Helper()
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if out := answer(from, buf[:n]); err == nil && out != nil {
				pc.WriteToUDPAddrPort(out, from)
			}
		}
	})
	t.Cleanup(func() { pc.Close(); wg.Wait() })
	return pc.LocalAddr().String()
}

func udpEcho(t *testing.T) string {
	return udpServer(t, func(_ netip.AddrPort, p []byte) []byte { return p })
}

// eachKind runs a test with guests whose conns wait, and with guests whose
// conns are Prompt.
func eachKind(t *testing.T, test func(t *testing.T, prompt bool)) {
	t.Run("waiting", func(t *testing.T) { test(t, false) })
	t.Run("prompt", func(t *testing.T) { test(t, true) })
}

// promptConn is Prompt by means of a goroutine.
type promptConn struct{ net.Conn }

func (c promptConn) Receive(f func(p []byte, err error)) bool {
	go func() {
		buf := make([]byte, 65535)
		for {
			n, err := c.Read(buf)
			switch {
			case err == nil:
				f(buf[:n], nil)
			case isRefused(err):
				f(nil, err)
			default:
				f(nil, net.ErrClosed)
				return
			}
		}
	}()
	return true
}

// ask sends a datagram from an unconnected socket and says who answered what.
func ask(t *testing.T, pc *net.UDPConn, to netip.AddrPort, p []byte) ([]byte, netip.AddrPort) {
	t.Helper()
	if _, err := pc.WriteToUDPAddrPort(p, to); err != nil {
		t.Fatal(err)
	}
	return await(t, pc)
}

func await(t *testing.T, pc *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 65535)
	pc.SetReadDeadline(time.Now().Add(patience))
	n, from, err := pc.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func udpClient(t *testing.T, family string) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenUDP(family, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc
}

func TestUDPBothWays(t *testing.T) {
	eachKind(t, func(t *testing.T, prompt bool) {
		for _, c := range []struct {
			rule, family string
			to           []string // addresses to write to
		}{
			{"127.0.0.1:0:53/udp", "udp4", []string{"127.0.0.1"}},
			{"[::1]:0:53/udp", "udp6", []string{"::1"}},
			{"0.0.0.0:0:53/udp", "udp4", []string{"127.0.0.1", "127.0.0.2", "127.1.2.3"}},
			{"[::]:0:53/udp", "udp6", []string{"::1"}},
		} {
			t.Run(c.rule, func(t *testing.T) {
				if runtime.GOOS != "linux" && len(c.to) > 1 {
					c.to = c.to[:1] // only linux answers for all of 127.0.0.0/8
				}
				guest := &fakeGuest{prompt: prompt}
				guest.set("udp", 53, udpEcho(t))
				table := newTable(t, Config{Guest: guest})
				r := add(t, table, c.rule)
				client := udpClient(t, c.family)
				var total uint64
				for _, addr := range c.to {
					to := netip.AddrPortFrom(netip.MustParseAddr(addr), r.HostPort)
					for _, size := range []int{1, 0, 1400, 4096, 4097, 40_000, 65_000} {
						p := randomBytes(size, uint64(size))
						got, from := ask(t, client, to, p)
						if !bytes.Equal(got, p) {
							t.Fatalf("%d bytes came back as %d others", size, len(got))
						}
						if from != to {
							t.Fatalf("wrote to %s, %s answered", to, from)
						}
						total += uint64(size)
					}
				}
				eventually(t, "bytes are counted", func() bool {
					s := status(t, table, r)
					return s.ToClient == total && s.ToGuest == total
				})
				s := status(t, table, r)
				if s.Accepted != uint64(len(c.to)) || s.Active != len(c.to) || s.Pending != 0 || s.Guest != Present {
					t.Errorf("status: %+v", s)
				}
				want := dialled{"udp", "", 53, netip.AddrPort{}, r.String()}
				if got := guest.lastDial(); got != want {
					t.Errorf("dialled %+v, want %+v", got, want)
				}
			})
		}
	})
}

// TestUDPClientsApart: each client address keeps its conversation, so the
// guest can tell them apart and none hears another's answers.
func TestUDPClientsApart(t *testing.T) {
	eachKind(t, func(t *testing.T, prompt bool) {
		guest := &fakeGuest{prompt: prompt}
		guest.set("udp", 53, udpServer(t, func(from netip.AddrPort, p []byte) []byte {
			return fmt.Appendf(nil, "%s for %s", from, p)
		}))
		r := add(t, newTable(t, Config{Guest: guest}), "0:53/udp")
		to := netip.MustParseAddrPort(hostEnd(r))
		seen := make(map[string]bool)
		for i := range 20 {
			c := udpClient(t, "udp4")
			first, _ := ask(t, c, to, fmt.Append(nil, i))
			second, _ := ask(t, c, to, fmt.Append(nil, i))
			if !bytes.Equal(first, second) || !bytes.HasSuffix(first, fmt.Appendf(nil, "for %d", i)) {
				t.Errorf("client %d heard %q, then %q", i, first, second)
			}
			if seen[string(first)] {
				t.Errorf("%q twice", first)
			}
			seen[string(first)] = true
		}
		if n := guest.dialCount(); n != 20 {
			t.Errorf("%d dials for 20 clients", n)
		}
	})
}

func TestUDPRange(t *testing.T) {
	eachKind(t, func(t *testing.T, prompt bool) {
		guest := &fakeGuest{prompt: prompt}
		for i := range 3 {
			guest.set("udp", uint16(9000+i), udpServer(t, func(netip.AddrPort, []byte) []byte { return fmt.Append(nil, i) }))
		}
		table := newTable(t, Config{Guest: guest})
		first := freeRange(t, 3)
		add(t, table, fmt.Sprintf("%d-%d:9000-9002/udp", first, first+2))
		c := udpClient(t, "udp4") // one client, three conversations
		for i := range 3 {
			got, _ := ask(t, c, netip.AddrPortFrom(defaultHost, uint16(first+i)), nil)
			if string(got) != fmt.Sprint(i) {
				t.Errorf("port %d answers %q", i, got)
			}
		}
	})
}

// TestUDPEviction: at the cap the least recently used conversation goes.
func TestUDPEviction(t *testing.T) {
	eachKind(t, func(t *testing.T, prompt bool) {
		guest := &fakeGuest{prompt: prompt}
		guest.set("udp", 53, udpEcho(t))
		table := newTable(t, Config{Guest: guest, UDPSessions: 3})
		r := add(t, table, "0:53/udp")
		to := netip.MustParseAddrPort(hostEnd(r))
		var clients []*net.UDPConn
		for range 4 {
			clients = append(clients, udpClient(t, "udp4"))
		}
		for _, c := range clients[:3] {
			ask(t, c, to, []byte("x"))
		}
		ask(t, clients[0], to, []byte("x")) // now 1 is the oldest
		ask(t, clients[3], to, []byte("x"))
		if s := status(t, table, r); s.Reasons[ReasonEvicted] != 1 || s.Active != 3 || s.Accepted != 4 {
			t.Fatalf("status: %+v", s)
		}
		dials := guest.dialCount()
		for _, i := range []int{0, 2, 3} {
			ask(t, clients[i], to, []byte("x"))
		}
		if n := guest.dialCount() - dials; n != 0 {
			t.Errorf("%d conversations had gone, want only client 1's", n)
		}
		ask(t, clients[1], to, []byte("x"))
		if n := guest.dialCount() - dials; n != 1 {
			t.Errorf("client 1 took %d dials, want 1", n)
		}
	})
}

// TestUDPFlood: many one-packet clients leave the table at its cap, and no
// descriptors behind.
func TestUDPFlood(t *testing.T) {
	eachKind(t, func(t *testing.T, prompt bool) {
		guest := &fakeGuest{prompt: prompt}
		guest.set("udp", 53, udpEcho(t))
		table := newTable(t, Config{Guest: guest, UDPSessions: 16})
		r := add(t, table, "0:53/udp")
		to := netip.MustParseAddrPort(hostEnd(r))
		before := openFiles(t)
		for range 1000 {
			c, err := net.ListenUDP("udp4", nil)
			if err != nil {
				t.Fatal(err)
			}
			ask(t, c, to, []byte("x"))
			c.Close()
		}
		eventually(t, "all but the cap have ended", func() bool { return openFiles(t) <= before+16 })
		// The system may give a client the port of one just before it: then they
		// are one to us.
		if s := status(t, table, r); s.Active != 16 || s.Accepted < 900 || s.Reasons[ReasonEvicted] != s.Accepted-16 {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestUDPIdle(t *testing.T) {
	eachKind(t, func(t *testing.T, prompt bool) {
		guest := &fakeGuest{prompt: prompt}
		guest.set("udp", 53, udpEcho(t))
		table := newTable(t, Config{Guest: guest, UDPIdle: 50 * time.Millisecond})
		r := add(t, table, "0:53/udp")
		c := udpClient(t, "udp4")
		to := netip.MustParseAddrPort(hostEnd(r))
		ask(t, c, to, []byte("x"))
		eventually(t, "the conversation expires", func() bool { return status(t, table, r).Active == 0 })
		if s := status(t, table, r); s.Reasons != nil {
			t.Errorf("an ordinary end has a reason: %+v", s)
		}
		ask(t, c, to, []byte("x"))
		if n := guest.dialCount(); n != 2 {
			t.Errorf("%d dials, want 2", n)
		}
	})
}

// TestUDPTableFull: where the table has no room, a rule makes room among its
// own conversations, and one with none of its own drops the datagram.
func TestUDPTableFull(t *testing.T) {
	eachKind(t, func(t *testing.T, prompt bool) {
		guest := &fakeGuest{prompt: prompt}
		guest.set("udp", 53, udpEcho(t))
		table := newTable(t, Config{Guest: guest, MaxActive: 2})
		r, other := add(t, table, "0:53/udp"), add(t, table, "0:53/udp")
		for range 3 {
			ask(t, udpClient(t, "udp4"), netip.MustParseAddrPort(hostEnd(r)), []byte("x"))
		}
		if s := status(t, table, r); s.Active != 2 || s.Reasons[ReasonEvicted] != 1 {
			t.Errorf("status: %+v", s)
		}
		c := udpClient(t, "udp4")
		if _, err := c.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort(hostEnd(other))); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the drop is counted", func() bool {
			s := status(t, table, other)
			return s.Reasons[ReasonActive] == 1 && s.Refused == 1
		})
	})
}

// TestUDPAbsentGuest: datagrams meet nobody, until somebody is there.
func TestUDPAbsentGuest(t *testing.T) {
	eachKind(t, func(t *testing.T, prompt bool) {
		guest := &fakeGuest{prompt: prompt}
		table := newTable(t, Config{Guest: guest})
		r := add(t, table, "0:53/udp")
		c := udpClient(t, "udp4")
		to := netip.MustParseAddrPort(hostEnd(r))
		for i := range 3 {
			if _, err := c.WriteToUDPAddrPort([]byte("lost"), to); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is counted", func() bool {
				s := status(t, table, r)
				return s.Reasons[ReasonAbsent] == uint64(i+1) && s.Active == 0
			})
		}
		if s := status(t, table, r); s.Guest != Absent || s.LastError == "" {
			t.Errorf("status: %+v", s)
		}
		guest.set("udp", 53, udpEcho(t))
		if got, _ := ask(t, c, to, []byte("found")); string(got) != "found" {
			t.Errorf("got %q", got)
		}
	})
}

// TestUDPPortUnreachable: a closed port in the guest kills neither the rule
// nor the conversation.
func TestUDPPortUnreachable(t *testing.T) {
	eachKind(t, func(t *testing.T, prompt bool) {
		guest := &fakeGuest{prompt: prompt}
		addr := closedPort(t, "udp")
		guest.set("udp", 53, addr)
		table := newTable(t, Config{Guest: guest})
		r := add(t, table, "0:53/udp")
		c := udpClient(t, "udp4")
		to := netip.MustParseAddrPort(hostEnd(r))
		for i := range 5 {
			if _, err := c.WriteToUDPAddrPort([]byte("x"), to); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is counted", func() bool { return status(t, table, r).Reasons[ReasonUnreachable] >= uint64(i+1) })
		}
		if n := guest.dialCount(); n != 1 {
			t.Errorf("%d dials, want 1: the conversation did not last", n)
		}
		// Somebody opens the port at last.
		pc, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		if _, err := c.WriteToUDPAddrPort([]byte("knock"), to); err != nil {
			t.Fatal(err)
		}
		pc.SetReadDeadline(time.Now().Add(patience))
		buf := make([]byte, 10)
		n, from, err := pc.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "knock" {
			t.Fatalf("%q, %v", buf[:n], err)
		}
		if _, err := pc.WriteTo([]byte("open"), from); err != nil {
			t.Fatal(err)
		}
		if got, _ := await(t, c); string(got) != "open" {
			t.Errorf("got %q", got)
		}
	})
}

// TestUDPSlowDial: datagrams wait for the dial, in order and not without end.
func TestUDPSlowDial(t *testing.T) {
	eachKind(t, func(t *testing.T, prompt bool) {
		guest := &fakeGuest{prompt: prompt}
		guest.set("udp", 53, "")
		table := newTable(t, Config{Guest: guest, DialTimeout: time.Hour})
		r := add(t, table, "0:53/udp")
		c := udpClient(t, "udp4")
		to := netip.MustParseAddrPort(hostEnd(r))
		for range udpQueue + 5 {
			if _, err := c.WriteToUDPAddrPort([]byte("x"), to); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the rest is dropped", func() bool { return status(t, table, r).Reasons[ReasonQueue] == 5 })
		if s := status(t, table, r); s.Pending != 1 || guest.dialCount() != 1 {
			t.Errorf("status: %+v", s)
		}
		if _, err := table.Remove(r.ID(), false); err != nil { // gives the dial up
			t.Fatal(err)
		}
	})
}

// TestUDPOrder: a burst arrives whole and in order when it fits the queue.
func TestUDPOrder(t *testing.T) {
	eachKind(t, func(t *testing.T, prompt bool) {
		var (
			mu  sync.Mutex
			got []byte
		)
		guest := &fakeGuest{prompt: prompt}
		guest.set("udp", 53, udpServer(t, func(_ netip.AddrPort, p []byte) []byte {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, p...)
			return nil
		}))
		r := add(t, newTable(t, Config{Guest: guest}), "0:53/udp")
		c := udpClient(t, "udp4")
		var want []byte
		for i := range byte(udpQueue) {
			want = append(want, i)
			if _, err := c.WriteToUDPAddrPort([]byte{i}, netip.MustParseAddrPort(hostEnd(r))); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "all arrive in order", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.Equal(got, want)
		})
	})
}
