package netns

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errand is what a child process does in other namespaces: system calls that were all prepared before, since after a
// fork a Go program can do nothing else.
type errand struct {
	steps []step
	back  []int // the steps whose results are descriptors to hand back
	keep  []any // what the steps point to

	open    bool // processes of the same user may look into the child meanwhile; its /proc/self is then its own
	program bool // its last step is an exec
	above   int  // the child keeps its word to us at a descriptor from here on, since those below are the program's
	// mask, of a program, is where the signals that the caller has blocked go before the fork.
	mask *unix.Sigset_t
}

type step struct {
	what string // for the error
	trap uintptr
	args [5]uintptr
	from int // args[0] is the result of the step of this number, and it is left out if that failed; 0: no
	// after is a step without which this one is left out. 0: none
	after int
	may   bool
	// want, unless it is 0, is the only result that is right.
	want uintptr

	result uintptr
	errno  unix.Errno
}

// add appends a step that must succeed and returns its number, counted from one.
func (e *errand) add(what string, trap uintptr, args ...uintptr) int {
	s := step{what: what, trap: trap}
	copy(s.args[:], args)
	e.steps = append(e.steps, s)
	return len(e.steps)
}

// try is add for one that may fail.
func (e *errand) try(what string, trap uintptr, args ...uintptr) int {
	n := e.add(what, trap, args...)
	e.steps[n-1].may = true
	return n
}

func (e *errand) str(s string) uintptr {
	p, err := unix.BytePtrFromString(s)
	if err != nil {
		p = new(byte) // a path with a NUL in it is none
	}
	e.keep = append(e.keep, p)
	return uintptr(unsafe.Pointer(p))
}

// write has a file written, if it can be.
func (e *errand) write(path, text string) {
	fd := e.try("open "+path, unix.SYS_OPENAT, uintptr(atCWD), e.str(path), unix.O_WRONLY|unix.O_CLOEXEC)
	n := e.try("write "+path, unix.SYS_WRITE, 0, e.str(text), uintptr(len(text)))
	e.steps[n-1].from = fd
	n = e.try("close", unix.SYS_CLOSE)
	e.steps[n-1].from = fd
}

var atCWD = unix.AT_FDCWD

// file has a file made and written.
func (e *errand) file(path, text string) {
	fd := e.add("make "+path, unix.SYS_OPENAT, uintptr(atCWD), e.str(path), unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if text != "" {
		n := e.add("write "+path, unix.SYS_WRITE, 0, e.str(text), uintptr(len(text)))
		e.steps[n-1].from, e.steps[n-1].want = fd, uintptr(len(text))
	}
	n := e.add("close", unix.SYS_CLOSE)
	e.steps[n-1].from = fd
}

func (e *errand) mount(what, source, target, kind string, flags uintptr) int {
	var from, typ uintptr
	if source != "" {
		from = e.str(source)
	}
	if kind != "" {
		typ = e.str(kind)
	}
	return e.add(what, unix.SYS_MOUNT, from, e.str(target), typ, flags, 0)
}

// failure is what the child writes when a step failed.
type failure struct{ step, errno int32 }

// run does the errand in a child and returns the descriptors that it handed back, each closed on exec.
func (e *errand) run() ([]int, error) {
	pid, fds, err := e.start()
	if err != nil {
		return nil, err
	}
	reap(pid)
	return fds, nil
}

// reap waits for a child. Somebody else in this process may have done so.
func reap(pid int) {
	for {
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != syscall.EINTR {
			return
		}
	}
}

// errandPatience is how long an errand may take: all is milliseconds, but for a program's file on a disk that has to wake up
// first. What runs in a space may have mounted there what never answers (fuse(8)).
var errandPatience = 20 * time.Second

// start has the errand done by a child, which is left to the caller if there is no error.
func (e *errand) start() (pid int, fds []int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[0])
	patience := unix.NsecToTimeval(int64(errandPatience))
	if err := unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		unix.Close(pair[1])
		return 0, nil, fmt.Errorf("setsockopt: %w", err)
	}
	if pair[1] < e.above {
		fd, err := unix.FcntlInt(uintptr(pair[1]), unix.F_DUPFD_CLOEXEC, e.above)
		unix.Close(pair[1])
		if err != nil {
			return 0, nil, fmt.Errorf("dup: %w", err)
		}
		pair[1] = fd
	}
	c := &child{sock: pair[1], steps: e.steps, back: e.back, open: e.open, mask: e.mask}
	c.init()
	born, errno := c.fork()
	runtime.KeepAlive(e)
	unix.Close(pair[1])
	if errno != 0 {
		return 0, nil, fmt.Errorf("fork: %w", errno)
	}
	hangs := false
	defer func() {
		switch {
		case hangs:
			go reap(born) // a SIGKILL does not end the wait for a file system
		case err != nil:
			reap(born)
		}
	}()
	var said failure
	b := unsafe.Slice((*byte)(unsafe.Pointer(&said)), unsafe.Sizeof(said))
	oob := make([]byte, unix.CmsgSpace(4*max(len(e.back), 1)))
	var n, on int
	for {
		n, on, _, _, err = unix.Recvmsg(pair[0], b, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	switch {
	case err == unix.EAGAIN:
		hangs = true
		syscall.Kill(born, syscall.SIGKILL)
		return 0, nil, fmt.Errorf("the child process hangs since %v: is there a file system that does not answer?", errandPatience)
	case err != nil:
		syscall.Kill(born, syscall.SIGKILL)
		return 0, nil, fmt.Errorf("recvmsg: %w", err)
	case n == 0 && e.program: // its end was closed by exec
		return born, nil, nil
	case n == 0:
		return 0, nil, errors.New("the child process was killed")
	case said.errno != 0:
		op := "hand descriptors back"
		if i := int(said.step); i < len(e.steps) {
			op = e.steps[i].what
		}
		return 0, nil, &Error{Op: op, Err: unix.Errno(said.errno)}
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil {
		return 0, nil, err
	}
	for i := range msgs {
		got, _ := unix.ParseUnixRights(&msgs[i])
		fds = append(fds, got...)
	}
	if len(fds) != len(e.back) {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return 0, nil, fmt.Errorf("%d descriptors came, want %d", len(fds), len(e.back))
	}
	return born, fds, nil
}

// child has everything that the forked process touches.
type child struct {
	sock  int
	steps []step
	back  []int
	open  bool
	mask  *unix.Sigset_t

	said failure
	iov  unix.Iovec
	msg  unix.Msghdr
	oob  []byte
	fds  []int32 // in oob
}

func (c *child) init() {
	c.iov.Base = (*byte)(unsafe.Pointer(&c.said))
	c.iov.SetLen(int(unsafe.Sizeof(c.said)))
	c.msg.Iov = &c.iov
	c.msg.SetIovlen(1)
	if len(c.back) == 0 {
		return
	}
	c.oob = unix.UnixRights(make([]int, len(c.back))...)
	c.fds = unsafe.Slice((*int32)(unsafe.Pointer(&c.oob[unix.CmsgLen(0)])), len(c.back))
	c.msg.Control = &c.oob[0]
	c.msg.SetControllen(len(c.oob))
}

// fork returns in the parent only.
func (c *child) fork() (int, unix.Errno) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return 0, err.(unix.Errno)
	}
	if c.mask != nil {
		*c.mask = before
	}
	pid, errno := c.rawFork()
	unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	return pid, errno
}

