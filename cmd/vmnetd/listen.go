package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/qemu"
)

// framing is how the bytes of a connection become frames. Each has a flag of its name, and any way to listen goes
// with any framing.
type framing struct {
	name  string
	usage string
	link  func(net.Conn) link.Link
	lines func(*door) string // what to give a VMM so that it plugs in here
}

var framings = []framing{
	{"qemu", "take QEMU's -netdev stream guests at `ADDRESS`: unix:PATH, tcp:[HOST:]PORT or fd:N", qemu.NewLink, qemuLines},
}

// door is a place where guests plug in.
type door struct {
	framing framing
	addr    string        // as it came out: "unix:/run/…", "tcp:127.0.0.1:7001", "fd:3"
	l       net.Listener  // nil if conn is all there is
	conn    net.Conn      // an inherited connection: one guest
	remove  func()        // takes the socket file away; never nil
	note    string        // what the user should know
	mtu     int           // of the cards that lines has; 0: their own
	places  chan struct{} // one for each guest that may be there; shared by the daemon's doors
}

func (d *door) String() string { return d.framing.name + " " + d.addr }

var (
	errNoDescriptor = errors.New("no such descriptor: was it opened before vmnetd started, as in 3<>… ?")
	errNoSocket     = errors.New("not a socket")
	errNoStream     = errors.New("not a stream socket")
)

// openDoor opens what an address names.
func openDoor(f framing, addr string) (*door, error) {
	d := &door{framing: f, remove: func() {}}
	kind, rest, _ := strings.Cut(addr, ":")
	var err error
	switch kind {
	case "unix":
		err = d.openUnix(rest)
	case "tcp":
		err = d.openTCP(rest)
	case "fd":
		err = d.openFD(rest)
	default:
		return nil, usagef("--%s %s: want unix:PATH, tcp:[HOST:]PORT or fd:N", f.name, addr)
	}
	if err != nil {
		return nil, fmt.Errorf("--%s %s: %w", f.name, addr, err)
	}
	return d, nil
}

func (d *door) openUnix(path string) error {
	l, remove, err := listenUnix(path)
	if err != nil {
		return err
	}
	d.l, d.remove, d.addr = l, remove, "unix:"+l.Addr().String()
	return nil
}

func (d *door) openTCP(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = "", s // a port alone
	}
	switch host {
	case "", "localhost":
		host = "127.0.0.1" // what is open to a network must be written out
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return usagef("%q is no IP address: want tcp:PORT for this machine alone, or tcp:ADDRESS:PORT", host)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return usagef("%q is no port: want 0 to 65535", port)
	}
	if !a.IsLoopback() {
		d.note = "frames are not authenticated: whoever reaches " + netip.AddrPortFrom(a, uint16(n)).String() + " is on the guests' network"
	}
	d.l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, uint16(n))))
	if err != nil {
		return err
	}
	d.addr = "tcp:" + d.l.Addr().String()
	return nil
}

func (d *door) openFD(s string) error {
	n, err := strconv.ParseUint(s, 10, 16) // descriptors are small numbers; RLIMIT_NOFILE ends them
	if err != nil {
		return usagef("%q is no descriptor: want fd:3", s)
	}
	d.addr = "fd:" + strconv.FormatUint(n, 10)
	d.l, d.conn, err = inherited(int(n))
	return err
}

// errInUse is a socket that a living program listens at.
var errInUse = errors.New("somebody is listening there already")

// listenUnix listens at path with mode 0600. The folder is made, mode 0700, if it is the last part that is missing. A
// socket file whose program has gone is replaced; what is alive, or no socket, is left alone. remove takes the file
// away, unless it is another's by then. Call it before l is closed: until then nobody takes the file for stale, and its
// inode, by which we know it again, is nobody else's.
func listenUnix(path string) (l *net.UnixListener, remove func(), err error) {
	if path == "" {
		return nil, nil, usagef("no path")
	}
	// QEMU may be started elsewhere, and this is the path that it is told.
	if path, err = filepath.Abs(path); err != nil {
		return nil, nil, err
	}
	if len(path) > maxUnixPath {
		return nil, nil, usagef("the path has %d bytes and a socket's may have %d: choose a shorter one, in /run or /tmp", len(path), maxUnixPath)
	}
	dir := filepath.Dir(path)
	// A daemon that ends removes an empty folder: it may go between our making it and our using it, seldom twice.
	for try := 0; ; try++ {
		if err = os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, nil, err
		}
		l, remove, err = listenIn(dir, path)
		if !errors.Is(err, fs.ErrNotExist) || try == 3 {
			return l, remove, err
		}
	}
}

func listenIn(dir, path string) (*net.UnixListener, func(), error) {
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if err := clearStale(path); err != nil {
		return nil, nil, err
	}
	lc := net.ListenConfig{Control: privateSocket}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, nil, err
	}
	l := ln.(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	mine, err := os.Lstat(path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		l.Close()
		os.Remove(path)
		return nil, nil, err
	}
	return l, sync.OnceFunc(func() {
		if unlock, err := lockDir(dir); err == nil {
			defer unlock()
		}
		if now, err := os.Lstat(path); err == nil && os.SameFile(now, mine) {
			os.Remove(path)
		}
	}), nil
}

// clearStale removes a socket file that nobody listens at.
func clearStale(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and no socket: it is left alone", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second) // a queue that is full for a second is a program's that lives
	if err == nil {
		c.Close()
		return fmt.Errorf("%s: %w", path, errInUse)
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return os.Remove(path)
	}
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%s belongs to somebody else: %w", path, err)
	}
	return fmt.Errorf("%s: %w (%v)", path, errInUse, err)
}

// serve takes guests until ctx is done, and returns when nobody can come any more and the guests have gone. It
// closes the door. The error is why it could not go on.
func (d *door) serve(ctx, wires context.Context, n *backend.Network, log *slog.Logger) error {
	var guests sync.WaitGroup
	defer guests.Wait()
	plug := func(c net.Conn, peer string) {
		procs.add(1)
		defer procs.add(-1)
		name := d.String() + peer
		switch err := n.Serve(wires, d.framing.link(c), name); {
		case err == nil, errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, context.Canceled),
			errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE): // a VMM that ends with frames unread
		default:
			log.Warn("guest's wire ended", "link", name, "error", err)
		}
	}
	if d.conn != nil {
		plug(d.conn, "")
		return nil
	}
	defer context.AfterFunc(ctx, d.close)()
	const least, most = 50 * time.Millisecond, time.Second // net/http waits as long: memory and descriptors come back
	wait, full := least, false
	for {
		c, err := d.l.Accept()
		switch {
		case err == nil:
			wait = least
			select {
			case d.places <- struct{}{}:
				full = false
				guests.Go(func() {
					defer func() { <-d.places }()
					plug(c, peerName(c))
				})
			default:
				c.Close()
				if !full { // once, or whoever tries in a loop fills the log
					log.Warn("guest turned away: as many are here as descriptors allow", "door", d.String(), "most", cap(d.places))
				}
				full = true
			}
		case ctx.Err() != nil:
			return nil
		case temporary(err):
			log.Warn("cannot take a guest", "door", d.String(), "error", err, "again_in", wait)
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = min(2*wait, most)
		default:
			d.close()
			return fmt.Errorf("%s: %w", d, err)
		}
	}
}

func temporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (d *door) close() {
	d.remove()
	if d.l != nil {
		d.l.Close()
	}
}
