package backend

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/impair"
	"github.com/vmnetd/vmnetd/portforward"
)

// MTUs that a network may have.
const (
	MinMTU = 1280  // the least that IPv6 works with (RFC 8200 §5)
	MaxMTU = 65520 // the largest that QEMU's and passt's peers are known to take
)

// Config is a virtual network. The zero Config is QEMU's user network with an IPv6 prefix of its own. It is what the flags of
// vmnetd and its configuration file (package config) come to, and what a program fills in; Network.Reload changes what can
// be while a network runs.
type Config struct {
	// Name tells networks apart in logs and in the API. Default "default".
	Name string

	// Prefix4 is the guests' IPv4 network. Default 10.0.2.0/24.
	Prefix4 netip.Prefix
	// Gateway4 is the router and stands for the host. Default the second address of Prefix4: 10.0.2.2.
	Gateway4 netip.Addr
	// DNS4 is where names are resolved. Default the third address: 10.0.2.3.
	DNS4 netip.Addr
	// First4 is the first address that DHCP leases. Default the fifteenth: 10.0.2.15.
	First4 netip.Addr

	// Prefix6 is the guests' IPv6 network, a /64 (SLAAC needs one, RFC 4862 §5.5.3). Default fd00:0:0:2::/64 under a
	// 40-bit global ID made from Prefix4 and Name (RFC 4193 §3.2.2), so that two hosts' networks seldom clash and
	// one host's stays the same.
	Prefix6 netip.Prefix
	// Gateway6 and DNS6 default to the prefix's ::2 and ::3.
	Gateway6, DNS6 netip.Addr

	// MTU is the guests' largest IP packet, told by DHCP option 26 and router advertisements. Default 1500;
	// MinMTU to MaxMTU.
	MTU int
	// LargeMTU, if not 0, is offered to each guest that receives frames as long; the others have MTU. Paravirtual
	// NICs do, and are several times as fast with MaxMTU. From MTU to MaxMTU.
	LargeMTU int
	// LargeNICs says that all guests' NICs carry LargeMTU, so that all are told of it. A guest that does not take it up
	// works all the same: it gets nothing that is longer than MTU before it has shown that it takes more.
	LargeNICs bool

	// GatewayMAC is the gateway's own. Default 52:55:0a:00:02:02: 52:55 and the IPv4 address, as libslirp has it.
	GatewayMAC net.HardwareAddr

	// Domain is the guests' DNS domain: a guest that leases as "web" is web.internal. Default "internal", which
	// ICANN keeps for private use.
	Domain string
	// Search are further DNS search domains told to guests.
	Search []string
	// Resolvers are asked for names that are not local. Default those of the host, followed as they change.
	Resolvers []netip.AddrPort

	// Static are fixed leases by MAC, each of either family.
	Static map[string][]netip.Addr
	// GuestNames are what guests are called by MAC, whatever they say of themselves: in DNS, with the addresses that they
	// have leased, have shown or have in Static, in policies and wherever people see them. Nobody else leases under one.
	GuestNames map[string]string
	// Records are local DNS records, beside those of guests by name: see AddDNS.
	Records []DNSRecord
	// Forwards are port forwards, opened by New, all or none. Network.Bound has them as they came out.
	Forwards []portforward.Rule

	// NoHostLoopback closes the way from the gateway's address to the host's loopback.
	NoHostLoopback bool
	// OpenLinkLocal are link-local prefixes that guests may reach after all.
	OpenLinkLocal []netip.Prefix
	// Routes, if not nil, are all that guests may have to do with, beside one another, the gateway's services and what
	// the program listens on (Network.Listen): a network that serves as an exit says here whereto. An address is
	// checked as the guest wrote it, so the host's loopback is reached only if the gateway's address is in Routes. What
	// is outside is refused with ICMP's "prohibited" and counted as outside-routes.
	Routes []netip.Prefix
	// Policy judges conversations in place of the default policy that the fields above make.
	Policy flows.Policy
	// Doors are addresses of this host where guests plug in over TCP. No guest reaches them, whatever the policy says.
	Doors []netip.AddrPort
	// Limits bound what each guest may have open, hold and move. Zero fields have defaults.
	Limits flows.Limits
	// GuestLimits are guests' own, by the MAC that they show first. What they leave at zero is as in Limits.
	GuestLimits map[string]flows.Limits
	// Impair, if not nil, plays a bad line to each guest that has none in GuestImpair, which is by MAC or by name.
	Impair      *impair.Settings
	GuestImpair map[string]impair.Settings
	// Memory, if not nil, is a target for the memory of the process. Networks may share it.
	Memory *Memory

	// NoUplink makes a plain switch of it (plain.go): guests see one another's frames, whatever they are, and there is no
	// gateway, no DHCP, DNS or advertisement, and no way out or in. Prefixes are not needed.
	NoUplink bool
	// Wire joins exactly two guests without a switch: everything that one sends the other gets. It implies NoUplink.
	Wire bool
	// Isolate keeps guests from seeing one another's frames.
	Isolate bool
	// StrictLeases lets a guest send only as what it was given: with IPv4 as a lease of its MAC or an address that
	// Static has for it, with IPv6 the same by DHCPv6, and link-local addresses that no other guest has. Nothing of its
	// own choice is left: advertisements tell guests to ask DHCPv6 for addresses (M) and not to make any (no A), a guest
	// does not route for others behind it, and one with another guest's MAC is cut off. Without it an address that
	// nobody has is the guest's who shows it first.
	StrictLeases bool

	// AllowForward is asked before a port forward's sockets are opened; its error is why not. Default: none is refused.
	AllowForward func(portforward.Rule) error

	// StateDir is where leases survive a restart, and with Network.Keep forwards and DNS records that were added meanwhile.
	// Default: they do not.
	StateDir string

	// Egress is how conversations leave. Default egress.Host.
	Egress egress.Egress
	// Logger. Default slog.Default.
	Logger *slog.Logger

	// Plain keeps to the portable path, a goroutine and a buffer each way of a conversation, where there is a faster
	// one.
	Plain bool

	// Capture, if not nil, wraps each guest's wire as it is plugged in.
	Capture func(link.Link) link.Link
}

