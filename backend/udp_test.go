package backend_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
)

func readHost(t testing.TB, c *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	b := make([]byte, 65536)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n], from
}

func readGuest(t testing.TB, c *UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(Patience))
	b := make([]byte, 65536)
	n, from, err := c.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n], from
}

// RFC 4787 REQ-1: two peers see one source. REQ-8: whoever knows it may send in.
func TestUDPEndpointIndependence(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{})
		one, to1 := f.udp(t)
		two, to2 := f.udp(t)
		third, _ := f.udp(t)
		u, err := g.ListenUDP(at(f.any, 4000))
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		u.WriteTo([]byte("to one"), to1)
		u.WriteTo([]byte("to two"), to2)
		m1, from1 := readHost(t, one)
		m2, from2 := readHost(t, two)
		if string(m1) != "to one" || string(m2) != "to two" || from1 != from2 {
			t.Errorf("%q from %s, %q from %s: want one source", m1, from1, m2, from2)
		}
		third.WriteToUDPAddrPort([]byte("uninvited"), from1)
		m, from := readGuest(t, u)
		want := at(f.gateway, uint16(third.LocalAddr().(*net.UDPAddr).Port))
		if string(m) != "uninvited" || from != want {
			t.Errorf("guest read %q from %s, want from %s", m, from, want)
		}
		eventually(t, "one flow, with 12 bytes up in 2 datagrams and 9 down in 1", func() bool {
			s, ok := flow(n, func(s flows.Snapshot) bool { return s.Proto == flows.UDP })
			return ok && n.Flows().Len() == 1 && s.UpBytes == 12 && s.UpPkts == 2 && s.DownBytes == 9 && s.DownPkts == 1
		})
	})
}

// Datagrams of every size, the largest in fragments both ways.
func TestUDPSizes(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		_, g := c.up(t, backend.Config{})
		h, dst := f.udp(t)
		u, err := g.DialUDP(dst)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		for _, size := range []int{0, 1, 2, 1471, 1472, 1473, 2000, 9000, 65506, 65507} {
			msg := bytes.Repeat([]byte{byte(size), 7, byte(size >> 8)}, size/3+1)[:size]
			if _, err := u.Write(msg); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			got, from := readHost(t, h)
			if !bytes.Equal(got, msg) {
				t.Errorf("host read %d bytes, want the %d that were sent", len(got), size)
			}
			if _, err := h.WriteToUDPAddrPort(got, from); err != nil {
				t.Fatal(err)
			}
			if back, _ := readGuest(t, u); !bytes.Equal(back, msg) {
				t.Errorf("guest read %d bytes, want the %d that were sent", len(back), size)
			}
		}
		if _, longest := g.Received(); longest > 1514 {
			t.Errorf("a frame of %d bytes came", longest)
		}
	})
}

func TestUDPRefused(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		_, g := c.up(t, backend.Config{})
		h, dst := f.udp(t)
		h.Close()
		w := g.Watch(IsICMP(f.unreachable, f.port), From(f.gateway), Good(), Quotes(From(f.of(g)), To(dst.Addr()), ToPort(dst.Port())))
		u, err := g.DialUDP(dst)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		u.Write([]byte("anybody?"))
		w.Expect(t)
		u.SetReadDeadline(time.Now().Add(Patience))
		_, _, err = u.ReadFrom(make([]byte, 10))
		wantErr(t, "read", err, syscall.ECONNREFUSED)
	})
}

// The least recently used mapping makes room; what is in use stays.
func TestUDPEvictsTheLeastRecentlyUsed(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{Limits: flows.Limits{UDP: 4}})
		h, dst := f.udp(t)
		hop := g.GatewayMAC(t)
		for i := range uint16(10) {
			g.Send(g.Via(hop, dst.Addr(), UDP{SrcPort: 5000 + i, DstPort: dst.Port()}, Payload("x")))
			readHost(t, h)
		}
		var ports []uint16
		for _, s := range n.Flows().List() {
			ports = append(ports, s.Src.Port())
		}
		if fmt.Sprint(ports) != "[5006 5007 5008 5009]" {
			t.Errorf("mappings of %v are left, want the four youngest", ports)
		}
		if got := n.Flows().Counts()["evicted"]; got != 6 {
			t.Errorf("%d counted as evicted, want 6", got)
		}
	})
}

