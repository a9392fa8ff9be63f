package lab

// Station 2: the lab that runs, and what another file changes of it. Lab.mu guards what is there; a node's life is its own
// goroutine's (life.go). One Apply runs at a time; it waits for what has to stop and begins what has to start.

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/lab/topology"
	"github.com/vmnetd/vmnetd/policy"
)

// Config says where a lab's things are, and who hears of its networks. The zero Config is right for a test.
type Config struct {
	// File is what the lab was brought up with, for people: Status shows it. Base is the folder that its relative names are
	// relative to: the current one if empty.
	File, Base string
	// Sockets is a folder whose path is short enough for sockets in it, Keep one for what is too large for memory (overlays).
	// What the lab makes in them it removes. Without them it makes folders of its own, where temporary files go.
	Sockets, Keep string
	// Env, NAME=VALUE, marks every process of the lab's, so that one whose lab was killed is found.
	Env []string
	// More, if not nil, may add to the configuration of a network before it starts: a target of memory, a door of the
	// daemon's.
	More func(*backend.Config)
	// NetworkUp is called when a network has started, before anybody is plugged in; NetworkDown before it is closed. They
	// are called one at a time. p is the policy that the network goes by: nil if the file has none.
	NetworkUp   func(n *backend.Network, p *policy.Policy)
	NetworkDown func(n *backend.Network)
	// Logger. Default slog.Default.
	Logger *slog.Logger
}

// ErrClosed is what calls get after Close.
var ErrClosed = errors.New("the lab is closed")

// ErrNoNode says that a lab has no node of that name.
var ErrNoNode = errors.New("no such node")

// Lab is a lab that runs. Its methods may be called by anybody.
type Lab struct{}

// New makes a lab with nothing in it. Apply brings things up.
func New(c Config) (*Lab, error) { return nil, errors.ErrUnsupported }

// Apply has the lab as t has it, changing what is different, and returns once all that had to stop has stopped and all that
// is new has begun: Wait waits until it is ready. It returns what it changed. What cannot be is refused before anything is
// touched; an error after that is of a network that could not be started or changed, and the rest is done all the same. A
// node that had failed or was stopped is started again. While another Apply runs, it waits for it.
func (l *Lab) Apply(ctx context.Context, t *topology.Lab) ([]topology.Change, error) {
	return nil, errors.ErrUnsupported
}

// Wait returns when all nodes are ready, or have ended with status 0; or with an error that names each that failed and why,
// once no other is on its way; or when ctx ends, with what each is still waiting for.
func (l *Lab) Wait(ctx context.Context) error { return errors.ErrUnsupported }

// Changed is closed when Status is likely to be another one than now.
func (l *Lab) Changed() <-chan struct{} { return nil }

// Status is the lab at this moment.
func (l *Lab) Status() topology.Status { return topology.Status{} }

// Topology is what was last applied. It is not to be written to.
func (l *Lab) Topology() *topology.Lab { return nil }

// Node returns a node, nil if there is none of that name.
func (l *Lab) Node(name string) *Node { return nil }

// Nodes returns all of them, in the file's order.
func (l *Lab) Nodes() []*Node { return nil }

// Network returns a network, nil if there is none of that name.
func (l *Lab) Network(name string) *backend.Network { return nil }

// Networks returns all of them, wires too, in the file's order.
func (l *Lab) Networks() []*backend.Network { return nil }

// Shutdown stops all nodes, asking first and killing when ctx ends, and then closes the networks.
func (l *Lab) Shutdown(ctx context.Context) error { return nil }

// Close is Shutdown with ten seconds for those that are asked: what service managers give or less, and more than an orderly
// power-off of a small guest takes.
func (l *Lab) Close() error { return nil }

// Node is one of a lab's. It stays the same when its machine is started again.
type Node struct{}

// Name is its name.
func (n *Node) Name() string { return "" }

// Topology is what it is meant to be. It is not to be written to.
func (n *Node) Topology() *topology.Node { return nil }

// Status is the node at this moment.
func (n *Node) Status() topology.NodeStatus { return topology.NodeStatus{} }

// Interfaces are its interfaces.
func (n *Node) Interfaces() []topology.InterfaceStatus { return nil }

// Dial opens a conversation with a port of the node's own: "80", or "http". network is tcp or udp, or with the family, tcp4.
func (n *Node) Dial(ctx context.Context, network, port string) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

// Exec runs a command in it and returns its exit status; an error says that it could not be run.
func (n *Node) Exec(ctx context.Context, c Command) (int, error) { return 0, errors.ErrUnsupported }

// Output runs a command in it and returns its standard output. Another exit status than 0 is an error that has the end of
// its standard error.
func (n *Node) Output(ctx context.Context, args ...string) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// Console is what it says.
func (n *Node) Console() *Console { return nil }

// Spaces are the namespaces to join in order to be in it, of a netns node that runs. The caller closes them.
func (n *Node) Spaces() ([]*os.File, error) { return nil, errors.ErrUnsupported }

// Wait returns when it is ready, or has ended with status 0; or with why it will not be; or when ctx ends.
func (n *Node) Wait(ctx context.Context) error { return errors.ErrUnsupported }

// Stop stops it until Start, or an Apply that starts it again.
func (n *Node) Stop(ctx context.Context) error { return errors.ErrUnsupported }

// Start starts it if it does not run, and returns when it has begun: Wait waits until it is ready.
func (n *Node) Start(ctx context.Context) error { return errors.ErrUnsupported }
