package portforward

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// openHost opens the i-th socket of a normalized rule and returns the port it
// got.
func openHost(r Rule, i int) (hostSocket, uint16, *problem) {
	guest := r.GuestPort + uint16(i)
	if r.Proto == Unix {
		s, p := openUnix(r.Path, guest)
		return s, 0, p
	}
	if zone := r.Host.Zone(); zone != "" && !hasInterface(zone) {
		return nil, 0, wrong(ErrNoAddress, "this host has no interface %s", quote(zone))
	}
	at := netip.AddrPortFrom(r.Host, r.HostPort)
	if r.HostPort != 0 {
		at = netip.AddrPortFrom(r.Host, r.HostPort+uint16(i))
	}
	family := "4"
	if r.Host.Is6() {
		family = "6" // and only 6: [::] leaves 0.0.0.0 to another rule
	}
	if r.Proto == UDP {
		pc, err := net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(at))
		if err != nil {
			return nil, 0, bindProblem(UDP, at, err)
		}
		raw, err := pc.SyscallConn()
		if err != nil {
			pc.Close()
			return nil, 0, bindProblem(UDP, at, err)
		}
		s := &datagramSocket{UDPConn: pc, raw: raw, port: guest, wild: r.Host.IsUnspecified(), v6: r.Host.Is6()}
		if s.wild {
			if err := s.watchDst(); err != nil {
				pc.Close()
				return nil, 0, &problem{kind: ErrBind, err: err, text: fmt.Sprintf(
					"this system does not tell which of the host's addresses a datagram to %s came to (%v): name one address", r.Host, err)}
			}
		}
		return s, pc.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
	}
	lc := listenConfig()
	lc.SetMultipathTCP(false) // a reset must stay a plain TCP reset
	l, err := lc.Listen(context.Background(), "tcp"+family, at.String())
	if err != nil {
		return nil, 0, bindProblem(TCP, at, err)
	}
	return &streamSocket{Listener: l, port: guest}, l.Addr().(*net.TCPAddr).AddrPort().Port(), nil
}

func hasInterface(zone string) bool {
	if n, err := strconv.Atoi(zone); err == nil {
		_, err = net.InterfaceByIndex(n)
		return err == nil
	}
	_, err := net.InterfaceByName(zone)
	return err == nil
}

// bindProblem says what the system meant when it refused an address.
func bindProblem(proto Proto, at netip.AddrPort, err error) *problem {
	text := ""
	kind := ErrBind
	switch start := unprivilegedPorts(); {
	case isInUse(err):
		kind = ErrInUse
		text = fmt.Sprintf("%s %s is in use by %s: stop that or use another host port", proto, at, portOwner(proto, at))
	case isDenied(err) && at.Port() != 0 && int(at.Port()) < start:
		kind = ErrPrivileged
		text = fmt.Sprintf("port %d is privileged: ports below %d are for root and CAP_NET_BIND_SERVICE (%s); "+
			"use a port from %d up, or allow it: %s", at.Port(), start, privilegedWhere, start, privilegedHow(at.Port()))
	case isNoAddress(err):
		kind = ErrNoAddress
		text = fmt.Sprintf("%s is not an address of this host (%s)", at.Addr(), hostAddresses())
	case isNoFamily(err):
		kind = ErrNoAddress
		text = fmt.Sprintf("%s: this host has no IPv6", at.Addr())
		if at.Addr().Is4() {
			text = fmt.Sprintf("%s: this host has no IPv4", at.Addr())
		}
	case isNoDescriptors(err):
		text = fmt.Sprintf("%s %s: no more file descriptors (%v): forward fewer ports or raise the limit (ulimit -n)", proto, at, rootCause(err))
	default:
		text = fmt.Sprintf("%s %s cannot be listened on: %v", proto, at, rootCause(err))
	}
	return &problem{kind: kind, text: text, err: err}
}

// rootCause leaves out what net and os put in front: the message has it.
func rootCause(err error) error {
	var sys syscall.Errno
	if errors.As(err, &sys) {
		return sys
	}
	return err
}

// hostAddresses lists this host's addresses for an error message, the first
// few of them: a host with hundreds has them elsewhere.
func hostAddresses() string {
	const most = 8
	list, err := net.InterfaceAddrs()
	if err != nil || len(list) == 0 {
		return "its addresses cannot be read"
	}
	var text []string
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			text = append(text, p.Addr().String())
		}
	}
	if len(text) > most {
		text = append(text[:most], "…")
	}
	return "it has " + strings.Join(text, ", ")
}

// probeTimeout bounds the question whether a socket file is alive. A unix
// connect does not wait; this is for the system that does.
const probeTimeout = time.Second

// openUnix listens on a socket file that only its owner can use.
func openUnix(path string, guest uint16) (*streamSocket, *problem) {
	if p := clearPath(path); p != nil {
		return nil, p
	}
	lc := net.ListenConfig{Control: ownerOnly}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		switch {
		case isInUse(err):
			return nil, &problem{kind: ErrInUse, err: err, text: fmt.Sprintf("another program made %s just now", quote(path))}
		case errors.Is(err, fs.ErrNotExist):
			return nil, &problem{kind: ErrBind, err: err, text: fmt.Sprintf("folder %s does not exist: make it first", quote(filepath.Dir(path)))}
		case errors.Is(err, fs.ErrPermission):
			return nil, &problem{kind: ErrBind, err: err, text: fmt.Sprintf("no permission to make a socket in %s", quote(filepath.Dir(path)))}
		}
		return nil, &problem{kind: ErrBind, err: err, text: fmt.Sprintf("cannot listen on %s: %v", quote(path), rootCause(err))}
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // whatever is there by then
	ours, err := os.Lstat(path)
	if err == nil {
		err = os.Chmod(path, 0o600) // where ownerOnly could not
	}
	if err != nil {
		l.Close()
		return nil, &problem{kind: ErrBind, err: err, text: fmt.Sprintf("the socket %s vanished: %v", quote(path), rootCause(err))}
	}
	return &streamSocket{Listener: l, port: guest, cleanup: sync.OnceFunc(func() {
		if now, err := os.Lstat(path); err == nil && os.SameFile(ours, now) {
			os.Remove(path)
		}
	})}, nil
}

// clearPath removes a stale socket file and nothing else.
func clearPath(path string) *problem {
	was, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // a missing folder is found by listen
	case err != nil:
		return &problem{kind: ErrBind, err: err, text: fmt.Sprintf("cannot look at %s: %v", quote(path), rootCause(err))}
	case was.Mode().Type() != fs.ModeSocket:
		return wrong(ErrNotSocket, "%s exists and is %s, not a socket: it is left alone; remove it yourself or use another path", quote(path), kindOfFile(was.Mode()))
	}
	c, err := net.DialTimeout("unix", path, probeTimeout)
	if err == nil {
		c.Close()
	}
	if !isRefused(err) && !errors.Is(err, fs.ErrNotExist) {
		p := wrong(ErrInUse, "socket %s is in use by %s: stop that or use another path", quote(path), pathOwner(path))
		p.err = err
		return p
	}
	// Nobody listens. Someone may have replaced it since: look again.
	if now, err := os.Lstat(path); err == nil && os.SameFile(was, now) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &problem{kind: ErrBind, err: err, text: fmt.Sprintf("stale socket %s cannot be removed: %v", quote(path), rootCause(err))}
		}
	}
	return nil
}

func kindOfFile(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "a regular file"
	case m.IsDir():
		return "a folder"
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	}
	return "a device"
}
