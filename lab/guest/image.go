package guest

import (
	"bytes"
	"context"
	"debug/elf"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
)

//go:embed init.sh
var initScript []byte

//go:embed udhcpc.sh
var udhcpcScript []byte

// needed are the drivers of what the small Linux runs on; wanted those that it is better with, where they are.
var (
	needed = []string{"virtio_pci", "virtio_net", "virtio_console"}
	wanted = []string{"af_packet", "ipv6"}
)

// keepImages is how many images stay in the cache: each is as large as the agent's program, and a new one comes with each
// change of that.
const keepImages = 4

// Image is the small Linux.
type Image struct {
	Kernel string
	Append string // for the kernel's command line
	initrd string
	From   string // where it is from, for people
}

// appended is for the kernel: a crash ends the machine, and its ciphers' self-tests would take a fifth of an emulated boot.
const appended = "console=ttyS0 quiet panic=-1 cryptomgr.notests"

var made struct {
	sync.Mutex
	image, uml *Image
	program    []byte
}

// Make returns the image for this machine's processor, made anew where the cache has it not. logf hears of what may take
// longer than a second; nil for nobody.
func Make(ctx context.Context, logf func(format string, args ...any)) (*Image, error) {
	return make1(ctx, logf, &made.image, func(cache string) (*Image, *parts, error) {
		kernel, p, err := source(ctx, cache, logf)
		if err != nil {
			return nil, nil, err
		}
		return &Image{Kernel: kernel, Append: appended, From: kernel}, p, nil
	})
}

// umlModules is where Debian's package user-mode-linux has them, by release.
const umlModules = "/usr/lib/uml/modules"

// MakeUML returns the image for User Mode Linux, whose kernel is its program.
func MakeUML(ctx context.Context, logf func(format string, args ...any)) (*Image, error) {
	return make1(ctx, logf, &made.uml, func(cache string) (*Image, *parts, error) {
		busybox, err := anyBusybox(ctx, cache, logf)
		if err != nil {
			return nil, nil, err
		}
		p := &parts{busybox: busybox}
		// A kernel with everything built in has no folder.
		if dir, err := OneOf(umlModules, "*"); err == nil {
			tree, err := OpenModules(dir, []string{busybox, "xzcat"})
			if err != nil {
				return nil, nil, err
			}
			if p.load, err = tree.Resolve(tree.Known(wanted...)...); err != nil {
				return nil, nil, err
			}
		}
		return &Image{From: umlModules}, p, nil
	})
}

func make1(ctx context.Context, logf func(string, ...any), known **Image, make func(cache string) (*Image, *parts, error)) (*Image, error) {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("the small guest is made on linux/amd64 only, this is %s/%s: give the node a kernel or a disk", runtime.GOOS, runtime.GOARCH)
	}
	cache, err := Cache()
	if err != nil {
		return nil, err
	}
	made.Lock()
	defer made.Unlock()
	// Another process, of another version, may have had it removed.
	if im := *known; im != nil && there(im.initrd) && (im.Kernel == "" || there(im.Kernel)) {
		return im, nil
	}
	// Labs come up side by side: one of them fetches, the others find it done.
	unlock, err := Lock(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	im, p, err := make(cache)
	if err != nil {
		return nil, fmt.Errorf("small guest: %w", err)
	}
	if made.program == nil {
		if made.program, err = agentProgram(ctx, cache, logf); err != nil {
			return nil, fmt.Errorf("small guest: %w", err)
		}
	}
	p.agent = made.program
	body, err := p.initramfs()
	if err != nil {
		return nil, fmt.Errorf("small guest: %w", err)
	}
	if im.initrd, err = Keep(filepath.Join(cache, "images"), "guest-", body, keepImages); err != nil {
		return nil, err
	}
	*known = im
	return im, nil
}

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// For writes the initramfs of one machine into dir, and returns its path. The kernel unpacks archives that follow one
// another; it copies no more than that, so that the image in the cache may go meanwhile.
func (im *Image) For(dir string, n *Node) (string, error) {
	base, err := os.Open(im.initrd)
	if err != nil {
		return "", err
	}
	defer base.Close()
	path := filepath.Join(dir, "initrd")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, base)
	if err == nil {
		a := Archive{W: f}
		n.write(&a)
		err = a.Close()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		os.Remove(path)
		return "", err
	}
	return path, nil
}

// parts are what an initramfs is made of.
type parts struct {
	busybox string
	load    []Module
	agent   []byte
}

