package lab

// A node that is namespaces of this machine's kernel: a netns.Space with a TAP for each interface. There is nobody in it
// but what runs there; what is set in it is set from here.

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/lab/topology"
	"github.com/vmnetd/vmnetd/netns"
)

const (
	// The pauses between tries of a route whose next hop is not beside the node yet: addresses that are on their way come
	// within milliseconds, and others whenever somebody sets them.
	routeFirst = 5 * time.Millisecond
	routeMost  = time.Second
	// execDrain is how long a command's output is waited for once it has ended, if something that it left behind holds it
	// open: longer than any writer that is still on its way needs.
	execDrain = 100 * time.Millisecond
)

// spaceNode is one. Its goroutines end with ctx, and with the processes in it.
type spaceNode struct {
	b      *bench
	space  *netns.Space
	taps   []*netns.TAP // of interfaces, in their order
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	ready  chan struct{} // closed when its addresses and routes are set for the first time
	kick   chan struct{} // has one when leases have changed

	// gate is held for reading by who starts a process, so that none is when it stops. It guards space and taps.
	gate    sync.RWMutex
	stopped bool

	mu      sync.Mutex
	waits   map[int]error // of interfaces, why they have no lease
	route   error         // why a route is not there
	hosts   string        // its /etc/hosts
	command *spaceCommand
	others  []*os.Process // that exec has started
}

// spaceCommand is a run of the node's command.
type spaceCommand struct {
	proc  *os.Process
	ended chan struct{}
	exit  int
	err   error
}

func newNetns(b *bench) (machine, error) {
	m := &spaceNode{b: b, ready: make(chan struct{}), kick: make(chan struct{}, 1), waits: map[int]error{}, hosts: b.hosts}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m, nil
}

func (m *spaceNode) start(ctx context.Context) error {
	m.gate.Lock()
	defer m.gate.Unlock()
	opt := netns.SpaceOptions{Hostname: m.b.node.Name, Hosts: m.hosts, Resolv: m.b.resolv, Mark: strings.Join(m.b.env, " ")}
	forward := func(yes string) map[string]string {
		set := map[string]string{"net/ipv4/ip_forward": yes}
		if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil { // a kernel may have none
			set["net/ipv6/conf/all/forwarding"] = yes
		}
		return set
	}
	if m.b.node.Forwarding {
		opt.Sysctls = forward("1")
		// Ways there and back may be different ones. The greater of all's and an interface's counts.
		opt.TrySysctls = map[string]string{"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0"}
	} else { // said as well: a new namespace does as the host does, which may route for containers
		opt.TrySysctls = forward("0")
	}
	if opt.Resolv == "" {
		opt.Resolv = "# no network of this node's has an uplink: there are the names of /etc/hosts\n"
	}
	var err error
	m.space, err = netns.NewSpace(opt)
	if err != nil {
		return explainNetns(err)
	}
	var leased []int
	default4, default6 := m.routesAll()
	for i := range m.b.node.Interfaces {
		f := &m.b.node.Interfaces[i]
		uplink := networkAt(m.b, i).Uplink && !f.Mirror
		tap, err := m.space.Attach(ctx, netns.Config{Name: f.Name, MAC: f.MAC, MTU: mtuOf(m.b, i), NoDefault4: default4, NoDefault6: default6})
		if err != nil {
			return explainNetns(fmt.Errorf("interface %s: %w", f.Name, err))
		}
		m.taps = append(m.taps, tap)
		if f.Mirror { // it only hears: no address, and no question for routers
			if err := m.space.Sysctl("net/ipv6/conf/"+f.Name+"/disable_ipv6", "1"); err != nil {
				m.b.log.Warn("a mirror port keeps IPv6", "interface", f.Name, "err", err)
			}
		}
		for _, a := range setAddrs(f, uplink) {
			if err := tap.AddAddr(a); err != nil {
				return fmt.Errorf("interface %s: address %s: %w", f.Name, a, err)
			}
		}
		m.b.plug(i, tap)
		if uplink {
			default4, default6 = true, true // the first one's
			leased = append(leased, i)
		}
	}
	m.configure(leased)
	return nil
}

