package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmnetd/vmnetd/flows"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// network is QEMU's, with an IPv6 prefix.
var network = flows.Default{
	Gateways: []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00:2::2"), netip.MustParseAddr("fe80::5055:aff:fe00:202")},
	Local:    []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("fd00:2::/64")},
}

// lab is a policy, and a clock that stands still until it is moved.
type lab struct {
	*Policy
	t    testing.TB
	time time.Time
}

func newLab(t testing.TB, text string, change ...func(*Config)) *lab {
	t.Helper()
	d, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, time: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	c := Config{Document: d, Network: network, Now: func() time.Time { return l.time }, Local: func(n string) bool { return strings.HasSuffix(n, ".internal") }}
	for _, f := range change {
		f(&c)
	}
	if l.Policy, err = New(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// query reads "g1 tcp 192.0.2.1:443"; g1 and out are understood.
func query(s string) flows.Query {
	q := flows.Query{Guest: "g1", Src: netip.MustParseAddrPort("10.0.2.15:40000")}
	f := strings.Fields(s)
	for len(f) > 2 {
		switch f[0] {
		case "in":
			q.Dir = flows.In
		default:
			q.Guest = f[0]
		}
		f = f[1:]
	}
	if f[0] == "icmp" {
		a := netip.MustParseAddr(f[1])
		q.Proto, q.Dst = flows.ICMP, netip.AddrPortFrom(a, 0)
		if a.Is6() {
			q.Proto = flows.ICMPv6
		}
		return q
	}
	if err := q.Proto.UnmarshalText([]byte(f[0])); err != nil {
		panic(err)
	}
	q.Dst = netip.MustParseAddrPort(f[1])
	return q
}

// say is a verdict in words: allow, reject policy, drop martian, ask.
func say(v flows.Verdict) string {
	s := actionOf(v).String()
	if v.Reason != flows.ReasonNone {
		s += " " + v.Reason.String()
	}
	if v.Inspect != nil {
		s += " +inspect"
	}
	return s
}

func (l *lab) judge(q, want string) flows.Verdict {
	l.t.Helper()
	v := l.Judge(query(q))
	if got := say(v); got != want {
		l.t.Errorf("%s: %s (%s), want %s", q, got, v.Rule, want)
	}
	return v
}

// answer has a guest ask and be told; it returns what of the addresses it got.
func (l *lab) answer(guest, name string, ttl time.Duration, addrs ...string) string {
	l.t.Helper()
	if v := l.JudgeName(guest, name, 1); !v.Allow {
		return say(v)
	}
	var list []netip.Addr
	for _, a := range addrs {
		list = append(list, netip.MustParseAddr(a))
	}
	return fmt.Sprint(l.Answered(guest, name, list, ttl, l.cfg.Local(name)))
}

func (l *lab) resolves(name, want string) {
	l.t.Helper()
	v := l.JudgeName("g1", name, 1)
	if got := say(v); got != want {
		l.t.Errorf("%s: %s (%s), want %s", name, got, v.Rule, want)
	}
}

func (l *lab) firstBytes(v flows.Verdict, h flows.Hello, want string) {
	l.t.Helper()
	if v.Inspect == nil {
		l.t.Errorf("nothing inspects")
		return
	}
	if got := v.Inspect(h); say(got) != want {
		l.t.Errorf("first bytes %v: %s (%s), want %s", h, say(got), got.Rule, want)
	}
}

func tlsFor(n string) flows.Hello  { return flows.Hello{How: flows.HelloTLS, Name: n} }
func httpFor(n string) flows.Hello { return flows.Hello{How: flows.HelloHTTP, Name: n} }

// verdicts are queries and what becomes of them.
func (l *lab) verdicts(table string) {
	l.t.Helper()
	for line := range strings.SplitSeq(strings.TrimSpace(table), "\n") {
		q, want, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			l.t.Fatal(line)
		}
		l.judge(strings.TrimSpace(q), strings.TrimSpace(want))
	}
}

// What QEMU's user network allows is what the default policy does, for every kind of address.
func TestOpenIsTheDefault(t *testing.T) {
	closed := network
	closed.NoHostLoopback = true
	opened := network
	opened.OpenLinkLocal = []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("fe80::/10")}
	for i, n := range []flows.Default{network, closed, opened, {}} {
		l := newLab(t, "", func(c *Config) { c.Network = n })
		for _, a := range oddAddresses {
			for _, proto := range []flows.Proto{flows.TCP, flows.UDP, flows.ICMP} {
				for _, dir := range []flows.Direction{flows.Out, flows.In} {
					q := flows.Query{Guest: "g1", Proto: proto, Dir: dir, Dst: netip.AddrPortFrom(a, 443)}
					want, got := n.Judge(q), l.Judge(q)
					if want.Allow != got.Allow || want.Reject != got.Reject || want.Reset != got.Reset || want.Reason != got.Reason || got.Inspect != nil {
						t.Errorf("network %d: %s %s %s: %+v, want %+v", i, dir, proto, a, got, want)
					}
				}
			}
		}
	}
}

