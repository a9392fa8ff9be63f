package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// alone runs the rest of the test in a child process with a network namespace
// of its own, which ends with the process. Loopback is up there; nothing else
// is. As root, or in a user namespace where those are allowed.
func alone(t *testing.T) (child bool) {
	t.Helper()
	child = again(t, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if os.Geteuid() != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
	})
	if child {
		up(t, "lo")
	}
	return child
}

func up(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

func sysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// address gives an interface an address at once usable, and its prefix' route.
func address(t *testing.T, l netlink.Link, prefix string) {
	t.Helper()
	a, err := netlink.ParseAddr(prefix)
	if err != nil {
		t.Fatal(err)
	}
	a.Flags = unix.IFA_F_NODAD
	if err := netlink.AddrAdd(l, a); err != nil {
		t.Fatalf("%s: %v", prefix, err)
	}
	// The kernel makes an IPv6 address its own a moment later.
	for ctx := soon(t); ; time.Sleep(time.Millisecond) {
		if r, err := netlink.RouteGet(a.IP); err == nil && len(r) == 1 && r[0].Type == unix.RTN_LOCAL {
			return
		} else if ctx.Err() != nil {
			t.Fatalf("%s is not an address of ours: %v, %v", prefix, r, err)
		}
	}
}

func route(t *testing.T, r netlink.Route, prefix string) {
	t.Helper()
	p := netip.MustParsePrefix(prefix)
	r.Dst = &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
	if err := netlink.RouteAdd(&r); err != nil {
		t.Fatalf("route %s: %v", prefix, err)
	}
}

// blackHole is a default route, of both families, to a router that swallows
// everything: the far end of the cable is up, but has another MAC.
func blackHole(t *testing.T) {
	t.Helper()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "hole"}, PeerName: "bottom"}); err != nil {
		t.Skipf("no veth interfaces in this kernel: %v", err)
	}
	up(t, "bottom")
	hole := up(t, "hole").Attrs().Index
	for _, f := range []struct{ addr, router, all string }{
		{"10.9.0.1/24", "10.9.0.2", "0.0.0.0/0"},
		{"2001:db8:9::1/64", "2001:db8:9::2", "::/0"},
	} {
		l, err := netlink.LinkByIndex(hole)
		if err != nil {
			t.Fatal(err)
		}
		address(t, l, f.addr)
		router := net.ParseIP(f.router)
		if err := netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: hole, State: netlink.NUD_PERMANENT, IP: router,
			HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0xff},
		}); err != nil {
			t.Fatal(err)
		}
		route(t, netlink.Route{LinkIndex: hole, Gw: router}, f.all)
	}
}

// One address of each family that no host in the namespace has.
var far = []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:7::7")}

func allowPing(t *testing.T) { sysctl(t, "net/ipv4/ping_group_range", "0 0") }

// attempt tries a destination in each way that a guest can.
func attempt(t *testing.T, h *Host, dst netip.Addr) map[string]error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	got := map[string]error{}
	to := netip.AddrPortFrom(dst, 80)
	c, err := h.DialContext(ctx, TCPNetwork(dst), to)
	if err == nil {
		c.Close()
	}
	got["tcp"] = err
	pc := listenUDP(t, h, UDPNetwork(dst), netip.AddrPort{})
	_, got["udp"] = pc.WriteTo([]byte("x"), to)
	got["ping"] = h.Ping(ctx, dst, 1, []byte("payload"))
	fd, err := h.Connect(TCPNetwork(dst), to)
	if err == nil {
		unix.Close(fd)
	}
	got["connect"] = err
	return got
}

func TestNoRoute(t *testing.T) {
	if !alone(t) {
		return
	}
	allowPing(t)
	h := new(Host)
	if h.HasRoute4() || h.HasRoute6() {
		t.Errorf("a route from nowhere: %v, %v", h.HasRoute4(), h.HasRoute6())
	}
	for _, dst := range far {
		for how, err := range attempt(t, h, dst) {
			if Classify(err) != NetUnreachable {
				t.Errorf("%s %s: %v: %v", how, dst, err, Classify(err))
			}
		}
	}
	blackHole(t)
	if !h.HasRoute4() || !h.HasRoute6() {
		t.Errorf("no route: %v, %v", h.HasRoute4(), h.HasRoute6())
	}
}

