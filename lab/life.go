package lab

// A node, and its life: from a start to the stop after it. One goroutine leads it (run) and nobody else changes its state,
// but for what notices that its command has ended (mind): both under Lab.mu. What else runs for it, a wire an interface say,
// is in its wait group, and run returns, closing done, when all of it has ended.
//
//	waiting ── those in After are ready ──> starting ── up, set up, begun, Wait ──> ready ── its command ends ──> ended
//	   │                                       │                                      │
//	   └───────────────────────────────────────┴──────────────> failed <──────────────┘
//
// What has failed is left as it is, to be looked at, until it is stopped or started again.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/lab/topology"
)

const (
	// startTimeout is how long a node has until it is ready, if the file does not say: what a small guest needs without KVM
	// several times over. diskTimeout is that of one that boots a distribution from its disk.
	startTimeout = time.Minute
	diskTimeout  = 5 * time.Minute
	// A command that ends and is to be started again waits for restartFirst, twice as long each time up to restartMost; after
	// restartGood of running it is as new. As container engines have it (docker run --restart).
	restartFirst = 100 * time.Millisecond
	restartMost  = time.Minute
	restartGood  = 10 * time.Second
	// errorTail is how much of a command's standard error an error tells.
	errorTail = 2 << 10
)

// Node is one of a lab's. It stays the same when its machine is started again.
type Node struct {
	lab     *Lab
	name    string
	number  int // of its folders
	console *Console
	served  chan struct{} // closed when its console's socket is; nil without one
	door    string        // the console's socket

	// Guarded by Lab.mu.
	t      *topology.Node
	life   *life // nil: it is stopped
	coming bool  // it will be started in a moment
}

// life is a node from a start to the stop after it.
type life struct {
	n    *Node
	lab  *Lab
	t    *topology.Node // as it was started
	top  *topology.Lab
	log  *slog.Logger
	ctx  context.Context // ends when it is to be stopped
	kill context.CancelFunc
	wire context.Context // ends when the machine is gone, and its interfaces' wires with it
	cut  context.CancelFunc
	over chan struct{} // closed when its command or machine has ended for good
	wg   sync.WaitGroup
	done chan struct{} // closed when nothing of it is left

	stopping sync.Once
	patience context.Context // of who stops it; set before ctx ends

	// Guarded by Lab.mu.
	state    topology.State
	err      error
	waits    string  // what holds it up
	last     error   // why that was not so when it was last looked at
	made     machine // to be stopped
	m        machine // the same once it has started, for others to use
	started  time.Time
	ready    time.Duration
	restarts int
	exit     *int
	abort    context.CancelCauseFunc // of what it does until it is ready
}

// newLife is one that is about to begin. Lab.mu is held.
func (n *Node) newLife() *life {
	f := &life{n: n, lab: n.lab, t: n.t, top: n.lab.t, log: n.lab.log.With("node", n.name), state: topology.StateWaiting,
		over: make(chan struct{}), done: make(chan struct{})}
	f.ctx, f.kill = context.WithCancel(context.Background())
	f.wire, f.cut = context.WithCancel(context.Background())
	n.life, n.coming = f, false
	return f
}

// end has it stop, and does not wait. ctx is how long it has to do so itself.
func (f *life) end(ctx context.Context) {
	f.stopping.Do(func() {
		f.patience = ctx
		f.kill()
	})
}

// update changes what Lab.mu guards, and tells who waits.
func (f *life) update(change func()) {
	f.lab.mu.Lock()
	defer f.lab.mu.Unlock()
	change()
	f.lab.bump()
}

// run is the whole life.
func (f *life) run() {
	defer close(f.done)
	defer f.finish()
	defer f.contain("node")
	ctx, abort := context.WithCancelCause(f.ctx)
	f.lab.mu.Lock()
	f.abort = abort
	f.lab.mu.Unlock()
	defer abort(nil)
	if err := f.rise(ctx); err != nil {
		if f.ctx.Err() == nil {
			f.fail(err)
		}
	} else {
		var after time.Duration
		f.update(func() {
			if f.state != topology.StateStarting {
				return // it has failed meanwhile
			}
			f.waits, f.last, f.ready = "", nil, time.Since(f.started)
			f.state = topology.StateReady
			if f.exit != nil {
				f.state = topology.StateEnded
			}
			after = f.ready
		})
		if after > 0 {
			f.log.Info("node is ready", "after", after.Round(time.Millisecond))
		}
	}
	<-f.ctx.Done()
}

