package portforward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Some hosts cannot be had in the test's own process: another program's, one
// without privileges, one out of descriptors, one with other addresses. For
// those the test binary runs itself with helperEnv set.
const helperEnv = "PORTFORWARD_TEST_HELPER"

func helper(what string) int {
	var err error
	switch name, arg, _ := strings.Cut(what, "="); name {
	case "listen":
		err = helpListen(arg)
	case "unprivileged":
		err = helpUnprivileged(arg)
	case "descriptors":
		err = helpDescriptors()
	case "addresses":
		err = helpAddresses()
	default:
		err = fmt.Errorf("no helper %q", what)
	}
	if err != nil {
		fmt.Println("FAIL:", err)
		return 1
	}
	return 0
}

// runHelper runs one to its end, in new namespaces where flags say so.
func runHelper(t *testing.T, what string, flags uintptr) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = helperEnviron(what)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if len(out) > 0 {
		t.Logf("%s", bytes.TrimSpace(out))
	}
	if errors.Is(err, os.ErrPermission) {
		t.Skipf("needs root for its own namespace: %v", err)
	}
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// helperEnviron asks for a helper, and for the race detector not to wait a
// second at its end.
func helperEnviron(what string) []string {
	return append(os.Environ(), helperEnv+"="+what, "GORACE=atexit_sleep_ms=0")
}

// helpListen is another program: it listens until its standard input ends.
func helpListen(at string) error {
	network, addr, _ := strings.Cut(at, " ")
	var (
		end fmt.Stringer
		err error
	)
	if network == "udp" {
		var pc net.PacketConn
		if pc, err = net.ListenPacket(network, addr); err == nil {
			end = pc.LocalAddr()
			defer pc.Close()
		}
	} else {
		var l net.Listener
		if l, err = net.Listen(network, addr); err == nil {
			end = l.Addr()
			defer l.Close()
		}
	}
	if err != nil {
		return err
	}
	fmt.Println(end)
	os.Stdin.Read(make([]byte, 1))
	return nil
}

// TestInUseByAnother: the error names the other program and its pid.
func TestInUseByAnother(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ listen, rule string }{
		{"tcp 127.0.0.1:0", "127.0.0.1:%d:22"},
		{"tcp 0.0.0.0:0", "127.0.0.1:%d:22"},
		{"tcp [::1]:0", "[::1]:%d:22"},
		{"tcp [::]:0", "127.0.0.1:%d:22"}, // of both families
		{"tcp 127.0.0.1:0", "0.0.0.0:%d:22"},
		{"udp 127.0.0.1:0", "127.0.0.1:%d:22/udp"},
		{"udp [::1]:0", "[::]:%d:22/udp"},
		{"unix " + filepath.Join(dir, "live"), "unix:" + filepath.Join(dir, "live") + "-:22"},
	} {
		t.Run(c.listen+" "+c.rule, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = helperEnviron("listen=" + c.listen)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { stdin.Close(); cmd.Wait() }()
			buf := make([]byte, 200)
			n, err := stdout.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			text := c.rule
			if at, err := netip.ParseAddrPort(strings.TrimSpace(string(buf[:n]))); err == nil {
				text = fmt.Sprintf(text, at.Port())
			}
			rules, err := ParseRule(text)
			if err != nil {
				t.Fatal(err)
			}
			_, err = newTable(t, Config{Guest: &fakeGuest{}}).Add(t.Context(), rules[0])
			comm, err2 := os.ReadFile("/proc/self/comm")
			if err2 != nil {
				t.Fatal(err2)
			}
			want := fmt.Sprintf(`in use by %q (pid %d)`, bytes.TrimSpace(comm), cmd.Process.Pid)
			if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), want) {
				t.Fatalf("got %v, want %q", err, want)
			}
			t.Log(err)
		})
	}
}

func TestPrivilegedPort(t *testing.T) {
	start := unprivilegedPorts()
	if start <= 1 {
		t.Skip("this host has no privileged ports")
	}
	runHelper(t, fmt.Sprintf("unprivileged=%d", start), 0)
}

