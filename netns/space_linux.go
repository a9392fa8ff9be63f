package netns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Space is a network, a mount, a UTS and, unless the caller is root, a user namespace, kept by descriptors: there need be
// no process in it, and nothing is left of it when the last process in it and the one that holds it have ended, even by a
// kill -9. Its methods may be called at the same time.
//
// What is in it is root there, by a user namespace that knows no other user. It has an empty /run of its own, so that
// services find room for their sockets, and do not find the host's; of the host's /run only what kept says is there. /sys
// is that of its network, where the kernel lets it be mounted anew. All else of the file system is the caller's.
type Space struct {
	user, net, mnt, uts *os.File // user is nil where the caller is root

	mu     sync.RWMutex // held for reading while descriptors are used
	closed bool

	forks forker
}

// kept are what is not hidden of the host's /run: folders of users, and root's of vmnetd, where a lab has its own; and what
// programs are reached by on NixOS.
var kept = []string{"user", "vmnetd", "current-system", "booted-system", "opengl-driver", "wrappers"}

// files is the folder in /run of what is mounted elsewhere.
const files = "/run/.space"

// NewSpace makes one. lo is up in it.
func NewSpace(opt SpaceOptions) (*Space, error) {
	for _, s := range []string{opt.Hostname, opt.Resolv, opt.Hosts, opt.Mark} {
		if strings.Contains(s, "\x00") {
			return nil, errors.New("netns: a text with a NUL in it")
		}
	}
	if len(opt.Hostname) > 64 { // __NEW_UTS_LEN
		return nil, fmt.Errorf("netns: host name %q: want at most 64 bytes", opt.Hostname)
	}
	e := &errand{open: true} // else /proc/self/uid_map would be root's; there is nobody in there yet who could look
	withUser := !mayAdminister()
	flags := uintptr(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS)
	if withUser {
		// Alone, so that the error tells what is forbidden.
		e.add("make a user namespace", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
		e.write("/proc/self/setgroups", "deny") // the kernel's condition for who has no CAP_SETGID
		e.mustWrite("/proc/self/uid_map", fmt.Sprintf("0 %d 1", os.Geteuid()))
		e.mustWrite("/proc/self/gid_map", fmt.Sprintf("0 %d 1", os.Getegid()))
	}
	e.add("make namespaces", unix.SYS_UNSHARE, flags)
	if opt.Hostname != "" {
		e.add("set the host name", unix.SYS_SETHOSTNAME, e.str(opt.Hostname), uintptr(len(opt.Hostname)))
	}
	if err := mounts(e, opt); err != nil {
		return nil, err
	}
	e.allowPing()
	for _, m := range []struct {
		values map[string]string
		write  func(path, text string)
	}{{opt.TrySysctls, e.write}, {opt.Sysctls, e.mustWrite}} {
		for _, name := range slices.Sorted(maps.Keys(m.values)) {
			path, err := sysctlPath(name)
			if err != nil {
				return nil, err
			}
			m.write(path, m.values[name])
		}
	}
	kinds := []string{"net", "mnt", "uts"}
	if withUser {
		kinds = append(kinds, "user")
	}
	for _, k := range kinds {
		e.back = append(e.back, e.add("open namespace "+k, unix.SYS_OPENAT, uintptr(atCWD), e.str("/proc/self/ns/"+k), unix.O_RDONLY|unix.O_CLOEXEC))
	}
	e.back = append(e.back, e.add("netlink socket", unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE))
	fds, err := e.run()
	if err != nil {
		return nil, explainSpace(err)
	}
	s := &Space{}
	for i, f := range []**os.File{&s.net, &s.mnt, &s.uts, &s.user}[:len(kinds)] {
		*f = os.NewFile(uintptr(fds[i]), "namespace "+kinds[i])
	}
	route := newNetlink(fds[len(kinds)])
	defer route.close()
	if err := route.setLink("lo", nil, 0, true); err != nil {
		s.Close()
		return nil, &Error{Op: "set lo up", Err: err}
	}
	return s, nil
}

// mustWrite has a file written.
func (e *errand) mustWrite(path, text string) {
	fd := e.add("open "+path, unix.SYS_OPENAT, uintptr(atCWD), e.str(path), unix.O_WRONLY|unix.O_CLOEXEC)
	n := e.add("write "+path, unix.SYS_WRITE, 0, e.str(text), uintptr(len(text)))
	e.steps[n-1].from = fd
	n = e.add("close", unix.SYS_CLOSE)
	e.steps[n-1].from = fd
}

// mounts adds what makes the mount namespace a space's.
func mounts(e *errand, opt SpaceOptions) error {
	// What is mounted on the host later is seen; what is mounted here stays here.
	e.mount("keep mounts apart", "", "/", "", unix.MS_REC|unix.MS_SLAVE)

	// A sysfs shows the network that it was mounted in. The kernel mounts one only where all of the old one is to be seen,
	// and read-only if that is; a container's often is neither.
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	e.try("enter /sys/fs/cgroup", unix.SYS_CHDIR, e.str("/sys/fs/cgroup"))
	sys := e.mount("mount /sys", "sysfs", "/sys", "sysfs", quiet)
	e.steps[sys-1].may = true
	n := e.mount("mount /sys/fs/cgroup", ".", "/sys/fs/cgroup", "", unix.MS_BIND|unix.MS_REC)
	e.steps[n-1].may, e.steps[n-1].after = true, sys

	if fi, err := os.Stat("/run"); err != nil || !fi.IsDir() {
		if opt.Resolv == "" && opt.Hosts == "" {
			return nil
		}
		return &Error{Op: "mount on /run", Err: unix.ENOENT, Hint: "make that folder"}
	}
	e.add("umask", unix.SYS_UMASK, 0o022)
	e.add("enter /run", unix.SYS_CHDIR, e.str("/run"))
	run := e.add("mount on /run", unix.SYS_MOUNT, e.str(cmp.Or(opt.Mark, "tmpfs")), e.str("/run"), e.str("tmpfs"), unix.MS_NOSUID|unix.MS_NODEV, e.str("mode=0755"))
	for _, name := range kept {
		path := "/run/" + name
		fi, err := os.Lstat(path)
		if err != nil {
			continue
		}
		if to, err := os.Readlink(path); err == nil {
			e.try("link "+path, unix.SYS_SYMLINKAT, e.str(to), uintptr(atCWD), e.str(path))
		} else if fi.IsDir() {
			e.try("make "+path, unix.SYS_MKDIRAT, uintptr(atCWD), e.str(path), 0o755)
			n := e.mount("keep "+path, name, path, "", unix.MS_BIND|unix.MS_REC) // from the folder that is covered now
			e.steps[n-1].may, e.steps[n-1].after = true, run
		}
	}
	for _, p := range []string{"/run/lock", files} {
		e.try("make "+p, unix.SYS_MKDIRAT, uintptr(atCWD), e.str(p), 0o755)
	}
	for _, f := range []struct{ path, text string }{{"/etc/resolv.conf", opt.Resolv}, {"/etc/hosts", opt.Hosts}} {
		if f.text == "" {
			continue
		}
		if p := target(f.path); strings.HasPrefix(p, "/run/") { // it goes with the host's /run, and is to be there again
			for i := range p {
				if d := p[:i]; p[i] == '/' && len(d) > len("/run") {
					e.try("make "+d, unix.SYS_MKDIRAT, uintptr(atCWD), e.str(d), 0o755)
				}
			}
			e.file(p, f.text)
			continue
		}
		own := files + "/" + filepath.Base(f.path)
		e.file(own, f.text)
		e.mount("mount on "+f.path, own, f.path, "", unix.MS_BIND)
	}
	for _, p := range hidden {
		if !strings.HasPrefix(p, "/run/") && opt.Resolv != "" {
			e.try("hide "+p, unix.SYS_MOUNT, e.str("/dev/null"), e.str(p), 0, unix.MS_BIND, 0)
		}
	}
	e.add("leave /run", unix.SYS_CHDIR, e.str("/"))
	return nil
}

// target is what a path leads to by links, whether that is there or not.
func target(path string) string {
	for range 8 { // more, and somebody has made a circle
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = filepath.Clean(to)
	}
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok {
		if p, err := filepath.EvalSymlinks("/var/run"); err == nil && p == "/run" {
			return "/run/" + rest
		}
	}
	return path
}

// explainSpace says what would be right.
func explainSpace(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return &Error{Op: "make namespaces", Err: err}
	}
	switch {
	case strings.HasPrefix(e.Op, "mount on ") && e.Err == unix.ENOENT:
		e.Hint = "there has to be a file to mount on: make an empty one, or what it links to"
	case e.Err == unix.EROFS:
		e.Hint = "/proc/sys is read-only here, as in a container: --privileged, or a file without that setting"
	case strings.HasPrefix(e.Op, "write /proc/sys/"), strings.HasPrefix(e.Op, "open /proc/sys/"):
		e.Hint = "does the kernel have this setting for a network namespace, and take this value?"
	case e.Err == unix.ENOSPC, e.Err == unix.EUSERS:
		e.Hint = "there are too many: sysctl user.max_user_namespaces and user.max_net_namespaces say how many a user may have"
	default:
		e.Hint = WhyNoNamespaces()
	}
	return e
}

