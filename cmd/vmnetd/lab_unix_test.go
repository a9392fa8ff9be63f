//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/lab/topology"
)

// own has this process's labs in a folder of the test's.
func ownLabs(t *testing.T) {
	t.Helper()
	dir := shortDir(t)
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(dir, "r"))
	t.Setenv("XDG_STATE_HOME", filepath.Join(dir, "s"))
	if err := os.Mkdir(filepath.Join(dir, "r"), 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestLabNames(t *testing.T) {
	ownLabs(t)
	for _, bad := range []string{"", ".", "..", "a/b", "../x", "a b", "a.b", "-x", "a\x00", "ä", "a\n", strings.Repeat("a", maxLabName+1)} {
		if d, err := labNamed(bad); err == nil {
			t.Errorf("%q is taken for a lab's name: %s", bad, d.path)
		}
	}
	for _, good := range []string{"a", "shop-2", "A_b", strings.Repeat("a", maxLabName)} {
		d, err := labNamed(good)
		if err != nil || filepath.Dir(d.path) != runtimeDir() {
			t.Errorf("%q: %v %v", good, d, err)
		}
	}
	for path, want := range map[string]bool{
		"/home/me/.local/state/vmnetd/lab-shop": true, "/var/lib/vmnetd/lab-shop": true,
		"/home/me": false, "/": false, "": false, "/x/vmnetd/lab-other": false, "vmnetd/lab-shop": false,
		"/x/vmnetd/../vmnetd/lab-shop": false, "/x/vmnetd/lab-shop/": false, "/x/vmnetd/lab-shop/..": false, "/x/lab-shop": false,
	} {
		if got := keepsOf(path, "shop"); got != want {
			t.Errorf("overlays in %q: %v, want %v", path, got, want)
		}
	}
}

// A lab's folder is made and taken away by one at a time, and nothing is left of the lock.
func TestLabLock(t *testing.T) {
	ownLabs(t)
	d, err := labNamed("shop")
	if err != nil {
		t.Fatal(err)
	}
	var inside, most, waited int
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				unlock, err := d.lock(t.Context(), func() { mu.Lock(); waited++; mu.Unlock() })
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				inside++
				most = max(most, inside)
				mu.Unlock()
				time.Sleep(time.Millisecond)
				mu.Lock()
				inside--
				mu.Unlock()
				unlock()
			}
		})
	}
	all.Wait()
	if most != 1 {
		t.Errorf("%d had the lock at once", most)
	}
	if _, err := os.Lstat(runtimeDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
	unlock, err := d.lock(t.Context(), func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan bool, 1)
	go func() { <-told; cancel() }()
	if _, err := d.lock(ctx, func() { told <- true }); !errors.Is(err, context.Canceled) {
		t.Errorf("a lock that is held: %v", err)
	}
}

// Whether a lab's process lives is certain: it is the lock, which goes with the process, and no number.
func TestLabState(t *testing.T) {
	if path := os.Getenv("VMNETD_TEST_HOLD"); path != "" {
		if _, err := holdLock(path); err != nil {
			t.Fatal(err)
		}
		fmt.Println("held")
		select {}
	}
	ownLabs(t)
	d, _ := labNamed("shop")
	want := func(what string, st labState, pid int) {
		t.Helper()
		got, by, err := d.state()
		if err != nil || got != st || by != pid {
			t.Errorf("%s: state %v of %d, %v; want %v of %d", what, got, by, err, st, pid)
		}
	}
	want("nothing", labNone, 0)
	if _, err := makeRuntimeDir(); err != nil {
		t.Fatal(err)
	}
	if err := d.make(); err != nil {
		t.Fatal(err)
	}
	want("a folder", labStale, 0)
	labRecord{Name: "shop", PID: os.Getpid(), Folder: d.path, File: "/x"}.write()
	want("a record of a number that is ours", labStale, 0)
	p := program(t, os.Args[0], "-test.run=^TestLabState$")
	p.Env = append(p.Env, "VMNETD_TEST_HOLD="+d.file(labAlive))
	p.start()
	p.says("held")
	want("held", labUp, p.Process.Pid)
	if _, err := d.clean(t.Context()); !errors.Is(err, errLabLives) {
		t.Errorf("a lab that is up is cleaned away: %v", err)
	}
	want("held still", labUp, p.Process.Pid)
	p.Process.Signal(syscall.SIGKILL)
	p.ends(-1)
	want("killed", labStale, 0)
	if list := labs(); len(list) != 1 || list[0] != d {
		t.Errorf("labs: %v", list)
	}
	if left, err := d.clean(t.Context()); err != nil || !slices.Equal(left.Folders, []string{d.path}) {
		t.Errorf("clean: %+v %v", left, err)
	}
	want("cleaned", labNone, 0)
	if left, err := d.clean(t.Context()); err != nil || left.String() != "" {
		t.Errorf("clean again: %+v %v", left, err)
	}
}

