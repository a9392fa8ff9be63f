package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/lab/topology"
	"golang.org/x/sys/unix"
)

// labPatience is how long what must come may take on a machine that does much else.
const labPatience = 30 * time.Second

// labRig is a user with labs.
type labRig struct {
	t    *testing.T
	dir  string // the current folder
	bin  string
	env  []string
	cred *syscall.Credential // nil: ourselves
}

// newLabRig makes one; ordinary: who has no rights.
func newLabRig(t *testing.T, ordinary bool) *labRig {
	t.Helper()
	if _, err := exec.Command("unshare", "--user", "--net", "true").CombinedOutput(); err != nil && (ordinary || os.Getuid() != 0) {
		t.Skipf("no namespaces for ordinary users here: %v", err)
	}
	if fi, err := os.Stat("/dev/net/tun"); err != nil || ordinary && os.Getuid() == 0 && fi.Mode()&0o006 != 0o006 {
		t.Skipf("no TAP for ordinary users here: %v", err)
	}
	dir := shortDir(t)
	bin, err := exec.LookPath("vmnetd")
	if err != nil {
		t.Fatal(err)
	}
	r := &labRig{t: t, dir: dir, bin: bin}
	for _, d := range []string{"r", "s", "w"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if ordinary && os.Getuid() == 0 {
		if r.bin, err = plainVmnetd(); err != nil {
			t.Fatal(err)
		}
		r.cred = &syscall.Credential{Uid: nobodyUID, Gid: nobodyUID}
		os.Chmod(filepath.Dir(r.bin), 0o755)
		os.Chmod(dir, 0o755)
		for _, d := range []string{"r", "s", "w"} {
			os.Chown(filepath.Join(dir, d), nobodyUID, nobodyUID)
		}
	}
	r.env = append(os.Environ(), "XDG_RUNTIME_DIR="+filepath.Join(dir, "r"), "XDG_STATE_HOME="+filepath.Join(dir, "s"), "VMNETD_CONTROL=", "GORACE="+noRaceSleep)
	t.Cleanup(func() {
		if out, err := r.command(context.Background(), "lab", "down", "--all").CombinedOutput(); err != nil {
			t.Errorf("lab down --all: %v\n%s", err, out)
		}
	})
	return r
}

func (r *labRig) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.bin, args...)
	cmd.Args[0] = "vmnetd"
	cmd.Dir, cmd.Env = filepath.Join(r.dir, "w"), r.env
	cmd.WaitDelay = time.Second
	if r.cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: r.cred}
	}
	return cmd
}

