package control

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/lab/topology"
)

// Lab is a lab that the daemon runs: its networks are those of the server (Add, Remove), and what else there is to show and
// to do is asked for here, by any goroutine. Errors are best a *Problem.
type Lab interface {
	Status() topology.Status
	// Apply has the lab become what a file says. It returns when that has begun.
	Apply(context.Context, LabRequest) (LabChanges, error)
	// End ends the lab, and the daemon with it. It does not wait.
	End()
	// Act starts, stops or restarts a node; it returns when that was done.
	Act(ctx context.Context, node string, what NodeAction) error
	// Exec runs a command in a node until it ends.
	Exec(ctx context.Context, node string, c LabCommand) (LabResult, error)
}

// LabRequest is a lab's file.
type LabRequest struct {
	// File is its path. It is what the lab is known by: of another file, a lab of the same name is refused.
	File string `json:"file"`
	Text string `json:"text,omitempty"` // of the file; what is there, if empty
	// Set are variables that stand above the file's own.
	Set map[string]string `json:"set,omitempty"`
}

// LabChanges are what a file has changed; none if the lab was so already.
type LabChanges struct {
	Name    string            `json:"name"`
	Changes []topology.Change `json:"changes"`
}

// NodeAction is what can be done to a node.
type NodeAction string

// The actions.
const (
	NodeStart   NodeAction = "start"
	NodeStop    NodeAction = "stop"
	NodeRestart NodeAction = "restart"
)

// LabCommand is a command to run in a node.
type LabCommand struct {
	Args  []string `json:"args"`
	Stdin []byte   `json:"stdin,omitempty"`
}

// LabResult is what a command has come to.
type LabResult struct {
	Exit   int    `json:"exit"`
	Stdout []byte `json:"stdout"`
	Stderr []byte `json:"stderr"`
	// Cut says that it has written more than is kept.
	Cut bool `json:"cut,omitempty"`
}

const (
	labExample  = `{"file":"/home/me/lab.yaml","text":"nodes: …"}`
	execExample = `{"args":["uname","-r"]}`
	// maxLab is a body's: a file with the cloud-init of some machines in it.
	maxLab = 2 << 20
	// maxExec is a body's: a script on standard input.
	maxExec = 2 << 20
	// MaxLabOutput is how much of either stream of a command's is kept: what QEMU's guest agent keeps is less than 16 MiB,
	// and all of it is in memory, here and at the client.
	MaxLabOutput = 4 << 20
)

const nodeID = "a node's name"

func (s *Server) labRoutes() []route {
	act := func(what NodeAction, says string) route {
		return route{path: "/v1/lab/nodes/{node}/" + string(what), id: nodeID, on: verbs{
			"POST": {do: s.ofLab(func(c *call, l Lab) (reply, error) {
				name, err := node(c, l)
				if err != nil {
					return reply{}, err
				}
				c.takeTime()
				return done, l.Act(c.Context(), name, what)
			}), says: says, whole: true}}}
	}
	return []route{
		{path: "/v1/lab", on: verbs{
			"GET": {do: s.ofLab(func(_ *call, l Lab) (reply, error) { return reply{http.StatusOK, labStatus(l)}, nil }),
				says: "Shows the lab, its networks and its nodes", gives: topology.Status{}, whole: true},
			"PUT": {do: s.ofLab(putLab), says: "Has the lab become what a file says, and says what changes; nodes are then on their way",
				takes: LabRequest{}, gives: LabChanges{}, most: maxLab, whole: true},
			"DELETE": {do: s.ofLab(func(_ *call, l Lab) (reply, error) { l.End(); return done, nil }),
				says: "Ends the lab, and the daemon with it; it answers before that is done", whole: true}}},
		{path: "/v1/lab/nodes", on: verbs{
			"GET": {do: s.ofLab(func(_ *call, l Lab) (reply, error) { return ok(labStatus(l).Nodes) }),
				says: "Lists the lab's nodes", gives: []topology.NodeStatus{}, whole: true}}},
		act(NodeStart, "Starts a node that is stopped, or has ended"),
		act(NodeStop, "Stops a node until it is started"),
		act(NodeRestart, "Stops a node and starts it"),
		{path: "/v1/lab/nodes/{node}/exec", id: nodeID, on: verbs{
			"POST": {do: s.ofLab(execLab), says: "Runs a command in a node until it ends, and says what it has written; of virtual machines by their agent",
				takes: LabCommand{}, gives: LabResult{}, most: maxExec, whole: true}}},
	}
}

