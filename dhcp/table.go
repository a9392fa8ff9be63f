package dhcp

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// State is what is known of an address.
type State string

const (
	Offered  State = "offered"  // held for a client that was made an offer
	Bound    State = "bound"    // leased
	Released State = "released" // given back; remembered for its client
	Expired  State = "expired"  // ran out; remembered for its client
	Declined State = "declined" // somebody else uses it; offered to nobody until Expires
)

// Event is what happened to a lease.
type Event string

const (
	EventBound    Event = "bound"    // a client has the address now
	EventRenewed  Event = "renewed"  // the same client, a later end, perhaps another name
	EventReleased Event = "released" // by the client, or by Release
	EventExpired  Event = "expired"
	EventDeclined Event = "declined" // by the client: somebody else uses it
	EventRevoked  Event = "revoked"  // gave way: to the guest's next client, or to a dry pool
)

// Lease is one address and who has it.
type Lease struct {
	Addr     netip.Addr `json:"addr"`
	MAC      MAC        `json:"mac"`
	ClientID string     `json:"client_id,omitempty"` // option 61 or DUID, hexadecimal
	IAID     uint32     `json:"iaid,omitempty"`      // DHCPv6
	Guest    string     `json:"guest,omitempty"`
	Away     bool       `json:"away,omitempty"`     // the guest is not attached
	Hostname string     `json:"hostname,omitempty"` // what the client calls itself, made a DNS label
	Name     string     `json:"name,omitempty"`     // what it is known as: Hostname, or Hostname-2 where that was taken
	State    State      `json:"state"`
	Static   bool       `json:"static,omitempty"`
	Start    time.Time  `json:"start,omitzero"`
	Expires  time.Time  `json:"expires"`
}

// client is who asks: identity as claimed, guest as known.
type client struct {
	guest string
	mac   MAC
	id    string // option 61, or DUID and IAID; "": known by MAC alone
	duid  string // DHCPv6
	host  string // a DNS label or ""
}

// record is all that is known of one address. Guarded by Server.mu.
type record struct {
	client
	addr    netip.Addr
	name    string // held while bound, kept to be held again
	named   string // the host name that name was made of
	state   State
	static  bool
	kept    bool // was bound once: when an offer of it runs out it is remembered, not forgotten
	probed  bool // nobody else was found to use it, for this offer
	start   time.Time
	expires time.Time
	seq     uint64 // larger: touched later
	away    bool   // mirrors its guest
}

func (r *record) live() bool  { return r.state == Bound || r.state == Offered }
func (r *record) ended() bool { return r.state == Released || r.state == Expired }

func (r *record) lease() Lease {
	l := Lease{Addr: r.addr, MAC: r.mac, ClientID: hex.EncodeToString([]byte(r.id)), Guest: r.guest, Away: r.away,
		Hostname: r.host, Name: r.name, State: r.state, Static: r.static, Start: r.start, Expires: r.expires}
	if r.duid != "" {
		l.ClientID = hex.EncodeToString([]byte(r.duid))
		l.IAID = iaid(r.id)
	}
	return l
}

// guest is one link's share of a table.
type guest struct {
	attached bool
	records  map[*record]struct{}
}

// table is one family: at most one record an address, indexed by whatever a client may be known by. It
// holds no lock and reads no clock; Server.mu guards it.
type table struct {
	prefix      netip.Prefix
	low, high   netip.Addr // pool, both leased
	first       netip.Addr // where the search starts; it wraps from high to low
	size        int        // addresses in the pool, at most maxRecords
	perGuest    int
	own         map[string]*ownShare  // of guests that have one of their own
	reserved    map[netip.Addr]string // why an address is never leased
	staticAddr  map[netip.Addr]MAC
	staticByMAC map[MAC]netip.Addr

	byAddr map[netip.Addr]*record
	byMAC  map[MAC]map[*record]struct{}
	byID   map[string]map[*record]struct{}
	guests map[string]*guest
	seq    uint64
	next   time.Time // earliest expiry, or earlier; zero: nothing runs out
}

func newTable(prefix netip.Prefix) *table {
	return &table{
		prefix:      prefix,
		reserved:    make(map[netip.Addr]string),
		staticAddr:  make(map[netip.Addr]MAC),
		staticByMAC: make(map[MAC]netip.Addr),
		byAddr:      make(map[netip.Addr]*record),
		byMAC:       make(map[MAC]map[*record]struct{}),
		byID:        make(map[string]map[*record]struct{}),
		guests:      make(map[string]*guest),
	}
}

