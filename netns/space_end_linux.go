package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Who is in a space is found by what /proc says of each process. There is nothing of the kernel's that lists them.

// Processes are those that run in it, whoever started them: those that are in one of its network, mount and UTS
// namespaces, or in a user namespace that is its own or below it.
func (s *Space) Processes() ([]int, error) {
	m, err := s.members()
	if err != nil {
		return nil, err
	}
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var list []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil && m.has(pid) {
			list = append(list, pid)
		}
	}
	slices.Sort(list)
	return list, nil
}

// members is what a space's processes are known by: the namespaces' names as links in /proc have them.
type members struct {
	net, mnt, uts, user string
	own                 string // our user namespace, which most other processes are in
}

func (s *Space) members() (m members, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return m, net.ErrClosed
	}
	for _, n := range []struct {
		f    *os.File
		kind string
		name *string
	}{{s.net, "net", &m.net}, {s.mnt, "mnt", &m.mnt}, {s.uts, "uts", &m.uts}, {s.user, "user", &m.user}} {
		if n.f == nil {
			continue
		}
		if *n.name, err = nameOf(int(n.f.Fd()), n.kind); err != nil {
			return m, err
		}
	}
	m.own, err = os.Readlink("/proc/self/ns/user")
	return m, err
}

func nameOf(fd int, kind string) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", &Error{Op: "look at a namespace", Err: err}
	}
	return fmt.Sprintf("%s:[%d]", kind, st.Ino), nil
}

// has says whether a process is a member.
func (m *members) has(pid int) bool {
	dir := "/proc/" + strconv.Itoa(pid)
	netw, err := os.Readlink(dir + "/ns/net")
	if errors.Is(err, fs.ErrNotExist) {
		// Its first thread has ended, and others may not have.
		threads, _ := os.ReadDir(dir + "/task")
		for _, t := range threads {
			if t.Name() != strconv.Itoa(pid) && m.in(dir+"/task/"+t.Name()+"/ns/", "") {
				return true
			}
		}
		return false
	}
	return err == nil && m.in(dir+"/ns/", netw) // others' processes do not let us look
}

func (m *members) in(ns, netw string) bool {
	if netw == "" {
		netw, _ = os.Readlink(ns + "net")
	}
	if netw == m.net {
		return true
	}
	user, err := os.Readlink(ns + "user")
	if err != nil {
		return false
	}
	if m.user == "" { // root's: it may have made others of each kind, hardly of all
		mnt, _ := os.Readlink(ns + "mnt")
		uts, _ := os.Readlink(ns + "uts")
		return mnt == m.mnt || uts == m.uts
	}
	if user == m.user {
		return true
	}
	if user == m.own {
		return false
	}
	fd, err := unix.Open(ns+"user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { unix.Close(fd) }()
	for range 32 { // the kernel lets as many lie in each other (create_user_ns)
		up, err := unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
		if err != nil { // from ours on, we are not told
			return false
		}
		unix.Close(fd)
		fd = up
		if name, _ := nameOf(fd, "user"); name == m.user {
			return true
		}
	}
	return false
}

// End ends all processes in it: SIGTERM, and SIGKILL once ctx has ended. It returns when there is none, or an error with
// those that would not go.
func (s *Space) End(ctx context.Context) error {
	// deaf is for how long a process may not hear a SIGKILL: one that waits for a disk that does not answer.
	const deaf = 10 * time.Second
	m, err := s.members()
	if err != nil {
		return err
	}
	told := map[int]bool{}
	var until time.Time
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		list, err := s.Processes()
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			switch now := time.Now(); {
			case until.IsZero():
				until = now.Add(deaf)
			case now.After(until):
				return fmt.Errorf("netns: processes that SIGKILL does not end: %s", strings.Trim(fmt.Sprint(list), "[]"))
			}
			for _, pid := range list {
				m.signal(pid, unix.SIGKILL)
			}
			time.Sleep(time.Millisecond) // whoever starts others faster than that is not waited for
			continue
		}
		for _, pid := range list {
			if !told[pid] {
				told[pid] = true
				if ignores(pid, unix.SIGTERM) { // shells at a terminal do, and go when that does
					m.signal(pid, unix.SIGHUP)
				}
				m.signal(pid, unix.SIGTERM)
				m.signal(pid, unix.SIGCONT) // one that is stopped does not hear the other
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// ignores says that a process ignores a signal.
func ignores(pid int, sig unix.Signal) bool {
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	_, rest, _ := strings.Cut(string(text), "\nSigIgn:\t")
	hex, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(hex, 16, 64)
	return err == nil && mask&(1<<(sig-1)) != 0
}

// signal sends a signal to a member, and to nobody who has its number after it.
func (m *members) signal(pid int, sig unix.Signal) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ENOSYS) { // before Linux 5.3
		if m.has(pid) {
			syscall.Kill(pid, sig)
		}
		return
	}
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if m.has(pid) {
		unix.PidfdSendSignal(fd, sig, nil, 0)
	}
}