// ofLab is a handler of what only a lab's daemon has.
func (s *Server) ofLab(do func(*call, Lab) (reply, error)) handler {
	return func(c *call) (reply, error) {
		if s.Lab == nil {
			return reply{}, problem(http.StatusNotFound, "'vmnetd lab up FILE' starts one, with a socket of its own: 'vmnetd lab ls' shows where", "this daemon runs no lab")
		}
		return do(c, s.Lab)
	}
}

// labStatus has lists where there is none.
func labStatus(l Lab) topology.Status {
	st := l.Status()
	st.Networks, st.Nodes = slices.Clone(st.Networks), slices.Clone(st.Nodes)
	filled(&st.Networks)
	filled(&st.Nodes)
	for i := range st.Nodes {
		n := &st.Nodes[i]
		n.Interfaces = slices.Clone(n.Interfaces)
		filled(&n.PIDs)
		filled(&n.Interfaces)
		for j := range n.Interfaces {
			filled(&n.Interfaces[j].Addrs)
		}
	}
	return st
}

func filled[T any](list *[]T) {
	if *list == nil {
		*list = []T{}
	}
}

// node is the one in the path.
func node(c *call, l Lab) (string, error) {
	name := c.PathValue("node")
	var names []string
	for _, n := range l.Status().Nodes {
		if n.Name == name {
			return name, nil
		}
		names = append(names, n.Name)
	}
	hint := "the lab has no nodes"
	if len(names) > 0 {
		hint = "there is " + short(strings.Join(names, ", "))
	}
	return "", problem(http.StatusNotFound, hint, "no node %q", short(name))
}

func putLab(c *call, l Lab) (reply, error) {
	var req LabRequest
	if err := c.decode(&req, labExample); err != nil {
		return reply{}, err
	}
	if req.File == "" {
		return reply{}, problem(http.StatusUnprocessableEntity, "as "+labExample, "no file is named")
	}
	c.takeTime()
	changes, err := l.Apply(c.Context(), req)
	filled(&changes.Changes)
	return reply{http.StatusOK, changes}, err
}

func execLab(c *call, l Lab) (reply, error) {
	name, err := node(c, l)
	if err != nil {
		return reply{}, err
	}
	var cmd LabCommand
	if err := c.decode(&cmd, execExample); err != nil {
		return reply{}, err
	}
	if len(cmd.Args) == 0 {
		return reply{}, problem(http.StatusUnprocessableEntity, "as "+execExample, "no command")
	}
	c.takeTime()
	r, err := l.Exec(c.Context(), name, cmd)
	filled(&r.Stdout)
	filled(&r.Stderr)
	return reply{http.StatusOK, r}, err
}

// takeTime is for what may last for longer than a question. The body was read.
func (c *call) takeTime() {
	c.conn.SetReadDeadline(time.Time{})
	c.conn.SetWriteDeadline(time.Time{})
}

// Remove has the server show a network no more that Add has added. It may be closed already.
func (s *Server) Remove(n *backend.Network) {
	s.came.mu.Lock()
	defer s.came.mu.Unlock()
	s.came.networks = slices.DeleteFunc(slices.Clone(s.came.networks), func(x *backend.Network) bool { return x == n })
	delete(s.came.policies, n.Config().Name)
}

// Lab is the lab that the daemon runs.
func (c *Client) Lab(ctx context.Context) (st topology.Status, err error) {
	return st, c.call(ctx, http.MethodGet, "lab", nil, nil, &st)
}

// ApplyLab has the lab become what a file says; nodes are on their way then.
func (c *Client) ApplyLab(ctx context.Context, r LabRequest) (l LabChanges, err error) {
	return l, c.call(ctx, http.MethodPut, "lab", nil, r, &l)
}

// EndLab tells the lab's daemon to end.
func (c *Client) EndLab(ctx context.Context) error {
	return c.call(ctx, http.MethodDelete, "lab", nil, nil, nil)
}

// Act starts, stops or restarts a node of the lab.
func (c *Client) Act(ctx context.Context, node string, what NodeAction) error {
	return c.call(ctx, http.MethodPost, "lab/nodes/"+url.PathEscape(node)+"/"+string(what), nil, nil, nil)
}

// ExecLab runs a command in a node of the lab.
func (c *Client) ExecLab(ctx context.Context, node string, cmd LabCommand) (r LabResult, err error) {
	return r, c.call(ctx, http.MethodPost, "lab/nodes/"+url.PathEscape(node)+"/exec", nil, cmd, &r)
}
