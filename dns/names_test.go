package dns

import (
	"bytes"
	"context"
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

	wire "github.com/miekg/dns"
)

// register is Names as a test wants them, and what they were told.
type register struct {
	mu     sync.Mutex
	ruling map[string]Ruling // by name; "*" for the rest
	drop   []netip.Prefix    // of addresses of the world's
	asked  []string
	told   []string
}

func (r *register) Judge(guest, name string, qtype uint16) Ruling {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, fmt.Sprint(guest, " ", name, " ", wire.Type(qtype)))
	if v, ok := r.ruling[name]; ok {
		return v
	}
	return r.ruling["*"]
}

func (r *register) Answered(guest, name string, addrs []netip.Addr, ttl time.Duration, local bool) []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, fmt.Sprint(guest, " ", name, " ", addrs, " ", ttl, " ", local))
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool {
		return !local && slices.ContainsFunc(r.drop, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}

func (r *register) take() (asked, told []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked, told = r.asked, r.told
	r.asked, r.told = nil, nil
	return asked, told
}

// zone is an upstream that answers with all of these records whose type fits, whatever name was asked for, and has
// extra in its additional section.
func zone(t testing.TB, extra []string, records ...string) *upstream {
	return startUpstream(t, "127.0.0.1", func(w wire.ResponseWriter, m *wire.Msg) {
		r := new(wire.Msg)
		r.SetReply(m)
		r.RecursionAvailable, r.AuthenticatedData = true, true
		for _, s := range records {
			r.Answer = append(r.Answer, rr(t, s))
		}
		for _, s := range extra {
			r.Extra = append(r.Extra, rr(t, s))
		}
		_ = w.WriteMsg(r)
	})
}

var private = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}

func TestNamesJudged(t *testing.T) {
	names := &register{ruling: map[string]Ruling{
		"*": Missing, "allowed.example": Allow, "rude.example": Refuse, "web.internal": Allow, "host.internal": Refuse,
	}}
	u := behave(t, "192.0.2.7")
	s := slirp(t, Config{Resolvers: []netip.AddrPort{u.addr}, Limits: patient, Names: func() Names { return names }})
	for _, tt := range []struct{ question, code, answer, asked string }{
		{"Allowed.Example. A", "NOERROR", "192.0.2.7", "web allowed.example A"},
		{"other.example A", "NXDOMAIN", "", "web other.example A"},
		{"other.example ANY", "NXDOMAIN", "", "web other.example ANY"},
		{"other.example TXT", "NXDOMAIN", "", "web other.example TXT"},
		{"other.example TYPE65400", "NXDOMAIN", "", "web other.example TYPE65400"},
		{"rude.example AAAA", "REFUSED", "", "web rude.example AAAA"},
		{"web.internal A", "NOERROR", "10.0.2.15", "web web.internal A"},
		{"web A", "NXDOMAIN", "", "web web A"},
		{"host.internal A", "REFUSED", "", "web host.internal A"},
		{"localhost A", "NXDOMAIN", "", "web localhost A"},
		{"15.2.0.10.in-addr.arpa PTR", "NXDOMAIN", "", "web 15.2.0.10.in-addr.arpa PTR"},
		{". NS", "NXDOMAIN", "", "web  NS"},
		{`a\.allowed.example A`, "NXDOMAIN", "", ""}, // lies in example
		{`allowed\000.example A`, "NXDOMAIN", "", ""},
		{"allowed.example AXFR", "REFUSED", "", ""},
	} {
		for how, ask := range map[string]func(testing.TB, *Server, *wire.Msg) *wire.Msg{"udp": overUDP, "tcp": overTCP} {
			before, up := s.Status().Refused, u.count()
			m := ask(t, s, question(tt.question, edns(1232)))
			asked, _ := names.take()
			if got := wire.RcodeToString[m.Rcode]; got != tt.code || (tt.answer != "") != (len(m.Answer) == 1) || !strings.HasSuffix(short(m.Answer), tt.answer) {
				t.Errorf("%s %s: %s %s; want %s %s", how, tt.question, got, short(m.Answer), tt.code, tt.answer)
			}
			if strings.Join(asked, ", ") != tt.asked {
				t.Errorf("%s %s: asked %q, want %q", how, tt.question, asked, tt.asked)
			}
			refused := tt.code != "NOERROR"
			if counted := s.Status().Refused > before; counted != refused && tt.question != "allowed.example AXFR" {
				t.Errorf("%s %s: counted: %v", how, tt.question, counted)
			}
			if refused && u.count() != up {
				t.Errorf("%s %s: upstream was asked", how, tt.question)
			}
			if refused && len(m.Ns) > 0 {
				t.Errorf("%s %s: %v keeps the refusal", how, tt.question, m.Ns)
			}
		}
	}
}

