// Package vm makes real Linux guests and drives them: QEMU, Debian's cloud kernel, busybox, and a
// program of ours (e2e/guestbin) that runs the test's commands and sends and checks its traffic.
//
// A test boots one and uses it:
//
//	g := vm.Boot(t, vm.Config{Name: "alpha", NICs: []vm.NIC{{Netdev: vm.StreamUnix(sock)}}})
//	lease := g.WaitLease(t)                       // what DHCP gave to eth0
//	out := g.Must(t, "ping -c 1 10.0.2.2")        // fails the test when it fails
//	var r traffic.Report
//	g.JSON(t, &r, "guest tcp -send 1000000 %s", addr)
//	p := g.MustStart(t, "guest stream 10.0.2.2:9000")  // goes on beside the test
//	g.Kill()                                      // the guest's kill -9
//
// or, outside a test, does the same with Start, WaitReady, Run, Close.
//
// In the guest there are busybox with all its applets (but not wget -T, which crashes in Debian
// 12's), a web server on port 80 that serves /www
// ("hello from NAME"), and /bin/guest (guest -h). Commands go over a virtio-serial port, not over
// the network, so a broken network can be looked at from inside. A guest whose test died notices
// the end of that port and switches itself off.
//
// It boots in about two seconds without KVM. Nothing is installed and no rights are needed; QEMU
// itself must be there. Environment: VMNETD_QEMU names another QEMU, VMNETD_ACCEL=tcg|kvm skips
// the trial of KVM, VMNETD_CACHE moves the cache folder, CI=true turns a skip for want of QEMU into a
// failure.
//
// It makes no guests with disks, other distributions or other processors than amd64, and measures
// no speed.
package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/e2e/vm/channel"
)

// Config is a guest to be started. The zero value is a guest without a network card.
type Config struct {
	// Name is the guest's host name, told to DHCP; "" for "guest".
	Name string
	// NICs are its network cards.
	NICs []NIC
	// Net is what init does with eth0: "" or "dhcp" brings it up and asks for a lease, "none"
	// only brings it up (IPv6 configures itself then, IPv4 does not), "down" leaves it alone.
	Net string
	// Wrap goes before QEMU on the command line, such as {"vmnetd", "run", "-p", "2222:22",
	// "--"}; what it runs must pass QEMU's arguments on. NICs is then usually empty.
	Wrap []string
	// Env is added to the environment of QEMU, or of Wrap.
	Env []string
	// Args are more arguments for QEMU.
	Args []string
	// Append is more for the kernel's command line.
	Append string
	// Memory is in MiB; 0 for 192, twice what the image and its programs use.
	Memory int
	// Accel is kvm or tcg; "" for what Accel says.
	Accel string
	// Kernel and Initrd are to be booted; "" for what Image makes.
	Kernel, Initrd string
	// Log hears of what may take longer than a second; nil for nobody.
	Log func(format string, args ...any)
}

// Guest is a running guest. Its methods may be called from any goroutine.
type Guest struct {
	// Name is its host name, Accel how it runs, Version QEMU's, MACs its cards' addresses.
	Name    string
	Accel   string
	Version Version
	MACs    []net.HardwareAddr

	dir      string // sockets, console; removed by Close
	cmd      *exec.Cmd
	wrapped  bool
	output   tail // QEMU's own words, and those of Wrap
	listener net.Listener

	attached chan struct{} // closed once client is set
	client   *channel.Client
	exited   chan struct{} // closed once exit is set
	exit     error
	wg       sync.WaitGroup
	release  func() bool // unties the guest's life from ctx
	closing  sync.Once
}

