package backend

import "github.com/vmnetd/vmnetd/dhcp"

// DHCPMessages are how many DHCP messages there were of each type, of both families and ways.
func (n *Network) DHCPMessages() []dhcp.MessageCount { return n.dhcp.Messages() }
