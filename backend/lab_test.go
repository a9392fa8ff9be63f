package backend_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/qemu"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	gateway4 = ip("10.0.2.2")
	dns4     = ip("10.0.2.3")
	prefix6  = netip.MustParsePrefix("fd00:1234::/64")
	gateway6 = ip("fd00:1234::2")
	dns6     = ip("fd00:1234::3")
	world4   = ip("198.51.100.1") // RFC 5737: nobody has them
	world6   = ip("2001:db8::1")
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func patience(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// logged is a log that a test can read.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// start makes a network that ends with the test. Unless set, its world is the loopback of this host and nothing else
// answers, and its resolver is one that refuses.
func start(t testing.TB, c backend.Config) *backend.Network {
	t.Helper()
	if c.Egress == nil {
		c.Egress = &Egress{}
	}
	if !c.Prefix6.IsValid() {
		c.Prefix6 = prefix6
	}
	if c.Resolvers == nil {
		c.Resolvers = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	n, err := backend.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return n
}

// up is a network with one guest on it that has its addresses.
func up(t testing.TB, c backend.Config) (*backend.Network, *Guest) {
	t.Helper()
	n := start(t, c)
	return n, Plug(t, n, Config{}).Up(t)
}

// eventually waits for a state.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

// dropped is how often a guest's frames were dropped for a reason.
func dropped(n *backend.Network, g *Guest, r flows.Reason) uint64 {
	for _, i := range n.Guests() {
		if i.MAC == g.MAC().String() {
			return i.Dropped[r.String()]
		}
	}
	return 0
}

// family is what a test of both runs with.
type family struct {
	name          string
	gateway, dns  netip.Addr
	loopback      netip.Addr
	world         netip.Addr
	any           netip.Addr
	unreachable   uint8 // ICMP type
	host, network uint8 // its codes
	port, admin   uint8
}

var families = []family{
	{"ipv4", gateway4, dns4, ip("127.0.0.1"), world4, netip.IPv4Unspecified(), 3, 1, 0, 3, 13},
	{"ipv6", gateway6, dns6, ip("::1"), world6, netip.IPv6Unspecified(), 1, 3, 0, 4, 1},
}

func (f family) of(g *Guest) netip.Addr {
	if f.gateway.Is4() {
		return g.Addr4()
	}
	return g.Addr6()
}

func both(t *testing.T, test func(t *testing.T, f family)) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) { test(t, f) })
	}
}

// listen serves TCP on the host's loopback.
func (f family) listen(t testing.TB, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at(f.loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var conns sync.Map
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			conns.Store(c, true)
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer conns.Delete(c)
				defer c.Close()
				serve(c)
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		wg.Wait()
	})
	return at(f.gateway, uint16(l.Addr().(*net.TCPAddr).Port))
}

func echo(c *net.TCPConn) { io.Copy(c, c); c.CloseWrite() }

// closed is a port of the host's loopback that nobody listens on.
func (f family) closed(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at(f.loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return at(f.gateway, uint16(l.Addr().(*net.TCPAddr).Port))
}

// udp opens a socket on the host's loopback; the guest's way to it comes back as well.
func (f family) udp(t testing.TB) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at(f.loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadBuffer(4 << 20)
	c.SetReadDeadline(time.Now().Add(Patience))
	t.Cleanup(func() { c.Close() })
	return c, at(f.gateway, uint16(c.LocalAddr().(*net.UDPAddr).Port))
}

func descriptors(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("this system has no /proc/self/fd")
	}
	return len(d)
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func flow(n *backend.Network, ok func(flows.Snapshot) bool) (flows.Snapshot, bool) {
	l := n.Flows().List()
	i := slices.IndexFunc(l, ok)
	if i < 0 {
		return flows.Snapshot{}, false
	}
	return l[i], true
}

// sockets is a wire that is a real socket in QEMU's framing, which on Linux the loop carries.
func sockets(t testing.TB) (near, far link.Link) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return qemu.NewLink(c), qemu.NewLink(d)
}

// serve has n serve one end of a wire until the test ends.
func serve(t testing.TB, n Server, far link.Link, name string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := n.Serve(ctx, far, name); err != nil {
			t.Errorf("%s was not served: %v", name, err)
		}
	}()
	t.Cleanup(func() { cancel(); <-served })
}

// carrier is a way that frames and TCP are carried.
type carrier struct {
	name string
	up   func(testing.TB, backend.Config) (*backend.Network, *Guest)
}

var carriers = []carrier{
	{"plain", up},
	{"loop", func(t testing.TB, c backend.Config) (*backend.Network, *Guest) {
		t.Helper()
		c.Egress = &egress.Host{}
		n := start(t, c)
		return n, plugSocket(t, n, Config{}).Up(t)
	}},
}

func plugSocket(t testing.TB, n *backend.Network, c Config) *Guest {
	t.Helper()
	near, far := sockets(t)
	g, err := New(near, c)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, n, far, "socket")
	t.Cleanup(func() { g.Close() })
	return g
}

// every runs a test over both carriers and both families.
func every(t *testing.T, test func(t *testing.T, c carrier, f family)) {
	for _, c := range carriers {
		for _, f := range families {
			t.Run(c.name+"/"+f.name, func(t *testing.T) { test(t, c, f) })
		}
	}
}

// meet opens a conversation and returns both its ends.
func meet(t testing.TB, g *Guest, f family) (guest *TCPConn, host *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at(f.loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan *net.TCPConn, 1)
	go func() {
		c, _ := l.AcceptTCP()
		got <- c
	}()
	guest, err = g.Dial(patience(t), "tcp", at(f.gateway, uint16(l.Addr().(*net.TCPAddr).Port)))
	if err != nil {
		t.Fatal(err)
	}
	host = <-got
	host.SetDeadline(time.Now().Add(Patience))
	guest.SetDeadline(time.Now().Add(Patience))
	t.Cleanup(func() { guest.Close(); host.Close() })
	return guest, host
}

func noFlows(t testing.TB, n *backend.Network) {
	t.Helper()
	eventually(t, "no flow is left", func() bool { return n.Flows().Len() == 0 })
}
