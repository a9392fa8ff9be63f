//go:build unix

package vm

import (
	"os/exec"
	"syscall"
)

// ownGroup puts a process and its children into a group of their own, so that Ctrl-C at the test
// does not reach them before Close and killGroup reaches them all.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// killGroup ends the group. It may be gone already.
func killGroup(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }

func inGroup(pid, group int) bool {
	g, err := syscall.Getpgid(pid)
	return err == nil && g == group
}
