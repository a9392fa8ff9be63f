package topology

import (
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmnetd/vmnetd/config"
)

const (
	// maxNodes and maxNetworks (links among them) bound a lab: 256 of the smallest nodes there are take a gigabyte, and
	// each network has a stack of its own.
	maxNodes, maxNetworks = 256, 256
	// maxInterfaces bounds a node's: a PC's PCI bus has 32 slots.
	maxInterfaces = 32
	// maxList bounds lists, maxAddrs and maxWait those that cost more to read: nobody writes as many. maxValues bounds the
	// values of all nodes, counts unrolled: 1000 of each of 256.
	maxList, maxAddrs, maxWait, maxValues = 1000, 64, 32, 1 << 18
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
	values   int // that were read
	faults   map[fault]bool

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
	addrAt                   []place // of Addrs, as far as the file has them
	noAddrs                  bool    // its list is empty: it shall have none
	addrsAt                  place
}

// placed is a text and where it stands.
type placed struct {
	text string
	at   place
}

// fail adds a fault, once for all nodes of a count that have it.
func (r *reader) fail(at place, format string, args ...any) {
	said := fault{at, format}
	if at.Line > 0 && r.faults[said] {
		return
	}
	if r.faults == nil {
		r.faults = map[fault]bool{}
	}
	r.faults[said] = true
	r.src.Fail(at, format, args...)
}

type fault struct {
	at   place
	what string
}

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
	if r.values++; r.values > maxValues {
		if r.values == maxValues+1 {
			r.fail(v.Place(), "more than %d values once all counts are unrolled: want fewer nodes, or texts in files of their own", maxValues)
		}
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
	r.src.Items(v, what, func(i int, item config.Value) {
		if r.most(i, item, maxList, what) {
			return
		}
		if s, ok := r.text(item, what); ok {
			list = append(list, placed{s, item.Place()})
		}
	})
	return list
}

// most says that an item is beyond the bound of its list.
func (r *reader) most(i int, item config.Value, most int, what string) bool {
	if i == most {
		r.fail(item.Place(), "%s: more than %d: want fewer", what, most)
	}
	return i >= most
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
	if len(r.nodes) == 0 && r.src.Err() == nil {
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

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
