package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/cage"
	"golang.org/x/sys/unix"
)

// A daemon in its cage cannot read its configuration any more: the file may be anywhere and anybody's, and be replaced by
// another. A process of ours that was started before can. It reads what it was told to at its start, and nothing that the
// daemon, or who has taken that over, says later; and it is in a cage of its own, in which it can do nothing else.

func openWithoutWaiting(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}

const librarianName = "vmnetd-config"

// librarian is one that waits to be asked.
type librarian struct {
	mu      sync.Mutex
	ask     *os.File
	answers *os.File
	in      *bufio.Reader
	wait    func() error
	once    sync.Once
}

// librarianTime is how long files on a slow disk, or over a network, may take.
const librarianTime = 15 * time.Second

// startLibrarian starts one for a configuration file and others.
func startLibrarian(path string, others []string) (*librarian, error) {
	askR, askW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer askR.Close()
	ansR, ansW, err := os.Pipe()
	if err != nil {
		askW.Close()
		return nil, err
	}
	defer ansW.Close()
	fail := func(err error) (*librarian, error) {
		askW.Close()
		ansR.Close()
		return nil, err
	}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil { // as of the sweeper
		for _, e := range open {
			if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
				unix.CloseOnExec(fd)
			}
		}
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{librarianName}
	cmd.Env = []string{"GOMAXPROCS=1", "GODEBUG=madvdontneed=1"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = askR, ansW, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	l := &librarian{ask: askW, answers: ansR, in: bufio.NewReader(ansR), wait: cmd.Wait}
	if err := json.NewEncoder(askW).Encode(append([]string{path}, others...)); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// read has everything read now.
func (l *librarian) read() (s fileSet, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	gone := func(err error) error {
		return fmt.Errorf("process %s, which reads the configuration for the daemon in its sandbox, has gone (%w): start the daemon anew", librarianName, err)
	}
	if _, err := l.ask.Write([]byte{'\n'}); err != nil {
		return s, gone(err)
	}
	l.answers.SetReadDeadline(time.Now().Add(librarianTime))
	line, err := l.in.ReadBytes('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.close() // what comes late must not be taken for the next answer
		return s, fmt.Errorf("the files could not be read within %v: where they are does not answer; to read them again, start the daemon anew", librarianTime)
	}
	if err != nil {
		return s, gone(err)
	}
	return s, json.Unmarshal(line, &s)
}

// close ends it. It may be called again, and of nil.
func (l *librarian) close() {
	if l != nil {
		l.once.Do(func() {
			l.ask.Close()
			l.answers.Close()
			go l.wait()
		})
	}
}

// init is where it lives. Nothing but startLibrarian starts a program by this name.
func init() {
	if len(os.Args) != 1 || os.Args[0] != librarianName {
		return
	}
	if err := serveFiles(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", librarianName, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serveFiles(from io.Reader, to io.Writer) error {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE) // the daemon's end is ours
	in := bufio.NewReader(from)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return nil // the daemon could not start
	}
	var paths []string
	if err := json.Unmarshal(line, &paths); err != nil || len(paths) == 0 {
		return errors.New("nothing was said to read")
	}
	plan := cage.Plan{Read: []string{"/"}, Capabilities: []string{"cap_dac_read_search"}}
	if _, err := plan.Close(); err != nil {
		return err
	}
	forgetStart() // it waits as long as the daemon lives
	out := json.NewEncoder(to)
	for {
		if _, err := in.ReadByte(); err != nil {
			return nil
		}
		if err := out.Encode(readSet(paths[0], paths[1:])); err != nil {
			return nil
		}
		forgetStart()
	}
}
