// Package control lets people and programs look into a running network and change it: an HTTP API with JSON on a
// unix socket, and its client. It is the only room that knows HTTP.
//
//	s := &control.Server{Networks: []*backend.Network{n}, Version: "1.0"}
//	go s.Serve(ctx, listener) // a *net.UnixListener
//
//	c := control.NewClient("/run/user/1000/vmnetd/control.sock")
//	guests, err := c.Guests(ctx)
//
// Or without any client:
//
//	curl --unix-socket $XDG_RUNTIME_DIR/vmnetd/control.sock http://vmnetd/v1/guests
//
// The paths, all under /v1:
//
//	GET    /v1/status             the daemon and its networks
//	GET    /v1/networks           networks, with the configuration in force; /v1/networks/{name} for one
//	GET    /v1/openapi.json       all of this in OpenAPI 3.1; /v1/openapi.yaml too
//	GET    /v1/guests             who is plugged in
//	GET    /v1/guests/{guest}     one of them, by id, name, MAC or address
//	DELETE /v1/guests/{guest}     end its wire; a guest that reconnects comes back
//	GET    /v1/guests/{guest}/port what becomes of a try to connect to it: ?port= ?proto=
//	GET    /v1/flows              conversations; ?guest= ?name= ?address= ?port= ?state= … ?sort=bytes
//	                              with "Accept: text/event-stream" what becomes of them, as it comes ([FlowEvent])
//	GET    /v1/forwards           port forwards
//	POST   /v1/forwards           add: {"rule":"2222:22"}, or {"rule":{"proto":"tcp","host_port":2222,"guest_port":22}}
//	PUT    /v1/forwards           these and no others: {"rules":["2222:22"]}
//	GET    /v1/forwards/{id}      one of them
//	PUT    /v1/forwards/{id}      the same again changes nothing: {"rule":"2222:22"}
//	DELETE /v1/forwards/{id}      by id, as "tcp:127.0.0.1:2222"; ?cut=true ends its conversations
//	GET    /v1/limits             what guests may have, have, and had; ?guest= for one
//	PUT    /v1/limits             change: {"guest":"g1","limits":{"flows":100,"up":"10mbit"}}; without a guest, the network's
//	GET    /v1/leases             who has which address
//	DELETE /v1/leases/{address}   free one
//	GET    /v1/dns                local records
//	POST   /v1/dns                add: {"name":"db","type":"A","value":"10.0.2.20"}
//	DELETE /v1/dns                remove: ?name= and, to be exact, ?type= ?value=
//	GET    /v1/policy             what guests may reach, as text and as an object; ?guest=PATTERN for some guests' own part
//	PUT    /v1/policy             set it: {"text":"preset sandbox"} or {"policy":{…}}; ?guest= ?now=true for what runs, too
//	DELETE /v1/policy             ?guest= takes a part away
//	POST   /v1/policy/test        what would be: {"guest":"web","proto":"tcp","to":"example.com:443"}
//	GET    /v1/policy/learn       a policy of what was learnt; POST begins, DELETE ends
//	GET    /v1/policy/questions   what rules with "ask" ask
//	POST   /v1/policy/questions/{question}  {"answer":"allow","for":"session"}
//	GET    /v1/captures           what is written down of guests' wires
//	POST   /v1/captures           begin: {"guest":"g1","filter":"tcp port 443","max_seconds":60}, kept in memory; with
//	                              "Accept: application/x-pcapng" it is the answer's body
//	GET    /v1/captures/{id}      one of them; POST …/stop ends it, GET …/file and …/stream fetch one that is kept
//	DELETE /v1/captures/{id}      end it and forget it
//	POST   /v1/reload             read the daemon's configuration file again: what changed, and what needs a restart
//	GET    /v1/lab                of a lab's daemon: its networks and nodes; /v1/lab/nodes for these
//	PUT    /v1/lab                become what a file says: {"file":"/home/me/lab.yaml","set":{"loss":"5%"}}
//	DELETE /v1/lab                end the lab, and the daemon
//	POST   /v1/lab/nodes/{node}/… start, stop, restart; exec: {"args":["uname","-r"]}
//	GET    /v1/events             what happened; ?since=ID. With "Accept: text/event-stream" as it happens, too
//	GET    /metrics               counters and gauges for Prometheus, at /v1/metrics too; of all networks
//	GET    /v1/debug/pprof/       with Profile: what net/http/pprof has
//
// Every path takes ?network=NAME. A daemon with one network needs none; one with several shows the lists of all without
// it, each entry with its "network", and refuses with 409 what must be one network's. Lists are JSON arrays, never null.
// An error is a [Problem] (RFC 9457, application/problem+json) that says what was wrong and what would be right.
//
// Guests, flows, leases and events come in pages with ?limit=: the Link header leads to the next one. Forwards, records,
// limits and policies have an ETag, of what can be set: a change with If-Match is done only while that is in force.
//
// Over TCP (ServeTCP) the same is there for whoever has the token; [Guard] says what else is looked at.
//
// Who may connect: the socket file's mode is the lock, and on Linux the peer's uid must be the daemon's own or
// root's besides. Guests cannot reach it: it is not on any network.
package control

