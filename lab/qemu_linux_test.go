package lab

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/lab/topology"
)

// What QEMU complains about is the node's error; nothing of it is left.
func TestQEMUErrors(t *testing.T) {
	needQEMU(t)
	t.Setenv("VMNETD_ACCEL", "tcg")
	dir := t.TempDir()
	kernel := filepath.Join(dir, "kernel")
	image := filepath.Join(dir, "disk.img")
	for _, f := range []string{kernel, image} {
		if err := os.WriteFile(f, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		node topology.Node
		want string
	}{
		{"no such program", topology.Node{QEMU: "qemu-system-none", Disk: image, Overlay: true}, "apt-get install"},
		{"an argument that is none", topology.Node{Disk: image, Overlay: true, Args: []string{"-no-such"}}, "-no-such: invalid option"},
		{"no such kernel", topology.Node{Kernel: filepath.Join(dir, "none")}, "none"},
		{"no such disk", topology.Node{Disk: filepath.Join(dir, "none")}, "no such file"},
		{"no such machine", topology.Node{Disk: image, Overlay: true, Machine: "toaster"}, "machine type"},
		{"more memory than there can be", topology.Node{Disk: image, Overlay: true, Args: []string{"-m", "1x"}}, "-m"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.node.Name = "n"
			b := standalone(t, &c.node)
			m, err := newQEMU(b)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
			defer cancel()
			err = m.start(ctx)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want a line with %q", err, c.want)
			}
			if err := m.stop(ctx); err != nil {
				t.Error(err)
			}
			if p := m.pids(); len(p) > 0 {
				t.Errorf("pids %v", p)
			}
		})
	}
	// Two machines at one disk: the second is told why not. QEMU's own command line and processor tell that it is there:
	// nothing boots.
	node := func(name string) *topology.Node {
		return &topology.Node{Name: name, Disk: image, Memory: 64, Args: []string{"-S"}}
	}
	first, err := newQEMU(standalone(t, node("one")))
	if err != nil {
		t.Fatal(err)
	}
	startAlone(t, first)
	second, err := newQEMU(standalone(t, node("two")))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	if err := second.start(ctx); err == nil || !strings.Contains(err.Error(), "lock") || !strings.Contains(err.Error(), image) {
		t.Errorf("a disk that is another's: %v", err)
	}
	if err := second.stop(ctx); err != nil {
		t.Error(err)
	}
	if _, err := first.exec(ctx, Command{Args: []string{"true"}}); err == nil || !strings.Contains(err.Error(), "agent") {
		t.Errorf("exec without an agent: %v", err)
	}
	if _, err := first.dial(ctx, "tcp", "80"); err == nil || !strings.Contains(err.Error(), "uplink") {
		t.Errorf("dial without a network: %v", err)
	}
	// It does not hear its power button: when patience ends it is killed.
	short, end := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer end()
	if err := first.stop(short); err != nil {
		t.Error(err)
	}
	if p := first.pids(); len(p) > 0 {
		t.Errorf("pids %v", p)
	}
}

// A machine whose guest does not hear its power button closes its disk itself before it is killed.
func TestQEMUClosesDisk(t *testing.T) {
	t.Setenv("VMNETD_ACCEL", "tcg")
	dir := t.TempDir()
	image, program := filepath.Join(dir, "disk.img"), filepath.Join(dir, "qemu-system-x86_64")
	if err := os.WriteFile(image, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	// It speaks as QEMU's monitor does, hears no button, and takes its time to write.
	if err := os.WriteFile(program, []byte(`#!/bin/sh
[ "$1" = --version ] && { echo "QEMU emulator version 8.2.0"; exit; }
for a; do case $a in socket,id=monitor0,fd=*) fd=${a##*=};; esac; done
trap 'sleep 0.3; echo closed >"$0.closed"; exit 0' TERM
echo '{"QMP": {}}' >&$fd
read line <&$fd
echo '{"return": {}}' >&$fd
while :; do sleep 1000 & wait $!; done
`), 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := newQEMU(standalone(t, &topology.Node{Name: "n", Kind: topology.KindQEMU, QEMU: program, Disk: image}))
	if err != nil {
		t.Fatal(err)
	}
	startAlone(t, m)
	over, end := context.WithCancel(t.Context())
	end()
	if err := m.stop(over); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(program + ".closed"); err != nil {
		t.Error("it was killed before it had written")
	}
}

// Places of cards, and what they are told.
func TestQEMUCards(t *testing.T) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	b := standalone(t, &topology.Node{Name: "n", Interfaces: []topology.Interface{{Network: "a", MAC: mac}, {Network: "b", MAC: mac}}},
		topology.Network{Name: "a", MTU: 9000}, topology.Network{Name: "b"})
	v := &virtual{spawned: spawned{b: b}}
	for _, c := range []struct {
		card    int
		version qemuVersion
		want    string
	}{
		{0, qemuVersion{7, 2}, "-netdev stream,id=wire0,addr.type=fd,addr.str=3 -device virtio-net-pci,netdev=wire0,id=card0,mac=52:54:00:00:00:01,romfile=,host_mtu=9000"},
		{1, qemuVersion{6, 2}, "-netdev socket,id=wire1,fd=4 -device virtio-net-pci,netdev=wire1,id=card1,mac=52:54:00:00:00:01,romfile="},
		{0, qemuVersion{10, 0}, "-netdev stream,id=wire0,addr.type=fd,addr.str=3 -device virtio-net-pci,netdev=wire0,id=card0,mac=52:54:00:00:00:01,romfile=,host_mtu=9000"},
	} {
		if got := strings.Join(v.card(c.card, 3+c.card, c.version), " "); got != c.want {
			t.Errorf("card %d of QEMU %v:\ngot  %s\nwant %s", c.card, c.version, got, c.want)
		}
	}
}