// What stands where a lab's folder should be and is none of ours is left alone.
func TestLabHostileFolder(t *testing.T) {
	ownLabs(t)
	if _, err := makeRuntimeDir(); err != nil {
		t.Fatal(err)
	}
	d, _ := labNamed("shop")
	precious := filepath.Join(filepath.Dir(runtimeDir()), "precious")
	os.Mkdir(precious, 0o700)
	os.WriteFile(filepath.Join(precious, "file"), nil, 0o600)
	refused := func(what string) {
		t.Helper()
		if _, _, err := d.state(); err == nil {
			t.Errorf("%s: taken for a lab's folder", what)
		}
		if _, err := d.clean(t.Context()); err == nil {
			t.Errorf("%s: cleaned", what)
		}
		if err := d.down(t.Context(), &bytes.Buffer{}, &bytes.Buffer{}); err == nil {
			t.Errorf("%s: down", what)
		}
		if len(labs()) != 0 {
			t.Errorf("%s: listed", what)
		}
		if _, err := os.Stat(filepath.Join(precious, "file")); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := os.Lstat(d.path); err != nil {
			t.Errorf("%s: removed", what)
		}
		os.Remove(d.path)
	}
	os.Symlink(precious, d.path)
	refused("a link")
	os.WriteFile(d.path, []byte("x"), 0o600)
	refused("a file")
	os.Mkdir(d.path, 0o700)
	os.Chmod(d.path, 0o777)
	refused("a folder that is open to all")

	// A record leads nowhere else.
	os.Mkdir(d.path, 0o700)
	for _, keep := range []string{precious, filepath.Join(precious, "..", "precious"), "/", "precious"} {
		if err := (labRecord{Name: "shop", Folder: d.path, Keep: keep}).write(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.clean(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(precious, "file")); err != nil {
			t.Fatalf("keep %s: %v", keep, err)
		}
		os.Mkdir(d.path, 0o700)
	}
	// Nor does what is in the folder: links in it are removed, not what they lead to; and what may not be written to.
	os.Symlink(precious, d.file("n"))
	os.Mkdir(d.file("ro"), 0o700)
	os.WriteFile(filepath.Join(d.file("ro"), "x"), nil, 0o400)
	os.Chmod(d.file("ro"), 0o500)
	syscall.Mkfifo(d.file(labFile), 0o600)
	if _, err := d.clean(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(d.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
	if _, err := os.Stat(filepath.Join(precious, "file")); err != nil {
		t.Fatal(err)
	}
	// A record that is none is no hindrance.
	for _, text := range []string{"", "{", "null", "[]", `{"pid":1,"keep":"/"}`, strings.Repeat("x", maxLabRecord+1)} {
		os.Mkdir(d.path, 0o700)
		os.WriteFile(d.file(labFile), []byte(text), 0o600)
		if st, _, err := d.state(); st != labStale || err != nil {
			t.Errorf("record %.20q: %v %v", text, st, err)
		}
		if s, there := d.shown(t.Context()); !there || s.State != "killed" {
			t.Errorf("record %.20q: %+v", text, s)
		}
		if _, err := d.clean(t.Context()); err != nil {
			t.Errorf("record %.20q: %v", text, err)
		}
	}
}

// What is written to a log for ever takes two files.
func TestBoundedLog(t *testing.T) {
	if os.Getenv("VMNETD_TEST_LOG") == "" { // in a process of its own: its standard output goes there
		p := program(t, os.Args[0], "-test.run=^TestBoundedLog$", "-test.v")
		p.Env = append(p.Env, "VMNETD_TEST_LOG="+p.run)
		p.start().ends(0)
		for _, name := range []string{"log", "log.1"} {
			fi, err := os.Stat(filepath.Join(p.run, name))
			if err != nil || fi.Size() > 5000 || fi.Size() == 0 {
				t.Errorf("%s: %v %v", name, fi, err)
			}
		}
		if list, _ := os.ReadDir(p.run); len(list) != 2 {
			t.Errorf("%v", list)
		}
		if s := tailOf(filepath.Join(p.run, "log")); !strings.Contains(s, "line 999\n") {
			t.Errorf("the last line is not at the end: %q", s)
		}
		return
	}
	l, err := openBoundedLog(filepath.Join(os.Getenv("VMNETD_TEST_LOG"), "log"), 4000)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		if _, err := fmt.Fprintf(l, "line %03d\n", i); err != nil {
			t.Fatal(err)
		}
	}
}

// One end that half-closes is heard at the other, which may still speak.
func TestLabRelay(t *testing.T) {
	pair := func() (a, b *net.UnixConn) {
		fds, err := unixSocketpair(syscall.SOCK_STREAM)
		if err != nil {
			t.Fatal(err)
		}
		open := func(fd int) *net.UnixConn {
			f := os.NewFile(uintptr(fd), "")
			defer f.Close()
			c, err := net.FileConn(f)
			if err != nil {
				t.Fatal(err)
			}
			return c.(*net.UnixConn)
		}
		return open(fds[0]), open(fds[1])
	}
	client, a := pair()
	b, server := pair()
	done := make(chan struct{})
	go func() { relay(a, b, []byte("first ")); a.Close(); b.Close(); close(done) }()
	client.Write([]byte("ask"))
	client.CloseWrite()
	var got bytes.Buffer
	got.ReadFrom(server)
	server.Write([]byte("answer " + got.String()))
	server.Close()
	got.Reset()
	got.ReadFrom(client)
	client.Close()
	if got.String() != "answer first ask" {
		t.Errorf("%q", got.String())
	}
	<-done
}

// An answer is read to its line's end, and not beyond: what comes behind is the conversation's.
func TestLabDoorAnswer(t *testing.T) {
	ownLabs(t)
	makeRuntimeDir()
	d, _ := labNamed("shop")
	if err := d.make(); err != nil {
		t.Fatal(err)
	}
	l, _, err := listenUnix(d.file(labDoor))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	answers := []func(*net.UnixConn){
		func(c *net.UnixConn) {
			answerDoor(c, doorAnswer{Files: 2, Env: []string{"A=1"}}, f, f)
			c.Write([]byte("more"))
		},
		func(c *net.UnixConn) { answerDoor(c, doorAnswer{Error: "no", Hint: "yes"}) },
		func(c *net.UnixConn) { answerDoor(c, doorAnswer{Files: 1}) },
		func(c *net.UnixConn) { c.Write([]byte("what\n")) },
		func(c *net.UnixConn) { c.Write([]byte(`{"err`)) },
	}
	go func() {
		for _, answer := range answers {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			c.Read(make([]byte, 100))
			answer(c)
			c.Close()
		}
	}()
	c, a, files, err := callDoor(t.Context(), d, doorRequest{Op: "spaces", Node: "x"})
	if err != nil || len(files) != 2 || len(a.Env) != 1 {
		t.Fatalf("%+v %v %v", a, files, err)
	}
	for _, f := range files {
		f.Close()
	}
	rest := make([]byte, 100)
	if n, _ := c.Read(rest); string(rest[:n]) != "more" {
		t.Errorf("behind the answer: %q", rest[:n])
	}
	c.Close()
	var hint hintError
	if _, _, _, err := callDoor(t.Context(), d, doorRequest{}); err == nil || err.Error() != "no" || !errors.As(err, &hint) || hint.hint != "yes" {
		t.Errorf("an error: %v", err)
	}
	for range answers[2:] {
		if c, _, _, err := callDoor(t.Context(), d, doorRequest{}); err == nil {
			c.Close()
			t.Error("a wrong answer is taken")
		}
	}
}

func TestLabProgress(t *testing.T) {
	st := topology.Status{Nodes: []topology.NodeStatus{
		{Name: "a", State: topology.StateStarting, WaitsFor: "tcp 80", Started: time.Now()},
		{Name: "b", State: topology.StateWaiting, WaitsFor: "node a"},
	}}
	var b bytes.Buffer
	p := newProgress(&b, "shop")
	p.show(st)
	p.show(st)
	st.Nodes[0].State, st.Nodes[0].ReadyAfter, st.Nodes[0].WaitsFor = topology.StateReady, 1200*time.Millisecond, ""
	p.show(st)
	if want := "a: starting, waits for tcp 80\nb: waiting, waits for node a\na: ready in 1.2 s\n"; b.String() != want {
		t.Errorf("without a terminal %q, want %q", b.String(), want)
	}
	if got := p.missing(); got != "b: waiting, waits for node a" {
		t.Errorf("missing %q", got)
	}
	b.Reset()
	p = newProgress(&b, "shop")
	p.live = func() (int, int, bool) { return 12, 24, true }
	p.show(st)
	p.show(st)
	if want := "\r\x1b[Ka: ready in\n\r\x1b[Kb: waiting,\n\x1b[J"; b.String() != want+"\x1b[2A"+want {
		t.Errorf("on a terminal %q", b.String())
	}
	b.Reset()
	p = newProgress(&b, "shop")
	p.live = func() (int, int, bool) { return 80, 3, true } // lower than the list
	st.Nodes[1].Error, st.Nodes[1].State, st.Nodes[1].WaitsFor = "a\x1b[2Jb", topology.StateFailed, ""
	p.show(st)
	if want := "a: ready in 1.2 s\nb: failed, a?[2Jb\n"; b.String() != want {
		t.Errorf("on a low terminal %q, want %q", b.String(), want)
	}
}

func TestLabSSHArgs(t *testing.T) {
	d := labDir{"shop", "/run/user/1000/vm netd/100%/lab-shop"}
	n := topology.NodeStatus{Name: "web1", Started: time.Unix(1, 0)}
	got := strings.Join(sshArgs(d, n, "root", []string{"-v", "--", "id"}), "\n")
	for _, want := range []string{
		" lab dial --lab shop web1 22\n", "\n" + `UserKnownHostsFile="/run/user/1000/vm netd/100%%/lab-shop/known_hosts"` + "\n",
		"\nHostKeyAlias=web1.", "\nUser=root\nweb1\n-v\n--\nid",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if again := strings.Join(sshArgs(d, topology.NodeStatus{Name: "web1", Started: time.Unix(2, 0)}, "", nil), "\n"); strings.Contains(again, "User=root") || again[:200] == got[:200] && strings.Contains(again, "HostKeyAlias=web1.gc") {
		t.Errorf("after a restart the same key is wanted:\n%s", again)
	}
	if got := sshArgs(d, n, "root", []string{"-l", "me"}); slices.Contains(got, "User=root") {
		t.Errorf("%q", got)
	}
}
