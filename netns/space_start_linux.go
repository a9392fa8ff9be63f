package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A program is started by a forked child that joins the space, makes itself what the program is to find, and execs: all
// of it system calls prepared before, by join_linux.go's rule.

// Start starts a program in it, which the caller waits for. It is in all of the space's namespaces and is root there.
func (s *Space) Start(p Process) (*os.Process, error) {
	e, prepared, err := p.prepare()
	if err != nil {
		return nil, err
	}
	defer prepared()
	done, err := s.enter(e, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWUTS)
	defer done()
	if err != nil {
		return nil, err
	}
	p.finish(e)
	if p.DeathSignal == 0 {
		return p.start(e)
	}
	var proc *os.Process
	s.forks.do(func() { proc, err = p.start(e) })
	return proc, err
}

// Join starts a program in the namespaces that these are descriptors of, in any order. With a DeathSignal it is bound to
// this process only.
func Join(files []*os.File, p Process) (*os.Process, error) {
	e, prepared, err := p.prepare()
	if err != nil {
		return nil, err
	}
	defer prepared()
	flags := []uintptr{unix.CLONE_NEWUSER, unix.CLONE_NEWNET, unix.CLONE_NEWNS, unix.CLONE_NEWUTS}
	of := map[uintptr]*os.File{}
	for _, f := range files {
		kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
		if err != nil {
			return nil, &Error{Op: "look at " + f.Name(), Err: err, Hint: "want descriptors of namespaces, as Space.Files gives"}
		}
		of[uintptr(kind)] = f
	}
	if of[unix.CLONE_NEWNET] == nil {
		return nil, errors.New("netns: no descriptor of a network namespace")
	}
	for i, flag := range flags {
		if f := of[flag]; f != nil {
			e.join([]string{"user", "network", "mount", "UTS"}[i], f, flag)
		}
	}
	defer runtime.KeepAlive(files)
	p.finish(e)
	if p.DeathSignal == 0 {
		return p.start(e)
	}
	// The signal comes when the thread that forked ends: one that waits for the child does not.
	type result struct {
		proc *os.Process
		err  error
	}
	started := make(chan result)
	go onThread(func() {
		proc, err := p.start(e)
		if err != nil {
			started <- result{nil, err}
			return
		}
		pid := proc.Pid
		started <- result{proc, nil}
		for {
			if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
				return
			}
		}
	})
	r := <-started
	return r.proc, r.err
}

// prepare makes an errand with nothing in it, and opens what p needs.
func (p *Process) prepare() (e *errand, done func(), err error) {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return nil, nil, errors.New("netns: a process without a program")
	}
	if p.Terminal && (!p.Session || len(p.Files) == 0 || p.Files[0] == nil) {
		return nil, nil, errors.New("netns: a terminal takes a session of its own, and Files[0]")
	}
	for _, list := range [][]string{p.Args, p.Env, {p.Dir}} {
		for _, s := range list {
			if strings.Contains(s, "\x00") {
				return nil, nil, fmt.Errorf("netns: %q has a NUL in it", s)
			}
		}
	}
	dir := p.Dir
	if dir == "" {
		if dir, err = os.Getwd(); err != nil {
			dir = "/"
		}
	}
	p.dir = dir
	p.Env = withRoots((&exec.Cmd{Env: p.Env, Dir: dir}).Environ()) // of two with one name, the last
	if p.path, err = lookPath(p.Args[0], p.Env); err != nil {
		return nil, nil, err
	}
	list := append([]*os.File(nil), p.Files...)
	for len(list) < 3 {
		list = append(list, nil)
	}
	done = func() {}
	for i, f := range list {
		if f != nil {
			continue
		}
		if p.null == nil {
			if p.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
				return nil, nil, err
			}
			null := p.null
			done = func() { null.Close() }
		}
		list[i] = p.null
	}
	p.Files = list
	return &errand{program: true, above: len(list), mask: new(unix.Sigset_t), keep: []any{list}}, done, nil
}

// finish adds what there is to do in the space.
func (p *Process) finish(e *errand) {
	k := e.add(chdirStep, unix.SYS_CHDIR, e.str(p.dir))
	e.steps[k-1].may = p.Dir == "" // the caller's may not be there; then it is in /
	if p.Session {
		e.add("begin a session", unix.SYS_SETSID)
	}
	// First away from where they are going to be, each.
	n := len(p.Files)
	from := make([]int, n)
	for i, f := range p.Files {
		from[i] = e.add("dup", unix.SYS_FCNTL, f.Fd(), unix.F_DUPFD_CLOEXEC, uintptr(n))
	}
	for i := range p.Files {
		k := e.add("dup", unix.SYS_DUP3, 0, uintptr(i), 0)
		e.steps[k-1].from = from[i]
	}
	// Others are closed on exec anyway, but for what this process was started with. Linux before 5.11 does not know this.
	e.try("close others", unix.SYS_CLOSE_RANGE, uintptr(n), uintptr(^uint32(0)), unix.CLOSE_RANGE_CLOEXEC)
	if p.Terminal {
		e.add("take the terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	if lim := firstLimit(); lim != nil {
		e.keep = append(e.keep, lim)
		e.try("limit descriptors", unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(lim)), 0)
	}
	if p.Processes != 0 {
		lim := &unix.Rlimit{Cur: p.Processes, Max: p.Processes}
		var own unix.Rlimit
		if unix.Prlimit(0, unix.RLIMIT_NPROC, nil, &own) == nil { // nobody may have more than before
			lim.Cur, lim.Max = min(lim.Cur, own.Cur), min(lim.Max, own.Max)
		}
		e.keep = append(e.keep, lim)
		e.add("limit processes", unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NPROC, uintptr(unsafe.Pointer(lim)), 0)
	}
	if p.DeathSignal != 0 { // not before: a change of user takes it back
		e.add("ask for a signal", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(p.DeathSignal), 0, 0, 0)
		k = e.add("look who is the parent", unix.SYS_GETPPID) // it may have ended before
		e.steps[k-1].want = uintptr(os.Getpid())
	}
	e.signals()
	argv, envp := e.strs(p.Args), e.strs(p.Env)
	e.add(execStep, unix.SYS_EXECVE, e.str(p.path), argv, envp)
}

