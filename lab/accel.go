//go:build unix

package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/lab/guest"
)

// kvmTrial bounds the trial of KVM. A kernel under KVM is up in about a second; a machine that needs ten is no faster than
// emulation.
const kvmTrial = 10 * time.Second

// accelOf is what a machine runs by: kvm where that works, else tcg. $VMNETD_ACCEL decides for all whose node says nothing.
func accelOf(ctx context.Context, b *bench, program string) (string, error) {
	if b.node.Accel != "" {
		return b.node.Accel, nil
	}
	if a := os.Getenv("VMNETD_ACCEL"); a != "" {
		return a, nil
	}
	if !strings.HasSuffix(filepath.Base(program), qemuArch()) {
		return "tcg", nil // another processor, or another program
	}
	switch runtime.GOOS {
	case "linux":
	case "darwin":
		return "hvf", nil
	default:
		return "tcg", nil
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		b.log.Debug("no KVM", "error", err)
		return "tcg", nil
	}
	f.Close()
	// A machine that is itself a guest may have a /dev/kvm that boots nothing. One that is none has no such trouble.
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err == nil && !strings.Contains(string(cpus), " hypervisor") {
		return "kvm", nil
	}
	name, why, err := triedAccel(ctx, b, program)
	if err != nil {
		return "", err
	}
	b.log.Debug("accelerator chosen", "accel", name, "why", why)
	return name, nil
}

var accelTrial sync.Mutex

// triedAccel boots the small guest once, and has the answer in the cache folder.
func triedAccel(ctx context.Context, b *bench, program string) (name, why string, err error) {
	accelTrial.Lock()
	defer accelTrial.Unlock()
	im, err := guest.Make(ctx, func(format string, args ...any) { b.log.Info(fmt.Sprintf(format, args...)) })
	if err != nil {
		if ctx.Err() != nil {
			return "", "", err
		}
		b.log.Info("KVM is not tried, so it is not used: 'accel: kvm' or VMNETD_ACCEL=kvm does", "error", err)
		return "tcg", "not tried", nil
	}
	cache, err := guest.Cache()
	if err != nil {
		return "", "", err
	}
	host, err := os.ReadFile("/proc/version")
	if err != nil {
		return "", "", err
	}
	fi, err := os.Stat(program)
	if err != nil {
		return "", "", err
	}
	// Another host kernel, QEMU or guest kernel may do better: ask again.
	sum := sha256.Sum256(fmt.Appendf(nil, "%s|%s|%v|%s", host, program, fi.ModTime(), im.Kernel))
	known := filepath.Join(cache, "kvm-"+hex.EncodeToString(sum[:8]))
	unlock, err := guest.Lock(ctx, filepath.Join(cache, "kvm.lock"))
	if err != nil {
		return "", "", err
	}
	defer unlock()
	if b, err := os.ReadFile(known); err == nil {
		if name, why, ok := strings.Cut(strings.TrimSpace(string(b)), ": "); ok {
			return name, why, nil
		}
	}
	b.log.Info("trying KVM, once", "at most", kvmTrial)
	name, why = "kvm", "a guest boots with it"
	if err := tryKVM(ctx, im, program, b.keep, b.env); err != nil {
		if ctx.Err() != nil {
			return "", "", context.Cause(ctx)
		}
		name, why = "tcg", fmt.Sprintf("no guest boots with KVM here: %v", err)
	}
	if err := os.WriteFile(known+".new", []byte(name+": "+why+"\n"), 0o644); err != nil {
		return "", "", err
	}
	return name, why, os.Rename(known+".new", known)
}

// tryKVM boots the small guest so far that it says so, and goes down.
func tryKVM(ctx context.Context, im *guest.Image, program, dir string, env []string) error {
	dir, err := os.MkdirTemp(dir, "trial-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	initrd, err := im.For(dir, &guest.Node{Name: "trial", Trial: true})
	if err != nil {
		return err
	}
	console, err := os.Create(filepath.Join(dir, "console"))
	if err != nil {
		return err
	}
	defer console.Close()
	cmd := exec.Command(program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "kvm", "-cpu", "host",
		"-m", fmt.Sprint(smallMemory), "-kernel", im.Kernel, "-initrd", initrd, "-append", im.Append, "-serial", "stdio")
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout = console
	p, err := startProcess(cmd, nil)
	if err != nil {
		return err
	}
	wait := time.NewTimer(kvmTrial)
	defer wait.Stop()
	select {
	case <-p.ended:
	case <-wait.C:
		err = errors.New("it did not boot in time")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	p.signal(syscall.SIGKILL)
	<-p.ended
	if err != nil {
		return err
	}
	said, err := os.ReadFile(console.Name())
	if err != nil {
		return err
	}
	if strings.Contains(string(said), guest.TrialSays) {
		return nil
	}
	if _, err := p.exit(); err != nil {
		return err
	}
	return errors.New("it ended before it was up")
}
