package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vmnetd/vmnetd/lab/guest"
	"github.com/vmnetd/vmnetd/lab/topology"
)

// networkAt is the network of an interface. A lab that was checked has it.
func networkAt(b *bench, i int) *topology.Network {
	if t := networkOf(b.lab, b.node.Interfaces[i].Network); t != nil {
		return t
	}
	return &topology.Network{}
}

// setAddrs are the fixed addresses that a machine gives itself. With an uplink IPv4 is a lease of DHCP's, the fixed one.
func setAddrs(f *topology.Interface, uplink bool) (list []netip.Prefix) {
	for _, a := range f.Addrs {
		if !uplink || !a.Addr().Is4() {
			list = append(list, a)
		}
	}
	return list
}

// mtuOf is an interface's, 0 if nobody said any.
func mtuOf(b *bench, i int) int { return networkAt(b, i).MTU }

// smallNode are a node's settings for the small guest. port is where its agent answers.
func smallNode(b *bench, port string) *guest.Node {
	n := &guest.Node{Name: b.node.Name, Forwarding: b.node.Forwarding, Hosts: b.hosts, Resolv: b.resolv, Port: port}
	for i := range b.node.Interfaces {
		f := &b.node.Interfaces[i]
		w := networkAt(b, i)
		up := w.Uplink && !f.Mirror // a mirror port is heard by nobody
		n.Interfaces = append(n.Interfaces, guest.Interface{Name: f.Name, MAC: f.MAC, DHCP: up, RA: up, MTU: w.MTU, Addrs: setAddrs(f, up)})
	}
	for _, r := range b.node.Routes {
		n.Routes = append(n.Routes, guest.Route{To: r.To, Via: r.Via})
	}
	return n
}

// dialUplink opens a conversation with a node by the first of its networks that has an uplink.
func dialUplink(ctx context.Context, b *bench, network, port string) (net.Conn, error) {
	var last error
	for i := range b.node.Interfaces {
		if networkAt(b, i).Uplink && !b.node.Interfaces[i].Mirror {
			c, err := b.dialNetwork(ctx, i, network, port)
			if err == nil {
				return c, nil
			}
			last = err
		}
	}
	if last != nil {
		return nil, last
	}
	return nil, errors.New("none of its networks has an uplink: only other nodes of its networks reach it")
}

// beginByAgent starts a node's command in the small guest, which outlives the request; what it says goes to the console.
func beginByAgent(ctx context.Context, b *bench, agent *qga) error {
	if agent == nil {
		return errors.New("no agent to start its command")
	}
	n := b.node
	script := `"$@" >/dev/console 2>&1 </dev/null &`
	if n.Restart {
		script = `(while :; do "$@"; sleep 1; done) >/dev/console 2>&1 </dev/null &`
	}
	var env []string
	for k, v := range n.Env {
		env = append(env, k+"="+v)
	}
	var said strings.Builder
	code, err := agent.exec(ctx, Command{Args: append([]string{"sh", "-c", script, "sh"}, n.Command...), Env: env, Stderr: &said})
	if err == nil && code != 0 {
		err = fmt.Errorf("its command was not started: exit status %d: %s", code, printable(said.String()))
	}
	return err
}
