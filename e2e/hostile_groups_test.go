//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/e2e/traffic"
)

// TestHostile is what guests do to the networks that they are on, by group. In each the single cases are shown first to be
// taken for what they are: no answer that must not come, and the wire goes on. Then all of them come over and over, as
// fast as a process can write, while the bystander and the poller are measured (hostile_lab_test.go). Every case is
// there in both families where it has a meaning in both.
//
// VMNETD_E2E_HOSTILE=long has each go on as long as a person would let it.
func TestHostile(t *testing.T) {
	// Not parallel: what is measured is measured alone.
	a := newArena(t, "--no-host-loopback")
	for _, g := range []struct {
		name string
		run  func(*testing.T, *arena)
	}{
		{"01-framing", hostileFraming},
		{"02-ethernet", hostileEthernet},
		{"03-neighbours", hostileNeighbours},
		{"04-ip-headers", hostileHeaders},
		{"05-fragments", hostileFragments},
		{"06-udp", hostileUDP},
		{"07-tcp", hostileTCP},
		{"08-dhcp", hostileDHCP},
		{"09-dns", hostileDNS},
		{"10-tftp", hostileTFTP},
		{"11-policy", hostilePolicy},
		{"12-control-api", hostileControl},
	} {
		t.Run(g.name, func(t *testing.T) { g.run(t, a) })
	}
}

// sprayTime is how long a group's frames come over and over.
func sprayTime() time.Duration { return either(600*time.Millisecond, 4*time.Second) }

// shot is one thing that an attacker sends.
type shot struct {
	name   string
	frames [][]byte
	counts string            // the reason that it is dropped for, counted for the guest or the network; "" where that is left open
	answer func([]byte) bool // that must come
	never  func([]byte) bool // that must not
	open   bool              // the shot ends well and leaves something open: not to be sent over and over
}

func one(f []byte) [][]byte { return [][]byte{f} }

// fire sends each, looks at what comes of it, and returns the frames of all that may come again.
func (a *arena) fire(t *testing.T, w *wire, shots []shot) (again [][]byte) {
	t.Helper()
	w.send(t, ether(everybody, w.MAC, 0x0806, arpOf(1, w.MAC, w.A4, hw{}, w.A4))) // who it is
	w.sync(t)
	for _, s := range shots {
		before := a.reasons(t, s.counts)
		w.forget()
		w.send(t, s.frames...)
		if s.answer != nil {
			w.expect(t, s.name, s.answer)
		}
		w.sync(t)
		if s.never != nil {
			if f := w.find(s.never); f != nil {
				t.Errorf("%s: answered with %x", s.name, f)
			}
		}
		if s.counts != "" {
			if err := eventually(5*time.Second, func() error {
				if a.reasons(t, s.counts) == before {
					return fmt.Errorf("not counted as %s", s.counts)
				}
				return nil
			}); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
		}
		if !s.open {
			again = append(again, s.frames...)
		}
	}
	return again
}

// reasons is how often the network has given one.
func (a *arena) reasons(t *testing.T, reason string) uint64 {
	t.Helper()
	if reason == "" {
		return 0
	}
	st, err := a.ctl.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.Networks[0].Refused[reason]
}

// group runs shots and then all of them again and again.
func (a *arena) group(t *testing.T, shots func(s station) []shot) {
	t.Helper()
	x := a.try(t, t.Name())
	w := a.plug(t)
	again := a.fire(t, w, shots(w.station))
	w.c.Close()
	x.suffer(t, sprayTime(), a.spray(w.station, again))
	x.end(t)
}

// both makes shots for each family.
func both(f func(v6 bool, name string) []shot) (list []shot) {
	for _, v6 := range []bool{false, true} {
		name := "IPv4"
		if v6 {
			name = "IPv6"
		}
		list = append(list, f(v6, name)...)
	}
	return list
}

func world(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(world6)
	}
	return netip.MustParseAddr(world4)
}

func silent(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(silent6)
	}
	return netip.MustParseAddr(silent4)
}

// 1: lengths that no frame has, frames that do not come to their end, at the stream door and at the one for datagrams.
func hostileFraming(t *testing.T, a *arena) {
	x := a.try(t, t.Name())
	length := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for _, tt := range []struct {
		n    uint32
		ends bool // by the daemon: what follows a wrong length cannot be told
	}{{0, false}, {1, false}, {13, false}, {14, false}, {65536, false}, {69632, false}, {69633, true}, {1 << 20, true}, {0xffffffff, true}} {
		t.Run(fmt.Sprint("length ", tt.n), func(t *testing.T) {
			w := a.plug(t)
			w.send(t, ether(everybody, w.MAC, 0x0806, arpOf(1, w.MAC, w.A4, hw{}, w.A4)))
			w.sync(t)
			if !tt.ends {
				w.raw(t, append(length(tt.n), make([]byte, tt.n)...))
				w.sync(t)
				return
			}
			w.raw(t, length(tt.n))
			select {
			case <-w.gone:
			case <-time.After(patience):
				t.Error("the wire goes on")
			}
		})
	}
	t.Run("split byte by byte", func(t *testing.T) {
		w := a.plug(t)
		b := framed(ether(everybody, w.MAC, 0x0806, arpOf(1, w.MAC, w.A4, hw{}, w.A4)))
		for i := range b {
			w.raw(t, b[i:i+1])
		}
		w.sync(t)
	})
	t.Run("an end in the middle", func(t *testing.T) {
		for _, b := range [][]byte{{0}, length(1000), append(length(1000), make([]byte, 500)...)} {
			w := a.plug(t)
			w.raw(t, b)
			w.c.Close()
		}
	})
	t.Run("HTTP", func(t *testing.T) {
		w := a.plug(t)
		w.raw(t, []byte("GET / HTTP/1.1\r\nHost: vmnetd\r\n\r\n"))
		select {
		case <-w.gone:
		case <-time.After(patience):
			t.Error("the wire goes on")
		}
	})
	t.Run("a second guest on the same socket", func(t *testing.T) {
		w, v := a.plug(t), a.plug(t)
		for _, w := range []*wire{w, v, w} {
			w.send(t, ether(everybody, w.MAC, 0x0806, arpOf(1, w.MAC, w.A4, hw{}, w.A4)))
			w.sync(t)
		}
	})
	t.Run("datagrams", func(t *testing.T) {
		path := a.lab.localPath()
		c := a.lab.dialVfkit(t, a.vfkit, path, true)
		defer c.Close()
		// Shorter than a header, longer than any frame, and many greetings. The last is one that is answered.
		for _, n := range []int{1, 3, 13, 14, 65535, 69632, 69633, 100_000} {
			if _, err := c.Write(make([]byte, n)); err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
		}
		for range 1000 {
			if _, err := c.Write([]byte("VFKT")); err != nil {
				t.Fatal(err)
			}
		}
		s := a.station(t)
		buf := make([]byte, 70_000)
		wait(t, "its ping is answered", func() error {
			c.Write(s.ping(s.GW4, 7, 7))
			c.SetReadDeadline(time.Now().Add(time.Second))
			n, err := c.Read(buf)
			if err == nil && !isEchoReply(buf[:n], 7, 7) {
				err = fmt.Errorf("%x", buf[:n])
			}
			return err
		})
		// A frame for all finds out that its socket has gone; else that is looked for every ten seconds.
		c.Close()
		w := a.plug(t)
		wait(t, "the guest without a socket is gone", func() error {
			w.send(t, ether(everybody, w.MAC, 0x88b5, make([]byte, 46)))
			list, err := a.ctl.Guests(t.Context())
			for _, g := range list {
				if strings.Contains(g.Link, path) {
					return fmt.Errorf("%+v", g)
				}
			}
			return err
		})
		w.c.Close()
	})
	// Wires that do not go on, for as long as the attack lasts: mid-length, mid-frame, and one that reads nothing. Beside
	// them wires that come with a wrong length, are ended, and come again.
	var stalled []*wire
	for _, b := range [][]byte{{0, 0}, append(length(1000), make([]byte, 500)...), nil} {
		w := a.plug(t)
		w.raw(t, b)
		stalled = append(stalled, w)
	}
	noise := make([]byte, 64<<10)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	noise[0] = 0 // a length of a few MB
	s := a.station(t)
	x.suffer(t, sprayTime(), a.assault(assault{From: s, Bytes: noise}))
	x.suffer(t, sprayTime(), a.assault(assault{From: s, Bytes: make([]byte, 4*8192)})) // frames of no bytes
	var shaped [][]byte                                                                // right lengths and headers that begin well, and noise
	for i := range 2000 {
		f := noise[i:][:64+int(noise[i])]
		switch i % 4 {
		case 0:
			f = ether(s.Gateway, s.MAC, 0x0800, []byte{0x45}, f)
		case 1:
			f = ether(s.Gateway, s.MAC, 0x86dd, []byte{0x60}, f)
		case 2:
			f = ether(everybody, s.MAC, 0x0806, f)
		}
		shaped = append(shaped, f)
	}
	x.suffer(t, sprayTime(), a.spray(s, shaped))
	for _, w := range stalled {
		w.c.Close()
	}
	x.end(t)
}

