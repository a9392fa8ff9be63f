package flows

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Limits bound what one guest, and all of a network together, may have open, hold and move. Zero means the default; what a
// guest's own Limits leave at zero is the network's. They are the one list of what is bounded: the table keeps those
// of conversations, the network (package backend) the others. [AllLimits] has them by name, with their reasons.
type Limits struct {
	// Flows is how many TCP conversations one guest may have, dialing ones included. Default 16384: more than any
	// client opens to one server at once is half of its ports (28,232, ip_local_port_range).
	Flows int
	// Dials is how many of a guest's TCP conversations may wait for the far side's answer. Default 1024. Beyond it
	// the oldest is ended: it has waited longest, so it is the likeliest to wait in vain, and the guest's own
	// retransmission opens it again. A good server's answer thus never queues behind black holes.
	Dials int
	// UDP is how many UDP mappings one guest may have. Default 4096, beyond it the least recently used is ended;
	// RFC 4787 REQ-5 asks for minutes of life, so a busy resolver or a torrent client needs thousands.
	UDP int
	// Pings is how many of a guest's echo requests may be under way. Default 128; beyond it they are dropped, as a
	// router's own limit would.
	Pings int
	// FlowRate is how many conversations a guest may begin in a second, and at once after a second without. Default
	// 20,000: a guest's loop opens half as many. What is beyond is dropped, not refused, so that a burst is late by the
	// guest's own retransmission (a second, RFC 6298 §2) and fails nowhere. Those that the host opens do not count:
	// outsiders could else keep a guest from beginning its own.
	FlowRate int

	// Buffers is how many bytes a guest's TCP conversations may hold both ways together, for a far side or a guest that
	// does not read. Default 128 MiB: sixteen conversations in full, and the next get less and less.
	Buffers int
	// Queue is how many bytes may wait for the guest to read from its wire. Default 8 MiB, twice what one conversation
	// sends at most, so that a single stream never loses a segment here.
	Queue int
	// Fragments is how many bytes of unfinished datagrams a guest may have here, half of it of each family. Default
	// 4 MiB, Linux's own (ipfrag_high_thresh). Beyond it the oldest are forgotten.
	Fragments int

	// MACs is how many source MACs one wire may show. Default 256: a guest with containers or guests of its own on a
	// bridge has dozens. Beyond it the oldest of the same wire is forgotten, never its first.
	MACs int
	// Neighbours is the same for IP addresses on the link. One that DHCP leased is never forgotten.
	Neighbours int

	// DNS is how many questions of a guest may wait for the host's resolvers. Default 256: a page that names a hundred
	// hosts asks for A, AAAA and HTTPS of each.
	DNS int
	// DNSConns is how many TCP connections to the resolver here a guest may have. Default 20; RFC 7766 §6.2.2 asks
	// clients for one.
	DNSConns int
	// Leases is how many addresses of each family DHCP gives one guest. Default 16, what libslirp has for its whole
	// network, or a quarter of a smaller pool.
	Leases int

	// Up and Down are how many bytes a second a guest may send and get, with frames' headers, whomever from or to.
	// Default no bound. Up holds the wire unread, so that the VMM's own queue fills and the guest's TCP waits instead of
	// losing; Down lets host sockets wait, and drops what waits longer than a moment.
	Up, Down int

	// TotalDials is Dials for all guests together. Default 8192, eight busy guests. A network's only.
	TotalDials int
	// Total is how many conversations there may be in all, since each costs a descriptor. Default no bound; the
	// daemon sets it from RLIMIT_NOFILE. A network's only.
	Total int
}

// Unlimited is the value that bounds nothing.
const Unlimited = math.MaxInt

// Unit is what a limit counts.
type Unit string

const (
	Count   Unit = ""
	PerSec  Unit = "1/s"
	Bytes   Unit = "bytes"
	ByteSec Unit = "bytes/s"
)

// Limit is one of the Limits, as people and the API name it.
type Limit struct {
	Name    string
	Unit    Unit
	Default int    // Unlimited where there is no bound
	Least   int    // below it a guest does not work
	Network bool   // it is for all guests together
	Why     string // of the default, in a line
	at      func(*Limits) *int
}

// Of is the limit's value in l.
func (m *Limit) Of(l *Limits) int { return *m.at(l) }

