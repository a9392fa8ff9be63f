package backend

// Between the resolver and the policy: whether a guest may ask for a name, and which addresses it gets for it.

import (
	"net/netip"
	"time"

	"github.com/vmnetd/vmnetd/dns"
	"github.com/vmnetd/vmnetd/flows"
)

// chosen is the policy that somebody chose, behind what closes doors whatever it says.
func (c closedDoors) chosen() flows.Policy { return c.Policy }

// names returns who has a say in names at this moment: the network's policy, if it wants one.
func (n *Network) names() dns.Names {
	p := n.flows.Policy()
	if c, ok := p.(interface{ chosen() flows.Policy }); ok {
		p = c.chosen()
	}
	if p, ok := p.(flows.NamePolicy); ok {
		return policyNames{n, p}
	}
	return nil
}

// policyNames counts what a policy says of names, by guest.
type policyNames struct {
	n *Network
	p flows.NamePolicy
}

// Judge implements dns.Names.
func (w policyNames) Judge(guest, name string, qtype uint16) dns.Ruling {
	v := w.p.JudgeName(guest, name, qtype)
	switch {
	case v.Allow:
		return dns.Allow
	case v.Reason == flows.ReasonNone:
		v.Reason = flows.ReasonName
	}
	w.n.dropFor(guest, v.Reason)
	if v.Reject {
		return dns.Refuse
	}
	return dns.Missing
}

// Answered implements dns.Names.
func (w policyNames) Answered(guest, name string, addrs []netip.Addr, ttl time.Duration, local bool) []netip.Addr {
	may := w.p.Answered(guest, name, addrs, ttl, local)
	if len(may) < len(addrs) {
		w.n.dropFor(guest, flows.ReasonRebinding)
	}
	return may
}

// dropFor counts what a guest did not get, which may have gone meanwhile.
func (n *Network) dropFor(guest string, r flows.Reason) {
	for _, p := range n.seg.all() {
		if p.id == guest {
			p.drop(r)
			return
		}
	}
	n.flows.Count(r)
}
