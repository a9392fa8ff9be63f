package backend

import (
	"net/netip"
	"testing"

	"github.com/vmnetd/vmnetd/flows"
)

// A capture whose writer waits misses what becomes of conversations, and remembers none of those for ever.
func TestCaptureNotesMissed(t *testing.T) {
	n := &Network{flows: flows.NewTable(flows.Limits{}, nil)}
	c := newCaptureNotes(n, flowWish{})
	defer c.close()
	const each = 5000 // twice as many changes: more than are kept for a follower
	for wave := range 4 {
		for i := range each {
			at := netip.AddrPortFrom(netip.MustParseAddr("10.0.2.15"), uint16(i))
			f, v := n.flows.Open(flows.Query{Guest: "g1", Proto: flows.TCP, Src: at, Dst: netip.AddrPortFrom(at.Addr(), uint16(wave))}, nil)
			if f == nil {
				t.Fatalf("not opened: %+v", v)
			}
			c.learn(f) // as the wave before the last few changes is
			f.End(flows.ReasonClosed)
		}
		c.update()
	}
	for _, x := range c.ended {
		x.over = x.over.Add(-noteAfter)
	}
	c.update()
	if len(c.flows)+len(c.ended) > 0 {
		t.Errorf("%d conversations that are over are remembered, %d to be forgotten", len(c.flows), len(c.ended))
	}
}

func TestFlowWish(t *testing.T) {
	for text, want := range map[string]flowWish{
		"":               {},
		"17":             {id: 17},
		"Example.COM.":   {name: "example.com"},
		"*.example.com":  {name: "*.example.com"},
		"tcp:443":        {filter: "tcp port 443"},
		"udp:53":         {filter: "udp port 53"},
		"xn--mgba3a4f1.": {name: "xn--mgba3a4f1"},
	} {
		if w, err := parseFlowWish(text); err != nil || w != want {
			t.Errorf("%q: %+v, %v", text, w, err)
		}
	}
	for _, text := range []string{"tcp:http", "tcp:70000", "sctp:1", "*.", "*", "a b", "exa*mple.com", "a/b", "0:0"} {
		if w, err := parseFlowWish(text); err == nil {
			t.Errorf("%q: %+v", text, w)
		}
	}
	w := flowWish{name: "*.example.com"}
	for name, want := range map[string]bool{"www.example.com": true, "WWW.EXAMPLE.COM.": true, "a.b.example.com": true, "example.com": false, ".example.com": false, "badexample.com": false, "": false} {
		if w.isNamed(name) != want {
			t.Errorf("%s is of *.example.com: %v", name, !want)
		}
	}
	table := flows.NewTable(flows.Limits{}, nil)
	f, _ := table.Open(flows.Query{Guest: "g1", Proto: flows.TCP}, nil)
	defer f.End(flows.ReasonClosed)
	if w.has(f) || !(flowWish{}).has(f) || !(flowWish{id: f.ID}).has(f) || (flowWish{id: f.ID + 1}).has(f) {
		t.Error("whose conversation it is")
	}
	f.SetSaid(flows.Hello{Name: "www.example.com"})
	if !w.has(f) {
		t.Error("a conversation that named itself is not found")
	}
}
