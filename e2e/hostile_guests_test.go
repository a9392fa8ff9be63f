//go:build linux

package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/e2e/traffic"
)

// TestHostileGuests is what one guest does for long or very often. Each says how long and how often, in CI and with
// VMNETD_E2E_HOSTILE=long.
func TestHostileGuests(t *testing.T) {
	a := newArena(t)
	for _, g := range []struct {
		name string
		run  func(*testing.T, *arena)
	}{
		{"stalls", guestStalls},
		{"deaf-to-a-peer", guestDeafToPeer},
		{"small-frames", guestSmallFrames},
		{"fragments", guestFragments},
		{"storm", guestStorm},
		{"spoofed-macs", guestMACs},
		{"connections", guestConnections},
		{"reconnects", guestReconnects},
	} {
		t.Run(g.name, func(t *testing.T) { g.run(t, a) })
	}
}

// guestStalls: guests that stop reading and writing between frames and mid-frame, and one whose frame comes a byte a
// second, while the network has something to say to each of them. 2 s in CI, long two minutes (the byte a second is one
// every 50 ms in CI).
func guestStalls(t *testing.T, a *arena) {
	x := a.try(t, t.Name())
	stall := either(2*time.Second, 2*time.Minute)
	x.suffer(t, stall, func(t *testing.T, on *daemon) func() {
		var open []net.Conn
		var macs []hw
		var ends []func()
		for _, rest := range [][]byte{nil, {0}, {0, 0, 4}, append(binary.BigEndian.AppendUint32(nil, 1400), make([]byte, 700)...)} {
			c, err := net.Dial("unix", on.unix)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
			s := a.station(t)
			macs = append(macs, s.MAC)
			end := a.talkTo(t, c, s)
			ends = append(ends, end)
			if _, err := c.Write(rest); err != nil {
				t.Error(err)
			}
		}
		slow, err := net.Dial("unix", on.unix)
		if err != nil {
			t.Fatal(err)
		}
		s := a.station(t)
		frame := framed(s.ping(s.GW4, 1, 1))
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(either(50*time.Millisecond, time.Second)):
				}
				slow.Write(frame[i%len(frame):][:1])
			}
		})
		return func() {
			close(stop)
			wg.Wait()
			slow.Close()
			for i, c := range open {
				if on == a.daemon {
					if g, ok := a.info(t, macs[i]); !ok || g.Queued > g.QueueSize {
						t.Errorf("a guest that stalls: %+v, there: %v", g, ok)
					}
				}
				ends[i]()
				c.Close()
			}
		}
	})
	x.end(t)
}

// talkTo has a peer in the world send datagrams to a guest that does not read, a thousand a second.
func (a *arena) talkTo(t *testing.T, c net.Conn, s station) (end func()) {
	t.Helper()
	peer := a.world.listenPacket(t, net.JoinHostPort(world4, "0"))
	if _, err := c.Write(framed(s.udp(6001, peer.LocalAddr().(*net.UDPAddr).AddrPort(), []byte("talk to me")))); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1400)
	peer.SetReadDeadline(time.Now().Add(patience))
	_, from, err := peer.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				for range 10 {
					peer.WriteToUDPAddrPort(b, from)
				}
			}
		}
	})
	return func() {
		close(stop)
		wg.Wait()
		peer.Close()
	}
}

// guestDeafToPeer: a peer in the world sends by TCP to a guest that acknowledges nothing, and to one that closes its
// window. What the daemon takes of it is bounded, and the peer's own kernel holds the rest: its send queue stands.
func guestDeafToPeer(t *testing.T, a *arena) {
	x := a.try(t, t.Name())
	for _, at := range []string{world4, world6} {
		for name, window := range map[string]uint16{"acknowledges nothing": 65535, "closes its window": 0} {
			t.Run(name+", "+at, func(t *testing.T) {
				rss := a.memory(t)
				taken := make(chan int64, 1)
				peer := a.world.serve(t, "tcp", net.JoinHostPort(at, "0"), func(_ context.Context, c net.Conn, _ *traffic.Report) error {
					b := make([]byte, 64<<10)
					var n int64
					defer func() { taken <- n }()
					for {
						m, err := c.Write(b)
						n += int64(m)
						if err != nil {
							return err
						}
					}
				})
				to := netip.MustParseAddrPort(peer.Addr().String())
				w := a.plug(t)
				c := w.connect(t, to, 65535)
				if window == 0 {
					// It takes one segment, and then no more.
					f := w.expect(t, "a segment", func(f []byte) bool { _, b := upper(f); return toPort(f, c.port) && len(b) > 100 })
					_, b := upper(f)
					c.ack = binary.BigEndian.Uint32(b[4:]) + uint32(len(b)) - 20
					w.send(t, w.tcp(c.port, to, seg{flags: ack, seq: c.seq, ack: c.ack}))
				}
				// The peer's queue does not get shorter any more, as ss has it. The daemon has had its buffers' worth.
				var last, same int
				waitFor(t, 20*time.Second, "the peer's queue stands", func() error {
					q := a.sendQueue(t, to)
					if q > 0 && q == last {
						same++
					} else {
						last, same = q, 0
					}
					if same < 10 {
						return fmt.Errorf("%d bytes", q)
					}
					return nil
				})
				g, _ := a.info(t, w.MAC)
				list, err := a.ctl.Flows(t.Context(), control.FlowFilter{Guest: g.MAC})
				if err != nil || len(list) != 1 {
					t.Fatalf("flows: %+v, %v", list, err)
				}
				more := a.memory(t) - rss
				t.Logf("the peer's kernel holds %d bytes; %d bytes wait for the guest; the daemon has grown by %d KB", last, g.Queued, more>>10)
				if more > 24<<20 { // a conversation's buffers are 4 MB (backend's tcpBuffer), twice in the host's socket
					t.Errorf("the daemon has grown by %d MB for a guest that does not read", more>>20)
				}
				w.send(t, c.seg(seg{flags: rst | ack}))
				w.none(t, a)
				w.c.Close()
				peer.Close()
				if n := <-taken; n > 64<<20 {
					t.Errorf("the peer got rid of %d bytes", n)
				} else {
					t.Logf("the peer got rid of %d bytes in all", n)
				}
			})
		}
	}
	x.end(t)
}

