package dhcp

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// Who gets which address. What changes a record wants s.mu held; acquire and
// claim let go of it around a probe.

// sweep ends what ran out by now.
func (s *Server) sweep(t *table, now time.Time) {
	if t.next.IsZero() || now.Before(t.next) {
		return
	}
	t.next = time.Time{}
	for _, r := range t.byAddr {
		if !r.expires.After(now) {
			switch r.state {
			case Offered:
				t.endOffer(r)
			case Declined:
				t.drop(r)
				s.gen++
			case Bound:
				s.unname(r)
				r.state = Expired
				t.touch(r)
				s.notify(r, EventExpired)
			}
		}
		if (r.live() || r.state == Declined) && t.byAddr[r.addr] == r {
			t.due(r.expires)
		}
	}
}

// forget drops a record whose place is wanted.
func (s *Server) forget(t *table, r *record, e Event) {
	if r.state == Bound {
		s.unname(r)
		s.notify(r, e)
	}
	s.gen++
	t.drop(r)
}

// room makes the guest's share fit one record more.
func (s *Server) room(t *table, guest string) {
	for r := t.surplus(guest); r != nil; r = t.surplus(guest) {
		if o := t.own[guest]; o != nil {
			o.hits++
		}
		s.forget(t, r, EventRevoked)
	}
}

// pick finds c an address, in the order of RFC 2131 section 4.3.1: what it has or had, what it asks for,
// what is free. The record is held for c when pick returns. Nil: no address is left.
func (s *Server) pick(t *table, c client, want netip.Addr, skip map[netip.Addr]bool, now time.Time) *record {
	if a, ok := t.staticByMAC[c.mac]; ok && !skip[a] {
		r := t.byAddr[a]
		if r == nil {
			return t.insert(a, c, Offered, now.Add(OfferTime))
		}
		if r.matches(c) || r.inherits(c) {
			if r.state != Bound {
				t.offer(r, c, now)
			}
			return r
		}
	}
	if r := t.best(c, skip); r != nil {
		if r.state != Bound {
			t.offer(r, c, now)
		}
		return r
	}
	if want.IsValid() && !skip[want] && t.byAddr[want] == nil && len(t.byAddr) < maxRecords && t.barred(want, c.mac) == "" {
		s.room(t, c.guest)
		return t.insert(want, c, Offered, now.Add(OfferTime))
	}
	a, ok := t.fresh(skip) // before room: what the guest's own oldest client gives up may still be used by it
	s.room(t, c.guest)
	if !ok {
		a, ok = t.fresh(skip)
	}
	if !ok {
		r := t.reclaim(skip)
		if r == nil {
			return nil
		}
		s.forget(t, r, EventRevoked)
		if a = r.addr; !t.inPool(a) { // leased by an older configuration's pool; a place is free now
			if a, ok = t.fresh(skip); !ok {
				return nil
			}
		}
	}
	return t.insert(a, c, Offered, now.Add(OfferTime))
}

// acquire holds an address for c that nobody else uses: an offer, or the lease that c has. The budget of
// probes is the message's.
func (s *Server) acquire(ctx context.Context, t *table, c client, want netip.Addr, budget *int) (netip.Addr, error) {
	var skip map[netip.Addr]bool
	for {
		s.mu.Lock()
		now := s.cfg.Now()
		s.sweep(t, now)
		s.attach(t, c.guest)
		r := s.pick(t, c, want, skip, now)
		if r == nil {
			s.mu.Unlock()
			return netip.Addr{}, refuse(PoolEmpty, "no address of %v is left for %v", t.prefix, c.mac)
		}
		addr, clear := r.addr, s.clear(r, c)
		s.mu.Unlock()
		if clear {
			return addr, nil
		}
		if *budget == 0 {
			return netip.Addr{}, refuse(PoolEmpty, "%d addresses in a row are in use; the next message goes on from there", maxProbes)
		}
		*budget--
		used, err := s.probe(ctx, t, addr, c)
		if err != nil {
			return netip.Addr{}, err
		}
		if !used {
			return addr, nil
		}
		if skip == nil {
			skip = make(map[netip.Addr]bool)
		}
		skip[addr] = true
	}
}

// clear reports whether r may go to c without a probe: c holds it, or it was probed for this offer.
func (s *Server) clear(r *record, c client) bool {
	return s.cfg.InUse == nil || r.state == Bound && r.mac == c.mac || r.state == Offered && r.probed
}

