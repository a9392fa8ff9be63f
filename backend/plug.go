package backend

// How a guest is plugged in: Serve's and ServePort's port.

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/impair"
)

// PortConfig is what a port is, beside who is plugged in there. The zero PortConfig is Serve's.
type PortConfig struct {
	// Name says how the guest is attached, for people.
	Name string
	// Promiscuous has the port get a copy of every frame of the network, once: of what others send one another, refused or
	// not, and of both ways between them and the gateway. It may send from any MAC and any address but the gateway's, and
	// what no other guest may, as router advertisements: a bridge, a sensor, a router or a firewall under test. Guests that
	// are kept apart (Config.Isolate) reach it and are reached by it. A MAC that another guest has stays that guest's.
	Promiscuous bool
	// Mirror has the port get the same copies. What it sends goes nowhere, and is counted as isolated.
	Mirror bool
	// Impair, if not nil, plays a bad line to the guest from its first frame on, in place of what the network's settings
	// say of it. Network.Impair changes it by the guest's id.
	Impair *impair.Settings
	// Plugged, if not nil, is told the guest's id before its first frame is read.
	Plugged func(id string)
}

// role is what a port gets and may send.
type role uint8

const (
	ordinary role = iota
	promiscuous
	mirror
)

func (r role) String() string { return [...]string{"", "promiscuous", "mirror"}[r] }

// course is the way of the frames that a port's guest sends.
type course uint8

const (
	byGateway course = iota // gateway.go
	asAnybody               // the same, for a promiscuous one
	bySwitch                // plain.go
	byWire
	nowhere // a mirror's
)

func (r role) course(c *Config) course {
	switch {
	case r == mirror:
		return nowhere
	case c.Wire:
		return byWire
	case c.NoUplink:
		return bySwitch
	case r == promiscuous:
		return asAnybody
	}
	return byGateway
}

// check refuses what contradicts itself, or the network.
func (c *PortConfig) check(n *Config) (role, error) {
	if c.Impair != nil {
		if err := c.Impair.Check(); err != nil {
			return 0, fmt.Errorf("network %s: port %s: impair: %w", n.Name, c.Name, err)
		}
	}
	r := ordinary
	switch {
	case c.Promiscuous && c.Mirror:
		return 0, fmt.Errorf("network %s: port %s: promiscuous and a mirror: a mirror sends nothing, so leave one out", n.Name, c.Name)
	case c.Promiscuous:
		r = promiscuous
	case c.Mirror:
		r = mirror
	}
	if r != ordinary && n.Wire {
		return 0, fmt.Errorf("network %s: port %s: promiscuous and mirror are a switch's, and this is a wire: each end gets everything anyway", n.Name, c.Name)
	}
	return r, nil
}

// ErrWireFull is what a third guest at a wire gets.
var ErrWireFull = errors.New("both ends of the wire are taken")

// Serve is ServePort of an ordinary port. name says how the guest is attached, for people.
func (n *Network) Serve(ctx context.Context, l link.Link, name string) error {
	return n.ServePort(ctx, l, PortConfig{Name: name})
}

// takeEnd takes one of a wire's two ends until free is called; a switch has any number.
func (n *Network) takeEnd() (free func(), err error) {
	if !n.cfg.Wire {
		return func() {}, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ends == 2 {
		var who []string
		for _, p := range n.seg.all() {
			who = append(who, p.name)
		}
		return nil, fmt.Errorf("network %s: %w: %q are plugged in; a switch (a network that is no wire) has room for more", n.cfg.Name, ErrWireFull, who)
	}
	n.ends++
	return func() { n.mu.Lock(); n.ends--; n.mu.Unlock() }, nil
}
