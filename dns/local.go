package dns

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	wire "github.com/miekg/dns"
)

const (
	// How long a guest may keep a local answer, in seconds. A guest that
	// comes back under another address is found again within that time; with
	// 0 a busy client would ask for each connection that it makes.
	localTTL = 5
	// Administrators' records. They are all in one JSON list of the control
	// API; whoever has more has a zone and wants a name server for it.
	maxRecords = 4096
	// Names of guests. A /16 of leases; the leases themselves are bounded by
	// the pool, so this only keeps a mistaken caller from filling memory.
	maxHosts = 65536
	// Aliases followed for one answer. Public resolvers stop between 8 and
	// 16; a longer chain is a loop or a mistake.
	maxAliases = 8
)

// Where a local record comes from.
const (
	SourceBuiltin = "builtin" // the gateway's and the host's names
	SourceAdmin   = "admin"   // Add
	SourceLease   = "lease"   // SetHost
)

// A Record is one line of what is answered without asking anybody.
type Record struct {
	Name   string `json:"name"` // fully qualified, lower case
	Type   string `json:"type"`
	Data   string `json:"data"` // as in a zone file
	TTL    uint32 `json:"ttl"`
	Source string `json:"source"`
	Owner  string `json:"owner,omitempty"` // of a lease: who SetHost was called for
}

var (
	// ErrTaken is a name that somebody else holds.
	ErrTaken = errors.New("dns: name is taken")
	// ErrReserved is a name that a guest may not have.
	ErrReserved = errors.New("dns: name is reserved")
	// ErrFull is a table at its bound.
	ErrFull = errors.New("dns: table is full")
)

// Names that guests look up to find something they then trust without asking:
// one guest that calls itself so would have the others' traffic. "wpad" and
// "isatap" are the ones known for it (CERT VU#598349); the others are ours.
var reservedLabels = []string{"wpad", "isatap", "localhost", "gateway", "host", "internal", "local", "arpa"}

// Zones that are ours from the apex down, because whoever types a name in
// them means this virtual network: nobody upstream has anything to say.
//
// "internal." itself is not one of them. It is set apart for private use
// (ICANN board, 2024-07-29) and is in use: *.google.internal,
// *.compute.internal, companies' own names. There we know our names and
// leave the rest to the host's resolvers.
//
// "resolver.arpa." would tell a guest which encrypted resolver stands behind
// the host's (RFC 9462), and a guest that then goes there misses every local
// name.
var builtinZones = []string{
	"docker.internal.", "containers.internal.", "lima.internal.", "minikube.internal.",
	"resolver.arpa.",
}

var (
	builtinHosts = []string{
		"host.internal.", "host.docker.internal.", "host.containers.internal.",
		"host.lima.internal.", "host.minikube.internal.",
	}
	builtinGateways = []string{
		"gateway.internal.", "gateway.docker.internal.", "gateway.containers.internal.",
	}
)

// RFC 6761 section 6.3 for the names, RFC 6303 sections 4.3 and 4.4 for the
// reverse ones.
var loopbacks = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("::1/128"),
}

// table is everything that is answered locally.
type table struct {
	domain   string // fully qualified, lower case
	prefixes []netip.Prefix
	zones    map[string]bool
	builtin  map[string][]netip.Addr

	mu     sync.RWMutex
	admin  map[string][]wire.RR    // by name
	nadmin int                     // records in admin
	hosts  map[string]host         // by name
	owners map[string]string       // owner to name
	below  map[string]int          // how many known names lie under this one
	ptrs   map[netip.Addr][]string // the names of an address, oldest first
}

type host struct {
	owner string
	addrs []netip.Addr
}

