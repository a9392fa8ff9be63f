//go:build !linux

package main

import (
	"errors"
	"os"
	"runtime"
)

func execSpace(labDir, string, []string) error {
	return errors.New("nodes of kind netns are Linux's: this is " + runtime.GOOS)
}

// killLab ends a lab's process that does not answer.
func killLab(d labDir, pid int, hard bool) {
	st, now, err := d.state()
	if err != nil || st != labUp || now != pid || pid <= 0 {
		return
	}
	if p, err := os.FindProcess(pid); err == nil && hard {
		p.Kill()
	} else if err == nil {
		p.Signal(endSignals[1])
	}
}
