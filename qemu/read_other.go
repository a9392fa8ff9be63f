//go:build !linux

package qemu

import (
	"net"

	"github.com/vmnetd/vmnetd/backend/link"
)

func setBuffers(net.Conn) {}

func reader(c net.Conn) func([][]byte) (int, error) { return plainReader(c) }

func newLink(s *stream) link.Link { return s }
