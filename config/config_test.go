package config

import (
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFaults(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"Key", "networks:\n  - gatway: 10.0.2.2\n", "f.yaml:2:5: no key \"gatway\" in a network: did you mean gateway?\n      - gatway: 10.0.2.2\n        ^"},
		{"TopKey", "door:\n  qemu: []\n", "f.yaml:1:1: no key \"door\" in the file: did you mean doors?\n    door:\n    ^"},
		{"FarKey", "zzzzzzzz: 1\n", `want networks, doors, control, api, memory, log, flow-log, sandbox or pprof`},
		{"InnerKey", "networks:\n  - policy: {prest: open}\n", `f.yaml:2:14: no key "prest" in policy: did you mean preset?`},
		{"Twice", "control: a\nmemory: 1\ncontrol: b\n", `f.yaml:3:1: "control" is there twice: first in line 1`},
		{"TwiceInMap", "networks: [{limits: {flows: 1, flows: 2}}]", `"flows" is there twice`},
		{"NoValue", "control:\n", "f.yaml:1:1: control has no value"},
		{"NullValue", "control: ~\n", "f.yaml:1:1: control has no value"},
		{"NoItem", "doors:\n  qemu:\n    -\n", "number 1 of the list has no value"},
		{"Bool", "pprof: yes\n", "f.yaml:1:8: pprof: want true or false, not \"yes\"\n    pprof: yes\n           ^"},
		{"NoList", "doors: {qemu: unix:/a}\n", "f.yaml:1:15: qemu: want a list, of lines that begin with a dash or in [ ], not \"unix:/a\""},
		{"NoText", "control: [a]\n", "control: want one value, not a list"},
		{"NoMap", "doors: [a]\n", "doors: want keys with values, KEY: VALUE, not a list"},
		{"NoMapAtAll", "just words\n", "the file: want keys with values"},
		{"Anchor", "control: &a x\n", "control: want one value, not an anchor or what refers to one: say it in full"},
		{"Alias", "control: *a\n", "f.yaml:1:"},
		{"Merge", "doors:\n  <<: {qemu: []}\n", "f.yaml:2:3"},
		{"Tag", "control: !!str x\n", "control: want one value, not a tag"},
		{"Document", "control: a\n---\ncontrol: b\n", "f.yaml:3:1: a second document"},
		{"Syntax", "control: [a\nmemory: 1\n", "f.yaml:2:1: ',' or ']' must be specified"},
		{"Tab", "log:\n\tlevel: info\n", "f.yaml:2:1"},
		{"Control", "control: \"a\x1b[31m\"\n", "f.yaml:1:12: a control character, U+001B"},
		{"UTF8", "control: \xff\n", "f.yaml: not UTF-8"},
		{"Long", "control: " + strings.Repeat("x", maxLine) + "\n", "f.yaml:1:1: a line of more than 4096 bytes"},
		{"Large", strings.Repeat("# nothing\n", MaxSize/10+1), "f.yaml: more than 262144 bytes"},
		{"Questions", strings.Repeat("? a\n", 60_000), "more than 1000 question marks"},
		{"Deep", strings.Repeat(strings.Repeat("[", 1000)+"\n", 11), "more than 10000 brackets"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := Parse("f.yaml", []byte(c.text))
			if err == nil {
				t.Fatalf("read as\n%s", f)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %s\nwant %s", err, c.want)
			}
			var e *Error
			if !errors.As(err, &e) {
				t.Errorf("%T is no *Error", err)
			}
		})
	}
}

// TestManyFaults: all are told at once, and of very many the first.
func TestManyFaults(t *testing.T) {
	_, err := Parse("f", []byte("a1: 1\nlog: {levl: x}\npprof: 3\n"))
	for _, want := range []string{"f:1:1:", "f:2:7:", "f:3:8:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %s in: %v", want, err)
		}
	}
	_, err = Parse("f", []byte("doors:\n  qemu:\n"+strings.Repeat("  - [x]\n", 50)))
	if err == nil || strings.Count(err.Error(), "f:") != maxFaults+1 || !strings.Contains(err.Error(), "and 40 more faults") {
		t.Errorf("%v", err)
	}
}

