package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	wire "github.com/miekg/dns"
)

// Config says what a Server knows and whom it asks. The zero value serves
// localhost and administrators' records and asks the host's resolvers.
type Config struct {
	// Domain is where guests' names live: "web" is web.internal.
	// "": "internal."
	Domain string
	// Zones are ours from the apex down: a name in them that nobody has is
	// NXDOMAIN and never asked upstream. nil: docker.internal,
	// containers.internal, lima.internal, minikube.internal, resolver.arpa,
	// and Domain unless that is "internal.", which others use as well.
	Zones []string
	// Prefixes are the virtual network's: reverse names in them are answered
	// here, NXDOMAIN included, and never asked upstream.
	Prefixes []netip.Prefix
	// Gateway is what gateway.internal and its other spellings mean, Host what
	// host.internal and its other spellings mean. Of a family without an
	// address the answer is "no such record".
	Gateway, Host []netip.Addr

	// Resolvers are asked in this order, port 0 meaning 53. nil: those of
	// ResolvConf, as it changes.
	Resolvers []netip.AddrPort
	// ResolvConf is followed while Resolvers is nil. "": /etc/resolv.conf;
	// on Windows there is none, and New says so.
	ResolvConf string
	// Self are addresses in ResolvConf that lead back here and are passed
	// over. Leave it nil unless the host itself can reach the virtual
	// network: the same address on the host may well be another's resolver,
	// say that of the QEMU which the host is a guest of.
	Self []netip.Addr
	// Dial reaches a resolver; network is "udp" or "tcp". It must end when
	// ctx does. nil: the host's sockets.
	Dial func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error)

	// Names is asked at each question, and again for its answer, who has a
	// say in it: nil, or a func that returns nil, is nobody. While somebody
	// has, names that no host could have are NXDOMAIN.
	Names func() Names
	// Told hears which addresses a guest was given for a name: what Names left
	// it. It must not wait. nil: nobody.
	Told func(guest, name string, addrs []netip.Addr)

	// Panicked is told of a panic in a goroutine that works for a guest, in
	// place of the end of the process. The question stays without answer. nil:
	// it is the end.
	Panicked func(guest, what string, value any, stack []byte)

	Limits Limits
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: slog.Default()
}

// Limits bound what guests can make a Server hold. 0 is the default.
type Limits struct {
	// PerGuest is how many questions of one guest may wait for the host's
	// resolvers: 256. A page that names a hundred hosts, each asked for A,
	// AAAA and HTTPS, comes in bursts; dnsmasq gives a whole house 150.
	PerGuest int
	// PerSecond is how many questions a second of one guest that SetGuest
	// named are passed on to the host's resolvers, as many at once after a
	// pause: 1000. A crawler asks some hundreds; each takes a socket, a
	// goroutine and the resolver's time, and where that answers at once
	// PerGuest alone would let a guest have it all.
	PerSecond int
	// InAll is the same for all guests together: 1024. Each may hold 3
	// descriptors (Total over Try) and a few kilobytes; the number of
	// descriptors that Go programs get is 4096 on the tightest systems.
	InAll int
	// Spared questions of a guest are let in even past InAll: 16. So busy
	// guests cannot shut out a quiet one.
	Spared int
	// Conns is how many TCP connections one guest may have open: 20, what
	// dnsmasq gives to all. RFC 7766 section 6.2.2 asks clients for one.
	Conns int
	// ConnsInAll is the same for all guests together: 256, a quarter of
	// InAll. Every guest may open 2 even so.
	ConnsInAll int

	// Try is how long a resolver may be silent before the next one is asked
	// as well: 1.5 s, more than any path's round trip and a lost datagram at
	// the resolver's own resolvers; it fits twice into Total.
	Try time.Duration
	// Total is when a guest gets SERVFAIL at the latest: 4 s. A guest's own
	// resolver gives up after 5 s (RES_TIMEOUT of resolv.h), and an answer
	// keeps it from asking again.
	Total time.Duration
	// Idle is how long a TCP connection may take from one whole question to
	// the next, and to take an answer: 10 s. RFC 7766 section 6.2.3 wants a
	// few seconds; longer than Total, so that no answer is cut off.
	Idle time.Duration
}

