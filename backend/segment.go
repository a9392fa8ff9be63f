package backend

// Station 3, the segment: the switch between the ports. It learns which MAC and which address lives on which port,
// carries frames between guests and never waits for one: another port's queue takes a frame or drops it.
//
// All of it is under seg.mu. A MAC or address belongs to the port that showed it first, until that port goes; a lease
// outweighs that, and so does an IPv6 address made of one's MAC. A virtual router's MAC (VRRP) moves to who sends from it, and
// takes the addresses with it that were shown from it. In a network without an uplink all do (plain.go). A port keeps as many of
// each as its limits say, so spoofed ones fill their own port's share and evict nobody else's, and none that is leased.

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

// floodRate and floodBurst bound the frames a second that one guest can have copied to all others. 1000 is a hundred
// times what a busy LAN's ARP, NDP and mDNS come to.
const (
	floodRate  = 1000
	floodBurst = 2000
)

type segment struct {
	gen atomic.Uint64 // changes with neighbours, so that ports may remember an answer

	mu    sync.RWMutex
	ports []*port
	macs  map[mac]*port
	neigh map[netip.Addr]neighbour
	seen  map[*port]*shown
	gone  Traffic // of ports that have been removed
	moves bool    // who sends as a MAC or an address has it; set before any port is there

	// copies are the ports that get every frame (copies.go), nil while there is none. It changes under mu.
	copies atomic.Pointer[[]*port]

	waiters map[netip.Addr][]chan struct{} // who waits for an address to be shown
	onShown func(netip.Addr, mac)          // told of each address shown anew, under no lock
}

type neighbour struct {
	port   *port
	mac    mac
	leased bool // to the port, with that MAC
}

// shown is what a port has shown, oldest first.
type shown struct {
	macs  []mac
	addrs []netip.Addr
	most  [2]int    // of either, ever
	hits  [2]uint64 // how often one was forgotten for another
}

func (s *segment) init(onShown func(netip.Addr, mac)) {
	s.onShown = onShown
	s.macs = make(map[mac]*port)
	s.neigh = make(map[netip.Addr]neighbour)
	s.seen = make(map[*port]*shown)
	s.waiters = make(map[netip.Addr][]chan struct{})
}

func (s *segment) add(p *port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ports = append(s.ports, p)
	s.seen[p] = &shown{}
	s.changed()
}

// changed is called when there is a port more or less, under s.mu.
func (s *segment) changed() {
	s.gen.Add(1)
	var copies []*port
	for i, p := range s.ports {
		if p.role != ordinary {
			copies = append(copies, p)
		}
		if p.net.cfg.Wire {
			p.far.Store(nil)
			if len(s.ports) == 2 {
				p.far.Store(s.ports[1-i])
			}
		}
	}
	if copies == nil {
		s.copies.Store(nil)
	} else {
		s.copies.Store(&copies)
	}
}

func (s *segment) remove(p *port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.ports, p); i >= 0 {
		s.ports = slices.Delete(s.ports, i, i+1)
		s.gone.add(p)
	}
	if v := s.seen[p]; v != nil {
		for _, m := range v.macs {
			s.unlearn(p, m)
		}
		for _, a := range v.addrs {
			delete(s.neigh, a)
		}
	}
	delete(s.seen, p)
	p.far.Store(nil)
	s.changed()
}

// unlearn forgets where a MAC lives, if it lives on p: its first stays in p's list wherever it has moved.
func (s *segment) unlearn(p *port, m mac) {
	if s.macs[m] == p {
		delete(s.macs, m)
	}
}

// virtualByte is of all virtual routers' MACs, and of few others'.
const virtualByte = 0x5e

// isVirtual says whether a MAC is a virtual router's, which lives on whoever is master (RFC 9568 §7.3).
func (m mac) isVirtual() bool {
	return m[0] == 0 && m[1] == 0 && m[2] == virtualByte && m[3] == 0 && (m[4] == 1 || m[4] == 2)
}

