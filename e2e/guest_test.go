//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/e2e/space"
	"github.com/vmnetd/vmnetd/e2e/stream"
	"github.com/vmnetd/vmnetd/e2e/vm"
	"github.com/vmnetd/vmnetd/e2e/vm/channel"
	"golang.org/x/sys/unix"
)

// Guest is what scenarios need of a guest, however it is made and attached.
type Guest interface {
	// Start starts a command with the guest's sh: busybox and e2e/guestbin are there.
	Start(ctx context.Context, command string) (*channel.Proc, error)
	// Kill ends the guest without a goodbye.
	Kill() error
}

// guest is a Guest on a daemon's network.
type guest struct {
	Guest
	name string
	mac  net.HardwareAddr
	row  transport
	d    *daemon

	addr4, addr6 netip.Addr // once configured
}

// The network's own addresses, from status.
type gateway struct{ gw4, gw6, dns4, dns6 netip.Addr }

func (d *daemon) gateway(t *testing.T) gateway {
	t.Helper()
	n := d.status(t).Networks[0]
	return gateway{n.Gateway4, n.Gateway6, n.DNS4, n.DNS6}
}

// transport is a row of the matrix: how a guest is made and how it is attached. Rows stand in files of their own; none of
// them is known to a scenario.
type transport struct {
	name string
	// needs skips the test where something is missing that need does not ask for. It may be nil.
	needs func(*testing.T)
	// door starts a daemon that takes the row's guests.
	door func(r transport, t *testing.T, l *lab, args ...string) (*daemon, attach)
	// starts starts a guest, which asks for its lease by itself.
	starts func(t *testing.T, l *lab, at attach, name string, mac net.HardwareAddr) Guest
	single bool // the door takes one guest and no other
	brief  bool // only scenarios that say something of the wire
	boots  bool // the guest has a kernel of its own, which takes seconds and tests its IPv6 addresses for duplicates

	// What the row's guests can carry in the time that a test has: emulated ones are a hundred times slower.
	bytes    int64
	parallel int
	mtu      string // that its guests are told; "" for the largest
}

// transports is the matrix's rows.
var transports = slices.Concat(qemuRows, streamRows, datagramRows, umlRows)

var (
	qemuUnix   = transport{name: "qemu-unix", needs: vmNeed, starts: inQEMU, boots: true, door: unixDoor, bytes: 100_000_000, parallel: 20}
	kernelUnix = transport{name: "kernel-unix", starts: inNamespace, door: unixDoor, bytes: 100_000_000, parallel: 200}
	kernelTCP  = transport{name: "kernel-tcp", starts: inNamespace, door: tcpDoor, bytes: 100_000_000, parallel: 200}
)

// qemuRows are QEMU's own framing at its plainest doors.
var qemuRows = []transport{
	qemuUnix,
	{name: "qemu-tcp", brief: true, needs: vmNeed, starts: inQEMU, boots: true, door: tcpDoor, bytes: 100_000_000, parallel: 5},
	{name: "qemu-fd", brief: true, needs: vmNeed, starts: inQEMU, boots: true, single: true, door: fdDoor, bytes: 100_000_000, parallel: 5},
	kernelUnix,
	kernelTCP,
	{name: "kernel-fd", starts: inNamespace, single: true, door: fdDoor, bytes: 100_000_000, parallel: 200},
}

func vmNeed(t *testing.T) { vm.Need(t) }

func (r transport) need(t *testing.T) {
	t.Helper()
	need(t)
	if r.needs != nil {
		r.needs(t)
	}
}

// serve is a daemon for the row, and where a guest is plugged in.
func (r transport) serve(t *testing.T, l *lab, args ...string) (*daemon, attach) {
	t.Helper()
	return r.door(r, t, l, append([]string{"--sandbox-folder", l.dir}, args...)...) // where forwards of unix sockets are added
}

func unixDoor(_ transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	t.Helper()
	d := l.serve(t, args...)
	return d, attach{unix: d.unix}
}

func tcpDoor(_ transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	t.Helper()
	d := l.serveAt(t, "", "control.sock", nil, append(args, "--qemu", "tcp:0")...)
	return d, attach{tcp: d.tcp}
}

func fdDoor(_ transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	t.Helper()
	ours, theirs := socketPair(t)
	d := l.serveAt(t, "", "control.sock", []*os.File{theirs}, append(args, "--qemu", "fd:3")...)
	theirs.Close()
	return d, attach{file: ours}
}

