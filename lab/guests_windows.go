package lab

import (
	"errors"
	"fmt"
)

// newQEMU refuses: QEMU is given its wires as open descriptors, which Windows does not hand on.
func newQEMU(b *bench) (machine, error) {
	return nil, fmt.Errorf("node %s: qemu nodes need a Unix: %w", b.node.Name, errors.ErrUnsupported)
}
