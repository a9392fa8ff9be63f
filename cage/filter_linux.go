//go:build amd64 || arm64

package cage

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The filter is a list of what is allowed: what Go's runtime and glibc (of programs built with cgo) call, and what this
// program's end-to-end tests, run in it, turned out to need beside. It has three answers for the rest:
//
//   - calls that only an attacker makes end the process: probing goes no further, and it is in the kernel's log;
//   - calls that code of ours or of a library may make, and must not, fail with EPERM;
//   - all others fail with ENOSYS, as on an older kernel: libraries then do what they did before there was that call.

// allowed are calls that need no look at their arguments: they act on descriptors, on this program's own memory, threads
// and clocks, or on files, which Landlock and the file's modes judge.
var allowed = []uint32{
	// descriptors
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_PREADV, unix.SYS_PWRITEV,
	unix.SYS_CLOSE, unix.SYS_CLOSE_RANGE, unix.SYS_FCNTL, unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_LSEEK, unix.SYS_PIPE2, unix.SYS_SPLICE,
	unix.SYS_TEE, unix.SYS_SENDFILE, unix.SYS_COPY_FILE_RANGE, unix.SYS_FLOCK, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FTRUNCATE,
	unix.SYS_FALLOCATE, unix.SYS_FADVISE64,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2, unix.SYS_PPOLL, unix.SYS_PSELECT6,
	unix.SYS_EVENTFD2, unix.SYS_TIMERFD_CREATE, unix.SYS_TIMERFD_SETTIME, unix.SYS_TIMERFD_GETTIME,
	unix.SYS_INOTIFY_INIT1, unix.SYS_INOTIFY_ADD_WATCH, unix.SYS_INOTIFY_RM_WATCH,
	// sockets
	unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT, unix.SYS_ACCEPT4, unix.SYS_CONNECT, unix.SYS_SHUTDOWN, unix.SYS_GETSOCKNAME,
	unix.SYS_GETPEERNAME, unix.SYS_GETSOCKOPT, unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG,
	unix.SYS_SENDMMSG, unix.SYS_RECVMMSG,
	// files
	unix.SYS_OPENAT, unix.SYS_FSTAT, unix.SYS_NEWFSTATAT, unix.SYS_STATX, unix.SYS_STATFS, unix.SYS_FSTATFS, unix.SYS_FACCESSAT,
	unix.SYS_FACCESSAT2, unix.SYS_READLINKAT, unix.SYS_GETDENTS64, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT, unix.SYS_RENAMEAT,
	unix.SYS_RENAMEAT2, unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_UMASK, unix.SYS_GETCWD,
	// memory
	unix.SYS_MUNMAP, unix.SYS_MREMAP, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_BRK, unix.SYS_MEMBARRIER,
	// threads
	unix.SYS_FUTEX, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN,
	unix.SYS_RT_SIGTIMEDWAIT, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY,
	unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_SET_TID_ADDRESS, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETPPID,
	unix.SYS_WAIT4, unix.SYS_WAITID,
	// clocks
	unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY,
	unix.SYS_SETITIMER, unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE,
	// what only tells
	unix.SYS_GETRANDOM, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_GETRESUID, unix.SYS_GETRESGID,
	unix.SYS_GETGROUPS, unix.SYS_GETPGID, unix.SYS_GETSID, unix.SYS_GETRUSAGE, unix.SYS_GETRLIMIT, unix.SYS_TIMES, unix.SYS_SYSINFO,
	unix.SYS_UNAME, unix.SYS_GETCPU, unix.SYS_CAPGET,
}

