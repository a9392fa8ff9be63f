package lab

// Station 2: the lab that runs, and what another file changes of it. Lab.mu guards what is there, lives' states among it;
// nothing is waited for and nobody called under it. One Apply or Shutdown, Start or Stop runs at a time (Lab.turn): it waits
// for what has to stop and begins what has to start. What a node does from then on is its life's (life.go).

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/lab/topology"
	"github.com/vmnetd/vmnetd/policy"
)

const (
	// stopPatience is how long nodes have to end when they are asked: what container engines give (docker stop), and more
	// than an orderly power-off of a small guest takes.
	stopPatience = 10 * time.Second
	// killPatience is how long after that a machine has to be gone. A process that was killed is, unless a disk holds it up.
	killPatience = 10 * time.Second
	// bootPatience is how long a virtual machine counts as booting, for others to wait for the processor. One that has
	// nothing that says that it is up is so by then, or slow for another reason.
	bootPatience = 30 * time.Second
	// startsAtOnce is how many nodes are made at once that are no virtual machines: each is a few forks, whose time the
	// kernel spends under locks of its own.
	startsAtOnce = 8
)

// Config says where a lab's things are, and who hears of its networks. The zero Config is right for a test.
type Config struct {
	// File is what the lab was brought up with, for people: Status shows it. Base is the folder that its relative names are
	// relative to: the current one if empty. From changes both.
	File, Base string
	// Sockets is a folder whose path is short enough for sockets in it, Keep one for what is too large for memory (overlays).
	// What the lab makes in them it removes. Without them it makes folders of its own, where temporary files go.
	Sockets, Keep string
	// Consoles has a socket in Sockets for each node's console, as NodeStatus.Console says.
	Consoles bool
	// Env, NAME=VALUE, marks every process of the lab's, so that one whose lab was killed is found.
	Env []string
	// More, if not nil, may add to the configuration of a network before it starts: a target of memory, a door of the
	// daemon's.
	More func(*backend.Config)
	// NetworkUp is called when a network has started, before anybody is plugged in; NetworkDown before it is closed. They
	// are called one at a time. p is the policy that the network goes by: nil if the file has none.
	NetworkUp   func(n *backend.Network, p *policy.Policy)
	NetworkDown func(n *backend.Network)
	// Logger. Default slog.Default.
	Logger *slog.Logger

	// makers, in tests, are other machines.
	makers map[topology.Kind]func(*bench) (machine, error)
}

// ErrClosed is what calls get after Close.
var ErrClosed = errors.New("the lab is closed")

// Lab is a lab that runs. Its methods may be called by anybody.
type Lab struct {
	cfg   Config
	log   *slog.Logger
	own   []string // folders to remove at the end
	since time.Time
	seeds *seeds
	boots chan struct{} // a place for each virtual machine that boots
	forks chan struct{}
	turn  chan struct{} // who holds it changes what is there

	mu       sync.Mutex
	file     string
	base     string
	t        *topology.Lab // as last applied; never nil
	nodes    map[string]*Node
	networks map[string]*network
	broken   map[string]error // networks that could not be started or changed
	number   int              // of nodes ever made: their folders' names
	closed   bool
	changed  chan struct{}
}

// New makes a lab with nothing in it. Apply brings things up.
func New(c Config) (*Lab, error) {
	l := &Lab{cfg: c, log: c.Logger, file: c.File, base: c.Base, since: time.Now(), seeds: newSeeds(), t: &topology.Lab{},
		boots: make(chan struct{}, max(2, runtime.GOMAXPROCS(0))), forks: make(chan struct{}, startsAtOnce),
		turn:  make(chan struct{}, 1),
		nodes: map[string]*Node{}, networks: map[string]*network{}, broken: map[string]error{}, changed: make(chan struct{})}
	if l.log == nil {
		l.log = slog.Default()
	}
	for _, dir := range []*string{&l.cfg.Sockets, &l.cfg.Keep} {
		if *dir == "" {
			own, err := os.MkdirTemp("", "vmlab")
			if err != nil {
				l.removeOwn()
				return nil, fmt.Errorf("a folder for the lab: %w", err)
			}
			*dir = own
			l.own = append(l.own, own)
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			l.removeOwn()
			return nil, err
		}
		*dir = abs
	}
	return l, nil
}

func (l *Lab) removeOwn() {
	for _, dir := range l.own {
		os.RemoveAll(dir)
	}
}

// From says what file the next Apply is of, and what its relative names are relative to.
func (l *Lab) From(file, base string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file, l.base = file, base
}

