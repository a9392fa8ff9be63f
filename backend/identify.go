package backend

// What a policy of rules has to know of its network.

import "github.com/vmnetd/vmnetd/flows"

// DefaultPolicy is the policy in force where none was chosen. One of a program's own may build on it.
func (n *Network) DefaultPolicy() flows.Default { return *n.cfg.defaultPolicy(n.linkLocal) }

// IsLocalName says whether a name, in lower case without a final dot, is answered here rather than by the host's resolvers.
func (n *Network) IsLocalName(name string) bool { return n.dns.Local(name) }

// Identify is a guest's first MAC and the name that it leased under; each is empty where it has none yet, or has gone.
func (n *Network) Identify(guest string) (mac, name string) {
	for _, p := range n.seg.all() {
		if p.id != guest {
			continue
		}
		if macs, _ := n.seg.shownBy(p); len(macs) > 0 {
			mac = macs[0].String()
		}
		break
	}
	return mac, n.GuestName(guest)
}

// forget tells a policy that keeps something of guests that one has gone.
func (n *Network) forget(guest string) {
	p := n.flows.Policy()
	if c, ok := p.(interface{ chosen() flows.Policy }); ok {
		p = c.chosen()
	}
	if p, ok := p.(interface{ Forget(guest string) }); ok {
		p.Forget(guest)
	}
}
