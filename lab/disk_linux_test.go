package lab

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/lab/topology"
)

func TestFormatOf(t *testing.T) {
	for _, c := range []struct{ head, want string }{
		{"", "raw"}, {"\xeb\x63\x90", "raw"}, {"QFI\xfb\x00", "qcow2"}, {"QFI", "raw"}, {"KDMV", "vmdk"}, {"vhdxfile", "vhdx"},
		{strings.Repeat("\x00", 64) + "\x7f\x10\xda\xbe", "vdi"}, {"conectix", "vpc"}, {"QED\x00", "qed"}, {"# Disk DescriptorFile\n", "vmdk"},
	} {
		if got := formatOf([]byte(c.head)); got != c.want {
			t.Errorf("%q: %s, want %s", c.head, got, c.want)
		}
	}
}

func TestOpenDisk(t *testing.T) {
	dir := t.TempDir()
	raw := filepath.Join(dir, "raw.img")
	if err := os.WriteFile(raw, make([]byte, 1000), 0o400); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	d, err := openDisk(ctx, raw, "", true, dir)
	if err != nil || d.format != "qcow2" || !d.unsafe || d.path == raw {
		t.Fatalf("%+v, %v", d, err)
	}
	// An overlay is a base in its turn.
	over := filepath.Join(dir, "again")
	os.Mkdir(over, 0o700)
	if d, err := openDisk(ctx, d.path, "", true, over); err != nil || d.format != "qcow2" {
		t.Errorf("%+v, %v", d, err)
	}
	empty := filepath.Join(dir, "empty")
	os.WriteFile(empty, nil, 0o600)
	vdi := filepath.Join(dir, "vdi")
	os.WriteFile(vdi, []byte(strings.Repeat("\x00", 64)+"\x7f\x10\xda\xbe"), 0o600)
	for _, c := range []struct {
		path, format string
		overlay      bool
		want         string
	}{
		{filepath.Join(dir, "none"), "", true, "no such file"},
		{empty, "", true, "is empty"},
		{raw, "qcow2", true, "no qcow2 image"},
	} {
		if _, err := openDisk(ctx, c.path, c.format, c.overlay, dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if os.Getuid() != 0 { // root may write to what nobody may
		if _, err := openDisk(ctx, raw, "", false, dir); err == nil || !strings.Contains(err.Error(), "overlay: false") {
			t.Errorf("a disk that may not be written to: %v", err)
		}
	}
	// The format of a disk that a guest writes to is not guessed for it: QEMU watches its first sector then.
	if err := os.Chmod(raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err := openDisk(ctx, raw, "", false, dir); err != nil || d.path != raw || d.format != "" || d.unsafe {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if _, err := openDisk(ctx, vdi, "", true, dir); err == nil || !strings.Contains(err.Error(), "qemu-utils") {
			t.Errorf("a format that is qemu-img's: %v", err)
		}
	}
}

// What was written is there when the machine starts again, and is not laid over what it was not written over.
func TestOverlayLasts(t *testing.T) {
	dir := t.TempDir()
	keep := filepath.Join(dir, "k, 1 [x]")
	if err := os.Mkdir(keep, 0o700); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(dir, "base.img")
	if err := os.WriteFile(base, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func() string {
		t.Helper()
		d, err := openDisk(t.Context(), base, "", true, keep)
		if err != nil {
			t.Fatal(err)
		}
		return d.path
	}
	first := open()
	if f, err := os.OpenFile(first, os.O_APPEND|os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	} else if _, err := f.WriteString("written"); err != nil {
		t.Fatal(err)
	} else {
		f.Close()
	}
	if again := open(); again != first {
		t.Errorf("%s, then %s", first, again)
	}
	if b, err := os.ReadFile(first); err != nil || !bytes.HasSuffix(b, []byte("written")) {
		t.Errorf("what was written is gone: %v", err)
	}
	if err := os.Chtimes(base, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	second := open()
	if second == first {
		t.Error("the disk has changed, its overlay has not")
	}
	all, err := os.ReadDir(keep)
	if err != nil || len(all) != 1 {
		t.Errorf("%v, %v: want one overlay", all, err)
	}
}

// What a guest writes goes to the overlay: the small guest with a disk beside it reads from the base and writes, and the
// base is as it was.
func TestDiskOverlay(t *testing.T) {
	needQEMU(t)
	base := filepath.Join(t.TempDir(), "base, with a comma.img")
	body := bytes.Repeat([]byte("base "), 40000) // 200,000 bytes: no whole number of sectors
	if err := os.WriteFile(base, body, 0o400); err != nil {
		t.Fatal(err)
	}
	b := standalone(t, &topology.Node{Name: "disky", Kind: topology.KindQEMU})
	d, err := openDisk(t.Context(), base, "", true, b.keep)
	if err != nil {
		t.Fatal(err)
	}
	b.node.Args = append(d.arguments()[:2], "-device", "nvme,serial=d,drive=disk0") // whose driver is in the kernel itself
	m, err := newQEMU(b)
	if err != nil {
		t.Fatal(err)
	}
	startAlone(t, m)
	awaitAgent(t, m)
	var out, complaint bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	code, err := m.exec(ctx, Command{Args: []string{"sh", "-ec", `
cat /sys/class/block/nvme0n1/size
dd if=/dev/nvme0n1 bs=5 count=1 2>/dev/null
echo changed | dd of=/dev/nvme0n1 bs=1 seek=100000 conv=notrunc 2>/dev/null
sync; echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/nvme0n1 bs=1 skip=100000 count=7 2>/dev/null`}, Stdout: &out, Stderr: &complaint})
	if err != nil || code != 0 || out.String() != "391\nbase changed" {
		t.Errorf("status %d, %v: %q, %q", code, err, &out, &complaint)
	}
	if now, err := os.ReadFile(base); err != nil || !bytes.Equal(now, body) {
		t.Errorf("the base has changed: %v", err)
	}
	// A kernel that crashes ends its machine, and that is no good end. The agent's answer does not come.
	m.exec(ctx, Command{Args: []string{"sh", "-c", "echo c >/proc/sysrq-trigger"}})
	select {
	case <-m.ended():
	case <-ctx.Done():
		t.Fatal("it crashed and goes on")
	}
	if code, err := m.status(); code == 0 || err == nil || !strings.Contains(err.Error(), "crashed") {
		t.Errorf("it crashed: status %d, %v", code, err)
	}
}
