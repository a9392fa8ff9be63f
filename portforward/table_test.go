package portforward

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(helperEnv); what != "" {
		os.Exit(helper(what))
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a state is waited for before the test has failed.
const patience = 20 * time.Second

// eventually waits for a state.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// fakeGuest reaches real servers on loopback in place of guests.
type fakeGuest struct {
	mu     sync.Mutex
	at     map[string]string // "tcp/80" to a loopback address; "" hangs
	prompt bool              // UDP conns are Prompt
	dials  []dialled
	conns  []net.Conn
}

type dialled struct {
	proto, guest string
	port         uint16
	from         netip.AddrPort
	rule         string
}

func (g *fakeGuest) set(proto string, port uint16, addr string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.at == nil {
		g.at = make(map[string]string)
	}
	g.at[fmt.Sprintf("%s/%d", proto, port)] = addr
}

func (g *fakeGuest) DialGuest(ctx context.Context, proto, guest string, port uint16, from netip.AddrPort, rule string) (net.Conn, error) {
	g.mu.Lock()
	addr, ok := g.at[fmt.Sprintf("%s/%d", proto, port)]
	g.dials = append(g.dials, dialled{proto, guest, port, from, rule})
	g.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("guest %q: %w", guest, ErrNoGuest)
	}
	if addr == "" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, proto, addr)
	if err == nil {
		g.mu.Lock()
		g.conns = append(g.conns, c)
		g.mu.Unlock()
		if g.prompt && proto == "udp" {
			c = promptConn{c}
		}
	}
	return c, err
}

func (g *fakeGuest) lastDial() dialled {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.dials) == 0 {
		return dialled{}
	}
	return g.dials[len(g.dials)-1]
}

func (g *fakeGuest) dialCount() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.dials)
}

// server runs a TCP server on loopback, each connection in its own goroutine,
// until the test ends.
func server(t *testing.T, handle func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); handle(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

// closedPort is a loopback address where nobody listens.
func closedPort(t *testing.T, network string) string {
	t.Helper()
	if network == "udp" {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		return pc.LocalAddr().String()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newTable(t *testing.T, cfg Config) *Table {
	t.Helper()
	table := New(cfg)
	t.Cleanup(func() { table.Close() })
	return table
}

func add(t *testing.T, table *Table, text string) Rule {
	t.Helper()
	rules, err := ParseRule(text)
	if err != nil {
		t.Fatal(err)
	}
	bound, err := table.AddAll(t.Context(), rules)
	if err != nil {
		t.Fatal(err)
	}
	return bound[0]
}

func hostEnd(r Rule) string {
	if r.Proto == Unix {
		return r.Path
	}
	return netip.AddrPortFrom(r.Host, r.HostPort).String()
}

func dialHost(t *testing.T, r Rule) net.Conn {
	t.Helper()
	c, err := net.Dial(string(r.Proto), hostEnd(r))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func status(t *testing.T, table *Table, r Rule) Status {
	t.Helper()
	for _, s := range table.List() {
		if s.ID == r.ID() {
			return s
		}
	}
	t.Fatalf("%s is not in the table", r.ID())
	return Status{}
}

// wantReset reads until an error, which must be a reset.
func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, c)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the connection ended with %v, want a reset", err)
	}
}

// wantRefused connects and is reset, which may come so soon that connecting
// itself reports it.
func wantRefused(t *testing.T, r Rule) {
	t.Helper()
	c, err := net.Dial(string(r.Proto), hostEnd(r))
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	wantReset(t, c)
}

// say and hear exchange one line, to know that a conversation stands.
func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("waiting for %q: %v", want, err)
	}
	if string(got) != want {
		t.Fatalf("heard %q, want %q", got, want)
	}
}

func randomBytes(n int, seed uint64) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	src.Read(b)
	return b
}

// hostEnds are the kinds of host end that a TCP conversation can come in by.
func hostEnds(t *testing.T) map[string]string {
	return map[string]string{
		"ipv4": "127.0.0.1:0:80",
		"ipv6": "[::1]:0:80",
		"any4": "0.0.0.0:0:80",
		"any6": "[::]:0:80",
		"unix": "unix:" + filepath.Join(t.TempDir(), "s") + "-:80",
	}
}

