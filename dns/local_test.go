package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	wire "github.com/miekg/dns"
)

func TestLocalNames(t *testing.T) {
	s := slirp(t, Config{Resolvers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}, Dial: nobody(t)})
	for _, r := range []string{
		"alias CNAME web",
		"ring1 CNAME ring2", "ring2 CNAME ring1",
		"dead CNAME nothing.docker.internal.",
		`web TXT "hello world"`,
		"_http._tcp SRV 0 5 8080 web",
		"db.corp.example. 60 A 10.0.2.77",
		"deep.er.docker.internal. A 10.0.2.78",
		"many A 10.0.2.80", "many A 10.0.2.81",
	} {
		if err := s.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		ask, rcode, answer, soa string
	}{
		{"web.internal A", "NOERROR", "web.internal. A 10.0.2.15", ""},
		{"web.internal AAAA", "NOERROR", "web.internal. AAAA fd00:0:0:2::15", ""},
		{"web A", "NOERROR", "web. A 10.0.2.15", ""},
		{"WeB.InTerNaL A", "NOERROR", "WeB.InTerNaL. A 10.0.2.15", ""},
		{"db.internal AAAA", "NOERROR", "", "db.internal."},
		{"db AAAA", "NOERROR", "", "db."},
		{"db HTTPS", "NOERROR", "", "db."},
		{"web.internal MX", "NOERROR", "", "web.internal."},
		{"web.internal SOA", "NOERROR", "web.internal. SOA", ""},
		{"web.internal TXT", "NOERROR", `web.internal. TXT "hello world"`, ""},
		{"web.internal TYPE65280", "NOERROR", "", "web.internal."},
		{"_http._tcp.internal SRV", "NOERROR", "_http._tcp.internal. SRV 0 5 8080 web.internal.", ""},
		{"many.internal A", "NOERROR", "many.internal. A 10.0.2.80; many.internal. A 10.0.2.81", ""},
		{"db.corp.example A", "NOERROR", "db.corp.example. A 10.0.2.77", ""},
		{"db.corp.example AAAA", "NOERROR", "", "db.corp.example."},

		{"alias.internal A", "NOERROR", "alias.internal. CNAME web.internal.; web.internal. A 10.0.2.15", ""},
		{"alias.internal CNAME", "NOERROR", "alias.internal. CNAME web.internal.", ""},
		{"alias.internal MX", "NOERROR", "alias.internal. CNAME web.internal.", "web.internal."},
		{"dead.internal A", "NXDOMAIN", "dead.internal. CNAME nothing.docker.internal.", "docker.internal."},
		{"ring1.internal A", "SERVFAIL", "", ""},

		{"gateway.internal A", "NOERROR", "gateway.internal. A 10.0.2.2", ""},
		{"gateway.internal AAAA", "NOERROR", "gateway.internal. AAAA fd00:0:0:2::2", ""},
		{"gateway A", "NOERROR", "gateway. A 10.0.2.2", ""},
		{"host.internal A", "NOERROR", "host.internal. A 10.0.2.2", ""},
		{"HOST.Docker.Internal A", "NOERROR", "HOST.Docker.Internal. A 10.0.2.2", ""},
		{"host.docker.internal AAAA", "NOERROR", "host.docker.internal. AAAA fd00:0:0:2::2", ""},
		{"gateway.docker.internal A", "NOERROR", "gateway.docker.internal. A 10.0.2.2", ""},
		{"host.containers.internal A", "NOERROR", "host.containers.internal. A 10.0.2.2", ""},
		{"gateway.containers.internal AAAA", "NOERROR", "gateway.containers.internal. AAAA fd00:0:0:2::2", ""},
		{"host.lima.internal A", "NOERROR", "host.lima.internal. A 10.0.2.2", ""},
		{"host.minikube.internal A", "NOERROR", "host.minikube.internal. A 10.0.2.2", ""},
		{"host.docker.internal TXT", "NOERROR", "", "docker.internal."},
		{"kubernetes.docker.internal A", "NXDOMAIN", "", "docker.internal."},
		{"docker.internal A", "NOERROR", "", "docker.internal."},
		{"docker.internal SOA", "NOERROR", "docker.internal. SOA", ""},
		{"er.docker.internal A", "NOERROR", "", "docker.internal."},
		{"_dns.resolver.arpa SVCB", "NXDOMAIN", "", "resolver.arpa."},

		{"localhost A", "NOERROR", "localhost. A 127.0.0.1", ""},
		{"LOCALHOST AAAA", "NOERROR", "LOCALHOST. AAAA ::1", ""},
		{"a.b.localhost A", "NOERROR", "a.b.localhost. A 127.0.0.1", ""},
		{"localhost MX", "NOERROR", "", "localhost."},

		{"15.2.0.10.in-addr.arpa PTR", "NOERROR", "15.2.0.10.in-addr.arpa. PTR web.internal.", ""},
		{"15.2.0.10.IN-ADDR.arpa PTR", "NOERROR", "15.2.0.10.IN-ADDR.arpa. PTR web.internal.", ""},
		{"2.2.0.10.in-addr.arpa PTR", "NOERROR", "2.2.0.10.in-addr.arpa. PTR gateway.internal.", ""},
		{"77.2.0.10.in-addr.arpa PTR", "NOERROR", "77.2.0.10.in-addr.arpa. PTR db.corp.example.", ""},
		{"15.2.0.10.in-addr.arpa A", "NOERROR", "", "2.0.10.in-addr.arpa."},
		{"99.2.0.10.in-addr.arpa PTR", "NXDOMAIN", "", "2.0.10.in-addr.arpa."},
		{"2.0.10.in-addr.arpa SOA", "NOERROR", "2.0.10.in-addr.arpa. SOA", ""},
		{"2.0.10.in-addr.arpa PTR", "NOERROR", "", "2.0.10.in-addr.arpa."},
		{"1.0.0.127.in-addr.arpa PTR", "NOERROR", "1.0.0.127.in-addr.arpa. PTR localhost.", ""},

		{"web.internal ANY", "NOERROR", `web.internal. HINFO "RFC8482" ""`, ""},
		{"nothing.docker.internal ANY", "NXDOMAIN", "", "docker.internal."},
		{"web.internal AXFR", "REFUSED", "", ""},
		{"docker.internal IXFR", "REFUSED", "", ""},
	} {
		t.Run(c.ask, func(t *testing.T) {
			m := question(c.ask)
			for way, got := range map[string]*wire.Msg{"udp": overUDP(t, s, m), "tcp": overTCP(t, s, m)} {
				checkLocal(t, way, got, c.rcode, c.answer, c.soa)
			}
		})
	}
	reverse6 := func(a string) string {
		r, err := wire.ReverseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	apex6 := reverse6("fd00:0:0:2::")[32:]
	for _, c := range []struct{ addr, rcode, name, soa string }{
		{"fd00:0:0:2::15", "NOERROR", "web.internal.", ""},
		{"fd00:0:0:2::2", "NOERROR", "gateway.internal.", ""},
		{"fd00:0:0:2::99", "NXDOMAIN", "", apex6},
		{"::1", "NOERROR", "localhost.", ""},
	} {
		t.Run("PTR "+c.addr, func(t *testing.T) {
			name := reverse6(c.addr)
			answer := ""
			if c.name != "" {
				answer = name + " PTR " + c.name
			}
			checkLocal(t, "udp", overUDP(t, s, question(name+" PTR")), c.rcode, answer, c.soa)
		})
	}
}

