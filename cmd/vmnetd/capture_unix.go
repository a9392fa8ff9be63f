//go:build unix

package main

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// readerGone calls f when nobody reads from a pipe or socket any more.
func readerGone(pipe *os.File, f func()) {
	fd := int(pipe.Fd())
	go func() {
		for { // what is asked for comes without being asked: an error, or that the other end has hung up
			fds := []unix.PollFd{{Fd: int32(fd)}}
			n, err := unix.Poll(fds, -1)
			if n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0 {
				f()
				return
			}
			if !errors.Is(err, syscall.EINTR) {
				return
			}
		}
	}()
}
