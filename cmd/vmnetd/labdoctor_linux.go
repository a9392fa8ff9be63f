package main

import (
	"errors"

	"golang.org/x/sys/unix"
)

// examineAcceleration looks whether guests run on the processor itself.
func examineAcceleration() []finding {
	f := finding{Name: "/dev/kvm"}
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		f.OK, f.Is = true, "can be opened"
		return []finding{f}
	}
	f.Is, f.Lacks = err.Error(), "labs' virtual machines have an emulated processor, ten times slower: a small guest boots in seconds"
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		f.Do = "be in the group kvm: usermod -a -G kvm USER"
	default:
		f.Do = "modprobe kvm_intel or kvm_amd. In a virtual machine: nested virtualization. In a container: --device /dev/kvm"
	}
	return []finding{f}
}