// try runs a command to its end.
func (r *labRig) try(args ...string) (out, errs string, code int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*labPatience)
	defer cancel()
	cmd := r.command(ctx, args...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		r.t.Fatalf("vmnetd %s: %v\n%s%s", strings.Join(args, " "), err, &o, &e)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// do runs one that must succeed.
func (r *labRig) do(args ...string) string {
	r.t.Helper()
	out, errs, code := r.try(args...)
	if code != 0 {
		r.t.Fatalf("vmnetd %s: exit status %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// fails runs one that must fail with a status, and say something.
func (r *labRig) fails(want int, says string, args ...string) {
	r.t.Helper()
	out, errs, code := r.try(args...)
	if code != want || !strings.Contains(errs, says) {
		r.t.Errorf("vmnetd %s: exit status %d, want %d with %q\n%s%s", strings.Join(args, " "), code, want, says, out, errs)
	}
}

func (r *labRig) file(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, "w", name), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *labRig) folder(lab string) string { return filepath.Join(r.dir, "r", "vmnetd", "lab-"+lab) }

func (r *labRig) ls(lab string) labShown {
	r.t.Helper()
	var list []labShown
	if err := json.Unmarshal([]byte(r.do("lab", "ls", "-o", "json", lab)), &list); err != nil || len(list) != 1 {
		r.t.Fatalf("%v %v", list, err)
	}
	return list[0]
}

// pids are the nodes' main processes.
func (s labShown) pids() map[string]int {
	m := map[string]int{}
	for _, n := range s.Nodes {
		if len(n.PIDs) > 0 {
			m[n.Name] = n.PIDs[0]
		}
	}
	return m
}

// traces are what the rig's labs have left in the system: processes, sockets, files, and namespaces that are held.
func (r *labRig) traces() (list []string) {
	procs, _ := os.ReadDir("/proc")
	for _, e := range procs {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		env, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		mounts, _ := os.ReadFile("/proc/" + e.Name() + "/mountinfo")
		if bytes.Contains(env, []byte(labEnv+"="+r.dir)) || bytes.Contains(mounts, []byte(labEnv+"="+r.dir)) {
			cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
			list = append(list, fmt.Sprintf("process %s %q", e.Name(), cmdline))
		}
	}
	if b, err := os.ReadFile("/proc/net/unix"); err == nil {
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, r.dir) {
				list = append(list, "socket "+strings.TrimSpace(line))
			}
		}
	}
	for _, d := range []string{"r", "s"} {
		filepath.WalkDir(filepath.Join(r.dir, d), func(p string, e os.DirEntry, err error) error {
			if p != filepath.Join(r.dir, d) {
				list = append(list, "file "+p)
			}
			return nil
		})
	}
	return list
}

func (r *labRig) nothing(when string) {
	r.t.Helper()
	if left := r.traces(); len(left) > 0 {
		r.t.Errorf("%s there is left:\n%s", when, strings.Join(left, "\n"))
	}
}

const shopLab = `name: shop
networks:
  lan: {net: 10.7.0.0/24}
vars: {webs: 2}
nodes:
  web:
    count: ${webs}
    kind: netns
    interfaces: [lan]
    command: [sleep, "1000"]
  cli: {kind: netns, interfaces: [lan]}
`

func TestLabUpDown(t *testing.T) {
	for _, ordinary := range []bool{false, true} {
		t.Run(map[bool]string{false: "ourselves", true: "an ordinary user"}[ordinary], func(t *testing.T) { testLabUpDown(newLabRig(t, ordinary)) })
	}
}

func testLabUpDown(r *labRig) {
	t := r.t
	r.fails(2, "there is no lab.yaml here", "lab", "up")
	r.fails(1, "no lab is up", "lab", "exec", "web1", "--", "true")
	r.file("lab.yaml", shopLab)
	out := r.do("lab", "up")
	for _, want := range []string{"start network lan: new\n", "start node web1: new\n", "web2: ready in ", "lab shop ready in "} {
		if !strings.Contains(out, want) {
			t.Errorf("lab up says no %q:\n%s", want, out)
		}
	}
	first := r.ls("shop")
	if first.State != "up" || len(first.Nodes) != 3 || len(first.pids()) < 2 || first.File != filepath.Join(r.dir, "w", "lab.yaml") {
		t.Errorf("%+v", first)
	}
	// Once more changes nothing.
	if out := r.do("lab", "up"); out != "lab shop: nothing to change\n" {
		t.Errorf("lab up again: %q", out)
	}
	if again := r.ls("shop"); again.PID != first.PID || !maps.Equal(again.pids(), first.pids()) {
		t.Errorf("processes were %v and are %v", first.pids(), again.pids())
	}
	// A node is where it should be, and its command ends as it does here.
	if out := r.do("lab", "exec", "cli", "--", "sh", "-c", "uname -n; pwd; echo $VMNETD_NODE; cat /proc/net/dev"); !strings.HasPrefix(out, "cli\n"+filepath.Join(r.dir, "w")+"\ncli\n") || !strings.Contains(out, "eth0:") {
		t.Errorf("in cli: %s", out)
	}
	for code, script := range map[int]string{0: "exit 0", 7: "exit 7", 137: "kill -9 $$", 143: "kill $$"} {
		if _, errs, got := r.try("lab", "exec", "--lab", "shop", "web1", "sh", "-c", script); got != code || errs != "" {
			t.Errorf("%s: exit status %d, want %d: %s", script, got, code, errs)
		}
	}
	r.fails(127, "not found", "lab", "exec", "web1", "--", "no-such-program")
	r.fails(126, "permission denied", "lab", "exec", "web1", "--", filepath.Join(r.dir, "w", "lab.yaml"))
	r.fails(2, "did you mean web1", "lab", "exec", "wep1", "--", "true")
	r.fails(1, "did you mean shop", "lab", "exec", "--lab", "shob", "web1", "--", "true")
	r.fails(1, "did you mean shop", "lab", "down", "shob")
	for _, c := range []struct{ line, want string }{{"exec ", "web1"}, {"console w", "web2"}, {"restart web1 ", "cli"}, {"down ", "shop"}, {"exec --lab ", "shop"}, {"ls s", "shop"}} {
		if out := r.do(append([]string{"__complete", "lab"}, strings.Split(c.line, " ")...)...); !strings.Contains(out, c.want) {
			t.Errorf("lab %s completes as %q, want %s", c.line, out, c.want)
		}
	}
	// All that asks a daemon asks the lab.
	if out := r.do("vm", "ls", "--control", "lab:shop"); !strings.Contains(out, "10.7.0.") {
		t.Errorf("vm ls: %s", out)
	}
	r.do("status", "--control", filepath.Join(r.folder("shop"), "control.sock"))
	// What changes is changed, and nothing else.
	if out := r.do("lab", "up", "--set", "webs=1"); !strings.Contains(out, "stop node web2: gone\n") || strings.Contains(out, "web1: new") {
		t.Errorf("with webs=1: %s", out)
	}
	if now := r.ls("shop"); len(now.Nodes) != 2 || now.pids()["web1"] != first.pids()["web1"] {
		t.Errorf("%+v", now)
	}
	r.file("lab.yaml", shopLab+"  late: {kind: netns, interfaces: [lan, lan2]}\n")
	r.fails(1, "lab.yaml:", "lab", "up")
	r.fails(1, "lab.yaml:", "lab", "check")
	// A second file of that name is not the same lab.
	r.file("other.yaml", shopLab)
	r.fails(1, "is up from "+filepath.Join(r.dir, "w", "lab.yaml"), "lab", "up", "other.yaml")
	if now := r.ls("shop"); now.PID != first.PID {
		t.Errorf("the lab's process was %d and is %d", first.PID, now.PID)
	}
	if out := r.do("lab", "up", "--replace", "other.yaml"); !strings.Contains(out, "start node web1: new") {
		t.Errorf("--replace: %s", out)
	}
	if now := r.ls("shop"); now.PID == first.PID || filepath.Base(now.File) != "other.yaml" {
		t.Errorf("after --replace %+v", now)
	}
	// stop and start.
	r.do("lab", "stop", "web1")
	r.do("lab", "start", "web1")
	r.do("lab", "restart", "web1", "web2")
	r.do("lab", "up", "other.yaml")
	// Down, with somebody in it.
	inside := r.command(context.Background(), "lab", "exec", "--lab", "shop", "cli", "--", "sh", "-c", "echo in; sleep 1000")
	pipe, err := inside.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := inside.Start(); err != nil {
		t.Fatal(err)
	}
	pipe.Read(make([]byte, 10))
	if out := r.do("lab", "down", "other.yaml"); !strings.HasPrefix(out, "lab shop is down") {
		t.Errorf("down: %s", out)
	}
	inside.Wait()
	r.nothing("after lab down")
	if out := r.do("lab", "down", "shop"); out != "lab shop is not up\n" {
		t.Errorf("down again: %s", out)
	}
	r.do("lab", "down")
}

// A signal to 'lab exec' is its command's.
func TestLabExecSignal(t *testing.T) {
	r := newLabRig(t, false)
	r.file("lab.yaml", "name: one\nnodes:\n  a: {kind: netns}\n")
	r.do("lab", "up")
	cmd := r.command(t.Context(), "lab", "exec", "a", "--", "sh", "-c", `trap 'echo got; exit 5' USR1; echo in; while :; do sleep 0.1; done`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, _ := out.Read(buf)
	cmd.Process.Signal(syscall.SIGUSR1)
	m, _ := out.Read(buf[n:])
	cmd.Wait()
	if string(buf[:n+m]) != "in\ngot\n" || cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("%q, exit status %d", buf[:n+m], cmd.ProcessState.ExitCode())
	}
}

// A lab whose process was killed is seen as such, and cleaned up by down and by up: also what has made itself a daemon there
// and thrown its environment away.
func TestLabKilled(t *testing.T) {
	r := newLabRig(t, false)
	r.file("lab.yaml", shopLab)
	for _, by := range []string{"down", "up"} {
		r.do("lab", "up")
		st := r.ls("shop")
		hidden := filepath.Join(r.dir, "hidden")
		os.Remove(hidden)
		r.do("lab", "exec", "web1", "--", "sh", "-c", "env -i setsid sh -c 'echo $$ >"+hidden+"; trap \"\" TERM HUP; while :; do sleep 1; done' >/dev/null 2>&1 </dev/null & while ! [ -s "+hidden+" ]; do sleep 0.01; done")
		pid, _ := os.ReadFile(hidden)
		daemon, err := strconv.Atoi(strings.TrimSpace(string(pid)))
		if err != nil {
			t.Fatal(err)
		}
		// Somebody else's with a similar mark.
		other := exec.Command("sleep", "1000")
		other.Env = []string{labEnv + "=" + r.folder("shop2"), "X=" + labEnv + "=" + r.folder("shop"), "Y" + labEnv + "=" + r.folder("shop")}
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(st.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r.until("the lab is known for killed", func() bool { return r.ls("shop").State == "killed" }) // its threads end one by one
		r.fails(1, "was killed", "lab", "exec", "web1", "--", "true")
		out, errs, code := r.try("lab", by)
		if code != 0 || !strings.Contains(out+errs, "lab shop was killed: cleaned up ") {
			t.Errorf("lab %s: %d %s%s", by, code, out, errs)
		}
		if (markedProcess{daemon, startTicks(daemon)}).running() {
			t.Errorf("after lab %s process %d of the killed lab runs on", by, daemon)
		}
		if other.Process.Signal(syscall.Signal(0)) != nil {
			t.Error("another's process was ended")
		}
		other.Process.Kill()
		other.Wait()
		if by == "up" {
			if now := r.ls("shop"); now.State != "up" || now.PID == st.PID {
				t.Errorf("%+v", now)
			}
			r.do("lab", "down")
		}
		r.nothing("after lab " + by)
	}
}

// Who is beside a lab's process in a network namespace is not the lab's: its 'lab up' may have been said in a namespace where
// its user does other things, or its node's root may have gone to another one.
func TestLabSweepSpares(t *testing.T) {
	args := []string{"--net", "sh", "-c", `sleep 1000 >/dev/null 2>&1 & echo $!; VMNETD_LAB="$0" exec sleep 1000`}
	folder := filepath.Join(t.TempDir(), "lab-x")
	if os.Getuid() != 0 {
		args = append([]string{"--user", "--map-root-user"}, args...)
	}
	marked := exec.Command("unshare", append(args, folder)...)
	marked.Env = []string{"PATH=" + os.Getenv("PATH")}
	out, err := marked.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := marked.Start(); err != nil {
		t.Skip(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	beside, bad := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || bad != nil {
		marked.Wait()
		t.Skip("no namespaces here")
	}
	bystander := markedProcess{beside, startTicks(beside)}
	defer bystander.signal(syscall.SIGKILL)
	defer marked.Wait()
	defer marked.Process.Kill()
	waitUntil(t.Fatalf, "the mark", func() bool { return inEnviron(marked.Process.Pid, folder) })
	// Until it is waited for it is a zombie, which has ended.
	if n, err := endMarked(t.Context(), folder); n != 1 || err != nil {
		t.Errorf("%d processes have ended, want 1; %v", n, err)
	}
	if (markedProcess{marked.Process.Pid, startTicks(marked.Process.Pid)}).running() {
		t.Error("the lab's process runs on")
	}
	if !bystander.running() {
		t.Error("another process in its network namespace was ended")
	}
}

// What root has started in a node, and is another user since, is the killed lab's all the same.
func TestLabKilledOfRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("wants to be two users")
	}
	r := newLabRig(t, false)
	r.file("lab.yaml", "name: one\nnodes:\n  a: {kind: netns}\n")
	r.do("lab", "up")
	other := []string{"lab", "exec", "a", "--", "setpriv", "--reuid", strconv.Itoa(nobodyUID), "--regid", strconv.Itoa(nobodyUID), "--clear-groups"}
	if _, _, code := r.try(append(slices.Clone(other), "true")...); code != 0 {
		t.Skip("no two users in a node, or no setpriv")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(r.do(append(other, "sh", "-c", "env -i setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!")...)))
	if err != nil {
		t.Fatal(err)
	}
	daemon := markedProcess{pid, startTicks(pid)}
	if !daemon.running() {
		t.Fatal("it has ended already")
	}
	defer daemon.signal(syscall.SIGKILL)
	syscall.Kill(r.ls("one").PID, syscall.SIGKILL)
	r.until("the lab is known for killed", func() bool { return r.ls("one").State == "killed" })
	r.do("lab", "down")
	if daemon.running() {
		t.Error("it runs on after lab down")
	}
}

func (r *labRig) until(what string, is func() bool) {
	r.t.Helper()
	waitUntil(r.t.Fatalf, what, is)
}

// At whatever moment of 'lab up' its process, or the command itself, is killed: down leaves nothing.
func TestLabKilledWhileItComesUp(t *testing.T) {
	r := newLabRig(t, false)
	r.file("lab.yaml", shopLab)
	begun := time.Now()
	r.do("lab", "up")
	takes := time.Since(begun)
	r.do("lab", "down")
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	for i := range rounds {
		up := r.command(t.Context(), "lab", "up")
		if err := up.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rand.N(takes))
		what := "the lab's process"
		d := labDir{"shop", r.folder("shop")}
		if _, pid, err := d.state(); i%2 == 0 && err == nil && pid > 0 {
			syscall.Kill(pid, syscall.SIGKILL)
		} else {
			what = "lab up"
			up.Process.Kill()
		}
		up.Wait()
		r.do("lab", "down", "shop")
		r.nothing(fmt.Sprintf("round %d: %s was killed %v after its start;", i, what, time.Since(begun)))
	}
}

// Many at once: one of them starts the lab, and the last word is down's.
func TestLabAtOnce(t *testing.T) {
	r := newLabRig(t, false)
	r.file("lab.yaml", shopLab)
	var all sync.WaitGroup
	started := make(chan int, 8)
	for range 4 {
		all.Go(func() {
			out, errs, code := r.try("lab", "up")
			if code != 0 {
				t.Errorf("%s%s", out, errs)
			}
			started <- strings.Count(out, "start node web1: new")
		})
	}
	all.Wait()
	n := 0
	for range 4 {
		n += <-started
	}
	if n != 1 {
		t.Errorf("%d of them started it", n)
	}
	for range 3 {
		all.Go(func() { r.try("lab", "up", "--no-wait") }) // it may find that the lab ends
		all.Go(func() { r.do("lab", "down", "shop") })
	}
	all.Wait()
	r.do("lab", "down", "shop")
	r.nothing("after ups and downs")
}

// What a lab's process is sent by hand ends it as well, and nothing is left for others to do.
func TestLabProcessEnds(t *testing.T) {
	r := newLabRig(t, false)
	r.file("lab.yaml", shopLab)
	r.do("lab", "up")
	st := r.ls("shop")
	syscall.Kill(st.PID, syscall.SIGTERM)
	r.until("the lab is gone", func() bool { return len(r.traces()) == 0 })
}

// A node that fails is said; the lab stays up to look at it.
func TestLabNodeFails(t *testing.T) {
	r := newLabRig(t, false)
	r.file("lab.yaml", "name: bad\nnodes:\n  a: {kind: netns, command: [sh, -c, \"echo oh no; exit 3\"]}\n  b: {kind: netns}\n")
	r.fails(1, "node a:", "lab", "up")
	st := r.ls("bad")
	i := slices.IndexFunc(st.Nodes, func(n topology.NodeStatus) bool { return n.Name == "a" })
	if st.Nodes[i].State != topology.StateFailed || st.Nodes[i].Error == "" {
		t.Errorf("%+v", st.Nodes[i])
	}
	if out := r.do("lab", "console", "--dump", "a"); !strings.Contains(out, "oh no") {
		t.Errorf("its console: %q", out)
	}
	r.do("lab", "exec", "b", "--", "true")
}

// Another user cannot see into a lab: not its folder, and not, with a descriptor of the socket's folder, its sockets.
func TestLabStranger(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("wants to be two users")
	}
	r := newLabRig(t, true)
	r.file("lab.yaml", shopLab)
	r.do("lab", "up")
	other := *r
	other.cred = &syscall.Credential{Uid: nobodyUID - 1, Gid: nobodyUID - 1}
	for _, args := range [][]string{{"lab", "ls", "-o", "json"}, {"lab", "down", "shop"}, {"lab", "exec", "--lab", "shop", "web1", "--", "true"}} {
		cmd := other.command(t.Context(), args...)
		out, err := cmd.CombinedOutput()
		if err == nil && strings.Contains(string(out), "shop") {
			t.Errorf("%v: %s", args, out)
		}
	}
	if st := r.ls("shop"); st.State != "up" || len(st.pids()) < 2 {
		t.Errorf("a stranger has done something: %+v", st)
	}
	r.do("lab", "down")
	r.nothing("after lab down")
}