// 2: frames that are no packets of anybody's.
func hostileEthernet(t *testing.T, a *arena) {
	by := hw(a.g.mac)
	x := a.try(t, t.Name())
	w := a.plug(t)
	s := w.station
	arpMe := func(src hw) []byte { return ether(everybody, src, 0x0806, arpOf(1, s.MAC, s.A4, hw{}, s.GW4)) }
	shots := []shot{
		{name: "a runt of 14", frames: one(ether(s.Gateway, s.MAC, 0x0800))},
		{name: "a runt of 15", frames: one(ether(s.Gateway, s.MAC, 0x86dd, []byte{0x60}))},
		{name: "an unknown type", frames: one(ether(s.Gateway, s.MAC, 0x88b5, make([]byte, 46))), counts: "unsupported"},
		{name: "RARP, as QEMU announces itself", frames: one(ether(everybody, s.MAC, 0x8035, arpOf(3, s.MAC, netip.IPv4Unspecified(), s.MAC, netip.IPv4Unspecified())))},
		{name: "NC-SI, short", frames: one(ether(everybody, s.MAC, 0x88f8, []byte{0, 1, 0}))},
		{name: "NC-SI", frames: one(ether(everybody, s.MAC, 0x88f8, make([]byte, 46)))},
		{name: "LLDP", frames: one(ether(hw{1, 0x80, 0xc2, 0, 0, 0x0e}, s.MAC, 0x88cc, make([]byte, 46)))},
		{name: "a VLAN tag to the gateway", frames: one(ether(s.Gateway, s.MAC, 0x8100, []byte{0, 5, 8, 0}, packet(s.A4, s.GW4, 17, datagram(netip.AddrPortFrom(s.A4, 9), netip.AddrPortFrom(s.GW4, 9), nil))))},
		{name: "a VLAN tag and nothing", frames: one(ether(s.Gateway, s.MAC, 0x8100, []byte{0}))},
		{name: "tags on tags", frames: one(ether(everybody, s.MAC, 0x88a8, bytes.Repeat([]byte{0, 0, 0x81, 0}, 300)))},
		{name: "a broadcast source", frames: one(arpMe(everybody)), counts: "malformed", never: arpAnswer(s)},
		{name: "a multicast source", frames: one(arpMe(hw{0x33, 0x33, 0, 0, 0, 1})), counts: "malformed", never: arpAnswer(s)},
		{name: "no source", frames: one(arpMe(hw{}))},
		{name: "the gateway's source", frames: one(arpMe(s.Gateway)), counts: "spoofed", never: arpAnswer(s)},
		{name: "the bystander's source", frames: [][]byte{ether(everybody, by, 0x88b5, make([]byte, 46)), ether(s.Gateway, by, 0x88b5, make([]byte, 46))}},
		{name: "802.3 with a length", frames: one(ether(s.Gateway, s.MAC, 46, make([]byte, 46)))},
		{name: "IP in SNAP to everybody", frames: one(ether(everybody, s.MAC, 60, []byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, make([]byte, 52))), counts: "unsupported"},
		{name: "to nobody", frames: one(ether(hw{2, 9, 9, 9, 9, 9}, s.MAC, 0x88b5, make([]byte, 46)))},
	}
	var flapping [][]byte
	for i := range 64 {
		flapping = append(flapping, ether(s.Gateway, hw{2, 7, 7, 7, 7, byte(i)}, 0x88b5, make([]byte, 46)), ether(s.Gateway, by, 0x88b5, make([]byte, 46)))
	}
	shots = append(shots, shot{name: "a source that flaps", frames: flapping})
	again := a.fire(t, w, shots)
	w.c.Close()
	x.suffer(t, sprayTime(), a.spray(s, again))
	// The bystander is who it was.
	if g, ok := a.info(t, by); !ok || g.Name != "bystander" {
		t.Errorf("the bystander is %+v, there: %v", g, ok)
	}
	x.end(t)
}

// arpAnswer is an ARP answer to the station.
func arpAnswer(s station) func([]byte) bool {
	return func(f []byte) bool { return binary.BigEndian.Uint16(f[12:]) == 0x0806 && len(f) >= 42 && f[21] == 2 }
}

// 3: ARP and neighbour discovery, from whom they must not come.
func hostileNeighbours(t *testing.T, a *arena) {
	by4, by6 := a.g.addr4, a.g.addr6
	x := a.try(t, t.Name())
	w := a.plug(t)
	s := w.station
	sll := append([]byte{1, 1}, s.MAC[:]...)
	tll := append([]byte{2, 1}, s.MAC[:]...)
	advert := func(target netip.Addr) []byte { return append(target.AsSlice(), tll...) }
	solicit := func(target netip.Addr, o []byte) []byte { return append(target.AsSlice(), o...) }
	arpReply := func(who netip.Addr) []byte {
		return ether(everybody, s.MAC, 0x0806, arpOf(2, s.MAC, who, everybody, who))
	}
	ra := append(make([]byte, 8), sll...)
	shots := []shot{
		{name: "ARP of no bytes", frames: one(ether(everybody, s.MAC, 0x0806))},
		{name: "ARP cut short", frames: one(ether(everybody, s.MAC, 0x0806, arpOf(1, s.MAC, s.A4, hw{}, s.GW4)[:27]))},
		{name: "ARP with lengths of 255", frames: one(ether(everybody, s.MAC, 0x0806, []byte{0, 1, 8, 0, 255, 255, 0, 1}, make([]byte, 40)))},
		{name: "ARP of operation 65535", frames: one(ether(everybody, s.MAC, 0x0806, arpOf(65535, s.MAC, s.A4, hw{}, s.GW4)))},
		{name: "gratuitous for the gateway", frames: one(arpReply(s.GW4)), counts: "spoofed"},
		{name: "gratuitous for the resolver", frames: one(arpReply(s.DNS4)), counts: "spoofed"},
		{name: "gratuitous for the bystander", frames: one(arpReply(by4)), counts: "spoofed"},
		{name: "an advertisement for the gateway", frames: one(s.ndp(s.linkLocal(), allNodes, 136, 0xa0000000, advert(s.GW6))), counts: "spoofed"},
		{name: "an advertisement for the bystander", frames: one(s.ndp(s.linkLocal(), allNodes, 136, 0x20000000, advert(by6))), counts: "spoofed"},
		{name: "a router advertisement", frames: one(s.ndp(s.linkLocal(), allNodes, 134, 0x40000708, ra)), counts: "spoofed"},
		{name: "a router advertisement behind destination options", frames: one(ether(hw{0x33, 0x33, 0, 0, 0, 1}, s.MAC, 0x86dd, packet(s.linkLocal(), allNodes, 60,
			append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, icmp(s.linkLocal(), allNodes, 134, 0, 0x40000708, ra)...), put8(7, 255)))), counts: "spoofed"},
		{name: "a redirect", frames: one(s.ndp(s.linkLocal(), allNodes, 137, 0, append(world(true).AsSlice(), s.linkLocal().AsSlice()...))), counts: "spoofed"},
		{name: "an ICMP redirect", frames: one(s.ip(by4, 1, icmp(s.A4, by4, 5, 1, binary.BigEndian.Uint32(s.A4.AsSlice()), make([]byte, 28))))},
		{name: "a solicitation of no target", frames: one(s.ndp(s.linkLocal(), s.GW6, 135, 0, nil))},
		{name: "a solicitation with an option of no length", frames: one(s.ndp(s.linkLocal(), s.GW6, 135, 0, solicit(s.GW6, []byte{1, 0, 0, 0, 0, 0, 0, 0})))},
		{name: "a solicitation with an option of 2040 bytes", frames: one(s.ndp(s.linkLocal(), s.GW6, 135, 0, solicit(s.GW6, []byte{1, 255, 0, 0, 0, 0, 0, 0})))},
		{name: "a solicitation from the gateway's MAC", frames: one(s.ndp(s.linkLocal(), allNodes, 135, 0, solicit(by6, append([]byte{1, 1}, s.Gateway[:]...)))), counts: "spoofed"},
		{name: "a router solicitation cut short", frames: one(s.ndp(s.linkLocal(), netip.MustParseAddr("ff02::2"), 133, 0, []byte{1}))},
		{name: "MLD of no bytes", frames: one(s.ndp(s.linkLocal(), allNodes, 143, 0xffff, nil))},
	}
	again := a.fire(t, w, shots)
	w.c.Close()
	x.suffer(t, sprayTime(), a.spray(s, again))
	x.suffer(t, sprayTime(), a.assault(assault{From: s, Kind: "neighbours"}))
	x.suffer(t, sprayTime(), a.assault(assault{From: s, Kind: "addresses"}))
	// The bystander's neighbours are who they were.
	for _, line := range []string{"ip neigh show " + s.GW4.String(), "ip -6 neigh show " + s.GW6.String(), "ip -6 route show default"} {
		said := a.g.run(t, "%s", line)
		mac := net.HardwareAddr(s.MAC[:]).String()
		if strings.Contains(said, mac) || strings.Contains(said, s.linkLocal().String()) {
			t.Errorf("%s: %s", line, said)
		}
	}
	x.end(t)
}

