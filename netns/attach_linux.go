package netns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hidden are services that answer for resolv.conf without reading it, over sockets that a network namespace does not
// close: nscd, and systemd-resolved by nss-resolve.
var hidden = []string{"/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket", "/var/run/nscd/socket"}

// Attach makes a TAP in a namespace, up, with an IPv6 link-local address and no other, and brings lo up. The interface
// is there until Close. Configure gives it its addresses once the wire is served.
func Attach(ctx context.Context, cfg Config) (*TAP, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if cfg.Name == "" {
		cfg.Name = DefaultName
	}
	if cfg.MAC == nil {
		cfg.MAC = randomMAC()
	}
	if len(cfg.MAC) != 6 || cfg.MAC[0]&1 != 0 {
		return nil, fmt.Errorf("netns: MAC %s: want six bytes of a single station", cfg.MAC)
	}
	req, err := unix.NewIfreq(cfg.Name)
	if err != nil || strings.ContainsAny(cfg.Name, "/% \t\n:") || cfg.Name == "." || cfg.Name == ".." {
		return nil, fmt.Errorf("netns: interface name %q: want 1 to %d bytes without / or blanks", cfg.Name, unix.IFNAMSIZ-1)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)

	e := &errand{keep: []any{req}}
	done, err := cfg.enter(e)
	if err != nil {
		return nil, err
	}
	defer done()
	tun := e.add("open /dev/net/tun", unix.SYS_OPENAT, uintptr(atCWD), e.str("/dev/net/tun"), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK)
	n := e.add("make interface "+cfg.Name, unix.SYS_IOCTL, 0, unix.TUNSETIFF, uintptr(unsafe.Pointer(req)))
	e.steps[n-1].from = tun
	route := e.add("netlink socket", unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	packet := e.add("packet socket", unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	e.back = []int{tun, route, packet}
	// Nobody else can have the address of a wire that has just been made, and whoever starts a program now does not
	// want to wait the second that it takes to ask (RFC 4862 §5.4), or the one before it asks for a router (§5.5.1).
	for _, s := range [][2]string{{"accept_dad", "0"}, {"router_solicitation_delay", "0"}, {"accept_ra", "2"}} { // also one that forwards
		e.write("/proc/sys/net/ipv6/conf/"+cfg.Name+"/"+s[0], s[1])
	}
	if cfg.NoDefault6 {
		e.write("/proc/sys/net/ipv6/conf/"+cfg.Name+"/accept_ra_defrtr", "0")
	}
	if cfg.Ping {
		e.allowPing()
	}
	if cfg.Resolv != "" {
		cfg.hideServices(e)
	}
	fds, err := e.run()
	if err != nil {
		return nil, explain(err)
	}
	t, err := newTAP(fds[0], !cfg.NoOffloads)
	if err != nil {
		unix.Close(fds[1])
		unix.Close(fds[2])
		return nil, &Error{Op: "set the TAP up", Err: err}
	}
	t.noDefault = cfg.NoDefault4
	t.Name, t.route, t.packet = cfg.Name, newNetlink(fds[1]), os.NewFile(uintptr(fds[2]), "packet")
	if err := t.setUp(cfg); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *TAP) setUp(cfg Config) error {
	if err := t.route.setLink(t.Name, cfg.MAC, cfg.MTU, false); err != nil {
		return &Error{Op: fmt.Sprintf("set MAC and MTU of %s", t.Name), Err: err}
	}
	if err := t.route.setLink("lo", nil, 0, true); err != nil {
		return &Error{Op: "set lo up", Err: err}
	}
	f, err := t.route.link(t.Name)
	if err != nil {
		return &Error{Op: "look at " + t.Name, Err: err}
	}
	t.Index, t.MAC, t.MTU = f.index, f.mac, f.mtu
	if err := t.route.setLink(t.Name, nil, 0, true); err != nil {
		return &Error{Op: fmt.Sprintf("set %s up", t.Name), Err: err}
	}
	var berr error
	if err := errors.Join(control(t.packet, func(fd int) { berr = bindPacket(fd, t.Index) }), berr); err != nil { // not before: it would find the interface down
		return &Error{Op: "bind the packet socket", Err: err}
	}
	return nil
}

// allowPing opens ping sockets for as many groups as the namespace has; what is refused leaves what was.
func (e *errand) allowPing() {
	gid := strconv.Itoa(os.Getgid())
	for _, r := range []string{"0 0", gid + " " + gid, "0 65535", "0 2147483647"} {
		e.write("/proc/sys/net/ipv4/ping_group_range", r)
	}
}

// enter adds the steps into the namespaces. done closes what they were opened by.
func (cfg *Config) enter(e *errand) (done func(), err error) {
	var open []int
	done = func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}
	in := func(path, own, what string, flag uintptr, must bool) error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			err := &Error{Op: "open " + path, Err: err}
			if errors.Is(err, fs.ErrPermission) {
				err.Hint = "its process is another user's, or of a program that keeps others from looking; be that user, or root"
			}
			return err
		}
		open = append(open, fd)
		var a, b unix.Stat_t
		if unix.Fstat(fd, &a) == nil && unix.Stat(own, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino {
			if must {
				return &Error{Op: "look at " + path, Err: errors.New("it is the " + what + " namespace that this process is in"),
					Hint: "want a process in another, as of: unshare --user --map-current-user --net sleep 1h"}
			}
			return nil // to join one's own user namespace again is refused
		}
		e.add("join the "+what+" namespace", unix.SYS_SETNS, uintptr(fd), flag)
		return nil
	}
	if cfg.space != nil {
		return cfg.space.enter(e, unix.CLONE_NEWNET)
	}
	user, netw := cfg.UserPath, cfg.Path
	if cfg.PID != 0 {
		dir := "/proc/" + strconv.Itoa(cfg.PID) + "/ns/"
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return done, &Error{Op: "attach", Err: fmt.Errorf("no process %d: %w", cfg.PID, os.ErrProcessDone)}
		}
		user, netw = dir+"user", dir+"net"
	}
	if user != "" {
		if err := in(user, "/proc/self/ns/user", "user", unix.CLONE_NEWUSER, false); err != nil {
			done()
			return nil, err
		}
	}
	if netw != "" {
		if err := in(netw, "/proc/self/ns/net", "network", unix.CLONE_NEWNET, true); err != nil {
			done()
			return nil, err
		}
	}
	if cfg.Resolv != "" {
		if err := in("/proc/"+strconv.Itoa(cfg.PID)+"/ns/mnt", "/proc/self/ns/mnt", "mount", unix.CLONE_NEWNS, true); err != nil {
			done()
			return nil, err
		}
	}
	return done, nil
}

