package topology

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmnetd/vmnetd/config"
	"github.com/vmnetd/vmnetd/dns"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/impair"
	"github.com/vmnetd/vmnetd/policy"
)

const (
	// maxNodes and maxNetworks (links among them) bound a lab: 256 of the smallest nodes there are take a gigabyte, and
	// each network has a stack of its own.
	maxNodes, maxNetworks = 256, 256
	// maxInterfaces bounds a node's: a PC's PCI bus has 32 slots.
	maxInterfaces = 32
	// maxLabName leaves room in a socket's path (108 bytes on Linux) behind /run/user/UID/vmnetd/lab-.
	maxLabName = 32
	// maxInterfaceName is Linux's IFNAMSIZ without its zero.
	maxInterfaceName = 15
	// maxSocketPath is a sockaddr_un's, without its zero: 108 on Linux, 104 on the others.
	maxSocketPath = 103
	// leastMTU4 is IPv4's (RFC 791 §3.2), leastMTU6 IPv6's (RFC 8200 §5); mostMTU is backend's.
	leastMTU4, leastMTU6, mostMTU = 68, 1280, 65520
	// leastMemory is what a Linux kernel boots with, mostMemory a guess at what nobody has: more is a wrong unit.
	leastMemory, mostMemory = 16, 1 << 20 // MiB
	// mostCPUs is what QEMU's machines take.
	mostCPUs = 255
	// leastTimeout and mostTimeout: nothing boots in less, and in more nobody waits.
	leastTimeout, mostTimeout = time.Second, time.Hour
)

type place = config.Place

// reader reads a file. What it reads is kept with its places, until all is known that it can be compared with.
type reader struct {
	src      *config.Source
	files    *folder // nil: none is opened
	vars     scope
	expanded int // bytes, by variables

	name     string
	networks []*network
	nodes    []*node
	byName   map[string]*network
}

type network struct {
	Network
	at       place
	prefixAt [2]place // of net and net6
	forwards []placed
	ends     []place // of a link
}

type node struct {
	Node
	at      place
	of      int // how many its count has; 0: none
	ifaces  []*iface
	after   []placed
	routes  []place
	overlay *bool
	diskAt  place
	said    map[string]place // keys that the file has
}

type iface struct {
	Interface
	at, netAt, nameAt, macAt place
	link                     bool // it says that it is a link
	net                      *network
	addrs                    []placed
	noAddrs                  bool // its list is empty: it shall have none
	addrsAt                  place
}

// placed is a text and where it stands.
type placed struct {
	text string
	at   place
}

func (r *reader) fail(at place, format string, args ...any) { r.src.Fail(at, format, args...) }

// text is one value, its variables set. what it is for people is for errors.
func (r *reader) text(v config.Value, what string) (string, bool) {
	if v.None() {
		r.fail(v.Place(), "%s has no value: give it one or leave it out", what)
		return "", false
	}
	s, ok := v.Text()
	if !ok {
		r.fail(v.Place(), "%s: want one value, not %s", what, v.Kind())
		return "", false
	}
	return r.expand(s, v.Place())
}

// word is a text without line breaks.
func (r *reader) word(v config.Value, what string) (string, bool) {
	s, ok := r.text(v, what)
	if ok && (s == "" || strings.ContainsAny(s, "\n\x00")) {
		r.fail(v.Place(), "%s: want one line", what)
		return "", false
	}
	return s, ok
}

func (r *reader) list(v config.Value, what string) []placed {
	list := []placed{}
	r.src.Items(v, what, func(_ int, item config.Value) {
		if s, ok := r.text(item, what); ok {
			list = append(list, placed{s, item.Place()})
		}
	})
	return list
}

// listOrOne is a list, or one value that is a list of one.
func (r *reader) listOrOne(v config.Value, what string) []placed {
	if v.List() {
		return r.list(v, what)
	}
	if s, ok := r.text(v, what); ok {
		return []placed{{s, v.Place()}}
	}
	return []placed{}
}