// explainNetns says what would be right, for one who does not know of package netns.
func explainNetns(err error) error {
	var e *netns.Error
	if errors.As(err, &e) && e.Hint != "" {
		return fmt.Errorf("%w: %s", err, e.Hint)
	}
	return err
}

// routesAll says whether the file has default routes, which then are nobody else's.
func (m *spaceNode) routesAll() (r4, r6 bool) {
	for _, r := range m.b.node.Routes {
		r4 = r4 || r.To.Bits() == 0 && r.To.Addr().Is4()
		r6 = r6 || r.To.Bits() == 0 && r.To.Addr().Is6()
	}
	return r4, r6
}

// configure keeps the leases of these interfaces, and routes, until the node stops.
func (m *spaceNode) configure(leased []int) {
	var settled []chan struct{} // an interface's closed when it has its addresses
	for _, i := range leased {
		tap, done := m.taps[i], make(chan struct{})
		settled = append(settled, done)
		m.waits[i] = fmt.Errorf("its interface %s has no lease yet", tap.Name)
		got := sync.OnceFunc(func() {
			m.mu.Lock()
			m.waits[i] = fmt.Errorf("its interface %s has no IPv6 address yet", tap.Name)
			m.mu.Unlock()
			m.wg.Go(func() {
				defer close(done)
				tap.Await6(m.ctx)
				m.mu.Lock()
				delete(m.waits, i)
				m.mu.Unlock()
			})
		})
		m.wg.Go(func() {
			err := tap.Keep(m.ctx, m.b.node.Name, func(l netns.Lease) {
				got()
				m.moved()
				m.b.log.Debug("node has a lease", "interface", tap.Name, "addr", l.Addr)
			})
			if m.ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				m.b.log.Warn("an interface gets no leases any more", "interface", tap.Name, "err", err)
				m.mu.Lock()
				m.waits[i] = fmt.Errorf("its interface %s has no lease: %w", tap.Name, err)
				m.mu.Unlock()
			}
		})
	}
	all := make(chan struct{})
	m.wg.Go(func() {
		for _, done := range settled {
			select {
			case <-done:
			case <-m.ctx.Done():
				return
			}
		}
		close(all)
	})
	m.wg.Go(func() { m.keepRoutes(all) })
}

// moved says that addresses have changed, and that routes may be gone with them.
func (m *spaceNode) moved() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// keepRoutes sets routes as soon as they can be, and again when leases change. When all are there for the first time, and
// addressed is closed, the node is ready.
func (m *spaceNode) keepRoutes(addressed <-chan struct{}) {
	left, pause, ready := m.b.node.Routes, routeFirst, false
	for {
		left = m.setRoutes(left)
		if len(left) == 0 && addressed == nil && !ready {
			ready = true
			close(m.ready)
		}
		var again <-chan time.Time
		if len(left) > 0 {
			again = time.After(pause)
			pause = min(2*pause, routeMost)
		}
		select {
		case <-m.ctx.Done():
			return
		case <-addressed:
			addressed = nil
		case <-m.kick:
			left, pause = m.b.node.Routes, routeFirst
		case <-again:
		}
	}
}

// setRoutes sets what can be, and returns the others.
func (m *spaceNode) setRoutes(list []topology.Route) (left []topology.Route) {
	var why error
	if len(list) > 0 {
		beside := make([][]netip.Prefix, len(m.taps))
		for i, tap := range m.taps {
			beside[i], _ = tap.Addrs()
		}
		for _, r := range list {
			if err := m.setRoute(r, beside); err != nil {
				left, why = append(left, r), fmt.Errorf("its route to %s via %s: %w", r.To, r.Via, err)
			}
		}
	}
	m.mu.Lock()
	m.route = why
	m.mu.Unlock()
	return left
}

