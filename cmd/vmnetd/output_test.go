package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/goccy/go-yaml"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/flows"
)

// YAML's answer is JSON's: read by another's parser it has the same keys in the same order, and the same values.
func TestYAML(t *testing.T) {
	for _, c := range []struct{ json, want string }{
		{`[]`, "[]\n"},
		{`{}`, "{}\n"},
		{`"web"`, "web\n"},
		{`{"b":1,"a":{"d":[],"c":{}},"e":[1,"two",[3,[4]],{"f":null,"g":[true]}]}`,
			"b: 1\na:\n  d: []\n  c: {}\ne:\n  - 1\n  - two\n  - - 3\n    - - 4\n  - f: null\n    g:\n      - true\n"},
		{`{"n":18446744073709551615,"t":"2026-11-21T13:00:00Z","no":"no","mac":"52:54:00:12:34:56","x":" a","y":"a: b #c","z":""}`,
			"\"n\": 18446744073709551615\nt: \"2026-11-21T13:00:00Z\"\n\"no\": \"no\"\nmac: \"52:54:00:12:34:56\"\nx: \" a\"\n\"y\": \"a: b #c\"\nz: \"\"\n"},
	} {
		got, err := yamlOf([]byte(c.json))
		if err != nil || string(got) != c.want {
			t.Errorf("%s\n got %q (%v)\nwant %q", c.json, got, err, c.want)
		}
		sameYAML(t, []byte(c.json), got)
	}
	for _, bad := range []string{``, `{`, `{"a":`, `[1`} {
		if got, err := yamlOf([]byte(bad)); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
}

func sameYAML(t *testing.T, text, y []byte) {
	t.Helper()
	var want, got any
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&want); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(y, &got); err != nil {
		t.Fatalf("%q: %v", y, err)
	}
	back, err := json.Marshal(got)
	if err != nil {
		t.Fatalf("%q: %v", y, err)
	}
	got = nil
	if err := json.Unmarshal(back, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%q is read as %s (%v), want %s", y, back, err, text)
	}
}

// Whatever guests call themselves, it is one string of YAML, with nothing in it that a terminal obeys.
func FuzzYAML(f *testing.F) {
	for _, s := range []string{"web", "no", "0x1f", "1e3", ".inf", "~", "- a", "a: b", "a #b", "\x1b[2J", "\u009b2J", "\u202eevil", "a\nb: c", "\ufeff", "'", `"`, "---", "é", "\U0001f600", "=", "<<"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		text, err := json.Marshal(map[string]any{"name": s, "list": []string{s, s}})
		if err != nil {
			t.Skip()
		}
		got, err := yamlOf(text)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.IndexFunc(got, func(r rune) bool { return r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 }); i >= 0 {
			t.Errorf("%q reaches the terminal", got)
		}
		sameYAML(t, text, got)
	})
}

func TestWide(t *testing.T) {
	list := []backend.GuestInfo{{ID: "g1", Name: "we\x1b[2Jb", MAC: "52:54:00:00:00:01", Addrs: []netip.Addr{netip.MustParseAddr("10.0.2.15")},
		Since: time.Now().Add(-90 * time.Minute), MTU: 1500, Link: "qemu unix:/q", RxBytes: 1500, TxBytes: 2_000_000, Flows: 3, Queued: 7,
		Dropped: map[string]uint64{"spoofed": 2, "queue-full": 1}}}
	for form, want := range map[outputFormat]string{
		"table": "ID  NAME      ADDRESSES  SINCE  SENT  RECEIVED  FLOWS  DROPPED\ng1  we?[2Jb  10.0.2.15  1h30m  1.5k  2.0M      3      3\n",
		"wide": "ID  NAME      MAC                ADDRESSES  SINCE  MTU   SENT  RECEIVED  FLOWS  DROPPED                  QUEUED  LINK\n" +
			"g1  we?[2Jb  52:54:00:00:00:01  10.0.2.15  1h30m  1500  1.5k  2.0M      3      queue-full 1, spoofed 2  7       qemu unix:/q\n",
	} {
		for _, bare := range []bool{false, true} {
			var b strings.Builder
			if err := form.print(&b, bare, list, func(w io.Writer) { writeGuests(w, list) }); err != nil {
				t.Fatal(err)
			}
			squeeze := func(s string) string {
				var lines []string
				for l := range strings.Lines(s) {
					lines = append(lines, strings.Join(strings.Fields(l), " "))
				}
				if bare && len(lines) == 2 && strings.HasPrefix(lines[0], "ID") {
					lines = lines[1:]
				}
				return strings.Join(lines, "\n")
			}
			if got := squeeze(b.String()); got != squeeze(want) || bare == strings.Contains(b.String(), "NAME") {
				t.Errorf("%s, bare %v:\n%s", form, bare, b.String())
			}
		}
	}
	f := []flows.Snapshot{{ID: 7, Guest: "g1", Proto: flows.TCP, Rule: "2222:22", Name: "example.com", State: "open", IdleMS: 1700, Opened: time.Now().Add(-30 * 24 * time.Hour)}}
	var b strings.Builder
	if err := outputFormat("wide").print(&b, false, f, func(w io.Writer) { writeFlows(w, f) }); err != nil || !strings.Contains(b.String(), "30d0h") ||
		!strings.Contains(b.String(), "2222:22") || !strings.Contains(b.String(), "example.com") {
		t.Errorf("%v, %s", err, b.String())
	}
}

func TestWhile(t *testing.T) {
	for d, want := range map[time.Duration]string{-time.Second: "0s", 400 * time.Millisecond: "0s", 59600 * time.Millisecond: "1m0s", 5*time.Hour + 20*time.Minute + 40*time.Second: "5h20m", 25 * time.Hour: "1d1h"} {
		if got := while(d); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}

// JSON on a terminal has nothing that it would obey, and is to programs what it was.
func TestJSONIsVisible(t *testing.T) {
	name := "a\x7f\u009b31mb\u202e\U000e0001é\\\"\n"
	show := func(f func(out io.Writer) error) {
		t.Helper()
		var b bytes.Buffer
		if err := f(&b); err != nil {
			t.Fatal(err)
		}
		text := strings.TrimSpace(b.String())
		if strings.ContainsFunc(strings.ReplaceAll(text, "\n", ""), func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q", text)
		}
		var back []string
		if err := json.Unmarshal([]byte(text), &back); err != nil || back[0] != name {
			t.Errorf("%q: %v; want %q", back, err, name)
		}
	}
	show(func(out io.Writer) error { return outputFormat("json").print(out, false, []string{name}, nil) })
	show(func(out io.Writer) error { return outputFormat("json").one(out, []string{name}, nil) })
}
