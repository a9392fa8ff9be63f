//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/e2e/traffic"
	"golang.org/x/sys/unix"
)

// hasLandlock says whether this kernel has it: what is tested of the cage is what there is.
func hasLandlock() bool {
	_, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, 1) // LANDLOCK_CREATE_RULESET_VERSION
	return e == 0
}

// needLandlock is for tests of what only that holds.
func needLandlock(t *testing.T) {
	t.Helper()
	if !hasLandlock() {
		t.Skip("this kernel has no Landlock; the rest of the sandbox is tested elsewhere")
	}
}

// as runs a command as a user of the host.
func as(uid int, name string, args ...string) *exec.Cmd {
	if uid == 0 {
		return exec.Command(name, args...)
	}
	return exec.Command("setpriv", append([]string{"--reuid", fmt.Sprint(uid), "--regid", fmt.Sprint(uid), "--clear-groups", "--", name}, args...)...)
}

// TestCage: each way out of the sandbox is tried, from threads of before and of after, and is closed. The same attempts
// without the sandbox come through, so that they can.
func TestCage(t *testing.T) {
	t.Parallel()
	need(t)
	needLandlock(t)
	bin, err := vmnetd() // the race detector's has no say in it, and takes a second a trial
	if err != nil {
		t.Fatal(err)
	}
	type selfTest struct {
		Walls   string
		Results []struct {
			Trial string
			Held  bool
			How   []string
		}
	}
	run := func(t *testing.T, uid int, args ...string) (s selfTest) {
		cmd := as(uid, bin, append([]string{"self-test", "cage", "-o", "json"}, args...)...)
		cmd.Dir = base
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if jerr := json.Unmarshal(out, &s); jerr != nil {
			t.Fatalf("%v, %v: %s%s", err, jerr, out, errs.String())
		}
		return s
	}
	// Those that an ordinary user may do anyway, and so are held by the sandbox alone.
	anyway := []string{"exec", "fork", "read a file", "list a folder", "make a file", "change a file", "remove a file", "link", "unix socket",
		"abstract socket", "netfilter", "signal", "others' memory", "process_vm_readv", "pidfd", "userfaultfd", "keyring", "personality",
		"executable memory", "raise limits", "be dumpable"}
	roots := []string{"read /etc/shadow", "raw socket", "packet socket", "become root", "capabilities", "namespace", "mount", "chroot", "ptrace"}
	for uid, open := range map[int][]string{nobody: anyway, 0: slices.Concat(anyway, roots)} {
		t.Run(fmt.Sprintf("uid%d", uid), func(t *testing.T) {
			s := run(t, uid)
			if !strings.Contains(s.Walls, "landlock") || !strings.Contains(s.Walls, "seccomp") || uid == 0 && !regexp.MustCompile(`user (nobody|vmnetd)$`).MatchString(s.Walls) {
				t.Errorf("walls: %s", s.Walls)
			}
			if len(s.Results) < 35 {
				t.Errorf("%d trials", len(s.Results))
			}
			for _, r := range s.Results {
				if !r.Held || len(r.How) != 3 {
					t.Errorf("%s: held %v, %q", r.Trial, r.Held, r.How)
				}
			}
			for _, r := range run(t, uid, "--open").Results {
				// Some systems keep these from everybody.
				sometimes := slices.Contains([]string{"userfaultfd", "keyring", "process_vm_readv", "ptrace", "others' memory"}, r.Trial)
				if slices.Contains(open, r.Trial) && r.Held && !sometimes {
					t.Errorf("%s is held without a sandbox too: %q", r.Trial, r.How)
				}
			}
		})
	}
}