// withDefaults fills what is zero and refuses what contradicts itself.
func (c Config) withDefaults() (Config, error) {
	if c.Name == "" {
		c.Name = "default"
	}
	if c.plain() {
		return c.withoutUplink()
	}
	if !c.Prefix4.IsValid() {
		c.Prefix4 = netip.MustParsePrefix("10.0.2.0/24")
	}
	if p := c.Prefix4; !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 28 {
		// Sixteen addresses are the least that hold the network, gateway, DNS, broadcast and a pool.
		return c, fmt.Errorf("network %s: IPv4 prefix %s: want a.b.c.d/8 to /28", c.Name, p)
	}
	c.Prefix4 = c.Prefix4.Masked()
	def := func(a *netip.Addr, p netip.Prefix, n int) {
		if !a.IsValid() {
			*a = nth(p, n)
		}
	}
	def(&c.Gateway4, c.Prefix4, 2)
	def(&c.DNS4, c.Prefix4, 3)
	if !c.First4.IsValid() {
		c.First4 = nth(c.Prefix4, 15)
		if c.First4 == Broadcast4(c.Prefix4) {
			c.First4 = nth(c.Prefix4, 4) // a /28 has no fifteenth that is not its broadcast address
		}
	}
	if !c.Prefix6.IsValid() {
		c.Prefix6 = ula(c.Name, c.Prefix4)
	}
	if p := c.Prefix6; !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() != 64 {
		return c, fmt.Errorf("network %s: IPv6 prefix %s: want a /64, since guests make their own addresses in it (RFC 4862)", c.Name, p)
	}
	c.Prefix6 = c.Prefix6.Masked()
	def(&c.Gateway6, c.Prefix6, 2)
	def(&c.DNS6, c.Prefix6, 3)
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.MTU < MinMTU || c.MTU > MaxMTU {
		return c, fmt.Errorf("network %s: mtu %d: want %d (the least IPv6 works with, RFC 8200) to %d", c.Name, c.MTU, MinMTU, MaxMTU)
	}
	if c.LargeMTU != 0 && (c.LargeMTU < c.MTU || c.LargeMTU > MaxMTU) {
		return c, fmt.Errorf("network %s: large mtu %d: want %d (its mtu) to %d", c.Name, c.LargeMTU, c.MTU, MaxMTU)
	}
	if c.LargeNICs && c.LargeMTU == 0 {
		return c, fmt.Errorf("network %s: the guests' NICs carry a large mtu, and none is given: want %d to %d", c.Name, c.MTU, MaxMTU)
	}
	if c.GatewayMAC == nil {
		a := c.Gateway4.As4()
		c.GatewayMAC = net.HardwareAddr{0x52, 0x55, a[0], a[1], a[2], a[3]}
	}
	if m := c.GatewayMAC; len(m) != 6 || m[0]&1 != 0 {
		return c, fmt.Errorf("network %s: gateway MAC %s: want six bytes of a single station", c.Name, m)
	}
	if c.Domain == "" {
		c.Domain = "internal"
	}
	var errs []error
	for _, r := range c.Routes {
		if !r.IsValid() || r.Addr().Is4In6() || r != r.Masked() {
			errs = append(errs, fmt.Errorf("network %s: route %s: want a prefix without host bits, as %s", c.Name, r, r.Masked()))
		}
	}
	seen := map[netip.Addr]string{}
	for _, x := range []struct {
		what string
		a    netip.Addr
		p    netip.Prefix
	}{
		{"gateway", c.Gateway4, c.Prefix4}, {"DNS address", c.DNS4, c.Prefix4}, {"first guest address", c.First4, c.Prefix4},
		{"IPv6 gateway", c.Gateway6, c.Prefix6}, {"IPv6 DNS address", c.DNS6, c.Prefix6},
	} {
		switch other := seen[x.a]; {
		case !x.p.Contains(x.a):
			errs = append(errs, fmt.Errorf("network %s: %s %s is not in %s", c.Name, x.what, x.a, x.p))
		case x.a == x.p.Addr() || x.a == Broadcast4(x.p):
			errs = append(errs, fmt.Errorf("network %s: %s %s is the network's own or broadcast address", c.Name, x.what, x.a))
		case other == "gateway" && x.what == "DNS address", other == "IPv6 gateway" && x.what == "IPv6 DNS address":
			// one address for both is fine
		case other != "":
			errs = append(errs, fmt.Errorf("network %s: %s and %s are both %s", c.Name, other, x.what, x.a))
		default:
			seen[x.a] = x.what
		}
	}
	if c.Egress == nil {
		c.Egress = &egress.Host{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, errors.Join(errs...)
}

// nth is the prefix's n-th address.
func nth(p netip.Prefix, n int) netip.Addr {
	b := p.Masked().Addr().As16()
	carry := n
	for i := 15; i >= 0 && carry > 0; i-- {
		carry += int(b[i])
		b[i] = byte(carry)
		carry >>= 8
	}
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap()
	}
	return a
}

// Broadcast4 is an IPv4 prefix's last address; for IPv6, which has no broadcast, the zero Addr.
func Broadcast4(p netip.Prefix) netip.Addr {
	if !p.Addr().Is4() {
		return netip.Addr{}
	}
	return nth(p, 1<<(32-p.Bits())-1)
}

func ula(name string, p netip.Prefix) netip.Prefix {
	h := sha256.Sum256([]byte("vmnetd " + name + " " + p.String()))
	var b [16]byte
	b[0] = 0xfd
	copy(b[1:6], h[:5])
	b[7] = 2
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}
