package qemu

import (
	"io"
	"net"
)

// begun is a connection of which something was read already.
type begun struct {
	net.Conn
	head []byte
}

func (b *begun) Read(p []byte) (int, error) {
	if len(b.head) > 0 {
		n := copy(p, b.head)
		b.head = b.head[n:]
		return n, nil
	}
	return b.Conn.Read(p)
}

// take is peek for what is no socket: it reads, and returns a connection that begins with what was read.
func take(c net.Conn, n int) ([]byte, net.Conn, error) {
	b, ok := c.(*begun)
	if !ok {
		b = &begun{Conn: c}
	}
	if have := len(b.head); have < n {
		more := make([]byte, n-have)
		got, err := io.ReadFull(b.Conn, more)
		b.head = append(b.head, more[:got]...)
		if err != nil {
			if err == io.ErrUnexpectedEOF || have > 0 && err == io.EOF {
				err = io.EOF
			}
			return b.head, b, err
		}
	}
	return b.head[:n:n], b, nil
}