// TestCagedDaemon: a daemon that insists on its sandbox does what others do: forwards that are added later, a resolv.conf
// that is replaced, ping, a state folder.
func TestCagedDaemon(t *testing.T) {
	t.Parallel()
	need(t)
	needLandlock(t)
	l := newLab(t)
	etc, state := l.path("etc"), l.path("state")
	for _, dir := range []string{etc, state} {
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, nobody, nobody)); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("resolv.conf", "nameserver 203.0.113.53\n")
	d := &daemon{lab: l, control: l.path("control.sock"), unix: l.path("q.sock")}
	cmd := exec.Command("/bin/sh", "-c", `mount --bind "$0" /etc && exec setpriv --reuid 65534 --regid 65534 --clear-groups --pdeathsig KILL -- "$@"`, etc,
		mustBinary(t), "serve", "--sandbox", "on", "--sandbox-folder", l.dir, "--control", d.control, "--qemu", "unix:"+d.unix, "--state-dir", state)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Setpgid: true}
	cmd.Env, cmd.Dir = []string{"PATH=" + os.Getenv("PATH"), "XDG_RUNTIME_DIR=" + l.path("run")}, l.dir
	d.begin(t, cmd)
	st := d.status(t)
	if st.Sandbox == nil || !strings.Contains(st.Sandbox.Walls, "landlock") || !strings.Contains(st.Sandbox.Walls, "seccomp, no capabilities") || len(st.Sandbox.Missing) > 0 {
		t.Fatalf("sandbox %+v", st.Sandbox)
	}
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	g.configured(t)

	write("new", "nameserver "+world4+"\n")
	if err := os.Rename(filepath.Join(etc, "new"), filepath.Join(etc, "resolv.conf")); err != nil {
		t.Fatal(err)
	}
	wait(t, "the new resolver", func() error {
		if list := d.status(t).Networks[0].Resolvers; !slices.Contains(list, world4+":53") {
			return fmt.Errorf("resolvers %q", list)
		}
		return nil
	})
	g.run(t, "ping -c 1 -W 5 %s", world4)

	port, _ := g.listen(t, "guest listen echo :0")
	for _, rule := range []string{fmt.Sprintf("127.0.0.1:0:alpha:%d", port), fmt.Sprintf("unix:%s-alpha:%d", l.path("later.sock"), port)} {
		f := d.forward(t, "%s", rule)[0]
		network, address := "unix", f.Rule.Path
		if address == "" {
			network, address = "tcp", at(f)
		}
		if got, err := l.host.talk(t, network, address, []byte("through")); err != nil || string(got) != "through" {
			t.Errorf("%s: %q, %v", rule, got, err)
		}
	}
	udp, _ := g.listen(t, "guest udp-echo :0")
	if got, err := l.host.talk(t, "udp", at(d.forward(t, "127.0.0.1:0:alpha:%d/udp", udp)[0]), []byte("datagram")); err != nil || string(got) != "datagram" {
		t.Errorf("UDP: %q, %v", got, err)
	}
	if _, errs, code := d.cli("forward", "add", fmt.Sprintf("unix:%s-alpha:80", filepath.Join(base, "elsewhere.sock"))); code == 0 || !strings.Contains(errs, "--sandbox-folder") {
		t.Errorf("a socket elsewhere: %d, %q", code, errs)
	}
	sink := l.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Sink)
	var r traffic.Report
	g.json(t, &r, "guest tcp -send 100000 %s", sink.Addr())
	if r.End != "eof" {
		t.Errorf("the way out: %+v", r)
	}
	wait(t, "the lease is in the state folder", func() error {
		files, _ := filepath.Glob(state + "/leases-*")
		for _, f := range files {
			if b, _ := os.ReadFile(f); bytes.Contains(b, []byte(g.mac.String())) {
				return nil
			}
		}
		return fmt.Errorf("%q", files)
	})
	d.cmd.Process.Signal(syscall.SIGTERM)
	if code := d.end(t, 10*time.Second); code != 0 {
		t.Errorf("exit status %d: %s", code, d.log.String())
	}
	for _, sock := range []string{d.unix, d.control, l.path("later.sock")} {
		if _, err := os.Lstat(sock); err == nil {
			t.Errorf("%s is left", sock)
		}
	}
}

