// Package dhcp leases the addresses of one IPv4 prefix and one IPv6 prefix.
//
// It is a function of (request, now): no socket, no goroutine, no timer. Hand it the bytes of a guest's
// UDP payload, get back the bytes of the answer and where they go:
//
//	s, err := dhcp.New(dhcp.Config{
//		Prefix:  netip.MustParsePrefix("10.0.2.0/24"),
//		Gateway: netip.MustParseAddr("10.0.2.2"),
//		DNS:     []netip.Addr{netip.MustParseAddr("10.0.2.3")},
//	})
//	...
//	reply, err := s.Handle4(ctx, "guest-1", mac, payload) // what came to port 67
//	if reply != nil {
//		send(reply.MAC, reply.Dst, reply.Payload) // from Gateway:67
//	}
//
// Either family may be left out by leaving its prefix out. The wire format is insomniacslk/dhcp's; the
// decisions are here, in this order of reading: server4.go and server6.go (one message in, one out),
// lease.go (who gets which address), table.go (what is known of each address), names.go (host names),
// state.go (the file), quirks.go (clients that do not read RFCs).
//
// # Guests and clients
//
// A guest is the link that a frame came through; it cannot lie about that. A client is whoever speaks
// DHCP behind it, and everything it says may be a lie: MAC, client identifier, DUID. Hence:
//
//   - A lease belongs to a guest. While that guest is attached no other guest can renew, release, decline
//     or be given it, whatever identity it shows. Two clones with one machine-id, and two QEMU guests with
//     QEMU's one default MAC, get two addresses.
//   - A guest holds at most PerGuest addresses of each family. One more takes the place of its own oldest.
//   - When the pool is dry, addresses go back first from clients whose lease has ended, then from guests
//     that are away, the one that holds most first. A lease of a guest that is here is never taken back.
//
// A guest is here from Attach or its first message until Detach. A guest that comes back through another link is
// known again by the client's MAC, and so gets the address that it had.
//
// # What it does not do
//
// No relays (their messages are refused), no prefix delegation, no temporary addresses, no dynamic DNS
// update (OnLease tells the caller, who has the zone), no authentication, no boot files.
package dhcp

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// DefaultLeaseTime is libslirp's, so that a guest moved from QEMU's own user network sees nothing new.
	// It outlasts a night's suspend; a long lease costs nothing, for a dry pool takes leases of guests
	// that are away back.
	DefaultLeaseTime = 24 * time.Hour

	// DefaultPerGuest is as many as libslirp leases on its whole network. A small pool lowers it to a
	// quarter of its addresses, so that one hostile guest leaves three quarters to the others.
	DefaultPerGuest = 16

	// OfferTime is how long an unanswered offer is held: RFC 2131 section 4.1 has clients send again after
	// 4, 8 and 16 seconds, so three lost requests are waited for. A request that comes later still gets
	// its address if nobody took it meanwhile.
	OfferTime = 30 * time.Second

	// QuarantineTime is how long an address that a client declined, or that somebody was found to use, is
	// offered to nobody. Long enough for a user to find the clash, short enough that a pool heals by
	// itself; dnsmasq waits as long after a decline.
	QuarantineTime = 10 * time.Minute

	// MinLeaseTime is the shortest lease that a client may ask for (option 51). With less, renewals at
	// half of it would be a means to keep the daemon busy.
	MinLeaseTime = time.Minute

	// maxMessage bounds what is parsed: the payload of one Ethernet frame. No client sends more: RFC 2131
	// section 2 promises it only 576.
	maxMessage = 1500

	// maxRecords bounds the table of one family where the pool is larger: about 2 MiB of memory, and
	// 4096 guests are more than one daemon's descriptors.
	maxRecords = 4096

	// maxProbes is how many addresses one message may have probed. At the backend's 100 ms or so each, the
	// answer comes before the client sends again (4 s); what was found in use stays known, so the next
	// message goes on from there.
	maxProbes = 8
)

