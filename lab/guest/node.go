package guest

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Node are one machine's settings.
type Node struct {
	Name       string
	Interfaces []Interface
	Forwarding bool
	Routes     []Route
	Hosts      string // the text of /etc/hosts
	Resolv     string // the text of /etc/resolv.conf; "": what DHCP says
	// Port is the agent's: a character device; "" is QEMU's virtio port.
	Port string
	// Trial has it switch itself off once it has booted, saying so.
	Trial bool
}

// Interface is one of a machine's. Drivers are not asked for their names: it is found by its MAC.
type Interface struct {
	Name  string
	MAC   net.HardwareAddr
	DHCP  bool           // IPv4 by DHCP
	RA    bool           // IPv6 by router advertisement, though it may route itself
	Addrs []netip.Prefix // set, whatever else it gets
	MTU   int            // 0: the driver's, or DHCP's
}

// Route is a static one.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// TrialSays is what a machine under Trial says on its console.
const TrialSays = "trial: up"

// write puts the files of one machine into an archive.
func (n *Node) write(a *Archive) {
	hosts := n.Hosts
	if hosts == "" {
		hosts = fmt.Sprintf("127.0.0.1 localhost %[1]s\n::1 localhost %[1]s\n", n.Name)
	}
	a.File("etc/hostname", []byte(n.Name+"\n"))
	a.File("etc/hosts", []byte(hosts))
	if n.Resolv != "" {
		a.File("etc/resolv.conf", []byte(n.Resolv))
	}
	a.File("etc/node", []byte(n.script()))
	a.File("etc/routes", []byte(n.routes()))
}

// script calls init's functions. Names and addresses are quoted: they are from a file that somebody wrote.
func (n *Node) script() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("hostname %s", Quote(n.Name))
	if n.Trial {
		line("trial=yes")
	}
	if n.Forwarding {
		line("set_sys net/ipv4/ip_forward 1")
		line("set_sys net/ipv6/conf/all/forwarding 1")
	}
	for i := range n.Interfaces {
		line("rename %s %s %s", n.Interfaces[i].MAC, Quote(n.Interfaces[i].Name), fmt.Sprintf("old%d", i))
	}
	agent := ""
	for i := range n.Interfaces {
		f := &n.Interfaces[i]
		name := Quote(f.Name)
		line("if [ -e /sys/class/net/%s ]; then", name)
		conf := "net/ipv6/conf/" + name
		line("set_sys %s/router_solicitation_delay 0", conf)
		if f.RA {
			line("set_sys %s/accept_ra 2", conf) // 2: also if it routes
		} else {
			// The lab has given each address once: nobody has to wait for the question who has it, too.
			line("set_sys %s/accept_dad 0", conf)
		}
		if f.MTU > 0 {
			line("ip link set %s mtu %d", name, f.MTU)
		}
		line("ip link set %s up", name)
		for _, p := range f.Addrs {
			if p.Addr().Is4() {
				line("ip -4 addr add %s broadcast + dev %s", p, name)
			} else {
				line("ip -6 addr add %s dev %s", p, name)
			}
		}
		if f.DHCP {
			line("dhcp %s %d %s", name, 100+i, Quote(n.Name)) // the first of several is the way out
			agent += " /run/lease." + f.Name                  // no space is in a name of an interface
		}
		line("fi")
	}
	if len(n.Routes) > 0 {
		line("routes")
	}
	port := ""
	if n.Port != "" {
		port = "-port " + n.Port
	}
	line("agent=%s", Quote(port+agent))
	return b.String()
}

// routes sets them all, and fails if one could not be set.
func (n *Node) routes() string {
	var b strings.Builder
	b.WriteString("r=0\n")
	for _, r := range n.Routes {
		family := "-6"
		if r.To.Addr().Is4() {
			family = "-4"
		}
		fmt.Fprintf(&b, "ip %s route replace %s via %s || r=1\n", family, r.To, r.Via)
	}
	b.WriteString("exit $r\n")
	return b.String()
}

// Quote makes one word of s for a shell.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
