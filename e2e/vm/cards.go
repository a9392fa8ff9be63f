package vm

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/vmnetd/vmnetd/lab/guest"
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
	deb, err := guest.Unpacked(ctx, cache, "linux-image-*[0-9]-amd64_*", guest.Newest("linux-image-amd64"), logf)
	if err != nil {
		return "", "", fmt.Errorf("kernel: %w", err)
	}
	if kernel, err = guest.OneOf(deb, "boot/vmlinuz-*"); err != nil {
		return "", "", err
	}
	modules, err := guest.OneOf(deb, "lib/modules/*", "usr/lib/modules/*")
	if err != nil {
		return "", "", err
	}
	busybox, err := guest.Unpacked(ctx, cache, "busybox-static_*", guest.Named("busybox-static"), logf)
	if err != nil {
		return "", "", fmt.Errorf("busybox: %w", err)
	}
	if busybox, err = guest.OneOf(busybox, "bin/busybox", "usr/bin/busybox"); err != nil {
		return "", "", err
	}
	tree, err := guest.OpenModules(modules, []string{busybox, "xzcat"})
	if err != nil {
		return "", "", err
	}
	load, err := tree.Resolve(append(cards, guestModules...)...)
	if err != nil {
		return "", "", err
	}
	initrd, err = extended(cache, small, load, nil)
	return kernel, initrd, err
}
