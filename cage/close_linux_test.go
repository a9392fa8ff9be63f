package cage

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// insideEnv has the test's own binary close a cage and tell how things are in there, as JSON.
const insideEnv = "VMNETD_CAGE_TEST"

func TestMain(m *testing.M) {
	if dir := os.Getenv(insideEnv); dir != "" {
		if err := inside(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// seen is what is told.
type seen struct {
	Walls    Walls
	Threads  []map[string]string // the lines of each thread's status
	Dumpable int
	Core     unix.Rlimit
	Errors   map[string]string
}

func inside(dir string) error {
	// Threads of before, and one that only waits in the kernel.
	stop := make(chan struct{})
	for range 3 {
		go func() { runtime.LockOSThread(); <-stop }()
	}
	r, wr, err := os.Pipe()
	if err != nil {
		return err
	}
	go func() {
		runtime.LockOSThread()
		unix.Read(int(r.Fd()), make([]byte, 1)) // Fd makes it block
	}()
	plan := Plan{Read: []string{"/proc/self", filepath.Join(dir, "open")}, Keep: []string{filepath.Join(dir, "kept")}, Required: os.Getuid() != 0}
	if os.Getuid() == 0 {
		plan.User, plan.Required = &User{"nobody", 65534, 65534}, true
		plan.Capabilities = []string{"cap_net_bind_service", "cap_net_admin"}
	}
	var s seen
	if s.Walls, err = plan.Close(); err != nil {
		return err
	}
	go func() { runtime.LockOSThread(); <-stop }() // and one of after
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		f, err := os.Open("/proc/self/task/" + task.Name() + "/status")
		if err != nil {
			return err
		}
		lines := map[string]string{}
		for sc := bufio.NewScanner(f); sc.Scan(); {
			k, v, _ := strings.Cut(sc.Text(), ":")
			lines[k] = strings.Join(strings.Fields(v), " ")
		}
		f.Close()
		s.Threads = append(s.Threads, lines)
	}
	s.Dumpable, _ = unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	unix.Getrlimit(unix.RLIMIT_CORE, &s.Core)
	s.Errors = map[string]string{}
	try := func(what string, f func() error) {
		err := f()
		var e syscall.Errno
		if s.Errors[what] = fmt.Sprint(err); errors.As(err, &e) {
			s.Errors[what] = unix.ErrnoName(e)
		}
	}
	try("read open", func() error { _, err := os.ReadFile(filepath.Join(dir, "open")); return err })
	try("read shut", func() error { _, err := os.ReadFile(filepath.Join(dir, "shut")); return err })
	try("keep", func() error {
		f := filepath.Join(dir, "kept", "a")
		return errors.Join(os.WriteFile(f, []byte("x"), 0o600), os.Rename(f, f+"2"), os.Truncate(f+"2", 0))
	})
	try("keep and rename", func() error {
		f := filepath.Join(dir, "kept", "b")
		if err := errors.Join(os.WriteFile(f, []byte("x"), 0o600), os.Rename(f, f+"2")); err != nil {
			return err
		}
		_, err := os.ReadFile(f + "2")
		return errors.Join(err, os.Remove(f+"2"))
	})
	try("write", func() error { return os.WriteFile(filepath.Join(dir, "new"), nil, 0o600) })
	try("listen", func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			defer l.Close()
			var c net.Conn
			if c, err = net.Dial("tcp", l.Addr().String()); err == nil {
				c.Close()
			}
		}
		return err
	})
	try("port 1", func() error {
		l, err := net.Listen("tcp", "127.0.0.1:1")
		if err == nil {
			l.Close()
		}
		return err
	})
	try("exec", func() error { return unix.Exec("/proc/self/exe", []string{"x"}, nil) })
	try("fork", func() error { _, err := syscall.ForkExec("/proc/self/exe", []string{"x"}, nil); return err })
	wr.Close()
	return json.NewEncoder(os.Stdout).Encode(s)
}