func newTable4(cfg *Config) (*table, error) {
	p := cfg.Prefix.Masked()
	if !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 30 {
		return nil, fmt.Errorf("dhcp: IPv4 prefix %v: want an IPv4 network from /8 to /30", cfg.Prefix)
	}
	if !p.Contains(cfg.Gateway) {
		return nil, fmt.Errorf("dhcp: gateway %v is not in %v", cfg.Gateway, p)
	}
	cfg.Prefix = p
	t := newTable(p)
	net4, bcast := p.Addr(), lastAddr(p)
	t.reserved[net4] = "the network's address"
	t.reserved[bcast] = "the broadcast address"
	t.reserved[cfg.Gateway] = "the gateway's address"
	t.low, t.high = net4.Next(), bcast.Prev()
	if t.first = cfg.First; !t.first.IsValid() {
		t.first = t.low
		for range 14 { // low is network + 1
			t.first = t.first.Next()
		}
		if t.first.Compare(t.high) > 0 {
			t.first = t.low
		}
	}
	if t.first.Compare(t.low) < 0 || t.first.Compare(t.high) > 0 {
		return nil, fmt.Errorf("dhcp: first leased address %v: want one from %v to %v", cfg.First, t.low, t.high)
	}
	for _, a := range cfg.DNS {
		if !a.Is4() {
			return nil, fmt.Errorf("dhcp: DNS server %v: want an IPv4 address", a)
		}
	}
	return t, t.finish(cfg, cfg.DNS, func(r Reservation) netip.Addr { return r.Addr })
}

func newTable6(cfg *Config) (*table, error) {
	p := cfg.Prefix6.Masked()
	// From /120 on ::1000 is not in the prefix, and the pool must be set apart from what else is there.
	if !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() < 16 || p.Bits() > 120 {
		return nil, fmt.Errorf("dhcp: IPv6 prefix %v: want an IPv6 network from /16 to /120", cfg.Prefix6)
	}
	if cfg.Gateway6.IsValid() && !p.Contains(cfg.Gateway6) {
		return nil, fmt.Errorf("dhcp: gateway %v is not in %v", cfg.Gateway6, p)
	}
	cfg.Prefix6 = p
	t := newTable(p)
	pool := cfg.Pool6
	if !pool.IsValid() {
		if p.Bits() > 115 {
			return nil, fmt.Errorf("dhcp: IPv6 prefix %v has no ::1000; set the pool", p)
		}
		b := p.Addr().As16()
		b[14] |= 0x10
		pool = netip.PrefixFrom(netip.AddrFrom16(b), 116)
	}
	pool = pool.Masked()
	if pool.Bits() < p.Bits() || !p.Contains(pool.Addr()) {
		return nil, fmt.Errorf("dhcp: IPv6 pool %v is not in %v", cfg.Pool6, p)
	}
	t.low, t.high = pool.Addr(), lastAddr(pool)
	t.first = t.low
	t.reserved[p.Addr()] = "the routers' anycast address" // RFC 4291 section 2.6.1
	if cfg.Gateway6.IsValid() {
		t.reserved[cfg.Gateway6] = "the gateway's address"
	}
	for _, a := range cfg.DNS6 {
		if !a.Is6() || a.Is4In6() || a.Zone() != "" {
			return nil, fmt.Errorf("dhcp: DNS server %v: want an IPv6 address without a zone", a)
		}
	}
	return t, t.finish(cfg, cfg.DNS6, func(r Reservation) netip.Addr { return r.Addr6 })
}

// finish fills what both families share.
func (t *table) finish(cfg *Config, dns []netip.Addr, of func(Reservation) netip.Addr) error {
	for _, a := range dns {
		if t.reserved[a] == "" {
			t.reserved[a] = "the DNS server's address"
		}
	}
	for _, a := range cfg.Reserved {
		if t.prefix.Contains(a) && t.reserved[a] == "" {
			t.reserved[a] = "reserved"
		}
	}
	var err error
	if t.staticAddr, t.staticByMAC, err = t.statics(cfg.Static, of); err != nil {
		return err
	}
	if t.size = t.leasable(); t.size < 1 && len(t.staticAddr) == 0 {
		return fmt.Errorf("dhcp: no address of %v is left to lease", t.prefix)
	}
	if t.perGuest = cfg.PerGuest; t.perGuest == 0 {
		t.perGuest = min(DefaultPerGuest, max(1, t.size/4))
	}
	return nil
}

