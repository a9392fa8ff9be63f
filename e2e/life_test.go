//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/e2e/traffic"
	"github.com/vmnetd/vmnetd/e2e/vm"
	"golang.org/x/sys/unix"
)

// progress is a line of "guest stream": how far it is.
type progress struct {
	Bytes int64
	End   string
	Error string
}

// moves waits until a stream has moved on by n bytes from where it is now.
func (j *job) moves(t *testing.T, n int64) {
	t.Helper()
	var first, p progress
	j.next(t, &first)
	for deadline := time.Now().Add(patience); p.Bytes < first.Bytes+n; {
		j.next(t, &p)
		if p.End != "" {
			t.Fatalf("the stream has ended: %+v", p)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the stream stands still at %d bytes", p.Bytes)
		}
	}
}

// TestTwoGuests: two on one socket, each with the host and the other; one is killed, and the other's streams never
// stop.
func TestTwoGuests(t *testing.T) {
	for _, row := range []transport{qemuUnix, kernelUnix} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.need(t)
			l := newLab(t)
			d := l.serve(t)
			at := attach{unix: d.unix}
			one := row.launch(t, d, at, "alpha")
			two := row.launch(t, d, at, "bravo")
			one.configured(t)
			two.configured(t)
			if one.addr4 == two.addr4 || one.addr6 == two.addr6 {
				t.Fatalf("both have %s or %s", one.addr4, one.addr6)
			}
			for _, pair := range [][2]*guest{{one, two}, {two, one}} {
				g, other := pair[0], pair[1]
				b := &bench{lab: l, daemon: d, gateway: d.gateway(t), g: g}
				b.bytes(t, b.gw4.String(), l.host, 200_000)
				b.bytes(t, b.gw6.String(), l.host, 200_000)
				port, _ := other.listen(t, "guest listen sink :0")
				g.run(t, "ping -c 1 -W 5 %s", other.name)
				var r traffic.Report
				g.json(t, &r, "guest tcp -send 200000 %s:%d", other.name+".internal", port)
				if r.End != "eof" || r.Sent != 200_000 {
					t.Errorf("%s to %s: %+v", g.name, other.name, r)
				}
			}
			// Streams of blocks that are numbered: one up, one down, each checked at its far end.
			up := l.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.CheckFrom(nil))
			down := l.host.serve(t, "tcp", "[::1]:0", traffic.StreamTo(1<<20))
			ups := one.begin(t, "exec guest stream -rate 1000000 %s", up.Addr())
			downs := one.begin(t, "exec guest stream -dir down %s", target(d.gateway(t).gw6.String(), down.Addr()))
			// And one from the one that dies.
			last := l.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.CheckFrom(nil))
			two.begin(t, "guest stream -rate 1000000 %s", last.Addr())
			ups.moves(t, 100_000)
			downs.moves(t, 100_000)
			wait(t, "bravo's stream", func() error {
				for _, f := range d.flows(t, "--guest", two.mac.String(), "--proto", "tcp") {
					if f.UpBytes > 100_000 {
						return nil
					}
				}
				return errors.New("it does not move")
			})
			if err := two.Kill(); err != nil {
				t.Fatal(err)
			}
			wait(t, "bravo is gone", func() error {
				if _, here := two.info(t); here {
					return errors.New("vm ls still has it")
				}
				if n := len(d.flows(t)); n > 6 {
					return fmt.Errorf("%d flows are left", n)
				}
				return nil
			})
			if r := report(t, last); r.End != "reset" {
				t.Errorf("the dead guest's stream ends in %q for its peer, want reset", r.End)
			}
			ups.moves(t, 500_000)
			downs.moves(t, 500_000)
			// The checker at the far end counts what the guest has sent, and complains of a lost byte.
			if err := ups.Signal(int(syscall.SIGTERM)); err != nil {
				t.Fatal(err)
			}
			var p progress
			for p.End == "" {
				ups.next(t, &p)
			}
			if r := report(t, up); r.Received < 600_000 || strings.Contains(r.Error, "want 0x") {
				t.Errorf("the stream's far end: %+v", r)
			}
			if a := one.query(t, "www.example"); !a.has(world4) {
				t.Errorf("a name after it: %+v", a)
			}
			// Its place is free for the next.
			again := row.boot(t, d, at, "bravo")
			if again.addr4 != two.addr4 {
				t.Errorf("bravo came back to %s, had %s", again.addr4, two.addr4)
			}
		})
	}
}