var oddAddresses = func() []netip.Addr {
	var list []netip.Addr
	for _, s := range []string{
		"10.0.2.2", "10.0.2.3", "10.0.2.15", "10.0.2.255", "fd00:2::2", "fd00:2::15", "fe80::5055:aff:fe00:202", "fe80::1", "fe80::1%eth0",
		"192.0.2.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "169.254.1.1", "127.0.0.1", "0.0.0.0", "0.1.2.3",
		"255.255.255.255", "240.0.0.1", "224.0.0.1", "::", "::1", "::192.0.2.1", "::ffff:192.0.2.1", "::ffff:0:192.0.2.1", "ff02::1", "2001:db8::1",
		"64:ff9b::192.0.2.1", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b::10.0.2.2", "64:ff9b:1::10.0.2.15", "2002:7f00:1::", "2002:a9fe:a9fe::1",
		"2002:c000:201::1", "1.1.1.1", "fd00:ec2::254", "fec0::1",
	} {
		list = append(list, netip.MustParseAddr(s))
	}
	return append(list, netip.Addr{})
}()

// What no rule can open.
func TestAlwaysClosed(t *testing.T) {
	l := newLab(t, "allow any any\nallow any 0.0.0.0/0\nallow any ::/0\nallow any link-local\nallow any private\nallow any host", func(c *Config) { c.Network.NoHostLoopback = true })
	l.verdicts(`
		tcp 10.0.2.2:80               = reject host-loopback
		tcp 10.0.2.77:80              = reject on-link
		tcp 127.0.0.1:80              = drop martian
		tcp 0.0.0.0:80                = drop martian
		udp 224.0.0.251:5353          = drop martian
		tcp [::1]:80                  = drop martian
		tcp [::ffff:192.0.2.1]:80     = drop martian
		tcp [64:ff9b::7f00:1]:80      = drop martian
		tcp [64:ff9b::a00:24d]:80     = reject on-link
		tcp [2002:a00:202::1]:80      = reject on-link
		tcp 169.254.1.1:80            = allow
		tcp 192.168.0.1:80            = allow`)
}

func TestFirstMatchWins(t *testing.T) {
	l := newLab(t, `
		allow tcp 10.1.0.0/16:443
		reject tcp 10.1.2.0/24
		drop udp 10.0.0.0/8:5000-5010,6000
		allow tcp 10.1.2.3:22      # behind the reject
		allow icmp 10.1.2.3
		reject any 10.0.0.0/8
		reject icmp
		drop any [2001:db8::]/32:53
		allow in tcp any:22
		drop in tcp 10.0.2.15
	`)
	l.verdicts(`
		tcp 10.1.2.3:443             = allow
		tcp 10.1.2.3:22              = reject policy
		tcp 10.1.3.3:22              = reject policy
		udp 10.9.0.1:4999            = reject policy
		udp 10.9.0.1:5000            = drop policy
		udp 10.9.0.1:5010            = drop policy
		udp 10.9.0.1:5011            = reject policy
		udp 10.9.0.1:6000            = drop policy
		tcp 10.9.0.1:6000            = reject policy
		icmp 10.1.2.3                = allow
		icmp 10.1.2.4                = reject policy
		icmp 192.0.2.1               = reject policy
		icmp 2001:db8::1             = reject policy
		tcp [2001:db8::1]:53         = drop policy
		udp [2001:db8::1]:53         = drop policy
		udp [2001:db8::1]:54         = allow
		tcp 192.0.2.1:443            = allow
		in tcp 10.0.2.15:22          = allow
		in tcp 10.0.2.15:80          = drop policy
		in udp 10.0.2.15:80          = allow
		in tcp 10.0.2.16:80          = allow`)
	if v := l.Judge(query("tcp 10.1.2.3:22")); v.Rule != "rule 2: reject tcp 10.1.2.0/24" || !v.Reset {
		t.Errorf("rule is %q, reset %v", v.Rule, v.Reset)
	}
}