// What stands in the lab's place is said and left alone.
func TestLabHostilePlaces(t *testing.T) {
	r := newLabRig(t, false)
	r.file("lab.yaml", shopLab)
	os.MkdirAll(filepath.Dir(r.folder("shop")), 0o700)
	precious := filepath.Join(r.dir, "precious")
	os.Mkdir(precious, 0o700)
	os.Symlink(precious, r.folder("shop"))
	r.fails(1, "is not a folder", "lab", "up")
	r.fails(1, "is not a folder", "lab", "down", "shop")
	os.Remove(r.folder("shop"))
	// Sockets that nobody listens at, a lock that nobody holds, a record that is none.
	os.Mkdir(r.folder("shop"), 0o700)
	for _, name := range []string{labControl, labDoor} {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(r.folder("shop"), name)})
		unix.Close(fd)
	}
	os.WriteFile(r.folder("shop")+".lock", nil, 0o600)
	os.WriteFile(filepath.Join(r.folder("shop"), labFile), []byte("}{"), 0o600)
	r.do("lab", "up")
	// While it is up, its record is gone or nonsense: it is up all the same.
	os.WriteFile(filepath.Join(r.folder("shop"), labFile), []byte("}{"), 0o600)
	r.do("lab", "exec", "--lab", "shop", "web1", "--", "true")
	r.do("lab", "down", "shop")
	r.nothing("after lab down")
	// Its process hangs: down ends it all the same.
	r.do("lab", "up")
	st := r.ls("shop")
	syscall.Kill(st.PID, syscall.SIGSTOP)
	go func() { time.Sleep(time.Second); syscall.Kill(st.PID, syscall.SIGCONT) }()
	r.do("lab", "down", "shop")
	r.nothing("after lab down")
}

