package qemu

import "net"

// plainReader reads into the first piece: for connections that have no descriptor of their own.
func plainReader(c net.Conn) func([][]byte) (int, error) {
	return func(iov [][]byte) (int, error) { return c.Read(iov[0]) }
}
