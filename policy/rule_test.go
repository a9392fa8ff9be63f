package policy

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// canonical are rules in their one form.
var canonical = []string{
	"allow tcp api.example.com:443",
	"reject any private",
	"allow udp 10.0.0.0/8:5000-5010",
	"drop icmp",
	"drop any",
	"allow tcp [2001:db8::]/32:22",
	"allow tcp [2001:db8::1]:22",
	"allow any 2001:db8::/32",
	"allow tcp *.debian.org:80,443",
	"allow tcp *:443 unchecked",
	"ask tcp any:1-65535",
	"ask any *.example.com guest=web* # who knows",
	"allow tcp a.example.com tls guest=52:54:00:12:34:56",
	"allow tcp a.example.com:8081 http",
	"allow any a.example.com checked",
	"allow tcp 192.0.2.7:1-1000 tls",
	"reject in tcp any:22",
	"drop in udp 10.0.2.15",
	"reject tcp doh",
	"allow any host",
	"allow tcp metadata:80",
	"allow tcp _acme-challenge.xn--bcher-kva.example:443 # münchen",
	"allow any public",
	"reject any loopback",
	"allow any link-local guest=a=b",
	"allow tcp *.internal:80",
}

func TestRulesPrintAsTheyAreRead(t *testing.T) {
	for _, s := range canonical {
		r, err := ParseRule(s)
		if err != nil {
			t.Error(err)
			continue
		}
		if r.String() != s {
			t.Errorf("%q prints as %q", s, r)
		}
		if err := r.Validate(); err != nil {
			t.Errorf("%q: %v", s, err)
		}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var back Rule
		if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, r) {
			t.Errorf("%s comes back from JSON as %+v (%v), want %+v", b, back, err, r)
		}
	}
	for from, want := range map[string]string{
		"  allow\ttcp  API.Example.com.:443,80-90,91  #  x  ": "allow tcp api.example.com:80-91,443 # x",
		"allow out tcp any:22":                                "allow tcp any:22",
		"reject any any":                                      "reject any",
		"allow tcp 10.0.0.1/32:22":                            "allow tcp 10.0.0.1:22",
		"allow tcp [2001:0DB8::0]/128:1":                      "allow tcp [2001:db8::]:1",
		"allow tcp 2001:DB8::/32 # a#b":                       "allow tcp 2001:db8::/32 # a#b",
		"drop any # ":                                         "drop any",
	} {
		r, err := ParseRule(from)
		if err != nil || r.String() != want {
			t.Errorf("%q is %q (%v), want %q", from, r, err, want)
		}
	}
}

