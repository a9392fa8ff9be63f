package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The language of the tables: a story is a list of steps, a step is somebody saying something and what is
// expected of the answer.

var (
	macA = MAC{0x52, 0x54, 0, 0, 0, 0xa}
	macB = MAC{0x52, 0x54, 0, 0, 0, 0xb}
	macC = MAC{0x52, 0x54, 0, 0, 0, 0xc}

	alice = who{guest: "a", mac: macA}
	bob   = who{guest: "b", mac: macB}
	carol = who{guest: "c", mac: macC}
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// who speaks: through which guest, from which MAC, under which names.
type who struct {
	guest string
	mac   MAC
	id    string // option 61; in DHCPv6 the DUID, by default one made of the MAC
	iaid  byte
	name  string // option 12, option 39
}

func (w who) as(id string) who     { w.id = id; return w }
func (w who) called(n string) who  { w.name = n; return w }
func (w who) through(g string) who { w.guest = g; return w }
func (w who) from(m MAC) who       { w.mac = m; return w }
func (w who) iface(n byte) who     { w.iaid = n; return w }

func (w who) duid() string {
	if w.id != "" {
		return "\x00\xff" + w.id
	}
	return "\x00\x03\x00\x01" + string(w.mac[:])
}

type lab struct {
	*testing.T
	s      *Server
	mu     sync.Mutex
	now    time.Time
	used   map[netip.Addr]string // address: guest behind which it answers
	usedBy map[netip.Addr]MAC
	probes int
	events []string

	reply *Reply
	err   error
	m4    *dhcpv4.DHCPv4
	m6    *dhcpv6.Message
}

func (l *lab) clock() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

func qemu() Config {
	return Config{
		Prefix: netip.MustParsePrefix("10.0.2.0/24"), Gateway: ip("10.0.2.2"), DNS: []netip.Addr{ip("10.0.2.3")},
		Prefix6: netip.MustParsePrefix("fd00:2::/64"), Gateway6: ip("fd00:2::2"), DNS6: []netip.Addr{ip("fd00:2::3")},
		MTU: 1500, Domain: "internal", Search: []string{"vm.internal", "internal"},
	}
}

func newLab(t *testing.T, set ...func(*Config)) *lab {
	t.Helper()
	l := &lab{T: t, now: time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC), used: map[netip.Addr]string{}, usedBy: map[netip.Addr]MAC{}}
	cfg := qemu()
	cfg.Now = l.clock
	cfg.InUse = func(_ context.Context, a netip.Addr, guest string, mac MAC) (string, bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.probes++
		by, ok := l.used[a]
		return by, ok && l.usedBy[a] != mac
	}
	cfg.OnLease = func(le Lease, e Event) {
		l.mu.Lock()
		defer l.mu.Unlock()
		s := fmt.Sprintf("%s %v", e, le.Addr)
		if le.Name != "" {
			s += " " + le.Name
		}
		l.events = append(l.events, s)
	}
	for _, f := range set {
		f(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.s = s
	return l
}

type (
	step  func(*lab)
	check func(*lab)
)

func play(t *testing.T, set func(*Config), story []step) {
	t.Helper()
	var l *lab
	if set != nil {
		l = newLab(t, set)
	} else {
		l = newLab(t)
	}
	for i, st := range story {
		st(l)
		l.consistent()
		if t.Failed() {
			t.Fatalf("step %d of %d", i+1, len(story))
		}
	}
}

// consistent checks what must hold after every step: the indexes agree, no address that is nobody's is
// leased, no guest has more than its share.
func (l *lab) consistent() {
	l.Helper()
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	names := map[string][]*record{}
	for _, t := range l.s.tables() {
		n := 0
		for a, r := range t.byAddr {
			n++
			if r.addr != a {
				l.Errorf("%v filed under %v", r.addr, a)
			}
			if why := t.barred(a, r.mac); why != "" && r.state != Declined {
				l.Errorf("%v is leased: %s", a, why)
			}
			if _, ok := t.byMAC[r.mac][r]; !ok {
				l.Errorf("%v is not found by MAC", a)
			}
			if _, ok := t.byID[r.id][r]; r.id != "" && !ok {
				l.Errorf("%v is not found by identifier", a)
			}
			g := t.guests[r.guest]
			if g == nil {
				l.Errorf("%v: guest %q is unknown", a, r.guest)
				continue
			}
			if _, ok := g.records[r]; !ok {
				l.Errorf("%v is not found by guest", a)
			}
			if r.away == g.attached {
				l.Errorf("%v: away is %v of a guest whose attached is %v", a, r.away, g.attached)
			}
			if r.state == Bound && r.name != "" {
				names[r.name] = append(names[r.name], r)
				if _, ok := l.s.names[r.name][r]; !ok {
					l.Errorf("%v does not hold its name %q", a, r.name)
				}
			}
		}
		for g, x := range t.guests {
			dynamic, claims := 0, 0
			for r := range x.records {
				n--
				if !r.static {
					dynamic++
				}
				if r.state == Declined {
					claims++
				}
			}
			if dynamic > t.perGuest+claims && g != "" {
				l.Errorf("guest %q has %d addresses, want at most %d", g, dynamic, t.perGuest)
			}
		}
		if n != 0 {
			l.Errorf("%d records are in one index only", n)
		}
	}
	for n, rs := range names {
		for _, r := range rs[1:] {
			if !r.oneMachine(rs[0]) {
				l.Errorf("name %q is held by %v and %v", n, rs[0].addr, r.addr)
			}
		}
	}
	for n, set := range l.s.names {
		if len(set) != len(names[n]) {
			l.Errorf("name %q has %d holders, %d leases show it", n, len(set), len(names[n]))
		}
	}
}

// --- what happens besides messages

func waits(d time.Duration) step {
	return func(l *lab) { l.mu.Lock(); l.now = l.now.Add(d); l.mu.Unlock() }
}
func sweeps() step               { return func(l *lab) { l.s.Sweep() } }
func attaches(w who) step        { return func(l *lab) { l.s.Attach(w.guest, w.mac) } }
func detaches(guest string) step { return func(l *lab) { l.s.Detach(guest) } }

// squats has an address answer behind a guest without a lease.
func squats(guest string, mac MAC, addrs ...string) step {
	return func(l *lab) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, a := range addrs {
			l.used[ip(a)], l.usedBy[ip(a)] = guest, mac
		}
	}
}

func leaves(addrs ...string) step {
	return func(l *lab) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, a := range addrs {
			delete(l.used, ip(a))
		}
	}
}