// Put makes it the limit's value in l.
func (m *Limit) Put(l *Limits, v int) { *m.at(l) = v }

var allLimits = []Limit{
	{"flows", Count, 16384, 1, false, "TCP conversations; half of a client's ports", func(l *Limits) *int { return &l.Flows }},
	{"dials", Count, 1024, 1, false, "conversations that wait for an answer; beyond it the oldest makes room", func(l *Limits) *int { return &l.Dials }},
	{"udp", Count, 4096, 1, false, "UDP mappings; beyond it the least recently used makes room (RFC 4787)", func(l *Limits) *int { return &l.UDP }},
	{"pings", Count, 128, 1, false, "echo requests under way, as a router bounds them", func(l *Limits) *int { return &l.Pings }},
	{"flow-rate", PerSec, 20000, 1, false, "conversations begun; twice what a guest's loop opens", func(l *Limits) *int { return &l.FlowRate }},
	{"buffers", Bytes, 128 << 20, 1 << 20, false, "held in conversations that are not read; sixteen in full, more get less each", func(l *Limits) *int { return &l.Buffers }},
	{"queue", Bytes, 8 << 20, 256 << 10, false, "waiting for the guest to read; twice what one conversation sends at most", func(l *Limits) *int { return &l.Queue }},
	{"fragments", Bytes, 4 << 20, 256 << 10, false, "of unfinished datagrams; Linux's own bound", func(l *Limits) *int { return &l.Fragments }},
	{"macs", Count, 256, 2, false, "source MACs on one wire; a guest with a bridge has dozens", func(l *Limits) *int { return &l.MACs }},
	{"neighbours", Count, 256, 4, false, "addresses on one wire; leased ones are kept", func(l *Limits) *int { return &l.Neighbours }},
	{"dns", Count, 256, 1, false, "questions that wait for the host's resolvers; a page's burst", func(l *Limits) *int { return &l.DNS }},
	{"dns-conns", Count, 20, 1, false, "TCP connections to the resolver; RFC 7766 asks for one", func(l *Limits) *int { return &l.DNSConns }},
	{"leases", Count, 16, 1, false, "addresses of each family by DHCP; less in a small pool", func(l *Limits) *int { return &l.Leases }},
	{"up", ByteSec, Unlimited, 8000, false, "bytes from the guest; the wire waits unread", func(l *Limits) *int { return &l.Up }},
	{"down", ByteSec, Unlimited, 8000, false, "bytes to the guest; host sockets wait", func(l *Limits) *int { return &l.Down }},
	{"total-dials", Count, 8192, 1, true, "conversations of all guests that wait for an answer; eight busy guests", func(l *Limits) *int { return &l.TotalDials }},
	{"total", Count, Unlimited, 1, true, "conversations of all guests; each takes a descriptor", func(l *Limits) *int { return &l.Total }},
}

// AllLimits returns every limit there is, in the order people see them.
func AllLimits() []Limit { return slices.Clone(allLimits) }

// Under returns l with what it leaves at zero taken from m, which may leave it so as well.
func (l Limits) Under(m Limits) Limits {
	for i := range allLimits {
		if p := allLimits[i].at(&l); *p <= 0 {
			*p = allLimits[i].Of(&m)
		}
	}
	return l
}

// Or is l, for one guest, where the network has m, or the defaults: nothing in it is zero.
func (l Limits) Or(m Limits) Limits { return l.Under(m).withDefaults() }

func (l Limits) withDefaults() Limits {
	for i := range allLimits {
		if p := allLimits[i].at(&l); *p <= 0 {
			*p = allLimits[i].Default
		}
	}
	return l
}

// Check says what is wrong with l: less than a guest works with.
func (l *Limits) Check() error {
	var errs []error
	for i := range allLimits {
		m := &allLimits[i]
		if v := m.Of(l); v < 0 || v > 0 && v < m.Least {
			errs = append(errs, fmt.Errorf("limit %s: %s: want %s or more, or 0 for the default", m.Name, m.Format(v), m.Format(m.Least)))
		}
	}
	return errors.Join(errs...)
}