// The console on a terminal: what is typed reaches the node's command, and ^] leaves it.
func TestLabConsole(t *testing.T) {
	r := newLabRig(t, false)
	r.file("lab.yaml", "name: one\nnodes:\n  a: {kind: netns, command: [sh, -c, \"echo hello; while read x; do echo got $x; done\"]}\n")
	r.do("lab", "up")
	ptm, pts := terminal(t)
	cmd := r.command(t.Context(), "lab", "console", "a")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = pts, pts, pts
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	said := ""
	says := func(what string) {
		t.Helper()
		ptm.SetReadDeadline(time.Now().Add(labPatience))
		for buf := make([]byte, 1000); !strings.Contains(said, what); {
			n, err := ptm.Read(buf)
			if said += string(buf[:n]); err != nil {
				t.Fatalf("%v before it said %q: %q", err, what, said)
			}
		}
	}
	says("^] leaves")
	says("hello")
	ptm.WriteString("abc\n")
	says("got abc")
	ptm.WriteString("\x1d")
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%v: %q", err, said)
		}
	case <-time.After(labPatience):
		t.Fatal("^] does not leave it")
	}
	if a, err := unix.IoctlGetTermios(int(pts.Fd()), termGet); err != nil || a.Lflag&unix.ECHO == 0 {
		t.Errorf("the terminal was not put back: %+v %v", a, err)
	}
	// Without a terminal it copies. A console that follows ends with the node.
	out, err := r.command(t.Context(), "lab", "console", "--dump", "a").Output()
	if err != nil || !strings.Contains(string(out), "hello\ngot abc\n") {
		t.Errorf("%q %v", out, err)
	}
	follow := r.command(t.Context(), "lab", "console", "a")
	in, _ := follow.StdinPipe()
	pipe, _ := follow.StdoutPipe()
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	in.Write([]byte("more\n"))
	var got strings.Builder
	for buf := make([]byte, 1000); !strings.Contains(got.String(), "got more"); {
		n, err := pipe.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v after %q", err, got.String())
		}
	}
	r.do("lab", "down")
	in.Close()
	follow.Wait()
	r.nothing("after lab down")
}

