package lab

import "syscall"

// childAttr has a child go when the thread that started it does: when this process is killed. Ctrl-C at a terminal does not
// reach it, which is the lab's to handle.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