// learnMAC says that m sends on p, and whether it may: not if it lives on another port and does not move.
func (s *segment) learnMAC(p *port, m mac) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.seen[p]
	if v == nil {
		return false
	}
	switch owner := s.macs[m]; {
	case owner == p:
		return true
	case owner == nil:
	case !s.moves && (!m.isVirtual() || owner.net.cfg.StrictLeases):
		return false
	default:
		if o := s.seen[owner]; o != nil {
			if i := slices.Index(o.macs, m); i > 0 {
				o.macs = slices.Delete(o.macs, i, i+1)
			}
		}
	}
	if slices.Contains(v.macs, m) { // its first, that had moved
		s.macs[m] = p
		s.gen.Add(1)
		return true
	}
	for len(v.macs) >= p.limits.Load().MACs {
		// The first is the guest's own and stays: the others are what lives behind it.
		v.hits[0]++
		s.unlearn(p, v.macs[1])
		v.macs = slices.Delete(v.macs, 1, 2)
		p.drop(flows.ReasonMACLimit)
	}
	s.macs[m] = p
	v.macs = append(v.macs, m)
	v.most[0] = max(v.most[0], len(v.macs))
	s.gen.Add(1)
	return true
}

// learnAddr says that a is at m on p, and whether it may be: not if another port has it.
func (s *segment) learnAddr(p *port, a netip.Addr, m mac) bool {
	s.mu.RLock()
	n, ok := s.neigh[a]
	s.mu.RUnlock()
	if ok && n.port == p && n.mac == m {
		return true
	}
	if !s.noteAddr(p, a, m, false) {
		return false
	}
	s.onShown(a, m)
	return true
}

func (s *segment) noteAddr(p *port, a netip.Addr, m mac, leased bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.seen[p]
	if v == nil {
		return false
	}
	n, ok := s.neigh[a]
	if ok && n.port != p {
		virtual := m.isVirtual() && m == n.mac && s.macs[m] == p && !n.leased
		if !s.moves && !virtual && (!madeOf(a, m) || s.macs[m] != p || madeOf(a, n.mac) || n.leased) {
			return false
		}
		s.take(a, n)
		n, ok = neighbour{}, false
	}
	if !ok {
		for len(v.addrs) >= p.limits.Load().Neighbours {
			i := slices.IndexFunc(v.addrs, func(b netip.Addr) bool { return !s.neigh[b].leased })
			if i < 0 {
				break
			}
			v.hits[1]++
			delete(s.neigh, v.addrs[i])
			v.addrs = slices.Delete(v.addrs, i, i+1)
		}
		v.addrs = append(v.addrs, a)
		v.most[1] = max(v.most[1], len(v.addrs))
	}
	s.neigh[a] = neighbour{p, m, leased || n.leased}
	s.gen.Add(1)
	for _, w := range s.waiters[a] {
		close(w)
	}
	delete(s.waiters, a)
	return true
}

// madeOf says whether a is an IPv6 address that a station makes of this MAC (RFC 4291 appendix A). It is that guest's by
// right: who knows a neighbour's MAC could else be there first and leave it without an address.
func madeOf(a netip.Addr, m mac) bool {
	if !a.Is6() {
		return false
	}
	b, own := a.As16(), linkLocal(m[:]).As16()
	return [8]byte(b[8:]) == [8]byte(own[8:])
}

// take takes a from whom has it, under s.mu.
func (s *segment) take(a netip.Addr, from neighbour) {
	if v := s.seen[from.port]; v != nil {
		v.addrs = slices.DeleteFunc(v.addrs, func(b netip.Addr) bool { return a == b })
	}
	delete(s.neigh, a)
	s.gen.Add(1)
}

// give makes a the address of m on the port with this id before it has said a word as that address, whoever else has
// shown it: a lease outweighs a claim.
func (s *segment) give(a netip.Addr, id string, m mac) {
	s.mu.Lock()
	i := slices.IndexFunc(s.ports, func(p *port) bool { return p.id == id })
	if i < 0 {
		s.mu.Unlock()
		return
	}
	p := s.ports[i]
	if n, ok := s.neigh[a]; ok && n.port != p {
		s.take(a, n)
	}
	s.mu.Unlock()
	s.noteAddr(p, a, m, true)
}

// forget takes an address from whom showed it: its lease was released.
func (s *segment) forget(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.neigh[a]; ok {
		v := s.seen[n.port]
		v.addrs = slices.DeleteFunc(v.addrs, func(b netip.Addr) bool { return a == b })
		delete(s.neigh, a)
		s.gen.Add(1)
	}
}