func newTable(domain string, zones []string, prefixes []netip.Prefix, gateway, hostAddrs []netip.Addr) *table {
	t := &table{
		domain:  domain,
		zones:   make(map[string]bool),
		builtin: make(map[string][]netip.Addr),
		admin:   make(map[string][]wire.RR),
		hosts:   make(map[string]host),
		owners:  make(map[string]string),
		below:   make(map[string]int),
		ptrs:    make(map[netip.Addr][]string),
	}
	for _, p := range prefixes {
		t.prefixes = append(t.prefixes, p.Masked())
	}
	for _, z := range zones {
		t.zones[z] = true
	}
	add := func(name string, addrs []netip.Addr, reverse bool) {
		if _, ok := t.builtin[name]; ok || len(addrs) == 0 {
			return
		}
		t.builtin[name] = addrs
		t.count(name, 1)
		if reverse {
			t.name(addrs, name)
		}
	}
	// An address has one name of ours, the first it is given here.
	add("gateway."+domain, gateway, true)
	var rest []netip.Addr
	for _, a := range hostAddrs {
		if !slices.Contains(gateway, a) {
			rest = append(rest, a)
		}
	}
	add("host."+domain, hostAddrs, false)
	t.name(rest, "host."+domain)
	for _, n := range builtinGateways {
		add(n, gateway, false)
	}
	for _, n := range builtinHosts {
		add(n, hostAddrs, false)
	}
	return t
}

// count keeps below; called with mu held, or before anyone else knows t.
func (t *table) count(name string, by int) {
	for {
		i, end := wire.NextLabel(name, 0)
		if end {
			return
		}
		name = name[i:]
		if t.below[name] += by; t.below[name] == 0 {
			delete(t.below, name)
		}
	}
}

func (t *table) name(addrs []netip.Addr, name string) {
	for _, a := range addrs {
		t.ptrs[a] = append(t.ptrs[a], name)
	}
}

func (t *table) unname(addrs []netip.Addr, name string) {
	for _, a := range addrs {
		// A copy: a lookup may still hold the old slice.
		names := slices.Clone(t.ptrs[a])
		if i := slices.Index(names, name); i >= 0 {
			names = slices.Delete(names, i, i+1)
		}
		if t.ptrs[a] = names; len(names) == 0 {
			delete(t.ptrs, a)
		}
	}
}

// zoneOf returns the whole zone of ours that name is in, or "".
func (t *table) zoneOf(name string) string {
	for {
		if t.zones[name] {
			return name
		}
		i, end := wire.NextLabel(name, 0)
		if end {
			return ""
		}
		name = name[i:]
	}
}

// found is what a lookup came to.
type found struct {
	ours  bool      // else it is the host's resolvers' to answer
	rrs   []wire.RR // of the type asked for, or one CNAME
	known bool      // the name exists: no rrs is NODATA, else NXDOMAIN
	apex  string    // the zone whose SOA goes with a negative answer
}

