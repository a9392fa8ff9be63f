package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/control"
	"golang.org/x/sys/unix"
)

const nobodyUID = 65534

// ordinary has a program run as an ordinary user, whoever runs the test.
func (p *proc) ordinary() *proc {
	p.t.Helper()
	if os.Getuid() != 0 {
		return p
	}
	bin, err := plainVmnetd()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, err := range []error{os.Chmod(filepath.Dir(bin), 0o755), os.Chown(p.run, nobodyUID, nobodyUID)} {
		if err != nil {
			p.t.Fatal(err)
		}
	}
	p.Path = bin
	p.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobodyUID, Gid: nobodyUID}}
	return p
}

// manager is systemd, as far as a service hears and sees it.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T) *manager {
	t.Helper()
	dir := shortDir(t)
	path := filepath.Join(dir, "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for _, err := range []error{os.Chmod(dir, 0o755), os.Chmod(path, 0o777)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return &manager{t, c}
}

func (m *manager) env() string { return "NOTIFY_SOCKET=" + m.conn.LocalAddr().String() }

// hears waits for a datagram with a line, and returns its lines and what was said before.
func (m *manager) hears(line string) (now, before []string) {
	m.t.Helper()
	m.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	for buf := make([]byte, 4096); ; {
		n, err := m.conn.Read(buf)
		if err != nil {
			m.t.Fatalf("%v before it heard %q, only %q", err, line, before)
		}
		now = strings.Split(string(buf[:n]), "\n")
		if slices.Contains(now, line) {
			return now, before
		}
		before = append(before, now...)
	}
}

// systemd hears that the daemon is ready when it is, how many guests it has, that it is alive, and its end.
func TestNotify(t *testing.T) {
	for _, who := range []string{"Itself", "Ordinary"} { // root becomes another user in its sandbox
		t.Run(who, func(t *testing.T) {
			m := newManager(t)
			p := program(t, "vmnetd", "serve")
			if who == "Ordinary" {
				p.ordinary()
			}
			p.Env = append(p.Env, m.env(), "WATCHDOG_USEC=200000")
			p.start()
			if _, before := m.hears("READY=1"); len(before) > 0 {
				t.Errorf("before it was ready it said %q", before)
			}
			c := control.NewClient(filepath.Join(p.run, "vmnetd/control.sock"))
			defer c.Close()
			if _, err := c.Status(context.Background()); err != nil {
				t.Errorf("it was not ready: %v", err)
			}
			g, err := net.Dial("unix", filepath.Join(p.run, "vmnetd/qemu.sock"))
			if err != nil {
				t.Fatalf("it was not ready: %v", err)
			}
			defer g.Close()
			if _, err := whoHas(g, [4]byte{10, 0, 2, 15}, [4]byte{10, 0, 2, 2}); err != nil {
				t.Fatal(err)
			}
			m.hears("STATUS=1 guest in 1 network")
			g.Close()
			m.hears("STATUS=0 guests in 1 network")
			m.hears("WATCHDOG=1")
			p.Process.Signal(syscall.SIGTERM)
			m.hears("STOPPING=1")
			p.ends(0)
			p.leavesNothing()
		})
	}
}