// TestCagedRoot: root's daemon becomes nobody, keeps what it was given, and leaves no file behind.
func TestCagedRoot(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	state, full := filepath.Join(base, "rootstate"), filepath.Join(base, "rootfull")
	if err := errors.Join(os.Mkdir(state, 0o700), os.Mkdir(full, 0o700), os.WriteFile(filepath.Join(full, "mine"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	root := func(args ...string) *exec.Cmd {
		cmd := l.command(t, append([]string{"serve"}, args...)...)
		cmd.Args[2] = strings.Replace(cmd.Args[2], "--reuid 65534 --regid 65534 --clear-groups ", "", 1)
		return cmd
	}
	status := func(d *daemon, key string) string {
		t.Helper()
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.pid()))
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`(?m)^` + key + `:\s*(.*)$`).FindSubmatch(b)
		if m == nil {
			t.Fatalf("no %s in %s", key, b)
		}
		return string(m[1])
	}
	for _, tt := range []struct {
		name, uid, caps string
		args            []string
	}{
		{"Default", "65534\t65534\t65534\t65534", "0000000000000400", []string{"--state-dir", state, "-p", "127.0.0.1:1023:22"}},
		{"Daemon", "1\t1\t1\t1", "0000000000000400", []string{"--user", "daemon"}},
		{"Root", "0\t0\t0\t0", "0000000000000400", []string{"--user", "root", "--state-dir", full}},
		{"VMMsOwnSockets", "0\t0\t0\t0", "0000000000000400", []string{"--vfkit", "unix:" + l.path("v.sock")}},
		{"Off", "0\t0\t0\t0", "", []string{"--sandbox", "off"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &daemon{lab: l, control: l.path("control.sock"), unix: l.path("q.sock")}
			d.begin(t, root(append(tt.args, "--control", d.control, "--qemu", "unix:"+d.unix)...))
			if got := status(d, "Uid"); got != tt.uid {
				t.Errorf("uids %q, want %q", got, tt.uid)
			}
			for _, key := range []string{"CapPrm", "CapEff"} {
				if got := status(d, key); tt.caps != "" && got != tt.caps {
					t.Errorf("%s %s, want %s", key, got, tt.caps)
				}
			}
			if got := status(d, "CapBnd"); tt.caps != "" && got != "0000000000000000" {
				t.Errorf("CapBnd %s", got)
			}
			if tt.caps != "" { // what it kept it can use
				d.forward(t, "127.0.0.1:1022:22")
			}
			g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
			g.configured(t)
			g.run(t, "ping -c 1 -W 5 %s", d.gateway(t).gw4)
			d.cmd.Process.Signal(syscall.SIGTERM)
			if code := d.end(t, 10*time.Second); code != 0 {
				t.Errorf("exit status %d: %s", code, d.log.String())
			}
			for _, sock := range []string{d.unix, d.control} {
				if _, err := os.Lstat(sock); err == nil {
					t.Errorf("%s is left", sock)
				}
			}
		})
	}
	if files, _ := filepath.Glob(state + "/leases-*"); len(files) == 0 {
		t.Error("no lease in root's state folder")
	}
	// A folder with other things in it is not given away.
	p := l.start(t, root("--state-dir", full, "--control", l.path("c.sock"), "--qemu", "unix:"+l.path("q2.sock")))
	if code := p.end(t, 10*time.Second); code != 1 || !strings.Contains(p.log.String(), "--user root") {
		t.Errorf("exit status %d: %s", code, p.log.String())
	}
}

// TestNoGuestControl: no TCP port that a guest can reach at its gateway or DNS server answers an API.
func TestNoGuestControl(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	d := l.serve(t)
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	g.configured(t)
	gw := d.gateway(t)
	// The gateway's address is the host's loopback, where the daemon listens at nothing.
	for _, table := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", d.pid(), table))
		if err != nil {
			t.Fatal(err)
		}
		if m := regexp.MustCompile(`(?m)^ *\d+: \S+ \S+ 0A .*$`).FindAll(b, -1); len(m) > 0 { // TCP_LISTEN
			t.Errorf("the host listens: %s", m)
		}
	}
	var r struct {
		Open map[int]string
		Lost int
	}
	for _, a := range []netip.Addr{gw.gw4, gw.gw6, gw.dns4, gw.dns6} {
		last := 2000
		if a == gw.gw4 {
			last = 10000 // with the ports that control APIs have by convention: 2375, 7777, 8080, 9090
		}
		r.Open = nil
		g.json(t, &r, "guest scan -last %d %s", last, a)
		for port, answer := range r.Open {
			if port != 53 || (a != gw.dns4 && a != gw.dns6) || strings.Contains(answer, "HTTP/") {
				t.Errorf("%s port %d takes connections, and answers %q", a, port, answer)
			}
		}
		if r.Lost > 0 {
			t.Errorf("%s: %d ports neither took nor refused a connection", a, r.Lost)
		}
	}
	// The scanner finds what is there.
	web := l.host.serve(t, "tcp", "127.0.0.1:0", traffic.Echo)
	port := netip.MustParseAddrPort(web.Addr().String()).Port()
	g.json(t, &r, "guest scan -first %d -last %[1]d %s", port, gw.gw4)
	if !strings.Contains(r.Open[int(port)], "GET /v1/status") {
		t.Errorf("an echo server on the host's loopback: %+v", r)
	}
}