// TestTCPBothWays sends 10 MB up, half-closes, and gets 10 MB back after that:
// every byte counted, none changed.
func TestTCPBothWays(t *testing.T) {
	const size = 10 << 20
	up, down := randomBytes(size, 1), randomBytes(size, 2)
	for name, text := range hostEnds(t) {
		t.Run(name, func(t *testing.T) {
			sum := make(chan [32]byte, 1)
			guest := &fakeGuest{}
			guest.set("tcp", 80, server(t, func(c *net.TCPConn) {
				h := sha256.New()
				io.Copy(h, c) // ends only by the client's half-close
				sum <- [32]byte(h.Sum(nil))
				c.Write(down)
			}))
			table := newTable(t, Config{Guest: guest})
			r := add(t, table, text)
			c := dialHost(t, r)
			if _, err := c.Write(up); err != nil {
				t.Fatal(err)
			}
			if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			if _, err := io.Copy(h, c); err != nil {
				t.Fatal(err)
			}
			if <-sum != sha256.Sum256(up) {
				t.Error("what the guest got is not what was sent")
			}
			if [32]byte(h.Sum(nil)) != sha256.Sum256(down) {
				t.Error("what the client got is not what was sent")
			}
			eventually(t, "the conversation ends", func() bool { return status(t, table, r).Active == 0 })
			s := status(t, table, r)
			if s.ToGuest != size || s.ToClient != size || s.Accepted != 1 || s.Refused != 0 || s.Reasons != nil {
				t.Errorf("counters: %+v", s)
			}
			want := dialled{"tcp", "", 80, netip.AddrPort{}, r.String()}
			if got := guest.lastDial(); got != want {
				t.Errorf("the guest was dialled with %+v, want %+v", got, want)
			}
		})
	}
}

// TestGuestHalfCloses: the guest ends first and still hears the client.
func TestGuestHalfCloses(t *testing.T) {
	for name, text := range hostEnds(t) {
		t.Run(name, func(t *testing.T) {
			heard := make(chan string, 1)
			guest := &fakeGuest{}
			guest.set("tcp", 80, server(t, func(c *net.TCPConn) {
				io.WriteString(c, "bye")
				c.CloseWrite()
				b, _ := io.ReadAll(c)
				heard <- string(b)
			}))
			r := add(t, newTable(t, Config{Guest: guest}), text)
			c := dialHost(t, r)
			if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
				t.Fatalf("got %q, %v", b, err)
			}
			say(t, c, "one more thing")
			c.Close()
			if got := <-heard; got != "one more thing" {
				t.Errorf("the guest heard %q", got)
			}
		})
	}
}

func TestGuestResets(t *testing.T) {
	for _, text := range []string{"127.0.0.1:0:80", "[::1]:0:80"} {
		t.Run(text, func(t *testing.T) {
			guest := &fakeGuest{}
			guest.set("tcp", 80, server(t, func(c *net.TCPConn) {
				io.ReadFull(c, make([]byte, 5))
				c.SetLinger(0)
			}))
			table := newTable(t, Config{Guest: guest})
			r := add(t, table, text)
			c := dialHost(t, r)
			say(t, c, "hello")
			wantReset(t, c)
			eventually(t, "the reset is counted", func() bool { return status(t, table, r).Reasons[ReasonReset] == 1 })
		})
	}
}

func TestClientResets(t *testing.T) {
	for _, text := range []string{"127.0.0.1:0:80", "[::1]:0:80"} {
		t.Run(text, func(t *testing.T) {
			ended := make(chan error, 1)
			guest := &fakeGuest{}
			guest.set("tcp", 80, server(t, func(c *net.TCPConn) {
				_, err := io.Copy(c, c)
				ended <- err
			}))
			r := add(t, newTable(t, Config{Guest: guest}), text)
			c := dialHost(t, r)
			say(t, c, "hello")
			hear(t, c, "hello")
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
			if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the guest's connection ended with %v, want a reset", err)
			}
		})
	}
}

