package dhcp

import (
	"errors"
	"fmt"
	"net/netip"
)

// SetStatic has other addresses belong to MACs, in place of Config.Static's, all or none. Leases go on: a client hears of an
// address of its own when it renews, and one that has what is another's now is told so then. Host names of reservations
// cannot be changed.
func (s *Server) SetStatic(static map[MAC]Reservation) error {
	s.mu.Lock()
	for mac, r := range static {
		if r.Hostname != s.cfg.Static[mac].Hostname {
			s.mu.Unlock()
			return fmt.Errorf("dhcp: static lease of %v: its host name is %q and cannot be changed", mac, s.cfg.Static[mac].Hostname)
		}
	}
	for mac, r := range s.cfg.Static {
		if _, ok := static[mac]; !ok && r.Hostname != "" {
			s.mu.Unlock()
			return fmt.Errorf("dhcp: static lease of %v: it has a host name and cannot be taken away", mac)
		}
	}
	type change struct {
		t     *table
		addrs map[netip.Addr]MAC
		macs  map[MAC]netip.Addr
	}
	var all []change
	var errs []error
	for _, t := range s.tables() {
		of := Reservation.v4
		if t == s.v6 {
			of = Reservation.v6
		}
		addrs, macs, err := t.statics(static, of)
		all, errs = append(all, change{t, addrs, macs}), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		s.mu.Unlock()
		return err
	}
	for _, c := range all {
		t := c.t
		t.staticAddr, t.staticByMAC = c.addrs, c.macs
		t.size = max(1, t.leasable())
		for a, r := range t.byAddr {
			owner, ok := t.staticAddr[a]
			if r.static = ok; ok && owner != r.mac && r.state != Declined {
				s.forget(t, r, EventRevoked)
			}
		}
	}
	s.cfg.Static = static
	s.mu.Unlock()
	s.flush()
	return nil
}

func (r Reservation) v4() netip.Addr { return r.Addr }
func (r Reservation) v6() netip.Addr { return r.Addr6 }

// statics are the addresses of one family that belong to MACs.
func (t *table) statics(static map[MAC]Reservation, of func(Reservation) netip.Addr) (map[netip.Addr]MAC, map[MAC]netip.Addr, error) {
	addrs, macs := make(map[netip.Addr]MAC), make(map[MAC]netip.Addr)
	for mac, r := range static {
		a := of(r)
		if !a.IsValid() {
			continue
		}
		if !mac.unicast() {
			return nil, nil, fmt.Errorf("dhcp: static lease of %v: %v is not one interface's MAC", a, mac)
		}
		if !t.prefix.Contains(a) {
			return nil, nil, fmt.Errorf("dhcp: static lease of %v: %v is not in %v", mac, a, t.prefix)
		}
		if why := t.reserved[a]; why != "" {
			return nil, nil, fmt.Errorf("dhcp: static lease of %v: %v is %s", mac, a, why)
		}
		if other, ok := addrs[a]; ok {
			return nil, nil, fmt.Errorf("dhcp: static lease of %v: %v is set for %v too", mac, a, other)
		}
		addrs[a], macs[mac] = mac, a
	}
	return addrs, macs, nil
}

// leasable is how many addresses of the pool nobody has for good, maxRecords at the most.
func (t *table) leasable() int {
	blocked := 0
	for a := range t.reserved {
		if t.inPool(a) {
			blocked++
		}
	}
	for a := range t.staticAddr {
		if t.inPool(a) {
			blocked++
		}
	}
	n := 0
	for a := t.low; n < maxRecords+blocked; a = a.Next() {
		n++
		if a == t.high {
			break
		}
	}
	return n - blocked
}