// Start starts a guest and returns at once; WaitReady waits for its boot. The end of ctx kills it.
// Close it in any case.
func Start(ctx context.Context, cfg Config) (*Guest, error) {
	qemu, version, err := QEMU(ctx)
	if err != nil {
		return nil, err
	}
	if cfg.Name == "" {
		cfg.Name = "guest"
	}
	if cfg.Memory == 0 {
		cfg.Memory = 192
	}
	if cfg.Kernel == "" {
		if cfg.Kernel, cfg.Initrd, err = Image(ctx, cfg.Log); err != nil {
			return nil, err
		}
	}
	if cfg.Accel == "" {
		if cfg.Accel, _, err = Accel(ctx, cfg.Log); err != nil {
			return nil, err
		}
	}
	g := &Guest{
		Name: cfg.Name, Accel: cfg.Accel, Version: version, wrapped: len(cfg.Wrap) > 0,
		attached: make(chan struct{}), exited: make(chan struct{}),
	}
	if g.dir, err = tempDir(); err != nil {
		return nil, err
	}
	args, files, err := g.arguments(cfg)
	if err != nil {
		os.RemoveAll(g.dir)
		return nil, err
	}
	if g.listener, err = net.Listen("unix", g.path("agent")); err != nil {
		os.RemoveAll(g.dir)
		return nil, err
	}
	line := append(append(append([]string{}, cfg.Wrap...), qemu), args...)
	g.cmd = exec.Command(line[0], line[1:]...)
	g.cmd.Env = append(os.Environ(), cfg.Env...)
	g.cmd.Stdout, g.cmd.Stderr = &g.output, &g.output
	g.cmd.ExtraFiles = files
	// What QEMU or Wrap left behind may hold the pipes; their words are not worth waiting for.
	g.cmd.WaitDelay = time.Second
	ownGroup(g.cmd)
	if err := g.cmd.Start(); err != nil {
		g.listener.Close()
		os.RemoveAll(g.dir)
		return nil, fmt.Errorf("starting %s: %w", line[0], err)
	}
	g.wg.Add(2)
	go g.accept()
	go g.wait()
	g.release = context.AfterFunc(ctx, g.killAll)
	return g, nil
}

// tempDir is a folder whose path leaves room for a socket's name: a unix address holds 108 bytes.
func tempDir() (string, error) {
	dir, err := os.MkdirTemp("", "vm-")
	if err == nil && len(dir) > 90 {
		os.Remove(dir)
		dir, err = os.MkdirTemp("/tmp", "vm-")
	}
	return dir, err
}

func (g *Guest) path(name string) string { return filepath.Join(g.dir, name) }

func (g *Guest) arguments(cfg Config) (args []string, files []*os.File, err error) {
	// rdrand feeds the guest's random numbers: without it the first to need some waits for them.
	cpu := "qemu64,+rdrand"
	if cfg.Accel == "kvm" {
		cpu = "host"
	}
	// panic=-1 with -no-reboot: a guest that crashes ends QEMU. The kernel's self-tests of its
	// ciphers would take a fifth of an emulated boot.
	kernel := "console=ttyS0 quiet panic=-1 cryptomgr.notests vm_name=" + cfg.Name
	if cfg.Net != "" {
		kernel += " vm_net=" + cfg.Net
	}
	if cfg.Append != "" {
		kernel += " " + cfg.Append
	}
	args = []string{
		"-name", escape(cfg.Name), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", cfg.Accel, "-cpu", cpu, "-m", strconv.Itoa(cfg.Memory),
		"-kernel", cfg.Kernel, "-initrd", cfg.Initrd, "-append", kernel,
		"-chardev", "file,id=console,path=" + escape(g.path("console")), "-serial", "chardev:console",
		"-chardev", "socket,id=agent,server=off,path=" + escape(g.path("agent")),
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=vmnetd.agent",
		"-pidfile", g.path("pid"),
	}
	for i, n := range cfg.NICs {
		fd := 3 + len(files) // exec.Cmd numbers them so
		if n.file != nil {
			files = append(files, n.file)
		}
		id := fmt.Sprintf("n%d", i)
		dev, err := n.argument(id, g.Version, fd)
		if err != nil {
			return nil, nil, err
		}
		mac := n.MAC
		if mac == nil {
			mac = MAC(cfg.Name, i)
		}
		g.MACs = append(g.MACs, mac)
		// No boot ROM: the kernel is handed in, and looking for a network boot takes time.
		card := fmt.Sprintf("virtio-net-pci,netdev=%s,mac=%s,romfile=", id, mac)
		if n.Options != "" {
			card += "," + n.Options
		}
		args = append(args, "-netdev", dev, "-device", card)
	}
	return append(args, cfg.Args...), files, nil
}