// lookup answers for one name, key in lower case and fully qualified.
func (t *table) lookup(key string, qtype uint16) found {
	t.mu.RLock()
	defer t.mu.RUnlock()

	apex := t.zoneOf(key)
	if f, ok := t.exact(key, qtype); ok {
		f.apex = cmp.Or(apex, key)
		return f
	}
	// "web" for "web.internal". What a validating resolver in a guest asks
	// about a top-level domain goes upstream, or a guest that calls itself
	// "com" would break com for it.
	if label, ok := strings.CutSuffix(key, "."); ok && label != "" && wire.CountLabel(key) == 1 && !infrastructure(qtype) {
		if f, ok := t.exact(label+"."+t.domain, qtype); ok {
			f.apex = key
			return f
		}
	}
	if key == "localhost." || strings.HasSuffix(key, ".localhost.") {
		f := found{ours: true, known: true, apex: "localhost."}
		switch qtype {
		case wire.TypeA:
			f.rrs = addrRRs(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		case wire.TypeAAAA:
			f.rrs = addrRRs(netip.IPv6Loopback())
		}
		return f
	}
	if f, ok := t.reverse(key, qtype); ok {
		return f
	}
	if apex != "" {
		return found{ours: true, known: key == apex || t.below[key] > 0, apex: apex}
	}
	return found{}
}

func infrastructure(qtype uint16) bool {
	switch qtype {
	case wire.TypeNS, wire.TypeSOA, wire.TypeDS, wire.TypeDNSKEY, wire.TypeRRSIG,
		wire.TypeNSEC, wire.TypeNSEC3, wire.TypeNSEC3PARAM, wire.TypeCDS, wire.TypeCDNSKEY:
		return true
	}
	return false
}

// exact answers for a name in the table.
func (t *table) exact(key string, qtype uint16) (found, bool) {
	if addrs, ok := t.builtin[key]; ok {
		return found{ours: true, known: true, rrs: ofType(addrRRs(addrs...), qtype)}, true
	}
	rrs := t.admin[key]
	h, leased := t.hosts[key]
	if leased && !slices.ContainsFunc(rrs, func(rr wire.RR) bool {
		switch rr.Header().Rrtype {
		case wire.TypeA, wire.TypeAAAA, wire.TypeCNAME:
			return true
		}
		return false
	}) {
		rrs = append(slices.Clip(rrs), addrRRs(h.addrs...)...)
	}
	if len(rrs) == 0 && !leased {
		return found{}, false
	}
	return found{ours: true, known: true, rrs: ofType(rrs, qtype)}, true
}

// ofType returns the records of the type, or else the alias that stands for
// every type (RFC 1034 section 3.6.2).
func ofType(rrs []wire.RR, qtype uint16) []wire.RR {
	var out []wire.RR
	for _, rr := range rrs {
		if rt := rr.Header().Rrtype; rt == qtype || rt == wire.TypeCNAME {
			out = append(out, rr)
		}
	}
	return out
}

func addrRRs(addrs ...netip.Addr) []wire.RR {
	var out []wire.RR
	for _, a := range addrs {
		hdr := wire.RR_Header{Class: wire.ClassINET, Ttl: localTTL}
		if a.Is4() {
			hdr.Rrtype = wire.TypeA
			out = append(out, &wire.A{Hdr: hdr, A: a.AsSlice()})
		} else {
			hdr.Rrtype = wire.TypeAAAA
			out = append(out, &wire.AAAA{Hdr: hdr, AAAA: a.AsSlice()})
		}
	}
	return out
}

// reverse answers for a name under in-addr.arpa or ip6.arpa that lies in one
// of our networks.
func (t *table) reverse(key string, qtype uint16) (found, bool) {
	p, ok := reversePrefix(key)
	if !ok {
		return found{}, false
	}
	loop := false
	for i, n := range slices.Concat(loopbacks, t.prefixes) {
		if n.Addr().Is4() != p.Addr().Is4() || p.Bits() < n.Bits() || !n.Contains(p.Addr()) {
			continue
		}
		loop = i < len(loopbacks)
		f := found{ours: true, apex: reverseApex(key, p, n)}
		var names []string
		switch {
		case p.Bits() < p.Addr().BitLen():
			// Part of an address: names may lie below, none is here.
			f.known = true
			return f, true
		case loop:
			names = []string{"localhost."}
		default:
			names = t.ptrs[p.Addr()]
		}
		f.known = len(names) > 0
		if qtype == wire.TypePTR {
			for _, name := range names {
				f.rrs = append(f.rrs, &wire.PTR{
					Hdr: wire.RR_Header{Rrtype: wire.TypePTR, Class: wire.ClassINET, Ttl: localTTL},
					Ptr: name,
				})
			}
		}
		return f, true
	}
	return found{}, false
}

// reversePrefix reads "2.0.10.in-addr.arpa." as 10.0.2.0/24, and the like
// under ip6.arpa.
func reversePrefix(key string) (netip.Prefix, bool) {
	if rest, ok := strings.CutSuffix(key, ".in-addr.arpa."); ok {
		labels := strings.Split(rest, ".")
		var a [4]byte
		if len(labels) > len(a) {
			return netip.Prefix{}, false
		}
		for i, l := range labels {
			n, ok := decimalOctet(l)
			if !ok {
				return netip.Prefix{}, false
			}
			a[len(labels)-1-i] = n
		}
		return netip.PrefixFrom(netip.AddrFrom4(a), 8*len(labels)), true
	}
	if rest, ok := strings.CutSuffix(key, ".ip6.arpa."); ok {
		labels := strings.Split(rest, ".")
		var a [16]byte
		if len(labels) > 2*len(a) {
			return netip.Prefix{}, false
		}
		for i, l := range labels {
			n := strings.Index("0123456789abcdef", l)
			if len(l) != 1 || n < 0 {
				return netip.Prefix{}, false
			}
			at := len(labels) - 1 - i
			a[at/2] |= byte(n) << (4 * (1 - at%2))
		}
		return netip.PrefixFrom(netip.AddrFrom16(a), 4*len(labels)), true
	}
	return netip.Prefix{}, false
}

func decimalOctet(s string) (byte, bool) {
	if len(s) == 0 || len(s) > 3 || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return byte(n), n <= 255
}

// reverseApex is the name of the smallest reverse zone that holds network n
// and lies on a label's edge, as seen from key, the name of p within it. A
// network that ends inside a label has several such zones.
func reverseApex(key string, p, n netip.Prefix) string {
	per := 8
	if n.Addr().Is6() {
		per = 4
	}
	drop := p.Bits()/per - (n.Bits()+per-1)/per
	for range drop {
		i, _ := wire.NextLabel(key, 0)
		key = key[i:]
	}
	return key
}

// setHost gives owner the name, in place of the one it had.
func (t *table) setHost(owner, name string, addrs []netip.Addr) error {
	label, err := hostLabel(name, t.domain)
	if err != nil {
		return err
	}
	if slices.Contains(reservedLabels, label) {
		return fmt.Errorf("%w: %q: guests find each other by lease name, and that one has a meaning of its own", ErrReserved, label)
	}
	key := label + "." + t.domain
	kept := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		if a = a.Unmap().WithZone(""); a.IsValid() && !slices.Contains(kept, a) {
			kept = append(kept, a)
		}
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	if t.builtin[key] != nil {
		return fmt.Errorf("%w: %q", ErrReserved, key)
	}
	t.dropHost(owner)
	if h, ok := t.hosts[key]; ok {
		return fmt.Errorf("%w: %q is %s's; %s stays without a name", ErrTaken, key, h.owner, owner)
	}
	if len(t.hosts) >= maxHosts {
		return fmt.Errorf("%w: %d guests have names", ErrFull, maxHosts)
	}
	t.hosts[key] = host{owner, kept}
	t.owners[owner] = key
	t.count(key, 1)
	t.name(kept, key)
	return nil
}

// dropHost forgets owner's name; called with mu held.
func (t *table) dropHost(owner string) {
	key, ok := t.owners[owner]
	if !ok {
		return
	}
	t.unname(t.hosts[key].addrs, key)
	t.count(key, -1)
	delete(t.hosts, key)
	delete(t.owners, owner)
}

// hostLabel makes one label of what a guest calls itself: "Web",
// "web.internal" and "web.example.org" are all "web".
func hostLabel(name, domain string) (string, error) {
	label, _, _ := strings.Cut(strings.ToLower(strings.TrimSuffix(name, ".")), ".")
	// RFC 1123 section 2.1: letters, digits and inner hyphens, up to 63
	// (RFC 1035 section 2.3.4).
	ok := len(label) > 0 && len(label) <= 63 && label[0] != '-' && label[len(label)-1] != '-'
	for _, c := range []byte(label) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if ok && len(label)+1+len(domain) > 254 {
		ok = false
	}
	if !ok {
		return "", fmt.Errorf("dns: %.80q is no host name: letters, digits and inner hyphens, at most 63 of them", name)
	}
	return label, nil
}

// parseRecord reads one line in zone-file syntax, names relative to domain.
func parseRecord(line, domain string) (wire.RR, error) {
	bad := func(format string, args ...any) (wire.RR, error) {
		return nil, fmt.Errorf("dns: record %.80q: "+format+`; want a line like "db A 10.0.2.20"`, append([]any{line}, args...)...)
	}
	line = strings.Trim(line, " \t")
	// A directive could make 65535 records of one line ($GENERATE). Control
	// characters can be written as \DDD.
	if line == "" || line[0] == '$' || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return bad("not one record")
	}
	zp := wire.NewZoneParser(strings.NewReader(line+"\n"), domain, "")
	zp.SetDefaultTTL(localTTL)
	rr, ok := zp.Next()
	if err := zp.Err(); err != nil {
		return bad("%s", strings.TrimPrefix(err.Error(), "dns: "))
	}
	if !ok || rr == nil {
		return bad("nothing in it")
	}
	h := rr.Header()
	switch h.Rrtype {
	case wire.TypeSOA, wire.TypeNS, wire.TypeDS, wire.TypeDNSKEY, wire.TypeRRSIG, wire.TypeNSEC,
		wire.TypeNSEC3, wire.TypeNSEC3PARAM, wire.TypeOPT, wire.TypeTSIG, wire.TypeTKEY, wire.TypeSIG, wire.TypeANY, wire.TypeNone:
		return bad("type %s belongs to a zone, and these are single records", wire.TypeToString[h.Rrtype])
	}
	if h.Class != wire.ClassINET {
		return bad("class %s, not IN", wire.ClassToString[h.Class])
	}
	if strings.HasPrefix(h.Name, "*.") {
		return bad("wildcards are not served")
	}
	h.Name = wire.CanonicalName(h.Name)
	if _, err := wire.PackRR(rr, make([]byte, wire.MaxMsgSize), 0, nil, false); err != nil {
		return bad("%s", strings.TrimPrefix(err.Error(), "dns: "))
	}
	switch rr := rr.(type) {
	case *wire.A:
		if len(rr.A) == 0 {
			return bad("no address")
		}
	case *wire.AAAA:
		if len(rr.AAAA) == 0 {
			return bad("no address")
		}
	}
	return rr, nil
}