func TestNamesAnswered(t *testing.T) {
	sig := "a.example. 60 RRSIG %s 13 2 60 20400101000000 20240101000000 1 example. AAAA"
	for _, tt := range []struct {
		name           string
		question       string
		records, extra []string
		answer, told   string
		removed        uint64
		untouched      bool
	}{
		{name: "an address", question: "A.example A", records: []string{"a.example. 60 A 192.0.2.1"},
			answer: "A 192.0.2.1", told: "web a.example [192.0.2.1] 1m0s false", untouched: true},
		{name: "many, of both families", question: "a.example ANY",
			records: []string{"a.example. 60 A 192.0.2.1", "a.example. 50 AAAA 2001:db8::1", "a.example. 70 A 192.0.2.2", "a.example. 5 TXT x"},
			answer:  "A 192.0.2.1, AAAA 2001:db8::1, A 192.0.2.2, TXT \"x\"", told: "web a.example [192.0.2.1 2001:db8::1 192.0.2.2] 50s false", untouched: true},
		{name: "aliases, in any order", question: "a.example A",
			records: []string{"c.example. 60 A 192.0.2.1", "B.example. 20 CNAME c.example.", "a.example. 30 CNAME b.example."},
			answer:  "A 192.0.2.1, CNAME c.example., CNAME b.example.", told: "web a.example [192.0.2.1] 20s false", untouched: true},
		{name: "aliases in a ring", question: "a.example A", records: []string{"a.example. 30 CNAME b.example.", "b.example. 30 CNAME a.example."},
			answer: "CNAME b.example., CNAME a.example.", untouched: true},
		{name: "no addresses", question: "a.example TXT", records: []string{"a.example. 60 TXT hello"}, answer: "TXT \"hello\"", untouched: true},
		{name: "of private ones", question: "a.example A",
			records: []string{"a.example. 60 A 10.1.2.3", "a.example. 60 A 192.0.2.1", fmt.Sprintf(sig, "A"), fmt.Sprintf(sig, "CNAME")},
			answer:  "A 192.0.2.1, RRSIG", told: "web a.example [10.1.2.3 192.0.2.1] 1m0s false", removed: 1},
		{name: "private ones only", question: "a.example AAAA", records: []string{"a.example. 60 AAAA fd00::1"},
			told: "web a.example [fd00::1] 1m0s false", removed: 1},
		{name: "private, wrapped", question: "a.example AAAA", records: []string{"a.example. 60 AAAA ::ffff:10.1.2.3"},
			told: "web a.example [10.1.2.3] 1m0s false", removed: 1},
		{name: "through an alias", question: "a.example A", records: []string{"a.example. 60 CNAME b.example.", "b.example. 60 A 10.1.2.3"},
			answer: "CNAME b.example.", told: "web a.example [10.1.2.3] 1m0s false", removed: 1},
		{name: "of a name not asked for", question: "a.example A", records: []string{"a.example. 60 A 192.0.2.1", "b.example. 60 A 192.0.2.2"},
			answer: "A 192.0.2.1", told: "web a.example [192.0.2.1] 1m0s false", removed: 1},
		{name: "aside", question: "a.example MX", records: []string{"a.example. 60 MX 1 b.example."}, extra: []string{"b.example. 60 A 192.0.2.2"},
			answer: "MX 1 b.example."},
		{name: "https, plain", question: "a.example HTTPS", records: []string{`a.example. 60 HTTPS 1 . alpn="h2,h3" port=8443`},
			answer: `HTTPS 1 . alpn="h2,h3" port="8443"`, untouched: true},
		{name: "https, all", question: "a.example HTTPS", records: []string{`a.example. 60 HTTPS 1 a.example. mandatory=alpn,ipv4hint alpn="h2" ipv4hint=192.0.2.9 ipv6hint=2001:db8::9 ech=AAAA`},
			answer: `HTTPS 1 a.example. mandatory="alpn" alpn="h2"`},
		{name: "https, nothing kept of mandatory", question: "a.example HTTPS", records: []string{`a.example. 60 HTTPS 1 . mandatory=ipv4hint ipv4hint=192.0.2.9`},
			answer: `HTTPS 1 .`},
		{name: "https elsewhere", question: "a.example HTTPS", records: []string{`a.example. 60 HTTPS 1 b.example. alpn="h2"`, `a.example. 60 HTTPS 0 c.example.`}},
		{name: "svcb", question: "a.example SVCB", records: []string{`a.example. 60 SVCB 1 . ipv4hint=10.0.0.1 ech=AAAA`}, answer: `SVCB 1 .`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			names := &register{drop: private}
			u := zone(t, tt.extra, tt.records...)
			s := slirp(t, Config{Resolvers: []netip.AddrPort{u.addr}, Limits: patient, Names: func() Names { return names }})
			m := overUDP(t, s, question(tt.question))
			var got []string
			for _, rr := range m.Answer {
				typ := wire.TypeToString[rr.Header().Rrtype]
				if typ == "RRSIG" {
					got = append(got, typ)
				} else {
					got = append(got, typ+" "+strings.TrimSpace(data(rr)))
				}
			}
			if g := strings.Join(got, ", "); g != tt.answer || m.Rcode != wire.RcodeSuccess {
				t.Errorf("%s %s; want %s", wire.RcodeToString[m.Rcode], g, tt.answer)
			}
			for _, rr := range slices.Concat(m.Ns, m.Extra) {
				t.Errorf("%v beside the answer", rr)
			}
			if _, told := names.take(); strings.Join(told, "; ") != tt.told {
				t.Errorf("told %q, want %q", told, tt.told)
			}
			if n := s.Status().Removed; n != tt.removed {
				t.Errorf("%d addresses counted as removed, want %d", n, tt.removed)
			}
			if m.AuthenticatedData != tt.untouched {
				t.Errorf("authenticated data: %v", m.AuthenticatedData)
			}
		})
	}
}

