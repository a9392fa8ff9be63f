//go:build unix

package main

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"golang.org/x/sys/unix"
)

// proc is one of our programs, started by name from the test binary's PATH.
type proc struct {
	*exec.Cmd
	t     *testing.T
	out   *bufio.Reader
	err   safeLog
	ended chan error
	run   string // its XDG_RUNTIME_DIR
}

// program is a command that is not started yet.
func program(t *testing.T, name string, args ...string) *proc {
	t.Helper()
	p := &proc{Cmd: exec.Command(name, args...), t: t, ended: make(chan error, 1), run: shortDir(t)}
	p.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+p.run, "VMNETD_CONTROL=", "GORACE="+noRaceSleep)
	p.Stderr = &p.err
	return p
}

func (p *proc) start() *proc {
	p.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	p.Stdout = w
	if err := p.Start(); err != nil {
		p.t.Fatal(err)
	}
	w.Close()
	p.out = bufio.NewReader(r)
	go func() { p.ended <- p.Wait() }()
	p.t.Cleanup(func() {
		p.Process.Kill()
		r.Close()
		if p.t.Failed() {
			p.t.Logf("%s: stderr:\n%s", p, p.err.String())
		}
	})
	return p
}

// says waits for a line that starts so.
func (p *proc) says(start string) string {
	p.t.Helper()
	for {
		line, err := p.out.ReadString('\n')
		if strings.HasPrefix(line, start) {
			return strings.TrimSpace(line)
		}
		if err != nil {
			p.t.Fatalf("%v before it said %q; stderr:\n%s", err, start, p.err.String())
		}
	}
}

// ends waits for its end, with a status.
func (p *proc) ends(want int) {
	p.t.Helper()
	select {
	case err := <-p.ended:
		if got := p.ProcessState.ExitCode(); got != want {
			p.t.Errorf("ended with %d (%v), want %d; stderr:\n%s", got, err, want, p.err.String())
		}
		p.ended <- err
	case <-time.After(20 * time.Second):
		p.t.Fatal("did not end")
	}
}

func (p *proc) leavesNothing() {
	p.t.Helper()
	if left, err := os.ReadDir(p.run); err != nil || len(left) > 0 {
		p.t.Errorf("left %v, %v", left, err)
	}
}

func TestServeEnds(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		p := program(t, "vmnetd", "serve").start()
		p.says("control")
		p.Process.Signal(s)
		p.ends(0)
		p.leavesNothing()
	}
}

// Under nohup, a hangup is not the end.
func TestServeNohup(t *testing.T) {
	p := program(t, "sh", "-c", `trap "" HUP; exec vmnetd serve`).start()
	p.says("control")
	p.Process.Signal(syscall.SIGHUP)
	if out, err := exec.Command("vmnetd", "status", "--control", filepath.Join(p.run, "vmnetd/control.sock")).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	p.Process.Signal(syscall.SIGTERM)
	p.ends(0)
}