// TestClientResetsUnread: the guest takes nothing, so nobody reads from the
// client when its reset comes; the guest must learn of it all the same.
func TestClientResetsUnread(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no poll for a reset on windows")
	}
	ended := make(chan error, 1)
	goOn := make(chan struct{})
	guest := &fakeGuest{}
	guest.set("tcp", 80, server(t, func(c *net.TCPConn) {
		c.Write([]byte("x"))
		<-goOn
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}))
	table := newTable(t, Config{Guest: guest})
	r := add(t, table, "0:80")
	c := dialHost(t, r)
	hear(t, c, "x")
	// Fill every buffer on the way, until the relay itself is stuck.
	c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	if n, err := c.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d bytes to a guest that reads none: %v", n, err)
	}
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	eventually(t, "the conversation ends", func() bool { return status(t, table, r).Active == 0 })
	close(goOn)
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the guest's connection ended with %v, want a reset", err)
	}
}

// TestRefusals: whatever keeps the guest from answering, the client sees a
// reset, and the table says why.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		at     func(t *testing.T, g *fakeGuest)
		reason Reason
		guest  Presence
	}{
		{"refused", func(t *testing.T, g *fakeGuest) { g.set("tcp", 80, closedPort(t, "tcp")) }, ReasonRefused, Present},
		{"absent", func(*testing.T, *fakeGuest) {}, ReasonAbsent, Absent},
		{"silent", func(_ *testing.T, g *fakeGuest) { g.set("tcp", 80, "") }, ReasonTimeout, Unknown},
		{"unreachable", func(_ *testing.T, g *fakeGuest) { g.set("tcp", 80, "not an address") }, ReasonDial, Unknown},
	} {
		for _, text := range []string{"127.0.0.1:0:80", "[::1]:0:80"} {
			t.Run(c.name+" "+text, func(t *testing.T) {
				guest := &fakeGuest{}
				c.at(t, guest)
				table := newTable(t, Config{Guest: guest, DialTimeout: 50 * time.Millisecond})
				r := add(t, table, text)
				wantRefused(t, r)
				eventually(t, "the refusal is counted", func() bool { return status(t, table, r).Active == 0 })
				s := status(t, table, r)
				if s.Refused != 1 || s.Reasons[c.reason] != 1 || s.Guest != c.guest || s.LastError == "" || s.LastErrorAt.IsZero() {
					t.Errorf("status: %+v", s)
				}
				// The rule outlives it.
				guest.set("tcp", 80, server(t, echo))
				again := dialHost(t, r)
				say(t, again, "back")
				hear(t, again, "back")
				if s := status(t, table, r); s.Guest != Present || s.State != StateListening {
					t.Errorf("status: %+v", s)
				}
			})
		}
	}
}

func TestPresentIsAsked(t *testing.T) {
	table := newTable(t, Config{Guest: &fakeGuest{}, Present: func(g string) bool { return g == "web" }})
	here, away := add(t, table, "0:web:80"), add(t, table, "0:db:80")
	if got := status(t, table, here).Guest; got != Present {
		t.Errorf("web is %s", got)
	}
	if got := status(t, table, away).Guest; got != Absent {
		t.Errorf("db is %s", got)
	}
}

// TestClientGoneWhileDialling: a reset gives up the dial.
func TestClientGoneWhileDialling(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no poll for a reset on windows")
	}
	guest := &fakeGuest{}
	guest.set("tcp", 80, "")
	table := newTable(t, Config{Guest: guest, DialTimeout: time.Hour})
	r := add(t, table, "0:80")
	c := dialHost(t, r)
	eventually(t, "the guest is dialled", func() bool { return status(t, table, r).Pending == 1 && guest.dialCount() == 1 })
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	eventually(t, "the dial is given up", func() bool { return status(t, table, r).Active == 0 })
	if s := status(t, table, r); s.Reasons[ReasonGone] != 1 || s.Refused != 1 || s.Pending != 0 {
		t.Errorf("status: %+v", s)
	}
}

