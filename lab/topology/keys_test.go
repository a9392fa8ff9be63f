package topology

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDiffEachKey: a file with every key is nothing new to itself, and each key's other value is one change, as promised in
// place or not.
func TestDiffEachKey(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"one": "1\n2\n", "two": "1\n3\n", "rules": "allow any example.com\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"d1", "d2"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	const base = `
name: d
networks:
  lan: {net: 10.1.0.0/24, net6: "fd01::/64", mtu: 1400, isolate: false, gateway: 10.1.0.9, gateway6: "fd01::9", domain: a.internal, resolver: 192.0.2.7, policy: {preset: sandbox, file: rules}, forward: "8080:w:80", dns-record: "x A 192.0.2.1", limits: {flows: 100}, no-host-loopback: false, strict-leases: false, impair: {down: "trace=one", up: "loss=1%", seed: 3}}
  sw: {net: 10.2.0.0/24, uplink: false}
links:
  l: {impair: "loss=1%"}
nodes:
  w: {kind: netns, interfaces: [{net: lan, name: e0, mac: "52:54:00:00:00:01", address: 10.1.0.50, impair: "loss=3%", promiscuous: false}, {net: sw, mirror: false}, {link: l}], routes: [10.9.0.0/16 via 10.1.0.2], forwarding: false, command: [a], dir: d1, env: {K: one}, restart: false, setup: [s1], after: [q], wait: ["tcp:80"], timeout: 30s}
  q: {kind: qemu, kernel: one, initrd: one, append: a1, disk: one, disk-format: raw, overlay: true, memory: 256M, cpus: 1, machine: pc, accel: tcg, cpu: max, qemu: one, args: [x1], agent: true, user: u1, interfaces: [lan, {link: l}], cloud-init: {user-data: ud1, network-config: nc1, vendor-data: vd1, meta-data: {k: m1}}}
  u: {kind: uml, uml: one, disk: one}
  x: {kind: external, interfaces: [{net: sw, door: "unix:door1"}]}
`
	file := filepath.Join(dir, "lab.yaml")
	read := func(text string) *Lab {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Read(file, nil)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if got := changesText(Diff(read(base), read(base))); got != "" {
		t.Errorf("the same file: %s", got)
	}
	for _, c := range []struct{ from, to, want string }{
		{"isolate: false", "isolate: true", "restart network lan"},
		{"mtu: 1400", "mtu: 1300", "restart network lan"},
		{"gateway: 10.1.0.9", "gateway: 10.1.0.8", "restart network lan"},
		{`gateway6: "fd01::9"`, `gateway6: "fd01::8"`, "restart network lan"},
		{"fd01::/64", "fd01:0:0:0::/64", ""},
		{"domain: a.internal", "domain: b.internal", "restart network lan"},
		{"resolver: 192.0.2.7", "resolver: 192.0.2.2", "restart network lan"},
		{"preset: sandbox", "preset: offline", "change network lan"},
		{"file: rules", "allow: [y.example]", "change network lan"},
		{"8080:w:80", "8081:w:80", "change network lan"},
		{"x A 192.0.2.1", "x A 192.0.2.2", "change network lan"},
		{"flows: 100", "flows: 200", "change network lan"},
		{"no-host-loopback: false", "no-host-loopback: true", "restart network lan"},
		{"strict-leases: false", "strict-leases: true", "restart network lan"},
		{"trace=one", "trace=two", "change network lan"},
		{"seed: 3", "seed: 4", "change network lan"},
		{"10.2.0.0/24", "10.3.0.0/24", "restart network sw"},
		{"uplink: false}", "uplink: true}", "restart network sw"},
		{`l: {impair: "loss=1%"}`, `l: {impair: "loss=2%"}`, "change network l"},
		{"name: e0", "name: e1", "restart node w"},
		{"52:54:00:00:00:01", "52:54:00:00:00:02", "restart node w"},
		{"address: 10.1.0.50", "address: 10.1.0.51", "restart node w"},
		{"address: 10.1.0.50", `address: [10.1.0.50, "fd01::50"]`, "restart node w"},
		{"loss=3%", "loss=4%", "change network lan"},
		{"promiscuous: false", "promiscuous: true", "restart node w"},
		{"mirror: false", "mirror: true", "restart node w"},
		{"via 10.1.0.2", "via 10.1.0.3", "restart node w"},
		{"forwarding: false", "forwarding: true", "restart node w"},
		{"command: [a]", "command: [a, b]", "restart node w"},
		{"dir: d1", "dir: d2", "restart node w"},
		{"K: one", "K: two", "restart node w"},
		{"restart: false", "restart: true", "restart node w"},
		{"setup: [s1]", "setup: [s2]", "restart node w"},
		{"after: [q]", "after: [x]", "change node w"},
		{"tcp:80", "tcp:81", "change node w"},
		{"timeout: 30s", "timeout: 31s", "change node w"},
		{"kernel: one", "kernel: two", "restart node q"},
		{"initrd: one", "initrd: two", "restart node q"},
		{"append: a1", "append: a2", "restart node q"},
		{"disk: one, disk-format: raw", "disk: two, disk-format: raw", "restart node q"},
		{"disk-format: raw", "disk-format: qcow2", "restart node q"},
		{"overlay: true", "overlay: false", "restart node q"},
		{"memory: 256M", "memory: 512M", "restart node q"},
		{"cpus: 1", "cpus: 2", "restart node q"},
		{"machine: pc", "machine: q35", "restart node q"},
		{"accel: tcg", "accel: kvm", "restart node q"},
		{"cpu: max", "cpu: qemu64", "restart node q"},
		{"qemu: one", "qemu: two", "restart node q"},
		{"args: [x1]", "args: [x2]", "restart node q"},
		{"agent: true, ", "", "restart node q"},
		{"user: u1", "user: u2", "change node q"},
		{"user-data: ud1", "user-data: ud2", "restart node q"},
		{"network-config: nc1", "network-config: nc2", "restart node q"},
		{"vendor-data: vd1", "vendor-data: vd2", "restart node q"},
		{"k: m1", "k: m2", "restart node q"},
		{"uml: one", "uml: two", "restart node u"},
		{"unix:door1", "unix:door2", "restart node x"},
		{"lan, {link: l}]", "{link: l}, lan]", "restart node q"},
	} {
		if strings.Count(base, c.from) != 1 {
			t.Errorf("%q stands %d times in the file", c.from, strings.Count(base, c.from))
			continue
		}
		now := read(strings.Replace(base, c.from, c.to, 1))
		got := Diff(read(base), now)
		found := c.want == "" && len(got) == 0
		for _, ch := range got {
			found = found || ch.Action+" "+ch.What == c.want
		}
		if !found || strings.HasPrefix(c.want, "change") && len(got) != 1 {
			t.Errorf("%s: %s, want %s", c.to, changesText(got), c.want)
		}
		if again := Diff(now, now); len(again) > 0 {
			t.Errorf("%s: again: %s", c.to, changesText(again))
		}
	}
}
