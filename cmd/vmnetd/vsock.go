package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"

	"github.com/mdlayher/vsock"
)

// The context IDs with a meaning of their own (vsock(7)).
const (
	cidAny   uint32 = 1<<32 - 1 // listening: whichever this machine has
	portMost uint64 = 1<<32 - 2
)

var cidNames = map[string]uint32{"any": cidAny, "local": vsock.Local, "host": vsock.Host}

// vsockHost is what to do where AF_VSOCK is not.
const vsockHost = "Firecracker, vfkit and krunkit give their guests' vsock out as unix sockets: listen there, with unix:PATH"

// parseVsock reads CID:PORT, or PORT alone for a listener.
func parseVsock(s string, listen bool) (cid, port uint32, err error) {
	c, p, both := strings.Cut(s, ":")
	if !both && listen {
		c, p = "any", s
	}
	cid, named := cidNames[c]
	if !named {
		n, err := strconv.ParseUint(c, 10, 32)
		if err != nil {
			return 0, 0, usagef("%q is no context ID: want vsock:CID:PORT, as vsock:3:1024, or any, local, host for CID", c)
		}
		cid = uint32(n)
	}
	if cid == cidAny && !listen {
		return 0, 0, usagef("no machine has the context ID %q: want that of one, 2 for the host", c)
	}
	n, err := strconv.ParseUint(p, 10, 32)
	if err != nil || n > portMost {
		return 0, 0, usagef("%q is no vsock port: want vsock:CID:PORT with a PORT of 0 to %d", p, portMost)
	}
	return cid, uint32(n), nil
}

func listenVsock(d *door, s string) (net.Listener, error) {
	cid, port, err := parseVsock(s, true)
	if err != nil {
		return nil, err
	}
	if runtime.GOOS != "linux" {
		return nil, usageError{hintError{errors.New("vsock sockets are Linux only"), vsockHost}}
	}
	if port == 0 {
		port = cidAny // VMADDR_PORT_ANY, which is what zero means elsewhere
	}
	l, err := vsock.ListenContextID(cid, port, nil)
	if err != nil {
		return nil, hintError{err, "is the module vsock loaded, and on a host vhost_vsock? " + vsockHost}
	}
	if cid != vsock.Local {
		d.note = "frames are not authenticated: each machine with a vsock to this one can plug in"
	}
	return l, nil
}

// errVsockConn is what net.FileConn cannot make anything of.
var errVsockConn = errors.New("a vsock socket that does not listen: want one that does, as systemd's ListenStream=vsock::1024 makes")

func dialVsock(cid, port uint32) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		c, err := vsock.DialContext(ctx, cid, port, nil)
		if err != nil {
			return nil, err // not a nil *Conn in a net.Conn
		}
		return c, nil
	}
}

// vsockName is an address as our flags spell it.
func vsockName(a net.Addr) string {
	v, ok := a.(*vsock.Addr)
	if !ok {
		return a.String()
	}
	for name, cid := range cidNames {
		if cid == v.ContextID {
			return fmt.Sprintf("vsock:%s:%d", name, v.Port)
		}
	}
	return fmt.Sprintf("vsock:%d:%d", v.ContextID, v.Port)
}