// accept waits for QEMU to connect the command channel.
func (g *Guest) accept() {
	defer g.wg.Done()
	conn, err := g.listener.Accept()
	if err != nil {
		return // closed: QEMU has ended, or Close was called
	}
	g.listener.Close()
	g.client = channel.NewClient(conn)
	close(g.attached)
}

func (g *Guest) wait() {
	defer g.wg.Done()
	g.exit = g.cmd.Wait()
	close(g.exited)
	g.listener.Close()
}

// WaitReady returns when the guest has booted and takes commands; its lease may come later. Its
// error says what stood on the console.
func (g *Guest) WaitReady(ctx context.Context) error {
	select {
	case <-g.attached:
	case <-g.exited:
		return fmt.Errorf("guest %s: QEMU has ended: %w", g.Name, g.describeExit())
	case <-ctx.Done():
		return fmt.Errorf("guest %s: not booted: %w\n%s", g.Name, context.Cause(ctx), g.Console())
	}
	err := g.client.Ready(ctx)
	if err == nil {
		return nil
	}
	// The channel breaks a moment before QEMU's last words can be had.
	if ctx.Err() == nil {
		select {
		case <-g.exited:
			return fmt.Errorf("guest %s: QEMU has ended: %w", g.Name, g.describeExit())
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("guest %s: no answer: %w\n%s", g.Name, err, g.Console())
}

func (g *Guest) describeExit() error {
	said := strings.TrimSpace(g.output.String())
	if said == "" {
		said = strings.TrimSpace(g.Console())
	}
	if g.exit == nil {
		return errors.New("exit status 0: " + said)
	}
	return fmt.Errorf("%w: %s", g.exit, said)
}

// Run runs a command with the guest's sh and returns what it printed and its exit status. The
// error is for what kept it from running or ending: the guest went away, or ctx ended, and then the
// command is killed. What it printed to its standard error stands in Console. A job left in the
// background must have its output redirected, or it gets SIGPIPE; Start keeps one.
func (g *Guest) Run(ctx context.Context, command string) (stdout string, code int, err error) {
	stdout, stderr, code, err := g.run(ctx, command)
	if stderr != "" {
		fmt.Fprintf(&g.output, "guest %s: %s: %s\n", g.Name, command, strings.TrimSpace(stderr))
	}
	return stdout, code, err
}

func (g *Guest) run(ctx context.Context, command string) (stdout, stderr string, code int, err error) {
	p, err := g.Start(ctx, command)
	if err != nil {
		return "", "", -1, err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Kill() }) // the guest may be gone: Wait says so
	defer stop()
	// Wait first: it ends with ctx even in a guest that answers nothing any more.
	exit, err := p.Wait(ctx)
	if err != nil {
		return "", "", exit.Code, fmt.Errorf("guest %s: %s: %w", g.Name, command, err)
	}
	out, err := io.ReadAll(p.Stdout)
	if err != nil {
		return string(out), "", exit.Code, fmt.Errorf("guest %s: %s: %w", g.Name, command, err)
	}
	complaint, _ := io.ReadAll(p.Stderr) // full or not, it is only shown
	return string(out), string(complaint), exit.Code, nil
}

// Output is Run for a command that must succeed: another exit status is an error that has what
// the command complained about.
func (g *Guest) Output(ctx context.Context, command string) (string, error) {
	out, stderr, code, err := g.run(ctx, command)
	if err == nil && code != 0 {
		err = fmt.Errorf("guest %s: %s: exit status %d: %s", g.Name, command, code, strings.TrimSpace(out+stderr))
	}
	return out, err
}

// Start starts a command that goes on beside the caller, who reads its output and waits for it, or
// leaves it to the guest's end.
func (g *Guest) Start(ctx context.Context, command string) (*channel.Proc, error) {
	if err := g.WaitReady(ctx); err != nil {
		return nil, err
	}
	p, err := g.client.Start(command)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %s: %w", g.Name, command, err)
	}
	return p, nil
}