// Questions of one TCP connection that may wait; the next is left unread, and
// TCP itself tells the guest. A quarter of PerGuest.
const pipeline = 64

// How often a change between working and failing resolvers is logged: guests
// can bring it about.
const logEvery = time.Minute

func (l Limits) withDefaults() (Limits, error) {
	for _, f := range []struct {
		v   *int
		def int
	}{{&l.PerGuest, 256}, {&l.PerSecond, 1000}, {&l.InAll, 1024}, {&l.Spared, 16}, {&l.Conns, 20}, {&l.ConnsInAll, 256}} {
		if *f.v < 0 {
			return l, fmt.Errorf("dns: a limit of %d questions or connections; want 1 or more, or 0 for the default", *f.v)
		}
		if *f.v == 0 {
			*f.v = f.def
		}
	}
	for _, f := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&l.Try, 1500 * time.Millisecond}, {&l.Total, 4 * time.Second}, {&l.Idle, 10 * time.Second}} {
		if *f.v < 0 {
			return l, fmt.Errorf("dns: a limit of %v; want more than 0, or 0 for the default", *f.v)
		}
		if *f.v == 0 {
			*f.v = f.def
		}
	}
	return l, nil
}

// Drop is why a message of a guest got no answer.
type Drop string

const (
	DropShort     Drop = "short"      // less than a DNS header
	DropResponse  Drop = "response"   // an answer to nothing
	DropGuestFull Drop = "guest-full" // the guest has Limits.PerGuest waiting, or had Limits.PerSecond; over TCP it is told SERVFAIL
	DropFull      Drop = "full"       // all guests together have Limits.InAll
	DropConnGuest Drop = "conn-guest" // the guest has Limits.Conns open
	DropConnFull  Drop = "conn-full"  // all guests together have Limits.ConnsInAll
	DropClosed    Drop = "closed"     // after Close
)

var drops = []Drop{DropShort, DropResponse, DropGuestFull, DropFull, DropConnGuest, DropConnFull, DropClosed}

// Status is what a Server does and did.
type Status struct {
	Resolvers []netip.AddrPort `json:"resolvers"`         // in force now
	From      string           `json:"from"`              // the file, or "fixed"
	Problem   string           `json:"problem,omitempty"` // why there are none, or that the last question got no answer
	Search    []string         `json:"search,omitempty"`  // of the host, for whoever wants to tell guests

	Queries   uint64          `json:"queries"`   // messages from guests
	Local     uint64          `json:"local"`     // answered here, refusals of a question included
	Malformed uint64          `json:"malformed"` // answered FORMERR or NOTIMP by the head alone
	Forwarded uint64          `json:"forwarded"` // given to the host's resolvers
	ServFail  uint64          `json:"servfail"`  // of those, answered SERVFAIL by them or for want of them
	Truncated uint64          `json:"truncated"` // UDP answers with TC
	Refused   uint64          `json:"refused"`   // questions that Config.Names did not allow
	Removed   uint64          `json:"removed"`   // addresses that it took out of answers
	Dropped   map[Drop]uint64 `json:"dropped"`   // every reason, also those at 0

	Answers [16]uint64 `json:"answers"` // given to guests, by the header's response code (RFC 1035 section 4.1.1)

	InFlight int `json:"in_flight"` // questions waiting for the host's resolvers
	Conns    int `json:"conns"`     // TCP connections of guests

	LastError   string    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
}

// Server answers guests' DNS messages. It opens no socket on the guests'
// side: they are handed to HandleUDP and ServeConn.
type Server struct {
	limits    Limits
	dial      func(context.Context, string, netip.AddrPort) (net.Conn, error)
	now       func() time.Time
	log       *slog.Logger
	who       func() Names                                 // may be nil
	told      func(guest, name string, addrs []netip.Addr) // may be nil
	table     *table
	resolvers atomic.Pointer[resolvers]
	rotor     atomic.Uint64
	panicked  func(guest, what string, value any, stack []byte)

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // all that Close waits for; joined under mu

	queries, local, malformed, forwarded, servfail, truncated, refused, removed atomic.Uint64

	dropped map[Drop]*atomic.Uint64 // keys never change
	answers [16]atomic.Uint64

	mu      sync.Mutex
	closed  bool
	waiting gate
	open    gate
	conns   map[net.Conn]bool
	lastErr error
	lastAt  time.Time
	failing bool // as logged
	silent  bool // as it is
	logged  time.Time
}