// refused fail with EPERM.
var refused = []uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT,
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETGROUPS,
	unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_CAPSET, unix.SYS_SETPGID, unix.SYS_SETSID, unix.SYS_SETPRIORITY, unix.SYS_SETRLIMIT,
	unix.SYS_SCHED_SETAFFINITY, unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_SETPARAM, unix.SYS_SCHED_SETATTR, unix.SYS_IOPRIO_SET,
	unix.SYS_SECCOMP, unix.SYS_LANDLOCK_CREATE_RULESET, unix.SYS_LANDLOCK_ADD_RULE, unix.SYS_LANDLOCK_RESTRICT_SELF,
	unix.SYS_SOCKETPAIR, unix.SYS_MEMFD_CREATE, unix.SYS_MEMFD_SECRET, unix.SYS_PKEY_MPROTECT,
	unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_MKNODAT, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_TRUNCATE, unix.SYS_UTIMENSAT,
	unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR,
	unix.SYS_CHDIR, unix.SYS_FCHDIR, unix.SYS_TKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO,
	unix.SYS_FANOTIFY_INIT, unix.SYS_FANOTIFY_MARK, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_SHMGET, unix.SYS_SHMAT, unix.SYS_SHMCTL,
	unix.SYS_MSGGET, unix.SYS_SEMGET, unix.SYS_MQ_OPEN, unix.SYS_REMAP_FILE_PAGES, unix.SYS_MOVE_PAGES, unix.SYS_MIGRATE_PAGES,
	unix.SYS_PROCESS_MADVISE,
}

// hostile end the process.
var hostile = []uint32{
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP, unix.SYS_PIDFD_GETFD,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_FSOPEN,
	unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_PERSONALITY,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER,
	unix.SYS_IO_URING_REGISTER, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_VMSPLICE, unix.SYS_LOOKUP_DCOOKIE,
	unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_SYSLOG,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME, unix.SYS_SETHOSTNAME,
	unix.SYS_SETDOMAINNAME, unix.SYS_VHANGUP, unix.SYS_NFSSERVCTL,
}

const (
	prSetVMA       = 0x53564d41 // linux/prctl.h: Go's runtime names its memory
	sockTypes      = 0xf        // SOCK_TYPE_MASK, linux/net.h
	tiocGetPgrp    = unix.TIOCGPGRP
	solSocket      = unix.SOL_SOCKET
	newNamespaces  = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
	threadsOfOurs  = unix.CLONE_THREAD | unix.CLONE_VM | unix.CLONE_SIGHAND
	executableCode = unix.PROT_EXEC
)

