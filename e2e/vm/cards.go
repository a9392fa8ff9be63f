package vm

import (
	"context"
	"fmt"
	"path/filepath"
)

// CardsImage is Image with Debian's general kernel, which has drivers of network cards that the cloud kernel has not:
// cards names those to be loaded, as "e1000". The kernel's package is 70 MB, once.
func CardsImage(ctx context.Context, logf func(format string, args ...any), cards ...string) (kernel, initrd string, err error) {
	if logf == nil {
		logf = func(string, ...any) {}
	}
	_, small, err := Image(ctx, logf)
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
	deb, err := unpacked(ctx, cache, "linux-image-*[0-9]-amd64_*", generalKernel, logf)
	if err != nil {
		return "", "", fmt.Errorf("kernel: %w", err)
	}
	if kernel, err = oneOf(deb, "boot/vmlinuz-*"); err != nil {
		return "", "", err
	}
	modules, err := oneOf(deb, "lib/modules/*", "usr/lib/modules/*")
	if err != nil {
		return "", "", err
	}
	busybox, err := unpacked(ctx, cache, "busybox-static_*", func(apt) (string, error) { return "busybox-static", nil }, logf)
	if err != nil {
		return "", "", fmt.Errorf("busybox: %w", err)
	}
	if busybox, err = oneOf(busybox, "bin/busybox", "usr/bin/busybox"); err != nil {
		return "", "", err
	}
	tree, err := openModules(modules, []string{busybox, "xzcat"})
	if err != nil {
		return "", "", err
	}
	load, err := tree.resolve(append(cards, guestModules...)...)
	if err != nil {
		return "", "", err
	}
	initrd, err = extended(cache, small, load, nil)
	return kernel, initrd, err
}

// generalKernel follows the package that always names the newest kernel to the one that holds it.
func generalKernel(a apt) (string, error) {
	out, err := run(a.ctx, a.dir, "apt-cache", append(a.options(), "depends", "linux-image-amd64")...)
	if err != nil {
		return "", err
	}
	m := dependsOnImage.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("apt knows no package linux-image-amd64")
	}
	return string(m[1]), nil
}
