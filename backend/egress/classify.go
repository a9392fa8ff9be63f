package egress

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
)

// Classify says what became of an attempt that ended with err.
func Classify(err error) Kind {
	if err == nil {
		return None
	}
	var u *UnreachableError
	if errors.As(err, &u) {
		return u.Kind
	}
	switch {
	case errors.Is(err, ErrBadDestination), errors.Is(err, ErrNoPing):
		return Prohibited
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return Timeout
	case errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed):
		return Other
	case errors.Is(err, errBusy):
		return Exhausted
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		if k := errnoKind(errno); k != Other {
			return k
		}
	}
	// A net.Dialer's own time limit has no errno and is no context's error.
	var t interface{ Timeout() bool }
	if errors.As(err, &t) && t.Timeout() {
		return Timeout
	}
	return Other
}

// errBusy: a limit of ours, not of the system's.
var errBusy = errors.New("too many at once")
