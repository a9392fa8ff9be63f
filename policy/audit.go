package policy

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

// Decision is one line of the audit.
type Decision struct {
	Time time.Time `json:"time"`
	// Kind is conversation; first-bytes; name, for a question to the resolver; answer, for an address that was removed
	// from one; question, for an answer by a person; or running, for a conversation that was judged again.
	Kind    string          `json:"kind"`
	Guest   string          `json:"guest"`
	Proto   flows.Proto     `json:"proto,omitempty"`
	Dir     flows.Direction `json:"direction,omitempty"`
	Src     netip.AddrPort  `json:"src,omitzero"`
	Dst     netip.AddrPort  `json:"dst,omitzero"`
	Name    string          `json:"name,omitempty"`
	Verdict Action          `json:"verdict"`
	Rule    string          `json:"rule,omitempty"`
	Reason  flows.Reason    `json:"reason,omitempty"`
}

// SetAudit has f told of every decision from now on, or with nil nobody. It is called by whoever waits for the
// decision: it must not wait, and must not call the policy.
func (p *Policy) SetAudit(f func(Decision)) {
	if f == nil {
		p.auditor.Store(nil)
		return
	}
	p.auditor.Store(&f)
}

// actionOf is a verdict in one word.
func actionOf(v flows.Verdict) Action {
	switch {
	case v.Pending != nil:
		return Ask
	case v.Allow:
		return Allow
	case v.Reject:
		return Reject
	}
	return Drop
}

func (p *Policy) audit(d Decision, v flows.Verdict) {
	f := p.auditor.Load()
	if f == nil {
		return
	}
	d.Time, d.Verdict, d.Rule, d.Reason = p.now(), actionOf(v), v.Rule, v.Reason
	(*f)(d)
}

// AuditLog returns what writes decisions to a log, at most perSecond of each guest; the rest is counted, and the count
// is told with the guest's next line. A guest can make decisions faster than a disk takes lines.
func AuditLog(l *slog.Logger, perSecond int) func(Decision) {
	type tally struct {
		second  int64
		lines   int
		dropped uint64
	}
	var mu sync.Mutex
	guests := map[string]*tally{}
	return func(d Decision) {
		mu.Lock()
		t := guests[d.Guest]
		if t == nil {
			if len(guests) >= mostGuests { // ids that came and went
				clear(guests)
			}
			t = &tally{}
			guests[d.Guest] = t
		}
		if s := d.Time.Unix(); s != t.second {
			t.second, t.lines = s, 0
		}
		if t.lines >= perSecond {
			t.dropped++
			mu.Unlock()
			return
		}
		t.lines++
		dropped := t.dropped
		t.dropped = 0
		mu.Unlock()

		attrs := []any{"kind", d.Kind, "guest", d.Guest, "verdict", d.Verdict.String()}
		if d.Proto != 0 {
			attrs = append(attrs, "proto", d.Proto.String(), "direction", d.Dir.String())
		}
		if d.Src.IsValid() {
			attrs = append(attrs, "src", d.Src.String())
		}
		if d.Dst.IsValid() {
			attrs = append(attrs, "dst", d.Dst.String())
		}
		if d.Name != "" {
			attrs = append(attrs, "name", d.Name)
		}
		if d.Rule != "" {
			attrs = append(attrs, "rule", d.Rule)
		}
		if d.Reason != flows.ReasonNone {
			attrs = append(attrs, "reason", d.Reason.String())
		}
		if dropped > 0 {
			attrs = append(attrs, "not_logged", dropped)
		}
		l.Info("policy", attrs...)
	}
}
