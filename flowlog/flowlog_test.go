package flowlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/vmnetd/vmnetd/flows"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func query(port int) flows.Query {
	return flows.Query{Guest: "g1", Proto: flows.TCP, Src: netip.AddrPortFrom(netip.MustParseAddr("10.0.2.15"), uint16(port)), Dst: netip.MustParseAddrPort("10.0.2.2:80"),
		Host: netip.MustParseAddrPort("127.0.0.1:80")}
}

func table(t *testing.T) *flows.Table {
	t.Helper()
	tab := flows.NewTable(flows.Limits{FlowRate: 1e6, Flows: 1e5, Total: 1e5, Dials: 1e5, TotalDials: 1e5}, nil)
	t.Cleanup(tab.Close)
	return tab
}

func open(t *testing.T, c Config) *Log {
	t.Helper()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// read is a file's lines, each checked to be one object.
func read(t *testing.T, path string) (list []map[string]any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, b)
}

func parse(t *testing.T, b []byte) (list []map[string]any) {
	t.Helper()
	if len(b) > 0 && b[len(b)-1] != '\n' {
		t.Errorf("the last line has no end: %q", b[max(0, len(b)-100):])
	}
	for line := range bytes.Lines(b) {
		m := map[string]any{}
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		list = append(list, m)
	}
	return list
}

// eventually waits for what another goroutine does.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in 30 s: %s", what)
		}
	}
}

func TestLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows.jsonl")
	tab := table(t)
	tab.SetGuest("g1", nil)
	tab.Learn("g1", "example.com", []netip.Addr{query(0).Dst.Addr()})
	before, _ := tab.Open(query(1), nil)
	l := open(t, Config{Path: path})
	l.Follow("default", tab, func(g string) string { return "web of " + g })
	f, _ := tab.Open(query(2), nil)
	f.SetState(flows.Open)
	f.SetSaid(flows.Hello{How: flows.HelloTLS, Name: "example.com"})
	f.Up.Add(10)
	f.Up.Add(20)
	f.Down.Add(500)
	f.End(flows.ReasonReset)
	tab.Refused(query(3), flows.Verdict{Reason: flows.ReasonPolicy, Rule: "deny any"})
	before.End(flows.ReasonIdle)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	list := read(t, path)
	if len(list) != 4 {
		t.Fatalf("%d lines: %v", len(list), list)
	}
	if s := l.Status(); s.Lines != 4 || s.Lost != 0 || s.Error != "" || s.Path != path {
		t.Errorf("%+v", s)
	}
	common := map[string]any{"network": "default", "guest": "g1", "guest_name": "web of g1", "proto": "tcp", "direction": "out", "dst": "10.0.2.2:80",
		"host": "127.0.0.1:80"}
	for i, want := range []map[string]any{
		{"event": "opened", "src": "10.0.2.15:2", "verdict": "allowed", "names": []any{"example.com"}},
		{"event": "ended", "src": "10.0.2.15:2", "verdict": "allowed", "reason": "reset", "name": "example.com", "hello": "tls", "names": []any{"example.com"},
			"up_bytes": 30.0, "up_packets": 2.0, "down_bytes": 500.0, "down_packets": 1.0},
		{"event": "refused", "src": "10.0.2.15:3", "verdict": "refused", "reason": "policy", "policy_rule": "deny any", "names": []any{"example.com"}},
		{"event": "ended", "src": "10.0.2.15:1", "verdict": "allowed", "reason": "idle", "names": []any{"example.com"},
			"up_bytes": 0.0, "up_packets": 0.0, "down_bytes": 0.0, "down_packets": 0.0},
	} {
		for k, v := range common {
			want[k] = v
		}
		got := list[i]
		at, err := time.Parse(time.RFC3339, fmt.Sprint(got["time"]))
		if err != nil || time.Since(at) > time.Minute || time.Since(at) < -time.Minute || !strings.HasSuffix(got["time"].(string), "Z") {
			t.Errorf("line %d: time %v, %v", i, got["time"], err)
		}
		if _, ok := got["id"].(float64); !ok {
			t.Errorf("line %d: id %v", i, got["id"])
		}
		if _, ok := got["duration_ms"].(float64); ok != (want["event"] == "ended") || ok != (got["opened"] != nil) {
			t.Errorf("line %d: duration %v, opened %v", i, got["duration_ms"], got["opened"])
		}
		for _, k := range []string{"time", "id", "duration_ms", "opened"} {
			delete(got, k)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("line %d: %v\nwant %v", i, got, want)
		}
	}
}

func TestOnlyRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	tab := table(t)
	l := open(t, Config{Path: path, Refused: true})
	l.Follow("default", tab, nil)
	for i, r := range []flows.Reason{flows.ReasonClosed, flows.ReasonHello, flows.ReasonRefused} {
		f, _ := tab.Open(query(i), nil)
		f.End(r)
	}
	tab.Refused(query(9), flows.Verdict{Reason: flows.ReasonLinkLocal})
	l.Close()
	var got []string
	for _, m := range read(t, path) {
		got = append(got, fmt.Sprint(m["event"], " ", m["reason"]))
	}
	if strings.Join(got, ", ") != "ended other-name, refused link-local" {
		t.Errorf("%q", got)
	}
}

// The file is renamed when it is full; what was kept before moves up, and no line is lost or cut.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	tab := table(t)
	l := open(t, Config{Path: path, Size: LeastSize, Keep: 3})
	l.Follow("default", tab, nil)
	const each, rounds = 500, 8 // some 250 bytes a line, two each: four files at least
	for r := range rounds {
		for i := range each {
			f, _ := tab.Open(query(r*each+i), nil)
			f.End(flows.ReasonClosed)
		}
		eventually(t, "lines", func() bool { return l.Status().Lines == uint64(2*each*(r+1)) })
	}
	l.Close()
	if s := l.Status(); s.Lost != 0 || s.Error != "" {
		t.Errorf("%+v", s)
	}
	files, _ := filepath.Glob(path + "*")
	if len(files) != 4 {
		t.Fatalf("%v", files)
	}
	last := 1 << 30 // ports go down from the newest line to the oldest
	for _, name := range []string{"", ".1", ".2", ".3"} {
		fi, _ := os.Stat(path + name)
		if fi.Size() > LeastSize || fi.Size() < LeastSize-1000 && name != "" || fi.Mode() != 0o600 {
			t.Errorf("%s has %d bytes and mode %v", name, fi.Size(), fi.Mode())
		}
		list := read(t, path+name)
		for i := len(list) - 1; i >= 0; i-- {
			port := int(netip.MustParseAddrPort(list[i]["src"].(string)).Port())
			if port > last || port < last-1 && last < 1<<30 {
				t.Fatalf("%s: line %d is of port %d, behind it is %d", name, i, port, last)
			}
			last = port
		}
	}
}

// Whoever takes the file away finds another one.
func TestMovedAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	tab := table(t)
	l := open(t, Config{Path: path})
	l.Follow("default", tab, nil)
	port := 0
	line := func() {
		port++
		tab.Refused(query(port), flows.Verdict{Reason: flows.ReasonPolicy})
	}
	line()
	eventually(t, "the first line", func() bool { return l.Status().Lines == 1 })
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another file", func() bool {
		line()
		fi, err := os.Stat(path)
		return err == nil && fi.Size() > 0
	})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a third one", func() bool {
		line()
		fi, err := os.Stat(path)
		return err == nil && fi.Size() > 0
	})
	l.Close()
	if n := len(read(t, path+".old")) + len(read(t, path)); n < 2 || l.Status().Lost != 0 || l.Status().Error != "" {
		t.Errorf("%d lines, %+v", n, l.Status())
	}
}

// A file that cannot be renamed is written on, and that is said.
func TestRotationFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.MkdirAll(path+".1/x", 0o700); err != nil {
		t.Fatal(err)
	}
	tab := table(t)
	var said bytes.Buffer
	l := open(t, Config{Path: path, Size: LeastSize, Keep: 1, Logger: slog.New(slog.NewTextHandler(&said, nil))})
	l.Follow("default", tab, nil)
	for n := uint64(0); l.Status().Error == ""; {
		for range 50 {
			f, _ := tab.Open(query(1), nil)
			f.End(flows.ReasonClosed)
		}
		n += 100
		eventually(t, "lines", func() bool { return l.Status().Lines == n })
	}
	l.Close()
	if s := l.Status(); s.Lost != 0 || !strings.Contains(s.Error, "rename") || uint64(len(read(t, path))) != s.Lines {
		t.Errorf("%+v", s)
	}
	if n := strings.Count(said.String(), "not written as it should be"); n != 1 {
		t.Errorf("it is said %d times: %s", n, said.String())
	}
}

// badDisk is full from time to time.
type badDisk struct {
	mu   sync.Mutex
	b    bytes.Buffer
	room int // -1: enough
}

