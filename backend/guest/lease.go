package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// The lease (RFC 2131): asked for at the start, renewed at half its time, asked for anew when it is lost.

const (
	// firstWait is how long an answer is waited for before the question is asked again, then twice as long each time,
	// to mostWait (RFC 2131 §4.1, which begins at 4 s for the networks of 1997).
	firstWait = time.Second
	mostWait  = 64 * time.Second
	// leastRenew keeps a server that gives leases of a second from making the guest a flood.
	leastRenew = 10 * time.Second
)

var errNak = errors.New("the DHCP server refused the address")

// lessor takes what the DHCP server sends.
func (g *Guest) lessor(f []byte) bool {
	const ip = header.EthernetMinimumSize
	if binary.BigEndian.Uint16(f[12:]) != uint16(header.IPv4ProtocolNumber) || len(f) < ip+28 || f[ip] != 0x45 ||
		f[ip+9] != byte(header.UDPProtocolNumber) || binary.BigEndian.Uint16(f[ip+20:]) != 67 || binary.BigEndian.Uint16(f[ip+22:]) != 68 {
		return false
	}
	select {
	case g.dhcp <- f[ip+28:]:
	default: // nobody asked
	}
	return true
}

// ask sends m until there is an answer of one of these kinds, or a NAK.
func (g *Guest) ask(ctx context.Context, m *dhcpv4.DHCPv4, kind dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	t := time.NewTimer(0)
	defer t.Stop()
	for wait := firstWait; ; {
		select {
		case <-t.C:
			if err := g.Send(g.frameOf(m)); err != nil {
				return nil, fmt.Errorf("guest: dhcp: %w", err)
			}
			t.Reset(wait)
			wait = min(2*wait, mostWait)
		case b := <-g.dhcp:
			r, err := dhcpv4.FromBytes(b)
			switch {
			case err != nil || r.TransactionID != m.TransactionID:
			case r.MessageType() == kind:
				return r, nil
			case r.MessageType() == dhcpv4.MessageTypeNak:
				return nil, errNak
			}
		case <-g.done:
			return nil, fmt.Errorf("guest: dhcp: %w: %w", errGone, g.err)
		case <-ctx.Done():
			return nil, fmt.Errorf("guest: no DHCP server answered: %w", context.Cause(ctx))
		}
	}
}

// frameOf is a message as it goes out: to all, from the address that it says the client has.
func (g *Guest) frameOf(m *dhcpv4.DHCPv4) []byte {
	payload := m.ToBytes()
	const ip, udp = header.EthernetMinimumSize, header.EthernetMinimumSize + header.IPv4MinimumSize
	f := make([]byte, udp+header.UDPMinimumSize+len(payload))
	for i := range 6 {
		f[i] = 0xff
	}
	copy(f[6:], g.cfg.MAC)
	binary.BigEndian.PutUint16(f[12:], uint16(header.IPv4ProtocolNumber))
	src, ok := netip.AddrFromSlice(m.ClientIPAddr.To4())
	if !ok {
		src = netip.IPv4Unspecified()
	}
	h := header.IPv4(f[ip:])
	h.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(h)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber),
		SrcAddr: toTCPIP(src), DstAddr: header.IPv4Broadcast,
	})
	h.SetChecksum(^h.CalculateChecksum())
	u := header.UDP(f[udp:])
	u.Encode(&header.UDPFields{SrcPort: 68, DstPort: 67, Length: uint16(len(u))})
	copy(u.Payload(), payload)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, h.SourceAddress(), h.DestinationAddress(), uint16(len(u)))
	u.SetChecksum(^checksum.Checksum(u, sum))
	return f
}

func (g *Guest) wants() []dhcpv4.Modifier {
	all := []dhcpv4.Modifier{dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter,
		dhcpv4.OptionDomainNameServer, dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionDomainName)}
	if g.cfg.Name != "" {
		all = append(all, dhcpv4.WithOption(dhcpv4.OptHostName(g.cfg.Name)))
	}
	return all
}

// lease gets an address and takes what comes with it.
func (g *Guest) lease(ctx context.Context) (*dhcpv4.DHCPv4, error) {
	for {
		m, err := dhcpv4.NewDiscovery(g.cfg.MAC, g.wants()...)
		if err != nil {
			return nil, err
		}
		offer, err := g.ask(ctx, m, dhcpv4.MessageTypeOffer)
		if err != nil {
			return nil, err
		}
		if m, err = dhcpv4.NewRequestFromOffer(offer, g.wants()...); err != nil {
			return nil, err
		}
		ack, err := g.ask(ctx, m, dhcpv4.MessageTypeAck)
		if errors.Is(err, errNak) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return ack, g.take(ack)
	}
}

func (g *Guest) take(ack *dhcpv4.DHCPv4) error {
	a, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok {
		return errors.New("guest: a DHCP acknowledgement without an address")
	}
	ones, _ := ack.SubnetMask().Size()
	if err := g.AddAddr(netip.PrefixFrom(a, ones)); err != nil {
		return err
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
	var search []string
	if l := ack.DomainSearch(); l != nil {
		search = l.Labels
	} else if d := ack.DomainName(); d != "" {
		search = []string{d}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range search {
		if !slices.Contains(g.search, s) {
			g.search = append(g.search, s)
		}
	}
	return nil
}

// keep renews the lease until ctx is done.
func (g *Guest) keep(ctx context.Context, l *dhcpv4.DHCPv4) {
	for {
		got := time.Now()
		life := l.IPAddressLeaseTime(0)
		if life == 0 || life == time.Duration(0xffffffff)*time.Second { // for ever (RFC 2131 §3.3)
			return
		}
		t := time.NewTimer(max(l.IPAddressRenewalTime(life/2), leastRenew))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		m, err := dhcpv4.NewRenewFromAck(l, g.wants()...)
		if err != nil {
			return
		}
		until, cancel := context.WithDeadline(ctx, got.Add(life))
		next, err := g.ask(until, m, dhcpv4.MessageTypeAck)
		cancel()
		old, _ := netip.AddrFromSlice(l.YourIPAddr.To4())
		if err != nil { // refused, or run out
			g.RemoveAddr(old)
			if next, err = g.lease(ctx); err != nil {
				return
			}
		} else if g.take(next) != nil {
			return
		}
		l = next
	}
}
