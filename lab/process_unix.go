//go:build unix && !linux

package lab

import "syscall"

// childAttr keeps Ctrl-C at a terminal from a child, which is the lab's to handle.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
