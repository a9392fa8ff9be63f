package flows

import "fmt"

// Reason says why something was dropped, refused or ended. The list is closed: logs, API and metrics use these names
// and no others.
type Reason uint8

const (
	ReasonNone Reason = iota

	// Refused at the door.
	ReasonPolicy       // a policy's rule says no
	ReasonHostLoopback // the host address, and --no-host-loopback is set
	ReasonDoor         // where guests plug in: a guest may not be two
	ReasonRoute        // outside the network's routes
	ReasonLinkLocal    // 169.254.0.0/16 or fe80::/10: cloud metadata lives there
	ReasonMartian      // an address that is never a destination: loopback, unspecified, broadcast, multicast, IPv4-mapped
	ReasonOnLink       // an address of the guests' own network that nobody has
	ReasonFlowLimit    // Limits.Flows or Limits.Total
	ReasonNoGuest      // a forward to a guest that is not there
	ReasonName         // a name that the policy does not let the guest resolve
	ReasonRebinding    // a public name's address that is private (DNS rebinding)
	ReasonHello        // the first bytes name somebody else than the policy let in, or nobody
	ReasonUnanswered   // the policy asked somebody, and no answer came in time
	ReasonFlowRate     // more new conversations a second than Limits allow

	// How a conversation ended.
	ReasonClosed      // both sides finished
	ReasonReset       // one side reset it
	ReasonRefused     // the far side refused it
	ReasonUnreachable // no route, or an ICMP unreachable
	ReasonTimeout     // the far side did not answer in time
	ReasonIdle        // nothing moved for longer than its protocol's timeout
	ReasonEvicted     // the oldest made room for a new one: Limits.Dials or Limits.UDP
	ReasonExhausted   // the host is out of descriptors or ports
	ReasonMemory      // the process is at its memory target, and this guest holds most
	ReasonGuestGone   // the guest's wire ended
	ReasonShutdown    // the network was closed

	// Frames and packets.
	ReasonQueueFull   // the guest does not read: its queue is full
	ReasonMalformed   // too short, too long or contradicting itself
	ReasonSpoofed     // as the gateway, as another guest, or with strict leases as anybody that it was not made
	ReasonIsolated    // to another guest, and guests are kept from one another
	ReasonMACLimit    // more source MACs on one wire than are kept
	ReasonUnsupported // a protocol that is not carried
	ReasonRateLimit   // too many of a kind at once: pings, DNS queries, DHCP requests
	ReasonStorm       // broadcast and multicast beyond the port's rate
	ReasonByteRate    // beyond the guest's bytes a second
	ReasonImpaired    // lost on a line that is bad on purpose

	numReasons
)

var reasonNames = [numReasons]string{
	ReasonNone:         "none",
	ReasonPolicy:       "policy",
	ReasonHostLoopback: "host-loopback",
	ReasonDoor:         "door",
	ReasonRoute:        "outside-routes",
	ReasonLinkLocal:    "link-local",
	ReasonMartian:      "martian",
	ReasonOnLink:       "on-link",
	ReasonFlowLimit:    "flow-limit",
	ReasonNoGuest:      "no-guest",
	ReasonName:         "name",
	ReasonRebinding:    "rebinding",
	ReasonHello:        "other-name",
	ReasonUnanswered:   "unanswered",
	ReasonFlowRate:     "flow-rate",
	ReasonClosed:       "closed",
	ReasonReset:        "reset",
	ReasonRefused:      "refused",
	ReasonUnreachable:  "unreachable",
	ReasonTimeout:      "timeout",
	ReasonIdle:         "idle",
	ReasonEvicted:      "evicted",
	ReasonExhausted:    "exhausted",
	ReasonMemory:       "memory",
	ReasonGuestGone:    "guest-gone",
	ReasonShutdown:     "shutdown",
	ReasonQueueFull:    "queue-full",
	ReasonMalformed:    "malformed",
	ReasonSpoofed:      "spoofed",
	ReasonIsolated:     "isolated",
	ReasonMACLimit:     "mac-limit",
	ReasonUnsupported:  "unsupported",
	ReasonRateLimit:    "rate-limit",
	ReasonStorm:        "storm",
	ReasonByteRate:     "byte-rate",
	ReasonImpaired:     "impaired",
}

// NumReasons is how many reasons there are, for arrays indexed by Reason.
const NumReasons = int(numReasons)

func (r Reason) String() string {
	if r < numReasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}

// Refusal says whether somebody who decides said no, rather than that a conversation ended or could not be had.
func (r Reason) Refusal() bool { return r >= ReasonPolicy && r <= ReasonFlowRate }

// MarshalText makes a Reason its name in JSON.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is MarshalText's inverse.
func (r *Reason) UnmarshalText(b []byte) error {
	for i, name := range reasonNames {
		if name == string(b) {
			*r = Reason(i)
			return nil
		}
	}
	return fmt.Errorf("reason %.40q: not one of those there are", b)
}
