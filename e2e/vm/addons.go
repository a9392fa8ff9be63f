package vm

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// ImageWith is Image with more modules of the cloud kernel, loaded at boot, and more programs, by where they go:
// {"bin/vmnetd": body}.
func ImageWith(ctx context.Context, logf func(format string, args ...any), programs map[string][]byte, modules ...string) (kernel, initrd string, err error) {
	if logf == nil {
		logf = func(string, ...any) {}
	}
	kernel, small, err := Image(ctx, logf)
	if err != nil {
		return "", "", err
	}
	cache, err := cacheDir()
	if err != nil {
		return "", "", err
	}
	made.Lock()
	defer made.Unlock()
	unlock, err := lock(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return "", "", err
	}
	defer unlock()
	deb, err := unpacked(ctx, cache, "linux-image-*-cloud-amd64_*", kernelPackage("amd64"), logf)
	if err != nil {
		return "", "", fmt.Errorf("kernel: %w", err)
	}
	dir, err := oneOf(deb, "lib/modules/*", "usr/lib/modules/*")
	if err != nil {
		return "", "", err
	}
	box, err := unpacked(ctx, cache, "busybox-static_*", func(apt) (string, error) { return "busybox-static", nil }, logf)
	if err != nil {
		return "", "", fmt.Errorf("busybox: %w", err)
	}
	busybox, err := oneOf(box, "bin/busybox", "usr/bin/busybox")
	if err != nil {
		return "", "", err
	}
	tree, err := openModules(dir, []string{busybox, "xzcat"})
	if err != nil {
		return "", "", err
	}
	load, err := tree.resolve(append(slices.Clone(guestModules), modules...)...)
	if err != nil {
		return "", "", err
	}
	initrd, err = extended(cache, small, load, programs)
	return kernel, initrd, err
}

// extended is the initramfs at small with other modules and more programs.
func extended(cache, small string, load []module, programs map[string][]byte) (initrd string, err error) {
	// What comes later in an initramfs takes the place of what came before.
	body, err := os.ReadFile(small)
	if err != nil {
		return "", err
	}
	out := bytes.NewBuffer(body)
	a := archive{w: out}
	a.modules(load)
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		a.program(name, programs[name])
	}
	if err := a.close(); err != nil {
		return "", err
	}
	return keep(filepath.Join(cache, "images"), out.Bytes())
}
