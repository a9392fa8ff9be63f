//go:build unix

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/lab/guest"
	"github.com/vmnetd/vmnetd/qemu"
)

const (
	// smallMemory is the small guest's, in MiB: twice what it uses; diskMemory boots a distribution.
	smallMemory, diskMemory = 192, 512
	// qemuPatience is how long QEMU may take until its monitor answers: opening disks on a busy machine, no booting.
	qemuPatience = 30 * time.Second
	// wireBuffer is as package qemu sets it at our end: some forty of the longest frames.
	wireBuffer = 4 << 20
)

// virtual is a node that is a virtual machine of QEMU's. All that it is given are open descriptors: its wires, its serial
// line, its agent's port, its monitor. So nothing is left of it when it ends.
type virtual struct {
	spawned
	small   *guest.Image // nil: it boots its own kernel or disk
	monitor *monitor
}

// newQEMU is a node that is a virtual machine.
func newQEMU(b *bench) (machine, error) {
	return &virtual{spawned: newSpawned(b, "it has no agent: set 'agent: true' and install qemu-guest-agent in it, or use 'lab ssh'")}, nil
}

// isSmall says whether a node is the small guest.
func isSmall(b *bench) bool { return b.node.Kernel == "" && b.node.Disk == "" }

func (v *virtual) start(ctx context.Context) error {
	program, version, err := findQEMU(ctx, v.b.node.QEMU)
	if err != nil {
		return err
	}
	accel, err := accelOf(ctx, v.b, program)
	if err != nil {
		return err
	}
	args, err := v.machineArgs(ctx, program, accel)
	if err != nil {
		return err
	}
	var files []*os.File
	var conns []net.Conn
	failed := func(err error) error {
		for _, f := range files {
			f.Close()
		}
		for _, c := range conns {
			c.Close()
		}
		return err
	}
	// inherit makes a socket and returns our end and the number that the other has in QEMU.
	inherit := func(what string) (net.Conn, int, error) {
		c, f, err := socketPair(syscall.SOCK_STREAM, what)
		if err != nil {
			return nil, 0, err
		}
		files, conns = append(files, f), append(conns, c)
		return c, 2 + len(files), nil
	}
	// Cards are the first devices, so that their places do not change with what else there is.
	var wires []net.Conn
	for i := range v.b.node.Interfaces {
		c, fd, err := inherit("wire")
		if err != nil {
			return failed(err)
		}
		_ = syscall.SetsockoptInt(int(files[fd-3].Fd()), syscall.SOL_SOCKET, syscall.SO_SNDBUF, wireBuffer) // as much as the system allows
		wires = append(wires, c)
		args = append(args, v.card(i, fd, version)...)
	}
	serial, serialFD, err := inherit("console")
	if err != nil {
		return failed(err)
	}
	qmp, qmpFD, err := inherit("monitor")
	if err != nil {
		return failed(err)
	}
	args = append(args,
		"-chardev", fmt.Sprintf("socket,id=console0,fd=%d", serialFD), "-serial", "chardev:console0",
		"-chardev", fmt.Sprintf("socket,id=monitor0,fd=%d", qmpFD), "-mon", "chardev=monitor0,mode=control")
	var agent net.Conn
	if v.b.node.Agent || isSmall(v.b) {
		c, fd, err := inherit("agent")
		if err != nil {
			return failed(err)
		}
		agent = c
		args = append(args, "-device", "virtio-serial-pci", "-chardev", fmt.Sprintf("socket,id=agent0,fd=%d", fd),
			"-device", "virtserialport,chardev=agent0,name="+guest.PortName)
	}
	if v.b.node.Disk != "" {
		d, err := openDisk(ctx, v.file(v.b.node.Disk), v.b.node.DiskFormat, v.b.node.Overlay, v.b.keep)
		if err != nil {
			return failed(err)
		}
		args = append(args, d.arguments()...)
	}
	args = append(args, "-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0")
	args = append(args, v.b.node.Args...)

	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), v.b.env...)
	cmd.Dir = v.b.base
	v.b.log.Debug("starting QEMU", "program", program, "args", args)
	started := files
	files = nil // startProcess closes them
	if v.p, err = startProcess(cmd, started); err != nil {
		return failed(fmt.Errorf("starting QEMU: %w", err))
	}
	v.monitor = newMonitor(qmp)
	v.wg.Go(func() { _ = v.b.console.Carry(serial) }) // the node is gone before it begins, at worst
	if agent != nil {
		v.agent = newQGA(agent)
	}
	for i, c := range wires {
		v.b.plug(i, qemu.NewLink(c))
	}
	v.wg.Go(func() {
		<-v.p.ended
		v.p.rest()        // or a helper of its would hold our sockets
		<-v.monitor.ended // what it said last
		v.exit, v.err = v.p.exit()
		if v.err == nil && v.monitor.crashed() {
			v.exit, v.err = 1, errors.New("its kernel crashed, or it restarted itself: 'lab console' has what it said")
		}
		if v.agent != nil {
			v.agent.Close()
		}
		v.monitor.Close()
		serial.Close()
		close(v.over)
	})

	// It runs once its monitor speaks: disks are open then, and devices made.
	wait := time.NewTimer(qemuPatience)
	defer wait.Stop()
	select {
	case <-v.monitor.ready:
		return nil
	case <-v.over:
		if v.err != nil {
			return v.err
		}
		return errors.New("QEMU has ended at once")
	case <-wait.C:
		return fmt.Errorf("QEMU's monitor says nothing in %v: %s", qemuPatience, &v.p.said)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// machineArgs are those of the machine without its devices.
func (v *virtual) machineArgs(ctx context.Context, program, accel string) ([]string, error) {
	n := v.b.node
	cpu, memory, machine := n.CPU, n.Memory, n.Machine
	x86 := strings.Contains(filepath.Base(program), "x86_64") || strings.Contains(filepath.Base(program), "i386")
	if machine == "" && !x86 {
		machine = "virt" // of arm and riscv, which have no default
	}
	if cpu == "" {
		switch {
		case accel == "kvm" || accel == "hvf":
			cpu = "host"
		case isSmall(v.b) && x86:
			// rdrand feeds its random numbers: the first to need some would wait. What else "max" has is slow to emulate.
			cpu = "qemu64,+rdrand"
		case x86:
			// Distributions want more than QEMU's own default has (x86-64-v2). Page tables of five levels are slow here.
			cpu = "max,-la57"
		default:
			cpu = "max"
		}
	}
	if memory == 0 {
		memory = diskMemory
		if isSmall(v.b) {
			memory = smallMemory
		}
	}
	args := []string{"-name", escape(n.Name), "-nodefaults", "-no-user-config", "-display", "none"}
	if machine != "" {
		args = append(args, "-machine", machine)
	}
	args = append(args, "-accel", accel, "-cpu", cpu, "-m", strconv.Itoa(memory), "-smp", strconv.Itoa(max(n.CPUs, 1)))
	if v.b.seed != "" {
		// The older name of the two: both old and new cloud-init know it (its 24.1 deprecates it, 22.4 needs it).
		args = append(args, "-smbios", "type=1,serial="+escape("ds=nocloud-net;s="+v.b.seed))
	}
	switch {
	case isSmall(v.b):
		im, err := guest.Make(ctx, v.logf)
		if err != nil {
			return nil, err
		}
		v.small = im
		initrd, err := im.For(v.b.keep, smallNode(v.b, ""))
		if err != nil {
			return nil, fmt.Errorf("small guest: %w", err)
		}
		// A crash is its end: nothing of it lasts that a second boot would find.
		args = append(args, "-no-reboot", "-kernel", im.Kernel, "-initrd", initrd, "-append", strings.TrimSpace(im.Append+" "+n.Append))
	case n.Kernel != "":
		args = append(args, "-kernel", v.file(n.Kernel))
		if n.Initrd != "" {
			args = append(args, "-initrd", v.file(n.Initrd))
		}
		line := n.Append
		if v.b.seed != "" && !strings.Contains(line, "ds=") {
			line += " ds=nocloud-net;s=" + v.b.seed // some of 2023 do not look at the firmware's
		}
		if line = strings.TrimSpace(line); line != "" {
			args = append(args, "-append", line)
		}
	}
	return args, nil
}

// card are the arguments of one interface, whose wire has descriptor fd.
func (v *virtual) card(i, fd int, version qemuVersion) []string {
	f := &v.b.node.Interfaces[i]
	wire := fmt.Sprintf("stream,id=wire%d,addr.type=fd,addr.str=%d", i, fd)
	if !version.atLeast(7, 2) {
		wire = fmt.Sprintf("socket,id=wire%d,fd=%d", i, fd) // the same framing
	}
	// No boot ROM: looking for a network boot takes time, and the disk or kernel is there.
	card := fmt.Sprintf("virtio-net-pci,netdev=wire%d,id=card%d,mac=%s,romfile=", i, i, f.MAC)
	if mtu := mtuOf(v.b, i); mtu > 0 {
		card += fmt.Sprintf(",host_mtu=%d", mtu)
	}
	return []string{"-netdev", wire, "-device", card}
}

func (v *virtual) begin(ctx context.Context) error {
	if !isSmall(v.b) || len(v.b.node.Command) == 0 {
		return nil
	}
	return beginByAgent(ctx, v.b, v.agent)
}

// stop presses the power button of a machine with a disk, which may have something to write; the others have all in memory.
func (v *virtual) stop(ctx context.Context) error {
	if v.p == nil {
		return nil
	}
	if v.b.node.Disk != "" && v.monitor.powerdown(ctx) == nil {
		select {
		case <-v.over:
		case <-ctx.Done():
		}
	}
	v.p.signal(syscall.SIGTERM)
	if v.b.node.Disk != "" {
		ctx = context.WithoutCancel(ctx) // a guest that did not hear its button is no reason to lose what QEMU has to write
	}
	return v.end(ctx)
}

// qemuVersion is QEMU's.
type qemuVersion struct{ major, minor int }

func (v qemuVersion) atLeast(major, minor int) bool {
	return v.major > major || v.major == major && v.minor >= minor
}

var (
	qemuVersionLine = regexp.MustCompile(`version (\d+)\.(\d+)`)
	// qemuVersions are of those that were asked, by path and time of the program: asking costs as much as a tenth of a boot.
	qemuVersions sync.Map
)

// findQEMU finds a program: the one said, or this machine's own.
func findQEMU(ctx context.Context, name string) (path string, v qemuVersion, err error) {
	if name == "" {
		name = os.Getenv("VMNETD_QEMU")
	}
	if name == "" {
		name = "qemu-system-" + qemuArch()
	}
	if path, err = exec.LookPath(name); err != nil {
		return "", v, fmt.Errorf("no QEMU: %w (on Debian: apt-get install qemu-system)", err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return "", v, err
	}
	key := fmt.Sprint(path, fi.ModTime())
	if known, ok := qemuVersions.Load(key); ok {
		return path, known.(qemuVersion), nil
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", v, fmt.Errorf("%s --version: %w", path, err)
	}
	m := qemuVersionLine.FindSubmatch(out)
	if m == nil {
		return "", v, fmt.Errorf("%s does not say which QEMU it is", path)
	}
	v.major, _ = strconv.Atoi(string(m[1])) // digits
	v.minor, _ = strconv.Atoi(string(m[2]))
	qemuVersions.Store(key, v)
	return path, v, nil
}

// qemuArch is this machine's processor as QEMU calls it.
func qemuArch() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}
