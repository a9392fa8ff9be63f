package backend

import (
	"net/netip"
	"time"
)

// GuestInfo is a guest as people and the API see it.
type GuestInfo struct {
	ID        string            `json:"id"`             // "g1": stays while the wire does
	Name      string            `json:"name,omitempty"` // host name of its lease
	MAC       string            `json:"mac,omitempty"`  // of its first frame
	Addrs     []netip.Addr      `json:"addresses"`      // seen in use or leased, IPv4 first
	MTU       int               `json:"mtu,omitempty"`  // largest packet that it has shown to take; absent: not known yet
	Link      string            `json:"link"`           // how it is attached: "qemu unix:/run/…"
	Port      string            `json:"port,omitempty"` // "promiscuous" or "mirror": it gets every frame
	Since     time.Time         `json:"since"`          //
	Flows     int               `json:"flows"`          //
	RxFrames  uint64            `json:"rx_frames"`      // from the guest
	RxBytes   uint64            `json:"rx_bytes"`       //
	TxFrames  uint64            `json:"tx_frames"`      // to the guest
	TxBytes   uint64            `json:"tx_bytes"`       //
	Queued    int               `json:"queued_bytes"`   // waiting for the guest to read
	QueueSize int               `json:"queue_limit"`    //
	Dropped   map[string]uint64 `json:"dropped"`        // by reason
}

// Status is a network at one moment.
type Status struct {
	Name       string            `json:"name"`
	Prefix4    netip.Prefix      `json:"prefix4"`
	Gateway4   netip.Addr        `json:"gateway4"`
	DNS4       netip.Addr        `json:"dns4"`
	Prefix6    netip.Prefix      `json:"prefix6"`
	Gateway6   netip.Addr        `json:"gateway6"`
	DNS6       netip.Addr        `json:"dns6"`
	MTU        int               `json:"mtu"`                  // what every guest's NIC carries
	LargeMTU   int               `json:"large_mtu,omitempty"`  // what those are offered whose NIC carries it
	LargeNICs  bool              `json:"large_nics,omitempty"` // that is all of them
	GatewayMAC string            `json:"gateway_mac"`
	NoUplink   bool              `json:"no_uplink,omitempty"`     // a plain switch: no gateway, no services, no way out
	Wire       bool              `json:"wire,omitempty"`          // or a wire between two guests
	Isolate    bool              `json:"isolate,omitempty"`       // guests are kept from one another
	Strict     bool              `json:"strict_leases,omitempty"` // guests are who they were leased, or nobody
	Routes     []netip.Prefix    `json:"routes,omitempty"`        // all that they may reach; absent: everything
	Since      time.Time         `json:"since"`
	Guests     int               `json:"guests"`
	Flows      int               `json:"flows"`
	FlowsTotal uint64            `json:"flows_total"`
	Refused    map[string]uint64 `json:"reasons"` // how flows ended and frames were dropped, by reason
	Router6    bool              `json:"ipv6_router"`
	Ping4      string            `json:"ping4"` // "ok", or why this host lets nobody ping
	Ping6      string            `json:"ping6"`
	Resolvers  []string          `json:"resolvers"`
	Warnings   []string          `json:"warnings,omitempty"`
}