// An IPv4 address inside an IPv6 one is not reached where it is not itself.
func TestEmbeddedAddresses(t *testing.T) {
	l := newLab(t, `
		reject tcp 203.0.113.0/24
		allow tcp [64:ff9b::]/96:443
		allow tcp [2000::]/3:443
		reject any private
		drop tcp any:443`)
	l.verdicts(`
		tcp [64:ff9b::cb00:7101]:443  = reject policy
		tcp [64:ff9b::c000:201]:443   = drop policy
		tcp [64:ff9b::a01:203]:443    = reject policy
		tcp [2002:a01:203::1]:443     = reject policy
		tcp [2002:cb00:7101::1]:443   = reject policy
		tcp [2001:db8::1]:443         = allow
		tcp [2001:db8::1]:80          = allow
		tcp [64:ff9b::c000:201]:80    = allow`)
	// In a closed preset nothing else says no to what the inner address is.
	l = newLab(t, "preset sandbox\nallow tcp [64:ff9b::]/96:443\nallow tcp 10.1.2.3:443")
	l.verdicts(`
		tcp [64:ff9b::c000:201]:443   = allow
		tcp [64:ff9b::a01:203]:443    = allow
		tcp [64:ff9b::a01:204]:443    = reject policy
		tcp [64:ff9b::808:808]:443    = reject policy
		tcp [64:ff9b::a9fe:a9fe]:443  = reject policy`)
}

func TestSandbox(t *testing.T) {
	l := newLab(t, "preset sandbox\nallow tcp *.debian.org:80,443\nallow tcp api.example.com:443\nallow tcp git.example.com:22\nallow tcp any:9000-9999\nallow any *:8000")
	if got := l.answer("g1", "deb.debian.org", time.Minute, "192.0.2.1", "2001:db8::1"); got != "[192.0.2.1 2001:db8::1]" {
		t.Errorf("deb.debian.org: %s", got)
	}
	l.answer("g1", "api.example.com", time.Minute, "192.0.2.2")
	l.answer("g1", "git.example.com", time.Minute, "192.0.2.3")
	l.verdicts(`
		tcp 192.0.2.1:443              = allow +inspect
		tcp [2001:db8::1]:80           = allow +inspect
		tcp 192.0.2.1:22               = reject policy
		tcp 192.0.2.2:443              = allow +inspect
		tcp 192.0.2.2:80               = reject policy
		udp 192.0.2.2:443              = reject policy
		tcp 192.0.2.3:22               = allow
		tcp 192.0.2.3:443              = reject policy
		tcp 192.0.2.99:443             = reject policy
		g2 tcp 192.0.2.1:443           = reject policy
		tcp 10.0.2.2:9000              = reject policy
		tcp 10.1.2.3:9000              = reject policy
		tcp 192.168.1.1:9000           = reject policy
		tcp 169.254.169.254:9000       = reject policy
		tcp 169.254.1.1:9000           = reject link-local
		tcp [fd00:ec2::254]:9000       = reject policy
		tcp 100.100.100.200:9000       = reject policy
		tcp 168.63.129.16:9000         = reject policy
		tcp 1.1.1.1:9000               = reject policy
		tcp [2001:4860:4860::8888]:9000 = reject policy
		tcp 192.0.2.99:9000            = allow
		udp 192.0.2.99:53              = reject policy
		tcp 192.0.2.99:853             = reject policy
		icmp 192.0.2.1                 = reject policy
		in tcp 10.0.2.15:22            = allow`)
	// * is all names, but for other resolvers'.
	l.resolves("any.example", "allow")
	l.resolves("dns.google", "reject name")
	l.resolves("x.cloudflare-dns.com", "reject name")
	l.resolves("web.internal", "allow")
}

