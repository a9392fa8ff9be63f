package vm

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/vmnetd/vmnetd/lab/guest"
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
	cache, err := guest.Cache()
	if err != nil {
		return "", "", err
	}
	made.Lock()
	defer made.Unlock()
	unlock, err := guest.Lock(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return "", "", err
	}
	defer unlock()
	deb, err := guest.Unpacked(ctx, cache, "linux-image-*-cloud-amd64_*", guest.Newest("linux-image-cloud-amd64"), logf)
	if err != nil {
		return "", "", fmt.Errorf("kernel: %w", err)
	}
	dir, err := guest.OneOf(deb, "lib/modules/*", "usr/lib/modules/*")
	if err != nil {
		return "", "", err
	}
	box, err := guest.Unpacked(ctx, cache, "busybox-static_*", guest.Named("busybox-static"), logf)
	if err != nil {
		return "", "", fmt.Errorf("busybox: %w", err)
	}
	busybox, err := guest.OneOf(box, "bin/busybox", "usr/bin/busybox")
	if err != nil {
		return "", "", err
	}
	tree, err := guest.OpenModules(dir, []string{busybox, "xzcat"})
	if err != nil {
		return "", "", err
	}
	load, err := tree.Resolve(append(slices.Clone(guestModules), modules...)...)
	if err != nil {
		return "", "", err
	}
	initrd, err = extended(cache, small, load, programs)
	return kernel, initrd, err
}

// extended is the initramfs at small with other modules and more programs.
func extended(cache, small string, load []guest.Module, programs map[string][]byte) (initrd string, err error) {
	// What comes later in an initramfs takes the place of what came before.
	body, err := os.ReadFile(small)
	if err != nil {
		return "", err
	}
	out := bytes.NewBuffer(body)
	a := guest.Archive{W: out}
	a.Modules(load)
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		a.Program(name, programs[name])
	}
	if err := a.Close(); err != nil {
		return "", err
	}
	return guest.Keep(filepath.Join(cache, "images"), "initrd-", out.Bytes(), keepImages)
}
