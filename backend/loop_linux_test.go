package backend

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
)

// gapless is a wire that takes frames without end, and whose guest's only frame waits to be read.
type gapless struct {
	fds   [2]int // the loop's and the guest's
	wrote func()
	read  atomic.Int32
}

func newGapless(t *testing.T) *gapless {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return &gapless{fds: fds}
}

func (g *gapless) ReadFrames(*link.Batch) error                 { panic("not the loop's") }
func (g *gapless) WriteFrames([]link.Frame) (int, error)        { panic("not the loop's") }
func (g *gapless) Poll(f func(fd int) error) (ok bool, e error) { return true, f(g.fds[0]) }
func (g *gapless) Close() error                                 { unix.Shutdown(g.fds[1], unix.SHUT_RDWR); return nil }

func (g *gapless) TryReadFrames(*link.Batch) error {
	var b [64]byte
	switch n, err := unix.Read(g.fds[0], b[:]); {
	case err == unix.EAGAIN:
		return link.ErrWait
	case err != nil || n == 0:
		return io.EOF
	}
	g.read.Add(1)
	return link.ErrWait
}

func (g *gapless) TryWriteFrames(frames []link.Frame) (int, error) {
	if len(frames) > 0 && g.wrote != nil {
		g.wrote()
	}
	return len(frames), nil
}

// Frames to a guest that never cease do not keep its own from being read.
func TestLoopReadsWhileItWrites(t *testing.T) {
	n, err := New(Config{Egress: &egress.Host{}, Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	w := newGapless(t)
	defer unix.Close(w.fds[0])
	defer unix.Close(w.fds[1])
	p, err := n.newPort(context.Background(), w, w, PortConfig{Name: "gapless"})
	if err != nil || p.loop == nil {
		t.Fatalf("no loop: %v", err)
	}
	frame := func() { p.sendFrame(link.NewFrame(make([]byte, 1500)).Head) }
	w.wrote = frame // for each that is written there is another at once
	frame()
	done := make(chan struct{})
	n.seg.add(p)
	go func() { defer close(done); p.run() }()
	for i := range int32(3) {
		unix.Write(w.fds[1], []byte("x"))
		for end := time.Now().Add(backendtest.Patience); w.read.Load() <= i; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the loop never read what the guest sent")
			}
		}
	}
	p.stop()
	<-done
	n.Close()
}

// A dial that runs out of time is seen however close the loop is to sleep.
func TestLoopTimerIsSeen(t *testing.T) {
	n, err := New(Config{Egress: &egress.Host{}, Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	w := newGapless(t)
	defer unix.Close(w.fds[0])
	defer unix.Close(w.fds[1])
	p, err := n.newPort(context.Background(), w, w, PortConfig{Name: "gapless"})
	if err != nil || p.loop == nil {
		t.Fatalf("no loop: %v", err)
	}
	defer p.stack.Destroy()
	defer p.loop.end()
	p.loop.runPosted() // the limits that it begins with
	if p.loop.pending() {
		t.Fatal("a loop that was given nothing has work")
	}
	p.loop.timer.Reset(0) // the loop is awake: it has looked at its dials, and will sleep next
	for end := time.Now().Add(backendtest.Patience); !p.loop.pending(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a loop that goes to sleep now would not see that its timer has run out")
		}
	}
	p.stop()
}