// hideServices adds the mounts of Resolv.
func (cfg *Config) hideServices(e *errand) {
	// What is mounted on the host later is seen; what is mounted here stays here.
	e.add("keep mounts apart", unix.SYS_MOUNT, 0, e.str("/"), 0, unix.MS_REC|unix.MS_SLAVE, 0)
	e.add("mount on /etc/resolv.conf", unix.SYS_MOUNT, e.str(cfg.Resolv), e.str("/etc/resolv.conf"), 0, unix.MS_BIND, 0)
	for _, p := range hidden {
		e.try("hide "+p, unix.SYS_MOUNT, e.str("/dev/null"), e.str(p), 0, unix.MS_BIND, 0)
	}
}

// explain says what would be right.
func explain(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return &Error{Op: "enter the namespace", Err: err}
	}
	switch {
	case strings.HasPrefix(e.Op, "open /dev/net/tun"):
		switch e.Err {
		case unix.EACCES, unix.EPERM:
			e.Hint = "every user may open it on most systems: chmod 0666 /dev/net/tun. In a container: --device /dev/net/tun"
		case unix.ENOENT, unix.ENODEV, unix.ENXIO:
			e.Hint = "modprobe tun. In a container: --device /dev/net/tun"
		}
	case strings.HasPrefix(e.Op, "mount on "):
		if e.Err == unix.ENOENT {
			e.Hint = "there has to be a file to mount on: make an empty one, or what it links to"
		}
	case strings.HasPrefix(e.Op, "make interface"):
		switch e.Err {
		case unix.EBUSY, unix.EINVAL, unix.EEXIST:
			e.Hint = "is there an interface of that name already? Choose another"
		case unix.EPERM:
			e.Hint = noRights()
		}
	case e.Err == unix.EPERM:
		e.Hint = noRights()
	}
	return e
}