// 4: headers that contradict themselves or their frame, and addresses that are nobody's to send from or to.
func hostileHeaders(t *testing.T, a *arena) {
	a.group(t, func(s station) []shot {
		var list []shot
		addr := netip.MustParseAddr
		u4 := datagram(netip.AddrPortFrom(s.A4, 9), netip.AddrPortFrom(s.GW4, 9), []byte("x"))
		u6 := datagram(netip.AddrPortFrom(s.A6, 9), netip.AddrPortFrom(s.GW6, 9), []byte("x"))
		e4 := icmp(s.A4, s.GW4, 8, 0, 0x77770001, make([]byte, 32))
		e6 := icmp(s.A6, s.GW6, 128, 0, 0x77770001, make([]byte, 32))
		odd := func(f []byte) bool { return isEchoReply(f, 0x7777, 1) }
		for name, e := range map[string]edit{
			"a header of 16 bytes": put8(0, 0x44), "a header of no bytes": put8(0, 0x40), "a header longer than the packet": put8(0, 0x4f),
			"a version of 7": put8(0, 0x75), "a total beyond the frame": put16(2, 1500), "a total of 65535": put16(2, 65535),
			"a total within the header": put16(2, 10), "a total of none": put16(2, 0), "no hops": put8(8, 0),
		} {
			list = append(list, shot{name: "IPv4, " + name, frames: [][]byte{s.ip(s.GW4, 17, u4, e), s.ip(s.GW4, 1, e4, e), s.ip(world(false), 17, u4, e)}})
		}
		for name, e := range map[string]edit{
			"a payload beyond the frame": put16(4, 1500), "a payload of 65535": put16(4, 65535), "a payload of none": put16(4, 0),
			"a payload within ICMP's header": put16(4, 4), "a version of 4": put8(0, 0x40),
		} {
			// CVE-2020-10756: an echo whose packet says that it is longer than its frame, answered with what lies behind.
			list = append(list, shot{name: "IPv6, " + name, frames: [][]byte{s.ip(s.GW6, 58, e6, e), s.ip(s.GW6, 17, u6, e), s.ip(world(true), 17, u6, e)},
				never: func(f []byte) bool { _, b := upper(f); return odd(f) && len(b) > len(e6) }})
		}
		chain := func(n int, last byte, body []byte) []byte {
			var b []byte
			for i := range n {
				next := byte(60)
				if i == n-1 {
					next = last
				}
				b = append(b, next, 0, 1, 4, 0, 0, 0, 0)
			}
			return append(b, body...)
		}
		list = append(list,
			shot{name: "IPv4 options that do not end", frames: one(ether(s.Gateway, s.MAC, 0x0800, options4(s, u4, bytes.Repeat([]byte{7, 39, 4, 0}, 10))))},
			shot{name: "IPv4 options of no length", frames: one(ether(s.Gateway, s.MAC, 0x0800, options4(s, u4, []byte{0x83, 0, 4, 0})))},
			shot{name: "IPv4 source route", frames: one(ether(s.Gateway, s.MAC, 0x0800, options4(s, u4, []byte{0x83, 7, 4, 127, 0, 0, 1, 0})))},
			shot{name: "IPv6, eight extension headers", frames: one(s.ip(s.GW6, 60, chain(8, 58, e6)))},
			shot{name: "IPv6, 150 extension headers", frames: one(s.ip(s.GW6, 60, chain(150, 58, e6)))},
			shot{name: "IPv6, an extension beyond the packet", frames: one(s.ip(s.GW6, 60, []byte{58, 255, 1, 4, 0, 0, 0, 0}))},
			shot{name: "IPv6, hop-by-hop in the middle", frames: one(s.ip(s.GW6, 60, append([]byte{0, 0, 1, 4, 0, 0, 0, 0}, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, e6...)...)))},
			shot{name: "IPv6, a jumbo of 4 GB", frames: one(s.ip(s.GW6, 0, append([]byte{58, 0, 0xc2, 4, 0xff, 0xff, 0xff, 0xff}, e6...), put16(4, 0)))},
			shot{name: "IPv6, a routing header of type 0", frames: one(s.ip(s.GW6, 43, append(append([]byte{58, 2, 0, 1, 0, 0, 0, 0}, addr(world6).AsSlice()...), e6...)))},
			shot{name: "IPv4 of an unknown protocol", frames: one(s.ip(s.GW4, 253, u4))},
			shot{name: "IPv6 of an unknown protocol", frames: one(s.ip(s.GW6, 253, u6))},
			shot{name: "IPv6 in IPv4", frames: one(s.ip(world(false), 41, packet(s.A6, s.GW6, 58, e6)))},
			shot{name: "IPv4 in a frame of IPv6", frames: one(ether(s.Gateway, s.MAC, 0x86dd, packet(s.A4, s.GW4, 17, u4)))},
			shot{name: "IPv6 in a frame of IPv4", frames: one(ether(s.Gateway, s.MAC, 0x0800, packet(s.A6, s.GW6, 58, e6)))},
			shot{name: "ICMP of no bytes", frames: [][]byte{s.ip(s.GW4, 1, nil), s.ip(s.GW6, 58, nil)}},
			shot{name: "ICMP cut short", frames: [][]byte{s.ip(s.GW4, 1, e4[:5]), s.ip(s.GW6, 58, e6[:5])}},
			shot{name: "an unreachable about nothing", frames: [][]byte{
				s.ip(s.GW4, 1, icmp(s.A4, s.GW4, 3, 3, 0, []byte{0x45})), s.ip(s.GW6, 58, icmp(s.A6, s.GW6, 1, 4, 0, []byte{0x60})),
				s.ip(s.GW4, 1, icmp(s.A4, s.GW4, 3, 4, 0, packet(s.GW4, s.A4, 6, make([]byte, 8)))), s.ip(s.GW6, 58, icmp(s.A6, s.GW6, 2, 0, 0, packet(s.GW6, s.A6, 6, make([]byte, 8))))}},
		)
		for _, src := range []string{"127.0.0.1", "224.0.0.1", "255.255.255.255", "10.0.2.255", "10.0.2.0", "::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.2.2"} {
			from := addr(src)
			to := s.gw(from.Is6())
			list = append(list, shot{name: "from " + src, counts: "martian",
				frames: one(s.as(from, to, icmpProto(to), icmp(from, to, echoRequest(to), 0, 0x77770002, nil))),
				never:  func(f []byte) bool { return isEchoReply(f, 0x7777, 2) }})
		}
		for _, src := range []netip.Addr{s.GW4, s.DNS4, s.GW6, s.DNS6} {
			to := s.gw(src.Is6())
			list = append(list, shot{name: "from the gateway's " + src.String(), counts: "spoofed",
				frames: one(s.as(src, to, icmpProto(to), icmp(src, to, echoRequest(to), 0, 0x77770002, nil)))})
		}
		for _, src := range []string{"0.0.0.0", "::"} {
			from := addr(src)
			to := s.gw(from.Is6())
			list = append(list, shot{name: "from " + src, frames: one(s.as(from, to, 17, datagram(netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 0), nil)))}) // CVE-2014-3640
		}
		for _, dst := range []string{"127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.251", "::1", "::", "ff02::fb", "ff05::1", "::ffff:127.0.0.1"} {
			to := addr(dst)
			if to.Is4In6() { // its family on the wire is 6
				to = netip.AddrFrom16(to.As16())
			}
			list = append(list, shot{name: "to " + dst, frames: [][]byte{
				s.udp(9, netip.AddrPortFrom(to, 9), []byte("x")),
				s.tcp(9, netip.AddrPortFrom(to, 9), seg{flags: syn, window: 1000}),
				s.ip(to, icmpProto(to), icmp(s.own(to.Is6()), to, echoRequest(to), 0, 0x77770003, nil)),
			}, never: func(f []byte) bool { return isTCP(f, 9, syn|ack) || isEchoReply(f, 0x7777, 3) }})
		}
		return list
	})
}