// New makes a Server and starts to follow the host's resolvers.
func New(c Config) (*Server, error) {
	limits, err := c.Limits.withDefaults()
	if err != nil {
		return nil, err
	}
	domain := "internal."
	if c.Domain != "" {
		if domain, err = zoneName(c.Domain); err != nil {
			return nil, err
		}
	}
	var zones []string
	if c.Zones == nil {
		zones = slices.Clone(builtinZones)
		if domain != "internal." {
			zones = append(zones, domain)
		}
	}
	for _, z := range c.Zones {
		if z, err = zoneName(z); err != nil {
			return nil, err
		}
		zones = append(zones, z)
	}
	for _, p := range c.Prefixes {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("dns: %v is no prefix of the virtual network; want one like 10.0.2.0/24 or fd00::/64", p)
		}
	}
	for _, a := range slices.Concat(c.Gateway, c.Host) {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			return nil, fmt.Errorf("dns: %v cannot be the gateway's or the host's address; want one like 10.0.2.2 or fd00::2", a)
		}
	}
	s := &Server{
		limits:   limits,
		dial:     c.Dial,
		now:      c.Now,
		log:      c.Logger,
		who:      c.Names,
		told:     c.Told,
		panicked: c.Panicked,
		table:    newTable(domain, zones, c.Prefixes, c.Gateway, c.Host),
		dropped:  make(map[Drop]*atomic.Uint64),
		waiting:  newGate(limits.PerGuest, limits.InAll, limits.Spared),
		open:     newGate(limits.Conns, limits.ConnsInAll, 2),
		conns:    make(map[net.Conn]bool),
	}
	s.waiting.perSecond = limits.PerSecond
	for _, d := range drops {
		s.dropped[d] = new(atomic.Uint64)
	}
	if s.dial == nil {
		s.dial = func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
			if network == "udp" { // a Dialer's care for many addresses and for time is lost on it
				return net.DialUDP(network, nil, net.UDPAddrFromAddrPort(dst))
			}
			var d net.Dialer
			return d.DialContext(ctx, network, dst.String())
		}
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.Default()
	}

	if c.Resolvers != nil {
		r := &resolvers{from: "fixed"}
		for _, ap := range c.Resolvers {
			if ap.Port() == 0 {
				ap = netip.AddrPortFrom(ap.Addr(), 53)
			}
			if ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()); !ap.IsValid() {
				return nil, errors.New("dns: a resolver without an address; want one like 192.0.2.53:53")
			}
			r.servers = append(r.servers, ap)
		}
		if len(r.servers) == 0 {
			r.why = "an empty list of resolvers was given"
		}
		s.ctx, s.cancel = context.WithCancel(context.Background())
		s.use(r)
		return s, nil
	}
	w := &watcher{path: c.ResolvConf, self: slices.Clone(c.Self), poll: pollEvery, believe: believeEmpty, apply: s.use}
	if w.path == "" {
		w.path = hostResolvConf
	}
	if w.path == "" {
		return nil, errors.New("dns: this system keeps no file that says which resolvers it uses; name them (Config.Resolvers, --dns-upstream)")
	}
	if w.fs, err = fsnotify.NewWatcher(); err != nil {
		s.log.Warn("dns: changes of resolvers are seen by polling only", "file", w.path, "every", w.poll, "err", err)
		w.fs = nil
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	first := readResolvConf(w.path, w.self)
	s.use(first)
	s.work.Go(func() { w.run(s.ctx.Done(), first) })
	return s, nil
}

func zoneName(name string) (string, error) {
	if _, ok := wire.IsDomainName(name); !ok || name == "." || name == "" {
		return "", fmt.Errorf("dns: %.80q is no domain; want one like internal or vm.example.org", name)
	}
	return wire.CanonicalName(name), nil
}