// A conversation that goes on has a second; a second signal does not wait for that.
func TestServeGrace(t *testing.T) {
	for _, twice := range []bool{false, true} {
		p := program(t, "vmnetd", "serve", "-p", "0:10.0.2.99:22").start()
		_, rule, _ := strings.Cut(p.says("forward"), "127.0.0.1:")
		port, _, _ := strings.Cut(rule, ":")
		p.says("control")
		// A guest that takes frames and answers none: the conversation waits for it.
		guest, err := net.Dial("unix", filepath.Join(p.run, "vmnetd/qemu.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer guest.Close()
		if _, err := whoHas(guest, [4]byte{10, 0, 2, 99}, [4]byte{10, 0, 2, 2}); err != nil {
			t.Fatal(err)
		}
		client, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		ctl := filepath.Join(p.run, "vmnetd/control.sock")
		waitUntil(t.Fatalf, "the conversation", func() bool {
			out, _ := exec.Command("vmnetd", "forward", "ls", "-o", "json", "--control", ctl).Output()
			return strings.Contains(string(out), `"active": 1`)
		})
		start := time.Now()
		p.Process.Signal(syscall.SIGTERM)
		waitUntil(t.Fatalf, "the door to close", func() bool {
			_, err := os.Lstat(filepath.Join(p.run, "vmnetd/qemu.sock"))
			return os.IsNotExist(err)
		})
		if twice {
			p.Process.Signal(syscall.SIGTERM)
			p.ends(128 + int(syscall.SIGTERM))
		} else {
			p.ends(0)
			if took := time.Since(start); took < grace/2 {
				t.Errorf("the conversation had %v", took)
			}
		}
		p.leavesNothing()
	}
}

// Descriptors that vmnetd was started with: a connection is one guest, a listening socket any number.
func TestServeDescriptors(t *testing.T) {
	pair, err := unixSocketpair(unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer theirs.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	p := program(t, "vmnetd", "serve", "--qemu", "fd:3")
	p.ExtraFiles = []*os.File{theirs}
	p.start()
	theirs.Close()
	if _, err := whoHas(c, [4]byte{10, 0, 2, 15}, [4]byte{10, 0, 2, 2}); err != nil {
		t.Fatal(err)
	}
	c.Close() // the one guest there can be has gone
	p.ends(0)
	p.leavesNothing()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p = program(t, "vmnetd", "serve", "--qemu", "fd:4")
	p.ExtraFiles = []*os.File{nil, f}
	p.start()
	p.says("guests plug in at fd:4")
	for i := range 3 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := whoHas(c, [4]byte{10, 0, 2, byte(20 + i)}, [4]byte{10, 0, 2, 2}); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	p.Process.Signal(syscall.SIGTERM)
	p.ends(0)

	dgram, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dgram[0])
	g := os.NewFile(uintptr(dgram[1]), "dgram")
	defer g.Close()
	p = program(t, "vmnetd", "serve", "--qemu", "fd:3")
	p.ExtraFiles = []*os.File{g}
	p.start().ends(1)
	if !strings.Contains(p.err.String(), "not a stream socket") {
		t.Error(p.err.String())
	}
}

func TestRunPassesSignalsOn(t *testing.T) {
	p := program(t, "vmnetd", "run", "--", "vmm", "-then", "wait:9")
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal, wherever the test runs
	p.start()
	p.says("up")
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTERM} {
		p.Process.Signal(s)
		if got := p.says("signal"); got != "signal "+s.String() {
			t.Errorf("%v came as %q", s, got)
		}
	}
	p.ends(9)
	p.leavesNothing()
}

// When vmnetd is killed, the command does not stay behind without a network.
func TestRunKilled(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("parent-death signals are Linux's")
	}
	p := program(t, "vmnetd", "run", "--", "vmm", "-then", "wait").start()
	p.says("up")
	p.Process.Kill()
	p.says("signal terminated")
}

// The command's end is ours even where something else of its holds the wire.
func TestRunGrandchild(t *testing.T) {
	p := program(t, "vmnetd", "run", "--", "sh", "-c", "sleep 60 >/dev/null 2>&1 & echo pid $!; exit 4").start()
	var pid int
	fmt.Sscanf(p.says("pid"), "pid %d", &pid)
	if pid > 0 {
		defer syscall.Kill(pid, syscall.SIGKILL)
	}
	p.ends(4)
	p.leavesNothing()
}

// When the network fails, the command is told to end, and the reason is ours.
func TestRunNetworkFails(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip(err)
	}
	log := slog.New(slog.DiscardHandler)
	why := errors.New("the end of the world")
	by, err := wireSocket(sh, 3)
	if err != nil {
		t.Fatal(err)
	}
	err = run(log, sh, []string{"sh", "-c", "exec sleep 60"}, 3, by, func(d *daemon) error {
		if err := d.listen(filepath.Join(shortDir(t), "c")); err != nil {
			return err
		}
		if err := d.start(backend.Config{Logger: log}); err != nil {
			return err
		}
		d.failed <- why
		return nil
	})
	if !errors.Is(err, why) {
		t.Error(err)
	}
}
