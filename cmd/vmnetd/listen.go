package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// errInUse is a socket that a living program listens at.
var errInUse = errors.New("somebody is listening there already")

// listenUnix listens at path with mode 0600. The folder is made, mode 0700, if it is the last part that is missing. A
// socket file whose program has gone is replaced; what is alive, or no socket, is left alone. remove takes the file
// away, unless it is another's by then. Call it before l is closed: until then nobody takes the file for stale, and its
// inode, by which we know it again, is nobody else's.
func listenUnix(path string) (l *net.UnixListener, remove func(), err error) {
	if path == "" {
		return nil, nil, usagef("no path")
	}
	// QEMU may be started elsewhere, and this is the path that it is told.
	if path, err = filepath.Abs(path); err != nil {
		return nil, nil, err
	}
	if len(path) > maxUnixPath {
		return nil, nil, usagef("the path has %d bytes and a socket's may have %d: choose a shorter one, in /run or /tmp", len(path), maxUnixPath)
	}
	dir := filepath.Dir(path)
	// A daemon that ends removes an empty folder: it may go between our making it and our using it, seldom twice.
	for try := 0; ; try++ {
		if err = os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, nil, err
		}
		l, remove, err = listenIn(dir, path)
		if !errors.Is(err, fs.ErrNotExist) || try == 3 {
			return l, remove, err
		}
	}
}

func listenIn(dir, path string) (*net.UnixListener, func(), error) {
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if err := clearStale(path); err != nil {
		return nil, nil, err
	}
	lc := net.ListenConfig{Control: privateSocket}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, nil, err
	}
	l := ln.(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	mine, err := os.Lstat(path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		l.Close()
		os.Remove(path)
		return nil, nil, err
	}
	return l, sync.OnceFunc(func() {
		if unlock, err := lockDir(dir); err == nil {
			defer unlock()
		}
		if now, err := os.Lstat(path); err == nil && os.SameFile(now, mine) {
			os.Remove(path)
		}
	}), nil
}

// clearStale removes a socket file that nobody listens at.
func clearStale(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and no socket: it is left alone", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second) // a queue that is full for a second is a program's that lives
	if err == nil {
		c.Close()
		return fmt.Errorf("%s: %w", path, errInUse)
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return os.Remove(path)
	}
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%s belongs to somebody else: %w", path, err)
	}
	return fmt.Errorf("%s: %w (%v)", path, errInUse, err)
}