func (m *spaceNode) setRoute(r topology.Route, beside [][]netip.Prefix) error {
	best, by := -1, -1
	for i, list := range beside {
		for _, p := range list {
			if p.Contains(r.Via) && p.Bits() > best {
				best, by = p.Bits(), i
			}
		}
	}
	if by < 0 && r.Via.IsLinkLocalUnicast() && len(m.taps) == 1 {
		by = 0
	}
	if by < 0 {
		return errors.New("no interface has an address beside that")
	}
	return m.taps[by].AddRouteTo(r.To, r.Via)
}

// reachable waits until the node is set up: its commands then find its addresses and routes.
func (m *spaceNode) reachable(ctx context.Context) error {
	select {
	case <-m.ready:
		return nil
	case <-m.ctx.Done():
		return net.ErrClosed
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.taps {
		if err := m.waits[i]; err != nil {
			return err
		}
	}
	return cmp.Or(m.route, ctx.Err())
}

// env is what a process of the node's finds.
func (m *spaceNode) env(more []string) []string {
	env := os.Environ()
	for _, k := range slices.Sorted(maps.Keys(m.b.node.Env)) {
		env = append(env, k+"="+m.b.node.Env[k])
	}
	return append(append(env, more...), m.b.env...)
}

// dir is a folder as the file says it, or else the file's own.
func (m *spaceNode) dir(name string) string {
	name = cmp.Or(name, m.b.node.Dir)
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(m.b.base, name)
}

// run starts a process, unless the node is to stop.
func (m *spaceNode) run(p netns.Process) (*os.Process, error) {
	m.gate.RLock()
	defer m.gate.RUnlock()
	if m.stopped || m.space == nil {
		return nil, net.ErrClosed
	}
	// It has a session of its own, so that Ctrl-C at the lab's terminal is the lab's to handle.
	p.Session, p.DeathSignal, p.Processes = true, syscall.SIGKILL, NodeProcesses
	return m.space.Start(p)
}

func (m *spaceNode) begin(context.Context) error {
	n := m.b.node
	if len(n.Command) == 0 {
		return nil
	}
	in, out, err := m.b.console.Files()
	if err != nil {
		return err
	}
	defer in.Close()
	defer out.Close()
	c := &spaceCommand{ended: make(chan struct{})}
	c.proc, err = m.run(netns.Process{Args: n.Command, Env: m.env(nil), Dir: m.dir(""), Files: []*os.File{in, out, out}})
	if err != nil {
		return fmt.Errorf("command: %w", err)
	}
	m.mu.Lock()
	m.command = c
	m.mu.Unlock()
	m.wg.Go(func() {
		defer close(c.ended)
		c.exit, c.err = result(c.proc.Wait())
	})
	return nil
}

// result is an exit status, or as shells have it that of a process that was killed, which is an error as well.
func result(st *os.ProcessState, err error) (int, error) {
	if err != nil {
		return -1, err
	}
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), fmt.Errorf("killed: %v", ws.Signal())
	}
	return st.ExitCode(), nil
}

func (m *spaceNode) ended() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.command == nil {
		return nil
	}
	return m.command.ended
}

func (m *spaceNode) status() (int, error) {
	m.mu.Lock()
	c := m.command
	m.mu.Unlock()
	if c == nil {
		return 0, nil
	}
	select {
	case <-c.ended:
		return c.exit, c.err
	default:
		return 0, errors.New("it runs")
	}
}

func (m *spaceNode) pids() []int {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []int
	if c := m.command; c != nil {
		select {
		case <-c.ended:
		default:
			list = append(list, c.proc.Pid)
		}
	}
	for _, p := range m.others {
		list = append(list, p.Pid)
	}
	return list
}

func (m *spaceNode) spaces() ([]*os.File, error) {
	m.gate.RLock()
	defer m.gate.RUnlock()
	if m.stopped || m.space == nil {
		return nil, net.ErrClosed
	}
	return m.space.Files()
}

