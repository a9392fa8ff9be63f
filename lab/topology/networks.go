package topology

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vmnetd/vmnetd/config"
	"github.com/vmnetd/vmnetd/dns"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/impair"
	"github.com/vmnetd/vmnetd/policy"
)

func (r *reader) network(v config.Value, at place, name string, wire bool) *network {
	n := &network{Network: Network{Name: name, Wire: wire, Uplink: !wire}, at: at}
	what := "a network"
	if wire {
		what = "a link"
	}
	if v.None() {
		return n // lan: alone is one with all defaults
	}
	said := map[string]place{}
	known := []key{
		{"net", func(v config.Value) { n.Prefix4, n.prefixAt[0] = r.prefix(v, "net", false), v.Place() }},
		{"net6", func(v config.Value) { n.Prefix6, n.prefixAt[1] = r.prefix(v, "net6", true), v.Place() }},
		{"mtu", func(v config.Value) {
			if m, ok := r.number(v, "mtu", leastMTU4, mostMTU); ok {
				n.MTU = m
			}
		}},
		{"impair", func(v config.Value) { n.Impair = r.impair(v, wire) }},
	}
	if !wire {
		known = append(known,
			key{"uplink", func(v config.Value) {
				if b, ok := r.bool(v, "uplink"); ok {
					n.Uplink = b
				}
			}},
			key{"isolate", func(v config.Value) { n.Isolate, _ = r.bool(v, "isolate") }},
			key{"gateway", func(v config.Value) { n.Gateway4 = r.addr(v, "gateway") }},
			key{"gateway6", func(v config.Value) { n.Gateway6 = r.addr(v, "gateway6") }},
			key{"domain", func(v config.Value) { n.Domain = r.domain(v) }},
			key{"resolver", func(v config.Value) { n.Resolvers = r.resolvers(v) }},
			key{"policy", func(v config.Value) { n.Policy = r.policy(v) }},
			key{"forward", func(v config.Value) { n.forwards = r.listOrOne(v, "forward") }},
			key{"dns-record", func(v config.Value) { n.DNS = r.records(v) }},
			key{"limits", func(v config.Value) { n.Limits = r.limits(v) }},
			key{"no-host-loopback", func(v config.Value) { n.NoHostLoopback, _ = r.bool(v, "no-host-loopback") }},
			key{"strict-leases", func(v config.Value) { n.StrictLeases, _ = r.bool(v, "strict-leases") }},
		)
	}
	r.keys(v, what, known, func(name string, at place) { said[name] = at })
	r.checkNetwork(n, said)
	return n
}

func (r *reader) domain(v config.Value) string {
	s, ok := r.text(v, "domain")
	if !ok {
		return ""
	}
	for part := range strings.SplitSeq(s, ".") {
		if !dnsLabel.MatchString(part) || len(s) > 200 { // 253 (RFC 1035 §2.3.4) with a host's name before it
			r.fail(v.Place(), "domain: %.60q: want a domain as lab.internal", s)
			return ""
		}
	}
	return s
}

func (r *reader) resolvers(v config.Value) (list []netip.AddrPort) {
	for _, s := range r.listOrOne(v, "resolver") {
		a, err := netip.ParseAddrPort(s.text)
		if ip, aerr := netip.ParseAddr(strings.Trim(s.text, "[]")); aerr == nil {
			a, err = netip.AddrPortFrom(ip, 53), nil
		}
		if err != nil || a.Port() == 0 {
			r.fail(s.at, "resolver: want 192.0.2.1, 192.0.2.1:5353 or [2001:db8::1]:5353, not %.60q", s.text)
			continue
		}
		list = append(list, a)
	}
	return list
}

// Verdicts and protocols of rules, as package policy has them: what has none of them is a name or an address.
var (
	verdicts  = []string{"allow", "reject", "drop", "ask"}
	protocols = []string{"any", "tcp", "udp", "icmp"}
	presets   = []string{"open", "sandbox", "offline", "restrict"}
)

// rule is one of an allow-list in full: example.com is allow any example.com.
func rule(s string) string {
	w := strings.Fields(s)
	switch {
	case len(w) > 0 && slices.Contains(verdicts, w[0]):
		return s
	case len(w) == 1 && !slices.Contains(protocols, w[0]):
		return "allow any " + s
	}
	return "allow " + s
}

// Document is what package policy makes a policy of: Allow before Rules.
func (p Policy) Document() (policy.Document, error) {
	d, err := policy.Parse(p.Rules)
	if err != nil {
		return d, err
	}
	if p.Preset != "" {
		if err := d.Preset.UnmarshalText([]byte(p.Preset)); err != nil {
			return d, err
		}
	}
	var rules []policy.Rule
	for _, s := range p.Allow {
		one, err := policy.ParseRule(rule(s))
		if err != nil {
			return d, err
		}
		rules = append(rules, one)
	}
	d.Rules = append(rules, d.Rules...)
	return d, d.Validate()
}

