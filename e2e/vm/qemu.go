package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"github.com/vmnetd/vmnetd/lab/guest"
)

// Version is QEMU's version.
type Version struct{ Major, Minor, Micro int }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

func (v Version) atLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// CanReconnect reports whether Netdev.Reconnect works (QEMU 8.0 and later).
func (v Version) CanReconnect() bool { return v.atLeast(8, 0) }

// CanStream reports whether -netdev stream and dgram are there at all (QEMU 7.2 and later).
func (v Version) CanStream() bool { return v.atLeast(7, 2) }

// QEMU finds the QEMU that boots guests: $VMNETD_QEMU, or qemu-system-x86_64 from PATH.
func QEMU(ctx context.Context) (path string, v Version, err error) {
	name := os.Getenv("VMNETD_QEMU")
	if name == "" {
		name = "qemu-system-x86_64"
	}
	if path, err = exec.LookPath(name); err != nil {
		return "", v, fmt.Errorf("no QEMU: %w (on Debian: apt-get install qemu-system-x86)", err)
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", v, fmt.Errorf("%s --version: %w", path, err)
	}
	v, err = parseVersion(string(out))
	return path, v, err
}

var versionLine = regexp.MustCompile(`QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?`)

func parseVersion(s string) (Version, error) {
	m := versionLine.FindStringSubmatch(s)
	if m == nil {
		first, _, _ := strings.Cut(s, "\n")
		return Version{}, fmt.Errorf("no QEMU version in %q", first)
	}
	var v Version
	v.Major, _ = strconv.Atoi(m[1])
	v.Minor, _ = strconv.Atoi(m[2])
	v.Micro, _ = strconv.Atoi(m[3])
	return v, nil
}

// Accel is the QEMU accelerator to use, kvm or tcg, and why. A /dev/kvm that opens may still not
// boot a kernel (a machine that is itself a guest), so the first call tries it with a guest, and
// the cache folder remembers. $VMNETD_ACCEL decides without a trial.
func Accel(ctx context.Context, logf func(format string, args ...any)) (name, why string, err error) {
	if logf == nil {
		logf = func(string, ...any) {}
	}
	switch a := os.Getenv("VMNETD_ACCEL"); a {
	case "":
	case "kvm", "tcg":
		return a, "VMNETD_ACCEL says so", nil
	default:
		return "", "", fmt.Errorf("VMNETD_ACCEL=%s: want kvm or tcg", a)
	}
	path, _, err := QEMU(ctx)
	if err != nil {
		return "", "", err
	}
	kernel, initrd, err := Image(ctx, logf)
	if err != nil {
		return "", "", err
	}
	return guest.Accel(ctx, path, kernel, func(ctx context.Context) error {
		g, err := Start(ctx, Config{Name: "kvm-trial", Accel: "kvm", Kernel: kernel, Initrd: initrd})
		if err != nil {
			return err
		}
		defer g.Close()
		return g.WaitReady(ctx)
	}, logf)
}
