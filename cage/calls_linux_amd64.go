package cage

import "golang.org/x/sys/unix"

const (
	arch    = unix.AUDIT_ARCH_X86_64
	foreign = 0x40000000 // __X32_SYSCALL_BIT: 32-bit pointers, asm/unistd.h
)

// Calls that the newer processors never had.
var (
	allowedHere = []uint32{unix.SYS_EPOLL_WAIT, unix.SYS_POLL, unix.SYS_GETPGRP, unix.SYS_DUP2, unix.SYS_READLINK, unix.SYS_ACCESS,
		unix.SYS_PIPE, unix.SYS_INOTIFY_INIT, unix.SYS_TIME}
	refusedHere = []uint32{unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_LINK, unix.SYS_SYMLINK, unix.SYS_MKNOD, unix.SYS_CHOWN, unix.SYS_LCHOWN}
	hostileHere = []uint32{unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT, unix.SYS_USELIB, unix.SYS_CREATE_MODULE,
		unix.SYS_GET_KERNEL_SYMS, unix.SYS_QUERY_MODULE, unix.SYS_SYSFS, unix.SYS__SYSCTL}
)
