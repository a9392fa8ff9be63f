//go:build unix

package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a program that is a machine: QEMU, or User Mode Linux.
type process struct {
	cmd   *exec.Cmd
	said  lastWords
	ended chan struct{} // closed when it has been waited for
	err   error         // then
}

// outputDelay is how long what a process said last is read once it has ended: what it wrote itself is there, and what it leaves
// behind may hold its output open for ever.
const outputDelay = 200 * time.Millisecond

// startProcess starts it with files from descriptor 3 on, and closes those here. The thread that started it stays until it has
// ended: a child that goes with its parent goes, on Linux, with that thread (PR_SET_PDEATHSIG in prctl(2)), and Go ends
// threads that somebody locked.
func startProcess(cmd *exec.Cmd, files []*os.File) (*process, error) {
	p := &process{cmd: cmd, ended: make(chan struct{})}
	cmd.ExtraFiles = files
	cmd.SysProcAttr = childAttr()
	cmd.Stderr = &p.said
	cmd.WaitDelay = outputDelay
	if cmd.Stdout == nil {
		cmd.Stdout = &p.said
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		for _, f := range files {
			f.Close()
		}
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// signal is for all of it: User Mode Linux is several processes.
func (p *process) signal(s syscall.Signal) {
	select {
	case <-p.ended: // its number may be another's
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, s)
	}
}

// rest ends what is left of its group: User Mode Linux's guest's processes are processes of ours. It has ended, and the number of a group
// with somebody in it is nobody else's.
func (p *process) rest() { _ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }

// exit is what it left with. It has ended.
func (p *process) exit() (int, error) {
	code := p.cmd.ProcessState.ExitCode()
	if p.err == nil {
		return 0, nil
	}
	var e *exec.ExitError
	if !errors.As(p.err, &e) && code == 0 {
		return 0, nil // only its output was held open by somebody else
	}
	name := p.cmd.Args[0]
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		name = name[i+1:]
	}
	if said := p.said.String(); said != "" {
		return code, fmt.Errorf("%s: %w: %s", name, p.err, said)
	}
	return code, fmt.Errorf("%s: %w", name, p.err)
}

// lastWords keep the end of what a program complains about.
type lastWords struct {
	mu sync.Mutex
	b  []byte
}

// wordsKept are some dozen lines: QEMU gives its reason in one or two.
const wordsKept = 2 << 10

func (l *lastWords) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p[max(0, len(p)-wordsKept):]...)
	if over := len(l.b) - wordsKept; over > 0 {
		l.b = append(l.b[:0], l.b[over:]...)
	}
	return len(p), nil
}

// String has one line of it: an error's.
func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(strings.FieldsFunc(strings.ToValidUTF8(string(l.b), "?"), func(r rune) bool { return r < ' ' || r == 0x7f }), "; ")
}

// socketPair is a conn of ours and a file for a child. kind is of syscall's SOCK_….
func socketPair(kind int, what string) (net.Conn, *os.File, error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, kind, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, os.NewSyscallError("socketpair", err))
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), what), os.NewFile(uintptr(fds[1]), what)
	defer ours.Close()
	c, err := net.FileConn(ours) // a copy
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	return c, theirs, nil
}
