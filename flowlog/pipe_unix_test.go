//go:build unix

package flowlog

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

// A pipe that nobody reads holds no conversation, and not the end of the daemon either; who reads it again learns how
// much there was.
func TestPipeUnread(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	tab := table(t)
	l := open(t, Config{Path: path, Size: LeastSize, Keep: 1})
	l.Follow("default", tab, nil)
	const all = 6000 // changes are twice as many: more than the pipe and the table keep together
	for i := range all {
		f, _ := tab.Open(query(i), nil)
		f.End(flows.ReasonClosed)
	}
	if l.Folder() != "" {
		t.Errorf("it would make files in %s", l.Folder())
	}
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sum, lost := 0, 0
	for in := bufio.NewReader(r); sum < 2*all; {
		line, err := in.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if e.Event == "lost" {
			sum += int(e.Lost)
			lost += int(e.Lost)
		} else {
			sum++
		}
	}
	if sum != 2*all || lost == 0 || uint64(lost) != l.Status().Lost {
		t.Errorf("%d told, %d of them lost, of %d; %+v", sum, lost, 2*all, l.Status())
	}
	r.Close()

	for i := range 2000 { // nobody reads again
		f, _ := tab.Open(query(i), nil)
		f.End(flows.ReasonClosed)
	}
	eventually(t, "a write that waits", func() bool { return l.since.Load() != 0 })
	time.Sleep(pace) // it waits, rather than goes on
	began := time.Now()
	l.Close()
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("closed after %v", d)
	}
}

func TestDeviceFull(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("no /dev/full here")
	}
	tab := table(t)
	l := open(t, Config{Path: "/dev/full"})
	l.Follow("default", tab, nil)
	tab.Refused(query(1), flows.Verdict{Reason: flows.ReasonPolicy})
	eventually(t, "a lost line", func() bool { s := l.Status(); return s.Lost == 1 && strings.Contains(s.Error, "no space left") })
	l.Close()
}
