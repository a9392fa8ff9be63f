package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/vmnetd/vmnetd/cage"
	"golang.org/x/sys/unix"
)

// A daemon that was root cannot take its socket files away at the end: they lie in root's folders, or in those of others
// which root needs a capability for. So before it gives that away it starts this program once more, to do nothing but that. The sweeper is told what they are while the daemon
// is still root, hears two words afterwards, and is in a cage of its own.

// sweeperName is what the process is called.
const sweeperName = "vmnetd-sweeper"

// sweepings are what it takes away.
type sweepings struct {
	Files []sweeping `json:"files"`
	Dirs  []string   `json:"dirs"` // if they are empty by then, the last first
}

// sweeping is a file as it was: another that has its name by then is left.
type sweeping struct {
	Path string `json:"path"`
	Door bool   `json:"door"` // it goes first, so that nobody tries
	Dev  uint64 `json:"dev"`
	Ino  uint64 `json:"ino"`
}

// look adds a file, if it is there.
func (s *sweepings) look(path string, door bool) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		s.Files = append(s.Files, sweeping{path, door, uint64(st.Dev), st.Ino})
	}
}

// own adds the pid file.
func (s *sweepings) own(sv *service) {
	if sv == nil || sv.pid == nil {
		return
	}
	if st, ok := sv.pid.mine.Sys().(*syscall.Stat_t); ok {
		s.Files = append(s.Files, sweeping{sv.pid.path, false, uint64(st.Dev), st.Ino})
	}
}

// sweeper is one that waits.
type sweeper struct {
	words io.WriteCloser
	wait  func() error
	once  [2]sync.Once
}

// The words.
const (
	sweepDoors = 'd'
	sweepAll   = 'a' // and end
)

// doors has the doors' files taken away.
func (s *sweeper) doors() {
	if s != nil {
		s.once[0].Do(func() { s.words.Write([]byte{sweepDoors}) })
	}
}

// all has the rest taken away, and returns when it is.
func (s *sweeper) all() {
	if s != nil {
		s.once[1].Do(func() {
			s.words.Write([]byte{sweepAll})
			s.words.Close()
			s.wait()
		})
	}
}

// startSweeper starts one. If this process ends without a word, nothing is swept, as without a sweeper.
func startSweeper(s sweepings) (*sweeper, error) {
	list, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	// What we were started with, as --ready-fd, is not for it: who waits for its end would wait for the sweeper's.
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		for _, e := range open {
			if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
				unix.CloseOnExec(fd)
			}
		}
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{sweeperName}
	cmd.Env = []string{"GOMAXPROCS=1", "GODEBUG=madvdontneed=1"}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stderr = r, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what is typed at our terminal is not for it
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, err
	}
	if _, err := w.Write(append(list, '\n')); err != nil {
		w.Close()
		cmd.Wait()
		return nil, err
	}
	return &sweeper{words: w, wait: cmd.Wait}, nil
}

// init is where the sweeper lives. Nothing but startSweeper starts a program by this name.
func init() {
	if len(os.Args) != 1 || os.Args[0] != sweeperName {
		return
	}
	if err := sweep(os.Stdin); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", sweeperName, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func sweep(in io.Reader) error {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT) // the daemon's end is ours, and comes with them
	d := json.NewDecoder(in)
	var s sweepings
	if err := d.Decode(&s); err != nil {
		return err
	}
	plan := cage.Plan{
		Read:         []string{"/proc/self"},
		Capabilities: []string{"cap_dac_override"}, // folders may be other users'
	}
	for _, f := range s.Files {
		plan.Sockets = append(plan.Sockets, filepath.Dir(f.Path))
	}
	for _, dir := range s.Dirs {
		plan.Empty = append(plan.Empty, filepath.Dir(dir))
	}
	if _, err := plan.Close(); err != nil {
		return err
	}
	forgetStart() // it waits as long as the daemon lives
	words := io.MultiReader(d.Buffered(), in)
	take := func(which func(sweeping) bool) {
		for _, f := range s.Files {
			var st unix.Stat_t
			if which(f) && unix.Lstat(f.Path, &st) == nil && uint64(st.Dev) == f.Dev && st.Ino == f.Ino {
				unix.Unlink(f.Path) // if it cannot be, the next daemon finds it stale
			}
		}
	}
	for word := make([]byte, 1); ; {
		if _, err := io.ReadFull(words, word); err != nil {
			return nil
		}
		switch word[0] {
		case sweepDoors:
			take(func(f sweeping) bool { return f.Door })
		case sweepAll:
			take(func(sweeping) bool { return true })
			for _, dir := range slices.Backward(s.Dirs) {
				unix.Rmdir(dir) // does nothing to one that is not empty
			}
			return nil
		}
	}
}