// attach is where a guest plugs in: one of these.
type attach struct {
	unix string
	tcp  string
	file *os.File
	// Of doors of other kinds:
	dial    func() (net.Conn, error)                // how a guest in a namespace comes by its stream
	framing stream.Framing                          // how frames stand on it; the zero one is QEMU's
	nd      *vm.Netdev                              // what QEMU is given
	ndFor   func(*testing.T) vm.Netdev              // the same, each guest its own
	open    bool                                    // QEMU makes a socket that the daemon, another user, is to write to
	tie     func(*testing.T, *os.File) (cut func()) // what a guest's TAP in a namespace is tied to, where that is no stream
	guest   *kernelGuest                            // the guest itself, where it was there before the door
}

func socketPair(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// boot starts a guest and waits for its lease and its IPv6 address.
func (r transport) boot(t *testing.T, d *daemon, at attach, name string) *guest {
	t.Helper()
	g := r.launch(t, d, at, name)
	g.configured(t)
	return g
}

// launch starts a guest, which asks for its lease by itself.
func (r transport) launch(t *testing.T, d *daemon, at attach, name string) *guest {
	t.Helper()
	g := &guest{name: name, mac: vm.MAC(name, 0), row: r, d: d}
	g.Guest = r.starts(t, d.lab, at, name, g.mac)
	return g
}

// reconnecting starts a guest that dials again when its wire breaks, or skips: those in namespaces all do.
func (r transport) reconnecting(t *testing.T, d *daemon, at attach, name string) *guest {
	t.Helper()
	if !r.boots {
		return r.launch(t, d, at, name)
	}
	_, v, err := vm.QEMU(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !v.CanReconnect() {
		t.Skipf("QEMU %s cannot reconnect a stream netdev, 8.0 is the first that can; the namespace's rows do it", v)
	}
	g := &guest{name: name, mac: vm.MAC(name, 0), row: r, d: d}
	g.Guest = startQEMU(t, d.lab, vm.Config{Name: name, NICs: []vm.NIC{{Netdev: at.netdev(t).Reconnect(100 * time.Millisecond)}}})
	return g
}

// inNamespace starts a guest that is a kernel's network stack in a namespace.
func inNamespace(t *testing.T, l *lab, at attach, name string, mac net.HardwareAddr) Guest {
	t.Helper()
	k := startKernelGuest(t, name, mac)
	k.plug(t, l, at)
	g := &guest{Guest: k, name: name}
	g.run(t, "%s", dhcpUp(name))
	return k
}

// inQEMU starts a guest in a QEMU.
func inQEMU(t *testing.T, l *lab, at attach, name string, mac net.HardwareAddr) Guest {
	t.Helper()
	cfg := vm.Config{Name: name, NICs: []vm.NIC{{Netdev: at.netdev(t), MAC: mac}}}
	if at.open {
		cfg.Wrap = []string{"sh", "-c", "umask 0; exec \"$@\"", "sh"}
	}
	return startQEMU(t, l, cfg)
}

func (a attach) netdev(t *testing.T) vm.Netdev {
	switch {
	case a.nd != nil:
		return *a.nd
	case a.ndFor != nil:
		return a.ndFor(t)
	case a.tcp != "":
		return vm.StreamTCP(netip.MustParseAddrPort(a.tcp))
	case a.file != nil:
		return vm.StreamFD(a.file)
	}
	return vm.StreamUnix(a.unix)
}

// startQEMU starts QEMU on the lab's host.
func startQEMU(t *testing.T, l *lab, cfg vm.Config) *vm.Guest {
	t.Helper()
	cfg.Log = t.Logf
	if _, _, err := vm.Image(t.Context(), t.Logf); err != nil { // not in a namespace without the mirror
		t.Fatal(err)
	}
	var q *vm.Guest
	err := l.host.Do(func() (err error) {
		q, err = vm.Start(context.WithoutCancel(t.Context()), cfg)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(q.Console())
		}
		q.Close()
	})
	return q
}

// dhcpUp brings eth0 up as init does in a QEMU guest (e2e/vm/init.sh).
func dhcpUp(name string) string {
	return `ip link set eth0 up
udhcpc -i eth0 -f -t 8 -T 1 -A 2 -S -O mtu -O search -O lease -x hostname:` + name + ` -s /etc/udhcpc -p /run/udhcpc.pid >/run/udhcpc.log 2>&1 &`
}

// lease is what udhcpc was told, by its own names; nil while it has none.
func (g *guest) lease(t *testing.T) map[string]string {
	t.Helper()
	out, _, _, err := g.try(t, "cat /run/lease")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			m[k] = v
		}
	}
	return m
}

