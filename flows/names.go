package flows

// What guests were told that names stand for: it makes addresses readable for people, and decides nothing. A policy that
// goes by names keeps its own, with their times to live.

import (
	"net/netip"
	"slices"
)

const (
	// learntAddrs is how many addresses of one guest have names: a browser's evening, in both families. What was learnt
	// first goes first.
	learntAddrs = 1024
	// learntBytes bounds the names themselves, of which a hostile guest asks for long ones.
	learntBytes = 64 << 10
	// namesOfAddr is how many names one address has at a time. Behind a large address there are thousands; people are
	// helped by those that were asked for last.
	namesOfAddr = 4
)

// learnt is what one guest was told, under Table.mu.
type learnt struct {
	names map[netip.Addr][]string // newest first; the slices do not change, since flows have them too
	order []netip.Addr            // oldest first, from at on
	at    int
	bytes int
}

// Learn notes that a guest's question for a name was answered with addresses. Of guests that the table does not keep
// (SetGuest) nothing is learnt.
func (t *Table) Learn(guest, name string, addrs []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.guests[guest]
	if u == nil || !u.kept || name == "" {
		return
	}
	if u.learnt == nil {
		u.learnt = &learnt{names: map[netip.Addr][]string{}}
	}
	for _, a := range addrs {
		u.learnt.add(name, a)
	}
}

func (l *learnt) add(name string, a netip.Addr) {
	was, known := l.names[a]
	if known && was[0] == name {
		return
	}
	if !known {
		l.order = append(l.order, a)
	}
	now := append(make([]string, 0, min(namesOfAddr, len(was)+1)), name)
	for _, n := range was {
		if n != name && len(now) < namesOfAddr {
			now = append(now, n)
		}
	}
	l.names[a] = now
	l.bytes += bytesOf(now) - bytesOf(was)
	for len(l.names) > learntAddrs || l.bytes > learntBytes {
		oldest := l.order[l.at]
		l.at++
		l.bytes -= bytesOf(l.names[oldest])
		delete(l.names, oldest)
	}
	if l.at > learntAddrs {
		l.order, l.at = slices.Clone(l.order[l.at:]), 0
	}
}

func bytesOf(names []string) (n int) {
	for _, s := range names {
		n += len(s)
	}
	return n
}

// called is what the guest knows dst as.
func (u *usage) called(q *Query) []string {
	if u.learnt == nil || q.Dir != Out {
		return nil
	}
	return u.learnt.names[q.Dst.Addr()]
}
