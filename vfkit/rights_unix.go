//go:build unix

package vfkit

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/link"
)

// handOverTime is how long somebody who has connected may take to send a descriptor: it comes with the first byte.
const handOverTime = 10 * time.Second

// AcceptDescriptor returns the wire of a socket whose descriptor comes over c, a unix stream connection, with SCM_RIGHTS
// (unix(7)), as Lima hands over one end of a datagram socketpair. It closes c.
func AcceptDescriptor(c net.Conn, o Options) (link.Link, error) {
	defer c.Close()
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("vfkit: descriptors come over unix sockets only, not %s", c.LocalAddr().Network())
	}
	u.SetReadDeadline(time.Now().Add(handOverTime))
	const most = 8 // more are cut off, and closed, by the system
	b, oob := make([]byte, 64), make([]byte, unix.CmsgSpace(most*4))
	_, n, _, _, err := u.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, fmt.Errorf("vfkit: descriptor: %w", err)
	}
	var fds []int
	if msgs, err := unix.ParseSocketControlMessage(oob[:n]); err == nil {
		for i := range msgs {
			if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
				fds = append(fds, got...)
			}
		}
	}
	if len(fds) != 1 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("vfkit: %d descriptors came, want one of a connected datagram socket", len(fds))
	}
	f := os.NewFile(uintptr(fds[0]), "vfkit")
	defer f.Close() // net makes a copy
	dgram, err := Connected(f)
	if err != nil {
		return nil, err
	}
	return NewLink(dgram, o), nil
}

// Connected makes a connection of a connected socket that keeps messages apart. f stays open.
func Connected(f *os.File) (net.Conn, error) {
	kind, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, errors.New("vfkit: the descriptor is no socket's")
	}
	if kind != unix.SOCK_DGRAM && kind != unix.SOCK_SEQPACKET {
		return nil, errors.New("vfkit: the descriptor's socket does not keep messages apart: want a datagram or seqpacket socket")
	}
	if _, err := unix.Getpeername(int(f.Fd())); err != nil {
		return nil, fmt.Errorf("vfkit: the descriptor's socket is not connected: %w", os.NewSyscallError("getpeername", err))
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("vfkit: descriptor: %w", err)
	}
	return c, nil
}
