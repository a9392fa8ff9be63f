package backend_test

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
)

// nameRules allows some names, and of the world's addresses those that are not private.
type nameRules struct {
	allow []string
	rude  []string // REFUSED

	mu   sync.Mutex
	told []string
}

func (r *nameRules) Judge(flows.Query) flows.Verdict { return flows.Verdict{Allow: true} }

func (r *nameRules) JudgeName(guest, name string, qtype uint16) flows.Verdict {
	return flows.Verdict{Allow: slices.Contains(r.allow, name), Reject: slices.Contains(r.rude, name)}
}

func (r *nameRules) Answered(guest, name string, addrs []netip.Addr, ttl time.Duration, local bool) []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, fmt.Sprint(guest, " ", name, " ", addrs, " ", ttl, " ", local))
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !local && a.IsPrivate() })
}

func (r *nameRules) heard() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	told := r.told
	r.told = nil
	return told
}

// worldNames is a resolver of the host's that knows a few names.
func worldNames(t testing.TB, records ...string) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	up, done := make(chan struct{}), make(chan error, 1)
	s := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(up) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg)
		r.SetReply(m)
		r.RecursionAvailable = true
		for _, s := range records {
			rr, err := dns.NewRR(s)
			if err != nil {
				t.Error(err)
			} else if rr.Header().Rrtype == m.Question[0].Qtype && strings.EqualFold(rr.Header().Name, m.Question[0].Name) {
				r.Answer = append(r.Answer, rr)
			}
		}
		_ = w.WriteMsg(r)
	})}
	go func() { done <- s.ActivateAndServe() }()
	<-up
	t.Cleanup(func() {
		_ = s.Shutdown()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

// resolve asks the network's resolver as a guest does.
func resolve(t testing.TB, g *Guest, resolver netip.Addr, over, name string, typ uint16) *dns.Msg {
	t.Helper()
	q := new(dns.Msg)
	m := new(dns.Msg)
	if over == "tcp" {
		c, err := g.Dial(patience(t), "tcp", at(resolver, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		dc := &dns.Conn{Conn: c}
		q.SetQuestion(name, typ)
		if err := dc.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(Patience))
		if m, err = dc.ReadMsg(); err != nil {
			t.Fatal(err)
		}
		return m
	}
	c, err := g.DialUDP(at(resolver, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(query(t, name, typ)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	k, _, err := c.ReadFrom(b)
	if err == nil {
		err = m.Unpack(b[:k])
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func answers(m *dns.Msg) []string {
	list := []string{}
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			list = append(list, rr.A.String())
		case *dns.AAAA:
			list = append(list, rr.AAAA.String())
		default:
			list = append(list, rr.String())
		}
	}
	return list
}

// The policy says what a guest may resolve and which addresses it gets, over UDP and TCP, and what it takes away is
// counted by guest and in all.
func TestPolicyOfNames(t *testing.T) {
	up := worldNames(t, "good.example. 300 A 192.0.2.1", "good.example. 300 AAAA 2001:db8::1", "evil.example. 60 A 192.0.2.2",
		"rebind.example. 60 A 10.1.2.3", "rebind.example. 60 A 192.0.2.3", "rebind.example. 60 AAAA fd00::1")
	for _, over := range []string{"udp", "tcp"} {
		t.Run(over, func(t *testing.T) {
			every(t, func(t *testing.T, c carrier, f family) {
				rules := &nameRules{allow: []string{"good.example", "rebind.example", "gateway.internal"}, rude: []string{"rude.example"}}
				n, g := c.up(t, backend.Config{Policy: rules, Resolvers: []netip.AddrPort{up}})
				rules.heard()
				id := n.Guests()[0].ID
				for _, tt := range []struct {
					name   string
					typ    uint16
					rcode  int
					want   []string
					told   string
					reason flows.Reason
				}{
					{"Good.Example.", dns.TypeA, dns.RcodeSuccess, []string{"192.0.2.1"}, "good.example [192.0.2.1] 5m0s false", 0},
					{"good.example.", dns.TypeAAAA, dns.RcodeSuccess, []string{"2001:db8::1"}, "good.example [2001:db8::1] 5m0s false", 0},
					{"good.example.", dns.TypeMX, dns.RcodeSuccess, []string{}, "", 0},
					{"evil.example.", dns.TypeA, dns.RcodeNameError, []string{}, "", flows.ReasonName},
					{"evil.example.", dns.TypeANY, dns.RcodeNameError, []string{}, "", flows.ReasonName},
					{"rude.example.", dns.TypeA, dns.RcodeRefused, []string{}, "", flows.ReasonName},
					{"host.internal.", dns.TypeA, dns.RcodeNameError, []string{}, "", flows.ReasonName},
					{"gateway.internal.", dns.TypeA, dns.RcodeSuccess, []string{"10.0.2.2"}, "gateway.internal [10.0.2.2] 5s true", 0},
					{"rebind.example.", dns.TypeA, dns.RcodeSuccess, []string{"192.0.2.3"}, "rebind.example [10.1.2.3 192.0.2.3] 1m0s false", flows.ReasonRebinding},
					{"rebind.example.", dns.TypeAAAA, dns.RcodeSuccess, []string{}, "rebind.example [fd00::1] 1m0s false", flows.ReasonRebinding},
				} {
					before, inAll := dropped(n, g, tt.reason), n.Flows().Counts()[tt.reason.String()]
					m := resolve(t, g, f.dns, over, tt.name, tt.typ)
					if m.Rcode != tt.rcode || !slices.Equal(answers(m), tt.want) {
						t.Errorf("%s: %s %v, want %s %v", tt.name, dns.RcodeToString[m.Rcode], answers(m), dns.RcodeToString[tt.rcode], tt.want)
					}
					var told []string
					if tt.told != "" {
						told = []string{id + " " + tt.told}
					}
					if heard := rules.heard(); !slices.Equal(heard, told) {
						t.Errorf("%s: told %q, want %q", tt.name, heard, told)
					}
					if tt.reason == flows.ReasonNone {
						continue
					}
					if got, all := dropped(n, g, tt.reason)-before, n.Flows().Counts()[tt.reason.String()]-inAll; got != 1 || all != 1 {
						t.Errorf("%s: %s counted %d times for the guest, %d in all", tt.name, tt.reason, got, all)
					}
				}
				if counts := n.Flows().Counts(); counts["name"] != 4 || counts["rebinding"] != 2 {
					t.Errorf("counted %v", counts)
				}
			})
		})
	}
}

// With a policy that has no say in names, as with none, answers are left as they are.
func TestPolicyWithoutNames(t *testing.T) {
	up := worldNames(t, "rebind.example. 60 A 10.1.2.3")
	for name, p := range map[string]flows.Policy{"none": nil, "other": openPolicy{}} {
		t.Run(name, func(t *testing.T) {
			_, g := carriers[0].up(t, backend.Config{Policy: p, Resolvers: []netip.AddrPort{up}})
			if m := resolve(t, g, dns4, "udp", "rebind.example.", dns.TypeA); !slices.Equal(answers(m), []string{"10.1.2.3"}) {
				t.Errorf("%v", m)
			}
		})
	}
}

type openPolicy struct{}

func (openPolicy) Judge(flows.Query) flows.Verdict { return flows.Verdict{Allow: true} }

// Another policy is heard from the next question on.
func TestPolicyOfNamesChanges(t *testing.T) {
	n, g := carriers[0].up(t, backend.Config{Policy: &nameRules{allow: []string{"gateway.internal"}}})
	ask := func(want int) {
		t.Helper()
		if m := resolve(t, g, dns4, "udp", "gateway.internal.", dns.TypeA); m.Rcode != want {
			t.Errorf("%s, want %s", dns.RcodeToString[m.Rcode], dns.RcodeToString[want])
		}
	}
	ask(dns.RcodeSuccess)
	n.Flows().SetPolicy(&nameRules{rude: []string{"gateway.internal"}})
	ask(dns.RcodeRefused)
	n.Flows().SetPolicy(openPolicy{})
	ask(dns.RcodeSuccess)
}

// A guest that asks for a hundred thousand names that it may not have leaves nothing behind, neither in memory nor in
// the log, and another is answered meanwhile.
func TestPolicyOfNamesFlood(t *testing.T) {
	log := &logged{}
	rules := &nameRules{allow: []string{"gateway.internal"}}
	n := start(t, backend.Config{Policy: rules, Logger: slog.New(slog.NewTextHandler(log, nil))})
	g, other := Plug(t, n, Config{}).Up(t), Plug(t, n, Config{}).Up(t)
	lines := log.count("\n")
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	hop := g.GatewayMAC(t)
	const questions = 100_000
	for i := range questions {
		q := query(t, fmt.Sprintf("n%d.example.", i), dns.TypeA)
		g.Send(Build(Ethernet{Src: g.MAC(), Dst: hop}, IPv4{Src: g.Addr4(), Dst: dns4}, UDP{SrcPort: 4000, DstPort: 53}, Payload(q)))
		if i%(questions/10) == 0 {
			if m := resolve(t, other, dns4, "udp", "gateway.internal.", dns.TypeA); len(m.Answer) != 1 {
				t.Errorf("another guest got %v", m)
			}
		}
	}
	eventually(t, "all are refused", func() bool { return dropped(n, g, flows.ReasonName) == questions })
	if got := dropped(n, other, flows.ReasonName); got != 0 {
		t.Errorf("%d counted for another guest", got)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if after.HeapAlloc > before.HeapAlloc+8<<20 { // the guest's own queue and the frames on their way
		t.Errorf("%d KiB more are held", (after.HeapAlloc-before.HeapAlloc)>>10)
	}
	if more := log.count("\n") - lines; more > 5 {
		t.Errorf("%d lines in the log", more)
	}
}
