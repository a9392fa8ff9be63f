package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
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

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/lab/topology"
)

// spacePatience is for what takes milliseconds on a machine that has nothing else to do.
const spacePatience = 30 * time.Second

func needTAP(t testing.TB) {
	t.Helper()
	why := whyNoSpaces()
	if err := unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK); err != nil && why == "" {
		why = "/dev/net/tun: " + err.Error()
	}
	switch {
	case why == "":
	case os.Getenv("CI") != "":
		t.Fatal(why)
	default:
		t.Skip(why)
	}
}

// nodeAlone starts a netns node without a lab, and waits until it is set up.
func nodeAlone(t *testing.T, n *topology.Node, networks ...topology.Network) *spaceNode {
	t.Helper()
	needTAP(t)
	n.Kind = topology.KindNetns
	if n.Name == "" {
		n.Name = "box"
	}
	b := standalone(t, n, networks...)
	b.hosts, b.env = "127.0.0.1 localhost\n192.0.2.7 far\n", []string{"LAB=alone"}
	m, err := newNetns(b)
	if err != nil {
		t.Fatal(err)
	}
	startAlone(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), spacePatience)
	defer cancel()
	if err := m.reachable(ctx); err != nil {
		t.Fatal(err)
	}
	return m.(*spaceNode)
}

// ask runs a shell line and returns what it says.
func ask(t *testing.T, m machine, text string) string {
	t.Helper()
	var out, errs bytes.Buffer
	code, err := m.exec(t.Context(), Command{Args: []string{"sh", "-c", text}, Stdout: &out, Stderr: &errs})
	if err != nil || code != 0 {
		t.Errorf("%s: status %d, %v: %s", text, code, err, &errs)
	}
	return out.String()
}

var static = []topology.Interface{
	{Name: "lan0", Network: "plain", MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.5/24"), netip.MustParsePrefix("2001:db8::5/64")}},
	{Name: "tap7", Network: "plain", MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 2}, Mirror: true},
}

// What the file says of a node is so in it.
func TestNetnsNode(t *testing.T) {
	m := nodeAlone(t, &topology.Node{Name: "web1", Interfaces: static, Forwarding: true, Env: map[string]string{"COLOUR": "blue"}, Routes: []topology.Route{
		{To: netip.MustParsePrefix("198.51.100.0/24"), Via: netip.MustParseAddr("192.0.2.1")},
		{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("2001:db8::1")},
	}}, topology.Network{Name: "plain", MTU: 1400})
	got := ask(t, m, `cat /proc/sys/kernel/hostname /etc/resolv.conf; cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/lan0/forwarding
		echo $COLOUR $LAB; cat /proc/net/route /proc/net/ipv6_route /proc/net/if_inet6; id -u; cat /proc/net/fib_trie; pwd`)
	for _, want := range []string{"web1\n# no network", "\n1\n1\nblue alone\n", "lan0\t006433C6\t010200C0", "\n0\n", "192.0.2.5",
		"00000000000000000000000000000000 00 00000000000000000000000000000000 00 20010db8000000000000000000000001", "20010db8000000000000000000000005", m.b.base + "\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "    tap7\n") {
		t.Errorf("a mirror port has an IPv6 address:\n%s", got)
	}
	if len(m.pids()) != 0 || m.ended() != nil {
		t.Errorf("pids %v of no command", m.pids())
	}
	if got := ask(t, m, "grep -A3 lan0 /proc/net/dev >/dev/null; ping -c 1 -W 5 192.0.2.5 >/dev/null && ping -c 1 -W 5 ::1 >/dev/null && ping -c 1 -W 5 127.0.0.1 >/dev/null && echo pinged"); got != "pinged\n" {
		t.Error("ping does not work")
	}
}

