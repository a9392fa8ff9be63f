package main

// The processes of a lab: each has the lab's folder in its environment, unless it has thrown that away, as those do that
// change their titles; then it is known by what is mounted for its node, or, in a chroot, by its mount namespace, in which
// others are that are known by that. A network namespace says nothing: root's programs, and those of who began the lab in
// one, may be beside anybody there. Nobody else's are looked at twice.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sweepPatience is how long they have after SIGTERM. Their lab has gone, and with it whom they could tell.
	sweepPatience = time.Second
	// sweepTime bounds the whole: a process that SIGKILL does not end within it waits for a disk that has gone.
	sweepTime = 15 * time.Second
)

// markedProcess is one as it was found.
type markedProcess struct {
	pid   int
	start uint64 // with pid it is that one and no other
}

// procStat is what the kernel says of a process (proc_pid_stat(5)).
type procStat struct {
	state string // "Z": it has ended, and waits for its parent
	flags uint64
	start uint64 // in ticks since the machine began
}

// statOf reads it. Where there is no such process all of it is zero.
func statOf(pid int) (s procStat) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return s
	}
	// The second field, in brackets, is whatever the process likes. The third, the ninth and the 22nd are ours.
	const state, flags, start = 0, 6, 19
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) <= start {
		return s
	}
	s.state = fields[state]
	s.flags, _ = strconv.ParseUint(fields[flags], 10, 64)
	s.start, _ = strconv.ParseUint(fields[start], 10, 64)
	return s
}

// startTicks is when a process began; 0 if there is none.
func startTicks(pid int) uint64 { return statOf(pid).start }

// leaving says that it is on its way out: its memory, with its environment, may be gone, and its files open still. One that
// looks like a zombie may have threads that are not that far.
func leaving(pid int) bool {
	const exiting = 0x4 // PF_EXITING (include/linux/sched.h)
	s := statOf(pid)
	if s.start == 0 || s.flags&exiting == 0 || s.state == "X" {
		return false
	}
	if s.state != "Z" {
		return true
	}
	threads, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
	return err == nil && len(threads) > 1
}

// marks are how processes of a lab are known.
type marks struct {
	folder string
	self   int
	own    string                 // our own mount namespace: whoever is in it is not known by it
	seen   map[markedProcess]bool // found before
}

// inEnviron says whether a process bears the mark.
func inEnviron(pid int, folder string) bool {
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return false
	}
	want := []byte(labEnv + "=" + folder)
	for v := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(v, want) {
			return true
		}
	}
	return false
}

// mountEscapes are those of proc_pid_mountinfo(5).
var mountEscapes = strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`, "#", `\043`)

// mounted says whether the mark is that of what is mounted on a process's /run: a node's own has it.
func mounted(pid int, folder string) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/mountinfo")
	if err != nil {
		return false
	}
	mark := mountEscapes.Replace(labEnv + "=" + folder)
	for line := range strings.SplitSeq(string(b), "\n") {
		if _, after, ok := strings.Cut(line, " - tmpfs "); ok {
			if source, _, _ := strings.Cut(after, " "); source == mark {
				return true
			}
		}
	}
	return false
}

// find lists them.
func (m *marks) find() (list []markedProcess) {
	type candidate struct {
		markedProcess
		space string
		sure  bool
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []candidate
	// Of now only: the number of a namespace that has gone is soon another one's.
	spaces := map[string]bool{}
	me := os.Geteuid()
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == m.self {
			continue
		}
		// What root has started in a node may be somebody else by now.
		var st unix.Stat_t
		if unix.Stat("/proc/"+e.Name(), &st) != nil || me != 0 && int(st.Uid) != me {
			continue
		}
		start := startTicks(pid)
		if start == 0 {
			continue
		}
		space, _ := os.Readlink("/proc/" + e.Name() + "/ns/mnt")
		c := candidate{markedProcess{pid, start}, space, inEnviron(pid, m.folder)}
		if space != "" && space != m.own && mounted(pid, m.folder) {
			c.sure, spaces[space] = true, true
		}
		all = append(all, c)
	}
	for _, c := range all {
		if c.sure || c.space != "" && spaces[c.space] || m.seen[c.markedProcess] {
			list = append(list, c.markedProcess)
		}
	}
	return list
}

// signal sends one to the very process that was found.
func (p markedProcess) signal(s syscall.Signal) error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ENOSYS) { // before Linux 5.3: a number does not come round between two lines
		if startTicks(p.pid) != p.start {
			return unix.ESRCH
		}
		return unix.Kill(p.pid, s)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if startTicks(p.pid) != p.start { // it may be somebody else's number since
		return unix.ESRCH
	}
	return unix.PidfdSendSignal(fd, s, nil, 0)
}

// running says whether it does: a zombie has ended, and waits for its parent.
func (p markedProcess) running() bool {
	s := statOf(p.pid)
	return s.start != 0 && s.start == p.start && s.state != "Z" && s.state != "X"
}

// goingTime is how long processes of ours are waited for that are on their way out, whosever they are: what a kill -9 of the
// lab's process has ended with it. Freeing some gigabytes takes a tenth of it.
const goingTime = 2 * time.Second

// letGo waits for those that are on their way out now.
func letGo(ctx context.Context) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	end := time.Now().Add(goingTime)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		var st unix.Stat_t
		if err != nil || unix.Stat("/proc/"+e.Name(), &st) != nil || int(st.Uid) != os.Geteuid() {
			continue
		}
		for leaving(pid) && time.Now().Before(end) && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}
}

// endMarked ends all processes of the lab whose folder this is, but this one, and says how many there were.
func endMarked(ctx context.Context, folder string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	own, _ := os.Readlink("/proc/self/ns/mnt")
	seen := map[markedProcess]bool{}
	m := &marks{folder: folder, self: os.Getpid(), own: own, seen: seen}
	kill := time.Now().Add(sweepPatience)
	for {
		list := slices.DeleteFunc(m.find(), func(p markedProcess) bool { return !p.running() })
		if len(list) == 0 {
			letGo(ctx)
			return len(seen), nil
		}
		for _, p := range list {
			switch {
			case time.Now().After(kill):
				p.signal(unix.SIGKILL)
			case !seen[p]:
				p.signal(unix.SIGTERM)
				p.signal(unix.SIGCONT) // one that was stopped hears nothing else
			}
			seen[p] = true
		}
		select {
		case <-ctx.Done():
			var pids []string
			for _, p := range list {
				pids = append(pids, strconv.Itoa(p.pid))
			}
			return len(seen), fmt.Errorf("processes that would not end: %s: %w", strings.Join(pids, ", "), context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}
