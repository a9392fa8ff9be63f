package backend

// How a guest is plugged in: Serve's and ServePort's port.

import (
	"context"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/impair"
)

// PortConfig is what a port is, beside who is plugged in there. The zero PortConfig is Serve's.
type PortConfig struct {
	// Name says how the guest is attached, for people.
	Name string
	// Promiscuous has the port get a copy of every frame of the network, those between others and the gateway as well, and
	// lets it send from any MAC: a bridge, a sensor, a firewall under test.
	Promiscuous bool
	// Mirror has the port get the same copies. What it sends goes nowhere.
	Mirror bool
	// Impair, if not nil, plays a bad line to the guest from its first frame on, in place of what the network's settings
	// say of it. Network.Impair changes it by the guest's id.
	Impair *impair.Settings
	// Plugged, if not nil, is told the guest's id before its first frame is read.
	Plugged func(id string)
}

// Serve is ServePort of an ordinary port. name says how the guest is attached, for people.
func (n *Network) Serve(ctx context.Context, l link.Link, name string) error {
	return n.ServePort(ctx, l, PortConfig{Name: name})
}