// use puts resolvers in force.
func (s *Server) use(r *resolvers) {
	s.resolvers.Store(r)
	s.mu.Lock()
	s.silent = false // these have not been asked yet
	s.mu.Unlock()
	if len(r.servers) == 0 {
		s.log.Warn("dns: the host has no resolver: guests get SERVFAIL for all but local names", "why", r.why)
	} else {
		s.log.Info("dns: resolvers in force", "servers", r.servers, "from", r.from)
	}
}

// Close ends every query and connection and returns when all is quiet: no
// reply is called after it.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
	return nil
}

// Domain returns the domain of guests' names, for DHCP to tell.
func (s *Server) Domain() string { return s.table.domain }

// Local says whether a name, in lower case without its final dot, is answered here and not by the host's resolvers.
func (s *Server) Local(name string) bool {
	return s.table.lookup(wire.CanonicalName(name), wire.TypeA).ours
}

// SetHost gives the guest owner (any word that stays the same: its MAC, its
// lease) the name that it asked for, and takes away the one it had. Of a
// name with dots the first label counts. The first owner keeps a name:
// another gets ErrTaken, and none gets a name that others trust unasked
// (ErrReserved).
func (s *Server) SetHost(owner, name string, addrs ...netip.Addr) error {
	return s.table.setHost(owner, name, addrs)
}

// RemoveHost forgets what SetHost said of owner.
func (s *Server) RemoveHost(owner string) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	s.table.dropHost(owner)
}

// Add takes one record in zone-file syntax: "db A 10.0.2.20" is a name in
// Domain, "db.example.org. 60 CNAME web.internal." any other. Its name is
// then ours for every type. It stands before a lease's addresses of the same
// name.
func (s *Server) Add(record string) error { return s.table.add(record) }

// Remove takes "NAME", "NAME TYPE" or a whole record, away from those that
// were added, and says how many there were.
func (s *Server) Remove(record string) (int, error) { return s.table.remove(record) }

// List returns all local records, sorted by name.
func (s *Server) List() []Record { return s.table.list() }

