package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

// Learning is whether what guests reach is recorded.
type Learning uint8

const (
	LearnOff    Learning = iota
	LearnRecord          // and judged by the rules
	LearnAllow           // and judged as by the preset open, whatever the rules say
)

var learnings = []string{"off", "record", "allow"}

func (l Learning) String() string { return learnings[min(int(l), len(learnings)-1)] }

// MarshalText makes a Learning its name in JSON.
func (l Learning) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText is MarshalText's inverse.
func (l *Learning) UnmarshalText(b []byte) error { return unmarshal(l, "learning", learnings, b) }

const (
	// mostLearned is how many destinations of one guest are recorded: 200 bytes and a name each.
	mostLearned = 1024
	// learnedTotal is how many of all guests.
	learnedTotal = 8192
)

// Learned is a destination that a guest wanted, or a name that it asked for.
type Learned struct {
	Guest string      `json:"guest"`
	Proto flows.Proto `json:"proto,omitempty"` // 0: the name was asked for, and no conversation followed
	// Name is whose address it was. Beside Addr, it points at an address that rules with names open nothing to.
	Name  string     `json:"name,omitempty"`
	Addr  netip.Addr `json:"address,omitzero"` // where there is no name, or beside it
	Port  uint16     `json:"port,omitempty"`
	Count uint64     `json:"count"`
	First time.Time  `json:"first"`
	Last  time.Time  `json:"last"`
	Lets  bool       `json:"allowed"` // by the rules in force at the last time
	// Unnamed says that first bytes named nobody or somebody else at least once, on a port where they usually do.
	Unnamed bool `json:"unnamed,omitempty"`
	// Said is who first bytes named, where no answer opened the address.
	Said string `json:"said,omitempty"`
}

type learnedKey struct {
	guest string
	proto flows.Proto
	name  string
	addr  netip.Addr
	port  uint16
}

// record is what was learned.
type record struct {
	mu     sync.Mutex
	all    map[learnedKey]*Learned
	guests map[string]int
	missed uint64
}

func (r *record) init() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all, r.guests, r.missed = map[learnedKey]*Learned{}, map[string]int{}, 0
}

// Learn begins to record, from nothing, or ends it; what was learned stays until it begins again. Going from one way
// of learning to the other keeps it.
func (p *Policy) Learn(l Learning) {
	if old := Learning(p.learn.Swap(int32(l))); old == LearnOff && l != LearnOff {
		p.learned.init()
	}
}

// Learning says whether what guests reach is being recorded.
func (p *Policy) Learning() Learning { return p.learning() }

func (p *Policy) learning() Learning { return Learning(p.learn.Load()) }

// note records one thing. It returns nil if there is no room for it.
func (r *record) note(k learnedKey, lets bool, now time.Time) *Learned {
	l := r.all[k]
	if l == nil {
		if r.guests[k.guest] >= mostLearned || len(r.all) >= learnedTotal {
			r.missed++
			return nil
		}
		r.guests[k.guest]++
		k.name = strings.Clone(k.name)
		l = &Learned{Guest: k.guest, Proto: k.proto, Name: k.name, Addr: k.addr, Port: k.port, First: now}
		r.all[k] = l
	}
	l.Count++
	l.Last, l.Lets = now, lets
	return l
}

func (r *record) name(guest, name string, lets bool, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note(learnedKey{guest: guest, name: name}, lets, now)
}

// noted is a conversation that was recorded.
type noted struct {
	r *record
	l *Learned
}

func (r *record) conversation(q flows.Query, d decision, now time.Time) noted {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := learnedKey{guest: q.Guest, proto: q.Proto, name: d.display(), port: q.Dst.Port()}
	if q.Proto == flows.ICMPv6 {
		k.proto = flows.ICMP
	}
	if d.name == "" {
		k.addr = q.Dst.Addr()
	}
	return noted{r, r.note(k, d.rule.lets(), now)}
}

