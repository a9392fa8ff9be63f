//go:build unix

package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmnetd/vmnetd/e2e/traffic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// QEMU's own user network is the host's side here: these tests are of the guest, not of vmnetd.
func userNIC() []NIC { return []NIC{{Netdev: User("")}} }

func TestGuest(t *testing.T) {
	t.Parallel()
	g := Boot(t, Config{Name: "alpha", NICs: userNIC()})

	t.Run("lease", func(t *testing.T) {
		l := g.WaitLease(t)
		if l.Addr != netip.MustParsePrefix("10.0.2.15/24") || l.Router.String() != "10.0.2.2" ||
			len(l.DNS) != 1 || l.DNS[0].String() != "10.0.2.3" || l.Time != 24*time.Hour {
			t.Errorf("lease %+v", l)
		}
		if got := g.Must(t, "cat /etc/resolv.conf"); got != "nameserver 10.0.2.3\n" {
			t.Errorf("resolv.conf: %q", got)
		}
		if got := g.Must(t, "ip -4 route show default"); !strings.Contains(got, "via 10.0.2.2") {
			t.Errorf("default route: %q", got)
		}
	})
	t.Run("mac and name", func(t *testing.T) {
		if got := strings.TrimSpace(g.Must(t, "cat /sys/class/net/eth0/address")); got != g.MACs[0].String() {
			t.Errorf("eth0 is %s, want %s", got, g.MACs[0])
		}
		if got := g.Must(t, "hostname; wget -qO- http://localhost/"); got != "alpha\nhello from alpha\n" {
			t.Errorf("name and page: %q", got)
		}
	})
	t.Run("commands", func(t *testing.T) {
		out, code, err := g.Run(t.Context(), "echo out; echo err >&2; exit 3")
		if out != "out\n" || code != 3 || err != nil {
			t.Errorf("output %q, status %d, error %v", out, code, err)
		}
		if !strings.Contains(g.Console(), "err") {
			t.Errorf("standard error is not in Console:\n%s", g.Console())
		}
		if _, err := g.Output(t.Context(), "echo why >&2; false"); err == nil || !strings.Contains(err.Error(), "why") {
			t.Errorf("Output of a failing command: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, _, err := g.Run(ctx, "exec sleep 1234"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a command past its time: %v", err)
		}
		g.Must(t, "while pidof sleep; do usleep 10000; done") // it was killed, not only left
	})
	t.Run("files", func(t *testing.T) {
		body := bytes.Repeat([]byte("it's\x00\n"), 50_000)
		if err := g.WriteFile(t.Context(), "/tmp/it's", body); err != nil {
			t.Fatal(err)
		}
		if got := g.Must(t, "cat %s", Quote("/tmp/it's")); got != string(body) {
			t.Errorf("%d bytes came back as %d", len(body), len(got))
		}
		if err := g.WriteFile(t.Context(), "/no/such", body); err == nil {
			t.Error("writing into a folder that is not there succeeded")
		}
	})
	t.Run("tcp to the host", func(t *testing.T) {
		s := serve(t, traffic.Sink)
		const n = 1 << 20
		var r traffic.Report
		g.JSON(t, &r, "guest tcp -send %d -seed 5 10.0.2.2:%d", n, s.Port())
		there := <-s.Done
		if r.End != "eof" || r.Sent != n || there.Received != n || there.ReceivedHash != traffic.Hash(5, n) {
			t.Errorf("guest %+v, host %+v", r, there)
		}
	})
	t.Run("tcp from the host's source", func(t *testing.T) {
		s := serve(t, traffic.Source(6, 1<<20))
		var r traffic.Report
		g.JSON(t, &r, "guest tcp 10.0.2.2:%d", s.Port())
		if r.End != "eof" || r.ReceivedHash != traffic.Hash(6, 1<<20) {
			t.Errorf("guest %+v", r)
		}
	})
	t.Run("a stream goes on beside other commands", func(t *testing.T) {
		s := serve(t, traffic.CheckFrom(nil))
		p := g.MustStart(t, "guest stream -rate 200000 -every 20ms 10.0.2.2:%d", s.Port())
		var last int64
		next := json.NewDecoder(p.Stdout)
		for last < 64<<10 {
			g.Must(t, "true")
			var line struct{ Bytes int64 }
			if err := next.Decode(&line); err != nil {
				t.Fatal(err)
			}
			if line.Bytes < last {
				t.Fatalf("progress went back from %d to %d", last, line.Bytes)
			}
			last = line.Bytes
		}
		if err := p.Signal(15); err != nil {
			t.Fatal(err)
		}
		if there := <-s.Done; there.Received < last-1024 || there.End != "eof" {
			t.Errorf("the guest sent %d and more, the host saw %+v", last, there)
		}
	})
	t.Run("udp to the host", func(t *testing.T) {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- traffic.EchoUDP(pc) }()
		defer func() {
			pc.Close()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		var r struct {
			Sent, Answered, Wrong int
			Errors                map[string]int
		}
		g.JSON(t, &r, "guest udp -count 5 -size 1000 10.0.2.2:%d", pc.LocalAddr().(*net.UDPAddr).Port)
		if r.Sent != 5 || r.Answered != 5 {
			t.Errorf("udp: %+v", r)
		}
	})
	t.Run("a server in the guest", func(t *testing.T) {
		p := g.MustStart(t, "guest listen source -n 1000 -seed 3 :9000") // flags go before the mode: refused
		if e, err := p.Wait(t.Context()); err != nil || e.Code != 1 {
			t.Fatalf("status %d, error %v", e.Code, err)
		}
		p = g.MustStart(t, "guest listen -n 1000 -seed 3 source :9000")
		var up struct{ Listening string }
		if err := json.NewDecoder(p.Stdout).Decode(&up); err != nil || up.Listening == "" {
			t.Fatalf("the server says %+v, %v", up, err)
		}
		var r traffic.Report
		g.JSON(t, &r, "guest tcp 10.0.2.15:9000")
		if r.ReceivedHash != traffic.Hash(3, 1000) {
			t.Errorf("client %+v", r)
		}
	})
	t.Run("ipv6", func(t *testing.T) {
		// libslirp's prefix, which no other interface here has.
		if a := g.WaitIPv6(t); !netip.MustParsePrefix("fec0::/64").Contains(a) {
			t.Errorf("IPv6 address %s", a)
		}
		var ra struct {
			From     string
			Prefixes []struct {
				Prefix     string
				Autonomous bool
			}
		}
		g.JSON(t, &ra, "guest ra eth0")
		if len(ra.Prefixes) != 1 || ra.Prefixes[0].Prefix != "fec0::/64" || !ra.Prefixes[0].Autonomous {
			t.Errorf("router advertisement %+v", ra)
		}
	})
	t.Run("power off", func(t *testing.T) {
		if err := g.PowerOff(t.Context()); err != nil {
			t.Errorf("QEMU ended with %v, want exit status 0", err)
		}
		if _, _, err := g.Run(t.Context(), "true"); err == nil || !strings.Contains(err.Error(), "guest alpha") {
			t.Errorf("a command in a guest that is off: %v", err)
		}
	})
}

