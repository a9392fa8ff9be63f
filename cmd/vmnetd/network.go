package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/portforward"
)

// networkFlags are the flags of serve and run that make a network.
type networkFlags struct {
	cfg       backend.Config
	mtu       mtuValue
	resolvers []string
	static    []string
	openLL    []string
	routes    []string
	forwards  []string
	records   []string
	policy    policyFlags
	chosen    chosenPolicy // by the flags, once config has looked at them
	limits    []string
	impair    []string
	memory    memoryValue
	profile   bool
	logLevel  slog.Level
	logFormat string
	journal   bool // the log goes to systemd's
}

// aliases are QEMU's names for the same things, so that a `-netdev user` line can be typed over.
var aliases = map[string]string{
	"host": "gateway", "dns": "dns-addr", "dhcpstart": "first", "ipv6-net": "net6", "ipv6-host": "gateway6",
	"ipv6-dns": "dns-addr6", "domainname": "domain", "dnssearch": "search", "hostfwd": "forward", "publish": "forward",
	"rule": "allow", // of ours: it may have another verdict
}

func (n *networkFlags) add(fs *pflag.FlagSet, level slog.Level) {
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if a := aliases[name]; a != "" {
			name = a
		}
		return pflag.NormalizedName(name)
	})
	c := &n.cfg
	fs.StringArrayVarP(&n.forwards, "forward", "p", nil, "`RULE` that lets the host in: 2222:22, tcp:127.0.0.1:2222-:22, 127.0.0.1:5353:53/udp, unix:/PATH-:80")
	fs.StringArrayVar(&n.records, "dns-record", nil, "local DNS `RECORD`, as in a zone file: 'db A 10.0.2.20', 'db 60 A 10.0.2.20', 'www CNAME db'; may be repeated")
	fs.StringVar(&c.Name, "name", "", "the network's `NAME` in logs and in the API (default \"default\")")
	fs.Var(&prefixValue{&c.Prefix4}, "net", "guests' IPv4 `PREFIX` (default 10.0.2.0/24)")
	fs.TextVar(&c.Gateway4, "gateway", netip.Addr{}, "`ADDRESS` of the gateway, which stands for the host (default the second: 10.0.2.2)")
	fs.TextVar(&c.DNS4, "dns-addr", netip.Addr{}, "`ADDRESS` of the DNS server (default the third: 10.0.2.3)")
	fs.TextVar(&c.First4, "first", netip.Addr{}, "first `ADDRESS` to lease (default the fifteenth: 10.0.2.15)")
	fs.Var(&prefixValue{&c.Prefix6}, "net6", "guests' IPv6 `PREFIX`, a /64 (default one of the network's own in fd00::/8)")
	fs.TextVar(&c.Gateway6, "gateway6", netip.Addr{}, "IPv6 `ADDRESS` of the gateway (default ::2 of the prefix)")
	fs.TextVar(&c.DNS6, "dns-addr6", netip.Addr{}, "IPv6 `ADDRESS` of the DNS server (default ::3 of the prefix)")
	fs.Var(&n.mtu, "mtu", "largest packet of a guest: `auto` for 65520 where its card carries that and 1500 else, or 1280 to 65520 bytes for all")
	fs.StringVar(&c.Domain, "domain", "", "guests' DNS `DOMAIN` (default internal)")
	fs.StringArrayVar(&c.Search, "search", nil, "further DNS search `DOMAIN` told to guests; may be repeated")
	fs.StringArrayVar(&n.resolvers, "resolver", nil, "`ADDRESS[:PORT]` that is asked for other names; may be repeated (default the host's own)")
	fs.StringArrayVar(&n.static, "static", nil, "fixed lease, `MAC=ADDRESS`[,ADDRESS] of either family; may be repeated")
	fs.BoolVar(&c.NoHostLoopback, "no-host-loopback", false, "keep guests from the host's loopback, which the gateway's address leads to")
	fs.StringArrayVar(&n.openLL, "open-link-local", nil, "link-local `PREFIX` that guests may reach, as 169.254.169.254/32; may be repeated")
	fs.StringArrayVar(&n.routes, "route", nil, "`PREFIX` or address that guests may reach, and nothing else beyond their network, the host neither; may be repeated (default: everything)")
	n.policy.add(fs)
	fs.BoolVar(&c.Isolate, "isolate", false, "keep guests from one another")
	fs.BoolVar(&c.StrictLeases, "strict-leases", false, "let guests send only as what DHCP or --static gave them, by DHCPv6 for IPv6 (default: an address that nobody has is the first one's who shows it)")
	fs.StringVar(&c.StateDir, "state-dir", "", "`FOLDER` where leases, and the forwards and DNS records that were added meanwhile, survive a restart (default: they do not)")
	fs.StringArrayVar(&n.limits, "limit", nil, limitUsage)
	fs.StringArrayVar(&n.impair, "impair", nil, impairUsage)
	fs.Var(&n.memory, "memory", memoryUsage)
	fs.BoolVar(&n.profile, "pprof", false, "Go's profiles of the daemon on the control socket, under /v1/debug/pprof/")
	n.logLevel = level
	fs.TextVar(&n.logLevel, "log-level", level, "`LEVEL` of the log: debug, info, warn, error")
	fs.StringVar(&n.logFormat, "log-format", "text", "`FORMAT` of the log: text or json")
}

