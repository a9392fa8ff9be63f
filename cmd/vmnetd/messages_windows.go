package main

import (
	"net"
	"os"

	"github.com/vmnetd/vmnetd/vfkit"
)

func inheritedMessages(int) (net.Listener, vfkit.Conn, net.Conn, error) {
	return nil, nil, nil, errWindows
}

func messagePair() (net.Conn, *os.File, error) { return nil, nil, errWindows }