func checkLocal(t *testing.T, way string, got *wire.Msg, rcode, answer, soa string) {
	t.Helper()
	if wire.RcodeToString[got.Rcode] != rcode || short(got.Answer) != answer {
		t.Errorf("%s: %s %q; want %s %q", way, wire.RcodeToString[got.Rcode], short(got.Answer), rcode, answer)
	}
	want := ""
	if soa != "" {
		want = soa + " SOA"
	}
	if short(got.Ns) != want {
		t.Errorf("%s: authority %q; want %q", way, short(got.Ns), want)
	}
	negative := rcode == "NXDOMAIN" || rcode == "NOERROR" && answer == ""
	if negative && soa == "" {
		t.Errorf("%s: the table asks for no SOA with a negative answer", way)
	}
	if !got.RecursionAvailable || !got.RecursionDesired {
		t.Errorf("%s: RA %v RD %v; want both", way, got.RecursionAvailable, got.RecursionDesired)
	}
	if got.Authoritative != (rcode == "NOERROR" || rcode == "NXDOMAIN") {
		t.Errorf("%s: AA %v with %s", way, got.Authoritative, rcode)
	}
	for _, rr := range slices.Concat(got.Answer, got.Ns) {
		if ttl := rr.Header().Ttl; ttl != localTTL && ttl != 60 {
			t.Errorf("%s: TTL %d in %v", way, ttl, rr)
		}
	}
}

