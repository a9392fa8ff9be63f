package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/vmnetd/vmnetd/lab/topology"
)

// recorder is a test that Up is in, for this one to see what becomes of it.
type recorder struct {
	mu       sync.Mutex
	out      bytes.Buffer
	cleanups []func()
	failed   bool
	skipped  bool
	ctx      context.Context
}

func (r *recorder) Helper()                  {}
func (r *recorder) Context() context.Context { return r.ctx }
func (r *recorder) Output() io.Writer        { return r }
func (r *recorder) Cleanup(f func())         { r.cleanups = append(r.cleanups, f) }

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.Write(p)
}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *recorder) Logf(format string, args ...any) { fmt.Fprintf(r, format+"\n", args...) }

func (r *recorder) Errorf(format string, args ...any) {
	r.Logf(format, args...)
	r.mu.Lock()
	r.failed = true
	r.mu.Unlock()
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Skipf(format string, args ...any) {
	r.Logf(format, args...)
	r.skipped = true
	runtime.Goexit()
}

// run is the test's run, with what comes behind it.
func (r *recorder) run(t *testing.T, do func()) string {
	var cancel context.CancelFunc
	r.ctx, cancel = context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(do)
	wg.Wait()
	cancel()
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
	return r.out.String()
}

func TestUp(t *testing.T) {
	needSpaces(t)
	file := filepath.Join(t.TempDir(), "lab.yaml")
	os.WriteFile(filepath.Join(filepath.Dir(file), "beside"), []byte("in the file's folder\n"), 0o644)
	os.Chmod(filepath.Dir(file), 0o755)
	os.WriteFile(file, []byte(`name: up
vars: {status: 0}
networks: {lan: {net: 10.77.3.0/24}}
nodes:
  web: {kind: netns, interfaces: [lan], command: [sh, -c, "cat beside; echo the last words; exit ${status}"], wait: exit}
`), 0o644)
	r := &recorder{}
	var l *Lab
	said := r.run(t, func() { l = Up(r, file) })
	if r.Failed() || l == nil {
		t.Fatalf("failed: %s", said)
	}
	if got := string(l.nodesConsole("web")); got != "" {
		t.Errorf("a lab that has ended has a node that said %q", got)
	}

	r = &recorder{}
	said = r.run(t, func() { Up(r, file, Set("status", "3"), Verbose()); t.Error("Up returned") })
	for _, want := range []string{"lab up:\nweb: its command has ended with status 3; its console's last line: the last words",
		"node web is failed (its command has ended with status 3", "; its console:\nin the file's folder\nthe last words\n"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in:\n%s", want, said)
		}
	}
	if !r.Failed() {
		t.Error("it has not failed")
	}
	r = &recorder{}
	if said = r.run(t, func() { Up(r, file, Set("stauts", "3")) }); !r.Failed() || !strings.Contains(said, "stauts") {
		t.Errorf("a variable that is none: %s", said)
	}
}

func (l *Lab) nodesConsole(name string) []byte {
	if n := l.Node(name); n != nil {
		return n.Console().Tail(0)
	}
	return nil
}

// A network that cannot be is an error of its own; what is not in it is up all the same, and once it can be the same file
// brings up the rest.
func TestNetworkFails(t *testing.T) {
	needSpaces(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	text := fmt.Sprintf(`name: fails
networks:
  front: {net: 10.77.4.0/24, forward: ["127.0.0.1:%d:web:80"]}
  back: {uplink: false, net: 10.77.5.0/24}
nodes:
  web: {kind: netns, interfaces: [front, back]}
  db: {kind: netns, interfaces: [back]}
`, taken.Addr().(*net.TCPAddr).Port)
	l, err := New(Config{Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := l.Apply(t.Context(), parse(t, text)); err == nil || !strings.Contains(err.Error(), "network front: ") || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a port that another program has: %v", err)
	}
	if err := l.Node("db").Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := l.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "web: network front: ") {
		t.Errorf("its node: %v", err)
	}
	st := l.Status()
	if !strings.Contains(st.Networks[0].Error, "in use") || st.Networks[1].Error != "" {
		t.Errorf("status %+v", st.Networks)
	}
	pids, back := l.Node("db").Status().Started, l.Network("back")
	taken.Close()
	changes, err := l.Apply(t.Context(), parse(t, text))
	if err != nil {
		t.Fatal(err)
	}
	want := []topology.Change{{What: "network front", Action: actStart, Why: "it had failed"}, {What: "node web", Action: actStart, Why: "it had failed"}}
	if fmt.Sprint(changes) != fmt.Sprint(want) {
		t.Errorf("the same again: %v", changes)
	}
	if err := l.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if l.Node("db").Status().Started != pids || l.Network("back") != back {
		t.Error("what was up is another")
	}
	if st := l.Status(); st.Networks[0].Error != "" {
		t.Errorf("status %+v", st.Networks)
	}
}