// take waits for the turn. give returns it.
func (l *Lab) take(ctx context.Context) (give func(), err error) {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("the lab is being changed by somebody else: %w", context.Cause(ctx))
	}
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if closed {
		<-l.turn
		return nil, ErrClosed
	}
	return func() { <-l.turn }, nil
}

// bump wakes all who wait for a change. Lab.mu is held.
func (l *Lab) bump() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Changed is closed when Status is likely to be another one than now.
func (l *Lab) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// Apply has the lab as t has it, changing what is different, and returns once all that had to stop has stopped and all that
// is new has begun: Wait waits until it is ready. It returns what it changed. What cannot be is refused before anything is
// touched; an error after that is of a network that could not be started or changed, and the rest is done all the same. A
// node that had failed or was stopped is started again. While another Apply runs, it waits for it. ctx bounds the waiting for
// that one, and how long nodes have to stop before they are killed.
func (l *Lab) Apply(ctx context.Context, t *topology.Lab) ([]topology.Change, error) {
	give, err := l.take(ctx)
	if err != nil {
		return nil, err
	}
	defer give()
	if err := l.possible(t); err != nil {
		return nil, err
	}
	plan := l.plan(t)
	l.stopNodes(ctx, plan)
	errs := l.changeNetworks(context.WithoutCancel(ctx), t, plan) // what was begun is done
	l.startNodes(t, plan)
	return plan.changes, errors.Join(errs...)
}

// possible refuses what the file's reader would have, for labs that a program has made.
func (l *Lab) possible(t *topology.Lab) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t.Name != "" && t.Name != l.t.Name {
		return fmt.Errorf("this lab is %s: it cannot become %s", l.t.Name, t.Name)
	}
	ends := map[string]int{}
	networks := map[string]*topology.Network{}
	for i := range t.Networks {
		n := &t.Networks[i]
		if n.Name == "" || networks[n.Name] != nil {
			return fmt.Errorf("network %q: another one has this name, or it has none", n.Name)
		}
		networks[n.Name] = n
	}
	nodes := map[string]bool{}
	for i := range t.Nodes {
		n := &t.Nodes[i]
		if n.Name == "" || nodes[n.Name] || strings.ContainsAny(n.Name, "/\x00") {
			return fmt.Errorf("node %q: another one has this name, or it is none", n.Name)
		}
		nodes[n.Name] = true
		if l.maker(n.Kind) == nil {
			return fmt.Errorf("node %s: there is no kind %q; the kinds are netns, qemu, uml and external", n.Name, n.Kind)
		}
		for _, f := range n.Interfaces {
			if networks[f.Network] == nil {
				return fmt.Errorf("node %s: its interface %s is in %q, which is no network of the lab", n.Name, f.Name, f.Network)
			}
			ends[f.Network]++
		}
		for _, c := range n.Wait {
			if err := checkCondition(c); err != nil {
				return fmt.Errorf("node %s: %w", n.Name, err)
			}
		}
	}
	for _, n := range t.Networks {
		if n.Wire && ends[n.Name] > 2 {
			return fmt.Errorf("the wire %s has %d ends; a wire has two", n.Name, ends[n.Name])
		}
	}
	return acyclic(t)
}

// acyclic says which nodes would wait for each other for ever.
func acyclic(t *topology.Lab) error {
	after := map[string][]string{}
	for _, n := range t.Nodes {
		after[n.Name] = n.After
	}
	seen := map[string]int{} // 1: on the way, 2: done
	var walk func(string, []string) error
	walk = func(name string, way []string) error {
		way = append(way, name)
		if seen[name] == 1 {
			return fmt.Errorf("nodes wait for each other: %s", strings.Join(way[slices.Index(way, name):], " after "))
		}
		if seen[name] == 2 {
			return nil
		}
		seen[name] = 1
		for _, a := range after[name] {
			if _, there := after[a]; !there {
				return fmt.Errorf("node %s: it is to start after %s, which is no node of the lab", name, a)
			}
			if err := walk(a, way); err != nil {
				return err
			}
		}
		seen[name] = 2
		return nil
	}
	for _, n := range t.Nodes {
		if err := walk(n.Name, nil); err != nil {
			return err
		}
	}
	return nil
}

// maker makes machines of a kind.
func (l *Lab) maker(k topology.Kind) func(*bench) (machine, error) {
	if m := l.cfg.makers[k]; m != nil {
		return m
	}
	switch k {
	case topology.KindNetns:
		return newNetns
	case topology.KindQEMU:
		return newQEMU
	case topology.KindUML:
		return newUML
	case topology.KindExternal:
		return newExternal
	}
	return nil
}

