package main

import (
	"context"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ownProgram is this program, also when its file was replaced meanwhile.
func ownProgram() string { return "/proc/self/exe" }

// keepAll has no descriptor but the standard ones go on to what we start.
func keepAll() {
	if unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

const (
	// orphanAge is how long a process may have ended until it is taken for one that nobody here waits for: what the lab
	// starts itself it waits for at once.
	orphanAge = 5 * time.Second
	// orphanLook is how often they are looked for, when something has ended.
	orphanLook = time.Second
)

// adopt has the orphans of nodes come to us in place of init, so that they are seen, and ended, with the lab; and has those
// that end vanish, until ctx is done.
func adopt(ctx context.Context) (done <-chan struct{}) {
	over := make(chan struct{})
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		close(over)
		return over
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		defer close(over)
		defer signal.Stop(ended)
		dead := map[markedProcess]time.Time{} // since when
		for {
			if len(dead) == 0 {
				select {
				case <-ctx.Done():
					return
				case <-ended:
				}
			}
			select { // a node may have thousands end in a second
			case <-ctx.Done():
				return
			case <-time.After(orphanLook):
			}
			now := map[markedProcess]time.Time{}
			for _, p := range zombies() {
				since, ok := dead[p]
				if !ok {
					since = time.Now()
				}
				if time.Since(since) > orphanAge {
					var ws unix.WaitStatus
					unix.Wait4(p.pid, &ws, unix.WNOHANG, nil)
					continue
				}
				now[p] = since
			}
			dead = now
		}
	}()
	return over
}

// zombies are our children that have ended and that nobody has waited for.
func zombies() (list []markedProcess) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	for _, t := range tasks {
		children, err := os.ReadFile("/proc/self/task/" + t.Name() + "/children")
		if err != nil { // of a thread that has just ended; or a kernel without it (CONFIG_PROC_CHILDREN)
			continue
		}
		for f := range strings.FieldsSeq(string(children)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				continue
			}
			if s := statOf(pid); s.state == "Z" {
				list = append(list, markedProcess{pid, s.start})
			}
		}
	}
	return list
}
