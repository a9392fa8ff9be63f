//go:build unix

package main

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// sendFiles writes b, with files at its first byte.
func sendFiles(c *net.UnixConn, b []byte, files []*os.File) error {
	if len(files) == 0 {
		_, err := c.Write(b)
		return err
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	n, _, err := c.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
	if err == nil && n < len(b) {
		_, err = c.Write(b[n:])
	}
	return err
}

// receiveFiles reads into b, and takes files that come.
func receiveFiles(c *net.UnixConn, b []byte) (n int, files []*os.File, err error) {
	oob := make([]byte, unix.CmsgSpace(4*maxSpaceFiles))
	n, on, _, _, err := c.ReadMsgUnix(b, oob) // Go asks for close-on-exec
	if err != nil || on == 0 {
		return n, nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil {
		return n, nil, err
	}
	for i := range msgs {
		fds, _ := unix.ParseUnixRights(&msgs[i])
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "namespace"))
		}
	}
	return n, files, nil
}
