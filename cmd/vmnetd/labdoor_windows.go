package main

import (
	"net"
	"os"
)

func sendFiles(c *net.UnixConn, b []byte, _ []*os.File) error {
	_, err := c.Write(b)
	return err
}

func receiveFiles(c *net.UnixConn, b []byte) (int, []*os.File, error) {
	n, err := c.Read(b)
	return n, nil, err
}

func ownPeer(*net.UnixConn) bool { return true }
