//go:build unix && !linux

package main

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// ownProgram is this program.
func ownProgram() string {
	if p, err := os.Executable(); err == nil {
		return p
	}
	return os.Args[0]
}

// keepAll has no descriptor but the standard ones go on to what we start.
func keepAll() {
	n, ok := fileLimit()
	const most = 4096 // whoever hands more on is not a shell
	if !ok || n > most {
		n = most
	}
	for fd := 3; fd < int(n); fd++ {
		unix.CloseOnExec(fd)
	}
}

// adopt does nothing: orphans are init's here.
func adopt(context.Context) <-chan struct{} {
	over := make(chan struct{})
	close(over)
	return over
}
