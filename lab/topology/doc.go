// Package topology says what a lab is: networks, links between two nodes, and nodes, as its file has them and as they are
// meant once variables are set, counts unrolled, and MACs and addresses given out. It starts nothing: package lab does.
//
//	l, err := topology.Read("shop.yaml", map[string]string{"web": "5"})
//	if err != nil {
//		log.Fatal(err) // shop.yaml:7:5: no key "comand" in a node: did you mean command?
//	}
//	fmt.Print(l.Graph())
//	for _, c := range topology.Diff(before, l) {
//		fmt.Println(c.Action, c.What, c.Why) // restart node db memory 512 → 1024
//	}
//
// # The file
//
//	name: shop                       # of the lab; the file's own if it is left out
//	vars: {web: "3"}
//	networks:
//	  lan: {net: 10.1.0.0/24, forward: [8080:web1:80]}
//	  back: {net: 10.2.0.0/24, net6: fd00:2::/64, uplink: false}
//	links:
//	  far: {net: 10.9.0.0/30, impair: "latency=20ms,loss=1%"}
//	nodes:
//	  web:
//	    count: ${web}
//	    command: [python3, -m, http.server, "80"]
//	    interfaces: [lan, back]
//	    wait: tcp:80
//	  router:
//	    kind: qemu
//	    forwarding: true
//	    interfaces: [back, {link: far}]
//	  customer:
//	    kind: netns
//	    interfaces: [{link: far}]
//	    routes: [10.2.0.0/24 via 10.9.0.1]
//	    after: router
//
// It is YAML, read as package config reads it: no key that is not known, none twice, no anchors. All faults are told, up to
// ten. A list of one may be the value alone, but for interfaces and args. Names are hosts': small letters, digits and -
// inside; no network is called as a link is. Files are relative to the file's folder, and must be there.
//
// Keys of a network, all of which may be left out:
//
//	net, net6          prefixes. With an uplink and no net: 10.0.2.0/24 and on; net6: one of the backend's own
//	uplink             true: vmnetd is the gateway, gives addresses by DHCP, resolves names. false: a plain switch
//	mtu                of an uplink 1280 to 65520, else 68 to 65520 (1280 with net6)
//	isolate            nodes do not see one another
//	impair             what each interface suffers that has none of its own: text as 'vmnetd impair' takes it, or {down:, up:, seed:}
//	gateway, gateway6, domain, resolver, limits, no-host-loopback, strict-leases
//	                   as in the daemon's file; of an uplink only, as those below
//	policy             {preset:, allow: [], rules:, or file: for those}
//	forward            [8080:web1:80], as -p has them, to a node of this network
//	dns-record         ["shop A 10.1.0.21"]: shop.internal; with a dot behind it, as "shop.example. A 10.1.0.21", the whole name
//
// Keys of a link, which two interfaces name: net, net6, mtu, impair. A link's impair is what a frame suffers on its way, in
// either direction.
//
// Keys of a node:
//
//	kind               netns, qemu, uml, external. May be left out where there is command (netns), disk or kernel (qemu), uml
//	count              so many of them, called web1, web2, …; even if it is one
//	interfaces         networks' names, or {net: or link:, and any of name, mac, address, impair, promiscuous, mirror, door}
//	after              nodes that are ready before this one starts; a name with a count is all of them
//	wait               what makes it ready: address, ping:ADDR, tcp:[HOST:]PORT, udp:…, exec: LINE, log: REGEXP, agent, exit
//	timeout            from its start until it is ready: 30s, 5m
//	setup              (netns, or with an agent) shell lines, run before it is ready, and before its command is
//	routes             (not external) [10.9.0.0/16 via 10.1.0.3, default via fd00::1]; the small guest's and netns's are set, others
//	                   have them by cloud-init
//	forwarding         (netns, the small guest) it routes
//	command            (netns) [program, argument, …], or one text for sh -c
//	dir, env, restart  (netns) where it runs, with what, and whether it is started again when it ends
//	kernel, initrd, append; disk, disk-format, overlay
//	                   (qemu; uml has all but kernel and disk-format) what it boots; without kernel, initrd and disk the small
//	                   guest. overlay is true unless said otherwise: what is written to a disk goes when the node does
//	memory, args       (qemu, uml) 512M, 2G; any further arguments
//	cpus, machine, accel, cpu, qemu
//	                   (qemu) QEMU's words; its program
//	agent              (qemu) a guest agent runs in it, for exec and setup; the small guest has one
//	user               for 'lab ssh'
//	cloud-init         (qemu with a disk or a kernel, in a network with an uplink) {user-data:, network-config:, vendor-data:,
//	                   each also as …-file: NAME, meta-data: {}}
//	uml                the program
//
// Of an interface: address is one or several, with or without /BITS, where those are the network's; in a network with an
// uplink it is a static lease. [] is none, where there would be one by itself. promiscuous gets all frames of its network and may
// send as anybody; mirror gets a copy of all and sends none; door is unix:PATH, where an external node plugs in.
//
// In values ${NAME} is a variable: of vars, where each may have those above it in its value, and whose values Read's set (--set
// NAME=VALUE) replaces; ${lab}, the lab's name; in a node ${name}, and ${n}, its number in a count from 1. $${ is ${ itself. In
// [ ] and { } a value with braces stands in quotes.
//
// # What is given out
//
// An interface without a MAC has one made of the lab's name, the node's and its own, so that it stays whatever else changes.
// In networks without an uplink and in links each interface has an address of either family that the network has a prefix
// of: the lowest that is free, in the file's order but for those of a count, who come last, so that a larger count changes
// nobody's. A node that comes in before others does: routers are best given theirs.
package topology
