package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// KVMTrial bounds the trial of KVM. A kernel under KVM is up in about a second; a machine that needs ten is no faster than
// emulation.
const KVMTrial = 10 * time.Second

// Accel says whether a QEMU runs guests by kvm or by tcg, and why. A /dev/kvm that can be opened may still not boot a kernel
// (a machine that is itself a guest), so it is tried once, with the kernel at that path, and the cache folder remembers.
// boots boots that and returns once it is up, or ctx has ended.
func Accel(ctx context.Context, program, kernel string, boots func(ctx context.Context) error, logf func(format string, args ...any)) (name, why string, err error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", err.Error(), nil
	}
	f.Close()
	cache, err := Cache()
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
	sum := sha256.Sum256(fmt.Appendf(nil, "%s|%s|%v|%s", host, program, fi.ModTime(), kernel))
	known := filepath.Join(cache, "accel-"+hex.EncodeToString(sum[:8]))
	unlock, err := Lock(ctx, filepath.Join(cache, "accel.lock"))
	if err != nil {
		return "", "", err
	}
	defer unlock()
	if b, err := os.ReadFile(known); err == nil {
		if name, why, ok := strings.Cut(strings.TrimSpace(string(b)), ": "); ok {
			return name, why, nil
		}
	}
	if logf != nil {
		logf("trying KVM, once, for at most %v", KVMTrial)
	}
	name, why = "kvm", "a guest boots with it"
	trial, cancel := context.WithTimeoutCause(ctx, KVMTrial, errors.New("it did not boot in time"))
	defer cancel()
	if err := boots(trial); err != nil {
		if ctx.Err() != nil {
			return "", "", context.Cause(ctx)
		}
		reason, _, _ := strings.Cut(err.Error(), "\n")
		name, why = "tcg", "no guest boots with KVM here: "+reason
	}
	// Written in full or not at all; a next call would only try again.
	if err := os.WriteFile(known+".new", []byte(name+": "+why+"\n"), 0o644); err != nil {
		return "", "", err
	}
	return name, why, os.Rename(known+".new", known)
}
