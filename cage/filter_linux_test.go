//go:build amd64 || arm64

package cage

import (
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// What the filter says of calls whose arguments it looks at.
func TestRules(t *testing.T) {
	const pid, child = 4242, 777
	eperm, enosys := refuse(unix.EPERM), refuse(unix.ENOSYS)
	everything := Plan{Streams: true, Datagrams: true, Vsock: true, Watch: true}
	thread := uint64(unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD) // Go's
	for _, tt := range []struct {
		name   string
		plan   Plan
		number uint32
		args   [6]uint64
		want   action
	}{
		{"TCP", Plan{}, unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC}, allow},
		{"UDP6", Plan{}, unix.SYS_SOCKET, [6]uint64{unix.AF_INET6, unix.SOCK_DGRAM}, allow},
		{"Ping", Plan{}, unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, allow},
		{"Raw", everything, unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, eperm},
		{"RawHighBits", everything, unix.SYS_SOCKET, [6]uint64{unix.AF_INET | 1<<32, unix.SOCK_RAW | 1<<40, unix.IPPROTO_ICMP}, eperm},
		{"Packet", everything, unix.SYS_SOCKET, [6]uint64{unix.AF_PACKET, unix.SOCK_DGRAM}, eperm},
		{"Crypto", everything, unix.SYS_SOCKET, [6]uint64{unix.AF_ALG, unix.SOCK_SEQPACKET}, eperm},
		{"Routes", Plan{}, unix.SYS_SOCKET, [6]uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, allow},
		{"Netfilter", everything, unix.SYS_SOCKET, [6]uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, eperm},
		{"Unix", Plan{}, unix.SYS_SOCKET, [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM}, eperm},
		{"UnixStreams", Plan{Streams: true}, unix.SYS_SOCKET, [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM | unix.SOCK_CLOEXEC}, allow},
		{"UnixDatagramsOnly", Plan{Datagrams: true}, unix.SYS_SOCKET, [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM}, eperm},
		{"UnixDatagrams", Plan{Datagrams: true}, unix.SYS_SOCKET, [6]uint64{unix.AF_UNIX, unix.SOCK_DGRAM}, allow},
		{"NoVsock", Plan{}, unix.SYS_SOCKET, [6]uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, eperm},
		{"Vsock", Plan{Vsock: true}, unix.SYS_SOCKET, [6]uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, allow},
		{"NoDelay", Plan{}, unix.SYS_SETSOCKOPT, [6]uint64{3, unix.IPPROTO_TCP, unix.TCP_NODELAY}, allow},
		{"SameNumberElsewhere", Plan{}, unix.SYS_SETSOCKOPT, [6]uint64{3, unix.IPPROTO_TCP, unix.SO_ATTACH_FILTER}, allow},
		{"SocketFilter", everything, unix.SYS_SETSOCKOPT, [6]uint64{3, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER}, eperm},
		{"Memory", Plan{}, unix.SYS_MMAP, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE}, allow},
		{"Code", everything, unix.SYS_MMAP, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}, eperm},
		{"CodeLater", everything, unix.SYS_MPROTECT, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}, eperm},
		{"Thread", Plan{}, unix.SYS_CLONE, [6]uint64{thread}, allow},
		{"Fork", everything, unix.SYS_CLONE, [6]uint64{uint64(unix.SIGCHLD)}, eperm},
		{"Vfork", everything, unix.SYS_CLONE, [6]uint64{unix.CLONE_VM | unix.CLONE_VFORK | uint64(unix.SIGCHLD)}, eperm},
		{"Namespace", everything, unix.SYS_CLONE, [6]uint64{thread | unix.CLONE_NEWNET}, eperm},
		{"Clone3", everything, unix.SYS_CLONE3, [6]uint64{}, enosys},
		{"Itself", Plan{}, unix.SYS_KILL, [6]uint64{pid, 15}, allow},
		{"Everybody", Plan{Child: child}, unix.SYS_KILL, [6]uint64{^uint64(0), 9}, eperm},
		{"Group", Plan{Child: child}, unix.SYS_KILL, [6]uint64{0, 9}, eperm},
		{"Child", Plan{Child: child}, unix.SYS_KILL, [6]uint64{child, 15}, allow},
		{"NoChild", Plan{}, unix.SYS_KILL, [6]uint64{child, 15}, eperm},
		{"OthersThread", everything, unix.SYS_TGKILL, [6]uint64{1, 1, 9}, eperm},
		{"ChildByDescriptor", Plan{Child: child}, unix.SYS_PIDFD_SEND_SIGNAL, [6]uint64{5, 15}, allow},
		{"NobodyByDescriptor", everything, unix.SYS_PIDFD_SEND_SIGNAL, [6]uint64{5, 15}, eperm},
		{"NoDescriptorsBesideChild", Plan{Child: child, Watch: true}, unix.SYS_PIDFD_OPEN, [6]uint64{1}, eperm},
		{"Watch", Plan{Watch: true}, unix.SYS_PIDFD_OPEN, [6]uint64{1}, allow},
		{"Dumpable", everything, unix.SYS_PRCTL, [6]uint64{unix.PR_SET_DUMPABLE, 1}, eperm},
		{"TimerSlack", Plan{}, unix.SYS_PRCTL, [6]uint64{unix.PR_SET_TIMERSLACK, 1}, allow},
		{"Limits", Plan{}, unix.SYS_PRLIMIT64, [6]uint64{0, unix.RLIMIT_NOFILE, 0, 0xc000123456}, allow},
		{"RaiseLimits", everything, unix.SYS_PRLIMIT64, [6]uint64{0, unix.RLIMIT_CORE, 0xc000123456}, eperm},
		{"RaiseLimitsHigh", everything, unix.SYS_PRLIMIT64, [6]uint64{0, unix.RLIMIT_CORE, 1 << 40}, eperm},
		{"OthersLimits", everything, unix.SYS_PRLIMIT64, [6]uint64{1, unix.RLIMIT_CORE, 0}, eperm},
		{"Type", everything, unix.SYS_IOCTL, [6]uint64{0, unix.TIOCSTI}, eperm},
		{"Interface", everything, unix.SYS_IOCTL, [6]uint64{9, unix.TUNSETIFF}, eperm},
		{"Group leader", Plan{}, unix.SYS_IOCTL, [6]uint64{9, unix.TIOCGPGRP}, allow},
		{"Exec", everything, unix.SYS_EXECVE, [6]uint64{}, eperm},
		{"Ptrace", everything, unix.SYS_PTRACE, [6]uint64{}, kill},
		{"Bpf", everything, unix.SYS_BPF, [6]uint64{}, kill},
		{"NotKnown", everything, 1000, [6]uint64{}, enosys},
	} {
		t.Run(tt.name, func(t *testing.T) {
			prog, err := assemble(arch, foreign, tt.plan.rules(pid), enosys)
			if err != nil {
				t.Fatal(err)
			}
			vm, err := bpf.NewVM(prog)
			if err != nil {
				t.Fatal(err)
			}
			if got := (call{arch, tt.number, tt.args}).run(t, vm); got != tt.want {
				t.Errorf("%#x, want %#x", got, tt.want)
			}
		})
	}
}
