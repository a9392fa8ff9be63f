package main

import (
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
)

// Of a network without an uplink only what there is is told.
func TestStatusPlain(t *testing.T) {
	var b strings.Builder
	st := control.Status{Networks: []backend.Status{
		{Name: "sw", NoUplink: true, Isolate: true, Prefix4: netip.MustParsePrefix("10.1.0.0/24"), Guests: 3, Ping4: "x", Refused: map[string]uint64{"isolated": 2}},
		{Name: "line", NoUplink: true, Wire: true},
	}}
	if err := outputFormat("").print(&b, false, st, func(w io.Writer) { writeStatus(w, st) }); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a plain switch", "10.1.0.0/24", "two guests", "isolated 2", "kept from one another"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("nothing of %q in\n%s", want, b.String())
		}
	}
	for _, not := range []string{"invalid", "gateway", "ping", "resolvers", "default route"} {
		if strings.Contains(b.String(), not) {
			t.Errorf("%q in\n%s", not, b.String())
		}
	}
}