func (t *table) add(line string) error {
	rr, err := parseRecord(line, t.domain)
	if err != nil {
		return err
	}
	h := rr.Header()

	t.mu.Lock()
	defer t.mu.Unlock()
	if t.builtin[h.Name] != nil || h.Name == "localhost." || strings.HasSuffix(h.Name, ".localhost.") {
		return fmt.Errorf("%w: %q is vmnetd's own", ErrReserved, h.Name)
	}
	old := t.admin[h.Name]
	for _, o := range old {
		if wire.IsDuplicate(o, rr) {
			return fmt.Errorf("%w: %q has this %s record already", ErrTaken, h.Name, wire.TypeToString[h.Rrtype])
		}
		if h.Rrtype == wire.TypeCNAME || o.Header().Rrtype == wire.TypeCNAME {
			// RFC 1034 section 3.6.2
			return fmt.Errorf("%w: %q: an alias (CNAME) stands alone; remove what is there first", ErrTaken, h.Name)
		}
	}
	if t.nadmin >= maxRecords {
		return fmt.Errorf("%w: %d records", ErrFull, maxRecords)
	}
	// A new slice: answers under way still read the old one.
	t.admin[h.Name] = append(slices.Clip(old), rr)
	t.nadmin++
	t.count(h.Name, 1)
	if a, ok := rrAddr(rr); ok {
		t.name([]netip.Addr{a}, h.Name)
	}
	return nil
}

