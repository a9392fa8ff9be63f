package netns

import (
	"io"
	"os"
	"strings"
	"testing"
)

// TestProcesses: what forks and forks finds an end.
func TestProcesses(t *testing.T) {
	s := space(t, SpaceOptions{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const script = `sed -n 's/^Max processes *//p' /proc/self/limits
f() { [ "$1" = 0 ] || { sleep 60 & f $(($1 - 1)); }; }
f 60
echo all`
	p, err := s.Start(Process{Args: []string{"sh", "-c", script}, Files: []*os.File{nil, w, w}, Processes: 40})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(r)
		done <- string(b)
	}()
	p.Wait()
	if err := s.End(t.Context()); err != nil { // those that sleep hold the pipe
		t.Fatal(err)
	}
	out := <-done
	if !strings.HasPrefix(out, "40 ") {
		t.Errorf("the bound is another: %q", out)
	}
	if bound := !strings.HasSuffix(out, "all\n"); bound != (os.Geteuid() != 0) { // root of the machine is not bound
		t.Errorf("uid %d: %q", os.Geteuid(), out)
	}
}