// What the local zones know is told as local, and may be taken out as well.
func TestNamesOfLocalAnswers(t *testing.T) {
	names := &register{}
	u := zone(t, nil, "outside.example. 60 A 192.0.2.1")
	s := slirp(t, Config{Resolvers: []netip.AddrPort{u.addr}, Limits: patient, Names: func() Names { return names }})
	for _, r := range []string{"alias 9 CNAME web.internal.", "out 9 CNAME outside.example.", `hint HTTPS 1 . ipv4hint=10.0.2.99`} {
		if err := s.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ question, told string }{
		{"web A", "web web [10.0.2.15] 5s true"},
		{"WEB.internal AAAA", "web web.internal [fd00:0:0:2::15] 5s true"},
		{"alias.internal A", "web alias.internal [10.0.2.15] 5s true"},
		{"localhost A", "web localhost [127.0.0.1] 5s true"},
		{"out.internal A", "web out.internal [192.0.2.1] 9s false"},
		{"hint.internal HTTPS", ""},
		{"web.internal TXT", ""},
	} {
		m := overTCP(t, s, question(tt.question))
		if _, told := names.take(); strings.Join(told, "; ") != tt.told {
			t.Errorf("%s: told %q, want %q", tt.question, told, tt.told)
		}
		if strings.Contains(short(m.Answer), "hint=") {
			t.Errorf("%s: %s", tt.question, short(m.Answer))
		}
	}
	// The table's own records are as they were.
	if !slices.ContainsFunc(s.List(), func(r Record) bool { return strings.Contains(r.Data, "ipv4hint") }) {
		t.Error("the record in the table has lost its hint")
	}
}

// Who has a say may change between a question and its answer: it is the one of now who is told.
func TestNamesChange(t *testing.T) {
	asked, gone := make(chan struct{}), make(chan struct{})
	u := startUpstream(t, "127.0.0.1", func(w wire.ResponseWriter, m *wire.Msg) {
		close(asked)
		<-gone
		r := new(wire.Msg)
		r.SetReply(m)
		r.RecursionAvailable = true
		r.Answer = append(r.Answer, rr(t, "a.example. 60 A 10.1.2.3"))
		_ = w.WriteMsg(r)
	})
	var mu sync.Mutex
	var now Names
	s := slirp(t, Config{Resolvers: []netip.AddrPort{u.addr}, Limits: patient, Names: func() Names { mu.Lock(); defer mu.Unlock(); return now }})
	q := question("a.example A")
	got := make(chan []byte, 1)
	s.HandleUDP(t.Context(), "web", packed(t, q), func(b []byte) { got <- b })
	<-asked
	names := &register{drop: private}
	mu.Lock()
	now = names
	mu.Unlock()
	close(gone)
	if m := unpacked(t, q, <-got); len(m.Answer) > 0 {
		t.Errorf("%v got through", m.Answer)
	}
	if _, told := names.take(); len(told) != 1 {
		t.Errorf("told %q", told)
	}
}