// TestSettings: what is written is what a flag gets, and the place is where it was written.
func TestSettings(t *testing.T) {
	f, err := Parse("f", []byte(`networks:
  - name: a
    mtu: 1500
    forward:
      - 2222:22
      - 010:0x10
    static:
      52:54:00:12:34:56: [10.0.2.20, fd00::1]
    guest-limits:
      52:54:00:12:34:56: {up: 10mbit}
  - policy:
      rules: |
        preset open
        allow any x.example
pprof: true
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Setting{
		{0, "name", "a", 2, 11, ""},
		{0, "mtu", "1500", 3, 10, ""},
		{0, "static", "52:54:00:12:34:56=10.0.2.20,fd00::1", 8, 7, ""},
		{0, "forward", "2222:22", 5, 9, ""},
		{0, "forward", "010:0x10", 6, 9, ""},
		{0, "limit", "52:54:00:12:34:56,up=10mbit", 10, 27, ""},
		{1, "policy-rules", "preset open\nallow any x.example\n", 12, 14, ""},
		{Daemon, "pprof", "true", 15, 8, ""},
	}
	got := f.Settings()
	for i := range got {
		got[i].path = ""
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// TestColons: a colon with nothing behind it is part of a value, between braces, too.
func TestColons(t *testing.T) {
	f, err := Parse("f", []byte(`networks: [{forward: [2222:22, "8080":80, 127.0.0.1:53:53/udp, {a:b}], resolver: [2001:db8::1, fd00::], net6: fd00::/64}]`))
	if err == nil || !strings.Contains(err.Error(), "1:32: forward: want one value, not keys with values") || !strings.Contains(err.Error(), "1:65") || f != nil {
		t.Errorf("%v, %v", f, err)
	}
	f, err = Parse("f", []byte(`networks: [{forward: [2222:22, 127.0.0.1:53:53/udp], resolver: [2001:db8::1, fd00::], net6: fd00::/64}]`))
	if err != nil {
		t.Fatal(err)
	}
	if n := f.Networks[0]; !reflect.DeepEqual(n.Forward, []string{"2222:22", "127.0.0.1:53:53/udp"}) || !reflect.DeepEqual(n.Resolver, []string{"2001:db8::1", "fd00::"}) || n.Net6 != "fd00::/64" {
		t.Errorf("%+v", n)
	}
	for _, s := range f.Settings() {
		if s.Value == "2222:22" && (s.Line != 1 || s.Column != 23) {
			t.Errorf("%+v", s)
		}
	}
}

// TestEmpty: a file without anything is one.
func TestEmpty(t *testing.T) {
	for _, s := range []string{"", "# nothing\n", "---\n", "{}", "\ufeff"} {
		if f, err := Parse("f", []byte(s)); err != nil || len(f.Settings()) != 0 {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// TestJSON: JSON is read, too.
func TestJSON(t *testing.T) {
	f, err := Parse("f", []byte(`{"networks": [{"name": "a", "isolate": true}], "doors": {"qemu": ["unix:/a"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	if n := f.Networks[0]; n.Name != "a" || n.Isolate == nil || !*n.Isolate || f.Doors.QEMU[0] != "unix:/a" {
		t.Errorf("%+v", f)
	}
}

// TestStrings: each string comes back from what is printed as it was.
func TestStrings(t *testing.T) {
	for _, s := range []string{"a", "1", "1.0", "0x1", "true", "null", "NULL", "~", "a: b", "a #b", "- a", "a:", "[a]", "{a}", "'", `"`, `\`, "a\nb", "a\nb\n", "a\n", " a\n", "a \nb\n",
		"a\n\nb\n", "\n", "\n\n", "\ta", "é", "☃", "😀", "\ufeff", "\u2028", "*a", "&a", "!a", "%a", "@a", "`a`", "=", "<<", "---", "...", "12:30:45", "2222:22", "a,b", "/a b", "1e3", ".inf", "0o7", "tcp *.debian.org:80"} {
		f := &File{Control: s, Doors: Doors{QEMU: []string{s, s}}, Networks: []Network{{Limits: map[string]string{"k": s}, Static: map[string][]string{s: {s}}}, {}, {Policy: Policy{Rules: s}}}}
		back, err := Parse("f", []byte(f.String()))
		if err != nil {
			t.Errorf("%q: %v\n%s", s, err, f)
			continue
		}
		back.name, back.lines, back.at = "", nil, nil
		if !reflect.DeepEqual(f, back) {
			t.Errorf("%q came back otherwise:\n%s\n%s", s, f, back)
		}
	}
}

// FuzzParse: whatever the bytes, an error or a file that is itself again when it is printed.
func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("testdata/fuzz/FuzzParse/*")
	if err != nil || len(seeds) < 10 {
		f.Fatalf("%d seeds, %v", len(seeds), err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := Parse("f", text)
		if err != nil {
			if file != nil {
				t.Fatal("a file and an error")
			}
			if len(err.Error()) > maxFaults*(3*maxLine) {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		once := file.String()
		back, err := Parse("f", []byte(once))
		if err != nil {
			var e *Error // quotes make a line longer
			if errors.As(err, &e) && (strings.Contains(e.What, "more than") || e.Line == 0) {
				return
			}
			t.Fatalf("%q was printed as\n%s\n%v", text, once, err)
		}
		if twice := back.String(); twice != once {
			t.Fatalf("%q was printed as\n%s\nand then\n%s", text, once, twice)
		}
		if a, b := file.Settings(), back.Settings(); len(a) < len(b) {
			t.Fatalf("%v became %v", a, b)
		}
	})
}

// TestDeep: what nests as far as the bounds let it ends in an error, and in time.
func TestDeep(t *testing.T) {
	for _, s := range []string{
		strings.Repeat(strings.Repeat("[", 1000)+"\n", 9), strings.Repeat(strings.Repeat("{", 1000)+"\n", 9), strings.Repeat(strings.Repeat("{a: ", 500)+"\n", 9),
		strings.Repeat("- ", maxLine/2), strings.Repeat("? ", maxLine/2), strings.Repeat("a: ", maxLine/3), strings.Repeat("!a ", maxLine/3), strings.Repeat("&a ", maxLine/3),
	} {
		if _, err := Parse("f", []byte(s)); err == nil {
			t.Errorf("%.20q...: no error", s)
		}
	}
}
