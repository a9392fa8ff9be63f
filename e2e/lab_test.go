//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/e2e/space"
	"github.com/vmnetd/vmnetd/e2e/traffic"
	"golang.org/x/sys/unix"
)

// Addresses of the topology on the package page.
const (
	world4, world6     = "192.0.2.1", "2001:db8::1"
	second4, second6   = "198.51.100.1", "2001:db8:1::1"
	host4, host6       = "192.0.2.2", "2001:db8::2"
	silent4, silent6   = "203.0.113.9", "2001:db8:dead::9"
	noRoute4, noRoute6 = "198.18.0.9", "2001:db8:bad::9"
)

// netns is a network namespace of a test.
type netns struct{ *space.Space }

func newNetns(t *testing.T) *netns {
	t.Helper()
	s, err := space.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return &netns{s}
}

// ip runs one ip(8) command a line.
func (n *netns) ip(t *testing.T, lines string) {
	t.Helper()
	if err := n.IP(lines); err != nil {
		t.Fatal(err)
	}
}

// sysctl sets a variable of the namespace.
func (n *netns) sysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := n.Sysctl(name, value); err != nil {
		t.Fatal(err)
	}
}

// serve runs a TCP server in the namespace until the test ends.
func (n *netns) serve(t *testing.T, network, address string, h traffic.Handler) *traffic.Server {
	t.Helper()
	var s *traffic.Server
	err := n.Do(func() (err error) {
		s, err = traffic.Serve(network, address, h)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// listenPacket opens a UDP socket in the namespace until the test ends.
func (n *netns) listenPacket(t *testing.T, address string) *net.UDPConn {
	t.Helper()
	var pc net.PacketConn
	err := n.Do(func() (err error) {
		pc, err = net.ListenPacket("udp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc.(*net.UDPConn)
}

// echoUDP runs a UDP echo server in the namespace until the test ends.
func (n *netns) echoUDP(t *testing.T, address string) *net.UDPAddr {
	t.Helper()
	pc := n.listenPacket(t, address)
	go traffic.EchoUDP(pc)
	return pc.LocalAddr().(*net.UDPAddr)
}

// dial opens a connection from the namespace.
func (n *netns) dial(network, address string) (net.Conn, error) {
	return n.Dial(network, address, patience)
}

// lab is the topology.
type lab struct {
	world, host *netns
	dir         string // the daemons', who are its owner
	resolvConf  string // what daemons find in /etc
	dns         *nameServer
}

func newLab(t *testing.T) *lab {
	t.Helper()
	need(t)
	l := &lab{world: newNetns(t), host: newNetns(t)}
	var err error
	if l.dir, err = os.MkdirTemp(base, "l"); err != nil {
		t.Fatal(err)
	}
	// Not the test's own folder: sockets in a failed test's are of no use, and paths must be short.
	t.Cleanup(func() { os.RemoveAll(l.dir) })
	for _, n := range []*netns{l.world, l.host} {
		n.sysctl(t, "ipv6/conf/default/accept_dad", "0") // nobody else is there
		n.sysctl(t, "ipv6/conf/all/forwarding", "0")
	}
	l.host.ip(t, `link add uplink type veth peer name peer0 netns `+l.world.Path()+`
addr add 192.0.2.2/24 dev uplink
addr add 2001:db8::2/64 dev uplink nodad
link set uplink up`)
	l.world.ip(t, `addr add 192.0.2.1/24 dev peer0
addr add 198.51.100.1/32 dev peer0
addr add 2001:db8::1/64 dev peer0 nodad
addr add 2001:db8:1::1/128 dev peer0 nodad
link set peer0 up`)
	l.host.ip(t, `route add default via 192.0.2.1
route add 2001:db8:1::/48 via 2001:db8::1
route add 2001:db8:dead::/48 via 2001:db8::1
route add default via 2001:db8::1
route add unreachable 198.18.0.0/24
route add unreachable 2001:db8:bad::/48`)
	l.host.sysctl(t, "ipv4/ping_group_range", fmt.Sprintf("%d %d", nobody, nobody))
	// The kernel looks at a new link when it finds time, and drops what is sent over it before.
	for _, n := range []*netns{l.world, l.host} {
		wait(t, "the link between host and world", func() error {
			var out bytes.Buffer
			cmd := exec.Command("ip", "link", "show", "type", "veth")
			cmd.Stdout = &out
			if err := n.Run(cmd); err != nil || !strings.Contains(out.String(), "state UP") {
				return fmt.Errorf("%v %s", err, out.String())
			}
			return nil
		})
	}
	l.dns = startNameServer(t, l.world)
	l.resolvConf = filepath.Join(l.dir, "resolv.conf")
	l.setResolvConf(t, "nameserver "+world4+"\n")
	for d, mode := range map[string]os.FileMode{l.dir: 0o755, filepath.Join(l.dir, "run"): 0o700} {
		os.Mkdir(d, mode)
		if err := errors.Join(os.Chmod(d, mode), os.Chown(d, nobody, nobody)); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// setResolvConf writes in place: the file is mounted on /etc/resolv.conf.
func (l *lab) setResolvConf(t *testing.T, s string) {
	t.Helper()
	if err := os.WriteFile(l.resolvConf, []byte(s), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

// command is a vmnetd command on the lab's host: its network, its resolv.conf, an ordinary user, a home.
func (l *lab) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	// setpriv ends the daemon with the test, whatever ends that; changing the user would undo exec.Cmd's own way.
	line := []string{"-c", `mount --bind "$0" /etc/resolv.conf && exec setpriv --reuid 65534 --regid 65534 --clear-groups --pdeathsig KILL -- "$@"`, l.resolvConf, mustBinary(t)}
	cmd := exec.Command("/bin/sh", append(line, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Setpgid: true}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + l.dir, "XDG_RUNTIME_DIR=" + l.path("run"), "LC_ALL=C"}
	cmd.Dir = l.dir
	return cmd
}

// process is a vmnetd that runs.
type process struct {
	cmd    *exec.Cmd
	out    output
	log    output // stderr
	exited chan struct{}
}

func (l *lab) start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, exited: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.out
	}
	cmd.Stderr = &p.log
	if err := l.host.Start(cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		select {
		case <-p.exited:
		default:
			cmd.Process.Kill()
			<-p.exited
		}
		log := p.log.String()
		for _, bad := range []string{"panic", "DATA RACE", "fatal error:"} {
			if at := strings.Index(log, bad); at >= 0 {
				t.Errorf("the log has %q: %s", bad, log[at:min(len(log), at+4000)])
			}
		}
		if t.Failed() {
			if n := len(log) - 8<<10; n > 0 {
				log = "…" + log[n:]
			}
			t.Logf("vmnetd %s\n%s\n--- log ---\n%s", strings.Join(cmd.Args[5:], " "), p.out.String(), log)
		}
	})
	return p
}

// end waits for the end and returns the exit status.
func (p *process) end(t *testing.T, most time.Duration) int {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(most):
		t.Fatalf("vmnetd goes on after %v", most)
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// descriptors is how many the process has open.
func (p *process) descriptors() int {
	list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid()))
	return len(list)
}

// memory is the process's resident size.
func (p *process) memory(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	pages, _ := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// daemon is a vmnetd serve.
type daemon struct {
	*process
	lab     *lab
	control string
	network string // the one meant, where it has several
	unix    string // where guests plug in; "" where not at a unix socket
	tcp     string // the same for TCP
}

// serve starts a daemon with a unix socket and what args say, and stops it with the test. Its end is checked.
func (l *lab) serve(t *testing.T, args ...string) *daemon {
	t.Helper()
	return l.serveAt(t, "q.sock", "control.sock", nil, args...)
}

func (l *lab) serveAt(t *testing.T, wire, control string, files []*os.File, args ...string) *daemon {
	t.Helper()
	d := &daemon{lab: l, control: l.path(control)}
	args = append([]string{"serve", "--control", d.control}, args...)
	if wire != "" {
		d.unix = l.path(wire)
		args = append(args, "--qemu", "unix:"+d.unix)
	}
	cmd := l.command(t, args...)
	cmd.ExtraFiles = files
	d.begin(t, cmd)
	return d
}

// begin starts the daemon by cmd, waits until it is up, and stops it with the test.
func (d *daemon) begin(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	d.process = d.lab.start(t, cmd)
	wait(t, "vmnetd serve", func() error {
		select {
		case <-d.exited:
			t.Fatalf("vmnetd ended at once: %s", d.log.String())
		default:
		}
		if !strings.Contains(d.out.String(), "\ncontrol ") && !strings.Contains(d.log.String(), "\ncontrol ") {
			return errors.New("it has not said where its control socket is")
		}
		return nil
	})
	for line := range strings.Lines(d.out.String()) {
		if rest, ok := strings.CutPrefix(line, "guests plug in at tcp:"); ok {
			d.tcp, _, _ = strings.Cut(rest, ";")
		}
	}
	t.Cleanup(func() {
		select {
		case <-d.exited: // the test saw to it
		default:
			d.cmd.Process.Signal(syscall.SIGTERM)
			if code := d.end(t, 10*time.Second); code != 0 {
				t.Errorf("exit status %d after SIGTERM, want 0: %s", code, d.log.String())
			}
		}
	})
}

// cli runs a vmnetd command that speaks to the daemon.
func (d *daemon) cli(args ...string) (stdout, stderr string, code int) {
	b, err := vmnetd()
	if err != nil {
		return "", err.Error(), -1
	}
	if d.network != "" {
		args = append(args, "--network", d.network)
	}
	cmd := exec.Command(b, append(args, "--control", d.control)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Run()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must is cli for a command that must succeed.
func (d *daemon) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := d.cli(args...)
	if code != 0 {
		t.Fatalf("vmnetd %s: exit status %d: %s", strings.Join(args, " "), code, errs)
	}
	return out
}

// ask reads what a command says with -o json.
func ask[T any](t *testing.T, d *daemon, args ...string) T {
	t.Helper()
	var v T
	out := d.must(t, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("vmnetd %s: %v in %s", strings.Join(args, " "), err, out)
	}
	return v
}

func (d *daemon) status(t *testing.T) control.Status {
	t.Helper()
	st := ask[control.Status](t, d, "status")
	if len(st.Networks) != 1 {
		t.Fatalf("%d networks, want 1", len(st.Networks))
	}
	return st
}

// output keeps what a process says.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
