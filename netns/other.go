//go:build !linux

package netns

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"

	"github.com/vmnetd/vmnetd/backend/link"
)

// TAP is an interface in a namespace, which only Linux has.
type TAP struct {
	Name  string
	Index int
	MAC   net.HardwareAddr
	MTU   int
}

// Held is a command that waits, on Linux.
type Held struct{}

// Options say what a held command finds.
type Options struct{ MapRoot bool }

// Space is a set of namespaces, of Linux.
type Space struct{}

func Attach(context.Context, Config) (*TAP, error)                    { return nil, ErrLinux }
func Hold(*exec.Cmd, Options) (*Held, error)                          { return nil, ErrLinux }
func Wait(context.Context, int) error                                 { return ErrLinux }
func WhyNoNamespaces() string                                         { return ErrLinux.Error() }
func (*Held) Go() error                                               { return ErrLinux }
func (*Held) Close()                                                  {}
func (*TAP) ReadFrames(*link.Batch) error                             { return ErrLinux }
func (*TAP) WriteFrames([]link.Frame) (int, error)                    { return 0, ErrLinux }
func (*TAP) Close() error                                             { return nil }
func (*TAP) Addrs() ([]netip.Prefix, error)                           { return nil, ErrLinux }
func (*TAP) AddAddr(netip.Prefix) error                               { return ErrLinux }
func (*TAP) AddRoute(netip.Addr) error                                { return ErrLinux }
func (*TAP) Renew()                                                   {}
func (*TAP) Remove() error                                            { return ErrLinux }
func (*TAP) SetMTU(int) error                                         { return ErrLinux }
func (*TAP) Await6(context.Context)                                   {}
func (*TAP) Configure(context.Context, string) (Lease, error)         { return Lease{}, ErrLinux }
func (*TAP) Keep(context.Context, string, func(Lease)) error          { return ErrLinux }
func (*TAP) AddRouteTo(netip.Prefix, netip.Addr) error                { return ErrLinux }
func NewSpace(SpaceOptions) (*Space, error)                           { return nil, ErrLinux }
func Join([]*os.File, Process) (*os.Process, error)                   { return nil, ErrLinux }
func (*Space) Attach(context.Context, Config) (*TAP, error)           { return nil, ErrLinux }
func (*Space) Start(Process) (*os.Process, error)                     { return nil, ErrLinux }
func (*Space) Dial(context.Context, string, string) (net.Conn, error) { return nil, ErrLinux }
func (*Space) Open(string) (*os.File, error)                          { return nil, ErrLinux }
func (*Space) WriteFile(string, string) error                         { return ErrLinux }
func (*Space) Sysctl(string, string) error                            { return ErrLinux }
func (*Space) Files() ([]*os.File, error)                             { return nil, ErrLinux }
func (*Space) Processes() ([]int, error)                              { return nil, ErrLinux }
func (*Space) End(context.Context) error                              { return ErrLinux }
func (*Space) Close() error                                           { return nil }