func TestPendingIsBounded(t *testing.T) {
	guest := &fakeGuest{}
	guest.set("tcp", 80, "")
	guest.set("tcp", 81, server(t, echo))
	table := newTable(t, Config{Guest: guest, DialTimeout: time.Hour, MaxPending: 3})
	stuck, fine := add(t, table, "0:80"), add(t, table, "0:81")
	for range 3 {
		dialHost(t, stuck)
	}
	eventually(t, "three dials hang", func() bool { return status(t, table, stuck).Pending == 3 })
	wantRefused(t, stuck)
	if s := status(t, table, stuck); s.Reasons[ReasonPending] != 1 || s.Pending != 3 || s.Accepted != 4 {
		t.Errorf("status: %+v", s)
	}
	// Another rule does not notice.
	c := dialHost(t, fine)
	say(t, c, "hi")
	hear(t, c, "hi")
}

func TestActiveIsBounded(t *testing.T) {
	guest := &fakeGuest{}
	guest.set("tcp", 80, server(t, echo))
	table := newTable(t, Config{Guest: guest, MaxActive: 2})
	r := add(t, table, "0:80")
	var open []net.Conn
	for range 2 {
		c := dialHost(t, r)
		say(t, c, "hi")
		hear(t, c, "hi")
		open = append(open, c)
	}
	wantRefused(t, r)
	if s := status(t, table, r); s.Reasons[ReasonActive] != 1 || s.Active != 2 {
		t.Errorf("status: %+v", s)
	}
	open[0].Close()
	eventually(t, "a place is free", func() bool { return status(t, table, r).Active == 1 })
	c := dialHost(t, r)
	say(t, c, "hi")
	hear(t, c, "hi")
}

// TestThousandClients at once, each with bytes of its own.
func TestThousandClients(t *testing.T) {
	const clients = 1000
	guest := &fakeGuest{}
	guest.set("tcp", 80, server(t, echo))
	table := newTable(t, Config{Guest: guest})
	r := add(t, table, "0:80")
	var (
		wg      sync.WaitGroup
		errs    = make(chan error, clients)
		arrived sync.WaitGroup
		all     = make(chan struct{})
	)
	arrived.Add(clients)
	for i := range clients {
		wg.Go(func() {
			errs <- func() error {
				c, err := net.Dial("tcp", hostEnd(r))
				if err != nil {
					arrived.Done()
					return err
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				arrived.Done()
				<-all // nobody ends before everybody is in
				mine := randomBytes(20_000, uint64(i))
				go func() {
					c.Write(mine)
					c.(*net.TCPConn).CloseWrite()
				}()
				got, err := io.ReadAll(c)
				if err == nil && !bytes.Equal(got, mine) {
					err = fmt.Errorf("client %d got %d bytes that are not its own", i, len(got))
				}
				return err
			}()
		})
	}
	arrived.Wait()
	eventually(t, "all are active", func() bool { return status(t, table, r).Active == clients })
	close(all)
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all have ended", func() bool { return status(t, table, r).Active == 0 })
	if s := status(t, table, r); s.Accepted != clients || s.Refused != 0 || s.ToGuest != clients*20_000 || s.ToClient != s.ToGuest {
		t.Errorf("status: %+v", s)
	}
}

func TestRange(t *testing.T) {
	guest := &fakeGuest{}
	for i := range 5 {
		guest.set("tcp", uint16(9000+i), server(t, func(c *net.TCPConn) { fmt.Fprint(c, i) }))
	}
	table := newTable(t, Config{Guest: guest})
	first := freeRange(t, 5)
	r := add(t, table, fmt.Sprintf("%d-%d:9000-9004", first, first+4))
	for i := range 5 {
		one := r
		one.HostPort += uint16(i)
		hear(t, dialHost(t, one), fmt.Sprint(i))
	}
	if got, want := r.ID(), fmt.Sprintf("tcp:127.0.0.1:%d-%d", first, first+4); got != want {
		t.Errorf("ID %s, want %s", got, want)
	}
}

// freeRange finds n consecutive ports that nobody has.
func freeRange(t *testing.T, n int) int {
	t.Helper()
	for range 100 {
		first := 20000 + rand.IntN(10000) // below the ephemeral ones
		var open []net.Listener
		for i := range n {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+i))
			if err != nil {
				break
			}
			open = append(open, l)
		}
		for _, l := range open {
			l.Close()
		}
		if len(open) == n {
			return first
		}
	}
	t.Fatal("no free range")
	return 0
}

