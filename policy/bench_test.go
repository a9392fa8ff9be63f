package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

// many is a policy of n rules and n names, none of which is asked for but the last.
func many(b *testing.B, n int) *lab {
	var s strings.Builder
	s.WriteString("preset sandbox\n")
	for i := range n / 2 {
		fmt.Fprintf(&s, "allow tcp 44.%d.%d.0/24:%d\n", i/256, i%256, 1+i)
	}
	for i := range n - n/2 {
		fmt.Fprintf(&s, "allow tcp *.n%d.example.net:443\n", i)
	}
	s.WriteString("allow tcp *.example.com:22\nallow tcp 192.0.2.0/24:80\n")
	l := newLab(b, s.String(), func(c *Config) { c.Now = nil })
	for i := range min(n, mostOpen-1) {
		l.Answered("g1", fmt.Sprintf("www.n%d.example.net", i), []netip.Addr{numbered(i)}, time.Hour, false)
	}
	l.Answered("g1", "git.example.com", []netip.Addr{netip.MustParseAddr("198.51.100.1")}, time.Hour, false)
	return l
}

// A decision by address, by name, and a refusal, with 0, 10, 1000 and 100000 rules and as many names (of which a guest has 4096
// open at most).
func BenchmarkJudge(b *testing.B) {
	for _, n := range []int{0, 10, 1000, 100000} {
		l := many(b, n)
		for name, q := range map[string]flows.Query{
			"address": query("tcp 192.0.2.1:80"), "name": query("tcp 198.51.100.1:22"), "refused": query("tcp 203.0.113.1:80"),
		} {
			b.Run(fmt.Sprintf("%s/rules=%d", name, n), func(b *testing.B) {
				if v := l.Judge(q); v.Allow != (name != "refused") || v.Inspect != nil {
					b.Fatal(say(v), v.Rule)
				}
				b.ReportAllocs()
				for b.Loop() {
					l.Judge(q)
				}
			})
		}
	}
	b.Run("default policy", func(b *testing.B) { // what there is without any
		q := query("tcp 192.0.2.1:80")
		b.ReportAllocs()
		for b.Loop() {
			network.Judge(q)
		}
	})
}

func BenchmarkJudgeName(b *testing.B) {
	for _, n := range []int{0, 1000, 100000} {
		l := many(b, n)
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				l.JudgeName("g1", "a.long.name.below.git.example.com", 1)
			}
		})
	}
}

func BenchmarkReplace(b *testing.B) {
	for _, n := range []int{10, 1000, 100000} {
		d := many(b, n).Document()
		l := newLab(b, "")
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := l.Replace(d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
