package lab

import (
	"errors"
	"fmt"
)

// newExternal is a node that somebody else starts, and plugs in at sockets.
func newExternal(b *bench) (machine, error) {
	return nil, fmt.Errorf("node %s: external: %w", b.node.Name, errors.ErrUnsupported)
}