// systemd hears that the configuration is read again, and when that is done: 'systemctl reload' waits for it.
func TestNotifyReload(t *testing.T) {
	m := newManager(t)
	file := filepath.Join(shortDir(t), "vmnetd.yaml")
	write := func(networks string) {
		t.Helper()
		if err := os.WriteFile(file, []byte("networks:\n"+networks), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("  - name: default\n")
	p := program(t, "vmnetd", "serve", "--config", file)
	p.Env = append(p.Env, m.env())
	p.start()
	m.hears("READY=1")
	write("  - name: default\n  - name: lab\n    net: 10.9.0.0/24\n")
	p.Process.Signal(syscall.SIGHUP)
	if now, _ := m.hears("RELOADING=1"); len(now) != 2 || !strings.HasPrefix(now[1], "MONOTONIC_USEC=") {
		t.Errorf("%q", now)
	}
	m.hears("READY=1")
	m.hears("STATUS=0 guests in 2 networks")
	write("  - nome: default\n") // nothing is changed, and it goes on
	out, err := exec.Command("vmnetd", "reload", "--control", filepath.Join(p.run, "vmnetd/control.sock")).CombinedOutput()
	if err == nil {
		t.Errorf("a wrong file was taken: %s", out)
	}
	m.hears("RELOADING=1")
	m.hears("READY=1")
	p.Process.Signal(syscall.SIGTERM)
	m.hears("STOPPING=1")
	p.ends(0)
}

// A daemon that is not the one whose watchdog it is, or has none, gives no sign of life; why one cannot start is told.
func TestNotifyFails(t *testing.T) {
	m := newManager(t)
	p := program(t, "vmnetd", "serve", "--net", "10.0.2.0/33")
	p.Env = append(p.Env, m.env())
	p.start().ends(2)
	p = program(t, "vmnetd", "serve", "--qemu", "unix:/nowhere/at/all")
	p.Env = append(p.Env, m.env(), "WATCHDOG_USEC=20000", "WATCHDOG_PID=1")
	p.start().ends(1)
	m.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, 4096)
	n, err := m.conn.Read(buf)
	if got := string(buf[:n]); err != nil || !strings.HasPrefix(got, "STATUS=failed: ") || !strings.Contains(got, "/nowhere/at") {
		t.Errorf("%q, %v", got, err)
	}
	p = program(t, "vmnetd", "serve")
	p.Env = append(p.Env, "NOTIFY_SOCKET=/nowhere/at/all")
	p.start().says("control") // it is no reason not to
	p.Process.Signal(syscall.SIGTERM)
	p.ends(0)
}

// While a daemon hangs there is no sign of life, and afterwards there is again.
func TestWatchdog(t *testing.T) {
	m := newManager(t)
	t.Setenv("NOTIFY_SOCKET", m.conn.LocalAddr().String())
	t.Setenv("WATCHDOG_USEC", "20000")
	s := &service{bell: newBell(noLog), changed: make(chan struct{}, 1)}
	if os.Getenv("NOTIFY_SOCKET") != "" || os.Getenv("WATCHDOG_USEC") != "" {
		t.Error("children would speak for it")
	}
	if s.bell == nil || s.bell.dog != 20*time.Millisecond {
		t.Fatalf("%+v", s.bell)
	}
	hang, hangs, on := make(chan bool), make(chan bool), make(chan bool)
	s.count = func() (int, int, int) {
		select {
		case <-hang:
			hangs <- true
			<-on
		default:
		}
		return 2, 3, 4
	}
	ctx, stop := context.WithCancel(context.Background())
	s.watched.Go(func() { s.watch(ctx, noLog, "") })
	m.hears("STATUS=3 guests in 2 networks")
	m.hears("WATCHDOG=1")
	hang <- true
	<-hangs
	buf := make([]byte, 4096)
	for waiting := true; waiting; { // for what was said before it hung: that is in the socket
		m.conn.SetReadDeadline(time.Now().Add(time.Second / 2))
		n, err := m.conn.Read(buf)
		waiting = !errors.Is(err, os.ErrDeadlineExceeded)
		if waiting && err != nil {
			t.Fatal(n, err)
		}
	}
	close(on)
	m.hears("WATCHDOG=1")
	stop()
	s.watched.Wait()
	s.reloading()
	if now, _ := m.hears("RELOADING=1"); len(now) != 2 || !strings.HasPrefix(now[1], "MONOTONIC_USEC=") {
		t.Errorf("%q", now)
	}
	s.reloaded()
	m.hears("READY=1")
	s.bell.send("STATUS=a\nREADY=1\x00" + strings.Repeat("ä", 5000))
	if now, _ := m.hears(func() string { return "STATUS=" + oneLine("a\nREADY=1\x00"+strings.Repeat("ä", 5000)) }()); len(now) != 1 || len(now[0]) > 4096 {
		t.Errorf("%q", now)
	}
	s.bell.close()
	var none *service // of who has no supervisor
	none.reloading()
	none.reloaded()
	none.touch()
	none.ending()
	none.end(nil)
	none.remove()
}

// needActivate is systemd's own tool, which hands sockets over as systemd does.
func needActivate(t *testing.T) string {
	t.Helper()
	p, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return p
}

// systemd-socket-activate starts the daemon when the first guest comes, and that guest is served; so are others, and the
// control socket. The sockets' files stay.
func TestSocketActivate(t *testing.T) {
	tool := needActivate(t)
	for _, who := range []string{"Itself", "Ordinary"} {
		t.Run(who, func(t *testing.T) {
			m := newManager(t)
			p := program(t, tool)
			at := func(name string) string { return filepath.Join(p.run, name) }
			if who == "Ordinary" {
				p.ordinary()
				p.Path = tool
			}
			bin, err := plainVmnetd()
			if err != nil {
				t.Fatal(err)
			}
			p.Args = append(p.Args, "-l", at("q.sock"), "-l", at("c.sock"), "-l", at("h.sock"), "--fdname=qemu:control:hyperkit",
				"-E", m.env(), "-E", "XDG_RUNTIME_DIR="+p.run, bin, "serve")
			p.start()
			var g net.Conn
			waitUntil(t.Fatalf, "systemd's socket", func() bool {
				g, err = net.Dial("unix", at("q.sock"))
				return err == nil
			})
			defer g.Close()
			if _, err := whoHas(g, [4]byte{10, 0, 2, 15}, [4]byte{10, 0, 2, 2}); err != nil {
				t.Fatal(err)
			}
			m.hears("READY=1")
			if line := p.says("guests plug in at unix:"); !strings.Contains(line, "unix:"+at("q.sock")+";") {
				t.Errorf("it does not say where guests plug in: %s", line)
			}
			c := control.NewClient(at("c.sock"))
			defer c.Close()
			st, err := c.Status(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if len(st.Listen) != 2 || st.Listen[0] != "qemu unix:"+at("q.sock") || st.Listen[1] != "hyperkit unix:"+at("h.sock") {
				t.Errorf("%q", st.Listen)
			}
			second, err := net.Dial("unix", at("q.sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer second.Close()
			if _, err := whoHas(second, [4]byte{10, 0, 2, 16}, [4]byte{10, 0, 2, 2}); err != nil {
				t.Error(err)
			}
			p.Process.Signal(syscall.SIGTERM)
			m.hears("STOPPING=1")
			p.ends(0)
			for _, name := range []string{"q.sock", "c.sock", "h.sock"} {
				if _, err := os.Lstat(at(name)); err != nil {
					t.Errorf("the socket is systemd's, and it has gone: %v", err)
				}
			}
			if _, err := os.Lstat(at("vmnetd")); err == nil {
				t.Error("a folder for sockets was made, and there are none in it")
			}
		})
	}
}

// handing starts the daemon with sockets as systemd does.
func handing(t *testing.T, names string, sockets []*os.File, args ...string) *proc {
	t.Helper()
	p := program(t, "sh", append([]string{"-c", `export LISTEN_PID=$$; exec vmnetd serve "$@"`, "sh"}, args...)...)
	p.Env = append(p.Env, fmt.Sprintf("LISTEN_FDS=%d", len(sockets)))
	if names != "" {
		p.Env = append(p.Env, "LISTEN_FDNAMES="+names)
	}
	p.ExtraFiles = sockets
	return p
}

// Sockets whose use is not clear are refused, and it is said what to write.
func TestActivateRefuses(t *testing.T) {
	dir := shortDir(t)
	fd := func(network, name string) *os.File {
		t.Helper()
		var f *os.File
		var err error
		switch network {
		case "unixgram":
			var c *net.UnixConn
			if c, err = net.ListenUnixgram(network, &net.UnixAddr{Net: network, Name: name}); err == nil {
				defer c.Close()
				f, err = c.File()
			}
		case "tcp":
			var l net.Listener
			if l, err = net.Listen(network, name); err == nil {
				defer l.Close()
				f, err = l.(*net.TCPListener).File()
			}
		case "unix":
			var l *net.UnixListener
			if l, err = net.ListenUnix(network, &net.UnixAddr{Net: network, Name: name}); err == nil {
				l.SetUnlinkOnClose(false)
				defer l.Close()
				f, err = l.File()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	stream, other := fd("unix", filepath.Join(dir, "a")), fd("unix", filepath.Join(dir, "b"))
	gram, tcp := fd("unixgram", filepath.Join(dir, "c")), fd("tcp", "127.0.0.1:0")
	anywhere := fd("tcp", "0.0.0.0:0")
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, tt := range []struct {
		names   string
		sockets []*os.File
		args    []string
		status  int
		says    string
	}{
		{"", []*os.File{stream}, nil, 2, `socket 3 of systemd's, "LISTEN_FD_3": what is it for? want qemu, hyperkit, vde, vfkit, dgram, bess, control or api`},
		{"vmnetd.socket", []*os.File{stream}, nil, 2, "FileDescriptorName="},
		{"connection", []*os.File{stream}, nil, 2, "Accept=no"},
		{"netns", []*os.File{stream}, nil, 2, "what is it for?"},
		{"qemu", []*os.File{gram}, nil, 1, "not a stream socket"},
		{"qemu", []*os.File{file}, nil, 1, "not a socket"},
		{"vfkit", []*os.File{stream}, nil, 1, "not a datagram"},
		{"qemu,network=lab", []*os.File{stream}, nil, 2, "lab"},
		{"qemu,colour=red", []*os.File{stream}, nil, 2, "no option colour="},
		{"control", []*os.File{tcp}, nil, 2, "not a listening unix socket"},
		{"control", []*os.File{gram}, nil, 1, "not a stream socket"},
		{"api", []*os.File{stream}, nil, 2, "not a listening TCP socket"},
		{"api", []*os.File{anywhere}, nil, 2, "is no loopback address"},
		{"api,colour=red", []*os.File{tcp}, nil, 2, "want token-file=PATH"},
		{"control:control", []*os.File{stream, other}, nil, 1, "there is a control socket already"},
		{"control", []*os.File{stream}, []string{"--control", filepath.Join(dir, "x")}, 2, "leave one of them out"},
	} {
		p := handing(t, tt.names, tt.sockets, tt.args...).start()
		p.ends(tt.status)
		if !strings.Contains(p.err.String(), tt.says) {
			t.Errorf("%q: %s", tt.names, p.err.String())
		}
		p.leavesNothing()
	}

	// What a flag names by its number is the flag's, whatever it is called. Others' sockets are not ours.
	p := handing(t, "", []*os.File{stream}, "--qemu", "fd:3").start()
	p.says("guests plug in at fd:3")
	p.Process.Signal(syscall.SIGTERM)
	p.ends(0)
	p = program(t, "vmnetd", "serve")
	p.Env = append(p.Env, "LISTEN_PID=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=qemu")
	p.ExtraFiles = []*os.File{stream}
	p.start()
	p.says("guests plug in at unix:" + p.run)
	p.Process.Signal(syscall.SIGTERM)
	p.ends(0)

	// A name may have an address's options, and sockets with frames apart are doors, too.
	p = handing(t, "qemu,network=lab:vfkit,offloading=off:api,token-file="+filepath.Join(dir, "token"), []*os.File{stream, gram, tcp}, "--network", "lab,net=10.9.0.0/24").start()
	p.says("network lab: guests plug in at unix:" + filepath.Join(dir, "a"))
	p.says("guests plug in at unix:" + filepath.Join(dir, "c"))
	p.says("control")
	p.says("api http://127.0.0.1:")
	if _, err := os.Stat(filepath.Join(dir, "token")); err != nil {
		t.Error(err)
	}
	g, err := net.Dial("unix", filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := whoHas(g, [4]byte{10, 9, 0, 15}, [4]byte{10, 9, 0, 2}); err != nil {
		t.Error(err)
	}
	p.Process.Signal(syscall.SIGTERM)
	p.ends(0)
}

// --ready-fd has a line when guests can plug in, and its end; a daemon that cannot start has only that.
func TestReadyFD(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want string
		code int
	}{
		{"serve", []string{"serve"}, "1\n", 0},
		{"serve-fails", []string{"serve", "--qemu", "unix:/nowhere/at/all"}, "", 1},
		// The end comes while the command runs: it did not inherit the descriptor.
		{"run", []string{"run"}, "1\n", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			args := slices.Concat(tt.args, []string{"--ready-fd", "3"})
			if tt.name == "run" {
				args = append(args, "--", "vmm", "-then", "wait")
			}
			p := program(t, "vmnetd", args...)
			p.ExtraFiles = []*os.File{w}
			p.start()
			w.Close()
			r.SetReadDeadline(time.Now().Add(30 * time.Second))
			if got, err := io.ReadAll(r); string(got) != tt.want || err != nil {
				t.Errorf("%q, %v; stderr %s", got, err, p.err.String())
			}
			if tt.name == "serve" {
				if out, err := exec.Command("vmnetd", "status", "--control", filepath.Join(p.run, "vmnetd/control.sock")).CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			}
			if tt.name == "run" {
				p.says("up")
			}
			if tt.code == 0 {
				p.Process.Signal(syscall.SIGTERM)
			}
			p.ends(tt.code)
		})
	}
	for fd, says := range map[string]string{"1": "want 3 or more", "17": "no such descriptor"} {
		p := program(t, "vmnetd", "serve", "--ready-fd", fd)
		p.start().ends(2)
		if !strings.Contains(p.err.String(), says) {
			t.Errorf("--ready-fd %s: %s", fd, p.err.String())
		}
	}
}

// A pid file is there, whole, from when guests can plug in until the end, and one daemon's.
func TestPIDFile(t *testing.T) {
	for _, who := range []string{"Itself", "Ordinary"} {
		t.Run(who, func(t *testing.T) {
			dir := shortDir(t)
			path := filepath.Join(dir, "pid")
			start := func(args ...string) *proc {
				p := program(t, "vmnetd", append([]string{"serve", "--pid-file", path}, args...)...)
				if who == "Ordinary" {
					if p.ordinary(); os.Getuid() == 0 {
						if err := os.Chown(dir, nobodyUID, nobodyUID); err != nil {
							t.Fatal(err)
						}
					}
				}
				return p.start()
			}
			written := func(p *proc) {
				t.Helper()
				waitUntil(t.Fatalf, "the pid file", func() bool {
					b, err := os.ReadFile(path)
					if err == nil && string(b) != fmt.Sprintln(p.Process.Pid) {
						t.Errorf("it has %q", b)
					}
					return err == nil
				})
				g, err := net.Dial("unix", filepath.Join(p.run, "vmnetd/qemu.sock"))
				if err != nil {
					t.Fatalf("it is there, and guests cannot plug in: %v", err)
				}
				g.Close()
			}
			first := start()
			written(first)
			second := start()
			second.ends(1)
			if want := fmt.Sprintf("process %d runs with it", first.Process.Pid); !strings.Contains(second.err.String(), want) {
				t.Errorf("want %q: %s", want, second.err.String())
			}
			second.leavesNothing()
			written(first)
			first.Process.Signal(syscall.SIGTERM)
			first.ends(0)
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left %v, %v", left, err)
			}

			// One that was killed leaves it, and it is replaced; so is an empty one, as of mktemp.
			killed := start()
			written(killed)
			killed.Process.Kill()
			killed.ends(-1)
			if _, err := os.Stat(path); err != nil {
				t.Fatal(err)
			}
			os.Chtimes(path, time.Time{}, time.Now().Add(-time.Hour)) // whoever has its number now is younger
			third := start()
			third.says("control")
			written(third)
			// Another's that has its place is not taken away.
			if err := os.Rename(path, path+".old"); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("1\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			third.Process.Signal(syscall.SIGTERM)
			third.ends(0)
			if b, err := os.ReadFile(path); err != nil || string(b) != "1\n" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

// What a living process has, and what is no pid file, is left alone.
func TestPIDFileRefuses(t *testing.T) {
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { other.Process.Kill(); other.Wait() }()
	dir := t.TempDir()
	number := fmt.Sprintln(other.Process.Pid)
	for _, tt := range []struct {
		name, text string
		age        time.Duration // since it was written
		says       string        // "": it is replaced
	}{
		{"Live", number, 0, "runs, and it is that one's"},
		{"Young", number, time.Hour, ""}, // the process has but the number of one that is no more
		{"Own", fmt.Sprintln(os.Getpid()), 0, ""},
		{"Empty", "", 0, ""},
		{"Dead", "2147483647\n", 0, ""},
		{"Text", "root:x:0:0\n", 0, "no pid file"},
		{"Zero", "0\n", 0, "no pid file"},
		{"Negative", "-1\n", 0, "no pid file"},
		{"Large", "99999999999\n", 0, "no pid file"},
		{"Long", number + strings.Repeat(" ", maxPID), 0, "no pid file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, tt.name)
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.age != 0 {
				if err := os.Chtimes(path, time.Time{}, time.Now().Add(-tt.age)); err != nil {
					t.Fatal(err)
				}
			}
			f, err := writePIDFile(path)
			if tt.says != "" {
				if err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%v, want %q", err, tt.says)
				}
				if b, err := os.ReadFile(path); err != nil || string(b) != tt.text {
					t.Errorf("%q, %v", b, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(path); err != nil || string(b) != fmt.Sprintln(os.Getpid()) {
				t.Errorf("%q, %v", b, err)
			}
			if err := checkPIDFile(path); err == nil || !strings.Contains(err.Error(), "runs with it") {
				t.Errorf("a second daemon: %v", err)
			}
			f.remove()
			f.locked.Close()
			if _, err := os.Lstat(path); !os.IsNotExist(err) {
				t.Errorf("it is still there: %v", err)
			}
		})
	}
	for name, make := range map[string]func(string) error{
		"folder": func(p string) error { return os.Mkdir(p, 0o755) },
		"link":   func(p string) error { return os.Symlink("/etc/passwd", p) },
		"pipe":   func(p string) error { return unix.Mkfifo(p, 0o600) },
	} {
		path := filepath.Join(dir, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if _, err := writePIDFile(path); err == nil || !strings.Contains(err.Error(), "no file") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := writePIDFile(filepath.Join(dir, "none", "pid")); !os.IsNotExist(err) {
		t.Errorf("a folder that is not there: %v", err)
	}
	left, err := os.ReadDir(dir)
	for _, e := range left {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("left %s", e.Name())
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// In the journal lines have a priority and no time of their own; elsewhere they are as ever.
func TestJournal(t *testing.T) {
	for _, tt := range []struct {
		name   string
		stream func(*syscall.Stat_t) string
		format string
		start  string
	}{
		{"Journal", func(st *syscall.Stat_t) string { return fmt.Sprintf("%d:%d", st.Dev, st.Ino) }, "text", "<6>level=INFO msg="},
		{"JSON", func(st *syscall.Stat_t) string { return fmt.Sprintf("%d:%d", st.Dev, st.Ino) }, "json", `<6>{"level":"INFO"`},
		{"AnothersJournal", func(st *syscall.Stat_t) string { return fmt.Sprintf("%d:%d", st.Dev, st.Ino+1) }, "text", "time="},
		{"None", func(*syscall.Stat_t) string { return "" }, "text", "time="},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			fi, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			p := program(t, "vmnetd", "serve", "--log-format", tt.format)
			p.Stderr = f
			p.Env = append(p.Env, "JOURNAL_STREAM="+tt.stream(fi.Sys().(*syscall.Stat_t)))
			p.start().says("control")
			p.Process.Signal(syscall.SIGTERM)
			p.ends(0)
			text, err := os.ReadFile(f.Name())
			if err != nil || len(text) == 0 {
				t.Fatalf("%q, %v", text, err)
			}
			for line := range strings.Lines(string(text)) {
				if !strings.HasPrefix(line, tt.start) || strings.HasPrefix(tt.start, "<") && strings.Contains(line, "time") {
					t.Errorf("%q does not begin with %q", line, tt.start)
				}
			}
		})
	}
}

func TestJournalHandler(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(newJournalHandler(&b, func(w io.Writer) slog.Handler {
		return slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})
	}))
	log.Debug("a")
	log.With("x", 1).WithGroup("g").Info("b\n<0>c", "time", "late")
	log.Warn("d")
	log.Error("e")
	log.Log(context.Background(), slog.LevelDebug-1, "f")
	want := "<7>level=DEBUG msg=a\n<6>level=INFO msg=\"b\\n<0>c\" x=1 g.time=late\n<4>level=WARN msg=d\n<3>level=ERROR msg=e\n"
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}
