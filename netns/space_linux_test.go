package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// patience is for what takes milliseconds on a machine that has nothing else to do.
const patience = 30 * time.Second

func space(t testing.TB, opt SpaceOptions) *Space {
	t.Helper()
	s, err := NewSpace(opt)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("no namespaces: %v: %s", err, WhyNoNamespaces())
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := s.End(ctx); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		s.Close()
	})
	return s
}

// said runs a program to its end and returns what it says.
func said(t testing.TB, start func(Process) (*os.Process, error), p Process) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p.Files = append([]*os.File{nil, w, w}, p.Files...)
	proc, err := start(p)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := proc.Wait(); err != nil || !st.Success() {
		t.Fatalf("%q: %v, %v: %s", p.Args, st, err, b)
	}
	return string(b)
}

func sh(line string) Process { return Process{Args: []string{"sh", "-c", line}} }

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// descriptors are this process's open ones.
func descriptors(t testing.TB) (list []string) {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range dir {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(to, "/proc/") && !strings.HasPrefix(to, "anon_inode:") { // the runtime's poller
			list = append(list, e.Name()+" "+to)
		}
	}
	slices.Sort(list)
	return list
}

func TestSpace(t *testing.T) {
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Skip(err)
	}
	s := space(t, SpaceOptions{Hostname: "web1", Hosts: "192.0.2.7 web7\n", Resolv: "nameserver 192.0.2.53\n",
		Sysctls:    map[string]string{"net.ipv4.ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"},
		TrySysctls: map[string]string{"net.ipv4.ip_default_ttl": "77", "net.ipv4.there_is_none": "1"}, Mark: "this test"})
	if list, err := s.Processes(); err != nil || len(list) != 0 {
		t.Errorf("processes in a new space: %v, %v", list, err)
	}
	got := said(t, s.Start, sh(`id -u; hostname 2>/dev/null || cat /proc/sys/kernel/hostname; cat /etc/hosts /etc/resolv.conf
		cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding /proc/sys/net/ipv4/ping_group_range /proc/sys/net/ipv4/ip_default_ttl; cat /proc/self/mountinfo
		mkdir /run/sshd && ls -d /run/sshd; ls /run; cat /proc/net/dev; grep 7f000001 -ri /proc/net/fib_trie; grep -c : /proc/net/if_inet6; true`))
	for _, want := range []string{"0\nweb1\n192.0.2.7 web7\nnameserver 192.0.2.53\n1\n1\n0\t", "\n77\n", "this\\040test", "/run/sshd\n", "lo:"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	if now, _ := os.ReadFile("/etc/hosts"); string(now) != string(hosts) {
		t.Error("the host's /etc/hosts was changed")
	}
	if _, err := os.Stat("/run/sshd"); err == nil && os.Getuid() != 0 {
		t.Log("the host has a /run/sshd")
	}
	// Where there is a sysfs at all, it is that of the network here, unless the kernel would not have it.
	if got := said(t, s.Start, sh("ls /sys/class/net 2>/dev/null; true")); strings.TrimSpace(got) != "lo" {
		t.Logf("/sys/class/net is the caller's: %q", got)
	}
	if err := s.WriteFile("/etc/hosts", "192.0.2.8 web8\n"); err != nil {
		t.Error(err)
	}
	if f, err := s.Open("/etc/hosts"); err != nil {
		t.Error(err)
	} else if b, err := io.ReadAll(f); err != nil || string(b) != "192.0.2.8 web8\n" || f.Close() != nil {
		t.Errorf("%q, %v", b, err)
	}
	if err := s.WriteFile("/there/is/none", "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	// Another one is another one.
	if got := said(t, space(t, SpaceOptions{Hostname: "web2"}).Start, sh("ls /run; cat /proc/sys/kernel/hostname")); strings.Contains(got, "sshd") || !strings.Contains(got, "web2\n") {
		t.Errorf("in the other: %s", got)
	}
	// lo is up, with both families.
	for _, a := range []string{"127.0.0.1:9", "[::1]:9"} {
		if _, err := s.Dial(t.Context(), "tcp", a); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial %s: %v", a, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"Sysctl": s.Sysctl("net.ipv4.ip_forward", "1"),
		"Close":  s.Close(),
		"End":    s.End(t.Context()),
	} {
		if what == "Close" && err != nil || what != "Close" && !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s of a closed one: %v", what, err)
		}
	}
	if _, err := s.Start(sh("true")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Start in a closed one: %v", err)
	}
	if _, err := s.Attach(t.Context(), Config{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Attach to a closed one: %v", err)
	}
}

func TestSpaceErrors(t *testing.T) {
	for _, c := range []struct {
		opt  SpaceOptions
		want string
	}{
		{SpaceOptions{Hostname: strings.Repeat("x", 65)}, "at most 64"},
		{SpaceOptions{Hosts: "a\x00b"}, "NUL"},
		{SpaceOptions{Sysctls: map[string]string{"vm.overcommit_memory": "1"}}, "one of a network"},
		{SpaceOptions{Sysctls: map[string]string{"net/../vm/overcommit_memory": "1"}}, "one of a network"},
		{SpaceOptions{Sysctls: map[string]string{"net.ipv4.there_is_none": "1"}}, "net/ipv4/there_is_none: no such file"},
	} {
		s, err := NewSpace(c.opt)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.opt, err, c.want)
		}
	}
}

