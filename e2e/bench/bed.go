//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/e2e/space"
	"golang.org/x/sys/unix"
)

// Addresses between host and server, of RFC 5737's and RFC 3849's blocks for documentation.
const (
	server4, server6 = "192.0.2.1", "2001:db8::1"
	host4, host6     = "192.0.2.2", "2001:db8::2"
)

// patience bounds every wait for a state. What is waited for takes a second at most; two busy processors have been
// seen to need five.
const patience = 20 * time.Second

// bed is one measurement's topology, with a backend in it.
type bed struct {
	ctx          context.Context
	dir          string
	mtu          int
	cpus         []int
	seconds      int
	held         int
	host, server *space.Space
	guests       []*guest
	be           backend
	control      string  // vmnetd's control socket
	backends     []*proc // processes of the backend
	procs        []*proc // all, in the order of their start
}

// guest is a namespace behind a TAP named tap0.
type guest struct {
	*space.Space
	addr4, addr6 netip.Addr
}

func newBed(ctx context.Context, dir string, cores, mtu int) (b *bed, err error) {
	b = &bed{ctx: ctx, mtu: mtu}
	if b.dir, err = os.MkdirTemp(dir, ""); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return nil, err
	}
	if b.cpus, err = processors(cores); err != nil {
		return nil, err
	}
	if b.host, err = b.space(); err != nil {
		return nil, err
	}
	if b.server, err = b.space(); err != nil {
		return nil, err
	}
	if err := b.host.IP("link add uplink type veth peer name peer0 netns " + b.server.Path()); err != nil {
		return nil, err
	}
	for _, s := range []struct {
		*space.Space
		link, addr4, addr6 string
	}{{b.host, "uplink", host4, host6}, {b.server, "peer0", server4, server6}} {
		if err := s.IP(fmt.Sprintf("addr add %s/24 dev %s\naddr add %s/64 dev %[2]s nodad\nlink set %[2]s up", s.addr4, s.link, s.addr6)); err != nil {
			return nil, err
		}
	}
	if err := b.host.IP("route add default via " + server4 + "\nroute add default via " + server6); err != nil {
		return nil, err
	}
	return b, os.WriteFile(b.path("resolv.conf"), []byte("nameserver "+server4+"\n"), 0o644)
}

// processors are the first n that this process may use.
func processors(n int) (all []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, err
	}
	for c := 0; len(all) < n; c++ {
		if c >= len(set)*64 {
			return nil, fmt.Errorf("--cores %d: only processors %v may be used here", n, all)
		}
		if set.IsSet(c) {
			all = append(all, c)
		}
	}
	return all, nil
}