// Config says what is leased and told. Prefix or Prefix6 must be set; every other zero value has a meaning.
type Config struct {
	Prefix  netip.Prefix // IPv4 network; zero: no DHCPv4
	Gateway netip.Addr   // router and server identifier; must be in Prefix
	DNS     []netip.Addr // IPv4 servers told; none: option 6 is left out
	First   netip.Addr   // first address leased; zero: network + 15 as QEMU has it, or the lowest where the prefix is smaller

	Prefix6  netip.Prefix // IPv6 network; zero: no DHCPv6
	Gateway6 netip.Addr   // never leased; routers are told by advertisements, not by DHCPv6
	DNS6     []netip.Addr // IPv6 servers told
	Pool6    netip.Prefix // addresses leased; zero: Prefix6's ::1000 to ::1fff, which no EUI-64 or random address falls in

	MTU int // option 26; 0: not told
	// LargeMTU is told in Reply.Large in MTU's place; 0: there is none.
	LargeMTU int
	Domain   string   // option 15; "": not told
	Search   []string // option 119, DHCPv6 option 24; none: Domain alone if that is set

	LeaseTime time.Duration       // 0: DefaultLeaseTime
	PerGuest  int                 // addresses of each family that one guest may hold; 0: DefaultPerGuest, less in a small pool
	Static    map[MAC]Reservation // addresses and names that belong to a MAC
	Reserved  []netip.Addr        // never leased, besides gateway, DNS, network and broadcast
	NoNames   []string            // host names that no guest gets; localhost never is given
	Now       func() time.Time    // nil: time.Now
	OnLease   func(Lease, Event)  // called in order, one at a time, no lock held; nil: nobody is told

	// InUse reports whether anybody but mac answers for addr, and through which guest ("" if that is not
	// known). It is called before an address goes to a client that does not hold it, with no lock held; it
	// may block, and at most eight times for one message. A guest that claims more than PerGuest addresses
	// is no longer believed, so that none can claim the pool. It is called as often as guests ask for
	// addresses: what it sends to other guests is its own to limit. Nil: nothing is probed.
	InUse func(ctx context.Context, addr netip.Addr, guest string, mac MAC) (by string, used bool)
}

// Reservation is what a MAC gets whenever it asks. Zero fields are leased as for anybody.
type Reservation struct {
	Addr     netip.Addr // IPv4
	Addr6    netip.Addr // for the first IA_NA
	Hostname string     // told by option 12, and held whether or not the client says a name
}

// MAC is an Ethernet address; its text form is 52:54:00:12:34:56.
type MAC [6]byte

// Broadcast is where answers go that a client without an address could not receive otherwise.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText gives the form with colons.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText takes every form that net.ParseMAC takes, of six bytes.
func (m *MAC) UnmarshalText(b []byte) error {
	if len(b) > 32 { // the longest form has 17 characters; do not echo a megabyte in the error
		return fmt.Errorf("dhcp: MAC address of %d characters, want 17", len(b))
	}
	hw, err := net.ParseMAC(string(b))
	if err != nil {
		return fmt.Errorf("dhcp: MAC address %q: want six bytes such as 52:54:00:12:34:56", b)
	}
	if len(hw) != len(m) {
		return fmt.Errorf("dhcp: MAC address %q has %d bytes, want 6", b, len(hw))
	}
	copy(m[:], hw)
	return nil
}

// unicast is false for what cannot be one interface's address.
func (m MAC) unicast() bool { return m != MAC{} && m[0]&1 == 0 }

// Reply is an answer to be put into a frame. It leaves from Gateway port 67, or for DHCPv6 from the
// gateway's link-local address port 547, and only towards the guest that asked.
type Reply struct {
	Payload []byte
	Dst     netip.AddrPort // RFC 2131 section 4.1; RFC 8415 section 18.3.10
	MAC     MAC
	Type    string // OFFER, ACK, NAK, ADVERTISE, REPLY, BOOTREPLY

	// Large is Payload with LargeMTU in it, nil unless that is set and the client asks for an MTU in an exchange that
	// this ACK ends. It is for a frame that is padded to LargeMTU and sent first: a client that hears it has a NIC
	// that takes such frames, and passes over the second ACK; any other hears the second alone.
	Large []byte
}

// Reason says why a message got no answer. The list is closed.
type Reason string

