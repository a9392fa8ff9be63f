package dhcp

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// request4 is a client's message, checked and in our own words.
type request4 struct {
	*dhcpv4.DHCPv4
	kind   dhcpv4.MessageType
	bootp  bool       // no option 53: a BOOTP client, or a boot ROM
	ciaddr netip.Addr // zero where the message has 0.0.0.0 or nothing
	asked  netip.Addr // option 50
	server netip.Addr // option 54
	client client
}

// Handle4 answers the payload of a UDP datagram that a guest sent to port 67, from the frame whose source
// is mac. A nil reply without an error is a message that wants none.
func (s *Server) Handle4(ctx context.Context, guest string, mac MAC, payload []byte) (*Reply, error) {
	if s.v4 == nil {
		return nil, refuse(Disabled, "no IPv4 prefix")
	}
	req, err := parse4(guest, mac, payload)
	s.counts.heard4(req, err)
	if err != nil {
		return nil, err
	}
	defer s.flush()
	switch req.kind {
	case dhcpv4.MessageTypeDiscover:
		return s.discover(ctx, req)
	case dhcpv4.MessageTypeRequest:
		if req.bootp {
			return s.bootp(ctx, req)
		}
		return s.request(ctx, req)
	case dhcpv4.MessageTypeDecline:
		if req.server.IsValid() && req.server != s.cfg.Gateway {
			return nil, nil
		}
		if !s.decline(s.v4, req.client, req.asked) {
			return nil, refuse(NoBinding, "%v declines %v, which it was not given", mac, req.asked)
		}
		return nil, nil
	case dhcpv4.MessageTypeRelease:
		if req.server.IsValid() && req.server != s.cfg.Gateway {
			return nil, nil
		}
		if !s.release(s.v4, req.client, req.ciaddr) {
			return nil, refuse(NoBinding, "%v releases %v, which it does not hold", mac, req.ciaddr)
		}
		return nil, nil
	case dhcpv4.MessageTypeInform:
		return s.inform(req)
	case dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak:
		return nil, refuse(NotRequest, "a server's %v from a guest", req.kind)
	}
	return nil, refuse(Unsupported, "message type %d", req.kind)
}

func parse4(guest string, mac MAC, payload []byte) (*request4, error) {
	if len(payload) > maxMessage {
		return nil, refuse(Malformed, "message of %d bytes, want at most %d", len(payload), maxMessage)
	}
	m, err := dhcpv4.FromBytes(endOption(payload))
	if err != nil {
		return nil, refuse(Malformed, "%v", err)
	}
	if m.OpCode != dhcpv4.OpcodeBootRequest {
		return nil, refuse(NotRequest, "op code %d, want 1", m.OpCode)
	}
	if !m.GatewayIPAddr.IsUnspecified() || m.HopCount > 0 {
		return nil, refuse(Relayed, "giaddr %v, %d hops", m.GatewayIPAddr, m.HopCount)
	}
	if err := hardware(m, mac); err != nil {
		return nil, err
	}
	req := &request4{DHCPv4: m, ciaddr: addr4(m.ClientIPAddr)}
	switch kind := m.Options.Get(dhcpv4.OptionDHCPMessageType); {
	case !m.Options.Has(dhcpv4.OptionDHCPMessageType):
		req.kind, req.bootp = dhcpv4.MessageTypeRequest, true
	case len(kind) != 1:
		return nil, refuse(Malformed, "option 53 of %d bytes, want 1", len(kind))
	default:
		req.kind = dhcpv4.MessageType(kind[0])
	}
	if req.asked, err = option4(m, dhcpv4.OptionRequestedIPAddress); err != nil {
		return nil, err
	}
	if req.server, err = option4(m, dhcpv4.OptionServerIdentifier); err != nil {
		return nil, err
	}
	id, err := identifier(m)
	if err != nil {
		return nil, err
	}
	req.client = client{guest: guest, mac: mac, id: id, host: hostName4(m)}
	return req, nil
}

// option4 is an option that holds one address; zero where it is missing or 0.0.0.0.
func option4(m *dhcpv4.DHCPv4, code dhcpv4.OptionCode) (netip.Addr, error) {
	b := m.Options.Get(code)
	if b == nil {
		return netip.Addr{}, nil
	}
	if len(b) != 4 {
		return netip.Addr{}, refuse(Malformed, "option %d of %d bytes, want 4", code.Code(), len(b))
	}
	return addr4(b), nil
}

func addr4(b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	if !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a.Unmap()
}

