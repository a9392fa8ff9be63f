//go:build !linux

package lab

import "github.com/vmnetd/vmnetd/netns"

func newNetns(*bench) (machine, error) { return nil, netns.ErrLinux }
