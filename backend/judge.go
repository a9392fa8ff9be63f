package backend

// Station 7, verdicts that are not the last word: those that somebody is still asked for, and those of a policy that is
// changed while the network runs. What first bytes say to a verdict is in inspect.go.

import (
	"context"
	"net/netip"
	"time"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/flows"
)

// askTime bounds how long a policy may leave a conversation waiting. People are given half of it (package policy), so
// only a policy that forgets is cut off; a guest's SYN is retransmitted for two minutes (tcp_syn_retries).
const askTime = time.Minute

// settle waits for the answer to a verdict that is pending, has it in force for f, and returns it. What is not allowed is
// ended and counted.
func (p *port) settle(ctx context.Context, f *flows.Flow, v flows.Verdict) flows.Verdict {
	v = p.await(ctx, v)
	f.SetVerdict(v)
	if !v.Allow && f.State() != flows.Closed {
		p.drops[v.Reason].Add(1)
		f.End(v.Reason)
	}
	return v
}

// await returns the verdict that v waits for. It says yes or no.
func (p *port) await(ctx context.Context, v flows.Verdict) flows.Verdict {
	t := time.NewTimer(askTime)
	defer t.Stop()
	none := flows.Verdict{Reject: true, Reason: flows.ReasonUnanswered, Rule: v.Rule}
	select {
	case a, ok := <-v.Pending:
		switch {
		case !ok || a.Pending != nil:
			return none
		case !a.Allow:
			return a.Refused()
		}
		return a
	case <-t.C:
		return none
	case <-ctx.Done(): // nobody is answered
		none.Reject = false
		if p.ctx.Err() != nil {
			none.Reason = flows.ReasonGuestGone
		}
		return none
	}
}

// SetPolicy has another policy in force; nil is the default one. What is closed whatever a policy says (Config.Doors,
// Config.Routes) stays closed.
//
// It holds for conversations to come. UDP has no beginning that could be seen: whom a guest talks to is judged again with
// its next datagram. Those that wait for an answer or for first bytes wait for the policy that they met.
//
// With now, running conversations are judged again as well, TCP, UDP and pings, of guests and of forwards, and those that
// are not allowed any more are reset; SetPolicy returns how many. One whose first bytes nobody has looked at names nobody
// to a policy that asks for names. One about which somebody would have to be asked is ended as well: the guest comes
// again, and is asked about then.
func (n *Network) SetPolicy(p flows.Policy, now bool) (ended int) {
	n.policyMu.Lock()
	defer n.policyMu.Unlock()
	chosen := p != nil
	if !chosen {
		p = n.cfg.defaultPolicy(n.linkLocal)
	}
	n.flows.SetPolicy(closedDoors{p, n, !chosen})
	if !now {
		return 0
	}
	mappings := map[*flows.Flow]bool{}
	for _, p := range n.seg.all() {
		ended += p.udp.rejudge(mappings)
	}
	for _, f := range n.flows.All() {
		if !mappings[f] && !n.stillAllowed(f) {
			f.Cut(flows.ReasonPolicy)
			ended++
		}
	}
	return ended
}

// defaultPolicy is what is in force where nobody chose another.
func (c *Config) defaultPolicy(linkLocal netip.Addr) *flows.Default {
	return &flows.Default{
		Gateways:       []netip.Addr{c.Gateway4, c.Gateway6, linkLocal},
		Local:          []netip.Prefix{c.Prefix4, c.Prefix6},
		NoHostLoopback: c.NoHostLoopback, OpenLinkLocal: c.OpenLinkLocal,
	}
}

// stillAllowed judges a conversation with one peer again.
func (n *Network) stillAllowed(f *flows.Flow) bool {
	was := f.Verdict()
	v := n.flows.JudgeRunning(f.Query, was)
	if !v.Allow || v.Pending != nil || was.Pending != nil {
		return false
	}
	f.SetVerdict(v) // first: who is about to start, or to look, takes this one
	if v.Inspect == nil || !n.inspects(f.Query) || f.State() == flows.Dialing {
		return true
	}
	h, said := f.Said()
	if !said && was.Inspect != nil {
		return true // it is still held
	}
	return inspect(v, h).Allow
}

// inspects says whether the first bytes of a conversation are looked at at all.
func (n *Network) inspects(q flows.Query) bool {
	return q.Dir == flows.Out && (q.Proto == flows.TCP || q.Proto == flows.UDP) && !n.inside.has(q.Proto, q.Dst)
}

// inspect is what v says of first bytes.
func inspect(v flows.Verdict, h flows.Hello) flows.Verdict {
	if v.Inspect == nil {
		return v
	}
	w := v.Inspect(h)
	if w.Allow && w.Pending == nil { // nobody can be asked any more: bytes are there
		return w
	}
	if w.Reason == flows.ReasonNone {
		w.Reason = flows.ReasonHello
	}
	return w.Refused()
}

// rejection is what a guest hears of a packet that was not let in, if the verdict says that it hears at all.
func (n *Network) rejection(dst netip.Addr, v flows.Verdict) egress.Kind {
	switch {
	case v.Reason == flows.ReasonHostLoopback, v.Reason == flows.ReasonOnLink && n.isOurs(dst):
		return egress.PortUnreachable
	case v.Reason == flows.ReasonOnLink:
		return egress.HostUnreachable
	}
	return egress.Prohibited
}