// contain ends a life that has met a bug of ours, in place of the process.
func (f *life) contain(what string) {
	if r := recover(); r != nil {
		f.log.Error("a bug was met", "in", what, "panic", r, "stack", string(debug.Stack()))
		f.fail(fmt.Errorf("a bug of vmnetd's: %v", r))
	}
}

// spawn runs something of the life's.
func (f *life) spawn(what string, do func()) {
	f.wg.Go(func() {
		defer f.contain(what)
		do()
	})
}

// fail has it be failed, unless it is so already or is being stopped.
func (f *life) fail(err error) {
	f.lab.mu.Lock()
	again := f.state == topology.StateFailed || f.state == topology.StateStopping
	if !again {
		f.state, f.err, f.waits, f.last = topology.StateFailed, err, "", nil
		if f.abort != nil {
			f.abort(err)
		}
		f.lab.bump()
	}
	f.lab.mu.Unlock()
	if !again {
		f.log.Warn("node has failed", "err", err)
		fmt.Fprintf(f.n.console, "\r\n[%s has failed: %v]\r\n", f.n.name, err)
	}
}

// held is what holds it up. Lab.mu is held.
func (f *life) held() string {
	s := f.waits
	if s == "" {
		s = "its turn"
	}
	if f.last != nil {
		s += ": " + f.last.Error()
	}
	return s
}

// holds says what holds it up, and, if it was looked at, why that is not so.
func (f *life) holds(what string, why error) {
	f.lab.mu.Lock()
	defer f.lab.mu.Unlock()
	first := f.waits != what
	f.waits, f.last = what, why
	if first {
		f.lab.bump()
	}
}

