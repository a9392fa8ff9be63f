package backend

// The gateway's services, wired: DHCP requests become answers, leases become names, and the resolver asks through the
// host. Services know nothing of one another; what one tells another passes here.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/dhcp"
	"github.com/vmnetd/vmnetd/dns"
	"github.com/vmnetd/vmnetd/flows"
)

const (
	// dhcpQueue is how many of a guest's DHCP messages may wait. A client sends one and waits seconds (RFC 2131
	// §4.1), so more than a few at a time is a flood.
	dhcpQueue = 16
	// probeTime is how long an address is asked for before it is offered. A guest under full emulation answers ARP
	// within 10 ms; RFC 5227 §2.1.1 waits a second or two on a real LAN.
	probeTime = 200 * time.Millisecond
)

func (n *Network) startServices() error {
	c, logger := &n.cfg, n.log
	if c.plain() { // none of them is asked anything; who asks this network for them gets empty ones
		none, err := Config{Name: c.Name, Resolvers: []netip.AddrPort{}}.withDefaults()
		if err != nil {
			return err
		}
		c, logger = &none, slog.New(slog.DiscardHandler) // that it has no resolvers is nothing to warn of
	}
	static, reserved, err := c.reservations()
	if err != nil {
		return err
	}
	n.reserved.Store(&reserved)
	names, err := n.cfg.givenNames()
	if err != nil {
		return err
	}
	n.given.Store(&names)
	n.dns, err = dns.New(dns.Config{
		Domain: c.Domain, Prefixes: []netip.Prefix{c.Prefix4, c.Prefix6},
		Gateway: []netip.Addr{c.Gateway4, c.Gateway6}, Host: []netip.Addr{c.Gateway4, c.Gateway6},
		Resolvers: c.Resolvers, Logger: logger, Names: n.names, Told: n.flows.Learn, Panicked: n.failed,
	})
	if err != nil {
		return fmt.Errorf("network %s: %w", c.Name, err)
	}
	mtu, large := c.MTU, c.LargeMTU
	if c.LargeNICs {
		mtu, large = c.LargeMTU, 0
	}
	n.dhcp, err = dhcp.New(dhcp.Config{
		Prefix: c.Prefix4, Gateway: c.Gateway4, DNS: []netip.Addr{c.DNS4}, First: c.First4,
		Prefix6: c.Prefix6, Gateway6: c.Gateway6, DNS6: []netip.Addr{c.DNS6},
		MTU: mtu, LargeMTU: large, Domain: c.Domain, Search: append([]string{c.Domain}, c.Search...),
		Static: static, NoNames: slices.AppendSeq([]string{"gateway", "host"}, maps.Values(names)),
		InUse: n.inUse, OnLease: n.leased,
	})
	if err != nil {
		n.dns.Close()
		return fmt.Errorf("network %s: %w", c.Name, err)
	}
	for _, r := range c.Records {
		if err := n.AddDNS(r); err != nil {
			n.dns.Close()
			return fmt.Errorf("network %s: %w", c.Name, err)
		}
	}
	n.nameGiven(nil)
	if c.StateDir != "" {
		if err := n.openState(); err != nil {
			n.dns.Close()
			return fmt.Errorf("network %s: state folder: %w", c.Name, err)
		}
	}
	return nil
}

// reservations are the static leases, by MAC as DHCP wants them and by address.
func (c *Config) reservations() (map[dhcp.MAC]dhcp.Reservation, map[netip.Addr]mac, error) {
	static, reserved := map[dhcp.MAC]dhcp.Reservation{}, map[netip.Addr]mac{}
	for m, addrs := range c.Static {
		hw, err := net.ParseMAC(m)
		if err != nil || len(hw) != 6 {
			return nil, nil, fmt.Errorf("network %s: static lease for %q: want a MAC such as 52:54:00:12:34:56", c.Name, m)
		}
		r := static[dhcp.MAC(hw)]
		for _, a := range addrs {
			reserved[a] = macOf(hw)
			if a.Is4() {
				r.Addr = a
			} else {
				r.Addr6 = a
			}
		}
		static[dhcp.MAC(hw)] = r
	}
	return static, reserved, nil
}