// What is not ours is the world's: it must be asked, and its answer must come.
func TestNotOurs(t *testing.T) {
	u := behave(t, "192.0.2.1")
	s := slirp(t, Config{Resolvers: []netip.AddrPort{u.addr}})
	if err := s.SetHost("evil", "com", addrs("10.0.2.66")...); err != nil {
		t.Fatal(err)
	}
	for _, ask := range []string{
		"metadata.google.internal A",
		"internal SOA",
		"wiki.internal A",
		"x.web.internal A",
		"com DS", "com NS", "com DNSKEY", "com SOA",
		"example.com A",
		"printer.local A",
		"notlocalhost A",
		"15.3.0.10.in-addr.arpa PTR",
		"10.in-addr.arpa SOA",
		"256.2.0.10.in-addr.arpa PTR",
		"015.2.0.10.in-addr.arpa PTR",
		"x.15.2.0.10.in-addr.arpa PTR",
		". NS",
	} {
		before := u.count()
		got := overUDP(t, s, question(ask))
		if u.count() != before+1 || short(got.Answer) == "" {
			t.Errorf("%s: asked upstream %d times, answer %q; want once and its answer", ask, u.count()-before, short(got.Answer))
		}
	}
	if got := short(overUDP(t, s, question("com A")).Answer); got != "com. A 10.0.2.66" {
		t.Errorf("com A: %q; the bare name of a guest is ours", got)
	}
}

func TestOwnDomain(t *testing.T) {
	u := behave(t, "192.0.2.1")
	s := slirp(t, Config{Domain: "VM.Example", Resolvers: []netip.AddrPort{u.addr}})
	for _, c := range []struct{ ask, rcode, answer string }{
		{"web.vm.example A", "NOERROR", "web.vm.example. A 10.0.2.15"},
		{"host.vm.example A", "NOERROR", "host.vm.example. A 10.0.2.2"},
		{"host.internal A", "NOERROR", "host.internal. A 10.0.2.2"},
		{"webb.vm.example A", "NXDOMAIN", ""},
		{"vm.example A", "NOERROR", ""},
	} {
		got := overUDP(t, s, question(c.ask))
		if wire.RcodeToString[got.Rcode] != c.rcode || short(got.Answer) != c.answer {
			t.Errorf("%s: %v %q; want %s %q", c.ask, wire.RcodeToString[got.Rcode], short(got.Answer), c.rcode, c.answer)
		}
	}
	if u.count() != 0 {
		t.Errorf("asked upstream: %q", u.asked)
	}
	if s.Domain() != "vm.example." {
		t.Errorf("Domain() is %q", s.Domain())
	}
}

// An alias of ours may stand for a name of the world's.
func TestAliasToOutside(t *testing.T) {
	u := behave(t, "192.0.2.7")
	s := slirp(t, Config{Resolvers: []netip.AddrPort{u.addr}})
	if err := s.Add("mirror CNAME deb.example.org."); err != nil {
		t.Fatal(err)
	}
	const want = "Mirror.internal. CNAME deb.example.org.; deb.example.org. A 192.0.2.7"
	for way, got := range map[string]*wire.Msg{
		"udp": overUDP(t, s, question("Mirror.internal A", edns(4096))),
		"tcp": overTCP(t, s, question("Mirror.internal A")),
	} {
		if short(got.Answer) != want || got.Rcode != 0 {
			t.Errorf("%s: %q; want %q", way, short(got.Answer), want)
		}
	}
	if !strings.HasSuffix(u.asked[0], " deb.example.org. A") {
		t.Errorf("asked upstream: %q", u.asked)
	}
}