// Status returns what is in force and the counts so far.
func (s *Server) Status() Status {
	r := s.resolvers.Load()
	st := Status{
		Resolvers: slices.Clone(r.servers), From: r.from, Problem: r.why, Search: slices.Clone(r.search),
		Queries: s.queries.Load(), Local: s.local.Load(), Malformed: s.malformed.Load(),
		Forwarded: s.forwarded.Load(), ServFail: s.servfail.Load(), Truncated: s.truncated.Load(),
		Refused: s.refused.Load(), Removed: s.removed.Load(),
		Dropped: make(map[Drop]uint64),
	}
	for d, n := range s.dropped {
		st.Dropped[d] = n.Load()
	}
	for i := range s.answers {
		st.Answers[i] = s.answers[i].Load()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.InFlight, st.Conns = s.waiting.all, s.open.all
	if s.lastErr != nil {
		st.LastError, st.LastErrorAt = s.lastErr.Error(), s.lastAt
		if s.silent && st.Problem == "" && len(st.Resolvers) > 0 {
			st.Problem = "the host's resolvers do not answer: " + st.LastError
		}
	}
	return st
}

// HandleUDP takes one datagram that guest sent to the DNS address. It does
// not block on the host's resolvers: reply is called at most once, before
// HandleUDP returns when the answer is local, else from another goroutine,
// with at most 1232 bytes that are then the callee's. query is only read
// until HandleUDP returns. A guest past its limits gets no reply, as if the
// datagram had been lost. When ctx ends the question is forgotten. It returns
// whether the host's resolvers are being asked.
func (s *Server) HandleUDP(ctx context.Context, guest string, query []byte, reply func([]byte)) (asking bool) {
	s.queries.Add(1)
	if !s.join() {
		s.drop(DropClosed)
		return false
	}
	defer func() {
		if !asking {
			s.work.Done()
		}
	}()
	q, own, chase, err := s.read(guest, query)
	if q == nil {
		if own != nil {
			s.answered(own)
			reply(own)
		} else if d, ok := dropOf(err); ok {
			s.drop(d)
		}
		return false
	}
	send := func(raw []byte) {
		raw = q.finish(raw, q.limit())
		if truncated(raw) {
			s.truncated.Add(1)
		}
		s.answered(raw)
		reply(raw)
	}
	if own != nil {
		send(own)
		return false
	}
	if d := s.enter(guest); d != "" {
		s.drop(d)
		return false
	}
	go func() {
		defer s.work.Done()
		defer s.leave(guest)
		defer s.guard(guest, "name")
		if raw := s.resolve(ctx, guest, q, chase, false); raw != nil {
			send(raw)
		}
	}()
	return true
}

// ServeConn speaks DNS over TCP (RFC 7766) with guest until it is done, idle
// for too long, or ctx ends, and closes c. Answers go out as they come, which
// need not be the order of the questions.
func (s *Server) ServeConn(ctx context.Context, guest string, c net.Conn) {
	if d := s.enterConn(guest, c); d != "" {
		s.drop(d)
		_ = c.Close()
		return
	}
	defer s.leaveConn(guest, c)
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()

	var wmu sync.Mutex
	write := func(raw []byte) {
		s.answered(raw)
		wmu.Lock()
		defer wmu.Unlock()
		_ = c.SetWriteDeadline(time.Now().Add(s.limits.Idle))
		out := append([]byte{byte(len(raw) >> 8), byte(len(raw))}, raw...)
		if _, err := c.Write(out); err != nil {
			_ = c.Close() // half an answer may be out: the stream is lost
		}
	}
	slots := make(chan struct{}, pipeline)
	var pending sync.WaitGroup
	defer pending.Wait() // a guest that closed its sending side still listens
	for {
		// Once for a whole message: no byte buys more time.
		_ = c.SetReadDeadline(time.Now().Add(s.limits.Idle))
		msg, err := readMessage(c)
		if err != nil {
			return
		}
		s.queries.Add(1)
		q, own, chase, err := s.read(guest, msg)
		if q == nil {
			if own == nil {
				if d, ok := dropOf(err); ok {
					s.drop(d)
				}
				return // what speaks so does not speak DNS
			}
			write(own)
			continue
		}
		if own != nil {
			write(q.finish(own, wire.MaxMsgSize))
			continue
		}
		slots <- struct{}{}
		if d := s.enter(guest); d != "" {
			<-slots
			s.drop(d)
			// A lost segment is TCP's to repeat, a lost answer is not.
			write(s.fail(q, wire.ExtendedErrorCodeNotReady, "too many questions at once"))
			continue
		}
		pending.Go(func() {
			defer func() { <-slots }()
			defer s.leave(guest)
			defer s.guard(guest, "name")
			if raw := s.resolve(ctx, guest, q, chase, true); raw != nil {
				write(q.finish(raw, wire.MaxMsgSize))
			}
		})
	}
}

// guard, deferred, tells of a panic instead of ending the process.
func (s *Server) guard(guest, what string) {
	if s.panicked == nil {
		return
	}
	switch r := recover().(type) {
	case nil:
	case *beside:
		s.panicked(guest, what, r.value, r.stack)
	default:
		s.panicked(guest, what, r, debug.Stack())
	}
}

// beside is a panic of a goroutine that worked for another one, which goes on
// with it as its own.
type beside struct {
	value any
	stack []byte
}

func (e *beside) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }

func dropOf(err error) (Drop, bool) {
	switch {
	case errors.Is(err, errShort):
		return DropShort, true
	case errors.Is(err, errResponse):
		return DropResponse, true
	}
	return "", false
}

// answered counts an answer.
func (s *Server) answered(raw []byte) {
	if len(raw) > 3 {
		s.answers[raw[3]&0x0f].Add(1)
	}
}

func (s *Server) drop(d Drop) { s.dropped[d].Add(1) }