func texts(list []placed) []string {
	s := make([]string, len(list))
	for i, p := range list {
		s[i] = p.text
	}
	return s
}

func (r *reader) bool(v config.Value, what string) (bool, bool) {
	s, ok := r.text(v, what)
	if ok && s != "true" && s != "false" {
		r.fail(v.Place(), "%s: want true or false, not %.40q", what, s)
		return false, false
	}
	return s == "true", ok
}

func (r *reader) number(v config.Value, what string, least, most int) (int, bool) {
	s, ok := r.text(v, what)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		r.fail(v.Place(), "%s: want a number from %d to %d, not %.40q", what, least, most, s)
		return 0, false
	}
	return n, true
}

func (r *reader) duration(v config.Value, what string) time.Duration {
	s, ok := r.text(v, what)
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < leastTimeout || d > mostTimeout {
		r.fail(v.Place(), "%s: want a time as 30s or 5m, a second to an hour, not %.40q", what, s)
	}
	return d
}

// memory is a number of MiB.
func (r *reader) memory(v config.Value) int {
	s, ok := r.text(v, "memory")
	if !ok {
		return 0
	}
	digits, scale := s, 1
	for _, u := range []struct {
		unit string
		size int
	}{{"MiB", 1}, {"GiB", 1024}, {"MB", 1}, {"GB", 1024}, {"M", 1}, {"G", 1024}} {
		if rest, ok := strings.CutSuffix(s, u.unit); ok {
			digits, scale = strings.TrimSpace(rest), u.size
			break
		}
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n <= 0 || n > mostMemory/scale || n*scale < leastMemory {
		r.fail(v.Place(), "memory: want 512M or 2G, %d MiB at least, not %.40q", leastMemory, s)
		return 0
	}
	return n * scale
}

func (r *reader) prefix(v config.Value, what string, six bool) netip.Prefix {
	s, ok := r.text(v, what)
	if !ok {
		return netip.Prefix{}
	}
	like := "10.1.0.0/24"
	if six {
		like = "fd00:1::/64"
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is6() != six || p.Addr().Is4In6():
		r.fail(v.Place(), "%s: want a prefix as %s, not %.60q", what, like, s)
	case p != p.Masked():
		r.fail(v.Place(), "%s: %s has bits behind its prefix: want %s", what, p, p.Masked())
	case p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsUnspecified() || p.Addr().IsLinkLocalUnicast():
		r.fail(v.Place(), "%s: nodes cannot have addresses in %s: want a prefix as %s", what, p, like)
	default:
		return p
	}
	return netip.Prefix{}
}

func (r *reader) addr(v config.Value, what string) netip.Addr {
	s, ok := r.text(v, what)
	if !ok {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		r.fail(v.Place(), "%s: want an address, not %.60q", what, s)
		return netip.Addr{}
	}
	return a
}

// key is one that something may have, and what reads it.
type key struct {
	name string
	read func(v config.Value)
}

// keys reads keys with values.
func (r *reader) keys(v config.Value, what string, known []key, each func(name string, at place)) {
	r.src.Entries(v, what, func(at config.Value, name string, value config.Value) {
		i := slices.IndexFunc(known, func(k key) bool { return k.name == name })
		if i < 0 {
			var names []string
			for _, k := range known {
				names = append(names, k.name)
			}
			r.src.Unknown(at, "key", name, what, names)
			return
		}
		if each != nil {
			each(name, at.Place())
		}
		if value.None() {
			r.fail(at.Place(), "%s has no value: give it one or leave it out", name)
			return
		}
		known[i].read(value)
	})
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// isName says whether s may be a name: a DNS label (RFC 1123 §2.1), which has a letter so that it is no number.
func isName(s string) bool {
	return dnsLabel.MatchString(s) && strings.ContainsAny(s, "abcdefghijklmnopqrstuvwxyz")
}

const wantName = "want a host's name: small letters, digits and - inside, a letter among them, 63 at most"

func (r *reader) lab(root config.Value, file string, set map[string]string) *Lab {
	var vars, networks, links, nodes, name config.Value
	to := func(v *config.Value) func(config.Value) { return func(x config.Value) { *v = x } }
	if !root.None() {
		r.keys(root, "the lab", []key{{"name", to(&name)}, {"vars", to(&vars)}, {"networks", to(&networks)}, {"links", to(&links)}, {"nodes", to(&nodes)}}, nil)
	}
	r.readVars(vars, set)
	r.labName(name, file)
	if r.name != "" {
		r.vars = r.vars.with("lab", r.name)
	}
	r.byName = map[string]*network{}
	each := func(v config.Value, what string, read func(at place, name string, v config.Value)) {
		if v.None() {
			return
		}
		r.src.Entries(v, what, func(key config.Value, name string, value config.Value) {
			if !isName(name) {
				r.fail(key.Place(), "%.70q: %s", name, wantName)
				return
			}
			read(key.Place(), name, value)
		})
	}
	join := func(wire bool) func(at place, name string, v config.Value) {
		return func(at place, name string, v config.Value) {
			if first := r.byName[name]; first != nil {
				r.fail(at, "%s is a network in line %d: want another name", name, first.at.Line)
				return
			}
			if len(r.networks) == maxNetworks {
				r.fail(at, "more than %d networks and links", maxNetworks)
				return
			}
			n := r.network(v, at, name, wire)
			r.networks = append(r.networks, n)
			r.byName[name] = n
		}
	}
	each(networks, "networks", join(false))
	each(links, "links", join(true))
	each(nodes, "nodes", r.node)
	if nodes.None() && !r.src.Full() {
		r.fail(root.Place(), "a lab without nodes: want nodes: with a node at least")
	}
	r.check()
	if r.src.Err() != nil {
		return nil
	}
	return r.made()
}

func (r *reader) labName(v config.Value, file string) {
	name := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(filepath.ToSlash(file)), ".yaml"), ".yml")
	at := place{}
	if !v.None() {
		var ok bool
		if name, ok = r.text(v, "name"); !ok {
			return
		}
		at = v.Place()
	}
	switch {
	case (!isName(name) || len(name) > maxLabName) && v.None():
		r.fail(at, "the file's name, %.40q, is no lab's: want name: in it, small letters, digits and - inside, %d at most", name, maxLabName)
	case !isName(name) || len(name) > maxLabName:
		r.fail(at, "name: %.40q: want small letters, digits and - inside, a letter among them, %d at most", name, maxLabName)
	default:
		r.name = name
	}
}

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
			key{"forward", func(v config.Value) { n.forwards = r.list(v, "forward") }},
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

