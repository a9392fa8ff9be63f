package netns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Held is a command that is started in namespaces of its own, and that waits for Go.
type Held struct {
	ours, theirs *os.File
	cmd          *exec.Cmd
	path         string
}

// Options say what a held command finds.
type Options struct {
	// MapRoot makes the command root in its user namespace, with all capabilities there: it may set up interfaces,
	// mounts, and namespaces below. Otherwise it has its own user and no capability. A caller that is root already, with
	// CAP_SYS_ADMIN, gets no user namespace, and its command stays what it is.
	MapRoot bool
}

// holderName is what the process is called until it becomes the command.
const holderName = "vmnetd-netns"

// Hold prepares cmd, which has not been started, to run in a network, a mount and, unless the caller is root, a user
// namespace of its own. Between cmd.Start and Go it does nothing, so that there is time for Attach with its PID:
//
//	h, err := netns.Hold(cmd, netns.Options{})
//	err = cmd.Start()
//	tap, err := netns.Attach(ctx, netns.Config{PID: cmd.Process.Pid})
//	err = h.Go()
//	err = cmd.Wait()
//
// The process that waits is this program's own binary, started again, which package netns stops before main; it needs
// /proc. Fields of cmd but Path and Args may still be changed, ExtraFiles only by appending. Close belongs to it, whatever
// happens in between.
func Hold(cmd *exec.Cmd, opt Options) (*Held, error) {
	if cmd.Err != nil {
		return nil, cmd.Err
	}
	if cmd.Process != nil {
		return nil, errors.New("netns: the command has been started")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("netns: socketpair: %w", err)
	}
	h := &Held{ours: os.NewFile(uintptr(pair[0]), "hold"), theirs: os.NewFile(uintptr(pair[1]), "hold"), cmd: cmd, path: cmd.Path}
	cmd.ExtraFiles = append(cmd.ExtraFiles, h.theirs)
	fd := 2 + len(cmd.ExtraFiles)
	argv := cmd.Args
	if len(argv) == 0 {
		argv = []string{cmd.Path}
	}
	cmd.Args = append([]string{holderName, strconv.Itoa(fd), cmd.Path}, argv...)
	cmd.Path = "/proc/self/exe"
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	a := cmd.SysProcAttr
	a.Cloneflags |= unix.CLONE_NEWNET | unix.CLONE_NEWNS
	if mayAdminister() {
		return h, nil
	}
	uid, gid := os.Geteuid(), os.Getegid()
	inUID, inGID := uid, gid
	if opt.MapRoot {
		inUID, inGID = 0, 0
	}
	a.Cloneflags |= unix.CLONE_NEWUSER
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: inUID, HostID: uid, Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: inGID, HostID: gid, Size: 1}}
	a.GidMappingsEnableSetgroups = false // the kernel's condition for who has no CAP_SETGID
	return h, nil
}

// mayAdminister says whether this process makes namespaces without a user namespace.
func mayAdminister() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if os.Geteuid() != 0 || unix.Capget(&hdr, &data[0]) != nil {
		return false
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN
	return data[0].Effective&need == need
}

// Go lets the command begin, and returns once it is itself: the error is that of its exec.
func (h *Held) Go() error {
	h.theirs.Close()
	if _, err := h.ours.Write([]byte{'g'}); err != nil {
		return fmt.Errorf("netns: the command ended before it began: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(h.ours, 16)) // closed by its exec
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		return err
	}
	if n, err := strconv.Atoi(string(b)); err == nil {
		return &os.PathError{Op: "exec", Path: h.path, Err: syscall.Errno(n)}
	}
	return nil
}

// Close ends the waiting. A command that has not been let go ends.
func (h *Held) Close() {
	h.ours.Close()
	h.theirs.Close()
}

// init is where a command waits. Nothing but Hold starts a program by this name; who else does only waits.
func init() {
	if len(os.Args) < 4 || os.Args[0] != holderName {
		return
	}
	fd, err := strconv.Atoi(os.Args[1])
	if err != nil || fd < 3 {
		os.Exit(2)
	}
	unix.CloseOnExec(fd)
	var b [1]byte
	for {
		n, err := unix.Read(fd, b[:])
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			os.Exit(1)
		}
		break
	}
	err = syscall.Exec(os.Args[2], os.Args[3:], os.Environ())
	var errno syscall.Errno
	if errors.As(err, &errno) {
		unix.Write(fd, []byte(strconv.Itoa(int(errno))))
	}
	os.Exit(126)
}
