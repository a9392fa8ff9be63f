//go:build unix

package main

import (
	"os"
	"syscall"
)

// execSSH becomes ssh: the terminal is its own then.
func execSSH(argv []string) error {
	path, err := find(argv[0])
	if err != nil {
		return hintError{err, "on Debian: apt install openssh-client"}
	}
	return cannotExec{syscall.Exec(path, argv, os.Environ())}
}
