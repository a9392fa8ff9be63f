package policy

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func numbered(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{44, byte(i >> 16), byte(i >> 8), byte(i)})
}

// A guest that asks for a million names below one that it may have grows nothing, and does not lose what it uses.
func TestAMillionNames(t *testing.T) {
	l := newLab(t, "preset sandbox\nallow tcp *.example.com:22")
	l.Learn(LearnRecord)
	n := 1000000
	if testing.Short() || raceEnabled {
		n = 100000
	}
	long := strings.Repeat("x", 60) + "." + strings.Repeat("y", 60)
	var before uint64
	for i := range n {
		name := fmt.Sprintf("n%d.%s.example.com", i, long)
		l.JudgeName("g1", name, 1)
		l.Answered("g1", name, []netip.Addr{numbered(i)}, time.Hour, false)
		if i%1000 == 0 { // it uses the first one all the time
			l.judge("tcp 44.0.0.0:22", "allow")
		}
		if i == n/10 {
			before = heapInUse()
		}
	}
	if grown := int64(heapInUse()) - int64(before); grown > 1<<20 {
		t.Errorf("grew by %d bytes", grown)
	}
	g := l.known("g1")
	if g.count > mostOpen || len(g.addrs) > mostOpen {
		t.Errorf("%d names of %d addresses are kept", g.count, len(g.addrs))
	}
	l.judge("tcp "+numbered(n-1).String()+":22", "allow")
	l.judge("tcp "+numbered(n-mostOpen-1000).String()+":22", "reject policy")
}

// All names at one address: a decision looks at some of them only.
func TestManyNamesOfOneAddress(t *testing.T) {
	l := newLab(t, "preset sandbox\nallow tcp *.example.com:22")
	for i := range 10000 {
		l.answer("g1", fmt.Sprintf("n%d.example.com", i), time.Hour, "192.0.2.1")
	}
	g := l.known("g1")
	if g.count != mostNames || len(g.addrs[netip.MustParseAddr("192.0.2.1")]) != mostNames {
		t.Errorf("%d names are kept", g.count)
	}
	l.judge("tcp 192.0.2.1:22", "allow")
}

// Guests that come and go without anybody saying so.
func TestManyGuests(t *testing.T) {
	l := newLab(t, "preset sandbox\nallow tcp *.example.com:22")
	for i := range 3 * mostGuests {
		id := fmt.Sprintf("g%d", i)
		l.time = l.time.Add(time.Millisecond)
		l.answer(id, "a.example.com", time.Hour, "192.0.2.1")
		l.Judge(query(id + " tcp 192.0.2.1:22"))
	}
	if n := len(l.guests); n != mostGuests {
		t.Errorf("%d guests are kept", n)
	}
	// The more guests there are, the fewer names each may have.
	for i := range 2 * leastOpen {
		l.Answered("last", fmt.Sprintf("n%d.example.com", i), []netip.Addr{numbered(i)}, time.Hour, false)
	}
	if g := l.known("last"); g.count != leastOpen {
		t.Errorf("%d names are kept", g.count)
	}
}

// A guest may say that it is somebody else with every conversation.
func TestManyIdentities(t *testing.T) {
	var text strings.Builder
	for i := range 300 {
		fmt.Fprintf(&text, "allow tcp 192.0.2.1:%d guest=name%d\n", i+1, i)
	}
	text.WriteString("default reject\n")
	i := 0
	l := newLab(t, text.String(), func(c *Config) {
		c.Identify = func(string) (string, string) { return "", fmt.Sprintf("name%d", i) }
	})
	for i = range 1000 {
		want := "reject policy"
		if i < 300 {
			want = "allow"
		}
		l.judge(fmt.Sprintf("tcp 192.0.2.1:%d", i+1), want)
	}
	c := l.doc.Load()
	if n := len(c.views); n > mostViews {
		t.Errorf("%d views are kept", n)
	}
}

// Everything at once, for the race detector.
func TestConcurrently(t *testing.T) {
	l := newLab(t, "preset sandbox\nallow tcp *.example.com:443", func(c *Config) {
		c.Now = time.Now
		c.Audit = func(Decision) {}
		c.Identify = func(g string) (string, string) { return "", g }
	})
	docs := []Document{mustParse(t, "preset sandbox\nallow tcp *.example.com:443"), mustParse(t, "allow tcp *.example.com:443\nask udp any guest=g1"), mustParse(t, "preset offline\nguest g2\npreset open")}
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() {
			for i := range 500 {
				id := fmt.Sprintf("g%d", (w+i)%3)
				switch (i + w) % 8 {
				case 0:
					l.JudgeName(id, "a.example.com", 1)
					l.Answered(id, "a.example.com", []netip.Addr{numbered(i % 10)}, time.Hour, false)
				case 1:
					l.Replace(docs[i%3])
				case 2:
					l.Forget(id)
				case 3:
					l.Learn(Learning(i % 3))
					l.LearnedText("")
				case 4:
					l.Test(id, "tcp", "a.example.com:443")
					l.Names(id)
					l.Effective(id)
				default:
					v := l.Judge(flows.Query{Guest: id, Proto: flows.TCP, Dst: netip.AddrPortFrom(numbered(i%10), 443)})
					if v.Inspect != nil {
						v.Inspect(tlsFor("a.example.com"))
					}
					l.Judge(flows.Query{Guest: id, Proto: flows.UDP, Dst: netip.AddrPortFrom(numbered(i%10), 443)})
				}
			}
		})
	}
	all.Wait()
}