func TestNamesInSandbox(t *testing.T) {
	l := newLab(t, "preset sandbox\nallow tcp *.debian.org:80,443\nallow tcp api.example.com:443\nreject any ftp.debian.org\nreject udp api.example.com\nallow tcp 10.1.2.3:443\nallow tcp corp.example.com:443")
	l.resolves("deb.debian.org", "allow")
	l.resolves("a.b.debian.org", "allow")
	l.resolves("debian.org", "reject name")
	l.resolves("xdebian.org", "reject name")
	l.resolves("api.example.com", "allow")
	l.resolves("x.api.example.com", "reject name")
	l.resolves("example.com", "reject name")
	l.resolves("secret-data.evil.example", "reject name")
	l.resolves("web.internal", "allow")
	l.resolves("15.2.0.10.in-addr.arpa", "allow")
	l.resolves("1.1.1.1.in-addr.arpa", "reject name")
	l.resolves("2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.0.0.d.f.ip6.arpa", "allow")
	l.resolves("2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.0.0.0.d.f.ip6.arpa", "reject name")
	l.resolves("use-application-dns.net", "reject name") // by which Firefox knows to leave its own resolver alone
	for _, text := range []string{"allow tcp any:22\nask udp any\nallow any 0.0.0.0/0\nallow any public", "reject any any\ndefault ask", "reject any evil.example\ndefault allow"} {
		newLab(t, "preset sandbox\n"+text).resolves("evil.example", "reject name")
	}
	for _, text := range []string{"allow tcp *:22", "default ask", "reject any public\ndefault allow"} {
		newLab(t, "preset sandbox\n"+text).resolves("evil.example", "allow")
	}
	newLab(t, "allow tcp any:22\ndefault reject").resolves("evil.example", "allow")
	newLab(t, "allow tcp 192.0.2.1:22\ndefault reject").resolves("evil.example", "reject name")
	// ftp is behind a rule that matches first.
	l.resolves("ftp.debian.org", "allow")
	// Rebinding.
	if got := l.answer("g1", "api.example.com", time.Minute, "10.9.9.9", "192.0.2.1", "127.0.0.1", "169.254.169.254", "10.0.2.2", "fd00:2::2", "::1", "fe80::1", "0.0.0.0", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "100.64.1.1"); got != "[192.0.2.1]" {
		t.Errorf("rebinding left %s", got)
	}
	// A rule of its own for the address says that it is meant.
	if got := l.answer("g1", "corp.example.com", time.Minute, "10.1.2.3", "10.1.2.4"); got != "[10.1.2.3]" {
		t.Errorf("corp is %s", got)
	}
	l.judge("tcp 10.1.2.3:443", "allow")
	// The network's own names may.
	l.Replace(mustParse(t, "preset sandbox\nallow tcp host.vmnetd.internal:8080\nallow tcp *.example.com:443"))
	if got := l.answer("g1", "host.vmnetd.internal", time.Minute, "10.0.2.2"); got != "[10.0.2.2]" {
		t.Errorf("host is %s", got)
	}
	l.verdicts(`
		tcp 10.0.2.2:8080 = allow +inspect
		tcp 10.0.2.2:8081 = reject policy`)

	l.Replace(mustParse(t, "preset sandbox\nnames nxdomain\nallow tcp *.example.com:443"))
	l.resolves("evil.example", "drop name")
}

