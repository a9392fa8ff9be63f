//go:build unix

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// labStartPatience is how long a lab's process may take until it says what came of it: it reads a file, starts networks and
// forks. On a machine that swaps that is long.
const labStartPatience = time.Minute

// startLab starts the process of a lab, in a session of its own, and waits until nodes are on their way. The caller has the
// lock, and made the folder.
func startLab(ctx context.Context, d labDir, s labStart) (labStarted, error) {
	var a labStarted
	log, err := os.OpenFile(d.file(labLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return a, err
	}
	defer log.Close()
	ours, theirs, err := socketPair()
	if err != nil {
		return a, err
	}
	defer ours.Close()
	defer theirs.Close()
	keepAll() // what we were started with is not for it: who waits for its end would wait for the lab's
	cmd := exec.Command(ownProgram())
	cmd.Args = []string{os.Args[0], "lab", "run"}
	cmd.Env = append(os.Environ(), d.mark())
	cmd.Dir = "/" // what we stand in may be unmounted
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what is typed at our terminal is not for it
	if err := cmd.Start(); err != nil {
		return a, err
	}
	theirs.Close()
	b, err := json.Marshal(s)
	if err != nil {
		return a, err
	}
	ours.SetDeadline(time.Now().Add(labStartPatience))
	defer context.AfterFunc(ctx, func() { ours.SetDeadline(time.Unix(1, 0)) })()
	ours.Write(append(b, '\n')) // what is wrong is seen at the answer
	line, err := bufio.NewReader(io.LimitReader(ours, maxDoorLine)).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	if err == nil && a.Error == "" {
		cmd.Process.Release()
		return a, nil
	}
	// It has said why, or has died, or hangs.
	if err != nil {
		cmd.Process.Signal(unix.SIGTERM)
	}
	over := time.AfterFunc(labGrace, func() { cmd.Process.Kill() })
	ended := cmd.Wait()
	over.Stop()
	switch {
	case err == nil && a.Hint != "":
		return a, hintError{errors.New(a.Error), a.Hint}
	case err == nil:
		return a, errors.New(a.Error)
	case ctx.Err() != nil:
		return a, context.Cause(ctx)
	}
	said := tailOf(d.file(labLog))
	if said != "" {
		said = ":\n" + said
	}
	return a, fmt.Errorf("the lab's process has ended (%v)%s", ended, said)
}

// tailOf is the end of a log, for people.
func tailOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 2 << 10 // a screen
	if fi, err := f.Stat(); err == nil && fi.Size() > most {
		f.Seek(-most, io.SeekEnd)
	}
	b, _ := io.ReadAll(io.LimitReader(f, most))
	return string(b)
}

// boundedLog is the log that also our standard output and error are: what a panic says goes there. When it is too large it
// is put aside, in place of the one before.
type boundedLog struct {
	path string
	most int64

	mu   sync.Mutex
	f    *os.File
	size int64
}

func openBoundedLog(path string, most int64) (*boundedLog, error) {
	l := &boundedLog{path: path, most: most}
	return l, l.open()
}

func (l *boundedLog) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err == nil {
		err = errors.Join(dup2(int(f.Fd()), 1), dup2(int(f.Fd()), 2))
	}
	if err != nil {
		f.Close()
		return err
	}
	l.f, l.size = f, fi.Size()
	return nil
}

func (l *boundedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(p)) > l.most && l.size > 0 {
		old := l.f
		if os.Rename(l.path, l.path+".1") == nil && l.open() == nil {
			old.Close()
		} else {
			l.size = 0 // the disk is full, or the folder has gone: not at every line again
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}
