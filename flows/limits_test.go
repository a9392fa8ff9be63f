package flows

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestSetLimits(t *testing.T) {
	for _, tt := range []struct {
		in, name string
		want     int
		bad      string // part of the error
	}{
		{in: "flows=100", name: "flows", want: 100},
		{in: "queue=4MiB", name: "queue", want: 4 << 20},
		{in: "queue=500k", name: "queue", want: 500_000},
		{in: "buffers=1.5GiB", name: "buffers", want: 3 << 29},
		{in: "up=10mbit", name: "up", want: 1_250_000},
		{in: "up=1MB/s", name: "up", want: 1_000_000},
		{in: "down=64kbit", name: "down", want: 8000},
		{in: "down=none", name: "down", want: Unlimited},
		{in: "flow-rate=50/s", name: "flow-rate", want: 50},
		{in: "flows=7, udp=default", name: "flows", want: 7},
		{in: "udp=0", name: "udp", want: 0},
		{in: "total=none", name: "total", want: Unlimited},
		{in: "flows", bad: "want NAME=VALUE"},
		{in: "flow=1", bad: "flows?"},
		{in: "neighbors=9", bad: "neighbours?"},
		{in: "xyzzy=9", bad: "there is flows, dials"},
		{in: "flows=none", bad: "want a number"},
		{in: "flows=-1", bad: "1 at least"},
		{in: "flows=1.5", bad: "want a number"},
		{in: "flows=10k", bad: "want a number"},
		{in: "queue=1", bad: "256KiB at least"},
		{in: "up=7kbit", bad: "64kbit at least"},
		{in: "up=1e99", bad: "want bits"},
		{in: "up=NaN", bad: "want bits"},
		{in: "up=10furlong", bad: "want bits"},
		{in: "", bad: "want NAME=VALUE"},
	} {
		var l Limits
		err := l.Parse(tt.in)
		if tt.bad != "" {
			if err == nil || !strings.Contains(err.Error(), tt.bad) {
				t.Errorf("%q: %v, want %q", tt.in, err, tt.bad)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		m, _ := Named(tt.name)
		if got := m.Of(&l); got != tt.want {
			t.Errorf("%q: %d, want %d", tt.in, got, tt.want)
		}
	}
}

// What is printed can be typed.
func TestFormatLimits(t *testing.T) {
	def := Limits{}.withDefaults()
	if err := def.Check(); err != nil {
		t.Error(err)
	}
	for _, m := range AllLimits() {
		if m.Why == "" || m.Default < m.Least {
			t.Errorf("%s: %+v", m.Name, m)
		}
		var l Limits
		if err := l.Set(m.Name, m.Format(m.Of(&def))); err != nil {
			t.Error(err)
		}
		if got := l.Or(Limits{}); got != def {
			t.Errorf("%s: %+v, want the defaults", m.Name, got)
		}
	}
	own := Limits{Flows: 3}.Or(Limits{Flows: 5, UDP: 6})
	if own.Flows != 3 || own.UDP != 6 || own.Dials != 1024 {
		t.Errorf("%+v", own)
	}
}

func FuzzParseLimits(f *testing.F) {
	for _, s := range []string{"flows=100", "up=10mbit,down=none", "queue=4MiB", "buffers=1e3m", "a=b", "=,=", "flows=0x10"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var l Limits
		if l.Parse(s) != nil {
			return
		}
		if err := l.Check(); err != nil {
			t.Fatalf("%q was taken: %v", s, err)
		}
	})
}

// A burst is let in, what is beyond it is not, and a second later as many again.
func TestFlowRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Limits{FlowRate: 10}, nil)
		tab.SetGuest("a", nil)
		tab.SetGuest("b", nil)
		burst := func(guest string, dir Direction) (in int) {
			for i := range 30 {
				q := ask(guest, UDP, uint16(1000+i))
				q.Dir = dir
				f, v := tab.Open(q, nil)
				if f != nil {
					in++
					f.End(ReasonClosed)
				} else if v.Reason != ReasonFlowRate || v.Reject {
					t.Errorf("%+v", v)
				}
			}
			return in
		}
		if n := burst("a", Out); n != 10 {
			t.Errorf("%d at once, want 10", n)
		}
		if n := burst("a", In); n != 30 {
			t.Errorf("%d of the host's, want all", n)
		}
		if n := burst("b", Out); n != 10 {
			t.Errorf("%d of another guest's, want 10", n)
		}
		time.Sleep(500 * time.Millisecond)
		if n := burst("a", Out); n != 5 {
			t.Errorf("%d after half a second, want 5", n)
		}
		time.Sleep(time.Minute)
		if n := burst("a", Out); n != 10 {
			t.Errorf("%d after a minute, want 10", n)
		}
		u := tab.Use("a")
		if u.FlowRate.Hits != 20+25+20 || u.Begun != 90 || u.UDP.Most != 1 || u.UDP.Now != 0 {
			t.Errorf("%+v", u)
		}
		if n := tab.Counts()["flow-rate"]; n != 20+20+25+20 {
			t.Errorf("counted %d times", n)
		}
		tab.Forget("a")
		tab.Forget("b")
		if len(tab.guests) != 0 {
			t.Errorf("%d guests are kept", len(tab.guests))
		}
	})
}

// A guest's own limits outweigh the network's, and either may change while conversations go on.
func TestGuestLimits(t *testing.T) {
	tab := NewTable(Limits{Flows: 3}, nil)
	own := Limits{Flows: 1}.Or(tab.Limits())
	tab.SetGuest("a", &own)
	open := func(guest string, port uint16, want Reason) {
		t.Helper()
		if _, v := tab.Open(ask(guest, TCP, port), nil); v.Reason != want {
			t.Errorf("%s:%d: %v, want %v", guest, port, v.Reason, want)
		}
	}
	open("a", 1, ReasonNone)
	open("a", 2, ReasonFlowLimit)
	open("b", 1, ReasonNone)
	open("b", 2, ReasonNone)
	tab.SetLimits(Limits{Flows: 2})
	open("b", 3, ReasonFlowLimit)
	open("a", 3, ReasonFlowLimit)
	tab.SetGuest("a", nil)
	open("a", 4, ReasonNone)
	open("a", 5, ReasonFlowLimit)
	tab.Shut("a", ReasonMemory)
	open("a", 6, ReasonMemory)
	tab.Shut("a", ReasonNone)
	if u := tab.Use("a"); u.Flows != (Use{2, 2, 3}) {
		t.Errorf("%+v", u.Flows)
	}
	if total, dials := tab.TotalUse(); total.Now != 4 || total.Most != 4 || dials.Now != 4 {
		t.Errorf("%+v %+v", total, dials)
	}
	cut := make(chan Reason, 1)
	f, _ := tab.Open(ask("c", TCP, 1), func(r Reason) { cut <- r })
	f.Cut(ReasonMemory)
	if r := <-cut; r != ReasonMemory {
		t.Error(r)
	}
	tab.EndAll(ReasonShutdown)
	tab.Forget("a")
	if len(tab.guests) != 0 {
		t.Errorf("%d guests are kept", len(tab.guests))
	}
}