// contents is the text of the file that v names.
func (r *reader) contents(v config.Value, what string) (string, bool) {
	name, ok := r.word(v, what)
	if !ok {
		return "", false
	}
	if r.files == nil {
		r.fail(v.Place(), "%s: no files are read here: want the text itself", what)
		return "", false
	}
	s, err := r.files.read(name)
	if err != nil {
		r.fail(v.Place(), "%s: %s", what, err)
		return "", false
	}
	return s, true
}

// file is the name of one.
func (r *reader) file(v config.Value, what, sort string) string {
	name, ok := r.word(v, what)
	if !ok || r.files == nil {
		return name
	}
	path, err := r.files.find(name, sort)
	if err != nil {
		r.fail(v.Place(), "%s: %s", what, err)
	}
	return path
}

// count is a node's, before anything else of it is read.
func (r *reader) count(v config.Value) (n int, ok bool) {
	ok = true
	if !v.Keys() {
		return 0, true
	}
	faults := r.src.Faults()
	r.src.Entries(v, "a node", func(_ config.Value, key string, value config.Value) {
		if key == "count" {
			n, ok = r.number(value, "count", 1, maxNodes)
		}
	})
	return n, ok && r.src.Faults() == faults
}

func (r *reader) node(at place, name string, v config.Value) {
	if v.None() {
		r.fail(at, "%s: what kind is it? want kind: netns, qemu, uml or external", name)
		return
	}
	count, ok := r.count(v)
	if !ok {
		return
	}
	outer := r.vars
	defer func() { r.vars = outer }()
	for i := range max(count, 1) {
		full := name
		if count > 0 {
			full = fmt.Sprintf("%s%d", name, i+1)
		}
		if len(r.nodes) == maxNodes {
			r.fail(at, "more than %d nodes", maxNodes)
			return
		}
		if !isName(full) {
			r.fail(at, "%.70q: %s", full, wantName)
			return
		}
		if j := slices.IndexFunc(r.nodes, func(n *node) bool { return n.Name == full }); j >= 0 {
			r.fail(at, "%s is a node in line %d: want another name", full, r.nodes[j].at.Line)
			return
		}
		r.vars = outer.with("name", full)
		if count > 0 {
			r.vars = r.vars.with("n", strconv.Itoa(i+1))
		}
		faults := r.src.Faults()
		r.nodes = append(r.nodes, r.oneNode(v, at, full, name, count))
		if r.src.Faults() > faults { // the others have it as well
			for i++; i < count && len(r.nodes) < maxNodes; i++ { // their names are there
				n := *r.nodes[len(r.nodes)-1]
				n.Name = fmt.Sprintf("%s%d", name, i+1)
				n.ifaces, n.after, n.Routes, n.routes = nil, nil, nil, nil
				r.nodes = append(r.nodes, &n)
			}
			return
		}
	}
}