// sendQueue is what a socket in the world has not got rid of, by ss(8).
func (a *arena) sendQueue(t *testing.T, at netip.AddrPort) (n int) {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command("ss", "-Htn", "state", "established", "src", at.String())
	cmd.Stdout = &out
	if err := a.world.Run(cmd); err != nil {
		t.Fatal(err)
	}
	var r int
	fmt.Sscan(out.String(), &r, &n)
	return n
}

// guestSmallFrames: 60-byte frames (64 with their check sum) as fast as a process can write them: to the gateway, to
// another guest, to nobody, as conversations. 1 s each in CI, long 8 s.
//
// The last is to the bystander itself: all of it is written to its wire as long as that takes it, and its own VMM and
// kernel, at microseconds a frame, are busier with it than with the transfer. How much is left of that is told, and
// nothing is asked for but that the transfer goes on when the flood is over, that the daemon holds no more, and that the
// control socket answers. A guest that is not to be sent frames by others is kept from them by --isolate.
func guestSmallFrames(t *testing.T, a *arena) {
	s := a.station(t)
	lot := func(f []byte) (list [][]byte) {
		for range 1000 {
			list = append(list, append(f, make([]byte, max(0, 60-len(f)))...))
		}
		return list
	}
	victim := a.station(t)
	to := func(m hw, at netip.Addr) []byte {
		return ether(m, s.MAC, 0x0800, packet(s.A4, at, 17, datagram(netip.AddrPortFrom(s.A4, 9), netip.AddrPortFrom(at, 9), nil)))
	}
	x := a.try(t, t.Name())
	for _, tt := range []struct {
		name string
		f    []byte
	}{
		{"to the gateway", ether(s.Gateway, s.MAC, 0x88b5)},
		{"pings of it", s.ping(s.GW4, 1, 1)[:42]},
		{"to another guest", to(victim.MAC, victim.A4)},
		{"datagrams to nowhere", s.udp(9, netip.AddrPortFrom(silent(false), 9), nil)},
		{"segments from nowhere", s.tcp(9, netip.AddrPortFrom(world(false), 9), seg{flags: ack, seq: 1, ack: 1})},
	} {
		t.Log(tt.name)
		x.suffer(t, smallTime(), func(t *testing.T, on *daemon) func() {
			c, err := net.Dial("unix", on.unix)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(framed(ether(everybody, victim.MAC, 0x0806, arpOf(1, victim.MAC, victim.A4, hw{}, victim.A4)))); err != nil {
				t.Fatal(err)
			}
			go io.Copy(io.Discard, c)
			end := a.spray(s, lot(tt.f))(t, on)
			return func() { end(); c.Close() }
		})
	}
	x.end(t)

	x = a.try(t, t.Name()+"/to-the-bystander")
	x.least = 0
	x.suffer(t, smallTime(), a.spray(s, lot(to(hw(a.g.mac), a.g.addr4))))
	wait(t, "the transfer goes on", func() error {
		if r, _ := x.over(t, 3*window); r < leastOf*x.quiet {
			return fmt.Errorf("%.1f MB/s", r/1e6)
		}
		return nil
	})
	x.end(t)
}

func smallTime() time.Duration { return either(700*time.Millisecond, 8*time.Second) }

// guestFragments: the first parts of datagrams that never come to their end. 1 s in CI, long 60 s: twice as long as
// gVisor keeps one.
func guestFragments(t *testing.T, a *arena) {
	x := a.try(t, t.Name())
	x.suffer(t, either(time.Second, time.Minute), a.assault(assault{From: a.station(t), Kind: "fragments", Hosts: []string{world4 + ":9", "[" + world6 + "]:9"}}))
	x.end(t)
}

