package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
)

func TestAddNetwork(t *testing.T) {
	w := wire{fd: 3, mac: "52:54:00:01:02:03"}
	const dev, card = "-netdev|stream,id=vmnetd,addr.type=fd,addr.str=3", "|-device|virtio-net-pci,netdev=vmnetd,mac=52:54:00:01:02:03"
	for _, c := range []struct{ program, args, want string }{
		{"qemu-system-x86_64", "", dev + card},
		{"qemu-system-x86_64", "-m|1G|disk.img", "-m|1G|disk.img|" + dev + card},
		// The user's own networks stay beside ours.
		{"qemu-system-x86_64", "-netdev|user,id=n0|-device|e1000,netdev=n0", "-netdev|user,id=n0|-device|e1000,netdev=n0|" + dev + card},
		{"qemu-system-x86_64", "-nic|user", "-nic|user|" + dev + card},
		// Our word is replaced where it stands.
		{"qemu-system-x86_64", "-netdev|vmnetd|-m|1G", dev + "|-m|1G" + card},
		{"qemu-system-x86_64", "--netdev|vmnetd,id=a,,b", "--netdev|stream,id=a,,b,addr.type=fd,addr.str=3|-device|virtio-net-pci,netdev=a,,b,mac=52:54:00:01:02:03"},
		{"qemu-system-x86_64", "-netdev|type=vmnetd,id=n", "-netdev|stream,id=n,addr.type=fd,addr.str=3|-device|virtio-net-pci,netdev=n,mac=52:54:00:01:02:03"},
		{"qemu-system-x86_64", `-netdev|{"type":"vmnetd","id":"n"}|-device|{"driver":"e1000","netdev":"n"}`, `-netdev|stream,id=n,addr.type=fd,addr.str=3|-device|{"driver":"e1000","netdev":"n"}`},
		{"qemu-system-x86_64", "-nic|vmnetd", dev + card},
		{"qemu-system-x86_64", "-nic|vmnetd,model=virtio,id=x,mac=52:54:00:0a:0b:0c", "-netdev|stream,id=x,addr.type=fd,addr.str=3|-device|virtio-net-pci,netdev=x,mac=52:54:00:0a:0b:0c"},
		// Halves of it that are there are not added.
		{"qemu-system-x86_64", "-device|e1000,netdev=vmnetd,mac=52:54:00:0a:0b:0c", "-device|e1000,netdev=vmnetd,mac=52:54:00:0a:0b:0c|" + dev},
		{"qemu-system-x86_64", "-netdev|socket,id=vmnetd,fd=3", "-netdev|socket,id=vmnetd,fd=3" + card},
		{"qemu-system-x86_64", "-netdev|socket,id=vmnetd,fd=3|-device|e1000,netdev=vmnetd", "-netdev|socket,id=vmnetd,fd=3|-device|e1000,netdev=vmnetd"},
		// What is another option's value is not an option.
		{"qemu-system-x86_64", "-append|-netdev|-m|1G", "-append|-netdev|-m|1G|" + dev + card},
		{"qemu-system-x86_64", "-netdev", "-netdev|" + dev + card},
		// The card is the machine's.
		{"qemu-system-x86_64", "-M|microvm,x-option-roms=off", "-M|microvm,x-option-roms=off|" + dev + "|-device|virtio-net-device,netdev=vmnetd,mac=52:54:00:01:02:03"},
		{"qemu-system-x86_64", "-machine|type=microvm", "-machine|type=microvm|" + dev + "|-device|virtio-net-device,netdev=vmnetd,mac=52:54:00:01:02:03"},
		{"/opt/qemu-system-s390x", "", dev + "|-device|virtio-net,netdev=vmnetd,mac=52:54:00:01:02:03"},
		{"qemu-system-aarch64", "-M|virt", "-M|virt|" + dev + card},
	} {
		got, _, err := addNetwork(c.program, split(c.args), w)
		if err != nil || strings.Join(got, "|") != c.want {
			t.Errorf("%s %s\n got %s (%v)\nwant %s", c.program, c.args, strings.Join(got, "|"), err, c.want)
		}
	}
	for _, bad := range []string{
		"-netdev|vmnetd|-netdev|vmnetd,id=b", "-netdev|vmnetd,reconnect=1", "-nic|vmnetd,addr=3", "-daemonize", "-m|1G|--daemonize",
		"-netdev|vmnetd,id=n0|-netdev|socket,id=vmnetd,fd=3",
	} {
		var usage usageError
		if got, _, err := addNetwork("qemu-system-x86_64", split(bad), w); !errors.As(err, &usage) {
			t.Errorf("%s: %v, %v", bad, got, err)
		}
	}
	given := []string{"-netdev", "vmnetd", "x"}
	if _, _, err := addNetwork("qemu", given, w); err != nil || !slices.Equal(given, []string{"-netdev", "vmnetd", "x"}) {
		t.Errorf("the caller's arguments became %q (%v)", given, err)
	}
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "|")
}