// noRights says why there are none in a user namespace, as far as the system tells.
func noRights() string {
	if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
		return "AppArmor gives programs without a profile no rights in user namespaces: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a profile for vmnetd with 'userns,'"
	}
	return "it takes CAP_NET_ADMIN there: be the user that made the user namespace, or root"
}

// WhyNoNamespaces says why a user may not make user namespaces, or what to look at.
func WhyNoNamespaces() string {
	for _, s := range []struct{ path, bad, hint string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1 allows user namespaces"},
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000 allows user namespaces"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor keeps user namespaces from programs without a profile: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a profile for vmnetd with 'userns,'"},
	} {
		if read(s.path) == s.bad {
			return s.hint
		}
	}
	return "does 'unshare --user true' work? A container's seccomp filter may keep user namespaces away; root needs none"
}

func read(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b))
}

func randomMAC() net.HardwareAddr {
	m := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0} // QEMU's block, locally administered
	rand.Read(m[3:])
	return m
}

// bindPacket has a packet socket take what a DHCP server sends, and nothing else.
func bindPacket(fd, index int) error {
	// UDP to port 68 in an unfragmented IPv4 packet, as bpf(4) has it.
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 12},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 8, K: unix.ETH_P_IP},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 23},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 6, K: unix.IPPROTO_UDP},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 20},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jt: 4, Jf: 0, K: 0x3fff},
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 14},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 16},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: 68},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}); err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: index})
}

func control(f *os.File, do func(fd int)) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Control(func(fd uintptr) { do(int(fd)) })
}

func htons(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// Addrs are the interface's addresses that may be used, link-local ones left out.
func (t *TAP) Addrs() ([]netip.Prefix, error) { return t.route.addrs(t.Index) }

// AddAddr gives the interface an address, for ever.
func (t *TAP) AddAddr(p netip.Prefix) error { return t.route.addAddr(t.Index, p, 0) }

// AddRoute makes via, on the interface, the default route of its family.
func (t *TAP) AddRoute(via netip.Addr) error { return t.AddRouteTo(everywhere(via), via) }

// AddRouteTo makes via, which the interface must have an address beside, the way to a prefix.
func (t *TAP) AddRouteTo(to netip.Prefix, via netip.Addr) error {
	if !to.IsValid() || to.Addr().Is4() != via.Is4() {
		return fmt.Errorf("netns: route to %s by %s: want two of one family", to, via)
	}
	return t.route.addRoute(t.Index, to, via, unix.RTPROT_STATIC)
}

// SetMTU changes the interface's MTU.
func (t *TAP) SetMTU(n int) error {
	if err := t.route.setLink(t.Name, nil, n, false); err != nil {
		return &Error{Op: fmt.Sprintf("set the MTU of %s to %d", t.Name, n), Err: err}
	}
	t.MTU = n
	return nil
}

// Remove takes the interface away and leaves it to the reader to find that the wire has ended: whoever serves it closes
// it then. Close would do for a reader that waits for the TAP itself, but not for one that waits by Poll.
func (t *TAP) Remove() error { return t.route.removeLink(t.Index) }

// Wait returns when the process has ended, or ctx has.
func Wait(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil { // before Linux 5.3
		return waitByLooking(ctx, pid)
	}
	unix.SetNonblock(fd, true)
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })()
	err = rc.Read(func(fd uintptr) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, os.ErrNoDeadline) {
		return waitByLooking(ctx, pid)
	}
	return err
}

// waitByLooking looks once a second, where nothing tells.
func waitByLooking(ctx context.Context, pid int) error {
	for {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}
