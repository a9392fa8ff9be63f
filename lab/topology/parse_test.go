package topology

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/config"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestFaults: each is told at its place, with what would be right.
func TestFaults(t *testing.T) {
	const lan = "networks:\n  lan: {net: 10.1.0.0/24, net6: fd00:1::/64}\n  dmz: {net: 10.2.0.0/24, uplink: false}\n"
	node := func(s string) string { return lan + "nodes:\n  web: {kind: netns, interfaces: [" + s + "]}\n" }
	keys := func(s string) string { return lan + "nodes:\n  web:\n    " + s + "\n" }
	network := func(s string) string {
		return "networks:\n  lan: {" + s + "}\nnodes:\n  web: {kind: netns, count: 2, interfaces: [lan]}\n  db: {kind: netns}\n"
	}
	for _, c := range []struct{ name, text, want string }{
		{"Empty", "", "a lab without nodes: want nodes: with a node at least"},
		{"NoNode", "nodes: {}\n", "a lab without nodes: want nodes: with a node at least"},
		{"Key", "node:\n  a: {kind: netns}\n", `1:1: no key "node" in the lab: did you mean nodes?`},
		{"NodeKey", keys("kind: netns\n    comand: x"), `7:5: no key "comand" in a node: did you mean command?`},
		{"NetKey", "networks:\n  lan: {nett: x}\n", `2:9: no key "nett" in a network: did you mean net?`},
		{"LinkKey", "links:\n  a: {uplink: true}\n", `2:7: no key "uplink" in a link: want net, net6, mtu or impair`},
		{"InterfaceKey", node("{net: lan, adress: x}"), `5:46: no key "adress" in an interface: did you mean address?`},
		{"Twice", "nodes:\n  a: {kind: netns}\n  a: {kind: netns}\n", `3:3: "a" is there twice: first in line 2`},
		{"LabName", "name: No\nnodes: {a: {kind: netns}}\n", `1:7: name: "No": want small letters, digits and - inside, a letter among them, 32 at most`},
		{"NodeName", "nodes:\n  Web_1: {kind: netns}\n", `2:3: "Web_1": want a host's name`},
		{"NumberName", "nodes:\n  12: {kind: netns}\n", `2:3: "12": want a host's name`},
		{"NetworkTwice", "networks: {a: {}}\nlinks:\n  a: {}\nnodes: {b: {kind: netns}}\n", `3:3: a is a network in line 1: want another name`},

		{"NoKind", "nodes:\n  a: {interfaces: []}\n", `2:3: a: what kind is it? want kind: netns, qemu, uml or external`},
		{"EmptyNode", "nodes:\n  a:\n", `2:3: a: what kind is it?`},
		{"Kind", keys("kind: qemo"), `6:11: kind: no kind "qemo": did you mean qemu?`},
		{"KindsKey", keys("kind: netns\n    memory: 512M"), `7:5: memory does not fit a node of kind netns: it is for qemu, uml`},
		{"CommandOfQEMU", keys("kind: qemu\n    command: ls"), `7:5: command does not fit a node of kind qemu: it is for netns`},
		{"Initrd", keys("kind: qemu\n    initrd: x"), `7:5: initrd wants kernel beside it`},
		{"Restart", keys("kind: netns\n    restart: true"), `7:5: restart: there is no command to start again`},
		{"Memory", keys("kind: qemu\n    memory: 8"), `7:13: memory: want 512M or 2G, 16 MiB at least, not "8"`},
		{"MemoryText", keys("kind: qemu\n    memory: much"), `7:13: memory: want 512M or 2G`},
		{"CPUs", keys("kind: qemu\n    cpus: 0"), `7:11: cpus: want a number from 1 to 255, not "0"`},
		{"Timeout", keys("kind: netns\n    timeout: 30"), `7:14: timeout: want a time as 30s or 5m, a second to an hour, not "30"`},
		{"Bool", keys("kind: netns\n    forwarding: yes"), `7:17: forwarding: want true or false, not "yes"`},
		{"Format", keys("disk: a\n    disk-format: qcow"), `7:18: disk-format: no format "qcow": did you mean qcow2?`},
		{"Setup", keys("disk: a\n    setup: [ls]"), `7:5: setup is run by the guest's agent: want agent: true, and one in the guest`},
		{"ForwardingDisk", keys("disk: a\n    forwarding: true"), `7:5: forwarding: with a kernel or disk of its own, the guest says so itself`},
		{"OneDisk", keys("disk: a\n    count: 2\n    overlay: false"), `8:5: overlay: 2 nodes cannot write to one disk: leave it out`},
		{"TwoDisks", lan + "nodes:\n  a: {disk: x, overlay: false}\n  b: {disk: x, overlay: false}\n", `6:13: disk: a writes to it, too (line 5): want overlay: true`},
		{"CloudInit", keys("kind: qemu\n    cloud-init: {}"), `7:5: cloud-init wants disk or kernel beside it`},
		{"CloudInitUplink", "name: n\nnetworks:\n  lan: {uplink: false}\nnodes:\n  a:\n    disk: a\n    cloud-init: {}\n    interfaces: [lan]\n", `7:5: cloud-init: its data are served in networks with an uplink, and a is in none: want an interface in one`},
		{"UserData", keys("disk: a\n    cloud-init: {user-data: {a: b}}"), `7:30: user-data: want a text, as user-data: | with the text below it, not keys with values`},
		{"InstanceID", keys("disk: a\n    cloud-init: {meta-data: {instance-id: b}}"), `7:30: instance-id is the lab's to say: leave it out`},
		{"UserDataFile", keys("disk: a\n    cloud-init: {user-data-file: b}"), `7:34: user-data-file: no files are read here: want the text itself`},
		{"Command", keys("command: []"), `6:14: command: want a program, or no command`},
		{"Env", keys("kind: netns\n    env: {\"A=B\": c}"), `7:11: env: "A=B" is no variable's name`},

		{"Count", keys("kind: netns\n    count: 0"), `7:12: count: want a number from 1 to 256, not "0"`},
		{"CountTooMany", "nodes:\n  a: {kind: netns, count: 200}\n  b: {kind: netns, count: 100}\n", `3:3: more than 256 nodes`},
		{"CountMeets", "nodes:\n  a: {kind: netns, count: 3}\n  a2: {kind: netns}\n", `3:3: a2 is a node in line 2: want another name`},
		{"CountAddress", lan + "nodes:\n  a: {kind: netns, count: 3, interfaces: [{net: lan, address: 10.1.0.7}]}\n",
			`5:63: address: 10.1.0.7 is a1's eth0, too (line 5): want another, with ${n} in it for each of a count its own`},
		{"CountMAC", lan + "nodes:\n  a: {kind: netns, count: 2, interfaces: [{net: lan, mac: 52:54:00:00:00:01}]}\n",
			`5:59: mac: 52:54:00:00:00:01 is a1's eth0, too (line 5): want another, with ${n} in it`},
		{"CountDoor", lan + "nodes:\n  a: {kind: external, count: 2, interfaces: [{net: lan, door: \"unix:/a\"}]}\n", `5:47: door: unix:/a is there twice: want ${n} in it`},

		{"Network", node("lam"), `5:35: no network "lam": did you mean lan?`},
		{"Link", node("{link: lan}"), `5:42: lan is a network and no link: want net: lan`},
		{"NoNetwork", node("{name: eth7}"), `5:36: an interface without a network: want net: or link:`},
		{"TwoNetworks", node("{net: lan, link: dmz}"), `5:52: an interface is in one network: want net or link`},
		{"InterfaceName", node("{net: lan, name: verylonginterface}"), `5:52: name: "verylonginterface" is no interface's: want letters, digits, - _ and ., 15 at most, and not lo`},
		{"Loopback", node("{net: lan, name: lo}"), `5:52: name: "lo" is no interface's`},
		{"InterfaceTwice", node("lan, {net: dmz, name: eth0}"), `5:57: web has two interfaces eth0: want another name`},
		{"MAC", node("{net: lan, mac: 52:54}"), `5:51: mac: want one as 52:54:00:12:34:56, not "52:54"`},
		{"GroupMAC", node("{net: lan, mac: 53:54:00:12:34:56}"), `5:51: mac: 53:54:00:12:34:56 is a group's: want one whose first byte is even`},
		{"MACTwice", node("{net: lan, mac: 52:54:00:12:34:56}, {net: dmz, mac: 52:54:00:12:34:56}"), `5:87: mac: 52:54:00:12:34:56 is web's eth0, too (line 5): want another`},
		{"Door", node("{net: lan, door: \"unix:/a\"}"), `door: is for nodes of kind external: a netns node is plugged in by itself`},
		{"MirrorAddress", node("{net: lan, mirror: true, address: 10.1.0.9}"), `5:69: a mirror sends nothing, and has no address`},
		{"Both", node("{net: lan, mirror: true, promiscuous: true}"), `5:36: an interface is promiscuous or a mirror: leave one out`},
		{"Interfaces", keys("kind: netns\n    interfaces: [" + strings.Repeat("lan, ", 33) + "]"), "more than 32 interfaces"},

		{"Address", node("{net: lan, address: 10.1.0}"), `5:55: address: want one as 10.1.0.7/24 or fd00:1::7, not "10.1.0"`},
		{"AddressOutside", node("{net: lan, address: 10.2.0.7}"), `5:55: address: 10.2.0.7 is not in network lan, which has 10.1.0.0/24`},
		{"AddressBits", node("{net: lan, address: 10.1.0.7/16}"), `5:55: address: 10.1.0.7/16: network lan has a /24: want 10.1.0.7/24, or 10.1.0.7`},
		{"AddressOfNetwork", node("{net: lan, address: 10.1.0.0}"), `5:55: address: 10.1.0.0 is the network's own`},
		{"AddressBroadcast", node("{net: dmz, address: 10.2.0.255}"), `5:55: address: 10.2.0.255 is the network's broadcast address`},
		{"AddressGateway", node("{net: lan, address: 10.1.0.2}"), `5:55: address: 10.1.0.2 is the gateway's: want another`},
		{"AddressResolver", node("{net: lan, address: fd00:1::3}"), `5:55: address: fd00:1::3 is where names are resolved: want another`},
		{"AddressTwice", node("{net: lan, address: [10.1.0.7, 10.1.0.7/24]}"), `5:66: address: 10.1.0.7/24 is there twice`},
		{"AddressOfAnother", node("{net: lan, address: 10.1.0.7}]}\n  db: {kind: netns, interfaces: [{net: lan, address: 10.1.0.7}"), `6:54: address: 10.1.0.7 is web's eth0, too (line 5): want another`},
		{"AddressFamily", node("{net: dmz, address: fd00::1}"), `5:55: address: fd00::1 is without its prefix's length, and network dmz has no prefix of its family`},
		{"AddressMulticast", node("{net: dmz, address: 224.0.0.1/24}"), `5:55: address: 224.0.0.1 is no node's`},
		{"Overlap", "networks:\n  a: {net: 10.0.0.0/8}\n  b: {net: 10.1.0.0/16}\nnodes:\n  r: {kind: netns, interfaces: [a, b]}\n",
			`5:36: r is in b (10.1.0.0/16) and in a (10.0.0.0/8), which overlap: want other prefixes`},

		{"OneEnd", "links:\n  l: {}\nnodes:\n  a: {kind: netns, interfaces: [{link: l}]}\n", `2:3: link l has one end, in line 4: want two interfaces with link: l`},
		{"NoEnd", "links:\n  l: {}\nnodes:\n  a: {kind: netns}\n", `2:3: link l has no ends: want two interfaces with link: l`},
		{"ThreeEnds", "links:\n  l: {}\nnodes:\n  a: {kind: netns, count: 3, interfaces: [{link: l}]}\n", `4:50: link l has 3 ends: it joins two interfaces; want a network for more`},
		{"LinkUnknown", "links:\n  l1: {}\nnodes:\n  a: {kind: netns, count: 2, interfaces: [{link: l2}]}\n", `4:50: no link "l2": did you mean l1?`},
		{"LinkMirror", "links:\n  l: {}\nnodes:\n  a: {kind: netns, count: 2, interfaces: [{link: l, mirror: true}]}\n", `4:44: promiscuous and mirror are for networks: over a link everything passes`},
		{"LinkImpair", "links:\n  l: {impair: \"up=loss=1%\"}\n", `2:15: impair: a link has no up and down`},
		{"NoRoom", "networks:\n  a: {net: 10.1.0.0/30, uplink: false}\nnodes:\n  n: {kind: netns, count: 3, interfaces: [a]}\n",
			`2:12: 10.1.0.0/30 has no room for the 3 interfaces of a that want an address: want a shorter prefix`},

		{"After", lan + "nodes:\n  a: {kind: netns}\n  b: {kind: netns, after: [c]}\n", `6:28: no node "c": did you mean a?`},
		{"AfterSelf", lan + "nodes:\n  a: {kind: netns, after: a}\n", `5:27: after: a cannot start after itself`},
		{"AfterCircle", "nodes:\n  a: {kind: netns, after: [b]}\n  b: {kind: netns, after: [c]}\n  c: {kind: netns, after: [a]}\n",
			`4:28: after: none of these can start first: a, b, c, a (each after the next)`},

		{"Route", keys("kind: netns\n    routes: [10.9.0.0/16 to 10.1.0.3]"), `7:14: routes: want PREFIX via ADDRESS, as 10.9.0.0/16 via 10.1.0.3 or default via fd00::1, not "10.9.0.0/16 to 10.1.0.3"`},
		{"RoutePrefix", keys("kind: netns\n    routes: [10.9.0.1/16 via 10.1.0.3]"), `7:14: routes: 10.9.0.1/16 has bits behind its prefix: want 10.9.0.0/16`},
		{"RouteFamily", keys("kind: netns\n    routes: [\"::/0 via 10.1.0.3\"]"), `7:14: routes: ::/0 is not of the family of 10.1.0.3`},
		{"RouteNowhere", keys("kind: netns\n    interfaces: [lan]\n    routes: [default via 10.2.0.3]"), `8:14: routes: 10.2.0.3 is in none of web's networks: want a neighbour's address`},
		{"RouteTwice", keys("kind: netns\n    routes: [default via 10.2.0.3, 0.0.0.0/0 via 10.2.0.4]"), `7:36: routes: two to 0.0.0.0/0: want one`},
		{"RouteSelf", keys("kind: netns\n    interfaces: [{net: lan, address: 10.1.0.9}]\n    routes: [default via 10.1.0.9]"), `8:14: routes: 10.1.0.9 is web's own address`},

		{"Wait", keys("kind: netns\n    wait: adress"), `7:11: wait: nothing is called "adress": did you mean address?`},
		{"WaitPort", keys("kind: netns\n    wait: [tcp:http]"), `7:12: wait: tcp: want a port, as tcp:80 or tcp:HOST:80, not "http"`},
		{"WaitNoPort", keys("kind: netns\n    wait: [tcp]"), `7:12: wait: tcp wants a port, as tcp:80, or tcp:HOST:80`},
		{"WaitArg", keys("kind: netns\n    wait: [\"address: x\"]"), `7:12: wait: address has nothing behind it`},
		{"WaitKind", keys("kind: external\n    wait: [exec: ls]"), `7:12: wait: a node of kind external has no exec: it is for netns, qemu`},
		{"WaitAgent", keys("disk: a\n    wait: [exec: ls]"), `7:12: wait: exec is the guest agent's: want agent: true, and one in the guest`},
		{"WaitExit", keys("kind: netns\n    wait: exit"), `7:11: wait: there is no command that would exit`},
		{"WaitLog", keys("kind: netns\n    wait: [log: \"(\"]"), "7:12: wait: log: error parsing regexp"},

		{"Forward", network("forward: [80]"), `2:19: forward: "80": to which node? want HOSTPORT:NODE:PORT`},
		{"ForwardSyntax", network("forward: [80:web1:http]"), `2:19: forward: "80:web1:http": `},
		{"ForwardNode", network("forward: [8080:wep1:80]"), `2:19: forward: no node "wep1" in network lan: did you mean web1?`},
		{"ForwardCount", network("forward: [8080:web:80]"), `2:19: forward: web is 2 nodes: want one of them, web1 say`},
		{"ForwardElsewhere", network("forward: [8080:db:80]"), `2:19: forward: node db has no interface in network lan`},
		{"ForwardOutside", network("net: 10.1.0.0/24, forward: [8080:10.2.0.1:80]"), `2:37: forward: 10.2.0.1 is not in network lan, which has 10.1.0.0/24`},
		{"ForwardPort", network("forward: [8080:web1:80, 8080:web2:80]"), `2:33: forward: 8080:web1:80 has the same port of the host (line 2): want another`},
		{"Record", network("dns-record: [db A x]"), `2:22: record "db A x"`},
		{"Resolver", network("resolver: dns.example"), `2:19: resolver: want 192.0.2.1, 192.0.2.1:5353 or [2001:db8::1]:5353, not "dns.example"`},
		{"Limit", network("limits: {flow: 3}"), `2:18: no limit is called "flow": did you mean flows?`},
		{"Impair", network("impair: 5g"), `2:17: impair: `},
		{"ImpairDown", network("impair: {down: loss=200%}"), `2:24: impair: `},
		{"ImpairTrace", network("impair: \"trace=x\""), `2:17: impair: `},
		{"Preset", network("policy: {preset: sandbx}"), `2:26: preset: no preset is called "sandbx": did you mean sandbox?`},
		{"Policy", network("policy: sandbox"), `2:17: policy: want keys with values, as policy: {preset: sandbox}, not "sandbox"`},
		{"Allow", network("policy: {allow: [\"tcp exa.mple .com\"]}"), `2:26: `},
		{"Rules", "networks:\n  lan:\n    policy:\n      rules: |\n        # fine\n        allow any x.example\n         alow any\nnodes: {a: {kind: netns}}\n", `7:10: `},
		{"RulesPreset", network("policy: {preset: open, rules: \"preset sandbox\"}"), `2:26: preset open: the rules have preset sandbox: leave one out`},
		{"NoUplink", network("uplink: false, policy: {preset: open}"), `2:24: policy is an uplink's, and this network has none: leave it out, or want uplink: true`},
		{"MTU", network("mtu: 100"), `2:9: mtu: want 1280 (the least that IPv6 works with) to 65520 where there is an uplink, not 100`},
		{"MTU6", network("mtu: 576, uplink: false, net6: fd00::/64"), `2:9: mtu: 576 is less than IPv6 works with: want 1280 or more, or no net6`},
		{"Net", network("net: 10.1.0.1/24"), `2:14: net: 10.1.0.1/24 has bits behind its prefix: want 10.1.0.0/24`},
		{"NetFamily", network("net: fd00::/64"), `2:14: net: want a prefix as 10.1.0.0/24, not "fd00::/64"`},
		{"NetSmall", network("net: 10.1.0.0/30"), `2:14: net: 10.1.0.0/30: want a /8 to a /28 where there is an uplink`},
		{"Net6", network("net6: fd00::/48"), `2:15: net6: fd00::/48: want a /64 where there is an uplink`},
		{"NetLinkLocal", network("net: 169.254.0.0/16"), `2:14: net: nodes cannot have addresses in 169.254.0.0/16`},
		{"Gateway", network("net: 10.1.0.0/24, gateway: 10.2.0.1"), `2:27: gateway: 10.2.0.1 is no node's address in 10.1.0.0/24`},
		{"GatewayAlone", network("gateway: 10.2.0.1"), `2:9: gateway: 10.2.0.1 wants net: beside it`},

		{"Var", "nodes:\n  a: {kind: \"${knd}\"}\n", `2:13: no variable "knd": want lab or name`},
		{"VarOpen", "nodes:\n  a: {kind: \"${knd\"}\n", `2:13: ${ without its }`},
		{"VarShell", "nodes:\n  a: {command: \"echo ${HOME}\"}\n", `for a shell's own write $${HOME}`},
		{"VarShellDefault", "nodes:\n  a: {command: \"echo ${HOME:-x}\"}\n", `2:16: ${HOME:-x}: want a variable's name, or $${ for what a shell is to make something of`},
		{"VarEnv", "nodes:\n  a: {dir: \"${env:HOME}\", kind: netns}\n", `2:12: ${env:HOME}: the environment is no part of a lab: give it a variable, and set that by --set home=$HOME`},
		{"VarOwn", "vars: {name: x}\nnodes: {a: {kind: netns}}\n", `1:8: the variable name is the name of the node: call yours otherwise`},
		{"VarN", "nodes:\n  a: {command: \"echo ${n}\"}\n", `2:16: ${n} is the number of a node in its count, and this is not in one`},
		{"VarLater", "vars: {a: \"${b}\", b: x}\nnodes: {a: {kind: netns}}\n", `1:11: no variable "b"`},
		{"VarDoubles", "vars:\n  a0: xxxxxxxxxxxxxxxx\n" + doubling(40) + "nodes: {a: {kind: netns}}\n", `with its variables set, the file is more than 16 MiB`},
		{"VarInList", "vars: {a: 1}\nnodes:\n  a: {kind: netns, after: [b${a}]}\n", `in [ ] and { } a value with ${ } stands in quotes`},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := Parse("f.yaml", []byte(c.text), nil)
			if err == nil {
				t.Fatalf("read as\n%s", l.Graph())
			}
			if !strings.Contains(err.Error(), "f.yaml:") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %s\nwant %s", err, c.want)
			}
			if l != nil {
				t.Error("a lab and an error")
			}
		})
	}
}

