//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmnetd/vmnetd/e2e/vm"
	"golang.org/x/sys/unix"
)

// Doors of the matrix where a frame is a message of its socket.

var datagramRows = []transport{
	{name: "kernel-vfkit", starts: inNamespace, door: vfkitDoor, mtu: "1500", bytes: 100_000_000, parallel: 50},
	{name: "kernel-handed", brief: true, starts: inNamespace, door: handedDoor, mtu: "1500", bytes: 100_000_000, parallel: 50},
	{name: "kernel-udp", brief: true, starts: inNamespace, door: udpDoor, mtu: "1500", bytes: 100_000_000, parallel: 50},
	{name: "kernel-bess", brief: true, starts: inNamespace, door: bessDoor, mtu: "1500", bytes: 100_000_000, parallel: 50},
	{name: "qemu-dgram", brief: true, needs: vmNeed, starts: inQEMU, boots: true, door: dgramDoor, bytes: 100_000_000, parallel: 5},
	{name: "qemu-vfkit", brief: true, needs: vmNeed, starts: inQEMU, boots: true, door: vfkitDoor, mtu: "1500", bytes: 100_000_000, parallel: 5},
	{name: "qemu-udp", brief: true, needs: vmNeed, starts: inQEMU, boots: true, door: udpDoor, mtu: "1500", bytes: 100_000_000, parallel: 5},
}

// locals numbers the guests' own sockets.
var locals atomic.Int64

// localPath is where a guest has its socket: beside the daemon's, as vfkit has it.
func (l *lab) localPath() string { return l.path(fmt.Sprintf("guest-%x.sock", locals.Add(1))) }

// dialVfkit is a guest's socket as vfkit makes it: bound beside the daemon's, connected, and with its greeting sent. The
// daemon, another user here, may write to it.
func (l *lab) dialVfkit(t *testing.T, path, local string, greet bool) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unixgram", &net.UnixAddr{Net: "unixgram", Name: local}, &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); os.Remove(local) })
	c.SetWriteBuffer(1 << 20)
	c.SetReadBuffer(4 << 20)
	if err := os.Chmod(local, 0o666); err != nil {
		t.Fatal(err)
	}
	if greet {
		if _, err := c.Write([]byte("VFKT")); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// vfkitDoor is a socket that vfkit's guests come to. QEMU is handed one that has greeted.
func vfkitDoor(r transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	t.Helper()
	path := l.path("vfkit.sock")
	d := l.serveAt(t, "", "control.sock", nil, append(args, "--vfkit", "unix:"+path)...)
	at := attach{tie: func(t *testing.T, tap *os.File) func() {
		return tie(tap, l.dialVfkit(t, path, l.localPath(), true))
	}}
	at.ndFor = func(t *testing.T) vm.Netdev {
		c := l.dialVfkit(t, path, l.localPath(), true)
		f, err := c.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return vm.DgramFD(f)
	}
	return d, at
}

// handedDoor is a socket at which guests' descriptors are handed over, as Lima does.
func handedDoor(_ transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	t.Helper()
	path := l.path("fds.sock")
	d := l.serveAt(t, "", "control.sock", nil, append(args, "--vfkit", "fds:"+path)...)
	return d, attach{tie: func(t *testing.T, tap *os.File) func() {
		t.Helper()
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), fds[1]
		defer unix.Close(theirs)
		c, err := net.FileConn(ours)
		ours.Close()
		if err != nil {
			t.Fatal(err)
		}
		to, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
		if err != nil {
			t.Fatal(err)
		}
		defer to.Close()
		if _, _, err := to.WriteMsgUnix([]byte{0}, unix.UnixRights(theirs), nil); err != nil {
			t.Fatal(err)
		}
		return tie(tap, c)
	}}
}

// udpDoor is a UDP port that tunnels come to.
func udpDoor(_ transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	t.Helper()
	const port = 7001 // the lab's host has all of them
	d := l.serveAt(t, "", "control.sock", nil, append(args, "--dgram", fmt.Sprintf("udp:%d", port))...)
	at := attach{tie: func(t *testing.T, tap *os.File) func() {
		t.Helper()
		c, err := l.host.dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		c.(*net.UDPConn).SetReadBuffer(4 << 20)
		return tie(tap, c)
	}}
	at.ndFor = func(*testing.T) vm.Netdev {
		lo := netip.MustParseAddr("127.0.0.1")
		return vm.DgramUDP(netip.AddrPortFrom(lo, uint16(10000+locals.Add(1))), netip.AddrPortFrom(lo, port))
	}
	return d, at
}

// bessDoor is a seqpacket socket.
func bessDoor(_ transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	t.Helper()
	path := l.path("bess.sock")
	d := l.serveAt(t, "", "control.sock", nil, append(args, "--bess", "unix:"+path)...)
	return d, attach{unix: path, tie: func(t *testing.T, tap *os.File) func() {
		t.Helper()
		c, err := net.Dial("unixpacket", path)
		if err != nil {
			t.Fatal(err)
		}
		return tie(tap, c)
	}}
}

// dgramDoor is a socket that QEMU's own datagrams come to.
func dgramDoor(_ transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	t.Helper()
	path := l.path("dgram.sock")
	d := l.serveAt(t, "", "control.sock", nil, append(args, "--dgram", "unix:"+path)...)
	at := attach{open: true}
	at.ndFor = func(*testing.T) vm.Netdev { return vm.DgramUnix(l.localPath(), path) }
	return d, at
}

// tie carries frames between a TAP and a socket that keeps them apart, until it is cut.
func tie(tap *os.File, c net.Conn) (cut func()) { return tieWhile(tap, c, nil) }

// tieWhile is tie for a guest that reads when hear lets it.
func tieWhile(tap *os.File, c net.Conn, hear func(over <-chan struct{})) (cut func()) {
	var wg sync.WaitGroup
	over := make(chan struct{})
	wg.Go(func() {
		buf := make([]byte, 65535+18)
		for {
			n, err := tap.Read(buf)
			if err != nil {
				return
			}
			c.Write(buf[:n]) // what is lost is lost
		}
	})
	wg.Go(func() {
		buf := make([]byte, 65535+18)
		for {
			if hear != nil {
				hear(over)
			}
			n, err := c.Read(buf)
			if err != nil || n == 0 {
				select {
				case <-over:
					return
				default:
				}
				if errors.Is(err, unix.ECONNREFUSED) { // UDP: nobody is there just now
					continue
				}
				return
			}
			tap.Write(buf[:n])
		}
	})
	return sync.OnceFunc(func() {
		close(over)
		tap.Close()
		c.Close()
		if a, ok := c.LocalAddr().(*net.UnixAddr); ok && filepath.IsAbs(a.Name) {
			os.Remove(a.Name)
		}
		wg.Wait()
	})
}
