//go:build !unix

package control

import "os/exec"

func beSomebodyElse(*exec.Cmd) {}
