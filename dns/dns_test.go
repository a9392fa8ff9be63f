package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// --- the guest's side

// question makes a query from "NAME TYPE", and lets opts change it.
func question(s string, opts ...func(*wire.Msg)) *wire.Msg {
	at := strings.LastIndexByte(s, ' ') // a name may have some
	name, typ := s[:at], s[at+1:]
	m := new(wire.Msg)
	qtype, ok := wire.StringToType[typ]
	if !ok {
		if _, err := fmt.Sscanf(typ, "TYPE%d", &qtype); err != nil {
			panic(s)
		}
	}
	m.SetQuestion(wire.Fqdn(name), qtype)
	for _, o := range opts {
		o(m)
	}
	return m
}

func edns(size uint16) func(*wire.Msg) {
	return func(m *wire.Msg) { m.SetEdns0(size, false) }
}

func packed(t testing.TB, m *wire.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatalf("pack: %v", err)
	}
	return b
}

// overUDP sends one datagram and returns the answer to it.
func overUDP(t testing.TB, s *Server, m *wire.Msg) *wire.Msg {
	t.Helper()
	got := make(chan []byte, 1)
	s.HandleUDP(t.Context(), "web", packed(t, m), func(b []byte) { got <- b })
	select {
	case b := <-got:
		return unpacked(t, m, b)
	case <-time.After(20 * time.Second):
		t.Fatalf("no answer to %v", m.Question)
		return nil
	}
}

// overTCP asks on a connection of its own.
func overTCP(t testing.TB, s *Server, m *wire.Msg) *wire.Msg {
	t.Helper()
	return unpacked(t, m, streamed(t, s, packed(t, m)))
}

// streamed sends one message on a connection of its own, and waits for the
// connection's end: it counts against the guest's limit until then.
func streamed(t testing.TB, s *Server, msg []byte) []byte {
	t.Helper()
	near, far := net.Pipe()
	served := make(chan struct{})
	go func() { defer close(served); s.ServeConn(t.Context(), "web", far) }()
	defer func() { near.Close(); <-served }()
	return askOn(t, near, msg)
}

func askOn(t testing.TB, c net.Conn, msgs ...[]byte) []byte {
	t.Helper()
	for _, b := range msgs {
		if _, err := c.Write(append([]byte{byte(len(b) >> 8), byte(len(b))}, b...)); err != nil {
			t.Fatalf("write: %v", err)
		}
	}
	return readOn(t, c)
}

func readOn(t testing.TB, c net.Conn) []byte {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	b, err := readMessage(c)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return b
}

func unpacked(t testing.TB, asked *wire.Msg, b []byte) *wire.Msg {
	t.Helper()
	m := new(wire.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatalf("answer cannot be read: %v: %x", err, b)
	}
	if m.Id != asked.Id || !m.Response {
		t.Errorf("ID %#x, response %v; want ID %#x and a response", m.Id, m.Response, asked.Id)
	}
	if len(asked.Question) == 1 && (len(m.Question) != 1 || m.Question[0] != asked.Question[0]) {
		t.Errorf("question came back as %v, asked was %v", m.Question, asked.Question)
	}
	return m
}

// short writes records as a reader would: "NAME TYPE DATA", "; " between.
func short(rrs []wire.RR) string {
	var out []string
	for _, rr := range rrs {
		h := rr.Header()
		if h.Rrtype == wire.TypeOPT {
			continue
		}
		line := h.Name + " " + wire.Type(h.Rrtype).String()
		if h.Rrtype != wire.TypeSOA {
			line += " " + data(rr)
		}
		out = append(out, strings.TrimSpace(line))
	}
	return strings.Join(out, "; ")
}

// --- upstream's side

// upstream is a resolver on loopback, UDP and TCP on one port.
type upstream struct {
	addr netip.AddrPort

	mu    sync.Mutex
	asked []string // "udp NAME TYPE"
	ids   map[uint16]bool
	ports map[string]bool
	last  *wire.Msg
}

func (u *upstream) count() int { u.mu.Lock(); defer u.mu.Unlock(); return len(u.asked) }

func (u *upstream) seen() *wire.Msg { u.mu.Lock(); defer u.mu.Unlock(); return u.last }