// enter adds the steps into the space: its network, and also its mounts and its name if flags say so. The caller holds
// mu for reading until done is called.
func (s *Space) enter(e *errand, flags uintptr) (done func(), err error) {
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return func() {}, net.ErrClosed
	}
	for _, n := range []struct {
		f    *os.File
		flag uintptr
		what string
	}{{s.user, unix.CLONE_NEWUSER, "user"}, {s.net, unix.CLONE_NEWNET, "network"}, {s.mnt, unix.CLONE_NEWNS, "mount"}, {s.uts, unix.CLONE_NEWUTS, "UTS"}} {
		if n.f == nil || n.flag&(flags|unix.CLONE_NEWUSER) == 0 {
			continue
		}
		e.join(n.what, n.f, n.flag)
	}
	return s.mu.RUnlock, nil
}

// join adds a step into a namespace.
func (e *errand) join(what string, f *os.File, flag uintptr) {
	e.keep = append(e.keep, f)
	e.add("join the "+what+" namespace", unix.SYS_SETNS, f.Fd(), flag)
	if flag == unix.CLONE_NEWUSER { // a caller from above, root say, is nobody there otherwise
		e.try("become its group", unix.SYS_SETRESGID, 0, 0, 0)
		e.try("become its user", unix.SYS_SETRESUID, 0, 0, 0)
	}
}