// plan is what an Apply does.
type plan struct {
	changes       []topology.Change
	node, network map[string]string // by name, the action
}

// The actions of topology.Change.
const (
	actStart   = "start"
	actStop    = "stop"
	actRestart = "restart"
	actChange  = "change"
)

// plan compares the lab with what runs: with the lab that was applied last, and with what has become of that.
func (l *Lab) plan(t *topology.Lab) *plan {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.t
	if old.Name == "" {
		old = nil
	}
	p := &plan{changes: topology.Diff(old, t), node: map[string]string{}, network: map[string]string{}}
	for _, c := range p.changes {
		if name, ok := strings.CutPrefix(c.What, "node "); ok {
			p.node[name] = c.Action
		} else if name, ok := strings.CutPrefix(c.What, "network "); ok {
			p.network[name] = c.Action
		}
	}
	meant := map[string]bool{}
	for _, n := range t.Nodes {
		meant["node "+n.Name] = true
	}
	for _, n := range t.Networks {
		meant["network "+n.Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(l.nodes)) {
		if !meant["node "+name] {
			p.also(p.node, "node "+name, name, actStop, "gone")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.networks)) {
		if !meant["network "+name] {
			p.also(p.network, "network "+name, name, actStop, "gone")
		}
	}
	for _, n := range t.Networks {
		if l.networks[n.Name] == nil {
			p.also(p.network, "network "+n.Name, n.Name, actStart, "it had failed")
		} else if l.broken[n.Name] != nil {
			p.also(p.network, "network "+n.Name, n.Name, actChange, "it had failed")
		}
	}
	for i := range t.Nodes {
		n := &t.Nodes[i]
		if a := p.node[n.Name]; a == actStart || a == actRestart {
			continue
		}
		have := l.nodes[n.Name]
		if have == nil {
			p.also(p.node, "node "+n.Name, n.Name, actStart, "new")
			continue
		}
		why := ""
		switch f := have.life; {
		case f == nil:
			why = "it was stopped"
		case f.state == topology.StateFailed:
			why = "it had failed"
		case f.state == topology.StateEnded && n.Kind != topology.KindNetns && !waits(n, condExit):
			why = "it had ended"
		default:
			continue
		}
		p.also(p.node, "node "+n.Name, n.Name, actStart, why)
	}
	return p
}

func (p *plan) also(where map[string]string, what, name, action, why string) {
	switch where[name] {
	case "", actChange:
		where[name] = action
	default:
		return // it is done anyway
	}
	p.changes = append(p.changes, topology.Change{What: what, Action: action, Why: why})
}

// stopNodes stops all that stop or start anew, at once.
func (l *Lab) stopNodes(ctx context.Context, p *plan) {
	l.mu.Lock()
	var lives []*life
	var gone []*Node
	for name, action := range p.node {
		n := l.nodes[name]
		if n == nil || action == actChange {
			continue
		}
		if n.life != nil {
			lives = append(lives, n.life)
		}
		if action == actStop {
			gone = append(gone, n)
		} else {
			n.coming = true
		}
	}
	l.mu.Unlock()
	l.stop(ctx, lives)
	for _, n := range gone {
		n.remove()
	}
}

// stop ends lives, and returns when they have.
func (l *Lab) stop(ctx context.Context, lives []*life) {
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	for _, f := range lives {
		f.end(ctx)
	}
	for _, f := range lives {
		<-f.done
	}
}

// changeNetworks has the networks as t has them.
func (l *Lab) changeNetworks(ctx context.Context, t *topology.Lab, p *plan) []error {
	for name, action := range p.network {
		if action == actStop || action == actRestart {
			l.closeNetwork(name)
		}
	}
	l.seeds.set(t)
	errs := map[string]error{}
	pass := func() (again bool) {
		for _, n := range t.Networks {
			if e, tried := errs[n.Name]; tried && e == nil {
				continue
			}
			var err error
			switch p.network[n.Name] {
			case actChange:
				err = l.networks[n.Name].change(ctx, t)
			case actStart, actRestart:
				err = l.openNetwork(t, n.Name)
			default:
				if l.networks[n.Name] == nil || len(p.changes) == 0 {
					continue
				}
				err = l.networks[n.Name].change(ctx, t) // who is in it, and is called what
			}
			errs[n.Name] = err
			again = again || err != nil
		}
		return again
	}
	// One may have to give up what another is to have: a forward's port. So those that fail are tried once more.
	if pass() {
		pass()
	}
	var list []error
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.broken)
	for _, n := range t.Networks {
		if err := errs[n.Name]; err != nil {
			err = fmt.Errorf("network %s: %w", n.Name, err)
			l.broken[n.Name] = err
			list = append(list, err)
		}
	}
	l.bump()
	return list
}