// A host without IPv6 says so in its own way.
func TestNoIPv6(t *testing.T) {
	if !alone(t) {
		return
	}
	allowPing(t)
	sysctl(t, "net/ipv6/conf/all/disable_ipv6", "1")
	h := new(Host)
	if h.HasRoute6() {
		t.Error("a route without addresses")
	}
	for _, dst := range []netip.Addr{netip.IPv6Loopback(), far[1]} {
		for how, err := range attempt(t, h, dst) {
			if Classify(err) != NetUnreachable {
				t.Errorf("%s %s: %v: %v", how, dst, err, Classify(err))
			}
		}
	}
}

func TestForbiddingRoutes(t *testing.T) {
	if !alone(t) {
		return
	}
	allowPing(t)
	lo, _ := netlink.LinkByName("lo")
	address(t, lo, "10.9.0.1/32")
	address(t, lo, "2001:db8:9::1/128")
	for i, tt := range []struct {
		typ    int
		v4, v6 Kind
	}{
		{unix.RTN_UNREACHABLE, HostUnreachable, HostUnreachable},
		{unix.RTN_PROHIBIT, Prohibited, Prohibited},
	} {
		for _, want := range []struct {
			prefix, dst string
			kind        Kind
		}{
			{fmt.Sprintf("198.51.%d.0/24", i), fmt.Sprintf("198.51.%d.1", i), tt.v4},
			{fmt.Sprintf("2001:db8:%d::/48", i), fmt.Sprintf("2001:db8:%d::1", i), tt.v6},
		} {
			route(t, netlink.Route{Type: tt.typ}, want.prefix)
			for how, err := range attempt(t, new(Host), netip.MustParseAddr(want.dst)) {
				if Classify(err) != want.kind {
					t.Errorf("%s %s: %v: %v, want %v", how, want.dst, err, Classify(err), want.kind)
				}
			}
		}
	}
}