// A node that does not forward does not, whatever its host does; a route that cannot be is told of.
func TestNetnsRouteNowhere(t *testing.T) {
	needTAP(t)
	b := standalone(t, &topology.Node{Name: "box", Kind: topology.KindNetns, Interfaces: static[:1], Routes: []topology.Route{
		{To: netip.MustParsePrefix("198.51.100.0/24"), Via: netip.MustParseAddr("203.0.113.1")}}}, topology.Network{Name: "plain"})
	m, err := newNetns(b)
	if err != nil {
		t.Fatal(err)
	}
	startAlone(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := m.reachable(ctx); err == nil || !strings.Contains(err.Error(), "198.51.100.0/24 via 203.0.113.1") {
		t.Error(err)
	}
	if got := ask(t, m, "cat /proc/sys/net/ipv4/ip_forward"); got != "0\n" {
		t.Errorf("ip_forward %q", got)
	}
	// It is set as soon as it can be.
	ask(t, m, "ip addr add 203.0.113.2/24 dev lan0")
	ctx, cancel = context.WithTimeout(t.Context(), spacePatience)
	defer cancel()
	if err := m.reachable(ctx); err != nil {
		t.Error(err)
	}
}

func TestNetnsExec(t *testing.T) {
	m := nodeAlone(t, &topology.Node{})
	run := func(c Command) (int, error) { return m.exec(t.Context(), c) }
	sh := func(s string) []string { return []string{"sh", "-c", s} }

	var out, errs bytes.Buffer
	code, err := run(Command{Args: sh("cat; echo errors >&2; echo $WHO; pwd; exit 7"), Stdin: strings.NewReader("input\n"), Stdout: &out, Stderr: &errs, Env: []string{"WHO=me"}, Dir: "/usr"})
	if code != 7 || err != nil || out.String() != "input\nme\n/usr\n" || errs.String() != "errors\n" {
		t.Errorf("%d, %v, %q, %q", code, err, &out, &errs)
	}
	// One writer for both keeps the order; large ones come whole.
	out.Reset()
	if _, err := run(Command{Args: sh("for i in 1 2 3; do echo out; echo err >&2; done"), Stdout: &out, Stderr: &out}); err != nil || out.String() != "out\nerr\nout\nerr\nout\nerr\n" {
		t.Errorf("%q, %v", &out, err)
	}
	out.Reset()
	if _, err := run(Command{Args: sh("head -c 3000000 /dev/zero"), Stdout: &slow{&out}}); err != nil || out.Len() != 3000000 {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
	// Whoever does not read its input ends all the same, and so does one whose output nobody wants.
	if code, err := run(Command{Args: sh("exit 3"), Stdin: &endless{}}); code != 3 || err != nil {
		t.Error(code, err)
	}
	if code, err := run(Command{Args: []string{"yes"}, Stdout: &limited{left: 100000}}); code != 128+int(syscall.SIGPIPE) || err != nil {
		t.Error(code, err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := run(Command{Args: sh("echo to a file"), Stdout: f}); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(f.Name()); string(b) != "to a file\n" {
		t.Errorf("%q", b)
	}
	// What it leaves behind does not hold it up, and runs on although nobody hears it.
	out.Reset()
	if code, err := run(Command{Args: sh("(i=0; while [ $i -lt 100 ]; do echo $i; i=$((i+1)); sleep 0.01; done; echo whole >/run/left; exec sleep 600) & echo first"), Stdout: &out}); code != 0 || err != nil || !strings.HasPrefix(out.String(), "first\n") && !strings.HasPrefix(out.String(), "0\nfirst\n") {
		t.Errorf("%d, %v, %q", code, err, &out)
	}
	for end := time.Now().Add(spacePatience); ask(t, m, "cat /run/left 2>/dev/null; true") != "whole\n"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what was left behind did not go on")
		}
	}
	for _, c := range []struct {
		args []string
		dir  string
		want error
	}{{[]string{"there-is-no-such-program"}, "", exec.ErrNotFound}, {[]string{"/"}, "", fs.ErrPermission}, {sh("true"), "/there/is/none", fs.ErrNotExist}, {nil, "", nil}} {
		if _, err := run(Command{Args: c.args, Dir: c.dir, Stdin: strings.NewReader("x"), Stdout: io.Discard, Stderr: &errs}); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%q: %v, want %v", c.args, err, c.want)
		}
	}
	var left []int
	for end := time.Now().Add(spacePatience); len(left) != 1; time.Sleep(time.Millisecond) { // the sleep, for whatever its shell does
		if left, err = m.space.Processes(); err != nil || time.Now().After(end) {
			t.Fatal(left, err)
		}
	}
	// It ends with its context, and what it has started with it.
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	go func() {
		bufferLine(r)
		cancel()
		io.Copy(io.Discard, r)
	}()
	if _, err := m.exec(ctx, Command{Args: sh("sleep 600 & trap '' TERM; echo ready; sleep 600"), Stdout: w}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	w.Close()
	for end := time.Now().Add(spacePatience); ; time.Sleep(time.Millisecond) {
		list, err := m.space.Processes()
		if err != nil || time.Now().After(end) {
			t.Fatalf("left: %v, %v", list, err)
		}
		if slices.Equal(list, left) {
			break
		}
	}
}

func bufferLine(r io.Reader) {
	for b := make([]byte, 1); ; {
		if _, err := r.Read(b); err != nil || b[0] == '\n' {
			return
		}
	}
}

// slow is a writer that takes its time.
type slow struct{ w io.Writer }

func (s *slow) Write(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	return s.w.Write(p)
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// limited is a writer that has enough at some time.
type limited struct{ left int }

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

func TestNetnsCommand(t *testing.T) {
	m := nodeAlone(t, &topology.Node{Command: []string{"sh", "-c", "echo my name is $0; read word; echo heard $word; exit 5"}, Env: map[string]string{"X": "y"}})
	for range 2 { // and again, as for Restart
		m.b.console.began()
		if err := m.begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		ended := m.ended()
		ctx, cancel := context.WithTimeout(t.Context(), spacePatience)
		defer cancel()
		if _, err := m.b.console.Match(ctx, regexp.MustCompile("^my name is sh$")); err != nil {
			t.Fatal(err)
		}
		if pids := m.pids(); len(pids) != 1 {
			t.Errorf("pids %v", pids)
		}
		if _, err := m.status(); err == nil {
			t.Error("a status of what runs")
		}
		if err := m.b.console.Send(ctx, []byte("hello\n")); err != nil {
			t.Error(err)
		}
		select {
		case <-ended:
		case <-ctx.Done():
			t.Fatal("it does not end")
		}
		if code, err := m.status(); code != 5 || err != nil {
			t.Error(code, err)
		}
		if _, err := m.b.console.Match(ctx, regexp.MustCompile("^heard hello$")); err != nil {
			t.Error(err)
		}
	}
	m.b.node.Command = []string{"there-is-no-such-program"}
	if err := m.begin(t.Context()); !errors.Is(err, exec.ErrNotFound) {
		t.Error(err)
	}
	m.b.node.Command = []string{"sh", "-c", "kill -KILL $$"}
	if err := m.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-m.ended()
	if code, err := m.status(); code != 137 || err == nil {
		t.Error(code, err)
	}
}

// A port of the node's own is reached wherever its server listens.
func TestNetnsDial(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil { // busybox's nc listens to one conversation only
		t.Skip(err)
	}
	m := nodeAlone(t, &topology.Node{Interfaces: static[:1]}, topology.Network{Name: "plain"})
	addrs := []string{"127.0.0.1", "::1", "192.0.2.5", "2001:db8::5", "0.0.0.0", "::"}
	// Server i listens at port 5000+i, by TCP and by UDP.
	const code = `
import selectors, socket, sys
sel = selectors.DefaultSelector()
for i, at in enumerate(sys.argv[1:]):
    for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
        s = socket.socket(socket.AF_INET6 if ":" in at else socket.AF_INET, kind)
        s.bind((at, 5000 + i))
        if kind == socket.SOCK_STREAM: s.listen()
        sel.register(s, selectors.EVENT_READ, ("from " + at).encode())
print("bound", flush=True)
while True:
    for k, _ in sel.select():
        if k.fileobj.type == socket.SOCK_STREAM:
            c, _ = k.fileobj.accept(); c.send(k.data); c.close()
        else:
            _, a = k.fileobj.recvfrom(99); k.fileobj.sendto(k.data, a)
`
	m.b.node.Command = append([]string{"python3", "-c", code}, addrs...)
	if err := m.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), spacePatience)
	defer cancel()
	if _, err := m.b.console.Match(ctx, regexp.MustCompile("^bound$")); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"tcp", "udp"} {
		if c, err := m.dial(t.Context(), network, "domain"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(c, err)
		}
		for i, at := range addrs {
			port := strconv.Itoa(5000 + i)
			c, err := m.dial(t.Context(), network, port)
			if err != nil {
				t.Errorf("%s %s: %v", network, at, err)
				continue
			}
			c.SetDeadline(time.Now().Add(spacePatience))
			io.WriteString(c, "?")
			b := make([]byte, 99)
			if n, err := c.Read(b); err != nil || string(b[:n]) != "from "+at {
				t.Errorf("%s %s: %q, %v", network, at, b[:n], err)
			}
			c.Close()
			family, other := "4", "6"
			if strings.Contains(at, ":") {
				family, other = "6", "4"
			}
			if c, err := m.dial(t.Context(), network+family, port); err != nil {
				t.Errorf("%s%s %s: %v", network, family, at, err)
			} else {
				c.Close()
			}
			if at == "::" { // it hears both
				continue
			}
			if _, err := m.dial(t.Context(), network+other, port); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s%s %s: %v", network, other, at, err)
			}
		}
	}
}

