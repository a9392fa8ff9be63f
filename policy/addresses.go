package policy

import (
	"net/netip"
	"strings"

	"github.com/vmnetd/vmnetd/flows"
)

// class is what an address is, beside an address. It can be several things.
type class uint8

const (
	classHost class = 1 << iota // the gateway, behind which is the host's loopback
	classPrivate
	classLoopback
	classLinkLocal
	classMetadata
	classDoH // a well-known public resolver

	// special is where a public name has no business to point: whoever answers for the name says where.
	special = classHost | classPrivate | classLoopback | classLinkLocal | classMetadata
)

func prefixes(s ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range s {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

func addresses(s ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range s {
		a := netip.MustParseAddr(p)
		list = append(list, netip.PrefixFrom(a, a.BitLen()))
	}
	return list
}

var (
	private = prefixes(
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", // RFC 1918
		"100.64.0.0/10", // RFC 6598: carriers' NAT, and overlay networks' favourite
		"192.0.0.0/24",  // RFC 6890: protocol assignments
		"198.18.0.0/15", // RFC 2544: benchmarks, and proxies' made-up addresses
		"fc00::/7",      // RFC 4193
		"fec0::/10",     // RFC 3879: site-local, deprecated and still in use
	)
	// The unspecified addresses are here because hosts connect them to themselves.
	loopback  = prefixes("127.0.0.0/8", "0.0.0.0/8", "::1/128", "::/128")
	linkLocal = prefixes("169.254.0.0/16", "fe80::/10")

	// metadata is where clouds tell machines who they are, with credentials.
	metadata = addresses(
		"169.254.169.254",               // EC2, Google, Azure, OpenStack and most others
		"fd00:ec2::254", "fd20:ce::254", // EC2's and Google's IPv6
		"169.254.170.2",                  // ECS: the task's credentials
		"169.254.170.23", "fd00:ec2::23", // EKS: the pod's
		"168.63.129.16",                // Azure's wire server
		"100.100.100.200",              // Alibaba
		"169.254.0.23",                 // Tencent
		"169.254.42.42", "fd00:42::42", // Scaleway
		"192.0.0.192", // Oracle
	)

	// doh are public resolvers that answer over HTTPS, at addresses that programs have built in. The list cannot be
	// complete: anybody can run one. Rules by name are what keeps a guest from those.
	doh = addresses(
		"1.1.1.1", "1.0.0.1", "2606:4700:4700::1111", "2606:4700:4700::1001", // Cloudflare
		"1.1.1.2", "1.0.0.2", "2606:4700:4700::1112", "2606:4700:4700::1002",
		"1.1.1.3", "1.0.0.3", "2606:4700:4700::1113", "2606:4700:4700::1003",
		"8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844", // Google
		"9.9.9.9", "149.112.112.112", "2620:fe::fe", "2620:fe::9", // Quad9
		"9.9.9.10", "149.112.112.10", "2620:fe::10", "9.9.9.11", "149.112.112.11", "2620:fe::11",
		"208.67.222.222", "208.67.220.220", "2620:119:35::35", "2620:119:53::53", // OpenDNS
		"94.140.14.14", "94.140.15.15", "2a10:50c0::ad1:ff", "2a10:50c0::ad2:ff", // AdGuard
		"185.228.168.9", "185.228.169.9", "2a0d:2a00:1::2", "2a0d:2a00:2::2", // CleanBrowsing
		"45.90.28.0", "45.90.30.0", // NextDNS
		"76.76.2.0", "76.76.10.0", // Control D
		"194.242.2.2",                    // Mullvad
		"185.222.222.222", "45.11.45.11", // DNS.SB
	)
	// dohNames are theirs, with all names below.
	dohNames = []string{
		"cloudflare-dns.com", "one.one.one.one", "dns.google", "dns.google.com", "8888.google", "dns64.dns.google",
		"dns.quad9.net", "dns9.quad9.net", "dns10.quad9.net", "dns11.quad9.net",
		"doh.opendns.com", "dns.opendns.com", "dns.umbrella.com", "doh.umbrella.com",
		"dns.adguard.com", "dns.adguard-dns.com", "d.adguard-dns.com", "unfiltered.adguard-dns.com", "family.adguard-dns.com",
		"doh.cleanbrowsing.org", "dns.nextdns.io", "doh.xfinity.com", "dns.controld.com", "freedns.controld.com",
		"dns.mullvad.net", "doh.dns.sb", "dns.sb", "doh.li", "doh.applied-privacy.net", "dns.alidns.com", "doh.pub",
		"dns.pub", "doh.360.cn", "dns.twnic.tw", "odvr.nic.cz", "dns.switch.ch", "doh.libredns.gr", "doh.ffmuc.net",
		"ordns.he.net", "doh.dns4all.eu", "dns0.eu", "doh.tiar.app", "dns.digitale-gesellschaft.ch", "doh.mullvad.net",
		"mask.icloud.com", "mask-h2.icloud.com", "mask-api.icloud.com", // a proxy, with a resolver of its own
	}
)

var dohName = func() map[string]bool {
	m := map[string]bool{}
	for _, n := range dohNames {
		m[n] = true
	}
	return m
}()

// isDoH says whether a name is a well-known resolver's, or below one.
func isDoH(name string) bool {
	for {
		if dohName[name] {
			return true
		}
		i := strings.IndexByte(name, '.')
		if i < 0 {
			return false
		}
		name = name[i+1:]
	}
}

// classes knows what each address is, in one network.
type classes struct {
	single   map[netip.Addr]class // metadata, doh and the gateways
	gateways []netip.Prefix
	local    []netip.Prefix
}

func newClasses(n *flows.Default) *classes {
	c := &classes{single: map[netip.Addr]class{}, local: n.Local}
	for _, p := range metadata {
		c.single[p.Addr()] |= classMetadata
	}
	for _, p := range doh {
		c.single[p.Addr()] |= classDoH
	}
	for _, a := range n.Gateways {
		c.single[a] |= classHost
		c.gateways = append(c.gateways, netip.PrefixFrom(a, a.BitLen()))
	}
	return c
}

func within(a netip.Addr, list []netip.Prefix) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// of tells what an address is, and what the IPv4 address in it is (flows.Embedded).
func (c *classes) of(a netip.Addr) class {
	k := c.single[a]
	if a.IsPrivate() || within(a, private[3:]) || within(a, c.local) {
		k |= classPrivate
	}
	if within(a, loopback) {
		k |= classLoopback
	}
	if a.IsLinkLocalUnicast() {
		k |= classLinkLocal
	}
	if v4, ok := flows.Embedded(a); ok {
		k |= c.of(v4)
	}
	return k
}

// inside is which classes a prefix lies in whole: whoever names it names nothing else.
func (c *classes) inside(p netip.Prefix) class {
	var k class
	if p.IsSingleIP() {
		k = c.single[p.Addr()]
	}
	in := func(list []netip.Prefix, x class) {
		for _, q := range list {
			if q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
				k |= x
				return
			}
		}
	}
	in(private, classPrivate)
	in(c.local, classPrivate)
	in(loopback, classLoopback)
	in(linkLocal, classLinkLocal)
	return k
}

// expand is what a word stands for; any and public stand for no list.
func (c *classes) expand(word string) []netip.Prefix {
	switch word {
	case "host":
		return c.gateways
	case "private":
		return append(append([]netip.Prefix(nil), private...), c.local...)
	case "loopback":
		return loopback
	case "link-local":
		return linkLocal
	case "metadata":
		return metadata
	case "doh":
		return doh
	}
	return nil
}
