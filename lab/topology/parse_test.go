package topology

import (
	"fmt"
	"strings"
	"testing"

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

func doubling(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "  a%d: ${a%d}${a%d}\n", i+1, i, i)
	}
	return b.String()
}
