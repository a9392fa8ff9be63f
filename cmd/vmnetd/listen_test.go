package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
)

func TestListenUnix(t *testing.T) {
	if !hasModes {
		t.Skip("no file modes here")
	}
	dir := shortDir(t)
	path := filepath.Join(dir, "new", "s")
	l, _, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	for f, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if fi, err := os.Lstat(f); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %v", f, fi.Mode(), err, want)
		}
	}
	if _, _, err := listenUnix(path); !errors.Is(err, errInUse) {
		t.Errorf("a live socket: %v", err)
	}
	// The listener has gone and its file has not: stale.
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the file went with the listener: %v", err)
	}
	l2, remove2, err := listenUnix(path)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	remove2()
	l2.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
	// Somebody has put a file of his own in the place of ours.
	l3, remove3, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l4, remove4, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	remove3()
	l3.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("removed somebody else's socket: %v", err)
	}
	remove4()
	l4.Close()

	// What is no listening stream socket is left alone.
	for name, make := range map[string]func(string) error{
		"file":   func(p string) error { return os.WriteFile(p, []byte("x"), 0o600) },
		"folder": func(p string) error { return os.Mkdir(p, 0o700) },
		"link":   func(p string) error { return os.Symlink("/dev/null", p) },
		"dgram": func(p string) error {
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: p, Net: "unixgram"})
			if err == nil {
				t.Cleanup(func() { c.Close() })
			}
			return err
		},
	} {
		p := filepath.Join(dir, name)
		if err := make(p); err != nil {
			t.Fatal(err)
		}
		if l, _, err := listenUnix(p); err == nil {
			l.Close()
			t.Errorf("%s: replaced", name)
		}
		if _, err := os.Lstat(p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	long := filepath.Join(dir, strings.Repeat("x", maxUnixPath-len(dir)-1))
	if l, remove, err := listenUnix(long); err != nil {
		t.Errorf("a path of %d bytes: %v", len(long), err)
	} else {
		remove()
		l.Close()
	}
	var usage usageError
	if _, _, err := listenUnix(long + "x"); !errors.As(err, &usage) {
		t.Errorf("a path of %d bytes: %v", len(long)+1, err)
	}
}

// Of many that find the same stale socket at once, one has it and the others are told so.
func TestListenUnixRace(t *testing.T) {
	if !hasModes {
		t.Skip("nothing to lock here")
	}
	for range 20 {
		path := filepath.Join(shortDir(t), "s")
		stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		stale.SetUnlinkOnClose(false)
		stale.Close()
		var wg sync.WaitGroup
		got := make(chan *net.UnixListener, 8)
		for range cap(got) {
			wg.Go(func() {
				l, _, err := listenUnix(path)
				if err == nil {
					got <- l
				} else if !errors.Is(err, errInUse) {
					t.Errorf("lost with %v", err)
				}
			})
		}
		wg.Wait()
		close(got)
		if len(got) != 1 {
			t.Errorf("%d have it", len(got))
		}
		for l := range got {
			if c, err := net.Dial("unix", path); err != nil {
				t.Errorf("the socket there is not the winner's: %v", err)
			} else {
				c.Close()
			}
			l.Close()
		}
	}
}

// brokenListener fails as told, then gives out what it has.
type brokenListener struct {
	net.Listener
	fail  []error
	conns []net.Conn
}

func (l *brokenListener) Accept() (net.Conn, error) {
	if len(l.fail) > 0 {
		err := l.fail[0]
		l.fail = l.fail[1:]
		return nil, &net.OpError{Op: "accept", Net: "unix", Err: os.NewSyscallError("accept", err)}
	}
	if len(l.conns) > 0 {
		c := l.conns[0]
		l.conns = l.conns[1:]
		return c, nil
	}
	return l.Listener.Accept()
}

// A door outlives a lack of descriptors, turns away guests beyond its places, and says so when it is broken.
func TestDoor(t *testing.T) {
	logged := &strings.Builder{}
	log := slog.New(slog.NewTextHandler(logged, nil))
	n, err := backend.New(backend.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var ours, theirs []net.Conn
	for range 4 {
		a, b := net.Pipe()
		ours, theirs = append(ours, a), append(theirs, b)
	}
	d := &door{framing: &qemuFraming, addr: "test", remove: func() {}, places: make(chan struct{}, 2), log: log}
	d.in = shake(plainQEMU).at(d, &brokenListener{Listener: l, fail: []error{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED}, conns: theirs})
	done := make(chan error, 1)
	go func() { done <- d.serve(context.Background(), context.Background(), n) }()
	for i, c := range ours {
		_, err := whoHas(c, [4]byte{10, 0, 2, byte(50 + i)}, [4]byte{10, 0, 2, 2})
		if got, want := err == nil, i < 2; got != want {
			t.Errorf("guest %d of %d places: %v", i+1, cap(d.places), err)
		}
	}
	for _, c := range ours {
		c.Close()
	}
	l.Close() // as if somebody else had
	if err := <-done; err == nil || !strings.Contains(err.Error(), "qemu test") {
		t.Errorf("a broken door: %v", err)
	}
	if s := logged.String(); strings.Count(s, "turned away") != 1 || strings.Count(s, "cannot take a guest") != 3 {
		t.Errorf("log:\n%s", s)
	}
}

func TestRuntimeDir(t *testing.T) {
	if !hasModes {
		t.Skip("no file modes here")
	}
	base := shortDir(t)
	t.Setenv("XDG_RUNTIME_DIR", base)
	d, err := makeRuntimeDir()
	if err != nil || d != filepath.Join(base, "vmnetd") {
		t.Fatalf("%s, %v", d, err)
	}
	if err := os.Chmod(d, 0o755); err != nil {
		t.Fatal(err)
	}
	var hint hintError
	if _, err := makeRuntimeDir(); err == nil || !errors.As(err, &hint) || !strings.Contains(err.Error(), "open to others") {
		t.Errorf("a folder open to others: %v", err)
	}
	if err := os.Remove(d); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(base, d); err != nil { // as somebody else would put it into /tmp
		t.Fatal(err)
	}
	if _, err := makeRuntimeDir(); err == nil {
		t.Error("went through a link")
	}
	if os.Geteuid() == 0 {
		os.Remove(d)
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(d, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := makeRuntimeDir(); err == nil || !strings.Contains(err.Error(), "somebody else") {
			t.Errorf("a stranger's folder: %v", err)
		}
	}
	for _, v := range []string{"relative", filepath.Join(base, "nosuch"), ""} {
		t.Setenv("XDG_RUNTIME_DIR", v)
		if d := runtimeDir(); strings.HasPrefix(d, base) || !filepath.IsAbs(d) {
			t.Errorf("XDG_RUNTIME_DIR=%q: %s", v, d)
		}
	}
}
