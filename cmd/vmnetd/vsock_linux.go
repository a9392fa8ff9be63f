package main

import (
	"net"
	"os"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// inheritedVsock makes a listener of a descriptor that is a vsock one, as systemd's ListenStream=vsock::1024 hands it
// over. It returns nil for any other descriptor.
func inheritedVsock(fd int) (net.Listener, error) {
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain != unix.AF_VSOCK {
		return nil, nil
	}
	if listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listening == 0 {
		return nil, errVsockConn
	}
	f := os.NewFile(uintptr(fd), "vsock")
	defer f.Close() // the listener has a copy
	l, err := vsock.FileListener(f)
	if err != nil {
		return nil, err
	}
	return l, nil
}
