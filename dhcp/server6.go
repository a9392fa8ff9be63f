package dhcp

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

// maxIA is how many identity associations of one message get an address. A client has one an interface;
// more are told that none is left.
const maxIA = 4

// maxAsked is how many associations of any kind a message may have: each is answered by about 50 bytes, and
// the answer has to fit one Ethernet frame.
const maxAsked = 16

// maxDUID is RFC 8415 section 11.1: 128 bytes after the type.
const maxDUID = 130

// request6 is a client's message, checked and in our own words.
type request6 struct {
	*dhcpv6.Message
	client client // id is still without an IAID
	ias    []*dhcpv6.OptIANA
	budget int // of probes
}

// ia is the client as one of its identity associations.
func (r *request6) ia(o *dhcpv6.OptIANA) client {
	c := r.client
	c.id = c.duid + string(o.IaId[:])
	return c
}

// Handle6 answers the payload of a UDP datagram that a guest sent to port 547, from the frame whose source
// is mac and the address src. A nil reply without an error is a message that wants none.
func (s *Server) Handle6(ctx context.Context, guest string, mac MAC, src netip.Addr, payload []byte) (*Reply, error) {
	if s.v6 == nil {
		return nil, refuse(Disabled, "no IPv6 prefix")
	}
	src = src.WithZone("")
	if !mac.unicast() {
		return nil, refuse(Forged, "frame from %v, want one interface's address", mac)
	}
	if !src.Is6() || !src.IsLinkLocalUnicast() && !s.cfg.Prefix6.Contains(src) || src == s.cfg.Gateway6 {
		return nil, refuse(Forged, "message from %v, want a link-local address or one of %v", src, s.cfg.Prefix6)
	}
	req, err := s.parse6(guest, mac, payload)
	s.counts.heard6(req, err)
	if err != nil {
		return nil, err
	}
	defer s.flush()
	r := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: req.TransactionID}
	if id := req.GetOneOption(dhcpv6.OptionClientID); id != nil {
		r.AddOption(id)
	}
	r.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionServerID, OptionData: s.duid})
	switch req.MessageType {
	case dhcpv6.MessageTypeSolicit:
		err = s.solicit(ctx, req, r)
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		err = s.extend(ctx, req, r)
	case dhcpv6.MessageTypeConfirm:
		err = s.confirm(req, r)
	case dhcpv6.MessageTypeRelease:
		s.giveBack(req, r, s.release)
	case dhcpv6.MessageTypeDecline:
		s.giveBack(req, r, s.decline)
	case dhcpv6.MessageTypeInformationRequest:
	}
	if err != nil {
		return nil, err
	}
	s.tell(req, r)
	kind := "REPLY"
	if r.MessageType == dhcpv6.MessageTypeAdvertise {
		kind = "ADVERTISE"
	}
	note(s.counts.to6[:], to6[:], int(r.MessageType))
	return &Reply{Payload: r.ToBytes(), Dst: netip.AddrPortFrom(src, dhcpv6.DefaultClientPort), MAC: mac, Type: kind}, nil
}

