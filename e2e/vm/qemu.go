package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

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

// kvmTrial bounds the trial of KVM. A kernel under KVM is up in about a second; a machine that
// needs ten is no faster than emulation.
const kvmTrial = 10 * time.Second

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
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", err.Error(), nil
	}
	f.Close()

	path, version, err := QEMU(ctx)
	if err != nil {
		return "", "", err
	}
	kernel, initrd, err := Image(ctx, logf)
	if err != nil {
		return "", "", err
	}
	cache, err := guest.Cache()
	if err != nil {
		return "", "", err
	}
	host, err := os.ReadFile("/proc/version")
	if err != nil {
		return "", "", err
	}
	// Another host kernel, QEMU or guest kernel may do better: ask again.
	sum := sha256.Sum256(fmt.Appendf(nil, "%s|%s|%s|%s", host, path, version, kernel))
	known := filepath.Join(cache, "accel-"+hex.EncodeToString(sum[:8]))
	unlock, err := guest.Lock(ctx, filepath.Join(cache, "accel.lock"))
	if err != nil {
		return "", "", err
	}
	defer unlock()
	if b, err := os.ReadFile(known); err == nil {
		if name, why, ok := strings.Cut(strings.TrimSpace(string(b)), ": "); ok {
			return name, why, nil
		}
	}
	logf("trying KVM, once, for at most %v", kvmTrial)
	name, why = "kvm", "a guest boots with it"
	if err := tryKVM(ctx, kernel, initrd); err != nil {
		if ctx.Err() != nil {
			return "", "", context.Cause(ctx)
		}
		name, why = "tcg", strings.Replace(fmt.Sprintf("no guest boots with KVM here: %v", firstLine(err)), "guest kvm-trial: ", "", 1)
	}
	// Written in full or not at all; a next call would only try again.
	if err := os.WriteFile(known+".new", []byte(name+": "+why+"\n"), 0o644); err != nil {
		return "", "", err
	}
	return name, why, os.Rename(known+".new", known)
}

func tryKVM(ctx context.Context, kernel, initrd string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, kvmTrial, errors.New("it did not boot in time"))
	defer cancel()
	g, err := Start(ctx, Config{Name: "kvm-trial", Accel: "kvm", Kernel: kernel, Initrd: initrd})
	if err != nil {
		return err
	}
	defer g.Close()
	return g.WaitReady(ctx)
}

func firstLine(err error) error {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return errors.New(s)
}
