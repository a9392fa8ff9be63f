package flows

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ask(guest string, p Proto, port uint16) Query {
	return Query{Guest: guest, Proto: p, Src: netip.AddrPortFrom(netip.MustParseAddr("10.0.2.15"), port), Dst: netip.MustParseAddrPort("198.51.100.1:80")}
}

func (t *Table) ports(guest string) string {
	var l []uint16
	for _, s := range t.List() {
		if s.Guest == guest {
			l = append(l, s.Src.Port())
		}
	}
	return fmt.Sprint(l)
}

// Who makes room, and who is refused: a table of openings.
func TestLimits(t *testing.T) {
	type step struct {
		guest string
		proto Proto
		port  uint16
		open  bool   // it is past dialing at once
		ended string // ports that made room, as "guest:port"
		want  Reason // it is not let in
	}
	for _, tt := range []struct {
		name   string
		limits Limits
		steps  []step
	}{
		{"dials of one guest", Limits{Dials: 2}, []step{
			{guest: "a", proto: TCP, port: 1}, {guest: "a", proto: TCP, port: 2}, {guest: "b", proto: TCP, port: 9},
			{guest: "a", proto: TCP, port: 3, ended: "a:1"}, {guest: "a", proto: TCP, port: 4, ended: "a:2"},
		}},
		{"open conversations are no dials", Limits{Dials: 1}, []step{
			{guest: "a", proto: TCP, port: 1, open: true}, {guest: "a", proto: TCP, port: 2, open: true}, {guest: "a", proto: TCP, port: 3},
			{guest: "a", proto: TCP, port: 4, ended: "a:3"},
		}},
		{"dials of all: who has most makes room", Limits{TotalDials: 4}, []step{
			{guest: "a", proto: TCP, port: 1}, {guest: "a", proto: TCP, port: 2}, {guest: "a", proto: TCP, port: 3}, {guest: "b", proto: TCP, port: 9},
			{guest: "b", proto: TCP, port: 10, ended: "a:1"},
		}},
		{"conversations of one guest", Limits{Flows: 2}, []step{
			{guest: "a", proto: TCP, port: 1, open: true}, {guest: "a", proto: TCP, port: 2}, {guest: "a", proto: TCP, port: 3, want: ReasonFlowLimit},
			{guest: "b", proto: TCP, port: 1}, {guest: "a", proto: UDP, port: 3},
		}},
		{"UDP mappings", Limits{UDP: 2}, []step{
			{guest: "a", proto: UDP, port: 1}, {guest: "b", proto: UDP, port: 1}, {guest: "a", proto: UDP, port: 2}, {guest: "a", proto: UDP, port: 3, ended: "a:1"},
		}},
		{"pings", Limits{Pings: 1}, []step{
			{guest: "a", proto: ICMP, port: 1}, {guest: "a", proto: ICMPv6, port: 2, want: ReasonRateLimit}, {guest: "b", proto: ICMP, port: 1},
		}},
		{"all together: who asks pays with its own UDP", Limits{Total: 3}, []step{
			{guest: "a", proto: UDP, port: 1}, {guest: "b", proto: UDP, port: 2}, {guest: "b", proto: TCP, port: 3},
			{guest: "b", proto: TCP, port: 4, ended: "b:2"}, {guest: "b", proto: TCP, port: 5, want: ReasonFlowLimit}, {guest: "c", proto: UDP, port: 6, want: ReasonFlowLimit},
			{guest: "a", proto: UDP, port: 7, ended: "a:1"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tab := NewTable(tt.limits, nil)
			var mu sync.Mutex
			var ended []string
			alive := 0
			for i, s := range tt.steps {
				ended = nil
				f, v := tab.Open(ask(s.guest, s.proto, s.port), func(r Reason) {
					mu.Lock()
					defer mu.Unlock()
					if r != ReasonEvicted && r != ReasonShutdown {
						t.Errorf("ended for %s", r)
					}
					ended = append(ended, fmt.Sprintf("%s:%d", s.guest, s.port))
				})
				if v.Reason != s.want || (f == nil) != (s.want != ReasonNone) {
					t.Fatalf("step %d: %+v, want reason %s", i, v, s.want)
				}
				if got := strings.Join(ended, " "); got != s.ended {
					t.Errorf("step %d: %q made room, want %q", i, got, s.ended)
				}
				if f != nil {
					alive++
				}
				alive -= len(ended)
				if s.open {
					f.SetState(Open)
				}
				if tab.Len() != alive {
					t.Errorf("step %d: %d flows, want %d", i, tab.Len(), alive)
				}
			}
			tab.EndAll(ReasonShutdown)
			if tab.Len() != 0 || len(tab.guests) != 0 || tab.dials.Len() != 0 {
				t.Errorf("%d flows, %d guests and %d dials are left", tab.Len(), len(tab.guests), tab.dials.Len())
			}
		})
	}
}

// A touch keeps a UDP flow from being the least recently used; idle time is what passed since.
func TestTouch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Limits{UDP: 3}, nil)
		var fs []*Flow
		for i := range uint16(3) {
			f, _ := tab.Open(ask("a", UDP, i+1), nil)
			fs = append(fs, f)
		}
		time.Sleep(2 * time.Second)
		fs[0].Touch()
		if fs[0].Idle() != 0 || fs[1].Idle() != 2*time.Second {
			t.Errorf("idle for %v and %v", fs[0].Idle(), fs[1].Idle())
		}
		tab.Open(ask("a", UDP, 4), nil)
		if got := tab.ports("a"); got != "[1 3 4]" {
			t.Errorf("%s are left, want 1 for it was touched", got)
		}
		fs[1].Touch() // it is gone: nothing happens
		if got := tab.ports("a"); got != "[1 3 4]" {
			t.Errorf("%s are left", got)
		}
	})
}