// An answer that cannot be read cannot be judged.
func TestNamesUnreadableAnswer(t *testing.T) {
	bad := func(names func() Names) *wire.Msg {
		s := slirp(t, Config{Resolvers: somebody, Limits: patient, Names: names, Dial: func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
			mine, its := net.Pipe()
			go func() {
				defer its.Close()
				b := make([]byte, 4096)
				n, err := its.Read(b)
				if err != nil {
					return
				}
				b = b[:n]
				b[2], b[3] = 0x81, 0x80
				b[7] = 1 // an answer: a name, and no more
				_, _ = its.Write(append(b, "\x01a\x00\x00"...))
			}()
			return mine, nil
		}})
		q := question("a.example A")
		got := make(chan []byte, 1)
		s.HandleUDP(t.Context(), "web", packed(t, q), func(b []byte) { got <- bytes.Clone(b) })
		b := <-got
		return &wire.Msg{MsgHdr: wire.MsgHdr{Rcode: int(b[3] & 0xf)}}
	}
	if m := bad(nil); m.Rcode != wire.RcodeSuccess {
		t.Errorf("without names: %v", m.Rcode)
	}
	if m := bad(func() Names { return &register{} }); m.Rcode != wire.RcodeServerFailure {
		t.Errorf("with names: %v", m.Rcode)
	}
}

// A guest that asks for a hundred thousand names that it may not have leaves nothing behind.
func TestNamesRefusedFlood(t *testing.T) {
	log := &lines{}
	names := names1{}
	s := slirp(t, Config{Resolvers: somebody, Dial: nobody(t), Names: func() Names { return names }, Logger: slog.New(slog.NewTextHandler(log, nil))})
	quiet := log.count("\n")
	const questions = 100_000
	msgs := make([][]byte, 0, questions)
	for i := range questions {
		msgs = append(msgs, packed(t, question(fmt.Sprintf("n%d.example A", i))))
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, answers := heap(), 0
	began := time.Now()
	for _, b := range msgs {
		s.HandleUDP(t.Context(), "web", b, func([]byte) { answers++ })
	}
	took := time.Since(began)
	after := heap()
	if st := s.Status(); st.Refused != questions || answers != questions || st.Forwarded != 0 {
		t.Errorf("%d refused, %d answers, %d forwarded", st.Refused, answers, st.Forwarded)
	}
	if after > before+64<<10 {
		t.Errorf("%d bytes are kept", after-before)
	}
	if n := log.count("\n") - quiet; n > 0 {
		t.Errorf("%d lines in the log", n)
	}
	t.Logf("%v a question", took/questions)
	runtime.KeepAlive(msgs)
}

// names1 refuses all.
type names1 struct{}

func (names1) Judge(string, string, uint16) Ruling { return Refuse }
func (names1) Answered(_, _ string, a []netip.Addr, _ time.Duration, _ bool) []netip.Addr {
	return a
}

// FuzzAnswers has what resolvers say, of which guests decide a part: their own zones'. What is left of it for a guest
// that may have no address holds none, nor anything that leads past the question.
func FuzzAnswers(f *testing.F) {
	s := slirp(f, Config{Resolvers: somebody, Dial: nowhere, Names: func() Names { return nothing{} }})
	q, err := parseQuery(append(head(0x0100, 1), "\x01a\x07example\x00\x00\x01\x00\x01"...))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) < headerLen {
			return // no answer is that short (ask)
		}
		out := s.siftRaw("web", q, bytes.Clone(raw))
		var m wire.Msg
		if err := m.Unpack(out); err != nil {
			t.Fatalf("%x cannot be read: %v", out, err)
		}
		for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
			svcb := new(wire.SVCB)
			switch rr := rr.(type) {
			case *wire.A, *wire.AAAA:
				t.Fatalf("%v is left", rr)
			case *wire.SVCB:
				svcb = rr
			case *wire.HTTPS:
				svcb = &rr.SVCB
			default:
				continue
			}
			if elsewhere(svcb) || strings.Contains(svcb.String(), "hint=") || strings.Contains(svcb.String(), " ech=") {
				t.Fatalf("%v is left", rr)
			}
		}
		if again := s.siftRaw("web", q, bytes.Clone(out)); !bytes.Equal(again, out) {
			t.Fatalf("%x and then %x", out, again)
		}
	})
}

// nothing lets a guest ask for all and have no address.
type nothing struct{}

func (nothing) Judge(string, string, uint16) Ruling { return Allow }
func (nothing) Answered(string, string, []netip.Addr, time.Duration, bool) []netip.Addr {
	return nil
}