// initramfs is not compressed: QEMU puts it into memory in no time, while an emulated processor takes a tenth of the boot
// to unpack it.
func (p *parts) initramfs() ([]byte, error) {
	shell, err := os.ReadFile(p.busybox)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	a := Archive{W: &out}
	for _, d := range []string{"bin", "sbin", "usr", "dev", "etc", "lib", "lib/modules", "proc", "root", "run", "sys", "tmp", "var"} {
		a.Dir(d)
	}
	a.Char("dev/console", 5, 1)
	a.Link("usr/bin", "/bin")
	a.Link("usr/sbin", "/sbin")
	a.Link("var/run", "/run")
	a.Link("var/log", "/run")
	a.Program("init", initScript)
	a.Program("bin/busybox", shell)
	a.Program("bin/"+AgentName, p.agent)
	a.Program("etc/udhcpc", udhcpcScript)
	a.File("etc/passwd", []byte("root::0:0:root:/root:/bin/sh\n"))
	a.File("etc/group", []byte("root:x:0:\n"))
	a.Modules(p.load)
	if err := a.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// source finds a kernel, its modules and busybox: this machine's, or Debian's.
func source(ctx context.Context, cache string, logf func(string, ...any)) (kernel string, p *parts, err error) {
	kernel, p, own := thisMachines()
	if own == nil {
		return kernel, p, nil
	}
	kernel, p, err = debians(ctx, cache, logf)
	if err != nil {
		return "", nil, fmt.Errorf("no kernel and busybox: this machine's: %w; Debian's: %w", own, err)
	}
	return kernel, p, nil
}

// thisMachines is the newest kernel in /boot that we may read, with /lib/modules, and a busybox that needs no libraries.
func thisMachines() (kernel string, p *parts, err error) {
	busybox, err := ownBusybox()
	if err != nil {
		return "", nil, err
	}
	all, err := filepath.Glob("/boot/vmlinuz-*")
	if err != nil || len(all) == 0 {
		return "", nil, errors.New("no /boot/vmlinuz-*")
	}
	slices.SortFunc(all, func(a, b string) int { return modified(b).Compare(modified(a)) })
	for _, k := range all {
		p = &parts{busybox: busybox}
		if p.load, err = loads(k, filepath.Join("/lib/modules", strings.TrimPrefix(filepath.Base(k), "vmlinuz-")), busybox); err == nil {
			return k, p, nil
		}
	}
	return "", nil, err
}

// loads are the modules that a kernel needs, if it can be read and has them.
func loads(kernel, modules, busybox string) ([]Module, error) {
	f, err := os.Open(kernel) // some distributions let only root read it
	if err != nil {
		return nil, err
	}
	f.Close()
	tree, err := OpenModules(modules, []string{busybox, "xzcat"})
	if err != nil {
		return nil, err
	}
	return tree.Resolve(slices.Concat(needed, tree.Known(wanted...))...)
}

// debians are Debian's packages, unpacked and not installed.
func debians(ctx context.Context, cache string, logf func(string, ...any)) (kernel string, p *parts, err error) {
	if logf == nil {
		logf = func(string, ...any) {}
	}
	deb, err := Unpacked(ctx, cache, "linux-image-*-cloud-amd64_*", Newest("linux-image-cloud-amd64"), logf)
	if err != nil {
		return "", nil, err
	}
	busybox, err := anyBusybox(ctx, cache, logf)
	if err != nil {
		return "", nil, err
	}
	if kernel, err = OneOf(deb, "boot/vmlinuz-*"); err != nil {
		return "", nil, err
	}
	modules, err := OneOf(deb, "lib/modules/*", "usr/lib/modules/*")
	if err != nil {
		return "", nil, err
	}
	p = &parts{busybox: busybox}
	p.load, err = loads(kernel, modules, busybox)
	return kernel, p, err
}

// anyBusybox is this machine's, or Debian's.
func anyBusybox(ctx context.Context, cache string, logf func(string, ...any)) (string, error) {
	if own, err := ownBusybox(); err == nil {
		return own, nil
	}
	if logf == nil {
		logf = func(string, ...any) {}
	}
	box, err := Unpacked(ctx, cache, "busybox-static_*", Named("busybox-static"), logf)
	if err != nil {
		return "", err
	}
	return OneOf(box, "bin/busybox", "usr/bin/busybox")
}

// applets are what init and its scripts cannot do without. Some distributions' busybox has but a few.
var applets = []string{"sh", "mount", "insmod", "ip", "udhcpc", "setsid", "cttyhack", "hostname", "xzcat", "ping"}

func ownBusybox() (string, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return "", errors.New("no busybox in PATH")
	}
	if err := static(path); err != nil {
		return "", err
	}
	out, err := exec.Command(path, "--list").Output()
	if err != nil {
		return "", fmt.Errorf("%s --list: %w", path, err)
	}
	has := strings.Fields(string(out))
	for _, a := range applets {
		if !slices.Contains(has, a) {
			return "", fmt.Errorf("%s has no %s", path, a)
		}
	}
	return path, nil
}

// static says that a program needs nobody to load it, and that this machine's processor runs it.
func static(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("%s is for %s", path, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is linked dynamically", path)
		}
	}
	return nil
}

// agentProgram is a static program that is an agent by the name of AgentName: this one, vmnetd, or one that is built now.
func agentProgram(ctx context.Context, cache string, logf func(string, ...any)) ([]byte, error) {
	var reasons []error
	self, err := os.Executable()
	if err == nil {
		if err = static(self); err == nil {
			// It may have been replaced on the disk, not where it runs from.
			return os.ReadFile("/proc/self/exe")
		}
	}
	reasons = append(reasons, err)
	name := os.Getenv("VMNETD")
	if name == "" {
		name = "vmnetd"
	}
	path, err := exec.LookPath(name)
	if err == nil {
		if err = static(path); err == nil {
			if err = isAgent(ctx, path); err == nil {
				return os.ReadFile(path)
			}
		}
	}
	reasons = append(reasons, err)
	if logf != nil {
		logf("building the guest's agent")
	}
	b, err := buildAgent(ctx, cache)
	if err == nil {
		return b, nil
	}
	reasons = append(reasons, err)
	return nil, fmt.Errorf("no program to be the agent in it (set $VMNETD to a static vmnetd): %w", errors.Join(reasons...))
}

// isAgent asks a program: an older vmnetd is none.
func isAgent(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, path)
	cmd.Args = []string{AgentName, "-version"}
	out, err := cmd.Output()
	if err != nil || strings.TrimSpace(string(out)) != agentVersion {
		return fmt.Errorf("%s is no agent of this version", path)
	}
	return nil
}

// buildAgent needs the go tool, and to be called in a module that has this one: a test's.
func buildAgent(ctx context.Context, cache string) ([]byte, error) {
	tmp, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "agent")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, "github.com/vmnetd/vmnetd/lab/guest/agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH, "GOFLAGS=")
	if said, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the guest's agent: %w: %s", err, bytes.TrimSpace(said))
	}
	return os.ReadFile(out)
}
