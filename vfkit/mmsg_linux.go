package vfkit

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// atOnce is how many messages one system call moves: with more the call costs no less of each.
	atOnce = 32
	// slot is room for a usual frame, of 1500 bytes, and a power of two, so that slots fill chunks.
	slot = 2048
)

// mmsg is Linux's struct mmsghdr (recvmmsg(2)).
type mmsg struct {
	hdr unix.Msghdr
	n   uint32
}

// call is recvmmsg(2) or sendmmsg(2), made once and again: what RawConn is given escapes to the heap. It does not wait.
type call struct {
	trap  uintptr
	flags uintptr
	msgs  []mmsg
	n     int
	errno unix.Errno
	bound func(fd uintptr) // do
}

func (c *call) init(trap uintptr) {
	c.trap, c.flags = trap, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL
	if trap == unix.SYS_RECVMMSG {
		c.flags = unix.MSG_DONTWAIT | unix.MSG_CMSG_CLOEXEC
	}
	c.bound = c.do
}

// do does not tell the scheduler: there is nothing to wait for, and telling it costs as much as a small call.
func (c *call) do(fd uintptr) {
	for {
		n, _, e := unix.RawSyscall6(c.trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(c.msgs))), uintptr(len(c.msgs)), c.flags, 0, 0)
		if e != unix.EINTR {
			c.n, c.errno = int(n), e
			return
		}
	}
}

func iovec(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

// tails is where the ends of messages go that do not fit in their slots. It is touched where there are such.
type tails [atOnce][longest - slot]byte

// spareTails are lent for a call that does not wait: there are as many as processors.
var spareTails = sync.Pool{New: func() any { return new(tails) }}

// maxVec is IOV_MAX.
const maxVec = 1024
