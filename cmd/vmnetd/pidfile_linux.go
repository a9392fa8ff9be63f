package main

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// userHz is the kernel's unit of times in /proc, on all processors that we build for (USER_HZ).
const userHz = 100

// startedAt is when a process began, to a hundredth of a second and what the clock was set by since (proc_pid_stat(5)).
func startedAt(pid int) (time.Time, bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return time.Time{}, false
	}
	// The second field, in brackets, is whatever the process likes.
	after := stat[bytes.LastIndexByte(stat, ')')+1:]
	fields := strings.Fields(string(after))
	const start = 22 - 3 // the field's number, of those from the third on
	if len(fields) <= start {
		return time.Time{}, false
	}
	ticks, err := strconv.ParseInt(fields[start], 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return time.Time{}, false
	}
	age := time.Duration(now.Nano()) - time.Duration(ticks)*(time.Second/userHz)
	return time.Now().Add(-age), true
}
