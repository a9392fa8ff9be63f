package backendtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

// Exchange4 sends a DHCPv4 message as a client does and waits for the answer with its transaction ID. A message that
// is not answered ends with ctx.
func (g *Guest) Exchange4(ctx context.Context, m *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	w := g.Watch(IsUDP(67, 68), Good(), func(p *Packet) error {
		r, err := dhcpv4.FromBytes(p.Payload)
		if err == nil && r.TransactionID != m.TransactionID {
			err = errors.New("of another transaction")
		}
		return err
	})
	defer w.Stop()
	if err := g.Send(g.DHCP4(m)); err != nil {
		return nil, err
	}
	p, err := w.Next(ctx)
	if err != nil {
		return nil, fmt.Errorf("backendtest: dhcp %s: %w", m.MessageType(), err)
	}
	g.mu.Lock()
	if !g.gateway4.IsValid() {
		g.gateway4 = p.IPSrc
	}
	g.mu.Unlock()
	return dhcpv4.FromBytes(p.Payload)
}

// DHCP4 is the frame of a message: broadcast, from the address in ciaddr or none (RFC 2131 §4.1).
func (g *Guest) DHCP4(m *dhcpv4.DHCPv4) []byte {
	src := netip.IPv4Unspecified()
	if a, ok := netip.AddrFromSlice(m.ClientIPAddr.To4()); ok {
		src = a
	}
	return Build(Ethernet{Src: g.MAC()}, IPv4{Src: src, Dst: netip.AddrFrom4([4]byte{255, 255, 255, 255})},
		UDP{SrcPort: 68, DstPort: 67}, Payload(m.ToBytes()))
}

// wants puts what every client says before mods.
func (g *Guest) wants(mods []dhcpv4.Modifier) []dhcpv4.Modifier {
	all := []dhcpv4.Modifier{
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
			dhcpv4.OptionInterfaceMTU, dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionDomainName),
	}
	if g.cfg.Name != "" {
		all = append(all, dhcpv4.WithOption(dhcpv4.OptHostName(g.cfg.Name)))
	}
	return append(all, mods...)
}

// Discover makes the first message of a lease, with the options that clients ask for and the guest's name.
func (g *Guest) Discover(mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	m, err := dhcpv4.NewDiscovery(g.cfg.MAC, g.wants(mods)...)
	if err != nil {
		panic(err) // no random numbers
	}
	return m
}

// Lease gets an IPv4 lease and takes its address and its router. It returns the server's acknowledgement.
func (g *Guest) Lease(ctx context.Context, mods ...dhcpv4.Modifier) (*dhcpv4.DHCPv4, error) {
	offer, err := g.Exchange4(ctx, g.Discover(mods...))
	if err != nil {
		return nil, err
	}
	if offer.MessageType() != dhcpv4.MessageTypeOffer {
		return nil, fmt.Errorf("backendtest: dhcp discover answered with %s", offer.MessageType())
	}
	req, err := dhcpv4.NewRequestFromOffer(offer, g.wants(mods)...)
	if err != nil {
		return nil, err
	}
	ack, err := g.Exchange4(ctx, req)
	if err != nil {
		return nil, err
	}
	if ack.MessageType() != dhcpv4.MessageTypeAck {
		return nil, fmt.Errorf("backendtest: dhcp request answered with %s: %s", ack.MessageType(), ack.Message())
	}
	a, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok {
		return nil, errors.New("backendtest: dhcp ack without an address")
	}
	ones, _ := ack.SubnetMask().Size()
	if err := g.AddAddr(netip.PrefixFrom(a, ones)); err != nil {
		return nil, err
	}
	if r := ack.Router(); len(r) > 0 {
		if a, ok := netip.AddrFromSlice(r[0].To4()); ok {
			g.SetGateway(a)
		}
	}
	for _, d := range ack.DNS() {
		if a, ok := netip.AddrFromSlice(d.To4()); ok {
			g.AddDNS(a)
		}
	}
	return ack, nil
}

// Exchange6 sends a DHCPv6 message as a client does and waits for the answer.
func (g *Guest) Exchange6(ctx context.Context, m *dhcpv6.Message) (*dhcpv6.Message, error) {
	all := netip.MustParseAddr("ff02::1:2") // RFC 8415 §7.1
	w := g.Watch(IsUDP(547, 546), Good(), func(p *Packet) error {
		r, err := dhcpv6.MessageFromBytes(p.Payload)
		if err == nil && r.TransactionID != m.TransactionID {
			err = errors.New("of another transaction")
		}
		return err
	})
	defer w.Stop()
	err := g.Send(Build(Ethernet{Src: g.MAC(), Dst: MulticastMAC(all)}, IPv6{Src: g.LinkLocal(), Dst: all},
		UDP{SrcPort: 546, DstPort: 547}, Payload(m.ToBytes())))
	if err != nil {
		return nil, err
	}
	p, err := w.Next(ctx)
	if err != nil {
		return nil, fmt.Errorf("backendtest: dhcpv6 %s: %w", m.MessageType, err)
	}
	return dhcpv6.MessageFromBytes(p.Payload)
}