// openLog is where log lines go that do not wait for w.
func (n *networkFlags) openLog(w io.Writer) *logSink {
	n.journal = w == os.Stderr && toJournal()
	return newLogSink(w, n.handler)
}

func (n *networkFlags) handler(w io.Writer) slog.Handler { return n.handlerFrom(w, n.logLevel) }

func (n *networkFlags) handlerFrom(w io.Writer, level slog.Level) slog.Handler {
	opts := &slog.HandlerOptions{Level: level}
	format := func(w io.Writer) slog.Handler {
		if n.logFormat == "json" {
			return slog.NewJSONHandler(w, opts)
		}
		return slog.NewTextHandler(w, opts)
	}
	if n.journal {
		return newJournalHandler(w, format)
	}
	return format(w)
}

// config is what the flags make. Its errors are usage errors.
func (n *networkFlags) config(log io.Writer) (backend.Config, error) {
	c := n.cfg
	fail := func(err error) (backend.Config, error) { return c, usageError{err} }
	for _, s := range n.resolvers {
		r, err := netip.ParseAddrPort(s)
		if a, aerr := netip.ParseAddr(strings.Trim(s, "[]")); aerr == nil {
			r, err = netip.AddrPortFrom(a, 53), nil
		}
		if err != nil || r.Port() == 0 {
			return fail(fmt.Errorf("--resolver %s: want 192.0.2.1, 192.0.2.1:5353 or [2001:db8::1]:5353", s))
		}
		c.Resolvers = append(c.Resolvers, r)
	}
	for _, s := range n.openLL {
		p, err := parsePrefix(s)
		if err != nil {
			return fail(fmt.Errorf("--open-link-local %s: %w", s, err))
		}
		if !p.Addr().IsLinkLocalUnicast() {
			return fail(fmt.Errorf("--open-link-local %s: not in 169.254.0.0/16 or fe80::/10; nothing else is closed", s))
		}
		c.OpenLinkLocal = append(c.OpenLinkLocal, p)
	}
	for _, s := range n.routes {
		p, err := parsePrefix(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return fail(fmt.Errorf("--route %s: %w", s, err))
		}
		c.Routes = append(c.Routes, p)
	}
	for _, s := range n.static {
		mac, addrs, err := parseStatic(s)
		if err != nil {
			return fail(fmt.Errorf("--static %s: %w", s, err))
		}
		if c.Static == nil {
			c.Static = map[string][]netip.Addr{}
		}
		c.Static[mac] = append(c.Static[mac], addrs...)
	}
	var err error
	if n.chosen.doc, err = n.policy.document(); err != nil {
		return fail(err)
	}
	if n.policy.audit { // whatever the level: it was asked for
		n.chosen.audit = slog.New(n.handlerFrom(log, min(n.logLevel, slog.LevelInfo)))
	}
	n.mtu.set(&c)
	if c.Name != "" {
		if err := checkName(c.Name); err != nil {
			return fail(fmt.Errorf("--name: %w", err))
		}
	}
	for _, s := range n.forwards {
		r, err := portforward.ParseRule(s)
		if err != nil {
			return fail(fmt.Errorf("-p: %w", err))
		}
		c.Forwards = append(c.Forwards, r...)
	}
	for _, s := range n.records {
		r, err := backend.ParseDNSRecord(s)
		if err != nil {
			return fail(fmt.Errorf("--dns-record: %w", err))
		}
		c.Records = append(c.Records, r)
	}
	if n.logFormat != "text" && n.logFormat != "json" {
		return fail(fmt.Errorf("--log-format %s: want text or json", n.logFormat))
	}
	c.Logger = slog.New(n.handler(log))
	if err := parseLimits(n.limits, &c); err != nil {
		return fail(err)
	}
	if err := parseImpair(n.impair, &c, n.policy.read); err != nil {
		return fail(err)
	}
	if limit, ok := fileLimit(); ok && c.Limits.Total == 0 {
		c.Limits.Total = conversations(limit)
	}
	if c.Memory, err = n.memory.target(); err != nil {
		return fail(err)
	}
	return c, nil
}