func serve(t *testing.T, h traffic.Handler) *traffic.Server {
	t.Helper()
	s, err := traffic.Serve("tcp", "127.0.0.1:0", h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestKilledGuest(t *testing.T) {
	t.Parallel()
	g := Boot(t, Config{Name: "killed"})
	p := g.MustStart(t, "echo up; exec sleep 1234")
	if _, err := p.Stdout.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("a command in a killed guest: %v", err)
	}
	var exit *exec.ExitError
	if err := g.Wait(t.Context()); !errors.As(err, &exit) || !strings.Contains(err.Error(), "killed") {
		t.Errorf("QEMU ended with %v, want killed", err)
	}
	if _, err := os.Stat(g.dir); err != nil {
		t.Error(err)
	}
	g.Close()
	if _, err := os.Stat(g.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Close left %s: %v", g.dir, err)
	}
}

// A test that dies takes the channel with it; the guest must not live on.
func TestGuestEndsWithItsHost(t *testing.T) {
	t.Parallel()
	g := Boot(t, Config{Name: "orphan"})
	for _, busy := range []string{"exec sleep 1234", "exec yes", "exec cat", "sleep 1234 & sleep 1234"} {
		if _, err := g.Start(t.Context(), busy); err != nil {
			t.Fatal(err)
		}
	}
	g.client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := g.Wait(ctx); err != nil {
		t.Errorf("QEMU ended with %v, want exit status 0 after the guest switched off", err)
	}
}

func TestWrappedGuest(t *testing.T) {
	t.Parallel()
	g := Boot(t, Config{Name: "wrapped", NICs: userNIC(), Wrap: []string{"sh", "-c", `"$@"; exit 7`, "wrap"}})
	if pid := g.PID(); pid <= 0 || pid == g.cmd.Process.Pid {
		t.Errorf("QEMU's process is %d, the wrapper's %d", pid, g.cmd.Process.Pid)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := g.Wait(t.Context()); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("the wrapper ended with %v, want its own exit status 7", err)
	}
}

// Both forms of a handed-on descriptor, and a unix socket: the first frames of the guest arrive.
func TestFrames(t *testing.T) {
	t.Parallel()
	Need(t)
	_, v, err := QEMU(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !v.CanStream() {
		t.Skipf("QEMU %s has no -netdev stream", v)
	}
	path := t.TempDir() + "/a,b" // a comma must be escaped
	unix, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	mine, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	defer theirs.Close()
	g := Launch(t, Config{Name: "frames", Net: "none", NICs: []NIC{
		{Netdev: StreamUnix(path)},
		{Netdev: StreamTCP(tcp.Addr().(*net.TCPAddr).AddrPort())},
		{Netdev: StreamFD(theirs)},
	}})
	accept := func(l net.Listener) net.Conn {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	conns := []net.Conn{accept(unix), accept(tcp), mine}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := g.Output(ctx, "ip link set eth1 up && ip link set eth2 up"); err != nil {
		t.Fatal(err)
	}
	for i, c := range conns {
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 4+12) // QEMU's length, two MACs
		if _, err := io.ReadFull(c, head); err != nil {
			t.Fatalf("eth%d: %v", i, err)
		}
		if src := net.HardwareAddr(head[10:16]); src.String() != g.MACs[i].String() {
			t.Errorf("eth%d: first frame is from %s, want %s", i, src, g.MACs[i])
		}
		c.Close()
	}
}

func TestWhyItDidNotStart(t *testing.T) {
	t.Parallel()
	g := Launch(t, Config{Name: "broken", Args: []string{"-device", "no-such-device"}})
	err := g.WaitReady(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no-such-device") {
		t.Errorf("WaitReady: %v, want QEMU's complaint", err)
	}
}

func TestStartRefuses(t *testing.T) {
	Need(t)
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{Wrap: []string{"/no/such/program"}, Accel: "tcg"}, "no such file"},
		{Config{Accel: "tcg", NICs: []NIC{{Netdev: User("").Reconnect(time.Second)}}}, "only a stream socket"},
	} {
		g, err := Start(t.Context(), tt.cfg)
		if err == nil {
			g.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error %v, want one with %q", tt.cfg, err, tt.want)
		}
	}
}