// discover is RFC 2131 section 4.3.1, with the rapid commit of RFC 4039 for clients that ask for it: this
// is the only server, so no other offer can be the better one.
func (s *Server) discover(ctx context.Context, req *request4) (*Reply, error) {
	budget := maxProbes
	addr, err := s.acquire(ctx, s.v4, req.client, req.asked, &budget)
	if err != nil {
		return nil, err
	}
	if req.Options.Has(dhcpv4.OptionRapidCommit) {
		why, err := s.claim(ctx, s.v4, req.client, addr, s.term(req), &budget)
		if err != nil {
			return nil, err
		}
		if why == "" {
			r := s.reply4(req, dhcpv4.MessageTypeAck, addr)
			r.Options.Update(dhcpv4.OptGeneric(dhcpv4.OptionRapidCommit, nil))
			return s.pack(req, r, "ACK")
		} // else somebody was faster: an offer, and the client comes back
	}
	return s.pack(req, s.reply4(req, dhcpv4.MessageTypeOffer, addr), "OFFER")
}

// request is RFC 2131 section 4.3.2: selecting, init-reboot, renewing and rebinding.
func (s *Server) request(ctx context.Context, req *request4) (*Reply, error) {
	addr := req.asked
	if req.ciaddr.IsValid() {
		addr = req.ciaddr // renewing, rebinding; see quirks.go for those who fill in more
	}
	if !addr.IsValid() {
		return nil, refuse(Malformed, "REQUEST names no address: neither option 50 nor ciaddr")
	}
	if req.server.IsValid() && req.server != s.cfg.Gateway {
		s.withdraw(s.v4, req.client) // the client took another server's offer
		return nil, nil
	}
	budget := maxProbes
	why, err := s.claim(ctx, s.v4, req.client, addr, s.term(req), &budget)
	if err != nil {
		return nil, err
	}
	if why != "" {
		return s.nak(req, fmt.Sprintf("%v: %s", addr, why))
	}
	return s.pack(req, s.reply4(req, dhcpv4.MessageTypeAck, addr), "ACK")
}

// bootp leases to a client that knows no leases (RFC 1534 section 2). It never renews; when its lease has
// run out the probe before an offer keeps its address from others for as long as it answers.
func (s *Server) bootp(ctx context.Context, req *request4) (*Reply, error) {
	budget := maxProbes
	addr, err := s.acquire(ctx, s.v4, req.client, req.ciaddr, &budget)
	if err != nil {
		return nil, err
	}
	why, err := s.claim(ctx, s.v4, req.client, addr, s.cfg.LeaseTime, &budget)
	if err != nil {
		return nil, err
	}
	if why != "" {
		return nil, refuse(PoolEmpty, "%v: %s", addr, why)
	}
	r := s.reply4(req, dhcpv4.MessageTypeAck, addr)
	for _, c := range []dhcpv4.OptionCode{dhcpv4.OptionDHCPMessageType, dhcpv4.OptionServerIdentifier,
		dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue} {
		r.Options.Del(c)
	}
	return s.pack(req, r, "BOOTREPLY")
}

// inform is RFC 2131 section 4.3.5: the address is the client's own, only the rest is told.
func (s *Server) inform(req *request4) (*Reply, error) {
	if !s.cfg.Prefix.Contains(req.ciaddr) {
		return nil, refuse(OffNetwork, "INFORM from %v, want an address of %v", req.ciaddr, s.cfg.Prefix)
	}
	if why := s.v4.reserved[req.ciaddr]; why != "" {
		return nil, refuse(OffNetwork, "INFORM from %v, which is %s", req.ciaddr, why)
	}
	r := s.reply4(req, dhcpv4.MessageTypeAck, netip.IPv4Unspecified())
	for _, c := range []dhcpv4.OptionCode{dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue} {
		r.Options.Del(c)
	}
	return s.pack(req, r, "ACK")
}

// term is the lease time that a client gets: ours, or less if it asks for less.
func (s *Server) term(req *request4) time.Duration {
	d := req.IPAddressLeaseTime(s.cfg.LeaseTime).Truncate(time.Second)
	return max(MinLeaseTime, min(d, s.cfg.LeaseTime.Truncate(time.Second)))
}

// head is what every reply says (RFC 2131 table 3).
func (s *Server) head(req *request4, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	r := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        req.HWType,
		TransactionID: req.TransactionID,
		Flags:         req.Flags,
		ClientHWAddr:  req.ClientHWAddr,
		Options:       dhcpv4.Options{},
	}
	r.Options.Update(dhcpv4.OptMessageType(kind))
	r.Options.Update(dhcpv4.OptServerIdentifier(s.cfg.Gateway.AsSlice()))
	if id := req.Options.Get(dhcpv4.OptionClientIdentifier); id != nil { // RFC 6842
		r.Options.Update(dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, id))
	}
	return r
}

