//go:build !linux

package qemu

import "net"

func setBuffers(net.Conn) {}

func reader(c net.Conn) func([][]byte) (int, error) { return plainReader(c) }