import (
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/portforward"
)

// Status is the daemon and its networks.
type Status struct {
	Version  string           `json:"version"`
	PID      int              `json:"pid"`
	Listen   []string         `json:"listen"`        // where guests plug in: "qemu unix:/run/…"
	API      []string         `json:"api,omitempty"` // where it answers: "unix:/run/…", "tcp:127.0.0.1:8080, token in /run/…"
	Networks []backend.Status `json:"networks"`
	Sandbox  *Sandbox         `json:"sandbox,omitempty"`
	FlowLog  *FlowLog         `json:"flow_log,omitempty"`
}

// FlowLog is how the log of conversations does.
type FlowLog struct {
	Path  string `json:"path"`
	Lines uint64 `json:"lines"`           // written
	Lost  uint64 `json:"lost"`            // changes that could not be written, or not in time
	Error string `json:"error,omitempty"` // why it cannot be written now
}

// Sandbox are the walls that the daemon has put around itself.
type Sandbox struct {
	Walls   string   `json:"walls"`             // "landlock 7, seccomp, no capabilities, user nobody"; "off"
	Missing []string `json:"missing,omitempty"` // walls that do not stand, and why
}

// Lease is an address that a guest has or had.
type Lease struct {
	Addr     netip.Addr `json:"addr"`
	MAC      string     `json:"mac"`
	ClientID string     `json:"client_id,omitempty"` // DHCP option 61 or a DUID, in hex
	IAID     uint32     `json:"iaid,omitempty"`      // DHCPv6
	Guest    string     `json:"guest,omitempty"`     // whose wire it was given on
	Away     bool       `json:"away,omitempty"`      // that wire has ended
	Hostname string     `json:"hostname,omitempty"`  // what the guest calls itself
	Name     string     `json:"name,omitempty"`      // what it is known as
	State    string     `json:"state"`
	Static   bool       `json:"static,omitempty"`
	Start    time.Time  `json:"start,omitzero"`
	Expires  time.Time  `json:"expires"`
}

// Forward is a port forward that has been added, with the port that it got where it asked for any.
type Forward struct {
	ID   string           `json:"id"`   // names it for removal
	Text string           `json:"text"` // its canonical print
	Rule portforward.Rule `json:"rule"`
}

// Problem is an error as the API sends it and as the client returns it (RFC 9457).
type Problem struct {
	Type     string `json:"type"`               // "about:blank": the title says it all
	Title    string `json:"title"`              // the status code in words
	Status   int    `json:"status"`             // the HTTP status code
	Detail   string `json:"detail"`             // what is wrong, and where
	Hint     string `json:"hint,omitempty"`     // what would be right
	Instance string `json:"instance,omitempty"` // the path that was asked for
}

func (p *Problem) Error() string {
	if p.Hint != "" {
		return p.Detail + " (" + p.Hint + ")"
	}
	return p.Detail
}

func problem(status int, hint, format string, args ...any) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: fmt.Sprintf(format, args...), Hint: hint}
}