// listen makes first bytes part of the record; the verdict is v's.
func (n noted) listen(v flows.Verdict) func(flows.Hello) flows.Verdict {
	return func(h flows.Hello) flows.Verdict {
		if n.l != nil {
			n.r.mu.Lock()
			switch {
			case h.Name == "" || n.l.Name != "" && h.Name != n.l.Name:
				n.l.Unnamed = true
			case n.l.Name == "":
				n.l.Said = strings.Clone(h.Name)
			}
			n.r.mu.Unlock()
		}
		if v.Inspect != nil {
			return v.Inspect(h)
		}
		return v
	}
}

// Learned lists what was recorded, by guest and destination, and how much there was no room for.
func (p *Policy) Learned() (list []Learned, missed uint64) {
	r := &p.learned
	r.mu.Lock()
	for _, l := range r.all {
		list = append(list, *l)
	}
	missed = r.missed
	r.mu.Unlock()
	slices.SortFunc(list, func(a, b Learned) int {
		return cmp.Or(cmp.Compare(a.Guest, b.Guest), cmp.Compare(a.Name, b.Name), a.Addr.Compare(b.Addr),
			cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
	})
	return list, missed
}

// LearnedDocument is a policy that lets guests have what was recorded, in the preset sandbox and otherwise closed.
// guest is an id, or "" for what all of them had together.
func (p *Policy) LearnedDocument(guest string) Document {
	d, _ := p.learnedDocument(guest)
	return d
}

// LearnedText is LearnedDocument as text, with what it leaves out in comments.
func (p *Policy) LearnedText(guest string) string {
	d, only := p.learnedDocument(guest)
	var b strings.Builder
	b.WriteString(d.String())
	for i, n := range only {
		if i == 0 {
			b.WriteString("\n# names that were asked for, and not used:\n")
		}
		fmt.Fprintf(&b, "#   %s\n", n)
	}
	if _, missed := p.Learned(); missed > 0 {
		fmt.Fprintf(&b, "\n# %d more were seen than are recorded (%d of a guest, %d of all)\n", missed, mostLearned, learnedTotal)
	}
	return b.String()
}

func (p *Policy) learnedDocument(guest string) (d Document, only []string) {
	list, _ := p.Learned()
	d.Preset = Sandbox
	type line struct {
		proto   Proto
		to      string
		check   Check
		comment string
	}
	var order []line
	ports := map[line]Ports{}
	used := map[string]bool{}
	add := func(l line, port uint16) {
		have, ok := ports[l]
		if !ok {
			order = append(order, l)
		}
		if port != 0 {
			have = append(have, PortRange{port, port})
		}
		ports[l] = have
	}
	for _, l := range list {
		if guest != "" && l.Guest != guest || l.Proto == 0 {
			continue
		}
		used[l.Name] = true
		x := line{proto: ICMP, to: l.Name}
		switch l.Proto {
		case flows.TCP:
			x.proto = TCP
		case flows.UDP:
			x.proto = UDP
		}
		if l.Name != "" {
			if _, err := parseName(l.Name); err != nil {
				x.comment = l.Name
				continue
			}
			if l.Unnamed && usualPort(l.Proto, l.Port) && !l.Addr.IsValid() {
				x.check = Unchecked
			}
			add(x, l.Port) // so that it can be resolved, wherever it points
		}
		if l.Addr.IsValid() {
			x.to, x.check, x.comment = l.Addr.String(), Usual, cmp.Or(l.Name, l.Said)
			add(x, l.Port)
		}
	}
	for _, l := range order {
		have := ports[l].canonical()
		for len(have) > 0 || l.proto == ICMP {
			n := min(len(have), mostRanges)
			r := Rule{Verdict: Allow, Proto: l.proto, To: l.to, Ports: have[:n:n], Check: l.check, Comment: l.comment}
			if n == 0 {
				r.Ports = nil
			}
			d.Rules = append(d.Rules, r)
			if have = have[n:]; len(have) == 0 {
				break
			}
		}
	}
	for _, l := range list {
		if l.Proto == 0 && (guest == "" || l.Guest == guest) && !used[l.Name] {
			used[l.Name] = true
			only = append(only, l.Name)
		}
	}
	return d, only
}
