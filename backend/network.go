package backend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/capture"
	"github.com/vmnetd/vmnetd/dhcp"
	"github.com/vmnetd/vmnetd/dns"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/guestlog"
	"github.com/vmnetd/vmnetd/portforward"
)

// Network is a virtual network. Its methods may be called by anybody.
type Network struct {
	cfg        Config // as New was given it, but for what Reload changes: that is not read here
	log        *slog.Logger
	guestLog   *slog.Logger // of what guests cause, as often as they like
	bugLog     *slog.Logger // of bugs that guests meet: the others' lines take none of its room
	since      time.Time
	gatewayMAC mac
	linkLocal  netip.Addr                         // the gateway's
	reserved   atomic.Pointer[map[netip.Addr]mac] // Config.Static, by address
	given      atomic.Pointer[map[mac]string]     // Config.GuestNames
	doors      atomic.Pointer[[]netip.AddrPort]   // Config.Doors
	current    atomic.Pointer[Config]             // cfg, as Reload has changed it
	reloading  sync.Mutex
	bound      []portforward.Rule // of current's Forwards; under reloading

	flows    *flows.Table
	dhcp     *dhcp.Server
	dns      *dns.Server
	forwards *portforward.Table
	seg      segment
	inside   inside
	limits   limitTable
	impairs  impairTable
	keep     keeper
	captures captures

	router6   atomic.Bool
	nextGuest atomic.Uint64
	nextIPID  atomic.Uint32
	pingSaid  [2]sync.Once // by family
	warned    warnings
	events    *Events
	policyMu  sync.Mutex // held while SetPolicy works

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup // the network's own goroutines and its ports

	coming chan struct{} // a place for each guest that has not waited for anything yet

	mu     sync.Mutex
	closed bool
	ends   int // of a wire, that are taken
}

// comingAtOnce is how many guests are let in at a time; the others wait their turn. A stack takes a processor for a tenth
// of a millisecond, and a thousand that come at once would all be before the next frame of a guest that is here. Two keep
// two processors busy when a lab of VMs starts. A guest has come when it first has nothing to do; one that goes before
// that, as who plugs in and out in a loop, is in the way until it has gone, but not longer than comingTime, a hundred
// times what it takes.
const (
	comingAtOnce = 2
	comingTime   = 50 * time.Millisecond
)

// ErrClosed is what calls get after Close.
var ErrClosed = errors.New("network is closed")

// New makes a network. It serves nobody until Serve.
func New(c Config) (*Network, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	n := &Network{cfg: c, log: c.Logger.With("network", c.Name),
		guestLog: slog.New(guestlog.New(c.Logger.Handler())).With("network", c.Name), bugLog: slog.New(guestlog.New(c.Logger.Handler())).With("network", c.Name), since: time.Now(), coming: make(chan struct{}, comingAtOnce), gatewayMAC: macOf(c.GatewayMAC)}
	if !c.plain() {
		n.linkLocal = linkLocal(c.GatewayMAC)
	}
	n.seg.moves = c.plain()
	n.seg.init(n.shown)
	if err := n.limits.init(&c); err != nil {
		return nil, err
	}
	if err := n.impairs.init(&c); err != nil {
		return nil, err
	}
	n.warned.init()
	n.events = newEvents(c.Name)
	policy := c.Policy
	if policy == nil {
		policy = c.defaultPolicy(n.linkLocal)
	}
	n.flows = flows.NewTable(c.Limits, closedDoors{policy, n, c.Policy == nil})
	n.current.Store(&c)
	n.doors.Store(&c.Doors)
	if err := n.startServices(); err != nil {
		return nil, err
	}
	n.forwards = portforward.New(portforward.Config{Guest: n, Logger: n.log, Present: n.present, Allow: n.allowForward, Changed: n.forwardEvent})
	n.ctx, n.stop = context.WithCancel(context.Background())
	if !c.plain() {
		n.router6.Store(n.hasRoute6())
		n.goes(n.advertise)
	}
	n.goes(n.tend)
	if c.Memory != nil {
		c.Memory.join(n)
	}
	if n.bound, err = n.forwards.AddAll(n.ctx, c.Forwards); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Network) goes(f func()) {
	n.wg.Add(1)
	go func() { defer n.wg.Done(); f() }()
}

// saveEvery is how much of the leases' history a crash may lose. Nothing is written while they do not change.
const saveEvery = time.Second

// tend does what is due from time to time: idle UDP, leases that ran out, the state file.
func (n *Network) tend() {
	t := time.NewTicker(udpSweep)
	defer t.Stop()
	save := time.NewTicker(saveEvery)
	defer save.Stop()
	look := time.NewTicker(watchEvery)
	defer look.Stop()
	var w watch
	var h health
	if !n.cfg.plain() {
		n.look(&h)
	}
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-save.C:
			n.save()
			n.saveAdded(false)
			n.each("sample", (*port).sample)
			continue
		case <-look.C:
			w.look(n)
			continue
		case <-t.C:
		}
		if n.cfg.plain() {
			continue
		}
		n.each("sweep", func(p *port) { p.udp.sweep() })
		n.inside.sweep()
		n.dhcp.Sweep()
		n.look(&h)
	}
}

