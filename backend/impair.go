package backend

// Impairment: each wire stands in a link.Impaired, outside of its capture, which costs nothing until something is set. Here
// is who has which settings: a guest's own by the MAC that it shows first, or by the name that it leases under, so that
// they outlast its wire, else the network's.

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/impair"
)

// impairTable is who has which. A guest makes no entry.
type impairTable struct {
	mu    sync.Mutex
	net   *impair.Settings
	wires map[*port]*impair.Settings // of guests that have shown no MAC yet
	macs  map[mac]*impair.Settings
	names map[string]*impair.Settings
	force map[*port]*impair.Settings // what was put in force last

	tally atomic.Pointer[impair.Tally] // of frames behind the lines, if anybody asked for it
}

func (t *impairTable) init(c *Config) error {
	t.net, t.wires, t.force = nil, map[*port]*impair.Settings{}, map[*port]*impair.Settings{}
	t.macs, t.names = map[mac]*impair.Settings{}, map[string]*impair.Settings{}
	if c.Impair != nil {
		if err := c.Impair.Check(); err != nil {
			return fmt.Errorf("network %s: impair: %w", c.Name, err)
		}
		s := *c.Impair
		t.net = &s
	}
	for who, s := range c.GuestImpair {
		if err := s.Check(); err != nil {
			return fmt.Errorf("network %s: impair %q: %w", c.Name, who, err)
		}
		if hw, err := net.ParseMAC(who); err == nil && len(hw) == 6 {
			t.macs[macOf(hw)] = &s
		} else {
			t.names[strings.ToLower(who)] = &s
		}
	}
	return nil
}

// of is what a port is to have, under t.mu.
func (t *impairTable) of(p *port) *impair.Settings {
	if s := t.wires[p]; s != nil {
		return s
	}
	if len(t.macs)+len(t.names) > 0 {
		macs, _ := p.net.seg.shownBy(p)
		if len(macs) > 0 {
			if s := t.macs[macs[0]]; s != nil {
				return s
			}
		}
		if name := p.leasedAs(); name != "" {
			if s := t.names[name]; s != nil {
				return s
			}
		}
	}
	return t.net
}

// leasedAs is the name that the guest has by its lease, in lower case.
func (p *port) leasedAs() string {
	if p.net.dhcp == nil {
		return ""
	}
	if macs, _ := p.net.seg.shownBy(p); len(macs) > 0 {
		if name := p.net.givenName(macs[0]); name != "" {
			return strings.ToLower(name)
		}
	}
	for _, l := range p.net.dhcp.ByGuest(p.id) {
		if l.Name != "" {
			return strings.ToLower(l.Name)
		}
	}
	return ""
}

// impair puts in force what the port is to have. It is called when something of that may have changed: settings, or what
// is known of the guest. What is in force already is left alone, so that its frames are not counted anew.
func (p *port) impair() {
	t := &p.net.impairs
	t.mu.Lock()
	defer t.mu.Unlock()
	t.apply(p)
}

func (t *impairTable) apply(p *port) {
	s := t.of(p)
	if s == t.force[p] || p.ctx.Err() != nil { // the latter: unimpair has been, or will be soon
		return
	}
	if err := p.bad.Set(s); err != nil { // they were checked before
		p.log.Warn("a guest is not impaired", "error", err)
		return
	}
	t.force[p] = s
}

// impairs has the port's own settings, of before it is known whose it is.
func (p *port) impairs(s *impair.Settings) {
	if s == nil {
		return
	}
	own := *s
	t := &p.net.impairs
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wires[p] = &own
}

// unimpair forgets a port that has ended.
func (p *port) unimpair() {
	t := &p.net.impairs
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.wires, p)
	delete(t.force, p)
}

// impairedDrop counts what a line has dropped.
func (p *port) impairedDrop(frames uint64) {
	p.drops[flows.ReasonImpaired].Add(frames)
	for ; frames > 0; frames-- {
		p.net.flows.Count(flows.ReasonImpaired)
	}
}

// leaseImpairs looks again at who has just leased: it may have settings by its name.
func (n *Network) leaseImpairs(guest string) {
	n.impairs.mu.Lock()
	any := len(n.impairs.names) > 0
	n.impairs.mu.Unlock()
	if !any {
		return
	}
	if p := n.port(guest); p != nil {
		p.impair()
	}
}

// Impair plays a bad line to a guest, by its id, from now on; what waits and is under way stays so. nil has it go by the
// network's settings again, and settings that do nothing by none. They stay with the guest's MAC, and its name if it has
// one, while the network lasts. An empty guest means the network's, for all guests that have none of their own.
func (n *Network) Impair(guest string, s *impair.Settings) error {
	if s != nil {
		if err := s.Check(); err != nil {
			return err
		}
		own := *s
		s = &own
	}
	t := &n.impairs
	if guest == "" {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.net = s
		for _, p := range n.seg.all() {
			t.apply(p)
		}
		return nil
	}
	p := n.port(guest)
	if p == nil {
		return fmt.Errorf("guest %q is not plugged in", guest)
	}
	macs, _ := n.seg.shownBy(p)
	name := p.leasedAs()
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.ctx.Err() != nil { // an entry would stay for ever
		return fmt.Errorf("guest %q is not plugged in any more", guest)
	}
	if s != nil {
		if err := p.bad.Set(s); err != nil {
			return err
		}
		*s = p.bad.Settings() // with the seed, for when it comes again
		t.force[p] = s
	}
	delete(t.wires, p)
	switch {
	case s == nil:
		if len(macs) > 0 {
			delete(t.macs, macs[0])
		}
		delete(t.names, name)
		t.apply(p)
	case len(macs) > 0:
		t.macs[macs[0]] = s
		if name != "" {
			t.names[name] = s
		}
	default:
		t.wires[p] = s
	}
	return nil
}

// ImpairInfo is a guest's impairment at one moment.
type ImpairInfo struct {
	Guest    string          `json:"guest"`
	Name     string          `json:"name,omitempty"`
	MAC      string          `json:"mac,omitempty"`
	Own      bool            `json:"own,omitempty"` // the guest's settings, not the network's
	Settings impair.Settings `json:"settings"`
	// Up and Down are what became of frames: each flow's, and of what no flow has last. Empty before anything was set.
	link.ImpairStats
}

// Impairment returns a guest's, by its id.
func (n *Network) Impairment(guest string) (ImpairInfo, error) {
	p := n.port(guest)
	if p == nil {
		return ImpairInfo{}, fmt.Errorf("guest %q is not plugged in", guest)
	}
	g := p.info()
	t := &n.impairs
	t.mu.Lock()
	own := t.force[p] != nil && t.force[p] != t.net
	t.mu.Unlock()
	return ImpairInfo{Guest: g.ID, Name: g.Name, MAC: g.MAC, Own: own, Settings: p.bad.Settings(), ImpairStats: p.bad.Stats()}, nil
}

// Tally counts what all guests send and get from the first call on, by conversation: what has passed their bad lines, as
// it leaves them.
func (n *Network) Tally() *impair.Tally {
	if n.impairs.tally.Load() == nil {
		n.impairs.tally.CompareAndSwap(nil, new(impair.Tally))
	}
	return n.impairs.tally.Load()
}

// ImpairedAll returns the network's settings, of all guests that have none of their own.
func (n *Network) ImpairedAll() impair.Settings {
	n.impairs.mu.Lock()
	defer n.impairs.mu.Unlock()
	if n.impairs.net == nil {
		return impair.Settings{}
	}
	return *n.impairs.net
}