func TestBlackHole(t *testing.T) {
	if !alone(t) {
		return
	}
	allowPing(t)
	blackHole(t)
	for _, dst := range far {
		start := time.Now()
		for how, err := range attempt(t, new(Host), dst) {
			want := Timeout
			if how == "udp" || how == "connect" {
				want = None // sent, begun
			}
			if Classify(err) != want {
				t.Errorf("%s %s: %v", how, dst, err)
			}
		}
		if d := time.Since(start); d > patience {
			t.Errorf("took %v", d)
		}
		h := &Host{PingTimeout: 50 * time.Millisecond}
		if err := h.Ping(context.Background(), dst, 1, nil); Classify(err) != Timeout {
			t.Errorf("ping's own limit: %v", err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(10*time.Millisecond, cancel)
		if err := new(Host).Ping(ctx, dst, 1, nil); Classify(err) != Other || !errors.Is(err, context.Canceled) {
			t.Errorf("ping cancelled: %v", err)
		}
	}
}

func TestPing(t *testing.T) {
	if !alone(t) {
		return
	}
	h := new(Host)
	los := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}

	v4, v6 := h.PingAllowed() // a new namespace has it at 1 0: nobody
	for i, err := range []error{v4, v6, h.Ping(soon(t), los[0], 1, nil), h.Ping(soon(t), los[1], 1, nil)} {
		if !errors.Is(err, ErrNoPing) || !strings.Contains(err.Error(), "sysctl -w net.ipv4.ping_group_range=") {
			t.Errorf("%d: forbidden: %v", i, err)
		}
	}
	t.Log(v4)

	allowPing(t)
	if v4, v6 := h.PingAllowed(); v4 != nil || v6 != nil {
		t.Fatalf("allowed: %v, %v", v4, v6)
	}
	for _, lo := range los {
		most := MaxPayload4
		if lo.Is6() {
			most = MaxPayload6
		}
		for _, size := range []int{0, 1, 56, 1473, 9000, most} {
			if err := h.Ping(soon(t), lo, uint16(size), make([]byte, size)); err != nil {
				t.Errorf("%s, %d octets: %v", lo, size, err)
			}
		}
		// The same sequence number and payload by many at once: each has
		// its own reply.
		var wg sync.WaitGroup
		for range DefaultMaxPings {
			wg.Go(func() {
				if err := h.Ping(soon(t), lo, 7, []byte("same")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}

	blackHole(t)
	before := descriptors(t)
	h.MaxPings = 3
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range h.MaxPings {
		wg.Go(func() { h.Ping(ctx, far[0], 1, nil) })
	}
	for h.pings.Load() < int64(h.MaxPings) {
		time.Sleep(time.Millisecond)
	}
	if err := h.Ping(soon(t), los[0], 1, nil); Classify(err) != Exhausted {
		t.Errorf("one more than allowed: %v", err)
	}
	cancel()
	wg.Wait()
	if err := h.Ping(soon(t), los[0], 1, nil); err != nil {
		t.Errorf("after the others ended: %v", err)
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func TestExhausted(t *testing.T) {
	if !alone(t) {
		return
	}
	allowPing(t)
	h := new(Host)
	lo := netip.MustParseAddr("127.0.0.1")
	dst := listenTCP(t, lo, func(c *net.TCPConn) { t.Cleanup(func() { c.Close() }) })

	sysctl(t, "net/ipv4/ip_local_port_range", "40000 40003")
	var err error
	for range 5 { // four ports
		var c net.Conn
		if c, err = h.DialContext(soon(t), "tcp4", dst); err != nil {
			break
		}
		defer c.Close()
	}
	if Classify(err) != Exhausted {
		t.Errorf("no ports left: %v: %v", err, Classify(err))
	}

	sysctl(t, "net/ipv4/ip_local_port_range", "40000 50000")
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}); err != nil {
		t.Fatal(err)
	}
	for {
		fd, err := unix.Dup(0)
		if err != nil {
			break
		}
		defer unix.Close(fd)
	}
	_, errs := h.DialContext(soon(t), "tcp4", dst)
	_, erru := h.ListenPacket(soon(t), "udp6", netip.AddrPort{})
	_, errc := h.Connect("tcp4", dst)
	for i, err := range []error{errs, erru, errc, h.Ping(soon(t), lo, 1, nil)} {
		if Classify(err) != Exhausted || !errors.Is(err, syscall.EMFILE) {
			t.Errorf("%d: no descriptors left: %v: %v", i, err, Classify(err))
		}
	}
	if err, _ := h.PingAllowed(); errors.Is(err, ErrNoPing) {
		t.Errorf("no descriptor left is not forbidden: %v", err)
	}
	if !new(Host).HasRoute4() || !new(Host).HasRoute6() {
		t.Error("no descriptor left is no lost route")
	}
}

// tun is the rest of the world: what the namespace sends to it is read here,
// and answered by a test.
type tun struct {
	t    *testing.T
	f    *os.File
	link netlink.Link
}

func openTUN(t *testing.T, name string, prefixes ...string) *tun {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no TUN interfaces here: %v", err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		t.Skipf("no TUN interfaces here: %v", err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	w := &tun{t: t, f: f, link: up(t, name)}
	for _, p := range prefixes {
		address(t, w.link, p)
	}
	return w
}

// next waits for a packet of one protocol, and skips the host's own chatter
// (router solicitations, multicast reports).
func (w *tun) next(proto byte) []byte {
	w.t.Helper()
	w.f.SetReadDeadline(time.Now().Add(patience))
	for {
		buf := make([]byte, 65536)
		n, err := w.f.Read(buf)
		if err != nil {
			w.t.Fatalf("waiting for protocol %d: %v", proto, err)
		}
		p := buf[:n]
		got := p[9]
		if p[0]>>4 == 6 {
			if got = p[6]; got == 44 { // a fragment header
				got = p[40]
			}
			if dst := netip.AddrFrom16([16]byte(p[24:40])); dst.IsMulticast() {
				continue
			}
		}
		if got == proto {
			return p
		}
	}
}

func (w *tun) src(p []byte) netip.Addr {
	if p[0]>>4 == 6 {
		return netip.AddrFrom16([16]byte(p[8:24]))
	}
	return netip.AddrFrom4([4]byte(p[12:16]))
}

// complain answers a packet with an ICMP error, said by from.
func (w *tun) complain(p []byte, from netip.Addr, typ, code byte, info uint32) {
	w.t.Helper()
	to := w.src(p)
	quote := p[:min(len(p), 500)]
	icmp := binary.BigEndian.AppendUint32([]byte{typ, code, 0, 0}, info)
	icmp = append(icmp, quote...)
	var out []byte
	if from.Is4() {
		binary.BigEndian.PutUint16(icmp[2:], sum16(icmp))
		out = make([]byte, 20, 20+len(icmp))
		out[0], out[8], out[9] = 0x45, 64, 1
		binary.BigEndian.PutUint16(out[2:], uint16(20+len(icmp)))
		copy(out[12:], from.AsSlice())
		copy(out[16:], to.AsSlice())
		binary.BigEndian.PutUint16(out[10:], sum16(out))
	} else {
		pseudo := append(from.AsSlice(), to.AsSlice()...)
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(icmp)))
		pseudo = append(pseudo, 0, 0, 0, 58)
		binary.BigEndian.PutUint16(icmp[2:], sum16(append(pseudo, icmp...)))
		out = make([]byte, 40, 40+len(icmp))
		out[0], out[6], out[7] = 0x60, 58, 64
		binary.BigEndian.PutUint16(out[4:], uint16(len(icmp)))
		copy(out[8:], from.AsSlice())
		copy(out[24:], to.AsSlice())
	}
	if _, err := w.f.Write(append(out, icmp...)); err != nil {
		w.t.Fatal(err)
	}
}

func sum16(b []byte) uint16 {
	var s uint32
	for i, v := range b {
		s += uint32(v) << (8 * (1 - i%2))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

var (
	router4 = netip.MustParseAddr("203.0.113.1")
	router6 = netip.MustParseAddr("2001:db8:1::1")
)

// What a router on the way says comes back as news of that destination: to a
// UDP socket, a dial and an echo request.
func TestICMPErrors(t *testing.T) {
	if !alone(t) {
		return
	}
	allowPing(t)
	world := openTUN(t, "world", "203.0.113.2/24", "2001:db8:1::2/64")
	route(t, netlink.Route{LinkIndex: world.link.Attrs().Index}, "0.0.0.0/0")
	route(t, netlink.Route{LinkIndex: world.link.Attrs().Index}, "::/0")
	h := new(Host)
	lo4, lo6 := echoUDP(t, netip.MustParseAddr("127.0.0.1")), echoUDP(t, netip.IPv6Loopback())
	for i, tt := range []struct {
		typ, code byte
		info      uint32
		v6        bool
		kind      Kind
		tcp       Kind // of a dial: the kernel gives an errno only
	}{
		{3, 0, 0, false, NetUnreachable, NetUnreachable},
		{3, 1, 0, false, HostUnreachable, HostUnreachable},
		{3, 3, 0, false, PortUnreachable, Refused},
		{3, 4, 1300, false, TooBig, None},
		{3, 10, 0, false, Prohibited, HostUnreachable},
		{3, 13, 0, false, Prohibited, HostUnreachable},
		{11, 0, 0, false, HostUnreachable, HostUnreachable},
		{1, 0, 0, true, NetUnreachable, NetUnreachable},
		{1, 1, 0, true, Prohibited, Prohibited},
		{1, 3, 0, true, HostUnreachable, HostUnreachable},
		{1, 4, 0, true, PortUnreachable, Refused},
		{1, 5, 0, true, Prohibited, Prohibited},
		{2, 0, 1300, true, TooBig, None},
		{3, 0, 0, true, HostUnreachable, HostUnreachable},
	} {
		name := fmt.Sprintf("v4 type %d code %d", tt.typ, tt.code)
		dst := netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)})
		router, echo, icmp := router4, lo4, byte(1)
		if tt.v6 {
			name = strings.Replace(name, "v4", "v6", 1)
			dst = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i + 1)})
			router, echo, icmp = router6, lo6, 58
		}
		to := netip.AddrPortFrom(dst, 4000)
		check := func(how string, err error, want netip.AddrPort) {
			t.Helper()
			var u *UnreachableError
			if !errors.As(err, &u) {
				t.Errorf("%s, %s: %v", name, how, err)
				return
			}
			if u.Kind != tt.kind || u.Dst != want || u.From != router || u.MTU != int(tt.info) {
				t.Errorf("%s, %s: %v: kind %v for %v, MTU %d, said by %v", name, how, err, u.Kind, u.Dst, u.MTU, u.From)
			}
		}

		pc := listenUDP(t, h, UDPNetwork(dst), netip.AddrPort{})
		msg := make([]byte, 1400)
		if _, err := pc.WriteTo(msg, to); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		world.complain(world.next(17), router, tt.typ, tt.code, tt.info)
		check("udp", readError(t, pc), to)
		pc.WriteTo([]byte("still there"), echo)
		buf := make([]byte, 100)
		if n, from, err := pc.ReadFrom(buf); string(buf[:n]) != "still there" || from != echo || err != nil {
			t.Errorf("%s: the socket afterwards: %q, %v, %v", name, buf[:n], from, err)
		}
		if tt.kind == TooBig { // known now: the same datagram goes in fragments
			if _, err := pc.WriteTo(msg, to); err != nil {
				t.Errorf("%s: again: %v", name, err)
			}
			if n := len(world.next(17)); n > 1300 {
				t.Errorf("%s: then a packet of %d octets", name, n)
			}
			world.next(17)
		}

		pinged := make(chan error)
		ping := netip.AddrPortFrom(dst.Next(), 0) // its path's MTU is not known yet
		go func() { pinged <- h.Ping(soon(t), ping.Addr(), uint16(i), msg) }()
		world.complain(world.next(icmp), router, tt.typ, tt.code, tt.info)
		check("ping", <-pinged, ping)

		if tt.tcp != None {
			dialled := make(chan error)
			go func() {
				_, err := h.DialContext(soon(t), TCPNetwork(dst), to)
				dialled <- err
			}()
			world.complain(world.next(6), router, tt.typ, tt.code, tt.info)
			if err := <-dialled; Classify(err) != tt.tcp {
				t.Errorf("%s, tcp: %v: %v, want %v", name, err, Classify(err), tt.tcp)
			}
		}
	}
}

