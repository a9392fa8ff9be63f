package backend

// Station 3 of a network without an uplink, and of a wire. Nobody is behind the switch: no gateway, no services, no stack.
// So nothing is judged, either: whatever a guest sends goes where its MAC leads, tagged or not, of any EtherType, to the
// groups that bridges keep to themselves (LLDP, spanning tree, LACP) as well. A MAC is where it was heard last, as with any
// switch: a virtual router's moves with it, and a guest that sends as another takes its frames. Pause frames alone end here:
// they are for the next station on a cable (IEEE 802.3 annex 31B), and stop its sending.
//
// What stays is what keeps one guest from another's time and memory: queues that drop, a bound on what goes to all, a
// number of MACs and addresses for each wire.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/portforward"
)

const (
	// plainFloodRate and plainFloodBurst bound what one guest can have copied to all others of a switch without an uplink:
	// ten times floodRate, since a lab's nodes send streams to groups, and frames to stations that say nothing. A loop of
	// two bridges turns at this rate and leaves the processor alone. To one other there is no bound: it is no copying.
	plainFloodRate  = 10 * floodRate
	plainFloodBurst = 10 * floodBurst

	// leastPlainMTU is IPv4's (RFC 791 §3.2): a network without an uplink need not carry IPv6.
	leastPlainMTU = 68

	etherPause = 0x8808 // MAC control
)

// pauseMAC is where pause frames go.
var pauseMAC = mac{0x01, 0x80, 0xc2, 0, 0, 1}

// ErrNoUplink is what asks for something that a network without an uplink does not have.
var ErrNoUplink = errors.New("the network has no uplink")

// plain says that there is no gateway in the network.
func (c *Config) plain() bool { return c.NoUplink || c.Wire }