func (d *badDisk) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := len(b)
	if d.room >= 0 {
		n = min(n, d.room)
		d.room -= n
	}
	d.b.Write(b[:n])
	if n < len(b) {
		return n, errors.New("no space left")
	}
	return n, nil
}

func (d *badDisk) give(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room = n
}

// What a full disk did not take is counted, and told as soon as there is room.
func TestFullDisk(t *testing.T) {
	d := &badDisk{room: -1}
	tab := table(t)
	l := open(t, Config{Writer: d})
	l.Follow("default", tab, nil)
	line := func() { tab.Refused(query(1), flows.Verdict{Reason: flows.ReasonPolicy}) }
	line()
	eventually(t, "the first line", func() bool { return l.Status().Lines == 1 })
	d.give(20)
	line()
	eventually(t, "one lost", func() bool { return l.Status().Lost == 1 })
	line()
	eventually(t, "two lost", func() bool { return l.Status().Lost == 2 })
	if s := l.Status(); s.Error != "no space left" {
		t.Errorf("%+v", s)
	}
	d.give(-1)
	line()
	eventually(t, "room", func() bool { return l.Status().Lines == 3 })
	l.Close()
	if s := l.Status(); s.Error != "" || s.Lost != 2 {
		t.Errorf("%+v", s)
	}
	lines := strings.Split(d.b.String(), "\n")
	if len(lines) != 5 || len(lines[1]) != 20 || !strings.Contains(lines[2], `"event":"lost","network":"default","lost":2,"error":"no space left"`) {
		t.Fatalf("%q", lines)
	}
	parse(t, []byte(lines[0]+"\n"+lines[2]+"\n"+lines[3]+"\n"))
}

// A daemon that was killed may have left half a line.
func TestHalfALine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte(`{"time":"2026`), 0o600); err != nil {
		t.Fatal(err)
	}
	tab := table(t)
	l := open(t, Config{Path: path})
	l.Follow("default", tab, nil)
	tab.Refused(query(1), flows.Verdict{Reason: flows.ReasonPolicy})
	l.Close()
	b, _ := os.ReadFile(path)
	if head, rest, _ := strings.Cut(string(b), "\n"); head != `{"time":"2026` || len(parse(t, []byte(rest))) != 1 {
		t.Errorf("%q", b)
	}
}

func TestOpenFails(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []Config{{Path: dir}, {Path: filepath.Join(dir, "no", "f")}, {Path: filepath.Join(dir, "f"), Size: 100, Keep: 1}, {Path: filepath.Join(dir, "f"), Size: LeastSize}} {
		if l, err := Open(c); err == nil || !strings.Contains(err.Error(), c.Path) {
			t.Errorf("%+v: %v, %v", c, l, err)
		}
	}
}

// Nothing that a guest names can end a line, begin another one, or speak to a terminal.
func FuzzLine(f *testing.F) {
	for _, s := range []string{"example.com", "a\nb", "{\"event\":\"ended\"}", "\x1b]0;x\x07", "\xff\xfe", "\u2028", "\u009b31m", "\x7f", `\`, `"`, "\r", "<script>", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e := newEncoder()
		e.put(&entry{Event: "ended", Name: s, GuestName: s, Names: []string{s, s}, Policy: s, Forward: s, Figures: &Figures{}})
		b := e.b.Bytes()
		if bytes.Count(b, []byte("\n")) != 1 || b[len(b)-1] != '\n' || !utf8.Valid(b) {
			t.Fatalf("%q", b)
		}
		for _, r := range string(b[:len(b)-1]) {
			if r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
				t.Fatalf("%q has %q", b, r)
			}
		}
		var back entry
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if want := visible(strings.ToValidUTF8(s, "\uFFFD")); len(strings.ToValidUTF8(s, "")) == len(s) && (back.Name != want || back.Names[1] != want) {
			t.Fatalf("%q became %q", s, back.Name)
		}
	})
}

func BenchmarkLine(b *testing.B) {
	tab := flows.NewTable(flows.Limits{FlowRate: 1e9}, nil)
	defer tab.Close()
	x, _ := tab.Open(query(1), nil)
	x.End(flows.ReasonClosed)
	w := writer{log: &Log{}, network: "default", enc: newEncoder(), names: map[string]called{}}
	b.ReportAllocs()
	for b.Loop() {
		w.change(flows.Change{Kind: flows.Ended, Flow: x})
		w.enc.b.Reset()
	}
}
