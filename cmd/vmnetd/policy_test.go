package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/policy"
)

func TestDidYouMean(t *testing.T) {
	known := []string{"allow", "reject", "drop", "sandbox"}
	for word, want := range map[string]string{
		"alow": "did you mean allow?", "sandbx": "did you mean sandbox?", "rejcet": "did you mean reject?", "DROP": "did you mean drop?",
		"deny": "want allow, reject, drop or sandbox", "": "want allow, reject, drop or sandbox", strings.Repeat("allow", 1000): "want allow, reject, drop or sandbox",
	} {
		if got := didYouMean(word, known); got != want {
			t.Errorf("%.20q: %s, want %s", word, got, want)
		}
	}
}

func TestPolicyFlags(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string // the document, or with a ! in front what its error has
	}{
		{nil, ""},
		{[]string{"--policy", "offline"}, "preset offline\n"},
		{[]string{"--restrict"}, "preset restrict\n"},
		{[]string{"--restrict=on", "--policy=restrict"}, "preset restrict\n"},
		{[]string{"--restrict=off"}, ""},
		{[]string{"--policy", "sandbox", "--allow", "example.com", "--allow", "*.example.com:443", "--allow", "udp 192.0.2.1:53"},
			"preset sandbox\nallow any example.com\nallow any *.example.com:443\nallow udp 192.0.2.1:53\n"},
		{[]string{"--allow", "reject any private", "--rule", "ask tcp any:22"}, "reject any private\nask tcp any:22\n"},
		{[]string{"--allow", "icmp"}, "allow icmp\n"},
		{[]string{"--allow", ""}, "!no protocol"},
		{[]string{"--allow", "tcp"}, "allow tcp\n"},
		{[]string{"--allow", "tcp exa.mple .com"}, "!want nothing more"},
		{[]string{"--policy", "Open"}, "!did you mean open?"},
		{[]string{"--policy", ""}, "!want open"},
		{[]string{"--restrict", "--policy=sandbox"}, "!leave one out"},
	} {
		var f policyFlags
		fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
		fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
			if a := aliases[name]; a != "" {
				name = a
			}
			return pflag.NormalizedName(name)
		})
		f.add(fs)
		err := fs.Parse(c.args)
		var d policy.Document
		if err == nil {
			d, err = f.document()
		}
		if want, bad := strings.CutPrefix(c.want, "!"); bad {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v, %v, want an error with %q", c.args, d, err, want)
			}
		} else if err != nil || d.String() != c.want {
			t.Errorf("%q: %q, %v, want %q", c.args, d, err, c.want)
		}
	}
}

// An error keeps what it was and where, whatever is guessed beside it.
func TestNearWord(t *testing.T) {
	_, err := parsePolicy("preset sandbox\r\n  allwo tcp example.com:443\n")
	var e *policy.Error
	if !errors.As(err, &e) || e.Line != 2 || e.Column != 3 || !strings.HasSuffix(err.Error(), "did you mean allow?") {
		t.Errorf("%v", err)
	}
	if _, err := parsePolicy("allow tcp ex\tample.com"); err == nil || strings.Contains(err.Error(), "did you mean") {
		t.Errorf("%v", err)
	}
}

func TestReadAnswer(t *testing.T) {
	usual := control.Answer{For: "session", Guest: "web*"}
	for line, want := range map[string]control.Answer{
		"y": {Answer: "allow", For: "session"}, " NO ": {Answer: "deny", For: "session"},
		"y always": {Answer: "allow", For: "always", Guest: "web*"}, "deny once": {Answer: "deny", For: "once"},
	} {
		if got, err := readAnswer(line, usual); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", line, got, err, want)
		}
	}
	for _, line := range []string{"", "perhaps", "y forever", "y always please", "always"} {
		if got, err := readAnswer(line, usual); err == nil {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

func FuzzPolicyRule(f *testing.F) {
	for _, s := range []string{"example.com", "tcp *.example.com:80,443", "reject any private", "alow tcp x.example:1", "tpc \"x", "#", "any", "ask"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parsePolicyRule(s)
		if err != nil {
			return
		}
		again, err := parsePolicyRule(r.String())
		if err != nil || again.String() != r.String() {
			t.Fatalf("%q is %q, and that is %q, %v", s, r, again, err)
		}
	})
}
