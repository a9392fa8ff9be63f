package backend

// What of a network's configuration changes while it runs.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"reflect"
	"slices"

	"github.com/vmnetd/vmnetd/dns"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/impair"
	"github.com/vmnetd/vmnetd/portforward"
)

// Reloaded is what Reload did.
type Reloaded struct {
	// Again are forwards and records that the configuration had before and has now, and that somebody had removed meanwhile:
	// they are there again.
	Again        []portforward.Rule
	AgainRecords []DNSRecord

	n    *Network
	undo []func() error // in the order of what was done
}

// Undo has things as they were before, as far as no other program took a port meanwhile.
func (r Reloaded) Undo() error {
	if r.n == nil {
		return nil
	}
	r.n.reloading.Lock()
	defer r.n.reloading.Unlock()
	return r.back()
}

func (r Reloaded) back() error {
	var errs []error
	for _, f := range slices.Backward(r.undo) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// Reload changes what a running network can: Forwards, Records, Static, GuestNames, Limits, GuestLimits, Impair, GuestImpair and Doors are as
// in c from now on, all of them or, after an error, none. What else c says is not looked at: it takes another network.
//
// Conversations that run go on, those of forwards that are removed too, but for UDP, whose socket is the forward's. What was
// added meanwhile by Forwards().Add and AddDNS stays; so do limits that ChangeLimits set, and bad lines that Impair set, where c says of them what the
// configuration before said. A static lease is the guest's when it renews.
func (n *Network) Reload(ctx context.Context, c Config) (done Reloaded, err error) {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	was := *n.current.Load()
	if n.ctx.Err() != nil {
		return done, ErrClosed
	}
	if was.plain() && len(c.Forwards)+len(c.Records)+len(c.Static) > 0 {
		return done, fmt.Errorf("network %s: forwards, records or fixed leases: %w", was.Name, ErrNoUplink)
	}
	now := was
	now.Forwards, now.Records, now.Static, now.Doors = slices.Clone(c.Forwards), slices.Clone(c.Records), maps.Clone(c.Static), slices.Clone(c.Doors)
	now.GuestNames = maps.Clone(c.GuestNames)
	now.Limits, now.GuestLimits = c.Limits, maps.Clone(c.GuestLimits)
	now.Impair, now.GuestImpair = c.Impair, maps.Clone(c.GuestImpair)
	defer func() {
		if err != nil {
			err = errors.Join(err, done.back())
			done = Reloaded{}
			return
		}
		n.show(now)
		done.n = n
		done.undo = slices.Insert(done.undo, 0, func() error { n.show(was); return nil }) // the last that is done
	}()
	step := func(do func() error, undo func() error) error {
		if err := do(); err != nil {
			return err
		}
		done.undo = append(done.undo, undo)
		return nil
	}
	if err := new(limitTable).init(&now); err != nil { // checks them
		return done, err
	}
	if err := step(func() error { return n.setStatic(&now) }, func() error { return n.setStatic(&was) }); err != nil {
		return done, err
	}
	if err := step(func() error { return n.setNames(&now) }, func() error { return n.setNames(&was) }); err != nil {
		return done, err
	}
	if err := n.reloadRecords(was.Records, now.Records, &done); err != nil {
		return done, err
	}
	if err := n.reloadForwards(ctx, was.Forwards, now.Forwards, &done); err != nil {
		return done, err
	}
	if err := new(impairTable).init(&now); err != nil { // checks them
		return done, err
	}
	done.undo = append(done.undo, n.reloadImpairs(&was, &now))
	before := n.changeLimits(limitChanges(&was, &now))
	done.undo = append(done.undo, func() error { n.changeLimits(before); return nil })
	return done, nil
}

// show has now in force for those who look, and for what is kept over a restart.
func (n *Network) show(now Config) {
	n.doors.Store(&now.Doors)
	n.current.Store(&now)
	k := &n.keep
	k.mu.Lock()
	defer k.mu.Unlock()
	n.configured()
}

// configured tells the keeper what is the configuration's and not to be kept. Called with its lock, by who has reloading or
// by Keep.
func (n *Network) configured() {
	k := &n.keep
	k.given, k.records = map[string]bool{}, map[DNSRecord]bool{}
	for _, text := range k.before {
		k.given[text] = true
	}
	for _, r := range k.recordsBefore {
		k.records[r] = true
	}
	for _, r := range n.bound {
		k.given[r.String()] = true
	}
	for _, r := range n.current.Load().Records {
		if whole, err := n.parseDNS(r); err == nil {
			k.records[whole] = true
		}
	}
}

// Bound are the configuration's forwards as they came out, with ports that were picked, in its order.
func (n *Network) Bound() []portforward.Rule {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	return slices.Clone(n.bound)
}

func (n *Network) setStatic(c *Config) error {
	static, reserved, err := c.reservations()
	if err != nil {
		return err
	}
	if err := n.dhcp.SetStatic(static); err != nil {
		return fmt.Errorf("network %s: %w", c.Name, err)
	}
	n.reserved.Store(&reserved)
	n.nameGiven(nil)
	return nil
}

func (n *Network) setNames(c *Config) error {
	names, err := c.givenNames()
	if err != nil {
		return err
	}
	had := *n.given.Load()
	if len(had)+len(names) > 0 {
		n.given.Store(&names)
		n.nameGiven(had)
	}
	return nil
}

// parseDNS is a record as DNSRecords lists it.
func (n *Network) parseDNS(r DNSRecord) (DNSRecord, error) {
	w, err := n.dns.Parse(r.String())
	return DNSRecord{w.Name, w.Type, w.Data, w.TTL, w.Source}, err
}

func (n *Network) reloadRecords(was, now []DNSRecord, done *Reloaded) error {
	whole := func(list []DNSRecord) (out []DNSRecord, err error) {
		for _, r := range list {
			w, perr := n.parseDNS(r)
			out, err = append(out, w), errors.Join(err, perr)
		}
		return out, err
	}
	old, err := whole(was)
	if err != nil {
		return err
	}
	wanted, err := whole(now)
	if err != nil {
		return err
	}
	there := n.addedRecords()
	for _, r := range old {
		if slices.Contains(wanted, r) || !slices.Contains(there, r) {
			continue
		}
		if err := n.RemoveDNS(r.Name, r.Type, r.Value); err != nil {
			return err
		}
		done.undo = append(done.undo, func() error { return n.AddDNS(r) })
	}
	for i, r := range wanted {
		if slices.Contains(there, r) {
			continue
		}
		if err := n.AddDNS(r); err != nil {
			return &RecordError{now[i], err}
		}
		if slices.Contains(old, r) {
			done.AgainRecords = append(done.AgainRecords, now[i])
		}
		done.undo = append(done.undo, func() error { return n.RemoveDNS(r.Name, r.Type, r.Value) })
	}
	return nil
}

// RecordError is a record of a configuration that cannot be.
type RecordError struct {
	Record DNSRecord
	Err    error
}

func (e *RecordError) Error() string { return e.Err.Error() }
func (e *RecordError) Unwrap() error { return e.Err }

func (n *Network) reloadForwards(ctx context.Context, was, now []portforward.Rule, done *Reloaded) error {
	there := map[portforward.Rule]bool{}
	for _, f := range n.forwards.List() {
		there[f.Rule] = true
	}
	// What is asked for as before is what it came to then; a port that was picked is kept.
	left := make([]bool, len(was)) // given away
	bound := make([]portforward.Rule, len(now))
	var add []portforward.Rule
	var at []int
	for i, r := range now {
		r, err := r.Normalize()
		if err != nil {
			return err
		}
		var before portforward.Rule
		for j, o := range was {
			if o, err := o.Normalize(); err == nil && o == r && !left[j] {
				left[j], before = true, n.bound[j]
				break
			}
		}
		switch {
		case before.GuestPort != 0 && there[before]:
			bound[i] = before
		case there[r]: // added meanwhile: it is the configuration's from now on
			bound[i] = r
		default:
			add, at = append(add, r), append(at, i)
			if before.GuestPort != 0 {
				done.Again = append(done.Again, r)
			}
		}
	}
	var gone []portforward.Rule
	for j, b := range n.bound {
		if !left[j] && !slices.Contains(bound, b) {
			gone = append(gone, b)
		}
	}
	gone = slices.DeleteFunc(gone, func(r portforward.Rule) bool { return !there[r] })
	before := n.bound
	if len(add) > 0 || len(gone) > 0 {
		added, err := n.forwards.Replace(ctx, gone, add)
		if err != nil {
			return err
		}
		for i, r := range added {
			bound[at[i]] = r
		}
		done.undo = append(done.undo, func() error {
			_, err := n.forwards.Replace(context.WithoutCancel(ctx), added, gone)
			return err
		})
	}
	n.bound = bound
	done.undo = append(done.undo, func() error { n.bound = before; return nil })
	return nil
}

// reloadImpairs has the bad lines of now in force where they are not those of was. What is alike is not begun anew. undo
// has those in force again that were, whoever set them.
func (n *Network) reloadImpairs(was, now *Config) (undo func() error) {
	var before, after impairTable
	if before.init(was) != nil || after.init(now) != nil {
		return func() error { return nil } // they were checked
	}
	t := &n.impairs
	t.mu.Lock()
	line := t.net
	if !reflect.DeepEqual(before.net, after.net) {
		t.net = after.net
	}
	macs, names := replace(t.macs, before.macs, after.macs), replace(t.names, before.names, after.names)
	t.mu.Unlock()
	look := func() {
		for _, p := range n.seg.all() {
			p.impair()
		}
	}
	look()
	return func() error {
		t.mu.Lock()
		if !reflect.DeepEqual(before.net, after.net) {
			t.net = line
		}
		macs()
		names()
		t.mu.Unlock()
		look()
		return nil
	}
}

// replace puts into m what after has otherwise than before. undo puts back what was there.
func replace[K comparable](m, before, after map[K]*impair.Settings) (undo func()) {
	had := map[K]*impair.Settings{}
	for k, s := range after {
		if !reflect.DeepEqual(before[k], s) {
			had[k] = m[k]
			m[k] = s
		}
	}
	for k := range before {
		if after[k] == nil {
			had[k] = m[k]
			delete(m, k)
		}
	}
	return func() {
		for k, s := range had {
			if m[k] = s; s == nil {
				delete(m, k)
			}
		}
	}
}

// limitChange is a limit of the network, or of the guest with a MAC, that a configuration sets otherwise than the one before.
type limitChange struct {
	guest mac // of own
	own   bool
	limit flows.Limit
	value int // 0: the default
}

func limitChanges(was, now *Config) (list []limitChange) {
	diff := func(a, b flows.Limits, c limitChange) {
		for _, l := range flows.AllLimits() {
			if v := l.Of(&b); v != l.Of(&a) {
				c.limit, c.value = l, v
				list = append(list, c)
			}
		}
	}
	diff(was.Limits, now.Limits, limitChange{})
	macs := map[string]bool{}
	for m := range was.GuestLimits {
		macs[m] = true
	}
	for m := range now.GuestLimits {
		macs[m] = true
	}
	for m := range macs {
		if hw, err := net.ParseMAC(m); err == nil && len(hw) == 6 {
			diff(was.GuestLimits[m], now.GuestLimits[m], limitChange{guest: macOf(hw), own: true})
		}
	}
	return list
}

// changeLimits returns the changes that take it back: to what was in force, whoever set it.
func (n *Network) changeLimits(list []limitChange) (undo []limitChange) {
	if len(list) == 0 {
		return nil
	}
	t := &n.limits
	t.mu.Lock()
	for _, c := range list {
		l := t.net
		if c.own {
			l = t.guests[c.guest]
		}
		undo = append(undo, limitChange{c.guest, c.own, c.limit, c.limit.Of(&l)})
		c.limit.Put(&l, c.value)
		if c.own {
			t.guests[c.guest] = l
		} else {
			t.net = l
		}
	}
	force := t.net
	t.mu.Unlock()
	n.flows.SetLimits(force)
	for _, p := range n.seg.all() {
		p.limit()
	}
	return undo
}

// ParseDNSRecord reads a record as a zone file has it, "db A 10.0.2.20" or "db 60 A 10.0.2.20". Names are relative to the
// network's domain, or end in a dot.
func ParseDNSRecord(s string) (DNSRecord, error) {
	r, err := dns.Split(s)
	return DNSRecord{Name: r.Name, Type: r.Type, Value: r.Data, TTL: r.TTL}, err
}

// String is the record as ParseDNSRecord reads it.
func (r DNSRecord) String() string {
	if r.TTL > 0 {
		return fmt.Sprintf("%s %d %s %s", r.Name, r.TTL, r.Type, r.Value)
	}
	return fmt.Sprintf("%s %s %s", r.Name, r.Type, r.Value)
}