// openState reads the leases of before, and finds out whether they can be kept: who asked for it hears at once, not
// after the first restart.
func (n *Network) openState() error {
	if err := os.MkdirAll(n.cfg.StateDir, 0o700); err != nil {
		return err
	}
	_, err := n.dhcp.Load(n.stateFile())
	var file *fs.PathError
	if errors.As(err, &file) {
		return err
	}
	if err != nil { // what is there is left for people to look at until there is a new lease
		n.complain("leases of before", err)
		return nil
	}
	return n.dhcp.Save(n.stateFile())
}

func (n *Network) isDNS(a netip.Addr) bool { return a == n.cfg.DNS4 || a == n.cfg.DNS6 }

// inUse says who answers for an address before it is leased. With one guest there is nobody else to ask.
func (n *Network) inUse(ctx context.Context, a netip.Addr, guest string, m dhcp.MAC) (by string, used bool) {
	found := func() (string, bool) {
		o, ok := n.seg.owner(a)
		if !ok || o.port.id == guest && o.mac == mac(m) {
			return "", false
		}
		return o.port.id, true
	}
	if by, used = found(); used {
		return by, true
	}
	ports := n.seg.all()
	if len(ports) < 2 && (len(ports) == 0 || n.alone(ports[0])) {
		return "", false
	}
	seen, cancel := n.seg.await(a)
	defer cancel()
	n.askFor(a, nil)
	t := time.NewTimer(probeTime)
	defer t.Stop()
	select {
	case <-seen:
	case <-t.C:
	case <-ctx.Done():
	}
	return found()
}

// alone says whether a port has shown one MAC only: then nothing else can be behind it.
func (n *Network) alone(p *port) bool {
	macs, _ := n.seg.shownBy(p)
	return len(macs) < 2
}

// leased makes names of leases.
func (n *Network) leased(l dhcp.Lease, e dhcp.Event) {
	switch e {
	case dhcp.EventBound, dhcp.EventRenewed:
		n.seg.give(l.Addr, l.Guest, mac(l.MAC))
	case dhcp.EventReleased, dhcp.EventExpired, dhcp.EventDeclined, dhcp.EventRevoked:
		n.seg.forget(l.Addr)
	}
	n.name(l.MAC)
	n.leaseImpairs(l.Guest)
	n.leaseEvent(l, e)
	n.log.Debug("lease", "event", e, "address", l.Addr, "mac", l.MAC, "name", l.Name, "guest", l.Guest)
}

// shown is told of each address that a guest shows for the first time.
func (n *Network) shown(a netip.Addr, m mac) {
	// Made by the guest itself, so no lease tells of it; or by whoever called it by name.
	if n.cfg.Prefix6.Contains(a) || n.cfg.Prefix4.Contains(a) && n.givenName(m) != "" {
		n.name(dhcp.MAC(m))
	}
}

// name makes the resolver know what is known of a MAC: the name of its leases, their addresses and those that it made
// itself (RFC 4862) under the IPv6 prefix.
func (n *Network) name(m dhcp.MAC) {
	name := n.givenName(mac(m))
	given := name != ""
	var addrs []netip.Addr
	for _, l := range n.dhcp.ByMAC(m) {
		if l.Name != "" && !given {
			name = l.Name
		}
		addrs = append(addrs, l.Addr)
	}
	if given {
		for a, of := range *n.reserved.Load() {
			if of == mac(m) {
				addrs = append(addrs, a)
			}
		}
	}
	if name == "" {
		n.dns.RemoveHost(m.String())
		return
	}
	for _, a := range n.seg.addrsOf(mac(m)) {
		if n.cfg.Prefix6.Contains(a) || given && n.cfg.Prefix4.Contains(a) {
			addrs = append(addrs, a)
		}
	}
	if err := n.dns.SetHost(m.String(), name, addrs...); err != nil {
		n.log.Debug("lease has no name", "name", name, "mac", m, "error", err)
	}
}

// dhcpRequest is a message that waits for the port's DHCP goroutine.
type dhcpRequest struct {
	mac     mac
	src     netip.Addr
	payload []byte
}