// TestReconnect: a guest whose wire breaks comes back to its addresses, and to a forward that waits for it.
func TestReconnect(t *testing.T) {
	for _, row := range []transport{qemuUnix, kernelUnix, kernelTCP} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.need(t)
			l := newLab(t)
			d, at := row.serve(t, l, "-p", "127.0.0.1:7777:alpha:7777")
			g := row.reconnecting(t, d, at, "alpha")
			g.configured(t)
			port, _ := g.listen(t, "guest listen echo :7777")
			before, _ := g.info(t)
			echo := l.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Echo)
			open := g.begin(t, "guest stream -rate 10000 %s", echo.Addr())
			var p progress
			open.next(t, &p)
			d.must(t, "vm", "kick", g.mac.String())
			var now, here = before, false
			wait(t, "the guest comes back", func() error {
				// A guest that says nothing has a wire and no name: ask it for something.
				g.run(t, "ping -c 1 -W 1 10.0.2.2 || true")
				if now, here = g.info(t); !here || now.ID == before.ID {
					return fmt.Errorf("vm ls: %+v", now)
				}
				return nil
			})
			// The conversation of before ends at once for the guest: its segments are unknown now.
			for p.End == "" {
				open.next(t, &p)
			}
			if p.End != "reset" {
				t.Errorf("a conversation of before ends in %q, want reset", p.End)
			}
			g.run(t, "kill -USR2 $(cat /run/udhcpc.pid); while [ -e /run/lease ]; do usleep 10000; done; kill -USR1 $(cat /run/udhcpc.pid)")
			old4, old6 := g.addr4, g.addr6
			g.configured(t)
			if g.addr4 != old4 || g.addr6 != old6 {
				t.Errorf("came back to %s and %s, had %s and %s", g.addr4, g.addr6, old4, old6)
			}
			if got, err := l.host.talk(t, "tcp", "127.0.0.1:7777", []byte("again")); err != nil || string(got) != "again" {
				t.Errorf("the forward to port %d: %q, %v", port, got, err)
			}
		})
	}
}

// TestRestart: the daemon ends and another takes its place. Leases live in the state folder, and a conversation of
// before is reset at once.
func TestRestart(t *testing.T) {
	for _, how := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(unix.SignalName(how), func(t *testing.T) {
			t.Parallel()
			need(t)
			testRestart(t, how)
		})
	}
}

func testRestart(t *testing.T, how syscall.Signal) {
	l := newLab(t)
	state := l.path("state")
	args := []string{"--state-dir", state, "-p", "127.0.0.1:7777:alpha:7777"}
	d := l.serve(t, args...)
	at := attach{unix: d.unix}
	// The first address goes to another, who does not come back: a daemon that forgot would give it to alpha.
	other := kernelUnix.boot(t, d, at, "first")
	g := kernelUnix.boot(t, d, at, "alpha")
	other.Kill()
	g.listen(t, "guest listen echo :7777")
	hold := l.world.serve(t, "tcp", net.JoinHostPort(world6, "0"), traffic.Hold)
	open := g.begin(t, "guest stream -rate 10000 %s", hold.Addr())
	var p progress
	open.next(t, &p)
	if how == syscall.SIGKILL { // it cannot save anything then: it has done so a few seconds after the lease
		wait(t, "the lease is in the state folder", func() error {
			files, _ := filepath.Glob(state + "/*")
			for _, f := range files {
				if b, _ := os.ReadFile(f); bytes.Contains(b, []byte(g.mac.String())) {
					return nil
				}
			}
			return fmt.Errorf("%q", files)
		})
	}
	d.cmd.Process.Signal(how)
	<-d.exited
	if _, err := os.Lstat(d.unix); (err == nil) != (how == syscall.SIGKILL) {
		t.Fatalf("the socket file after %v: %v", how, err)
	}
	d = l.serve(t, args...) // in the stale one's place
	g.d = d
	for p.End == "" {
		open.next(t, &p)
	}
	if p.End != "reset" {
		t.Errorf("a conversation of before ends in %q, want reset", p.End)
	}
	had := g.addr4
	wait(t, "the lease is known again", func() error {
		for _, le := range ask[[]control.Lease](t, d, "leases", "ls") {
			if le.Addr == had && le.MAC == g.mac.String() && le.Name == "alpha" {
				return nil
			}
		}
		return errors.New("leases ls does not have it")
	})
	g.run(t, "kill -USR2 $(cat /run/udhcpc.pid); while [ -e /run/lease ]; do usleep 10000; done; kill -USR1 $(cat /run/udhcpc.pid)")
	g.configured(t)
	if g.addr4 != had {
		t.Errorf("leased %s after the restart, had %s", g.addr4, had)
	}
	if got, err := l.host.talk(t, "tcp", "127.0.0.1:7777", []byte("again")); err != nil || string(got) != "again" {
		t.Errorf("the forward: %q, %v", got, err)
	}
}