// TestBounds: what is as large as a file may be is read, or refused, in time that nobody waits for.
func TestBounds(t *testing.T) {
	fill := func(head, each, tail string) string {
		return head + strings.Repeat(each, (config.MaxSize-len(head)-len(tail)-100)/len(each)) + tail
	}
	for name, text := range map[string]string{
		"Env":      "nodes:\n  a:\n    kind: netns\n    count: 256\n    env:\n" + manyKeys("      K%d: v\n", 5000),
		"Routes":   fill("nodes:\n  a:\n    kind: netns\n    count: 256\n    routes:\n", "    - 10.0.0.0/8 via 10.1.0.1\n", ""),
		"Wait":     fill("nodes:\n  a:\n    kind: netns\n    count: 256\n    wait:\n", "    - log: a(b|c)*d+\n", ""),
		"Args":     fill("nodes:\n  a:\n    kind: qemu\n    count: 256\n    args:\n", "    - a\n", ""),
		"After":    fill("nodes:\n  b: {kind: netns}\n  a:\n    kind: netns\n    count: 255\n    after:\n", "    - b\n", ""),
		"Address":  fill("networks: {l: {uplink: false}}\nnodes:\n  a:\n    kind: netns\n    count: 256\n    interfaces:\n", "    - {net: l, address: 10.0.0.1/8}\n", ""),
		"Networks": "networks:\n" + manyKeys("  n%d: {net: 10.0.0.0/8}\n", 3000) + "nodes: {a: {kind: netns}}\n",
		"Nodes":    "nodes:\n" + manyKeys("  n%d: {kind: netns}\n", 3000),
		"Forward":  fill("networks:\n  l:\n    forward:\n", "    - 0:x:1\n", "nodes: {x: {kind: netns, interfaces: [l]}}\n"),
		"Vars":     "vars:\n" + manyKeys("  v%d: x\n", 5000) + "nodes: {a: {kind: \"${v1}\"}}\n",
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			l, err := Parse("f.yaml", []byte(text), nil)
			if (l == nil) == (err == nil) {
				t.Errorf("%v, %v", l, err)
			}
			if d := time.Since(began); d > 30*time.Second { // on a busy machine, where it takes a second at most
				t.Errorf("took %s", d)
			} else {
				t.Logf("%s: %.100v", d, err)
			}
		})
	}
}