// queueDHCP takes a DHCP message of either family: the datagram at body, its payload off bytes in.
func (p *port) queueDHCP(body link.Span, src mac, from netip.Addr, off int, u header.UDP) {
	n := int(u.Length()) - header.UDPMinimumSize
	if n <= 0 || body.Len() < off+n {
		p.drop(flows.ReasonMalformed)
		return
	}
	r := dhcpRequest{mac: src, src: from, payload: p.batch.AppendTo(nil, body.From(off).Upto(n))}
	select {
	case p.dhcp <- r:
	default:
		p.drop(flows.ReasonRateLimit)
	}
}

func (p *port) serveDHCP() {
	for {
		select {
		case <-p.ctx.Done():
			return
		case r := <-p.dhcp:
			p.answerDHCP(r)
		}
	}
}

func (p *port) answerDHCP(r dhcpRequest) {
	n := p.net
	var reply *dhcp.Reply
	var err error
	src := netip.AddrPortFrom(n.cfg.Gateway4, 67)
	if r.src.Is4() {
		reply, err = n.dhcp.Handle4(p.ctx, p.id, dhcp.MAC(r.mac), r.payload)
	} else {
		src = netip.AddrPortFrom(n.linkLocal, 547)
		reply, err = n.dhcp.Handle6(p.ctx, p.id, dhcp.MAC(r.mac), r.src, r.payload)
	}
	if err != nil {
		var refused *dhcp.Error
		if errors.As(err, &refused) && refused.Reason == dhcp.PoolEmpty {
			n.complain("dhcp", err)
		}
		p.drop(flows.ReasonMalformed)
		p.log.Debug("dhcp request not answered", "error", err)
	}
	if reply == nil {
		return
	}
	kind, hl := etherIPv4, header.IPv4MinimumSize
	if src.Addr().Is6() {
		kind, hl = etherIPv6, header.IPv6MinimumSize
	}
	send := func(payload []byte, padTo int) {
		size := header.UDPMinimumSize + len(payload)
		f := newFrame(mac(reply.MAC), n.gatewayMAC, kind, max(hl+size, padTo))
		ip := f[link.Headroom+ethLen:]
		putIP(ip, src.Addr(), reply.Dst.Addr(), header.UDPProtocolNumber, size, 0)
		putUDP(ip[hl:], src, reply.Dst, payload)
		p.sendFrame(f)
	}
	if kind == etherIPv4 {
		capMTU(reply.Payload, p.carries)
	}
	if reply.Large != nil && n.cfg.LargeMTU <= p.carries {
		send(reply.Large, n.cfg.LargeMTU)
	}
	send(reply.Payload, 0)
}

// What AddDNS refuses for a reason that callers tell apart (errors.Is).
var (
	ErrNameTaken = dns.ErrTaken // somebody else holds the name
	ErrDNSFull   = dns.ErrFull  // as many records are there as are kept
)

// DNSRecord is a local record as people and the API see it.
type DNSRecord struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	Value  string `json:"value"`
	TTL    uint32 `json:"ttl"`
	Source string `json:"source"`
}

// DNSRecords returns the local records.
func (n *Network) DNSRecords() []DNSRecord {
	list := []DNSRecord{}
	if n.cfg.plain() { // nobody asks there, and the gateway's names would be of none
		return list
	}
	for _, r := range n.dns.List() {
		list = append(list, DNSRecord{r.Name, r.Type, r.Data, r.TTL, r.Source})
	}
	return list
}

// AddDNS adds a local record. A zero TTL means the default.
func (n *Network) AddDNS(r DNSRecord) error {
	if n.cfg.plain() {
		return fmt.Errorf("dns record %s: %w", r.Name, ErrNoUplink)
	}
	ttl := ""
	if r.TTL > 0 {
		ttl = fmt.Sprint(r.TTL)
	}
	return n.dns.Add(fmt.Sprintf("%s %s %s %s", r.Name, ttl, r.Type, r.Value))
}

// RemoveDNS removes local records of a name; typ and value may be empty, for any.
func (n *Network) RemoveDNS(name, typ, value string) error {
	if value != "" && typ == "" {
		return fmt.Errorf("dns record %s: a value without its type: say which", name)
	}
	spec := name
	if typ != "" {
		spec += " " + typ
		if value != "" {
			spec += " " + value
		}
	}
	removed, err := n.dns.Remove(spec)
	if err == nil && removed == 0 {
		err = fmt.Errorf("no local record %q was added", spec)
	}
	return err
}
