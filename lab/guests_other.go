//go:build !linux

package lab

import (
	"errors"
	"fmt"
)

// newUML refuses: it is a Linux program.
func newUML(b *bench) (machine, error) {
	return nil, fmt.Errorf("node %s: User Mode Linux is Linux's: %w", b.node.Name, errors.ErrUnsupported)
}