// space makes a namespace with the settings of all.
func (b *bed) space() (*space.Space, error) {
	s, err := space.New(b.cpus...)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]string{
		"ipv4/ping_group_range":        "0 2147483647",
		"ipv4/ip_local_port_range":     "2000 65000", // as many connections as there may be held
		"ipv4/tcp_tw_reuse":            "1",          // else new connections run out of ports
		"ipv4/tcp_congestion_control":  "cubic",      // the usual default, whatever this machine has
		"ipv6/conf/default/accept_dad": "0",          // nobody else is there
		"ipv6/conf/default/accept_ra":  "0",          // addresses are given by hand
	} {
		if err := s.Sysctl(name, value); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

func (b *bed) path(name string) string { return filepath.Join(b.dir, name) }

// close ends all that the bed has.
func (b *bed) close() error {
	for _, p := range slices.Backward(b.procs) {
		p.stop()
	}
	for _, g := range b.guests {
		g.Close()
	}
	for _, s := range []*space.Space{b.host, b.server} {
		if s != nil {
			s.Close()
		}
	}
	return os.RemoveAll(b.dir)
}

// bringUp starts the servers, the backend, and so many guests behind it, and waits until each reaches the server.
func (b *bed) bringUp(be backend, guests int, forward, six bool) error {
	b.be = be
	if err := b.serve(b.server, guests); err != nil {
		return err
	}
	for i := range guests {
		s, err := b.space()
		if err != nil {
			return err
		}
		g := &guest{Space: s, addr4: be.guest4, addr6: netip.MustParseAddr("fd00::15")}
		b.guests = append(b.guests, g)
		for range i {
			if be.many { // on one network
				g.addr4, g.addr6 = g.addr4.Next(), g.addr6.Next()
			}
		}
	}
	for i, g := range b.guests {
		sock := b.path("0.sock")
		if !be.many {
			sock = b.path(fmt.Sprintf("%d.sock", i))
		}
		if i == 0 || !be.many {
			p, err := be.start(b, g, plan{sock, forward, six})
			if err != nil {
				return err
			}
			b.backends = append(b.backends, p)
		}
		if be.socket {
			tap, err := b.tap(g)
			if err != nil {
				return err
			}
			args := []string{sock}
			if i > 0 && be.greeting != "" {
				args = []string{sock + ".api", be.greeting}
			}
			_, err = b.part(g.Space, []*os.File{tap}, "join", args...)
			tap.Close()
			if err != nil {
				return err
			}
		}
	}
	for i, g := range b.guests {
		if err := b.configure(g, six); err != nil {
			return fmt.Errorf("guest %d: %w", i, err)
		}
	}
	if !forward {
		return nil
	}
	if err := b.serve(b.guests[0].Space, 1); err != nil {
		return err
	}
	if be.expose != nil {
		for _, port := range []int{iperfPort, echoPort} {
			if err := be.expose(b.path("0.sock.api"), port, b.guests[0].addr4); err != nil {
				return fmt.Errorf("forwarding port %d: %w", port, err)
			}
		}
	}
	return b.until("a forwarded port", func() error { return exchange(b.host, net.JoinHostPort("127.0.0.1", strconv.Itoa(echoPort))) })
}

// serve starts iperf3's servers, one a guest since each takes one client, and ours.
func (b *bed) serve(s *space.Space, guests int) error {
	for i := range guests {
		if i < maxBulk {
			if _, err := b.start(s, nil, false, "iperf3", "-s", "-p", strconv.Itoa(iperfPort+i)); err != nil {
				return err
			}
		}
	}
	_, err := b.part(s, nil, "serve")
	return err
}

// tap makes a guest's card.
func (b *bed) tap(g *guest) (f *os.File, err error) {
	err = g.Do(func() error {
		f, err = space.OpenTAP("tap0", true)
		return err
	})
	return f, err
}

// configure gives a guest its addresses as a static configuration would, and waits for its first conversation.
func (b *bed) configure(g *guest, six bool) error {
	if err := b.until("TAP", func() error {
		return g.Do(func() error { _, err := net.InterfaceByName("tap0"); return err })
	}); err != nil {
		return err
	}
	// A virtio ring holds its guest back where a TAP drops: a queue longer than any TCP window stands in for that.
	lines := fmt.Sprintf("addr replace %s/24 dev tap0\nlink set tap0 mtu %d txqueuelen 20000 up\nroute replace default via %s", g.addr4, b.mtu, b.be.gateway4)
	if six {
		lines += fmt.Sprintf("\naddr replace %s/64 dev tap0 nodad\nroute replace default via %s dev tap0", g.addr6, b.be.gateway6)
	}
	if err := g.IP(lines); err != nil {
		return err
	}
	to := []string{server4}
	if six {
		to = append(to, server6)
	}
	for _, a := range to {
		if err := b.until("the server at "+a, func() error { return exchange(g.Space, net.JoinHostPort(a, strconv.Itoa(echoPort))) }); err != nil {
			return err
		}
	}
	return nil
}

// exchange asks an echo server from a namespace.
func exchange(s *space.Space, to string) error {
	c, err := s.Dial("tcp", to, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

// until waits for a state while all processes live.
func (b *bed) until(what string, f func() error) error {
	for deadline := time.Now().Add(patience); ; {
		err := f()
		if err == nil {
			return nil
		}
		for _, p := range b.procs {
			select {
			case <-p.gone:
				return fmt.Errorf("%s has ended: %v: %s", p.name, p.cmd.ProcessState, p.said.String())
			default:
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v: %w", what, patience, err)
		}
		if err := b.sleep(20 * time.Millisecond); err != nil {
			return err
		}
	}
}

func (b *bed) sleep(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	}
}

// proc is a process of the bed.
type proc struct {
	name string
	cmd  *exec.Cmd
	said tail
	gone chan struct{}
}

// start starts a process in a namespace; it dies with this one. resolv gives it the bed's resolv.conf.
func (b *bed) start(s *space.Space, files []*os.File, resolv bool, argv ...string) (*proc, error) {
	p := &proc{name: filepath.Base(argv[0]), gone: make(chan struct{})}
	p.cmd = b.command(resolv, argv...)
	p.cmd.ExtraFiles = files
	return p, b.launch(s, p)
}

func (b *bed) command(resolv bool, argv ...string) *exec.Cmd {
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if resolv {
		argv = append([]string{"/bin/sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, b.path("resolv.conf")}, argv...)
		attr.Unshareflags = unix.CLONE_NEWNS
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = attr
	cmd.Dir = b.dir
	cmd.WaitDelay = time.Second // a child of it may hold the pipes
	return cmd
}

func (b *bed) launch(s *space.Space, p *proc) error {
	if p.cmd.Stdout == nil {
		p.cmd.Stdout = &p.said
	}
	p.cmd.Stderr = &p.said
	if err := s.Start(p.cmd); err != nil {
		return err
	}
	b.procs = append(b.procs, p)
	go func() {
		p.cmd.Wait() // how it ended is asked of ProcessState
		close(p.gone)
	}()
	return nil
}

// partCommand is this binary as one of its parts.
func (b *bed) partCommand(name string, args ...string) *exec.Cmd {
	cmd := b.command(false, append([]string{"/proc/self/exe"}, args...)...)
	cmd.Env = append(os.Environ(), partEnv+"="+name)
	return cmd
}

func (b *bed) part(s *space.Space, files []*os.File, name string, args ...string) (*proc, error) {
	p := &proc{name: name, cmd: b.partCommand(name, args...), gone: make(chan struct{})}
	p.cmd.ExtraFiles = files
	return p, b.launch(s, p)
}

// wait waits for a process to end by itself.
func (b *bed) wait(p *proc, most time.Duration) error {
	select {
	case <-p.gone:
	case <-time.After(most):
		p.stop()
		return fmt.Errorf("%s: not done within %v: %s", p.name, most, p.said.String())
	case <-b.ctx.Done():
		p.stop()
		return context.Cause(b.ctx)
	}
	b.procs = slices.DeleteFunc(b.procs, func(q *proc) bool { return p == q }) // its number may be another's by now
	if !p.cmd.ProcessState.Success() {
		return fmt.Errorf("%s: %v: %s", p.name, p.cmd.ProcessState, p.said.String())
	}
	return nil
}

// stop ends a process and its group.
func (p *proc) stop() {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case <-p.gone:
			return
		default:
		}
		_ = syscall.Kill(-p.cmd.Process.Pid, s) // it may be gone at this very moment
		select {
		case <-p.gone:
		case <-time.After(3 * time.Second): // vmnetd gives conversations one second, others less
		}
	}
	<-p.gone
}

// tail keeps the end of what a process says.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(b []byte) (int, error) {
	const most = 2 << 10 // a screenful
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	t.b = t.b[max(0, len(t.b)-most):]
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}

// usage is what the backend's processes and their children have used: processor time, and resident bytes.
func (b *bed) usage() (cpu time.Duration, rss int64) {
	for _, pid := range b.family() {
		// The clock of a process's processor time, in nanoseconds where /proc/PID/stat has ticks (clock_getcpuclockid(3)).
		var ts unix.Timespec
		if unix.ClockGettime(int32(^pid<<3|2), &ts) == nil {
			cpu += time.Duration(ts.Nano())
		}
		statm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)) // gone: nothing
		if f := strings.Fields(string(statm)); len(f) > 1 {
			pages, _ := strconv.ParseInt(f[1], 10, 64)
			rss += pages * int64(os.Getpagesize())
		}
	}
	return cpu, rss
}

// family is the numbers of the backend's processes and all their descendants.
func (b *bed) family() (pids []int) {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		s, _ := os.ReadFile(path)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if _, rest, ok := strings.Cut(string(s), ") "); ok { // "pid (name) state parent …"
			if f := strings.Fields(rest); len(f) > 1 {
				parent, _ := strconv.Atoi(f[1])
				children[parent] = append(children[parent], pid)
			}
		}
	}
	for _, p := range b.backends {
		pids = append(pids, p.cmd.Process.Pid)
	}
	for i := 0; i < len(pids); i++ {
		pids = append(pids, children[pids[i]]...)
	}
	return pids
}

// moreFiles raises what processes may open as far as it goes: the test hold needs two descriptors a connection in some
// backends. Set by hand it is passed on; what Go raises for itself is not.
func moreFiles() error {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return err
	}
	r.Cur = r.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &r)
}