// options4 is an IPv4 packet with options.
func options4(s station, body, o []byte) []byte {
	for len(o)%4 != 0 {
		o = append(o, 0)
	}
	h := packet(s.A4, s.GW4, 17, nil)[:20]
	h = append(h, o...)
	h[0] = 0x40 | byte(len(h)/4)
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(body)))
	binary.BigEndian.PutUint16(h[10:], 0)
	binary.BigEndian.PutUint16(h[10:], ^sum(h, 0))
	return append(h, body...)
}

// 5: fragments that are too much, too little, or never all there.
func hostileFragments(t *testing.T, a *arena) {
	echoes := [2]netip.AddrPort{}
	for i, at := range []string{world4, world6} {
		echoes[i] = a.world.echoUDP(t, net.JoinHostPort(at, "0")).AddrPort()
	}
	x := a.try(t, t.Name())
	w := a.plug(t)
	s := w.station
	again := a.fire(t, w, both(func(v6 bool, fam string) []shot {
		to := echoes[0]
		if v6 {
			to = echoes[1]
		}
		dst, src := to.Addr(), netip.AddrPortFrom(s.own(v6), 4444)
		body := make([]byte, 8000)
		for i := range body {
			body[i] = byte(i * 7)
		}
		big := make([]byte, 60_000)
		u := datagram(src, to, body)
		answered := func(f []byte) bool { return toPort(f, 4444) }
		tiny := []shot{
			{name: fam + ", in order", open: true, frames: s.cut(dst, 17, u, 1, 1280-48), answer: func(f []byte) bool { return fragmentOf(f) || answered(f) }},
			{name: fam + ", backwards", open: true, frames: backwards(s.cut(dst, 17, datagram(src, to, big), 2, 1280-48)), answer: func(f []byte) bool { return fragmentOf(f) || answered(f) }},
			{name: fam + ", beyond 64 KiB", frames: [][]byte{s.fragment(dst, 17, u[:1200], 3, 0, true), s.fragment(dst, 17, make([]byte, 1200), 3, 65528, false)}, never: answered},
			{name: fam + ", a first one of 64 KiB", frames: one(s.fragment(dst, 17, make([]byte, 65000), 4, 0, true)), never: answered},
			{name: fam + ", overlapping", frames: [][]byte{s.fragment(dst, 17, u[:1200], 5, 0, true), s.fragment(dst, 17, u[600:1800], 5, 600, true), s.fragment(dst, 17, u[1200:], 5, 1200, false)}},
			{name: fam + ", one within another", frames: [][]byte{s.fragment(dst, 17, u[:2400], 6, 0, true), s.fragment(dst, 17, u[800:808], 6, 800, true), s.fragment(dst, 17, u[2400:], 6, 2400, false)}},
			{name: fam + ", a tiny first one", frames: [][]byte{s.fragment(dst, 17, u[:8], 7, 0, true), s.fragment(dst, 17, u[8:], 7, 8, false)}, open: true},
			{name: fam + ", a first one of no bytes", frames: one(s.fragment(dst, 17, nil, 8, 0, true)), never: answered},
			{name: fam + ", two ends", frames: [][]byte{s.fragment(dst, 17, u[:800], 9, 0, true), s.fragment(dst, 17, u[800:1600], 9, 800, false), s.fragment(dst, 17, u[800:2400], 9, 800, false)}},
			{name: fam + ", TCP in tiny ones", frames: s.cut(dst, 6, s.tcp(4445, to, seg{flags: syn, window: 1000})[14+ipLen(v6):], 10, 8)},
			{name: fam + ", of no end", frames: one(s.fragment(dst, 17, u[:801], 11, 0, true)), never: answered}, // not of 8
			{name: fam + ", a last one alone", frames: one(s.fragment(dst, 17, u[:800], 12, 800, false)), never: answered},
		}
		return tiny
	}))
	w.c.Close()
	x.suffer(t, sprayTime(), a.spray(s, again))
	// Ones that never come to their end, with ids at random: memory is bounded, and the guest's own next is put together
	// when those have waited long enough.
	hosts := []string{echoes[0].String(), echoes[1].String()}
	x.suffer(t, either(sprayTime(), 10*time.Second), a.assault(assault{From: s, Kind: "fragments", Hosts: hosts}))
	x.end(t)
}

func ipLen(v6 bool) int {
	if v6 {
		return 40
	}
	return 20
}

func backwards(list [][]byte) [][]byte {
	out := make([][]byte, 0, len(list))
	for i := range list {
		out = append(out, list[len(list)-1-i])
	}
	return out
}

// fragmentOf says whether a frame is a fragment: what answers a large datagram in pieces.
func fragmentOf(f []byte) bool {
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0800:
		return binary.BigEndian.Uint16(f[20:])&0x3fff != 0
	case 0x86dd:
		return f[20] == 44
	}
	return false
}

// 6: datagrams whose length or ports are wrong, as many mappings as there are ports, and a peer that answers with a flood.
func hostileUDP(t *testing.T, a *arena) {
	var echoes [2]netip.AddrPort
	for i, at := range []string{world4, world6} {
		echoes[i] = a.world.echoUDP(t, net.JoinHostPort(at, "0")).AddrPort()
	}
	x := a.try(t, t.Name())
	w := a.plug(t)
	s := w.station
	again := a.fire(t, w, both(func(v6 bool, fam string) []shot {
		to := echoes[0]
		if v6 {
			to = echoes[1]
		}
		port := func(p uint16) netip.AddrPort { return netip.AddrPortFrom(to.Addr(), p) }
		body := []byte("hello, world")
		come := func(p uint16, n int) func([]byte) bool {
			return func(f []byte) bool { _, b := upper(f); return toPort(f, p) && (n < 0 || len(b) == 8+n) }
		}
		return []shot{
			{name: fam + ", a length beyond the packet", frames: one(s.udp(5001, to, body, put16(4, 100))), counts: "malformed", never: come(5001, -1)},
			{name: fam + ", a length of 65535", frames: one(s.udp(5001, to, body, put16(4, 65535))), counts: "malformed", never: come(5001, -1)},
			{name: fam + ", a length of 7", frames: one(s.udp(5001, to, body, put16(4, 7))), counts: "malformed", never: come(5001, -1)},
			{name: fam + ", a length below the packet's", frames: one(s.udp(5002, to, body, put16(4, 13))), answer: come(5002, 5), open: true},
			{name: fam + ", from port 0", frames: one(s.udp(0, to, body)), counts: "malformed", never: come(0, -1)},
			{name: fam + ", to port 0", frames: one(s.udp(5003, port(0), body)), counts: "malformed", never: come(5003, -1)},
			{name: fam + ", from 0 to 0", frames: one(s.udp(0, port(0), nil)), counts: "malformed"},
			{name: fam + ", of no bytes", frames: one(s.udp(5004, to, nil)), answer: come(5004, 0), open: true},
			{name: fam + ", without its header", frames: one(s.ip(to.Addr(), 17, []byte{1, 2, 3}))},
			{name: fam + ", of 65507 bytes, in pieces", frames: s.cut(to.Addr(), 17, datagram(netip.AddrPortFrom(s.own(v6), 5005), to, make([]byte, 65507-ipLen(v6)+20)), 77, 1280-48),
				answer: fragmentOf, open: true},
		}
	}))
	// IPv4 lets a datagram have no checksum (RFC 768).
	w.forget()
	f := s.udp(5006, echoes[0], []byte("bare"))
	binary.BigEndian.PutUint16(f[14+20+6:], 0)
	w.send(t, f)
	w.expect(t, "a datagram without a checksum", func(f []byte) bool { return toPort(f, 5006) })
	w.c.Close()
	x.suffer(t, sprayTime(), a.spray(s, again))

	// As many mappings as an attacker has ports, over and over: the table is bounded, and so are descriptors.
	most := 0
	count := func(on *daemon) { most = max(most, on.descriptors()) }
	var flow atomic.Uint64
	x.suffer(t, either(2*sprayTime(), 8*time.Second), func(t *testing.T, on *daemon) func() {
		end := a.assault(assault{From: s, Kind: "ports", Hosts: []string{echoes[0].String(), echoes[1].String()}})(t, on)
		return func() {
			count(on)
			if list, err := a.ctl.Flows(t.Context(), control.FlowFilter{Proto: "udp"}); err == nil {
				flow.Store(uint64(len(list)))
			}
			end()
		}
	})
	const limit = 4096 // flows.Limits.UDP
	t.Logf("%d flows, %d descriptors at most", flow.Load(), most)
	if most > x.before.fds+limit+64 || flow.Load() > limit+64 {
		t.Errorf("%d descriptors and %d flows at most, want %d more than %d", most, flow.Load(), limit, x.before.fds)
	}

	t.Run("who has filled the table has a way out all the same", func(t *testing.T) { // the oldest make room
		v := a.plug(t)
		for i := range limit + 1000 {
			v.send(t, v.udp(uint16(10_000+i), netip.AddrPortFrom(silent(false), 9), []byte("x")))
		}
		for _, to := range echoes {
			v.send(t, v.udp(9999, to, []byte("me")))
			v.expect(t, "an echo", func(f []byte) bool { return toPort(f, 9999) && kindOf(to.Addr()) == binary.BigEndian.Uint16(f[12:]) })
		}
		v.c.Close()
	})

	// A peer that answers each datagram with as many as it can, to a guest that does not read.
	x.suffer(t, sprayTime(), func(t *testing.T, on *daemon) func() { return a.replyFlood(t, on) })
	x.end(t)
}