func (n *Network) stateFile() string {
	return filepath.Join(n.cfg.StateDir, "leases-"+n.cfg.Name+".json")
}

func (n *Network) save() {
	if n.cfg.StateDir == "" {
		return
	}
	const what = "leases are not saved"
	if err := n.dhcp.Save(n.stateFile()); err != nil {
		n.complain(what, err)
	} else {
		n.recovered(what)
	}
}

// ServePort plugs a guest in and carries its frames until its wire ends, ctx does, or the network is closed. A wire that
// ends is not an error. It closes l.
func (n *Network) ServePort(ctx context.Context, l link.Link, c PortConfig) (err error) {
	name := c.Name
	free, err := n.takeEnd()
	if err != nil {
		l.Close()
		return err
	}
	defer free()
	tap := capture.Around(l)
	l = tap
	wire := l
	if n.cfg.Capture != nil {
		l = n.cfg.Capture(l)
	}
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		l.Close()
		return ErrClosed
	}
	n.wg.Add(1)
	n.mu.Unlock()
	defer n.wg.Done()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	select {
	case n.coming <- struct{}{}:
	case <-ctx.Done():
		l.Close()
		return ctx.Err()
	}
	come := sync.OnceFunc(func() { <-n.coming })
	defer come()
	p, err := n.newPort(ctx, l, wire, c)
	if err != nil {
		l.Close()
		return err
	}
	p.come = come
	defer time.AfterFunc(comingTime, come).Stop()
	defer func() { // of what is done before run, and after
		if r := recover(); r != nil {
			p.met("serve", r, debug.Stack())
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	n.captures.came(p, tap)
	defer n.captures.gone(p)
	n.seg.add(p)
	if c.Plugged != nil {
		c.Plugged(p.id)
	}
	if p.stack != nil {
		p.advertise(n.router6.Load()) // a guest that comes back over a new wire does not ask again
	}
	p.log.Info("guest plugged in", "link", name)
	n.note(EventGuestIn, p.id, name, "plugged in at %s", name)
	err = p.run()
	n.dhcp.Detach(p.id)
	n.forget(p.id)
	p.log.Info("guest gone", "link", name, "error", err)
	if err != nil {
		n.note(EventGuestGone, p.id, name, "gone: %v", err)
	} else {
		n.note(EventGuestGone, p.id, name, "gone")
	}
	return err
}

// Shutdown closes the network, but lets conversations go on until they have ended or ctx has.
func (n *Network) Shutdown(ctx context.Context) error {
	n.saveAdded(true)
	n.forwards.Shutdown(ctx)
	for n.busy() && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond): // short beside the second that people wait at most
		}
	}
	return n.Close()
}

// busy says whether a conversation is going on that has a natural end.
func (n *Network) busy() bool {
	return slices.ContainsFunc(n.flows.List(), func(f flows.Snapshot) bool { return f.Proto == flows.TCP })
}

// Close ends all conversations and wires and waits until everything has stopped.
func (n *Network) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		n.wg.Wait()
		return nil
	}
	n.closed = true
	n.mu.Unlock()
	n.saveAdded(true)
	n.forwards.Close()
	if n.cfg.Memory != nil {
		n.cfg.Memory.leave(n)
	}
	n.inside.close()
	n.flows.EndAll(flows.ReasonShutdown)
	n.stop()
	n.wg.Wait()
	n.captures.close()
	n.dns.Close()
	n.events.close()
	n.flows.Close()
	if n.cfg.StateDir != "" {
		return n.dhcp.Save(n.stateFile())
	}
	return nil
}

// Config returns the configuration in force, with its defaults.
func (n *Network) Config() Config { return *n.current.Load() }

// Flows is the table of conversations.
func (n *Network) Flows() *flows.Table { return n.flows }

// Forwards is the table of port forwards.
func (n *Network) Forwards() *portforward.Table { return n.forwards }

// DNS is the resolver that guests ask.
func (n *Network) DNS() *dns.Server { return n.dns }

// Leases returns the addresses that DHCP has leased.
func (n *Network) Leases() []dhcp.Lease { return n.dhcp.Leases() }

// ReleaseLease takes an address back.
func (n *Network) ReleaseLease(a netip.Addr) error { return n.dhcp.Release(a) }

// Guests returns who is plugged in, oldest first.
func (n *Network) Guests() []GuestInfo {
	list := []GuestInfo{}
	for _, p := range n.seg.all() {
		g := p.info()
		u := n.flows.Use(p.id)
		g.Flows = u.Flows.Now + u.UDP.Now + u.Pings.Now
		list = append(list, g)
	}
	return list
}

