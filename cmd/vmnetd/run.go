package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/qemu"
	"github.com/vmnetd/vmnetd/vfkit"
)

func runCommand() *cobra.Command {
	var f serveFlags // those of them that addRun adds
	n, box := &f.n, &f.box
	var ns spaceFlags
	var record captureFlags
	var sf serviceFlags
	var logFile, mac string
	c := &cobra.Command{
		Use:   "run [-p RULE]... [flags] -- COMMAND [ARGUMENT]...",
		Short: "Run one command with a network of its own",
		Long: `Run one command with a network of its own, which ends with it.

  vmnetd run -p 2222:22 -- qemu-system-x86_64 -m 1G disk.img

A QEMU command is given what it misses: -netdev with the wire, over an inherited descriptor, and a virtio network card.
The card's MAC comes from the command's -uuid, else its -name, else the current folder, so that it stays the same;
--mac sets another. To say more, use our word in the command:

  -netdev vmnetd[,id=ID]                      where the wire goes; a -device that names ID is then the card
  -nic vmnetd[,model=MODEL][,mac=MAC]         as with QEMU's own -nic

A -netdev with id=vmnetd of the user's own is left as it is. With --mtu auto a virtio card's guest is told an MTU of
65520, or what the card's host_mtu says, and any other card's 1500; a virtio card that is added has host_mtu, which
guests go by that do not ask DHCP for an MTU. Any other command, a script around QEMU too, finds the
wire in descriptor $VMNETD_FD, each Ethernet frame behind its length in 32 bits, big-endian; if our word is among its
arguments, they are treated as QEMU's. A vfkit or krunkit command is given --device virtio-net with a datagram socket's
descriptor; to say more, write --device virtio-net,vmnetd[,mac=MAC], for krunkit with offloading=on or off too. $VMNETD_CONTROL is the control socket, for 'vmnetd status' and its like; it is
in a private folder that goes at the end, unless --control names one.

With --netns, on Linux, any command has a network namespace of its own instead, with an interface on this network, DNS,
ping, and nothing else; ordinary users may do that, where the system lets them make user namespaces. The command sees its
own user and has no rights there that it has not here; with --map-root it is root in there, for what makes interfaces or
mounts itself (Firecracker, container runtimes). Root's commands stay root's.

  vmnetd run --netns -p 8080:8000 -- python3 -m http.server

With --config, a file says what flags say, as with 'vmnetd serve': one network, without doors. 'vmnetd reload' has it read
again.

The command has our terminal and is in our process group: what is typed, ^C or ^Z, it gets by itself. Signals that
are sent to vmnetd (INT, TERM, HUP, QUIT, USR1, USR2) are passed on. On Linux, when vmnetd is killed the command gets
SIGTERM, since its network is gone for good; who wants a VM to outlive its network uses 'vmnetd serve'.

Exit status: the command's, or 128 and the signal that ended it; 126 if it cannot be executed, 127 if it is not
found, 1 if the network failed, 2 if the command line was wrong.`,
		Args: args(func(c *cobra.Command, a []string) error {
			if len(a) == 0 {
				return errors.New("run: which command? as in: vmnetd run -- qemu-system-x86_64 disk.img")
			}
			return nil
		}),
	}
	f.addRun(c.Flags())
	ns.add(c.Flags())
	record.add(c.Flags())
	sf.add(c.Flags())
	c.Flags().StringVar(&logFile, "log-file", "", "`FILE` that the log is appended to (default stderr)")
	c.Flags().StringVar(&mac, "mac", "", "`MAC` of the card that is added")
	c.Flags().SetInterspersed(false) // flags behind the command's name are the command's
	c.RunE = func(c *cobra.Command, a []string) (err error) {
		fd := freeDescriptor() // before we open any
		sv, err := sf.begin(false)
		if err != nil {
			return err
		}
		defer func() { sv.end(err) }()
		if err := f.readFile(c.Flags()); err != nil {
			return err
		}
		ctl := f.control
		var log io.Writer = os.Stderr
		if logFile != "" {
			f, err := os.OpenFile(logFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
			if err != nil {
				return err
			}
			defer f.Close()
			log = f
		}
		sink := n.openLog(log)
		defer sink.Close()
		cfg, err := n.config(sink)
		if err != nil {
			return err
		}
		program, err := find(a[0])
		if err != nil {
			return err
		}
		w := wire{fd: fd, mac: mac, mtu: n.mtu.card()}
		if mac == "" {
			dir, _ := os.Getwd()
			w.mac = vmMAC(a[1:], dir)
		} else if hw, err := net.ParseMAC(mac); err != nil || len(hw) != 6 || hw[0]&1 != 0 {
			return usagef("--mac %s: want six bytes of a single station, as 52:54:00:12:34:56", mac)
		}
		argv := a[1:]
		var messages *vfkit.Options // of a wire that is a datagram socket
		if ns.on {
			if mac == "" {
				dir, _ := os.Getwd()
				w.mac = vmMAC(nil, dir)
			}
			if n.mtu == 0 {
				large(&cfg)
			}
		} else if v, ok := messageVMMOf(program); ok {
			messages = new(vfkit.Options)
			if argv, *messages, err = v.addNetwork(argv, w); err != nil {
				return err
			}
		} else if wantsNetwork(program, argv) {
			if isQEMU(program) {
				// One that does not tell is taken for new: the old ones told.
				version, told := qemuVersion(c.Context(), program)
				if !told {
					cfg.Logger.Warn("no version from the command: taken for QEMU 7.2 or later", "program", program)
				}
				w.old = told && version < 702 // which brought -netdev stream
				if told && version < 209 {    // which brought host_mtu
					w.mtu = 0
				}
			}
			var at card
			if argv, at, err = addNetwork(program, argv, w); err != nil {
				return err
			}
			if n.mtu == 0 {
				at.set(&cfg)
			}
		}
		var own string // a private folder
		var by *way
		switch {
		case ns.on:
			by = wireSpace(ns, w.mac, program, func() string { return own })
		case messages != nil:
			by, err = wireMessages(program, fd, *messages)
		default:
			by, err = wireSocket(program, fd)
		}
		if err != nil {
			return err
		}
		return run(cfg.Logger, program, append([]string{a[0]}, argv...), fd, by, func(d *daemon) error {
			d.profile, d.policy, d.service = n.profile, n.chosen, sv
			d.cage = confinement{cageFlags: *box, late: true}
			if d.reload, err = newReloader(d, &f, []plan{{cfg: cfg, policy: n.chosen}}, sink); err != nil {
				return err
			}
			if ctl == "" || ns.on {
				dir, err := makeRuntimeDir()
				if err != nil {
					return err
				}
				d.dirs = append(d.dirs, dir)
				if own, err = os.MkdirTemp(dir, "run-"); err != nil {
					return err
				}
				d.dirs = append(d.dirs, own)
			}
			if ctl == "" {
				ctl = filepath.Join(own, "control.sock")
			}
			if err := d.listen(ctl); err != nil {
				return err
			}
			if d.capture, err = record.open(); err != nil {
				return err
			}
			if err := d.start(cfg); err != nil {
				return err
			}
			for i, r := range d.net.Bound() {
				if cfg.Forwards[i] != r { // the system picked its port, and there is no other way to learn it
					fmt.Fprintf(os.Stderr, "vmnetd: forward %s\n", r)
				}
			}
			return nil
		})
	}
	return c
}

// find looks a program up as a shell does, with the shell's exit codes.
func find(name string) (string, error) {
	p, err := exec.LookPath(name)
	switch {
	case err == nil:
		return p, nil
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%s: %w", name, exec.ErrNotFound)
		if isQEMU(name) {
			err = hintError{err, "is QEMU installed? On Debian: apt install qemu-system-x86 (or -arm, -misc, …)"}
		}
		return "", err
	case errors.Is(err, fs.ErrPermission):
		return "", cannotExec{fmt.Errorf("%s: permission denied", name)}
	}
	return "", err
}

// cannotExec is a command that is there and cannot be started.
type cannotExec struct{ error }

// freeDescriptor is the first number that a child of ours would find closed.
func freeDescriptor() int {
	fd := 3
	for inheritable(fd) {
		fd++
	}
	return fd
}

// way is how a command is plugged in. Each of its functions may be nil.
type way struct {
	door    *door
	prepare func(*exec.Cmd) error          // before it is started, with all files below its wire's
	started func(d *daemon, pid int) error // after
	failed  func(error) error              // what the user hears if it cannot be started
	close   func()
}

// wireSocket hands a socket on to the command.
func wireSocket(program string, fd int) (*way, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	return handOver(&door{framing: &qemuFraming, addr: "run:" + filepath.Base(program), only: whole(qemu.NewLink(ours), ""), remove: func() {}}, theirs, fd), nil
}

// handOver hands the other end of d's one wire on to the command.
func handOver(d *door, theirs *os.File, fd int) *way {
	return &way{
		door: d,
		prepare: func(cmd *exec.Cmd) error {
			cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
			cmd.Env = append(cmd.Env, "VMNETD_FD="+strconv.Itoa(fd))
			return nil
		},
		started: func(*daemon, int) error { return theirs.Close() }, // or we would never see the command's end close
		close:   func() { theirs.Close() },
	}
}

// run starts the network by start and a command on it, which is plugged in by w, and waits for the command to end. Its
// descriptors below fd are ours.
func run(log *slog.Logger, program string, argv []string, fd int, w *way, start func(*daemon) error) error {
	d := &daemon{log: log}
	if w.door != nil {
		w.door.log = log
		d.doors = []*door{w.door}
	}
	defer d.stop(0) // who would have anything to finish has ended
	defer w.close()
	signals := make(chan os.Signal, 16)
	notify(signals, passSignals)
	defer signal.Stop(signals)
	if err := start(d); err != nil {
		return err
	}
	cmd := exec.Command(program)
	cmd.Args = argv
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), controlEnv+"="+d.control)
	for n := 3; n < fd; n++ { // what others have handed to us for the command keeps its number
		var f *os.File // --ready-fd is for us
		if inheritable(n) {
			f = os.NewFile(uintptr(n), "inherited")
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	dieWithUs(cmd)
	if err := w.prepare(cmd); err != nil {
		return err
	}

	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The kernel's parent-death signal is sent when the thread ends that has started the command.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		if w.failed != nil {
			return w.failed(err)
		}
		return cannotExec{err}
	}
	err := w.started(d, cmd.Process.Pid)
	if err == nil {
		err = d.shutIn(cmd.Process.Pid)
	}
	if err == nil {
		err = d.service.up(d)
	}
	if err != nil {
		cmd.Process.Kill()
		<-ended
		return err
	}
	d.reload.ready()
	failed := d.failed
	var failure error
	for {
		select {
		case s := <-signals:
			if typed[s] && foreground() {
				continue // it came from the terminal, and the command has its own
			}
			cmd.Process.Signal(s)
		case failure = <-failed:
			log.Error("the network failed; ending the command", "error", failure)
			cmd.Process.Signal(syscall.SIGTERM)
			failed = nil
		case err := <-ended:
			if failure != nil {
				return failure
			}
			return status(err)
		}
	}
}

// status makes a command's end ours.
func status(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return exitError(128 + int(ws.Signal()))
	}
	return exitError(exit.ExitCode())
}