// TestStateFolder: one that leases cannot be kept in is refused at the start.
func TestStateFolder(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	locked := l.path("locked")
	if err := os.Mkdir(locked, 0o500); err != nil { // root's
		t.Fatal(err)
	}
	p := l.start(t, l.command(t, "serve", "--control", l.path("c.sock"), "--qemu", "unix:"+l.path("q.sock"), "--state-dir", locked))
	if code := p.end(t, patience); code != 1 || !strings.Contains(p.log.String(), locked) {
		t.Errorf("exit status %d, %q; want 1 and the folder's name", code, p.log.String())
	}
}

// TestPlaces: where a daemon is, no other starts, and both say who; what a dead one left is replaced.
func TestPlaces(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	d := l.serve(t)
	for _, place := range []struct{ wire, control, name string }{
		{d.unix, l.path("c2.sock"), d.unix},
		{l.path("q2.sock"), d.control, d.control},
	} {
		p := l.start(t, l.command(t, "serve", "--qemu", "unix:"+place.wire, "--control", place.control))
		if code := p.end(t, patience); code != 1 || !strings.Contains(p.log.String(), place.name) || !strings.Contains(p.log.String(), "listening there already") {
			t.Errorf("a second daemon at %s: exit status %d, %q; want 1, and which place is taken", place.name, code, p.log.String())
		}
	}
	// No socket: left alone.
	file := l.path("precious")
	os.WriteFile(file, []byte("words"), 0o644)
	p := l.start(t, l.command(t, "serve", "--qemu", "unix:"+file, "--control", l.path("c3.sock")))
	if code := p.end(t, patience); code != 1 {
		t.Errorf("a file in the socket's place: exit status %d, %s", code, p.log.String())
	}
	if b, _ := os.ReadFile(file); string(b) != "words" {
		t.Errorf("the file has %q now", b)
	}
	// Side by side, each with places of its own, both whole.
	second := l.serveAt(t, "q2.sock", "c2.sock", nil, "--name", "second")
	one := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	two := kernelUnix.boot(t, second, attach{unix: second.unix}, "bravo")
	if one.addr4 != two.addr4 {
		t.Errorf("%s and %s: two networks, each with its first address", one.addr4, two.addr4)
	}
	for _, g := range []*guest{one, two} {
		b := &bench{lab: l, daemon: g.d, gateway: g.d.gateway(t), g: g}
		b.bytes(t, world4, l.world, 100_000)
		b.bytes(t, b.gw6.String(), l.host, 100_000)
	}
	if a := one.query(t, "bravo.internal"); a.Rcode != "NXDOMAIN" {
		t.Errorf("the other daemon's guest: %+v", a)
	}
	fi, err := os.Lstat(d.control)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the control socket: %v, %v; want mode 0600", fi, err)
	}
}