// told expects the events since the last told.
func told(want ...string) step {
	return func(l *lab) {
		l.Helper()
		l.mu.Lock()
		defer l.mu.Unlock()
		if !slices.Equal(l.events, want) {
			l.Errorf("events %q, want %q", l.events, want)
		}
		l.events = nil
	}
}

func known(addr string, want State, by who) step {
	return func(l *lab) {
		l.Helper()
		le, ok := l.s.Lookup(ip(addr))
		if !ok || le.State != want || le.Guest != by.guest || le.MAC != by.mac {
			l.Errorf("%s is %v of %v behind %q (known: %v), want %v of %v behind %q", addr, le.State, le.MAC, le.Guest, ok, want, by.mac, by.guest)
		}
	}
}

func unknown(addr string) step {
	return func(l *lab) {
		l.Helper()
		if le, ok := l.s.Lookup(ip(addr)); ok {
			l.Errorf("%s is %v, want nothing known", addr, le.State)
		}
	}
}

func administratorReleases(addr string, ok bool) step {
	return func(l *lab) {
		l.Helper()
		if err := l.s.Release(ip(addr)); (err == nil) != ok {
			l.Errorf("release %s: %v", addr, err)
		}
	}
}

// --- DHCPv4

type mod func(*dhcpv4.DHCPv4)