func mustParse(t testing.TB, s string) Document {
	t.Helper()
	d, err := Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A public name of the guest's owner can be pointed at a public resolver, which is closed all the same.
func TestResolversBehindOtherNames(t *testing.T) {
	l := newLab(t, "preset sandbox\nallow tcp *:443")
	l.resolves("evil.example", "allow")
	l.resolves("dns.google", "reject name")
	l.answer("g1", "evil.example", time.Minute, "8.8.8.8", "192.0.2.1")
	l.judge("tcp 8.8.8.8:443", "reject policy")
	l.judge("tcp 192.0.2.1:443", "allow +inspect")

	l = newLab(t, "preset sandbox\nallow tcp dns.google:443\nallow udp 9.9.9.9:53\nallow any 1.1.1.1")
	l.resolves("dns.google", "allow")
	l.answer("g1", "dns.google", time.Minute, "8.8.8.8")
	l.verdicts(`
		tcp 8.8.8.8:443   = allow +inspect
		tcp 8.8.4.4:443   = reject policy
		udp 9.9.9.9:53    = allow
		tcp 9.9.9.9:53    = reject policy
		tcp 1.1.1.1:443   = allow
		udp 1.1.1.1:53    = reject policy`)
}

// Names open nothing private in any preset: whoever answers for them would say where.
func TestPublicNamesOpenNothingPrivate(t *testing.T) {
	l := newLab(t, "default reject\nallow tcp api.example.com")
	if got := l.answer("g1", "api.example.com", time.Minute, "10.9.9.9"); got != "[10.9.9.9]" {
		t.Errorf("open keeps answers as they are, got %s", got)
	}
	l.judge("tcp 10.9.9.9:443", "reject policy")
	if n := l.Names("g1"); len(n) != 1 || !n[0].Closed {
		t.Errorf("names: %+v", n)
	}
}

func TestOfflineAndRestrict(t *testing.T) {
	for _, preset := range []string{"offline", "restrict"} {
		l := newLab(t, "preset "+preset+"\nallow tcp 192.0.2.7:443\nallow tcp any:1234")
		deny := map[string]string{"offline": "reject", "restrict": "drop"}[preset]
		l.verdicts(`
			tcp 192.0.2.7:443    = allow
			tcp 192.0.2.8:1234   = allow
			tcp 192.0.2.8:443    = reject policy
			tcp 10.0.2.2:1234    = reject policy
			udp 192.0.2.8:53     = ` + deny + ` policy
			icmp 192.0.2.8       = ` + deny + ` policy
			in tcp 10.0.2.15:22  = allow
			in udp 10.0.2.15:53  = allow`)
		l.Replace(mustParse(t, "preset "+preset))
		l.resolves("example.com", "reject name")
		local := l.JudgeName("g1", "web.internal", 1)
		if local.Allow != (preset == "offline") {
			t.Errorf("%s: local names: %s", preset, say(local))
		}
	}
}

func TestLifetime(t *testing.T) {
	l := newLab(t, "preset sandbox\nallow tcp *.example.com:22")
	l.answer("g1", "a.example.com", 0, "192.0.2.1")
	l.answer("g1", "b.example.com", 10*time.Minute, "192.0.2.2")
	l.answer("g1", "c.example.com", 68*365*24*time.Hour, "192.0.2.3")
	l.time = l.time.Add(minOpen - time.Second)
	l.judge("tcp 192.0.2.1:22", "allow")
	l.time = l.time.Add(time.Second)
	l.judge("tcp 192.0.2.1:22", "reject policy")
	// Those that run are not cut off.
	if v := l.JudgeRunning(query("tcp 192.0.2.1:22"), flows.Verdict{Allow: true}); !v.Allow {
		t.Errorf("running: %s", say(v))
	}
	l.judge("tcp 192.0.2.2:22", "allow")
	l.time = l.time.Add(10 * time.Minute)
	l.judge("tcp 192.0.2.2:22", "reject policy")
	l.time = l.time.Add(24 * time.Hour)
	l.judge("tcp 192.0.2.3:22", "reject policy")
	// Asked again, it is open again; a shorter answer does not close what a longer one opened.
	l.answer("g1", "a.example.com", time.Hour, "192.0.2.1")
	l.answer("g1", "a.example.com", 0, "192.0.2.1")
	l.time = l.time.Add(59 * time.Minute)
	l.judge("tcp 192.0.2.1:22", "allow")
	l.Forget("g1")
	l.judge("tcp 192.0.2.1:22", "reject policy")
}

func TestFirstBytes(t *testing.T) {
	hello := func(h flows.HelloKind, n string) flows.Hello { return flows.Hello{How: h, Name: n} }
	l := newLab(t, "preset sandbox\nallow tcp *.example.com:443,8443,993\nreject tcp bad.example.net:443\nallow tcp *.example.net")
	l.answer("g1", "a.example.com", time.Minute, "192.0.2.1")
	l.answer("g1", "b.example.com", time.Minute, "192.0.2.1", "192.0.2.2")
	l.answer("g1", "c.example.com", time.Minute, "192.0.2.2")
	v := l.judge("tcp 192.0.2.1:443", "allow +inspect")
	l.firstBytes(v, tlsFor("a.example.com"), "allow")
	l.firstBytes(v, tlsFor("b.example.com"), "allow")
	l.firstBytes(v, httpFor("a.example.com"), "allow")
	l.firstBytes(v, tlsFor("c.example.com"), "reject other-name") // allowed, and not there
	l.firstBytes(v, tlsFor("evil.example"), "reject other-name")
	l.firstBytes(v, tlsFor(""), "reject other-name")
	l.firstBytes(v, httpFor("192.0.2.1"), "reject other-name")
	l.firstBytes(v, hello(flows.HelloNone, ""), "reject other-name")
	l.judge("tcp 192.0.2.1:993", "allow") // IMAPS begins with TLS too, and is no port where everybody does

	// The answer has run out by the time that the first bytes come: it had not when the conversation began.
	l.time = l.time.Add(time.Hour)
	l.firstBytes(v, tlsFor("a.example.com"), "allow")

	// Two names of one address, one of them closed.
	l.answer("g1", "bad.example.net", time.Minute, "192.0.2.3")
	l.answer("g1", "good.example.net", time.Minute, "192.0.2.3")
	v = l.judge("tcp 192.0.2.3:443", "allow +inspect")
	l.firstBytes(v, tlsFor("good.example.net"), "allow")
	l.firstBytes(v, tlsFor("bad.example.net"), "reject other-name")
	l.firstBytes(v, tlsFor(""), "reject other-name")

	// Loose.
	l = newLab(t, "reject tcp ads.example.net:443\nallow tcp *.example.com:443\ndefault reject\nallow tcp *.example.net:443")
	l.answer("g1", "a.example.com", time.Minute, "192.0.2.1")
	v = l.judge("tcp 192.0.2.1:443", "allow +inspect")
	l.firstBytes(v, tlsFor("a.example.com"), "allow")
	l.firstBytes(v, tlsFor(""), "allow")
	l.firstBytes(v, httpFor("192.0.2.1"), "allow")
	l.firstBytes(v, httpFor("192.0.2.2"), "reject other-name")
	l.firstBytes(v, hello(flows.HelloNone, ""), "allow")
	l.firstBytes(v, hello(flows.HelloPart, ""), "reject other-name")
	l.firstBytes(v, tlsFor("evil.example"), "reject other-name")
	l.answer("g1", "ads.example.net", time.Minute, "192.0.2.9")
	l.judge("tcp 192.0.2.9:443", "reject policy")
	l.answer("g1", "www.example.net", time.Minute, "192.0.2.9")
	v = l.judge("tcp 192.0.2.9:443", "allow +inspect")
	l.firstBytes(v, tlsFor("www.example.net"), "allow")
	l.firstBytes(v, tlsFor("ads.example.net"), "reject other-name")
	l.firstBytes(v, tlsFor(""), "reject policy") // the rule that comes first

	// What rules say for themselves.
	l = newLab(t, `
		preset sandbox
		allow tcp a.example.com:993 tls
		allow tcp a.example.com:8081 http
		allow udp a.example.com:4433 tls
		allow any a.example.com:7000 checked
		allow tcp a.example.com:443 unchecked
		allow tcp 192.0.2.7:1-1000 tls`)
	l.answer("g1", "a.example.com", time.Minute, "192.0.2.1")
	v = l.judge("tcp 192.0.2.1:993", "allow +inspect")
	l.firstBytes(v, tlsFor("a.example.com"), "allow")
	l.firstBytes(v, httpFor("a.example.com"), "reject other-name")
	v = l.judge("tcp 192.0.2.1:8081", "allow +inspect")
	l.firstBytes(v, tlsFor("a.example.com"), "reject other-name")
	l.firstBytes(v, httpFor("a.example.com"), "allow")
	v = l.judge("udp 192.0.2.1:4433", "allow +inspect")
	l.firstBytes(v, hello(flows.HelloQUIC, "a.example.com"), "allow")
	l.firstBytes(v, hello(flows.HelloNone, ""), "reject other-name")
	v = l.judge("udp 192.0.2.1:7000", "allow +inspect")
	l.firstBytes(v, hello(flows.HelloNone, ""), "reject other-name")
	l.judge("tcp 192.0.2.1:443", "allow")
	v = l.judge("tcp 192.0.2.7:22", "allow +inspect")
	l.firstBytes(v, hello(flows.HelloNone, ""), "reject other-name")
	l.firstBytes(v, tlsFor(""), "allow")

	l = newLab(t, "preset sandbox\nfirst-bytes off\nallow tcp *.example.com:443")
	l.answer("g1", "a.example.com", time.Minute, "192.0.2.1")
	l.judge("tcp 192.0.2.1:443", "allow")
}

func TestGuests(t *testing.T) {
	who := map[string][2]string{"g1": {"52:54:00:12:34:56", "Web1"}, "g2": {"", "db"}, "g3": {"52:54:00:ab:cd:ef", ""}}
	l := newLab(t, `
		allow tcp 192.0.2.1:80 guest=web*
		reject tcp 192.0.2.1
		drop udp any guest=52:54:00:AB:*

		guest db
		  preset offline
		  allow tcp 192.0.2.5:5432

		guest g3
		  reject tcp 192.0.2.1:443
		  default drop

		guest *
		  reject tcp 192.0.2.200
	`, func(c *Config) {
		c.Identify = func(g string) (string, string) { return who[g][0], who[g][1] }
	})
	l.verdicts(`
		tcp 192.0.2.1:80      = allow
		tcp 192.0.2.1:81      = reject policy
		tcp 192.0.2.200:81    = reject policy
		tcp 192.0.2.201:81    = allow
		g2 tcp 192.0.2.1:80   = reject policy
		g2 tcp 192.0.2.5:5432 = allow
		g2 tcp 192.0.2.201:81 = reject policy
		g3 tcp 192.0.2.1:80   = reject policy
		g3 tcp 192.0.2.1:443  = reject policy
		g3 tcp 192.0.2.200:81 = drop policy
		g3 udp 192.0.2.200:81 = drop policy
		g4 udp 192.0.2.200:81 = allow
		g4 tcp 192.0.2.200:81 = reject policy`)
	who["g1"] = [2]string{"52:54:00:12:34:56", "db"} // it took another name
	l.judge("tcp 192.0.2.1:80", "reject policy")
	if v := l.Judge(query("g3 tcp 192.0.2.1:443")); v.Rule != "guest g3 rule 1: reject tcp 192.0.2.1:443" {
		t.Errorf("rule is %q", v.Rule)
	}
	if got := strings.Join(l.Effective("g2"), "\n"); got != "guest db rule 1: allow tcp 192.0.2.5:5432\noffline: default reject" {
		t.Errorf("effective for g2:\n%s", got)
	}
}

func TestReplaceKeepsNames(t *testing.T) {
	l := newLab(t, "")
	l.answer("g1", "api.example.com", time.Hour, "192.0.2.1")
	l.judge("tcp 192.0.2.1:443", "allow")
	if err := l.Replace(mustParse(t, "preset sandbox\nallow tcp api.example.com:443")); err != nil {
		t.Fatal(err)
	}
	l.judge("tcp 192.0.2.1:443", "allow +inspect")
	l.judge("tcp 192.0.2.2:443", "reject policy")
	if err := l.Replace(Document{Set: Set{Rules: []Rule{{}}}}); err == nil {
		t.Error("a rule without a verdict is in force")
	}
	l.judge("tcp 192.0.2.1:443", "allow +inspect") // as before
	if got := l.Document().String(); got != "preset sandbox\nallow tcp api.example.com:443\n" {
		t.Errorf("document is %q", got)
	}
}

// Whoever changes a part of the document keeps what others changed, and what is wrong changes nothing.
func TestChange(t *testing.T) {
	l := newLab(t, "default reject")
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			err := l.Change(func(d *Document) error {
				d.Rules = append(d.Rules, Rule{Verdict: Allow, Proto: TCP, Ports: Ports{{uint16(i + 1), uint16(i + 1)}}})
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i := range 20 {
		l.judge(fmt.Sprintf("tcp 192.0.2.1:%d", i+1), "allow")
	}
	before := l.Document().String()
	if err := l.Change(func(d *Document) error { d.Rules = nil; return errors.New("no") }); err == nil || err.Error() != "no" {
		t.Errorf("error is %v", err)
	}
	if err := l.Change(func(d *Document) error { d.Rules[3].To = "nowhere"; return nil }); err == nil {
		t.Error("a rule that is none is in force")
	}
	if after := l.Document().String(); after != before {
		t.Errorf("document is\n%s", after)
	}
}