func TestFlowLife(t *testing.T) {
	tab := NewTable(Limits{}, nil)
	told := 0
	f, v := tab.Open(ask("a", TCP, 1), func(Reason) { told++ })
	if !v.Allow || f.State() != Dialing || tab.Opened() != 1 {
		t.Fatalf("%+v, %s", v, f.State())
	}
	f.SetState(Closing)
	f.SetState(Open) // backward
	if f.State() != Closing {
		t.Errorf("went back to %s", f.State())
	}
	f.Up.Add(10)
	f.Up.Add(5)
	f.Down.Add(0)
	if s := f.Snapshot(); s.UpBytes != 15 || s.UpPkts != 2 || s.DownBytes != 0 || s.DownPkts != 1 || s.State != "closing" {
		t.Errorf("%+v", s)
	}
	f.End(ReasonClosed)
	f.End(ReasonReset)
	tab.EndAll(ReasonShutdown)
	if got := tab.Counts(); len(got) != 1 || got["closed"] != 1 || told != 0 || f.State() != Closed {
		t.Errorf("counted %v, told %d times, %s: want one close that its owner knew of", got, told, f.State())
	}
	g, _ := tab.Open(ask("a", TCP, 2), func(Reason) { told++ })
	h, _ := tab.Open(ask("b", TCP, 2), func(Reason) { told += 10 })
	tab.EndGuest("a", ReasonGuestGone)
	if told != 1 || g.State() != Closed || h.State() != Dialing {
		t.Errorf("told %d, %s and %s", told, g.State(), h.State())
	}
}

func TestReasonsAreNamed(t *testing.T) {
	seen := map[string]bool{}
	for r := range Reason(NumReasons) {
		s := r.String()
		if s == "" || seen[s] || strings.ContainsAny(s, " _") {
			t.Errorf("reason %d is %q", r, s)
		}
		seen[s] = true
	}
	if got := Reason(200).String(); got != "reason-200" {
		t.Errorf("unknown reason: %q", got)
	}
}

func TestJSON(t *testing.T) {
	tab := NewTable(Limits{}, nil)
	q := ask("a", ICMPv6, 0)
	q.Dir = In
	f, _ := tab.Open(q, nil)
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	var s Snapshot
	if err := json.Unmarshal(b, &s); err != nil || s.Proto != ICMPv6 || s.Dir != In || s.State != "dialing" {
		t.Errorf("%s: %+v, %v", b, s, err)
	}
	for _, bad := range []string{`{"proto":"sctp"}`, `{"direction":"sideways"}`} {
		if json.Unmarshal([]byte(bad), &s) == nil {
			t.Errorf("%s was read", bad)
		}
	}
	var p Proto
	if err := p.UnmarshalText([]byte(Proto(132).String())); err != nil || p != 132 {
		t.Errorf("proto-132: %d, %v", p, err)
	}
}