func (l *Lab) openNetwork(t *topology.Lab, name string) error {
	n, err := newNetwork(t, name, l.seeds, l.log, l.cfg.More)
	if err != nil {
		return err
	}
	if l.cfg.NetworkUp != nil {
		l.cfg.NetworkUp(n.Network, n.policy)
	}
	l.mu.Lock()
	l.networks[name] = n
	l.mu.Unlock()
	l.log.Info("network is up", "network", name)
	return nil
}

func (l *Lab) closeNetwork(name string) {
	l.mu.Lock()
	n := l.networks[name]
	delete(l.networks, name)
	l.mu.Unlock()
	if n == nil {
		return
	}
	if l.cfg.NetworkDown != nil {
		l.cfg.NetworkDown(n.Network)
	}
	if err := n.Close(); err != nil {
		l.log.Warn("network did not close as it should", "network", name, "err", err)
	}
	l.log.Info("network is down", "network", name)
}

// startNodes has the nodes be t's, and starts those that have to.
func (l *Lab) startNodes(t *topology.Lab, p *plan) {
	l.mu.Lock()
	var lives []*life
	for i := range t.Nodes {
		def := &t.Nodes[i]
		n := l.nodes[def.Name]
		if n == nil {
			l.number++
			n = &Node{lab: l, name: def.Name, number: l.number, console: newConsole()}
			l.nodes[def.Name] = n
			os.RemoveAll(n.keep()) // of a lab that was killed, in the same folder
			n.serveConsole()
		} else if !sameDisk(n.t, def) {
			os.RemoveAll(n.keep()) // a copy is of the disk that it was made of
		}
		n.t = def
	}
	l.t = t
	stays := map[*life]hosted{}
	for i := range t.Nodes {
		switch n := l.nodes[t.Nodes[i].Name]; p.node[n.name] {
		case actStart, actRestart:
			lives = append(lives, n.newLife())
		default:
			if n.life != nil {
				if m, ok := n.life.made.(hosted); ok {
					stays[n.life] = m
				}
			}
		}
	}
	l.bump()
	l.mu.Unlock()
	for f, m := range stays {
		if err := m.setHosts(hosts(t, f.t)); err != nil && f.ctx.Err() == nil {
			f.log.Warn("node does not know the names of others as they are now", "err", err)
		}
	}
	for _, f := range lives { // all are there before the first looks for those that it starts after
		go f.run()
	}
}

// hosted is a machine whose /etc/hosts can be another one while it runs.
type hosted interface{ setHosts(text string) error }

func sameDisk(a, b *topology.Node) bool {
	return a.Kind == b.Kind && a.Disk == b.Disk && a.DiskFormat == b.DiskFormat && a.Overlay == b.Overlay
}

// Wait returns when all nodes are ready, or have ended with status 0; or with an error that names each that failed and why,
// once no other is on its way; or when ctx ends, with what each is still waiting for.
func (l *Lab) Wait(ctx context.Context) error {
	return l.wait(ctx, func() []*Node { return l.inOrder() })
}

// wait is Wait for some nodes, which are asked for with Lab.mu held.
func (l *Lab) wait(ctx context.Context, which func() []*Node) error {
	for {
		over := context.Cause(ctx)
		l.mu.Lock()
		changed, closed := l.changed, l.closed
		var failed, late []error
		for _, n := range which() {
			switch f := n.life; {
			case n.coming, f != nil && f.state == topology.StateStopping:
				late = append(late, fmt.Errorf("%s: it is being stopped", n.name))
			case f == nil:
				failed = append(failed, fmt.Errorf("%s: it is stopped", n.name))
			case f.state == topology.StateFailed:
				failed = append(failed, fmt.Errorf("%s: %w", n.name, f.err))
			case f.state == topology.StateWaiting, f.state == topology.StateStarting:
				late = append(late, fmt.Errorf("%s: still %s, for %s", n.name, f.state, f.held()))
			}
		}
		l.mu.Unlock()
		if closed {
			return ErrClosed
		}
		if len(late) == 0 {
			return errors.Join(failed...)
		}
		if over != nil {
			return errors.Join(append(append(failed, late...), over)...)
		}
		select {
		case <-changed:
		case <-ctx.Done(): // once more, for what is so now
		}
	}
}

