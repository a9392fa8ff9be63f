package topology

import (
	"net/netip"
	"time"
)

// State is where a node is in its life.
type State string

// States of a node.
const (
	StateWaiting  State = "waiting"  // for those it is to start after
	StateStarting State = "starting" // is there, and not yet what its wait conditions want
	StateReady    State = "ready"
	StateEnded    State = "ended"  // its command or machine has ended by itself, with status 0
	StateFailed   State = "failed" // Error says why
	StateStopping State = "stopping"
	StateStopped  State = "stopped" // by hand
)

// Status is a running lab, as API and commands show it.
type Status struct {
	Name     string          `json:"name"`
	File     string          `json:"file"` // that it was last brought up with
	PID      int             `json:"pid"`  // whose process it all is in
	Since    time.Time       `json:"since"`
	Networks []NetworkStatus `json:"networks"`
	Nodes    []NodeStatus    `json:"nodes"`
}

// NetworkStatus is a network's.
type NetworkStatus struct {
	Name    string       `json:"name"`
	Wire    bool         `json:"wire,omitempty"`
	Uplink  bool         `json:"uplink"`
	Prefix4 netip.Prefix `json:"prefix4,omitzero"`
	Prefix6 netip.Prefix `json:"prefix6,omitzero"`
	Since   time.Time    `json:"since"`           // it is another one if this is
	Error   string       `json:"error,omitempty"` // why it is not there, or not as the file has it
}

// NodeStatus is a node's.
type NodeStatus struct {
	Name       string            `json:"name"`
	Kind       Kind              `json:"kind"`
	State      State             `json:"state"`
	Error      string            `json:"error,omitempty"`
	WaitsFor   string            `json:"waits_for,omitempty"` // the node or condition it is held up by
	PIDs       []int             `json:"pids"`                // of its processes that the lab started, the main one first
	Started    time.Time         `json:"started,omitzero"`
	ReadyAfter time.Duration     `json:"ready_after_ns,omitempty"` // from its start
	Restarts   int               `json:"restarts,omitempty"`
	ExitStatus *int              `json:"exit_status,omitempty"`
	Interfaces []InterfaceStatus `json:"interfaces"`
	Console    string            `json:"console,omitempty"` // a socket where it may be watched and typed at
}

// InterfaceStatus is an interface's.
type InterfaceStatus struct {
	Name    string       `json:"name"`
	Network string       `json:"network"`
	MAC     string       `json:"mac"`
	Addrs   []netip.Addr `json:"addrs"`           // as its network has seen them, or as they were set
	Guest   string       `json:"guest,omitempty"` // the id that the network's own commands know it by
	Door    string       `json:"door,omitempty"`  // where an external node plugs in
}

// Change is one thing that bringing a lab up from another file does, or has done.
type Change struct {
	What   string `json:"what"`   // "node web1", "network lan"
	Action string `json:"action"` // start, stop, restart, change (in place)
	Why    string `json:"why"`    // "new", "gone", "memory 256 → 512", "its network lan is another"
}
