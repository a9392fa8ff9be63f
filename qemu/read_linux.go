package qemu

import (
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// sockBuf is the socket buffer asked for. With the default of 212,992 a burst of one 64 KiB segment at MTU 1500
// stalls on every other write; 1 MiB holds 16 of them, and more gained nothing.
const sockBuf = 1 << 20

func setBuffers(c net.Conn) {
	if s, ok := c.(interface {
		SetReadBuffer(int) error
		SetWriteBuffer(int) error
	}); ok {
		s.SetReadBuffer(sockBuf)
		s.SetWriteBuffer(sockBuf)
	}
}

// reader returns a function that fills several pieces with one readv(2).
func reader(c net.Conn) func([][]byte) (int, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return plainReader(c)
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return plainReader(c)
	}
	return func(iov [][]byte) (n int, err error) {
		rerr := rc.Read(func(fd uintptr) bool {
			for {
				n, err = unix.Readv(int(fd), iov)
				if err != unix.EINTR {
					return err != unix.EAGAIN
				}
			}
		})
		if rerr != nil {
			return 0, rerr
		}
		if n == 0 && err == nil {
			err = io.EOF
		}
		return n, err
	}
}
