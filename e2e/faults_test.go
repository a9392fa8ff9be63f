//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/e2e/traffic"
	"golang.org/x/sys/unix"
)

// What goes wrong on a host sooner or later. Each time: what cannot work says so, what can goes on, and when the host is
// well again so is everything, without anybody's help.

// warns waits until the status says something, or no longer does.
func (d *daemon) warns(t *testing.T, text string, want bool) {
	t.Helper()
	wait(t, fmt.Sprintf("%q in the status: %v", text, want), func() error {
		list := d.status(t).Networks[0].Warnings
		if slices.ContainsFunc(list, func(w string) bool { return strings.Contains(w, text) }) != want {
			return fmt.Errorf("warnings %q", list)
		}
		return nil
	})
	kind := map[bool]backend.EventKind{true: backend.EventWarning, false: backend.EventRecovered}[want]
	wait(t, fmt.Sprintf("an event of the kind %s", kind), func() error {
		list := ask[[]backend.Event](t, d, "events")
		warned := map[string]bool{}
		for _, e := range list {
			if e.Kind == backend.EventWarning && strings.Contains(e.Subject+": "+e.Text, text) {
				warned[e.Subject] = true
			}
			if e.Kind == kind && warned[e.Subject] {
				return nil
			}
		}
		return fmt.Errorf("%+v", list)
	})
}

func oneGuest(t *testing.T) *bench {
	t.Helper()
	need(t)
	l := newLab(t)
	d := l.serve(t)
	return &bench{lab: l, daemon: d, gateway: d.gateway(t), g: kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")}
}

// reaches tries TCP conversations until one works.
func (g *guest) reaches(t *testing.T, to string) {
	t.Helper()
	wait(t, to+" is reached", func() error {
		if r := g.ends(t, to); r.End != "eof" {
			return fmt.Errorf("%q (%s)", r.End, r.Error)
		}
		return nil
	})
}

// steady is a conversation of a guest's that is to survive what happens.
func steady(t *testing.T, b *bench, far net.Addr) *job {
	t.Helper()
	j := b.g.begin(t, "guest stream -rate 1000000 %s", far)
	j.moves(t, 10_000)
	return j
}

// TestDaemonKilled: a daemon is killed under a running VM and another takes its place. Once its socket is there the VM has
// its network again within two seconds: lease, names and the forwards that were added while the first one ran.
func TestDaemonKilled(t *testing.T) {
	for _, row := range []transport{kernelUnix, qemuUnix} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.need(t)
			l := newLab(t)
			args := []string{"--state-dir", l.path("state"), "-p", "127.0.0.1:7777:alpha:7777"}
			d := l.serve(t, args...)
			at := attach{unix: d.unix}
			g := row.reconnecting(t, d, at, "alpha")
			g.configured(t)
			had := g.addr4
			g.listen(t, "guest listen echo :7777")
			added := d.forward(t, "127.0.0.1:0:alpha:7777")
			d.must(t, "dns", "add", "db", "A", "10.0.2.77")
			state := func(what string) func() error {
				return func() error {
					files, _ := filepath.Glob(l.path("state") + "/*")
					for _, f := range files {
						if b, _ := os.ReadFile(f); strings.Contains(string(b), what) {
							return nil
						}
					}
					return fmt.Errorf("%q", files)
				}
			}
			wait(t, "the lease is kept", state(g.mac.String()))
			wait(t, "the forward is kept", state(added[0].Text))
			wait(t, "the record is kept", state("db.internal"))
			d.cmd.Process.Kill()
			<-d.exited
			d = l.serve(t, args...)
			g.d = d
			back := time.Now()
			wait(t, "the guest's traffic", func() error {
				if _, _, code, err := g.try(t, "ping -c 1 -W 1 10.0.2.2"); code != 0 {
					return fmt.Errorf("%d, %v", code, err)
				}
				return nil
			})
			took := time.Since(back)
			t.Logf("traffic again %v after the daemon's return", took)
			if took > 5*time.Second { // two are promised; each ping that is lost, by a busy machine too, is one of these
				t.Errorf("traffic again after %v, want two seconds at most", took)
			}
			for _, at := range []string{"127.0.0.1:7777", "127.0.0.1:" + fmt.Sprint(added[0].Rule.HostPort)} {
				if got, err := l.host.talk(t, "tcp", at, []byte("again")); err != nil || string(got) != "again" {
					t.Errorf("the forward at %s: %q, %v", at, got, err)
				}
			}
			if a := g.query(t, "db.internal"); !a.has("10.0.2.77") {
				t.Errorf("the record that was added: %+v", a)
			}
			if !slices.ContainsFunc(ask[[]control.Lease](t, d, "leases", "ls"), func(le control.Lease) bool {
				return le.Addr == had && le.MAC == g.mac.String() && le.Name == "alpha"
			}) {
				t.Errorf("leases ls does not have %s", had)
			}
		})
	}
}

