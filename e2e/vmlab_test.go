//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/lab/topology"
	"golang.org/x/sys/unix"
)

// Labs, as somebody has them who has no rights: everything here is a command of an ordinary user, who is nobody else's.
//
// The machine that his labs run on is the host of the topology in main_test.go: its ports are nobody else's, and the world
// behind it is ours.

// student is that user: his processes are those of his user, his files those in his folder. Each of his commands has a
// mount namespace with a device for TAPs that all may open, as most systems have it, and a resolv.conf that leads to the
// world.
type student struct {
	*lab
	uid  int
	home string
}

var students atomic.Int32

func newStudent(t *testing.T) *student {
	t.Helper()
	need(t)
	needTUN(t)
	needTools(t, "busybox", "ping")
	s := &student{lab: newLab(t), uid: 64000 + int(students.Add(1))}
	s.home = s.path("home")
	mustBinary(t) // not built while something is timed
	for _, d := range []string{"home", "home/run", "home/tmp", "home/work", "home/.local", "home/.local/state"} {
		s.own(t, s.path(d), 0o700)
	}
	node := s.path("tun")
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(node, 0o666); err != nil {
		t.Fatal(err)
	}
	s.allow(t)
	t.Cleanup(func() {
		// Whatever the test says of it: no process of his survives it.
		for pid := range s.processes(t) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		wait(t, "the student's processes end", func() error {
			if left := s.processes(t); len(left) > 0 {
				return fmt.Errorf("%v", left)
			}
			return nil
		})
	})
	return s
}

// own makes a folder of his.
func (s *student) own(t *testing.T, dir string, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.Mkdir(dir, mode), os.Chown(dir, s.uid, s.uid)); err != nil {
		t.Fatal(err)
	}
}

// allow skips the test where users may make no namespaces; CI's may.
func (s *student) allow(t *testing.T) {
	t.Helper()
	cmd := s.command("unshare", "--user", "--map-root-user", "--net", "true")
	if said, err := s.run(cmd); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("users may make no namespaces: %s", said)
		}
		t.Skipf("users may make no namespaces: %s", said)
	}
}

// file writes one of his.
func (s *student) file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(s.home, "work", name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, s.uid, s.uid); err != nil {
		t.Fatal(err)
	}
	return path
}

// command is one of his, in his folder.
func (s *student) command(args ...string) *exec.Cmd {
	const enter = `mount --bind "$1" /etc/resolv.conf && mount --bind "$2" /dev/net/tun && cd "$3" && id=$4 && shift 4 &&
exec setpriv --reuid "$id" --regid "$id" --clear-groups --inh-caps=-all -- "$@"`
	cmd := exec.Command("sh", append([]string{"-c", enter, "sh", s.resolvConf, s.path("tun"), filepath.Join(s.home, "work"), fmt.Sprint(s.uid)}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Setpgid: true}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "HOME=" + s.home, "XDG_RUNTIME_DIR=" + filepath.Join(s.home, "run"),
		"VMNETD_CACHE=" + s.path("cache"), "TMPDIR=" + filepath.Join(s.home, "tmp"), "LC_ALL=C.UTF-8"}
	return cmd
}

// run runs a command on the host.
func (s *student) run(cmd *exec.Cmd) (string, error) {
	var out bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	cmd.Stderr = &out
	err := s.host.Run(cmd)
	return out.String(), err
}

