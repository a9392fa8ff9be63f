package netns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// A DHCP client (RFC 2131): it gets a lease, renews it, and asks anew when it is lost. Messages go out by a packet
// socket, since before the first lease there is no address to send from. The kernel does the rest of IPv6.

const (
	// firstWait is how long an answer is waited for before the question is asked again; then twice as long each time,
	// to mostWait, within a tenth (RFC 2131 §4.1, which begins at 4 s for the networks of 1997).
	firstWait = time.Second
	mostWait  = 64 * time.Second
	// leastRenew keeps a server that gives leases of a second from making the client a flood.
	leastRenew = 10 * time.Second
	// wait6 is how long Configure waits for an IPv6 address. A router answers at once or, without IPv6, never.
	wait6 = 2 * time.Second
)

// errRefused is a server's NAK.
var errRefused = errors.New("the DHCP server refused the address")

// client is one interface's.
type client struct {
	t    *TAP
	name string
	buf  []byte
	peer net.HardwareAddr // of the server
}

// Configure asks the network's DHCP for an address, as host name (which may be empty), sets it with its route and MTU,
// and waits until IPv6 is there too, if the network has it. The wire must be served meanwhile. The address is set for
// ever: who stays longer than Lease.Renew uses Keep.
func (t *TAP) Configure(ctx context.Context, name string) (Lease, error) {
	c := &client{t: t, name: name, buf: make([]byte, longest)}
	l, err := c.discover(ctx)
	if err != nil {
		return l, err
	}
	if err := c.apply(l, Lease{}, 0); err != nil {
		return l, err
	}
	t.Await6(ctx)
	return l, nil
}

// Keep does what Configure does and goes on: it renews the lease, and asks anew when it is lost, until ctx ends or the
// interface is gone. It calls got after each change of the lease; got must not wait.
func (t *TAP) Keep(ctx context.Context, name string, got func(Lease)) error {
	c := &client{t: t, name: name, buf: make([]byte, longest)}
	var l Lease
	for {
		next, err := c.discover(ctx)
		if err != nil {
			return err
		}
		for {
			if err := c.apply(next, l, next.Expire); err != nil {
				return err
			}
			l = next
			if next.Renew != 0 {
				got(l)
			}
			if next, err = c.extend(ctx, l); err != nil {
				break
			}
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return err
		}
		t.route.removeAddr(t.Index, l.Addr)
		l = Lease{}
	}
}

// Await6 waits until there is an IPv6 address that may be used, or ctx ends, or so much time has passed that there is no
// router.
func (t *TAP) Await6(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, wait6)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := t.Addrs()
		if err != nil {
			return
		}
		for _, p := range list {
			if p.Addr().Is6() {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// apply makes the interface what the lease says. life is for how long, 0 for ever.
func (c *client) apply(l, before Lease, life time.Duration) error {
	t := c.t
	if l.MTU != 0 && l.MTU != t.MTU {
		if err := t.SetMTU(l.MTU); err != nil {
			return err
		}
	}
	if before.Addr.IsValid() && before.Addr != l.Addr {
		t.route.removeAddr(t.Index, before.Addr)
	}
	if err := t.route.addAddr(t.Index, l.Addr, life); err != nil {
		return &Error{Op: fmt.Sprintf("give %s the address %s", t.Name, l.Addr), Err: err}
	}
	if len(l.Routers) > 0 && !t.noDefault {
		if err := t.route.addRoute(t.Index, everywhere(l.Routers[0]), l.Routers[0], unix.RTPROT_DHCP); err != nil {
			return &Error{Op: fmt.Sprintf("route by %s", l.Routers[0]), Err: err}
		}
	}
	return nil
}

// discover asks until there is a lease.
func (c *client) discover(ctx context.Context) (Lease, error) {
	for {
		d, err := c.message(dhcpv4.MessageTypeDiscover)
		if err != nil {
			return Lease{}, err
		}
		offer, err := c.ask(ctx, d, netip.AddrPort{}, dhcpv4.MessageTypeOffer, time.Time{})
		if err != nil {
			return Lease{}, err
		}
		r, err := c.message(dhcpv4.MessageTypeRequest)
		if err != nil {
			return Lease{}, err
		}
		r.TransactionID = d.TransactionID
		r.UpdateOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr))
		r.UpdateOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier()))
		at := time.Now()
		// A server that offered and does not answer is asked four times (RFC 2131 §3.1, 5).
		ack, err := c.ask(ctx, r, netip.AddrPort{}, dhcpv4.MessageTypeAck, at.Add(15*firstWait))
		if err == nil {
			return leaseOf(ack)
		}
		if ctx.Err() != nil || !errors.Is(err, errRefused) && !errors.Is(err, os.ErrDeadlineExceeded) {
			return Lease{}, err
		}
	}
}