func TestWantsNetwork(t *testing.T) {
	for _, c := range []struct {
		program, args string
		want          bool
	}{
		{"/usr/bin/qemu-system-aarch64", "", true}, {"qemu-kvm", "", true}, {"kvm", "", true}, {"qemu-system-x86_64.exe", "", true},
		{"sh", "", false}, {"sh", "-netdev|user,id=n", false}, {"./start", "-netdev|vmnetd", true}, {"./start", "-nic|vmnetd,model=e1000", true},
	} {
		if got := wantsNetwork(c.program, split(c.args)); got != c.want {
			t.Errorf("%s %s: %v", c.program, c.args, got)
		}
	}
}

func TestVMMAC(t *testing.T) {
	seen := map[string]string{}
	for _, c := range []struct{ args, dir string }{
		{"", "/a"}, {"", "/b"}, {"-name|web", "/a"}, {"-name|db", "/a"}, {"-name|web|-uuid|1", "/a"},
	} {
		mac := vmMAC(split(c.args), c.dir)
		if !strings.HasPrefix(mac, "52:54:00:") || seen[mac] != "" {
			t.Errorf("%v: %s, as for %s", c, mac, seen[mac])
		}
		seen[mac] = c.args + c.dir
	}
	if vmMAC(split("-m|1G|-name|web"), "/a") != vmMAC(split("-name|web|-m|2G"), "/b") {
		t.Error("a VM with a name changes its MAC with its memory or its folder")
	}
}

func TestConversations(t *testing.T) {
	for descriptors, want := range map[uint64]int{
		0: 1, 100: 50, 256: 128, 1024: 768, 20000: 17500, 1048576: 917504, 1<<63 - 1: 1<<30 - 1<<27,
	} {
		if got := conversations(descriptors); got != want {
			t.Errorf("%d descriptors: %d conversations, want %d", descriptors, got, want)
		}
	}
}