func TestRuleErrors(t *testing.T) {
	for s, want := range map[string]string{
		"":                                                   "column 1: no rule: want a verdict",
		"permit tcp any":                                     `column 1: verdict "permit": want allow, reject, drop or ask`,
		"allow":                                              "column 6: no protocol: want any, tcp, udp or icmp",
		"allow example.com":                                  `column 7: protocol "example.com": want any, tcp, udp or icmp before to where`,
		"allow tcp example.com:0":                            `column 23: port "0": want 1 to 65535`,
		"allow tcp example.com:443,70000":                    `column 27: port "70000": want 1 to 65535`,
		"allow tcp example.com:":                             `column 23: port "": want`,
		"allow tcp example.com:90-80":                        `ports 90-80: want the lower one first: 80-90`,
		"allow tcp example.com:080":                          `port "080"`,
		"allow tcp privat":                                   `column 11: "privat": want an address, a prefix, a name with a dot`,
		"allow tcp 10.0.0":                                   `column 11: "10.0.0": want`,
		"allow tcp 10.0.0.1/8":                               `column 11: prefix "10.0.0.1/8" with bits behind its length: want 10.0.0.0/8`,
		"allow tcp 10.0.0.1/33":                              `want ADDRESS/BITS`,
		"allow tcp 2001:db8::/32:22":                         `want an IPv6 address in brackets if ports follow`,
		"allow tcp [2001:db8::1:22":                          `without its ]`,
		"allow tcp [10.0.0.1]:22":                            `column 12: "10.0.0.1" in brackets: want an IPv6 address`,
		"allow tcp [2001:db8::1]x:22":                        `behind an address`,
		"allow tcp fe80::1%eth0":                             `want it without a zone`,
		"allow tcp ::ffff:10.0.0.1":                          `want the IPv4 address itself`,
		"allow tcp a.*.example.com:1":                        `want * as a whole first label`,
		"allow tcp bücher.example:1":                         `want the name as resolvers are asked for it, xn--…`,
		"allow tcp a..b:1":                                   `"a..b": want`,
		"allow tcp http://a.example:1":                       `want an IPv6 address in brackets if`,
		"allow tcp a.example/x:1":                            `prefix "a.example/x": want ADDRESS/BITS`,
		"allow icmp a.example:1":                             `column 12: a port of icmp: want no port, or tcp or udp`,
		"allow tcp any:1 2":                                  `column 17: "2": want nothing more`,
		"allow tcp any:1 guest=":                             `column 23: guest "": want`,
		"allow tcp any:1 guest=a guest=b":                    `a second guest`,
		"allow tcp a.example tls http":                       `a second check`,
		"allow tcp any checked":                              `checked without a name: want tls or http, or a name`,
		"reject tcp a.example tls":                           `tls in a rule that lets nothing in`,
		"allow udp a.example http":                           `http of udp`,
		"allow icmp a.example tls":                           `tls of icmp`,
		"allow in tcp a.example:1":                           `a name in a rule for forwards`,
		"ask in tcp any:1":                                   `ask in a rule for forwards`,
		"allow in tcp any:1 tls":                             `a check in a rule for forwards`,
		"allow tcp loopback:80":                              `column 11: a way to loopback: want host`,
		"allow tcp 127.0.0.1:80":                             `column 11: a way to 127.0.0.1: want host`,
		"allow tcp any:1\nreject any":                        `column 16: a character that is not text`,
		"allow tcp any:1 # \x00":                             `a character that is not text`,
		"allow tcp any:1 # \xff":                             `a character that is not text`,
		"ällow tcp x":                                        `column 1: verdict "ällow"`,
		"allow tcp ä.example:0":                              `column 21: port "0"`,
		"allow tcp any:" + strings.Repeat("1,", 64) + "1":    "more than 64 ranges of ports",
		"allow tcp " + strings.Repeat("a", 64) + ".example":  "want",
		"allow tcp " + strings.Repeat("a.", 127) + "example": "want a name of at most 253 characters",
		"allow tcp any guest=" + strings.Repeat("x", 129):    "want an id, a name or a MAC",
		"allow tcp any" + strings.Repeat(" ", 10) + strings.Repeat("x", 999): "…",
	} {
		r, err := ParseRule(s)
		if err == nil {
			t.Errorf("%q is read as %q", s, r)
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v\nwant …%s…", s, err, want)
		}
		if len(err.Error()) > 1000 {
			t.Errorf("an error of %d characters", len(err.Error()))
		}
	}
}

const document = `# what the build machines may do
preset sandbox
first-bytes loose
names nxdomain
default drop

allow tcp *.debian.org:80,443   # packages
allow udp 10.0.0.123:123

guest web*
  preset open
	reject any private
guest 52:54:00:12:34:56
  allow tcp host:5432
`

func TestDocument(t *testing.T) {
	d := mustParse(t, document)
	want := `preset sandbox
first-bytes loose
names nxdomain
allow tcp *.debian.org:80,443 # packages
allow udp 10.0.0.123:123
default drop

guest web*
  preset open
  reject any private

guest 52:54:00:12:34:56
  allow tcp host:5432
`
	if d.String() != want {
		t.Errorf("prints as\n%s", d)
	}
	if again := mustParse(t, d.String()); !reflect.DeepEqual(again, d) {
		t.Errorf("comes back as %+v", again)
	}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var back Document
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&back); err != nil || !reflect.DeepEqual(back, d) {
		t.Errorf("%s\ncomes back as %+v (%v)", b, back, err)
	}
	crlf := mustParse(t, strings.ReplaceAll(document, "\n", "\r\n"))
	if !reflect.DeepEqual(crlf, d) {
		t.Errorf("with CRLF: %+v", crlf)
	}
}

