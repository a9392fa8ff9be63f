package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/vmnetd/vmnetd/netns"
	"golang.org/x/sys/unix"
)

func examineSystem() []finding {
	list := []finding{examineUser(), examineNamespaces(), examineTUN(), examinePing("IPv4", unix.AF_INET, unix.IPPROTO_ICMP), examinePing("IPv6", unix.AF_INET6, unix.IPPROTO_ICMPV6)}
	return append(list, examinePorts())
}

// examineUser says who a daemon of this user's would be.
func examineUser() finding {
	f := finding{Name: "user", OK: true, Is: fmt.Sprintf("%d", os.Geteuid())}
	if os.Geteuid() != 0 {
		return f
	}
	u, err := findUser("")
	if err != nil {
		return finding{Name: "user", Is: err.Error(), Lacks: "root's daemon stays root", Do: "--user NAME"}
	}
	f.Is = fmt.Sprintf("root, whose daemon becomes %s", u.Name)
	if u.Name != "vmnetd" {
		f.Do = "a user of its own is better than one that others share: useradd --system --no-create-home --shell /usr/sbin/nologin vmnetd"
	}
	return f
}

// examineNamespaces makes a user and a network namespace, as 'run --netns' does.
func examineNamespaces() finding {
	f := finding{Name: "namespaces"}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{os.Args[0], "version"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		f.Is, f.Lacks, f.Do = err.Error(), "'run --netns' and labs' nodes of kind netns do not work; virtual machines need none", netns.WhyNoNamespaces()
		return f
	}
	f.OK, f.Is = true, "user and network namespaces can be made"
	if os.Geteuid() == 0 {
		f.Is = "network namespaces can be made"
	}
	return f
}

func examineTUN() finding {
	f := finding{Name: "/dev/net/tun"}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		f.OK, f.Is = true, "can be opened"
		return f
	}
	f.Is, f.Lacks = err.Error(), "'run --netns', 'attach', 'guest' and labs' nodes of kind netns do not work; virtual machines need none"
	f.Do = "modprobe tun. In a container: --device /dev/net/tun"
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		f.Do = "every user may open it on most systems: chmod 0666 /dev/net/tun. In a container: --device /dev/net/tun"
	}
	return f
}

// examinePing opens a socket for echo requests.
func examinePing(name string, family, proto int) finding {
	f := finding{Name: name + " ping"}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
	if err == nil {
		unix.Close(fd)
		f.OK, f.Is = true, "sockets can be opened"
		return f
	}
	f.Is, f.Lacks = err.Error(), "guests' pings beyond their network are not answered"
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		now, _ := os.ReadFile("/proc/sys/net/ipv4/ping_group_range")
		f.Is = fmt.Sprintf("net.ipv4.ping_group_range is %q and leaves out group %d", strings.Join(strings.Fields(string(now)), " "), os.Getegid())
		f.Do = "sysctl -w net.ipv4.ping_group_range='0 2147483647'"
	}
	return f
}

// examinePorts looks which ports may be forwarded.
func examinePorts() finding {
	f := finding{Name: "ports"}
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	start := strings.TrimSpace(string(b))
	if err != nil {
		start = "1024"
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if start == "0" || unix.Capget(&hdr, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_NET_BIND_SERVICE) != 0 {
		f.OK, f.Is = true, "any may be forwarded"
		return f
	}
	f.Is, f.Lacks = "from "+start+" up", "ports below "+start+" cannot be forwarded"
	f.Do = "sysctl -w net.ipv4.ip_unprivileged_port_start=80, or setcap cap_net_bind_service=+ep on the program"
	return f
}
