package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

func TestLearn(t *testing.T) {
	l := newLab(t, "preset sandbox")
	if got, _ := l.Learned(); len(got) != 0 {
		t.Fatalf("learned %v", got)
	}
	l.judge("tcp 192.0.2.1:443", "reject policy")
	l.Learn(LearnAllow)
	l.answer("g1", "deb.example.org", time.Hour, "192.0.2.1", "192.0.2.2")
	l.answer("g1", "intranet.example.com", time.Hour, "10.9.9.9")
	l.answer("g1", "old.example.com", time.Hour, "192.0.2.3")
	l.answer("g1", "unused.example.com", time.Hour, "192.0.2.4")
	v := l.judge("tcp 192.0.2.1:443", "allow +inspect")
	l.firstBytes(v, tlsFor("deb.example.org"), "allow")
	l.judge("tcp 192.0.2.2:80", "allow +inspect")
	l.judge("tcp 10.9.9.9:443", "allow +inspect")
	v = l.judge("tcp 192.0.2.3:443", "allow +inspect")
	l.firstBytes(v, tlsFor(""), "allow") // it is only watched
	v = l.judge("tcp 192.0.2.77:443", "allow +inspect")
	l.firstBytes(v, tlsFor("builtin.example"), "allow")
	l.judge("udp 192.0.2.78:123", "allow")
	l.judge("udp 192.0.2.78:123", "allow")
	l.judge("icmp 192.0.2.79", "allow")
	l.judge("icmp 2001:db8::1", "allow")
	l.judge("tcp 169.254.169.254:80", "reject link-local") // as open
	l.judge("tcp 10.0.2.99:80", "reject on-link")          // not worth a rule
	l.judge("g2 tcp 192.0.2.200:5432", "allow")
	l.judge("in tcp 10.0.2.15:22", "allow")

	want := `preset sandbox
allow udp 192.0.2.78:123
allow tcp 192.0.2.77:443 # builtin.example
allow icmp 192.0.2.79
allow tcp 169.254.169.254:80
allow icmp 2001:db8::1
allow tcp deb.example.org:80,443
allow tcp intranet.example.com:443
allow tcp 10.9.9.9:443 # intranet.example.com
allow tcp old.example.com:443 unchecked

# names that were asked for, and not used:
#   unused.example.com
`
	got := l.LearnedText("g1")
	sorted := func(s string) []string { // rules for one place each, so their order is no matter
		lines := strings.Split(s, "\n")
		slices.Sort(lines)
		return lines
	}
	if !slices.Equal(sorted(got), sorted(want)) {
		t.Errorf("learned\n%s\nwant\n%s", got, want)
	}
	if got := l.LearnedText(""); !strings.Contains(got, "allow tcp 192.0.2.200:5432\n") {
		t.Errorf("learned of all\n%s", got)
	}
	list, missed := l.Learned()
	if missed != 0 {
		t.Errorf("missed %d", missed)
	}
	for _, x := range list {
		if x.Lets && x.Proto != 0 {
			t.Errorf("%+v: the rules in force allow nothing", x)
		}
		if x.Port == 123 && x.Count != 2 {
			t.Errorf("%+v: want it twice", x)
		}
	}

	// What was learned is what is needed: the same again under it.
	l.Learn(LearnOff)
	if err := l.Replace(mustParse(t, got)); err != nil {
		t.Fatal(err)
	}
	l.resolves("deb.example.org", "allow")
	l.resolves("unused.example.com", "reject name")
	l.verdicts(`
		tcp 192.0.2.1:443      = allow +inspect
		tcp 192.0.2.2:80       = allow +inspect
		tcp 10.9.9.9:443       = allow
		tcp 192.0.2.3:443      = allow
		tcp 192.0.2.77:443     = allow
		udp 192.0.2.78:123     = allow
		icmp 192.0.2.79        = allow
		tcp 192.0.2.200:5432   = reject policy`)
	if got := l.answer("g1", "intranet.example.com", time.Hour, "10.9.9.9"); got != "[10.9.9.9]" {
		t.Errorf("intranet: %s", got)
	}
}

// Recording changes no verdict.
func TestLearnRecord(t *testing.T) {
	l := newLab(t, "preset sandbox\nallow tcp *.example.com:443\nask udp any:99")
	l.Learn(LearnRecord)
	l.resolves("evil.example", "reject name")
	l.answer("g1", "a.example.com", time.Hour, "192.0.2.1")
	v := l.judge("tcp 192.0.2.1:443", "allow +inspect")
	l.firstBytes(v, tlsFor("evil.example"), "reject other-name")
	l.judge("tcp 192.0.2.2:443", "reject policy")
	l.judge("udp 192.0.2.2:99", "ask")
	list, _ := l.Learned()
	var got []string
	for _, x := range list {
		got = append(got, fmt.Sprintf("%s %s %d %v", x.Name, x.Addr, x.Port, x.Lets))
	}
	slices.Sort(got)
	want := []string{
		" 192.0.2.2 443 false", " 192.0.2.2 99 true", "a.example.com invalid IP 0 true", "a.example.com invalid IP 443 true", "evil.example invalid IP 0 false",
	}
	if !slices.Equal(got, want) {
		t.Errorf("learned %q, want %q", got, want)
	}
}