// Many goroutines open, move and end flows: the lists stay whole.
func TestConcurrency(t *testing.T) {
	tab := NewTable(Limits{Dials: 5, UDP: 5, TotalDials: 12, Total: 40, Flows: 20, Pings: 3}, nil)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 2000 {
				p := []Proto{TCP, UDP, ICMP, ICMPv6}[i%4]
				f, _ := tab.Open(ask(fmt.Sprint("g", g%4), p, uint16(i)), func(Reason) {})
				if f == nil {
					continue
				}
				f.Touch()
				f.SetState(Open)
				if i%3 > 0 {
					f.End(ReasonClosed)
				}
				if i%500 == 0 {
					tab.EndGuest(fmt.Sprint("g", g%4), ReasonGuestGone)
				}
				tab.List()
			}
		}()
	}
	wg.Wait()
	tab.EndAll(ReasonShutdown)
	if tab.Len() != 0 || len(tab.guests) != 0 || tab.dials.Len() != 0 {
		t.Errorf("%d flows, %d guests and %d dials are left", tab.Len(), len(tab.guests), tab.dials.Len())
	}
}

// gate is a policy of a test's own.
type gate map[netip.Addr]bool

func (g gate) Judge(q Query) Verdict {
	if g[q.Dst.Addr()] {
		return Verdict{Allow: true, Rule: "open"}
	}
	return Verdict{Reject: true, Reason: ReasonPolicy, Rule: "shut"}
}

func TestPolicyIsAsked(t *testing.T) {
	tab := NewTable(Limits{}, gate{})
	if f, v := tab.Open(ask("a", TCP, 1), nil); f != nil || v.Reason != ReasonPolicy || v.Rule != "shut" || tab.Counts()["policy"] != 1 {
		t.Errorf("%+v, counted %v", v, tab.Counts())
	}
	tab.SetPolicy(gate{netip.MustParseAddr("198.51.100.1"): true})
	if f, v := tab.Open(ask("a", TCP, 1), nil); f == nil || v.Rule != "open" {
		t.Errorf("%+v", v)
	}
	tab.SetPolicy(nil)
	if v := tab.Judge(ask("a", TCP, 1)); !v.Allow {
		t.Errorf("no policy: %+v", v)
	}
}

func TestDefaultPolicy(t *testing.T) {
	ip := netip.MustParseAddr
	base := Default{
		Gateways: []netip.Addr{ip("10.0.2.2"), ip("fd00::2"), ip("fe80::5055:aff:fe00:202")},
		Local:    []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("fd00::/64")},
	}
	shut, open := base, base
	shut.NoHostLoopback = true
	open.OpenLinkLocal = []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32")}
	const yes = ReasonNone
	for _, tt := range []struct {
		dst                string
		base, shut, opened Reason
	}{
		{"198.51.100.1", yes, yes, yes}, {"192.168.1.1", yes, yes, yes}, {"2001:db8::1", yes, yes, yes}, {"fd11::1", yes, yes, yes},
		{"10.0.2.2", yes, ReasonHostLoopback, yes}, {"fd00::2", yes, ReasonHostLoopback, yes}, {"fe80::5055:aff:fe00:202", yes, ReasonHostLoopback, yes},
		{"10.0.2.3", ReasonOnLink, ReasonOnLink, ReasonOnLink}, {"10.0.2.255", ReasonOnLink, ReasonOnLink, ReasonOnLink}, {"fd00::3", ReasonOnLink, ReasonOnLink, ReasonOnLink},
		{"127.0.0.1", ReasonMartian, ReasonMartian, ReasonMartian}, {"127.8.9.10", ReasonMartian, ReasonMartian, ReasonMartian},
		{"0.0.0.0", ReasonMartian, ReasonMartian, ReasonMartian}, {"0.9.9.9", ReasonMartian, ReasonMartian, ReasonMartian},
		{"255.255.255.255", ReasonMartian, ReasonMartian, ReasonMartian}, {"240.0.0.1", ReasonMartian, ReasonMartian, ReasonMartian},
		{"224.0.0.1", ReasonMartian, ReasonMartian, ReasonMartian}, {"ff02::1", ReasonMartian, ReasonMartian, ReasonMartian},
		{"::", ReasonMartian, ReasonMartian, ReasonMartian}, {"::1", ReasonMartian, ReasonMartian, ReasonMartian}, {"::127.0.0.1", ReasonMartian, ReasonMartian, ReasonMartian},
		{"::ffff:127.0.0.1", ReasonMartian, ReasonMartian, ReasonMartian}, {"::ffff:198.51.100.1", ReasonMartian, ReasonMartian, ReasonMartian}, {"::ffff:0:7f00:1", ReasonMartian, ReasonMartian, ReasonMartian},
		{"fe80::1%eth0", ReasonMartian, ReasonMartian, ReasonMartian},
		{"169.254.169.254", ReasonLinkLocal, ReasonLinkLocal, yes}, {"169.254.169.253", ReasonLinkLocal, ReasonLinkLocal, ReasonLinkLocal}, {"fe80::1", ReasonLinkLocal, ReasonLinkLocal, ReasonLinkLocal},
		{"64:ff9b::7f00:1", ReasonMartian, ReasonMartian, ReasonMartian}, {"64:ff9b::a9fe:a9fe", ReasonLinkLocal, ReasonLinkLocal, yes}, {"64:ff9b::c633:6401", yes, yes, yes},
		{"64:ff9b::a00:202", ReasonOnLink, ReasonOnLink, ReasonOnLink}, {"64:ff9b:1::7f00:1", ReasonMartian, ReasonMartian, ReasonMartian},
		{"2002:7f00:1::", ReasonMartian, ReasonMartian, ReasonMartian}, {"2002:a9fe:a9fe::", ReasonLinkLocal, ReasonLinkLocal, yes}, {"2002:c633:6401::1", yes, yes, yes},
	} {
		for i, d := range []*Default{&base, &shut, &open} {
			want := []Reason{tt.base, tt.shut, tt.opened}[i]
			v := d.Judge(Query{Dst: netip.AddrPortFrom(ip(tt.dst), 80)})
			if v.Reason != want || v.Allow != (want == yes) {
				t.Errorf("%s, policy %d: %+v, want %s", tt.dst, i, v, want)
			}
			if v.Reject && want == ReasonMartian {
				t.Errorf("%s: a martian is answered", tt.dst)
			}
			if v := d.Judge(Query{Dir: In, Dst: netip.AddrPortFrom(ip(tt.dst), 80)}); !v.Allow {
				t.Errorf("%s from the host: %+v", tt.dst, v)
			}
		}
	}
	if v := base.Judge(Query{}); v.Allow {
		t.Error("an address that is not set is let in")
	}
}