// configured waits until the guest has its addresses.
func (g *guest) configured(t *testing.T) {
	t.Helper()
	prefix6 := g.d.status(t).Networks[0].Prefix6
	wait(t, "guest "+g.name+" has its addresses", func() (err error) {
		if g.addr4, err = netip.ParseAddr(g.lease(t)["ip"]); err != nil {
			out, _, _, _ := g.try(t, "cat /run/udhcpc.log; ip addr")
			return fmt.Errorf("no lease: %s", out)
		}
		if g.addr6 = g.slaac(t, prefix6); !g.addr6.IsValid() {
			out, _, _, _ := g.try(t, "ip -6 addr; ip -6 route")
			return fmt.Errorf("no IPv6 address: %s", out)
		}
		return nil
	})
	if !g.row.boots {
		// Its duplicate address detection, which is off, would have told the network.
		g.run(t, "ping -c 1 -W 5 %s", g.d.status(t).Networks[0].Gateway6)
	}
}

// slaac is the guest's address in an IPv6 prefix, ready for use; the zero Addr without one.
func (g *guest) slaac(t *testing.T, p netip.Prefix) netip.Addr {
	t.Helper()
	for line := range strings.Lines(g.run(t, "ip -6 addr show dev eth0 scope global")) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "inet6" || strings.Contains(line, "tentative") {
			continue
		}
		if a, err := netip.ParsePrefix(f[1]); err == nil && p.Contains(a.Addr()) {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

// try runs a command and returns what it said and its exit status.
func (g *guest) try(t *testing.T, format string, args ...any) (stdout, stderr string, code int, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	command := fmt.Sprintf(format, args...)
	p, err := g.Start(ctx, command)
	if err != nil {
		return "", "", -1, err
	}
	defer context.AfterFunc(ctx, func() { p.Kill() })()
	exit, err := p.Wait(ctx)
	if err != nil {
		return "", "", exit.Code, fmt.Errorf("guest %s: %s: %w", g.name, command, err)
	}
	out, _ := io.ReadAll(p.Stdout)
	errs, _ := io.ReadAll(p.Stderr)
	return string(out), string(errs), exit.Code, nil
}

// run runs a command that must succeed.
func (g *guest) run(t *testing.T, format string, args ...any) string {
	t.Helper()
	out, errs, code, err := g.try(t, format, args...)
	if err == nil && code != 0 {
		err = fmt.Errorf("guest %s: %s: exit status %d: %s%s", g.name, fmt.Sprintf(format, args...), code, out, errs)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// json runs a command that prints a JSON object.
func (g *guest) json(t *testing.T, v any, format string, args ...any) {
	t.Helper()
	out := g.run(t, format, args...)
	if err := json.NewDecoder(strings.NewReader(out)).Decode(v); err != nil {
		t.Fatalf("guest %s: %s: %v in %q", g.name, fmt.Sprintf(format, args...), err, out)
	}
}

// job is a command that goes on beside the test.
type job struct {
	*channel.Proc
	lines *bufio.Scanner
}

// begin starts a command and kills it with the test.
func (g *guest) begin(t *testing.T, format string, args ...any) *job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := g.Start(ctx, fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill() })
	return &job{p, bufio.NewScanner(p.Stdout)}
}

// listen starts a server in the guest, waits until it listens, and returns its port.
func (g *guest) listen(t *testing.T, format string, args ...any) (uint16, *job) {
	t.Helper()
	j := g.begin(t, format, args...)
	var l struct{ Listening netip.AddrPort }
	j.next(t, &l)
	if l.Listening.Port() == 0 {
		t.Fatalf("guest %s: %s: it does not listen", g.name, fmt.Sprintf(format, args...))
	}
	return l.Listening.Port(), j
}

// next reads the job's next line of JSON.
func (j *job) next(t *testing.T, v any) {
	t.Helper()
	got := make(chan error, 1)
	go func() {
		if !j.lines.Scan() {
			got <- errors.New("it has ended")
			return
		}
		got <- json.Unmarshal(j.lines.Bytes(), v)
	}()
	select {
	case err := <-got:
		if err != nil {
			said, _ := io.ReadAll(io.LimitReader(j.Stderr, 4096))
			t.Fatalf("next line: %v: %s", err, said)
		}
	case <-time.After(patience):
		t.Fatalf("no line within %v", patience)
	}
}

// info is the guest as the daemon sees it.
func (g *guest) info(t *testing.T) (backend.GuestInfo, bool) {
	t.Helper()
	for _, i := range ask[[]backend.GuestInfo](t, g.d, "vm", "ls") {
		if i.MAC == g.mac.String() {
			return i, true
		}
	}
	return backend.GuestInfo{}, false
}

// kernelGuest is a Linux network stack in a namespace, with the QEMU guests' image for a root. Its TAP is bridged to
// the socket by this process, as QEMU would do it.
type kernelGuest struct {
	cmd    *exec.Cmd
	client *channel.Client
	tap    *os.File
	gone   chan struct{}
	br     *bridge // if its wire is a stream
	cut    func()  // ends the wire
}

// kernelGuestEnv makes the test's own binary the first process of a kernelGuest: "name mac root".
const kernelGuestEnv = "VMNETD_E2E_KERNEL_GUEST"

func startKernelGuest(t *testing.T, name string, mac net.HardwareAddr) *kernelGuest {
	t.Helper()
	root, err := guestRoot()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	talk, talkTheirs := socketPair(t)
	hand, handTheirs := socketPair(t)
	k := &kernelGuest{gone: make(chan struct{})}
	k.cmd = exec.Command(self)
	k.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), kernelGuestEnv + "=" + name + " " + mac.String() + " " + root}
	k.cmd.ExtraFiles = []*os.File{talkTheirs, handTheirs}
	var said output
	k.cmd.Stdout, k.cmd.Stderr = &said, &said
	// The end of the talk ends it, and its own namespace of processes all that it has started.
	k.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID,
		Setpgid:    true,
	}
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		k.cmd.Wait()
		close(k.gone)
	}()
	talkTheirs.Close()
	handTheirs.Close()
	conn, err := net.FileConn(talk)
	if err != nil {
		t.Fatal(err)
	}
	talk.Close()
	k.client = channel.NewClient(conn)
	t.Cleanup(func() {
		k.client.Close()
		k.cmd.Process.Kill()
		<-k.gone
		if k.cut != nil {
			k.cut()
		} else if k.tap != nil {
			k.tap.Close()
		}
		if t.Failed() && said.String() != "" {
			t.Logf("guest %s: %s", name, said.String())
		}
	})
	if k.tap, err = receiveFile(hand); err != nil {
		t.Fatalf("guest %s: %v: %s", name, err, said.String())
	}
	return k
}

