package lab

import (
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// What a process leaves behind, with its output open, is neither waited for nor left.
func TestProcessLeavesSomebody(t *testing.T) {
	ours, theirs, err := socketPair(syscall.SOCK_STREAM, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	p, err := startProcess(exec.Command("sh", "-c", "sleep 1000 & exit 0"), []*os.File{theirs})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.ended:
	case <-time.After(30 * time.Second):
		p.signal(syscall.SIGKILL)
		t.Fatal("its end is not seen")
	}
	if code, err := p.exit(); code != 0 || err != nil {
		t.Errorf("status %d, %v", code, err)
	}
	p.rest()
	ours.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := ours.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("it holds the socket: %v", err)
	}
}