func startUpstream(t testing.TB, host string, answer func(w wire.ResponseWriter, m *wire.Msg)) *upstream {
	t.Helper()
	u := &upstream{ids: map[uint16]bool{}, ports: map[string]bool{}}
	var pc net.PacketConn
	var l net.Listener
	for range 20 { // the port that UDP got may be taken for TCP
		var err error
		if pc, err = net.ListenPacket("udp", net.JoinHostPort(host, "0")); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			break
		}
		pc.Close()
	}
	if l == nil {
		t.Fatal("no port is free for both UDP and TCP")
	}
	u.addr = netip.MustParseAddrPort(pc.LocalAddr().String())
	h := wire.HandlerFunc(func(w wire.ResponseWriter, m *wire.Msg) {
		u.mu.Lock()
		u.asked = append(u.asked, fmt.Sprint(w.LocalAddr().Network(), " ", m.Question[0].Name, " ", wire.TypeToString[m.Question[0].Qtype]))
		u.ids[m.Id] = true
		u.ports[w.RemoteAddr().String()] = true
		u.last = m
		u.mu.Unlock()
		answer(w, m)
	})
	for _, srv := range []*wire.Server{{PacketConn: pc, Handler: h, UDPSize: 65535}, {Listener: l, Handler: h}} {
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		done := make(chan error, 1)
		go func() { done <- srv.ActivateAndServe() }()
		<-up
		t.Cleanup(func() {
			_ = srv.Shutdown()
			if err := <-done; err != nil {
				t.Errorf("upstream: %v", err)
			}
		})
	}
	return u
}

// behave is an upstream in a word:
//
//	silent      takes questions and never answers
//	closed      nobody listens on its port
//	slow IP     answers with IP once it was asked, after a while
//	lame        no error, no answer, no recursion
//	SERVFAIL, NXDOMAIN, …   answers with that code
//	IP          answers A with it
func behave(t testing.TB, what string) *upstream {
	t.Helper()
	word, arg, _ := strings.Cut(what, " ")
	if word == "closed" {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		return &upstream{addr: netip.MustParseAddrPort(pc.LocalAddr().String())}
	}
	return startUpstream(t, "127.0.0.1", func(w wire.ResponseWriter, m *wire.Msg) {
		r := new(wire.Msg)
		r.SetReply(m)
		r.RecursionAvailable = true
		switch word {
		case "silent":
			return
		case "slow":
			time.Sleep(3 * quick.Try) // longer than the patience it is tried with
			r.Answer = append(r.Answer, rr(t, m.Question[0].Name+" 60 A "+arg))
		case "lame":
			r.RecursionAvailable = false
		default:
			if code, ok := wire.StringToRcode[word]; ok {
				r.Rcode = code
			} else {
				r.Answer = append(r.Answer, rr(t, m.Question[0].Name+" 60 A "+word))
			}
		}
		_ = w.WriteMsg(r)
	})
}

func rr(t testing.TB, s string) wire.RR {
	t.Helper()
	r, err := wire.NewRR(s)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return r
}

// nobody fails the test if anything is asked upstream.
func nobody(t testing.TB) func(context.Context, string, netip.AddrPort) (net.Conn, error) {
	return func(context.Context, string, netip.AddrPort) (net.Conn, error) {
		t.Error("a local name was asked upstream")
		return nil, fmt.Errorf("nobody is there")
	}
}

// quick fails over soon, and still leaves a loaded machine time to answer;
// patient asks nobody twice.
var (
	quick   = Limits{Try: 50 * time.Millisecond, Total: 3 * time.Second}
	patient = Limits{Try: time.Minute, Total: time.Minute}
)

func start(t testing.TB, c Config) *Server {
	t.Helper()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// slirp is the network that a QEMU user expects, with two guests.
func slirp(t testing.TB, c Config) *Server {
	t.Helper()
	c.Prefixes = []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("fd00:0:0:2::/64")}
	c.Gateway = addrs("10.0.2.2", "fd00:0:0:2::2")
	c.Host = addrs("10.0.2.2", "fd00:0:0:2::2")
	s := start(t, c)
	for owner, host := range map[string][]string{
		"52:54:00:00:00:01": {"web", "10.0.2.15", "fd00:0:0:2::15"},
		"52:54:00:00:00:02": {"DB", "10.0.2.16"},
	} {
		if err := s.SetHost(owner, host[0], addrs(host[1:]...)...); err != nil {
			t.Fatal(err)
		}
	}
	return s
}
