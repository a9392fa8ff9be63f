// Package portforward is the host's way into a guest: a table of rules, changed
// while it runs, each of them a socket on the host whose conversations end in a
// guest.
//
//	table := portforward.New(portforward.Config{Guest: network})
//	defer table.Close()
//	rules, err := portforward.ParseRule("127.0.0.1:2222:22/tcp")
//	if err != nil {
//		return err
//	}
//	bound, err := table.Add(ctx, rules[0])
//	if err != nil {
//		return err // says what is wrong and what would be right
//	}
//	fmt.Println("ssh -p", bound.HostPort, "root@127.0.0.1")
//
// The package knows nothing of frames: the way into the guest is the Guest
// handed to New. It looks up no names, neither to bind nor in the guest's
// network; it keeps no rules over a restart; it does not speak for the guest
// (no ICMP to a client whose datagram found nobody: that takes privileges).
//
// # Syntaxes
//
// ParseRule reads the syntaxes people already type. Everywhere, proto is tcp
// or udp and tcp when left out; addr is an IP address of the host and 127.0.0.1
// when left out; port is decimal; ports is port or first-last; guest is an IP
// address, a lease's host name or a MAC, and the network's default guest
// address when left out.
//
//	docker   [addr:]ports:[guest:]ports[/proto]    127.0.0.1:2222:22/tcp
//	         addr::port                            127.0.0.1::22  (any free host port)
//	passt    [addr/]ports[:[guest/]ports][/proto]  2222:22  22  8000-8010:9000-9010  ::1/2222:22
//	         ports,ports,~ports                    2000-5000,~3000-3010
//	QEMU     [hostfwd=][proto]:[addr]:port-[guest]:port
//	                                               tcp:127.0.0.1:2222-:22  udp::5353-10.0.2.15:53
//	         [hostfwd=]unix:/path-[guest]:port     unix:/run/web.sock-:80
//	option   any of these,source=client            2222:22,source=client
//
//	addr     192.0.2.1   [::1]   [fe80::1%eth0]    brackets optional before passt's slash
//	guest    10.0.2.15   [fd00::15]                an IPv6 address in brackets
//	         web   my-vm.lan                       a name: letters, digits, - _ . and at least one letter
//	         52-54-00-12-34-56                     a MAC with dashes, or
//	         [52:54:00:12:34:56]                   with colons in brackets
//
// What follows from these:
//
//   - 2222:web:22 and 127.0.0.1:2222:22 both have three fields: when the first
//     is a port the second is a guest, else the first is an address.
//   - A bare 22 is host port 22 to guest port 22 (passt), not docker's any port
//     to 22. Port 0 on the host is any free port; Add's reply says which.
//   - In a list, an address before a slash holds until the next one; ~ports are
//     taken out of every range of the list; source= holds for the whole list.
//   - A name that reads as a MAC with dashes is a MAC. A name of digits only
//     would read as a port and is refused.
//   - In unix:/path-guest:80 the path ends at the last dash before the guest: a
//     guest with a dash goes in brackets, unix:/run/a-b.sock-[my-vm]:80.
//   - 2222:fd00::1/22 reads as passt reads it, left to right: an address, then
//     a port. The guest's IPv6 address wants its brackets there too.
//
// Where this differs from those programs: an address left out is 127.0.0.1,
// while for QEMU, passt and docker it is every address; 0.0.0.0 and [::] have
// to be written. Each of them is one family only. A range wants as many ports
// on either side (docker's 8000-8010:80 is refused). Numbers are decimal: QEMU
// reads 010 as 8 and docker as 10, so a leading zero is refused, and so is 0x.
// passt's all, auto and %eth0/22 are refused by name.
//
// Rule.String is the one canonical print, docker's form with everything in it
// that matters: 127.0.0.1:2222:22/tcp, [::1]:8000-8010:web:9000-9010/udp,
// unix:/run/web.sock-:80.
//
// # What a conversation sees
//
// TCP: the host's connection is accepted, the guest is dialled, bytes go both
// ways. A half-close stays a half-close and a reset stays a reset, both ways. A
// guest that refuses, or is not there, is a reset for the client, never a clean
// end. The rule itself outlives the guest's absence.
//
// UDP: every client address has a conversation of its own with the guest, and
// answers leave from the address the client wrote to.
//
// Unix: a stream socket, mode 0600, removed when the rule goes. A stale socket
// file is replaced, a live one refused, anything else never touched. A unix
// socket has no reset: a client that has sent nothing sees an end.
package portforward

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Guest is the way into the guests, implemented by the network.
type Guest interface {
	// DialGuest opens a conversation with a port of a guest. proto is tcp or
	// udp; guest is Rule.Guest; from is the client's address to show to the
	// guest, or the zero AddrPort for the gateway's own; rule is the canonical
	// print of the rule that let it in, for the flow's record.
	//
	// It must return when ctx ends. It says why it fails by wrapping
	// ErrNoGuest, syscall.ECONNREFUSED or context.DeadlineExceeded.
	//
	// A TCP conn should have CloseWrite() error, for half-closes, and Abort()
	// error or SetLinger(0), for resets; one without the first is closed
	// entirely at the client's half-close, one without the second ends in a
	// clean close. A UDP conn keeps datagrams apart, empty ones included; its
	// Read returns an error wrapping syscall.ECONNREFUSED for a port that is
	// closed in the guest and goes on working.
	DialGuest(ctx context.Context, proto string, guest string, port uint16, from netip.AddrPort, rule string) (net.Conn, error)
}