func TestSysctl(t *testing.T) {
	s := space(t, SpaceOptions{})
	if err := s.Sysctl("net.ipv4.conf.all.forwarding", "1"); err != nil {
		t.Error(err)
	}
	if got := said(t, s.Start, sh("cat /proc/sys/net/ipv4/ip_forward")); got != "1\n" {
		t.Errorf("ip_forward %q", got)
	}
	for name, want := range map[string]string{"kernel.hostname": "one of a network", "net.ipv4.none": "no such file", "net.ipv4.ip_default_ttl\x00": "no such file"} {
		if err := s.Sysctl(name, "1"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
	if err := s.Sysctl("net.ipv4.ip_default_ttl", "many"); !errors.Is(err, unix.EINVAL) {
		t.Error(err)
	}
}

// A program is started as os/exec would: with the same signals blocked, ignored and handled, and the same limits.
func TestStartIsLikeExec(t *testing.T) {
	s := space(t, SpaceOptions{})
	signal.Ignore(syscall.SIGUSR2)
	defer signal.Reset(syscall.SIGUSR2)
	heard := make(chan os.Signal, 1)
	signal.Notify(heard, syscall.SIGUSR1)
	defer signal.Stop(heard)
	const line = "ulimit -n; ulimit -Hn; umask; pwd; echo $PWD $WHO; exec grep -E '^(Sig[BIC]|Shd|Cap(Inh|Amb)|NoNewPrivs|Seccomp)' /proc/self/status"
	dir := t.TempDir()
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "WHO=a", "WHO=b")
	want, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	p := sh(line)
	p.Dir, p.Env = dir, append(os.Environ(), "WHO=a", "WHO=b")
	if got := said(t, s.Start, p); got != string(want) {
		t.Errorf("started here:\n%s\nby os/exec:\n%s", got, want)
	}
	if !strings.Contains(string(want), "SigBlk:\t") {
		t.Errorf("nothing of signals: %s", want)
	}
}

// An errand that gets stuck in what a space has mounted does not hold the caller, and its child goes.
func TestErrandHangs(t *testing.T) {
	defer func(d time.Duration) { errandPatience = d }(errandPatience)
	errandPatience = 50 * time.Millisecond
	r, w, err := os.Pipe() // which ends with the child, as it has it too
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	e := &errand{}
	e.add("wait for a signal", unix.SYS_PPOLL)
	_, err = e.run()
	w.Close()
	if err == nil || !strings.Contains(err.Error(), "hangs") {
		t.Errorf("%v", err)
	}
	r.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("its child is still there: %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	s := space(t, SpaceOptions{})
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := descriptors(t)
	for _, c := range []struct {
		p    Process
		want error
	}{
		{Process{Args: []string{bad}}, unix.ENOEXEC},
		{Process{Args: []string{"./bad"}, Dir: dir}, unix.ENOEXEC},
		{Process{Args: []string{filepath.Join(dir, "none")}}, fs.ErrNotExist},
		{Process{Args: []string{dir}}, fs.ErrPermission},
		{Process{Args: []string{"there-is-no-such-program"}}, exec.ErrNotFound},
		{Process{Args: []string{"bad"}, Dir: dir, Env: []string{"PATH=.::/there/is/none"}}, exec.ErrNotFound},
		{Process{Args: []string{"true"}, Dir: filepath.Join(dir, "none")}, fs.ErrNotExist},
		{Process{Args: []string{"true"}, Dir: bad}, unix.ENOTDIR},
		{Process{}, nil},
		{Process{Args: []string{"true\x00"}}, nil},
		{Process{Args: []string{"true"}, Terminal: true}, nil},
		{Process{Args: []string{"true"}, Terminal: true, Session: true, Files: []*os.File{os.Stdin}}, nil},
	} {
		if c.p.Terminal && c.p.Files != nil {
			null, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			defer null.Close()
			c.p.Files[0] = null
			c.want = unix.ENOTTY
		}
		proc, err := s.Start(c.p)
		if err == nil {
			proc.Kill()
			proc.Wait()
		}
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.p, err, c.want)
		}
	}
	if list, err := s.Processes(); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	if now := descriptors(t); len(now) != len(before)+1 {
		t.Errorf("descriptors %v, before %v and null", now, before)
	}
}

