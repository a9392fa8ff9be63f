package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/qemu"
)

// hoarder is a guest that opens TCP conversations and has each hold as much in the daemon as it gets: it sends into far
// sides that do not read, or takes nothing of what they send.
type hoarder struct {
	wire     link.Link
	mac, gw  net.HardwareAddr
	me, host netip.Addr
	opened   chan struct{} // one for each that was answered

	mu    sync.Mutex
	conns map[uint16]*hoard
	ended int // by resets

	writing sync.Mutex
}

func (h *hoarder) send(frames ...link.Frame) error {
	h.writing.Lock()
	defer h.writing.Unlock()
	_, err := h.wire.WriteFrames(frames)
	return err
}

type hoard struct {
	port      uint16 // the host's
	deaf      bool   // takes nothing; else it sends
	seq, ack  uint32 // ours next; theirs next
	una, edge uint32 // sent up to una is acknowledged, and up to edge we may
	scale     uint
}

func newHoarder(t *testing.T, sock string, v6 bool, last byte) *hoarder {
	t.Helper()
	c, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	h := &hoarder{
		wire: qemu.NewLink(c), mac: net.HardwareAddr{0x52, 0x54, 0, 9, 9, 9}, gw: net.HardwareAddr{0x52, 0x55, 10, 0, 2, 2},
		me: netip.AddrFrom4([4]byte{10, 0, 2, last}), host: netip.MustParseAddr("10.0.2.2"),
		opened: make(chan struct{}, 1<<16), conns: map[uint16]*hoard{},
	}
	if v6 {
		h.me, h.host = netip.MustParseAddr(fmt.Sprintf("fd00:5::9:%x", last)), netip.MustParseAddr("fd00:5::2")
	}
	done := make(chan struct{})
	go func() { defer close(done); h.run() }()
	t.Cleanup(func() { h.wire.Close(); <-done })
	return h
}

func (h *hoarder) frame(src uint16, c *hoard, flags string, window uint16, options, data []byte) link.Frame {
	var ip backendtest.Layer = backendtest.IPv4{Src: h.me, Dst: h.host}
	if h.me.Is6() {
		ip = backendtest.IPv6{Src: h.me, Dst: h.host}
	}
	return link.NewFrame(backendtest.Build(backendtest.Ethernet{Src: h.mac, Dst: h.gw}, ip,
		backendtest.TCP{SrcPort: src, DstPort: c.port, Seq: c.seq, Ack: c.ack, Flags: flags, Window: window, Options: options}, backendtest.Payload(data)))
}

// open begins a conversation.
func (h *hoarder) open(src, port uint16, deaf bool) {
	c := &hoard{port: port, deaf: deaf, seq: 1000}
	syn := h.frame(src, c, "S", 65535, []byte{2, 4, 5, 180, 1, 3, 3, 7}, nil) // MSS 1460, scale
	c.seq++
	h.mu.Lock()
	h.conns[src] = c
	h.mu.Unlock()
	h.send(syn)
}

// run answers what comes until the wire ends.
func (h *hoarder) run() {
	var b link.Batch
	data := make([]byte, 1460)
	for {
		b.Next()
		if h.wire.ReadFrames(&b) != nil {
			return
		}
		var out []link.Frame
		for _, s := range b.Frames {
			p := backendtest.Parse(b.AppendTo(nil, s))
			if p.ARP != nil && p.ARP.Op == 1 && p.ARP.Target == h.me {
				out = append(out, link.NewFrame(backendtest.Build(backendtest.Ethernet{Src: h.mac, Dst: h.gw},
					backendtest.ARP{Op: 2, SenderMAC: h.mac, Sender: h.me, TargetMAC: h.gw, Target: h.host})))
			}
			if p.TCP == nil || p.IPDst != h.me {
				continue
			}
			h.mu.Lock()
			c := h.conns[p.TCP.DstPort]
			if c == nil {
				h.mu.Unlock()
				continue
			}
			flags := p.TCP.Flags
			switch {
			case flags == "SA":
				if c.ack == 0 {
					h.opened <- struct{}{}
				}
				c.ack, c.una = p.TCP.Seq+1, p.TCP.Ack
				c.edge = c.una + uint32(p.TCP.Window)
				c.scale = scaleOf(p.TCP.Options)
				w := uint16(1000)
				if c.deaf {
					w = 0
				}
				out = append(out, h.frame(p.TCP.DstPort, c, "A", w, nil, nil))
			case len(flags) > 0 && (flags[0] == 'R' || len(flags) > 1 && flags[1] == 'R'):
				delete(h.conns, p.TCP.DstPort)
				h.ended++
			default:
				c.edge = max(c.edge, p.TCP.Ack+uint32(p.TCP.Window)<<c.scale)
			}
			for !c.deaf && c.ack != 0 && c.seq+1460 <= c.edge {
				out = append(out, h.frame(p.TCP.DstPort, c, "A", 1000, nil, data))
				c.seq += 1460
				if len(out) >= 64 {
					h.send(out...)
					out = out[:0]
				}
			}
			h.mu.Unlock()
		}
		if len(out) > 0 {
			if h.send(out...) != nil {
				return
			}
		}
	}
}