// fits says which kinds of nodes have a key. Those that are not in it all have.
var fits = map[string][]Kind{
	"command": {KindNetns}, "dir": {KindNetns}, "env": {KindNetns}, "restart": {KindNetns},
	"forwarding": {KindNetns, KindQEMU}, "routes": {KindNetns, KindQEMU},
	"setup":  {KindNetns, KindQEMU},
	"kernel": {KindQEMU}, "disk-format": {KindQEMU}, "overlay": {KindQEMU}, "cpus": {KindQEMU}, "machine": {KindQEMU}, "accel": {KindQEMU},
	"cpu": {KindQEMU}, "qemu": {KindQEMU}, "args": {KindQEMU}, "agent": {KindQEMU}, "cloud-init": {KindQEMU},
	"initrd": {KindQEMU, KindUML}, "append": {KindQEMU, KindUML}, "disk": {KindQEMU, KindUML}, "memory": {KindQEMU, KindUML},
	"uml":  {KindUML},
	"user": {KindQEMU, KindUML, KindExternal},
}

var kinds = []Kind{KindNetns, KindQEMU, KindUML, KindExternal}

func (r *reader) oneNode(v config.Value, at place, name, base string, count int) *node {
	n := &node{Node: Node{Name: name, Base: base}, at: at, of: count, said: map[string]place{}}
	var wait config.Value
	text := func(to *string) func(config.Value) {
		return func(v config.Value) { *to, _ = r.word(v, "the value") }
	}
	file := func(to *string, what, sort string) func(config.Value) {
		return func(v config.Value) { *to = r.file(v, what, sort) }
	}
	flag := func(to *bool, what string) func(config.Value) {
		return func(v config.Value) { *to, _ = r.bool(v, what) }
	}
	faults := r.src.Faults()
	r.keys(v, "a node", []key{
		{"kind", func(v config.Value) {
			s, ok := r.text(v, "kind")
			if ok && !slices.Contains(kinds, Kind(s)) {
				r.fail(v.Place(), "kind: no kind %.40q: %s", s, config.DidYouMean(s, wordsOf(kinds)))
				return
			}
			n.Kind = Kind(s)
		}},
		{"count", func(config.Value) {}},
		{"interfaces", func(v config.Value) { r.interfaces(v, n) }},
		{"routes", func(v config.Value) { r.routes(v, n) }},
		{"forwarding", flag(&n.Forwarding, "forwarding")},
		{"command", func(v config.Value) { n.Command = r.command(v) }},
		{"dir", file(&n.Dir, "dir", dir)},
		{"env", func(v config.Value) {
			n.Env = map[string]string{}
			r.src.Entries(v, "env", func(key config.Value, name string, value config.Value) {
				if name == "" || strings.ContainsAny(name, "=\n") {
					r.fail(key.Place(), "env: %.40q is no variable's name", name)
				}
				if s, ok := r.text(value, name); ok {
					n.Env[name] = s
				}
			})
		}},
		{"restart", flag(&n.Restart, "restart")},
		{"setup", func(v config.Value) { n.Setup = texts(r.listOrOne(v, "setup")) }},
		{"after", func(v config.Value) { n.after = r.listOrOne(v, "after") }},
		{"wait", func(v config.Value) { wait = v }},
		{"timeout", func(v config.Value) { n.Timeout = r.duration(v, "timeout") }},
		{"kernel", file(&n.Kernel, "kernel", regular)},
		{"initrd", file(&n.Initrd, "initrd", regular)},
		{"append", text(&n.Append)},
		{"disk", func(v config.Value) { n.Disk, n.diskAt = r.file(v, "disk", image), v.Place() }},
		{"disk-format", func(v config.Value) {
			s, ok := r.text(v, "disk-format")
			if formats := []string{"qcow2", "raw"}; ok && !slices.Contains(formats, s) {
				r.fail(v.Place(), "disk-format: no format %.40q: %s", s, config.DidYouMean(s, formats))
			}
			n.DiskFormat = s
		}},
		{"overlay", func(v config.Value) {
			if b, ok := r.bool(v, "overlay"); ok {
				n.overlay = &b
			}
		}},
		{"memory", func(v config.Value) { n.Memory = r.memory(v) }},
		{"cpus", func(v config.Value) { n.CPUs, _ = r.number(v, "cpus", 1, mostCPUs) }},
		{"machine", text(&n.Machine)},
		{"accel", text(&n.Accel)},
		{"cpu", text(&n.CPU)},
		{"qemu", file(&n.QEMU, "qemu", program)},
		{"args", func(v config.Value) { n.Args = texts(r.list(v, "args")) }},
		{"agent", flag(&n.Agent, "agent")},
		{"user", text(&n.User)},
		{"cloud-init", func(v config.Value) { n.CloudInit = r.cloudInit(v) }},
		{"uml", file(&n.UML, "uml", program)},
	}, func(name string, at place) { n.said[name] = at })
	r.settle(n, r.src.Faults() > faults)
	if !wait.None() {
		r.wait(wait, n)
	}
	return n
}

