//go:build !linux

package link

import "syscall"

func newTimer(fire func(), _ func(syscall.RawConn)) dueTimer { return newGoTimer(fire) }
