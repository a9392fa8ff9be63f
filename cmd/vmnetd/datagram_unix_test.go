//go:build unix

package main

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/link"
	"golang.org/x/sys/unix"
)

var noLog = slog.New(slog.DiscardHandler)

func openTestDoor(t *testing.T, f *framing, addr string) *door {
	t.Helper()
	d, err := openDoor(f, addr, noLog)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	return d
}

func TestDatagramDoorsRefuse(t *testing.T) {
	for _, c := range []struct {
		f    *framing
		addr string
	}{
		{&vfkitFraming, "unix:/tmp/x,offloading=maybe"}, {&vfkitFraming, "unix:/tmp/x,peer=127.0.0.1:1"}, {&vfkitFraming, "udp:1"},
		{&dgramFraming, "unix:/tmp/x,peer=127.0.0.1:1"}, {&dgramFraming, "udp:0,peer=127.0.0.1:0"}, {&dgramFraming, "udp:0,peer=vm:7"},
		{&dgramFraming, "udp:localhorst:7"}, {&dgramFraming, "udp:65536"}, {&dgramFraming, "fd:3,peer=127.0.0.1:1"}, {&dgramFraming, "tcp:7"},
		{&bessFraming, "fd:three"}, {&bessFraming, "unix:"},
	} {
		var usage usageError
		if d, err := openDoor(c.f, c.addr, noLog); !errors.As(err, &usage) {
			t.Errorf("--%s %s: %v, %v", c.f.name, c.addr, d, err)
		}
	}
}

// A living daemon's socket is left alone, one that is left over is replaced, whatever kind it was.
func TestDatagramSocketFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v.sock")
	left, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*framing{&vfkitFraming, &bessFraming, &qemuFraming} {
		if d, err := openDoor(f, "unix:"+path, noLog); !errors.Is(err, errInUse) {
			t.Errorf("--%s at a living socket: %v, %v", f.name, d, err)
		}
	}
	left.Close()
	d := openTestDoor(t, &vfkitFraming, "unix:"+path)
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if d, err := openDoor(&dgramFraming, "unix:"+path, noLog); !errors.Is(err, errInUse) {
		t.Errorf("at a living door: %v, %v", d, err)
	}
	d.close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	openTestDoor(t, &bessFraming, "unix:"+path).close()
}

// A guest that is connected keeps its socket, and who comes later finds another at the same path, which goes with the
// door. The wires outlive the door.
func TestDatagramGuests(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "v.sock")
	d := openTestDoor(t, &vfkitFraming, "unix:"+path)
	first, _ := os.Lstat(path)
	to := &net.UnixAddr{Net: "unixgram", Name: path}
	var wires []link.Link
	for _, name := range []string{"a", "b"} {
		c, err := net.DialUnix("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, name)}, to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("VFKT")); err != nil {
			t.Fatal(err)
		}
		g, err := d.in.accept()
		if err != nil {
			t.Fatal(err)
		}
		defer g.close()
		l, err := g.wire()
		if err != nil {
			t.Fatal(err)
		}
		if x, ok := l.(link.Limited); !ok || x.MaxFrame() < 1514 || x.MaxFrame() > 1518 {
			t.Errorf("%s is not limited to Ethernet's frames", name)
		}
		if gives, takes := link.OffloadsOf(l); gives != link.Checksums|link.Segments || takes != 0 {
			t.Errorf("%s gives %v, takes %v", name, gives, takes)
		}
		wires = append(wires, l)
		if runtime.GOOS == "linux" {
			deadline := time.Now().Add(10 * time.Second)
			for {
				now, err := os.Lstat(path)
				if err == nil && !os.SameFile(first, now) && now.Mode().Perm() == 0o600 {
					first = now
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s: the path has no new socket: %v, %v", name, now, err)
				}
				time.Sleep(time.Millisecond)
			}
		}
		defer func(c *net.UnixConn) {
			frame := link.NewFrame(make([]byte, 60))
			if n, err := l.WriteFrames([]link.Frame{frame}); n != 1 || err != nil {
				t.Errorf("%s after the door was closed: %d frames, %v", name, n, err)
			}
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if n, err := c.Read(make([]byte, 100)); n != 60 || err != nil {
				t.Errorf("%s read %d bytes, %v", name, n, err)
			}
		}(c)
	}
	d.close()
	if g, err := d.in.accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end %v comes, %v", g, err)
	}
	if list, _ := filepath.Glob(filepath.Join(dir, "*v.sock*")); len(list) != 0 {
		t.Errorf("left behind: %q", list)
	}
	if len(wires) != 2 {
		t.Errorf("%d wires", len(wires))
	}
}

// A file that has taken the place of ours is not replaced and not removed.
func TestSocketFileOfAnother(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "v.sock")
	bind := func(_ net.ListenConfig, path string) (io.Closer, error) {
		return net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	}
	f, err := bindUnix(path, bind)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.replace(bind); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := f.replace(bind); err == nil {
		t.Error("another's file was replaced")
	}
	f.remove()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's file: %v", err)
	}
	if err := f.replace(bind); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("%d files are there", len(list))
	}
}

func TestInheritedMessages(t *testing.T) {
	open := func(kind int, path string, listen bool) int {
		t.Helper()
		fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
		if err == nil && path != "" {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		}
		if err == nil && listen {
			err = unix.Listen(fd, 1)
		}
		if err != nil {
			t.Skip(err) // macOS has no seqpacket
		}
		return fd
	}
	dir := t.TempDir()
	l, shared, one, err := inheritedMessages(open(unix.SOCK_DGRAM, filepath.Join(dir, "d"), false))
	if err != nil || l != nil || shared == nil || one != nil {
		t.Errorf("a bound datagram socket: %v %v %v %v", l, shared, one, err)
	} else {
		shared.Close()
	}
	ours, theirs, err := messagePair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	fd, _ := unix.Dup(int(theirs.Fd()))
	theirs.Close()
	if l, shared, one, err = inheritedMessages(fd); err != nil || l != nil || shared != nil || one == nil {
		t.Errorf("a socketpair's end: %v %v %v %v", l, shared, one, err)
	} else {
		one.Close()
	}
	stream := open(unix.SOCK_STREAM, "", false)
	defer unix.Close(stream)
	if _, _, _, err := inheritedMessages(stream); !errors.Is(err, errNoMessages) {
		t.Errorf("a stream socket: %v", err)
	}
	if _, _, _, err := inheritedMessages(9999); !errors.Is(err, errNoDescriptor) {
		t.Errorf("nothing: %v", err)
	}
	l, shared, one, err = inheritedMessages(open(unix.SOCK_SEQPACKET, filepath.Join(dir, "s"), true))
	if err != nil || l == nil || shared != nil || one != nil {
		t.Errorf("a listening seqpacket socket: %v %v %v %v", l, shared, one, err)
	} else {
		l.Close()
	}
}