// helpUnprivileged gives root up, if it has it, and asks for the last
// privileged port.
func helpUnprivileged(start string) error {
	const nobody = 65534
	if os.Getuid() == 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
			return err
		}
	}
	table := New(Config{Guest: &fakeGuest{}})
	defer table.Close()
	port := unprivilegedPorts() - 1
	for _, text := range []string{"%d:22", "[::1]:%d:22", "%d:22/udp"} {
		rules, err := ParseRule(fmt.Sprintf(text, port))
		if err != nil {
			return err
		}
		_, err = table.Add(context.Background(), rules[0])
		fmt.Println(err)
		for _, says := range []string{
			fmt.Sprintf("port %d is privileged", port), "below " + start, "net.ipv4.ip_unprivileged_port_start",
			"from " + start + " up", fmt.Sprintf("sysctl -w net.ipv4.ip_unprivileged_port_start=%d", port),
		} {
			if !errors.Is(err, ErrPrivileged) || !errors.Is(err, syscall.EACCES) || !strings.Contains(err.Error(), says) {
				return fmt.Errorf("does not say %q", says)
			}
		}
	}
	return nil
}

func TestOutOfDescriptors(t *testing.T) { runHelper(t, "descriptors", 0) }

// helpDescriptors runs out of descriptors: accepting fails, List says so, and
// the client that came meanwhile is served when there are some again.
func helpDescriptors() error {
	guest := &fakeGuest{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go func() { defer c.Close(); echo(c.(*net.TCPConn)) }()
			}
		}
	}()
	guest.set("tcp", 80, l.Addr().String())
	table := New(Config{Guest: guest})
	defer table.Close()
	r, err := table.Add(context.Background(), Rule{GuestPort: 80})
	if err != nil {
		return err
	}
	// A rule that is added when there are none left says so.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 64, Max: 64}); err != nil {
		return err
	}
	var spare []*os.File
	for {
		f, err := os.Open("/dev/null")
		if err != nil {
			break
		}
		spare = append(spare, f)
	}
	_, err = table.Add(context.Background(), Rule{GuestPort: 81})
	fmt.Println(err)
	if !errors.Is(err, ErrBind) || !strings.Contains(err.Error(), "ulimit -n") {
		return errors.New("not the error of a lack of descriptors")
	}
	spare[0].Close() // one, for the client
	c, err := net.Dial("tcp", hostEnd(r))
	if err != nil {
		return err
	}
	defer c.Close()
	state := func() Status { return table.List()[0] }
	end := time.Now().Add(patience)
	for ; state().State != StateBackoff || state().AcceptErrors < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("never backed off: %+v", state())
		}
	}
	fmt.Printf("%s after %d errors: %s\n", state().State, state().AcceptErrors, state().LastError)
	for _, f := range spare[1:] {
		f.Close()
	}
	c.SetDeadline(end)
	if _, err := c.Write([]byte("hi")); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 2)); err != nil {
		return fmt.Errorf("not served afterwards: %w", err)
	}
	if s := state(); s.State != StateListening {
		return fmt.Errorf("still %q", s.State)
	}
	return nil
}

// TestOtherAddresses runs in a network of its own, where the host has more
// addresses than loopback's.
func TestOtherAddresses(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	runHelper(t, "addresses", syscall.CLONE_NEWNET)
}

