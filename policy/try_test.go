package policy

import (
	"strings"
	"testing"
	"time"
)

func TestTest(t *testing.T) {
	l := newLab(t, `
		preset sandbox
		allow tcp api.example.com:443
		allow tcp mail.example.com:993 tls
		ask tcp *.example.org
		allow udp 192.0.2.0/24:123
		reject any closed.example.com
		allow icmp *.example.com

		guest lazy
		  preset open
		  allow tcp *.example.com:80
	`)
	for _, x := range []struct{ guest, proto, dst, want string }{
		{"g1", "tcp", "api.example.com:443", "tcp api.example.com:443: allow, by rule 1: allow tcp api.example.com:443; first bytes must be TLS or HTTP and name api.example.com"},
		{"g1", "tcp", "API.example.com:80", "tcp api.example.com:80: reject, by sandbox: default reject (policy)"},
		{"g1", "tcp", "mail.example.com:993", "tcp mail.example.com:993: allow, by rule 2: allow tcp mail.example.com:993 tls; first bytes must be TLS or QUIC and name mail.example.com"},
		{"g1", "tcp", "x.example.org:22", "tcp x.example.org:22: ask, by rule 3: ask tcp *.example.org"},
		{"g1", "tcp", "x.example.org:443", "tcp x.example.org:443: ask, by rule 3: ask tcp *.example.org; first bytes must be TLS or HTTP and name x.example.org"},
		{"g1", "tcp", "x.example.org:853", "tcp x.example.org:853: reject, by sandbox: reject any any:53,853 (policy)"},
		{"g1", "tcp", "evil.example:443", "tcp evil.example:443: reject, by sandbox: default reject (name)"},
		{"g1", "udp", "192.0.2.5:123", "udp 192.0.2.5:123: allow, by rule 4: allow udp 192.0.2.0/24:123"},
		{"g1", "tcp", "10.0.0.1:22", "tcp 10.0.0.1:22: reject, by sandbox: reject any private (policy)"},
		{"g1", "tcp", "[2001:db8::1]:22", "tcp [2001:db8::1]:22: reject, by sandbox: default reject (policy)"},
		{"g1", "tcp", "host:22", "tcp 10.0.2.2:22: reject, by sandbox: reject any host (policy)"},
		{"g1", "tcp", "127.0.0.1:22", "tcp 127.0.0.1:22: drop, by always closed (martian)"},
		{"g1", "icmp", "2001:db8::1", "icmp 2001:db8::1: reject, by sandbox: default reject (policy)"},
		{"g1", "icmp", "a.example.com", "icmp a.example.com: allow, by rule 6: allow icmp *.example.com"},
		{"g1", "icmp", "closed.example.com", "icmp closed.example.com: reject, by rule 5: reject any closed.example.com (name)"},
		{"lazy", "tcp", "a.example.com:80", "tcp a.example.com:80: allow, by guest lazy rule 1: allow tcp *.example.com:80; first bytes must not name anybody but a.example.com"},
		{"lazy", "tcp", "evil.example:80", "tcp evil.example:80: allow, by open: default allow"},
		{"lazy", "tcp", "169.254.169.254:80", "tcp 169.254.169.254:80: reject, by open: reject any link-local (link-local)"},
	} {
		r, err := l.Test(x.guest, x.proto, x.dst)
		if err != nil || r.String() != x.want {
			t.Errorf("%s %s %s: %s (%v)\nwant %s", x.guest, x.proto, x.dst, r, err, x.want)
		}
	}
	for dst, want := range map[string]string{
		"example.com":         "want one port",
		"example.com:1-2":     "want one port",
		"example.com:0":       `port "0"`,
		"*.example.com:1":     "want one name",
		"2001:db8::/32:22":    "brackets",
		"private:22":          `"private": want an address`,
		"http://example.com/": `port "//example.com/"`,
	} {
		if r, err := l.Test("g1", "tcp", dst); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v (%v), want …%s…", dst, r, err, want)
		}
	}
	if _, err := l.Test("g1", "sctp", "192.0.2.1:1"); err == nil || !strings.Contains(err.Error(), "want tcp, udp or icmp") {
		t.Errorf("sctp: %v", err)
	}
	if _, err := l.Test("g1", "icmp", "192.0.2.1:1"); err == nil {
		t.Error("icmp has a port")
	}
	if len(l.guests) != 0 {
		t.Errorf("testing made %d guests", len(l.guests))
	}

	// With what answers opened, it says what a conversation now would meet.
	l.answer("g1", "api.example.com", time.Hour, "192.0.2.9", "2001:db8::9")
	r, err := l.Test("g1", "tcp", "api.example.com:443")
	if err != nil || len(r.Opened) != 2 || r.Dst.String() != "192.0.2.9:443" || r.Verdict != Allow || !r.Resolves {
		t.Errorf("opened: %+v (%v)", r, err)
	}
	r, err = l.Test("g1", "tcp", "192.0.2.9:443")
	if err != nil || r.Name != "api.example.com" || r.Verdict != Allow {
		t.Errorf("by address: %+v (%v)", r, err)
	}
	if q := l.Questions(); len(q) != 0 {
		t.Errorf("testing asked %v", q)
	}
}