func TestRangeAllOrNothing(t *testing.T) {
	first := freeRange(t, 5)
	taken, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+3))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	table := newTable(t, Config{Guest: &fakeGuest{}})
	rules, _ := ParseRule(fmt.Sprintf("%d-%d:9000-9004", first, first+4))
	_, err = table.Add(t.Context(), rules[0])
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("127.0.0.1:%d is in use", first+3)) {
		t.Fatalf("got %v", err)
	}
	// Also over several rules of one string.
	rules, _ = ParseRule(fmt.Sprintf("%d-%d,%d", first, first+2, first+3))
	if _, err = table.AddAll(t.Context(), rules); !errors.Is(err, ErrInUse) {
		t.Fatalf("got %v", err)
	}
	if list := table.List(); len(list) != 0 {
		t.Fatalf("left in the table: %+v", list)
	}
	for i := range 3 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+i))
		if err != nil {
			t.Errorf("still bound: %v", err)
			continue
		}
		l.Close()
	}
}

func TestAddErrors(t *testing.T) {
	table := newTable(t, Config{Guest: &fakeGuest{}, MaxPorts: 4})
	have := add(t, table, "0:22")
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	udp := taken.LocalAddr().(*net.UDPAddr).Port
	for _, c := range []struct {
		name, in string
		kind     error
		says     []string
	}{
		{"clash", fmt.Sprintf("%d:80", have.HostPort), ErrClash, []string{have.String(), "remove that one first"}},
		{"clash of a wildcard", fmt.Sprintf("0.0.0.0:%d:80", have.HostPort), ErrClash, []string{have.String()}},
		{"clash within one string", fmt.Sprintf("%d:9,%[1]d:10", freeRange(t, 1)), ErrClash, []string{":9/tcp"}},
		{"in use", fmt.Sprintf("%d:53/udp", udp), ErrInUse, []string{"in use by this program itself"}},
		{"in use, wildcard", fmt.Sprintf("0.0.0.0:%d:53/udp", udp), ErrInUse, []string{"in use by this program itself"}},
		{"no address", "192.0.2.1:0:22", ErrNoAddress, []string{"192.0.2.1 is not an address of this host (it has ", "127.0.0.1"}},
		{"no address udp", "192.0.2.1:0:22/udp", ErrNoAddress, []string{"192.0.2.1 is not an address of this host"}},
		{"no address v6", "[2001:db8::1]:0:22", ErrNoAddress, []string{"2001:db8::1 is not an address of this host"}},
		{"no interface", "[fe80::1%nosuch0]:0:22", ErrNoAddress, []string{`no interface "nosuch0"`}},
		{"not on that interface", "[fe80::77%lo]:0:22", ErrNoAddress, []string{"fe80::77%lo is not an address of this host"}},
		{"full", "4000-4003", ErrLimit, []string{"1 of at most 4"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			rules, err := ParseRule(c.in)
			if err != nil {
				t.Fatal(err)
			}
			_, err = table.AddAll(t.Context(), rules)
			if !errors.Is(err, c.kind) {
				t.Fatalf("got %v, want kind %v", err, c.kind)
			}
			t.Log(err)
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			var e *Error
			if !errors.As(err, &e) || (c.kind == ErrClash) != (e.Other != "") {
				t.Errorf("%#v", err)
			}
		})
	}
	if n := len(table.List()); n != 1 {
		t.Errorf("%d rules in the table, want 1", n)
	}
	if _, err := table.Add(t.Context(), Rule{}); !errors.Is(err, ErrRange) {
		t.Errorf("a rule without a guest port: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := table.Add(gone, Rule{GuestPort: 22}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the caller has given up: %v", err)
	}
	table.Close()
	if _, err := table.Add(t.Context(), Rule{GuestPort: 22}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestWildcardsOfBothFamilies(t *testing.T) {
	guest := &fakeGuest{}
	guest.set("tcp", 80, server(t, echo))
	table := newTable(t, Config{Guest: guest})
	four := add(t, table, "0.0.0.0:0:80")
	six := add(t, table, fmt.Sprintf("[::]:%d:80", four.HostPort))
	for _, r := range []Rule{four, six} {
		c := dialHost(t, r)
		say(t, c, "hi")
		hear(t, c, "hi")
		eventually(t, "it is counted where it came in", func() bool { return status(t, table, r).Accepted == 1 })
	}
}

func TestRemove(t *testing.T) {
	guest := &fakeGuest{}
	guest.set("tcp", 80, server(t, echo))
	table := newTable(t, Config{Guest: guest})
	unixPath := filepath.Join(t.TempDir(), "a-b.sock")
	for _, c := range []struct {
		add  string
		name func(Rule) string
	}{
		{"0:80", Rule.ID},
		{"0:80", Rule.String},
		{"0:80", func(r Rule) string { return fmt.Sprintf("tcp::%d", r.HostPort) }},
		{"0:80", func(r Rule) string { return fmt.Sprintf("%d:80", r.HostPort) }},
		{"[::1]:0:web:80/udp", func(r Rule) string { return fmt.Sprintf("udp:[::1]:%d-web:80", r.HostPort) }},
		{"unix:" + unixPath + "-:80", Rule.ID},
	} {
		r := add(t, table, c.add)
		got, err := table.Remove(c.name(r), false)
		if err != nil || got != r {
			t.Errorf("Remove(%q) = %v, %v", c.name(r), got, err)
		}
		if len(table.List()) != 0 {
			t.Fatal("still in the table")
		}
		// Free at once.
		again := add(t, table, r.String())
		if _, err := table.Remove(again.ID(), true); err != nil {
			t.Error(err)
		}
	}
	r := add(t, table, "0:80")
	for in, says := range map[string]string{
		"tcp:127.0.0.1:1":                "no rule has this host end",
		"1:1":                            "no rule has the host end tcp:127.0.0.1:1",
		fmt.Sprintf("%d:81", r.HostPort): "is another rule, " + r.String(),
		"1,2":                            "one by one",
		"":                               "no rule has this host end",
	} {
		if _, err := table.Remove(in, false); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), says) {
			t.Errorf("Remove(%q): %v, want %q", in, err, says)
		}
	}
}