// TestNoDescriptors: the process may open nothing more, say because others have used up the system's.
func TestNoDescriptors(t *testing.T) {
	t.Parallel()
	b := oneGuest(t)
	far := b.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Sink)
	check := b.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.CheckFrom(nil))
	stream := steady(t, b, check.Addr())
	b.g.reaches(t, far.Addr().String())
	limit := func(n string) { // as the daemon's user: root itself may not be allowed to
		t.Helper()
		out, err := exec.Command("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "prlimit", "--pid", fmt.Sprint(b.pid()), "--nofile="+n+":").CombinedOutput()
		if err != nil {
			t.Fatalf("prlimit: %v: %s", err, out)
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", b.pid()))
	if err != nil {
		t.Fatal(err)
	}
	_, old, _ := strings.Cut(string(limits), "\nMax open files ")
	old = strings.Fields(old)[0]
	// As many as there are, and few more: those the guest takes.
	most := 0
	list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.pid()))
	for _, e := range list {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			most = max(most, n)
		}
	}
	hold := b.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Hold)
	limit(fmt.Sprint(most + 4))
	wait(t, "no descriptor is left", func() error {
		b.g.begin(t, "guest stream -rate 1000 %s", hold.Addr())
		if r := b.g.ends(t, far.Addr().String()); r.End == "eof" {
			return errors.New("there is")
		}
		return nil
	})
	b.warns(t, "out of descriptors", true)
	for range 20 { // clients come and go: a spare one is given back each time
		b.status(t)
	}
	stream.moves(t, 100_000)
	if _, _, code, err := b.g.try(t, "ping -c 1 -W 5 10.0.2.2"); code != 0 {
		t.Errorf("the gateway does not answer: %d, %v", code, err)
	}
	if a := b.g.query(t, "gateway.internal"); !a.has("10.0.2.2") {
		t.Errorf("local names: %+v", a)
	}
	if r := b.g.router(t); r.Router == 0 {
		t.Error("guests are told that there is no IPv6 router")
	}
	limit(old)
	b.g.reaches(t, far.Addr().String())
	b.warns(t, "out of descriptors", false)
	stream.moves(t, 100_000)
}

// TestNoPorts: all ports that the host gives out are taken.
func TestNoPorts(t *testing.T) {
	t.Parallel()
	b := oneGuest(t)
	far := b.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Sink)
	hold := b.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Hold)
	b.lab.host.sysctl(t, "ipv4/ip_local_port_range", "40000 40003")
	for range 8 {
		b.g.begin(t, "guest stream -rate 1000 %s", hold.Addr())
	}
	var r traffic.Report
	wait(t, "the ports are used up", func() error {
		if r = b.g.ends(t, hold.Addr().String()); r.End == "eof" {
			return errors.New("not yet")
		}
		return nil
	})
	b.warns(t, "ports", true)
	if got, err := b.lab.host.talk(t, "tcp", "127.0.0.1:7", nil); err == nil {
		t.Errorf("nobody listens there: %q", got)
	}
	b.lab.host.sysctl(t, "ipv4/ip_local_port_range", "32768 60999")
	b.g.reaches(t, far.Addr().String())
	b.warns(t, "ports", false)
}

