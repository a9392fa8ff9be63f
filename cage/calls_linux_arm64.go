package cage

import "golang.org/x/sys/unix"

const (
	arch    = unix.AUDIT_ARCH_AARCH64
	foreign = 0
)

var allowedHere, refusedHere, hostileHere []uint32