func msg4(w who, kind dhcpv4.MessageType, mods ...mod) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, TransactionID: dhcpv4.TransactionID{1, 2, 3, 4},
		ClientHWAddr: w.mac[:], Options: dhcpv4.Options{}}
	if kind != dhcpv4.MessageTypeNone {
		m.UpdateOption(dhcpv4.OptMessageType(kind))
	}
	if w.id != "" {
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, []byte(w.id)))
	}
	if w.name != "" {
		m.UpdateOption(dhcpv4.OptHostName(w.name))
	}
	for _, f := range mods {
		f(m)
	}
	return m
}

func asking(addr string) mod {
	return func(m *dhcpv4.DHCPv4) { m.UpdateOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(addr).To4())) }
}
func server(addr string) mod {
	return func(m *dhcpv4.DHCPv4) { m.UpdateOption(dhcpv4.OptServerIdentifier(net.ParseIP(addr).To4())) }
}
func having(addr string) mod {
	return func(m *dhcpv4.DHCPv4) { m.ClientIPAddr = net.ParseIP(addr).To4() }
}
func option(code uint8, v ...byte) mod {
	return func(m *dhcpv4.DHCPv4) { m.Options[code] = v }
}
func wanting(codes ...byte) mod { return option(55, codes...) }
func broadcasting() mod         { return func(m *dhcpv4.DHCPv4) { m.SetBroadcast() } }

func (l *lab) hear4(w who, payload []byte, checks ...check) {
	l.Helper()
	l.reply, l.err = l.s.Handle4(context.Background(), w.guest, w.mac, payload)
	l.m4 = nil
	if l.reply != nil {
		var err error
		if l.m4, err = dhcpv4.FromBytes(l.reply.Payload); err != nil {
			l.Fatalf("answer cannot be read: %v", err)
		}
	}
	for _, c := range checks {
		c(l)
	}
}

func says(w who, kind dhcpv4.MessageType, mods ...mod) func(...check) step {
	return func(checks ...check) step {
		return func(l *lab) { l.Helper(); l.hear4(w, msg4(w, kind, mods...).ToBytes(), checks...) }
	}
}

func sends(w who, payload []byte, checks ...check) step {
	return func(l *lab) { l.Helper(); l.hear4(w, payload, checks...) }
}

func discovers(w who, checks ...check) step {
	return says(w, dhcpv4.MessageTypeDiscover)(checks...)
}
func selects(w who, addr string, checks ...check) step {
	return says(w, dhcpv4.MessageTypeRequest, asking(addr), server("10.0.2.2"))(checks...)
}
func reboots(w who, addr string, checks ...check) step {
	return says(w, dhcpv4.MessageTypeRequest, asking(addr))(checks...)
}
func renews(w who, addr string, checks ...check) step {
	return says(w, dhcpv4.MessageTypeRequest, having(addr))(checks...)
}
func releases(w who, addr string, checks ...check) step {
	return says(w, dhcpv4.MessageTypeRelease, having(addr), server("10.0.2.2"))(checks...)
}
func declines(w who, addr string, checks ...check) step {
	return says(w, dhcpv4.MessageTypeDecline, asking(addr), server("10.0.2.2"))(checks...)
}

// leases is the whole exchange.
func leases(w who, addr string) step {
	return func(l *lab) {
		l.Helper()
		discovers(w, offered(addr))(l)
		selects(w, addr, acked(addr))(l)
	}
}

