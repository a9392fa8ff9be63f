package portforward

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Replace removes the rules old, as they were bound, and adds others in one step, all or none: the table never has half of
// it. It returns the new ones as bound, in their order. What is not in the table any more need not be removed; rules in
// neither list, and their clients, notice nothing. A rule may take a removed one's host end: that is closed for a moment,
// and what is opened first is what can be opened beside it. TCP conversations that a removed rule let in go on, its UDP
// conversations end.
//
// The error is an *Error, of the rule that cannot be added. Should another program take a host end in that moment, the rule
// that had it is lost, and the error says so.
func (t *Table) Replace(ctx context.Context, old, rules []Rule) ([]Rule, error) {
	bound, gone, err := t.replace(ctx, old, rules)
	if err != nil {
		return nil, err
	}
	for _, e := range gone {
		if e.udp != nil {
			e.udp.endAll(e)
		}
		e.loops.Wait()
		t.log.Info("port forward removed", "rule", e.text)
		if t.cfg.Changed != nil {
			t.cfg.Changed(e.rule, false)
		}
	}
	if t.cfg.Changed != nil {
		for _, r := range bound {
			t.cfg.Changed(r, true)
		}
	}
	return bound, nil
}

func (t *Table) replace(ctx context.Context, old, rules []Rule) (bound []Rule, gone []*entry, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, ports := t.rules, t.ports
	var stay []*entry
	for _, e := range before {
		if slices.Contains(old, e.rule) {
			gone = append(gone, e)
			ports -= len(e.socks)
		} else {
			stay = append(stay, e)
		}
	}
	opened := make([]*entry, len(rules))
	closed := map[*entry]bool{} // of gone
	t.rules = stay              // what open looks at
	try := func(i int) error {
		also := slices.DeleteFunc(slices.Clone(opened), func(e *entry) bool { return e == nil })
		e, err := t.open(ctx, rules[i], also, ports)
		if err == nil {
			opened[i] = e
			ports += len(e.socks)
		}
		return err
	}
	inWay := func(r Rule) (list []*entry) {
		r, err := r.Normalize()
		for _, e := range gone {
			if err == nil && r.clashes(e.rule) {
				list = append(list, e)
			}
		}
		return list
	}
	var late []int
	for i, r := range rules {
		if len(inWay(r)) > 0 {
			late = append(late, i)
		} else if err = try(i); err != nil {
			break
		}
	}
	for _, i := range late {
		if err != nil {
			break
		}
		for _, e := range inWay(rules[i]) {
			e.closeSockets()
			closed[e] = true
		}
		err = try(i)
	}
	if err != nil {
		for _, e := range opened {
			if e != nil {
				e.closeSockets()
			}
		}
		t.log.Warn("port forwards not changed", "err", err)
		gone, err = t.reopen(before, closed, err)
		return nil, nil, err
	}
	t.ports = ports
	for _, e := range gone {
		if !closed[e] {
			e.closeSockets()
		}
	}
	for _, e := range opened {
		t.start(e)
		bound = append(bound, e.rule)
	}
	return bound, gone, nil
}

// reopen has the table as it was before a change that failed for why: rules whose sockets are closed get others. Called
// with mu.
func (t *Table) reopen(before []*entry, closed map[*entry]bool, why error) ([]*entry, error) {
	t.rules = slices.DeleteFunc(slices.Clone(before), func(e *entry) bool { return closed[e] })
	t.ports = 0
	for _, e := range t.rules {
		t.ports += len(e.socks)
	}
	for _, e := range before {
		if !closed[e] {
			continue
		}
		again, err := t.open(t.ctx, e.rule, nil, t.ports)
		if err != nil {
			var p *Error
			if errors.As(why, &p) {
				lost := *p
				lost.Text = fmt.Sprintf("%s; and %s, which was to give way, is lost: %v", p.Text, e.text, err)
				why = &lost
			}
			t.log.Error("port forward lost", "rule", e.text, "err", err)
			continue
		}
		t.ports += len(again.socks)
		t.start(again)
	}
	return nil, why
}
