package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/vmnetd/vmnetd/lab"
	"github.com/vmnetd/vmnetd/netns"
	"golang.org/x/sys/unix"
)

// execSpace runs a command in a netns node: as our child, with our terminal.
func execSpace(d labDir, node string, argv []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), doorPatience)
	conn, a, files, err := callDoor(ctx, d, doorRequest{Op: "spaces", Node: node})
	cancel()
	if err != nil {
		return err
	}
	conn.Close()
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	signals := make(chan os.Signal, 16)
	notify(signals, passSignals)
	defer signal.Stop(signals)
	p, err := netns.Join(files, netns.Process{Args: argv, Env: spaceEnv(d, node, a.Env), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Processes: lab.NodeProcesses})
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", argv[0], exec.ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		return cannotExec{err}
	case err != nil:
		return hinted(err)
	}
	type end struct {
		st  *os.ProcessState
		err error
	}
	ended := make(chan end, 1)
	go func() {
		st, err := p.Wait()
		ended <- end{st, err}
	}()
	for {
		select {
		case s := <-signals:
			if typed[s] && foreground() {
				continue // it came from the terminal, and the command has its own
			}
			p.Signal(s)
		case e := <-ended:
			if e.err != nil {
				return e.err
			}
			if ws, ok := e.st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
				return exitError(128 + int(ws.Signal()))
			}
			if code := e.st.ExitCode(); code != 0 {
				return exitError(code)
			}
			return nil
		}
	}
}

// spaceEnv is ours, with the node's own above it and the lab's mark.
func spaceEnv(d labDir, node string, own []string) []string {
	var env []string
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); name != labEnv && name != controlEnv {
			env = append(env, v)
		}
	}
	env = append(env, own...)
	return append(env, d.mark(), "VMNETD_NODE="+node)
}

// killLab ends a lab's process that does not answer: that which holds the lab's lock, and no other.
func killLab(d labDir, pid int, hard bool) {
	sig := unix.SIGTERM
	if hard {
		sig = unix.SIGKILL
	}
	p := markedProcess{pid, startTicks(pid)}
	if st, now, err := d.state(); err == nil && st == labUp && now == pid && pid > 0 {
		p.signal(sig)
	}
}
