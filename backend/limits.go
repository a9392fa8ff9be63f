package backend

// The limits of a guest, wherever on its way they hold: flows.Limits is the one list of them, and from here they get to who
// keeps them. A guest has its own by the MAC that it shows first, so that they outlast its wire, or the network's.
//
// A guest chooses its MAC. Limits of its own that are tighter than the network's bind a guest that does not mind; what must
// hold for whoever plugs in is the network's.

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/vmnetd/vmnetd/flows"
)

// limitTable is who has which.
type limitTable struct {
	mu     sync.Mutex
	net    flows.Limits
	guests map[mac]flows.Limits
	wires  map[*port]flows.Limits // set for a guest that has shown no MAC yet
}

func (t *limitTable) init(c *Config) error {
	t.net, t.guests, t.wires = c.Limits, map[mac]flows.Limits{}, map[*port]flows.Limits{}
	errs := []error{t.net.Check()}
	for m, l := range c.GuestLimits {
		hw, err := net.ParseMAC(m)
		if err != nil || len(hw) != 6 {
			err = errors.New("want a MAC such as 52:54:00:12:34:56")
		} else {
			err = l.Check()
			t.guests[macOf(hw)] = l
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("limits of %q: %w", m, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("network %s: %w", c.Name, err)
	}
	return nil
}

// limitsOf is what is in force for a port that has shown this MAC first, or none yet, and what of it is its own.
func (t *limitTable) of(p *port, m mac, known bool) (force, own flows.Limits) {
	own = t.wires[p]
	if known {
		own = own.Under(t.guests[m])
	}
	force = own.Or(t.net)
	p.net.cfg.Memory.within(&force)
	return force, own
}

// limit has the port keep the limits that are in force for it.
func (p *port) limit() {
	macs, _ := p.net.seg.shownBy(p)
	var m mac
	if len(macs) > 0 {
		m = macs[0]
	}
	t := &p.net.limits
	t.mu.Lock()
	defer t.mu.Unlock()
	l, own := t.of(p, m, len(macs) > 0)
	leases := own.Leases
	if leases == 0 {
		leases = t.net.Leases // or DHCP's own, which knows the pool
	}
	p.setLimits(l)
	p.net.flows.SetGuest(p.id, &l)
	p.net.dns.SetGuest(p.id, l.DNS, l.DNSConns)
	p.net.dhcp.SetGuest(p.id, leases)
}

// unlimit forgets what is counted for a port that has ended.
func (p *port) unlimit() {
	t := &p.net.limits
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.wires, p)
	p.net.flows.Forget(p.id)
	p.net.dns.Forget(p.id)
	p.net.dhcp.Forget(p.id)
}

// setLimits has the port itself keep limits, in which nothing is zero.
func (p *port) setLimits(l flows.Limits) {
	p.limits.Store(&l)
	queue := int64(l.Queue)
	p.up.set(l.Up)
	p.down.set(l.Down)
	if rate := p.down.rate.Load(); rate > 0 {
		queue = min(queue, max(rate, pacedQueue)) // more would only be older when it comes
	}
	p.queue.limit.Store(queue)
	p.fragments.bound(l.Fragments)
	p.buffers.set(l.Buffers)
}

// LimitInfo is one limit as people and the API see it, and how far it is used.
type LimitInfo struct {
	Guest string     `json:"guest,omitempty"` // id; absent: of all guests together
	Name  string     `json:"name"`            //
	Value int        `json:"value,omitempty"` // absent: no bound
	Text  string     `json:"text"`            // the value as people write it: "8MiB"
	Unit  flows.Unit `json:"unit,omitempty"`  // absent: a number of things
	Own   bool       `json:"own,omitempty"`   // the guest's, not the network's
	Each  bool       `json:"each,omitempty"`  // the network's, of each guest that has none of its own; what is used is the guests'
	Now   int        `json:"now"`             // in use
	Most  int        `json:"most"`            // ever
	Hits  uint64     `json:"hits"`            // times that something was refused, dropped, ended or held back for it
	Why   string     `json:"why"`             // what it bounds, and its default's reason
}

// Limits returns the limits of a guest, by its id; or, if guest is empty, those for all guests together, and what each guest
// has that has none of its own.
func (n *Network) Limits(guest string) ([]LimitInfo, error) {
	list := []LimitInfo{}
	add := func(m flows.Limit, force, own *flows.Limits, u flows.Use) {
		i := LimitInfo{Guest: guest, Name: m.Name, Unit: m.Unit, Why: m.Why, Now: u.Now, Most: max(u.Most, u.Now), Hits: u.Hits}
		v := m.Of(force)
		if v < flows.Unlimited {
			i.Value = v
		}
		i.Text, i.Own = m.Format(v), own != nil && m.Of(own) > 0
		list = append(list, i)
	}
	if guest == "" {
		force := n.flows.Limits()
		total, dials := n.flows.TotalUse()
		for _, m := range flows.AllLimits() {
			if m.Network {
				add(m, &force, nil, map[string]flows.Use{"total": total, "total-dials": dials}[m.Name])
			}
		}
		list = append(list, n.memoryLimit()...)
		n.cfg.Memory.within(&force)
		for _, m := range flows.AllLimits() {
			if !m.Network {
				add(m, &force, nil, flows.Use{})
				list[len(list)-1].Each = true
			}
		}
		return list, nil
	}
	p := n.port(guest)
	if p == nil {
		return nil, fmt.Errorf("guest %q is not plugged in", guest)
	}
	macs, addrs := n.seg.shownBy(p)
	var m mac
	if len(macs) > 0 {
		m = macs[0]
	}
	n.limits.mu.Lock()
	force, own := n.limits.of(p, m, len(macs) > 0)
	n.limits.mu.Unlock()
	use, share := p.use(len(macs), len(addrs))
	for _, m := range flows.AllLimits() {
		if m.Network {
			continue
		}
		if m.Name == "leases" {
			force.Leases = share
		}
		add(m, &force, &own, use[m.Name])
	}
	return list, nil
}

// use is how far a port's guest uses each limit, by its name, and how many leases it may have.
func (p *port) use(macs, addrs int) (use map[string]flows.Use, leases int) {
	f := p.net.flows.Use(p.id)
	questions, conns := p.net.dns.Use(p.id)
	leased, share := p.net.dhcp.Use(p.id)
	most, hits := p.net.seg.mostOf(p)
	p.rates.mu.Lock()
	up, down, begun := p.rates.up, p.rates.down, p.rates.begun
	p.rates.mu.Unlock()
	up.Hits, down.Hits, begun.Hits = p.up.hits.Load(), p.down.hits.Load(), f.FlowRate.Hits
	return map[string]flows.Use{
		"flows": f.Flows, "dials": f.Dials, "udp": f.UDP, "pings": f.Pings, "flow-rate": begun,
		"buffers":    p.buffers.use(),
		"queue":      {Now: int(p.queue.bytes.Load()), Most: int(p.queue.most.Load()), Hits: p.drops[flows.ReasonQueueFull].Load()},
		"fragments":  p.fragments.use(),
		"macs":       {Now: macs, Most: most[0], Hits: hits[0]},
		"neighbours": {Now: addrs, Most: most[1], Hits: hits[1]},
		"dns":        flows.Use(questions), "dns-conns": flows.Use(conns), "leases": flows.Use(leased),
		"up": up, "down": down,
	}, share
}

// ChangeLimits sets limits by name, all or none: of a guest, by its id, or of the network if guest is empty. A value is as
// flows.Limits.Set takes it. A guest's stay with its MAC while the network lasts.
func (n *Network) ChangeLimits(guest string, set map[string]string) error {
	var p *port
	var m mac
	known := false
	if guest != "" {
		if p = n.port(guest); p == nil {
			return fmt.Errorf("guest %q is not plugged in", guest)
		}
		macs, _ := n.seg.shownBy(p)
		if known = len(macs) > 0; known {
			m = macs[0]
		}
	}
	t := &n.limits
	t.mu.Lock()
	l := t.net
	switch {
	case known:
		l = t.wires[p].Under(t.guests[m])
	case p != nil:
		l = t.wires[p]
	}
	for name, value := range set {
		one, err := flows.Named(name)
		if err == nil && one.Network && p != nil {
			err = fmt.Errorf("limit %s is for all guests together: it is the network's", name)
		}
		if err == nil {
			err = l.Set(name, value)
		}
		if err != nil {
			t.mu.Unlock()
			return err
		}
	}
	switch {
	case known:
		t.guests[m] = l
		delete(t.wires, p)
	case p != nil:
		t.wires[p] = l
	default:
		t.net = l
	}
	t.mu.Unlock()
	if p != nil {
		p.limit()
		return nil
	}
	n.flows.SetLimits(l)
	for _, p := range n.seg.all() {
		p.limit()
	}
	return nil
}

func (n *Network) port(id string) *port {
	for _, p := range n.seg.all() {
		if p.id == id {
			return p
		}
	}
	return nil
}

// rates are what is counted by the second.
type rates struct {
	mu              sync.Mutex
	up, down, begun flows.Use
	last            [3]uint64
}

// sample is called every second.
func (p *port) sample() {
	begun := p.net.flows.Use(p.id).Begun
	r := &p.rates
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, x := range []struct {
		u *flows.Use
		n uint64
	}{{&r.up, p.rxBytes.Load()}, {&r.down, p.txBytes.Load()}, {&r.begun, begun}} {
		x.u.Now = int(x.n - r.last[i])
		x.u.Most = max(x.u.Most, x.u.Now)
		r.last[i] = x.n
	}
}