// exec runs a command and waits for it. What it leaves behind runs on; if that holds its output open, it is no longer
// waited for, but read, so that it does not get stuck or die of it: by the console if that is where it goes.
func (m *spaceNode) exec(ctx context.Context, c Command) (int, error) {
	if err := ctx.Err(); err != nil {
		return -1, err
	}
	var theirs []*os.File
	var outputs []*output
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	p := netns.Process{Args: c.Args, Env: m.env(c.Env), Dir: m.dir(c.Dir), Files: make([]*os.File, 3)}
	var stdin *os.File
	switch r := c.Stdin.(type) {
	case nil:
	case *os.File:
		p.Files[0] = r
	default:
		in, ours, err := pipeToChild()
		if err != nil {
			return -1, err
		}
		theirs, stdin = append(theirs, in), ours
		p.Files[0] = in
	}
	failed := func(err error) (int, error) {
		for _, o := range outputs {
			o.r.Close()
		}
		if stdin != nil {
			stdin.Close()
		}
		return -1, err
	}
	for i, w := range []io.Writer{c.Stdout, c.Stderr} {
		switch w := w.(type) {
		case nil:
			continue
		case *os.File:
			p.Files[i+1] = w
			continue
		}
		if i == 1 && c.Stdout != nil && same(c.Stdout, c.Stderr) {
			p.Files[2] = p.Files[1] // in the order that it is said
			continue
		}
		ours, out, err := pipeFromChild()
		if err != nil {
			return failed(err)
		}
		theirs = append(theirs, out)
		outputs = append(outputs, &output{r: ours, w: w, done: make(chan struct{})})
		p.Files[i+1] = out
	}
	proc, err := m.run(p)
	if err != nil {
		return failed(err)
	}
	for _, f := range theirs {
		f.Close()
	}
	theirs = nil
	m.mu.Lock()
	m.others = append(m.others, proc)
	m.mu.Unlock()
	for _, o := range outputs {
		go o.copy() // which ends with the last process that has it
	}
	if stdin != nil {
		// Who gives nothing more and does not close is not waited for.
		go func() {
			defer stdin.Close()
			io.Copy(stdin, c.Stdin)
		}()
	}
	// All that it has started in its session goes with it. The process has not been waited for yet: its number is its own.
	stop := context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if slices.Contains(m.others, proc) {
			syscall.Kill(-proc.Pid, syscall.SIGKILL)
		}
	})
	defer stop()
	// Waited for, but left a zombie until its number is nobody's to signal any more.
	for {
		if err := unix.Waitid(unix.P_PID, proc.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			break
		}
	}
	m.mu.Lock()
	m.others = slices.DeleteFunc(m.others, func(o *os.Process) bool { return o == proc })
	m.mu.Unlock()
	code, err := result(proc.Wait())
	if stdin != nil {
		stdin.SetWriteDeadline(time.Unix(1, 0)) // wakes who fills it
	}
	for _, o := range outputs {
		o.finish(ctx.Done(), m.ctx.Done())
	}
	switch {
	case ctx.Err() != nil:
		return -1, ctx.Err()
	case code >= 0:
		return code, nil // of one that was killed too, as shells have it
	}
	return code, err
}

// same says that two writers are one.
func same(a, b io.Writer) (yes bool) {
	defer func() { recover() }() // of kinds that cannot be compared
	return a == b
}

// output is a pipe that a command writes to.
type output struct {
	r    *os.File
	w    io.Writer
	done chan struct{} // closed when there is nothing more to wait for

	mu   sync.Mutex
	gone bool // the command has ended
}

// copy reads until all that have the other end have closed it, or who reads here fails.
func (o *output) copy() {
	defer o.r.Close()
	finished := sync.OnceFunc(func() { close(o.done) })
	defer finished()
	buf := make([]byte, 32<<10) // as io.Copy
	for over := false; ; {
		n, err := o.r.Read(buf)
		if !over && errors.Is(err, os.ErrDeadlineExceeded) {
			// The command has ended, and nothing has come for a while: but what is there already is its own.
			if n, err = o.rest(buf), nil; n == 0 {
				over = true
				o.r.SetReadDeadline(time.Time{})
				if _, ok := o.w.(*Console); !ok {
					o.w = io.Discard // who has called does not expect it any more
				}
				finished()
			}
		}
		if n > 0 {
			if _, err := o.w.Write(buf[:n]); err != nil {
				return
			}
			if !over {
				o.mu.Lock()
				if o.gone {
					o.r.SetReadDeadline(time.Now().Add(execDrain))
				}
				o.mu.Unlock()
			}
		}
		if err != nil {
			return
		}
	}
}