// rules are the filter's, for a process of this number.
func (p Plan) rules(pid uint32) []rule {
	eperm := refuse(unix.EPERM)
	var rules []rule
	each := func(list []uint32, a action) {
		for _, n := range list {
			rules = append(rules, rule{number: n, then: a})
		}
	}
	only := func(number uint32, cases ...[]match) {
		r := rule{number: number, then: allow, otherwise: eperm, cases: cases}
		if len(cases) == 0 {
			r.then = eperm
		}
		rules = append(rules, r)
	}
	but := func(number uint32, cases ...[]match) {
		rules = append(rules, rule{number: number, then: eperm, otherwise: allow, cases: cases})
	}
	each(allowed, allow)
	each(allowedHere, allow)
	each(refused, eperm)
	each(refusedHere, eperm)
	each(hostile, kill)
	each(hostileHere, kill)

	kind := func(n uint32) match { return match{arg: 1, mask: sockTypes, value: n} }
	sockets := [][]match{
		{is(0, unix.AF_INET), kind(unix.SOCK_STREAM)}, {is(0, unix.AF_INET), kind(unix.SOCK_DGRAM)},
		{is(0, unix.AF_INET6), kind(unix.SOCK_STREAM)}, {is(0, unix.AF_INET6), kind(unix.SOCK_DGRAM)},
		{is(0, unix.AF_NETLINK), is(2, unix.NETLINK_ROUTE)}, // the host's addresses and routes, in package net
	}
	if p.Streams {
		sockets = append(sockets, []match{is(0, unix.AF_UNIX), kind(unix.SOCK_STREAM)})
	}
	if p.Datagrams {
		sockets = append(sockets, []match{is(0, unix.AF_UNIX), kind(unix.SOCK_DGRAM)})
	}
	if p.Vsock {
		sockets = append(sockets, []match{is(0, unix.AF_VSOCK)})
	}
	only(unix.SYS_SOCKET, sockets...)
	// Filters on sockets are programs for the kernel's compiler.
	var attach [][]match
	for _, o := range []uint32{unix.SO_ATTACH_FILTER, unix.SO_ATTACH_BPF, unix.SO_ATTACH_REUSEPORT_CBPF, unix.SO_ATTACH_REUSEPORT_EBPF} {
		attach = append(attach, []match{is(1, solSocket), is(2, o)})
	}
	but(unix.SYS_SETSOCKOPT, attach...)

	// No new code: neither Go nor what we call makes any.
	but(unix.SYS_MMAP, []match{{arg: 2, mask: executableCode, value: executableCode}})
	but(unix.SYS_MPROTECT, []match{{arg: 2, mask: executableCode, value: executableCode}})
	// Threads and nothing else. What asks clone3, as glibc does, hears ENOSYS, and asks clone.
	only(unix.SYS_CLONE, []match{{arg: 0, mask: threadsOfOurs | newNamespaces, value: threadsOfOurs}})

	signals := [][]match{{is(0, pid)}}
	if p.Child > 0 {
		signals = append(signals, []match{is(0, uint32(p.Child))})
	}
	only(unix.SYS_KILL, signals...)
	only(unix.SYS_TGKILL, []match{is(0, pid)})
	if p.Child > 0 { // package os signals by a descriptor, and can have no other's: it takes pidfd_open
		each([]uint32{unix.SYS_PIDFD_SEND_SIGNAL}, allow)
	} else {
		each([]uint32{unix.SYS_PIDFD_SEND_SIGNAL}, eperm)
	}
	if p.Watch && p.Child == 0 {
		each([]uint32{unix.SYS_PIDFD_OPEN}, allow)
	} else {
		each([]uint32{unix.SYS_PIDFD_OPEN}, eperm)
	}

	only(unix.SYS_PRCTL, []match{is(0, prSetVMA)}, []match{is(0, unix.PR_SET_NAME)}, []match{is(0, unix.PR_GET_NAME)},
		[]match{is(0, unix.PR_SET_TIMERSLACK)}, []match{is(0, unix.PR_GET_DUMPABLE)}, []match{is(0, unix.PR_CAPBSET_READ)})
	// Limits may be read: no new value is handed in, and of no other process.
	only(unix.SYS_PRLIMIT64, []match{is(0, 0), is(2, 0), {arg: 2, high: true, mask: ^uint32(0)}},
		[]match{is(0, pid), is(2, 0), {arg: 2, high: true, mask: ^uint32(0)}})
	// Not TIOCSTI, which types into a terminal, nor what makes interfaces.
	only(unix.SYS_IOCTL, []match{is(1, tiocGetPgrp)}, []match{is(1, unix.TCGETS)}, []match{is(1, unix.TIOCGWINSZ)}, []match{is(1, unix.SIOCINQ)},
		[]match{is(1, unix.SIOCOUTQ)}, []match{is(1, unix.TUNSETOFFLOAD)})
	return rules
}

// filter closes the door on system calls, for all threads at once.
func (p Plan) filter() error {
	if err := canFilter(); err != nil {
		return err
	}
	prog, err := assemble(arch, foreign, p.rules(uint32(os.Getpid())), refuse(unix.ENOSYS))
	if err != nil {
		return err
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return err
	}
	list := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		list[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(list)), Filter: &list[0]}
	// A filter has kernels before 5.16 turn speculation off for the process, against code in it that is not to be trusted.
	// There is none here, and it costs some percent.
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	r, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(list)
	switch {
	case errno != 0:
		return errno
	case r != 0:
		return fmt.Errorf("thread %d has a filter of its own", r)
	}
	return nil
}

// canFilter says why there can be no filter.
func canFilter() error {
	for _, a := range []action{allow, kill, refuse(0)} {
		a := uint32(a)
		if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&a))); errno != 0 {
			if errno == unix.ENOSYS || errno == unix.EINVAL {
				return errors.New("the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER, Linux 4.14)")
			}
			return errno
		}
	}
	return nil
}