// Fifty thousand flows of one packet end with the table at its cap, and after Close no descriptor is left.
func TestUDPFiftyThousandFlows(t *testing.T) {
	for i, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			const limit = 512
			count := 50_000
			if c.name == "plain" {
				count = 5_000 // the same code but for the loop's
			}
			f := families[i] // one of each
			var before int
			t.Run("", func(t *testing.T) { // its cleanups run before the descriptors are counted
				h, dst := f.udp(t)
				go func() {
					b := make([]byte, 10)
					for {
						if _, _, err := h.ReadFromUDPAddrPort(b); errors.Is(err, net.ErrClosed) {
							return
						}
					}
				}()
				before = descriptors(t) - 1
				n, g := c.up(t, backend.Config{Limits: flows.Limits{UDP: limit}})
				hop := g.GatewayMAC(t)
				frame := g.Via(hop, dst.Addr(), UDP{SrcPort: 1, DstPort: dst.Port(), NoChecksum: true}, Payload("x"))
				for i := range count {
					g.Send(Patch(frame, len(frame)-9, byte((i+1024)>>8), byte(i+1024)))
					if i%1000 == 0 {
						g.Sync(t)
					}
				}
				g.Sync(t)
				if got := n.Flows().Len(); got != limit {
					t.Errorf("%d flows, want the limit of %d", got, limit)
				}
				// The port space wraps once below 50,000+1024, so every flow was a new one.
				if got := n.Flows().Opened(); got != uint64(count) {
					t.Errorf("%d flows were opened, want %d", got, count)
				}
				if got := descriptors(t); got > before+limit+16 {
					t.Errorf("%d descriptors are open, were %d", got, before)
				}
			})
			eventually(t, "all descriptors are closed", func() bool { return descriptors(t) <= before })
		})
	}
}

// The hostile guest's group 6 (and 5): wrong lengths, no ports, fragments that never end or overlap.
func TestUDPOddDatagrams(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{})
		h, dst := f.udp(t)
		hop := g.GatewayMAC(t)
		udp := func(u UDP, p string) []byte { return g.Via(hop, dst.Addr(), u, Payload(p)) }
		good := UDP{SrcPort: 4000, DstPort: dst.Port()}
		with := func(change func(*UDP)) UDP { u := good; change(&u); return u }
		bad := [][]byte{
			udp(with(func(u *UDP) { u.Length = 7 }), "short"),
			udp(with(func(u *UDP) { u.Length = 3000 }), "long"),
			udp(with(func(u *UDP) { u.DstPort = 0 }), "no port"),
			udp(with(func(u *UDP) { u.SrcPort = 0 }), "no source"),
		}
		g.Send(bad...)
		g.Sync(t)
		if got := dropped(n, g, flows.ReasonMalformed); got != uint64(len(bad)) {
			t.Errorf("%d counted as malformed, want %d", got, len(bad))
		}
		// Never-ending fragments with random IDs: bounded by the stack; what comes after is served.
		big := udp(good, string(make([]byte, 3000)))
		for i := range uint32(5000) {
			g.Send(Fragment(big, 1400, i+10)[0])
		}
		// One that claims more than 64 KiB, and one that overlaps.
		fr := Fragment(big, 1400, 7)
		if f.gateway.Is4() {
			g.Send(Build(Ethernet{Src: g.MAC(), Dst: hop}, IPv4{Src: g.Addr4(), Dst: dst.Addr(), Proto: 17, Offset: 65528, ID: 8}, Payload(make([]byte, 1000))))
		} else {
			g.Send(Build(Ethernet{Src: g.MAC(), Dst: hop}, IPv6{Src: g.Addr6(), Dst: dst.Addr()}, Fragment6{Next: 17, Offset: 65528, ID: 8}, Payload(make([]byte, 1000))))
		}
		g.Send(fr[0], Patch(fr[1], 14+6, fr[0][14+6], fr[0][14+7]), fr[1], fr[2])
		g.Sync(t)
		// Padding and a length that leaves some out: what the length says is carried.
		g.Send(append(udp(good, "right"), make([]byte, 30)...), udp(with(func(u *UDP) { u.Length = 8 + 2; u.NoChecksum = true }), "cut"))
		for _, want := range []string{"right", "cu"} {
			for {
				m, _ := readHost(t, h)
				if len(m) == 3000 { // the overlapping one may or may not be put together
					continue
				}
				if string(m) != want {
					t.Errorf("host read %q, want %q", m, want)
				}
				break
			}
		}
	})
}