// rest reads what is in the pipe, whatever its deadline.
func (o *output) rest(buf []byte) (n int) {
	rc, err := o.r.SyscallConn()
	if err != nil {
		return 0
	}
	rc.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) })
	return max(n, 0)
}

// finish waits until all is read that the command, which has ended, has said.
func (o *output) finish(done ...<-chan struct{}) {
	o.mu.Lock()
	o.gone = true
	o.r.SetReadDeadline(time.Now().Add(execDrain))
	o.mu.Unlock()
	select {
	case <-o.done:
	case <-done[0]:
	case <-done[1]:
	}
}

// dial opens a conversation with the node's own port: by the loopback, where most servers are, or by an address that only
// its server has.
func (m *spaceNode) dial(ctx context.Context, network, port string) (net.Conn, error) {
	proto := strings.TrimRight(network, "46")
	n, err := net.DefaultResolver.LookupPort(ctx, proto, port)
	if err != nil {
		return nil, err
	}
	own := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	for _, tap := range m.interfaces() {
		list, _ := tap.Addrs()
		for _, p := range list {
			own = append(own, p.Addr())
		}
	}
	own = slices.DeleteFunc(own, func(a netip.Addr) bool {
		return strings.HasSuffix(network, "4") && !a.Is4() || strings.HasSuffix(network, "6") && a.Is4()
	})
	if proto == "udp" { // nobody refuses a datagram before it is sent
		bound, err := m.bound(uint16(n))
		if err != nil {
			return nil, err
		}
		own = slices.DeleteFunc(own, func(a netip.Addr) bool {
			return !slices.ContainsFunc(bound, func(b netip.Addr) bool {
				return a == b || b.IsUnspecified() && (b.Is6() || a.Is4()) // IPv6's takes both, unless it was told not to
			})
		})
		if len(own) == 0 {
			return nil, &net.OpError{Op: "dial", Net: network, Addr: &net.UDPAddr{Port: n}, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		}
	}
	var first error
	for _, a := range own {
		c, err := m.dialFrom(ctx, network, netip.AddrPortFrom(a, uint16(n)).String())
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// interfaces are the TAPs that there are by now.
func (m *spaceNode) interfaces() []*netns.TAP {
	m.gate.RLock()
	defer m.gate.RUnlock()
	return m.taps
}

// bound are the addresses that somebody in the node hears datagrams to a port at.
func (m *spaceNode) bound(port uint16) (list []netip.Addr, err error) {
	for _, path := range []string{"/proc/net/udp", "/proc/net/udp6"} {
		m.gate.RLock()
		if m.stopped || m.space == nil {
			m.gate.RUnlock()
			return nil, net.ErrClosed
		}
		f, err := m.space.Open(path)
		m.gate.RUnlock()
		if errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			continue
		}
		if err != nil {
			return nil, err
		}
		text, err := io.ReadAll(f)
		f.Close()
		if err != nil {
			return nil, err
		}
		list = append(list, boundAt(text, port)...)
	}
	return list, nil
}

// boundAt reads /proc/net/udp and udp6: the second column is an address, in words of the machine's byte order, and a port.
func boundAt(text []byte, port uint16) (list []netip.Addr) {
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) < 3 {
			continue
		}
		a, p, _ := strings.Cut(f[1], ":")
		if n, err := strconv.ParseUint(p, 16, 16); err != nil || uint16(n) != port {
			continue
		}
		b, err := hex.DecodeString(a)
		if err != nil || len(b)%4 != 0 {
			continue
		}
		for w := b; len(w) >= 4; w = w[4:] {
			binary.NativeEndian.PutUint32(w, binary.BigEndian.Uint32(w))
		}
		if a, ok := netip.AddrFromSlice(b); ok {
			list = append(list, a)
		}
	}
	return list
}