// Descriptors come where they are to be, whatever their numbers are here.
func TestStartFiles(t *testing.T) {
	s := space(t, SpaceOptions{})
	dir := t.TempDir()
	var files []*os.File
	for i := range 6 {
		f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	slices.Reverse(files)
	files[2] = nil
	proc, err := s.Start(Process{Args: []string{"sh", "-c", "for i in 0 1 2 3 4 5; do eval \"echo fd $i >&$i\"; done; ls -l /proc/$$/fd >&5"}, Files: files})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := proc.Wait(); err != nil || !st.Success() {
		t.Fatal(st, err)
	}
	for i := range 6 {
		got, err := os.ReadFile(filepath.Join(dir, strconv.Itoa(5-i)))
		want := fmt.Sprintf("fd %d\n", i)
		if i == 2 {
			want = ""
		}
		if err != nil || !strings.HasPrefix(string(got), want) || i != 5 && string(got) != want {
			t.Errorf("%d: %q, %v", i, got, err)
		}
		if i == 5 && strings.Count(string(got), "->") > 7 { // the shell may keep one of its own
			t.Errorf("too many are open: %s", got)
		}
	}
}

func TestStartTerminal(t *testing.T) {
	s := space(t, SpaceOptions{})
	master, tty, err := pty.Open()
	if err != nil {
		t.Skip(err)
	}
	defer master.Close()
	proc, err := s.Start(Process{Args: []string{"sh", "-c", "test -t 0 && echo by its name >/dev/tty; read x; echo heard $x"},
		Files: []*os.File{tty, tty, tty}, Session: true, Terminal: true})
	tty.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(master, "us\n"); err != nil {
		t.Error(err)
	}
	got, _ := io.ReadAll(master) // it ends by EIO
	if st, err := proc.Wait(); err != nil || !st.Success() || !strings.Contains(string(got), "by its name\r\n") || !strings.Contains(string(got), "heard us\r\n") {
		t.Errorf("%v, %v: %q", st, err, got)
	}
}

func TestStartMany(t *testing.T) {
	s := space(t, SpaceOptions{})
	said(t, s.Start, sh("true")) // what is made once
	before := descriptors(t)
	const workers, each = 16, 20
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				want := fmt.Sprintf("%d.%d\n", w, i)
				p := sh(fmt.Sprintf("echo %d.%d; exec 1>&-; exit %d", w, i, i))
				r, out, err := os.Pipe()
				if err != nil {
					t.Error(err)
					return
				}
				p.Files = []*os.File{nil, out, nil}
				p.Session = i%2 == 0
				if i%3 == 0 {
					p.DeathSignal = syscall.SIGKILL
				}
				proc, err := s.Start(p)
				out.Close()
				if err != nil {
					t.Error(err)
					r.Close()
					return
				}
				got, _ := io.ReadAll(r)
				r.Close()
				st, err := proc.Wait()
				if err != nil || st.ExitCode() != i || string(got) != want {
					t.Errorf("%s: %q, %v, %v", want, got, st, err)
				}
			}
		})
		wg.Go(func() { // and what else forks, and what works on the same descriptors
			for range each / 4 {
				if err := s.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
					t.Error(err)
				}
				if _, err := s.Dial(t.Context(), "tcp", "127.0.0.1:9"); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Error(err)
				}
				if err := exec.Command("true").Run(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if list, err := s.Processes(); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	if now := descriptors(t); len(now) != len(before) {
		t.Errorf("descriptors:\n%s\nbefore:\n%s", strings.Join(now, "\n"), strings.Join(before, "\n"))
	}
}

func TestJoin(t *testing.T) {
	s := space(t, SpaceOptions{Hostname: "joined", Hosts: "192.0.2.7 web7\n"})
	files, err := s.Files()
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(files)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	join := func(p Process) (*os.Process, error) { return Join(files, p) }
	p := sh("id -u; cat /proc/sys/kernel/hostname /etc/hosts; grep -c . /proc/net/dev")
	want := said(t, s.Start, p)
	if got := said(t, join, p); got != want || !strings.Contains(got, "0\njoined\n192.0.2.7 web7\n3\n") {
		t.Errorf("joined %q, started %q", got, want)
	}
	p.DeathSignal = syscall.SIGKILL
	if got := said(t, join, p); got != want {
		t.Errorf("%q", got)
	}
	p.Args = []string{"/there/is/none"}
	if _, err := join(p); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, bad := range [][]*os.File{nil, {null}, files[:1]} {
		if _, err := Join(bad, sh("true")); err == nil {
			t.Errorf("joined %v", bad)
		}
	}
}

// inside is a server of a space's, in this process: only its socket is there.
func inside(t *testing.T, s *Space, network string, at netip.AddrPort) net.Addr {
	t.Helper()
	kind := unix.SOCK_STREAM
	if network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := s.socket(int(family(at.Addr())), kind)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "server")
	defer f.Close()
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	if at.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	if err := unix.Bind(fd, sa); err != nil {
		t.Fatal(err)
	}
	if network == "udp" {
		c, err := net.FilePacketConn(f)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			b := make([]byte, 2048)
			for {
				n, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				c.WriteTo(b[:n], from)
			}
		}()
		t.Cleanup(func() { c.Close(); <-done })
		return c.LocalAddr()
	}
	if err := unix.Listen(fd, 16); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(c, c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr()
}