// rawFork forks. The child makes raw system calls, allocates nothing, calls nothing that could want the scheduler, and
// has all signals blocked, since Go's handlers want a runtime.
//
//go:norace
//go:noinline
//go:nosplit
//go:nocheckptr
func (c *child) rawFork() (int, unix.Errno) {
	flags, stack := uintptr(unix.SIGCHLD), uintptr(0)
	if runtime.GOARCH == "s390x" { // clone(2): the first two are the other way round
		flags, stack = stack, flags
	}
	pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, flags, stack, 0, 0, 0, 0)
	if e != 0 || pid != 0 {
		return int(pid), e
	}
	// Processes of the namespace must not look into this one, which is a copy of its parent.
	if !c.open {
		unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0, 0)
	}
	for i := range c.steps {
		s := &c.steps[i]
		if s.after > 0 && c.steps[s.after-1].errno != 0 {
			s.errno = unix.ECANCELED
			continue
		}
		if s.from > 0 {
			if c.steps[s.from-1].errno != 0 {
				s.errno = unix.ECANCELED
				continue
			}
			s.args[0] = c.steps[s.from-1].result
		}
		s.result, _, s.errno = unix.RawSyscall6(s.trap, s.args[0], s.args[1], s.args[2], s.args[3], s.args[4], 0)
		if s.errno == 0 && s.want != 0 && s.result != s.want {
			s.errno = unix.ESTALE
		}
		if s.errno != 0 && !s.may {
			c.said.step, c.said.errno = int32(i), int32(s.errno)
			unix.RawSyscall(unix.SYS_WRITE, uintptr(c.sock), uintptr(unsafe.Pointer(&c.said)), unsafe.Sizeof(c.said))
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
		}
	}
	for i := range c.fds {
		c.fds[i] = int32(c.steps[c.back[i]-1].result)
	}
	_, _, e = unix.RawSyscall(unix.SYS_SENDMSG, uintptr(c.sock), uintptr(unsafe.Pointer(&c.msg)), 0)
	if e != 0 {
		c.said.step, c.said.errno = int32(len(c.steps)), int32(e)
		unix.RawSyscall(unix.SYS_WRITE, uintptr(c.sock), uintptr(unsafe.Pointer(&c.said)), unsafe.Sizeof(c.said))
	}
	for { // exit_group does not return
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}