// macFor is the MAC of a on p's wire: as shown, else the guest's own.
func (s *segment) macFor(p *port, a netip.Addr) mac {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if n, ok := s.neigh[a]; ok && n.port == p {
		return n.mac
	}
	if v := s.seen[p]; v != nil && len(v.macs) > 0 {
		return v.macs[0]
	}
	return broadcastMAC // nothing was heard of it yet
}

// owner is who has a.
func (s *segment) owner(a netip.Addr) (neighbour, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n, ok := s.neigh[a]
	return n, ok
}

// await returns a channel that is closed when a is shown, and a function that stops the waiting.
func (s *segment) await(a netip.Addr) (<-chan struct{}, func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := make(chan struct{})
	if _, ok := s.neigh[a]; ok {
		close(w)
		return w, func() {}
	}
	s.waiters[a] = append(s.waiters[a], w)
	return w, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		rest := slices.DeleteFunc(s.waiters[a], func(x chan struct{}) bool { return x == w })
		if len(rest) == 0 {
			delete(s.waiters, a)
		} else {
			s.waiters[a] = rest
		}
	}
}

// shownBy returns the MACs and addresses of p, oldest first.
func (s *segment) shownBy(p *port) ([]mac, []netip.Addr) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v := s.seen[p]
	if v == nil {
		return nil, nil
	}
	return slices.Clone(v.macs), slices.Clone(v.addrs)
}

// mostOf is how many MACs and addresses p has shown at most, and how often some were forgotten.
func (s *segment) mostOf(p *port) (most [2]int, hits [2]uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if v := s.seen[p]; v != nil {
		return v.most, v.hits
	}
	return most, hits
}

// addrsOf returns the addresses that a MAC has shown.
func (s *segment) addrsOf(m mac) []netip.Addr {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []netip.Addr
	if v := s.seen[s.macs[m]]; v != nil {
		for _, a := range v.addrs {
			if s.neigh[a].mac == m {
				list = append(list, a)
			}
		}
	}
	return list
}

func (s *segment) all() []*port {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.ports)
}

// goes is where a MAC lives, and whether there is anybody else than one port.
func (s *segment) goes(dst mac) (to *port, others bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.macs[dst], len(s.ports) > 1
}

// free says whether a MAC lives on p or nowhere.
func (s *segment) free(p *port, m mac) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	owner := s.macs[m]
	return owner == nil || owner == p
}

// forward carries a frame from p to the port that has its destination, or to all others if nobody has.
func (s *segment) forward(p *port, b *link.Batch, f link.Span, dst mac) {
	s.mu.RLock()
	to := s.macs[dst]
	alone := len(s.ports) < 2
	s.mu.RUnlock()
	switch {
	case to == p || alone:
	case to != nil && to.role != ordinary: // it has its copy
	case to != nil:
		p.elsewhere++
		p.onward.add(p, to, f)
	default:
		s.flood(p, b, f)
	}
}

// flood carries a frame from p to all other ports, at a bounded rate.
func (s *segment) flood(p *port, b *link.Batch, f link.Span) {
	p.onward.send(b) // what came before goes before
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.ports) < 2 {
		return
	}
	if (!s.moves || len(s.ports) > 2) && !p.flooded.allow() {
		p.drop(flows.ReasonStorm)
		return
	}
	i := copied(b, f)
	for _, q := range s.ports {
		switch {
		case q == p, q.role != ordinary: // the latter has its copy
		case f.Len()-ethLen > q.carries:
			q.drop(flows.ReasonUnreachable)
		default:
			q.queue.push(item{raw: link.Frame{Head: append([]byte(nil), i.raw.Head...)}, size: i.size, other: true})
		}
	}
}

// copied is the frame at f for another port's queue.
func copied(b *link.Batch, f link.Span) item {
	head := make([]byte, link.Headroom, link.Headroom+max(f.Len(), minEthernet))
	head = b.AppendTo(head, f)
	if len(head) < link.Headroom+minEthernet {
		head = head[:link.Headroom+minEthernet]
	}
	return item{raw: link.Frame{Head: head}, size: len(head), other: true}
}