// Attach makes a TAP in it, as the function Attach does; what cfg says of a process, of paths, or of resolv.conf does not
// count.
func (s *Space) Attach(ctx context.Context, cfg Config) (*TAP, error) {
	cfg.space, cfg.PID, cfg.Path, cfg.UserPath, cfg.Resolv = s, 0, "", "", ""
	return Attach(ctx, cfg)
}

// Sysctl sets one of its network's settings: net.ipv4.ip_forward, or net/ipv4/conf/eth0.7/forwarding.
func (s *Space) Sysctl(name, value string) error {
	path, err := sysctlPath(name)
	if err != nil {
		return err
	}
	e := &errand{}
	done, err := s.enter(e, unix.CLONE_NEWNET)
	defer done()
	if err != nil {
		return err
	}
	e.mustWrite(path, value)
	if _, err := e.run(); err != nil {
		return explainSpace(err)
	}
	return nil
}

// Open opens a file for reading, as a program in it would find it: /proc/net/udp, say.
func (s *Space) Open(path string) (*os.File, error) {
	if strings.HasPrefix(path, "/proc/net/") {
		path = "/proc/self/net/" + path[len("/proc/net/"):] // a link to it, which some containers cover
	}
	e := &errand{}
	done, err := s.enter(e, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWUTS)
	defer done()
	if err != nil {
		return nil, err
	}
	e.back = []int{e.add("open", unix.SYS_OPENAT, uintptr(atCWD), e.str(path), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK)}
	fds, err := e.run()
	if err != nil {
		var f *Error
		if errors.As(err, &f) && f.Op == "open" {
			return nil, &os.PathError{Op: "open", Path: path, Err: f.Err}
		}
		return nil, explain(err)
	}
	return os.NewFile(uintptr(fds[0]), path), nil
}

// WriteFile writes a file that there is, as a program in it would: /etc/hosts, say, if it has one of its own.
func (s *Space) WriteFile(path, text string) error {
	if strings.Contains(path+text, "\x00") {
		return errors.New("netns: a text with a NUL in it")
	}
	e := &errand{}
	done, err := s.enter(e, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWUTS)
	defer done()
	if err != nil {
		return err
	}
	fd := e.add("open", unix.SYS_OPENAT, uintptr(atCWD), e.str(path), unix.O_WRONLY|unix.O_TRUNC|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if text != "" {
		n := e.add("write", unix.SYS_WRITE, 0, e.str(text), uintptr(len(text)))
		e.steps[n-1].from, e.steps[n-1].want = fd, uintptr(len(text))
	}
	if _, err := e.run(); err != nil {
		var f *Error
		if errors.As(err, &f) && (f.Op == "open" || f.Op == "write") {
			return &os.PathError{Op: f.Op, Path: path, Err: f.Err}
		}
		return explain(err)
	}
	return nil
}

// sysctlPath is where a setting of a network namespace is. Others would be the whole machine's, for root.
func sysctlPath(name string) (string, error) {
	if !strings.Contains(name, "/") {
		name = strings.ReplaceAll(name, ".", "/")
	}
	if !strings.HasPrefix(name, "net/") || filepath.Clean(name) != name {
		return "", fmt.Errorf("netns: setting %q: want one of a network, as net.ipv4.ip_forward", name)
	}
	return "/proc/sys/" + name, nil
}

// Files are descriptors of its namespaces, for Join, in this process or in another one of the same user. The caller
// closes them.
func (s *Space) Files() ([]*os.File, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, net.ErrClosed
	}
	var list []*os.File
	for _, f := range []*os.File{s.user, s.net, s.mnt, s.uts} {
		if f == nil {
			continue
		}
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			for _, f := range list {
				f.Close()
			}
			return nil, &Error{Op: "dup", Err: err}
		}
		list = append(list, os.NewFile(uintptr(fd), f.Name()))
	}
	return list, nil
}

// Close lets go of the namespaces. They are there as long as a process is in them, or has descriptors of them. Programs
// with a DeathSignal get it.
func (s *Space) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for _, f := range []*os.File{s.user, s.net, s.mnt, s.uts} {
		if f != nil {
			f.Close()
		}
	}
	s.forks.close()
	return nil
}