func TestSetHost(t *testing.T) {
	s := slirp(t, Config{Resolvers: []netip.AddrPort{}})
	for _, c := range []struct {
		owner, name string
		err         error  // or
		text        string // part of the error
		key         string // the name it has then
	}{
		{"a", "One", nil, "", "one.internal."},
		{"a", "two", nil, "", "two.internal."},
		{"a", "three.example.org.", nil, "", "three.internal."},
		{"b", "THREE", ErrTaken, "is a's", ""},
		{"b", "gateway", ErrReserved, "", ""},
		{"b", "wpad", ErrReserved, "", ""},
		{"b", "WPAD.corp", ErrReserved, "", ""},
		{"b", "localhost", ErrReserved, "", ""},
		{"b", "", nil, "no host name", ""},
		{"b", "a_b", nil, "no host name", ""},
		{"b", "-a", nil, "no host name", ""},
		{"b", "a-", nil, "no host name", ""},
		{"b", "a b", nil, "no host name", ""},
		{"b", "\x00\xff", nil, "no host name", ""},
		{"b", strings.Repeat("x", 64), nil, "no host name", ""},
		{"b", strings.Repeat("x", 63), nil, "", strings.Repeat("x", 63) + ".internal."},
	} {
		err := s.SetHost(c.owner, c.name, addrs("10.0.2.50", "::ffff:10.0.2.50", "10.0.2.51")...)
		switch {
		case c.key != "":
			if err != nil {
				t.Errorf("%s %q: %v", c.owner, c.name, err)
			}
			if got := s.table.owners[c.owner]; got != c.key {
				t.Errorf("%s %q: is called %q; want %q", c.owner, c.name, got, c.key)
			}
		case err == nil, c.err != nil && !errors.Is(err, c.err), !strings.Contains(err.Error(), c.text):
			t.Errorf("%s %q: error %v; want %v %q", c.owner, c.name, err, c.err, c.text)
		}
	}
	// Of the names that "a" had, only the last is left, forwards and back.
	if got := s.table.lookup("one.internal.", wire.TypeA); got.ours {
		t.Errorf("one.internal is still ours")
	}
	s.RemoveHost("b")
	got := s.table.lookup("50.2.0.10.in-addr.arpa.", wire.TypePTR)
	if short(got.rrs) != "PTR three.internal." {
		t.Errorf("PTR: %q", short(got.rrs))
	}
	for _, o := range []string{"a", "b", "52:54:00:00:00:01", "52:54:00:00:00:02", "never"} {
		s.RemoveHost(o)
	}
	if len(s.table.hosts)+len(s.table.owners) != 0 || len(s.table.ptrs) != 2 {
		t.Errorf("left behind: %v %v %v", s.table.hosts, s.table.owners, s.table.ptrs)
	}
}

