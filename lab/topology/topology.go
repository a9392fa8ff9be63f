package topology

import (
	"net"
	"net/netip"
	"time"

	"github.com/vmnetd/vmnetd/impair"
)

// Lab is a lab as it is meant. Nothing in it refers to the file any more; the same file makes the same Lab.
type Lab struct {
	Name     string
	Networks []Network
	Nodes    []Node // in the file's order; those of a count one behind the other
}

// Network is a switch with any number of interfaces or, as a Wire, what joins exactly two.
type Network struct {
	Name string
	// Wire is a link between two nodes without a switch: everything that one end sends, the other gets.
	Wire bool
	// Uplink says that vmnetd is in it: gateway, DHCP, DNS, conversations with the world, forwards. Without, it is a
	// plain switch, and the lab itself gives addresses out. A Wire has none.
	Uplink bool
	// Prefix4 and Prefix6 are where addresses are from. One with an uplink has backend's defaults where they are not
	// valid; one without has then no addresses of that family but link-local ones.
	Prefix4, Prefix6 netip.Prefix
	MTU              int  // 0: the most that all its interfaces carry, or backend's default
	Isolate          bool // its nodes do not see each other

	// Those of an uplink only, in the words of the daemon's own file (package config).
	Gateway4, Gateway6 netip.Addr
	Domain             string
	Resolvers          []netip.AddrPort
	Policy             Policy
	Forwards           []string // as portforward reads them
	DNS                []string // as backend.ParseDNSRecord reads them
	Limits             map[string]string
	NoHostLoopback     bool
	StrictLeases       bool
	// Impair, if not nil, is what each interface suffers that has none of its own. That of a Wire has nothing for Down: a
	// frame suffers it once, as its sender's.
	Impair *impair.Settings
}

// Policy is what a network's nodes may reach.
type Policy struct {
	Preset string
	Allow  []string
	Rules  string // a whole document, as package policy reads it
}

// Kind is what a node is.
type Kind string

// Kinds of nodes.
const (
	KindNetns    Kind = "netns"    // network, mount and host name of its own, for commands (Linux)
	KindQEMU     Kind = "qemu"     // a virtual machine
	KindUML      Kind = "uml"      // User Mode Linux, a kernel that is a process
	KindExternal Kind = "external" // somebody else starts it, and plugs it in at sockets
)

// Node is one machine.
type Node struct {
	Name string // also its host name
	Base string // as the file has it: Name, or without its number if the file has a count
	Kind Kind

	Interfaces []Interface
	// Forwarding has it route between its interfaces (netns, and the small guest).
	Forwarding bool
	Routes     []Route

	// Command is what a netns node runs. It may run none: it is there for others' sake, or for 'lab exec'.
	Command []string
	Dir     string // where; the file's folder if empty
	Env     map[string]string
	// Restart starts Command again when it has ended.
	Restart bool

	// Of qemu: a kernel with its initrd, a disk, or neither, which is the small guest (package lab/guest).
	Kernel, Initrd, Append string
	Disk                   string
	DiskFormat             string // raw, qcow2; "": as qemu-img info says
	Overlay                bool   // what is written goes to a copy of the lab's own
	Memory                 int    // MiB; 0: 512, or 192 for the small guest
	CPUs                   int    // 0: 1
	Machine, Accel, CPU    string // "": what QEMU, and this machine, have
	QEMU                   string // the program; "": qemu-system-x86_64 or this machine's
	Args                   []string
	Agent                  bool   // a guest agent (QEMU's, or the small guest's) is expected
	User                   string // for 'lab ssh'; "": ssh's own
	CloudInit              *CloudInit

	// Of uml: the program ("" is linux.uml), beside Initrd, Append, Memory and Disk.
	UML string

	// Setup are shell lines that run in the node, by its agent, after it is up and before it is ready.
	Setup []string
	// After are nodes that are ready before this one is started.
	After []string
	// Wait is what makes it ready, beside its being up. All of it, in order.
	Wait []Condition
	// Timeout bounds the time from its start until it is ready. 0: a minute, five for a disk.
	Timeout time.Duration
}

// Interface is one of a node's, in one network.
type Interface struct {
	Name    string // eth0, eth1, … in order if the file does not say
	Network string
	MAC     net.HardwareAddr // from the lab's, the node's and its own name if the file does not say
	// Addrs are its fixed addresses with their prefixes' lengths: static leases in a network with an uplink, and else
	// what the lab sets (netns, small guest) or says by cloud-init. In a network without an uplink each has one of either
	// family that the network has a prefix of, whether the file says it or not.
	Addrs  []netip.Prefix
	Impair *impair.Settings // nil: the network's
	// Promiscuous gets every frame of the network and may send as anybody: a bridge, a router under test, a sensor.
	Promiscuous bool
	// Mirror gets a copy of every frame of the network and sends none.
	Mirror bool
	Door   string // of an external node: unix:PATH; "": a socket in the lab's own folder
}

// Route is a static one.
type Route struct {
	To  netip.Prefix // 0.0.0.0/0 and ::/0 are the default ones
	Via netip.Addr
}

// CloudInit is what a guest with cloud-init reads as its NoCloud data, over HTTP, from its network's side.
type CloudInit struct {
	UserData      string
	NetworkConfig string // "": made from the interfaces
	VendorData    string
	MetaData      map[string]string // beside instance-id and local-hostname
}

// Condition is one thing to wait for.
type Condition struct {
	Kind string // address, ping, tcp, udp, exec, log, agent, exit
	Arg  string // an address, HOST:PORT, a shell line, a regular expression; "" for address, agent and exit
}
