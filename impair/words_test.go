package impair

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestUnits(t *testing.T) {
	for in, want := range map[string]string{
		"rate=10mbit": "", "rate=10Mbit/s": "rate=10mbit", "rate=10000kbit": "rate=10mbit", "rate=1.5mbit": "", "rate=768kbit": "",
		"rate=1gbit": "", "rate=1.25MB/s": "rate=10mbit", "rate=125kB/s": "rate=1mbit", "rate=1000000": "rate=1mbit", "rate=1234567bit": "rate=1234.567kbit",
		"rate=1mibit": "rate=1048.576kbit", "latency=50ms": "", "latency=0.05s": "latency=50ms", "delay=50msec": "latency=50ms",
		"latency_ms=50": "latency=50ms", "latency=1.5s": "", "latency=200us": "", "latency=1m": "", "latency=0": "none", "none": "", "": "none",
		"loss=1%": "", "loss=0.01": "loss=1%", "loss=100%": "", "loss=0.0001%": "", "loss=7%": "", "loss=0": "none",
		"rate=1mbit,queue=100kB": "", "rate=1mbit,queue=100ms": "", "rate=1mbit,queue=65536": "rate=1mbit,queue=64KiB", "rate=1mbit,queue=1500": "rate=1mbit,queue=1500B",
		"rate=1mbit,burst=15000": "rate=1mbit,burst=15kB", "rate=1mbit,policy=CoDel": "rate=1mbit,policy=codel", "rate=1mbit,queue_policy=drop_tail": "rate=1mbit",
		"gilbert=1%/25%": "", "gilbert=1%/25%/100%/0%": "gilbert=1%/25%", "gemodel=1%/25%/50%/0.1%": "gilbert=1%/25%/50%/0.1%",
		"latency=50ms,jitter=10ms,dist=normal,share=30%,correlation=25%,shuffle=yes": "", "latency=50ms,jitter=10ms,shuffle": "latency=50ms,jitter=10ms,shuffle=yes",
		"latency=50ms,reorder=1%,gap=5": "", "duplicate=1%,corrupt=0.1%,flap=30s/2s,mtu=1400,memory=1MiB": "", "latency=1m,latency=none": "none",
		"latency=5ms;at=1s,loss=10%;at=2s,loss=none,rate=1mbit;repeat=3s": "latency=5ms;at=1s,loss=10%;at=2s,rate=1mbit,loss=none;repeat=3s",
		"none;at=1s,loss=1%": "!", "latency=0s;at=1s,loss=1%": "",
		// refused, with what is right
		"rate=10mbps": "!want 10mbit or 10mB/s", "rate=10": "!1kbit to 1000gbit", "rate=-5mbit": "!", "rate=10furlong": "!unit", "rate=": "none",
		"loss=120%": "!0% to 100%", "loss=-1%": "!0% to 100%", "loss=1": "!1% or 100%", "loss=2": "!0% to 100%", "loss=NaN": "!", "loss=1ms": "!share",
		"latency=-5ms": "!0s to 1m", "latency=50": "!50ms", "latency=2m": "!0s to 1m", "latency=abc": "!50ms", "latency=5m5": "!",
		"jitter=10ms": "!at most the latency", "latency=5ms,jitter=10ms": "!at most the latency, 5ms",
		"burst=1kB": "!want a rate", "policy=codel": "!want a rate", "rate=1mbit,policy=police,queue=10kB": "!policer has no queue", "rate=1mbit,policy=police,burst=1kB": "!1514B or more",
		"policy=fq": "!droptail, red, codel or police", "reorder=1%": "!want a latency", "latency=5ms,gap=3": "!gap", "dist=normal": "!jitter's",
		"loss=1%,gilbert=1%/2%": "!one of them", "gilbert=1%": "!P/R", "gilbert=0%/0%": "!never turns", "flap=2s/3s": "!EVERY/DOWN", "flap=2s": "!EVERY/DOWN",
		"mtu=10": "!576 to 65535", "memory=1kB": "!128KiB to 1GiB", "speed=1": "!none of a line's words", "rate": "!NAME=VALUE", "trace=x": "!no file",
		"latency=1ms;loss=1%": "!at=TIME", "latency=1ms;at=2s,loss=1%;at=1s,loss=2%": "!in order", "latency=1ms;repeat=5s": "!want steps", "latency=1ms;at=2s,loss=1%;repeat=1s": "!after the last",
		"latency=1ms;at=1s,jitter=5ms": "!at 1s: jitter", "rate=1e30mbit": "!", "correlation=100%,jitter=1ms,latency=1ms": "!0% to 99%",
	} {
		w, err := ParseWay(in, nil)
		if strings.HasPrefix(want, "!") {
			if err == nil || !strings.Contains(err.Error(), want[1:]) {
				t.Errorf("%q: %v, want an error with %q", in, err, want[1:])
			}
			continue
		}
		if want == "" {
			want = in
			if in == "" {
				want = "none"
			}
		}
		if err != nil || w.String() != want {
			t.Errorf("%q: %q, %v, want %q", in, w.String(), err, want)
			continue
		}
		back, err := ParseWay(want, nil)
		if err != nil || !reflect.DeepEqual(back, w) {
			t.Errorf("%q: read back as %+v, %v, want %+v", want, back, err, w)
		}
		j, err := json.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		var over Way
		if err := json.Unmarshal(j, &over); err != nil || !reflect.DeepEqual(over, w) {
			t.Errorf("%s: read back as %+v, %v, want %+v", j, over, err, w)
		}
	}
}

func TestJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{}`:       `{}`,
		`"lte"`:    `{"up":{"rate":"12mbit","latency":"35ms"},"down":{"rate":"12mbit","latency":"35ms"}}`,
		`"marvel"`: "!one of lte",
		`{"down":"rate=1mbit,latency=50ms","seed":7}`:                                                        `{"down":{"rate":"1mbit","latency":"50ms"},"seed":7}`,
		`{"up":{"rate":1000000,"loss":0.01,"latency":50,"jitter_ms":5,"jitter_strength":1,"shuffle":true}}`:  `{"up":{"rate":"1mbit","loss":"1%","latency":"50ms","jitter":"5ms","share":"100%","shuffle":"yes"}}`,
		`{"flows":[{"name":"dns","match":"*:udp:53","down":{"loss":"20%"}}]}`:                                `{"flows":[{"name":"dns","match":"*:udp:53","down":{"loss":"20%"}}]}`,
		`{"down":{"latency":"1ms","steps":[{"at":"1s","loss":"5%"},{"at":"2s","loss":null}],"repeat":"3s"}}`: `{"down":{"latency":"1ms","steps":[{"at":"1s","loss":"5%"},{"at":"2s","loss":"none"}],"repeat":"3s"}}`,
		`{"down":{"trace":{"name":"x","opportunities":"1*2 4"}}}`:                                            `{"down":{"trace":{"name":"x","opportunities":"1*2 4"}}}`,
		`{"down":{"loss":1.2}}`:                      "!from 0 to 1",
		`{"down":{"loss":"120%"}}`:                   "!0% to 100%",
		`{"down":{"latency":-5}}`:                    "!0s to 1m",
		`{"down":{"lag":5}}`:                         "!none of a line's words",
		`{"sideways":{}}`:                            "!sideways",
		`{"down":[1]}`:                               "!neither a text nor an object",
		`{"down":{"trace":"/etc/passwd"}}`:           "!milliseconds between them",
		`{"down":"trace=/etc/passwd"}`:               "!no file can be named",
		`{"flows":[{"name":"default","match":"*"}]}`: "!another name",
		`{"flows":[{"name":"a","match":"*"},{"name":"a","match":"*"}]}`: "!there are two",
		`{"flows":[{"name":"a b","match":"*"}]}`:                        "!letters, digits",
		`{"flows":[{"name":"a","match":"*:gre2"}]}`:                     "!tcp, udp",
	} {
		var s Settings
		err := json.Unmarshal([]byte(in), &s)
		if strings.HasPrefix(want, "!") {
			if err == nil || !strings.Contains(err.Error(), want[1:]) {
				t.Errorf("%s: %v, want an error with %q", in, err, want[1:])
			}
			continue
		}
		b, _ := json.Marshal(s)
		if err != nil || string(b) != want {
			t.Errorf("%s: %s, %v, want %s", in, b, err, want)
		}
	}
}

// A few bytes of text are not gigabytes of traces.
func TestJSONTraces(t *testing.T) {
	many := func(flows int, times string) string {
		s := `{"flows":[`
		for i := range flows {
			if i > 0 {
				s += ","
			}
			s += fmt.Sprintf(`{"name":"f%d","match":"*:47","down":{"trace":{"name":"t","opportunities":"1*%s"}}}`, i, times)
		}
		return s + "]}"
	}
	var s Settings
	if err := json.Unmarshal([]byte(many(4, "1000")), &s); err != nil || len(s.Flows[3].Down.Trace.At) != 1000 {
		t.Errorf("%v", err)
	}
	for _, text := range []string{many(5, "2000000"), many(1, "99999999999999999999999")} {
		if err := json.Unmarshal([]byte(text), &s); err == nil || !strings.Contains(err.Error(), "at most") {
			t.Errorf("%.80s: %v", text, err)
		}
	}
}

func TestMatch(t *testing.T) {
	for in, want := range map[string]string{
		"*": "", "*:udp:53": "", "192.0.2.1": "", "192.0.2.0/24:tcp": "", "192.0.2.77/24": "192.0.2.0/24", "*:tcp:8000-8999": "", "*:tcp:0-80": "", "*:*:53": "",
		"2001:db8::1": "", "[2001:db8::/32]:tcp:443": "", "2001:db8::/32": "", "[::1]": "::1", "*:icmp": "", "*:ICMPv6": "*:icmp6", "*:47": "", "*:6:80": "*:tcp:80", "*:udp:*": "*:udp",
		"*:icmp:5": "!ports", "*:tcp:0": "!1 to 65535", "*:tcp:9-8": "!1 to 65535", "*:tcp:x": "!1 to 65535", "*:gre": "!protocol", "host:tcp": "!address",
		"": "!address", "[::1": "!want ADDRESS", "::ffff:1.2.3.4": "!IPv4 as such", "fe80::1%eth0": "!zone", "*:tcp:1:2": "!",
	} {
		m, err := ParseMatch(in)
		if strings.HasPrefix(want, "!") {
			if err == nil || !strings.Contains(err.Error(), want[1:]) {
				t.Errorf("%q: %v %v, want an error with %q", in, m, err, want[1:])
			}
			continue
		}
		if want == "" {
			want = in
		}
		if err != nil || m.String() != want {
			t.Errorf("%q: %q, %v, want %q", in, m, err, want)
		}
		if back, err := ParseMatch(want); err != nil || back != m {
			t.Errorf("%q: read back as %v, %v", want, back, err)
		}
	}
	v4 := func(proto byte, src, dst string, sport, dport uint16, frag uint16) []byte {
		b := make([]byte, 60)
		b[12], b[14], b[23] = 8, 0x45, proto
		b[20], b[21] = byte(frag>>8), byte(frag)
		s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
		copy(b[26:], s[:])
		copy(b[30:], d[:])
		b[34], b[35], b[36], b[37] = byte(sport>>8), byte(sport), byte(dport>>8), byte(dport)
		return b
	}
	v6 := func(next byte, dst string, more ...byte) []byte {
		b := make([]byte, 14+40)
		b[12], b[13], b[14], b[20] = 0x86, 0xdd, 0x60, next
		d := netip.MustParseAddr(dst).As16()
		copy(b[14+24:], d[:])
		return append(b, more...)
	}
	for _, tt := range []struct {
		match string
		frame []byte
		up    bool
		want  bool
	}{
		{"*:udp:53", v4(17, "10.0.2.15", "192.0.2.1", 4000, 53, 0), true, true},
		{"*:udp:53", v4(17, "10.0.2.15", "192.0.2.1", 4000, 53, 0), false, false},
		{"*:udp:53", v4(17, "192.0.2.1", "10.0.2.15", 53, 4000, 0), false, true},
		{"*:udp:53", v4(6, "10.0.2.15", "192.0.2.1", 4000, 53, 0), true, false},
		{"192.0.2.0/24", v4(6, "10.0.2.15", "192.0.2.1", 4000, 53, 0), true, true},
		{"192.0.3.0/24", v4(6, "10.0.2.15", "192.0.2.1", 4000, 53, 0), true, false},
		{"*:tcp:8000-8999", v4(6, "10.0.2.15", "192.0.2.1", 1, 8999, 0), true, true},
		{"*:tcp:8000-8999", v4(6, "10.0.2.15", "192.0.2.1", 1, 9000, 0), true, false},
		{"*:udp:53", v4(17, "10.0.2.15", "192.0.2.1", 4000, 53, 185), true, false}, // a later fragment has no ports
		{"*:udp", v4(17, "10.0.2.15", "192.0.2.1", 4000, 53, 185), true, true},
		{"*:icmp", v4(1, "10.0.2.15", "192.0.2.1", 0, 0, 0), true, true},
		{"[2001:db8::/32]:tcp:443", v6(6, "2001:db8::1", 0, 1, 1, 187, 0, 0), true, true},
		{"[2001:db8::/32]:tcp:443", v6(0, "2001:db8::1", 6, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 187), true, true}, // behind hop-by-hop options
		{"*:udp", v6(44, "2001:db8::1", 17, 0, 0, 8, 0, 0, 0, 0), true, true},
		{"*:udp:53", v6(44, "2001:db8::1", 17, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 53), true, false},
		{"*", []byte("short"), true, false},
		{"*", make([]byte, 60), true, false},
	} {
		m, err := ParseMatch(tt.match)
		if err != nil {
			t.Fatal(err)
		}
		e, ok := endsOf(tt.frame, tt.up)
		if got := ok && m.has(&e); got != tt.want {
			t.Errorf("%s up %v: %v, %+v", tt.match, tt.up, got, e)
		}
	}
}

func TestPresets(t *testing.T) {
	for _, p := range Presets() {
		s, err := Preset(p.Name)
		if err != nil || s.Check() != nil || s.None() || p.Source == "" || p.Title == "" {
			t.Errorf("%s: %+v, %v, %v", p.Name, s, err, s.Check())
		}
		b, _ := json.Marshal(s)
		var back Settings
		if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(s, back) {
			t.Errorf("%s: %s, %v", p.Name, b, err)
		}
	}
	for _, name := range []string{"lte", "3g", "satellite", "dsl", "flaky-wifi"} {
		if _, err := Preset(name); err != nil {
			t.Error(err)
		}
	}
	if s, _ := Preset("flaky-wifi"); s.Down.Gilbert.Mean() < 0.019 || s.Down.Gilbert.Mean() > 0.02 {
		t.Errorf("flaky-wifi loses %v", s.Down.Gilbert.Mean())
	}
}

func TestTraceFiles(t *testing.T) {
	for in, bad := range map[string]string{"": "empty", "5\n3\n": "in order", "x\n": "line 1", "0\n0\n": "end from 1 ms", "99999999999\n": "line 1", "-1\n": "line 1"} {
		if _, err := ReadTrace("f", strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v, want %q", in, err, bad)
		}
	}
	for _, in := range []string{"", "x", "1*0", "1*x", "1*3000000", "0"} {
		if _, err := parseTrace(in); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
	if _, err := ParseWay("trace=/nowhere", OpenTrace); err == nil {
		t.Error("a file that is not there was taken")
	}
	w, err := ParseWay("trace=x,queue=50ms", func(string) (*Trace, error) { return &Trace{"x", []uint32{1, 2, 1000}}, nil })
	if err != nil || w.String() != "trace=x,queue=50ms" {
		t.Errorf("%s %v", w.String(), err)
	}
	if _, err := ParseWay("trace=x", func(string) (*Trace, error) { return nil, errors.New("oops") }); err == nil {
		t.Error("an error was lost")
	}
}

// What was read is printed in a form that is read as the same again.
func FuzzParseWay(f *testing.F) {
	for _, s := range []string{"rate=10mbit,latency=50ms,jitter=10ms,loss=1%", "gilbert=1%/25%/50%/1%", "latency=1ms;at=1s,loss=1%;repeat=2s",
		"rate=1mbit,queue=10kB,policy=red,burst=1kB", "flap=30s/2s,mtu=900,memory=1MiB,duplicate=0.1,corrupt=1e-3", "latency=1m30.5s,reorder=1%,gap=4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		w, err := ParseWay(s, nil)
		if err != nil {
			return
		}
		text := w.String()
		back, err := ParseWay(text, nil)
		if err != nil || back.String() != text {
			t.Fatalf("%q is printed as %q, and that read as %q, %v", s, text, back.String(), err)
		}
		b, err := json.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		var over Way
		if err := json.Unmarshal(b, &over); err != nil || over.String() != text {
			t.Fatalf("%q as JSON is %s, and that %q, %v", s, b, over.String(), err)
		}
	})
}

func FuzzParseMatch(f *testing.F) {
	for _, s := range []string{"*:udp:53", "[2001:db8::/32]:tcp:1-2", "10.0.0.0/8", "*:47", "::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMatch(s)
		if err != nil {
			return
		}
		if back, err := ParseMatch(m.String()); err != nil || back != m {
			t.Fatalf("%q is printed as %q, and that read as %v, %v", s, m, back, err)
		}
	})
}

func FuzzSettings(f *testing.F) {
	for _, s := range []string{`"3g"`, `{"down":{"rate":1e6,"loss":0.5},"flows":[{"name":"a","match":"*","up":"loss=1%"}],"seed":3}`,
		`{"down":{"trace":{"opportunities":"1*9 2 3"},"queue":"1ms","steps":[{"at":"1s","trace":null,"rate":"1mbit"}],"repeat":"2s"}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Settings
		if json.Unmarshal(b, &s) != nil {
			return
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back Settings
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatalf("%s is %s, which is refused: %v", b, text, err)
		}
		again, _ := json.Marshal(back)
		if string(again) != string(text) {
			t.Fatalf("%s is %s, and that %s", b, text, again)
		}
	})
}

