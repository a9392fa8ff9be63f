//go:build linux

// Package e2e proves vmnetd from outside: the built binary, driven by its command line, its sockets and its signals,
// between real guests on one side and a small internet on the other. Everything is made by the tests: namespaces for
// the internet, for the host that the daemon runs on, and for guests.
//
//	world                         host                                 guest
//	┌───────────────────┐  veth  ┌──────────────────────┐   socket   ┌────────────────────────┐
//	│ 192.0.2.1 DNS, …  ├────────┤ 192.0.2.2            ├────────────┤ QEMU with Linux in it, │
//	│ 198.51.100.1      │        │ 2001:db8::2          │ unix, tcp, │ or a namespace with a  │
//	│ 2001:db8::1       │        │ 127.0.0.1 ::1        │ fd         │ TAP and a bridge       │
//	│ 2001:db8:1::1     │        │ vmnetd, as nobody    │            │ 10.0.2.15, fd…::/64    │
//	└───────────────────┘        └──────────────────────┘            └────────────────────────┘
//	203.0.113.0/24 and 2001:db8:dead::/48: the world drops what is sent there
//	198.18.0.0/24 and 2001:db8:bad::/48: the host knows that there is no way
//
// TestMatrix runs scenarios (functions over a Guest) on transports (rows). A new transport is a new row, a new
// scenario a new function. What needs a daemon of its own, with other flags or another end, stands in files of its
// own: life, hostile, flags.
//
// It needs root for namespaces, iproute2, util-linux and QEMU; without them it skips, and with CI=true it fails.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/e2e/vm"
	"go.uber.org/goleak"
)

// patience bounds every wait for a state. What is waited for takes a second or two; two cores that boot guests beside
// it have been seen to need six.
const patience = 30 * time.Second

// nobody is the user that daemons run as: what vmnetd does, it does without rights.
const nobody = 65534

// base is the folder of this run: 0755, for daemons run as another user. Its path is short, for sockets live in it.
var base string

func TestMain(m *testing.M) {
	if os.Getenv(kernelGuestEnv) != "" {
		if err := beKernelGuest(); err != nil {
			fmt.Fprintln(os.Stderr, "kernel guest:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if os.Getenv("CI") == "true" {
		os.Setenv("VMNETD_E2E", "must") // e2e/vm's word for the same
	}
	var err error
	if base, err = os.MkdirTemp("/tmp", "ve2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(base)
	os.Chmod(base, 0o755)
	soaked := soakBehind()
	code := m.Run()
	if err := soaked(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	return code
}

// need skips a test where the tools are missing, or fails it in CI, which must not pass by skipping.
func need(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("end to end: not with -short")
	}
	refuse := t.Skipf
	if os.Getenv("CI") == "true" {
		refuse = t.Fatalf
	}
	if os.Getuid() != 0 {
		refuse("network namespaces and TAPs for the test itself need root (vmnetd does not)")
	}
	for _, tool := range []string{"ip", "setpriv", "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			refuse("%v (on Debian: apt-get install iproute2 util-linux)", err)
		}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		refuse("guests in namespaces need TAPs: %v", err)
	}
}

// needQEMU is need for tests with QEMU guests.
func needQEMU(t *testing.T) {
	t.Helper()
	need(t)
	vm.Need(t)
}

// race puts the race detector into daemons.
var race = os.Getenv("VMNETD_E2E_RACE") == "1"

// vmnetd builds the program, once a run. The commands that ask are always without the race detector, which makes each
// of them wait a second for its end.
var vmnetd = sync.OnceValues(func() (string, error) { return build("vmnetd", false) })

var vmnetdRace = sync.OnceValues(func() (string, error) { return build("vmnetd-race", true) })

func build(name string, race bool) (string, error) {
	out := filepath.Join(base, name)
	args := []string{"build", "-o", out}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "github.com/vmnetd/vmnetd/cmd/vmnetd")...)
	if !race { // as it is handed out: static, so that a lab's small guest may have it as its agent
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	}
	said, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building vmnetd: %w: %s", err, said)
	}
	return out, nil
}

func mustBinary(t *testing.T) string {
	t.Helper()
	which := vmnetd
	if race {
		which = vmnetdRace
	}
	b, err := which()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// guestRoot is the tree of the QEMU guests' image, unpacked: guests in namespaces run the same programs.
var guestRoot = sync.OnceValues(func() (string, error) {
	_, initrd, err := vm.Image(context.Background(), nil)
	if err != nil {
		return "", err
	}
	root := filepath.Join(base, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return "", err
	}
	f, err := os.Open(initrd)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := unpackCPIO(f, root); err != nil {
		return "", fmt.Errorf("unpacking %s: %w", initrd, err)
	}
	for _, d := range []string{"bin", "dev", "proc", "run", "sys", "tmp", "www"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", err
		}
	}
	said, err := exec.Command("chroot", root, "/bin/busybox", "--install", "-s", "/bin").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("installing busybox: %w: %s", err, said)
	}
	return root, nil
})

// unpackCPIO reads the "newc" form that the kernel takes (Documentation/driver-api/early-userspace/buffer-format.rst):
// folders, files and links.
func unpackCPIO(r io.Reader, root string) error {
	align := func(n int64) error {
		_, err := io.CopyN(io.Discard, r, (4-n%4)%4)
		return err
	}
	for {
		head := make([]byte, 110)
		if _, err := io.ReadFull(r, head); err != nil {
			return err
		}
		if string(head[:6]) != "070701" {
			return errors.New("not in the newc form")
		}
		field := func(i int) (n int64) {
			fmt.Sscanf(string(head[6+8*i:14+8*i]), "%x", &n)
			return n
		}
		mode, size, nameSize := field(1), field(6), field(11)
		name := make([]byte, nameSize)
		if _, err := io.ReadFull(r, name); err != nil {
			return err
		}
		if err := align(110 + nameSize); err != nil {
			return err
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(r, body); err != nil {
			return err
		}
		path := strings.TrimRight(string(name), "\x00")
		if path == "TRAILER!!!" {
			return nil
		}
		if err := align(size); err != nil {
			return err
		}
		path = filepath.Join(root, path)
		var err error
		switch mode & 0o170000 {
		case 0o040000:
			err = os.MkdirAll(path, 0o755)
		case 0o100000:
			err = os.WriteFile(path, body, os.FileMode(mode&0o777))
		case 0o120000:
			err = os.Symlink(string(body), path)
		}
		if err != nil {
			return err
		}
	}
}

// wait waits for a state: until f returns nil. Its last error is what was missing.
func wait(t *testing.T, what string, f func() error) {
	t.Helper()
	waitFor(t, patience, what, f)
}

func waitFor(t *testing.T, most time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(most)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, most, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