// beKernelGuest is what the test's binary does inside the namespaces.
func beKernelGuest() error {
	f := strings.Fields(os.Getenv(kernelGuestEnv))
	name, mac, root := f[0], f[1], f[2]
	talk, hand := os.NewFile(3, "talk"), os.NewFile(4, "hand")
	syscall.CloseOnExec(3)
	syscall.CloseOnExec(4)
	at := func(p string) string { return root + p }
	if err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("/dev", at("/dev"), "", unix.MS_BIND|unix.MS_REC, ""),
		unix.Mount("proc", at("/proc"), "proc", 0, ""),
		unix.Mount("sys", at("/sys"), "sysfs", 0, ""),
		unix.Mount("run", at("/run"), "tmpfs", 0, ""),
		unix.Mount("tmp", at("/tmp"), "tmpfs", 0, ""),
		unix.Chroot(root),
		os.Chdir("/"),
		unix.Sethostname([]byte(name)),
	); err != nil {
		return err
	}
	os.Clearenv()
	os.Setenv("PATH", "/bin")
	os.Setenv("HOME", "/")
	tap, err := space.OpenTAP("eth0", false)
	if err != nil {
		return err
	}
	raw, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	// QEMU guests test their IPv6 addresses for duplicates, which takes a second; one kind of guest that does is enough.
	for path, value := range map[string]string{"router_solicitation_delay": "0", "accept_dad": "0"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/eth0/"+path, []byte(value), 0); err != nil {
			return err
		}
	}
	said, err := exec.Command("/bin/sh", "-c", "ip link set lo up && ip link set eth0 address "+mac).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, said)
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { // tap.Fd would make it block, at the other end too
		sent = unix.Sendmsg(int(hand.Fd()), []byte{0}, unix.UnixRights(int(fd)), nil, 0)
	}); err != nil || sent != nil {
		return errors.Join(err, sent)
	}
	tap.Close()
	hand.Close()
	return channel.Serve(talk)
}

func receiveFile(from *os.File) (*os.File, error) {
	c, err := net.FileConn(from)
	if err != nil {
		return nil, err
	}
	from.Close()
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(patience))
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.(*net.UnixConn).ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("no descriptor came: %v", err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "tap"), nil
}

func (k *kernelGuest) Start(ctx context.Context, command string) (*channel.Proc, error) {
	if err := k.client.Ready(ctx); err != nil {
		return nil, err
	}
	return k.client.Start(command)
}

// Kill ends the guest and its wire.
func (k *kernelGuest) Kill() error {
	if k.cut != nil {
		k.cut() // first: its kernel would end its programs' connections in good order
	}
	err := k.cmd.Process.Kill()
	<-k.gone
	return err
}