// withoutUplink is withDefaults of a network without one.
func (c Config) withoutUplink() (Config, error) {
	what := "a network without an uplink"
	if c.Wire {
		what = "a wire"
	}
	var errs []error
	for _, x := range []struct {
		what string
		set  bool
	}{
		{"port forwards", len(c.Forwards) > 0},
		{"fixed leases", len(c.Static) > 0},
		{"strict leases", c.StrictLeases},
		{"DNS records", len(c.Records) > 0},
		{"resolvers", len(c.Resolvers) > 0},
		{"a policy", c.Policy != nil},
		{"routes", c.Routes != nil},
		{"open link-local prefixes", len(c.OpenLinkLocal) > 0},
		{"a gateway", c.Gateway4.IsValid() || c.Gateway6.IsValid() || c.GatewayMAC != nil},
		{"a DNS server", c.DNS4.IsValid() || c.DNS6.IsValid()},
		{"a first address to lease", c.First4.IsValid()},
		{"isolated guests: nobody would hear them", c.Wire && c.Isolate},
	} {
		if x.set {
			errs = append(errs, fmt.Errorf("network %s: %s has no %s", c.Name, what, strings.TrimPrefix(x.what, "a ")))
		}
	}
	for _, x := range []struct {
		p  *netip.Prefix
		v6 bool
	}{{&c.Prefix4, false}, {&c.Prefix6, true}} {
		switch p := *x.p; {
		case !p.IsValid():
			*x.p = netip.Prefix{}
		case p.Addr().Is4() == x.v6 || p.Addr().Is4In6():
			errs = append(errs, fmt.Errorf("network %s: prefix %s: want the other family's in its place", c.Name, p))
		default:
			*x.p = p.Masked()
		}
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.MTU < leastPlainMTU || c.MTU > MaxMTU {
		errs = append(errs, fmt.Errorf("network %s: mtu %d: want %d (IPv4's least, RFC 791) to %d", c.Name, c.MTU, leastPlainMTU, MaxMTU))
	}
	// What speaks of the way out and harms nothing.
	c.LargeMTU, c.LargeNICs, c.StateDir, c.Domain, c.Search, c.Doors = 0, false, "", "", nil, nil
	c.NoUplink = true
	c.Egress = &egress.Host{} // which has loops run; nothing leaves by it
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, errors.Join(errs...)
}

// onSwitch carries one frame.
func (p *port) onSwitch(s link.Span) {
	h := p.batch.Head(s, headLen, p.scratch[:])
	if len(h) < ethLen {
		p.drop(flows.ReasonMalformed)
		return
	}
	dst, src := macOf(h), macOf(h[6:])
	seg := &p.net.seg
	gen := seg.gen.Load() // another may have sent as this MAC since
	if (src != p.lastMAC || gen != p.lastMACGen) && !p.isHere(src, gen) {
		return
	}
	kind := binary.BigEndian.Uint16(h[12:])
	if dst == pauseMAC && kind == etherPause {
		p.drop(flows.ReasonUnsupported)
		return
	}
	p.shows(kind, h[ethLen:], src, gen)
	if !dst.isMulticast() {
		to, others := seg.goes(dst)
		switch {
		case to == p || !others:
			return
		case to != nil:
			p.hand(to, kind, h, s)
			return
		}
	}
	if p.alone() {
		p.drop(flows.ReasonIsolated)
		return
	}
	if p.leaves() && !p.finishAlone(packetOf(kind, h[ethLen:]), s) {
		return
	}
	seg.flood(p, p.batch, s)
}

// alone says that the port's frames reach nobody but those that get every frame.
func (p *port) alone() bool { return p.net.cfg.Isolate && p.role != promiscuous }

// hand carries a frame to one other port, whatever it is.
func (p *port) hand(to *port, kind uint16, h []byte, s link.Span) {
	switch {
	case to.role != ordinary: // it has its copy
		return
	case p.alone():
		p.drop(flows.ReasonIsolated)
		return
	}
	p.handOn(to, kind, h, s)
}

// handOn is hand's second half, for those that nobody keeps apart.
func (p *port) handOn(to *port, kind uint16, h []byte, s link.Span) {
	if p.leaves() && !p.finishFor(packetOf(kind, h[ethLen:]), s, to) {
		return
	}
	if s.Len()-ethLen > to.carries {
		to.drop(flows.ReasonUnreachable)
		return
	}
	p.elsewhere++
	p.onward.add(p, to, s)
}

// isHere notes that a MAC sends on this port, and says whether it may.
func (p *port) isHere(m mac, gen uint64) bool {
	if m.isMulticast() {
		p.drop(flows.ReasonMalformed)
		return false
	}
	seg := &p.net.seg
	if p.role == promiscuous && !seg.free(p, m) {
		return true // a sensor that speaks as another does not take its frames, which it has copies of
	}
	if seg.at(m) != p {
		if !seg.learnMAC(p, m) {
			return false
		}
		gen = seg.gen.Load()
	}
	p.lastMAC, p.lastMACGen, p.lastOwn = m, gen, true
	p.isKnown()
	return true
}

// isKnown has in force what is the guest's by its first MAC.
func (p *port) isKnown() {
	if !p.known {
		p.known = true
		p.limit()
		p.impair()
	}
}

// shows notes the address that a frame comes from, where it says whose it is: for people, and for who waits for it.
func (p *port) shows(kind uint16, ip []byte, src mac, gen uint64) {
	a := sourceOf(kind, ip)
	fam := 0
	if a.Is6() {
		fam = 1
	}
	if !a.IsValid() || a == p.lastSrc[fam] && src == p.lastSrcMAC[fam] && gen == p.lastSrcGen[fam] {
		return
	}
	c := &p.net.cfg
	if a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Is4In6() ||
		!(kind == etherARP || c.Prefix4.Contains(a) || c.Prefix6.Contains(a) || a.Is6() && a.IsLinkLocalUnicast()) {
		return // a router's packets have others' sources
	}
	if p.net.seg.learnAddr(p, a, src) {
		p.lastSrc[fam], p.lastSrcMAC[fam], p.lastSrcGen[fam] = a, src, gen
	}
}

// alongWire carries one frame to the other end, as it is.
func (p *port) alongWire(s link.Span) {
	h := p.batch.Head(s, headLen, p.scratch[:])
	if len(h) < ethLen {
		p.drop(flows.ReasonMalformed)
		return
	}
	kind := binary.BigEndian.Uint16(h[12:])
	if macOf(h) == pauseMAC && kind == etherPause {
		p.drop(flows.ReasonUnsupported)
		return
	}
	if src := macOf(h[6:]); !p.known && !src.isMulticast() { // the guest is called by it; nothing else comes of it
		p.net.seg.learnMAC(p, src)
		p.isKnown()
	}
	if to := p.far.Load(); to != nil {
		p.handOn(to, kind, h, s)
	}
}

// allowForward refuses forwards where nothing could come in, and else asks who may say so.
func (n *Network) allowForward(r portforward.Rule) error {
	if n.cfg.plain() {
		return ErrNoUplink
	}
	if n.cfg.AllowForward != nil {
		return n.cfg.AllowForward(r)
	}
	return nil
}
