package topology

import (
	"fmt"
	"strings"
	"testing"
)

// TestDiff: what another file changes, how, and why.
func TestDiff(t *testing.T) {
	const base = `
name: d
vars: {count: "3", mem: 256M, prefix: 10.1.0.0/24, loss: 1%, cmd: "secret one", wait: address, rule: example.com, forward: "8080:w1:80", addr: 10.1.0.50, impair: "loss=1%", env: one, extra: "", user: one}
networks:
  lan: {net: "${prefix}", policy: {preset: sandbox, allow: ["${rule}"]}, forward: ["${forward}"]}
  sw: {net: 10.2.0.0/24, uplink: false}
links:
  l: {impair: "loss=${loss}"}
nodes:
  w: {kind: netns, count: "${count}", command: "${cmd}", interfaces: [lan], wait: "${wait}", env: {K: "${env}"}}
  vm: {kind: qemu, memory: "${mem}", interfaces: [{net: lan, address: "${addr}"}, {link: l}], user: "${user}"}
  r: {kind: netns, interfaces: [{net: sw, impair: "${impair}"}, {link: l}], after: [vm, v]}
  v: {kind: netns, count: "${count}", interfaces: [sw]}
  z: {kind: netns, interfaces: [sw]}
`
	for _, c := range []struct {
		set  map[string]string
		want string
	}{
		{nil, ""},
		{map[string]string{"count": "2"}, "stop node w3 (gone), stop node v3 (gone)"},
		{map[string]string{"count": "4"}, "start node w4 (new), start node v4 (new)"},
		{map[string]string{"mem": "1G"}, "restart node vm (memory 256 → 1024)"},
		{map[string]string{"loss": "5%"}, "change network l (impair is another)"},
		{map[string]string{"rule": "x.example"}, "change network lan (policy is another)"},
		{map[string]string{"forward": "8081:w1:80"}, "change network lan (forward 8080:w1:80 is gone; forward 8081:w1:80 is new)"},
		{map[string]string{"cmd": "secret two", "count": "1"}, "stop node w2 (gone), stop node w3 (gone), stop node v2 (gone), stop node v3 (gone), restart node w1 (command is another)"},
		{map[string]string{"env": "two", "count": "1"}, "stop node w2 (gone), stop node w3 (gone), stop node v2 (gone), stop node v3 (gone), restart node w1 (env K is another)"},
		{map[string]string{"wait": "agent"}, "!"},
		{map[string]string{"wait": "tcp:80", "count": "1"}, "stop node w2 (gone), stop node w3 (gone), stop node v2 (gone), stop node v3 (gone), change node w1 (wait is another)"},
		{map[string]string{"user": "two"}, "change node vm (user one → two)"},
		{map[string]string{"impair": "loss=2%"}, "change network sw (impair of r's eth0 is another)"},
		{map[string]string{"addr": "10.1.0.51"}, "change network lan (fixed address for vm's eth0), restart node vm (eth0: address 10.1.0.50/24 → 10.1.0.51/24)"},
		{map[string]string{"prefix": "10.1.0.0/25"}, "restart network lan (net 10.1.0.0/24 → 10.1.0.0/25; fixed address for vm's eth0), " +
			"restart node w1 (its network lan is another), restart node w2 (its network lan is another), restart node w3 (its network lan is another), " +
			"restart node vm (eth0: address 10.1.0.50/24 → 10.1.0.50/25; its network lan is another)"},
	} {
		old := parseText(t, base, nil)
		now, err := Parse("f", []byte(base), c.set)
		if err != nil {
			if c.want != "!" {
				t.Errorf("%v: %v", c.set, err)
			}
			continue
		}
		if got := changesText(Diff(old, now)); got != c.want {
			t.Errorf("%v:\ngot  %s\nwant %s", c.set, got, c.want)
		} else if strings.Contains(got, "secret") {
			t.Errorf("%v: %s", c.set, got)
		}
	}
}

func changesText(list []Change) string {
	var all []string
	for _, c := range list {
		all = append(all, fmt.Sprintf("%s %s (%s)", c.Action, c.What, c.Why))
	}
	return strings.Join(all, ", ")
}

// TestDiffWhole: from nothing, and to another shape.
func TestDiffWhole(t *testing.T) {
	now := parseText(t, "name: d\nnetworks: {lan: }\nlinks: {l: }\nnodes:\n  a: {kind: netns, interfaces: [lan, {link: l}]}\n  b: {kind: netns, interfaces: [{link: l}]}\n", nil)
	if got, want := changesText(Diff(nil, now)), "start network lan (new), start network l (new), start node a (new), start node b (new)"; got != want {
		t.Errorf("%s", got)
	}
	other := parseText(t, "name: d\nnetworks: {l: {uplink: false}}\nnodes:\n  a: {kind: qemu, interfaces: [{net: l, promiscuous: true}]}\n  b: {kind: netns, interfaces: [l], timeout: 5m}\n", nil)
	want := "stop network lan (gone), restart network l (it was a link), " +
		"restart node a (kind netns → qemu; eth0: network lan → l; "
	if got := changesText(Diff(now, other)); !strings.HasPrefix(got, want) || !strings.Contains(got, "restart node b (its network l is another; timeout default → 5m0s)") {
		t.Errorf("%s", got)
	}
}