// terminal is a new one: the side that a person is at, and the program's.
func terminal(t *testing.T) (ptm, pts *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skip(err)
	}
	ptm = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { ptm.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Skip(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Skip(err)
	}
	pts, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { pts.Close() })
	return ptm, pts
}

// ssh goes through the lab to the node, with the lab's own known hosts. Its program is one of ours, which shows what it was
// given, and speaks through the proxy.
func TestLabSSH(t *testing.T) {
	r := newLabRig(t, false)
	bin := filepath.Join(r.dir, "bin")
	os.Mkdir(bin, 0o755)
	fake := `#!/bin/sh
for a; do case $a in ProxyCommand=*) p=${a#ProxyCommand=};; User=*|UserKnownHostsFile=*) echo "$a";; esac; done
echo "last $*" | sed 's/.* a /a /'
echo hello | sh -c "$p"
`
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte(fake), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip(err)
	}
	r.env = append(r.env, "PATH="+bin+":"+os.Getenv("PATH"))
	r.file("lab.yaml", `name: one
networks: {lan: {net: 10.7.0.0/24}}
nodes:
  a: {kind: netns, interfaces: [lan], command: [busybox, nc, -ll, -p, "22", -e, cat], wait: [{tcp: "22"}]}
`)
	r.do("lab", "up")
	out := r.do("lab", "ssh", "a", "-v", "id")
	for _, want := range []string{"UserKnownHostsFile=" + filepath.Join(r.folder("one"), "known_hosts") + "\n", "a -v id\n", "\nhello\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	r.fails(1, "refused", "lab", "dial", "a", "23")
}

