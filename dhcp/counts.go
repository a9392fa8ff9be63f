package dhcp

import (
	"sync/atomic"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

// MessageCount is how many messages of a type there were.
type MessageCount struct {
	V6    bool
	Sent  bool   // by the server; else by guests
	Type  string // in lower case, as RFC 2131 and RFC 8415 name it; bootp is one without (RFC 951), invalid any that is refused unread
	Count uint64
}

// Types of messages by their numbers; what stands under 0 is of neither list. Those without a name are not of that side.
var (
	from4 = [...]string{"bootp", dhcpv4.MessageTypeDiscover: "discover", dhcpv4.MessageTypeRequest: "request", dhcpv4.MessageTypeDecline: "decline",
		dhcpv4.MessageTypeRelease: "release", dhcpv4.MessageTypeInform: "inform", 9: "invalid"}
	to4   = [...]string{"bootp", dhcpv4.MessageTypeOffer: "offer", dhcpv4.MessageTypeAck: "ack", dhcpv4.MessageTypeNak: "nak", 9: ""}
	from6 = [...]string{"", dhcpv6.MessageTypeSolicit: "solicit", dhcpv6.MessageTypeRequest: "request", dhcpv6.MessageTypeConfirm: "confirm",
		dhcpv6.MessageTypeRenew: "renew", dhcpv6.MessageTypeRebind: "rebind", dhcpv6.MessageTypeRelease: "release", dhcpv6.MessageTypeDecline: "decline",
		dhcpv6.MessageTypeInformationRequest: "information-request", 12: "invalid"}
	to6 = [...]string{"", dhcpv6.MessageTypeAdvertise: "advertise", dhcpv6.MessageTypeReply: "reply", 12: ""}
)

// counts are by type, as above.
type counts struct {
	from4, to4 [len(from4)]atomic.Uint64
	from6, to6 [len(from6)]atomic.Uint64
}

// note counts a message of a type, or one whose type is none of that side's.
func note(list []atomic.Uint64, names []string, kind int) {
	if kind >= len(list) || names[kind] == "" {
		kind = len(list) - 1
	}
	list[kind].Add(1)
}

func (c *counts) heard4(req *request4, err error) {
	kind := len(from4)
	switch {
	case err == nil && req.bootp:
		kind = 0
	case err == nil && req.kind != 0:
		kind = int(req.kind)
	}
	note(c.from4[:], from4[:], kind)
}

func (c *counts) heard6(req *request6, err error) {
	kind := len(from6)
	if err == nil {
		kind = int(req.MessageType)
	}
	note(c.from6[:], from6[:], kind)
}

// Messages returns how many messages of each type there were. It takes no lock.
func (s *Server) Messages() (list []MessageCount) {
	add := func(v6, sent bool, names []string, n []atomic.Uint64) {
		for i, name := range names {
			if name != "" {
				list = append(list, MessageCount{v6, sent, name, n[i].Load()})
			}
		}
	}
	add(false, false, from4[:], s.counts.from4[:])
	add(false, true, to4[:], s.counts.to4[:])
	add(true, false, from6[:], s.counts.from6[:])
	add(true, true, to6[:], s.counts.to6[:])
	return list
}
