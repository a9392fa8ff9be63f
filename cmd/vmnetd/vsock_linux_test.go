package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// A vsock listener that we were started with is one, and a guest's name says where it comes from. This needs the
// kernel's loopback; e2e's TestVsock has it everywhere.
func TestInheritedVsock(t *testing.T) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Skip(err)
	}
	defer unix.Close(fd)
	if _, err := inheritedVsock(fd); !errors.Is(err, errVsockConn) {
		t.Errorf("a socket that does not listen: %v", err)
	}
	if fd, err = unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: unix.VMADDR_PORT_ANY}); err != nil {
		unix.Close(fd)
		t.Skip(err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	l, err := inheritedVsock(fd) // takes it
	if err != nil || l == nil {
		t.Fatalf("a listener: %v, %v", l, err)
	}
	defer l.Close()
	addr := l.Addr().(*vsock.Addr)
	d := &door{framing: &vdeFraming, log: slog.New(slog.DiscardHandler)}
	a := shake(vdePlug).at(d, l)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if c, err := vsock.DialContext(ctx, unix.VMADDR_CID_LOCAL, addr.Port, nil); err == nil {
			c.Close()
		} else {
			l.Close()
		}
	}()
	g, err := a.accept()
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	if !strings.HasPrefix(g.peer, " from vsock:local:") {
		t.Errorf("it is called %q", g.peer)
	}
}

func TestInheritedIsNoVsock(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	for _, fd := range []int{fds[0], 1 << 20} {
		if l, err := inheritedVsock(fd); l != nil || err != nil {
			t.Errorf("descriptor %d: %v, %v", fd, l, err)
		}
	}
}
