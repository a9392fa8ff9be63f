//go:build linux

package e2e

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/e2e/stream"
	"github.com/vmnetd/vmnetd/e2e/vm"
)

// Doors of the matrix that are streams with other beginnings and other lengths than QEMU's.

var streamRows = []transport{
	{name: "kernel-connect", brief: true, starts: inNamespace, door: connectDoor, mtu: "1500", bytes: 100_000_000, parallel: 50},
	{name: "kernel-vpnkit", brief: true, starts: inNamespace, door: vpnkitDoor, mtu: "1500", bytes: 100_000_000, parallel: 50},
	{name: "kernel-stdio", brief: true, starts: inNamespace, single: true, door: stdioDoor, mtu: "1500", bytes: 100_000_000, parallel: 50},
	{name: "qemu-vde", brief: true, needs: vmNeed, starts: inQEMU, boots: true, single: true, door: vdeDoor, mtu: "1500", bytes: 100_000_000, parallel: 5},
	{name: "qemu-dial", brief: true, needs: vmNeed, starts: inQEMU, boots: true, single: true, door: dialDoor, bytes: 100_000_000, parallel: 5},
}

// flagDoor is a daemon whose door is a unix socket by this flag, and guests that speak this framing there.
func flagDoor(t *testing.T, l *lab, flag string, f stream.Framing, args ...string) (*daemon, attach) {
	t.Helper()
	path := l.path("door.sock")
	d := l.serveAt(t, "", "control.sock", nil, append(args, flag, "unix:"+path)...)
	return d, attach{dial: func() (net.Conn, error) { return net.Dial("unix", path) }, framing: f}
}

// connectDoor is what gvforwarder's guests come to.
func connectDoor(_ transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	return flagDoor(t, l, "--hyperkit", stream.Forwarder, args...)
}

// vpnkitDoor is a QEMU door that HyperKit's guests come to.
func vpnkitDoor(_ transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	return flagDoor(t, l, "--qemu", stream.HyperKit, args...)
}

// stdioDoor is a daemon that a program has started with its pipes, as gvforwarder's stdio: does.
func stdioDoor(_ transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	t.Helper()
	toDaemon, in := pipe(t)
	out, fromDaemon := pipe(t)
	d := l.serveStdio(t, toDaemon, fromDaemon, append(args, "--hyperkit", "stdio")...)
	c := piped{out, in}
	first := make(chan net.Conn, 1)
	first <- c
	return d, attach{framing: stream.Bare, dial: func() (net.Conn, error) {
		select {
		case c := <-first:
			return c, nil
		default:
			return nil, errors.New("there was one")
		}
	}}
}

// serveStdio starts a daemon with its standard input and output, which are closed here.
func (l *lab) serveStdio(t *testing.T, in, out *os.File, args ...string) *daemon {
	t.Helper()
	d := &daemon{lab: l, control: l.path("control.sock")}
	cmd := l.command(t, append([]string{"serve", "--control", d.control}, args...)...)
	cmd.Stdin, cmd.Stdout = in, out
	d.begin(t, cmd)
	in.Close()
	out.Close()
	return d
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// piped is a connection of two pipes' ends.
type piped struct{ r, w *os.File }

func (p piped) Read(b []byte) (int, error)       { return p.r.Read(b) }
func (p piped) Write(b []byte) (int, error)      { return p.w.Write(b) }
func (p piped) Close() error                     { return errors.Join(p.r.Close(), p.w.Close()) }
func (p piped) LocalAddr() net.Addr              { return nil }
func (p piped) RemoteAddr() net.Addr             { return nil }
func (p piped) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (p piped) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (p piped) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// vdeDoor is a vde_switch with a guest at one port and at another a vde_plug whose other end is the daemon's standard
// input and output, as "dpipe vde_plug SWITCH = vmnetd serve --vde stdio" makes it.
func vdeDoor(_ transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	t.Helper()
	needTools(t, "vde_switch", "vde_plug")
	dir := l.path("switch")
	console, _ := pipe(t) // it ends with its standard input
	l.beside(t, console, nil, "vde_switch", "-sock", dir)
	wait(t, "vde_switch", func() error {
		_, err := os.Stat(dir + "/ctl")
		return err
	})
	fromPlug, out := pipe(t)
	in, toPlug := pipe(t)
	d := l.serveStdio(t, fromPlug, toPlug, append(args, "--vde", "stdio")...)
	l.beside(t, in, out, "vde_plug", dir)
	in.Close()
	out.Close()
	nd := vm.VDE(dir)
	return d, attach{nd: &nd}
}

// beside runs a program on the lab's host until the test ends.
func (l *lab) beside(t *testing.T, in io.Reader, out io.Writer, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var said output
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, &said
	cmd.Dir = l.dir
	if err := l.host.Start(cmd); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		cmd.Wait()
		close(gone)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-gone
		if t.Failed() && said.String() != "" {
			t.Logf("%s: %s", name, said.String())
		}
	})
}

// needTools skips a test that lacks programs, or fails it in CI.
func needTools(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// dialDoor is a daemon that finds nobody at first, until a QEMU listens, which is started by another user: the socket
// is the daemon's to use a moment later.
func dialDoor(_ transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	t.Helper()
	path := l.path("vm.sock")
	d := l.serveAt(t, "", "control.sock", nil, append(args, "--qemu", "dial:unix:"+path)...)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for os.Chmod(path, 0o666) != nil {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
	})
	nd := vm.StreamListen(path)
	return d, attach{nd: &nd}
}
