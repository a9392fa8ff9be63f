//go:build unix

package lab

import (
	"errors"
	"fmt"
)

// newQEMU is a node that is a virtual machine.
func newQEMU(b *bench) (machine, error) {
	return nil, fmt.Errorf("node %s: virtual machines: %w", b.node.Name, errors.ErrUnsupported)
}
