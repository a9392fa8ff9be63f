package lab

// Station 5: what a node says on its serial line, or what its command writes, bounded, for all who watch.

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"regexp"
)

// Console is what a node says and hears. It lasts as long as the node, through all restarts.
type Console struct{}

type console = Console

// Files returns the ends for a process: in is its standard input, out its standard output and error. They are pipes, so
// that it may open /dev/stdout. The caller closes both once the process has them; until then the console holds what it says.
func (c *Console) Files() (in, out *os.File, err error) { return nil, nil, errors.ErrUnsupported }

// Carry is for a machine whose console is a conn: it carries both ways until rw ends, and closes it.
func (c *Console) Carry(rw io.ReadWriteCloser) {}

// Write adds what somebody says in the node's place: the lab's own remarks.
func (c *Console) Write(p []byte) (int, error) { return 0, errors.ErrUnsupported }

// Send is input to the node. It fails if nobody takes it before ctx ends.
func (c *Console) Send(ctx context.Context, p []byte) error { return errors.ErrUnsupported }

// Tail is the last of what it said: at most max bytes of what is kept, 0 for all.
func (c *Console) Tail(max int) []byte { return nil }

// Watch carries what the node says to w, beginning with at most tail bytes of what it said, until ctx ends or w fails. Who is
// slow misses some and is told how much.
func (c *Console) Watch(ctx context.Context, w io.Writer, tail int) error {
	return errors.ErrUnsupported
}

// Match waits until a line that the node says, or has said since it was last started, matches, and returns it.
func (c *Console) Match(ctx context.Context, re *regexp.Regexp) (string, error) {
	return "", errors.ErrUnsupported
}

// Serve has each conn of ln be the console: first what was said last, then all that is, and what comes is the node's input.
// It returns when ln is closed, once all conns have ended.
func (c *Console) Serve(ln net.Listener) error { return errors.ErrUnsupported }
