//go:build !linux && !darwin

package egress

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
)

func pingAllowed(bool) error {
	return fmt.Errorf("egress: ping: %w: %s has no echo requests for unprivileged programs", ErrNoPing, runtime.GOOS)
}

func (h *Host) ping(context.Context, netip.Addr, uint16, []byte) error { return pingAllowed(false) }