// probe asks whether somebody else uses addr, with no lock held, and notes the answer.
func (s *Server) probe(ctx context.Context, t *table, addr netip.Addr, c client) (used bool, err error) {
	by, used := s.cfg.InUse(ctx, addr, c.guest, c.mac)
	if err := ctx.Err(); err != nil { // an answer cut short says nothing
		return false, fmt.Errorf("dhcp: probe of %v: %w", addr, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := t.byAddr[addr]
	if r == nil || r.state != Offered || r.guest != c.guest || r.mac != c.mac || r.id != c.id {
		// A lease of the same identifier whose old MAC still answers stays what it is; a record that
		// went to somebody else meanwhile is not ours to mark.
		return used, nil
	}
	if used && by != "" && by != c.guest && s.claims(t, by) >= t.share(by) {
		used = false // this guest has claimed its share of addresses already
	}
	if !used {
		r.probed = true
		return false, nil
	}
	t.drop(r)
	t.insert(addr, client{guest: by}, Declined, s.cfg.Now().Add(QuarantineTime))
	s.gen++
	return true, nil
}

// claims counts the addresses that were found in use behind a guest.
func (s *Server) claims(t *table, guest string) int {
	n := 0
	if g := t.guests[guest]; g != nil {
		for r := range g.records {
			if r.state == Declined {
				n++
			}
		}
	}
	return n
}

// claim binds the very address that a client names: what it was offered, what it renews, or what it had
// before this daemon started. That last one departs from RFC 2131 section 4.3.2, which asks a server
// without a record to be silent lest it answer for another server's lease. There is no other server on this
// network, and silence would cost a guest its address, and with it every connection, for no more than a
// restart of the daemon without a state folder. So a free address that nobody answers for is confirmed.
// why is the reason for a NAK.
func (s *Server) claim(ctx context.Context, t *table, c client, addr netip.Addr, d time.Duration, budget *int) (why string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	s.sweep(t, now)
	s.attach(t, c.guest)
	r, why := s.holdNamed(t, c, addr, now)
	if why != "" {
		return why, nil
	}
	if !s.clear(r, c) {
		if *budget == 0 {
			return "too many addresses asked for at once", nil
		}
		*budget--
		s.mu.Unlock()
		used, err := s.probe(ctx, t, addr, c)
		s.mu.Lock()
		if err != nil {
			return "", err
		}
		if used {
			return "the address is in use", nil
		}
		// Look again: the world went on meanwhile.
		now = s.cfg.Now()
		if r, why = s.holdNamed(t, c, addr, now); why != "" {
			return why, nil
		}
	}
	s.bind(t, r, c, d, now)
	return "", nil
}

// holdNamed finds or makes the record of addr for c.
func (s *Server) holdNamed(t *table, c client, addr netip.Addr, now time.Time) (r *record, why string) {
	if why := t.barred(addr, c.mac); why != "" {
		return nil, why
	}
	if a, ok := t.staticByMAC[c.mac]; ok && a != addr && c.duid == "" {
		// The configuration says another address now: move there, unless somebody is in the way.
		if r := t.byAddr[a]; r == nil || r.matches(c) || r.inherits(c) {
			return nil, "the client's static lease is " + a.String()
		}
	}
	if r = t.byAddr[addr]; r != nil {
		switch {
		case r.state == Declined && r.guest == c.guest && s.cfg.InUse != nil:
			// Found in use behind this very guest: perhaps by the client that asks for it now. Probe again.
			t.drop(r)
			return t.insert(addr, c, Offered, now.Add(OfferTime)), ""
		case r.state == Declined:
			return nil, "the address is in use"
		case !r.matches(c) && !r.inherits(c):
			return nil, "the address is another client's"
		case r.state != Bound:
			t.offer(r, c, now)
		}
		return r, ""
	}
	if own := t.best(c, nil); own != nil && own.live() && own.mac == c.mac {
		return nil, "the client's address is " + own.addr.String()
	}
	if len(t.byAddr) >= maxRecords {
		return nil, "no address is left"
	}
	s.room(t, c.guest)
	return t.insert(addr, c, Offered, now.Add(OfferTime)), ""
}

// bind makes r the lease of c until now + d.
func (s *Server) bind(t *table, r *record, c client, d time.Duration, now time.Time) {
	ev := EventRenewed
	if r.state != Bound || r.guest != c.guest || r.mac != c.mac {
		ev = EventBound
	}
	// One address a client: what it held elsewhere, before a static lease was set, goes back.
	for o := range t.byMAC[c.mac] {
		if o != r && o.guest == c.guest && o.id == c.id && o.live() {
			s.forget(t, o, EventReleased)
		}
	}
	if r.state != Bound {
		r.start = now
	}
	t.assign(r, c)
	r.state, r.expires, r.kept, r.probed = Bound, now.Add(d), true, false
	t.due(r.expires)
	s.name(r)
	s.notify(r, ev)
}

// withdraw ends an offer that the client turned down.
func (s *Server) withdraw(t *table, c client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attach(t, c.guest)
	if r := t.best(c, nil); r != nil && r.state == Offered {
		t.endOffer(r)
	}
}

// release gives a lease back. The address is remembered for the client.
func (s *Server) release(t *table, c client, addr netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(t, s.cfg.Now())
	s.attach(t, c.guest)
	r := t.byAddr[addr]
	if r == nil || !r.matches(c) || !r.live() {
		return false
	}
	if r.state == Offered {
		t.endOffer(r)
		return true
	}
	s.end(t, r, Released, EventReleased)
	return true
}

func (s *Server) end(t *table, r *record, st State, e Event) {
	s.unname(r)
	r.state = st
	r.expires = s.cfg.Now()
	t.touch(r)
	s.notify(r, e)
}

// decline takes an address out of use that the client found to be somebody else's. It still counts
// against the guest, so that declining all there is declines no more than a share.
func (s *Server) decline(t *table, c client, addr netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	s.sweep(t, now)
	s.attach(t, c.guest)
	r := t.byAddr[addr]
	if r == nil || !r.matches(c) || !r.live() {
		return false
	}
	s.forget(t, r, EventDeclined)
	t.insert(addr, client{guest: c.guest}, Declined, now.Add(QuarantineTime))
	return true
}

// Leases is all that is known, IPv4 first, by address: leases, offers, what is remembered and what is
// quarantined. Look at State.
func (s *Server) Leases() []Lease {
	s.Sweep()
	s.mu.Lock()
	defer s.mu.Unlock()
	ls := []Lease{}
	for _, t := range s.tables() {
		ls = append(ls, t.sorted()...)
	}
	return ls
}

// Lookup is what is known of one address.
func (s *Server) Lookup(addr netip.Addr) (Lease, bool) {
	s.Sweep()
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.table(addr); t != nil {
		if r := t.byAddr[addr]; r != nil {
			return r.lease(), true
		}
	}
	return Lease{}, false
}

// ByMAC is the bound leases of a MAC, IPv4 first. Where two guests have the same MAC, those of both.
func (s *Server) ByMAC(mac MAC) []Lease {
	return s.bound(func(l Lease) bool { return l.MAC == mac })
}

// ByName is the bound leases that hold a name, IPv4 first; letter case does not matter.
func (s *Server) ByName(name string) []Lease {
	name = lower(name)
	return s.bound(func(l Lease) bool { return l.Name != "" && l.Name == name })
}

// ByGuest is the bound leases of a guest, IPv4 first.
func (s *Server) ByGuest(guest string) []Lease {
	return s.bound(func(l Lease) bool { return l.Guest == guest })
}

func (s *Server) bound(ok func(Lease) bool) []Lease {
	ls := []Lease{}
	for _, l := range s.Leases() {
		if l.State == Bound && ok(l) {
			ls = append(ls, l)
		}
	}
	return ls
}

// Release forgets whatever is known of an address, for an administrator. A client that still uses it is
// told so (NAK, NoBinding or another address) only if the address has gone to somebody else by the time it renews.
func (s *Server) Release(addr netip.Addr) error {
	s.mu.Lock()
	t := s.table(addr)
	var r *record
	if t != nil {
		r = t.byAddr[addr]
	}
	if r != nil {
		s.forget(t, r, EventReleased)
	}
	s.mu.Unlock()
	s.flush()
	if r == nil {
		return fmt.Errorf("dhcp: release %v: no lease has this address", addr)
	}
	return nil
}

func (s *Server) table(addr netip.Addr) *table {
	if addr.Is4() {
		return s.v4
	}
	return s.v6
}
