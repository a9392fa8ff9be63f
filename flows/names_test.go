package flows

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestLearn(t *testing.T) {
	tab := NewTable(Limits{}, nil)
	defer tab.Close()
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}) }
	names := func(guest string, a netip.Addr) []string {
		t.Helper()
		f, v := tab.Open(Query{Guest: guest, Proto: TCP, Src: netip.MustParseAddrPort("10.0.2.15:1"), Dst: netip.AddrPortFrom(a, 443)}, nil)
		if f == nil {
			t.Fatal(v)
		}
		defer f.End(ReasonClosed)
		if s := f.Snapshot(); !slices.Equal(s.Names, f.Names()) {
			t.Errorf("the snapshot says %q", s.Names)
		}
		return f.Names()
	}
	check := func(guest string, a netip.Addr, want ...string) {
		t.Helper()
		if got := names(guest, a); !slices.Equal(got, want) {
			t.Errorf("%s is %q for %s, want %q", a, got, guest, want)
		}
	}
	tab.Learn("a", "early", []netip.Addr{addr(1)})
	tab.SetGuest("a", nil)
	tab.SetGuest("b", nil)
	check("a", addr(1))
	tab.Learn("a", "one", []netip.Addr{addr(1), addr(2)})
	f, _ := tab.Open(Query{Guest: "a", Proto: TCP, Dst: netip.AddrPortFrom(addr(1), 80)}, nil)
	tab.Learn("a", "two", []netip.Addr{addr(1)})
	tab.Learn("a", "", []netip.Addr{addr(3)})
	check("a", addr(1), "two", "one")
	check("a", addr(2), "one")
	check("a", addr(3))
	check("b", addr(1))
	if got := f.Names(); !slices.Equal(got, []string{"one"}) { // what it was when it began
		t.Errorf("%q", got)
	}
	f.End(ReasonClosed)
	for _, n := range []string{"three", "four", "five", "three"} {
		tab.Learn("a", n, []netip.Addr{addr(1)})
	}
	check("a", addr(1), "three", "five", "four", "two")
	if f, _ := tab.Open(Query{Guest: "a", Dir: In, Proto: TCP, Dst: netip.AddrPortFrom(addr(1), 80)}, nil); f.Names() != nil {
		t.Errorf("a guest's own address is %q", f.Names())
	} else {
		f.End(ReasonClosed)
	}

	// What it takes is bounded, and the last answers are what is kept.
	long := strings.Repeat("x", 240)
	for i := range 20000 {
		tab.Learn("a", fmt.Sprint(long, i), []netip.Addr{addr(i)})
		tab.Learn("b", "short", []netip.Addr{addr(i)})
	}
	check("a", addr(19999), long+"19999")
	check("b", addr(19999), "short")
	check("b", addr(20000-learntAddrs), "short")
	check("b", addr(20000-learntAddrs-1))
	for _, g := range []string{"a", "b"} {
		l := tab.guests[g].learnt
		sum := 0
		for _, n := range l.names {
			sum += bytesOf(n)
		}
		if len(l.names) > learntAddrs || l.bytes > learntBytes || l.bytes != sum || cap(l.order) > 4*learntAddrs {
			t.Errorf("%s: %d addresses, %d bytes (%d), %d in order", g, len(l.names), l.bytes, sum, cap(l.order))
		}
	}

	// A guest that was refused is told of with the name, too.
	tab.SetPolicy(closedTo(443))
	fo := tab.Follow()
	defer fo.Close()
	tab.Open(Query{Guest: "b", Proto: TCP, Dst: netip.AddrPortFrom(addr(19999), 443)}, nil)
	if list, _ := fo.Take(); len(list) != 1 || !slices.Equal(list[0].Flow.Names(), []string{"short"}) {
		t.Errorf("%+v", list)
	}
	tab.Forget("a")
	tab.Forget("b")
	if len(tab.guests) != 0 {
		t.Error("guests are kept")
	}
}