// lost is how many of its conversations were reset.
func (h *hoarder) lost() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ended
}

func scaleOf(o []byte) uint {
	for len(o) > 0 {
		switch {
		case o[0] == 0:
			return 0
		case o[0] == 1:
			o = o[1:]
		case len(o) < 2 || int(o[1]) < 2 || int(o[1]) > len(o):
			return 0
		case o[0] == 3 && o[1] == 3:
			return uint(o[2])
		default:
			o = o[o[1]:]
		}
	}
	return 0
}

// hoard opens count conversations of each kind.
func (h *hoarder) hoard(t *testing.T, first uint16, count int, unread, talks uint16) {
	t.Helper()
	waiting := 0
	answer := func() bool {
		select {
		case <-h.opened:
			waiting--
			return true
		case <-time.After(10 * time.Second):
			return false
		}
	}
	for i := range count {
		h.open(first+uint16(2*i), unread, false)
		h.open(first+uint16(2*i+1), talks, true)
		for waiting += 2; waiting > 400; { // well under the limit of dials
			if !answer() {
				t.Fatalf("%d conversations were not answered", waiting)
			}
		}
	}
	for waiting > 0 {
		if !answer() {
			t.Fatalf("%d conversations were not answered", waiting)
		}
	}
}

// listener serves TCP on the host's loopback, with little room in its kernel.
func loopbackServer(t *testing.T, v6 bool, sndbuf int, serve func(net.Conn)) uint16 {
	t.Helper()
	addr := "127.0.0.1:0"
	if v6 {
		addr = "[::1]:0"
	}
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		return rc.Control(func(fd uintptr) { // or the kernel's memory for TCP runs out, for all
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096)
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, sndbuf)
		})
	}}
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var conns sync.Map
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Store(c, true)
			wg.Go(func() { serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		wg.Wait()
	})
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func talk(c net.Conn) {
	b := make([]byte, 16<<10)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// resident is a process's resident memory in MiB, now or at most.
func resident(t *testing.T, pid int, what string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(what + `:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no %s in %s", what, b)
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n >> 10
}

// bystander is a guest whose transfer must go on.
type bystander struct {
	g    *backendtest.Guest
	conn net.Conn
}

func newBystander(t *testing.T, sock string, v6 bool) *bystander {
	t.Helper()
	c, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	g, err := backendtest.New(qemu.NewLink(c), backendtest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	g.Up(t)
	port := loopbackServer(t, v6, 1<<20, talk)
	host := netip.MustParseAddr("10.0.2.2")
	if v6 {
		host = netip.MustParseAddr("fd00:5::2")
	}
	b := &bystander{g: g}
	ctx, cancel := context.WithTimeout(context.Background(), backendtest.Patience)
	defer cancel()
	if b.conn, err = g.Dial(ctx, "tcp", netip.AddrPortFrom(host, port)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.conn.Close() })
	return b
}

// moves reads some megabytes, and says how long that took.
func (b *bystander) moves(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	b.conn.SetReadDeadline(began.Add(backendtest.Patience))
	if _, err := io.CopyN(io.Discard, b.conn, 8<<20); err != nil {
		t.Fatalf("the bystander's transfer: %v", err)
	}
	return time.Since(began)
}

// plainVmnetd is the command as users have it: under the race detector, as the test's own may be, a process holds several
// times as much.
var plainVmnetd = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "vmnetd")
	if err != nil {
		return "", err
	}
	afterTests = append(afterTests, func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "vmnetd")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return path, nil
})

// serveForLimits starts a daemon and returns it with its guests' socket and its client.
func serveForLimits(t *testing.T, args ...string) (*proc, string, *control.Client) {
	t.Helper()
	bin, err := plainVmnetd()
	if err != nil {
		t.Fatal(err)
	}
	p := program(t, bin, append([]string{"serve", "--net6", "fd00:5::/64", "--log-level", "info"}, args...)...).start()
	t.Cleanup(func() { p.Process.Kill(); <-p.ended })
	p.says("control")
	c := control.NewClient(filepath.Join(p.run, "vmnetd/control.sock"))
	t.Cleanup(c.Close)
	return p, filepath.Join(p.run, "vmnetd/qemu.sock"), c
}

// settled waits until the process has not grown for a second.
func settled(t *testing.T, pid int) int {
	t.Helper()
	last, since := resident(t, pid, "VmRSS"), time.Now()
	for end := time.Now().Add(30 * time.Second); time.Since(since) < time.Second && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if n := resident(t, pid, "VmRSS"); n > last+1 {
			last, since = n, time.Now()
		}
	}
	return last
}

// Thousands of conversations that nobody reads, both ways: what the daemon holds for them stays under a bound, and another
// guest's transfer goes on.
func TestStuckConversations(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	// With an eighth of the default's budget 200 do what 5000 do with all of it, in seconds.
	budget, count := 16, 200
	if n, err := strconv.Atoi(os.Getenv("VMNETD_STUCK")); err == nil {
		budget, count = 128, n
	}
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); limit.Cur < uint64(2*count+1000) {
		count = int(limit.Cur-1000) / 2 // each takes two descriptors, of the daemon and of this test
	}
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "ipv4", true: "ipv6"}[v6], func(t *testing.T) {
			p, sock, _ := serveForLimits(t, "--limit", fmt.Sprintf("buffers=%dMiB", budget))
			by := newBystander(t, sock, v6)
			quiet := by.moves(t)
			quiet = min(quiet, by.moves(t))
			before := resident(t, p.Process.Pid, "VmRSS")
			h := newHoarder(t, sock, v6, 99)
			h.hoard(t, 10000, count, loopbackServer(t, v6, 4096, func(net.Conn) {}), loopbackServer(t, v6, 4096, talk))
			during := by.moves(t)
			now := settled(t, p.Process.Pid)
			most := resident(t, p.Process.Pid, "VmHWM")
			after := by.moves(t)
			t.Logf("%d conversations each way: %d MiB before, %d then, %d at most; 8 MiB for another guest took %v, %v, %v",
				count, before, now, most, quiet, during, after)
			// Each conversation takes some 10 KiB besides; Go's collector lets as much again lie.
			if bound := before + 2*(budget+2*count*12/1024) + budget/2 + 24; most > bound {
				t.Errorf("%d MiB, want at most %d", most, bound)
			}
		})
	}
}

// With a target, guests that together would come to more are squeezed, the largest first, and one that only transfers is
// left alone.
func TestMemoryTarget(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	const target, guests, count = 64, 5, 120
	p, sock, c := serveForLimits(t, "--memory", fmt.Sprintf("%dMiB", target))
	by := newBystander(t, sock, false)
	quiet := by.moves(t)
	before := resident(t, p.Process.Pid, "VmRSS")
	unread, talks := loopbackServer(t, false, 4096, func(net.Conn) {}), loopbackServer(t, false, 4096, talk)
	var hs []*hoarder
	var slowest time.Duration
	for i := range guests {
		h := newHoarder(t, sock, false, byte(90+i))
		hs = append(hs, h)
		for j := range count {
			h.open(uint16(10000+2*j), unread, false)
			h.open(uint16(10001+2*j), talks, true)
		}
		slowest = max(slowest, by.moves(t))
	}
	memory := func() (l backend.LimitInfo) {
		list, err := c.Limits(context.Background(), "")
		if err != nil {
			t.Fatal(err)
		}
		for _, l = range list {
			if l.Name == "memory" && !l.Each {
				return l
			}
		}
		t.Fatalf("no memory in %+v", list)
		return l
	}
	waitUntil(t.Fatalf, "the largest is squeezed", func() bool { return memory().Hits > 0 })
	waitUntil(t.Fatalf, "it is below the target again", func() bool { l := memory(); return l.Now < l.Value*3/4 })
	slowest = max(slowest, by.moves(t))
	lost := 0
	for _, h := range hs {
		lost += h.lost()
	}
	l := memory()
	most := resident(t, p.Process.Pid, "VmHWM")
	t.Logf("target %d MiB: %+v; %d of %d conversations were ended; resident %d MiB before, %d at most; 8 MiB for another guest took %v, then up to %v",
		target, l, lost, guests*count*2, before, most, quiet, slowest)
	// Beside what Go counts there is the program itself, some 20 MiB, and what it maps within a look.
	if most > target+48 {
		t.Errorf("%d MiB resident, with a target of %d", most, target)
	}
	// By now it may be over, and so out of the status.
	events, err := c.Events(context.Background(), 0)
	if err != nil || !slices.ContainsFunc(events, func(e backend.Event) bool {
		return e.Kind == backend.EventWarning && strings.Contains(e.Text, "squeezed")
	}) {
		t.Errorf("events: %v, %+v", err, events)
	}
	flows, err := c.Flows(context.Background(), control.FlowFilter{Guest: by.g.MAC().String()})
	if err != nil || len(flows) == 0 {
		t.Errorf("the bystander's conversations: %v, %v", flows, err)
	}
}
