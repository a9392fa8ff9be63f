//go:build unix

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/vmnetd/vmnetd/lab/guest"
)

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
	logf := func(format string, args ...any) { b.log.Info(fmt.Sprintf(format, args...)) }
	im, err := guest.Make(ctx, logf)
	if err != nil {
		if ctx.Err() != nil {
			return "", "", err
		}
		b.log.Info("KVM is not tried, so it is not used: 'accel: kvm' or VMNETD_ACCEL=kvm does", "error", err)
		return "tcg", "not tried", nil
	}
	return guest.Accel(ctx, program, im.Kernel, func(ctx context.Context) error { return tryKVM(ctx, im, program, b.keep, b.env) }, logf)
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
	select {
	case <-p.ended:
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