// command is a list of words, or a line for the shell.
func (r *reader) command(v config.Value) []string {
	if !v.List() {
		s, ok := r.text(v, "command")
		if ok && strings.TrimSpace(s) == "" {
			r.fail(v.Place(), "command: want a program, or no command")
		}
		return []string{"/bin/sh", "-c", s}
	}
	faults := r.src.Faults()
	list := texts(r.list(v, "command"))
	if r.src.Faults() == faults && (len(list) == 0 || list[0] == "") {
		r.fail(v.Place(), "command: want a program, or no command")
	}
	return list
}

func (r *reader) cloudInit(v config.Value) *CloudInit {
	c := &CloudInit{}
	from := map[string]string{}
	text := func(what string, to *string) []key {
		once := func(from map[string]string, key string, at place) bool {
			if first, twice := from[what]; twice {
				r.fail(at, "%s is there already, as %s: leave one out", what, first)
				return false
			}
			from[what] = key
			return true
		}
		return []key{
			{what, func(v config.Value) {
				if v.Keys() || v.List() {
					r.fail(v.Place(), "%s: want a text, as %s: | with the text below it, not %s", what, what, v.Kind())
				} else if s, ok := r.text(v, what); ok && once(from, what, v.Place()) {
					*to = s
				}
			}},
			{what + "-file", func(v config.Value) {
				if s, ok := r.contents(v, what+"-file"); ok && once(from, what+"-file", v.Place()) {
					*to = s
				}
			}},
		}
	}
	known := slices.Concat(text("user-data", &c.UserData), text("network-config", &c.NetworkConfig), text("vendor-data", &c.VendorData))
	known = append(known, key{"meta-data", func(v config.Value) {
		c.MetaData = map[string]string{}
		r.src.Entries(v, "meta-data", func(key config.Value, name string, value config.Value) {
			if name == "instance-id" || name == "local-hostname" {
				r.fail(key.Place(), "%s is the lab's to say: leave it out", name)
			} else if s, ok := r.text(value, name); ok {
				c.MetaData[name] = s
			}
		})
	}})
	r.keys(v, "cloud-init", known, nil)
	return c
}