// Renew has Keep ask now whether the lease still holds: the network may be another one, or have forgotten.
func (t *TAP) Renew() {
	select {
	case t.renew <- struct{}{}:
	default:
	}
	t.packet.SetReadDeadline(time.Unix(1, 0)) // a question that waits for its answer is asked again
}

// renewTime is how long Renew's answer is waited for before a lease is asked for anew.
const renewTime = 4 * firstWait

// extend waits until the lease is to be renewed and has it renewed (RFC 2131 §4.4.5).
func (c *client) extend(ctx context.Context, l Lease) (Lease, error) {
	got := time.Now()
	timer := time.NewTimer(max(l.Renew, leastRenew))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return l, ctx.Err()
	case <-c.t.closed:
		return l, net.ErrClosed
	case <-c.t.renew:
		r, err := c.message(dhcpv4.MessageTypeRequest)
		if err != nil {
			return l, err
		}
		r.ClientIPAddr = l.Addr.Addr().AsSlice()
		ack, err := c.ask(ctx, r, netip.AddrPort{}, dhcpv4.MessageTypeAck, time.Now().Add(renewTime))
		if err != nil {
			return l, err
		}
		return leaseOf(ack)
	case <-timer.C:
	}
	for _, p := range []struct {
		to    netip.Addr
		until time.Duration
	}{{l.Server, l.Rebind}, {netip.Addr{}, l.Expire}} {
		r, err := c.message(dhcpv4.MessageTypeRequest)
		if err != nil {
			return l, err
		}
		r.ClientIPAddr = l.Addr.Addr().AsSlice()
		to := netip.AddrPort{}
		if p.to.IsValid() {
			to = netip.AddrPortFrom(p.to, 67)
		}
		ack, err := c.ask(ctx, r, to, dhcpv4.MessageTypeAck, got.Add(p.until))
		if err == nil {
			return leaseOf(ack)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return l, err
		}
	}
	return l, os.ErrDeadlineExceeded
}

func (c *client) message(kind dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	m, err := dhcpv4.New(
		dhcpv4.WithHwAddr(c.t.MAC),
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
			dhcpv4.OptionDomainName, dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionInterfaceMTU,
			dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue),
	)
	if err != nil {
		return nil, err
	}
	m.UpdateOption(dhcpv4.OptMaxMessageSize(1500))
	if c.name != "" {
		m.UpdateOption(dhcpv4.OptHostName(c.name))
	}
	return m, nil
}

// ask sends a message again and again until its answer comes, or until the time, if it is not zero. to is the server,
// or nobody for all.
func (c *client) ask(ctx context.Context, m *dhcpv4.DHCPv4, to netip.AddrPort, want dhcpv4.MessageType, until time.Time) (*dhcpv4.DHCPv4, error) {
	frame := c.frame(m, to)
	for wait := firstWait; ; wait = min(2*wait, mostWait) {
		if _, err := c.t.packet.Write(frame); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ENETDOWN) {
			return nil, &Error{Op: "ask DHCP on " + c.t.Name, Err: err}
		}
		next := time.Now().Add(wait + time.Duration((rand.Float64()-0.5)*0.2*float64(wait)))
		if !until.IsZero() && until.Before(next) {
			next = until
		}
		for {
			a, peer, err := c.receive(ctx, next)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, err
			}
			if a.TransactionID != m.TransactionID || a.OpCode != dhcpv4.OpcodeBootReply || a.ClientHWAddr.String() != c.t.MAC.String() {
				continue
			}
			switch a.MessageType() {
			case want:
				c.peer = peer
				return a, nil
			case dhcpv4.MessageTypeNak:
				return nil, errRefused
			}
		}
		select {
		case <-c.t.renew:
			wait = firstWait / 2
			continue
		default:
		}
		if !until.IsZero() && !time.Now().Before(until) {
			return nil, os.ErrDeadlineExceeded
		}
	}
}