// TestRemoveUnderTraffic: without cut the conversation finishes, with cut it
// ends in resets; either way nobody gets in any more.
func TestRemoveUnderTraffic(t *testing.T) {
	for _, cut := range []bool{false, true} {
		t.Run(fmt.Sprintf("cut=%v", cut), func(t *testing.T) {
			guest := &fakeGuest{}
			guest.set("tcp", 80, server(t, echo))
			table := newTable(t, Config{Guest: guest})
			r := add(t, table, "0:80")
			const flows = 8
			mine := randomBytes(16<<20, 3) // more than the buffers on the way hold
			goOn := make(chan struct{})    // nobody reads, so nobody ends, before
			var wg sync.WaitGroup
			errs := make(chan error, flows)
			for range flows {
				c := dialHost(t, r)
				say(t, c, "hi")
				hear(t, c, "hi")
				wg.Go(func() {
					written := make(chan error, 1)
					go func() {
						_, err := c.Write(mine)
						c.(*net.TCPConn).CloseWrite()
						written <- err
					}()
					<-goOn
					got, err := io.ReadAll(c)
					if werr := <-written; err == nil {
						err = werr // the system reports a reset once
					}
					if err == nil && !bytes.Equal(got, mine) {
						err = fmt.Errorf("%d bytes came back", len(got))
					}
					errs <- err
				})
			}
			eventually(t, "bytes flow", func() bool { return status(t, table, r).ToClient > 1<<20 })
			if _, err := table.Remove(r.ID(), cut); err != nil {
				t.Fatal(err)
			}
			if c, err := net.Dial("tcp", hostEnd(r)); err == nil {
				c.Close()
				t.Error("still listening")
			}
			close(goOn)
			wg.Wait()
			close(errs)
			resets := 0
			for err := range errs {
				switch {
				case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
					resets++
				case err != nil:
					t.Error(err)
				}
			}
			if !cut && resets > 0 || cut && resets < flows {
				t.Errorf("%d of %d conversations were reset", resets, flows)
			}
		})
	}
}