func TestDocumentErrors(t *testing.T) {
	_, err := Parse("preset sandbox\npreset open\n\nalow tcp any\n  allow tcp any:0\nguest\nguest a b\nguest web\ndefault maybe\nnames\nfirst-bytes strict loose\n")
	want := []string{
		"line 2, column 1: a second preset: want one",
		`line 4, column 1: "alow": want allow, reject, drop or ask to begin a rule, or preset, default, first-bytes, names or guest`,
		`line 5, column 17: port "0": want`,
		"line 6, column 1: guest with 0 patterns",
		"line 7, column 1: guest with 2 patterns",
		`line 9, column 9: default "default maybe": want one of allow, reject, drop or ask`,
		`line 10, column 1: names "names": want one of nxdomain or refused`,
		`line 11, column 13: first-bytes`,
	}
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(want) {
		t.Errorf("%d errors, want %d:\n%v", len(lines), len(want), err)
	}
	for i, w := range want {
		if i < len(lines) && !strings.Contains(lines[i], w) {
			t.Errorf("error %d: %s\nwant …%s…", i, lines[i], w)
		}
	}
	if _, err := Parse(strings.Repeat("x\n", 1000)); err == nil || strings.Count(err.Error(), "\n") != mostErrors-1 {
		t.Errorf("a long list of errors: %v", err)
	}
	for name, d := range map[string]Document{
		"preset":  {Set: Set{Preset: 99}},
		"verdict": {Set: Set{Rules: []Rule{{To: "any"}}}},
		"to":      {Set: Set{Rules: []Rule{{Verdict: Allow, To: "nowhere"}}}},
		"ports":   {Set: Set{Rules: []Rule{{Verdict: Allow, Ports: Ports{{9, 1}}}}}},
		"comment": {Set: Set{Rules: []Rule{{Verdict: Allow, Comment: "a\nallow any"}}}},
		"guest":   {Guests: []GuestSet{{Guest: "a b"}}},
		"rule":    {Guests: []GuestSet{{Guest: "a", Set: Set{Rules: []Rule{{Verdict: 77}}}}}},
		"many":    {Set: Set{Rules: make([]Rule, mostRules+1)}},
	} {
		if err := d.Validate(); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := New(Config{Document: d}); err == nil {
			t.Errorf("%s: in force", name)
		}
	}
}

// A word in JSON that is none is told with what it could be.
func TestJSONErrors(t *testing.T) {
	for s, want := range map[string]string{
		`{"verdict":"permit"}`:                `want allow, reject, drop or ask`,
		`{"verdict":"allow","proto":"sctp"}`:  `want any, tcp, udp or icmp`,
		`{"verdict":"allow","ports":"x"}`:     `port "x": want 1 to 65535`,
		`{"verdict":"allow","check":"maybe"}`: `want checked, tls, http or unchecked`,
	} {
		var r Rule
		if err := json.Unmarshal([]byte(s), &r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want …%s…", s, err, want)
		}
	}
}

func FuzzParseRule(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRule(s)
		if err != nil {
			if len(err.Error()) > 4096 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		again, err := ParseRule(r.String())
		if err != nil || !reflect.DeepEqual(again, r) || again.String() != r.String() {
			t.Fatalf("%q is %q, which is read as %q (%v)", s, r, again, err)
		}
		if err := r.Validate(); err != nil {
			t.Fatalf("%q: %v", r, err)
		}
		p, err := New(Config{Document: Document{Set: Set{Preset: Sandbox, Rules: []Rule{r}}}, Network: network})
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range []string{"tcp 192.0.2.1:443", "udp [2001:db8::1]:53", "icmp 192.0.2.1"} {
			if v := p.Judge(query(q)); v.Rule == "" {
				t.Fatalf("%s: no rule decided", q)
			}
		}
		p.Close()
	})
}

func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		d, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(d.String())
		if err != nil || again.String() != d.String() {
			t.Fatalf("%q is\n%s\nwhich is read as\n%s (%v)", s, d, again, err)
		}
		if err := d.Validate(); err != nil {
			t.Fatal(err)
		}
	})
}