// Close shuts in every thread, those of before and after, and what the plan names still works.
func TestClose(t *testing.T) {
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("no /proc")
	}
	users := []int{os.Getuid()}
	if os.Getuid() == 0 {
		users = append(users, 65534)
	}
	have := Look()
	for _, uid := range users {
		t.Run(fmt.Sprintf("User%d", uid), func(t *testing.T) {
			dir, err := os.MkdirTemp("/tmp", "cage-") // not below t.TempDir, which is 0700
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			bin, err := os.ReadFile(exe)
			if err != nil {
				t.Fatal(err)
			}
			me := filepath.Join(dir, "test")
			for _, err := range []error{
				os.WriteFile(me, bin, 0o755), os.Mkdir(filepath.Join(dir, "kept"), 0o777), os.Chmod(filepath.Join(dir, "kept"), 0o777), os.Chmod(dir, 0o777),
				os.WriteFile(filepath.Join(dir, "open"), nil, 0o644), os.WriteFile(filepath.Join(dir, "shut"), nil, 0o644),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command(me)
			cmd.Env = append(os.Environ(), insideEnv+"="+dir)
			if uid != os.Getuid() {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
			}
			var complaint strings.Builder
			cmd.Stderr = &complaint
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, complaint.String())
			}
			var s seen
			if err := json.Unmarshal(out, &s); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			t.Logf("%s, %d threads", s.Walls, len(s.Threads))
			if s.Walls.Landlock != have.Landlock || s.Walls.Seccomp != have.Seccomp || len(s.Walls.Missing) > 0 {
				t.Errorf("walls %+v, of a system with %+v", s.Walls, have)
			}
			if len(s.Threads) < 6 {
				t.Errorf("%d threads are too few to say anything", len(s.Threads))
			}
			caps, uids, bound := "0000000000000000", fmt.Sprintf("%d %[1]d %[1]d %[1]d", uid), ""
			if uid == 0 {
				caps, uids, bound = "0000000000001400", "65534 65534 65534 65534", "0000000000000000" // CAP_NET_BIND_SERVICE, CAP_NET_ADMIN
			}
			for _, th := range s.Threads {
				for k, want := range map[string]string{"NoNewPrivs": "1", "Seccomp": "2", "Uid": uids, "Gid": uids, "CapPrm": caps, "CapEff": caps,
					"CapInh": "0000000000000000", "CapAmb": "0000000000000000", "CapBnd": bound} {
					if want != "" && th[k] != want {
						t.Errorf("thread %s: %s is %s, want %s", th["Pid"], k, th[k], want)
					}
				}
			}
			if s.Dumpable != 0 || s.Core != (unix.Rlimit{}) {
				t.Errorf("dumpable %d, core %+v", s.Dumpable, s.Core)
			}
			port := "EACCES"
			if uid == 0 {
				port = "<nil>"
			}
			for what, want := range map[string]string{"read open": "<nil>", "read shut": "EACCES", "keep": "EPERM", "keep and rename": "<nil>", "write": "EACCES",
				"listen": "<nil>", "port 1": port, "exec": "EPERM", "fork": "EPERM"} {
				if s.Errors[what] != want {
					t.Errorf("%s: %s, want %s", what, s.Errors[what], want)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "new")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a file was made: %v", err)
			}
		})
	}
}

// What is not required is done as far as it can be, and said.
func TestMissing(t *testing.T) {
	var w Walls
	if err := w.missing(false, "moat", errors.New("no water")); err != nil || len(w.Missing) != 1 || w.Missing[0] != "moat: no water" {
		t.Errorf("%v, %q", err, w.Missing)
	}
	err := w.missing(true, "moat", unix.EPERM)
	var e *Error
	if !errors.As(err, &e) || e.Wall != "moat" || !errors.Is(err, unix.EPERM) {
		t.Errorf("%v", err)
	}
	for _, tt := range []struct {
		w    Walls
		want string
	}{
		{Walls{}, "none"},
		{Walls{NoNewPrivileges: true, Landlock: 6, Seccomp: true, User: "nobody"}, "landlock 6, seccomp, no capabilities, user nobody"},
		{Walls{NoNewPrivileges: true, Capabilities: []string{"cap_net_bind_service"}, CoreDumps: true}, "cap_net_bind_service, core dumps"},
	} {
		if got := tt.w.String(); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.w, got, tt.want)
		}
	}
}