// parse6 refuses what RFC 8415 section 16 has a server discard.
func (s *Server) parse6(guest string, mac MAC, payload []byte) (*request6, error) {
	if len(payload) > maxMessage {
		return nil, refuse(Malformed, "message of %d bytes, want at most %d", len(payload), maxMessage)
	}
	if len(payload) < dhcpv6.MessageHeaderSize {
		return nil, refuse(Malformed, "message of %d bytes, want at least 4", len(payload))
	}
	const id, noID, ours, noServer = 1, 2, 4, 8 // client and server identifier: must be there, may be missing
	var want int
	switch t := dhcpv6.MessageType(payload[0]); t {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		want = id | noServer
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		want = id | ours
	case dhcpv6.MessageTypeInformationRequest:
		want = noID | ours | noServer
	case dhcpv6.MessageTypeRelayForward, dhcpv6.MessageTypeRelayReply:
		return nil, refuse(Relayed, "%v", t)
	case dhcpv6.MessageTypeAdvertise, dhcpv6.MessageTypeReply, dhcpv6.MessageTypeReconfigure:
		return nil, refuse(NotRequest, "a server's %v from a guest", t)
	default:
		return nil, refuse(Unsupported, "message type %d", payload[0])
	}
	m := &dhcpv6.Message{MessageType: dhcpv6.MessageType(payload[0]), TransactionID: dhcpv6.TransactionID(payload[1:4])}
	if err := m.Options.FromBytesWithParser(payload[4:], option6); err != nil {
		return nil, refuse(Malformed, "%v", err)
	}
	req := &request6{Message: m, client: client{guest: guest, mac: mac}, ias: m.Options.IANA(), budget: maxProbes}
	if d := m.GetOneOption(dhcpv6.OptionClientID); d != nil {
		req.client.duid = string(d.ToBytes())
	}
	if n := len(req.client.duid); n > maxDUID || n < 3 && (n != 0 || want&noID == 0) {
		return nil, refuse(Malformed, "%v with a client identifier of %d bytes, want 3 to %d", m.MessageType, n, maxDUID)
	}
	switch d := m.GetOneOption(dhcpv6.OptionServerID); {
	case d == nil && want&noServer == 0:
		return nil, refuse(Malformed, "%v without a server identifier", m.MessageType)
	case d != nil && want&ours == 0:
		return nil, refuse(Malformed, "%v with a server identifier", m.MessageType)
	case d != nil && string(d.ToBytes()) != string(s.duid):
		return nil, refuse(NotRequest, "%v for another server", m.MessageType)
	}
	if m.MessageType == dhcpv6.MessageTypeInformationRequest &&
		(len(req.ias) > 0 || m.GetOneOption(dhcpv6.OptionIATA) != nil || m.GetOneOption(dhcpv6.OptionIAPD) != nil) {
		return nil, refuse(Malformed, "information request that asks for addresses") // section 16.12
	}
	n := 0
	for _, o := range m.Options.Options {
		switch o.Code() {
		case dhcpv6.OptionIANA, dhcpv6.OptionIATA, dhcpv6.OptionIAPD:
			n++
		}
	}
	if n > maxAsked {
		return nil, refuse(Malformed, "%d identity associations, want at most %d", n, maxAsked)
	}
	if f := m.GetOneOption(dhcpv6.OptionFQDN); f != nil {
		if b := f.ToBytes(); len(b) > 1 { // flags, then the name (RFC 4704 section 4)
			req.client.host = Label(string(firstLabel(b[1:])))
		}
	}
	return req, nil
}

// option6 reads what this server looks at and leaves the rest as bytes. The codec would read everything,
// names too, and unpack 1400 bytes of pointers to one another into 90 MB.
func option6(code dhcpv6.OptionCode, b []byte) (dhcpv6.Option, error) {
	switch code {
	case dhcpv6.OptionClientID, dhcpv6.OptionServerID, dhcpv6.OptionORO:
		return dhcpv6.ParseOption(code, b)
	case dhcpv6.OptionIANA:
		if len(b) < 12 { // IAID, T1, T2
			return nil, fmt.Errorf("IA_NA of %d bytes, want at least 12", len(b))
		}
		o := &dhcpv6.OptIANA{IaId: [4]byte(b)}
		return o, o.Options.FromBytesWithParser(b[12:], func(code dhcpv6.OptionCode, b []byte) (dhcpv6.Option, error) {
			if code != dhcpv6.OptionIAAddr {
				return &dhcpv6.OptionGeneric{OptionCode: code}, nil
			}
			if len(b) < 24 { // address, two lifetimes
				return nil, fmt.Errorf("IA address of %d bytes, want at least 24", len(b))
			}
			return dhcpv6.ParseOption(code, b[:24])
		})
	case dhcpv6.OptionIATA:
		if len(b) < 4 {
			return nil, fmt.Errorf("IA_TA of %d bytes, want at least 4", len(b))
		}
		return &dhcpv6.OptIATA{IaId: [4]byte(b)}, nil
	case dhcpv6.OptionIAPD:
		if len(b) < 12 {
			return nil, fmt.Errorf("IA_PD of %d bytes, want at least 12", len(b))
		}
		return &dhcpv6.OptIAPD{IaId: [4]byte(b)}, nil
	}
	return &dhcpv6.OptionGeneric{OptionCode: code, OptionData: b}, nil
}