// replyFlood has a peer in the world send to a deaf guest as fast as it can.
func (a *arena) replyFlood(t *testing.T, on *daemon) (end func()) {
	t.Helper()
	peer := a.world.listenPacket(t, net.JoinHostPort(world4, "0"))
	c, err := net.Dial("unix", on.unix)
	if err != nil {
		t.Fatal(err)
	}
	s := a.station(t)
	c.Write(framed(s.udp(6001, peer.LocalAddr().(*net.UDPAddr).AddrPort(), []byte("flood me"))))
	b := make([]byte, 1400)
	peer.SetReadDeadline(time.Now().Add(patience))
	_, from, err := peer.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				// A burst, then a breath: this process has the bystander's wire.
				for range 64 {
					peer.WriteToUDPAddrPort(b, from)
				}
				time.Sleep(time.Millisecond)
			}
		}
	})
	return func() {
		close(stop)
		wg.Wait()
		if on == a.daemon {
			if g, ok := a.info(t, s.MAC); !ok || g.Queued > g.QueueSize || g.Dropped["queue-full"] == 0 {
				t.Errorf("a guest that does not read: %+v", g)
			}
		}
		c.Close()
		peer.Close()
	}
}

// 7: segments that no kernel sends.
func hostileTCP(t *testing.T, a *arena) {
	var sinks [2]netip.AddrPort
	for i, at := range []string{world4, world6} {
		sinks[i] = netip.MustParseAddrPort(a.world.serve(t, "tcp", net.JoinHostPort(at, "0"), traffic.Sink).Addr().String())
	}
	x := a.try(t, t.Name())
	w := a.plug(t)
	s := w.station
	port := uint16(7000)
	again := a.fire(t, w, both(func(v6 bool, fam string) []shot {
		to := sinks[0]
		if v6 {
			to = sinks[1]
		}
		next := func() uint16 { port++; return port }
		opt := func(name string, o ...byte) shot {
			p := next()
			return shot{name: fam + ", " + name, frames: [][]byte{s.tcp(p, to, seg{flags: syn, window: 1000, options: o}), s.tcp(p, to, seg{flags: rst, seq: 1})}}
		}
		refused := func(name string, g seg, to netip.AddrPort) shot {
			p := next()
			return shot{name: fam + ", " + name, frames: one(s.tcp(p, to, g)), never: func(f []byte) bool { return isTCP(f, p, syn|ack) }}
		}
		return []shot{
			opt("an option of length 0", 2, 0, 0, 0),
			opt("an option of length 1", 2, 1, 0, 0),
			opt("an option beyond the header", 2, 40, 5, 180),
			opt("an MSS of 0", 2, 4, 0, 0),
			opt("an MSS of 1", 2, 4, 0, 1),
			opt("a window scale of 255", 3, 3, 255, 0),
			opt("forty of no-operation", bytes.Repeat([]byte{1}, 40)...),
			refused("a header of 16 bytes", seg{flags: syn, words: 4}, to),
			refused("a header of no bytes", seg{flags: syn, words: 15}, to),
			{name: fam + ", SYN and FIN", frames: one(s.tcp(next(), to, seg{flags: syn | fin}))}, // RFC 9293 lets it in
			refused("SYN and RST", seg{flags: syn | rst}, to),
			refused("no flags", seg{}, to),
			refused("all flags", seg{flags: 63}, to),
			refused("to port 0", seg{flags: syn}, netip.AddrPortFrom(to.Addr(), 0)),
			refused("out of the blue", seg{flags: ack | psh, seq: 99, ack: 98, body: []byte("hello")}, to),
			refused("urgent out of the blue", seg{flags: ack | urg | psh, seq: 99, ack: 98, urgent: 65535, body: []byte("hello")}, to),
			{name: fam + ", of no bytes", frames: one(s.ip(to.Addr(), 6, nil))},
			{name: fam + ", cut short", frames: one(s.ip(to.Addr(), 6, make([]byte, 19)))},
		}
	}))
	for _, to := range sinks {
		fam := "IPv4"
		if to.Addr().Is6() {
			fam = "IPv6"
		}
		t.Run(fam+", an urgent pointer beyond the data", func(t *testing.T) { // CVE-2026-9539
			c := w.connect(t, to, 65535)
			memory := a.memory(t)
			for i := range 2000 {
				w.send(t, c.seg(seg{flags: ack | urg | psh, urgent: uint16(0xffff - i), body: []byte{'u'}}))
				c.seq++
			}
			w.send(t, c.seg(seg{flags: ack | fin}))
			w.sync(t)
			w.send(t, c.seg(seg{flags: rst | ack}))
			if more := a.memory(t) - memory; more > 32<<20 {
				t.Errorf("the daemon has grown by %d MB", more>>20)
			}
		})
		t.Run(fam+", SYN, SYN-ACK, RST", func(t *testing.T) { // gvproxy#127
			for range 20 {
				c := w.connect(t, to, 65535)
				w.send(t, c.seg(seg{flags: rst | ack}))
			}
			w.none(t, a)
		})
		t.Run(fam+", each half is ended alone, a reset is a reset", func(t *testing.T) {
			c := w.connect(t, to, 65535)
			w.send(t, c.seg(seg{flags: ack | psh, body: []byte("last words")}))
			c.seq += 10
			w.send(t, c.seg(seg{flags: ack | fin}))
			// The sink tells what it has got and ends its own half.
			f := w.expect(t, "what the sink has got", func(f []byte) bool { _, b := upper(f); return toPort(f, c.port) && len(b) > 40 })
			if !bytes.Contains(f, []byte(`"received":10`)) {
				t.Errorf("the sink says %q", f)
			}
			w.expect(t, "its end", func(f []byte) bool { return isTCP(f, c.port, fin|ack) })
			w.send(t, c.seg(seg{flags: rst | ack}))
		})
		t.Run(fam+", a peer that drops its time stamps", func(t *testing.T) { // gvisor#11536
			// Its segments are passed over (RFC 7323 §3.2). That is its own loss, and ends with its reset.
			c := w.connectWith(t, to, seg{window: 65535, options: append([]byte{2, 4, 5, 0xb4, 1, 1, 8, 10}, 0, 0, 0, 1, 0, 0, 0, 0)})
			w.send(t, c.seg(seg{flags: ack | psh, body: []byte("no stamp")}))
			w.sync(t)
			w.send(t, c.seg(seg{flags: rst | ack}))
			w.none(t, a)
		})
	}
	w.c.Close()
	x.suffer(t, sprayTime(), a.spray(s, again))

	// SYNs to nowhere, as many as go in; and one to somewhere is answered at once (gvproxy#676).
	v := a.plug(t)
	x.suffer(t, either(2*sprayTime(), 8*time.Second), func(t *testing.T, on *daemon) func() {
		if on != a.daemon {
			return a.assault(assault{From: s, Kind: "syns", Hosts: []string{silent4 + ":0", "[" + silent6 + "]:0"}})(t, on)
		}
		for v6, to := range map[bool]netip.AddrPort{false: sinks[0], true: sinks[1]} {
			for i := range 500 {
				v.send(t, v.tcp(uint16(20_000+i), netip.AddrPortFrom(silent(v6), uint16(1+i)), seg{flags: syn, window: 65535}))
			}
			began := time.Now()
			c := v.connect(t, to, 65535)
			if d := time.Since(began); d > time.Second {
				t.Errorf("beside 500 black holes a connection takes %v", d)
			}
			v.send(t, c.seg(seg{flags: rst | ack}))
		}
		return a.assault(assault{From: s, Kind: "syns", Hosts: []string{silent4 + ":0", "[" + silent6 + "]:0"}})(t, on)
	})
	v.c.Close()
	x.end(t)
}

// conn is an attacker's end of a TCP connection, after its handshake.
type conn struct {
	w        *wire
	port     uint16
	to       netip.AddrPort
	seq, ack uint32
	window   uint16
}

var ports atomic.Uint32

func (w *wire) connect(t *testing.T, to netip.AddrPort, window uint16) *conn {
	t.Helper()
	return w.connectWith(t, to, seg{window: window, options: []byte{2, 4, 5, 0xb4}})
}