// TestCloseLeavesNothing: neither descriptor nor socket file; goroutines are
// goleak's part.
func TestCloseLeavesNothing(t *testing.T) {
	guest := &fakeGuest{}
	tcp := server(t, echo)
	guest.set("tcp", 80, tcp)
	guest.set("tcp", 81, "") // dials hang
	guest.set("udp", 80, udpEcho(t))
	warm, err := net.Dial("tcp", tcp) // the poller's own descriptors
	if err != nil {
		t.Fatal(err)
	}
	warm.Close()
	path := filepath.Join(t.TempDir(), "s")
	before := openFiles(t)

	table := New(Config{Guest: guest, DialTimeout: time.Hour})
	var conns []net.Conn
	for _, text := range []string{"0:80", "[::1]:0:80", "unix:" + path + "-:80", "0:80/udp", "[::]:0:80/udp"} {
		r := add(t, table, text)
		for range 10 {
			c := dialHost(t, r)
			say(t, c, "hi")
			hear(t, c, "hi")
			conns = append(conns, c)
		}
	}
	hung := add(t, table, "0:81")
	for range 10 {
		conns = append(conns, dialHost(t, hung))
	}
	eventually(t, "dials hang", func() bool { return status(t, table, hung).Pending == 10 })
	add(t, table, fmt.Sprintf("%d-%[1]d", freeRange(t, 1)))

	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range conns {
		if c, ok := c.(*net.TCPConn); ok {
			wantReset(t, c)
		}
		c.Close()
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket file: %v", err)
	}
	if list := table.List(); len(list) != 0 {
		t.Errorf("rules after Close: %+v", list)
	}
	eventually(t, fmt.Sprintf("descriptors are back at %d", before), func() bool { return openFiles(t) <= before })
	table.Close() // harmless
}

