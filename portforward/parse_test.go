package portforward

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseRule(t *testing.T) {
	long := "/" + strings.Repeat("p", maxUnixPath-1)
	for _, c := range []struct {
		name, in string
		want     []string // canonical prints
	}{
		{"qemu", "tcp:127.0.0.1:2222-:22", []string{"127.0.0.1:2222:22/tcp"}},
		{"qemu with its key", "hostfwd=tcp:127.0.0.1:2222-:22", []string{"127.0.0.1:2222:22/tcp"}},
		{"qemu no address", "tcp::2222-:22", []string{"127.0.0.1:2222:22/tcp"}},
		{"qemu no protocol", "::2222-:22", []string{"127.0.0.1:2222:22/tcp"}},
		{"qemu no protocol but address", ":127.0.0.1:2222-:22", []string{"127.0.0.1:2222:22/tcp"}},
		{"qemu wildcard written", "tcp:0.0.0.0:2222-:22", []string{"0.0.0.0:2222:22/tcp"}},
		{"qemu udp", "udp:127.0.0.1:5353-10.0.2.15:53", []string{"127.0.0.1:5353:10.0.2.15:53/udp"}},
		{"qemu capitals", "TCP::1-:1", []string{"127.0.0.1:1:1/tcp"}},
		{"qemu ipv6", "tcp:[::1]:2222-[fd00::15]:22", []string{"[::1]:2222:[fd00::15]:22/tcp"}},
		{"qemu ipv6 written long", "tcp:[0:0::1]:2222-[FD00:0::15]:22", []string{"[::1]:2222:[fd00::15]:22/tcp"}},
		{"qemu scoped", "tcp:[fe80::1%eth0]:2222-:22", []string{"[fe80::1%eth0]:2222:22/tcp"}},
		{"qemu any port", "tcp::0-:22", []string{"127.0.0.1:0:22/tcp"}},
		{"qemu name with a dash", "tcp::2222-my-vm.lan:22", []string{"127.0.0.1:2222:my-vm.lan:22/tcp"}},
		{"qemu mac with dashes", "tcp::2222-52-54-00-AB-34-56:22", []string{"127.0.0.1:2222:[52:54:00:ab:34:56]:22/tcp"}},
		{"qemu unix", "unix:/run/web.sock-:80", []string{"unix:/run/web.sock-:80"}},
		{"qemu unix guest", "hostfwd=unix:/run/a-b.sock-10.0.2.16:80", []string{"unix:/run/a-b.sock-10.0.2.16:80"}},
		{"unix guest with a dash", "unix:/run/a-b-[my-vm]:80", []string{"unix:/run/a-b-[my-vm]:80"}},
		{"unix guest ipv6", "unix:/run/a-[fd00::15]:80", []string{"unix:/run/a-[fd00::15]:80"}},
		{"unix odd path", "unix:/run/a,b:-[x]-:80", []string{"unix:/run/a,b:-[x]-:80"}},
		{"unix path cleaned", "unix:/run//x/../web-:80", []string{"unix:/run/web-:80"}},
		{"unix path that ends like the option", "unix:/a,source=client-:80", []string{"unix:/a,source=client-:80"}},
		{"unix longest path", "unix:" + long + "-:80", []string{"unix:" + long + "-:80"}},

		{"passt pair", "2222:22", []string{"127.0.0.1:2222:22/tcp"}},
		{"passt one", "22", []string{"127.0.0.1:22:22/tcp"}},
		{"passt range", "8000-8010", []string{"127.0.0.1:8000-8010:8000-8010/tcp"}},
		{"passt ranges", "8000-8010:9000-9010", []string{"127.0.0.1:8000-8010:9000-9010/tcp"}},
		{"passt range of one", "22-22", []string{"127.0.0.1:22:22/tcp"}},
		{"passt address", "127.0.0.1/2222:22", []string{"127.0.0.1:2222:22/tcp"}},
		{"passt ipv6", "::1/2222:22", []string{"[::1]:2222:22/tcp"}},
		{"passt ipv6 brackets", "[::1]/22", []string{"[::1]:22:22/tcp"}},
		{"passt scoped", "fe80::1%eth0/22", []string{"[fe80::1%eth0]:22:22/tcp"}},
		{"passt guest", "0.0.0.0/5000:192.0.2.5/6000", []string{"0.0.0.0:5000:192.0.2.5:6000/tcp"}},
		{"passt guest alone", "5000:web/6000", []string{"127.0.0.1:5000:web:6000/tcp"}},
		{"passt guest ipv6", "5000:[fd00::15]/6000", []string{"127.0.0.1:5000:[fd00::15]:6000/tcp"}},
		{"passt left to right", "2222:fd00::1/22", []string{"[2222:fd00::1]:22:22/tcp"}},
		{"passt list", "22,25", []string{"127.0.0.1:22:22/tcp", "127.0.0.1:25:25/tcp"}},
		{"passt list address carries", "::1/22,80:8080", []string{"[::1]:22:22/tcp", "[::1]:80:8080/tcp"}},
		{"passt list new address", "::1/22,192.0.2.1/80", []string{"[::1]:22:22/tcp", "192.0.2.1:80:80/tcp"}},
		{"passt exclude", "2000-5000,~3000-3010", []string{"127.0.0.1:2000-2999:2000-2999/tcp", "127.0.0.1:3011-5000:3011-5000/tcp"}},
		{"passt exclude keeps the map", "10-14:110-114,~12", []string{"127.0.0.1:10-11:110-111/tcp", "127.0.0.1:13-14:113-114/tcp"}},
		{"passt excludes first, overlapping", "~4-6,~5-7,1-9", []string{"127.0.0.1:1-3:1-3/tcp", "127.0.0.1:8-9:8-9/tcp"}},
		{"passt exclude at both ends", "1-9,~1,~9", []string{"127.0.0.1:2-8:2-8/tcp"}},

		{"docker", "127.0.0.1:2222:22/tcp", []string{"127.0.0.1:2222:22/tcp"}},
		{"docker ipv6", "[::1]:2222:22/udp", []string{"[::1]:2222:22/udp"}},
		{"docker udp", "2222:22/UDP", []string{"127.0.0.1:2222:22/udp"}},
		{"docker range", "8000-8010:8000-8010/tcp", []string{"127.0.0.1:8000-8010:8000-8010/tcp"}},
		{"docker any port", "127.0.0.1::22", []string{"127.0.0.1:0:22/tcp"}},
		{"any port", "0:22", []string{"127.0.0.1:0:22/tcp"}},
		{"wildcard ipv6", "[::]:2222:22", []string{"[::]:2222:22/tcp"}},
		{"mapped address", "[::ffff:127.0.0.1]:2222:22", []string{"127.0.0.1:2222:22/tcp"}},
		{"guest named", "127.0.0.1:2222:web:22", []string{"127.0.0.1:2222:web:22/tcp"}},
		{"guest named, no address", "2222:Web:22", []string{"127.0.0.1:2222:web:22/tcp"}},
		{"guest address", "2222:10.0.2.16:22/udp", []string{"127.0.0.1:2222:10.0.2.16:22/udp"}},
		{"guest ipv6", "2222:[fd00::15]:22", []string{"127.0.0.1:2222:[fd00::15]:22/tcp"}},
		{"guest mapped", "2222:[::ffff:10.0.2.15]:22", []string{"127.0.0.1:2222:10.0.2.15:22/tcp"}},
		{"guest mac brackets", "2222:[52:54:00:12:34:56]:22", []string{"127.0.0.1:2222:[52:54:00:12:34:56]:22/tcp"}},
		{"guest mac dashes", "2222:52-54-00-12-34-56:22", []string{"127.0.0.1:2222:[52:54:00:12:34:56]:22/tcp"}},
		{"guest called like a cisco mac", "2222:5254.0012.345f:22", []string{"127.0.0.1:2222:5254.0012.345f:22/tcp"}},
		{"both ends full", "[::1]:8000-8001:[fd00::15]:9000-9001/udp", []string{"[::1]:8000-8001:[fd00::15]:9000-9001/udp"}},
		{"scoped", "[fe80::1%eth0.5]:2222:22", []string{"[fe80::1%eth0.5]:2222:22/tcp"}},
		{"docker list", "2222:22,5353:53/udp", []string{"127.0.0.1:2222:22/tcp", "127.0.0.1:5353:53/udp"}},
		{"last port", "65535:65535", []string{"127.0.0.1:65535:65535/tcp"}},
		{"every port", "1-65535", []string{"127.0.0.1:1-65535:1-65535/tcp"}},
		{"spaces around", " 2222:22\n", []string{"127.0.0.1:2222:22/tcp"}},

		{"source client", "2222:22,source=client", []string{"127.0.0.1:2222:22/tcp,source=client"}},
		{"source gateway", "2222:22/udp,source=Gateway", []string{"127.0.0.1:2222:22/udp"}},
		{"source of a list", "1:1,2:2,source=client", []string{"127.0.0.1:1:1/tcp,source=client", "127.0.0.1:2:2/tcp,source=client"}},
		{"source of qemu's", "tcp::1-:1,source=client", []string{"127.0.0.1:1:1/tcp,source=client"}},
		{"source of unix", "unix:/a-:1,source=gateway", []string{"unix:/a-:1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			rules, err := ParseRule(c.in)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range rules {
				got = append(got, r.String())
			}
			if !slices.Equal(got, c.want) {
				t.Fatalf("ParseRule(%q) prints\n got %q\nwant %q", c.in, got, c.want)
			}
			checkRoundTrip(t, rules)
		})
	}
}

