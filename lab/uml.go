//go:build linux

package lab

import (
	"errors"
	"fmt"
)

// newUML is a node whose kernel is a process: User Mode Linux.
func newUML(b *bench) (machine, error) {
	return nil, fmt.Errorf("node %s: User Mode Linux: %w", b.node.Name, errors.ErrUnsupported)
}