const (
	Malformed   Reason = "malformed"     // not a DHCP message, or one that contradicts itself
	Forged      Reason = "forged"        // its hardware address is not the frame's, or no unicast address
	Relayed     Reason = "relayed"       // came through a relay agent; there is none on this network
	NotRequest  Reason = "not-a-request" // a server's message
	PoolEmpty   Reason = "pool-empty"    // no address is left
	NoBinding   Reason = "no-binding"    // released or declined what the client does not hold
	OffNetwork  Reason = "off-network"   // informed about an address that is not of this network
	Disabled    Reason = "disabled"      // this family has no prefix
	Unsupported Reason = "unsupported"   // a message type that no client sends here
)

// Error is every error of Handle4 and Handle6 except the context's. Its text is of bounded length.
type Error struct {
	Reason Reason
	Detail string
}

func (e *Error) Error() string { return "dhcp: " + string(e.Reason) + ": " + e.Detail }

func refuse(r Reason, format string, args ...any) error {
	d := fmt.Sprintf(format, args...)
	if len(d) > 200 { // one log line
		d = d[:200]
	}
	return &Error{r, d}
}

// Server holds the leases. Its methods may be called from any goroutine.
type Server struct {
	cfg    Config
	duid   []byte // server DUID
	search []byte // option 119, compressed
	labels []string
	noName map[string]bool
	named  map[string]MAC // reserved host names
	counts counts

	mu    sync.Mutex // never held across a callback
	v4    *table     // nil: family off
	v6    *table
	names map[string]map[*record]struct{} // bound records by the name they hold
	queue []notice                        // for OnLease, in order
	gen   uint64                          // counts changes, for Save
	saved map[string]uint64               // gen that each file holds

	deliver sync.Mutex // held while OnLease runs
	saving  sync.Mutex // one Save at a time
}