// ^C while it waits leaves the lab up and says so; --timeout ends the waiting, with what is missing.
func TestLabUpInterrupted(t *testing.T) {
	r := newLabRig(t, false)
	r.file("lab.yaml", "name: one\nnodes:\n  a: {kind: netns, wait: [{exec: test -e "+filepath.Join(r.dir, "w", "go")+"}]}\n")
	up := r.command(t.Context(), "lab", "up")
	var errs safeLog
	up.Stderr = &errs
	out, err := up.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for buf := make([]byte, 1000); !strings.Contains(said.String(), "waits for"); {
		n, err := out.Read(buf)
		said.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v after %q", err, said.String())
		}
	}
	up.Process.Signal(syscall.SIGINT)
	up.Wait()
	if up.ProcessState.ExitCode() != 130 || !strings.Contains(errs.String(), "lab one stays up") {
		t.Errorf("exit status %d: %s", up.ProcessState.ExitCode(), errs.String())
	}
	r.fails(1, "a: starting", "lab", "up", "--timeout", "500ms")
	r.file("go", "")
	r.do("lab", "up")
	if s := r.ls("one"); s.Nodes[0].State != topology.StateReady {
		t.Errorf("%+v", s)
	}
}

// A start that cannot be leaves nothing and says why at the terminal.
func TestLabCannotStart(t *testing.T) {
	r := newLabRig(t, false)
	r.file("lab.yaml", "name: one\nnetworks: {lan: {forward: [\"1:a:80\"]}}\nnodes:\n  a: {kind: netns, interfaces: [lan]}\n")
	dir := shortDir(t)
	busy := r.command(t.Context(), "serve", "--qemu", "unix:"+filepath.Join(dir, "q.sock"), "--control", filepath.Join(dir, "c.sock"), "-p", "0:80")
	out, err := busy.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := busy.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { busy.Process.Kill(); busy.Wait() }()
	port := ""
	for b := bufio.NewScanner(out); port == "" && b.Scan(); {
		if rest, ok := strings.CutPrefix(b.Text(), "forward 127.0.0.1:"); ok {
			port, _, _ = strings.Cut(rest, ":")
		}
	}
	go io.Copy(io.Discard, out)
	r.file("lab.yaml", "name: one\nnetworks: {lan: {forward: [\""+port+":a:80\"]}}\nnodes:\n  a: {kind: netns, interfaces: [lan]}\n")
	r.fails(1, port, "lab", "up")
	r.nothing("after a start that failed")
}
