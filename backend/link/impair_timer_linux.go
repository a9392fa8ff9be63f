package link

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fdTimer is a timer of the kernel's, waited for beside the wire's descriptor. Go's runtime sleeps in whole milliseconds
// (epoll_wait), so that its own timers are up to one late on an idle machine: a round trip of 100 ms would take 101.
type fdTimer struct {
	file *os.File
	raw  syscall.RawConn
	spec unix.ItimerSpec
	set  func(fd uintptr)
}

// newTimer makes one, and has watch called with what gives its descriptor as long as there is one: it is readable once
// the timer has come to its end, until it is set again. Where there can be none it has fire called.
func newTimer(fire func(), watch func(c syscall.RawConn)) dueTimer {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC) // not O_NONBLOCK: or Go's poller had it too
	if err != nil {                                                       // no descriptor is free, or we are in a sandbox of somebody's
		return newGoTimer(fire)
	}
	t := &fdTimer{file: os.NewFile(uintptr(fd), "timerfd")}
	t.set = func(fd uintptr) { unix.TimerfdSettime(int(fd), 0, &t.spec, nil) }
	if t.raw, err = t.file.SyscallConn(); err != nil {
		t.file.Close()
		return newGoTimer(fire)
	}
	watch(t.raw)
	return t
}

func (t *fdTimer) Reset(d time.Duration) { t.in(max(d, 1)) } // 0 would stop it
func (t *fdTimer) Stop()                 { t.in(0) }

func (t *fdTimer) in(d time.Duration) {
	t.spec.Value = unix.NsecToTimespec(int64(d))
	t.raw.Control(t.set) // it fails once the timer has ended
}

func (t *fdTimer) end() { t.file.Close() }
