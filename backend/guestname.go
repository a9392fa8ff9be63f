package backend

import (
	"fmt"
	"net"

	"github.com/vmnetd/vmnetd/dhcp"
)

// GuestName is the name that a guest was given or, if none was, the host name of its lease; "" if it has none or has gone.
// It is cheaper than Guests.
func (n *Network) GuestName(id string) string {
	if len(*n.given.Load()) > 0 {
		if p := n.port(id); p != nil {
			if macs, _ := n.seg.shownBy(p); len(macs) > 0 {
				if name := n.givenName(macs[0]); name != "" {
					return name
				}
			}
		}
	}
	for _, l := range n.dhcp.ByGuest(id) {
		if l.Name != "" {
			return l.Name
		}
	}
	return ""
}

// givenNames are Config.GuestNames.
func (c *Config) givenNames() (map[mac]string, error) {
	names := map[mac]string{}
	for m, name := range c.GuestNames {
		hw, err := net.ParseMAC(m)
		if err != nil || len(hw) != 6 {
			return nil, fmt.Errorf("network %s: guest name %s for %q: want a MAC such as 52:54:00:12:34:56", c.Name, name, m)
		}
		names[macOf(hw)] = name
	}
	return names, nil
}

func (n *Network) givenName(m mac) string { return (*n.given.Load())[m] }

// nameGiven has the resolver know all that have a name, and no more those that had one.
func (n *Network) nameGiven(had map[mac]string) {
	for m := range had {
		n.name(dhcp.MAC(m))
	}
	for m := range *n.given.Load() {
		n.name(dhcp.MAC(m))
	}
}