// Config is what a table needs and may be told. Only Guest has no default.
type Config struct {
	// Guest dials the guests.
	Guest Guest
	// Logger: nil is silent.
	Logger *slog.Logger
	// Present says whether the guest a rule names is there now, for List. nil:
	// List says what the last conversation found.
	Present func(guest string) bool
	// Changed, if not nil, is told of each rule that was added or removed, as bound.
	Changed func(r Rule, added bool)

	// Allow is asked before a rule's sockets are opened. Its error is why the
	// table must not. nil: it may open any.
	Allow func(Rule) error

	// DialTimeout bounds DialGuest. 0 is DefaultDialTimeout.
	DialTimeout time.Duration
	// MaxPending bounds the conversations of one rule whose guest has not
	// answered yet. 0 is DefaultMaxPending.
	MaxPending int
	// MaxActive bounds the conversations of the table, TCP and UDP, those
	// pending included. 0 is DefaultMaxActive.
	MaxActive int
	// MaxPorts bounds the sockets the table listens on. 0 is DefaultMaxPorts.
	MaxPorts int
	// UDPIdle is how long a UDP conversation lives without a datagram either
	// way. 0 is DefaultUDPIdle.
	UDPIdle time.Duration
	// UDPSessions bounds the UDP conversations of one rule; one more ends the
	// least recently used. 0 is DefaultUDPSessions.
	UDPSessions int
}

const (
	// DefaultDialTimeout: three SYNs at 0, 1 and 3 s and the time for an answer
	// to the last (RFC 6298: 1 s first, doubled). The guest is next door: what
	// has not answered by then is not there, and the client still waits.
	DefaultDialTimeout = 7 * time.Second
	// DefaultMaxPending: as many as the network lets one guest have pending in
	// the other direction; a thousand clients at once are a load test, more
	// are a flood that the client's kernel should retry.
	DefaultMaxPending = 1024
	// DefaultMaxActive: one descriptor each on the host, well below the 20,000
	// and more that systems allow a process, and at the most 128 KiB of relay
	// buffers each while all of them are busy (512 MiB), 8 KiB while idle.
	DefaultMaxActive = 4096
	// DefaultMaxPorts: a descriptor and a goroutine each, some 5 KiB with the
	// kernel's part. All 65535 would be a firewall rule, not a forward.
	DefaultMaxPorts = 4096
	// DefaultUDPIdle: RFC 4787 REQ-5 demands two minutes at least and
	// recommends five.
	DefaultUDPIdle = 5 * time.Minute
	// DefaultUDPSessions: a 64 KiB receive buffer each, so 32 MiB a rule at
	// the most. Clients that ask once from a fresh port (DNS) wear out the
	// oldest, not the newest.
	DefaultUDPSessions = 512
)

// Reason is why something was turned away or cut short: a closed list that
// List, metrics and logs share.
type Reason string