// guestStorm: broadcasts as fast as a process can write them, beside ten guests that must hear what is let through. 1 s
// in CI, long 20 s.
func guestStorm(t *testing.T, a *arena) {
	x := a.try(t, t.Name())
	var idle []net.Conn
	for range 10 {
		c, err := net.Dial("unix", a.unix)
		if err != nil {
			t.Fatal(err)
		}
		s := a.station(t)
		if _, err := c.Write(framed(ether(everybody, s.MAC, 0x0806, arpOf(1, s.MAC, s.A4, hw{}, s.A4)))); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, c)
		idle = append(idle, c)
	}
	s := a.station(t)
	before := a.reasons(t, "storm")
	x.suffer(t, either(time.Second, 20*time.Second), a.spray(s, [][]byte{
		ether(everybody, s.MAC, 0x88b5, make([]byte, 1400)), ether(hw{0x33, 0x33, 0, 0, 0, 0xfb}, s.MAC, 0x88b5, make([]byte, 1400)), ether(hw{2, 9, 9, 9, 9, 9}, s.MAC, 0x88b5, make([]byte, 1400))}))
	if a.reasons(t, "storm") == before {
		t.Error("nothing was counted as storm")
	}
	for _, c := range idle {
		c.Close()
	}
	x.end(t)
}

// guestMACs: frames from a million MACs, as fast as they go; the table is bounded, and the others' places are theirs.
func guestMACs(t *testing.T, a *arena) {
	x := a.try(t, t.Name())
	const n = 1_000_000
	before := a.reasons(t, "mac-limit")
	x.sufferOnce(t, func(t *testing.T, on *daemon) {
		spec := assault{From: a.station(t), Unix: on.unix, Kind: "macs", Count: n}
		s := spec.start(t).wait(t)
		t.Logf("%d MACs in %.1f s", s.Frames, s.Seconds)
	})
	wait(t, "all are counted", func() error {
		if got := a.reasons(t, "mac-limit") - before; got < uint64(n-256) { // backend's perPort
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
	a.g.run(t, "ping -c 1 -W 5 %s", a.gw4)
	x.end(t)
}

// guestConnections: 20,000 TCP connections, long 100,000, every other one to a black hole; a normal one works at once
// meanwhile, from the same guest and from the bystander.
func guestConnections(t *testing.T, a *arena) {
	x := a.try(t, t.Name())
	n := either(20_000, 100_000)
	sink, sink6 := a.hold(t, world4), a.hold(t, world6)
	echo := a.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Echo)
	w := a.plug(t)
	opened := a.status(t).Networks[0].FlowsTotal
	x.sufferOnce(t, func(t *testing.T, on *daemon) {
		spec := assault{From: a.station(t), Unix: on.unix, Kind: "syns", Count: n,
			Hosts: []string{sink.Addr().String(), silent4 + ":0", sink6.Addr().String(), "[" + silent6 + "]:0"}}
		at := spec.start(t)
		if on == a.daemon {
			for range either(5, 50) {
				began := time.Now()
				c := w.connect(t, netip.MustParseAddrPort(echo.Addr().String()), 65535)
				d := time.Since(began)
				w.send(t, c.seg(seg{flags: rst | ack}))
				var r traffic.Report
				a.g.json(t, &r, "guest tcp -timeout 5s -send 1000 %s", echo.Addr())
				if d > time.Second || r.End != "eof" || r.Received != 1000 || r.Seconds > 1 {
					t.Errorf("a good connection beside the flood: %v; the bystander's: %+v", d, r)
				}
			}
		}
		s := at.wait(t)
		st := a.status(t).Networks[0]
		t.Logf("%d SYNs in %.1f s; %d flows, %d opened; the daemon has %d descriptors and %d MB", s.Frames, s.Seconds, st.Flows, st.FlowsTotal-opened, on.descriptors(), on.memory(t)>>20)
	})
	w.c.Close()
	x.end(t)
}

// hold accepts in the world, and does nothing with what it has: ten thousand goroutines of this process would be the
// bystander's burden.
func (a *arena) hold(t *testing.T, at string) net.Listener {
	t.Helper()
	var l net.Listener
	if err := a.world.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(at, "0"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var held []net.Conn
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			held = append(held, c)
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
		for _, c := range held {
			c.Close()
		}
	})
	return l
}

// guestReconnects: 3,000 wires that come, say who they are, and go, a third of them in the middle of a frame; long 10,000.
func guestReconnects(t *testing.T, a *arena) {
	x := a.try(t, t.Name())
	n := either(3000, 10_000)
	x.sufferOnce(t, func(t *testing.T, on *daemon) {
		spec := assault{From: a.station(t), Unix: on.unix, Kind: "wires", Count: n}
		at := spec.start(t)
		most, over := int64(0), make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-over:
					return
				case <-time.After(10 * time.Millisecond):
					most = max(most, on.memory(t))
				}
			}
		})
		s := at.wait(t)
		close(over)
		wg.Wait()
		wait(t, "they have gone", func() error {
			if n := on.status(t).Networks[0].Guests; n > x.before.guests {
				return fmt.Errorf("%d are there", n)
			}
			return nil
		})
		t.Logf("%d wires in %.1f s, %d MB at most, %d MB when the last had gone", s.Wires, s.Seconds, most>>20, on.memory(t)>>20)
	})
	x.end(t)
}