func TestBoundAt(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the text is of a little-endian machine")
	}
	const text = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
   53: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 11 2 0 0
   54: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 11 2 0 0
   55: B80D0120000000000000000005000000:0035 00000000000000000000000000000000:0000 07
   56: zz:0035 x
   57: 0100007F:0036 00000000:0000 07
   58: 01:0035 x
junk
`
	want := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv4Unspecified(), netip.MustParseAddr("2001:db8::5")}
	if got := boundAt([]byte(text), 53); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// After stop nothing is left, whatever ran there and however it was started.
func TestNetnsStop(t *testing.T) {
	m := nodeAlone(t, &topology.Node{Command: []string{"sh", "-c", "trap '' TERM HUP; (setsid sleep 600 &); echo ready; while :; do sleep 600; done"}, Interfaces: static}, topology.Network{Name: "plain"})
	if err := m.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), spacePatience)
	defer cancel()
	if _, err := m.b.console.Match(ctx, regexp.MustCompile("ready")); err != nil {
		t.Fatal(err)
	}
	files, err := m.spaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	var wg sync.WaitGroup
	for range 4 { // who starts others meanwhile does not do so for ever
		wg.Go(func() {
			for {
				if _, err := m.exec(context.Background(), Command{Args: []string{"sh", "-c", "sleep 600 & sleep 0.01"}}); err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	pids := m.pids()
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := m.stop(short); err != nil {
		t.Error(err)
	}
	wg.Wait()
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d: %v", pid, err)
		}
	}
	if _, err := m.dial(t.Context(), "tcp", "80"); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := m.spaces(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := m.stop(t.Context()); err != nil {
		t.Error(err)
	}
	if n := environs(t, "LAB=alone"); len(n) != 0 {
		t.Errorf("left: %v", n)
	}
}

// environs are the processes with this in their environment.
func environs(t *testing.T, want string) (list []int) {
	t.Helper()
	dir, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range dir {
		env, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() && bytes.Contains(env, []byte(want)) {
			list = append(list, pid)
		}
	}
	return list
}

// Two networks with an uplink, one without, wires: addresses, names, one default route, ways through a node that forwards.
func TestNetnsLab(t *testing.T) {
	needTAP(t)
	const ways = `