// helpAddresses: lo has 192.0.2.1, 192.0.2.2, fd00:1::1, fd00:1::2 besides its
// own and a dummy has a link-local address.
func helpAddresses() error {
	for _, args := range []string{
		"link set lo up",
		"addr add 192.0.2.1/32 dev lo", "addr add 192.0.2.2/32 dev lo",
		"addr add fd00:1::1/128 dev lo nodad", "addr add fd00:1::2/128 dev lo nodad",
		"addr add fe80::7/64 dev lo nodad",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %v: %s", args, err, out)
		}
	}
	guest := &fakeGuest{}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer pc.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:n], from)
		}
	}()
	guest.set("udp", 53, pc.LocalAddr().String())
	table := New(Config{Guest: guest})
	defer table.Close()

	for _, c := range []struct {
		rule  string
		to    []string
		from  string // the client's address
		shown string
	}{
		{"0.0.0.0:0:53/udp,source=client", []string{"192.0.2.1", "192.0.2.2", "127.0.0.9"}, "192.0.2.2", "192.0.2.2"},
		{"[::]:0:53/udp,source=client", []string{"fd00:1::1", "fd00:1::2", "::1"}, "fd00:1::2", "fd00:1::2"},
		{"[fe80::7%lo]:0:53/udp,source=client", []string{"fe80::7%lo"}, "fe80::7%lo", ""},
		{"[::]:0:53/udp", []string{"fe80::7%lo"}, "fe80::7%lo", ""},
		{"192.0.2.1:0:53/udp", []string{"192.0.2.1"}, "192.0.2.2", ""},
		{"fd00:1::2/0:53/udp", []string{"fd00:1::2"}, "fd00:1::1", ""},
	} {
		rules, err := ParseRule(c.rule)
		if err != nil {
			return err
		}
		r, err := table.Add(context.Background(), rules[0])
		if err != nil {
			return err
		}
		client, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.from), 0)))
		if err != nil {
			return err
		}
		for _, addr := range c.to {
			to := netip.AddrPortFrom(netip.MustParseAddr(addr), r.HostPort)
			if _, err := client.WriteToUDPAddrPort([]byte("hi"), to); err != nil {
				return err
			}
			client.SetReadDeadline(time.Now().Add(patience))
			_, from, err := client.ReadFromUDPAddrPort(make([]byte, 10))
			if err != nil {
				return fmt.Errorf("%s: to %s: %w", c.rule, to, err)
			}
			shown := guest.lastDial().from
			fmt.Printf("%s: wrote to %s, %s answered, shown to the guest as %v\n", r, to, from, shown)
			if from != to {
				return errors.New("another address answered")
			}
			want := netip.AddrPort{}
			if c.shown != "" {
				want = netip.AddrPortFrom(netip.MustParseAddr(c.shown), client.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			}
			if shown != want {
				return fmt.Errorf("shown as %v, want %v", shown, want)
			}
		}
		client.Close()
	}

	// Without IPv6 a rule says so.
	if err := unix.Access("/proc/sys/net/ipv6/conf/all/disable_ipv6", unix.W_OK); err == nil {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0); err == nil {
			rules, _ := ParseRule("[::1]:0:22")
			_, err := table.Add(context.Background(), rules[0])
			fmt.Println(err)
			if !errors.Is(err, ErrNoAddress) {
				return errors.New("not the error of a host without IPv6")
			}
		}
	}
	return nil
}

// talker is a guest that never stops sending and records how it was ended.
type talker struct {
	net.Conn // unused
	mu       sync.Mutex
	gone     bool
	half     bool
}

func (c *talker) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return 0, net.ErrClosed
	}
	return len(p), nil
}

func (c *talker) Write(p []byte) (int, error) { return len(p), nil }

func (c *talker) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.half = c.half || !c.gone
	return nil
}

func (c *talker) Abort() error { return c.Close() }

func (c *talker) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	return nil
}

// TestResetIsNoEnd: a client that resets while the guest sends to it is never
// an end to the guest, whichever direction the system tells of the reset.
func TestResetIsNoEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 300 {
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		host, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		guest := &talker{}
		done := make(chan error, 1)
		go func() {
			_, _, err := Relay(host, guest)
			done <- err
		}()
		io.CopyN(io.Discard, client, 200_000)
		client.(*net.TCPConn).SetLinger(0)
		client.Close()
		if err := <-done; err == nil {
			t.Fatalf("try %d: no error", i)
		}
		if guest.half {
			t.Fatalf("try %d: the guest was told of an end", i)
		}
	}
}
