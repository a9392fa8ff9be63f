package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// self-test cage tries to get out of the daemon's cage: each trial is a process that closes the cage as a daemon does, and
// then makes an attempt, on a thread of before, on one of after and on the one that closed it. It is for tests and for who
// wants to see what the sandbox holds on a machine.

// outside is what the trials try to reach.
type outside struct {
	Dir    string `json:"dir"`    // of everybody: secret, new, old, sock
	Name   string `json:"name"`   // of an abstract socket
	Victim int    `json:"victim"` // a process of the same user
}

// trial is an attempt; it has crossed a wall if it returns nil.
type trial struct {
	name string
	try  func(outside) error
}

// raw makes a system call that needs nothing but numbers.
func raw(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	_, _, e := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	if e != 0 {
		return e
	}
	return nil
}

func socket(family, kind, proto int) error {
	fd, err := unix.Socket(family, kind, proto)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func dial(network, address string) error {
	c, err := net.Dial(network, address)
	if err == nil {
		c.Close()
	}
	return err
}

var zeros [4096]byte // what calls are pointed to that do not get as far as to read it

func zero() uintptr { return uintptr(unsafe.Pointer(&zeros)) }

var trials = []trial{
	{"exec", func(outside) error { return unix.Exec("/proc/self/exe", []string{"vmnetd", "version"}, nil) }},
	{"fork", func(outside) error {
		pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if e != 0 {
			return e
		}
		if pid == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		return nil
	}},
	{"read a file", func(o outside) error { _, err := os.ReadFile(filepath.Join(o.Dir, "secret")); return err }},
	{"read /etc/shadow", func(outside) error { _, err := os.ReadFile("/etc/shadow"); return err }},
	{"list a folder", func(o outside) error { _, err := os.ReadDir(o.Dir); return err }},
	{"make a file", func(o outside) error {
		name := filepath.Join(o.Dir, "new")
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			return err
		}
		return os.Remove(name)
	}},
	{"change a file", func(o outside) error {
		f, err := os.OpenFile(filepath.Join(o.Dir, "old"), os.O_WRONLY|os.O_TRUNC, 0)
		if err == nil {
			f.Close()
		}
		return err
	}},
	{"remove a file", func(o outside) error { return os.Remove(filepath.Join(o.Dir, "old")) }},
	{"link", func(o outside) error { return os.Symlink("/etc/passwd", filepath.Join(o.Dir, "own", "link")) }},
	{"unix socket", func(o outside) error { return dial("unix", filepath.Join(o.Dir, "sock")) }},
	{"abstract socket", func(o outside) error { return dial("unix", o.Name) }},
	{"raw socket", func(outside) error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }},
	{"packet socket", func(outside) error { return socket(unix.AF_PACKET, unix.SOCK_RAW, 0) }},
	{"netfilter", func(outside) error { return socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER) }},
	{"crypto socket", func(outside) error { return socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0) }},
	{"signal", func(o outside) error { return unix.Kill(o.Victim, unix.SIGCONT) }},
	{"ptrace", func(o outside) error { return raw(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(o.Victim)) }},
	{"others' memory", func(o outside) error {
		f, err := os.Open(fmt.Sprintf("/proc/%d/maps", o.Victim))
		if err == nil {
			f.Close()
		}
		return err
	}},
	{"process_vm_readv", func(o outside) error {
		b := make([]byte, 1)
		local := []unix.Iovec{{Base: &b[0], Len: 1}}
		_, err := unix.ProcessVMReadv(o.Victim, local, []unix.RemoteIovec{{Base: zero(), Len: 1}}, 0) // the same program, so it is there
		return err
	}},
	{"pidfd", func(o outside) error {
		fd, err := unix.PidfdOpen(o.Victim, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}},
	{"become root", func(outside) error {
		if os.Geteuid() == 0 {
			return nil
		}
		return unix.Setresuid(0, 0, 0)
	}},
	{"capabilities", func(outside) error {
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&hdr, &data[0]); err != nil {
			return err
		}
		data[0].Permitted, data[0].Effective, data[0].Inheritable = data[0].Permitted|1<<unix.CAP_SYS_ADMIN, data[0].Effective|1<<unix.CAP_SYS_ADMIN, 0
		return unix.Capset(&hdr, &data[0])
	}},
	{"namespace", func(outside) error { return raw(unix.SYS_UNSHARE, unix.CLONE_NEWUTS) }},
	{"setns", func(outside) error { return raw(unix.SYS_SETNS, 0, unix.CLONE_NEWNET) }},
	{"mount", func(o outside) error { return unix.Mount("none", filepath.Join(o.Dir, "own"), "tmpfs", 0, "") }},
	{"chroot", func(o outside) error { return unix.Chroot("/") }},
	{"module", func(outside) error { return raw(unix.SYS_INIT_MODULE, zero(), uintptr(len(zeros)), zero()) }},
	{"bpf", func(outside) error { return raw(unix.SYS_BPF, unix.BPF_MAP_CREATE, zero(), 72) }},
	{"perf", func(outside) error { return raw(unix.SYS_PERF_EVENT_OPEN, zero(), 0, ^uintptr(0), ^uintptr(0), 0) }},
	{"userfaultfd", func(outside) error { return raw(unix.SYS_USERFAULTFD, 1) }},
	{"io_uring", func(outside) error { return raw(unix.SYS_IO_URING_SETUP, 1, zero()) }},
	{"keyring", func(outside) error { return raw(unix.SYS_KEYCTL, 0, ^uintptr(2), 1) }}, // KEYCTL_GET_KEYRING_ID of the session's
	{"file handle", func(outside) error { return raw(unix.SYS_OPEN_BY_HANDLE_AT, 0, zero(), 0) }},
	{"personality", func(outside) error { return raw(unix.SYS_PERSONALITY, 0xffffffff) }},
	{"executable memory", func(outside) error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		return err
	}},
	{"raise limits", func(outside) error {
		return raw(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_STACK, uintptr(unsafe.Pointer(&unix.Rlimit{Cur: 1 << 20, Max: 1 << 20})))
	}},
	{"be dumpable", func(outside) error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }},
	{"core dump", func(outside) error { // the parent sees whether it came
		signal.Reset()
		debug.SetTraceback("crash")
		unix.Kill(os.Getpid(), unix.SIGABRT)
		select {}
	}},
}