// receive waits for a message, until the time.
func (c *client) receive(ctx context.Context, until time.Time) (*dhcpv4.DHCPv4, net.HardwareAddr, error) {
	p := c.t.packet
	defer context.AfterFunc(ctx, func() { p.SetReadDeadline(time.Unix(1, 0)) })()
	p.SetReadDeadline(until)
	for {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if len(c.t.renew) > 0 {
			return nil, nil, os.ErrDeadlineExceeded
		}
		m, err := p.Read(c.buf)
		switch {
		case ctx.Err() != nil:
			return nil, nil, ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, nil, os.ErrDeadlineExceeded
		case errors.Is(err, os.ErrClosed):
			return nil, nil, net.ErrClosed
		case errors.Is(err, unix.ENETDOWN): // somebody set the interface down, and may set it up again
			continue
		case err != nil:
			return nil, nil, &Error{Op: "read DHCP on " + c.t.Name, Err: err}
		}
		if msg, peer, err := parseReply(c.buf[:m]); err == nil {
			return msg, peer, nil
		}
	}
}

// parseReply takes a DHCP message out of a frame.
func parseReply(f []byte) (*dhcpv4.DHCPv4, net.HardwareAddr, error) {
	const eth = 14
	if len(f) < eth+20 || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_IP {
		return nil, nil, errors.New("no IPv4")
	}
	ip := f[eth:]
	hl := int(ip[0]&0xf) * 4
	if ip[0]>>4 != 4 || hl < 20 || len(ip) < hl+8 || ip[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
		return nil, nil, errors.New("no whole UDP datagram")
	}
	udp := ip[hl:]
	n := int(binary.BigEndian.Uint16(udp[4:]))
	if binary.BigEndian.Uint16(udp) != 67 || binary.BigEndian.Uint16(udp[2:]) != 68 || n < 8 || n > len(udp) {
		return nil, nil, errors.New("not from a DHCP server")
	}
	m, err := dhcpv4.FromBytes(udp[8:n])
	return m, append(net.HardwareAddr(nil), f[6:12]...), err
}

// frame puts a message into IPv4 and Ethernet.
func (c *client) frame(m *dhcpv4.DHCPv4, to netip.AddrPort) []byte {
	payload := m.ToBytes()
	f := make([]byte, 14+20+8, 14+20+8+len(payload))
	dst := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	src4, dst4 := [4]byte{}, [4]byte{255, 255, 255, 255}
	if to.IsValid() && c.peer != nil {
		dst, dst4 = c.peer, to.Addr().As4()
		copy(src4[:], m.ClientIPAddr.To4())
	}
	copy(f, dst)
	copy(f[6:], c.t.MAC)
	be := binary.BigEndian
	be.PutUint16(f[12:], unix.ETH_P_IP)
	ip := f[14:34]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	be.PutUint16(ip[2:], uint16(20+8+len(payload)))
	copy(ip[12:], src4[:])
	copy(ip[16:], dst4[:])
	be.PutUint16(ip[10:], sum(ip))
	udp := f[34:42]
	be.PutUint16(udp, 68)
	be.PutUint16(udp[2:], 67)
	be.PutUint16(udp[4:], uint16(8+len(payload))) // the checksum is optional (RFC 768)
	return append(f, payload...)
}

// sum is the Internet checksum (RFC 1071).
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// leaseOf reads what a server gave.
func leaseOf(m *dhcpv4.DHCPv4) (Lease, error) {
	a, ok := netip.AddrFromSlice(m.YourIPAddr.To4())
	if !ok || !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
		return Lease{}, fmt.Errorf("netns: the DHCP server gave the address %v", m.YourIPAddr)
	}
	bits, size := m.SubnetMask().Size()
	if size != 32 || bits == 0 {
		bits = 24
	}
	l := Lease{Addr: netip.PrefixFrom(a, bits), Domain: m.DomainName()}
	addrs := func(list []net.IP) (out []netip.Addr) {
		for _, ip := range list {
			if a, ok := netip.AddrFromSlice(ip.To4()); ok && !a.IsUnspecified() {
				out = append(out, a)
			}
		}
		return out
	}
	l.Routers, l.DNS = addrs(m.Router()), addrs(m.DNS())
	if s := addrs([]net.IP{m.ServerIdentifier()}); len(s) > 0 {
		l.Server = s[0]
	}
	if s := m.DomainSearch(); s != nil {
		l.Search = s.Labels
	}
	if b := m.Options.Get(dhcpv4.OptionInterfaceMTU); len(b) == 2 {
		if n := int(binary.BigEndian.Uint16(b)); n >= 1280 { // what IPv6 works with
			l.MTU = n
		}
	}
	l.Expire = m.IPAddressLeaseTime(time.Hour)
	l.Renew = m.IPAddressRenewalTime(l.Expire / 2)
	l.Rebind = m.IPAddressRebindingTime(l.Expire * 7 / 8)
	if l.Renew > l.Rebind || l.Rebind > l.Expire {
		l.Renew, l.Rebind = l.Expire/2, l.Expire*7/8
	}
	return l, nil
}