// dialFrom opens a conversation from inside the node, with whom it knows by this name.
func (m *spaceNode) dialFrom(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n, err := net.DefaultResolver.LookupPort(ctx, strings.TrimRight(network, "46"), port)
	if err != nil {
		return nil, err
	}
	addrs, err := m.lookUp(ctx, network, host)
	if err != nil {
		return nil, err
	}
	var first error
	for _, a := range addrs {
		c, err := m.dialAddr(ctx, network, netip.AddrPortFrom(a, uint16(n)).String())
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

func (m *spaceNode) dialAddr(ctx context.Context, network, address string) (net.Conn, error) {
	m.gate.RLock()
	space := m.space
	if m.stopped {
		space = nil
	}
	m.gate.RUnlock()
	if space == nil {
		return nil, net.ErrClosed
	}
	return space.Dial(ctx, network, address)
}

// lookUp is what a name means in the node: by its hosts, and then by its resolvers.
func (m *spaceNode) lookUp(ctx context.Context, network, host string) ([]netip.Addr, error) {
	fits := func(a netip.Addr) bool {
		return !strings.HasSuffix(network, "4") && !strings.HasSuffix(network, "6") || a.Is4() == strings.HasSuffix(network, "4")
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	var list []netip.Addr
	m.mu.Lock()
	hosts := m.hosts
	m.mu.Unlock()
	for line := range strings.Lines(hosts) {
		f := strings.Fields(line)
		if len(f) > 1 && slices.Contains(f[1:], host) {
			if a, err := netip.ParseAddr(f[0]); err == nil && fits(a) {
				list = append(list, a)
			}
		}
	}
	if len(list) > 0 {
		return list, nil
	}
	var servers, search []string
	for line := range strings.Lines(m.b.resolv) {
		switch f := strings.Fields(line); {
		case len(f) > 1 && f[0] == "nameserver":
			servers = append(servers, f[1])
		case len(f) > 1 && f[0] == "search":
			search = f[1:]
		}
	}
	unknown := error(&net.DNSError{Err: "no such host, by /etc/hosts or resolv.conf of the node", Name: host, IsNotFound: true})
	if len(servers) == 0 {
		return nil, unknown
	}
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return m.dialAddr(ctx, network, net.JoinHostPort(servers[0], "53"))
	}}
	names := []string{strings.TrimSuffix(host, ".") + "."} // with a dot at its end this machine's own search is left out
	if !strings.HasSuffix(host, ".") {
		var with []string
		for _, s := range search {
			with = append(with, host+"."+strings.TrimSuffix(s, ".")+".")
		}
		if strings.Contains(host, ".") { // ndots:1, as resolv.conf(5) has it
			names = append(names, with...)
		} else {
			names = append(with, names...)
		}
	}
	for _, name := range names {
		addrs, err := r.LookupNetIP(ctx, "ip", name)
		if err != nil {
			unknown = err
			continue
		}
		for _, a := range addrs {
			if a = a.Unmap(); fits(a) {
				list = append(list, a)
			}
		}
		if len(list) > 0 {
			return list, nil
		}
	}
	return nil, unknown
}

// setHosts has /etc/hosts be another text, of a lab that has changed.
func (m *spaceNode) setHosts(text string) error {
	m.gate.RLock()
	defer m.gate.RUnlock()
	if m.stopped {
		return net.ErrClosed
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if text == m.hosts {
		return nil
	}
	if m.space != nil { // else it is about to start
		if err := m.space.WriteFile("/etc/hosts", text); err != nil {
			return err
		}
	}
	m.hosts = text
	return nil
}

// stop ends all that runs in the node, whoever started it, and then the node.
func (m *spaceNode) stop(ctx context.Context) error {
	m.gate.Lock()
	again := m.stopped
	m.stopped = true
	m.gate.Unlock()
	if again {
		return nil
	}
	var err error
	if m.space != nil {
		err = m.space.End(ctx)
	}
	m.cancel()
	for _, tap := range m.taps {
		tap.Close()
	}
	if m.space != nil {
		m.space.Close() // and what did not end gets its death signal once more
	}
	if err == nil { // or a command may never have been waited for
		m.wg.Wait()
	}
	return err
}