func TestDial(t *testing.T) {
	s := space(t, SpaceOptions{})
	for _, c := range []struct{ network, at string }{
		{"tcp", "127.0.0.1:0"}, {"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}, {"tcp", "[::1]:0"}, {"udp", "127.0.0.1:0"}, {"udp6", "[::1]:0"},
	} {
		addr := inside(t, s, strings.TrimRight(c.network, "46"), netip.MustParseAddrPort(c.at))
		conn, err := s.Dial(t.Context(), c.network, addr.String())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(patience))
		if conn.RemoteAddr().String() != addr.String() || conn.LocalAddr().String() == addr.String() {
			t.Errorf("%s: from %v to %v", c, conn.LocalAddr(), conn.RemoteAddr())
		}
		b := make([]byte, 5)
		io.WriteString(conn, "hello")
		if _, err := io.ReadFull(conn, b); err != nil || string(b) != "hello" {
			t.Errorf("%s: %q, %v", c, b, err)
		}
		conn.Close()
	}
	for _, c := range [][2]string{{"unix", "127.0.0.1:1"}, {"tcp", "localhost:1"}, {"tcp", "127.0.0.1"}, {"tcp4", "[::1]:1"}, {"udp6", "127.0.0.1:1"}, {"tcp", "[fe80::1%lo]:1"}, {"46", "127.0.0.1:1"}} {
		if conn, err := s.Dial(t.Context(), c[0], c[1]); err == nil {
			conn.Close()
			t.Errorf("dialed %s", c)
		}
	}
	if _, err := s.Dial(t.Context(), "tcp", "192.0.2.1:1"); !errors.Is(err, unix.ENETUNREACH) {
		t.Error(err)
	}
}