// inOrder are the nodes in the file's order. Lab.mu is held.
func (l *Lab) inOrder() []*Node {
	list := make([]*Node, 0, len(l.t.Nodes))
	for i := range l.t.Nodes {
		if n := l.nodes[l.t.Nodes[i].Name]; n != nil {
			list = append(list, n)
		}
	}
	return list
}

// Status is the lab at this moment.
func (l *Lab) Status() topology.Status {
	l.mu.Lock()
	st := topology.Status{Name: l.t.Name, File: l.file, PID: os.Getpid(), Since: l.since}
	nodes := l.inOrder()
	for i := range l.t.Networks {
		n := &l.t.Networks[i]
		s := topology.NetworkStatus{Name: n.Name, Wire: n.Wire, Uplink: n.Uplink, Prefix4: n.Prefix4, Prefix6: n.Prefix6}
		if have := l.networks[n.Name]; have != nil {
			s.Since = have.Since()
			if n.Uplink {
				c := have.Config()
				s.Prefix4, s.Prefix6 = c.Prefix4, c.Prefix6
			}
		}
		if err := l.broken[n.Name]; err != nil {
			s.Error = err.Error()
		}
		st.Networks = append(st.Networks, s)
	}
	l.mu.Unlock()
	seen := l.seen()
	for _, n := range nodes {
		st.Nodes = append(st.Nodes, n.status(seen))
	}
	return st
}

// seen are the addresses that networks have seen, by network and guest's id.
func (l *Lab) seen() map[string]map[string][]netip.Addr {
	l.mu.Lock()
	networks := make(map[string]*network, len(l.networks))
	for name, n := range l.networks {
		networks[name] = n
	}
	l.mu.Unlock()
	all := map[string]map[string][]netip.Addr{}
	for name, n := range networks {
		ids := map[string][]netip.Addr{}
		for _, g := range n.Guests() {
			ids[g.ID] = g.Addrs
		}
		all[name] = ids
	}
	return all
}

// Topology is what was last applied. It is not to be written to.
func (l *Lab) Topology() *topology.Lab {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.t
}

// Node returns a node, nil if there is none of that name.
func (l *Lab) Node(name string) *Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes[name]
}

// Nodes returns all of them, in the file's order.
func (l *Lab) Nodes() []*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inOrder()
}

// Network returns a network, nil if there is none of that name.
func (l *Lab) Network(name string) *backend.Network {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.networks[name]; n != nil {
		return n.Network
	}
	return nil
}

// Networks returns all of them, wires too, in the file's order.
func (l *Lab) Networks() []*backend.Network {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []*backend.Network
	for _, t := range l.t.Networks {
		if n := l.networks[t.Name]; n != nil {
			list = append(list, n.Network)
		}
	}
	return list
}

// HTTPClient speaks HTTP with nodes by name: http://web1/ is port 80 of web1's own, in whatever network that is. What stands
// behind a dot, as in web1.internal, is not looked at. Close its idle connections when it is done with.
func (l *Lab) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		n := l.Node(host)
		if n == nil {
			first, _, _ := strings.Cut(host, ".")
			if n = l.Node(first); n == nil {
				return nil, fmt.Errorf("dial %s: the lab has no node %s", address, host)
			}
		}
		return n.Dial(ctx, network, port)
	}}}
}

// Shutdown stops all nodes, asking first and killing when ctx ends, and then closes the networks. It returns when nothing is
// left.
func (l *Lab) Shutdown(ctx context.Context) error {
	l.mu.Lock()
	l.closing(ctx) // whoever has the turn does not wait long for what is to end anyway
	l.mu.Unlock()
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	var lives []*life
	nodes := make([]*Node, 0, len(l.nodes))
	for _, n := range l.nodes {
		nodes = append(nodes, n)
		if n.life != nil {
			lives = append(lives, n.life)
		}
	}
	var networks []string
	for name := range l.networks {
		networks = append(networks, name)
	}
	l.bump()
	l.mu.Unlock()
	for _, f := range lives {
		f.end(ctx)
	}
	for _, f := range lives {
		<-f.done
	}
	for _, n := range nodes {
		n.remove()
	}
	slices.Sort(networks)
	for _, name := range networks {
		l.closeNetwork(name)
	}
	l.removeOwn()
	return nil
}

// closing has all lives begin to end: those that an Apply of the moment is about to begin are ended by Shutdown. Lab.mu is
// held.
func (l *Lab) closing(ctx context.Context) {
	for _, n := range l.nodes {
		if n.life != nil {
			n.life.end(ctx)
		}
	}
}

// Close is Shutdown with ten seconds for nodes that are asked.
func (l *Lab) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	return l.Shutdown(ctx)
}
