//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/e2e/traffic"
	"golang.org/x/sys/unix"
)

// tshark reads a capture, and checks every sum in it.
func tshark(t *testing.T, file string, args ...string) string {
	t.Helper()
	cmd := exec.Command("tshark", append([]string{"-n", "-r", file, "-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark %s: %v: %s", strings.Join(args, " "), err, errs.String())
	}
	return string(out)
}

// sound is tshark finding nothing wrong: no frame that it cannot take apart, no sum that is another.
func sound(t *testing.T, file string) {
	t.Helper()
	if bad := tshark(t, file, "-Y", "_ws.malformed or _ws.expert.severity == error"); bad != "" {
		t.Errorf("%s: tshark finds wrong:\n%s", filepath.Base(file), bad)
	}
}

// recorder is a vmnetd capture that runs.
type recorder struct {
	cmd  *exec.Cmd
	errs output
	done chan error
}

func record(t *testing.T, d *daemon, args ...string) *recorder {
	t.Helper()
	b, err := vmnetd()
	if err != nil {
		t.Fatal(err)
	}
	before := len(ask[[]backend.CaptureInfo](t, d, "capture", "ls"))
	r := &recorder{cmd: exec.Command(b, append([]string{"capture", "--control", d.control}, args...)...), done: make(chan error, 1)}
	r.cmd.Stderr = &r.errs
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { r.done <- r.cmd.Wait() }()
	t.Cleanup(func() {
		r.cmd.Process.Kill()
		<-r.done
	})
	wait(t, "capture "+strings.Join(args, " "), func() error {
		if n := len(ask[[]backend.CaptureInfo](t, d, "capture", "ls")); n <= before {
			return fmt.Errorf("%d captures: %s", n, r.errs.String())
		}
		return nil
	})
	return r
}

// end is its exit status, after ^C or by itself.
func (r *recorder) end(t *testing.T, interrupt bool) int {
	t.Helper()
	if interrupt {
		r.cmd.Process.Signal(os.Interrupt)
	}
	select {
	case err := <-r.done:
		r.done <- err
		return r.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatalf("%s: it does not end: %s", strings.Join(r.cmd.Args, " "), r.errs.String())
		return -1
	}
}

// TestCapture: what crosses guests' wires, read back by what people read it with.
func TestCapture(t *testing.T) {
	t.Parallel()
	need(t)
	for _, tool := range []string{"tshark", "tcpdump", "capinfos"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skipf("%v: e2e/deps.sh test installs it", err)
		}
	}
	l := newLab(t)
	small := l.path("small")
	if err := errors.Join(os.Mkdir(small, 0o777), unix.Mount("tmpfs", small, "tmpfs", 0, "size=512k,mode=1777")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	own := filepath.Join(small, "own.pcapng")
	d, at := kernelUnix.serve(t, l, "--capture", own)
	echo := l.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Echo)
	echo6 := l.world.serve(t, "tcp", net.JoinHostPort(world6, "0"), traffic.Echo)
	pong := l.world.echoUDP(t, net.JoinHostPort(world4, "0"))
	alpha, beta := kernelUnix.boot(t, d, at, "alpha"), kernelUnix.boot(t, d, at, "beta")
	if fi, err := os.Stat(own); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("--capture: %v, %v", fi, err)
	}

	file := func(name string) string { return l.path(name + ".pcapng") }
	one := record(t, d, "alpha", "-w", file("one"))
	ring := record(t, d, "-w", file("ring"), "--ring", "2x110kB")
	named := record(t, d, "all", "--flow", "*.example", "-w", file("named"))
	port := echo.Addr().(*net.TCPAddr).Port
	few := record(t, d, "all", "-c", "5", "-w", file("few"), "tcp", "port", fmt.Sprint(port), "and", "inbound")
	kept := strings.TrimSpace(d.must(t, "capture", "start", "alpha", "tcp[tcpflags] & tcp-syn != 0", "-s", "80"))

	var r struct{ Received int64 }
	if a := alpha.query(t, "www.example"); !a.has(world4) {
		t.Fatalf("www.example: %+v", a)
	}
	alpha.json(t, &r, "guest tcp -timeout 60s -send 30000 -seed 1 %s", echo.Addr())
	beta.json(t, &r, "guest tcp -timeout 60s -send 150000 -seed 2 %s", echo6.Addr())
	alpha.run(t, "guest udp -size 400 -count 3 %s", pong)
	alpha.run(t, "ping -c 1 -W 5 %s; ping -c 1 -W 5 %s", world4, world6)
	alpha.try(t, "guest hello -timeout 1s -as text 169.254.169.254:80")
	if code := few.end(t, false); code != 0 {
		t.Errorf("one that has its five packets: exit status %d: %s", code, few.errs.String())
	}
	if err := beta.Kill(); err != nil {
		t.Fatal(err)
	}
	gamma := kernelUnix.boot(t, d, at, "gamma")
	gamma.json(t, &r, "guest tcp -timeout 60s -send 30000 -seed 3 %s", echo.Addr())
	for _, c := range []*recorder{one, ring, named} {
		if code := c.end(t, true); code != 0 || !strings.Contains(c.errs.String(), " packets") {
			t.Errorf("%s: exit status %d after ^C: %s", strings.Join(c.cmd.Args, " "), code, c.errs.String())
		}
	}

	// One guest: all of its conversations, both ways, each sum right, comments where conversations begin.
	sound(t, file("one"))
	if out, err := exec.Command("capinfos", "-I", "-A", file("one")).CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "Number of interfaces in file: 1") || !strings.Contains(string(out), "nanoseconds") || !strings.Contains(string(out), "vmnetd") {
		t.Errorf("capinfos: %v: %s", err, out)
	}
	if out, err := exec.Command("tcpdump", "-nr", file("one"), "udp").CombinedOutput(); err != nil || !strings.Contains(string(out), "www.example.") {
		t.Errorf("tcpdump: %v: %s", err, out)
	}
	ways, comments := map[string]int{}, ""
	for line := range strings.Lines(tshark(t, file("one"), "-T", "fields", "-e", "eth.src", "-e", "frame.packet_flags_direction", "-e", "frame.interface_name", "-e", "tcp.flags.syn", "-e", "frame.comment")) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 5 || f[0] == alpha.mac.String() != strings.HasSuffix(f[1], "1") || !strings.Contains(f[2], "alpha") {
			t.Fatalf("a frame of %q", f)
		}
		ways[f[1]]++
		if f[4] != "" {
			comments += f[3] + "\t" + f[4] + "\n"
		}
	}
	if len(ways) != 2 {
		t.Errorf("directions %v", ways)
	}
	for _, want := range []string{
		fmt.Sprintf("1\tflow %d: tcp out %s:", flowOf(comments, echo.Addr().String()), alpha.addr4),
		echo.Addr().String() + ", allowed", "DNS www.example", "udp out", "icmp out", "icmp6 out", "169.254.169.254:80, refused",
	} {
		if !strings.Contains(comments, want) {
			t.Errorf("no comment has %q:\n%s", want, comments)
		}
	}

	// By a name that DNS gave an address: that conversation, whole, and no other.
	to := tshark(t, file("named"), "-T", "fields", "-e", "ip.addr")
	if strings.Count(to, "\n") < 10 || strings.Contains(to, "169.254") || strings.Count(to, world4) != strings.Count(to, "\n") {
		t.Errorf("--flow *.example has\n%s", to)
	}

	// Five packets that a filter passes.
	if n := tshark(t, file("few"), "-T", "fields", "-e", "tcp.dstport"); n != strings.Repeat(fmt.Sprintf("%d\n", port), 5) {
		t.Errorf("five packets to port %d: %q", port, n)
	}

	// A ring: the newest two files, with the guests that came and went.
	files, err := filepath.Glob(l.path("ring_*.pcapng"))
	if err != nil || len(files) != 2 {
		t.Fatalf("the ring is %q: %v", files, err)
	}
	slices.Sort(files)
	sound(t, files[1])
	for _, f := range files {
		if fi, err := os.Stat(f); err != nil || fi.Size() > 110_000 || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, fi, err)
		}
	}
	last, ok := gamma.info(t)
	if names := tshark(t, files[1], "-T", "fields", "-e", "frame.interface_name"); !ok || !strings.Contains(names, last.ID) {
		t.Errorf("the newest file has no frame of %s, which came last: %s", last.ID, names)
	}

	// The daemon keeps one until it is asked for.
	d.must(t, "capture", "stop", kept)
	d.must(t, "capture", "save", kept, "-w", file("kept"))
	if syn := tshark(t, file("kept"), "-T", "fields", "-e", "tcp.flags.syn", "-e", "frame.cap_len"); strings.Count(syn, "\n") < 3 || strings.Count(syn, "1\t") != strings.Count(syn, "\n") {
		t.Errorf("what was kept: %q", syn)
	}
	d.must(t, "capture", "rm", kept)

	// To a pipe, whose reader has enough when it likes.
	b, _ := vmnetd()
	pipe := exec.Command("sh", "-c", `"$0" capture -w - all --control "$1" icmp | tshark -n -l -c 2 -r - 2>/dev/null`, b, d.control)
	out := &output{}
	pipe.Stdout = out
	if err := pipe.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, "pings are shown as they come", func() error {
		alpha.try(t, "ping -c 1 -W 1 %s", world4)
		if n := strings.Count(out.String(), "\n"); n < 2 {
			return fmt.Errorf("%d lines", n)
		}
		return nil
	})
	if err := pipe.Wait(); err != nil {
		t.Errorf("a pipe whose reader has gone: %v", err)
	}
	wait(t, "its capture is over", func() error {
		if list := ask[[]backend.CaptureInfo](t, d, "capture", "ls"); len(list) > 1 || len(list) == 1 && list[0].Guest != "" {
			return fmt.Errorf("%+v", list)
		}
		return nil
	})

	// A disk that is full ends a capture, and the daemon's own too, and nothing else.
	full := record(t, d, "all", "-w", filepath.Join(small, "full.pcapng"))
	alpha.json(t, &r, "guest tcp -timeout 60s -send 1000000 -seed 4 %s", echo.Addr())
	if code := full.end(t, false); code != 1 || !strings.Contains(full.errs.String(), syscall.ENOSPC.Error()) {
		t.Errorf("on a full disk: exit status %d: %s", code, full.errs.String())
	}
	wait(t, "the daemon's own is over", func() error {
		if list := ask[[]backend.CaptureInfo](t, d, "capture", "ls"); len(list) > 0 {
			return fmt.Errorf("%+v", list)
		}
		if said := d.must(t, "events", "--kind", "capture"); !strings.Contains(said, syscall.ENOSPC.Error()) {
			return fmt.Errorf("no event says why: %s", said)
		}
		return nil
	})
	sound(t, filepath.Join(small, "full.pcapng"))
	if first := tshark(t, own, "-c", "12"); !strings.Contains(first, "DHCP") {
		t.Errorf("--capture begins with\n%s", first)
	}
	alpha.json(t, &r, "guest tcp -timeout 60s -send 1000 -seed 5 %s", echo.Addr())

	// What is asked for wrongly is said at once.
	for want, args := range map[string][]string{
		`at 5, "prt 80": want`:   {"all", "-w", file("no"), "tcp prt 80"},
		`no guest "nobody"`:      {"nobody", "-w", file("no")},
		"-w FILE":                {"all"},
		"is a symbolic link":     {"all", "-w", l.path("link")},
		"want how many files of": {"all", "-w", file("no"), "--ring", "10MB"},
	} {
		os.Symlink(file("one"), l.path("link"))
		if _, errs, code := d.cli(append([]string{"capture"}, args...)...); code == 0 || !strings.Contains(errs, want) {
			t.Errorf("capture %s: exit status %d: %s", strings.Join(args, " "), code, errs)
		}
	}
	if _, err := os.Stat(file("no")); err == nil {
		t.Error("a capture that never was left a file")
	}
}

// flowOf is the id in the comment of the conversation with a far end.
func flowOf(comments, to string) (id int) {
	for line := range strings.Lines(comments) {
		if strings.Contains(line, " > "+to+",") {
			_, rest, _ := strings.Cut(line, "flow ")
			fmt.Sscanf(rest, "%d", &id)
			return id
		}
	}
	return 0
}
