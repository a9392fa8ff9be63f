//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// answer is what "guest dns" prints.
type answer struct {
	Rcode   string
	Answer  []string
	AA, TC  bool
	EDNS    int
	Bytes   int
	Error   string
	Seconds float64
}

func (a answer) has(text string) bool {
	return slices.ContainsFunc(a.Answer, func(rr string) bool { return strings.Contains(rr, text) })
}

func (g *guest) query(t *testing.T, format string, args ...any) (a answer) {
	t.Helper()
	g.json(t, &a, "guest dns "+format, args...)
	return a
}

func testLocalNames(t *testing.T, b *bench) {
	for _, name := range []string{"gateway.internal", "host.internal", "host.docker.internal", "host.containers.internal", "host.lima.internal", "HOST.Docker.Internal"} {
		for _, server := range []string{b.dns4.String(), b.dns6.String()} {
			if a := b.g.query(t, "-server %s %s A", server, name); !a.has(b.gw4.String()) {
				t.Errorf("%s A at %s: %+v, want %s", name, server, a, b.gw4)
			}
		}
		if a := b.g.query(t, "%s AAAA", name); !a.has(b.gw6.String()) {
			t.Errorf("%s AAAA: %+v, want %s", name, a, b.gw6)
		}
	}
	if a := b.g.query(t, "-tcp alpha.internal"); !a.has(b.g.addr4.String()) {
		t.Errorf("alpha.internal over TCP: %+v, want %s", a, b.g.addr4)
	}
	if a := b.g.query(t, "alpha.internal AAAA"); !a.has(b.g.addr6.String()) {
		t.Errorf("alpha.internal AAAA: %+v, want %s", a, b.g.addr6)
	}
	if a := b.g.query(t, "gateway.internal MX"); a.Rcode != "NOERROR" || len(a.Answer) != 0 {
		t.Errorf("gateway.internal MX: %+v, want no data", a)
	}
	if a := b.g.query(t, "nobody.internal"); a.Rcode != "NXDOMAIN" {
		t.Errorf("nobody.internal: %+v, want NXDOMAIN", a)
	}
	if a := b.g.query(t, "2.2.0.10.in-addr.arpa PTR"); !a.has("internal.") {
		t.Errorf("PTR of 10.0.2.2: %+v", a)
	}
	b.must(t, "dns", "add", "db", "A", "10.0.2.77")
	if a := b.g.query(t, "db.internal"); !a.has("10.0.2.77") {
		t.Errorf("db.internal: %+v, want what was added", a)
	}
	b.must(t, "dns", "rm", "db")
	if a := b.g.query(t, "db.internal"); a.Rcode != "NXDOMAIN" {
		t.Errorf("db.internal: %+v, want NXDOMAIN: it was removed", a)
	}
	for _, name := range []string{"gateway.internal.", "host.internal.", "docker.internal.", "containers.internal.", "lima.internal.", "alpha.internal.", "10.in-addr.arpa."} {
		if n := b.dns.count(name); n != 0 {
			t.Errorf("%d questions for %s went upstream", n, name)
		}
	}
	// As programs in the guest do it, with the resolver and search list that DHCP gave them.
	if out, errs, code, _ := b.g.try(t, "nslookup host.docker.internal && ping -c 1 -W 5 gateway"); code != 0 {
		t.Errorf("with the guest's own resolver: %s%s", out, errs)
	}
}

func testUpstreamNames(t *testing.T, b *bench) {
	for qtype, want := range map[string]string{
		"A": "192.0.2.1", "AAAA": "2001:db8::1", "TXT": `"one" "two"`, "MX": "mail.example.", "SRV": "80 www.example.", "CAA": "ca.example",
		"HTTPS": "h2", "NAPTR": "!a!b!",
	} {
		if a := b.g.query(t, "www.example %s", qtype); a.Rcode != "NOERROR" || !a.has(want) {
			t.Errorf("www.example %s: %+v, want %s", qtype, a, want)
		}
	}
	if a := b.g.query(t, "-server %s -tcp www.example A", b.dns6); !a.has("192.0.2.1") {
		t.Errorf("over TCP and IPv6: %+v", a)
	}
	if a := b.g.query(t, "nx.example"); a.Rcode != "NXDOMAIN" {
		t.Errorf("nx.example: %+v", a)
	}
	if a := b.g.query(t, "fail.example"); a.Rcode != "SERVFAIL" {
		t.Errorf("fail.example: %+v", a)
	}
	if a := b.g.query(t, "www.example NS"); a.Rcode != "NOERROR" || len(a.Answer) != 0 {
		t.Errorf("www.example NS: %+v, want no data", a)
	}
	if a := b.g.query(t, "big.example TXT"); !a.TC || a.Bytes > 512 {
		t.Errorf("big.example over plain UDP: truncated %v, %d bytes; want truncated to 512", a.TC, a.Bytes)
	}
	if a := b.g.query(t, "-tcp big.example TXT"); a.TC || a.Bytes < 3000 {
		t.Errorf("big.example over TCP: truncated %v, %d bytes", a.TC, a.Bytes)
	}
	if a := b.g.query(t, "-edns 1232 www.example TXT"); a.EDNS == 0 || !a.has("one") {
		t.Errorf("with EDNS: %+v", a)
	}
	if a := b.g.query(t, "mute.example"); a.Rcode != "SERVFAIL" || a.Seconds > 8 {
		t.Errorf("mute.example: %+v, want SERVFAIL in bounded time", a)
	}
}

// TestResolvConf: the host's resolvers are those that it has now.
func TestResolvConf(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	l.setResolvConf(t, "nameserver "+silent4+"\n") // nobody answers there
	d := l.serve(t)
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	began := time.Now()
	if a := g.query(t, "www.example"); a.Rcode != "SERVFAIL" || time.Since(began) > 8*time.Second {
		t.Errorf("with a dead resolver: %+v in %v, want SERVFAIL in bounded time", a, time.Since(began))
	}
	if a := g.query(t, "gateway.internal"); !a.has("10.0.2.2") || a.Seconds > 1 {
		t.Errorf("a local name beside it: %+v", a)
	}
	l.setResolvConf(t, "nameserver "+silent4+"\nnameserver "+world6+"\n")
	wait(t, "the second resolver", func() error {
		if a := g.query(t, "www.example"); !a.has(world4) {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	l.setResolvConf(t, "nameserver 127.0.0.1\n") // where nobody listens: refused at once
	wait(t, "no resolver", func() error {
		if a := g.query(t, "www.example"); a.Rcode != "SERVFAIL" || a.Seconds > 2 {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	l.setResolvConf(t, "nameserver "+world4+"\n")
	wait(t, "the resolver is back", func() error {
		if a := g.query(t, "www.example"); !a.has(world4) {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
}