// WriteFile puts a file into the guest.
func (g *Guest) WriteFile(ctx context.Context, path string, body []byte) error {
	p, err := g.Start(ctx, "cat >"+Quote(path))
	if err != nil {
		return err
	}
	if _, err := p.Write(body); err != nil {
		return err
	}
	if err := p.CloseWrite(); err != nil {
		return err
	}
	exit, err := p.Wait(ctx)
	if err == nil && exit.Code != 0 {
		said, _ := io.ReadAll(p.Stderr)
		err = fmt.Errorf("guest %s: writing %s: %s", g.Name, path, bytes.TrimSpace(said))
	}
	return err
}

// Quote makes one word of s for the guest's sh.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Console is what came over the guest's serial console so far, and what QEMU, Wrap and the
// guest's commands complained about: for a failed test to show.
func (g *Guest) Console() string {
	console, _ := os.ReadFile(g.path("console")) // not there yet: nothing was said
	const last = 16 << 10                        // a screenful or two of context; a panic has about 4 KiB
	if len(console) > last {
		console = append([]byte("…"), console[len(console)-last:]...)
	}
	return fmt.Sprintf("--- %s: console ---\n%s\n--- %s: messages ---\n%s", g.Name, bytes.TrimSpace(console), g.Name, g.output.String())
}

// PID is the process number of QEMU itself, also under Wrap; 0 while QEMU has not said it.
func (g *Guest) PID() int {
	if !g.wrapped {
		return g.cmd.Process.Pid
	}
	b, err := os.ReadFile(g.path("pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

// Signal sends a signal to the process that Start started: QEMU, or Wrap.
func (g *Guest) Signal(s os.Signal) error { return g.cmd.Process.Signal(s) }

// Kill ends QEMU with SIGKILL, as a crash would: no goodbye to anybody. Under Wrap only QEMU goes.
// It waits until the process is gone, or under Wrap until the channel is.
func (g *Guest) Kill() error {
	if !g.wrapped {
		err := g.cmd.Process.Kill()
		<-g.exited
		return err
	}
	pid := g.PID()
	if pid <= 0 {
		return fmt.Errorf("guest %s: QEMU's process number is not known yet", g.Name)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	select {
	case <-g.attached:
		<-g.client.Done()
	case <-g.exited:
	}
	return nil
}

// PowerOff switches the guest off from inside and waits for QEMU, or Wrap, to end; it returns how.
func (g *Guest) PowerOff(ctx context.Context) error {
	if _, err := g.Start(ctx, "poweroff -f"); err != nil {
		return err
	}
	return g.Wait(ctx)
}

// Done is closed when the process that Start started has ended.
func (g *Guest) Done() <-chan struct{} { return g.exited }

// Wait waits for the process that Start started; nil for exit status 0, an *exec.ExitError for
// another.
func (g *Guest) Wait(ctx context.Context) error {
	select {
	case <-g.exited:
		return g.exit
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// killAll ends the whole group, so that QEMU goes with its Wrap.
func (g *Guest) killAll() {
	select {
	case <-g.exited:
		// The group's number may be another's by now, unless QEMU outlived its Wrap in it.
		if pid := g.PID(); !g.wrapped || pid <= 0 || !inGroup(pid, g.cmd.Process.Pid) {
			return
		}
	default:
	}
	killGroup(g.cmd)
}

// Close kills what still runs, waits for it and removes the guest's files. Console is empty of the
// guest's own words afterwards.
func (g *Guest) Close() error {
	g.closing.Do(func() {
		g.release()
		g.killAll()
		g.listener.Close()
		g.wg.Wait()
		if g.client != nil {
			g.client.Close()
		}
		os.RemoveAll(g.dir)
	})
	return nil
}

// tail keeps the end of what is written to it: a process that talks forever must not fill memory.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 64 << 10 // some 600 lines

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	if n := len(t.b) - tailSize; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}