// Frames of any bytes go through any line, and none is left.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x08\x00E"), uint8(0))
	f.Add([]byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 44}, uint8(3))
	ways := []string{"loss=10%,corrupt=50%,duplicate=50%,latency=1ms", "rate=1mbit,policy=codel", "rate=1mbit,policy=red,burst=9kB", "rate=1mbit,policy=police", "latency=5ms,jitter=5ms,dist=pareto,reorder=50%", "gilbert=10%/10%,flap=1s/1ms"}
	f.Fuzz(func(t *testing.T, b []byte, which uint8) {
		w, err := ParseWay(ways[int(which)%len(ways)], nil)
		if err != nil {
			t.Fatal(err)
		}
		m, _ := ParseMatch("[::/0]:udp:1-9")
		r := with(t, Settings{Down: w, Flows: []Flow{{Name: "a", Match: m, Down: w}}, Seed: 1})
		frame := append(make([]byte, 12), b...)
		for i := range 50 {
			buf := r.line.Buffer(len(frame))
			copy(buf, frame)
			r.line.Send(r.now, buf)
			r.until(time.Duration(i) * time.Millisecond)
		}
		r.until(time.Hour)
		if r.line.Held() != 0 {
			t.Fatalf("%d bytes are left", r.line.Held())
		}
	})
}

