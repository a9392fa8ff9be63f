package main

import (
	"errors"
	"fmt"
	"math"
	"runtime/debug"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/flows"
)

const memoryUsage = "`TARGET` for the daemon's memory, as 256MiB: at it the guest that holds most is squeezed; none, or auto for $GOMEMLIMIT, " +
	"else nine tenths of what the control group has"

// memoryValue is a number of bytes, 0 for auto, or flows.Unlimited for none.
type memoryValue int

func (v *memoryValue) Type() string { return "memory" }

func (v *memoryValue) String() string {
	switch *v {
	case 0:
		return "auto"
	case flows.Unlimited:
		return "none"
	}
	return fmt.Sprint(int(*v))
}

func (v *memoryValue) Set(s string) error {
	switch s {
	case "auto":
		*v = 0
		return nil
	case "none":
		*v = flows.Unlimited
		return nil
	}
	var l flows.Limits
	if err := l.Set("buffers", s); err != nil || l.Buffers == 0 { // which is in bytes as well
		return errors.New("want bytes, as 256MiB, none or auto")
	}
	if _, err := backend.NewMemory(int64(l.Buffers)); err != nil {
		return err
	}
	*v = memoryValue(l.Buffers)
	return nil
}

// groupPart is how much of the control group's memory is taken for the target: the kernel's own for our sockets counts
// there too, and the program's file.
const groupPart = 0.9

// target is what the flag means here; nil for none.
func (v memoryValue) target() (*backend.Memory, error) {
	n := int64(v)
	switch v {
	case flows.Unlimited:
		return nil, nil
	case 0:
		if n = debug.SetMemoryLimit(-1); n == math.MaxInt64 { // $GOMEMLIMIT is not set
			group, ok := groupMemory("/proc/self/cgroup", "/sys/fs/cgroup")
			if !ok {
				return nil, nil
			}
			n = int64(float64(group) * groupPart)
		}
		if m, err := backend.NewMemory(n); err == nil {
			return m, nil
		}
		return nil, nil // so little that nothing could be done with it
	}
	return backend.NewMemory(n)
}