func answer(kind dhcpv4.MessageType, addr string) check {
	return func(l *lab) {
		l.Helper()
		if l.err != nil || l.m4 == nil {
			l.Errorf("silence (%v), want %v %s", l.err, kind, addr)
			return
		}
		if l.m4.MessageType() != kind || !l.m4.YourIPAddr.Equal(net.ParseIP(addr)) {
			l.Errorf("%v %v (%s), want %v %s", l.m4.MessageType(), l.m4.YourIPAddr, l.m4.Message(), kind, addr)
		}
		if l.m4.MessageType().String() != l.reply.Type {
			l.Errorf("the reply calls itself %s", l.reply.Type)
		}
	}
}
func offered(addr string) check { return answer(dhcpv4.MessageTypeOffer, addr) }
func acked(addr string) check   { return answer(dhcpv4.MessageTypeAck, addr) }
func naked(why string) check {
	return func(l *lab) {
		l.Helper()
		answer(dhcpv4.MessageTypeNak, "0.0.0.0")(l)
		if l.m4 != nil && !strings.Contains(l.m4.Message(), why) {
			l.Errorf("NAK says %q, want %q", l.m4.Message(), why)
		}
	}
}
func silence(l *lab) {
	l.Helper()
	if l.reply != nil || l.err != nil {
		l.Errorf("%+v, %v, want silence", l.reply, l.err)
	}
}
func refused(r Reason) check {
	return func(l *lab) {
		l.Helper()
		var e *Error
		if l.reply != nil || !errors.As(l.err, &e) || e.Reason != r {
			l.Errorf("%+v, %v, want %s", l.reply, l.err, r)
		}
	}
}
func goingTo(dst string, mac MAC) check {
	return func(l *lab) {
		l.Helper()
		if l.reply == nil || l.reply.Dst.String() != dst || l.reply.MAC != mac {
			l.Errorf("goes to %+v, want %s at %v", l.reply, dst, mac)
		}
	}
}
func with(code uint8, want ...byte) check {
	return func(l *lab) {
		l.Helper()
		if l.m4 == nil {
			return
		}
		if got, ok := l.m4.Options[code]; !ok || string(got) != string(want) {
			l.Errorf("option %d is % x (there: %v), want % x", code, got, ok, want)
		}
	}
}
func text(code uint8, want string) check { return with(code, []byte(want)...) }
func without(codes ...uint8) check {
	return func(l *lab) {
		l.Helper()
		for _, c := range codes {
			if l.m4 != nil && l.m4.Options[c] != nil {
				l.Errorf("option %d is % x, want none", c, l.m4.Options[c])
			}
		}
	}
}

// --- DHCPv6

type mod6 func(*dhcpv6.Message)

func msg6(w who, kind dhcpv6.MessageType, mods ...mod6) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: kind, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	m.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionClientID, OptionData: []byte(w.duid())})
	if w.name != "" {
		m.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionFQDN, OptionData: append([]byte{0, byte(len(w.name))}, w.name...)})
	}
	for _, f := range mods {
		f(m)
	}
	return m
}

func with6(o dhcpv6.Option) mod6 { return func(m *dhcpv6.Message) { m.AddOption(o) } }
func raw6(code dhcpv6.OptionCode, b ...byte) mod6 {
	return with6(&dhcpv6.OptionGeneric{OptionCode: code, OptionData: b})
}

// association is an IA_NA of the interface with what the client has or would like.
func association(n byte, addrs ...string) mod6 {
	o := &dhcpv6.OptIANA{IaId: [4]byte{0, 0, 0, n}}
	for _, a := range addrs {
		o.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a)})
	}
	return with6(o)
}

