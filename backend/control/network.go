package control

import (
	"net/http"
	"net/netip"

	"github.com/vmnetd/vmnetd/backend"
)

// Network is a network: what is in force, and how it is now.
type Network struct {
	backend.Status
	Config NetworkConfig `json:"config"`
}

// NetworkConfig is what a network was configured to be beside what Status has, with defaults.
type NetworkConfig struct {
	First4         netip.Addr              `json:"first4"` // that DHCP leases
	Domain         string                  `json:"domain"`
	Search         []string                `json:"search,omitempty"`
	Resolvers      []netip.AddrPort        `json:"resolvers,omitempty"` // absent: the host's, as they change
	Static         map[string][]netip.Addr `json:"static,omitempty"`    // leases by MAC
	NoHostLoopback bool                    `json:"no_host_loopback,omitempty"`
	OpenLinkLocal  []netip.Prefix          `json:"open_link_local,omitempty"`
	Isolate        bool                    `json:"isolate"`
	StrictLeases   bool                    `json:"strict_leases"`
	StateDir       string                  `json:"state_dir,omitempty"`
	Rules          bool                    `json:"rules"` // there is a policy of rules: /v1/policy
}

func (s *Server) networkRoutes() []route {
	return []route{
		{path: "/v1/networks", on: verbs{
			"GET": {do: s.listNetworks, says: "Lists networks, with the configuration that is in force", gives: []Network{}, whole: true}}},
		{path: "/v1/networks/{name}", id: "a network's name", on: verbs{
			"GET": {do: s.getNetwork, says: "Shows a network, with the configuration that is in force", gives: Network{}, whole: true}}},
	}
}

func (s *Server) networkOf(n *backend.Network) Network {
	c := n.Config()
	_, err := s.policy(&call{net: n})
	return Network{n.Status(), NetworkConfig{First4: c.First4, Domain: c.Domain, Search: c.Search, Resolvers: c.Resolvers, Static: c.Static,
		NoHostLoopback: c.NoHostLoopback, OpenLinkLocal: c.OpenLinkLocal, Isolate: c.Isolate, StrictLeases: c.StrictLeases, StateDir: c.StateDir,
		Rules: err == nil}}
}

func (s *Server) listNetworks(c *call) (reply, error) {
	list := []Network{}
	for _, n := range s.networksOf(c) {
		list = append(list, s.networkOf(n))
	}
	return ok(list)
}

func (s *Server) getNetwork(c *call) (reply, error) {
	n, err := s.network(c.PathValue("name"))
	if err != nil {
		return reply{}, err
	}
	return reply{http.StatusOK, s.networkOf(n)}, nil
}