// TestDefaults: no flags at all. The lines to paste are printed, and work.
func TestDefaults(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	p := l.start(t, l.command(t, "serve"))
	sock := l.path("run/vmnetd/qemu.sock")
	d := &daemon{process: p, lab: l, control: l.path("run/vmnetd/control.sock")}
	wait(t, "the lines for QEMU", func() error {
		if out := p.out.String(); !strings.Contains(out, "stream,id=net0,server=off,addr.type=unix,addr.path="+sock) || !strings.Contains(out, "\ncontrol ") {
			return errors.New(out)
		}
		return nil
	})
	g := kernelUnix.boot(t, d, attach{unix: sock}, "alpha")
	if g.addr4 != netip.MustParseAddr("10.0.2.15") {
		t.Errorf("the first guest has %s, want QEMU's 10.0.2.15", g.addr4)
	}
	p.cmd.Process.Signal(syscall.SIGINT)
	if code := p.end(t, 5*time.Second); code != 0 {
		t.Errorf("exit status %d after SIGINT", code)
	}
	if _, err := os.Lstat(filepath.Dir(sock)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", filepath.Dir(sock), err)
	}
}

// TestTerm: at SIGTERM conversations have a second. One that ends by then is whole, one that does not is reset; the
// sockets go and the exit status is 0.
func TestTerm(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	d := l.serve(t, "--sandbox-folder", l.dir)
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	forwardSock := l.path("f.sock")
	d.forward(t, "unix:%s-alpha:80", forwardSock)
	endless := l.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Hold)
	forever := g.begin(t, "guest stream -rate 10000 %s", endless.Addr())
	var p progress
	forever.next(t, &p)

	// 2 MB at 5 MB/s end 0.4 s after they have begun: inside the grace.
	const n = 2_000_000
	slow := l.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), paced(n))
	finishing := g.begin(t, "guest tcp %s", slow.Addr())
	wait(t, "it flows", func() error {
		for _, f := range d.flows(t, "--proto", "tcp") {
			if f.Dst.String() == slow.Addr().String() && f.DownBytes > 0 {
				return nil
			}
		}
		return errors.New("no such flow")
	})
	began := time.Now()
	d.cmd.Process.Signal(syscall.SIGTERM)
	var r traffic.Report
	finishing.next(t, &r)
	if r.End != "eof" || r.Received != n || r.ReceivedHash != traffic.Hash(6, n) {
		t.Errorf("a conversation that ends within the second: %+v", r)
	}
	code := d.end(t, 5*time.Second)
	if took := time.Since(began); code != 0 || took > 2500*time.Millisecond || took < 900*time.Millisecond {
		t.Errorf("exit status %d after %v, want 0 after about a second", code, took)
	}
	for _, path := range []string{d.unix, d.control, forwardSock} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if r := report(t, endless); r.End != "reset" {
		t.Errorf("a conversation that does not end: %q for its peer, want reset", r.End)
	}
}

// paced sends n bytes in pieces, 5 MB a second, and waits for the peer's end.
func paced(n int64) traffic.Handler {
	return func(ctx context.Context, c net.Conn, r *traffic.Report) error {
		body := traffic.Bytes(6, n)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			m, err := io.CopyN(c, body, 50_000)
			r.Sent += m
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
		c.(*net.TCPConn).CloseWrite()
		return r.Receive(c)
	}
}