// The largest datagram leaves an interface of 1500 octets, in fragments.
func TestFragments(t *testing.T) {
	if !alone(t) {
		return
	}
	allowPing(t)
	world := openTUN(t, "world", "203.0.113.2/24", "2001:db8:1::2/64")
	for _, tt := range []struct {
		dst  netip.Addr
		most int
	}{{router4, MaxPayload4}, {router6, MaxPayload6}} {
		pc := listenUDP(t, new(Host), UDPNetwork(tt.dst), netip.AddrPort{})
		if _, err := pc.WriteTo(make([]byte, tt.most), netip.AddrPortFrom(tt.dst, 9)); err != nil {
			t.Errorf("%s: %v", tt.dst, err)
		}
		total, packets := 0, 0
		for total < tt.most+8 {
			p := world.next(17)
			if len(p) > 1500 {
				t.Fatalf("a packet of %d octets", len(p))
			}
			packets++
			if tt.dst.Is6() {
				total += len(p) - 48
			} else {
				total += len(p) - 20
			}
		}
		if total != tt.most+8 {
			t.Errorf("%s: %d octets in %d packets", tt.dst, total, packets)
		}
		t.Logf("%s: %d octets in %d packets", tt.dst, total, packets)
	}
}

// The source address and the interface that were asked for, where the system
// would choose others; and loopback all the same.
func TestLeaveBy(t *testing.T) {
	if !alone(t) {
		return
	}
	allowPing(t)
	other := openTUN(t, "other", "192.0.2.2/24", "2001:db8:2::2/64")
	world := openTUN(t, "world", "203.0.113.2/24", "203.0.113.3/24", "2001:db8:1::2/64", "2001:db8:1::3/64")
	for metric, w := range []*tun{other, world} { // the lower one is the system's choice
		route(t, netlink.Route{LinkIndex: w.link.Attrs().Index, Priority: metric + 1}, "0.0.0.0/0")
		route(t, netlink.Route{LinkIndex: w.link.Attrs().Index, Priority: metric + 1}, "::/0")
	}
	src4, src6 := netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("2001:db8:1::3")
	for _, tt := range []struct {
		name string
		h    *Host
		by   *tun
		src  func(netip.Addr) bool
	}{
		{"zero", &Host{}, other, nil},
		{"source", &Host{Source4: src4, Source6: src6}, other, func(a netip.Addr) bool { return a == src4 || a == src6 }},
		{"interface", &Host{Interface: "world"}, world, netip.MustParsePrefix("203.0.113.0/24").Contains},
		{"both", &Host{Interface: "world", Source4: src4, Source6: src6}, world, func(a netip.Addr) bool { return a == src4 || a == src6 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := tt.h
			if !h.HasRoute4() || !h.HasRoute6() {
				t.Errorf("routes: %v, %v", h.HasRoute4(), h.HasRoute6())
			}
			for i, dst := range far {
				icmp, lo := byte(1), netip.MustParseAddr("127.0.0.1")
				if i == 1 {
					icmp, lo = 58, netip.IPv6Loopback()
				}
				leaves := func(how string, proto byte) {
					t.Helper()
					// An interface's IPv6 addresses: the kernel may choose any.
					if got := tt.by.src(tt.by.next(proto)); tt.src != nil && !tt.src(got) && !(tt.name == "interface" && got.Is6()) {
						t.Errorf("%s to %s comes from %v", how, dst, got)
					}
				}
				ctx, cancel := context.WithCancel(context.Background())
				var wg sync.WaitGroup
				wg.Go(func() { h.DialContext(ctx, TCPNetwork(dst), netip.AddrPortFrom(dst, 80)) })
				leaves("tcp", 6)
				wg.Go(func() { h.Ping(ctx, dst, 1, nil) })
				leaves("ping", icmp)
				cancel()
				wg.Wait()
				fd, err := h.Connect(TCPNetwork(dst), netip.AddrPortFrom(dst, 81))
				if err != nil {
					t.Fatal(err)
				}
				leaves("connect", 6)
				unix.Close(fd)
				pc := listenUDP(t, h, UDPNetwork(dst), netip.AddrPort{})
				if _, err := pc.WriteTo([]byte("x"), netip.AddrPortFrom(dst, 80)); err != nil {
					t.Error(err)
				}
				leaves("udp", 17)

				if tt.name == "both" && lo.Is6() { // see Host.Interface
					pc = listenUDP(t, h, "udp6", netip.AddrPortFrom(lo, 0))
				}
				echo := echoUDP(t, lo)
				buf := make([]byte, 10)
				pc.WriteTo([]byte("lo"), echo)
				if n, from, err := pc.ReadFrom(buf); string(buf[:n]) != "lo" || from != echo || err != nil {
					t.Errorf("loopback by udp: %q, %v, %v", buf[:n], from, err)
				}
				if err := h.Ping(soon(t), lo, 1, nil); err != nil {
					t.Errorf("loopback by ping: %v", err)
				}
				if _, err := h.DialContext(soon(t), TCPNetwork(lo), closedTCP(t, lo)); Classify(err) != Refused {
					t.Errorf("loopback by tcp: %v", err)
				}
			}
		})
	}

	h := &Host{Interface: "missing"}
	for how, err := range map[string]error{
		"tcp":  second(h.DialContext(soon(t), "tcp4", netip.AddrPortFrom(far[0], 80))),
		"udp":  second(h.ListenPacket(soon(t), "udp4", netip.AddrPort{})),
		"ping": h.Ping(soon(t), far[0], 1, nil),
	} {
		if err == nil || !strings.Contains(err.Error(), `"missing"`) {
			t.Errorf("%s: %v", how, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