func TestAddRefuses(t *testing.T) {
	s := slirp(t, Config{Resolvers: []netip.AddrPort{}})
	for _, r := range []string{"one A 10.0.2.30", "alias CNAME one"} {
		if err := s.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ line, text string }{
		{"", "not one record"},
		{"; a comment", "nothing in it"},
		{"one", "record"},
		{"two A 10.0.2.300", "bad A"},
		{"two A fd00::1", "A"},
		{"two AAAA 10.0.2.1", "AAAA"},
		{"$GENERATE 1-65535 h$ A 10.0.2.1", "not one record"},
		{"$INCLUDE /etc/passwd", "not one record"},
		{"two A 10.0.2.1\nthree A 10.0.2.2", "not one record"},
		{"two CH A 10.0.2.1", "class"},
		{"@ SOA a. b. 1 2 3 4 5", "belongs to a zone"},
		{"two NS one", "belongs to a zone"},
		{"*.two A 10.0.2.1", "wildcards"},
		{"one A 10.0.2.30", "already"},
		{"one CNAME two", "stands alone"},
		{"alias A 10.0.2.30", "stands alone"},
		{"host A 10.0.2.30", "vmnetd's own"},
		{"host.docker.internal. A 10.0.2.30", "vmnetd's own"},
		{"x.localhost. A 10.0.2.30", "vmnetd's own"},
	} {
		if err := s.Add(c.line); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%q: %v; want an error with %q", c.line, err, c.text)
		}
	}
	for i := range maxRecords - 2 {
		if err := s.Add(fmt.Sprintf("n%d TXT x", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Add("more TXT x"); !errors.Is(err, ErrFull) {
		t.Errorf("record %d: %v; want ErrFull", maxRecords+1, err)
	}
}

func TestAddListRemove(t *testing.T) {
	s := start(t, Config{Resolvers: []netip.AddrPort{}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.2.0/23")}})
	for _, r := range []string{"web A 10.0.2.5", "web A 10.0.2.6", "web AAAA fd00::5", `web 30 TXT "a" "b c"`, "db.example. A 10.0.3.1"} {
		if err := s.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SetHost("mac", "web", addrs("10.0.2.15")...); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(s.List())
	want := `[{db.example. A 10.0.3.1 5 admin } {web.internal. A 10.0.2.5 5 admin } {web.internal. A 10.0.2.6 5 admin } {web.internal. AAAA fd00::5 5 admin } {web.internal. TXT "a" "b c" 30 admin } {web.internal. A 10.0.2.15 5 lease mac}]`
	if got != want {
		t.Errorf("List:\n%s\nwant\n%s", got, want)
	}
	// A prefix that ends inside a label still has a zone of its own above.
	if f := s.table.lookup("7.3.0.10.in-addr.arpa.", wire.TypePTR); f.apex != "3.0.10.in-addr.arpa." || !f.ours || f.known {
		t.Errorf("10.0.3.7: %+v", f)
	}
	if f := s.table.lookup("web.internal.", wire.TypeA); short(f.rrs) == "" || strings.Contains(short(f.rrs), "10.0.2.15") {
		t.Errorf("an added address stands before the lease's; got %q", short(f.rrs))
	}
	for _, c := range []struct {
		line string
		n    int
		text string
	}{
		{"web A 10.0.2.6", 1, ""},
		{"web A 10.0.2.6", 0, "own name"},
		{"WEB.internal. txt", 1, ""},
		{"web", 2, ""},
		{"web", 0, "own name"},
		{"nothing", 0, ""},
		{"", 0, "nothing named"},
		{"web FOO", 0, "no record type"},
		{"db.example. A 10.0.3.1", 1, ""},
	} {
		n, err := s.Remove(c.line)
		if n != c.n || (err != nil) != (c.text != "") || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("Remove(%q): %d %v; want %d %q", c.line, n, err, c.n, c.text)
		}
	}
	if f := s.table.lookup("web.internal.", wire.TypeA); short(f.rrs) != "A 10.0.2.15" {
		t.Errorf("the lease's address is back; got %q", short(f.rrs))
	}
	s.RemoveHost("mac")
	if n := len(s.table.admin) + s.table.nadmin + len(s.table.below) + len(s.table.ptrs); n != 0 {
		t.Errorf("left behind: %v %v %v", s.table.admin, s.table.below, s.table.ptrs)
	}
}

func FuzzAdd(f *testing.F) {
	f.Fuzz(func(t *testing.T, line string) {
		s := start(t, Config{Resolvers: []netip.AddrPort{}})
		if s.Add(line) != nil {
			return
		}
		list := s.List()
		if len(list) != 1 {
			t.Fatalf("%q became %d records", line, len(list))
		}
		r := list[0]
		q, err := parseQuery(packed(t, question(r.Name+" "+r.Type)))
		if err == nil {
			if m, _ := s.answerLocal("web", q); m != nil {
				q.finish(q.pack(m), q.limit())
			}
		}
		if n, err := s.Remove(r.Name); n != 1 || err != nil {
			t.Fatalf("Remove(%q) of %q: %d %v", r.Name, line, n, err)
		}
		if len(s.table.below) != 0 || len(s.table.ptrs) != 0 {
			t.Fatalf("%q left %v %v behind", line, s.table.below, s.table.ptrs)
		}
	})
}