// What steps are called whose errors are os's.
const execStep, chdirStep = "exec", "chdir"

// start runs the errand.
func (p *Process) start(e *errand) (*os.Process, error) {
	pid, _, err := e.start()
	if err != nil {
		var f *Error
		switch {
		case errors.As(err, &f) && f.Op == execStep:
			return nil, &os.PathError{Op: execStep, Path: p.path, Err: f.Err}
		case errors.As(err, &f) && f.Op == chdirStep:
			return nil, &os.PathError{Op: chdirStep, Path: p.dir, Err: f.Err}
		}
		return nil, explain(err)
	}
	return os.FindProcess(pid)
}

func (e *errand) strs(list []string) uintptr {
	out := make([]uintptr, len(list)+1)
	for i, s := range list {
		out[i] = e.str(s)
	}
	e.keep = append(e.keep, out)
	return uintptr(unsafe.Pointer(&out[0]))
}

// signals has signals do what they do in a program that os/exec starts: those that this process handles have their
// default, what it ignores is ignored, and blocked is what was before the fork. Exec would do the first, but only once
// they are no longer blocked; and this process's handlers must not run in its copy.
func (e *errand) signals() {
	const most = 64
	// A struct sigaction of zeroes is SIG_DFL with no flags, however its fields lie.
	zero := new([32]uintptr)
	e.keep = append(e.keep, zero)
	size := uintptr(8) // of the kernel's signal sets
	mips := strings.HasPrefix(runtime.GOARCH, "mips")
	if mips {
		size = 16
	}
	for sig := uintptr(1); sig <= most; sig++ {
		if sig == uintptr(unix.SIGKILL) || sig == uintptr(unix.SIGSTOP) {
			continue
		}
		var now [32]uintptr
		handler := &now[0]
		if mips { // flags come first there
			handler = &now[1]
		}
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), size, 0, 0); errno == 0 && *handler <= 1 {
			continue // SIG_DFL, SIG_IGN
		}
		e.try("reset a signal", unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(zero)), 0, size)
	}
	e.add("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(e.mask)), 0, size)
}

// firstLimit is what this process was told of how many descriptors it may have, before the Go runtime raised that for
// itself. Nobody but a program that it has started as os does knows.
var firstLimit = sync.OnceValue(func() *unix.Rlimit {
	// Holders of this name, with no descriptor to wait at, end at once.
	p, err := os.StartProcess("/proc/self/exe", []string{holderName, "-", "", ""}, &os.ProcAttr{Env: []string{}})
	if err != nil {
		return nil
	}
	defer p.Wait()
	defer p.Kill()
	var lim unix.Rlimit
	if unix.Prlimit(p.Pid, unix.RLIMIT_NOFILE, nil, &lim) != nil {
		return nil
	}
	return &lim
})

// withRoots has PATH go on with the folders of root's programs, ip(8) say, which a user's often lacks.
func withRoots(env []string) []string {
	for i, v := range env {
		path, ok := strings.CutPrefix(v, "PATH=")
		if !ok {
			continue
		}
		list := filepath.SplitList(path)
		for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
			if !slices.Contains(list, dir) {
				path = strings.TrimPrefix(path+":"+dir, ":")
			}
		}
		env[i] = "PATH=" + path
	}
	return env
}

// lookPath finds a program as env's PATH has it.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var path string
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			path = p
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) { // as os/exec: what lies about in a folder is not meant
			continue
		}
		p := filepath.Join(dir, name)
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && unix.Faccessat(unix.AT_FDCWD, p, unix.X_OK, unix.AT_EACCESS) == nil {
			return p, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// forker forks on one thread, which lives until it is closed: a child's death signal comes when the thread that made it
// ends, and Go's threads may.
type forker struct {
	mu    sync.Mutex
	jobs  chan func()
	ended chan struct{}
}

func (f *forker) do(job func()) {
	done := make(chan struct{})
	f.mu.Lock()
	if f.jobs == nil {
		f.jobs, f.ended = make(chan func()), make(chan struct{})
		go func(jobs chan func(), ended chan struct{}) {
			defer close(ended)
			onThread(func() {
				for job := range jobs {
					job()
				}
			})
		}(f.jobs, f.ended)
	}
	f.jobs <- func() { defer close(done); job() }
	f.mu.Unlock()
	<-done
}

// close ends the thread. Nobody calls do any more.
func (f *forker) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.jobs != nil {
		close(f.jobs)
		<-f.ended
	}
}

// onThread runs f on a thread of its own that ends with it.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			f() // and this goroutine ends without letting go of its thread
			return
		}
		// The main thread never ends; while it waits here the next goroutine is on another.
		defer runtime.UnlockOSThread()
		onThread(f)
	}()
	<-done
}
