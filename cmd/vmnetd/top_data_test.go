package main

import (
	"net/netip"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/flows"
)

func networkNamed(name string) backend.Status { return backend.Status{Name: name, Since: time.Now()} }

func flowEntry(id uint64) control.FlowEntry {
	return control.FlowEntry{Network: "default", Snapshot: flows.Snapshot{ID: id, Guest: "g1", Proto: flows.TCP, State: "open", Opened: time.Now(),
		Src: netip.AddrPortFrom(netip.MustParseAddr("10.0.2.15"), uint16(10000+id)), Dst: netip.MustParseAddrPort("192.0.2.1:443")}}
}

func flowsEvent(kind string, list ...control.FlowEntry) control.FlowEvent {
	return control.FlowEvent{Kind: kind, Flows: list}
}
