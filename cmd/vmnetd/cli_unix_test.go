//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/qemu"
)

// cliPatience is how long what must come may take on a machine that does much else.
const cliPatience = 30 * time.Second

// cli is a daemon as users have it, commands that ask it, and guests.
type cli struct {
	t    *testing.T
	d    *proc
	c    *control.Client
	dir  string
	sock string // where guests plug in
}

func newCLI(t *testing.T, args ...string) *cli {
	t.Helper()
	l := &cli{t: t, dir: shortDir(t)}
	l.sock = filepath.Join(l.dir, "q.sock")
	l.c = control.NewClient(filepath.Join(l.dir, "c.sock"))
	t.Cleanup(l.c.Close)
	l.start(args...)
	return l
}

func (l *cli) start(args ...string) {
	l.t.Helper()
	l.d = program(l.t, "vmnetd", append([]string{"serve", "--control", filepath.Join(l.dir, "c.sock"), "--qemu", "unix:" + l.sock}, args...)...).start()
	d := l.d
	l.t.Cleanup(func() { d.Process.Kill(); d.ended <- <-d.ended })
	l.until("the daemon answers", func() bool { _, err := l.c.Status(context.Background()); return err == nil })
}

func (l *cli) until(what string, is func() bool) {
	l.t.Helper()
	for end := time.Now().Add(cliPatience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// command is one that asks the daemon.
func (l *cli) command(args ...string) *exec.Cmd {
	c := exec.Command("vmnetd", args...)
	c.Env = append(c.Environ(), "VMNETD_CONTROL="+filepath.Join(l.dir, "c.sock"), "GORACE="+noRaceSleep)
	return c
}

// run runs one and returns what it said, and its status.
func (l *cli) run(args ...string) (out, complaint string, status int) {
	l.t.Helper()
	c := l.command(args...)
	var o, e bytes.Buffer
	c.Stdout, c.Stderr = &o, &e
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		l.t.Fatal(err)
	}
	return o.String(), e.String(), c.ProcessState.ExitCode()
}

// started is a command that runs on.
type started struct {
	t        *testing.T
	cmd      *exec.Cmd
	out, err bytes.Buffer
	done     chan error
}

func (l *cli) background(args ...string) *started {
	l.t.Helper()
	s := &started{t: l.t, cmd: l.command(args...), done: make(chan error, 1)}
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.err
	if err := s.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() { s.done <- s.cmd.Wait() }()
	l.t.Cleanup(func() { s.cmd.Process.Kill(); s.done <- <-s.done })
	return s
}

// ends waits for its end, and says what it said and its status.
func (s *started) ends() (out, complaint string, status int) {
	s.t.Helper()
	select {
	case err := <-s.done:
		s.done <- err
	case <-time.After(cliPatience):
		s.t.Fatalf("%s did not end", strings.Join(s.cmd.Args, " "))
	}
	return s.out.String(), s.err.String(), s.cmd.ProcessState.ExitCode()
}

func (s *started) runs() bool {
	select {
	case err := <-s.done:
		s.done <- err
		return false
	default:
		return true
	}
}

// wire plugs a guest in that has no address yet.
func (l *cli) wire(name string) *backendtest.Guest {
	l.t.Helper()
	c, err := net.Dial("unix", l.sock)
	if err != nil {
		l.t.Fatal(err)
	}
	g, err := backendtest.New(qemu.NewLink(c), backendtest.Config{Name: name})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { g.Close() })
	return g
}

// plug plugs a guest in that has a lease.
func (l *cli) plug(name string) *backendtest.Guest {
	l.t.Helper()
	return l.wire(name).Up(l.t)
}

func (l *cli) listen(g *backendtest.Guest, port uint16) {
	l.t.Helper()
	s, err := g.Listen(netip.AddrPortFrom(g.Addr4(), port))
	if err != nil {
		l.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); s.Echo() }()
	l.t.Cleanup(func() { s.Close(); <-done })
}

// serveHost serves on this host's loopback, and returns where guests find it.
func serveHost(t *testing.T, serve func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.Map
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Store(c, true)
			wg.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		wg.Wait()
	})
	return netip.AddrPortFrom(netip.MustParseAddr("10.0.2.2"), l.Addr().(*net.TCPAddr).AddrPort().Port())
}