// solicit is section 18.3.1: an ADVERTISE, or with rapid commit a REPLY at once.
func (s *Server) solicit(ctx context.Context, req *request6, r *dhcpv6.Message) error {
	commit := req.GetOneOption(dhcpv6.OptionRapidCommit) != nil
	if commit {
		r.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
	} else {
		r.MessageType = dhcpv6.MessageTypeAdvertise
		// The largest preference: the client need not wait a second for a better server (section 18.2.1).
		r.AddOption(dhcpv6.OptPreference(255))
	}
	for i, ia := range req.ias {
		addr, err := s.assign6(ctx, req, i, ia, hint(ia), commit)
		if err != nil {
			return err
		}
		s.addIA(r, ia, addr, dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail, StatusMessage: "no address is left"})
	}
	return nil
}

// assign6 finds an address for the i-th association, and binds it on commit. Zero: none is left.
func (s *Server) assign6(ctx context.Context, req *request6, i int, ia *dhcpv6.OptIANA, want netip.Addr, commit bool) (netip.Addr, error) {
	if i >= min(maxIA, s.share6(req.client.guest)) {
		return netip.Addr{}, nil
	}
	c := req.ia(ia)
	addr, err := s.acquire(ctx, s.v6, c, want, &req.budget)
	if _, ours := err.(*Error); ours {
		return netip.Addr{}, nil
	}
	if err != nil || !commit {
		return addr, err
	}
	why, err := s.claim(ctx, s.v6, c, addr, s.term6(), &req.budget)
	if why != "" || err != nil {
		return netip.Addr{}, err
	}
	return addr, nil
}

// hint is the address that a client would like.
func hint(ia *dhcpv6.OptIANA) netip.Addr {
	if o := ia.Options.OneAddress(); o != nil {
		if a, ok := netip.AddrFromSlice(o.IPv6Addr); ok && !a.IsUnspecified() {
			return a
		}
	}
	return netip.Addr{}
}

// extend is sections 18.3.2, 18.3.4 and 18.3.5. A binding that is not known is made anew if its address is
// free: see claim for why.
func (s *Server) extend(ctx context.Context, req *request6, r *dhcpv6.Message) error {
	none := dhcpv6.OptStatusCode{StatusCode: iana.StatusNoBinding, StatusMessage: "this association has no address"}
	for i, ia := range req.ias {
		c, want := req.ia(ia), hint(ia)
		held := s.held6(c)
		switch {
		case req.MessageType == dhcpv6.MessageTypeRequest:
			if want.IsValid() && !s.cfg.Prefix6.Contains(want) {
				s.addIA(r, ia, netip.Addr{}, dhcpv6.OptStatusCode{StatusCode: iana.StatusNotOnLink, StatusMessage: "not an address of this network"})
				continue
			}
			addr, err := s.assign6(ctx, req, i, ia, want, true)
			if err != nil {
				return err
			}
			s.addIA(r, ia, addr, dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail, StatusMessage: "no address is left"})
		case held.IsValid() || want.IsValid() && i < min(maxIA, s.share6(req.client.guest)):
			if held.IsValid() {
				want = held
			}
			why, err := s.claim(ctx, s.v6, c, want, s.term6(), &req.budget)
			if err != nil {
				return err
			}
			if why != "" {
				want = netip.Addr{}
			}
			s.addIA(r, ia, want, none)
		default:
			s.addIA(r, ia, netip.Addr{}, none)
		}
	}
	return nil
}

// held6 is the address that an association holds, or last held.
func (s *Server) held6(c client) netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attach(s.v6, c.guest)
	if r := s.v6.best(c, nil); r != nil {
		return r.addr
	}
	return netip.Addr{}
}