// New checks the configuration and returns a server with no leases.
func New(cfg Config) (*Server, error) {
	if !cfg.Prefix.IsValid() && !cfg.Prefix6.IsValid() {
		return nil, errors.New("dhcp: neither an IPv4 nor an IPv6 prefix to lease from")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.LeaseTime == 0 {
		cfg.LeaseTime = DefaultLeaseTime
	}
	// Above the largest number of seconds that is not "for ever" (RFC 2131 section 3.3) nothing fits the option.
	if cfg.LeaseTime < MinLeaseTime || cfg.LeaseTime >= 0xffffffff*time.Second {
		return nil, fmt.Errorf("dhcp: lease time %v: want %v or more, and less than 136 years", cfg.LeaseTime, MinLeaseTime)
	}
	if cfg.PerGuest < 0 {
		return nil, fmt.Errorf("dhcp: %d addresses a guest: want 1 or more", cfg.PerGuest)
	}
	if cfg.MTU != 0 && (cfg.MTU < 68 || cfg.MTU > 65535) { // RFC 2132 section 5.1
		return nil, fmt.Errorf("dhcp: MTU %d: want 68 to 65535", cfg.MTU)
	}
	if cfg.LargeMTU != 0 && (cfg.MTU == 0 || cfg.LargeMTU < cfg.MTU || cfg.LargeMTU > 65535) {
		return nil, fmt.Errorf("dhcp: large MTU %d: want more than an MTU of %d, and at most 65535", cfg.LargeMTU, cfg.MTU)
	}
	if len(cfg.Search) == 0 && cfg.Domain != "" {
		cfg.Search = []string{cfg.Domain}
	}
	s := &Server{
		cfg:    cfg,
		names:  make(map[string]map[*record]struct{}),
		saved:  make(map[string]uint64),
		noName: map[string]bool{"localhost": true},
		named:  make(map[string]MAC),
	}
	var err error
	if cfg.Domain != "" {
		if s.cfg.Domain, err = checkDomain(cfg.Domain); err != nil {
			return nil, err
		}
	}
	for _, d := range cfg.Search {
		if d, err = checkDomain(d); err != nil {
			return nil, err
		}
		s.labels = append(s.labels, d)
	}
	s.search = compressNames(s.labels)
	for _, n := range cfg.NoNames {
		s.noName[Label(n)] = true
	}
	for mac, r := range cfg.Static {
		if r.Hostname == "" {
			continue
		}
		n := Label(r.Hostname)
		if n == "" || n != r.Hostname {
			return nil, fmt.Errorf("dhcp: host name %q of %v: want lower-case letters, digits and inner hyphens, at most 63", clip(r.Hostname), mac)
		}
		if other, ok := s.named[n]; ok {
			return nil, fmt.Errorf("dhcp: host name %q is set for both %v and %v", n, other, mac)
		}
		s.named[n] = mac
	}
	if cfg.Prefix.IsValid() {
		if s.v4, err = newTable4(&s.cfg); err != nil {
			return nil, err
		}
	}
	if cfg.Prefix6.IsValid() {
		if s.v6, err = newTable6(&s.cfg); err != nil {
			return nil, err
		}
		// A DUID-UUID (RFC 6355) made of the configuration: the same after every restart, with no file.
		sum := sha256.Sum256([]byte("vmnetd dhcpv6 " + s.cfg.Prefix6.String() + " " + s.cfg.Gateway6.String()))
		u := sum[:16]
		u[6] = u[6]&0x0f | 0x80 // version 8, for UUIDs of one's own making (RFC 9562 section 5.8)
		u[8] = u[8]&0x3f | 0x80
		s.duid = append([]byte{0, 4}, u...)
	}
	return s, nil
}

// Attach says that a guest is here and was heard from mac. A lease of this MAC that a guest left behind, or
// that came from a file, is the new guest's from now on. Messages attach their guest by themselves; this is for
// a guest that keeps its address over a restart of the daemon and has no reason to renew it for hours.
func (s *Server) Attach(guest string, mac MAC) {
	s.mu.Lock()
	for _, t := range s.tables() {
		s.attach(t, guest)
		for r := range t.byMAC[mac] {
			if r.away && r.state == Bound {
				if !r.static {
					s.room(t, guest)
				}
				c := r.client
				c.guest = guest
				t.assign(r, c)
				s.name(r) // of two machines that had it in turn, one may hold it
				s.notify(r, EventBound)
			}
		}
	}
	s.mu.Unlock()
	s.flush()
}

// Detach says that a guest's link is gone. Its offers end; its leases stay, now open to the same client
// coming back through any guest, and to be taken back should the pool run dry.
func (s *Server) Detach(guest string) {
	s.mu.Lock()
	for _, t := range s.tables() {
		t.detach(guest)
	}
	s.gen++
	s.mu.Unlock()
	s.flush()
}

// Sweep ends what has run out and returns when something will next, zero if nothing will. Messages sweep
// too; call it for OnLease to tell of an expiry on a quiet network.
func (s *Server) Sweep() time.Time {
	s.mu.Lock()
	now := s.cfg.Now()
	var next time.Time
	for _, t := range s.tables() {
		s.sweep(t, now)
		if next.IsZero() || !t.next.IsZero() && t.next.Before(next) {
			next = t.next
		}
	}
	s.mu.Unlock()
	s.flush()
	return next
}

func (s *Server) tables() []*table {
	ts := make([]*table, 0, 2)
	for _, t := range []*table{s.v4, s.v6} {
		if t != nil {
			ts = append(ts, t)
		}
	}
	return ts
}

type notice struct {
	lease Lease
	event Event
}

// notify queues an event; s.mu is held. A lease that nobody was told of ends untold.
func (s *Server) notify(r *record, e Event) {
	s.gen++
	if s.cfg.OnLease != nil {
		s.queue = append(s.queue, notice{r.lease(), e})
	}
}

// flush hands queued events over. Whoever finds another goroutine at it leaves its own to that one, which
// keeps the order and lets a callback call the server.
func (s *Server) flush() {
	for {
		s.mu.Lock()
		empty := len(s.queue) == 0
		s.mu.Unlock()
		if empty || !s.deliver.TryLock() {
			return
		}
		s.mu.Lock()
		q := s.queue
		s.queue = nil
		s.mu.Unlock()
		for _, n := range q {
			s.cfg.OnLease(n.lease, n.event)
		}
		s.deliver.Unlock()
	}
}

// clip keeps what guests and users write short in errors.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}
