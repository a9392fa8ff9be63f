package control

import (
	"cmp"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vmnetd/vmnetd/flows"
)

// flowPick is the finer part of which conversations a client wants.
type flowPick struct {
	name, verdict, reason string
	within                netip.Prefix
	port                  uint16
	least                 uint64
}

var flowPickParams = []param{
	{name: "name", says: "only with a name that has this in it: one that was said, or that the guest's DNS answers had"},
	{name: "address", says: "only with this address, or one in this prefix, at either end", is: netip.Prefix{}},
	{name: "port", says: "only to this port", is: 0, most: 65535},
	{name: "verdict", says: "only with this verdict", one: []string{"allowed", "asked", "refused"}},
	{name: "reason", says: "only those that ended, or were refused, for this reason; with state closed or refused"},
	{name: "min_bytes", says: "only of at least so many bytes, both ways together", is: 0},
	{name: "sort", says: "the largest first, in place of the oldest: by bytes, or those of one way; the latest begun (opened); the longest quiet (idle)", one: slices.Sorted(maps.Keys(flowOrders))},
}

var flowOrders = map[string]func(a, b *flows.Snapshot) int{
	"bytes":  func(a, b *flows.Snapshot) int { return cmp.Compare(b.UpBytes+b.DownBytes, a.UpBytes+a.DownBytes) },
	"up":     func(a, b *flows.Snapshot) int { return cmp.Compare(b.UpBytes, a.UpBytes) },
	"down":   func(a, b *flows.Snapshot) int { return cmp.Compare(b.DownBytes, a.DownBytes) },
	"opened": func(a, b *flows.Snapshot) int { return b.Opened.Compare(a.Opened) },
	"idle":   func(a, b *flows.Snapshot) int { return cmp.Compare(b.IdleMS, a.IdleMS) },
}

func (c *call) flowPick() (p flowPick) {
	q := c.query
	p = flowPick{name: strings.ToLower(q.Get("name")), verdict: q.Get("verdict"), reason: q.Get("reason")}
	p.within, _ = prefixOf(q.Get("address")) // each was checked
	port, _ := strconv.ParseUint(q.Get("port"), 10, 16)
	p.port = uint16(port)
	p.least, _ = strconv.ParseUint(q.Get("min_bytes"), 10, 63)
	return p
}

func (p *flowPick) has(f *flows.Snapshot) bool {
	return (p.name == "" || p.named(f)) && (p.verdict == "" || p.verdict == f.Verdict) && (p.reason == "" || p.reason == f.Reason) &&
		(!p.within.IsValid() || p.within.Contains(f.Src.Addr()) || p.within.Contains(f.Dst.Addr()) || f.Host.IsValid() && p.within.Contains(f.Host.Addr())) &&
		(p.port == 0 || p.port == f.Dst.Port()) && f.UpBytes+f.DownBytes >= p.least
}

func (p *flowPick) named(f *flows.Snapshot) bool {
	in := func(s string) bool { return strings.Contains(strings.ToLower(s), p.name) }
	return in(f.Name) || slices.ContainsFunc(f.Names, in)
}

// flowsInOrder answers with the conversations of all networks that the request means, in the order that it wants.
func (s *Server) flowsInOrder(c *call) (reply, error) {
	if c.query.Has("after") {
		return reply{}, problem(http.StatusBadRequest, "give sort and limit for the first ones, or limit and after for all, the oldest first",
			"after and sort: what is largest changes from page to page")
	}
	nets := s.networksOf(c)
	list := []FlowEntry{}
	var missing error
	found := false
	for _, n := range nets {
		one := *c
		one.net = n
		flows, err := one.flows()
		if missing = cmp.Or(missing, err); err != nil {
			continue
		}
		found = true
		for _, f := range flows {
			list = append(list, FlowEntry{n.Config().Name, f})
		}
	}
	if !found {
		return reply{}, missing
	}
	order := flowOrders[c.query.Get("sort")]
	slices.SortStableFunc(list, func(a, b FlowEntry) int { return order(&a.Snapshot, &b.Snapshot) })
	if n := c.limit(); n > 0 && n < len(list) {
		list = list[:n]
	}
	return ok(list)
}

// flows are those of one network that the request means.
func (c *call) flows() ([]flows.Snapshot, error) {
	w, err := c.flowWish()
	if err != nil {
		return nil, err
	}
	var list []flows.Snapshot
	switch w.state {
	case "closed", "refused":
		list = c.net.Flows().Lately()
	default:
		list = c.net.Flows().List()
	}
	return slices.DeleteFunc(list, func(f flows.Snapshot) bool { return !w.has(&f) }), nil
}
