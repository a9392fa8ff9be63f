package netns

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
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/link"
)

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		helper()
	}
	goleak.VerifyTestMain(m)
}

// need skips where there can be no TAP: for ordinary users where /dev/net/tun is root's, say.
func need(t testing.TB) {
	t.Helper()
	if err := unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("/dev/net/tun: %v", err)
		}
		t.Skipf("/dev/net/tun: %v", err)
	}
}

// held starts a command that waits, and is ended with the test.
func held(t *testing.T, opt Options, args ...string) (*exec.Cmd, *Held) {
	t.Helper()
	need(t)
	cmd := exec.Command(args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	h, err := Hold(cmd, opt)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.Close()
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("no namespaces: %v: %s", err, WhyNoNamespaces())
	}
	t.Cleanup(func() {
		h.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, h
}

// output lets the command go and returns what it says.
func output(t *testing.T, cmd *exec.Cmd, h *Held) string {
	t.Helper()
	if err := h.Go(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, cmd.Stdout)
	}
	return cmd.Stdout.(*bytes.Buffer).String()
}

func TestAttach(t *testing.T) {
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd, h := held(t, Options{}, "sh", "-c", "id -u; cat /etc/resolv.conf; cat /proc/net/dev; cat /proc/sys/net/ipv4/ping_group_range; cat /sys/class/net/eth7/mtu; cat /proc/net/route; cat /proc/net/fib_trie")
	tap, err := Attach(t.Context(), Config{PID: cmd.Process.Pid, Name: "eth7", MTU: 9000, Ping: true, Resolv: resolv})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	if tap.Name != "eth7" || tap.MTU != 9000 || len(tap.MAC) != 6 || tap.Index == 0 {
		t.Errorf("%+v", tap)
	}
	p4, p6 := netip.MustParsePrefix("192.0.2.15/24"), netip.MustParsePrefix("2001:db8::15/64")
	if err := errors.Join(tap.AddAddr(p4), tap.AddAddr(p6), tap.AddRoute(netip.MustParseAddr("192.0.2.2")), tap.AddRoute(netip.MustParseAddr("2001:db8::2"))); err != nil {
		t.Fatal(err)
	}
	got, err := tap.Addrs()
	if err != nil || len(got) != 2 || got[0] != p4 && got[1] != p4 || got[0] != p6 && got[1] != p6 {
		t.Errorf("addresses %v, %v", got, err)
	}
	said := output(t, cmd, h)
	for _, want := range []string{fmt.Sprintf("%d\n", os.Getuid()), "nameserver 192.0.2.53\n", "eth7:", "\t", "020200C0", "192.0.2.15"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in:\n%s", want, said)
		}
	}
	if b, _ := os.ReadFile("/etc/resolv.conf"); strings.Contains(string(b), "192.0.2.53") {
		t.Error("the host's resolv.conf was changed")
	}
}

// Frames come out with what is left to do on them, and go in.
func TestWire(t *testing.T) {
	cmd, _ := held(t, Options{}, "true")
	tap, err := Attach(t.Context(), Config{PID: cmd.Process.Pid})
	if err != nil {
		t.Fatal(err)
	}
	var b link.Batch
	// A router solicitation or its like.
	if err := tap.ReadFrames(&b); err != nil || len(b.Frames) == 0 || len(b.Offloads) != len(b.Frames) {
		t.Fatalf("%d frames, %d offloads, %v", len(b.Frames), len(b.Offloads), err)
	}
	seen := b.AppendTo(nil, b.Frames[0])
	if !bytes.Equal(seen[6:12], tap.MAC) || seen[12] != 0x86 || seen[13] != 0xdd {
		t.Errorf("% x", seen)
	}
	f := link.NewFrame(append(append(append([]byte{}, tap.MAC...), 2, 0, 0, 0, 0, 1, 8, 0), make([]byte, 46)...))
	hostile := link.NewFrame(f.AppendTo(nil))
	hostile.SetOffload(link.Offload{Kind: link.OffloadTCP4, Flags: link.OffloadSum, SumStart: 60000})
	if n, err := tap.WriteFrames([]link.Frame{f, hostile, f}); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := tap.TryWriteFrames([]link.Frame{f}); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	done := make(chan error)
	go func() {
		for {
			b.Next()
			if err := tap.ReadFrames(&b); err != nil {
				done <- err
				return
			}
		}
	}()
	tap.Close()
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Close does not wake a reader")
	}
	if _, err := tap.WriteFrames([]link.Frame{f}); err == nil {
		t.Error("written after Close")
	}
}

// An interface that is removed, from inside or by us, is the end of the wire.
func TestRemove(t *testing.T) {
	cmd, _ := held(t, Options{}, "true")
	tap, err := Attach(t.Context(), Config{PID: cmd.Process.Pid})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	if err := tap.Remove(); err != nil {
		t.Fatal(err)
	}
	var b link.Batch
	for range 10 {
		b.Next()
		if err = tap.TryReadFrames(&b); err != nil {
			break
		}
	}
	if err != io.EOF {
		t.Error(err)
	}
	if _, err := tap.TryWriteFrames([]link.Frame{link.NewFrame(make([]byte, 60))}); err != io.ErrClosedPipe {
		t.Error(err)
	}
}

// What a command may be: itself, or root.
func TestHoldMapRoot(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root needs no user namespace")
	}
	cmd, h := held(t, Options{MapRoot: true}, "sh", "-c", "id -u; grep CapEff /proc/self/status")
	said := output(t, cmd, h)
	if !strings.HasPrefix(said, "0\n") || strings.Contains(said, "0000000000000000") {
		t.Error(said)
	}
}

func TestHoldCannotExec(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, h := held(t, Options{}, bad)
	if err := h.Go(); !errors.Is(err, unix.ENOEXEC) || !strings.Contains(err.Error(), bad) {
		t.Error(err)
	}
	if _, err := Hold(exec.Command("there-is-no-such-program"), Options{}); !errors.Is(err, exec.ErrNotFound) {
		t.Error(err)
	}
}

// A command that is never let go ends with its Held.
func TestHoldClose(t *testing.T) {
	cmd, h := held(t, Options{}, "sleep", "600")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- Wait(ctx, cmd.Process.Pid) }()
	h.Close()
	cmd.Wait()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAttachErrors(t *testing.T) {
	need(t)
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{PID: 1 << 30}, "no process"},
		{Config{PID: os.Getpid()}, "that this process is in"},
		{Config{Path: "/there/is/none"}, "no such file"},
		{Config{Path: "/etc/passwd"}, "join the network namespace: invalid"},
		{Config{PID: 1, Name: "a/b"}, "interface name"},
		{Config{PID: 1, Name: "far-too-long-name"}, "interface name"},
		{Config{PID: 1, MAC: []byte{1, 2, 3, 4, 5, 6}}, "single station"},
	} {
		tap, err := Attach(t.Context(), c.cfg)
		if err == nil {
			tap.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
	}
}
