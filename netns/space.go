package netns

import (
	"os"
	"syscall"
)

// SpaceOptions say what is in a Space. The zero value of each field has a meaning.
type SpaceOptions struct {
	// Hostname is what it calls itself; what the caller's does, if empty.
	Hostname string
	// Resolv and Hosts are the texts of its /etc/resolv.conf and /etc/hosts; if empty, they are the caller's.
	Resolv, Hosts string
	// Sysctls are set before there is any interface but lo. See Space.Sysctl. Those of TrySysctls are left as they are where
	// they cannot be set: where /proc/sys is read-only, as in most containers.
	Sysctls, TrySysctls map[string]string
	// Mark is what is said to be mounted on its /run, "tmpfs" if empty: every process in it is known by that
	// (proc_pid_mountinfo(5)), also one that has thrown its environment away.
	Mark string
}

// Process is a program to start in a Space.
type Process struct {
	// Args are the program and its arguments. A program without a slash is looked for in Env's PATH.
	Args []string
	// Env is the caller's if nil; of two with one name the last counts. Its PATH gets the folders of root's programs added.
	Env []string
	Dir string // the caller's if empty, or / where that is hidden
	// Files are its descriptors, from 0 on. One that is nil, or that is not there of the first three, is /dev/null.
	Files []*os.File
	// Session begins a session: the caller's terminal cannot stop it, nor all of what it starts. With Terminal, Files[0]
	// is the controlling terminal of that.
	Session, Terminal bool
	// DeathSignal is what it gets when the caller's process ends, however that does, or when the Space is closed: none
	// if 0. Its children do not get it.
	DeathSignal syscall.Signal
	// Processes bounds how many there are in the space at a time, for it and what it starts: RLIMIT_NPROC, which Linux
	// counts by user namespace since 5.14, and before by user. Root of the machine is not bound. 0: the caller's bound.
	Processes uint64

	path, dir string
	null      *os.File
}