// Lease6 gets an IPv6 lease (RFC 8415 §18.2) and takes its address. It returns the server's reply.
func (g *Guest) Lease6(ctx context.Context, mods ...dhcpv6.Modifier) (*dhcpv6.Message, error) {
	if g.cfg.Name != "" {
		mods = append(mods, dhcpv6.WithFQDN(0, g.cfg.Name))
	}
	sol, err := dhcpv6.NewSolicit(g.cfg.MAC, mods...)
	if err != nil {
		return nil, err
	}
	adv, err := g.Exchange6(ctx, sol)
	if err != nil {
		return nil, err
	}
	req, err := dhcpv6.NewRequestFromAdvertise(adv, mods...)
	if err != nil {
		return nil, err
	}
	reply, err := g.Exchange6(ctx, req)
	if err != nil {
		return nil, err
	}
	na := reply.Options.OneIANA()
	if na == nil || na.Options.OneAddress() == nil {
		return reply, errors.New("backendtest: dhcpv6 reply without an address")
	}
	a, _ := netip.AddrFromSlice(na.Options.OneAddress().IPv6Addr)
	return reply, g.AddAddr(netip.PrefixFrom(a, 128))
}

// Advertisement is a router advertisement (RFC 4861 §4.2, RFC 8106).
type Advertisement struct {
	Router                      netip.Addr
	RouterMAC                   net.HardwareAddr
	HopLimit                    uint8
	Managed, Other              bool
	Lifetime                    time.Duration // of the default route; 0: not a router
	MTU                         uint32
	Prefix                      netip.Prefix
	OnLink, Autonomous          bool
	ValidLifetime, Preferred    time.Duration
	DNS                         []netip.Addr
	DNSLifetime, SearchLifetime time.Duration
	Search                      []string
}

// ParseRA reads a router advertisement.
func ParseRA(p *Packet) (*Advertisement, error) {
	if err := All(IsRA(), Good())(p); err != nil {
		return nil, err
	}
	if p.TTL != 255 || !p.IPSrc.IsLinkLocalUnicast() {
		return nil, fmt.Errorf("hop limit %d, source %s: RFC 4861 §6.1.2 wants 255 and a link-local address", p.TTL, p.IPSrc)
	}
	if len(p.Payload) < 8 {
		return nil, errors.New("cut short")
	}
	secs := func(b []byte) time.Duration { return time.Duration(binary.BigEndian.Uint32(b)) * time.Second }
	a := &Advertisement{
		Router: p.IPSrc, HopLimit: uint8(p.ICMP.Rest >> 24), Managed: p.ICMP.Rest&0x800000 != 0, Other: p.ICMP.Rest&0x400000 != 0,
		Lifetime: time.Duration(p.ICMP.Rest&0xffff) * time.Second,
	}
	for b := p.Payload[8:]; len(b) > 0; {
		if len(b) < 8 || b[1] == 0 || int(b[1])*8 > len(b) {
			return nil, fmt.Errorf("option of %d units in %d bytes", b[min(1, len(b)-1)], len(b))
		}
		o := b[:int(b[1])*8]
		b = b[len(o):]
		switch o[0] {
		case 1:
			a.RouterMAC = net.HardwareAddr(o[2:8])
		case 3:
			if len(o) != 32 {
				return nil, fmt.Errorf("prefix option of %d bytes", len(o))
			}
			a.Prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte(o[16:])), int(o[2]))
			a.OnLink, a.Autonomous = o[3]&0x80 != 0, o[3]&0x40 != 0
			a.ValidLifetime, a.Preferred = secs(o[4:]), secs(o[8:])
		case 5:
			a.MTU = binary.BigEndian.Uint32(o[4:])
		case 25:
			a.DNSLifetime = secs(o[4:])
			for d := o[8:]; len(d) >= 16; d = d[16:] {
				a.DNS = append(a.DNS, netip.AddrFrom16([16]byte(d)))
			}
		case 31:
			a.SearchLifetime = secs(o[4:])
			name := ""
			for d := o[8:]; len(d) > 0; {
				n := int(d[0])
				if n >= len(d) {
					return nil, errors.New("search name runs out of its option")
				}
				if n == 0 {
					if name != "" {
						a.Search = append(a.Search, name)
					}
					name, d = "", d[1:]
					continue
				}
				if name != "" {
					name += "."
				}
				name, d = name+string(d[1:1+n]), d[1+n:]
			}
		}
	}
	return a, nil
}

// Solicit asks for a router advertisement and waits for it.
func (g *Guest) Solicit(ctx context.Context) (*Advertisement, error) {
	all := netip.MustParseAddr("ff02::2")
	w := g.Watch(IsRA(), To(g.LinkLocal()))
	defer w.Stop()
	err := g.Send(Build(append([]Layer{Ethernet{Src: g.MAC(), Dst: MulticastMAC(all)}, IPv6{Src: g.LinkLocal(), Dst: all}}, RouterSolicit(g.MAC())...)...))
	if err != nil {
		return nil, err
	}
	p, err := w.Next(ctx)
	if err != nil {
		return nil, fmt.Errorf("backendtest: router solicitation: %w", err)
	}
	return ParseRA(p)
}

// Autoconf asks for an advertisement, makes an address of its prefix (RFC 4862) and, if it is a router's, takes the
// default route.
func (g *Guest) Autoconf(ctx context.Context) (*Advertisement, error) {
	a, err := g.Solicit(ctx)
	if err != nil {
		return nil, err
	}
	if a.Autonomous {
		if err := g.AddAddr(netip.PrefixFrom(EUI64(a.Prefix, g.cfg.MAC), a.Prefix.Bits())); err != nil {
			return nil, err
		}
	}
	if a.Lifetime > 0 {
		g.SetGateway(a.Router)
	}
	for _, d := range a.DNS {
		g.AddDNS(d)
	}
	return a, nil
}
