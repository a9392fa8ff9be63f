package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	return listenUnixAs("unix", path)
}

// listenUnixAs is listenUnix for another kind of socket: "unixpacket".
func listenUnixAs(network, path string) (l *net.UnixListener, remove func(), err error) {
	at, err := bindUnix(path, func(lc net.ListenConfig, path string) (io.Closer, error) {
		ln, err := lc.Listen(context.Background(), network, path)
		if err != nil {
			return nil, err
		}
		l = ln.(*net.UnixListener)
		l.SetUnlinkOnClose(false)
		return l, nil
	})
	if err != nil {
		return nil, nil, err
	}
	return l, at.remove, nil
}

// socketFile is a socket's file that is ours.
type socketFile struct {
	path string

	mu   sync.Mutex
	mine fs.FileInfo // nil once it was removed
}

// remove takes the file away unless it is another's by now. It may be called again.
func (f *socketFile) remove() {
	if unlock, err := lockDir(filepath.Dir(f.path)); err == nil {
		defer unlock()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mine == nil {
		return
	}
	if now, err := os.Lstat(f.path); err == nil && os.SameFile(now, f.mine) {
		os.Remove(f.path)
	}
	f.mine = nil
}

// bindUnix makes a socket of bind's kind at path, as listenUnix says.
func bindUnix(path string, bind func(lc net.ListenConfig, path string) (io.Closer, error)) (f *socketFile, err error) {
	if path == "" {
		return nil, usagef("no path")
	}
	// A VMM may be started elsewhere, and this is the path that it is told.
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	if len(path) > maxUnixPath {
		return nil, usagef("the path has %d bytes and a socket's may have %d: choose a shorter one, in /run or /tmp", len(path), maxUnixPath)
	}
	dir := filepath.Dir(path)
	// A daemon that ends removes an empty folder: it may go between our making it and our using it, seldom twice.
	for try := 0; ; try++ {
		if err = os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		f, err = bindIn(dir, path, bind)
		if !errors.Is(err, fs.ErrNotExist) || try == 3 {
			return f, err
		}
	}
}

func bindIn(dir, path string, bind func(net.ListenConfig, string) (io.Closer, error)) (*socketFile, error) {
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := clearStale(path); err != nil {
		return nil, err
	}
	mine, _, err := bindAt(path, bind)
	if err != nil {
		return nil, err
	}
	return &socketFile{path: path, mine: mine}, nil
}

// bindAt makes a socket and its file, of mode 0600.
func bindAt(path string, bind func(net.ListenConfig, string) (io.Closer, error)) (fs.FileInfo, io.Closer, error) {
	c, err := bind(net.ListenConfig{Control: privateSocket}, path)
	if err != nil {
		return nil, nil, err
	}
	mine, err := os.Lstat(path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		c.Close()
		os.Remove(path)
		return nil, nil, err
	}
	return mine, c, nil
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