// read looks at a guest's message. With a nil query, own is the answer to its
// head, or nil when it gets none; else own is the local answer, or nil when
// the host's resolvers are to be asked, for chase if that is not nil.
func (s *Server) read(guest string, msg []byte) (q *query, own []byte, chase *alias, err error) {
	q, err = parseQuery(msg)
	var refusal errRefusal
	if errors.As(err, &refusal) {
		s.malformed.Add(1)
		return nil, headerAnswer(msg, refusal.rcode), nil, err
	}
	if err != nil {
		return nil, nil, nil, err
	}
	m, chase := s.answerLocal(guest, q)
	if m == nil {
		return q, nil, chase, nil
	}
	s.local.Add(1)
	if names := s.names(); names != nil {
		s.sift(names, guest, q, m, true)
	}
	s.tell(guest, q, m)
	return q, q.pack(m), nil, nil
}

// alias is a local name that stands for one of the world's.
type alias struct {
	chain  []wire.RR
	target string
}

// answerLocal returns the answer to what is ours to answer, else nil.
func (s *Server) answerLocal(guest string, q *query) (*wire.Msg, *alias) {
	switch {
	case q.hasOPT() && q.ednsVersion() != 0:
		return q.answer(wire.RcodeBadVers), nil // RFC 6891 section 6.1.3
	case q.class != wire.ClassINET:
		// CHAOS and the rest tell about servers, not names: not ours to
		// tell, and the host's resolver is nobody's business.
		return q.answer(wire.RcodeRefused), nil
	case q.qtype == wire.TypeAXFR || q.qtype == wire.TypeIXFR:
		return q.answer(wire.RcodeRefused), nil // whole zones (RFC 5936)
	}
	if m := s.judge(guest, q); m != nil {
		return m, nil
	}
	m := q.answer(wire.RcodeSuccess)
	m.Authoritative = true
	key, owner := q.key, q.name
	for range maxAliases {
		f := s.table.lookup(key, q.qtype)
		if !f.ours {
			if len(m.Answer) == 0 {
				return nil, nil
			}
			return nil, &alias{m.Answer, owner}
		}
		if q.qtype == wire.TypeANY && f.known {
			// RFC 8482 section 4.2: one record that says "ask for a type".
			m.Answer = append(m.Answer, &wire.HINFO{
				Hdr: wire.RR_Header{Name: owner, Rrtype: wire.TypeHINFO, Class: wire.ClassINET, Ttl: localTTL},
				Cpu: "RFC8482",
			})
			return m, nil
		}
		if q.qtype == wire.TypeSOA && key == f.apex && len(f.rrs) == 0 {
			m.Answer = append(m.Answer, s.soa(owner))
			return m, nil
		}
		if len(f.rrs) == 0 {
			if !f.known {
				m.Rcode = wire.RcodeNameError
			}
			m.Ns = append(m.Ns, s.soa(f.apex)) // RFC 2308 section 3
			return m, nil
		}
		next := ""
		for _, rr := range f.rrs {
			rr = wire.Copy(rr) // the table's are shared
			rr.Header().Name = owner
			m.Answer = append(m.Answer, rr)
			if c, ok := rr.(*wire.CNAME); ok && q.qtype != wire.TypeCNAME {
				next = c.Target
			}
		}
		if next == "" {
			return m, nil
		}
		key, owner = wire.CanonicalName(next), next
	}
	m = q.answer(wire.RcodeServerFailure)
	explain(m, wire.ExtendedErrorCodeInvalidData, "the local aliases run in a ring")
	return m, nil
}

func (s *Server) soa(apex string) wire.RR {
	return &wire.SOA{
		Hdr: wire.RR_Header{Name: apex, Rrtype: wire.TypeSOA, Class: wire.ClassINET, Ttl: localTTL},
		Ns:  "gateway." + s.table.domain, Mbox: "nobody.invalid.", // RFC 6303 section 3
		Serial: 1, Refresh: 3600, Retry: 1200, Expire: 604800, Minttl: localTTL, // nobody transfers it
	}
}