// plug attaches the guest's wire. At a path or a port it comes back when it breaks.
func (k *kernelGuest) plug(t *testing.T, l *lab, at attach) {
	t.Helper()
	if at.tie != nil {
		k.cut = at.tie(t, k.tap)
		return
	}
	dial := func() (net.Conn, error) {
		if at.tcp != "" {
			return l.host.dial("tcp", at.tcp)
		}
		return net.Dial("unix", at.unix)
	}
	if at.dial != nil {
		dial = at.dial
	}
	if at.framing.Prefix == 0 {
		at.framing = stream.QEMU
	}
	again := true
	if at.file != nil {
		c, err := net.FileConn(at.file)
		if err != nil {
			t.Fatal(err)
		}
		at.file.Close()
		dial, again = func() (net.Conn, error) { return c, nil }, false
	}
	greeted := func() (net.Conn, error) {
		c, err := dial()
		if err == nil {
			err = at.framing.Greet(c)
		}
		return c, err
	}
	c, err := greeted()
	if err != nil {
		t.Fatal(err)
	}
	if !again {
		greeted = nil
	}
	k.br = newBridge(k.tap, c, greeted, at.framing)
	k.cut = k.br.close
}

// bridge carries frames between a TAP and a stream, and dials again when the stream breaks, as QEMU's reconnect-ms does.
type bridge struct {
	framing stream.Framing

	tap  *os.File
	dial func() (net.Conn, error) // nil: never again
	conn atomic.Pointer[net.Conn]
	done chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	most    atomic.Int64  // what the guest's card takes; 0: any frame
	wmu     sync.Mutex    // held across a whole frame
	dialled atomic.Int64  // connections so far
	deaf    chan struct{} // while it is there, nothing is read from the stream
	dmu     sync.Mutex
}

func newBridge(tap *os.File, c net.Conn, dial func() (net.Conn, error), f stream.Framing) *bridge {
	b := &bridge{framing: f, tap: tap, dial: dial, done: make(chan struct{})}
	b.conn.Store(&c)
	b.dialled.Store(1)
	b.wg.Add(2)
	go b.up()
	go b.down(c)
	return b
}

func (b *bridge) close() {
	b.once.Do(func() {
		close(b.done)
		b.tap.Close()
		(*b.conn.Load()).Close()
	})
	b.wg.Wait()
}

func (b *bridge) up() {
	defer b.wg.Done()
	p := b.framing.Prefix
	buf := make([]byte, p+65535+18)
	for {
		n, err := b.tap.Read(buf[p:])
		if err != nil {
			return
		}
		b.framing.Put(buf, n)
		b.wmu.Lock()
		(*b.conn.Load()).Write(buf[:p+n]) // its end is seen below
		b.wmu.Unlock()
	}
}

// listen makes the guest read, or not.
func (b *bridge) listen(on bool) {
	b.dmu.Lock()
	defer b.dmu.Unlock()
	if !on && b.deaf == nil {
		b.deaf = make(chan struct{})
	} else if on && b.deaf != nil {
		close(b.deaf)
		b.deaf = nil
	}
}

func (b *bridge) hear() {
	b.dmu.Lock()
	deaf := b.deaf
	b.dmu.Unlock()
	if deaf != nil {
		select {
		case <-deaf:
		case <-b.done:
		}
	}
}

func (b *bridge) down(c net.Conn) {
	defer b.wg.Done()
	for {
		b.copy(c)
		c.Close()
		if b.dial == nil {
			return
		}
		for {
			select {
			case <-b.done:
				return
			case <-time.After(20 * time.Millisecond):
			}
			n, err := b.dial()
			if err != nil {
				continue
			}
			c = n
			b.wmu.Lock()
			b.conn.Store(&c)
			b.wmu.Unlock()
			b.dialled.Add(1)
			select {
			case <-b.done: // close has seen the one before
				c.Close()
			default:
			}
			break
		}
	}
}

func (b *bridge) copy(c net.Conn) {
	r := bufio.NewReaderSize(c, 256<<10)
	frame := make([]byte, 65535+18)
	for {
		b.hear()
		head, err := r.Peek(b.framing.Prefix)
		if err != nil {
			return
		}
		n := b.framing.Length(head)
		r.Discard(b.framing.Prefix)
		if n > len(frame) {
			return
		}
		if _, err := io.ReadFull(r, frame[:n]); err != nil {
			return
		}
		if most := b.most.Load(); most == 0 || int64(n) <= most {
			b.tap.Write(frame[:n]) // a TAP that is down drops it
		}
	}
}