// Opening and ending a flow, and moving it, cost what they must.
func TestAllocs(t *testing.T) {
	tab := NewTable(Limits{}, nil)
	f, _ := tab.Open(ask("a", UDP, 1), nil)
	if n := testing.AllocsPerRun(1000, func() { f.Touch(); f.Up.Add(1); f.SetState(Open) }); n > 0 {
		t.Errorf("%v allocations to move a flow", n)
	}
	if n := testing.AllocsPerRun(1000, func() { g, _ := tab.Open(ask("a", TCP, 2), nil); g.End(ReasonClosed) }); n > 6 {
		t.Errorf("%v allocations to open and end a flow", n)
	}
	if !slices.Contains([]string{"[1]"}, tab.ports("a")) {
		t.Errorf("left: %s", tab.ports("a"))
	}
}

// A conversation about which somebody is asked is held in the table; its owner hears the answer.
func TestPending(t *testing.T) {
	ask := make(chan Verdict, 1)
	tab := NewTable(Limits{}, saying(func(Query) Verdict { return Verdict{Pending: ask, Rule: "ask"} }))
	f, v := tab.Open(Query{Guest: "g1", Proto: TCP}, nil)
	if f == nil || v.Pending == nil || f.State() != Dialing {
		t.Fatalf("%+v, %+v; want a flow that waits", f, v)
	}
	if s := f.Snapshot(); s.Waits != "answer" || s.Policy != "ask" {
		t.Errorf("shown as %+v", s)
	}
	f.SetVerdict(Verdict{Allow: true, Rule: "yes", Inspect: func(Hello) Verdict { return Verdict{Allow: true} }})
	f.SetState(Open)
	if s := f.Snapshot(); s.Waits != "hello" || s.Policy != "yes" {
		t.Errorf("shown as %+v", s)
	}
	f.SetSaid(Hello{HelloTLS, "example.com"})
	if s := f.Snapshot(); s.Waits != "" || s.Name != "example.com" || s.Hello != "tls" {
		t.Errorf("shown as %+v", s)
	}
	f.End(ReasonClosed)
}

// A policy that is changed while it is asked does not let in what the new one would not.
func TestPolicyChangesMeanwhile(t *testing.T) {
	tab := NewTable(Limits{}, nil)
	tab.SetPolicy(saying(func(Query) Verdict {
		tab.SetPolicy(saying(func(Query) Verdict { return Verdict{} }))
		return Verdict{Allow: true}
	}))
	if f, v := tab.Open(Query{Guest: "g1", Proto: TCP}, nil); f != nil || v.Reason != ReasonPolicy {
		t.Errorf("%v, %+v; want it refused for the policy", f, v)
	}
}

type saying func(Query) Verdict

func (f saying) Judge(q Query) Verdict { return f(q) }
