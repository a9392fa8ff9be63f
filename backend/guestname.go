package backend

// GuestName is the host name of a guest's lease, "" if it has none or has gone. It is cheaper than Guests.
func (n *Network) GuestName(id string) string {
	for _, l := range n.dhcp.ByGuest(id) {
		if l.Name != "" {
			return l.Name
		}
	}
	return ""
}
