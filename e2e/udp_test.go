//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// flow is what "flows ls" tells of a conversation, as far as tests want to know.
type flow struct {
	Dst       netip.AddrPort
	UpBytes   uint64 `json:"up_bytes"`
	DownBytes uint64 `json:"down_bytes"`
}

func (d *daemon) flows(t *testing.T, args ...string) []flow {
	t.Helper()
	return ask[[]flow](t, d, append([]string{"flows", "ls"}, args...)...)
}

// datagrams is what "guest udp" prints.
type datagrams struct {
	Sent, Answered, Wrong int
	Errors                map[string]int
	From                  map[string]int
}

func testUDP(t *testing.T, b *bench) {
	for _, a := range []string{world4, world6, b.gw4.String(), b.gw6.String()} {
		ns := b.world
		if a == b.gw4.String() || a == b.gw6.String() {
			ns = b.lab.host
		}
		echo := ns.echoUDP(t, b.behind(ns, a))
		for _, tt := range []struct{ size, count int }{{64, 20}, {0, 3}, {1, 3}, {1472, 3}, {1473, 3}, {9000, 3}, {65507, 3}} {
			if !netip.MustParseAddr(a).Is4() && tt.size == 65507 {
				tt.size = 65487 // a fragmented IPv6 packet's fragment header and its own take as much of the 65,535
			}
			var r datagrams
			b.g.json(t, &r, "guest udp -size %d -count %d %s", tt.size, tt.count, target(a, echo))
			if r.Answered != tt.count || r.Wrong != 0 || r.From[target(a, echo)] != tt.count {
				t.Errorf("%s, %d bytes: %+v, want %d answers from it", a, tt.size, r, tt.count)
			}
		}
	}
	wait(t, "the table shows it", func() error {
		if list := b.flows(t, "--guest", "alpha", "--proto", "udp"); len(list) == 0 {
			return fmt.Errorf("no UDP conversation of alpha's")
		}
		return nil
	})
}

func testUDPUnreachable(t *testing.T, b *bench) {
	for _, tt := range []struct{ to, want string }{
		{net.JoinHostPort(world4, "9"), "refused"}, // port unreachable
		{net.JoinHostPort(world6, "9"), "refused"},
		{net.JoinHostPort(b.gw4.String(), "9"), "refused"},
		{net.JoinHostPort(b.gw6.String(), "9"), "refused"},
	} {
		var r datagrams
		b.g.json(t, &r, "guest udp -count 2 %s", tt.to)
		if r.Errors[tt.want] == 0 {
			t.Errorf("%s: %+v, want an error %q", tt.to, r, tt.want)
		}
	}
	// Linux keeps "host unreachable" from a UDP socket that has not asked for it (IP_RECVERR), but counts it.
	for to, count := range map[string]string{noRoute4: "sed -n '/^Icmp: [0-9]/p' /proc/net/snmp", noRoute6: "grep Icmp6InDestUnreachs /proc/net/snmp6"} {
		before := b.g.run(t, "%s", count)
		var r datagrams
		b.g.json(t, &r, "guest udp -wait 1ms %s", net.JoinHostPort(to, "9"))
		wait(t, "host unreachable for a datagram to "+to, func() error {
			if after := b.g.run(t, "%s", count); after == before {
				return errors.New("no ICMP came")
			}
			return nil
		})
	}
}

// testUDPMapping: two servers see one guest socket under one address (RFC 4787 REQ-1), and a third party may answer
// to it (REQ-8).
func testUDPMapping(t *testing.T, b *bench) {
	for _, pair := range [][2]string{{world4, second4}, {world6, second6}} {
		one, two := b.world.listenPacket(t, net.JoinHostPort(pair[0], "0")), b.world.listenPacket(t, net.JoinHostPort(pair[1], "0"))
		seen := func(pc *net.UDPConn) netip.AddrPort {
			t.Helper()
			pc.SetReadDeadline(time.Now().Add(patience))
			_, from, err := pc.ReadFromUDPAddrPort(make([]byte, 2048))
			if err != nil {
				t.Fatal(err)
			}
			return from
		}
		b.g.run(t, "guest udp -from 4567 -wait 0 -size 8 %s && guest udp -from 4567 -wait 0 -size 8 %s", one.LocalAddr(), two.LocalAddr())
		first, second := seen(one), seen(two)
		if first != second {
			t.Errorf("one guest socket is %s to one server and %s to the other", first, second)
		}
		// The guest waits for an answer from anybody: nc gives what it gets.
		sender := b.world.listenPacket(t, net.JoinHostPort(pair[1], "0"))
		port, echo := b.g.listen(t, "guest udp-echo :4567")
		if port != 4567 {
			t.Fatalf("the guest listens at %d", port)
		}
		if _, err := sender.WriteToUDPAddrPort([]byte("from a stranger"), first); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		sender.SetReadDeadline(time.Now().Add(patience))
		n, from, err := sender.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:n]) != "from a stranger" || from != first {
			t.Errorf("a third party's datagram: echoed %q from %s, %v", buf[:n], from, err)
		}
		echo.Kill()
		<-echo.Done()
	}
}