name: ways
networks:
  one: {net: 10.71.0.0/24}
  two: {net: 10.72.0.0/24}
  left: {uplink: false, net: 10.73.0.0/24, net6: "fd73::/64"}
  right: {uplink: false, net: 10.74.0.0/24, net6: "fd74::/64"}
nodes:
  both:
    kind: netns
    interfaces: [one, two]
  fixed:
    kind: netns
    interfaces: [{net: two, address: [10.72.0.99]}]
  router:
    kind: netns
    forwarding: true
    interfaces: [{net: left, address: [10.73.0.1, "fd73::1"]}, {net: right, address: [10.74.0.1, "fd74::1"]}]
  l:
    kind: netns
    interfaces: [{net: left, address: [10.73.0.9, "fd73::9"]}]
    routes: [default via 10.73.0.1, "default via fd73::1"]
  r:
    kind: netns
    interfaces: [{net: right, address: [10.74.0.9, "fd74::9"]}]
    routes: [default via 10.74.0.1, "default via fd74::1"]
    wait: ["ping:10.73.0.9", "ping:l", "ping:fd73::9"]
`
	top, err := topology.Parse("lab.yaml", []byte(ways), nil)
	if err != nil {
		t.Fatal(err)
	}
	l := UpTopology(t, top)
	out := func(node string, args ...string) string {
		t.Helper()
		b, err := l.Node(node).Output(t.Context(), args...)
		if err != nil {
			t.Errorf("%s: %v", node, err)
		}
		return string(b)
	}
	if got := out("both", "ip", "route", "show", "default"); strings.Count(got, "default") != 1 || !strings.Contains(got, "dev eth0") {
		t.Errorf("IPv4's default routes: %q", got)
	}
	if got := out("both", "ip", "-6", "route", "show", "default"); strings.Count(got, "default") != 1 || !strings.Contains(got, "dev eth0") {
		t.Errorf("IPv6's default routes: %q", got)
	}
	if got := out("fixed", "ip", "-4", "-o", "addr", "show", "dev", "eth0"); !strings.Contains(got, "10.72.0.99/24") {
		t.Errorf("fixed: %q", got)
	}
	for _, to := range []string{"both.internal", "both", "10.72.0.2"} {
		out("fixed", "ping", "-c", "1", "-W", "10", to)
	}
	out("l", "ping", "-c", "1", "-W", "10", "fd74::9")
	out("l", "ping", "-c", "1", "-W", "10", "r")
	// From inside, by the names that it knows.
	life := l.Node("fixed").life
	m := life.m.(farDialer)
	for _, to := range []string{"both.internal", "both", "10.72.0.99"} {
		if c, err := m.dialFrom(t.Context(), "tcp", to+":9"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial %s: %v, %v", to, c, err)
		}
	}
	// Another file: who stays hears of who has come.
	more := strings.Replace(ways, "  router:", "  new:\n    kind: netns\n    interfaces: [{net: right, address: [10.74.0.77]}]\n  router:", 1)
	if top, err = topology.Parse("lab.yaml", []byte(more), nil); err != nil {
		t.Fatal(err)
	}
	if changes, err := l.Apply(t.Context(), top); err != nil || len(changes) != 1 {
		t.Fatal(changes, err)
	}
	if got := out("r", "cat", "/etc/hosts"); !strings.Contains(got, "10.74.0.77 new\n") || !strings.Contains(got, "10.74.0.9 r\n") {
		t.Errorf("hosts of who has stayed: %s", got)
	}
	if c, err := m.dialFrom(t.Context(), "tcp", "nobody.internal:9"); err == nil {
		t.Errorf("dialed %v", c.RemoteAddr())
	} else if d := (*net.DNSError)(nil); !errors.As(err, &d) || !d.IsNotFound {
		t.Error(err)
	}
	if c, err := l.Node("l").life.m.(farDialer).dialFrom(t.Context(), "tcp6", "r:9"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(c, err)
	}
}

// How long ten nodes take, and what thirty cost. It has no limit here: e2e has.
func BenchmarkNetnsNodes(b *testing.B) {
	needTAP(b)
	for _, n := range []int{1, 10, 30} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			top, err := topology.Parse("lab.yaml", fmt.Appendf(nil, "name: many\nnetworks: {lan: {net: 10.7.0.0/24}}\nnodes: {n: {kind: netns, count: %d, interfaces: [lan], command: sleep 600}}\n", n), nil)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				files := countFiles(b)
				l, err := New(Config{Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					b.Fatal(err)
				}
				began := time.Now()
				if _, err := l.Apply(b.Context(), top); err != nil {
					b.Fatal(err)
				}
				if err := l.Wait(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms-to-ready")
				b.ReportMetric(float64(countFiles(b)-files)/float64(n), "files/node")
				b.ReportMetric(float64(resident(b))/1024, "MiB-resident")
				began = time.Now()
				if err := l.Close(); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms-to-stop")
			}
		})
	}
}

func countFiles(b *testing.B) int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		b.Fatal(err)
	}
	return len(d)
}

// resident is this process's memory in KiB.
func resident(b *testing.B) int {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return n
}