// mtuValue is a number of bytes, or 0 for auto.
type mtuValue int

func (v *mtuValue) Type() string { return "mtu" }

func (v *mtuValue) String() string {
	if *v == 0 {
		return "auto"
	}
	return strconv.Itoa(int(*v))
}

func (v *mtuValue) Set(s string) error {
	if s == "auto" {
		*v = 0
		return nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < backend.MinMTU || n > backend.MaxMTU {
		return fmt.Errorf("want auto, or %d (the least that IPv6 works with) to %d bytes", backend.MinMTU, backend.MaxMTU)
	}
	*v = mtuValue(n)
	return nil
}

// ethernetMTU is what every card carries.
const ethernetMTU = 1500

// card is what a virtio card is made to tell its guest; 0 for nothing, since that is what it has by itself.
func (v mtuValue) card() int {
	switch v {
	case 0:
		return backend.MaxMTU
	case ethernetMTU:
		return 0
	}
	return int(v)
}

// set makes the choice a configuration's. A number is told to all guests; one that ignores a large one still works,
// since the network makes sure before it sends it packets as long.
func (v mtuValue) set(c *backend.Config) {
	switch {
	case v == 0:
		c.LargeMTU = backend.MaxMTU
	case v > ethernetMTU:
		c.LargeMTU, c.LargeNICs = int(v), true
	default:
		c.MTU = int(v)
	}
}

// conversations is how many there may be with so many descriptors. Each takes one; an eighth, and no less than 256,
// is kept for what must work when they have run out: guests' wires, the control socket, forwards' listeners, DNS
// queries to the host's resolvers.
func conversations(descriptors uint64) int {
	descriptors = min(descriptors, 1<<30) // "unlimited"
	spare := max(256, descriptors/8)
	if descriptors < 2*spare {
		return int(max(descriptors/2, 1))
	}
	return int(descriptors - spare)
}

// maxGuests is how many guests there may be at once, half of what conversations leaves: whoever can connect to a door can do
// it in a loop, and the rest must go on working.
func maxGuests() int {
	limit, ok := fileLimit()
	if !ok {
		limit = 1 << 14 // Windows: as if there were that many
	}
	return int(max(8, min(limit, 1<<30)/16))
}

// prefixValue reads a.b.c.d/n, and a.b.c.d/m.m.m.m as QEMU does.
type prefixValue struct{ p *netip.Prefix }

func (v *prefixValue) Type() string { return "prefix" }

func (v *prefixValue) String() string {
	if v.p == nil || !v.p.IsValid() {
		return ""
	}
	return v.p.String()
}

func (v *prefixValue) Set(s string) (err error) {
	*v.p, err = parsePrefix(s)
	return err
}

func parsePrefix(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p, nil
	}
	addr, mask, ok := strings.Cut(s, "/")
	a, err := netip.ParseAddr(addr)
	m, merr := netip.ParseAddr(mask)
	if ok && err == nil && merr == nil && a.Is4() && m.Is4() {
		if ones, bits := net.IPMask(m.AsSlice()).Size(); bits == 32 {
			return netip.PrefixFrom(a, ones), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("want ADDRESS/BITS, as 10.0.2.0/24 or fd00::/64")
}

func parseStatic(s string) (mac string, addrs []netip.Addr, err error) {
	m, list, _ := strings.Cut(s, "=")
	hw, err := net.ParseMAC(m)
	if err != nil || len(hw) != 6 {
		return "", nil, fmt.Errorf("%q is no MAC: want 52:54:00:12:34:56=10.0.2.20", m)
	}
	for a := range strings.SplitSeq(list, ",") {
		addr, err := netip.ParseAddr(a)
		if err != nil || addr.Zone() != "" {
			return "", nil, fmt.Errorf("%q is no address: want 52:54:00:12:34:56=10.0.2.20", a)
		}
		if slices.Contains(addrs, addr) {
			return "", nil, fmt.Errorf("%s is there twice", addr)
		}
		addrs = append(addrs, addr)
	}
	return hw.String(), addrs, nil
}