func (r *reader) interfaces(v config.Value, n *node) {
	r.src.Items(v, "interfaces", func(i int, item config.Value) {
		if i >= maxInterfaces {
			if i == maxInterfaces {
				r.fail(item.Place(), "more than %d interfaces", maxInterfaces)
			}
			return
		}
		f := &iface{at: item.Place(), netAt: item.Place()}
		n.ifaces = append(n.ifaces, f)
		if item.Keys() {
			r.iface(item, n, f)
		} else {
			f.Network, _ = r.text(item, "an interface")
		}
	})
	for i, f := range n.ifaces { // of a name that another has by itself it was told already, or will be
		if f.Name == "" {
			f.Name = fmt.Sprintf("eth%d", i)
		}
		for _, g := range n.ifaces[:i] {
			if g.Name == f.Name {
				r.fail(cmpPlace(f.nameAt, f.at), "%s has two interfaces %s: want another name", n.Name, f.Name)
				break
			}
		}
	}
}

// cmpPlace is the first of two places that is one.
func cmpPlace(a, b place) place {
	if a.Line > 0 {
		return a
	}
	return b
}

func (r *reader) iface(v config.Value, n *node, f *iface) {
	in := func(link bool) func(config.Value) {
		return func(v config.Value) {
			if f.Network != "" {
				r.fail(v.Place(), "an interface is in one network: want net or link")
				return
			}
			f.netAt, f.link = v.Place(), link
			f.Network, _ = r.text(v, "its network")
		}
	}
	faults := r.src.Faults()
	r.keys(v, "an interface", []key{
		{"net", in(false)},
		{"link", in(true)},
		{"name", func(v config.Value) {
			s, ok := r.text(v, "name")
			if ok && !interfaceName(s) {
				r.fail(v.Place(), "name: %.40q is no interface's: want letters, digits, - _ and ., %d at most, and not lo", s, maxInterfaceName)
				return
			}
			f.Name, f.nameAt = s, v.Place()
		}},
		{"mac", func(v config.Value) { f.MAC, f.macAt = r.mac(v), v.Place() }},
		{"address", func(v config.Value) {
			f.addrs, f.addrsAt = r.listOrOne(v, "address"), v.Place()
			f.noAddrs = v.List() && len(f.addrs) == 0
		}},
		{"impair", func(v config.Value) { f.Impair = r.impair(v, false) }},
		{"promiscuous", func(v config.Value) { f.Promiscuous, _ = r.bool(v, "promiscuous") }},
		{"mirror", func(v config.Value) { f.Mirror, _ = r.bool(v, "mirror") }},
		{"door", func(v config.Value) { f.Door = r.door(v, n) }},
	}, nil)
	if f.Network == "" && r.src.Faults() == faults {
		r.fail(v.Place(), "an interface without a network: want net: or link:")
	}
}

// interfaceName says whether Linux takes it: no slash, colon or blank, and no name that has another meaning where it stands
// in files' names and commands.
func interfaceName(s string) bool {
	if s == "" || len(s) > maxInterfaceName || s[0] == '-' || slices.Contains([]string{"lo", "all", "default", ".", ".."}, s) {
		return false
	}
	return !strings.ContainsFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.", c))
	})
}