func manyKeys(format string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func doubling(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "  a%d: ${a%d}${a%d}\n", i+1, i, i)
	}
	return b.String()
}

func parseText(t *testing.T, text string, set map[string]string) *Lab {
	t.Helper()
	l, err := Parse("f.yaml", []byte(text), set)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *Lab) mustNode(t *testing.T, name string) *Node {
	t.Helper()
	n := nodesByName(l)[name]
	if n == nil {
		t.Fatalf("no node %s", name)
	}
	return n
}

// TestManyFaults: all at once, in the order of the file, and those of a count once.
func TestManyFaults(t *testing.T) {
	_, err := Parse("f", []byte("name: f\nnetworks: {lan: {mtu: x}}\nnodes:\n  a: {kind: netns, count: 9, interfaces: [lam], after: [b]}\n  c: {kind: netns, wait: x}\n"), nil)
	if err == nil {
		t.Fatal("no error")
	}
	var lines []int
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		var at *config.Error
		if !errors.As(e, &at) {
			t.Fatalf("%T", e)
		}
		lines = append(lines, at.Line)
	}
	if want := []int{2, 4, 4, 5}; !slices.Equal(lines, want) {
		t.Errorf("faults in lines %v, want %v:\n%s", lines, want, err)
	}
}

// TestVariables: where they stand, what is above what, and what they leave alone.
func TestVariables(t *testing.T) {
	const text = `
name: v
vars: {a: x, b: "${a}y", three: "3"}
nodes:
  w:
    count: ${three}
    command: ["${b}", "$a", "$${a}", "$$", "${a}${b}", "${lab}/${name}/${n}"]
`
	l := parseText(t, text, map[string]string{"a": "Z", "three": "2"})
	if len(l.Nodes) != 2 {
		t.Fatalf("%d nodes", len(l.Nodes))
	}
	want := []string{"Zy", "$a", "${a}", "$$", "ZZy", "v/w2/2"}
	if n := l.Nodes[1]; n.Name != "w2" || n.Base != "w" || !slices.Equal(n.Command, want) {
		t.Errorf("%+v", n)
	}
	for set, want := range map[string]string{"c": "the file has no such variable: did you mean a?", "name": "the file has no such variable"} {
		if _, err := Parse("f", []byte(text), map[string]string{set: "1"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--set %s: %v", set, err)
		}
	}
}

// TestShell: a command that is a text is a shell's.
func TestShell(t *testing.T) {
	l := parseText(t, "nodes:\n  a:\n    command: echo $HOME | wc\n", nil)
	if got := l.Nodes[0]; got.Kind != KindNetns || !slices.Equal(got.Command, []string{"/bin/sh", "-c", "echo $HOME | wc"}) {
		t.Errorf("%+v", got)
	}
}

// TestKinds: what a node is by what it says.
func TestKinds(t *testing.T) {
	for text, want := range map[string]Kind{"command: ls": KindNetns, "disk: a": KindQEMU, "kernel: a": KindQEMU, "uml: a": KindUML, "{uml: a, disk: b}": KindUML, "kind: external": KindExternal} {
		if !strings.HasPrefix(text, "{") {
			text = "{" + text + "}"
		}
		if n := parseText(t, "nodes:\n  a: "+text+"\n", nil).Nodes[0]; n.Kind != want {
			t.Errorf("%s: %s, want %s", text, n.Kind, want)
		}
	}
	n := parseText(t, "nodes: {a: {kind: qemu}, b: {disk: x}, c: {disk: x, overlay: false}}\n", nil).Nodes
	if !n[0].Agent || n[0].Overlay || n[1].Agent || !n[1].Overlay || n[2].Overlay {
		t.Errorf("%+v", n)
	}
}

// TestAddresses: the lowest that are free, in order; none where there is DHCP, nor for a mirror, nor where none is wanted.
func TestAddresses(t *testing.T) {
	l := parseText(t, `
name: a
networks:
  up: {}
  up2: {net: 10.0.3.0/24}
  up3:
  sw: {net: 10.1.0.0/24, net6: fd00:1::/64, uplink: false}
  bare: {uplink: false}
links:
  p2p: {net: 10.9.0.0/31, net6: "fd00:9::/127"}
nodes:
  a: {kind: netns, interfaces: [up, sw, {link: p2p}, bare]}
  b: {kind: netns, interfaces: [up2, {net: sw, address: [10.1.0.1]}, {link: p2p}]}
  c: {kind: netns, interfaces: [up3, {net: sw, address: fd00:1::1}, {net: bare, address: 192.0.2.1/24}]}
  m: {kind: netns, interfaces: [{net: sw, mirror: true}, {net: sw, address: []}]}
  e: {kind: netns, count: 2, interfaces: [sw]}
  f: {kind: netns, count: 1, interfaces: [sw]}
  d: {kind: netns, interfaces: [{net: sw, address: fe80::1/64}]}
`, nil)
	want := map[string][]string{
		"a":  {"[]", "[10.1.0.2/24 fd00:1::2/64]", "[10.9.0.0/31 fd00:9::/127]", "[]"},
		"b":  {"[]", "[10.1.0.1/24 fd00:1::3/64]", "[10.9.0.1/31 fd00:9::1/127]"},
		"c":  {"[]", "[fd00:1::1/64 10.1.0.3/24]", "[192.0.2.1/24]"},
		"m":  {"[]", "[]"},
		"e1": {"[10.1.0.5/24 fd00:1::5/64]"}, "f1": {"[10.1.0.6/24 fd00:1::6/64]"}, "e2": {"[10.1.0.7/24 fd00:1::7/64]"},
		"d": {"[fe80::1/64 10.1.0.4/24 fd00:1::4/64]"},
	}
	for name, list := range want {
		for i, f := range l.mustNode(t, name).Interfaces {
			if got := fmt.Sprint(f.Addrs); got != list[i] {
				t.Errorf("%s's %s has %s, want %s", name, f.Name, got, list[i])
			}
		}
	}
	for name, prefix := range map[string]string{"up": "10.0.2.0/24", "up2": "10.0.3.0/24", "up3": "10.0.4.0/24", "bare": "invalid Prefix"} {
		if got := networksByName(l)[name].Prefix4.String(); got != prefix {
			t.Errorf("%s has %s, want %s", name, got, prefix)
		}
	}
}

// TestMACs: the same from whatever else the file has, no two the same, and never one that the file gives to another.
func TestMACs(t *testing.T) {
	one := parseText(t, "name: m\nnetworks: {lan: }\nnodes:\n  b: {kind: netns, interfaces: [lan]}\n", nil)
	mac := one.Nodes[0].Interfaces[0].MAC
	if mac[0] != 0x52 || mac[1] != 0x54 || mac[2] != 0 {
		t.Errorf("%s", mac)
	}
	more := parseText(t, "name: m\nnetworks: {lan: , dmz: {uplink: false}}\nnodes:\n  a: {kind: netns, interfaces: [lan]}\n  b: {kind: netns, interfaces: [lan, dmz]}\n", nil)
	if got := more.mustNode(t, "b").Interfaces[0].MAC; got.String() != mac.String() {
		t.Errorf("%s became %s", mac, got)
	}
	taken := parseText(t, fmt.Sprintf("name: m\nnetworks: {lan: }\nnodes:\n  b: {kind: netns, interfaces: [lan]}\n  c: {kind: netns, interfaces: [{net: lan, mac: \"%s\"}]}\n", mac), nil)
	if got := taken.Nodes[0].Interfaces[0].MAC; got.String() == mac.String() || got[0] != 0x52 {
		t.Errorf("two have %s", got)
	}
	seen := map[string]bool{}
	for _, n := range parseText(t, "name: m\nnetworks: {lan: {net: 10.0.0.0/8}}\nnodes:\n  n: {kind: netns, count: 256, interfaces: [lan, lan, lan, lan, lan, lan, lan, lan, lan, lan, lan, lan, lan, lan, lan, lan]}\n", nil).Nodes {
		for _, f := range n.Interfaces { // 4096 of 2^24: half a collision is to be expected
			if seen[f.MAC.String()] {
				t.Errorf("two have %s", f.MAC)
			}
			seen[f.MAC.String()] = true
		}
	}
}

// TestWire: what a link suffers, each direction suffers once.
func TestWire(t *testing.T) {
	const nodes = "nodes: {a: {kind: netns, count: 2, interfaces: [{link: l}]}}\n"
	for _, text := range []string{"latency=20ms,loss=1%", "up=latency=20ms,loss=1% down=latency=20ms,loss=1%"} {
		s := parseText(t, "links: {l: {impair: \""+text+"\"}}\n"+nodes, nil).Networks[0].Impair
		if s.Up.Latency != 20*time.Millisecond || s.Up.Loss != 0.01 || !reflect.ValueOf(s.Down).IsZero() {
			t.Errorf("%s: %s", text, s)
		}
	}
	if s := parseText(t, "links: {l: {impair: {up: loss=1%, down: loss=1%, seed: 7}}}\n"+nodes, nil).Networks[0].Impair; s.Seed != 7 || s.Up.Loss != 0.01 {
		t.Errorf("%s", s)
	}
	s := parseText(t, "networks: {l: {impair: {down: 3g, up: rate=1mbit}}}\nnodes: {a: {kind: netns}}\n", nil).Networks[0].Impair
	if s.Down.Rate != 1_600_000 || s.Up.Rate != 1_000_000 {
		t.Errorf("%s", s)
	}
}

// TestAfter: a count's name is all of them.
func TestAfter(t *testing.T) {
	l := parseText(t, "nodes:\n  a: {kind: netns, after: [w, w1]}\n  w: {kind: netns, count: 3}\n", nil)
	if got := l.Nodes[0].After; !slices.Equal(got, []string{"w1", "w2", "w3"}) {
		t.Errorf("%v", got)
	}
}

// TestWait: both ways to write a condition.
func TestWait(t *testing.T) {
	l := parseText(t, "nodes:\n  a:\n    kind: netns\n    wait:\n      - address\n      - tcp:80\n      - udp: \"db:53\"\n      - ping:fd00::1\n      - exec: test -f /x\n      - log: \"login: *$\"\n", nil)
	want := []Condition{{"address", ""}, {"tcp", "80"}, {"udp", "db:53"}, {"ping", "fd00::1"}, {"exec", "test -f /x"}, {"log", "login: *$"}}
	if got := l.Nodes[0].Wait; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// TestPolicy: the allow-list stands before the rules, and says what rules say.
func TestPolicy(t *testing.T) {
	l := parseText(t, "networks:\n  lan:\n    policy:\n      preset: sandbox\n      allow: [example.com, \"tcp *.debian.org:80\", reject any private]\n      rules: |\n        allow udp 192.0.2.1:53\nnodes: {a: {kind: netns}}\n", nil)
	d, err := l.Networks[0].Policy.Document()
	if err != nil {
		t.Fatal(err)
	}
	want := "preset sandbox\nallow any example.com\nallow tcp *.debian.org:80\nreject any private\nallow udp 192.0.2.1:53\n"
	if d.String() != want {
		t.Errorf("got\n%swant\n%s", d, want)
	}
}

// TestFiles: names are relative to the file, and what is not there is a fault.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("disk.qcow2", "x", 0o600)
	write("user.yaml", "#cloud-config ${not} set\n", 0o600)
	write("rules", "allow any x.example\n", 0o600)
	write("trace", "1\n2\n3\n", 0o600)
	write("emulator", "#!/bin/sh\n", 0o700)
	write("shop.yaml", `
networks:
  lan: {policy: {file: rules}, impair: "trace=trace"}
nodes:
  vm: {disk: disk.qcow2, qemu: ./emulator, cloud-init: {user-data-file: user.yaml}, interfaces: [lan]}
  ns: {kind: netns, dir: .}
  ex: {kind: external, interfaces: [{net: lan, door: "unix:door"}]}
`, 0o600)
	l, err := Read(filepath.Join(dir, "shop.yaml"), nil)
	if err != nil {
		t.Fatal(err)
	}
	vm := l.mustNode(t, "vm")
	if l.Name != "shop" || vm.Disk != filepath.Join(dir, "disk.qcow2") || vm.QEMU != filepath.Join(dir, "emulator") || vm.CloudInit.UserData != "#cloud-config ${not} set\n" || l.mustNode(t, "ns").Dir != dir ||
		l.Networks[0].Policy.Rules != "allow any x.example\n" || l.Networks[0].Impair.Up.Trace == nil || l.mustNode(t, "ex").Interfaces[0].Door != "unix:"+filepath.Join(dir, "door") {
		t.Errorf("%+v\n%+v", l, vm)
	}
	for text, want := range map[string]string{
		"nodes: {a: {disk: no.img}}":                 "bad.yaml:1:19: disk: there is no " + filepath.Join(dir, "no.img") + ": names are relative to the file's folder",
		"nodes: {a: {disk: .}}":                      "1:19: disk: " + dir + " is a folder: want a file",
		"nodes: {a: {kind: netns, dir: rules}}":      "1:31: dir: " + filepath.Join(dir, "rules") + " is no folder",
		"nodes: {a: {kind: qemu, qemu: ./rules}}":    "is no program: it wants chmod +x",
		"networks: {a: {impair: trace=no}}":          "there is no " + filepath.Join(dir, "no"),
		"networks: {a: {policy: {file: shop.yaml}}}": "1:31: policy line 2",
	} {
		write("bad.yaml", text+"\n", 0o600)
		if _, err := Read(filepath.Join(dir, "bad.yaml"), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\ngot  %v\nwant %s", text, err, want)
		}
	}
	if _, err := Read(filepath.Join(dir, "none.yaml"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// TestDoc: the file in the package's comment is one.
func TestDoc(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "// # The file\n")
	text, _, found := strings.Cut(rest, "// It is YAML")
	if !found {
		t.Fatal("no file in doc.go")
	}
	l := parseText(t, strings.ReplaceAll(strings.ReplaceAll(text, "//\t", ""), "//", ""), map[string]string{"web": "5"})
	if l.Name != "shop" || len(l.Nodes) != 7 || len(l.Networks) != 3 {
		t.Errorf("%s", l.Graph())
	}
}

// FuzzParse: an error or a lab, the same each time, in bounded time, that can be drawn and compared.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/*.yaml", "../examples/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatalf("%s: %d seeds, %v", pattern, len(files), err)
		}
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		began := time.Now()
		l, err := Parse("f.yaml", text, nil)
		again, err2 := Parse("f.yaml", text, nil)
		if (err == nil) != (l != nil) || fmt.Sprint(err) != fmt.Sprint(err2) || !reflect.DeepEqual(l, again) {
			t.Fatalf("once %v, %v, and again %v, %v", l, err, again, err2)
		}
		if l != nil {
			if d := Diff(l, again); len(d) > 0 {
				t.Fatalf("differs from itself: %v", d)
			}
			if a, b := string(l.SVG(nil)), string(again.SVG(nil)); a != b || l.Graph() != again.Graph() {
				t.Fatal("drawn otherwise the second time")
			}
			checkPicture(t, l)
		}
		if d := time.Since(began); d > 20*time.Second { // on a busy machine
			t.Fatalf("took %s", d)
		}
	})
}