func TestParseSettings(t *testing.T) {
	for in, want := range map[string]string{
		"3g":                       "up=rate=768kbit,latency=150ms down=rate=1.6mbit,latency=150ms",
		"none":                     "",
		"rate=10mbit,latency=50ms": "both=rate=10mbit,latency=50ms",
		"down=rate=10mbit up=rate=1mbit flow=dns:*:udp:53 down=loss=20% flow=v6:[2001:db8::/32]:tcp both=loss=1% seed=7": "up=rate=1mbit down=rate=10mbit flow=dns:*:udp:53 down=loss=20% flow=v6:[2001:db8::/32]:tcp both=loss=1% seed=7",
		"4h": "!one of lte", "down=loss=7": "!down: loss", "flow=dns": "!NAME:MATCH", "flow=dns:x:y": "!flow dns", "seed=-1": "!number up to", "flow=default:*": "!another name", "": "",
	} {
		s, err := ParseSettings(in, nil)
		if strings.HasPrefix(want, "!") {
			if err == nil || !strings.Contains(err.Error(), want[1:]) {
				t.Errorf("%q: %v, want an error with %q", in, err, want[1:])
			}
			continue
		}
		if want == "" {
			want = "none"
		}
		if err != nil || s.String() != want {
			t.Errorf("%q: %q, %v, want %q", in, s.String(), err, want)
		}
		if back, err := ParseSettings(want, nil); err != nil || !reflect.DeepEqual(back, s) {
			t.Errorf("%q: read back as %+v, %v", want, back, err)
		}
	}
}
