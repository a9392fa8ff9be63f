package backend

// What the host lacks for a while, said in the status: no way to the world, no descriptors or ports left. Found by looking,
// every udpSweep; conversations notice by themselves, each for its own part, and work again when the host does.

import (
	"errors"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/flows"
)

// health is tend's goroutine's own.
type health struct {
	had4, had6 bool // a route to the world, once
	exhausted  uint64
	dns        string // its problem
}

const (
	noRoute     = "the host's network is gone"
	noResources = "conversations fail"
)

var (
	errNoRoute4  = errors.New("no IPv4 route to the world; guests' new conversations get ICMP's unreachable")
	errNoRoute6  = errors.New("no IPv6 route to the world; guests are told that there is no IPv6 router")
	errNoRoutes  = errors.New("no route to the world, of either family; guests' new conversations get ICMP's unreachable")
	errExhausted = errors.New("the host is out of descriptors, ports or buffers (ulimit -n, net.ipv4.ip_local_port_range)")
)

func (n *Network) look(h *health) {
	if r, ok := n.cfg.Egress.(egress.Router); ok {
		h.routes(n, r.HasRoute4(), r.HasRoute6())
	}
	now := n.flows.Counts()[flows.ReasonExhausted.String()]
	if now > h.exhausted {
		n.complain(noResources, errExhausted)
	} else {
		n.recovered(noResources)
	}
	h.exhausted = now
	// The resolver's own log has it, and the status asks it itself.
	was, is := h.dns, n.dns.Status().Problem
	switch {
	case is != "" && was == "":
		n.note(EventWarning, "", "dns", "%s", is)
	case is == "" && was != "":
		n.note(EventRecovered, "", "dns", "the host's resolvers answer again")
	}
	h.dns = is
}

// routes complains of what was there and is not: many a host never had IPv6.
func (h *health) routes(n *Network, r4, r6 bool) {
	h.had4, h.had6 = h.had4 || r4, h.had6 || r6
	no4, no6 := h.had4 && !r4, h.had6 && !r6
	switch {
	case no4 && (no6 || !h.had6):
		n.complain(noRoute, errNoRoutes)
	case no4:
		n.complain(noRoute, errNoRoute4)
	case no6:
		n.complain(noRoute, errNoRoute6)
	default:
		n.recovered(noRoute)
	}
}
