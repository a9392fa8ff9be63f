package flows

import (
	"net/netip"
	"time"
)

// Verdict is what a Policy says of a Query.
type Verdict struct {
	Allow  bool
	Reject bool   // if not allowed: answer at once (ICMP prohibited) rather than stay silent
	Reset  bool   // if rejected: TCP is answered by a reset, which all systems take at once, and which does not say why
	Reason Reason // if not allowed; ReasonNone is ReasonPolicy
	Rule   string // which rule said so, for people

	// Inspect, if the conversation is allowed, has the last word once the guest's first bytes are there: whom they name
	// must be whom the address was opened for. Until then nothing of the guest's leaves. It must not wait, and what it
	// refuses is ended. It is called once for each conversation (a guest may begin several QUIC connections with one
	// peer from one port; they are several), and again when a change of policy has running ones judged again.
	// Conversations that the host opens, and those with the program itself, are not inspected.
	Inspect func(Hello) Verdict
	// Pending, if not nil, says that somebody is being asked. The verdict comes there, once, and the conversation is
	// held until then, or given up before: the channel has room for it. The rest of this Verdict says nothing but Rule.
	Pending <-chan Verdict
}

// Refused is v as a verdict that lets nobody in, with a reason.
func (v Verdict) Refused() Verdict {
	v.Allow, v.Inspect, v.Pending = false, nil, nil
	if v.Reason == ReasonNone {
		v.Reason = ReasonPolicy
	}
	return v
}

// Hello is whom a conversation's first bytes name.
type Hello struct {
	// How it was said: HelloNone where the bytes are of no protocol known here.
	How HelloKind
	// Name in lower case without a final dot; empty if the protocol is known and names nobody.
	Name string
}

// HelloKind is the protocol of a conversation's first bytes.
type HelloKind uint8

const (
	HelloNone HelloKind = iota
	HelloTLS            // the server name of a ClientHello (RFC 6066 §3)
	HelloHTTP           // the Host of a request (RFC 9112 §3.2)
	HelloQUIC           // the server name in a QUIC Initial (RFC 9001 §4.3)
	// HelloPart is what began as one of these and could name anybody to a server: it was ended, or not gone on with in
	// time, before it could be said whom it names, or servers could read two names in it, or some that is not read here.
	// It is never a client without a name.
	HelloPart
)

func (k HelloKind) String() string {
	return [...]string{"none", "tls", "http", "quic", "part"}[min(k, HelloPart)]
}

// Policy decides who may talk to whom. Judge is called once for each new conversation, by several goroutines, and
// must not wait.
type Policy interface {
	Judge(Query) Verdict
}

// NamePolicy is what a Policy may be as well, to have a say in which names a guest resolves. As Judge, its methods are
// called by several goroutines and must not wait.
type NamePolicy interface {
	// JudgeName is asked before a guest's question is answered, with a name in lower case without a final dot and the
	// type of RFC 1035 §3.2.2. What is not allowed gets REFUSED if Verdict.Reject is set, else NXDOMAIN. Nobody is asked
	// (Pending) and nothing looked at (Inspect) here.
	JudgeName(guest, name string, qtype uint16) Verdict
	// Answered is told the addresses that a guest is about to get for a name that the host's resolvers know, or the
	// local zones do (local), and returns those that it may have. Addresses may be kept open for as long as ttl.
	Answered(guest, name string, addrs []netip.Addr, ttl time.Duration, local bool) []netip.Addr
}

// RunningPolicy is what a Policy may be as well, to judge otherwise than new conversations those that it let in before
// and that run when the rules change: as was, with the verdict that is in force.
type RunningPolicy interface {
	JudgeRunning(q Query, was Verdict) Verdict
}

// JudgeRunning asks the policy about a conversation that it let in before, as was.
func (t *Table) JudgeRunning(q Query, was Verdict) Verdict {
	p, ok := t.Policy().(RunningPolicy)
	if !ok {
		return t.Judge(q)
	}
	v := p.JudgeRunning(q, was)
	if v.Pending == nil && !v.Allow {
		return v.Refused()
	}
	return v
}

// Default is the policy of a network that nobody configured: what QEMU's user network allows, less the ways to the
// host's link-local neighbours. Conversations that the host opens are always let in.
type Default struct {
	// Gateways are the addresses that stand for the host; conversations with them end on the host's loopback.
	Gateways []netip.Addr
	// Local are the guests' own prefixes. What is in them and not a gateway is on the link, not behind the router.
	Local []netip.Prefix
	// NoHostLoopback closes the way to the host's loopback.
	NoHostLoopback bool
	// OpenLinkLocal are link-local prefixes that are open after all, by name: 169.254.169.254/32 for cloud metadata.
	OpenLinkLocal []netip.Prefix
}

var (
	thisNetwork     = netip.MustParsePrefix("0.0.0.0/8")   // RFC 1122 §3.2.1.3; Linux connects 0.0.0.0 to loopback
	classE          = netip.MustParsePrefix("240.0.0.0/4") // RFC 1112 §4, with the limited broadcast address
	compatible      = netip.MustParsePrefix("::/96")       // RFC 4291 §2.5.5.1: ::, ::1 and IPv4-compatible
	nat64           = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local      = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour       = netip.MustParsePrefix("2002::/16")
	ipv4Translated  = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 2765 §2.1
	martianPrefixes = []netip.Prefix{thisNetwork, classE, compatible, ipv4Translated}
)

// Judge implements Policy.
func (d *Default) Judge(q Query) Verdict {
	if q.Dir == In {
		return Verdict{Allow: true}
	}
	dst := q.Dst.Addr()
	for _, g := range d.Gateways {
		if dst == g {
			if d.NoHostLoopback {
				return Verdict{Reject: true, Reason: ReasonHostLoopback}
			}
			return Verdict{Allow: true}
		}
	}
	if r := d.closed(dst); r != ReasonNone {
		return Verdict{Reject: r != ReasonMartian, Reason: r}
	}
	// An address that carries an IPv4 address in it must not lead where that one does not.
	if v4, ok := Embedded(dst); ok {
		if r := d.closed(v4); r != ReasonNone {
			return Verdict{Reject: r != ReasonMartian, Reason: r}
		}
	}
	return Verdict{Allow: true}
}

func (d *Default) closed(a netip.Addr) Reason {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() {
		return ReasonMartian
	}
	for _, p := range martianPrefixes {
		if p.Contains(a) {
			return ReasonMartian
		}
	}
	if a.IsLinkLocalUnicast() {
		for _, p := range d.OpenLinkLocal {
			if p.Contains(a) {
				return ReasonNone
			}
		}
		return ReasonLinkLocal
	}
	for _, p := range d.Local {
		if p.Contains(a) {
			return ReasonOnLink
		}
	}
	return ReasonNone
}

// Embedded returns the IPv4 address inside a 6to4 (RFC 3056) or NAT64 (RFC 6052, RFC 8215) address.
func Embedded(a netip.Addr) (netip.Addr, bool) {
	if !a.Is6() {
		return netip.Addr{}, false
	}
	b := a.As16()
	switch {
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case nat64.Contains(a), nat64Local.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	}
	return netip.Addr{}, false
}