func (p *port) info() GuestInfo {
	g := GuestInfo{
		ID: p.id, Link: p.name, Port: p.role.String(), Since: p.since, Addrs: []netip.Addr{},
		RxFrames: p.rxFrames.Load(), RxBytes: p.rxBytes.Load(), TxFrames: p.txFrames.Load(), TxBytes: p.txBytes.Load(),
		MTU: int(p.declared.Load()), Queued: int(p.queue.bytes.Load()), QueueSize: int(p.queue.limit.Load()), Dropped: p.dropped(),
	}
	macs, addrs := p.net.seg.shownBy(p)
	if len(macs) > 0 {
		g.MAC = macs[0].String()
	}
	if len(macs) > 0 {
		g.Name = p.net.givenName(macs[0])
	}
	for _, l := range p.net.dhcp.ByGuest(p.id) {
		if g.Name == "" {
			g.Name = l.Name
		}
		addrs = append(addrs, l.Addr)
	}
	slices.SortFunc(addrs, func(a, b netip.Addr) int {
		if ll := boolInt(a.IsLinkLocalUnicast()) - boolInt(b.IsLinkLocalUnicast()); ll != 0 {
			return ll
		}
		return a.Compare(b)
	})
	g.Addrs = append(g.Addrs, slices.Compact(addrs)...)
	return g
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Kick ends a guest's wire. The VMM may come back.
func (n *Network) Kick(id string) error {
	for _, p := range n.seg.all() {
		if p.id == id {
			p.stop()
			return nil
		}
	}
	return fmt.Errorf("guest %q is not plugged in", id)
}

// Status returns the network at this moment.
func (n *Network) Status() Status {
	c := &n.cfg
	s := Status{
		Name: c.Name, Prefix4: c.Prefix4, Gateway4: c.Gateway4, DNS4: c.DNS4,
		Prefix6: c.Prefix6, Gateway6: c.Gateway6, DNS6: c.DNS6, MTU: c.MTU, LargeMTU: c.LargeMTU, LargeNICs: c.LargeNICs, GatewayMAC: c.GatewayMAC.String(),
		NoUplink: c.NoUplink, Wire: c.Wire, Isolate: c.Isolate, Strict: c.StrictLeases, Routes: c.Routes,
		Since: n.since, Guests: len(n.seg.all()), Flows: n.flows.Len(), FlowsTotal: n.flows.Opened(),
		Refused: n.flows.Counts(), Router6: n.router6.Load(), Ping4: "ok", Ping6: "ok", Resolvers: []string{},
		Warnings: n.warned.list(),
	}
	if c.plain() {
		s.Ping4, s.Ping6 = ErrNoUplink.Error(), ErrNoUplink.Error()
		return s
	}
	if p, ok := c.Egress.(egress.Pinger); ok {
		e4, e6 := p.PingAllowed()
		if e4 != nil {
			s.Ping4 = e4.Error()
		}
		if e6 != nil {
			s.Ping6 = e6.Error()
		}
	}
	d := n.dns.Status()
	for _, r := range d.Resolvers {
		s.Resolvers = append(s.Resolvers, r.String())
	}
	if d.Problem != "" {
		s.Warnings = append(s.Warnings, "dns: "+d.Problem)
	}
	return s
}

// warnings keeps the last message of each kind, and logs each kind once a minute at most.
type warnings struct {
	mu   sync.Mutex
	last map[string]warning
}

type warning struct {
	text   string
	at     time.Time
	logged time.Time
	said   bool // logged, and not yet that it is over
}

// warnKept is how long a warning stays in the status after it was last met.
const warnKept = 10 * time.Minute

func (w *warnings) init() { w.last = make(map[string]warning) }

// note remembers a warning and says whether it is to be logged now.
func (w *warnings) note(kind, text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.last[kind]
	now := time.Now()
	log := now.Sub(old.logged) > time.Minute
	if log {
		old.logged = now
	}
	w.last[kind] = warning{text, now, old.logged, old.said || log}
	return log
}

// over forgets a warning and says whether it was logged.
func (w *warnings) over(kind string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	x, was := w.last[kind]
	if !was || x.text == "" {
		return false
	}
	w.last[kind] = warning{logged: x.logged} // the next is no sooner logged for that
	return x.said
}

func (w *warnings) list() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for kind, x := range w.last {
		if x.text == "" || time.Since(x.at) > warnKept {
			continue
		}
		list = append(list, kind+": "+x.text)
	}
	slices.Sort(list)
	return list
}

// complain tells people of something that this host lacks or that fails. Guests may cause it as often as they like.
func (n *Network) complain(what string, err error) {
	if n.warned.note(what, err.Error()) {
		n.log.Warn(what, "error", err)
		n.note(EventWarning, "", what, "%s: %v", what, err)
	}
}

// recovered takes a complaint back.
func (n *Network) recovered(what string) {
	if n.warned.over(what) {
		n.log.Info("works again", "what", what)
		n.note(EventRecovered, "", what, "%s: works again", what)
	}
}

// noPing says once that this host lets nobody ping.
func (n *Network) noPing(v6 bool, err error) {
	n.pingSaid[boolInt(v6)].Do(func() { n.log.Warn("guests' pings go unanswered", "error", err) })
}
