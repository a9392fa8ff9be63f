//go:build unix

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxPID is how many bytes a pid file may have: a number of ten digits, and whitespace that a shell has put there.
const maxPID = 32

// pidFile is ours: it is there while we run, and locked, so that it is not taken for a left-over one when the number is
// another process's, or the other way round.
type pidFile struct {
	*socketFile
	locked *os.File // until we end
}

// checkPIDFile says why a pid file cannot be written at path: it is a living process's, or no pid file.
func checkPIDFile(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !fi.Mode().IsRegular():
		return fmt.Errorf("%s is there and no file: it is left alone", path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its daemon has ended meanwhile
	}
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPID+1))
	if err != nil {
		return err
	}
	number := strings.TrimSpace(string(text))
	pid, err := strconv.ParseInt(number, 10, 32)
	if (err != nil || pid <= 0 || len(text) > maxPID) && number != "" { // one that mktemp made is empty
		return fmt.Errorf("%s is there and no pid file: it is left alone", path)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s: process %d runs with it", path, pid)
	}
	// Those of other programs are not locked. A process that is younger than the file has but the same number; a second is
	// for the file system's clock and the process's, which are ticks apart, and no number comes round in that time.
	if number != "" && int(pid) != os.Getpid() && lives(int(pid)) {
		if began, ok := startedAt(int(pid)); !ok || !began.After(fi.ModTime().Add(time.Second)) {
			return fmt.Errorf("%s: process %d runs, and it is that one's", path, pid)
		}
	}
	return nil
}

// lives says whether there is a process of this number, whoever's.
func lives(pid int) bool {
	err := unix.Kill(pid, 0)
	return err == nil || err == unix.EPERM
}

// writePIDFile puts our number at path: nobody finds a part of it there.
func writePIDFile(path string) (*pidFile, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	unlock, err := lockDir(filepath.Dir(path)) // between looking and writing no other daemon does
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := checkPIDFile(path); err != nil {
		return nil, err
	}
	beside := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%d", filepath.Base(path), os.Getpid()))
	os.Remove(beside) // of a daemon that had our number and was killed between here and there
	f, err := os.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	var mine fs.FileInfo
	for _, step := range []func() error{
		func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) },
		func() error { _, err := fmt.Fprintf(f, "%d\n", os.Getpid()); return err },
		func() (err error) { mine, err = f.Stat(); return err },
		func() error { return os.Rename(beside, path) },
	} {
		if err := step(); err != nil {
			f.Close()
			os.Remove(beside)
			return nil, err
		}
	}
	return &pidFile{&socketFile{path: path, mine: mine}, f}, nil
}

// keepFromChildren has a descriptor that was handed to us end here.
func keepFromChildren(fd int) { unix.CloseOnExec(fd) }