func (r *reader) mac(v config.Value) net.HardwareAddr {
	s, ok := r.text(v, "mac")
	if !ok {
		return nil
	}
	m, err := net.ParseMAC(s)
	switch {
	case err != nil || len(m) != 6:
		r.fail(v.Place(), "mac: want one as 52:54:00:12:34:56, not %.40q", s)
	case m[0]&1 != 0:
		r.fail(v.Place(), "mac: %s is a group's: want one whose first byte is even, as 52:54:00:12:34:56", m)
	case slices.Max(m) == 0:
		r.fail(v.Place(), "mac: %s is nobody's: want one as 52:54:00:12:34:56", m)
	default:
		return m
	}
	return nil
}

func (r *reader) door(v config.Value, n *node) string {
	s, ok := r.text(v, "door")
	if !ok {
		return ""
	}
	path, unix := strings.CutPrefix(s, "unix:")
	if !unix || path == "" {
		r.fail(v.Place(), "door: want unix:PATH, not %.60q", s)
		return ""
	}
	if r.files != nil {
		path = r.files.whole(path)
	}
	if len(path) > maxSocketPath {
		r.fail(v.Place(), "door: a socket's path has %d bytes at most, and %.60q… has %d", maxSocketPath, path, len(path))
	}
	return "unix:" + path
}

func (r *reader) routes(v config.Value, n *node) {
	for _, s := range r.listOrOne(v, "routes") {
		w := strings.Fields(s.text)
		if len(w) != 3 || w[1] != "via" {
			r.fail(s.at, "routes: want PREFIX via ADDRESS, as 10.9.0.0/16 via 10.1.0.3 or default via fd00::1, not %.60q", s.text)
			continue
		}
		via, err := netip.ParseAddr(w[2])
		if err != nil || via.Zone() != "" || via.Is4In6() {
			r.fail(s.at, "routes: %.60q is no address: want PREFIX via ADDRESS, as 10.9.0.0/16 via 10.1.0.3", w[2])
			continue
		}
		to, err := netip.ParsePrefix(w[0])
		switch {
		case w[0] == "default" && via.Is4():
			to, err = netip.PrefixFrom(netip.IPv4Unspecified(), 0), nil
		case w[0] == "default":
			to, err = netip.PrefixFrom(netip.IPv6Unspecified(), 0), nil
		case err != nil:
			var a netip.Addr
			if a, err = netip.ParseAddr(w[0]); err == nil && a.Zone() == "" {
				to = netip.PrefixFrom(a, a.BitLen())
			}
		}
		switch {
		case err != nil || !to.IsValid() || to.Addr().Is4In6():
			r.fail(s.at, "routes: %.60q is no prefix: want PREFIX via ADDRESS, as 10.9.0.0/16 via 10.1.0.3", w[0])
		case to != to.Masked():
			r.fail(s.at, "routes: %s has bits behind its prefix: want %s", to, to.Masked())
		case to.Addr().Is4() != via.Is4():
			r.fail(s.at, "routes: %s is not of the family of %s", to, via)
		case slices.ContainsFunc(n.Routes, func(o Route) bool { return o.To == to }):
			r.fail(s.at, "routes: two to %s: want one", w[0])
		default:
			n.Routes = append(n.Routes, Route{To: to, Via: via})
			n.routes = append(n.routes, s.at)
		}
	}
}

// conditions are those to wait for, and whether they have an argument.
var conditions = []struct {
	kind  string
	arg   string // what it is, with an example; "": none
	kinds []Kind
}{
	{"address", "", kinds},
	{"ping", "an address or node, as ping:10.1.0.2", kinds},
	{"tcp", "a port, as tcp:80, or tcp:HOST:80", kinds},
	{"udp", "a port, as udp:53, or udp:HOST:53", kinds},
	{"exec", "a shell line, as exec: test -f /x", []Kind{KindNetns, KindQEMU}},
	{"log", `a regular expression, as log: "login:"`, []Kind{KindNetns, KindQEMU, KindUML}},
	{"agent", "", []Kind{KindQEMU}},
	{"exit", "", []Kind{KindNetns, KindQEMU, KindUML}},
}

