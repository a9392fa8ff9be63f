package lab

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/lab/topology"
)

// machine is a node that runs, by its kind. The lab calls start once, then stop once, whatever start returned; the others
// in between, by any goroutine.
type machine interface {
	// start makes the node with its interfaces plugged in, and returns when it runs: not when it is ready. ctx bounds the
	// call, not what it starts.
	start(ctx context.Context) error
	// begin runs what is to run in it once it is set up: a netns node's command. Others have nothing to do here. Of a node with
	// Restart it is called again after ended was closed: ended is another channel then.
	begin(ctx context.Context) error
	// exec runs a command in it and returns its exit status.
	exec(ctx context.Context, c Command) (int, error)
	// dial opens a conversation with a port of the node's own. network is tcp, tcp4, tcp6 or udp….
	dial(ctx context.Context, network, port string) (net.Conn, error)
	// reachable says that it does what its agent is for: exec works. A machine without an agent never is.
	reachable(ctx context.Context) error
	// pids are its processes, the main one first. One without a process has none.
	pids() []int
	// spaces are the namespaces to join in order to be in it, of a netns node: nil for others. The caller closes them.
	spaces() ([]*os.File, error)
	// ended is closed when it, or its command, has ended by itself; status is what it left with, then. err is of one that was
	// killed or that could not be waited for. One that never ends by itself may return nil.
	ended() <-chan struct{}
	status() (exit int, err error)
	// stop ends all of it and waits for that: processes, sockets, files. It is asked first, and killed when ctx ends.
	stop(ctx context.Context) error
}

// doored is a machine that others plug in, at a door for each interface.
type doored interface{ door(i int) string }

// NodeProcesses bounds a netns node's processes: what forks for ever takes an eighth of what a machine has by default
// (/proc/sys/kernel/pid_max), so that the lab can still be ended. Root's labs are not bound.
const NodeProcesses = 4096

// Command is one to run in a node.
type Command struct {
	Args           []string
	Env            []string // beside the node's own
	Dir            string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// bench is what a machine is given to stand on.
type bench struct {
	lab  *topology.Lab
	node *topology.Node
	// dir is a folder of the node's own, private, that goes at the end. Its path is short enough for a socket in it.
	dir string
	// keep is a folder for what is too large for memory: overlays. It goes with the node as well.
	keep string
	// base is the folder that the file's relative names are relative to.
	base string
	// plug carries the frames of interface i in its network from now on, until the wire ends or the node is stopped. It
	// does not wait.
	plug func(i int, l link.Link)
	// console is where what it says goes: bounded, and watched by whoever asks.
	console *Console
	// env marks every process of the lab's, so that one whose lab was killed is found.
	env []string
	// dialNetwork opens a conversation from the gateway of a network with an uplink, to the interface of this number.
	dialNetwork func(ctx context.Context, i int, network, port string) (net.Conn, error)
	// seed is the URL of the node's NoCloud data, "" if it has none.
	seed string
	// hosts is the text of /etc/hosts with the lab's fixed addresses; resolv that of resolv.conf, "" without an uplink.
	hosts, resolv string
	log           *slog.Logger
}