// resolve asks the host's resolvers, and says SERVFAIL for them when they are
// silent. nil: nobody waits for the answer any more.
func (s *Server) resolve(ctx context.Context, guest string, q *query, chase *alias, whole bool) []byte {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()

	s.forwarded.Add(1)
	var raw []byte
	var err error
	if chase != nil {
		raw, err = s.follow(ctx, q, chase)
	} else {
		raw, err = s.forward(ctx, q, whole)
	}
	if ctx.Err() != nil {
		return nil
	}
	s.health(err)
	switch {
	case errors.Is(err, errNoResolver):
		s.servfail.Add(1)
		return s.fail(q, wire.ExtendedErrorCodeNetworkError, err.Error())
	case err != nil:
		// Which resolver and how is for the host's eyes: Status has it.
		s.servfail.Add(1)
		return s.fail(q, wire.ExtendedErrorCodeNoReachableAuthority, "no resolver of the host's answered")
	}
	if raw[3]&0x0f == wire.RcodeServerFailure {
		s.servfail.Add(1)
	}
	return s.siftRaw(guest, q, raw)
}

// follow asks for what a local alias stands for, and puts the alias before.
func (s *Server) follow(ctx context.Context, q *query, a *alias) ([]byte, error) {
	m := q.answer(wire.RcodeSuccess)
	m.Response, m.RecursionAvailable = false, false
	m.Question[0].Name = a.target
	out, err := m.Pack()
	if err != nil {
		return nil, err
	}
	sub, err := parseQuery(out)
	if err != nil {
		return nil, err
	}
	raw, err := s.forward(ctx, sub, true)
	if err != nil {
		return nil, err
	}
	var in wire.Msg
	if err := in.Unpack(sub.finish(raw, wire.MaxMsgSize)); err != nil {
		return nil, fmt.Errorf("the answer about an alias cannot be read: %w", err)
	}
	m = q.answer(in.Rcode)
	m.Answer = append(a.chain, in.Answer...)
	m.Ns = in.Ns
	return m.Pack()
}

func (s *Server) fail(q *query, code uint16, why string) []byte {
	m := q.answer(wire.RcodeServerFailure)
	explain(m, code, why)
	return q.pack(m)
}

// health keeps the last error and logs when the resolvers stop or begin to
// answer, no more often than logEvery.
func (s *Server) health(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if s.silent = err != nil; s.silent {
		s.lastErr, s.lastAt = err, now
	}
	if (err != nil) == s.failing || !s.logged.IsZero() && now.Sub(s.logged) < logEvery {
		return
	}
	s.failing, s.logged = err != nil, now
	switch {
	case errors.Is(err, errNoResolver): // use has said so
	case err != nil:
		s.log.Warn("dns: the host's resolvers do not answer", "err", err)
	default:
		s.log.Info("dns: the host's resolvers answer again")
	}
}

// join counts the caller in among those that Close waits for.
func (s *Server) join() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.work.Add(1)
	return true
}

func (s *Server) enter(guest string) Drop {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting.enter(guest, DropGuestFull, DropFull)
}

func (s *Server) leave(guest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting.leave(guest)
}

func (s *Server) enterConn(guest string, c net.Conn) Drop {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return DropClosed
	}
	if d := s.open.enter(guest, DropConnGuest, DropConnFull); d != "" {
		return d
	}
	s.conns[c] = true
	s.work.Add(1)
	return ""
}

func (s *Server) leaveConn(guest string, c net.Conn) {
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.open.leave(guest)
	s.work.Done()
}

// gate counts who is inside. A guest with nobody inside takes no memory.
type gate struct {
	perGuest, inAll, spared int
	all                     int
	by                      map[string]int
	own                     map[string]*ownGate
	perSecond               int // 0: any
}

func newGate(perGuest, inAll, spared int) gate {
	return gate{perGuest: perGuest, inAll: inAll, spared: spared, by: make(map[string]int)}
}

func (g *gate) enter(guest string, guestFull, full Drop) Drop {
	own, most := g.own[guest], g.perGuest
	if own != nil {
		most = own.limit
	}
	n := g.by[guest]
	var d Drop
	switch {
	case n >= most, own != nil && g.perSecond > 0 && !own.allow(float64(g.perSecond), time.Now()):
		d = guestFull
	case g.all >= g.inAll && n >= g.spared:
		d = full
	default:
		n++
		g.all++
		g.by[guest] = n
	}
	if own != nil {
		if own.most = max(own.most, n); d != "" {
			own.hits++
		}
	}
	return d
}

func (g *gate) leave(guest string) {
	g.all--
	if g.by[guest]--; g.by[guest] == 0 {
		delete(g.by, guest)
	}
}