// threads are where a trial is made.
var trialThreads = []string{"closer", "before", "after"}

// result is how trials of one kind ended.
type result struct {
	Trial string   `json:"trial"`
	Held  bool     `json:"held"` // on every thread
	How   []string `json:"how"`  // by thread: the error, "killed", or "crossed"
}

func selfTestCommand() *cobra.Command {
	var open bool
	var one, threads, where string
	var victim int
	var format outputFormat
	c := &cobra.Command{
		Use:   "cage",
		Short: "Try to get out of the daemon's sandbox",
		Long: `Try to get out of the daemon's sandbox, in every way that it is to be proof against, and print what held. With --open the
sandbox is left off, which shows what it adds to the rights of whoever asks.

Exit status: 0 if all walls held, 1 if one was crossed.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if one != "" {
				var o outside
				if err := json.Unmarshal([]byte(where), &o); err != nil {
					return err
				}
				return beTried(one, strings.Split(threads, ","), o, open)
			}
			if victim != 0 {
				signal.Ignore(unix.SIGINT, unix.SIGTERM)
				os.Stdin.Read(make([]byte, 1))
				return nil
			}
			list, walls, err := tryAll(open)
			if err != nil {
				return err
			}
			out := c.OutOrStdout()
			answer := struct {
				Walls   string   `json:"walls"`
				Results []result `json:"results"`
			}{walls, list}
			if !format.data() {
				fmt.Fprintln(out, "sandbox", walls)
			}
			if err := format.print(out, false, answer, func(w io.Writer) {
				for _, r := range list {
					word := "crossed"
					if r.Held {
						word = "held"
					}
					row(w, r.Trial, word, strings.Join(slices.Compact(slices.Clone(r.How)), ", "))
				}
			}); err != nil {
				return err
			}
			if slices.ContainsFunc(list, func(r result) bool { return !r.Held }) && !open {
				return errors.New("a wall was crossed")
			}
			return nil
		},
	}
	f := c.Flags()
	f.BoolVar(&open, "open", false, "without the sandbox")
	format.flag(c)
	f.StringVar(&one, "trial", "", "")
	f.StringVar(&threads, "threads", "", "")
	f.StringVar(&where, "outside", "", "")
	f.IntVar(&victim, "victim", 0, "")
	for _, name := range []string{"trial", "threads", "outside", "victim"} {
		f.MarkHidden(name)
	}
	g := group("self-test", "Try this program on this machine", "Try this program on this machine.", c)
	g.Hidden = true
	return g
}

// tryAll makes what is to be reached, and all trials.
func tryAll(open bool) (list []result, walls string, err error) {
	dir, err := os.MkdirTemp("", "vmnetd-cage-")
	if err != nil {
		return nil, "", err
	}
	defer os.RemoveAll(dir)
	o := outside{Dir: dir, Name: "@vmnetd-cage-" + strconv.Itoa(os.Getpid())}
	own := filepath.Join(dir, "own")
	if err := errors.Join(os.Chmod(dir, 0o777), os.Mkdir(own, 0o777), os.Chmod(own, 0o777)); err != nil { // whatever our umask
		return nil, "", err
	}
	for _, address := range []string{filepath.Join(dir, "sock"), o.Name} {
		l, err := net.Listen("unix", address)
		if err != nil {
			return nil, "", err
		}
		defer l.Close()
	}
	me := func(more ...string) *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Args = append([]string{os.Args[0], "self-test", "cage"}, more...)
		cmd.Dir = own // for a core dump
		return cmd
	}
	v := me("--victim", "1")
	if os.Geteuid() == 0 {
		if u, err := findUser(""); err == nil && !open {
			v.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID)}}
		}
	}
	life, err := v.StdinPipe()
	if err != nil {
		return nil, "", err
	}
	if err := v.Start(); err != nil {
		return nil, "", fmt.Errorf("a process to look into: %w", err)
	}
	defer func() { life.Close(); v.Wait() }()
	o.Victim = v.Process.Pid
	where, err := json.Marshal(o)
	if err != nil {
		return nil, "", err
	}
	for _, tr := range trials {
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o644),
			os.WriteFile(filepath.Join(dir, "old"), []byte("old"), 0o666), os.Chmod(filepath.Join(dir, "old"), 0o666), os.Chmod(filepath.Join(dir, "sock"), 0o777)); err != nil {
			return nil, "", err
		}
		r := result{Trial: tr.name, Held: true}
		for _, thread := range trialThreads {
			cmd := me("--trial", tr.name, "--threads", thread, "--outside", string(where), "--open="+strconv.FormatBool(open))
			out, err := cmd.Output()
			how := ""
			ws, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
			var said struct{ Walls, Error string }
			switch {
			case ws.Signaled() && ws.Signal() == unix.SIGSYS:
				how = "killed"
			case tr.name == "core dump":
				how = "crossed"
				if !ws.CoreDump() {
					how = "no dump"
				}
			case err != nil:
				var exit *exec.ExitError
				if errors.As(err, &exit) {
					err = fmt.Errorf("%w: %s", err, exit.Stderr)
				}
				return nil, "", fmt.Errorf("trial %s: %w", tr.name, err)
			case json.Unmarshal(out, &said) != nil: // it has become another program
				how = "crossed"
			case said.Error == "":
				how, walls = "crossed", said.Walls
			default:
				how, walls = said.Error, said.Walls
			}
			if r.How = append(r.How, how); how == "crossed" {
				r.Held = false
			}
		}
		list = append(list, r)
	}
	return list, walls, nil
}

// beTried closes the cage and makes an attempt on a thread.
func beTried(name string, threads []string, o outside, open bool) error {
	i := slices.IndexFunc(trials, func(t trial) bool { return t.name == name })
	if i < 0 || len(threads) != 1 {
		return usagef("no trial %q", name)
	}
	if name == "core dump" { // as much as there may be
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &lim); err != nil {
			return err
		}
		lim.Cur = lim.Max
		if err := unix.Setrlimit(unix.RLIMIT_CORE, &lim); err != nil {
			return err
		}
	}
	gate, done := make(chan bool), make(chan error)
	attempt := func() { done <- trials[i].try(o) }
	ready := make(chan bool)
	go func() {
		runtime.LockOSThread() // a thread of before
		ready <- true
		if <-gate {
			attempt()
		}
	}()
	<-ready
	runtime.LockOSThread()
	d := &daemon{log: slog.New(slog.DiscardHandler), cage: confinement{cageFlags: cageFlags{mode: sandboxOn}, drops: true}}
	d.control = filepath.Join(o.Dir, "own", "control.sock") // it names a folder of ours
	if open {
		d.cage.mode = sandboxOff
	}
	if err := d.shutIn(0); err != nil {
		return err
	}
	var err error
	switch threads[0] {
	case "closer":
		err = trials[i].try(o)
	case "before":
		gate <- true
		err = <-done
	case "after":
		go func() {
			runtime.LockOSThread()
			attempt()
		}()
		err = <-done
	}
	said := struct{ Walls, Error string }{Walls: d.sandbox().Walls}
	var e syscall.Errno
	switch {
	case errors.As(err, &e):
		said.Error = unix.ErrnoName(e)
	case err != nil:
		said.Error = err.Error()
	}
	return json.NewEncoder(os.Stdout).Encode(said)
}