// The reasons. The first seven end a conversation before it began.
const (
	ReasonAbsent      Reason = "guest-absent"   // no guest of that name is plugged in
	ReasonRefused     Reason = "guest-refused"  // the guest's port is closed
	ReasonTimeout     Reason = "guest-timeout"  // no answer within DialTimeout
	ReasonDial        Reason = "dial-failed"    // any other failure to reach the guest
	ReasonPending     Reason = "too-many-dials" // MaxPending of the rule reached
	ReasonActive      Reason = "table-full"     // MaxActive of the table reached
	ReasonGone        Reason = "client-gone"    // the client reset before the guest answered
	ReasonReset       Reason = "reset"          // a TCP conversation that ended in a reset
	ReasonCut         Reason = "cut"            // ended by Remove, Shutdown or Close
	ReasonEvicted     Reason = "evicted"        // a UDP conversation, least recently used at the cap
	ReasonQueue       Reason = "queue-full"     // a datagram for a guest that does not take them
	ReasonUnreachable Reason = "unreachable"    // a datagram the guest answered with port unreachable
	ReasonSend        Reason = "send-failed"    // a datagram that could not be sent on
)

// reasons, in the order of the counters' array.
var reasons = []Reason{
	ReasonAbsent, ReasonRefused, ReasonTimeout, ReasonDial, ReasonPending, ReasonActive, ReasonGone,
	ReasonReset, ReasonCut, ReasonEvicted, ReasonQueue, ReasonUnreachable, ReasonSend,
}

const reasonCount = 13

// Presence is what is known about the guest of a rule.
type Presence string

// What List says about a rule's guest.
const (
	Present Presence = "present"
	Absent  Presence = "absent"
	Unknown Presence = "unknown"
)

// The states of a rule's listeners.
const (
	StateListening = "listening"
	// StateBackoff: accepting fails (no descriptors left, most likely) and is
	// tried again; clients wait in the system's queue meanwhile.
	StateBackoff = "backing off"
)

// Status is one rule as List shows it.
type Status struct {
	ID       string            `json:"id"`   // Rule.ID, names the rule to Remove
	Text     string            `json:"text"` // Rule.String
	Rule     Rule              `json:"rule"` // as bound
	State    string            `json:"state"`
	Guest    Presence          `json:"guest"`
	Since    time.Time         `json:"since"`
	Accepted uint64            `json:"accepted"` // connections accepted, UDP client addresses seen
	Pending  int               `json:"pending"`  // waiting for the guest's answer
	Active   int               `json:"active"`   // open now, pending included
	Refused  uint64            `json:"refused"`  // of the accepted, those that never reached the guest
	ToGuest  uint64            `json:"bytes_to_guest"`
	ToClient uint64            `json:"bytes_to_client"`
	Reasons  map[Reason]uint64 `json:"reasons,omitempty"`
	// AcceptErrors counts failures of accept or of the UDP socket itself.
	AcceptErrors uint64    `json:"accept_errors,omitempty"`
	LastError    string    `json:"last_error,omitempty"`
	LastErrorAt  time.Time `json:"last_error_at,omitzero"`
}

// Table is a set of rules and their listeners. Its methods may be called from
// any goroutine.
//
// Locks: mu guards the set of rules and is held while sockets are opened and
// closed, never while a guest is dialled. convMu guards the set of open TCP
// conversations. Counters are atomics.
type Table struct {
	cfg Config
	log *slog.Logger

	ctx    context.Context // ends when conversations must
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine of the table

	mu     sync.Mutex
	rules  []*entry // in the order added
	ports  int      // sockets listened on, over all rules
	closed bool     // no Add any more

	convMu sync.Mutex
	convs  map[*conv]struct{}
	drain  chan struct{} // Shutdown waits: closed when convs becomes empty

	active atomic.Int64 // conversations, both kinds
}

// entry is a rule of the table.
type entry struct {
	t     *Table
	rule  Rule   // as bound, never changes
	text  string // rule.String()
	since time.Time
	socks []hostSocket
	udp   *sessions      // nil but for UDP
	loops sync.WaitGroup // accept and receive loops
	ctx   context.Context
	done  context.CancelFunc // ends pauses of the loops

	accepted, refused, acceptErrors atomic.Uint64
	toGuest, toClient               atomic.Int64
	pending, active                 atomic.Int64
	why                             [reasonCount]atomic.Uint64
	backoffUntil                    atomic.Int64 // unix nanoseconds

	errMu     sync.Mutex
	lastErr   string
	lastErrAt time.Time
	seen      Presence // by the last conversation
}

// hostSocket is one open host end.
type hostSocket interface {
	serve(*entry) // until close
	close()
}