// rise brings it up until it is ready.
func (f *life) rise(ctx context.Context) error {
	if err := f.follow(ctx); err != nil {
		return err
	}
	virtual := f.t.Kind == topology.KindQEMU || f.t.Kind == topology.KindUML
	slots, most := f.lab.forks, time.Duration(0)
	if virtual {
		slots, most = f.lab.boots, bootPatience
	}
	f.holds("other nodes' start", nil)
	free, err := slot(ctx, slots, most)
	if err != nil {
		return err
	}
	defer free()

	limit := f.t.Timeout
	if limit == 0 {
		limit = startTimeout
		if f.t.Disk != "" {
			limit = diskTimeout
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTimeout)
	defer cancel()
	f.update(func() { f.state, f.started = topology.StateStarting, time.Now() })
	f.n.console.began()
	m, err := f.make(ctx)
	if err != nil {
		return f.late(ctx, limit, err)
	}
	if !virtual {
		free()
	}
	if f.t.Kind != topology.KindNetns { // whose command does not run yet
		f.spawn("end", func() { f.mind(m, false) })
	}
	if err := f.up(ctx, m); err != nil {
		return f.late(ctx, limit, err)
	}
	free()
	for i, text := range f.t.Setup {
		f.holds(fmt.Sprintf("its setup: %s", text), nil)
		if err := f.setUp(ctx, m, text); err != nil {
			return f.late(ctx, limit, fmt.Errorf("setup, line %d (%s): %w", i+1, text, err))
		}
	}
	if err := m.begin(ctx); err != nil {
		return f.late(ctx, limit, err)
	}
	if f.t.Kind == topology.KindNetns && len(f.t.Command) > 0 {
		f.spawn("command", func() { f.mind(m, f.t.Restart) })
		if len(f.t.Wait) == 0 && !f.t.Restart {
			f.holds("its command to go on running", nil)
			select {
			case <-f.over: // with another status than 0 it has failed, and ctx ends
			case <-time.After(settle):
			case <-ctx.Done():
			}
			if err := context.Cause(ctx); err != nil {
				return f.late(ctx, limit, err)
			}
			return nil
		}
	}
	for _, c := range f.t.Wait {
		if err := f.await(ctx, m, c); err != nil {
			return f.late(ctx, limit, err)
		}
	}
	return nil
}

var errTimeout = errors.New("it has taken too long")

// late is err, or that it took too long and what for, and what it said last.
func (f *life) late(ctx context.Context, limit time.Duration, err error) error {
	cause := context.Cause(ctx)
	if cause == nil {
		return err
	}
	if cause != errTimeout {
		return cause // it was aborted, and that is why
	}
	f.lab.mu.Lock()
	held := f.held()
	f.lab.mu.Unlock()
	return f.said(fmt.Errorf("after %v still waiting for %s", limit, held))
}

// said adds the last line of the console to an error.
func (f *life) said(err error) error {
	if line := f.n.console.LastLine(); line != "" {
		if len(line) > 200 { // of a terminal's line or two
			line = line[:200] + "…"
		}
		return fmt.Errorf("%w; its console's last line: %s", err, line)
	}
	return err
}

// slot takes a place for at most so long, 0 for until it is given back, which may be done twice.
func slot(ctx context.Context, slots chan struct{}, most time.Duration) (free func(), err error) {
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	free = sync.OnceFunc(func() { <-slots })
	if most > 0 {
		t := time.AfterFunc(most, free)
		once := free
		free = func() {
			t.Stop()
			once()
		}
	}
	return free, nil
}

// follow waits until all are ready that it starts after.
func (f *life) follow(ctx context.Context) error {
	for {
		f.lab.mu.Lock()
		changed := f.lab.changed
		held := ""
		var err error
		for _, name := range f.t.After {
			dep := f.lab.nodes[name]
			if dep == nil || dep.life == nil {
				held = name + ", which is stopped"
				continue
			}
			switch d := dep.life; d.state {
			case topology.StateReady, topology.StateEnded:
			case topology.StateFailed:
				err = fmt.Errorf("not started: %s, which it starts after, has failed", name)
			default:
				held = name
			}
		}
		f.lab.mu.Unlock()
		if err != nil || held == "" {
			return err
		}
		f.holds(held, nil)
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// make makes the machine and starts it.
func (f *life) make(ctx context.Context) (machine, error) {
	f.holds("its machine to start", nil)
	b, err := f.bench()
	if err != nil {
		return nil, err
	}
	m, err := f.lab.maker(f.t.Kind)(b)
	if err != nil {
		return nil, err
	}
	f.lab.mu.Lock()
	f.made = m
	f.lab.mu.Unlock()
	if err := m.start(ctx); err != nil {
		return nil, f.said(err)
	}
	f.update(func() { f.m = m })
	return m, nil
}

// bench is what the machine stands on.
func (f *life) bench() (*bench, error) {
	l := f.lab
	b := &bench{lab: f.top, node: f.t, dir: f.n.dir(), keep: f.n.keep(), console: f.n.console, env: slices.Clone(l.cfg.Env),
		seed: l.seeds.url(f.top, f.n.name), log: f.log}
	l.mu.Lock()
	b.base = l.base
	b.hosts = hosts(l.t, f.t) // as it is now: it may have waited for others
	nets := make([]*network, len(f.t.Interfaces))
	for i, t := range f.t.Interfaces {
		if nets[i] = l.networks[t.Network]; nets[i] == nil {
			err := l.broken[t.Network]
			if err == nil {
				err = fmt.Errorf("network %s is not there", t.Network)
			}
			l.mu.Unlock()
			return nil, err
		}
	}
	l.mu.Unlock()
	if b.base == "" {
		b.base = "."
	}
	base, err := filepath.Abs(b.base)
	if err != nil {
		return nil, err
	}
	b.base = base
	for _, dir := range []string{b.dir, b.keep} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	b.resolv = f.resolv(nets)
	// A wire ends with the machine, and not when that is asked to stop: a guest may say goodbye to others.
	b.plug = func(i int, w link.Link) {
		f.spawn("wire", func() {
			if err := nets[i].plug(f.wire, f.n.name, &f.t.Interfaces[i], w); err != nil {
				f.log.Info("an interface's wire has ended", "interface", f.t.Interfaces[i].Name, "err", err)
			}
		})
	}
	b.dialNetwork = func(ctx context.Context, i int, network, port string) (net.Conn, error) {
		if i < 0 || i >= len(nets) || !f.uplink(i) {
			return nil, fmt.Errorf("%s: a network without an uplink has no gateway to dial from", f.n.name)
		}
		addrs := f.addrs(i, nil)
		if len(addrs) == 0 {
			return nil, fmt.Errorf("%s: no address of its interface %s is known yet", f.n.name, f.t.Interfaces[i].Name)
		}
		var first error
		for _, a := range addrs {
			if strings.HasSuffix(network, "4") && !a.Is4() || strings.HasSuffix(network, "6") && a.Is4() {
				continue
			}
			c, err := nets[i].DialContext(ctx, network, net.JoinHostPort(a.String(), port))
			if err == nil {
				return c, nil
			}
			if first == nil {
				first = err
			}
		}
		if first == nil {
			first = fmt.Errorf("%s: its interface %s has no address for %s", f.n.name, f.t.Interfaces[i].Name, network)
		}
		return nil, first
	}
	return b, nil
}

// uplink says that interface i is in a network with one.
func (f *life) uplink(i int) bool {
	for _, n := range f.top.Networks {
		if n.Name == f.t.Interfaces[i].Network {
			return n.Uplink
		}
	}
	return false
}

// addrs are those of interface i, as its network has seen them, global ones first and IPv4 first among those; or else as
// they are set. seen, if not nil, is what Lab.seen said.
func (f *life) addrs(i int, seen map[string]map[string][]netip.Addr) []netip.Addr {
	t := &f.t.Interfaces[i]
	var list []netip.Addr
	f.lab.mu.Lock()
	n := f.lab.networks[t.Network]
	f.lab.mu.Unlock()
	if n != nil {
		if id := n.guest(f.n.name, t.Name); id != "" {
			if seen != nil {
				list = slices.Clone(seen[t.Network][id])
			} else {
				for _, g := range n.Guests() {
					if g.ID == id {
						list = slices.Clone(g.Addrs)
					}
				}
			}
		}
	}
	if !f.uplink(i) { // where nobody but the lab says what they are
		for _, p := range t.Addrs {
			if !slices.Contains(list, p.Addr()) {
				list = append(list, p.Addr())
			}
		}
	}
	slices.SortStableFunc(list, func(a, b netip.Addr) int {
		if x, y := a.IsLinkLocalUnicast(), b.IsLinkLocalUnicast(); x != y {
			if x {
				return 1
			}
			return -1
		}
		return a.BitLen() - b.BitLen()
	})
	return list
}

// hosts is /etc/hosts for a node: itself, and the others by fixed addresses in networks that it is in too; of one that it
// has no network in common with, all.
func hosts(l *topology.Lab, self *topology.Node) string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	near := map[string]bool{}
	for _, i := range self.Interfaces {
		near[i.Network] = true
	}
	mine := 0
	for k := range l.Nodes {
		n := &l.Nodes[k]
		var close, far []netip.Addr
		for _, i := range n.Interfaces {
			for _, p := range i.Addrs {
				if near[i.Network] {
					close = append(close, p.Addr())
				} else {
					far = append(far, p.Addr())
				}
			}
		}
		if len(close) == 0 {
			close = far
		}
		for _, a := range close {
			fmt.Fprintf(&b, "%s %s\n", a, n.Name)
		}
		if n.Name == self.Name {
			mine = len(close)
		}
	}
	if mine == 0 {
		fmt.Fprintf(&b, "127.0.1.1 %s\n", self.Name) // as Debian has it for a host whose addresses come and go
	}
	return b.String()
}

// resolv is /etc/resolv.conf: the first network's that answers.
func (f *life) resolv(nets []*network) string {
	for i, n := range nets {
		c := n.Config()
		if !f.uplink(i) || f.t.Interfaces[i].Mirror || !c.DNS4.IsValid() {
			continue
		}
		var b strings.Builder
		fmt.Fprintf(&b, "nameserver %s\n", c.DNS4)
		if c.DNS6.IsValid() {
			fmt.Fprintf(&b, "nameserver %s\n", c.DNS6)
		}
		fmt.Fprintf(&b, "search %s\n", strings.Join(append([]string{c.Domain}, c.Search...), " "))
		return b.String()
	}
	return ""
}

// setUp runs a line of Setup. What it says is on the console.
func (f *life) setUp(ctx context.Context, m machine, text string) error {
	var said tail
	code, err := m.exec(ctx, Command{Args: []string{"sh", "-c", text}, Stdout: f.n.console, Stderr: io.MultiWriter(f.n.console, &said)})
	if err != nil {
		return err
	}
	if code != 0 {
		return said.because(code)
	}
	return nil
}

// tail keeps the end of what a command says of its errors.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - errorTail; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

// because is an error with it.
func (t *tail) because(code int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := &ExitError{Status: code, Stderr: bytes.TrimSpace(bytes.ToValidUTF8(t.buf, []byte("?")))}
	return e
}

// ExitError is a command's in a node that has ended with another status than 0.
type ExitError struct {
	Status int
	Stderr []byte // the end of it
}

func (e *ExitError) Error() string {
	if len(e.Stderr) == 0 {
		return fmt.Sprintf("exit status %d", e.Status)
	}
	return fmt.Sprintf("exit status %d: %s", e.Status, e.Stderr)
}

// mind notices that the command or machine ends, and starts a command again that is to be.
func (f *life) mind(m machine, again bool) {
	pause := restartFirst
	for {
		ended := m.ended()
		if ended == nil {
			return
		}
		since := time.Now()
		select {
		case <-ended:
		case <-f.ctx.Done():
			return
		}
		code, err := m.status()
		if !again {
			f.n.console.quiet()
			f.gone(code, err)
			return
		}
		if time.Since(since) >= restartGood {
			pause = restartFirst
		}
		f.log.Info("node's command has ended and is started again", "status", code, "err", err, "in", pause)
		select {
		case <-time.After(pause):
		case <-f.ctx.Done():
			return
		}
		pause = min(2*pause, restartMost)
		if err := m.begin(f.ctx); err != nil {
			if f.ctx.Err() == nil {
				f.fail(fmt.Errorf("its command could not be started again: %w", err))
			}
			return
		}
		f.update(func() { f.restarts++ })
	}
}

// gone says that it has ended by itself.
func (f *life) gone(code int, err error) {
	what := "its machine"
	if f.t.Kind == topology.KindNetns {
		what = "its command"
	}
	defer close(f.over)
	f.lab.mu.Lock()
	f.exit = &code
	starting := f.state == topology.StateStarting
	if f.state == topology.StateReady && code == 0 && err == nil {
		f.state = topology.StateEnded
	}
	f.lab.bump()
	f.lab.mu.Unlock()
	switch {
	case f.ctx.Err() != nil:
		return // it was stopped
	case err != nil:
		f.fail(f.said(fmt.Errorf("%s has ended: %w", what, err)))
	case code != 0:
		f.fail(f.said(fmt.Errorf("%s has ended with status %d", what, code)))
	case starting && f.t.Kind != topology.KindNetns && !waits(f.t, condExit):
		// A netns node's may have left daemons behind; of a machine nothing is left.
		f.fail(f.said(fmt.Errorf("%s has ended before it was ready", what)))
	default:
		f.log.Info("node has ended")
	}
}

// finish ends all that there is, once it is to be stopped.
func (f *life) finish() {
	<-f.ctx.Done()
	f.update(func() {
		if f.state != topology.StateFailed {
			f.state = topology.StateStopping
		}
	})
	f.lab.mu.Lock()
	m := f.made
	f.lab.mu.Unlock()
	if m != nil {
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			defer f.contain("stop")
			if err := m.stop(f.patience); err != nil {
				f.log.Warn("node did not stop as it should", "err", err)
			}
		}()
		select {
		case <-stopped:
		case <-after(f.patience, killPatience):
			f.log.Error("node does not stop; what is left of it is left behind", "pids", m.pids())
		}
	}
	f.cut()
	f.n.console.hangUp()
	f.wg.Wait()
	os.RemoveAll(f.n.dir())
	f.update(func() {
		if f.n.life == f {
			f.n.life = nil
		}
	})
	f.log.Info("node has stopped")
}

// after is closed so long after ctx has ended.
func after(ctx context.Context, d time.Duration) <-chan struct{} {
	done := make(chan struct{})
	context.AfterFunc(ctx, func() { time.AfterFunc(d, func() { close(done) }) })
	return done
}

func (n *Node) dir() string  { return filepath.Join(n.lab.cfg.Sockets, "n"+strconv.Itoa(n.number)) }
func (n *Node) keep() string { return filepath.Join(n.lab.cfg.Keep, "k"+strconv.Itoa(n.number)) }

// serveConsole opens the console's socket.
func (n *Node) serveConsole() {
	if !n.lab.cfg.Consoles {
		return
	}
	path := filepath.Join(n.lab.cfg.Sockets, "c"+strconv.Itoa(n.number))
	os.Remove(path) // of a lab that was killed, in the same folder
	ln, err := net.Listen("unix", path)
	if err != nil {
		n.lab.log.Warn("a console cannot be watched", "node", n.name, "err", err)
		return
	}
	n.door, n.served = path, make(chan struct{})
	go func() {
		defer close(n.served)
		if err := n.console.Serve(ln); err != nil {
			n.lab.log.Warn("a console cannot be watched any more", "node", n.name, "err", err)
		}
	}()
}

// remove ends what is left of a node that is stopped and will not come back.
func (n *Node) remove() {
	n.console.close()
	if n.served != nil {
		<-n.served
	}
	os.RemoveAll(n.dir())
	os.RemoveAll(n.keep())
	n.lab.mu.Lock()
	if n.lab.nodes[n.name] == n {
		delete(n.lab.nodes, n.name)
	}
	n.lab.bump()
	n.lab.mu.Unlock()
}

// Name is its name.
func (n *Node) Name() string { return n.name }

// Topology is what it is meant to be. It is not to be written to.
func (n *Node) Topology() *topology.Node {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	return n.t
}

// Status is the node at this moment.
func (n *Node) Status() topology.NodeStatus { return n.status(n.lab.seen()) }

func (n *Node) status(seen map[string]map[string][]netip.Addr) topology.NodeStatus {
	n.lab.mu.Lock()
	t, f := n.t, n.life
	st := topology.NodeStatus{Name: n.name, Kind: t.Kind, State: topology.StateStopped, Console: n.door}
	var m machine
	if f != nil {
		st.State, st.Started, st.ReadyAfter, st.Restarts, st.ExitStatus = f.state, f.started, f.ready, f.restarts, f.exit
		if f.err != nil {
			st.Error = f.err.Error()
		}
		if f.state == topology.StateWaiting || f.state == topology.StateStarting {
			st.WaitsFor = f.held()
		}
		m = f.m
	}
	n.lab.mu.Unlock()
	if m != nil {
		st.PIDs = m.pids()
	}
	for i := range t.Interfaces {
		d := &t.Interfaces[i]
		s := topology.InterfaceStatus{Name: d.Name, Network: d.Network, MAC: d.MAC.String()}
		if f != nil && i < len(f.t.Interfaces) {
			s.Addrs = f.addrs(i, seen)
			n.lab.mu.Lock()
			net := n.lab.networks[d.Network]
			n.lab.mu.Unlock()
			if net != nil {
				s.Guest = net.guest(n.name, d.Name)
			}
			if x, ok := m.(doored); ok {
				s.Door = x.door(i)
			}
		}
		st.Interfaces = append(st.Interfaces, s)
	}
	return st
}

// Interfaces are its interfaces.
func (n *Node) Interfaces() []topology.InterfaceStatus { return n.Status().Interfaces }

// Addr is the first address of its interface i, invalid if none is known yet.
func (n *Node) Addr(i int) netip.Addr {
	n.lab.mu.Lock()
	f := n.life
	n.lab.mu.Unlock()
	if f == nil || i < 0 || i >= len(f.t.Interfaces) {
		return netip.Addr{}
	}
	if list := f.addrs(i, nil); len(list) > 0 {
		return list[0]
	}
	return netip.Addr{}
}

// machine is what runs of the node.
func (n *Node) machine() (machine, error) {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	switch f := n.life; {
	case f == nil:
		return nil, fmt.Errorf("node %s is stopped", n.name)
	case f.m == nil && f.state == topology.StateFailed:
		return nil, fmt.Errorf("node %s has failed: %w", n.name, f.err)
	case f.m == nil:
		return nil, fmt.Errorf("node %s is not there yet: it waits for %s", n.name, f.held())
	default:
		return f.m, nil
	}
}

// Dial opens a conversation with a port of the node's own: "80", or "http". network is tcp or udp, or with the family, tcp4.
func (n *Node) Dial(ctx context.Context, network, port string) (net.Conn, error) {
	m, err := n.machine()
	if err != nil {
		return nil, err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		p, err := net.DefaultResolver.LookupPort(ctx, network, port)
		if err != nil {
			return nil, err
		}
		port = strconv.Itoa(p)
	}
	c, err := m.dial(ctx, network, port)
	if err != nil {
		return nil, fmt.Errorf("dial port %s of node %s: %w", port, n.name, err)
	}
	return c, nil
}

// Exec runs a command in it and returns its exit status; an error says that it could not be run.
func (n *Node) Exec(ctx context.Context, c Command) (int, error) {
	if len(c.Args) == 0 {
		return 0, errors.New("no command to run")
	}
	m, err := n.machine()
	if err != nil {
		return 0, err
	}
	return m.exec(ctx, c)
}

// Output runs a command in it and returns its standard output. Another exit status than 0 is an *ExitError that has the end
// of its standard error.
func (n *Node) Output(ctx context.Context, args ...string) ([]byte, error) {
	var out bytes.Buffer
	var said tail
	code, err := n.Exec(ctx, Command{Args: args, Stdout: &out, Stderr: &said})
	if err == nil && code != 0 {
		err = said.because(code)
	}
	if err != nil {
		return out.Bytes(), fmt.Errorf("%s in node %s: %w", strings.Join(args, " "), n.name, err)
	}
	return out.Bytes(), nil
}

// Console is what it says.
func (n *Node) Console() *Console { return n.console }

// Spaces are the namespaces to join in order to be in it, of a netns node that runs. The caller closes them.
func (n *Node) Spaces() ([]*os.File, error) {
	m, err := n.machine()
	if err != nil {
		return nil, err
	}
	return m.spaces()
}

// Wait returns when it is ready, or has ended with status 0; or with why it will not be; or when ctx ends.
func (n *Node) Wait(ctx context.Context) error {
	return n.lab.wait(ctx, func() []*Node { return []*Node{n} })
}

// Stop stops it until Start, or an Apply, which starts it again.
func (n *Node) Stop(ctx context.Context) error {
	give, err := n.lab.take(ctx)
	if err != nil {
		return err
	}
	defer give()
	n.lab.mu.Lock()
	f := n.life
	n.lab.mu.Unlock()
	if f != nil {
		n.lab.stop(ctx, []*life{f})
	}
	return nil
}

// Start starts it if it does not run or has failed or ended, and returns when it has begun: Wait waits until it is ready.
func (n *Node) Start(ctx context.Context) error {
	give, err := n.lab.take(ctx)
	if err != nil {
		return err
	}
	defer give()
	n.lab.mu.Lock()
	f := n.life
	up := f != nil && f.state != topology.StateFailed && f.state != topology.StateEnded
	n.lab.mu.Unlock()
	if up {
		return nil
	}
	if f != nil {
		n.lab.stop(ctx, []*life{f})
	}
	n.lab.mu.Lock()
	if n.lab.nodes[n.name] != n {
		n.lab.mu.Unlock()
		return fmt.Errorf("node %s is gone", n.name)
	}
	f = n.newLife()
	n.lab.bump()
	n.lab.mu.Unlock()
	go f.run()
	return nil
}