// checkRoundTrip: the canonical print and JSON both lead back to the rule.
func checkRoundTrip(t *testing.T, rules []Rule) {
	t.Helper()
	for _, r := range rules {
		if n, err := r.Normalize(); err != nil || n != r {
			t.Fatalf("%+v normalizes to %+v, %v", r, n, err)
		}
		again, err := ParseRule(r.String())
		if err != nil {
			t.Fatalf("canonical print %q: %v", r.String(), err)
		}
		if len(again) != 1 || again[0] != r {
			t.Fatalf("canonical print %q parses to %+v, not %+v", r.String(), again, r)
		}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var back Rule
		if err := json.Unmarshal(b, &back); err != nil || back != r {
			t.Fatalf("JSON %s parses to %+v, %v", b, back, err)
		}
		text, err := json.Marshal(r.String())
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &back); err != nil || back != r {
			t.Fatalf("JSON %s parses to %+v, %v", text, back, err)
		}
	}
}

func TestParseRuleErrors(t *testing.T) {
	for _, c := range []struct {
		name, in string
		kind     error
		says     string
	}{
		{"empty", "", ErrSyntax, "empty"},
		{"only the key", "hostfwd=", ErrSyntax, "empty"},
		{"word", "ssh", ErrSyntax, `"ssh" is not a number`},
		{"endless", strings.Repeat("1,", 9000), ErrSyntax, "at most 8192"},
		{"too many", strings.Repeat("1,", 300) + "1", ErrSyntax, "301 rules in one string"},
		{"too many by excludes", "1-65535,~" + strings.Join(evens(300), ",~"), ErrSyntax, "301 rules"},
		{"empty item", "22,,80", ErrSyntax, "empty item"},
		{"trailing comma", "22,", ErrSyntax, "empty item"},

		{"qemu no dash", "tcp:127.0.0.1:2222:22", ErrSyntax, "no - between host and guest"},
		{"qemu no colon", "tcp:2222", ErrSyntax, "no : between host address and port"},
		{"qemu no guest colon", "tcp::2222-22", ErrSyntax, "no : before the guest's port"},
		{"qemu no guest port", "tcp::2222-:", ErrSyntax, "a port is missing"},
		{"qemu no host port", "tcp::-:22", ErrSyntax, "a port is missing"},
		{"qemu guest port 0", "tcp::22-:0", ErrRange, "port 0 cannot be reached in a guest"},
		{"qemu range", "tcp::8000-8010-:8000", ErrSyntax, "neither an address nor a MAC"},
		{"qemu guest range", "tcp::8000-:8000-8010", ErrSyntax, "no ranges"},
		{"qemu protocol", "sctp::22-:22", ErrSyntax, `"sctp" is not an IP address`},
		{"qemu host name", "tcp:localhost:2222-:22", ErrSyntax, "host names are not looked up"},
		{"qemu short address", "tcp:127.1:2222-:22", ErrSyntax, "is not an IP address"},
		{"qemu ipv6 bare", "tcp:fd00::1:2222-:22", ErrSyntax, "is not an IP address"},
		{"qemu guest mac bare", "tcp::2222-52:54:00:12:34:56:22", ErrSyntax, "goes in brackets"},
		{"qemu unclosed", "tcp:[::1:2222-:22", ErrSyntax, "a [ without its ]"},
		{"qemu and docker", "tcp::2222-:22/tcp", ErrSyntax, "write one of them"},
		{"octal", "tcp::010-:22", ErrSyntax, "starts with 0: octal for QEMU"},
		{"hex", "tcp::0x50-:22", ErrSyntax, "hexadecimal"},
		{"signed", "+22:22", ErrSyntax, "is no port"},
		{"zero zero", "00:22", ErrSyntax, "starts with 0"},

		{"unix relative", "unix:web.sock-:80", ErrSyntax, "not absolute"},
		{"unix none", "unix:-:80", ErrSyntax, "missing unix socket path"},
		{"unix no dash", "unix:/web:80", ErrSyntax, "no - between path and guest"},
		{"unix no colon", "unix:/web-80", ErrSyntax, "no : before the guest's port"},
		{"unix too long", "unix:/" + strings.Repeat("p", maxUnixPath) + "-:80", ErrPathTooLong, "this system takes"},
		{"unix NUL", "unix:/a\x00b-:80", ErrSyntax, "do not print"},
		{"unix source", "unix:/a-:80,source=client", ErrSyntax, "no address to show"},
		{"unix in a list", "22,unix:/a-:80", ErrSyntax, "stands alone"},
		{"abstract", "unix:@web-:80", ErrSyntax, "not absolute"},

		{"reversed", "8010-8000", ErrRange, "runs backwards: write 8000-8010"},
		{"unequal", "8000-8010:9000-9005", ErrRange, "11 host ports (8000-8010) for 6 guest ports (9000-9005)"},
		{"range to one", "8000-8010:80", ErrRange, "maps one to one"},
		{"over", "65536:22", ErrRange, "ports end at 65535"},
		{"far over", "99999999999999999999:22", ErrRange, "ports end at 65535"},
		{"over at its end", "65000-65536", ErrRange, "ports end at 65535"},
		{"range at 0", "0-10:1-11", ErrRange, "starts at 0"},
		{"half a range", "8000-", ErrSyntax, "a port is missing"},
		{"three ends", "1-2-3", ErrSyntax, `"2-3" is not a number`},
		{"guest port 0", "2222:0", ErrRange, "port 0 cannot be reached"},
		{"zero alone", "0", ErrRange, "port 0 cannot be reached"},

		{"all", "all", ErrSyntax, "passt's word"},
		{"address all", "::1/all", ErrSyntax, "passt's word"},
		{"interface", "%eth0/22", ErrSyntax, "an interface alone"},
		{"exclude alone", "~22", ErrSyntax, "only excludes"},
		{"exclude everything", "22,~1-100", ErrRange, "leave no port"},
		{"exclude with a map", "1-9,~2:3", ErrSyntax, "not a number"},
		{"name before a slash", "web/22", ErrSyntax, "host names are not looked up"},

		{"docker protocol", "22:22/sctp", ErrSyntax, `protocol "sctp"`},
		{"docker host name", "localhost:2222:22", ErrSyntax, "host names are not looked up"},
		{"docker star", "*:2222:22", ErrSyntax, "write 0.0.0.0"},
		{"docker address and one port", "127.0.0.1:22", ErrSyntax, "is no port"},
		{"mac bare", "2222:52:54:00:12:34:56:22", ErrSyntax, "in brackets"},
		{"ipv6 bare", "fd00::1:2222:22", ErrSyntax, "in brackets"},
		{"empty guest", "127.0.0.1:2222::22", ErrSyntax, "an empty guest"},
		{"empty brackets", "2222:[]:22", ErrSyntax, "empty brackets"},
		{"no guest port", "2222:", ErrSyntax, "a port is missing"},
		{"ipv4 in brackets", "[127.0.0.1]:2222:22", ErrSyntax, "brackets are for IPv6"},

		{"link-local without its zone", "[fe80::1]:22:22", ErrSyntax, "name its interface"},
		{"zone of a global", "[fd00::1%eth0]:22:22", ErrSyntax, "only a link-local"},
		{"zone of ipv4", "127.0.0.1%lo:22:22", ErrSyntax, "is not an IP address"},
		{"zone too long", "[fe80::1%" + strings.Repeat("e", 16) + "]:22:22", ErrSyntax, "not an interface's name"},
		{"multicast", "224.0.0.1:22:22", ErrSyntax, "unicast"},
		{"broadcast", "255.255.255.255:22:22/udp", ErrSyntax, "unicast"},

		{"guest of digits", "2222:8010:22", ErrSyntax, "a name needs a letter"},
		{"guest of four digits", "2222:10.0.2:22", ErrSyntax, "a name needs a letter"},
		{"guest with an underline first is fine, a blank is not", "2222:my vm:22", ErrSyntax, "nor a host name"},
		{"guest dash", "2222:-web:22", ErrSyntax, "nor a host name"},
		{"guest dot", "2222:web.:22", ErrSyntax, "nor a host name"},
		{"guest umlaut", "2222:bücher:22", ErrSyntax, "nor a host name"},
		{"guest long", "2222:" + strings.Repeat("a.", 130) + "a:22", ErrSyntax, "at most 253"},
		{"guest long label", "2222:" + strings.Repeat("a", 64) + ":22", ErrSyntax, "nor a host name"},
		{"guest any", "2222:0.0.0.0:22", ErrSyntax, "not one guest's"},
		{"guest loopback", "2222:127.0.0.1:22", ErrSyntax, "not one guest's"},
		{"guest scoped", "2222:[fe80::1%eth0]:22", ErrSyntax, "no interfaces to name"},
		{"guest group mac", "2222:33-33-00-00-00-01:22", ErrSyntax, "not one card's"},

		{"source", "2222:22,source=nobody", ErrSyntax, `source="nobody"`},
		{"option", "2222:22,ipv4=on", ErrSyntax, `no option "ipv4"`},
		{"option first", "source=client,2222:22", ErrSyntax, `no option "source"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			rules, err := ParseRule(c.in)
			if err == nil {
				t.Fatalf("ParseRule(%q) = %v, want an error", c.in, rules)
			}
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("ParseRule(%q):\n got %v\nwant %q of kind %v", c.in, err, c.says, c.kind)
			}
			if s := err.Error(); len(s) > 600 || strings.ContainsAny(s, "\n\x00") {
				t.Errorf("the message is no log line: %q", s)
			}
			var e *Error
			if !errors.As(err, &e) || e.Rule != c.in {
				t.Errorf("%#v is no *Error with the rule's text", err)
			}
		})
	}
}

// evens are n even ports, so that excluding them leaves n+1 ranges.
func evens(n int) []string {
	var list []string
	for i := range n {
		list = append(list, ports(uint16(2+2*i), 1))
	}
	return list
}

func TestRuleDefaults(t *testing.T) {
	r, err := Rule{GuestPort: 22}.Normalize()
	if err != nil {
		t.Fatal(err)
	}
	want := Rule{Proto: TCP, Host: netip.MustParseAddr("127.0.0.1"), Count: 1, GuestPort: 22, Source: SourceGateway}
	if r != want {
		t.Errorf("got %+v, want %+v", r, want)
	}
	if s := (Rule{GuestPort: 22}).String(); s != "127.0.0.1:0:22/tcp" {
		t.Errorf("prints %s", s)
	}
}

func TestRuleID(t *testing.T) {
	for in, want := range map[string]string{
		"2222:web:22":              "tcp:127.0.0.1:2222",
		"[::1]:10-12:20-22/udp":    "udp:[::1]:10-12",
		"unix:/run/a-b-[my-vm]:80": "unix:/run/a-b",
	} {
		rules, err := ParseRule(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := rules[0].ID(); got != want {
			t.Errorf("%s: ID %s, want %s", in, got, want)
		}
	}
}

func TestRuleJSON(t *testing.T) {
	var r Rule
	if err := json.Unmarshal([]byte(`{"proto":"TCP","host_port":2222,"guest":"52-54-00-12-34-56","guest_port":22}`), &r); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"proto":"tcp","host":"127.0.0.1","host_port":2222,"count":1,"guest":"52:54:00:12:34:56","guest_port":22,"source":"gateway"}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	for _, c := range []struct {
		in   string
		kind error
	}{
		{`{"proto":"tcp","hostport":2222,"guest_port":22}`, ErrSyntax}, // misspelt
		{`{"proto":"tcp","host_port":70000,"guest_port":22}`, ErrSyntax},
		{`{"proto":"tcp","host_port":2222}`, ErrRange},
		{`{"proto":"icmp","guest_port":1}`, ErrSyntax},
		{`{"proto":"tcp","host":"localhost","guest_port":1}`, ErrSyntax},
		{`{"proto":"tcp","host_port":65535,"count":2,"guest_port":1}`, ErrRange},
		{`{"proto":"tcp","host_port":1,"count":-1,"guest_port":1}`, ErrRange},
		{`{"proto":"tcp","host_port":1,"count":2,"guest_port":65535}`, ErrRange},
		{`{"proto":"unix","path":"/a","host_port":1,"guest_port":1}`, ErrSyntax},
		{`{"proto":"tcp","path":"/a","guest_port":1}`, ErrSyntax},
		{`{"proto":"tcp","guest_port":1,"source":"nobody"}`, ErrSyntax},
		{`"22,80"`, ErrSyntax},
		{`"0x16:22"`, ErrSyntax},
		{`7`, ErrSyntax},
	} {
		if err := json.Unmarshal([]byte(c.in), &r); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v, want %v", c.in, err, c.kind)
		}
	}
}

func TestClashes(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"2222:22", "2222:23", true},
		{"2222:22", "2223:22", false},
		{"2222:22", "2222:22/udp", false},
		{"2222:22", "0.0.0.0:2222:22", true},
		{"2222:22", "[::]:2222:22", false},
		{"2222:22", "[::1]:2222:22", false},
		{"[::1]:2222:22", "[::]:2222:22", true},
		{"127.0.0.2:2222:22", "2222:22", false},
		{"[::ffff:127.0.0.1]:2222:22", "2222:22", true},
		{"8000-8010", "8010:80", true},
		{"8000-8010", "8011:80", false},
		{"8000-8010", "7990-8000", true},
		{"0:22", "0:22", false},
		{"[fe80::1%a]:1:1", "[fe80::1%b]:1:1", false},
		{"unix:/a-:1", "unix:/./a-:2", true},
		{"unix:/a-:1", "unix:/b-:1", false},
	} {
		a, err := ParseRule(c.a)
		if err != nil {
			t.Fatal(err)
		}
		b, err := ParseRule(c.b)
		if err != nil {
			t.Fatal(err)
		}
		if got := a[0].clashes(b[0]); got != c.want {
			t.Errorf("%s and %s: clash %v, want %v", c.a, c.b, got, c.want)
		}
		if got := b[0].clashes(a[0]); got != c.want {
			t.Errorf("%s and %s: clash %v, want %v", c.b, c.a, got, c.want)
		}
	}
}

func TestShownAs(t *testing.T) {
	for _, c := range []struct {
		source Source
		client string
		want   string
	}{
		{SourceClient, "192.0.2.7:40000", "192.0.2.7:40000"},
		{SourceClient, "[2001:db8::7]:40000", "[2001:db8::7]:40000"},
		{SourceClient, "[::ffff:192.0.2.7]:40000", "192.0.2.7:40000"},
		{SourceClient, "127.0.0.1:40000", ""},
		{SourceClient, "[::1]:40000", ""},
		{SourceClient, "[fe80::1%eth0]:40000", ""},
		{SourceClient, "169.254.1.1:40000", ""},
		{SourceGateway, "192.0.2.7:40000", ""},
	} {
		var want netip.AddrPort
		if c.want != "" {
			want = netip.MustParseAddrPort(c.want)
		}
		if got := shownAs(c.source, netip.MustParseAddrPort(c.client)); got != want {
			t.Errorf("%s %s: shown as %v, want %v", c.source, c.client, got, want)
		}
	}
	if got := shownAs(SourceClient, netip.AddrPort{}); got.IsValid() {
		t.Errorf("a client without an address is shown as %v", got)
	}
}

// FuzzParseRule's seeds are testdata/fuzz/FuzzParseRule, a file named for each
// syntax and each of their hard corners.
func FuzzParseRule(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		rules, err := ParseRule(s)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Kind == nil || e.Text == "" {
				t.Fatalf("%#v says nothing", err)
			}
			return
		}
		if len(rules) == 0 || len(rules) > maxRules {
			t.Fatalf("%d rules", len(rules))
		}
		checkRoundTrip(t, rules)
	})
}
