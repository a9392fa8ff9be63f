//go:build unix

package main

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/vfkit"
)

var errNoMessages = errors.New("not a datagram or seqpacket socket, on which each frame is apart")

// inheritedMessages makes one of these of a descriptor that this process was started with: a listener, a socket that any
// number of peers send to, a connection.
func inheritedMessages(fd int) (l net.Listener, shared vfkit.Conn, one net.Conn, err error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	switch {
	case err == unix.EBADF:
		return nil, nil, nil, errNoDescriptor
	case err != nil:
		return nil, nil, nil, errNoSocket
	case kind != unix.SOCK_DGRAM && kind != unix.SOCK_SEQPACKET:
		return nil, nil, nil, errNoMessages
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close() // net makes a copy, which no child inherits
	_, err = unix.Getpeername(fd)
	switch {
	case err == nil:
		one, err = net.FileConn(f)
		return nil, nil, one, err
	case kind == unix.SOCK_SEQPACKET:
		l, err = net.FileListener(f)
		return l, nil, nil, err
	}
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, nil, nil, err
	}
	shared, ok := pc.(vfkit.Conn)
	if !ok {
		pc.Close()
		return nil, nil, nil, errNoMessages
	}
	return nil, shared, nil, nil
}

// messagePair returns two ends of a datagram socketpair: ours, and one for a child. Its buffers are those that Apple's
// framework wants of such a socket: the receiver's four times the sender's.
func messagePair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unixSocketpair(unix.SOCK_DGRAM)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	return pairOf(fds)
}