func TestNetdevArguments(t *testing.T) {
	fd := os.Stdin // any file: the number is told apart
	v72, v80, v92 := Version{7, 2, 22}, Version{8, 0, 0}, Version{9, 2, 0}
	for _, tt := range []struct {
		n    Netdev
		v    Version
		want string // or part of the error, after !
	}{
		{User(""), v72, "user,id=n0"},
		{User("restrict=on"), v72, "user,id=n0,restrict=on"},
		{StreamUnix("/run/a,b"), v72, "stream,id=n0,server=off,addr.type=unix,addr.path=/run/a,,b"},
		{StreamTCP(netip.MustParseAddrPort("[::1]:99")), v72, "stream,id=n0,server=off,addr.type=inet,addr.host=::1,addr.port=99"},
		{StreamFD(fd), v72, "stream,id=n0,addr.type=fd,addr.str=5"},
		{DgramFD(fd), v72, "dgram,id=n0,local.type=fd,local.str=5"},
		{DgramUnix("/l", "/r"), v72, "dgram,id=n0,local.type=unix,local.path=/l,remote.type=unix,remote.path=/r"},
		{StreamUnix("/s").Reconnect(300 * time.Millisecond), v92, "stream,id=n0,server=off,addr.type=unix,addr.path=/s,reconnect-ms=300"},
		{StreamUnix("/s").Reconnect(300 * time.Millisecond), v80, "stream,id=n0,server=off,addr.type=unix,addr.path=/s,reconnect=1"},
		{StreamUnix("/s").Reconnect(time.Second), v72, "!7.2.22 cannot reconnect"},
		{StreamFD(fd).Reconnect(time.Second), v92, "!only a stream socket that QEMU dials"},
	} {
		got, err := tt.n.argument("n0", tt.v, 5)
		if want, bad := strings.CutPrefix(tt.want, "!"); bad {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v, want %q", got, err, want)
			}
		} else if err != nil || got != tt.want {
			t.Errorf("got %q, %v; want %q", got, err, tt.want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for in, want := range map[string]Version{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright": {7, 2, 22},
		"QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)":                       {11, 1, 3},
		"QEMU emulator version 9.2":                                                 {9, 2, 0},
	} {
		if got, err := parseVersion(in); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", in, got, err, want)
		}
	}
	if _, err := parseVersion("bash: nothing"); err == nil {
		t.Error("a version from nothing")
	}
}

func TestParseIfInet6(t *testing.T) {
	const list = `00000000000000000000000000000001 01 80 10 80       lo
fec0000000000000505400fffe968cdf 02 40 40 00     eth0
fd000000000000000000000000000015 02 80 00 40     eth0
fd000000000000000000000000000016 02 80 00 88     eth0
fd000000000000000000000000000017 02 80 00 80     eth0
fd000000000000000000000000000018 03 80 00 80     eth1
fe80000000000000505400fffe968cdf 02 40 20 80     eth0
`
	got, err := parseIfInet6(list, "eth0")
	if err != nil || fmt.Sprint(got) != "[fec0::5054:ff:fe96:8cdf/64 fd00::17/128]" {
		t.Errorf("got %v, %v; want the two that are ready and beyond the link", got, err)
	}
	if _, err := parseIfInet6("xyz 02 40 40 00 eth0", "eth0"); err == nil {
		t.Error("an address that is none")
	}
}

func TestParseLease(t *testing.T) {
	l, err := parseLease("ip=10.0.2.15\nmask=24\nrouter=10.0.2.2 10.0.2.9\ndns=10.0.2.3 1.1.1.1\nlease=600\nmtu=9000\nsearch=a.test b.test\ndomain=a.test\nserverid=10.0.2.2\n")
	if err != nil || l.Addr.String() != "10.0.2.15/24" || l.Router.String() != "10.0.2.2" || len(l.DNS) != 2 ||
		l.Time != 10*time.Minute || l.MTU != 9000 || l.Search != "a.test b.test" || l.Server.String() != "10.0.2.2" {
		t.Errorf("lease %+v, %v", l, err)
	}
	for _, bad := range []string{"", "ip=10.0.2.15\n", "ip=x\nmask=24\n"} {
		if _, err := parseLease(bad); err == nil {
			t.Errorf("a lease from %q", bad)
		}
	}
}

func TestTail(t *testing.T) {
	var tl tail
	for i := range 2 * tailSize / 10 {
		fmt.Fprintf(&tl, "%09d\n", i)
	}
	if s := tl.String(); len(s) != tailSize || !strings.HasSuffix(s, fmt.Sprintf("%09d\n", 2*tailSize/10-1)) {
		t.Errorf("%d bytes that end in %q", len(s), s[len(s)-20:])
	}
}