func rrAddr(rr wire.RR) (netip.Addr, bool) {
	switch rr := rr.(type) {
	case *wire.A:
		a, ok := netip.AddrFromSlice(rr.A)
		return a.Unmap(), ok
	case *wire.AAAA:
		return netip.AddrFromSlice(rr.AAAA)
	}
	return netip.Addr{}, false
}

// zoneFields cuts a line at what a zone file takes for space: not at what
// Unicode does, nor at what is escaped (RFC 1035 section 5.1).
func zoneFields(line string) (fields []string) {
	begin, escaped := -1, false
	for i := range len(line) {
		space := !escaped && (line[i] == ' ' || line[i] == '\t')
		if space && begin >= 0 {
			fields, begin = append(fields, line[begin:i]), -1
		} else if !space && begin < 0 {
			begin = i
		}
		escaped = line[i] == '\\' && !escaped
	}
	if begin >= 0 {
		fields = append(fields, line[begin:])
	}
	return fields
}

// remove takes "NAME", "NAME TYPE" or a whole record, and says how many went.
func (t *table) remove(line string) (int, error) {
	var match func(wire.RR) bool
	var name string
	fields := zoneFields(line)
	switch len(fields) {
	case 0:
		return 0, errors.New("dns: nothing named to remove; want NAME, NAME TYPE, or a whole record")
	case 1:
		match = func(wire.RR) bool { return true }
	case 2:
		qtype, ok := wire.StringToType[strings.ToUpper(fields[1])]
		if !ok {
			return 0, fmt.Errorf("dns: remove %.80q: no record type is called %.20q", line, fields[1])
		}
		match = func(rr wire.RR) bool { return rr.Header().Rrtype == qtype }
	default:
		want, err := parseRecord(line, t.domain)
		if err != nil {
			return 0, err
		}
		name = want.Header().Name
		match = func(rr wire.RR) bool { return wire.IsDuplicate(rr, want) }
	}
	if name == "" {
		name = fields[0]
		if !wire.IsFqdn(name) {
			name += "." + t.domain
		}
		name = wire.CanonicalName(name)
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	var keep []wire.RR
	gone := 0
	for _, rr := range t.admin[name] {
		if !match(rr) {
			keep = append(keep, rr)
			continue
		}
		gone++
		t.nadmin--
		t.count(name, -1)
		if a, ok := rrAddr(rr); ok {
			t.unname([]netip.Addr{a}, name)
		}
	}
	if t.admin[name] = keep; len(keep) == 0 {
		delete(t.admin, name)
	}
	if gone == 0 {
		if _, ok := t.hosts[name]; ok || t.builtin[name] != nil {
			return 0, fmt.Errorf("%w: %q is a lease's or vmnetd's own name, not an added record", ErrReserved, name)
		}
	}
	return gone, nil
}

// data is the last column of a zone file.
func data(rr wire.RR) string {
	if u, ok := rr.(*wire.RFC3597); ok { // a type without a name
		return fmt.Sprintf(`\# %d %s`, len(u.Rdata)/2, u.Rdata)
	}
	return strings.TrimPrefix(rr.String(), rr.Header().String())
}

func (t *table) list() []Record {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out []Record
	put := func(name, source, owner string, rrs ...wire.RR) {
		for _, rr := range rrs {
			h := rr.Header()
			out = append(out, Record{
				Name: name, Type: wire.Type(h.Rrtype).String(),
				Data: data(rr),
				TTL:  h.Ttl, Source: source, Owner: owner,
			})
		}
	}
	for name, addrs := range t.builtin {
		put(name, SourceBuiltin, "", addrRRs(addrs...)...)
	}
	for name, rrs := range t.admin {
		put(name, SourceAdmin, "", rrs...)
	}
	for name, h := range t.hosts {
		put(name, SourceLease, h.owner, addrRRs(h.addrs...)...)
	}
	slices.SortStableFunc(out, func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Source, b.Source))
	})
	return out
}