// Named finds a limit. Its error names the one that was probably meant.
func Named(name string) (*Limit, error) {
	best, least := "", 1+len(name)/2
	for i := range allLimits {
		m := &allLimits[i]
		if m.Name == name {
			return m, nil
		}
		if d := distance(name, m.Name); d < least {
			best, least = m.Name, d
		}
	}
	if best != "" {
		return nil, fmt.Errorf("no limit is called %.40q: did you mean %s?", name, best)
	}
	var names []string
	for _, m := range allLimits {
		names = append(names, m.Name)
	}
	return nil, fmt.Errorf("no limit is called %.40q: there is %s", name, strings.Join(names, ", "))
}

// distance is how many letters are to be changed, added or taken away to make b of a (Levenshtein's).
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := diag
			if a[i] != b[j] {
				next = 1 + min(diag, row[j], row[j+1])
			}
			diag, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}

// Set sets a limit by its name: flows to "100", queue to "4MiB", up to "10mbit", any to "default", and what may be
// without a bound to "none".
func (l *Limits) Set(name, value string) error {
	m, err := Named(name)
	if err != nil {
		return err
	}
	v, err := m.parse(value)
	if err != nil {
		return fmt.Errorf("limit %s=%.40s: %w", name, value, err)
	}
	*m.at(l) = v
	return nil
}

// Parse reads NAME=VALUE[,NAME=VALUE]... into l.
func (l *Limits) Parse(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			return fmt.Errorf("limit %.40q: want NAME=VALUE, as flows=100 or up=10mbit", part)
		}
		if err := l.Set(strings.TrimSpace(name), strings.TrimSpace(value)); err != nil {
			return err
		}
	}
	return nil
}

// Units of bytes and of bits a second. IEC's are powers of 1024, SI's of 1000, and those of bits are as tc(8) has them.
var sizes = map[string]float64{
	"": 1, "b": 1, "k": 1e3, "kb": 1e3, "kib": 1 << 10, "m": 1e6, "mb": 1e6, "mib": 1 << 20, "g": 1e9, "gb": 1e9, "gib": 1 << 30,
}
var rates = map[string]float64{"bit": 1. / 8, "kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8, "kbps": 1e3, "mbps": 1e6, "gbps": 1e9}

func (m *Limit) parse(s string) (int, error) {
	switch {
	case s == "default" || s == "0":
		return 0, nil
	case s == "none" && m.Default == Unlimited:
		return Unlimited, nil
	}
	want := "want a number"
	switch m.Unit {
	case Bytes:
		want = "want bytes, as 4MiB or 500k"
	case ByteSec:
		want = "want bits or bytes a second, as 10mbit or 1MB, or none"
	}
	want += fmt.Sprintf(", %s at least, or default", m.Format(m.Least))
	digits := strings.TrimRight(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz/")
	unit := strings.TrimSuffix(strings.ToLower(s)[len(digits):], "/s")
	f, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, errors.New(want)
	}
	scale, ok := sizes[unit]
	switch {
	case ok && (m.Unit == Bytes || m.Unit == ByteSec):
	case m.Unit == ByteSec:
		if scale, ok = rates[unit]; !ok {
			return 0, errors.New(want)
		}
	case unit != "" || f != math.Trunc(f):
		return 0, errors.New(want)
	default:
		scale = 1
	}
	if f *= scale; f < float64(m.Least) || f > 1<<50 && strconv.IntSize == 64 || f > math.MaxInt32 && strconv.IntSize == 32 {
		return 0, errors.New(want)
	}
	return int(f), nil
}

// Format writes a value as people read it, and as Set does.
func (m *Limit) Format(v int) string {
	switch {
	case v == Unlimited:
		return "none"
	case m.Unit == ByteSec:
		bits := float64(v) * 8
		for _, u := range []struct {
			name string
			size float64
		}{{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}} {
			if bits >= u.size {
				return strconv.FormatFloat(math.Round(bits/u.size*1000)/1000, 'f', -1, 64) + u.name
			}
		}
		return strconv.Itoa(int(bits)) + "bit"
	case m.Unit == Bytes:
		for _, u := range []struct {
			name string
			size int
		}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
			if v >= u.size {
				return strconv.FormatFloat(math.Round(float64(v)/float64(u.size)*100)/100, 'f', -1, 64) + u.name
			}
		}
	}
	return strconv.Itoa(v)
}

// Use is how far a limit is used.
type Use struct {
	Now  int    // at this moment
	Most int    // at any
	Hits uint64 // how often something was refused, dropped or ended for it
}
