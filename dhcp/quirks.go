package dhcp

import (
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// Clients that do not do what the RFCs say, and what is done for them. Two more live where they act: a
// message without option 53 is a BOOTP client's (bootp), and a client that puts option 54 or 50 into a
// renewal has its ciaddr believed all the same (request). A requested address of 0.0.0.0 is none (addr4).

// endOption lets a message do without option 255. The codec insists on it; small boot loaders forget it.
// One more after the first is never read.
func endOption(payload []byte) []byte {
	return append(slices.Clip(payload), dhcpv4.OptionEnd.Code())
}

// hardware checks a message's hardware address against the frame's source. They differ when a relay or a
// bridge rewrote frames, which no client of a virtual network needs, or when one MAC asks for the leases of
// many. A client that leaves the address out (hlen 0, as RFC 4390 has it for other media) is known by its frame.
func hardware(m *dhcpv4.DHCPv4, mac MAC) error {
	if !mac.unicast() {
		return refuse(Forged, "frame from %v, want one interface's address", mac)
	}
	if len(m.ClientHWAddr) == 0 {
		return nil
	}
	// 6 is IEEE 802 (RFC 1700): some token-ring age stacks say that of Ethernet.
	if m.HWType != iana.HWTypeEthernet && m.HWType != iana.HWTypeIEEE802 {
		return refuse(Malformed, "hardware type %d, want 1", uint16(m.HWType))
	}
	if len(m.ClientHWAddr) != len(mac) {
		return refuse(Malformed, "hardware address of %d bytes, want 6", len(m.ClientHWAddr))
	}
	if MAC(m.ClientHWAddr) != mac {
		return refuse(Forged, "hardware address %v in a frame from %v", m.ClientHWAddr, mac)
	}
	return nil
}

// identifier is option 61, "" for a client that is known by its MAC: one that sends none, one that sends
// its MAC in the form of RFC 2132 section 9.14 (udhcpc, Windows), which says no more than none, and one that
// sends fewer than the two bytes that the option must have.
func identifier(m *dhcpv4.DHCPv4) (string, error) {
	id := m.Options.Get(dhcpv4.OptionClientIdentifier)
	if len(id) > 255 {
		return "", refuse(Malformed, "client identifier of %d bytes, want at most 255", len(id))
	}
	if len(id) < 2 || id[0] == byte(iana.HWTypeEthernet) && string(id[1:]) == string(m.ClientHWAddr) {
		return "", nil
	}
	return string(id), nil
}

// hostName4 is what a client calls itself. RFC 4702 section 3.1 lets option 81 stand before option 12;
// Windows sends both, the name of 81 in ASCII although that form is deprecated, so both forms are read.
func hostName4(m *dhcpv4.DHCPv4) string {
	if b := m.Options.Get(dhcpv4.OptionFQDN); len(b) > 3 {
		name := b[3:] // flags, two result codes
		if b[0]&0x04 != 0 {
			name = firstLabel(name)
		}
		if l := Label(string(name)); l != "" {
			return l
		}
	}
	return Label(string(m.Options.Get(dhcpv4.OptionHostName)))
}

// firstLabel is the first label of a name in DNS form, which may be cut short (RFC 4702 section 2.3.1).
func firstLabel(b []byte) []byte {
	if len(b) == 0 || b[0] > 63 || int(b[0]) >= len(b) {
		return nil
	}
	return b[1 : 1+int(b[0])]
}