func openFiles(t *testing.T) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		return 0
	}
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestShutdownWaits(t *testing.T) {
	guest := &fakeGuest{}
	guest.set("tcp", 80, server(t, echo))
	table := newTable(t, Config{Guest: guest})
	r := add(t, table, "0:80")
	c := dialHost(t, r)
	say(t, c, "hi")
	hear(t, c, "hi")
	done := make(chan struct{})
	go func() { table.Shutdown(t.Context()); close(done) }()
	eventually(t, "nobody gets in", func() bool {
		c, err := net.Dial("tcp", hostEnd(r))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	say(t, c, "still here")
	hear(t, c, "still here")
	select {
	case <-done:
		t.Fatal("Shutdown did not wait")
	default:
	}
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		t.Errorf("the end was not clean: %q, %v", b, err)
	}
	<-done
}

func TestShutdownCuts(t *testing.T) {
	guest := &fakeGuest{}
	guest.set("tcp", 80, server(t, echo))
	table := newTable(t, Config{Guest: guest})
	c := dialHost(t, add(t, table, "0:80"))
	say(t, c, "hi")
	hear(t, c, "hi")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	table.Shutdown(ctx)
	wantReset(t, c)
}

func TestUnixFile(t *testing.T) {
	guest := &fakeGuest{}
	guest.set("tcp", 80, server(t, echo))
	table := newTable(t, Config{Guest: guest})
	dir := t.TempDir()
	rule := func(name string) Rule {
		return Rule{Proto: Unix, Path: filepath.Join(dir, name), GuestPort: 80}
	}
	refused := func(t *testing.T, r Rule, kind error, says string) {
		t.Helper()
		before, _ := os.Lstat(r.Path)
		_, err := table.Add(t.Context(), r)
		if !errors.Is(err, kind) || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q of kind %v", err, says, kind)
		}
		t.Log(err)
		if after, _ := os.Lstat(r.Path); before != nil && !os.SameFile(before, after) {
			t.Error("the file is not the one that was there")
		}
	}
	t.Run("mode and end", func(t *testing.T) {
		r, err := table.Add(t.Context(), rule("new"))
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Lstat(r.Path)
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
		refused(t, r, ErrClash, "use another path")
		if _, err := table.Remove(r.ID(), false); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(r.Path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after Remove: %v", err)
		}
	})
	t.Run("somebody else's by the time we go", func(t *testing.T) {
		r, err := table.Add(t.Context(), rule("moved"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(r.Path, r.Path+".old"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(r.Path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := table.Remove(r.ID(), false); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(r.Path); string(b) != "precious" {
			t.Errorf("the other file: %q, %v", b, err)
		}
	})
	t.Run("regular file", func(t *testing.T) {
		r := rule("file")
		if err := os.WriteFile(r.Path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, r, ErrNotSocket, "a regular file, not a socket")
	})
	t.Run("folder", func(t *testing.T) { refused(t, rule("."), ErrNotSocket, "a folder") })
	t.Run("symbolic link", func(t *testing.T) {
		r := rule("link")
		if err := os.Symlink("/nowhere", r.Path); err != nil {
			t.Fatal(err)
		}
		refused(t, r, ErrNotSocket, "a symbolic link")
	})
	t.Run("no folder", func(t *testing.T) { refused(t, rule("no/where"), ErrBind, "make it first") })
	t.Run("live", func(t *testing.T) {
		r := rule("live")
		l, err := net.Listen("unix", r.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		refused(t, r, ErrInUse, "in use by this program itself")
	})
	t.Run("live datagram socket", func(t *testing.T) {
		r := rule("dgram")
		pc, err := net.ListenPacket("unixgram", r.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		refused(t, r, ErrInUse, "in use by")
	})
	t.Run("stale", func(t *testing.T) {
		r := rule("stale")
		l, err := net.Listen("unix", r.Path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
		if _, err := table.Add(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		c := dialHost(t, r)
		say(t, c, "hi")
		hear(t, c, "hi")
	})
}

func TestStatusJSON(t *testing.T) {
	guest := &fakeGuest{}
	table := newTable(t, Config{Guest: guest})
	r := add(t, table, "0:web:80")
	wantRefused(t, r)
	eventually(t, "it is counted", func() bool { return status(t, table, r).Refused == 1 })
	b, err := json.Marshal(table.List())
	if err != nil {
		t.Fatal(err)
	}
	var back []Status
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	s := back[0]
	if s.Rule != r || s.ID != r.ID() || s.Guest != Absent || s.Reasons[ReasonAbsent] != 1 || s.State != StateListening {
		t.Errorf("%s", b)
	}
}

// pipeEnd is a net.Conn with nothing but the interface.
type pipeEnd struct{ net.Conn }

// TestRelayPlainConns: without CloseWrite an end is a close, and Relay returns.
func TestRelayPlainConns(t *testing.T) {
	a, ours := net.Pipe()
	b, theirs := net.Pipe()
	type result struct {
		up, down int64
		err      error
	}
	done := make(chan result, 1)
	go func() {
		up, down, err := Relay(pipeEnd{ours}, pipeEnd{theirs})
		done <- result{up, down, err}
	}()
	say(t, a, "question")
	hear(t, b, "question")
	say(t, b, "answer")
	hear(t, a, "answer")
	a.Close()
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the other side: %v", err)
	}
	if r := <-done; r.up != 8 || r.down != 6 {
		t.Errorf("%+v", r)
	}
}

// abortable records how it was ended.
type abortable struct {
	net.Conn
	once    sync.Once
	aborted chan struct{}
}

func (a *abortable) Abort() error { a.once.Do(func() { close(a.aborted) }); return a.Conn.Close() }

func (a *abortable) CloseWrite() error { return errors.New("reset by peer") }

// TestRelayAborts the side that has an Abort.
func TestRelayAborts(t *testing.T) {
	a, ours := net.Pipe()
	_, theirs := net.Pipe()
	guest := &abortable{Conn: theirs, aborted: make(chan struct{})}
	a.Close() // an end, which guest cannot take any more
	_, _, err := Relay(ours, guest)
	<-guest.aborted
	if err == nil {
		t.Error("no error")
	}
}