func linkLocal(m MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

func (l *lab) hear6(w who, payload []byte, checks ...check) {
	l.Helper()
	l.reply, l.err = l.s.Handle6(context.Background(), w.guest, w.mac, linkLocal(w.mac), payload)
	l.m6 = nil
	if l.reply != nil {
		var err error
		if l.m6, err = dhcpv6.MessageFromBytes(l.reply.Payload); err != nil {
			l.Fatalf("answer cannot be read: %v", err)
		}
		if got := l.reply.Dst.String(); got != "["+linkLocal(w.mac).String()+"]:546" || l.reply.MAC != w.mac {
			l.Errorf("goes to %s at %v", got, l.reply.MAC)
		}
	}
	for _, c := range checks {
		c(l)
	}
}

// says6 leaves the server identifier to the caller's kind: those messages have it that must.
func says6(w who, kind dhcpv6.MessageType, mods ...mod6) func(...check) step {
	return func(checks ...check) step {
		return func(l *lab) {
			l.Helper()
			m := msg6(w, kind, mods...)
			switch kind {
			case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
				raw6(dhcpv6.OptionServerID, l.s.duid...)(m)
			}
			l.hear6(w, m.ToBytes(), checks...)
		}
	}
}

func solicits(w who, checks ...check) step {
	return says6(w, dhcpv6.MessageTypeSolicit, association(w.iaid))(checks...)
}
func requests6(w who, addr string, checks ...check) step {
	return says6(w, dhcpv6.MessageTypeRequest, association(w.iaid, addr))(checks...)
}
func renews6(w who, addr string, checks ...check) step {
	return says6(w, dhcpv6.MessageTypeRenew, association(w.iaid, addr))(checks...)
}
func rebinds6(w who, addr string, checks ...check) step {
	return says6(w, dhcpv6.MessageTypeRebind, association(w.iaid, addr))(checks...)
}
func releases6(w who, addr string, checks ...check) step {
	return says6(w, dhcpv6.MessageTypeRelease, association(w.iaid, addr))(checks...)
}
func declines6(w who, addr string, checks ...check) step {
	return says6(w, dhcpv6.MessageTypeDecline, association(w.iaid, addr))(checks...)
}
func leases6(w who, addr string) step {
	return func(l *lab) {
		l.Helper()
		solicits(w, advertised(addr))(l)
		requests6(w, addr, replied(addr))(l)
	}
}

func answer6(kind dhcpv6.MessageType, addr string) check {
	return func(l *lab) {
		l.Helper()
		if l.err != nil || l.m6 == nil {
			l.Errorf("silence (%v), want %v %s", l.err, kind, addr)
			return
		}
		ia := l.m6.Options.OneIANA()
		if l.m6.MessageType != kind || ia == nil {
			l.Errorf("%s, want %v with an IA_NA", l.m6.Summary(), kind)
			return
		}
		a := ia.Options.OneAddress()
		if a == nil || a.IPv6Addr.String() != addr || a.ValidLifetime <= 0 {
			l.Errorf("%s, want %s", l.m6.Summary(), addr)
		}
	}
}
func advertised(addr string) check { return answer6(dhcpv6.MessageTypeAdvertise, addr) }
func replied(addr string) check    { return answer6(dhcpv6.MessageTypeReply, addr) }

// status expects a status code of the only IA_NA, and no address in it.
func status(want iana.StatusCode) check {
	return func(l *lab) {
		l.Helper()
		if l.m6 == nil || l.m6.Options.OneIANA() == nil {
			l.Errorf("silence (%v), want status %v", l.err, want)
			return
		}
		ia := l.m6.Options.OneIANA()
		if st := ia.Options.Status(); st == nil || st.StatusCode != want || len(ia.Options.Addresses()) > 0 {
			l.Errorf("%s, want status %v", l.m6.Summary(), want)
		}
	}
}

// overall expects a status code of the message.
func overall(want iana.StatusCode) check {
	return func(l *lab) {
		l.Helper()
		if l.m6 == nil || l.m6.Options.Status() == nil || l.m6.Options.Status().StatusCode != want {
			l.Errorf("%v (%v), want status %v", l.m6, l.err, want)
		}
	}
}
func carrying(code dhcpv6.OptionCode, want ...byte) check {
	return func(l *lab) {
		l.Helper()
		if l.m6 == nil {
			return
		}
		if o := l.m6.GetOneOption(code); o == nil || string(o.ToBytes()) != string(want) {
			l.Errorf("option %v is %v, want % x", code, o, want)
		}
	}
}
func lacking(codes ...dhcpv6.OptionCode) check {
	return func(l *lab) {
		l.Helper()
		for _, c := range codes {
			if l.m6 != nil && l.m6.GetOneOption(c) != nil {
				l.Errorf("option %v is there", c)
			}
		}
	}
}