// addIA answers one association: with its address, or with why there is none. Addresses that the client
// has and should not are told with lifetimes of zero.
func (s *Server) addIA(r *dhcpv6.Message, ia *dhcpv6.OptIANA, addr netip.Addr, none dhcpv6.OptStatusCode) {
	o := &dhcpv6.OptIANA{IaId: ia.IaId}
	if addr.IsValid() {
		d := s.term6()
		o.T1, o.T2 = d/2, d/10*8 // section 21.4
		o.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: addr.AsSlice(), PreferredLifetime: d, ValidLifetime: d})
		for i, had := range ia.Options.Addresses() {
			if a, ok := netip.AddrFromSlice(had.IPv6Addr); ok && a != addr && !a.IsUnspecified() && i < maxIA && r.MessageType == dhcpv6.MessageTypeReply {
				o.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: had.IPv6Addr})
			}
		}
	} else {
		o.Options.Add(&none)
	}
	r.AddOption(o)
}

// confirm is section 18.3.3: is the client still on the network that its addresses are of?
func (s *Server) confirm(req *request6, r *dhcpv6.Message) error {
	st := &dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess, StatusMessage: "all addresses are of this network"}
	n := 0
	for _, ia := range req.ias {
		for _, o := range ia.Options.Addresses() {
			n++
			if a, ok := netip.AddrFromSlice(o.IPv6Addr); !ok || !s.cfg.Prefix6.Contains(a) {
				st = &dhcpv6.OptStatusCode{StatusCode: iana.StatusNotOnLink, StatusMessage: "not an address of this network"}
			}
		}
	}
	if n == 0 { // the section has the server be silent
		return refuse(Malformed, "CONFIRM without an address")
	}
	r.AddOption(st)
	return nil
}

// giveBack is sections 18.3.7 and 18.3.8: RELEASE and DECLINE.
func (s *Server) giveBack(req *request6, r *dhcpv6.Message, do func(*table, client, netip.Addr) bool) {
	for _, ia := range req.ias {
		c, ok := req.ia(ia), false
		for i, o := range ia.Options.Addresses() {
			if a, valid := netip.AddrFromSlice(o.IPv6Addr); valid && i < maxIA && do(s.v6, c, a) {
				ok = true
			}
		}
		if !ok {
			s.addIA(r, ia, netip.Addr{}, dhcpv6.OptStatusCode{StatusCode: iana.StatusNoBinding, StatusMessage: "this association does not have that address"})
		}
	}
	r.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
}

// tell adds what is configured: DNS servers and search list when asked for, or when nothing particular is.
// Associations that vmnetd does not serve are told so, lest a client wait for them.
func (s *Server) tell(req *request6, r *dhcpv6.Message) {
	switch req.MessageType {
	case dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		return
	}
	for _, o := range req.Options.Options {
		switch o := o.(type) {
		case *dhcpv6.OptIATA:
			ta := &dhcpv6.OptIATA{IaId: o.IaId}
			ta.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail, StatusMessage: "no temporary addresses"})
			r.AddOption(ta)
		case *dhcpv6.OptIAPD:
			pd := &dhcpv6.OptIAPD{IaId: o.IaId}
			pd.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoPrefixAvail, StatusMessage: "no prefixes"})
			r.AddOption(pd)
		}
	}
	all := req.GetOneOption(dhcpv6.OptionORO) == nil
	asked := func(c dhcpv6.OptionCode) bool { return all || req.IsOptionRequested(c) }
	if len(s.cfg.DNS6) > 0 && asked(dhcpv6.OptionDNSRecursiveNameServer) {
		var b []byte
		for _, a := range s.cfg.DNS6 {
			b = append(b, a.AsSlice()...)
		}
		r.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionDNSRecursiveNameServer, OptionData: b})
	}
	if len(s.labels) > 0 && asked(dhcpv6.OptionDomainSearchList) {
		// Uncompressed: section 10.
		r.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: s.labels}))
	}
	if req.MessageType == dhcpv6.MessageTypeInformationRequest && req.IsOptionRequested(dhcpv6.OptionInformationRefreshTime) {
		// Not under IRT_MINIMUM, section 7.6.
		r.AddOption(dhcpv6.OptInformationRefreshTime(max(s.term6(), 10*time.Minute)))
	}
}

func (s *Server) term6() time.Duration { return s.cfg.LeaseTime.Truncate(time.Second) }