func (r *reader) policy(v config.Value) (p Policy) {
	if s, ok := v.Text(); ok {
		r.fail(v.Place(), "policy: want keys with values, as policy: {preset: sandbox}, not %.40q", s)
		return p
	}
	faults := r.src.Faults()
	var presetAt, rulesAt place
	rules := func(text string, v config.Value, own bool) {
		at := v.Place()
		if rulesAt.Line > 0 {
			r.fail(at, "rules stand in one place: leave out rules or file")
			return
		}
		p.Rules, rulesAt = text, at
		_, err := policy.Parse(text)
		for _, err := range unjoin(err) {
			var e *policy.Error
			if errors.As(err, &e) && e.Line > 0 && own {
				r.fail(r.src.Inside(v, e.Line, e.Column), "%s: want %s", e.What, e.Want)
				continue
			}
			r.fail(at, "%s", err)
		}
	}
	r.keys(v, "policy", []key{
		{"preset", func(v config.Value) {
			s, ok := r.text(v, "preset")
			if ok && !slices.Contains(presets, s) {
				r.fail(v.Place(), "preset: no preset is called %.40q: %s", s, config.DidYouMean(s, presets))
				return
			}
			p.Preset, presetAt = s, v.Place()
		}},
		{"allow", func(v config.Value) {
			for _, s := range r.listOrOne(v, "allow") {
				if _, err := policy.ParseRule(rule(s.text)); err != nil {
					r.fail(s.at, "%s", err)
					continue
				}
				p.Allow = append(p.Allow, s.text)
			}
		}},
		{"rules", func(v config.Value) {
			if s, ok := r.text(v, "rules"); ok {
				rules(s, v, true)
			}
		}},
		{"file", func(v config.Value) {
			if s, ok := r.contents(v, "file"); ok {
				rules(s, v, false)
			}
		}},
	}, nil)
	if r.src.Faults() > faults {
		return p
	}
	if d, err := policy.Parse(p.Rules); err == nil && p.Preset != "" && d.Preset != policy.NoPreset && d.Preset.String() != p.Preset {
		r.fail(presetAt, "preset %s: the rules have preset %s: leave one out", p.Preset, d.Preset)
	} else if _, err := p.Document(); err != nil {
		r.fail(v.Place(), "%s", err)
	}
	return p
}

func unjoin(err error) []error {
	if err == nil {
		return nil
	}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}

func (r *reader) records(v config.Value) (list []string) {
	for _, s := range r.listOrOne(v, "dns-record") {
		if _, err := dns.Split(s.text); err != nil {
			r.fail(s.at, "%s", strings.TrimPrefix(err.Error(), "dns: "))
			continue
		}
		list = append(list, s.text)
	}
	return list
}

func (r *reader) limits(v config.Value) map[string]string {
	limits := map[string]string{}
	r.src.Entries(v, "limits", func(key config.Value, name string, value config.Value) {
		s, ok := r.text(value, name)
		if !ok {
			return
		}
		if err := new(flows.Limits).Set(name, s); err != nil {
			r.fail(key.Place(), "%s", err)
			return
		}
		limits[name] = s
	})
	return limits
}

// impair is a text, as impair.ParseSettings reads it, or keys with one for each direction. What a link suffers is said of
// both its directions, and played once: to what each end sends.
func (r *reader) impair(v config.Value, wire bool) *impair.Settings {
	var s impair.Settings
	var err error
	if !v.Keys() {
		text, ok := r.text(v, "impair")
		if !ok {
			return nil
		}
		if s, err = impair.ParseSettings(text, r.files.traces); err != nil {
			r.fail(v.Place(), "impair: %s", err)
			return nil
		}
	} else {
		faults := r.src.Faults()
		way := func(to *impair.Way, pick func(*impair.Settings) impair.Way) func(config.Value) {
			return func(v config.Value) {
				text, ok := r.text(v, "impair")
				if !ok {
					return
				}
				if p, err := impair.Preset(text); err == nil {
					*to = pick(&p)
				} else if *to, err = impair.ParseWay(text, r.files.traces); err != nil {
					r.fail(v.Place(), "impair: %s", err)
				}
			}
		}
		r.keys(v, "impair", []key{
			{"down", way(&s.Down, func(s *impair.Settings) impair.Way { return s.Down })},
			{"up", way(&s.Up, func(s *impair.Settings) impair.Way { return s.Up })},
			{"seed", func(v config.Value) {
				text, ok := r.text(v, "seed")
				if s.Seed, err = strconv.ParseUint(text, 10, 64); ok && err != nil {
					r.fail(v.Place(), "seed: want a number, not %.40q", text)
				}
			}},
		}, nil)
		if r.src.Faults() > faults {
			return nil
		}
		if err := s.Check(); err != nil {
			r.fail(v.Place(), "impair: %s", err)
			return nil
		}
	}
	if !wire {
		return &s
	}
	both := func(up, down *impair.Way) bool {
		a, b := impair.Settings{Up: *up}, impair.Settings{Up: *down}
		*down = impair.Way{}
		return a.String() == b.String()
	}
	same := both(&s.Up, &s.Down)
	for i := range s.Flows {
		same = both(&s.Flows[i].Up, &s.Flows[i].Down) && same
	}
	if !same {
		r.fail(v.Place(), "impair: a link has no up and down: want settings for both directions here, or impair at its ends' interfaces")
		return nil
	}
	return &s
}
