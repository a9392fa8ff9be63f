package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// needSpaces skips where no namespaces or TAPs can be made.
func needSpaces(t *testing.T) {
	t.Helper()
	err := unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK)
	if err == nil {
		var out []byte
		if out, err = exec.Command("unshare", "--user", "--map-root-user", "--net", "true").CombinedOutput(); err != nil {
			t.Logf("%s", out)
		}
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// inSpace runs a command in a process's network namespace.
func inSpace(t *testing.T, pid int, args ...string) (string, error) {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--preserve-credentials", "--user", "--net", "--target", strconv.Itoa(pid)}, args...)...).CombinedOutput()
	return string(out), err
}

// container starts a process in a user and a network namespace of its own.
func container(t *testing.T) *proc {
	t.Helper()
	p := program(t, "unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo up; exec sleep 600").start()
	p.says("up")
	return p
}

// attach gives a container a network until it ends.
func TestAttach(t *testing.T) {
	needSpaces(t)
	c := container(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := program(t, "vmnetd", "attach", strconv.Itoa(c.Process.Pid), "net7", "-c", "--ready-fd=3", "--hostname", "box", "--macaddress", "52:54:00:00:00:07", "--cidr", "10.9.0.0/24")
	p.ExtraFiles = []*os.File{w}
	p.start()
	w.Close()
	if line := p.says("interface"); !strings.Contains(line, "net7") || !strings.Contains(line, "10.9.0.15/24") {
		t.Error(line)
	}
	control := strings.TrimPrefix(p.says("control"), "control ")
	b := make([]byte, 2)
	if n, err := r.Read(b); n != 1 || b[0] != '1' {
		t.Errorf("the ready descriptor got %q, %v", b[:n], err)
	}
	if n, err := r.Read(b); n != 0 || err == nil {
		t.Errorf("and then %q, %v", b[:n], err)
	}
	r.Close()
	if out, err := inSpace(t, c.Process.Pid, "ping", "-c", "1", "-W", "5", "10.9.0.2"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := inSpace(t, c.Process.Pid, "ip", "-6", "route", "show", "dev", "net7"); err != nil || !strings.Contains(out, "/64 proto kernel") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := exec.Command("vmnetd", "leases", "ls", "--control", control).CombinedOutput(); err != nil || !strings.Contains(string(out), "box") || !strings.Contains(string(out), "52:54:00:00:00:07") {
		t.Errorf("%v: %s", err, out)
	}
	c.Process.Kill()
	p.ends(0)
	p.leavesNothing()
}

// A signal or a hang-up ends attach, and the interface goes with it.
func TestAttachEnds(t *testing.T) {
	needSpaces(t)
	c := container(t)
	for _, hangup := range []bool{false, true} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p := program(t, "vmnetd", "attach", strconv.Itoa(c.Process.Pid), "--exit-fd", "3")
		p.ExtraFiles = []*os.File{r}
		p.start()
		r.Close()
		p.says("control")
		if out, err := inSpace(t, c.Process.Pid, "ip", "link", "show", "tap0"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if hangup {
			w.Close()
		} else {
			p.Process.Signal(syscall.SIGTERM)
		}
		p.ends(0)
		p.leavesNothing()
		w.Close()
		if out, err := inSpace(t, c.Process.Pid, "ip", "link", "show", "tap0"); err == nil {
			t.Errorf("it is still there: %s", out)
		}
	}
	for _, args := range [][]string{{"attach"}, {"attach", "1", "a", "b"}, {"attach", "0"}, {"attach", "1", "--netns-type", "x"}, {"attach", "1", "--ready-fd", "77"}} {
		program(t, "vmnetd", args...).start().ends(2)
	}
	program(t, "vmnetd", "attach", strconv.Itoa(os.Getpid())).start().ends(1)
}

// A guest's agent comes by itself, comes back, and leaves no trace.
func TestGuestAgent(t *testing.T) {
	needSpaces(t)
	dir := shortDir(t)
	door := "unix:" + filepath.Join(dir, "q")
	control := filepath.Join(dir, "c")
	resolv := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	g := program(t, "unshare", "--user", "--map-root-user", "--net", "vmnetd", "guest", "--to", door, "--ifname", "net0", "--hostname", "box", "--resolv-conf", resolv).start()
	for range 2 { // the second time it is another daemon, which has forgotten
		s := program(t, "vmnetd", "serve", "--qemu", door, "--control", control).start()
		s.says("control")
		waitUntil(t.Fatalf, "the lease", func() bool {
			out, _ := exec.Command("vmnetd", "leases", "ls", "--control", control).Output()
			return strings.Contains(string(out), "box") && strings.Contains(string(out), "bound")
		})
		waitUntil(t.Fatalf, "a ping", func() bool {
			_, err := inSpace(t, g.Process.Pid, "ping", "-c", "1", "-W", "1", "10.0.2.2")
			return err == nil
		})
		waitUntil(t.Fatalf, "resolv.conf", func() bool {
			b, _ := os.ReadFile(resolv)
			return string(b) == "search internal\nnameserver 10.0.2.3\n"
		})
		s.Process.Signal(syscall.SIGTERM)
		s.ends(0)
	}
	g.Process.Signal(syscall.SIGTERM)
	g.ends(0)
	if b, _ := os.ReadFile(resolv); string(b) != "nameserver 192.0.2.1\n" {
		t.Errorf("resolv.conf is left as %q", b)
	}
	for _, args := range [][]string{{"guest"}, {"guest", "--to", "x"}, {"guest", "--to", "unix:"}, {"guest", "--to", "vsock:2:1", "--mac", "1"}} {
		program(t, "vmnetd", args...).start().ends(2)
	}
}

// run's way into a namespace keeps what run does: the command's status, and the shell's for what cannot be started.
func TestRunNetns(t *testing.T) {
	needSpaces(t)
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for status, args := range map[int][]string{
		7:              {"sh", "-c", "exit 7"},
		128 + 9:        {"sh", "-c", "kill -9 $$"},
		exitCannotExec: {bad},
		exitNotFound:   {"no-such-program"},
		128 + 15:       {"sh", "-c", "kill -TERM $$"},
	} {
		p := program(t, "vmnetd", append([]string{"run", "--netns", "--"}, args...)...).start()
		p.ends(status)
		p.leavesNothing()
	}
	p := program(t, "vmnetd", "run", "--netns", "--ifname", "net3", "--", "sh", "-c", "ip -br addr; ping -c 1 -W 5 10.0.2.2 >/dev/null && echo pinged; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.1; done").start()
	if line := p.says("net3"); !strings.Contains(line, "10.0.2.15/24") {
		t.Error(line)
	}
	p.says("pinged")
	p.says("ready")
	p.Process.Signal(syscall.SIGTERM)
	p.says("term")
	p.ends(3)
	p.leavesNothing()
}