// A space has interfaces and routes; a dial that nobody answers ends with its context.
func TestSpaceAttach(t *testing.T) {
	need(t)
	s := space(t, SpaceOptions{})
	var taps []*TAP
	for i := range 2 {
		tap, err := s.Attach(t.Context(), Config{Name: fmt.Sprintf("eth%d", i), MTU: 1400 + i, NoDefault6: i == 1})
		if err != nil {
			t.Fatal(err)
		}
		defer tap.Close()
		taps = append(taps, tap)
	}
	p4, p6 := netip.MustParsePrefix("192.0.2.15/24"), netip.MustParsePrefix("2001:db8::15/64")
	err := errors.Join(taps[0].AddAddr(p4), taps[0].AddAddr(p6),
		taps[0].AddRouteTo(netip.MustParsePrefix("198.51.100.7/24"), netip.MustParseAddr("192.0.2.1")),
		taps[0].AddRouteTo(netip.MustParsePrefix("2001:db8:1::/48"), netip.MustParseAddr("2001:db8::1")),
		taps[0].AddRouteTo(netip.MustParsePrefix("198.51.100.0/24"), netip.MustParseAddr("192.0.2.1"))) // again
	if err != nil {
		t.Fatal(err)
	}
	if err := taps[1].AddRouteTo(netip.MustParsePrefix("198.51.101.0/24"), netip.MustParseAddr("192.0.2.1")); err == nil {
		t.Error("a route by an address that the interface is not beside")
	}
	if err := taps[0].AddRouteTo(netip.MustParsePrefix("198.51.101.0/24"), netip.MustParseAddr("2001:db8::1")); err == nil {
		t.Error("a route of two families")
	}
	got := said(t, s.Start, sh("cat /proc/net/route /proc/net/ipv6_route; cat /proc/sys/net/ipv6/conf/eth*/accept_ra_defrtr"))
	for _, want := range []string{"eth0\t006433C6\t010200C0", "20010db8000100000000000000000000 30", "\n1\n0\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Dial(ctx, "tcp", "192.0.2.1:80"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := s.Dial(ctx, "tcp6", "[2001:db8::1]:80"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// End ends all that is there: those who do not hear, who have gone away from their parents, who are stopped, who made
// namespaces of their own.
func TestEnd(t *testing.T) {
	s := space(t, SpaceOptions{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	lines := []string{
		"trap '' TERM HUP; echo deaf; while :; do sleep 1; done",
		"(setsid sleep 600 >/dev/null & setsid sleep 600 >/dev/null &) ; echo gone",
		"sleep 600 & kill -STOP $!; echo stopped; wait",
		"unshare -n true 2>/dev/null && exec unshare -Urnm sh -c 'echo below; exec sleep 600' || echo no unshare",
	}
	var wg sync.WaitGroup
	for _, l := range lines {
		proc, err := s.Start(Process{Args: []string{"sh", "-c", l}, Files: []*os.File{nil, w, nil}, Session: true})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { proc.Wait() })
	}
	w.Close()
	b := make([]byte, 256)
	for n, got := 0, 0; got < len(lines); n++ {
		m, err := r.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		got += strings.Count(string(b[:m]), "\n")
	}
	eventually(t, "all are there", func() bool {
		list, err := s.Processes()
		return err == nil && len(list) >= 6
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := s.End(ctx); err != nil {
		t.Error(err)
	}
	if list, err := s.Processes(); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	wg.Wait()
	if ctx.Err() == nil {
		t.Error("it did not wait for who did not hear SIGTERM")
	}
	// Where all hear, it does not wait; a shell hears another signal.
	for _, l := range []string{"exec sleep 600", "trap '' TERM; echo; read x <&3"} {
		r3, w3, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w3.Close()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		proc, err := s.Start(Process{Args: []string{"sh", "-c", l}, Files: []*os.File{nil, w, nil, r3}})
		if err != nil {
			t.Fatal(err)
		}
		r3.Close()
		w.Close()
		wg.Go(func() { proc.Wait() })
		if strings.Contains(l, "echo") {
			r.Read(b) // it does not hear the other by now
		}
		r.Close()
	}
	if err := s.End(t.Context()); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// A program with a death signal goes when the space is closed, on whatever thread it was started.
func TestCloseSignals(t *testing.T) {
	s := space(t, SpaceOptions{})
	p := sh("exec sleep 600")
	p.DeathSignal = syscall.SIGTERM
	proc, err := s.Start(p)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if st, err := proc.Wait(); err != nil || st.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Error(st, err)
	}
}

// helperEnv makes the test's binary the one that is killed.
const helperEnv = "NETNS_TEST_HELPER"

func helper() {
	s, err := NewSpace(SpaceOptions{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	tap, err := s.Attach(context.Background(), Config{Name: "eth0"})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_ = tap
	// An interface whose other end is in there goes when the namespace does.
	proc, err := s.Start(Process{Args: []string{"sleep", "600"}, Session: true, DeathSignal: syscall.SIGKILL})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	out, err := exec.Command("ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", strconv.Itoa(proc.Pid)).CombinedOutput()
	if err != nil {
		fmt.Printf("ip link: %v: %s\n", err, out)
		os.Exit(1)
	}
	files, err := s.Files()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	joined, err := Join(files, Process{Args: []string{"sleep", "600"}, DeathSignal: syscall.SIGKILL})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready", proc.Pid, joined.Pid)
	select {}
}

// Of a process that is killed nothing is left: not what it started, and not a namespace.
func TestKilled(t *testing.T) {
	need(t)
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip(err)
	}
	outer := space(t, SpaceOptions{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	proc, err := outer.Start(Process{Args: []string{os.Args[0]}, Env: append(os.Environ(), helperEnv+"=1"), Files: []*os.File{nil, w, w}})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	var pids [2]int
	if _, err := fmt.Fscanf(r, "ready %d %d\n", &pids[0], &pids[1]); err != nil {
		rest, _ := io.ReadAll(r)
		proc.Wait()
		t.Fatalf("%v: …%s", err, rest)
	}
	if got := said(t, outer.Start, sh("ip -o link")); !strings.Contains(got, "here@") {
		t.Fatalf("no interface to watch: %s", got)
	}
	proc.Kill()
	proc.Wait()
	eventually(t, "its programs have ended", func() bool {
		list, err := outer.Processes()
		return err == nil && len(list) == 0 && errors.Is(syscall.Kill(pids[0], 0), syscall.ESRCH) && errors.Is(syscall.Kill(pids[1], 0), syscall.ESRCH)
	})
	eventually(t, "its namespace has gone", func() bool { return !strings.Contains(said(t, outer.Start, sh("ip -o link")), "here@") })
}
