//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmnetd/vmnetd/e2e/vm/channel"
)

// portName is the virtio-serial port's name on QEMU's command line (e2e/vm).
const portName = "vmnetd.agent"

// agent serves the command channel until the host goes away. Init then switches the machine off,
// so that no guest outlives the test that started it.
func agent(ctx context.Context, _ []string) error {
	if tty := os.Getenv("vm_agent"); tty != "" { // from the kernel's command line
		f, err := rawTerminal(tty)
		if err != nil {
			return err
		}
		return channel.Serve(f)
	}
	dev, err := port()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return channel.Serve(&connected{File: f})
}

// port finds the device of our port. It appears a moment after its driver.
func port() (string, error) {
	deadline := time.Now().Add(10 * time.Second) // a loaded host under emulation needs well under one
	for {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(b)) == portName {
				return "/dev/" + filepath.Base(filepath.Dir(n)), nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("no virtio-serial port named %s", portName)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// connected is the port, with two oddities of its beginning left out.
//
// The driver gives ends of file until the device has told it that the host's side is open.
//
// And QEMU looks whether the port takes bytes only when its main loop comes round, which our
// opening the port does not cause: in a guest that goes idle at once, the host's first bytes
// have been seen to wait for ten seconds. A guest with a timer running keeps that loop going.
type connected struct {
	*os.File
	seen bool
}

func (c *connected) Read(b []byte) (int, error) {
	giveUp := time.Now().Add(10 * time.Second)
	for !c.seen {
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			return 0, err
		}
		n, err := c.File.Read(b)
		switch {
		case n > 0:
			c.seen = true
			return n, c.SetReadDeadline(time.Time{})
		case errors.Is(err, os.ErrDeadlineExceeded): // open, and nothing said yet
		case errors.Is(err, io.EOF) && time.Now().Before(giveUp):
			time.Sleep(5 * time.Millisecond)
		default:
			return n, err
		}
	}
	return c.File.Read(b)
}