func TestLearnedIsBounded(t *testing.T) {
	l := newLab(t, "")
	l.Learn(LearnRecord)
	for i := range 3 * mostLearned {
		l.Judge(query(fmt.Sprintf("tcp 192.0.2.1:%d", i+1)))
		l.JudgeName("g2", fmt.Sprintf("n%d.example.com", i), 1)
	}
	list, missed := l.Learned()
	if len(list) != 2*mostLearned || missed != 4*mostLearned {
		t.Errorf("%d recorded, %d missed", len(list), missed)
	}
	if s := l.LearnedText("g1"); !strings.Contains(s, "# 4096 more were seen") || strings.Count(s, "\n") > 100 {
		t.Errorf("learned\n%.2000s", s)
	}
	for g := range 20 {
		for i := range mostLearned {
			l.Judge(query(fmt.Sprintf("x%d tcp 192.0.2.1:%d", g, i+1)))
		}
	}
	if list, _ := l.Learned(); len(list) != learnedTotal {
		t.Errorf("%d recorded", len(list))
	}
	l.Learn(LearnOff)
	if list, _ := l.Learned(); len(list) != learnedTotal {
		t.Errorf("%d are left when it is over", len(list))
	}
	l.Learn(LearnRecord)
	if list, _ := l.Learned(); len(list) != 0 {
		t.Errorf("%d are there as it begins again", len(list))
	}
}

func TestAudit(t *testing.T) {
	var got []string
	l := newLab(t, "preset sandbox\nallow tcp *.example.com:443\nask tcp any:99", func(c *Config) {
		c.Audit = func(d Decision) {
			s := fmt.Sprintf("%s %s %s", d.Kind, d.Guest, d.Verdict)
			if d.Name != "" {
				s += " " + d.Name
			}
			if d.Dst.IsValid() || d.Dst.Addr().IsValid() {
				s += " " + d.Dst.String()
			}
			if d.Reason != flows.ReasonNone {
				s += " " + d.Reason.String()
			}
			got = append(got, s+" | "+d.Rule)
			if _, err := json.Marshal(d); err != nil {
				t.Error(err)
			}
		}
	})
	l.resolves("evil.example", "reject name")
	l.answer("g1", "a.example.com", time.Hour, "192.0.2.1", "10.0.0.1")
	v := l.judge("tcp 192.0.2.1:443", "allow +inspect")
	l.firstBytes(v, tlsFor("evil.example"), "reject other-name")
	l.judge("tcp 192.0.2.2:99", "ask")
	l.reply(1, false, Once)
	l.SetAudit(nil)
	l.judge("tcp 192.0.2.1:80", "reject policy")
	want := `name g1 reject evil.example name | sandbox: default reject
name g1 allow a.example.com | rule 1: allow tcp *.example.com:443
answer g1 reject a.example.com 10.0.0.1:0 rebinding | a public name's answer that is private
conversation g1 allow a.example.com 192.0.2.1:443 | rule 1: allow tcp *.example.com:443
first-bytes g1 reject evil.example 192.0.2.1:443 other-name | rule 1: allow tcp *.example.com:443 (first bytes name evil.example)
conversation g1 ask 192.0.2.2:99 | rule 2: ask tcp any:99
question g1 reject 192.0.2.2:99 policy | rule 2: ask tcp any:99 (answered: reject)`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("audit is\n%s\nwant\n%s", s, want)
	}
}

func TestAuditLog(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(1000, 0)
	log := AuditLog(slog.New(slog.NewTextHandler(&b, nil)), 3)
	q := query("tcp 192.0.2.1:443")
	for range 10 {
		log(Decision{Time: now, Kind: "conversation", Guest: "g1", Proto: q.Proto, Src: q.Src, Dst: q.Dst, Verdict: Reject, Rule: "rule 1: reject any", Reason: flows.ReasonPolicy})
	}
	log(Decision{Time: now, Kind: "name", Guest: "g2", Name: "a.example", Verdict: Allow})
	log(Decision{Time: now.Add(time.Second), Kind: "name", Guest: "g1", Name: "a.example", Verdict: Allow})
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 5 {
		t.Fatalf("%d lines:\n%s", len(lines), b.String())
	}
	for i, want := range map[int]string{
		0: `msg=policy kind=conversation guest=g1 verdict=reject proto=tcp direction=out src=10.0.2.15:40000 dst=192.0.2.1:443 rule="rule 1: reject any" reason=policy`,
		3: `kind=name guest=g2 verdict=allow name=a.example`,
		4: `kind=name guest=g1 verdict=allow name=a.example not_logged=7`,
	} {
		if !strings.Contains(lines[i], want) {
			t.Errorf("line %d is %s\nwant …%s…", i, lines[i], want)
		}
	}
}
