package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// What is typed at the terminal reaches the command once: the kernel sends it to vmnetd, too.
func TestRunTyped(t *testing.T) {
	ptm, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer ptm.Close()
	if err := unix.IoctlSetPointerInt(int(ptm.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skip(err)
	}
	n, err := unix.IoctlGetInt(int(ptm.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Skip(err)
	}
	pts, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer pts.Close()
	p := program(t, "vmnetd", "run", "--", "vmm", "-then", "wait:9")
	p.Stdin = pts
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	p.start()
	p.says("up")
	io.WriteString(ptm, "\x03") // ^C
	if got := p.says("signal"); got != "signal interrupt" {
		t.Error(got)
	}
	io.WriteString(ptm, "\x1c") // ^\
	if got := p.says("signal"); got != "signal quit" {
		t.Errorf("after one ^C and one ^\\: %q", got)
	}
	// By pid it is passed on; and nothing else has come before it.
	p.Process.Signal(syscall.SIGTERM)
	if got := p.says("signal"); got != "signal terminated" {
		t.Error(got)
	}
	p.ends(9)
	if s := p.err.String(); strings.TrimSpace(s) != "" {
		t.Errorf("stderr: %s", s)
	}
}