// reply4 is an OFFER or ACK with every option that the client gets: the ones a host cannot do without
// always, the others when asked for.
func (s *Server) reply4(req *request4, kind dhcpv4.MessageType, addr netip.Addr) *dhcpv4.DHCPv4 {
	r := s.head(req, kind)
	r.YourIPAddr = addr.AsSlice()
	if kind == dhcpv4.MessageTypeAck {
		r.ClientIPAddr = req.ClientIPAddr
	}
	put := func(o dhcpv4.Option) { r.Options.Update(o) }
	asked := func(c dhcpv4.OptionCode) bool {
		// A client without a list gets everything, as "those asked for" would leave it with nothing.
		return !req.Options.Has(dhcpv4.OptionParameterRequestList) || req.IsOptionRequested(c)
	}
	term := s.term(req)
	secs := func(c dhcpv4.OptionCode, d time.Duration) dhcpv4.Option {
		return dhcpv4.Option{Code: c, Value: dhcpv4.Duration(d)}
	}
	put(secs(dhcpv4.OptionIPAddressLeaseTime, term))
	put(secs(dhcpv4.OptionRenewTimeValue, term/2))       // RFC 2131 section 4.4.5
	put(secs(dhcpv4.OptionRebindingTimeValue, term/8*7)) // likewise
	put(dhcpv4.OptSubnetMask(mask(s.cfg.Prefix)))
	put(dhcpv4.OptRouter(s.cfg.Gateway.AsSlice()))
	if len(s.cfg.DNS) > 0 {
		var b []byte
		for _, a := range s.cfg.DNS {
			b = append(b, a.AsSlice()...)
		}
		put(dhcpv4.OptGeneric(dhcpv4.OptionDomainNameServer, b))
	}
	if asked(dhcpv4.OptionBroadcastAddress) {
		put(dhcpv4.OptBroadcastAddress(lastAddr(s.cfg.Prefix).AsSlice()))
	}
	if name := s.nameFor(addr, req.client); name != "" && asked(dhcpv4.OptionHostName) {
		put(dhcpv4.OptHostName(name))
	}
	if s.cfg.Domain != "" && asked(dhcpv4.OptionDomainName) {
		put(dhcpv4.OptDomainName(s.cfg.Domain))
	}
	if s.cfg.MTU != 0 && asked(dhcpv4.OptionInterfaceMTU) {
		put(optMTU(s.cfg.MTU))
	}
	if len(s.search) > 0 && asked(dhcpv4.OptionDNSDomainSearchList) {
		put(dhcpv4.OptGeneric(dhcpv4.OptionDNSDomainSearchList, s.search))
	}
	return r
}

func optMTU(n int) dhcpv4.Option {
	return dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(n >> 8), byte(n)})
}

// nameFor is the name that a client is told: the one its lease holds, or the one that it is to have.
func (s *Server) nameFor(addr netip.Addr, c client) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.v4.byAddr[addr]; r != nil && r.state == Bound && r.mac == c.mac && r.guest == c.guest {
		return r.name
	}
	return s.cfg.Static[c.mac].Hostname
}

func mask(p netip.Prefix) []byte {
	m := uint32(0xffffffff) << (32 - p.Bits())
	return []byte{byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}
}

func (s *Server) nak(req *request4, why string) (*Reply, error) {
	r := s.head(req, dhcpv4.MessageTypeNak)
	r.Options.Update(dhcpv4.OptMessage(why))
	return s.pack(req, r, "NAK")
}

// options that a reply can do without, the least missed first, when it is larger than the client takes.
var spare = []dhcpv4.OptionCode{
	dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionBroadcastAddress, dhcpv4.OptionDomainName, dhcpv4.OptionHostName,
	dhcpv4.OptionRebindingTimeValue, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionDomainNameServer,
}

// pack makes bytes of a reply and says where they go (RFC 2131 section 4.1).
func (s *Server) pack(req *request4, m *dhcpv4.DHCPv4, kind string) (*Reply, error) {
	size := 576 // what every client takes, as an IP datagram (RFC 2131 section 2)
	if n, err := req.MaxMessageSize(); err == nil {
		size = max(size, int(n))
	}
	size = min(size, 1500) - 20 - 8 // never a fragment on the smallest usual link; IP and UDP headers
	note(s.counts.to4[:], to4[:], int(m.MessageType()))
	b := m.ToBytes()
	for _, c := range spare {
		if len(b) <= size {
			break
		}
		m.Options.Del(c)
		b = m.ToBytes()
	}
	dst, to := netip.AddrFrom4([4]byte{255, 255, 255, 255}), Broadcast
	switch {
	case kind == "NAK": // the client must believe nothing it has
	case req.ciaddr.IsValid():
		dst, to = req.ciaddr, req.client.mac
	case req.IsBroadcast():
	default:
		dst, _ = netip.AddrFromSlice(slices.Clone(m.YourIPAddr))
		to = req.client.mac
	}
	r := &Reply{Payload: b, Dst: netip.AddrPortFrom(dst.Unmap(), dhcpv4.ClientPort), MAC: to, Type: kind}
	// Only for a client that says that it wants an MTU: a small device's whole ring of buffers may be less than the
	// frame that Large goes into.
	if s.cfg.LargeMTU != 0 && kind == "ACK" && req.Options.Has(dhcpv4.OptionParameterRequestList) && req.IsOptionRequested(dhcpv4.OptionInterfaceMTU) {
		m.Options.Update(optMTU(s.cfg.LargeMTU))
		r.Large = m.ToBytes()
	}
	return r, nil
}