func TestQuoting(t *testing.T) {
	for in, want := range map[string]string{"stream,id=n": "stream,id=n", "/a b": "'/a b'", "/it's": `'/it'\''s'`, "/$x": "'/$x'"} {
		if got := shellQuote(in); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
	d := &door{addr: "unix:/run/a,b c.sock"}
	if got := qemuLines(d); !strings.Contains(got, "'stream,id=net0,server=off,addr.type=unix,addr.path=/run/a,,b c.sock'") {
		t.Error(got)
	}
	for _, addr := range []string{"tcp:0.0.0.0:7000", "tcp:[::]:7000"} {
		if got := qemuLines(&door{addr: addr}); strings.Contains(got, "addr.host=0.0.0.0") || strings.Contains(got, "addr.host=::,") {
			t.Error(got)
		}
	}
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1.0k", 1500000: "1.5M", 1 << 63: "9.2E"} {
		if got := size(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
	var b strings.Builder
	row(&b, "a\x1b[31mb\tc\n", "")
	if b.String() != "a?[31mb?c?\t-\n" {
		t.Errorf("%q reaches the terminal", b.String())
	}
}

func TestCard(t *testing.T) {
	auto := backend.Config{LargeMTU: 65520}
	all := backend.Config{LargeMTU: 65520, LargeNICs: true}
	small := backend.Config{}
	for _, c := range []struct {
		args, device string // that is added
		want         backend.Config
	}{
		{"", "virtio-net-pci,netdev=vmnetd,mac=52:54:00:01:02:03,host_mtu=65520", all},
		{"-nic|vmnetd,model=virtio-net-pci", "virtio-net-pci,netdev=vmnetd,mac=52:54:00:01:02:03,host_mtu=65520", all},
		{"-nic|vmnetd,model=e1000", "e1000,netdev=vmnetd,mac=52:54:00:01:02:03", small},
		{"-nic|vmnetd,model=rtl8139", "rtl8139,netdev=vmnetd,mac=52:54:00:01:02:03", small},
		{"-device|virtio-net-pci,netdev=vmnetd", "", all},
		{"-device|virtio-net-pci-non-transitional,netdev=vmnetd,mrg_rxbuf=on", "", all},
		{"-netdev|vmnetd,id=n|-device|{\"driver\":\"virtio-net-ccw\",\"netdev\":\"n\"}", "", all},
		{"-device|usb-net,netdev=vmnetd", "", small},
		{"-device|vmxnet3,netdev=vmnetd|-device|virtio-net-pci,netdev=other", "", small},
		// A card that has been told something.
		{"-device|virtio-net-pci,netdev=vmnetd,host_mtu=9000", "", backend.Config{LargeMTU: 9000, LargeNICs: true}},
		{"-device|virtio-net-pci,netdev=vmnetd,host_mtu=9000,mrg_rxbuf=off", "", backend.Config{LargeMTU: 9000, LargeNICs: true}},
		{"-device|virtio-net-pci,netdev=vmnetd,host_mtu=65535", "", all},
		{"-device|virtio-net-pci,netdev=vmnetd,host_mtu=1400", "", backend.Config{MTU: 1400}},
		{"-device|virtio-net-pci,netdev=vmnetd,host_mtu=576", "", backend.Config{MTU: 1280}},
		// One whose buffers may be small shows what they are.
		{"-device|virtio-net-pci,netdev=vmnetd,mrg_rxbuf=off", "", auto},
		{"-device|{\"driver\":\"virtio-net-pci\",\"netdev\":\"vmnetd\",\"mrg_rxbuf\":false}", "", auto},
		{"-global|virtio-net-pci.mrg_rxbuf=off|-device|virtio-net-pci,netdev=vmnetd", "", auto},
	} {
		w := wire{fd: 3, mac: "52:54:00:01:02:03", mtu: mtuValue(0).card()}
		args, at, err := addNetwork("qemu-system-x86_64", split(c.args), w)
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		added := ""
		if len(args) > len(split(c.args)) && args[len(args)-2] == "-device" {
			added = args[len(args)-1]
		}
		got := backend.Config{}
		mtuValue(0).set(&got)
		at.set(&got)
		if added != c.device || got.MTU != c.want.MTU || got.LargeMTU != c.want.LargeMTU || got.LargeNICs != c.want.LargeNICs {
			t.Errorf("%s: added %q, MTU %d, large %d, all %v", c.args, added, got.MTU, got.LargeMTU, got.LargeNICs)
		}
	}
}

func TestMTUValue(t *testing.T) {
	for _, c := range []struct {
		s    string
		want backend.Config
		card int
	}{
		{"auto", backend.Config{LargeMTU: 65520}, 65520}, {"1280", backend.Config{MTU: 1280}, 1280}, {"1500", backend.Config{MTU: 1500}, 0},
		{"9000", backend.Config{LargeMTU: 9000, LargeNICs: true}, 9000}, {"65520", backend.Config{LargeMTU: 65520, LargeNICs: true}, 65520},
	} {
		v := mtuValue(7)
		var got backend.Config
		if err := v.Set(c.s); err != nil || v.String() != c.s {
			t.Errorf("%s: %v, %s", c.s, err, &v)
		}
		if v.set(&got); got.MTU != c.want.MTU || got.LargeMTU != c.want.LargeMTU || got.LargeNICs != c.want.LargeNICs || v.card() != c.card {
			t.Errorf("%s: MTU %d, large %d, all %v, card %d", c.s, got.MTU, got.LargeMTU, got.LargeNICs, v.card())
		}
	}
	for _, s := range []string{"", "0", "1279", "65521", "-1", "1500.0", "Auto", "9k", "99999999999999999999"} {
		if err := new(mtuValue).Set(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}
