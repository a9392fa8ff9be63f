package main

// The processes of a lab: each has the lab's folder in its environment, unless it has thrown that away, as those do that
// change their titles; then it is known by what is mounted for its node, or by its network namespace, in which others are
// that are known. Nobody else's are looked at twice.

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

// startTicks is when a process began, in ticks since the machine did; 0 if there is none.
func startTicks(pid int) uint64 {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The second field, in brackets, is whatever the process likes.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const start = 22 - 3 // the field's number, of those from the third on
	if len(fields) <= start {
		return 0
	}
	n, _ := strconv.ParseUint(fields[start], 10, 64)
	return n
}

// marks are how processes of a lab are known.
type marks struct {
	folder string
	self   int
	own    string                 // our own network namespace: whoever is in it is not known by it
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
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == m.self {
			continue
		}
		var st unix.Stat_t
		if unix.Stat("/proc/"+e.Name(), &st) != nil || int(st.Uid) != os.Geteuid() {
			continue
		}
		start := startTicks(pid)
		if start == 0 {
			continue
		}
		space, _ := os.Readlink("/proc/" + e.Name() + "/ns/net")
		c := candidate{markedProcess{pid, start}, space, inEnviron(pid, m.folder)}
		if !c.sure && space != "" && space != m.own {
			c.sure = mounted(pid, m.folder)
		}
		if c.sure && space != "" && space != m.own {
			spaces[space] = true
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
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/stat")
	if err != nil || startTicks(p.pid) != p.start {
		return false
	}
	rest := bytes.TrimSpace(stat[bytes.LastIndexByte(stat, ')')+1:])
	return len(rest) > 0 && rest[0] != 'Z' && rest[0] != 'X'
}

// endMarked ends all processes of the lab whose folder this is, but this one, and says how many there were.
func endMarked(ctx context.Context, folder string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	own, _ := os.Readlink("/proc/self/ns/net")
	seen := map[markedProcess]bool{}
	m := &marks{folder: folder, self: os.Getpid(), own: own, seen: seen}
	kill := time.Now().Add(sweepPatience)
	for {
		list := slices.DeleteFunc(m.find(), func(p markedProcess) bool { return !p.running() })
		if len(list) == 0 {
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