// TestNetworkGone: the host's uplink goes and comes back with other addresses, as a laptop's does.
func TestNetworkGone(t *testing.T) {
	t.Parallel()
	b := oneGuest(t)
	far4 := b.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Sink)
	far6 := b.world.serve(t, "tcp", net.JoinHostPort(world6, "0"), traffic.Sink)
	own := b.lab.host.serve(t, "tcp", "127.0.0.1:0", traffic.Sink)
	both := func() {
		t.Helper()
		b.g.reaches(t, far4.Addr().String())
		b.g.reaches(t, far6.Addr().String())
	}
	both()
	b.lab.host.ip(t, "link set uplink down\naddr flush dev uplink")
	began := time.Now()
	for _, far := range []string{far4.Addr().String(), far6.Addr().String()} {
		if r := b.g.ends(t, far); r.End == "eof" || r.End == "timeout" {
			t.Errorf("%s with no network: %q (%s), want unreachable at once", far, r.End, r.Error)
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v to say so", took)
	}
	b.warns(t, "the host's network is gone", true)
	b.g.reaches(t, target("10.0.2.2", own.Addr())) // the host itself is not gone
	if r := b.g.router(t); r.Router != 0 {
		t.Errorf("guests are told of an IPv6 router for %d s", r.Router)
	}
	b.lab.host.ip(t, `addr add 192.0.2.77/24 dev uplink
addr add 2001:db8::77/64 dev uplink nodad
link set uplink up
route add default via 192.0.2.1
route add default via 2001:db8::1`)
	b.g.reaches(t, far4.Addr().String())
	b.warns(t, "the host's network is gone", false)
	wait(t, "guests have an IPv6 router", func() error {
		if r := b.g.router(t); r.Router == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	both()
	if _, _, code, err := b.g.try(t, "ping -c 1 -W 5 "+world4); code != 0 {
		t.Errorf("ping: %d, %v", code, err)
	}
	if a := b.g.query(t, "www.example"); !a.has(world4) {
		t.Errorf("names: %+v", a)
	}
}

// TestNoResolver: the host's resolver does not answer, and does again.
func TestNoResolver(t *testing.T) {
	t.Parallel()
	b := oneGuest(t)
	if a := b.g.query(t, "www.example"); !a.has(world4) {
		t.Fatalf("names: %+v", a)
	}
	b.world.ip(t, "link set lo up\nroute add blackhole 192.0.2.2")
	if a := b.g.query(t, "other.example"); a.Rcode != "SERVFAIL" {
		t.Errorf("with a dead resolver: %+v", a)
	}
	b.warns(t, "dns", true)
	if a := b.g.query(t, "gateway.internal"); !a.has("10.0.2.2") {
		t.Errorf("local names: %+v", a)
	}
	b.world.ip(t, "route del blackhole 192.0.2.2")
	wait(t, "names again", func() error {
		if a := b.g.query(t, "www.example"); !a.has(world4) {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	b.warns(t, "dns", false)
}

// TestFullDisk: there is no room for the state folder, and then there is.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	if err := os.Mkdir(l.path("state"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := &daemon{lab: l, control: l.path("control.sock"), unix: l.path("q.sock")}
	cmd := l.command(t, "serve", "--control", d.control, "--qemu", "unix:"+d.unix, "--state-dir", l.path("state"))
	// A file system of its own, which nobody but the daemon sees.
	cmd.Args[2] = "mount -t tmpfs -o size=64k,uid=65534,mode=700 none " + l.path("state") + " && " + cmd.Args[2]
	d.begin(t, cmd)
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	inside := fmt.Sprintf("/proc/%d/root%s", d.pid(), l.path("state"))
	wait(t, "the lease is kept", func() error {
		b, err := os.ReadFile(filepath.Join(inside, "leases-default.json"))
		if !strings.Contains(string(b), g.mac.String()) {
			return fmt.Errorf("%s %v", b, err)
		}
		return nil
	})
	fill := filepath.Join(inside, "fill")
	if err := os.WriteFile(fill, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	added := d.forward(t, "127.0.0.1:0:alpha:7777")
	d.warns(t, "not saved", true)
	far := l.world.serve(t, "tcp", net.JoinHostPort(world6, "0"), traffic.Sink)
	g.reaches(t, far.Addr().String())
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	d.warns(t, "not saved", false)
	b, err := os.ReadFile(filepath.Join(inside, "added-default.json"))
	if err != nil || !strings.Contains(string(b), added[0].Text) {
		t.Errorf("kept: %s, %v; want %s", b, err, added[0].Text)
	}
}

// TestLogUnread: the log is a full disk, a pipe whose reader has died, or one that nobody reads.
func TestLogUnread(t *testing.T) {
	for _, tt := range []struct {
		name string
		to   func(*testing.T, *lab) string // where standard error goes
		then func(*testing.T, *lab)
	}{
		{"full disk", func(*testing.T, *lab) string { return "/dev/full" }, nil},
		{"reader gone", fifo, func(t *testing.T, l *lab) {
			f, err := os.OpenFile(l.path("log"), os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		}},
		{"nobody reads", fifo, nil},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			need(t)
			l := newLab(t)
			to := tt.to(t, l)
			d := &daemon{lab: l, control: l.path("control.sock"), unix: l.path("q.sock")}
			cmd := l.command(t, "serve", "--control", d.control, "--qemu", "unix:"+d.unix, "--log-level", "debug")
			cmd.Args[2] += " 2<>" + to // both ways, so that opening a pipe waits for nobody
			if tt.then != nil {
				cmd.Args[2] = strings.Replace(cmd.Args[2], "2<>", "2>", 1)
				// Somebody has to be there when it starts.
				f, err := os.OpenFile(to, os.O_RDONLY|unix.O_NONBLOCK, 0)
				if err != nil {
					t.Fatal(err)
				}
				d.begin(t, cmd)
				f.Close()
				tt.then(t, l)
			} else {
				d.begin(t, cmd)
			}
			// Each conversation by the forward is a line at debug, and so is each lease: far more than a pipe holds.
			g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
			f := d.forward(t, "127.0.0.1:0:alpha:9")
			for range 2000 {
				c, err := l.host.dial("tcp", at(f[0]))
				if err == nil {
					c.Close()
				}
			}
			far := l.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Sink)
			g.reaches(t, far.Addr().String())
			d.status(t)
		})
	}
}

func fifo(t *testing.T, l *lab) string {
	t.Helper()
	path := l.path("log")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	return path
}
