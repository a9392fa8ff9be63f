package hello

import (
	"net/netip"
	"strings"
)

// nameOf makes a flows.Hello's name of what a client wrote; "" if it is none.
func nameOf(s string) string {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return "" // means nothing beyond the sender's link
		}
		return a.String()
	}
	s = strings.TrimSuffix(s, ".")
	if len(s) == 0 || len(s) > 253 { // RFC 1035 §2.3.4: 255 octets with lengths and the root
		return ""
	}
	label := 0
	for _, c := range []byte(s) {
		switch {
		case c == '.':
			if label == 0 {
				return ""
			}
			label = 0
			continue
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			// Underscores are in no host name (RFC 1123 §2.1) and in many that resolve. All else is an encoding that
			// resolvers and servers may read differently (RFC 5890 §2.3.2.1: A-labels are what is sent).
		default:
			return ""
		}
		if label++; label > 63 {
			return ""
		}
	}
	if label == 0 {
		return ""
	}
	return strings.ToLower(s)
}