func (t *table) inPool(a netip.Addr) bool { return a.Compare(t.low) >= 0 && a.Compare(t.high) <= 0 }

// barred says why mac may not have addr, "" if it may.
func (t *table) barred(a netip.Addr, mac MAC) string {
	if !t.prefix.Contains(a) {
		return "not an address of this network"
	}
	if why := t.reserved[a]; why != "" {
		return why
	}
	if owner, ok := t.staticAddr[a]; ok {
		if owner != mac {
			return "reserved for another client"
		}
		return ""
	}
	if !t.inPool(a) {
		return "not in the pool"
	}
	return ""
}

// friendly reports whether what r's guest holds is open to c: its own, or an absent guest's shown by the
// same MAC. The MAC must be the same because clones share client identifiers.
func (r *record) friendly(c client) bool { return r.guest == c.guest || r.away && r.mac == c.mac }

// matches reports whether r is c's. A record without a client identifier and a client without one are
// known by MAC, so that a boot ROM and the system it boots, which say different things, share an address.
func (r *record) matches(c client) bool {
	if !r.friendly(c) || r.state == Declined {
		return false
	}
	if r.id != "" && c.id != "" {
		return r.id == c.id
	}
	return r.mac == c.mac
}

// inherits reports whether a static record passes to c: the reservation is the MAC's, under whatever
// identifier, but not a second identity association of the client that holds it.
func (r *record) inherits(c client) bool {
	return r.static && r.state != Declined && r.mac == c.mac && r.friendly(c) &&
		(c.duid == "" || r.duid != c.duid || r.id == c.id || !r.live())
}

// best is c's record, the likeliest where there are several.
func (t *table) best(c client, skip map[netip.Addr]bool) *record {
	var best *record
	top := -1
	consider := func(set map[*record]struct{}) {
		for r := range set {
			if skip[r.addr] || !r.matches(c) {
				continue
			}
			score := 0
			if r.state == Bound {
				score += 8
			}
			if r.id == c.id {
				score += 4
			}
			if r.mac == c.mac {
				score += 2
			}
			if r.state == Offered {
				score++
			}
			if score > top || score == top && r.seq > best.seq {
				best, top = r, score
			}
		}
	}
	if c.id != "" {
		consider(t.byID[c.id])
	}
	consider(t.byMAC[c.mac])
	return best
}

// attach notes that a guest is here, and reports whether it was not.
func (t *table) attach(name string) bool {
	g := t.guests[name]
	if g == nil {
		g = &guest{records: make(map[*record]struct{})}
		t.guests[name] = g
	}
	if g.attached {
		return false
	}
	g.attached = true
	for r := range g.records {
		r.away = false
	}
	return true
}

func (t *table) detach(name string) {
	g := t.guests[name]
	if g == nil {
		return
	}
	g.attached = false
	for r := range g.records {
		if r.state == Offered {
			t.endOffer(r)
			continue
		}
		r.away = true
	}
	if len(g.records) == 0 {
		delete(t.guests, name)
	}
}

// index and unindex keep the maps in step with a record's client.
func (t *table) index(r *record) {
	add(t.byMAC, r.mac, r)
	if r.id != "" {
		add(t.byID, r.id, r)
	}
	g := t.guests[r.guest]
	if g == nil { // loaded from a file, or a claim of a guest that never asked
		g = &guest{records: make(map[*record]struct{})}
		t.guests[r.guest] = g
	}
	g.records[r] = struct{}{}
	if o := t.own[r.guest]; o != nil {
		o.most = max(o.most, len(g.records))
	}
	r.away = !g.attached
}

func (t *table) unindex(r *record) {
	del(t.byMAC, r.mac, r)
	if r.id != "" {
		del(t.byID, r.id, r)
	}
	if g := t.guests[r.guest]; g != nil {
		delete(g.records, r)
		if len(g.records) == 0 && !g.attached {
			delete(t.guests, r.guest)
		}
	}
}

func add[K comparable](m map[K]map[*record]struct{}, k K, r *record) {
	if m[k] == nil {
		m[k] = make(map[*record]struct{})
	}
	m[k][r] = struct{}{}
}

