package control

import (
	"context"
	"net/http"
	"slices"
	"sync"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/policy"
)

// Reload is what came of reading a daemon's configuration again.
type Reload struct {
	File string `json:"file"`
	// Changed is in force now, for conversations to come; those that run were not touched.
	Changed []Change `json:"changed"`
	// Restart differs from what is in force, and stays so until the daemon is started again.
	Restart []Change `json:"restart"`
	// Unchanged is as it was.
	Unchanged []Change `json:"unchanged"`
}

// Change is one value of a configuration and what became of it.
type Change struct {
	Network string `json:"network,omitempty"` // whose; absent: the daemon's
	// Key is where it stands in the file: "networks[0].net", "networks[1].limits.flows", "doors.qemu".
	Key  string     `json:"key"`
	What ChangeKind `json:"what"`
	Old  string     `json:"old,omitempty"`
	New  string     `json:"new,omitempty"`
	Note string     `json:"note,omitempty"` // for people: why it needs a restart, or what it did not touch
}

// ChangeKind is what became of a value. The list is closed.
type ChangeKind string

// The kinds.
const (
	ChangeAdded   ChangeKind = "added"
	ChangeRemoved ChangeKind = "removed"
	ChangeChanged ChangeKind = "changed"
	ChangeNone    ChangeKind = "unchanged"
)

// String is a line for people.
func (c Change) String() string {
	s := c.Key + ": "
	switch c.What {
	case ChangeChanged:
		s += c.Old + " → " + c.New
	case ChangeRemoved:
		s += "- " + c.Old
	case ChangeAdded:
		s += "+ " + c.New
	default:
		s += c.New
	}
	if c.Note != "" {
		s += " (" + c.Note + ")"
	}
	return s
}

const reloadPath = "/v1/reload"

// reload is of the daemon, whatever network the request names. It takes no body: what is read is the daemon's own file.
func (s *Server) reload(c *call) (reply, error) {
	if s.Reload == nil {
		return reply{}, problem(http.StatusConflict, "start it with --config FILE", "the daemon has no configuration file: there is nothing to read again")
	}
	r, err := s.Reload(c.Context())
	if err != nil {
		return reply{}, err
	}
	for _, list := range []*[]Change{&r.Changed, &r.Restart, &r.Unchanged} {
		if *list == nil {
			*list = []Change{}
		}
	}
	return reply{http.StatusOK, r}, nil
}

// ReloadProblem is a configuration that cannot be in force: what is wrong, in which line. Nothing was changed.
func ReloadProblem(err error) *Problem {
	return problem(http.StatusUnprocessableEntity, "nothing was changed; 'vmnetd config check FILE' tells more of the file alone", "%v", err)
}

// Reload has the daemon read its configuration file again.
func (c *Client) Reload(ctx context.Context) (r Reload, err error) {
	return r, c.call(ctx, "POST", "reload", nil, nil, &r)
}

// came is what came to a server while it runs.
type came struct {
	mu       sync.RWMutex
	networks []*backend.Network
	policies map[string]*policy.Policy
	listen   []string // in place of Listen, once it is set
	set      bool
}

// Add has the server show one more network, whose policy may be nil, while it runs.
func (s *Server) Add(n *backend.Network, p *policy.Policy) {
	s.came.mu.Lock()
	defer s.came.mu.Unlock()
	s.came.networks = append(slices.Clip(s.came.networks), n)
	if p != nil {
		if s.came.policies == nil {
			s.came.policies = map[string]*policy.Policy{}
		}
		s.came.policies[n.Config().Name] = p
	}
}

// SetListen changes what Listen says while the server runs.
func (s *Server) SetListen(list []string) {
	s.came.mu.Lock()
	defer s.came.mu.Unlock()
	s.came.listen, s.came.set = slices.Clone(list), true
}

// networks are all that it shows now.
func (s *Server) networks() []*backend.Network {
	s.came.mu.RLock()
	defer s.came.mu.RUnlock()
	return slices.Concat(s.Networks, s.came.networks)
}

// policyOf is a network's, or nil.
func (s *Server) policyOf(network string) *policy.Policy {
	s.came.mu.RLock()
	defer s.came.mu.RUnlock()
	if p := s.came.policies[network]; p != nil {
		return p
	}
	return s.Policies[network]
}

func (s *Server) listen() []string {
	s.came.mu.RLock()
	defer s.came.mu.RUnlock()
	if s.came.set {
		return s.came.listen
	}
	return s.Listen
}
