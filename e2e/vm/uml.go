//go:build linux

package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/e2e/vm/channel"
	"github.com/vmnetd/vmnetd/lab/guest"
	"golang.org/x/sys/unix"
)

// UML is a guest that is a Linux kernel as a process (User Mode Linux), with the same image as QEMU's guests.
type UML struct {
	name   string
	cmd    *exec.Cmd
	output tail

	ready  chan struct{} // closed once client is set
	client *channel.Client
	exited chan struct{}
	talk   net.Conn
	wg     sync.WaitGroup
	once   sync.Once
}

// UMLProgram is Debian's name of it (package user-mode-linux).
const UMLProgram = "linux.uml"

// umlModules is where Debian's package has them, by release.
const umlModules = "/usr/lib/uml/modules"

// umlImage is Image's initramfs with the modules of User Mode Linux's kernel in the place of the others.
func umlImage(ctx context.Context, logf func(format string, args ...any)) (string, error) {
	_, small, err := Image(ctx, logf)
	if err != nil {
		return "", err
	}
	cache, err := guest.Cache()
	if err != nil {
		return "", err
	}
	made.Lock()
	defer made.Unlock()
	unlock, err := guest.Lock(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	dir, err := guest.OneOf(umlModules, "*")
	if err != nil {
		return "", err
	}
	tree, err := guest.OpenModules(dir, nil)
	if err != nil {
		return "", err
	}
	load, err := tree.Resolve("ipv6")
	if err != nil {
		return "", err
	}
	return extended(cache, small, load, nil)
}

// StartUML starts a guest with a card as the kernel's vecN= parameter says, without "mac". Close it in any case.
func StartUML(ctx context.Context, name, card string, mac net.HardwareAddr, logf func(format string, args ...any)) (*UML, error) {
	program, err := exec.LookPath(UMLProgram)
	if err != nil {
		return nil, fmt.Errorf("%w: apt-get install user-mode-linux", err)
	}
	initrd, err := umlImage(ctx, logf)
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer theirs.Close()
	u := &UML{name: name, ready: make(chan struct{}), exited: make(chan struct{})}
	u.talk, err = net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, err
	}
	u.cmd = exec.Command(program, "mem=160M", "initrd="+initrd, "quiet", "panic=-1", "vm_name="+name, "vm_agent=/dev/ttyS0",
		"con=null", "con0=null,fd:1", "ssl=null", "ssl0=fd:3", "vec0:"+card+",mac="+mac.String())
	u.cmd.Stdout, u.cmd.Stderr = &u.output, &u.output
	u.cmd.ExtraFiles = []*os.File{theirs}
	u.cmd.WaitDelay = time.Second
	// Its guest's processes are processes of ours: the group is ended as one.
	u.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := u.cmd.Start(); err != nil {
		u.talk.Close()
		return nil, err
	}
	u.wg.Go(func() {
		u.cmd.Wait()
		close(u.exited)
		u.talk.Close()
	})
	u.wg.Go(func() {
		// The agent's first byte tells that the line is no terminal any more, which would echo.
		if _, err := u.talk.Read(make([]byte, 1)); err == nil {
			u.client = channel.NewClient(u.talk)
			close(u.ready)
		}
	})
	return u, nil
}

// Start is Guest's.
func (u *UML) Start(ctx context.Context, command string) (*channel.Proc, error) {
	select {
	case <-u.ready:
	case <-u.exited:
		return nil, fmt.Errorf("guest %s: it has ended: %s", u.name, u.Console())
	case <-ctx.Done():
		return nil, fmt.Errorf("guest %s: not booted: %w\n%s", u.name, context.Cause(ctx), u.Console())
	}
	if err := u.client.Ready(ctx); err != nil {
		return nil, err
	}
	return u.client.Start(command)
}

// Console is what the kernel said.
func (u *UML) Console() string { return strings.TrimSpace(u.output.String()) }

// Kill ends the guest as a crash would.
func (u *UML) Kill() error {
	err := syscall.Kill(-u.cmd.Process.Pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		err = nil
	}
	<-u.exited
	return err
}

// Close kills what still runs.
func (u *UML) Close() {
	u.once.Do(func() {
		select {
		case <-u.exited:
		default:
			u.Kill()
		}
		u.wg.Wait()
		if u.client != nil {
			u.client.Close()
		}
	})
}
