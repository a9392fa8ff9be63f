package vm

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vmnetd/vmnetd/lab/guest"
)

//go:embed init.sh
var initScript []byte

//go:embed udhcpc.sh
var udhcpcScript []byte

// guestModules are the drivers of the devices that Start gives a guest, and those that a test may
// load by itself.
var guestModules = []string{"virtio_pci", "virtio_net", "virtio_console"}

// keepImages is how many images stay in the cache: each is some 10 MiB, and a new one comes with
// each change of the guest's program.
const keepImages = 4

// Image returns a kernel and an initramfs for QEMU's -kernel and -initrd: Debian's cloud kernel
// and busybox-static, unpacked and never installed, and the program of e2e/guestbin. Both are kept
// in the cache folder ($VMNETD_CACHE), by their content. It needs Debian's apt and dpkg and the go
// tool, and the mirror only where the packages are not in the cache yet. logf hears of what may
// take longer than a second; nil for nobody.
func Image(ctx context.Context, logf func(format string, args ...any)) (kernel, initrd string, err error) {
	if logf == nil {
		logf = func(string, ...any) {}
	}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return "", "", fmt.Errorf("test guests are made on linux/amd64 only, this is %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	cache, err := guest.Cache()
	if err != nil {
		return "", "", err
	}
	// One process makes it once.
	made.Lock()
	defer made.Unlock()
	if made.kernel != "" {
		return made.kernel, made.initrd, nil
	}
	// Test packages run side by side: one of them fetches, the others find it done.
	unlock, err := guest.Lock(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return "", "", err
	}
	defer unlock()

	deb, err := guest.Unpacked(ctx, cache, "linux-image-*-cloud-amd64_*", guest.Newest("linux-image-cloud-amd64"), logf)
	if err != nil {
		return "", "", fmt.Errorf("kernel: %w", err)
	}
	box, err := guest.Unpacked(ctx, cache, "busybox-static_*", guest.Named("busybox-static"), logf)
	if err != nil {
		return "", "", fmt.Errorf("busybox: %w", err)
	}
	if kernel, err = guest.OneOf(deb, "boot/vmlinuz-*"); err != nil {
		return "", "", err
	}
	modules, err := guest.OneOf(deb, "lib/modules/*", "usr/lib/modules/*")
	if err != nil {
		return "", "", err
	}
	busybox, err := guest.OneOf(box, "bin/busybox", "usr/bin/busybox")
	if err != nil {
		return "", "", err
	}
	logf("making the guest's image")
	program, err := buildGuest(ctx, cache)
	if err != nil {
		return "", "", err
	}
	body, err := initramfs(busybox, modules, program)
	if err != nil {
		return "", "", err
	}
	if initrd, err = guest.Keep(filepath.Join(cache, "images"), "initrd-", body, keepImages); err != nil {
		return "", "", err
	}
	made.kernel, made.initrd = kernel, initrd
	return kernel, initrd, nil
}

var made struct {
	sync.Mutex
	kernel, initrd string
}

// initramfs is not compressed: QEMU puts it into memory in no time, while an emulated processor
// takes a tenth of the boot to unpack it.
func initramfs(busybox, modules string, program []byte) ([]byte, error) {
	tree, err := guest.OpenModules(modules, []string{busybox, "xzcat"})
	if err != nil {
		return nil, err
	}
	load, err := tree.Resolve(guestModules...)
	if err != nil {
		return nil, err
	}
	shell, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	a := guest.Archive{W: &out}
	for _, d := range []string{"bin", "sbin", "dev", "etc", "lib", "lib/modules", "proc", "run", "sys", "tmp"} {
		a.Dir(d)
	}
	a.Char("dev/console", 5, 1)
	a.Program("init", initScript)
	a.Program("bin/busybox", shell)
	a.Program("bin/guest", program)
	a.Program("etc/udhcpc", udhcpcScript)
	a.Link("etc/resolv.conf", "/run/resolv.conf")
	a.File("etc/passwd", []byte("root::0:0:root:/:/bin/sh\n"))
	a.File("etc/group", []byte("root:x:0:\n"))
	a.Modules(load)
	if err := a.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// buildGuest builds the guest's program, with the go tool's own cache behind it.
func buildGuest(ctx context.Context, cache string) ([]byte, error) {
	tmp, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "guest")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, "github.com/vmnetd/vmnetd/e2e/guestbin")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	if said, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the guest's program: %w: %s", err, bytes.TrimSpace(said))
	}
	return os.ReadFile(out)
}