func del[K comparable](m map[K]map[*record]struct{}, k K, r *record) {
	delete(m[k], r)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

func (t *table) touch(r *record) {
	t.seq++
	r.seq = t.seq
}

// due keeps next early enough.
func (t *table) due(at time.Time) {
	if t.next.IsZero() || at.Before(t.next) {
		t.next = at
	}
}

// insert makes a record of an address that has none.
func (t *table) insert(a netip.Addr, c client, st State, until time.Time) *record {
	_, static := t.staticAddr[a]
	r := &record{client: c, addr: a, state: st, static: static, expires: until}
	t.byAddr[a] = r
	t.index(r)
	t.touch(r)
	t.due(until)
	return r
}

// assign gives r to c, who may be known by other things than before.
func (t *table) assign(r *record, c client) {
	if c.host == "" && r.mac == c.mac {
		c.host = r.host // many clients say their name once and not in a renewal
	}
	t.unindex(r)
	r.client = c
	t.index(r)
	t.touch(r)
}

// offer holds a record that is c's but not bound.
func (t *table) offer(r *record, c client, now time.Time) {
	if r.state != Offered || r.mac != c.mac || r.guest != c.guest {
		r.probed = false
	}
	t.assign(r, c)
	r.state, r.expires = Offered, now.Add(OfferTime)
	t.due(r.expires)
}

// endOffer forgets an offer, or takes a lease that was re-offered back to being remembered.
func (t *table) endOffer(r *record) {
	if r.kept {
		r.state = Expired
		if g := t.guests[r.guest]; g == nil || !g.attached {
			r.away = true
		}
		return
	}
	t.drop(r)
}

func (t *table) drop(r *record) {
	t.unindex(r)
	if t.byAddr[r.addr] == r {
		delete(t.byAddr, r.addr)
	}
}

// fresh is the first address of the pool that nothing is known of.
func (t *table) fresh(skip map[netip.Addr]bool) (netip.Addr, bool) {
	if len(t.byAddr) >= maxRecords {
		return netip.Addr{}, false
	}
	// Of so many addresses at least one is in none of these sets.
	tries := len(t.byAddr) + len(t.reserved) + len(t.staticAddr) + len(skip) + 1
	for a := t.first; tries > 0; tries-- {
		_, static := t.staticAddr[a]
		if t.byAddr[a] == nil && t.reserved[a] == "" && !static && !skip[a] {
			return a, true
		}
		if a == t.high {
			a = t.low
		} else {
			a = a.Next()
		}
		if a == t.first {
			break
		}
	}
	return netip.Addr{}, false
}

// surplus is the record that a guest at its share gives up for the next: its oldest offer, then what is
// only remembered or quarantined, then its oldest lease. Nil: it has room.
func (t *table) surplus(name string) *record {
	g := t.guests[name]
	if g == nil || len(g.records) < t.share(name) {
		return nil
	}
	rank := func(r *record) int {
		switch r.state {
		case Offered:
			return 0
		case Bound:
			return 2
		}
		return 1
	}
	n := 0
	var worst *record
	for r := range g.records {
		if r.static {
			continue // the user's decision, bounded by the user's list
		}
		n++
		if worst == nil || rank(r) < rank(worst) || rank(r) == rank(worst) && r.seq < worst.seq {
			worst = r
		}
	}
	if n < t.share(name) {
		return nil
	}
	return worst
}

// reclaim is the record to take an address from when the pool is dry: the one that ended longest ago, else
// that of an absent guest. Among those the guest that holds most gives first, so that one which comes and
// goes with many MACs pays for it, and not one that is rebooting. Nil: every address is somebody's who is here.
func (t *table) reclaim(skip map[netip.Addr]bool) *record {
	var old, away *record
	for _, r := range t.byAddr {
		switch {
		case r.static || skip[r.addr] || r.state == Declined:
		case r.ended():
			if old == nil || r.seq < old.seq {
				old = r
			}
		case r.away:
			if away == nil {
				away = r
				continue
			}
			n, m := len(t.guests[r.guest].records), len(t.guests[away.guest].records)
			if n > m || n == m && r.seq < away.seq {
				away = r
			}
		}
	}
	if old != nil {
		return old
	}
	return away
}

// lastAddr is the highest address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// sorted is every lease, by address.
func (t *table) sorted() []Lease {
	ls := make([]Lease, 0, len(t.byAddr))
	for _, r := range t.byAddr {
		ls = append(ls, r.lease())
	}
	slices.SortFunc(ls, func(a, b Lease) int { return a.Addr.Compare(b.Addr) })
	return ls
}

// iaid is the last four bytes of a DHCPv6 identity.
func iaid(id string) uint32 {
	if len(id) < 4 {
		return 0
	}
	b := []byte(id[len(id)-4:])
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}
