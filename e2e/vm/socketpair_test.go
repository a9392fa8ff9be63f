//go:build unix

package vm

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// socketPair is our end as a connection and QEMU's as a file.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, nil, err
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	f := os.NewFile(uintptr(fds[0]), "ours")
	defer f.Close()
	c, err := net.FileConn(f)
	return c, os.NewFile(uintptr(fds[1]), "theirs"), err
}