func (w *wire) connectWith(t *testing.T, to netip.AddrPort, g seg) *conn {
	t.Helper()
	c := &conn{w: w, port: uint16(30_000 + ports.Add(1)%30_000), to: to, seq: 1000, window: g.window}
	g.flags, g.seq = syn, c.seq
	w.send(t, w.tcp(c.port, to, g))
	f := w.expect(t, "a SYN-ACK of "+to.String(), func(f []byte) bool { return isTCP(f, c.port, syn|ack) })
	_, b := upper(f)
	c.seq, c.ack = c.seq+1, binary.BigEndian.Uint32(b[4:])+1
	w.send(t, c.seg(seg{flags: ack}))
	return c
}

// none waits until none of the wire's connections is left.
func (w *wire) none(t *testing.T, a *arena) {
	t.Helper()
	wait(t, "no connection is left", func() error {
		list, err := a.ctl.Flows(t.Context(), control.FlowFilter{Guest: net.HardwareAddr(w.MAC[:]).String(), Proto: "tcp", State: "open"})
		if err == nil && len(list) > 0 {
			err = fmt.Errorf("%d are: %+v", len(list), list[0])
		}
		return err
	})
}

func (c *conn) seg(g seg) []byte {
	g.seq, g.ack = c.seq, c.ack
	if g.window == 0 {
		g.window = c.window
	}
	return c.w.tcp(c.port, c.to, g)
}

// 8: DHCP that contradicts itself, asks for others' addresses, and for all that there are.
func hostileDHCP(t *testing.T, a *arena) {
	x := a.try(t, t.Name())
	w := a.plug(t)
	s := w.station
	discover := option(53, 1)
	end := []byte{255}
	by := a.g.addr4.As4()
	acked := func(xid uint32, kind byte) func([]byte) bool {
		return func(f []byte) bool {
			_, b := upper(f)
			return len(b) > 8+243 && binary.BigEndian.Uint32(b[8+4:]) == xid && bytes.Contains(b[8+240:], []byte{53, 1, kind})
		}
	}
	xid := uint32(0x66000000)
	with := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	m := func(name string, never byte, options []byte, edits ...edit) shot {
		xid++
		return shot{name: name, frames: one(s.dhcp4(s.MAC, xid, options, edits...)), never: func(f []byte) bool { return never != 0 && acked(xid, never)(f) }}
	}
	const offer, ackd = 2, 5
	shots := []shot{
		m("no end", 0, discover),
		m("an end with a length", 0, with(discover, []byte{255, 255})), // passt 7d0c077
		m("an option beyond the message", 0, with(discover, []byte{12, 200, 'a'})),
		m("an option without its length", 0, with(discover, []byte{12})),
		m("no type", offer, with(option(55, 1, 3), end)),
		m("a type of 255", offer, with(option(53, 255), end)),
		m("a type of no bytes", offer, with([]byte{53, 0}, end)),
		m("a hardware address of 16", 0, with(discover, end), put8(2, 16)),
		m("a hardware address of 255", 0, with(discover, end), put8(2, 255)),
		m("a hardware address of none", 0, with(discover, end), put8(2, 0)),
		m("a reply", offer, with(discover, end), put8(0, 2)),
		m("through a relay", 0, with(discover, end), func(b []byte) { copy(b[24:], by[:]) }),
		m("the bystander's address", ackd, with(option(53, 3), option(50, by[:]...), end)),
		m("the gateway's address", ackd, with(option(53, 3), option(50, s.GW4.AsSlice()...), end)),
		m("an address elsewhere", ackd, with(option(53, 3), option(50, 192, 0, 2, 9), end)),
		m("another server's", ackd, with(option(53, 3), option(54, 10, 0, 2, 99), option(50, 10, 0, 2, 77), end)),
		m("INFORM", 0, with(option(53, 8), end), func(b []byte) { copy(b[12:], s.A4.AsSlice()) }),
		m("RELEASE of the bystander's", 0, with(option(53, 7), end), func(b []byte) { copy(b[12:], by[:]) }),
		m("DECLINE of the bystander's", 0, with(option(53, 4), option(50, by[:]...), end)),
		m("1,100 bytes of options", 0, with(discover, bytes.Repeat(option(250, make([]byte, 100)...), 11), end)),
		m("sname and file full of options", 0, with(discover, option(52, 3), end), func(b []byte) { copy(b[44:], bytes.Repeat([]byte{12, 255}, 90)) }),
		m("a name of control characters", 0, with(discover, option(12, []byte("\x1b[2J\nlevel=ERROR msg=\"$(reboot)\"\r\n`id`")...), end)),
		m("a name of 255 bytes", 0, with(discover, option(12, bytes.Repeat([]byte{'a'}, 255)...), end)),
		m("the bystander's name", 0, with(discover, option(12, []byte("bystander")...), end)),
		m("the gateway's name", 0, with(discover, option(12, []byte("gateway")...), end)),
		{name: "a message cut short", frames: one(cutUDP(s.dhcp4(s.MAC, 1, discover), 100))}, // CVE-2021-3592
		{name: "a message of no bytes", frames: one(cutUDP(s.dhcp4(s.MAC, 1, discover), 0))},
		{name: "DHCPv6 of one byte", frames: one(cutUDP(s.dhcp6(1, 1, nil), 1))},
		{name: "DHCPv6, an option beyond the message", frames: one(s.dhcp6(1, 2, []byte{0, 1, 0xff, 0xff, 1}))},
		{name: "DHCPv6, an option cut short", frames: one(s.dhcp6(1, 3, []byte{0, 1, 0}))},
		{name: "DHCPv6, a DUID of 1,000 bytes", frames: one(s.dhcp6(1, 4, append([]byte{0, 1, 3, 0xe8}, make([]byte, 1000)...)))},
		{name: "DHCPv6, options in options", frames: one(s.dhcp6(1, 5, bytes.Repeat([]byte{0, 3, 0, 200, 0, 0, 0, 1}, 30)))},
		{name: "DHCPv6, a relay's", frames: one(s.dhcp6(12, 6, make([]byte, 64)))},
		{name: "DHCPv6, a type of 255", frames: one(s.dhcp6(255, 7, nil))},
	}
	before := a.lease(t)
	again := a.fire(t, w, shots)
	w.c.Close()
	x.suffer(t, sprayTime(), a.spray(s, again))
	// The whole pool for one guest, over and over; whoever comes after finds one all the same.
	x.suffer(t, either(2*sprayTime(), 8*time.Second), a.assault(assault{From: s, Kind: "discovers"}))
	if now := a.lease(t); now != before {
		t.Errorf("the bystander's lease was %+v and is %+v", before, now)
	}
	t.Run("a guest that comes after", func(t *testing.T) {
		g := kernelUnix.boot(t, a.daemon, attach{unix: a.unix}, "after")
		if err := g.Kill(); err != nil {
			t.Fatal(err)
		}
	})
	if log := a.log.String(); strings.Contains(log, "\x1b") || strings.Contains(log, "\nlevel=ERROR") {
		t.Error("a host's name writes into the log")
	}
	x.end(t)
}

type bystanders struct {
	addr, mac, name string
}

// lease is the bystander's.
func (a *arena) lease(t *testing.T) bystanders {
	t.Helper()
	list, err := a.ctl.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if l.Addr == a.g.addr4 {
			return bystanders{l.Addr.String(), l.MAC, l.Name}
		}
	}
	return bystanders{}
}

// cutUDP is a frame whose datagram carries only n bytes, and says so.
func cutUDP(f []byte, n int) []byte {
	hl := ipLen(binary.BigEndian.Uint16(f[12:]) == 0x86dd)
	ip := append([]byte(nil), f[14:14+hl+8+n]...)
	binary.BigEndian.PutUint16(ip[hl+4:], uint16(8+n))
	src, dst, proto := netip.Addr{}, netip.Addr{}, byte(17)
	if hl == 20 {
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], ^sum(ip[:20], 0))
		src, dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-40))
		src, dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	}
	sealed(src, dst, proto, ip[hl:], 6)
	return append(append([]byte(nil), f[:14]...), ip...)
}