func (r *reader) wait(v config.Value, n *node) {
	one := func(kind, arg string, hasArg bool, at place) {
		var words []string
		for _, c := range conditions {
			words = append(words, c.kind)
			if c.kind != kind {
				continue
			}
			switch {
			case c.arg == "" && hasArg:
				r.fail(at, "wait: %s has nothing behind it", kind)
			case c.arg != "" && arg == "":
				r.fail(at, "wait: %s wants %s", kind, c.arg)
			case n.Kind != "" && !slices.Contains(c.kinds, n.Kind):
				r.fail(at, "wait: a %s node has no %s: %s", n.Kind, kind, wantKinds(c.kinds))
			default:
				if err := checkCondition(kind, arg); err != nil {
					r.fail(at, "wait: %s", err)
					return
				}
				if (kind == "exec" || kind == "agent") && n.Kind == KindQEMU && !n.Agent {
					r.fail(at, "wait: %s is the guest agent's: want agent: true, and one in the guest", kind)
					return
				}
				if kind == "exit" && n.Kind == KindNetns && n.Command == nil {
					r.fail(at, "wait: there is no command that would exit")
					return
				}
				n.Wait = append(n.Wait, Condition{Kind: kind, Arg: arg})
			}
			return
		}
		r.fail(at, "wait: nothing is called %.40q: %s", kind, config.DidYouMean(kind, words))
	}
	item := func(v config.Value) {
		if v.Keys() {
			r.src.Entries(v, "wait", func(key config.Value, name string, value config.Value) {
				if s, ok := r.text(value, name); ok {
					one(name, s, true, key.Place())
				}
			})
			return
		}
		if s, ok := r.text(v, "wait"); ok {
			kind, arg, has := strings.Cut(s, ":")
			one(strings.TrimSpace(kind), strings.TrimSpace(arg), has, v.Place())
		}
	}
	if !v.List() {
		item(v)
		return
	}
	r.src.Items(v, "wait", func(_ int, v config.Value) { item(v) })
}

func wordsOf[S ~string](list []S) []string {
	words := make([]string, len(list))
	for i, s := range list {
		words[i] = string(s)
	}
	return words
}

func wantKinds(list []Kind) string {
	return "it is for " + strings.Join(wordsOf(list), ", ")
}

// checkCondition checks a condition's argument by its shape.
func checkCondition(kind, arg string) error {
	switch kind {
	case "ping":
		if _, err := netip.ParseAddr(arg); err != nil && !hostName(arg) {
			return fmt.Errorf("ping: want an address or a name, not %.60q", arg)
		}
	case "tcp", "udp":
		host, port, err := net.SplitHostPort(arg)
		if err != nil {
			host, port, err = "", arg, nil
		}
		if n, perr := strconv.ParseUint(port, 10, 16); perr != nil || n == 0 {
			return fmt.Errorf("%s: want a port, as %s:80 or %s:HOST:80, not %.60q", kind, kind, kind, arg)
		}
		if _, aerr := netip.ParseAddr(host); host != "" && aerr != nil && !hostName(host) {
			return fmt.Errorf("%s: want an address or a name before the port, not %.60q", kind, host)
		}
		return err
	case "log":
		if _, err := regexp.Compile(arg); err != nil {
			return fmt.Errorf("log: %w", err)
		}
	}
	return nil
}

func hostName(s string) bool {
	for part := range strings.SplitSeq(strings.TrimSuffix(strings.ToLower(s), "."), ".") {
		if !dnsLabel.MatchString(part) {
			return false
		}
	}
	return len(s) < 254
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