// New starts an empty table. It panics without a Guest.
func New(cfg Config) *Table {
	if cfg.Guest == nil {
		panic("portforward: Config.Guest is nil")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.DialTimeout = orDefault(cfg.DialTimeout, DefaultDialTimeout)
	cfg.MaxPending = orDefault(cfg.MaxPending, DefaultMaxPending)
	cfg.MaxActive = orDefault(cfg.MaxActive, DefaultMaxActive)
	cfg.MaxPorts = orDefault(cfg.MaxPorts, DefaultMaxPorts)
	cfg.UDPIdle = orDefault(cfg.UDPIdle, DefaultUDPIdle)
	cfg.UDPSessions = orDefault(cfg.UDPSessions, DefaultUDPSessions)
	t := &Table{cfg: cfg, log: cfg.Logger, convs: make(map[*conv]struct{})}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.wg.Go(t.sweep)
	return t
}

func orDefault[T int | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// Add opens a rule's host end and returns the rule as bound: normalized, with
// the port the system picked where it asked for 0. A range is all or nothing.
// The error is an *Error. ctx bounds the opening, not the rule.
func (t *Table) Add(ctx context.Context, r Rule) (Rule, error) {
	bound, err := t.AddAll(ctx, []Rule{r})
	if err != nil {
		return Rule{}, err
	}
	return bound[0], nil
}

// AddAll adds several rules, all or none of them: what ParseRule made of one
// string.
func (t *Table) AddAll(ctx context.Context, rules []Rule) ([]Rule, error) {
	bound, err := t.addAll(ctx, rules)
	if t.cfg.Changed != nil {
		for _, r := range bound {
			t.cfg.Changed(r, true)
		}
	}
	return bound, err
}

func (t *Table) addAll(ctx context.Context, rules []Rule) ([]Rule, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var (
		added []*entry
		bound []Rule
		ports = t.ports
	)
	undo := func() {
		for _, e := range added {
			e.closeSockets()
		}
	}
	for _, r := range rules {
		e, err := t.open(ctx, r, added, ports)
		if err != nil {
			undo()
			t.log.Warn("port forward not added", "rule", quote(r.String()), "err", err)
			return nil, err
		}
		added = append(added, e)
		bound = append(bound, e.rule)
		ports += len(e.socks)
	}
	t.ports = ports
	for _, e := range added {
		t.start(e)
	}
	return bound, nil
}

// start puts an open entry into the table and lets clients in. Called with mu.
func (t *Table) start(e *entry) {
	t.rules = append(t.rules, e)
	for _, s := range e.socks {
		t.wg.Add(1)
		e.loops.Add(1)
		go func() {
			defer t.wg.Done()
			defer e.loops.Done()
			s.serve(e)
		}()
	}
	t.log.Info("port forward added", "rule", e.text)
}

// open makes the entry of a rule with its sockets open and nothing running.
// also are those of the same call that are not in the table yet.
func (t *Table) open(ctx context.Context, r Rule, also []*entry, ports int) (*entry, error) {
	r, err := r.Normalize()
	if err != nil {
		return nil, err
	}
	text := r.String()
	if t.closed {
		return nil, wrong(ErrClosed, "the table is closed").of(text)
	}
	if t.cfg.Allow != nil {
		if err := t.cfg.Allow(r); err != nil {
			return nil, wrong(ErrBind, "%v", err).of(text)
		}
	}
	for _, e := range slices.Concat(t.rules, also) {
		if r.clashes(e.rule) {
			p := wrong(ErrClash, "%s is taken by the forward %s; remove that one first or use another %s",
				r.ID(), e.text, map[bool]string{true: "path", false: "host port"}[r.Proto == Unix])
			p.other = e.text
			return nil, p.of(text)
		}
	}
	if ports+r.Count > t.cfg.MaxPorts {
		return nil, wrong(ErrLimit, "%d more ports: %d of at most %d are forwarded already", r.Count, ports, t.cfg.MaxPorts).of(text)
	}
	e := &entry{t: t, since: time.Now(), seen: Unknown}
	e.ctx, e.done = context.WithCancel(t.ctx)
	if r.Proto == UDP {
		e.udp = newSessions(t.cfg.UDPSessions)
	}
	for i := range r.Count {
		if err := ctx.Err(); err != nil {
			e.closeSockets()
			return nil, (&problem{kind: ErrBind, text: "given up: " + err.Error(), err: err}).of(text)
		}
		s, port, p := openHost(r, i)
		if p != nil {
			e.closeSockets()
			return nil, p.of(text)
		}
		if r.HostPort == 0 && r.Proto != Unix {
			r.HostPort = port // a range cannot start at 0: this is its only one
		}
		e.socks = append(e.socks, s)
	}
	e.rule, e.text = r, r.String()
	return e, nil
}

func (e *entry) closeSockets() {
	e.done()
	for _, s := range e.socks {
		s.close()
	}
}

// Remove ends a rule and returns it. spec is the rule's ID, or what QEMU's
// hostfwd_remove takes for it (tcp::2222), or any text ParseRule reads as that
// one rule. It no longer listens when Remove returns. TCP
// conversations it let in go on, as with QEMU's hostfwd_remove, unless cut;
// UDP conversations end, as their socket does.
func (t *Table) Remove(spec string, cut bool) (Rule, error) {
	t.mu.Lock()
	i, p := t.find(spec)
	if p != nil {
		t.mu.Unlock()
		return Rule{}, p.of(spec)
	}
	e := t.rules[i]
	t.rules = slices.Delete(t.rules, i, i+1)
	t.ports -= len(e.socks)
	e.closeSockets() // under mu: the next Add finds the port free
	t.mu.Unlock()

	if e.udp != nil {
		e.udp.endAll(e)
	}
	if cut {
		t.cutConvs(e)
	}
	e.loops.Wait()
	if cut {
		t.cutConvs(e) // what a loop accepted between the two
	}
	t.log.Info("port forward removed", "rule", e.text)
	if t.cfg.Changed != nil {
		t.cfg.Changed(e.rule, false)
	}
	return e.rule, nil
}

// find looks a rule up by its ID, or by a rule's text.
func (t *Table) find(spec string) (int, *problem) {
	byID := func(id string) int {
		return slices.IndexFunc(t.rules, func(e *entry) bool { return e.rule.ID() == id })
	}
	if i := byID(spec); i >= 0 {
		return i, nil
	}
	// hostfwd_remove's argument, whose address may be left out: tcp::2222.
	if ends, p := parse(spec + "-:1"); p == nil && len(ends) == 1 {
		if i := byID(ends[0].ID()); i >= 0 {
			return i, nil
		}
	}
	rules, p := parse(spec)
	if p != nil {
		return 0, wrong(ErrNotFound, "no rule has this host end, and it is not a rule itself (%s); name one by its host end, as in tcp:127.0.0.1:2222", p.text)
	}
	if len(rules) != 1 {
		return 0, wrong(ErrNotFound, "%d rules in one string: remove them one by one", len(rules))
	}
	i := byID(rules[0].ID())
	switch {
	case i < 0:
		return 0, wrong(ErrNotFound, "no rule has the host end %s", rules[0].ID())
	case t.rules[i].rule != rules[0]:
		return 0, wrong(ErrNotFound, "%s is another rule, %s; name it so, or by %s", rules[0].ID(), t.rules[i].text, rules[0].ID())
	}
	return i, nil
}

// List is the table, in the order the rules were added.
func (t *Table) List() []Status {
	t.mu.Lock()
	entries := slices.Clone(t.rules)
	t.mu.Unlock()
	list := make([]Status, 0, len(entries))
	for _, e := range entries {
		list = append(list, e.status())
	}
	return list
}

func (e *entry) status() Status {
	s := Status{
		ID: e.rule.ID(), Text: e.text, Rule: e.rule, State: StateListening, Since: e.since,
		Accepted: e.accepted.Load(), Refused: e.refused.Load(), AcceptErrors: e.acceptErrors.Load(),
		Pending: int(e.pending.Load()), Active: int(e.active.Load()),
		ToGuest: uint64(e.toGuest.Load()), ToClient: uint64(e.toClient.Load()),
	}
	if time.Now().UnixNano() < e.backoffUntil.Load() {
		s.State = StateBackoff
	}
	for i, r := range reasons {
		if n := e.why[i].Load(); n > 0 {
			if s.Reasons == nil {
				s.Reasons = make(map[Reason]uint64)
			}
			s.Reasons[r] = n
		}
	}
	e.errMu.Lock()
	s.LastError, s.LastErrorAt, s.Guest = e.lastErr, e.lastErrAt, e.seen
	e.errMu.Unlock()
	if e.t.cfg.Present != nil {
		s.Guest = Absent
		if e.t.cfg.Present(e.rule.Guest) {
			s.Guest = Present
		}
	}
	return s
}

// count adds one to a reason's counter.
func (e *entry) count(r Reason) {
	e.why[slices.Index(reasons, r)].Add(1)
}

// note keeps the last error for List. Error text may quote a guest: bounded.
func (e *entry) note(err error) {
	text := err.Error()
	if len(text) > maxQuoted {
		text = text[:maxQuoted] + "…"
	}
	e.errMu.Lock()
	e.lastErr, e.lastErrAt = text, time.Now()
	e.errMu.Unlock()
}

// refuse counts an accepted conversation that never reached the guest.
func (e *entry) refuse(r Reason, err error) {
	e.refused.Add(1)
	e.count(r)
	if err != nil {
		e.note(err)
	}
	switch r {
	case ReasonAbsent:
		e.saw(Absent)
	case ReasonRefused: // somebody is there to refuse
		e.saw(Present)
	}
	e.t.log.Debug("port forward: conversation refused", "rule", e.text, "reason", string(r), "err", err)
}

func (e *entry) saw(p Presence) {
	e.errMu.Lock()
	e.seen = p
	e.errMu.Unlock()
}

// admit takes a place in the table, or says why there is none.
func (e *entry) admit() (Reason, bool) {
	if e.pending.Add(1) > int64(e.t.cfg.MaxPending) {
		e.pending.Add(-1)
		return ReasonPending, false
	}
	if e.t.active.Add(1) > int64(e.t.cfg.MaxActive) {
		e.t.active.Add(-1)
		e.pending.Add(-1)
		return ReasonActive, false
	}
	e.active.Add(1)
	return "", true
}

func (e *entry) release() {
	e.active.Add(-1)
	e.t.active.Add(-1)
}

// Shutdown stops listening, gives the TCP conversations up to ctx to end by
// themselves, then closes the table. UDP conversations, which have no end of
// their own, live on for as long as that takes.
func (t *Table) Shutdown(ctx context.Context) {
	t.mu.Lock()
	t.closed = true
	for _, e := range t.rules {
		if e.udp == nil {
			e.closeSockets()
		}
	}
	entries := slices.Clone(t.rules)
	t.mu.Unlock()
	for _, e := range entries {
		if e.udp == nil {
			e.loops.Wait() // nothing is accepted after this
		}
	}
	t.convMu.Lock()
	if len(t.convs) > 0 {
		if t.drain == nil {
			t.drain = make(chan struct{})
		}
		drain := t.drain
		t.convMu.Unlock()
		select {
		case <-drain:
		case <-ctx.Done():
		}
	} else {
		t.convMu.Unlock()
	}
	t.Close()
}

// Close ends every rule and every conversation, TCP ones with a reset, and
// returns when all goroutines have. It may be called more than once.
func (t *Table) Close() error {
	t.mu.Lock()
	t.closed = true
	entries := t.rules
	t.rules, t.ports = nil, 0
	for _, e := range entries {
		e.closeSockets()
	}
	t.mu.Unlock()
	t.cancel()
	for _, e := range entries {
		if e.udp != nil {
			e.udp.endAll(e)
		}
	}
	t.cutConvs(nil)
	for _, e := range entries {
		e.loops.Wait()
	}
	t.cutConvs(nil)
	t.wg.Wait()
	return nil
}

// sweep looks after what no event would report: clients that reset while
// nobody reads from them, and UDP conversations that have gone idle.
func (t *Table) sweep() {
	// A second is soon enough for either; tests with a short UDPIdle want it
	// sooner.
	tick := time.NewTicker(min(time.Second, max(t.cfg.UDPIdle/4, 10*time.Millisecond)))
	defer tick.Stop()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-tick.C:
		}
		t.sweepConvs()
		t.mu.Lock()
		entries := slices.Clone(t.rules)
		t.mu.Unlock()
		for _, e := range entries {
			if e.udp != nil {
				e.udp.expire(e, time.Now().Add(-t.cfg.UDPIdle))
			}
		}
	}
}

// whyDial maps a DialGuest error to its reason.
func whyDial(err error) Reason {
	var timeout net.Error
	switch {
	case errors.Is(err, ErrNoGuest):
		return ReasonAbsent
	case isRefused(err):
		return ReasonRefused
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return ReasonTimeout
	}
	return ReasonDial
}

// shownAs is the address DialGuest is asked to show to the guest.
func shownAs(s Source, client netip.AddrPort) netip.AddrPort {
	a := client.Addr().Unmap()
	if s != SourceClient || !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a, client.Port())
}