// 9: DNS that is no question, never comes to its end, or is too much.
func hostileDNS(t *testing.T, a *arena) {
	x := a.try(t, t.Name())
	w := a.plug(t)
	s := w.station
	by := [2]netip.Addr{a.g.addr4, a.g.addr6}
	again := a.fire(t, w, both(func(v6 bool, fam string) []shot {
		dns := netip.AddrPortFrom(s.DNS4, 53)
		if v6 {
			dns = netip.AddrPortFrom(s.DNS6, 53)
		}
		q := func(name string, b []byte) shot {
			return shot{name: fam + ", " + name, frames: one(s.udp(5353, dns, b))}
		}
		head := []byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
		raw := func(b ...byte) []byte { return append(append([]byte(nil), head...), b...) }
		edns := question(9, "www.example", 1)
		edns[11] = 1
		edns = append(edns, 0, 0, 41, 0xff, 0xff, 0, 0, 0, 0, 0, 0)
		victim := by[0]
		if v6 {
			victim = by[1]
		}
		return []shot{
			q("of no bytes", nil),
			q("of three bytes", []byte{0, 1, 2}),
			q("a header alone", head),
			q("a pointer to itself", raw(0xc0, 12, 0, 1, 0, 1)),
			q("pointers in a ring", raw(1, 'a', 0xc0, 16, 0xc0, 12, 0, 1, 0, 1)),
			q("a pointer beyond the end", raw(0xff, 0xff, 0, 1, 0, 1)),
			q("a label beyond the end", raw(63, 'a', 'b')),
			q("a label of 64", raw(append([]byte{64}, make([]byte, 64)...)...)),
			q("a name of 300 bytes", raw(append(bytes.Repeat(append([]byte{59}, make([]byte, 59)...), 5), 0, 0, 1, 0, 1)...)),
			q("no question", []byte{0, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}),
			q("65535 questions", question(7, "www.example", 65535)),
			q("65535 of everything", append([]byte{0, 7, 1, 0, 255, 255, 255, 255, 255, 255, 255, 255}, make([]byte, 100)...)),
			q("an answer", append([]byte{0, 7, 0x81, 0x80}, question(7, "www.example", 1)[4:]...)),
			q("an update", append([]byte{0, 7, 0x28, 0}, question(7, "www.example", 1)[4:]...)),
			q("EDNS of 65535", edns),
			{name: fam + ", the resolver's answer to another guest", counts: "spoofed", frames: one(ether(hw(a.g.mac), s.MAC, kindOf(victim),
				packet(dns.Addr(), victim, 17, datagram(dns, netip.AddrPortFrom(victim, 5353), append([]byte{0, 7, 0x81, 0x80}, question(7, "www.example", 1)[4:]...)))))},
		}
	}))
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(s.DNS4, 53), netip.AddrPortFrom(s.DNS6, 53)} {
		t.Run("over TCP, "+to.Addr().String(), func(t *testing.T) {
			// Lengths that are not kept, by as many as there may be; and a question between them is answered.
			for i := range 64 {
				c := w.connect(t, to, 65535)
				b := [][]byte{{0}, {0xff, 0xff}, {0, 30, 1, 2, 3}, {0, 0}, nil}[i%5]
				if b != nil {
					w.send(t, c.seg(seg{flags: ack | psh, body: b}))
				}
			}
			w.sync(t)
			w.forget()
			w.send(t, s.udp(5354, to, question(8, "gateway.internal", 1)))
			w.expect(t, "an answer beside wires that stall", func(f []byte) bool { return toPort(f, 5354) })
		})
	}
	w.c.Close()
	x.suffer(t, sprayTime(), a.spray(s, again))
	// As many questions that nobody answers as go in, and the bystander's own is answered.
	x.suffer(t, either(2*sprayTime(), 8*time.Second), func(t *testing.T, on *daemon) func() {
		end := a.assault(assault{From: s, Kind: "questions"})(t, on)
		if on != a.daemon {
			return end
		}
		for _, server := range []netip.Addr{a.dns4, a.dns6} {
			for _, name := range []string{"gateway.internal", "www.example"} {
				began := time.Now()
				if out, errs, code, err := a.g.try(t, "guest dns -server %s %s A", server, name); err != nil || code != 0 || !strings.Contains(out, "NOERROR") || time.Since(began) > 3*time.Second {
					t.Errorf("the bystander asks %s for %s: %v %d %s%s after %v", server, name, err, code, out, errs, time.Since(began))
				}
			}
		}
		return end
	})
	x.end(t)
}

// 10: TFTP is not built: nobody answers.
func hostileTFTP(t *testing.T, a *arena) {
	a.group(t, func(s station) []shot {
		return both(func(v6 bool, fam string) (list []shot) {
			to := netip.AddrPortFrom(s.gw(v6), 69)
			data := func(f []byte) bool { proto, _ := upper(f); return proto == 17 && toPort(f, 6969) }
			for _, req := range []string{
				"\x00\x01/etc/passwd\x00octet\x00", "\x00\x01../../../etc/passwd\x00octet\x00", "\x00\x01..\\..\\x\x00netascii\x00", "\x00\x01no-nul",
				"\x00\x01/dev/zero\x00octet\x00blksize\x000\x00", "\x00\x01x\x00octet\x00blksize\x0065535\x00", "\x00\x02/tmp/x\x00octet\x00", "\x00", "\xff\xff",
			} {
				list = append(list, shot{name: fmt.Sprintf("%s, %q", fam, req), frames: one(s.udp(6969, to, []byte(req))), never: data})
			}
			return list
		})
	})
}

