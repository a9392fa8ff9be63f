package netns

import (
	"context"
	"errors"
	"net"
	"os"
)

// Space is a network, a mount, a UTS and, unless the caller is root, a user namespace, kept by descriptors: there need be
// no process in it, and nothing is left of it when the last process in it and the one that holds it have ended, even by a
// kill -9. Its methods may be called at the same time.
type Space struct {
	user, net, mnt, uts *os.File // user is nil where the caller is root
}

var errNotYet = errors.New("netns: spaces are not there yet")

// NewSpace makes one.
func NewSpace(opt SpaceOptions) (*Space, error) { return nil, errNotYet }

// Attach makes a TAP in it, as the function Attach does.
func (s *Space) Attach(ctx context.Context, cfg Config) (*TAP, error) { return nil, errNotYet }

// Start starts a program in it, which the caller waits for.
func (s *Space) Start(p Process) (*os.Process, error) { return nil, errNotYet }

// Dial opens a conversation from inside. network is tcp, tcp4, tcp6, udp, udp4 or udp6; address an IP address with a port.
func (s *Space) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return nil, errNotYet
}

// Sysctl sets one of its own settings: net.ipv4.ip_forward, or net/ipv4/conf/eth0.7/forwarding.
func (s *Space) Sysctl(name, value string) error { return errNotYet }

// Files are descriptors of its namespaces, for Join, in this process or in another one of the same user. The caller
// closes them.
func (s *Space) Files() ([]*os.File, error) { return nil, errNotYet }

// Processes are those that run in it, whoever started them: also those that made namespaces below its own.
func (s *Space) Processes() ([]int, error) { return nil, errNotYet }

// End ends all processes in it: SIGTERM, and SIGKILL once ctx has ended. It returns when there is none, or an error with
// those that would not go.
func (s *Space) End(ctx context.Context) error { return errNotYet }

// Close lets go of the namespaces. They are there as long as a process is in them, or has descriptors of them.
func (s *Space) Close() error { return errNotYet }

// Join starts a program in the namespaces that these are descriptors of, in any order.
func Join(files []*os.File, p Process) (*os.Process, error) { return nil, errNotYet }