// try is a vmnetd command of his.
func (s *student) try(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := s.command(append([]string{mustBinary(t)}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	// What a lab leaves behind must not hold the command's pipes open.
	cmd.WaitDelay = patience
	err := s.host.Run(cmd)
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatalf("vmnetd %s: %v: %s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must is try for a command that must succeed.
func (s *student) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := s.try(t, args...)
	if code != 0 {
		t.Fatalf("vmnetd %s: exit status %d: %s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// timed is must, with the time that it took in the test's log.
func (s *student) timed(t *testing.T, args ...string) (string, time.Duration) {
	t.Helper()
	began := time.Now()
	out := s.must(t, args...)
	took := time.Since(began).Round(time.Millisecond)
	t.Logf("%v: vmnetd %s", took, strings.Join(args, " "))
	return out, took
}

// traces are what labs could leave behind: of his processes, of the namespaces that they are in or hold, of the host's unix
// sockets, of files.
type traces struct {
	processes  map[int]string
	namespaces map[string]bool
	sockets    []string
	files      []string
}

func (s *student) traces(t *testing.T) traces {
	t.Helper()
	tr := traces{processes: s.processes(t), namespaces: map[string]bool{}, sockets: s.sockets(t)}
	for pid := range tr.processes {
		for _, n := range namespacesOf(pid) {
			tr.namespaces[n] = true
		}
	}
	if err := filepath.WalkDir(s.home, func(path string, _ fs.DirEntry, err error) error {
		if err == nil { // else it has gone meanwhile
			tr.files = append(tr.files, path)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// Where all may write, too.
	for _, dir := range []string{"/tmp", "/var/tmp", "/dev/shm"} {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if i, err := e.Info(); err == nil && int(i.Sys().(*syscall.Stat_t).Uid) == s.uid {
				tr.files = append(tr.files, filepath.Join(dir, e.Name()))
			}
		}
	}
	return tr
}

// processes are the user's that run, with their command lines. Those that have ended and are waited for by nobody yet are
// none.
func (s *student) processes(t *testing.T) map[int]string {
	t.Helper()
	all, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	his := map[int]string{}
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || !bytes.Contains(b, fmt.Appendf(nil, "\nUid:\t%d\t", s.uid)) || bytes.Contains(b, []byte("\nState:\tZ")) {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil {
			his[pid] = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return his
}

// namespacesOf are those that a process is in, holds by a descriptor, or sees mounted.
func namespacesOf(pid int) (all []string) {
	for _, dir := range []string{"ns", "fd"} {
		list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, dir))
		for _, e := range list {
			to, _ := os.Readlink(fmt.Sprintf("/proc/%d/%s/%s", pid, dir, e.Name()))
			if kind, _, ok := strings.Cut(to, ":["); ok && slices.Contains([]string{"net", "mnt", "user", "uts", "pid", "ipc", "cgroup", "time"}, kind) {
				all = append(all, to)
			}
		}
	}
	mounts, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.Contains(line, " - nsfs ") {
			all = append(all, f[3])
		}
	}
	return all
}

// everyNamespace are all of this machine that a process shows, whosever it is.
func everyNamespace(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	list, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			for _, n := range namespacesOf(pid) {
				all[n] = true
			}
		}
	}
	return all
}

// sockets are the host's unix sockets that have a name.
func (s *student) sockets(t *testing.T) (names []string) {
	t.Helper()
	var table []byte
	if err := s.host.Do(func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/unix")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) == 8 {
			names = append(names, f[7])
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// nothingLeft compares what is there with what was there before; of namespaces with those that there were meanwhile.
func (s *student) nothingLeft(t *testing.T, before, meanwhile traces) {
	t.Helper()
	own := map[string]bool{} // the machine's own, and what other tests have
	for _, n := range namespacesOf(os.Getpid()) {
		own[n] = true
	}
	wait(t, "nothing is left", func() error {
		var errs []error
		now := s.traces(t)
		for pid, line := range now.processes {
			if _, there := before.processes[pid]; !there {
				errs = append(errs, fmt.Errorf("process %d: %s", pid, line))
			}
		}
		for _, k := range []struct {
			what        string
			before, now []string
		}{{"socket", before.sockets, now.sockets}, {"file", before.files, now.files}} {
			for _, x := range k.now {
				if !slices.Contains(k.before, x) {
					errs = append(errs, fmt.Errorf("%s %s", k.what, x))
				}
			}
			for _, x := range k.before {
				if !slices.Contains(k.now, x) {
					errs = append(errs, fmt.Errorf("%s %s was there before, and is not any more", k.what, x))
				}
			}
		}
		all := everyNamespace(t)
		for n := range meanwhile.namespaces {
			if all[n] && !own[n] && !before.namespaces[n] {
				errs = append(errs, fmt.Errorf("namespace %s", n))
			}
		}
		return errors.Join(errs...)
	})
}

// memory is what the user's processes hold, with what several share divided between them.
func (s *student) memory(t *testing.T) (kB int, processes int) {
	t.Helper()
	for pid := range s.processes(t) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
				if err != nil {
					t.Fatal(err)
				}
				kB += n
			}
		}
		processes++
	}
	return kB, processes
}

// status is a lab of his as 'lab ls' shows it.
func (s *student) status(t *testing.T, name string) topology.Status {
	t.Helper()
	var all []topology.Status
	out := s.must(t, "lab", "ls", "-o", "json")
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("lab ls: %v: %s", err, out)
	}
	for _, l := range all {
		if l.Name == name {
			return l
		}
	}
	t.Fatalf("lab ls does not know %s: %s", name, out)
	return topology.Status{}
}

// lives is by what a lab's parts are told from others of the same name: processes with the time of their start, namespaces,
// networks by theirs.
func (s *student) lives(t *testing.T, st topology.Status) map[string]string {
	t.Helper()
	one := map[string]string{"lab": fmt.Sprint(st.PID, startOf(t, st.PID), st.Since)}
	for _, n := range st.Nodes {
		if n.State != topology.StateReady {
			t.Errorf("node %s is %s: %s", n.Name, n.State, n.Error)
		}
		life := fmt.Sprint(n.Started)
		for _, pid := range n.PIDs {
			life += fmt.Sprint(" ", pid, " ", startOf(t, pid), " ", namespacesOf(pid))
		}
		one["node "+n.Name] = life
	}
	for _, n := range st.Networks {
		one["network "+n.Name] = fmt.Sprint(n.Since)
	}
	// Namespaces that no process is in are held by the lab's.
	held := map[string]bool{}
	for _, n := range namespacesOf(st.PID) {
		held[n] = true
	}
	one["namespaces"] = fmt.Sprint(slices.Sorted(maps.Keys(held)))
	return one
}

// startOf is when a process started, in ticks since the machine's own start: proc_pid_stat(5), field 22.
func startOf(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	return f[19]
}

// differ names what is another life in b than in a.
func differ(a, b map[string]string) (names []string) {
	for k := range b {
		if a[k] != b[k] {
			names = append(names, k)
		}
	}
	for k := range a {
		if _, there := b[k]; !there {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// get is an HTTP request from the host.
func (s *student) get(t *testing.T, address string) (string, error) {
	t.Helper()
	c, err := s.host.dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", address); err != nil {
		return "", err
	}
	var b bytes.Buffer
	_, err = b.ReadFrom(bufio.NewReader(c))
	_, body, _ := strings.Cut(b.String(), "\r\n\r\n")
	return body, err
}

// freePort is a port of the host that nobody has: there is nobody else on it.
func (s *student) freePort(t *testing.T) string {
	t.Helper()
	var l net.Listener
	if err := s.host.Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}