// 11: where no guest gets: the host's loopback by any name, cloud metadata, the control socket, others' forwards.
func hostilePolicy(t *testing.T, a *arena) {
	// Ears on every address of the host, and its loopback alone; whoever hears anything has been reached.
	const port = 4711
	var heard sync.Map
	for _, at := range []string{"0.0.0.0", "127.0.0.1", "::", "::1"} {
		host := net.JoinHostPort(at, fmt.Sprint(port))
		if err := a.host.Do(func() error {
			for _, network := range []string{"tcp", "udp"} {
				v := network + "4"
				if strings.Contains(at, ":") {
					v = network + "6"
				}
				if network == "tcp" {
					if strings.HasSuffix(at, "1") { // the wildcard has it
						continue
					}
					l, err := net.Listen(v, host)
					if err != nil {
						return err
					}
					t.Cleanup(func() { l.Close() })
					go func() {
						for {
							c, err := l.Accept()
							if err != nil {
								return
							}
							heard.Store("tcp "+c.LocalAddr().String(), true)
							c.Close()
						}
					}()
					continue
				}
				if strings.HasSuffix(at, "1") {
					continue
				}
				pc, err := net.ListenPacket(v, host)
				if err != nil {
					return err
				}
				t.Cleanup(func() { pc.Close() })
				go func() {
					b := make([]byte, 100)
					for {
						n, _, err := pc.ReadFrom(b)
						if err != nil {
							return
						}
						heard.Store("udp "+string(b[:n]), true)
					}
				}()
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	// The metadata service of a cloud, on the host's own network.
	a.world.ip(t, "addr add 169.254.169.254/32 dev peer0")
	a.host.ip(t, "route add 169.254.169.254/32 via 192.0.2.1")
	t.Cleanup(func() {
		a.host.ip(t, "route del 169.254.169.254/32")
		a.world.ip(t, "addr del 169.254.169.254/32 dev peer0")
	})
	meta := a.world.serve(t, "tcp", "169.254.169.254:80", traffic.Hold)
	// Another guest's forward.
	f := a.forward(t, "0:bystander:9")
	t.Cleanup(func() { a.ctl.RemoveForward(t.Context(), f[0].ID, true) })
	fwd := netip.MustParseAddrPort(at(f[0])).Port()

	x := a.try(t, t.Name())
	w := a.plug(t)
	s := w.station
	var shots []shot
	from := uint16(9000)
	for _, dst := range []string{
		"127.0.0.1", "127.1.2.3", "0.0.0.0", "255.255.255.255", "10.0.2.255", "224.0.0.1", "169.254.1.1", s.GW4.String(), s.DNS4.String(),
		"::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "fe80::1", "ff02::1", "ff01::1", s.GW6.String(), s.DNS6.String(),
	} {
		to := netip.MustParseAddr(dst)
		for _, p := range []uint16{port, fwd} {
			from++
			p0 := from
			shots = append(shots, shot{name: fmt.Sprintf("to %s port %d", dst, p), frames: [][]byte{
				s.tcp(p0, netip.AddrPortFrom(to, p), seg{flags: syn, window: 1000}),
				s.udp(p0, netip.AddrPortFrom(to, p), []byte(dst)),
			}, never: func(f []byte) bool { return isTCP(f, p0, syn|ack) }})
		}
	}
	from++
	p0 := from
	shots = append(shots, shot{name: "cloud metadata", counts: "link-local", frames: one(s.tcp(p0, netip.MustParseAddrPort("169.254.169.254:80"), seg{flags: syn, window: 1000})),
		answer: func(f []byte) bool { return isTCP(f, p0, rst|ack) || isICMP(f) }, never: func(f []byte) bool { return isTCP(f, p0, syn|ack) }})
	// HTTP on the gateway, as gvproxy has it: nobody there.
	for _, p := range []uint16{80, 443, 7777, 1} {
		for _, gw := range []netip.Addr{s.GW4, s.GW6} {
			from++
			p0 := from
			shots = append(shots, shot{name: fmt.Sprintf("an API at %s port %d", gw, p), frames: one(s.tcp(p0, netip.AddrPortFrom(gw, p), seg{flags: syn, window: 1000})),
				never: func(f []byte) bool { return isTCP(f, p0, syn|ack) }})
		}
	}
	again := a.fire(t, w, shots)
	w.c.Close()
	x.suffer(t, sprayTime(), a.spray(s, again))
	heard.Range(func(k, _ any) bool {
		t.Errorf("the host has heard %v", k)
		return true
	})
	if len(meta.Done) > 0 {
		t.Error("the metadata service was reached")
	}
	x.end(t)
}

func isICMP(f []byte) bool {
	proto, b := upper(f)
	return len(b) > 0 && (proto == 1 && b[0] == 3 || proto == 58 && b[0] == 1)
}

// 12: the control socket, by programs of the user's that are wrong or many.
func hostileControl(t *testing.T, a *arena) {
	x := a.try(t, t.Name())
	raw := rawControl(a.control)
	defer raw.CloseIdleConnections()
	for _, tt := range []struct {
		name, method, path, body string
		want                     int // 0: any refusal
	}{
		{"no rule", "POST", "forwards", `{}`, 0},
		{"a rule of null", "POST", "forwards", `{"rule":null}`, 0},
		{"a rule that is a number", "POST", "forwards", `{"rule":5}`, 0},
		{"a rule that is a list", "POST", "forwards", `{"rule":[1,2]}`, 0},
		{"port 70000", "POST", "forwards", `{"rule":"70000:22"}`, 0},
		{"a guest's port 70000", "POST", "forwards", `{"rule":{"proto":"tcp","host_port":2222,"guest_port":70000}}`, 0},
		{"port -1", "POST", "forwards", `{"rule":{"proto":"tcp","host_port":-1,"guest_port":22}}`, 0},
		{"a range of all ports twice over", "POST", "forwards", `{"rule":"1-65535:65535-1"}`, 0},
		{"a remote that is a name", "POST", "forwards", `{"rule":{"proto":"tcp","host_port":0,"guest":"no such guest!","guest_port":80}}`, -1},
		{"a file as socket", "POST", "forwards", `{"rule":"unix:/etc/passwd-:80"}`, 0},
		{"no JSON", "POST", "forwards", "rule=2222:22", 0},
		{"JSON without its end", "POST", "forwards", `{"rule":"22`, 0},
		{"JSON ten thousand deep", "POST", "forwards", strings.Repeat("[", 100_000), 0},
		{"1 MB", "POST", "forwards", `{"rule":"` + strings.Repeat("x", 1<<20) + `"}`, 0},
		{"1 MB of blanks", "POST", "forwards", strings.Repeat(" ", 1<<20) + `{"rule":"0:22"}`, 0},
		{"a record of an unknown type", "POST", "dns", `{"name":"db","type":"ZZ","value":"x"}`, 0},
		{"a record without an address", "POST", "dns", `{"name":"db","type":"A","value":"x"}`, 0},
		{"a record of a name of 300 bytes", "POST", "dns", `{"name":"` + strings.Repeat("x", 300) + `","type":"A","value":"10.0.2.9"}`, 0},
		{"a lease of nobody", "DELETE", "leases/10.0.2.77", "", 0},
		{"a lease of no address", "DELETE", "leases/..%2f..", "", 0},
		{"a guest of nobody", "DELETE", "guests/nobody", "", 0},
		{"an unknown path", "GET", "../../etc/passwd", "", 0},
		{"an unknown method", "PATCH", "forwards", "{}", 0},
	} {
		req, err := http.NewRequest(tt.method, "http://vmnetd/v1/"+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := raw.Do(req)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		var p control.Problem
		if tt.want == 0 && (resp.StatusCode < 400 || resp.StatusCode >= 500) || resp.StatusCode >= 500 {
			t.Errorf("%s: %s %s", tt.name, resp.Status, b)
		} else if resp.StatusCode >= 400 && (json.Unmarshal(b, &p) != nil || p.Detail == "") {
			t.Errorf("%s: no problem is told: %s %s", tt.name, resp.Status, b)
		}
	}
	for _, f := range a.rules(t) { // the one above that was no mistake
		a.ctl.RemoveForward(t.Context(), f, true)
	}

	t.Run("the same rule twice", func(t *testing.T) {
		f := a.forward(t, "0:bystander:80")
		_, err := a.ctl.AddForward(t.Context(), strings.Replace(at(f[0]), "127.0.0.1:", "", 1)+":bystander:80")
		if p := (*control.Problem)(nil); !asProblem(err, &p) || p.Status/100 != 4 {
			t.Errorf("the second: %v", err)
		}
		if err := a.ctl.RemoveForward(t.Context(), f[0].ID, false); err != nil {
			t.Error(err)
		}
		if err := a.ctl.RemoveForward(t.Context(), f[0].ID, false); err == nil {
			t.Error("it was removed twice")
		}
	})
	t.Run("a rule removed and added during traffic", func(t *testing.T) {
		guestPort, j := a.g.listen(t, "guest listen echo 0.0.0.0:0")
		defer j.Kill()
		f := a.forward(t, "0:bystander:%d", guestPort)
		c, err := a.lab.host.dial("tcp", at(f[0]))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		talk := func() error {
			c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
			_, err := io.ReadFull(c, make([]byte, 1))
			return err
		}
		if err := talk(); err != nil {
			t.Fatal(err)
		}
		if err := a.ctl.RemoveForward(t.Context(), f[0].ID, false); err != nil {
			t.Fatal(err)
		}
		if err := talk(); err != nil {
			t.Errorf("without cut it goes on: %v", err)
		}
		rule := fmt.Sprintf("%d:bystander:%d", netip.MustParseAddrPort(at(f[0])).Port(), guestPort)
		again, err := a.ctl.AddForward(t.Context(), rule)
		if err != nil {
			t.Fatalf("the same rule again, beside its conversation: %v", err)
		}
		if err := a.ctl.RemoveForward(t.Context(), again[0].ID, true); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a rule whose guest has gone", func(t *testing.T) { // podman#29032
		g := kernelUnix.boot(t, a.daemon, attach{unix: a.unix}, "leaves")
		f := a.forward(t, "0:leaves:80")
		if err := g.Kill(); err != nil {
			t.Fatal(err)
		}
		wait(t, "it is gone", func() error {
			if _, ok := a.info(t, hw(g.mac)); ok {
				return fmt.Errorf("it is there")
			}
			return nil
		})
		c, err := a.lab.host.dial("tcp", at(f[0]))
		if err == nil { // taken, and ended: the guest's answer is what nobody gives
			c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("somebody answers")
			}
			c.Close()
		}
		if err := a.ctl.RemoveForward(t.Context(), f[0].ID, true); err != nil {
			t.Error(err)
		}
		rule := fmt.Sprintf("%d:bystander:80", netip.MustParseAddrPort(at(f[0])).Port())
		again, err := a.ctl.AddForward(t.Context(), rule)
		if err != nil {
			t.Errorf("its port is not free: %v", err)
		} else if err := a.ctl.RemoveForward(t.Context(), again[0].ID, true); err != nil {
			t.Error(err)
		}
	})
	t.Run("clients that stall", func(t *testing.T) {
		const n = 1000
		x.suffer(t, sprayTime(), func(t *testing.T, on *daemon) func() {
			var open []net.Conn
			for i := range n {
				c, err := net.Dial("unix", on.control)
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					break
				}
				open = append(open, c)
				io.WriteString(c, []string{"", "GET", "GET /v1/status HTTP/1.1\r\nHost: x\r\n", "POST /v1/forwards HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{", "GET /v1/flows HTTP/1.1\r\nHost: x\r\n\r\n"}[i%5])
			}
			return func() {
				for _, c := range open {
					c.Close()
				}
			}
		})
	})
	t.Run("1000 clients at a time", func(t *testing.T) {
		var wg sync.WaitGroup
		var bad atomic.Int64
		gate := make(chan struct{}, 64) // this process's own part in it is bounded: so many are at it at a time
		for range 1000 {
			gate <- struct{}{}
			wg.Go(func() {
				defer func() { <-gate }()
				c, err := net.Dial("unix", a.control)
				if err != nil {
					bad.Add(1)
					return
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				io.WriteString(c, "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil || resp.StatusCode != 200 {
					bad.Add(1)
				}
			})
		}
		wg.Wait()
		if n := bad.Load(); n > 0 {
			t.Errorf("%d of 1000 have no answer", n)
		}
	})
	x.end(t)
}

func asProblem(err error, p **control.Problem) bool {
	x, ok := err.(*control.Problem)
	*p = x
	return ok
}

// rules is the ids of the port forwards.
func (a *arena) rules(t *testing.T) (ids []string) {
	t.Helper()
	list, err := a.ctl.Forwards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		ids = append(ids, f.ID)
	}
	return ids
}