// TestRun: vmnetd run with a real QEMU: a forward from its first moment, its exit status, nothing left behind.
func TestRun(t *testing.T) {
	t.Parallel()
	needQEMU(t)
	l := newLab(t)
	before := l.files(t)
	// As root, for QEMU's own files are in a folder of the test's.
	q := startQEMU(t, l, vm.Config{
		Name: "alpha",
		Wrap: []string{
			"unshare", "-m", "/bin/sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, l.resolvConf,
			l.self(t), "run", "-p", "127.0.0.1:8080:80", "--",
		},
		Env: []string{"XDG_RUNTIME_DIR=" + l.path("run")},
	})
	g := &guest{Guest: q, name: "alpha"}
	wait(t, "a lease", func() error {
		if g.lease(t)["ip"] != "10.0.2.15" {
			return errors.New(g.run(t, "cat /run/udhcpc.log"))
		}
		return nil
	})
	got, err := l.host.talk(t, "tcp", "127.0.0.1:8080", []byte("GET / HTTP/1.0\r\n\r\n"))
	if err != nil || !bytes.Contains(got, []byte("hello from alpha")) {
		t.Errorf("the guest's page: %q, %v", got, err)
	}
	sink := l.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Sink)
	var r traffic.Report
	g.json(t, &r, "guest tcp -send 100000 %s", sink.Addr())
	if r.End != "eof" {
		t.Errorf("the way out: %+v", r)
	}
	if err := q.PowerOff(t.Context()); err != nil {
		t.Errorf("run ended with %v, want the command's 0", err)
	}
	if after := l.files(t); after != before {
		t.Errorf("files before: %s\nand after: %s", before, after)
	}
}

// files lists what is in the lab's folder.
func (l *lab) files(t *testing.T) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(l.dir, func(path string, _ os.DirEntry, err error) error {
		all = append(all, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

// TestRunCommands: the exit status and the signals of any command.
func TestRunCommands(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	before := l.files(t)
	for _, tt := range []struct {
		line []string
		code int
		out  string
	}{
		{[]string{"sh", "-c", "exit 0"}, 0, ""},
		{[]string{"sh", "-c", "exit 42"}, 42, ""},
		{[]string{"sh", "-c", "kill -KILL $$"}, 137, ""},
		{[]string{"sh", "-c", `test -S /proc/$$/fd/$VMNETD_FD && test -S "$VMNETD_CONTROL" && echo all there`}, 0, "all there"},
		{[]string{"sh", "-c", l.self(t) + ` status -o json`}, 0, `"ipv6_router": true`},
		{[]string{"/nonexistent/qemu-system-x86_64"}, 127, ""},
		{[]string{"/dev/null"}, 126, ""},
	} {
		p := l.start(t, l.command(t, append([]string{"run", "--"}, tt.line...)...))
		if code := p.end(t, patience); code != tt.code || !strings.Contains(p.out.String(), tt.out) {
			t.Errorf("%q: exit status %d, %q, %q; want %d, %q", tt.line, code, p.out.String(), p.log.String(), tt.code, tt.out)
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1} {
		p := l.start(t, l.command(t, "run", "--", "sh", "-c", fmt.Sprintf("trap 'echo got it; exit 7' %d; echo ready; while :; do sleep 0.02; done", sig)))
		wait(t, "the command runs", func() error {
			if !strings.Contains(p.out.String(), "ready") {
				return errors.New(p.log.String())
			}
			return nil
		})
		p.cmd.Process.Signal(sig)
		if code := p.end(t, patience); code != 7 || !strings.Contains(p.out.String(), "got it") {
			t.Errorf("%v: exit status %d, %q; want it passed on, and the command's 7", sig, code, p.out.String())
		}
	}
	if after := l.files(t); after != before {
		t.Errorf("files before: %s\nand after: %s", before, after)
	}
}

func (l *lab) self(t *testing.T) string { return mustBinary(t) }

// TestDescriptors: --qemu fd:N with a listening socket takes any number of guests; the end of a connected one is the
// daemon's end.
func TestDescriptors(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	path := l.path("inherited.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := l.serveAt(t, "", "c1.sock", []*os.File{f}, "--qemu", "fd:3")
	one := kernelUnix.boot(t, d, attach{unix: path}, "alpha")
	two := kernelUnix.boot(t, d, attach{unix: path}, "bravo")
	one.run(t, "ping -c 1 -W 5 %s", two.addr4)

	ours, theirs := socketPair(t)
	d = l.serveAt(t, "", "c2.sock", []*os.File{theirs}, "--qemu", "fd:3")
	theirs.Close()
	g := kernelUnix.boot(t, d, attach{file: ours}, "alpha")
	g.Kill()
	if code := d.end(t, patience); code != 0 {
		t.Errorf("the only guest of a connected descriptor has gone: exit status %d, want 0: %s", code, d.log.String())
	}
}
